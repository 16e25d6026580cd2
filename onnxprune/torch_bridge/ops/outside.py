"""Rows that torch has no function for and that carry no gradient: ONNX Runtime does them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import onnx

from onnxprune import runtime
from onnxprune.torch_bridge.at import At, Made, Tensor, array, tensor
from onnxprune.torch_bridge.lazy import torch


@lru_cache(maxsize=64)
def _session(node: bytes, opset: int, types: tuple[int, ...], domain: str) -> Any:
    """A session of one node."""
    proto = onnx.NodeProto.FromString(node)
    given = [n for n in proto.input if n]
    inputs = [
        onnx.helper.make_tensor_value_info(n, t, None) for n, t in zip(given, types, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in proto.output]
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 18 if domain else min(opset, 18))]
    if domain:
        opsets.append(onnx.helper.make_opsetid(domain, opset))
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return runtime.session(model, None)


def by_runtime(op: str, domain: str = "") -> Any:
    """The row that asks ONNX Runtime."""

    def row(at: At, *operands: Tensor | None) -> Made:
        arrays = [None if x is None else array(x) for x in operands]
        names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
        made = [f"y{i}" for i in range(at.results)]
        node = onnx.helper.make_node(op, names, made, domain=domain, **at.attributes)
        feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
        types = tuple(onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for a in feeds.values())
        session = _session(node.SerializeToString(), at.opset, types, domain)
        found = runtime.run(session, feeds, made)
        return tuple(tensor(a) for a in found)

    return row


def scaler(at: At, x: Tensor) -> Tensor:
    """Shifted and scaled by the node's own numbers."""
    offset, scale = (torch.tensor(at(n), device=x.device) for n in ("offset", "scale"))
    return (x - offset) * scale


def normalizer(at: At, x: Tensor) -> Tensor:
    """Rows divided by a norm."""
    order = {"MAX": math.inf, "L1": 1, "L2": 2}[at("norm", "MAX")]
    norm = torch.linalg.vector_norm(x, order, -1, keepdim=True)
    return torch.where(norm == 0, x, x / norm)


ML: Final = "ai.onnx.ml"
NO_GRADIENT: Final[dict[str, Any]] = {
    "NonMaxSuppression": by_runtime("NonMaxSuppression"),
    "Unique": by_runtime("Unique"),
    f"{ML}::ArrayFeatureExtractor": by_runtime("ArrayFeatureExtractor", ML),
    f"{ML}::LinearClassifier": by_runtime("LinearClassifier", ML),
}
ROWS: Final[dict[str, Any]] = {
    **NO_GRADIENT,
    f"{ML}::Normalizer": normalizer,
    f"{ML}::Scaler": scaler,
}
