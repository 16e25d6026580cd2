"""Recover: let what stayed do the work of what went, from unlabelled inputs alone.

Layers are taken in topological order. For each the kept weights W_K become those W that minimise

    |W x^ + b - t|^2 + penalty |W - W_K|^2

over calibration rows, where x^ is what the layer reads in the pruned model, with everything
before it recovered already, so that errors do not pile up; and t is what it gave in the original.
Where its result is added to another branch, t is the original's sum less the pruned model's other
branch: the layer also mends what came before it. The penalty is chosen on calibration samples that
the fit has not seen; where no choice is better there than W_K, the layer stays as it is.

The method is that of channel pruning by reconstruction (He et al. 2017, Channel Pruning for
Accelerating Very Deep Neural Networks; Luo et al. 2017, ThiNet), made asymmetric and sequential,
on all linear operators by the letters of their rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx

from onnxprune.axes import Factors, Values
from onnxprune.coupling import Coupling
from onnxprune.linear import Linear, letter_sizes, linear_of, picked
from onnxprune.model import Array, Node
from onnxprune.moments import Moments, joined, ridge
from onnxprune.plan import Keep
from onnxprune.runtime import Feeds
from onnxprune.sides import Branch, branch_of
from onnxprune.stepping import Stepper

Progress = Callable[[str], None]
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD: Final = 4  # every so-manieth batch chooses the penalty
ROWS: Final = 24  # rows for each number that a layer reads, at most
LEAST_ROWS: Final = 1 << 14
WIDE_ROWS: Final = 4096  # where rows are kept
SAME: Final = 1e-10  # share of the target's energy that rounding may miss


@dataclass(frozen=True)
class Layer:
    """What recovery did to one layer.

    Attributes:
        node: its label.
        before, after: what its result misses of its target, as a share of the target's variance,
            on samples that the fit has not seen.
        strength: the penalty, or None where the layer stays as it is.
        reason: why it stays as it is.
    """

    node: str
    before: float
    after: float
    strength: float | None
    reason: str = ""


@dataclass(frozen=True)
class Recovery:
    """New values of parameters.

    Attributes:
        values: by parameter the full-size values; indices that the plan removes are as they were.
        layers: what was done, in topological order.
    """

    values: dict[str, Array] = field(repr=False)
    layers: tuple[Layer, ...]


def recover(
    coupling: Coupling,
    keep: Keep,
    shrunk: onnx.ModelProto,
    feeds: Sequence[Feeds],
    *,
    values: Mapping[str, Array] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Recovery:
    """Fit the kept weights of all linear layers to the original.

    Needs the coupling of the original and what ``shrink`` made of it. Changes nothing.

    Args:
        coupling: the structure of the original model.
        keep: kept indices (size,) by factor.
        shrunk: the pruned model.
        feeds: calibration inputs, in two batches or more.
        values: full-size values that the pruned model has instead of the original's.
        seed: of the choice of rows.
        threads: threads inside an operator.
        progress: is told the name of each layer.

    Raises:
        RunError: ONNX Runtime fails on the calibration inputs.
    """
    folder = coupling.model.folder
    work = _Work(
        coupling,
        keep,
        Stepper(coupling.model.proto, folder, feeds, threads),
        Stepper(shrunk, folder, feeds, threads),
        dict(values or {}),
        np.random.default_rng(seed),
    )
    layers = []
    for linear, branch in work.found():
        if progress is not None:
            progress(linear.node.label)
        layer = work.fit(linear, branch)
        if layer is not None:
            layers.append(layer)
    return Recovery(work.changed, tuple(layers))


class _Work:
    """One run over all layers."""

    def __init__(
        self,
        coupling: Coupling,
        keep: Keep,
        original: Stepper,
        pruned: Stepper,
        values: dict[str, Array],
        generator: np.random.Generator,
    ) -> None:
        self.coupling, self.keep, self.values = coupling, keep, values
        self.factors: Factors = coupling.factors
        self.original, self.pruned, self.generator = original, pruned, generator
        self.counts = {factor: int(mask.sum()) for factor, mask in keep.items()}
        self.changed: dict[str, Array] = {}
        self.uses = Counter(name for node in coupling.model.nodes for name in node.inputs)
        self.wanted: dict[str, int] = {}  # values of the original -> layers that still need them

    def found(self) -> list[tuple[Linear, Branch]]:
        """The layers in topological order, with what their results go through."""
        pairs = []
        for bound in self.coupling.bound:
            key = bound.node.key
            if key not in self.original.index or key not in self.pruned.index:
                continue
            linear = linear_of(self.coupling, bound)
            if linear is not None:
                pairs.append((linear, branch_of(self.coupling, linear.node)))
        pairs.sort(key=lambda pair: self.pruned.index[pair[0].node.key])
        for linear, branch in pairs:
            for name in {linear.node.outputs[0], branch.total} - {""}:
                self.wanted[name] = self.wanted.get(name, 0) + 1
        return pairs

    def fit(self, linear: Linear, branch: Branch) -> Layer | None:
        """Fit one layer; None where it misses nothing."""
        node = linear.node
        name, total = node.outputs[0], branch.total
        place = self.pruned.index[node.key]
        self.pruned.advance(place)
        self.reach(name)
        joins = bool(total) and branch.other in self.pruned.values
        if joins:
            self.reach(total)
        own = self.pruned.nodes[place]
        stored = own.input[linear.weight]
        reason = self.refusal(linear, stored)
        layer = None if reason else self.solve(linear, branch if joins else None, own)
        for used in {name, total} - {""}:
            self.wanted[used] -= 1
            if not self.wanted[used] and self.original.last.get(used, -1) < self.original.position:
                self.original.values.pop(used, None)
        return Layer(node.label, 0.0, 0.0, None, reason) if reason else layer

    def refusal(self, linear: Linear, stored: str) -> str:
        """Why a layer can't change."""
        if self.uses[linear.node.inputs[linear.weight]] > 1:
            return "its weight serves other nodes, too"
        return "" if stored in self.pruned.tensors else "its weight is computed in the graph"

    def reach(self, name: str) -> None:
        """Run the original until a value is there."""
        if name not in self.original.values:
            stop = 1 + self.original.index[self.coupling.model.producers[name].key]
            self.original.advance(stop, [x for x, left in self.wanted.items() if left])

    def solve(self, linear: Linear, branch: Branch | None, own: onnx.NodeProto) -> Layer | None:
        """Gather the moments of one layer, and change its weight where that helps."""
        weight = onnx.numpy_helper.to_array(self.pruned.tensors[own.input[linear.weight]])
        sizes = letter_sizes(linear, self.factors, self.counts)
        matrix = linear.matrix(weight, sizes).astype(np.float32)
        carrier = self.carrier(linear, own)
        shift = 0.0 if linear.bias is None else self.bias(linear, own, matrix)
        parts = [Moments(), Moments()]
        spread = 0.0
        batches = self.pruned.count
        for batch in range(batches):
            held = batches > 1 and batch % HELD == min(HELD, batches) - 1
            x, target = self.rows(linear, branch, own, batch, weight.shape, matrix)
            spread += float(np.square(target - target.mean(axis=1, keepdims=True)).sum())
            residual = target - np.matmul(x, matrix) - shift
            if carrier:
                x = np.concatenate([x, np.ones((*x.shape[:2], 1), x.dtype)], axis=2)
            parts[held].add(x, residual)
        whole = joined(parts)
        if whole.energy <= SAME * max(spread, 1e-30):
            return None
        share = parts[1].count / max(whole.count, 1) or 1.0
        judge = parts[1] if parts[1].count else parts[0]
        scale = max(spread * share, 1e-30)
        tried = [(judge.left(ridge(parts[0], s, carrier)), s) for s in STRENGTHS]
        best, strength = min(tried)
        before = judge.energy / scale
        if best >= judge.energy:
            return Layer(linear.node.label, before, before, None, "no fit does better elsewhere")
        self.write(linear, own, matrix, ridge(whole, strength, carrier), weight.shape, sizes)
        return Layer(linear.node.label, before, best / scale, strength)

    def carrier(self, linear: Linear, own: onnx.NodeProto) -> bool:
        """Whether the node has a bias of its own that may change."""
        if linear.bias is None:
            return False
        name = linear.node.inputs[linear.bias]
        return self.uses[name] == 1 and own.input[linear.bias] in self.pruned.tensors

    def bias(self, linear: Linear, own: onnx.NodeProto, matrix: Array) -> Array:
        """The bias as (batch, 1, outer)."""
        assert linear.bias is not None
        tensor = self.pruned.tensors[own.input[linear.bias]]
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        return values.reshape(matrix.shape[0], 1, matrix.shape[2])

    def rows(
        self,
        linear: Linear,
        branch: Branch | None,
        own: onnx.NodeProto,
        batch: int,
        shape: tuple[int, ...],
        matrix: Array,
    ) -> tuple[Array, Array]:
        """What the layer reads (b, p, d), and what it should give (b, p, o)."""
        node, sizes = linear.node, letter_sizes(linear, self.factors, self.counts)
        target = self.kept(node.outputs[0], self.original.values[node.outputs[0]][batch])
        if branch is not None:
            total = self.kept(branch.total, self.original.values[branch.total][batch])
            target = branch.undone(total - self.pruned.values[branch.other][batch], target)
        data = self.pruned.values[own.input[linear.data]][batch]
        x = linear.inputs(data, target.shape, shape, sizes)
        y = linear.outputs(target, sizes)
        count = len(linear.rows)
        there = int(np.prod(x.shape[:count], dtype=np.int64))
        wide = matrix.shape[1]
        most = WIDE_ROWS if wide > 6144 else max(ROWS * wide, LEAST_ROWS)
        most = -(-most // self.pruned.count)
        places = np.arange(there)
        if there > most:
            places = np.sort(self.generator.choice(there, most, replace=False))
        flat = picked(x, count, places).reshape(len(places), matrix.shape[0], wide)
        wanted = picked(y, count, places).reshape(len(places), matrix.shape[0], matrix.shape[2])
        turned = np.ascontiguousarray(flat.transpose(1, 0, 2), np.float32)
        return turned, np.ascontiguousarray(wanted.transpose(1, 0, 2), np.float32)

    def kept(self, name: str, value: Array) -> Array:
        """What the pruned model has of a value of the original."""
        for axis, layout in enumerate(self.coupling.layouts[name]):
            if not self.keep.keys().isdisjoint(self.factors.leaves(layout)):
                mask = self.factors.mask(layout, self.keep)
                if not mask.all():
                    value = np.take(value, np.flatnonzero(mask), axis=axis)
        return value

    def write(
        self,
        linear: Linear,
        own: onnx.NodeProto,
        matrix: Array,
        delta: Values,
        shape: tuple[int, ...],
        sizes: Mapping[str, int],
    ) -> None:
        """Change the weight, and the bias where the fit has one."""
        inner = matrix.shape[1]
        fitted = linear.tensor(matrix + delta[:, :inner], shape, sizes)
        self.put(linear.node, linear.weight, own, fitted)
        if delta.shape[1] > inner and linear.bias is not None:
            shift = self.bias(linear, own, matrix) + delta[:, inner:]
            old = onnx.numpy_helper.to_array(self.pruned.tensors[own.input[linear.bias]])
            self.put(linear.node, linear.bias, own, shift.reshape(old.shape))

    def put(self, node: Node, position: int, own: onnx.NodeProto, small: Array) -> None:
        """Let the pruned model go on with a new value, and remember it at full size."""
        stored = own.input[position]
        old = onnx.numpy_helper.to_array(self.pruned.tensors[stored])
        self.pruned.replace(stored, np.ascontiguousarray(small.astype(old.dtype)))
        name = node.inputs[position]
        full = self.values.get(name)
        if full is None:
            full = self.coupling.model.params[name].read()
        full = np.array(full)
        masks = [self.factors.mask(x, self.keep) for x in self.coupling.layouts[name]]
        full[np.ix_(*(np.flatnonzero(mask) for mask in masks))] = small
        self.values[name] = self.changed[name] = full
