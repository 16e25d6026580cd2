"""The flow: load, normalize, couple, score, select, shrink, verify, write. ``api`` is its face."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import data, explaining, files
from onnxprune.axes import Mask
from onnxprune.budget import Budget, Options, check, check_patterns
from onnxprune.cost import cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import NothingToPruneError, OnnxPruneError, VerificationError
from onnxprune.model import Array, Model
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.score import (
    MERGING,
    check_known,
    merge_weights,
    merges,
    remarks,
    score,
)
from onnxprune.passes.select import select
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.plan import Plan, keep_of, make_plan
from onnxprune.results import Report
from onnxprune.rules import Row
from onnxprune.runtime import Feeds
from onnxprune.verdict import Verification

Progress = Callable[[str], None]
Inputs = str | Path | Mapping[str, Any] | None
Rules = Mapping[str, Row]


@dataclass(frozen=True)
class Choice:
    """What is wanted, and how it is chosen.

    Attributes:
        budget: what goes, or what may remain.
        options: how the choice is made.
        criterion: a name in ``score.CRITERIA``.
        steps: prune in so many steps, and score again between them.
        seed: for all that is random.
    """

    budget: Budget
    options: Options
    criterion: str
    steps: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """What a report says was asked for."""
        given = {k: v for k, v in vars(self.budget).items() if v is not None}
        own = {"criterion": self.criterion, "steps": self.steps, "seed": self.seed}
        return {**given, **vars(self.options), **own}


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
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell the caller of a pass, and time it."""
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        yield
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


def analyse(model: Any, rules: Rules, folder: Path | None = None) -> Coupling:
    """Load, normalize and couple.

    Raises:
        BadModelError: the model can't be read.
    """
    return couple(normalize(files.load(model, folder=folder, rules=rules), rules), rules)


def prune(run: Run, choice: Choice) -> tuple[Any, Report]:
    """Choose, shrink, prove, write."""
    target = run.target()
    check(choice.budget, choice.options)
    check_known(choice.criterion)
    with run.step("load"):
        loaded = files.load(run.source, rules=run.rules)
    with run.step("couple"):
        coupling = analyse(loaded, run.rules)
    if not coupling.groups:
        raise NothingToPruneError(explaining.nothing_to_prune(coupling))
    notes = [
        *check_patterns(coupling, choice.options),
        *remarks(coupling, choice.criterion),
    ]
    keep, limits = _choose(coupling, choice, run)
    notes += limits
    merge_seed = choice.seed if choice.criterion in MERGING else None
    plan = make_plan(coupling, keep, run.digest(), merge_seed)
    return _finish(run, coupling, keep, plan, choice.settings(), notes, target)


def replay(run: Run, plan: Plan) -> tuple[Any, Report]:
    """Shrink by a plan, prove, write."""
    target = run.target()
    with run.step("couple"):
        coupling = analyse(run.source, run.rules)
    keep = keep_of(plan, coupling)
    notes = []
    digest = run.digest()
    if digest is not None and plan.model.sha256 is not None and digest != plan.model.sha256:
        notes.append(f"the plan was made for another file, '{plan.model.name}'; its names fit")
    return _finish(run, coupling, keep, plan, {"plan": plan.model.name}, notes, target)


def compare(run: Run, small: Any, plan: Plan, seed: int) -> Verification:
    """Prove a pruned model that is there already."""
    coupling = analyse(run.source, run.rules)
    keep = keep_of(plan, coupling)
    other = files.load(small, rules=run.rules)
    return verify(
        coupling,
        keep,
        other.proto,
        inputs=_feeds(run.inputs, coupling.model),
        seed=seed,
        values=_merged(coupling, keep, plan),
        folder=other.folder,
    )


def _choose(coupling: Coupling, choice: Choice, run: Run) -> tuple[dict[int, Mask], list[str]]:
    """Score and select, in one step or several; masks by factor of the first coupling."""
    steps = choice.steps
    if steps < 1:
        raise OnnxPruneError(f"steps is {steps}: it must be at least 1")
    keep: dict[int, Mask] = {g.factor: np.ones(g.size, bool) for g in coupling.groups}
    costs = cost_model(coupling)
    before, current = costs.cost({}), coupling
    notes: dict[str, list[int]] = {}  # with the steps that they are of
    for step in range(1, steps + 1):
        if step > 1:
            current = analyse(shrink(coupling, keep), run.rules, coupling.model.folder)
            costs = cost_model(current)
        with run.step("score"):
            scores = score(current, choice.criterion, seed=choice.seed)
        with run.step("select"):
            budget = choice.budget.at_step(step, steps, before)
            selection = select(current, scores, budget, choice.options.at_step(steps), costs)
        told = [*selection.limits, *_narrow(coupling, current, selection.keep, keep)]
        for note in told:
            notes.setdefault(note, []).append(step)
    masks = {factor: mask for factor, mask in keep.items() if not mask.all()}
    return masks, [_of_steps(note, own, steps) for note, own in notes.items()]


def _narrow(
    coupling: Coupling, current: Coupling, chosen: Mapping[int, Mask], keep: Mapping[int, Mask]
) -> Iterator[str]:
    """Put the choice of one step into the masks of the whole; notes on groups that are lost."""
    own_groups = {group.name: group for group in current.groups}
    for group in coupling.groups:
        mask, own = keep[group.factor], own_groups.get(group.name)
        if own is not None and own.factor in chosen:
            mask[np.flatnonzero(mask)] = chosen[own.factor]
        elif own is None and mask.sum() > 1:  # of one channel there is nothing to find
            yield f"group '{group.name}' is not found again after a step, and loses no more"


def _of_steps(note: str, own: Sequence[int], steps: int) -> str:
    """A note, with the steps that it is of where it is not of all."""
    if len(own) == steps:
        return note
    return f"step {', '.join(map(str, own))} of {steps}: {note}"


def _finish(
    run: Run,
    coupling: Coupling,
    keep: dict[int, Mask],
    plan: Plan,
    settings: dict[str, Any],
    notes: Sequence[str],
    target: Path | None,
) -> tuple[Any, Report]:
    values = _merged(coupling, keep, plan)
    with run.step("shrink"):
        proto = shrink(coupling, keep, values)
    verification, failure = None, None
    if run.verify:
        with run.step("verify"):
            seed = int(settings.get("seed", 0))
            feeds = _feeds(run.inputs, coupling.model)
            verification = verify(coupling, keep, proto, inputs=feeds, seed=seed, values=values)
        if not verification.ok or (keep and verification.blind):
            failure = verification.summary()
    else:
        notes = [*notes, "not verified: the proof was switched off"]
    before, after, rows = explaining.costs(coupling, keep)
    report = Report(
        name=coupling.model.name,
        settings=settings,
        before=before,
        after=after,
        groups=rows,
        verification=verification,
        seconds=run.seconds,
        notes=tuple(notes),
        plan=plan,
        inputs=explaining.input_shapes(coupling),
    )
    if failure is not None:
        _write(run, report, None, None)
        raise VerificationError(failure, report)
    _write(run, report, plan, None if target is None else (proto, target, coupling.model))
    if target is None:
        proto = files.with_data(proto, coupling.model.folder)
    return _like(run.source, proto), report


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


def _feeds(inputs: Inputs, model: Model) -> Feeds | None:
    return data.load_inputs(Path(inputs), model) if isinstance(inputs, str | Path) else inputs


def _like(source: Any, proto: onnx.ModelProto) -> Any:
    """The result in the kind that the caller gave."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto | Model):
        return proto
    import onnx_graphsurgeon as gs

    return gs.import_onnx(proto)
