"""Benchmarks on other machines: a folder to carry there, and the result to bring back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune import files, providers, remote, runner
from onnxprune.catalogue import CPU_NAME
from onnxprune.errors import OnnxPruneError
from onnxprune.measuring import Bench, Row, busy, plain
from onnxprune.mobile import ORT_FORMAT
from onnxprune.passes.benchmark import timings
from onnxprune.subjects import Subject, Wanted, feeds_of, outside

RUN: Final = "run.py"
SETTINGS: Final = "bench.json"
# Imports that have no place where both texts stand in one file.
_HOUSE: Final = re.compile(r"^from (onnxprune\.runner|__future__) import .*\n", re.MULTILINE)


class _Timed(BaseModel):
    """One model in ``result.json``."""

    model_config = ConfigDict(extra="ignore")
    name: str
    size_bytes: int
    peak_bytes: int | None
    load_ms: float
    shares: dict[str, float] | None
    wall_ms: list[Annotated[float, Field(gt=0)]]
    cpu_ms: list[Annotated[float, Field(ge=0)]]


class _Batch(BaseModel):
    batch: int | None
    phases: list[int]
    interrupted: bool
    models: list[_Timed]


class _Target(BaseModel):
    model_config = ConfigDict(extra="allow")
    provider: str
    threads: int


class _Result(BaseModel):
    format: int
    machine: dict[str, Any]
    target: _Target
    batches: list[_Batch]


def export(models: Sequence[Subject], wanted: Wanted, folder: Path) -> list[Path]:
    """Write a folder with models, inputs and a runner that needs Python, numpy and onnxruntime.

    Returns:
        the files.

    Raises:
        OnnxPruneError: the folder holds something already, or can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OnnxPruneError(f"'{folder}' is there already: give a new or an empty folder")
    if not folder.parent.is_dir():
        raise OnnxPruneError(f"'{folder}' can't be written: there is no folder '{folder.parent}'")
    feeds = feeds_of(models, wanted)[0]
    try:
        folder.mkdir(exist_ok=True)
        settings = {
            "models": [_copied(m, k, wanted, folder) for k, m in enumerate(models)],
            "inputs": [_inputs(batch, arrays, folder) for batch, arrays in feeds.items()],
            "target": plain(wanted.target),
            "runs": wanted.runs,
            "seconds": wanted.seconds,
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
        (folder / RUN).write_text(script(), "utf-8")
    except OSError as error:
        raise OnnxPruneError(f"'{folder}' can't be written: {error.strerror}") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def script() -> str:
    """The runner as one text: the timing loop, and the program around it."""
    loop, program = (Path(str(module.__file__)).read_text("utf-8") for module in (runner, remote))
    return f"{loop.rstrip()}\n\n\n{_HOUSE.sub('', program)}"


def _copied(model: Subject, position: int, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Copy a model with the files that it keeps tensors in; each into a folder of its own."""
    place = folder / "models" / str(position)
    place.mkdir(parents=True)
    shutil.copyfile(model.path, place / model.path.name)
    if model.path.suffix != ORT_FORMAT:
        for name in outside(files.read_proto(model.path)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.path.parent / name, place / name)
    level = providers.LEVELS[providers.optimization_of(model.path, wanted.target)]
    return {
        "name": model.name,
        "file": f"models/{position}/{model.path.name}",
        "size_bytes": model.size_bytes,
        "optimization": f"ORT_{level}",
    }


def _inputs(batch: int | None, arrays: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    name = "inputs.npz" if batch is None else f"inputs_{batch}.npz"
    np.savez(folder / name, **arrays)
    return {"batch": batch, "file": name}


def imported(path: Path) -> Bench:
    """What another machine measured.

    Raises:
        OnnxPruneError: the file is no result of the runner.
    """
    try:
        found = _Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise OnnxPruneError(f"'{path}' can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise OnnxPruneError(
            f"'{path}' is no result of an exported benchmark: {error.errors()[0]['msg']}"
        ) from error
    if found.format != remote.FORMAT:
        raise OnnxPruneError(
            f"'{path}' has format {found.format}, this onnxprune reads {remote.FORMAT}: export anew"
        )
    rows = tuple(row for batch in found.batches for row in _rows(path, batch))
    stopped = any(batch.interrupted for batch in found.batches)
    notes = ["interrupted: the figures are those of fewer runs"] if stopped else []
    target = found.target.model_dump()
    single = found.target.provider == CPU_NAME and found.target.threads == 1
    notes += busy(rows, single)
    return Bench(rows, target, found.machine, notes=tuple(notes), name=path.stem)


def _rows(path: Path, batch: _Batch) -> list[Row]:
    lengths = {len(m.wall_ms) for m in batch.models} | {len(m.cpu_ms) for m in batch.models}
    numbers = sorted(set(batch.phases))
    whole = sorted(batch.phases) == batch.phases and numbers == list(range(len(numbers)))
    if lengths != {len(batch.phases)} or not batch.phases or not whole:
        raise OnnxPruneError(f"'{path}' is damaged: runs of a model are missing or out of order")
    found = timings(
        np.array([model.wall_ms for model in batch.models]),
        np.array([model.cpu_ms for model in batch.models]),
        np.array(batch.phases),
        [model.load_ms for model in batch.models],
        [model.shares or {} for model in batch.models],
        stopped=batch.interrupted,
    )
    return [
        Row(m.name, batch.batch, m.size_bytes, m.peak_bytes, timing, m.shares)
        for m, timing in zip(batch.models, found, strict=True)
    ]
