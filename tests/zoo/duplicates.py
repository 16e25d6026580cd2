"""The duplicate oracle: weights of which half is a copy that nothing reads.

Index b of a factor becomes a copy of index a wherever a parameter produces it, and has zero weight
wherever a parameter contracts it. Then the removal of b changes nothing, through every norm that
takes means. Nothing is masked, so that a wrong mask in ``onnxprune.oracle`` is of no consequence;
and each factor has its own random pairs, so that two axes whose coupling was missed don't match.

A factor takes part where each of its consumers is a parameter: not the channels of ``q k'``, which
two activations contract, nor those of a softmax, whose sum counts copies twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.axes import Layout, Mask, Product, Sum
from onnxprune.coupling import Bound, Coupling
from onnxprune.files import copy_fields
from onnxprune.model import Array, Model
from onnxprune.notation import is_whole

Place = tuple[str, int, int]  # parameter, axis, factor
Indices = npt.NDArray[np.int64]

# Mixing operators whose results don't change when every operand comes twice.
MEANS: Final = frozenset(
    [
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "com.microsoft::SimplifiedLayerNormalization",
    ]
)
# Operators on constants that leave a zero a zero.
ZERO_STAYS: Final = frozenset(
    [
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
# Operators that leave indices out, and never combine them.
DROPS: Final = frozenset({"Slice"})


class Sides:
    """Which parameters make each factor and which read it; what can't take part."""

    def __init__(self, coupling: Coupling) -> None:
        self.model, self.factors = coupling.model, coupling.factors
        self.free = {group.factor for group in coupling.groups}
        self.made: set[Place] = set()
        self.read: set[Place] = set()
        self.means: list[Layout] = []
        self.sources: dict[str, tuple[str, ...]] = {}  # constants that nodes make, their parameters
        self.shifted: set[str] = set()  # those that are not zero where their parameter is
        self.layouts = coupling.layouts
        for bound in coupling.bound:
            self.visit(bound)
        for _, _, factor in self.made & self.read:
            self.free.discard(factor)
        while self.uneven():
            pass

    def behind(self, name: str) -> tuple[str, ...] | None:
        """The parameters that a constant is made of; None for an activation."""
        if name in self.model.params:
            return (name,)
        if not name or name in self.model.samples[0].constants:
            return ()
        return self.sources.get(name)

    def visit(self, bound: Bound) -> None:
        node = bound.node
        origins = [self.behind(name) for name in node.inputs]
        if None not in origins:
            params = tuple(dict.fromkeys(p for found in origins for p in found or ()))
            self.sources.update(dict.fromkeys(node.outputs, params))
            if node.op not in ZERO_STAYS or not self.shifted.isdisjoint(node.inputs):
                self.shifted.update(node.outputs)
            return
        backed: set[str] = set()
        for position, axes in enumerate(bound.fit.operands):
            seen: set[str] = set()
            for axis, pattern in enumerate(axes or ()):
                own = {x for term in pattern for x in term if not is_whole(x)}
                for x in own:
                    reads = x in bound.fit.contracted or x in seen
                    backed.update(x for _ in origins[position] or ())
                    self.note(bound, position, axis, x, reads)
                    if x in seen and not origins[position]:
                        self.refuse(bound.letters[x])
                seen |= own
        self.combined(bound, backed)

    def note(self, bound: Bound, position: int, axis: int, letter: str, reads: bool) -> None:
        name = bound.node.inputs[position]
        layout = bound.letters[letter]
        if reads and name in self.shifted:
            self.refuse(layout)
        for param in self.behind(name) or ():
            for factor in self.factors.leaves(layout):
                axes = [axis] if param == name else self.axes_of(param, factor)
                if len(axes) > 1:
                    self.refuse(factor)
                for k in axes:
                    (self.read if reads else self.made).add((param, k, factor))

    def axes_of(self, param: str, factor: int) -> list[int]:
        layouts = self.layouts.get(param, ())
        return [k for k, layout in enumerate(layouts) if factor in self.factors.leaves(layout)]

    def combined(self, bound: Bound, backed: set[str]) -> None:
        """Letters that are summed without a parameter, or mixed by more than a mean."""
        for x in bound.fit.contracted - backed:
            if bound.node.op not in DROPS:
                self.refuse(bound.letters[x])
        for x in bound.fit.mixing:
            if bound.node.op not in MEANS:
                self.refuse(bound.letters[x])
            elif x in bound.letters:
                self.means.append(bound.letters[x])

    def refuse(self, layout: Layout) -> None:
        self.free.difference_update(self.factors.leaves(layout))

    def uneven(self) -> bool:
        """Take out what would shift a mean: odd sizes, sums of which only a part is halved."""
        before = len(self.free)
        for layout in self.means:
            if self.share(self.factors.normal(layout)) is None:
                self.refuse(layout)
        return len(self.free) != before

    def share(self, layout: Layout) -> float | None:
        """How much of a layout stays; None where copies don't stand for the same of each part."""
        if isinstance(layout, int):
            if layout not in self.free:
                return 1.0
            return None if self.factors.size(layout) % 2 else 0.5
        if not isinstance(layout, Product | Sum):
            return 1.0
        shares = [self.share(part) for part in layout.parts]
        if None in shares or (isinstance(layout, Sum) and len(set(shares)) > 1):
            return None
        if isinstance(layout, Sum):
            return shares[0]
        return float(np.prod([share or 1.0 for share in shares]))


def duplicated(coupling: Coupling, seed: int) -> tuple[dict[int, Mask], dict[str, Array]]:
    """Kept indices by factor, and full-size parameters whose other indices are copies."""
    sides = Sides(coupling)
    factors = coupling.factors
    means = {leaf for layout in sides.means for leaf in factors.leaves(layout)}
    keep: dict[int, Mask] = {}
    origin: dict[int, Indices] = {}
    for factor in sorted(sides.free):
        size = factors.size(factor)
        rng = np.random.default_rng([seed, factor])
        order, pairs = rng.permutation(size), size // 2
        count = pairs if factor in means else int(rng.integers((pairs + 1) // 2, pairs + 1))
        removed = order[pairs : pairs + count]
        keep[factor] = ~np.isin(np.arange(size), removed)
        origin[factor] = np.arange(size)
        origin[factor][removed] = order[:count]
    values = {}
    for name, param in coupling.model.params.items():
        layouts = coupling.layouts.get(name, ())
        if any(leaf in keep for layout in layouts for leaf in factors.leaves(layout)):
            values[name] = _copies(sides, name, param.read(), layouts, keep, origin)
    return keep, values


def _copies(
    sides: Sides,
    name: str,
    values: Array,
    layouts: Iterable[Layout],
    keep: Mapping[int, Mask],
    origin: Mapping[int, Indices],
) -> Array:
    for axis, layout in enumerate(layouts):
        leaves = [leaf for leaf in sides.factors.leaves(layout) if leaf in keep]
        if not leaves:
            continue
        made = {x: origin[x] for x in leaves if (name, axis, x) not in sides.read}
        read = {x: keep[x] for x in leaves if (name, axis, x) in sides.read}
        taken = _taken(sides, sides.factors.normal(layout), made)
        values = np.take(values, taken, axis=axis)
        zero = np.flatnonzero(~sides.factors.mask(layout, read))
        values[(slice(None),) * axis + (zero,)] = 0
    return values


def _taken(sides: Sides, layout: Layout, origin: Mapping[int, Indices]) -> Indices:
    """The index that each index of an axis is a copy of."""
    if isinstance(layout, int):
        return origin.get(layout, np.arange(sides.factors.size(layout)))
    assert isinstance(layout, Product | Sum)
    taken = np.zeros(1 if isinstance(layout, Product) else 0, np.int64)
    for part in layout.parts:
        own = _taken(sides, part, origin)
        if isinstance(layout, Product):
            taken = (taken[:, None] * own.size + own).reshape(-1)
        else:
            taken = np.concatenate([taken, own + taken.size])
    return taken


def with_values(model: Model, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The whole model with other parameters, written without the passes and without the oracle."""
    source = model.proto
    proto = onnx.ModelProto()
    copy_fields(proto, source, {"graph"})
    copy_fields(proto.graph, source.graph, {"node", "initializer"})
    views = {node.outputs[0]: node for node in model.nodes}
    for raw in source.graph.node:
        node = proto.graph.node.add()
        node.CopyFrom(raw)
        view = views.get(raw.output[0])
        for position, name in enumerate(view.inputs if view else ()):
            if name in values:
                node.input[position] = f"copies of {name}"
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(t for t in source.graph.initializer if t.name in read)
    for name, array in values.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), f"copies of {name}")
        proto.graph.initializer.append(tensor)
    return proto
