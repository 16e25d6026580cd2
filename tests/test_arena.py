"""The memory for activations, as ONNX Runtime says: planted profiles, and one real run."""

from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.arena import IN_USE, _read, arena
from onnxprune.errors import BudgetError, RunError
from tests import tiny
from tests.graphs import model, node, weight


def profile(*runs: list[int]) -> list[dict[str, Any]]:
    """Events of runs whose kernels find so much in use, one after another."""
    events: list[dict[str, Any]] = []
    for turn, own in enumerate(runs):
        start = 100 * turn
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 100})
        for k, held in enumerate(own):
            args = {IN_USE: str(held)}
            events.append({"cat": "Node", "name": "n", "ts": start + k, "dur": 1, "args": args})
    return events


def test_what_stays_is_the_weights() -> None:
    found = _read(profile([1500, 1900, 1000], [1800, 1800, 1800], [1800, 1810, 1810]))
    assert (found.peak_bytes, found.planned_bytes) == (900, 800)


def test_a_runtime_that_does_not_tell_is_refused() -> None:
    with pytest.raises(RunError, match=r"does not tell in its profile what its arena holds"):
        _read(profile([1500], [1500]))


def test_the_arena_of_a_real_run_shrinks_with_its_channels() -> None:
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    narrow, wide = (arena(tiny.net(width), None, feeds) for width in (64, 256))
    assert 3 <= wide.peak_bytes / narrow.peak_bytes <= 4.5
    assert wide.planned_bytes >= wide.peak_bytes / 2 > 0


def test_a_peak_budget_says_what_the_runtime_plans() -> None:
    _, report = onnxprune.prune(tiny.net(64), peak_bytes=0.8)
    assert any("plans" in note and "bytes for activations" in note for note in report.notes)
    _, report = onnxprune.prune(tiny.net(64), macs=0.8)
    assert not any("bytes for activations" in note for note in report.notes)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.5])
def test_what_the_runtime_plans_meets_the_budget(share: float) -> None:
    """A chain whose padded input counts, but is laid out anew by ONNX Runtime."""
    proto, feeds = tiny.chain(32, 64, 48, 64), {"x": np.ones((1, 32, 4, 4), np.float32)}
    small, report = onnxprune.prune(proto, peak_bytes=share, align=1)
    full = arena(proto, None, feeds).planned_bytes
    planned = arena(small, None, feeds).planned_bytes
    assert planned <= share * full
    by_bytes, _ = onnxprune.prune(proto, peak_bytes=share * full, align=1)
    assert arena(by_bytes, None, feeds).planned_bytes <= share * full
    assert report.after.peak_bytes < report.before.peak_bytes


def test_a_peak_that_no_choice_reaches_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"peak memory of .* can't be reached: ONNX Runtime"):
        onnxprune.prune(tiny.chain(32, 64, 48, 64), peak_bytes=0.02)


def test_without_a_plan_what_is_counted_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise RunError("it does not tell")

    monkeypatch.setattr("onnxprune.peaks.arena", silent)
    _, report = onnxprune.prune(tiny.net(64), peak_bytes=0.8)
    assert report.after.peak_bytes <= 0.8 * report.before.peak_bytes


def attention_of_computed_sizes() -> onnx.ModelProto:
    """Heads that are split at sizes of the file, and joined at those that a Shape gives."""
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("Shape", "h", "sizes"),
            node("Reshape", "h split", "r"),
            node("Relu", "r", "a"),
            node("Reshape", "a sizes", "j"),
            node("MatMul", "j w2", "y"),
        ],
        {"x": ["n", "s", 16]},
        {"y": ["n", "s", 4]},
        {
            "w1": weight(1, 16, 64),
            "w2": weight(2, 64, 4),
            "split": np.array([0, 0, 4, 16]),
        },
    )


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_bytes_are_those_of_the_file(share: float) -> None:
    """Sizes that are computed at run time take some nodes more, which no count of weights tells."""
    proto = attention_of_computed_sizes()
    small, report = onnxprune.prune(proto, size_bytes=share)
    assert len(small.graph.node) > len(proto.graph.node)
    assert report.after.size_bytes == small.ByteSize() <= share * report.before.size_bytes


def test_bytes_that_no_file_meets() -> None:
    with pytest.raises(BudgetError, match="--bytes"):
        onnxprune.prune(attention_of_computed_sizes(), size_bytes=0.01)
