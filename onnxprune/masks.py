"""Kept indices as masks (size,), or as tables (rows, size): what each row keeps of its own.

A table is the mask of a factor whose kept indices differ from row to row of another factor, as
many in each row (see ``onnxprune.balance``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.layouts import Mask, Values


def crossed(masks: Sequence[Mask], rows: Sequence[int | None]) -> Mask:
    """The mask of a product, row-major, from those of its parts.

    Args:
        masks: a mask a part, or a table.
        rows: for a table, which part its rows are the indices of.
    """
    grid = np.ones((1,) * len(masks), bool)
    for place, (own, row) in enumerate(zip(masks, rows, strict=True)):
        shape = [1] * len(masks)
        shape[place] = own.shape[-1]
        if row is not None:
            shape[row] = len(own)
            own = own if row < place else own.T
        grid = grid & own.reshape(shape)
    return grid.reshape(-1)


def kept_count(mask: Mask) -> int:
    """How many indices are kept: of a table, in each row."""
    return int(mask.sum()) if mask.ndim == 1 else int(mask[0].sum())


def filled(table: Mask) -> Mask | None:
    """A table with what a row without any index does not say; a mask where all rows are the same.

    A row that is gone itself is written as if it kept the first indices, so that equal choices are
    equal tables. None where rows keep different numbers of indices.
    """
    alive: Mask = np.any(table, axis=1)
    there = table[alive]
    if not len(there) or len(set(there.sum(axis=1).tolist())) > 1:
        return None
    if (there == there[0]).all():
        return np.asarray(there[0])
    first = np.arange(table.shape[1]) < kept_count(there)
    return np.where(alive[:, None], table, first)


def composed(first: Mask, second: Mask, there: Mask | None) -> Mask:
    """What is kept of all indices, where ``first`` is and then, of what that leaves, ``second``.

    Args:
        first: kept indices, or a table.
        second: of what is left; a table has the rows that are left.
        there: (rows,) which rows are left, where one of them is a table.
    """
    if first.ndim == second.ndim == 1:
        found = first.copy()
        found[first] = second
        return found
    assert there is not None, "a table has rows"
    one = np.tile(first, (len(there), 1)) if first.ndim == 1 else first.copy()
    other = np.tile(second if second.ndim == 1 else second[0], (len(there), 1))
    if second.ndim > 1:
        other[there] = second
    one[one] = other.reshape(-1)
    return one


def best(scores: Values, kept: int) -> Mask:
    """The mask of the highest scores, or of the highest of each row; of equal ones the first."""
    mask = np.zeros(scores.shape, bool)
    order = np.argsort(-scores, axis=-1, kind="stable")
    np.put_along_axis(mask, order[..., :kept], True, axis=-1)
    return mask


def ranked(scores: Values) -> Values:
    """Scores (size,) as they are; of a table the root mean square of what its rows have at a rank.

    Scores are norms, so that this is what the rows' best, second best, ... score together.
    """
    if scores.ndim == 1:
        return scores
    ordered = np.sort(scores, axis=1)[:, ::-1]
    return np.asarray(np.sqrt(np.square(ordered).mean(axis=0)))
