"""Benchmark: time models side by side on one target.

Runs are interleaved (A B, B A, A B ...), so that drifts of the machine hit all models alike. Each
model gets several sessions in turn, for two sessions of one file differ by some percent. The ratio
of medians comes with a bootstrap interval over both, sessions and runs; an interval that spans 1 is
no difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune import providers, runner, runtime
from onnxprune.axes import Values
from onnxprune.errors import OnnxPruneError, ProviderError
from onnxprune.model import Array
from onnxprune.polynomials import Indices
from onnxprune.target import Target

LEVEL = (0.025, 0.975)  # a 95 % interval
DEFAULT = Target()


@dataclass(frozen=True)
class Timing:
    """Latencies of one model in milliseconds, and its speed-up over the first model.

    Attributes:
        p50_ms, p90_ms, p99_ms, mean_ms, min_ms: of the wall time of a run.
        low_ms, high_ms: 95 % bootstrap interval of ``p50_ms``.
        cpu_ms: median of the CPU time of a run, all threads together.
        runs: how many runs these come from.
        speedup: ratio of the first model's median to this one's; above 1 is faster.
        speedup_low, speedup_high: its 95 % bootstrap interval.
        load_ms: time to create the session.
        shares: share of the nodes by provider, by its name in ONNX Runtime.
        interrupted: whether the user ended it before there were enough runs.
        times_ms, cpu_times_ms: every run, in order.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    low_ms: float
    high_ms: float
    cpu_ms: float
    runs: int
    speedup: float
    speedup_low: float
    speedup_high: float
    load_ms: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    interrupted: bool = False
    times_ms: tuple[float, ...] = field(default=(), repr=False)
    cpu_times_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.speedup_low <= 1.0 <= self.speedup_high


def benchmark(
    models: Sequence[tuple[onnx.ModelProto | Path, Path | None]],
    feeds: Mapping[str, Array],
    *,
    target: Target = DEFAULT,
    runs: int | None = None,
    seconds: float = 60.0,
    warm_up: int = 3,
    seed: int = 0,
    tell: Callable[[int], object] | None = None,
    enough: Callable[[Values, Values, Indices], bool] | None = None,
) -> tuple[Timing, ...]:
    """Time models on the same inputs; the first is the one that the others are compared with.

    Args:
        models: each in memory, with the folder of its external data, or as a path.
        feeds: inputs by name; a model may leave some out.
        target: what they run on.
        runs: timed runs of each model. Where absent: 50 and more, until the intervals of all
            medians are under 2 % wide or 5 seconds have passed (see ``runner.is_done``); fewer
            where ``seconds`` don't suffice for 50.
        seconds: the longest that the timed runs may take, where ``runs`` is absent.
        warm_up: runs of each before that, at least; more until they are stable.
        seed: of the bootstrap.
        tell: is told the number of each round.
        enough: is asked after the runs of each session, with the wall and the CPU times so far
            (model, run) and the session (run,) that each is of, whether they suffice.

    Raises:
        RunError: ONNX Runtime can't load or run one of them.
        ProviderError: the provider is not there, ran no node, or only simulates its device.
        OnnxPruneError: a model wants an input that is not given.
    """
    if providers.simulated(target):
        raise ProviderError(
            f"the execution provider '{target.ep}' only simulates its device on this machine: its "
            "times mean nothing, so they are not taken"
        )
    loads: list[list[float]] = [[] for _ in models]
    shares: dict[int, Mapping[str, float]] = {}

    def opened(order: Sequence[int]) -> list[Callable[[], object]]:
        calls = {}
        for position in order:
            start = time.perf_counter()
            session = providers.open_session(*models[position], target)
            loads[position].append((time.perf_counter() - start) * 1e3)
            shares[position] = providers.assignment(session)
            calls[position] = _call(session, feeds)
        return [calls[position] for position in range(len(models))]

    wall, cpu, phases, stopped = runner.measured(
        opened, len(models), runs, seconds, warm_up, tell=tell, enough=enough
    )
    load_ms = [float(np.median(own)) for own in loads]
    every = [shares[position] for position in range(len(models))]
    return timings(wall, cpu, phases, load_ms, every, stopped=stopped, seed=seed)


def timings(
    wall: Values,
    cpu: Values,
    phases: Indices,
    loads: Sequence[float],
    shares: Sequence[Mapping[str, float]],
    *,
    stopped: bool = False,
    seed: int = 0,
) -> tuple[Timing, ...]:
    """The statistics of times (model, run) in milliseconds; the first model is the base.

    Args:
        wall: wall time.
        cpu: CPU time.
        phases: which sessions each run (run,) is of: runs of one phase share theirs.
        loads: milliseconds to create a session, by model.
        shares: share of the nodes by provider, by model.
        stopped: whether the runs were interrupted.
        seed: of the bootstrap.
    """
    picks = runner.draws(phases, seed)
    medians = [np.median(own[picks], axis=1) for own in wall]
    found = []
    for position, own in enumerate(wall):
        low, high = np.quantile(medians[position], LEVEL)
        ratios = np.quantile(medians[0] / medians[position], LEVEL)
        p50, p90, p99 = np.quantile(own, [0.5, 0.9, 0.99])
        found.append(
            Timing(
                float(p50),
                float(p90),
                float(p99),
                float(own.mean()),
                float(own.min()),
                float(low),
                float(high),
                float(np.median(cpu[position])),
                len(own),
                float(np.median(wall[0]) / p50),
                float(ratios[0]),
                float(ratios[1]),
                loads[position],
                shares[position],
                stopped,
                tuple(map(float, own)),
                tuple(map(float, cpu[position])),
            )
        )
    return tuple(found)


def _call(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> Callable[[], object]:
    wanted = [value.name for value in session.get_inputs()]
    missing = [name for name in wanted if name not in feeds]
    if missing:
        raise OnnxPruneError(f"the inputs have no '{missing[0]}', which the model wants")
    for value in session.get_inputs():
        shape = feeds[value.name].shape
        fits = len(value.shape) == len(shape) and all(
            size == given or not isinstance(size, int)
            for size, given in zip(value.shape, shape, strict=True)
        )
        if not fits:
            raise OnnxPruneError(
                f"input '{value.name}' has shape {list(shape)}, but a model wants {value.shape}: "
                "models are compared on the same inputs"
            )
    own = {name: feeds[name] for name in wanted}
    outputs = [value.name for value in session.get_outputs()]
    return lambda: runtime.run(session, own, outputs)
