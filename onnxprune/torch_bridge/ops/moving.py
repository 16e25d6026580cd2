"""Rows that cut, join, rearrange, gather and scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from onnxprune.torch_bridge.at import At, Made, Tensor, dtype_of, ints, number, optional, tensor
from onnxprune.torch_bridge.lazy import F, torch


def reshape(at: At, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Another shape; 0 is the operand's own size."""
    sizes = list(at("shape")) if shape is None else list(ints(shape) or ())
    if not at("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(at: At, x: Tensor) -> Tensor:
    """Two axes: those before ``axis``, and the rest."""
    axis = at("axis", 1)
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(at: At, x: Tensor) -> Tensor:
    """Axes in another order."""
    return x.permute(at("perm") or list(reversed(range(x.ndim))))


def squeeze(at: At, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1."""
    found = at("axes") if axes is None else ints(axes)
    if found is None:
        return x.squeeze()
    gone = {axis % x.ndim for axis in found}
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


def unsqueeze(at: At, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With new axes of size 1."""
    found = list(at("axes") or ()) if axes is None else list(ints(axes) or ())
    rank = x.ndim + len(found)
    new, sizes = {axis % rank for axis in found}, iter(x.shape)
    return x.reshape([1 if i in new else next(sizes) for i in range(rank)])


def expand(at: At, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast with a shape, both ways."""
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(ints(shape) or ())))


def tile(at: At, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(ints(repeats))


def split(at: At, x: Tensor, sizes: Tensor | None = None) -> Made:
    """In parts along an axis."""
    axis = at("axis", 0) % x.ndim
    parts = ints(sizes) if sizes is not None else at("split")
    if parts is None:
        count = at("num_outputs", at.results)
        each = -(-x.shape[axis] // count)
        parts = [min(each, x.shape[axis] - each * i) for i in range(count)]
    return tuple(x.split(list(parts), axis))


def slice_(at: At, x: Tensor, *given: Tensor | None) -> Tensor:
    """From start to end, in steps that may go backwards."""
    if given:
        starts, ends, axes, steps = (ints(t) for t in optional(given, 4))
    else:
        starts, ends, axes, steps = at("starts"), at("ends"), at("axes"), None
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    for position, axis in enumerate(axes):
        step = 1 if steps is None else steps[position]
        size = x.shape[axis]
        start, end, _ = slice(starts[position], ends[position], step).indices(size)
        if step < 0 and ends[position] < -size:
            end = -1
        if step == 1:
            x = x.narrow(axis, min(start, size), max(0, end - start))
        else:
            wanted = torch.arange(start, end, step) if (end - start) * step > 0 else _none()
            x = x.index_select(axis, wanted.to(x.device))
    return x


def _none() -> Tensor:
    """No indices at all."""
    return torch.zeros(0, dtype=torch.int64)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def gather(at: At, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of an axis."""
    axis = at("axis", 0) % x.ndim
    own = _wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(own, x)
    made = x.index_select(axis, own.reshape(-1))
    return made.reshape([*x.shape[:axis], *own.shape, *x.shape[axis + 1 :]])


def gather_elements(at: At, x: Tensor, indices: Tensor) -> Tensor:
    """Single elements along an axis."""
    axis = at("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def gather_nd(at: At, x: Tensor, indices: Tensor) -> Tensor:
    """Slices by tuples of indices, behind some batch axes."""
    batch, depth = at("batch_dims", 0), indices.shape[-1]
    outer = x.shape[:batch]
    flat = x.reshape(math.prod(outer), *x.shape[batch:])
    own = indices.long().reshape(math.prod(outer), -1, depth)
    rows = torch.arange(len(flat), device=x.device)[:, None].expand(own.shape[:2])
    places = [_wrapped(own[..., i], flat.shape[1 + i]) for i in range(depth)]
    made = flat[(rows, *places)]
    return made.reshape([*indices.shape[:-1], *x.shape[batch + depth :]])


_REDUCED: Final = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(at: At, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Single elements replaced along an axis, or reduced with what was there."""
    axis, how = at("axis", 0) % x.ndim, at("reduction", "none")
    own = _wrapped(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, own, updates)
    return x.scatter_reduce(axis, own, updates, _REDUCED[how])


def scatter_nd(at: At, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Slices replaced by tuples of indices, or reduced with what was there."""
    depth, how = indices.shape[-1], at("reduction", "none")
    own = [_wrapped(indices[..., i], x.shape[i]) for i in range(depth)]
    if how in ("none", "add"):
        return x.index_put(tuple(own), updates, accumulate=how == "add")
    strides = [math.prod(x.shape[i + 1 : depth]) for i in range(depth)]
    flat = sum((o * s for o, s in zip(own, strides, strict=True)), torch.zeros_like(own[0]))
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    given = updates.reshape(flat.numel(), -1)
    places = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    return rows.scatter_reduce(0, places, given, _REDUCED[how]).reshape(x.shape)


def pad(at: At, x: Tensor, *given: Tensor | None) -> Tensor:
    """Values put before and behind each axis, taken away where there are fewer than none."""
    pads, value, axes = optional(given, 3)
    wanted = ints(pads) if pads is not None else list(at("pads", at("paddings", ())))
    over = [a % x.ndim for a in (ints(axes) or ())] if axes is not None else list(range(x.ndim))
    fill, how = number(value, at("value", 0.0)), at("mode", "constant")
    assert wanted is not None
    for position, axis in enumerate(over):
        before, behind = wanted[position], wanted[position + len(over)]
        if how == "constant":
            x = _constant_pad(x, axis, before, behind, fill)
        elif before or behind:
            x = x.index_select(axis, _places(x.shape[axis], before, behind, how).to(x.device))
    return x


def _constant_pad(x: Tensor, axis: int, before: int, behind: int, fill: float) -> Tensor:
    if not (before or behind):
        return x
    flat = [0, 0] * (x.ndim - 1 - axis) + [before, behind]
    if x.dtype is torch.bool:
        return F.pad(x.to(torch.uint8), flat, value=int(fill)).bool()
    return F.pad(x, flat, value=fill)


def _places(size: int, before: int, behind: int, how: str) -> Tensor:
    """Which index of an axis each place of the padded axis shows."""
    mode = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[how]
    inner = np.arange(max(0, -before), size - max(0, -behind))
    return tensor(np.pad(inner, (max(0, before), max(0, behind)), mode=mode))  # type: ignore[call-overload]


def depth_to_space(at: At, x: Tensor) -> Tensor:
    """Channels become places."""
    n, c, h, w = x.shape
    b = at("blocksize")
    if at("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(at: At, x: Tensor) -> Tensor:
    """Places become channels."""
    n, c, h, w = x.shape
    b = at("blocksize")
    y = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if at("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return y.permute(order).reshape(n, c * b * b, h // b, w // b)


def shape_of(at: At, x: Tensor) -> Tensor:
    """Sizes."""
    return torch.tensor(list(x.shape)[at("start", 0) : at("end")], dtype=torch.int64)


def constant(at: At) -> Tensor:
    """What the node holds."""
    kinds = {"value_float": np.float32, "value_floats": np.float32}
    name = next(iter(at.attributes))
    return tensor(np.asarray(at(name), None if name == "value" else kinds.get(name, np.int64)))


def constant_of_shape(at: At, shape: Tensor) -> Tensor:
    """One value everywhere."""
    value = at("value", np.zeros(1, np.float32))
    return tensor(value).reshape(()).expand(ints(shape)).clone()


def range_(at: At, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers in equal steps."""
    first, last, step = (number(t) for t in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    return torch.arange(count, dtype=torch.float64).mul(step).add(first).to(start.dtype)


def one_hot(at: At, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """One value at the index, another elsewhere."""
    count, rank = int(number(depth)), indices.ndim + 1
    axis = at("axis", -1) % rank
    own = indices.long()
    inside = (own >= -count) & (own < count)
    wanted = torch.where(inside, own % count, -1).unsqueeze(axis)
    places = torch.arange(count).reshape([-1 if i == axis else 1 for i in range(rank)])
    return torch.where(wanted == places.to(own.device), values[1], values[0])


def eye_like(at: At, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    dtype = x.dtype if at("dtype") is None else dtype_of(at("dtype"))
    return torch.ones(x.shape).tril(at("k", 0)).triu(at("k", 0)).to(dtype)


def trilu(at: At, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle."""
    return (torch.triu if at("upper", 1) else torch.tril)(x, int(number(k, 0)))


def reverse_sequence(at: At, x: Tensor, lengths: Tensor) -> Tensor:
    """The first steps of each sequence in reverse order."""
    time, batch = at("time_axis", 0), at("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device)[:, None]
    own = lengths.long().to(x.device)[None, :]
    places = torch.where(steps < own, own - 1 - steps, steps)
    places = places if time < batch else places.t()
    shape = [n if i in (time, batch) else 1 for i, n in enumerate(x.shape)]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))


def compress(at: At, x: Tensor, condition: Tensor) -> Tensor:
    """The slices whose condition holds."""
    axis = at("axis")
    x = x.reshape(-1) if axis is None else x
    return x.index_select(axis or 0, condition.nonzero().reshape(-1).to(x.device))


def sequence_at(at: At, items: Sequence[Tensor], position: Tensor) -> Tensor:
    """One item of a sequence."""
    return items[int(number(position))]


def sequence_insert(
    at: At, items: Sequence[Tensor], item: Tensor, position: Tensor | None = None
) -> list[Tensor]:
    """The sequence with one more item."""
    place = len(items) if position is None else int(number(position)) % (len(items) + 1)
    return [*items[:place], item, *items[place:]]


def concat_from_sequence(at: At, items: Sequence[Tensor]) -> Tensor:
    """The items of a sequence, joined."""
    return (torch.stack if at("new_axis", 0) else torch.cat)(list(items), at("axis"))


ROWS: Final[dict[str, Any]] = {
    "Compress": compress,
    "Concat": lambda at, *operands: torch.cat(operands, at("axis", 1)),
    "ConcatFromSequence": concat_from_sequence,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": lambda at, x: torch.nonzero(x).t().contiguous(),
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "SequenceAt": sequence_at,
    "SequenceConstruct": lambda at, *items: list(items),
    "SequenceEmpty": lambda at: [],
    "SequenceInsert": sequence_insert,
    "SequenceLength": lambda at, items: torch.tensor(len(items)),
    "Shape": shape_of,
    "Size": lambda at, x: torch.tensor(x.numel()),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
