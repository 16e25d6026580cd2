"""The rule notation: one einops-like line says how an operator carries axes.

    row     = rule { "|" clause }
    rule    = operand { "," operand } "->" operand { "," operand }     the last operand repeats
    operand = "~" | { axis }           ~ carries no channels (scalar, shape, indices)
    axis    = part { "+" part } | "1"  a sum: concatenation
            | "*"                      any number of whole axes
            | "*name" ["!"]            any number of axes, the same wherever the name stands
            | "..."                    broadcast axes, matched from the right
    part    = factor | "(" { factor } ")"            a product, row-major
    factor  = name ["!"]               ! mixes: removal changes what survives
            | "_" | "_name" | number   stays whole
    clause  = attribute "=" { axis }   the attribute states these sizes:     group=g
            | "[" index "]" "=" { axis }   so does this operand:             [1]=a (b c)
            | "macs" "=" { factor | "*name" } { "+" ... }    multiply-accumulates of the operator

A letter that stands in operands only is contracted; so is the last axis of an operand that names
a letter of another of its axes once more (the recurrent weight of an LSTM, ``(_q h) h``). ``parse`` reads a line, ``fit`` finds the
letters' sizes on one node. The idea is that of jax's custom_partitioning sharding rules and of
openxla/shardy's OpShardingRule; the look is that of einops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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


_TOKEN = re.compile(r"\.\.\.|\*[A-Za-z_0-9]*!?|[()+]|[A-Za-z_0-9]+!?|\S")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*!?$")


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
        if not _NAME.match(token):
            raise self.fail(token, "a factor: a name, name!, _, _name or a number")
        if token == "_":
            return self.whole()
        if token.endswith("!"):
            token = token[:-1]
            self.mixing.add(token)
        return token

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
        tokens = _TOKEN.findall(text)
        axes: list[Axis | Spread] = []
        position, plus = 0, False
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if token == "+":
                if plus or not axes or isinstance(axes[-1], Spread):
                    raise self.fail("+", "a part on both sides of it")
                plus = True
                continue
            axis: Axis | Spread
            if token == "(":
                if ")" not in tokens[position:]:
                    raise self.fail("(", "a closing parenthesis")
                end = tokens.index(")", position)
                axis = (tuple(self.letter(t) for t in tokens[position:end]),)
                position = end + 1
            elif token == "..." or token[0] == "*":
                axis = self.spread(token)
            else:
                axis = UNIT if token == "1" else ((self.letter(token),),)
            if plus:
                last = axes.pop()
                if isinstance(axis, Spread) or isinstance(last, Spread):
                    raise self.fail(token, "a part: a factor or a product")
                axis = last + axis
                plus = False
            axes.append(axis)
        if plus:
            raise self.fail("+", "a part on both sides of it")
        return tuple(axes)

    def operands(self, text: str) -> tuple[Operand | None, ...]:
        parts = [part.strip() for part in text.split(",")]
        return tuple(None if part == "~" else self.axes(part) for part in parts)

    def clause(self, text: str) -> Clause:
        target, _, value = (part.strip() for part in text.partition("="))
        if not value and "=" not in text:
            raise self.fail(text, "a clause: attribute=axes or [operand]=axes")
        if target.startswith("["):
            if not re.fullmatch(r"\[\d+\]", target):
                raise self.fail(target, "an operand's index, such as [1]")
            return Clause(int(target[1:-1]), self.axes(value))
        return Clause(target, self.axes(value))

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
    return Rule(line, operands, results, frozenset(reader.mixing), reader.numbers, tuple(stated), macs)


def _written(operand: Operand, rank: int, line: str, widths: dict[str, int]) -> tuple[Axis, ...]:
    """The operand with its spreads replaced by letters, ``rank`` axes in all."""
    spreads = [token for token in operand if isinstance(token, Spread)]
    fixed = len(operand) - len(spreads)
    known = sum(widths.get(s.name, 0) for s in spreads[1:])
    width = rank - fixed - known
    if width < 0 or (not spreads and width != 0):
        raise RuleError(f"rule '{line}' wants {fixed} axes where the operand has {rank}")
    axes: list[Axis] = []
    for token in operand:
        if not isinstance(token, Spread):
            axes.append(token)
            continue
        count = width if token is spreads[0] else widths.get(token.name, 0)
        if not token.broadcast and widths.setdefault(token.name, count) != count:
            raise RuleError(f"rule '{line}': '*{token.name}' stands for different numbers of axes")
        if token.broadcast:
            axes.extend(((f".{count - 1 - k}",),) for k in range(count))
        else:
            axes.extend(((f"{token.name}.{k}",),) for k in range(count))
    return tuple(axes)


def _patterns(
    operands: Sequence[Operand | None],
    shapes: Sequence[Shape | None],
    line: str,
    widths: dict[str, int],
) -> Iterator[tuple[Axis, ...] | None]:
    for index, shape in enumerate(shapes):
        operand = operands[min(index, len(operands) - 1)]
        if operand is None or shape is None:
            yield None
        else:
            yield _written(operand, len(shape), line, widths)


def _term_size(term: Term, sizes: Mapping[str, int | None]) -> int | None:
    total = 1
    for letter in term:
        size = sizes.get(letter)
        if size is None:
            return None
        total *= size
    return total


def _solve(axis: Axis, size: int, sizes: dict[str, int | None]) -> bool:
    """Find the one unknown letter of an axis; whether one was found."""
    unknown = [letter for term in axis for letter in term if sizes.get(letter) is None]
    if len(unknown) != 1:
        return False
    rest = 0
    for term in axis:
        if unknown[0] in term:
            known = _term_size(tuple(x for x in term if x != unknown[0]), sizes)
        else:
            rest += _term_size(term, sizes) or 0
    assert known is not None
    if known == 0 or (size - rest) % known or size < rest:
        return False
    sizes[unknown[0]] = (size - rest) // known
    return True


def _sizes(
    axes: Sequence[tuple[Axis, int | None]], known: Mapping[str, int], line: str
) -> dict[str, int | None]:
    """Every letter's size, from the axes' sizes and what attributes say."""
    sizes: dict[str, int | None] = dict(known)
    for axis, size in axes:
        for letter in (x for term in axis for x in term):
            sizes.setdefault(letter, None)
            if letter[0] == "." and size is not None:
                sizes[letter] = max(size, sizes[letter] or 1) if size else 0
    for axis, size in axes:
        if size is None and axis[0] and axis[0][0][0] == "." and sizes[axis[0][0]] == 1:
            sizes[axis[0][0]] = None  # it may be 1 or anything else at run time
    pending = [(axis, size) for axis, size in axes if size is not None]
    while any([_solve(axis, size, sizes) for axis, size in pending]):
        pass
    for axis, size in pending:
        terms = [_term_size(term, sizes) for term in axis]
        broadcast = size == 1 and len(axis) == 1 and all(x[0] == "." for x in axis[0])
        if None not in terms and sum(t or 0 for t in terms) != size and not broadcast:
            raise RuleError(f"rule '{line}': an axis of size {size} does not fit {axis}")
    return sizes


def _simplified(axis: Axis, size: int | None, sizes: Mapping[str, int | None]) -> Axis:
    """The axis without letters of size 1 and terms of size 0; UNIT where it is broadcast."""
    if size == 1:
        return UNIT
    terms = (term for term in axis if len(axis) == 1 or _term_size(term, sizes) != 0)
    return tuple(tuple(x for x in term if sizes[x] != 1) for term in terms)


def _expanded_macs(
    macs: tuple[tuple[str, ...], ...], letters: Mapping[str, int | None], line: str
) -> tuple[tuple[str, ...], ...]:
    terms = []
    for term in macs:
        names: list[str] = []
        for name in term:
            if name.startswith("*"):
                names.extend(x for x in letters if x.rpartition(".")[0] == name[1:])
            elif name == "...":
                names.extend(x for x in letters if x[0] == ".")
            elif name not in letters:
                raise RuleError(f"rule '{line}': macs names '{name}', which stands on no axis")
            else:
                names.append(name)
        terms.append(tuple(names))
    return tuple(terms)


@lru_cache(maxsize=65536)
def fit(
    line: str,
    operand_shapes: tuple[Shape | None, ...],
    result_shapes: tuple[Shape | None, ...],
    attributes: tuple[tuple[str, int], ...] = (),
) -> Fit:
    """Fit a row to a node whose operands and results have these shapes (None: absent).

    Args:
        line: the row.
        operand_shapes: a shape an operand; sizes that are not known are None.
        result_shapes: the same for the results.
        attributes: values of the node's integer attributes that a clause may name.

    Raises:
        RuleError: ranks or sizes contradict the row.
    """
    rule = parse(line)
    widths: dict[str, int] = {}
    operands = tuple(_patterns(rule.operands, operand_shapes, line, widths))
    results = tuple(_patterns(rule.results, result_shapes, line, widths))
    given = dict(attributes)
    known = dict(rule.numbers)
    for clause in rule.clauses:
        if isinstance(clause.target, str) and clause.target in given and len(clause.axes) == 1:
            axis = clause.axes[0]
            if not isinstance(axis, Spread) and len(axis) == 1 and len(axis[0]) == 1:
                known[axis[0][0]] = given[clause.target]
    pairs: list[tuple[Axis, int | None]] = []
    for axes, shape in zip(operands + results, operand_shapes + result_shapes, strict=True):
        pairs.extend(zip(axes or (), shape or (), strict=bool(axes)))
    sizes = _sizes(pairs, known, line)

    def simple(
        patterns: tuple[tuple[Axis, ...] | None, ...], shapes: tuple[Shape | None, ...]
    ) -> tuple[tuple[Axis, ...] | None, ...]:
        return tuple(
            None
            if axes is None or shape is None
            else tuple(_simplified(a, s, sizes) for a, s in zip(axes, shape, strict=True))
            for axes, shape in zip(patterns, shapes, strict=True)
        )

    left, right = simple(operands, operand_shapes), simple(results, result_shapes)
    read = {x for axes in left if axes for axis in axes for term in axis for x in term}
    made = {x for axes in right if axes for axis in axes for term in axis for x in term}
    contracted = frozenset(x for x in read - made if not is_whole(x))
    clauses = tuple(
        (c.target, _written(c.axes, _clause_rank(c.axes, widths), line, dict(widths)))
        for c in rule.clauses
    )
    macs = _expanded_macs(rule.macs, sizes, line) if rule.macs else ()
    mixing = frozenset(x for x in rule.mixing if sizes.get(x) != 1)
    mixing |= frozenset(x for x in sizes if x.rpartition(".")[0] in rule.mixing)
    return Fit(left, right, sizes, mixing, contracted, clauses, macs)


def _clause_rank(axes: tuple[Axis | Spread, ...], widths: Mapping[str, int]) -> int:
    return sum(widths.get(a.name, 0) if isinstance(a, Spread) else 1 for a in axes)
