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
from onnxprune.results import Pace
from onnxprune.speed import Goal, Timer, left_of, pace_of, timed
from onnxprune.target import Target

CLOSE: Final = 0.05  # how far the measured latency may be from the budget
AIM: Final = 0.99  # of the budget: measurements scatter about it
TRIES: Final = 6
NOISE: Final = 0.03  # how far the two ratios may be apart before it is said
STEEP: Final = (0.2, 3.0)  # slopes that are believed, of what a proportional model has
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

    def measure(self, keep: Mapping[int, Mask]) -> tuple[Timing, ...]:
        """The original and what is left of it, side by side."""
        model = self.coupling.model
        small = shrink(self.coupling, keep)
        models = [(model.proto, model.folder), (small, model.folder)]
        return self.timer(models, self.feeds, self.target)

    def predicted(self, keep: Mapping[int, Mask]) -> float:
        """The milliseconds of what is left, by the model."""
        counts = {factor: int(mask.sum()) for factor, mask in keep.items()}
        return self.cost.cost(counts).latency_ms


@dataclass(frozen=True)
class Tuned:
    """A choice that was measured; ``left`` is the share of the original's latency that remains."""

    keep: dict[int, Mask]
    notes: tuple[str, ...]
    pace: Pace
    latency: Latency
    left: float

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
    points: list[tuple[float, float]] = []
    share = wanted.share or wanted.of(tuner.measure({})[0].p50_ms)
    limit = min(share * AIM, 1.0)
    for turn in range(1, TRIES + 1):
        try:
            keep, notes = tuner.choose(limit)
        except BudgetError as error:
            raise _unreachable(wanted, tried, error) from error
        if tried and same_masks(keep, tried[-1].keep):
            break  # there is nothing in between
        before, after = tuner.measure(keep)
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
            notes = (*notes, f"a busy machine: by low quartiles {left:.3g}x of the latency remains")
        tried.append(Tuned(keep, notes, pace, latency, left))
        binding = predicted / full > limit * (1 - CLOSE)  # else another budget is tighter
        if abs(tried[-1].miss) <= CLOSE:
            return tried[-1]
        if tried[-1].miss < 0 and not binding:
            return _nearest(wanted, tried)
        points.append((limit, left))
        limit = _corrected(points, share)
    return _nearest(wanted, tried)


def same_masks(one: Mapping[int, Mask], other: Mapping[int, Mask]) -> bool:
    """Whether two choices keep the same."""
    own = one.keys() == other.keys()
    return own and all(np.array_equal(mask, other[factor]) for factor, mask in one.items())


def _corrected(points: Sequence[tuple[float, float]], share: float) -> float:
    """The next limit: on the line through the two nearest measurements, or through nothing.

    Args:
        points: limits, and the shares of the latency that remained of them.
        share: the share that is asked for.
    """
    near = sorted(points, key=lambda point: abs(point[1] - share))[:2]
    limit, left = near[0]
    found = limit * AIM * share / left
    if len(near) > 1:
        slope = (near[1][1] - left) / ((near[1][0] - limit) or 1.0)
        if slope > STEEP[0] * left / limit:  # noise may turn it round
            found = limit + (AIM * share - left) / min(slope, STEEP[1] * left / limit)
    return float(np.clip(found, limit / 2, min(2 * limit, 1.0)))


def _nearest(wanted: Goal, tried: Sequence[Tuned]) -> Tuned:
    """The slowest that is fast enough.

    Raises:
        GateError: none is.
    """
    enough = [own for own in tried if own.miss <= CLOSE]
    if not enough:
        raise GateError(
            f"{_least(wanted, tried)}, in {len(tried)} tries, so nothing is written: give more "
            "time, or measure on a quieter machine"
        )
    best = max(enough, key=lambda own: own.left)
    note = (
        f"{best.left:.3g}x of the latency remains of {wanted.text}: another budget is tighter, or "
        "no choice comes nearer"
    )
    return replace(best, notes=(*best.notes, note))


def _unreachable(wanted: Goal, tried: Sequence[Tuned], error: BudgetError) -> BudgetError:
    """What select said of a share of the modelled latency, in the words of what was asked for."""
    if tried:
        return BudgetError(f"{_least(wanted, tried)}; {error}")
    flag, _, why = str(error).partition(": ")
    if not flag.startswith("--latency"):
        return error
    return BudgetError(f"--latency {wanted.text} is out of reach: by the fitted latency {why}")


def _least(wanted: Goal, tried: Sequence[Tuned]) -> str:
    best = min(tried, key=lambda own: own.left)
    return (
        f"--latency {wanted.text} was not reached: {best.left:.3g}x of the original's latency "
        f"({best.pace.after_ms:.3g} ms) is the least that was measured"
    )
