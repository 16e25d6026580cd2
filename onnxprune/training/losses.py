"""Losses by name, on the outputs of a module and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array
from onnxprune.sources import imported
from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.lazy import F, torch

Loss = str | Callable[[dict[str, Tensor], Any], Tensor]
Outputs = Mapping[str, Tensor]
DEFAULT: Final = "cross-entropy"
IGNORED: Final = -100  # a label that no loss looks at
BLANK: Final = 0  # of ctc


def cross_entropy(outputs: Outputs, labels: Tensor) -> Tensor:
    """Of classes, on the first output that has scores of classes for the labels."""
    for value in outputs.values():
        if not value.is_floating_point() or value.ndim <= labels.ndim:
            continue
        own = value.reshape(_trimmed(value.shape, labels.ndim + 1))
        for axis in (1, own.ndim - 1):
            rest = [*own.shape[:axis], *own.shape[axis + 1 :]]
            if own.ndim == labels.ndim + 1 and rest == list(labels.shape):
                scores = own.movedim(axis, 1).float()
                _check_classes(labels, scores.shape[1])
                return F.cross_entropy(scores, labels.long(), ignore_index=IGNORED)
    raise OnnxPruneError(_unfit(outputs, labels, "scores of classes"))


def _trimmed(shape: Sequence[int], rank: int) -> list[int]:
    own = list(shape)
    while len(own) > rank and own[-1] == 1:
        own.pop()
    return own


def _check_classes(labels: Tensor, count: int) -> None:
    own = labels[labels != IGNORED]
    if labels.is_floating_point() or (own.numel() and not 0 <= own.min() <= own.max() < count):
        raise OnnxPruneError(
            f"labels of type {labels.dtype} are wanted to be classes from 0 to {count - 1}: the "
            "model has that many"
        )


def mse(outputs: Outputs, labels: Tensor) -> Tensor:
    """The mean squared error of the first output that has the labels' shape."""
    for value in outputs.values():
        if tuple(value.shape) in (tuple(labels.shape), (*labels.shape, 1)):
            return F.mse_loss(value.float().reshape(labels.shape), labels.float())
    raise OnnxPruneError(_unfit(outputs, labels, "values"))


def ctc(outputs: Outputs, labels: Tensor) -> Tensor:
    """Connectionist temporal classification, of the first output of three axes.

    Labels (n, longest) are padded with what is below 0; class 0 is the blank. Steps come first, or
    second where the first axis has the size of the labels'.
    """
    for value in outputs.values():
        if value.is_floating_point() and value.ndim == 3 and len(labels) in value.shape[:2]:
            first = value.shape[0] == len(labels)
            scores = F.log_softmax((value.transpose(0, 1) if first else value).float(), -1)
            steps = torch.full((len(labels),), scores.shape[0], dtype=torch.long)
            lengths = (labels >= 0).sum(1)
            wanted = labels.clamp(min=0).long()
            return F.ctc_loss(scores, wanted, steps, lengths, BLANK, zero_infinity=True)
    raise OnnxPruneError(_unfit(outputs, labels, "steps of scores"))


def _unfit(outputs: Outputs, labels: Tensor, what: str) -> str:
    shapes = ", ".join(f"'{name}' {tuple(value.shape)}" for name, value in outputs.items())
    return (
        f"no output holds {what} for labels of shape {tuple(labels.shape)}: there are {shapes}; "
        "give --loss module:function"
    )


LOSSES: Final[dict[str, Callable[[Outputs, Tensor], Tensor]]] = {
    "cross-entropy": cross_entropy,
    "ctc": ctc,
    "mse": mse,
}


def loss_of(loss: Loss) -> Callable[[dict[str, Tensor], Any], Tensor]:
    """The function of a loss: of outputs by name and labels.

    Raises:
        OnnxPruneError: there is none of this name.
    """
    if not isinstance(loss, str):
        return loss
    if loss in LOSSES:
        return LOSSES[loss]
    module, colon, name = loss.partition(":")
    if not colon:
        raise OnnxPruneError(
            f"the loss '{loss}' is not known: choose {', '.join(LOSSES)} or give 'module:function'"
        )
    return imported(module, name)


def label_tensor(labels: Array) -> Any:
    """Labels as a tensor; sequences of several lengths are padded with -1."""
    if labels.dtype != object:
        return torch.from_numpy(np.array(labels))
    longest = max(len(np.atleast_1d(own)) for own in labels)
    padded = np.full((len(labels), longest), -1, np.int64)
    for row, own in zip(padded, labels, strict=True):
        row[: len(np.atleast_1d(own))] = own
    return torch.from_numpy(padded)
