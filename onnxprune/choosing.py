"""Choosing what goes: load and couple, then score and select in one step or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxprune import files
from onnxprune.alignment import alignment
from onnxprune.axes import Mask, Values
from onnxprune.budget import Budget, Options, free_groups
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.latency import Latency, with_latency
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.recover import recover
from onnxprune.passes.score import score
from onnxprune.passes.select import select
from onnxprune.passes.shrink import shrink
from onnxprune.rules import Row
from onnxprune.runtime import Feeds
from onnxprune.speed import Speed
from onnxprune.timing import measured_latency
from onnxprune.tuning import Tuned, Tuner, tune

Progress = Callable[[str], None]
Rules = Mapping[str, Row]
ANY_SPEED: Final = Speed()
StepOf = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Choice:
    """What is wanted, and how it is chosen.

    Attributes:
        budget: what goes, or what may remain.
        options: how the choice is made.
        criterion: a name in ``score.CRITERIA``.
        steps: prune in so many steps, and score again between them.
        seed: for all that is random.
        recover: whether kept weights are fitted to the original on calibration inputs.
        speed: how fast the result has to be, and where.
    """

    budget: Budget
    options: Options
    criterion: str
    steps: int
    seed: int
    recover: bool = True
    speed: Speed = ANY_SPEED

    def settings(self) -> dict[str, Any]:
        """What a report says was asked for."""
        given = {k: v for k, v in vars(self.budget).items() if v is not None}
        own = {"criterion": self.criterion, "steps": self.steps, "seed": self.seed}
        return {**given, **asdict(self.options), **own, **self.speed.settings()}

    def whole_budget(self, share: float = 1.0) -> Budget:
        """The budget, with a share of the latency where one is asked for."""
        return self.budget if self.speed.goal is None else replace(self.budget, latency_ms=share)


@dataclass(frozen=True)
class Stage:
    """What the last of several steps begins with."""

    keep: dict[int, Mask]
    coupling: Coupling
    costs: CostModel
    scores: Mapping[int, Values]


def analyse(model: Any, rules: Rules, folder: Path | None = None) -> Coupling:
    """Load, normalize and couple.

    Raises:
        BadModelError: the model can't be read.
    """
    return couple(normalize(files.load(model, folder=folder, rules=rules), rules), rules)


def choose(
    coupling: Coupling,
    choice: Choice,
    rules: Rules,
    feeds: Sequence[Feeds] | None,
    step_of: StepOf,
    latency: Latency | None = None,
    scored: Mapping[int, Values] | None = None,
    last: list[Stage] | None = None,
) -> tuple[dict[int, Mask], list[str]]:
    """Score and select, in one step or several; masks by factor of the first coupling.

    Args:
        coupling: the structure of the model.
        choice: what is wanted.
        rules: the user's rows by operator.
        feeds: calibration inputs; between steps the model is recovered on them.
        step_of: is entered with the name of each pass.
        latency: a model of the latency, where that is a part of the budget.
        scored: the scores of the first step, where they are known.
        last: takes what the last of several steps begins with; where it holds that already, only
            the last choice is made anew.

    Returns:
        the masks of the groups that lose something, and notes.
    """
    steps = choice.steps
    if steps < 1:
        raise OnnxPruneError(f"steps is {steps}: it must be at least 1")
    keep: dict[int, Mask] = {g.factor: np.ones(g.size, bool) for g in coupling.groups}
    costs = _costs(coupling, latency)
    before, current = costs.cost({}), coupling
    notes: dict[str, list[int]] = {}  # with the steps that they are of
    for step in range(1, steps + 1):
        if last and step < steps:
            continue
        if last:
            scores, current, costs = last[0].scores, last[0].coupling, last[0].costs
            keep = {factor: mask.copy() for factor, mask in last[0].keep.items()}
        elif step > 1:
            small = shrink(coupling, keep)
            if feeds and choice.recover:
                with step_of("recover") as tell:
                    found = recover(coupling, keep, small, feeds, seed=choice.seed, progress=tell)
                small = shrink(coupling, keep, found.values)
            current = analyse(small, rules, coupling.model.folder)
            costs = _costs(current, latency)
        if not last:
            known = scored if step == 1 else None
            scores = known or scored_by(current, choice, feeds, step_of)
        if last == [] and step == steps > 1:
            own = {factor: mask.copy() for factor, mask in keep.items()}
            last.append(Stage(own, current, costs, scores))
        with step_of("select"):
            budget = choice.budget.at_step(step, steps, before)
            options = choice.options.at_step(steps)
            if step < steps:  # blocks are for the last: roundings to them would add up
                options = replace(options, stairs=options.stairs.finer())
            selection = select(current, scores, budget, options, costs)
        told = [*selection.limits, *_narrow(coupling, current, selection.keep, keep)]
        for note in told:
            notes.setdefault(note, []).append(step)
    masks = {factor: mask for factor, mask in keep.items() if not mask.all()}
    return masks, [_of_steps(note, own, steps) for note, own in notes.items()]


def choose_by_latency(
    coupling: Coupling,
    choice: Choice,
    rules: Rules,
    batches: Sequence[Feeds] | None,
    feeds: Feeds,
    step_of: StepOf,
) -> Tuned:
    """Fit the latency, then choose and measure until it is met.

    Args:
        coupling: the structure of the model.
        choice: what is wanted, a latency with it.
        rules: the user's rows by operator.
        batches: calibration inputs.
        feeds: what the latency is measured on.
        step_of: is entered with the name of each pass.
    """
    assert choice.speed.goal is not None
    target, options = choice.speed.target, choice.options
    costs = cost_model(coupling)
    with step_of("profile"):
        steps = alignment(coupling, options.align, options.stairs)
        free = free_groups(coupling, options)
        latency = measured_latency(coupling, costs, steps, free, feeds, target)

    scores, last = scored_by(coupling, choice, batches, step_of), list[Stage]()

    def chosen(share: float) -> tuple[dict[int, Mask], tuple[str, ...]]:
        own = replace(choice, budget=choice.whole_budget(share))
        keep, notes = choose(coupling, own, rules, batches, step_of, latency, scores, last)
        return keep, tuple(notes)

    with step_of("tune"):
        costs = with_latency(costs, latency)
        return tune(Tuner(coupling, costs, latency, chosen, feeds, target), choice.speed.goal)


def scored_by(
    coupling: Coupling, choice: Choice, feeds: Sequence[Feeds] | None, step_of: StepOf
) -> dict[int, Values]:
    """The scores of all groups by the criterion that is wanted."""
    with step_of("score") as tell:
        return score(coupling, choice.criterion, choice.seed, tell, feeds=feeds)


def _costs(coupling: Coupling, latency: Latency | None) -> CostModel:
    costs = cost_model(coupling)
    return costs if latency is None else with_latency(costs, latency)


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
