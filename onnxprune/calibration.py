"""Samples for calibration and evaluation, in batches of feeds that ONNX Runtime takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from onnxprune.data import check_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model
from onnxprune.pictures import Pictures
from onnxprune.runtime import Feeds
from onnxprune.sources import LABELS, Form, Samples, Source, read, told

Labelled = Sequence[tuple[Feeds, Array]]
SAMPLES: Final = 384
BATCH: Final = 32  # samples of a batch, at most
BATCHES: Final = 4  # at least so many, where there are enough samples
BATCH_BYTES: Final = 1 << 26  # of the largest activation of a batch


class Batches(Sequence[tuple[Feeds, Array]]):
    """Feeds and labels of each batch, read when they are asked for."""

    def __init__(self, samples: Samples, form: Form, parts: Sequence[Sequence[int]]) -> None:
        self.samples, self.form, self.parts = samples, form, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Batches(self.samples, self.form, self.parts[index])
        found = [self.samples.read(k) for k in self.parts[index]]
        if self.form.whole or self.samples.is_run(self.parts[index][0]):
            feeds, labels = found[0][0], np.asarray(found[0][1])
        else:
            names = self.form.ranks
            feeds = {name: np.stack([own[name] for own, _ in found]) for name in names}
            labels = _stacked([label for _, label in found])
        feeds = check_inputs(feeds, self.form.model)
        self._check(feeds, index)
        return feeds, labels

    def _check(self, feeds: Feeds, index: int) -> None:
        """Refuse values that are not numbers: every figure would be one of them.

        Infinite ones are let through: they mask attention.
        """
        for name, values in feeds.items():
            if values.dtype.kind != "f" or not np.isnan(values).any():
                continue
            part = self.parts[index]
            at = part[0]
            if len(part) == len(values) > 1:
                at = part[int(np.isnan(values).reshape(len(part), -1).any(1).argmax())]
            raise OnnxPruneError(
                f"sample {at} has values of input '{name}' that are not a number (NaN): mend "
                "the data, or leave it out"
            )


def batches(
    source: Source,
    model: Model,
    how: Pictures,
    *,
    samples: int | None = SAMPLES,
    seed: int = 0,
    batch: int | None = None,
    labels: bool = False,
) -> Batches:
    """Batches of feeds and labels, read when they are asked for.

    Args:
        source: see above.
        model: the model that they are for.
        how: how pictures become inputs.
        samples: at most so many; of files and folders a random choice, of functions the first;
            all, in their own order, where None.
        seed: of that choice, and of the order.
        batch: samples of a batch; chosen where None.
        labels: whether there are labels.

    Raises:
        OnnxPruneError: the source can't be read, does not fit the model, or has no labels.
    """
    if samples is not None and samples < 1:
        raise OnnxPruneError(f"samples is {samples}: it must be at least 1")
    if batch is not None and batch < 1:
        raise OnnxPruneError(f"batch is {batch}: it must be at least 1")
    form = Form.of(model)
    found = read(source, form, how, samples, labels)
    order = np.arange(found.count)
    if samples is not None and found.mixed:
        order = np.random.default_rng(seed).permutation(found.count)[:samples]
    if not len(order):
        raise OnnxPruneError(f"{told(source)} has no samples")
    arrays, label = found.read(int(order[0]))
    if labels and label is None:
        raise OnnxPruneError(
            f"{told(source)} has no labels: add an array {' or '.join(LABELS)} to an .npz file, or "
            "yield pairs (feeds, labels) from a function"
        )
    wanted = 1 if form.whole else form.batch or batch or _batch(form, arrays, len(order))
    return Batches(found, form, _parts(found, form, order, wanted, source))


def _parts(
    found: Samples, form: Form, order: Array, batch: int, source: Source
) -> tuple[tuple[int, ...], ...]:
    """Which samples go together."""
    parts = []
    kinds = found.kinds
    for _, own in groupby(order.tolist(), key=lambda k: None if kinds is None else kinds[k]):
        indices = list(own)
        for start in range(0, len(indices), batch):
            part = tuple(indices[start : start + batch])
            if form.batch is None or len(part) == batch or found.is_run(part[0]):
                parts.append(part)
    if not parts:
        raise OnnxPruneError(
            f"the model takes {batch} samples at a time, and {told(source)} has {len(order)}"
        )
    return tuple(parts)


def _batch(form: Form, arrays: Mapping[str, Array], count: int) -> int:
    """Samples of a batch: few where activations are large, and enough batches to hold some out."""
    sample = form.model.samples[0]
    names = form.model.inputs
    inner = sum(int(np.prod([s or 1 for s in sample.shapes[x]], dtype=np.int64)) for x in names)
    own = sum(arrays[x].size for x in names)
    largest = max(
        (
            int(np.prod([size or 1 for size in sample.shapes.get(name) or (1,)], dtype=np.int64))
            for node in form.model.nodes
            for name in node.outputs
        ),
        default=1,
    )
    each = max(1.0, 4 * largest * own / max(inner, 1))
    return max(1, min(BATCH, count // BATCHES, int(BATCH_BYTES / each)))


def _stacked(labels: Sequence[Any]) -> Array:
    arrays = [np.asarray(label) for label in labels]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    found = np.empty(len(arrays), object)
    found[:] = arrays
    return found
