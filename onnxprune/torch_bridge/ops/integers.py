"""Rows of quantisation. Whole numbers are kept as floats, so that gradients go through.

The gradient of rounding is taken for 1 (straight through), that of what is cut off for 0.
"""

from __future__ import annotations

from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, dtype_of
from onnxprune.torch_bridge.lazy import torch
from onnxprune.torch_bridge.ops.elementwise import through

# uint16 is widened
_WHOLE: Final = ("int8", "uint8", "int16", "int32", "int64")


def _spread(at: At, v: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point as x wants it: one number, one for each slice of an axis, or blocks."""
    if v.numel() == 1 and v.ndim <= 1:
        return v.reshape(())
    axis = at("axis", 1) % x.ndim
    if v.ndim == 1:
        return v.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return v.repeat_interleave(at("block_size"), axis).narrow(axis, 0, x.shape[axis])


def quantize(at: At, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Whole numbers, as floats."""
    code = at("output_dtype", 0)
    kind = zero.dtype if zero is not None else dtype_of(code) if code else torch.uint8
    if str(kind).removeprefix("torch.") not in _WHOLE:
        raise at.refuse(f"numbers of type {kind}")
    least, most = (
        (0, 65535) if kind is torch.int64 else (torch.iinfo(kind).min, torch.iinfo(kind).max)
    )
    q = x.float() / _spread(at, scale.float(), x)
    q = through(q, torch.round(q))
    q = q if zero is None else q + _spread(at, zero, x).float()
    return q.clamp(least, most)


def dequantize(at: At, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """What the whole numbers stand for."""
    own = x.to(torch.float32)
    own = own if zero is None else own - _spread(at, zero, x).float()
    return (own * _spread(at, scale.float(), x)).to(scale.dtype)


def dynamic_quantize(at: At, x: Tensor) -> Made:
    """Whole numbers by the range of the values, its scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255)
    q = x / scale
    return (through(q, torch.round(q)) + zero).clamp(0, 255), scale, zero


def matmul_integer(
    at: At, a: Tensor, b: Tensor, za: Tensor | None = None, zb: Tensor | None = None
) -> Tensor:
    """The product of whole numbers, less their zero points; exact in double precision."""
    a = a.double() if za is None else a.double() - _rows(za.double())
    b = b.double() if zb is None else b.double() - zb.double()
    return torch.matmul(a, b)


def _rows(zero: Tensor) -> Tensor:
    return zero.unsqueeze(-1) if zero.ndim == 1 and zero.numel() > 1 else zero


ROWS: Final[dict[str, Any]] = {
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": matmul_integer,
    "QuantizeLinear": quantize,
}
