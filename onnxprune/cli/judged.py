"""The options on data, which several commands share: what is read, and what it must show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from onnxprune.amounts import share
from onnxprune.cli.options import option
from onnxprune.cli.shared import Shared
from onnxprune.errors import OnnxPruneError

DATA: Final = "Data"
SOURCE: Final = "an .npz or .npy file, a folder of pictures, or module:function"


def size(text: str) -> tuple[int, int]:
    """``224`` or ``224x320``: height and width.

    Raises:
        OnnxPruneError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if found is None or not int(found[1]) or (found[2] and not int(found[2])):
        raise OnnxPruneError(f"--size '{text}' can't be read: give 224 or HEIGHTxWIDTH")
    return int(found[1]), int(found[2] or found[1])


def numbers(text: str) -> tuple[float, ...]:
    """``0.5`` or ``0.485,0.456,0.406``.

    Raises:
        OnnxPruneError: it is neither.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OnnxPruneError(
            f"'{text}' can't be read: give one number, or one a channel, as in 0.485,0.456,0.406"
        ) from error


PRESETS: Final = "imagenet, inception, clip, raw (0 to 1) or raw255"
Calibration = Annotated[
    str | None,
    option(
        "--calibration", DATA, f"Inputs without labels: {SOURCE}; or synthetic.", metavar="SOURCE"
    ),
]
Samples = Annotated[
    int | None,
    option("--samples", DATA, "So many of them (default: 384).", show_default=False),
]
Evaluate = Annotated[
    str | None,
    option("--evaluate", DATA, "Inputs with labels, of the same kinds.", metavar="SOURCE"),
]
Metric = Annotated[
    str | None,
    option(
        "--metric",
        DATA,
        "What is evaluated: top1, top5, mse or module:function (default: top1).",
        show_default=False,
    ),
]
MaxDrop = Annotated[
    float | None,
    option(
        "--max-drop",
        DATA,
        "By how much the metric may get worse, absolutely: 0.01 or 1%; else exit 1, and no model. "
        "Without a budget: the smallest model that keeps it.",
        parser=share,
        metavar="SHARE",
    ),
]
MinFidelity = Annotated[
    float | None,
    option(
        "--min-fidelity",
        DATA,
        "What the agreement of every output with the original has to reach: 0.99 or 99%.",
        parser=share,
        metavar="SHARE",
    ),
]
Preset = Annotated[str | None, option("--preset", DATA, f"How pictures are scaled: {PRESETS}.")]
Mean = Annotated[
    Any,
    option("--mean", DATA, "Instead: what is taken off.", parser=numbers, metavar="NUMBER,..."),
]
Std = Annotated[
    Any,
    option("--std", DATA, "Instead: what it is divided by.", parser=numbers, metavar="NUMBER,..."),
]
Layout = Annotated[
    str | None,
    option("--layout", DATA, "NCHW or NHWC, where the model doesn't say.", metavar="LAYOUT"),
]
Size = Annotated[
    Any,
    option("--size", DATA, "Height and width of pictures.", parser=size, metavar="HEIGHTxWIDTH"),
]
NoRecover = Annotated[
    bool,
    option("--no-recover", DATA, "Don't fit what stays on the calibration inputs."),
]
PICTURES: Final = {"preset": Preset, "mean": Mean, "std": Std, "layout": Layout, "size": Size}
SOURCES: Final = {
    "calibration": Calibration,
    "samples": Samples,
    "evaluate": Evaluate,
    "metric": Metric,
}
GATES: Final = {"max_drop": MaxDrop, "min_fidelity": MinFidelity}
PerGroupFrom = Annotated[
    Path | None,
    option(
        "--per-group-from",
        DATA,
        "Share the budget out by what 'onnxprune sensitivity' wrote.",
        metavar="FILE.json",
    ),
]
RecoverBy = Annotated[
    str | None,
    option(
        "--recover",
        DATA,
        "least-squares (the default with --calibration), or distill: then also a short training "
        "by the original's outputs (extra torch).",
        show_default=False,
    ),
]
LEAST_SQUARES: Final = "least-squares"
RECOVERIES: Final = {LEAST_SQUARES: True, "distill": "distill"}
RECOVERY: Final = {"no_recover": NoRecover, "recover": RecoverBy}
TABLE: Final = {"per_group_from": PerGroupFrom}
OPTIONS: Final = {**SOURCES, **RECOVERY, **GATES, **TABLE, **PICTURES}


def data_options(*without: str) -> Shared:
    """The options on data; the command gets those that were given, as arguments of the library.

    Args:
        without: names of options that it does not have.
    """
    options = {name: own for name, own in OPTIONS.items() if name not in without}
    defaults = {name: False if own is NoRecover else None for name, own in options.items()}
    return Shared({name: (own, defaults[name]) for name, own in options.items()}, arguments)


def arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, as arguments of the library."""
    given = {name: value for name, value in found.items() if value is not None}
    by = given.pop("recover", None)
    if by is not None and by not in RECOVERIES:
        raise OnnxPruneError(f"--recover '{by}' is not known: choose {' or '.join(RECOVERIES)}")
    if given.pop("no_recover", False):
        if by is not None:
            raise OnnxPruneError("--recover and --no-recover exclude each other")
        given["recover"] = False
    elif by is not None:
        given["recover"] = RECOVERIES[by]
    pictures = {name: given.pop(name) for name in PICTURES if name in given}
    if pictures:
        from onnxprune.pictures import Pictures

        given["pictures"] = Pictures(**pictures)
    return given


def sources(data: dict[str, Any]) -> tuple[Path, ...]:
    """The files that data is read from, which nothing may be written to."""
    given = [data.get(name) for name in ("calibration", "evaluate", "per_group_from")]
    return tuple(Path(str(path)) for path in given if path is not None)
