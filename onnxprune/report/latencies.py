"""The sections of a report on benchmarks, from their JSON (see ``onnxprune.report.benches``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from onnxprune.report.figures import milliseconds
from onnxprune.report.prunings import command, environment, layers
from onnxprune.report.sections import (
    Block,
    Cell,
    Chart,
    Column,
    Document,
    Section,
    Series,
    columns_of,
    facts,
    table,
)

Data = Mapping[str, Any]
TIMING: Final = {
    "runs": "runs",
    "p50_ms": "p50, ms",
    "low_ms": "low",
    "high_ms": "high",
    "p90_ms": "p90, ms",
    "p99_ms": "p99, ms",
    "mean_ms": "mean, ms",
    "min_ms": "least, ms",
    "cpu_ms": "CPU time, ms",
    "speedup": "speed-up",
    "speedup_low": "low",
    "speedup_high": "high",
}
INTERVALS: Final = (
    ("p50", "Median latency with its interval", "ms", "p50_ms", "low_ms", "high_ms"),
    ("speed-up", "Speed-up with its interval", "ratio", "speedup", "speedup_low", "speedup_high"),
)
SIZES: Final = {
    "throughput_per_s": "samples/s",
    "size_bytes": "file, bytes",
    "peak_bytes": "peak memory, bytes",
    "difference": "differs from the CPU by",
}


def document(found: Data) -> Document:
    """The report on all that was measured."""
    sections = [Section("Summary", tuple(_summary(found)))]
    for bench in found["benches"]:
        name = bench["name"] or "this machine"
        where = f" on {name}" if len(found["benches"]) > 1 else ""
        sections += [Section(f"{own.title}{where}", own.blocks) for own in _bench(bench)]
    sections.append(Section("Environment", tuple(environment(found))))
    models = dict.fromkeys(row["model"] for bench in found["benches"] for row in bench["rows"])
    return Document(f"Latency of {', '.join(models)}", tuple(own for own in sections if own.blocks))


def _summary(found: Data) -> list[Block]:
    lines = []
    for bench in found["benches"]:
        where = ", ".join(filter(None, (bench["name"], bench["machine"].get("processor"))))
        for row in bench["rows"]:
            name, timing = _label(row), row["timing"]
            if timing is None or row["model"] == bench["rows"][0]["model"]:
                said = row["verdict"] if timing is None else milliseconds(timing["p50_ms"])
            else:
                ends = f"{timing['speedup_low']:.2f} to {timing['speedup_high']:.2f}"
                said = f"{milliseconds(timing['p50_ms'])}, {row['verdict']}, "
                said += f"{timing['speedup']:.2f}x as fast (95 % interval {ends})"
            lines.append(f"{where}, {name}: {said}")
    return [*lines, *command(found)]


def _bench(bench: Data) -> list[Section]:
    return [
        Section("Latency", tuple(_latency(bench))),
        Section("Notes", tuple(bench["notes"])),
        *_profiles(bench),
        Section("Mobile providers", tuple(_mobile(bench))),
        Section("How it was measured", tuple(_target(bench))),
    ]


def _latency(bench: Data) -> list[Block]:
    rows: list[list[Cell]] = []
    for row in bench["rows"]:
        timing = row["timing"] or {}
        own = {**row, **timing, "verdict": row["verdict"]}
        keys = ("model", "batch", "verdict", *TIMING, "load_ms", *SIZES)
        rows += columns_of([own], keys)
    titles = ("model", "batch", "verdict", *TIMING.values(), "load, ms", *SIZES.values())
    timed = [row for row in bench["rows"] if row["timing"]]
    if not timed:
        return [*table(titles, rows)]
    told = (
        "Low and high are the ends of 95 % bootstrap intervals. A speed-up is the ratio of the "
        "first model's median to this one's; where its interval spans 1 there is no difference."
    )
    return [told, *_charts(timed), *table(titles, rows)]


def _charts(timed: list[Data]) -> list[Chart]:
    labels = tuple(_label(row) for row in timed)
    runs = tuple(
        Series(label, tuple(row["timing"]["times_ms"]))
        for label, row in zip(labels, timed, strict=True)
        if row["timing"]["times_ms"]
    )
    boxes = [Chart("boxes", "Latency of every run", "ms", runs)] if runs else []
    intervals = []
    for name, title, axis, *keys in INTERVALS if len(timed) > 1 else INTERVALS[:1]:
        middle, low, high = (tuple(row["timing"][key] for row in timed) for key in keys)
        series = Series(name, middle, low=low, high=high)
        intervals.append(Chart("intervals", title, axis, (series,), labels))
    return [*boxes, *intervals]


def _label(row: Data) -> str:
    return row["model"] if row["batch"] is None else f"{row['model']}, batch {row['batch']}"


def _profiles(bench: Data) -> list[Section]:
    sections = []
    for model, rows in bench["changes"].items():
        sections.append(Section(f"Layers of {model}, before and after", layers(rows)))
    for model, own in bench["profiles"].items():
        sections.append(Section(f"Layers of {model}", tuple(_layers(own, bench["sums"][model]))))
    return sections


def _layers(own: Data, sums: Data) -> list[Block]:
    rows = own["layers"]
    total = own["total_ms"]
    labels = tuple(row["name"] for row in rows)
    series = (Series("ms", tuple(row["ms"] for row in rows)),)
    keys = ("name", "op", "kernel", "ms", "share", "macs", "size_bytes", "bound", "efficiency")
    share = Column("share", share=True)
    titles = ("layer", "operator", "kernel", "ms", share, "MACs", "bytes", "bound by")
    shares = [
        [f"{kind}: {name}", ms, ms / total if total else None]
        for kind, own_sums in sums.items()
        for name, ms in sorted(own_sums.items(), key=lambda item: -item[1])
    ]
    roof = {
        "kernels take, in ms": total,
        "this machine does at best, in MAC/s": own["roofline"]["macs_per_s"],
        "this machine copies, in bytes/s": own["roofline"]["bytes_per_s"],
    }
    return [
        Chart("bars", "Milliseconds of each layer", "ms", series, labels),
        *facts(roof),
        *table(("sum by", "ms", share), shares),
        *table(
            (*titles, Column("of the best", share=True), "provider", "groups"),
            columns_of(rows, (*keys, "provider", "groups")),
        ),
    ]


def _mobile(bench: Data) -> list[Block]:
    keys = ("provider", "taken", "nodes", "partitions", "worth", "refused", "dynamic")
    titles = ("provider", "nodes taken", "of", "parts", "advice", "not taken", "dynamic")
    rows = [
        [model, *cells] for model, own in bench["mobile"].items() for cells in columns_of(own, keys)
    ]
    return [*table(("model", *titles), rows)]


def _target(bench: Data) -> list[Block]:
    shapes = {f"input {name}": "x".join(map(str, own)) for name, own in bench["inputs"].items()}
    return [*facts({**bench["target"], **shapes}), *facts(bench["machine"])]
