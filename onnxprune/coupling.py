"""What belongs together: the layouts of all axes, the groups, and why the rest is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from onnxprune.axes import Factors, Layout, Reason
from onnxprune.model import Model, Node
from onnxprune.notation import UNIT, Axis, Fit, is_whole

WHOLE: Final = "its rule keeps this axis whole"  # kernel sizes, tables of ids: what one expects


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one parameter that shrinks with a group.

    ``contracted``: the axis is read by a contraction (consumer side); else it is produced.
    """

    param: str
    axis: int
    layout: Layout
    contracted: bool


@dataclass(frozen=True)
class Group:
    """A free factor and the parameters' axes that it occurs in.

    ``mixing`` groups change what survives (norm statistics); all others are exact. Each of
    ``rows`` rows may keep other indices, as many as all others (see ``onnxprune.balance``);
    ``same`` says why it is one row where a product lets one expect more. ``least`` is how
    many have to stay.
    """

    name: str
    factor: int
    size: int
    mixing: bool
    members: tuple[Member, ...] = field(repr=False)
    rows: int = 1
    same: Reason | None = None
    least: int = 1


@dataclass(frozen=True, slots=True)
class Bound:
    """A node with its fits (one a sample) and the layout that each letter stands for."""

    node: Node
    fits: tuple[Fit, ...]
    letters: Mapping[str, Layout]

    @property
    def fit(self) -> Fit:
        """The fit of the first sample; all agree but in dynamic sizes."""
        return self.fits[0]

    def is_fixed(self, axis: Axis) -> bool:
        """Whether the axis has the same known size for every choice of the dynamic sizes."""
        sizes = [[fit.sizes.get(x) for term in axis for x in term] for fit in self.fits]
        return None not in sizes[0] and all(row == sizes[0] for row in sizes)

    def layout(self, axis: Axis, factors: Factors) -> Layout:
        """The layout of a pattern's axis on this node."""
        if axis == UNIT:
            return factors.product([])
        return factors.sum([factors.product([self.letters[x] for x in term]) for term in axis])

    def removed(self, factors: Factors, pruned: frozenset[int]) -> frozenset[str]:
        """The letters whose layouts hold a factor that loses indices."""
        return frozenset(
            letter
            for letter, layout in self.letters.items()
            if not is_whole(letter) and not pruned.isdisjoint(factors.leaves(layout))
        )


@dataclass(frozen=True)
class Coupling:
    """The structure of a model.

    Attributes:
        model: the normalized model.
        factors: the store of all factors.
        layouts: the layouts of each value's and each parameter's axes, as they were built;
            ``factors.normal`` gives their final form.
        bound: the nodes that have a rule.
        frozen: the nodes that have none, with the reason.
        groups: what can be pruned, in graph order.
    """

    model: Model
    factors: Factors = field(repr=False)
    layouts: Mapping[str, tuple[Layout, ...]] = field(repr=False)
    bound: tuple[Bound, ...] = field(repr=False)
    frozen: Mapping[int, str] = field(repr=False)
    groups: tuple[Group, ...] = field(repr=False)

    def group(self, name: str) -> Group | None:
        """The group of this name."""
        return next((g for g in self.groups if g.name == name), None)

    def names(self) -> dict[int, str]:
        """Group names by factor."""
        return {g.factor: g.name for g in self.groups}

    def says(self, reason: Reason) -> str:
        """A frozen reason in words, with the node that it comes from."""
        if reason.node < 0:
            return reason.text
        return f"{self.model.nodes[reason.node].label}: {reason.text}"
