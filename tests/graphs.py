"""Small networks with named weights, for tests that work out by hand what pruning does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.files import load
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.rules import Row

Array = NDArray[Any]
Size = int | str


def weight(seed: int, *shape: int) -> NDArray[np.float32]:
    """Normal values (shape) that keep sums small."""
    fan = np.prod(shape[1:], dtype=int) or 1
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)
    return np.asarray(values, np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Size]],
    outputs: dict[str, Sequence[Size]],
    weights: dict[str, Array],
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    **kinds: int,
) -> onnx.ModelProto:
    """A model; inputs and outputs have type `kind` where `kinds` doesn't say another."""
    given, made = (
        [helper.make_tensor_value_info(n, kinds.get(n, kind), list(s)) for n, s in side.items()]
        for side in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "g", given, made, tensors)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its first result; operands and results are separated by blanks."""
    names = ["" if name == "-" else name for name in inputs.split()]
    results = outputs.split()
    return helper.make_node(op, names, results, name=f"n_{results[0]}", **attributes)


def coupled(proto: onnx.ModelProto, rules: dict[str, Row] | None = None) -> Coupling:
    """Its structure."""
    return couple(normalize(load(proto), rules), rules)


def keeping(coupling: Coupling, **kept: Sequence[int]) -> dict[int, Mask]:
    """Masks by factor; groups go by the name of their first member's parameter."""
    by_param = {group.name.partition(":")[0]: group for group in coupling.groups}
    found = {}
    for name, indices in kept.items():
        mask = np.zeros(by_param[name].size, bool)
        mask[list(indices)] = True
        found[by_param[name].factor] = mask
    return found


def halves(coupling: Coupling, seed: int = 0, exact: bool = False) -> dict[int, Mask]:
    """A random half of every group."""
    generator = np.random.default_rng(seed)
    found = {}
    for group in coupling.groups:
        mask = np.zeros(group.size, bool)
        mask[generator.permutation(group.size)[: max(group.least, group.size // 2)]] = True
        if not (exact and group.mixing):
            found[group.factor] = mask
    return found


def proven(proto: onnx.ModelProto) -> tuple[Coupling, onnx.ModelProto]:
    """Half of every group goes, and the result is the masked original."""
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    verdict = verify(coupling, keep, small)
    assert verdict.ok, verdict.summary()
    assert not verdict.blind
    return coupling, small


def convolutions(groups: int = 1) -> onnx.ModelProto:
    """x (n, 4, 6, 6) -> Conv 8 -> Relu -> Conv 8 in groups -> Conv 4; one bias for two."""
    return model(
        [
            node("Conv", "x w1 b", "y1", pads=[1, 1, 1, 1]),
            node("Relu", "y1", "r1"),
            node("Conv", "r1 w2 b", "y2", group=groups),
            node("Conv", "y2 w3", "y"),
        ],
        {"x": ["n", 4, 6, 6]},
        {"y": ["n", 4, 4, 4]},
        {
            "w1": weight(1, 8, 4, 3, 3),
            "w2": weight(2, 8, 8 // groups, 3, 3),
            "w3": weight(3, 4, 8, 1, 1),
            "b": weight(4, 8),
        },
    )


def residual(kind: int = TensorProto.FLOAT, decomposed: bool = False) -> onnx.ModelProto:
    """x (n, 3) -> 6 wide stream with a normalised branch 4 wide -> 2; the stream mixes."""
    norm = [node("LayerNormalization", "h scale shift", "l")]
    if decomposed:
        norm = [
            node("ReduceMean", "h", "mean", axes=[-1]),
            node("Sub", "h mean", "centred"),
            node("Mul", "centred centred", "square"),
            node("ReduceMean", "square", "variance", axes=[-1]),
            node("Add", "variance epsilon", "positive"),
            node("Sqrt", "positive", "deviation"),
            node("Div", "centred deviation", "unit"),
            node("Mul", "unit scale", "scaled"),
            node("Add", "scaled shift", "l"),
        ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {
        "w0": weight(0, 3, 6),
        "scale": weight(1, 6),
        "shift": weight(2, 6),
        "w1": weight(3, 6, 4),
        "b1": weight(4, 4),
        "w2": weight(5, 4, 6),
        "w3": weight(6, 6, 2),
        **({"epsilon": np.float32(1e-5)} if decomposed else {}),
    }
    return model(
        [
            node("MatMul", "x w0", "h"),
            *norm,
            node("Gemm", "l w1 b1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "o"),
            node("Add", "h o", "s"),
            node("MatMul", "s w3", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {name: np.asarray(value).astype(dtype) for name, value in weights.items()},
        kind=kind,
    )


def custom() -> onnx.ModelProto:
    """x (1, 3, 4, 4) -> Conv 8 -> my::Op, which nobody knows -> Conv 2."""
    proto = model(
        [
            node("Conv", "x w1", "a"),
            helper.make_node("Op", ["a", "s"], ["b"], domain="my"),
            node("Conv", "b w2", "y"),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 2, 4, 4]},
        {"w1": weight(1, 8, 3, 1, 1), "s": weight(2, 8), "w2": weight(3, 2, 8, 1, 1)},
    )
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def recurrent() -> onnx.ModelProto:
    """x (5, n, 3) -> LSTM 4 -> last hidden state -> 2."""
    return model(
        [
            node("MatMul", "x w0", "e"),
            node("LSTM", "e w r b", "s hidden", hidden_size=4),
            node("Squeeze", "hidden zero", "h"),
            node("MatMul", "h w1", "y"),
        ],
        {"x": [5, "n", 3]},
        {"y": ["n", 2]},
        {
            "w0": weight(0, 3, 6),
            "w": weight(1, 1, 16, 6),
            "r": weight(2, 1, 16, 4),
            "b": weight(3, 1, 32),
            "zero": np.array([0]),
            "w1": weight(4, 4, 2),
        },
    )
