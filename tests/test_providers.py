"""Execution providers: found, refused, and never taken for the CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxprune import catalogue, providers, runtime
from onnxprune.errors import OnnxPruneError, ProviderError, RunError
from onnxprune.target import OPTIMIZATIONS, Target
from tests import tiny

NAMES = (
    *("acl", "armnn", "coreml", "cpu", "cuda", "directml", "dnnl", "nnapi"),
    *("openvino", "openvino-plugin", "qnn", "tensorrt", "webgpu", "xnnpack"),
)
CPU = "CPUExecutionProvider"


def part(name: str, count: int) -> Any:
    nodes = [SimpleNamespace(name=f"{name}{k}", op_type="Conv") for k in range(count)]
    return SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)


def assigned(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    parts = [part(name, count) for name, count in counts.items()]
    fake = "get_provider_graph_assignment_info"
    monkeypatch.setattr(ort.InferenceSession, fake, lambda _: parts, raising=False)


def offered(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*names, CPU])


def test_every_provider_has_its_row() -> None:
    assert tuple(sorted(catalogue.PROVIDERS)) == NAMES
    for name, row in catalogue.PROVIDERS.items():
        assert row.name == name
        assert row.ort_name in ort.get_all_providers() or row.plugin or name == "armnn"


def test_the_names_are_those_that_onnx_runtime_knows() -> None:
    known = set(ort.get_all_providers())
    strange = {r.ort_name for r in catalogue.PROVIDERS.values()} - known
    assert strange <= {"ArmNNExecutionProvider"}


def test_a_session_runs_on_the_cpu_where_nothing_is_said() -> None:
    session = runtime.session(tiny.net(), None)
    assert providers.assignment(session) == {CPU: 1.0}
    assert session.get_session_options().intra_op_num_threads == 1
    assert "cpu" in providers.available()
    assert not providers.simulated(Target())


def test_the_target_sets_threads_and_optimisation() -> None:
    options = runtime.session(
        tiny.net(), None, Target(threads=2, optimization="basic")
    ).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    plain = runtime.session(tiny.net(), None, optimize=False).get_session_options()
    assert plain.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize("level", OPTIMIZATIONS)
def test_float16_is_never_optimised_fully(level: str, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float16), "w")
    proto = tiny.frozen()
    proto.graph.initializer[0].CopyFrom(weight)
    path = tiny.save(tmp_path / "half.onnx", proto)
    wanted = level if level in ("disable", "basic") else "extended"
    for model in (proto, path):
        assert providers.optimization_of(model, Target(optimization=level)) == wanted
    assert providers.optimization_of(tiny.net(), Target(optimization=level)) == level


def test_a_path_and_outside_data_are_read(tmp_path: Path) -> None:
    proto = tiny.net()
    inside = providers.open_session(tiny.save(tmp_path / "m.onnx"), None, Target())
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, size_threshold=0)
    light = onnx.load(tmp_path / "big.onnx", load_external_data=False)
    outside = providers.open_session(light, tmp_path, Target())
    x = np.ones((1, 3, 8, 8), np.float32)
    first, second = (s.run(None, {"x": x})[0] for s in (inside, outside))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("openvino", "pip install onnxruntime-openvino in place of onnxruntime"),
        ("cuda", "pip install onnxruntime-gpu"),
        ("xnnpack", "build ONNX Runtime with --use_xnnpack"),
        ("nnapi", "bench --export"),
    ],
)
def test_a_provider_that_is_not_in_the_build(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered(monkeypatch)
    with pytest.raises(ProviderError, match=f"'{name}' is not in this onnxruntime.*{advice}"):
        runtime.session(tiny.net(), None, Target(name))


@pytest.mark.parametrize("name", ["qnn", "webgpu", "openvino-plugin"])
def test_a_plugin_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(providers, "import_module", absent)
    with pytest.raises(ProviderError, match=f"'{name}' is not installed: pip install onnxruntime-"):
        runtime.session(tiny.net(), None, Target(name))


def test_an_unknown_provider() -> None:
    with pytest.raises(ProviderError, match="no execution provider 'gpu': give one of acl"):
        runtime.session(tiny.net(), None, Target("gpu"))


@pytest.mark.parametrize("counts", [{CPU: 5}, {}])
def test_a_provider_that_ran_nothing_is_refused(
    counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ort.InferenceSession
    offered(monkeypatch, "DnnlExecutionProvider")
    assigned(monkeypatch, **counts)

    def session(source: Any, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert (providers, enable_fallback) == (["DnnlExecutionProvider"], 0)
        return real(source, options, providers=[CPU])

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(ProviderError, match="'dnnl' ran no node of the model"):
        runtime.session(tiny.net(), None, Target("dnnl"))


def test_the_share_is_that_of_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(tiny.net(), None)
    assigned(monkeypatch, DnnlExecutionProvider=3, **{CPU: 1})
    assert providers.assignment(session) == {"DnnlExecutionProvider": 0.75, CPU: 0.25}
    nodes = providers.placement(session).nodes
    assert nodes[CPU] == ((f"{CPU}0", "Conv"),)


def test_an_old_onnx_runtime_can_not_tell() -> None:
    with pytest.raises(ProviderError, match=r"can't tell which provider ran.*1\.24"):
        providers.placement(SimpleNamespace())


def test_a_provider_that_refuses_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, "OpenVINOExecutionProvider")

    def refuse(*_: Any, **given: Any) -> None:
        options = {"num_of_threads": "2", "bogus": "1"}
        assert given["providers"] == [("OpenVINOExecutionProvider", options)]
        raise RuntimeError("Invalid\nOpenVINO EP option")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    match = "'openvino' can't load the model with num_of_threads=2, bogus=1: Invalid OpenVINO"
    with pytest.raises(ProviderError, match=match):
        runtime.session(tiny.net(), None, Target("openvino", 2, {"bogus": "1"}))


def test_a_model_that_onnx_runtime_refuses() -> None:
    node = helper.make_node("NoSuch", ["x"], ["y"])
    proto = tiny.model([node], [], {"x": [1]}, {"y": [1]})
    with pytest.raises(RunError, match=r"ONNX Runtime can't load the model: .*NoSuch"):
        runtime.session(proto, None)


def device(kind: str, library: str = "lib.so") -> Any:
    hardware = SimpleNamespace(type=SimpleNamespace(name=kind))
    return SimpleNamespace(ep_metadata={"library_path": library}, device=hardware)


def plugged(monkeypatch: pytest.MonkeyPatch, devices: list[Any]) -> list[tuple[str, str]]:
    """Act as if the plug-in of webgpu were installed, with these devices once it is registered."""
    registered: list[tuple[str, str]] = []
    module = SimpleNamespace(get_library_path=lambda: "lib.so")
    monkeypatch.setattr(providers, "import_module", lambda _: module)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices if registered else [])
    register = "register_execution_provider_library"
    monkeypatch.setattr(ort, register, lambda *pair: registered.append(pair))
    return registered


@pytest.mark.parametrize(("kinds", "only"), [(["CPU"], True), (["CPU", "GPU"], False)])
def test_a_plugin_on_other_hardware_only_simulates(
    kinds: list[str], only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = plugged(monkeypatch, [device("CPU", "other.so"), *map(device, kinds)])
    assert providers.simulated(Target("webgpu")) == only
    assert providers.simulated(Target("webgpu")) == only
    assert registered == [("WebGpuExecutionProvider", "lib.so")]  # once, by its own name


def test_a_plugin_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, [device("CPU", "other.so")])
    with pytest.raises(ProviderError, match="'webgpu' finds no device on this machine"):
        providers.simulated(Target("webgpu"))


def test_a_plugin_that_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, [])

    def fail(*_: str) -> None:
        raise RuntimeError("cannot open shared object file")

    monkeypatch.setattr(ort, "register_execution_provider_library", fail)
    with pytest.raises(ProviderError, match="plug-in of the execution provider 'webgpu' can't be"):
        providers.simulated(Target("webgpu"))


def test_targets_that_can_not_be() -> None:
    with pytest.raises(OnnxPruneError, match="threads is 0: it must be at least 1"):
        Target(threads=0)
    with pytest.raises(OnnxPruneError, match="no graph optimization 'most': give one of disable"):
        Target(optimization="most")


def test_options_that_a_plugin_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(get_qnn_htp_path=lambda: "htp.so")
    monkeypatch.setattr(providers, "import_module", lambda _: module)
    row = catalogue.PROVIDERS["qnn"]
    plain = providers.given_options(row, Target("qnn", options={"soc_model": "1"}))
    assert plain == {"backend_path": "htp.so", "soc_model": "1"}
    own = providers.given_options(row, Target("qnn", options={"backend_type": "cpu"}))
    assert own == {"backend_type": "cpu"}
