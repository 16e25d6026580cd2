"""Odd files that ONNX Runtime takes: values that a caller may give, names that are there twice."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune.errors import NothingToPruneError
from tests.graphs import convolutions, coupled, model, node, weight
from tests.test_bodies import agree, small_and_silent

X = weight(9, 2, 5, 6)


def list_inputs(proto: onnx.ModelProto, *names: str) -> None:
    """List initializers among the inputs: all of them where no name is given."""
    for tensor in proto.graph.initializer:
        if tensor.name in names or not names:
            kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(kind)


def heads(version: int) -> onnx.ModelProto:
    """x (n, 5, 6) -> 8 wide, as 2 heads of 4 and back again -> 4 -> Relu 8 -> 3."""
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Reshape", "a heads", "b"),
            node("Reshape", "b flat", "c"),
            node("MatMul", "c w2", "d"),
            node("MatMul", "d w3", "e"),
            node("Relu", "e", "r"),
            node("MatMul", "r w4", "y"),
        ],
        {"x": ["n", 5, 6]},
        {"y": ["n", 5, 3]},
        {
            "w1": weight(1, 6, 8),
            "w2": weight(2, 8, 4),
            "w3": weight(3, 4, 8),
            "w4": weight(4, 8, 3),
            "heads": np.array([0, 5, 2, 4]),
            "flat": np.array([0, 5, 8]),
        },
    )
    proto.ir_version = version
    return proto


@pytest.mark.parametrize("named", ["heads", "flat"])
def test_sizes_that_a_caller_may_give_stay(named: str) -> None:
    """One who gives other heads gets what the original gives, with the layer behind smaller."""
    proto = heads(8)
    list_inputs(proto, named)
    coupling = coupled(proto)
    assert [group.name for group in coupling.groups] == ["w2:1", "w3:1"]
    reason = coupling.factors.reason(coupling.layouts["w1"][1])
    assert reason is not None
    expected = f"'{named}' is a default, and a caller may give other values"
    assert expected in coupling.says(reason)
    small, silent = small_and_silent(proto)
    given = {"heads": [0, 5, 4, 2], "flat": [2, -1, 8]}[named]
    for feeds in ({}, {named: np.array(given, np.int64)}):
        assert agree(small, silent, {"x": X, **feeds})


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_that_are_all_listed_are_constants(version: int) -> None:
    """So exporters wrote files for years; the notes say what a caller must know."""
    proto = heads(version)
    list_inputs(proto)
    small, report = onnxprune.prune(proto, ratio=0.5, align=1)
    listed = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in small.graph.input[1:]
    }
    assert listed == {tensor.name: list(tensor.dims) for tensor in small.graph.initializer}
    assert listed["w1"] == [6, 2]  # half of the heads and half of each
    told = [note for note in report.notes if "listed as inputs" in note]
    assert told == (
        [
            "4 weights are listed as inputs ('w1', ...): they are smaller now, and a caller who "
            "gives values for one has to give smaller ones"
        ]
        if version == 8
        else []
    )


def test_sizes_alone_are_no_habit() -> None:
    """All initializers are listed, but the weights are in Constant nodes: somebody chose these."""
    proto = heads(8)
    weights = [t for t in proto.graph.initializer if t.name.startswith("w")]
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in weights]
    sizes = [t for t in proto.graph.initializer if t not in weights]
    nodes = [*constants, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend(sizes)
    proto.graph.node.extend(nodes)
    list_inputs(proto)
    assert [group.name for group in coupled(proto).groups] == ["w2:1", "w3:1"]


def test_what_is_made_of_a_default_is_not_folded() -> None:
    """The input would be gone: a caller could not give another value any more."""
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("OneHot", "ids depth two", "rows"),
            node("MatMul", "rows table", "t"),
            node("Add", "a t", "b"),
            node("MatMul", "b w2", "y"),
        ],
        {"x": ["n", 5, 6]},
        {"y": ["n", 5, 3]},
        {
            "w1": weight(1, 6, 8),
            "table": weight(2, 3, 8),
            "w2": weight(3, 8, 3),
            "ids": np.array([0, 1, 2, 1, 0]),
            "depth": np.array(3),
            "two": np.array([0, 1], np.float32),
        },
    )
    list_inputs(proto, "two")
    assert [group.name for group in coupled(proto).groups] == ["w1:1"]
    small, silent = small_and_silent(proto)
    for feeds in ({}, {"two": np.array([-1, 2], np.float32)}):
        assert agree(small, silent, {"x": X, **feeds})


def of_one_name(proto: onnx.ModelProto) -> None:
    for own in proto.graph.node:
        own.name = "same"


def of_no_name(proto: onnx.ModelProto) -> None:
    for own in proto.graph.node:
        own.name = ""


def unsorted(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def of_unknown_domains(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("nobody.knows", 7))
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))


@pytest.mark.parametrize("change", [of_one_name, of_no_name, unsorted, of_unknown_domains])
def test_names_and_order_of_nodes_make_no_difference(
    change: Callable[[onnx.ModelProto], None],
) -> None:
    """The same indices go, whatever nodes are called; what they are called stays."""
    plain, odd = convolutions(), convolutions()
    change(odd)
    expected, _ = onnxprune.prune(plain, ratio=0.5, align=1)
    small, report = onnxprune.prune(odd, ratio=0.5, align=1)
    assert report.verification is not None
    assert report.verification.ok
    assert list(small.opset_import) == list(odd.opset_import)
    assert [own.name for own in small.graph.node] == [own.name for own in odd.graph.node]
    assert [own.output for own in small.graph.node] == [own.output for own in odd.graph.node]
    tensors = [{t.name: t for t in proto.graph.initializer} for proto in (small, expected)]
    assert tensors[0] == tensors[1]
    assert report.plan.groups.keys() == {"w1:0", "w2:0"}


def test_an_explanation_of_a_node_without_a_name_goes_by_its_result() -> None:
    proto = convolutions()
    of_no_name(proto)
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Odd", "nobody.knows"
    of_unknown_domains(proto)
    assert "node 'r1' (nobody.knows::Odd)" in onnxprune.explain(proto, "w1:0")


@pytest.mark.parametrize(
    ("dtype", "block"),
    [("int4", 0), ("uint4", 0), ("int4", 2), ("float8_e4m3fn", 0), ("float8_e5m2", 0)],
)
def test_constants_of_few_bits_shrink(dtype: str, block: int) -> None:
    """A weight (6, 8) behind DequantizeLinear loses outputs and inputs, in blocks too."""
    kind = {
        "int4": onnx.TensorProto.INT4,
        "uint4": onnx.TensorProto.UINT4,
        "float8_e4m3fn": onnx.TensorProto.FLOAT8E4M3FN,
        "float8_e5m2": onnx.TensorProto.FLOAT8E5M2,
    }[dtype]
    values = np.random.default_rng(3).integers(0 if "u" in dtype else -7, 7, (8, 6))
    stored = helper.make_tensor("q", kind, (8, 6), values.reshape(-1).tolist())
    scale = np.abs(weight(5, 4, 6)) if block else np.abs(weight(5, 6))
    how = {"axis": 0, "block_size": 2} if block else {"axis": 1}
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("DequantizeLinear", "q scale", "w2", **how),
            node("MatMul", "r w2", "b"),
            node("Relu", "b", "s"),
            node("MatMul", "s w3", "y"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 3]},
        {"w1": weight(1, 4, 8), "scale": scale + np.float32(0.1), "w3": weight(2, 6, 3)},
        opset=21,
    )
    proto.ir_version = 10
    proto.graph.initializer.append(stored)
    small, report = onnxprune.prune(proto, ratio=0.5, align=1)
    assert report.verification is not None
    assert report.verification.ok
    shrunk = next(t for t in small.graph.initializer if t.name == "q")
    assert (shrunk.data_type, list(shrunk.dims)) == (kind, [4, 3])
    rows, columns = (report.plan.initializers["q"][axis] for axis in (0, 1))
    found = onnx.numpy_helper.to_array(shrunk).astype(np.float32)
    np.testing.assert_array_equal(found, values[np.ix_([*rows], [*columns])])


def test_weights_that_are_filled_in_at_run_time_are_no_stored_ones() -> None:
    """So are the files of onnx's own that show architectures alone."""
    proto = model(
        [
            node("ConstantOfShape", "sizes", "w"),
            node("Conv", "x w", "a"),
            node("ConstantOfShape", "sizes2", "w2"),
            node("Conv", "a w2", "y"),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 2, 4, 4]},
        {"sizes": np.array([8, 3, 1, 1]), "sizes2": np.array([2, 8, 1, 1])},
    )
    told = (
        r"stores no weights: 2 nodes, such as node 'n_w' \(ConstantOfShape\), fill them with one "
        "value each when it runs"
    )
    with pytest.raises(NothingToPruneError, match=told):
        onnxprune.prune(proto, ratio=0.5)
