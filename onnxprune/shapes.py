"""What is known of shapes and small values before anything runs.

onnx's shape inference runs on a copy without weight data; what exporters compute with Shape,
Gather, Concat chains is evaluated in numpy on one walk over the nodes, which infers the shapes that
depend on such values node by node. Where a graph has dynamic sizes, all this is done for two
choices of them: what differs between the two is dynamic, what agrees is fixed. So no symbolic
arithmetic is needed, and a rule that holds in both holds for the structure (see
``onnxprune.rules``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.bodies import graphs
from onnxprune.dynamic import choices, dynamic_axes, joints
from onnxprune.errors import BadModelError, RuleError
from onnxprune.inferring import INFERENCE_ERRORS, Known, complete, shapes_of
from onnxprune.model import Array, Model, Node, Sample, operator, subgraphs
from onnxprune.notation import Shape
from onnxprune.rules import Row, Unprunable, fit_node
from onnxprune.rules.tables import CONSTANTS, REARRANGES, SIZED_BY_DATA
from onnxprune.rules.values import is_small

Sizes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Seen:
    """What runs showed for one choice of the dynamic sizes: shapes and element types."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, int]


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constant tensors of the main graph by value name: initializers and Constant nodes."""
    return _stored(proto.graph)


def stored_anywhere(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The same of the main graph and of all bodies, whose names are distinct."""
    found: dict[str, onnx.TensorProto] = {}
    for graph in graphs(proto.graph):
        found.update(_stored(graph))
    return found


def _stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if operator(node) in CONSTANTS:
            for attribute in node.attribute:
                tensor = _constant_value(attribute)
                if tensor is not None:
                    found[node.output[0]] = tensor
    return found


def _constant_value(attribute: onnx.AttributeProto) -> onnx.TensorProto | None:
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.int64))
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.float32))
    return None


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the values lie in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def best_samples(
    proto: onnx.ModelProto,
    light: onnx.ModelProto,
    nodes: Sequence[Node],
    constants: Mapping[str, Array],
    rules: Mapping[str, Row],
) -> tuple[list[dict[str, int]], tuple[Sample, ...], dict[str, int], bool]:
    """The first choice of dynamic sizes that leaves no shape unknown, else the best.

    The samples come with it, the element types, and whether an axis is held at one size.
    """
    fewest, best, held = None, None, False
    chosen: list[dict[str, int]] = []
    # What data decides is unknown at any size: it is no sign of a table that wants one.
    last = () if any(node.op in SIZED_BY_DATA for node in nodes) else joints(proto)
    for turn, pair in enumerate(chain(choices(proto), last)):
        found = [sample(light, nodes, constants, sizes, rules) for sizes in pair]
        misfits = sum(_misfits(nodes, own.shapes) for own, _ in found)
        if pair[0]:
            misfits += sum(_unfit(light, nodes, own, rules) for own, _ in found)
        if fewest is None or misfits < fewest:
            fewest, best, held, chosen = misfits, found, turn > 0, pair
        if misfits == 0:
            break
    assert best is not None
    return chosen, tuple(own for own, _ in best), best[0][1], held


def _misfits(nodes: Sequence[Node], shapes: Mapping[str, Shape]) -> int:
    """Results whose shape is unknown, and rearrangements that change the number of elements."""
    count = 0
    for node in nodes:
        made = [shapes.get(name, (None,)) for name in node.outputs if name]
        count += sum(None in shape for shape in made)
        if node.op in REARRANGES and made and None not in made[0]:
            read = shapes.get(node.inputs[0], (None,))
            count += None not in read and _elements(read) != _elements(made[0])
    return count


def _unfit(
    light: onnx.ModelProto, nodes: Sequence[Node], sample: Sample, rules: Mapping[str, Row]
) -> int:
    """Nodes whose operator's row contradicts the shapes: a Conv of 3 channels that is given 224."""
    model = Model(light, None, "", tuple(nodes), {}, (sample,), {})
    count = 0
    for node in nodes:
        try:
            fit_node(node, model, rules)
        except Unprunable as verdict:
            count += isinstance(verdict.__cause__, RuleError)
    return count


def _filled(known: Shape | None, seen: Shape) -> Shape:
    if known is None or len(known) != len(seen):
        return known or seen
    return tuple(y if x is None else x for x, y in zip(known, seen, strict=True))


def _elements(shape: Shape) -> int:
    return math.prod(n for n in shape if n is not None)


def skeleton(
    proto: onnx.ModelProto,
    constants: Mapping[str, onnx.TensorProto],
    open_: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy for shape inference: large constants are inputs, so that no weight is copied.

    Args:
        proto: the model.
        constants: its constant tensors by value name.
        open_: those that are inputs whatever their size, since a caller may give other values.
    """
    copy = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    graph = copy.graph
    graph.name = proto.graph.name
    graph.input.extend(i for i in proto.graph.input if i.name not in constants)
    for output in proto.graph.output:
        graph.output.add(name=output.name)
    large = set()
    for name, tensor in constants.items():
        if name in open_ or is_external(tensor) or not _is_small(tensor):
            large.add(name)
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    for own in graphs(proto.graph):
        for sparse in own.sparse_initializer:
            kind = helper.make_tensor_value_info(
                sparse.values.name, sparse.values.data_type, sparse.dims
            )
            graph.input.append(kind)
    graph.node.extend(n for n in proto.graph.node if n.output and n.output[0] not in constants)
    for node in graph.node:
        for body in subgraphs(node):
            _strip(body, constants)
    known = {o.domain for o in proto.opset_import if onnx.defs.has("Relu", o.domain)} | {""}
    custom = {out for n in proto.graph.node if n.domain not in known for out in n.output}
    graph.value_info.extend(v for v in proto.graph.value_info if v.name in custom)
    return copy


def _strip(body: onnx.GraphProto, constants: Collection[str]) -> None:
    """Leave out the constants of a body, and of those in it, which stand outside now."""
    given = {value.name for value in body.output}
    gone = {name for name in constants if name not in given}
    kept = [tensor for tensor in body.initializer if tensor.name not in gone]
    nodes = [node for node in body.node if not node.output or node.output[0] not in gone]
    del body.initializer[:], body.sparse_initializer[:], body.node[:]
    body.initializer.extend(kept)
    body.node.extend(nodes)
    for node in body.node:
        for inner in subgraphs(node):
            _strip(inner, constants)


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Whether a constant may stand in the skeleton; as an input, size 0 would be a dynamic one."""
    return 0 in tensor.dims or is_small(
        tensor.dims, helper.tensor_dtype_to_np_dtype(tensor.data_type)
    )


def _infer(model: onnx.ModelProto) -> onnx.GraphProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except INFERENCE_ERRORS:
        try:
            return onnx.shape_inference.infer_shapes(model).graph
        except INFERENCE_ERRORS as error:
            reason = str(error).strip().splitlines()[0]
            raise BadModelError(f"the model contradicts itself: {reason}") from error


def _with_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    for name, symbols in dynamic_axes(model).items():
        value = next(v for v in model.graph.input if v.name == name)
        for dim, symbol in zip(value.type.tensor_type.shape.dim, symbols, strict=True):
            if symbol is not None:
                dim.dim_value = sizes[symbol]


def sample(
    light: onnx.ModelProto,
    nodes: Sequence[Node],
    constants: Mapping[str, Array],
    sizes: Mapping[str, int],
    rules: Mapping[str, Row],
    seen: Seen | None = None,
) -> tuple[Sample, dict[str, int]]:
    """Shapes, small values and element types for one choice of the dynamic sizes.

    Args:
        light: from ``skeleton``; it is not changed.
        nodes: the graph's nodes in topological order.
        constants: the small constants of the file by value name.
        sizes: the size of every dynamic symbol.
        rules: the user's rows by operator.
        seen: what runs showed of values that inference does not know.

    Raises:
        BadModelError: onnx's shape inference finds that the graph contradicts itself.
    """
    model = light
    if sizes:
        model = onnx.ModelProto()
        model.CopyFrom(light)
        _with_sizes(model, sizes)
    graph = _infer(model)
    types = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes, dtypes = shapes_of(types)
    for tensor in light.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        dtypes[tensor.name] = tensor.data_type
    if seen is not None:
        for name, shape in seen.shapes.items():
            shapes[name] = _filled(shapes.get(name), shape)
            dtypes.setdefault(name, seen.dtypes[name])
    values = dict(constants)
    opset = max((o.version for o in light.opset_import if o.domain in ("", "ai.onnx")), default=1)
    complete(nodes, Known(shapes, values, dtypes, opset, rules))
    return Sample(shapes, values), dtypes
