"""What has no effect in which operator, so that its removal changes nothing."""

from __future__ import annotations

import numpy as np

# Mixing operators for which an index of this value is as good as none: of the first operand, or
# of those that are named.
NEUTRAL: dict[str, float | dict[int, float]] = {
    "DynamicQuantizeLinear": 0.0,
    "com.microsoft::DynamicQuantizeLSTM": 0.0,
    "com.microsoft::DynamicQuantizeMatMul": 0.0,
    "com.microsoft::MoE": {0: 0.0, 1: -np.inf},
    "com.microsoft::QMoE": {0: 0.0, 1: -np.inf},
    "Hardmax": -np.inf,
    "LogSoftmax": -np.inf,
    "LpNormalization": 0.0,
    "ReduceLogSumExp": -np.inf,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceProd": 1.0,
    "Softmax": -np.inf,
}
# Those in which every operand has to be of this value there.
THROUGHOUT = frozenset({"com.microsoft::DynamicQuantizeLSTM"})
# Mixing letters that have no effect where they are 0 throughout, and the scale is the same: by
# default it is one over the root of their number.
SCALED = {
    "Attention": "d",
    "com.microsoft::Attention": "d",
    "com.microsoft::MultiHeadAttention": "d",
    "com.microsoft::QAttention": "d",
}
# Operands that hide keys, and with what; not from queries that see none but earlier ones.
HIDES: dict[str, dict[int, float]] = {
    "Attention": {3: -np.inf},
    "com.microsoft::Attention": {5: -np.inf},
    "com.microsoft::MultiHeadAttention": {5: -np.inf},
    "com.microsoft::QAttention": {5: 0},
}
# Results of mixing operators that nothing mixes: keys and values, behind those of the past.
PLAIN = {
    "Attention": {1, 2},
    "com.microsoft::Attention": {1},
    "com.microsoft::MultiHeadAttention": {1, 2},
    "com.microsoft::QAttention": {1},
}
CAUSAL = frozenset({"is_causal", "unidirectional"})
# Mixing operators to which it makes no difference if each index is there twice.
MEANS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "ReduceMean",
        "SimplifiedLayerNormalization",
        "com.microsoft::EmbedLayerNormalization",
        "com.microsoft::SkipLayerNormalization",
        "com.microsoft::SkipSimplifiedLayerNormalization",
    }
)
# Operands of integers that stand for 0 where they are equal to their zero point, and that operand.
ZERO_POINTS = {
    "ConvInteger": {0: 2, 1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "QLinearConv": {0: 2, 3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "com.microsoft::MatMulIntegerToFloat": {0: 4, 1: 5},
    "com.microsoft::MatMulNBits": {1: 3},
    "com.microsoft::QAttention": {0: 6, 1: 7},
    "com.microsoft::QGemm": {0: 2, 3: 5},
    "com.microsoft::QLinearConv": {0: 2, 3: 5},
}
# Those whose integers hold several numbers each.
PACKED = frozenset({"com.microsoft::MatMulNBits", "com.microsoft::QMoE"})
# What a byte of zeros is in such operands, by the attribute that says how many bits a number has.
ZERO_BYTES = {"com.microsoft::QMoE": ("expert_weight_bits", {5: {4: 0x88, 8: 0x80}})}
# Mixing operators whose operand speaks of what is removed: see test_pooling_and_unpooling.
POINTERS = frozenset({"MaxUnpool"})

# Letters among whose indices an operator picks so many as an attribute says.
PICKED = {"com.microsoft::MoE": ("e", "k"), "com.microsoft::QMoE": ("e", "k")}
# Operators that make a contracted letter from some operands and read it by another one: only that
# one can take its effect away.
READ_BY = {"com.microsoft::MoE": 4, "com.microsoft::QMoE": 5}
