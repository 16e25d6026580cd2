"""torch, imported when it is first used: listing the rows of a table must not need it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnxprune.errors import OnnxPruneError

MISSING = "gradients want PyTorch, which is not installed: pip install 'onnxprune[torch]'"


class _Lazy:
    """A module that is imported at the first look into it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        try:
            found = getattr(import_module(self._name), name)
        except ImportError as error:
            raise OnnxPruneError(MISSING) from error
        setattr(self, name, found)  # the next look finds it at once
        return found


torch: Any = _Lazy("torch")
F: Any = _Lazy("torch.nn.functional")


def need_torch() -> None:
    """Say at once that torch is missing, before any work is done.

    Raises:
        OnnxPruneError: it is.
    """
    assert torch.Tensor
