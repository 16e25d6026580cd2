"""What the library gives back: reports as plain data, with JSON. Rendering is in report/."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.cost import Cost
from onnxprune.plan import Plan
from onnxprune.verdict import Verification


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


@dataclass(frozen=True)
class Inspection(Jsonable):
    """What a model is made of, and what of it can be pruned."""

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


@dataclass(frozen=True)
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
        plan: the plan; written to a file of its own by the CLI.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the plan has a file of its own."""
        data = {k: v for k, v in self.__dict__.items() if k != "plan"}
        for key in ("before", "after", "verification"):
            data[key] = asdict(data[key]) if data[key] is not None else None
        if self.verification is not None:
            data["verification"] |= {"ok": self.verification.ok, "error": self.verification.error}
        return {**data, "groups": [asdict(row) for row in self.groups]}
