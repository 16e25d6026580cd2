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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.dynamic import choices, dynamic_axes
from onnxprune.errors import BadModelError, RuleError
from onnxprune.model import Array, Model, Node, Sample, operator
from onnxprune.notation import Shape
from onnxprune.rules import Row, Unprunable, fit_node, made_shapes
from onnxprune.rules.tables import (
    CHANNELS_LAST,
    CONSTANTS,
    INFERRED_AS,
    REARRANGES,
    SAME_SHAPE,
    TYPED_BY,
)
from onnxprune.rules.values import SIZES, evaluate, is_small

INFERENCE_ERRORS: Final = (
    onnx.shape_inference.InferenceError,
    onnx.defs.SchemaError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)

Sizes = Mapping[str, Sequence[int]]


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constant tensors of the main graph by value name: initializers and Constant nodes."""
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
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
) -> tuple[tuple[Sample, ...], dict[str, int], bool]:
    """Samples for the first choice of dynamic sizes that leaves no shape unknown, else the best.

    The element types come with them, and whether an axis is held at one size.
    """
    fewest, best, held = None, None, False
    for turn, pair in enumerate(choices(proto)):
        found = [sample(light, nodes, constants, sizes, rules) for sizes in pair]
        misfits = sum(_misfits(nodes, own.shapes) for own, _ in found)
        if pair[0]:
            misfits += sum(_unfit(light, nodes, own, rules) for own, _ in found)
        if fewest is None or misfits < fewest:
            fewest, best, held = misfits, found, turn > 0
        if misfits == 0:
            break
    assert best is not None
    return tuple(own for own, _ in best), best[0][1], held


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


def _elements(shape: Shape) -> int:
    return math.prod(n for n in shape if n is not None)


def skeleton(proto: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A copy for shape inference: large constants are inputs, so that no weight is copied."""
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
        if is_external(tensor) or not _is_small(tensor):
            large.add(name)
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    graph.node.extend(n for n in proto.graph.node if n.output and n.output[0] not in constants)
    known = {o.domain for o in proto.opset_import if onnx.defs.has("Relu", o.domain)} | {""}
    custom = {out for n in proto.graph.node if n.domain not in known for out in n.output}
    graph.value_info.extend(v for v in proto.graph.value_info if v.name in custom)
    return copy


def _is_small(tensor: onnx.TensorProto) -> bool:
    return is_small(tensor.dims, helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _shapes_of(types: Mapping[str, onnx.TypeProto]) -> tuple[dict[str, Shape], dict[str, int]]:
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, int] = {}
    for name, kind in types.items():
        if not kind.HasField("tensor_type"):
            continue
        dtypes[name] = kind.tensor_type.elem_type
        if kind.tensor_type.HasField("shape"):
            shapes[name] = tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None
                for d in kind.tensor_type.shape.dim
            )
    return shapes, dtypes


def _complete(
    nodes: Sequence[Node],
    shapes: dict[str, Shape],
    constants: dict[str, Array],
    dtypes: dict[str, int],
    opset: int,
    rules: Mapping[str, Row],
) -> None:
    """One walk in topological order: small values, and the shapes that depend on them.

    A short vector of floats in the file may be a weight, so nothing is computed from one, but
    together with what has been computed (the scales of a Resize).
    """
    given = set(constants)
    weights = {name for name in given if _may_be_weight(constants[name])}
    for node in nodes:
        derived = any(name in constants and name not in given for name in node.inputs)
        if len(node.outputs) == 1 and (derived or weights.isdisjoint(node.inputs)):
            value = _value(node, shapes, constants)
            if value is not None:
                constants[node.outputs[0]] = value
                shapes[node.outputs[0]] = value.shape
                dtypes[node.outputs[0]] = helper.np_dtype_to_tensor_dtype(value.dtype)
                continue
        if any(name and None in shapes.get(name, (None,)) for name in node.outputs):
            found, kinds = _results(node, shapes, constants, dtypes, opset, rules)
            for name, shape in found.items():
                old = shapes.get(name, (None,) * len(shape))
                shapes[name] = tuple(x if y is None else y for x, y in zip(shape, old, strict=True))
                dtypes.setdefault(name, kinds[name])


def _may_be_weight(value: Array) -> bool:
    return value.dtype.kind not in "iub" and value.size > 1


def _value(node: Node, shapes: Mapping[str, Shape], constants: Mapping[str, Array]) -> Array | None:
    if node.op in SIZES:
        return _size_of(node, shapes.get(node.inputs[0]))
    if not all(name in constants for name in node.inputs if name):
        return None
    return evaluate(node, [constants[name] if name else None for name in node.inputs])


def _results(
    node: Node,
    shapes: Mapping[str, Shape],
    constants: Mapping[str, Array],
    dtypes: Mapping[str, int],
    opset: int,
    rules: Mapping[str, Row],
) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and element types of a node's results, as onnx or the operator's row knows them."""
    first = node.inputs[0] if node.inputs else ""
    kind = dtypes.get(first, onnx.TensorProto.FLOAT)
    if node.op in SAME_SHAPE and first in shapes:
        return {node.outputs[0]: shapes[first]}, {node.outputs[0]: kind}
    if node.proto.domain in ("", "ai.onnx"):
        return _shapes_of(_infer_node(node, shapes, constants, dtypes, opset))
    kind = dtypes.get(_typed_by(node), kind)
    if node.op in INFERRED_AS and not node.attributes.get(CHANNELS_LAST):
        floats = dict.fromkeys(node.inputs, onnx.TensorProto.FLOAT)  # which ai.onnx wants there
        found, _ = _shapes_of(_infer_node(_standard(node), shapes, constants, floats, opset))
        return found, dict.fromkeys(found, kind)
    made = made_shapes(node, [shapes.get(name) for name in node.inputs], rules)
    known = {name: own for name, own in zip(node.outputs, made, strict=False) if own is not None}
    return known, dict.fromkeys(known, kind)


def _typed_by(node: Node) -> str:
    """The operand that has the element type of the results; nothing where it is absent."""
    position = TYPED_BY.get(node.op, 0)
    return node.inputs[position] if position < len(node.inputs) else ""


def _standard(node: Node) -> Node:
    """The node of ai.onnx whose results have the same shapes."""
    op, positions = INFERRED_AS[node.op]
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.domain, proto.op_type = "", op
    known = onnx.defs.get_schema(op).attributes
    attributes = [a for a in proto.attribute if a.name in known]
    names = [node.inputs[k] for k in positions if k < len(node.inputs)]
    del proto.input[:], proto.attribute[:]
    proto.input.extend(names)
    proto.attribute.extend(attributes)
    return replace(node, proto=proto, op=op, inputs=tuple(names))


def _infer_node(
    node: Node,
    shapes: Mapping[str, Shape],
    constants: Mapping[str, Array],
    dtypes: Mapping[str, int],
    opset: int,
) -> Mapping[str, onnx.TypeProto]:
    """onnx's inference of one node; nothing where an operand is not known."""
    read = {name for name in node.inputs if name}
    if not all(name in shapes and name in dtypes for name in read):
        return {}
    types = {name: helper.make_tensor_type_proto(dtypes[name], shapes[name]) for name in read}
    data = {name: numpy_helper.from_array(constants[name]) for name in read if name in constants}
    try:
        schema = onnx.defs.get_schema(node.proto.op_type, opset)
        return onnx.shape_inference.infer_node_outputs(
            schema, node.proto, types, data, opset_imports=[helper.make_opsetid("", opset)]
        )
    except INFERENCE_ERRORS:
        return {}  # it stays unknown: whatever touches it is frozen


def _size_of(node: Node, shape: Shape | None) -> Array | None:
    """What a node that asks for sizes gives, where all of them are known."""
    if shape is None:
        return None
    sizes = SIZES[node.op](shape, node.attributes)
    return None if any(n is None for n in sizes.reshape(-1)) else sizes.astype(np.int64)


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
) -> tuple[Sample, dict[str, int]]:
    """Shapes, small values and element types for one choice of the dynamic sizes.

    Args:
        light: from ``skeleton``; it is not changed.
        nodes: the graph's nodes in topological order.
        constants: the small constants of the file by value name.
        sizes: the size of every dynamic symbol.
        rules: the user's rows by operator.

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
    shapes, dtypes = _shapes_of(types)
    for tensor in light.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        dtypes[tensor.name] = tensor.data_type
    values = dict(constants)
    opset = max((o.version for o in light.opset_import if o.domain in ("", "ai.onnx")), default=1)
    _complete(nodes, shapes, values, dtypes, opset, rules)
    return Sample(shapes, values), dtypes
