"""Channels that repeat each other are found, scored low, and merged without a loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.coupling import Coupling
from onnxprune.data import random_inputs
from onnxprune.passes.score import merge_weights, merges, score
from onnxprune.passes.score.hashing import similar_pairs
from onnxprune.passes.shrink import shrink
from tests.graphs import convolutions, coupled, keeping, model, node, recurrent, weight
from tests.zoo.fill import load

Array = NDArray[Any]
RATIOS = [1.0, 0.5, 2.0, 1.0]


def doubled(values: Array, axis: int, ratios: list[float]) -> Array:
    """Half as many channels again as there are: copies of the first ones, times a ratio each."""
    copies = np.take(values, range(len(ratios)), axis)
    shape = [-1 if k == axis else 1 for k in range(values.ndim)]
    times = np.asarray(ratios, values.dtype).reshape(shape)
    return np.concatenate([values, copies * times], axis)


def convolutional(activation: str, ratios: list[float]) -> onnx.ModelProto:
    """Conv 8 + 4 copies -> BatchNorm -> act -> depthwise -> act -> pool -> Flatten -> Gemm."""
    ones = [1.0] * len(ratios)
    mean, variance = weight(4, 8), np.abs(weight(5, 8)) + 0.5
    copied_mean = doubled(mean, 0, ratios)
    return model(
        [
            node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c1 scale shift mean variance", "n1"),
            node(activation, "n1", "a1"),
            node("Conv", "a1 w2", "c2", group=12, pads=[1, 1, 1, 1]),
            node(activation, "c2", "a2"),
            node("MaxPool", "a2", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", "p", "f"),
            node("Gemm", "f w3 b3", "y"),
        ],
        {"x": ["n", 3, 6, 6]},
        {"y": ["n", 5]},
        {
            "w1": doubled(weight(0, 8, 3, 3, 3), 0, ratios),
            "b1": doubled(weight(1, 8), 0, ratios),
            "scale": doubled(weight(2, 8), 0, ones),
            "shift": doubled(weight(3, 8), 0, ratios),
            "mean": copied_mean,
            "variance": doubled(variance, 0, ones),
            "w2": doubled(weight(6, 8, 1, 3, 3), 0, ones),
            "w3": weight(7, 12 * 9, 5),
            "b3": weight(8, 5),
        },
    )


def same(proto: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """The largest relative error of what the other gives on the same inputs."""
    feeds = random_inputs(coupled(proto).model, 0, 0)
    (a,), (b,) = (runtime.session(m, None).run(None, feeds) for m in (proto, other))
    return float(np.abs(a - b).max() / np.abs(a).max())


def pruned(coupling: Coupling, count: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The best of every group by redundancy; merged, and just removed."""
    scores = score(coupling, "redundancy")
    keep = {f: np.argsort(np.argsort(-s, kind="stable")) < count for f, s in scores.items()}
    values = merge_weights(coupling, merges(coupling, keep))
    return shrink(coupling, keep, values), shrink(coupling, keep)


@pytest.mark.parametrize(
    ("activation", "ratios"),
    [("Relu", RATIOS), ("Identity", RATIOS), ("Sigmoid", [1.0] * 4), ("HardSwish", [1.0] * 4)],
)
def test_planted_copies_are_merged_exactly(activation: str, ratios: list[float]) -> None:
    proto = convolutional(activation, ratios)
    merged, removed = pruned(coupled(proto), 8)
    assert same(proto, merged) < 1e-5
    assert same(proto, removed) > 1e-2
