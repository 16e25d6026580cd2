"""Topologies that the zoo has not got: a YOLO-like detector, and BERT-base; random weights.

The detector is laid out as YOLOv8n: C2f blocks (split, bottlenecks, concatenation), SPPF, a path
aggregation neck with nearest upsampling, and three decoupled heads. BERT-base has 12 layers of
width 768 with 12 heads, over 128 tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES, BINS = 80, 16
WIDTHS, REPEATS = (16, 32, 64, 128, 256), (1, 2, 2, 1)
LAYERS, HIDDEN, HEADS, INNER, TOKENS, WORDS = 12, 768, 12, 3072, 128, 8000


class Builder:
    """Collects nodes and weights; every method gives back the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def weight(self, values: NDArray[Any]) -> str:
        """Store a constant tensor."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, *shape: int, fan: int) -> str:
        """Store random weights that keep variances."""
        return self.weight(self.random.standard_normal(shape, np.float32) * math.sqrt(2 / fan))

    def numbers(self, *values: int) -> str:
        """Store a shape operand."""
        return self.weight(np.array(values, np.int64))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; the names of its results."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, x: onnx.ValueInfoProto, y: str, shape: Sequence[int]) -> onnx.ModelProto:
        """The model with one input and one result of this shape."""
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "topology", [x], [out], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def conv(self, x: str, into: int, out: int, side: int, stride: int = 1) -> str:
        """A convolution with a bias."""
        w = self.normal(out, into, side, side, fan=into * side * side)
        bias = self.weight(np.zeros(out, np.float32))
        size: dict[str, Any] = {
            "kernel_shape": [side] * 2,
            "strides": [stride] * 2,
            "pads": [side // 2] * 4,
        }
        return str(self.add("Conv", x, w, bias, **size))

    def block(self, x: str, into: int, out: int, side: int = 3, stride: int = 1) -> str:
        """A convolution and SiLU."""
        y = self.conv(x, into, out, side, stride)
        return str(self.add("Mul", y, self.add("Sigmoid", y)))

    def c2f(self, x: str, into: int, out: int, repeats: int, shortcut: bool) -> str:
        """Split, bottlenecks on the second half, concatenation of all."""
        half = out // 2
        first, last = self.add(
            "Split", self.block(x, into, out, 1), self.numbers(half, half), outputs=2, axis=1
        )
        parts = [first, last]
        for _ in range(repeats):
            made = self.block(self.block(last, half, half), half, half)
            last = str(self.add("Add", last, made)) if shortcut else made
            parts.append(last)
        return self.block(self.add("Concat", *parts, axis=1), half * len(parts), out, 1)

    def linear(self, x: str, into: int, out: int) -> str:
        """A matrix product and a bias."""
        w = self.weight(self.random.standard_normal((into, out), np.float32) / math.sqrt(into))
        return str(self.add("Add", self.add("MatMul", x, w), self.weight(np.zeros(out, "f"))))

    def norm(self, x: str, width: int) -> str:
        """LayerNormalization."""
        scale, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
        return str(self.add("LayerNormalization", x, self.weight(scale), self.weight(bias)))


def yolo(side: int = 320) -> onnx.ModelProto:
    """The detector; its result is (1, 4 * BINS + CLASSES, places)."""
    b = Builder()
    x, found = b.block("image", 3, WIDTHS[0], stride=2), []
    for into, out, repeats in zip(WIDTHS, WIDTHS[1:], REPEATS, strict=False):
        x = b.c2f(b.block(x, into, out, stride=2), out, out, repeats, True)
        found.append(x)
    _, p3, p4, p5 = found
    _, _, c3, c4, c5 = WIDTHS
    p5 = _pyramid(b, p5, c5)
    n4 = b.c2f(b.add("Concat", _doubled(b, p5), p4, axis=1), c5 + c4, c4, 1, False)
    n3 = b.c2f(b.add("Concat", _doubled(b, n4), p3, axis=1), c4 + c3, c3, 1, False)
    down = b.add("Concat", b.block(n3, c3, c3, stride=2), n4, axis=1)
    m4 = b.c2f(down, c3 + c4, c4, 1, False)
    down = b.add("Concat", b.block(m4, c4, c4, stride=2), p5, axis=1)
    m5 = b.c2f(down, c4 + c5, c5, 1, False)
    heads = [_head(b, value, width) for value, width in ((n3, c3), (m4, c4), (m5, c5))]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])
    places = sum((side // stride) ** 2 for stride in (8, 16, 32))
    joined = b.add("Concat", *heads, axis=2)
    return b.model(image, joined, (1, 4 * BINS + CLASSES, places))


def _pyramid(b: Builder, x: str, width: int) -> str:
    parts = [b.block(x, width, width // 2, 1)]
    pool: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]}
    for _ in range(3):
        parts.append(b.add("MaxPool", parts[-1], **pool))
    return b.block(b.add("Concat", *parts, axis=1), 2 * width, width, 1)


def _doubled(b: Builder, x: str) -> str:
    scales = b.weight(np.array([1, 1, 2, 2], np.float32))
    return str(b.add("Resize", x, "", scales, mode="nearest", nearest_mode="floor"))


def _head(b: Builder, x: str, width: int) -> str:
    parts = []
    for inner, out in ((max(16, 4 * BINS), 4 * BINS), (max(WIDTHS[2], CLASSES), CLASSES)):
        made = b.block(b.block(x, width, inner), inner, inner)
        parts.append(b.conv(made, inner, out, 1))
    both = b.add("Concat", *parts, axis=1)
    return str(b.add("Reshape", both, b.numbers(1, 4 * BINS + CLASSES, -1)))


def bert_base() -> onnx.ModelProto:
    """The encoder with a classifier of two classes on the first token."""
    b = Builder()
    words = b.weight(b.random.standard_normal((WORDS, HIDDEN), np.float32))
    places = b.weight(b.random.standard_normal((TOKENS, HIDDEN), np.float32))
    x = b.norm(b.add("Add", b.add("Gather", words, "tokens"), places), HIDDEN)
    for _ in range(LAYERS):
        x = b.norm(b.add("Add", x, b.linear(_attention(b, x), HIDDEN, HIDDEN)), HIDDEN)
        x = b.norm(b.add("Add", x, b.linear(_gelu(b, x), INNER, HIDDEN)), HIDDEN)
    first = b.add("Gather", x, b.weight(np.array(0, np.int64)), axis=1)
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, TOKENS])
    return b.model(tokens, b.linear(first, HIDDEN, 2), (1, 2))


def _attention(b: Builder, x: str) -> str:
    dim = HIDDEN // HEADS

    def split(order: Sequence[int]) -> str:
        apart = b.add("Reshape", b.linear(x, HIDDEN, HIDDEN), b.numbers(1, TOKENS, HEADS, dim))
        return str(b.add("Transpose", apart, perm=list(order)))

    query, key, value = split((0, 2, 1, 3)), split((0, 2, 3, 1)), split((0, 2, 1, 3))
    root = b.weight(np.array(math.sqrt(dim), np.float32))
    weights = b.add("Softmax", b.add("Div", b.add("MatMul", query, key), root), axis=-1)
    mixed = b.add("Transpose", b.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return str(b.add("Reshape", mixed, b.numbers(1, TOKENS, HIDDEN)))


def _gelu(b: Builder, x: str) -> str:
    y = b.linear(x, HIDDEN, INNER)
    root, one, half = (b.weight(np.array(v, np.float32)) for v in (math.sqrt(2), 1.0, 0.5))
    erf = b.add("Add", b.add("Erf", b.add("Div", y, root)), one)
    return str(b.add("Mul", b.add("Mul", y, erf), half))
