"""Rules of the user's own, for this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxprune.errors import RuleError
from onnxprune.rules import BUILT_IN, Row, stated_row
from onnxprune.torch_bridge import carried, row_of_user

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
    return {**_user_rules, **{op: stated_row(line) for op, line in (rules or {}).items()}}


def every_row() -> dict[str, Callable[..., Any]]:
    """The functions of torch of this process, as rows of the bridge."""
    return dict(_user_torch)
