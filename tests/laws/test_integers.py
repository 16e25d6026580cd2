"""Quantised files end to end: made by ONNX Runtime's own quantiser, pruned by half, verified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnxruntime import quantization as ortq

import onnxprune
from onnxprune.model import Array
from tests.laws.cases.build import random

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
NETS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "convolutions": (
        """g (float[1,3,12,12] x) => (float[A,B] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r = Relu(a)
            d = Conv <pads = [1,1,1,1], group = 16> (r, w2, b2)
            e = Conv (d, w3, b3)
            s = Add(e, r)
            c = Concat <axis = 1> (s, d)
            q = Sigmoid(c)
            p = AveragePool <kernel_shape = [2,2], strides = [2,2]> (q)
            f = Conv <strides = [2,2]> (p, w4, b4)
            m = GlobalAveragePool(f)
            v = Flatten(m)
            y = Gemm <transB = 1> (v, w5, b5)
        }""",
        {
            "w1": (16, 3, 3, 3),
            "b1": (16,),
            "w2": (16, 1, 3, 3),
            "b2": (16,),
            "w3": (16, 16, 1, 1),
            "b3": (16,),
            "w4": (24, 32, 3, 3),
            "b4": (24,),
            "w5": (5, 24),
            "b5": (5,),
        },
    ),
    "products": (
        """g (float[4,12] x) => (float[A,B] y) {
            a = MatMul(x, w1)
            r = Relu(a)
            b = MatMul(r, w2)
            c = Mul(b, r)
            d = LeakyRelu <alpha = 0.1> (c)
            e = MatMul(d, w3)
            y = Softmax <axis = -1> (e)
        }""",
        {"w1": (12, 16), "w2": (16, 16), "w3": (16, 6)},
    ),
}


class Reader(ortq.CalibrationDataReader):  # type: ignore[misc]
    """Random samples."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(3)
        feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        self.feeds: Iterator[dict[str, Array]] = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def net(name: str) -> onnx.ModelProto:
    text, shapes = NETS[name]
    proto = onnx.parser.parse_model(HEAD + text)
    for weight, shape in shapes.items():
        fan = max(1, int(np.prod(shape[1:])) if len(shape) > 2 else shape[0])
        values = random(shape, weight).standard_normal(shape) / np.sqrt(fan)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), weight))
    return proto


def quantised(name: str, folder: Path, how: Mapping[str, Any]) -> Path:
    """The network as ONNX Runtime quantises it; ``how`` without a format: dynamically."""
    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(net(name), source)
    if "quant_format" in how:
        (value,) = onnx.load(source).graph.input
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        ortq.quantize_static(source, target, Reader(shape), **how)
    else:
        ortq.quantize_dynamic(source, target, **how)
    return target


def integers_of(path: Path) -> dict[str, int]:
    """How many elements each operator's stored integers of the weights have, all in all."""
    found: dict[str, int] = {}
    proto = onnx.load(path)
    sizes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        for value in (sizes[x] for x in node.input if x in sizes):
            if value.dtype.kind in "iu" and value.ndim > 1:
                found[node.op_type] = found.get(node.op_type, 0) + value.size
    return found


QDQ, QOPERATOR = ortq.QuantFormat.QDQ, ortq.QuantFormat.QOperator
U8, S8 = ortq.QuantType.QUInt8, ortq.QuantType.QInt8
STATIC = [
    {"quant_format": form, "per_channel": each, "activation_type": a, "weight_type": w}
    for form in (QDQ, QOPERATOR)
    for each, a, w in ((False, U8, S8), (True, U8, S8), (False, U8, U8), (True, S8, S8))
]
DYNAMIC = [{"weight_type": w, "per_channel": each} for w, each in ((S8, True), (U8, False))]


def label(how: Mapping[str, Any]) -> str:
    return "-".join(str(getattr(value, "name", value)) for value in how.values())


@pytest.mark.parametrize("how", [*STATIC, *DYNAMIC], ids=label)
@pytest.mark.parametrize("name", NETS)
def test_a_quantised_file_shrinks_and_is_proved(
    name: str, how: Mapping[str, Any], tmp_path: Path
) -> None:
    path, small = quantised(name, tmp_path, how), tmp_path / "small.onnx"
    onnxprune.prune(path, ratio=0.5, output=small)
    before, after = integers_of(path), integers_of(small)
    assert before
    assert before.keys() == after.keys()
    assert sum(after.values()) < 0.55 * sum(before.values())
