"""Trained models that packages ship, before and after pruning: their tasks, and fidelity.

    python -m benchmarks.export_trained benchmarks/work/exported   # MiniLM and MTCNN; see its head
    python -m benchmarks.quality_shipped                           # what is not measured yet
    python -m benchmarks.quality_shipped --only magika --ours l2

No labels, no training: a criterion sees unlabelled inputs at most, others than those of the test.
MACs are counted by onnxprune at the sizes of `benchmarks.tasks`. onnxsim stands beside it where its
venv is there. Rows are appended to `work/quality_shipped.jsonl` as they come; those of onnxprune
are measured anew when the commit changes.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks import harness, rivals
from benchmarks.quality_makers import MAKERS, OURS, offered
from benchmarks.quality_nets import FOLDER, SEEDS, Made, Request, Subject, commit, known_option
from benchmarks.rivals import onnxprune_macs
from benchmarks.tasks import TASKS, Task, batches
from benchmarks.trained import install

Array = NDArray[Any]
ROWS = harness.WORK / "quality_shipped.jsonl"
TARGETS = (0.7, 0.5)
ONNXSIM = ("wanda", "wanda + least squares+batch norm")  # of what it has, the best on our nets
PROBES = 16  # inputs on which fidelity is measured


@dataclass(frozen=True)
class Row:
    """One measurement: the task's share, and fidelity as relative error of the outputs."""

    task: str
    digest: str
    commit: str
    request: Request
    left: float | None
    result: float | None
    fidelity_error: float | None
    cpu_s: float
    error: str

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a measurement the same."""
        return self.digest, self.commit, self.request


class Bench:
    """A task, its model in a folder as the makers want it, and what the original makes of it."""

    def __init__(self, name: str) -> None:
        self.task: Task = TASKS[name]()
        data = self.task.model.SerializeToString()
        digest = hashlib.sha256(data).hexdigest()[:12]
        folder = FOLDER / f"{name.replace(' ', '-')}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "net.onnx").write_bytes(data)
        for seed in SEEDS:
            if not (folder / f"inputs_{seed}.npz").exists():
                inputs: dict[str, Any] = self.task.calibration(seed)
                np.savez(folder / f"inputs_{seed}.npz", **inputs)
        self.subject = Subject(name, digest, folder, onnxprune_macs(folder / "net.onnx"))
        held_out = self.task.calibration(len(SEEDS))
        self.probes = {key: values[:PROBES] for key, values in held_out.items()}
        run = runner(folder / "net.onnx")
        self.outputs, self.result = batches(run, self.probes), self.task.measure(run)

    def measured(self, request: Request, made: Made, version: str) -> Row:
        """The row of a pruned file."""
        left = result = error = None
        if made.path:
            run = runner(made.path)
            left = onnxprune_macs(made.path) / self.subject.macs
            result = self.task.measure(run)
            error = relative(self.outputs, batches(run, self.probes))
        name, digest = self.subject.name, self.subject.digest
        return Row(name, digest, version, request, left, result, error, made.cpu_s, made.error)


def runner(path: Path) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Runs a file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda feeds: list(session.run(None, dict(feeds)))


def relative(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """The mean over outputs of |difference| / |expected|."""
    pairs = zip(expected, found, strict=True)
    return float(np.mean([np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs]))


def requests(tools: Sequence[str], labels: Sequence[str]) -> list[Request]:
    """All that is wanted of a task."""
    found = []
    for label in labels if "onnxprune" in tools else ():
        if offered(OURS[label]):
            seeds = (OURS[label].draws or SEEDS)[:1]
            found += [Request("onnxprune", label, "", s, t) for t in TARGETS for s in seeds]
    for criterion in ONNXSIM if "onnxsim" in tools else ():
        found += [Request("onnxsim", criterion, "uniform", 0, target) for target in TARGETS]
    return found


def measure(
    bench: Bench, wanted: Sequence[Request], known: dict[Any, Row], known_at: str = ""
) -> list[Row]:
    """The rows of all requests; those that are not known are measured and kept, unless
    only those that are `known_at` a commit are wanted.
    """
    ours = known_at or commit()

    def key(request: Request) -> tuple[object, ...]:
        return (
            bench.subject.digest,
            ours if request.tool == "onnxprune" else "",
            request,
        )

    for tool, maker in MAKERS.items():
        missing = [r for r in wanted if r.tool == tool and key(r) not in known]
        if not missing or known_at:
            continue
        with tempfile.TemporaryDirectory(dir=bench.subject.folder) as folder:
            for request, made in maker(bench.subject, missing, Path(folder)):
                row = bench.measured(request, made, str(key(request)[1]))
                known[row.key] = row
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
                print(_line(row), flush=True)
    return [known[key(request)] for request in wanted if key(request) in known]


def table(bench: Bench, rows: Sequence[Row]) -> list[list[object]]:
    """A line for each tool and criterion: the task's share in percent, and the fidelity error."""
    name = bench.subject.name
    found: list[list[object]] = [
        [f"{name}: {bench.task.unit}, the original", f"{100 * bench.result:.1f}", ""]
    ]
    for tool, criterion in dict.fromkeys((r.request.tool, r.request.criterion) for r in rows):
        cells = []
        for target in TARGETS:
            at = [
                r
                for r in rows
                if (r.request.tool, r.request.criterion, r.request.target)
                == (tool, criterion, target)
            ]
            cells.append(_cell(at, target))
        found.append([f"{tool}: {criterion}", *cells])
    return found


def _cell(rows: Sequence[Row], target: float) -> str:
    done = [row for row in rows if row.result is not None]
    if not done:
        return "failed" if rows else "-"
    results = [100 * row.result for row in done if row.result is not None]
    error = np.mean([row.fidelity_error for row in done if row.fidelity_error is not None])
    left = float(np.mean([row.left for row in done if row.left is not None]))
    spread = f" ±{(max(results) - min(results)) / 2:.1f}" if len(results) > 1 else ""
    off = "" if abs(left - target) <= 0.01 else f" at {left:.0%}"
    return f"{np.mean(results):.1f}{spread}{off} (error {error:.2f})"


def _line(row: Row) -> str:
    request = row.request
    said = f"{row.task} {request.tool} {request.criterion} {request.target:.0%} seed {request.seed}"
    if row.result is None:
        return f"{said}: {row.error}"
    return (
        f"{said}: {100 * row.result:.1f} %, error {row.fidelity_error:.3f}, "
        f"at {row.left:.3f} of the MACs, {row.cpu_s:.1f} s"
    )


def _known() -> dict[Any, Row]:
    if not ROWS.exists():
        return {}
    lines = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    rows = [Row(**(line | {"request": Request(**line["request"])})) for line in lines]
    return {row.key: row for row in rows}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    tools = ["onnxprune", *(["onnxsim"] if rivals.venv_python("onnxsim") else [])]
    parser.add_argument("--tools", nargs="*", default=tools, choices=["onnxprune", "onnxsim"])
    parser.add_argument("--ours", nargs="*", default=list(OURS), help="variants of onnxprune")
    known_option(parser)
    parser.add_argument("--no-save", action="store_true", help="print only")
    wanted = parser.parse_args()
    install()
    known, lines, results = _known(), [], {}
    for name in wanted.only:
        bench = Bench(name)
        rows = measure(bench, requests(wanted.tools, wanted.ours), known, wanted.known)
        lines += table(bench, rows)
        figures = {"macs": bench.subject.macs, "result": bench.result, "unit": bench.task.unit}
        results[name] = {"base": figures, "rows": rows}
    harness.show("Tasks in percent at MACs left", ["", "70 %", "50 %"], lines)
    if not wanted.no_save:
        settings = {"command": sys.argv, "probes": PROBES, "seeds": SEEDS, "targets": TARGETS}
        harness.save("quality_shipped", results, settings, {"onnx": onnx.__version__})


if __name__ == "__main__":
    main()
