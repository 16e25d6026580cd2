"""Choosing what goes: load and couple, then score and select in one step or several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from onnxprune import files
from onnxprune.alignment import alignment
from onnxprune.amounts import size
from onnxprune.arena import arena
from onnxprune.axes import Mask, Values
from onnxprune.budget import SCHEDULES, Budget, Options, Schedule, Stage, free_groups
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import BudgetError, OnnxPruneError, RunError
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
Recover = bool | Literal["distill"]
DISTILL: Final = "distill"
ANY_SPEED: Final = Speed()
StepOf = Callable[[str], AbstractContextManager[Progress | None]]
ARENA_TRIES: Final = 8
ARENA_CLOSE: Final = 0.95  # of what is allowed: near enough
ARENA_SPARE: Final = 0.99  # aims a little below what is allowed


@dataclass(frozen=True)
class Choice:
    """What is wanted, and how it is chosen.

    Attributes:
        budget: what goes, or what may remain.
        options: how the choice is made.
        criterion: a name in ``score.CRITERIA``.
        steps: prune in so many steps, and score again between them.
        seed: for all that is random.
        recover: whether kept weights are fitted to the original on calibration inputs; with
            ``distill`` the whole model is trained to say what the original says, afterwards.
        speed: how fast the result has to be, and where.
        schedule: how much goes in each of the steps; see ``budget.SCHEDULES``.
    """

    budget: Budget
    options: Options
    criterion: str
    steps: int
    seed: int
    recover: Recover = True
    speed: Speed = ANY_SPEED
    schedule: Schedule = "exponential"

    def settings(self) -> dict[str, Any]:
        """What a report says was asked for."""
        given = {k: v for k, v in vars(self.budget).items() if v is not None}
        own = {"criterion": self.criterion, "steps": self.steps, "seed": self.seed}
        if self.steps > 1:
            own["schedule"] = self.schedule
        return {**given, **asdict(self.options), **own, **self.speed.settings()}

    def whole_budget(self, share: float = 1.0) -> Budget:
        """The budget, with a share of the latency where one is asked for."""
        return self.budget if self.speed.goal is None else replace(self.budget, latency_ms=share)


def analyse(
    model: Any, rules: Rules, folder: Path | None = None, open_io: Collection[str] = ()
) -> Coupling:
    """Load, normalize and couple.

    Args:
        model: the model.
        rules: the user's rows by operator.
        folder: where its external data lies.
        open_io: inputs and outputs of the graph whose channels may go.

    Raises:
        BadModelError: the model can't be read.
        OnnxPruneError: it has no input or output of a name in ``open_io``.
    """
    loaded = files.load(model, folder=folder, rules=rules)
    for name in sorted(set(open_io) - {*loaded.inputs, *loaded.outputs}):
        raise OnnxPruneError(
            f"'{loaded.name}' has no input or output '{name}' whose channels could go: it has "
            f"{', '.join(repr(x) for x in (*loaded.inputs, *loaded.outputs))}"
        )
    loaded = replace(loaded, open_io=frozenset(open_io))
    return couple(normalize(loaded, rules), rules)


class Chooser:
    """Scores and selects, in one step or several; what comes before the last choice is done once.

    Args:
        coupling: the structure of the model.
        choice: what is wanted.
        rules: the user's rows by operator.
        feeds: calibration inputs; between steps the model is recovered on them.
        step_of: is entered with the name of each pass.
        latency: a model of the latency, where that is a part of the budget.
        scores: the scores of the first step, where they are known.

    Raises:
        OnnxPruneError: the number of steps makes no sense.
    """

    def __init__(
        self,
        coupling: Coupling,
        choice: Choice,
        rules: Rules,
        feeds: Sequence[Feeds] | None,
        step_of: StepOf,
        latency: Latency | None = None,
        scores: Mapping[int, Values] | None = None,
    ) -> None:
        if choice.steps < 1:
            raise OnnxPruneError(f"steps is {choice.steps}: it must be at least 1")
        if choice.steps == 1 and choice.schedule != "exponential":
            raise OnnxPruneError(
                f"the schedule '{choice.schedule}' is for several steps, and there is one: give "
                "--steps (steps=)"
            )
        if choice.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise OnnxPruneError(f"there is no schedule '{choice.schedule}': choose {known}")
        self.coupling, self.choice, self.rules, self.feeds = coupling, choice, rules, feeds
        self.step_of, self.latency = step_of, latency
        self.first = scores
        self.begun = False
        self._begin()

    def _begin(self) -> None:
        """Before the first step."""
        self.current, self.scores = self.coupling, self.first
        self.costs = _costs(self.coupling, self.latency)
        self.before = self.costs.cost({})
        self.keep: dict[int, Mask] = {g.factor: np.ones(g.size, bool) for g in self.coupling.groups}
        self.notes: dict[str, list[int]] = {}  # with the steps that they are of

    def at(self, budget: Budget) -> tuple[dict[int, Mask], list[str]]:
        """The masks by factor of the groups that lose something under a budget, and notes.

        Of several steps, all but the last go by the budget that was asked for first.
        """
        steps = self.choice.steps
        if not self.begun:
            self._begin()  # an earlier budget may have failed on its way
            for step in range(1, steps):
                self._select(step, budget, self.keep, self.notes)
                self._go_on()
            self.begun = True
        keep = {factor: mask.copy() for factor, mask in self.keep.items()}
        notes = {note: [*own] for note, own in self.notes.items()}
        self._select(steps, budget, keep, notes)
        masks = {factor: mask for factor, mask in keep.items() if not mask.all()}
        return masks, [_of_steps(note, own, steps) for note, own in notes.items()]

    def _select(
        self, step: int, whole: Budget, keep: dict[int, Mask], notes: dict[str, list[int]]
    ) -> None:
        """One step: what is chosen goes into the masks, what is said of it into the notes."""
        steps = self.choice.steps
        if self.scores is None:
            self.scores = scored_by(self.current, self.choice, self.feeds, self.step_of)
        if self.current is self.coupling:
            self.first = self.scores
        with self.step_of("select"):
            stage = Stage(step, steps, self.choice.schedule)
            options = self.choice.options.at_step(stage)
            if step < steps:  # blocks are for the last: roundings to them would add up
                options = replace(options, stairs=options.stairs.finer())
            budget = whole.at_step(stage, self.before)
            found = select(self.current, self.scores, budget, options, self.costs)
        for note in (*found.limits, *_narrow(self.coupling, self.current, found.keep, keep)):
            notes.setdefault(note, []).append(step)

    def _go_on(self) -> None:
        """Take what is chosen away, recover, and look at what is left."""
        small = shrink(self.coupling, self.keep)
        if self.feeds and self.choice.recover:
            with self.step_of("recover") as tell:
                found = recover(
                    self.coupling,
                    self.keep,
                    small,
                    self.feeds,
                    seed=self.choice.seed,
                    progress=tell,
                )
            small = shrink(self.coupling, self.keep, found.values)
        self.current = analyse(
            small, self.rules, self.coupling.model.folder, self.coupling.model.open_io
        )
        self.costs, self.scores = _costs(self.current, self.latency), None


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

    scores = scored_by(coupling, choice, batches, step_of)
    chooser = Chooser(coupling, choice, rules, batches, step_of, latency, scores)

    def chosen(share: float) -> tuple[dict[int, Mask], tuple[str, ...]]:
        keep, notes = chooser.at(choice.whole_budget(share))
        return keep, tuple(notes)

    with step_of("tune"):
        costs = with_latency(costs, latency)
        return tune(Tuner(coupling, costs, latency, chosen, feeds, target), choice.speed.goal)


def choose_by_arena(chooser: Chooser, feeds: Feeds) -> tuple[dict[int, Mask], list[str]]:
    """Choose, and correct the peak that is counted until ONNX Runtime's own plan meets the budget.

    ONNX Runtime fuses nodes, pads channels and lays values out anew, so that its arena takes
    another share than a count of live values does. It may even grow where a fusion is lost (a ViT
    at 0.6 of the counted peak took 1.3 of the memory), so that a choice that meets the budget may
    lie far below it: of those that meet it the one with the most MACs is taken.

    Args:
        chooser: whose choice has a budget for peak memory.
        feeds: what the model is run on; the plan is for their sizes.

    Raises:
        BudgetError: the plan stays above the budget, whatever is chosen.
    """
    model, budget = chooser.coupling.model, chooser.choice.budget
    assert budget.peak_bytes is not None
    try:
        full = arena(model.proto, model.folder, feeds).planned_bytes
    except RunError:  # it does not tell: what is counted has to do
        full = 0
    if not full:
        return chooser.at(budget)
    goal = budget.peak_bytes * full if budget.peak_bytes <= 1 else budget.peak_bytes
    whole = cost_model(chooser.coupling)
    limit, refused, least = min(goal / full, 1.0), 0.0, full
    best: tuple[int, dict[int, Mask], list[str]] | None = None
    for _ in range(ARENA_TRIES):
        try:
            keep, notes = chooser.at(replace(budget, peak_bytes=limit))
        except BudgetError:  # that little can't be left: what can, is more
            refused, limit = limit, (limit + 1) / 2
            continue
        small = shrink(chooser.coupling, keep)
        planned = arena(small, model.folder, feeds).planned_bytes
        least = min(least, planned)
        counts = {factor: int(mask.sum()) for factor, mask in keep.items()}
        kept = whole.cost(counts).macs
        if planned <= goal and (best is None or kept > best[0]):
            best = kept, keep, notes
        if goal * ARENA_CLOSE <= planned <= goal or (planned <= goal and limit == 1):
            break
        left, limit = (
            limit,
            limit * goal / max(planned, 1) * (1 if planned <= goal else ARENA_SPARE),
        )
        limit = min(limit if limit > refused else (refused + left) / 2, 1.0)
    if best is None:
        raise BudgetError(
            f"peak memory of {size(goal)} can't be reached: ONNX Runtime plans {size(full)} for "
            f"the activations of the model, and {size(least)} of the smallest that was tried; "
            "allow more, or let more go (--max-ratio, --include, --exclude)"
        )
    return best[1], best[2]


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
