"""Laws of the criteria that look at gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.coupling import Coupling
from onnxprune.passes.score import gradients, score
from onnxprune.passes.score.criteria import Settings
from onnxprune.torch_bridge import bridge
from onnxprune.torch_bridge.scores import own_loss, score_names
from tests.graphs import convolutions, coupled, model, node, residual, weight
from tests.test_obs import feeds_of, mlp

torch = pytest.importorskip("torch", reason="torch is not installed")

CLOSE = 1e-4


def settings(feeds: Any, seed: int = 0) -> Settings:
    return Settings(seed, "contracted", "mean", None, feeds)


def rows_of(coupling: Coupling, feeds: Any) -> dict[int, Any]:
    """The gradients (samples, size) of the masks, by factor, on the first batch."""
    loss, masks, _ = next(gradients._Work.of(coupling, settings(feeds)).losses())
    names = list(masks)
    found = torch.autograd.grad(loss, [masks[n] for n in names])
    return {name: grad.numpy() for name, grad in zip(names, found, strict=True)}


@pytest.mark.parametrize("net", [mlp, lambda: coupled(convolutions()), lambda: coupled(residual())])
def test_a_mask_sums_weights_times_gradients(net: Any) -> None:
    """The chain rule: what a mask before a contraction says, all weights behind it say together."""
    coupling = net()
    feeds = feeds_of(coupling, 1)
    found = rows_of(coupling, feeds)
    module = bridge(coupling.model).eval()
    values = module.run(
        {k: torch.tensor(v) for k, v in feeds[0].items()}, sorted(set(score_names(module).values()))
    )
    own_loss(values, torch.Generator().manual_seed(0)).backward()
    factors, checked = coupling.factors, 0
    for group in coupling.groups:
        total = np.zeros(group.size)
        for member in group.members:
            if not member.contracted:
                continue
            own = module.weight(coupling.model.params[member.param].origin)
            grad = (own * own.grad).detach().numpy()
            axes = tuple(a for a in range(grad.ndim) if a != member.axis)
            total += factors.pull_back(member.layout, grad.sum(axes))[group.factor]
        if group.factor in found:
            scale = np.abs(total).max()
            np.testing.assert_allclose(
                found[group.factor].sum(0), total, rtol=CLOSE, atol=CLOSE * scale
            )
            checked += 1
    assert checked


def test_samples_are_apart() -> None:
    """Another sample in one place changes the gradients of that place alone."""
    coupling = mlp()
    (feeds,) = feeds_of(coupling, 1)
    other = {"x": feeds["x"].copy()}
    other["x"][3] += 1
    (before,), (after,) = (rows_of(coupling, [f]).values() for f in (feeds, other))
    changed = np.flatnonzero(np.abs(before - after).max(axis=1) > 0)
    assert before.shape == (200, 8)
    assert changed.tolist() == [3]


def test_hutchinson_finds_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "PROBES", 400)
    coupling = mlp()
    feeds = feeds_of(coupling, 1)
    (group,) = coupling.groups
    found = gradients.hessian(coupling, settings(feeds))[group.factor]
    w1, w2, b = (torch.tensor(coupling.model.params[n].read()) for n in ("w1", "w2", "b"))
    hidden = torch.relu(torch.tensor(feeds[0]["x"]) @ w1)
    drawn = torch.multinomial(
        torch.softmax(hidden @ w2 + b, -1), 1, generator=torch.Generator().manual_seed(0)
    )[:, 0]

    def loss(mask: Any) -> Any:
        return torch.nn.functional.cross_entropy(hidden * mask @ w2 + b, drawn, reduction="mean")

    exact = torch.autograd.functional.hessian(loss, torch.ones(8)).diagonal().numpy() / 2
    np.testing.assert_allclose((found / group.size) ** 2, np.abs(exact), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "hessian"])
def test_a_channel_that_nothing_reads_goes_first(criterion: str) -> None:
    coupling = mlp()
    dead = coupling.model.params["w2"].read().copy()
    dead[5] = 0
    proto = coupling.model.proto
    proto.graph.initializer[1].raw_data = dead.tobytes()
    twin = coupled(proto)
    (found,) = score(twin, criterion, feeds=feeds_of(twin)).values()
    assert int(np.argmin(found)) == 5
    assert found[5] < 1e-3 * np.delete(found, 5).min()


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_scores_go_with_their_channels(criterion: str) -> None:
    """In another order of the channels each has the same score."""
    coupling = mlp()
    order = np.random.default_rng(0).permutation(8)
    proto = coupling.model.proto
    twin = type(proto)()
    twin.CopyFrom(proto)
    for index, axis in ((0, 1), (1, 0)):
        own = twin.graph.initializer[index]
        values = np.frombuffer(own.raw_data, np.float32).reshape(tuple(own.dims))
        own.raw_data = np.ascontiguousarray(np.take(values, order, axis)).tobytes()
    feeds = feeds_of(coupling)
    one, other = (
        next(iter(score(c, criterion, feeds=feeds).values())) for c in (coupling, coupled(twin))
    )
    np.testing.assert_allclose(other, one[order], rtol=1e-3)


def test_heads_and_their_sizes_have_a_mask_each() -> None:
    """A product of two groups: what the score of attention contracts is masked by both."""
    nodes = [
        node("MatMul", "x q", "a"),
        node("Reshape", "a s", "b"),
        node("ReduceSum", "b axes", "c", keepdims=0),
        node("MatMul", "c w", "y"),
    ]
    weights: dict[str, Any] = {
        "q": weight(1, 6, 8),
        "s": np.array([0, 2, 4]),
        "axes": np.array([1]),
        "w": weight(2, 4, 3),
    }
    coupling = coupled(model(nodes, {"x": [5, 6]}, {"y": [5, 3]}, weights))
    found = rows_of(coupling, feeds_of(coupling, 1))
    assert {(5, group.size) for group in coupling.groups} == {v.shape for v in found.values()}
