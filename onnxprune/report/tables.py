"""Tables of what the library found. Every function returns something that rich can print."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxprune.amounts import count, size
from onnxprune.compare import INCOMPARABLE
from onnxprune.report.figures import removed, seconds
from onnxprune.report.operators import OperatorRow
from onnxprune.results import FrozenRow, GroupRow, Inspection, Report

if TYPE_CHECKING:
    from onnxprune.verdict import Verification

T = TypeVar("T")
_NODE: Final = re.compile(r"^node '.*' \(([^)]*)\): ")  # a reason is shown once for all nodes
SHOWN: Final = 20  # rows of a table; --all-groups shows the rest
FEW: Final = 0.5  # seconds: a pass that took less is not listed


def table(*columns: str, left: int = 1) -> Table:
    """An empty table; the first ``left`` columns are text, the others figures."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        text = position < left
        made.add_column(
            column, justify="left" if text else "right", no_wrap=not text, overflow="fold"
        )
    return made


def _capped(rows: Sequence[T], every: bool) -> tuple[Sequence[T], list[str]]:
    """The rows to show, and a line on the others."""
    if every or len(rows) <= SHOWN:
        return rows, []
    return rows[:SHOWN], [f"... and {len(rows) - SHOWN} more (--all-groups shows them)"]


def _largest_first(groups: Iterable[GroupRow]) -> list[GroupRow]:
    return sorted(groups, key=lambda row: (-row.macs, -row.params))


def report(found: Report, every: bool = False) -> RenderableType:
    """What pruning did: groups, totals, verification, notes, seconds."""
    rows, more = _capped(_largest_first(found.groups), every)
    groups = table("group", "kind", "width", "MACs", "parameters", left=2)
    for row in rows:
        groups.add_row(
            row.name,
            "mixing" if row.mixing else "exact",
            _change(str(row.before), str(row.after)),
            _change(count(row.macs), count(row.macs_after)),
            _change(count(row.params), count(row.params_after)),
        )
    parts: list[RenderableType] = [groups, *more, ""] if rows else []
    parts += [_totals(found), ""]
    if found.verification is not None:
        parts.append(verification(found.verification))
    parts += [f"note: {note}" for note in found.notes]
    return Group(*parts, _took(found.seconds))


def _took(times: Mapping[str, float]) -> str:
    """The time of the whole, and of the slow passes."""
    slow = ", ".join(f"{name} {seconds(s)}" for name, s in times.items() if s >= FEW)
    return f"took {seconds(sum(times.values()))}" + (f" ({slow})" if slow else "")


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _totals(found: Report) -> Table:
    totals = table("", "before", "after", "removed")
    for name, key, figure in (
        ("MACs", "macs", count),
        ("parameters", "params", count),
        ("file", "size_bytes", size),
        ("peak activations", "peak_bytes", size),
    ):
        before, after = getattr(found.before, key), getattr(found.after, key)
        totals.add_row(name, figure(before), figure(after), removed(before, after))
    return totals


def verification(found: Verification) -> RenderableType:
    """The error of each compared value, and the verdict; a failure is told as an error."""
    rows = table("compared", "relative error", "allowed", "numbers", "", left=1)
    for check in found.checks:
        remarks = {
            "inner value": not check.output,
            "hardly varies": check.blind,
            "order-sensitive": check.ordering,
        }
        marks = ", ".join(text for text, holds in remarks.items() if holds)
        verdict = marks if check.ok else f"DIFFERS {marks}".strip()
        rows.add_row(
            check.value, _error(check.error), f"{check.allowed:.1e}", count(check.count), verdict
        )
    parts: list[RenderableType] = [rows] if found.checks else []
    if found.ok:
        parts.append(f"{'NOT ' if found.blind else ''}verified: {found.summary()}")
    return Group(*parts, *(f"note: {note}" for note in found.notes))


def _error(error: float) -> str:
    return "incomparable" if error >= INCOMPARABLE else f"{error:.1e}"


def verification_json(found: Verification) -> str:
    """The verdict as JSON, for pipelines."""
    data = {"ok": found.ok, "error": found.error, **asdict(found)}
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def inspection(found: Inspection, every: bool = False) -> RenderableType:
    """What a model is made of: figures, groups, and what is frozen and why."""
    figures = table("", found.name)
    for name, text in (
        ("opset", str(found.opset)),
        ("nodes", str(found.nodes)),
        ("MACs", count(found.macs)),
        ("parameters", count(found.params)),
        ("file", size(found.size_bytes)),
        ("peak activations", size(found.peak_bytes)),
    ):
        figures.add_row(name, text)
    rows, more = _capped(_largest_first(found.groups), every)
    groups = table("group", "kind", "width", "members", "MACs", "parameters", left=2)
    for row in rows:
        kind = "mixing" if row.mixing else "exact"
        figure = (str(row.before), str(row.members), count(row.macs), count(row.params))
        groups.add_row(row.name, kind, *figure)
    title = f"{len(found.groups)} groups can be pruned" if rows else "no group can be pruned"
    parts: list[RenderableType] = [figures, "", title]
    parts += [groups, *more] if rows else []
    return Group(*parts, *_frozen(found.frozen, every), *_uncovered(found.uncovered))


def _frozen(rows: Sequence[FrozenRow], every: bool) -> list[RenderableType]:
    """One line a reason, with the axes that it holds; those with most axes first."""
    if not rows:
        return []
    kinds = defaultdict(list)
    for row in rows:
        kinds[_NODE.sub(r"\1: ", row.reason)].append(row)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    shown, more = _capped(ordered, every)
    frozen = table("frozen because", "for example", "axes", left=2)
    for why, own in shown:
        frozen.add_row(why, f"{own[0].param}:{own[0].axis} ({own[0].size})", str(len(own)))
    hint = "onnxprune explain MODEL VALUE:AXIS names the node that freezes an axis"
    return ["", f"{len(rows)} axes of parameters are frozen", frozen, *more, hint]


def _uncovered(found: Mapping[str, str]) -> list[RenderableType]:
    if not found:
        return []
    title = "operators without a rule (--rule 'OPERATOR=LINE' gives it one)"
    return ["", title, *(f"  {op}: {why}" for op, why in sorted(found.items()))]


def operators(rows: Sequence[OperatorRow], missing: bool = False) -> RenderableType:
    """The rule table, or what it lacks; with the share that is covered."""
    listed = table("operator", "what it does with axes" if not missing else "why not", left=2)
    for row in rows:
        if (row.state != "covered") == missing:
            listed.add_row(row.op, row.says)
    lines = []
    for domain in dict.fromkeys(row.domain for row in rows):
        own = [row.state for row in rows if row.domain == domain]
        covered, frozen = own.count("covered"), own.count("frozen")
        lines.append(f"{domain}: {covered} of {len(own)} operators covered, {frozen} frozen")
    hint = [] if missing else ["onnxprune rules --missing lists the others, and why"]
    return Group(listed, "", *lines, *hint)


def operator(row: OperatorRow) -> str:
    """One operator in two lines."""
    return f"{row.op} ({row.state})\n  {row.says}"
