"""The model of the latency: planted prices are found again, and predictions follow from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import timing
from onnxprune.alignment import alignment
from onnxprune.axes import Values
from onnxprune.cost import MOVED, CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.latency import Chain, Latency, fit, joined, non_negative, with_latency
from onnxprune.model import Array
from onnxprune.passes.select import Budget, Options, select
from onnxprune.passes.shrink import shrink
from onnxprune.target import Target
from onnxprune.trace import Kernel
from onnxprune.work import FIXED, GROUPED, READ, WRITTEN
from tests import graphs
from tests.zoo import fill

PRICES = {"Conv": 1e-8, GROUPED: 8e-8, "Gemm": 2e-8, READ: 3e-7, WRITTEN: 5e-7, FIXED: 0.004}
ELSEWHERE = 0.01  # relative, at other counts: few widths leave some kinds of work collinear
EXACT = 1e-6  # relative: what least squares leave of planted prices


def kernel(*nodes: str, ms: float = 1.0) -> Kernel:
    return Kernel("+".join(nodes), "Op", "CPU", nodes, ms, None)


def mobilenet() -> tuple[Coupling, CostModel]:
    coupling = graphs.coupled(fill.load("torchvision/mobilenet_v2"))
    return coupling, cost_model(coupling)


def chains_of(coupling: Coupling, prices: Mapping[str, float]) -> tuple[Chain, ...]:
    """Each contraction with what follows it up to the next, at prices that differ by a factor."""
    found: list[list[str]] = []
    work = cost_model(coupling).work
    for node in coupling.model.nodes:
        if node.key in work.macs or not found:
            found.append([])
        found[-1].append(node.key)
    return tuple(
        Chain(tuple(nodes), {kind: price * (1 + k % 3) for kind, price in prices.items()})
        for k, nodes in enumerate(found)
    )


def run(planted: Latency, cost: CostModel, kept: Values) -> list[Kernel]:
    """The kernels of a run at these counts, with the planted times."""
    products = cost.sizes.at(kept)
    rows = len(products)
    return [
        kernel(
            *chain.nodes,
            ms=float(Latency((chain,)).weights(cost.work, rows) @ products),
        )
        for chain in planted.chains
    ]


def random_counts(cost: CostModel, seed: int) -> Values:
    share = np.random.default_rng(seed).uniform(0.2, 1, len(cost.sizes.full))
    found: Values = np.ceil(cost.sizes.full * share)
    return found


def test_a_fit_finds_planted_prices_and_predicts_other_widths() -> None:
    coupling, cost = mobilenet()
    planted = Latency(chains_of(coupling, PRICES), scale=1.0, rest_ms=0.3)
    counts = timing.widths(alignment(coupling, "auto"), np.ones(len(coupling.groups), bool))
    weights = planted.weights(cost.work, len(cost.sizes.rows))
    whole = np.array([float(weights @ cost.sizes.at(kept)) for kept in counts])
    found = fit(cost, counts, [run(planted, cost, kept) for kept in counts], whole)
    assert found.error < EXACT
    assert found.scale == pytest.approx(1.0, rel=1e-4)
    assert found.rest_ms == pytest.approx(0.3, rel=1e-2)
    model = with_latency(cost, found)
    for seed in range(5):
        kept = random_counts(cost, seed)
        assert model.at(kept).latency_ms == pytest.approx(
            float(weights @ cost.sizes.at(kept)), rel=ELSEWHERE
        )


def test_a_fit_finds_every_price_that_its_runs_tell_apart() -> None:
    coupling, cost = mobilenet()
    planted = Latency(chains_of(coupling, PRICES))
    counts = [cost.sizes.full, *(random_counts(cost, seed) for seed in range(7))]
    products = np.stack([cost.sizes.at(kept) for kept in counts])
    weights = planted.weights(cost.work, products.shape[1])
    found = fit(cost, counts, [run(planted, cost, k) for k in counts], products @ weights)
    known = {frozenset(chain.nodes): chain for chain in planted.chains}
    told = 0
    for chain in found.chains:
        kinds = cost.work.of(chain.nodes, products.shape[1])
        amounts = np.stack([*(products @ own for own in kinds.values()), np.ones(len(counts))])
        if np.linalg.matrix_rank(amounts / amounts.max(axis=1, keepdims=True), 1e-3) < 4:
            continue  # such as depthwise: it reads, writes and computes in one proportion
        told += 1
        own = known[frozenset(chain.nodes)].prices
        expected = {kind: own[kind] for kind in (*kinds, FIXED)}
        assert chain.prices == pytest.approx(expected, rel=1e-3)
    assert told > 20


def test_the_latency_of_macs_alone_is_their_number_times_the_price() -> None:
    coupling, cost = mobilenet()
    price = 2e-8
    prices = dict.fromkeys(("Conv", GROUPED, "Gemm"), price)
    flat = tuple(Chain(own.nodes, prices) for own in chains_of(coupling, prices))
    model = with_latency(cost, Latency(flat))
    for seed in range(3):
        kept = random_counts(cost, seed)
        assert model.at(kept).latency_ms == pytest.approx(price * model.at(kept).macs, rel=1e-9)
        slopes = model.slopes(kept, "latency_ms")
        assert slopes == pytest.approx(price * model.slopes(kept, "macs"))


def test_what_passes_inside_a_chain_is_not_moved() -> None:
    proto = graphs.model(
        [
            graphs.node("Conv", "x w", "a"),
            graphs.node("Relu", "a", "b"),
            graphs.node("Conv", "b v", "y"),
        ],
        {"x": [1, 3, 8, 8]},
        {"y": [1, 5, 8, 8]},
        {"w": graphs.weight(0, 16, 3, 1, 1), "v": graphs.weight(1, 5, 16, 1, 1)},
    )
    cost = cost_model(graphs.coupled(proto))
    products, rows = cost.sizes.at(cost.sizes.full), len(cost.sizes.rows)

    def moved(*nodes: str) -> dict[str, float]:
        kinds = cost.work.of(nodes, rows)
        return {kind: float(own @ products) for kind, own in kinds.items()}

    assert moved("a") == {READ: 3 * 64, WRITTEN: 16 * 64, "Conv": 3 * 16 * 64}
    assert moved("a", "b") == {READ: 3 * 64, WRITTEN: 16 * 64, "Conv": 3 * 16 * 64}
    assert moved("a", "b", "y") == {READ: 3 * 64, WRITTEN: 5 * 64, "Conv": (3 + 5) * 16 * 64}
    assert moved("b") == {READ: 16 * 64, WRITTEN: 16 * 64}
    assert moved("gone") == {}


def test_nodes_that_share_a_kernel_anywhere_are_one_chain() -> None:
    first = [kernel("a", "b", ms=1.0), kernel("c", ms=2.0), kernel("d", ms=4.0)]
    second = [kernel("a", ms=0.5), kernel("b", "c", ms=1.5), kernel("d", ms=3.0)]
    chains, times = joined([first, second])
    assert [sorted(own) for own in chains] == [["a", "b", "c"], ["d"]]
    assert times.tolist() == [[3.0, 4.0], [2.0, 3.0]]


def test_what_a_runtime_inserts_counts_to_the_kernel_after_it() -> None:
    reorder = Kernel("ReorderInput", "ReorderInput", "CPU", (), 0.25, None)
    _, times = joined([[kernel("a"), reorder, kernel("b", ms=2.0), reorder]])
    assert times.tolist() == [[1.0, 2.5]]  # and the last one to the kernel before


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.integers(0, 5))
def test_non_negative_least_squares_find_what_was_planted(x: list[float], seed: int) -> None:
    columns = np.random.default_rng(seed).uniform(0, 1, (6, 3))
    found = non_negative(columns, columns @ np.array(x))
    assert (found >= 0).all()
    assert columns @ found == pytest.approx(columns @ np.array(x), rel=1e-6, abs=1e-6)


def test_no_price_is_negative() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    falls = np.array([3.0, 2.0, 1.0])  # the best line has a negative slope
    assert non_negative(columns, falls).tolist() == pytest.approx([2.0, 0.0])


def test_widths_differ_between_neighbours_and_cover_every_ratio() -> None:
    coupling, _ = mobilenet()
    steps = alignment(coupling, "auto")
    free = np.ones(len(coupling.groups), bool)
    free[0] = False
    found = np.stack(timing.widths(steps, free))
    assert found[0].tolist() == steps.sizes.tolist()
    assert (found[:, 0] == steps.sizes[0]).all()
    wide = np.flatnonzero(free & (steps.sizes >= 64))
    assert all(len(set(found[1:, group])) >= 3 for group in wide)
    assert (found % steps.units == 0)[found != steps.sizes].all()


def test_a_model_is_profiled_at_several_widths_side_by_side() -> None:
    coupling, cost = mobilenet()
    planted = Latency(chains_of(coupling, PRICES), rest_ms=0.1)
    steps, free = alignment(coupling, "auto"), np.ones(len(coupling.groups), bool)
    counts = timing.widths(steps, free)
    seen: list[int] = []

    def profiler(
        models: Sequence[tuple[onnx.ModelProto, Path | None]],
        feeds: Mapping[str, Array],
        target: Target,
        runs: int,
    ) -> list[tuple[list[Kernel], float]]:
        seen.extend(len(proto.SerializeToString()) for proto, _ in models)
        rows = len(cost.sizes.rows)
        weights = planted.weights(cost.work, rows)
        return [(run(planted, cost, k), float(weights @ cost.sizes.at(k))) for k in counts]

    found = timing.measured_latency(coupling, cost, steps, free, {}, Target(), profiler)
    expected = [
        len(shrink(coupling, timing.masks_of(coupling, k)).SerializeToString()) for k in counts
    ]
    assert seen == expected
    assert found.error < EXACT


def test_one_kernel_for_all_is_fitted_to_runs_without_the_profiler() -> None:
    coupling, cost = mobilenet()
    steps, free = alignment(coupling, "auto"), np.ones(len(coupling.groups), bool)
    counts = timing.widths(steps, free)
    keys = tuple(cost.work.reads)
    planted = Latency((Chain(keys, {"Conv": 1e-8, "read": 1e-7}),), rest_ms=0.0)
    weights = planted.weights(cost.work, len(cost.sizes.rows))
    whole = np.array([float(weights @ cost.sizes.at(kept)) for kept in counts])
    odd = np.resize([3.0, 50.0], len(counts))  # what a busy machine makes of a long kernel
    runs = [[Kernel("k", "Fused", "EP", keys, own, None, True)] for own in odd]
    found = fit(cost, counts, runs, whole)
    assert found.error < EXACT


def test_the_time_of_the_processor_tells_for_one_thread_on_it() -> None:
    assert Target().one_core
    assert Target("openvino").one_core
    assert Target("openvino", options={"device_type": "CPU"}).one_core
    assert not Target("openvino", options={"device_type": "GPU"}).one_core
    assert not Target(threads=2).one_core
    assert not Target("webgpu").one_core


def test_select_meets_a_latency_like_any_other_budget() -> None:
    coupling, cost = mobilenet()
    model = with_latency(cost, Latency(chains_of(coupling, PRICES), rest_ms=0.2))
    generator = np.random.default_rng(0)
    scores = {g.factor: generator.lognormal(0, 0.3, g.size) for g in coupling.groups}
    full = model.cost({}).latency_ms
    for share in (0.8, 0.6, 0.45):
        found = select(coupling, scores, Budget(latency_ms=share), Options(), model)
        assert 0.95 * share <= found.cost_after.latency_ms / full <= share
    both = select(coupling, scores, Budget(latency_ms=0.6, macs=0.3), Options(), model).cost_after
    assert both.macs <= 0.3 * model.cost({}).macs
    assert both.latency_ms <= 0.6 * full


def test_a_budget_for_macs_counts_what_other_nodes_move_unless_they_are_fused() -> None:
    def share(*between: onnx.NodeProto) -> float:
        proto = graphs.model(
            [graphs.node("Conv", "x w", "a"), *between, graphs.node("Conv", "b v", "y")],
            {"x": [1, 3, 8, 8]},
            {"y": [1, 5, 8, 8]},
            {"w": graphs.weight(0, 16, 3, 1, 1), "v": graphs.weight(1, 5, 16, 1, 1)},
        )
        (found,) = cost_model(graphs.coupled(proto)).shares("macs")
        return float(found)

    wide, fixed = 16 * 64, (3 + 5) * 64

    def expected(values: int) -> float:
        own = (3 + 5) * wide + MOVED * values * wide
        return own / (own + MOVED * fixed)

    assert share(graphs.node("Relu", "a", "b")) == pytest.approx(expected(2))
    swish = (graphs.node("Sigmoid", "a", "s"), graphs.node("Mul", "a s", "b"))
    assert share(*swish) == pytest.approx(expected(2 + 2 + 3))  # two readers: not fused


def test_a_budget_for_macs_counts_what_layers_move() -> None:
    proto = graphs.model(
        [graphs.node("Conv", "x w", "a"), graphs.node("Conv", "a v", "y")],
        {"x": [1, 3, 8, 8]},
        {"y": [1, 5, 8, 8]},
        {"w": graphs.weight(0, 16, 3, 1, 1), "v": graphs.weight(1, 5, 16, 1, 1)},
    )
    cost = cost_model(graphs.coupled(proto))
    moved, fixed = 2 * 16 * 64, (3 + 5) * 64  # written and read; read and written in any case
    effort = (3 + 5) * 16 * 64 + MOVED * moved
    assert cost.shares("macs") == pytest.approx([effort / (effort + MOVED * fixed)])
    assert cost.shares("params") == pytest.approx([1.0])
