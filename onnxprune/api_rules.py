"""Rules of the user's own, for this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from onnxprune.errors import RuleError
from onnxprune.rules import BUILT_IN, Row, stated_row
from onnxprune.torch_bridge import carried, row_of_user

GROUP: Final = "onnxprune.rules"  # the entry points of installed packages
_user_rules: dict[str, Row] = {}
_user_torch: dict[str, Callable[..., Any]] = {}


def register_rule(
    op: str, line: str, *, torch: Callable[..., Any] | None = None, replace: bool = False
) -> None:
    """Give an operator a rule, for this process.

    Args:
        op: the operator with its domain: ``my.domain::MyOp``.
        line: the row: ``_ c *, c -> _ c *``.
        torch: what it computes, for training: a function of its operands (None for one that is
            absent), with its attributes by name.
        replace: whether it may take the place of a built-in rule.

    Raises:
        RuleError: the line breaks the notation, a result carries a letter that no operand has, or
            the operator has a built-in rule (or function of torch) that is not to be replaced.
    """
    if not replace:
        refuse_built_in(op)
    if not replace and torch is not None and carried(op) != "no":
        raise RuleError(f"operator {op} has a function of torch: to replace it, give replace=True")
    _user_rules[op] = stated_row(line)
    if torch is not None:
        _user_torch[op] = row_of_user(torch)


def refuse_built_in(op: str) -> None:
    """Let nobody replace a built-in rule unawares.

    Raises:
        RuleError: the operator has one.
    """
    if op in BUILT_IN:
        raise RuleError(
            f"operator {op} has a built-in rule (see 'onnxprune rules {op}'), and --rule and rules "
            "are for operators without one: to replace it, call onnxprune.register_rule(operator, "
            "line, replace=True) in Python"
        )


def every_rule(rules: Mapping[str, str] | None) -> dict[str, Row]:
    """The rules of this process, and some more."""
    for op in rules or {}:
        refuse_built_in(op)
    given = {op: stated_row(line) for op, line in (rules or {}).items()}
    return {**installed_rules(), **_user_rules, **given}


@cache
def installed_rules() -> dict[str, Row]:
    """The rules that installed packages bring along.

    An entry point of the group ``onnxprune.rules`` names a mapping of rows by operator, or a
    function without arguments that gives one.

    Raises:
        RuleError: one can't be read, breaks the notation, or is for an operator that has a
            built-in rule; it says which package is to blame.
    """
    found: dict[str, Row] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda own: own.name):
        for op, line in _brought(point).items():
            owner = f"entry point '{point.name}' of {_package(point)}"
            if op in BUILT_IN:
                raise RuleError(f"{owner}: operator {op} has a built-in rule: leave it out")
            try:
                found[op] = stated_row(line)
            except RuleError as error:
                raise RuleError(f"{owner}: {error}") from error
    return found


def _brought(point: EntryPoint) -> Mapping[str, str]:
    owner = f"entry point '{point.name}' of {_package(point)}"
    try:
        rules = point.load()
        rules = rules() if callable(rules) else rules
    except Exception as error:
        raise RuleError(f"{owner} can't be loaded: {error!r}; mend or remove it") from error
    rows = rules.items() if isinstance(rules, Mapping) else [("", None)]
    if not all(isinstance(op, str) and isinstance(line, str) for op, line in rows):
        raise RuleError(f"{owner} gives {rules!r}: it has to be lines by operator")
    return dict(rows)


def _package(point: EntryPoint) -> str:
    return f"package '{point.dist.name}'" if point.dist is not None else "an installed package"


def every_row() -> dict[str, Callable[..., Any]]:
    """The functions of torch of this process, as rows of the bridge."""
    return dict(_user_torch)
