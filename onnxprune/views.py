"""The view of a protobuf that passes work on: sorted nodes, parameters, shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

from onnxprune import shapes
from onnxprune.errors import BadModelError
from onnxprune.model import Array, Model, Node, Param, Sample, captures, first_name, operator
from onnxprune.rules import Row
from onnxprune.rules.values import is_small


def view(
    proto: onnx.ModelProto,
    folder: Path | None,
    name: str,
    rules: Mapping[str, Row] | None = None,
) -> Model:
    """The model of a checked protobuf: nodes, parameters, shapes."""
    constants = shapes.stored(proto)
    given = {i.name for i in proto.graph.input} | constants.keys()
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    nodes: list[Node] = []
    for raw in sort(proto.graph.node, given):
        if raw.output and raw.output[0] in constants:
            continue
        index = len(nodes)
        outer = captures(raw) if any(map(_has_body, raw.attribute)) else ()
        nodes.append(Node(index, operator(raw), tuple(raw.input), tuple(raw.output), raw, outer))
    params = {
        key: Param(key, key, tuple(t.dims), t.data_type, partial(read_tensor, t, folder))
        for key, t in constants.items()
    }
    small = {
        key: param.read()
        for key, param in params.items()
        if is_small(param.shape, helper.tensor_dtype_to_np_dtype(param.dtype))
    }
    light = shapes.skeleton(proto, constants)
    samples, dtypes, held = shapes.best_samples(proto, light, nodes, small, rules or {})
    stated = {key: param.shape for key, param in params.items()}
    samples = tuple(Sample({**own.shapes, **stated}, own.constants) for own in samples)
    return Model(proto, folder, name, tuple(nodes), params, samples, dtypes, held)


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
