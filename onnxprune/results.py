"""What the library gives back: reports as plain data, with JSON. Rendering is in report/."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from onnxprune.amounts import count, size
from onnxprune.cost import Cost
from onnxprune.fidelity import Fidelity
from onnxprune.metrics import Evaluation
from onnxprune.plan import Plan
from onnxprune.profile import Change
from onnxprune.target import Target
from onnxprune.verdict import Verification

ROWS: Final = ("groups", "recovery", "frozen", "layers", "tries")  # of a report, that are tables


@dataclass(frozen=True)
class GroupRow:
    """One group in a table.

    Attributes:
        name: the group.
        before: channels before.
        after: channels after (the same in an inspection).
        mixing: whether removal changes what survives.
        members: parameter axes that shrink with it.
        macs: multiply-accumulates that scale with its width, before (those of a node that has the
            group on both sides count twice, for they go with its square).
        macs_after: the same afterwards.
        params: parameters that scale with its width, before.
        params_after: the same afterwards.
        rows: in how many rows it may keep other channels: heads, groups of a convolution.
    """

    name: str
    before: int
    after: int
    mixing: bool
    members: int
    macs: int
    macs_after: int
    params: int
    params_after: int
    rows: int = 1


@dataclass(frozen=True)
class Layer:
    """What recovery did to one layer.

    Attributes:
        node: its label.
        before, after: what its result misses of its target, as a share of the target's variance,
            on samples that the fit has not seen.
        strength: the penalty, or None where the layer stays as it is.
        reason: why it stays as it is.
    """

    node: str
    before: float
    after: float
    strength: float | None
    reason: str = ""


@dataclass(frozen=True)
class FrozenRow:
    """Axes of one parameter that can't be pruned, and why."""

    param: str
    axis: int
    size: int
    reason: str


class Jsonable:
    """Adds ``to_json`` to a dataclass: sorted keys, so that runs can be diffed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """The data as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str) + "\n"


@dataclass(frozen=True, repr=False)
class Inspection(Jsonable):
    """What a model is made of, and what of it can be pruned.

    Attributes:
        name: the model.
        opset: the version of the ai.onnx operators.
        nodes: how many it has.
        macs, params, size_bytes, peak_bytes: its costs; see ``onnxprune.cost.Cost``.
        groups: one row for each group.
        frozen: one row for each axis of a parameter that can't be pruned.
        uncovered: operators without a rule, with the reason.
        inputs: the shape of each input that the costs are for.
    """

    name: str
    opset: int
    nodes: int
    macs: int
    params: int
    size_bytes: int
    peak_bytes: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    uncovered: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Inspection of {self.name}: opset {self.opset}, {self.nodes} nodes\n"
            f"  MACs {count(self.macs)}, parameters {count(self.params)}, file "
            f"{size(self.size_bytes)}, peak activations {size(self.peak_bytes)}\n"
            f"  {len(self.groups)} groups can be pruned, {len(self.frozen)} axes are frozen"
        )


@dataclass(frozen=True)
class Pace:
    """How fast a model was and is, measured side by side.

    Attributes:
        before_ms, after_ms: the medians of a run.
        speedup: the ratio of these; above 1 is faster.
        speedup_low, speedup_high: its 95 % bootstrap interval.
        target: what the models ran on.
        asked: the latency that was asked for, as it was given; empty where none was.
        share: what that is of the original's latency.
        predicted_ms: what the model of the latency said of the result; None where there is none.
        tries: how many choices were measured.
    """

    before_ms: float
    after_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    target: Target
    asked: str = ""
    share: float | None = None
    predicted_ms: float | None = None
    tries: int = 1


@dataclass(frozen=True)
class Try:
    """One model of several that were made on the way: a point of the front.

    Attributes:
        macs: the share of the multiply-accumulates that remains.
        latency: the same of the latency, as measured; None where it was not.
        latency_ms: the median of a run.
        metric: the metric; None without labels.
        fidelity: the least fidelity of an output; None without data.
        recovered: whether what stays was fitted to the original.
        chosen: whether it is the result.
    """

    macs: float
    latency: float | None
    latency_ms: float | None
    metric: float | None
    fidelity: float | None
    recovered: bool
    chosen: bool


@dataclass(frozen=True, repr=False)
class Report(Jsonable):
    """What pruning did.

    Attributes:
        name: the model.
        settings: what was asked for.
        before: costs of the original.
        after: costs of the result.
        groups: one row for each group.
        verification: errors by output, or None where it was switched off.
        seconds: time by pass.
        notes: what the user should know.
        plan: the plan; it has a file of its own.
        inputs: the shape of each input that the costs are for.
        recovery: what was done to each layer, where weights were fitted.
        fidelity: how far the outputs are from the original's, where there is data.
        evaluation: the metric before and after, where there are labels.
        pace: the measured latency, where one was asked for.
        layers: milliseconds and multiply-accumulates of each layer before and after, where the
            latency was measured.
        tries: what was made on the way to the result, and the result; empty where it came at once.
        frozen: one row for each axis of a parameter that can't be pruned.
        sensitivity: the table that shared the budget out, as plain data (see
            ``onnxprune.trials.Sensitivity``), or None.
        environment: the machine and the versions.
        command: the command line; empty where it was not onnxprune's own.
        refused: why no model was written: what failed; empty where one may be.
    """

    name: str
    settings: dict[str, Any]
    before: Cost
    after: Cost
    groups: tuple[GroupRow, ...]
    verification: Verification | None
    seconds: dict[str, float]
    notes: tuple[str, ...]
    plan: Plan = field(repr=False)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    recovery: tuple[Layer, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    evaluation: Evaluation | None = None
    pace: Pace | None = None
    layers: tuple[Change, ...] = ()
    tries: tuple[Try, ...] = ()
    frozen: tuple[FrozenRow, ...] = ()
    sensitivity: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    refused: str = ""

    def __repr__(self) -> str:
        found, before, after = self.verification, self.before, self.after
        if found is None:
            verdict = "not verified: the proof was switched off"
        elif found.ok and not found.blind:
            verdict = f"verified: the largest relative error of an output is {found.error:.1e}"
        else:
            verdict = f"NOT verified: {found.summary()}"
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join(
            [
                f"Report of {self.name}",
                f"  MACs {count(before.macs)} -> {count(after.macs)}, "
                f"parameters {count(before.params)} -> {count(after.params)}, "
                f"file {size(before.size_bytes)} -> {size(after.size_bytes)}",
                *([f"  REFUSED: {self.refused}"] if self.refused else []),
                f"  {verdict}",
                *self._judged(),
                *notes,
            ]
        )

    def _judged(self) -> list[str]:
        """What data says, in a line each."""
        own = self.evaluation
        told = [] if own is None else [f"  {own.metric} {own.before:.4g} -> {own.after:.4g}"]
        return told + [f"  fidelity of '{row.output}': {row.value:.4g}" for row in self.fidelity]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the plan has a file of its own."""
        data = {k: v for k, v in self.__dict__.items() if k != "plan"}
        for key in ("before", "after", "pace", "verification", "evaluation"):
            data[key] = asdict(data[key]) if data[key] is not None else None
        if self.verification is not None:
            data["verification"] |= {"ok": self.verification.ok, "error": self.verification.error}
            told = {"blind": self.verification.blind, "summary": self.verification.summary()}
            data["verification"] |= told
        if self.evaluation is not None:
            data["evaluation"]["drop"] = self.evaluation.drop
        rows = {key: [asdict(row) for row in data[key]] for key in ROWS}
        rows["fidelity"] = [asdict(row) | {"value": row.value} for row in self.fidelity]
        return {**data, **rows}
