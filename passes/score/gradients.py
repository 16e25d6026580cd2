"""Criteria that look at gradients (extra ``torch``): what the loss says when an index is masked.

Every group gets one variable, a mask of ones that multiplies what contractions read of it, for each
sample its own; one backward pass of a batch gives the gradients of all groups, and none of a single
weight. Labels are drawn from the model's own outputs, so there need not be any.

- taylor: the mean size of the first-order change (Molchanov et al. 2017, arXiv:1611.06440).
- fisher: the mean square of the gradient, half of it the second-order change (Theis et al. 2018,
  arXiv:1801.05787; labels drawn: Kunstner et al. 2019).
- hessian: the diagonal of the second derivative by Hutchinson's estimate, half of it the change
  (LeCun, Denker and Solla 1990, Optimal Brain Damage; Yao et al. 2021, AdaHessian).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from onnxprune.axes import Layout, Opaque, Values
from onnxprune.coupling import Bound, Coupling
from onnxprune.passes.score.criteria import Scores, Settings, l2
from onnxprune.passes.score.slices import index_of
from onnxprune.torch_bridge import bridge
from onnxprune.torch_bridge.at import Tensor, tensor
from onnxprune.torch_bridge.lazy import torch
from onnxprune.torch_bridge.scores import own_loss, score_names

FLOOR: Final = 1e-12
PROBES: Final = 2  # of Hutchinson's estimate, for each batch
Places = Mapping[tuple[str, int], Mapping[int, Layout]]  # node's key, operand -> axis -> layout


def taylor(coupling: Coupling, settings: Settings) -> Scores:
    """The mean size of the first-order change; see the module's docstring."""
    return _scored(coupling, settings, lambda each: np.abs(each).mean(axis=0), 1.0)


def fisher(coupling: Coupling, settings: Settings) -> Scores:
    """Half the mean square of the gradient; see the module's docstring."""
    return _scored(coupling, settings, lambda each: np.square(each).mean(axis=0) / 2, 0.5)


def hessian(coupling: Coupling, settings: Settings) -> Scores:
    """Half the diagonal of the second derivative; see the module's docstring."""
    sums: dict[int, Values] = {}
    samples = 0
    work = _Work.of(coupling, settings)
    for loss, masks, count in work.losses(whole=True):
        samples += count
        names = list(masks)
        first = _grad(loss, [masks[n] for n in names], create=True)
        for _ in range(PROBES):
            signs = [
                torch.randint(0, 2, g.shape, generator=work.generator) * 2.0 - 1 for g in first
            ]
            total = sum((g * z).sum() for g, z in zip(first, signs, strict=True))
            second = _grad(total, [masks[n] for n in names], keep=True)
            for name, z, hz in zip(names, signs, second, strict=True):
                own = (z * hz).detach().double().numpy()[0] / (2 * PROBES)
                sums[name] = sums.get(name, 0) + own
    found = {factor: np.abs(values) / samples for factor, values in sums.items()}
    return _complete(coupling, settings, found, 0.5)


def _scored(
    coupling: Coupling, settings: Settings, measure: Callable[[Values], Values], root: float
) -> Scores:
    """The measure of the gradients (samples, size) of each group's mask."""
    sums: dict[int, Values] = {}
    samples = 0
    for loss, masks, count in _Work.of(coupling, settings).losses():
        names = list(masks)
        grads = _grad(loss, [masks[n] for n in names])
        samples += count
        for name, grad in zip(names, grads, strict=True):
            own = measure(grad.detach().double().numpy()) * count
            sums[name] = sums.get(name, 0) + own
    found = {factor: values / samples for factor, values in sums.items()}
    return _complete(coupling, settings, found, root)


def _complete(
    coupling: Coupling, settings: Settings, found: Mapping[int, Values], root: float
) -> Scores:
    """Losses as norms, times the group's size; l2 for groups that no contraction reads."""
    scores = {}
    plain = l2(coupling, settings) if len(found) < len(coupling.groups) else {}
    for group in coupling.groups:
        own = found.get(group.factor)
        own = np.square(plain[group.factor]) if own is None else own
        scores[group.factor] = np.maximum(own, FLOOR) ** root * group.size
    return scores


def _grad(loss: Tensor, masks: list[Tensor], create: bool = False, keep: bool = False) -> Any:
    """Gradients by the masks, zeros where the loss does not depend on one."""
    found = torch.autograd.grad(
        loss, masks, create_graph=create, retain_graph=create or keep, allow_unused=True
    )
    return [torch.zeros_like(m) if g is None else g for g, m in zip(found, masks, strict=True)]


@dataclass(frozen=True)
class _Work:
    """A module whose contractions read masked values.

    Attributes:
        coupling: the structure of the model.
        settings: what was asked for.
        module: the bridge's; its weights need no gradient.
        places: what is masked.
        generator: of all that is random.
    """

    coupling: Coupling
    settings: Settings
    module: Any
    places: Places
    generator: Any

    @staticmethod
    def of(coupling: Coupling, settings: Settings) -> _Work:
        module = bridge(coupling.model).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(settings.seed)
        return _Work(coupling, settings, module, _places(coupling), generator)

    def losses(self, whole: bool = False) -> Iterator[tuple[Tensor, dict[int, Tensor], int]]:
        """For each batch the loss, the masks (samples, size) by factor, and the samples.

        Args:
            whole: whether all samples of a batch share one mask (1, size).
        """
        names = score_names(self.module)
        for index, feeds in enumerate(self.settings.feeds or ()):
            if self.settings.progress is not None:
                self.settings.progress(f"gradients of batch {index + 1}")
            given = {name: tensor(array) for name, array in feeds.items()}
            count = next((len(x) for x in given.values() if x.ndim), 1)
            masks: dict[int, Tensor] = {}
            spread = _Spread(self.coupling, masks, 1 if whole else count, self.places)
            found = self.module.run(given, sorted(set(names.values())), spread)
            yield own_loss(found, self.generator), masks, count


@dataclass(frozen=True)
class _Spread:
    """Multiplies what a contraction reads by the masks of the groups that it holds."""

    coupling: Coupling
    masks: dict[int, Tensor]
    samples: int
    places: Places

    def __call__(self, key: str, position: int, value: Tensor) -> Tensor:
        for axis, layout in self.places.get((key, position), {}).items():
            value = value * self.mask(layout, value, axis)
        return value

    def mask(self, layout: Layout, value: Tensor, axis: int) -> Tensor:
        """The mask of an axis, as it broadcasts to the value."""
        size, each = value.shape[axis], self.samples
        own = torch.ones(each, size)
        factors = self.coupling.factors
        groups = {group.factor: group.size for group in self.coupling.groups}
        for factor in factors.leaves(layout):
            if factor not in groups:
                continue
            if factor not in self.masks:
                self.masks[factor] = torch.ones(each, groups[factor], requires_grad=True)
            index = index_of(factors, layout, size, factor)
            held = tensor(index >= 0)
            part = self.masks[factor][:, tensor(index.clip(0))]
            own = own * torch.where(held, part, torch.ones(()))
        if each > 1 and (axis == 0 or value.shape[0] % each):
            own = own.mean(0, keepdim=True)  # samples are not apart here: all share the gradient
        elif each > 1:
            own = own.repeat_interleave(value.shape[0] // each, 0)
        shape = [1] * value.ndim
        shape[axis] = size
        if len(own) > 1:
            shape[0] = len(own)
        return own.reshape(shape)


def _places(coupling: Coupling) -> Places:
    """The computed operands and axes that contractions sum over and that hold a group."""
    groups = {group.factor for group in coupling.groups}
    found: dict[tuple[str, int], dict[int, Layout]] = {}
    for bound in coupling.bound:
        for position, axis in sorted(_contracted(coupling, bound)):
            layout = coupling.layouts[bound.node.inputs[position]][axis]
            normal = coupling.factors.normal(layout)
            if not isinstance(normal, Opaque) and groups & set(coupling.factors.leaves(layout)):
                found.setdefault((bound.node.key, position), {})[axis] = layout
    return found


def _contracted(coupling: Coupling, bound: Bound) -> set[tuple[int, int]]:
    """For each contracted letter one computed operand and axis that holds it."""
    places: dict[str, tuple[int, int]] = {}
    for position, axes in enumerate(bound.fit.operands):
        name = bound.node.inputs[position] if position < len(bound.node.inputs) else ""
        if not name or name in coupling.model.params or name not in coupling.layouts:
            continue
        for axis, pattern in enumerate(axes or ()):
            for letter in {x for term in pattern for x in term} & bound.fit.contracted:
                places.setdefault(letter, (position, axis))
    return set(places.values())
