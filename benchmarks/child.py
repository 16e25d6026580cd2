"""What a measured child process reports of itself. Standard library only: any venv can run it."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Report:
    """CPU seconds and peak memory by phase, and figures; `write` also says where it stopped."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self.details: dict[str, float | str] = {}
        self.failed_in = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block; `failed_in` keeps the name of a block that was left by an error."""
        self.failed_in = name
        before_mb = reset_peak_rss()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.phases[name] = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "rss_before_mb": before_mb,
            "peak_rss_mb": peak_rss_mb(),
        }
        self.failed_in = ""

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(vars(self), sort_keys=True), encoding="utf-8")


def do_jobs(folder: Path, run: Callable[[dict[str, Any]], None]) -> None:
    """Do all of FOLDER/jobs.json; each adds a line to FOLDER/done.jsonl, with what it died of."""
    with (folder / "done.jsonl").open("w", encoding="utf-8") as done:
        for job in json.loads((folder / "jobs.json").read_text("utf-8")):
            start, error = time.process_time(), ""
            try:
                run(job)
            except Exception as reason:  # noqa: BLE001 - whatever it dies of is its result
                error = f"{type(reason).__name__}: {reason}"[:300]
            line = {"file": job["file"], "error": error, "cpu_s": time.process_time() - start}
            done.write(json.dumps(line) + "\n")
            done.flush()


def peak_rss_mb() -> float:
    """The most resident memory of this process since the last reset."""
    return _status_mb("VmHWM")


def reset_peak_rss() -> float:
    """Start the peak anew (Linux); return the memory held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match, f"no {field} in /proc/self/status"
    return int(match[1]) / 1024
