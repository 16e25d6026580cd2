"""The table of the bridge: for each operator the function of torch that does the same.

A row gets the node (see ``onnxprune.torch_bridge.at.At``) and its operands, None for one that is
absent, and returns the result, or a tuple of results.
"""

from __future__ import annotations

from typing import Any, Final

from onnxprune.torch_bridge.ops import (
    attention,
    control,
    elementwise,
    integers,
    linear,
    moving,
    norms,
    outside,
    pooling,
    recurrent,
    resize,
)

_CONTRIB: Final[dict[str, Any]] = {
    **attention.CONTRIB,
    **elementwise.CONTRIB,
    **linear.CONTRIB,
    **norms.CONTRIB,
}
TABLE: Final[dict[str, Any]] = {
    **attention.ROWS,
    **elementwise.ROWS,
    **integers.ROWS,
    **linear.ROWS,
    **moving.ROWS,
    **norms.ROWS,
    **outside.ROWS,
    **pooling.ROWS,
    **recurrent.ROWS,
    **resize.ROWS,
    **{f"com.microsoft::{op}": row for op, row in _CONTRIB.items()},
}
# Rows that run the bodies of their node.
CONTROL: Final = control.ROWS
# Operators whose results carry no gradient: they choose, count or compare.
_CHOOSING: Final = """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Constant
    ConstantOfShape Equal EyeLike Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual
    NonZero Not Or Range SequenceEmpty SequenceLength Shape Size Xor
"""
NO_GRADIENT: Final = frozenset(_CHOOSING.split()) | frozenset(outside.NO_GRADIENT)
# Operands that are settings, not weights, though they are stored as floats.
SETTINGS: Final[dict[str, frozenset[int]]] = {
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "Pad": frozenset({2}),
    "QuantizeLinear": frozenset({2}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "RoiAlign": frozenset({1}),
    "Upsample": frozenset({1}),
}
# Operators whose results do not depend on their operands' values.
SIZES: Final = frozenset({"Shape", "Size"})
# Operators that read single numbers as weights of theirs; to others these are part of a formula.
_LAYERS: Final = """
    BatchNormalization Conv ConvTranspose Einsum GRU Gemm GroupNormalization InstanceNormalization
    LSTM LayerNormalization MatMul PRelu RMSNormalization RNN
"""
WEIGHTED: Final = frozenset(_LAYERS.split())
# Operators that a BatchNormalization behind them is folded into, along axis 0 of their weight.
FOLDABLE: Final = frozenset({"Conv"})
RANDOM: Final = frozenset({"Dropout"})
