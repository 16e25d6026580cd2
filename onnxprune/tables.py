"""Tables of kept indices: which masks they come from, and how they lie on axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from onnxprune.axes import Factors, Layout, Mask, Product, Sum
from onnxprune.masks import filled

Kept = Mapping[int, Mask]


def settled(factors: Factors, keep: Kept) -> dict[int, Mask]:
    """The masks and tables by factor, each choice written in one way (see ``masks.filled``)."""
    found = {}
    for factor, mask in keep.items():
        own: Mask | None = mask
        if mask.ndim > 1:
            there = keep.get(factors.rows[factor])
            own = filled(mask if there is None else mask & there[:, None])
            assert own is not None, "all rows keep the same number of indices"
        found[factor] = mask if own is None else own
    return found


def solve(factors: Factors, layout: Layout, mask: Mask) -> dict[int, Mask] | None:
    """The factors' masks and tables that give this mask (size,); None where there are none."""
    found: dict[int, Mask] = {}
    for factor, own in _places(factors, layout, mask):
        table = filled(own) if own.ndim > 1 else own
        if table is None or (factor in found and not np.array_equal(found[factor], table)):
            return None
        found[factor] = table
    return found if np.array_equal(factors.mask(layout, found), mask) else None


def _places(factors: Factors, layout: Layout, mask: Mask) -> Iterator[tuple[int, Mask]]:
    """What each place of a factor says of it, where an axis has this mask (size,)."""
    todo = [(factors.normal(layout), mask)]
    while todo:
        part, own = todo.pop()
        if isinstance(part, int):
            yield part, own
        elif isinstance(part, Product):
            grid = own.reshape([factors.size(p) for p in part.parts])
            for axis, inner in enumerate(part.parts):
                row = _row(factors, part, inner)
                others = tuple(k for k in range(grid.ndim) if k not in (axis, row))
                left: Mask = np.any(grid, axis=others)
                if row is None:
                    todo.append((inner, left))
                else:
                    assert isinstance(inner, int)
                    yield inner, left
        elif isinstance(part, Sum):
            stops = np.cumsum([factors.size(p) for p in part.parts])
            todo.extend(zip(part.parts, np.split(own, stops[:-1]), strict=True))


def _row(factors: Factors, product: Product, part: Layout) -> int | None:
    """Which part of a product the rows of another are; it stands before that one."""
    row = factors.rows.get(part) if isinstance(part, int) else None
    return product.parts.index(row) if row in product.parts else None


def by_rows(
    factors: Factors, layouts: tuple[Layout, ...], axis: int, table: Mask
) -> tuple[int, Mask]:
    """The axis of a value along which another one's table lies, and what each index there keeps.

    Args:
        factors: the store of the factors.
        layouts: the layouts of the value's axes.
        axis: an axis that is a factor with a table.
        table: what each row keeps (rows, size).

    Returns:
        the axis that the rows are a part of, and a mask (its size, size).
    """
    factor = factors.normal(layouts[axis])
    assert isinstance(factor, int)
    row = factors.rows[factor]
    places = [k for k, x in enumerate(layouts) if k != axis and row in factors.leaves(x)]
    assert places, "a value that holds a factor with a table holds what its rows are"
    place = places[0]
    normal = factors.normal(layouts[place])
    parts = normal.parts if isinstance(normal, Product) else (normal,)
    grid = np.indices([factors.size(part) for part in parts])[parts.index(row)]
    return place, table[grid.reshape(-1)]


def laid(table: Any, place: int, axis: int, rank: int) -> Any:
    """An array (n, m) as it is broadcast with a value of this rank: n and m on two of its axes."""
    wide = table.reshape(*table.shape, *[1] * (rank - 2))
    return np.moveaxis(wide, (0, 1), (place, axis))


class Cut(NamedTuple):
    """What is kept of an axis: the same everywhere, or by the index of another axis.

    ``place`` is that axis, or ``axis`` itself; ``packed`` are the bits of the mask (size,) or
    (size of place, size), so that equal cuts are equal.
    """

    axis: int
    place: int
    packed: bytes

    def of(self, values: Any) -> Any:
        """What is left of an array."""
        rows = 1 if self.place == self.axis else values.shape[self.place]
        count = rows * values.shape[self.axis]
        table = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=count)
        indices = np.nonzero(table.reshape(rows, -1))[1].reshape(rows, -1)
        if self.place == self.axis:
            return np.take(values, indices[0], axis=self.axis)
        wide = laid(indices, self.place, self.axis, values.ndim)
        return np.take_along_axis(values, wide, self.axis)


def cuts(factors: Factors, layouts: tuple[Layout, ...], keep: Kept) -> tuple[Cut, ...]:
    """What is cut off a value's axes; first where rows keep their own, while all rows are there."""
    found: list[Cut] = []
    for axis, layout in enumerate(layouts):
        if keep.keys().isdisjoint(factors.leaves(layout)):
            continue
        mask = factors.mask(layout, keep)
        if mask.ndim > 1:
            place, table = by_rows(factors, layouts, axis, mask)
            found.insert(0, Cut(axis, place, np.packbits(table).tobytes()))
        elif not mask.all():
            found.append(Cut(axis, axis, np.packbits(mask).tobytes()))
    return tuple(found)
