"""The flow: load, normalize, couple, score, select, shrink, verify, write. ``api`` is its face."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune import data, explaining, files, mobile
from onnxprune.axes import Mask
from onnxprune.budget import Budget, check, check_patterns
from onnxprune.choosing import Choice, Progress, Rules, analyse, choose
from onnxprune.coupling import Coupling
from onnxprune.errors import GateError, NothingToPruneError, OnnxPruneError, VerificationError
from onnxprune.full import fitted_values
from onnxprune.judging import Data, judge_of
from onnxprune.model import Array, Model
from onnxprune.passes.recover import recover
from onnxprune.passes.score import MERGING, check_known, merge_weights, merges, remarks
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import Plan, keep_of, make_plan
from onnxprune.results import Layer, Report
from onnxprune.runtime import Feeds
from onnxprune.searching import is_open, smallest
from onnxprune.trials import Sensitivity, allotted
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

Inputs = str | Path | Mapping[str, Any] | None


@dataclass(frozen=True)
class Run:
    """Where a model comes from and goes to, and how it is proved.

    Attributes:
        source: the model, as the caller gave it.
        rules: the user's rows by operator.
        verify: whether to prove the result.
        inputs: real inputs for that.
        output: where to write the result.
        plan_output: where to write the plan, with it.
        report_output: where to write the report, also that of a verification that failed.
        progress: is told the name of each pass as it starts.
        data: for criteria, recovery, and what the result is judged by.
        sensitivity: shares a budget out by what each group can spare.
        notes: what the report says besides.
        seconds: time by pass.
    """

    source: Any
    rules: Rules
    verify: bool = True
    inputs: Inputs = None
    output: str | Path | None = None
    plan_output: str | Path | None = None
    report_output: str | Path | None = None
    progress: Progress | None = None
    data: Data = field(default_factory=Data)
    sensitivity: Sensitivity | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[Progress | None]:
        """Tell the caller of a pass, and time it; what is yielded is told what it is at."""
        tell = self.progress
        if tell is not None:
            tell(name)
        start = time.perf_counter()
        yield None if tell is None else lambda detail: tell(f"{name}: {detail}")
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def target(self) -> Path | None:
        """Where to write to.

        Raises:
            OnnxPruneError: it is the input, or its folder is not there.
        """
        if self.output is None:
            return None
        target = Path(self.output)
        given = isinstance(self.source, str | os.PathLike)
        if given and target.resolve() == Path(self.source).resolve():
            raise OnnxPruneError(f"the output '{target}' is the input: give another path")
        if not target.parent.is_dir():
            raise OnnxPruneError(
                f"'{target}' can't be written: there is no folder '{target.parent}'"
            )
        return target

    def digest(self) -> str | None:
        """The digest of the model's file."""
        given = isinstance(self.source, str | os.PathLike)
        return files.sha256(Path(self.source)) if given else None


def prune(run: Run, choice: Choice) -> tuple[Any, Report]:
    """Choose, recover, shrink, prove, write; without a budget, as much goes as the gates allow."""
    target = run.target()
    run.data.check()
    if is_open(choice, run.data):
        return _searched(run, choice)
    check(choice.budget, choice.options)
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
    notes = [
        *check_patterns(coupling, choice.options),
        *remarks(coupling, choice.criterion),
    ]
    feeds = _batches(run.data, coupling.model)
    keep, limits = choose(coupling, choice, run.rules, feeds, run.step)
    notes += limits
    merge_seed = choice.seed if choice.criterion in MERGING else None
    plan = make_plan(coupling, keep, run.digest(), merge_seed)
    fitted = feeds if choice.recover else None
    return _finish(run, coupling, keep, plan, choice.settings(), notes, target, fitted)


def _searched(run: Run, choice: Choice) -> tuple[Any, Report]:
    """The smallest model that the gates let through, by bisection over its MACs."""
    source = files.load(run.source, rules=run.rules)
    trial = replace(run, source=source, verify=False)
    trial = replace(trial, output=None, plan_output=None, report_output=None)

    def at(share: float) -> Choice:
        return replace(choice, budget=Budget(macs=share))

    best = smallest(lambda share: prune(trial, at(share)))
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
    return _finish(run, coupling, keep, plan, {"plan": plan.model.name}, notes, target, feeds)


def compare(run: Run, small: Any, plan: Plan, seed: int) -> Verification:
    """Prove a pruned model that is there already."""
    coupling = analyse(run.source, run.rules)
    keep = keep_of(plan, coupling)
    other = files.load(small, rules=run.rules)
    values = _merged(coupling, keep, plan)
    if plan.recovered:
        values = {**(values or {}), **fitted_values(coupling, keep, other.proto)}
    return verify(
        coupling,
        keep,
        other.proto,
        inputs=_feeds(run.inputs, coupling.model),
        seed=seed,
        values=values,
        folder=other.folder,
    )


def _finish(
    run: Run,
    coupling: Coupling,
    keep: dict[int, Mask],
    plan: Plan,
    settings: dict[str, Any],
    notes: Sequence[str],
    target: Path | None,
    feeds: Sequence[Feeds] | None,
) -> tuple[Any, Report]:
    seed = int(settings.get("seed", 0))
    values = _merged(coupling, keep, plan)
    with run.step("shrink"):
        proto = shrink(coupling, keep, values)
    layers: tuple[Layer, ...] = ()
    if feeds and keep:
        with run.step("recover") as tell:
            fitted = recover(coupling, keep, proto, feeds, values=values, seed=seed, progress=tell)
        layers, values = fitted.layers, {**(values or {}), **fitted.values}
        proto = shrink(coupling, keep, values)
        plan = plan.model_copy(update={"recovered": True})
    verification, failure = _proved(run, coupling, keep, proto, values, seed)
    if verification is None:
        notes = [*notes, "not verified: the proof was switched off"]
    before, after, rows = explaining.costs(coupling, keep)
    report = Report(
        name=coupling.model.name,
        settings={**settings, **run.data.settings()},
        before=before,
        after=after,
        groups=rows,
        verification=verification,
        seconds=run.seconds,
        notes=(*run.notes, *notes, *run.data.notes),
        plan=plan,
        inputs=explaining.input_shapes(coupling),
        recovery=layers,
    )
    if failure is not None:
        _write(run, report, None, None)
        raise VerificationError(failure, report)
    report = _judged(run, coupling, proto, report)
    _write(run, report, plan, None if target is None else (proto, target, coupling.model))
    if target is None:
        proto = files.with_data(proto, coupling.model.folder)
    return _like(run.source, proto), report


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
        given = _feeds(run.inputs, coupling.model)
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
                beside(Path(run.report_output), _text(report.to_json()))


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


def _feeds(inputs: Inputs, model: Model) -> Feeds | None:
    return data.load_inputs(Path(inputs), model) if isinstance(inputs, str | Path) else inputs


def _like(source: Any, proto: onnx.ModelProto) -> Any:
    """The result in the kind that the caller gave."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto | Model):
        return proto
    import onnx_graphsurgeon as gs

    return gs.import_onnx(proto)
