"""Regressions from files that are not in the zoo: what exporters write for dynamic axes."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxprune import runtime
from onnxprune.data import MOST, further_inputs, random_inputs
from onnxprune.errors import RunError
from onnxprune.files import load
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, halves, model, node, proven, weight

PIXELS: dict[str, Sequence[int | str]] = {"x": ["n", 3, "h", "w"]}
TWO_LAYERS = {"w1": weight(1, 8, 3, 1, 1), "w2": weight(2, 4, 8, 1, 1)}


def sizes_of(name: str) -> list[onnx.NodeProto]:
    """Nodes that compute the four sizes of a picture: n_ c_ h_ w_."""
    picks = [node("Gather", f"s {axis}", f"{axis}_") for axis in "nchw"]
    return [node("Shape", name, "s"), *picks]


INDICES = {axis: np.array([k]) for k, axis in enumerate("nchw")}


@pytest.mark.parametrize("stated", ["computed", "inferred"])
def test_flattened_channels_keep_their_share_of_a_dynamic_size(stated: str) -> None:
    target = "flat" if stated == "computed" else "rest"
    proto = model(
        [
            node("Conv", "x w1", "a"),
            *sizes_of("a"),
            node("Mul", "h_ w_", "hw"),
            node("Mul", "c_ hw", "chw"),
            node("Concat", "n_ chw", "flat", axis=0),
            node("Reshape", f"a {target}", "f"),
            node("Reshape", "f s", "r"),
            node("Conv", "r w2", "y"),
        ],
        PIXELS,
        {"y": ["n", 4, "h", "w"]},
        {**TWO_LAYERS, **INDICES, "rest": np.array([0, -1])},
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("f", 1, ["n", "chw"]))
    coupling, pruned = proven(proto)
    assert [(group.name, group.size) for group in coupling.groups] == [("w1:0", 8)]
    flat = next(value for value in pruned.graph.value_info if value.name == "f")
    assert not flat.type.tensor_type.shape.dim[1].WhichOneof("value")


def test_the_shape_of_flattened_channels_stays_the_original_one() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("Shape", "a", "s"),
            node("Reshape", "a rest", "f"),
            node("Shape", "f", "t"),
            node("Gather", "t c", "count"),
            node("Cast", "count", "divisor", to=1),
            node("Reshape", "f s", "r"),
            node("Conv", "r w2", "b"),
            node("Div", "b divisor", "y"),
        ],
        PIXELS,
        {"y": ["n", 4, "h", "w"]},
        {**TWO_LAYERS, "c": np.array(1), "rest": np.array([0, -1])},
    )
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:0"]


def test_constants_of_shape_arithmetic_are_no_groups() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("Shape", "a", "s", start=0, end=2),
            node("Concat", "s extent", "sizes", axis=0),
            node("Resize", "a - - sizes", "r", mode="nearest"),
            node("Conv", "r w2", "y"),
        ],
        {"x": ["n", 3, 6, 6]},
        {"y": ["n", 4, 12, 12]},
        {**TWO_LAYERS, "extent": np.array([12, 12])},
    )
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:0"]


def test_sizes_that_come_from_data_are_no_groups() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("ReduceMax", "lengths", "longest", keepdims=1),
            node("Concat", "longest extent", "sizes", axis=0),
            node("ConstantOfShape", "sizes", "zeros"),
            node("ReduceSum", "zeros", "zero", keepdims=0),
            node("Conv", "a w2", "b"),
            node("Add", "b zero", "y"),
        ],
        {"x": ["n", 3, 6, 6], "lengths": ["n"]},
        {"y": ["n", 4, 6, 6]},
        {**TWO_LAYERS, "extent": np.array([5, 7])},
        lengths=onnx.TensorProto.INT64,
    )
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:0"]


def test_scales_that_come_from_sizes_are_known() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("Shape", "a", "s"),
            node("Gather", "s pixels", "extent"),
            node("Cast", "extent", "old", to=1),
            node("Mul", "old factors", "new"),
            node("Div", "new old", "zoom"),
            node("Concat", "ones zoom", "scales", axis=0),
            node("Resize", "a - scales", "r", mode="nearest"),
            node("Conv", "r w2", "y"),
        ],
        PIXELS,
        {"y": ["n", 4, "h2", "w2"]},
        {
            **TWO_LAYERS,
            "pixels": np.array([2, 3]),
            "factors": np.array([2, 2], np.float32),
            "ones": np.ones(2, np.float32),
        },
    )
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:0"]


def test_scales_that_come_from_data_are_no_groups() -> None:
    proto = model(
        [
            node("Concat", "ones zoom", "scales", axis=0),
            node("Resize", "x - scales", "r", mode="nearest"),
            node("Conv", "r w1", "a"),
            node("GlobalAveragePool", "a", "p"),
            node("Conv", "p w2", "y"),
        ],
        {**PIXELS, "zoom": [2]},
        {"y": ["n", 4, 1, 1]},
        {**TWO_LAYERS, "ones": np.ones(2, np.float32)},
    )
    coupling = coupled(proto)
    assert [group.name for group in coupling.groups] == ["w1:0"]
    reason = coupling.factors.reason(coupling.layouts["ones"][0])
    assert reason is not None
    assert coupling.says(reason) == "node 'n_r' (Resize): it carries no channels"


def test_copies_of_dynamic_number_leave_the_channels_free() -> None:
    proto = model(
        [
            node("Shape", "x", "s", start=0, end=1),
            node("Concat", "s ones", "repeats", axis=0),
            node("Tile", "token repeats", "t"),
            node("MatMul", "x w1", "a"),
            node("Add", "a t", "b"),
            node("MatMul", "b w2", "y"),
        ],
        {"x": ["n", 5, 3]},
        {"y": ["n", 5, 4]},
        {
            "ones": np.array([1, 1]),
            "token": weight(0, 1, 1, 8),
            "w1": weight(1, 3, 8),
            "w2": weight(2, 8, 4),
        },
    )
    coupling, _ = proven(proto)
    assert [(group.name, group.size) for group in coupling.groups] == [("token:2", 8)]


def test_what_is_joined_with_a_dynamic_size_stays_whole() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Concat", "tokens a", "b", axis=0),
            node("Shape", "b", "s"),
            node("Reshape", "b rest", "c"),
            node("Reshape", "c s", "d"),
            node("MatMul", "d w2", "e"),
            node("ReduceMean", "e", "y", axes=[0]),
        ],
        {"x": ["t", 3]},
        {"y": [1, 4]},
        {
            "tokens": weight(0, 6, 8),
            "w1": weight(1, 3, 8),
            "w2": weight(2, 8, 4),
            "rest": np.array([-1]),
        },
    )
    coupling, _ = proven(proto)
    reason = coupling.factors.reason(coupling.layouts["tokens"][0])
    assert reason is not None
    assert coupling.says(reason) == "node 'n_b' (Concat): it is joined with a dynamic size"
    assert all(member.axis != 0 for g in coupling.groups for member in g.members if g.size == 6)


def test_dynamic_extents_of_random_inputs_are_small() -> None:
    proto = model(
        [node("Conv", "x w1", "a"), node("Conv", "a w2", "y")],
        PIXELS,
        {"y": ["n", 4, "h", "w"]},
        TWO_LAYERS,
    )
    read = coupled(proto).model
    assert random_inputs(read, 0)["x"].shape == (2, 3, 64, 64)
    assert random_inputs(read, 0, choice=1)["x"].shape == (3, 3, 96, 96)
    assert random_inputs(read, 0, small=False)["x"].shape == (13, 3, 224, 224)


def function_model() -> onnx.ModelProto:
    """x (n, 6) -> twice a MatMul and a Relu, as a function of the model's own -> 4."""
    body = [onnx.helper.make_node("MatMul", ["X", "W"], ["T"]), node("Relu", "T", "Y")]
    block = onnx.helper.make_function(
        "own", "Block", ["X", "W"], ["Y"], body, [onnx.helper.make_opsetid("", 17)]
    )
    proto = model(
        [
            node("Block", "x w1", "a", domain="own"),
            node("Block", "a w2", "b", domain="own"),
            node("MatMul", "b w3", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 4]},
        {"w1": weight(1, 6, 8), "w2": weight(2, 8, 10), "w3": weight(3, 10, 4)},
    )
    proto.functions.append(block)
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    return proto


def test_functions_of_the_model_are_written_out() -> None:
    coupling, pruned = proven(function_model())
    assert [group.name for group in coupling.groups] == ["w1:1", "w2:1"]
    assert not pruned.functions


def test_a_function_that_a_row_tells_stays_one() -> None:
    rules = {"own::Block": "... m k, k n -> ... m n | macs=... m k n"}
    read = load(function_model(), rules=rules)
    assert [node.op for node in read.nodes] == ["own::Block", "own::Block", "MatMul"]


def test_float16_models_are_not_optimised_to_the_full() -> None:
    levels = []
    for dtype, kind in (
        (np.float16, onnx.TensorProto.FLOAT16),
        (np.float32, onnx.TensorProto.FLOAT),
    ):
        weights = {"w": weight(0, 3, 4).astype(dtype)}
        proto = model(
            [node("MatMul", "x w", "y")], {"x": [2, 3]}, {"y": [2, 4]}, weights, kind=kind
        )
        options = runtime.session(proto, None).get_session_options()
        levels.append(options.graph_optimization_level)
    level = ort.GraphOptimizationLevel
    assert levels == [level.ORT_ENABLE_EXTENDED, level.ORT_ENABLE_ALL]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_are_declared_dynamic_are_as_many_as_the_weight_reads(channels: int) -> None:
    proto = model(
        [node("Conv", "x w1", "a"), node("Relu", "a", "r"), node("Conv", "r w2", "y")],
        {"x": ["n", "c", "h", "w"]},
        {"y": ["n", 4, "h", "w"]},
        {**TWO_LAYERS, "w1": weight(1, 8, channels, 3, 3)},
    )
    coupling, pruned = proven(proto)
    assert [(group.name, group.size) for group in coupling.groups] == [("w1:0", 8)]
    assert [d.dim_param for d in pruned.graph.input[0].type.tensor_type.shape.dim] == [*"nchw"]


def test_a_scaler_in_front_of_a_net_has_the_shape_of_its_input() -> None:
    proto = model(
        [
            onnx.helper.make_node(
                "Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5] * 4, scale=[2.0] * 4
            ),
            node("Cast", "s", "c", to=onnx.TensorProto.FLOAT),
            node("MatMul", "c w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 3]},
        {"w1": weight(1, 4, 8), "w2": weight(2, 8, 3)},
        x=onnx.TensorProto.DOUBLE,
    )
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:1"]
    assert coupling.model.dtypes["s"] == onnx.TensorProto.FLOAT


def test_annotated_shapes_follow_behind_a_renamed_constant() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Identity", "b", "same"),
            node("Add", "a same", "s"),
            node("Add", "s b", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 3]},
        {"w1": weight(1, 4, 8), "b": weight(3, 8), "w2": weight(2, 8, 3)},
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("same", 1, [8]))
    _, pruned = proven(proto)
    dims = {v.name: v.type.tensor_type.shape.dim for v in pruned.graph.value_info}
    assert [dim.dim_value for dim in dims.get("same", ())] in ([], [4])


def test_a_sparse_weight_stays_and_the_rest_goes() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "b"),
            node("Relu", "b", "s"),
            node("MatMul", "s w3", "y"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 3]},
        {"w1": weight(1, 4, 8), "w3": weight(3, 6, 3)},
    )
    dense = weight(2, 8, 6)
    places = np.arange(0, 48, 3)
    values = onnx.numpy_helper.from_array(dense.reshape(-1)[places], "w2")
    indices = onnx.numpy_helper.from_array(places, "w2_places")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [8, 6]))
    proto.graph.node.insert(0, node("MatMul", "x w0", "x0"))
    proto.graph.node.insert(1, node("MatMul", "x0 v0", "x1"))
    proto.graph.node[2].input[0] = "x1"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(5, 4, 8), "w0"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(6, 8, 4), "v0"))
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w0:1", "v0:1"]
    reason = coupling.factors.reason(coupling.layouts["w1"][1])
    assert reason is not None
    assert reason.text == "it is stored sparse"


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_a_norm_that_onnx_runtime_fused_in_an_early_opset_has_a_shape(op: str) -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node(op, "a g", "b", axis=-1, epsilon=1e-5),
            node("MatMul", "b w2", "c"),
            node("Relu", "c", "d"),
            node("MatMul", "d w3", "y"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 3]},
        {
            "w1": weight(1, 4, 8),
            "g": np.float32(1) + weight(2, 8),
            "w2": weight(3, 8, 6),
            "w3": weight(4, 6, 3),
        },
        opset=14,
    )
    if op == "LayerNormalization":
        proto.graph.node[1].input.append("beta")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(5, 8), "beta"))
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:1", "w2:1"]


def test_a_model_that_runs_at_one_length_is_proved_there() -> None:
    proto = model(
        [
            node("Reshape", "x step", "s"),
            node("MatMul", "s w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"x": ["n", "t"]},
        {"y": [1, 3]},
        {"step": np.array([1, 256]), "w1": weight(1, 256, 8), "w2": weight(2, 8, 3)},
    )
    coupling, _ = proven(proto)
    assert [group.name for group in coupling.groups] == ["w1:1"]
    assert all(
        max(array.size for array in feeds.values()) <= MOST
        for feeds in further_inputs(coupling.model, 0)
    )


def test_a_model_that_runs_at_no_length_says_so() -> None:
    proto = model(
        [node("Reshape", "x step", "s"), node("MatMul", "s w1", "a"), node("MatMul", "a w2", "y")],
        {"x": ["n", "t"]},
        {"y": [1, 3]},
        {"step": np.array([1, 7]), "w1": weight(1, 7, 8), "w2": weight(2, 8, 3)},
    )
    coupling = coupled(proto)
    keep = halves(coupling)
    with pytest.raises(RunError, match=r"the original fails on random inputs: .*--inputs FILE"):
        verify(coupling, keep, shrink(coupling, keep))
