"""Tables of kept indices: how they combine, what they come from, how they are scored and chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import pipeline, runtime
from onnxprune.axes import Factors, Mask, Values
from onnxprune.choosing import _fits
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import BadPlanError
from onnxprune.explaining import explanation, inspection
from onnxprune.masks import best, composed, crossed, filled, kept_count, ranked
from onnxprune.model import Array
from onnxprune.passes.score import BY_ROW, DATA_DRIVEN, score
from onnxprune.passes.score.slices import cells
from onnxprune.passes.select import Budget, Options, select
from onnxprune.plan import Plan, keep_of
from onnxprune.tables import settled, solve
from tests.laws.balanced_nets import NETS, H
from tests.laws.test_balance import structure, table
from tests.zoo import support

CLOSE = 1e-5
SIZES = st.integers(2, 5)


def feeds_of(coupling: Coupling, count: int = 3) -> list[dict[str, Array]]:
    shape = coupling.model.shape("x") or ()
    sizes = [size or 2 for size in shape]
    return [
        {"x": np.random.default_rng(k).standard_normal(sizes).astype(np.float32)}
        for k in range(count)
    ]


@given(SIZES, SIZES, SIZES, st.integers(0, 99))
def test_the_mask_of_a_product_with_a_table(rows: int, size: int, other: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    own = table(rows, size, seed)
    h, e = generator.random(rows) < 0.5, generator.random(other) < 0.5
    for order in ("hde", "hed", "ehd", "deh", "dhe"):
        parts = {"h": h, "d": own, "e": e}
        row = order.index("h")
        found = crossed([parts[x] for x in order], [row if x == "d" else None for x in order])
        wanted = np.einsum(f"h,hd,e->{order}", h, own, e).astype(bool)
        np.testing.assert_array_equal(found, wanted.reshape(-1))


@given(SIZES, st.integers(2, 6), st.integers(0, 99))
def test_two_choices_one_after_the_other(rows: int, size: int, seed: int) -> None:
    """What is kept of all is what is picked from what is picked."""
    generator = np.random.default_rng(seed)
    there = generator.random(rows) < 0.7
    there[0] = True
    numbers = np.arange(rows * size).reshape(rows, size)
    for first in (table(rows, size, seed), best(generator.random(size), (size + 1) // 2)):
        left = kept_count(first)
        for second in (table(int(there.sum()), left, seed + 1), best(generator.random(left), 1)):
            both = composed(first, second, there)
            wide = np.broadcast_to(first, (rows, size))
            step = numbers[wide].reshape(rows, left)[there]
            wanted = step[np.broadcast_to(second, step.shape)]
            found = numbers[np.broadcast_to(both, (rows, size)) & there[:, None]]
            assert found.tolist() == wanted.tolist()
            assert set(np.broadcast_to(both, (rows, size)).sum(axis=1)) == {kept_count(second)}


@given(SIZES, st.integers(3, 6), st.integers(0, 99))
def test_a_mask_is_solved_for_its_table(rows: int, size: int, seed: int) -> None:
    factors = Factors()
    h, d, e = (factors.fresh(n) for n in (rows, size, 2))
    assert isinstance(h, int) and isinstance(d, int)  # noqa: PT018  (for mypy)
    factors.rows[d] = h
    heads = np.random.default_rng(seed).random(rows) < 0.6
    heads[seed % rows] = True
    keep = settled(factors, {h: heads, d: table(rows, size, seed)})
    for layout in (
        factors.product([h, d]),
        factors.product([e, h, d]),
        factors.sum([factors.product([h, d]), factors.fresh(3), factors.product([h, d])]),
    ):
        solved = solve(factors, layout, factors.mask(layout, keep))
        assert solved is not None
        for factor, mask in keep.items():
            np.testing.assert_array_equal(solved[factor], mask)


def test_rows_of_different_lengths_are_no_table() -> None:
    assert filled(np.array([[True, True, False], [True, False, False]])) is None
    factors = Factors()
    h, d = factors.fresh(2), factors.fresh(3)
    assert isinstance(h, int) and isinstance(d, int)  # noqa: PT018
    mask = np.array([True, True, False, False, False, True])
    factors.rows[d] = h
    assert solve(factors, factors.product([h, d]), mask) is None


def test_equal_choices_are_equal_tables() -> None:
    """A row that is gone says nothing; where all others agree, rows need not be told apart."""
    one = np.array([[True, False, True], [False, False, False], [True, False, True]])
    found = filled(one)
    assert found is not None
    assert found.tolist() == [True, False, True]
    one[2] = [False, True, True]
    found = filled(one)
    assert found is not None
    assert found.tolist() == [[True, False, True], [True, True, False], [False, True, True]]


SCORED = ["grouped convolution", "attention", "packed attention", "Einsum", "ResNeXt"]


@pytest.mark.parametrize(
    ("criterion", "power"), [("l1", 1), ("l2", 2), ("activation", 2), ("flap", 2), ("wanda", 2)]
)
@pytest.mark.parametrize("name", SCORED)
def test_rows_add_up_to_what_the_group_scores(name: str, criterion: str, power: int) -> None:
    coupling = structure(name)
    feeds = feeds_of(coupling) if criterion in DATA_DRIVEN else None
    own, plain = (
        score(coupling, criterion, feeds=feeds, balanced=balanced) for balanced in (True, False)
    )
    for group in (g for g in coupling.groups if g.rows > 1):
        assert own[group.factor].shape == (group.rows, group.size)
        found, wanted = (own[group.factor] ** power).mean(axis=0), plain[group.factor] ** power
        if criterion in DATA_DRIVEN:
            np.testing.assert_allclose(found, wanted, rtol=CLOSE)
        np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), rtol=CLOSE)
    assert {g.factor for g in coupling.groups if own[g.factor].ndim > 1} == {
        g.factor for g in coupling.groups if g.rows > 1
    }


@pytest.mark.parametrize("criterion", sorted(BY_ROW))
@pytest.mark.parametrize("name", SCORED)
def test_rows_keep_at_least_as_much(name: str, criterion: str) -> None:
    """The best of each row beat any set of positions that is the same in all rows."""
    coupling = structure(name)
    feeds = feeds_of(coupling) if criterion in DATA_DRIVEN else None
    scores = score(coupling, criterion, feeds=feeds)
    keep = select(coupling, scores, Budget(ratio=0.5), Options(align=1)).keep
    for group in (g for g in coupling.groups if g.rows > 1):
        squares = np.square(scores[group.factor])
        assert np.isfinite(squares).all()
        assert (squares > 0).all()
        there = keep.get(coupling.factors.rows[group.factor], np.ones(group.rows, bool))
        own = np.broadcast_to(keep[group.factor], squares.shape)[there]
        same = best(squares[there].sum(axis=0), kept_count(keep[group.factor]))
        kept, least = (float((squares[there] * mask).sum()) for mask in (own, same))
        assert kept >= least * (1 - CLOSE)


@pytest.mark.parametrize("criterion", ["obs", "wanda"])
def test_rows_go_in_the_order_of_each_group_by_itself(criterion: str) -> None:
    """The groups of a convolution share nothing: each is a network of its own."""
    name = "grouped convolution"
    coupling, feeds = structure(name), feeds_of(structure(name), 6)
    (group,) = (g for g in coupling.groups if g.name == "w1:0[1]")
    found = score(coupling, criterion, feeds=feeds)[group.factor]
    for row in range(3):
        alone = support.structure(_one_group(NETS[name].model(), row))
        (own,) = (g for g in alone.groups if g.name == "w1:0")
        expected = score(alone, criterion, feeds=feeds)[own.factor]
        assert np.argsort(found[row]).tolist() == np.argsort(expected).tolist()


def _one_group(proto: onnx.ModelProto, row: int) -> onnx.ModelProto:
    """The grouped convolution with one of its groups."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    made, inner = slice(4 * row, 4 * row + 4), slice(5 * row, 5 * row + 5)
    for name in ("w1", "b1"):
        values[name] = values[name][made]
    for name in ("w2", "b2"):
        values[name] = values[name][inner]
    values["w3"] = values["w3"][:, inner]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    del next(node for node in proto.graph.node if node.output[0] == "c").attribute[:]
    return proto


def test_obs_of_heads_is_that_of_single_entries() -> None:
    """What an entry of a head costs at first is what it costs where no heads are known."""
    net = NETS["attention"].model()
    coupling = support.structure(net)
    feeds = feeds_of(coupling, 6)
    (group,) = (g for g in coupling.groups if g.name == "wv:1[1]")
    found = score(coupling, "obs", feeds=feeds)[group.factor]
    assert found.shape == (H, group.size)
    wo = coupling.model.params["wo"].read().astype(np.float64)
    read = _values(net, "j", feeds).reshape(-1, len(wo)).astype(np.float64)
    gram = np.cov(read.T, bias=True)
    gram += np.eye(len(wo)) * 1e-3 * np.square(read).mean()
    each = np.square(wo).sum(axis=1) / np.diag(np.linalg.inv(gram))
    first = each.reshape(H, -1).argmin(axis=1)
    assert found.argmin(axis=1).tolist() == first.tolist()


def _values(proto: onnx.ModelProto, name: str, feeds: list[dict[str, Array]]) -> Array:
    """What a network computes at a value."""
    telling = onnx.ModelProto()
    telling.CopyFrom(proto)
    telling.graph.output.add(name=name)
    session = runtime.session(telling, None)
    return np.concatenate([runtime.run(session, feed, [name])[0] for feed in feeds])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["grouped convolution", "attention", "Einsum"])
def test_a_file_from_end_to_end(name: str, steps: int, tmp_path: Path) -> None:
    """Pruned, recovered, proved, and replayed by the plan on the same file and on an fp16 twin."""
    net = NETS[name].model()
    feeds = feeds_of(support.structure(net), 8)
    inputs = {"x": np.concatenate([feed["x"] for feed in feeds])}
    small, report = onnxprune.prune(
        net,
        ratio=0.5,
        steps=steps,
        calibration=inputs,
        criterion="obs",
        align=1,
        min_channels=2,  # one row alone would be no table
    )
    assert report.verification is not None
    assert any(isinstance(g.keep[0], list) for g in report.plan.groups.values())
    assert {g.name: g.rows for g in report.groups if g.rows > 1} == NETS[name].rows
    path = tmp_path / "plan.json"
    path.write_text(report.plan.to_json())
    again, other = onnxprune.apply(net, str(path))
    shapes = [{t.name: list(t.dims) for t in m.graph.initializer} for m in (small, again)]
    assert shapes[0] == shapes[1]
    twin, proved = onnxprune.apply(_half(net), str(path))
    assert proved.verification is not None
    assert {t.name: list(t.dims) for t in twin.graph.initializer} == shapes[0]
    assert other.after.macs == report.after.macs


def _half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network in float16."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*twin.graph.input, *twin.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return twin


def test_without_it_all_rows_keep_the_same() -> None:
    _, report = onnxprune.prune(NETS["attention"].model(), ratio=0.5, balanced=False)
    assert all(isinstance(g.keep[0], int) for g in report.plan.groups.values())


def test_it_is_told() -> None:
    coupling = structure("attention")
    assert "each index of 'wq:1[0]' may keep channels of its own" in explanation(
        coupling, "wq:1[1]"
    )
    assert {row.name: row.rows for row in inspection(coupling).groups if row.rows > 1} == {
        "wq:1[1]": H,
        "wv:1[1]": H,
    }
    refused = explanation(structure("a scale for all heads"), "wq:1[1]")
    assert "the same channels in every row: 'dims' holds it without these rows" in refused


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([[0, 1], [0, 1], [0]], "'w2', axis 1: the plan keeps more indices in one row than in an"),
        ([[0, 1], [0, 4], [0, 1]], "'w2', axis 1: has 4 channels, the plan keeps index 4"),
        ([[0, 1], [0, 2]], "'w2', axis 1: the kept indices do not follow its layout"),
        ([[0, 1], [0, 2], [0, 3]], "'w2', axis 1: contradicts what the plan keeps elsewhere of"),
    ],
)
def test_plans_that_do_not_fit(listed: list[list[int]], message: str) -> None:
    coupling = structure("grouped convolution")
    plan = Plan(initializers={"w1": {0: [0, 1, 4, 5, 8, 11]}, "w2": {1: listed}})
    with pytest.raises(BadPlanError, match=message):
        keep_of(plan, coupling)


def test_a_plan_lists_the_rows_of_an_axis_that_is_a_factor() -> None:
    coupling = structure("grouped convolution")
    plan = Plan(initializers={"w1": {0: [0, 1, 4, 6, 8, 11]}, "w2": {1: [[0, 1], [0, 2], [0, 3]]}})
    (mask,) = keep_of(plan, coupling).values()
    assert [np.flatnonzero(row).tolist() for row in mask] == [[0, 1], [0, 2], [0, 3]]


def test_a_result_without_rows_sums_over_them() -> None:
    net = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
        g (float[2,5,16] x) => (float[2,5,3] y, float[2,5] z) {
            p = MatMul(x, w) r = Reshape(p, split) s, z = my.Op(r) y = MatMul(s, wo)
        }"""
    )
    for name, array in {
        "w": np.ones((16, 24), np.float32),
        "wo": np.ones((4, 3), np.float32),
        "split": np.array([2, 5, 4, 6]),
    }.items():
        net.graph.initializer.append(numpy_helper.from_array(array, name))
    net.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 5, 4]))
    rows = {}
    for line in ("b s h d -> b s h, b s", "b s h d -> b s h, ~"):
        coupling = onnxprune.api.analyse(net, {"my::Op": line})
        (group,) = (g for g in coupling.groups if g.size == 6)
        rows[line] = group.rows, group.same and group.same.text
    assert rows == {
        "b s h d -> b s h, b s": (1, "it combines the rows"),
        "b s h d -> b s h, ~": (1, "it combines the rows"),
    }


def test_what_leaves_the_graph_has_no_rows() -> None:
    net = NETS["attention"].model()
    net.graph.output.add(name="v").type.tensor_type.elem_type = TensorProto.FLOAT
    coupling = pipeline.analyse(net, {}, None, ("v",))
    assert {g.name for g in coupling.groups if g.rows > 1} == {"wq:1[1]"}
    group = coupling.group("wv:1[1]")
    assert group is not None
    assert group.same is not None
    assert group.same.text == "'v' enters or leaves the graph"


def test_cells_of_rows_that_lie_inside_of_another_axis() -> None:
    coupling = structure("parts and heads on one axis")
    (group,) = (g for g in coupling.groups if g.rows > 1)
    array = np.arange(8 * 6).reshape(8, 6)
    found = cells(coupling.factors, coupling.layouts["b"], 1, array, group.factor)
    assert found.tolist() == array.reshape(2, 4, 6).transpose(1, 2, 0).tolist()


@pytest.mark.parametrize(("rows", "left", "fits"), [(3, 3, True), (3, 2, False), (2, 3, False)])
def test_a_step_may_find_other_rows(rows: int, left: int, fits: bool) -> None:
    own = Group("g", 0, 4, False, (), rows)
    assert _fits(np.ones((rows, 4), bool), own, np.arange(5) < left) == fits
    assert _fits(np.ones(4, bool), own, np.arange(5) < left)


def test_scores_of_ranks() -> None:
    one: Values = np.array([[3.0, 0.0, 4.0], [1.0, 2.0, 0.0]])
    np.testing.assert_allclose(ranked(one), np.sqrt([10.0, 5.0, 0.0]))
    kept: Mask = best(one, 1)
    assert kept.tolist() == [[False, False, True], [False, True, False]]
