"""How far two runs are apart: relative errors, and what a comparison is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from onnxprune.model import Array, Model

# The largest relative error that rounding alone may make, by the coarsest float type of the
# weights. Sums change their order when terms drop out; float32 keeps 6e-8 of each. The half types
# are compared as float32 (see onnxprune.widen); these bounds are for runs in the type itself.
TOLERANCE: Final[Mapping[int, float]] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-5,
    TensorProto.FLOAT16: 1e-2,
    TensorProto.BFLOAT16: 1e-1,
}
HALF: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# A net that magnifies rounding is given this multiple of the error that it makes of its own when
# nothing but the order of additions changes, up to a limit.
NOISE_FACTOR: Final = 4.0
NOISE_LIMIT: Final = 1e-3
INCOMPARABLE: Final = sys.float_info.max  # as an error; infinity has no JSON
BLOCK: Final = 2**20  # numbers compared at once
MANY: Final = 1000
FEW: Final = 3  # different numbers that a result has at least, if comparing it says something


def coarsest(model: Model) -> int:
    """The coarsest float type of the model's parameters, in onnx's numbers."""
    found = {param.dtype for param in model.params.values() if param.shape}
    return max(found & TOLERANCE.keys(), key=TOLERANCE.__getitem__, default=TensorProto.FLOAT)


def relative_error(found: Any, expected: Any, least: float = 0.0) -> float:
    """max |found - expected| / max |expected|; INCOMPARABLE where shapes or types differ.

    The divisor is ``least`` at least.

    NaN equals NaN and infinity equals itself; apart from that they are INCOMPARABLE, too. Integers,
    booleans and strings are equal (0) or not (1). Where everything expected is 0, the error is
    absolute. Sequences and maps give the largest error of their elements.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return INCOMPARABLE
        return max((relative_error(found[k], expected[k], least) for k in expected), default=0.0)
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return INCOMPARABLE
        pairs = zip(found, expected, strict=True)
        return max((relative_error(a, b, least) for a, b in pairs), default=0.0)
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return INCOMPARABLE
    if not is_float(b):
        return 0.0 if np.array_equal(a, b) else 1.0
    return _float_error(a, b, least)


def differing(found: Any, expected: Any) -> float:
    """The share of elements that differ by more than rounding; 1 where shapes differ."""
    if found.shape != expected.shape:
        return 1.0
    if not expected.size:
        return 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) if is_float(expected) else 0.0
    close = np.isclose(a, b, rtol=0, atol=scale * TOLERANCE[TensorProto.FLOAT], equal_nan=True)
    return float(1 - close.mean())


def is_float(array: Any) -> bool:
    """Whether the values are floating-point numbers, bfloat16 among them."""
    return isinstance(array, np.ndarray) and (
        array.dtype.kind == "f" or "float" in array.dtype.name
    )


def _float_error(a: Array, b: Array, least: float) -> float:
    x, y = a.reshape(-1), b.reshape(-1)
    difference, scale = 0.0, least
    for start in range(0, y.size, BLOCK):
        found = x[start : start + BLOCK].astype(np.float64)
        wanted = y[start : start + BLOCK].astype(np.float64)
        usual = np.isfinite(found) & np.isfinite(wanted)
        if not usual.all():
            if not np.array_equal(found[~usual], wanted[~usual], equal_nan=True):
                return INCOMPARABLE
            found, wanted = found[usual], wanted[usual]
        scale = max(scale, float(np.abs(wanted).max(initial=0.0)))
        difference = max(difference, float(np.abs(found - wanted).max(initial=0.0)))
    return difference / (scale or 1.0)


def count(value: Any) -> int:
    """How many finite floating-point numbers a result holds."""
    if isinstance(value, dict):
        return sum(count(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(count(inner) for inner in value)
    return int(np.isfinite(value).sum()) if is_float(value) else 0


def is_blind(runs: Sequence[Any]) -> bool:
    """Whether comparing a result says little: it hardly varies, or ignores the inputs.

    A head whose weights are 0 gives its bias whatever comes before it; a saturated one gives
    nothing but 0 and 1.

    Args:
        runs: the result (n, ...) of two or more runs on different inputs.
    """
    if not all(is_float(run) for run in runs):
        return not any(count(run) for run in runs)
    if _hardly_varies([run.reshape(-1) for run in runs]):
        return True
    if len(runs) > 1 and all(run.shape == runs[0].shape for run in runs):
        return all(np.array_equal(run, runs[0], equal_nan=True) for run in runs[1:])
    return all(run.ndim > 0 and len(run) > 1 and np.all(run == run[:1]) for run in runs)


def _hardly_varies(runs: Sequence[Array]) -> bool:
    """Whether flat arrays hold fewer than FEW different finite numbers."""
    seen: set[float] = set()
    total = 0
    for run in runs:
        for start in range(0, run.size, BLOCK):
            block = run[start : start + BLOCK]
            block = block[np.isfinite(block)]
            total += block.size
            seen.update(np.unique(block[:: 1 + block.size // MANY]).tolist())
            if len(seen) < FEW:
                seen.update(np.unique(block).tolist())
            if len(seen) >= FEW:
                return False
    return len(seen) < max(total, 2)
