"""Cases of normalisations, reductions, pooling, gathers and scatters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.laws.cases.build import Given, floats, integers, make, normal, uniform
from tests.laws.nodes import Case

REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""


def cases() -> Iterator[Case]:
    yield from _normalisations()
    yield from _layer_norms()
    yield from _along()
    yield from _reductions()
    yield from _pools()
    yield from _samplers()
    yield from _gathers()
    yield from _scatters()
    yield from _quantised()


def _normalisations() -> Iterator[Case]:
    c = uniform(3)
    yield make("BatchNormalization", (2, 3, 4, 4), (3,), (3,), (3,), c)
    yield make("BatchNormalization", (4, 4), (4,), (4,), (4,), uniform(4))
    yield make("BatchNormalization", (4, 3, 4), (3,), (3,), (3,), c, training_mode=1, results=3)
    pixels: list[Given] = [*[(3, 4, 5)] * 3, uniform(3, 4, 5)]
    yield make("BatchNormalization", (2, 3, 4, 5), *pixels, opset=7, spatial=0)
    yield make("InstanceNormalization", (2, 3, 4, 4), (3,), (3,))
    yield make("InstanceNormalization", (3, 4, 5), (4,), (4,))
    yield make("GroupNormalization", (3, 12, 5, 5), (3,), (3,), opset=18, num_groups=3)
    yield make("GroupNormalization", (2, 12, 4, 4), (12,), (12,), num_groups=3)
    yield make("GroupNormalization", (2, 6, 4), (6,), (6,), num_groups=6)
    yield make("GroupNormalization", (2, 6, 4), (6,), (6,), num_groups=1)
    yield make("LRN", (4, 4, 3, 3), size=3)
    yield make("LRN", (2, 6, 3, 3), size=5)
    yield make("LpNormalization", (3, 4, 5))
    yield make("LpNormalization", (4, 4, 4), axis=1, p=1)
    yield make("MeanVarianceNormalization", (4, 3, 6, 6))
    yield make("MeanVarianceNormalization", (2, 4, 6), axes=[1, 2])


def _layer_norms() -> Iterator[Case]:
    for axis in (-1, 1, 2):
        width = (4, 6)[0 if axis == 1 else 1 :]
        yield make("LayerNormalization", (3, 4, 6), width, width, axis=axis, results=3)
    yield make("LayerNormalization", (2, 4, 4), (4,), axis=-1)
    yield make("LayerNormalization", (2, 4, 4), (1, 4), (4, 1), axis=1)
    yield make("LayerNormalization", (2, 4, 4), (4,), (4, 4), axis=1)
    yield make("RMSNormalization", (2, 3, 4), (4,), opset=23)
    yield make("RMSNormalization", (3, 4, 6), (4, 6), axis=1, opset=23)
    yield make("SimplifiedLayerNormalization", (2, 3, 4), (4,), axis=-1, opset=17)


def _along() -> Iterator[Case]:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield make(op, (3, 4, 5))
        yield make(op, (4, 4, 4), axis=1)
        yield make(op, (4, 4, 4), axis=1, opset=11)
        yield make(op, (4, 4, 4), axis=-1, opset=12)
        yield make(op, (3, 4, 5), opset=9)
    for op in ("ArgMax", "ArgMin"):
        yield make(op, (3, 4, 5))
        yield make(op, (4, 4, 4), axis=1, keepdims=0)
    for op in ("CumSum", "CumProd"):
        yield make(op, (4, 4, 4), np.array(1))
        yield make(op, (3, 4), np.array(-1), reverse=1)
    lengths = integers(4, high=4, low=1)
    yield make("ReverseSequence", (4, 4, 3), lengths)
    yield make("ReverseSequence", (4, 4, 3), lengths, time_axis=1, batch_axis=0)
    yield make("TopK", (3, 4, 5), [2], results=2)
    yield make("TopK", (4, 4), [2], results=2, axis=0)
    yield make("TopK", (4, 4), opset=9, k=2, results=2)
    yield make("Trilu", (3, 4, 4))
    yield make("Trilu", (3, 4, 4), np.array(1), upper=0)


def _reductions() -> Iterator[Case]:
    for op in REDUCTIONS.split():
        shape = uniform(4, 4, 4)
        if op == "ReduceMax":
            shape = -shape  # so that a zero shows
        yield make(op, shape, [1])
        yield make(op, shape, [-1], keepdims=0)
        yield make(op, shape, [0, 2], keepdims=0)
        yield make(op, shape)
        yield make(op, shape, keepdims=0, opset=18)
        yield make(op, shape, np.zeros(0, np.int64), noop_with_empty_axes=1)
        yield make(op, shape, axes=[1], opset=11)


def _pools() -> Iterator[Case]:
    image: tuple[int, ...] = (2, 3, 6, 6)
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    yield make("AveragePool", image, pads=[0, 0, 1, 1], **window)
    yield make("AveragePool", (2, 3, 6), kernel_shape=[3])
    yield make("AveragePool", (2, 3, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    yield make("LpPool", image, **window)
    yield make("MaxPool", image, **window)
    yield make("MaxPool", (2, 3, 6), kernel_shape=[2], auto_pad="SAME_UPPER")
    yield make("MaxPool", (2, 3, 4, 4, 4), kernel_shape=[2, 2, 2])
    yield make("MaxPool", (4, 5, 6, 6), **window, results=2)
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield make(op, image, opset=21)
        yield make(op, (4, 4, 4, 4), opset=21)
        yield make(op, (4, 4, 4), opset=21)
    positions = np.tile(np.array([[0, 3], [9, 15]], np.int64), (2, 3, 1, 1))
    offsets = 16 * np.arange(6).reshape(2, 3, 1, 1)
    yield make("MaxUnpool", (2, 3, 2, 2), positions + offsets, **window)
    yield make("MaxUnpool", (2, 3, 2, 2), positions + offsets, [2, 3, 4, 4], **window)


def _samplers() -> Iterator[Case]:
    grid = uniform(2, 5, 5, 2, low=-1)
    for mode in ("linear", "nearest", "cubic"):
        yield make("GridSample", (2, 3, 4, 4), grid, mode=mode)
    yield make("GridSample", (2, 3, 4, 4, 4), uniform(2, 3, 3, 3, 3, low=-1))
    yield make("com.microsoft::GridSample", (2, 3, 4, 4), grid, mode="bilinear")
    boxes = np.array([[0, 0, 3, 3], [1, 1, 5, 4], [0, 2, 4, 5]], np.float32)
    size: dict[str, Any] = {"output_height": 2, "output_width": 2}
    yield make("RoiAlign", (2, 3, 6, 6), boxes, [0, 1, 1], **size, opset=16)
    yield make("RoiAlign", (2, 3, 6, 6), boxes, [0, 1, 1], **size, mode="max")
    rois = np.concatenate([[[0], [1], [1]], boxes], axis=1).astype(np.float32)
    yield make("MaxRoiPool", (2, 3, 6, 6), rois, pooled_shape=[2, 2], opset=21)


def _gathers() -> Iterator[Case]:
    yield make("Gather", (4, 5), integers(3, high=4))
    yield make("Gather", (4, 5), integers(3, 2, high=4), axis=1)
    yield make("Gather", (4, 5, 6), np.array(1), axis=-2)
    yield make("Gather", (4,), np.array(2))
    yield make("GatherElements", (4, 4), integers(4, 4, high=4))
    yield make("GatherElements", (4, 5, 3), integers(4, 2, 3, high=5), axis=1)
    yield make("GatherElements", (4, 5, 3), integers(2, 6, 3, high=3), axis=-2)
    yield make("GatherND", (4, 5, 6), integers(3, 2, high=4))
    yield make("GatherND", (4, 5, 6), integers(3, 1, high=4))
    yield make("GatherND", (4, 5, 6), integers(4, 2, 1, high=5), batch_dims=1)


def _scatters() -> Iterator[Case]:
    rows: Any = np.array([[0, 2, 1, 3], [3, 1, 0, 2]])
    for op, opset in (("Scatter", 9), ("ScatterElements", 18)):
        yield make(op, (4, 4), rows, (2, 4), opset=opset)
        yield make(op, (4, 5), rows.T[:, :1], (4, 1), opset=opset, axis=1)
    yield make("ScatterElements", (4, 5), rows, (2, 4), reduction="add")
    yield make("ScatterElements", (4, 4), np.concatenate([rows, rows]), (4, 4), reduction="add")
    points = np.array([[0, 1], [3, 2], [2, 2]])
    yield make("ScatterND", (4, 5, 6), points, (3, 6))
    yield make("ScatterND", (4, 5, 6), np.array([[1], [3]]), (2, 5, 6))
    yield make("ScatterND", (4, 5, 6), points, (3, 6), reduction="mul")


def _quantised() -> Iterator[Case]:
    zero = integers(3, dtype=np.int8)
    half = floats(0.5).reshape(())
    yield make("QuantizeLinear", (2, 3, 4), uniform(3), zero)
    yield make("QuantizeLinear", (4, 4, 4), uniform(4), axis=2)
    yield make("QuantizeLinear", (2, 3, 4), half, np.array(1, np.int8))
    stored = integers(2, 3, 4, dtype=np.int8)
    yield make("DequantizeLinear", stored, uniform(3), zero)
    yield make("DequantizeLinear", stored, uniform(4), axis=-1)
    yield make("DequantizeLinear", stored, half)
    yield make("DequantizeLinear", normal(4, 4, 4).astype(np.int8), uniform(4), axis=0)
    blocks = integers(5, 12, dtype=np.int8)
    yield make("DequantizeLinear", blocks, uniform(5, 4), axis=1, block_size=3)
    yield make("QuantizeLinear", (5, 12), uniform(5, 4), axis=-1, block_size=3)
