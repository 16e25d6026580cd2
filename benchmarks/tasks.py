"""Trained models that packages ship, each with a task: inputs to calibrate, and a measure.

Inputs to calibrate and to test come from different texts, files and images. A measure takes
something that runs the model and returns a share of 1: higher is better.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.harness import WORK
from benchmarks.trained import FOLDER, OCR, words

Array = NDArray[Any]
Runner = Callable[[Mapping[str, Array]], list[Array]]
EXPORTED = WORK / "exported"  # by benchmarks/export_trained.py
FONTS = Path("/usr/share/fonts/truetype")
LINES, PAGES, PAGE, ROWS = 300, 40, 320, 8
FILES = 1500
BATCH = 50


@dataclass(frozen=True)
class Task:
    """A model, `calibration(seed)` and `measure(runner)`; `unit` says what is measured."""

    model: onnx.ModelProto
    calibration: Callable[[int], dict[str, Array]]
    measure: Callable[[Runner], float]
    unit: str


def batches(run: Runner, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs over all samples."""
    count = len(next(iter(feeds.values())))
    parts = [
        run({name: values[i : i + BATCH] for name, values in feeds.items()})
        for i in range(0, count, BATCH)
    ]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def sized(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model with sizes for all axes of its inputs but the first."""
    proto = onnx.load(path)
    for value in proto.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            dims.add(dim_param="n")
            for size in shapes[value.name]:
                dims.add(dim_value=size)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def recognition() -> Task:
    """PP-OCRv4 reads rotated, blurred and noisy lines; one less the character error."""
    model = sized(FOLDER / OCR / "ch_PP-OCRv4_rec_infer.onnx", {"x": (3, 48, 320)})
    listed = next(p.value for p in model.metadata_props if p.key == "character")
    characters = ["", *listed.splitlines(), " "]

    def measure(run: Runner) -> float:
        said, images = lines(LINES, words(), np.random.default_rng(100))
        found = batches(run, {"x": images})[0].argmax(-1)
        wrong = 0
        for text, path in zip(said, found, strict=True):
            kept = path[np.flatnonzero(np.diff(path, prepend=-1))]
            wrong += distance(text, "".join(characters[i] for i in kept))
        return 1 - wrong / sum(map(len, said))

    def calibration(seed: int) -> dict[str, Array]:
        return {"x": lines(96, other_words(seed), np.random.default_rng(seed))[1]}

    return Task(model, calibration, measure, "characters right")


def detection() -> Task:
    """PP-OCRv4 finds lines on pages; F1 of boxes that overlap by half of their union."""
    model = sized(FOLDER / OCR / "ch_PP-OCRv4_det_infer.onnx", {"x": (3, PAGE, PAGE)})

    def measure(run: Runner) -> float:
        boxes, images = pages(PAGES, words(), np.random.default_rng(100))
        maps = batches(run, {"x": images})[0][:, 0]
        found = [boxes_of(page) for page in maps]
        hits = sum(
            any(overlap(a, b) >= 0.5 for b in there)
            for wanted, there in zip(boxes, found, strict=True)
            for a in wanted
        )
        return 2 * hits / (sum(map(len, boxes)) + sum(map(len, found)))

    def calibration(seed: int) -> dict[str, Array]:
        return {"x": pages(24, other_words(seed), np.random.default_rng(seed))[1]}

    return Task(model, calibration, measure, "F1 of lines")


def file_types() -> Task:
    """Magika names the types of files of this disk; top-1 by their extensions."""
    folder = FOLDER / "magika"
    model = onnx.load(folder / "models/standard_v3_3/model.onnx")
    name = model.graph.input[0].name
    settings = json.loads((folder / "models/standard_v3_3/config.min.json").read_text("utf-8"))
    kinds = json.loads((folder / "config/content_types_kb.min.json").read_text("utf-8"))
    types = settings["target_labels_space"]
    fits = [{f".{extension}" for extension in kinds[kind]["extensions"]} for kind in types]
    known = set().union(*fits)

    def measure(run: Runner) -> float:
        paths = files(FILES, 100, known, even=True)
        found = batches(run, {name: heads(paths)})[0].argmax(-1)
        right = [path.suffix in fits[i] for path, i in zip(paths, found, strict=True)]
        return float(np.mean(right))

    def calibration(seed: int) -> dict[str, Array]:
        return {name: heads(files(384, seed, known, even=False))}

    return Task(model, calibration, measure, "top-1")


def sentences() -> Task:
    """MiniLM finds the long description of Debian packages by the short one; top-1 of 400."""
    stored = dict(np.load(_exported("MiniLM-task.npz")))
    names = ("input_ids", "attention_mask")

    def measure(run: Runner) -> float:
        short, long = (
            batches(run, {name: stored[f"{kind}_{name}"] for name in names})[0]
            for kind in ("short", "long")
        )
        return float(((short @ long.T).argmax(1) == np.arange(len(short))).mean())

    def calibration(seed: int) -> dict[str, Array]:
        rows = np.random.default_rng(seed).permutation(len(stored["other_input_ids"]))[:384]
        return {name: stored[f"other_{name}"][np.sort(rows)] for name in names}

    return Task(onnx.load(_exported("MiniLM.onnx")), calibration, measure, "top-1 of 400")


def faces() -> Task:
    """MTCNN's second network tells faces of scikit-image's `lfw_subset` from other patches."""
    stored = dict(np.load(_exported("RNet-task.npz")))

    def measure(run: Runner) -> float:
        found = batches(run, {"patch": stored["patch"]})[-1][:, 1] > 0.5
        return float((found == stored["face"]).mean())

    def calibration(seed: int) -> dict[str, Array]:
        rows = np.random.default_rng(seed).permutation(len(stored["other"]))[:384]
        return {"patch": stored["other"][np.sort(rows)]}

    return Task(onnx.load(_exported("RNet.onnx")), calibration, measure, "top-1")


TASKS: dict[str, Callable[[], Task]] = {
    "PP-OCRv4 det": detection,
    "PP-OCRv4 rec": recognition,
    "magika": file_types,
    "MiniLM": sentences,
    "MTCNN face": faces,
}


def other_words(seed: int) -> Iterator[str]:
    """Words of Python's own documentation strings, for calibration."""
    modules = ("argparse", "asyncio.tasks", "datetime", "decimal", "email.message", "logging")
    module = import_module(modules[seed % len(modules)])
    texts = [getattr(thing, "__doc__", None) or "" for thing in vars(module).values()]
    found = [w for w in " ".join(texts).split() if w.isascii() and 1 < len(w) < 14]
    order = np.random.default_rng(seed).permutation(len(found))
    return chain.from_iterable([found[i] for i in order] for _ in range(1000))


def _pil(name: str) -> Any:
    sys.path.insert(0, str(FOLDER))
    module = import_module(f"PIL.{name}")
    sys.path.pop(0)
    return module


def _font(size: int, generator: np.random.Generator) -> Any:
    """One of the machine's fonts; PIL's own where there are none."""
    paths = sorted(p for p in FONTS.rglob("*.ttf") if "Math" not in p.name)
    if not paths:
        return _pil("ImageFont").load_default(size)
    return _pil("ImageFont").truetype(str(paths[generator.integers(len(paths))]), size)


def lines(
    count: int, text: Iterator[str], generator: np.random.Generator
) -> tuple[list[str], Array]:
    """Sentences, and images (count, 3, 48, 320) of them, -1 to 1: askew, blurred and noisy."""
    image, draw, blur = _pil("Image"), _pil("ImageDraw"), _pil("ImageFilter").GaussianBlur
    said: list[str] = []
    found: list[Array] = []
    while len(said) < count:
        line = " ".join(islice(text, int(generator.integers(1, 4))))
        font = _font(int(generator.integers(18, 30)), generator)
        left, top, right, bottom = font.getbbox(line)
        if right - left > 300:
            continue
        ground, ink = int(generator.integers(150, 255)), int(generator.integers(0, 90))
        page = image.new("RGB", (320, 48), (ground,) * 3)
        at = 10 - left, (48 - bottom - top) / 2
        draw.Draw(page).text(at, line, fill=(ink,) * 3, font=font)
        page = page.rotate(generator.uniform(-2, 2), fillcolor=(ground,) * 3, resample=2)
        page = page.filter(blur(generator.uniform(0, 1.2)))
        noise = generator.normal(0, generator.uniform(0, 25), (48, 320, 3))
        said.append(line)
        found.append(np.clip(np.asarray(page) + noise, 0, 255))
    scaled = np.stack(found) / 127.5 - 1
    return said, scaled.transpose(0, 3, 1, 2).astype(np.float32)


def pages(
    count: int, text: Iterator[str], generator: np.random.Generator
) -> tuple[list[list[Array]], Array]:
    """Boxes (left, top, right, bottom) of lines, and images (count, 3, 320, 320) of the pages."""
    image, draw, blur = _pil("Image"), _pil("ImageDraw"), _pil("ImageFilter").GaussianBlur
    boxes: list[list[Array]] = []
    found: list[Array] = []
    for _ in range(count):
        ground = int(generator.integers(150, 255))
        page = image.new("RGB", (PAGE, PAGE), (ground,) * 3)
        boxes.append([])
        for row in range(ROWS):
            line = " ".join(islice(text, int(generator.integers(1, 4))))
            font = _font(int(generator.integers(12, 22)), generator)
            at = int(generator.integers(2, 40)), row * PAGE // ROWS + int(generator.integers(12))
            box = np.array(font.getbbox(line)) + np.array([*at, *at])
            if box[2] > PAGE - 2 or box[3] > PAGE - 2:
                continue
            ink = (int(generator.integers(0, 90)),) * 3
            draw.Draw(page).text(at, line, fill=ink, font=font)
            boxes[-1].append(box)
        page = page.filter(blur(generator.uniform(0, 0.8)))
        noise = generator.normal(0, generator.uniform(0, 20), (PAGE, PAGE, 3))
        found.append(np.clip(np.asarray(page) + noise, 0, 255) / 255)
    scaled = (np.stack(found) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return boxes, np.asarray(scaled.transpose(0, 3, 1, 2), np.float32)


def boxes_of(page: Array) -> list[Array]:
    """Boxes of the connected parts of a map (h, w) above 0.3, grown as DB shrinks its lines."""
    mask = page > 0.3
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # the largest number spreads through each part
        grown = np.pad(labels, 1)
        sides = [grown[1:-1, :-2], grown[1:-1, 2:], grown[:-2, 1:-1], grown[2:, 1:-1]]
        spread = np.where(mask, np.maximum.reduce([labels, *sides]), 0)
        if (spread == labels).all():
            break
        labels = spread
    found = []
    for label in np.unique(labels[mask]):
        rows, columns = np.nonzero(labels == label)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if min(height, width) < 3:
            continue
        by = 1.5 * height * width / (2 * (height + width))
        edges = columns.min() - by, rows.min() - by, columns.max() + 1 + by, rows.max() + 1 + by
        found.append(np.array(edges))
    return found


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.clip(sides, 0, None)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def files(count: int, seed: int, extensions: set[str], even: bool) -> list[Path]:
    """Files of this disk, as many of each extension as there are, by turns; of even or odd size."""
    roots = (Path("/usr/share"), Path("/usr/lib"), Path("/etc"), Path(sys.prefix))
    command = ["find", *map(str, roots), "-xdev", "-type", "f", "-size", "-2000k"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    paths = [Path(line) for line in sorted(listed.splitlines())]
    order = np.random.default_rng(seed).permutation(len(paths))
    kinds: dict[str, list[Path]] = {}
    for path in (paths[i] for i in order):
        if path.suffix in extensions:
            kinds.setdefault(path.suffix, []).append(path)
    found: list[Path] = []
    for turn in range(count):
        for suffix in sorted(kinds):
            if turn < len(kinds[suffix]) and len(found) < count:
                path = kinds[suffix][turn]
                size = path.stat().st_size
                if size >= 64 and (size % 2 == 0) == even:
                    found.append(path)
    return found


def heads(paths: list[Path]) -> Array:
    """What magika takes: the first and last 1,024 bytes (n, 2048), 256 where there are none."""
    found = np.full((len(paths), 2048), 256, np.int32)
    for row, path in zip(found, paths, strict=True):
        data = path.read_bytes()
        head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
        row[: len(head)], row[2048 - len(tail) :] = list(head), list(tail)
    return found


def _exported(name: str) -> Path:
    path = EXPORTED / name
    if not path.exists():
        sys.exit(f"{path} is not there: run python -m benchmarks.export_trained {EXPORTED} first")
    return path
