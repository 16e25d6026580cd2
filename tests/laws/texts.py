"""Models in onnx's text format: what rules say where sizes are dynamic or computed in the graph."""

from __future__ import annotations

from typing import Final

import onnx
import onnx.parser

from onnxprune.files import load
from onnxprune.model import Model

HEAD: Final = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'


def model(signature: str, *nodes: str, opset: int = 17) -> Model:
    """A model from its signature, ``(float[N,3] x) => (y)``, and its nodes."""
    head = HEAD.replace("17", str(opset))
    body = "\n".join(f"  {node}" for node in nodes)
    return load(onnx.parser.parse_model(f"{head}g {signature} {{\n{body}\n}}"))


# Label -> signature and nodes; the last node's rule counts.
DYNAMIC: Final[dict[str, tuple[str, ...]]] = {
    "heads, the batch copied": (
        "(float[N,L,12] x) => (float[A,B,C,D] y)",
        "s = Constant <value = int64[4] {0, 0, 3, 4}> ()",
        "y = Reshape(x, s)",
    ),
    "heads, the batch inferred": (
        "(float[N,10,12] x) => (float[A,B,C,D] y)",
        "s = Constant <value = int64[4] {-1, 10, 3, 4}> ()",
        "y = Reshape(x, s)",
    ),
    "heads, their shape computed": (
        "(float[N,L,12] x) => (float[A,B,C,D] y)",
        "n = Shape <start = 0, end = 2> (x)",
        "h = Constant <value = int64[2] {3, 4}> ()",
        "s = Concat <axis = 0> (n, h)",
        "y = Reshape(x, s)",
    ),
    "batch and length flattened": (
        "(float[N,L,12] x) => (float[A,B] y)",
        "s = Constant <value = int64[2] {-1, 12}> ()",
        "y = Reshape(x, s)",
    ),
    "an image flattened": (
        "(float[N,8,4,4] x) => (float[A,B] y)",
        "y = Flatten(x)",
    ),
    "the last of a sequence": (
        "(float[N,L,12] x) => (float[A,B,C] y)",
        "a = Constant <value = int64[1] {-1}> ()",
        "b = Constant <value = int64[1] {9223372036854775807}> ()",
        "k = Constant <value = int64[1] {1}> ()",
        "y = Slice(x, a, b, k)",
    ),
    "all but the first of a sequence": (
        "(float[N,L,12] x) => (float[A,B,C] y)",
        "a = Constant <value = int64[1] {1}> ()",
        "b = Constant <value = int64[1] {9223372036854775807}> ()",
        "k = Constant <value = int64[1] {1}> ()",
        "y = Slice(x, a, b, k)",
    ),
    "halves, where they meet computed": (
        "(float[N,8,L] x) => (float[A,B,C] y)",
        "s = Shape <start = 1, end = 2> (x)",
        "two = Constant <value = int64[1] {2}> ()",
        "a = Div(s, two)",
        "b = Constant <value = int64[1] {9223372036854775807}> ()",
        "k = Constant <value = int64[1] {1}> ()",
        "y = Slice(x, a, b, k)",
    ),
    "a mask expanded to a dynamic shape": (
        "(float[1,12] x, float[N,12] z) => (float[A,B] y)",
        "s = Shape(z)",
        "y = Expand(x, s)",
    ),
    "padded by a computed number": (
        "(float[N,8,L] x) => (float[A,B,C] y)",
        "s = Shape <start = 2, end = 3> (x)",
        "z = Constant <value = int64[5] {0, 0, 0, 0, 0}> ()",
        "p = Concat <axis = 0> (z, s)",
        "y = Pad(x, p)",
    ),
    "an image resized to a computed size": (
        "(float[N,8,H,W] x, float[N,8,P,Q] z) => (float[A,B,C,D] y)",
        "a = Shape <start = 0, end = 2> (x)",
        "b = Shape <start = 2, end = 4> (z)",
        "s = Concat <axis = 0> (a, b)",
        "y = Resize(x, , , s)",
    ),
    "a slice whose ends are data": (
        "(float[5,12] x, int64[1] b) => (float[A,B] y)",
        "a = Constant <value = int64[1] {0}> ()",
        "y = Slice(x, a, b)",
    ),
}
