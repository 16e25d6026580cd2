"""Tensors outside the protobuf: where they lie, their bytes, and files that they are put into."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from onnxprune import views
from onnxprune.bodies import inner_tensors
from onnxprune.errors import BadModelError
from onnxprune.model import Array, itemsize
from onnxprune.shapes import is_external

INLINE_BYTES: Final = 1024  # smaller tensors stay in the protobuf
PAGE_BYTES: Final = 4096  # tensors start at pages, so that they can be mapped
BLOCK_BYTES: Final = 2**24


def location(tensor: onnx.TensorProto) -> str:
    """The file of an external tensor, as the model names it."""
    return str(external_data_helper.ExternalDataInfo(tensor).location)


def read_in(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Put a tensor's data into its protobuf, if it lies outside."""
    if is_external(tensor):
        tensor.raw_data = b"".join(blocks(tensor, folder))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def rename(tensor: onnx.TensorProto, name: str) -> None:
    """Let an external tensor refer to its file by another name."""
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = name


def stays_inside(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is better off in the protobuf; strings must be."""
    if is_external(tensor):
        return outside_bytes(tensor) < INLINE_BYTES
    packed = not views.itemsize_is_whole(tensor) and not tensor.HasField("raw_data")
    return packed or tensor.ByteSize() < INLINE_BYTES


def blocks(tensor: onnx.TensorProto, folder: Path | None) -> Iterator[bytes]:
    """The bytes of a tensor, a block at a time."""
    if not is_external(tensor):
        yield tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        return
    info, left = external_data_helper.ExternalDataInfo(tensor), outside_bytes(tensor)
    assert folder is not None
    where = folder / info.location
    with where.open("rb") as file:
        file.seek(int(info.offset or 0))
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            left -= len(block)
            yield block
    if left > 0:
        raise BadModelError(f"'{where}' is cut short: tensor '{tensor.name}' does not fit in")


def outside_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes a tensor has in another file; onnx lets the length be left out."""
    stated = external_data_helper.ExternalDataInfo(tensor).length
    size: float = math.prod(tensor.dims) * itemsize(tensor.data_type)
    return math.ceil(size) if stated is None else int(stated)


def place(
    tensor: onnx.TensorProto, file: BinaryIO, name: str, data: Iterable[bytes | memoryview]
) -> None:
    """Write the bytes of a tensor to the end of a data file, and let it refer to them."""
    file.write(b"\0" * (-file.tell() % PAGE_BYTES))
    offset = file.tell()
    file.writelines(data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    places = {"location": name, "offset": offset, "length": file.tell() - offset}
    for key, value in places.items():
        tensor.external_data.add(key=key, value=str(value))


class Sink:
    """A data file with the tensors put into it so far.

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def array(self, values: Array, name: str) -> onnx.TensorProto:
        """The tensor of values, which are written here; of a few, or packed ones, it has them."""
        values = np.ascontiguousarray(values)
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        if values.nbytes < INLINE_BYTES or not views.itemsize_is_whole(tensor):
            return numpy_helper.from_array(values, name)
        return self.put(tensor, (values.reshape(-1).view(np.uint8).data,))

    def put(self, like: onnx.TensorProto, data: Iterable[bytes | memoryview]) -> onnx.TensorProto:
        """A tensor of the same name, type, shape and notes, with its bytes in this file."""
        tensor = onnx.TensorProto(name=like.name, data_type=like.data_type, dims=like.dims)
        tensor.doc_string = like.doc_string
        tensor.metadata_props.extend(like.metadata_props)
        place(tensor, self._file, self.path.name, data)
        return tensor

    def take_in(self, proto: onnx.ModelProto, folder: Path | None) -> None:
        """Copy here what a model keeps in other files, a block at a time.

        What nodes and bodies hold is small, and goes back into the protobuf: ONNX Runtime looks
        for no files there.
        """
        for tensor in proto.graph.initializer:
            if is_external(tensor) and location(tensor) != self.path.name:
                tensor.CopyFrom(self.put(tensor, blocks(tensor, folder)))
        self._file.flush()
        for tensor in inner_tensors(proto.graph):
            read_in(tensor, self.path.parent)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def move(self, path: Path) -> None:
        """Put the file somewhere else on its file system, when all is in it."""
        self.close()
        self.path.replace(path)
