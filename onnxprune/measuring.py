"""Measure models side by side, as ``onnxprune bench`` does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxprune import files, providers, remote, runtime
from onnxprune.catalogue import provider
from onnxprune.mobile import ORT_FORMAT, Usability, usability
from onnxprune.model import Array, Model
from onnxprune.passes.benchmark import Timing, benchmark
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.profile import Profile, node_groups, node_macs, profile
from onnxprune.profile import measured as roof
from onnxprune.results import Jsonable
from onnxprune.subjects import Subject, Wanted, feeds_of, sized
from onnxprune.target import Target

BUSY: Final = 1.15  # wall over CPU time, from which on others use the machine
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One model at one batch size on one machine.

    Attributes:
        model: its name.
        batch: the batch size; None where the model has no batch axis that can be chosen.
        size_bytes: of its file.
        peak_bytes: what loading and running it adds to a process at most; None where unknown.
        timing: its latencies; None where the provider only simulates its device.
        shares: share of the nodes by provider.
        difference: the largest difference of an output from the CPU's, over its largest value;
            only where the provider simulates its device.
    """

    model: str
    batch: int | None
    size_bytes: int
    peak_bytes: int | None
    timing: Timing | None
    shares: Mapping[str, float] | None
    difference: float | None = None

    @property
    def throughput(self) -> float | None:
        """Samples a second."""
        return None if self.timing is None else (self.batch or 1) * 1e3 / self.timing.p50_ms

    @property
    def verdict(self) -> str:
        """Faster or slower than the first model, or no difference."""
        if self.timing is None:
            return "not timed: the device is simulated"
        if not self.timing.differs:
            return "no difference"
        return "faster" if self.timing.speedup > 1 else "slower"


@dataclass(frozen=True)
class Bench(Jsonable):
    """What was measured on one machine.

    Attributes:
        rows: one for each batch size and model; the first model is what others compare with.
        target: provider, threads, options, optimisation.
        machine: processor, system, versions.
        inputs: the shape of each input, by name.
        profiles: where the time goes, by model.
        mobile: what mobile providers would take, by model.
        name: what to call the machine, where several are shown; empty for this one.
        notes: what the user should know.
    """

    rows: tuple[Row, ...]
    target: Mapping[str, Any]
    machine: Mapping[str, Any]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    mobile: Mapping[str, tuple[Usability, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with what is computed from it."""
        found = asdict(replace(self, rows=()))
        found["rows"] = [
            {**asdict(row), "throughput_per_s": row.throughput, "verdict": row.verdict}
            for row in self.rows
        ]
        return found


def measure(models: Sequence[Subject], wanted: Wanted, tell: Tell | None = None) -> Bench:
    """Measure models; see ``onnxprune.bench``."""
    feeds, notes = feeds_of(models, wanted)
    simulated = providers.simulated(wanted.target)
    if simulated:
        notes.append(
            f"'{wanted.target.ep}' only simulates its device on this machine: nothing was timed; "
            "outputs were compared with the CPU's"
        )
    rows: list[Row] = []
    for batch, arrays in feeds.items():
        found = (
            _simulated(models, arrays, wanted.target)
            if simulated
            else _timed(models, batch, arrays, wanted, tell)
        )
        rows += [replace(row, batch=batch) for row in found]
        if any(row.timing is not None and row.timing.interrupted for row in found):
            notes.append("interrupted: the figures are those of fewer runs")
            break
    notes += busy(rows, wanted.target.one_core)
    notes += sorted({note for row in rows for note in _fallen_back(row, wanted.target)})
    first = next(iter(feeds.values()))
    if wanted.profile and simulated:
        notes.append("no profile: times on a simulated device mean nothing")
    profiles = _profiles(models, first, wanted, tell) if wanted.profile and not simulated else {}
    return Bench(
        tuple(rows),
        {**asdict(wanted.target), "simulated": simulated},
        remote.machine(),
        {name: tuple(array.shape) for name, array in first.items()},
        profiles,
        _mobile(models, first, tell) if wanted.mobile else {},
        tuple(notes),
    )


def _profiles(
    models: Sequence[Subject], feeds: Mapping[str, Array], wanted: Wanted, tell: Tell | None
) -> dict[str, Profile]:
    found = {}
    roofline = roof(wanted.target)
    for subject, model in _fixed(models, feeds):
        if tell is not None:
            tell(f"profile of {subject.name}")
        coupling = couple(normalize(model, {}), {})
        found[subject.name] = profile(
            model,
            feeds,
            wanted.target,
            macs=node_macs(coupling),
            groups=node_groups(coupling),
            roofline=roofline,
        )
    return found


def _mobile(
    models: Sequence[Subject], feeds: Mapping[str, Array], tell: Tell | None
) -> dict[str, tuple[Usability, ...]]:
    found = {}
    for subject, model in _fixed(models, feeds):
        if tell is not None:
            tell(f"mobile providers on {subject.name}")
        found[subject.name] = usability(model.proto, model.folder)
    return found


def _fixed(
    models: Sequence[Subject], feeds: Mapping[str, Array]
) -> Iterator[tuple[Subject, Model]]:
    """The models with the sizes of these inputs; those in ORT's format can't be read."""
    for subject in models:
        if subject.path.suffix != ORT_FORMAT:
            model = files.load(subject.path)
            sizes = {name: feeds[name].shape for name in model.inputs}
            yield subject, sized(model, sizes)[0]


def _timed(
    models: Sequence[Subject],
    batch: int | None,
    arrays: Mapping[str, Array],
    wanted: Wanted,
    tell: Tell | None,
) -> list[Row]:
    said = "" if batch is None else f", batch {batch}"
    timings = benchmark(
        [(model.path, None) for model in models],
        arrays,
        target=wanted.target,
        runs=wanted.runs,
        seconds=wanted.seconds,
        seed=wanted.seed,
        tell=None if tell is None else lambda turn: tell(f"run {turn}{said}"),
    )
    rows = []
    for model, timing in zip(models, timings, strict=True):
        peak = None
        if wanted.memory and not timing.interrupted:
            if tell is not None:
                tell(f"memory of {model.name}{said}")
            peak = peak_bytes(model.path, wanted.target, arrays)
        rows.append(Row(model.name, batch, model.size_bytes, peak, timing, timing.shares))
    return rows


def _simulated(models: Sequence[Subject], arrays: Mapping[str, Array], target: Target) -> list[Row]:
    rows = []
    for model in models:
        session = providers.open_session(model.path, None, target)
        names = [value.name for value in session.get_outputs()]
        found = runtime.run(session, arrays, names)
        right = runtime.run(providers.open_session(model.path, None, Target()), arrays, names)
        errors = [
            float(np.max(np.abs(a.astype(np.float64) - b)) / (np.max(np.abs(b)) or 1.0))
            for a, b in zip(found, right, strict=True)
            if a.size and a.dtype.kind == "f"
        ]
        shares = providers.assignment(session)
        rows.append(
            Row(model.name, None, model.size_bytes, None, None, shares, max(errors, default=0.0))
        )
    return rows


def peak_bytes(path: Path, target: Target, arrays: Mapping[str, Array]) -> int | None:
    """What loading and running a model adds to a process of its own at most; Linux alone."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder) / "inputs.npz")
        np.savez(inputs, **arrays)  # type: ignore[arg-type]
        level = f"ORT_{providers.LEVELS[providers.optimization_of(path, target)]}"
        return remote.peak_in_child([str(path), level, plain(target), inputs])


def plain(target: Target) -> dict[str, Any]:
    """The target as ``onnxprune.remote`` wants it."""
    row = provider(target.ep)
    threads = {row.threads: str(target.threads)} if row.threads else {}
    return {
        "threads": target.threads,
        "provider": row.ort_name,
        "options": {**threads, **target.options},
        "plugin": row.plugin,
        "told": dict(row.told),
    }


def busy(rows: Sequence[Row], single: bool) -> list[str]:
    """Whether others used the processor: one thread's wall time is then above its CPU time.

    Args:
        rows: what was measured.
        single: whether it ran on the CPU with one thread.
    """
    timings = [row.timing for row in rows if row.timing is not None]
    worst = max((t.p50_ms / t.cpu_ms for t in timings if t.cpu_ms), default=0.0)
    if not single or worst < BUSY:
        return []
    return [
        f"the machine is busy: runs took up to {worst:.2f} times their CPU time; compare ratios, "
        "not milliseconds"
    ]


def _fallen_back(row: Row, target: Target) -> list[str]:
    shares = dict(row.shares or {})
    own = shares.pop(provider(target.ep).ort_name, None)
    if own is None or not shares:
        return []
    rest = ", ".join(f"{100 * share:.0f} % by {name}" for name, share in sorted(shares.items()))
    return [f"'{target.ep}' ran {100 * own:.0f} % of the nodes of {row.model}, {rest}"]
