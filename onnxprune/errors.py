"""Every error that a user can meet; its message is one sentence: where, what, what to do."""

from __future__ import annotations

from typing import Any


class OnnxPruneError(Exception):
    """Bad input: the CLI prints the message alone and exits with 2."""


class BadModelError(OnnxPruneError):
    """The file is no ONNX model that can be read."""


class BadPlanError(OnnxPruneError):
    """The plan does not fit the model that it is applied to."""


class BudgetError(OnnxPruneError):
    """The budget lies below what the structure of the model can reach."""


class NothingToPruneError(OnnxPruneError):
    """The model has no group that may be pruned."""


class RunError(OnnxPruneError):
    """ONNX Runtime can't load or run the model."""


class ProviderError(OnnxPruneError):
    """An execution provider is unknown, not installed, refuses its options, or ran nothing."""


class RuleError(OnnxPruneError):
    """A rule line breaks the notation, or does not fit the node it is used on."""


class GateError(Exception):
    """A gate said no: nothing was written. The CLI prints the message and exits with 1.

    Attributes:
        report: the ``onnxprune.results.Report`` of what was tried; None where there is none.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class VerificationError(GateError):
    """The pruned model differs from its masked original; the report has the verification."""
