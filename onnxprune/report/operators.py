"""Which operators the rule table covers: those of ai.onnx, of com.microsoft, and its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import onnx

from onnxprune.rules import BUILT_IN, Unprunable, row_of
from onnxprune.rules.frozen import FROZEN
from onnxprune.torch_bridge import carried

CONTRIB: Final = "com.microsoft"
STANDARD: Final = "ai.onnx"
# Read while loading: no node of these is left when rules are looked up.
READ: Final = {"Constant": "read as a parameter", "Scatter": "deprecated: see ScatterElements"}


@dataclass(frozen=True)
class OperatorRow:
    """What the rule table says of one operator.

    Attributes:
        op: its name, with the domain where that is not ai.onnx.
        domain: its domain.
        state: whether it has a rule, is frozen on purpose, or has no rule yet.
        says: the line, what its computed rule does, or the reason.
        trainable: whether the bridge to torch carries it: ``yes``, ``no gradient``, ``no``.
        examples: small nodes with the line that a computed rule gives each, where asked for.
    """

    op: str
    domain: str
    state: Literal["covered", "frozen", "missing"]
    says: str
    trainable: str = "no"
    examples: tuple[str, ...] = ()


def operators() -> tuple[OperatorRow, ...]:
    """Every operator of ai.onnx (its newest version), of com.microsoft, and of the table."""
    contrib = {f"{CONTRIB}::{name}" for name in _contrib_names()}
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain in ("", STANDARD)}
    every = sorted(standard | {op for op in (*BUILT_IN, *FROZEN) if "::" not in op})
    others = sorted(contrib | {op for op in (*BUILT_IN, *FROZEN) if "::" in op})
    rows = (_row(op) for op in (*every, *others))
    return tuple(replace(row, trainable=carried(row.op)) for row in rows)


def _contrib_names() -> set[str]:
    """The operators of com.microsoft that this ONNX Runtime registers."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {schema.name for schema in get_all_operator_schema() if schema.domain == CONTRIB}


def _row(op: str) -> OperatorRow:
    domain = op.partition("::")[0] if "::" in op else STANDARD
    if op in READ:
        return OperatorRow(op, domain, "covered", READ[op])
    try:
        row = row_of(op, {})
    except Unprunable as verdict:
        if op in FROZEN:
            return OperatorRow(op, domain, "frozen", str(verdict))
        return OperatorRow(op, domain, "missing", "no rule yet: what it touches stays whole")
    says = row if isinstance(row, str) else f"computed: {_summary(row)}"
    return OperatorRow(op, domain, "covered", says)


def _summary(rule: Callable[..., Any]) -> str:
    """The first line of a computed rule's docstring, or of the function that made the rule."""
    maker = getattr(sys.modules[rule.__module__], rule.__qualname__.partition(".")[0])
    text = (rule.__doc__ or maker.__doc__ or rule.__qualname__).strip()
    return text.splitlines()[0].replace("``", "")
