"""Optimal brain surgeon on channels: what an index is worth when all others make up for it.

For a reader with moments H = E[x'x] and weight W, removing the numbers P that it reads and
refitting all others costs

    loss(P) = tr(W_P' ((H^-1)_PP)^-1 W_P)

of its result's energy (Hassibi and Stork 1993, Optimal Brain Surgeon; on columns: Frantar and
Alistarh 2022, Optimal Brain Compression; on structures: Kurtic et al. 2023, ZipLM). Indices of a
group are eliminated greedily, the cheapest first, by the sum over all readers of the group, each in
shares of its result's variance. So a loss adds up, and compares between groups.

A kernel reads each channel once a tap. Where that is much, its moments are taken for the Kronecker
product of those of channels and those of taps (Grosse and Martens 2016, A Kronecker-factored
approximate Fisher matrix for convolution layers), so that H has a row a channel: 81 times smaller
for 3x3. On the nets of ``benchmarks.quality`` that costs 0 to 0.3 points, so small ones do without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Coupling
from onnxprune.model import Array
from onnxprune.moments import TINY
from onnxprune.passes.score.criteria import Scores, Settings, l2
from onnxprune.passes.score.readers import JITTER, Reader, readers

CHUNKS: Final = 48  # eliminations of a group, at most: then several indices go at once
DAMPING: Final = 1e-3  # of the mean energy of what is read
FLOOR: Final = 1e-12
LIMIT_BYTES: Final = 1 << 30  # of a group's moments at once; above it a group goes in rounds
ROUNDS: Final = 4
Judge = Callable[[Coupling, Sequence[Reader]], dict[int, Values]]


def obs(coupling: Coupling, settings: Settings) -> Scores:
    """What an index's loss costs when all others make up for it; see the module's docstring."""
    return _scored(coupling, settings, losses, moments=True)


def activation(coupling: Coupling, settings: Settings) -> Scores:
    """The energy of what is read at each index (Polyak and Wolf 2015)."""
    return _scored(coupling, settings, _summed(lambda reader: reader.seen.power))


def wanda(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the norm of what they read (Sun et al. 2023, arXiv:2306.11695), on groups."""
    return _scored(coupling, settings, _summed(lambda reader: reader.energy))


def flap(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the fluctuation of what they read (An et al. 2023, arXiv:2312.11983)."""
    return _scored(coupling, settings, _summed(lambda reader: reader.fluctuation))


def _scored(coupling: Coupling, settings: Settings, judge: Judge, moments: bool = False) -> Scores:
    """Losses as norms: their roots, times the group's size. Of a table a row's mean is the loss.

    A group that nothing reads in a product (a recurrent layer's hidden units) goes by l2.
    """
    assert settings.feeds, "score has checked it"
    own = readers(
        coupling,
        settings.feeds,
        seed=settings.seed,
        progress=settings.progress,
        moments=moments,
        tables=settings.tables(coupling),
    )
    found = judge(coupling, own)
    if len(found) < len(coupling.groups):
        plain = l2(coupling, settings)
        for group in coupling.groups:
            squares = np.square(plain[group.factor])
            found.setdefault(group.factor, squares / max(squares.sum(axis=-1).mean(), FLOOR))
    return {group.factor: np.sqrt(found[group.factor]) * group.size for group in coupling.groups}


def _summed(measure: Callable[[Reader], Values]) -> Judge:
    """Each index's share of what its readers measure, summed over them."""

    def judge(coupling: Coupling, own: Sequence[Reader]) -> dict[int, Values]:
        found = {}
        for group in coupling.groups:
            parts = [
                place.sums(values := measure(r)) * len(place.positions) / max(values.sum(), FLOOR)
                for r in own
                for place in [r.places.get(group.factor)]
                if place is not None
            ]
            if parts:
                found[group.factor] = _flat(np.maximum(np.sum(parts, axis=0), FLOOR))
        return found

    return judge


def _flat(table: Values) -> Values:
    """The one row of a table that has one."""
    return table[0] if len(table) == 1 else table


def losses(coupling: Coupling, readers: Sequence[Reader]) -> dict[int, Values]:
    """The loss (size,) that each index adds when it goes, after all that are cheaper.

    Where rows are told apart, an index of each goes at the same time, and all have the loss.
    Groups that nothing reads in a product are left out.
    """
    found = {}
    for group in coupling.groups:
        sets = _together(readers, group.factor)
        if not sets:
            continue
        makers = [partial(_Cost.of, own, group.factor) for own in sets]
        shape = sets[0][0].places[group.factor].positions.shape[:2]
        if sum(_size_bytes(own) for own in sets) <= LIMIT_BYTES:
            costs = [cost for make in makers for cost in make()]
            found[group.factor] = _flat(_eliminated(costs, shape))
        else:
            found[group.factor] = _flat(_in_rounds(makers, shape))
    return found


def _together(readers: Sequence[Reader], factor: int) -> list[list[Reader]]:
    """The readers of a group; those that read the same rows stand together."""
    found: dict[object, list[Reader]] = {}
    for number, reader in enumerate(readers):
        if factor in reader.places:
            shared = reader.weight is not None
            own = reader.places[factor].positions.tobytes()
            key = (id(reader.seen), own) if shared else number
            found.setdefault(key, []).append(reader)
    return list(found.values())


def _size_bytes(own: Sequence[Reader]) -> int:
    """What the moments of readers that stand together take."""
    batch, wide = own[0].seen.power.shape
    return 0 if own[0].weight is None else 2 * 8 * batch * wide * wide


@dataclass
class _Cost:
    """What readers of the same rows lose.

    Attributes:
        rows: (r,) the rows of the group that they read, of one that is told apart by rows.
        positions: (r, size, t) where the group's indices stand among what is left.
        energy: (r, size) of each index by itself, where there are no moments.
        inverse: (b, d, d) of the covariance of what is left, damped; or None. It is found in
            float64, and reduced in float32: the damping keeps that exact enough.
        weight: (b, d, o) refitted to what is left, in shares of the results' variances.
    """

    rows: Array
    positions: Array
    energy: Values
    inverse: Array | None = None
    weight: Array | None = None

    @staticmethod
    def of(readers: Sequence[Reader], factor: int) -> list[_Cost]:
        """One cost; or one for each row, if each product reads one row."""
        first = readers[0]
        place = first.places[factor]
        scales = [1 / max(reader.total, FLOOR) for reader in readers]
        sums = (s * r.places[factor].sums(r.energy) for s, r in zip(scales, readers, strict=True))
        energy = np.sum(list(sums), axis=0)
        every = np.arange(len(energy))
        covariance = first.seen.covariance
        if covariance is None:
            return [_Cost(every, place.positions, energy)]
        gram = covariance[0].astype(np.float64)
        diagonal = np.einsum("bdd->bd", gram)
        diagonal += DAMPING * first.seen.power.mean(axis=1, keepdims=True) + FLOOR
        inverse = np.asarray(np.linalg.inv(gram), np.float32)
        weights = [
            np.sqrt(scale) * reader.weight[0].astype(np.float64)
            for scale, reader in zip(scales, readers, strict=True)
            if reader.weight is not None
        ]
        weight = np.asarray(_narrowed(weights), np.float32)
        if place.batches is None:
            return [_Cost(every, place.positions, energy, inverse, weight)]
        return [
            _Cost(every[k : k + 1], place.positions[k : k + 1], energy, inverse[own], weight[own])
            for k, own in ((k, place.batches == k) for k in every)
        ]

    def each(self, left: Array) -> Values:
        """What each of the indices (rows, n) that are left would cost by itself."""
        found = np.zeros(left.shape)
        own = left[self.rows]
        if self.inverse is None or self.weight is None:
            found[self.rows] = np.take_along_axis(self.energy, own, axis=1)
            return found
        where = self.stand(own)
        blocks = self.inverse[:, where[:, :, None], where[:, None, :]]
        weights = self.weight[:, where]
        if where.shape[1] == 1:
            lost = np.square(weights[:, :, 0]).sum(axis=2) / np.maximum(blocks[:, :, 0, 0], TINY)
        else:
            solved = np.linalg.solve(blocks, weights)
            lost = np.einsum("bnto,bnto->bn", weights, solved)
        found[self.rows] = lost.sum(axis=0, dtype=np.float64).reshape(own.shape)
        return found

    def stand(self, own: Array) -> Array:
        """Where indices (r, n) of its rows stand (r n, t)."""
        return self.positions[np.arange(len(own))[:, None], own].reshape(own.size, -1)

    def remove(self, gone: Array) -> float:
        """Take indices (rows, n) out, refit what is left, and tell what it cost."""
        own = gone[self.rows]
        if not own.size:
            return 0.0
        if self.inverse is None or self.weight is None:
            return float(np.take_along_axis(self.energy, own, axis=1).sum())
        where = self.stand(own).reshape(-1)
        block = self.inverse[:, where[:, None], where]
        lost = self.weight[:, where]
        solved = np.linalg.solve(block, lost)
        left = np.setdiff1d(np.arange(self.inverse.shape[1]), where, assume_unique=True)
        rows = self.inverse.take(left, axis=1)
        across = rows.take(where, axis=2)
        self.weight = self.weight.take(left, axis=1) - np.matmul(across, solved)
        self.inverse = rows.take(left, axis=2)
        self.inverse -= np.matmul(across, np.linalg.solve(block, across.transpose(0, 2, 1)))
        moved = np.full(rows.shape[2], -1)
        moved[left] = np.arange(len(left))
        self.positions = moved[self.positions]
        return float(np.einsum("bpo,bpo->", lost, solved))


def _narrowed(weights: Sequence[Values]) -> Values:
    """Columns (b, d, r) side by side, as no more than d columns of the same products."""
    joined = np.concatenate(weights, axis=2)
    if joined.shape[2] <= joined.shape[1]:
        return joined
    products = np.matmul(joined, joined.transpose(0, 2, 1))
    diagonal = np.einsum("bdd->bd", products)
    diagonal += JITTER * diagonal.mean(axis=1, keepdims=True) + TINY
    return np.asarray(np.linalg.cholesky(products), np.float64)


def _eliminated(costs: Sequence[_Cost], shape: tuple[int, int]) -> Values:
    """The loss (rows, size) that each index adds, the cheapest first; the last cost the most."""
    found = np.zeros(shape)
    left = np.tile(np.arange(shape[1]), (shape[0], 1))
    chunk = max(1, -(-shape[1] // CHUNKS))
    highest = 0.0
    while left.shape[1] > 1:
        each = np.sum([cost.each(left) for cost in costs], axis=0)
        gone = _cheapest(left, each, min(chunk, left.shape[1] - 1))
        lost = sum(cost.remove(gone) for cost in costs) / gone.shape[1]
        highest = max(highest, lost)
        order = np.sort(each, axis=1)[:, : gone.shape[1]]
        share = order / max(order.mean(), FLOOR)
        np.put_along_axis(found, gone, highest * (1 + 1e-6 * share), axis=1)
        left = _without(left, gone)
    np.put_along_axis(found, left, max(highest, FLOOR) * shape[1], axis=1)
    return found


def _cheapest(left: Array, each: Values, count: int) -> Array:
    """The indices (rows, count) that cost least."""
    order = np.argsort(each, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(left, order, axis=1)


def _without(left: Array, gone: Array) -> Array:
    """The indices (rows, n) that are left without those that go, in each row."""
    return np.stack(
        [np.setdiff1d(a, b, assume_unique=True) for a, b in zip(left, gone, strict=True)]
    )


def _in_rounds(makers: Sequence[Callable[[], list[_Cost]]], shape: tuple[int, int]) -> Values:
    """The same for readers whose moments do not fit into memory together: a few rounds.

    In each the readers come one after the other, refitted to what is left, and a share of the
    indices goes. What a round has cost is seen in the next one.
    """
    found = np.zeros(shape)
    left = np.tile(np.arange(shape[1]), (shape[0], 1))
    gone, last = left[:, :0], left[:, :0]
    before = highest = 0.0
    for turn in range(ROUNDS):
        each, total = np.zeros(left.shape), 0.0
        for make in makers:
            for cost in make():
                total += cost.remove(gone)
                each += cost.each(left)
        if last.size:
            highest = max(highest, (total - before) / last.shape[1])
            own = np.take_along_axis(found, last, axis=1)
            share = own / max(own.mean(), FLOOR)
            np.put_along_axis(found, last, highest * (1 + 1e-6 * share), axis=1)
        np.put_along_axis(found, left, highest + np.maximum(each, FLOOR), axis=1)
        if turn < ROUNDS - 1 and left.shape[1] > 1:
            last = _cheapest(left, each, min(-(-shape[1] // ROUNDS), left.shape[1] - 1))
            costs = np.take_along_axis(found, last, axis=1) - highest
            np.put_along_axis(found, last, costs, axis=1)
            before, gone = total, np.concatenate([gone, last], axis=1)
            left = _without(left, last)
        else:
            last = left[:, :0]
    return found
