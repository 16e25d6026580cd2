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
    return _scored(coupling, settings, _summed(lambda reader: reader.seen.power.sum(axis=0)))


def wanda(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the norm of what they read (Sun et al. 2023, arXiv:2306.11695), on groups."""
    return _scored(coupling, settings, _summed(lambda reader: reader.energy))


def flap(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the fluctuation of what they read (An et al. 2023, arXiv:2312.11983)."""
    return _scored(coupling, settings, _summed(lambda reader: reader.fluctuation))


def _scored(coupling: Coupling, settings: Settings, judge: Judge, moments: bool = False) -> Scores:
    """Losses as norms: their roots, times the group's size.

    A group that nothing reads in a product (a recurrent layer's hidden units) goes by l2.
    """
    assert settings.feeds, "score has checked it"
    own = readers(
        coupling,
        settings.feeds,
        seed=settings.seed,
        progress=settings.progress,
        moments=moments,
    )
    found = judge(coupling, own)
    if len(found) < len(coupling.groups):
        plain = l2(coupling, settings)
        for group in coupling.groups:
            squares = np.square(plain[group.factor])
            found.setdefault(group.factor, squares / max(squares.sum(), FLOOR))
    return {group.factor: np.sqrt(found[group.factor]) * group.size for group in coupling.groups}


def _summed(measure: Callable[[Reader], Values]) -> Judge:
    """Each index's share of what its readers measure, summed over them."""

    def judge(coupling: Coupling, own: Sequence[Reader]) -> dict[int, Values]:
        found = {}
        for group in coupling.groups:
            parts = [
                (values := measure(r))[r.positions[group.factor]].sum(axis=1)
                / max(values.sum(), FLOOR)
                for r in own
                if group.factor in r.positions
            ]
            if parts:
                found[group.factor] = np.maximum(np.sum(parts, axis=0), FLOOR)
        return found

    return judge


def losses(coupling: Coupling, readers: Sequence[Reader]) -> dict[int, Values]:
    """The loss (size,) that each index adds when it goes, after all that are cheaper.

    Groups that nothing reads in a product are left out.
    """
    found = {}
    for group in coupling.groups:
        sets = _together(readers, group.factor)
        if not sets:
            continue
        makers = [partial(_Cost.of, own, group.factor) for own in sets]
        if sum(_size_bytes(own) for own in sets) <= LIMIT_BYTES:
            found[group.factor] = _eliminated([make() for make in makers], group.size)
        else:
            found[group.factor] = _in_rounds(makers, group.size)
    return found


def _together(readers: Sequence[Reader], factor: int) -> list[list[Reader]]:
    """The readers of a group; those that read the same rows stand together."""
    found: dict[object, list[Reader]] = {}
    for number, reader in enumerate(readers):
        if factor in reader.positions:
            shared = reader.weight is not None
            key = (id(reader.seen), reader.positions[factor].tobytes()) if shared else number
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
        positions: (size, t) where the group's indices stand among what is left.
        energy: (size,) of each index by itself, where there are no moments.
        inverse: (b, d, d) of the covariance of what is left, damped; or None. It is found in
            float64, and reduced in float32: the damping keeps that exact enough.
        weight: (b, d, r) refitted to what is left, in shares of the results' variances.
    """

    positions: Array
    energy: Values
    inverse: Array | None = None
    weight: Array | None = None

    @staticmethod
    def of(readers: Sequence[Reader], factor: int) -> _Cost:
        first = readers[0]
        positions = first.positions[factor]
        scales = [1 / max(reader.total, FLOOR) for reader in readers]
        energies = (s * r.energy[positions].sum(1) for s, r in zip(scales, readers, strict=True))
        energy = np.sum(list(energies), axis=0)
        covariance = first.seen.covariance
        if covariance is None:
            return _Cost(positions, energy)
        gram = covariance[0].astype(np.float64)
        diagonal = np.einsum("bdd->bd", gram)
        diagonal += DAMPING * first.seen.power.mean(axis=1, keepdims=True) + FLOOR
        inverse = np.asarray(np.linalg.inv(gram), np.float32)
        weights = [
            np.sqrt(scale) * reader.weight[0].astype(np.float64)
            for scale, reader in zip(scales, readers, strict=True)
            if reader.weight is not None
        ]
        return _Cost(positions, energy, inverse, np.asarray(_narrowed(weights), np.float32))

    def each(self, left: Array) -> Values:
        """What each of the indices that are left would cost by itself."""
        if self.inverse is None or self.weight is None:
            return self.energy[left]
        where = self.positions[left]
        blocks = self.inverse[:, where[:, :, None], where[:, None, :]]
        weights = self.weight[:, where]
        if where.shape[1] == 1:
            lost = np.square(weights[:, :, 0]).sum(axis=2) / np.maximum(blocks[:, :, 0, 0], TINY)
        else:
            solved = np.linalg.solve(blocks, weights)
            lost = np.einsum("bnto,bnto->bn", weights, solved)
        return np.asarray(lost.sum(axis=0), np.float64)

    def remove(self, gone: Array) -> float:
        """Take indices out, refit what is left, and tell what it cost."""
        if not len(gone):
            return 0.0
        if self.inverse is None or self.weight is None:
            return float(self.energy[gone].sum())
        where = self.positions[gone].reshape(-1)
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


def _eliminated(costs: Sequence[_Cost], size: int) -> Values:
    """The loss (size,) that each index adds, the cheapest first; the last ones cost the most."""
    found = np.zeros(size)
    left = np.arange(size)
    chunk = max(1, -(-size // CHUNKS))
    highest = 0.0
    while len(left) > 1:
        each = np.sum([cost.each(left) for cost in costs], axis=0)
        gone = left[np.argsort(each, kind="stable")[: min(chunk, len(left) - 1)]]
        lost = sum(cost.remove(gone) for cost in costs) / len(gone)
        highest = max(highest, lost)
        order = np.sort(each)[: len(gone)]
        share = order / max(order.mean(), FLOOR)
        found[gone] = highest * (1 + 1e-6 * share)
        left = np.setdiff1d(left, gone, assume_unique=True)
    found[left] = max(highest, FLOOR) * size
    return found


def _in_rounds(makers: Sequence[Callable[[], _Cost]], size: int) -> Values:
    """The same for readers whose moments do not fit into memory together: a few rounds.

    In each the readers come one after the other, refitted to what is left, and a share of the
    indices goes. What a round has cost is seen in the next one.
    """
    found = np.zeros(size)
    left, gone, last = np.arange(size), np.arange(0), np.arange(0)
    before = highest = 0.0
    for turn in range(ROUNDS):
        each, total = np.zeros(len(left)), 0.0
        for make in makers:
            cost = make()
            total += cost.remove(gone)
            each += cost.each(left)
        if len(last):
            highest = max(highest, (total - before) / len(last))
            share = found[last] / max(found[last].mean(), FLOOR)
            found[last] = highest * (1 + 1e-6 * share)
        found[left] = highest + np.maximum(each, FLOOR)
        if turn < ROUNDS - 1 and len(left) > 1:
            cheapest = np.argsort(each, kind="stable")[: min(-(-size // ROUNDS), len(left) - 1)]
            last, before = left[cheapest], total
            found[last] = each[cheapest]
            gone = np.concatenate([gone, last])
            left = np.setdiff1d(left, last, assume_unique=True)
        else:
            last = np.arange(0)
    return found
