"""The rows of ``benchmarks.latency``: kept in a file, summed up, held against what is asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from benchmarks import harness

SHARE = 0.5  # of the MACs or of the latency that remains
CLOSE = 0.05  # of the latency that is asked for
LONGEST_S = 120.0  # of a search for it, after the probe
RIVALS = ("unaligned", "uniform", "onnxsim", "torch")


@dataclass(frozen=True)
class Row:
    """One way to prune one model."""

    model: str
    way: str
    macs_left: float
    p50_ms: float
    cpu_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    cpu: float
    realised: float
    goal: float | None
    seconds: float
    ep: str = "cpu"
    commit: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""


def kept() -> list[Row]:
    """The rows in the file of results."""
    path = harness.RESULTS / "latency.json"
    rows = json.loads(path.read_text("utf-8"))["results"]["rows"] if path.exists() else []
    nan = float("nan")
    names = {own.name for own in fields(Row)}
    known: list[dict[str, Any]]
    known = [{k: nan if v is None and k != "goal" else v for k, v in r.items()} for r in rows]
    return [Row(**row) for row in known if row.keys() <= names and "cpu" in row]


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """Realised shares (medians over the models) by way, and the worst speed-up."""
    found: dict[str, object] = {}
    for ep, way in dict.fromkeys((row.ep, row.way) for row in rows if row.way != "original"):
        own = [row for row in rows if (row.ep, row.way) == (ep, way) and not row.error]
        if own:
            found[way if ep == "cpu" else f"{way} on {ep}"] = {
                "models": len(own),
                "realised_median": float(np.median([row.realised for row in own])),
                "speedup_least": min(row.speedup for row in own),
                "speedup_median": float(np.median([row.speedup for row in own])),
            }
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the rows, what failed, and what is asked for."""
    listed = [
        (
            *(row.model, row.ep, row.way, row.macs_left, row.p50_ms, row.speedup),
            f"{row.speedup_low:.2f} to {row.speedup_high:.2f}",
            *(row.cpu, row.realised, row.goal, row.seconds),
        )
        for row in rows
    ]
    columns = ["model", "on", "way", "MACs left", "p50 ms", "speed-up", "95 %", "cpu", "realised"]
    harness.show("Latency, 1 thread", [*columns, "goal", "s"], listed)
    failed = [(f"{row.model} by {row.way}", row.error) for row in rows if row.error]
    harness.show("Failed", ["what", "why"], failed)
    harness.show("What is asked for", ["what", "holds", "for"], _asked(rows))


def _asked(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """What issue 3 asks for, and the rows that it holds for and does not."""
    own = [row for row in rows if row.way != "original" and not row.error]
    ours = [row for row in own if row.way not in RIVALS]
    best = {(r.model, r.ep): r.speedup for r in own if r.way == "macs"}
    others = [row for row in own if row.way in RIVALS]
    latency = [row for row in own if row.way == "latency"]
    every = {
        "the goal at half the MACs": [(r, r.speedup >= r.goal) for r in own if r.goal],
        "never below 1x": [(r, r.speedup_high >= 1) for r in ours if r.way != "unaligned"],
        "ahead of other ways at half the MACs, or no difference": [
            (r, r.speedup_low <= best.get((r.model, r.ep), 0.0)) for r in others
        ],
        "--latency 0.5x met within 5 %": [
            (r, abs(1 / r.speedup / SHARE - 1) <= CLOSE) for r in latency
        ],
        "the same by the processor's time": [
            (r, abs(1 / r.cpu / SHARE - 1) <= CLOSE) for r in latency
        ],
        "in under two minutes after the probe": [(r, r.seconds <= LONGEST_S) for r in latency],
    }
    return [
        (
            what,
            f"{sum(holds for _, holds in found)} of {len(found)}",
            ", ".join(f"not {r.model} ({r.way}, {r.ep})" for r, holds in found if not holds),
        )
        for what, found in every.items()
    ]
