"""The rule notation: one einops-like line says how an operator carries axes.

    row     = rule { "|" clause }
    rule    = operand { "," operand } "->" operand { "," operand }     the last operand repeats
    operand = "~" | { axis }           ~ carries no channels (scalar, shape, indices)
    axis    = part { "+" part } | "1"  a sum: concatenation
            | "*"                      any number of whole axes
            | "*name" ["!"]            any number of axes, the same wherever the name stands
            | "..."                    broadcast axes, matched from the right
    part    = factor | "(" { factor } ")"            a product, row-major
    factor  = name [":" number] ["!"]  :4 states its size, ! mixes: removal changes what survives
            | "_" | "_name" | number   stays whole
    clause  = attribute "=" { axis }   the attribute states these sizes:     group=g
            | "[" index "]" "=" { axis }   so does this operand:             [1]=a (b c)
            | "macs" "=" { factor | "*name" } { "+" ... }    multiply-accumulates of the operator

A letter that stands in operands only is contracted; so is the last axis of an operand that names
a letter of another of its axes once more (the recurrent weight of an LSTM, ``(_q h) h``). ``_`` in
a clause leaves an element as it is. ``parse`` reads a line; ``onnxprune.fitting`` finds the
letters' sizes on one node. The idea is that of jax's custom_partitioning sharding rules and of
openxla/shardy's OpShardingRule; the look is that of einops.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from onnxprune.errors import RuleError

Term = tuple[str, ...]  # a product of letters, outermost first; () has size 1
Axis = tuple[Term, ...]  # a sum of terms
Shape = tuple[int | None, ...]  # None: the size is not known
UNIT: Axis = ((),)


@dataclass(frozen=True, slots=True)
class Spread:
    """A token that stands for any number of axes: ``*``, ``*name`` or ``...``."""

    name: str
    broadcast: bool = False


Operand = tuple[Axis | Spread, ...]


@dataclass(frozen=True, slots=True)
class Clause:
    """What an attribute (``target`` a name) or an operand (an index) states: one size an axis."""

    target: str | int
    axes: tuple[Axis | Spread, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One parsed row. ``None`` as an operand is ``~``."""

    line: str
    operands: tuple[Operand | None, ...]
    results: tuple[Operand | None, ...]
    mixing: frozenset[str]
    numbers: Mapping[str, int]
    clauses: tuple[Clause, ...]
    macs: tuple[tuple[str, ...], ...] | None


@dataclass(frozen=True, slots=True)
class Fit:
    """A rule on one node: every spread written out, every letter with its size.

    Letters of size 1 have vanished from products, terms of size 0 from sums.
    """

    operands: tuple[tuple[Axis, ...] | None, ...]
    results: tuple[tuple[Axis, ...] | None, ...]
    sizes: Mapping[str, int | None]
    mixing: frozenset[str]
    contracted: frozenset[str]
    clauses: tuple[tuple[str | int, tuple[Axis, ...]], ...]
    macs: tuple[tuple[str, ...], ...]


def is_whole(letter: str) -> bool:
    """Whether the rule keeps this letter whole."""
    return letter[0] == "_"


_TOKEN = re.compile(r"\.\.\.|\*[A-Za-z_0-9]*!?|[()+]|[A-Za-z_0-9]+(?::\d+)?!?|\S")
_FACTOR = re.compile(r"([A-Za-z_][A-Za-z_0-9]*)(?::(\d+))?(!?)")


class _Parser:
    """Reads one row; keeps count of the anonymous letters and notes the mixing ones."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.mixing: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.anonymous = 0

    def fail(self, found: str, expected: str) -> RuleError:
        return RuleError(f"rule '{self.line}': found '{found}', expected {expected}")

    def letter(self, token: str) -> str:
        if token.isdecimal():
            name = self.whole()
            self.numbers[name] = int(token)
            return name
        found = _FACTOR.fullmatch(token)
        if found is None:
            raise self.fail(token, "a factor: a name, name!, name:4, _, _name or a number")
        name, size, mixes = found.groups()
        if name == "_":
            name = self.whole()
        if size and self.numbers.setdefault(name, int(size)) != int(size):
            raise self.fail(token, f"the size {self.numbers[name]} that it was given before")
        if mixes:
            self.mixing.add(name)
        return str(name)

    def whole(self) -> str:
        self.anonymous += 1
        return f"_{self.anonymous}"

    def spread(self, token: str) -> Spread:
        if token == "...":
            return Spread("...", broadcast=True)
        name = token[1:].removesuffix("!")
        if token.endswith("!"):
            self.mixing.add(name)
        return Spread(name or self.whole())

    def axes(self, text: str) -> tuple[Axis | Spread, ...]:
        """Whitespace-separated axes; a sum's parts are joined with ``+``."""
        tokens = _TOKEN.findall(text)
        axes: list[Axis | Spread] = []
        position, plus = 0, False
        while position < len(tokens):
            if tokens[position] == "+":
                if plus or not axes or isinstance(axes[-1], Spread):
                    raise self.fail("+", "a part on both sides of it")
                position, plus = position + 1, True
                continue
            start = position
            axis, position = self.axis(tokens, position)
            if plus:
                last = axes.pop()
                if isinstance(axis, Spread) or isinstance(last, Spread):
                    raise self.fail(tokens[start], "a part: a factor or a product")
                axis, plus = last + axis, False
            axes.append(axis)
        if plus:
            raise self.fail("+", "a part on both sides of it")
        return tuple(axes)

    def axis(self, tokens: list[str], position: int) -> tuple[Axis | Spread, int]:
        """One part or spread, and the position behind it."""
        token = tokens[position]
        position += 1
        if token == "(":
            if ")" not in tokens[position:]:
                raise self.fail("(", "a closing parenthesis")
            end = tokens.index(")", position)
            return (tuple(self.letter(t) for t in tokens[position:end]),), end + 1
        if token == "..." or token[0] == "*":
            return self.spread(token), position
        return (UNIT if token == "1" else ((self.letter(token),),)), position

    def operands(self, text: str) -> tuple[Operand | None, ...]:
        parts = [part.strip() for part in text.split(",")]
        return tuple(None if part == "~" else self.axes(part) for part in parts)

    def clause(self, text: str) -> Clause:
        target, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise self.fail(text, "a clause: attribute=axes or [operand]=axes")
        if not target.startswith("["):
            return Clause(target, self.axes(value))
        if not re.fullmatch(r"\[\d+\]", target):
            raise self.fail(target, "an operand's index, such as [1]")
        return Clause(int(target[1:-1]), self.axes(value))

    def macs(self, text: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(term.split()) for term in text.split("+"))


@lru_cache(maxsize=65536)
def parse(line: str) -> Rule:
    """Read one row.

    Raises:
        RuleError: the line breaks the notation; the message names the offending token.
    """
    reader = _Parser(line)
    rule, *clauses = (part.strip() for part in line.split("|"))
    if rule.count("->") != 1:
        raise reader.fail(rule, "operands -> results")
    left, right = rule.split("->")
    operands, results = reader.operands(left), reader.operands(right)
    macs = None
    stated = []
    for clause in clauses:
        if clause.startswith("macs="):
            macs = reader.macs(clause.removeprefix("macs="))
        else:
            stated.append(reader.clause(clause))
    return Rule(
        line, operands, results, frozenset(reader.mixing), reader.numbers, tuple(stated), macs
    )
