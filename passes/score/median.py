"""Distances to the geometric median: what the other channels say too is redundant.

Filter pruning via geometric median (He et al. 2019, arXiv:1811.00250) removes the filters from
which the sum of distances to all others is least, as a stand-in for those nearest to the geometric
median. Here the median itself is found (Weiszfeld's algorithm), in O(n f) where the sums take
O(n^2 f); the order is the same but for near ties.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.model import Array

STEPS: Final = 20
TINY: Final = 1e-30
CLOSE: Final = (
    1e-4  # a step that moves the median by less than this share of its spread is the last
)


def median_distances(rows: Array) -> Values:
    """The distances (n,) of rows (n, f) to their geometric median."""
    squares = np.einsum("ij,ij->i", rows, rows)
    median = rows.mean(axis=0)
    for _ in range(STEPS):
        distances = _distances(rows, squares, median)
        mean = float(distances.mean())
        weights = 1 / np.maximum(distances, max(1e-6 * mean, TINY)).astype(rows.dtype)
        moved = (weights @ rows) / weights.sum()
        step, median = float(np.linalg.norm(moved - median)), moved
        if step <= CLOSE * mean:
            break
    return _distances(rows, squares, median).astype(np.float64)


def _distances(rows: Array, squares: Array, median: Array) -> Array:
    found = squares - 2 * (rows @ median) + median @ median
    return np.asarray(np.sqrt(np.maximum(found, 0)))
