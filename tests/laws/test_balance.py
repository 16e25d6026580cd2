"""Balanced groups: rows that may keep other channels, and rows that may not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.errors import RunError
from onnxprune.masks import best
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import Plan, keep_of, make_plan
from tests.laws.balanced_nets import NETS, WIDTH
from tests.zoo import support

SEEDS = range(3)
# Networks of which a plan's lists can be read without knowing the layouts: rows lie along an axis.
OTHERS = ("parts and heads on one axis", "three factors on axes of their own")
READ_OFF = [name for name, net in NETS.items() if net.rows and not net.bytes and name not in OTHERS]
TOLERANCE = 1e-5
# Networks and groups that are refused, with the group that the rows would be of.
PLANTED = [
    ("angles for all heads", "wq:1[1]", "wq:1[0]"),
    ("a scale for all heads", "wq:1[1]", "wq:1[0]"),
    ("a computed scale for all heads", "wq:1[1]", "wq:1[0]"),
    ("norms of heads", "wq:1[1]", "wq:1[0]"),
    ("a sum over heads", "wv:1[1]", "wq:1[0]"),
    ("a mean over heads beside the heads", "wq:1[1]", "wq:1[0]"),
    ("a softmax over heads", "wv:1[1]", "wq:1[0]"),
    ("dims outside heads", "w:1[1]", "w:1[0]"),
    ("grouped convolution of integers", "w1:0[1]", "w1:0[0]"),
    # rows of what has rows already: heads whose dims differ
    ("attention", "wq:1[0]", "wq:1[1]"),
    ("grouped convolution", "w1:0[0]", "w1:0[1]"),
]


def structure(name: str) -> Coupling:
    return support.structure(NETS[name].model())


def table(rows: int, size: int, seed: int) -> Mask:
    """Half of the indices in each row, at random."""
    return best(np.random.default_rng(seed).random((rows, size)), (size + 1) // 2)


@pytest.mark.parametrize("name", NETS)
def test_rows_are_found_and_refused(name: str) -> None:
    coupling, net = structure(name), NETS[name]
    assert {g.name: g.rows for g in coupling.groups if g.rows > 1} == net.rows
    said = {g.name: coupling.says(g.same) for g in coupling.groups if g.same is not None}
    assert {
        group: group in said and text in said[group] for group, text in net.refused.items()
    } == (dict.fromkeys(net.refused, True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NETS)
def test_law_2_with_rows_that_differ(name: str, seed: int) -> None:
    coupling = structure(name)
    keep = support.half(coupling, seed)
    assert any(mask.ndim > 1 for mask in keep.values()) == bool(NETS[name].rows)
    verdict = verify(coupling, keep, shrink(coupling, keep), seed=seed)
    assert verdict.failure is None
    assert not verdict.blind
    assert verdict.error <= TOLERANCE


@pytest.mark.parametrize("name", READ_OFF)
def test_the_plan_alone_tells_what_has_no_effect(name: str) -> None:
    """An oracle that knows nothing of factors: all that the plan does not list is set to 0."""
    coupling = structure(name)
    keep = {g.factor: table(g.rows, g.size, 7) for g in coupling.groups if g.rows > 1}
    plan = make_plan(coupling, keep)
    whole = NETS[name].model()
    for tensor in whole.graph.initializer:
        values = np.array(numpy_helper.to_array(tensor))
        for axis, kept in plan.initializers.get(tensor.name, {}).items():
            _zero(values, axis, kept)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    shape = [d.dim_value for d in whole.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    found, expected = (
        runtime.run(runtime.session(proto, None), feeds, ["y"])[0]
        for proto in (shrink(coupling, keep), whole)
    )
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def _zero(values: np.ndarray, axis: int, kept: list[int] | list[list[int]]) -> None:
    """Set to 0 what is not kept: everywhere, or in each row.

    Rows lie along the first other axis that is not what the network reads.
    """
    moved = np.moveaxis(values, axis, -1)
    if isinstance(kept[0], int):
        moved[..., np.setdiff1d(np.arange(moved.shape[-1]), kept)] = 0
        return
    place = 1 if len(moved) == WIDTH else 0
    blocks = np.split(np.moveaxis(moved, place, 0), len(kept))
    for block, own in zip(blocks, kept, strict=True):
        block[..., np.setdiff1d(np.arange(moved.shape[-1]), own)] = 0


@pytest.mark.parametrize("name", NETS)
def test_law_4_a_plan_is_replayed(name: str) -> None:
    coupling = structure(name)
    keep = support.half(coupling, 3)
    plan = make_plan(coupling, keep, "0" * 64)
    read = Plan.model_validate_json(plan.to_json())
    assert read == plan
    again = support.structure(support.original(coupling))
    assert make_plan(again, keep_of(read, again), "0" * 64) == plan
    assert support.identical(shrink(again, keep_of(read, again)), shrink(coupling, keep))


@pytest.mark.parametrize("name", NETS)
def test_law_4_plans_compose(name: str) -> None:
    coupling = structure(name)
    first = support.half(coupling)
    pruned = support.structure(shrink(coupling, first))
    second = support.half(pruned, seed=1)
    heirs = support.heirs(coupling, first, pruned)
    both = support.together(coupling, first, heirs, second)
    twice, once = shrink(pruned, second), shrink(coupling, both)
    assert support.identical(twice, once) or _same(twice, once, coupling)


def _same(one: onnx.ModelProto, other: onnx.ModelProto, coupling: Coupling) -> bool:
    """Whether two models compute the same: shape operands that were restated twice may differ."""
    runs = [support.run(x, coupling.model, coupling.model.outputs) for x in (one, other)]
    return all(
        np.array_equal(a[value], b[value])
        for a, b in zip(*runs, strict=True)
        for value in coupling.model.outputs
    )


@pytest.mark.parametrize(("name", "group", "row"), PLANTED)
def test_planted_rows_die(name: str, group: str, row: str) -> None:
    """What is refused would be wrong: the proof says so, or there is no such model."""
    coupling = structure(name)
    own, of = coupling.group(group), coupling.group(row)
    assert own is not None
    assert of is not None
    assert own.rows == 1
    coupling.factors.rows[own.factor] = of.factor
    for seed in SEEDS:
        keep = {own.factor: table(of.size, own.size, seed)}
        assert not all(np.array_equal(keep[own.factor][0], x) for x in keep[own.factor])
        try:
            verdict = verify(coupling, keep, shrink(coupling, keep))
        except (AssertionError, RunError, ValueError):
            continue
        assert verdict.failure is not None
