"""The bridge to torch: an .onnx graph as a torch.nn.Module, and its weights back into the graph.

    module = bridge(load("small.onnx"))     # parameters and buffers under their ONNX names
    loss(module(x), labels).backward()      # gradients reach every float initializer
    save(module.written(), Path("out.onnx"))  # the same graph with the weights of now

One row per operator (``onnxprune.torch_bridge.table``), like the rules. torch is imported when a
module is made, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxprune.model import Model
from onnxprune.torch_bridge.at import At, UntrainableError
from onnxprune.torch_bridge.lazy import need_torch
from onnxprune.torch_bridge.table import CONTROL, NO_GRADIENT, TABLE

__all__ = ["At", "UntrainableError", "bridge", "carried", "need_torch", "row_of_user"]

Rows = Mapping[str, Callable[..., Any]]


def bridge(model: Model, rows: Rows | None = None) -> Any:
    """The module of a loaded model.

    Args:
        model: from ``onnxprune.files.load``.
        rows: rows for custom operators, by operator; they come first (see ``row_of_user``).

    Raises:
        OnnxPruneError: torch is missing.
        UntrainableError: an operator has no row, or a tensor a type that torch has not got.
    """
    need_torch()
    from onnxprune.torch_bridge.module import OnnxModule

    return OnnxModule(model, {**TABLE, **(rows or {})})


def carried(op: str) -> str:
    """What the bridge does with an operator: ``yes``, ``no gradient`` or ``no``."""
    if op in NO_GRADIENT:
        return "no gradient"
    return "yes" if op in TABLE or op in CONTROL else "no"


def row_of_user(function: Callable[..., Any]) -> Callable[..., Any]:
    """The row of a function of operands that takes attributes by name."""
    return lambda at, *operands: function(*operands, **at.attributes)
