"""Computed rules of integer arithmetic: QLinear*, *Integer, and weights packed in blocks.

Scales and zero points of one element carry no channels; those of a channel each follow it.
"""

from __future__ import annotations

from onnxprune.rules import linear
from onnxprune.rules.site import Computed, Site, Unprunable, letters, line

BITS_OF_A_BYTE = 8


def _each(site: Site, operand: int, axes: str) -> str:
    """The pattern of a scale or zero point: one for all, or one for each index of the last axis."""
    if not site.has(operand) or all(size == 1 for size in site.shape(operand)):
        return "~"
    return axes if site.rank(operand) == 1 else f"... 1 {axes}"


def qlinear_conv(site: Site) -> str:
    """QLinearConv: a convolution whose weight's scale and zero point are one or one a channel."""
    kept = "*s" if linear.is_pointwise(site, 3) else ""
    before, after = kept or "*_x", kept or "*_y"
    value, made = f"n (g i) {before}", f"n (g o) {after}"
    if site.attribute("channels_last", 0):
        value, made = f"n {before} (g i)", f"n {after} (g o)"
    scale, zero = (_each(site, k, "(g o)") for k in (4, 5))
    operands = [value, "~", "~", "(g o) i *_k", scale, zero, "~", "~", "(g o)"]
    return line(operands, [made], "group=g", f"macs=n g i o *_k {after}")


def conv_integer(site: Site) -> str:
    """ConvInteger: a convolution of integers less their zero points."""
    kept = "*s" if linear.is_pointwise(site, 1) else ""
    operands = [f"n (g i) {kept or '*_x'}", "(g o) i *_k", "~", _each(site, 3, "(g o)")]
    after = kept or "*_y"
    return line(operands, [f"n (g o) {after}"], "group=g", f"macs=n g i o *_k {after}")


def qlinear_matmul(site: Site) -> str:
    """QLinearMatMul: the scale of B is one, or one a column."""
    a, b, result, macs = linear.product(site, 0, 3)
    scale, zero = (_each(site, k, "n") for k in (4, 5))
    rows = [_rows(site, k) for k in (1, 2)]
    return line([a, *rows, b, scale, zero, "~", "~"], [result], macs)


def _rows(site: Site, operand: int) -> str:
    if _each(site, operand, "m") != "~":
        raise Unprunable("its first operand has a scale for each row")
    return "~"


def matmul_integer(site: Site) -> str:
    """MatMulInteger: the zero point of B is one, or one a column."""
    a, b, result, macs = linear.product(site, 0, 1)
    return line([a, b, _rows(site, 2), _each(site, 3, "n")], [result], macs)


def matmul_to_float(site: Site) -> str:
    """MatMulIntegerToFloat: a product of integers, scaled, and a bias."""
    a, b, result, macs = linear.product(site, 0, 1)
    scale, zero = (_each(site, k, "n") for k in (3, 5))
    return line([a, b, _rows(site, 2), scale, _rows(site, 4), zero, "n"], [result], macs)


def dynamic_matmul(site: Site) -> str:
    """DynamicQuantizeMatMul: one scale for all of A, from its extremes, so that A mixes."""
    names = letters(site.rank() - 1)
    a = " ".join(f"{name}!" for name in (*names, "k"))
    scale, zero = (_each(site, k, "n") for k in (2, 3))
    macs = f"macs={' '.join([*names, 'k', 'n'])}"
    if site.rank(1) != 2:
        raise Unprunable("its weight is a stack of matrices")
    return line([a, "k n", scale, zero, "n"], [" ".join([*names, "n"])], macs)


def qgemm(site: Site) -> str:
    """QGemm: Gemm of integers; C has a number for each column."""
    a = "k m" if site.attribute("transA", 0) else "m k"
    b = "n k" if site.attribute("transB", 0) else "k n"
    scale, zero = (_each(site, k, "n") for k in (4, 5))
    c = "~"
    if site.has(6):
        axes = zip(("m", "n")[2 - site.rank(6) :], site.shape(6), strict=True)
        c = " ".join("1" if size == 1 else name for name, size in axes) or "~"
    return line([a, "~", "~", b, scale, zero, c, "~", "~"], ["m n"], "macs=m k n")


def pool(site: Site) -> str:
    """QLinearAveragePool, QLinearGlobalAveragePool: channels first or last."""
    if site.attribute("channels_last", 0):
        return "n *_x c, ~, ~, ~, ~ -> n *_y c"
    return "n c *_x, ~, ~, ~, ~ -> n c *_y"


def concat(site: Site) -> str:
    """``~, ~, a p0, ~, ~, a p1, ~, ~ -> a p0+p1``: each operand has a scale and zero point."""
    rank = site.rank(2)
    axis, names = site.axis(1, rank), letters(rank)
    parts = [f"p{k}" for k in range((len(site.node.inputs) - 2) // 3)]
    own = [" ".join(_with(names, axis, part)) for part in parts]
    operands = ["~", "~", *(x for part in own for x in (part, "~", "~"))]
    return line(operands, [" ".join(_with(names, axis, "+".join(parts)))])


def _with(names: list[str], axis: int, part: str) -> list[str]:
    return [*names[:axis], part, *names[axis + 1 :]]


def softmax(site: Site) -> str:
    """QLinearSoftmax: the axis mixes; all from it on, where its opset is below 13."""
    names, axis = letters(site.rank()), site.axis(-1)
    old = int(site.attribute("opset", 1)) < 13
    value = " ".join(f"{n}!" if k == axis or (old and k > axis) else n for k, n in enumerate(names))
    return line([value, "~", "~", "~", "~"], [value])


def blocks(site: Site) -> str:
    """MatMulNBits: columns of B go one by one, rows of it in whole blocks.

    B is (n, blocks, bytes), its scales (n blocks) or (n, blocks). Zero points of fewer than 8 bits
    share bytes, so that the blocks stay whole with them.
    """
    size, width = int(site.attribute("block_size", 0)), int(site.attribute("K", 0))
    if site.has(4):
        raise Unprunable("its rows are reordered by g_idx")
    names = letters(site.rank() - 1)
    bits = int(site.attribute("bits", 4))
    packed = site.has(3) and site.shape(3) != site.shape(2) and bits < BITS_OF_A_BYTE
    j = "_j" if packed or width % size else "j"
    k = f"({j} _b:{size})" if width % size == 0 else "_k"
    scale = f"n {j}" if site.rank(2) == 2 else f"(n {j})"
    zero = scale
    if packed:
        zero = "n _z" if site.rank(3) == 2 else "(n _z)"
    macs = f"macs={' '.join(names)} n {'_k' if k == '_k' else f'{j} _b'}"
    a, result = " ".join([*names, k]), " ".join([*names, "n"])
    clauses = ["N=n", f"K={k}"] if j == "j" else ["N=n"]
    return line([a, f"n {j} _", scale, zero, "~", "n"], [result], *clauses, macs)


def lstm(row: str) -> Computed:
    """DynamicQuantizeLSTM: an LSTM whose operands are quantised on the way, so that they mix."""

    def rule(site: Site) -> str:
        gates = ["~" if site.rank(k) == 1 else "_d (_q h!)" for k in range(8, 12)]
        operands, rest = row.split(" -> ")
        return f"{operands}, {', '.join(gates)} -> {rest}"

    return rule
