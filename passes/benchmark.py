"""Benchmark: time models side by side on ONNX Runtime CPU.

Runs are interleaved (A B A B ...), so that drifts of the machine hit all models alike; the ratio of
medians comes with a bootstrap interval, and an interval that spans 1 is no difference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.axes import Values
from onnxprune.model import Array

RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """Latencies of one model in milliseconds, and its speed-up over the first model.

    ``speedup_low`` and ``speedup_high`` are a 95 % bootstrap interval of the ratio of medians.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.speedup_low <= 1.0 <= self.speedup_high


def benchmark(
    models: Sequence[tuple[onnx.ModelProto, Path | None]],
    feeds: Mapping[str, Array],
    *,
    runs: int = 50,
    warm_up: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> tuple[Timing, ...]:
    """Time models on the same inputs; the first is the one that the others are compared with.

    Args:
        models: each with the folder of its external data.
        feeds: inputs by name.
        runs: timed runs of each model.
        warm_up: runs of each before that.
        threads: threads inside an operator.
        seed: of the bootstrap.

    Raises:
        RunError: ONNX Runtime can't load or run one of them.
    """
    sessions = [runtime.session(proto, folder, threads) for proto, folder in models]
    outputs = [[o.name for o in session.get_outputs()] for session in sessions]
    times = np.zeros((len(sessions), runs))
    for turn in range(-warm_up, runs):
        for position, session in enumerate(sessions):
            start = time.perf_counter()
            runtime.run(session, feeds, outputs[position])
            if turn >= 0:
                times[position, turn] = (time.perf_counter() - start) * 1e3
    generator = np.random.default_rng(seed)
    return tuple(_timing(own, times[0], generator) for own in times)


def _timing(own: Values, base: Values, generator: np.random.Generator) -> Timing:
    picks = generator.integers(0, len(own), (RESAMPLES, len(own)))
    ratios = np.median(base[picks], axis=1) / np.median(own[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    p50, p90, p99 = np.quantile(own, [0.5, 0.9, 0.99])
    speedup = float(np.median(base) / np.median(own))
    return Timing(float(p50), float(p90), float(p99), len(own), speedup, float(low), float(high))
