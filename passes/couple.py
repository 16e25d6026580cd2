"""Couple: find by one walk over the rules which indices live and die together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx

from onnxprune.axes import OPAQUE, Factors, Layout, Reason
from onnxprune.balance import balanced
from onnxprune.bodies import graphs
from onnxprune.coupling import Bound, Coupling, Group, Member
from onnxprune.inferring import agree
from onnxprune.matching import Step, because, counted, fixed_part, is_carried
from onnxprune.model import Model, Node
from onnxprune.notation import Fit
from onnxprune.rules import Row, Unprunable, fit_node
from onnxprune.rules.control import Link, links
from onnxprune.rules.tables import DEQUANTIZES, PICKS_AMONG, UNREAD
from onnxprune.stubs import is_replaceable

INTEGERS: Final = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
Layouts = dict[str, tuple[Layout, ...]]


def couple(model: Model, rules: Mapping[str, Row] | None = None) -> Coupling:
    """Find the layouts of all axes, and the groups.

    Needs a normalized model. Changes nothing. Promises: whatever keep-masks its groups get, slicing
    every parameter's axis by the mask of its layout, and restating what the rules' clauses state,
    gives a model with consistent shapes.

    Args:
        model: the model.
        rules: rows of the user by operator; they come before the built-in ones.
    """
    walk = _Walk(model, rules or {})
    for name in model.inputs:
        walk.begin(name)
    for node in model.nodes:
        walk.visit(node)
    walk.close()
    groups = balanced(model, walk.factors, walk.layouts, walk.bound, _groups(walk))
    return Coupling(model, walk.factors, walk.layouts, tuple(walk.bound), walk.frozen, groups)


class _Walk:
    """The state of one walk over the nodes in topological order."""

    def __init__(self, model: Model, rules: Mapping[str, Row]) -> None:
        self.model, self.rules = model, rules
        self.factors = Factors()
        self.layouts: Layouts = {}
        self.bound: list[Bound] = []
        self.frozen: dict[int, str] = {}
        self.sources: dict[str, tuple[str, ...]] = {}  # constant values and the params behind them
        stored = (tensor for own in graphs(model.proto.graph) for tensor in own.sparse_initializer)
        self.sparse = {tensor.values.name for tensor in stored}
        self.read_by_contraction: set[tuple[str, int]] = set()  # (param, axis)
        self.read_factors: list[tuple[str, Layout]] = []  # (param, a contracted layout)

    def enter(self, name: str, reason: Reason | None) -> None:
        """Give a value that no rule made layouts of its own."""
        shape = self.model.samples[0].shapes.get(name)
        if shape is None:
            return
        self.layouts[name] = tuple(
            OPAQUE if size is None else self.factors.fresh(size, reason) for size in shape
        )

    def begin(self, name: str) -> None:
        """Give a graph input its layouts: frozen ones, but for fixed axes of those that may go."""
        reason = Reason("it is an axis of a graph input")
        shape = self.model.shape(name)
        if name not in self.model.open_io or shape is None:
            self.enter(name, reason)
            return
        sizes = self.model.samples[0].shapes[name]
        self.layouts[name] = tuple(
            OPAQUE if size is None else self.factors.fresh(size, reason if fixed is None else None)
            for fixed, size in zip(shape, sizes, strict=True)
        )

    def visit(self, node: Node) -> None:
        """Bind the letters of a node's rule; a node without one freezes all that it touches."""
        if node.bodies:
            self.control(node)
            return
        known = [sample.constants for sample in self.model.samples]
        if node.outputs and all(x in own for own in known for x in node.outputs if x):
            return  # shape arithmetic: its values depend on no channel
        try:
            if node.captured:
                raise Unprunable("its bodies are not looked into")
            fits = fit_node(node, self.model, self.rules)
        except Unprunable as verdict:
            self.freeze(node, str(verdict))
            return
        self.bind(node, fits)

    def freeze(self, node: Node, text: str) -> None:
        """Every axis that the node touches keeps every index."""
        reason = because(text, node)
        if not node.inside:
            self.frozen[node.index] = text
        for name in (*node.inputs, *node.captured):
            self.operand(name)
            for layout in self.layouts.get(name, ()):
                self.factors.freeze(layout, reason)
        for name in node.outputs:
            if name:
                self.enter(name, reason)

    def control(self, node: Node) -> None:
        """Walk the bodies of an If, Loop or Scan; what links say is one value has one layout."""
        entering, leaving = links(node)
        linked = {name for link in (*entering, *leaving) for name in (link.value, *link.sources)}
        steers = because("it steers what runs", node)
        for name in node.inputs:
            self.operand(name)
            if name not in linked:
                self.freeze_all(name, steers)
        for name in () if is_replaceable(node, self.model) else node.unseen:
            self.operand(name)
            self.freeze_all(name, because("a branch of it that never runs reads this", node))
        for link in entering:
            self.follow(node, link)
        for body in node.bodies:
            for name in body.inputs:
                if name not in self.layouts:
                    self.enter(name, steers)
            for inner in body.nodes:
                self.visit(inner)
            for name in body.outputs:
                self.operand(name)
                if name in self.model.params or name not in linked:
                    self.freeze_all(name, because("it leaves a body as it is", node))
        for link in leaving:
            self.follow(node, link)
        self.keep_ids(node)

    def follow(self, node: Node, link: Link) -> None:
        """Let a value and its sources have the same layouts; where sizes differ, nothing goes."""
        reason = because("its size differs between the ways that lead here", node)
        sides = [self.seen(link, source, node) for source in link.sources]
        own = self.layouts.get(link.value)
        sides += [] if own is None else [own]
        ranks = {len(side) for side in sides if side is not None}
        shape = self.model.samples[0].shapes.get(link.value)
        if None in sides or len(ranks) != 1 or shape is None or len(shape) not in ranks:
            for layout in (x for side in sides for x in side or ()):
                self.factors.freeze(layout, reason)
            if own is None:
                self.enter(link.value, reason)
            return
        made = []
        for axis, layouts in enumerate(zip(*(x for x in sides if x is not None), strict=True)):
            if agree(link, axis, self.model.samples):
                for other in layouts[1:]:
                    self.factors.unify(layouts[0], other, reason)
                made.append(layouts[0])
                continue
            for layout in layouts:
                self.factors.freeze(layout, reason)
            size = shape[axis]
            made.append(OPAQUE if size is None else self.factors.fresh(size, reason))
        if own is None:
            self.layouts[link.value] = tuple(made)

    def seen(self, link: Link, source: str, node: Node) -> tuple[Layout, ...] | None:
        """The layouts of a source as the link's value has them; the axis of the steps is whole."""
        layouts = self.layouts.get(source)
        if layouts is None:
            return None
        found = list(layouts)
        if link.lost is not None:
            self.factors.freeze(found.pop(link.lost), because("it runs over the steps", node))
        if link.gained is not None:
            found.insert(link.gained % (len(found) + 1), OPAQUE)
        return tuple(found)

    def freeze_all(self, name: str, reason: Reason) -> None:
        """Every axis of a value keeps every index."""
        for layout in self.layouts.get(name, ()):
            self.factors.freeze(layout, reason)

    def operand(self, name: str) -> None:
        """Make sure that a constant has layouts: free ones for a parameter."""
        if name and name not in self.layouts:
            free = name in self.model.params
            why = "it is stored sparse" if name in self.sparse else "it is computed from sizes"
            self.enter(name, None if free else Reason(why))

    def bind(self, node: Node, fits: tuple[Fit, ...]) -> None:
        """Unify what equal letters stand for; build the layouts of the results."""
        fit = fits[0]
        letters: dict[str, Layout] = {}
        step = Step(self.factors, node, fit, letters)
        late = []
        for name, axes in zip(node.inputs, fit.operands, strict=True):
            if axes is None or not name:
                self.keep_stated(name, node)
                continue
            if name not in self.layouts:
                if name in self.model.params:
                    late.append((name, axes))
                    continue
                self.operand(name)
            for axis, layout in zip(axes, self.layouts[name], strict=True):
                step.meet(axis, layout)
        for name, axes in late:
            if name not in self.layouts:
                self.layouts[name] = tuple(step.build(axis) for axis in axes)
                continue
            for axis, layout in zip(axes, self.layouts[name], strict=True):
                step.meet(axis, layout)  # it stands twice among the operands
        for name, axes in zip(node.outputs, fit.results, strict=True):
            if name and axes is not None:
                self.layouts[name] = tuple(step.build(axis) for axis in axes)
            elif name:
                self.enter(name, Reason("the rule says that it carries no channels", node.index))
        for letter in fit.mixing:
            if letter in letters:
                self.factors.mix(letters[letter])
        for letter, size in fit.sizes.items():
            letters.setdefault(letter, OPAQUE if size is None else self.factors.fresh(size))
            if any(other.sizes.get(letter) != size for other in fits[1:]):
                self.keep_dynamic(letter, letters[letter], fits, node)
        if node.op not in DEQUANTIZES:
            self.keep_ids(node)
        self.bound.append(Bound(node, fits, letters))
        self.keep_dynamic_sums(self.bound[-1])
        self.note_sides(node, fit, letters)

    def keep_dynamic(self, letter: str, layout: Layout, fits: tuple[Fit, ...], node: Node) -> None:
        """An axis of dynamic size stays whole, but for the heads of a batch times heads."""
        inner = fixed_part(self.factors, layout) if is_carried(letter, fits[0]) else None
        sizes = [own.sizes.get(letter) for own in fits]
        if inner is None or any(n is None or n % self.factors.size(inner) for n in sizes):
            self.factors.freeze(layout, Reason("its size is dynamic", node.index))

    def keep_stated(self, name: str, node: Node) -> None:
        """What states sizes, scales or positions stays whole."""
        if node.op not in UNREAD:
            for layout in self.layouts.get(name, ()):
                self.factors.freeze(layout, Reason("it carries no channels", node.index))

    def keep_dynamic_sums(self, bound: Bound) -> None:
        """What is joined with a dynamic size stays whole: no constant states the two together."""
        reason = Reason("it is joined with a dynamic size", bound.node.index)
        for axes in (*bound.fit.operands, *bound.fit.results):
            for axis in axes or ():
                if len(axis) > 1 and not bound.is_fixed(axis):
                    self.factors.freeze(bound.layout(axis, self.factors), reason)

    def keep_ids(self, node: Node) -> None:
        """Stored integers are ids or positions (the 0, 1, 2, ... of a one-hot), not channels."""
        for name in node.inputs:
            if name in self.model.params and self.model.params[name].dtype in INTEGERS:
                for layout in counted(node, self.layouts.get(name, ())):
                    self.factors.freeze(layout, Reason(f"'{name}' holds ids", node.index))

    def note_sides(self, node: Node, fit: Fit, letters: Mapping[str, Layout]) -> None:
        """Which axes of parameters are read by contractions, also behind constant nodes."""
        behind = [self.behind(name) for name in node.inputs]
        if all(found is not None for name, found in zip(node.inputs, behind, strict=True) if name):
            params = tuple(dict.fromkeys(p for found in behind for p in found or ()))
            self.sources.update(dict.fromkeys(node.outputs, params))
            return
        for name, axes, found in zip(node.inputs, fit.operands, behind, strict=True):
            if axes is None or not found:
                continue
            seen: set[str] = set()
            for position, axis in enumerate(axes):
                own = {letter for term in axis for letter in term}
                read = own & (fit.contracted | seen)
                seen |= own
                if name in self.model.params and read:
                    self.read_by_contraction.add((name, position))
                elif read:
                    self.read_factors.extend((p, letters[x]) for p in found for x in read)

    def behind(self, name: str) -> tuple[str, ...] | None:
        """The parameters that a constant value is made of; None for an activation."""
        if name in self.model.params:
            return (name,)
        if name in self.model.samples[0].constants:
            return ()
        return self.sources.get(name)

    def close(self) -> None:
        """What leaves the graph, or enters a body, stays whole."""
        for name in self.model.outputs:
            self.operand(name)
            if name in self.model.open_io - self.model.params.keys():
                continue
            for layout in self.layouts.get(name, ()):
                self.factors.freeze(layout, Reason("it is an axis of a graph output"))


def _groups(walk: _Walk) -> tuple[Group, ...]:
    """Free factors by the parameters' axes that they occur in, in graph order."""
    factors = walk.factors
    read = walk.read_by_contraction.copy()
    leaves_read = {(p, leaf) for p, layout in walk.read_factors for leaf in factors.leaves(layout)}
    found: dict[int, list[Member]] = {}
    names: dict[int, str] = {}
    for param in walk.model.used_params:
        for axis, layout in enumerate(walk.layouts.get(param, ())):
            normal = factors.normal(layout)
            leaves = factors.leaves(normal)
            for position, leaf in enumerate(leaves):
                if factors.reason(leaf) is not None:
                    continue
                contracted = (param, axis) in read or (param, leaf) in leaves_read
                found.setdefault(leaf, []).append(Member(param, axis, normal, contracted))
                suffix = f"[{position}]" if len(leaves) > 1 else ""
                names.setdefault(leaf, f"{param}:{axis}{suffix}")
    least = _least(walk)
    return tuple(
        Group(
            *(names[leaf], leaf, factors.size(leaf), factors.is_mixing(leaf), tuple(members)),
            least=min(least.get(leaf, 1), factors.size(leaf)),
        )
        for leaf, members in found.items()
    )


def _least(walk: _Walk) -> dict[int, int]:
    """How many indices of a factor have to stay, where an operator picks so many among them."""
    found: dict[int, int] = {}
    for bound in walk.bound:
        operand, attribute = PICKS_AMONG.get(bound.node.op, (0, ""))
        axes = bound.fit.operands[operand] if attribute else None
        if axes:
            count = int(bound.node.attributes.get(attribute, 1))
            for leaf in walk.factors.leaves(bound.layout(axes[-1], walk.factors)):
                found[leaf] = max(found.get(leaf, 1), count)
    return found
