"""Samples where there are none: random inputs; those for pictures have spectra like pictures.

Of natural pictures the amplitude falls with the frequency, about as 1/f (Field 1987, Relations
between the statistics of natural images and the response properties of cortical cells), and their
channels go together. White noise has neither, and drives a network where no picture does. The fall
here is steeper, as measured: two CIFAR nets at half their MACs, recovered on such noise, kept 57.1
and 60.4 % (of 70.6 and 68.2 %) with 1/f^1.5, 53.7 and 43.3 % with 1/f, 53.8 and 54.6 % with 1/f^2,
33.6 and 40.6 % on white noise; 69.3 and 66.7 % on pictures.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxprune.calibration import BATCH, BATCHES
from onnxprune.data import random_inputs
from onnxprune.model import Array, Model
from onnxprune.runtime import Feeds
from onnxprune.sources import Form

SYNTHETIC: Final = "synthetic"  # what a source is called that is none
NOTE: Final = (
    "there is no calibration data: random inputs stand in for it, which tell little of what the "
    "model sees; some hundred real inputs (--calibration) keep far more of its accuracy"
)


FALL: Final = 1.5
SHARED: Final = 0.9  # of the amplitude that the channels of a picture have in common
CHANNELS: Final = frozenset({1, 3, 4})


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
    first = _drawn(model, seed)
    each = max((len(np.atleast_1d(array)) for array in first.values()), default=1)
    form = Form.of(model)
    joined = 1 if form.whole or form.batch is not None else max(BATCH // each, 1)
    runs = max(-(-samples // (each * joined)), BATCHES)
    joined = max(1, min(joined, -(-samples // (each * runs))))
    draws = [first, *(_drawn(model, seed + k) for k in range(1, runs * joined))]
    return tuple(
        {name: np.concatenate([own[name] for own in draws[k : k + joined]]) for name in first}
        if joined > 1
        else draws[k]
        for k in range(0, len(draws), joined)
    )


def _drawn(model: Model, seed: int) -> dict[str, Array]:
    """One feed; a pictures' input has the sizes that are usual for it."""
    found = random_inputs(model, seed)
    generator = np.random.default_rng([seed, len(found)])
    for name, array in found.items():
        if array.ndim == 4 and array.dtype.kind == "f":
            if array.shape[1] in CHANNELS:
                found[name] = pictures_like(generator, array.shape).astype(array.dtype)
            elif array.shape[3] in CHANNELS:
                n, h, w, c = array.shape
                drawn = pictures_like(generator, (n, c, h, w)).transpose(0, 2, 3, 1)
                found[name] = np.ascontiguousarray(drawn, array.dtype)
    return found


def pictures_like(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise (n, channels, h, w) of unit variance with an amplitude of ``1 / f ** FALL``."""
    count, _, height, width = shape
    lowest = 1 / max(height, width)
    falls = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    falls = np.maximum(falls, lowest) ** -FALL
    drawn = []
    for own in ((count, 1, height, width), shape):
        white = np.fft.fft2(generator.standard_normal(own))
        noise = np.fft.ifft2(white * falls).real
        drawn.append(noise / noise.std())
    return np.asarray(SHARED * drawn[0] + np.sqrt(1 - SHARED**2) * drawn[1])
