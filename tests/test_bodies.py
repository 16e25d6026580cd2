"""Bodies of control flow in which something is known: what a step gives, and which way an If goes.

Each pruned model is held against the original with zeros in the weights that read what is removed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune.passes.shrink import shrink
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


def counting(initial: str) -> onnx.ModelProto:
    """x (3, 4) -> 8 wide, repeated as often as a loop runs that gives the number 3 each time."""
    step = [
        node("Identity", "c_in", "c_out"),
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "k"),
    ]
    state = [("i_in", INT, [])] if initial else []
    if state:
        step.append(node("Identity", "i_in", "i_out"))
    body = graph(
        step,
        [("c_out", BOOL), *(("i_out", INT) for _ in state), ("k", INT)],
        [("i", INT, []), ("c_in", BOOL, []), *state],
    )
    proto = model(
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
    return proto


@pytest.mark.parametrize("initial", ["", "three"])
def test_what_each_step_gives_is_not_what_the_loop_gives(initial: str) -> None:
    proto = counting(initial)
    coupling = coupled(proto)
    assert coupling.model.constant("k") is not None
    assert coupling.model.constant("ks") is None
    small, silent = small_and_silent(proto)
    for steps in (1, 4):
        assert agree(small, silent, {"x": X, "n": np.array(steps)})
