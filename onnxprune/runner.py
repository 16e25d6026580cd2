"""The loop that times models side by side; needs Python and numpy alone.

The library times with it, and ``onnxprune bench --export`` takes this very text, with that of
``onnxprune.remote``, to other machines. So nothing else of onnxprune may be imported here, and
Python 3.8 must understand it.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Sequence  # noqa: UP035  (Python 3.8 runs this)

import numpy as np

RESAMPLES = 2000
PHASES = 5  # sessions of each model, one after another
# In one phase:
FEWEST = 2  # rounds, whatever else is said
ENOUGH = 10  # rounds, when nobody says how many
MOST = 400
SETTLED_S = 1.0  # after so long, enough rounds are enough
NARROW = 0.02  # width of the interval of the median, as a share of it
STABLE = 0.05  # between the medians of two windows of warming up
WINDOW = 5
WARM_UP_S = 10.0


def draws(phases: Any, seed: int = 0) -> Any:
    """Which rounds each of 2000 resamples is made of, (resample, round).

    Rounds are drawn within phases that are drawn first: sessions of one model differ by a few
    percent (where their memory lies), and all rounds of a phase share that.

    Args:
        phases: the phase (round,) that each round belongs to: 0, 0, ..., 1, 1, ...
        seed: the seed.
    """
    generator = np.random.default_rng(seed)
    phases = np.asarray(phases)
    counts = np.bincount(phases)
    starts = np.cumsum(counts) - counts
    chosen = generator.integers(0, len(counts), (RESAMPLES, len(counts)))[:, phases]
    within = generator.random((RESAMPLES, len(phases))) * counts[chosen]
    return starts[chosen] + within.astype(np.intp)


def interval(values: Any, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of values (n,)."""
    values = np.asarray(values, np.float64)
    picks = draws(np.zeros(len(values), np.intp), seed)
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
    """Whether a phase has enough rounds of times (model, round).

    With ``runs`` that many. Otherwise at most ``seconds`` and 400 rounds; before that, when all
    intervals are narrow and there are 10 rounds, or once a second has passed and there are 10.
    """
    rounds = wall.shape[1]
    if runs is not None:
        return bool(rounds >= runs)
    if rounds >= MOST or (rounds >= FEWEST and elapsed_s >= seconds):
        return True
    if rounds < ENOUGH or rounds % ENOUGH:
        return False
    return elapsed_s >= SETTLED_S or all(is_narrow(own) for own in wall)


def measured(
    opened: Callable[[Sequence[int]], Sequence[Callable[[], Any]]],
    count: int,
    runs: int | None = None,
    seconds: float = 60.0,
    warm_up: int = 3,
    phases: int = PHASES,
    tell: Callable[[int], Any] | None = None,
    enough: Callable[[Any, Any, Any], bool] | None = None,
) -> tuple[Any, Any, Any, bool]:
    """Time models in turn, each with several sessions one after another.

    Args:
        opened: makes the calls to time, one a model; is told in which order to create them.
        count: how many models there are.
        runs: rounds in all; where absent, as many as ``is_done`` wants in each phase.
        seconds: the longest that the rounds may take, where ``runs`` is absent.
        warm_up: see ``interleaved``.
        phases: how many sessions of each model.
        tell: is told the number of each round.
        enough: is asked after each phase, with what is returned, whether it was the last.

    Returns:
        wall and CPU milliseconds (model, round), the phase of each round (round,), and whether it
        was interrupted before the end.
    """
    phases = phases if runs is None else max(1, min(phases, runs // 2))
    told, stopped = 0, False
    found: list[tuple[Any, Any, Any]] = []
    for phase in range(phases):
        own = None if runs is None else (runs + phase) // phases
        calls = None  # the sessions of the last phase go before new ones come
        try:
            calls = opened(order(phase, count))
            wall, cpu, stopped = interleaved(
                calls,
                own,
                seconds / phases,
                warm_up,
                None if tell is None else _after(told, tell),
            )
        except KeyboardInterrupt:
            if not found:
                raise
            stopped = True
            break
        told += wall.shape[1]
        found.append((wall, cpu, np.full(wall.shape[1], phase)))
        if stopped or (enough is not None and enough(*_joined(found))):
            break
    return (*_joined(found), stopped)


def _joined(found: Sequence[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Wall and CPU times of several phases, and the phase of each round."""
    walls, cpus, numbers = zip(*found)  # noqa: B905  (Python 3.8 has no strict)
    return np.concatenate(walls, axis=1), np.concatenate(cpus, axis=1), np.concatenate(numbers)


def _after(told: int, tell: Callable[[int], Any]) -> Callable[[int], Any]:
    """Tells the rounds of a phase with those before it counted."""
    return lambda turn: tell(told + turn)


def interleaved(
    calls: Sequence[Callable[[], Any]],
    runs: int | None = None,
    seconds: float = 12.0,
    warm_up: int = 3,
    tell: Callable[[int], Any] | None = None,
) -> tuple[Any, Any, bool]:
    """Time calls in turn: A B, B A, A B ... (see ``order``).

    Args:
        calls: what is timed.
        runs: rounds; see ``is_done`` where absent.
        seconds: the longest that it may take, where ``runs`` is absent; warming up is left out,
            and takes no longer than that.
        warm_up: rounds before that at least; more until two windows agree, for 10 s at most.
        tell: is told the number of each round; may raise KeyboardInterrupt.

    Returns:
        wall and CPU milliseconds (call, round), and whether it was interrupted before the end;
        the rounds before the interruption are kept.
    """
    wall: list[list[float]] = [[] for _ in calls]
    cpu: list[list[float]] = [[] for _ in calls]
    if warm_up:
        _warm_up(calls, warm_up, WARM_UP_S if runs is not None else min(WARM_UP_S, seconds))
    start, stopped, turn = time.perf_counter(), False, 0
    try:
        # What happens between two rounds (the check below, above all) leaves caches cold for the
        # call that comes next: each call comes first equally often.
        while (turn % ENOUGH and runs is None and time.perf_counter() - start < seconds) or (
            not is_done(_even(wall), time.perf_counter() - start, runs, seconds)
        ):
            for position in order(turn, len(calls)):
                own_wall, own_cpu = timed(calls[position])
                wall[position].append(own_wall)
                cpu[position].append(own_cpu)
            turn += 1
            if tell is not None:
                tell(turn)
    except KeyboardInterrupt:
        if not min(map(len, wall)):
            raise
        stopped = True
    return _even(wall), _even(cpu), stopped


def order(turn: int, count: int) -> list[int]:
    """The order of the calls in a round: A B, B A, A B ...; A B C, B C A, C A B ..."""
    return [(turn + position) % count for position in range(count)]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU milliseconds of a call; CPU time is that of all threads of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def _even(times: Sequence[Sequence[float]]) -> Any:
    """Times (call, round) of the rounds that all calls have."""
    rounds = min(map(len, times))
    return np.array([own[:rounds] for own in times], np.float64).reshape(len(times), rounds)


def _warm_up(calls: Sequence[Callable[[], Any]], least: int, seconds: float) -> None:
    start = time.perf_counter()
    seen: list[list[float]] = [[] for _ in calls]
    while time.perf_counter() - start < seconds or len(seen[0]) < least:
        for position in order(len(seen[0]), len(calls)):
            seen[position].append(timed(calls[position])[0])
        if len(seen[0]) >= least and all(map(is_stable, seen)):
            return
