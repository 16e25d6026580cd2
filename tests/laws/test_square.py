"""Law 1: for every rule and every factor that it lets go, op(prune(x)) == prune(op(x))."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.rules import BUILT_IN, Unprunable
from tests.laws import backend, cases
from tests.laws.cases.build import normal
from tests.laws.effects import POINTERS
from tests.laws.nodes import RUNNERS, Case, by_ort, by_reference
from tests.laws.square import Broken, commute, same

OPERATORS = sorted(BUILT_IN)
SEEDS = (0, 1)

# Operators whose rows let nothing go, so that there is nothing to compare.
NOTHING_TO_PRUNE = {
    "Constant": "it has no operands; values that are tensors never are a node",
    "EyeLike": "its result depends on the size of its operand alone",
    "MaxUnpool": "its operands point into each other: see test_pooling_and_unpooling",
    "Range": "its operands are scalars",
    "Shape": "its result is the size of its operand",
    "Size": "its result is the size of its operand",
}
# Cases of the backend tests that no row can say, with what is said instead.
UNPRUNABLE = {
    "test_attention_4d_causal_padded_kv_bf16": "its mask covers a part of the keys",
    "test_attention_4d_diff_heads_mask4d_padded_kv": "its mask covers a part of the keys",
    "test_attention_4d_padded_kv_bf16": "its mask covers a part of the keys",
    "test_deform_conv_with_multiple_offset_groups": "groups of channels by offsets of their own",
    "test_reshape_allowzero_reordered": "changes the number of elements, or has none",
}


@pytest.mark.parametrize("op", OPERATORS)
def test_the_square_commutes(op: str) -> None:
    own = cases.table().get(op, [])
    compared = sum(commute(case, seed=seed) for case in own for seed in SEEDS)
    assert (compared == 0) == (op in NOTHING_TO_PRUNE)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATORS)
def test_the_square_commutes_on_the_cases_that_onnx_ships(op: str) -> None:
    for case in backend.cases().get(op, []) if op != "Constant" else ():
        reason = UNPRUNABLE.get(case.name)
        if reason is None:
            commute(case)
        else:
            with pytest.raises(Unprunable, match=reason):
                commute(case)


def test_the_cases_that_are_left_out_exist() -> None:
    names = {case.name for found in backend.cases().values() for case in found}
    assert UNPRUNABLE.keys() <= names


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_has_a_case_that_a_runtime_runs(op: str) -> None:
    if op != "Constant":
        assert any(runs(case) for case in cases.table()[op])


def runs(case: Case) -> bool:
    for runner in RUNNERS.values():
        try:
            runner(case.proto)
        except Exception:  # noqa: BLE001  (each runtime has its own ways to refuse)
            continue
        return True
    return False


@pytest.mark.parametrize("op", OPERATORS)
def test_what_carries_nothing_is_a_scalar_or_a_vector_of_sizes(op: str) -> None:
    """``~`` couples nothing, so that it would miss an axis that is pruned elsewhere."""
    if op in ("CastLike", "Shape"):
        return  # they don't read the values of that operand
    for case in cases.table().get(op, []):
        for value, axes in zip(case.operands, case.fit().operands, strict=True):
            assert axes is not None or value is None or value.ndim <= 1


@pytest.mark.parametrize("runner", sorted(RUNNERS))
def test_pooling_and_unpooling(runner: str) -> None:
    """MaxUnpool reads positions that MaxPool counts over all channels: both shrink together."""
    x = normal(3, 5, 6, 6)
    kept = np.array([0, 2, 3])
    full = unpooled(x, runner)
    assert same(full[:, kept], unpooled(x[:, kept], runner))
    assert same(full[1:], unpooled(x[1:], runner))
    assert {"MaxUnpool"} == POINTERS


def unpooled(x: np.ndarray, runner: str) -> np.ndarray:
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["y", "at"], **window),
        helper.make_node("MaxUnpool", ["y", "at"], ["z"], **window),
    ]
    graph = onnx.GraphProto(name="pools")
    graph.node.extend(nodes)
    graph.output.add(name="z")
    graph.initializer.append(numpy_helper.from_array(x, "x"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return (by_ort if runner == "ort" else by_reference)(model)[0]


def test_a_row_that_leaves_sizes_open_is_wrong() -> None:
    case = cases.table()["Slice"][1]
    with pytest.raises(Broken, match="are unknown"):
        commute(case, "a0 x1+a1+y1, ~ -> a0 a1 | [1]=_ x1 | [2]=_ x1+a1")
