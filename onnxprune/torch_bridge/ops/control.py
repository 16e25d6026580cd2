"""Rows that run bodies: If, Loop, Scan.

A body is called with its inputs and returns its results; what it captures it finds by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Tensor, number
from onnxprune.torch_bridge.lazy import torch

Body = Callable[[Sequence[Tensor]], list[Tensor]]
Bodies = Mapping[str, Body]


def if_(at: At, bodies: Bodies, condition: Tensor) -> tuple[Tensor, ...]:
    """One of two bodies."""
    return tuple(bodies["then_branch" if bool(number(condition)) else "else_branch"]([]))


def loop(
    at: At, bodies: Bodies, trips: Tensor | None, condition: Tensor | None, *state: Tensor
) -> tuple[Tensor, ...]:
    """The body again and again; what it gives beside the state is stacked."""
    limit = int(number(trips)) if trips is not None else None
    going = bool(number(condition, True))
    own, turn, stacked = list(state), 0, [[] for _ in range(at.results - len(state))]  # type: ignore[var-annotated]
    while going and (limit is None or turn < limit):
        given = [torch.tensor(turn), torch.tensor(True), *own]
        again, *made = bodies["body"](given)
        own, scanned = made[: len(own)], made[len(own) :]
        for column, value in zip(stacked, scanned, strict=True):
            column.append(value)
        going, turn = bool(number(again)), turn + 1
    columns = [torch.stack(column) if column else torch.zeros(0) for column in stacked]
    return (*own, *columns)


def scan(at: At, bodies: Bodies, *operands: Tensor) -> tuple[Tensor, ...]:
    """The body on each slice of some operands."""
    if at.opset < 9:
        raise at.refuse("Scan of opset 8")
    count = at("num_scan_inputs")
    state, read = list(operands[: len(operands) - count]), operands[len(operands) - count :]
    axes = [a % x.ndim for a, x in zip(at("scan_input_axes", [0] * count), read, strict=True)]
    back = at("scan_input_directions", [0] * count)
    results = at.results - len(state)
    stacked: list[list[Tensor]] = [[] for _ in range(results)]
    steps = read[0].shape[axes[0]]
    for t in range(steps):
        slices = [
            x.select(a, steps - 1 - t if b else t) for x, a, b in zip(read, axes, back, strict=True)
        ]
        made = bodies["body"]([*state, *slices])
        state, scanned = made[: len(state)], made[len(state) :]
        for column, value in zip(stacked, scanned, strict=True):
            column.append(value)
    turned = at("scan_output_directions", [0] * results)
    places = at("scan_output_axes", [0] * results)
    columns = [
        torch.stack(column[::-1] if b else column, a)
        for column, a, b in zip(stacked, places, turned, strict=True)
    ]
    return (*state, *columns)


ROWS: Final[dict[str, Any]] = {"If": if_, "Loop": loop, "Scan": scan}
