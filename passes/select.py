"""Select: choose what is kept, so that the budget holds and the best scores stay.

A ratio alone takes its share from every group. Budgets are met by a bisection on one number: with
the scope ``global`` a threshold for all scores, each divided by a power of its group's share of
the cost; with ``uniform``, ``by-cost`` and ``per-group`` a common factor of the groups' ratios.
Both are monotone: more of it keeps less of every group, and no cost grows.
Every point of the search is rounded to allowed counts first (``onnxprune.alignment``), so that the
result is what was measured. Rounding makes stairs; where the search stops more than 2 % below the
budget, groups are given back or pay single steps until it is met.

Only groups that a budget feels are touched: for peak memory those whose channels are alive where
more than the limit is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final

import numpy as np

from onnxprune.alignment import alignment
from onnxprune.axes import Mask, Values
from onnxprune.budget import (
    MAX_RATIO,
    Budget,
    Options,
    Scope,
    check,
    free_groups,
    holding,
    missed,
    rates_of,
    unreachable,
)
from onnxprune.cost import Cost, CostModel, cost_model
from onnxprune.counts import EPSILON, Goal, Space, space_of
from onnxprune.coupling import Coupling
from onnxprune.errors import BudgetError
from onnxprune.masks import best, ranked

__all__ = ["MAX_RATIO", "Budget", "Options", "Scope", "Selection", "select"]

CLOSE: Final = 0.98  # of a budget: what a selection uses at least, where steps allow it
SEARCH_STEPS: Final = 40
TRIES: Final = 2000  # counts looked through where single steps don't fit
# Measured on detection, recognition, file-type and pitch networks without training, at 95 to 50 %
# of the MACs: the error of the outputs is lowest about here, for some at a third of that at 0.
POWER: Final = 0.35
LEAST_SHARE: Final = 1e-3
# Of the mean share of the cost: groups below it lose less in proportion. Measured on a text
# recognizer at half of its MACs, whose last blocks have few of them: see docs/criteria.md.
SMALL: Final = 0.5
# Measures of which every group has its share.
SUMS: Final = ("macs", "params", "size_bytes", "latency_ms")
SPARE: Final = 0.995  # of a byte budget: the rest is for the names of copies and restated shapes
Worth = Callable[[Values, Values], Values]
Spaced = Callable[[Options], Space]


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
        scores: score (size,) of every index by factor of the group; comparable between groups. Of
            a table (rows, size) each row keeps the best of its own (see ``onnxprune.balance``).
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
    goal = Goal(cost, limits)
    rates, notes = rates_of(coupling, budget, options)
    if options.scope == "by-cost":
        shares = _shares(goal, len(rates))
        rates = rates * np.minimum(shares / (SMALL * shares.mean()), 1)
    free = free_groups(coupling, options) & (rates > 0)
    if limits:
        free &= np.any([cost.touching(m, limit) for m, limit in limits.items()], axis=0)
    needs = _needs(coupling, scores, goal)
    fewest = np.array([group.least for group in coupling.groups], np.float64)

    def spaced(own: Options) -> Space:
        steps = alignment(coupling, own.align, own.stairs)
        return space_of(needs, steps, own, free, bool(given), fewest)

    if given and goal.use(spaced(options).floors) > 1:  # parts of blocks may be fine enough
        options = replace(options, stairs=options.stairs.finer())
    if given:
        counts, note = _search(spaced, goal, rates, budget, options)
    else:
        counts, note = _ratio(spaced, rates, options)
    notes += note
    masks = {
        group.factor: best(scores[group.factor], int(kept))
        for group, kept in zip(coupling.groups, counts, strict=True)
        if kept < group.size
    }
    return Selection(masks, before, cost.at(counts), tuple(notes))


def _needs(coupling: Coupling, scores: Mapping[int, Values], goal: Goal) -> list[Values]:
    """How much each index (size,) is needed: its score, less where its group costs much.

    The score by itself leaves dear groups as wide as cheap ones; the score by cost empties the
    dear ones. See ``POWER``.
    """
    share = _shares(goal, len(coupling.groups))
    return [
        ranked(scores[group.factor]) / part**POWER
        for group, part in zip(coupling.groups, share, strict=True)
    ]


def _shares(goal: Goal, count: int) -> Values:
    """The share of each group (v,) in what the budgets are for."""
    shares = [goal.cost.shares(measure) for measure in goal.limits if measure in SUMS]
    if not shares:
        return np.ones(count)
    return np.asarray(np.clip(np.max(shares, axis=0), LEAST_SHARE, 1), np.float64)


def _ratio(spaced: Spaced, rates: Values, options: Options) -> tuple[Values, list[str]]:
    """The counts nearest to what is left of every group, and how many of these stay whole."""

    def counts(own: Options) -> tuple[Values, int]:
        space = spaced(own)
        found = space.rounded(space.full * (1 - rates))
        return found, int((space.free & (found == space.full)).sum())

    found, whole = counts(options)
    if not whole:
        return found, []
    advice = holding(options, lambda own: counts(own)[1] < whole)
    return found, [f"{whole} groups stay whole: no smaller allowed count is as near{advice}"]


def _search(
    spaced: Spaced, goal: Goal, rates: Values, budget: Budget, options: Options
) -> tuple[Values, list[str]]:
    """The counts that meet the budgets, and what kept them from using these up."""
    space = spaced(options)
    if goal.use(space.full) <= 1:
        return space.full, ["the model is within the budget as it is"]
    rates = rates / min(rates[rates > 0], default=1.0)
    least = goal.cost.at(space.floors)
    if goal.use(space.floors) > 1:
        measure = missed(goal.limits, least)
        found = getattr(least, measure)
        advice = holding(
            options, lambda own: getattr(goal.cost.at(spaced(own).floors), measure) < found
        )
        before = goal.cost.cost({})
        raise BudgetError(unreachable(budget, goal.limits, before, least, advice))
    counts = _fitted(space, goal, rates, options.scope)
    use = goal.use(counts)
    if use >= CLOSE:
        return counts, []
    advice = holding(
        options, lambda own: goal.use(_fitted(spaced(own), goal, rates, own.scope)) > use
    )
    text = f"{100 * use:.1f} % of the tightest budget is used: no steps of groups near it fit in"
    return counts, [text + advice]


def _fitted(space: Space, goal: Goal, rates: Values, scope: Scope) -> Values:
    """The counts that meet the budgets, which the floors do."""

    def ideal(share: float) -> Values:
        if scope == "global":
            return space.without(share)
        return space.full * np.maximum(1 - share * rates, 0)

    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        fits = goal.use(space.rounded(ideal(middle))) <= 1
        low, high = (low, middle) if fits else (middle, high)
    worth = _worth(space, rates, scope)
    found = _give_back(space, goal, worth, space.rounded(ideal(high)))
    if goal.use(found) < CLOSE:
        other = _take(space, goal, worth, space.rounded(ideal(low)))
        found = max(found, _give_back(space, goal, worth, other), key=goal.use)
    if goal.use(found) < CLOSE:
        found = _around(space, goal, found, ideal(high))
    return found


def _worth(space: Space, rates: Values, scope: Scope) -> Worth:
    """How much groups (v,) need the indices between two counts, the lower one first."""
    if scope == "global":
        return space.means
    return lambda low, high: (1 - low / space.full) / np.maximum(rates, EPSILON)


def _give_back(space: Space, goal: Goal, worth: Worth, counts: Values) -> Values:
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


def _take(space: Space, goal: Goal, worth: Worth, counts: Values) -> Values:
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


def _around(space: Space, goal: Goal, counts: Values, ideal: Values) -> Values:
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
