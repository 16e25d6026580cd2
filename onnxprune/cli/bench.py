"""The command that measures: bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxprune.cli import options
from onnxprune.cli.options import TARGET, option
from onnxprune.cli.shell import INTERRUPTED, app
from onnxprune.cli.targets import Files, check
from onnxprune.errors import OnnxPruneError
from onnxprune.report.console import progress, show

if TYPE_CHECKING:
    from onnxprune.measuring import Bench

LONG = "How long"
SHOWN = "What is shown"
ELSEWHERE = "Other machines"

Models = Annotated[list[Path] | None, options.argument("MODEL...", "Models, .onnx or .ort files.")]
Optimization = Annotated[
    str, option("--graph-optimization", TARGET, "disable, basic, extended, layout or all.")
]
Inputs = Annotated[
    Path | None,
    option(
        "--inputs",
        TARGET,
        "Real inputs by name; random ones where absent.",
        metavar="FILE.npz",
    ),
]
Shape = Annotated[
    list[str],
    option(
        "--shape",
        TARGET,
        "The shape of a random input. Repeatable.",
        metavar="NAME=1x3x224x224",
    ),
]
Batch = Annotated[
    str | None, option("--batch", TARGET, "Batch sizes, for throughput.", metavar="1,8,32")
]
Runs = Annotated[
    int | None,
    option(
        "--runs",
        LONG,
        "Timed runs of each model; else 50 and more, until the intervals are narrow.",
        min=1,
    ),
]
Seconds = Annotated[
    float,
    option("--seconds", LONG, "The longest that the timed runs of a batch size may take.", min=0),
]
Profile = Annotated[bool, option("--profile", SHOWN, "Say where the time goes, by layer.")]
Mobile = Annotated[bool, option("--mobile", SHOWN, "Say what NNAPI and CoreML would take.")]
Csv = Annotated[bool, option("--csv", SHOWN, "Print the rows as CSV, nothing else.")]
Export = Annotated[
    Path | None,
    option(
        "--export",
        ELSEWHERE,
        "Measure nothing: write a folder to carry to another machine.",
        metavar="FOLDER",
    ),
]
Import = Annotated[
    list[Path],
    option(
        "--import",
        ELSEWHERE,
        "Show what an exported folder measured, too. Repeatable.",
        metavar="FILE.json",
    ),
]


@app.command()
def bench(
    models: Models = None,
    threads: options.Threads = 1,
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = [],  # noqa: B006  (typer copies it)
    graph_optimization: Optimization = "all",
    inputs: Inputs = None,
    shape: Shape = [],  # noqa: B006
    batch: Batch = None,
    runs: Runs = None,
    seconds: Seconds = 60.0,
    seed: options.Seed = 0,
    profile: Profile = False,
    mobile: Mobile = False,
    every: options.All = False,
    json_: options.AsJson = False,
    csv: Csv = False,
    report: options.WriteReport = None,
    export: Export = None,
    imports: Import = [],  # noqa: B006
) -> None:
    """Measure models side by side: latency, memory, size, and where the time goes."""
    _check(models or (), imports, export, json_ and csv, report, inputs)
    given: dict[str, Any] = {
        "ep": ep,
        "threads": threads,
        "ep_options": options.ep_options_of(ep_option),
        "graph_optimization": graph_optimization,
        "inputs": inputs,
        "sizes": dict(sizes(text) for text in shape),
        "batches": batches(batch),
        "runs": runs,
        "seconds": seconds,
        "seed": seed,
        "profile": profile,
        "mobile": mobile,
        "export": export,
    }
    with progress(not (json_ or csv)) as tell:
        from onnxprune import api_bench

        found = [api_bench.bench(*models, **given, progress=tell)] if models else []
        found += [api_bench.bench_import(path) for path in imports]
    if report is not None:
        _write(found, report)
    _print(found, "json" if json_ else "csv" if csv else "tables", export, every, report)
    if any(row.timing is not None and row.timing.interrupted for b in found[:1] for row in b.rows):
        raise typer.Exit(INTERRUPTED)


def _check(
    models: Sequence[Path],
    imports: Sequence[Path],
    export: Path | None,
    two_forms: bool,
    report: Path | None,
    inputs: Path | None,
) -> None:
    """Refuse, before anything is measured, what makes no sense or could not be written."""
    if not models and not imports:
        raise OnnxPruneError("there is nothing to measure: give models, or --import FILE.json")
    if two_forms:
        raise OnnxPruneError("--json and --csv exclude each other")
    if export is not None and not models:
        raise OnnxPruneError("--export has nothing to carry: give models")
    if export is not None and report is not None:
        raise OnnxPruneError("--export measures nothing, so --report has nothing to show")
    if report is not None:
        check(Files((*models, *imports, inputs), None, None, report, False), None, False)


def _write(found: Sequence[Bench], report: Path) -> None:
    from onnxprune.files import together
    from onnxprune.report import benches, latencies, writing

    text = writing.rendered(report, benches.json_text(found) + "\n", latencies.document)
    with together() as write:
        write(report, lambda place: place.write_text(text, encoding="utf-8"))


def _print(
    found: Sequence[Bench], form: str, export: Path | None, every: bool, report: Path | None
) -> None:
    from onnxprune.report import benches

    if form == "json":
        typer.echo(benches.json_text(found))
    elif form == "csv":
        typer.echo(benches.csv(found), nl=False)
    elif export is not None:
        show(benches.exported(found[0], export))
    else:
        show(benches.tables(found, every))
        if report is not None:
            show(f"wrote the report to {report}")


def sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """``NAME=1x3x224x224``.

    Raises:
        OnnxPruneError: it is not of this form.
    """
    name, _, shape = text.rpartition("=")
    parts = shape.split("x")
    if not name or not all(part.isdecimal() for part in parts):
        raise OnnxPruneError(f"--shape '{text}' can't be read: give NAME=1x3x224x224")
    return name, tuple(map(int, parts))


def batches(text: str | None) -> Sequence[int]:
    """``1,8,32``.

    Raises:
        OnnxPruneError: one of them is no number above 0.
    """
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OnnxPruneError(f"--batch '{text}' can't be read: give numbers such as 1,8,32")
    return [int(part) for part in parts]
