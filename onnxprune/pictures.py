"""A folder of pictures as inputs of a model; needs the extra ``images``.

A picture is scaled so that it just covers the model's size, without changing its proportions, and
cut around its centre; one that has that size already is taken as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import helper

from onnxprune.dynamic import dynamic_axes
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels
WHITE: Final = 255.0
LABELS: Final = "labels.csv"
# What a model wants of a value between 0 and 1: (value - mean) / std.
PRESETS: Final = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,), (0.5,)),
    "raw": ((0.0,), (1.0,)),
    "raw255": ((0.0,), (1 / WHITE,)),
}


@dataclass(frozen=True)
class Pictures:
    """How pictures become inputs.

    Attributes:
        preset: a name in ``PRESETS``.
        mean, std: instead of the preset's, one number or one a channel, for values from 0 to 1.
        layout: ``NCHW`` or ``NHWC``; taken from the model where it says how many channels it has.
        size: height and width; taken from the model where they are fixed.
    """

    preset: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    layout: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Form:
    """What one model wants of a picture: sizes, and (value - mean) / std of values from 0 to 1."""

    name: str
    channels: int
    size: tuple[int, int]
    first: bool
    mean: Array
    std: Array
    dtype: np.dtype[Any]

    def read(self, path: Path) -> Array:
        """One picture: (channels, h, w) or (h, w, channels).

        Raises:
            OnnxPruneError: the file is no picture.
        """
        from PIL import Image

        try:
            with Image.open(path) as opened:
                picture = opened.convert(MODES[self.channels])
        except (OSError, ValueError, SyntaxError) as error:
            raise OnnxPruneError(f"'{path}' can't be read as a picture") from error
        height, width = self.size
        if picture.size != (width, height):
            scale = max(height / picture.height, width / picture.width)
            wide = max(width, round(scale * picture.width))
            high = max(height, round(scale * picture.height))
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
            left, top = (wide - width) // 2, (high - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        values = np.asarray(picture).reshape(height, width, self.channels)
        if self.dtype.kind == "f":
            values = (values.astype(np.float32) - WHITE * self.mean) / (WHITE * self.std)
        return (values.transpose(2, 0, 1) if self.first else values).astype(self.dtype)


def form_of(model: Model, how: Pictures) -> Form:
    """What a model wants of pictures.

    Raises:
        OnnxPruneError: it has other inputs than one picture, or an option is missing or wrong.
    """
    name, kind, sizes = _input(model)
    first = _first(name, sizes, how)
    places = (1, 2, 3) if first else (3, 1, 2)
    channels, *extents = (sizes[place] for place in places)
    if channels not in MODES:
        raise OnnxPruneError(
            f"input '{name}' has {channels or 'any number of'} channels in the layout "
            f"{'NCHW' if first else 'NHWC'}: pictures have 1, 3 or 4"
        )
    given = tuple(extents) if how.size is None else how.size
    for wanted, found in zip(extents, given, strict=True):
        if found is None:
            raise OnnxPruneError(
                f"input '{name}' takes pictures of any size: say which, with --size HEIGHTxWIDTH"
            )
        if wanted not in (None, found):
            raise OnnxPruneError(
                f"input '{name}' takes pictures of {extents[0]}x{extents[1]}, the size given is "
                f"{given[0]}x{given[1]}: leave it out"
            )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    mean, std = _scaling(name, dtype, channels, how)
    return Form(name, channels, (int(given[0] or 0), int(given[1] or 0)), first, mean, std, dtype)


def _input(model: Model) -> tuple[str, int, list[int | None]]:
    symbols = dynamic_axes(model.proto)
    if len(symbols) != 1 or len(next(iter(symbols.values()))) != 4:
        raise OnnxPruneError(
            f"a folder of pictures is for models with one input of four axes, and this one has "
            f"{', '.join(f'{name} ({len(own)} axes)' for name, own in symbols.items())}: give an "
            ".npz file or 'module:function'"
        )
    (name, own), *_ = symbols.items()
    value = next(value for value in model.proto.graph.input if value.name == name)
    dims = value.type.tensor_type.shape.dim
    sizes = [d.dim_value if s is None else None for d, s in zip(dims, own, strict=True)]
    return name, value.type.tensor_type.elem_type, sizes


def _first(name: str, sizes: Sequence[int | None], how: Pictures) -> bool:
    """Whether channels come before height and width."""
    if how.layout is not None:
        if how.layout.upper() not in ("NCHW", "NHWC"):
            raise OnnxPruneError(f"the layout is '{how.layout}': give NCHW or NHWC")
        return how.layout.upper() == "NCHW"
    if sizes[1] in MODES or sizes[3] in MODES:
        return sizes[1] in MODES
    raise OnnxPruneError(
        f"input '{name}' does not say where its channels are: give --layout NCHW or NHWC"
    )


def _scaling(name: str, dtype: np.dtype[Any], channels: int, how: Pictures) -> tuple[Array, Array]:
    """Mean and std (1,) or (channels,)."""
    if how.preset is not None and how.preset not in PRESETS:
        raise OnnxPruneError(
            f"the preset '{how.preset}' is not known: choose one of {', '.join(PRESETS)}"
        )
    if dtype.kind != "f":
        if dtype != np.uint8 or how.preset not in (None, "raw255") or how.mean or how.std:
            raise OnnxPruneError(
                f"input '{name}' has type {dtype}: pictures become floats, or go to uint8 as they "
                "are, without preset, mean and std"
            )
        return np.zeros(1), np.ones(1)
    if how.preset is None and (how.mean is None or how.std is None):
        raise OnnxPruneError(
            "how the model wants pictures scaled is not known: give --preset "
            f"({', '.join(PRESETS)}), or --mean and --std"
        )
    mean, std = PRESETS[how.preset or "raw"]
    found = []
    for what, own in (("mean", how.mean or mean), ("std", how.std or std)):
        if len(own) not in (1, channels):
            raise OnnxPruneError(
                f"{what} has {len(own)} numbers, and input '{name}' has {channels} channels: give "
                "one number, or one a channel"
            )
        found.append(np.asarray(own, np.float32))
    if not np.all(found[1] > 0):
        raise OnnxPruneError(f"std is {', '.join(map(str, found[1]))}: it must be above 0")
    return found[0], found[1]


def listed(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, in the order of their names.

    Raises:
        OnnxPruneError: there are none, or Pillow is not there to read them.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise OnnxPruneError(f"the folder '{folder}' has no pictures (.png, .jpg, .jpeg)")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise OnnxPruneError(
            "pictures are read by Pillow, which is not installed: pip install 'onnxprune[images]'"
        ) from error
    return files


def labels_of(folder: Path, files: Sequence[Path]) -> list[int]:
    """The class of each picture: by ``labels.csv`` (file, label), or by the name of its folder.

    Names that are whole numbers are the classes; else classes are the places of the names in
    alphabetical order, so a folder has to hold pictures of every class.

    Raises:
        OnnxPruneError: a picture has no label.
    """
    table = folder / LABELS
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = {row[0]: row[1].strip() for row in csv.reader(file) if len(row) > 1}
        names = [rows.get(path.relative_to(folder).as_posix()) for path in files]
    else:
        parts = [path.relative_to(folder).parts for path in files]
        names = [own[0] if len(own) > 1 else None for own in parts]
    for path, name in zip(files, names, strict=True):
        if name is None:
            raise OnnxPruneError(
                f"'{path}' has no label: put pictures into one folder a class, or write '{table}' "
                "with lines of file,label"
            )
    texts = [str(name) for name in names]
    if all(text.isdecimal() for text in texts):
        return [int(text) for text in texts]
    order = {text: place for place, text in enumerate(sorted(set(texts)))}
    return [order[text] for text in texts]
