"""Rows of com.microsoft operators that fused files hold; one row per operator."""

from __future__ import annotations

from typing import Final

from onnxprune.rules import folding, linear
from onnxprune.rules.site import Computed, Site, Unprunable

ELEMENTWISE: Final = "... -> ..."


def fused_matmul(site: Site) -> str:
    """MatMul with transposed operands."""
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        raise Unprunable("it transposes batch axes")
    a = "... k m" if site.attribute("transA", 0) else "... m k"
    b = "... n k" if site.attribute("transB", 0) else "... k n"
    return f"{a}, {b} -> ... m n | macs=... m k n"


TABLE: Final[dict[str, str | Computed]] = {
    "com.microsoft::BiasGelu": ELEMENTWISE,
    "com.microsoft::FastGelu": ELEMENTWISE,
    "com.microsoft::FusedConv": linear.conv,
    "com.microsoft::FusedGemm": linear.gemm,
    "com.microsoft::FusedMatMul": fused_matmul,
    "com.microsoft::Gelu": ELEMENTWISE,
    "com.microsoft::GridSample": "n c *, n * -> n c *",
    "com.microsoft::QuickGelu": ELEMENTWISE,
    # ONNX Runtime's own, though without its domain
    "SimplifiedLayerNormalization": folding.layer_norm,
}
