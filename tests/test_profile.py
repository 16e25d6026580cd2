"""Profiles: every node found, nothing counted twice, sides that stand for the same nodes."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxprune import api, files, providers, trace
from onnxprune.errors import ProviderError
from onnxprune.model import Array
from onnxprune.profile import (
    Profile,
    Roofline,
    changes,
    layered,
    measured,
    node_groups,
    node_macs,
    profile,
)
from onnxprune.target import Target
from onnxprune.trace import Kernel
from tests import tiny
from tests.zoo import fill

PLAIN = Target(optimization="disable")
ROOF = Roofline(1e9, 1e9)
X = np.ones((1, 3, 8, 8), np.float32)


def traced(proto: onnx.ModelProto, feeds: dict[str, Array], target: Target) -> tuple[Kernel, ...]:
    return trace.trace(proto, None, feeds, target, runs=2, warm_up=0)


def keys(proto: onnx.ModelProto) -> list[str]:
    """The nodes that run, by their first result."""
    fixed = trace.constants(proto.graph)
    return [node.output[0] for node in proto.graph.node if node.output[0] not in fixed]


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "layout", "all"])
@pytest.mark.parametrize("nameless", [False, True])
def test_every_node_is_found_once(level: str, nameless: bool) -> None:
    proto = tiny.net()
    for node in proto.graph.node if nameless else ():
        node.ClearField("name")
    kernels = traced(proto, {"x": X}, Target(optimization=level))
    assert sorted(key for kernel in kernels for key in kernel.nodes) == sorted(keys(proto))


def test_an_unoptimised_session_runs_node_by_node() -> None:
    proto = tiny.net()
    kernels = traced(proto, {"x": X}, PLAIN)
    assert [kernel.nodes for kernel in kernels] == [(key,) for key in keys(proto)]
    assert [kernel.op for kernel in kernels] == [node.op_type for node in proto.graph.node]
    assert all(kernel.ms > 0 for kernel in kernels)
    first = kernels[0]  # 1x3x8x8 in, 16x3x3x3 and 16 weights, 1x16x8x8 out
    assert first.size_bytes == 4 * (192 + 432 + 16 + 1024)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("transformers/bert", "timm/mobilenetv3_small_050", "timm/repvgg_a0"),
        "others/torch_bilstm.dynamo",
    ],
)
def test_every_node_of_real_files_is_found_once(name: str) -> None:
    from onnxprune import data

    model = files.load(fill.load(name))
    kernels = traced(model.proto, data.random_inputs(model, 0), Target())
    counts = Counter(key for kernel in kernels for key in kernel.nodes)
    assert set(counts.values()) == {1}
    assert counts.keys() == set(keys(model.proto))
    assert {k.op for k in kernels if not k.nodes} <= {*trace.CONVERSIONS, "Gelu"}


def event(name: str, start: int, took: int, **args: Any) -> dict[str, Any]:
    given = {"op_name": "Conv", "provider": "CPUExecutionProvider", "node_index": "0", **args}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": took, "args": given}


def run(start: int, took: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": took, "args": {}}


def test_own_times_sum_up_to_the_outermost_kernels() -> None:
    # One run: an If of 100 that spans 30 and 50 (of which 20 are nested), then 7.
    events = [
        *(run(0, 200), event("if", 10, 100, node_index="0")),
        *(event("a", 15, 30, node_index="1"), event("b", 50, 50, node_index="2")),
        *(event("c", 60, 20, node_index="3"), event("d", 120, 7, node_index="4")),
    ]
    times = {e["name"].removesuffix(trace.SUFFIX): ms for e, ms in trace._own_times(events, 0)}
    wanted = {"if": 0.020, "a": 0.030, "b": 0.030, "c": 0.020, "d": 0.007}
    assert times == pytest.approx(wanted, rel=1e-12)
    assert sum(times.values()) == pytest.approx(0.107, rel=1e-12)


def test_warming_up_and_fences_are_left_out() -> None:
    fence = {**event("a", 5, 90), "name": "a_fence_before"}
    events = [run(0, 50), event("a", 1, 40), run(100, 50), event("a", 101, 4), run(200, 50),
              event("a", 201, 6), fence]  # fmt: skip
    ((_, ms),) = trace._own_times(events, 1)
    assert ms == pytest.approx(0.004, rel=1e-12)


def test_a_kernel_in_a_loop_counts_with_its_sum() -> None:
    events = [run(0, 50), event("a", 1, 10), event("a", 20, 10)]
    ((_, ms),) = trace._own_times(events, 0)
    assert ms == pytest.approx(0.020, rel=1e-12)


def test_the_quickest_runs_count() -> None:
    assert trace.quick([4.0, 2.0, 1.0, *(900.0,) * 7]) == pytest.approx(7 / 3)
    assert trace.quick([4.0]) == 4.0


def test_there_are_as_many_turns_as_there_is_time_for() -> None:
    assert list(trace._turns(5, 2, math.inf)) == [0, 1, 2, 3, 4]
    assert list(trace._turns(5, 2, 0.0)) == [0, 1]
    assert list(trace._turns(2, 3, 0.0)) == [0, 1]


def test_a_branch_that_does_not_run_is_idle() -> None:
    def body(name: str) -> onnx.GraphProto:
        node = helper.make_node("Relu" if name == "yes" else "Neg", ["r"], [name])
        info = helper.make_tensor_value_info(name, tiny.FLOAT, [4])
        return helper.make_graph([node], name, [], [info])

    nodes = [
        helper.make_node("Abs", ["x"], ["r"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body("yes"), else_branch=body("no")),
    ]
    proto = tiny.model(nodes, [], {"x": [4]}, {"y": [4]})
    proto.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    feeds = {"x": X[0, 0, 0, :4], "c": np.array(False)}
    kernels = traced(proto, feeds, PLAIN)
    assert {key for kernel in kernels for key in kernel.nodes} == {"r", "y", "no"}


def kernel(name: str, *nodes: str, ms: float = 1.0, size_bytes: int | None = 8) -> Kernel:
    return Kernel(name, "Conv", "CPUExecutionProvider", nodes, ms, size_bytes)


def test_a_profile_sums_up() -> None:
    proto = tiny.net()
    kernels = [
        kernel("k1", "c1", "r1", ms=3.0),
        kernel("k2", "c2", ms=1.5),
        kernel("k3", "r2", ms=0.5),
        replace(kernel("ReorderOutput", ms=1.0), op="ReorderOutput"),
    ]
    found = layered(proto, kernels, {"c1": 100, "c2": 4}, {"c1": ("g",)}, ROOF)
    assert found.total_ms == pytest.approx(6.0, rel=1e-12)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0, rel=1e-12)
    for sums in (found.by_operator(), found.by_provider(), found.by_bound()):
        assert sum(sums.values()) == pytest.approx(found.total_ms, rel=1e-12)
    assert found.by_operator() == {"Conv": 4.5, "ReorderOutput": 1.0, "Relu": 0.5}
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "act2", "ReorderOutput"]
    assert [layer.bound for layer in found.layers] == ["compute", "memory", "memory", "memory"]
    assert found.layers[0].groups == ("g",)
    assert found.layers[0].efficiency == pytest.approx(100 / 1e9 * 1e3 / 3.0, rel=1e-12)
    assert found.idle == ("y",)


def test_bytes_that_are_unknown_bound_nothing() -> None:
    kernels = [kernel("k", "c1", size_bytes=None)]
    (layer,) = layered(tiny.net(), kernels, {"c1": 5}, {}, ROOF).layers
    assert (layer.bound, layer.efficiency) == (None, None)


def test_a_compiled_graph_is_one_layer() -> None:
    whole = replace(kernel("OpenVINO_0", "c1", "r1"), op="subgraph", compiled=True)
    (layer,) = layered(tiny.net(), [whole], {"c1": 5}, {}, ROOF).layers
    assert (layer.name, layer.op, layer.macs) == ("OpenVINO_0", "subgraph", 5)


def test_the_nodes_of_a_compiled_graph_are_those_of_its_part() -> None:
    proto = tiny.net()
    trace._name(proto.graph)
    name = "OpenVINOExecutionProvider_subgraph_0"
    events = [event(name, 0, 1, provider="OpenVINOExecutionProvider"), event("y", 5, 1)]
    own = tuple((key, "Conv") for key in keys(proto)[:4])
    parts = [("OpenVINOExecutionProvider", own), ("CPUExecutionProvider", (("y", "Conv"),))]
    found = trace._owners(proto.graph, events, onnx.GraphProto(), parts)
    assert found == [("c1", "r1", "c2", "r2"), ("y",)]


def side(*kernels: Kernel) -> Profile:
    return layered(tiny.net(), kernels, {"c1": 100, "c2": 50}, {}, ROOF)


def test_sides_that_fuse_differently_stand_for_the_same_nodes() -> None:
    before = side(kernel("k1", "c1", "r1", ms=3.0), kernel("k2", "c2", ms=2.0))
    after = side(kernel("a", "c1", ms=1.0), kernel("b", "r1", ms=0.5), kernel("c", "c2", ms=2.5))
    first, second = changes(before.layers, after.layers)
    assert (first.name, first.before_ms, first.after_ms) == ("conv1", 3.0, 1.5)
    assert (first.before_macs, first.after_macs) == (100, 100)
    assert (second.name, second.before_ms, second.after_ms) == ("conv2", 2.0, 2.5)


def test_changes_sum_up_to_both_sides() -> None:
    reorder = replace(kernel("ReorderInput", ms=0.25), op="ReorderInput")
    before = side(kernel("k1", "c1", "r1", ms=3.0), kernel("k2", "c2", "r2"), reorder, reorder)
    after = side(kernel("k1", "r1", "c2"), kernel("k3", "y", ms=7.0))
    found = changes(before.layers, after.layers)
    assert sum(change.before_ms for change in found) == before.total_ms
    assert sum(change.after_ms for change in found) == after.total_ms
    inserted = next(change for change in found if change.name == "inserted ReorderInput")
    assert (inserted.before_ms, inserted.after_ms, inserted.after_kernel) == (0.5, 0.0, "")


def test_macs_and_groups_of_nodes() -> None:
    proto = tiny.net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    coupling = api.analyse(proto)
    assert node_macs(coupling) == {
        "c1": 64 * 16 * 27,
        "r1": 0,
        "c2": 64 * 32 * 16 * 9,
        "r2": 0,
        "y": 64 * 4 * 32,
    }
    groups = node_groups(coupling)
    assert groups["c1"] == ("w1:0",)
    assert groups["c2"] == ("w2:0",)
    assert groups["y"] == ()


def test_a_model_is_profiled() -> None:
    model = files.load(tiny.net())
    coupling = api.analyse(model)
    found = profile(
        model, {"x": X}, PLAIN, macs=node_macs(coupling), groups=node_groups(coupling),
        roofline=ROOF, runs=2,
    )  # fmt: skip
    assert [layer.name for layer in found.layers] == ["conv1", "act1", "conv2", "act2", "conv3"]
    assert [layer.groups for layer in found.layers] == [("w1:0",), (), ("w2:0",), (), ()]
    assert found.idle == ()


def test_the_roofline_is_measured() -> None:
    found = measured(Target())
    assert found.macs_per_s > 1e8
    assert found.bytes_per_s > 1e7
    assert found.least_ms(0, 1000) == pytest.approx(1e6 / found.bytes_per_s)
    assert found.ridge == found.macs_per_s / found.bytes_per_s


def test_a_provider_that_can_not_write_its_graph_is_traced_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = providers.open_session

    def open_session(proto: Any, folder: Any, target: Any, configure: Any) -> ort.InferenceSession:
        options = ort.SessionOptions()
        configure(options)
        if options.optimized_model_filepath:
            raise ProviderError("it compiles")
        return real(proto, folder, target, configure)

    monkeypatch.setattr(providers, "open_session", open_session)
    kernels = traced(tiny.net(), {"x": X}, PLAIN)
    assert [kernel.nodes for kernel in kernels] == [(key,) for key in keys(tiny.net())]


def test_what_is_laid_out_anew_is_the_kernel_s_before_it() -> None:
    file = [("Conv", "x", "c"), ("Erf", "c", "e"), ("Mul", "e", "y")]
    ran = [
        ("Conv", "x", "token1", "c_nchwc"),
        ("Gelu", "token1", "token2", "Gelu"),
        ("ReorderOutput", "token2", "y", "ReorderOutput"),
    ]
    makers = {made: helper.make_node(op, [read], [made]) for op, read, made in file}
    nodes = [helper.make_node(op, [read], [made], name) for op, read, made, name in ran]
    optimized = onnx.GraphProto(node=nodes)
    keys_ = [name for *_, name in ran]
    assert trace._anchors(makers, keys_, optimized) == [["c"], ["y"], []]


def test_constants_belong_to_no_kernel() -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(X[0, 0])),
        helper.make_node("Neg", ["k"], ["n"]),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    proto = tiny.model(nodes, [], {"x": [8, 8]}, {"y": [8, 8]})
    (only,) = traced(proto, {"x": X[0, 0]}, Target())
    assert only.nodes == ("y",)
    assert only.size_bytes == 3 * 4 * 64
