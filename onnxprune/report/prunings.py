"""The sections of a report on pruning, from its JSON (see ``onnxprune.results.Report``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final

from onnxprune.amounts import count, size
from onnxprune.report.figures import milliseconds, removed
from onnxprune.report.sections import (
    Block,
    Cell,
    Chart,
    Code,
    Column,
    Document,
    Section,
    Series,
    columns_of,
    facts,
    table,
)

Data = Mapping[str, Any]
COSTS: Final = {
    "macs": ("MACs", count),
    "params": ("parameters", count),
    "size_bytes": ("bytes of the file", size),
    "peak_bytes": ("bytes of peak activations", size),
}


def document(found: Data) -> Document:
    """The report on one pruning."""
    sections = (Section(title, tuple(blocks(found))) for title, blocks in SECTIONS.items())
    return Document(f"{found['name']}, pruned", tuple(own for own in sections if own.blocks))


def _summary(found: Data) -> list[Block]:
    why = found.get("refused")
    lines = [f"REFUSED, no model was written: {why}"] if why else []
    for key, (name, written) in COSTS.items():
        before, after = found["before"][key], found["after"][key]
        lines.append(
            f"{name}: {written(before)} -> {written(after)}, {removed(before, after)} less"
        )
    pace = found.get("pace")
    if pace is not None:
        before, after = milliseconds(pace["before_ms"]), milliseconds(pace["after_ms"])
        lines.append(f"latency: {before} -> {after}, {pace['speedup']:.2f}x as fast")
    return [*lines, _verdict(found["verification"]), *command(found)]


def command(found: Data) -> list[Block]:
    """The command line of any report."""
    return [Code(found["command"])] if found.get("command") else []


def _verdict(own: Data | None) -> str:
    if own is None:
        return "Not verified: the proof was switched off."
    proven = own["ok"] and not own["blind"]
    return f"{'Verified' if proven else 'NOT verified'}: {own['summary']}"


def _asked(found: Data) -> list[Block]:
    shapes = {name: "x".join(map(str, own)) or "scalar" for name, own in found["inputs"].items()}
    told = {f"costs are for input {name}": shape for name, shape in shapes.items()}
    return [*facts({"model": found["name"], **found["settings"], **told})]


def _costs(found: Data) -> list[Block]:
    pairs = {name: (found["before"][key], found["after"][key]) for key, (name, _) in COSTS.items()}
    if found["before"].get("latency_ms"):
        predicted = (found["before"]["latency_ms"], found["after"]["latency_ms"])
        pairs["latency in ms, by the fitted model"] = predicted
    pace = found.get("pace")
    if pace is not None:
        pairs["latency in ms, measured (median)"] = (pace["before_ms"], pace["after_ms"])
    rows = [[name, a, b, 1 - b / a if a else None] for name, (a, b) in pairs.items()]
    return [*table(("what", "before", "after", Column("removed", share=True)), rows)]


def _pace(found: Data) -> list[Block]:
    pace = found.get("pace")
    return [] if pace is None else [*facts(pace)]


def _layers(found: Data) -> list[Block]:
    return [*layers(found.get("layers") or [])]


def layers(rows: list[Data]) -> tuple[Block, ...]:
    """Milliseconds and multiply-accumulates of layers before and after, of any report."""
    labels = tuple(row["name"] for row in rows)
    charts = [
        Chart("bars", title, axis, before_after(rows, f"before_{key}", f"after_{key}"), labels)
        for title, axis, key in (
            ("Milliseconds of each layer", "ms", "ms"),
            ("Multiply-accumulates of each layer", "MACs", "macs"),
        )
    ]
    keys = ("name", "op", "before_ms", "after_ms", "before_macs", "after_macs", "groups")
    titles = ("layer", "operator", "ms before", "after", "MACs before", "after", "groups")
    cells = columns_of(rows, (*keys, "before_kernel", "after_kernel"))
    listed = table((*titles, "kernel before", "after"), cells)
    return (*charts, *listed) if rows else ()


def _tries(found: Data) -> list[Block]:
    rows = found.get("tries") or []
    if not rows:
        return []
    told = (
        "What was made on the way to the result. The share of the latency is that of the medians "
        "of interleaved runs; fidelity is the least of all outputs."
    )
    cost = "macs" if any(row["latency"] is None for row in rows) else "latency"
    worth = "metric" if any(row["metric"] is not None for row in rows) else "fidelity"
    points = sorted((row[cost], row[worth]) for row in rows if row[worth] is not None)
    places, values = (tuple(own[k] for own in points) for k in (0, 1))
    what = {"macs": "MACs", "latency": "latency"}[cost]
    axis = f"share of the {what} that remains"
    series = (Series(worth, values, places),)
    chart = Chart("lines", f"{worth} against {what}", worth, series, other=axis)
    shares = (Column("MACs that remain", share=True), Column("latency", share=True))
    keys = ("macs", "latency", "latency_ms", "metric", "fidelity", "recovered", "chosen")
    titles = (*shares, "ms", "metric", "fidelity", "recovered", "the result")
    cells = ([str(k), *row] for k, row in enumerate(columns_of(rows, keys), 1))
    listed = table(("try", *titles), cells)
    return [told, *([chart] if len(points) > 1 else []), *listed]


def _groups(found: Data) -> list[Block]:
    rows = found["groups"]
    if not rows:
        return []
    columns = ("name", "before", "after", "mixing", "members")
    costs = ("macs", "macs_after", "params", "params_after")
    titles = ("channels before", "after", "mixing", "members", "MACs before", "after")
    listed = table(
        ("group", *titles, "parameters before", "after"), columns_of(rows, (*columns, *costs))
    )
    labels = tuple(row["name"] for row in rows)
    charts = (
        ("Channels of each group", "channels", "before", "after"),
        ("Multiply-accumulates that scale with each group", "MACs", "macs", "macs_after"),
    )
    return [
        *(
            Chart("bars", title, axis, before_after(rows, before, after), labels)
            for title, axis, before, after in charts
        ),
        *listed,
    ]


def before_after(rows: list[Data], before: str, after: str) -> tuple[Series, ...]:
    """Two series of a chart from two columns."""
    return (
        Series("before", tuple(row[before] for row in rows)),
        Series("after", tuple(row[after] for row in rows)),
    )


def _recovery(found: Data) -> list[Block]:
    rows = found["recovery"]
    if not rows:
        return []
    what = "Share of a layer's variance that it misses, on samples that the fit has not seen"
    labels = tuple(row["node"] for row in rows)
    chart = Chart("bars", what, "missed share", before_after(rows, "before", "after"), labels)
    shares = (Column("missed before", share=True), Column("after", share=True))
    keys = ("node", "before", "after", "strength", "reason")
    titles = ("layer", *shares, "penalty", "why it stays as it is")
    return [f"{what}.", chart, *table(titles, columns_of(rows, keys))]


def _sensitivity(found: Data) -> list[Block]:
    own = found.get("sensitivity")
    if own is None:
        return []
    rows = own["trials"]
    series = []
    for name, trials in groupby(rows, key=lambda row: row["group"]):
        points = sorted((row["ratio"], row["fall"]) for row in trials)
        series.append(Series(name, tuple(y for _, y in points), tuple(x for x, _ in points)))
    what = "What is lost when one group alone loses channels"
    chart = Chart("lines", what, "fall", tuple(series), other="share of the group's channels")
    shares = (Column("MACs that go", share=True), Column("parameters that go", share=True))
    titles = ("group", Column("share", share=True), "channels before", "after", "fall")
    keys = ("group", "ratio", "before", "after", "fall", "divergence", "macs", "params", "ms")
    cells = columns_of([{"ms": None, **row} for row in rows], keys)
    return [chart, *table((*titles, "divergence", *shares, "ms that go"), cells)]


def _data(found: Data) -> list[Block]:
    keys = ("output", "value", "agreement", "cosine", "kl", "sqnr_db", "missed", "max_error")
    titles = ("output", "fidelity", Column("agreement", share=True), "cosine", "KL", "SQNR in dB")
    rows = columns_of(found["fidelity"], (*keys, "samples", "incomparable"))
    ends = (Column("missed", share=True), "largest error", "samples", "incomparable")
    own = found["evaluation"]
    cells = (
        [] if own is None else columns_of([own], ("metric", "before", "after", "drop", "samples"))
    )
    return [
        *table(("metric", "before", "after", "drop", "samples"), cells),
        *table((*titles, *ends), rows),
    ]


def _verification(found: Data) -> list[Block]:
    own = found["verification"]
    if own is None:
        return [_verdict(own)]
    keys = ("value", "error", "allowed", "count", "output", "blind", "ordering")
    titles = ("compared", "relative error", "allowed", "numbers", "output of the graph")
    rows = columns_of(own["checks"], keys)
    told = {
        "largest relative error of an output": own["error"],
        "tolerance": own["tolerance"],
        "rounding of the oracle itself": own["noise"],
        "values inside the graph compared": own["inner_values"],
        "numbers in them": own["inner_numbers"],
    }
    return [
        _verdict(own),
        *facts(told),
        *table((*titles, "hardly varies", "order-sensitive"), rows),
        *own["notes"],
    ]


def _frozen(found: Data) -> list[Block]:
    rows = found.get("frozen") or []
    if not rows:
        return []
    reasons = Counter(row["reason"] for row in rows)
    told = f"{len(rows)} axes of parameters can't be pruned, for {len(reasons)} reasons."
    cells = columns_of(rows, ("param", "axis", "size", "reason"))
    return [told, *table(("parameter", "axis", "size", "why"), cells)]


def _seconds(found: Data) -> list[Block]:
    rows: list[list[Cell]] = [[name, seconds] for name, seconds in found["seconds"].items()]
    return [*table(("pass", "seconds"), rows)]


def _notes(found: Data) -> list[Block]:
    return [*found["notes"]]


def environment(found: Data) -> list[Block]:
    """The machine and the versions of any report."""
    return [*facts(found.get("environment") or {})]


SECTIONS: Final[Mapping[str, Callable[[Data], list[Block]]]] = {
    "Summary": _summary,
    "Before and after": _costs,
    "Latency": _pace,
    "Notes": _notes,
    "What was asked": _asked,
    "Groups": _groups,
    "Layers": _layers,
    "Tries": _tries,
    "Recovery": _recovery,
    "Sensitivity": _sensitivity,
    "On data": _data,
    "Verification": _verification,
    "Frozen axes": _frozen,
    "Time by pass": _seconds,
    "Environment": environment,
}
