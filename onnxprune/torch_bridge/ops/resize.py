"""Resize: each axis on its own, by the taps and weights that every place of the result reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxprune.torch_bridge.at import At, Tensor, ints, optional, tensor

Floats = NDArray[np.float64]
Single = NDArray[np.float32]
# Coordinates so near to the middle of two places are halfway between them, as ONNX Runtime has it
# (its issue 28291): a coordinate of single precision seldom is exactly there.
TIE: Final = 1e-6


def resize(at: At, x: Tensor, *given: Tensor | None) -> Tensor:
    """By sizes or scales; see ``taps`` for one axis."""
    if at.opset < 11:  # Resize 10 and Upsample: scales alone
        scales = _single(at("scales") if not given else optional(given, 1)[0].tolist())
        return _along(at, x, list(range(x.ndim)), scales, None, "asymmetric")
    roi, factors, sizes = optional(given, 3)
    axes = [a % x.ndim for a in at("axes")] if at("axes") else list(range(x.ndim))
    wanted = ints(sizes)
    if wanted:
        scales = _single(wanted) / _single([x.shape[a] for a in axes])
        policy = at("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scales[:] = scales.min() if policy == "not_larger" else scales.max()
            wanted = [math.floor(s * x.shape[a] + 0.5) for s, a in zip(scales, axes, strict=True)]
    else:
        scales = _single(factors.tolist())
    region = None if roi is None or not roi.numel() else _single(roi.tolist())
    how = at("coordinate_transformation_mode", "half_pixel")
    return _along(at, x, axes, scales, wanted, how, region)


def _along(
    at: At,
    x: Tensor,
    axes: list[int],
    scales: Single,
    wanted: list[int] | None,
    how: str,
    roi: Single | None = None,
) -> Tensor:
    """One axis after the other; with antialias a factor above 1 works as without it.

    As ONNX Runtime has it, an operand whose sizes stay is the result, and so stays an axis of
    factor 1, whatever its region.
    """
    outside = None
    sizes = wanted or [int(s * x.shape[a]) for s, a in zip(scales, axes, strict=True)]
    if sizes == [x.shape[a] for a in axes]:
        return x
    region = _single([0.0] * len(axes) + [1.0] * len(axes)) if roi is None else roi
    for position, axis in enumerate(axes):
        size, scale = x.shape[axis], float(scales[position])
        if scale == 1.0:
            continue
        ends = region[position :: len(axes)]
        coordinates = _coordinates(how, size, sizes[position], scales[position], ends)
        mode = (at("mode", "nearest"), at("nearest_mode", _nearest(at, scale)))
        if at("antialias", 0) and scale < 1:
            mode = (f"{mode[0]} antialias {scale!r}", mode[1])
        fixed = (float(at("cubic_coeff_a", -0.75)), bool(at("exclude_outside", 0)))
        places, weights = taps(tuple(coordinates.tolist()), size, mode, *fixed)
        x = _mixed(x, axis, places, weights)
        if how == "tf_crop_and_resize":
            off = (coordinates < 0) | (coordinates > size - 1)
            shape = [len(off) if a == axis else 1 for a in range(x.ndim)]
            own = tensor(off).to(x.device).reshape(shape)
            outside = own if outside is None else outside | own
    return x if outside is None else x.masked_fill(outside, at("extrapolation_value", 0.0))


def _single(values: Sequence[float]) -> Single:
    return np.array(values, np.float32)


def _nearest(at: At, scale: float) -> str:
    if at.opset < 11:  # had no attribute for it
        return "ceil" if scale < 1 else "floor"
    return "round_prefer_floor"


def _coordinates(how: str, size: int, wanted: int, scale: Any, ends: Single) -> Single:
    """Where in the operand each place of the result lies (wanted,).

    In single precision, as ONNX Runtime has them: which of two is the nearest hangs on it.
    """
    i, last, half = np.arange(wanted, dtype=np.float32), np.float32(size - 1), np.float32(0.5)
    steps = np.float32(max(1, wanted - 1))
    found: Any = (i + half) / scale - half
    if how == "align_corners":
        found = i * last / steps
    elif how == "asymmetric":
        found = i / scale
    elif how == "tf_half_pixel_for_nn":
        found = (i + half) / scale
    elif how == "tf_crop_and_resize":
        start, end = ends
        middle = 0.5 * float(start + end) * (size - 1)
        found = [middle] if wanted == 1 else start * last + i * (end - start) * last / steps
    elif how == "pytorch_half_pixel" and wanted == 1:
        found = [0.0]
    elif how == "half_pixel_symmetric":
        offset = np.float32(size) / 2 * (1 - np.float32(wanted) / (scale * np.float32(size)))
        found = float(offset) + (i + 0.5) / np.float64(scale) - 0.5
    return _single(found)


_ROUNDED: Final[dict[str, Callable[[Floats], Floats]]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda v: np.floor(v + 0.5 + TIE),
    "round_prefer_floor": lambda v: np.ceil(v - 0.5 - TIE),
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
