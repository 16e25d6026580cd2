"""Second moments of what a node reads and of what it misses, and the least squares that they give.

Rows are streamed: only the sums are kept, (d, d) for a node that reads d numbers. Where d is large
and rows are few, the rows themselves are smaller and are kept instead; the solution is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.model import Array

WIDE: Final = 6144  # above it a matrix of moments is too dear
EPSILON: Final = 1e-12
TINY: Final = 1e-30
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of penalties
CONSTANT: Final = 1e-9  # share of the energy: what varies less is taken for constant
CHUNK_BYTES: Final = 64 << 20  # of rows that wait to be multiplied: few rows at a time are slow


class Squares:
    """The sum of x'x (b, d, d) over rows x (b, p, d), or that of x^2 (b, 1, d)."""

    def __init__(self, full: bool = True) -> None:
        self.full = full
        self.waiting: list[Array] = []
        self.waiting_bytes = 0
        self.sums: Values | float = 0.0

    def add(self, rows: Array) -> None:
        """Take in rows."""
        self.waiting.append(rows)
        self.waiting_bytes += rows.nbytes
        if not self.full or self.waiting_bytes >= CHUNK_BYTES:
            self.found()

    def found(self) -> Values:
        """The sum of all so far."""
        if self.waiting:
            x = np.concatenate(self.waiting, axis=1)
            self.waiting, self.waiting_bytes = [], 0
            turned = x.transpose(0, 2, 1)
            own = np.matmul(turned, x) if self.full else np.square(x).sum(axis=1)[:, None]
            self.sums = own.astype(np.float64) + self.sums
        return np.asarray(self.sums, np.float64)


@dataclass
class Moments:
    """Sums over rows x (b, p, d) and residuals r (b, p, o).

    Attributes:
        gram: sum of x'x (b, d, d); empty where rows are kept.
        cross: sum of x'r (b, d, o).
        energy: sum of r^2.
        count: rows.
        rows, residuals: rows that wait for ``settle``; where d is above ``WIDE`` they are kept as
            they are, and no index is free.
    """

    gram: Values = field(default_factory=lambda: np.zeros((0, 0, 0)), repr=False)
    cross: Values = field(default_factory=lambda: np.zeros((0, 0, 0)), repr=False)
    energy: float = 0.0
    count: int = 0
    rows: list[Array] = field(default_factory=list, repr=False)
    residuals: list[Array] = field(default_factory=list, repr=False)

    def add(self, x: Array, r: Array) -> None:
        """Take in rows (b, p, d) and residuals (b, p, o)."""
        self.energy += float(np.einsum("bpo,bpo->", r, r, dtype=np.float64))
        self.count += x.shape[1]
        self.rows.append(x)
        self.residuals.append(r)
        if x.shape[2] <= WIDE and sum(rows.nbytes for rows in self.rows) >= CHUNK_BYTES:
            self.settle()

    def settle(self) -> None:
        """Multiply the rows that wait."""
        if not self.rows or self.rows[0].shape[2] > WIDE:
            return
        x, r = np.concatenate(self.rows, axis=1), np.concatenate(self.residuals, axis=1)
        self.rows, self.residuals = [], []
        turned = x.transpose(0, 2, 1)
        gram, cross = np.matmul(turned, x), np.matmul(turned, r)
        if not self.gram.size:
            self.gram, self.cross = gram.astype(np.float64), cross.astype(np.float64)
        else:
            self.gram += gram
            self.cross += cross

    def left(self, delta: Array) -> float:
        """The energy of what is missed still, when the weights (b, d, o) change by delta."""
        self.settle()
        if self.rows:
            pairs = zip(self.rows, self.residuals, strict=True)
            return float(sum(np.square(r - np.matmul(x, delta)).sum() for x, r in pairs))
        linear = np.einsum("bdo,bdo->", delta, self.cross)
        square = np.einsum("bdo,bdo->", delta, np.matmul(self.gram, delta))
        return max(self.energy - 2 * float(linear) + float(square), 0.0)


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows together."""
    whole = Moments()
    for part in parts:
        if part.count:
            part.settle()
            whole.energy += part.energy
            whole.count += part.count
            whole.rows += part.rows
            whole.residuals += part.residuals
            if part.gram.size:
                empty = not whole.gram.size
                whole.gram = part.gram if empty else whole.gram + part.gram
                whole.cross = part.cross if empty else whole.cross + part.cross
    return whole


def ridge(moments: Moments, strength: float, free: bool) -> Values:
    """The change of weights (b, d, o) that minimises |x delta - r|^2 + penalty |delta|^2.

    Args:
        moments: of all rows.
        strength: the penalty, as a share of the mean energy of an index of x.
        free: whether the last index, a constant 1, is not penalised.

    Reference: Hoerl and Kennard 1970, Ridge regression.
    """
    moments.settle()
    if moments.rows:
        return _dual(moments, strength)
    gram = moments.gram
    size = gram.shape[1]
    diagonal = np.einsum("bdd->bd", gram)
    mean = diagonal[:, : size - free].mean(axis=1, keepdims=True) + EPSILON * moments.count
    penalty = np.repeat(strength * mean, size, axis=1)
    if free:
        penalty[:, -1] = EPSILON * moments.count
    loaded = gram.copy()
    np.einsum("bdd->bd", loaded)[...] += penalty
    return np.asarray(np.linalg.solve(loaded, moments.cross), np.float64)


def _dual(moments: Moments, strength: float) -> Values:
    """The same where there are fewer rows than indices: x' (x x' + penalty)^-1 r."""
    x = np.concatenate(moments.rows, axis=1)
    r = np.concatenate(moments.residuals, axis=1)
    kernel = np.matmul(x, x.transpose(0, 2, 1)).astype(np.float64)
    penalty = strength * np.einsum("bpp->b", kernel) / x.shape[2] + EPSILON
    np.einsum("bpp->bp", kernel)[...] += penalty[:, None]
    return np.asarray(np.matmul(x.transpose(0, 2, 1), np.linalg.solve(kernel, r)), np.float64)


def is_finite(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether values are finite numbers, in their own type too."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(dtype).astype(np.float64)).all())


class Spread:
    """The variance of rows (b, p, o), summed over b and o; their energy where they hardly vary."""

    def __init__(self) -> None:
        self.count, self.squares = 0, 0.0
        self.sums: Values | float = 0.0

    def add(self, rows: Array) -> None:
        """Take in rows."""
        wide = rows.astype(np.float64)
        self.count += rows.shape[1]
        self.squares += float(np.square(wide).sum())
        self.sums = self.sums + wide.sum(axis=1)

    def join(self, other: Spread) -> None:
        """Take in what another one has."""
        self.count += other.count
        self.squares += other.squares
        self.sums = self.sums + other.sums

    def variance(self) -> float:
        """Summed over all rows."""
        varied = self.squares - float(np.square(self.sums).sum()) / max(self.count, 1)
        return varied if varied > CONSTANT * self.squares else self.squares


def best(fit: Moments, judge: Moments, free: bool) -> tuple[float, float]:
    """The smallest loss on other samples, and the penalty that gives it: a walk from the middle."""
    lost: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in lost:
            lost[place] = judge.left(ridge(fit, STRENGTHS[place], free))
        return lost[place]

    place = len(STRENGTHS) // 2
    step = -1 if at(place - 1) < at(place) else 1
    while 0 <= place + step < len(STRENGTHS) and at(place + step) < at(place):
        place += step
    return at(place), STRENGTHS[place]
