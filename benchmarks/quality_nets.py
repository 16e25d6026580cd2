"""What `benchmarks.quality` is made of: a frozen copy of a net, requests, rows, and evaluation."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import cifar
from benchmarks.harness import HERE, WORK
from benchmarks.rivals import onnxprune_macs

Array = NDArray[Any]
FOLDER = WORK / "quality"
ROWS = WORK / "quality.jsonl"
BATCH = 500
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Request:
    """A pruned file that is wanted: the share `target` of the MACs may remain."""

    tool: str
    criterion: str
    scope: str
    seed: int
    target: float
    steps: int = 0  # of training with labels
    rate: float = 0.0


@dataclass(frozen=True)
class Made:
    """What came of a request."""

    path: Path | None
    cpu_s: float
    error: str = ""


@dataclass(frozen=True)
class Row:
    """One measurement; accuracy and agreement (with the original's classes) are shares."""

    net: str
    digest: str
    commit: str  # of onnxprune, where it is what was measured
    request: Request
    images: int
    left: float | None
    accuracy: float | None
    agreement: float | None
    cpu_s: float
    error: str

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a measurement the same."""
        return self.digest, self.commit, self.request, self.images


@dataclass(frozen=True)
class Subject:
    """A folder with `net.onnx` and calibration inputs `inputs_SEED.npz`."""

    name: str
    digest: str
    folder: Path
    macs: int


@dataclass(frozen=True)
class Net(Subject):
    """A trained net, copied so that training can go on, and what it makes of the test images."""

    images: Array
    labels: Array
    classes: Array  # the original's

    @property
    def accuracy(self) -> float:
        """Top-1 of the original."""
        return float((self.classes == self.labels).mean())

    def measured(self, request: Request, made: Made, images: int, commit: str) -> Row:
        """The row of a pruned file, whose first `images` test images are looked at."""
        row = Row(
            self.name,
            self.digest,
            commit,
            request,
            images,
            left=None,
            accuracy=None,
            agreement=None,
            cpu_s=made.cpu_s,
            error=made.error,
        )
        if made.path is None:
            return row
        left = onnxprune_macs(made.path) / self.macs
        found = classes(made.path, self.images[:images])
        return replace(
            row,
            left=left,
            accuracy=float((found == self.labels[:images]).mean()),
            agreement=float((found == self.classes[:images]).mean()),
        )


def net(name: str, path: Path | None) -> Net:
    """Copy the net that was trained last, with calibration images beside it."""
    source = cifar.FOLDER / f"{name}.onnx"
    if not source.exists():
        sys.exit(f"{source} is not there: run python -m benchmarks.train --only {name} first")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "net.onnx").exists():
        shutil.copy(source.with_suffix(".pt"), folder / "net.pt")
        shutil.copy(source, folder / "net.onnx")
    data = cifar.images("train", path)
    for seed in SEEDS:
        if not (folder / f"inputs_{seed}.npz").exists():
            chosen = cifar.chosen(seed)
            image, label = cifar.normalised(data.pixels[chosen]), data.labels[chosen]
            np.savez(folder / f"calib_{seed}.npz", image=image, label=label)
            np.savez(folder / f"inputs_{seed}.npz", image=image)
    test = cifar.images("test", path)
    images = cifar.normalised(test.pixels)
    own = classes(folder / "net.onnx", images)
    macs = onnxprune_macs(folder / "net.onnx")
    return Net(name, digest, folder, macs, images, test.labels, own)


def classes(path: Path, images: Array) -> Array:
    """The most likely class of each image (n, 3, h, w), on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([session.run(None, {name: part})[0].argmax(1) for part in parts])


def commit() -> str:
    """The last commit that changed onnxprune itself, with `+` when it has been changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments, "--", "onnxprune", "passes"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def read_rows(path: Path = ROWS) -> list[Row]:
    """All rows of earlier runs."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Row(**(line | {"request": Request(**line["request"])})) for line in lines]


def add_row(row: Row, path: Path = ROWS) -> None:
    """Append a row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def known_option(parser: argparse.ArgumentParser) -> None:
    """``--known [COMMIT]``: show what is known, of onnxprune at a commit."""
    parser.add_argument(
        "--known",
        nargs="?",
        const=commit(),
        default="",
        metavar="COMMIT",
        help="measure nothing: show what is known, of onnxprune at this commit (default: now)",
    )
