"""Law: a node that is linear in a stored weight is the product of what it reads and its matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.coupling import Coupling
from onnxprune.linear import Linear, letter_sizes, linear_of, picked
from onnxprune.oracle import masked
from tests.graphs import coupled, halves, model, node, weight

Array = NDArray[Any]
PRECISION = 1e-5  # relative, of float32 products


def built(op: str, x: Sequence[int], w: Sequence[int], bias: int = 0, **given: Any) -> Coupling:
    """One node whose operand is made by a node, and whose result is read by none."""
    weights = {"w": weight(1, *w)} | ({"b": weight(2, bias)} if bias else {})
    names = "r w b" if bias else "r w"
    nodes = [node("Relu", "x", "r"), node(op, names, "y", **given)]
    proto = model(nodes, {"x": x}, {"y": []}, weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return coupled(onnx.shape_inference.infer_shapes(proto))


CASES: dict[str, tuple[str, Sequence[int], Sequence[int], int, dict[str, Any]]] = {
    "conv": ("Conv", [2, 3, 7, 8], [4, 3, 3, 3], 4, {"pads": [1, 0, 1, 2]}),
    "conv 1x1": ("Conv", [2, 3, 5, 5], [4, 3, 1, 1], 0, {}),
    "conv 1x1 strided": ("Conv", [2, 3, 5, 5], [4, 3, 1, 1], 4, {"strides": [2, 2]}),
    "conv strided": ("Conv", [2, 3, 9, 8], [4, 3, 3, 2], 0, {"strides": [2, 3]}),
    "conv dilated": ("Conv", [1, 3, 9, 9], [4, 3, 3, 3], 4, {"dilations": [2, 3]}),
    "conv grouped": ("Conv", [2, 6, 5, 5], [4, 3, 3, 3], 4, {"group": 2}),
    "conv depthwise": ("Conv", [2, 6, 5, 5], [6, 1, 3, 3], 6, {"group": 6, "pads": [1] * 4}),
    "conv multiplied": ("Conv", [2, 3, 5, 5], [6, 1, 3, 3], 6, {"group": 3}),
    "conv 1-D": ("Conv", [2, 3, 12], [4, 3, 5], 4, {"strides": [3], "pads": [2, 1]}),
    "conv 3-D": ("Conv", [1, 2, 5, 4, 6], [3, 2, 2, 3, 2], 3, {"dilations": [1, 1, 2]}),
    "conv same upper": ("Conv", [1, 3, 7, 6], [4, 3, 4, 4], 4, {"auto_pad": "SAME_UPPER"}),
    "conv same lower": (
        *("Conv", [1, 3, 7, 6], [4, 3, 4, 2], 4),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    "transposed": ("ConvTranspose", [2, 3, 4, 5], [3, 4, 3, 3], 4, {}),
    "transposed strided": (
        *("ConvTranspose", [2, 3, 4, 5], [3, 4, 3, 2], 4),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
    ),
    "transposed grouped": (
        *("ConvTranspose", [2, 4, 4, 4], [4, 3, 2, 2], 6),
        {"group": 2, "strides": [2, 2]},
    ),
    "transposed dilated": (
        *("ConvTranspose", [1, 3, 5, 4], [3, 2, 3, 2], 0),
        {"dilations": [2, 3], "pads": [2, 1, 1, 2]},
    ),
    "transposed same": (
        *("ConvTranspose", [1, 3, 5, 4], [3, 2, 3, 3], 0),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "transposed same lower": (
        *("ConvTranspose", [1, 3, 5, 4], [3, 2, 4, 3], 0),
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    ),
    "transposed to a shape": (
        *("ConvTranspose", [1, 3, 5, 4], [3, 2, 3, 3], 2),
        {"output_shape": [10, 8], "strides": [2, 2]},
    ),
    "gemm": ("Gemm", [5, 3], [3, 4], 4, {}),
    "gemm turned": ("Gemm", [3, 5], [4, 3], 4, {"transA": 1, "transB": 1}),
    "matmul": ("MatMul", [2, 5, 3], [3, 4], 0, {}),
    "matmul batched": ("MatMul", [2, 5, 3], [2, 3, 4], 0, {}),
    "matmul vector": ("MatMul", [2, 5, 3], [3], 0, {}),
    "einsum": ("Einsum", [2, 5, 3, 4], [3, 4, 6], 0, {"equation": "abhd,hdo->abo"}),
    "einsum batched": ("Einsum", [2, 5, 3, 4], [3, 4, 6], 0, {"equation": "abhd,hdo->abho"}),
}


def pieces(coupling: Coupling) -> tuple[Linear, Array, Array, Array]:
    """The node, what it reads and gives as matrices (b, p, *), and its weight's matrix."""
    linear = next(x for x in (linear_of(coupling, b) for b in coupling.bound) if x)
    proto = masked(coupling, {}, [linear.node.inputs[linear.data]])
    shape = coupling.model.samples[0].shapes["x"]
    feeds = {"x": np.random.default_rng(0).standard_normal([n or 1 for n in shape], np.float32)}
    y, x = runtime.run(runtime.session(proto, None), feeds, ["y", linear.node.inputs[linear.data]])
    values = coupling.model.params[linear.node.inputs[linear.weight]].read()
    own = letter_sizes(linear, coupling.factors, {})
    matrix = linear.matrix(values, own)
    assert np.array_equal(linear.tensor(matrix, values.shape, own), values)
    grids = linear.inputs(x, y.shape, values.shape, own), linear.outputs(y, own)
    count = len(linear.rows)
    places = np.arange(int(np.prod(grids[0].shape[:count], dtype=int)))
    read, made = (picked(grid, count, places) for grid in grids)
    read = read.reshape(len(places), *matrix.shape[:2]).transpose(1, 0, 2)
    made = made.reshape(len(places), matrix.shape[0], matrix.shape[2]).transpose(1, 0, 2)
    return linear, read, made, matrix


@pytest.mark.parametrize("name", CASES)
def test_a_linear_node_is_a_product_of_matrices(name: str) -> None:
    op, x, w, bias, given = CASES[name]
    coupling = built(op, x, w, bias, **given)
    linear, read, made, matrix = pieces(coupling)
    expected = read.astype(np.float64) @ matrix
    assert (linear.bias is not None) == bool(bias)
    if bias:
        own = coupling.model.params["b"].read()
        expected = expected + own.reshape(matrix.shape[0], 1, matrix.shape[2])
    assert made.size > 4
    assert np.abs(made - expected).max() <= PRECISION * np.abs(expected).max()


@pytest.mark.parametrize("name", [name for name in CASES if "Conv" in CASES[name][0]])
def test_the_sizes_of_a_convolution_are_known_before_it_runs(name: str) -> None:
    op, x, w, bias, given = CASES[name]
    coupling = built(op, x, w, bias, **given)
    (linear,) = (found for b in coupling.bound if (found := linear_of(coupling, b)) is not None)
    made = runtime.runner(coupling.model.proto, None)({"x": np.zeros(x, np.float32)})["y"]
    assert linear.result_shape(x, w)[2:] == made.shape[2:]


def test_rows_are_picked_where_they_stand() -> None:
    grid = np.arange(24).reshape(2, 3, 4)
    assert picked(grid, 2, np.array([0, 4])).tolist() == [[0, 1, 2, 3], [16, 17, 18, 19]]
    assert picked(grid, 0, np.array([0])).shape == (1, 2, 3, 4)


def test_what_is_not_a_product_is_none() -> None:
    scaled = built("Gemm", [5, 3], [3, 4], 4, alpha=0.5)
    assert [linear_of(scaled, bound) for bound in scaled.bound] == [None, None]
    joined = coupled(
        model(
            [node("MatMul", "x x", "y")],
            {"x": [4, 4]},
            {"y": [4, 4]},
            {},
        )
    )
    assert [linear_of(joined, bound) for bound in joined.bound] == [None]


def test_sizes_of_letters_follow_what_is_kept() -> None:
    proto = model(
        [
            node("Conv", "x w1", "a"),
            node("Relu", "a", "r"),
            node("Conv", "r w2", "y", group=2),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 6, 4, 4]},
        {"w1": weight(1, 8, 3, 1, 1), "w2": weight(2, 6, 4, 1, 1)},
    )
    coupling = coupled(proto)
    keep = halves(coupling)
    linear = next(x for b in coupling.bound if b.node.key == "y" and (x := linear_of(coupling, b)))
    counts = {factor: int(mask.sum()) for factor, mask in keep.items()}
    sizes = letter_sizes(linear, coupling.factors, counts)
    assert (sizes["g"], sizes["i"], sizes["o"]) == (2, 2, 3)
