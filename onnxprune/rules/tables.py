"""The rule table: one row per operator, a line or a function that returns one.

Rows are alphabetical inside a section. See ``onnxprune.notation`` for what a line says.
"""

from __future__ import annotations

from typing import Final

from onnxprune.rules import folding, linear, shaping
from onnxprune.rules.site import Computed

ELEMENTWISE: Final = "... -> ..."
POOL: Final = "n c * -> n c *"
MIXES, SUMS = folding.reduce("!"), folding.reduce("")
LSTM: Final = (
    "s b i, _d (_q h) i, _d (_q h) h, _d (_p h), ~, _d b h, _d b h, _d (_r h) -> s _d b h, _d b h, _d b h"
    " | hidden_size=h | macs=s _d b _q h i + s _d b _q h h"
)
RNN: Final = (
    "s b i, _d h i, _d h h, _d (_p h), ~, _d b h -> s _d b h, _d b h"
    " | hidden_size=h | macs=s _d b h i + s _d b h h"
)

_ELEMENTWISE: Final = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu
    Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual
    Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
""".split()
_SCALAR_TAIL: Final = {"Clip": "..., ~, ~ -> ...", "Dropout": "..., ~, ~ -> ..., ..."}

TABLE: Final[dict[str, str | Computed]] = {
    **dict.fromkeys(_ELEMENTWISE, ELEMENTWISE),
    **_SCALAR_TAIL,
    # contractions
    "Conv": linear.conv,
    "ConvTranspose": "n (g i) *_x, (g i) o *_k, (g o) -> n (g o) * | group=g"
    " | macs=n g i o *_x *_k",
    "DeformConv": linear.deform_conv,
    "Einsum": linear.einsum,
    "GRU": linear.recurrent(LSTM.replace(", d b h, d (_r h) ->", " ->")),
    "Gemm": linear.gemm,
    "LSTM": linear.recurrent(LSTM),
    "MatMul": linear.matmul,
    "RNN": linear.recurrent(RNN),
    # normalisations
    "BatchNormalization": "n c *s, c, c, c, c -> n c *s, c, c, c, c",
    "GroupNormalization": folding.group_norm,
    "InstanceNormalization": "n c *s!, c, c -> n c *s!",
    "LRN": "n c! *s -> n c! *s",
    "LayerNormalization": folding.layer_norm,
    "LpNormalization": folding.along_axis(-2),
    "MeanVarianceNormalization": folding.mean_variance,
    "RMSNormalization": folding.layer_norm,
    # along an axis
    "ArgMax": folding.arg_reduce,
    "ArgMin": folding.arg_reduce,
    "CumSum": "*, ~ -> *",
    "Hardmax": folding.along_axis(-1),
    "LogSoftmax": folding.along_axis(-1),
    "Softmax": folding.along_axis(-1),
    "TopK": folding.top_k,
    "Trilu": folding.trilu,
    # reductions
    "ReduceL1": SUMS,
    "ReduceL2": SUMS,
    "ReduceLogSum": SUMS,
    "ReduceLogSumExp": MIXES,
    "ReduceMax": MIXES,
    "ReduceMean": MIXES,
    "ReduceMin": MIXES,
    "ReduceProd": MIXES,
    "ReduceSum": SUMS,
    "ReduceSumSquare": SUMS,
    # pooling and resampling
    "AveragePool": POOL,
    "GlobalAveragePool": POOL,
    "GlobalLpPool": POOL,
    "GlobalMaxPool": POOL,
    "GridSample": "n c *, n * -> n c *",
    "LpPool": POOL,
    "MaxPool": POOL,
    "MaxRoiPool": "n c *, ~ -> r c *",
    "MaxUnpool": "n c *, n c *, ~ -> n c *",
    "Resize": shaping.resize,
    "RoiAlign": "n c *, r _, r -> r c *",
    "Upsample": shaping.resize,
    # cutting, joining, rearranging
    "Concat": shaping.concat,
    "ConstantOfShape": shaping.constant_of_shape,
    "DepthToSpace": shaping.depth_to_space,
    "Expand": shaping.expand,
    "Flatten": shaping.flatten,
    "Pad": shaping.pad,
    "Reshape": shaping.reshape,
    "Slice": shaping.slice_,
    "SpaceToDepth": "n c (h _p) (w _q) -> n (_p _q c) h w | blocksize=_p",
    "Split": shaping.split,
    "Squeeze": shaping.squeeze,
    "Tile": shaping.tile,
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.unsqueeze,
    # gathers and scatters
    "Gather": folding.gather,
    "GatherElements": "*, *_i -> *_i",
    "GatherND": folding.gather_nd,
    "OneHot": folding.one_hot,
    "ScatterElements": "*_d, *_i, *_i -> *_d",
    "ScatterND": folding.scatter_nd,
    # quantisation
    "DequantizeLinear": folding.quantize,
    "QuantizeLinear": folding.quantize,
    # sizes carry no channels
    "Range": "~, ~, ~ -> *",
    "Shape": "~ -> *",
    "Size": "* -> ~",
}

FROZEN: Final[dict[str, str]] = {
    "Compress": "it picks by run-time conditions",
    "If": "bodies of If are not looked into yet",
    "Loop": "bodies of Loop are not looked into yet",
    "NonMaxSuppression": "it picks boxes at run time",
    "NonZero": "it picks positions at run time",
    "Scan": "bodies of Scan are not looked into yet",
    "SequenceAt": "sequences are not looked into",
    "SequenceConstruct": "sequences are not looked into",
    "SplitToSequence": "sequences are not looked into",
    "ConcatFromSequence": "sequences are not looked into",
    "Unique": "it picks positions at run time",
}

# Operators whose kernels work on blocks of channels (NCHWc): kept counts are rounded for them.
BLOCKED: Final = frozenset({"Conv", "ConvTranspose", "DeformConv"})
# Operators whose results depend on the order of their operand's values: compared with care.
ORDERING: Final = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK"})
# Operators that give a value another name.
RENAMES: Final = frozenset({"Identity"})
# Operators that turn the sizes of a value into a value.
SIZES: Final = frozenset({"Shape", "Size"})
