"""The Python interface to what needs gradients (extra ``torch``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune import files, torch_bridge
from onnxprune.api_rules import every_row, every_rule


def bridge(model: Any, rules: Mapping[str, str] | None = None) -> Any:
    """The model as a torch.nn.Module, its weights as parameters under their ONNX names.

    ``module(x)`` gives the output, ``module.written()`` the file's graph with the weights of now.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        rules: rows for custom operators; ``register_rule`` gives these a function of torch.

    Raises:
        OnnxPruneError: torch is missing, or an operator has no function of torch.
    """
    return torch_bridge.bridge(files.load(model, rules=every_rule(rules)), every_row())
