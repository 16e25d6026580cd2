"""The numbers that stored weights stand for: integers less their zero points, times their scales.

So that criteria rank a quantised file as the float file that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxprune.model import Array, Model, Node
from onnxprune.rules.experts import BITS
from onnxprune.rules.integers import BITS_OF_A_BYTE
from onnxprune.rules.tables import PACKED, PACKED_BYTES, QUANTISED


def stored_values(model: Model) -> Mapping[str, Node]:
    """The node that says what the integers of a parameter stand for, by parameter."""
    found: dict[str, Node] = {}
    for node in model.every:
        for position in _positions(node):
            if position < len(node.inputs) and node.inputs[position] in model.params:
                found.setdefault(node.inputs[position], node)
    return found


def _positions(node: Node) -> Iterator[int]:
    if node.op in QUANTISED:
        yield QUANTISED[node.op][0]
    if node.op in PACKED:
        yield PACKED[node.op]
    yield from PACKED_BYTES.get(node.op, ())


def meant(model: Model, name: str, node: Node | None) -> Array:
    """The values of a parameter as they count: float32 where a node says what they stand for.

    Weights that are packed in bytes (n, blocks, bytes) come out as (n, blocks, numbers). Where a
    byte is an index, it comes out as the root of its numbers' squares.

    Args:
        model: the model.
        name: the parameter.
        node: the node that reads it, from ``stored_values``.
    """
    values = model.params[name].read()
    if node is None:
        return values
    if node.op in PACKED:
        return _unpacked(model, values, node)
    if node.op in PACKED_BYTES:
        return _of_bytes(model, values, node, node.inputs.index(name))
    _, scale, zero, axis = QUANTISED[node.op]
    place = axis(node.attributes)
    wide = np.asarray(values, np.float32)
    for position, apply in ((zero, np.subtract), (scale, np.multiply)):
        other = None if position is None else _constant(model, node, position)
        if other is not None:
            beside = _beside(np.asarray(other, np.float32), wide, place)
            if beside is not None:
                wide = apply(wide, beside)
    return wide


def _constant(model: Model, node: Node, position: int) -> Array | None:
    """A stored operand's values."""
    name = node.inputs[position] if position < len(node.inputs) else ""
    param = model.params.get(name)
    return param.read() if param is not None else model.constant(name) if name else None


def _beside(own: Array, values: Array, axis: int) -> Array | None:
    """One number for all, for each index of an axis, or for each block along it, broadcast."""
    if own.size == 1:
        return own.reshape(())
    if own.ndim == 1 and len(own) == values.shape[axis]:
        shape = [1] * values.ndim
        shape[axis] = len(own)
        return own.reshape(shape)
    if own.ndim == values.ndim and values.shape[axis] % own.shape[axis] == 0:
        wide: Array = np.repeat(own, values.shape[axis] // own.shape[axis], axis)
        return wide
    return None


def _unpacked(model: Model, values: Array, node: Node) -> Array:
    """The numbers (n, blocks, size) of MatMulNBits."""
    bits = int(node.attributes.get("bits", 4))
    rows, blocks = values.shape[:2]
    numbers = _split(values, bits)
    scales, zeros = (_constant(model, node, position) for position in (2, 3))
    zero: Array = np.float32(2 ** (bits - 1)).reshape(1, 1)
    if zeros is not None:
        packed = zeros.dtype == np.uint8 and zeros.size != rows * blocks
        zero = _split(zeros.reshape(rows, -1), bits) if packed else zeros.reshape(rows, -1)
        zero = np.asarray(zero[:, :blocks], np.float32)
    found = numbers - zero[..., None]
    if scales is not None:
        found = found * np.asarray(scales, np.float32).reshape(rows, blocks, 1)
    return np.asarray(found, np.float32)


def _of_bytes(model: Model, values: Array, node: Node, position: int) -> Array:
    """What bytes (..., bytes) stand for, of the same shape; types of 4 bits are one number each."""
    first, second, names = PACKED_BYTES[node.op][position]
    stored = [_constant(model, node, place) for place in (first, second)]
    if stored[0] is None:
        return np.asarray(values, np.float32)
    bits = next((int(node.attributes[x]) for x in names if x in node.attributes), BITS)
    is_packed = values.dtype == np.uint8
    share = BITS_OF_A_BYTE // bits if is_packed else 1
    rows = values.shape[:-1]
    scale = np.asarray(stored[0], np.float32).reshape(*rows, -1)
    centre: Array = np.full(scale.shape, 2 ** (bits - 1) if is_packed else 0, np.float32)
    if stored[1] is not None:
        own = _split(stored[1], bits if is_packed else BITS_OF_A_BYTE)
        centre = own.reshape(*rows, -1)[..., : scale.shape[-1]]
    numbers = _split(values, bits if is_packed else BITS_OF_A_BYTE)
    wide = numbers.reshape(*scale.shape, -1) - centre[..., None]
    wide = (wide * scale[..., None]).reshape(*rows, -1, share)
    return np.asarray(np.sqrt((wide * wide).sum(axis=-1)), np.float32)


def _split(values: Array, bits: int) -> Array:
    """The numbers of some bits in each byte, the lowest bits first."""
    if bits >= BITS_OF_A_BYTE:
        return np.asarray(values, np.float32)
    shifts = np.arange(0, BITS_OF_A_BYTE, bits, dtype=np.uint8)
    parts = (values[..., None] >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(parts.reshape(*values.shape[:-1], -1), np.float32)
