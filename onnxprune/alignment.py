"""Which kept counts kernels like.

ORT's convolutions work on blocks of 16 channels (8 on AVX2), and fill the last one up. They fall
back to slow kernels where 4 does not divide the channel axis, or whole blocks don't fill the
channels of one group of a grouped convolution; matrix products are nearly linear in the width. So
with ``auto``, for every group on the channel axis of a convolution, kept counts are

- multiples of 16 where its part of the axis is wider than that, else of 4, or of 2 or 1 where a
  small group has not two such steps;
- inside a group of a grouped convolution, multiples of 16, or of 8, 4 or 2 where 16 does not fit
  twice;
- such that the whole axis is a multiple of 4: of a product ``(g i)`` the parts reach it together,
  of a sum ``a + b`` each part does, or makes good what is off in a part that is whole.

These numbers are the ``Stairs`` of ONNX Runtime's CPU kernels with AVX-512; a probe finds those of
another machine or provider (``onnxprune probe``). A group may always stay as it is, unless that
puts an axis off which it shares with a pruned one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from onnxprune.axes import Mask, Values
from onnxprune.coupling import Coupling
from onnxprune.polynomials import Indices, Polynomial, Polynomials, Term
from onnxprune.rules.tables import BLOCKED

Align = Literal["auto"] | int
CHANNEL_AXIS: Final = 1


@dataclass(frozen=True)
class Stairs:
    """The steps in which the time of kernels grows with their channels.

    Attributes:
        block: channels that a convolution computes together.
        part: what divides the channels of a convolution that does not fall out of its fast kernel.
        grouped: the same as ``block`` for one group of a grouped convolution.
        product: the step of matrix products.
        wide: axes that are wider are kept in whole blocks, others in parts of them.
    """

    block: int = 16
    part: int = 4
    grouped: int = 16
    product: int = 1
    wide: int = 16

    def finer(self) -> Stairs:
        """For budgets that whole blocks are too coarse for: parts of them, on more of the axes."""
        return replace(self, wide=4 * self.wide - 1)


STAIRS: Final = Stairs()


@dataclass(frozen=True)
class Alignment:
    """The kept counts that each group (v,) may have: its size, and ``unit * n + rest``.

    Attributes:
        sizes: (v,) the groups' sizes.
        units, rests: (v,) the steps.
        shared: sets of groups that share an axis where some are at odds with the steps at full
            size: these must step down as soon as one of the set is pruned.
        part: what has to divide such an axis.
    """

    sizes: Values
    units: Values
    rests: Values
    shared: tuple[tuple[int, ...], ...] = ()
    part: int = STAIRS.part

    def below(self, counts: Values) -> Values:
        """The largest allowed counts that are no larger; 0 or less where there are none."""
        steps = np.floor((counts - self.rests) / self.units) * self.units + self.rests
        return np.where(counts >= self.sizes, self.sizes, steps)

    def above(self, counts: Values) -> Values:
        """The smallest allowed counts that are no smaller."""
        steps = np.ceil((counts - self.rests) / self.units) * self.units + self.rests
        return np.minimum(steps, self.sizes)

    def nearest(self, counts: Values) -> Values:
        """The allowed counts nearest by; the smaller of two that are as near."""
        below, above = self.below(counts), self.above(counts)
        return np.where((below > 0) & (counts - below <= above - counts), below, above)

    def settled(self, counts: Values, floors: Values) -> Values:
        """Allowed counts, with those groups stepped down that share an axis with pruned ones."""
        for members in self.shared:
            own = np.array(members)
            if (counts[own] < self.sizes[own]).any():
                lower = self.below(np.minimum(counts, self.sizes - 1))[own]
                odd = (counts[own] == self.sizes[own]) & self._odd(own) & (lower >= floors[own])
                counts = counts.copy()
                counts[own[odd]] = lower[odd]
        return counts

    def _odd(self, groups: Indices) -> Mask:
        off = (self.sizes[groups] - self.rests[groups]) % np.minimum(self.units[groups], self.part)
        found: Mask = off != 0
        return found


def alignment(coupling: Coupling, align: Align, stairs: Stairs = STAIRS) -> Alignment:
    """The steps of every group, in the order of the groups.

    Args:
        coupling: the structure of the model.
        align: ``auto``, or a number of which kept counts are multiples; 1 allows all.
        stairs: what kernels like, for ``auto``.
    """
    sizes = {group.factor: group.size for group in coupling.groups}
    full = np.array(list(sizes.values()), np.float64)
    if align != "auto":
        return Alignment(full, np.full(len(full), float(align)), np.zeros(len(full)))
    polynomials = Polynomials(coupling.factors, sizes)
    axes, inner = _channel_axes(coupling, polynomials)
    units = _units(axes, inner, sizes, stairs)
    if stairs.product > 1:
        units = _product_units(coupling, polynomials, sizes, stairs.product) | units
    rests = _rests(axes, units, sizes, stairs.part)
    columns = {factor: column for column, factor in enumerate(sizes)}
    return Alignment(
        full,
        np.array([units.get(factor, 1) for factor in sizes], np.float64),
        np.array([rests.get(factor, 0) for factor in sizes], np.float64),
        tuple(_shared(axes, units, rests, sizes, columns, stairs.part)),
        stairs.part,
    )


def _channel_axes(
    coupling: Coupling, polynomials: Polynomials
) -> tuple[list[Polynomial], set[Polynomial]]:
    """The channel axes of blocked operators, and those inside groups of grouped ones.

    Axes with few unknowns and many uses come first.
    """
    axes: Counter[Polynomial] = Counter()
    inner = set()
    for bound in coupling.bound:
        if bound.node.op not in BLOCKED:
            continue
        for pattern in (bound.fit.operands[0], bound.fit.results[0]):
            axis = pattern[CHANNEL_AXIS] if pattern else ()
            axes.update(_known(polynomials.of(bound.layout(axis, coupling.factors))))
            if len(axis) == 1 and len(axis[0]) > 1:
                inner.update(_known(polynomials.of(bound.letters[axis[0][-1]])))
    unknowns = {axis: sum(1 for term, _ in axis if term) for axis in axes}
    return sorted(axes, key=lambda axis: (unknowns[axis], -axes[axis], len(axis), axis)), inner


def _known(polynomial: Polynomial | None) -> list[Polynomial]:
    return [polynomial] if polynomial and any(term for term, _ in polynomial) else []


def _units(
    axes: list[Polynomial], inner: set[Polynomial], sizes: Mapping[int, int], stairs: Stairs
) -> dict[int, int]:
    units: dict[int, int] = {}
    for axis in inner:
        for factor, coefficient in _single(axis):
            unit = _fitting(stairs.grouped, coefficient * sizes[factor])
            unit //= math.gcd(stairs.grouped, coefficient)
            units[factor] = max(unit, 1, units.get(factor, 1))
    for axis in axes:
        for factor, coefficient in _single(axis):
            is_wide = coefficient * sizes[factor] > stairs.wide
            wanted = stairs.block if is_wide else stairs.part
            unit = wanted // math.gcd(wanted, coefficient)
            if not is_wide or unit >= sizes[factor]:
                unit = _fitting(unit, sizes[factor])
            units[factor] = max(unit, units.get(factor, 1))
    for axis in axes:
        for term, coefficient in axis:
            if len(term) > 1:
                _complete(term, coefficient, units, sizes, stairs.part)
    return units


def _product_units(
    coupling: Coupling, polynomials: Polynomials, sizes: Mapping[int, int], step: int
) -> dict[int, int]:
    """The steps of the groups on axes of matrix products."""
    units = {}
    for bound in coupling.bound:
        for letter in {x for term in bound.fit.macs for x in term}:
            for axis in _known(polynomials.of(bound.letters[letter])):
                for factor, coefficient in _single(axis):
                    unit = _fitting(step, coefficient * sizes[factor])
                    units[factor] = max(unit // math.gcd(unit, coefficient), 1)
    return units


def _single(axis: Polynomial) -> Iterator[tuple[int, int]]:
    """The factors that stand alone in a term, with their coefficients."""
    return ((term[0], coefficient) for term, coefficient in axis if len(term) == 1)


def _fitting(unit: int, size: int) -> int:
    """The unit, or the largest power of 2 below it that fits into the size twice."""
    while unit > 1 and 2 * unit > size:
        unit //= 2
    return unit


def _complete(
    term: Term, coefficient: int, units: dict[int, int], sizes: Mapping[int, int], part: int
) -> None:
    """Raise the units of a product, the largest factor's first, until ``part`` divides it."""
    for factor in sorted(set(term), key=lambda f: (-sizes[f], f)):
        reached = coefficient * math.prod(units.get(f, 1) for f in term)
        unit = units.get(factor, 1) * part // math.gcd(part, reached)
        units[factor] = max(_fitting(unit, sizes[factor]), units.get(factor, 1))


def _rests(
    axes: list[Polynomial], units: dict[int, int], sizes: Mapping[int, int], part: int
) -> dict[int, int]:
    """What kept counts are modulo ``part``, where an axis has whole parts that are off."""
    rests: dict[int, int] = {}
    for axis in axes:
        off = sum(c * math.prod(rests.get(f, 0) for f in term) for term, c in axis)
        free = [(f, c) for f, c in _single(axis) if f not in rests and sizes[f] >= 2 * part]
        rests.update(dict.fromkeys((f for term, _ in axis for f in term if f not in rests), 0))
        for factor, coefficient in free:
            rest = next((r for r in range(part) if (off + coefficient * r) % part == 0), 0)
            if off % part and rest:
                rests[factor], units[factor] = rest, part
                break
    return rests


def _shared(
    axes: list[Polynomial],
    units: Mapping[int, int],
    rests: Mapping[int, int],
    sizes: Mapping[int, int],
    columns: Mapping[int, int],
    part: int,
) -> Iterator[tuple[int, ...]]:
    """Groups that meet on sums, where one of them is at odds with its steps at full size."""
    sets: list[set[int]] = []
    for axis in axes:
        if len(axis) > 1:
            own = {factor for term, _ in axis for factor in term}
            touching = [other for other in sets if own & other]
            sets = [other for other in sets if not own & other] + [own.union(*touching)]
    for members in sets:
        odd = any((sizes[f] - rests[f]) % min(units.get(f, 1), part) for f in members)
        if odd and len(members) > 1:
            yield tuple(sorted(columns[f] for f in members))
