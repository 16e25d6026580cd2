"""Shapes and small values, node by node.

One walk in topological order: what exporters compute with Shape, Gather, Concat chains is evaluated
in numpy, shapes that depend on such values are inferred, and bodies of control flow are entered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.model import Array, Node, Sample, each
from onnxprune.notation import Shape
from onnxprune.rules import Row, made_shapes
from onnxprune.rules.control import Link, links
from onnxprune.rules.tables import CHANNELS_LAST, FLOAT_RESULT, INFERRED_AS, SAME_SHAPE, TYPED_BY
from onnxprune.rules.values import SIZES, evaluate

INFERENCE_ERRORS: Final = (
    onnx.shape_inference.InferenceError,
    onnx.defs.SchemaError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
ROUNDS: Final = 4  # of a loop's body, until the shapes that it carries settle


@dataclass(frozen=True)
class Known:
    """What is known so far; shapes, constants and dtypes grow on the walk."""

    shapes: dict[str, Shape]
    constants: dict[str, Array]
    dtypes: dict[str, int]
    opset: int
    rules: Mapping[str, Row]


def shapes_of(types: Mapping[str, onnx.TypeProto]) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and element types of tensors."""
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


def complete(nodes: Sequence[Node], known: Known) -> None:
    """One walk in topological order: small values, and the shapes that depend on them.

    A short vector of floats in the file may be a weight, so nothing is computed from one, but
    together with what has been computed (the scales of a Resize).
    """
    given = set(known.constants)
    weights = {name for name in given if _may_be_weight(known.constants[name])}
    _walk(nodes, known, given, weights)


def _walk(nodes: Sequence[Node], known: Known, given: set[str], weights: set[str]) -> None:
    shapes, constants = known.shapes, known.constants
    for node in nodes:
        if node.bodies:
            _enter(node, known, given, weights)
            continue
        derived = any(name in constants and name not in given for name in node.inputs)
        if len(node.outputs) == 1 and (derived or weights.isdisjoint(node.inputs)):
            value = _value(node, shapes, constants)
            if value is not None:
                _note(known, node.outputs[0], value)
                continue
        if any(name and None in shapes.get(name, (None,)) for name in node.outputs):
            found, kinds = _results(node, known)
            for name, shape in found.items():
                old = shapes.get(name, (None,) * len(shape))
                shapes[name] = tuple(x if y is None else y for x, y in zip(shape, old, strict=True))
                known.dtypes.setdefault(name, kinds[name])


def _note(known: Known, name: str, value: Array) -> None:
    known.constants[name] = value
    known.shapes[name] = value.shape
    known.dtypes[name] = helper.np_dtype_to_tensor_dtype(value.dtype)


def _enter(node: Node, known: Known, given: set[str], weights: set[str]) -> None:
    """Walk the bodies of a control-flow node.

    What a loop carries has the shape that goes in, if the body gives the same shape back; an axis
    that it gives back otherwise is unknown, and the body is walked anew.
    """
    entering, leaving = links(node)
    carried = {link.value for link in entering}
    for body in node.bodies:
        types = {value.name: value.type for value in body.proto.input}
        own, kinds = shapes_of(types)
        known.dtypes.update(kinds)
        known.shapes.update({x: shape for x, shape in own.items() if x not in carried})
    for link in entering:
        _follow(link, known)
    for _ in range(ROUNDS):
        for body in node.bodies:
            _walk(body.nodes, known, given, weights)
        changed = [_widened(link, known) for link in leaving if link.value in carried]
        if True not in changed:
            break
        _forget(node, known)
    else:
        for name in carried:
            known.shapes.pop(name, None)
        _forget(node, known)
    for link in leaving:
        if link.value not in carried:
            _follow(link, known)
            alone = len(link.sources) == 1 and link.gained is None  # else each step adds its own
            if alone and link.sources[0] in known.constants:
                _note(known, link.value, known.constants[link.sources[0]])


def _forget(node: Node, known: Known) -> None:
    """Take back what is known of the values that bodies make."""
    for body in node.bodies:
        for inner in each(body.nodes):
            values = (*inner.outputs, *(x for own in inner.bodies for x in own.inputs))
            for name in values:
                known.shapes.pop(name, None)
                known.constants.pop(name, None)


def seen_through(link: Link, shape: Shape | None) -> Shape | None:
    """The shape of a source as the link's value has it."""
    if shape is None:
        return None
    sizes = list(shape)
    if link.lost is not None:
        del sizes[link.lost]
    if link.gained is not None:
        place = link.gained % (len(sizes) + 1)
        sizes.insert(place, None)
    return tuple(sizes)


def agree(link: Link, axis: int, samples: Sequence[Sample]) -> bool:
    """Whether a value and its sources have one size here, in each sample."""
    for sample in samples:
        shapes = [sample.shapes.get(link.value)]
        shapes += [seen_through(link, sample.shapes.get(source)) for source in link.sources]
        sizes = {None if shape is None else shape[axis] for shape in shapes}
        if len(sizes) != 1 or None in sizes:
            return False
    return True


def _merged(shapes: Iterable[Shape | None]) -> Shape | None:
    """What some shapes have in common; None where their ranks differ."""
    found = list(shapes)
    first = found[0]
    if first is None or any(x is None or len(x) != len(first) for x in found):
        return None
    columns = zip(*(x for x in found if x is not None), strict=True)
    return tuple(column[0] if len(set(column)) == 1 else None for column in columns)


def _follow(link: Link, known: Known) -> None:
    """Give a value what its sources have in common."""
    shape = _merged(seen_through(link, known.shapes.get(source)) for source in link.sources)
    old = known.shapes.get(link.value)
    if shape is not None and (old is None or len(old) == len(shape)):
        old = old or shape
        known.shapes[link.value] = tuple(
            x if y is None else y for x, y in zip(shape, old, strict=True)
        )
    elif shape is None and len(link.sources) > 1:
        known.shapes.pop(link.value, None)
    for source in link.sources:
        if source in known.dtypes:
            known.dtypes.setdefault(link.value, known.dtypes[source])


def _widened(link: Link, known: Known) -> bool:
    """Let a carried value be what goes in or comes back; whether that changes what is known."""
    before = known.shapes.get(link.value)
    if before is None:
        return False
    after = _merged([before, *(known.shapes.get(source) for source in link.sources)])
    if after == before:
        return False
    if after is None:
        del known.shapes[link.value]
    else:
        known.shapes[link.value] = after
    return True


def _may_be_weight(value: Array) -> bool:
    return value.dtype.kind not in "iub" and value.size > 1


def _value(node: Node, shapes: Mapping[str, Shape], constants: Mapping[str, Array]) -> Array | None:
    if node.op in SIZES:
        return _size_of(node, shapes.get(node.inputs[0]))
    if not all(name in constants for name in node.inputs if name):
        return None
    return evaluate(node, [constants[name] if name else None for name in node.inputs])


def _results(node: Node, known: Known) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and element types of a node's results, as onnx or the operator's row knows them."""
    shapes, dtypes = known.shapes, known.dtypes
    first = node.inputs[0] if node.inputs else ""
    kind = dtypes.get(first, onnx.TensorProto.FLOAT)
    if node.op in FLOAT_RESULT:
        kind = onnx.TensorProto.FLOAT
    if node.op in SAME_SHAPE and first in shapes:
        return {node.outputs[0]: shapes[first]}, {node.outputs[0]: kind}
    if node.proto.domain in ("", "ai.onnx"):
        told, kinds = shapes_of(_infer_node(node, known, dtypes))
        if told or _is_known(node, known.opset):
            return told, kinds  # else ONNX Runtime wrote it: a norm that it fused, of no opset yet
    kind = dtypes.get(_typed_by(node), kind)
    if node.op in INFERRED_AS and not node.attributes.get(CHANNELS_LAST):
        floats = dict.fromkeys(node.inputs, onnx.TensorProto.FLOAT)  # which ai.onnx wants there
        found, _ = shapes_of(_infer_node(_standard(node), known, floats))
        return found, dict.fromkeys(found, kind)
    made = made_shapes(node, [shapes.get(name) for name in node.inputs], known.rules)
    told = {name: own for name, own in zip(node.outputs, made, strict=False) if own is not None}
    return told, dict.fromkeys(told, kind)


def _is_known(node: Node, opset: int) -> bool:
    """Whether ai.onnx has the operator in an opset."""
    try:
        onnx.defs.get_schema(node.proto.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    return True


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
    node: Node, known: Known, dtypes: Mapping[str, int]
) -> Mapping[str, onnx.TypeProto]:
    """onnx's inference of one node; nothing where an operand is not known."""
    shapes, constants, opset = known.shapes, known.constants, known.opset
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
