"""Tables of benchmarks: latency side by side, layers before and after, mobile providers."""

from __future__ import annotations

import csv as csv_
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType

from onnxprune.amounts import count, size
from onnxprune.environment import command, environment
from onnxprune.measuring import Bench, Row
from onnxprune.profile import Change, Layer, Profile, changes
from onnxprune.report.figures import milliseconds
from onnxprune.report.tables import short, table

SHOWN: Final = 20
COLUMNS: Final = (
    *("machine", "ep", "threads", "model", "batch", "runs", "p50_ms", "low_ms", "high_ms"),
    *("p90_ms", "p99_ms", "mean_ms", "min_ms", "cpu_ms", "speedup", "speedup_low"),
    *("speedup_high", "verdict", "throughput_per_s", "load_ms", "size_bytes", "peak_bytes"),
)


def plain(found: Sequence[Bench]) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "benches": [{**bench.to_dict(), **_compared(bench)} for bench in found],
        "environment": environment(),
        "command": command(),
    }


def _compared(bench: Bench) -> dict[str, Any]:
    """What profiles say together: sums of each, changes from the first one."""
    profiles = list(bench.profiles.items())
    sums = {
        name: {
            "operator": own.by_operator(),
            "provider": own.by_provider(),
            "bound by": own.by_bound(),
        }
        for name, own in profiles
    }
    other = {
        name: [asdict(change) for change in changes(profiles[0][1].layers, own.layers)]
        for name, own in profiles[1:]
    }
    return {"sums": sums, "changes": other}


def json_text(found: Sequence[Bench]) -> str:
    """Everything as JSON."""
    return json.dumps(plain(found), indent=2, sort_keys=True, default=str)


def csv(found: Sequence[Bench]) -> str:
    """The rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv_.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for bench in found:
        for row in bench.to_dict()["rows"]:
            own = {"machine": bench.name or "this", **_target(bench), **(row["timing"] or {})}
            writer.writerow({**row, **own})
    return text.getvalue()


def _target(bench: Bench) -> dict[str, Any]:
    target = bench.target
    return {"ep": target.get("ep") or target.get("provider"), "threads": target["threads"]}


def exported(found: Bench, folder: Path) -> str:
    """What was written, and what to do with it."""
    return (
        f"wrote {len(found.notes)} files to {folder}: carry it to the other machine, run "
        f"'python run.py' there (it needs numpy and onnxruntime), bring result.json back, and show "
        "it with 'onnxprune bench --import result.json'"
    )


def tables(found: Sequence[Bench], every: bool = False) -> RenderableType:
    """All that was measured; each machine for itself."""
    parts: list[RenderableType] = []
    for bench in found:
        parts += [*_bench(bench, every), ""]
    return Group(*parts[:-1])


def _bench(bench: Bench, every: bool) -> list[RenderableType]:
    own, machine = _target(bench), bench.machine
    threads = f"{own['threads']} thread{'s' if own['threads'] > 1 else ''}"
    title = f"{own['ep']}, {threads}, onnxruntime {machine.get('onnxruntime', '?')}"
    where = f"{bench.name}: " if bench.name else ""
    parts: list[RenderableType] = [f"{where}{machine.get('processor', '?')}, {title}", ""]
    parts += [*_latency(bench), ""]
    profiles = list(bench.profiles.items())
    if len(profiles) == 1:
        parts += _profile(profiles[0][1], every)
    for name, after in profiles[1:]:
        parts += [f"{profiles[0][0]} -> {name}", *_changes(profiles[0][1], after, every)]
    if bench.mobile:
        parts += [_mobile(bench), ""]
    return [*parts, *(f"note: {note}" for note in bench.notes)]


def _latency(bench: Bench) -> list[RenderableType]:
    """What decides, then the rest: two tables, so that a narrow terminal cuts no figure."""
    several = len({row.batch for row in bench.rows}) > 1
    first = ["model", *(["batch"] if several else [])]
    fast = table(*first, "p50", "±", "speed-up", "")
    rest = table(*first, "p90", "p99", "CPU", "samples/s", "load", "peak", "file")
    for row in bench.rows:
        who = [short(row.model), *([str(row.batch)] if several else [])]
        fast.add_row(*who, *_speed(row, row.model == bench.rows[0].model))
        rest.add_row(*who, *_figures(row))
    return [fast, "", rest]


def _speed(row: Row, base: bool) -> list[str]:
    timing = row.timing
    if timing is None:
        said = "-" if row.difference is None else f"differs by {row.difference:.1e}"
        return ["-", "-", said, row.verdict]
    half = 50 * (timing.high_ms - timing.low_ms) / timing.p50_ms
    ratio = f"{timing.speedup:.2f}x [{timing.speedup_low:.2f}, {timing.speedup_high:.2f}]"
    told = ["", ""] if base else [ratio, row.verdict]
    return [milliseconds(timing.p50_ms), f"{half:.1f} %", *told]


def _figures(row: Row) -> list[str]:
    timing = row.timing
    sizes = ["-" if row.peak_bytes is None else size(row.peak_bytes), size(row.size_bytes)]
    if timing is None:
        return ["-"] * 5 + sizes
    return [
        milliseconds(timing.p90_ms),
        milliseconds(timing.p99_ms),
        milliseconds(timing.cpu_ms) if timing.cpu_ms else "-",
        f"{row.throughput or 0:.1f}",
        milliseconds(timing.load_ms),
        *sizes,
    ]


def _profile(found: Profile, every: bool) -> list[RenderableType]:
    rows = table("layer", "operator", "groups", "ms", "share", "MACs", "bytes", "bound by", left=3)
    layers = sorted(found.layers, key=lambda layer: -layer.ms)
    shown = layers if every else layers[:SHOWN]
    for layer in shown:
        rows.add_row(
            layer.name,
            _fused(layer),
            ", ".join(layer.groups),
            f"{layer.ms:.3f}",
            f"{100 * layer.share:.1f} %",
            count(layer.macs),
            "-" if layer.size_bytes is None else size(layer.size_bytes),
            layer.bound or "-",
        )
    return [rows, *_more(len(layers) - len(shown)), *_sums(found), ""]


def _fused(layer: Layer) -> str:
    return layer.op if layer.kernel in (layer.op, "") else f"{layer.op} ({layer.kernel})"


def _changes(before: Profile, after: Profile, every: bool) -> list[RenderableType]:
    rows = table(
        *("layer", "operator", "groups", "ms before", "after", "saved", "MACs before", "after"),
        left=3,
    )
    found = sorted(
        changes(before.layers, after.layers), key=lambda c: -max(c.before_ms, c.after_ms)
    )
    shown = found if every else found[:SHOWN]
    for change in shown:
        rows.add_row(
            change.name,
            _kernels(change),
            ", ".join(change.groups),
            f"{change.before_ms:.3f}",
            f"{change.after_ms:.3f}",
            f"{change.before_ms - change.after_ms:.3f}",
            count(change.before_macs),
            count(change.after_macs),
        )
    parts: list[RenderableType] = [rows, *_more(len(found) - len(shown))]
    return [*parts, "before:", *_sums(before), "after:", *_sums(after), ""]


def _kernels(change: Change) -> str:
    if change.before_kernel == change.after_kernel or not change.after_kernel:
        return change.op
    return f"{change.op} ({change.before_kernel or '-'} -> {change.after_kernel})"


def _more(left: int) -> list[str]:
    return [f"... and {left} more (--all shows them)"] if left > 0 else []


def _sums(found: Profile) -> list[str]:
    """Shares by operator, provider and bound, in a line each."""
    roof = found.roofline
    lines = [
        f"{len(found.layers)} kernels take {found.total_ms:.3f} ms in all, of each about 2 us the "
        "profiler's; this machine does "
        f"{count(roof.macs_per_s)}MAC/s and copies {size(roof.bytes_per_s)}/s: above "
        f"{roof.ridge:.1f} MAC a byte a layer is bound by arithmetic (compute)"
    ]
    for title, sums in (
        ("operators", found.by_operator()),
        ("providers", found.by_provider()),
        ("bound by", found.by_bound()),
    ):
        shares = [f"{name} {100 * ms / found.total_ms:.0f} %" for name, ms in sums.items()]
        lines.append(f"{title}: {', '.join(shares[:8])}")
    return lines


def _mobile(bench: Bench) -> RenderableType:
    rows = table("model", "provider", "nodes taken", "parts", "advice", "not taken", left=2)
    for model, found in bench.mobile.items():
        for row in found:
            refused = ", ".join(row.refused) + (f", {row.dynamic} dynamic" if row.dynamic else "")
            taken = f"{row.taken} of {row.nodes}"
            rows.add_row(model, row.provider, taken, str(row.partitions), row.worth, refused)
    return rows
