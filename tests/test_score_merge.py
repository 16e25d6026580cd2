"""Channels that repeat each other are found, scored low, and merged without a loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.data import random_inputs
from onnxprune.passes.score import merge_weights, merges, score
from onnxprune.passes.score.slices import rows
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, model, node, weight
from tests.zoo.fill import load

Array = NDArray[Any]
Weights = dict[str, Array]
SAME = (1.0, 1.0, 1.0, 1.0)
SCALED = (1.0, 0.5, 2.0, 0.25)


def copied(values: Array, axis: int = 0, ratios: Sequence[float] = SAME) -> Array:
    """The first slices once more behind the others, times a ratio each."""
    times = np.asarray(ratios, values.dtype).reshape(
        [-1 if k == axis else 1 for k in range(values.ndim)]
    )
    return np.concatenate([values, np.take(values, range(len(ratios)), axis) * times], axis)


def convolutional(activation: str = "Relu", ratios: Sequence[float] = SAME) -> onnx.ModelProto:
    """Conv 8 + 4 -> BatchNorm -> act -> depthwise -> + bias -> act -> pool -> Flatten -> Gemm."""
    return model(
        [
            node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c1 scale shift mean variance", "n1"),
            node(activation, "n1", "a1"),
            node("Conv", "a1 w2", "c2", group=12, pads=[1, 1, 1, 1]),
            node("Add", "c2 b2", "s2"),
            node(activation, "s2", "a2"),
            node("MaxPool", "a2", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", "p", "f"),
            node("Gemm", "f w3 b3", "y"),
        ],
        {"x": ["n", 3, 6, 6]},
        {"y": ["n", 5]},
        {
            "w1": copied(weight(0, 8, 3, 3, 3), 0, ratios),
            "b1": copied(weight(1, 8), 0, ratios),
            "scale": copied(weight(2, 8)),
            "shift": copied(weight(3, 8), 0, ratios),
            "mean": copied(weight(4, 8), 0, ratios),
            "variance": copied(np.abs(weight(5, 8)) + np.float32(0.5)),
            "w2": copied(weight(6, 8, 1, 3, 3)),
            "b2": copied(weight(9, 8, 1, 1), 0, ratios),
            "w3": weight(7, 12 * 9, 5),
            "b3": weight(8, 5),
        },
    )


def gated(ratios: Sequence[float] = SCALED) -> onnx.ModelProto:
    """MatMul 8 + 4, times a gate of its own, over 2 -> MatMul; one operand of a concatenation."""
    return model(
        [
            node("MatMul", "x up", "u"),
            node("MatMul", "x gate", "g"),
            node("Sigmoid", "g", "s"),
            node("Mul", "u s", "m"),
            node("Mul", "m half", "h"),
            node("Concat", "h x", "c", axis=-1),
            node("MatMul", "c down", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 6]},
        {
            "up": copied(weight(0, 6, 8), 1, ratios),
            "gate": copied(weight(1, 6, 8), 1),
            "half": np.array(0.5, np.float32),
            "down": weight(2, 18, 6),
        },
    )


def attention() -> onnx.ModelProto:
    """x (2, 5, 8): 4 + 4 heads of 3; whole heads repeat each other."""
    heads = {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}
    nodes = []
    for name, perm in heads.items():
        nodes += [
            node("MatMul", f"x w{name}", f"{name}0"),
            node("Reshape", f"{name}0 split", f"{name}1"),
            node("Transpose", f"{name}1", f"{name}2", perm=list(perm)),
        ]
    nodes += [
        node("MatMul", "q2 k2", "scores"),
        node("Softmax", "scores", "p"),
        node("MatMul", "p v2", "o0"),
        node("Transpose", "o0", "o1", perm=[0, 2, 1, 3]),
        node("Reshape", "o1 join", "o2"),
        node("MatMul", "o2 wo", "y"),
    ]
    weights = {
        f"w{name}": copied(weight(k, 8, 4, 3), 1).reshape(8, 24) for k, name in enumerate(heads)
    }
    sizes = {"split": np.array([2, 5, 8, 3]), "join": np.array([2, 5, 24])}
    return model(
        nodes, {"x": [2, 5, 8]}, {"y": [2, 5, 8]}, {**weights, **sizes, "wo": weight(9, 24, 8)}
    )


def recurrent() -> onnx.ModelProto:
    """x (5, n, 3) -> LSTM 4 + 4 -> all states -> 2; it reads what it makes."""

    def gates(seed: int, *inner: int) -> Array:
        return copied(weight(seed, 4, 4, *inner), 1).reshape(1, 32, *inner)

    return model(
        [
            node("LSTM", "x w r b", "s hidden", hidden_size=8),
            node("Squeeze", "hidden zero", "h"),
            node("MatMul", "h w1", "y"),
        ],
        {"x": [5, "n", 3]},
        {"y": ["n", 2]},
        {
            "w": gates(0, 3),
            "r": gates(1, 8),
            "b": np.concatenate([gates(2), gates(3)], axis=1),
            "zero": np.array([0]),
            "w1": weight(4, 8, 2),
        },
    )


def grouped() -> onnx.ModelProto:
    """Conv (2 groups of 4 + 4) -> Relu -> Conv in 2 groups: the same copies in both groups."""
    return model(
        [
            node("Conv", "x w1", "c1"),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2", "y", group=2, pads=[1, 1, 1, 1]),
        ],
        {"x": ["n", 3, 6, 6]},
        {"y": ["n", 4, 6, 6]},
        {
            "w1": copied(weight(0, 2, 4, 3, 1, 1), 1, SCALED).reshape(16, 3, 1, 1),
            "w2": weight(1, 4, 8, 3, 3),
        },
    )


def residual_copies() -> onnx.ModelProto:
    """A normalised stream of 8 + 4 channels."""
    return model(
        [
            node("MatMul", "x w0", "h"),
            node("LayerNormalization", "h scale", "l"),
            node("MatMul", "l w1", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {
            "w0": copied(weight(0, 3, 8), 1),
            "scale": copied(weight(1, 8)),
            "w1": weight(2, 12, 2),
        },
    )


def outputs(proto: onnx.ModelProto, like: Coupling) -> Array:
    feeds = random_inputs(like.model, 0)
    return np.asarray(runtime.session(proto, None).run(None, feeds)[0])


def error(coupling: Coupling, other: onnx.ModelProto) -> float:
    """The largest difference of another model's output, relative to the largest value."""
    expected = outputs(coupling.model.proto, coupling)
    return float(np.abs(outputs(other, coupling) - expected).max() / np.abs(expected).max())


def best(coupling: Coupling, param: str, count: int) -> dict[int, Mask]:
    """The best indices of the group that this parameter gives its name to, by redundancy."""
    scores = score(coupling, "redundancy")
    group = next(g for g in coupling.groups if g.name.startswith(param))
    order = np.argsort(np.argsort(-scores[group.factor], kind="stable"))
    return {group.factor: order < count}


PLANTED = {
    "relu": (convolutional("Relu", SCALED), "w1:0", 8),
    "leaky": (convolutional("LeakyRelu", SCALED), "w1:0", 8),
    "linear": (convolutional("Identity", SCALED), "w1:0", 8),
    "sigmoid": (convolutional("Sigmoid"), "w1:0", 8),
    "gated": (gated(), "up:1", 8),
    "heads": (attention(), "wq:1[0]", 4),
    "recurrent": (recurrent(), "w:1[1]", 4),
    "grouped": (grouped(), "w1:0[1]", 4),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_copies_are_merged_exactly(name: str) -> None:
    proto, group, count = PLANTED[name]
    coupling = coupled(proto)
    keep = best(coupling, group, count)
    values = merge_weights(coupling, merges(coupling, keep))
    pruned = shrink(coupling, keep, values)
    assert error(coupling, pruned) < 1e-5
    assert error(coupling, shrink(coupling, keep)) > 1e-2
    assert verify(coupling, keep, pruned, values=values).ok


def changed(proto: onnx.ModelProto, name: str, function: Any) -> onnx.ModelProto:
    """The model with another value of one tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    tensor = next(t for t in made.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(function(values), values.dtype), name))
    return made


def shifted(values: Array) -> Array:
    """The same, but for the last index of the last axis."""
    values[..., -1] += 1
    return values


def narrow(values: Array) -> Array:
    """24 columns (8 heads, 3) of which the last dim repeats the first."""
    values = values.reshape(8, 8, 3)
    values[..., 2] = values[..., 0]
    return values.reshape(8, 24)


def stored_as_integers() -> onnx.ModelProto:
    """A reader whose weights are int8: a sum would not fit."""
    proto = gated(SAME)
    proto.graph.node[-1].input[1] = "floats"
    proto.graph.node.insert(0, node("DequantizeLinear", "stored step", "floats"))
    for name, values in {"stored": weight(2, 18, 6) * 99, "step": np.float32(0.01)}.items():
        dtype = np.int8 if name == "stored" else np.float32
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return proto


def added_to() -> onnx.ModelProto:
    """A number is added to all channels: half of x + 1 is not x / 2 + 1."""
    proto = gated()
    proto.graph.node[4].op_type = "Add"
    return proto


def heads_of(function: Any) -> onnx.ModelProto:
    return changed(changed(attention(), "wq", function), "wk", function)


@pytest.mark.parametrize(
    ("proto", "group", "found"),
    [
        pytest.param(convolutional("Sigmoid", SCALED), "w1:0", 1, id="not homogeneous"),
        pytest.param(convolutional("Relu", [-1.0] * 4), "w1:0", 0, id="negative"),
        pytest.param(changed(convolutional(), "b1", shifted), "w1:0", 3, id="another bias"),
        pytest.param(changed(convolutional(), "shift", shifted), "w1:0", 3, id="another shift"),
        pytest.param(changed(convolutional(), "scale", shifted), "w1:0", 3, id="another scale"),
        pytest.param(changed(gated(), "gate", shifted), "up:1", 3, id="another gate"),
        pytest.param(added_to(), "up:1", 1, id="a number is added"),
        pytest.param(heads_of(narrow), "wq:1[1]", 0, id="read by an activation"),
        pytest.param(changed(attention(), "wk", shifted), "wq:1[0]", 3, id="another key"),
        pytest.param(stored_as_integers(), "stored:0", 0, id="integers"),
        pytest.param(residual_copies(), "w0:1", 0, id="mixing"),
    ],
)
def test_what_does_not_follow_is_not_merged(proto: onnx.ModelProto, group: str, found: int) -> None:
    coupling = coupled(proto)
    own = next(g for g in coupling.groups if g.name.startswith(group))
    mask = np.arange(own.size) < (own.size - (4 if own.size > 4 else 1))
    merged = merges(coupling, {own.factor: mask}).get(own.factor)
    assert (0 if merged is None else len(merged.removed)) == found


def planted(coupling: Coupling) -> onnx.ModelProto:
    """The model with the second half of every exact group repeating the first."""
    values: Weights = {}
    for group in coupling.groups:
        half = group.size // 2
        for member in group.members:
            param = coupling.model.params[member.param]
            if member.contracted or param.folded or group.mixing:
                continue
            array = values.setdefault(member.param, param.read().copy())
            moved = np.moveaxis(array, member.axis, 0)
            own = np.arange(len(moved))
            places = rows(coupling.factors, member.layout, 0, own, group.factor)
            moved[places[half : 2 * half]] = moved[places[:half]]
    return shrink(coupling, {}, values)


@pytest.mark.parametrize(
    ("name", "unmerged"),
    [
        ("timm/mobilenetv3_small_050", 0),
        ("torchvision/shufflenet_v2_x0_5", 0),  # channels are shuffled and cut
        pytest.param("timm/eca_botnext26ts_256", 3, marks=pytest.mark.slow),
        pytest.param("timm/mobilevit_xxs", 9, marks=pytest.mark.slow),  # dims of q and k
        pytest.param("timm/regnetx_004", 0, marks=pytest.mark.slow),
        pytest.param("torchvision/densenet121", 0, marks=pytest.mark.slow),
    ],
)
def test_copies_in_all_groups_of_real_topologies_are_merged(name: str, unmerged: int) -> None:
    coupling = coupled(planted(coupled(load(name))))
    keep = {
        group.factor: ~np.isin(np.arange(group.size), range(group.size // 2, group.size // 2 * 2))
        for group in coupling.groups
        if not group.mixing
    }
    found = merges(coupling, keep)
    whole = {f: mask for f, mask in keep.items() if f in found}
    assert all(len(found[f].removed) == (~mask).sum() for f, mask in whole.items())
    assert len(keep) - len(whole) == unmerged
    values = merge_weights(coupling, found)
    assert error(coupling, shrink(coupling, whole, values)) < 1e-5
    assert error(coupling, shrink(coupling, whole)) > 1e-2
