"""Rows that point the same way, found by locality-sensitive hashing.

A row's hash is the signs of its products with random hyperplanes (SimHash, Charikar 2002): two rows
at an angle t agree in each bit with probability 1 - t/pi. Only rows that share a bucket in one of
several tables are compared, so that n rows take some BUCKET n comparisons, not n^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

TABLES: Final = 8
BUCKET: Final = 16  # rows a bucket, about; as many rows or fewer are simply all compared
CHUNK: Final = 4096  # columns hashed at once: bounds the memory of the hyperplanes


def nearest(units: Rows, order: npt.NDArray[np.intp], seed: int) -> tuple[Indices, Rows]:
    """For each row the nearest one of lower order, and the cosine between them.

    Of rows with a cosine of 0.97 among 3,000, one pair in 300 is missed.

    Args:
        units: rows (n, f) of norm 1, or 0.
        order: (n,) the order.
        seed: the seed of the hyperplanes.

    Returns:
        Indices (n,), and cosines (n,); -1 and 0 for a row that has none near.
    """
    best = np.full(len(units), -1)
    cosines = np.zeros(len(units), np.float32)
    for bucket in _buckets(units, seed):
        own, rank = units[bucket], order[bucket]
        near = np.where(rank < rank[:, None], own @ own.T, 0)
        top = near.argmax(axis=1)
        value = near[np.arange(len(top)), top]
        closer = value > cosines[bucket]
        best[bucket[closer]] = bucket[top[closer]]
        cosines[bucket[closer]] = np.minimum(value[closer], 1)
    return best, cosines


def _buckets(units: Rows, seed: int) -> Iterator[Indices]:
    """The rows of each bucket that has at least two, of all tables."""
    count, features = units.shape
    bits = max(0, round(np.log2(count / BUCKET)))
    if not bits:
        yield np.arange(count)
        return
    generator = np.random.default_rng(seed)
    projected = np.zeros((count, TABLES * bits), np.float32)
    for start in range(0, features, CHUNK):
        part = units[:, start : start + CHUNK]
        projected += part @ generator.standard_normal((part.shape[1], TABLES * bits), np.float32)
    signs = (projected > 0).reshape(count, TABLES, bits)
    keys = signs @ (1 << np.arange(bits))
    for table in keys.T:
        order = np.argsort(table, kind="stable")
        edges = np.flatnonzero(np.diff(table[order])) + 1
        yield from (rows for rows in np.split(order, edges) if len(rows) > 1)
