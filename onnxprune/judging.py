"""Judge a smaller model on data: fidelity to the original, a metric by labels, and the gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypedDict, cast, get_type_hints

import numpy as np
import onnx

from onnxprune import calibration, runtime
from onnxprune.amounts import share
from onnxprune.calibration import SAMPLES, Labelled
from onnxprune.data import check_seed
from onnxprune.errors import OnnxPruneError
from onnxprune.fidelity import Fidelity, fidelity
from onnxprune.metrics import DEFAULT, Evaluation, Metric, check_metric, evaluate
from onnxprune.model import Model
from onnxprune.pictures import Pictures
from onnxprune.results import Jsonable
from onnxprune.runtime import Feeds, Runner
from onnxprune.sources import Source
from onnxprune.synthetic import NOTE, SYNTHETIC, synthetic_samples

FEW: Final = 64  # calibration samples below which a user is told
REMEMBERED: Final = 1 << 28  # bytes of the original's outputs that are kept for the next model


@dataclass(frozen=True)
class Data:
    """Samples and labels, and what they must show.

    Attributes:
        calibration: a source without labels; see ``onnxprune.sources``; or ``synthetic``.
        evaluation: a source with labels.
        samples: how many of the calibration source are taken.
        metric: what is evaluated.
        max_drop: by how much the metric may get worse.
        min_fidelity: what the fidelity of every output has to reach.
        pictures: how pictures become inputs.
        seed: of the choice of samples.
    """

    calibration: Source = None
    evaluation: Source = None
    samples: int = SAMPLES
    metric: Metric = DEFAULT
    max_drop: float | None = None
    min_fidelity: float | None = None
    pictures: Pictures = field(default_factory=Pictures)
    seed: int = 0
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def given(self) -> bool:
        """Whether there is anything to judge by."""
        return self.calibration is not None or self.evaluation is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the feeds that were asked for."""
        if "synthetic" in self._read:
            return (NOTE,)
        count = sum(map(_samples, self._read.get("feeds", ())))
        if self.calibration is None or not 0 < count < FEW:
            return ()
        return (
            f"{count} calibration samples are few: what is fitted to them may not hold for others; "
            "a few hundred are better",
        )

    def check(self) -> None:
        """Refuse what makes no sense, before any work is done.

        Raises:
            OnnxPruneError: a gate has no data, or an option is out of range.
        """
        check_metric(self.metric)
        if self.samples < 1:
            raise OnnxPruneError(f"samples is {self.samples}: it must be at least 1")
        check_seed(self.seed)
        if self.max_drop is not None and self.evaluation is None:
            raise OnnxPruneError(
                "max_drop limits the fall of a metric: give data with labels, too (--evaluate)"
            )
        if self.max_drop is not None and not self.max_drop >= 0:
            raise OnnxPruneError(f"max_drop is {self.max_drop:g}: it must be 0 or more")
        if self.min_fidelity is not None and not self.given:
            raise OnnxPruneError(
                "min_fidelity compares outputs on data: give some (--calibration or --evaluate)"
            )
        if self.min_fidelity is not None and not self.min_fidelity <= 1:
            raise OnnxPruneError(f"min_fidelity is {self.min_fidelity:g}: it is at most 1")

    def alone(self) -> Data:
        """The data with nothing but what was read of it: it can be pickled."""
        kept = {key: own for key, own in self._read.items() if key in ("feeds", "labelled")}
        given = [None if own is None else "read" for own in (self.calibration, self.evaluation)]
        return replace(self, calibration=given[0], evaluation=given[1], _read=kept)

    def settings(self) -> dict[str, Any]:
        """What a report says was asked for."""
        if not self.given:
            return {}
        found: dict[str, Any] = {
            "calibration": _named(self.calibration),
            "samples": None if self.calibration is None else self.samples,
            "evaluate": _named(self.evaluation),
            "metric": None if self.evaluation is None else check_metric(self.metric),
            "max_drop": self.max_drop,
            "min_fidelity": self.min_fidelity,
        }
        found |= {k: v for k, v in vars(self.pictures).items() if v is not None}
        return {key: value for key, value in found.items() if value is not None}

    def feeds(self, model: Model) -> tuple[Feeds, ...]:
        """Batches of calibration inputs; synthetic ones, with a note, where no source is given.

        Raises:
            OnnxPruneError: the source can't be read, or does not fit the model.
        """
        if "feeds" not in self._read:
            source = self.calibration
            if source is None or (isinstance(source, str) and source == SYNTHETIC):
                self._read["synthetic"] = True
                self._read["feeds"] = synthetic_samples(model, samples=self.samples, seed=self.seed)
            else:
                found = calibration.batches(
                    self.calibration, model, self.pictures, samples=self.samples, seed=self.seed
                )
                self._read["feeds"] = tuple(feeds for feeds, _ in found)
        return self._read["feeds"]  # type: ignore[no-any-return]

    def labelled(self, model: Model) -> Labelled:
        """Batches of inputs with labels.

        Raises:
            OnnxPruneError: the source can't be read, does not fit the model, or has no labels.
        """
        assert self.evaluation is not None
        if "labelled" not in self._read:
            found = calibration.batches(
                self.evaluation, model, self.pictures, samples=None, labels=True
            )
            self._read["labelled"] = _kept(found, REMEMBERED)
        return self._read["labelled"]  # type: ignore[no-any-return]


def _kept(labelled: Labelled, limit: int) -> Labelled:
    """All batches in memory, where they take few bytes; else as they are, read again each time."""
    kept, used = [], 0
    for feeds, labels in labelled:
        used += labels.nbytes + sum(array.nbytes for array in feeds.values())
        if used > limit:
            return labelled
        kept.append((feeds, labels))
    return tuple(kept)


def _samples(feeds: Feeds) -> int:
    """How many samples a batch has, as far as can be told."""
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


def _count(labelled: Labelled) -> int:
    if isinstance(labelled, calibration.Batches):
        return sum(len(part) for part in labelled.parts)
    return sum(len(np.atleast_1d(labels)) for _, labels in labelled)


def _named(source: Source) -> str | None:
    return None if source is None else str(source) if isinstance(source, str) else _kind(source)


def _kind(source: Source) -> str:
    return str(source) if hasattr(source, "__fspath__") else type(source).__name__


class SourceOptions(TypedDict, total=False):
    """Keywords that say how data is read.

    Attributes:
        samples: how many calibration inputs are taken (384).
        pictures: how pictures become inputs.
        metric: ``top1`` (the default), ``top5``, ``mse``, ``module:function`` or a function.
    """

    samples: int
    pictures: Pictures | None
    metric: Metric


class DataOptions(SourceOptions, total=False):
    """Keywords that also say what a result has to reach on data.

    Attributes:
        max_drop: by how much the metric may get worse, absolutely; without a budget the smallest
            model that keeps it is searched for.
        min_fidelity: what the fidelity of every output has to reach; see
            ``onnxprune.fidelity.Fidelity.value``.
    """

    max_drop: float | str | None
    min_fidelity: float | str | None


def gathered(calibration: Source, evaluation: Source, seed: int, options: SourceOptions) -> Data:
    """Data from the arguments of the interface.

    Raises:
        TypeError: one of the options is unknown.
    """
    unknown = sorted(options.keys() - get_type_hints(DataOptions))
    if unknown:
        raise TypeError(f"there is no keyword argument '{unknown[0]}'")
    gates = cast("DataOptions", options)
    wanted = (gates.get("max_drop"), gates.get("min_fidelity"))
    drop, least = (None if value is None else share(value) for value in wanted)
    metric, how = options.get("metric", DEFAULT), options.get("pictures") or Pictures()
    samples = options.get("samples", SAMPLES)
    return Data(calibration, evaluation, samples, metric, drop, least, how, seed)


@dataclass(frozen=True)
class Judgement(Jsonable):
    """What data says of a smaller model.

    Attributes:
        fidelity: one for each output, on the evaluation's inputs where there are any.
        evaluation: the metric before and after, where there are labels.
    """

    fidelity: tuple[Fidelity, ...] = ()
    evaluation: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = self.evaluation
        rows = [asdict(row) | {"value": row.value} for row in self.fidelity]
        told = None if own is None else asdict(own) | {"drop": own.drop}
        return {"evaluation": told, "fidelity": rows}

    def refused(self, data: Data) -> str | None:
        """Why a gate says no; None where none does."""
        if data.max_drop is not None and self.evaluation is not None:
            own = self.evaluation
            if not own.drop <= data.max_drop:
                moved = "rose" if own.after > own.before else "fell"
                return (
                    f"{own.metric} {moved} from {own.before:.4g} to {own.after:.4g}, and max_drop "
                    f"allows {data.max_drop:g}: nothing was written"
                )
        if data.min_fidelity is not None:
            for row in self.fidelity:
                if not row.value >= data.min_fidelity:
                    return (
                        f"the fidelity of output '{row.output}' is {row.value:.4g}, and "
                        f"min_fidelity asks for {data.min_fidelity:g}: nothing was written"
                    )
            if not self.fidelity:
                return "no output can be compared, so min_fidelity can't be shown"
        return None


@dataclass(frozen=True)
class Judge:
    """Compares models with one original, which runs once.

    Attributes:
        model: the original.
        data: what it is judged by.
        threads: threads inside an operator.
    """

    model: Model
    data: Data
    threads: int = 1

    @cached_property
    def original(self) -> Runner:
        """The original's outputs; those of calibration inputs are remembered, if they are few."""
        return _remembering(
            runtime.runner(self.model.proto, self.model.folder, self.threads), REMEMBERED
        )

    @cached_property
    def before(self) -> float:
        """The metric of the original."""
        return evaluate(self.original, self.data.labelled(self.model), self.data.metric)

    def alone(self) -> Judgement:
        """The metric of the original, with no other model."""
        name = check_metric(self.data.metric)
        count = _count(self.data.labelled(self.model))
        return Judgement((), Evaluation(name, self.before, self.before, count))

    def judge(self, small: onnx.ModelProto, folder: Path | None = None) -> Judgement:
        """Judge a smaller model.

        Args:
            small: the model.
            folder: where its outside data lies, if not where the original's does.

        Raises:
            OnnxPruneError: data can't be read, does not fit, or ORT fails on it.
        """
        if not self.data.given:
            return Judgement()
        runner = runtime.runner(small, folder or self.model.folder, self.threads)
        evaluation, feeds = None, None
        if self.data.evaluation is not None:
            labelled = self.data.labelled(self.model)
            after = evaluate(runner, labelled, self.data.metric)
            name = check_metric(self.data.metric)
            evaluation = Evaluation(name, self.before, after, _count(labelled))
            feeds = (feeds for feeds, _ in labelled)
        own: Iterable[Feeds] = self.data.feeds(self.model) if feeds is None else feeds
        return Judgement(fidelity(self.original, runner, own), evaluation)


def judge_of(model: Model, data: Data) -> Judge:
    """The judge of a model by data: the same one for the same file, which then runs once."""
    known: Judge | None = data._read.get("judge")
    if known is None or known.model.proto is not model.proto:
        known = data._read["judge"] = Judge(model, data)
    return known


def _remembering(runner: Runner, limit: int) -> Runner:
    """A runner that remembers outputs by the feeds' identity, as long as they take few bytes."""
    known: dict[int, tuple[Feeds, Mapping[str, Any]]] = {}
    used = 0

    def run(feeds: Feeds) -> Mapping[str, Any]:
        nonlocal used
        if id(feeds) in known:
            return known[id(feeds)][1]
        found = runner(feeds)
        own = sum(getattr(x, "nbytes", limit) for x in (*feeds.values(), *found.values()))
        if used + own <= limit:
            used += own
            known[id(feeds)] = (feeds, found)
        return found

    return run
