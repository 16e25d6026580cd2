"""How one channel's activations follow another's, from where they are made to where they are read.

A pair (j, i) of channels has a *ratio* on a value if there the channel j is that times the channel
i, whatever the input. The ratio is read off the parameters and carried along the nodes:

- an operator that is linear in each of two operands multiplies their ratios; what it adds (a bias)
  must have the ratio of the product;
- an operator that is positively homogeneous (Relu, Add, pooling) carries a positive ratio that all
  its operands share;
- any other operator is only known to treat all channels alike: the ratio must be 1.

A reader then does as well with the channel i alone, if its weights for i get those for j times the
ratio.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Bound, Coupling, Group
from onnxprune.model import Array
from onnxprune.notation import Axis, is_whole
from onnxprune.passes.score.hashing import Indices
from onnxprune.passes.score.slices import as_float, rows

# Linear in each of the first two operands; the third is added.
LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "Mul"})
NORMALIZES: Final = frozenset({"BatchNormalization"})  # x, scale, bias, mean, variance
ADDS: Final = frozenset({"Add", "Max", "Mean", "Min", "Sub", "Sum"})
DROPS: Final = frozenset({"Slice"})  # what it leaves out is read by nobody
_HOMOGENEOUS: Final = """
    AveragePool Concat DepthToSpace Dropout Expand Flatten GlobalAveragePool GlobalMaxPool Identity
    LeakyRelu MaxPool ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Slice
    SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Upsample
"""
HOMOGENEOUS: Final = ADDS | frozenset(_HOMOGENEOUS.split())

Users = Mapping[int, Sequence[tuple[Bound, frozenset[str]]]]  # by factor: nodes, and letters of it
Site = tuple[str, int]  # a parameter, and its axis that reads the group's channels


def users(coupling: Coupling) -> Users:
    """By factor the nodes that it takes part in, in order, and the letters that hold it there."""
    factors = coupling.factors
    found: dict[int, list[tuple[Bound, frozenset[str]]]] = defaultdict(list)
    for bound in coupling.bound:
        held: dict[int, set[str]] = defaultdict(set)
        for letter, layout in bound.letters.items():
            if not is_whole(letter):
                for leaf in factors.leaves(layout):
                    held[leaf].add(letter)
        for leaf, letters in held.items():
            found[leaf].append((bound, frozenset(letters)))
    return found


def ratios(
    coupling: Coupling,
    nodes: Users,
    group: Group,
    pairs: tuple[Indices, Indices],
    tolerance: float,
) -> dict[Site, Values]:
    """The ratios (pairs,) at every reader of an exact group; NaN for a pair that does not keep one.

    Args:
        coupling: the structure of the model.
        nodes: its ``users``.
        group: an exact group.
        pairs: the channels (pairs,) that could be removed, and those that could stand for them.
        tolerance: the largest relative error of what counts as equal.
    """
    chain = _Chain(coupling, group, pairs, tolerance)
    for bound, letters in nodes.get(group.factor, ()):
        chain.visit(bound, letters)
    wrong = np.full(len(pairs[0]), bool(chain.reads - chain.sites.keys()))  # read by other nodes
    for ratio in chain.sites.values():
        wrong |= ~np.isfinite(ratio)
    return {site: np.where(wrong | chain.broken, np.nan, r) for site, r in chain.sites.items()}


class _Chain:
    """The pairs of one group on their way through the graph."""

    def __init__(
        self, coupling: Coupling, group: Group, pairs: tuple[Indices, Indices], tolerance: float
    ) -> None:
        self.coupling, self.factor, self.tolerance = coupling, group.factor, tolerance
        self.first, self.second = pairs
        self.reads = {(m.param, m.axis) for m in group.members if m.contracted}
        self.made = {(m.param, m.axis) for m in group.members} - self.reads
        self.ratio: dict[str, Values] = {}
        self.sites: dict[Site, Values] = {}
        self.broken = False  # the factor is contracted where no weight can make up for it

    def visit(self, bound: Bound, letters: frozenset[str]) -> None:
        """Carry the ratios through one node, and note what reads here."""
        fit, node = bound.fit, bound.node
        lasting = letters & _letters(axes for axes in fit.results if axes is not None)
        carriers = [
            (position, name)
            for position, (name, axes) in enumerate(zip(node.inputs, fit.operands, strict=True))
            if name and axes is not None and lasting & _letters([axes])
        ]
        result = self.through(bound, carriers)
        for name, axes in zip(node.outputs, fit.results, strict=True):
            if name and axes is not None and lasting & _letters([axes]):
                self.ratio[name] = result
        for letter in letters - lasting if node.op not in DROPS else ():
            self.contract(bound, letter)
        for name, axes in zip(node.inputs, fit.operands, strict=True):
            for axis, pattern in enumerate(axes or ()):
                # A recurrent weight reads what its node makes.
                if (name, axis) in self.reads and lasting & _letters([(pattern,)]):
                    self.sites[name, axis] = result

    def contract(self, bound: Bound, letter: str) -> None:
        """Note the weights that read a letter, and the ratio of what they read."""
        values, weights = [], []
        for name, axes in zip(bound.node.inputs, bound.fit.operands, strict=True):
            for position, axis in enumerate(axes or ()):
                if not any(letter in term for term in axis):
                    continue
                if (name, position) in self.reads:
                    weights.append((name, position))
                else:
                    values.append(self.ratio.get(name, self.nothing()))
        if len(values) != 1 or not weights:
            self.broken = True
        for site in weights:
            self.sites[site] = values[0] if values else self.nothing()

    def nothing(self) -> Values:
        """No ratio for any pair."""
        return np.full(len(self.first), np.nan)

    def through(self, bound: Bound, carriers: list[tuple[int, str]]) -> Values:
        """The ratios (pairs,) of a node's results."""
        op, one = bound.node.op, np.ones(len(self.first))
        if op in NORMALIZES:
            return self.normalized(bound)
        if op in LINEAR:
            result = one
            for position, name in carriers:
                if position < 2:
                    result = result * self.own(name)
            return self.agree(result, [name for position, name in carriers if position > 1])
        names = [name for _, name in carriers]
        present = sum(map(bool, bound.node.inputs))
        if op in HOMOGENEOUS and names and not (op in ADDS and len(names) < present):
            result = self.own(next((n for n in names if n in self.ratio), names[0]))
            return self.agree(np.where(result > 0, result, np.nan), names)
        return self.agree(one, names)

    def own(self, name: str) -> Values:
        """The ratios of a value, or of a parameter."""
        if name in self.ratio:
            return self.ratio[name]
        if not self.is_made(name):
            return self.nothing()
        first, second = self.slices(name)
        return self.between(first, second)

    def between(self, first: Array, second: Array) -> Values:
        """The ratios of slices (pairs, *), by least squares; NaN where they don't follow."""
        square = np.einsum("ij,ij->i", second, second)
        inner = np.einsum("ij,ij->i", first, second)
        ratio = inner / np.where(square > 0, square, np.nan)
        return np.where(self.follows(first, second, ratio), ratio, np.nan)

    def follows(self, first: Array, second: Array, ratio: Values) -> Array:
        """Whether slices (pairs, *) have these ratios."""
        other = ratio[:, None] * second
        error = np.linalg.norm(first - other, axis=1)
        size = np.maximum(np.linalg.norm(first, axis=1), np.linalg.norm(other, axis=1))
        return np.asarray(error <= self.tolerance * size)

    def agree(self, ratio: Values, names: list[str]) -> Values:
        """The ratios, NaN where an operand has another."""
        for name in names:
            if name in self.ratio:
                holds = np.abs(self.ratio[name] - ratio) <= self.tolerance * np.abs(ratio)
            elif self.is_made(name):
                holds = self.follows(*self.slices(name), ratio)
            else:
                return self.nothing()
            ratio = np.where(holds, ratio, np.nan)
        return ratio

    def normalized(self, bound: Bound) -> Values:
        """Through y = gain x + shift, with both read off the statistics."""
        x, *names = bound.node.inputs
        params = self.coupling.model.params
        if not all(name in params for name in names):
            return self.nothing()
        scale, bias, mean, variance = (params[name].read().astype(np.float64) for name in names)
        gain = scale / np.sqrt(variance + bound.node.attributes.get("epsilon", 1e-5))
        shift = bias - gain * mean
        result = self.own(x) * self.between(*self.slices(names[0], gain))
        return np.where(self.follows(*self.slices(names[0], shift), result), result, np.nan)

    def is_made(self, name: str) -> bool:
        """Whether a parameter has an axis that makes the group's channels."""
        axes = len(self.coupling.layouts.get(name, ()))
        return any((name, axis) in self.made for axis in range(axes))

    def slices(self, name: str, values: Array | None = None) -> tuple[Array, Array]:
        """What a parameter holds (pairs, *) for each channel of the pairs."""
        array = self.coupling.model.params[name].read() if values is None else values
        layouts = self.coupling.layouts[name]
        pieces = [
            rows(self.coupling.factors, layout, axis, array, self.factor)
            for axis, layout in enumerate(layouts)
            if (name, axis) in self.made
        ]
        found = as_float(np.concatenate(pieces, axis=1))
        return found[self.first].astype(np.float64), found[self.second].astype(np.float64)


def _letters(patterns: Iterable[tuple[Axis, ...]]) -> frozenset[str]:
    return frozenset(x for axes in patterns for axis in axes for term in axis for x in term)
