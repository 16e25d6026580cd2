"""What a layer's result goes through until it is added to another branch.

Exporters write a bias as an Add of its own (MatMul), leave BatchNormalization where it was
(Paddle), or scale a branch before it joins (LayerScale). All of these are affine for each channel:
they can be undone, and one that adds a stored vector carries the bias that a layer has not got.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Coupling
from onnxprune.model import Array, Node
from onnxprune.rules.tables import ADDS, NORMS, RENAMES, SCALES

Constant = Callable[[Node, int], Array | None]  # a stored operand as the pruned model has it
SMALL: Final = 1e-3  # of the largest scale: smaller ones are not undone
EPSILON: Final = 1e-5  # of BatchNormalization


@dataclass(frozen=True)
class Step:
    """One affine node on the way; ``position`` is that of what it adds or multiplies by."""

    node: Node
    position: int

    def affine(self, constant: Constant) -> tuple[Array, Array] | None:
        """Its scale and shift, as they broadcast to the result; None where they are not stored."""
        if self.node.op in NORMS:
            found = [constant(self.node, k) for k in range(1, 5)]
            if any(x is None for x in found):
                return None
            scale, shift, mean, variance = (x.astype(np.float64) for x in found if x is not None)
            own = scale / np.sqrt(variance + float(self.node.attributes.get("epsilon", EPSILON)))
            return own, shift - mean * own
        value = constant(self.node, self.position)
        if value is None:
            return None
        if self.node.op in ADDS:
            return np.ones(1), value
        return value, np.zeros(1)


@dataclass(frozen=True)
class Branch:
    """The way of a layer's result.

    Attributes:
        steps: the affine nodes that it goes through.
        total: the sum that it ends in; empty where it ends in none.
        other: what it is added to there.
    """

    steps: tuple[Step, ...] = ()
    total: str = ""
    other: str = ""

    def carrier(self) -> Step | None:
        """The step that can carry a bias: the first, where it adds a stored vector."""
        step = self.steps[0] if self.steps else None
        return step if step and (step.node.op in ADDS or step.node.op in NORMS) else None

    def undone(self, value: Array, constant: Constant) -> Array | None:
        """What the layer should give for this at the end of the way; None where that is unknown."""
        for step in reversed(self.steps):
            affine = step.affine(constant)
            if affine is None:
                return None
            scale, shift = (_along(x, step, value) for x in affine)
            if np.abs(scale).min() <= SMALL * np.abs(scale).max():
                return None
            value = (value - shift) / scale
        return value


def _along(vector: Array, step: Step, value: Array) -> Values:
    """A vector of channels (c,) beside a result (n, c, *); other operands broadcast as they are."""
    wide = np.asarray(vector, np.float64)
    if step.node.op in NORMS and wide.ndim == 1:
        wide = wide.reshape(-1, *[1] * (value.ndim - 2))
    return wide


def readers(coupling: Coupling) -> Mapping[str, list[Node]]:
    """The nodes that read each value."""
    found: dict[str, list[Node]] = defaultdict(list)
    for node in coupling.model.nodes:
        for name in dict.fromkeys((*node.inputs, *node.captured)):
            found[name].append(node)
    return found


def branch_of(coupling: Coupling, node: Node, readers: Mapping[str, list[Node]]) -> Branch:
    """Follow a node's result through what is affine to the sum that it is a branch of."""
    model, value = coupling.model, node.outputs[0]
    steps: list[Step] = []
    while len(readers.get(value, ())) == 1 and value not in model.outputs:
        reader = readers[value][0]
        if reader.op in RENAMES:
            value = reader.outputs[0]
        elif reader.op in NORMS and reader.inputs[0] == value:
            steps.append(Step(reader, 2))
            value = reader.outputs[0]
        elif reader.op in ADDS | SCALES and sorted(reader.inputs).count(value) == 1:
            position = 1 - reader.inputs.index(value)
            other = reader.inputs[position]
            if other in model.params:
                steps.append(Step(reader, position))
                value = reader.outputs[0]
            elif reader.op in ADDS:
                return Branch(tuple(steps), reader.outputs[0], other)
            else:
                break
        else:
            break
    return Branch(tuple(steps))
