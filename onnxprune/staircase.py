"""How the time of kernels grows with their channels: measured curves, their steps, and a cache.

A curve is fitted by ``a + b * ceil(n / block) * block``, and more where ``part`` does not divide n.
Coarser steps have to explain the times clearly better than finer ones do.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from onnxprune.alignment import STAIRS, Stairs
from onnxprune.axes import Values
from onnxprune.files import together
from onnxprune.latency import non_negative
from onnxprune.target import Target

FORMAT: Final = 2
BLOCKS: Final = (1, 2, 4, 8, 16, 32)
BETTER: Final = 0.7  # of the error of finer steps: what coarser ones have to come down to
CLIFF: Final = 0.1  # of the time: what falling off a part has to cost at least
UNEVEN: Final = 0.1  # mean relative error above which no steps are believed
FLAT: Final = 0.01  # mean relative error that no finer steps have to be explained beyond
PRODUCT: Final = "matmul"
GROUPED: Final = "grouped"
CONVOLUTIONS: Final = ("conv 1x1", "conv 3x3", "depthwise")


@dataclass(frozen=True)
class Curve:
    """The times of one kind of kernel.

    Attributes:
        counts: channels.
        times_ms: milliseconds at each.
        block: the step in which they grow; 1 where they grow evenly.
        part: what divides the counts that are not slowed down; 1 where all go as fast.
        cliff: how much longer others take, as a share.
        error: the mean relative error of such steps.
    """

    counts: tuple[int, ...]
    times_ms: tuple[float, ...]
    block: int
    part: int
    cliff: float
    error: float = 0.0

    @property
    def told(self) -> bool:
        """Whether the times are even enough to go by: on a busy machine they may not be."""
        return self.error <= UNEVEN


@dataclass(frozen=True)
class Probe:
    """What was measured on one machine with one provider.

    Attributes:
        key: machine, provider and its version, threads, element type.
        curves: by kind of kernel.
        stairs: what they say about kept counts.
    """

    key: Mapping[str, str]
    curves: Mapping[str, Curve] = field(repr=False)
    stairs: Stairs

    def summary(self) -> str:
        """One sentence for a report."""
        own = self.stairs
        uneven = [kind for kind, curve in self.curves.items() if not curve.told]
        rest = f"; times of {', '.join(uneven)} were too uneven: usual steps there" * bool(uneven)
        return (
            f"kept counts go by a probe of this machine ({self.key['provider']}, "
            f"{self.key['threads']} threads): blocks of {own.block}, parts of {own.part}, "
            f"{own.grouped} in a group, {own.product} in matrix products{rest}"
        )

    def to_json(self) -> str:
        """The probe as JSON with sorted keys."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def key_of(target: Target, dtype: str) -> dict[str, str]:
    """What a probe holds for."""
    options = ",".join(f"{k}={v}" for k, v in sorted(target.options.items()))
    return {
        "machine": f"{platform.system()} {platform.machine()} {_processor()}",
        "provider": target.ep + (f" ({options})" if options else ""),
        "optimization": target.optimization,
        "version": ort.__version__,
        "threads": str(target.threads),
        "dtype": dtype,
    }


def _processor() -> str:
    """The processor's name and instruction set: virtual machines hide the one or the other."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    words = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in words.items()}
    simd = [x for x in ("avx2", "avx512f", "amx_tile") if x in found.get("flags", "").split()]
    return " ".join([found.get("model name") or platform.processor(), *simd])


def fitted(counts: Sequence[int], times_ms: Sequence[float]) -> Curve:
    """The steps of one kind of kernel.

    Args:
        counts: channels (n,), some of them odd.
        times_ms: milliseconds (n,).
    """
    n, times = np.array(counts, np.float64), np.array(times_ms, np.float64)
    best, least, cliff = (1, 1), *_miss(n, times, 1, 1)
    for block in BLOCKS:
        for part in BLOCKS:
            if part > block or (block, part) == (1, 1):
                continue
            error, own_cliff = _miss(n, times, block, part)
            real = part == 1 or own_cliff >= CLIFF
            if real and error < BETTER * max(least, FLAT) and error < least:
                best, least, cliff = (block, part), error, own_cliff
    cliff = cliff if best[1] > 1 else 0.0
    return Curve(tuple(counts), tuple(map(float, times)), *best, cliff, least)


def _miss(n: Values, times: Values, block: int, part: int) -> tuple[float, float]:
    """The mean relative error of such steps, and how much longer counts off the parts take."""
    filled = np.ceil(n / block) * block
    off = (n % part != 0).astype(np.float64)
    columns = [np.ones(len(n)), filled, *([off, off * filled] if off.any() else [])]
    shares = np.stack(columns, axis=1) / times[:, None]
    prices = non_negative(shares, np.ones(len(n)))
    error = float(np.abs(shares @ prices - 1).mean())
    if not off.any():
        return error, 0.0
    smooth = (np.stack(columns[:2], axis=1) @ prices[:2])[off > 0]
    return error, float((times[off > 0] / np.maximum(smooth, 1e-12) - 1).mean())


def stairs_of(curves: Mapping[str, Curve]) -> Stairs:
    """What curves say about kept counts; the usual steps, where one is too uneven to go by."""
    own = [curves[kind] for kind in CONVOLUTIONS if kind in curves]
    if not own:
        return STAIRS
    block = max(curve.block if curve.told else STAIRS.block for curve in own)
    part = max(curve.part if curve.told else STAIRS.part for curve in own)
    grouped, product = block, STAIRS.product
    if GROUPED in curves:
        grouped = curves[GROUPED].block if curves[GROUPED].told else STAIRS.grouped
    if PRODUCT in curves and curves[PRODUCT].told:
        product = curves[PRODUCT].block
    return Stairs(max(block, part), part, grouped, product, max(block, part))


def folder() -> Path:
    """The user's cache folder for probes."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onnxprune" / "probes"


def place(key: Mapping[str, str]) -> Path:
    """Where the probe of a key is kept."""
    text = json.dumps([FORMAT, dict(key)], sort_keys=True)
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def cached(target: Target, dtype: str = "float32") -> Probe | None:
    """The probe that was made here before; None where there is none that can be read."""
    key = key_of(target, dtype)
    try:
        data = json.loads(place(key).read_text("utf-8"))
        curves = {
            kind: Curve(tuple(c.pop("counts")), tuple(c.pop("times_ms")), **c)
            for kind, c in data["curves"].items()
        }
        found = Probe(data["key"], curves, Stairs(**data["stairs"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.key == key else None


def store(found: Probe) -> Path:
    """Keep a probe for later; give back where."""
    path = place(found.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with together() as write:
        write(path, lambda file: file.write_text(found.to_json(), "utf-8"))
    return path
