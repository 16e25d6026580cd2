"""The Python interface to models and data: evaluate, sensitivity; ``onnxprune.api`` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from onnxprune import files, sensing
from onnxprune.api_rules import every_rule
from onnxprune.choosing import Progress, analyse
from onnxprune.errors import OnnxPruneError
from onnxprune.judging import Judge, Judgement, SourceOptions, gathered
from onnxprune.sensing import RATIOS, Plans
from onnxprune.sources import Source
from onnxprune.target import Target
from onnxprune.trials import Sensitivity


def evaluate(
    model: Any,
    small: Any = None,
    *,
    calibration: Source = None,
    evaluate: Source = None,
    seed: int = 0,
    threads: int = 1,
    **options: Unpack[SourceOptions],
) -> Judgement:
    """The metric of a model on data with labels; and of a smaller one, with its fidelity.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        small: what is compared with it, if anything.
        calibration, evaluate, seed: as of ``prune``.
        threads: threads inside an operator.
        options: see ``onnxprune.judging.SourceOptions``.

    Raises:
        OnnxPruneError: there is no data, or it does not fit the models.
    """
    data = gathered(calibration, evaluate, seed, options)
    data.check()
    if "samples" in options and calibration is None:
        raise OnnxPruneError(
            "--samples (samples=) says how many calibration inputs are taken, and there are none: "
            "leave it out, or give --calibration; data with labels is taken whole"
        )
    if evaluate is None and (small is None or calibration is None):
        raise OnnxPruneError(
            "there is nothing to evaluate on: give data with labels (--evaluate), or a second "
            "model and data without (--calibration)"
        )
    judge = Judge(files.load(model), data, threads)
    if small is None:
        return judge.alone()
    other = files.load(small)
    return judge.judge(other.proto, other.folder)


def sensitivity(
    model: Any,
    output: str | Path | None = None,
    *,
    calibration: Source = None,
    evaluate: Source = None,
    ratios: Sequence[float] = RATIOS,
    criterion: str | None = None,
    recover: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    jobs: int = 1,
    cluster: str | None = None,
    ep: str | None = None,
    threads: int = 1,
    ep_options: Mapping[str, str] | None = None,
    seed: int = 0,
    rules: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[SourceOptions],
) -> Sensitivity:
    """How much the model suffers when one group alone loses channels, for each group and ratio.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        output: a .json file; it is written as results come, with a .csv beside it, and what it
            holds already is not done again.
        calibration, evaluate, seed: as of ``prune``; the fall is that of the metric where there
            are labels, else that of the fidelity.
        ratios: the shares that are tried.
        criterion: what chooses the channels; see ``CRITERIA``.
        recover: whether each trial is recovered first (much slower).
        include, exclude: patterns of groups, as of ``prune``.
        jobs: how many trials run at once, each on one thread.
        cluster: ``dask://HOST:PORT`` or ``ray`` instead (extras ``dask``, ``ray``).
        ep: also say how many milliseconds of a run each trial saves on this execution provider,
            by a fit to the times of the model at six widths.
        threads, ep_options: as of ``prune``, for that.
        rules: rows for custom operators.
        progress: is told each trial.
        options: see ``onnxprune.judging.SourceOptions``.

    Raises:
        OnnxPruneError: there is no data, or the file is of another model or other settings.
    """
    data = gathered(calibration, evaluate, seed, options)
    where = None if ep is None else Target(ep, threads, ep_options or {})
    patterns = (tuple(include), tuple(exclude))
    plans = Plans(tuple(ratios), criterion, recover, *patterns, seed, where)
    path = None if output is None else Path(output)
    coupling = analyse(model, every_rule(rules))
    return sensing.sense(coupling, data, plans, path, jobs, cluster, progress)
