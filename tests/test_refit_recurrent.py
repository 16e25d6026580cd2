"""Laws of recovery on recurrent layers: what stayed makes up for what went; the proof holds."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune import runtime
from onnxprune.model import Node
from onnxprune.passes.score.readers import readers
from onnxprune.passes.verify import verify
from onnxprune.recurrent import Recurrent
from onnxprune.refit import SHARED
from tests.graphs import coupled, keeping, model, node, weight
from tests.test_recover import EXACT, batches, missed, recovered

Array = NDArray[Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS, READ, STEPS = 6, 8, 7
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"direction": "reverse"}),
    ("LSTM", {"direction": "bidirectional"}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"direction": "reverse"}),
]


def net(op: str, attributes: dict[str, Any], lengths: bool = False, bias: bool = True) -> Any:
    """x -> MatMul -> recurrent -> MatMul, with a state to begin with."""
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * UNITS
    weights: dict[str, Array] = {
        "m": weight(1, 5, READ),
        "w": weight(2, ways, rows, READ),
        "r": weight(3, ways, rows, UNITS),
        "b": weight(4, ways, 2 * rows) / 4,
        "h": weight(5, ways, 1, UNITS),
        "o": weight(6, UNITS, 4),
    }
    weights["h"] = np.repeat(weights["h"], 3, axis=1)
    if lengths:
        weights["n"] = np.array([STEPS, 4, 2], np.int32)
    inputs = f"a w r {'b' if bias else '-'} {'n' if lengths else '-'} h"
    return model(
        [
            node("MatMul", "x m", "a"),
            node(op, inputs, "s", hidden_size=UNITS, **attributes),
            node("MatMul", "s o", "y"),
        ],
        {"x": [STEPS, 3, 5]},
        {"y": [STEPS, ways, 3, 4]},
        {name: value for name, value in weights.items() if bias or name != "b"},
        opset=14,
    )


def feeds() -> list[dict[str, Array]]:
    return batches(8, STEPS, 3, 5)


def changed(proto: onnx.ModelProto, **values: Array) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            own = values[tensor.name].astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(own, tensor.name))
    return proto


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("op", "attributes"), KINDS)
def test_what_is_read_no_more_is_made_up_for(
    op: str, attributes: dict[str, Any], lengths: bool
) -> None:
    """The last four numbers are mixtures of the first: the weights of these can take over."""
    kept = weight(7, 5, 4)
    proto = changed(
        net(op, attributes, lengths), m=np.concatenate([kept, kept @ weight(8, 4, 4)], axis=1)
    )
    coupling, own = coupled(proto), feeds()
    keep = keeping(coupling, m=range(4))
    found, small, after = recovered(coupling, keep, own)
    assert missed(small, proto, own) > 0.05
    assert missed(after, proto, own) < EXACT
    assert {"w"} <= found.values.keys()
    assert verify(coupling, keep, after, values=found.values).ok


@pytest.mark.parametrize(("op", "attributes"), [kind for kind in KINDS if kind != ("GRU", {})])
def test_units_that_go_are_made_up_for(op: str, attributes: dict[str, Any]) -> None:
    """The second half of the units are copies of the first: these are worth both."""
    half = UNITS // 2
    proto = net(op, attributes)
    given = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}

    def doubled(value: Array, parts: int) -> Array:
        ways, _, *rest = value.shape
        gates = value.reshape(ways, parts, UNITS, *rest)[:, :, :half]
        return np.concatenate([gates, gates], axis=2).reshape(value.shape)

    halves = given["h"][..., :half]
    changed(
        proto,
        w=doubled(given["w"], GATES[op]),
        r=doubled(given["r"], GATES[op]),
        b=doubled(given["b"], 2 * GATES[op]),
        h=np.concatenate([halves, halves], axis=-1),
    )
    coupling, own = coupled(proto), feeds()
    keep = keeping(coupling, w=range(half))
    found, small, after = recovered(coupling, keep, own)
    assert missed(small, proto, own) > 0.05
    assert missed(after, proto, own) < EXACT
    assert {"r", "o"} <= found.values.keys()
    assert verify(coupling, keep, after, values=found.values).ok


@pytest.mark.parametrize(("op", "attributes"), KINDS)
def test_random_cuts_come_nearer(op: str, attributes: dict[str, Any]) -> None:
    """Of layers whose channels are all different, on samples that no fit has seen."""
    proto = net(op, attributes, bias=False)
    coupling, own = coupled(proto), feeds()
    keep = keeping(coupling, m=range(0, READ, 2))
    _, small, after = recovered(coupling, keep, own)
    others = [{"x": one["x"][..., ::-1].copy()} for one in feeds()]
    assert missed(after, proto, others) < missed(small, proto, others)


def test_a_layer_that_can_not_change_says_why() -> None:
    proto = net("LSTM", {})
    proto.graph.node.append(node("LSTM", "a w r b - h", "t", hidden_size=UNITS))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("t", TensorProto.FLOAT, [STEPS, 1, 3, UNITS])
    )
    coupling = coupled(proto)
    found, _, _ = recovered(coupling, keeping(coupling, m=range(4)), feeds())
    told = {layer.node: layer.reason for layer in found.layers}
    assert [reason for name, reason in told.items() if "LSTM" in name] == [SHARED, SHARED], told


def test_the_states_before_each_step() -> None:
    """Backwards a state comes from the next step; the first one stands at the sequence's end."""
    y = np.arange(2 * 2 * 3 * 1, dtype=np.float32).reshape(3, 2, 2, 1)
    start = -np.ones((2, 2, 1), np.float32)
    operands: list[Array | None] = [None] * 8
    operands[4], operands[5] = np.array([3, 2]), start
    proto = node("LSTM", "x w r", "y", direction="bidirectional")
    layer = Recurrent(Node(0, "LSTM", ("x", "w", "r"), ("y",), proto), False)
    before = layer.states(y, operands)
    assert before[0, :, 0, 0].tolist() == [-1, y[0, 0, 0, 0], y[1, 0, 0, 0]]
    assert before[1, :, 0, 0].tolist() == [y[1, 1, 0, 0], y[2, 1, 0, 0], -1]
    assert before[1, 0, 1, 0] == y[1, 1, 1, 0]
    assert before[1, 1, 1, 0] == -1, "the second sequence ends after two steps"


def test_scores_see_what_comes_in_and_the_states() -> None:
    """Both products are readers; moments of the states are those that the layer goes through."""
    proto = net("GRU", {"direction": "bidirectional", "linear_before_reset": 1})
    coupling, own = coupled(proto), feeds()
    by_name = {group.name.partition(":")[0]: group.factor for group in coupling.groups}
    comes_in, states, _ = readers(coupling, own)
    assert [list(reader.places) for reader in (comes_in, states)] == [
        [by_name["m"]],
        [by_name["w"]],
    ]
    assert comes_in.total == states.total > 0
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(
        onnx.helper.make_tensor_value_info("s", TensorProto.FLOAT, [STEPS, 2, 3, UNITS])
    )
    given = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    session = runtime.session(shown, None)
    seen = [[], []]  # type: list[list[Array]]
    for one in own:
        (after,) = runtime.run(session, one, ["s"])
        first = given["h"]
        seen[0] += [first[0], *after[:-1, 0]]
        seen[1] += [first[1], *after[1:, 1]]
    assert states.seen.covariance is not None
    for way, rows in enumerate(seen):
        expected = np.cov(np.concatenate(rows).T, bias=True)
        assert np.abs(states.seen.covariance[0][way] - expected).max() < EXACT
