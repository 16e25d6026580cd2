"""Unfolding: a BatchNormalization behind each convolution that exporters folded one into.

    y = conv(x; w, b)   becomes   norm(conv(x; w, b))

with the mean and variance that conv(x; w, b) has on some data as statistics, and scale and shift
that undo them: the function stays the same, and training has norms again. What is written has them
folded back: w' = w scale / deviation, b' = (b - mean) scale / deviation + shift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from onnxprune.errors import OnnxPruneError
from onnxprune.rules.tables import NORMS
from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.lazy import F, torch
from onnxprune.torch_bridge.ops.norms import MOMENTUM
from onnxprune.torch_bridge.program import Step
from onnxprune.torch_bridge.table import FOLDABLE

EPSILON: Final = 1e-5
PARTS: Final = ("scale", "shift", "mean", "var")


@dataclass(frozen=True)
class Norm:
    """An unfolded norm: the weight and bias it is folded back into, and where its own lie."""

    weight: str
    bias: str
    module: Any

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weight (o, i, *) and bias (o,) that do without the norm."""
        own = self.module
        factor = own.scale * torch.rsqrt(own.var + EPSILON)
        wide = factor.reshape(-1, *([1] * (weight.ndim - 1)))
        return weight * wide, (bias - own.mean) * factor + own.shift


def unfold(module: Any, batches: Iterable[Mapping[str, Tensor]]) -> tuple[Norm, ...]:
    """Put norms behind the convolutions of a module that have none.

    Args:
        module: it is changed in place; it computes the same.
        batches: feeds for the statistics.

    Returns:
        the norms, also in ``module.norms``.

    Raises:
        OnnxPruneError: there are no batches.
    """
    program = module.program
    found = {index: step for index, step in enumerate(program.steps) if _is_bare(module, step)}
    sums = _moments(module, {step.outputs[0] for step in found.values()}, batches)
    steps, norms = list(program.steps), []
    for index, step in found.items():
        mean, var = sums[step.outputs[0]]
        own = torch.nn.Module()
        own.scale = torch.nn.Parameter(torch.sqrt(var + EPSILON))
        own.shift = torch.nn.Parameter(mean.clone())
        own.register_buffer("mean", mean)
        own.register_buffer("var", var)
        module._modules[f"unfolded {step.outputs[0].replace('.', '_')}"] = own
        steps[index] = replace(step, row=_normed(step.row, own))
        norms.append(Norm(step.inputs[1], step.inputs[2], own))
    module.program = replace(program, steps=tuple(steps))
    module.norms = tuple(norms)
    return module.norms  # type: ignore[no-any-return]


def _is_bare(module: Any, step: Step) -> bool:
    """Whether a step has a weight and bias that nothing else sees, and no norm behind it."""
    shown = module.program.outputs  # those of bodies are among what their node reads
    uses = Counter(name for other in module.program.steps for name in other.reads)
    normed = {s.inputs[0] for s in module.program.steps if s.op in NORMS}
    if step.op not in FOLDABLE or len(step.inputs) < 3 or step.outputs[0] in normed:
        return False
    stored = all(module.is_trained(name) and uses[name] == 1 for name in step.inputs[1:3])
    return stored and not {step.inputs[0], *shown}.intersection(step.inputs[1:3])


def _normed(row: Callable[..., Any] | None, own: Any) -> Callable[..., Any]:
    assert row is not None

    def both(at: Any, *operands: Tensor) -> Tensor:
        y = row(at, *operands)
        moving = at.mode.training and y.numel() > y.shape[1]
        parts = (own.mean, own.var, own.scale, own.shift)
        return F.batch_norm(y, *parts, moving, MOMENTUM, EPSILON)

    return both


def _moments(
    module: Any, names: set[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance (channels,) of some values over all samples and places."""
    sums: dict[str, list[Tensor]] = {}
    counts: Counter[str] = Counter()
    with torch.no_grad():
        for feeds in batches:
            for name, value in module.run(feeds, sorted(names)).items():
                axes = [0, *range(2, value.ndim)]
                own = value.double()
                parts = [own.sum(axes), (own * own).sum(axes)]
                sums[name] = [a + b for a, b in zip(sums.get(name, (0, 0)), parts, strict=True)]
                counts[name] += value.numel() // value.shape[1]
    if names and not counts:
        raise OnnxPruneError("norms can't be unfolded: there are no inputs to take statistics of")
    found = {}
    for name, (total, squares) in sums.items():
        mean = total / counts[name]
        var = (squares / counts[name] - mean * mean).clamp(min=0)
        found[name] = mean.float(), var.float()
    return found
