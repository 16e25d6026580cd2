"""Bodies of control flow in which something is known: what a step gives, and which way an If goes.

Each pruned model is held against the original with zeros in the weights that read what is removed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.cost import cost_model
from onnxprune.coupling import Coupling
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, halves, model, node, weight
from tests.test_control import BOOL, EXACT, FLOAT, INT, graph, outputs, silenced

Array = NDArray[Any]
X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def small_and_silent(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Half of every group removed, and the same silenced."""
    coupling = coupled(proto)
    keep = halves(coupling)
    return shrink(coupling, keep), silenced(proto, coupling, keep)


def agree(small: onnx.ModelProto, silent: onnx.ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Whether both compute the same, which is not nothing."""
    pairs = zip(outputs(small, feeds), outputs(silent, feeds), strict=True)
    return all(
        a.shape == b.shape and np.abs(a - b).max() <= EXACT * np.abs(b).max() and np.ptp(b) > 0.1
        for a, b in pairs
    )


def bodies(coupling: Coupling) -> dict[str, int]:
    """How many bodies of each If are looked into."""
    return {own.key: len(own.bodies) for own in coupling.model.every if "If" in own.op}


def counting(initial: str) -> onnx.ModelProto:
    """x (3, 4) -> 8 wide, repeated as often as a loop runs that gives the number 3 each time."""
    step = [
        node("Identity", "c_in", "c_out"),
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "k"),
    ]
    state: list[tuple[str, int, list[int]]] = [("i_in", INT, [])] if initial else []
    if state:
        step.append(node("Identity", "i_in", "i_out"))
    body = graph(
        step,
        [("c_out", BOOL), *(("i_out", INT) for _ in state), ("k", INT)],
        [("i", INT, []), ("c_in", BOOL, []), *state],
    )
    return model(
        [
            node("Loop", f"n true {initial}".strip(), f"{'last ' * len(state)}ks", body=body),
            node("ReduceSum", "ks", "total", keepdims=0),
            node("Div", "total three", "steps"),
            node("Unsqueeze", "steps zero", "lead"),
            node("Concat", "lead rest", "target", axis=0),
            node("MatMul", "x w1", "h"),
            node("Expand", "h target", "he"),
            node("ReduceSum", "he zero", "hs", keepdims=0),
            node("MatMul", "hs w2", "y"),
        ],
        {"x": [3, 4], "n": []},
        {"y": [3, 3]},
        {
            "w1": weight(1, 4, 8),
            "w2": weight(2, 8, 3),
            "true": np.array(True),
            "three": np.array(3),
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([3, 8]),
        },
        n=INT,
    )


@pytest.mark.parametrize("initial", ["", "three"])
def test_what_each_step_gives_is_not_what_the_loop_gives(initial: str) -> None:
    proto = counting(initial)
    coupling = coupled(proto)
    assert coupling.model.constant("k") is not None
    assert coupling.model.constant("ks") is None
    small, silent = small_and_silent(proto)
    for steps in (1, 4):
        assert agree(small, silent, {"x": X, "n": np.array(steps)})


def choosing(condition: list[onnx.NodeProto], width: int | str = 3) -> onnx.ModelProto:
    """x (n, 4) -> an If of two layers, 8 wide -> 3; nodes make the condition ``c``."""
    sides = {}
    for seed, side in enumerate(("then", "else")):
        own: dict[str, Any] = {f"w_{side}": weight(seed, 4, 8)}
        layer = node("MatMul", f"x w_{side}", f"h_{side}")
        sides[f"{side}_branch"] = graph([layer], [(f"h_{side}", FLOAT)], **own)
    return model(
        [*condition, node("If", "c", "m", **sides), node("MatMul", "m w2", "y")],
        {"x": [width, 4]},
        {"y": [width, 3]},
        {
            "w2": weight(6, 8, 3),
            "zero": np.array(0),
            "one": np.array(1),
            "d": np.array(True),
        },
    )


@pytest.mark.parametrize(("listed", "version"), [(True, 8), (True, 3), (False, 8)])
def test_a_condition_that_a_caller_may_give_is_not_known(listed: bool, version: int) -> None:
    proto = choosing([node("Not", "d", "c")])
    proto.ir_version = version
    if listed:
        for tensor in proto.graph.initializer:
            proto.graph.input.add().CopyFrom(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    free = listed and version >= 4
    assert bodies(coupled(proto)) == {"m": 2 if free else 1}
    if free:
        small, silent = small_and_silent(proto)
        for feeds in ({}, {"d": np.array(True)}, {"d": np.array(False)}):
            assert agree(small, silent, {"x": X, **feeds})


@pytest.mark.parametrize("width", ["n", 3])
def test_a_condition_that_another_branch_computes_of_a_size_is_not_known(width: int | str) -> None:
    sizes = [node("Shape", "x", "s"), node("Gather", "s zero", "rows")]
    inner = graph([*sizes, node("Equal", "rows one", "single")], [("single", BOOL)])
    other = graph([node("Identity", "d", "same")], [("same", BOOL)])
    proto = choosing([node("If", "d", "c", then_branch=inner, else_branch=other)], width)
    coupling = coupled(proto)
    assert bodies(coupling) == {"c": 1, "m": 2 if width == "n" else 1}
    keep = halves(coupling)
    assert verify(coupling, keep, shrink(coupling, keep)).ok
    small, silent = small_and_silent(proto)
    for rows in (1, 2, 3) if width == "n" else (3,):
        assert agree(small, silent, {"x": X[:rows]})


def drawing(kind: str) -> list[onnx.NodeProto]:
    """Nodes that make ``r`` (8, 8) of the stored ``k``: other values in each run."""
    if kind == "Dropout":
        return [node("Dropout", "k half d", "r")]
    if kind == "RandomNormalLike":
        return [node("RandomNormalLike", "k", "r")]
    inner = [node("Identity", "c_in", "c_out"), node("Bernoulli", "s_in", "s_out")]
    body = graph(
        inner,
        [("c_out", BOOL), ("s_out", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("s_in", FLOAT, [8, 8])],
    )
    return [node("Loop", "one d k", "r", body=body)]


def noisy(kind: str, output: bool) -> onnx.ModelProto:
    """x (3, 4) -> 8 -> times what is drawn -> 3; or what is drawn is added to an output."""
    ends = [node("MatMul", "g w2", "y")]
    if output:
        ends = [node("MatMul", "h w2", "u"), node("ReduceSum", "g", "v"), node("Add", "u v", "y")]
    layers = [node("MatMul", "x w1", "h"), node("MatMul", "x_wide r", "g")]
    if not output:
        layers[1].input[0] = "h"
    return model(
        [*drawing(kind), *layers, *ends],
        {"x": [3, 4], **({"x_wide": [3, 8]} if output else {})},
        {"y": [3, 3]},
        {
            "k": weight(1, 8, 8) % 1,
            "w1": weight(2, 4, 8),
            "w2": weight(3, 8, 3),
            "d": np.array(True),
            "one": np.array(1),
            "half": np.array(0.5, np.float32),
        },
    )


DRAWING = ("Dropout", "Loop", "RandomNormalLike")


@pytest.mark.parametrize("kind", DRAWING)
def test_what_is_drawn_is_no_constant(kind: str) -> None:
    coupling = coupled(noisy(kind, output=False))
    assert "r" not in coupling.model.params
    assert any("r" in own.outputs for own in coupling.model.nodes)
    assert cost_model(coupling).work.elements["r"][0] > 0
    small = shrink(coupling, halves(coupling))
    session = runtime.session(small, None)
    first, other = (runtime.run(session, {"x": X}, ["y"])[0] for _ in range(2))
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("kind", DRAWING)
def test_a_refusal_tells_that_the_model_draws(kind: str) -> None:
    coupling = coupled(noisy(kind, output=True))
    keep = halves(coupling)
    small = shrink(coupling, keep)
    wrong = next(t for t in small.graph.initializer if t.name == "w2")
    wrong.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(wrong), "w2"))
    found = verify(coupling, keep, small)
    assert found.failure
    told = f"; node 'n_r' ({kind}) draws random numbers, so that runs may differ by themselves"
    assert found.failure.endswith(told)
