"""The child that times the analysis of long made-up networks: `python -m benchmarks.chains ...`.

Two kinds, both deep and narrow, because the analysis looks at structure and never at values:

    residual      blocks of 1x1 Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu
    transformer   blocks of decomposed attention and an MLP, before each a LayerNormalization

All blocks hang on one residual stream, so that one group has a member in every block: the worst
case for whatever looks at a group as often as it grows.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.child import Report

WIDTH = 16
HEADS = 4
TOKENS = 8
SIDE = 4
OPSET = 17


class _Builder:
    """Nodes and weights as they come; values get numbers as names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def node(self, op: str, *operands: str, **attributes: Any) -> str:
        """Append a node; return its result."""
        result = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, operands, [result], **attributes))
        return result

    def weight(self, *shape: int) -> str:
        """Append a random weight; return its name."""
        values = self.random.random(shape, np.float32)
        return self._stored(values)

    def sizes(self, *values: int) -> str:
        """Append a shape operand; return its name."""
        return self._stored(np.array(values, np.int64))

    def _stored(self, values: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name


def _residual(net: _Builder, value: str) -> str:
    """7 nodes."""
    branch = value
    for last in (False, True):
        branch = net.node("Conv", branch, net.weight(WIDTH, WIDTH, 1, 1))
        statistics = [net.weight(WIDTH) for _ in range(4)]
        branch = net.node("BatchNormalization", branch, *statistics)
        branch = branch if last else net.node("Relu", branch)
    return net.node("Relu", net.node("Add", value, branch))


def _transformer(net: _Builder, value: str) -> str:
    """29 nodes."""
    normal = net.node("LayerNormalization", value, net.weight(WIDTH), net.weight(WIDTH))
    query, key, other = (_heads(net, normal, key) for key in (False, True, False))
    scaled = net.node("Mul", net.node("MatMul", query, key), net.weight(1))
    mixed = net.node("MatMul", net.node("Softmax", scaled, axis=-1), other)
    mixed = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = net.node("Reshape", mixed, net.sizes(1, TOKENS, WIDTH))
    value = net.node("Add", value, _linear(net, mixed, WIDTH, WIDTH))
    normal = net.node("LayerNormalization", value, net.weight(WIDTH), net.weight(WIDTH))
    wide = net.node("Relu", _linear(net, normal, WIDTH, 4 * WIDTH))
    return net.node("Add", value, _linear(net, wide, 4 * WIDTH, WIDTH))


def _heads(net: _Builder, value: str, key: bool) -> str:
    projected = _linear(net, value, WIDTH, WIDTH)
    split = net.node("Reshape", projected, net.sizes(1, TOKENS, HEADS, WIDTH // HEADS))
    return net.node("Transpose", split, perm=[0, 2, 3, 1] if key else [0, 2, 1, 3])


def _linear(net: _Builder, value: str, inputs: int, outputs: int) -> str:
    return net.node(
        "Add", net.node("MatMul", value, net.weight(inputs, outputs)), net.weight(outputs)
    )


Block = Callable[[_Builder, str], str]
KINDS: dict[str, Block] = {"residual": _residual, "transformer": _transformer}


def made(kind: str, nodes: int) -> onnx.ModelProto:
    """A network of as many blocks as `nodes` nodes need, at least."""
    net = _Builder()
    if kind == "residual":
        shape = [1, WIDTH, SIDE, SIDE]
        weight = partial(net.weight, WIDTH, WIDTH, 1, 1)
        op = "Conv"
    else:
        shape, weight, op = [1, TOKENS, WIDTH], partial(net.weight, WIDTH, WIDTH), "MatMul"
    value = net.node(op, "input", weight())
    while len(net.nodes) < nodes - 1:
        value = KINDS[kind](net, value)
    net.node(op, value, weight())
    result = net.nodes[-1].output[0]
    graph = helper.make_graph(
        net.nodes,
        f"{kind}_{nodes}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
        net.weights,
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def main() -> None:
    """Build, then time each pass; the report is written whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("nodes", type=int)
    parser.add_argument("report", type=Path)
    arguments = parser.parse_args()
    report = Report()
    try:
        run(arguments.kind, arguments.nodes, report)
    finally:
        report.write(arguments.report)


def run(kind: str, nodes: int, report: Report) -> None:
    """All passes up to shrink at ratio 0.5, each a phase of its own."""
    with report.phase("import"):
        from onnxprune.budget import Budget, Options
        from onnxprune.files import load
        from onnxprune.passes.couple import couple
        from onnxprune.passes.normalize import normalize
        from onnxprune.passes.score import score
        from onnxprune.passes.select import select
        from onnxprune.passes.shrink import shrink
    with report.phase("build"):
        proto = made(kind, nodes)
    with report.phase("load"):
        model = load(proto)
    with report.phase("normalize"):
        model = normalize(model)
    with report.phase("couple"):
        coupling = couple(model)
    with report.phase("score"):
        scores = score(coupling)
    with report.phase("select"):
        selection = select(coupling, scores, Budget(ratio=0.5), Options(align=1))
    with report.phase("shrink"):
        shrink(coupling, selection.keep)
    report.details["nodes"] = len(proto.graph.node)
    report.details["groups"] = len(coupling.groups)


if __name__ == "__main__":
    main()
