"""Rows of attention: ONNX's own operator, and ONNX Runtime's fused blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, optional
from onnxprune.torch_bridge.lazy import torch


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(batch, heads, places, size) of (batch, places, heads * size)."""
    if x.ndim == 4 or count is None:
        return x
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _grouped(k: Tensor, heads: int) -> Tensor:
    return k if k.shape[1] == heads else k.repeat_interleave(heads // k.shape[1], 1)


def attention(
    at: At,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    padding: Tensor | None = None,
) -> Made:
    """Attention of ai.onnx."""
    flat = q.ndim == 3
    q, k, v = (_heads(x, at(n)) for x, n in zip((q, k, v), _COUNTS, strict=True))
    past = 0
    if past_k is not None:
        past, k = past_k.shape[2], torch.cat([past_k, k], 2)
        v = torch.cat([past_v, v], 2)
    present = k, v
    k, v = _grouped(k, q.shape[1]), _grouped(v, q.shape[1])
    scale = math.sqrt(at("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = raw = (q * scale) @ (k * scale).transpose(-1, -2)
    bias = _bias(at, scores, mask, padding, past, q.shape[2])
    cap, mode = at("softcap", 0.0), at("qk_matmul_output_mode", 0)
    capped = cap * torch.tanh(scores / cap) if cap else scores
    scores = capped + bias if bias is not None else capped
    shares = torch.softmax(scores, -1)
    shares = torch.nan_to_num(shares) if bias is not None else shares
    y = shares.to(v.dtype) @ v
    y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if flat else y
    return (y, *present, (raw, capped, scores, shares)[mode])[: at.results]


_COUNTS: Final = ("q_num_heads", "kv_num_heads", "kv_num_heads")


def _bias(
    at: At, scores: Tensor, mask: Tensor | None, padding: Tensor | None, past: int, places: int
) -> Tensor | None:
    """What is added to the scores: the mask, what lies ahead, and what is padding."""
    bias, total = None, scores.shape[-1]
    never = torch.tensor(-math.inf, dtype=scores.dtype, device=scores.device)
    if mask is not None:
        if mask.shape[-1] < total:
            fill = -math.inf if mask.is_floating_point() else False
            mask = torch.nn.functional.pad(mask, [0, total - mask.shape[-1]], value=fill)
        zero = torch.zeros((), dtype=scores.dtype, device=scores.device)
        bias = torch.where(mask, zero, never) if mask.dtype is torch.bool else mask
    rows = torch.arange(places, device=scores.device)[:, None] + past
    keys = torch.arange(total, device=scores.device)
    if padding is not None and not past:
        rows = rows + (padding.reshape(-1, 1, 1, 1) - places)
    left, right = at("left_window_size", -1), at("right_window_size", -1)
    gone = [keys > rows] if at("is_causal", 0) else []
    gone += [keys < rows - left] if left >= 0 else []
    gone += [keys > rows + right] if right >= 0 else []
    gone += [keys >= padding.reshape(-1, 1, 1, 1)] if padding is not None else []
    for places_ in gone:
        own = torch.zeros_like(places_, dtype=scores.dtype).masked_fill(places_, -math.inf)
        bias = own if bias is None else bias + own
    return bias


def _plain(qkv: Sequence[Tensor], heads: int, bias: Tensor | None, scale: float | None) -> Tensor:
    """(batch, places, heads * size) of queries, keys and values."""
    q, k, v = (_heads(x, heads) for x in qkv)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    scores = q @ k.transpose(-1, -2) * factor
    shares = torch.softmax(scores if bias is None else scores + bias, -1)
    y = (shares @ v).transpose(1, 2)
    return y.reshape(*y.shape[:2], -1)


def multi_head(at: At, q: Tensor, *given: Tensor | None) -> Made:
    """MultiHeadAttention of com.microsoft, without a cache."""
    k, v, bias, mask, added, *past = optional(given, 7)
    if k is None or v is None or mask is not None or any(x is not None for x in past):
        raise at.refuse("packed operands, a mask of keys or a cache")
    heads = at("num_heads")
    if bias is not None:
        parts = bias.split([q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = (x + b for x, b in zip((q, k, v), parts, strict=True))
    if at("unidirectional", 0) or at.results > 1:
        raise at.refuse("a mask of what lies ahead, or present keys")
    return _plain((q, k, v), heads, added, at("scale"))


def packed(at: At, x: Tensor, w: Tensor, b: Tensor | None = None, *rest: Tensor | None) -> Made:
    """Attention of com.microsoft, without a cache."""
    mask, past, added = optional(rest[:3], 3)
    if mask is not None or past is not None or at("unidirectional", 0) or at.results > 1:
        raise at.refuse("a mask, a cache or present keys")
    heads, y = at("num_heads"), x @ w
    y = y if b is None else y + b
    sizes = at("qkv_hidden_sizes") or [y.shape[-1] // 3] * 3
    return _plain(y.split(list(sizes), -1), heads, added, at("scale"))


ROWS: Final[dict[str, Any]] = {"Attention": attention}
CONTRIB: Final[dict[str, Any]] = {"Attention": packed, "MultiHeadAttention": multi_head}
