"""Search for the smallest model that passes its gates: bisection over what may remain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from onnxprune.choosing import Choice
from onnxprune.errors import BudgetError, GateError
from onnxprune.judging import Data

ROUNDS: Final = 7  # the last one is about less than a hundredth of the MACs


def is_open(choice: Choice, data: Data) -> bool:
    """Whether nothing but gates says how much goes."""
    free = choice.budget.ratio is None and not choice.budget.given()
    gated = data.max_drop is not None or data.min_fidelity is not None
    free = free and choice.speed.goal is None
    return free and choice.options.per_group is None and gated


def smallest(attempt: Callable[[float], object], rounds: int = ROUNDS) -> float:
    """The smallest share that an attempt passes with, to ``2 ** -rounds``.

    An attempt with all is taken to pass. Where passing is not monotonic, it is the smallest of one
    range of shares that pass.

    Args:
        attempt: prunes to a share of the MACs; raises GateError or BudgetError where that fails.
        rounds: how many attempts.

    Raises:
        GateError: no attempt passes.
    """
    low, high = 0.0, 1.0
    told = ""
    for _ in range(rounds):
        middle = (low + high) / 2
        try:
            attempt(middle)
            high = middle
        except (GateError, BudgetError) as error:
            low, told = middle, str(error)
    if high == 1:
        raise GateError(f"no smaller model passes: with {100 * low:.0f} % of the MACs, {told}")
    return high
