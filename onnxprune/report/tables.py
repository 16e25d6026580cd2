"""Tables of what the library found. Every function returns something that rich can print."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxprune.amounts import count, size
from onnxprune.compare import INCOMPARABLE
from onnxprune.coupling import WHOLE
from onnxprune.fidelity import Fidelity
from onnxprune.metrics import TOP, Evaluation
from onnxprune.report.figures import removed, seconds
from onnxprune.report.operators import OperatorRow
from onnxprune.results import FrozenRow, GroupRow, Inspection, Layer, Pace, Report
from onnxprune.trials import Sensitivity, Trial

if TYPE_CHECKING:
    from onnxprune.verdict import Verification

T = TypeVar("T")
_NODE: Final = re.compile(r"^node '.*' \(([^)]*)\): ")  # a reason is shown once for all nodes
SHOWN: Final = 20  # rows of a table; --all-groups shows the rest
NARROW: Final = 8  # columns that a text keeps, however many figures stand beside it
RATIOS: Final = 5  # of a table of sensitivities: more do not fit 80 columns
LONG: Final = 60  # characters of a name in a table; JSON has all of them
INPUTS: Final = 6  # of which the shapes are listed
FEW: Final = 0.5  # seconds: a pass that took less is not listed


def table(*columns: str, left: int = 1) -> Table:
    """An empty table; the first ``left`` columns are text, the others figures."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        text = position < left
        made.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
            min_width=NARROW if text and len(column) > 1 else None,
        )
    return made


def short(name: str) -> str:
    """The name, with its middle left out where it would break a table."""
    if len(name) <= LONG:
        return name
    head = (LONG - 1) // 2
    return f"{name[:head]}…{name[len(name) - (LONG - 1 - head) :]}"


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
            short(row.name),
            "mixing" if row.mixing else "exact",
            _change(str(row.before), str(row.after)),
            _change(count(row.macs), count(row.macs_after)),
            _change(count(row.params), count(row.params_after)),
        )
    parts: list[RenderableType] = [groups, *more, ""] if rows else []
    parts += [_totals(found), _holds_for(found.inputs), ""]
    if found.verification is not None:
        parts.append(verification(found.verification))
    parts += _recovered(found.recovery)
    parts += judgement(found.fidelity, found.evaluation)
    parts += [pace(found.pace)] if found.pace is not None else []
    parts += [f"note: {note}" for note in found.notes]
    return Group(*parts, _took(found.seconds))


def _recovered(layers: Sequence[Layer]) -> list[str]:
    """How many layers were fitted, and why others were not."""
    if not layers:
        return []
    fitted = sum(layer.strength is not None for layer in layers)
    why = Counter(layer.reason for layer in layers if layer.strength is None)
    rest = "; ".join(f"{number} not: {reason}" for reason, number in why.most_common())
    return [f"recovered: {fitted} layers fitted" + (f"; {rest}" if rest else "")]


def _holds_for(inputs: Mapping[str, tuple[int, ...]]) -> str:
    """For which input shapes costs are given; a dynamic number of samples counts as one."""
    shapes = {name: "x".join(map(str, shape)) or "scalar" for name, shape in inputs.items()}
    shown = [f"{short(name)}: {shape}" for name, shape in shapes.items()][:INPUTS]
    more = f" and {len(shapes) - INPUTS} more inputs" if len(shapes) > INPUTS else ""
    text = ", ".join(shown) + more
    single = any(shape[:1] == (1,) for shape in inputs.values())
    return f"MACs for {'one sample, ' if single else ''}{text}"


def pace(found: Pace) -> str:
    """The measured latency in one sentence."""
    same = found.speedup_low <= 1 <= found.speedup_high
    verdict = "no difference" if same else f"{found.speedup:.2f}x as fast"
    texts = [
        f"{found.before_ms:.3g} ms -> {found.after_ms:.3g} ms, {verdict} (95 % interval "
        f"{found.speedup_low:.2f} to {found.speedup_high:.2f})"
    ]
    if found.predicted_ms is not None:
        texts.append(f"predicted {found.predicted_ms:.3g} ms")
    if found.asked:
        texts.append(f"asked for {found.asked}")
    where = f"{found.target.ep}, threads {found.target.threads}"
    return f"measured on {where}: {'; '.join(texts)}"


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
        ("peak activations, counted", "peak_bytes", size),
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
            short(check.value),
            _error(check.error),
            f"{check.allowed:.1e}",
            count(check.count),
            verdict,
        )
    parts: list[RenderableType] = [rows] if found.checks else []
    if found.ok:
        parts.append(f"{'NOT ' if found.blind else ''}verified: {found.summary()}")
    return Group(*parts, *(f"note: {note}" for note in found.notes))


def judgement(rows: Sequence[Fidelity], own: Evaluation | None) -> list[RenderableType]:
    """What data says: the metric before and after, and the fidelity of each output."""
    parts: list[RenderableType] = []
    if rows:
        columns = ("agreement", "cosine", "KL", "SQNR", "largest error", "samples")
        shown = table("output", *columns)
        for row in rows:
            sqnr = "no error" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
            shown.add_row(
                short(row.output),
                "-" if row.agreement is None else f"{100 * row.agreement:.1f} %",
                "-" if row.cosine is None else f"{row.cosine:.4f}",
                "-" if row.kl is None else f"{row.kl:.3g}",
                "-" if row.missed is None else sqnr,
                f"{row.max_error:.3g}",
                str(row.samples) + (f", {row.incomparable} incomparable" * bool(row.incomparable)),
            )
        parts.append(shown)
    if own is not None:
        before, after = (_figure(own, value) for value in (own.before, own.after))
        told = f"{before} -> {after}" if rows else before  # without a second model
        parts.append(f"{own.metric} of {own.samples} samples: {told}")
    return parts


def sensitivity(found: Sensitivity) -> RenderableType:
    """What each group loses at some ratios: a row a group, a column a ratio."""
    ratios = sorted({trial.ratio for trial in found.trials})
    if len(ratios) > RATIOS:  # of those that lie evenly; files have all
        ratios = [ratios[round(k * (len(ratios) - 1) / (RATIOS - 1))] for k in range(RATIOS)]
    rows: dict[str, dict[float, Trial]] = defaultdict(dict)
    for trial in found.trials:
        rows[trial.group][trial.ratio] = trial
    timed = any(trial.ms is not None for trial in found.trials)
    head = "fall, ms that go, without" if timed else "fall without"
    shown = table(head, *(f"{100 * ratio:g} %" for ratio in ratios))
    for name, own in rows.items():
        cells = (_trial(own[ratio]) if ratio in own else "-" for ratio in ratios)
        shown.add_row(short(name), *cells)
    return shown


def _trial(own: Trial) -> str:
    return f"{own.fall:.4f}" if own.ms is None else f"{own.fall:.4f}, {own.ms:.3g}"


def _figure(own: Evaluation, value: float) -> str:
    return f"{100 * value:.2f} %" if own.metric in TOP else f"{value:.4g}"


def _error(error: float) -> str:
    return "incomparable" if error >= INCOMPARABLE else f"{error:.1e}"


def verification_json(found: Verification) -> str:
    """The verdict as JSON, for pipelines."""
    data = {"ok": found.ok, "error": found.error, **asdict(found)}
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def inspection(found: Inspection, every: bool = False) -> RenderableType:
    """What a model is made of: figures, groups, and what is frozen and why."""
    figures = table("", short(found.name))
    for name, text in (
        ("opset", str(found.opset)),
        ("nodes", str(found.nodes)),
        ("MACs", count(found.macs)),
        ("parameters", count(found.params)),
        ("file", size(found.size_bytes)),
        ("peak activations, counted", size(found.peak_bytes)),
    ):
        figures.add_row(name, text)
    rows, more = _capped(_largest_first(found.groups), every)
    groups = table("group", "kind", "width", "members", "MACs", "parameters", left=2)
    for row in rows:
        kind = "mixing" if row.mixing else "balanced" if row.rows > 1 else "exact"
        figure = (str(row.before), str(row.members), count(row.macs), count(row.params))
        groups.add_row(short(row.name), kind, *figure)
    title = f"{len(found.groups)} groups can be pruned" if rows else "no group can be pruned"
    parts: list[RenderableType] = [figures, _holds_for(found.inputs), "", title]
    parts += [groups, *more] if rows else []
    return Group(*parts, *_frozen(found.frozen, every), *_uncovered(found.uncovered))


def _frozen(rows: Sequence[FrozenRow], every: bool) -> list[RenderableType]:
    """One line a reason, with the axes that it holds; those with most axes first.

    What rules keep whole (kernel sizes, tables of ids) is as one expects: one line, the last.
    """
    if not rows:
        return []
    kinds = defaultdict(list)
    whole: list[FrozenRow] = []
    keeping: set[str] = set()
    for row in rows:
        why = _NODE.sub(r"\1: ", row.reason)
        if row.reason.endswith(WHOLE):
            whole.append(row)
            keeping.add(why.partition(":")[0])
        else:
            kinds[why].append(row)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    shown, more = _capped(ordered, every)
    if whole:
        names = ", ".join(sorted(keeping))
        shown = [*shown, (f"whole by the rules of {names}: kernel sizes, ids and the like", whole)]
    frozen = table("frozen because", "for example", "axes", left=2)
    for why, own in shown:
        frozen.add_row(why, f"{short(own[0].param)}:{own[0].axis} ({own[0].size})", str(len(own)))
    hint = "onnxprune explain MODEL VALUE:AXIS names the node that freezes an axis"
    return ["", f"{len(rows)} axes of parameters are frozen", frozen, *more, hint]


def _uncovered(found: Mapping[str, str]) -> list[RenderableType]:
    if not found:
        return []
    title = "operators without a rule (--rule 'OPERATOR=LINE' gives it one)"
    return ["", title, *(f"  {op}: {why}" for op, why in sorted(found.items()))]


def operators(rows: Sequence[OperatorRow], state: str = "covered") -> list[RenderableType]:
    """The operators of a state; of those covered with the share. Of no operators, nothing."""
    wanted = [row for row in rows if row.state == state]
    if not wanted:
        return []
    says = "what it does with axes" if state == "covered" else "why"
    listed = table("operator", "trainable", says, left=3)
    for row in wanted:
        listed.add_row(row.op, row.trainable, row.says)
    if state == "missing":
        kept = "What has no rule is kept whole, and so is all that it touches."
        return [listed, "", kept]
    if state == "frozen":
        return [listed]
    lines = []
    for domain in dict.fromkeys(row.domain for row in rows):
        own = [row.state for row in rows if row.domain == domain]
        covered, frozen = own.count("covered"), own.count("frozen")
        trained = sum(row.trainable == "yes" for row in rows if row.domain == domain)
        lines.append(
            f"{domain}: {covered} of {len(own)} operators covered, {frozen} frozen; the bridge to "
            f"torch carries gradients through {trained}"
        )
    return [listed, "", *lines, "onnxprune rules --frozen lists those, and why"]


def operator(row: OperatorRow) -> str:
    """One operator in two lines, and examples of a computed rule."""
    examples = [
        "  such as, with shapes in [] and constants in {}",
        *(f"    {example}" for example in row.examples),
    ]
    trained = {"yes": "trainable", "no gradient": "no gradient", "no": "not trainable"}
    head = f"{row.op} ({row.state}; {trained[row.trainable]})"
    lines = [head, f"  {row.says}", *(examples if row.examples else ())]
    return "\n".join(lines)
