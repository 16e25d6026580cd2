"""Laws of optimal brain surgeon on channels: a score is what a refit can't make up for."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.score import DATA_DRIVEN, score
from onnxprune.passes.score.obs import losses
from onnxprune.passes.score.readers import Reader, readers
from onnxprune.store import Store
from tests.graphs import convolutions, coupled, model, node, recurrent, residual, weight

Array = NDArray[Any]
CLOSE = 2e-2  # relative: damping, and float32 rows
KRONECKER = 0.06  # relative: covariances of finite samples are no Kronecker products


def feeds_of(coupling: Coupling, count: int = 3) -> list[dict[str, Array]]:
    shapes = coupling.model.samples[0].shapes
    return [
        {
            name: np.random.default_rng(seed).standard_normal(
                [n or 1 for n in shapes[name]], np.float32
            )
            for name in coupling.model.inputs
        }
        for seed in range(count)
    ]


def mlp(seed: int = 0) -> Coupling:
    """x (200, 6) -> 8 -> Relu -> 4 with a bias."""
    return coupled(
        model(
            [node("MatMul", "x w1", "a"), node("Relu", "a", "r"), node("Gemm", "r w2 b", "y")],
            {"x": [200, 6]},
            {"y": [200, 4]},
            {
                "w1": weight(seed, 6, 8),
                "w2": weight(seed + 1, 8, 4),
                "b": weight(seed + 2, 4),
            },
        )
    )


def refit(x: Array, y: Array, kept: list[int]) -> float:
    """What the best weights and bias on some columns miss of y, a share of its variance."""
    design = np.concatenate([x[:, kept], np.ones((len(x), 1))], axis=1).astype(np.float64)
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.square(rest).sum() / np.square(y - y.mean(axis=0)).sum())


def test_a_loss_is_what_a_refit_misses() -> None:
    coupling = mlp()
    feeds = feeds_of(coupling)
    (group,) = coupling.groups
    found = losses(coupling, readers(coupling, feeds))[group.factor]
    w1, w2 = (coupling.model.params[name].read() for name in ("w1", "w2"))
    x = np.concatenate([np.maximum(feed["x"] @ w1, 0) for feed in feeds])
    y = x @ w2
    order = [int(k) for k in np.argsort(found)]
    for gone in range(1, 7):
        kept = sorted(order[gone:])
        assert found[order[:gone]].sum() == pytest.approx(refit(x, y, kept), rel=CLOSE, abs=5e-3)
    each = [refit(x, y, [k for k in range(8) if k != j]) for j in range(8)]
    assert order[0] == int(np.argmin(each)), "the cheapest goes first"


def test_a_copy_costs_nothing() -> None:
    coupling = mlp()
    w1 = coupling.model.params["w1"].read().copy()
    w1[:, 5] = w1[:, 2]
    params = dict(coupling.model.params)
    params["w1"] = replace(params["w1"], read=lambda: w1)
    proto = coupling.model.proto
    proto.graph.initializer[0].raw_data = w1.tobytes()
    twin = coupled(proto)
    found = losses(twin, readers(twin, feeds_of(twin)))[twin.groups[0].factor]
    order = np.argsort(found)
    assert order[0] in (2, 5)
    assert found[order[0]] < 1e-2 * found[order[1]]


def test_chunks_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = mlp()
    own = readers(coupling, feeds_of(coupling))
    single = losses(coupling, own)[coupling.groups[0].factor]
    monkeypatch.setattr(sys.modules[losses.__module__], "CHUNKS", 4)
    double = losses(coupling, own)[coupling.groups[0].factor]
    assert set(np.argsort(single)[:4]) == set(np.argsort(double)[:4])


@pytest.mark.parametrize("criterion", sorted(DATA_DRIVEN))
@pytest.mark.parametrize("net", [convolutions, residual, recurrent])
def test_every_group_has_positive_scores(net: Any, criterion: str) -> None:
    coupling = coupled(net())
    found = score(coupling, criterion, feeds=feeds_of(coupling))
    assert found.keys() == {group.factor for group in coupling.groups}
    for group in coupling.groups:
        assert found[group.factor].shape == (group.size,)
        assert np.isfinite(found[group.factor]).all()
        assert (found[group.factor] > 0).all()


def test_the_dimensions_of_scores_of_attention_have_a_cost() -> None:
    coupling = coupled(
        model(
            [
                node("MatMul", "x q", "a"),
                node("MatMul", "x k", "b"),
                node("Transpose", "b", "t", perm=[0, 2, 1]),
                node("MatMul", "a t", "y"),
            ],
            {"x": [3, 7, 6]},
            {"y": [3, 7, 7]},
            {"q": weight(1, 6, 8) * np.arange(1, 9, dtype=np.float32), "k": weight(2, 6, 8)},
        )
    )
    own: list[Reader] = readers(coupling, feeds_of(coupling))
    assert [reader.node for reader in own] == ["node 'n_y' (MatMul)"]
    feed = feeds_of(coupling)[0]["x"].astype(np.float64)
    q, k = (coupling.model.params[name].read() for name in "qk")
    terms = np.einsum("bmi,ij,bno,oj->bmnj", feed, q, feed, k)
    (group,) = coupling.groups
    found = losses(coupling, readers(coupling, feeds_of(coupling, 1)))[group.factor]
    expected = np.square(terms).sum(axis=(0, 1, 2)) / np.square(terms.sum(axis=3)).sum()
    order = np.argsort(expected)[:-1]
    assert np.argsort(found)[:-1].tolist() == order.tolist()
    assert np.allclose(found[order], expected[order], rtol=CLOSE)


def test_what_is_read_by_itself() -> None:
    coupling = mlp()
    feeds = feeds_of(coupling)
    w1, w2 = (coupling.model.params[name].read() for name in ("w1", "w2"))
    x = np.concatenate([np.maximum(feed["x"] @ w1, 0) for feed in feeds]).astype(np.float64)
    squares = np.square(w2).sum(axis=1)
    expected = {
        "activation": np.square(x).mean(axis=0),
        "wanda": np.square(x).mean(axis=0) * squares,
        "flap": x.var(axis=0) * squares,
    }
    for criterion, values in expected.items():
        (found,) = score(coupling, criterion, feeds=feeds).values()
        assert np.allclose(found, 8 * np.sqrt(values / values.sum()), rtol=1e-3), criterion


def test_data_is_wanted() -> None:
    with pytest.raises(OnnxPruneError, match=r"criterion 'obs' looks at .* \(--calibration\)"):
        score(mlp(), "obs")


def conv(kernel: int) -> Coupling:
    """x (4, 6, 12, 12) -> 6 channels, mixed -> a convolution of 5 channels with a bias."""
    mixture = weight(1, 6, 6) * np.arange(1, 7, dtype=np.float32)[:, None]
    return coupled(
        model(
            [node("Conv", "x w1", "a"), node("Conv", "a w2 b", "y")],
            {"x": [4, 6, 12, 12]},
            {"y": [4, 5, 13 - kernel, 13 - kernel]},
            {
                "w1": mixture[:, :, None, None],
                "w2": weight(2, 5, 6, kernel, kernel),
                "b": weight(3, 5),
            },
        )
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_taps_of_a_kernel_are_joined(monkeypatch: pytest.MonkeyPatch, kernel: int) -> None:
    monkeypatch.setattr(sys.modules[readers.__module__], "JOINED", 0)
    coupling = conv(kernel)
    feeds = feeds_of(coupling)
    (group,) = coupling.groups
    (reader,) = readers(coupling, feeds)
    assert reader.seen.covariance is not None
    assert reader.weight is not None
    assert reader.seen.covariance[0].shape == (1, 6, 6)
    assert reader.weight[0].shape == (1, 6, min(6, 5 * kernel**2))
    found = losses(coupling, [reader])[group.factor]
    first, last = (coupling.model.params[name].read() for name in ("w1", "w2"))
    a = np.concatenate([np.einsum("nchw,oc->nohw", f["x"], first[:, :, 0, 0]) for f in feeds])
    windows = np.lib.stride_tricks.sliding_window_view(a, (kernel, kernel), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 6, kernel**2)
    y = rows.reshape(len(rows), -1) @ last.reshape(5, -1).T
    order = [int(k) for k in np.argsort(found)]
    for gone in range(1, 5):
        kept = sorted(order[gone:])
        expected = refit(
            rows[:, kept].reshape(len(rows), -1), y, list(range(len(kept) * kernel**2))
        )
        assert found[order[:gone]].sum() == pytest.approx(expected, rel=KRONECKER, abs=5e-3)


def test_taps_of_a_small_kernel_are_apart() -> None:
    coupling = conv(3)
    feeds = feeds_of(coupling)
    (reader,) = readers(coupling, feeds)
    assert reader.seen.covariance is not None
    assert reader.seen.covariance[0].shape == (1, 54, 54)
    assert (
        reader.places[coupling.groups[0].factor].positions[0].tolist()
        == np.arange(54).reshape(6, 9).tolist()
    )


def test_taps_that_say_the_same_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a picture is flat, the taps of a kernel add up before they are squared."""
    monkeypatch.setattr(sys.modules[readers.__module__], "JOINED", 0)
    coupling = conv(3)
    flat = [
        {"x": np.broadcast_to(feed["x"][:, :, :1, :1], feed["x"].shape).copy()}
        for feed in feeds_of(coupling, 40)
    ]
    (reader,) = readers(coupling, flat)
    assert np.allclose(reader.seen.taps, 1, atol=1e-4)
    found = losses(coupling, [reader])[coupling.groups[0].factor]
    summed = conv(1)
    (plain,) = readers(summed, flat)
    last = coupling.model.params["w2"].read().sum(axis=(2, 3), dtype=np.float32)
    own = replace(plain, weight=Store().keep((last.T[None],)))
    expected = losses(summed, [own])[summed.groups[0].factor]
    shares = [values / values[np.argsort(values)[:-1]].sum() for values in (found, expected)]
    assert np.allclose(shares[0], shares[1], rtol=5 * CLOSE)


def packed() -> Coupling:
    """One value (90, 12) that three weights read, as queries, keys and values do."""
    return coupled(
        model(
            [
                node("MatMul", "x w", "a"),
                node("Tanh", "a", "t"),
                *(node("MatMul", f"t w{k}", f"y{k}") for k in range(3)),
            ],
            {"x": [90, 7]},
            {f"y{k}": [90, 5] for k in range(3)},
            {"w": weight(9, 7, 12), **{f"w{k}": weight(k, 12, 5) for k in range(3)}},
        )
    )


def test_readers_of_one_value_share_what_is_known_of_it() -> None:
    coupling = packed()
    own = readers(coupling, feeds_of(coupling))
    assert len(own) == 3
    assert len({id(reader.seen) for reader in own}) == 1
    (group,) = coupling.groups
    together = losses(coupling, own)[group.factor]
    apart = losses(coupling, [replace(r, seen=replace(r.seen)) for r in own])[group.factor]
    assert np.allclose(together, apart, rtol=1e-4)


def test_what_does_not_fit_goes_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = packed()
    own = readers(coupling, feeds_of(coupling))
    (group,) = coupling.groups
    module = sys.modules[losses.__module__]
    monkeypatch.setattr(module, "LIMIT_BYTES", 0)
    monkeypatch.setattr(module, "CHUNKS", 4)
    rounds = losses(coupling, own)[group.factor]
    assert (rounds > 0).all()
    monkeypatch.setattr(module, "LIMIT_BYTES", 1 << 30)
    chunks = losses(coupling, own)[group.factor]
    by_loss = np.argsort(rounds)
    assert set(by_loss[:3]) == set(np.argsort(chunks)[:3])
    assert set(by_loss[:6]) == set(np.argsort(chunks)[:6])
    gone = by_loss[:9]
    assert rounds[gone].sum() == pytest.approx(chunks[gone].sum(), rel=CLOSE)
    assert rounds[by_loss[9:]].min() > rounds[gone].max()


def test_moments_that_wait_on_disk_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = packed()
    feeds = feeds_of(coupling)
    in_memory = losses(coupling, readers(coupling, feeds))
    monkeypatch.setattr(sys.modules[readers.__module__], "LIMIT_BYTES", 0)
    on_disk = losses(coupling, readers(coupling, feeds))
    for factor, values in in_memory.items():
        assert np.array_equal(values, on_disk[factor])


def test_no_moments_where_none_are_wanted() -> None:
    coupling = packed()
    for reader in readers(coupling, feeds_of(coupling), moments=False):
        assert reader.seen.covariance is None
        assert reader.weight is None
