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
from onnxprune.axes import Mask, Values
from onnxprune.budget import SCHEDULES, Budget, Options, Schedule, Stage, free_groups
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import OnnxPruneError
from onnxprune.latency import Latency, with_latency
from onnxprune.masks import composed, kept_count
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


@dataclass
class Left:
    """What is left of a model before one of its steps.

    Attributes:
        coupling: its structure.
        scores: of its groups.
        costs: of it.
        keep: the masks of the whole model's groups so far.
        notes: what was said of the choices, with the steps that said it.
    """

    coupling: Coupling
    scores: Mapping[int, Values]
    costs: CostModel
    keep: dict[int, Mask]
    notes: dict[str, list[int]]

    def copy(self) -> Left:
        """Another one, whose masks and notes may change."""
        keep = {factor: mask.copy() for factor, mask in self.keep.items()}
        notes = {note: [*steps] for note, steps in self.notes.items()}
        return replace(self, keep=keep, notes=notes)


class Chooser:
    """Selects, in one step or several; what comes before the last choice is done once.

    Args:
        coupling: the structure of the model.
        choice: what is wanted.
        rules: the user's rows by operator.
        feeds: calibration inputs; between steps the model is recovered on them.
        step_of: is entered with the name of each pass.
        scores: the scores of the first step.
        latency: a model of the latency, where that is a part of the budget.

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
        scores: Mapping[int, Values],
        latency: Latency | None = None,
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
        self.step_of, self.scores, self.latency = step_of, scores, latency
        self.costs = _costs(coupling, latency)
        self.before = self.costs.cost({})
        self.last: Left | None = None

    def at(self, budget: Budget) -> tuple[dict[int, Mask], list[str]]:
        """The masks by factor of the groups that lose something under a budget, and notes.

        Of several steps, all but the last go by the first budget that they could be done by.
        """
        steps = self.choice.steps
        if self.last is None:
            self.last = self._before_last(budget)
        left = self.last.copy()
        self._select(left, steps, budget)
        masks = {factor: mask for factor, mask in left.keep.items() if not mask.all()}
        return masks, [_of_steps(note, own, steps) for note, own in left.notes.items()]

    def _before_last(self, budget: Budget) -> Left:
        """What is left before the last step."""
        whole = {group.factor: np.ones(group.size, bool) for group in self.coupling.groups}
        left = Left(self.coupling, self.scores, self.costs, whole, {})
        for step in range(1, self.choice.steps):
            self._select(left, step, budget)
            left = self._after(left)
        return left

    def _select(self, left: Left, step: int, whole: Budget) -> None:
        """One step: what is chosen goes into the masks, what is said of it into the notes."""
        steps = self.choice.steps
        with self.step_of("select"):
            stage = Stage(step, steps, self.choice.schedule)
            options = self.choice.options.at_step(stage)
            if step < steps:  # blocks are for the last: roundings to them would add up
                options = replace(options, stairs=options.stairs.finer())
            budget = whole.at_step(stage, self.before)
            found = select(left.coupling, left.scores, budget, options, left.costs)
        for note in (*found.limits, *_narrow(self.coupling, left.coupling, found.keep, left.keep)):
            left.notes.setdefault(note, []).append(step)

    def _after(self, left: Left) -> Left:
        """Take what is chosen away, recover, and look at what is left."""
        small = shrink(self.coupling, left.keep)
        if self.feeds and self.choice.recover:
            seed = self.choice.seed
            with self.step_of("recover") as tell:
                found = recover(
                    self.coupling, left.keep, small, self.feeds, seed=seed, progress=tell
                )
            small = shrink(self.coupling, left.keep, found.values)
        model = self.coupling.model
        current = analyse(small, self.rules, model.folder, model.open_io)
        scores = scored_by(current, self.choice, self.feeds, self.step_of)
        costs = _costs(current, self.latency)
        return replace(left, coupling=current, scores=scores, costs=costs)


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
    chooser = Chooser(coupling, choice, rules, batches, step_of, scores, latency)

    def chosen(share: float) -> tuple[dict[int, Mask], tuple[str, ...]]:
        keep, notes = chooser.at(choice.whole_budget(share))
        return keep, tuple(notes)

    with step_of("tune"):
        costs = with_latency(costs, latency)
        return tune(Tuner(coupling, costs, latency, chosen, feeds, target), choice.speed.goal)


def scored_by(
    coupling: Coupling, choice: Choice, feeds: Sequence[Feeds] | None, step_of: StepOf
) -> dict[int, Values]:
    """The scores of all groups by the criterion that is wanted."""
    with step_of("score") as tell:
        balanced = choice.options.balanced
        return score(coupling, choice.criterion, choice.seed, tell, feeds=feeds, balanced=balanced)


def _costs(coupling: Coupling, latency: Latency | None) -> CostModel:
    costs = cost_model(coupling)
    return costs if latency is None else with_latency(costs, latency)


def _narrow(
    coupling: Coupling, current: Coupling, chosen: Mapping[int, Mask], keep: dict[int, Mask]
) -> Iterator[str]:
    """Put the choice of one step into the masks of the whole; notes on groups that are lost."""
    own_groups = {group.name: group for group in current.groups}
    before = dict(keep)
    for group in coupling.groups:
        mask, own = before[group.factor], own_groups.get(group.name)
        there = before.get(coupling.factors.rows.get(group.factor, -1), np.ones(group.rows, bool))
        found = None if own is None else chosen.get(own.factor)
        is_lost = own is None or (found is not None and not _fits(found, own, there))
        if found is not None and not is_lost:
            keep[group.factor] = composed(mask, found, there)
        elif is_lost and kept_count(mask) > 1:  # of one channel there is nothing to find
            yield f"group '{group.name}' is not found again after a step, and loses no more"


def _fits(found: Mask, own: Group, there: Mask) -> bool:
    """Whether a choice has the rows that are left; what they are a part of may have changed."""
    return found.ndim == 1 or len(found) == own.rows == int(there.sum())


def _of_steps(note: str, own: Sequence[int], steps: int) -> str:
    """A note, with the steps that it is of where it is not of all."""
    if len(own) == steps:
        return note
    return f"step {', '.join(map(str, own))} of {steps}: {note}"
