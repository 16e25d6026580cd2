"""Shapes that inference leaves unknown: runs show them, but for what data decides."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune import tracing
from onnxprune.coupling import Coupling
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import Size, coupled, halves, model, node, weight

MS = {"domain": "com.microsoft"}
TWO_LAYERS = {"w1": weight(1, 4, 8), "w2": weight(2, 8, 3)}
LAYERS = [node("MatMul", "i w1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")]


def of_microsoft(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def behind(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Size]],
    outputs: Sequence[Size],
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """Nodes that make ``i`` (..., 4), and two layers behind it, 8 wide."""
    return of_microsoft(model([*nodes, *LAYERS], inputs, {"y": outputs}, {**TWO_LAYERS, **weights}))


def proven(proto: onnx.ModelProto) -> Coupling:
    coupling = coupled(proto)
    keep = halves(coupling)
    verdict = verify(coupling, keep, shrink(coupling, keep))
    assert verdict.ok, verdict.summary()
    assert not verdict.blind
    return coupling


def names(coupling: Coupling) -> list[str]:
    return [group.name for group in coupling.groups]


@pytest.mark.parametrize("batch", [2, "n"])
def test_a_layer_behind_an_operator_of_unknown_shape_is_pruned(batch: Size) -> None:
    proto = behind([node("Inverse", "x", "i", **MS)], {"x": [batch, 4, 4]}, [batch, 4, 3])
    coupling = proven(proto)
    assert names(coupling) == ["w1:1"]
    rows = [2] if batch == 2 else [13, 17]
    assert [own.shapes["i"] for own in coupling.model.samples] == [(n, 4, 4) for n in rows]
    assert coupling.model.dtypes["i"] == onnx.TensorProto.FLOAT
    assert coupling.model.shape("i") == (None if batch == "n" else 2, 4, 4)


@pytest.mark.parametrize("batch", [2, "n"])
def test_sizes_that_are_computed_in_odd_ways_are_seen(batch: Size) -> None:
    """The heads are split by sizes that nothing here evaluates: a product of matrices."""
    proto = model(
        [
            node("MatMul", "x w0", "h"),
            node("Shape", "x", "s"),
            node("Cast", "s", "f", to=onnx.TensorProto.FLOAT),
            node("MatMul", "f turn", "g"),
            node("Cast", "g", "sizes", to=onnx.TensorProto.INT64),
            node("Reshape", "h sizes", "i"),
            node("Relu", "i", "r"),
            node("Reshape", "r back", "j"),
            node("MatMul", "j w1", "y"),
        ],
        {"x": [batch, 4]},
        {"y": [batch, 3]},
        {
            "w0": weight(0, 4, 8),
            "w1": weight(1, 8, 3),
            "turn": np.array([[1, 0, 0], [0, 0.5, 1]], np.float32),  # (n, 4) -> (n, 2, 4)
            "back": np.array([0, -1]),
        },
    )
    coupling = proven(proto)
    assert names(coupling) == ["w0:1[0]", "w0:1[1]"]
    assert coupling.model.shape("i") == (2 if batch == 2 else None, 2, 4)


def counted() -> onnx.ModelProto:
    """x (2, 4) -> 8 wide, softmax over rows as long as there are numbers above -100 in x -> 3."""
    return model(
        [
            node("MatMul", "x w0", "h"),
            node("Greater", "x low", "b"),
            node("Cast", "b", "ones", to=onnx.TensorProto.INT64),
            node("ReduceSum", "ones", "count", keepdims=0),
            node("Reshape", "count one", "columns"),
            node("Concat", "rest columns", "sizes", axis=0),
            node("Reshape", "h sizes", "i"),
            node("Softmax", "i", "p", axis=-1),
            node("Reshape", "p back", "j"),
            node("MatMul", "j w1", "k"),
            node("Relu", "k", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"x": [2, 4]},
        {"y": [2, 3]},
        {
            "w0": weight(0, 4, 8),
            "w1": weight(1, 8, 6),
            "w2": weight(2, 6, 3),
            "low": np.array(-100, np.float32),
            "one": np.array([1]),
            "rest": np.array([-1]),
            "back": np.array([2, 8]),
        },
    )


def test_a_size_that_data_decides_stays_though_all_runs_agree() -> None:
    """In every run there are 8 such numbers; of other inputs there are 4, and rows are half."""
    coupling = proven(counted())
    assert names(coupling) == ["w1:1"]
    assert "i" in tracing.sized_by_data(coupling.model)
    assert coupling.model.shape("i") == (None, None)


def test_sizes_that_an_operator_of_microsoft_makes_of_data_stay() -> None:
    """As above, where the numbers are counted by as many rows."""
    proto = of_microsoft(counted())
    count = [node("Range", "nil count one0", "rows", **MS), node("Shape", "rows", "columns")]
    at = next(k for k, own in enumerate(proto.graph.node) if own.output[0] == "columns")
    del proto.graph.node[at]
    for k, own in enumerate(count):
        proto.graph.node.insert(at + k, own)
    for name, value in (("nil", 0), ("one0", 1)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    coupling = proven(proto)
    assert names(coupling) == ["w1:1"]
    assert coupling.model.shape("i") == (None, None)


def test_an_operator_that_picks_in_a_way_of_its_own_is_found_out() -> None:
    """Random numbers differ all, so that each run on them gives six; equal ones give one."""
    proto = behind(
        [
            node("Unique", "x", "u places counts", **MS),
            node("Unsqueeze", "u last", "column"),
            node("MatMul", "column row", "i"),
        ],
        {"x": [6]},
        ["k", 3],
        last=np.array([1]),
        row=weight(3, 1, 4),
    )
    coupling = proven(proto)
    assert coupling.model.shape("u") == (None,)
    assert names(coupling) == ["row:1", "w1:1"]


def test_a_layer_behind_picked_rows_and_an_unknown_operator_is_pruned() -> None:
    """How many rows are picked is data; that there are two axes is not."""
    proto = behind(
        [
            node("Greater", "x zero", "b"),
            node("ReduceMax", "b8", "any", axes=[1], keepdims=0),
            node("NonZero", "any", "at"),
            node("Squeeze", "at first", "rows"),
            node("Gather", "x rows", "picked"),
            node("CDist", "picked anchors", "i", metric="euclidean", **MS),
        ],
        {"x": ["n", 5]},
        ["k", 3],
        zero=np.array(0, np.float32),
        anchors=weight(3, 4, 5),
        first=np.array([0]),
    )
    proto.graph.node.insert(1, node("Cast", "b", "b8", to=onnx.TensorProto.INT32))
    coupling = proven(proto)
    assert names(coupling) == ["w1:1"]
    assert coupling.model.shape("i") == (None, None)


def test_a_head_behind_picked_regions_is_pruned() -> None:
    """Boxes that NonMaxSuppression finds are cut out of a map; the layers behind lose channels."""
    proto = model(
        [
            node("Conv", "x w0", "map", pads=[1, 1, 1, 1]),
            node("NonMaxSuppression", "boxes scores most overlap least", "found"),
            node("Gather", "found box", "at", axis=1),
            node("Gather", "boxes0 at", "rois"),
            node("Gather", "found image", "images", axis=1),
            node("RoiAlign", "map rois images", "cut", output_height=3, output_width=3),
            node("Conv", "cut w1", "a"),
            node("Relu", "a", "r"),
            node("Conv", "r w2", "b"),
            node("GlobalAveragePool", "b", "p"),
            node("Flatten", "p", "y"),
        ],
        {"x": [1, 3, 8, 8], "boxes": [1, 9, 4], "scores": [1, 1, 9]},
        {"y": ["k", 4]},
        {
            "w0": weight(0, 6, 3, 3, 3),
            "w1": weight(1, 8, 6, 1, 1),
            "w2": weight(2, 4, 8, 3, 3),
            "most": np.array([5]),
            "overlap": np.array([0.5], np.float32),
            "least": np.array([-9], np.float32),
            "box": np.array(2),
            "image": np.array(0),
        },
    )
    proto.graph.node.insert(2, node("Squeeze", "boxes nil", "boxes0"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "nil"))
    coupling = proven(proto)
    assert names(coupling) == ["w0:0", "w1:0"]
    assert coupling.model.shape("cut") == (None, 6, 3, 3)


def test_what_onnx_runtime_does_not_run_stays_unknown() -> None:
    proto = behind([node("Odd", "x", "i", domain="nobody.knows")], {"x": [2, 4]}, [2, 3])
    proto.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    told = onnxprune.explain(proto, "w1:1")
    assert "operand 0 has an unknown rank" in told


def test_a_large_model_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_BYTES", -1)
    proto = behind([node("Inverse", "x", "i", **MS)], {"x": [2, 4, 4]}, [2, 4, 3])
    assert names(coupled(proto)) == []


@pytest.mark.parametrize(
    ("nodes", "sized"),
    [
        ([node("NonZero", "x", "v")], True),
        ([node("NonZero", "k", "v")], False),
        ([node("Expand", "k ids", "v")], True),
        ([node("Shape", "x", "s"), node("Expand", "one s", "v")], False),
        ([node("NonZero", "x", "z"), node("Shape", "z", "s"), node("Expand", "one s", "v")], True),
        ([node("Range", "nil count one0", "v")], True),
        ([node("Slice", "x ids ids", "v")], True),
        ([node("Gather", "k ids", "v")], False),
        ([node("TopK", "x ids", "v at")], True),
        ([node("Range", "nil count one0", "v", **MS)], True),
        ([node("Pad", "k ids", "v", **MS)], True),
        ([node("CDist", "x k", "v", **MS)], False),
        ([node("Unique", "count0", "v at counts", **MS)], True),
        ([node("SequenceConstruct", "x k", "s"), node("SequenceAt", "s count", "v")], True),
        ([node("SequenceConstruct", "x k", "s"), node("SequenceAt", "s nil", "v")], False),
    ],
)
def test_what_data_may_size(nodes: list[onnx.NodeProto], sized: bool) -> None:
    proto = model(
        nodes,
        {"x": ["n", 4], "ids": [1], "count": [], "count0": [4]},
        {nodes[-1].output[0]: ["a", "b"]},
        {"k": weight(0, 3, 4), "one": np.array([1]), "nil": np.array(0), "one0": np.array(1)},
        ids=onnx.TensorProto.INT64,
        count=onnx.TensorProto.INT64,
        v=onnx.TensorProto.FLOAT,
    )
    of_microsoft(proto)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert ("v" in tracing.sized_by_data(onnxprune.load(proto))) is sized
