"""The verdict on a pruned model: which values were compared, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One compared value.

    Attributes:
        value: its name.
        error: the largest relative error of all runs (see ``compare.relative_error``).
        allowed: the error that passes.
        count: how many finite floating-point numbers were compared.
        blind: it hardly varies, so that comparing it says little.
        ordering: it agrees once decisions by order are the oracle's, not before.
        output: whether it is an output of the graph; else it is a value inside.
    """

    value: str
    error: float
    allowed: float
    count: int
    blind: bool = False
    ordering: bool = False
    output: bool = True

    @property
    def ok(self) -> bool:
        """Whether it agrees."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Verification:
    """The verdict on a pruned model.

    Attributes:
        tolerance: the largest relative error that counts as rounding.
        checks: the graph's outputs, then the inner value that is farthest off.
        failure: what is wrong, in a sentence; None where the model is proven.
        noise: the largest relative error that rounding makes in the oracle by itself; None where
            it had not to be measured.
        inner_values: how many values inside the graph were compared.
        inner_numbers: how many finite floating-point numbers they hold, where they vary.
        notes: what could not be checked, in sentences.
    """

    tolerance: float
    checks: tuple[Check, ...] = ()
    failure: str | None = None
    noise: float | None = None
    inner_values: int = 0
    inner_numbers: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the pruned model passed."""
        return self.failure is None

    @property
    def error(self) -> float:
        """The largest relative error of an output."""
        return max((check.error for check in self.checks if check.output), default=0.0)

    @property
    def count(self) -> int:
        """How many finite floating-point numbers were compared where that says something."""
        outputs = sum(check.count for check in self.checks if check.output and not check.blind)
        return outputs + self.inner_numbers

    @property
    def blind(self) -> bool:
        """Whether nothing was compared that could have told a wrong model."""
        return self.count == 0

    def summary(self) -> str:
        """The verdict in a sentence."""
        if self.failure is not None:
            return f"the pruned model is not the masked original: {self.failure}"
        if self.blind:
            return (
                "nothing that varies could be compared, so the pruned model is not proven: give "
                "real inputs (--inputs FILE.npz), or go without the proof (--no-verify)"
            )
        return (
            f"the largest relative error of an output is {self.error:.1e}; {self.count} numbers "
            f"were compared, also those of {self.inner_values} values inside the graph"
        )
