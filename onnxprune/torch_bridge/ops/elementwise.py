"""Rows that work on each element, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, dtype_of, number
from onnxprune.torch_bridge.lazy import F, torch

Row = Callable[..., Made]


def of(name: str) -> Row:
    """The function of torch that has this name, on all operands."""
    return lambda at, *operands: getattr(torch, name)(*operands)


def _aligned(at: At, a: Tensor, b: Tensor) -> Tensor:
    """The second operand as opsets before 7 broadcast it: from axis ``axis`` on."""
    axis = at("axis")
    if at.opset >= 7 or not at("broadcast", 0) or axis is None or b.ndim == 0:
        return b
    return b.reshape(*b.shape, *([1] * (a.ndim - axis % a.ndim - b.ndim)))


def binary(name: str) -> Row:
    """A function of torch on two operands."""
    return lambda at, a, b: getattr(torch, name)(a, _aligned(at, a, b))


def logical(name: str) -> Row:
    """An operator of Python on two tensors."""
    return lambda at, a, b: getattr(a, name)(_aligned(at, a, b))


def div(at: At, a: Tensor, b: Tensor) -> Tensor:
    """Division; of whole numbers towards zero."""
    b = _aligned(at, a, b)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def power(at: At, a: Tensor, b: Tensor) -> Tensor:
    """a to the power b, in the type of a."""
    b = _aligned(at, a, b)
    if b.numel() == 1 and not b.requires_grad:
        b = b.reshape(()).item()  # so that a square of what is below 0 has a gradient
        return torch.pow(a, b).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


def mod(at: At, a: Tensor, b: Tensor) -> Tensor:
    """What remains, with the sign of b, or with fmod that of a."""
    return torch.fmod(a, b) if at("fmod", 0) else torch.remainder(a, b)


def bit_shift(at: At, a: Tensor, b: Tensor) -> Tensor:
    """Bits moved to the left or right."""
    left = at("direction") == "LEFT"
    shift = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return shift(a, b)


def variadic(name: str) -> Row:
    """A function of torch over any number of operands, two at a time."""
    return lambda at, *operands: reduce(getattr(torch, name), operands)


def mean(at: At, *operands: Tensor) -> Tensor:
    """The mean of some operands."""
    return reduce(torch.add, operands) / len(operands)


def clip(at: At, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Values between two bounds."""
    bounds = number(low, at("min")), number(high, at("max"))
    if bounds == (None, None):
        return x
    if x.is_floating_point() and None not in bounds and bounds[0] < bounds[1]:
        return F.hardtanh(x, *bounds)  # its gradient takes less time than that of clamp
    return torch.clamp(x, *bounds).to(x.dtype)


def gelu(at: At, x: Tensor) -> Tensor:
    """Gaussian error unit."""
    return F.gelu(x, approximate=at("approximate", "none"))


def prelu(at: At, x: Tensor, slope: Tensor) -> Tensor:
    """Two slopes; before opset 7 one for each channel."""
    if at.opset < 7 and slope.ndim == 1 and slope.numel() > 1:
        slope = slope.reshape(-1, *([1] * (x.ndim - 2)))
    return torch.where(x >= 0, x, x * slope)


def cast(at: At, x: Tensor) -> Tensor:
    """Another type."""
    return x.to(dtype_of(at("to")))


def is_inf(at: At, x: Tensor) -> Tensor:
    """Whether values are infinite, of the signs that are asked for."""
    up, down = at("detect_positive", 1), at("detect_negative", 1)
    found = torch.zeros_like(x, dtype=torch.bool)
    if up:
        found = found | (x == math.inf)
    return found | (x == -math.inf) if down else found


def selu(at: At, x: Tensor) -> Tensor:
    """Scaled exponential unit."""
    alpha, gamma = at("alpha", 1.67326319217681884765625), at("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def elu(at: At, x: Tensor) -> Tensor:
    """Exponential unit."""
    return F.elu(x, at("alpha", 1.0))


def shrink(at: At, x: Tensor) -> Tensor:
    """What lies near zero becomes zero, the rest comes nearer."""
    lambd, bias = at("lambd", 0.5), at("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def dropout(at: At, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Made:
    """Nothing in inference; the ratio that the file states in training."""
    asked = bool(number(training, False)) or (at.mode.training and at.opset >= 7)
    rate = number(ratio, at("ratio", 0.5)) if asked else 0.0
    if not rate:
        return (x, torch.ones_like(x, dtype=torch.bool))[: at.results]
    mask = torch.rand_like(x) >= rate
    return (x * mask / (1 - rate), mask)[: at.results]


def hard_sigmoid(at: At, x: Tensor) -> Tensor:
    """A line between 0 and 1."""
    return torch.clamp(at("alpha", 0.2) * x + at("beta", 0.5), 0, 1)


def swish(at: At, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(at("alpha", 1.0) * x)


def round_(at: At, x: Tensor) -> Tensor:
    """To whole numbers, halves to even ones; the gradient goes straight through."""
    return through(x, torch.round(x))


def through(x: Tensor, y: Tensor) -> Tensor:
    """y, with x's gradient: the straight-through estimate of what has none."""
    return x + (y - x).detach() if x.requires_grad else y


_UNARY: Final = """
    Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor Log Neg Relu Reciprocal Sigmoid
    Sign Sin Sinh Sqrt Tan Tanh
"""
ROWS: Final[dict[str, Row]] = {
    **{op: of(op.lower()) for op in _UNARY.split()},
    "Add": binary("add"),
    "And": logical("__and__"),
    "BitShift": bit_shift,
    "BitwiseAnd": of("bitwise_and"),
    "BitwiseNot": of("bitwise_not"),
    "BitwiseOr": of("bitwise_or"),
    "BitwiseXor": of("bitwise_xor"),
    "Cast": cast,
    "CastLike": lambda at, x, like: x.to(like.dtype),
    "Celu": lambda at, x: F.celu(x, at("alpha", 1.0)),
    "Clip": clip,
    "Div": div,
    "Dropout": dropout,
    "Elu": elu,
    "Equal": binary("eq"),
    "Gelu": gelu,
    "Greater": binary("gt"),
    "GreaterOrEqual": binary("ge"),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda at, x: F.hardswish(x),
    "Identity": lambda at, x: x,
    "IsInf": is_inf,
    "IsNaN": of("isnan"),
    "LeakyRelu": lambda at, x: F.leaky_relu(x, at("alpha", 0.01)),
    "Less": binary("lt"),
    "LessOrEqual": binary("le"),
    "Max": variadic("maximum"),
    "Mean": mean,
    "Min": variadic("minimum"),
    "Mish": lambda at, x: F.mish(x),
    "Mod": mod,
    "Mul": binary("mul"),
    "Not": of("logical_not"),
    "Or": logical("__or__"),
    "PRelu": prelu,
    "Pow": power,
    "Round": round_,
    "Selu": selu,
    "Shrink": shrink,
    "Softplus": lambda at, x: torch.logaddexp(x, torch.zeros_like(x)),
    "Softsign": lambda at, x: F.softsign(x),
    "Sub": binary("sub"),
    "Sum": variadic("add"),
    "SwiGLU": lambda at, gate, x: swish(at, gate) * x,
    "Swish": swish,
    "ThresholdedRelu": lambda at, x: torch.where(x > at("alpha", 1.0), x, torch.zeros_like(x)),
    "Where": of("where"),
    "Xor": logical("__xor__"),
}


def quick_gelu(at: At, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(at("alpha", 1.702) * x)


def fast_gelu(at: At, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh form of the Gaussian error unit, of a sum."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


CONTRIB: Final[dict[str, Any]] = {
    "BiasGelu": lambda at, x, bias: F.gelu(x + bias),
    "FastGelu": fast_gelu,
    "Gelu": lambda at, x: F.gelu(x),
    "QuickGelu": quick_gelu,
}
