"""Select: choose what is kept, so that the budget holds and the best scores stay.

A ratio alone takes its share from every group. Budgets are met by a bisection on one number: with
the scope ``global`` a threshold for all scores, with ``uniform`` and ``per-group`` a common factor
of the groups' ratios. Both are monotone: more of it keeps less of every group, and no cost grows.
Every point of the search is rounded to allowed counts first (``onnxprune.alignment``), so that the
result is what was measured. Rounding makes stairs; where the search stops more than 2 % below the
budget, single steps of groups are given back or taken until it is met.

Only groups that a budget feels are touched: for peak memory those whose channels are alive where
more than the limit is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from onnxprune.alignment import Alignment, alignment
from onnxprune.axes import Mask, Values
from onnxprune.budget import MAX_RATIO, Budget, Options, Scope, check, unreachable
from onnxprune.cost import Cost, CostModel, cost_model
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import BudgetError, NothingToPruneError
from onnxprune.polynomials import Indices

__all__ = ["MAX_RATIO", "Budget", "Options", "Scope", "Selection", "select"]

CLOSE: Final = 0.98  # of a budget: what a selection uses at least, where steps allow it
SEARCH_STEPS: Final = 40
TRIES: Final = 32  # groups that are tried on each side of an exchange
EPSILON: Final = 1e-9
SPARE: Final = 0.995  # of a byte budget: the rest is for the names of copies and restated shapes


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
    limits = budget.limits(before)
    if "size_bytes" in limits and before.size_bytes > limits["size_bytes"]:
        limits["size_bytes"] *= SPARE
    goal = _Goal(cost, limits)
    rates, notes = _rates(coupling, budget, options)
    free = _free(coupling, options) & (rates > 0)
    if limits:
        free &= np.any([cost.touching(m, limit) for m, limit in limits.items()], axis=0)
    space = _space(coupling, scores, options, free, bool(limits))
    if limits:
        counts, note = _search(space, goal, rates, budget, options)
        notes += note
    else:
        counts = space.rounded(space.full * (1 - rates))
        whole = int((free & (counts == space.full)).sum())
        if whole:
            notes.append(f"{whole} groups stay whole: no smaller aligned count is as near")
    masks = {
        group.factor: _best(scores[group.factor], int(count))
        for group, count in zip(coupling.groups, counts, strict=True)
        if count < group.size
    }
    return Selection(masks, before, cost.at(counts), tuple(notes))


def _best(scores: Values, count: int) -> Mask:
    """The mask of the highest scores; of equal ones the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def matches(coupling: Coupling, group: Group, patterns: Iterable[str]) -> str | None:
    """The first pattern that a name of the group matches, or is."""
    params = [coupling.model.params[member.param] for member in group.members]
    names = {group.name, *(p.name for p in params), *(p.origin for p in params)}
    for pattern in patterns:
        if pattern in names or any(fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def _free(coupling: Coupling, options: Options) -> Mask:
    """Which groups (v,) may be pruned.

    Raises:
        NothingToPruneError: none.
    """
    groups = coupling.groups
    exact = [not (options.exact_only and group.mixing) for group in groups]
    inside = [not options.include or matches(coupling, g, options.include) for g in groups]
    outside = [matches(coupling, group, options.exclude) is None for group in groups]
    free: Mask = np.all(np.array([exact, inside, outside], bool), axis=0)
    if not free.any():
        reasons = []
        if not any(exact):
            reasons.append("all are mixing, and exact_only leaves those out")
        if not any(inside):
            reasons.append(f"none matches include: {', '.join(options.include)}")
        if not any(outside):
            reasons.append(f"all match exclude: {', '.join(options.exclude)}")
        why = " and ".join(reasons) or "exact_only, include and exclude together leave none"
        raise NothingToPruneError(
            f"no group of '{coupling.model.name}' may be pruned: it has {len(groups)}; {why}"
        )
    return free


def _rates(coupling: Coupling, budget: Budget, options: Options) -> tuple[Values, list[str]]:
    """The share of each group (v,) that goes; under a budget only the proportions count."""
    rest = budget.ratio or float(options.per_group is None)
    ratios = options.per_group or {}
    found = [matches(coupling, group, ratios) for group in coupling.groups]
    unused = [f"the pattern '{p}' matches no group" for p in ratios if p not in found]
    return np.array([rest if p is None else ratios[p] for p in found]), unused


@dataclass(frozen=True)
class _Space:
    """The counts that may be chosen.

    Attributes:
        free: (v,) which groups may be pruned.
        full, floors: (v,) the largest and the smallest counts.
        steps: the counts in between.
        sums: for each group the sums (size + 1,) of its best scores.
        order: the group of every index, the lowest score first.
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
        """What is left without this share of all indices, those with the lowest scores."""
        gone = self.order[: round(share * len(self.order))]
        return self.rounded(self.full - np.bincount(gone, minlength=len(self.full)))

    def moved(self, counts: Values, group: int, count: float) -> Values:
        """The counts with another one for a group."""
        found = counts.copy()
        found[group] = count
        return self.steps.settled(found, self.floors)

    def means(self, low: Values, high: Values) -> Values:
        """The mean score (v,) of the indices that a group keeps at one count and not at another."""
        low = np.maximum(low, 0)
        sums = [s[int(b)] - s[int(a)] for s, a, b in zip(self.sums, low, high, strict=True)]
        return np.array(sums) / np.maximum(high - low, 1)


def _space(
    coupling: Coupling,
    scores: Mapping[int, Values],
    options: Options,
    free: Mask,
    limited: bool,
) -> _Space:
    full = np.array([group.size for group in coupling.groups], np.float64)
    steps = alignment(coupling, options.align)
    least = np.ceil(full * (1 - options.max_ratio) - EPSILON) if limited else np.ones(len(full))
    floors = steps.above(np.maximum(least, options.min_channels))
    floors = np.where(free, np.minimum(floors, full), full)
    own = [scores[group.factor] for group in coupling.groups]
    sums = [np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])]) for values in own]
    places = np.repeat(
        np.arange(len(full)), [len(x) if f else 0 for x, f in zip(own, free, strict=True)]
    )
    pooled = np.concatenate([x for x, f in zip(own, free, strict=True) if f] or [np.ones(0)])
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
        return max(float(getattr(cost, m)) / limit for m, limit in self.limits.items())

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

    def point(share: float) -> Values:
        if options.scope == "global":
            return space.without(share)
        return space.rounded(space.full * np.maximum(1 - share * rates, 0))

    lowest = point(1.0)
    if goal.use(lowest) > 1:
        least = goal.cost.at(lowest)
        raise BudgetError(unreachable(budget, options, goal.limits, before, least))
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if goal.use(point(middle)) <= 1 else (middle, high)
    found = point(high)
    for start in (found, _take(space, goal, point(low))):
        found = max(found, _give_back(space, goal, start, rates, options.scope), key=goal.use)
        if goal.use(found) >= CLOSE:
            return found, []
    found = _exchange(space, goal, found)
    use = goal.use(found)
    text = f"{100 * use:.1f} % of the tightest budget is used: no step of a group fits in"
    return found, [text] if use < CLOSE else []


def _give_back(space: _Space, goal: _Goal, counts: Values, rates: Values, scope: Scope) -> Values:
    """Let groups have single steps back, while they fit: the best scores, or most pruned, first."""
    open_ = space.free.copy()
    while goal.use(counts) < CLOSE:
        more = space.steps.above(counts + 1)
        fits = open_ & (more > counts) & (goal.uses(counts, more) <= 1)
        if not fits.any():
            break
        worth = space.means(counts, more)
        if scope != "global":
            worth = (1 - counts / space.full) / np.maximum(rates, EPSILON)
        group = int(np.argmax(np.where(fits, worth, -np.inf)))
        found = space.moved(counts, group, more[group])
        if (found == counts).all() or goal.use(found) > 1:
            open_[group] = False
        else:
            counts = found
    return counts


def _take(space: _Space, goal: _Goal, counts: Values) -> Values:
    """Take single steps of groups until the budgets hold; as far as that goes.

    A step that ends just below the budget comes first; else the lowest scores that don't end it.
    """
    while goal.use(counts) > 1:
        less = space.steps.below(np.minimum(counts, space.full) - 1)
        fits = space.free & (less >= space.floors)
        if not fits.any():
            return space.floors
        uses, worth = goal.uses(counts, less), space.means(less, counts)
        close, short = fits & (uses <= 1) & (uses >= CLOSE), fits & (uses > 1)
        if close.any() or short.any():
            group = int(np.argmin(np.where(close if close.any() else short, worth, np.inf)))
        else:
            group = int(np.argmax(np.where(fits, uses, -np.inf)))
        counts = space.moved(counts, group, less[group])
    return counts


def _exchange(space: _Space, goal: _Goal, counts: Values) -> Values:
    """Give one group a step back and let another pay for it, while that comes closer."""
    use = goal.use(counts)
    while use < CLOSE:
        more, less = space.steps.above(counts + 1), space.steps.below(counts - 1)
        best = counts
        for up in np.flatnonzero(space.free & (more > counts))[:TRIES]:
            raised = space.moved(counts, up, more[up])
            for down in np.flatnonzero(space.free & (less >= space.floors))[:TRIES]:
                found = space.moved(raised, down, less[down])
                if use < goal.use(found) <= 1:
                    best, use = found, goal.use(found)
        if best is counts:
            break
        counts = best
    return counts
