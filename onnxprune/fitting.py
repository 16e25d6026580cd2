"""Fitting: a row of the notation on one node, every letter with its size.

What is known are the shapes of the node's operands and results, and the integer attributes that
the row's clauses name; what follows is every size but those that no axis tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from onnxprune.errors import RuleError
from onnxprune.notation import UNIT, Axis, Fit, Operand, Rule, Shape, Spread, Term, is_whole, parse


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


def _spelled(axis: Axis) -> str:
    """The axis in the notation."""
    return "+".join(term[0] if len(term) == 1 else f"({' '.join(term)})" for term in axis)


def _solve(axis: Axis, size: int, sizes: dict[str, int | None], line: str) -> bool:
    """Find the one unknown letter of an axis; whether one was found."""
    unknown = {letter for term in axis for letter in term if sizes[letter] is None}
    if len(unknown) != 1 or any(term.count(x) > 1 for x in unknown for term in axis):
        return False
    letter = unknown.pop()
    rest = sum(_term_size(term, sizes) or 0 for term in axis if letter not in term)
    own = [tuple(x for x in term if x != letter) for term in axis if letter in term]
    step = sum(_term_size(term, sizes) or 0 for term in own)
    if step == 0:
        return False
    if size < rest or (size - rest) % step:
        raise RuleError(f"rule '{line}': an axis of size {size} does not fit {_spelled(axis)}")
    sizes[letter] = (size - rest) // step
    return True


def _is_broadcast(axis: Axis) -> bool:
    """Whether the axis is one of ``...``; such an axis may have size 1 for any size."""
    return any(letter[0] == "." for letter in axis[0])


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
        if size is None and _is_broadcast(axis) and sizes[axis[0][0]] == 1:
            sizes[axis[0][0]] = None  # it may be 1 or anything else at run time
    pending = [(axis, size) for axis, size in axes if size is not None]
    solvable = [(axis, size) for axis, size in pending if not _is_broadcast(axis)]
    while sum(_solve(axis, size, sizes, line) for axis, size in solvable):
        pass
    for axis, size in pending:
        terms = [_term_size(term, sizes) for term in axis]
        one = size == 1 and _is_broadcast(axis)
        if None not in terms and sum(t or 0 for t in terms) != size and not one:
            raise RuleError(f"rule '{line}': an axis of size {size} does not fit {_spelled(axis)}")
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
    pairs: list[tuple[Axis, int | None]] = []
    for axes, shape in zip(operands + results, operand_shapes + result_shapes, strict=True):
        pairs.extend(zip(axes or (), shape or (), strict=bool(axes)))
    sizes = _sizes(pairs, {**rule.numbers, **_stated(rule, dict(attributes))}, line)
    left = tuple(_simple(a, s, sizes) for a, s in zip(operands, operand_shapes, strict=True))
    right = tuple(_simple(a, s, sizes) for a, s in zip(results, result_shapes, strict=True))
    contracted = frozenset(x for x in _letters(left) - _letters(right) if not is_whole(x))
    clauses = tuple((c.target, _clause(c.axes, sizes, widths, line)) for c in rule.clauses)
    macs = _expanded_macs(rule.macs, sizes, line) if rule.macs else ()
    marked = (x for x, n in sizes.items() if n != 1 and {x, x.rpartition(".")[0]} & rule.mixing)
    mixing = frozenset(marked)
    return Fit(left, right, sizes, mixing, contracted, clauses, macs)


def result_shapes(
    line: str, operand_shapes: Sequence[Shape | None], attributes: Mapping[str, int]
) -> tuple[Shape | None, ...]:
    """What a row says of the results' shapes; None where it leaves the rank open.

    Args:
        line: the row.
        operand_shapes: a shape an operand; None where it is absent or unknown.
        attributes: values of the node's integer attributes that a clause may name.

    Raises:
        RuleError: ranks or sizes contradict the row.
    """
    rule = parse(line)
    widths: dict[str, int] = {}
    operands = tuple(_patterns(rule.operands, operand_shapes, line, widths))
    pairs: list[tuple[Axis, int | None]] = []
    for axes, shape in zip(operands, operand_shapes, strict=True):
        pairs.extend(zip(axes or (), shape or (), strict=bool(axes)))
    sizes = _sizes(pairs, {**rule.numbers, **_stated(rule, attributes)}, line)
    widths["..."] = len({x for x in sizes if x[0] == "."})
    return tuple(_made(pattern, widths, sizes, line) for pattern in rule.results)


def _made(
    pattern: Operand | None, widths: dict[str, int], sizes: Mapping[str, int | None], line: str
) -> Shape | None:
    if pattern is None or any(isinstance(a, Spread) and a.name not in widths for a in pattern):
        return None
    rank = sum(widths[a.name] if isinstance(a, Spread) else 1 for a in pattern)
    shape: list[int | None] = []
    for axis in _written(pattern, rank, line, dict(widths)):
        terms = [_term_size(term, sizes) for term in axis]
        shape.append(None if None in terms else sum(term or 0 for term in terms))
    return tuple(shape)


def _stated(rule: Rule, attributes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of letters that attributes state alone: ``group=g``."""
    found = {}
    for clause in rule.clauses:
        if isinstance(clause.target, str) and clause.target in attributes:
            axis = clause.axes[0] if len(clause.axes) == 1 else UNIT
            if not isinstance(axis, Spread) and len(axis) == 1 and len(axis[0]) == 1:
                found[axis[0][0]] = attributes[clause.target]
    return found


def _simple(
    axes: tuple[Axis, ...] | None, shape: Shape | None, sizes: Mapping[str, int | None]
) -> tuple[Axis, ...] | None:
    if axes is None or shape is None:
        return None
    return tuple(_simplified(a, s, sizes) for a, s in zip(axes, shape, strict=True))


def _letters(operands: Sequence[tuple[Axis, ...] | None]) -> set[str]:
    return {x for axes in operands for axis in axes or () for term in axis for x in term}


def _clause(
    axes: tuple[Axis | Spread, ...],
    sizes: Mapping[str, int | None],
    widths: dict[str, int],
    line: str,
) -> tuple[Axis, ...]:
    """What a clause states, its spreads written out."""
    rank = sum(widths.get(a.name, 0) if isinstance(a, Spread) else 1 for a in axes)
    written = _written(axes, rank, line, dict(widths))
    for letter in (x for axis in written for term in axis for x in term):
        if letter not in sizes and not is_whole(letter):
            raise RuleError(f"rule '{line}': a clause names '{letter}', which stands on no axis")
    return written
