"""Where and by which command something was done: for reports that can be told apart later."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from onnxprune import remote

PACKAGES: Final = ("onnxprune", "onnx")  # besides those of ``remote.machine``
NAME: Final = "onnxprune"


def environment() -> dict[str, Any]:
    """The machine, and the versions of what does the work."""
    return {**remote.machine(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a folder on the path, never installed
        return "unknown"


def free_bytes() -> int | None:
    """The memory that this machine can still give; None where it doesn't say (not Linux)."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def command() -> str:
    """The command line of this process, to be pasted; empty where it is not onnxprune's own.

    Another program's arguments say nothing about what it asked of the library.
    """
    path = Path(sys.argv[0])
    if NAME not in (path.stem, path.parent.name if path.stem == "__main__" else ""):
        return ""
    return shlex.join([NAME, *sys.argv[1:]])
