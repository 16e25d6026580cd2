"""Several processes that train one model, as ``torchrun`` starts them: gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.lazy import torch


@dataclass(frozen=True)
class World:
    """The processes: how many, and which this one is."""

    size: int = 1
    rank: int = 0
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process judges and writes."""
        return self.rank == 0

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in one message."""
        own = [t for t in tensors if t.is_floating_point()]
        if self.size == 1 or not own:
            return
        flat = torch.cat([t.detach().reshape(-1).float() for t in own])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        with torch.no_grad():
            for t, part in zip(own, flat.split([t.numel() for t in own]), strict=True):
                t.copy_(part.reshape(t.shape))

    def told(self, value: Any) -> Any:
        """What the leading process knows."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]


ALONE: Final = World()


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes of ``torchrun``; this one alone where it did not start it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    own = World(size, int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")))
    made = not torch.distributed.is_initialized()
    if made:
        backend = "nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend)
    try:
        yield own
    finally:
        if made:
            torch.distributed.destroy_process_group()
