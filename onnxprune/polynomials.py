"""Sizes of layouts as polynomials in the kept counts of factors.

A layout is a sum of products of factors, so the number of its kept indices is a polynomial, and so
is the size of any value. ``Polynomials`` finds them for the layouts of one coupling; ``Sizes``
holds the distinct ones as arrays, which give all sizes of a model in a few numpy operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.axes import Factors, Layout, Opaque, Product, Values

Indices = npt.NDArray[np.intp]
Term = tuple[int, ...]  # factors, sorted; () is 1
Polynomial = tuple[tuple[Term, int], ...]  # terms with their coefficients, sorted
ROW_OF_ONE = 0


class Polynomials:
    """The polynomials of layouts; only the given factors are unknowns."""

    def __init__(
        self, factors: Factors, unknowns: Iterable[int], sizes: Mapping[int, int] | None = None
    ) -> None:
        """Start without any.

        Args:
            factors: the store of the layouts' factors.
            unknowns: the factors whose kept counts vary.
            sizes: sizes that other factors have here instead of their own.
        """
        self._factors = factors
        self._unknowns = frozenset(unknowns)
        self._sizes = sizes or {}
        # Layouts are kept with their ids, so that no other object gets the same id.
        self._known: dict[int, tuple[Layout, Polynomial | None]] = {}
        self._leaves: dict[int, Polynomial | None] = {}

    def of(self, layout: Layout) -> Polynomial | None:
        """The polynomial of a layout; None where its size is unknown."""
        if isinstance(layout, int):
            if layout not in self._leaves:
                self._leaves[layout] = self._leaf(layout)
            return self._leaves[layout]
        known = self._known.get(id(layout))
        if known is None:
            known = self._known[id(layout)] = (layout, self._compound(layout))
        return known[1]

    def _leaf(self, factor: int) -> Polynomial | None:
        normal = self._factors.normal(factor)
        if not isinstance(normal, int):
            return self.of(normal)
        if normal in self._unknowns:
            return (((normal,), 1),)
        size = self._sizes.get(normal, self._factors.size(normal))
        return (((), size),)

    def _compound(self, layout: Layout) -> Polynomial | None:
        assert not isinstance(layout, int)
        if isinstance(layout, Opaque):
            return None
        is_product = isinstance(layout, Product)
        total: dict[Term, int] = {(): 1} if is_product else {}
        for part in layout.parts:
            own = self.of(part)
            if own is None:
                return None
            if is_product:
                total = _multiplied(total, own)
            else:
                for term, coefficient in own:
                    total[term] = total.get(term, 0) + coefficient
        return tuple(sorted(total.items()))


def _multiplied(left: Mapping[Term, int], right: Polynomial) -> dict[Term, int]:
    product: dict[Term, int] = {}
    for a, m in left.items():
        for b, n in right:
            term = tuple(sorted(a + b)) if a and b else a or b
            product[term] = product.get(term, 0) + m * n
    return product


@dataclass(frozen=True)
class Sizes:
    """The distinct products of axis sizes in a model, in arrays.

    The atoms of a product are kept counts and sums; the last atom is 1 and fills the rows up.

    Attributes:
        full: (v,) the kept counts when nothing is pruned.
        terms: (t, d) products of kept counts, as positions in ``full``, or v for 1.
        coefficients: (t,) their coefficients.
        starts: (s,) where in ``terms`` each sum starts.
        rows: (r, a) products of atoms; row 0 is the empty product.
    """

    full: Values
    terms: Indices
    coefficients: Values
    starts: Indices
    rows: Indices

    def atoms(self, kept: Values) -> tuple[Values, Values]:
        """The terms (t,) and the atoms (v + s + 1,) for these kept counts (v,)."""
        one = np.ones(1)
        terms = self.coefficients * np.append(kept, one)[self.terms].prod(axis=1)
        sums = np.add.reduceat(terms, self.starts) if len(self.starts) else terms
        return terms, np.concatenate([kept, sums, one])

    def at(self, kept: Values) -> Values:
        """The products (r,) for these kept counts (v,)."""
        found: Values = self.atoms(kept)[1][self.rows].prod(axis=1)
        return found

    def gradient(self, kept: Values, weights: Values) -> Values:
        """How ``weights @ at(kept)`` changes with each kept count (v,); all have to be positive."""
        terms, atoms = self.atoms(kept)
        factors = atoms[self.rows]
        shares = (weights * factors.prod(axis=1))[:, None] / factors
        by_atom = tally(self.rows.ravel(), shares.ravel(), len(atoms))
        count = len(kept)
        widths = np.diff(np.append(self.starts, len(terms)))
        known = np.append(kept, 1.0)[self.terms]
        shares = (np.repeat(by_atom[count:-1], widths) * terms)[:, None] / known
        by_term = tally(self.terms.ravel(), shares.ravel(), count + 1)
        return by_atom[:count] + by_term[:count]


class SizeTable:
    """Collects products of axis sizes, each distinct one once."""

    def __init__(self, polynomials: Polynomials, unknowns: Sequence[int]) -> None:
        self._polynomials = polynomials
        self._columns = {factor: column for column, factor in enumerate(unknowns)}
        self._sums: dict[Polynomial, int] = {}
        self._rows: dict[tuple[int, ...], int] = {(): ROW_OF_ONE}
        self._axes: dict[Polynomial, tuple[int, tuple[int, ...]]] = {}

    def row(self, layouts: Iterable[Layout]) -> tuple[int, int] | None:
        """A scale and the row of the product that together are these axes' size; None: unknown."""
        scale = 1
        atoms: tuple[int, ...] = ()
        for layout in layouts:
            polynomial = self._polynomials.of(layout)
            if polynomial is None:
                return None
            axis = self._axes.get(polynomial)
            if axis is None:
                axis = self._axes[polynomial] = self._axis(polynomial)
            scale *= axis[0]
            if axis[1]:
                atoms = tuple(sorted(atoms + axis[1])) if atoms else axis[1]
        return scale, self._rows.setdefault(atoms, len(self._rows))

    def _axis(self, polynomial: Polynomial) -> tuple[int, tuple[int, ...]]:
        if not polynomial:
            return 0, ()
        if len(polynomial) == 1:
            term, coefficient = polynomial[0]
            return coefficient, tuple(sorted(self._columns[f] for f in term))
        number = self._sums.setdefault(polynomial, len(self._sums))
        return 1, (len(self._columns) + number,)

    def close(self, full: Values) -> Sizes:
        """The arrays."""
        columns, count = self._columns, len(self._columns)
        terms = [term for polynomial in self._sums for term in polynomial]
        lengths = [len(polynomial) for polynomial in self._sums]
        return Sizes(
            full,
            _padded([[columns[f] for f in term] for term, _ in terms], count),
            np.array([coefficient for _, coefficient in terms], np.float64),
            np.cumsum([0, *lengths[:-1]])[: len(lengths)].astype(np.intp),
            _padded(list(self._rows), count + len(lengths)),
        )


def tally(places: Indices, weights: Values, count: int) -> Values:
    """The sums (count,) of the weights that fall on each place."""
    found: Values = np.bincount(places, weights, count).astype(np.float64, copy=False)
    return found


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Indices:
    """Rows of different lengths as one array, filled up at the end."""
    width = max((len(row) for row in rows), default=0)
    table = np.full((len(rows), max(width, 1)), filler, np.intp)
    for position, row in enumerate(rows):
        table[position, : len(row)] = row
    return table
