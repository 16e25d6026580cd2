"""Models that were, or could have been, silently wrong; each is small and legal."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import runtime
from onnxprune.errors import BadPlanError, VerificationError
from onnxprune.model import Array, captures
from tests import tiny


def _model(
    nodes: list[onnx.NodeProto], shape: list[int | str], outputs: list[str], **weights: Array
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(w, k) for k, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _run(model: onnx.ModelProto, x: Array) -> Array:
    return runtime.run(runtime.session(model, None), {"x": x}, ["y"])[0]


def test_a_length_that_agrees_in_both_samples_is_not_written_into_the_file() -> None:
    """The mean over a sequence that is cut at 16: shorter sequences have to work as before."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Slice", ["h", "zero", "sixteen", "one"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "at"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c", "one"], ["t"], keepdims=0),
        helper.make_node("Div", ["t", "f"], ["m"]),
        helper.make_node("MatMul", ["m", "w2"], ["y"]),
    ]
    weights = {"w1": _normal(6, 16), "w2": _normal(16, 3), "at": np.array(1)}
    ints = {"zero": np.array([0]), "sixteen": np.array([16]), "one": np.array([1])}
    model = _model(nodes, [1, "L", 6], ["y"], **weights, **ints)
    small, report = onnxprune.prune(model, ratio=0.5)
    masked = {k: w.copy() for k, w in weights.items()}
    kept = report.plan.groups["w1:1"].keep
    masked["w2"][np.setdiff1d(np.arange(16), kept)] = 0
    oracle = _model(nodes, [1, "L", 6], ["y"], **masked, **ints)
    for length in (40, 8):
        x = _normal(1, length, 6)
        np.testing.assert_allclose(_run(small, x), _run(oracle, x), rtol=1e-5)


def test_a_matrix_that_stands_twice_in_one_node_has_one_layout() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "p"], ["h"]),
        helper.make_node("Einsum", ["h", "w", "w"], ["i"], equation="bi,ij,jk->bk"),
        helper.make_node("MatMul", ["i", "q"], ["y"]),
    ]
    model = _model(nodes, [2, 3], ["y"], p=_normal(3, 8), w=_normal(8, 8), q=_normal(8, 4))
    small, report = onnxprune.prune(model, ratio=0.5)
    assert report.verification is not None
    assert {t.name: list(t.dims) for t in small.graph.initializer}["w"] == [4, 4]


def test_nodes_without_a_first_result_are_told_apart() -> None:
    def layer(h: str, x: str, out: str, size: int) -> onnx.NodeProto:
        inputs = [x, f"w{h}", f"r{h}", f"b{h}"]
        return helper.make_node("LSTM", inputs, ["", out], hidden_size=size)

    nodes = [
        layer("1", "x", "h1", 8),
        layer("2", "x", "h2", 12),
        helper.make_node("Concat", ["h1", "h2"], ["h"], axis=2),
        helper.make_node("MatMul", ["h", "q"], ["y"]),
    ]
    weights = {}
    for h, size in (("1", 8), ("2", 12)):
        weights[f"w{h}"] = _normal(1, 4 * size, 5)
        weights[f"r{h}"] = _normal(1, 4 * size, size)
        weights[f"b{h}"] = _normal(1, 8 * size)
    model = _model(nodes, [7, 2, 5], ["y"], **weights, q=_normal(20, 3))
    small, _ = onnxprune.prune(model, ratio=0.5)
    sizes = [node.attribute[0].i for node in small.graph.node if node.op_type == "LSTM"]
    assert sizes == [4, 6]


def test_a_proof_that_compares_nothing_is_none() -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["l"]),
        helper.make_node("Sqrt", ["l"], ["s"]),
        helper.make_node("MatMul", ["s", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    model = _model(nodes, [4, 3], ["y"], w1=_normal(3, 8), w2=_normal(8, 2))
    with pytest.raises(VerificationError, match=r"nothing that varies could be compared.*--inputs"):
        onnxprune.prune(model, ratio=0.5)
    real = {"x": np.random.default_rng(0).uniform(3, 9, (4, 3)).astype(np.float32)}
    onnxprune.prune(model, ratio=0.5, inputs=real)


def test_an_edited_group_alone_is_refused() -> None:
    model = tiny.net()
    _, report = onnxprune.prune(model, ratio=0.5)
    plan = report.plan
    group = plan.groups["w1:0"].model_copy(update={"keep": [0]})
    edited = plan.model_copy(update={"groups": {**plan.groups, "w1:0": group}})
    with pytest.raises(BadPlanError, match="group 'w1:0' and its initializers keep different"):
        onnxprune.apply(model, edited)


def test_a_body_knows_its_sparse_initializers() -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sp")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [2])
    body = helper.make_graph([helper.make_node("Identity", ["sp"], ["z"])], "b", [], [])
    body.sparse_initializer.append(sparse)
    node = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    assert captures(node) == ()
