"""Rules: what one operator does with the axes of its operands, said in one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from onnx import ModelProto

from onnxprune.errors import RuleError
from onnxprune.fitting import fit, result_shapes
from onnxprune.model import Model, Node, Sample
from onnxprune.notation import Fit, Operand, Rule, Shape, Spread, is_whole, parse
from onnxprune.rules import contrib, tables
from onnxprune.rules.frozen import FROZEN
from onnxprune.rules.site import Computed, Site, Unprunable
from onnxprune.rules.tables import ONE_BY_DEFAULT, RENAMES

__all__ = [
    "BUILT_IN",
    "RENAMES",
    "Row",
    "Unprunable",
    "fit_node",
    "made_shapes",
    "row_of",
    "stated_row",
]

Row = str | Computed
BUILT_IN: Final[Mapping[str, Row]] = {**tables.TABLE, **contrib.TABLE}


def row_of(op: str, rules: Mapping[str, Row]) -> Row:
    """The row of an operator; rows of the user come first.

    Raises:
        Unprunable: it has none, with the reason.
    """
    row = rules.get(op) or BUILT_IN.get(op)
    if row is None:
        raise Unprunable(FROZEN.get(op, f"operator {op} has no rule"))
    return row


def stated_row(line: str) -> str:
    """Check a row that a user gives.

    Raises:
        RuleError: it breaks the notation, or a result carries a letter that neither an operand nor
            a clause has: nothing would say which of its indices go.
    """
    rule = parse(line)
    known = _letters(rule.operands) | _letters(clause.axes for clause in rule.clauses)
    for letter in sorted(_letters(rule.results) - known):
        raise RuleError(
            f"rule '{line}': no operand has the letter '{letter}' of a result: use one that an "
            f"operand has, or '_{letter}' for an axis that stays whole"
        )
    return line


def _letters(operands: Iterable[Operand | None]) -> set[str]:
    """The letters that some operands carry, but for whole ones; those that spread as ``*name``."""
    found = set()
    for operand in operands:
        for axis in operand or ():
            if isinstance(axis, Spread):
                found.add("..." if axis.broadcast else f"*{axis.name}")
            else:
                found.update(letter for term in axis for letter in term)
    return {letter for letter in found if not is_whole(letter.lstrip("*"))}


def fit_node(node: Node, model: Model, rules: Mapping[str, Row]) -> tuple[Fit, ...]:
    """The node's rule with every letter's size, once for each sample of the model.

    Raises:
        Unprunable: there is no rule, a shape is unknown, or the rule says something else for
            another choice of the dynamic sizes.
    """
    row = row_of(node.op, rules)
    fits = []
    lines = set()
    for sample in model.samples:
        site = Site(node, model, sample)
        line = _line(row, site)
        lines.add(line)
        rule = parse(line)
        for clause in rule.clauses:
            if isinstance(clause.target, int):
                site.refuse_open(clause.target)
        operands = _shapes(sample.shapes, node.inputs, rule.operands, "operand")
        results = _shapes(sample.shapes, node.outputs, rule.results, "result")
        attributes = _integers(node, rule)
        try:
            fits.append(fit(line, operands, results, attributes))
        except RuleError as error:
            raise Unprunable(str(error)) from error
    if len(lines) != 1:
        raise Unprunable("what it does with its axes depends on dynamic sizes")
    return tuple(fits)


def _line(row: Row, site: Site) -> str:
    """The row's line on one node; a node that the rule can't read is frozen, not an error."""
    try:
        return row(site) if callable(row) else row
    except (IndexError, KeyError, ValueError) as error:
        raise Unprunable(f"its attributes or shapes are odd: {error!r}") from error


def made_shapes(
    node: Node, operands: Sequence[Shape | None], rules: Mapping[str, Row]
) -> tuple[Shape | None, ...]:
    """The shapes of the results as the row says, for operators unknown to onnx."""
    row = rules.get(node.op) or BUILT_IN.get(node.op)
    if row is None:
        return ()
    known = {x: own for x, own in zip(node.inputs, operands, strict=True) if x and own is not None}
    sample = Sample(known, {})
    model = Model(ModelProto(), None, "", (node,), {}, (sample,), {})
    try:
        line = _line(row, Site(node, model, sample))
        return result_shapes(line, operands, dict(_integers(node, parse(line))))
    except (RuleError, Unprunable):
        return ()  # the node is frozen for it later on


def _shapes(
    known: Mapping[str, Shape],
    names: Sequence[str],
    patterns: Sequence[Operand | None],
    what: str,
) -> tuple[Shape | None, ...]:
    """The shapes that a rule speaks of; None for an operand that is absent."""
    found = []
    for position, name in enumerate(names):
        shape = known.get(name) if name else None
        carries = patterns[min(position, len(patterns) - 1)] is not None
        if name and shape is None and carries:
            raise Unprunable(f"{what} {position} has an unknown rank")
        found.append(shape)
    return tuple(found)


def _integers(node: Node, rule: Rule) -> tuple[tuple[str, int], ...]:
    """The attributes that the clauses name; onnx's default for a missing group is 1."""
    found = []
    for clause in rule.clauses:
        if isinstance(clause.target, str):
            value = node.attributes.get(
                clause.target, 1 if clause.target in ONE_BY_DEFAULT else None
            )
            if isinstance(value, int):
                found.append((clause.target, value))
    return tuple(found)
