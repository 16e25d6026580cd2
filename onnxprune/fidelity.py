"""How far the outputs of two models are apart: in the terms that users of a model think in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.model import Array
from onnxprune.runtime import Feeds, Runner

SUM: Final = 1e-3  # how far the sum of probabilities may be from 1
TINY: Final = 1e-12
LOWEST: Final = -1e30  # a score of what is masked
TOKENS: Final = 3  # axes of a result that has scores for each token, at most


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
    """How far outputs are from what they were, summed: KL of class scores, else squared error.

    Infinite where a number is not finite that was; what never was counts for nothing.
    """
    total = 0.0
    for a, b in zip(found, expected, strict=True):
        if not (isinstance(b, np.ndarray) and b.dtype.kind == "f" and a.shape == b.shape):
            continue
        there = np.isfinite(b)
        if not np.isfinite(a[there]).all():
            return math.inf
        if there.all() and b.size:
            apart = kl(a, b)
            total += missed(a, b) if apart is None else apart
        elif there.any():
            total += missed(a[there], b[there])
    return total


@dataclass(frozen=True)
class Fidelity:
    """How far one output of a smaller model is from the original's, over all samples.

    Attributes:
        output: its name.
        samples: how many were compared: the sizes of axis 0.
        scores: whether it holds class scores: probabilities over the last axis, or (n, classes).
        agreement: share of places with the same argmax over the last axis; of whole numbers, of
            equal ones; None where the last axis is none to choose from (maps, single numbers).
        cosine: mean over samples of the cosine between both; None of whole numbers.
        kl: mean KL(original || smaller) in nats, of class scores alone.
        sqnr_db: energy of the original over that of the error; None where there is no error.
        missed: mean squared error over the variance of the original.
        max_error: the largest absolute difference.
        incomparable: samples of which the shapes differ, or where other values are not finite; they
            count as missed.
    """

    output: str
    samples: int
    scores: bool
    agreement: float | None
    cosine: float | None
    kl: float | None
    sqnr_db: float | None
    missed: float | None
    max_error: float
    incomparable: int = 0

    @property
    def value(self) -> float:
        """One number for gates, 1 at best: agreement where that says all, else 1 - missed."""
        if self.agreement is not None and (self.scores or self.missed is None):
            return self.agreement
        return 1 - (self.missed or 0.0)


def fidelity(original: Runner, small: Runner, feeds: Iterable[Feeds]) -> tuple[Fidelity, ...]:
    """Compare all outputs that are tensors of numbers, batch by batch; only sums are kept.

    Args:
        original, small: outputs by name for feeds.
        feeds: batches of inputs.
    """
    sums: dict[str, _Sums] = {}
    for batch in feeds:
        found, expected = small(batch), original(batch)
        for name, value in expected.items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size:
                sums.setdefault(name, _Sums()).add(found[name], value)
    return tuple(own.result(name) for name, own in sums.items())


@dataclass
class _Sums:
    """Sums over samples of one output."""

    samples: int = 0
    lost: int = 0
    places: int = 0
    same: int = 0
    cosine: float = 0.0
    rows: int = 0
    kl: float = 0.0
    error: float = 0.0
    energy: float = 0.0
    total: float = 0.0
    numbers: int = 0
    most: float = 0.0
    scores: bool | None = None
    whole: bool = False

    def add(self, found: Any, expected: Array) -> None:
        """Take one batch in."""
        count = len(np.atleast_1d(expected))
        self.samples += count
        self.whole = expected.dtype.kind != "f"
        floats = not self.whole
        if self.scores is None:
            choice = floats and expected.ndim > 1
            self.scores = choice and log_probabilities(expected) is not None
        last = expected.shape[-1] if self.scores or 1 < expected.ndim <= TOKENS else 1
        places = expected.size // last if floats else expected.size
        self.places += places if last > 1 or self.whole else 0
        if not _comparable(found, expected):
            self.lost += count
            return
        there = np.isfinite(expected) if floats else np.ones(expected.shape, bool)
        a, b = (np.where(there, x, 0).astype(np.float64) for x in (found, expected))
        if self.whole:
            self.same += int((found == expected).sum())
            self.most = max(self.most, float(np.abs(a - b).max()))
            return
        if last > 1:
            self.same += int((a.argmax(axis=-1) == b.argmax(axis=-1)).sum())
        self.most = max(self.most, float(np.abs(a - b).max()))
        self.error += float(np.square(a - b).sum())
        self.energy += float(np.square(b).sum())
        self.total, self.numbers = self.total + float(b.sum()), self.numbers + b.size
        a, b = a.reshape(count, -1), b.reshape(count, -1)
        lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        norms = np.maximum(lengths[0] * lengths[1], TINY)
        both = (lengths[0] == 0) & (lengths[1] == 0)
        self.cosine += float(np.where(both, 1.0, (a * b).sum(axis=1) / norms).sum())
        if self.scores:
            apart = kl(*(np.where(there, x.astype(np.float64), LOWEST) for x in (found, expected)))
            self.kl += places * (0.0 if apart is None else apart)
            self.rows += places if apart is not None else 0

    def result(self, name: str) -> Fidelity:
        """What the sums say."""
        kept = self.samples - self.lost
        agreement = self.same / self.places if self.places else None
        if self.whole:
            return Fidelity(
                name, self.samples, False, agreement, None, None, None, None, self.most, self.lost
            )
        mean = self.total / max(self.numbers, 1)
        spread = self.energy - self.numbers * mean**2
        if spread <= TINY * self.energy or spread <= 0:
            spread = self.energy or 1.0
        share = kept / self.samples
        return Fidelity(
            name,
            self.samples,
            bool(self.scores),
            agreement,
            self.cosine / self.samples,
            self.kl / self.rows if self.rows else None,
            10 * float(np.log10(max(self.energy, TINY) / self.error)) if self.error > 0 else None,
            (self.error / spread) * share + (1 - share),
            self.most,
            self.lost,
        )


def _comparable(found: Any, expected: Array) -> bool:
    """Whether there is a number to be told of how far they are apart."""
    if not isinstance(found, np.ndarray) or found.shape != expected.shape:
        return False
    return expected.dtype.kind != "f" or np.array_equal(np.isfinite(found), np.isfinite(expected))
