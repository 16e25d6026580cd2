"""What is chosen is carried out: shrink, recover, prove, judge, report, write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune import explaining, files, mobile, peaks
from onnxprune.api_rules import every_row
from onnxprune.axes import Mask
from onnxprune.choosing import ANY_SPEED
from onnxprune.cost import cost_model
from onnxprune.coupling import Coupling
from onnxprune.environment import command, environment
from onnxprune.errors import GateError, VerificationError
from onnxprune.fronts import layer_changes, try_of, tuned_tries
from onnxprune.judging import judge_of
from onnxprune.model import Array, Model
from onnxprune.outside import Sink
from onnxprune.passes.recover import Recovery, recover
from onnxprune.passes.score import merge_weights, merges
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import Plan
from onnxprune.profile import Change
from onnxprune.results import Pace, Report
from onnxprune.run import Run, given_inputs, timed_on
from onnxprune.runtime import Feeds
from onnxprune.speed import Speed, measured, must_be_faster, unsure
from onnxprune.training.recovering import distilled
from onnxprune.tuning import Tuned, same_masks
from onnxprune.verdict import Verification


@dataclass(frozen=True)
class Made:
    """What was chosen, and how; ``distill``: whether recovery ends with a distillation."""

    keep: dict[int, Mask]
    plan: Plan
    settings: dict[str, Any]
    notes: tuple[str, ...]
    speed: Speed = ANY_SPEED
    tuned: Tuned | None = None
    distill: bool = False

    def seed(self, run: Run) -> int:
        """Of the proof's inputs, and of what recovery picks."""
        return int(self.settings.get("seed", run.data.seed))


@dataclass(frozen=True)
class Small:
    """The pruned model: its protobuf, where its external data lies, and the file of that."""

    proto: onnx.ModelProto
    folder: Path | None
    sink: Sink | None = None


def finish(
    run: Run,
    coupling: Coupling,
    made: Made,
    target: Path | None,
    feeds: Sequence[Feeds] | None,
) -> tuple[Any, Report]:
    """Shrink, recover, prove, judge, write."""
    with files.sink_of(coupling.model, None if feeds else target) as sink:
        small, values, fitted = _smaller(run, coupling, made, feeds, sink)
        report = _proved(run, coupling, made, small, values, fitted)
        if target is not None:
            _write(run, report, report.plan, (small, target, coupling.model))
            return _like(run.source, small.proto), report
    _write(run, report, report.plan, None)
    return _like(run.source, files.with_data(small.proto, small.folder)), report


def _proved(
    run: Run,
    coupling: Coupling,
    made: Made,
    small: Small,
    values: dict[str, Array] | None,
    fitted: Recovery,
) -> Report:
    """The report of a result that every check has let through; of any other it is written.

    Raises:
        VerificationError: the result differs from the masked original.
        GateError: it is too slow, or data says no.
    """
    pace = _paced(run, coupling, small, made)
    verification, failure = _verified(run, coupling, made, small, values)
    notes = [*explaining.changed_io(coupling, made.keep), *made.notes, *fitted.notes]
    notes += unsure(pace, made.speed)
    if made.plan.recovered and not fitted.layers:
        notes.append("the plan's model was recovered, which a plan does not carry: --calibration")
    portable = run.output is not None and Path(run.output).suffix == mobile.ORT_FORMAT
    if pace is not None and portable:
        notes.append(mobile.UNLAID)
    if verification is None:
        notes.append("not verified: the proof was switched off")
    elif made.tuned is not None and "peak_bytes" in made.settings:  # it was counted alone
        notes += _arenas(run, coupling.model, small)
    plan = made.plan.model_copy(update={"recovered": tuple(sorted(fitted.values))})
    made = replace(made, plan=plan, notes=tuple(notes))
    report = _reported(run, coupling, made, small, verification, fitted, pace)
    report = replace(report, layers=_layers(run, coupling, small, made) if pace else ())
    if failure is not None:
        report = replace(report, refused=failure)
        _write(run, report, None, None)
        raise VerificationError(failure, report)
    _fast_enough(run, pace, made.speed, report)
    report = _judged(run, coupling, small, report)
    if run.known is not None:  # of a search the last attempt that passes is what it ends with
        run.known["fit"] = made.keep, fitted
    return _with_tries(run, coupling, made, report)


def _smaller(
    run: Run, coupling: Coupling, made: Made, feeds: Sequence[Feeds] | None, sink: Sink | None
) -> tuple[Small, dict[str, Array] | None, Recovery]:
    """The pruned model, what its parameters are where they are not the original's, and the fit."""
    keep, values = made.keep, merged_values(coupling, made.keep, made.plan)
    folder = coupling.model.folder if sink is None else sink.path.parent
    with run.step("shrink"):
        proto = shrink(coupling, keep, values, sink)
    if not feeds or not keep:
        return Small(proto, folder, sink), values, Recovery({}, ())
    known, fitted = (run.known or {}).get("fit", (None, Recovery({}, ())))
    if known is None or not same_masks(known, keep):
        fitted = _fitted(run, coupling, made, proto, feeds, values or {})
    values = {**(values or {}), **fitted.values}
    return Small(shrink(coupling, keep, values), folder), values, fitted


def _fitted(
    run: Run,
    coupling: Coupling,
    made: Made,
    proto: onnx.ModelProto,
    feeds: Sequence[Feeds],
    values: dict[str, Array],
) -> Recovery:
    """What recovery finds, by least squares and then by distillation, where that is wanted."""
    keep, seed = made.keep, made.seed(run)
    with run.step("recover") as tell:
        found = recover(coupling, keep, proto, feeds, values=values, seed=seed, progress=tell)
    if not made.distill:
        return found
    proto = shrink(coupling, keep, {**values, **found.values})
    with run.step("distill") as tell:
        learnt, note = distilled(coupling, keep, proto, feeds, every_row(), seed, tell)
    return replace(found, values={**found.values, **learnt}, notes=(*found.notes, note))


def _reported(
    run: Run,
    coupling: Coupling,
    made: Made,
    small: Small,
    verification: Verification | None,
    fitted: Recovery,
    pace: Pace | None,
) -> Report:
    """The report of what was made, before data judges it."""
    latency = made.tuned.latency if made.tuned is not None else None
    before, after, rows = explaining.costs(coupling, made.keep, latency)
    written = files.size_bytes(small.proto)
    after = after if written is None else replace(after, size_bytes=written)
    return Report(
        name=coupling.model.name,
        settings={**made.settings, **run.data.settings()},
        before=before,
        after=after,
        groups=rows,
        verification=verification,
        seconds=run.seconds,
        notes=(*run.notes, *made.notes, *run.data.notes),
        plan=made.plan,
        inputs=explaining.input_shapes(coupling),
        recovery=fitted.layers,
        pace=pace,
        frozen=explaining.frozen_rows(coupling),
        sensitivity=None if run.sensitivity is None else run.sensitivity.to_dict(),
        environment=environment(),
        command=command(),
    )


def _fast_enough(run: Run, pace: Pace | None, speed: Speed, report: Report) -> None:
    """Let the gate on speed say no, if it has to; the report is written then, and nothing else."""
    try:
        if pace is not None:
            must_be_faster(pace, speed)
    except GateError as gate:
        report = replace(report, refused=str(gate))
        _write(run, report, None, None)
        raise GateError(str(gate), report) from gate


def _paced(run: Run, coupling: Coupling, small: Small, made: Made) -> Pace | None:
    """How fast the result is, where that counts."""
    pace, speed = made.tuned.pace if made.tuned is not None else None, made.speed
    if pace is None and speed.min_speedup is not None:
        feeds = timed_on(run, coupling.model, 0)
        with run.step("measure"):
            pace = measured(coupling.model, small.proto, feeds, speed.target, small.folder)
    return pace


def _layers(run: Run, coupling: Coupling, small: Small, made: Made) -> tuple[Change, ...]:
    """Where the milliseconds were, and are."""
    feeds = timed_on(run, coupling.model, 0)
    with run.step("profile"):
        return layer_changes(
            coupling, (small.proto, small.folder), feeds, made.speed.target, run.rules
        )


def _with_tries(run: Run, coupling: Coupling, made: Made, report: Report) -> Report:
    """The report with what was made on the way, where that was more than one model."""
    tries, tuned = run.tries, made.tuned
    if tuned is not None and len(tuned.tried) > 1:
        others = [own for own in tuned.tried if own.keep is not tuned.keep]
        with run.step("judge"):
            judge = judge_of(coupling.model, run.data)
            tries += tuned_tries(coupling, cost_model(coupling), others, judge)
    return replace(report, tries=(*tries, try_of(report, True))) if tries else report


def _arenas(run: Run, model: Model, small: Small) -> list[str]:
    """What ONNX Runtime takes for activations before and after, where it tells."""
    feeds = timed_on(run, model, 0)
    before, after = (peaks.planned_bytes(m.proto, m.folder, feeds) for m in (model, small))
    return [] if before is None or after is None else [peaks.told(before, after)]


def _verified(
    run: Run, coupling: Coupling, made: Made, small: Small, values: dict[str, Array] | None
) -> tuple[Verification | None, str | None]:
    """What the oracle says, where it is asked; and why it says no, where it does."""
    if not run.verify:
        return None, None
    with run.step("verify"):
        found = verify(
            coupling,
            made.keep,
            small.proto,
            inputs=given_inputs(run.inputs, coupling.model),
            seed=made.seed(run),
            folder=small.folder,
            values=values,
        )
    failed = not found.ok or (made.keep and found.blind)
    return found, found.summary() if failed else None


def _judged(run: Run, coupling: Coupling, small: Small, report: Report) -> Report:
    """The report with what data says of the result.

    Raises:
        GateError: a gate says no; the report is written.
    """
    if not run.data.given:
        return report
    with run.step("judge"):
        found = judge_of(coupling.model, run.data).judge(small.proto, small.folder)
    report = replace(report, fidelity=found.fidelity, evaluation=found.evaluation)
    refused = found.refused(run.data)
    if refused is not None:
        report = replace(report, refused=refused)
        _write(run, report, None, None)
        raise GateError(refused, report)
    return report


def _write(
    run: Run,
    report: Report,
    plan: Plan | None,
    model: tuple[Small, Path, Model] | None,
) -> None:
    """Write the model, the plan and the report: all or none; of a failure the report alone."""
    with files.together() as write:
        if model is not None:
            small, target, original = model
            with run.step("write"):
                if target.suffix == mobile.ORT_FORMAT:
                    mobile.write_ort(small.proto, small.folder, target, write)
                else:
                    like = original.proto
                    files.save(small.proto, target, original.folder, like, write, small.sink)
        with files.together() as beside:  # these are renamed before the model is
            if run.plan_output is not None and plan is not None:
                beside(Path(run.plan_output), _text(plan.to_json()))
            if run.report_output is not None:
                beside(Path(run.report_output), _text(run.report_text(report)))


def _text(text: str) -> files.Fill:
    return lambda path: path.write_text(text, encoding="utf-8")


def merged_values(
    coupling: Coupling, keep: Mapping[int, Mask], plan: Plan
) -> dict[str, Array] | None:
    """The values of the parameters that take over what removed near-copies did."""
    if plan.merge_seed is None:
        return None
    return merge_weights(coupling, merges(coupling, keep, plan.merge_seed))


def _like(source: Any, proto: onnx.ModelProto) -> Any:
    """The result in the kind that the caller gave."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto | Model):
        return proto
    import onnx_graphsurgeon as gs

    return gs.import_onnx(proto)
