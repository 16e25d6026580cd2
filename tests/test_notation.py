"""The notation: what a row means, and what a wrong one is told."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import RuleError
from onnxprune.fitting import fit
from onnxprune.notation import UNIT, Spread, is_whole, parse
from onnxprune.rules import stated_row

CONV = "n (g i) *, (g o) i *_k, (g o) -> n (g o) *_y | group=g | macs=n g i o *_k *_y"


def test_axes_are_sums_of_products() -> None:
    rule = parse("a (b c!) d+(e f)+2, ~, 1 -> _ _x *s ...")
    first, second, third = rule.operands
    assert first == ((("a",),), (("b", "c"),), (("d",), ("e", "f"), ("_1",)))
    assert second is None
    assert third == (UNIT,)
    assert rule.results == (((("_2",),), (("_x",),), Spread("s"), Spread("...", broadcast=True)),)
    assert rule.mixing == {"c"}
    assert rule.numbers == {"_1": 2}


def test_anonymous_letters_differ() -> None:
    (operand,) = parse("_ _ * * -> a").operands
    assert operand is not None
    assert len(set(operand)) == 4
    assert all(is_whole(t.name if isinstance(t, Spread) else t[0][0]) for t in operand)


def test_sizes_may_be_stated() -> None:
    rule = parse("x:3+a+y, _:2 *s!, b:4! -> a")
    assert rule.numbers == {"x": 3, "_1": 2, "b": 4}
    assert rule.mixing == {"s", "b"}


def test_clauses() -> None:
    rule = parse("a -> a | group=g | [2]=a (b c) _ | sizes= | macs=a b + a *c")
    targets = [(clause.target, len(clause.axes)) for clause in rule.clauses]
    assert targets == [("group", 1), (2, 3), ("sizes", 0)]
    assert rule.macs == (("a", "b"), ("a", "*c"))


@pytest.mark.parametrize(
    ("line", "found", "expected"),
    [
        ("a b", "a b", "operands -> results"),
        ("a -> b -> c", "a -> b -> c", "operands -> results"),
        ("a$ -> a", "$", "a factor: a name, name!, name:4, _, _name or a number"),
        ("a:b -> a", ":", "a factor"),
        ("(a ... b) -> a", "...", "a factor"),
        ("(a (b) c) -> a", "(", "a factor"),
        ("a) -> a", ")", "a factor"),
        ("a ! -> a", "!", "a factor"),
        ("!a -> a", "!", "a factor"),
        ("2x -> a", "2x", "a factor"),
        ("(a b -> a", "(", "a closing parenthesis"),
        ("+a -> a", "+", "a part on both sides of it"),
        ("a+ -> a", "+", "a part on both sides of it"),
        ("a++b -> a", "+", "a part on both sides of it"),
        ("*+b -> a", "+", "a part on both sides of it"),
        ("a+* -> a", "*", "a part: a factor or a product"),
        ("a+... -> a", "...", "a part: a factor or a product"),
        ("a:2 -> a:3", "a:3", "the size 2 that it was given before"),
        ("a -> a | group", "group", "a clause: attribute=axes or [operand]=axes"),
        ("a -> a | [x]=a", "[x]", "an operand's index, such as [1]"),
        ("a -> a | [1=a", "[1", "an operand's index, such as [1]"),
    ],
)
def test_a_wrong_row_is_told_the_token(line: str, found: str, expected: str) -> None:
    message = f"rule '{line}': found '{found}', expected {expected}"
    with pytest.raises(RuleError, match=re.escape(message)):
        parse(line)
    with pytest.raises(RuleError, match=re.escape(message)):
        stated_row(line)


def test_a_row_of_the_user_is_checked_and_kept() -> None:
    assert stated_row("_ c *, c -> _ c *") == "_ c *, c -> _ c *"


@pytest.mark.parametrize(
    ("line", "shapes", "results", "message"),
    [
        ("a b -> a", [(2,)], [(2,)], "rule 'a b -> a' wants 2 axes where the operand has 1"),
        ("a *s b -> a", [(2,)], [(2,)], "wants 2 axes where the operand has 1"),
        ("*s, *s -> *s", [(2, 3), (2,)], [(2, 3)], "'*s' stands for different numbers of axes"),
        ("a a -> a", [(2, 3)], [(2,)], "an axis of size 3 does not fit a"),
        ("a (b 2) -> b", [(2, 5)], [(2,)], "an axis of size 5 does not fit (b _1)"),
        ("a+b, a -> b", [(3,), (4,)], [(1,)], "an axis of size 3 does not fit a+b"),
        ("(a b) -> a b", [(6,)], [(2, 2)], "an axis of size 6 does not fit (a b)"),
        ("... -> ...", [(2, 3)], [(2, 4)], "an axis of size 3 does not fit .0"),
        ("a -> a | macs=b", [(2,)], [(2,)], "macs names 'b', which stands on no axis"),
        ("a -> a | [1]=a b", [(2,)], [(2,)], "a clause names 'b', which stands on no axis"),
    ],
)
def test_a_row_that_does_not_fit_says_where(
    line: str, shapes: list[Any], results: list[Any], message: str
) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        fit(line, tuple(shapes), tuple(results))


@pytest.mark.parametrize(
    ("line", "shapes", "results", "attributes", "sizes"),
    [
        ("a (b c) -> a b c", [(2, 12)], [(2, 3, 4)], {}, {"a": 2, "b": 3, "c": 4}),
        (CONV, [(1, 8, 5), (6, 4, 3), (6,)], [(1, 6, 3)], {"group": 2}, {"g": 2, "i": 4, "o": 3}),
        ("(g _q) -> g | n=g", [(12,)], [(4,)], {"n": 4}, {"g": 4, "_q": 3}),
        ("(a 3) -> a", [(12,)], [(4,)], {}, {"a": 4}),
        ("a+b -> a, b", [(7,)], [(3,), (4,)], {}, {"a": 3, "b": 4}),
        ("x:2+a+y -> a", [(9,)], [(3,)], {}, {"x": 2, "a": 3, "y": 4}),
        ("a+a -> a", [(8,)], [(4,)], {}, {"a": 4}),
        ("a+a, b -> b", [(8,), (3,)], [(3,)], {}, {"a": 4, "b": 3}),
        ("(a b)+c -> a c", [(10,)], [(2, 4)], {}, {"a": 2, "b": 3, "c": 4}),
        ("a x+y -> a", [(2, None)], [(2,)], {}, {"a": 2, "x": None, "y": None}),
        ("x+y -> x", [(7,)], [(None,)], {}, {"x": None, "y": None}),
        ("..., ... -> ...", [(2, 1), (5,)], [(2, 5)], {}, {".1": 2, ".0": 5}),
        ("... k, k -> ...", [(2, 3, 4), (4,)], [(2, 3)], {}, {".1": 2, ".0": 3, "k": 4}),
        ("*s c -> c", [(2, 3, 4)], [(4,)], {}, {"s.0": 2, "s.1": 3, "c": 4}),
    ],
)
def test_sizes_are_found(
    line: str,
    shapes: list[Any],
    results: list[Any],
    attributes: dict[str, int],
    sizes: dict[str, int | None],
) -> None:
    found = fit(line, tuple(shapes), tuple(results), tuple(attributes.items())).sizes
    assert {letter: found[letter] for letter in sizes} == sizes


def test_a_convolution_in_full() -> None:
    found = fit(CONV, ((1, 8, 5, 5), (6, 4, 3, 1), (6,)), ((1, 6, 3, 5),), (("group", 2),))
    assert found.operands[0] is not None
    assert found.operands[0][:2] == (UNIT, (("g", "i"),))
    assert found.operands[1] == ((("g", "o"),), (("i",),), (("_k.0",),), UNIT)
    assert found.contracted == {"i"}
    assert found.mixing == frozenset()
    assert found.clauses == (("group", ((("g",),),)),)
    assert found.macs == (("n", "g", "i", "o", "_k.0", "_k.1", "_y.0", "_y.1"),)


def test_axes_of_size_one_carry_nothing() -> None:
    found = fit("n (g c!) *s!, ... -> n (g c!) *s!", ((2, 3, 1), (1, 1)), ((2, 3, 1),))
    assert found.operands[1] == (UNIT, UNIT)
    assert found.operands[0] is not None
    assert found.operands[0][2] == UNIT
    assert found.mixing == {"c"}
    depthwise = fit(CONV, ((1, 8, 5), (8, 1, 3), (8,)), ((1, 8, 3),), (("group", 8),))
    assert depthwise.operands[1] == ((("g",),), UNIT, (("_k.0",),))
    assert depthwise.contracted == frozenset()


def test_a_broadcast_axis_of_unknown_size_may_be_one() -> None:
    found = fit("..., ... -> ...", ((None, 4), (1, 4)), ((None, 4),))
    assert found.sizes == {".1": None, ".0": 4}
    assert found.operands[0] == (((".1",),), ((".0",),))
    assert found.operands[1] == (UNIT, ((".0",),))


def test_parts_of_size_zero_vanish_from_sums() -> None:
    found = fit("a+b+c -> a, b, c", ((7,),), ((3,), (0,), (4,)))
    assert found.operands == (((("a",), ("c",)),),)
    assert found.results[1] == ((("b",),),)


def test_the_last_operand_repeats_and_absent_ones_are_none() -> None:
    found = fit("a, b -> a", ((2,), (3,), None, (3,)), ((2,), (2,)))
    assert found.operands == (((("a",),),), ((("b",),),), None, ((("b",),),))
    assert found.results == (((("a",),),), ((("a",),),))


def test_a_letter_that_comes_twice_in_operands_alone_is_contracted() -> None:
    found = fit("_q h, (_q h) h -> _q", ((2, 3), (6, 3)), ((2,),))
    assert found.contracted == {"h"}


def test_spreads_in_clauses_and_macs_are_written_out() -> None:
    found = fit("n *s, ... -> n *s | [1]=n *s | macs=n *s + ...", ((2, 3, 4), (5,)), ((2, 3, 4),))
    assert found.clauses == ((1, ((("n",),), (("s.0",),), (("s.1",),))),)
    assert found.macs == (("n", "s.0", "s.1"), (".0",))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_a_grouped_axis_is_the_product_of_its_letters(
    sizes: list[int], data: st.DataObject
) -> None:
    """Any cut of axes into groups fits, and every letter has the size it was given."""
    names = [f"a{k}" for k in range(len(sizes))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)))) | {0, len(sizes)})
    groups = [(names[i:j], sizes[i:j]) for i, j in pairwise(cuts)]
    left = " ".join(f"({' '.join(own)})" for own, _ in groups)
    shape = []
    for _, own in groups:
        total = 1
        for n in own:
            total *= n
        shape.append(total)
    found = fit(f"{left} -> {' '.join(names)}", (tuple(shape),), (tuple(sizes),))
    assert {x: found.sizes[x] for x in names} == dict(zip(names, sizes, strict=True))
    assert found.contracted == frozenset()
