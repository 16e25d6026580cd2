"""Reading models, and writing them atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import inliner

from onnxprune import shapes, views
from onnxprune.bodies import inner_tensors
from onnxprune.errors import BadModelError, OnnxPruneError
from onnxprune.model import Model
from onnxprune.outside import Sink, blocks, location, outside_bytes, read_in, rename, stays_inside
from onnxprune.rules import Row

ORT_FORMAT: Final = b"ORTM"  # the mark of its files, behind four bytes
PROTOBUF_LIMIT: Final = 2**31 - 2**20
LARGE: Final = 2**29  # bytes outside the protobuf from which on a model is never held whole

Fill = Callable[[Path], object]
Write = Callable[[Path, Fill], None]


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a file; tensors kept outside it stay there.

    Raises:
        BadModelError: the file can't be read, or is no ONNX model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadModelError(f"'{path}' can't be read: {error.strerror}") from error
    if data[4:8] == ORT_FORMAT:
        raise BadModelError(
            f"'{path}' is in ONNX Runtime's own format (.ort), which bench alone reads: give the "
            ".onnx file"
        )
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
    for tensor in (*proto.graph.initializer, *inner_tensors(proto.graph)):
        if not shapes.is_external(tensor):
            continue
        place = location(tensor)
        if folder is None or not (folder / place).is_file():
            raise BadModelError(
                f"'{name}' keeps tensor '{tensor.name}' in '{place}', which is not "
                f"beside it: put the data file into {folder or 'the folder of the model'}"
            )


def load(
    source: Any,
    name: str | None = None,
    folder: Path | None = None,
    rules: Mapping[str, Row] | None = None,
) -> Model:
    """Load a model from a path, an onnx.ModelProto or an onnx-graphsurgeon Graph.

    Args:
        source: the model.
        name: what reports call it; the file's or the graph's name where absent.
        folder: where the external data of a ModelProto lies.
        rules: the user's rows by operator; they tell the shapes of custom operators, too.

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
    proto = _gathered(_inlined(proto, rules or {}), folder)
    return views.view(proto, folder, name, rules)


def _gathered(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """The model with what its nodes and bodies keep in other files; that is never much."""
    if not any(map(shapes.is_external, inner_tensors(proto.graph))):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in inner_tensors(copy.graph):
        read_in(tensor, folder)
    return copy


def _inlined(proto: onnx.ModelProto, rules: Mapping[str, Row]) -> onnx.ModelProto:
    """The model with its own functions written out, but for those that a row of the user tells."""
    told = [(f.domain, f.name) for f in proto.functions if f"{f.domain}::{f.name}" in rules]
    if len(told) == len(proto.functions):
        return proto
    made: onnx.ModelProto = inliner.inline_selected_functions(proto, told, exclude=True)
    return made


def sha256(path: Path) -> str:
    """The digest of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def umask() -> int:
    """What the permissions of new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_fields(target: Any, source: Any, without: Collection[str]) -> None:
    """Copy a protobuf message's fields, but for some, into another one of its kind."""
    for descriptor, value in source.ListFields():
        if descriptor.name in without:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, descriptor.name, value)
        elif hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        else:
            getattr(target, descriptor.name).CopyFrom(value)


@contextmanager
def together() -> Iterator[Write]:
    """Write files that appear together, or not at all.

    Yields:
        a function that fills a temporary file beside a path. When the block ends they are renamed,
        in that order; when it fails or is interrupted they vanish, and what was there stays.

    Raises:
        OnnxPruneError: which file can't be written, and why.
    """
    temporaries: dict[Path, Path] = {}

    def write(path: Path, fill: Fill) -> None:
        with explained(path):
            mode = path.stat().st_mode if path.exists() else 0o666 & ~umask()
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(handle)
            temporaries[path] = Path(name)
            fill(Path(name))
            Path(name).chmod(mode)

    try:
        yield write
        for path, temporary in temporaries.items():
            with explained(path):
                temporary.replace(path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that can't be written into one sentence."""
    try:
        yield
    except OSError as error:
        raise OnnxPruneError(f"'{path}' can't be written: {error.strerror or error}") from error


def save(
    proto: onnx.ModelProto,
    path: Path,
    folder: Path | None = None,
    like: onnx.ModelProto | None = None,
    write: Write | None = None,
    sink: Sink | None = None,
) -> list[Path]:
    """Write a model atomically: to a temporary file first, then renamed.

    Where the model, or the one that it was made from, keeps tensors in other files, or is too large
    for one protobuf, all of its larger tensors go into ``NAME.data`` beside it, copied one at a
    time.

    Args:
        proto: the model.
        path: where to.
        folder: where the external data lies that the model refers to.
        like: the model that it was made from: no file of that is overwritten.
        write: from ``together``, where other files are to appear with it.
        sink: the data file that holds all of its tensors already: it is moved, and ``proto`` will
            refer to where it is then.

    Returns:
        the files that were written.

    Raises:
        OnnxPruneError: the folder is not there, or can't be written to, or the data would replace
            that of the original.
    """
    if write is None:
        with together() as own:
            return save(proto, path, folder, like, own, sink)
    if not path.parent.is_dir():
        raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")
    originals = [proto] if like is None else [proto, like]
    outside = any(map(places_of, originals)) or _is_too_large(proto)
    data = path.with_name(f"{path.name}.data")
    spare_data(data, {file for own in originals for file in data_files(own, folder)})
    if not outside:
        write(path, lambda p: p.write_bytes(proto.SerializeToString()))
        return [path]
    if sink is None:
        light = onnx.ModelProto()
        write(data, lambda p: _write_data(proto, light, p, folder))
    else:
        light = proto
        write(data, sink.move)
    for tensor in light.graph.initializer:
        rename(tensor, data.name)
    write(path, lambda p: p.write_bytes(light.SerializeToString()))
    return [path, data]


def _is_too_large(proto: onnx.ModelProto) -> bool:
    """Whether a model does not fit into one file."""
    try:
        return bool(proto.ByteSize() > PROTOBUF_LIMIT)
    except EncodeError:  # protobuf does not even measure it
        return True


def places_of(proto: onnx.ModelProto) -> set[str]:
    """The files that a model keeps tensors in, as it names them."""
    every = (*proto.graph.initializer, *inner_tensors(proto.graph))
    return {location(tensor) for tensor in filter(shapes.is_external, every)}


def data_files(proto: onnx.ModelProto, folder: Path | None) -> set[Path]:
    """The files that a model keeps tensors in, where its folder is known."""
    return set() if folder is None else {(folder / own).resolve() for own in places_of(proto)}


def spare_data(data: Path, held: Collection[Path]) -> None:
    """Refuse to write a result's data over that of the original.

    Raises:
        OnnxPruneError: that would happen.
    """
    if data.resolve() in held:
        raise OnnxPruneError(f"'{data}' holds the data of the original: give another output path")


def _write_data(
    proto: onnx.ModelProto, light: onnx.ModelProto, path: Path, folder: Path | None
) -> None:
    """Write the larger tensors to a data file, and the model that refers to it into ``light``."""
    copy_fields(light, proto, {"graph"})
    copy_fields(light.graph, proto.graph, {"initializer"})
    with closing(Sink(path)) as own:
        for tensor in proto.graph.initializer:
            if stays_inside(tensor):
                light.graph.initializer.append(tensor)
                read_in(light.graph.initializer[-1], folder)
            else:
                light.graph.initializer.append(own.put(tensor, blocks(tensor, folder)))


def size_bytes(proto: onnx.ModelProto) -> int | None:
    """How many bytes a model takes on disk; None where it is too large to be told."""
    return None if _is_too_large(proto) else proto.ByteSize() + data_bytes(proto)


def data_bytes(proto: onnx.ModelProto) -> int:
    """How many bytes of tensors lie outside the protobuf."""
    return sum(map(outside_bytes, filter(shapes.is_external, proto.graph.initializer)))


@contextmanager
def sink_of(model: Model, target: Path | None) -> Iterator[Sink | None]:
    """A data file beside the target for the tensors of a large model; None for any other.

    It is gone at the end, unless ``save`` has moved it.

    Raises:
        OnnxPruneError: it can't be written.
    """
    if target is None or data_bytes(model.proto) < LARGE:
        yield None
        return
    with explained(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.data.", dir=target.parent)
        os.close(handle)
        sink = Sink(Path(name))
    try:
        yield sink
    finally:
        sink.close()
        sink.path.unlink(missing_ok=True)


def with_data(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """The model with its external tensors read in, unless they are too large for a protobuf."""
    outside = [t for t in proto.graph.initializer if shapes.is_external(t)]
    size = sum(map(outside_bytes, outside))
    for tensor in outside if outside and size + proto.ByteSize() < PROTOBUF_LIMIT else ():
        read_in(tensor, folder)
    return proto
