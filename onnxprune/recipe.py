"""Recipes: the options of a pruning in a file, TOML or JSON, with rules for custom operators.

    macs = "50%"
    criterion = "obs"
    calibration = "pages.npy"

    [rules]
    "my.domain::MyOp" = "n c *s, c -> n c *s"

Keys are the options of ``onnxprune prune`` without their dashes (``peak-memory``), or the keywords
of ``onnxprune.prune`` (``peak_bytes``). A file that it names is looked for beside the recipe first.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from onnxprune.amounts import amount, share
from onnxprune.api_rules import refuse_built_in
from onnxprune.budget import Schedule, Scope
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.score import CRITERIA
from onnxprune.pictures import Pictures
from onnxprune.rules import stated_row
from onnxprune.speed import goal

# Options of the command line, and what the keywords of the library for them are.
KEYWORDS: Final = {
    "bytes": "size_bytes",
    "ep_option": "ep_options",
    "group_ratio": "per_group",
    "ort_extension": "ort_extensions",
    "peak_memory": "peak_bytes",
    "rule": "rules",
}
PICTURES: Final = ("preset", "mean", "std", "layout", "size")
PLACES: Final = ("calibration", "evaluate", "inputs", "per_group_from", "ort_extensions")
TABLES: Final = frozenset({"ep_options", "per_group", "rules"})
EXPECTED: Final = "Input should be "  # how pydantic begins to say what it wants
SIDES: Final = 2


def _read_by(function: Callable[[Any], Any]) -> AfterValidator:
    """Values that a function of the library reads; its sentence is the error."""

    def check(value: Any) -> Any:
        try:
            function(value)
        except OnnxPruneError as error:
            raise ValueError(str(error)) from error
        return value

    return AfterValidator(check)


def _known(name: str) -> None:
    if name not in CRITERIA:
        raise OnnxPruneError(f"'{name}' is no criterion: choose one of {', '.join(CRITERIA)}")


def _custom(rules: Mapping[str, str]) -> None:
    for op in rules:
        refuse_built_in(op)


def _sides(size: int | list[int]) -> None:
    if isinstance(size, list) and len(size) != SIDES:
        raise OnnxPruneError(f"{size} is no size: give one number, or [height, width]")


Amount = Annotated[float | str, _read_by(amount)]
Share = Annotated[float | str, _read_by(share)]
Count = Annotated[int, Field(ge=1)]
Line = Annotated[str, _read_by(stated_row)]
Numbers = float | list[float]


class Recipe(BaseModel):
    """Options as they stand in a file; None or empty where they are left to their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ratio: Share | None = None
    macs: Amount | None = None
    params: Amount | None = None
    size_bytes: Amount | None = None
    peak_bytes: Amount | None = None
    latency: Annotated[float | str, _read_by(goal)] | None = None
    criterion: Annotated[str, _read_by(_known)] | None = None
    scope: Scope | None = None
    per_group: dict[str, Share] | None = None
    per_group_from: str | None = None
    align: Literal["auto"] | Count | None = None
    min_channels: Count | None = None
    max_ratio: Share | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    exact_only: bool | None = None
    balanced: bool | None = None
    allow_io_change: list[str] | None = None
    steps: Count | None = None
    schedule: Schedule | None = None
    ep: str | None = None
    ep_options: dict[str, str] | None = None
    threads: Count | None = None
    min_speedup: float | None = None
    force: bool | None = None
    seed: int | None = None
    verify: bool | None = None
    inputs: str | None = None
    recover: bool | Literal["distill"] | None = None
    calibration: str | None = None
    samples: Count | None = None
    evaluate: str | None = None
    metric: str | None = None
    max_drop: Share | None = None
    min_fidelity: Share | None = None
    preset: str | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    layout: str | None = None
    size: Annotated[Count | list[Count], _read_by(_sides)] | None = None
    rules: Annotated[dict[str, Line], _read_by(_custom)] = {}
    ort_extensions: list[str] = []

    @property
    def options(self) -> dict[str, Any]:
        """What is given, as keywords of ``onnxprune.prune``.

        Libraries of custom operators are none: see ``onnxprune.ort_extensions``.
        """
        given = self.model_dump(exclude_none=True, exclude={"ort_extensions"})
        own = {name: given.pop(name) for name in PICTURES if name in given}
        for name in ("mean", "std"):
            if isinstance(own.get(name), float):
                own[name] = [own[name]]
        if "size" in own:
            sides = own["size"] if isinstance(own["size"], list) else [own["size"]] * SIDES
            own["size"] = tuple(sides)
        return given | ({"pictures": Pictures(**own)} if own else {})


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe: ``onnxprune.prune(model, **load_recipe("recipe.toml").options)``.

    Raises:
        OnnxPruneError: the file can't be read, or a key is unknown or has a value that it can't
            have; it names the key.
    """
    path = Path(path)
    found, written = {}, dict[str, str]()
    for key, value in _parsed(path).items():
        name = key.replace("-", "_")
        name = KEYWORDS.get(name, name)
        if name in written:
            raise OnnxPruneError(
                f"recipe '{path}', key '{key}': it says the same as '{written[name]}': leave one "
                "of them out"
            )
        found[name] = _beside(value, path.parent) if name in PLACES else value
        written[name] = key
    try:
        return Recipe.model_validate(found)
    except ValidationError as error:
        raise OnnxPruneError(f"recipe '{path}', {_told(error, written)}") from error


def _parsed(path: Path) -> Mapping[str, Any]:
    """The keys and values of a file."""
    readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise OnnxPruneError(f"recipe '{path}' is neither .toml nor .json: give one of these")
    try:
        found = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OnnxPruneError(f"recipe '{path}' can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OnnxPruneError(f"recipe '{path}' is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, dict):
        raise OnnxPruneError(f"recipe '{path}' holds no keys: give options with their values")
    return found


def _beside(value: Any, folder: Path) -> Any:
    """The path of a file beside the recipe, where it is there; anything else as it is."""
    if isinstance(value, list):
        return [_beside(own, folder) for own in value]
    if isinstance(value, str) and (folder / value).exists():
        return str(folder / value)
    return value


def _told(error: ValidationError, written: Mapping[str, str]) -> str:
    """What is wrong with the first bad value, in a sentence that names the key as it is written."""
    first = error.errors()[0]
    name, *inside = first["loc"]
    key = f"key '{written[str(name)]}'"
    if first["type"] == "extra_forbidden":
        plain = str(name).replace("-", "_").removeprefix("no_")
        if plain in Recipe.model_fields and plain != str(name).replace("-", "_"):
            return f"{key}: there is no such option: write {plain.replace('_', '-')} = false"
        near = get_close_matches(str(name), [*Recipe.model_fields, *KEYWORDS], 1)
        hint = f"did you mean '{near[0].replace('_', '-')}'?" if near else "see prune --help"
        return f"{key}: there is no such option: {hint}"
    if name in TABLES and inside:
        key = f"{key}, '{inside[0]}'"
    if first["type"] == "value_error":
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    told = [own["msg"].removeprefix(EXPECTED) for own in error.errors() if own["loc"][0] == name]
    return f"{key}: it should be {' or '.join(dict.fromkeys(told))}, not {first['input']!r}"
