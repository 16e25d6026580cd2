"""Cases of operators that cut, join and rearrange axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.laws.cases.build import floats, integers, make
from tests.laws.nodes import Case

FAR = 2**31 - 1
FARTHER = 2**63 - 1


def cases() -> Iterator[Case]:
    yield from _joins()
    yield from _splits()
    yield from _slices()
    yield from _reshapes()
    yield from _ranks()
    yield from _repeats()
    yield from _pads()
    yield from _resizes()
    yield from _blocks()


def _joins() -> Iterator[Case]:
    yield make("Concat", (2, 3, 4), (2, 5, 4), axis=1)
    yield make("Concat", (4, 4), (4, 4), (4, 4), axis=-1)
    yield make("Concat", (2, 3), axis=0)
    yield make("Concat", (2, 3), (0, 3), (4, 3), axis=0)


def _splits() -> Iterator[Case]:
    yield make("Split", (4, 6), opset=11, axis=1, results=2)
    yield make("Split", (4, 7), opset=11, axis=1, split=[3, 4], results=2)
    yield make("Split", (4, 7), [3, 4], opset=13, axis=-1, results=2)
    yield make("Split", (12, 4), opset=13, results=3)
    yield make("Split", (4, 7), axis=1, num_outputs=3, results=3)
    yield make("Split", (8, 4), num_outputs=2, results=2)
    yield make("Split", (4, 7), [3, 0, 4], axis=1, results=3)
    yield make("Split", (4, 4, 4), [2, 2], axis=1, results=2)


def _slices() -> Iterator[Case]:
    ranges: list[tuple[list[int], list[int], list[int], list[int]]] = [
        ([0], [3], [1], [1]),
        ([2], [6], [1], [1]),
        ([-3], [FAR], [1], [1]),
        ([2], [-3], [1], [1]),
        ([-6], [-2], [-1], [1]),
        ([2], [FARTHER], [1], [1]),
        ([0], [FARTHER], [1], [3]),
        ([1], [FARTHER], [1], [3]),
        ([1], [8], [1], [4]),
        ([0], [4], [1], [3]),
        ([-1], [-FAR], [1], [-1]),
        ([2, 0], [4, 9], [0, 1], [1, 3]),
        ([0, 2], [4, 5], [0, 1], [1, 1]),
        ([5], [2], [1], [1]),
    ]
    for starts, ends, axes, steps in ranges:
        yield make("Slice", (7, 9), starts, ends, axes, steps, note=f"{starts}{ends}{axes}{steps}")
    yield make("Slice", (12, 17), [3, 5], [7, 11])
    yield make("Slice", (12, 17), opset=9, starts=[3, 5], ends=[7, -6])
    yield make("Slice", (4, 8, 3), opset=9, starts=[2], ends=[FAR], axes=[1])


def _reshapes() -> Iterator[Case]:
    targets: list[tuple[tuple[int, ...], list[int]]] = [
        ((2, 12), [2, 3, 4]),
        ((2, 3, 4), [2, 12]),
        ((2, 3, 4), [0, -1]),
        ((2, 3, 4), [-1, 4]),
        ((2, 3, 4), [6, 4]),
        ((4, 4, 4), [16, 4]),
        ((4, 4, 4), [0, 0, 2, 2]),
        ((4, 6), [2, 2, 6]),
        ((4, 6), [6, 4]),
        ((2, 3, 8), [2, 3, 2, 4]),
        ((2, 12, 5), [2, 3, 4, 5]),
        ((1, 12, 1, 4), [12, 4]),
        ((12, 4), [1, 3, 4, 1, 4]),
        ((8, 12), [2, 4, 3, 4]),
        ((8, 6), [2, 24]),
        ((8, 4, 3), [2, 0, 12]),
        ((4, 4), [2, 2, 2, 2]),
        ((6, 4), [3, 8]),
        ((3, 5, 4), [3, 5, -1, 2]),
        ((16,), [-1]),
        ((), [1]),
        ((1, 1), []),
    ]
    for shape, target in targets:
        yield make("Reshape", shape, target, note=str(target))
    yield make("Reshape", (2, 3, 4), [2, 12], allowzero=1)
    yield make("Reshape", (2, 3, 4), opset=4, shape=[6, 4])
    for axis in (0, 1, 2, -1):
        yield make("Flatten", (2, 3, 4), axis=axis)
    yield make("Flatten", (4, 4, 4, 4), opset=1)


def _ranks() -> Iterator[Case]:
    yield make("Squeeze", (3, 1, 4, 1), [1, -1])
    yield make("Squeeze", (3, 1, 4, 1))
    yield make("Squeeze", (3, 1, 4, 1), opset=11, axes=[1])
    yield make("Unsqueeze", (3, 4), [0, -1])
    yield make("Unsqueeze", (3, 4), [1, 2])
    yield make("Unsqueeze", (3, 4), opset=11, axes=[1])
    yield make("Unsqueeze", (), [0])
    yield make("Transpose", (4, 4, 4))
    yield make("Transpose", (4, 4, 4, 4), perm=[0, 2, 3, 1])
    yield make("Transpose", (2, 3, 4), perm=[1, 0, 2])
    yield make("Identity", (2, 3))


def _repeats() -> Iterator[Case]:
    yield make("Expand", (3, 1), [3, 4])
    yield make("Expand", (3, 1), [2, 3, 4])
    yield make("Expand", (4,), [4, 4])
    yield make("Expand", (2, 3, 4), [3, 1])
    yield make("Expand", (), [3, 4])
    yield make("Tile", (3, 4), [1, 2])
    yield make("Tile", (4, 4), [2, 2])
    yield make("Tile", (3, 4), [1, 1])
    yield make("ConstantOfShape", [3, 4])
    yield make("ConstantOfShape", np.zeros(0, np.int64))
    yield make("EyeLike", (4, 4))
    yield make("Range", *(np.array(n, np.float32) for n in (0, 5, 1)))
    yield make("Shape", (3, 4))
    yield make("Size", (3, 4))


def _pads() -> Iterator[Case]:
    value = floats(0.5).reshape(())
    yield make("Pad", (3, 4), [0, 1, 0, 2])
    yield make("Pad", (3, 4), [0, 0, 0, 2])
    yield make("Pad", (4, 4), [1, 2, 3, 0], value)
    yield make("Pad", (4, 4), [1, 2], value, [1])
    yield make("Pad", (4, 4), [1, 2], value, [-2])
    yield make("Pad", (4, 5), [0, -1, 0, 2], value)
    yield make("Pad", (4, 5), opset=10, pads=[0, 1, 0, 2], value=1.0)
    yield make("Pad", (4, 5), opset=1, paddings=[0, 1, 0, 2])
    for mode in ("edge", "reflect", "wrap"):
        yield make("Pad", (4, 5), [0, 1, 0, 2], mode=mode)


def _resizes() -> Iterator[Case]:
    empty = np.zeros(0, np.float32)
    image = (2, 3, 4, 4)
    scales, sizes = floats(1, 1, 2, 2), [2, 3, 8, 6]
    for options in (
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "cubic"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
    ):
        settings: dict[str, Any] = dict(options)
        yield make("Resize", image, None, scales, **settings, opset=13)
        yield make("Resize", image, None, None, sizes, **settings, opset=13)
    yield make("Resize", (4, 4), None, floats(1.1, 2.0), mode="linear", note="1.1")
    yield make("Resize", (4, 4), None, floats(1.0, 2.0), mode="nearest")
    yield make("Resize", image, empty, empty, sizes, opset=11)
    yield make("Resize", image, scales, opset=10)
    yield make("Resize", image, None, floats(2, 2), axes=[2, 3], mode="linear", antialias=1)
    yield make("Resize", image, None, None, [8, 6], axes=[-2, -1])
    yield make("Resize", (4, 6, 4, 6), None, None, [8, 6, 4, 3])
    roi = floats(0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8)
    crop: dict[str, Any] = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "mode": "linear",
    }
    yield make("Resize", image, roi, None, [2, 3, 4, 4], **crop)
    yield make("Resize", image, roi, floats(1, 1, 1, 2), **crop)
    for policy, sizes in (("not_larger", [9, 3]), ("not_smaller", [11, 3])):
        kept: dict[str, Any] = {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
        yield make("Resize", (4, 4, 10, 3), None, None, sizes, mode="linear", **kept)
    yield make("Upsample", image, scales, opset=9)
    yield make("Upsample", image, opset=7, scales=[1.0, 1.0, 2.0, 2.0], mode="linear")


def _blocks() -> Iterator[Case]:
    for mode in ("DCR", "CRD"):
        yield make("DepthToSpace", (2, 12, 3, 3), blocksize=2, mode=mode)
        yield make("DepthToSpace", (2, 8, 2, 3), blocksize=2, mode=mode)
    yield make("SpaceToDepth", (2, 3, 4, 6), blocksize=2)
    yield make("SpaceToDepth", (2, 4, 4, 4), blocksize=2)
    yield make("SpaceToDepth", (2, 3, 4, 6), blocksize=2, mode="CRD", opset=28)
    yield make("Col2Im", (2, 12, 9), [4, 4], [2, 2])
    yield make("Col2Im", (2, 8, 4), [4, 4], [2, 2], strides=[2, 2])
    yield make("OneHot", integers(3, 4, high=5), np.array(5), floats(0, 1))
    yield make("OneHot", integers(4, 4, high=5), np.array(5), floats(0, 1), axis=1)
