"""Computed rules of mixtures of experts: two layers in each, of which a token takes a few.

Letters: t tokens, e experts, h the width of the tokens, i the width inside of an expert. What a
token has is read by the first layer and made by the second, so that h is no letter of a contraction
alone: it mixes. So do the experts, since a token takes those that score highest among all.
"""

from __future__ import annotations

from math import lcm
from typing import Final

from onnxprune.rules.integers import BITS_OF_A_BYTE
from onnxprune.rules.site import Site, Unprunable, letters, line

BITS: Final = 4  # of a stored weight, where the node does not say
PAIRED: Final = 2  # rows of a gate and of what it lets through, one after the other
WITHOUT: Final = "~"


def moe(site: Site) -> str:
    """MoE of floats."""
    if site.has(6):
        raise Unprunable("ONNX Runtime has no CPU kernel for experts of three layers")
    tokens, routed = _tokens(site)
    wide = f"(i _g:{_rows_of_one(site)})"
    layers = [f"e! {wide} h!", "e! (i _g)", "e! h! i", "e! h!"]
    kinds = [" ".join([*tokens, x]) for x in ("h i _g", "i h")] * int(site.attribute("k", 1))
    value = " ".join([*tokens, "h!"])
    return line(_given(site, [value, routed, *layers]), [value], f"macs={' + '.join(kinds)}")


def quantised(site: Site) -> str:
    """QMoE: weights of which several share a byte, along the axis that is summed over.

    So channels go in whole bytes, or in whole blocks of one scale.
    """
    if site.attribute("quant_type", b"int") != b"int" or site.attribute("weights_prepacked", 0) > 0:
        raise Unprunable("its weights are laid out for one device")
    if any(site.has(k) for k in (8, 9, 10, 13)):
        raise Unprunable("ONNX Runtime has no CPU kernel for experts of three layers")
    bits = int(site.attribute("expert_weight_bits", BITS))
    own = [int(site.attribute(f"fc{k}_expert_weight_bits", bits)) for k in (1, 2)]
    first, second = (BITS_OF_A_BYTE // n for n in own)  # how many numbers share a byte
    block, rows = int(site.attribute("block_size", 0)), _rows_of_one(site)
    many, deep = block or lcm(first, second), block or second
    shared = first if site.has(11) else 1, second if site.has(12) else 1
    if (block and max(shared) > 1) or (not block and rows * deep % shared[0]):
        raise Unprunable("its zero points share bytes")
    tokens, routed = _tokens(site)
    value, wide = "(h! _v)", "(i _w)"  # sizes are given where they come first
    given = " ".join([*tokens, f"(h! _v:{many})"])
    zeros = [f"e! (i {rows * deep // first})", f"e! (h! {many // second})"]
    scales = [f"e! {wide}", f"e! {value}"]
    if block:
        scales = zeros = [f"e! {wide} h!", f"e! {value} i"]
    layers = [f"e! (i _w:{rows * deep}) (h! {many // first})", scales[0], f"e! {wide}"]
    layers += [f"e! {value} (i _q:{deep // second})", scales[1], f"e! {value}"]
    operands = [given, routed, *layers, *[WITHOUT] * 3, *zeros]
    operands += [WITHOUT, routed]
    inner = " ".join([*tokens, "h _v i"])
    work = [f"{inner} _w", *[f"{inner} _q"] * second] * int(site.attribute("k", 1))
    return line(_given(site, operands), [" ".join([*tokens, value])], f"macs={' + '.join(work)}")


def _given(site: Site, operands: list[str]) -> list[str]:
    """The operands that the node has."""
    named = operands[: len(site.node.inputs)]
    return [axes if site.has(k) else WITHOUT for k, axes in enumerate(named)]


def _tokens(site: Site) -> tuple[list[str], str]:
    """The letters of the tokens' axes, and the pattern of what routes them."""
    tokens = letters(site.rank() - 1, "t")
    return tokens, f"({' '.join(tokens)}) e!"


def _rows_of_one(site: Site) -> int:
    """How many rows of the first layer stand for one channel inside."""
    if site.attribute("activation_type", b"relu") != b"swiglu":
        return 1
    if site.attribute("swiglu_fusion", 0) != 1:
        raise Unprunable("ONNX Runtime has no CPU kernel for a gate that stands apart")
    return PAIRED
