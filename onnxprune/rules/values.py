"""Values of shape arithmetic: numpy for the operators that exporters compute sizes with.

``evaluate`` knows what a node gives where its operands are known small constants. Nothing here
touches weights: results of more than ``LIMIT`` elements, and floats of more than
``FLOAT_LIMIT``, stay unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
from onnx import helper, numpy_helper

from onnxprune.model import Array, Node
from onnxprune.notation import Shape

LIMIT: Final = 65536
FLOAT_LIMIT: Final = 8

Attributes = dict[str, Any]
Function = Callable[[Sequence[Array], Attributes], Any]


def _axes(x: Sequence[Array], a: Attributes, operand: int) -> tuple[int, ...] | None:
    if "axes" in a:
        return tuple(a["axes"])
    if len(x) > operand and x[operand] is not None:
        return tuple(int(k) for k in x[operand].reshape(-1))
    return None


def _div(x: Sequence[Array], a: Attributes) -> Any:
    if not np.issubdtype(x[0].dtype, np.integer):
        return x[0] / x[1]
    whole = np.abs(x[0]) // np.abs(x[1])
    return (whole * np.sign(x[0]) * np.sign(x[1])).astype(x[0].dtype)


def _mod(x: Sequence[Array], a: Attributes) -> Any:
    return (np.fmod if a.get("fmod") else np.mod)(x[0], x[1])


def _slice(x: Sequence[Array], a: Attributes) -> Any:
    if len(x) == 1:
        starts, ends = a["starts"], a["ends"]
        axes, steps = a.get("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = x[1].tolist(), x[2].tolist()
        axes = x[3].tolist() if len(x) > 3 and x[3] is not None else range(len(starts))
        steps = x[4].tolist() if len(x) > 4 and x[4] is not None else [1] * len(starts)
    cut = [slice(None)] * x[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        backwards = step < 0 and end < -x[0].shape[axis]
        cut[axis] = slice(start, None if backwards else end, step)
    return x[0][tuple(cut)]


def _unsqueeze(x: Sequence[Array], a: Attributes) -> Any:
    axes = _axes(x, a, 1) or ()
    rank = x[0].ndim + len(axes)
    return np.expand_dims(x[0], tuple(k % rank for k in axes))


def _reshape(x: Sequence[Array], a: Attributes) -> Any:
    target = [
        x[0].shape[k] if n == 0 and not a.get("allowzero") else int(n) for k, n in enumerate(x[1])
    ]
    return x[0].reshape(target)


def _constant_of_shape(x: Sequence[Array], a: Attributes) -> Any:
    size = int(np.prod(x[0], dtype=np.int64))
    if size > LIMIT:
        return None
    value = a.get("value")
    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return np.full([int(n) for n in x[0]], array.reshape(-1)[0], array.dtype)


def _expand(x: Sequence[Array], a: Attributes) -> Any:
    target = np.broadcast_shapes(x[0].shape, tuple(int(n) for n in x[1]))
    return np.broadcast_to(x[0], target) if np.prod(target, dtype=np.int64) <= LIMIT else None


def _range(x: Sequence[Array], a: Attributes) -> Any:
    start, stop, step = (v.reshape(()).item() for v in x)
    too_long = step == 0 or abs((stop - start) / step) > LIMIT
    return None if too_long else np.arange(start, stop, step).astype(x[0].dtype)


def _reduce(function: Any) -> Function:
    def apply(x: Sequence[Array], a: Attributes) -> Any:
        axes = _axes(x, a, 1) or None  # an empty list is none at all
        if axes is None and a.get("noop_with_empty_axes"):
            return x[0]
        return function(x[0], axis=axes, keepdims=bool(a.get("keepdims", 1))).astype(x[0].dtype)

    return apply


def _scatter_nd(x: Sequence[Array], a: Attributes) -> Any:
    if a.get("reduction", b"none") != b"none":
        return None
    result = x[0].copy()
    result[tuple(np.moveaxis(x[1], -1, 0))] = x[2]
    return result


def _trilu(x: Sequence[Array], a: Attributes) -> Any:
    k = int(x[1].reshape(())) if len(x) > 1 else 0
    return np.triu(x[0], k) if a.get("upper", 1) else np.tril(x[0], k)


def _cast(x: Sequence[Array], a: Attributes) -> Any:
    return x[0].astype(helper.tensor_dtype_to_np_dtype(a["to"]))


def _gather(x: Sequence[Array], a: Attributes) -> Any:
    return np.take(x[0], x[1].astype(np.int64), axis=a.get("axis", 0))


def _squeeze(x: Sequence[Array], a: Attributes) -> Any:
    return np.squeeze(x[0], _axes(x, a, 1))


def _cumsum(x: Sequence[Array], a: Attributes) -> Any:
    return None if a else np.cumsum(x[0], axis=int(x[1].reshape(())), dtype=x[0].dtype)


def _clip(x: Sequence[Array], a: Attributes) -> Any:
    low = x[1] if len(x) > 1 and x[1] is not None else a.get("min", -np.inf)
    high = x[2] if len(x) > 2 and x[2] is not None else a.get("max", np.inf)
    return np.clip(x[0], low, high).astype(x[0].dtype)


FOLD: Final[dict[str, Function]] = {
    "Abs": lambda x, a: np.abs(x[0]),
    "Add": lambda x, a: x[0] + x[1],
    "And": lambda x, a: x[0] & x[1],
    "Cast": _cast,
    "Ceil": lambda x, a: np.ceil(x[0]),
    "Clip": _clip,
    "Concat": lambda x, a: np.concatenate(list(x), axis=a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "Div": _div,
    "Equal": lambda x, a: x[0] == x[1],
    "Expand": _expand,
    "Flatten": lambda x, a: x[0].reshape(int(np.prod(x[0].shape[: a.get("axis", 1)])), -1),
    "Floor": lambda x, a: np.floor(x[0]),
    "Gather": _gather,
    "Greater": lambda x, a: x[0] > x[1],
    "GreaterOrEqual": lambda x, a: x[0] >= x[1],
    "Identity": lambda x, a: x[0],
    "Less": lambda x, a: x[0] < x[1],
    "LessOrEqual": lambda x, a: x[0] <= x[1],
    "Max": lambda x, a: reduce(np.maximum, x),
    "Min": lambda x, a: reduce(np.minimum, x),
    "Mod": _mod,
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "NonZero": lambda x, a: np.array(np.nonzero(x[0]), np.int64),
    "Not": lambda x, a: ~x[0],
    "Or": lambda x, a: x[0] | x[1],
    "Pow": lambda x, a: np.power(x[0], x[1]).astype(x[0].dtype),
    "Range": _range,
    "Reciprocal": lambda x, a: (1 / x[0]).astype(x[0].dtype),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Round": lambda x, a: np.round(x[0]),
    "ScatterND": _scatter_nd,
    "Sign": lambda x, a: np.sign(x[0]),
    "Slice": _slice,
    "Sqrt": lambda x, a: np.sqrt(x[0]).astype(x[0].dtype),
    "Squeeze": _squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tile": lambda x, a: np.tile(x[0], x[1]),
    "Transpose": lambda x, a: np.transpose(x[0], a.get("perm")),
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, a: np.where(x[0], x[1], x[2]),
    "Xor": lambda x, a: x[0] ^ x[1],
}

# Operators that turn the sizes of a value into a value; a size that is not known gives None.
SIZES: Final[dict[str, Callable[[Shape, Attributes], Array]]] = {
    "Shape": lambda shape, a: np.array(shape[a.get("start", 0) : a.get("end", len(shape))], object),
    "Size": lambda shape, a: np.array(None if None in shape else math.prod(_known(shape)), object),
}


def _known(shape: Shape) -> list[int]:
    return [n for n in shape if n is not None]


def is_small(shape: Sequence[int], dtype: Any) -> bool:
    """Whether a constant of this shape counts as shape arithmetic rather than as a weight.

    No tokens of 32 channels (registers that a transformer has none of) are a weight, too.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if np.dtype(dtype).kind in "iub":
        return size <= LIMIT
    return size <= FLOAT_LIMIT and (size > 0 or len(shape) <= 1)


def evaluate(node: Node, operands: Sequence[Array | None]) -> Array | None:
    """What a node gives for these operands, if its operator is in ``FOLD`` and the result small."""
    function = FOLD.get(node.op)
    if function is None or any(x is not None and x.size > LIMIT for x in operands):
        return None
    with np.errstate(all="ignore"):
        try:
            result = function(operands, node.attributes)  # type: ignore[arg-type]
        except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError):
            return None
    if result is None:
        return None
    result = np.asarray(result)
    return result if is_small(result.shape, result.dtype) else None
