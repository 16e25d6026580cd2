"""Pruning to a peak of memory as ONNX Runtime plans it, and to bytes as a file has them.

Neither is what a count of values tells: what computes sizes at run time takes some nodes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from onnxprune.amounts import size
from onnxprune.arena import arena
from onnxprune.axes import Mask
from onnxprune.choosing import Chooser
from onnxprune.cost import cost_model
from onnxprune.errors import BudgetError, RunError
from onnxprune.files import size_bytes
from onnxprune.passes.shrink import shrink
from onnxprune.plan import counts_of
from onnxprune.runtime import Feeds

TRIES: Final = 8
CLOSE: Final = 0.95  # of what is allowed: near enough
SPARE: Final = 0.99  # aims a little below what is allowed


@dataclass(frozen=True)
class Peak:
    """A choice whose memory was planned.

    Attributes:
        planned_bytes: what ONNX Runtime takes for its activations.
        macs: the multiply-accumulates that it keeps.
        keep: its masks.
        notes: on it.
    """

    planned_bytes: int
    macs: float
    keep: dict[int, Mask]
    notes: list[str]


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
    full = planned_bytes(model.proto, model.folder, feeds)
    if full is None:  # what is counted has to do
        return chooser.at(budget)
    goal = budget.peak_bytes * full if budget.peak_bytes <= 1 else budget.peak_bytes
    tried = _tried(chooser, feeds, full, goal)
    fitting = [own for own in tried if own.planned_bytes <= goal]
    if not fitting:
        least = min((own.planned_bytes for own in tried), default=full)
        raise BudgetError(
            f"peak memory of {size(goal)} can't be reached: ONNX Runtime plans {size(full)} for "
            f"the activations of the model, and {size(least)} of the smallest that was tried; "
            "allow more, or let more go (--max-ratio, --include, --exclude)"
        )
    best = max(fitting, key=lambda own: own.macs)
    return best.keep, [*best.notes, told(full, best.planned_bytes)]


def choose_by_size(chooser: Chooser) -> tuple[dict[int, Mask], list[str]]:
    """Choose, and correct the bytes that are counted until those of the file meet the budget.

    Args:
        chooser: whose choice has a budget for the bytes of the file.

    Raises:
        BudgetError: the file stays above the budget, whatever is chosen.
    """
    budget = chooser.choice.budget
    assert budget.size_bytes is not None
    full, limit = chooser.before.size_bytes, budget.size_bytes
    goal = limit = limit * full if limit <= 1 else limit
    least = float(full)
    for _ in range(TRIES):
        keep, notes = chooser.at(replace(budget, size_bytes=limit))
        found = size_bytes(shrink(chooser.coupling, keep))
        if found is None or found <= goal:
            return keep, notes
        limit, least = limit - (found - goal), min(least, found)
    raise BudgetError(
        f"--bytes {size(goal)}: the smallest file that was tried takes {size(least)}; allow more, "
        "or let more go (--max-ratio, --include, --exclude)"
    )


def _tried(chooser: Chooser, feeds: Feeds, full: int, goal: float) -> Sequence[Peak]:
    """Choices by counted peaks that come nearer to the planned one that is allowed."""
    model, budget = chooser.coupling.model, chooser.choice.budget
    costs = cost_model(chooser.coupling)
    limit, refused = min(goal / full, 1.0), 0.0
    tried: list[Peak] = []
    for _ in range(TRIES):
        try:
            keep, notes = chooser.at(replace(budget, peak_bytes=limit))
        except BudgetError:  # that little can't be left: what can, is more
            refused, limit = limit, (limit + 1) / 2
            continue
        planned = planned_bytes(shrink(chooser.coupling, keep), model.folder, feeds) or full
        tried.append(Peak(planned, costs.cost(counts_of(keep)).macs, keep, notes))
        fits = planned <= goal
        if fits and (planned >= goal * CLOSE or limit == 1):
            break
        nearer = limit * goal / planned * (1 if fits else SPARE)
        limit = min(nearer if nearer > refused else (refused + limit) / 2, 1.0)
    return tried


def planned_bytes(proto: onnx.ModelProto, folder: Path | None, feeds: Feeds) -> int | None:
    """What ONNX Runtime's CPU provider plans for activations; None where it does not tell."""
    try:
        return arena(proto, folder, feeds).planned_bytes or None
    except RunError:
        return None


def told(before: int, after: int) -> str:
    """A note on what is planned."""
    return (
        f"ONNX Runtime's CPU provider plans {after} bytes for activations, {before} before: it "
        "fuses nodes, pads channels and lays values out anew, which the counted peak does not"
    )
