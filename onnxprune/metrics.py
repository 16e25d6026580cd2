"""How good a model is at its task, by labels: top1, top5, mse, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from onnxprune.calibration import Labelled
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array
from onnxprune.runtime import Runner
from onnxprune.sources import imported

Metric = str | Callable[[dict[str, Any], Array], float]
TOP: Final = {"top1": 1, "top5": 5}
MSE: Final = "mse"
DEFAULT: Final = "top1"


@dataclass(frozen=True)
class Evaluation:
    """A metric of two models on the same samples.

    Attributes:
        metric: its name.
        before: of the original.
        after: of the smaller model.
        samples: how many were looked at.
    """

    metric: str
    before: float
    after: float
    samples: int

    @property
    def drop(self) -> float:
        """By how much it got worse: a fall of what should be large, a rise of an error."""
        return self.after - self.before if self.metric == MSE else self.before - self.after


def check_metric(metric: Metric) -> str:
    """The name of a metric.

    Raises:
        OnnxPruneError: there is none of this name.
    """
    if not isinstance(metric, str):
        return getattr(metric, "__name__", "metric")
    if metric not in TOP and metric != MSE and ":" not in metric:
        raise OnnxPruneError(
            f"the metric '{metric}' is not known: choose {', '.join([*TOP, MSE])} or give "
            "'module:function'"
        )
    return metric


def evaluate(runner: Runner, labelled: Labelled, metric: Metric = DEFAULT) -> float:
    """The metric of one model.

    ``top1`` and ``top5`` are shares of samples (or of places, where labels have more axes) for
    which the label is among the highest scores; ``mse`` is the mean squared error of the outputs
    that have the labels' shape. Any other is a function of all outputs by name (joined along axis
    0 where batches allow that, else lists) and all labels; it returns a number, larger is better.

    Args:
        runner: outputs by name for feeds.
        labelled: batches of feeds and labels.
        metric: see above, or the function itself.

    Raises:
        OnnxPruneError: the metric is not known, fails, or labels do not fit the outputs.
    """
    check_metric(metric)
    if not isinstance(metric, str):
        return _own(metric, runner, labelled)
    if ":" in metric:
        module, _, name = metric.partition(":")
        return _own(imported(module, name), runner, labelled)
    total, count = 0.0, 0
    for feeds, labels in labelled:
        outputs = _floats(runner(feeds))
        wrong = _squares(outputs, labels) if metric == MSE else None
        found = _hits(outputs, labels, TOP[metric]) if wrong is None else wrong
        total, count = total + float(found.sum(dtype=np.float64)), count + found.size
    return total / max(count, 1)


def _floats(outputs: Mapping[str, Any]) -> dict[str, Array]:
    return {
        name: value
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    }


def _hits(outputs: Mapping[str, Array], labels: Array, top: int) -> Array:
    """Whether each label is among the highest scores of the first output that fits it."""
    for value in outputs.values():
        shape = list(labels.shape)
        if value.dtype.kind == "f" and value.ndim > labels.ndim and value.size:
            trimmed = value.reshape(_trimmed(value.shape, labels.ndim + 1))
            for axis in (1, trimmed.ndim - 1):
                rest = [*trimmed.shape[:axis], *trimmed.shape[axis + 1 :]]
                if trimmed.ndim == labels.ndim + 1 and rest == shape:
                    return _among(np.moveaxis(trimmed, axis, -1), labels, top)
        if value.dtype.kind != "f" and list(value.shape) == shape and top == 1:
            return np.asarray(value == labels)  # the model takes the argmax itself
    raise OnnxPruneError(_unfit(outputs, labels, "scores of classes"))


def _trimmed(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape without trailing axes of size 1 above a rank."""
    while len(shape) > rank and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _among(scores: Array, labels: Array, top: int) -> Array:
    """Whether fewer than ``top`` scores are above the label's; NaN is never among them."""
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[-1]:
        raise OnnxPruneError(
            f"labels of type {labels.dtype} are wanted to be classes from 0 to "
            f"{scores.shape[-1] - 1}: the model has that many"
        )
    own = np.take_along_axis(scores, labels[..., None].astype(np.int64), axis=-1)
    places = np.arange(scores.shape[-1])
    before = (scores > own) | ((scores == own) & (places < labels[..., None]))
    return np.asarray((before.sum(axis=-1) < top) & np.isfinite(own[..., 0]))


def _squares(outputs: Mapping[str, Array], labels: Array) -> Array:
    for value in outputs.values():
        if value.shape in (labels.shape, (*labels.shape, 1)):
            apart = value.astype(np.float64).reshape(labels.shape) - labels
            return np.square(apart)
    raise OnnxPruneError(_unfit(outputs, labels, "values"))


def _unfit(outputs: Mapping[str, Array], labels: Array, what: str) -> str:
    shapes = ", ".join(f"'{name}' {value.shape}" for name, value in outputs.items())
    return (
        f"no output holds {what} for labels of shape {labels.shape}: there are "
        f"{shapes or 'no tensors'}; give --metric module:function"
    )


def _own(metric: Callable[..., Any], runner: Runner, labelled: Labelled) -> float:
    """A metric of the user's, on all outputs and labels."""
    outputs: dict[str, list[Any]] = {}
    labels = []
    for feeds, own in labelled:
        for name, value in runner(feeds).items():
            outputs.setdefault(name, []).append(value)
        labels.append(own)
    joined = {name: _joined(values) for name, values in outputs.items()}
    try:
        return float(metric(joined, _joined(labels)))
    except Exception as error:
        raise OnnxPruneError(
            f"the metric '{getattr(metric, '__name__', metric)}' failed: {type(error).__name__}: "
            f"{error}"
        ) from error


def _joined(values: Iterable[Any]) -> Any:
    """One array along axis 0; a list where shapes do not allow that."""
    found = list(values)
    arrays = all(isinstance(value, np.ndarray) and value.ndim for value in found)
    if arrays and len({(value.shape[1:], value.dtype) for value in found}) == 1:
        return np.concatenate(found)
    return found
