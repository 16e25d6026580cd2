"""Select: choose what is kept, so that the budget holds and the best scores stay.

A ratio alone takes its share from every group. Budgets are met by a bisection on one number: with
the scope ``global`` a threshold for all scores, each divided by a power of its group's share of
the cost; with ``uniform`` and ``per-group`` a common factor of the groups' ratios. Both are
monotone: more of it keeps less of every group, and no cost grows.
Every point of the search is rounded to allowed counts first (``onnxprune.alignment``), so that the
result is what was measured. Rounding makes stairs; where the search stops more than 2 % below the
budget, groups are given back or pay single steps until it is met.

Only groups that a budget feels are touched: for peak memory those whose channels are alive where
more than the limit is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

import numpy as np

from onnxprune.alignment import Alignment, alignment
from onnxprune.axes import Mask, Values
from onnxprune.budget import (
    MAX_RATIO,
    Budget,
    Options,
    Scope,
    check,
    free_groups,
    rates_of,
    unreachable,
)
from onnxprune.cost import Cost, CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import BudgetError
from onnxprune.polynomials import Indices

__all__ = ["MAX_RATIO", "Budget", "Options", "Scope", "Selection", "select"]

CLOSE: Final = 0.98  # of a budget: what a selection uses at least, where steps allow it
SEARCH_STEPS: Final = 40
TRIES: Final = 2000  # counts looked through where single steps don't fit
EPSILON: Final = 1e-9
# Measured on detection, recognition, file-type and pitch networks without training, at 95 to 50 %
# of the MACs: the error of the outputs is lowest about here, for some at a third of that at 0.
POWER: Final = 0.35
LEAST_SHARE: Final = 1e-3
SUMS: Final = ("macs", "params", "size_bytes")  # measures of which every group has its share
SPARE: Final = 0.995  # of a byte budget: the rest is for the names of copies and restated shapes
Worth = Callable[[Values, Values], Values]


@dataclass(frozen=True)
class Selection:
    """What is kept.

    Attributes:
        keep: kept indices (size,) by factor, for the groups that lose something.
        cost_before, cost_after: the model's costs without and with it.
        limits: where the structure forbade what was asked for, in sentences.
    """

    keep: dict[int, Mask] = field(repr=False)
    cost_before: Cost
    cost_after: Cost
    limits: tuple[str, ...]


def select(
    coupling: Coupling,
    scores: Mapping[int, Values],
    budget: Budget,
    options: Options,
    cost: CostModel | None = None,
) -> Selection:
    """Choose the indices that every group keeps: those with the highest scores.

    Needs scores of all groups. Changes nothing. Promises: no budget is exceeded, and the tightest
    is used to 98 % or ``limits`` says why not; of equal scores the lower index stays.

    Args:
        coupling: the structure of the model.
        scores: score (size,) of every index by factor of the group; comparable between groups.
        budget: what goes, or what may remain.
        options: how the choice is made.
        cost: the model's costs, where they are known already.

    Raises:
        BudgetError: the budget can't be reached, or makes no sense.
        NothingToPruneError: the options leave no group.
    """
    check(budget, options)
    cost = cost or cost_model(coupling)
    before = cost.cost({})
    given = budget.limits(before)
    limits = {measure: limit for measure, limit in given.items() if getattr(before, measure) > 0}
    if "size_bytes" in limits and before.size_bytes > limits["size_bytes"]:
        limits["size_bytes"] *= SPARE
    goal = _Goal(cost, limits)
    rates, notes = rates_of(coupling, budget, options)
    free = free_groups(coupling, options) & (rates > 0)
    if limits:
        free &= np.any([cost.touching(m, limit) for m, limit in limits.items()], axis=0)
    needs = _needs(coupling, scores, goal)
    space = _space(needs, alignment(coupling, options.align), options, free, bool(given))
    if given:
        counts, note = _search(space, goal, rates, budget, options)
        notes += note
    else:
        counts = space.rounded(space.full * (1 - rates))
        whole = int((free & (counts == space.full)).sum())
        if whole:
            notes.append(f"{whole} groups stay whole: no smaller aligned count is as near")
    masks = {
        group.factor: _best(scores[group.factor], int(kept))
        for group, kept in zip(coupling.groups, counts, strict=True)
        if kept < group.size
    }
    return Selection(masks, before, cost.at(counts), tuple(notes))


def _needs(coupling: Coupling, scores: Mapping[int, Values], goal: _Goal) -> list[Values]:
    """How much each index (size,) is needed: its score, less where its group costs much.

    The score by itself leaves dear groups as wide as cheap ones; the score by cost empties the
    dear ones. See ``POWER``.
    """
    full = goal.cost.sizes.full
    before = goal.cost.at(full)
    shares = [
        goal.cost.slopes(full, measure) * full / getattr(before, measure)
        for measure in goal.limits
        if measure in SUMS
    ]
    share = np.clip(np.max(shares, axis=0), LEAST_SHARE, 1) if shares else np.ones(len(full))
    return [
        scores[group.factor] / part**POWER
        for group, part in zip(coupling.groups, share, strict=True)
    ]


def _best(scores: Values, kept: int) -> Mask:
    """The mask of the highest scores; of equal ones the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:kept]] = True
    return mask


@dataclass(frozen=True)
class _Space:
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


def _space(
    needs: list[Values], steps: Alignment, options: Options, free: Mask, limited: bool
) -> _Space:
    full = steps.sizes
    least = np.ceil(full * (1 - options.max_ratio) - EPSILON) if limited else np.ones(len(full))
    floors = steps.above(np.maximum(least, options.min_channels))
    floors = np.where(free, np.minimum(floors, full), full)
    sums = [np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])]) for values in needs]
    open_ = np.flatnonzero(free)
    places = np.repeat(open_, full[open_].astype(int))
    pooled = np.concatenate([np.ones(0), *(needs[group] for group in open_)])
    order = places[np.argsort(pooled, kind="stable")]
    return _Space(free, full, floors, steps, sums, order)


@dataclass(frozen=True)
class _Goal:
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


def _search(
    space: _Space, goal: _Goal, rates: Values, budget: Budget, options: Options
) -> tuple[Values, list[str]]:
    """The counts that meet the budgets, and what kept them from using these up."""
    before = goal.cost.cost({})
    if goal.use(space.full) <= 1:
        return space.full, ["the model is within the budget as it is"]
    rates = rates / min(rates[rates > 0], default=1.0)

    def ideal(share: float) -> Values:
        if options.scope == "global":
            return space.without(share)
        return space.full * np.maximum(1 - share * rates, 0)

    lowest = space.rounded(ideal(1.0))
    if goal.use(lowest) > 1:
        least = goal.cost.at(lowest)
        raise BudgetError(unreachable(budget, options, goal.limits, before, least))
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        fits = goal.use(space.rounded(ideal(middle))) <= 1
        low, high = (low, middle) if fits else (middle, high)
    worth = _worth(space, rates, options.scope)
    found = _give_back(space, goal, worth, space.rounded(ideal(high)))
    if goal.use(found) < CLOSE:
        other = _take(space, goal, worth, space.rounded(ideal(low)))
        found = max(found, _give_back(space, goal, worth, other), key=goal.use)
    if goal.use(found) < CLOSE:
        found = _around(space, goal, found, ideal(high))
    use = goal.use(found)
    text = f"{100 * use:.1f} % of the tightest budget is used: no steps of groups near it fit in"
    return found, [text] if use < CLOSE else []


def _worth(space: _Space, rates: Values, scope: Scope) -> Worth:
    """How much groups (v,) need the indices between two counts, the lower one first."""
    if scope == "global":
        return space.means
    return lambda low, high: (1 - low / space.full) / np.maximum(rates, EPSILON)


def _give_back(space: _Space, goal: _Goal, worth: Worth, counts: Values) -> Values:
    """Let groups have single steps back while they fit, those that need them most first."""
    waiting = space.free.copy()
    while goal.use(counts) < CLOSE:
        more = space.steps.above(counts + 1)
        fits = waiting & (more > counts) & (goal.uses(counts, more) <= 1)
        if not fits.any():
            break
        group = int(np.argmax(np.where(fits, worth(counts, more), -np.inf)))
        found = space.moved(counts, group, more[group])
        if (found == counts).all() or goal.use(found) > 1:
            waiting[group] = False
        else:
            counts = found
    return counts


def _take(space: _Space, goal: _Goal, worth: Worth, counts: Values) -> Values:
    """Take single steps until the budgets hold, from the groups that need them least.

    A step that ends just below the budget comes first, one that ends far below last.
    """
    while goal.use(counts) > 1:
        less = space.steps.below(counts - 1)
        fits = space.free & (less >= space.floors)
        if not fits.any():
            return space.floors
        uses = goal.uses(counts, less)
        for choice in (fits & (uses <= 1) & (uses >= CLOSE), fits & (uses > 1), fits):
            if choice.any():
                group = int(np.argmin(np.where(choice, worth(less, counts), np.inf)))
                counts = space.moved(counts, group, less[group])
                break
    return counts


def _around(space: _Space, goal: _Goal, counts: Values, ideal: Values) -> Values:
    """Look through the counts around the ideal ones for some that use the budget better.

    What is both near the ideal counts and near the budget is looked at first.

    Args:
        space, goal: what may be chosen, and what must hold.
        counts: counts that fit; given back where none fits better.
        ideal: counts before they were rounded.
    """
    best, most = counts, goal.use(counts)
    queue, seen, tries = [(0.0, 0, counts)], {counts.tobytes()}, 0
    groups = np.flatnonzero(space.free)
    while queue and tries < TRIES:
        _, _, here = heappop(queue)
        for other in (space.steps.above(here + 1), space.steps.below(here - 1)):
            for group in groups[((other != here) & (other >= space.floors))[groups]]:
                found = space.moved(here, group, other[group])
                if found.tobytes() in seen:
                    continue
                seen.add(found.tobytes())
                tries += 1
                use = goal.use(found)
                if most < use <= 1:
                    best, most = found, use
                    if most >= CLOSE:
                        return best
                off = float((((found - ideal) / space.full) ** 2).sum())
                heappush(queue, (off + abs(1 - use), tries, found))
    return best
