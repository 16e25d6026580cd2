"""Optimal brain surgeon on channels: what an index is worth when all others make up for it.

For a reader with moments H = E[x'x] and weight W, removing the numbers P that it reads and
refitting all others costs

    loss(P) = tr(W_P' ((H^-1)_PP)^-1 W_P)

of its result's energy (Hassibi and Stork 1993, Optimal Brain Surgeon; on columns: Frantar and
Alistarh 2022, Optimal Brain Compression; on structures: Kurtic et al. 2023, ZipLM). Indices of a
group are eliminated greedily, the cheapest first, by the sum over all readers of the group, each in
shares of its result's variance. So a loss adds up, and compares between groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Coupling
from onnxprune.model import Array
from onnxprune.passes.score.criteria import Scores, Settings, l2
from onnxprune.passes.score.readers import Reader, readers

CHUNKS: Final = 48  # eliminations of a group, at most: then several indices go at once
DAMPING: Final = 1e-3  # of the mean energy of what is read
FLOOR: Final = 1e-12
Judge = Callable[[Coupling, Sequence[Reader]], dict[int, Values]]


def obs(coupling: Coupling, settings: Settings) -> Scores:
    """What an index's loss costs when all others make up for it; see the module's docstring."""
    return _scored(coupling, settings, losses)


def activation(coupling: Coupling, settings: Settings) -> Scores:
    """The energy of what is read at each index (Polyak and Wolf 2015)."""
    return _scored(coupling, settings, _summed(lambda reader: reader.power.sum(axis=0)))


def wanda(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the norm of what they read (Sun et al. 2023, arXiv:2306.11695), on groups."""
    return _scored(coupling, settings, _summed(lambda reader: reader.energy))


def flap(coupling: Coupling, settings: Settings) -> Scores:
    """Weights times the fluctuation of what they read (An et al. 2023, arXiv:2312.11983)."""
    return _scored(coupling, settings, _summed(lambda reader: reader.fluctuation))


def _scored(coupling: Coupling, settings: Settings, judge: Judge) -> Scores:
    """Losses as norms: their roots, times the group's size.

    A group that nothing reads in a product (a recurrent layer's hidden units) goes by l2.
    """
    assert settings.feeds, "score has checked it"
    own = readers(coupling, settings.feeds, seed=settings.seed, progress=settings.progress)
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
        own = [reader for reader in readers if group.factor in reader.positions]
        if own:
            found[group.factor] = _eliminated([_Cost.of(r, group.factor) for r in own], group.size)
    return found


@dataclass
class _Cost:
    """What one reader loses.

    Attributes:
        scale: what a unit of energy counts.
        positions: (size, t) where the group's indices stand among what is left.
        energy: (size,) of each index by itself, where there are no moments.
        inverse: (b, d, d) of the moments of what is left, damped; or None.
        weight: (b, d, o) refitted to what is left.
    """

    scale: float
    positions: Array
    energy: Values
    inverse: Values | None = None
    weight: Values | None = None

    @staticmethod
    def of(reader: Reader, factor: int) -> _Cost:
        positions = reader.positions[factor]
        scale = 1 / max(reader.total, FLOOR)
        energy = reader.energy[positions].sum(axis=1)
        if reader.gram is None or reader.weight is None:
            return _Cost(scale, positions, energy)
        gram = reader.gram.copy()
        wide = gram.shape[1] - 1
        mean = np.einsum("bdd->bd", gram)[:, :wide].mean(axis=1, keepdims=True)
        np.einsum("bdd->bd", gram)[:, :wide] += DAMPING * mean + FLOOR
        weight = np.concatenate(
            [reader.weight, np.zeros((*reader.weight.shape[:1], 1, reader.weight.shape[2]))], axis=1
        ).astype(np.float64)
        return _Cost(scale, positions, energy, np.asarray(np.linalg.inv(gram), np.float64), weight)

    def each(self, left: Array) -> Values:
        """What each of the indices that are left would cost by itself."""
        if self.inverse is None or self.weight is None:
            return self.scale * self.energy[left]
        where = self.positions[left]
        blocks = self.inverse[:, where[:, :, None], where[:, None, :]]
        weights = self.weight[:, where]
        if where.shape[1] == 1:
            lost = np.square(weights[:, :, 0]).sum(axis=2) / np.maximum(blocks[:, :, 0, 0], FLOOR)
        else:
            solved = np.linalg.solve(blocks, weights)
            lost = np.einsum("bnto,bnto->bn", weights, solved)
        return np.asarray(self.scale * lost.sum(axis=0))

    def remove(self, gone: Array) -> float:
        """Take indices out, refit what is left, and tell what it cost."""
        if self.inverse is None or self.weight is None:
            return self.scale * float(self.energy[gone].sum())
        where = self.positions[gone].reshape(-1)
        inverse, weight = self.inverse, self.weight
        block = inverse[:, where[:, None], where]
        solved = np.linalg.solve(block, weight[:, where])
        cost = float(np.einsum("bpo,bpo->", weight[:, where], solved))
        left = np.setdiff1d(np.arange(inverse.shape[1]), where, assume_unique=True)
        across = inverse[:, left[:, None], where]
        self.weight = weight[:, left] - np.matmul(across, solved)
        turned = np.linalg.solve(block, across.transpose(0, 2, 1))
        self.inverse = inverse[:, left[:, None], left] - np.matmul(across, turned)
        moved = np.full(inverse.shape[1], -1)
        moved[left] = np.arange(len(left))
        self.positions = moved[self.positions]
        return self.scale * cost


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
