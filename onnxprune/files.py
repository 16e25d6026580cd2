"""Reading models, and writing them atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper, numpy_helper

from onnxprune import shapes
from onnxprune.errors import BadModelError, OnnxPruneError
from onnxprune.model import Array, Model, Node, Param, Sample, captures, operator
from onnxprune.rules.values import is_small

PROTOBUF_LIMIT: Final = 2**31 - 2**20
INLINE_BYTES: Final = 1024  # smaller tensors stay in the protobuf
PAGE_BYTES: Final = 4096  # tensors start at pages, so that they can be mapped
BLOCK_BYTES: Final = 2**24


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a file; tensors kept outside it stay there.

    Raises:
        BadModelError: the file can't be read, or is no ONNX model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadModelError(f"'{path}' can't be read: {error.strerror}") from error
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise BadModelError(f"'{path}' is no ONNX file, or is cut short") from error
    return proto


def check_proto(proto: onnx.ModelProto, name: str, folder: Path | None) -> None:
    """Refuse what can't be a model, in one sentence.

    Raises:
        BadModelError: no graph, an unknown opset, or external data that is not there.
    """
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.node:
        raise BadModelError(f"'{name}' is no ONNX model: it has no graph with nodes")
    if not proto.opset_import:
        raise BadModelError(f"'{name}' names no opset: an ONNX model must say which it uses")
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise BadModelError(
                f"'{name}' uses opset {opset.version}; this onnx {onnx.__version__} knows opsets "
                f"up to {newest}: update the onnx package"
            )
    for tensor in proto.graph.initializer:
        if not shapes.is_external(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        if folder is None or not (folder / location).is_file():
            raise BadModelError(
                f"'{name}' keeps tensor '{tensor.name}' in '{location}', which is not "
                f"beside it: put the data file into {folder or 'the folder of the model'}"
            )


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
            label = f"node '{node.name or node.output[0]}' ({operator(node)})"
            raise BadModelError(f"{label} {found}: the file is not valid")
        waiting = later
    return ordered


def load(source: Any, name: str | None = None, folder: Path | None = None) -> Model:
    """Load a model from a path, an onnx.ModelProto or an onnx-graphsurgeon Graph.

    Args:
        source: the model.
        name: what reports call it; the file's or the graph's name where absent.
        folder: where the external data of a ModelProto lies.

    Raises:
        BadModelError: one sentence on what is wrong with the file.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        proto, folder, name = read_proto(path), path.resolve().parent, name or path.name
    elif isinstance(source, onnx.ModelProto):
        proto = source
    else:
        import onnx_graphsurgeon as gs

        if not isinstance(source, gs.Graph):
            raise OnnxPruneError(
                f"a model is a path, an onnx.ModelProto or a graphsurgeon Graph, not {type(source)}"
            )
        proto = gs.export_onnx(source)
    name = name or proto.graph.name or "model"
    check_proto(proto, name, folder)
    return view(proto, folder, name)


def view(proto: onnx.ModelProto, folder: Path | None, name: str) -> Model:
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
    samples, dtypes = shapes.best_samples(proto, light, nodes, small)
    stated = {key: param.shape for key, param in params.items()}
    samples = tuple(Sample({**own.shapes, **stated}, own.constants) for own in samples)
    return Model(proto, folder, name, tuple(nodes), params, samples, dtypes)


def _has_body(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or bool(attribute.graphs)


def sha256(path: Path) -> str:
    """The digest of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_field(message: Any, name: str, value: Any) -> None:
    """Copy one field, of whatever kind, into another protobuf message."""
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    elif hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        getattr(message, name).CopyFrom(value)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it."""
    mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent or Path())
    os.close(handle)
    try:
        write(Path(temporary))
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(proto: onnx.ModelProto, path: Path, folder: Path | None = None) -> list[Path]:
    """Write a model atomically: to a temporary file first, then renamed.

    Where the model keeps tensors in other files, or is too large for one protobuf, all of its
    larger tensors go into ``NAME.data`` beside it, copied one at a time.

    Args:
        proto: the model.
        path: where to.
        folder: where the external data lies that the model refers to.

    Returns:
        the files that were written.

    Raises:
        OnnxPruneError: the folder is not there, or can't be written to.
    """
    if not path.parent.is_dir():
        raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")
    tensors = proto.graph.initializer
    outside = any(shapes.is_external(t) for t in tensors) or proto.ByteSize() > PROTOBUF_LIMIT
    try:
        if not outside:
            write_atomically(path, lambda p: p.write_bytes(proto.SerializeToString()))
            return [path]
        data = path.with_name(f"{path.name}.data")
        light = onnx.ModelProto()
        write_atomically(data, lambda p: _write_data(proto, light, p, data.name, folder))
        write_atomically(path, lambda p: p.write_bytes(light.SerializeToString()))
        return [path, data]
    except OSError as error:
        raise OnnxPruneError(f"'{path}' can't be written: {error.strerror}") from error


def _write_data(
    proto: onnx.ModelProto, light: onnx.ModelProto, path: Path, name: str, folder: Path | None
) -> None:
    """Write the larger tensors to a data file, and the model that refers to it into ``light``."""
    for descriptor, value in proto.ListFields():
        if descriptor.name != "graph":
            copy_field(light, descriptor.name, value)
    for descriptor, value in proto.graph.ListFields():
        if descriptor.name != "initializer":
            copy_field(light.graph, descriptor.name, value)
    with path.open("wb") as file:
        for tensor in proto.graph.initializer:
            if not shapes.is_external(tensor) and tensor.ByteSize() < INLINE_BYTES:
                light.graph.initializer.append(tensor)
                continue
            entry = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
            entry.dims.extend(tensor.dims)
            entry.doc_string = tensor.doc_string
            entry.metadata_props.extend(tensor.metadata_props)
            file.write(b"\0" * (-file.tell() % PAGE_BYTES))
            offset = file.tell()
            for block in _blocks(tensor, folder):
                file.write(block)
            entry.data_location = onnx.TensorProto.EXTERNAL
            places = {"location": name, "offset": offset, "length": file.tell() - offset}
            for key, value in places.items():
                entry.external_data.add(key=key, value=str(value))


def _blocks(tensor: onnx.TensorProto, folder: Path | None) -> Iterator[bytes]:
    """The bytes of a tensor, a block at a time."""
    if not shapes.is_external(tensor):
        yield tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        return
    info = external_data_helper.ExternalDataInfo(tensor)
    assert folder is not None
    with (folder / info.location).open("rb") as file:
        file.seek(int(info.offset or 0))
        left = int(info.length) if info.length else (folder / info.location).stat().st_size
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            left -= len(block)
            yield block


def with_data(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """The model with its external tensors read in, unless they are too large for a protobuf."""
    outside = [t for t in proto.graph.initializer if shapes.is_external(t)]
    size = sum(int(external_data_helper.ExternalDataInfo(t).length or 0) for t in outside)
    if outside and size + proto.ByteSize() < PROTOBUF_LIMIT:
        for tensor in outside:
            tensor.raw_data = b"".join(_blocks(tensor, folder))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto
