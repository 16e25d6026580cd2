"""How fast a result is to be, how fast it is, and what is refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from onnxprune.alignment import STAIRS, Stairs
from onnxprune.axes import Values
from onnxprune.budget import Options
from onnxprune.errors import BudgetError, GateError, OnnxPruneError
from onnxprune.model import Array, Model
from onnxprune.passes.benchmark import Timing, benchmark, timings
from onnxprune.passes.probe import probe
from onnxprune.polynomials import Indices
from onnxprune.results import Pace
from onnxprune.staircase import cached, store
from onnxprune.target import Target

SECONDS: Final = 6.0  # of measuring, each time; as long again to warm up, and to load
LONGEST_S: Final = 30.0  # after which no other session is made: some take long to load
WARM_UP: Final = 2
FEWEST: Final = 2  # sessions of each model
CLEAR: Final = 0.07  # how far the whole interval is from the share that is asked for
NARROW: Final = 0.015  # half the width of the interval of a ratio that is known
SURE: Final = 0.04  # half the width of the interval of a ratio that decides
DEFAULT: Final = Target()
_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+)\s*(x|ms|s|us)?", re.IGNORECASE)
_MS: Final = {"ms": 1.0, "s": 1e3, "us": 1e-3}

Models = Sequence[tuple[onnx.ModelProto, Path | None]]
Timer = Callable[[Models, Mapping[str, Array], Target, float | None], tuple[Timing, ...]]
Step = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Goal:
    """How fast a model is to become.

    Attributes:
        share: of the original's latency; None where ``ms`` is given.
        ms: milliseconds.
        text: as it was given.
    """

    share: float | None
    ms: float | None
    text: str

    def of(self, before_ms: float) -> float:
        """The share of the original's latency that may remain."""
        return self.share if self.share is not None else (self.ms or 0.0) / before_ms


def goal(given: float | str) -> Goal:
    """``0.5`` or ``"0.5x"`` (a share of the original's latency), ``8`` or ``"8ms"``.

    Raises:
        BudgetError: it is none of these, or not above 0.
    """
    text = str(given)
    found = _LATENCY.fullmatch(text.strip())
    number = float(found[1]) if found is not None else 0.0
    if found is None or number <= 0:
        raise BudgetError(
            f"the latency '{text}' can't be read: give a share such as 0.5 or 0.5x of the "
            "original's, or a time such as 8ms"
        )
    unit = (found[2] or "").lower()
    if unit == "x" or (not unit and number <= 1):
        return Goal(number, None, text)
    return Goal(None, number * _MS.get(unit, 1.0), text)


@dataclass(frozen=True)
class Speed:
    """How fast a result has to be, and where.

    Attributes:
        goal: the latency that is asked for.
        target: what the model runs on.
        min_speedup: refuse to write a model that is less so many times as fast.
        force: write it nevertheless.
    """

    goal: Goal | None = None
    target: Target = DEFAULT
    min_speedup: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse a limit that no model can miss.

        Raises:
            OnnxPruneError: it is not above 0.
        """
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise OnnxPruneError(f"min_speedup is {self.min_speedup:g}: it must be above 0")

    def settings(self) -> dict[str, Any]:
        """What a report says was asked for."""
        if self.goal is None and self.min_speedup is None:
            return {}
        asked = {"latency": self.goal.text if self.goal else None, "min_speedup": self.min_speedup}
        given = {key: value for key, value in asked.items() if value is not None}
        return {**given, "force": self.force, "target": asdict(self.target)}


def learned(speed: Speed, options: Options, step: Step) -> tuple[Stairs, tuple[str, ...]]:
    """What kernels like on a target, and a note where a probe told.

    A probe that was made here before is used; one is made where a latency is asked for.
    """
    if options.align != "auto" or options.stairs != STAIRS:
        return options.stairs, ()
    found = cached(speed.target)
    if found is None and speed.goal is not None:
        with step("probe"):
            found = probe(speed.target)
            store(found)
    return (STAIRS, ()) if found is None else (found.stairs, (found.summary(),))


def measured(
    model: Model,
    small: onnx.ModelProto,
    feeds: Mapping[str, Array],
    target: Target,
    folder: Path | None,
) -> Pace:
    """A model and what is left of it, with its external data in a folder, side by side."""
    models = [(model.proto, model.folder), (small, folder)]
    before, after = timed(models, feeds, target)
    return pace_of(before, after, target)


def timed(
    models: Models, feeds: Mapping[str, Array], target: Target, share: float | None = None
) -> tuple[Timing, ...]:
    """Time a model and what is left of it side by side, as long as it takes to tell.

    That is until the interval of the ratio is narrow, or is clear of the share of the latency that
    is asked for; on the longest five sessions of each, or half a minute.
    """
    start = time.perf_counter()

    def enough(wall: Values, cpu: Values, phases: Indices) -> bool:
        if phases[-1] + 1 < FEWEST:
            return False
        own = cpu if target.one_core else wall
        found = timings(own, own, phases, [0.0] * len(own), [{}] * len(own))[-1]
        late = time.perf_counter() - start >= LONGEST_S
        return late or is_told(found, share, int(phases[-1]) + 1)

    return benchmark(models, feeds, target=target, seconds=SECONDS, warm_up=WARM_UP, enough=enough)


def is_told(after: Timing, share: float | None, sessions: int) -> bool:
    """Whether a measurement says what is wanted: the ratio, or that it is off the share.

    Two sessions say too little of how sessions differ to go by a narrow interval.
    """
    if share is not None:
        low, high = (1 / (own * share) for own in (after.speedup_high, after.speedup_low))
        if high < 1 - CLEAR or low > 1 + CLEAR:
            return True
    width = after.speedup_high - after.speedup_low
    return sessions > FEWEST and width <= 2 * NARROW * after.speedup


def pace_of(before: Timing, after: Timing, target: Target) -> Pace:
    """What two timings say."""
    return Pace(
        before_ms=before.p50_ms,
        after_ms=after.p50_ms,
        speedup=after.speedup,
        speedup_low=after.speedup_low,
        speedup_high=after.speedup_high,
        target=target,
    )


def left_of(before: Timing, after: Timing, target: Target) -> float:
    """The share of the latency that remains, as it is decided by.

    With one thread on the CPU by low quartiles of the processor's time, which waiting does not add
    to; on a quiet machine it is the wall time. Elsewhere by medians, where their interval is
    narrow, and by low quartiles, where it is not: what else runs makes runs slower, never faster.
    """
    own = [before.times_ms, after.times_ms]
    if target.one_core:
        own = [before.cpu_times_ms, after.cpu_times_ms]
    if not all(own) or (is_sure(after) and not target.one_core):
        return 1 / after.speedup
    quick = [float(np.quantile(times, 0.25)) for times in own]
    return quick[1] / quick[0]


def is_sure(after: Timing) -> bool:
    """Whether the interval of the ratio is narrow enough to decide by it."""
    return after.speedup_high - after.speedup_low <= 2 * SURE * after.speedup


def unsure(pace: Pace | None, speed: Speed) -> list[str]:
    """A note on a speed-up that lies, or may lie, below what was asked for."""
    least = speed.min_speedup
    if pace is not None and speed.force and pace.speedup < (least or 1.0):
        return [f"taken by --force: {pace.speedup:.3g}x as fast, and {least or 1:g}x is asked for"]
    if pace is None or least is None or not pace.speedup_low < least <= pace.speedup:
        return []
    return [
        f"the speed-up is measured to be {pace.speedup:.3g}x, and may be below --min-speedup "
        f"{least:g}: its interval is {pace.speedup_low:.3g} to {pace.speedup_high:.3g}"
    ]


def must_be_faster(pace: Pace, speed: Speed) -> None:
    """Refuse a result that is slower than the original, or than what was asked for.

    Raises:
        GateError: it is, and is not forced.
    """
    if speed.force:
        return
    times = f"{pace.before_ms:.3g} ms before, {pace.after_ms:.3g} ms after"
    if pace.speedup_high < 1:
        raise GateError(
            f"the pruned model is slower than the original ({times}), so nothing is written: prune "
            "more, leave --align at auto, or give --force"
        )
    if speed.min_speedup is not None and pace.speedup < speed.min_speedup:
        raise GateError(
            f"the pruned model is {pace.speedup:.3g}x as fast as the original "
            f"({pace.speedup_low:.3g} to {pace.speedup_high:.3g}; {times}), below --min-speedup "
            f"{speed.min_speedup:g}, so nothing is written"
        )
