"""CIFAR-10 as the benchmarks of accuracy use it: 40,000 images to train on, 5,000 to test.

The data carries no licence, so nothing of it is committed: `--cifar PATH` names the folder of
`cifar10_train.npz` and `cifar10_test.npz` (JPEG bytes `jpeg[offset[i]:offset[i + 1]]`, `label`).
Without it `../shared/data` is tried, and then torchvision's download.
"""

import io
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import HERE, WORK

Array = NDArray[Any]
SHARED = HERE.parents[1] / "shared" / "data"
FOLDER = WORK / "nets"
MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], np.float32)
TRAIN, TEST = 40_000, 5_000
CALIBRATION = 384


@dataclass(frozen=True)
class Images:
    """Pixels (n, 3, 32, 32) of uint8 and labels (n,)."""

    pixels: Array
    labels: Array


def images(part: str, path: Path | None = None) -> Images:
    """The `train` or `test` images; decoded once and kept in `work`."""
    kept = FOLDER / f"cifar_{part}.npz"
    if not kept.exists():
        found = _decoded(part, path)
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".tmp.npz")
        np.savez(unfinished, pixels=found.pixels, labels=found.labels)
        unfinished.replace(kept)
    with np.load(kept) as file:
        return Images(file["pixels"], file["labels"])


def normalised(pixels: Array) -> Array:
    """What the nets take: (n, 3, 32, 32) of float32."""
    scaled = pixels.astype(np.float32) / 255
    return np.asarray((scaled - MEAN[:, None, None]) / STD[:, None, None], np.float32)


def chosen(seed: int, count: int = CALIBRATION) -> Array:
    """Which of the training images calibrate."""
    return np.sort(np.random.default_rng(seed).choice(TRAIN, count, replace=False))


def _decoded(part: str, path: Path | None) -> Images:
    name = f"cifar10_{part}.npz"
    folders = [path] if path else [SHARED, Path("/work/shared/data")]
    file = next((folder / name for folder in folders if (folder / name).exists()), None)
    if file is None:
        return _downloaded(part, path)
    image = import_module("PIL.Image")
    with np.load(file) as stored:
        data, offset, labels = stored["jpeg"].tobytes(), stored["offset"], stored["label"]
    decoded = [
        np.asarray(image.open(io.BytesIO(data[start:end])).convert("RGB"))
        for start, end in pairwise(offset)
    ]
    pixels = np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2))
    return Images(pixels, labels.astype(np.int64))


def _downloaded(part: str, path: Path | None) -> Images:
    """The first images of torchvision's copy."""
    if path:
        sys.exit(f"{path}: has no cifar10_{part}.npz; see the head of benchmarks/cifar.py")
    try:
        datasets = import_module("torchvision.datasets")
        data = datasets.CIFAR10(str(FOLDER / "torchvision"), train=part == "train", download=True)
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(
            f"CIFAR-10 is not at {SHARED}, and torchvision cannot download it ({error}): "
            "give the folder of cifar10_train.npz and cifar10_test.npz with --cifar"
        )
    count = TRAIN if part == "train" else TEST
    pixels = np.ascontiguousarray(data.data[:count].transpose(0, 3, 1, 2))
    return Images(pixels, np.asarray(data.targets[:count], np.int64))
