"""The axis algebra: layouts of axes over factors, refined by unification.

A *factor* is a set of indices that is pruned as one; here it is an integer that a ``Factors``
store knows. A *layout* says which factors an axis is made of:

    factor        64 channels
    Product       ``(head dim)``, row-major: index (i, j) is alive iff head i and dim j are
    Sum           ``a + b``, concatenation
    OPAQUE        an axis of unknown size; whatever meets it is frozen

``Factors.split_at`` and ``Factors.unify`` discover the structure of a network by refinement;
``mask``, ``count`` and ``pull_back`` then speak of kept indices. Sizes of 1 vanish from
products and sizes of 0 from sums, so that each layout has one normal form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from onnxprune.layouts import (
    ONE,
    OPAQUE,
    ZERO,
    Layout,
    Mask,
    Opaque,
    Product,
    Reason,
    Sum,
    Values,
    flattened,
    leaves,
)
from onnxprune.masks import crossed

__all__ = [
    "ONE",
    "OPAQUE",
    "UNROLL_LIMIT",
    "ZERO",
    "Factors",
    "Layout",
    "Mask",
    "Opaque",
    "Product",
    "Reason",
    "Sum",
    "Values",
]

UNROLL_LIMIT: Final = 1024  # a longer outer part is frozen as it stands, not written out as a sum


class Factors:
    """The store of all factors of one graph: sizes, bindings, frozen reasons, mixing marks."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._bound: dict[int, Layout] = {}
        self._reasons: dict[int, Reason] = {}
        self._mixing: set[int] = set()
        self.rows: dict[int, int] = {}  # factors that may have a table, and what its rows are

    def __len__(self) -> int:
        return len(self._sizes)

    def fresh(self, size: int, reason: Reason | None = None) -> Layout:
        """A new factor, frozen if there is a reason; ``ONE`` where the size is 1."""
        if size == 1:
            return ONE
        if size == 0:
            return ZERO
        self._sizes.append(size)
        factor = len(self._sizes) - 1
        if reason is not None:
            self._reasons[factor] = reason
        return factor

    def size(self, layout: Layout) -> int:
        """The number of indices of a layout that is not opaque."""
        if isinstance(layout, int):
            return self._sizes[layout]
        assert not isinstance(layout, Opaque)
        return layout.size

    def product(self, parts: list[Layout]) -> Layout:
        """The normal form of a product."""
        flat = flattened(parts, Product)
        if len(flat) == 1 or OPAQUE in flat:
            return flat[0] if len(flat) == 1 else OPAQUE
        size = math.prod(self.size(part) for part in flat)
        return Product(tuple(flat), size) if size else ZERO

    def sum(self, parts: list[Layout]) -> Layout:
        """The normal form of a sum."""
        flat = flattened(parts, Sum)
        if len(flat) == 1 or OPAQUE in flat:
            return flat[0] if len(flat) == 1 else OPAQUE
        return Sum(tuple(flat), sum(self.size(part) for part in flat))

    def normal(self, layout: Layout) -> Layout:
        """The layout with every bound factor replaced by what it is bound to."""
        chain = []  # a residual stream binds thousands of factors one to the next: no recursion
        while isinstance(layout, int) and layout in self._bound:
            chain.append(layout)
            layout = self._bound[layout]
        if chain:
            layout = self.normal(layout)
            self._bound.update(dict.fromkeys(chain, layout))
            return layout
        if isinstance(layout, int):
            return layout
        if isinstance(layout, Opaque) or self._bound.keys().isdisjoint(leaves(layout)):
            return layout
        parts = [self.normal(part) for part in layout.parts]
        return self.product(parts) if isinstance(layout, Product) else self.sum(parts)

    def leaves(self, layout: Layout) -> list[int]:
        """The factors of the layout's normal form, each once, in order."""
        return list(dict.fromkeys(leaves(self.normal(layout))))

    def reason(self, layout: Layout) -> Reason | None:
        """Why the layout can't be pruned at all (its largest factor's reason); else None."""
        normal = self.normal(layout)
        if isinstance(normal, Opaque):
            return Reason("its size is unknown")
        named = sorted(leaves(normal), key=lambda leaf: -self._sizes[leaf])
        if not named:
            return Reason("it has one index")
        reasons = [self._reasons.get(leaf) for leaf in named]
        return reasons[0] if all(reasons) else None

    def is_mixing(self, factor: int) -> bool:
        """Whether removing an index of this factor changes what survives."""
        return factor in self._mixing

    def freeze(self, layout: Layout, reason: Reason) -> None:
        """Keep every index of the layout; the first reason stays."""
        for leaf in leaves(self.normal(layout)):
            self._reasons.setdefault(leaf, reason)

    def mix(self, layout: Layout) -> None:
        """Mark every factor of the layout as mixing."""
        self._mixing.update(leaves(self.normal(layout)))

    def _bind(self, factor: int, layout: Layout) -> None:
        """Bind a factor; its marks travel to what it is bound to."""
        self._bound[factor] = layout
        if factor in self._mixing:
            self.mix(layout)
        if factor in self._reasons:
            self.freeze(layout, self._reasons[factor])

    def split_at(self, layout: Layout, n: int, reason: Reason) -> tuple[Layout, Layout]:
        """The first n indices, and the rest; refines what it cuts through.

        Args:
            layout: any layout but an opaque one.
            n: 0 to the layout's size.
            reason: what a factor that has to be frozen for the cut says.
        """
        layout = self.normal(layout)
        size = self.size(layout)
        if n == 0:
            return ZERO, layout
        if n == size:
            return layout, ZERO
        if isinstance(layout, int):
            head, tail = self.fresh(n), self.fresh(size - n)
            self._bind(layout, self.sum([head, tail]))
            return head, tail
        if isinstance(layout, Product):
            return self._split_product(layout, n, reason)
        assert isinstance(layout, Sum)
        heads: list[Layout] = []
        for position, part in enumerate(layout.parts):
            width = self.size(part)
            if n < width:
                head, tail = self.split_at(part, n, reason)
                rest = list(layout.parts[position + 1 :])
                return self.sum([*heads, head]), self.sum([tail, *rest])
            heads.append(part)
            n -= width
        raise AssertionError("n lies within the layout")

    def _split_product(self, layout: Product, n: int, reason: Reason) -> tuple[Layout, Layout]:
        outer, inner = layout.parts[0], self.product(list(layout.parts[1:]))
        stride = self.size(inner)
        if n % stride == 0:
            head, tail = self.split_at(outer, n // stride, reason)
            return self.product([head, inner]), self.product([tail, inner])
        self.freeze(outer, reason)
        copies = self.size(outer)
        if copies > UNROLL_LIMIT:
            self.freeze(inner, reason)
            return self.fresh(n, reason), self.fresh(layout.size - n, reason)
        return self.split_at(self.sum([inner] * copies), n, reason)

    def unify(self, x: Layout, y: Layout, reason: Reason) -> None:
        """Make two layouts keep the same indices, always.

        It ends because each step works on smaller sizes. What can't be refined is frozen.

        Args:
            x: one layout.
            y: another of the same size; sizes that differ freeze both.
            reason: what a factor that has to be frozen for it says.
        """
        todo = [(x, y)]
        while todo:
            x, y = todo.pop()
            x, y = self.normal(x), self.normal(y)
            if x == y:
                continue
            if isinstance(x, Opaque) or isinstance(y, Opaque):
                self.freeze(x, reason)
                self.freeze(y, reason)
            elif self.size(x) != self.size(y):
                text = f"{reason.text}: sizes {self.size(x)} and {self.size(y)} meet"
                self.freeze(x, Reason(text, reason.node))
                self.freeze(y, Reason(text, reason.node))
            elif isinstance(x, int):
                self._bind(x, y)
            elif isinstance(y, int):
                self._bind(y, x)
            elif isinstance(x, Product) and isinstance(y, Product):
                todo.extend(self._refine(x, y, reason))
            else:
                todo.extend(self._peel(x, y, reason))

    def _peel(self, x: Layout, y: Layout, reason: Reason) -> list[tuple[Layout, Layout]]:
        """Walk along two layouts, of which one is a sum; cut the longer part where parts differ.

        What is left of a cut waits whole, so that a walk over n parts takes n steps.
        """
        left, right = flattened([x], Sum)[::-1], flattened([y], Sum)[::-1]
        pairs: list[tuple[Layout, Layout]] = []
        while left:
            a, b = left.pop(), right.pop()
            n = min(self.size(a), self.size(b))
            for part, waiting in ((a, left), (b, right)):
                if self.size(part) > n:
                    head, tail = self.split_at(part, n, reason)
                    waiting.extend(flattened([tail], Sum)[::-1])
                    a, b = (head, b) if waiting is left else (a, head)
            pairs.append((a, b))
        return pairs

    def _refine(self, x: Product, y: Product, reason: Reason) -> list[tuple[Layout, Layout]]:
        """Compare outermost parts; cut the larger into a product where the smaller divides it."""
        if self.size(x.parts[0]) > self.size(y.parts[0]):
            x, y = y, x
        a, b = x.parts[0], y.parts[0]
        rest_x, rest_y = list(x.parts[1:]), list(y.parts[1:])
        if self.size(a) == self.size(b):
            return [(self.product(rest_x), self.product(rest_y)), (a, b)]
        if self.size(b) % self.size(a):
            self.freeze(x, reason)
            self.freeze(y, reason)
            return []
        outer, inner = self.fresh(self.size(a)), self.fresh(self.size(b) // self.size(a))
        return [
            (self.product(rest_x), self.product([inner, *rest_y])),
            (a, outer),
            (b, self.product([outer, inner])),
        ]

    def mask(self, layout: Layout, keep: Mapping[int, Mask]) -> Mask:
        """The kept indices (size,) of an axis, given those of factors (absent: all).

        Of an axis that is a factor with a table, this table (rows, size).
        """
        return self._mask(self.normal(layout), keep)

    def _mask(self, layout: Layout, keep: Mapping[int, Mask]) -> Mask:
        if isinstance(layout, int):
            found = keep.get(layout)
            return np.ones(self._sizes[layout], bool) if found is None else found
        if isinstance(layout, Product):
            masks = [self._mask(part, keep) for part in layout.parts]
            rows = [
                layout.parts.index(self.rows[part])
                if isinstance(part, int) and m.ndim > 1
                else None
                for part, m in zip(layout.parts, masks, strict=True)
            ]
            return crossed(masks, rows)
        assert isinstance(layout, Sum), "an opaque axis has no mask"
        parts = [self._mask(part, keep) for part in layout.parts]
        return np.concatenate(parts) if parts else np.ones(0, bool)

    def count(self, layout: Layout, counts: Mapping[int, int]) -> int:
        """How many indices of a layout are kept, given how many of each factor are."""
        layout = self.normal(layout)
        if isinstance(layout, int):
            return counts.get(layout, self._sizes[layout])
        if isinstance(layout, Product):
            total = 1
            for part in layout.parts:
                total *= self.count(part, counts)
            return total
        assert isinstance(layout, Sum), "an opaque axis has no count"
        return sum(self.count(part, counts) for part in layout.parts)

    def pull_back(self, layout: Layout, values: Values) -> dict[int, Values]:
        """Sum per-index values (size,) of an axis into per-index values of its factors.

        The transpose of ``mask``: a factor's index receives the values of all the axis' indices
        that vanish with it.
        """
        found: dict[int, Values] = {}
        todo = [(self.normal(layout), values)]
        while todo:
            part, own = todo.pop()
            if isinstance(part, int):
                found[part] = found[part] + own if part in found else own
            elif isinstance(part, Product):
                grid = own.reshape([self.size(p) for p in part.parts])
                for axis, inner in enumerate(part.parts):
                    others = tuple(k for k in range(grid.ndim) if k != axis)
                    todo.append((inner, grid.sum(axis=others)))
            elif isinstance(part, Sum):
                start = 0
                for inner in part.parts:
                    todo.append((inner, own[start : start + self.size(inner)]))
                    start += self.size(inner)
        return found

    def render(self, layout: Layout, names: Mapping[int, str]) -> str:
        """The layout in the rule notation with sizes: ``(head:12 dim:64)``, ``a:58+b:58``."""
        normal = self.normal(layout)
        if isinstance(normal, int):
            return f"{names.get(normal, '_')}:{self._sizes[normal]}"
        if isinstance(normal, Opaque):
            return "?"
        if isinstance(normal, Product):
            inner = " ".join(self.render(part, names) for part in normal.parts)
            return f"({inner})" if normal.parts else "1"
        return "+".join(self.render(part, names) for part in normal.parts)
