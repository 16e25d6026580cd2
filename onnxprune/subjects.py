"""What a benchmark measures: models as files, and the inputs that they are run on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import external_data_helper

from onnxprune import data, files, remote, shapes
from onnxprune.dynamic import dynamic_axes
from onnxprune.errors import OnnxPruneError
from onnxprune.mobile import ORT_FORMAT
from onnxprune.model import Array, Model
from onnxprune.target import Target

DEFAULT: Final = Target()


@dataclass(frozen=True)
class Subject:
    """One model to measure.

    Attributes:
        name: what reports call it.
        path: its file.
        size_bytes: of the file, external data included.
    """

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class Wanted:
    """How to measure.

    Attributes:
        target: what the models run on.
        inputs: real inputs: a file or arrays; random ones where absent.
        sizes: shapes of inputs by name, for random ones.
        batches: batch sizes; the one that the inputs have where there are none.
        runs, seconds: see ``passes.benchmark``.
        seed: of inputs and bootstrap.
        memory: whether to measure peak memory, in child processes.
        profile: whether to say where the time goes.
        mobile: whether to say what mobile providers would take.
    """

    target: Target = DEFAULT
    inputs: str | Path | Mapping[str, Any] | None = None
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batches: Sequence[int] = ()
    runs: int | None = None
    seconds: float = 60.0
    seed: int = 0
    memory: bool = True
    profile: bool = False
    mobile: bool = False


@contextmanager
def subjects(models: Sequence[Any]) -> Iterator[list[Subject]]:
    """The models as files; those in memory are written to a temporary folder.

    Raises:
        OnnxPruneError: there is no model.
        BadModelError: one of them can't be read.
    """
    if not models:
        raise OnnxPruneError("there is no model to measure: give at least one")
    with tempfile.TemporaryDirectory() as folder:
        found: list[Subject] = []
        for position, source in enumerate(models):
            if isinstance(source, str | os.PathLike):
                path = Path(source)
            else:
                path = Path(folder) / f"model{position}.onnx"
                loaded = files.load(source)
                files.save(loaded.proto, path, loaded.folder)
            name = (
                path.name if sum(Path(str(m)).name == path.name for m in models) < 2 else str(path)
            )
            found.append(Subject(name, path, size_bytes(path)))
        yield found


def size_bytes(path: Path) -> int:
    """The bytes of a model's file and of the files that it keeps tensors in.

    Raises:
        BadModelError: it can't be read.
    """
    if path.suffix == ORT_FORMAT and path.is_file():
        return path.stat().st_size
    proto = files.read_proto(path)
    files.check_proto(proto, str(path), path.resolve().parent)
    return path.stat().st_size + sum((path.parent / x).stat().st_size for x in outside(proto))


def outside(proto: onnx.ModelProto) -> list[str]:
    """The files that a model keeps tensors in, as it names them."""
    tensors = [t for t in proto.graph.initializer if shapes.is_external(t)]
    return sorted({external_data_helper.ExternalDataInfo(t).location for t in tensors})


def feeds_of(
    models: Sequence[Subject], wanted: Wanted
) -> tuple[dict[int | None, dict[str, Array]], list[str]]:
    """The inputs for each batch size, and notes on what was chosen.

    Raises:
        OnnxPruneError: inputs or shapes don't fit the first model, or its batch is fixed.
    """
    path = next((m.path for m in models if m.path.suffix != ORT_FORMAT), None)
    if path is None:
        if not isinstance(wanted.inputs, Mapping) and wanted.inputs is None:
            raise OnnxPruneError(
                "files in the .ort format don't tell their inputs: give --inputs, or an .onnx "
                "model beside them"
            )
        given = wanted.inputs
        arrays = dict(given) if isinstance(given, Mapping) else remote.read(str(given))
        return {None: arrays}, []
    model = files.load(path)
    notes = []
    if wanted.inputs is None:
        model, chosen = sized(model, wanted.sizes)
        arrays = data.random_inputs(model, wanted.seed, small=False)
        if chosen:
            notes.append(f"dynamic axes were chosen: {chosen} (--shape sets them)")
    elif wanted.sizes:
        raise OnnxPruneError("--shape is for random inputs: it can't go with --inputs")
    elif isinstance(wanted.inputs, Mapping):
        arrays = data.check_inputs(wanted.inputs, model)
    else:
        arrays = data.load_inputs(Path(wanted.inputs), model)
    batched = _batched(files.load(path).proto)
    if not wanted.batches:
        sizes = {len(arrays[name]) for name in batched}
        if wanted.inputs is not None and len(sizes) == 1 and max(sizes) > 1:
            notes.append(
                f"the {max(sizes)} samples of --inputs are one batch (--batch sets others)"
            )
        return {sizes.pop() if len(sizes) == 1 else None: arrays}, notes
    if not batched:
        raise OnnxPruneError(
            f"the batch of '{path.name}' is fixed: --batch can't change it; export the model with "
            "a dynamic first axis"
        )
    return {size: _repeated(arrays, batched, size) for size in wanted.batches}, notes


def sized(model: Model, sizes: Mapping[str, Sequence[int]]) -> tuple[Model, str]:
    """The model with fixed input shapes: as given, else a batch of 1 and usual sizes.

    Returns:
        the model, and the shapes of inputs with dynamic axes that were chosen, in words.

    Raises:
        OnnxPruneError: there is no such input, or the shape can't be its.
    """
    symbols = dynamic_axes(model.proto)
    for name, shape in sizes.items():
        if name not in symbols:
            known = ", ".join(f"'{x}'" for x in symbols)
            raise OnnxPruneError(f"--shape names the input '{name}': the model has {known}")
        _check_shape(model, name, shape)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.value_info[:]
    chosen = []
    batch = {own[0] for own in symbols.values() if own} - {None}
    for value in proto.graph.input:
        if value.name not in symbols:
            continue
        own = symbols[value.name]
        usual = [
            1 if symbol in batch else size or 1
            for symbol, size in zip(own, model.samples[0].shapes[value.name] or (), strict=True)
        ]
        shape = [int(x) for x in sizes.get(value.name, usual)]
        if value.name not in sizes and any(own):
            chosen.append(f"{value.name}={'x'.join(map(str, shape))}")
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return files.load(proto, model.name, model.folder), ", ".join(chosen)


def _check_shape(model: Model, name: str, shape: Sequence[int]) -> None:
    declared = model.shape(name) or ()
    fixed = dynamic_axes(model.proto)[name]
    fits = len(declared) == len(shape) and all(
        symbol is not None or size == wanted
        for symbol, size, wanted in zip(fixed, declared, shape, strict=True)
    )
    if not fits or min(shape, default=1) < 1:
        says = "x".join("?" if s else str(d) for s, d in zip(fixed, declared, strict=True))
        raise OnnxPruneError(
            f"--shape gives input '{name}' the shape {'x'.join(map(str, shape))}, the model wants "
            f"{says or 'a scalar'} (? is free)"
        )


def _batched(proto: onnx.ModelProto) -> list[str]:
    """The inputs whose first axis is dynamic."""
    return [name for name, own in dynamic_axes(proto).items() if own and own[0] is not None]


def _repeated(arrays: Mapping[str, Array], batched: Sequence[str], size: int) -> dict[str, Array]:
    if size < 1:
        raise OnnxPruneError(f"--batch is {size}: it must be at least 1")
    rows = np.arange(size)
    return {
        name: np.take(array, rows % len(array), axis=0) if name in batched else array
        for name, array in arrays.items()
    }
