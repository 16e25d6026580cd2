"""The zoo: real topologies whose weights are refilled, the same on every machine and every run.

A stripped tensor keeps its name, dims and type; its doc_string says how to fill it:

    fill: normal MEAN STD | fill: uniform LOW HIGH | fill: constant VALUE
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

MODELS = Path(__file__).parent / "models"
SUFFIX = ".onnx.gz"


def names() -> list[str]:
    """All models, as `folder/name`."""
    files = sorted(MODELS.glob(f"*/*{SUFFIX}"))
    return [f"{file.parent.name}/{file.name.removesuffix(SUFFIX)}" for file in files]


def load(name: str, seed: int = 0) -> onnx.ModelProto:
    """The model called `name`, every stripped tensor filled and its fill string removed."""
    model = onnx.load_from_string(gzip.decompress((MODELS / f"{name}{SUFFIX}").read_bytes()))
    fill(model, seed)
    return model


def fill(model: onnx.ModelProto, seed: int = 0) -> None:
    """Fill every stripped tensor of `model` in place, from its name and `seed` alone."""
    for name, tensor in tensors(model.graph):
        if tensor.doc_string.startswith("fill:"):
            generator = np.random.Generator(np.random.SFC64([zlib.crc32(name.encode()), seed]))
            tensor.raw_data = _values(tensor, generator).tobytes()
            tensor.ClearField("doc_string")


def tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every initializer and tensor attribute, bodies included; an attribute goes by its result."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield node.output[0], attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors(attribute.g)


def _values(tensor: onnx.TensorProto, generator: np.random.Generator) -> NDArray[Any]:
    """The values that the fill string asks for, flat."""
    _, kind, *words = tensor.doc_string.split()
    parameters = [float(word) for word in words]
    size = math.prod(tensor.dims)
    values: NDArray[np.float32]
    if kind == "constant":
        (value,) = parameters
        values = np.full(size, value, np.float32)
    elif kind == "normal":
        mean, deviation = parameters
        values = generator.standard_normal(size, dtype=np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
    elif kind == "uniform":
        low, high = parameters
        values = generator.random(size, dtype=np.float32)
        values *= np.float32(high - low)
        values += np.float32(low)
    else:
        raise ValueError(f"tensor {tensor.name!r}: no fill of kind {kind!r}")
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False)
