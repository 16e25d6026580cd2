"""Laws of the axis algebra, against masks written out index by index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.axes import ONE, OPAQUE, UNROLL_LIMIT, Factors, Layout, Mask, Product, Reason, Sum
from onnxprune.tables import solve

WHY = Reason("a test says so", 7)
NEVER = Reason("it never was to be frozen")
SIZES = st.integers(1, 12)
Draw = Callable[..., Any]


def expression(draw: Draw, factors: Factors, size: int, products: bool = True) -> Layout:
    """A random layout of a size; factors may occur more than once."""
    known = [f for f in range(len(factors)) if factors.size(f) == size]
    ways = ["factor", *(["again"] if known else [])]
    if size > 1:
        ways.append("sum")
    divisors = [d for d in range(2, size) if size % d == 0]
    if products and divisors:
        ways.append("product")
    match draw(st.sampled_from(ways)):
        case "again":
            return int(draw(st.sampled_from(known)))
        case "sum":
            n = draw(st.integers(1, size - 1))
            parts = [expression(draw, factors, k, products) for k in (n, size - n)]
            return factors.sum(parts)
        case "product":
            d = draw(st.sampled_from(divisors))
            parts = [expression(draw, factors, k, products) for k in (d, size // d)]
            return factors.product(parts)
        case _:
            return factors.fresh(size)


def masks(draw: Draw, factors: Factors, *layouts: Layout) -> dict[int, Mask]:
    """Random kept indices, at least one, of the free factors."""
    found = {}
    for leaf in sorted({f for layout in layouts for f in factors.leaves(layout)}):
        if factors.reason(leaf) is None:
            size = factors.size(leaf)
            kept = draw(st.sets(st.integers(0, size - 1), min_size=1))
            found[leaf] = np.isin(np.arange(size), list(kept))
    return found


def parts(layout: Layout) -> Iterator[Layout]:
    yield layout
    if isinstance(layout, Product | Sum):
        for part in layout.parts:
            yield from parts(part)


Case = tuple[Factors, list[Layout], Draw]


@st.composite
def equal_pairs(draw: st.DrawFn, products: bool = True) -> Case:
    """A few layouts that belong to equations, two of a size each."""
    factors = Factors()
    layouts: list[Layout] = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(SIZES)
        layouts += [expression(draw, factors, size, products) for _ in range(2)]
    return factors, layouts, draw


def unify_all(factors: Factors, layouts: list[Layout]) -> None:
    for x, y in zip(layouts[::2], layouts[1::2], strict=True):
        factors.unify(x, y, WHY)


@given(equal_pairs())
def test_unified_layouts_keep_the_same_indices(case: Case) -> None:
    factors, layouts, draw = case
    unify_all(factors, layouts)
    keep = masks(draw, factors, *layouts)
    for x, y in zip(layouts[::2], layouts[1::2], strict=True):
        np.testing.assert_array_equal(factors.mask(x, keep), factors.mask(y, keep))


@given(equal_pairs())
def test_sizes_never_change(case: Case) -> None:
    factors, layouts, _ = case
    before = [factors.size(layout) for layout in layouts]
    count = len(factors)
    own = [factors.size(f) for f in range(count)]
    unify_all(factors, layouts)
    assert [factors.size(factors.normal(layout)) for layout in layouts] == before
    assert [factors.size(factors.normal(f)) for f in range(count)] == own


@given(equal_pairs())
def test_what_is_unified_stays_unified(case: Case) -> None:
    factors, layouts, draw = case
    unify_all(factors, layouts)
    count = len(factors)
    frozen_before = [factors.reason(f) for f in range(count)]
    unify_all(factors, layouts)
    keep = masks(draw, factors, *layouts)
    for x, y in zip(layouts[::2], layouts[1::2], strict=True):
        np.testing.assert_array_equal(factors.mask(x, keep), factors.mask(y, keep))
    assert [factors.reason(f) for f in range(count)] == frozen_before


@given(equal_pairs(products=False))
def test_sums_couple_no_more_than_they_have_to(case: Case) -> None:
    """Element by element with union-find: what vanishes together must be connected."""
    factors, layouts, _ = case
    count = len(factors)
    plain = [elements(layout, factors) for layout in layouts]
    root: dict[tuple[int, int], tuple[int, int]] = {}

    def find(x: tuple[int, int]) -> tuple[int, int]:
        while root.setdefault(x, x) != x:
            x = root[x]
        return x

    for left, right in zip(plain[::2], plain[1::2], strict=True):
        for x, y in zip(left, right, strict=True):
            root[find(x)] = find(y)
    unify_all(factors, layouts)
    for leaf in {leaf for f in range(count) for leaf in factors.leaves(f)}:
        assert factors.reason(leaf) is None, "sums never have to freeze anything"
        for index in range(factors.size(leaf)):
            keep = {leaf: np.arange(factors.size(leaf)) != index}
            gone = [(f, k) for f in range(count) for k in np.flatnonzero(~factors.mask(f, keep))]
            assert len({find((f, int(k))) for f, k in gone}) == 1


def elements(layout: Layout, factors: Factors) -> list[tuple[int, int]]:
    """What a layout without products consists of; all indices that can't vanish are one."""
    if isinstance(layout, int):
        return [(layout, k) for k in range(factors.size(layout))]
    if layout == ONE:
        return [(-1, 0)]
    assert isinstance(layout, Sum)
    return [x for part in layout.parts for x in elements(part, factors)]


@given(st.data())
def test_a_split_is_undone_by_concatenation(data: st.DataObject) -> None:
    factors = Factors()
    layout = expression(data.draw, factors, data.draw(SIZES))
    size = factors.size(layout)
    n = data.draw(st.integers(0, size))
    head, tail = factors.split_at(layout, n, WHY)
    assert (factors.size(head), factors.size(tail)) == (n, size - n)
    keep = masks(data.draw, factors, layout, head, tail)
    both = [factors.mask(head, keep), factors.mask(tail, keep)]
    np.testing.assert_array_equal(np.concatenate(both), factors.mask(layout, keep))


@given(st.data())
def test_counts_are_sums_of_masks(data: st.DataObject) -> None:
    factors = Factors()
    layouts = [expression(data.draw, factors, 12) for _ in range(2)]
    unify_all(factors, layouts)
    keep = masks(data.draw, factors, *layouts)
    counts = {f: int(mask.sum()) for f, mask in keep.items()}
    for layout in layouts:
        assert factors.count(layout, counts) == factors.mask(layout, keep).sum()


@given(st.data())
def test_a_mask_is_solved_for_its_factors(data: st.DataObject) -> None:
    factors = Factors()
    layout = expression(data.draw, factors, data.draw(SIZES))
    keep = masks(data.draw, factors, layout)
    solved = solve(factors, layout, factors.mask(layout, keep))
    assert solved is not None
    assert solved.keys() == keep.keys()
    for own, mask in keep.items():
        np.testing.assert_array_equal(solved[own], mask)


def test_a_mask_that_no_factors_give_is_refused() -> None:
    factors = Factors()
    a, b = factors.fresh(2), factors.fresh(3)
    corner = np.array([False, True, True, True, True, True])
    assert solve(factors, factors.product([a, b]), corner) is None
    assert solve(factors, factors.sum([b, b]), corner) is None


@given(st.data())
def test_pull_back_gives_an_index_what_vanishes_with_it(data: st.DataObject) -> None:
    factors = Factors()
    layout = expression(data.draw, factors, data.draw(SIZES))
    values = np.arange(1.0, factors.size(layout) + 1) ** 2
    pulled = factors.pull_back(layout, values)
    assert pulled.keys() == set(factors.leaves(layout))
    if any(len(set(p.parts)) < len(p.parts) for p in parts(layout) if isinstance(p, Product)):
        return  # the diagonal of (a a) vanishes with two places of a, and counts for both
    if nested_twice(layout):
        return
    for leaf, received in pulled.items():
        size = factors.size(leaf)
        gone = [~factors.mask(layout, {leaf: np.arange(size) != k}) for k in range(size)]
        np.testing.assert_allclose(received, [values[mask].sum() for mask in gone])


def nested_twice(layout: Layout) -> bool:
    """Whether two parts of a product share a factor."""
    for p in parts(layout):
        if isinstance(p, Product):
            inside = [{x for x in parts(q) if isinstance(x, int)} for q in p.parts]
            if sum(map(len, inside)) != len(set().union(*inside)):
                return True
    return False


@given(st.data())
def test_what_is_frozen_or_mixing_stays_so(data: st.DataObject) -> None:
    factors = Factors()
    layouts = [expression(data.draw, factors, 12) for _ in range(4)]
    count = len(factors)
    if count == 0:
        return
    cold = data.draw(st.sets(st.integers(0, count - 1)))
    mixed = data.draw(st.sets(st.integers(0, count - 1)))
    for own in cold:
        factors.freeze(own, NEVER)
    for own in mixed:
        factors.mix(own)
    unify_all(factors, layouts)
    for own in cold:
        assert all(factors.reason(leaf) is not None for leaf in factors.leaves(own))
    for own in mixed:
        assert all(factors.is_mixing(leaf) for leaf in factors.leaves(own))
    for x, y in zip(layouts[::2], layouts[1::2], strict=True):
        if factors.reason(x) is not None:
            keep = masks(data.draw, factors, x, y)
            assert factors.mask(y, keep).all()


def test_normal_form_has_no_ones_zeros_or_nesting() -> None:
    factors = Factors()
    a, b, c = (factors.fresh(n) for n in (2, 3, 4))
    one, zero = factors.fresh(1), factors.fresh(0)
    assert factors.product([a, one, factors.product([b, c])]) == Product((a, b, c), 24)
    assert factors.sum([a, zero, factors.sum([b, c])]) == Sum((a, b, c), 9)
    assert factors.product([one, a]) == a
    assert factors.sum([zero, a]) == a
    assert factors.product([]) == ONE
    assert factors.size(factors.product([a, zero])) == 0
    assert factors.product([a, OPAQUE]) == factors.sum([a, OPAQUE]) == OPAQUE


def test_a_channel_shuffle_is_discovered() -> None:
    """Two branches, concatenated, in two groups, transposed, and cut into two branches."""
    factors = Factors()
    branches = [factors.fresh(58), factors.fresh(58)]
    groups, inner = factors.fresh(2), factors.fresh(58)
    factors.unify(factors.product([groups, inner]), factors.sum([*branches]), WHY)
    assert factors.normal(branches[0]) == factors.normal(branches[1]) == factors.normal(inner)
    head, tail = factors.split_at(factors.product([inner, groups]), 58, WHY)
    first, second = factors.leaves(inner)
    assert factors.normal(inner) == Sum((first, second), 58)
    whole = factors.normal(groups)
    assert factors.leaves(whole) == []
    assert factors.normal(head) == Product((first, whole), 58)
    assert factors.normal(tail) == Product((second, whole), 58)
    assert factors.reason(first) is factors.reason(second) is None


def test_packed_heads_are_discovered() -> None:
    """768 columns, three projections of twelve heads each."""
    factors = Factors()
    packed, out = factors.fresh(2304), factors.fresh(768)
    three, head, dim = (factor(factors, n) for n in (3, 12, 64))
    factors.unify(packed, factors.product([three, head, dim]), WHY)
    factors.unify(factors.product([head, dim]), out, WHY)
    assert factors.render(packed, {head: "head", dim: "dim"}) == "(_:3 head:12 dim:64)"
    assert factors.normal(out) == factors.product([head, dim])


def factor(factors: Factors, size: int) -> int:
    """A fresh factor, known to be one."""
    found = factors.fresh(size)
    assert isinstance(found, int)
    return found


def test_products_are_refined_against_each_other() -> None:
    factors = Factors()
    x = factors.product([factors.fresh(2), factors.fresh(6)])
    y = factors.product([factors.fresh(4), factors.fresh(3)])
    factors.unify(x, y, WHY)
    assert factors.normal(x) == factors.normal(y)
    assert [factors.size(leaf) for leaf in factors.leaves(x)] == [2, 2, 3]
    assert all(factors.reason(leaf) is None for leaf in factors.leaves(x))


def test_layouts_are_written_with_sizes() -> None:
    factors = Factors()
    a, b = factor(factors, 58), factor(factors, 2)
    names = {a: "a", b: "b"}
    assert factors.render(factors.sum([a, factors.product([a, b])]), names) == "a:58+(a:58 b:2)"
    assert factors.render(ONE, names) == "1"
    assert factors.render(OPAQUE, names) == "?"


def test_reasons() -> None:
    factors = Factors()
    a, b = factors.fresh(3), factors.fresh(4)
    assert factors.reason(OPAQUE) == Reason("its size is unknown")
    assert factors.reason(ONE) == Reason("it has one index")
    factors.unify(a, b, WHY)
    meets = Reason("a test says so: sizes 3 and 4 meet", 7)
    assert factors.reason(a) == factors.reason(b) == meets
    c = factors.fresh(5)
    factors.unify(OPAQUE, c, WHY)
    assert factors.reason(c) == WHY
    factors.freeze(c, NEVER)
    assert factors.reason(c) == WHY, "the first reason stays"
    d = factors.fresh(2, NEVER)
    assert factors.reason(factors.product([c, d])) == WHY, "that of the largest factor"
    free = factors.fresh(2)
    assert factors.reason(factors.sum([c, free])) is None


def test_products_that_do_not_divide_are_frozen() -> None:
    factors = Factors()
    x = factors.product([factors.fresh(4), factors.fresh(3)])
    y = factors.product([factors.fresh(3), factors.fresh(4)])
    factors.unify(x, y, WHY)
    assert factors.reason(x) == factors.reason(y) == WHY


@pytest.mark.parametrize(("copies", "unrolled"), [(UNROLL_LIMIT, True), (UNROLL_LIMIT + 1, False)])
def test_a_cut_through_a_product_writes_it_out(copies: int, unrolled: bool) -> None:
    factors = Factors()
    outer, inner = factors.fresh(copies), factors.fresh(5)
    head, tail = factors.split_at(factors.product([outer, inner]), 8, WHY)
    assert factors.reason(outer) == WHY
    assert (factors.size(head), factors.size(tail)) == (8, 5 * copies - 8)
    assert factors.reason(inner) == (None if unrolled else WHY)
    assert factors.reason(head) == (None if unrolled else WHY)


def test_a_long_chain_of_bindings_needs_no_recursion() -> None:
    """A residual stream binds each factor to the next one."""
    factors = Factors()
    chain = [factors.fresh(4) for _ in range(5000)]
    for a, b in pairwise(chain):
        factors.unify(a, b, Reason("a test"))
    assert factors.normal(chain[0]) == chain[-1]
    assert factors.count(chain[0], {chain[-1]: 3}) == 3  # type: ignore[dict-item]
