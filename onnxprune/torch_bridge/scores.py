"""Class scores of a module, and losses that need no labels: they are drawn from its own outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.rules.tables import PROBABILITIES
from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.lazy import F, torch


def score_names(module: Any) -> dict[str, str]:
    """For each output the value that a loss reads: what stands before a Softmax, else itself."""
    made = {name: step for step in module.program.steps for name in step.outputs}
    found = {}
    for name in module.program.outputs:
        step = made.get(name)
        normed = step is not None and step.op in PROBABILITIES and step.at.opset >= 13
        found[name] = step.inputs[0] if step is not None and normed else name
    return found


def own_loss(scores: Mapping[str, Tensor], generator: Any) -> Tensor:
    """The sum over samples of the negative log-likelihood of labels drawn from the outputs.

    Of scores (n, classes) a class is drawn; of other outputs a normal value around each number, so
    that squared gradients are those of Gauss and Newton. The expectation of the squared gradient is
    Fisher's information (Kunstner, Hennig and Balles 2019, on why the labels must be drawn).

    Args:
        scores: outputs by name, as ``score_names`` says.
        generator: torch's, of the draw.
    """
    total = None
    for value in scores.values():
        if not value.is_floating_point():
            continue
        own = value.float()
        if own.ndim == 2 and own.shape[1] > 1:
            shares = torch.softmax(own.detach(), -1)
            drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
            loss = F.cross_entropy(own, drawn, reduction="sum")
        else:
            noise = torch.randn(own.shape, generator=generator).to(own.device)
            scale = own.detach().std(correction=0).clamp(min=1e-12)
            loss = (noise * own / scale).sum()
        total = loss if total is None else total + loss
    assert total is not None, "a model has an output"
    return total
