"""Cases of fused transformer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from onnxprune.model import Array
from tests.laws.cases.build import Given, integers, make, normal, uniform
from tests.laws.nodes import Case

MS = "com.microsoft::"


def cases() -> Iterator[Case]:
    yield from _norms()
    yield from _rotary()
    yield from _experts()
    yield from _multi_head()
    yield from _packed()
    yield from _grouped()
    yield from _decoder()
    yield from _standard()


def _norms() -> Iterator[Case]:
    for op, more in (("SkipLayerNormalization", 3), ("SkipSimplifiedLayerNormalization", 2)):
        for shape in ((2, 3, 4), (4, 4, 4), (5, 6)):
            width = shape[-1:]
            yield make(f"{MS}{op}", shape, shape, *[width] * more)
            yield make(f"{MS}{op}", shape, shape, width, *[None] * (more - 1))
            yield make(f"{MS}{op}", shape, shape, *[width] * more, results=4)
        yield make(f"{MS}{op}", (3, 4, 6), (4, 6), (6,))
        yield make(f"{MS}{op}", (3, 4, 6), (1, 4, 6), (6,), *[(6,)] * (more - 1))
    ids = integers(3, 4, high=9, dtype=np.int32)
    kinds = integers(3, 4, high=2, dtype=np.int32)
    tables: list[Given] = [(9, 6), (7, 6), (2, 6), (6,), (6,)]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], np.int32)
    places = integers(3, 4, high=7, dtype=np.int32)
    op = f"{MS}EmbedLayerNormalization"
    how: dict[str, Any] = {"results": 2}
    yield make(op, ids, kinds, *tables, mask, **how)
    yield make(op, ids, kinds, *tables, None, places, results=3)
    yield make(op, ids, kinds, *tables, None, places[:1], results=3)
    yield make(op, ids, None, *tables[:2], None, *tables[3:], results=2)
    yield make(op, ids, kinds, *tables, mask, places, results=2)


def _rotary() -> Iterator[Case]:
    cos, sin = normal(9, 4, seed="cos"), normal(9, 4, seed="sin")
    places = integers(3, 5, high=9)
    op = f"{MS}RotaryEmbedding"
    for where in (places, np.array([2])):
        yield make(op, (3, 5, 24), where, cos, sin)
        yield make(op, (3, 5, 32), where, cos, sin, interleaved=1)
        yield make(op, (3, 4, 5, 8), where, cos, sin)
    yield make(op, (3, 5, 48), places, cos, sin, num_heads=3, rotary_embedding_dim=8)
    own: list[Given] = [(3, 5, 4), (3, 5, 4)]
    turns: list[dict[str, Any]] = [{}, {"interleaved": 1}]
    for more in turns:
        yield make("RotaryEmbedding", (3, 4, 5, 8), cos, sin, places, opset=23, **more)
        yield make("RotaryEmbedding", (3, 5, 32), cos, sin, places, opset=23, num_heads=4, **more)
    yield make("RotaryEmbedding", (3, 4, 5, 8), *own, opset=23)
    yield make("RotaryEmbedding", (3, 5, 32), *own, opset=23, num_heads=4)


def _multi_head() -> Iterator[Case]:
    op = f"{MS}MultiHeadAttention"
    own: dict[str, Any] = {"num_heads": 4}
    for scale in (0.4, None):
        how = {**own, "scale": scale} if scale else own
        q, k, v = (3, 5, 24), (3, 7, 24), (3, 7, 20)
        yield make(op, q, k, v, **how)
        yield make(op, q, k, v, (68,), **how)
        yield make(op, q, (3, 4, 7, 6), (3, 4, 7, 6), **how)
        bias = normal(3, 4, 5, 7)
        yield make(op, q, k, v, None, None, bias, **how)
        yield make(op, q, k, v, None, None, bias[:1, :1], **how)
        for size in (3,), (3, 7), (3, 5, 7):
            kept = integers(*size, low=0 if len(size) > 1 else 2, high=2 if len(size) > 1 else 7)
            mask = kept.astype(np.int32)
            yield make(op, q, k, v, None, mask, **how, note=f"mask{size}")
        past: list[Given] = [(3, 4, 4, 6), (3, 4, 4, 6)]
        yield make(op, q, k, k, None, None, None, *past, results=3, **how)
        yield make(op, q, k, k, None, None, normal(1, 4, 5, 11), *past, results=3, **how)
        yield make(op, (3, 5, 24), (3, 5, 24), (3, 5, 20), unidirectional=1, **how)
        yield make(op, (4, 4, 16), (4, 4, 16), (4, 4, 16), **how)


def _packed() -> Iterator[Case]:
    op = f"{MS}Attention"
    for more in ({"scale": 0.4}, {}, {"unidirectional": 1}):
        how: dict[str, Any] = {"num_heads": 4, **more}
        yield make(op, (3, 5, 7), (7, 72), (72,), **how)
        sizes = {**how, "qkv_hidden_sizes": [24, 24, 20]}
        yield make(op, (3, 5, 7), (7, 68), (68,), **sizes)
        for size in (3,), (3, 5), (3, 5, 5):
            kept = integers(*size, low=0 if len(size) > 1 else 2, high=2 if len(size) > 1 else 5)
            mask = kept.astype(np.int32)
            yield make(op, (3, 5, 7), (7, 72), (72,), mask, **how, note=f"mask{size}")
        past = normal(2, 3, 4, 4, 6)
        yield make(op, (3, 5, 7), (7, 72), (72,), None, past, results=2, **how)
        bias = normal(3, 4, 5, 5)
        yield make(op, (3, 5, 7), (7, 72), (72,), None, None, bias, **how)
    one: list[Given] = [np.array(0.1, np.float32), np.array(0.2, np.float32)]
    zeros: list[Given] = [np.array(9, np.uint8), np.array(3, np.uint8)]
    x: Array = integers(3, 5, 7, high=20, dtype=np.uint8)
    w: Array = integers(7, 72, high=8, dtype=np.uint8)
    mask, later = np.ones((3, 5), np.int32), np.ones((3, 9), np.int32)
    past = normal(2, 3, 4, 4, 6)
    op = f"{MS}QAttention"
    scales: list[dict[str, Any]] = [{}, {"scale": 0.4}]
    for more in scales:
        yield make(op, x, w, (72,), *one, None, *zeros, num_heads=4, **more)
        yield make(op, x, w, (72,), *one, mask, *zeros, num_heads=4, **more)
        yield make(op, x, w, (72,), *one, later, *zeros, past, results=2, num_heads=4, **more)
    yield make(op, x, w, (72,), *one, None, *zeros, past, results=2, num_heads=4)
    yield make(op, x, w, (72,), *one, None, *zeros, past, results=2, num_heads=4, scale=0.4)
    signed = integers(7, 72, low=-7, high=8, dtype=np.int8)
    each: list[Given] = [one[0], uniform(72), None, zeros[0], np.zeros(72, np.int8)]
    yield make(op, x, signed, (72,), *each, num_heads=4)
    yield make(op, x, signed, (72,), *each, num_heads=4, scale=0.4)


def _grouped() -> Iterator[Case]:
    op = f"{MS}GroupQueryAttention"
    how: dict[str, Any] = {"num_heads": 6, "kv_num_heads": 3, "results": 3}
    q, k = (3, 5, 48), (3, 5, 24)
    last, total = np.full(3, 4, np.int32), np.array(5, np.int32)
    yield make(op, q, k, k, None, None, last, total, **how)
    yield make(op, q, k, k, None, None, last, total, scale=0.3, **how)
    yield make(op, (3, 5, 96), None, None, None, None, last, total, **how)
    cos, sin = normal(9, 8, seed="cos"), normal(9, 8, seed="sin")
    wide = (3, 5, 48)
    yield make(op, (3, 5, 96), wide, wide, None, None, last, total, cos, sin, do_rotary=1, **how)
    past: list[Given] = [normal(3, 3, 6, 8, seed="k"), normal(3, 3, 6, 8, seed="v")]
    later, more = np.full(3, 6, np.int32), np.array(7, np.int32)
    yield make(op, (3, 1, 48), (3, 1, 24), (3, 1, 24), *past, later, more, **how)
    bias = normal(3, 6, 5, 5)
    yield make(op, q, k, k, None, None, last, total, None, None, None, bias, **how)


def _decoder() -> Iterator[Case]:
    op = f"{MS}DecoderMaskedMultiHeadAttention"
    one: list[Given] = [normal(3, 1, 24, seed=x) for x in "qkv"]
    past: list[Given] = [normal(3, 4, 9, 6, seed=x) for x in ("past k", "past v")]
    until = np.array([5], np.int32)
    beams = [np.array([1], np.int32), np.zeros((3, 1, 9), np.int32)]
    how: dict[str, Any] = {"num_heads": 4, "past_present_share_buffer": 1, "results": 3}
    yield make(op, *one, None, None, *past, until, **how)
    yield make(op, *one, None, None, *past, until, *beams, scale=0.3, **how)
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], np.int32)
    bias = normal(72, seed="bias")
    yield make(op, *one, mask, None, *past, until, None, None, bias, **how)
    for size in (3, 4, 1, 6), (1, 1, 1, 6):
        yield make(op, *one, None, normal(*size, seed="added"), *past, until, **how)
    across: list[Given] = [normal(3, 4, 7, 6, seed=x) for x in "kv"]
    yield make(op, one[0], *across, num_heads=4)
    yield make(op, (3, 1, 24), (3, 6, 7, 4), (3, 6, 7, 4), num_heads=6)


def _standard() -> Iterator[Case]:
    how: dict[str, Any] = {"opset": 23}
    for more in ({"scale": 0.4}, {}, {"is_causal": 1}):
        q, k, v = (3, 6, 5, 7), (3, 2, 8, 7), (3, 2, 8, 4)
        yield make("Attention", q, k, v, **how, **more)
        for mask in ((5, 8), (6, 5, 8), (3, 6, 5, 8), (3, 1, 5, 8)):
            yield make("Attention", q, k, v, mask, **how, **more)
        past: list[Given] = [(3, 2, 3, 7), (3, 2, 3, 4)]
        yield make("Attention", q, k, v, None, *past, results=3, **how, **more)
        if "is_causal" not in more:  # which keys it sees is counted: no mask of some says more
            yield make("Attention", q, k, v, (5, 11), *past, results=4, **how, **more)
        flat: dict[str, Any] = {"q_num_heads": 6, "kv_num_heads": 2, **how, **more}
        yield make("Attention", (3, 5, 42), (3, 8, 14), (3, 8, 8), **flat)
        yield make("Attention", (3, 5, 42), (3, 8, 14), (3, 8, 8), (3, 6, 5, 8), **flat)
        yield make("Attention", (3, 5, 42), (3, 8, 14), (3, 8, 8), None, *past, results=3, **flat)


def _experts() -> Iterator[Case]:
    op = f"{MS}MoE"
    for kind in ("relu", "gelu", "silu"):
        how: dict[str, Any] = {"activation_type": kind, "k": 2}
        yield make(op, (5, 8), (5, 4), (4, 12, 8), (4, 12), (4, 8, 12), (4, 8), **how)
    yield make(op, (2, 3, 8), (6, 4), (4, 12, 8), None, (4, 8, 12), None, k=1)
    gate: dict[str, Any] = {"activation_type": "swiglu", "swiglu_fusion": 1, "swiglu_limit": 7.0}
    gate |= {"activation_alpha": 1.702, "activation_beta": 1.0}
    yield make(op, (5, 8), (5, 4), (4, 24, 8), (4, 24), (4, 8, 12), (4, 8), k=2, **gate)
    yield make(op, (5, 8), (5, 4), (4, 16, 8), None, (4, 8, 8), None, k=1, **gate)
    for bits, block, gated in product((4, 8), (0, 16), (False, True)):
        how = {"expert_weight_bits": bits, **({"block_size": block} if block else {}), "k": 2}
        how |= gate if gated else {"activation_type": "silu"}
        yield from _packed_experts(how, 8 // bits, block, 1 + gated)


def _packed_experts(how: dict[str, Any], share: int, block: int, rows: int) -> Iterator[Case]:
    """5 tokens, 3 experts: 4 blocks wide and 6 inside, or 12 wide and 20 inside."""
    h, i = (4 * block, 6 * block) if block else (12, 20)
    deep, wide = ((6,), (4,)) if block else ((), ())
    first, second = (3, rows * i, *wide), (3, h, *deep)
    weights = [integers(3, rows * i, h // share, high=256), integers(3, h, i // share, high=256)]
    packed: list[Given] = [own.astype(np.uint8) for own in weights]
    scales: list[Given] = [uniform(*own, low=0.01, high=0.03) for own in (first, second)]
    layers: list[Given] = [packed[0], scales[0], (3, rows * i), packed[1], scales[1], (3, h)]
    op = f"{MS}QMoE"
    yield make(op, (5, h), (5, 3), *layers, **how)
    layers[2] = layers[5] = None
    yield make(op, (1, 5, h), (5, 3), *layers, None, None, None, None, None, None, (5, 3), **how)
    zero = 0x88 if share > 1 else 0x80
    sizes: list[tuple[int, ...]] = [(rows * i // share,), (h // share,)]
    if block and share > 1:
        return  # see test_what_can_not_be_said_is_refused
    if block:
        sizes = [(rows * i, 4), (h, 6)]
    zeros: list[Given] = [integers(3, *sizes[0], high=256).astype(np.uint8)]
    zeros.append(np.full((3, *sizes[1]), zero, np.uint8))
    yield make(op, (5, h), (5, 3), *layers, None, None, None, *zeros, **how)
