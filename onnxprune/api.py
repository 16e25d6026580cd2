"""The Python interface: everything that the command line does, as functions.

``model`` may be a path, an onnx.ModelProto or an onnx-graphsurgeon Graph, which comes back as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from onnxprune import explaining, pipeline
from onnxprune.amounts import amount, share
from onnxprune.api_bench import bench, bench_import
from onnxprune.api_data import evaluate, sensitivity
from onnxprune.api_rules import every_rule, register_rule
from onnxprune.api_torch import bridge, distill, finetune
from onnxprune.budget import MAX_RATIO, Budget, Options, Schedule, Scope
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.files import load, save
from onnxprune.judging import DataOptions, gathered
from onnxprune.passes.probe import probe as measure_probe
from onnxprune.passes.score import CRITERIA, DEFAULT, DEFAULT_WITH_DATA
from onnxprune.pipeline import Choice, Inputs, Progress, Recover, Run
from onnxprune.plan import Plan, read_plan
from onnxprune.report.writing import report_text
from onnxprune.results import Inspection, Report
from onnxprune.sources import Source
from onnxprune.speed import Speed, goal
from onnxprune.staircase import Probe, store
from onnxprune.target import Target
from onnxprune.trials import Sensitivity, read_sensitivity
from onnxprune.verdict import Verification


def _plan(plan: Plan | str | Path) -> Plan:
    return plan if isinstance(plan, Plan) else read_plan(Path(plan))


def _budget(ratio: float | str | None, *amounts: float | str | None) -> Budget:
    return Budget(
        None if ratio is None else share(ratio),
        *(None if value is None else amount(value) for value in amounts),
    )


def _table(given: Sensitivity | str | Path | None, scope: Scope | None) -> Sensitivity | None:
    if given is not None and scope is not None:
        raise OnnxPruneError(
            f"scope '{scope}' and ratios from sensitivities are both given: give one of them"
        )
    return read_sensitivity(Path(given)) if isinstance(given, str | Path) else given


def _defaults(
    scope: Scope | None, criterion: str | None, calibration: Source, balanced: bool
) -> tuple[Options, str]:
    if calibration is None:
        return Options(scope or "global", balanced=balanced), criterion or DEFAULT
    return Options(scope or "by-cost", balanced=balanced), criterion or DEFAULT_WITH_DATA


def _ratios(texts: Mapping[str, float | str] | None) -> dict[str, float] | None:
    return None if texts is None else {name: share(own) for name, own in texts.items()}


def _files(
    verify: bool,
    inputs: Inputs,
    output: str | Path | None,
    plan: str | Path | None,
    report: str | Path | None,
    progress: Progress | None,
    open_io: Sequence[str],
) -> dict[str, Any]:
    """What a run reads and writes, how it is proved, and what of the I/O may change."""
    return {
        "verify": verify,
        "inputs": inputs,
        "output": output,
        "plan_output": plan,
        "report_output": report,
        "report_text": report_text(report),
        "progress": progress,
        "open_io": tuple(open_io),
    }


def _how(
    first: Options,
    align: Literal["auto"] | int,
    least: int,
    most: float | str,
    include: Sequence[str],
    exclude: Sequence[str],
    exact_only: bool,
    per_group: Mapping[str, float | str] | None,
) -> Options:
    ends = (least, share(most), tuple(include), tuple(exclude), exact_only)
    return Options(first.scope, align, *ends, _ratios(per_group), balanced=first.balanced)


def _speed(
    latency: float | str | None, target: Target, min_speedup: float | None, force: bool
) -> Speed:
    return Speed(None if latency is None else goal(latency), target, min_speedup, force)


def analyse(model: Any, rules: Mapping[str, str] | None = None) -> Coupling:
    """Load, normalize and couple.

    Raises:
        BadModelError: the model can't be read.
    """
    return pipeline.analyse(model, every_rule(rules))


def inspect(model: Any, rules: Mapping[str, str] | None = None) -> Inspection:
    """What a model is made of, and which of it can be pruned."""
    return explaining.inspection(analyse(model, rules))


def explain(model: Any, what: str, rules: Mapping[str, str] | None = None) -> str:
    """The layout of VALUE or VALUE:AXIS, or the members of a GROUP, and what freezes it.

    Raises:
        OnnxPruneError: the model has nothing of this name.
    """
    return explaining.explanation(analyse(model, rules), what)


def prune(
    model: Any,
    *,
    ratio: float | str | None = None,
    macs: float | str | None = None,
    params: float | str | None = None,
    size_bytes: float | str | None = None,
    peak_bytes: float | str | None = None,
    latency: float | str | None = None,
    criterion: str | None = None,
    scope: Scope | None = None,
    align: Literal["auto"] | int = "auto",
    min_channels: int = 1,
    max_ratio: float | str = MAX_RATIO,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    exact_only: bool = False,
    balanced: bool = True,
    per_group: Mapping[str, float | str] | None = None,
    per_group_from: Sensitivity | str | Path | None = None,
    steps: int = 1,
    schedule: Schedule = "exponential",
    seed: int = 0,
    verify: bool = True,
    inputs: Inputs = None,
    recover: Recover = True,
    rules: Mapping[str, str] | None = None,
    allow_io_change: Sequence[str] = (),
    ep: str = "cpu",
    threads: int = 1,
    ep_options: Mapping[str, str] | None = None,
    min_speedup: float | None = None,
    force: bool = False,
    output: str | Path | None = None,
    plan_output: str | Path | None = None,
    report_output: str | Path | None = None,
    progress: Progress | None = None,
    calibration: Source = None,
    evaluate: Source = None,
    **options: Unpack[DataOptions],
) -> tuple[Any, Report]:
    """Make a model smaller, and prove that nothing else changed.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        ratio: the share of every group that goes; with a budget it is not given.
        macs: the multiply-accumulates that may remain, as a fraction (<= 1) or a number; texts as
            on the command line (``"50%"``, ``"300M"``) are read as well, here and below.
        params: the same for parameters.
        size_bytes: the same for the bytes of the file.
        peak_bytes: the same for the bytes of activations, as ONNX Runtime plans them (counted at
            the node where most are alive, and corrected by its plan).
        latency: the time of a run that may remain, as a share of the original's (``0.5``,
            ``"0.5x"``) or in milliseconds (``"8ms"``); it is measured, and met within 5 %.
        criterion: see ``CRITERIA``.
        scope: how a budget is shared out: ``global`` (one threshold for all scores), ``uniform``
            (one ratio for all groups), ``by-cost`` (the same, less of groups that cost little) or
            ``per-group`` (see there). Absent: ``by-cost`` with calibration inputs, else ``global``.
        align: kept counts are multiples of this; ``auto`` is what ORT's kernels like, 1 is off.
        min_channels: every group keeps at least so many.
        max_ratio: no group loses a larger share under a budget.
        include: prune only groups whose name, or a member's, matches one of these patterns.
        exclude: leave such groups alone.
        exact_only: leave mixing groups alone.
        balanced: let rows (heads, conv groups) keep other channels where the model allows it.
        per_group: ratios by pattern, for the scope per-group.
        per_group_from: what ``sensitivity`` found, or its file: shares the budget out by it.
        steps: prune in so many steps, and score again between them.
        schedule: how much goes in each step: ``exponential`` (the same share of what is left),
            ``linear`` (the same amount) or ``cubic`` (most at first).
        seed: for the random criterion, hashing, and the inputs of the verification.
        verify: whether to prove the result; without it the report says so.
        inputs: real inputs for the verification (.npz or arrays by name).
        recover: whether what stays is fitted to do the work of what went, where there are
            calibration inputs; ``"distill"`` (extra ``torch``) then trains the whole for a short
            while to say what the original says.
        rules: rows for custom operators.
        allow_io_change: inputs and outputs of the graph (a KV cache) whose channels may go; their
            new shapes are in the report's notes. It goes without a latency and without data.
        ep: the execution provider that the latency is measured on, and that ``align="auto"`` is
            for (see ``onnxprune.catalogue``).
        threads: threads inside an operator, for both.
        ep_options: the provider's own options.
        min_speedup: refuse a result that is measured to be less so many times as fast.
        force: take a result nevertheless that is slower than the original, or than that.
        output: where to write the result, once it is proved.
        plan_output: where to write the plan, with it.
        report_output: where to write the report, also that of a verification that failed: as a page
            (.html, extra ``report``), Markdown (.md) or JSON (.json).
        progress: is told the name of each pass.
        calibration: inputs without labels: a path (.npz, .npy, a folder of pictures), or
            ``module:function``, a function, arrays (see ``onnxprune.sources``), or ``synthetic``.
            Criteria that look at data use them, and recovery does.
        evaluate: the same with labels.
        options: how data is read (samples, pictures, metric) and what has to be reached on it
            (max_drop, min_fidelity); see ``onnxprune.judging.DataOptions``.

    Returns:
        the smaller model and the report.

    Raises:
        OnnxPruneError: bad input, in one sentence.
        VerificationError: the result differs from the masked original; ``report`` says where.
        GateError: max_drop or min_fidelity says no; ``report`` has the figures. Or the result is
            not fast enough.
    """
    budget = _budget(ratio, macs, params, size_bytes, peak_bytes)
    how, name = _defaults(scope, criterion, calibration, balanced)
    how = _how(how, align, min_channels, max_ratio, include, exclude, exact_only, per_group)
    speed = _speed(latency, Target(ep, threads, ep_options or {}), min_speedup, force)
    io = _files(verify, inputs, output, plan_output, report_output, progress, allow_io_change)
    io["sensitivity"] = _table(per_group_from, scope)
    run = Run(model, every_rule(rules), data=gathered(calibration, evaluate, seed, options), **io)
    return pipeline.prune(run, Choice(budget, how, name, steps, seed, recover, speed, schedule))


def probe(
    *,
    ep: str = "cpu",
    threads: int = 1,
    ep_options: Mapping[str, str] | None = None,
    dtype: str = "float32",
    keep: bool = True,
    progress: Progress | None = None,
) -> Probe:
    """Measure which channel counts kernels like on this machine; ``align="auto"`` goes by it then.

    Args:
        ep: the execution provider (see ``onnxprune.catalogue``).
        threads: threads inside an operator.
        ep_options: the provider's own options.
        dtype: the type of the values, float32 or float16.
        keep: whether to keep what is found in the user's cache folder.
        progress: is told each kind of kernel as it is begun.

    Raises:
        OnnxPruneError: the provider is not there, or there is no probe for the type.
    """
    found = measure_probe(Target(ep, threads, ep_options or {}), dtype, tell=progress)
    if keep:
        store(found)
    return found


def apply(
    model: Any,
    plan: Plan | str | Path,
    *,
    verify: bool = True,
    inputs: Inputs = None,
    rules: Mapping[str, str] | None = None,
    output: str | Path | None = None,
    report_output: str | Path | None = None,
    progress: Progress | None = None,
    calibration: Source = None,
    evaluate: Source = None,
    recover: Recover = True,
    seed: int = 0,
    **options: Unpack[DataOptions],
) -> tuple[Any, Report]:
    """Replay a plan, on its own model or on a twin with the same names (fp16, QDQ).

    Arguments as of ``prune``; with calibration inputs what stays is fitted to do the work of what
    went.

    Raises:
        BadPlanError: the plan does not fit the model.
        VerificationError: the result differs from the masked original.
        GateError: max_drop or min_fidelity says no.
    """
    data = gathered(calibration, evaluate, seed, options)
    files = _files(verify, inputs, output, None, report_output, progress, ())
    run = Run(model, every_rule(rules), data=data, **files)
    return pipeline.replay(run, _plan(plan), recover)


def verify(
    model: Any,
    small: Any,
    plan: Plan | str | Path,
    *,
    inputs: Inputs = None,
    seed: int = 0,
    rules: Mapping[str, str] | None = None,
) -> Verification:
    """Compare a pruned model with its masked original.

    Returns:
        the errors by output; ``ok`` says whether all are within the tolerance.

    Raises:
        BadPlanError: the plan does not fit the model.
    """
    return pipeline.compare(Run(model, every_rule(rules), inputs=inputs), small, _plan(plan), seed)


__all__: Sequence[str] = [
    "CRITERIA",
    "Budget",
    "Options",
    "analyse",
    "apply",
    "bench",
    "bench_import",
    "bridge",
    "distill",
    "evaluate",
    "explain",
    "finetune",
    "inspect",
    "load",
    "probe",
    "prune",
    "register_rule",
    "save",
    "sensitivity",
    "verify",
]
