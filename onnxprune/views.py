"""The view of a protobuf that passes work on: sorted nodes, parameters, shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

from onnxprune import shapes
from onnxprune.bodies import distinct, settled
from onnxprune.errors import BadModelError
from onnxprune.model import (
    DEFAULTED_FROM,
    Array,
    Body,
    Model,
    Node,
    Param,
    Sample,
    captures,
    each,
    first_name,
    operator,
    placed,
    subgraphs,
)
from onnxprune.rules import Row
from onnxprune.rules.control import opens
from onnxprune.rules.values import is_small
from onnxprune.tracing import traced


def view(
    proto: onnx.ModelProto,
    folder: Path | None,
    name: str,
    rules: Mapping[str, Row] | None = None,
) -> Model:
    """The model of a checked protobuf: nodes, parameters, shapes."""
    proto, renamed = distinct(proto)
    constants = shapes.stored_anywhere(proto)
    given = {i.name for i in proto.graph.input} | constants.keys()
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    nodes = [
        placed(node, index)
        for index, node in enumerate(_nodes(proto.graph.node, given, constants, opset))
    ]
    params = {
        key: Param(key, key, tuple(t.dims), t.data_type, partial(read_tensor, t, folder))
        for key, t in constants.items()
    }
    may_come = {i.name for i in proto.graph.input} - (
        constants.keys() if proto.ir_version < DEFAULTED_FROM else set()
    )
    meant = meant_to_come(proto, may_come & constants.keys())
    small = {
        key: param.read()
        for key, param in params.items()
        if key not in meant and is_small(param.shape, helper.tensor_dtype_to_np_dtype(param.dtype))
    }
    light = shapes.skeleton(proto, constants, meant)
    while True:
        sizes, samples, dtypes, held = shapes.best_samples(proto, light, nodes, small, rules or {})
        told = list(nodes) if held else list(settled(nodes, samples, may_come))
        if len([*each(told)]) == len([*each(nodes)]):
            break
        nodes = told
    model = Model(
        *(proto, folder, name, tuple(nodes), params, _stated(samples, params), dtypes, held),
        renamed=renamed,
        defaults=frozenset(meant),
    )
    seen = traced(model)
    if not seen:
        return model
    again = [
        shapes.sample(light, nodes, small, own, rules or {}, what)
        for own, what in zip(sizes, seen, strict=True)
    ]
    samples = _stated(tuple(own for own, _ in again), params)
    return replace(model, samples=samples, dtypes=again[0][1])


def _stated(samples: tuple[Sample, ...], params: Mapping[str, Param]) -> tuple[Sample, ...]:
    """The samples; parameters have the shapes that the file states."""
    stated = {key: param.shape for key, param in params.items()}
    return tuple(Sample({**own.shapes, **stated}, own.constants) for own in samples)


def meant_to_come(proto: onnx.ModelProto, defaults: Set[str]) -> Set[str]:
    """The initializers that a caller is meant to give other values for.

    Exporters used to list all initializers among the inputs, from habit: these are constants, and
    shrink. Where some are listed and others aren't, somebody chose, and what they steer is open.

    Args:
        proto: the model.
        defaults: the initializers that are listed, and so may be given.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    from_habit = defaults >= stored and any(
        not is_small(t.dims, helper.tensor_dtype_to_np_dtype(t.data_type))
        for t in proto.graph.initializer
    )
    return set() if from_habit else defaults


def _nodes(
    raws: Iterable[onnx.NodeProto],
    given: Set[str],
    constants: Mapping[str, onnx.TensorProto],
    opset: int,
    inside: bool = False,
) -> Iterator[Node]:
    """The nodes of a graph in topological order, with those of their bodies."""
    known = set(given)
    for raw in sort(raws, known):
        known.update(raw.output)
        if raw.output and raw.output[0] in constants:
            continue
        outer = captures(raw) if any(map(_has_body, raw.attribute)) else ()
        bodies = tuple(
            Body(
                tuple(i.name for i in body.input),
                tuple(o.name for o in body.output),
                tuple(_nodes(body.node, known | _given(body), constants, opset, inside=True)),
                body,
                place,
            )
            for place, body in enumerate(subgraphs(raw) if opens(raw, opset) else ())
        )
        reads, makes = tuple(raw.input), tuple(raw.output)
        yield Node(0, operator(raw), reads, makes, raw, outer, bodies, inside)


def _given(body: onnx.GraphProto) -> set[str]:
    """What a body's nodes may read beside each other's results."""
    sparse = {tensor.values.name for tensor in body.sparse_initializer}
    return {value.name for value in (*body.input, *body.initializer)} | sparse


def _has_body(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or bool(attribute.graphs)


def read_tensor(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """The values of a tensor; external data is memory-mapped, not loaded."""
    if not shapes.is_external(tensor):
        return numpy_helper.to_array(tensor)
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    assert folder is not None
    where = folder / info.location
    if itemsize_is_whole(tensor):
        count = int(np.prod(tensor.dims, dtype=np.int64))
        offset = int(info.offset or 0)
        if offset + count * np.dtype(dtype).itemsize > where.stat().st_size:
            raise BadModelError(f"'{where}' is cut short: tensor '{tensor.name}' does not fit in")
        if count == 0:
            return np.zeros(tuple(tensor.dims), dtype)
        return np.memmap(where, dtype, "r", offset, tuple(tensor.dims))
    loaded = onnx.TensorProto()
    loaded.CopyFrom(tensor)
    external_data_helper.load_external_data_for_tensor(loaded, str(folder))
    return numpy_helper.to_array(loaded)


def itemsize_is_whole(tensor: onnx.TensorProto) -> bool:
    """Whether the elements are whole bytes (4-bit types are packed)."""
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    return not name.endswith(("INT4", "INT2", "4E2M1", "STRING"))


def sort(nodes: Iterable[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes in topological order; those that are in order already stay as they are.

    Raises:
        BadModelError: a cycle, or an operand that nothing makes.
    """
    ordered, waiting = [], list(nodes)
    available = known | {""}
    while waiting:
        later = []
        for node in waiting:
            if available.issuperset(node.input) and available.issuperset(captures(node)):
                ordered.append(node)
                available.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            node = later[0]
            made = {out for other in later for out in other.output}
            missing = [x for x in (*node.input, *captures(node)) if x not in available | made]
            found = f"reads '{missing[0]}', which nothing makes" if missing else "is in a cycle"
            label = f"node '{node.name or first_name(node.output)}' ({operator(node)})"
            raise BadModelError(f"{label} {found}: the file is not valid")
        waiting = later
    return ordered
