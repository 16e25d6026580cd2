"""The criteria: each gives every index of every group a score (size,), higher is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Coupling
from onnxprune.passes.score.chains import NORMALIZES, users
from onnxprune.passes.score.magnitude import (
    Progress,
    combine,
    gather,
    medians,
    norms,
    scaled,
    weights,
)
from onnxprune.passes.score.redundancy import TOLERANCE, twins
from onnxprune.passes.score.slices import L1, L2_SQUARED, LINF, Measure
from onnxprune.runtime import Feeds


@dataclass(frozen=True)
class Settings:
    """What ``score`` was asked for; see there."""

    seed: int
    sides: str
    scale: str
    progress: Progress | None
    feeds: Sequence[Feeds] | None = None
    balanced: bool = False

    def tables(self, coupling: Coupling) -> frozenset[int]:
        """The factors of which every row has scores of its own."""
        rows = (g.factor for g in coupling.groups if g.rows > 1)
        return frozenset(rows if self.balanced else ())


Scores = dict[int, Values]
Criterion = Callable[[Coupling, Settings], Scores]


def _magnitude(measure: Measure | None, root: float = 1.0) -> Criterion:
    """By a measure of the members; without one, by the distance to their median."""

    def criterion(coupling: Coupling, settings: Settings) -> Scores:
        evaluate = norms(measure, settings.tables(coupling)) if measure else medians
        members = {g.factor: weights(coupling, g) for g in coupling.groups}
        parts = gather(coupling, members, evaluate, settings.progress)
        found = {}
        for g in coupling.groups:
            sums = combine(parts[g.factor], g.size, settings.sides, settings.scale != "none")
            found[g.factor] = scaled(sums**root, settings.scale)
        return found

    return criterion


l1 = _magnitude(L1)
l2 = _magnitude(L2_SQUARED, root=0.5)
linf = _magnitude(LINF)
fpgm = _magnitude(None)
_squares = _magnitude(L2_SQUARED)


def bn_scale(coupling: Coupling, settings: Settings) -> Scores:
    """|gamma| of the BatchNormalization of each channel (Liu et al. 2017, arXiv:1708.06519).

    A group without one goes by l2; ``without_scale`` says so.
    """
    names = _scales(coupling)
    members = {
        g.factor: [m for m in g.members if m.param in names]
        for g in coupling.groups
        if not names.isdisjoint(m.param for m in g.members)
    }
    evaluate = norms(L1, settings.tables(coupling))
    parts = gather(coupling, members, evaluate, settings.progress)
    scores = l2(coupling, settings) if len(members) < len(coupling.groups) else {}
    for group in coupling.groups:
        if group.factor in members:
            values = combine(parts[group.factor], group.size, "both", settings.scale != "none")
            scores[group.factor] = scaled(values, settings.scale)
    return scores


def _scales(coupling: Coupling) -> set[str]:
    """The parameters that scale what a BatchNormalization normalised."""
    return {b.node.inputs[1] for b in coupling.bound if b.node.op in NORMALIZES}


def without_scale(coupling: Coupling) -> list[str]:
    """A note on the groups that ``bn_scale`` finds nothing for."""
    names = _scales(coupling)
    lacking = [g.name for g in coupling.groups if names.isdisjoint(m.param for m in g.members)]
    if not lacking:
        return []
    return [
        f"bn-scale: {len(lacking)} of {len(coupling.groups)} groups have no BatchNormalization and "
        f"go by l2; the first is '{lacking[0]}'"
    ]


def lamp(coupling: Coupling, settings: Settings) -> Scores:
    """The square over the sum of all squares in the group that are not smaller.

    Layer-adaptive magnitude (Lee et al. 2021, arXiv:2010.07611) on groups, as in DepGraph (Fang et
    al. 2023, arXiv:2301.12900). The largest of each group has score 1: no group vanishes first.
    """
    found = {}
    for factor, squares in _squares(coupling, settings).items():
        ordered = np.sort(squares, axis=None)
        above = np.cumsum(ordered[::-1])[::-1][np.searchsorted(ordered, squares)]
        found[factor] = squares / np.where(above > 0, above, 1)
    return found


def random(coupling: Coupling, settings: Settings) -> Scores:
    """Uniform in [0, 1), for each group by its name: the baseline."""
    return {
        g.factor: np.random.default_rng([settings.seed, zlib.crc32(g.name.encode())]).random(g.size)
        for g in coupling.groups
    }


def redundancy(coupling: Coupling, settings: Settings) -> Scores:
    """l2, times what another channel can't stand for; see ``onnxprune.passes.score.redundancy``."""
    scores, nodes = l2(coupling, replace(settings, balanced=False)), users(coupling)
    for group in coupling.groups:
        pairs = twins(coupling, nodes, group, settings.seed, TOLERANCE)
        if pairs is not None:
            scores[group.factor][pairs.removed] *= pairs.errors
    return scores
