"""Law 5: a planted wrong rule dies. If it lives, the cases of the commuting square are too weak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from onnxprune.errors import RuleError
from onnxprune.notation import parse
from onnxprune.rules import Unprunable
from tests.laws import cases
from tests.laws.effects import POINTERS
from tests.laws.mutants import KINDS, meaning
from tests.laws.nodes import Case
from tests.laws.square import Broken, commute

SEEDS = range(4)

WRONG = [
    # two letters change places
    ("Transpose", "a0 a1 a2 -> a0 a1 a2"),
    ("MatMul", "... m k, ... n k -> ... m n"),
    ("Gemm", "m k, n k, m n -> m n"),
    ("DepthToSpace", "n (_p c _q) h w -> n c (h _p) (w _q) | blocksize=_p"),
    ("DepthToSpace", "n (_p _q c) h w -> n c (_p h) (w _q) | blocksize=_p"),
    ("SpaceToDepth", "n c (h _p) (w _q) -> n (c _p _q) h w | blocksize=_p"),
    ("Conv", "n (i g) *, (g o) i *_k, (g o) -> n (g o) * | group=g"),
    ("ConvTranspose", "n (g i) *_x, (g o) i *_k, (g o) -> n (g o) * | group=g"),
    ("Flatten", "a b c -> a (c b)"),
    ("LSTM", "_s b i, _d (h _q) i, _d (h _q) h -> _s _d b h, _d b h, _d b h | hidden_size=h"),
    ("Concat", "a0 p0 a2, a0 p1 a2 -> a0 p1+p0 a2"),
    ("Tile", "a0 a1, ~ -> (a0 2) (2 a1)"),
    # a binding is missing
    ("Add", "... a, ... -> ... a"),
    ("BatchNormalization", "n c *s, c, c, c, d -> n c *s"),
    ("PRelu", "n c *s, * -> n c *s"),
    ("Gather", "a0 a1, i0 -> i0 a1"),
    ("GatherElements", "a0 a1, i0 i1 -> i0 i1"),
    ("GridSample", "n c *, m * -> n c *"),
    ("ConvTranspose", "n (g i) *_x, (g i) o *_k, (g p) -> n (g o) * | group=g"),
    ("DequantizeLinear", "a0 a1 a2, b, b -> a0 a1 a2"),
    ("InstanceNormalization", "n c *s!, d, c -> n c *s!"),
    # what mixes, or is whole, is not said to
    ("Softmax", "a0 a1 a2 -> a0 a1 a2"),
    ("LayerNormalization", "a b c, c, c -> a b c, a b 1, a b 1"),
    ("GroupNormalization", "n (g c) *s!, (g c), (g c) -> n (g c) *s! | num_groups=g"),
    ("InstanceNormalization", "n c *s, c, c -> n c *s"),
    ("LRN", "n c *s -> n c *s"),
    ("ReduceMean", "a0 a1 a2, ~ -> a0 1 a2"),
    ("CumSum", "a0 a1 a2, ~ -> a0 a1 a2"),
    ("AveragePool", "n c *s -> n c *s"),
    ("RoiAlign", "n c *, r _, r -> r c *"),
    ("LSTM", "s b i, d (_q h) i, d (_q h) h -> s d b h, d b h, d b h | hidden_size=h"),
    ("MaxPool", "n c * -> n c *_y, n c *_y"),
    # contracted, or carried
    ("ReduceSum", "a0 a1 a2, ~ -> a1 a2"),
    ("Mul", "... a, ... b -> ... a"),
    ("ArgMax", "a0 a1 a2 -> 1 a1 a2"),
    ("Softmax", "a0 a1! a2 -> a0 b! a2"),
    # a wrong clause, or none
    ("Conv", "n (g i) *, (g o) i *_k, (g o) -> n (g o) *"),
    ("GroupNormalization", "n (g c!) *s!, (g c!), (g c!) -> n (g c!) *s!"),
    ("LSTM", "_s b i, _d (_q h) i, _d (_q h) h -> _s _d b h, _d b h, _d b h"),
    ("Reshape", "r0 (r1 r2), ~ -> r0 r1 r2 | [1]=r0 r2 r1"),
    ("Split", "a0 p0+p1, ~ -> a0 p0, a0 p1 | [1]=p1 p0"),
    ("Expand", "a 1, ~ -> a b | [1]=a a"),
    ("Slice", "a0 x1:2+a1+y1, ~ -> a0 a1 | [1]=a1 | [2]=x1+a1"),
    # integers: scales that don't follow, one scale for all, blocks, groups
    ("QLinearConv", "n (g i) *, ~, ~, (g o) i *_k, s, ~, ~, ~, (g o) -> n (g o) *_y | group=g"),
    ("QLinearConv", "n (g i) *, ~, ~, (g o) i *_k, (g o), ~, ~, ~, (o g) -> n (g o) *_y | group=g"),
    ("QLinearMatMul", "m k, ~, ~, k n, p, ~, ~, ~ -> m n"),
    ("ConvInteger", "n (g i) *, (g o) i *_k, ~, ~ -> n (g o) *_y"),
    ("MatMulInteger", "m k, n k, ~, ~ -> m n"),
    ("DynamicQuantizeLinear", "*s -> *s, ~, ~"),
    ("com.microsoft::DynamicQuantizeMatMul", "m k, k n, ~, ~, n -> m n"),
    ("com.microsoft::MatMulIntegerToFloat", "m k, k n, ~, ~, ~, ~, p -> m n"),
    ("com.microsoft::QGemm", "m k, ~, ~, k n, p, p, n, ~, ~ -> m n"),
    ("com.microsoft::QLinearConcat", "~, ~, a p0, ~, ~, a p1, ~, ~, a p2, ~, ~ -> a p1+p0+p2"),
    ("com.microsoft::QLinearSoftmax", "a0 a1 a2, ~, ~, ~, ~ -> a0 a1 a2"),
    ("com.microsoft::QLinearAveragePool", "c n *_x, ~, ~, ~, ~ -> n c *_y"),
    ("com.microsoft::NhwcMaxPool", "c *_x n -> n *_y c"),
    ("com.microsoft::MatMulNBits", "a (j b:16), n j _, n j, n j, ~, n -> a n | N=n | K=(j b:16)"),
    ("com.microsoft::MatMulNBits", "a (_b:16 j), n j _, n j -> a n | N=n | K=(j _b:16)"),
    ("com.microsoft::MatMulNBits", "a (j _b:16), n j _, (j n) -> a n | N=n | K=(j _b:16)"),
    ("com.microsoft::MatMulNBits", "a (j _b:16), n j _, n j -> a n | N=n"),
    # attention: heads inside out, keys that don't mix, a head's size, groups of heads
    ("com.microsoft::Attention", "b s! i, i (h 3 d!), (h 3 d!) -> b s! (h d!) | num_heads=h"),
    ("com.microsoft::Attention", "b s i, i (3 h d!), (3 h d!) -> b s (h d!) | num_heads=h"),
    ("com.microsoft::MultiHeadAttention", "b s (h d), b t! (h d), b t! (v h) -> b s (v h)"),
    ("com.microsoft::MultiHeadAttention", "b s (h d), b t (h d), b t (h v) -> b s (h v)"),
    (
        "com.microsoft::GroupQueryAttention",
        "b _s (r k _d:8), b _s (k _d:8), b _s (k _d:8), ~, ~, b, ~ -> b _s (r k _d:8),"
        " b k _p _d:8, b k _p _d:8 | num_heads=(r k) | kv_num_heads=k",
    ),
    (
        "com.microsoft::GroupQueryAttention",
        "b _s (k r d), b _s (k d), b _s (k d), ~, ~, b, ~ -> b _s (k r d), b k _p d, b k _p d"
        " | num_heads=(k r) | kv_num_heads=k",
    ),
    ("com.microsoft::RotaryEmbedding", "b h s d, b s, _m c, _m c -> b h s d"),
    ("com.microsoft::RotaryEmbedding", "b h s _d, ~, _m _c, _m _c -> b h s _d"),
    ("com.microsoft::SkipLayerNormalization", "a b c, a b c, c, c, c -> a b c"),
    (
        "com.microsoft::EmbedLayerNormalization",
        "b s, b s, _v c!, _p c!, _u c!, c!, c!, b s -> b s c!, b",
    ),
    (
        "com.microsoft::QAttention",
        "b s! i, i (h 3 d!), (h 3 d!), ~, ~, ~, ~, ~ -> b s! (h d!) | num_heads=h",
    ),
    ("Attention", "b (r k) s d, b k t! d, b k t! v -> b (r k) s v"),
    ("Attention", "b (k r) s d, b k t d, b k t v -> b (k r) s v"),
    ("RotaryEmbedding", "b h s d, b s c, b s c -> b h s d"),
]


# Operands of which wrong patterns can't be seen: zero points that are all equal, since ONNX Runtime
# wants them to be equal, or that have to be 0 for something to have no effect.
ALL_EQUAL = {
    "com.microsoft::DynamicQuantizeLSTM": {9, 11},
    "com.microsoft::QAttention": {7},
    "com.microsoft::QMoE": {12},
}
# Operands that are sums, and the part of them that has no effect: a bias of the keys adds the same
# to every product with one query.
NO_EFFECT = {"com.microsoft::Attention": (2, 1), "com.microsoft::MultiHeadAttention": (3, 1)}


def dies(case: Case, row: str) -> bool:
    """Whether the square shows that the row is wrong on this case."""
    try:
        fit = case.fit(row)
    except (Unprunable, RuleError):  # it may say two sizes of one letter
        return True
    if meaning(case, fit) == meaning(case, case.fit()):
        return False
    try:
        for seed in SEEDS:
            commute(case, row, seed)
    except Broken:
        return True
    return False


@pytest.mark.parametrize(("op", "row"), WRONG)
def test_a_planted_wrong_row_dies(op: str, row: str) -> None:
    parse(row)
    fitting = [case for case in cases.table()[op] if fits(case, row)]
    assert fitting, "it dies of its ranks alone: plant a better one"
    assert any(dies(case, row) for case in fitting)


def fits(case: Case, row: str) -> bool:
    try:
        case.fit(row)
    except Unprunable:
        return False
    return True


def lines(op: str) -> dict[str, list[Case]]:
    """The cases of an operator by the line that its row gives on them."""
    found: dict[str, list[Case]] = {}
    for case in cases.table()[op]:
        found.setdefault(case.line(), []).append(case)
    return found


def survivors(found: dict[str, list[Case]], kind: str) -> Iterator[str]:
    """The wrong lines that no case shows to be wrong, though they say something else."""
    for line, own in found.items():
        for wrong in dict.fromkeys(KINDS[kind](line)):
            if is_unseen(own[0].op, line, wrong):
                continue
            if not any(dies(case, wrong) for case in own) and differs(own, wrong):
                yield wrong


def is_unseen(op: str, line: str, wrong: str) -> bool:
    """Whether two rows differ in patterns only that nothing can show."""
    pairs = zip(line.split(", "), wrong.split(", "), strict=True)
    found = {position: (one, other) for position, (one, other) in enumerate(pairs) if one != other}
    place, part = NO_EFFECT.get(op, (-1, 0))
    if found.keys() == {place}:
        sums = zip(*(text.split("+") for text in found[place]), strict=True)
        return {k for k, (one, other) in enumerate(sums) if one != other} == {part}
    return found.keys() <= ALL_EQUAL.get(op, set())


def differs(own: Iterable[Case], wrong: str) -> bool:
    return any(meaning(case, case.fit(wrong)) != meaning(case, case.fit()) for case in own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"unstated"}))
@pytest.mark.parametrize("op", sorted(cases.table().keys() - POINTERS))
def test_every_mutant_dies(op: str, kind: str) -> None:
    assert list(survivors(lines(op), kind)) == []


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(cases.table().keys() - POINTERS))
def test_every_clause_is_needed(op: str) -> None:
    """By its target: an end beyond the axis needs no restating, another one does."""
    needed: dict[str, bool] = {}
    for line, own in lines(op).items():
        clauses = [x for x in line.split(" | ")[1:] if not x.startswith("macs=")]
        for clause in clauses:
            wrong = line.replace(f" | {clause}", "")
            if differs(own, wrong):
                target = clause.partition("=")[0]
                needed[target] = needed.get(target, False) or any(dies(c, wrong) for c in own)
    assert all(needed.values()), needed
