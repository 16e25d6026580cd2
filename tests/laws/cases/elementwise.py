"""Cases of elementwise operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from onnxprune.model import Array
from tests.laws.cases.build import flags, floats, integers, make, normal, uniform
from tests.laws.nodes import Case

UNARY = """
    Abs Atan Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign
    Swish Tan Tanh ThresholdedRelu Asinh
"""
NARROW = "Acos Asin Atanh Log Sqrt"  # operands between 0.1 and 0.9
BINARY = "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Sub Sum"
LOGICAL = "And Or Xor"
BITWISE = "BitwiseAnd BitwiseOr BitwiseXor"
BROADCASTS: list[tuple[tuple[int, ...], ...]] = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (3, 1)),
    ((4, 4), (4, 4, 4)),
    ((3, 1, 4), (5, 1)),
    ((4,), (1,)),
    ((), (3,)),
]


def cases() -> Iterator[Case]:
    for op in UNARY.split():
        yield make(op, (2, 3, 4))
    for op in NARROW.split():
        yield make(op, uniform(2, 3, 4))
    yield make("Acosh", uniform(2, 3, 4, low=1.1, high=3.0))
    for op in BINARY.split():
        for shapes in BROADCASTS:
            yield make(op, *shapes)
    yield from _variadic()
    for op in LOGICAL.split():
        for a, b in BROADCASTS:
            yield make(op, flags(*a), flags(*b, seed="b"))
    for op in BITWISE.split():
        yield make(op, integers(2, 3, 4), integers(3, 1))
    yield from _typed()
    yield from _contrib()


def _variadic() -> Iterator[Case]:
    for op in ("Max", "Mean", "Min", "Sum"):
        yield make(op, (3, 4), (5, 1, 4), (3, 1))
    yield make("PRelu", (2, 3, 4, 5), (3, 1, 1))
    yield make("PRelu", (2, 3, 4), (2, 3, 4))
    yield make("PRelu", (3, 4), (1,))
    yield make("Where", flags(3, 1), (2, 3, 4), (4,))
    yield make("Where", flags(4), (4, 4), ())
    yield make("Clip", (3, 4), floats(-0.5).reshape(()), floats(0.5).reshape(()))
    yield make("Clip", (3, 4), None, floats(0.5).reshape(()))
    yield make("Clip", (3, 4), opset=10, min=-0.5, max=0.5)
    yield make("Dropout", (3, 4))
    yield make("Dropout", (3, 4), floats(0.3).reshape(()), results=2)
    yield make("Dropout", (3, 4), opset=10, ratio=0.5)
    yield make("Pow", uniform(3, 4), (4,))
    yield make("Pow", normal(3, 4), floats(2.0).reshape(()))
    yield make("SwiGLU", (2, 3, 4), (2, 3, 4))


def _typed() -> Iterator[Case]:
    yield make("BitwiseNot", integers(3, 4))
    yield make("BitCast", normal(3, 4), to=TensorProto.INT32)
    left: Array = integers(3, 4, dtype=np.uint8, high=3)
    yield make("BitShift", left, integers(4, dtype=np.uint8, high=3), direction="LEFT")
    yield make("Not", flags(3, 4))
    yield make("Mod", integers(3, 4), integers(4, low=1))
    yield make("Mod", (3, 4), uniform(4), fmod=1)
    for kind in (TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL):
        yield make("Cast", (3, 4), to=kind)
    yield make("CastLike", (3, 4), integers(7))
    yield make("CastLike", (3, 4), integers(3, 4))
    yield make("IsInf", floats(1.0, -np.inf, np.inf, np.nan), detect_negative=0)


def _contrib() -> Iterator[Case]:
    ms = "com.microsoft::"
    yield make(f"{ms}BiasGelu", (2, 3, 4), (4,))
    yield make(f"{ms}FastGelu", (2, 3, 4), (4,))
    yield make(f"{ms}FastGelu", (2, 3, 4))
    yield make(f"{ms}Gelu", (2, 3, 4))
    yield make(f"{ms}QuickGelu", (2, 3, 4), alpha=1.7)
    yield make(f"{ms}GatedAdd", (2, 3, 4), (2, 3, 4), (2, 3, 1))
    yield make(f"{ms}GatedAdd", (4, 4), (4, 4), (4, 1))
    yield make(f"{ms}ScaledSiLU", (2, 3, 4), floats(0.7).reshape(()))
    yield make(f"{ms}ScaledSiLU", (2, 3, 4), alpha=0.7)
