"""Magnitudes of groups: the norms of their members, each member counting alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from onnxprune.axes import Factors, Layout, Values
from onnxprune.coupling import Coupling, Group, Member
from onnxprune.passes.score.slices import Measure, axis_values, rows

Progress = Callable[[int, int], None]  # parameters read so far, and all of them
SIDES: Final = ("both", "produced", "contracted", "product")
SCALES: Final = ("mean", "max", "none")


class Part(NamedTuple):
    """What one member says: which side it is on, and its values (size,)."""

    contracted: bool
    values: Values


def gather(
    coupling: Coupling, measure: Measure, progress: Progress | None = None
) -> dict[int, list[Part]]:
    """The measures of all members of all groups by factor; each parameter is read once.

    A member whose values are not finite (an attention mask of minus infinity) says nothing.
    """
    wanted: dict[str, dict[tuple[int, int], Member]] = {}
    for group in coupling.groups:
        for member in speaking(coupling, group):
            wanted.setdefault(member.param, {})[member.axis, group.factor] = member
    parts: dict[int, list[Part]] = {group.factor: [] for group in coupling.groups}
    for done, (param, members) in enumerate(wanted.items(), 1):
        by_axis = axis_values(coupling.model.params[param].read(), measure)
        pulled: dict[int, Mapping[int, Values]] = {}
        for (axis, factor), member in members.items():
            if axis not in pulled:
                pulled[axis] = pull(coupling.factors, member.layout, by_axis[axis], measure)
            values = pulled[axis][factor]
            if np.isfinite(values).all():
                parts[factor].append(Part(member.contracted, values))
        if progress is not None:
            progress(done, len(wanted))
    return parts


def pull(
    factors: Factors, layout: Layout, values: Values, measure: Measure
) -> Mapping[int, Values]:
    """Per-index values (size,) of an axis as per-index values of its factors."""
    if measure.combine is np.add:
        return factors.pull_back(layout, values)
    return {
        leaf: measure.combine.reduce(rows(factors, layout, 0, values, leaf), axis=1)
        for leaf in factors.leaves(layout)
    }


def speaking(coupling: Coupling, group: Group) -> list[Member]:
    """The members that are weights; biases and statistics only where there are no others."""
    params = coupling.model.params
    weights = [m for m in group.members if sum(n != 1 for n in params[m.param].shape) > 1]
    return weights or list(group.members)


def combine(parts: list[Part], size: int, sides: str, root: float, scale: str) -> Values:
    """One score (size,) from what the members say.

    Args:
        parts: the members' values.
        size: the size of the group.
        sides: which members count; "product" multiplies the two sides.
        root: what the measure is raised to once it is summed (1/2 for sums of squares).
        scale: what the group's mean or maximum becomes 1 by.
    """
    made = _average([p.values for p in parts if not p.contracted])
    read = _average([p.values for p in parts if p.contracted])
    every = _average([p.values for p in parts])
    one = np.ones(size)
    if sides == "product":
        found = (one if made is None else made) * (one if read is None else read)
    else:
        first = {"both": every, "produced": made, "contracted": read}[sides]
        found = next((v for v in (first, every) if v is not None), one)
    return scaled(found**root, scale)


def _average(values: list[Values]) -> Values | None:
    """The mean of the members, each brought to mean 1."""
    if not values:
        return None
    return np.mean([scaled(v, "mean") for v in values], axis=0)


def scaled(values: Values, scale: str) -> Values:
    """Values over their mean or maximum; zeros stay zeros."""
    over = {"mean": values.mean(), "max": values.max(), "none": 1.0}[scale]
    return values / over if over > 0 else values
