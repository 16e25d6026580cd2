"""Convolutions as plain contractions: what each output position reads, unfolded (im2col).

An unfolded operand is a view: nothing is copied before its rows are picked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from onnxprune.model import Array

SAME: Final = {"SAME_UPPER": 0, "SAME_LOWER": 1}  # which end gets the odd one: 0 the last


def unfolded(
    x: Array, kernel: Sequence[int], sizes: Sequence[int], attributes: Mapping[str, Any]
) -> Array:
    """What a convolution reads: (n, c, *x) -> (n, c, *y, *kernel).

    Args:
        x: the operand.
        kernel: sizes of the kernel.
        sizes: spatial sizes (y) of the result.
        attributes: the node's attributes.
    """
    rank = len(kernel)
    strides = _listed(attributes, "strides", rank)
    dilations = _listed(attributes, "dilations", rank)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    needed = [(y - 1) * s + span for y, s, span in zip(sizes, strides, spans, strict=True)]
    begins = _begins(attributes, needed, x.shape[2:])
    return _windows(x, begins, needed, strides, dilations, spans)


def unfolded_transposed(
    x: Array, kernel: Sequence[int], sizes: Sequence[int], attributes: Mapping[str, Any]
) -> Array:
    """What a transposed convolution reads, as ``unfolded``.

    It is a convolution of stride 1 over the operand with zeros between its elements, the kernel
    turned round.
    """
    rank = len(kernel)
    strides = _listed(attributes, "strides", rank)
    dilations = _listed(attributes, "dilations", rank)
    spread = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    stuffed = np.zeros((*x.shape[:2], *spread), x.dtype)
    stuffed[_spatial(slice(None, None, s) for s in strides)] = x
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    full = [n + span - 1 for n, span in zip(spread, spans, strict=True)]
    if _text(attributes) in SAME or "output_shape" in attributes:
        later = SAME.get(_text(attributes), 1)
        over = [max(f - y, 0) for f, y in zip(full, sizes, strict=True)]
        pads = [(n + later) // 2 for n in over]
    else:
        pads = _listed(attributes, "pads", 2 * rank, 0)[:rank]
    begins = [span - 1 - pad for span, pad in zip(spans, pads, strict=True)]
    needed = [y + span - 1 for y, span in zip(sizes, spans, strict=True)]
    found = _windows(stuffed, begins, needed, [1] * rank, dilations, spans)
    return np.flip(found, tuple(range(-rank, 0)))


def sizes_of(x: Sequence[int], kernel: Sequence[int], attributes: Mapping[str, Any]) -> list[int]:
    """Spatial sizes of a convolution's result, of those of its operand."""
    rank = len(kernel)
    strides = _listed(attributes, "strides", rank)
    if _text(attributes) in SAME:
        return [-(-n // step) for n, step in zip(x, strides, strict=True)]
    dilations = _listed(attributes, "dilations", rank)
    pads = _listed(attributes, "pads", 2 * rank, 0) if _text(attributes) != "VALID" else [0] * 6
    return [
        (n + pads[k] + pads[k + rank] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k, n in enumerate(x)
    ]


def sizes_of_transposed(
    x: Sequence[int], kernel: Sequence[int], attributes: Mapping[str, Any]
) -> list[int]:
    """The same of a transposed convolution."""
    rank = len(kernel)
    if "output_shape" in attributes:
        return [int(n) for n in attributes["output_shape"]][-rank:]
    strides = _listed(attributes, "strides", rank)
    if _text(attributes) in SAME:
        return [n * step for n, step in zip(x, strides, strict=True)]
    dilations = _listed(attributes, "dilations", rank)
    pads = _listed(attributes, "pads", 2 * rank, 0)
    more = _listed(attributes, "output_padding", rank, 0)
    return [
        strides[k] * (n - 1)
        + more[k]
        + dilations[k] * (kernel[k] - 1)
        + 1
        - pads[k]
        - pads[k + rank]
        for k, n in enumerate(x)
    ]


def _windows(
    x: Array,
    begins: Sequence[int],
    needed: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    spans: Sequence[int],
) -> Array:
    """All windows of an operand that is padded or cut to the sizes that are needed."""
    x = x[_spatial(slice(max(-begin, 0), None) for begin in begins)]
    widths = [(0, 0), (0, 0)]
    for size, begin, need in zip(x.shape[2:], begins, needed, strict=True):
        widths.append((max(begin, 0), max(need - size - max(begin, 0), 0)))
    if any(map(any, widths)):
        x = np.pad(x, widths)
    padded = x[_spatial(slice(0, need) for need in needed)]
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(spans), axis=axes)
    return view[_spatial(slice(None, None, step) for step in (*strides, *dilations))]


def _spatial(cuts: Iterable[slice]) -> tuple[slice, ...]:
    """Slices of the axes behind the first two."""
    return (slice(None), slice(None), *cuts)


def _listed(attributes: Mapping[str, Any], name: str, count: int, default: int = 1) -> list[int]:
    return [int(n) for n in attributes.get(name, [default] * count)]


def _text(attributes: Mapping[str, Any]) -> str:
    found = attributes.get("auto_pad", b"NOTSET")
    return found.decode() if isinstance(found, bytes) else str(found)


def _begins(
    attributes: Mapping[str, Any], needed: Sequence[int], sizes: Sequence[int]
) -> list[int]:
    """Padding before the first element of each spatial axis."""
    kind = _text(attributes)
    if kind in SAME:
        missing = [max(need - size, 0) for need, size in zip(needed, sizes, strict=True)]
        return [(n + SAME[kind]) // 2 for n in missing]
    return _listed(attributes, "pads", 2 * len(sizes), 0)[: len(sizes)]
