"""What was made on the way: layers before and after, and the tries of a search."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import fronts, profile, speed, tuning
from onnxprune.axes import Mask
from onnxprune.choosing import analyse
from onnxprune.cost import cost_model
from onnxprune.judging import Data, Judge
from onnxprune.latency import Chain, Latency
from onnxprune.passes.shrink import shrink
from onnxprune.target import Target
from onnxprune.trace import Kernel
from onnxprune.tuning import Tuned
from tests import tiny
from tests.test_tuning import timing


def samples() -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)}


def halved() -> tuple[Any, dict[int, Mask], onnx.ModelProto]:
    coupling = analyse(tiny.net(), {})
    keep = {g.factor: np.arange(g.size) < g.size // 2 for g in coupling.groups}
    return coupling, keep, shrink(coupling, keep)


def test_layers_hold_every_multiply_accumulate_before_and_after() -> None:
    coupling, _, small = halved()
    feeds = {"x": samples()["x"][:1]}
    found = fronts.layer_changes(coupling, (small, None), feeds, Target(), {})
    assert sum(own.before_macs for own in found) == cost_model(coupling).cost({}).macs
    assert sum(own.after_macs for own in found) == onnxprune.inspect(small).macs
    assert all(own.before_ms > 0 or own.after_ms > 0 for own in found)
    named = {group for own in found for group in own.groups}
    assert named == {group.name for group in coupling.groups}


def test_without_a_roofline_nothing_bounds_a_layer() -> None:
    coupling, _, _ = halved()
    kernel = Kernel("k", "Conv", "CPU", (), 1.0, 100)
    (bare,) = profile.layers_of(coupling.model.proto, [kernel], {}, {})
    assert (bare.bound, bare.efficiency) == (None, None)
    (bound,) = profile.layers_of(coupling.model.proto, [kernel], {}, {}, profile.Roofline(1e9, 1e9))
    assert bound.bound == "memory"


def test_tries_of_a_latency_are_judged_as_they_were_measured() -> None:
    coupling, keep, small = halved()
    pace = speed.pace_of(timing(10, 10), timing(4, 10), Target())
    tuned = [
        Tuned({}, (), pace, Latency(()), 1.0, 1.0),
        Tuned(keep, (), pace, Latency(()), 0.4, 0.4),
    ]
    judge = Judge(coupling.model, Data(calibration=samples()))
    full, half = fronts.tuned_tries(coupling, cost_model(coupling), tuned, judge)
    assert (full.macs, full.fidelity) == (1.0, 1.0)
    assert half.macs == onnxprune.inspect(small).macs / onnxprune.inspect(tiny.net()).macs
    assert half.fidelity == min(row.value for row in judge.judge(small).fidelity)
    assert half.latency == pytest.approx(0.4)
    assert half.latency_ms == 4
    assert not any(own.recovered or own.chosen or own.metric for own in (full, half))
    (bare, _) = fronts.tuned_tries(
        coupling, cost_model(coupling), tuned, Judge(coupling.model, Data())
    )
    assert bare.fidelity is None


def test_a_search_for_the_smallest_model_reports_all_that_it_tried() -> None:
    _, report = onnxprune.prune(tiny.net(), calibration=samples(), min_fidelity=0.7, align=1)
    assert len(report.tries) > 2
    assert [own.chosen for own in report.tries] == [False] * (len(report.tries) - 1) + [True]
    assert report.tries[-1] == fronts.try_of(report, True)
    values = [own.fidelity for own in report.tries if own.fidelity is not None]
    assert min(values) < 0.7 <= max(values)  # what a gate refused is there, too
    assert report.tries[-1].macs == min(
        own.macs for own in report.tries if (own.fidelity or 0) >= 0.7
    )
    assert report.to_dict()["tries"][-1]["chosen"] is True


def test_a_latency_brings_layers_and_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which the first choice is off, so that there are two."""
    turns: list[int] = []

    def timed(models: Any, feeds: Any, target: Any, share: Any) -> Any:
        turns.append(len(turns))
        left = 0.7 if len(turns) == 1 else 0.5
        return timing(10, 10), timing(10 * left, 10)

    monkeypatch.setattr(
        "onnxprune.choosing.tune",
        lambda tuner, goal: tuning.tune(replace(tuner, timer=timed), goal),
    )
    priced = {"Conv": 1e-6}
    monkeypatch.setattr(
        "onnxprune.choosing.measured_latency",
        lambda coupling, cost, *rest: Latency(tuple(Chain((k,), priced) for k in cost.work.macs)),
    )
    _, report = onnxprune.prune(
        tiny.net(), latency="0.5x", align=1, calibration=samples(), recover=False
    )
    assert len(report.tries) == len(turns) == 2
    assert [own.chosen for own in report.tries] == [False, True]
    assert [own.latency for own in report.tries] == pytest.approx([0.7, 0.5])
    assert all(own.fidelity is not None for own in report.tries)
    assert sum(row.before_macs for row in report.layers) == report.before.macs
    assert sum(row.after_macs for row in report.layers) == report.after.macs


def test_what_came_at_once_has_no_tries_and_no_layers() -> None:
    _, report = onnxprune.prune(tiny.net(), ratio=0.5)
    assert (report.tries, report.layers) == ((), ())
