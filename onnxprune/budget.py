"""What may remain of a model, and how the choice is made: the arguments of the pass select."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

import numpy as np

from onnxprune.alignment import STAIRS, Align, Stairs
from onnxprune.amounts import count, size
from onnxprune.axes import Mask, Values
from onnxprune.cost import MEASURES, Cost
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import BudgetError, NothingToPruneError, OnnxPruneError

Scope = Literal["global", "uniform", "by-cost", "per-group"]
Schedule = Literal["exponential", "linear", "cubic"]
MAX_RATIO: Final = 0.9
FLAGS: Final = {
    "macs": ("--macs", "MACs"),
    "params": ("--params", "parameters"),
    "size_bytes": ("--bytes", "bytes"),
    "peak_bytes": ("--peak-memory", "peak memory"),
    "latency_ms": ("--latency", "milliseconds"),
}
BYTES: Final = ("size_bytes", "peak_bytes")


SCHEDULES: Final[Mapping[Schedule, Callable[[float, float], float]]] = {
    "exponential": lambda share, time: share**time,
    "linear": lambda share, time: 1 - (1 - share) * time,
    "cubic": lambda share, time: share + (1 - share) * (1 - time) ** 3,
}
"""What remains of 1 at a time from 0 to 1, where ``share`` does in the end.

Exponential takes the same share of what is left in each step, linear the same amount; cubic (Zhu
and Gupta 2017, To prune, or not to prune) most at first, where there is most to spare.
"""


@dataclass(frozen=True)
class Stage:
    """One step of several: ``step`` is 1 to ``steps``."""

    step: int = 1
    steps: int = 1
    schedule: Schedule = "exponential"

    def left(self, share: float) -> float:
        """What remains after this step, where ``share`` does after the last."""
        return SCHEDULES[self.schedule](share, self.step / self.steps)

    def part(self, ratio: float) -> float:
        """The share of what is left that goes in this step, where ``ratio`` goes in all."""
        if self.steps == 1:
            return ratio
        return 1 - self.left(1 - ratio) / replace(self, step=self.step - 1).left(1 - ratio)


@dataclass(frozen=True)
class Budget:
    """What goes, or what may remain; several budgets hold together, a ratio goes alone.

    Attributes:
        ratio: the share of every group that goes, between 0 and 1.
        macs, params, size_bytes, peak_bytes: what may remain of each cost: a fraction up to 1, or
            a number above 1.
        latency_ms: what may remain of the milliseconds of one run.
    """

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    size_bytes: float | None = None
    peak_bytes: float | None = None
    latency_ms: float | None = None

    def given(self) -> dict[str, float]:
        """The budgets that are given, by measure, as they were given."""
        values = {measure: getattr(self, measure) for measure in MEASURES}
        return {measure: value for measure, value in values.items() if value is not None}

    def limits(self, before: Cost) -> dict[str, float]:
        """What each given measure must not exceed."""
        return {
            measure: value * getattr(before, measure) if value <= 1 else value
            for measure, value in self.given().items()
        }

    def at_step(self, stage: Stage, before: Cost) -> Budget:
        """The budget of one step of several; before: the cost of the model before the first."""
        if self.ratio is not None:
            return replace(self, ratio=stage.part(self.ratio))
        if stage.steps == 1:
            return self
        shares = {}
        for measure, limit in self.limits(before).items():
            full = getattr(before, measure) or 1
            shares[measure] = max(full * stage.left(min(1.0, limit / full)), limit)
        return replace(self, **shares)


@dataclass(frozen=True)
class Options:
    """How the choice is made.

    Attributes:
        scope: how a budget is shared out: one threshold for all scores, one ratio for all groups,
            the same but less of groups that cost little, or ratios in the proportions of
            ``per_group``.
        align: the multiples that kept counts are; see ``onnxprune.alignment``.
        min_channels: every group keeps at least so many.
        max_ratio: the largest share that a group may lose under a budget.
        include: only groups of which a name matches one of these patterns; empty: all. The names
            of a group are its own and those of its members.
        exclude: no group of which a name matches one of these.
        exact_only: no mixing group.
        stairs: what kernels like, where ``align`` is auto.
        per_group: for the scope per-group, ratios by pattern, the first match counting; groups
            that match none lose the budget's ratio, or nothing.
        balanced: groups that may keep other indices in each of their rows do, where the criterion
            scores rows (``score.BY_ROW``).
    """

    scope: Scope = "global"
    align: Align = "auto"
    min_channels: int = 1
    max_ratio: float = MAX_RATIO
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exact_only: bool = False
    per_group: Mapping[str, float] | None = None
    stairs: Stairs = STAIRS
    balanced: bool = True

    def at_step(self, stage: Stage) -> Options:
        """The options of one step of several: each takes its part of the ratios."""
        found = replace(self, max_ratio=stage.part(self.max_ratio))
        if self.per_group is not None:
            ratios = {key: stage.part(ratio) for key, ratio in self.per_group.items()}
            found = replace(found, per_group=ratios)
        return found


def check(budget: Budget, options: Options) -> None:
    """Refuse what makes no sense.

    Raises:
        BudgetError: no budget, a ratio beside one, or a value out of range.
        OnnxPruneError: an option out of range.
    """
    given = budget.given()
    if budget.ratio is None and not given and options.per_group is None:
        raise BudgetError(
            "no budget is given: give a ratio, or what may remain of macs, params, bytes or peak "
            "memory"
        )
    if budget.ratio is not None and given:
        raise BudgetError(
            "a ratio and a budget are given: a ratio takes its share from every group and leaves "
            "nothing to choose; give one of them"
        )
    if budget.ratio is not None and not 0 < budget.ratio < 1:
        raise BudgetError(f"ratio is {budget.ratio:g}: the share that goes lies between 0 and 1")
    for measure, value in given.items():
        if not value > 0:
            raise BudgetError(f"the budget for {measure} is {value:g}: it must be above 0")
    _check_options(options)


def _check_options(options: Options) -> None:
    scopes = get_args(Scope)
    if options.scope not in scopes:
        raise OnnxPruneError(f"scope is '{options.scope}': it must be one of {', '.join(scopes)}")
    if (options.scope == "per-group") != (options.per_group is not None):
        raise OnnxPruneError(
            "the scope per-group and ratios by pattern go together: give both or none"
        )
    for pattern, ratio in (options.per_group or {}).items():
        if not 0 <= ratio < 1:
            raise OnnxPruneError(f"the ratio for '{pattern}' is {ratio:g}: it must be 0 to below 1")
    if options.align != "auto" and (not isinstance(options.align, int) or options.align < 1):
        raise OnnxPruneError(f"align is {options.align!r}: it must be auto, or a number from 1 on")
    if options.min_channels < 1:
        raise OnnxPruneError(f"min_channels is {options.min_channels}: it must be at least 1")
    if not 0 < options.max_ratio <= 1:
        raise OnnxPruneError(f"max_ratio is {options.max_ratio:g}: it must be above 0, at most 1")


def matches(coupling: Coupling, group: Group, patterns: Iterable[str]) -> str | None:
    """The first pattern that a name of the group matches, or is."""
    params = [coupling.model.params[member.param] for member in group.members]
    names = {group.name, *(p.name for p in params), *(p.origin for p in params)}
    for pattern in patterns:
        if pattern in names or any(fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def free_groups(coupling: Coupling, options: Options) -> Mask:
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


def rates_of(coupling: Coupling, budget: Budget, options: Options) -> tuple[Values, list[str]]:
    """The share of each group (v,) that goes; under a budget only the proportions count."""
    rest = budget.ratio or float(options.per_group is None)
    ratios = options.per_group or {}
    found = [matches(coupling, group, ratios) for group in coupling.groups]
    unused = [f"the pattern '{p}' matches no group" for p in ratios if p not in found]
    return np.array([rest if p is None else ratios[p] for p in found]), unused


def check_patterns(coupling: Coupling, options: Options) -> list[str]:
    """Notes on patterns of ``exclude`` that match no group.

    Raises:
        OnnxPruneError: a pattern of ``include`` matches none, or no ratio's pattern does.
    """

    def unused(patterns: Iterable[str]) -> list[str]:
        groups = coupling.groups
        return [p for p in patterns if not any(matches(coupling, g, [p]) for g in groups)]

    ratios = options.per_group or {}
    if ratios and len(unused(ratios)) == len(ratios):
        first = next(iter(ratios))
        raise OnnxPruneError(
            f"--group-ratio '{first}' matches no group of '{coupling.model.name}', nor does any "
            "other: see onnxprune inspect for the names of those that can be pruned"
        )
    for pattern in unused(options.include):
        raise OnnxPruneError(
            f"--include '{pattern}' matches no group of '{coupling.model.name}' that can be "
            "pruned: see onnxprune inspect for the names"
        )
    return [f"--exclude '{p}' matches no group that can be pruned" for p in unused(options.exclude)]


def holding(options: Options, better: Callable[[Options], bool]) -> str:
    """Which options keep a choice from what was asked for, as advice to end a sentence with.

    Args:
        options: those of the choice.
        better: whether the choice comes nearer to what was asked for with other options.
    """
    others = {
        "--align 1": replace(options, align=1),
        "a lower --min-channels": replace(options, min_channels=1),
        "a higher --max-ratio": replace(options, max_ratio=1.0),
    }
    found = [text for text, other in others.items() if other != options and better(other)]
    return f"; {' or '.join(found)} would get nearer" if found else ""


def unreachable(
    budget: Budget, limits: Mapping[str, float], before: Cost, least: Cost, advice: str
) -> str:
    """What can be reached of the first budget that ``least``, the lowest cost, does not meet."""
    measure = missed(limits, least)
    flag, noun = FLAGS[measure]
    asked, left = budget.given()[measure], getattr(least, measure)
    part = left / getattr(before, measure)
    figure = size if measure in BYTES else count
    wanted = f"{asked:g}" if asked <= 1 else figure(asked)
    remains = f"{part:.3g}" if asked <= 1 else figure(left)
    return (
        f"{flag} {wanted}: at most {100 - 100 * part:.1f} % of the {noun} can go, {remains} "
        f"remains; the rest is frozen, excluded, or held by the options{advice}"
    )


def missed(limits: Mapping[str, float], least: Cost) -> str:
    """The first measure whose limit this cost does not keep."""
    return next(measure for measure, limit in limits.items() if getattr(least, measure) > limit)
