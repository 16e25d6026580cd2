"""Where samples come from: files, folders, functions; one by one, in the types of the model.

A source is one of

- an ``.npz`` file: its keys are input names, the first axis is the sample; for a model with one
  input a single array of any name will do; labels are ``y``, ``label`` or ``labels``;
- an ``.npy`` file, for a model with one input;
- a folder of pictures (see ``onnxprune.pictures``);
- ``module:function``, imported from the current folder: it yields feeds by input name (or one
  array, for a model with one input), each of one sample or of one batch; with labels it yields
  pairs (feeds, labels);
- in Python also the function itself, arrays by name, an array, or a sequence of such feeds.
"""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper

from onnxprune import pictures
from onnxprune.dynamic import dynamic_axes
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model
from onnxprune.pictures import Pictures

Source = Any  # see above
LABELS: Final = ("y", "label", "labels")
_FUNCTION: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Form:
    """How a model takes samples.

    Attributes:
        model: the model.
        ranks: axes of each input.
        types: element type of each input, of onnx.TensorProto.
        batch: samples of a run, where that is fixed; None where there may be any number.
        whole: whether inputs have no common axis of samples, so that a sample is a whole run.
    """

    model: Model = field(repr=False)
    ranks: Mapping[str, int]
    types: Mapping[str, int]
    batch: int | None
    whole: bool

    @staticmethod
    def of(model: Model) -> Form:
        """Read it from the inputs.

        Raises:
            OnnxPruneError: an input is no tensor.
        """
        symbols = dynamic_axes(model.proto)
        if not model.inputs:
            raise OnnxPruneError("the model has no inputs: there is nothing to give samples to")
        for name in model.inputs:
            if name not in symbols:
                raise OnnxPruneError(f"input '{name}' is no tensor: no samples can be given for it")
        types = {value.name: value.type.tensor_type for value in model.proto.graph.input}
        first = set()  # what is known of axis 0: a symbol, a size, nothing; None of a scalar
        for name in model.inputs:
            symbol = symbols[name][0] if symbols[name] else None
            size = types[name].shape.dim[0].dim_value if symbols[name] else None
            first.add(size if symbol is None else symbol.replace(f"{name}:0", ""))
        whole = None in first or len(first - {""}) > 1 or ("" in first and _fixed(first))
        sizes = {(sample.shapes[model.inputs[0]] or (None,))[0] for sample in model.samples}
        fixed = not whole and len(sizes) == 1
        return Form(
            model,
            {name: len(symbols[name]) for name in model.inputs},
            {name: types[name].elem_type for name in model.inputs},
            sizes.pop() if fixed else None,
            whole,
        )

    def typed(self, name: str, array: Array) -> Array:
        """An array in the type of its input, where that loses nothing that matters.

        Raises:
            OnnxPruneError: it does.
        """
        if self.types[name] == TensorProto.STRING:
            return np.asarray(array, object)
        wanted = np.dtype(helper.tensor_dtype_to_np_dtype(self.types[name]))
        if array.dtype == wanted:
            return array
        floats = array.dtype.kind == "f" and self.types[name] in _FLOATS
        wholes = array.dtype.kind in "biu" and wanted.kind in "biu"
        if floats or (wholes and np.array_equal(array.astype(wanted), array)):
            return array.astype(wanted)
        raise OnnxPruneError(
            f"input '{name}' has type {wanted}, the samples have {array.dtype}: give them in the "
            "model's type, scaled as it wants them"
        )


_FLOATS: Final = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)


def _fixed(first: set[Any]) -> bool:
    return any(isinstance(value, int) for value in first)


@dataclass(frozen=True)
class Samples:
    """Samples one by one.

    Attributes:
        count: how many there are.
        read: by index the arrays of one sample by input name, and its label or None.
        kinds: by sample what it must share with others of a batch; None where all go together.
        mixed: whether they may be taken in another order.
    """

    count: int
    read: Callable[[int], tuple[dict[str, Array], Any]]
    kinds: Sequence[Hashable] | None = None
    mixed: bool = True

    def is_run(self, index: int) -> bool:
        """Whether a sample is a whole run, with all axes of the inputs."""
        return self.kinds is not None and isinstance(self.kinds[index], int)


def told(source: Source) -> str:
    """What messages call a source."""
    return f"'{source}'" if isinstance(source, str | Path) else "the source of samples"


def read(source: Source, form: Form, how: Pictures, samples: int | None, labels: bool) -> Samples:
    """The samples of a source, in its own order.

    Args:
        source: see above.
        form: how the model takes samples.
        how: what pictures become.
        samples: at most so many, of a function that may yield without end.
        labels: whether labels are wanted.

    Raises:
        OnnxPruneError: the source can't be read, or does not fit the model.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return _folder(path, form, how, labels)
        if path.suffix == ".npz" and path.is_file():
            return _arrays(_npz(path), form, source, labels)
        if path.suffix == ".npy" and path.is_file():
            return _arrays({path.stem: _npy(path)}, form, source, labels)
        match = _FUNCTION.fullmatch(str(source))
        if match is None or path.exists():
            what = "is no .npz or .npy file" if path.exists() else "is not there"
            raise OnnxPruneError(
                f"samples can't be read from '{source}': it {what}; give an .npz or .npy file, a "
                "folder of pictures, or 'module:function'"
            )
        source = imported(match[1], match[2])
    if isinstance(source, Mapping):
        given = {str(name): np.asarray(value) for name, value in source.items()}
        return _arrays(given, form, source, labels)
    if isinstance(source, np.ndarray):
        return _arrays({"samples": source}, form, source, labels)
    if callable(source) or isinstance(source, Iterable):
        return _yielded(source, form, samples, labels)
    raise OnnxPruneError(
        f"samples can't be read from a {type(source).__name__}: give a path, arrays by input name, "
        "or a function that yields feeds"
    )


def imported(module: str, name: str) -> Callable[..., Any]:
    """A function of the user's, from the current folder or what is installed.

    Raises:
        OnnxPruneError: there is none.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise OnnxPruneError(
            f"'{module}:{name}' can't be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise OnnxPruneError(f"'{module}:{name}' can't be called: the module has no such function")
    return found  # type: ignore[no-any-return]


def _npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise OnnxPruneError(f"'{path}' can't be read as an .npz file of samples") from error


def _npy(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise OnnxPruneError(f"'{path}' can't be read as an .npy file of samples") from error


def _arrays(given: Mapping[str, Array], form: Form, source: Source, labels: bool) -> Samples:
    """Samples along the first axis of arrays."""
    names = form.ranks
    marks = next((given[key] for key in LABELS if key in given and key not in names), None)
    others = {key: value for key, value in given.items() if key not in LABELS}
    if len(names) == 1 and not names.keys() & given.keys() and len(others) == 1:
        given = dict(zip(names, others.values(), strict=True))
    for name in names:
        if name not in given:
            found = ", ".join(f"'{key}'" for key in given) or "nothing"
            raise OnnxPruneError(f"{told(source)} has no array '{name}': it holds {found}")
    arrays = {name: given[name] for name in names}
    runs = all(array.ndim == names[name] + 1 for name, array in arrays.items())
    for name, array in arrays.items():
        wanted = names[name] + 1 if form.whole else names[name]
        if array.ndim != wanted and not runs:
            raise OnnxPruneError(
                f"array '{name}' of {told(source)} has shape {array.shape}: the first axis is the "
                f"sample, so it should have {wanted} axes"
            )
    if runs and not form.whole:
        arrays = {name: _single(name, array, source) for name, array in arrays.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if labels and marks is not None:
        counts["the labels"] = len(marks)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OnnxPruneError(f"{told(source)} has different numbers of samples: {listed}")

    def read(index: int) -> tuple[dict[str, Array], Any]:
        own = {name: form.typed(name, array[index]) for name, array in arrays.items()}
        return own, None if marks is None or not labels else marks[index]

    return Samples(next(iter(counts.values()), 0), read)


def _single(name: str, array: Array, source: Source) -> Array:
    """Samples that each carry an axis of one sample, without it."""
    if array.shape[1] != 1:
        raise OnnxPruneError(
            f"array '{name}' of {told(source)} has shape {array.shape}: axis 1 should have size 1"
        )
    return array[:, 0]


def _folder(path: Path, form: Form, how: Pictures, labels: bool) -> Samples:
    own = pictures.form_of(form.model, how)
    files = pictures.listed(path)
    marks = pictures.labels_of(path, files) if labels else None

    def read(index: int) -> tuple[dict[str, Array], Any]:
        return {own.name: own.read(files[index])}, None if marks is None else marks[index]

    return Samples(len(files), read)


def _yielded(source: Source, form: Form, samples: int | None, labels: bool) -> Samples:
    """Samples of a function or a sequence; they are all kept."""
    found: list[tuple[dict[str, Array], Any]] = []
    kinds: list[Hashable] = []
    count = 0
    try:
        for given in source() if callable(source) else source:
            arrays, label = _pair(given, form, labels)
            kind, size = _kind(arrays, form, len(found))
            if kind is None:
                kind = tuple(array.shape[1:] for array in arrays.values())
                arrays = {name: array[0] for name, array in arrays.items()}
                label = None if label is None else np.asarray(label).reshape(-1)[0]
            found.append((arrays, label))
            kinds.append(kind)
            count += size
            if samples is not None and count >= samples:
                break
    except OnnxPruneError:
        raise
    except Exception as error:
        raise OnnxPruneError(
            f"the function that yields samples failed: {type(error).__name__}: {error}"
        ) from error
    return Samples(len(found), lambda index: found[index], kinds, mixed=False)


def _pair(given: Any, form: Form, labels: bool) -> tuple[dict[str, Array], Any]:
    """Feeds in the model's types, and their label or None."""
    label = None
    if isinstance(given, tuple) and len(given) == 2:
        given, label = given
    if not isinstance(given, Mapping) and len(form.ranks) == 1:
        given = dict.fromkeys(form.ranks, given)
    if not isinstance(given, Mapping):
        raise OnnxPruneError(
            f"a function of samples yields feeds by input name, this one a {type(given).__name__}"
        )
    for name in form.ranks:
        if name not in given:
            held = ", ".join(f"'{key}'" for key in given) or "nothing"
            raise OnnxPruneError(f"the samples have no input '{name}': they hold {held}")
    if labels and label is None:
        raise OnnxPruneError(
            "the samples have no labels: a function for evaluation yields pairs (feeds, labels)"
        )
    return {name: form.typed(name, np.asarray(given[name])) for name in form.ranks}, label


def _kind(arrays: Mapping[str, Array], form: Form, index: int) -> tuple[Hashable, int]:
    """What samples of a batch share, and how many samples it is; an index of a run of its own.

    None of a batch of one, which may become part of a larger one.
    """
    above = {array.ndim - form.ranks[name] for name, array in arrays.items()}
    if above == {0}:
        sizes = {len(array) for array in arrays.values() if array.ndim}
        single = sizes == {1} and not form.whole
        return (None if single else index), (1 if form.whole else max(sizes, default=1))
    if above == {-1} and not form.whole:
        return tuple(array.shape for array in arrays.values()), 1
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    raise OnnxPruneError(
        f"the samples have shapes {shapes}: give one sample, or a batch, of every input"
    )
