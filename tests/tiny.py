"""Tiny models for the tests of the interface: a few convolutions, made with onnx.helper."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 17)]
FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    generator = np.random.default_rng([seed, *name.encode()])
    return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)


def model(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


def net(width: int = 16, activation: str = "Relu", domain: str = "") -> onnx.ModelProto:
    """Three convolutions: two exact groups of 16 and 32 channels, w1:0 and w2:0."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node(activation, ["c1"], ["r1"], "act1", domain=domain),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], "act2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], "conv3"),
    ]
    weights = [
        weight("w1", width, 3, 3, 3),
        weight("b1", width),
        weight("w2", 2 * width, width, 3, 3),
        weight("w3", 4, 2 * width, 1, 1),
    ]
    made = model(nodes, weights, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 8, 8]})
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def chain(*widths: int) -> onnx.ModelProto:
    """Pointwise convolutions from one width to the next; all but the first and last are groups."""
    names = ["x", *(f"v{k}" for k in range(1, len(widths) - 1)), "y"]
    nodes = [
        helper.make_node("Conv", [names[k], f"w{k}"], [names[k + 1]], f"conv{k}")
        for k in range(len(widths) - 1)
    ]
    weights = [weight(f"w{k}", widths[k + 1], widths[k], 1, 1) for k in range(len(widths) - 1)]
    return model(nodes, weights, {"x": [1, widths[0], 4, 4]}, {"y": [1, widths[-1], 4, 4]})


def frozen() -> onnx.ModelProto:
    """One convolution between input and output: no group."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    return model([node], [weight("w", 4, 3, 1, 1)], {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})


def save(path: Path, proto: onnx.ModelProto | None = None) -> Path:
    """Write a model, ``net()`` where none is given."""
    path.write_bytes((proto or net()).SerializeToString())
    return path
