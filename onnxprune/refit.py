"""Refit layers one after the other: the work of the pass recover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx

from onnxprune.affine import FIRM, Affine, Lines, affine_of
from onnxprune.axes import Factors, Values
from onnxprune.coupling import Coupling
from onnxprune.full import full_size, kept_part
from onnxprune.gathering import SAME, Gathered, is_held
from onnxprune.linear import Linear, letter_sizes, linear_of, picked, root_of
from onnxprune.model import Array, Node
from onnxprune.moments import TINY, WIDE
from onnxprune.pair import behind, operators
from onnxprune.plan import Keep, counts_of
from onnxprune.recurrent import Recurrent, recurrent_of
from onnxprune.results import Layer
from onnxprune.rules.tables import NORMS, PICKING
from onnxprune.sides import Branch, Step, branch_of, readers
from onnxprune.stepping import Stepper

ROWS: Final = 24  # rows for each number that a layer reads, at most
LEAST_ROWS: Final = 1 << 14
WIDE_ROWS: Final = 4096  # where rows are kept
COMPUTED: Final = "its weight is computed in the graph"
SHARED: Final = "its weight serves other nodes, too"


Fitted = Linear | Affine | Recurrent


def claims(fitted: Fitted, branch: Branch) -> set[str]:
    """The values of the original that a layer is fitted by."""
    if isinstance(fitted, Recurrent):
        return set(fitted.reads)
    return {fitted.node.outputs[0], branch.total} - {""}


class Refit:
    """One run over all layers of a model; see ``onnxprune.passes.recover`` for what it does.

    Attributes:
        changed: new values of parameters at full size, by name.
    """

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
        self.counts = counts_of(keep)
        self.changed: dict[str, Array] = {}
        self.uses = Counter(name for node in coupling.model.every for name in node.inputs)
        self.wanted: dict[str, int] = {}  # values of the original -> layers that still need them
        self.read_by = readers(coupling)
        nodes = coupling.model.nodes
        sources = {
            x for n in nodes if not PICKING.isdisjoint(operators(n.proto)) for x in n.outputs
        }
        self.picked = behind(nodes, sources) | sources

    def linears(self) -> list[Linear]:
        """The linear layers that both models have."""
        return [fitted for fitted, _ in self.pairs() if isinstance(fitted, Linear)]

    def found(self) -> list[tuple[Fitted, Branch]]:
        """The layers in topological order, with what their results go through, to be fitted."""
        pairs = self.pairs()
        for fitted, branch in pairs:
            for name in claims(fitted, branch):
                self.wanted[name] = self.wanted.get(name, 0) + 1
        return pairs

    def pairs(self) -> list[tuple[Fitted, Branch]]:
        """The same, without a claim on any value."""
        pairs: list[tuple[Fitted, Branch]] = []
        for bound in self.coupling.bound:
            key = bound.node.key
            if key not in self.original.index or key not in self.pruned.index:
                continue
            linear = linear_of(self.coupling, bound)
            norm = affine_of(self.coupling, bound)
            if norm is not None:
                pairs.append((norm, Branch()))
            if linear is not None:
                pairs.append((linear, branch_of(self.coupling, linear.node, self.read_by)))
            recurrent = recurrent_of(self.coupling, bound)
            if recurrent is not None:
                pairs.append((recurrent, Branch()))
        pairs.sort(key=lambda pair: self.pruned.index[pair[0].node.key])
        return pairs

    def passed_over(self) -> list[Layer]:
        """Layers that read what is pruned and can't be fitted, with the reason."""
        pruned, found = set(self.counts), []
        for bound in self.coupling.bound:
            node, here = bound.node, bound.node.key in self.pruned.index
            read = (bound.letters[x] for x in bound.fit.contracted if x in bound.letters)
            touched = any(not pruned.isdisjoint(self.factors.leaves(axis)) for axis in read)
            own = linear_of(self.coupling, bound) or recurrent_of(self.coupling, bound)
            if not (bound.fit.macs and touched and here) or own:
                continue
            if any(name in self.coupling.model.params for name in node.inputs[:2]):
                found.append(Layer(node.label, 0.0, 0.0, None, "its kind of layer is not fitted"))
            elif any(name in self.original.constants for name in node.inputs[:2]):
                found.append(Layer(node.label, 0.0, 0.0, None, COMPUTED))
        return found

    def fit(self, fitted: Linear | Affine, branch: Branch) -> Layer | None:
        """Fit one layer; None where it misses nothing."""
        return self.norm(fitted) if isinstance(fitted, Affine) else self.linear(fitted, branch)

    def linear(self, linear: Linear, branch: Branch) -> Layer | None:
        """Fit the weight of a linear layer."""
        node = linear.node
        name, total = node.outputs[0], branch.total
        place = self.pruned.index[node.key]
        self.pruned.advance(place)
        self.reach(name)
        joins = bool(total) and branch.other in self.pruned.values
        if joins:
            self.reach(total)
        own = self.pruned.nodes[place]
        reason = self.refusal(linear)
        layer = None if reason else self.solve(linear, branch, joins, own)
        self.done(claims(linear, branch))
        return Layer(node.label, 0.0, 0.0, None, reason) if reason else layer

    def done(self, names: Iterable[str]) -> None:
        """Let go of values of the original that nobody needs any more."""
        for used in names:
            self.wanted[used] -= 1
            over = self.original.last.get(used, -1) < self.original.position
            if not self.wanted[used] and over and used in self.original.values:
                self.original.drop(used)

    def norm(self, norm: Affine) -> Layer | None:
        """Give a norm another scale and shift, where that brings its result nearer."""
        node, name = norm.node, norm.node.outputs[0]
        place = self.pruned.index[node.key]
        positions = [k for k in (norm.scale, norm.shift) if k is not None]
        stored = [self.constant(node, k) for k in positions]
        shared = any(self.uses[node.inputs[k]] > 1 for k in positions)
        self.reach(name)
        self.pruned.advance(place + 1, [name])
        parts = [Lines(), Lines()]
        for batch in range(self.pruned.count):
            held = is_held(batch, self.pruned.count)
            found = self.pruned.values[name][batch]
            parts[held].add(found, self.kept(name, batch), norm.axis)
        self.done([name])
        judge = parts[1] if parts[1].count else parts[0]
        scale, before = max(judge.spread(), TINY), judge.left(1.0, 0.0)
        if before <= SAME * scale:
            return None
        if shared or any(value is None for value in stored) or name in self.picked:
            why = "its scale serves other nodes, or is computed, or its rows are picked at run time"
            return Layer(node.label, before / scale, before / scale, None, why)
        slope, shift = parts[0].solved(norm.shift is not None)
        after = judge.left(slope, shift)
        if not after < before:
            why = "no fit does better on other samples"
            return Layer(node.label, before / scale, before / scale, None, why)
        self.change(norm, slope, shift)
        return Layer(node.label, before / scale, after / scale, FIRM)

    def change(self, norm: Affine, slope: Values, shift: Values) -> None:
        """Write the line into the norm, and into what it has just given."""
        for position, added in ((norm.scale, 0.0), (norm.shift, shift)):
            old = None if position is None else self.constant(norm.node, position)
            if position is not None and old is not None:
                self.put(norm.node, position, old * slope + added)

        def along(value: Array) -> Array:
            wide = [1] * value.ndim
            wide[norm.axis] = -1
            return np.asarray(value * slope.reshape(wide) + shift.reshape(wide), value.dtype)

        self.pruned.amend(norm.node.outputs[0], along)

    def refusal(self, linear: Linear) -> str:
        """Why a layer can't change."""
        node = linear.node
        if linear.adds:
            return "what it adds is no stored vector of its own"
        if linear.bias is not None and self.constant(node, linear.bias) is None:
            return "its bias is computed in the graph"
        if self.constant(node, linear.weight) is None:
            return COMPUTED
        if node.outputs[0] in self.picked:
            return "its rows are picked at run time"
        return SHARED if any(self.uses[name] > 1 for name in linear.root.through) else ""

    def reach(self, name: str) -> None:
        """Run the original until a value is there."""
        if name not in self.original.values:
            stop = 1 + self.original.index[self.coupling.model.producers[name].key]
            self.original.advance(stop, [x for x, left in self.wanted.items() if left])

    def solve(
        self, linear: Linear, branch: Branch, joins: bool, own: onnx.NodeProto
    ) -> Layer | None:
        """Gather the moments of one layer, and change its weight where that helps."""
        carrier = self.carrier(linear, branch)
        found = self.gathered(linear, branch if joins else None, own, carrier).fitted(linear)
        if found is None:
            return None
        if found.weight is not None:
            self.put(linear.node, linear.weight, found.weight)
            if carrier is not None and found.bias is not None:
                self.add(carrier, found.bias)
        return found.layer

    def gathered(
        self, linear: Linear, branch: Branch | None, own: onnx.NodeProto, carrier: Step | None
    ) -> Gathered:
        """What one layer reads and what it misses, over all batches.

        Args:
            linear: the layer.
            branch: the branch that it ends, where its target is what another one leaves.
            own: the node as the pruned model has it.
            carrier: where a change of the bias would go.
        """
        weight = self.constant(linear.node, linear.weight)
        assert weight is not None, "a layer without it is refused"
        sizes = letter_sizes(linear, self.factors, self.counts)
        matrix = linear.matrix(weight, sizes).astype(np.float32)
        shift: Array | float = 0.0
        if linear.bias is not None:
            stored = np.asarray(self.constant(linear.node, linear.bias), np.float32)
            shift = stored.reshape(matrix.shape[0], 1, matrix.shape[2])
        found = Gathered(weight, matrix, sizes, carrier)
        for batch in range(self.pruned.count):
            target = self.target(linear.node, branch, batch)
            x, wanted = self.rows(linear, own, target, batch, weight.shape, matrix)
            found.spread.add(wanted)
            residual = wanted - np.matmul(x, matrix) - shift
            if carrier is not None:
                x = np.concatenate([x, np.ones((*x.shape[:2], 1), x.dtype)], axis=2)
            found.parts[is_held(batch, self.pruned.count)].add(x, residual)
        return found

    def carrier(self, linear: Linear, branch: Branch) -> Step | None:
        """The operand that a change of the bias is written to: a vector of no other use."""
        weight = self.constant(linear.node, linear.weight)
        assert weight is not None, "a layer without it is refused"
        matrix = linear.matrix(weight, letter_sizes(linear, self.factors, self.counts))
        if linear.bias is not None:
            step: Step | None = Step(linear.node, linear.bias)
        else:
            step = branch.carrier()
        if step is None or self.uses[step.node.inputs[step.position]] != 1:
            return None
        if matrix.shape[1] >= WIDE:  # rows are kept there, and no index is free
            return None
        value = self.constant(step.node, step.position)
        outer = matrix.shape[0] * matrix.shape[2]
        ends = linear.y[-1] == (*linear.batch, *linear.outer)
        if value is None or value.size != outer or max(value.shape, default=0) != outer:
            return None
        own = step.node is linear.node or step.node.op in NORMS  # places it by its own rule
        return step if own or (ends and value.shape[-1] == outer) else None

    def constant(self, node: Node, position: int) -> Array | None:
        """A stored operand, as the pruned model has it."""
        place = self.pruned.index.get(node.key)
        return None if place is None else self.pruned.constant(place, position)

    def kept(self, name: str, batch: int) -> Array:
        """A value of the original, as far as the pruned model has it."""
        value = self.original.values[name][batch]
        return np.asarray(kept_part(self.coupling, self.keep, name, value))

    def target(self, node: Node, branch: Branch | None, batch: int) -> Array:
        """What a layer should give: with another branch, what that one leaves to be given."""
        name = node.outputs[0]
        plain = self.kept(name, batch)
        if branch is None:
            return plain
        total = self.kept(branch.total, batch)
        other = self.pruned.values[branch.other][batch]
        undone = branch.undone(total.astype(np.float64) - other, self.constant)
        fits = undone is not None and undone.shape == plain.shape
        return undone.astype(plain.dtype) if undone is not None and fits else plain

    def rows(
        self,
        linear: Linear,
        own: onnx.NodeProto,
        target: Array,
        batch: int,
        shape: tuple[int, ...],
        matrix: Array,
    ) -> tuple[Array, Array]:
        """What the layer reads (b, p, d), and what it should give (b, p, o)."""
        sizes = letter_sizes(linear, self.factors, self.counts)
        data = self.pruned.values[own.input[linear.data]][batch]
        x = linear.inputs(data, target.shape, shape, sizes)
        y = linear.outputs(target, sizes)
        count, wide = len(linear.rows), matrix.shape[1]
        there = int(np.prod(x.shape[:count], dtype=np.int64))
        most = WIDE_ROWS if wide >= WIDE else max(ROWS * wide, LEAST_ROWS)
        most = -(-most // self.pruned.count)
        places = np.arange(there)
        if there > most:
            places = np.sort(self.generator.choice(there, most, replace=False))
        flat = picked(x, count, places).reshape(len(places), matrix.shape[0], wide)
        wanted = picked(y, count, places).reshape(len(places), matrix.shape[0], matrix.shape[2])
        usual = np.isfinite(flat).all(axis=(1, 2)) & np.isfinite(wanted).all(axis=(1, 2))
        turned = np.ascontiguousarray(flat[usual].transpose(1, 0, 2), np.float32)
        return turned, np.ascontiguousarray(wanted[usual].transpose(1, 0, 2), np.float32)

    def add(self, carrier: Step, bias: Values) -> None:
        """Add a bias, behind what scales it."""
        old = self.constant(carrier.node, carrier.position)
        affine = carrier.affine(self.constant) if carrier.node.op in NORMS else None
        scale = 1.0 if affine is None else affine[0]
        assert old is not None
        self.put(carrier.node, carrier.position, old + (scale * bias).reshape(old.shape))

    def put(self, node: Node, position: int, small: Array) -> None:
        """Let the pruned model go on with a new value, and remember it at full size."""
        old = self.constant(node, position)
        assert old is not None, "only what is stored changes"
        small = small.astype(old.dtype)
        self.pruned.replace(self.pruned.index[node.key], position, small)
        root = root_of(self.coupling, node.inputs[position])
        assert root is not None, "only what is stored changes"
        base = self.values.get(root.name)
        base = self.coupling.model.params[root.name].read() if base is None else base
        full = full_size(self.coupling, self.keep, root.name, root.stored(small), base)
        self.values[root.name] = self.changed[root.name] = full
