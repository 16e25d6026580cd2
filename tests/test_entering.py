"""Bodies that no run enters: the proof says that they were not seen."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import entering
from onnxprune.pair import Pair
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.verdict import Verification
from onnxprune.ways import ways
from tests.graphs import coupled, halves, model, node, weight
from tests.test_control import BOOL, FLOAT, INT, branches, graph, loop, scan, tensors

UNSEEN = "does not run on these inputs: what it gives was not compared"


def turning(times: int, nested: bool = False) -> onnx.ModelProto:
    """A loop that goes round so many times."""
    proto = loop(nested)
    count = next(t for t in proto.graph.initializer if t.name == "m")
    count.CopyFrom(numpy_helper.from_array(np.array(times), "m"))
    return proto


def verified(proto: onnx.ModelProto, spoilt: str = "") -> Verification:
    """The verdict; one of the pruned tensors is spoilt where that is asked for."""
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    for tensor in tensors(small):
        if tensor.name == spoilt:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(2), spoilt))
    return verify(coupling, keep, small)


def test_a_loop_that_goes_round_zero_times_is_told() -> None:
    for spoilt in ("", "k"):
        found = verified(turning(0), spoilt)
        assert found.ok
        assert found.notes == (f"the body of node 'n_h' (Loop) {UNSEEN}",)
    assert verified(turning(5)).notes == ()
    assert not verified(turning(5), "k").ok


def test_all_that_stands_in_such_a_loop_is_told() -> None:
    assert verified(turning(0, nested=True)).notes == (
        f"the body of node 'n_h' (Loop) {UNSEEN}",
        f"the else branch of node 'n_h_out' (If) {UNSEEN}",
        f"the then branch of node 'n_h_out' (If) {UNSEEN}",
    )
    assert verified(turning(1, nested=True)).notes == ()  # each branch is run, though only one does


def test_the_note_is_in_the_report() -> None:
    _, report = onnxprune.prune(turning(0), ratio=0.5, align=1)
    assert report.verification is not None
    assert report.verification.notes == (f"the body of node 'n_h' (Loop) {UNSEEN}",)


def test_what_runs_is_not_told() -> None:
    assert verified(branches()).notes == ()
    assert verified(scan()).notes == ()


def test_a_body_that_loses_nothing_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run under a profile is made for it."""
    body = graph(
        [node("Identity", "c_in", "c_out"), node("Add", "s_in s_in", "s_out")],
        [("c_out", BOOL), ("s_out", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("s_in", FLOAT, [2])],
    )
    proto = model(
        [
            node("Loop", "none - s", "t", body=body),
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "b"),
            node("Mul", "b t", "y"),
        ],
        {"x": [3, 4], "s": [2]},
        {"y": [3, 2]},
        {"w1": weight(1, 4, 8), "w2": weight(2, 8, 2), "none": np.array(0)},
    )
    monkeypatch.setattr(entering, "_ran", lambda *_: pytest.fail("it is run"))
    assert verified(proto).notes == ()


def test_a_branch_that_the_original_can_not_run_is_told() -> None:
    """Its condition asks for the sizes that it works at; random inputs have none of these."""
    other = graph(
        [node("Reshape", "h nine", "h9"), node("MatMul", "h v", "e")],
        [("e", FLOAT)],
        v=weight(3, 8, 6),
        nine=np.array([9, 9]),
    )
    other.node.append(node("ReduceSum", "h9", "total", keepdims=0))
    other.node.append(node("Add", "e total", "both"))
    other.output[0].name = "both"
    then = graph([node("MatMul", "h w", "d")], [("d", FLOAT)], w=weight(4, 8, 6))
    proto = model(
        [
            node("MatMul", "x w1", "h"),
            node("ReduceMax", "x", "top", keepdims=0),
            node("Less", "top high", "c"),
            node("If", "c", "m", then_branch=then, else_branch=other),
            node("MatMul", "m w2", "y"),
        ],
        {"x": [3, 4]},
        {"y": [3, 3]},
        {"w1": weight(5, 4, 8), "w2": weight(6, 6, 3), "high": np.array(99, np.float32)},
    )
    assert verified(proto).notes == (f"the else branch of node 'n_m' (If) {UNSEEN}",)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_looked_at_as_well(kind: int) -> None:
    """It runs as float32 there; ONNX Runtime has no kernels of bfloat16 for the CPU."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for times in (0, 3):
        proto = turning(times)
        for tensor in tensors(proto):
            if tensor.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor).astype(dtype)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        body = proto.graph.node[1].attribute[0].g
        for value in (*proto.graph.input, *proto.graph.output, *body.input, *body.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = kind
        found = verified(proto)
        assert found.ok, found.failure
        assert [note for note in found.notes if UNSEEN in note] == (
            [] if times else [f"the body of node 'n_h' (Loop) {UNSEEN}"]
        )


def test_on_a_way_only_what_lies_behind_its_branch_is_compared() -> None:
    """The rest has been compared on the way that the condition says."""
    proto = branches()
    proto.graph.node.insert(0, node("MatMul", "x0 w0", "x1"))
    proto.graph.node.insert(1, node("Relu", "x1", "x"))
    proto.graph.input[0].name = "x0"
    proto.graph.initializer.append(numpy_helper.from_array(weight(9, 4, 4), "w0"))
    coupling = coupled(proto)
    keep = halves(coupling)
    pair = Pair(coupling, keep, shrink(coupling, keep))
    assert pair.telling() == ["x1", "h", "m"]
    for way in ways(coupling, keep):
        assert Pair(coupling, keep, pair.shrunk, forced=way.steps).telling() == ["m"]


def test_nodes_are_told_by_names_of_any_letters(tmp_path: Path) -> None:
    """As ONNX Runtime writes them: an event a line, of the names of nodes as JSON."""
    event = {
        "cat": "Node",
        "dur": 2,
        "name": 'a"b\\_\u00e9\n_kernel_time',
        "args": {"op_name": "Relu"},
    }
    lines = [json.dumps(event), json.dumps({**event, "name": "model_run"})]
    profile = tmp_path / "run.json"
    profile.write_text("[\n" + ",\n".join(lines * 2) + "\n]\n", "utf-8")
    assert entering._named(profile) == {'a"b\\_\u00e9\n'}
