"""Samples where there are none: random inputs, and inputs that look right to the model itself."""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxprune.calibration import BATCHES
from onnxprune.data import random_inputs
from onnxprune.model import Model
from onnxprune.runtime import Feeds

RUNS: Final = 16  # feeds, at most
NOTE: Final = (
    "there is no calibration data: random inputs stand in for it, which tell little of what the "
    "model sees; some hundred real inputs (--calibration) keep far more of its accuracy"
)


def synthetic_samples(model: Model, *, samples: int = 64, seed: int = 0) -> tuple[Feeds, ...]:
    """Feeds of random inputs, as the proof uses them; ``NOTE`` is to be told with them.

    Args:
        model: the model.
        samples: about so many in all.
        seed: of the values.

    Raises:
        OnnxPruneError: an input is of a type that has no random values.
    """
    first = random_inputs(model, seed)
    each = max((len(np.atleast_1d(array)) for array in first.values()), default=1)
    runs = min(max(-(-samples // each), BATCHES), RUNS)
    return (first, *(random_inputs(model, seed + k) for k in range(1, runs)))
