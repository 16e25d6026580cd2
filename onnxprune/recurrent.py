"""Recurrent layers, whose gates add a product of what they read and one of what they remember.

    gates_t = x_t W' + h_(t-1) R' + b

Both products are linear in a stored weight. What they should give is not a value of the graph, but
follows from the original's: what it reads, and the states that it goes through. So each weight is
fitted like that of any other layer, the states being the original's, as far as they are kept
(teacher forcing; Williams and Zipser 1989). Whether that helps is seen when the layer runs by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnxprune import runtime
from onnxprune.coupling import Bound, Coupling
from onnxprune.model import Array, Node
from onnxprune.rules.tables import GATES
from onnxprune.stepping import Stepper

X, W, R, B, LENGTHS, START = range(6)  # operands
OPERANDS: Final = 8
READ: Final = (X, LENGTHS, START, 6)  # those that samples change; 6 is an LSTM's initial cell
Operands = Sequence[Array | None]


@dataclass(frozen=True)
class Recurrent:
    """A recurrent layer.

    Attributes:
        node: the node.
        reset: whether a state is scaled before it is multiplied by the last gate's weights.
    """

    node: Node
    reset: bool

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that samples change."""
        names = self.node.inputs
        return tuple(names[k] for k in READ if k < len(names) and names[k])

    def has(self, position: int) -> bool:
        """Whether an operand is given."""
        return position < len(self.node.inputs) and bool(self.node.inputs[position])

    def states(self, y: Array, operands: Operands) -> Array:
        """The state before each step (d, t, n, h), of those after it.

        Args:
            y: (t, d, n, h) the states after each step.
            operands: what it read.
        """
        after, start = y.swapaxes(0, 1), operands[START]
        steps, count = after.shape[1:3]
        first = np.zeros((len(after), *after.shape[2:]), after.dtype) if start is None else start
        ends = self._ends(steps, count, operands)
        before = np.empty_like(after)
        for way, backward in enumerate(self._backward(len(after))):
            if not backward:
                before[way, 0], before[way, 1:] = first[way], after[way, :-1]
                continue
            before[way, -1], before[way, :-1] = first[way], after[way, 1:]
            last = np.arange(steps)[:, None] == ends - 1
            before[way] = np.where(last[:, :, None], first[way], before[way])
        return before

    def steps(
        self, operands: Operands, limit: int, generator: np.random.Generator
    ) -> tuple[Array, Array]:
        """Some steps that count, where there are more: their times (p,) and sequences (p,).

        Args:
            operands: what the node reads, x (t, n, i) first.
            limit: so many, at most.
            generator: of the choice.
        """
        x = operands[X]
        assert x is not None, "it is always given"
        steps, count = x.shape[:2]
        there = np.argwhere(np.arange(steps)[:, None] < self._ends(steps, count, operands))
        if len(there) > limit:
            there = there[np.sort(generator.choice(len(there), limit, replace=False))]
        return there[:, 0], there[:, 1]

    def _ends(self, steps: int, count: int, operands: Operands) -> Array:
        """How many steps each sequence (n,) has."""
        lengths = operands[LENGTHS]
        return np.full(count, steps) if lengths is None else lengths.astype(np.int64)

    def _backward(self, ways: int) -> Sequence[bool]:
        told = self.node.attributes.get("direction", b"forward")
        return (False, True) if ways > 1 else (told in (b"reverse", "reverse"),)


def recurrent_of(coupling: Coupling, bound: Bound) -> Recurrent | None:
    """The node as a recurrent layer with stored weights; None where it is none.

    Nor where the batch comes before the time, which ONNX Runtime's kernels don't take.
    """
    node, params = bound.node, coupling.model.params
    if node.op not in GATES or node.attributes.get("layout", 0):
        return None
    if not all(name in params for name in node.inputs[W : R + 1]):
        return None
    reset = GATES[node.op] and not node.attributes.get("linear_before_reset", 0)
    return Recurrent(node, bool(reset))


def operands_of(stepper: Stepper, layer: Recurrent, batch: int) -> list[Array | None]:
    """All operands of the layer in one model on one batch; None where there is none."""
    place = stepper.index[layer.node.key]
    found: list[Array | None] = [None] * OPERANDS
    for position, name in enumerate(stepper.nodes[place].input):
        if name:
            own = stepper.constant(place, position)
            found[position] = stepper.values[name][batch] if own is None else own
    return found


class Alone:
    """A recurrent node that runs by itself, whatever its weights.

    Args:
        proto: the model that it is of.
        node: the node, with its attributes.
    """

    def __init__(self, proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        self.proto, self.node = proto, node
        self.session: ort.InferenceSession | None = None

    def __call__(self, operands: Operands) -> Array:
        """The states after each step."""
        feeds = {f"in{k}": value for k, value in enumerate(operands) if value is not None}
        if self.session is None:
            self.session = runtime.session(self._model(operands), None)
        return runtime.run(self.session, feeds, ["states"])[0]

    def _model(self, operands: Operands) -> onnx.ModelProto:
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        given = [k for k, value in enumerate(operands) if value is not None]
        node.input[:] = [f"in{k}" if k in given else "" for k in range(given[-1] + 1)]
        node.output[:] = ["states"]
        made = onnx.ModelProto(ir_version=max(self.proto.ir_version, 4))
        made.opset_import.extend(self.proto.opset_import)
        made.graph.name = "alone"
        made.graph.node.append(node)
        for k, value in enumerate(operands):
            if value is not None:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                info = helper.make_tensor_value_info(f"in{k}", kind, [None] * value.ndim)
                made.graph.input.append(info)
        made.graph.output.append(onnx.ValueInfoProto(name="states"))
        return made
