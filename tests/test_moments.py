"""Laws of streamed least squares: they are those of all rows at once."""

import numpy as np
import pytest

from onnxprune import moments
from onnxprune.moments import Moments, Squares, joined, ridge

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


def test_rows_that_wait_count_as_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = streamed()
    monkeypatch.setattr(moments, "CHUNK_BYTES", 1)
    at_once = Moments()
    for start in range(0, 60, 20):
        at_once.add(X[:, start : start + 20], R[:, start : start + 20])
        assert not at_once.rows
    late = Moments()
    monkeypatch.setattr(moments, "CHUNK_BYTES", 2 * 2 * 20 * 7 * 4)
    for start in range(0, 60, 20):
        late.add(X[:, start : start + 20], R[:, start : start + 20])
    assert len(late.rows) == 1, "of three, two have been multiplied"
    delta = GENERATOR.standard_normal((2, 7, 3))
    for other in (at_once, late):
        assert other.left(delta) == pytest.approx(waiting.left(delta), rel=SAME)
        assert np.allclose(ridge(other, 0.1, True), ridge(waiting, 0.1, True), rtol=1e-3)


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 20])
@pytest.mark.parametrize("full", [False, True])
def test_squares_of_rows_are_summed(
    monkeypatch: pytest.MonkeyPatch, full: bool, chunk_bytes: int
) -> None:
    monkeypatch.setattr(moments, "CHUNK_BYTES", chunk_bytes)
    found = Squares(full)
    for start in range(0, 60, 20):
        found.add(X[:, start : start + 20])
    wide = X.astype(np.float64)
    expected = wide.transpose(0, 2, 1) @ wide if full else np.square(wide).sum(axis=1)[:, None]
    assert np.abs(found.found() - expected).max() <= SAME * np.abs(expected).max()
    assert np.array_equal(found.found(), found.found()), "to look changes nothing"


def test_nothing_joined_is_nothing() -> None:
    assert joined([Moments(), Moments()]).count == 0
    assert streamed().count == 60
