"""Resize: each axis on its own, by the taps and weights that every place of the result reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxprune.torch_bridge.at import At, Tensor, ints, optional, tensor

Floats = NDArray[np.float64]


def resize(at: At, x: Tensor, *given: Tensor | None) -> Tensor:
    """By sizes or scales; see ``taps`` for one axis."""
    if at.opset < 11:  # Resize 10 and Upsample: scales alone
        scales = at("scales") if not given else optional(given, 1)[0].tolist()
        return _along(at, x, list(range(x.ndim)), list(scales), None, None, "asymmetric")
    roi, factors, sizes = optional(given, 3)
    axes = [a % x.ndim for a in at("axes")] if at("axes") else list(range(x.ndim))
    wanted = ints(sizes)
    if wanted:
        scales = [n / x.shape[a] for n, a in zip(wanted, axes, strict=True)]
        policy = at("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(scales) if policy == "not_larger" else max(scales)
            scales = [one] * len(axes)
            wanted = [math.floor(one * x.shape[a] + 0.5) for a in axes]
    else:
        scales = factors.tolist()
    region = None if roi is None or not roi.numel() else roi.tolist()
    how = at("coordinate_transformation_mode", "half_pixel")
    return _along(at, x, axes, scales, wanted, region, how)


def _along(
    at: At,
    x: Tensor,
    axes: list[int],
    scales: list[float],
    sizes: list[int] | None,
    roi: list[float] | None,
    how: str,
) -> Tensor:
    """One axis after the other; with antialias a factor above 1 works as without it."""
    outside = None
    for position, axis in enumerate(axes):
        size, scale = x.shape[axis], scales[position]
        wanted = sizes[position] if sizes else math.floor(size * scale)
        if wanted == size and scale == 1.0 and how != "tf_crop_and_resize":
            continue
        ends = (roi[position], roi[position + len(axes)]) if roi else (0.0, 1.0)
        coordinates = tuple(_coordinates(how, size, wanted, scale, ends))
        mode = (at("mode", "nearest"), at("nearest_mode", _nearest(at)))
        if at("antialias", 0) and scale < 1:
            mode = (f"{mode[0]} antialias {scale!r}", mode[1])
        fixed = (float(at("cubic_coeff_a", -0.75)), bool(at("exclude_outside", 0)))
        places, weights = taps(coordinates, size, mode, *fixed)
        x = _mixed(x, axis, places, weights)
        if how == "tf_crop_and_resize":
            off = np.array([c < 0 or c > size - 1 for c in coordinates])
            shape = [wanted if a == axis else 1 for a in range(x.ndim)]
            own = tensor(off).to(x.device).reshape(shape)
            outside = own if outside is None else outside | own
    return x if outside is None else x.masked_fill(outside, at("extrapolation_value", 0.0))


def _nearest(at: At) -> str:
    return "floor" if at.opset < 11 else "round_prefer_floor"


def _coordinates(
    how: str, size: int, wanted: int, scale: float, ends: tuple[float, float]
) -> Floats:
    """Where in the operand each place of the result lies."""
    i = np.arange(wanted, dtype=np.float64)
    if how == "align_corners":
        return i * (size - 1) / (wanted - 1) if wanted > 1 else i * 0
    if how == "asymmetric":
        return i / scale
    if how == "tf_crop_and_resize":
        start, end = ends
        if wanted == 1:
            return np.full(1, 0.5 * (start + end) * (size - 1))
        return start * (size - 1) + i * (end - start) * (size - 1) / (wanted - 1)
    if how == "pytorch_half_pixel" and wanted == 1:
        return np.full(1, -0.5)
    found: Floats = (i + 0.5) / scale - 0.5
    if how == "half_pixel_symmetric":
        found += size / 2 * (1 - wanted / (scale * size))
    return found


_ROUNDED: Final[dict[str, Callable[[Floats], Floats]]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
}


@lru_cache(maxsize=256)
def taps(
    coordinates: tuple[float, ...], size: int, mode: tuple[str, str], a: float, exclude: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which indices (places, taps) each place reads, and with what weights (places, taps)."""
    x = np.array(coordinates)
    kind, _, scale = mode[0].partition(" antialias ")
    if kind == "nearest":
        rounded = _ROUNDED[mode[1]](x)
        return rounded.clip(0, size - 1).astype(np.int64)[:, None], np.ones((len(x), 1))
    shrink = float(scale) if scale else 1.0
    reach = (2 if kind == "cubic" else 1) / shrink
    count = 2 * math.ceil(reach)
    first = np.floor(x).astype(np.int64) - math.ceil(reach) + 1
    places = first[:, None] + np.arange(count)
    weights = _kernel(kind, (places - x[:, None]) * shrink, a)
    if exclude or scale:
        weights = weights / weights.sum(1, keepdims=True)
    if exclude:
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights = weights / weights.sum(1, keepdims=True)
    return places.clip(0, size - 1), weights


def _kernel(kind: str, apart: Floats, a: float) -> Floats:
    """The weight of what lies so far away."""
    d = np.abs(apart)
    if kind != "cubic":
        linear: Floats = np.maximum(0, 1 - d)
        return linear
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _mixed(x: Tensor, axis: int, places: NDArray[np.int64], weights: Floats) -> Tensor:
    """The weighted sum of what is read along an axis."""
    total = None
    for tap in range(places.shape[1]):
        part = x.index_select(axis, tensor(places[:, tap]).to(x.device))
        if not (weights[:, tap] == 1).all():
            shape = [-1 if i == axis else 1 for i in range(x.ndim)]
            part = part * tensor(weights[:, tap]).to(x.device, x.dtype).reshape(shape)
        total = part if total is None else total + part
    return total


ROWS: Final[dict[str, Any]] = {"Resize": resize, "Upsample": resize}
