"""Pruning to a latency, with planted clocks: it is met, corrected, or refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import finishing, mobile, speed, tuning
from onnxprune.axes import Mask, Values
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import BudgetError, GateError
from onnxprune.latency import Chain, Latency, with_latency
from onnxprune.model import Array
from onnxprune.passes.benchmark import Timing
from onnxprune.passes.select import Budget, Options, select
from onnxprune.speed import Goal, Speed, goal
from onnxprune.target import Target
from onnxprune.tuning import Tuned, Tuner, tune
from tests import graphs, tiny
from tests.zoo import fill

PRICE = 1e-8
BOUND = "another budget is tighter, or no choice comes nearer"


def timing(ms: float, base: float, spread: float = 0.001, **more: Any) -> Timing:
    ratio = base / ms
    low, high = ratio * (1 - spread), ratio * (1 + spread)
    return Timing(ms, ms, ms, ms, ms, ms, ms, ms, 50, ratio, low, high, **more)


def zoo() -> tuple[Coupling, CostModel, Latency]:
    """A network, its costs, and a model of its latency that knows of MACs alone."""
    coupling = graphs.coupled(fill.load("torchvision/mobilenet_v2"))
    costs = cost_model(coupling)
    prices = dict.fromkeys(("Conv", "grouped", "Gemm"), PRICE)
    latency = Latency(tuple(Chain((key,), prices) for key in costs.work.macs))
    return coupling, with_latency(costs, latency), latency


class Clock:
    """Times models by what they cost in truth: macs, elements, and a part that stays."""

    def __init__(self, costs: CostModel, rest: float = 0.0) -> None:
        self.costs, self.rest, self.calls = costs, rest, 0

    def ms(self, proto: onnx.ModelProto) -> float:
        costs = cost_model(graphs.coupled(proto))
        own = float(costs.effort @ costs.sizes.at(costs.sizes.full))
        whole = float(self.costs.effort @ self.costs.sizes.at(self.costs.sizes.full))
        return own / whole * 10 + self.rest

    def __call__(
        self,
        models: Sequence[tuple[onnx.ModelProto, Path | None]],
        feeds: Mapping[str, Array],
        target: Target,
        share: float | None = None,
    ) -> tuple[Timing, ...]:
        self.calls += 1
        found = [self.ms(proto) for proto, _ in models]
        return tuple(timing(ms, found[0]) for ms in found)


def tuner(clock: Clock | None = None, rest: float = 0.0, **budget: float) -> Tuner:
    coupling, costs, latency = zoo()
    generator = np.random.default_rng(0)
    scores: dict[int, Values] = {
        g.factor: generator.lognormal(0, 0.3, g.size) for g in coupling.groups
    }

    def choose(share: float) -> tuple[dict[int, Mask], tuple[str, ...]]:
        found = select(coupling, scores, Budget(latency_ms=share, **budget), Options(), costs)
        return found.keep, found.limits

    return Tuner(coupling, costs, latency, choose, {}, Target(), clock or Clock(costs, rest))


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_latency_is_met_within_5_percent_although_the_model_is_wrong(share: float) -> None:
    own = tuner(rest=1.0)
    found = tune(own, goal(f"{share}x"))
    pace = found.pace
    assert abs(1 / pace.speedup / share - 1) <= 0.05
    assert pace.asked == f"{share}x"
    assert pace.share == share
    assert 1 <= pace.tries <= tuning.TRIES
    assert pace.predicted_ms is not None
    assert found.keep


def test_two_measurements_make_a_line() -> None:
    assert tuning._corrected([(0.5, 0.6)], 0.5) == pytest.approx(0.5 * 0.5 / 0.6)
    # left = 0.3 + 0.6 * limit: nothing proportional would find it at once
    points = [(0.5, 0.6), (0.4, 0.54)]
    assert tuning._corrected(points, 0.5) == pytest.approx((0.5 - 0.3) / 0.6)
    turned = [(0.5, 0.6), (0.4, 0.61)]  # noise: less took longer
    assert tuning._corrected(turned, 0.5) == pytest.approx(0.5 * 0.5 / 0.6)
    assert tuning._corrected([(0.5, 5.0)], 0.5) == 0.25
    flat = [(0.5, 0.95), (0.25, 0.925)]  # nine tenths stay: nothing will do, and that is told soon
    assert tuning._corrected(flat, 0.5) == pytest.approx(0.25 * tuning.LOWEST)
    assert tuning._corrected([(0.9, 0.1)], 0.5) == 1.0


def test_every_try_is_kept_and_the_nearest_is_taken() -> None:
    own = tuner(rest=4.0)
    found = tune(own, goal("0.5x"))
    assert len(found.tried) > 1  # the model knows nothing of the rest
    assert found.pace.tries == len(found.tried)
    assert found.left in [one.left for one in found.tried]
    assert abs(found.miss) == min(abs(one.miss) for one in found.tried)
    assert abs(found.miss) <= tuning.CLOSE
    assert own.timer.calls == len(found.tried)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("left", "kept"), [(0.6, 15), (0.4, 17)])
def test_a_choice_that_was_measured_is_not_measured_again(left: float, kept: int) -> None:
    own = tuner()
    group = own.coupling.groups[0]

    def choose(share: float) -> tuple[dict[int, Mask], tuple[str, ...]]:
        return {group.factor: np.arange(group.size) < round(share * 32)}, ()

    pace = replace(speed.pace_of(timing(1, 1), timing(1, 1), Target()), share=0.5)
    same = Tuned(*choose(0.5), pace, own.latency, left, 0.5)
    found = tuning._another(replace(own, choose=choose), 0.5, [same])
    assert found is not None
    assert found[0][group.factor].sum() == kept  # the next in the direction that is wanted
    stuck = replace(own, choose=lambda share: choose(0.5))
    assert tuning._another(stuck, 0.5, [same]) is None


def test_milliseconds_are_a_share_of_what_was_measured() -> None:
    found = tune(tuner(rest=1.0), goal("6.6ms"))
    assert found.pace.share == pytest.approx(0.6)
    assert found.pace.after_ms == pytest.approx(6.6, rel=0.05)


def test_another_budget_may_be_tighter() -> None:
    found = tune(tuner(macs=0.3), goal(0.9))
    assert found.left < 0.8
    assert found.pace.tries == 1
    assert found.notes[-1].endswith(BOUND)


def test_what_can_not_be_reached_is_said_with_what_can() -> None:
    with pytest.raises(
        BudgetError, match=r"--latency 0.3 was not reached: 0\.\d+x of the original"
    ):
        tune(tuner(rest=20.0), goal(0.3))


def test_the_least_that_can_be_chosen_is_measured_before_it_is_said() -> None:
    """Nine tenths of the time stay: the search would ask for less than there is, at once."""
    own = tuner(rest=90.0)
    with pytest.raises(BudgetError, match=r"not reached: 0\.\d+x") as told:
        tune(own, goal(0.5))
    counts = {g.factor: 1 for g in own.coupling.groups}
    least = float(str(told.value).partition("reached: ")[2].partition("x")[0])
    floor = own.cost.cost(counts).latency_ms / own.predicted({})
    assert least < 0.9 + 0.1 * 0.3  # of the tenth that can go, far more than half has gone
    assert least > 0.9 + 0.1 * floor


def test_what_the_fit_rules_out_is_measured_and_said_in_the_words_of_the_user() -> None:
    with pytest.raises(
        BudgetError,
        match=r"^--latency 0.01x was not reached: 0\.\d+x .* is the least that was measured; by "
        "the fitted latency at most",
    ):
        tune(tuner(), goal("0.01x"))
    with pytest.raises(BudgetError, match=r"^--macs 0.0001: "):
        tune(tuner(macs=0.0001), goal("0.5x"))


def test_a_busy_machine_is_said() -> None:
    own = tuner(rest=1.0)
    clock = own.timer

    def noisy(*given: Any) -> tuple[Timing, ...]:
        before, after = clock(*given)
        low = [(t.p50_ms, t.p50_ms) for t in (before, after)]
        slow = replace(after, speedup=after.speedup * 0.8, speedup_low=0.1, speedup_high=9.0)
        return replace(before, cpu_times_ms=low[0]), replace(slow, cpu_times_ms=low[1])

    found = tune(replace(own, timer=noisy), goal(0.5))
    assert abs(found.left / 0.5 - 1) <= 0.05
    told = found.notes[-1]
    assert told.startswith(f"a busy machine: by the processor's time {found.left:.3g}x of the")
    assert told.endswith(f"by the median run {1 / found.pace.speedup:.3g}x")


def test_no_choice_within_5_percent_writes_nothing() -> None:
    coupling, costs, latency = zoo()
    keep = {coupling.groups[0].factor: np.arange(coupling.groups[0].size) < 16}
    own = Tuner(coupling, costs, latency, lambda share: (keep, ()), {}, Target(), Clock(costs))
    with pytest.raises(GateError, match=r"--latency 0.5 was not reached: .* so nothing is written"):
        tune(own, goal(0.5))


def test_steps_that_are_too_coarse_give_the_next_faster_choice_and_a_note() -> None:
    coupling, costs, latency = zoo()
    small = {g.factor: np.arange(g.size) < max(1, g.size // 4) for g in coupling.groups}
    own = Tuner(coupling, costs, latency, lambda share: (small, ()), {}, Target(), Clock(costs))
    found = tune(own, goal(0.9))
    assert found.left < 0.9
    assert found.notes[-1].endswith("x of the latency remains of 0.9: " + BOUND)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, Goal(0.5, None, "0.5")),
        ("0.5x", Goal(0.5, None, "0.5x")),
        ("1.2X", Goal(1.2, None, "1.2X")),
        (8, Goal(None, 8.0, "8")),
        ("8ms", Goal(None, 8.0, "8ms")),
        ("0.8ms", Goal(None, 0.8, "0.8ms")),
        ("1.5 s", Goal(None, 1500.0, "1.5 s")),
    ],
)
def test_goals_are_shares_or_times(given: float | str, expected: Goal) -> None:
    found = goal(given)
    assert (found.share, found.text) == (expected.share, expected.text)
    assert found.ms == (pytest.approx(expected.ms) if expected.ms else None)


@pytest.mark.parametrize("text", ["fast", "-1", "0", "0x", "", "8 minutes"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match=r"can't be read: give a share such as 0\.5"):
        goal(text)


def test_a_slower_result_is_refused_unless_forced() -> None:
    slower = speed.pace_of(timing(10, 10), timing(11, 10), Target())
    with pytest.raises(GateError, match=r"slower than the original .* nothing is written"):
        speed.must_be_faster(slower, Speed())
    speed.must_be_faster(slower, Speed(force=True))
    unsure = speed.pace_of(timing(10, 10), timing(10.1, 10, spread=0.05), Target())
    speed.must_be_faster(unsure, Speed())  # no difference is no loss
    with pytest.raises(GateError, match=r"0.99x as fast .* below --min-speedup 1.5"):
        speed.must_be_faster(unsure, Speed(min_speedup=1.5))
    speed.must_be_faster(
        speed.pace_of(timing(10, 10), timing(6, 10), Target()), Speed(min_speedup=1.5)
    )


def test_a_speed_up_that_may_be_too_little_is_said() -> None:
    close = speed.pace_of(timing(10, 10), timing(6, 10, spread=0.1), Target())
    (note,) = speed.unsure(close, Speed(min_speedup=1.6))
    assert note.startswith("the speed-up is measured to be 1.67x, and may be below --min-speedup 1")
    assert not speed.unsure(close, Speed(min_speedup=1.2))
    slower = speed.pace_of(timing(10, 10), timing(11, 10), Target())
    (note,) = speed.unsure(slower, Speed(force=True))
    assert note == "taken by --force: 0.909x as fast, and 1x is asked for"
    (note,) = speed.unsure(close, Speed(min_speedup=2, force=True))
    assert note == "taken by --force: 1.67x as fast, and 2x is asked for"
    assert not speed.unsure(close, Speed())


def test_scattered_times_are_judged_by_their_low_quartiles() -> None:
    quiet = np.concatenate([np.full(30, 10.0), np.full(20, 30.0)])
    before = timing(30.0, 30.0, times_ms=tuple(quiet), cpu_times_ms=(8.0, 8.0))
    after = timing(6.0, 30.0, spread=0.5, times_ms=tuple(quiet / 2), cpu_times_ms=(2.0, 9.0, 2.0))
    assert speed.left_of(before, after, Target(threads=2)) == pytest.approx(0.5)
    assert speed.left_of(before, after, Target()) == pytest.approx(0.25)  # by CPU time
    sure = replace(after, speedup_low=4.99, speedup_high=5.01)
    assert speed.left_of(before, sure, Target(threads=2)) == pytest.approx(0.2)
    assert speed.left_of(before, sure, Target()) == pytest.approx(0.25)
    bare = replace(after, cpu_times_ms=())
    assert speed.left_of(before, bare, Target()) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("left", "spread", "sessions", "told"),
    [
        (0.5, 0.010, 3, True),  # narrow
        (0.5, 0.020, 5, False),
        (0.5, 0.010, 2, False),  # two sessions say too little of how sessions differ
        (0.6, 0.100, 2, True),  # far off: 0.545 to 0.667 of 0.5
        (0.4, 0.100, 2, True),
        (0.55, 0.100, 3, False),  # 0.5 to 0.61: it may be met
    ],
)
def test_measuring_ends_when_it_tells(
    left: float, spread: float, sessions: int, told: bool
) -> None:
    assert speed.is_told(timing(left, 1, spread=spread), 0.5, sessions) is told


def test_without_a_share_only_a_narrow_interval_tells() -> None:
    assert not speed.is_told(timing(0.1, 1, spread=0.05), None, 5)
    assert speed.is_told(timing(0.1, 1, spread=0.01), None, 3)


@pytest.mark.parametrize(("threads", "sessions"), [(1, 3), (2, 5)])
def test_one_thread_on_the_cpu_is_judged_by_its_own_time(
    monkeypatch: pytest.MonkeyPatch, threads: int, sessions: int
) -> None:
    """Wall times that other processes scatter do not make it go on."""
    generator = np.random.default_rng(0)
    asked: list[int] = []

    def benchmark(*given: Any, enough: Any, **more: Any) -> tuple[Timing, ...]:
        for count in range(1, 6):
            phases = np.repeat(range(count), 10)
            cpu = np.outer([2.0, 1.0], np.ones(10 * count))
            wall = cpu * generator.lognormal(0, 1, cpu.shape)
            asked.append(count)
            if enough(wall, cpu, phases):
                break
        return ()

    monkeypatch.setattr(speed, "benchmark", benchmark)
    speed.timed([], {}, Target(threads=threads), 0.5)
    assert asked[-1] == sessions


def test_prune_writes_nothing_that_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        finishing, "measured", lambda *a: speed.pace_of(timing(1, 1), timing(2, 1), Target())
    )
    output = tmp_path / "small.onnx"
    with pytest.raises(GateError, match="slower than the original"):
        onnxprune.prune(tiny.net(), ratio=0.5, min_speedup=1.1, output=output)
    assert not output.exists()
    _, report = onnxprune.prune(tiny.net(), ratio=0.5, min_speedup=1.1, force=True, output=output)
    assert output.exists()
    assert report.pace is not None
    assert report.to_dict()["pace"]["speedup"] == 0.5
    assert report.settings["min_speedup"] == 1.1
    assert mobile.UNLAID not in report.notes
    portable = tmp_path / "small.ort"
    _, told = onnxprune.prune(tiny.net(), ratio=0.5, min_speedup=1.1, force=True, output=portable)
    assert mobile.UNLAID in told.notes  # the .onnx was measured
    assert onnxprune.bench(tiny.net(), portable, runs=4, memory=False).rows[1].timing is not None
