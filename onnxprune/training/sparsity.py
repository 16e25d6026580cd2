"""Sparse learning: training that makes the weak channels of each group weaker, before pruning.

    loss + strength * sum over groups and indices k of  rate_k * |W_k|^2

where W_k is all of every member that vanishes with index k, and rate_k rises from 1 for the largest
norm of the group to 2^4 for the smallest (Fang et al. 2023, DepGraph, arXiv:2301.12900).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.score.slices import index_of
from onnxprune.torch_bridge.at import Tensor, tensor
from onnxprune.torch_bridge.lazy import torch
from onnxprune.training.loop import Task
from onnxprune.training.stream import Batch

EXPONENT: Final = 4.0


@dataclass(frozen=True)
class Part:
    """One axis of a weight, and for each of its indices that of the group, -1 for none."""

    weight: str
    axis: int
    index: Any

    def squares(self, module: Any, size: int) -> Tensor:
        """The squares (size,) of what vanishes with each index of the group."""
        own = module.weight(self.weight).float()
        axes = [axis for axis in range(own.ndim) if axis != self.axis]
        each = (own * own).sum(axes) if axes else own * own
        held = self.index >= 0
        return torch.zeros(size, device=own.device).index_add(0, self.index[held], each[held])


def parts_of(coupling: Coupling, module: Any) -> dict[int, list[Part]]:
    """The trained members of each group, by factor."""
    found: dict[int, list[Part]] = {}
    for group in coupling.groups:
        for member in group.members:
            param = coupling.model.params[member.param]
            if module.is_trained(param.origin):
                index = index_of(
                    coupling.factors, member.layout, param.shape[member.axis], group.factor
                )
                part = Part(param.origin, member.axis, tensor(index))
                found.setdefault(group.factor, []).append(part)
    return found


def penalty(module: Any, parts: Mapping[int, list[Part]], sizes: Mapping[int, int]) -> Tensor:
    """The sum over all groups; rates are constants to the gradient."""
    total = torch.zeros(())
    for factor, own in parts.items():
        squares = torch.stack([p.squares(module, sizes[factor]) for p in own]).sum(0)
        norms = squares.detach().sqrt()
        span = (norms.max() - norms.min()).clamp(min=1e-12)
        rates = 2 ** (EXPONENT * (norms.max() - norms) / span)
        total = total.to(squares.device) + (rates * squares).sum()
    return total


def sparse(task: Task, coupling: Coupling, module: Any, strength: float) -> Task:
    """A task with the penalty.

    Raises:
        OnnxPruneError: the strength is not above 0, or there is nothing to make sparse.
    """
    if not strength > 0:
        raise OnnxPruneError(f"sparse is {strength:g}: it must be above 0")
    parts = parts_of(coupling, module)
    if not parts:
        raise OnnxPruneError("the model has no group with trained weights to make sparse")
    sizes = {group.factor: group.size for group in coupling.groups}

    def both(module: Any, feeds: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return task(module, feeds, batch) + strength * penalty(module, parts, sizes)

    return both
