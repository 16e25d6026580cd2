"""Shrink, by example: what is sliced, which attributes and shape operands are restated."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.data import random_inputs
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.shapes import stored
from onnxprune.tables import solve
from tests.graphs import Array, coupled, model, node, weight


def masks(coupling: Coupling, kept: Mapping[str, Sequence[int]]) -> dict[int, Mask]:
    """Masks by factor, from kept indices by group."""
    found = {}
    for name, indices in kept.items():
        group = coupling.group(name)
        assert group is not None, [g.name for g in coupling.groups]
        found[group.factor] = np.isin(np.arange(group.size), indices)
    return found


def pruned(proto: onnx.ModelProto, kept: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The model without the rest, proven to be the masked original."""
    coupling = coupled(proto)
    keep = masks(coupling, kept)
    small = shrink(coupling, keep)
    onnx.checker.check_model(small, full_check=True)
    verdict = verify(coupling, keep, small)
    assert verdict.failure is None
    assert not verdict.blind
    return small


def values(proto: onnx.ModelProto) -> dict[str, Array]:
    """Every constant of the main graph."""
    return {name: numpy_helper.to_array(tensor) for name, tensor in stored(proto).items()}


def attributes(proto: onnx.ModelProto, output: str) -> dict[str, Any]:
    """The attributes of the node that makes a value."""
    (found,) = (n for n in proto.graph.node if output in n.output)
    return {a.name: helper.get_attribute_value(a) for a in found.attribute}


def operand(proto: onnx.ModelProto, output: str, position: int) -> list[Any]:
    """The constant that the node behind a value reads."""
    (found,) = (n for n in proto.graph.node if output in n.output)
    read: list[Any] = values(proto)[found.input[position]].tolist()
    return read


def run(proto: onnx.ModelProto, **feeds: Array) -> list[Array]:
    names = [output.name for output in proto.graph.output]
    return runtime.run(runtime.session(proto, None, optimize=False), feeds, names)


def grouped(groups: int) -> onnx.ModelProto:
    """x (n, 4, 6, 6) -> 8 channels -> 8 channels in groups -> 3."""
    return model(
        [
            node("Conv", "x w1", "a"),
            node("Conv", "a w2 b2", "b", group=groups),
            node("Conv", "b w3", "y"),
        ],
        {"x": ["n", 4, 6, 6]},
        {"y": ["n", 3, 6, 6]},
        {
            "w1": weight(1, 8, 4, 1, 1),
            "w2": weight(2, 8, 8 // groups, 1, 1),
            "b2": weight(3, 8),
            "w3": weight(4, 3, 8, 1, 1),
        },
    )


def test_channels_inside_groups() -> None:
    proto = grouped(2)
    small = pruned(proto, {"w1:0[1]": [0, 3], "w2:0[1]": [1]})
    old, new = values(proto), values(small)
    np.testing.assert_array_equal(new["w1"], old["w1"][[0, 3, 4, 7]])
    np.testing.assert_array_equal(new["w2"], old["w2"][[1, 5]][:, [0, 3]])
    np.testing.assert_array_equal(new["b2"], old["b2"][[1, 5]])
    np.testing.assert_array_equal(new["w3"], old["w3"][:, [1, 5]])
    assert attributes(small, "b") == {"group": 2}


def test_whole_groups() -> None:
    proto = grouped(2)
    small = pruned(proto, {"w1:0[0]": [1]})
    old, new = values(proto), values(small)
    np.testing.assert_array_equal(new["w1"], old["w1"][4:])
    np.testing.assert_array_equal(new["w2"], old["w2"][4:])
    np.testing.assert_array_equal(new["w3"], old["w3"][:, 4:])
    assert attributes(small, "b") == {"group": 1}


def test_depthwise() -> None:
    small = pruned(grouped(8), {"w1:0": [1, 2, 6]})
    assert values(small)["w2"].shape == (3, 1, 1, 1)
    assert attributes(small, "b") == {"group": 3}


def reshaped(shape: Sequence[int]) -> onnx.ModelProto:
    """x (n, 4, 2, 3) -> 8 channels -> Reshape -> MatMul over the last axis."""
    last = 48 if shape[1] == -1 else 6
    return model(
        [
            node("Conv", "x w1", "a"),
            node("Reshape", "a shape", "r"),
            node("MatMul", "r w2", "m"),
            node("ReduceSum", "m axes", "y", keepdims=0),
        ],
        {"x": ["n", 4, 2, 3]},
        {"y": ["n", 5]},
        {
            "w1": weight(1, 8, 4, 1, 1),
            "shape": np.array(shape),
            "w2": weight(2, last, 5),
            "axes": np.arange(1, len(shape) - 1) if len(shape) > 2 else np.array([1], np.int64),
        },
    )


@pytest.mark.parametrize(
    ("shape", "restated"),
    [
        ([0, 8, 6], [0, 3, 6]),
        ([0, 0, -1], [0, 0, -1]),
        ([-1, 8, 6], [-1, 3, 6]),
        ([0, 4, 2, 6], [0, 2, 2, 6]),
    ],
)
def test_a_constant_shape_keeps_its_0_and_minus_1(shape: list[int], restated: list[int]) -> None:
    kept = {"w1:0[0]": [1, 2]} if len(shape) == 4 else {"w1:0": [1, 2, 6]}
    proto = reshaped(shape)
    assert operand(pruned(proto, kept), "r", 1) == restated
    assert operand(proto, "r", 1) == shape


def flattened(batch: int | str) -> onnx.ModelProto:
    """x (batch, 4, 2, 3) -> 8 channels -> Reshape to (Shape(a)[0], 48) -> 5."""
    return model(
        [
            node("Conv", "x w1", "a"),
            node("Shape", "a", "s"),
            node("Gather", "s zero", "n"),
            node("Unsqueeze", "n axes", "u"),
            node("Concat", "u rest", "shape", axis=0),
            node("Reshape", "a shape", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"x": [batch, 4, 2, 3]},
        {"y": [batch, 5]},
        {
            "w1": weight(1, 8, 4, 1, 1),
            "zero": np.array(0),
            "axes": np.array([0]),
            "rest": np.array([48]),
            "w2": weight(2, 48, 5),
        },
    )


def test_a_computed_shape_is_patched_where_it_is_dynamic() -> None:
    proto = flattened("n")
    small = pruned(proto, {"w1:0": [0, 2, 3]})
    assert values(small)["w2"].shape == (18, 5)
    assert [n.op_type for n in small.graph.node][-4:] == ["Mul", "Div", "Reshape", "MatMul"]
    for size in (1, 4):
        (y,) = run(small, x=np.ones((size, 4, 2, 3), np.float32))
        assert y.shape == (size, 5)


def test_a_computed_shape_is_replaced_where_it_is_fixed() -> None:
    small = pruned(flattened(2), {"w1:0": [0, 2, 3]})
    assert operand(small, "r", 1) == [2, 18]
    assert [n.op_type for n in small.graph.node] == ["Conv", "Reshape", "MatMul"]
    assert list(values(small)) == ["w1", "w2", "shape@r:1"]


@pytest.mark.parametrize("batch", [2, "n"])
def test_arithmetic_on_shapes_keeps_its_meaning(batch: int | str) -> None:
    """The scale of an attention is 1/sqrt(d) of the d that the weights were trained for."""
    proto = model(
        [
            node("MatMul", "x wq", "q"),
            node("MatMul", "x wk", "k"),
            node("Shape", "q", "s"),
            node("Gather", "s two", "d"),
            node("Cast", "d", "f", to=TensorProto.FLOAT),
            node("Sqrt", "f", "scale"),
            node("Transpose", "k", "kt", perm=[0, 2, 1]),
            node("MatMul", "q kt", "qk"),
            node("Div", "qk scale", "y"),
        ],
        {"x": [batch, 3, 4]},
        {"y": [batch, 3, 3]},
        {"wq": weight(1, 4, 16), "wk": weight(2, 4, 16), "two": np.array(2)},
    )
    small = pruned(proto, {"wq:1": [0, 5, 6]})
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    wq, wk = values(small)["wq"], values(small)["wk"]
    assert wq.shape == wk.shape == (4, 3)
    np.testing.assert_allclose(
        run(small, x=x)[0], (x @ wq) @ (x @ wk).transpose(0, 2, 1) / 4, rtol=1e-5, atol=1e-6
    )


def split(opset: int, *operands: str, **stated: Any) -> onnx.ModelProto:
    """x (n, 3) -> 8 channels -> Split in halves -> their products with 4 weights each, added."""
    weights = {"w": weight(1, 3, 8), "wa": weight(2, 4, 5), "wb": weight(3, 4, 5)}
    if operands:
        weights[operands[0]] = np.array([4, 4])
    return model(
        [
            node("MatMul", "x w", "h"),
            node("Split", " ".join(["h", *operands]), "a b", axis=1, **stated),
            node("MatMul", "a wa", "ya"),
            node("MatMul", "b wb", "yb"),
            node("Add", "ya yb", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 5]},
        weights,
        opset=opset,
    )


@pytest.mark.parametrize(
    "proto",
    [
        pytest.param(split(13), id="even"),
        pytest.param(split(13, "sizes"), id="stated"),
        pytest.param(split(18, num_outputs=2), id="num_outputs"),
    ],
)
def test_split(proto: onnx.ModelProto) -> None:
    small = pruned(proto, {"w:1[0]": [0, 1, 3], "w:1[1]": [2]})
    assert values(small)["w"].shape == (3, 4)
    assert operand(small, "a", 1) == [3, 1]
    assert attributes(small, "a") == {"axis": 1}


@pytest.mark.parametrize("stated", [{}, {"split": [4, 4]}])
def test_split_of_old_opsets(stated: dict[str, list[int]]) -> None:
    small = pruned(split(11, **stated), {"w:1[0]": [0, 1, 3], "w:1[1]": [2]})
    assert attributes(small, "a") == {"axis": 1, "split": [3, 1]}


@pytest.mark.parametrize(
    ("start", "end", "restated"),
    [(2, -1, (1, 3)), (-6, 7, (1, 3)), (2, 2**63 - 1, (1, 4)), (0, -1, (0, 3)), (-6, 100, (1, 4))],
)
def test_slice_counts_from_either_end(start: int, end: int, restated: tuple[int, int]) -> None:
    """Of 8 channels [a a . . . . . b] the kept ones are a[1], two of the middle, and b."""
    kept, size = [1, 3, 4, 7], len(range(8)[start : min(end, 8)])
    proto = model(
        [
            node("MatMul", "x w", "h"),
            node("Slice", "h starts ends axes", "s"),
            node("MatMul", "s wa", "ya"),
            node("MatMul", "h wb", "yb"),
            node("Add", "ya yb", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 5]},
        {
            "w": weight(1, 3, 8),
            "starts": np.array([start]),
            "ends": np.array([end]),
            "axes": np.array([1]),
            "wa": weight(2, size, 5),
            "wb": weight(3, 8, 5),
        },
    )
    coupling = coupled(proto)
    keep = solve(coupling.factors, coupling.layouts["w"][1], np.isin(np.arange(8), kept))
    assert keep is not None
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).failure is None
    old, new = values(proto), values(small)
    np.testing.assert_array_equal(new["w"], old["w"][:, kept])
    inside = [k for k in kept if k in range(8)[start : min(end, 8)]]
    first = range(8)[start : min(end, 8)][0]
    np.testing.assert_array_equal(new["wa"], old["wa"][[k - first for k in inside]])
    found = operand(small, "s", 1)[0], min(operand(small, "s", 2)[0], 4)
    assert found == restated


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op: str, gates: int) -> None:
    proto = model(
        [
            node(op, "x w r b", "s h", hidden_size=4),
            node("Squeeze", "h zero", "last"),
            node("MatMul", "last w1", "y"),
        ],
        {"x": [5, "n", 3]},
        {"y": ["n", 2]},
        {
            "w": weight(1, 1, gates * 4, 3),
            "r": weight(2, 1, gates * 4, 4),
            "b": weight(3, 1, 2 * gates * 4),
            "zero": np.array([0]),
            "w1": weight(4, 4, 2),
        },
    )
    kept = [1, 2, 3]
    coupling = coupled(proto)
    (group,) = coupling.groups
    small = pruned(proto, {group.name: kept})
    rows = [4 * gate + k for gate in range(gates) for k in kept]
    old, new = values(proto), values(small)
    np.testing.assert_array_equal(new["w"], old["w"][:, rows])
    np.testing.assert_array_equal(new["r"], old["r"][:, rows][:, :, kept])
    np.testing.assert_array_equal(new["b"][:, : len(rows)], old["b"][:, rows])
    np.testing.assert_array_equal(new["w1"], old["w1"][kept])
    assert attributes(small, "s")["hidden_size"] == 3


def test_sizes_of_resize_and_expand() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("Resize", "a - - sizes", "b", mode="nearest"),
            node("GlobalAveragePool", "b", "p"),
            node("Expand", "p shape", "e"),
            node("Add", "b e", "c"),
            node("Conv", "c w2", "y"),
        ],
        {"x": [2, 3, 4, 4]},
        {"y": [2, 5, 8, 8]},
        {
            "w1": weight(1, 6, 3, 1, 1),
            "sizes": np.array([2, 6, 8, 8]),
            "shape": np.array([2, 6, 8, 8]),
            "w2": weight(2, 5, 6, 1, 1),
        },
    )
    small = pruned(proto, {"w1:0": [0, 5]})
    assert operand(small, "b", 3) == [2, 2, 8, 8]
    assert operand(small, "e", 1) == [2, 2, 8, 8]


def test_an_expand_to_computed_sizes_that_states_one_index() -> None:
    """A 1 among the sizes leaves the axis as it comes: a position bias, as MPNet writes it."""
    proto = model(
        [
            node("Shape", "x", "n", end=1),
            node("Concat", "n one", "sizes", axis=0),
            node("Relu", "w1", "bias"),
            node("Expand", "bias sizes", "e"),
            node("Gemm", "e w2", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 3]},
        {"one": np.array([1]), "w1": weight(1, 1, 6), "w2": weight(2, 6, 3)},
    )
    small = pruned(proto, {"w1:1": [0, 5]})
    old = values(proto)
    expected = np.maximum(old["w1"][:, [0, 5]], 0) @ old["w2"][[0, 5]]
    (found,) = run(small, x=np.zeros((4, 3), np.float32))
    np.testing.assert_allclose(found, np.repeat(expected, 4, axis=0), rtol=1e-6)


def folded_heads(*inside: onnx.NodeProto) -> onnx.ModelProto:
    """Attention heads folded into a dynamic batch and out again, as PyTorch turns keys around."""
    return model(
        [
            node("MatMul", "x w1", "a"),
            node("Reshape", "a apart", "b"),
            node("Transpose", "b", "c", perm=[0, 2, 1, 3]),
            node("Reshape", "c folded", "d"),
            *(inside or [node("MatMul", "d w3", "e")]),
            node("Reshape", "e unfolded", "f"),
            node("Transpose", "f", "g", perm=[0, 2, 1, 3]),
            node("Reshape", "g joined", "h"),
            node("MatMul", "h w2", "y"),
        ],
        {"x": ["n", 5, 6]},
        {"y": ["n", 5, 2]},
        {
            "w1": weight(1, 6, 12),
            "w2": weight(2, 12, 2),
            "w3": weight(3, 3, 3),
            "apart": np.array([-1, 5, 4, 3]),
            "folded": np.array([-1, 5, 3]),
            "unfolded": np.array([-1, 4, 5, 3]),
            "joined": np.array([-1, 5, 12]),
            "zero": np.array([0]),
        },
    )


def test_heads_that_are_folded_into_a_dynamic_batch() -> None:
    small = pruned(folded_heads(), {"w1:1[0]": [1, 2], "w1:1[1]": [0, 2]})
    assert operand(small, "d", 1) == [-1, 5, 2]
    assert operand(small, "f", 1) == [-1, 2, 5, 3]
    for batch in (1, 2, 3):
        (found,) = run(small, x=np.ones((batch, 5, 6), np.float32))
        assert found.shape == (batch, 5, 2)


@pytest.mark.parametrize(
    "inside",
    [
        [node("Softmax", "d", "e", axis=0)],
        [node("ReduceSum", "d zero", "total", keepdims=1), node("Mul", "d total", "e")],
        [node("CumSum", "d zero", "e")],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_heads_stay_whole_where_the_folded_batch_is_combined(inside: list[onnx.NodeProto]) -> None:
    """Their indices are not known by number: the batch is dynamic."""
    names = [group.name for group in coupled(folded_heads(*inside)).groups]
    assert names == ["w1:1[1]"]


def test_ids_of_each_head_go_with_the_head() -> None:
    """Relative positions that are gathered per head, as DeBERTa does at fixed sizes."""
    ids = np.random.default_rng(0).integers(0, 6, (2, 4, 3))
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Reshape", "a apart", "b"),
            node("GatherElements", "b ids", "c", axis=-1),
            node("Reshape", "c joined", "d"),
            node("MatMul", "d w2", "y"),
        ],
        {"x": [2, 5]},
        {"y": [2, 3]},
        {
            "w1": weight(1, 5, 24),
            "w2": weight(2, 12, 3),
            "ids": ids,
            "apart": np.array([2, 4, 6]),
            "joined": np.array([2, 12]),
        },
    )
    (heads,) = coupled(proto).groups
    small = pruned(proto, {heads.name: [0, 2]})
    np.testing.assert_array_equal(values(small)["ids"], ids[:, [0, 2]])


@pytest.mark.parametrize("count", [0, 2])
def test_tokens_that_there_may_be_none_of(count: int) -> None:
    """The registers of a vision transformer without registers: no weight, and yet channels."""
    proto = model(
        [
            node("MatMul", "x w1", "t"),
            node("Shape", "x", "n", end=1),
            node("Concat", "n ones", "sizes", axis=0),
            node("Expand", "registers sizes", "r"),
            node("Concat", "r t", "c", axis=1),
            node("MatMul", "c w2", "y"),
        ],
        {"x": ["n", 3, 4]},
        {"y": ["n", 3 + count, 2]},
        {
            "registers": weight(0, 1, count, 6),
            "w1": weight(1, 4, 6),
            "w2": weight(2, 6, 2),
            "ones": np.array([1, 1]),
        },
    )
    (group,) = coupled(proto).groups
    small = pruned(proto, {group.name: [0, 2, 3]})
    assert values(small)["registers"].shape == (1, count, 3)


@pytest.mark.parametrize(
    "told",
    [
        [node("Shape", "a", "told", start=0, end=1)],
        [node("Shape", "a", "shape", start=-2), node("ReduceProd", "shape", "told")],
        [
            node("Size", "a", "size"),
            node("Unsqueeze", "size zero", "vector"),
            node("ConstantOfShape", "vector", "nothing"),
            node("Shape", "nothing", "told"),
        ],
    ],
    ids=["the batch", "the last axes", "all elements"],
)
def test_what_reads_sizes_of_a_dynamic_value_reads_the_old_ones(
    told: list[onnx.NodeProto],
) -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            *told,
            node("Cast", "told", "number", to=TensorProto.FLOAT),
            node("Add", "a number", "b"),
            node("MatMul", "b w2", "y"),
        ],
        {"x": ["n", 5, 3]},
        {"y": ["n", 5, 2]},
        {"w1": weight(1, 3, 6), "w2": weight(2, 6, 2), "zero": np.array([0])},
    )
    pruned(proto, {"w1:1": [0, 2, 3]})


def test_zeros_made_at_run_time() -> None:
    """An initial state of computed size, as PyTorch writes it."""
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Slice", "s one two", "n"),
            node("Concat", "one n four", "size", axis=0),
            node("ConstantOfShape", "size", "h0"),
            node("GRU", "x w r - - h0", "all h", hidden_size=4),
            node("Squeeze", "h zero", "last"),
            node("MatMul", "last w1", "y"),
        ],
        {"x": [5, "n", 3]},
        {"y": ["n", 2]},
        {
            "one": np.array([1]),
            "two": np.array([2]),
            "four": np.array([4]),
            "zero": np.array([0]),
            "w": weight(1, 1, 12, 3),
            "r": weight(2, 1, 12, 4),
            "w1": weight(4, 4, 2),
        },
    )
    (group,) = coupled(proto).groups
    small = pruned(proto, {group.name: [0, 3]})
    assert run(small, x=np.ones((5, 7, 3), np.float32))[0].shape == (7, 2)


def test_a_pruned_model_can_be_pruned_again() -> None:
    small = pruned(flattened("n"), {"w1:0": [0, 2, 3, 7]})
    smaller = pruned(small, {"w1:0": [1, 3]})
    made = [name for n in smaller.graph.node for name in n.output]
    made += [tensor.name for tensor in smaller.graph.initializer]
    assert len(made) == len(set(made))
    np.testing.assert_array_equal(values(smaller)["w1"], values(flattened("n"))["w1"][[2, 7]])


@given(st.data())
def test_a_chain_is_sliced(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(2, 9), min_size=3, max_size=6), "widths")
    kept = [
        sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1), "kept"))
        for size in widths[1:-1]
    ]
    matrices = [weight(k, *sizes) for k, sizes in enumerate(pairwise(widths))]
    nodes, value = [], "x"
    for k in range(len(matrices)):
        nodes.append(node("MatMul", f"{value} w{k}", f"m{k}"))
        nodes.append(node("Sigmoid", f"m{k}", f"s{k}"))
        value = f"s{k}"
    proto = model(
        nodes,
        {"x": ["n", widths[0]]},
        {value: ["n", widths[-1]]},
        {f"w{k}": matrix for k, matrix in enumerate(matrices)},
    )
    coupling = coupled(proto)
    groups = {f"w{k}:1": indices for k, indices in enumerate(kept)}
    small = shrink(coupling, masks(coupling, groups))
    feeds = random_inputs(coupling.model, 0)
    expected = feeds["x"]
    rows = list(range(widths[0]))
    for matrix, columns in zip(matrices, [*kept, list(range(widths[-1]))], strict=True):
        expected = 1 / (1 + np.exp(-(expected @ matrix[rows][:, columns])))
        rows = columns
    np.testing.assert_allclose(run(small, **feeds)[0], expected, rtol=1e-5)
