"""Matching of one node: the patterns of its row against the layouts of what it reads and makes."""

from __future__ import annotations

from onnxprune.axes import OPAQUE, Factors, Layout, Product, Reason
from onnxprune.coupling import WHOLE
from onnxprune.model import Node
from onnxprune.notation import UNIT, Axis, Fit, is_whole
from onnxprune.rules.tables import GATHERS_ALONG


def because(text: str, node: Node) -> Reason:
    """A reason at a node; the label of one in a body is part of the text."""
    return Reason(f"{node.label}: {text}" if node.inside else text, node.index)


def is_carried(letter: str, fit: Fit) -> bool:
    """Whether a node takes a letter's indices along, and neither sums over them nor mixes them."""
    twice = (
        [x for axis in axes for term in axis for x in term].count(letter) > 1
        for axes in fit.operands
        if axes is not None
    )
    return letter not in fit.contracted | fit.mixing and not any(twice)


def counted(node: Node, layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """The axes on which ids are told apart by their place: all, or the one that is gathered along.

    Along the others each head may have ids of its own.
    """
    if node.op not in GATHERS_ALONG or not layouts:
        return layouts
    return (layouts[node.attributes.get("axis", 0)],)


def fixed_part(factors: Factors, layout: Layout) -> Layout | None:
    """What of an axis has a fixed size where whole factors of dynamic size lead: the heads of
    ``(batch head)``; None where all of it may be dynamic.

    A factor of dynamic size is frozen where it is made, so a free one has a fixed size.
    """
    normal = factors.normal(layout)
    if not isinstance(normal, Product):
        return None
    free = [
        k
        for k, part in enumerate(normal.parts)
        if any(factors.reason(leaf) is None for leaf in factors.leaves(part))
    ]
    return factors.product(list(normal.parts[free[0] :])) if free and free[0] > 0 else None


class Step:
    """Matching of one node: patterns against layouts."""

    def __init__(self, factors: Factors, node: Node, fit: Fit, letters: dict[str, Layout]) -> None:
        self.factors, self.fit, self.letters = factors, fit, letters
        self.reason = because("its rule can't cut this axis into factors", node)
        self.whole = Reason(WHOLE, node.index)

    def letter(self, name: str) -> Layout:
        """What a letter stands for; a fresh factor the first time."""
        found = self.letters.get(name)
        if found is None:
            size = self.fit.sizes[name]
            reason = self.whole if is_whole(name) else None
            found = OPAQUE if size is None else self.factors.fresh(size, reason)
            self.letters[name] = found
        return found

    def build(self, axis: Axis) -> Layout:
        """The layout of a pattern's axis."""
        if len(axis) == 1:
            term = axis[0]
            if len(term) == 1:
                return self.letter(term[0])
            return self.factors.product([self.letter(x) for x in term])
        return self.factors.sum([self.factors.product([self.letter(x) for x in t]) for t in axis])

    def meet(self, axis: Axis, layout: Layout) -> None:
        """Match a pattern's axis with the layout that the operand already has."""
        if axis == UNIT:
            return
        if len(axis) == 1 and len(axis[0]) == 1:
            name = axis[0][0]
            if is_whole(name):
                self.factors.freeze(layout, self.whole)
            if name not in self.letters:
                self.letters[name] = layout
                return
        self.factors.unify(self.build(axis), layout, self.reason)
