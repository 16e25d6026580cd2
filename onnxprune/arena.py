"""The memory that ONNX Runtime's CPU provider holds for activations, read from its profile.

ORT 1.31 writes into every kernel's event what its arena holds at that moment. In the first run of a
session every value is allocated as it comes; from the second on, ORT allocates one block for all,
laid out by what it saw. What weights take of the arena is what is left when the first run is over.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort

from onnxprune import providers, runtime
from onnxprune.errors import RunError
from onnxprune.model import Array
from onnxprune.target import Target

IN_USE: Final = "mem_bytes_requested_in_use"
RUNS: Final = 3  # the first, and two with the planned block


@dataclass(frozen=True)
class Arena:
    """Bytes of activations.

    Attributes:
        peak_bytes: the most that was alive at once in the first run.
        planned_bytes: the block that ORT plans for all runs after it.
    """

    peak_bytes: int
    planned_bytes: int


def arena(proto: onnx.ModelProto, folder: Path | None, feeds: Mapping[str, Array]) -> Arena:
    """Run a model on the CPU, and read what it takes for activations.

    Raises:
        RunError: ORT can't run the model, or does not tell.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as place:

        def configure(options: ort.SessionOptions) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(place) / "trace")

        session = providers.open_session(proto, folder, Target(), configure)
        for _ in range(RUNS):
            runtime.run(session, feeds, ())
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return _read(events)


def _read(events: list[dict[str, Any]]) -> Arena:
    held = [
        [
            int(event["args"][IN_USE])
            for event in events
            if event["cat"] == "Node"
            and IN_USE in event["args"]
            and run["ts"] <= event["ts"] < run["ts"] + run["dur"]
        ]
        for run in events
        if run["name"] == "model_run"
    ]
    if len(held) != RUNS or not all(held):
        raise RunError(
            f"ONNX Runtime {ort.__version__} does not tell in its profile what its arena holds: "
            "update it to 1.31 or later"
        )
    weights = min(held[0])
    return Arena(max(held[0]) - weights, min(held[-1]) - weights)
