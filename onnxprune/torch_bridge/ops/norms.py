"""Rows that normalise, and functions along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, ints, number
from onnxprune.torch_bridge.lazy import F, torch

MOMENTUM: Final = 0.1  # torch's: files state the exporter's, often 0.9 or 1 for inference


def batch_norm(at: At, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Made:
    """By the stored statistics; in training by the batch's, which move the stored ones."""
    if at.opset >= 14 and at("training_mode", 0):
        return _training_norm(at, x, scale, shift, mean, var)
    if x.ndim < 2:
        raise at.refuse("an operand without channels")
    dtype, epsilon = x.dtype, at("epsilon", 1e-5)
    x = x.to(mean.dtype)
    moving = at.mode.training and not at.frozen and x.numel() > x.shape[1]
    stored = (mean, var) if moving else (mean.detach(), var.detach())
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    return F.batch_norm(x, *stored, scale, shift, moving, MOMENTUM, epsilon).to(dtype)


def _training_norm(
    at: At, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor
) -> Made:
    axes = [0, *range(2, x.ndim)]
    own = x.float().mean(axes), x.float().var(axes, correction=0)
    keep = at("momentum", 0.9)
    y = F.batch_norm(x, None, None, scale, shift, True, 0.0, at("epsilon", 1e-5))
    moved = [old * keep + new * (1 - keep) for old, new in zip((mean, var), own, strict=True)]
    return (y, *(m.to(mean.dtype) for m in moved))[: at.results]


def layer_norm(at: At, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Made:
    """Over the axes from ``axis`` on; mean and inverse deviation where they are asked for."""
    axis = at("axis", -1) % x.ndim
    axes, epsilon = list(range(axis, x.ndim)), at("epsilon", 1e-5)
    shape = tuple(x.shape[axis:])
    if at.results == 1 and tuple(scale.shape) == shape == tuple(_or(shift, scale).shape):
        return F.layer_norm(x, shape, scale, shift, epsilon)
    own = x.float()
    mean = own.mean(axes, keepdim=True)
    inverse = torch.rsqrt(((own - mean) ** 2).mean(axes, keepdim=True) + epsilon)
    y = ((own - mean) * inverse).to(x.dtype) * scale
    return (y if shift is None else y + shift, mean, inverse)[: at.results]


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    return other if x is None else x


def rms_norm(at: At, x: Tensor, scale: Tensor) -> Made:
    """By the root of the mean square over the axes from ``axis`` on."""
    axes = list(range(at("axis", -1) % x.ndim, x.ndim))
    own = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt((own * own).mean(axes, keepdim=True) + at("epsilon", 1e-5))
    return ((own * inverse).to(x.dtype) * scale, inverse)[: at.results]


def group_norm(at: At, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Over groups of channels; before opset 21 scale and shift are one for each group."""
    groups = at("num_groups")
    if scale.numel() == groups != x.shape[1]:
        scale, shift = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, shift))
    return F.group_norm(x, groups, scale, shift, at("epsilon", 1e-5))


def instance_norm(at: At, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Over the places of each channel; one place is its own mean, which torch would refuse."""
    axes = list(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    var = ((x - mean) ** 2).mean(axes, keepdim=True)
    shape = (-1, *([1] * len(axes)))
    y = (x - mean) * torch.rsqrt(var + at("epsilon", 1e-5))
    return y * scale.reshape(shape) + shift.reshape(shape)


def lrn(at: At, x: Tensor) -> Tensor:
    """By the neighbours' squares; torch and ONNX take an even number from the same side."""
    return F.local_response_norm(
        x, at("size"), at("alpha", 1e-4), at("beta", 0.75), at("bias", 1.0)
    )


def lp_norm(at: At, x: Tensor) -> Tensor:
    """Divided by the norm along an axis; what is zero stays zero."""
    norm = torch.linalg.vector_norm(x, at("p", 2), at("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance(at: At, x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over some axes."""
    axes = at("axes", [0, 2, 3])
    apart = x - x.mean(axes, keepdim=True)
    return apart / (torch.sqrt((apart * apart).mean(axes, keepdim=True)) + 1e-9)


def softmax(function: str) -> Callable[..., Made]:
    """Along an axis; before opset 13 over all axes from it on."""

    def row(at: At, x: Tensor) -> Tensor:
        if at.opset >= 13:
            return getattr(torch, function)(x, at("axis", -1))
        axis = at("axis", 1) % max(x.ndim, 1)
        flat = x.reshape(*x.shape[:axis], -1)
        return getattr(torch, function)(flat, -1).reshape(x.shape)

    return row


def hardmax(at: At, x: Tensor) -> Tensor:
    """1 at the largest, 0 elsewhere."""
    shape = x.shape
    axis = at("axis", -1 if at.opset >= 13 else 1) % x.ndim
    if at.opset < 13:
        x = x.reshape(*shape[:axis], -1)
    place = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, place, 1).reshape(shape)


def _axes(at: At, x: Tensor, axes: Tensor | None) -> list[int] | None:
    """The axes of a reduction; None where nothing is reduced."""
    found = ints(axes) if axes is not None else at("axes")
    if found:
        return [axis % max(x.ndim, 1) for axis in found]
    return None if at("noop_with_empty_axes", 0) else list(range(x.ndim))


def reduce(function: Callable[[Tensor, Sequence[int], bool], Tensor], one: Any) -> Any:
    """A reduction: ``function(x, axes, keepdims)``, or what becomes of each element alone."""

    def row(at: At, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = _axes(at, x, axes)
        if over is None or (x.ndim == 0 and not over):
            return one(x)
        return function(x, over, bool(at("keepdims", 1))).to(x.dtype)

    return row


def _extreme(name: str) -> Callable[[Tensor, Sequence[int], bool], Tensor]:
    def function(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        if any(x.shape[axis] == 0 for axis in axes):
            shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
            ends = (-math.inf, math.inf) if x.is_floating_point() else _ends(x.dtype)
            y = torch.full(shape, ends[name == "amin"], dtype=x.dtype)
            return y if keep else y.reshape([n for a, n in enumerate(x.shape) if a not in axes])
        whole = x.to(torch.uint8) if x.dtype is torch.bool else x
        return getattr(torch, name)(whole, list(axes), keep)

    return function


def _ends(dtype: Any) -> tuple[int, int]:
    """The least and the largest of a type of whole numbers."""
    return (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return torch.sum(x, list(axes), keep)


def _log_sum_exp(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), list(axes), keep)


def arg(function: str) -> Callable[..., Made]:
    """The place of the largest or smallest; the first or the last of equals."""

    def row(at: At, x: Tensor) -> Tensor:
        axis, keep = at("axis", 0) % x.ndim, bool(at("keepdims", 1))
        if not at("select_last_index", 0):
            return getattr(torch, function)(x, axis, keep)
        found = getattr(torch, function)(x.flip(axis), axis, keep)
        return x.shape[axis] - 1 - found

    return row


def cumulate(function: str, start: float) -> Callable[..., Made]:
    """Running sums or products along an axis."""

    def row(at: At, x: Tensor, axis: Tensor) -> Tensor:
        along = int(number(axis)) % x.ndim
        y = x.flip(along) if at("reverse", 0) else x
        dtype, size = x.dtype, x.shape[along]
        y = getattr(torch, function)(y, along).to(dtype)
        if at("exclusive", 0):
            first = torch.full_like(y.narrow(along, 0, 1), start)
            y = torch.cat([first, y.narrow(along, 0, size - 1)], along)
        return y.flip(along) if at("reverse", 0) else y

    return row


def top_k(at: At, x: Tensor, k: Tensor | None = None) -> Made:
    """The k largest or smallest along an axis, in order."""
    count = at("k") if k is None else int(number(k))
    axis = at("axis", -1) % x.ndim
    order = torch.sort(x, dim=axis, descending=bool(at("largest", 1)), stable=True)
    return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)


ROWS: Final[dict[str, Any]] = {
    "ArgMax": arg("argmax"),
    "ArgMin": arg("argmin"),
    "BatchNormalization": batch_norm,
    "CumProd": cumulate("cumprod", 1),
    "CumSum": cumulate("cumsum", 0),
    "GroupNormalization": group_norm,
    "Hardmax": hardmax,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LayerNormalization": layer_norm,
    "LogSoftmax": softmax("log_softmax"),
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": rms_norm,
    "ReduceL1": reduce(lambda x, a, k: _sum(x.abs(), a, k), lambda x: x.abs()),
    "ReduceL2": reduce(
        lambda x, a, k: (
            _sum((x * x).double(), a, k).sqrt()
            if not x.is_floating_point()
            else torch.linalg.vector_norm(x, 2, list(a), k)
        ),
        lambda x: x.abs(),
    ),
    "ReduceLogSum": reduce(lambda x, a, k: _sum(x, a, k).log(), lambda x: x.log()),
    "ReduceLogSumExp": reduce(_log_sum_exp, lambda x: x),
    "ReduceMax": reduce(_extreme("amax"), lambda x: x),
    "ReduceMean": reduce(
        lambda x, a, k: torch.mean(x if x.is_floating_point() else x.double(), list(a), k),
        lambda x: x,
    ),
    "ReduceMin": reduce(_extreme("amin"), lambda x: x),
    "ReduceProd": reduce(_product, lambda x: x),
    "ReduceSum": reduce(_sum, lambda x: x),
    "ReduceSumSquare": reduce(lambda x, a, k: _sum(x * x, a, k), lambda x: x * x),
    "SimplifiedLayerNormalization": rms_norm,
    "Softmax": softmax("softmax"),
    "TopK": top_k,
}


def skip_norm(norm: Callable[..., Made], shifts: bool) -> Callable[..., Made]:
    """A norm of a sum; the sum is the fourth result."""

    def row(at: At, x: Tensor, skip: Tensor, scale: Tensor, *rest: Tensor | None) -> Made:
        shift = rest[0] if shifts and rest else None
        bias = rest[shifts] if len(rest) > shifts else None
        total = x + skip if bias is None else x + skip + bias
        alone = At(at.label, {"epsilon": at("epsilon", 1e-12)}, at.opset, 1)
        made = norm(alone, total, scale, shift) if shifts else norm(alone, total, scale)
        y = made[0] if isinstance(made, tuple) else made
        return (y, None, None, total)[: at.results]

    return row


CONTRIB: Final[dict[str, Any]] = {
    "SkipLayerNormalization": skip_norm(layer_norm, True),
    "SkipSimplifiedLayerNormalization": skip_norm(rms_norm, False),
}
