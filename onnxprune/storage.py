"""What a model stores: the constant tensors that groups touch, and the bytes of its file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message

from onnxprune import shapes
from onnxprune.axes import Layout, Values
from onnxprune.coupling import Coupling
from onnxprune.model import Model, itemsize
from onnxprune.polynomials import ROW_OF_ONE, Indices, SizeTable, tally
from onnxprune.stubs import is_replaceable

# Of protobuf's encoding: the bits of an integer in one byte, and the last field with a tag of one.
VARINT_BITS: Final = 7
LAST_SHORT_TAG: Final = 15
# Types that make a tensor a parameter; others count where a group touches them.
WEIGHTS: Final = ("FLOAT", "BFLOAT", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")


@dataclass(frozen=True)
class Tensors:
    """The constant tensors that groups touch.

    Uses of one tensor that lose nothing share it; each that loses something has a copy of its own.

    Attributes:
        rows, scales: (u,) the elements of each use are ``scales * products[rows]``.
        full: (u,) their elements when nothing is pruned.
        copies: (u,) 1 where a copy is stored, 0 where a use that loses something is just gone.
        origins: (u,) which tensor each use reads.
        elements: (o,) the tensors' elements; 0 for values computed in the graph, which are stored
            only when they lose something.
        fixed: (o,) whether a use that can't lose anything reads the tensor.
        itemsizes: (o,) bytes of one element.
    """

    rows: Indices
    scales: Values
    full: Values
    copies: Values
    origins: Indices
    elements: Values
    fixed: npt.NDArray[np.bool_]
    itemsizes: Values

    def at(self, products: Values) -> Values:
        """The elements (o,) that each tensor comes to, copies added."""
        sizes = self.scales * products[self.rows]
        lost = sizes < self.full
        count = len(self.elements)
        shared = self.fixed.copy()
        shared[self.origins[~lost]] = True
        return tally(self.origins, sizes * lost * self.copies, count) + self.elements * shared

    def weights(self, rows: int, in_bytes: bool) -> Values:
        """Their elements, or their bytes, as weights of the products (r,)."""
        each = self.itemsizes[self.origins] if in_bytes else 1.0
        return tally(self.rows, self.scales * self.copies * each, rows)


@dataclass(frozen=True, slots=True)
class Use:
    """How one tensor is used: the sizes of the uses that may lose something; see ``Tensors``."""

    elements: int
    sizes: tuple[tuple[int, int], ...]
    fixed: bool
    copied: bool
    itemsize: float


def uses(coupling: Coupling, table: SizeTable) -> tuple[list[Use], int]:
    """The tensors that groups touch, and the parameters in all others."""
    model = coupling.model
    reads = [name for node in model.every for name in node.inputs]
    idle = [(x, is_replaceable(node, model)) for node in model.every for x in node.unseen]
    reads += [name for name, goes in idle if not goes]
    readers: dict[str, list[str]] = {}
    for name in dict.fromkeys((*reads, *model.outputs)):
        if name in model.params:
            readers.setdefault(model.params[name].origin, []).append(name)
    for name in (name for name, goes in idle if goes and name in model.params):
        readers.setdefault(model.params[name].origin, [name])  # else it goes when that loses
    behind = _behind_folded(model, readers)
    found, fixed_params = [], 0
    for origin, names in (*readers.items(), *behind.items()):
        layouts = [coupling.layouts.get(name) for name in names]
        sizes = _distinct(coupling, table, layouts) if any(layouts) else []
        varying = tuple(size for size in sizes if size[1] != ROW_OF_ONE)
        param = model.params[origin]
        elements = 0 if param.folded else math.prod(param.shape)
        if varying:
            fixed, copied = len(varying) < len(sizes), origin in readers
            found.append(Use(elements, varying, fixed, copied, itemsize(param.dtype)))
        elif is_weight(param.dtype):
            fixed_params += elements
    return found, fixed_params


def _behind_folded(model: Model, known: Collection[str]) -> dict[str, list[str]]:
    """The parameters that serve only to make folded values, and which: with these they go."""
    values = [name for name, param in model.params.items() if param.folded and name in known]
    makers = {out: raw for raw in model.proto.graph.node for out in raw.output} if values else {}
    found: dict[str, list[str]] = {}
    for value in values:
        seen, todo = {value, *known}, [value]
        while todo:
            for name in makers[todo.pop()].input:
                if name in seen:
                    continue
                seen.add(name)
                param = model.params.get(name)
                if param is not None and not param.folded:
                    if is_weight(param.dtype):
                        found.setdefault(name, []).append(value)
                elif name in makers:
                    todo.append(name)
    return found


def makings(model: Model, raws: Mapping[str, onnx.NodeProto], value: str) -> Iterator[str]:
    """What the model computes and folds on the way to a folded value.

    Stored tensors that lose indices are none of it: nodes that the model has not got read copies.
    """
    todo, seen = [value], {value}
    while todo:
        raw = raws.get(todo.pop())
        for name in (x for x in raw.input if x not in seen) if raw is not None else ():
            seen.add(name)
            param = model.params.get(name)
            if name in model.makers or (param is not None and param.folded):
                yield name
            if name not in model.makers:
                todo.append(name)


def _distinct(
    coupling: Coupling, table: SizeTable, layouts: list[tuple[Layout, ...] | None]
) -> list[tuple[int, int]]:
    """The sizes of uses; those that keep the same indices for sure are one."""
    normal = coupling.factors.normal
    keys = dict.fromkeys(tuple(normal(x) for x in layout or ()) for layout in layouts)
    sizes = [table.row(key) for key in keys]
    return [size if size is not None else (1, ROW_OF_ONE) for size in sizes]


@cache
def is_weight(dtype: int) -> bool:
    """Whether a data type makes a tensor a weight, wherever it stands."""
    name: str = onnx.TensorProto.DataType.Name(dtype)
    return name.startswith(WEIGHTS)


def tensors_of(uses: list[Use], products: Values) -> Tensors:
    """The uses as arrays, given the products (r,) when nothing is pruned."""
    sizes = [size for use in uses for size in use.sizes]
    scales = np.array([scale for scale, _ in sizes], np.float64)
    rows = np.array([row for _, row in sizes], np.intp)
    origins = np.repeat(np.arange(len(uses)), [len(use.sizes) for use in uses])
    return Tensors(
        rows,
        scales,
        scales * products[rows],
        np.array([use.copied for use in uses], np.float64)[origins],
        origins,
        np.array([use.elements for use in uses], np.float64),
        np.array([use.fixed for use in uses], bool),
        np.array([use.itemsize for use in uses], np.float64),
    )


def file_bytes(model: Model) -> int:
    """Bytes of the model's file, with those of its external data.

    Exact, without writing the file out, as protobuf does to measure a message: that takes seconds
    for the weights of a large model. They are counted by their shapes and types.
    """
    graph = model.proto.graph
    inner = _fields(graph, without="initializer")
    inner += sum(_framed(_tensor_bytes(tensor)) for tensor in graph.initializer)
    outside = sum(_data_bytes(t) for t in graph.initializer if shapes.is_external(t))
    return _fields(model.proto, without="graph") + _framed(inner) + outside


def _fields(message: Message, without: str) -> int:
    """Bytes of a message without one of its fields."""
    total = 0
    for field, value in message.ListFields():
        if field.name != without:
            single = isinstance(value, Message | str | bytes | int)
            items = (value,) if single else value
            total += sum(_field(item) + (field.number > LAST_SHORT_TAG) for item in items)
    return total


def _field(value: Any) -> int:
    if isinstance(value, int):
        return 1 + _varint(value)
    if isinstance(value, Message):
        return _framed(int(value.ByteSize()))
    return _framed(len(value.encode() if isinstance(value, str) else value))


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if shapes.is_external(tensor) or not tensor.HasField("raw_data"):
        return int(tensor.ByteSize())
    fields = [*tensor.dims, tensor.data_type, tensor.name]
    if tensor.HasField("doc_string"):
        fields.append(tensor.doc_string)
    return sum(_field(value) for value in fields) + _framed(_data_bytes(tensor))


def _data_bytes(tensor: onnx.TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    return math.ceil(count * itemsize(tensor.data_type))


def _framed(size: int) -> int:
    """Bytes of a field that takes a tag, a length and ``size`` bytes."""
    return 1 + _varint(size) + size


def _varint(value: int) -> int:
    """Bytes of an integer that is not negative."""
    return (value.bit_length() + VARINT_BITS - 1) // VARINT_BITS or 1
