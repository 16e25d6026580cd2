"""Cases of integer arithmetic: quantised convolutions and products, block-packed weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper

from onnxprune.model import Array
from tests.laws.cases.build import Given, integers, make, normal, uniform
from tests.laws.nodes import Case

MS = "com.microsoft::"


def cases() -> Iterator[Case]:
    yield from _convolutions()
    yield from _products()
    yield from _gemms()
    yield from _elementwise()
    yield from _pools_and_joins()
    yield from _dynamic()
    yield from _packed()
    yield from _tables()


def _u8(*shape: int, low: int = 0) -> Array:
    return integers(*shape, low=low, high=low + 20, dtype=np.uint8)


def _i8(*shape: int) -> Array:
    return integers(*shape, low=-7, high=8, dtype=np.int8)


def _one(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


def _byte(value: int) -> Array:
    return np.array(value, np.uint8)


def _convolutions() -> Iterator[Case]:
    x = [_one(0.1), _byte(9)]
    y = [_one(0.4), _byte(60)]
    per_channel: list[Given] = [uniform(6), np.zeros(6, np.int8)]
    shared: list[Given] = [_one(0.2), _one(1, np.int8)]
    bias = integers(6, low=-50, high=50, dtype=np.int32)
    grouped: list[Given] = [uniform(12), _one(0, np.int8)]
    more = integers(12, low=-50, high=50, dtype=np.int32)
    wide: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    for op in ("QLinearConv", f"{MS}QLinearConv"):
        image, weight = _u8(2, 4, 5, 5), _i8(6, 4, 3, 3)
        yield make(op, image, *x, weight, *per_channel, *y, bias, **wide)
        yield make(op, image, *x, weight, *shared, *y, note="per tensor")
        yield make(op, _u8(3, 6, 6, 6), *x, _i8(12, 2, 3, 3), *grouped, *y, more, group=3)
        yield make(op, _u8(2, 6, 4, 4), *x, _i8(6, 1, 3, 3), *per_channel, *y, group=6)
        yield make(op, _u8(4, 4, 4, 4), *x, _i8(6, 4, 1, 1), *per_channel, *y, bias)
        yield make(op, _u8(2, 6, 5, 5), *x, _i8(6, 6, 1, 1), *shared, *y, bias, strides=[2, 2])
    last: dict[str, Any] = {"channels_last": 1, "group": 3}
    signed = [_one(0.1), _one(3, np.int8)]
    for kernel in (3, 1):
        weight = _i8(12, 2, kernel, kernel)
        operands = [_u8(3, 5, 5, 6), *x, weight, *grouped, *y, more]
        yield make(f"{MS}QLinearConv", *operands, **last)
        operands = [_i8(3, 5, 5, 6), *signed, weight, *shared, *signed]
        yield make(f"{MS}QLinearConv", *operands, **last)
    image, weight = _u8(2, 4, 5, 5), _u8(6, 4, 3, 3)
    yield make("ConvInteger", image, weight, _byte(9), _byte(3), **wide)
    yield make("ConvInteger", image, _u8(6, 4, 1, 1), _byte(9))
    yield make("ConvInteger", _u8(4, 4, 4, 4), _u8(4, 4, 1, 1), strides=[2, 2])
    yield make("ConvInteger", _u8(2, 4, 6, 6), _u8(6, 2, 3, 3), _byte(9), group=2)
    yield make("ConvInteger", _u8(2, 6, 4, 4), _u8(6, 1, 3, 3), _byte(9), group=6)


def _products() -> Iterator[Case]:
    a: list[Given] = [_one(0.1), _byte(9)]
    y: list[Given] = [_one(0.4), _byte(60)]
    for left, right in (((3, 4), (4, 5)), ((4, 4), (4, 4)), ((2, 3, 4), (2, 4, 5))):
        n = right[-1]
        columns: list[Given] = [uniform(n), np.zeros(n, np.int8)]
        if len(right) == 3:
            columns = [uniform(2, 1, n), np.zeros((2, 1, n), np.int8)]
        yield make("QLinearMatMul", _u8(*left), *a, _i8(*right), *columns, *y)
        yield make("QLinearMatMul", _u8(*left), *a, _i8(*right), _one(0.2), _one(1, np.int8), *y)
        yield make("MatMulInteger", _u8(*left), _u8(*right), _byte(9), _byte(3))
        yield make("MatMulInteger", _u8(*left), _i8(*right))
        to_float: list[Given] = [_u8(*left), _u8(*right), _one(0.1)]
        yield make(f"{MS}MatMulIntegerToFloat", *to_float, _one(0.2), _byte(9), _byte(3), (n,))
        scales = uniform(*right[:-2], 1, n) if len(right) == 3 else uniform(n)
        yield make(f"{MS}MatMulIntegerToFloat", *to_float, scales, _byte(9))
        pair = (integers(*s, low=-99, high=99, dtype=np.int16) for s in (left, right))
        yield make(f"{MS}MatMulInteger16", *pair)
    yield make("MatMulInteger", _u8(3, 4), _u8(4, 5), _byte(9), _u8(5))
    columns = [uniform(5), _byte(9), _u8(5)]
    yield make(f"{MS}MatMulIntegerToFloat", _u8(3, 4), _u8(4, 5), _one(0.1), *columns)


def _gemms() -> Iterator[Case]:
    a: list[Given] = [_one(0.1), _byte(9)]
    y: list[Given] = [_one(0.4), _byte(60)]
    bias = integers(4, low=-50, high=50, dtype=np.int32)
    for ta, tb in ((0, 0), (0, 1), (1, 0), (1, 1)):
        left, right = ((5, 3) if ta else (3, 5)), ((4, 5) if tb else (5, 4))
        columns: list[Given] = [uniform(4), np.zeros(4, np.int8)]
        how: dict[str, Any] = {"transA": ta, "transB": tb}
        yield make(f"{MS}QGemm", _u8(*left), *a, _i8(*right), *columns, bias, *y, **how)
        square = [_u8(4, 4), *a, _u8(4, 4), _one(0.2), _byte(3)]
        yield make(f"{MS}QGemm", *square, bias, **how, alpha=0.5)
    for c in ((1, 4), (3, 4), (1,), (3, 1)):
        own = integers(*c, low=-50, high=50, dtype=np.int32)
        yield make(f"{MS}QGemm", _u8(3, 5), *a, _i8(5, 4), _one(0.2), _one(0, np.int8), own, *y)
    yield make(f"{MS}QGemm", _u8(3, 5), *a, _i8(5, 4), _one(0.2), _one(0, np.int8))


def _elementwise() -> Iterator[Case]:
    x: list[Given] = [_one(0.1), _byte(9)]
    y: list[Given] = [_one(0.4), _byte(60)]
    for op in ("QLinearAdd", "QLinearMul"):
        for a, b in (((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((4,), (4, 4)), ((4, 4), ())):
            yield make(f"{MS}{op}", _u8(*a), *x, _u8(*b, low=30), *x, *y)
    for a, b in (((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1))):
        chosen = [np.arange(24).reshape(2, 3, 4) % 3 == 0, _u8(*a), *x, _u8(*b, low=30), *x, *y]
        yield make(f"{MS}QLinearWhere", *chosen)
    yield make(f"{MS}QLinearSigmoid", _u8(2, 3, 4), *x, _one(1 / 256), _byte(0))
    yield make(f"{MS}QLinearLeakyRelu", _u8(2, 3, 4), *x, *y, alpha=0.2)
    fine = [*x, _one(1 / 256), _byte(0)]
    for shape, axis in (((2, 3, 4), -1), ((4, 4, 4), 1), ((2, 4, 5), 1)):
        for opset in (13, 12):
            note = f"as of opset {opset}"
            case = make(f"{MS}QLinearSoftmax", _u8(*shape), *fine, axis=axis, note=note)
            case.proto.graph.node[0].attribute.append(helper.make_attribute("opset", opset))
            yield case
    zero = integers(3, dtype=np.int8)
    yield make(f"{MS}QuantizeLinear", (2, 3, 4), uniform(3), zero, axis=1)
    yield make(f"{MS}QuantizeLinear", (2, 3, 4), _one(0.5), np.array(1, np.int8))
    yield make(f"{MS}DequantizeLinear", _i8(2, 3, 4), uniform(3), zero, axis=1)
    yield make(f"{MS}DequantizeLinear", _i8(4, 4, 4), uniform(4), np.zeros(4, np.int8), axis=2)
    yield make(f"{MS}DequantizeLinear", _i8(2, 3, 4), _one(0.5), np.array(1, np.int8))


def _pools_and_joins() -> Iterator[Case]:
    x: list[Given] = [_one(0.1), _byte(9)]
    y: list[Given] = [_one(0.2), _byte(60)]
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    for last in (0, 1):
        for shape in ((2, 3, 4, 4), (4, 4, 4, 4), (2, 6, 6, 3)):
            image = _u8(*shape)
            yield make(f"{MS}QLinearAveragePool", image, *x, *y, **window, channels_last=last)
            yield make(f"{MS}QLinearGlobalAveragePool", image, *x, *y, channels_last=last)
    for image in (_u8(2, 6, 6, 3), _i8(4, 4, 4, 4)):
        yield make(f"{MS}NhwcMaxPool", image, **window)
    parts: list[Given] = [_u8(2, 3, 4), *x, _u8(2, 5, 4), *y]
    yield make(f"{MS}QLinearConcat", *y, *parts, axis=1)
    yield make(f"{MS}QLinearConcat", *y, _u8(4, 4), *x, _u8(4, 4), *y, _u8(4, 4), *x, axis=-1)


def _dynamic() -> Iterator[Case]:
    for shape in ((3, 4), (2, 3, 4), (4, 4, 4, 4)):
        yield make("DynamicQuantizeLinear", shape, results=3)
    for shape in ((4, 6), (2, 3, 6), (4, 4)):
        k = shape[-1]
        weight, zero = _u8(k, 4), _byte(3)
        yield make(f"{MS}DynamicQuantizeMatMul", shape, weight, _one(0.2), zero, (4,))
        columns: list[Given] = [_i8(k, 4), uniform(4), _i8(4)]
        yield make(f"{MS}DynamicQuantizeMatMul", shape, *columns)
    for direction, d in (("forward", 1), ("bidirectional", 2)):
        h, lengths = 5, np.array([4, 2, 3], np.int32)
        operands: list[Given] = [(4, 3, 6), _i8(d, 6, 4 * h), _i8(d, h, 4 * h)]
        one: list[Given] = [uniform(d), np.zeros(d, np.int8)] * 2
        more: list[Given] = [uniform(d, 4 * h), np.zeros((d, 4 * h), np.int8)] * 2
        full: list[Given] = [(d, 8 * h), lengths, (d, 3, h), (d, 3, h), (d, 3 * h)]
        how: dict[str, Any] = {"hidden_size": h, "direction": direction, "results": 3}
        yield make(f"{MS}DynamicQuantizeLSTM", *operands, *[None] * 5, *one, **how)
        yield make(f"{MS}DynamicQuantizeLSTM", *operands, *full, *more, **how)


def _packed() -> Iterator[Case]:
    for shape in ((3, 64), (2, 3, 96), (4, 64)):
        k, n = shape[-1], 5 if shape[0] == 3 else 4
        count = k // 16
        how: dict[str, Any] = {"K": k, "N": n, "block_size": 16, "bits": 4}
        weight = integers(n, count, 8, high=256, dtype=np.uint8)
        yield make(f"{MS}MatMulNBits", shape, weight, uniform(n, count), **how)
        yield make(f"{MS}MatMulNBits", shape, weight, uniform(n * count), **how)
        zero = integers(n, (count + 1) // 2, high=256, dtype=np.uint8)
        yield make(f"{MS}MatMulNBits", shape, weight, uniform(n, count), zero, **how)
        flat = zero.reshape(-1)
        yield make(f"{MS}MatMulNBits", shape, weight, uniform(n * count), flat, **how)
        operands = [weight, uniform(n, count), normal(n, count), None, (n,)]
        yield make(f"{MS}MatMulNBits", shape, *operands, **how)
    wide = integers(4, 2, 16, high=256, dtype=np.uint8)
    uneven: dict[str, Any] = {"K": 24, "N": 4, "block_size": 16, "bits": 8}
    yield make(f"{MS}MatMulNBits", (3, 24), wide, uniform(4, 2), **uneven)


def _tables() -> Iterator[Case]:
    """Rows of a table of 7: 3 or 4 blocks of 16, in bytes or in types of 4 bits."""
    op = f"{MS}GatherBlockQuantized"
    how: dict[str, Any] = {"block_size": 16}
    ids = integers(2, 5, high=7)
    for bits in (4, 8):
        table = integers(7, 48 * bits // 8, high=256, dtype=np.uint8)
        yield make(op, table, ids, uniform(7, 3), bits=bits, **how)
    zeros = integers(7, 3, high=256, dtype=np.uint8)
    yield make(op, table, ids[0], uniform(7, 3), zeros, bits=8, **how)
    cube = integers(7, 5, 64, high=256, dtype=np.uint8)
    yield make(op, cube, ids, uniform(7, 5, 4), bits=8, quantize_axis=2, **how)
    for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        small = integers(7, 64, high=7).astype(dtype)
        origin = integers(7, 4, high=5).astype(dtype)
        yield make(op, small, ids, uniform(7, 4), origin, **how)
