"""Sizes that are declared dynamic, of which the graph wants one: how it is found."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxprune.dynamic import choices, joints
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, halves, model, node, weight


def pictures(channels: int | str = 3, side: int = 3) -> onnx.ModelProto:
    """A vision transformer's beginning: patches of 4, a token before them, a table of positions."""
    return model(
        [
            node("Conv", "x w1", "patches", kernel_shape=[4, 4], strides=[4, 4]),
            node("Reshape", "patches flat", "tokens"),
            node("Transpose", "tokens", "t", perm=[0, 2, 1]),
            node("Shape", "x", "n", end=1),
            node("Concat", "n ones", "sizes", axis=0),
            node("Expand", "first sizes", "token"),
            node("Concat", "token t", "all", axis=1),
            node("Add", "all table", "h"),
            node("MatMul", "h w2", "y"),
        ],
        {"x": ["n", channels, "height", "width"]},
        {"y": ["n", side * side + 1, 2]},
        {
            "w1": weight(1, 6, 3, 4, 4),
            "flat": np.array([0, 6, -1]),
            "ones": np.array([1, 1]),
            "first": weight(2, 1, 1, 6),
            "table": weight(3, 1, side * side + 1, 6),
            "w2": weight(4, 6, 2),
        },
    )


def words() -> onnx.ModelProto:
    """Ids of any number, by what is declared, and a table of eleven positions."""
    return model(
        [
            node("Gather", "table ids", "words"),
            node("Add", "words positions", "h"),
            node("MatMul", "h w", "y"),
        ],
        {"ids": ["n", "length"]},
        {"y": ["n", "length", 2]},
        {"table": weight(1, 50, 6), "positions": weight(2, 1, 11, 6), "w": weight(3, 6, 2)},
        ids=TensorProto.INT64,
    )


@pytest.mark.parametrize(
    "proto",
    [pictures(), pictures("channels"), pictures(side=56), words()],
    ids=["pictures", "and their channels", "of a usual size", "words"],
)
def test_a_table_of_positions_tells_the_size(proto: onnx.ModelProto) -> None:
    coupling = coupled(proto)
    assert [group.size for group in coupling.groups] == [6]
    keep = halves(coupling)
    verdict = verify(coupling, keep, shrink(coupling, keep))
    assert verdict.failure is None
    assert not verdict.blind


def test_sizes_of_pairs_differ_unless_they_are_held() -> None:
    first, *others = choices(pictures())
    assert all(first[0][symbol] != first[1][symbol] for symbol in ("n", "height", "width"))
    assert all(one["n"] != other["n"] or one["n"] == 1 for one, other in others)
    assert [one["height"] for one, _ in joints(pictures())][:3] == [12, 8, 224]
    assert all(one["height"] == other["width"] for one, other in joints(pictures()))
