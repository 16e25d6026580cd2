"""Where the indices of groups stand among the numbers that a node reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.axes import OPAQUE, Factors, Layout, Opaque, Values
from onnxprune.coupling import Bound
from onnxprune.linear import Letters
from onnxprune.model import Array
from onnxprune.passes.score.slices import cells, index_of, rows


@dataclass(frozen=True)
class Place:
    """Where the indices of a group stand among the numbers that a node reads.

    Attributes:
        positions: (rows, size, t); one row, if all are to keep the same indices.
        batches: (b,) the row that each of the node's products is of; None if each reads all rows.
    """

    positions: Array = field(repr=False)
    batches: Array | None = field(default=None, repr=False)

    def sums(self, values: Values) -> Values:
        """The sums (rows, size) of what numbers (b, d) say of the group's indices."""
        if self.batches is None:
            return np.asarray(values.sum(axis=0)[self.positions].sum(axis=2), np.float64)
        found = np.zeros(self.positions.shape[:2])
        for row, own in zip(self.batches, values, strict=True):
            found[row] += own[self.positions[row]].sum(axis=1)
        return found


Places = dict[int, Place]  # by factor


@dataclass(frozen=True)
class Finder:
    """Finds them.

    Attributes:
        factors: the store of the factors.
        groups: those of groups.
        tables: those of which each row is told apart.
    """

    factors: Factors
    groups: frozenset[int]
    tables: frozenset[int]

    def places(
        self, bound: Bound, letters: Letters, sizes: Sequence[int], batch: Letters
    ) -> Places:
        """Where each group's indices stand among the numbers that a node reads.

        Args:
            bound: the node.
            letters: those of the numbers.
            sizes: their sizes.
            batch: the letters of the node's products, each of which reads numbers of its own.
        """
        grid = np.arange(int(np.prod(sizes, dtype=np.int64))).reshape(list(sizes))
        layouts = tuple(bound.letters.get(x, OPAQUE) for x in letters)
        products = tuple(bound.letters.get(x, OPAQUE) for x in batch)
        return {
            factor: self.place(grid, layouts, axis, products, factor)
            for axis, layout in enumerate(layouts)
            if not isinstance(self.factors.normal(layout), Opaque)
            for factor in self.groups.intersection(self.factors.leaves(layout))
        }

    def place(
        self,
        grid: Array,
        layouts: tuple[Layout, ...],
        axis: int,
        products: tuple[Layout, ...],
        factor: int,
    ) -> Place:
        """Where one factor's indices stand."""
        factors = self.factors
        if factor in self.tables:
            row = factors.rows[factor]
            held = layouts if factors.normal(layouts[axis]) == factor else layouts[axis : axis + 1]
            if any(row in factors.leaves(layout) for layout in held):
                return Place(cells(factors, layouts, axis, grid, factor))
        own = rows(factors, layouts[axis], axis, grid, factor)
        own = own.reshape(1, len(own), -1)
        if factor not in self.tables:
            return Place(own)
        product = factors.product(list(products))
        batches = index_of(factors, product, factors.size(product), row)
        return Place(np.repeat(own, factors.size(row), axis=0), batches)

    def with_rows(self, bound: Bound, shared: Letters, inner: Letters) -> tuple[Letters, Letters]:
        """The letters of a product; of the shared ones those that hold rows are inner ones then."""
        factors = self.factors
        read = {x for a in inner for x in factors.leaves(bound.letters[a])}
        held = {factors.rows[x] for x in read & self.tables}
        moved = [a for a in shared if not held.isdisjoint(factors.leaves(bound.letters[a]))]
        return tuple(a for a in shared if a not in moved), (*moved, *inner)
