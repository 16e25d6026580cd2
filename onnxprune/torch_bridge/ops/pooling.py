"""Rows that pool, and that sample anew: windows, Resize, GridSample, RoiAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, ints
from onnxprune.torch_bridge.lazy import F, torch
from onnxprune.torch_bridge.ops.linear import dilated, padded, pads_of


def _window(at: At, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and what is added at the ends to fill the last window."""
    kernel = list(at("kernel_shape"))
    rank = len(kernel)
    strides, dilations = at("strides", [1] * rank), at("dilations", [1] * rank)
    reach = dilated(kernel, dilations)
    pads = pads_of(at, x, reach, strides)
    extra = [0] * rank
    if at("ceil_mode", 0):
        for axis in range(rank):
            size = x.shape[2 + axis] + pads[axis] + pads[axis + rank]
            count = math.ceil((size - reach[axis]) / strides[axis]) + 1
            if (count - 1) * strides[axis] >= x.shape[2 + axis] + pads[axis]:
                count -= 1  # a window that starts behind the data is left out
            extra[axis] = max(0, (count - 1) * strides[axis] + reach[axis] - size)
    return kernel, list(strides), list(dilations), pads, extra


def _more(pads: Sequence[int], extra: Sequence[int]) -> list[int]:
    rank = len(extra)
    return [*pads[:rank], *(p + e for p, e in zip(pads[rank:], extra, strict=True))]


def max_pool(at: At, x: Tensor) -> Made:
    """The largest of each window, and where it was."""
    kernel, strides, dilations, pads, extra = _window(at, x)
    rank, dtype = len(kernel), x.dtype
    own = x if x.is_floating_point() else x.float()
    wide = padded(own, _more(pads, extra), -math.inf)
    function = getattr(F, f"max_pool{rank}d")
    if at.results == 1:
        return function(wide, kernel, strides, 0, dilations).to(dtype)
    y, places = function(wide, kernel, strides, 0, dilations, return_indices=True)
    order = list(range(rank))
    flat, unit, rest = torch.zeros_like(places), 1, places
    sizes = {}
    for axis in reversed(order):
        sizes[axis] = rest % wide.shape[2 + axis] - pads[axis]
        rest = torch.div(rest, wide.shape[2 + axis], rounding_mode="floor")
    for axis in order if at("storage_order", 0) else reversed(order):
        flat = flat + sizes[axis] * unit
        unit *= x.shape[2 + axis]
    maps = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *([1] * rank))
    return y.to(dtype), flat + maps * unit


def _windows_sum(x: Tensor, kernel: Sequence[int], how: tuple[Any, Any]) -> Tensor:
    """Sums (n, c, *) over windows of x (n, c, *), which is padded."""
    rank = len(kernel)
    flat = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    y = getattr(F, f"conv{rank}d")(flat, ones, None, how[0], 0, how[1])
    return y.reshape(*x.shape[:2], *y.shape[2:])


def average_pool(at: At, x: Tensor) -> Tensor:
    """The mean of each window; what is padded counts where that is asked for."""
    kernel, strides, dilations, pads, extra = _window(at, x)
    rank, counts = len(kernel), bool(at("count_include_pad", 0))
    plain = rank <= 3 and pads[:rank] == pads[rank:] and not any(extra)
    if (
        plain
        and set(dilations) == {1}
        and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    ):
        function = getattr(F, f"avg_pool{rank}d")
        return function(x, kernel, strides, pads[:rank], False, counts)
    wide = padded(padded(x, pads), [0] * rank + extra)
    inside = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    inside = padded(padded(inside, pads, float(counts)), [0] * rank + extra)
    how = (strides, dilations)
    return _windows_sum(wide, kernel, how) / _windows_sum(inside, kernel, how)


def lp_pool(at: At, x: Tensor) -> Tensor:
    """The norm of each window."""
    kernel, strides, dilations, pads, extra = _window(at, x)
    p = at("p", 2)
    wide = padded(x, _more(pads, extra)).abs() ** p
    return _windows_sum(wide, kernel, (strides, dilations)) ** (1 / p)


def global_average(at: At, x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_lp(at: At, x: Tensor) -> Tensor:
    """The norm of each channel."""
    return torch.linalg.vector_norm(x, at("p", 2), list(range(2, x.ndim)), keepdim=True)


def max_unpool(at: At, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    """Values put back where they were the largest."""
    rank = len(at("kernel_shape"))
    strides, pads = at("strides", [1] * rank), at("pads", [0] * (2 * rank))
    own = [
        (n - 1) * s + k - pads[i] - pads[i + rank]
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, at("kernel_shape"), strict=True))
    ]
    sizes = [*x.shape[:2], *own]
    wanted = ints(shape) or sizes
    made = x.new_zeros(math.prod(sizes)).scatter(0, places.reshape(-1), x.reshape(-1))
    return padded(
        made.reshape(sizes),
        [0] * rank + [w - n for w, n in zip(wanted[2:], own, strict=True)],
    )


def grid_sample(at: At, x: Tensor, grid: Tensor) -> Tensor:
    """Values at the places of a grid."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = at("mode", "bilinear")
    return F.grid_sample(
        x,
        grid,
        modes.get(mode, mode),
        at("padding_mode", "zeros"),
        bool(at("align_corners", 0)),
    )


def roi_align(at: At, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """The mean, or the largest, of samples in the cells of each region."""
    height, width = at("output_height", 1), at("output_width", 1)
    shift = 0.5 if at("coordinate_transformation_mode", _mode(at)) == "half_pixel" else 0.0
    boxes = rois * at("spatial_scale", 1.0) - shift
    made = []
    for box, image in zip(boxes, batch.tolist(), strict=True):
        x1, y1, x2, y2 = box.unbind()
        tall, wide = y2 - y1, x2 - x1
        if not shift:
            tall, wide = tall.clamp(min=1.0), wide.clamp(min=1.0)
        ys = _samples(y1, tall, height, at("sampling_ratio", 0))
        xs = _samples(x1, wide, width, at("sampling_ratio", 0))
        cells = _bilinear(x[image], ys, xs, at("mode", "avg") == "max")
        cells = cells.reshape(len(cells), height, -1, width, cells.shape[2] // width)
        largest = at("mode", "avg") == "max"
        made.append(cells.amax((2, 4)) if largest else cells.mean((2, 4)))
    return torch.stack(made) if made else x.new_zeros(0, x.shape[1], height, width)


def _mode(at: At) -> str:
    return "half_pixel" if at.opset >= 16 else "output_half_pixel"


def _samples(start: Tensor, length: Tensor, cells: int, ratio: int) -> Tensor:
    """The coordinates of samples (cells * ratio,) along one side of a region."""
    count = ratio if ratio > 0 else max(1, math.ceil(float(length) / cells))
    places = (torch.arange(cells * count, device=start.device) + 0.5) / count
    return start + places * (length / cells)


def _bilinear(image: Tensor, ys: Tensor, xs: Tensor, largest: bool) -> Tensor:
    """Values (c, len(ys), len(xs)) between the pixels of (c, h, w); outside it is zero.

    Where the largest sample is taken, ONNX takes the largest weighted corner of each instead.
    """

    def axis(v: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (v >= -1.0) & (v <= size)
        v = v.clamp(min=0.0)
        low = v.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        v = torch.where(v.floor().long() >= size - 1, low.to(v.dtype), v)
        return low, high, v - low, inside

    y0, y1, fy, iny = axis(ys, image.shape[1])
    x0, x1, fx, inx = axis(xs, image.shape[2])
    corners = []
    for rows, wy in ((y0, 1 - fy), (y1, fy)):
        for columns, wx in ((x0, 1 - fx), (x1, fx)):
            corners.append(image[:, rows][:, :, columns] * wy[:, None] * wx)
    mixed = torch.stack(corners)
    value = mixed.amax(0) if largest else mixed.sum(0)
    return value * (iny[:, None] & inx)


def col2im(at: At, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Columns put back into an image, overlaps added."""
    size, kernel = ints(image) or [], ints(block) or []
    if len(size) != 2:
        raise at.refuse(f"an image with {len(size)} axes")
    pads, strides = at("pads", [0] * 4), at("strides", [1, 1])
    wide = [n + a + b for n, a, b in zip(size, pads[:2], pads[2:], strict=True)]
    y = F.fold(x, wide, kernel, at("dilations", [1, 1]), 0, strides)
    return padded(y, [-p for p in pads])


ROWS: Final[dict[str, Any]] = {
    "AveragePool": average_pool,
    "Col2Im": col2im,
    "GlobalAveragePool": global_average,
    "GlobalLpPool": global_lp,
    "GlobalMaxPool": lambda at, x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "GridSample": grid_sample,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
    "RoiAlign": roi_align,
}
