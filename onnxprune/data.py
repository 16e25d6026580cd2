"""Inputs to run a model on: random ones within the declared types, or a user's.

Random inputs are small where that is safe: a batch of two or three, token ids that every table
they pick from has, masks that hide little.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnxprune.dynamic import BATCH, EXTENT, LENGTH, dynamic_axes
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model

# In place of the sizes that shape inference goes by: attention over the pixels of a picture of
# 224 takes gigabytes. Networks halve extents: 32 divides these.
SMALL: Final = {BATCH: (2, 3), LENGTH: (7, 12), EXTENT: (64, 96)}
STEPS: Final = (512, 256, 1, 2, 3, 4, 8, 16, 32, 64, 128, 160, 320, 480, 576, 640, 1024, 1280)
MOST: Final = 2**18  # elements of an input of one of these sizes
VISIBLE: Final = 0.9  # share of ones in a mask
FEW: Final = 2  # ids of unknown meaning lie below this
# Operands that pick from another operand: the picking one, and the table that it picks from.
PICKS: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "Gather": ((1, 0),),
    "GatherElements": ((1, 0),),
    "GatherND": ((1, 0),),
    "com.microsoft::EmbedLayerNormalization": ((0, 2), (1, 4)),
    "com.microsoft::GatherBlockQuantized": ((1, 0),),
}
# Operators whose first result holds nothing but values of their first operand.
CARRIES: Final = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "GatherND", "Identity"}
    | {"Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        OnnxPruneError: it is negative.
    """
    if seed < 0:
        raise OnnxPruneError(f"seed is {seed}: it must be 0 or more")


def random_inputs(model: Model, seed: int, choice: int = 0, small: bool = True) -> dict[str, Array]:
    """Random values for every required input, the same for the same arguments.

    Args:
        model: the model.
        seed: the seed.
        choice: which choice of the dynamic sizes, an index into ``model.samples``.
        small: whether dynamic batches and extents are smaller than shape inference went by.

    Raises:
        OnnxPruneError: an input is no tensor, or of a type that has no random values.
    """
    values = {value.name: value for value in model.proto.graph.input}
    symbols = dynamic_axes(model.proto)
    batch = {own[0] for own in symbols.values() if own} - {None}
    smaller = {pair[choice]: own[choice] for pair, own in SMALL.items()} if small else {}
    found = {}
    for name in model.inputs:
        if name not in symbols:
            raise OnnxPruneError(
                f"input '{name}' is no tensor: random values can't be made for it, so the model "
                "can't be verified"
            )
        kind = values[name].type.tensor_type
        shape = tuple(
            smaller.get(size, size) if symbol in batch or (symbol and size in EXTENT) else size
            for size, symbol in zip(model.samples[choice].shapes[name], symbols[name], strict=True)
            if size is not None
        )
        found[name] = _drawn(model, name, kind.elem_type, shape, (seed, choice))
    return found


def further_inputs(model: Model, seed: int) -> Iterator[dict[str, Array]]:
    """Random inputs of other sizes, for a model that runs at few.

    A network that takes a signal step by step wants the length of one step. So all dynamic sizes
    are 1, but for the last axes, and then for all axes but the first, which have a usual length.
    """
    values = {value.name: value.type.tensor_type for value in model.proto.graph.input}
    symbols = dynamic_axes(model.proto)
    if not any(symbol for own in symbols.values() for symbol in own):
        return
    last = {own[-1] for own in symbols.values() if len(own) > 1} - {None}
    others = {symbol for own in symbols.values() for symbol in own[1:]} - {None}
    for size in STEPS:
        for long in dict.fromkeys((frozenset(last), frozenset(others))):
            sizes = {x: size if x in long else 1 for own in symbols.values() for x in own}
            shapes = {}
            for name in model.inputs:
                declared = zip(values[name].shape.dim, symbols[name], strict=True)
                shapes[name] = tuple(d.dim_value if x is None else sizes[x] for d, x in declared)
            if max(map(math.prod, shapes.values())) <= MOST:
                yield {
                    name: _drawn(model, name, values[name].elem_type, shape, (seed, size))
                    for name, shape in shapes.items()
                }


def _drawn(
    model: Model, name: str, kind: int, shape: tuple[int, ...], seeds: tuple[int, ...]
) -> Array:
    generator = np.random.default_rng([*seeds, zlib.crc32(name.encode())])
    return _values(generator, name, kind, shape, bound_of_ids(model, name))


def one_sample(model: Model, seed: int) -> dict[str, Array]:
    """Random inputs for a batch of one, of the sizes that costs are given for.

    Raises:
        OnnxPruneError: an input is no tensor, or of a type that has no random values.
    """
    symbols = dynamic_axes(model.proto)
    batch = {own[0] for own in symbols.values() if own} - {None}
    found = {}
    for name, array in random_inputs(model, seed, small=False).items():
        own = zip(array.shape, symbols[name], strict=True)
        single = (slice(1) if x in batch and size == BATCH[0] else slice(None) for size, x in own)
        found[name] = array[tuple(single)]
    return found


def _values(
    generator: np.random.Generator, name: str, kind: int, shape: tuple[int, ...], bound: int | None
) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    is_mask = "mask" in name.lower() and bound is None
    if kind == TensorProto.STRING:
        return np.full(shape, "a", object)
    if is_mask and kind in _WHOLE:
        values = generator.random(shape) < VISIBLE
        if values.ndim:
            values[..., :1] = True  # a row that sees nothing would be NaN
        return values.astype(dtype)
    if kind in _FLOATS:
        return np.asarray(generator.standard_normal(shape, np.float32)).astype(dtype)
    if kind == TensorProto.BOOL:
        return np.asarray(generator.random(shape) < 0.5)
    if kind in _WHOLE:
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if kind in _BYTES else (0, FEW)
        if bound is not None:
            low, high = 0, min(bound, np.iinfo(dtype).max)
        return np.asarray(generator.integers(low, high, shape)).astype(dtype)
    type_name = TensorProto.DataType.Name(kind)
    raise OnnxPruneError(
        f"input '{name}' has type {type_name}: random values can't be made for it, give real ones"
    )


_FLOATS: Final = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
_BYTES: Final = frozenset({TensorProto.INT8, TensorProto.UINT8})
_WHOLE: Final = _BYTES | {
    TensorProto.BOOL,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
}


def bound_of_ids(model: Model, name: str) -> int | None:
    """Below what the ids of an input have to lie: the size of the smallest table they pick from.

    None where they pick from none. A table of dynamic size counts as 1: only index 0 is safe.
    """
    carried = {name}
    bounds = []
    for node in model.every:
        for ids, table in PICKS.get(node.op, ()):
            if ids < len(node.inputs) and node.inputs[ids] in carried:
                shape = model.shape(node.inputs[table])
                axis = int(node.attributes.get("axis", 0))
                bounds.append((shape[axis] or 1) if shape else 1)
        if node.op in CARRIES and node.inputs and node.inputs[0] in carried:
            carried.add(node.outputs[0])
    return min(bounds, default=None)


def load_inputs(path: Path, model: Model) -> dict[str, Array]:
    """Real inputs from an .npz file with one array an input; further arrays are left out.

    Raises:
        OnnxPruneError: the file can't be read, or an array is missing or does not fit its input.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in model.inputs if name in file}
            names = list(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise OnnxPruneError(f"'{path}' can't be read as an .npz file of inputs") from error
    missing = [name for name in model.inputs if name not in arrays]
    if missing:
        found = ", ".join(f"'{name}'" for name in names) or "nothing"
        raise OnnxPruneError(f"'{path}' has no array '{missing[0]}': it holds {found}")
    return check_inputs(arrays, model)


def check_inputs(arrays: Mapping[str, Array], model: Model) -> dict[str, Array]:
    """The inputs, if all are there and each has its declared type, rank and sizes.

    Raises:
        OnnxPruneError: which one does not, and what was expected.
    """
    missing = [name for name in model.inputs if name not in arrays]
    if missing:
        raise OnnxPruneError(f"the inputs have no '{missing[0]}', which the model wants")
    symbols = dynamic_axes(model.proto)
    sizes: dict[str, tuple[int, str]] = {}
    found = {}
    for value in model.proto.graph.input:
        name = value.name
        if name not in arrays or name not in symbols:
            continue
        array = found[name] = _typed(name, arrays[name], value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        if array.ndim != len(dims):
            raise OnnxPruneError(
                f"input '{name}' has shape {array.shape}, the model wants {len(dims)} axes"
            )
        for axis, (dim, symbol) in enumerate(zip(dims, symbols[name], strict=True)):
            size = array.shape[axis]
            wanted, where = sizes.setdefault(symbol, (size, name)) if symbol else (size, name)
            if symbol is None and size != dim.dim_value:
                raise OnnxPruneError(
                    f"input '{name}', axis {axis}: has size {size}, the model wants {dim.dim_value}"
                )
            if size != wanted:
                raise OnnxPruneError(
                    f"input '{name}', axis {axis}: has size {size}, but '{symbol}' is {wanted} in "
                    f"input '{where}'"
                )
    return found


def _typed(name: str, array: Array, kind: int) -> Array:
    wanted: npt.DTypeLike = helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.BFLOAT16 and array.dtype == np.float32:
        return array.astype(wanted)  # an .npz file has no bfloat16
    if array.dtype != wanted and kind != TensorProto.STRING:
        raise OnnxPruneError(
            f"input '{name}' has type {array.dtype}, the model wants {np.dtype(wanted)}"
        )
    return array
