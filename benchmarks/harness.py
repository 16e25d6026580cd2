"""What every benchmark shares: header, measuring a child process, interleaving, results, tables.

A benchmark writes `benchmarks/results/NAME.json`:

    {"benchmark", "date", "machine", "versions", "settings", "results"}

and prints a table. Times are process CPU seconds first (the machine is shared), wall beside them.
"""

import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = HERE / "work"  # models, venvs and other files that are never committed
PACKAGES = ("numpy", "onnx", "onnx-graphsurgeon", "onnxprune", "onnxruntime")
MEMORY_MB = 8 * 1024
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
TUNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", *THREADS)

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """What one child process used, its own children included; `returncode` is -N for signal N."""

    returncode: int
    cpu_s: float
    wall_s: float
    peak_rss_mb: float
    stdout: str
    stderr: str
    timed_out: bool = False

    @property
    def error(self) -> str:
        """Empty when it ended well, else one line: the limit, the signal, or its last words."""
        if self.timed_out:
            return f"stopped after {self.wall_s:.0f} s"
        if self.returncode < 0:
            return f"killed by {signal.Signals(-self.returncode).name}"
        if self.returncode > 0:
            return _last_words(self.stderr) or f"exit code {self.returncode}"
        return ""


@dataclass(frozen=True)
class Spread:
    """Repeated measurements; `p50_low` and `p50_high` bound the median with 95 % confidence."""

    n: int
    minimum: float
    p50: float
    p50_low: float
    p50_high: float
    p90: float
    p99: float


def measure(
    command: Sequence[str | Path],
    timeout_s: float = 600,
    threads: int | None = 1,
    memory_mb: int = MEMORY_MB,
) -> Usage:
    """Run `command` from the repository's root and measure it; past the limit it is killed.

    Args:
        command: the program and its arguments.
        timeout_s: wall seconds it may take.
        threads: what the usual variables tell OpenMP and BLAS; None leaves them as they are.
        memory_mb: what it may allocate; past that its allocations fail (the machine is shared).
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "usage.json"
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(HERE / "launch.py"),
            str(figures),
            str(memory_mb),
        ]
        process = subprocess.Popen(
            [*launcher, *map(str, command)],
            cwd=HERE.parent,
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            nan = math.nan
            return Usage(-signal.SIGKILL, nan, timeout_s, nan, stdout, stderr, timed_out=True)
        if not figures.exists():  # the command could not be started
            return Usage(127, math.nan, math.nan, math.nan, stdout, stderr)
        return Usage(**json.loads(figures.read_text("utf-8")), stdout=stdout, stderr=stderr)


def interleaved(
    candidates: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1, seed: int = 0
) -> dict[str, list[T]]:
    """Call every candidate once a round, in a new order each round; the warm-up rounds are dropped.

    Slow drifts of the machine so fall on all candidates alike.
    """
    order = random.Random(seed)
    results: dict[str, list[T]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name in order.sample(list(candidates), len(candidates)):
            result = candidates[name]()
            if turn >= warmup:
                results[name].append(result)
    return results


def spread(values: Iterable[float]) -> Spread:
    """Percentiles by the nearest rank; the median's bounds are order statistics (binomial)."""
    ordered = sorted(values)
    n = len(ordered)
    margin = 1.96 * math.sqrt(n) / 2
    low, high = math.floor((n - 1) / 2 - margin), math.ceil((n - 1) / 2 + margin)
    return Spread(
        n=n,
        minimum=ordered[0],
        p50=statistics.median(ordered),
        p50_low=ordered[max(low, 0)],
        p50_high=ordered[min(high, n - 1)],
        p90=ordered[math.ceil(0.90 * n) - 1],
        p99=ordered[math.ceil(0.99 * n) - 1],
    )


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, memory, system, load, and variables that tune BLAS."""
    return {
        "cores": os.cpu_count(),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "environment": {name: os.environ[name] for name in TUNING if name in os.environ},
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "simd": _simd(),
        "system": platform.platform(),
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python, the commit (with `+` when the tree is changed), and installed packages."""
    found = {"commit": _commit(), "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def save(
    name: str,
    results: object,
    settings: Mapping[str, object],
    more_versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `results/NAME.json` with its header, at once or not at all; return the path.

    `results` may hold dataclasses and paths; NaN is written as null.
    """
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "results": results,
        "settings": dict(settings),
        "versions": versions() | dict(more_versions or {}),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".json.tmp")
    text = json.dumps(_plain(document), indent=1, sort_keys=True, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def show(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = ""
) -> None:
    """Print a table; the first column is left-aligned, floats get three significant digits."""
    table = Table(title=title, caption=caption or None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: object) -> Any:
    """The JSON form: dataclasses as objects, paths as strings, NaN and infinities as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _environment(threads: int | None) -> dict[str, str]:
    """This environment without what points Python elsewhere, with `threads` threads."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | (dict.fromkeys(THREADS, str(threads)) if threads else {})


def _last_words(stderr: str) -> str:
    """The last line of a traceback or log that says something, cut to a readable length."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # A message of several lines starts behind the traceback's last indented line.
    starts = [i for i, line in enumerate(stderr.splitlines()) if line.startswith("    ")]
    if "Traceback" in stderr and starts:
        tail = [line.strip() for line in stderr.splitlines()[starts[-1] + 1 :] if line.strip()]
        lines = tail[:1] or lines
    return lines[-1][:300] if lines else ""


def _field(path: str, field: str) -> str:
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _simd() -> str:
    flags = _field("/proc/cpuinfo", "flags").split()
    return next((name for name in ("avx512f", "avx2", "avx", "asimd") if name in flags), "unknown")


def _commit() -> str:
    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and git("status", "--porcelain", "-uno") else "")
