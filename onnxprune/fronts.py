"""What was made on the way to a result: its latency by layer, and what each try cost on data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx

from onnxprune import files
from onnxprune.choosing import Rules, analyse
from onnxprune.cost import CostModel
from onnxprune.coupling import Coupling
from onnxprune.judging import Judge, Judgement
from onnxprune.passes.shrink import shrink
from onnxprune.plan import counts_of
from onnxprune.profile import Change, changes, layers_of, node_groups, node_macs
from onnxprune.results import Report, Try
from onnxprune.runtime import Feeds
from onnxprune.subjects import sized
from onnxprune.target import Target
from onnxprune.trace import traces
from onnxprune.tuning import Tuned

RUNS: Final = 10
SECONDS: Final = 3.0  # of runs with the profiler on


def layer_changes(
    coupling: Coupling,
    small: tuple[onnx.ModelProto, Path | None],
    feeds: Feeds,
    target: Target,
    rules: Rules,
) -> tuple[Change, ...]:
    """The milliseconds and multiply-accumulates of each layer of a model and of what is left of it.

    Args:
        coupling: the structure of the model.
        small: what is left of it, and where its external data lies.
        feeds: what both are run on.
        target: what they run on.
        rules: the user's rows by operator.

    Raises:
        RunError: ONNX Runtime can't run one of them.
    """
    sizes = {name: feeds[name].shape for name in coupling.model.inputs}
    both = [(coupling.model.proto, coupling.model.folder), small]
    found = traces(both, feeds, target, RUNS, plain=0, seconds=SECONDS)
    sides = []
    for (proto, folder), (kernels, _) in zip(both, found, strict=True):
        model, _ = sized(files.load(proto, folder=folder, rules=rules), sizes)
        own = analyse(model, rules)
        sides.append(layers_of(proto, kernels, node_macs(own), node_groups(own)))
    return changes(*sides)


def tuned_tries(
    coupling: Coupling, costs: CostModel, tuned: Sequence[Tuned], judge: Judge
) -> tuple[Try, ...]:
    """What was measured on the way to a latency, judged on data as it was measured: not recovered.

    Args:
        coupling: the structure of the model.
        costs: its costs.
        tuned: the choices.
        judge: what looks at each, where there is data.
    """
    full = costs.cost({}).macs or 1
    found = []
    for own in tuned:
        judged = judge.judge(shrink(coupling, own.keep)) if judge.data.given else Judgement()
        macs = costs.cost(counts_of(own.keep)).macs
        figures = (macs / full, 1 / own.pace.speedup, own.pace.after_ms)
        found.append(Try(*figures, *_figures(judged), recovered=False, chosen=False))
    return tuple(found)


def try_of(report: Report, chosen: bool) -> Try:
    """The point that a report stands for."""
    pace = report.pace
    return Try(
        report.after.macs / (report.before.macs or 1),
        None if pace is None else 1 / pace.speedup,
        None if pace is None else pace.after_ms,
        *_figures(Judgement(report.fidelity, report.evaluation)),
        recovered=any(row.strength is not None for row in report.recovery),
        chosen=chosen,
    )


def _figures(judged: Judgement) -> tuple[float | None, float | None]:
    """The metric, and the least fidelity of an output."""
    metric = None if judged.evaluation is None else judged.evaluation.after
    return metric, min((row.value for row in judged.fidelity), default=None)
