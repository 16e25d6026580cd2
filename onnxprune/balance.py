"""Balanced groups: factors whose kept indices may differ from row to row of another factor.

Let every value that holds a factor ``d`` hold ``h`` too: before it on the same axis, ``(h d)``, or
on another axis. Then each index of ``h`` may keep indices of ``d`` of its own, as many as all the
others: the network computes the same as with these entries masked, if each node does. A node does
in two cases.

1. One letter of its rule holds both, ``c = (h d)``. What a rule says of a letter holds for any
   subset of its indices.
2. One letter ``y`` holds ``h``, another one ``x`` holds ``d``; every operand and result that holds
   ``x`` holds ``y``; and ``y`` is carried: not summed over, not mixing, not whole. By the rule the
   node's result at an index of ``y`` depends on what its operands are there alone, and there the
   rule allows any subset of ``x``: another one at each index. (Where a product of operands is
   summed over both, ``y`` need not be carried: an entry that is 0 adds nothing.)

An operand that holds ``d`` without ``h`` is shared by all rows (a norm's scale for all heads, the
angles of a rotary embedding), a result that does sums over them; a node that cuts ``d`` in two
makes other factors of it; and what is left of ``(d h)``, in order, is no product. All these keep
the same positions in every row, and the group says which node it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from onnxprune.axes import Factors, Layout, Product, Reason, Sum
from onnxprune.coupling import Bound, Group, Member
from onnxprune.layouts import leaves
from onnxprune.matching import because
from onnxprune.model import Model
from onnxprune.notation import Axis, is_whole
from onnxprune.oracle import FLOATS
from onnxprune.rules.tables import LINEAR

LACKING: Final = "not all that it reads or makes has the rows"
DYNAMIC: Final = "the rows stand beside a dynamic size"
Layouts = Mapping[str, tuple[Layout, ...]]
Axes = tuple[Axis, ...]


def balanced(
    model: Model,
    factors: Factors,
    layouts: Layouts,
    bound: Sequence[Bound],
    groups: Sequence[Group],
) -> tuple[Group, ...]:
    """The groups, with the rows that their indices may differ by, or why they have to be the same.

    Notes the rows in ``factors``. Where several factors could be the rows of a group, the largest
    is; one that has rows itself is no one's rows.

    Args:
        model: the model.
        factors: its factors.
        layouts: the layouts of its values and parameters.
        bound: its nodes with their letters.
        groups: its groups.
    """
    open_rows: dict[int, dict[int, None]] = {}
    refused: dict[int, Reason] = {}
    for group in groups:
        own = _partners(factors, layouts, group)
        if isinstance(own, Reason):
            refused[group.factor] = own
        elif own:
            open_rows[group.factor] = dict.fromkeys(own)
    for factor in [g.factor for g in groups if g.factor in open_rows and g.mixing]:
        refused[factor] = Reason("what is removed of it changes what stays")
        del open_rows[factor]
    for name in model.open_io:
        for factor in {x for own in layouts.get(name, ()) for x in factors.leaves(own)}:
            if open_rows.pop(factor, None) is not None:
                refused[factor] = Reason(f"'{name}' enters or leaves the graph")
    for one in bound if open_rows else ():
        node = _Node(model, factors, one)
        for factor in node.held & open_rows.keys():
            for row in list(open_rows[factor]):
                text = node.objection(factor, row)
                if text is not None:
                    refused[factor] = because(text, one.node)
                    del open_rows[factor][row]
    return tuple(_chosen(factors, groups, open_rows, refused))


def _chosen(
    factors: Factors,
    groups: Sequence[Group],
    open_rows: Mapping[int, Mapping[int, None]],
    refused: Mapping[int, Reason],
) -> Iterator[Group]:
    taken: set[int] = set()
    for group in groups:
        own = [row for row in open_rows.get(group.factor, ()) if row not in factors.rows]
        if own and group.factor not in taken:
            factors.rows[group.factor] = max(own, key=factors.size)
            taken.add(factors.rows[group.factor])
    for group in groups:
        if group.factor in factors.rows:
            yield replace(group, rows=factors.size(factors.rows[group.factor]))
        elif group.factor in taken or all(m.layout == group.factor for m in group.members):
            yield group  # a single axis of its own everywhere: nobody would expect it to have rows
        else:
            yield replace(group, same=refused.get(group.factor))


def _partners(factors: Factors, layouts: Layouts, group: Group) -> list[int] | Reason:
    """The factors that stand beside a group's wherever a parameter holds it.

    A reason, where they do on an axis of one parameter and not in another one.
    """
    each = [(m, set(_beside(factors, layouts, m, group.factor))) for m in group.members]
    common = sorted(set.intersection(*(own for _, own in each)))
    inside = [x for m, own in each if m.layout != group.factor for x in sorted(own)]
    if common or not inside:
        return common
    param = next(m.param for m, own in each if inside[0] not in own)
    return Reason(f"'{param}' holds it without these rows")


def _beside(factors: Factors, layouts: Layouts, member: Member, factor: int) -> Iterator[int]:
    """The factors before another one on an axis of a parameter; on other axes if it is alone."""
    if member.layout == factor:
        for axis, layout in enumerate(layouts[member.param]):
            normal = factors.normal(layout)
            if axis != member.axis and not isinstance(normal, Sum):
                yield from _direct(normal)
        return
    layout = member.layout
    for term in layout.parts if isinstance(layout, Sum) else (layout,):
        if isinstance(term, Product) and factor in term.parts:
            yield from _direct(factors.product(list(term.parts[: term.parts.index(factor)])))


def _direct(layout: Layout) -> Iterator[int]:
    """The factors that a layout is, or is a product of."""
    parts = layout.parts if isinstance(layout, Product) else (layout,)
    yield from (part for part in parts if isinstance(part, int))


@dataclass(frozen=True)
class _Node:
    """One node, and what it says of a factor and its rows."""

    model: Model
    factors: Factors
    bound: Bound

    @property
    def held(self) -> set[int]:
        """The factors that its letters hold and may let go of."""
        letters = (own for x, own in self.bound.letters.items() if not is_whole(x))
        return {factor for own in letters for factor in self.factors.leaves(own)}

    def objection(self, factor: int, row: int) -> str | None:
        """Why rows have to keep the same indices here; None if they may differ."""
        letters = {x: self.factors.normal(own) for x, own in self.bound.letters.items()}
        rows = [y for y, own in letters.items() if row in leaves(own)]
        for x in [x for x, own in letters.items() if factor in leaves(own)]:
            if self.is_integer(x):
                return "it sums integers"
            if any(map(self.is_dynamic, (x, *rows))):
                return DYNAMIC
            if _is_inside(letters[x], factor, row):
                continue
            text = self.apart(x, rows, factor, row)
            if text is not None:
                return text
        return None

    def apart(self, x: str, rows: Sequence[str], factor: int, row: int) -> str | None:
        """The objection where a letter holds the factor, and others its rows."""
        fit, letters = self.bound.fit, self.bound.letters
        own = self.factors.normal(letters[x])
        if len(rows) != 1 or factor not in _direct(own):
            return LACKING
        (y,) = rows
        alone = own == factor
        beside = (_are_beside(axes, x, y, alone) for axes in self.patterns() if _times(x, axes))
        if row not in _direct(self.factors.normal(letters[y])) or not all(beside):
            return LACKING
        summed = {x, y} <= fit.contracted and self.bound.node.op in LINEAR
        carried = not (is_whole(y) or y in fit.mixing or y in fit.contracted)
        names = zip(self.bound.node.outputs, fit.results, strict=True)
        lost = x in fit.contracted and any(
            name and not _times(y, axes or ()) for name, axes in names
        )
        return None if summed or (carried and not lost) else "it combines the rows"

    def is_dynamic(self, letter: str) -> bool:
        """Whether a letter's size is another one for other inputs: a mask would fit one of them."""
        return len({fit.sizes.get(letter) for fit in self.bound.fits}) > 1

    def patterns(self) -> list[Axes]:
        """The patterns of its operands and results."""
        return [x for x in (*self.bound.fit.operands, *self.bound.fit.results) if x is not None]

    def is_integer(self, letter: str) -> bool:
        """Whether it sums integers over a letter: what is left out there is not 0."""
        node, fit = self.bound.node, self.bound.fit
        if letter not in fit.contracted:
            return False
        for name, axes in zip(node.inputs, fit.operands, strict=True):
            if axes is not None and _times(letter, axes):
                param = self.model.params.get(name)
                kind = param.dtype if param else self.model.dtypes.get(name)
                if kind is not None and kind not in FLOATS:
                    return True
        return False


def _times(letter: str, axes: Axes) -> int:
    """How often a letter stands in a pattern."""
    return sum(term.count(letter) for axis in axes for term in axis)


def _is_inside(layout: Layout, factor: int, row: int) -> bool:
    """Whether a factor stands beside its rows wherever a layout holds it."""
    if isinstance(layout, Sum):
        return all(_is_inside(x, factor, row) for x in layout.parts if factor in leaves(x))
    if not isinstance(layout, Product) or list(leaves(layout)).count(factor) != 1:
        return False
    return factor in layout.parts and row in layout.parts[: layout.parts.index(factor)]


def _are_beside(axes: Axes, x: str, y: str, alone: bool) -> bool:
    """Whether a pattern has two letters beside each other: ``(y x)``, or on an axis each."""
    if _times(x, axes) != 1 or _times(y, axes) != 1:
        return False
    place, term = next((axis, term) for axis in axes for term in axis if x in term)
    if y in term:
        return term.index(y) < term.index(x)
    return alone and place == ((x,),) and all(len(axis) == 1 for axis in axes if y in axis[0])
