"""How far the outputs of two models are apart: in the terms that users of a model think in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.model import Array

SUM: Final = 1e-3  # how far the sum of probabilities may be from 1
TINY: Final = 1e-12


def is_probability(value: Array) -> bool:
    """Whether the last axis holds probabilities."""
    if value.ndim < 1 or value.shape[-1] < 2 or not value.size or value.min() < 0:
        return False
    return bool(np.abs(value.sum(axis=-1) - 1).max() < SUM)


def log_softmax(value: Array) -> Values:
    """The logarithm of softmax over the last axis."""
    wide = value.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), np.float64)


def log_probabilities(value: Array) -> Values | None:
    """The logarithms that a result stands for: of probabilities, or of logits (n, classes)."""
    if is_probability(value):
        return np.asarray(np.log(np.maximum(value.astype(np.float64), TINY)), np.float64)
    return log_softmax(value) if value.ndim == 2 and value.shape[1] > 2 else None


def kl(found: Array, expected: Array) -> float | None:
    """Mean KL(expected || found) in nats, where results are class scores; None where not."""
    wanted, own = log_probabilities(expected), log_probabilities(found)
    if wanted is None or own is None:
        return None
    return float((np.exp(wanted) * (wanted - own)).sum(axis=-1).mean())


def missed(found: Array, expected: Array) -> float:
    """Mean squared error over the variance of what is expected."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    spread = float(b.var()) or float(np.square(b).mean()) or 1.0
    return float(np.square(a - b).mean()) / spread


def divergence(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """How far outputs are from what they were, summed: KL of class scores, else squared error."""
    total = 0.0
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, np.ndarray) and b.dtype.kind == "f" and b.size and a.shape == b.shape:
            apart = kl(a, b)
            total += missed(a, b) if apart is None else apart
    return total
