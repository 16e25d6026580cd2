"""Computed rules of contractions: Conv, Gemm, MatMul, Einsum, recurrent layers."""

from __future__ import annotations

from onnxprune.rules.site import Computed, Site, Unprunable, line

# The fourth operand is the one that com.microsoft::FusedConv adds.
CONV = "n (g i) *, (g o) i *_k, (g o), n (g o) *_y -> n (g o) *_y | group=g | macs=n g i o *_k *_y"
POINTWISE = (
    "n (g i) *s, (g o) i *_k, (g o), n (g o) *s -> n (g o) *s | group=g | macs=n g i o *_k *s"
)
DEFORM = "n (g i) *, (g o) i *_k, n *, (g o), n * -> n (g o) *_y | group=g | macs=n g i o *_k *_y"


def conv(site: Site) -> str:
    """A pointwise convolution carries its spatial axes; any other keeps them whole."""
    return POINTWISE if is_pointwise(site, 1) else CONV


def is_pointwise(site: Site, weight: int) -> bool:
    """Whether each position of a convolution's result reads the same position of its operand."""
    kernel = site.shape(weight)[2:]
    strides = site.attribute("strides", [1])
    pads = site.attribute("pads", [0])
    return all(n == 1 for n in (*kernel, *strides)) and not any(pads)


def deform_conv(site: Site) -> str:
    """Offsets in one group of channels carry none; in more they couple to the groups."""
    if int(site.attribute("offset_group", 1)) != 1:
        raise Unprunable("it moves groups of channels by offsets of their own")
    return DEFORM


def gemm(site: Site) -> str:
    """Y = alpha A' B' + beta C, with C broadcast to (m, n)."""
    a = "k m" if site.attribute("transA", 0) else "m k"
    b = "n k" if site.attribute("transB", 0) else "k n"
    operands = [a, b]
    if site.has(2):
        names = ["m", "n"][2 - site.rank(2) :]
        axes = zip(site.shape(2), site.result()[2 - site.rank(2) :], names, strict=True)
        operands.append(
            " ".join("1" if own == 1 and whole != 1 else name for own, whole, name in axes) or "~"
        )
    return line(operands, ["m n"], "macs=m k n")


def matmul(site: Site) -> str:
    """numpy.matmul: vectors lose their axis."""
    a, b, result, macs = product(site, 0, 1)
    return line([a, b], [result], macs)


def product(site: Site, first: int, second: int) -> tuple[str, str, str, str]:
    """The patterns of two operands of numpy.matmul, of the result, and the multiplications."""
    vectors = site.rank(first) == 1, site.rank(second) == 1
    left = "k" if vectors[0] else "... m k"
    right = "k" if vectors[1] else "... k n"
    result = [
        x for x, gone in (("...", all(vectors)), *zip("mn", vectors, strict=True)) if not gone
    ]
    return left, right, " ".join(result), f"macs={' '.join([*result, 'k'])}"


def einsum(site: Site) -> str:
    """The equation itself."""
    equation = site.node.attributes["equation"].decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        plain = left.replace(",", "").replace(".", "")
        right = "..." if "..." in left else ""
        right += "".join(sorted(x for x in set(plain) if plain.count(x) == 1))
    spelled = [_spelled(term) for term in (*terms, right)]
    every = dict.fromkeys(" ".join(spelled[:-1]).split())
    clauses = [f"macs={' '.join(every)}"] if len(terms) > 1 else []
    return line(spelled[:-1], [spelled[-1]], *clauses)


def _spelled(term: str) -> str:
    names = [f"{x}_" for x in term.replace("...", ".")]
    return " ".join(names).replace("._", "...")


def recurrent(row: str) -> Computed:
    """The row of an LSTM, GRU or RNN; in layout 1 the batch comes first.

    The operands are X, W, R, B, sequence_lens, initial_h, initial_c, P. Every gate has the same
    hidden units, and R reads the hidden state on its last axis.
    """

    def rule(site: Site) -> str:
        if not site.attribute("layout", 0):
            return row
        batched = row.replace("_s _d b h", "b _s _d h").replace("_d b h", "b _d h")
        return batched.replace("_s b i", "b _s i")

    return rule
