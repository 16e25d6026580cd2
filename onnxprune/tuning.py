"""Pruning to a latency: predict, choose, shrink, measure, correct, until the budget is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxprune.axes import Mask
from onnxprune.cost import CostModel
from onnxprune.coupling import Coupling
from onnxprune.errors import BudgetError, GateError
from onnxprune.latency import Latency
from onnxprune.model import Array
from onnxprune.passes.benchmark import Timing
from onnxprune.passes.shrink import shrink
from onnxprune.plan import counts_of
from onnxprune.results import Pace
from onnxprune.speed import Goal, Timer, left_of, pace_of, timed
from onnxprune.target import Target

CLOSE: Final = 0.05  # how far the measured latency may be from the budget
GOOD: Final = 0.03  # the same, where one more try may come nearer: two measurements differ, too
TRIES: Final = 6
NUDGE: Final = 0.02  # of a limit that gives a choice which was measured already
NUDGES: Final = 5
HALVINGS: Final = 4  # between a limit that can't be met and one that can
NOISE: Final = 0.03  # how far the two ratios may be apart before it is said
STEEP: Final = (0.2, 3.0)  # slopes that are believed, of what a proportional model has
FAR: Final = 0.2  # of a limit: between two that a line through them is believed of
LOWEST: Final = 0.1  # of a limit: what such a line may ask for at once
Choose = Callable[[float], tuple[dict[int, Mask], tuple[str, ...]]]


@dataclass(frozen=True)
class Tuner:
    """What a search for a latency works on.

    Attributes:
        coupling: the structure of the model.
        cost: its costs, with the latency.
        latency: the fitted model of it.
        choose: what is kept for a share of the modelled latency, and notes.
        feeds: inputs by name.
        target: what the model runs on.
        timer: times models side by side.
    """

    coupling: Coupling
    cost: CostModel
    latency: Latency
    choose: Choose
    feeds: Mapping[str, Array]
    target: Target
    timer: Timer = timed

    def measure(self, keep: Mapping[int, Mask], share: float | None) -> tuple[Timing, ...]:
        """The original and what is left of it, side by side; ``share`` is asked for."""
        model = self.coupling.model
        small = shrink(self.coupling, keep)
        models = [(model.proto, model.folder), (small, model.folder)]
        return self.timer(models, self.feeds, self.target, share)

    def predicted(self, keep: Mapping[int, Mask]) -> float:
        """The milliseconds of what is left, by the model."""
        return self.cost.cost(counts_of(keep)).latency_ms


@dataclass(frozen=True)
class Tuned:
    """A choice that was measured.

    Attributes:
        keep: its masks.
        notes: on it.
        pace: how fast it is.
        latency: the model of the latency, scaled to what was measured.
        left: the share of the original's latency that remains.
        modelled: the same by the model.
        tried: all choices that were measured, in turn.
    """

    keep: dict[int, Mask]
    notes: tuple[str, ...]
    pace: Pace
    latency: Latency
    left: float
    modelled: float
    tried: tuple[Tuned, ...] = ()

    @property
    def miss(self) -> float:
        """How far that is from what was asked for, as a share of it."""
        return self.left / (self.pace.share or 1.0) - 1


def tune(tuner: Tuner, wanted: Goal) -> Tuned:
    """Choose, measure and correct until the latency is within 5 % of what was asked for.

    Raises:
        BudgetError: the structure can't reach it; says what it can.
        GateError: no choice came within 5 %.
    """
    tried: list[Tuned] = []
    share = wanted.share or wanted.of(tuner.measure({}, None)[0].p50_ms)
    limit = min(share, 1.0)
    for _ in range(TRIES):
        try:
            found = _another(tuner, limit, tried)
        except BudgetError as error:
            raise _unreachable(wanted, tried, error) from error
        if found is None:
            break  # there is nothing in between
        last = _measured(tuner, *found, wanted, share, len(tried) + 1)
        near = [own for own in tried if abs(own.miss) <= CLOSE]
        tried.append(last)
        if abs(last.miss) <= GOOD or (near and abs(last.miss) <= CLOSE):
            break
        # Where less of the latency remains than the limit says, another budget is tighter.
        if last.miss < 0 and last.modelled <= limit * (1 - CLOSE):
            break
        limit = _corrected([(own.modelled, own.left) for own in tried], share)
    return replace(_nearest(wanted, tried), tried=tuple(tried))


def _another(
    tuner: Tuner, limit: float, tried: Sequence[Tuned]
) -> tuple[dict[int, Mask], tuple[str, ...]] | None:
    """A choice that was not measured yet, at a limit or a little beyond it; None where none is."""
    step = 1 - NUDGE if tried and tried[-1].miss > 0 else 1 + NUDGE
    for turn in range(NUDGES):
        try:
            found = tuner.choose(min(limit * step**turn, 1.0))
        except BudgetError:
            least = _least_choice(tuner, limit, tried)
            if least is None or _is_known(least[0], tried):
                raise
            return least
        if not _is_known(found[0], tried):
            return found
    return None


def _least_choice(
    tuner: Tuner, low: float, tried: Sequence[Tuned]
) -> tuple[dict[int, Mask], tuple[str, ...]] | None:
    """About the least that can be chosen: what can be reached is measured before it is said.

    Args:
        tuner: chooses.
        low: a limit that can't be met.
        tried: choices that could be made.
    """
    found, high = None, min((own.modelled for own in tried), default=1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            found, high = tuner.choose(middle), middle
        except BudgetError:
            low = middle
    return found


def _measured(
    tuner: Tuner,
    keep: dict[int, Mask],
    notes: tuple[str, ...],
    wanted: Goal,
    share: float,
    turn: int,
) -> Tuned:
    before, after = tuner.measure(keep, share)
    full, predicted = tuner.predicted({}), tuner.predicted(keep)
    pace = replace(
        pace_of(before, after, tuner.target),
        asked=wanted.text,
        share=share,
        predicted_ms=predicted / full * before.p50_ms,
        tries=turn,
    )
    latency = tuner.latency.scaled(before.p50_ms / full)
    left = left_of(before, after, tuner.target)
    if abs(left * after.speedup - 1) > NOISE:
        what = "the processor's time" if tuner.target.one_core else "the quicker runs"
        notes = (
            *notes,
            f"a busy machine: by {what} {left:.3g}x of the latency remains, which decides; by the "
            f"median run {1 / after.speedup:.3g}x",
        )
    return Tuned(keep, notes, pace, latency, left, predicted / full)


def _is_known(keep: Mapping[int, Mask], tried: Sequence[Tuned]) -> bool:
    return any(same_masks(keep, own.keep) for own in tried)


def same_masks(one: Mapping[int, Mask], other: Mapping[int, Mask]) -> bool:
    """Whether two choices keep the same."""
    own = one.keys() == other.keys()
    return own and all(np.array_equal(mask, other[factor]) for factor, mask in one.items())


def _corrected(points: Sequence[tuple[float, float]], share: float) -> float:
    """The next limit: on the line through the two nearest measurements, or through nothing.

    Args:
        points: shares of the latency that remained by the model, and as measured.
        share: the share that is asked for.
    """
    near = sorted(points, key=lambda point: abs(point[1] - share))[:2]
    limit, left = near[0]
    found, least = limit * share / left, limit / 2
    if len(near) > 1:
        run, rise = near[1][0] - limit, near[1][1] - left
        apart = abs(run) > FAR * limit  # then noise can't turn the line round
        slope, flattest = rise / (run or 1.0), 0.0 if apart else STEEP[0] * left / limit
        if slope > flattest:
            found = limit + (share - left) / min(slope, STEEP[1] * left / limit)
        least = limit * LOWEST if apart else least
    return float(np.clip(found, least, min(2 * limit, 1.0)))


def _nearest(wanted: Goal, tried: Sequence[Tuned]) -> Tuned:
    """What is within 5 % and nearest, or else the slowest that is fast enough.

    Raises:
        GateError: none is.
    """
    best = min(tried, key=lambda own: abs(own.miss))
    count = len(tried)
    if abs(best.miss) <= CLOSE:
        return replace(best, pace=replace(best.pace, tries=count))
    enough = [own for own in tried if own.miss <= CLOSE]
    if not enough:
        raise GateError(
            f"{_least(wanted, tried)}, in {count} tries, so nothing is written: give more "
            "time, or measure on a quieter machine"
        )
    best = max(enough, key=lambda own: own.left)
    note = (
        f"{best.left:.3g}x of the latency remains of {wanted.text}: another budget is tighter, or "
        "no choice comes nearer"
    )
    return replace(best, notes=(*best.notes, note), pace=replace(best.pace, tries=count))


def _unreachable(wanted: Goal, tried: Sequence[Tuned], error: BudgetError) -> BudgetError:
    """What select said of a share of the modelled latency, in the words of what was asked for."""
    if not tried:
        return error
    flag, _, why = str(error).partition(": ")
    told = f"by the fitted latency {why}" if flag.startswith("--latency") else str(error)
    return BudgetError(f"{_least(wanted, tried)}; {told}")


def _least(wanted: Goal, tried: Sequence[Tuned]) -> str:
    best = min(tried, key=lambda own: own.left)
    return (
        f"--latency {wanted.text} was not reached: {best.left:.3g}x of the original's latency "
        f"({best.pace.after_ms:.3g} ms) is the least that was measured"
    )
