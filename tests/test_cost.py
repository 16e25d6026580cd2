"""Costs: exact for any kept counts, by an independent count, and by counting what shrink made."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxprune.axes import Factors, Layout, Values
from onnxprune.cost import MEASURES, Cost, CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.files import load
from onnxprune.passes.shrink import shrink
from onnxprune.polynomials import Polynomials, SizeTable
from onnxprune.storage import file_bytes
from tests import counting, graphs
from tests.zoo import fill

SMALL = [
    "keras_tensorflow/r50",  # dynamic batch
    "keras_torch/cnn",
    "others/torch_bilstm.dynamo",
    "paddle/lenet",  # weights in Constant nodes
    "timm/vit_tiny_patch16_224",
    "torchvision/mobilenet_v2",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x1_0",
    "transformers/bert",
]
LARGE = [
    "timm/nf_resnet50.dynamo",  # weights standardised in the graph
    "timm/resnetv2_50x1_bit",
    "torchvision/densenet121",
    "torchvision/swin_t",
    "transformers/t5",
]
ALL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@lru_cache(maxsize=1)
def zoo(name: str) -> tuple[onnx.ModelProto, Coupling, CostModel]:
    proto = fill.load(name)
    coupling = graphs.coupled(proto)
    return proto, coupling, cost_model(coupling)


def planted(model: CostModel) -> CostModel:
    """The costs with a latency: two milliseconds, and one for a million of effort."""
    latency = 1e-6 * model.effort
    latency[0] += 2.0
    return replace(model, latency=latency)


def random_counts(coupling: Coupling, seed: int) -> dict[int, int]:
    generator = np.random.default_rng(seed)
    return {g.factor: int(generator.integers(1, g.size + 1)) for g in coupling.groups}


@pytest.mark.parametrize("name", ALL)
def test_nothing_pruned_costs_what_a_run_shows(name: str) -> None:
    proto, _, model = zoo(name)
    assert model.cost({}) == counting.count(proto)


@pytest.mark.parametrize("name", ALL)
def test_what_shrink_makes_costs_what_was_said(name: str) -> None:
    _, coupling, model = zoo(name)
    generator = np.random.default_rng(1)
    keep = {g.factor: generator.random(g.size) < 0.6 for g in coupling.groups}
    for mask in keep.values():
        mask[0] = True
    said = model.cost({factor: int(mask.sum()) for factor, mask in keep.items()})
    small = shrink(coupling, keep)
    made = cost_model(graphs.coupled(small)).cost({})
    # The bytes of nodes that vanish, of copies' names and of restated shapes are not foreseen.
    assert said == replace(made, size_bytes=said.size_bytes)
    assert said.size_bytes == pytest.approx(len(small.SerializeToString()), rel=0.012)


@pytest.mark.parametrize("name", ALL)
def test_costs_fall_with_every_count(name: str) -> None:
    _, coupling, model = zoo(name)
    most = random_counts(coupling, 2)
    least = {factor: max(1, count - 3) for factor, count in most.items()}
    model = planted(model)
    for before, after in [({}, most), (most, least)]:
        for measure in MEASURES:
            high, low = (getattr(model.cost(counts), measure) for counts in (before, after))
            assert low < high or (low == high and measure == "peak_bytes")


def exact(model: CostModel, kept: Values) -> dict[str, float]:
    """The costs that groups change, not rounded, for counts that need not be whole."""
    products = model.sizes.at(kept)
    elements = model.tensors.at(products)
    return {
        "macs": float(model.macs @ products),
        "params": float(elements.sum()),
        "size_bytes": float(model.tensors.itemsizes @ elements),
        "peak_bytes": float(model.lifetimes.at(products).max()),
        "latency_ms": float(model.latency @ products),
    }


@pytest.mark.parametrize("name", SMALL)
def test_slopes_are_those_of_the_costs(name: str) -> None:
    model = planted(zoo(name)[2])
    kept, step = model.sizes.full - 1, 1e-3
    here = exact(model, kept)
    for column in range(0, len(kept), 5):
        moved = np.eye(len(kept))[column] * step
        above, below = exact(model, kept + moved), exact(model, kept - moved)
        for measure in MEASURES:
            # Where two nodes share the peak, its slope lies between those to either side.
            left, right = here[measure] - below[measure], above[measure] - here[measure]
            slope = model.slopes(kept, measure)[column] * step
            assert left * 0.999 - 1e-6 <= slope <= right * 1.001 + 1e-6


def test_only_groups_alive_above_the_limit_touch_the_peak() -> None:
    _, coupling, model = zoo("torchvision/resnet18")
    before = model.cost({}).peak_bytes
    touching = model.touching("peak_bytes", 0.8 * before)
    assert 0 < touching.sum() < len(coupling.groups) / 2
    others = {g.factor: 1 for g, t in zip(coupling.groups, touching, strict=True) if not t}
    assert model.cost(others).peak_bytes == before
    own = {g.factor: 1 for g, t in zip(coupling.groups, touching, strict=True) if t}
    assert model.cost(own).peak_bytes <= 0.8 * before
    assert model.touching("macs", 0).all()


def test_a_convolution_is_counted_by_hand() -> None:
    coupling = graphs.coupled(graphs.convolutions(groups=2))
    model = cost_model(coupling)
    # x (1, 4, 6, 6) -> 8 (6 x 6) -> 8 in 2 groups (4 x 4, without pads) -> 4
    assert model.cost({}).macs == 36 * 8 * 4 * 9 + 16 * 8 * 4 * 9 + 16 * 4 * 8


def test_a_shared_bias_is_copied_only_where_it_loses_something() -> None:
    proto = graphs.convolutions()
    coupling = graphs.coupled(proto)
    model = cost_model(coupling)
    first, second = coupling.groups
    weights = {t.name: int(np.prod(t.dims)) for t in proto.graph.initializer}
    assert model.cost({}).params == sum(weights.values())
    # 4 of the first 8 channels: its uses of b keep 4, the others keep the file's 8
    lost = 4 * 4 * 9 + 8 * 4 * 9
    assert model.cost({first.factor: 4}).params == sum(weights.values()) - lost + 4
    both = {first.factor: 4, second.factor: 4}
    halved = 4 * 4 * 9 + 4 * 4 * 9 + 4 * 4
    assert model.cost(both).params == halved + 4 + 4


def two_branches(batch: int | str) -> onnx.ModelProto:
    nodes = [
        graphs.node("Conv", "x a", "u"),
        graphs.node("Conv", "x b", "v"),
        graphs.node("Concat", "u v", "w", axis=1),
        graphs.node("Conv", "w c", "y"),
    ]
    weights = {"a": graphs.weight(0, 6, 3, 1, 1), "b": graphs.weight(1, 10, 3, 1, 1)}
    weights["c"] = graphs.weight(2, 2, 16, 1, 1)
    return graphs.model(nodes, {"x": [batch, 3, 5, 5]}, {"y": [batch, 2, 5, 5]}, weights)


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_dynamic_batch_counts_one_sample(batch: int | str) -> None:
    coupling = graphs.coupled(two_branches(batch))
    a, b = (group.factor for group in coupling.groups)
    cost = cost_model(coupling).cost({a: 2, b: 5})
    assert cost.macs == 25 * (2 * 3 + 5 * 3 + 2 * 7)
    assert cost.params == 2 * 3 + 5 * 3 + 2 * 7
    assert cost.peak_bytes == 4 * 25 * (7 + 7)  # at Concat: its operands and its result


def test_a_dynamic_batch_is_found_behind_an_operator_without_a_rule() -> None:
    nodes = [graphs.node("Bernoulli", "x", "r"), graphs.node("MatMul", "r w", "y")]
    weights = {"w": graphs.weight(0, 4, 2)}
    proto = graphs.model(nodes, {"x": ["n", 4]}, {"y": ["n", 2]}, weights)
    coupling = graphs.coupled(proto)
    assert coupling.frozen
    cost = cost_model(coupling).cost({})
    assert cost.macs == 4 * 2
    assert cost.peak_bytes == 4 * (4 + 4)


def test_a_static_batch_counts_as_it_is() -> None:
    one, four = (cost_model(graphs.coupled(two_branches(n))).cost({}) for n in (1, 4))
    assert (four.macs, four.peak_bytes) == (4 * one.macs, 4 * one.peak_bytes)
    assert four.params == one.params


def test_the_peak_ends_with_the_last_reader() -> None:
    nodes = [
        graphs.node("Relu", "x", "a"),
        graphs.node("Relu", "a", "b"),
        graphs.node("Relu", "b", "c"),
        graphs.node("Add", "c x", "y"),
    ]
    proto = graphs.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, {})
    assert cost_model(graphs.coupled(proto)).cost({}).peak_bytes == 4 * 4 * 3


def test_a_result_stays_to_the_end() -> None:
    nodes = [graphs.node("Relu", "x", "y"), graphs.node("Concat", "y y y", "z", axis=1)]
    nodes.append(graphs.node("Relu", "z", "w"))
    proto = graphs.model(nodes, {"x": [1, 4]}, {"y": [1, 4], "w": [1, 12]}, {})
    assert cost_model(graphs.coupled(proto)).cost({}).peak_bytes == 4 * (4 + 12 + 12)


def test_a_fixed_size_is_read_before_anything_runs() -> None:
    nodes = [
        graphs.node("Concat", "x x", "a", axis=1),
        graphs.node("Concat", "a a", "b", axis=1),
        graphs.node("Shape", "x", "s"),
        graphs.node("Concat", "one s", "t", axis=0),
        graphs.node("Slice", "b zero t", "y"),
    ]
    weights = {"one": np.array([], np.int64), "zero": np.array([0, 0])}
    proto = graphs.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, weights)
    assert cost_model(graphs.coupled(proto)).cost({}).peak_bytes == 4 * (8 + 16)


def test_what_nothing_reads_is_gone_at_once() -> None:
    nodes = [
        graphs.node("Split", "x", "a unread", axis=1),
        graphs.node("Concat", "a a a", "y", axis=1),
    ]
    proto = graphs.model(nodes, {"x": [1, 8]}, {"y": [1, 12]}, {})
    assert cost_model(graphs.coupled(proto)).cost({}).peak_bytes == 4 * (4 + 12)


def test_what_constants_make_costs_no_macs() -> None:
    nodes = [graphs.node("MatMul", "a b", "w"), graphs.node("MatMul", "x w", "y")]
    weights = {"a": graphs.weight(0, 5, 3), "b": graphs.weight(1, 3, 7)}
    proto = graphs.model(nodes, {"x": [2, 5]}, {"y": [2, 7]}, weights)
    cost = cost_model(graphs.coupled(proto)).cost({})
    assert cost.macs == 2 * 5 * 7
    assert cost.params == 5 * 3 + 3 * 7


def test_what_makes_a_weight_goes_when_that_is_pruned() -> None:
    nodes = [
        graphs.node("Neg", "a", "n"),
        graphs.node("MatMul", "n b", "w"),
        graphs.node("MatMul", "x w", "h"),
        graphs.node("MatMul", "h c", "y"),
    ]
    weights = {
        "a": graphs.weight(0, 3, 5),
        "b": graphs.weight(1, 5, 8),
        "c": graphs.weight(2, 8, 2),
    }
    proto = graphs.model(nodes, {"x": [1, 3]}, {"y": [1, 2]}, weights)
    coupling = graphs.coupled(proto)
    model = cost_model(coupling)
    (group,) = coupling.groups
    assert model.cost({}).params == 3 * 5 + 5 * 8 + 8 * 2
    assert model.cost({group.factor: 6}).params == 3 * 6 + 6 * 2
    small = shrink(coupling, {group.factor: np.arange(8) < 6})
    assert sum(int(np.prod(t.dims)) for t in small.graph.initializer) == 3 * 6 + 6 * 2


def test_a_model_without_groups_or_shapes_has_costs() -> None:
    nodes = [graphs.node("NonZero", "x", "i"), graphs.node("Cast", "i", "y", to=TensorProto.FLOAT)]
    proto = graphs.model(nodes, {"x": [2, 3]}, {"y": ["r", "c"]}, {})
    size = len(proto.SerializeToString())
    assert cost_model(graphs.coupled(proto)).cost({}) == Cost(0, 0, size, 24)


@pytest.mark.parametrize("name", [*SMALL, "torchvision/swin_t.dynamo", "timm/volo_d1_224"])
def test_file_bytes_are_those_of_the_file(name: str) -> None:
    proto = fill.load(name)
    proto.doc_string, proto.graph.doc_string = "é" * 200, ""
    for position, tensor in enumerate(proto.graph.initializer):
        tensor.doc_string = "é" * (position % 3)
    proto.graph.initializer.add(
        name="typed", data_type=TensorProto.FLOAT, dims=[2], float_data=[1, 2]
    )
    assert file_bytes(load(proto)) == len(proto.SerializeToString())


def test_file_bytes_have_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        graphs.convolutions(),
        path,
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    sizes = [(tmp_path / name).stat().st_size for name in ("m.onnx", "m.data")]
    assert file_bytes(load(path)) == sum(sizes)


def test_polynomials_follow_layouts() -> None:
    factors = Factors()
    a, b, c = (factors.fresh(size) for size in (6, 5, 4))
    layouts: list[tuple[Layout, ...]] = [
        (a,),
        (factors.product([a, factors.sum([b, b, c])]), b),
        (factors.sum([factors.product([a, b]), c, c, factors.product([])]),),
        (c, factors.sum([])),
        (factors.product([factors.sum([a, b]), factors.sum([a, b, c])]),),
    ]
    assert isinstance(a, int)
    assert isinstance(b, int)
    unknowns = [a, b]
    table = SizeTable(Polynomials(factors, unknowns), unknowns)
    rows = [table.row(layout) for layout in layouts]
    sizes = table.close(np.array([6.0, 5.0]))
    for kept in (sizes.full, np.array([2.0, 3.0])):
        counts = dict(zip(unknowns, kept.astype(int).tolist(), strict=True))
        products = sizes.at(kept)
        for layout, row in zip(layouts, rows, strict=True):
            assert row is not None
            expected = np.prod([factors.count(axis, counts) for axis in layout])
            assert row[0] * products[row[1]] == expected
        weights = np.arange(1.0, len(products) + 1)
        for column in range(2):
            step = np.eye(2)[column] * 1e-4
            found = (weights @ sizes.at(kept + step) - weights @ sizes.at(kept - step)) / 2e-4
            assert sizes.gradient(kept, weights)[column] == pytest.approx(found, rel=1e-6)
