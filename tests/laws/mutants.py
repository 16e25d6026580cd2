"""Wrong rows, made from right ones: each must fail on some case."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from onnxprune.notation import Axis, Fit, is_whole
from tests.laws.nodes import Case

_LETTER = re.compile(r"(?<![\w*:])[A-Za-z_]\w*")


def _cut(line: str) -> tuple[str, list[str]]:
    rule, *clauses = line.split(" | ")
    return rule, clauses


def _joined(rule: str, clauses: list[str]) -> str:
    return " | ".join([rule, *clauses])


def _places(rule: str) -> Iterator[list[re.Match[str]]]:
    """The letters of each operand and result."""
    start = 0
    for found in re.finditer(r",|->|$", rule):
        yield list(_LETTER.finditer(rule, start, found.start()))
        start = found.end()


def swapped(line: str) -> Iterator[str]:
    """Two different letters of one operand or result change places."""
    rule, clauses = _cut(line)
    for places in _places(rule):
        for x, y in combinations(places, 2):
            if x.group() != y.group():
                between = rule[x.end() : y.start()]
                swap = y.group() + between + x.group()
                yield _joined(rule[: x.start()] + swap + rule[y.end() :], clauses)


def unbound(line: str) -> Iterator[str]:
    """One occurrence of a letter is a letter of its own."""
    rule, clauses = _cut(line)
    for place in _LETTER.finditer(rule):
        name = place.group()
        count = sum(other.group() == name for other in _LETTER.finditer(rule))
        if count > 1 and not is_whole(name):
            yield _joined(rule[: place.end()] + "q" + rule[place.end() :], clauses)


def unmarked(line: str) -> Iterator[str]:
    """A letter loses its ``!``."""
    rule, clauses = _cut(line)
    for name in dict.fromkeys(re.findall(r"[*\w]+(?=!)", rule)):
        yield _joined(re.sub(rf"(?<!\w){re.escape(name)}!", name, rule), clauses)


def freed(line: str) -> Iterator[str]:
    """A whole letter may be pruned."""
    rule, clauses = _cut(line)
    for name in dict.fromkeys(re.findall(r"(?<!\w)_[A-Za-z]\w*", rule)):
        yield re.sub(rf"(?<!\w){name}\b", f"{name[1:]}w", line)
    for place in re.finditer(r"(?<!\w)_(?!\w)", rule):
        yield _joined(f"{rule[: place.start()]}w{rule[place.end() :]}", clauses)


def unstated(line: str) -> Iterator[str]:
    """A clause is missing."""
    rule, clauses = _cut(line)
    for k, clause in enumerate(clauses):
        if not clause.startswith("macs="):
            yield _joined(rule, clauses[:k] + clauses[k + 1 :])


KINDS: dict[str, Callable[[str], Iterator[str]]] = {
    "freed": freed,
    "swapped": swapped,
    "unbound": unbound,
    "unmarked": unmarked,
    "unstated": unstated,
}


def meaning(case: Case, fit: Fit) -> Any:
    """What a row says on a case, whatever its letters are called."""
    numbers: dict[str, int] = {}

    def name(letter: str) -> Any:
        if is_whole(letter):
            return "_", fit.sizes.get(letter)
        mark = "!" if letter in fit.mixing else ""
        return f"{numbers.setdefault(letter, len(numbers))}{mark}", fit.sizes.get(letter)

    def said(axes: tuple[Axis, ...] | None) -> Any:
        return axes and tuple(tuple(tuple(map(name, term)) for term in axis) for axis in axes)

    patterns = tuple(said(axes) for axes in (*fit.operands, *fit.results))
    stated = []
    for target, axes in fit.clauses:
        given = isinstance(target, str) or target < len(case.operands)
        sizes = [(axis,) if not given or _may_change(axis, fit) else None for axis in axes]
        stated.append((target, *(said(axis) for axis in sizes)))
    return patterns, *(clause for clause in stated if any(clause[1:]))


def _may_change(axis: Axis, fit: Fit) -> bool:
    return any(not is_whole(x) and fit.sizes[x] != 1 for term in axis for x in term)
