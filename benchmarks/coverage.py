"""Coverage: every topology of the zoo, half of every group at once, beside what rivals manage.

    python -m benchmarks.coverage [--filter REGEX] [--no-rivals] [--torch]

Each model is filled, pruned at ratio 0.5 and proved in a process of its own: once with all groups
(`all`) and once with the exact ones alone (`exact`; the same run where no group is mixing).
onnxsim prunes the same files (`onnxsim`); Torch-Pruning needs the PyTorch module, so it prunes its
own build of the architecture (`torch`). What fails removes nothing. MACs are counted by
onnxprune's counter for all of them.

Results are kept as they come: an interrupted run continues. `--fresh` starts over.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import harness, rivals, subjects
from tests.zoo.fill import names

TOOLS = ("all", "exact", "auto", "onnxsim", "torch")
OURS: Mapping[str, tuple[str, ...]] = {
    "all": ("--align", "1"),
    "exact": ("--align", "1", "--exact-only"),
    "auto": ("--align", "auto"),
}
OWN_TIMEOUT_S = 1800
TOLERANCE = 1e-5  # relative, what an exact group may differ by
ERROR_NAME = "NothingToPruneError: "
RIVAL_PACKAGES = {"onnxsim": ("onnx", "onnxsim"), "torch": ("torch", "torch-pruning")}


@dataclass(frozen=True)
class Row:
    """What one tool made of one model.

    Attributes:
        status: ok, nothing (there is no group that it could prune), or failed.
        macs: of the file before.
        macs_left: of the result; as before where there is none.
        reason: why it failed, and in what phase.
        details: what the tool says of itself.
        commit: what onnxprune was then (a run that continues may mix them).
    """

    model: str
    tool: str
    status: str
    macs: int
    macs_left: int
    cpu_s: float
    peak_rss_mb: float
    reason: str = ""
    details: dict[str, float | str] = field(default_factory=dict)
    commit: str = ""

    @property
    def removed(self) -> float:
        """The share of MACs that is gone."""
        return 1 - self.macs_left / self.macs if self.macs else 0.0


def main() -> None:
    """Run what is missing; print and save everything."""
    wanted = _arguments()
    log = harness.WORK / "coverage.jsonl"
    if wanted.fresh:
        log.unlink(missing_ok=True)
    done = {(row.model, row.tool): row for row in _read(log)}
    chosen = [name for name in names() if re.search(wanted.filter, name)][: wanted.limit]
    lock = threading.Lock()

    def one(name: str) -> None:
        missing = [tool for tool in _tools(wanted, name) if (name, tool) not in done]
        for row in _rows(name, missing, wanted.ratio, wanted.timeout) if missing else ():
            with lock:
                done[row.model, row.tool] = row
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row), sort_keys=True) + "\n")
                print(f"{row.model:48} {row.tool:8} {_said(row)}", flush=True)

    with ThreadPoolExecutor(wanted.jobs) as pool:
        list(pool.map(one, chosen))
    rows = [row for row in done.values() if row.model in chosen and row.tool in TOOLS]
    _report(sorted(rows, key=lambda row: (row.model, TOOLS.index(row.tool))), wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--filter", default="", help="a regular expression that names must match")
    parser.add_argument("--limit", type=int, help="only so many models")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="models at a time")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--timeout", type=float, default=120, help="seconds that a rival may take")
    parser.add_argument("--auto", action="store_true", help="also with --align auto")
    parser.add_argument("--no-rivals", action="store_true", help="onnxprune alone")
    parser.add_argument("--every", type=int, default=1, help="onnxsim only on every n-th model")
    parser.add_argument("--torch", action="store_true", help="also Torch-Pruning (slow)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser.parse_args()


def _tools(wanted: argparse.Namespace, name: str) -> list[str]:
    """What is to be run on a model."""
    tools = ["all", "exact"] + ["auto"] * wanted.auto
    if not wanted.no_rivals and names().index(name) % wanted.every == 0:
        tools.append("onnxsim")
    # A dot tells an exporter: the architecture is in the list once more without one.
    if wanted.torch and name.startswith(("torchvision/", "timm/", "transformers/")):
        tools += ["torch"] * ("." not in name.partition("/")[2])
    return tools


def _rows(name: str, tools: list[str], ratio: float, timeout_s: float) -> Iterable[Row]:
    """Run tools on one model; everything it wrote is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        source = Path(folder) / "model.onnx"
        if set(tools) - {"torch"}:
            subjects.filled(name, source)
        earlier: Row | None = None
        for tool in tools:
            if tool == "torch":
                yield _torch(name, Path(folder), ratio)
            elif tool == "onnxsim":
                yield _onnxsim(name, source, ratio, timeout_s)
            elif tool == "exact" and earlier and earlier.details.get("mixing_groups") == 0:
                yield Row(**{**asdict(earlier), "tool": "exact"})
            else:
                earlier = _ours(name, tool, source, ratio)
                yield earlier


def _ours(name: str, tool: str, source: Path, ratio: float) -> Row:
    output = source.with_name("small.onnx")
    run = rivals.run_child(
        sys.executable,
        "onnxprune_child",
        "onnxprune",
        name,
        [source, output],
        ["--ratio", str(ratio), "--count", *OURS[tool]],
        timeout_s=OWN_TIMEOUT_S,
    )
    macs = int(run.details.pop("macs", 0))
    row = _row(name, tool, run, macs, int(run.details.pop("macs_left", macs)))
    output.unlink(missing_ok=True)
    return row


def _onnxsim(name: str, source: Path, ratio: float, timeout_s: float) -> Row:
    """Prune with onnxsim; count also what it simplified, to see that counts compare."""
    python = rivals.venv_python("onnxsim")
    if python is None:
        sys.exit("onnxsim has no venv: python -m benchmarks.rivals onnxsim, or --no-rivals")
    plain, output = source.with_name("simple.onnx"), source.with_name("onnxsim.onnx")
    rivals.run_onnxsim(python, source, plain, recipe="simplify", timeout_s=timeout_s)
    run = rivals.run_onnxsim(python, source, output, ratio, timeout_s=timeout_s)
    error = rivals.check(python, source, output) if run.output else ""
    macs = _counted(source)
    left = subjects.macs(output) if run.output and not error else macs
    if isinstance(left, str):
        error, left = f"its result can't be read: {left}", macs
    row = _row(name, "onnxsim", run, macs, left, error)
    if plain.exists():
        row.details["macs_simplified"] = subjects.macs(plain)
    for file in (plain, output):
        file.unlink(missing_ok=True)
    return row


def _torch(name: str, folder: Path, ratio: float) -> Row:
    python = rivals.venv_python("torch")
    if python is None:
        sys.exit("Torch-Pruning has no venv: python -m benchmarks.rivals torch")
    run = rivals.best_torch_pruning(python, name, folder / "torch", _counted, ratio)
    macs = _counted(run.output.with_name("original.onnx")) if run.output else 0
    return _row(name, "torch", run, macs, _counted(run.output) if run.output else macs)


def _counted(path: Path) -> int:
    """The MACs of a file.

    Raises:
        RuntimeError: onnxprune can't read it.
    """
    found = subjects.macs(path)
    if isinstance(found, str):
        raise RuntimeError(f"{path.name} can't be counted: {found}")
    return found


def _row(
    name: str, tool: str, run: rivals.RivalRun, macs: int, macs_left: int, error: str = ""
) -> Row:
    reason = run.error or error
    status = "failed" if reason else "ok"
    if ERROR_NAME in reason:
        status, reason = "nothing", reason.partition(ERROR_NAME)[2]
    elif run.failed_in and reason:
        reason = f"{run.failed_in}: {reason}"
    return Row(
        model=name,
        tool=tool,
        status=status,
        macs=macs,
        macs_left=macs_left if status == "ok" else macs,
        cpu_s=run.cpu_s,
        peak_rss_mb=run.peak_rss_mb,
        reason=reason,
        details=dict(run.details),
        commit=harness.versions()["commit"],
    )


def _read(log: Path) -> list[Row]:
    if not log.exists():
        return []
    return [Row(**json.loads(line)) for line in log.read_text("utf-8").splitlines()]


def _said(row: Row) -> str:
    error = row.details.get("error")
    proof = f", error {error:.1e}" if isinstance(error, float) else ""
    return row.reason or f"{100 * row.removed:.1f} % of the MACs removed{proof}"


@dataclass(frozen=True)
class Summary:
    """All models by one tool; quartiles of the share of MACs that is gone, failures being 0."""

    tool: str
    models: int
    ran: int
    nothing: int
    failed: int
    verified: int | None
    within: int | None  # models whose largest error is at most TOLERANCE
    largest_error: float | None
    removed_q1: float
    removed_median: float
    removed_q3: float


def _summary(tool: str, rows: list[Row]) -> Summary:
    ran = [row for row in rows if row.status == "ok"]
    errors = [float(row.details["error"]) for row in ran if "error" in row.details]
    removed = [row.removed for row in rows]
    q1, median, q3 = (
        statistics.quantiles(removed, method="inclusive") if removed[1:] else removed * 3
    )
    ours = tool in OURS
    return Summary(
        tool=tool,
        models=len(rows),
        ran=len(ran),
        nothing=sum(row.status == "nothing" for row in rows),
        failed=sum(row.status == "failed" for row in rows),
        verified=sum(bool(row.details.get("verified")) for row in ran) if ours else None,
        within=sum(error <= TOLERANCE for error in errors) if ours else None,
        largest_error=max(errors, default=None),
        removed_q1=q1,
        removed_median=median,
        removed_q3=q3,
    )


def _cells(one: Summary) -> list[object]:
    shares = [100 * one.removed_median, 100 * one.removed_q1, 100 * one.removed_q3]
    return [
        *(one.tool, one.models, one.ran, one.nothing, one.failed, one.verified, one.within),
        *(one.largest_error, "{:.0f} % ({:.0f}, {:.0f})".format(*shares)),
    ]


def _report(rows: list[Row], wanted: argparse.Namespace) -> None:
    """Print the tables, write the results."""
    present = [tool for tool in TOOLS if any(row.tool == tool for row in rows)]
    summaries = [_summary(tool, [row for row in rows if row.tool == tool]) for tool in present]
    theirs = {row.model for row in rows if row.tool == "onnxsim"}
    if theirs and len(theirs) < len({row.model for row in rows}):
        same = [row for row in rows if row.tool == "all" and row.model in theirs]
        summaries.append(_summary("all, onnxsim's models", same))
    harness.show(
        f"Half of every group removed: {len({row.model for row in rows})} topologies",
        [
            "tool",
            "models",
            "ran",
            "nothing",
            "failed",
            "proved",
            "<= 1e-5",
            "worst",
            "MACs removed",
        ],
        map(_cells, summaries),
        "MACs removed: median (quartiles); what fails removes nothing",
    )
    bad = [row for row in rows if row.status != "ok"]
    harness.show("Not pruned", ["model", "tool", "why"], [(r.model, r.tool, r.reason) for r in bad])
    disagree = _disagreements(rows)
    harness.show("Counts that differ", ["model", "MACs", "simplified by onnxsim"], disagree)
    found: dict[str, dict[str, str]] = {
        tool: rivals.versions_of(python, RIVAL_PACKAGES[tool])
        for tool in present
        if tool in RIVAL_PACKAGES and (python := rivals.venv_python(tool))
    }
    commits = dict(Counter(row.commit for row in rows))
    print(f"rows by commit: {commits}")
    path = harness.save(
        "coverage",
        {"commits": commits, "summaries": summaries, "rows": rows, "counts_that_differ": disagree},
        vars(wanted),
        {
            name: version
            for own in found.values()
            for name, version in own.items()
            if name != "onnx"
        },
    )
    print(path)


def _disagreements(rows: list[Row]) -> list[tuple[str, int, int | str]]:
    """Originals whose MACs are others once onnxsim has simplified them."""
    counts = [(r.model, r.macs, r.details.get("macs_simplified", r.macs)) for r in rows]
    return [
        (model, macs, other if isinstance(other, str) else int(other))
        for model, macs, other in counts
        if macs != other
    ]


if __name__ == "__main__":
    main()
