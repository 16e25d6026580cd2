"""The counts that a choice may have, and what they must not exceed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxprune.alignment import Alignment
from onnxprune.axes import Mask, Values
from onnxprune.budget import Options
from onnxprune.cost import CostModel
from onnxprune.polynomials import Indices

EPSILON: Final = 1e-9


@dataclass(frozen=True)
class Space:
    """The counts that may be chosen.

    Attributes:
        free: (v,) which groups may be pruned.
        full, floors: (v,) the largest and the smallest counts.
        steps: the counts in between.
        sums: for each group the sums (size + 1,) of its highest needs.
        order: the group of every index, the lowest need first.
    """

    free: Mask
    full: Values
    floors: Values
    steps: Alignment
    sums: list[Values]
    order: Indices

    def rounded(self, counts: Values) -> Values:
        """The allowed counts nearest by."""
        found = np.clip(self.steps.nearest(counts), self.floors, self.full)
        return self.steps.settled(found, self.floors)

    def without(self, share: float) -> Values:
        """What is left without this share of all indices, those with the lowest needs."""
        gone = self.order[: round(share * len(self.order))]
        return self.full - np.bincount(gone, minlength=len(self.full))

    def moved(self, counts: Values, group: int, kept: float) -> Values:
        """The counts with another one for a group."""
        found = counts.copy()
        found[group] = kept
        return self.steps.settled(found, self.floors)

    def means(self, low: Values, high: Values) -> Values:
        """The mean need (v,) for the indices that a group keeps at one count and not at another."""
        low = np.maximum(low, 0)
        sums = [s[int(b)] - s[int(a)] for s, a, b in zip(self.sums, low, high, strict=True)]
        return np.array(sums) / np.maximum(high - low, 1)


def space_of(
    needs: list[Values],
    steps: Alignment,
    options: Options,
    free: Mask,
    limited: bool,
    fewest: Values,
) -> Space:
    """The counts that may be chosen.

    Args:
        needs: how much each index (size,) is needed, by group.
        steps: the counts that kernels like.
        options: the others that bound them.
        free: (v,) which groups may be pruned.
        limited: whether the largest ratio counts: under a budget.
        fewest: (v,) how many have to stay, whatever the options say.
    """
    full = steps.sizes
    least = np.ceil(full * (1 - options.max_ratio) - EPSILON) if limited else np.ones(len(full))
    floors = steps.above(np.maximum(np.maximum(least, options.min_channels), fewest))
    floors = np.where(free, np.minimum(floors, full), full)
    sums = [np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])]) for values in needs]
    open_ = np.flatnonzero(free)
    places = np.repeat(open_, full[open_].astype(int))
    pooled = np.concatenate([np.ones(0), *(needs[group] for group in open_)])
    order = places[np.argsort(pooled, kind="stable")]
    return Space(free, full, floors, steps, sums, order)


@dataclass(frozen=True)
class Goal:
    """What must not be exceeded."""

    cost: CostModel
    limits: Mapping[str, float]

    def use(self, counts: Values) -> float:
        """The share of the tightest budget that these counts use: at most 1 where all hold."""
        cost = self.cost.at(counts)
        uses = (float(getattr(cost, m)) / limit for m, limit in self.limits.items())
        return max(uses, default=0.0)

    def uses(self, counts: Values, others: Values) -> Values:
        """About the same (v,) for other counts of one group at a time."""
        cost = self.cost.at(counts)
        found = [
            (getattr(cost, measure) + self.cost.slopes(counts, measure) * (others - counts)) / limit
            for measure, limit in self.limits.items()
        ]
        most: Values = np.max(found, axis=0)
        return most
