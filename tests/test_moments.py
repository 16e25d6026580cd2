"""Laws of streamed least squares: they are those of all rows at once."""

import numpy as np
import pytest

from onnxprune import moments
from onnxprune.moments import Moments, joined, ridge

SAME = 1e-4  # relative: rows are float32
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 60, 7)).astype(np.float32)
R = GENERATOR.standard_normal((2, 60, 3)).astype(np.float32)


def streamed() -> Moments:
    found = [Moments(), Moments()]
    for start in range(0, 60, 20):
        found[start == 40].add(X[:, start : start + 20], R[:, start : start + 20])
    return joined(found)


def penalty(strength: float, free: bool) -> list[np.ndarray]:
    """The diagonal of the penalty, by hand."""
    rows = []
    for x in X.astype(np.float64):
        size = x.shape[1] - free
        own = np.full(x.shape[1], strength * np.square(x[:, :size]).sum() / size)
        if free:
            own[-1] = 0
        rows.append(np.diag(own))
    return rows


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0])
def test_ridge_solves_the_normal_equations(strength: float, free: bool) -> None:
    found = ridge(streamed(), strength, free)
    for x, r, diagonal, own in zip(X, R, penalty(strength, free), found, strict=True):
        expected = np.linalg.solve(x.T.astype(np.float64) @ x + diagonal, x.T @ r)
        assert np.abs(own - expected).max() <= SAME * np.abs(expected).max()


def test_few_rows_of_many_numbers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, whole = ridge(streamed(), 0.1, free=False), streamed()
    monkeypatch.setattr(moments, "WIDE", 5)
    kept = streamed()
    assert len(kept.rows) == 3
    assert not kept.gram.size
    found = ridge(kept, 0.1, free=False)
    assert np.abs(found - expected).max() <= SAME * np.abs(expected).max()
    delta = GENERATOR.standard_normal(found.shape)
    assert kept.left(delta) == pytest.approx(whole.left(delta), rel=SAME)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_what_is_left_is_the_energy_of_the_residual(scale: float) -> None:
    delta = scale * GENERATOR.standard_normal((2, 7, 3))
    expected = float(np.square(R - X.astype(np.float64) @ delta).sum())
    assert streamed().left(delta) == pytest.approx(expected, rel=SAME)


def test_nothing_joined_is_nothing() -> None:
    assert joined([Moments(), Moments()]).count == 0
    assert streamed().count == 60
