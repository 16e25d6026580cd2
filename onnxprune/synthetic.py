"""Samples where there are none: random inputs; those for pictures have spectra like pictures.

Of natural pictures the amplitude falls with the frequency, about as 1/f (Field 1987, Relations
between the statistics of natural images and the response properties of cortical cells), and their
channels go together. White noise has neither, and drives a network where no picture does. The fall
here is steeper, as measured: two CIFAR nets at half their MACs, recovered on such noise, kept 57.1
and 60.4 % (of 70.6 and 68.2 %) with 1/f^1.5, 53.7 and 43.3 % with 1/f, 53.8 and 54.6 % with 1/f^2,
33.6 and 40.6 % on white noise; 69.3 and 66.7 % on pictures.

A BatchNormalization that is left in the file remembers what training has shown it: of several
kinds of noise (how steep, on which range of numbers) that one is drawn which comes nearest to these
means and variances. That is the loss of Yin et al. 2020, Dreaming to Distill, chosen by instead of
descended, for ONNX Runtime has no gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.axes import Values
from onnxprune.calibration import BATCH, BATCHES
from onnxprune.data import random_inputs
from onnxprune.errors import RunError
from onnxprune.model import Array, Model
from onnxprune.rules.tables import NORMS
from onnxprune.runtime import Feeds
from onnxprune.sources import Form

SYNTHETIC: Final = "synthetic"  # what a source is called that is none
NOTE: Final = (
    "there is no calibration data: random inputs stand in for it, which tell little of what the "
    "model sees, though of several kinds those come that fit the statistics of BatchNormalization "
    "where the file has it; some hundred real inputs (--calibration) keep far more of its accuracy"
)
TINY: Final = 1e-12
FALL: Final = 1.5
SHARED: Final = 0.9  # of the amplitude that the channels of a picture have in common
CHANNELS: Final = frozenset({1, 3, 4})


@dataclass(frozen=True)
class Kind:
    """A kind of noise for pictures: how steep its spectrum falls, its mean and its deviation."""

    fall: float = FALL
    mean: float = 0.0
    deviation: float = 1.0


PLAIN: Final = Kind()
# Means and deviations of pictures that are standardised, in -1 to 1, in 0 to 1, and in 0 to 255.
RANGES: Final = ((0.0, 1.0), (0.0, 0.5), (0.45, 0.25), (115.0, 65.0))
KINDS: Final = tuple(Kind(fall, *own) for own, fall in product(RANGES, (FALL, 1.0, 2.0)))


def synthetic_samples(model: Model, *, samples: int = 64, seed: int = 0) -> tuple[Feeds, ...]:
    """Feeds of random inputs, of unit variance where they are floats.

    ``NOTE`` is to be told with them.

    Args:
        model: the model.
        samples: about so many in all.
        seed: of the values.

    Raises:
        OnnxPruneError: an input is of a type that has no random values.
    """
    kind = matched(model, seed)
    first = _drawn(model, seed, kind)
    each = max((len(np.atleast_1d(array)) for array in first.values()), default=1)
    form = Form.of(model)
    joined = 1 if form.whole or form.batch is not None else max(BATCH // each, 1)
    runs = max(-(-samples // (each * joined)), BATCHES)
    joined = max(1, min(joined, -(-samples // (each * runs))))
    draws = [first, *(_drawn(model, seed + k, kind) for k in range(1, runs * joined))]
    return tuple(
        {name: np.concatenate([own[name] for own in draws[k : k + joined]]) for name in first}
        if joined > 1
        else draws[k]
        for k in range(0, len(draws), joined)
    )


def matched(model: Model, seed: int = 0) -> Kind:
    """The kind of noise that fits the statistics of BatchNormalization; the plain one without."""
    norms = _norms(model)
    usual = _drawn(model, seed, PLAIN)
    other = _drawn(model, seed, Kind(deviation=2.0))
    pictured = any(not np.array_equal(usual[name], other[name]) for name in usual)
    if not norms or not pictured:
        return PLAIN
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    there = {value.name for value in proto.graph.output}
    names = list(dict.fromkeys(name for name, _, _ in norms))
    proto.graph.output.extend(onnx.ValueInfoProto(name=x) for x in names if x not in there)
    try:
        run = runtime.runner(proto, model.folder)
        losses = [unlike(run(_drawn(model, seed, kind)), norms) for kind in KINDS]
    except RunError:
        return PLAIN
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return KINDS[int(np.argmin(finite))] if np.isfinite(finite).any() else PLAIN


Norm = tuple[str, Values, Values]  # what it reads, and the means and variances that it remembers


def _norms(model: Model) -> list[Norm]:
    """The normalizations that remember statistics."""
    found = []
    for node in model.nodes:
        if node.op in NORMS and all(name in model.params for name in node.inputs[3:5]):
            mean, variance = (model.params[x].read().astype(np.float64) for x in node.inputs[3:5])
            found.append((node.inputs[0], mean, variance))
    return found


def unlike(values: Mapping[str, Array], norms: Sequence[Norm]) -> float:
    """How unlike what is remembered values (n, c, *) are: KL of normal distributions, in nats.

    Of each norm the median over its channels counts, for some channels hardly vary.
    """
    total = 0.0
    for name, mean, variance in norms:
        wide = values[name].astype(np.float64)
        others = tuple(k for k in range(wide.ndim) if k != 1)
        own, spread = wide.mean(others), np.maximum(wide.var(others), TINY)
        kept = np.maximum(variance, TINY)
        apart = spread / kept + np.square(own - mean) / kept - 1 - np.log(spread / kept)
        total += float(np.median(apart)) / 2
    return total / len(norms)


def _drawn(model: Model, seed: int, kind: Kind = PLAIN) -> dict[str, Array]:
    """One feed; a pictures' input has the sizes that are usual for it."""
    found = random_inputs(model, seed)
    generator = np.random.default_rng([seed, len(found)])
    for name, array in found.items():
        if array.ndim == 4 and array.dtype.kind == "f":
            if array.shape[1] in CHANNELS:
                found[name] = pictures_like(generator, array.shape, kind).astype(array.dtype)
            elif array.shape[3] in CHANNELS:
                n, h, w, c = array.shape
                drawn = pictures_like(generator, (n, c, h, w), kind).transpose(0, 2, 3, 1)
                found[name] = np.ascontiguousarray(drawn, array.dtype)
    return found


def pictures_like(
    generator: np.random.Generator, shape: tuple[int, ...], kind: Kind = PLAIN
) -> Array:
    """Noise (n, channels, h, w) with an amplitude of ``1 / f ** fall``."""
    count, _, height, width = shape
    lowest = 1 / max(height, width)
    falls = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    falls = np.maximum(falls, lowest) ** -kind.fall
    drawn = []
    for own in ((count, 1, height, width), shape):
        white = np.fft.fft2(generator.standard_normal(own))
        noise = np.fft.ifft2(white * falls).real
        drawn.append(noise / noise.std())
    noise = SHARED * drawn[0] + np.sqrt(1 - SHARED**2) * drawn[1]
    return np.asarray(kind.mean + kind.deviation * noise)
