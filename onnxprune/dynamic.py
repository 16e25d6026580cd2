"""The dynamic axes of a graph's inputs, and concrete sizes to try them at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import onnx

# Two choices for each kind of dynamic axis: primes for what counts things, round numbers for what
# networks halve again and again.
BATCH: Final = (13, 17)
LENGTH: Final = (31, 37)
EXTENT: Final = (224, 256)
SAMPLES_1D: Final = (16000, 17920)
CHANNELS: Final = (3, 1)  # of pictures, where even these are declared dynamic
USUAL: Final = (32, 48, 64, 80, 96, 128, 160, 320, 512, 640)
# Heights and widths of pictures, and lengths of sequences, that networks with a table of positions
# want, all of them at once.
TABLE: Final = 3  # axes of a table of positions
TOKENS: Final = 8  # that may stand before the patches of a picture
SQUARES: Final = (224, 256, 384, 112, 128, 192, 240, 288, 336, 448, 512, 518, 640)
LENGTHS: Final = (128, 77, 256, 512, 64, 32, 16, 100, 196, 384, 1024)


def dynamic_axes(proto: onnx.ModelProto) -> dict[str, list[str | None]]:
    """For each required input the symbol of each axis; None where the size is fixed."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for value in proto.graph.input:
        if value.name in constants or not value.type.HasField("tensor_type"):
            continue
        dims = value.type.tensor_type.shape.dim
        found[value.name] = [
            None if dim.dim_value > 0 else dim.dim_param or f"{value.name}:{axis}"
            for axis, dim in enumerate(dims)
        ]
    return found


def choices(proto: onnx.ModelProto) -> Iterator[list[dict[str, int]]]:
    """Concrete sizes for every dynamic symbol: an empty choice, or two that differ everywhere.

    The first pair suits most networks. Some declare an axis dynamic and still need one size of it
    (an OCR net of height 48, three channels); so further pairs hold one symbol at a usual size, in
    turn.
    """
    sizes, channels = _usual(proto)
    if not sizes:
        yield [{}]
        return
    yield [{symbol: pair[k] for symbol, pair in sizes.items()} for k in range(2)]
    for held, usual in sizes.items():
        first = CHANNELS if held in channels else ()
        for size in (1,) if usual == BATCH else (*first, *USUAL):
            held_at = {**sizes, held: (size, size)}
            yield [{symbol: pair[k] for symbol, pair in held_at.items()} for k in range(2)]


def joints(proto: onnx.ModelProto) -> Iterator[list[dict[str, int]]]:
    """Pairs that hold all sides of pictures at one size, or all lengths of sequences.

    A table of positions wants that; so they are for graphs that contradict themselves at others.
    """
    sizes, channels = _usual(proto)
    for usual, together in ((EXTENT, SQUARES), (LENGTH, LENGTHS)):
        held_too = {symbol for symbol, pair in sizes.items() if pair == usual}
        for size in (*_tabled(proto, usual == EXTENT), *together) if held_too else ():
            held_at = {x: (CHANNELS[0],) * 2 if x in channels else (size,) * 2 for x in held_too}
            yield [{x: {**sizes, **held_at}[x][k] for x in sizes} for k in range(2)]


def _usual(proto: onnx.ModelProto) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Two sizes for every dynamic symbol, and the symbols that are channels of pictures."""
    sizes: dict[str, tuple[int, int]] = {}
    channels: set[str] = set()
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
    for name, symbols in dynamic_axes(proto).items():
        whole = types[name] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        for axis, symbol in enumerate(symbols):
            if symbol is None:
                continue
            if axis == 0:
                pair = BATCH
            elif whole:
                pair = LENGTH
            else:
                pair = SAMPLES_1D if len(symbols) == 2 else EXTENT
            sizes.setdefault(symbol, pair)
            if axis == 1 and pair == EXTENT:
                channels.add(symbol)
    return sizes, channels


def _tabled(proto: onnx.ModelProto, pictures: bool) -> list[int]:
    """Sizes that stored tables of positions (1, n, channels) tell: n, or the side of a picture.

    A picture is cut into n patches, or into fewer where tokens stand before them, by a convolution
    as wide as its stride.
    """
    tensors = [t.dims for t in proto.graph.initializer]
    found = [dims[1] for dims in tensors if len(dims) == TABLE and dims[0] == 1 < dims[1]]
    if not pictures:
        return list(dict.fromkeys(found))
    patches = []
    for node in proto.graph.node:
        stated = {a.name: list(a.ints) for a in node.attribute}
        if stated.get("kernel_shape") == stated.get("strides", []) != []:
            patches.append(stated["strides"][0])
    sides = {n: math.isqrt(n) for own in found for n in range(own, max(own - TOKENS, 1), -1)}
    squares = [side for n, side in sides.items() if side * side == n]
    return list(dict.fromkeys(side * patch for side in squares for patch in patches if patch > 1))
