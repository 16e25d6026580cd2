"""Half-precision models as float32 models, for comparing two of them on a CPU.

ONNX Runtime's CPU provider has no bfloat16 kernels, and rounds float16 at every node: errors of 1 %
hide a wrong index. Every bfloat16 and float16 number is a float32 number too, so two files that
agree as float32 models have the same structure and the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.compare import HALF
from onnxprune.model import Array
from onnxprune.views import read_tensor

TYPES: Final = frozenset({"to", "dtype", "output_dtype"})  # attributes that name an element type


def widen(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Turn every float16 and bfloat16 of a model into float32, in place."""
    _graph(proto.graph, folder)
    for function in proto.functions:
        _nodes(function.node, folder)


def widened(array: Array) -> Array:
    """An array of a half type as float32; any other as it is."""
    half = array.dtype.itemsize == np.dtype(np.float16).itemsize and "float" in array.dtype.name
    return array.astype(np.float32) if half else array


def _graph(graph: onnx.GraphProto, folder: Path | None) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        _type(value.type)
    for tensor in graph.initializer:
        _tensor(tensor, folder)
    _nodes(graph.node, folder)


def _nodes(nodes: Iterable[onnx.NodeProto], folder: Path | None) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor(attribute.t, folder)
            if attribute.name in TYPES and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("g"):
                _graph(attribute.g, folder)
            for body in attribute.graphs:
                _graph(body, folder)


def _type(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in HALF:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    if kind.HasField("sequence_type"):
        _type(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        _type(kind.optional_type.elem_type)


def _tensor(tensor: TensorProto, folder: Path | None) -> None:
    if tensor.data_type in HALF:
        values = read_tensor(tensor, folder).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
