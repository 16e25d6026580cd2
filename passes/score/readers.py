"""What reads each group: the second moments of what contractions read, gathered in one pass.

A *reader* is a node that sums over indices of a group. Where it is linear in a stored weight, its
moments tell what the loss of any indices costs once the others make up for it; where it multiplies
two computed values (the scores of attention), the energy of each index's term tells what the loss
costs as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Bound, Coupling
from onnxprune.linear import Letters, Linear, Sizes, letter_sizes, linear_of, picked
from onnxprune.model import Array
from onnxprune.moments import CONSTANT, TINY, WIDE, Squares
from onnxprune.notation import Axis
from onnxprune.passes.score.magnitude import Progress
from onnxprune.passes.score.places import Finder, Places
from onnxprune.polynomials import Indices
from onnxprune.recurrent import Alone, R, Recurrent, W, X, operands_of, recurrent_of
from onnxprune.runtime import Feeds
from onnxprune.stepping import Stepper
from onnxprune.store import Kept, Store

JOINED: Final = 1200  # numbers that a kernel reads; of more, its taps are joined
ROWS: Final = 10  # rows for each number that a node reads, at most
LEAST_ROWS: Final = 1 << 13
FEW_ROWS: Final = 256  # that are kept where there are no moments, about
LIMIT_BYTES: Final = 256 << 20  # of moments and weights in memory; others wait on disk
JITTER: Final = 1e-9  # of the mean of a diagonal, so that its matrix has a root


@dataclass(frozen=True)
class Seen:
    """What is known of the numbers that a node reads; taps of a large kernel are joined.

    Attributes:
        power: (b, d) mean of x^2.
        mean: (b, d) mean of x.
        covariance: of x, (b, d, d), or None where it is too large or not wanted.
        taps: (t, t) how the taps of one number go together, where they are joined: the mean of its
            diagonal is 1.
        rows: some rows (p, b, d, t) themselves, where there is no covariance.
    """

    power: Values = field(repr=False)
    mean: Values = field(repr=False)
    covariance: Kept | None = field(default=None, repr=False)
    taps: Values = field(default_factory=lambda: np.ones((1, 1)), repr=False)
    rows: Array | None = field(default=None, repr=False)

    def total(self, weight: Array) -> float:
        """The variance of what some rows give with weights (b, d, t, o), summed over b and o."""
        assert self.rows is not None, "there are moments otherwise"
        results = np.einsum("pbdt,bdto->pbo", self.rows, weight, optimize=True)
        return float(results.astype(np.float64).var(axis=0).sum())


@dataclass(frozen=True)
class Reader:
    """One node that reads indices of groups.

    Attributes:
        node: its label.
        seen: what it reads.
        weight: (b, d, r), or None where there are no moments: r columns whose products are those
            of all outer weights, each tap weighed by what it sees.
        squares: (b, d) sum of the weights' squares over outer indices; 1 where there is none.
        total: the result's variance, summed over outer indices, a row.
        places: where the groups' indices stand.
    """

    node: str
    seen: Seen
    weight: Kept | None = field(repr=False)
    squares: Values = field(repr=False)
    total: float
    places: Places = field(repr=False)

    @property
    def energy(self) -> Values:
        """What each read number (b, d) adds to the result's energy by itself."""
        return np.asarray(self.seen.power * self.squares, np.float64)

    @property
    def fluctuation(self) -> Values:
        """The same, without what a bias makes up for."""
        varied = np.maximum(self.seen.power - np.square(self.seen.mean), 0)
        return np.asarray(varied * self.squares, np.float64)


def readers(
    coupling: Coupling,
    feeds: Sequence[Feeds],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    moments: bool = True,
    tables: Collection[int] = (),
) -> list[Reader]:
    """All nodes that read indices of groups, in topological order.

    Args:
        coupling: the structure of the model.
        feeds: calibration inputs.
        seed: of the choice of rows.
        progress: is told the label of each node.
        moments: whether covariances are wanted, or powers and means alone.
        tables: the factors of which each row is to be told apart.
    """
    stepper = Stepper(coupling.model.proto, coupling.model.folder, feeds)
    groups = {group.factor for group in coupling.groups}
    finder = Finder(coupling.factors, frozenset(groups), frozenset(tables))
    work = _Pass(coupling, stepper, finder, np.random.default_rng(seed), moments)
    order = [b for b in coupling.bound if b.node.key in stepper.index]
    found = []
    for bound in sorted(order, key=lambda b: stepper.index[b.node.key]):
        if not _reads(coupling, bound, groups):
            continue
        if progress is not None:
            progress(bound.node.label)
        found += work.read(bound)
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
    finder: Finder
    generator: np.random.Generator
    moments: bool
    store: Store = field(default_factory=lambda: Store(LIMIT_BYTES))
    known: dict[object, Seen] = field(default_factory=dict)

    def read(self, bound: Bound) -> list[Reader]:
        """The node's readers, one for each product that it makes."""
        node = bound.node
        place = self.stepper.index[node.key]
        self.stepper.advance(place)
        reads = {name: self.stepper.values.get(name) for name in node.inputs}
        linear = linear_of(self.coupling, bound)
        layer = recurrent_of(self.coupling, bound)
        if layer is not None:
            return self.recurrent(layer, bound)
        if linear is None:
            self.stepper.advance(place + 1, [node.outputs[0], *node.inputs])
            found = self.product(bound, reads, self.stepper.values[node.outputs[0]])
        else:
            data = reads[node.inputs[linear.data]]
            found = None if data is None else self.linear(linear, data)
        return [] if found is None else [found]

    def linear(self, linear: Linear, data: Kept) -> Reader | None:
        """The reader of a node that is linear in a stored weight."""
        own = letter_sizes(linear, self.coupling.factors, {})
        values = linear.root.turned(self.coupling.model.params[linear.root.name].read())
        weight = linear.matrix(np.asarray(values, np.float32), own)
        joined = linear.taps if weight.shape[1] > JOINED else ()
        letters = tuple(x for x in linear.inner if x not in joined)
        kernel = dict(zip(linear.taps, values.shape[2:], strict=False))
        sizes = [own[x] if x in own else kernel[x] for x in letters]
        places = self.finder.places(linear.bound, letters, sizes, linear.batch)
        if not places:
            return None
        wide = int(np.prod(sizes, dtype=np.int64))
        weight = weight.reshape(len(weight), wide, -1, weight.shape[2])
        single = not linear.taps or set(values.shape[2:]) == {1}
        key = linear.view if single else linear.node.key
        seen = self.known.get(key)
        if seen is None:
            own_rows = self.rows(linear, data, own, weight.shape[:3])
            self.known[key] = seen = self.seen(own_rows, weight.shape[:3])
        return self.reader(linear.node.label, seen, weight, places)

    def reader(self, label: str, seen: Seen, weight: Array, places: Places) -> Reader:
        """The reader of a product with a weight (b, d, t, o)."""
        squares = np.square(weight, dtype=np.float64).sum(axis=(2, 3))
        if seen.covariance is None:
            total = seen.total(weight) if self.moments else 0.0
            return Reader(label, seen, None, squares, total, places)
        mixed, covariance = _mixed(weight, seen.taps), seen.covariance[0]
        total = float(np.einsum("bdr,bdr->", mixed, np.matmul(covariance, mixed)))
        energy = float((seen.power * squares).sum())
        total = total if total > CONSTANT * energy else energy
        return Reader(label, seen, self.store.keep((mixed,)), squares, total, places)

    def recurrent(self, layer: Recurrent, bound: Bound) -> list[Reader]:
        """The readers of a recurrent layer: of what comes in, and of the states.

        Each adds its product to the gates, so that losses are in shares of both together.
        """
        node = layer.node
        forms = [_form(bound.fit.operands[k]) for k in (W, R)]
        if None in forms or not _runs(self.stepper, layer):
            return []
        alone = Alone(self.stepper.proto, self.stepper.nodes[self.stepper.index[node.key]])
        params, count = self.coupling.model.params, self.stepper.count
        weights = [
            np.asarray(params[node.inputs[k]].read(), np.float32).transpose(0, 2, 1)[:, :, None]
            for k in (W, R)
        ]
        sides: list[list[Array]] = [[], []]
        limit = -(-max(ROWS * max(w.shape[1] for w in weights), LEAST_ROWS) // count)
        for batch in range(count):
            operands = operands_of(self.stepper, layer, batch)
            x, ways = np.asarray(operands[X], np.float32), len(weights[0])
            states = layer.states(alone(operands), operands)
            at, of = layer.steps(operands, limit, self.generator)
            for own, rows in zip(sides, (x[None].repeat(ways, 0), states), strict=True):
                own.append(rows[:, at, of].swapaxes(0, 1)[..., None])
        found = []
        for form, weight, own in zip(forms, weights, sides, strict=True):
            assert form is not None, "it has been looked at"
            places = self.finder.places(bound, form[-1], [weight.shape[1]], form[0])
            seen = self.seen(own, weight.shape[:3])
            found.append(self.reader(node.label, seen, weight, places))
        total = sum(reader.total for reader in found)
        return [replace(reader, total=total) for reader in found if reader.places]

    def rows(
        self, linear: Linear, data: Kept, own: Sizes, shape: tuple[int, ...]
    ) -> Iterator[Array]:
        """What a node (b, d, t) reads: a choice of rows (p, b, d, t) for each batch."""
        _, wide, taps = shape
        limit = -(-max(int(ROWS * wide / taps**0.5), LEAST_ROWS) // len(data))
        kernel = linear.root.sizes(self.coupling.model.params[linear.root.name].shape)
        for one in data:
            x = linear.inputs(one, linear.result_shape(one.shape, kernel), kernel, own)
            places = _places(x.shape[: len(linear.rows)], limit, self.generator)
            yield picked(x, len(linear.rows), places).reshape(len(places), *shape)

    def seen(self, rows: Iterable[Array], shape: tuple[int, ...]) -> Seen:
        """What a node (b, d, t) reads, from some rows (p, b, d, t)."""
        batch, wide, taps = shape
        full = self.moments and wide <= WIDE
        squares = Squares(full)
        along, sums, count = np.zeros((taps, taps)), np.zeros((batch, wide, taps)), 0
        first = np.zeros((0, batch, wide, taps), np.float32)
        for flat in rows:
            flat = np.asarray(flat[np.isfinite(flat).all(axis=(1, 2, 3))], np.float32)
            if self.moments and not full and len(first) < FEW_ROWS:
                first = np.concatenate([first, flat[:FEW_ROWS]])
            sums += flat.sum(axis=0, dtype=np.float64)
            count += len(flat)
            if taps > 1:
                lines = flat.reshape(-1, taps)
                along += lines.T @ lines
            turned = flat.transpose(1, 0, 3, 2).reshape(batch, -1, wide)
            squares.add(np.ascontiguousarray(turned))
        count = max(count, 1)
        means = sums / count
        found = squares.found() / (count * taps)
        mean = means.mean(axis=2)
        if not full:
            return Seen(found[:, 0], mean, rows=first)
        power = np.einsum("bdd->bd", found).copy()
        found -= np.matmul(means, means.transpose(0, 2, 1)) / taps
        centred = along / count - np.einsum("bdt,bds->ts", means, means)
        scale = max(float(np.trace(centred)) / taps, TINY)
        together = centred / scale if taps > 1 else np.ones((1, 1))
        kept = self.store.keep((found.astype(np.float32),))
        return Seen(power, mean, kept, together)

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
        shared, inner = self.finder.with_rows(bound, shared, inner)
        places = self.finder.places(bound, inner, [fit.sizes.get(a) or 0 for a in inner], shared)
        if not places:
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
        seen = Seen(power, np.zeros_like(power))
        return Reader(node.label, seen, None, np.ones_like(power), total, places)


def _runs(stepper: Stepper, layer: Recurrent) -> bool:
    """Whether all that samples change is at hand."""
    return all(name in stepper.values or name in stepper.tensors for name in layer.reads)


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


def _mixed(weight: Array, taps: Values) -> Array:
    """Weights (b, d, t, o) as columns (b, d, r) of the same products, r at most d."""
    count, wide, kernel, outer = weight.shape
    if kernel > 1:
        root = np.linalg.cholesky(taps + JITTER * np.eye(kernel))
        weight = np.einsum("bdto,ts->bdso", weight, root.astype(np.float32), optimize=True)
    flat = weight.reshape(count, wide, kernel * outer)
    if kernel * outer <= wide:
        return np.asarray(flat, np.float32)
    products = np.matmul(flat, flat.transpose(0, 2, 1)).astype(np.float64)
    diagonal = np.einsum("bdd->bd", products)
    diagonal += JITTER * diagonal.mean(axis=1, keepdims=True) + TINY
    return np.asarray(np.linalg.cholesky(products), np.float32)
