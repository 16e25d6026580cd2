"""What vanishes with each index of a factor: norms of slices of parameters, and the slices."""

from __future__ import annotations

from typing import Final, NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 and the 4- and 8-bit types with numpy)
import numpy as np
import numpy.typing as npt

from onnxprune.axes import Factors, Layout, Product, Sum, Values
from onnxprune.model import Array

BLOCK: Final = 1 << 16  # elements worked on at once: they stay in the cache, big files are streamed


class Measure(NamedTuple):
    """``combine`` over a slice of ``element`` of each weight."""

    element: np.ufunc
    combine: np.ufunc


L1: Final = Measure(np.absolute, np.add)
L2_SQUARED: Final = Measure(np.square, np.add)
LINF: Final = Measure(np.absolute, np.maximum)


def as_float(array: Array) -> npt.NDArray[np.floating]:
    """float32 and float64 as they are; half precision and quantised integers as float32."""
    kept = array.dtype in (np.float32, np.float64)
    return np.asarray(array) if kept else np.asarray(array, np.float32)


def axis_values(array: Array, measure: Measure) -> list[Values]:
    """For each axis of an array the measure (size,) of all that lies at an index.

    One pass over the array, in blocks; what is combined over many blocks is float64.
    """
    combine = measure.combine
    if array.ndim > 1 and array[:1].size > BLOCK:
        rows = [axis_values(row, measure) for row in array]
        first = np.array([combine.reduce(row[0]) for row in rows])
        return [first, *(combine.reduce(parts, axis=0) for parts in zip(*rows, strict=True))]
    step = max(1, BLOCK // max(1, array[:1].size))
    heads, below = [], np.zeros(array.shape[1:])
    for start in range(0, len(array), step):
        with np.errstate(over="ignore"):  # of minus infinity, as masks write it: it says nothing
            block = measure.element(as_float(array[start : start + step]))
        heads.append(combine.reduce(block.reshape(len(block), -1), axis=1))
        combine(below, combine.reduce(block, axis=0), out=below)
    others = [tuple(k for k in range(below.ndim) if k != axis) for axis in range(below.ndim)]
    return [
        np.concatenate(heads).astype(np.float64),
        *(combine.reduce(below, axis=axes) for axes in others),
    ]


def rows(factors: Factors, layout: Layout, axis: int, array: Array, factor: int) -> Array:
    """The slices (size, *) of an array that vanish with each index of a factor of one axis.

    Args:
        factors: the store that the layout belongs to.
        layout: the layout of the axis; it holds the factor.
        axis: the axis.
        array: the array.
        factor: the factor.
    """
    pieces = []
    todo = [(factors.normal(layout), np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1))]
    while todo:
        part, own = todo.pop()
        if part == factor:
            pieces.append(own)
        elif isinstance(part, Product):
            grid = own.reshape(*(factors.size(p) for p in part.parts), -1)
            for k, inner in enumerate(part.parts):
                if factor in factors.leaves(inner):
                    todo.append((inner, np.moveaxis(grid, k, 0).reshape(grid.shape[k], -1)))
        elif isinstance(part, Sum):
            stops = np.cumsum([factors.size(p) for p in part.parts])
            cut = zip(part.parts, np.split(own, stops[:-1]), strict=True)
            todo.extend((p, piece) for p, piece in cut if factor in factors.leaves(p))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces[::-1], axis=1)


def cells(
    factors: Factors, layouts: tuple[Layout, ...], axis: int, array: Array, factor: int
) -> Array:
    """The slices (rows, size, *) that vanish with each index of a factor in each of its rows.

    Args:
        factors: the store that the layouts belong to.
        layouts: the layouts of all axes.
        axis: the axis that holds the factor, beside its rows or by itself.
        array: the array.
        factor: a factor that may have a table.
    """
    row, normal = factors.rows[factor], factors.normal(layouts[axis])
    if normal == factor:
        place = next(k for k, x in enumerate(layouts) if k != axis and row in factors.leaves(x))
        normal = factors.normal(layouts[place])
        parts = normal.parts if isinstance(normal, Product) else (normal,)
        moved = np.moveaxis(array, (axis, place), (0, 1))
        grid = moved.reshape(len(moved), *(factors.size(p) for p in parts), -1)
        found = np.moveaxis(grid, 1 + parts.index(row), 0)
        return found.reshape(*found.shape[:2], -1)
    pieces, start = [], 0
    moved = np.moveaxis(array, axis, 0)
    for part in normal.parts if isinstance(normal, Sum) else (normal,):
        own = moved[start : start + factors.size(part)]
        start += len(own)
        if isinstance(part, Product) and factor in part.parts:
            grid = own.reshape(*(factors.size(p) for p in part.parts), -1)
            places = part.parts.index(row), part.parts.index(factor)
            turned = np.moveaxis(grid, places, (0, 1))
            pieces.append(turned.reshape(*turned.shape[:2], -1))
    return np.concatenate(pieces, axis=2)


def index_of(factors: Factors, layout: Layout, size: int, factor: int) -> Array:
    """For each index of an axis (size,) that of a factor which it vanishes with; -1 for none."""
    places = rows(factors, layout, 0, np.arange(size), factor)
    found = np.full(size, -1)
    for index, own in enumerate(places.reshape(len(places), -1)):
        found[own] = index
    return found
