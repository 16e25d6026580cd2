"""Rows of com.microsoft operators that fused files hold; one row per operator."""

from __future__ import annotations

from typing import Final

from onnxprune.rules import attention, experts, folding, integers, linear, packed
from onnxprune.rules.site import Computed, Site

ELEMENTWISE: Final = "... -> ..."


def fused_matmul(site: Site) -> str:
    """MatMul with transposed operands; the axis before the last may stand before the batch."""
    a, b = (
        f"{x} ... {y}" if site.attribute(f"transBatch{side}", 0) else f"... {x} {y}"
        for side, (x, y) in zip(
            "AB",
            (
                "km" if site.attribute("transA", 0) else "mk",
                "nk" if site.attribute("transB", 0) else "kn",
            ),
            strict=True,
        )
    )
    return f"{a}, {b} -> ... m n | macs=... m k n"


DYNAMIC_LSTM: Final = (
    "_s b! i!, _d i! (_q h!), _d h! (_q h!), _d (_p h!), b!, _d b! h!, _d b! h!, _d (_r h!)"
    " -> _s _d b! h!, _d b! h!, _d b! h! | hidden_size=h"
    " | macs=_s _d b _q h i + _s _d b _q h h"
)
SCALED: Final = "..., ~, ~, ~, ~ -> ..."  # a value, its scale and zero point, those of the result

_ROWS: Final[dict[str, str | Computed]] = {
    # elementwise
    "BiasGelu": ELEMENTWISE,
    "FastGelu": ELEMENTWISE,
    "GatedAdd": "*s c, *s c, *s 1 -> *s c",
    "Gelu": ELEMENTWISE,
    "QuickGelu": ELEMENTWISE,
    "ScaledSiLU": "..., ~ -> ...",
    # contractions
    "FusedConv": linear.conv,
    "FusedGemm": linear.gemm,
    "FusedMatMul": fused_matmul,
    "TransposeMatMul": fused_matmul,
    # fused transformer blocks
    "Attention": attention.packed,
    "DecoderMaskedMultiHeadAttention": attention.decoder,
    "EmbedLayerNormalization": attention.embed_norm,
    "GroupQueryAttention": attention.grouped,
    "MoE": experts.moe,
    "MultiHeadAttention": attention.multi_head,
    "QAttention": attention.packed_integers,
    "QMoE": experts.quantised,
    "RotaryEmbedding": attention.rotary,
    "SkipLayerNormalization": attention.skip_norm,
    "SkipSimplifiedLayerNormalization": attention.skip_norm,
    # pooling and resampling
    "GridSample": "n c *, n * -> n c *",
    "NhwcMaxPool": "n *_x c -> n *_y c",
    # integers
    "DequantizeLinear": folding.quantize,
    "DynamicQuantizeLSTM": integers.lstm(DYNAMIC_LSTM),
    "DynamicQuantizeMatMul": integers.dynamic_matmul,
    "GatherBlockQuantized": packed.gather_blocks,
    "MatMulInteger16": linear.matmul,
    "MatMulIntegerToFloat": integers.matmul_to_float,
    "MatMulNBits": integers.blocks,
    "QGemm": integers.qgemm,
    "QLinearAdd": "..., ~, ~, ..., ~, ~, ~, ~ -> ...",
    "QLinearAveragePool": integers.pool,
    "QLinearConcat": integers.concat,
    "QLinearConv": integers.qlinear_conv,
    "QLinearGlobalAveragePool": integers.pool,
    "QLinearLeakyRelu": SCALED,
    "QLinearMul": "..., ~, ~, ..., ~, ~, ~, ~ -> ...",
    "QLinearSigmoid": SCALED,
    "QLinearSoftmax": integers.softmax,
    "QLinearWhere": "..., ..., ~, ~, ..., ~, ~, ~, ~ -> ...",
    "QuantizeLinear": folding.quantize,
}
TABLE: Final[dict[str, str | Computed]] = {
    **{f"com.microsoft::{op}": row for op, row in _ROWS.items()},
    # ONNX Runtime's own, though without its domain
    "SimplifiedLayerNormalization": folding.layer_norm,
}
