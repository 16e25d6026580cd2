"""A running mean of weights: what is judged and kept instead of the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.lazy import torch


class Average:
    """The exponential mean of a module's parameters and statistics."""

    def __init__(self, module: Any, decay: float | None) -> None:
        self.module, self.decay = module, decay
        self.values = {n: v.clone() for n, v in self._now().items()} if decay is not None else {}

    def _now(self) -> dict[str, Tensor]:
        own = self.module.state_dict()
        return {n: v.detach() for n, v in own.items() if v.is_floating_point()}

    def update(self, step: int) -> None:
        """Take in the weights of a step; the mean is shorter in the first ones."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self._now().items():
            self.values[name].lerp_(value, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the mean for its weights."""
        if self.decay is None:
            yield
            return
        now = {n: v.clone() for n, v in self._now().items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(now)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._now().items():
                value.copy_(values[name])
