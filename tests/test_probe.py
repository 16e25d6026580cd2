"""Probes: planted staircases are found, and kept in the user's cache for what they hold for."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import pipeline, speed
from onnxprune.alignment import STAIRS, Stairs, alignment
from onnxprune.budget import Options
from onnxprune.errors import OnnxPruneError, ProviderError
from onnxprune.passes import probe as passes_probe
from onnxprune.passes.probe import COUNTS, KINDS, model_of, probe
from onnxprune.report import steps
from onnxprune.runtime import run, session
from onnxprune.speed import Speed, goal
from onnxprune.staircase import GROUPED, PRODUCT, Probe, cached, fitted, key_of, place, store
from onnxprune.target import Target
from tests import graphs

NOISE = 0.01  # relative, of planted times


def planted(block: int, part: int = 1, cliff: float = 0.0, seed: int = 0) -> list[float]:
    """Times that grow in steps, with a penalty off the parts, and noise."""
    noise = np.random.default_rng(seed).normal(1, NOISE, len(COUNTS))
    times = [2.0 + 0.1 * block * math.ceil(n / block) for n in COUNTS]
    return [
        t * (1 + cliff * (n % part != 0)) * e for n, t, e in zip(COUNTS, times, noise, strict=True)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("block", "part", "cliff"),
    [
        (16, 4, 0.3),
        (8, 4, 0.5),
        (16, 1, 0.0),
        (1, 1, 0.0),
        (4, 4, 6.0),
        (32, 8, 0.3),
        (16, 16, 0.7),
    ],
)
def test_a_planted_staircase_is_found(block: int, part: int, cliff: float, seed: int) -> None:
    found = fitted(COUNTS, planted(block, part, cliff, seed))
    assert (found.block, found.part) == (block, part)
    assert found.cliff == pytest.approx(cliff, abs=0.05 * (1 + cliff))


def timer(**blocks: tuple[int, int, float]) -> Callable[..., Sequence[float]]:
    def times(kind: str, models: Sequence[onnx.ModelProto], target: Target) -> Sequence[float]:
        assert len(models) == len(COUNTS)
        return planted(*blocks.get(kind.replace(" ", "_"), (1, 1, 0.0)))

    return times


AVX2 = timer(conv_1x1=(8, 1, 0.0), conv_3x3=(8, 4, 0.4), depthwise=(8, 4, 5.0), grouped=(8, 8, 0.6))


def test_a_probe_finds_the_stairs_of_every_kind() -> None:
    told: list[str] = []
    found = probe(Target(), timer=AVX2, tell=told.append)
    assert found.stairs == Stairs(block=8, part=4, grouped=8, product=1, wide=8)
    assert told == [f"probe {kind}" for kind in KINDS]
    assert list(found.curves) == list(KINDS)
    assert found.summary().endswith("blocks of 8, parts of 4, 8 in a group, 1 in matrix products")


def test_without_steps_every_count_is_as_good() -> None:
    coupling = graphs.coupled(onnx.load_from_string(model_of("conv 3x3", 48).SerializeToString()))
    flat = probe(Target(), timer=timer()).stairs
    assert flat == Stairs(1, 1, 1, 1, 1)
    assert alignment(coupling, "auto", flat).units.tolist() == [1]
    assert alignment(coupling, "auto").units.tolist() == [16]


def test_steps_of_matrix_products_are_kept_where_there_are_some() -> None:
    coupling = graphs.coupled(model_of(PRODUCT, 48))
    assert alignment(coupling, "auto").units.tolist() == [1]
    assert alignment(coupling, "auto", Stairs(product=16)).units.tolist() == [16]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_models_of_a_probe_run(kind: str, dtype: str) -> None:
    for count in (31, 32):
        proto = model_of(kind, count, dtype)
        onnx.checker.check_model(proto, full_check=True)
        shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
        (found,) = run(session(proto, None), {"x": np.ones(shape, dtype)}, ["y"])
        assert found.shape == tuple(shape)
    groups = {
        a.i for n in model_of(GROUPED, 8).graph.node for a in n.attribute if a.name == "group"
    }
    assert groups == {passes_probe.GROUPS}


def test_a_probe_is_kept_for_what_it_holds_for() -> None:
    assert cached(Target()) is None
    found = probe(Target(), timer=AVX2)
    path = store(found)
    assert path.parent.parts[-2:] == ("onnxprune", "probes")
    assert cached(Target()) == found
    others = [Target(threads=2), Target("openvino"), Target(options={"a": "b"})]
    assert [cached(other) for other in others] == [None, None, None]
    assert cached(Target(), "float16") is None
    keys = [key_of(own, "float32") for own in (Target(), *others)]
    assert len({str(place(key)) for key in keys}) == 4


def test_another_runtime_wants_another_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    store(probe(Target(), timer=AVX2))
    monkeypatch.setattr("onnxruntime.__version__", "9.9.9")
    assert cached(Target()) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"curves": {"a": 1}}', "\x00"])
def test_a_broken_cache_is_no_probe(text: str) -> None:
    path = place(key_of(Target(), "float32"))
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    assert cached(Target()) is None


def test_align_auto_goes_by_a_kept_probe_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Target] = []

    def measure(target: Target) -> Probe:
        made.append(target)
        return probe(target, timer=AVX2)

    monkeypatch.setattr(speed, "probe", measure)
    run_ = pipeline.Run(None, {})
    assert speed.learned(Speed(), Options(), run_.step) == (STAIRS, ())
    assert made == []  # without a latency nothing is measured
    asked = Speed(goal(0.5))
    stairs, notes = speed.learned(asked, Options(), run_.step)
    assert stairs.block == 8
    assert "kept counts go by a probe" in notes[0]
    assert speed.learned(asked, Options(), run_.step)[0] == stairs
    assert len(made) == 1
    assert speed.learned(Speed(), Options(), run_.step)[0] == stairs
    assert speed.learned(asked, Options(align=4), run_.step) == (STAIRS, ())


def test_a_type_without_kernels_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match=r"no probe for int4: give one of float32, float16"):
        probe(Target(), "int4", timer=AVX2)


def test_a_simulated_device_has_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.providers.simulated", lambda target: True)
    with pytest.raises(ProviderError, match=r"only simulates its device .* no curve of conv 1x1"):
        probe(Target())


def test_a_real_probe_times_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_probe, "COUNTS", (32, 40, 48, 63))
    monkeypatch.setattr(passes_probe, "SECONDS", 0.0)
    found = onnxprune.probe(keep=False)
    assert all(ms > 0 for curve in found.curves.values() for ms in curve.times_ms)
    assert cached(Target()) is None
    assert json.loads(found.to_json())["key"]["threads"] == "1"


def test_the_plot_needs_plotly_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    with pytest.raises(OnnxPruneError, match=r"--plot needs plotly: .*onnxprune\[report\]"):
        steps.check(tmp_path / "curves.html")
    monkeypatch.setattr(steps, "_plotly", lambda: None)
    with pytest.raises(OnnxPruneError, match="there is no folder"):
        steps.check(tmp_path / "none" / "curves.html")


def test_the_plot_is_one_page_with_all_curves(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    path = tmp_path / "curves.html"
    steps.draw(probe(Target(), timer=AVX2), path)
    text = path.read_text("utf-8")
    assert all(f"{kind}: step" in text for kind in KINDS)
    assert 'src="http' not in text


def test_times_that_are_too_uneven_are_not_believed() -> None:
    def wild(kind: str, models: Sequence[onnx.ModelProto], target: Target) -> Sequence[float]:
        noise = np.random.default_rng(len(kind)).uniform(1, 3, len(COUNTS))
        times = AVX2(kind, models, target)
        return list(times * noise) if kind in ("conv 3x3", GROUPED) else times

    found = probe(Target(), timer=wild)
    assert [kind for kind, curve in found.curves.items() if not curve.told] == ["conv 3x3", GROUPED]
    assert found.stairs == Stairs(block=16, part=4, grouped=16, product=1, wide=16)
    assert found.summary().endswith("times of conv 3x3, grouped were too uneven: usual steps there")
    store(found)
    assert cached(Target()) == found
