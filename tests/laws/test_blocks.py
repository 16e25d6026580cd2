"""Fused transformer blocks and packed weights end to end: pruned, shrunk and proved."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.model import Array
from tests.laws.cases.build import integers, random

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
X = "(float[2,5,16] x) => (float[A,B,C] y)"
FEED = """
    f = MatMul(s, w5)
    g = com.microsoft.BiasGelu(f, b5)
    e = MatMul(g, w6)
    t = com.microsoft.SkipLayerNormalization(e, s, g2, c2, b6)
    y = MatMul(t, w7)
"""
HEADS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "MultiHeadAttention": (
        """q = MatMul(h, w1) k = MatMul(h, w2) v = MatMul(h, w3)
        a = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, b1)""",
        {"w1": (24, 32), "w2": (24, 32), "w3": (24, 32), "b1": (96,), "w4": (32, 24)},
    ),
    "MultiHeadAttention with a stated scale": (
        """q = MatMul(h, w1) k = MatMul(h, w2) v = MatMul(h, w3)
        a = com.microsoft.MultiHeadAttention <num_heads = 4, scale = 0.3> (q, k, v)""",
        {"w1": (24, 32), "w2": (24, 32), "w3": (24, 24), "w4": (24, 24)},
    ),
    "Attention of com.microsoft": (
        "a = com.microsoft.Attention <num_heads = 4> (h, w1, b1)",
        {"w1": (24, 96), "b1": (96,), "w4": (32, 24)},
    ),
    "Attention with sizes": (
        """a = com.microsoft.Attention
            <num_heads = 4, qkv_hidden_sizes = [32, 32, 24]> (h, w1, b1)""",
        {"w1": (24, 88), "b1": (88,), "w4": (24, 24)},
    ),
    "Attention of ai.onnx": (
        """q = MatMul(h, w1) k = MatMul(h, w2) v = MatMul(h, w3)
        a = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)""",
        {"w1": (24, 32), "w2": (24, 16), "w3": (24, 12), "w4": (24, 24)},
    ),
    "GroupQueryAttention": (
        """q = MatMul(h, w1) k = MatMul(h, w2) v = MatMul(h, w3)
        last = Constant <value = int32[2] {4, 4}> ()
        total = Constant <value = int32 {5}> ()
        a, pk, pv = com.microsoft.GroupQueryAttention
            <num_heads = 8, kv_num_heads = 4> (q, k, v, , , last, total)""",
        {"w1": (24, 64), "w2": (24, 32), "w3": (24, 32), "w4": (64, 24)},
    ),
}
OUTSIDE: dict[str, tuple[int, ...]] = {
    "w0": (16, 24),
    "g0": (24,),
    "c0": (24,),
    "g1": (24,),
    "c1": (24,),
    "b4": (24,),
    "w5": (24, 48),
    "b5": (48,),
    "w6": (48, 24),
    "b6": (24,),
    "g2": (24,),
    "c2": (24,),
    "w7": (24, 6),
}


def stored(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    values = random(shape, name).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        values *= np.float32(shape[0] ** -0.5)
    return numpy_helper.from_array(values, name)


def model(signature: str, body: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f"{HEAD}g {signature} {{\n{body}\n}}")
    proto.graph.initializer.extend(stored(name, shape) for name, shape in weights.items())
    return proto


def block(name: str) -> onnx.ModelProto:
    attention, own = HEADS[name]
    body = f"""
        z = MatMul(x, w0)
        h = LayerNormalization(z, g0, c0)
        {attention}
        o = MatMul(a, w4)
        s = com.microsoft.SkipLayerNormalization(o, h, g1, c1, b4)
        {FEED}
    """
    return model(X, body, {**OUTSIDE, **own})


def sizes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in proto.graph.initializer}


@pytest.mark.parametrize("name", HEADS)
def test_a_fused_block_shrinks_and_is_proved(name: str) -> None:
    """Heads, the size of values, the feed-forward and the residual width all go."""
    before = block(name)
    after, _ = onnxprune.prune(before, ratio=0.5, align=1)
    one, other = sizes(before), sizes(after)
    assert one.keys() == other.keys()
    for weight in ("w1", "w4", "w5", "w6"):
        assert np.prod(other[weight]) < 0.6 * np.prod(one[weight]), weight
    assert other["g1"] < one["g1"]


EXPERTS = {"e1": (4, 32, 24), "b1": (4, 32), "e2": (4, 24, 32), "b2": (4, 24)}


@pytest.mark.parametrize("kind", ["relu", "gelu"])
@pytest.mark.parametrize("normed", [True, False])
def test_experts_shrink_and_are_proved(kind: str, normed: bool) -> None:
    """Half of the experts, their inner width, and the residual width, which they read and make."""
    norm = "h = LayerNormalization(z, g0, c0)" if normed else "h = Identity(z)"
    body = f"""
        z = MatMul(x, w0) {norm} r = MatMul(h, w1)
        m = com.microsoft.MoE <activation_type = "{kind}", k = 2> (h, r, e1, b1, e2, b2)
        s = Add(z, m) y = MatMul(s, w2)
    """
    weights = {"w0": (16, 24), "g0": (24,), "c0": (24,), "w1": (24, 4), "w2": (24, 6)}
    before = model("(float[5,16] x) => (float[A,B] y)", body, {**weights, **EXPERTS})
    after, report = onnxprune.prune(before, ratio=0.5, align=1)
    found = sizes(after)
    assert (found["e1"], found["e2"]) == ((2, 16, 12), (2, 12, 16))
    assert found["w1"] == (12, 2)
    mixing = {group.name: group.mixing for group in report.groups}
    assert mixing == {"w0:1": True, "w1:1": True, "e1:1": False}


def packed(k: int, n: int, name: str) -> list[onnx.TensorProto]:
    """The weight (n, blocks, 8) of 4 bits in blocks of 16, and its scales (n, blocks)."""
    blocks: Array = integers(n, k // 16, 8, high=256, dtype=np.uint8)
    scales = (0.02 * random((n, k), name).random((n, k // 16))).astype(np.float32)
    pair = (blocks, f"{name}_q"), (scales, f"{name}_s")
    return [numpy_helper.from_array(values, own) for values, own in pair]


def test_block_packed_weights_lose_whole_blocks() -> None:
    body = """
        a = com.microsoft.MatMulNBits <K = 32, N = 128, bits = 4, block_size = 16> (x, u_q, u_s)
        b = Relu(a)
        y = com.microsoft.MatMulNBits <K = 128, N = 6, bits = 4, block_size = 16> (b, v_q, v_s)
    """
    before = model("(float[4,32] x) => (float[A,B] y)", body, {})
    before.graph.initializer.extend([*packed(32, 128, "u"), *packed(128, 6, "v")])
    after, _ = onnxprune.prune(before, ratio=0.5)
    found = sizes(after)
    kept = found["u_q"][0]
    assert kept <= 64
    assert found["u_q"] == (kept, 2, 8)
    assert found["v_q"] == (6, kept // 16, 8)
    assert found["v_s"] == (6, kept // 16)
