"""What reads each group: the second moments of what contractions read, gathered in one pass.

A *reader* is a node that sums over indices of a group. Where it is linear in a stored weight, its
moments tell what the loss of any indices costs once the others make up for it; where it multiplies
two computed values (the scores of attention), the energy of each index's term tells what the loss
costs as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from onnxprune.axes import Opaque, Values
from onnxprune.coupling import Bound, Coupling
from onnxprune.linear import Letters, Linear, letter_sizes, linear_of, picked
from onnxprune.model import Array
from onnxprune.moments import WIDE
from onnxprune.notation import Axis
from onnxprune.passes.score.magnitude import Progress
from onnxprune.passes.score.slices import rows
from onnxprune.polynomials import Indices
from onnxprune.refit import Spread
from onnxprune.runtime import Feeds
from onnxprune.stepping import Stepper
from onnxprune.store import Kept

ROWS: Final = 16  # rows for each number that a node reads, at most
LEAST_ROWS: Final = 1 << 13
Positions = dict[int, Array]  # factor -> (size, t): where its indices stand in what is read


@dataclass(frozen=True)
class Reader:
    """One node that reads indices of groups.

    Attributes:
        node: its label.
        gram: mean of x'x (b, d, d) over rows, or None where it is too large or there is no weight.
        weight: (b, d, o), or None where there is none.
        power: (b, d) mean of x^2.
        mean: (b, d) mean of x.
        squares: (b, d) sum of the weights' squares over outer indices; 1 where there is none.
        total: the result's variance, summed over outer indices, a row.
        positions: where the groups' indices stand.
    """

    node: str
    gram: Values | None = field(repr=False)
    weight: Values | None = field(repr=False)
    power: Values = field(repr=False)
    mean: Values = field(repr=False)
    squares: Values = field(repr=False)
    total: float
    positions: Positions = field(repr=False)

    @property
    def energy(self) -> Values:
        """What each read number (d,) adds to the result's energy by itself."""
        return np.asarray((self.power * self.squares).sum(axis=0), np.float64)

    @property
    def fluctuation(self) -> Values:
        """The same, without what a bias makes up for."""
        varied = np.maximum(self.power - np.square(self.mean), 0)
        return np.asarray((varied * self.squares).sum(axis=0), np.float64)


def readers(
    coupling: Coupling,
    feeds: Sequence[Feeds],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Reader]:
    """All nodes that read indices of groups, in topological order.

    Args:
        coupling: the structure of the model.
        feeds: calibration inputs.
        seed: of the choice of rows.
        progress: is told the label of each node.
    """
    stepper = Stepper(coupling.model.proto, coupling.model.folder, feeds)
    generator = np.random.default_rng(seed)
    groups = {group.factor for group in coupling.groups}
    work = _Pass(coupling, stepper, groups, generator)
    order = [b for b in coupling.bound if b.node.key in stepper.index]
    found = []
    for bound in sorted(order, key=lambda b: stepper.index[b.node.key]):
        if not _reads(coupling, bound, groups):
            continue
        if progress is not None:
            progress(bound.node.label)
        reader = work.read(bound)
        if reader is not None:
            found.append(reader)
    return found


def _reads(coupling: Coupling, bound: Bound, groups: set[int]) -> bool:
    letters = (bound.letters[x] for x in bound.fit.contracted if x in bound.letters)
    factors = coupling.factors
    return bool(bound.fit.macs) and any(
        not groups.isdisjoint(factors.leaves(layout)) for layout in letters
    )


@dataclass(frozen=True)
class _Pass:
    """One pass over the calibration inputs."""

    coupling: Coupling
    stepper: Stepper
    groups: set[int]
    generator: np.random.Generator

    def read(self, bound: Bound) -> Reader | None:
        """The node's reader; the node has run then."""
        node = bound.node
        place = self.stepper.index[node.key]
        self.stepper.advance(place)
        reads = {name: self.stepper.values.get(name) for name in node.inputs}
        self.stepper.advance(place + 1, [node.outputs[0], *node.inputs])
        results = self.stepper.values[node.outputs[0]]
        linear = linear_of(self.coupling, bound)
        if linear is None:
            return self.product(bound, reads, results)
        data = reads[node.inputs[linear.data]]
        return None if data is None else self.linear(linear, data, results)

    def linear(self, linear: Linear, data: Kept, results: Kept) -> Reader | None:
        """The reader of a node that is linear in a stored weight."""
        own = letter_sizes(linear, self.coupling.factors, {})
        values = self.coupling.model.params[linear.node.inputs[linear.weight]].read()
        weight = linear.matrix(np.asarray(values, np.float32), own)
        batch, wide = weight.shape[:2]
        sizes = [own.get(x) or values.shape[2 + int(x.split()[1])] for x in linear.inner]
        positions = self.positions(linear, linear.inner, sizes)
        if not positions:
            return None
        limit = -(-max(ROWS * wide, LEAST_ROWS) // len(data))
        full = wide <= WIDE
        moments, sums = np.zeros((batch, 1, 1)), np.zeros((batch, wide))
        spread, count = Spread(), 0
        for one, result in zip(data, results, strict=True):
            x = linear.inputs(one, result.shape, values.shape, own)
            places = _places(x.shape[: len(linear.rows)], limit, self.generator)
            flat = picked(x, len(linear.rows), places).reshape(len(places), batch, wide)
            usual = np.isfinite(flat).all(axis=(1, 2))
            flat, places = flat[usual], places[usual]
            x = np.ascontiguousarray(flat.transpose(1, 0, 2), np.float32)
            own_moments = (
                np.matmul(x.transpose(0, 2, 1), x) if full else np.square(x).sum(1)[:, None]
            )
            moments = moments + own_moments
            sums += x.sum(axis=1)
            y = picked(linear.outputs(result, own), len(linear.rows), places)
            spread.add(y.reshape(1, len(places), -1))
            count += len(places)
        moments, mean = moments / max(count, 1), sums / max(count, 1)
        power = np.einsum("bdd->bd", moments) if full else moments[:, 0]
        squares = np.square(weight.astype(np.float64)).sum(axis=2)
        gram = _extended(moments, mean) if full else None
        seen = (gram, weight if full else None, power, mean, squares)
        return Reader(linear.node.label, *seen, spread.variance() / max(count, 1), positions)

    def product(self, bound: Bound, reads: dict[str, Kept | None], results: Kept) -> Reader | None:
        """The reader of a product of two computed values: x (..., m, k) and w (..., k, n)."""
        fit, node = bound.fit, bound.node
        forms = [_form(axes) for axes in (*fit.operands[:2], *fit.results[:1])]
        data = [reads.get(name) for name in node.inputs[:2]]
        if len(fit.operands) != 2 or None in forms or None in data:
            return None
        x, w, y = (tuple(a for axis in form or () for a in axis) for form in forms)
        inner = tuple(a for a in x if a in w and a not in y)
        shared = tuple(a for a in x if a in w and a in y)
        if not inner or any(len(axis) != 1 for form in forms for axis in form or ()):
            return None
        positions = self.positions(bound, inner, [fit.sizes.get(a) or 0 for a in inner])
        if not positions:
            return None
        energy: Values | float = 0.0
        for one, other in zip(*data, strict=True):
            sides = []
            for value, letters in ((one, x), (other, w)):
                rest = tuple(k for k, a in enumerate(letters) if a not in (*inner, *shared))
                power = np.square(value.astype(np.float64)).sum(axis=rest)
                left = [a for a in letters if a in (*inner, *shared)]
                sides.append(power.transpose([left.index(a) for a in (*shared, *inner)]))
            joint = sides[0] * sides[1]
            energy = energy + joint.reshape(-1, int(np.prod(joint.shape[len(shared) :]))).sum(0)
        total = sum(float(np.square(own.astype(np.float64)).sum()) for own in results)
        power = np.atleast_2d(energy)
        seen = (None, None, power, np.zeros_like(power), np.ones_like(power))
        return Reader(node.label, *seen, total, positions)

    def positions(self, at: Linear | Bound, letters: Letters, sizes: Sequence[int]) -> Positions:
        """Where each group's indices stand among the numbers that are read."""
        bound = at.bound if isinstance(at, Linear) else at
        factors, found = self.coupling.factors, {}
        grid = np.arange(int(np.prod(sizes, dtype=np.int64))).reshape(list(sizes))
        for axis, letter in enumerate(letters):
            layout = bound.letters.get(letter)
            if layout is None or isinstance(factors.normal(layout), Opaque):
                continue
            for factor in self.groups.intersection(factors.leaves(layout)):
                own = rows(factors, layout, axis, grid, factor)
                found[factor] = own.reshape(len(own), -1)
        return found


def _form(axes: tuple[Axis, ...] | None) -> tuple[Letters, ...] | None:
    if axes is None or any(len(axis) != 1 for axis in axes):
        return None
    return tuple(axis[0] for axis in axes)


def _places(shape: Sequence[int], limit: int, generator: np.random.Generator) -> Indices:
    """Some rows, in order."""
    there = int(np.prod(shape, dtype=np.int64))
    if there <= limit:
        return np.arange(there)
    return np.sort(generator.choice(there, limit, replace=False))


def _extended(moments: Values, mean: Values) -> Values:
    """The moments of (x, 1): what a bias can make up for costs nothing."""
    batch, wide, _ = moments.shape
    found = np.ones((batch, wide + 1, wide + 1))
    found[:, :wide, :wide] = moments
    found[:, wide, :wide] = found[:, :wide, wide] = mean
    return found
