"""What scores are made of: norms of slices, slices, medians, and near rows."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.axes import Factors, Reason
from onnxprune.passes.score import slices
from onnxprune.passes.score.hashing import nearest
from onnxprune.passes.score.median import median_distances
from onnxprune.passes.score.slices import L1, L2_SQUARED, LINF, axis_values, rows
from tests.graphs import weight

Array = NDArray[Any]
MEASURES = {"l1": L1, "l2": L2_SQUARED, "linf": LINF}


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(sorted(MEASURES)),
    st.integers(1, 40),
)
def test_values_of_an_axis_are_the_measure_of_its_slices(
    shape: list[int], name: str, block: int
) -> None:
    array, measure = weight(1, *shape), MEASURES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "BLOCK", block)
        found = axis_values(array, measure)
    for axis in range(array.ndim):
        own = [measure.combine.reduce(part.ravel()) for part in measure.element(_by(array, axis))]
        np.testing.assert_allclose(found[axis], own, rtol=1e-5)


def _by(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, ml_dtypes.int4]
)
def test_any_type_of_weight_is_measured_as_a_float(dtype: Any) -> None:
    array = (weight(2, 4, 300) * 3).astype(dtype)
    for found, axis in zip(axis_values(array, L2_SQUARED), range(2), strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, np.square(_by(array, axis)).sum(1), rtol=1e-5)


def test_half_precision_does_not_overflow() -> None:
    array = np.full((2, 1000), 300, np.float16)
    assert axis_values(array, L2_SQUARED)[0].tolist() == [9e7, 9e7]


def test_rows_are_what_vanishes_with_an_index() -> None:
    factors = Factors()
    head, dim, other = (factors.fresh(n) for n in (2, 3, 4))
    assert isinstance(head, int)
    assert isinstance(dim, int)
    layout = factors.sum([factors.product([head, dim]), other, head])
    axis = np.arange(12)
    assert rows(factors, layout, 0, axis, head).tolist() == [[0, 1, 2, 10], [3, 4, 5, 11]]
    assert rows(factors, layout, 0, axis, dim).tolist() == [[0, 3], [1, 4], [2, 5]]
    table = np.stack([axis, axis + 100])
    assert rows(factors, layout, 1, table, dim)[1].tolist() == [1, 101, 4, 104]
    factors.unify(dim, factors.sum([factors.fresh(1), factors.fresh(2)]), Reason("halves"))
    assert rows(factors, layout, 0, axis, head).tolist() == [[0, 1, 2, 10], [3, 4, 5, 11]]


def test_the_median_is_nearest_to_all() -> None:
    points = weight(3, 40, 7) + np.float32(2)
    points[0] = 50
    found = median_distances(points)

    def total(centre: Array) -> float:
        return float(np.linalg.norm(points - centre, axis=1).sum())

    assert found.sum() < total(points.mean(axis=0))
    assert found.sum() <= min(total(point) for point in points)
    sums = np.linalg.norm(points[:, None] - points[None], axis=2).sum(axis=1)
    assert np.corrcoef(np.argsort(np.argsort(sums)), np.argsort(np.argsort(found)))[0, 1] > 0.99


@given(st.integers(2, 400), st.integers(0, 5))
def test_the_nearest_row_is_found(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((count, 64)).astype(np.float32)
    table[1::2] = table[: 2 * (count // 2) : 2] * 2  # each second row repeats the one before
    table /= np.linalg.norm(table, axis=1)[:, None]
    best, cosines = nearest(table, np.arange(count), seed)
    assert best[1::2].tolist() == list(range(0, 2 * (count // 2), 2))
    np.testing.assert_allclose(cosines[1::2], 1, rtol=1e-5)
    assert (best < np.arange(count)).all()
    assert best[0] == -1
