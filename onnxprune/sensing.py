"""Measure sensitivities: one trial for each group and ratio, one after the other or in parallel.

ONNX Runtime has one thread in a trial, so that it gives the same figures wherever it runs (see
``onnxprune.workers``). Results are written as they come, and a run that was broken off goes on
where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from onnxprune.alignment import STAIRS, alignment
from onnxprune.axes import Values
from onnxprune.budget import Options, free_groups
from onnxprune.choosing import Progress
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.data import one_sample
from onnxprune.errors import OnnxPruneError
from onnxprune.judging import Data, Judge, Judgement
from onnxprune.latency import Latency, with_latency
from onnxprune.masks import best
from onnxprune.passes.recover import recover
from onnxprune.passes.score import DEFAULT, DEFAULT_WITH_DATA, check_known, score
from onnxprune.passes.shrink import shrink
from onnxprune.runtime import Feeds
from onnxprune.staircase import cached
from onnxprune.target import Target
from onnxprune.timing import measured_latency
from onnxprune.trials import Sensitivity, Trial, read_sensitivity
from onnxprune.workers import results

RATIOS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Plans:
    """Which trials are made.

    Attributes:
        ratios: the shares that are tried.
        criterion: what chooses the channels; None for the best one there is data for.
        recover: whether each trial is recovered.
        include, exclude: patterns of groups; see ``onnxprune.budget.Options``.
        seed: for what is random.
        target: what milliseconds are said for; None says none.
    """

    ratios: tuple[float, ...] = RATIOS
    criterion: str | None = None
    recover: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    target: Target | None = None

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OnnxPruneError: there is no ratio, or one is out of range.
        """
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise OnnxPruneError(f"the ratio {ratio:g} is tried: it must be between 0 and 1")
        if not self.ratios:
            raise OnnxPruneError("no ratio is to be tried: give some between 0 and 1")


@dataclass(frozen=True)
class Shop:
    """What a worker has: the model, its scores, and a judge with data."""

    coupling: Coupling
    scores: dict[int, Values]
    judge: Judge
    fit: tuple[Feeds, ...]
    seed: int
    latency: Latency | None = None

    @cached_property
    def costs(self) -> CostModel:
        """The model's costs, its latency with them where that was fitted."""
        own = cost_model(self.coupling)
        return own if self.latency is None else with_latency(own, self.latency)

    def trial(self, name: str, ratio: float) -> Trial:
        """Take a share from one group, and look what it does."""
        group = self.coupling.group(name)
        assert group is not None
        kept = max(1, round(group.size * (1 - ratio)))
        keep = {group.factor: best(self.scores[group.factor], kept)}
        small = shrink(self.coupling, keep)
        if self.fit:
            fitted = recover(self.coupling, keep, small, self.fit, seed=self.seed)
            small = shrink(self.coupling, keep, fitted.values)
        found = self.judge.judge(small)
        before, after = self.costs.cost({}), self.costs.cost({group.factor: kept})
        macs, params = (
            1 - getattr(after, what) / max(getattr(before, what), 1) for what in ("macs", "params")
        )
        ms = None if self.latency is None else before.latency_ms - after.latency_ms
        return Trial(name, ratio, group.size, kept, _fall(found), _apart(found), macs, params, ms)


def _fall(found: Judgement) -> float:
    if found.evaluation is not None:
        return found.evaluation.drop
    return max((1 - row.value for row in found.fidelity), default=0.0)


def _apart(found: Judgement) -> float:
    """How far all outputs are."""
    each = (row.missed or 0.0 if row.kl is None else row.kl for row in found.fidelity)
    return float(sum(each))


def sense(
    coupling: Coupling,
    data: Data,
    plans: Plans,
    target: Path | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Make all trials that are not in the file yet.

    Args:
        coupling: the structure of the model.
        data: what trials are judged by.
        plans: which trials.
        target: a .json file to go on with, and to write to as results come.
        jobs: how many at once, in processes of their own.
        cluster: ``dask://HOST:PORT`` or ``ray`` instead.
        progress: is told each trial that is done.

    Raises:
        OnnxPruneError: see ``onnxprune.api_data.sensitivity``.
    """
    data.check()
    plans.check()
    if not data.given:
        raise OnnxPruneError(
            "sensitivities are measured on data: give inputs (--calibration), or such with labels "
            "(--evaluate)"
        )
    if jobs < 1:
        raise OnnxPruneError(f"jobs is {jobs}: it must be at least 1")
    criterion = plans.criterion or (DEFAULT if data.calibration is None else DEFAULT_WITH_DATA)
    check_known(criterion)
    free = free_groups(coupling, Options(include=plans.include, exclude=plans.exclude))
    names = [g.name for g, own in zip(coupling.groups, free, strict=True) if own]
    settings = {**data.settings(), "criterion": criterion, "recover": plans.recover}
    settings |= {"seed": plans.seed, "sha256": _digest(coupling)}
    if plans.target is not None:
        settings["target"] = asdict(plans.target)
    every = [(name, ratio) for name in names for ratio in sorted(plans.ratios)]
    known = {} if target is None else _known(target, settings)
    left = [key for key in every if key not in known]

    def table() -> Sensitivity:
        trials = tuple(known[key] for key in sorted(known, key=lambda key: _place(key, names)))
        return Sensitivity(coupling.model.name, settings, trials)

    if left:
        shop = _shop(coupling, data, criterion, plans)
        for trial in results(shop, left, jobs, cluster):
            known[trial.group, trial.ratio] = trial
            if target is not None:
                _write(target, table())
            if progress is not None:
                progress(f"{trial.group} without {100 * trial.ratio:.0f} %")
    return table()


def _place(key: tuple[str, float], names: Sequence[str]) -> tuple[int, float]:
    return (names.index(key[0]) if key[0] in names else len(names)), key[1]


def _shop(coupling: Coupling, data: Data, criterion: str, plans: Plans) -> Shop:
    """Everything that a trial needs, with all data read."""
    model = coupling.model
    feeds = data.feeds(model) if data.calibration is not None else ()
    if data.evaluation is not None:
        data.labelled(model)
    if plans.recover and not feeds:
        raise OnnxPruneError("recovery needs inputs without labels: give them (--calibration)")
    scores = score(coupling, criterion, plans.seed, feeds=feeds or None)
    fit = feeds if plans.recover else ()
    latency = None if plans.target is None else _latency(coupling, plans.target, plans.seed)
    return Shop(coupling, scores, Judge(model, data.alone()), fit, plans.seed, latency)


def _latency(coupling: Coupling, target: Target, seed: int) -> Latency:
    """The latency of the model, fitted to runs of it at several widths."""
    own = cached(target)
    steps = alignment(coupling, "auto", STAIRS if own is None else own.stairs)
    free = free_groups(coupling, Options())
    feeds = one_sample(coupling.model, seed)
    return measured_latency(coupling, cost_model(coupling), steps, free, feeds, target)


def _digest(coupling: Coupling) -> str:
    """The digest of a model's weights and graph."""
    proto = coupling.model.proto
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _known(target: Path, settings: dict[str, Any]) -> dict[tuple[str, float], Trial]:
    """What an earlier run has written.

    Raises:
        OnnxPruneError: that run was another one, or the file can't be written.
    """
    if target.suffix != ".json":
        raise OnnxPruneError(f"'{target}' is to hold JSON: give it the suffix .json")
    if not target.parent.is_dir():
        raise OnnxPruneError(f"'{target}' can't be written: there is no folder '{target.parent}'")
    if not target.exists():
        return {}
    found = read_sensitivity(target)
    both = ({k: _json(v) for k, v in own.items()} for own in (settings, found.settings))
    own, other = both
    differing = sorted(key for key in own | other if own.get(key) != other.get(key))
    if differing:
        raise OnnxPruneError(
            f"'{target}' holds trials with other settings ({', '.join(differing)}): remove it, or "
            "give another path"
        )
    return {(trial.group, trial.ratio): trial for trial in found.trials}


def _json(value: Any) -> Any:
    """A value as it comes back from a file."""
    return list(value) if isinstance(value, tuple) else value


def _write(target: Path, table: Sensitivity) -> None:
    """Write the table as JSON and CSV; whoever reads meanwhile sees the old one or the new one."""
    for path, text in ((target, table.to_json()), (target.with_suffix(".csv"), table.to_csv())):
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
