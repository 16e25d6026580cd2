"""Plans: JSON, what they keep, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import api, files
from onnxprune.coupling import Coupling
from onnxprune.errors import BadPlanError
from onnxprune.plan import GroupPlan, Plan, keep_of, make_plan, read_plan
from tests import tiny
from tests.zoo.fill import load


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return api.analyse(tiny.net())


@pytest.fixture(scope="module")
def plan(coupling: Coupling) -> Plan:
    generator = np.random.default_rng(0)
    keep = {g.factor: generator.random(g.size) < 0.5 for g in coupling.groups}
    return make_plan(coupling, keep, "0" * 64)


def test_the_json_is_what_the_readme_says_and_comes_back(plan: Plan, tmp_path: Path) -> None:
    data = json.loads(plan.to_json())
    assert data.keys() == {"format", "groups", "initializers", "model"}
    assert data["format"] == 1
    assert data["model"] == {"name": "tiny", "sha256": "0" * 64}
    assert data["groups"]["w1:0"]["size"] == 16
    assert data["initializers"]["w2"].keys() == {"0", "1"}
    assert data["initializers"]["w2"]["1"] == data["groups"]["w1:0"]["keep"]
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert read_plan(path) == plan


def test_only_axes_that_lose_something_are_listed(coupling: Coupling) -> None:
    group = coupling.groups[0]
    assert make_plan(coupling, {group.factor: np.ones(group.size, bool)}).initializers == {}
    mask = np.arange(group.size) > 0
    assert make_plan(coupling, {group.factor: mask}).initializers == {
        "b1": {0: list(range(1, 16))},
        "w1": {0: list(range(1, 16))},
        "w2": {1: list(range(1, 16))},
    }


def test_a_plan_keeps_what_it_was_made_of(coupling: Coupling, plan: Plan) -> None:
    found = keep_of(plan, coupling)
    assert len(found) == len(coupling.groups)
    assert make_plan(coupling, found, "0" * 64) == plan


def _changed(plan: Plan, param: str, axis: int, keep: list[int]) -> Plan:
    return plan.model_copy(update={"initializers": {**plan.initializers, param: {axis: keep}}})


@pytest.mark.parametrize(
    ("param", "axis", "keep", "message"),
    [
        ("w9", 0, [0], "prunes 'w9', which 'tiny' has not got or does not use: it was made for an"),
        ("w1", 7, [0], "'w1', axis 7: the tensor has 4 axes"),
        ("w1", 0, [3, 70], "'w1', axis 0: has 16 channels, the plan keeps index 70"),
        ("w1", 0, [], "'w1', axis 0: has 16 channels, the plan keeps nothing"),
        ("w1", 0, [1, 1], "'w1', axis 0: has 16 channels, the plan keeps index 1"),
        ("w1", 0, [0], "contradicts what the plan keeps elsewhere of 'w1:0'"),
        ("w1", 1, [0], "'w1', axis 1: can't be pruned, because it is an axis of a graph input"),
    ],
)
def test_what_does_not_fit(
    coupling: Coupling, plan: Plan, param: str, axis: int, keep: list[int], message: str
) -> None:
    with pytest.raises(BadPlanError, match=message):
        keep_of(_changed(plan, param, axis, keep), coupling)


def test_indices_that_do_not_follow_the_layout() -> None:
    """Heads and head dims are a product: single entries of it can't go."""
    weight = np.zeros((8, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Reshape", ["h", "s"], ["r"]),
            helper.make_node("ReduceSum", ["r", "a"], ["y"]),
        ],
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weight.T, "w"),
            numpy_helper.from_array(np.array([5, 2, 4]), "s"),
            numpy_helper.from_array(np.array([1, 2]), "a"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    wrong = Plan(initializers={"w": {1: [0, 1, 2, 3, 4]}})
    with pytest.raises(BadPlanError, match=r"do not follow its layout \(w:1\[0\]:2 w:1\[1\]:4\)"):
        keep_of(wrong, api.analyse(model))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no plan: the file: Invalid JSON"),
        ('{"format": 2}', "is no plan: format: Input should be 1"),
        ('{"initializers": {"w": {"0": [-1]}}}', "initializers.w.0.0: Input should be greater"),
        ('{"groops": {}}', "groops: Extra inputs are not permitted"),
    ],
)
def test_files_that_are_no_plan(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(BadPlanError, match=message):
        read_plan(path)
    with pytest.raises(BadPlanError, match="can't be read"):
        read_plan(tmp_path / "none.json")


def _renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
    return model


def test_a_twin_may_rename_quantised_weights_and_lack_some(plan: Plan) -> None:
    twin = api.analyse(_renamed(tiny.net(), {"w1": "w1_quantized", "b1": "gone"}))
    masks = keep_of(plan, twin)
    assert {twin.names()[f]: int(m.sum()) for f, m in masks.items()} == {
        "w1_quantized:0": len(plan.groups["w1:0"].keep),
        "w2:0": len(plan.groups["w2:0"].keep),
    }
    other = api.analyse(_renamed(tiny.net(), dict.fromkeys(["w1", "b1", "w2"], "lost")))
    with pytest.raises(BadPlanError, match="made for another model"):
        keep_of(plan, other)


def test_the_order_of_groups_in_json_is_sorted() -> None:
    made = Plan(groups={n: GroupPlan(size=1, keep=[0]) for n in ("b", "a")})
    assert made.to_json().index('"a"') < made.to_json().index('"b"')


def test_a_merge_seed_is_kept(coupling: Coupling) -> None:
    made = make_plan(coupling, {}, None, merge_seed=3)
    assert Plan.model_validate_json(made.to_json()).merge_seed == 3
    assert "merge_seed" not in make_plan(coupling, {}).to_json()
    assert files.load(tiny.net()).name == "tiny"


def test_a_plan_of_a_flattened_axis_is_replayed() -> None:
    proto = load("others/simplecnn.dynamo")
    small, report = api.prune(proto, ratio=0.3)
    again, _ = api.apply(proto, report.plan)
    assert again.SerializeToString() == small.SerializeToString()
