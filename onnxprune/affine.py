"""Nodes that end in a stored scale and shift of each channel: norms.

When channels go, the statistics that a norm divides by change. What its result then misses of the
original's is mended, channel by channel, by ``a y + b``, which its scale and shift can carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Bound, Coupling
from onnxprune.model import Array, Node
from onnxprune.rules.tables import SCALED

FIRM: Final = 1e-3  # how firmly a scale is held, as a share of the channel's variance
TINY: Final = 1e-30


@dataclass(frozen=True)
class Affine:
    """A norm.

    Attributes:
        node: the node.
        scale, shift: positions of its operands; no shift is None.
        axis: the channels' axis in its result.
    """

    node: Node
    scale: int
    shift: int | None
    axis: int


def affine_of(coupling: Coupling, bound: Bound) -> Affine | None:
    """The node as a norm; None where it is none, or its scale is not one vector of channels."""
    if bound.node.op not in SCALED:
        return None
    axes, result = bound.fit.operands[SCALED[bound.node.op]], bound.fit.results[0]
    scale = SCALED[bound.node.op]
    if axes is None or result is None or len(axes) != 1 or axes[0] not in result:
        return None
    names = bound.node.inputs
    if names[scale] not in coupling.model.params:
        return None
    has_shift = len(names) > scale + 1 and names[scale + 1] in coupling.model.params
    return Affine(bound.node, scale, scale + 1 if has_shift else None, result.index(axes[0]))


@dataclass
class Lines:
    """Sums for a line t = a y + b in every channel (c,)."""

    count: int = 0
    y: Values | float = 0.0
    t: Values | float = 0.0
    yy: Values | float = 0.0
    yt: Values | float = 0.0
    tt: Values | float = 0.0

    def add(self, y: Array, t: Array, axis: int) -> None:
        """Take in values and targets of the same shape."""
        others = tuple(k for k in range(y.ndim) if k != axis)
        a, b = y.astype(np.float64), t.astype(np.float64)
        self.count += y.size // y.shape[axis]
        self.y, self.t = self.y + a.sum(others), self.t + b.sum(others)
        self.yy, self.tt = self.yy + (a * a).sum(others), self.tt + (b * b).sum(others)
        self.yt = self.yt + (a * b).sum(others)

    def solved(self, free: bool) -> tuple[Values, Values]:
        """The lines (c,): slopes held near 1, and shifts, which are 0 where they are not free."""
        n = max(self.count, 1)
        my, mt = (np.asarray(x) / n if free else np.zeros(1) for x in (self.y, self.t))
        variance = np.asarray(self.yy) / n - my * my
        both = np.asarray(self.yt) / n - my * mt
        firm = FIRM * np.maximum(variance, TINY) + TINY
        slope = (both + firm) / (variance + firm)
        return slope, np.asarray(mt - slope * my) * np.ones_like(slope)

    def left(self, slope: Values | float, shift: Values | float) -> float:
        """The sum of (a y + b - t)^2 over channels."""
        square = slope * slope * self.yy + self.count * shift * shift + self.tt
        mixed = slope * shift * self.y - slope * self.yt - shift * self.t
        return max(float(np.sum(square + 2 * mixed)), 0.0)

    def spread(self) -> float:
        """The targets' variance, summed over channels and rows."""
        mean = np.asarray(self.t) / max(self.count, 1)
        return float(np.sum(self.tt - self.count * mean * mean))
