"""The masked oracle: the original model with the removed indices without effect.

It is the proof of every run, so it shares no code with passes/shrink: nothing is sliced, and
every weight stays as it is. It only goes by the rules:

- before a contraction of a pruned letter, one operand is multiplied by a 0/1 mask; so is the later
  axis of an operand that repeats a letter (the recurrent weight of an LSTM, ``(_q h) h``);
- before an operator that mixes a pruned letter, a Gather takes the letter's kept indices from all
  operands, and what states the letter's size is told so; behind it another Gather gives the
  results their full width again.

Everything else runs as the file says, on all indices. What a removed index holds is of no
importance then, and is never compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes import Factors, Mask
from onnxprune.bodies import graphs
from onnxprune.coupling import Bound, Coupling
from onnxprune.model import Array, Model, Node, subgraphs
from onnxprune.notation import Axis
from onnxprune.plan import Keep
from onnxprune.tables import by_rows, laid

FLOATS: Final = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
PAIR: Final = 2  # operands that hold a letter which they are summed over
MULTIPLIED: Final = FLOATS | {TensorProto.INT32, TensorProto.INT64}  # what Mul takes everywhere


def masked(
    coupling: Coupling,
    keep: Keep,
    extra_outputs: Sequence[str] = (),
    values: Mapping[str, Array] | None = None,
    jitter: int | None = None,
) -> onnx.ModelProto:
    """The original model in which the removed indices have no effect.

    The weights are copied once; external data stays where it is.

    Args:
        coupling: the structure of the model.
        keep: kept indices (size,) by factor; a factor that is absent keeps all.
        extra_outputs: values of the graph that are outputs too.
        values: full-size values of parameters that replace the file's.
        jitter: a seed; each 1 of a float32 or float64 mask, and each index that is gathered, is
            then off by one rounding, up or down. What that does to a value is what rounding has to
            be allowed there.
    """
    writer = _Writer(coupling, keep, values or {}, jitter)
    for node in coupling.model.every:
        writer.replace_params(node)
    for bound in coupling.bound:
        writer.visit(bound)
    return _rebuilt(coupling.model.proto, writer, extra_outputs)


def _rebuilt(
    proto: onnx.ModelProto, writer: _Writer, extra_outputs: Sequence[str]
) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    result.opset_import.extend(proto.opset_import)
    result.functions.extend(proto.functions)
    source, graph = proto.graph, result.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    given = set(writer.model.outputs)
    for name in dict.fromkeys(extra_outputs):
        if name not in given:
            graph.output.add(name=name)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.initializer.extend(source.initializer)
    graph.initializer.extend(writer.constants.values())
    graph.node.extend(_written(source, writer))
    return result


def _written(source: onnx.GraphProto, writer: _Writer) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, with what stands before, for and behind each; so in its bodies."""
    for raw in source.node:
        key = _key(raw)
        node = writer.copies.get(key, raw)
        if any(True for _ in subgraphs(raw)):
            node = onnx.NodeProto()
            node.CopyFrom(writer.copies.get(key, raw))
            for body in subgraphs(node):
                inner = onnx.GraphProto()
                inner.node.extend(_written(body, writer))
                del body.node[:]
                body.node.extend(inner.node)
        yield from writer.before.get(key, ())
        yield node
        yield from writer.after.get(key, ())


def _key(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


class _Writer:
    """What stands before, for and behind each node that is not left as it is."""

    def __init__(
        self, coupling: Coupling, keep: Keep, values: Mapping[str, Array], jitter: int | None
    ) -> None:
        self.model: Model = coupling.model
        self.factors: Factors = coupling.factors
        self.keep, self.values = keep, values
        self.pruned = frozenset(factor for factor, mask in keep.items() if not mask.all())
        self.before: dict[str, list[onnx.NodeProto]] = {}  # by the node's first result
        self.copies: dict[str, onnx.NodeProto] = {}
        self.after: dict[str, list[onnx.NodeProto]] = {}
        self.constants: dict[tuple[bytes, tuple[int, ...], int] | str, TensorProto] = {}
        self.generator = None if jitter is None else np.random.default_rng(jitter)
        self.prefix = _unused_prefix(coupling.model.proto)
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def constant(self, values: Array) -> str:
        """The name of an initializer of these values; equal ones are written once."""
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        key = (values.tobytes(), values.shape, kind)
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(values, self.fresh())
        return self.constants[key].name

    def replace_params(self, node: Node) -> None:
        """Let the node read the values that replace the file's."""
        for position, name in enumerate(node.inputs):
            if name not in self.values:
                continue
            param = self.model.params[name]
            if name not in self.constants:
                dtype = helper.tensor_dtype_to_np_dtype(param.dtype)
                own = np.ascontiguousarray(self.values[name].astype(dtype, copy=False))
                self.constants[name] = numpy_helper.from_array(own, self.fresh())
            self.copy_of(node).input[position] = self.constants[name].name

    def copy_of(self, node: Node) -> onnx.NodeProto:
        """The node as it will be written; the file's stays as it is."""
        key = _key(node.proto)
        if key not in self.copies:
            self.copies[key] = onnx.NodeProto()
            self.copies[key].CopyFrom(node.proto)
        return self.copies[key]

    def visit(self, bound: Bound) -> None:
        """Take the effect of the removed indices away, where the node's rule combines indices."""
        removed = bound.removed(self.factors, self.pruned)
        fit = bound.fit
        gathered = removed & (fit.mixing | self.summed_integers(bound))
        key = _key(bound.node.proto)
        places = self.contracted(bound, (removed & fit.contracted) - gathered)
        places |= self.repeated(bound, removed - gathered)
        before = [node for place in sorted(places) for node in self.multiply(bound, *place)]
        before += self.gathers(bound, gathered)
        self.before[key] = before + self.restated(bound, gathered)
        self.after[key] = self.widened(bound, gathered)

    def summed_integers(self, bound: Bound) -> frozenset[str]:
        """Contracted letters of integer operands: what has no effect there is the zero point.

        So their terms are left out, not multiplied by 0. A letter that the node only drops, which
        a clause then states (Slice), needs no more than a mask.
        """
        found = set()
        for position, axes in enumerate(bound.fit.operands):
            if axes is not None and self.dtype(bound.node, position) not in FLOATS:
                found |= {x for axis in axes for term in axis for x in term}
        for _, axes in bound.fit.clauses:
            found -= {x for axis in axes for term in axis for x in term}
        return frozenset(found & bound.fit.contracted)

    def dtype(self, node: Node, position: int) -> int:
        """The element type of an operand, in onnx's numbers."""
        name = node.inputs[position]
        param = self.model.params.get(name)
        return param.dtype if param else self.model.dtypes.get(name, TensorProto.FLOAT)

    def contracted(self, bound: Bound, letters: Collection[str]) -> set[tuple[int, int]]:
        """One operand and axis that holds each letter; of an activation where there is one.

        Where more than two hold it, all of them: an operator that makes and reads the letter inside
        (the hidden layer of an expert) would add what the bias of a removed index gives.
        """
        places: dict[str, list[tuple[bool, int, int]]] = {}
        for position, axes in enumerate(bound.fit.operands):
            stored = bound.node.inputs[position] in self.model.params
            for axis, pattern in enumerate(axes or ()):
                for letter in (x for term in pattern for x in term if x in letters):
                    places.setdefault(letter, []).append((stored, position, axis))
        every = (found if len(found) > PAIR else [min(found)] for found in places.values())
        return {place[1:] for found in every for place in found}

    def repeated(self, bound: Bound, letters: Collection[str]) -> set[tuple[int, int]]:
        """The later axes of operands that hold a letter twice: they read, too."""
        places = set()
        for position, axes in enumerate(bound.fit.operands):
            seen: set[str] = set()
            for axis, pattern in enumerate(axes or ()):
                own = {x for term in pattern for x in term if x in letters}
                if own & seen:
                    places.add((position, axis))
                seen |= own
        return places

    def multiply(self, bound: Bound, position: int, axis: int) -> list[onnx.NodeProto]:
        """``operand * mask``, the mask (size, 1, ...) broadcast on one axis."""
        node, own = self.copy_of(bound.node), self.dtype(bound.node, position)
        kind = own if own in MULTIPLIED else TensorProto.INT32
        factor = self.constant(self.factor(self.spread(bound, position, axis), kind))
        value = node.input[position]
        nodes = []
        if kind != own:
            nodes.append(helper.make_node("Cast", [value], [self.fresh()], to=kind))
            value = nodes[-1].output[0]
        nodes.append(helper.make_node("Mul", [value, factor], [self.fresh()]))
        if kind != own:
            nodes.append(helper.make_node("Cast", list(nodes[-1].output), [self.fresh()], to=own))
        node.input[position] = nodes[-1].output[0]
        return nodes

    def spread(self, bound: Bound, position: int, axis: int) -> Mask:
        """The mask of an axis, or its table, as it is broadcast with the operand."""
        axes = bound.fit.operands[position] or ()
        layouts = tuple(bound.layout(own, self.factors) for own in axes)
        mask = self.factors.mask(layouts[axis], self.keep)
        if mask.ndim == 1:
            return mask.reshape(-1, *[1] * (len(axes) - axis - 1))
        place, table = by_rows(self.factors, layouts, axis, mask)
        return np.asarray(laid(table, place, axis, len(axes)))

    def factor(self, mask: Mask, kind: int) -> Array:
        """The mask as numbers of an element type, jittered where that is asked for."""
        values = np.asarray(mask.astype(helper.tensor_dtype_to_np_dtype(kind)))
        if self.generator is not None and values.dtype in (np.float32, np.float64):
            sign = self.generator.choice([-1.0, 1.0], mask.shape)
            values *= (1 + sign * np.finfo(values.dtype).eps).astype(values.dtype)
        return values

    def gathers(self, bound: Bound, letters: Collection[str]) -> list[onnx.NodeProto]:
        """Take the letters' kept indices from every operand."""
        nodes = []
        for position, axes in enumerate(bound.fit.operands):
            for axis, pattern in enumerate(axes or ()):
                mask = self.own_mask(bound, pattern, letters)
                if mask is not None:
                    node, taken = self.copy_of(bound.node), self.constant(np.flatnonzero(mask))
                    nodes.append(_gather(node.input[position], taken, self.fresh(), axis))
                    if self.generator is not None and self.dtype(bound.node, position) in FLOATS:
                        ones = np.ones((int(mask.sum()), *[1] * (len(axes or ()) - axis - 1)), bool)
                        own = self.constant(self.factor(ones, self.dtype(bound.node, position)))
                        read = [nodes[-1].output[0], own]
                        nodes.append(helper.make_node("Mul", read, [self.fresh()]))
                    node.input[position] = nodes[-1].output[0]
        return nodes

    def widened(self, bound: Bound, letters: Collection[str]) -> list[onnx.NodeProto]:
        """Give the results their full width; a removed index repeats a kept one.

        A zero would do no better, and might be divided by later on.
        """
        nodes: list[onnx.NodeProto] = []
        for position, axes in enumerate(bound.fit.results):
            for axis, pattern in enumerate(axes or ()):
                mask = self.own_mask(bound, pattern, letters)
                if mask is None or not bound.node.outputs[position]:
                    continue
                indices = self.constant(np.maximum(np.cumsum(mask) - 1, 0))
                node, narrow = self.copy_of(bound.node), self.fresh()
                nodes.insert(0, _gather(narrow, indices, node.output[position], axis))
                node.output[position] = narrow
        return nodes

    def restated(self, bound: Bound, letters: Collection[str]) -> list[onnx.NodeProto]:
        """Let attributes and operands that state sizes of these letters state what is gathered."""
        nodes = []
        for target, axes in bound.fit.clauses:
            masks = [self.own_mask(bound, axis, letters) for axis in axes]
            sizes = [None if mask is None else int(mask.sum()) for mask in masks]
            if all(size is None for size in sizes):
                continue
            if isinstance(target, str):
                self.state(bound.node, target, sizes)
            elif target < len(bound.node.inputs) and bound.node.inputs[target]:
                node = self.copy_of(bound.node)
                others = self.constant(np.array([size is None for size in sizes], np.int64))
                own = self.constant(np.array([size or 0 for size in sizes], np.int64))
                names = [node.input[target], self.fresh(), self.fresh()]
                nodes.append(helper.make_node("Mul", [names[0], others], [names[1]]))
                nodes.append(helper.make_node("Add", [names[1], own], [names[2]]))
                node.input[target] = names[2]
        return nodes

    def state(self, node: Node, name: str, sizes: Sequence[int | None]) -> None:
        """Set the attribute to the sizes that are given."""
        for attribute in self.copy_of(node).attribute:
            if attribute.name == name:
                old = helper.get_attribute_value(attribute)
                listed = list(old) if isinstance(old, Sequence) else [old]
                new = [x if size is None else size for x, size in zip(listed, sizes, strict=True)]
                value = new if isinstance(old, Sequence) else new[0]
                attribute.CopyFrom(helper.make_attribute(name, value))

    def own_mask(self, bound: Bound, axis: Axis, letters: Collection[str]) -> Mask | None:
        """The axis' kept indices as these letters have it, all others whole; None without them."""
        if not any(x in letters for term in axis for x in term):
            return None
        parts = []
        for term in axis:
            mask = np.ones(1, bool)
            for x in term:
                size = bound.fit.sizes[x]
                assert size is not None, "a pruned letter shares no axis with a dynamic one"
                layout = bound.letters[x]
                own = self.factors.mask(layout, self.keep) if x in letters else np.ones(size, bool)
                mask = np.logical_and.outer(mask, own).reshape(-1)
            parts.append(mask)
        return np.concatenate(parts)


def _gather(value: str, indices: str, result: str, axis: int) -> onnx.NodeProto:
    return helper.make_node("Gather", [value, indices], [result], axis=axis)


def _unused_prefix(proto: onnx.ModelProto) -> str:
    """A beginning that no name of the graph has."""
    names: set[str] = set()
    for graph in graphs(proto.graph):
        names.update(value.name for value in (*graph.initializer, *graph.input))
        names.update(name for node in graph.node for name in node.output)
    prefix = "oracle:"
    while any(name.startswith(prefix) for name in names):
        prefix = "_" + prefix
    return prefix
