"""What is gathered of a layer over all batches, and the change of its weight that it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from onnxprune.axes import Values
from onnxprune.linear import Linear, Sizes
from onnxprune.model import Array
from onnxprune.moments import TINY, Moments, Spread, best, is_finite, joined, ridge
from onnxprune.results import Layer
from onnxprune.sides import Step

HELD: Final = 4  # every so-manieth batch chooses the penalty
SAME: Final = 1e-10  # share of the target's energy that rounding may miss


def is_held(batch: int, count: int) -> bool:
    """Whether a batch is held back from the fit, to judge it by."""
    return count > 1 and batch % HELD == min(HELD, count) - 1


@dataclass(frozen=True)
class Change:
    """What is added to a weight (b, d, o); what is missed then of rows held back; the penalty."""

    delta: Values
    lost: float
    strength: float
    rows: int


@dataclass(frozen=True)
class Fitted:
    """What was done to a layer; its new weight and what is added to its bias, where it changes."""

    layer: Layer
    weight: Array | None = None
    bias: Values | None = None


@dataclass
class Gathered:
    """What is known of a layer before it is fitted.

    Attributes:
        weight: as the pruned model has it.
        matrix: the same as (b, d, o).
        sizes: of its letters.
        carrier: where a change of the bias goes; then the last row of moments is of a constant 1.
        parts: moments to fit, and those to judge by.
        spread: of the targets.
    """

    weight: Array
    matrix: Array
    sizes: Sizes
    carrier: Step | None
    parts: list[Moments] = field(default_factory=lambda: [Moments(), Moments()])
    spread: Spread = field(default_factory=Spread)

    @property
    def judge(self) -> Moments:
        """The moments to judge by."""
        return self.parts[1] if self.parts[1].count else self.parts[0]

    def join(self, other: Gathered) -> None:
        """Take in what another use of the same weight has gathered."""
        self.parts = [joined(pair) for pair in zip(self.parts, other.parts, strict=True)]
        self.spread.join(other.spread)

    def fitted(self, linear: Linear) -> Fitted | None:
        """The layer's new weight and bias; None where nothing is missed."""
        change, label, inner = self.solved(), linear.node.label, self.matrix.shape[1]
        if change is None:
            return None
        scale = max(self.spread.variance() * self.judge.count / change.rows, TINY)
        before = self.judge.energy / scale
        weight = linear.tensor(self.matrix + change.delta[:, :inner], self.weight.shape, self.sizes)
        if not change.lost < self.judge.energy or not is_finite(weight, self.weight.dtype):
            return Fitted(Layer(label, before, before, None, "no fit does better on other samples"))
        bias = None if self.carrier is None else change.delta[:, inner:].reshape(-1)
        return Fitted(Layer(label, before, change.lost / scale, change.strength), weight, bias)

    def solved(self) -> Change | None:
        """The best change of the weight; None where nothing is missed."""
        whole = joined(self.parts)
        if whole.energy <= SAME * self.spread.variance() or not whole.count:
            return None
        free = self.carrier is not None
        lost, strength = best(self.parts[0], self.judge, free)
        return Change(ridge(whole, strength, free), lost, strength, whole.count)
