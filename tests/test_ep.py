"""Execution providers for real, each in a venv of its own: `make test-ep`.

openvino is timed; webgpu (on SwiftShader) and qnn (the HTP simulator) are checked for correctness
and for taking the whole model, never for latency.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api, data, files, providers, runtime, subjects
from onnxprune.catalogue import PROVIDERS
from onnxprune.errors import ProviderError
from onnxprune.model import Model
from onnxprune.profile import Roofline, node_macs, profile
from onnxprune.target import Target
from tests import tiny
from tests.zoo import fill

EP = os.environ.get("ONNXPRUNE_EP", "")
TOLERANCE = 1e-4  # of the largest value
SIMULATED = ("webgpu", "qnn")
# The plug-in computes in bfloat16 where the processor can; its option `precision` changes nothing.
EXACT = {"openvino-plugin": {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}}
TARGET = Target(EP or "cpu", options=EXACT.get(EP, {}))
# The HTP simulator runs out of memory compiling HardSwish and attention, pruned or not.
LIGHT = "timm/mnasnet_small" if EP == "qnn" else "timm/mobilenetv3_small_050"
MODELS = ("tiny", LIGHT, "timm/repvgg_a0")
pytestmark = pytest.mark.skipif(not EP, reason="make test-ep runs these, each in its own venv")


def model(name: str) -> Model:
    """A model with fixed sizes."""
    proto = tiny.net() if name == "tiny" else fill.load(name)
    return subjects.sized(files.load(proto), {})[0]


def compared(proto: onnx.ModelProto, feeds: Any) -> float:
    """How far the provider's outputs are from the CPU's, over the largest value."""
    names = [value.name for value in proto.graph.output]
    found = runtime.run(runtime.session(proto, None, TARGET), feeds, names)
    right = runtime.run(runtime.session(proto, None), feeds, names)
    return max(
        float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())
        for a, b in zip(found, right, strict=True)
    )


def test_it_is_there() -> None:
    assert EP in providers.available()
    assert providers.simulated(TARGET) == (EP in SIMULATED)


@pytest.mark.parametrize("name", MODELS)
def test_original_and_pruned_run_there_and_are_right(name: str) -> None:
    own = model(name)
    feeds = data.random_inputs(own, 0)
    small, report = onnxprune.prune(own.proto, macs=0.5)
    assert report.after.macs < report.before.macs
    for proto in (own.proto, small):
        shares = providers.assignment(runtime.session(proto, None, TARGET))
        assert shares == {PROVIDERS[EP].ort_name: 1.0}
        assert compared(proto, feeds) <= TOLERANCE


def test_bench(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    own = model(LIGHT)
    onnx.save(own.proto, path)
    small = tmp_path / "small.onnx"
    onnxprune.prune(path, macs=0.3, output=small)
    found = onnxprune.bench(path, small, ep=EP, runs=10, profile=True)
    for row in found.rows:
        assert (row.timing is None) == (EP in SIMULATED)
        assert row.shares == {PROVIDERS[EP].ort_name: 1.0}
        if row.timing is None:
            assert row.difference is not None
            assert row.difference <= TOLERANCE
        else:
            assert row.timing.runs == 10
    assert bool(found.profiles) == (EP not in SIMULATED)


@pytest.mark.skipif(EP not in SIMULATED, reason="a real device")
def test_a_simulated_device_is_not_timed() -> None:
    from onnxprune.passes.benchmark import benchmark

    own = model("tiny")
    with pytest.raises(ProviderError, match=f"'{EP}' only simulates its device"):
        benchmark([(own.proto, None)], data.random_inputs(own, 0), target=TARGET)


@pytest.mark.skipif(
    "openvino" not in EP, reason="providers that compile into one kernel and are real"
)
def test_a_compiled_graph_is_profiled_as_one() -> None:
    own = model("tiny")
    found = profile(
        own, data.random_inputs(own, 0), TARGET, macs=node_macs(api.analyse(own)),
        roofline=Roofline(1e9, 1e9), runs=2,
    )  # fmt: skip
    (layer,) = found.layers
    assert layer.provider == PROVIDERS[EP].ort_name
    assert layer.nodes == tuple(node.key for node in own.nodes)
    assert layer.ms > 0


@pytest.mark.skipif(EP != "openvino", reason="it checks its options")
def test_options_are_checked() -> None:
    with pytest.raises(ProviderError, match=r"'openvino' can't load the model with .*bogus=1"):
        runtime.session(tiny.net(), None, Target(EP, options={"bogus": "1"}))


@pytest.mark.skipif(EP != "qnn", reason="it takes fixed sizes alone")
def test_a_model_that_it_does_not_take_is_refused() -> None:
    with pytest.raises(ProviderError, match=r"'qnn' ran no node of the model: all went to CPU"):
        runtime.session(tiny.net(), None, TARGET)
