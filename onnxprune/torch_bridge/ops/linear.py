"""Rows that contract: convolutions, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Tensor
from onnxprune.torch_bridge.lazy import F, torch


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], upper: bool
) -> list[int]:
    """Pads at both ends of each axis for auto_pad SAME; ``kernel`` with its dilation."""
    begins, ends = [], []
    for size, width, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, ((size + stride - 1) // stride - 1) * stride + width - size)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def pads_of(at: At, x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The pads that a node of a sliding window states, begins and ends."""
    auto, rank = at("auto_pad", "NOTSET"), len(kernel)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(x.shape[2:], kernel, strides, auto == "SAME_UPPER")
    return list(at("pads", [0] * (2 * rank))) if auto == "NOTSET" else [0] * (2 * rank)


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """x with pads at both ends of its last axes."""
    rank = len(pads) // 2
    flat = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]
    return F.pad(x, flat, value=value) if any(flat) else x


def dilated(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """How far a kernel with holes reaches."""
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def conv(at: At, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolution over any number of axes."""
    rank = w.ndim - 2
    strides = at("strides", [1] * rank)
    dilations = at("dilations", [1] * rank)
    pads = pads_of(at, x, dilated(w.shape[2:], dilations), strides)
    if pads[:rank] != pads[rank:]:
        x, pads = padded(x, pads), [0] * rank
    if not 1 <= rank <= 3:
        raise at.refuse(f"a convolution over {rank} axes")
    function = getattr(F, f"conv{rank}d")
    return function(x, w, b, strides, pads[:rank], dilations, at("group", 1))


def conv_transpose(at: At, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Transposed convolution; pads are cut off afterwards, since they may differ at the ends."""
    rank = w.ndim - 2
    strides = at("strides", [1] * rank)
    dilations = at("dilations", [1] * rank)
    extra = list(at("output_padding", [0] * rank))
    reach = dilated(w.shape[2:], dilations)
    full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, reach, strict=True)]
    pads = _transposed_pads(at, x, full, strides, extra)  # below 0 where more is wanted
    function = getattr(F, f"conv_transpose{rank}d")
    y = function(x, w, None, strides, 0, 0, at("group", 1), dilations)
    cut = [-p for p in pads[:rank]]
    cut += [e - p for e, p in zip(extra, pads[rank:], strict=True)]
    y = padded(y, cut)
    return y if b is None else y + b.reshape(-1, *([1] * rank))


def _transposed_pads(
    at: At, x: Tensor, full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> list[int]:
    """What is cut off at both ends, as attributes or the wanted size say.

    The odd one of a total goes to the end for SAME_UPPER alone, in all opsets: ONNX says so since
    opset 11, and ONNX Runtime never did otherwise. A stated size beyond the full one adds zeros at
    the end; one that SAME implies does not, in ONNX Runtime.
    """
    rank, auto, shape = len(full), at("auto_pad", "NOTSET"), at("output_shape")
    if not shape and auto in ("NOTSET", "VALID"):
        return list(at("pads", [0] * (2 * rank))) if auto == "NOTSET" else [0] * (2 * rank)
    implied = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    sizes = list(shape or implied)[-rank:]
    totals = [f + e - n for f, e, n in zip(full, extra, sizes, strict=True)]
    cut = [max(0, total) for total in totals]
    begins = [n // 2 if auto == "SAME_UPPER" else n - n // 2 for n in cut]
    return begins + [n - b for n, b in zip(totals if shape else cut, begins, strict=True)]


def gemm(at: At, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha a b + beta c."""
    a = a.t() if at("transA", 0) else a
    alpha, beta = at("alpha", 1.0), at("beta", 1.0)
    if c is not None and c.ndim == 1 and alpha == 1.0 == beta and c.shape[0] == _columns(at, b):
        return F.linear(a, b if at("transB", 0) else b.t(), c)
    y = a @ (b.t() if at("transB", 0) else b)
    y = y if alpha == 1.0 else y * alpha
    if c is None:
        return y.to(a.dtype)
    return (y + (c if beta == 1.0 else c * beta)).to(a.dtype)


def _columns(at: At, b: Tensor) -> int:
    return int(b.shape[0 if at("transB", 0) else 1])


def fused_matmul(at: At, a: Tensor, b: Tensor) -> Tensor:
    """alpha a b, of transposed operands."""
    if at("transBatchA", 0) or at("transBatchB", 0):
        raise at.refuse("transposed batch axes")
    a = a.transpose(-1, -2) if at("transA", 0) and a.ndim > 1 else a
    b = b.transpose(-1, -2) if at("transB", 0) and b.ndim > 1 else b
    return torch.matmul(a, b) * at("alpha", 1.0)


def einsum(at: At, *operands: Tensor) -> Tensor:
    """The equation's own."""
    return torch.einsum(at("equation").replace(" ", ""), *operands)


ROWS: Final[dict[str, Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": lambda at, a, b: torch.matmul(a, b),
}
CONTRIB: Final[dict[str, Any]] = {"FusedMatMul": fused_matmul, "TransposeMatMul": fused_matmul}
