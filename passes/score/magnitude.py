"""Magnitudes of groups: what their members say, each member and each side counting alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from onnxprune.axes import Factors, Layout, Values
from onnxprune.coupling import Coupling, Group, Member
from onnxprune.masks import ranked
from onnxprune.model import Array
from onnxprune.passes.score.median import median_distances
from onnxprune.passes.score.slices import Measure, as_float, axis_values, cells, rows
from onnxprune.passes.score.stored import meant, stored_values

Progress = Callable[[str], None]
SIDES: Final = ("both", "contracted", "produced", "product")
SCALES: Final = ("max", "mean", "none")

Asked = Sequence[tuple[int, Member]]  # factors, and the members of one parameter to look at
# Values (size,) for each that is asked, or a table (rows, size).
Evaluate = Callable[[Coupling, Array, Asked], list[Values]]


class Part(NamedTuple):
    """What one member says: which side it is on, and its values (size,) or (rows, size)."""

    contracted: bool
    values: Values


def weights(coupling: Coupling, group: Group) -> list[Member]:
    """The members that are weights; biases and statistics only where there is nothing else."""
    params = coupling.model.params
    found = [m for m in group.members if sum(n != 1 for n in params[m.param].shape) > 1]
    return found or list(group.members)


def gather(
    coupling: Coupling,
    members: Mapping[int, Sequence[Member]],
    evaluate: Evaluate,
    progress: Progress | None = None,
) -> dict[int, list[Part]]:
    """What members say, by factor; each parameter is read once.

    A member whose values are not finite (an attention mask of minus infinity) says nothing.
    """
    asked: dict[str, list[tuple[int, Member]]] = {}
    for factor, own in members.items():
        for member in own:
            asked.setdefault(member.param, []).append((factor, member))
    parts: dict[int, list[Part]] = {factor: [] for factor in members}
    meaning = stored_values(coupling.model)
    for param, pairs in asked.items():
        if progress is not None:
            progress(param)
        values = meant(coupling.model, param, meaning.get(param))
        found = evaluate(coupling, values, pairs)
        for (factor, member), values in zip(pairs, found, strict=True):
            if np.isfinite(values).all():
                parts[factor].append(Part(member.contracted, values))
    return parts


def norms(measure: Measure, tables: Collection[int] = ()) -> Evaluate:
    """The measure of all that vanishes with each index; of some factors in each of their rows."""

    def evaluate(coupling: Coupling, array: Array, asked: Asked) -> list[Values]:
        factors, by_axis = coupling.factors, axis_values(array, measure)
        layouts = {member.axis: member.layout for _, member in asked}
        pulled = {a: pull(factors, layout, by_axis[a], measure) for a, layout in layouts.items()}
        return [
            _table(coupling, member, factor, array, by_axis[member.axis], measure)
            if factor in tables
            else pulled[member.axis][factor]
            for factor, member in asked
        ]

    return evaluate


def _table(
    coupling: Coupling, member: Member, factor: int, array: Array, along: Values, measure: Measure
) -> Values:
    """The measure (rows, size) of what vanishes with each index in each row.

    Args:
        coupling: the structure of the model.
        member: an axis of a parameter.
        factor: a factor of it.
        array: the parameter.
        along: the measure (n,) of what vanishes with each index of the axis.
        measure: the measure.
    """
    factors, layouts = coupling.factors, coupling.layouts[member.param]
    if member.layout == factor:  # its rows lie along another axis
        own = cells(factors, layouts, member.axis, as_float(array), factor)
        found = measure.combine.reduce(measure.element(own), axis=2)
    else:
        found = measure.combine.reduce(cells(factors, (member.layout,), 0, along, factor), axis=2)
    return np.asarray(found, np.float64)


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


def medians(coupling: Coupling, array: Array, asked: Asked) -> list[Values]:
    """The distance of each index's slice to the geometric median of all slices."""
    values = as_float(array)
    return [
        median_distances(rows(coupling.factors, member.layout, member.axis, values, factor))
        for factor, member in asked
    ]


def combine(parts: Sequence[Part], size: int, sides: str, even: bool = True) -> Values:
    """One value (size,), or (rows, size), from what the members say.

    Members of a side count alike, and so do the two sides.

    Args:
        parts: the members' values.
        size: the size of the group.
        sides: a name in ``SIDES``; where a side has no members, the other one speaks.
        even: whether each member is brought to mean 1 first, whatever its size and scale.
    """
    made, read = (
        [_even(p.values) if even else p.values for p in parts if p.contracted is side]
        for side in (False, True)
    )
    chosen = {"produced": [made or read], "contracted": [read or made]}.get(sides, [made, read])
    each = [np.mean(side, axis=0) for side in chosen if side]
    if not each:
        return np.ones(size)
    return np.asarray(np.prod(each, axis=0) if sides == "product" else np.mean(each, axis=0))


def _even(values: Values) -> Values:
    """Values over their mean."""
    mean = values.mean()
    return values / mean if mean > 0 else values


def scaled(values: Values, scale: str) -> Values:
    """Values over their mean or maximum, that of their ranks if in rows; zeros stay zeros."""
    own = ranked(values)
    over = {"max": own.max(), "mean": own.mean(), "none": 1.0}[scale]
    return values / over if over > 0 else values
