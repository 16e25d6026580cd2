"""The rivals, each run in a process and a venv of its own, and measured alike.

    onnxsim         prunes an .onnx file                  rivals_requirements.txt
    Torch-Pruning   prunes a PyTorch module (optional)    rivals_torch_requirements.txt

A venv is wanted at `benchmarks/work/venv-onnxsim` and `benchmarks/work/venv-torch`, or where
ONNXPRUNE_VENV_ONNXSIM and ONNXPRUNE_VENV_TORCH say. MACs of all files are counted by one counter,
ours: what the rivals say of themselves stays in `details`.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness import HERE, WORK, Usage, measure

REQUIREMENTS = {
    "onnxsim": HERE / "rivals_requirements.txt",
    "torch": HERE / "rivals_torch_requirements.txt",
}

Counter = Callable[[Path], int]


@dataclass(frozen=True)
class RivalRun:
    """One run of a rival: its file, or what it died of; and what the whole process used."""

    rival: str
    model: str
    output: Path | None
    error: str
    cpu_s: float
    wall_s: float
    peak_rss_mb: float
    failed_in: str = ""
    phases: dict[str, dict[str, float]] = field(default_factory=dict)  # CPU, wall and peak of each
    details: dict[str, float | str] = field(default_factory=dict)


def run_onnxsim(
    python: Path,
    model: Path,
    output: Path,
    ratio: float = 0.5,
    recipe: str = "full",
    timeout_s: float = 600,
) -> RivalRun:
    """Prune the file `model` to `output` with onnxsim's `recipe` (see rival_onnxsim)."""
    output.unlink(missing_ok=True)
    arguments = [model.resolve(), output.resolve()]
    options = ["--ratio", str(ratio), "--recipe", recipe]
    name = model.stem
    run = run_child(python, "rival_onnxsim", "onnxsim", name, arguments, options, timeout_s)
    return replace(run, output=output if output.exists() and not run.error else None)


def run_torch_pruning(
    python: Path,
    architecture: str,
    folder: Path,
    ratio: float = 0.5,
    attention: str = "both",
    timeout_s: float = 900,
) -> RivalRun:
    """Build `architecture`, write it to `folder`/original.onnx and pruned to `folder`/pruned.onnx.

    original.onnx is there even when pruning fails, unless the export itself did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "pruned.onnx"
    for file in (output, folder / "original.onnx"):
        file.unlink(missing_ok=True)
    options = ["--ratio", str(ratio), "--attention", attention]
    arguments: list[str | Path] = [architecture, folder.resolve()]
    run = run_child(python, "rival_torch", "torch", architecture, arguments, options, timeout_s)
    return replace(run, output=output if output.exists() and not run.error else None)


def best_torch_pruning(
    python: Path, architecture: str, folder: Path, count: Counter, ratio: float = 0.5
) -> RivalRun:
    """The attention setting that removes most MACs and gives a valid file, or the first failure.

    Architectures without attention give the same file each time, and are run once.
    """
    runs: list[RivalRun] = []
    for attention in ("both", "dims", "heads"):
        run = run_torch_pruning(python, architecture, folder / attention, ratio, attention)
        error = run.error or (check(python, _original(run), run.output) if run.output else "")
        runs.append(replace(run, error=error, output=None if error else run.output))
        if not run.details.get("attention_layers"):
            break
    valid = [run for run in runs if run.output]
    return min(valid, key=lambda run: macs_left(_original(run), run.output, count), default=runs[0])


def check(python: Path, original: Path, pruned: Path, timeout_s: float = 300) -> str:
    """Empty when `pruned` runs and keeps the results' names, shapes and types, else why not."""
    files = [original.resolve(), pruned.resolve()]
    return measure([python, "-m", "benchmarks.rival_check", *files], timeout_s).error


def macs_left(original: Path, pruned: Path | None, count: Counter) -> float:
    """Share of MACs that remains, by `count`; 1.0 where nothing was written."""
    return count(pruned) / count(original) if pruned else 1.0


def onnxprune_macs(path: Path) -> int:
    """Our own count, the default `Counter`."""
    return int(importlib.import_module("onnxprune").inspect(path).macs)


def venv_python(rival: str) -> Path | None:
    """The interpreter of `onnxsim` or `torch`, None where its venv has not been made."""
    default = WORK / f"venv-{rival}"
    python = Path(os.environ.get(f"ONNXPRUNE_VENV_{rival.upper()}", default)) / "bin" / "python"
    return python if python.exists() else None


def make_venv(rival: str) -> Path:
    """Make the venv of `onnxsim` or `torch` from its requirements, unless it is there."""
    found = venv_python(rival)
    if found:
        return found
    folder = WORK / f"venv-{rival}"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = ["pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    subprocess.run([python, "-m", *install, REQUIREMENTS[rival]], check=True)
    return python


def versions_of(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in a rival's venv, for the header of the results."""
    script = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    )
    run = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    installed = json.loads(run.stdout)
    return {name: installed.get(name, "not installed") for name in packages}


def run_child(
    python: Path | str,
    module: str,
    rival: str,
    model: str,
    arguments: Sequence[str | Path],
    options: Sequence[str] = (),
    timeout_s: float = 600,
) -> RivalRun:
    """Run `benchmarks.MODULE` with its arguments, a file for its report, and its options."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [python, "-m", f"benchmarks.{module}", *arguments, report, *options]
        usage = measure(command, timeout_s)
        told = json.loads(report.read_text("utf-8")) if report.exists() else {}
    return _rival_run(rival, model, usage, told)


def _rival_run(rival: str, model: str, usage: Usage, told: dict[str, dict[str, float]]) -> RivalRun:
    return RivalRun(
        rival=rival,
        model=model,
        output=None,
        error=usage.error,
        cpu_s=usage.cpu_s,
        wall_s=usage.wall_s,
        peak_rss_mb=usage.peak_rss_mb,
        **told,  # type: ignore[arg-type]
    )


def _original(run: RivalRun) -> Path:
    assert run.output, "only a run that wrote a file has an original beside it"
    return run.output.with_name("original.onnx")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or REQUIREMENTS:
        print(make_venv(wanted))
