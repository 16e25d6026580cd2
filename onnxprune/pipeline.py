"""The flow: load, normalize, couple, score, select, shrink, verify, write. ``api`` is its face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxprune import explaining, files
from onnxprune.budget import Budget, check, check_patterns
from onnxprune.choosing import (
    ANY_SPEED,
    DISTILL,
    Choice,
    Chooser,
    Progress,
    Recover,
    Rules,
    analyse,
    choose_by_latency,
    scored_by,
)
from onnxprune.data import check_seed
from onnxprune.errors import GateError, NothingToPruneError, OnnxPruneError
from onnxprune.finishing import Made, finish, merged_values
from onnxprune.fronts import try_of
from onnxprune.full import fitted_values
from onnxprune.judging import Data
from onnxprune.model import Model
from onnxprune.passes.score import MERGING, check_known, remarks
from onnxprune.passes.verify import verify
from onnxprune.peaks import choose_by_arena, choose_by_size
from onnxprune.plan import Plan, keep_of, make_plan
from onnxprune.results import Report, Try
from onnxprune.run import Inputs, Run, given_inputs, timed_on
from onnxprune.runtime import Feeds
from onnxprune.searching import is_open, smallest
from onnxprune.speed import learned
from onnxprune.trials import allotted
from onnxprune.verdict import Verification

__all__ = [
    "Choice",
    "Inputs",
    "Progress",
    "Recover",
    "Rules",
    "Run",
    "analyse",
    "compare",
    "prune",
    "replay",
]


def prune(run: Run, choice: Choice) -> tuple[Any, Report]:
    """Choose, recover, shrink, prove, write; without a budget, as much goes as the gates allow."""
    target = run.target()
    run.data.check()
    measured = choice.speed != ANY_SPEED or choice.budget.peak_bytes is not None
    _must_fit_both(run, run.open_io, measured)
    _must_have_data(run, choice.recover)
    if is_open(choice, run.data):
        return _searched(run, choice)
    check(choice.whole_budget(), choice.options)
    check_known(choice.criterion)
    with run.step("load"):
        loaded = files.load(run.source, rules=run.rules)
    run.check(loaded)
    with run.step("couple"):
        coupling = run.once("coupling", lambda: analyse(loaded, run.rules, None, run.open_io))
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
        scores = run.once("scores", lambda: scored_by(coupling, choice, batches, run.step))
        chooser = Chooser(coupling, choice, run.rules, batches, run.step, scores)
        if choice.budget.peak_bytes is not None:
            keep, limits = choose_by_arena(chooser, timed_on(run, coupling.model, choice.seed))
        elif choice.budget.size_bytes is not None:
            keep, limits = choose_by_size(chooser)
        else:
            keep, limits = chooser.at(choice.budget)
    else:
        feeds = timed_on(run, coupling.model, choice.seed)
        tuned = choose_by_latency(coupling, choice, run.rules, batches, feeds, run.step)
        keep, limits = tuned.keep, list(tuned.notes)
    merge_seed = choice.seed if choice.criterion in MERGING else None
    plan = make_plan(coupling, keep, run.digest(), merge_seed)
    made = Made(keep, plan, choice.settings(), (*notes, *limits), choice.speed, tuned)
    made = replace(made, distill=choice.recover == DISTILL)
    return finish(run, coupling, made, target, batches if choice.recover else None)


def _searched(run: Run, choice: Choice) -> tuple[Any, Report]:
    """The smallest model that the gates let through, by bisection over its MACs.

    The structure and the first scores are found once; an attempt costs a fit and a judgement, and
    the last one's fit is that of the result.
    """
    source = files.load(run.source, rules=run.rules)
    run = replace(run, known={})
    trial = replace(run, source=source, verify=False)
    trial = replace(trial, output=None, plan_output=None, report_output=None)

    untimed = replace(choice, speed=replace(choice.speed, min_speedup=None))
    tries: list[Try] = []

    def attempt(share: float) -> None:
        try:
            _, report = prune(trial, replace(untimed, budget=Budget(macs=share)))
            tries.append(try_of(report, False))
        except GateError as gate:
            if gate.report is not None:
                tries.append(try_of(gate.report, False))
            raise

    best = smallest(attempt)
    note = f"--macs {100 * best:.1f}% is the least that the gates allow, found by bisection"
    run = replace(run, notes=(*run.notes, note), tries=tuple(tries))
    return prune(run, replace(choice, budget=Budget(macs=best)))


def replay(run: Run, plan: Plan, fit: Recover = True) -> tuple[Any, Report]:
    """Shrink by a plan, recover where there are calibration inputs, prove, write."""
    target = run.target()
    run.data.check()
    with run.step("couple"):
        coupling = analyse(run.source, run.rules, None, plan.open_io)
    run.check(coupling.model)
    _must_fit_both(run, plan.open_io, measured=False)
    _must_have_data(run, fit)
    keep = keep_of(plan, coupling)
    notes = []
    digest = run.digest()
    if digest is not None and plan.model.sha256 is not None and digest != plan.model.sha256:
        notes.append(f"the plan was made for another file, '{plan.model.name}'; its names fit")
    feeds = _batches(run.data, coupling.model) if fit else None
    made = Made(keep, plan, {"plan": plan.model.name}, tuple(notes), distill=fit == DISTILL)
    return finish(run, coupling, made, target, feeds)


def compare(run: Run, small: Any, plan: Plan, seed: int) -> Verification:
    """Prove a pruned model that is there already.

    Raises:
        OnnxPruneError: the seed is none, or a file does not fit the plan.
    """
    check_seed(seed)
    coupling = analyse(run.source, run.rules, None, plan.open_io)
    keep = keep_of(plan, coupling)
    other = files.load(small, rules=run.rules)
    values = merged_values(coupling, keep, plan)
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


def _must_fit_both(run: Run, open_io: Sequence[str], measured: bool) -> None:
    """Refuse what feeds both models with the same inputs where inputs change.

    Raises:
        OnnxPruneError: data is given, or a latency or peak memory is to be measured.
    """
    if open_io and (run.data.given or measured):
        raise OnnxPruneError(
            f"the channels of '{open_io[0]}' may go (--allow-io-change), and inputs of the "
            "original do not fit the result then: leave out data, latency and peak memory"
        )


def _must_have_data(run: Run, recover: Recover) -> None:
    """Refuse a distillation that has nothing to learn from.

    Raises:
        OnnxPruneError: there are no calibration inputs.
    """
    if recover == DISTILL and run.data.calibration is None:
        raise OnnxPruneError(
            "--recover distill learns from calibration inputs, and there are none: give "
            "--calibration (calibration=)"
        )


def _batches(given: Data, model: Model) -> Sequence[Feeds] | None:
    """Calibration inputs, each batch as the model wants it."""
    return None if given.calibration is None else given.feeds(model)
