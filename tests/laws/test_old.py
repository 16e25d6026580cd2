"""Old files: nets of the operators as they were in opsets 7 to 13, in IR version 3, proved.

What is an operand today was an attribute then (Slice-1, Pad-2, Clip-6, Squeeze-1, Upsample-7,
Dropout-7, ReduceSum-1, Split-2), and Softmax flattened its operand. Each net is drawn at random; a
random half of all groups goes, and the result is held against the masked oracle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.coupling import Coupling
from tests.graphs import proven

OPSETS = range(7, 14)
SEEDS = range(12)
STEPS = 7
LISTED_BELOW = 4  # IR version 3 lists its initializers among the inputs


class Net:
    """A net as it grows: ``value`` is (2, channels, side, side), or (2, channels) once flat."""

    def __init__(self, opset: int, seed: int) -> None:
        self.rng = np.random.default_rng([opset, seed])
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.value, self.channels, self.side, self.flat = "x", 4, 8, False

    def stored(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, *shape: int) -> str:
        fan = np.prod(shape[1:], dtype=int)
        return self.stored((self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.stored(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def add(self, op: str, *inputs: str, results: int = 1, **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{k}" for k in range(results)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def then(self, op: str, *more: str, **attributes: Any) -> None:
        self.value = self.add(op, self.value, *more, **attributes)[0]

    def sized(self, op: str, since: int, name: str, values: list[int], **more: Any) -> None:
        """A node that states integers: in an attribute first, in an operand since an opset."""
        if self.opset < since:
            self.then(op, **{name: values}, **more)
        else:
            self.then(op, self.stored(np.array(values, np.int64)), **more)

    def proto(self) -> onnx.ModelProto:
        sides = [] if self.flat else [self.side] * 2
        stated = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, self.channels, *sides])
        given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8, 8])]
        version = 3 if self.opset < 9 else 4
        if version < LISTED_BELOW:
            given += [
                helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in self.weights
            ]
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(self.nodes, "old", given, [stated], self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def conv(net: Net) -> None:
    groups = int(net.rng.choice([1, 1, 2]))
    wide = int(net.rng.choice([6, 8]))
    bias = [net.random(wide)] if net.rng.random() < 0.5 else []
    weight = net.random(wide, net.channels // groups, 3, 3)
    net.then("Conv", weight, *bias, pads=[1, 1, 1, 1], group=groups)
    net.channels = wide


def normalised(net: Net) -> None:
    """By channels; before opset 9 it might be by pixels, too."""
    spatial = int(net.opset >= 9 or net.rng.integers(0, 2))
    c = [net.channels, *([] if spatial else [net.side] * 2)]
    vectors = [net.positive(*c), net.random(*c), net.random(*c), net.positive(*c)]
    more = {"spatial": spatial} if net.opset < 9 else {}
    net.then("BatchNormalization", *vectors, epsilon=1e-3, momentum=0.9, **more)


def activated(net: Net) -> None:
    op = str(net.rng.choice(["Relu", "LeakyRelu", "Elu", "Sigmoid", "Softsign", "PRelu", "Selu"]))
    if op == "PRelu":
        net.then(op, net.positive(net.channels, 1, 1))
    else:
        net.then(op)


def clipped(net: Net) -> None:
    if net.opset < 11:
        net.then("Clip", min=-0.5, max=0.75)
    else:
        net.then("Clip", *(net.stored(np.array(x, np.float32)) for x in (-0.5, 0.75)))


def dropped(net: Net) -> None:
    if net.opset < 12:
        net.then("Dropout", ratio=0.5, results=2)
    else:
        net.then("Dropout", net.stored(np.array(0.5, np.float32)), results=2)


def pooled(net: Net) -> None:
    op = str(net.rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    net.then(op, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def enlarged(net: Net) -> None:
    if net.side > 8:
        return
    scales = [1.0, 1.0, 2.0, 2.0]
    mode = str(net.rng.choice(["nearest", "linear"]))
    if net.opset < 9:
        net.then("Upsample", scales=scales, mode=mode)
    elif net.opset < 11:
        stored = net.stored(np.array(scales, np.float32))
        net.then("Upsample" if net.opset < 10 else "Resize", stored, mode=mode)
    elif net.rng.random() < 0.5:
        empty = net.stored(np.zeros(0, np.float32))
        net.then("Resize", empty, net.stored(np.array(scales, np.float32)), mode=mode)
    else:
        none = [net.stored(np.zeros(0, np.float32)) for _ in range(2)]
        sizes = np.array([2, net.channels, 2 * net.side, 2 * net.side])
        net.then("Resize", *none, net.stored(sizes), mode=mode)
    net.side *= 2


def padded(net: Net) -> None:
    """A frame, or channels of zeros."""
    wide = int(net.rng.integers(0, 3))
    pads = [0, 0, 0, 0, 0, wide, 0, 0] if net.rng.random() < 0.5 else [0, 0, 1, 1, 0, 0, 1, 1]
    net.sized("Pad", 11, "pads", pads)
    net.channels += pads[5]
    net.side += 2 * pads[2]


def cut(net: Net) -> None:
    """Some of the channels, or a part of the picture, with bounds from the end and beyond it."""
    axis = int(net.rng.choice([1, 2]))
    size = net.channels if axis == 1 else net.side
    stop = int(net.rng.choice([size - 1, -1, 10**6]))
    left = size - 1 - (stop != 10**6)
    if axis == 2:  # both sides of the picture
        axes, starts, stops = [2, 3], [1, 1], [stop, stop]
    else:
        axes, starts, stops = [1], [1], [stop]
    if net.opset < 10:
        net.then("Slice", axes=axes, starts=starts, ends=stops)
    else:
        net.then("Slice", *(net.stored(np.array(x, np.int64)) for x in (starts, stops, axes)))
    net.channels, net.side = (left, net.side) if axis == 1 else (net.channels, left)


def parted(net: Net) -> None:
    """Two parts of the channels, one of them through an activation, the other way round."""
    first = int(net.rng.integers(1, net.channels))
    sizes = [first, net.channels - first]
    if net.opset < 13:
        a, b = net.add("Split", net.value, results=2, axis=1, split=sizes)
    else:
        a, b = net.add("Split", net.value, net.stored(np.array(sizes)), results=2, axis=1)
    net.value = b
    activated_part = net.add("Tanh", a)[0]
    net.then("Concat", activated_part, axis=1)


def turned(net: Net) -> None:
    """An axis in and out again, and a transposition there and back."""
    net.sized("Unsqueeze", 13, "axes", [2])
    net.sized("Squeeze", 13, "axes", [2])
    net.then("Transpose", perm=[0, 2, 3, 1])
    net.then("Mul", net.positive(net.channels))
    net.then("Transpose", perm=[0, 3, 1, 2])


def shuffled(net: Net) -> None:
    """Channels in two groups, interleaved, by sizes that are 0, -1 and numbers."""
    if net.channels % 2:
        return
    net.then("Reshape", net.stored(np.array([0, 2, net.channels // 2, -1])))
    net.then("Transpose", perm=[0, 2, 1, 3])
    net.then("Reshape", net.stored(np.array([0, net.channels, net.side, -1])))


def scored(net: Net) -> None:
    """Softmax over the channels and, before opset 13, all behind them."""
    net.then(str(net.rng.choice(["Softmax", "LogSoftmax"])), axis=int(net.rng.choice([1, 3])))


def squeezed(net: Net) -> None:
    """Squeeze and excite by means over the picture."""
    inner = net.value
    net.then("ReduceMean", axes=[2, 3], keepdims=1)
    net.then("Conv", net.random(net.channels, net.channels, 1, 1))
    net.then("Sigmoid")
    net.value = net.add("Mul", inner, net.value)[0]


def residual(net: Net) -> None:
    inner = net.value
    net.then("Conv", net.random(net.channels, net.channels, 1, 1))
    op = str(net.rng.choice(["Add", "Sum", "Max", "Mean"]))
    net.value = net.add(op, inner, net.value)[0]


def lrn(net: Net) -> None:
    net.then("LRN", size=3)


def flattened(net: Net) -> None:
    """To (2, channels): by a Flatten, a Reshape of computed sizes, or a sum over the picture."""
    kind = int(net.rng.integers(0, 3))
    if kind == 0:
        net.then("Flatten", axis=1 if net.opset < 11 else -3)
        net.channels *= net.side**2
    elif kind == 1:
        shape = net.add("Shape", net.value)[0]
        batch = net.add("Gather", shape, net.stored(np.array([0])))[0]
        sizes = net.add("Concat", batch, net.stored(np.array([-1])), axis=0)[0]
        net.then("Reshape", sizes)
        net.channels *= net.side**2
    else:
        net.sized("ReduceSum", 13, "axes", [2, 3], keepdims=0)
    net.flat = True


def joined(net: Net) -> None:
    """Gemm with what is added of each shape that broadcasts, one way or the other turned."""
    wide = int(net.rng.choice([5, 6]))
    back = bool(net.rng.integers(0, 2))
    weight = net.random(wide, net.channels) if back else net.random(net.channels, wide)
    added = [(wide,), (1, wide), (2, wide), (1,), (2, 1)][int(net.rng.integers(0, 5))]
    more: dict[str, Any] = {"transB": int(back), "alpha": 0.5, "beta": 2.0}
    net.then("Gemm", weight, net.random(*added), **more)
    net.channels = wide


PICTURE: list[Callable[[Net], None]] = [
    *(conv, conv, conv, normalised, activated, clipped, dropped, pooled, enlarged, padded, cut),
    *(parted, turned, shuffled, scored, squeezed, residual, lrn),
]


def drawn(opset: int, seed: int) -> onnx.ModelProto:
    net = Net(opset, seed)
    conv(net)
    for step in net.rng.choice(len(PICTURE), STEPS):
        PICTURE[step](net)
        if net.channels % 2:
            net.then("Conv", net.random(8, net.channels, 1, 1))
            net.channels = 8
    flattened(net)
    joined(net)
    net.then("Relu")
    joined(net)
    return net.proto()


def proven_as_old(proto: onnx.ModelProto) -> Coupling:
    coupling, pruned = proven(proto)
    assert pruned.ir_version == proto.ir_version
    if proto.ir_version < LISTED_BELOW:
        listed = {value.name for value in pruned.graph.input}
        assert {tensor.name for tensor in pruned.graph.initializer} < listed
    return coupling


@pytest.mark.parametrize("opset", OPSETS)
def test_an_old_net_is_pruned_and_proved(opset: int) -> None:
    found = Counter[str]()
    for seed in SEEDS:
        coupling = proven_as_old(drawn(opset, seed))
        assert coupling.groups
        for bound in coupling.bound:
            pruned = {group.factor for group in coupling.groups}
            removed = bound.removed(coupling.factors, frozenset(pruned))
            found[bound.node.op] += bool(removed)
    new = {"Resize"} if opset >= 10 else {"Upsample"}
    for op in {"Conv", "Gemm", "Clip", "Dropout", "Pad", "Slice", "Split", "Unsqueeze"} | new:
        assert found[op], f"no {op} of opset {opset} lost anything"
