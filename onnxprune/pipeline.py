"""The flow: load, normalize, couple, score, select, shrink, verify, write. ``api`` is its face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune import explaining, files, mobile
from onnxprune.arena import arena
from onnxprune.axes import Mask
from onnxprune.budget import Budget, check, check_patterns
from onnxprune.choosing import (
    ANY_SPEED,
    Choice,
    Progress,
    Rules,
    analyse,
    choose,
    choose_by_latency,
)
from onnxprune.coupling import Coupling
from onnxprune.environment import command, environment
from onnxprune.errors import (
    GateError,
    NothingToPruneError,
    RunError,
    VerificationError,
)
from onnxprune.full import fitted_values
from onnxprune.judging import Data, judge_of
from onnxprune.model import Array, Model
from onnxprune.passes.recover import Recovery, recover
from onnxprune.passes.score import MERGING, check_known, merge_weights, merges, remarks
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import Plan, keep_of, make_plan
from onnxprune.results import Pace, Report
from onnxprune.run import Inputs, Run, given_inputs, timed_on
from onnxprune.runtime import Feeds
from onnxprune.searching import is_open, smallest
from onnxprune.speed import Speed, learned, measured, must_be_faster
from onnxprune.trials import allotted
from onnxprune.tuning import Tuned
from onnxprune.verdict import Verification

__all__ = [
    "Choice",
    "Inputs",
    "Progress",
    "Rules",
    "Run",
    "analyse",
    "compare",
    "prune",
    "replay",
]


@dataclass(frozen=True)
class _Made:
    """What was chosen, and how."""

    keep: dict[int, Mask]
    plan: Plan
    settings: dict[str, Any]
    notes: tuple[str, ...]
    speed: Speed = ANY_SPEED
    tuned: Tuned | None = None


def prune(run: Run, choice: Choice) -> tuple[Any, Report]:
    """Choose, recover, shrink, prove, write; without a budget, as much goes as the gates allow."""
    target = run.target()
    run.data.check()
    if is_open(choice, run.data):
        return _searched(run, choice)
    check(choice.whole_budget(), choice.options)
    check_known(choice.criterion)
    with run.step("load"):
        loaded = files.load(run.source, rules=run.rules)
    with run.step("couple"):
        coupling = analyse(loaded, run.rules)
    if not coupling.groups:
        raise NothingToPruneError(explaining.nothing_to_prune(coupling))
    if run.sensitivity is not None:
        shared = allotted(coupling, run.sensitivity, choice.budget, choice.options)
        choice = replace(choice, options=shared)
    stairs, learnt = learned(choice.speed, choice.options, run.step)
    choice = replace(choice, options=replace(choice.options, stairs=stairs))
    notes = [
        *check_patterns(coupling, choice.options),
        *remarks(coupling, choice.criterion),
        *learnt,
    ]
    batches, tuned = _batches(run.data, coupling.model), None
    if choice.speed.goal is None:
        keep, limits = choose(coupling, choice, run.rules, batches, run.step)
    else:
        feeds = timed_on(run, coupling.model, choice.seed)
        tuned = choose_by_latency(coupling, choice, run.rules, batches, feeds, run.step)
        keep, limits = tuned.keep, list(tuned.notes)
    merge_seed = choice.seed if choice.criterion in MERGING else None
    plan = make_plan(coupling, keep, run.digest(), merge_seed)
    made = _Made(keep, plan, choice.settings(), (*notes, *limits), choice.speed, tuned)
    return _finish(run, coupling, made, target, batches if choice.recover else None)


def _searched(run: Run, choice: Choice) -> tuple[Any, Report]:
    """The smallest model that the gates let through, by bisection over its MACs."""
    source = files.load(run.source, rules=run.rules)
    trial = replace(run, source=source, verify=False)
    trial = replace(trial, output=None, plan_output=None, report_output=None)

    untimed = replace(choice, speed=replace(choice.speed, min_speedup=None))

    def at(share: float) -> Choice:
        return replace(choice, budget=Budget(macs=share))

    best = smallest(lambda share: prune(trial, replace(untimed, budget=Budget(macs=share))))
    note = f"{100 * best:.1f} % of the MACs is the least that the gates allow, found by bisection"
    return prune(replace(run, notes=(*run.notes, note)), at(best))


def replay(run: Run, plan: Plan, fit: bool = True) -> tuple[Any, Report]:
    """Shrink by a plan, recover where there are calibration inputs, prove, write."""
    target = run.target()
    run.data.check()
    with run.step("couple"):
        coupling = analyse(run.source, run.rules)
    keep = keep_of(plan, coupling)
    notes = []
    digest = run.digest()
    if digest is not None and plan.model.sha256 is not None and digest != plan.model.sha256:
        notes.append(f"the plan was made for another file, '{plan.model.name}'; its names fit")
    feeds = _batches(run.data, coupling.model) if fit else None
    made = _Made(keep, plan, {"plan": plan.model.name}, tuple(notes))
    return _finish(run, coupling, made, target, feeds)


def compare(run: Run, small: Any, plan: Plan, seed: int) -> Verification:
    """Prove a pruned model that is there already."""
    coupling = analyse(run.source, run.rules)
    keep = keep_of(plan, coupling)
    other = files.load(small, rules=run.rules)
    values = _merged(coupling, keep, plan)
    if plan.recovered:
        fitted = fitted_values(coupling, keep, other.proto, plan.recovered, other.folder)
        values = {**(values or {}), **fitted}
    found = verify(
        coupling,
        keep,
        other.proto,
        inputs=given_inputs(run.inputs, coupling.model),
        seed=seed,
        values=values,
        folder=other.folder,
    )
    if not plan.recovered:
        return found
    note = f"the values of {len(plan.recovered)} recovered parameters are the pruned file's own"
    return replace(found, notes=(*found.notes, note))


def _finish(
    run: Run,
    coupling: Coupling,
    made: _Made,
    target: Path | None,
    feeds: Sequence[Feeds] | None,
) -> tuple[Any, Report]:
    keep, plan, notes = made.keep, made.plan, list(made.notes)
    seed = int(made.settings.get("seed", run.data.seed))
    values = _merged(coupling, keep, plan)
    with run.step("shrink"):
        proto = shrink(coupling, keep, values)
    fitted = Recovery({}, ())
    if feeds and keep:
        with run.step("recover") as tell:
            fitted = recover(coupling, keep, proto, feeds, values=values, seed=seed, progress=tell)
        values = {**(values or {}), **fitted.values}
        proto = shrink(coupling, keep, values)
    elif plan.recovered:
        notes.append("the plan's model was recovered, which a plan does not carry: --calibration")
    notes += fitted.notes
    plan = plan.model_copy(update={"recovered": tuple(sorted(fitted.values))})
    pace = _paced(run, coupling, proto, made)
    verification, failure = _proved(run, coupling, keep, proto, values, seed)
    if verification is None:
        notes.append("not verified: the proof was switched off")
    elif "peak_bytes" in made.settings:
        notes += _arenas(run, coupling.model, proto)
    latency = made.tuned.latency if made.tuned is not None else None
    before, after, rows = explaining.costs(coupling, keep, latency)
    report = Report(
        name=coupling.model.name,
        settings={**made.settings, **run.data.settings()},
        before=before,
        after=after,
        groups=rows,
        verification=verification,
        seconds=run.seconds,
        notes=(*run.notes, *notes, *run.data.notes),
        plan=plan,
        inputs=explaining.input_shapes(coupling),
        recovery=fitted.layers,
        pace=pace,
        frozen=explaining.frozen_rows(coupling),
        sensitivity=None if run.sensitivity is None else run.sensitivity.to_dict(),
        environment=environment(),
        command=command(),
    )
    if failure is not None:
        _write(run, report, None, None)
        raise VerificationError(failure, report)
    _fast_enough(run, pace, made.speed, report)
    report = _judged(run, coupling, proto, report)
    _write(run, report, plan, None if target is None else (proto, target, coupling.model))
    if target is None:
        proto = files.with_data(proto, coupling.model.folder)
    return _like(run.source, proto), report


def _fast_enough(run: Run, pace: Pace | None, speed: Speed, report: Report) -> None:
    """Let the gate on speed say no, if it has to; the report is written then, and nothing else."""
    try:
        if pace is not None:
            must_be_faster(pace, speed)
    except GateError as gate:
        _write(run, report, None, None)
        raise GateError(str(gate), report) from gate


def _paced(run: Run, coupling: Coupling, proto: onnx.ModelProto, made: _Made) -> Pace | None:
    """How fast the result is, where that counts."""
    pace, speed = made.tuned.pace if made.tuned is not None else None, made.speed
    if pace is None and speed.min_speedup is not None:
        feeds = timed_on(run, coupling.model, 0)
        with run.step("measure"):
            pace = measured(coupling.model, proto, feeds, speed.target)
    return pace


def _arenas(run: Run, model: Model, proto: onnx.ModelProto) -> list[str]:
    """What ONNX Runtime takes for activations before and after, where it tells."""
    feeds = timed_on(run, model, 0)
    try:
        before, after = (arena(p, model.folder, feeds) for p in (model.proto, proto))
    except RunError:
        return []
    return [
        f"ONNX Runtime's CPU provider plans {after.planned_bytes} bytes for activations, "
        f"{before.planned_bytes} before: it fuses nodes, pads channels and lays values out anew, "
        "which the counted peak does not"
    ]


def _proved(
    run: Run,
    coupling: Coupling,
    keep: dict[int, Mask],
    proto: onnx.ModelProto,
    values: dict[str, Array] | None,
    seed: int,
) -> tuple[Verification | None, str | None]:
    """What the oracle says, where it is asked; and why it says no, where it does."""
    if not run.verify:
        return None, None
    with run.step("verify"):
        given = given_inputs(run.inputs, coupling.model)
        found = verify(coupling, keep, proto, inputs=given, seed=seed, values=values)
    failed = not found.ok or (keep and found.blind)
    return found, found.summary() if failed else None


def _judged(run: Run, coupling: Coupling, proto: onnx.ModelProto, report: Report) -> Report:
    """The report with what data says of the result.

    Raises:
        GateError: a gate says no; the report is written.
    """
    if not run.data.given:
        return report
    with run.step("judge"):
        found = judge_of(coupling.model, run.data).judge(proto)
    report = replace(report, fidelity=found.fidelity, evaluation=found.evaluation)
    refused = found.refused(run.data)
    if refused is not None:
        _write(run, report, None, None)
        raise GateError(refused, report)
    return report


def _write(
    run: Run,
    report: Report,
    plan: Plan | None,
    model: tuple[onnx.ModelProto, Path, Model] | None,
) -> None:
    """Write the model, the plan and the report: all or none; of a failure the report alone."""
    with files.together() as write:
        if model is not None:
            proto, target, original = model
            with run.step("write"):
                if target.suffix == mobile.ORT_FORMAT:
                    mobile.write_ort(proto, original.folder, target, write)
                else:
                    files.save(proto, target, original.folder, original.proto, write)
        with files.together() as beside:  # these are renamed before the model is
            if run.plan_output is not None and plan is not None:
                beside(Path(run.plan_output), _text(plan.to_json()))
            if run.report_output is not None:
                beside(Path(run.report_output), _text(run.report_text(report)))


def _text(text: str) -> files.Fill:
    return lambda path: path.write_text(text, encoding="utf-8")


def _merged(coupling: Coupling, keep: Mapping[int, Mask], plan: Plan) -> dict[str, Array] | None:
    """The values of the parameters that take over what removed near-copies did."""
    if plan.merge_seed is None:
        return None
    return merge_weights(coupling, merges(coupling, keep, plan.merge_seed))


def _batches(given: Data, model: Model) -> Sequence[Feeds] | None:
    """Calibration inputs, each batch as the model wants it."""
    return None if given.calibration is None else given.feeds(model)


def _like(source: Any, proto: onnx.ModelProto) -> Any:
    """The result in the kind that the caller gave."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto | Model):
        return proto
    import onnx_graphsurgeon as gs

    return gs.import_onnx(proto)
