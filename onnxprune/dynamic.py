"""The dynamic axes of a graph's inputs, and concrete sizes to try them at."""

from __future__ import annotations

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
    if not sizes:
        yield [{}]
        return
    yield [{symbol: pair[k] for symbol, pair in sizes.items()} for k in range(2)]
    for held, usual in sizes.items():
        first = CHANNELS if held in channels else ()
        for size in (1,) if usual == BATCH else (*first, *USUAL):
            held_at = {**sizes, held: (size, size)}
            yield [{symbol: pair[k] for symbol, pair in held_at.items()} for k in range(2)]
