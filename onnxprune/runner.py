"""Times ONNX models side by side; needs Python, numpy and onnxruntime alone.

The library times with the loop below, and ``onnxprune bench --export`` copies this very file as
``run.py`` to other machines, where ``python run.py`` times the models of its folder and writes
``result.json`` for ``onnxprune bench --import``. So nothing of onnxprune may be imported here.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Sequence  # noqa: UP035  (Python 3.8 runs this)

import numpy as np

RESAMPLES = 2000
FEWEST = 10  # rounds, whatever else is said
ENOUGH = 50  # rounds, when nobody says how many
MOST = 2000
SETTLED_S = 5.0  # after so long, enough rounds or a narrow interval are enough
NARROW = 0.02  # width of the interval of the median, as a share of it
STABLE = 0.05  # between the medians of two windows of warming up
WINDOW = 5
WARM_UP_S = 10.0
CHECK_EVERY = 10


def interval(values: Any, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of values (n,)."""
    values = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)


def is_narrow(values: Any) -> bool:
    """Whether the interval of the median is under 2 % of the median wide."""
    low, high = interval(values)
    return high - low < NARROW * float(np.median(values))


def is_stable(values: Sequence[float]) -> bool:
    """Whether the last window of times is as fast as the one before it."""
    if len(values) < 2 * WINDOW:
        return False
    before, last = np.median(values[-2 * WINDOW : -WINDOW]), np.median(values[-WINDOW:])
    return bool(abs(last - before) <= STABLE * before)


def is_done(wall: Any, elapsed_s: float, runs: int | None, seconds: float) -> bool:
    """Whether there are enough rounds of times (model, round).

    With ``runs`` that many. Otherwise at most ``seconds`` and 2000 rounds; before that, when all
    intervals are narrow and there are 50 rounds; or, once 5 seconds have passed, either of the two.
    """
    rounds = wall.shape[1]
    if runs is not None:
        return bool(rounds >= runs)
    if rounds >= MOST or (rounds >= FEWEST and elapsed_s >= seconds):
        return True
    if rounds < FEWEST or rounds % CHECK_EVERY:
        return False
    late = elapsed_s >= min(SETTLED_S, seconds)
    if rounds >= ENOUGH and late:
        return True
    return (rounds >= ENOUGH or late) and all(is_narrow(own) for own in wall)


def interleaved(
    calls: Sequence[Callable[[], Any]],
    runs: int | None = None,
    seconds: float = 60.0,
    warm_up: int = 3,
    tell: Callable[[int], Any] | None = None,
) -> tuple[Any, Any, bool]:
    """Time calls in turn: A B A B ...

    Args:
        calls: what is timed.
        runs: rounds; see ``is_done`` where absent.
        seconds: the longest that it may take, warming up left out, where ``runs`` is absent.
        warm_up: rounds before that at least; more until two windows agree, for 10 s at most.
        tell: is told the number of each round; may raise KeyboardInterrupt.

    Returns:
        wall and CPU milliseconds (call, round), and whether it was interrupted before the end;
        the rounds before the interruption are kept.
    """
    wall: list[list[float]] = [[] for _ in calls]
    cpu: list[list[float]] = [[] for _ in calls]
    if warm_up:
        _warm_up(calls, warm_up)
    start, stopped = time.perf_counter(), False
    try:
        while not is_done(_even(wall), time.perf_counter() - start, runs, seconds):
            for position, call in enumerate(calls):
                own_wall, own_cpu = timed(call)
                wall[position].append(own_wall)
                cpu[position].append(own_cpu)
            if tell is not None:
                tell(len(wall[0]))
    except KeyboardInterrupt:
        if not wall[-1]:
            raise
        stopped = True
    return _even(wall), _even(cpu), stopped


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU milliseconds of a call; CPU time is that of all threads of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def _even(times: Sequence[Sequence[float]]) -> Any:
    """Times (call, round) of the rounds that all calls have."""
    rounds = min(map(len, times))
    return np.array([own[:rounds] for own in times], np.float64).reshape(len(times), rounds)


def _warm_up(calls: Sequence[Callable[[], Any]], least: int) -> None:
    start = time.perf_counter()
    seen: list[list[float]] = [[] for _ in calls]
    while time.perf_counter() - start < WARM_UP_S or len(seen[0]) < least:
        for own, call in zip(seen, calls):  # noqa: B905  (Python 3.8 has no strict)
            own.append(timed(call)[0])
        if len(seen[0]) >= least and all(map(is_stable, seen)):
            return
