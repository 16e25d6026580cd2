"""Timing: order, warming up, when it is enough, and the statistics."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import providers, runner
from onnxprune.errors import OnnxPruneError, ProviderError
from onnxprune.passes.benchmark import Timing, benchmark, timings
from onnxprune.target import Target
from tests import tiny


def made(base: float, *factors: float, noise: float = 0.05, runs: int = 200) -> list[Timing]:
    """Timings of synthetic times: a common drift, and noise of its own for each model."""
    generator = np.random.default_rng(7)
    drift = 1 + 0.5 * np.sin(np.linspace(0, 6, runs))
    wall = np.array(
        [base * f * drift * (1 + noise * generator.random(runs)) for f in (1, *factors)]
    )
    count, phases = len(wall), np.repeat(range(4), runs // 4)
    return list(timings(wall, wall / 2, phases, [1.0] * count, [{}] * count))


def test_figures_are_those_of_numpy() -> None:
    wall = np.random.default_rng(0).lognormal(0, 0.3, (3, 64))
    phases = np.repeat([0, 1], 32)
    for own, timing in zip(wall, timings(wall, wall / 2, phases, [1, 2, 3], [{}] * 3), strict=True):
        found = (timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.mean_ms, timing.min_ms)
        wanted = (*np.percentile(own, [50, 90, 99]), np.mean(own), np.min(own))
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert timing.cpu_ms == pytest.approx(np.median(own) / 2, rel=1e-12)
        assert timing.speedup == pytest.approx(np.median(wall[0]) / np.median(own), rel=1e-12)
        assert timing.times_ms == tuple(own)
        assert timing.runs == 64


def test_equal_times_are_no_difference() -> None:
    first, same, noisy = made(3.0, 1.0, 1.001)
    assert (first.speedup_low, first.speedup, first.speedup_high) == (1.0, 1.0, 1.0)
    assert not first.differs
    assert not same.differs
    assert not noisy.differs


def test_a_real_difference_is_one_in_both_directions() -> None:
    _, faster, slower = made(3.0, 0.9, 1.1)
    assert faster.differs
    assert slower.differs
    assert 1 < faster.speedup_low <= faster.speedup <= faster.speedup_high
    assert slower.speedup_low <= slower.speedup <= slower.speedup_high < 1


def test_a_common_drift_does_not_hide_a_difference() -> None:
    # The machine gets slower by half and back: far more than the 10 % between the models.
    _, faster = made(3.0, 0.9, noise=0.01)
    assert faster.high_ms / faster.low_ms > 1.05
    assert faster.speedup_high / faster.speedup_low < 1.02
    assert faster.speedup == pytest.approx(1 / 0.9, rel=0.01)


def test_the_interval_narrows_with_the_runs() -> None:
    def width(runs: int) -> float:
        values = np.random.default_rng(1).normal(10, 1, runs)
        low, high = runner.interval(values)
        assert low <= np.median(values) <= high
        return high - low

    assert width(1600) < width(400) < width(25)
    assert runner.interval([2.0] * 5) == (2.0, 2.0)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        low, high = runner.interval(np.random.default_rng(seed).normal(10, 1, 60), seed)
        hits += low <= 10 <= high
    assert 0.90 * 200 <= hits <= 0.99 * 200


def calls(log: list[str], names: str = "AB") -> list[Callable[[], None]]:
    def call(name: str) -> Callable[[], None]:
        return lambda: log.append(name)

    return [call(name) for name in names]


def test_runs_are_interleaved_and_each_is_first_equally_often() -> None:
    log: list[str] = []
    wall, cpu, stopped = runner.interleaved(calls(log, "ABC"), runs=4, warm_up=0)
    assert "".join(log) == "ABCBCACABABC"
    assert wall.shape == cpu.shape == (3, 4)
    assert not stopped


def test_times_go_to_the_call_that_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"A": 1.0, "B": 2.0, "C": 3.0}
    log: list[str] = []

    def timed(call: Callable[[], None]) -> tuple[float, float]:
        call()
        return took[log[-1]], took[log[-1]] / 2

    monkeypatch.setattr(runner, "timed", timed)
    wall, cpu, _ = runner.interleaved(calls(log, "ABC"), runs=6, warm_up=3)
    np.testing.assert_array_equal(wall, np.repeat([[1.0], [2.0], [3.0]], 6, axis=1))
    np.testing.assert_array_equal(cpu, wall / 2)


def test_every_phase_has_sessions_of_its_own() -> None:
    log: list[str] = []
    orders: list[list[int]] = []
    told: list[int] = []

    def opened(order: Sequence[int]) -> list[Callable[[], None]]:
        orders.append(list(order))
        return calls(log)

    wall, cpu, phases, stopped = runner.measured(opened, 2, 12, warm_up=0, tell=told.append)
    assert orders == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]]
    assert wall.shape == cpu.shape == (2, 12)
    assert phases.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert told == list(range(1, 13))
    assert not stopped


@pytest.mark.parametrize(("runs", "phases"), [(1, 1), (3, 1), (4, 2), (50, 5)])
def test_few_runs_have_few_phases(runs: int, phases: int) -> None:
    found = runner.measured(lambda _: calls([]), 2, runs, warm_up=0)[2]
    assert len(found) == runs
    assert set(found) == set(range(phases))


def test_an_interruption_keeps_the_phases_before_it() -> None:
    log: list[str] = []

    def opened(order: Sequence[int]) -> list[Callable[[], None]]:
        if order[0]:
            raise KeyboardInterrupt
        return calls(log)

    wall, _, phases, stopped = runner.measured(opened, 2, 10, warm_up=0)
    assert stopped
    assert wall.shape == (2, 2)
    assert phases.tolist() == [0, 0]


def test_enough_is_asked_after_each_session_and_ends_it() -> None:
    seen: list[tuple[int, int, int]] = []

    def enough(wall: Any, cpu: Any, phases: Any) -> bool:
        seen.append((wall.shape[1], cpu.shape[1], int(phases[-1])))
        return len(seen) == 2

    _, _, phases, stopped = runner.measured(lambda _: calls([]), 2, 20, warm_up=0, enough=enough)
    assert seen == [(4, 4, 0), (8, 8, 1)]
    assert list(phases) == [0] * 4 + [1] * 4
    assert not stopped


def test_warming_up_takes_no_longer_than_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 1 s in each call, and times that never settle."""
    now = [0.0]
    log: list[int] = []

    def call() -> None:
        log.append(len(log))
        now[0] += 1 + len(log) % 2

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    runner.interleaved([call], seconds=4.0, warm_up=2)
    wall, _, _ = runner.interleaved([call], seconds=0.0, warm_up=2)
    assert wall.shape == (1, runner.FEWEST)
    assert len(log) < 4 + 4 + 2 + runner.FEWEST


def test_sessions_that_differ_are_no_difference() -> None:
    # All runs of one session share where its memory lies: 50 runs of 5 sessions are not 50 draws.
    generator = np.random.default_rng(3)
    phases = np.repeat(range(5), 20)
    naive = honest = 0
    for _ in range(20):
        session = 1 + 0.01 * generator.standard_normal((2, 5))
        wall = session[:, phases] * (1 + 0.01 * generator.random((2, 100)))
        naive += timings(wall, wall, np.zeros(100, int), [1, 1], [{}] * 2)[1].differs
        honest += timings(wall, wall, phases, [1, 1], [{}] * 2)[1].differs
    assert naive > 10
    assert honest < 5


def test_resamples_are_rounds_of_the_drawn_phases() -> None:
    phases = np.array([0, 0, 0, 1, 2, 2])
    picks = runner.draws(phases)
    assert picks.shape == (runner.RESAMPLES, 6)
    assert set(picks.ravel()) == set(range(6))
    drawn = phases[picks]
    for slot in (slice(0, 3), slice(4, 6)):  # the rounds of one phase come from one phase
        assert (drawn[:, slot] == drawn[:, slot][:, :1]).all()


def test_warming_up_is_interleaved_and_not_counted() -> None:
    log: list[str] = []
    wall, _, _ = runner.interleaved(calls(log), runs=2, warm_up=3)
    assert "".join(log[:-4]) == ("ABBA" * len(log))[: len(log) - 4]
    assert len(log) // 2 >= 3 + 2
    assert wall.shape == (2, 2)


def test_warming_up_goes_on_until_times_are_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_to_start = itertools.chain([90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 30.0, 20.0, 10.0],
                                    itertools.repeat(1.0))  # fmt: skip
    monkeypatch.setattr(runner, "timed", lambda call: (next(slow_to_start), call() or 0.0))
    log: list[str] = []
    runner.interleaved(calls(log, "A"), runs=0, warm_up=3)
    assert len(log) == 17  # the earlier window is then 20, 10, 1, 1, 1: its median is 1


def test_stable_means_two_equal_windows() -> None:
    assert not runner.is_stable([1.0] * (2 * runner.WINDOW - 1))
    assert runner.is_stable([9.0, *[1.0] * (2 * runner.WINDOW)])
    assert not runner.is_stable([1.2] * runner.WINDOW + [1.0] * runner.WINDOW)


def test_an_interruption_keeps_whole_rounds() -> None:
    log: list[str] = []

    def second() -> None:
        log.append("B")
        if len(log) == 7:
            raise KeyboardInterrupt

    first = calls(log, "A")[0]
    wall, cpu, stopped = runner.interleaved([first, second], runs=50, warm_up=0)
    assert stopped
    assert wall.shape == cpu.shape == (2, 3)


def test_an_interruption_before_the_first_round_is_passed_on() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.interleaved([fail], runs=5, warm_up=0)


NARROW, WIDE = np.ones((2, 20)), np.tile([1.0, 2.0], (2, 10))


@pytest.mark.parametrize(
    ("times", "elapsed_s", "runs", "done"),
    [
        (NARROW, 0.0, None, True),  # enough, and narrow
        (NARROW[:, :9], 5.0, None, False),  # narrow, but few
        (WIDE, 0.5, None, False),  # enough, but wide
        (WIDE, 1.5, None, True),  # enough, wide, and a second over
        (WIDE[:, :9], 13.0, None, True),  # the time is up
        (WIDE[:, :1], 13.0, None, False),  # but never fewer than 2
        (np.tile(WIDE, 20), 0.5, None, True),  # never more than 400
        (NARROW, 0.0, 20, True),
        (NARROW, 99.0, 21, False),
    ],
)
def test_when_it_is_enough(
    times: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    elapsed_s: float,
    runs: int | None,
    done: bool,
) -> None:
    assert runner.is_done(times, elapsed_s, runs, 12.0) == done


def test_models_are_timed(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    told: list[int] = []
    proto, path = (tiny.net(), None), (tiny.save(tmp_path / "net.onnx"), None)
    found = benchmark([proto, path], {"x": x, "unused": x}, runs=5, warm_up=1, tell=told.append)
    assert told == [1, 2, 3, 4, 5]
    for timing in found:
        assert timing.runs == len(timing.times_ms) == len(timing.cpu_times_ms) == 5
        assert 0 < timing.min_ms <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.load_ms > 0
        assert timing.shares == {"CPUExecutionProvider": 1.0}
        assert not timing.interrupted


def test_an_input_that_is_missing() -> None:
    with pytest.raises(OnnxPruneError, match="the inputs have no 'x', which the model wants"):
        benchmark([(tiny.net(), None)], {}, runs=1)


def test_a_simulated_device_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "simulated", lambda _: True)
    with pytest.raises(ProviderError, match=r"'qnn' only simulates its device.*mean nothing"):
        benchmark([(tiny.net(), None)], {}, target=Target("qnn"))
