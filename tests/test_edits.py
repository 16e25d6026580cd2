"""Shrink and the constants of a file: where weights hide, who shares them, what stays as it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxprune.files import load, save
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import make_plan
from tests.graphs import Array, convolutions, coupled, halves, model, node, weight
from tests.test_shrink import masks, pruned, run, values


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: list[onnx.TensorProto] = [t for t in proto.graph.initializer if t.name == name]
    assert len(found) == 1
    return found[0]


def branches(width: int = 8) -> onnx.ModelProto:
    """x (n, 4, 3, 3) -> two unrelated branches that share a bias; their products are added."""
    return model(
        [
            node("Conv", "x w1 b", "y1"),
            node("Conv", "x w2 b", "y2"),
            node("Conv", "y1 v1", "z1"),
            node("Conv", "y2 v2", "z2"),
            node("Add", "z1 z2", "y"),
        ],
        {"x": ["n", 4, 3, 3]},
        {"y": ["n", 2, 3, 3]},
        {
            "w1": weight(1, width, 4, 1, 1),
            "w2": weight(2, width, 4, 1, 1),
            "b": weight(3, width),
            "v1": weight(4, 2, width, 1, 1),
            "v2": weight(5, 2, width, 1, 1),
        },
    )


def test_a_shared_bias_is_copied_where_its_readers_differ() -> None:
    proto = branches()
    small = pruned(proto, {"w1:0": [0, 1], "w2:0": [5, 6, 7]})
    old, new = values(proto)["b"], values(small)
    np.testing.assert_array_equal(new["b"], old[:2])
    np.testing.assert_array_equal(new["b@y2:2"], old[5:])
    assert [list(n.input) for n in small.graph.node[:2]] == [
        ["x", "w1", "b"],
        ["x", "w2", "b@y2:2"],
    ]


def test_a_shared_bias_stays_where_one_reader_keeps_all() -> None:
    proto = branches()
    new = values(pruned(proto, {"w2:0": [5, 6, 7]}))
    np.testing.assert_array_equal(new["b"], values(proto)["b"])
    np.testing.assert_array_equal(new["b@y2:2"], values(proto)["b"][5:])


def test_a_shared_bias_stays_one_where_its_readers_agree() -> None:
    proto = branches()
    small = pruned(proto, {"w1:0": [0, 7], "w2:0": [0, 7]})
    assert [tensor.name for tensor in small.graph.initializer] == ["w1", "w2", "b", "v1", "v2"]
    np.testing.assert_array_equal(values(small)["b"], values(proto)["b"][[0, 7]])


def test_the_plan_names_each_use_of_a_shared_bias() -> None:
    coupling = coupled(branches())
    plan = make_plan(coupling, masks(coupling, {"w1:0": [0, 1], "w2:0": [5]}), None)
    assert plan.initializers == {
        "b@y1:2": {0: [0, 1]},
        "b@y2:2": {0: [5]},
        "v1": {1: [0, 1]},
        "v2": {1: [5]},
        "w1": {0: [0, 1]},
        "w2": {0: [5]},
    }


def tied(transpose: bool = True) -> onnx.ModelProto:
    """Token ids (n, 3) -> a table of 10 x 6 -> Relu -> logits by the table's transpose."""
    return model(
        [
            node("Gather", "table ids", "e"),
            node("Relu", "e", "r"),
            node("Transpose", "table", "head", perm=[1, 0]),
            node("MatMul", "r head", "y"),
        ],
        {"ids": ["n", 3]},
        {"y": ["n", 3, 10]},
        {"table": weight(1, 10, 6)},
        ids=TensorProto.INT64,
    )


def test_a_true_tie_stays_one_tensor() -> None:
    small = pruned(tied(), {"table:1": [1, 2, 5]})
    assert [tensor.name for tensor in small.graph.initializer] == ["table"]
    np.testing.assert_array_equal(values(small)["table"], values(tied())["table"][:, [1, 2, 5]])


def hidden(how: str) -> onnx.ModelProto:
    """Two layers; the first weight (3, 6) reaches its operator in some other way."""
    w, nodes = weight(1, 3, 6), []
    weights: dict[str, Array] = {"v": weight(2, 6, 2)}
    if how == "Constant":
        tensor = numpy_helper.from_array(w, "inner")
        nodes.append(helper.make_node("Constant", [], ["w"], name="holds w", value=tensor))
    else:
        weights["stored"] = w.T.copy() if how == "Transpose" else w
        nodes.append(node(how, "stored", "w", **({"to": 1} if how == "Cast" else {})))
    if how == "Cast":
        weights["stored"] = w.astype(np.float16)
    nodes += [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    return model(nodes, {"x": ["n", 3]}, {"y": ["n", 2]}, weights)


@pytest.mark.parametrize("how", ["Cast", "Constant", "Identity", "Transpose"])
def test_weights_are_found_where_they_hide(how: str) -> None:
    proto = hidden(how)
    (group,) = coupled(proto).groups
    small = pruned(proto, {group.name: [0, 4]})
    assert [n.op_type for n in small.graph.node] == [n.op_type for n in proto.graph.node]
    old, new = values(proto), values(small)
    name = "w" if how == "Constant" else "stored"
    columns = old[name][[0, 4]] if how == "Transpose" else old[name][:, [0, 4]]
    np.testing.assert_array_equal(new[name], columns)
    assert new[name].dtype == old[name].dtype
    if how == "Constant":
        assert small.graph.node[0].name == "holds w"
        assert [tensor.name for tensor in small.graph.initializer] == ["v"]


def standardised() -> onnx.ModelProto:
    """A weight (6, 4, 1, 1) of which the mean over its inputs is taken away in the graph."""
    return model(
        [
            node("Conv", "x w0", "h"),
            node("ReduceMean", "w", "mean", axes=[1, 2, 3]),
            node("Sub", "w mean", "centred"),
            node("Conv", "h centred", "c"),
            node("Conv", "c v", "y"),
        ],
        {"x": ["n", 3, 2, 2]},
        {"y": ["n", 2, 2, 2]},
        {"w0": weight(0, 4, 3, 1, 1), "w": weight(1, 6, 4, 1, 1), "v": weight(2, 2, 6, 1, 1)},
    )


def test_weights_computed_in_the_graph_are_folded() -> None:
    """Pruned after standardising: the mean is that of all inputs, the removed ones too."""
    proto = standardised()
    small = pruned(proto, {"w0:0": [0, 1], "w:0": [0, 2, 3]})
    old, new = values(proto), values(small)
    assert [n.op_type for n in small.graph.node] == ["Conv", "Sub", "Conv", "Conv"]
    mean = old["w"].mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(new["mean"], mean[[0, 2, 3]], rtol=1e-6)
    np.testing.assert_array_equal(new["w"], old["w"][[0, 2, 3]][:, [0, 1]])


def test_what_is_folded_of_a_value_that_loses_inputs_stays_what_it_was() -> None:
    """The mean of a flattened weight, as NFNets have it, where only the weight's inputs go."""
    proto = standardised()
    del proto.graph.node[1:3]
    flat = [
        node("Reshape", "w rows", "flat"),
        node("ReduceMean", "flat", "mean", axes=[2]),
        node("Sub", "flat mean", "away"),
        node("Reshape", "away whole", "centred"),
    ]
    for offset, own in enumerate(flat):
        proto.graph.node.insert(1 + offset, own)
    for name, value in {"rows": [1, 6, 4], "whole": [6, 4, 1, 1]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    small = pruned(proto, {"w0:0": [0, 1]})
    mean = values(proto)["w"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(values(small)["mean"].reshape(-1), mean, rtol=1e-6)


def test_constants_that_lose_nothing_are_not_folded() -> None:
    proto = model(
        [
            node("MatMul", "x w", "h"),
            node("Relu", "h", "r"),
            node("MatMul", "r v", "z"),
            node("ReduceMean", "u", "mean", axes=[0]),
            node("Sub", "u mean", "centred"),
            node("Add", "z centred", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {"w": weight(1, 3, 6), "v": weight(2, 6, 2), "u": weight(3, 2)},
    )
    small = pruned(proto, {"w:1": [0, 4]})
    assert [n.op_type for n in small.graph.node] == [n.op_type for n in proto.graph.node]
    assert initializer(small, "u") == initializer(proto, "u")


def test_initializers_listed_as_inputs_shrink_there_too() -> None:
    proto = convolutions()
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    small = pruned(proto, {"w1:0": [0, 1, 2], "w2:0": [4, 5]})
    listed = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in small.graph.input
    }
    assert listed.pop("x") == [0, 4, 6, 6]
    assert listed == {name: list(value.shape) for name, value in values(small).items()}
    assert "b@y2:2" in listed
    assert listed["w2"] == [2, 3, 3, 3]
    assert small.ir_version == 3


def test_annotated_shapes_follow() -> None:
    proto = onnx.shape_inference.infer_shapes(convolutions())
    small = pruned(proto, {"w1:0": [0, 1, 2], "w2:0": [4, 5]})
    stated = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in small.graph.value_info
    }
    assert stated == {"y1": ["n", 3, 6, 6], "r1": ["n", 3, 6, 6], "y2": ["n", 2, 4, 4]}


def annotated() -> onnx.ModelProto:
    """Everything that a file may say beside what it computes."""
    proto = convolutions()
    proto.producer_name, proto.producer_version, proto.domain = "someone", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "about the model"
    helper.set_model_props(proto, {"task": "none", "classes": "a,b"})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.doc_string = "about the graph"
    for k, n in enumerate(proto.graph.node):
        n.doc_string = f"about node {k}"
        n.metadata_props.add(key="namespace", value=f"layer{k}")
    for tensor in proto.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
        tensor.metadata_props.add(key="from", value=f"{tensor.name} of the checkpoint")
    proto.graph.metadata_props.add(key="graph", value="main")
    proto.graph.input[0].doc_string = "about the input"
    return proto


def test_all_else_is_kept() -> None:
    proto = annotated()
    small = pruned(proto, {"w1:0": [0, 1, 2], "w2:0": [4, 5]})
    for message in (proto, small):
        del message.graph.initializer[3:]  # the copy of the bias that two layers read
        message.graph.node[2].input[2] = "b"
    for tensor in proto.graph.initializer:
        assert initializer(small, tensor.name).doc_string == f"about {tensor.name}"
        assert initializer(small, tensor.name).metadata_props == tensor.metadata_props
    del proto.graph.initializer[:], small.graph.initializer[:]
    assert small == proto


def test_an_empty_plan_is_the_identity() -> None:
    proto = annotated()
    before = proto.SerializeToString(deterministic=True)
    coupling = coupled(proto)
    whole = {group.factor: np.ones(group.size, bool) for group in coupling.groups}
    for keep in ({}, whole):
        small = shrink(coupling, keep)
        assert small is not proto
        assert small.SerializeToString(deterministic=True) == before


def test_the_original_is_not_touched() -> None:
    proto = annotated()
    before = proto.SerializeToString(deterministic=True)
    coupling = coupled(proto)
    first = shrink(coupling, halves(coupling))
    assert proto.SerializeToString(deterministic=True) == before
    assert first != proto
    assert shrink(coupling, halves(coupling)) == first


@pytest.mark.parametrize("kind", ["BFLOAT16", "DOUBLE", "FLOAT", "FLOAT16"])
def test_element_types_and_bits_are_kept(kind: str) -> None:
    data_type = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    proto = model(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {"w": weight(1, 3, 6).astype(dtype), "v": weight(2, 6, 2).astype(dtype)},
        kind=data_type,
    )
    small = pruned(proto, {"w:1": [1, 5]})
    assert initializer(small, "w").data_type == data_type
    np.testing.assert_array_equal(values(small)["w"], values(proto)["w"][:, [1, 5]])
    np.testing.assert_array_equal(values(small)["v"], values(proto)["v"][[1, 5]])


def replaced(
    proto: onnx.ModelProto, kept: Mapping[str, Sequence[int]], **new: Array
) -> onnx.ModelProto:
    coupling = coupled(proto)
    keep = masks(coupling, kept)
    own = {name.replace("_at_", "@").replace("_", ":"): value for name, value in new.items()}
    small = shrink(coupling, keep, own)
    onnx.checker.check_model(small, full_check=True)
    assert verify(coupling, keep, small, values=own).failure is None
    return small


def test_values_are_replaced_at_full_size() -> None:
    v1 = weight(9, 2, 8, 1, 1)
    proto = branches()
    whole = replaced(proto, {}, v1=v1)
    np.testing.assert_array_equal(values(whole)["v1"], v1)
    initializer(whole, "v1").CopyFrom(initializer(proto, "v1"))
    assert whole == proto
    small = replaced(proto, {"w1:0": [0, 3]}, v1=v1)
    np.testing.assert_array_equal(values(small)["v1"], v1[:, [0, 3]])


def test_values_of_one_use_are_replaced() -> None:
    bias = weight(9, 8)
    proto = branches()
    small = replaced(proto, {"w1:0": [0, 3]}, b_at_y2_2=bias)
    np.testing.assert_array_equal(values(small)["b"], values(proto)["b"][[0, 3]])
    np.testing.assert_array_equal(values(small)["b@y2:2"], bias)


def test_one_use_with_values_of_its_own_is_not_merged_with_another() -> None:
    bias = weight(9, 8)
    proto = branches()
    small = replaced(proto, {"w1:0": [0, 3], "w2:0": [0, 3]}, b_at_y2_2=bias)
    np.testing.assert_array_equal(values(small)["b"], values(proto)["b"][[0, 3]])
    np.testing.assert_array_equal(values(small)["b@y2:2"], bias[[0, 3]])


def test_values_take_the_type_of_the_file() -> None:
    proto = hidden("Cast")
    small = replaced(proto, {}, stored=weight(9, 3, 6))
    assert values(small)["stored"].dtype == np.float16


def outside(path: Path, proto: onnx.ModelProto) -> Path:
    """The model with every tensor in `weights.bin` beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    external_data_helper.convert_model_to_external_data(
        copy, location="weights.bin", size_threshold=0
    )
    onnx.save(copy, path)
    return path


def test_external_data_in_and_out(tmp_path: Path) -> None:
    proto = convolutions()
    source = outside(tmp_path / "m.onnx", proto)
    (tmp_path / "out").mkdir()
    original = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    coupling = couple(normalize(load(source)))
    keep = masks(coupling, {"w1:0": [0, 1, 2], "w2:0": [4, 5]})
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).failure is None
    written = save(small, tmp_path / "out" / "m.onnx", tmp_path)
    assert {path.name for path in written} == {path.name for path in (tmp_path / "out").iterdir()}
    again = onnx.load(tmp_path / "out" / "m.onnx")
    inside = pruned(proto, {"w1:0": [0, 1, 2], "w2:0": [4, 5]})
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(again, x=x)[0], run(inside, x=x)[0])
    for name, value in values(inside).items():
        np.testing.assert_array_equal(values(again)[name], value)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == original
