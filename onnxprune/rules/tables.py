"""The rule table: one row per operator, a line or a function that returns one.

Rows are alphabetical inside a section. See docs/rules.md for how to read and write one, and
``onnxprune.notation`` for the grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from onnxprune.rules import attention, folding, integers, linear, reshaping, shaping
from onnxprune.rules.site import Computed

ELEMENTWISE: Final = "... -> ..."
POOL: Final = "n c * -> n c *"
MIXES, SUMS = folding.reduce("!"), folding.reduce("")
LSTM: Final = (
    "_s b i, _d (_q h) i, _d (_q h) h, _d (_p h), b, _d b h, _d b h, _d (_r h)"
    " -> _s _d b h, _d b h, _d b h | hidden_size=h | macs=_s _d b _q h i + _s _d b _q h h"
)
GRU: Final = (
    "_s b i, _d (_q h) i, _d (_q h) h, _d (_p h), b, _d b h"
    " -> _s _d b h, _d b h | hidden_size=h | macs=_s _d b _q h i + _s _d b _q h h"
)
RNN: Final = (
    "_s b i, _d h i, _d h h, _d (_p h), b, _d b h"
    " -> _s _d b h, _d b h | hidden_size=h | macs=_s _d b h i + _s _d b h h"
)

_ELEMENTWISE: Final = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu GreaterOrEqual HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu LessOrEqual Log Max Mean Min Mish Mod Neg Not Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sum SwiGLU Swish Tan Tanh
    ThresholdedRelu Where
"""
_LEGACY: Final = "Add And Div Equal Greater Less Mul Or Pow Sub Xor"

TABLE: Final[dict[str, str | Computed]] = {
    # elementwise
    **dict.fromkeys(_ELEMENTWISE.split(), ELEMENTWISE),
    **dict.fromkeys(_LEGACY.split(), folding.legacy_broadcast),
    "CastLike": "..., ~ -> ...",
    "Clip": "..., ~, ~ -> ...",
    "Dropout": "..., ~, ~ -> ..., ...",
    "PRelu": folding.prelu,
    # contractions
    "Attention": attention.attention,
    "Conv": linear.conv,
    "ConvTranspose": "n (g i) *_x, (g i) o *_k, (g o) -> n (g o) * | group=g"
    " | macs=n g i o *_x *_k",
    "DeformConv": linear.deform_conv,
    "Einsum": linear.einsum,
    "GRU": linear.recurrent(GRU),
    "Gemm": linear.gemm,
    "LSTM": linear.recurrent(LSTM),
    "MatMul": linear.matmul,
    "RNN": linear.recurrent(RNN),
    # normalisations
    "BatchNormalization": folding.batch_norm,
    "GroupNormalization": folding.group_norm,
    "InstanceNormalization": "n c *s!, c, c -> n c *s!",
    "LRN": "n c! *s -> n c! *s",
    "LayerNormalization": folding.layer_norm,
    "LpNormalization": folding.along_axis,
    "MeanVarianceNormalization": folding.mean_variance,
    "RMSNormalization": folding.layer_norm,
    # along an axis
    "ArgMax": folding.arg_reduce,
    "ArgMin": folding.arg_reduce,
    "CumProd": folding.cumulate,
    "CumSum": folding.cumulate,
    "Hardmax": folding.softmax,
    "LogSoftmax": folding.softmax,
    "ReverseSequence": folding.reverse_sequence,
    "Softmax": folding.softmax,
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
    "MaxPool": folding.max_pool,
    "MaxRoiPool": "_n c *, r _ -> r c *",
    "MaxUnpool": "n! c! *, n! c! *, ~ -> n! c! *_y | [2]=n c *_y",
    "Resize": shaping.resize,
    "RoiAlign": "_n c *, r _, r -> r c *",
    "Upsample": shaping.resize,
    # cutting, joining, rearranging
    "Col2Im": "n (c _k) *, ~, ~ -> n c *",
    "Concat": shaping.concat,
    "ConstantOfShape": shaping.constant_of_shape,
    "DepthToSpace": shaping.depth_to_space,
    "Expand": shaping.expand,
    "Flatten": reshaping.flatten,
    "Pad": shaping.pad,
    "Reshape": reshaping.reshape,
    "RotaryEmbedding": attention.rotary_embedding,
    "Slice": shaping.slice_,
    "SpaceToDepth": shaping.space_to_depth,
    "Split": shaping.split,
    "Squeeze": shaping.squeeze,
    "Tile": shaping.tile,
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.unsqueeze,
    # gathers and scatters
    "Gather": folding.gather,
    "GatherElements": folding.gather_elements,
    "GatherND": folding.gather_nd,
    "OneHot": folding.one_hot,
    "Scatter": folding.scatter_elements,
    "ScatterElements": folding.scatter_elements,
    "ScatterND": folding.scatter_nd,
    # quantisation
    "ConvInteger": integers.conv_integer,
    "DequantizeLinear": folding.quantize,
    "DynamicQuantizeLinear": "*s! -> *s!, ~, ~",
    "MatMulInteger": integers.matmul_integer,
    "QLinearConv": integers.qlinear_conv,
    "QLinearMatMul": integers.qlinear_matmul,
    "QuantizeLinear": folding.quantize,
    # sizes carry no channels
    "Constant": "~ -> *",
    "EyeLike": "* -> *",
    "Range": "~, ~, ~ -> *",
    "Shape": "~ -> *",
    "Size": "* -> ~",
}

# Operators whose kernels work on blocks of channels (NCHWc): kept counts are rounded for them.
BLOCKED: Final = frozenset({"Conv", "ConvTranspose", "DeformConv"})
# Operators whose results depend on the order of their operand's values: compared with care.
ORDERING: Final = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK"})
# Operators to which stored integers of 32 bits are numbers; what others read are ids, positions.
DEQUANTIZES: Final = frozenset(
    {
        *("DequantizeLinear", "QLinearConv", "com.microsoft::DequantizeLinear"),
        *("com.microsoft::QGemm", "com.microsoft::QLinearConv"),
    }
)
# Attributes of one number that are 1 where they are absent; other clauses state lists.
ONE_BY_DEFAULT: Final = frozenset({"group"})
# Operators whose result is linear in either of the first two operands; a third one is added.
LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
# What their attributes have to be, for the product to be that of the operands.
NEUTRAL: Final = {"alpha": 1.0, "beta": 1.0}
# Those that read neighbourhoods: how their operand is unfolded (see onnxprune.windows).
UNFOLDED: Final = {"Conv": "conv", "ConvTranspose": "transposed"}
# Operators that add two values, and that multiply them.
ADDS: Final = frozenset({"Add"})
SCALES: Final = frozenset({"Mul"})
# Norms: the position of their scale; a shift follows it.
SCALED: Final = dict.fromkeys(
    ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"), 1
) | {"RMSNormalization": 1, "com.microsoft::SimplifiedLayerNormalization": 1}
# Recurrent operators, and whether their last gate may scale the state before it is multiplied.
GATES: Final = {"GRU": True, "LSTM": False, "RNN": False}
# Operators that scale and shift each channel by stored vectors: operands 1 to 4.
NORMS: Final = frozenset({"BatchNormalization"})
# Operators that make probabilities of class scores: a loss reads the scores.
PROBABILITIES: Final = frozenset({"Softmax"})
# Operators that give other values in each run, and those that do where an operand is there that
# may say that they are trained: what they make of constants is none.
DRAWS: Final = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        *("RandomUniformLike", "com.microsoft::Sampling"),
    }
)
DRAWS_IN_TRAINING: Final = {"Dropout": 2}
# Operators that fill a value of stated size with one number.
FILLS: Final = frozenset({"ConstantOfShape"})
# Operators of whose results data decides the size.
SIZED_BY_DATA: Final = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
# Operands whose values say how large the results are.
STATING: Final[Mapping[str, tuple[int, ...]]] = {
    **dict.fromkeys((op for op in TABLE if op.startswith("Reduce")), (1,)),
    **dict.fromkeys(("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow"), (0,)),
    **dict.fromkeys(("CenterCropPad", "Expand", "OneHot", "Reshape", "Split"), (1,)),
    **dict.fromkeys(("SplitToSequence", "Squeeze", "Tile", "TopK", "Unsqueeze"), (1,)),
    **dict.fromkeys(("MelWeightMatrix", "Range"), (0, 1, 2)),
    "AffineGrid": (1,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "MaxUnpool": (2,),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "STFT": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Upsample": (1,),
}
# Operators that choose at run time which rows there are, and in what order.
PICKING: Final = ORDERING | {"Compress", "Unique"}
# Operators that put values side by side, which may differ in size by orders of magnitude.
JOINS: Final = frozenset({"Concat"})
# Operators whose results jump where an operand moves by one rounding; casts do where they cut off.
JUMPS: Final = ORDERING | {
    *("Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "QuantizeLinear", "Round", "Sign"),
    *("com.microsoft::DynamicQuantizeLSTM", "com.microsoft::DynamicQuantizeMatMul"),
    "com.microsoft::QuantizeLinear",
}
CASTS: Final = frozenset({"Cast", "CastLike"})
# Operators that round, with which ONNX Runtime fuses what stands before them.
ROUNDS: Final = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
# Those that find their scale in the data: what one kernel rounds otherwise scales all the rest.
ROUNDS_BY_DATA: Final = frozenset({"DynamicQuantizeLinear"})
# Operators that keep every element: their operand and result have the same number of them.
REARRANGES: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# Operators that give a value another name.
RENAMES: Final = frozenset({"Identity"})
# Operators that only put the axes of a constant into another order (attribute perm).
TURNS: Final = frozenset({"Transpose"})
# Operators that move elements, and compute none.
MOVES: Final = REARRANGES | RENAMES | JOINS | {"Expand", "Gather", "Slice", "Split", "Tile"}
# Operators whose kernels round results as if these were at least so large: ONNX Runtime computes
# a sigmoid as 0.5 + something, so that values near 0 are rounding errors of 6e-8.
ROUNDS_AT: Final = {"Sigmoid": 0.1}
# Operators whose results are no larger than their first operand, and rounded as that is.
KEEPS_SIZE: Final = (MOVES - JOINS) | {"ReduceMean"}
# Operators with a computed row of which onnx infers no shape: the first result has the first
# operand's.
SAME_SHAPE: Final = frozenset(
    {"GroupNormalization", "com.microsoft::SimplifiedLayerNormalization"}
    | {f"ai.onnx.ml::{op}" for op in ("Binarizer", "Imputer", "Normalizer", "Scaler")}
)
# Those of them that give float32, whatever they are given.
FLOAT_RESULT: Final = frozenset({"ai.onnx.ml::Normalizer", "ai.onnx.ml::Scaler"})
# Operators that onnx does not know, and those whose results have the same shape: with the positions
# of the operands that those read. Attributes that only the first have change nothing by default.
INFERRED_AS: Final = {
    "com.microsoft::FusedConv": ("Conv", (0, 1, 2)),
    "com.microsoft::FusedGemm": ("Gemm", (0, 1, 2)),
    "com.microsoft::QLinearAveragePool": ("AveragePool", (0,)),
    "com.microsoft::QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
}
CHANNELS_LAST: Final = "channels_last"  # the attribute that makes them differ
# Operators of com.microsoft whose result has the element type of another operand than the first.
TYPED_BY: Final = {
    "com.microsoft::DequantizeLinear": 1,
    "com.microsoft::EmbedLayerNormalization": 2,
    "com.microsoft::GatherBlockQuantized": 2,
    "com.microsoft::MatMulIntegerToFloat": 2,
    "com.microsoft::QAttention": 3,
    "com.microsoft::QLinearConcat": 1,
    "com.microsoft::QuantizeLinear": 2,
}
# Operators of which ONNX Runtime's kernel may write its result over an operand before it reads it.
OVERWRITES: Final = {"com.microsoft::MoE": 0, "com.microsoft::QMoE": 0}
# Where operators read a weight of integers, its scale (None: they don't), its zero point, and the
# axis of these, by the attributes.
Axis = Callable[[Mapping[str, Any]], int]
FIRST: Final[Axis] = lambda _: 0  # noqa: E731
LAST: Final[Axis] = lambda _: -1  # noqa: E731
STATED: Final[Axis] = lambda own: int(own.get("axis", 1))  # noqa: E731
COLUMNS: Final[Axis] = lambda own: int(own.get("transB", 0)) - 1  # noqa: E731
QUANTISED: Final[Mapping[str, tuple[int, int | None, int, Axis]]] = {
    "ConvInteger": (1, None, 3, FIRST),
    "DequantizeLinear": (0, 1, 2, STATED),
    "MatMulInteger": (1, None, 3, LAST),
    "QLinearConv": (3, 4, 5, FIRST),
    "QLinearMatMul": (3, 4, 5, LAST),
    "com.microsoft::DequantizeLinear": (0, 1, 2, STATED),
    "com.microsoft::DynamicQuantizeMatMul": (1, 2, 3, LAST),
    "com.microsoft::MatMulIntegerToFloat": (1, 3, 5, LAST),
    "com.microsoft::QAttention": (1, 4, 7, LAST),
    "com.microsoft::QGemm": (3, 4, 5, COLUMNS),
    "com.microsoft::QLinearConv": (3, 4, 5, FIRST),
}
# Where operators read weights of which several share a byte, in blocks.
PACKED: Final = {"com.microsoft::MatMulNBits": 1}
# The same where a byte is an index of the last axis (..., bytes): the weights, with their scales
# (..., blocks) and zero points, and attributes: the first that is there states the bits.
PACKED_BYTES: Final[Mapping[str, Mapping[int, tuple[int, int, tuple[str, ...]]]]] = {
    "com.microsoft::GatherBlockQuantized": {0: (2, 3, ("bits",))},
    "com.microsoft::QMoE": {
        2: (3, 11, ("fc1_expert_weight_bits", "expert_weight_bits")),
        5: (6, 12, ("fc2_expert_weight_bits", "expert_weight_bits")),
    },
}
# Operators that pick among the indices of an operand's last axis: the operand, and the attribute
# that says how many; so many have to stay.
PICKS_AMONG: Final = {"com.microsoft::MoE": (1, "k"), "com.microsoft::QMoE": (1, "k")}
# Nodes that hold a constant of the file.
CONSTANTS: Final = frozenset({"Constant"})
# Operators that look ids up along one axis, index by index along the others.
GATHERS_ALONG: Final = frozenset({"GatherElements"})
# Operators that don't read the values of what their row marks with ~: type or sizes are enough.
UNREAD: Final = frozenset({"CastLike", "Shape"})
