"""Speed: what pruning costs beside reading and writing the same file, and beside rivals.

    python -m benchmarks.speed [--quick] [--no-rivals] [--torch] [--repeats N]

Each run is a process of its own with one thread; tools take turns. CPU seconds and peak memory are
measured pass by pass:

    analysis    normalize, couple, score, select
    pruning     couple, score, select, shrink: to be at most 3 times `onnx.load` + `onnx.save`
    verify      apart: it runs the model

`grown` is the peak of resident memory above what the process held once everything was imported: to
be at most 2.5 times the file. Then the analysis of long chains, to see that it is linear: couple
has to take under 0.3 s for 5,000 nodes.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import chains, harness, rivals, subjects

MODELS = (
    "torchvision/resnet50",
    "torchvision/densenet121",
    "torchvision/vit_b_16",
    "torchvision/convnext_base",
    "torchvision/swin_b",
    "transformers/gpt2_24l",
)
QUICK_MODELS = ("torchvision/mobilenet_v3_small.fused", "timm/vit_tiny_patch16_224")
CHAINS = (500, 5000, 50000)
ANALYSIS = ("normalize", "couple", "score", "select")
PRUNING = ("couple", "score", "select", "shrink")
OWN = ("load", *ANALYSIS, "shrink", "plan", "write")  # the whole job but the proof
COPYING = ("read", "write")
ONNXSIM_PRUNING = ("structured", "heads")
RATIO_GOAL, MEMORY_GOAL, COUPLE_GOAL_S = 3.0, 2.5, 0.3


@dataclass(frozen=True)
class Row:
    """One tool on one model: CPU seconds (medians) and peak memory (the largest of all runs).

    Attributes:
        passes_s: CPU seconds by pass, or what the tool calls its steps.
        pruning_s: of what is to be at most 3 times `copy_s`.
        total_s: of the whole job but import and proof.
        copy_s: `onnx.load` + `onnx.save` of the same file.
        peak_mb: of the whole job but the proof.
        grown_mb: of it, above what was held after the imports.
        verify_s, verify_peak_mb: what the proof took, in one run of its own.
    """

    model: str
    tool: str
    file_mb: float
    passes_s: dict[str, harness.Spread]
    pruning_s: float
    total_s: float
    copy_s: float
    peak_mb: float
    grown_mb: float
    verify_s: float | None = None
    verify_peak_mb: float | None = None
    error: str = ""


@dataclass(frozen=True)
class ChainRow:
    """A chain of so many nodes: CPU seconds of each pass (the least of all runs)."""

    kind: str
    nodes: int
    groups: int
    passes_s: dict[str, float]
    couple_us_per_node: float
    error: str = ""


def main() -> None:
    """Run, print and save."""
    wanted = _arguments()
    settings = vars(wanted)
    rows: list[Row] = []
    chain_rows: list[ChainRow] = []
    for name in wanted.models or (QUICK_MODELS if wanted.quick else MODELS):
        rows += _model_rows(name, wanted)
        _save(rows, chain_rows, settings)  # what is there survives an interruption
    for kind in chains.KINDS:
        for nodes in CHAINS[:2] if wanted.quick else CHAINS:
            chain_rows.append(_chain_row(kind, nodes, wanted.repeats))
            _save(rows, chain_rows, settings)
    _show(rows, chain_rows)
    print(_save(rows, chain_rows, settings))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names in the zoo, instead of the usual six")
    parser.add_argument("--repeats", type=int, help="measured rounds, after one to warm up [3]")
    parser.add_argument("--quick", action="store_true", help="two small models, one round")
    parser.add_argument("--no-rivals", action="store_true", help="without onnxsim")
    parser.add_argument("--torch", action="store_true", help="also Torch-Pruning")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a run may take")
    wanted = parser.parse_args()
    wanted.repeats = wanted.repeats or (1 if wanted.quick else 3)
    return wanted


def _save(rows: list[Row], chain_rows: list[ChainRow], settings: Mapping[str, object]) -> Path:
    python = rivals.venv_python("onnxsim")
    versions = rivals.versions_of(python, ["onnxsim"]) if python else {}
    return harness.save("speed", {"models": rows, "chains": chain_rows}, settings, versions)


def _model_rows(name: str, wanted: argparse.Namespace) -> list[Row]:
    """All tools on one model, taking turns."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        source = Path(folder) / f"{Path(name).name}.onnx"
        subjects.filled(name, source)
        file_mb = source.stat().st_size / 2**20
        tools = _tools(name, source, wanted)
        runs = harness.interleaved(tools, wanted.repeats, warmup=0 if wanted.quick else 1)
        proof = _ours(name, source, wanted, [])
        print(f"{name}: {file_mb:.0f} MB, {', '.join(tools)}", flush=True)
    copy_s = statistics.median(_sum(run, COPYING) for run in runs["copy"])
    return [
        _row(name, tool, file_mb, own, copy_s, proof if tool == "onnxprune" else None)
        for tool, own in runs.items()
    ]


def _ours(
    name: str, source: Path, wanted: argparse.Namespace, options: Sequence[str]
) -> rivals.RivalRun:
    files = [source, source.with_name("small.onnx")]
    child = ("onnxprune_child", "onnxprune")
    return rivals.run_child(sys.executable, *child, name, files, options, wanted.timeout)


def _tools(
    name: str, source: Path, wanted: argparse.Namespace
) -> dict[str, Callable[[], rivals.RivalRun]]:
    target = source.with_name("small.onnx")
    copy: list[str | Path] = ["copy", source, target]
    tools: dict[str, Callable[[], rivals.RivalRun]] = {
        "copy": partial(rivals.run_child, sys.executable, "subjects", "copy", name, copy),
        "onnxprune": partial(_ours, name, source, wanted, ["--no-verify"]),
    }
    onnxsim, torch = rivals.venv_python("onnxsim"), rivals.venv_python("torch")
    if onnxsim and not wanted.no_rivals:
        tools["onnxsim"] = partial(
            rivals.run_onnxsim, onnxsim, source, target, timeout_s=wanted.timeout
        )
    if torch and wanted.torch:
        folder = source.with_name("torch")
        tools["torch"] = partial(rivals.run_torch_pruning, torch, name, folder)
    return tools


def _row(
    name: str,
    tool: str,
    file_mb: float,
    runs: Sequence[rivals.RivalRun],
    copy_s: float,
    proof: rivals.RivalRun | None,
) -> Row:
    phases = [phase for phase in runs[0].phases if all(phase in run.phases for run in runs)]
    working = [phase for phase in phases if phase != "import"]
    counted = {"onnxprune": PRUNING, "onnxsim": ONNXSIM_PRUNING, "torch": ("prune",)}
    peak, grown = zip(*(_memory(run, working) for run in runs), strict=True)
    verify = proof.phases.get("verify", {}) if proof else {}
    every = [*runs, proof] if proof else runs
    return Row(
        model=name,
        tool=tool,
        file_mb=file_mb,
        passes_s={p: harness.spread(run.phases[p]["cpu_s"] for run in runs) for p in phases},
        pruning_s=statistics.median(_sum(run, counted.get(tool, COPYING)) for run in runs),
        total_s=statistics.median(_sum(run, working) for run in runs),
        copy_s=copy_s,
        peak_mb=max(peak),
        grown_mb=max(grown),
        verify_s=verify.get("cpu_s"),
        verify_peak_mb=verify.get("peak_rss_mb"),
        error=next((run.error for run in every if run.error), ""),
    )


def _sum(run: rivals.RivalRun, phases: Iterable[str]) -> float:
    return sum(run.phases[phase]["cpu_s"] for phase in phases if phase in run.phases)


def _memory(run: rivals.RivalRun, phases: Sequence[str]) -> tuple[float, float]:
    """The peak of the phases in MB, and how far it is above what was held before any."""
    if not phases:
        return float("nan"), float("nan")
    peak = max(run.phases[phase]["peak_rss_mb"] for phase in phases)
    return peak, peak - min(run.phases[phase]["rss_before_mb"] for phase in phases)


def _chain_row(kind: str, nodes: int, repeats: int) -> ChainRow:
    runs = [
        rivals.run_child(
            sys.executable, "chains", "onnxprune", f"{kind} {nodes}", [kind, str(nodes)]
        )
        for _ in range(repeats)
    ]
    error = next((run.error for run in runs if run.error), "")
    phases = [p for p in runs[0].phases if all(p in run.phases for run in runs)]
    least = {p: min(run.phases[p]["cpu_s"] for run in runs) for p in phases}
    count = int(runs[0].details.get("nodes", nodes))
    per_node = 1e6 * least.get("couple", float("nan")) / count
    groups = int(runs[0].details.get("groups", 0))
    return ChainRow(kind, count, groups, least, per_node, error)


def _show(rows: Sequence[Row], chain_rows: Sequence[ChainRow]) -> None:
    own = [row for row in rows if row.tool == "onnxprune"]
    harness.show(
        "onnxprune, CPU seconds (medians)",
        ["model", "MB", "load", *ANALYSIS, "shrink", "plan", "write", "verify"],
        (
            [Path(row.model).name, round(row.file_mb), *(_p50(row, p) for p in OWN), row.verify_s]
            for row in own
        ),
    )
    harness.show(
        "Against reading and writing the file with onnx",
        ["model", "tool", "copy s", "pruning s", "/ copy", "all s", "/ copy", "grown / file"],
        (
            [
                *(
                    Path(row.model).name,
                    row.tool,
                    row.copy_s,
                    row.pruning_s,
                    row.pruning_s / row.copy_s,
                ),
                *(row.total_s, row.total_s / row.copy_s, row.grown_mb / row.file_mb),
            ]
            for row in rows
        ),
        f"goals: pruning at most {RATIO_GOAL:g} x copy, grown at most {MEMORY_GOAL:g} x file",
    )
    steps = ("load", *ANALYSIS, "shrink")
    harness.show(
        "Chains, CPU seconds (least)",
        ["kind", "nodes", "groups", *steps, "couple µs/node"],
        (
            [
                *(row.kind, row.nodes, row.groups),
                *(row.passes_s.get(p) for p in steps),
                row.couple_us_per_node,
            ]
            for row in chain_rows
        ),
        f"goal: couple under {COUPLE_GOAL_S:g} s for 5,000 nodes",
    )
    failed = [(f"{row.model} by {row.tool}", row.error) for row in rows]
    failed += [(f"{row.kind} {row.nodes}", row.error) for row in chain_rows]
    harness.show("Failed", ["what", "why"], [pair for pair in failed if pair[1]])


def _p50(row: Row, phase: str) -> float | None:
    spread = row.passes_s.get(phase)
    return spread.p50 if spread else None


if __name__ == "__main__":
    main()
