"""Shrink: remove what the masks remove, and carry the change through every consumer.

Four things happen, each read off the coupling:
- every parameter's axis is sliced by the mask of its layout;
- attributes and shape operands that the rules' clauses name are restated;
- branches that never run and read what is removed are replaced by stubs;
- Shape nodes of values that lose channels go on giving the original sizes. So shape arithmetic
  keeps its meaning (a scale of 1/sqrt(d) stays what it was), and only what is read as a shape
  changes.
Names, inputs and outputs, metadata, doc strings, element types and all other tensors stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.axes import Layout, Opaque
from onnxprune.bodies import restore
from onnxprune.coupling import Bound, Coupling
from onnxprune.edits import Edits, Wish
from onnxprune.model import Array, Node, Param, operator, subgraphs
from onnxprune.notation import Axis
from onnxprune.outside import Sink
from onnxprune.plan import Keep, counts_of
from onnxprune.rules.tables import ONE_BY_DEFAULT, RENAMES
from onnxprune.rules.values import SIZES
from onnxprune.storage import makings
from onnxprune.stubs import idle, is_replaceable, stub
from onnxprune.tables import Cut, cuts

INTEGERS_FROM: Final = 9  # the opset from which on a Constant node may hold integers
Stated = int | Fraction | None  # a size, or a dynamic one's share; None: as it is


def shrink(
    coupling: Coupling,
    keep: Keep,
    values: Mapping[str, Array] | None = None,
    sink: Sink | None = None,
) -> onnx.ModelProto:
    """The model without the removed indices.

    Needs the coupling of a normalized model. Promises: the graph's inputs and outputs are the same;
    with nothing removed and no values given the model is the original, byte for byte.

    Args:
        coupling: the structure of the model.
        keep: kept indices (size,) by factor; a factor that is absent keeps all.
        values: full-size values of parameters that replace the file's (recovery, merging).
        sink: the data file that all larger tensors are put into as they are made; else those that
            change are held in memory, and those that stay are where they were.
    """
    pruned = {factor: mask for factor, mask in keep.items() if not mask.all()}
    edits = Edits(coupling.model)
    work = _Shrink(coupling, pruned, values or {}, edits, sink)
    for node in coupling.model.every:
        work.slice_params(node)
    raws = {out: raw for raw in coupling.model.proto.graph.node for out in raw.output}
    for node in coupling.model.every if pruned else ():
        work.keep_folded(node, raws)
    if pruned:
        for bound in coupling.bound:
            work.restate(bound)
        for node in coupling.model.every:
            if node.op in SIZES:
                work.keep_sizes(node)
    for node in coupling.model.every:
        if node.unseen:
            work.replace_idle(node)
    proto = edits.applied()
    if pruned:
        work.restate_value_info(proto.graph)
    restore(proto, coupling.model.renamed)
    if sink is not None:
        sink.take_in(proto, coupling.model.folder)
    return proto


class _Shrink:
    """One run: what is pruned, and the edits made so far."""

    def __init__(
        self,
        coupling: Coupling,
        keep: Keep,
        values: Mapping[str, Array],
        edits: Edits,
        sink: Sink | None,
    ) -> None:
        self.made = numpy_helper.from_array if sink is None else sink.array
        self.coupling, self.keep, self.values, self.edits = coupling, keep, values, edits
        self.model, self.factors = coupling.model, coupling.factors
        self.pruned = frozenset(keep)
        self.counts = counts_of(keep)
        self.cuts: dict[str, tuple[Cut, ...]] = {}

    def slice_params(self, node: Node) -> None:
        """Let the node's constant operands lose what their layouts lose."""
        for position, name in enumerate(node.inputs):
            param = self.model.params.get(name)
            if param is None or name not in self.coupling.layouts:
                continue
            if name not in self.cuts:
                self.cuts[name] = cuts(self.factors, self.coupling.layouts[name], self.keep)
            own = self.cuts[name]
            if not own and name not in self.values:
                continue
            key = (own, name if name in self.values else "")
            copy = name if "@" in name else f"{name}@{node.key}:{position}"
            make = partial(self._sliced, param, own)
            self.edits.constant(param.origin, node, position, Wish(key, copy, make))

    def keep_folded(self, node: Node, raws: Mapping[str, onnx.NodeProto]) -> None:
        """Store folded operands that lose nothing, but would be computed of what does now."""
        for position, name in enumerate(node.inputs):
            param = self.model.params.get(name)
            if param is None or not param.folded or self.cuts.get(name):
                continue
            layouts = map(self.coupling.layouts.get, makings(self.model, raws, param.origin))
            if any(self._loses(x) for own in layouts for x in own or ()):
                copy, make = f"{name}@{node.key}:{position}", partial(self._sliced, param, ())
                self.edits.constant(param.origin, node, position, Wish(((), ""), copy, make))

    def _sliced(self, param: Param, own: tuple[Cut, ...], name: str) -> onnx.TensorProto:
        values = self.values.get(param.name)
        source = self.edits.constants.get(param.origin)
        if values is None:
            values = param.read()
        elif not param.folded:
            values = values.astype(helper.tensor_dtype_to_np_dtype(param.dtype), copy=False)
        for cut in own:
            values = cut.of(values)
        tensor = self.made(np.ascontiguousarray(values), name)
        if source is not None:
            tensor.doc_string = source.doc_string
            tensor.metadata_props.extend(source.metadata_props)
        return tensor

    def restate(self, bound: Bound) -> None:
        """Write the sizes that the clauses of a node's rule state, where it lost something."""
        if not bound.fit.clauses or not bound.removed(self.factors, self.pruned):
            return
        for target, axes in bound.fit.clauses:
            known = len(self.model.samples) == 1 or self._is_stored(bound.node, target)
            sizes = [self._size(bound, axis, known) for axis in axes]
            if isinstance(target, int):
                self._restate_operand(bound.node, target, sizes)
            else:
                self._restate_attribute(bound.node, target, _whole(sizes))

    def _is_stored(self, node: Node, target: int | str) -> bool:
        """Whether sizes stand in the file: in an attribute or a stored operand."""
        if isinstance(target, str) or target >= len(node.inputs):
            return True
        return node.inputs[target] in {"", *self.model.params}

    def _size(self, bound: Bound, axis: Axis, known: bool) -> Stated:
        """What is kept of an axis; None where the rule says nothing, or it loses nothing.

        A fixed size is an absolute number, if the axes' sizes are ``known``; else, and for an axis
        with dynamic parts, it is a share of what is computed.
        """
        if known and bound.is_fixed(axis):
            return self.factors.count(bound.layout(axis, self.factors), self.counts)
        if any(letter not in bound.letters for term in axis for letter in term):
            return None
        return self._share(bound.layout(axis, self.factors))

    def _share(self, layout: Layout) -> Fraction | None:
        """The kept share of an axis with dynamic parts, ``(c h w)``; None where all is kept."""
        if not self._loses(layout):
            return None
        return Fraction(self.factors.count(layout, self.counts), self.factors.size(layout))

    def _restate_attribute(self, node: Node, name: str, sizes: list[int | None]) -> None:
        """Write an attribute that states sizes, if it doesn't say so already."""
        old = node.attributes.get(name, 1 if name in ONE_BY_DEFAULT else None)
        new: Any = sizes
        if isinstance(old, list):
            new = [o if n is None else n for o, n in zip(old, sizes, strict=True)]
        elif old is not None:
            new = old if sizes[0] is None else sizes[0]
        if new != old and (old is not None or None not in sizes):
            self.edits.attribute(node, name, new)

    def _restate_operand(self, node: Node, position: int, stated: list[Stated]) -> None:
        """Replace the stated elements: in a constant, or behind a computed operand."""
        sizes = _whole(stated)
        if position >= len(node.inputs) or not node.inputs[position]:
            self._new_operand(node, position, sizes)
            return
        name = node.inputs[position]
        param = self.model.params.get(name)
        fixed = len(self.model.samples) == 1 or param is not None
        known = self.model.constant(name) if fixed else None  # else it may differ at other sizes
        copy = f"{name.partition('@')[0]}@{node.key}:{position}"
        if known is None and None in sizes:
            self._patch(node, position, stated, self.edits.unused(copy))
            return
        flat = [None] * len(sizes) if known is None else known.reshape(-1).tolist()
        new = np.array([o if n is None else n for o, n in zip(flat, sizes, strict=True)])
        new = new.astype(self._whole_dtype(name) if known is None else known.dtype)
        if known is not None and np.array_equal(known.reshape(-1), new):
            return
        if param is not None:
            wish = Wish(new.tobytes(), copy, partial(numpy_helper.from_array, new))
            self.edits.constant(param.origin, node, position, wish)
        else:
            copy = self.edits.unused(copy)
            self.edits.add(numpy_helper.from_array(new, copy))
            self.edits.operand(node, position, copy)

    def _new_operand(self, node: Node, position: int, sizes: list[int | None]) -> None:
        """An operand that was left out because its sizes were even: Split."""
        if None in sizes:
            return
        name = self.edits.unused(f"{node.key}@{position}")
        self.edits.add(numpy_helper.from_array(np.array(sizes, np.int64), name))
        self.edits.operand(node, position, name)
        if "num_outputs" in node.attributes:
            self.edits.attribute(node, "num_outputs", None)

    def _patch(self, node: Node, position: int, sizes: list[Stated], name: str) -> None:
        """Let an operand state sizes of which some stay computed."""
        nodes = self._patched(node.inputs[position], sizes, name)
        if not nodes:
            return  # what is lost is computed as it should be
        self.edits.insert(node, nodes)
        self.edits.operand(node, position, name)

    def _patched(
        self, computed: str, sizes: list[Stated], name: str, scalar: bool = False
    ) -> list[onnx.NodeProto]:
        """``computed * 0/1 + sizes``: dynamic elements stay computed, or ``computed * 3 / 4``."""
        shares = [n if isinstance(n, Fraction) else Fraction(n is None) for n in sizes]
        every = [
            ("Mul", 1, [share.numerator for share in shares]),
            ("Div", 1, [share.denominator for share in shares]),
            ("Add", 0, [n or 0 for n in _whole(sizes)]),
        ]
        steps = [(op, values) for op, neutral, values in every if {neutral} != set(values)]
        nodes, dtype = [], self._whole_dtype(computed)
        for position, (op, values) in enumerate(steps, 1):
            constant = self.edits.unused(f"{name}/{op.lower()}_by")
            made = np.array(values, dtype).reshape(() if scalar else -1)
            self.edits.add(numpy_helper.from_array(made, constant))
            last = position == len(steps)
            result = name if last else self.edits.unused(f"{name}/{op.lower()}")
            nodes.append(helper.make_node(op, [computed, constant], [result]))
            computed = result
        return nodes

    def _whole_dtype(self, name: str) -> Any:
        """The integer type of an operand that states sizes."""
        kind = self.model.dtypes.get(name, onnx.TensorProto.INT64)
        return helper.tensor_dtype_to_np_dtype(kind)

    def keep_sizes(self, node: Node) -> None:
        """Let a Shape node of a value that loses channels give the original sizes."""
        layouts = self.coupling.layouts.get(node.inputs[0], ())
        start, end = node.attributes.get("start", 0), node.attributes.get("end", len(layouts))
        lost = [self._loses(layout) for layout in layouts]
        if not any(lost[start:end]):
            return
        output = node.outputs[0]
        known = self.model.constant(output) if len(self.model.samples) == 1 else None
        if known is not None and self.model.opset < INTEGERS_FROM:
            self.edits.add(numpy_helper.from_array(known, output))
            return
        if known is not None:
            value = numpy_helper.from_array(known)
            constant = helper.make_node("Constant", [], [output], name=node.proto.name, value=value)
            self.edits.replace(output, [constant])
            return
        shape = self.model.shape(node.inputs[0]) or ()
        sizes = [
            (n or 1 / (self._share(layout) or Fraction(1))) if gone else None
            for n, layout, gone in zip(shape, layouts, lost, strict=True)
        ][start:end]
        scalar = self.model.shape(output) == ()  # Size gives one number
        if scalar:
            shares = [self._share(layout) or Fraction(1) for layout in layouts]
            sizes = [1 / math.prod(shares, start=Fraction(1))]
        raw = onnx.NodeProto()
        raw.CopyFrom(node.proto)
        raw.output[0] = self.edits.unused(f"{output}/pruned")
        patched = self._patched(raw.output[0], sizes, f"{output}/sizes", scalar)
        patched[-1].output[0] = output
        self.edits.replace(output, [raw, *patched])

    def replace_idle(self, node: Node) -> None:
        """Put a stub for a branch that never runs where it reads what changes."""
        place = idle(node)
        layouts = (layout for x in node.unseen for layout in self.coupling.layouts.get(x, ()))
        reads = any(name in self.edits.wishes for name in node.unseen)
        if place is None or not (reads or any(map(self._loses, layouts))):
            return
        if is_replaceable(node, self.model):
            shapes = [self._pruned_shape(name) for name in node.bodies[0].outputs]
            self.edits.stub(node, place, stub(node, self.model, shapes, self.edits.unused))

    def _pruned_shape(self, name: str) -> list[int]:
        """The shape that a value has then; 1 for what is dynamic."""
        shape = self.model.shape(name) or ()
        layouts = self.coupling.layouts.get(name, ())
        kept = [self.factors.count(x, self.counts) if self._loses(x) else None for x in layouts]
        kept += [None] * (len(shape) - len(kept))
        return [own or size or 1 for own, size in zip(kept, shape, strict=True)]

    def _loses(self, layout: Layout) -> bool:
        return not self.pruned.isdisjoint(self.factors.leaves(layout))

    def restate_value_info(self, graph: onnx.GraphProto, body: bool = False) -> None:
        """Annotated shapes of inner values and listed initializers follow; so do bodies."""
        for inner in (x for node in graph.node for x in subgraphs(node)):
            self.restate_value_info(inner, body=True)
        stored = {tensor.name: tensor.dims for tensor in graph.initializer}
        for node in graph.node:
            if operator(node) in RENAMES and node.input[0] in stored:
                stored[node.output[0]] = stored[node.input[0]]
        outputs = [x for x in graph.output if body or x.name in self.model.open_io]
        for value in (*graph.value_info, *graph.input, *outputs):
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, stored.get(value.name, ()), strict=False):
                dim.dim_value = size
            layouts = self.coupling.layouts.get(value.name)
            states = value.type.tensor_type.HasField("shape")
            if not states or layouts is None or len(dims) != len(layouts) or value.name in stored:
                continue
            sizes = self.model.shape(value.name) or (None,) * len(dims)
            for dim, layout, size in zip(dims, layouts, sizes, strict=True):
                if not isinstance(layout, Opaque) and self._loses(layout):
                    dim.Clear()
                    if size is not None:
                        dim.dim_value = self.factors.count(layout, self.counts)


def _whole(sizes: list[Stated]) -> list[int | None]:
    """The sizes that are known."""
    return [n if isinstance(n, int) else None for n in sizes]
