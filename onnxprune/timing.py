"""Timing a model at several widths, to know its latency at any.

The real model is shrunk to a handful of widths and profiled at each, run by run in turn. Nothing
is verified, for nothing is written: which indices go makes no difference to the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from onnxprune.alignment import Alignment
from onnxprune.axes import Mask, Values
from onnxprune.cost import CostModel
from onnxprune.coupling import Coupling
from onnxprune.latency import Latency, fit
from onnxprune.model import Array
from onnxprune.passes.shrink import shrink
from onnxprune.target import Target
from onnxprune.trace import Kernel, traces

RATIOS: Final = (0.25, 0.5, 0.75)  # that groups are profiled at, in turn
WIDTHS: Final = 6  # of the model, the full one with them
RUNS: Final = 8
WARM_UP: Final = 1
SECONDS: Final = 5.0  # of runs with the profiler on, and again without; slow models get fewer runs
Models = Sequence[tuple[onnx.ModelProto, Path | None]]
Profiled = Sequence[tuple[Sequence[Kernel], float]]
Profiler = Callable[[Models, Mapping[str, Array], Target, int], Profiled]


def _profiled(models: Models, feeds: Mapping[str, Array], target: Target, runs: int) -> Profiled:
    return traces(models, feeds, target, runs, WARM_UP, seconds=SECONDS)


def measured_latency(
    coupling: Coupling,
    cost: CostModel,
    steps: Alignment,
    free: Mask,
    feeds: Mapping[str, Array],
    target: Target,
    profiler: Profiler = _profiled,
) -> Latency:
    """Profile a model at several widths, and fit its latency.

    Args:
        coupling: the structure of the model.
        cost: its costs.
        steps: the counts that groups may have.
        free: the groups (v,) that may be pruned.
        feeds: inputs by name.
        target: what it runs on.
        profiler: times models side by side.

    Raises:
        RunError: ORT can't run the model.
    """
    counts = widths(steps, free)
    models = [(shrink(coupling, masks_of(coupling, c)), coupling.model.folder) for c in counts]
    found = profiler(models, feeds, target, RUNS)
    whole_ms = np.array([ms for _, ms in found])
    return fit(cost, counts, [kernels for kernels, _ in found], whole_ms)


def widths(steps: Alignment, free: Mask) -> list[Values]:
    """Kept counts (v,) to time at: all, then ratios that differ from group to group.

    Neighbouring groups have different ratios in each, and every group has each of them: so the
    shares of a layer's operands and results in its time can be told apart.
    """
    groups = np.arange(len(steps.sizes))
    found = [steps.sizes]
    for turn in range(WIDTHS - 1):
        stride = 1 if turn < len(RATIOS) else 2
        ratios = np.array(RATIOS)[(groups * stride + turn) % len(RATIOS)]
        kept = np.where(free, np.maximum(steps.nearest(steps.sizes * (1 - ratios)), 1), steps.sizes)
        found.append(steps.settled(kept, np.ones(len(kept))))
    return found


def masks_of(coupling: Coupling, counts: Sequence[float] | Values) -> dict[int, Mask]:
    """Masks that keep the first indices, so many of each group."""
    return {
        group.factor: np.arange(group.size) < kept
        for group, kept in zip(coupling.groups, counts, strict=True)
        if kept < group.size
    }
