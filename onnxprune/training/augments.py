"""More samples of the same: what a teacher can answer for, whatever it shows.

Random numbers are torch's, whose state a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from onnxprune.model import Array
from onnxprune.torch_bridge.lazy import torch
from onnxprune.training.stream import Batch

SHIFT: Final = 0.125  # of the height and width, at most
MIXED: Final = 0.5  # the share of samples that are mixed with others

Random = np.random.Generator


def flip(x: Array, random: Random) -> Array:
    """Half of the pictures (n, c, h, w) the other way round."""
    chosen = random.random(len(x)) < 0.5
    return np.where(chosen[:, None, None, None], x[..., ::-1], x)


def shift(x: Array, random: Random) -> Array:
    """Pictures (n, c, h, w) moved, their borders repeated."""
    height, width = x.shape[2:]
    rows = _moved(height, len(x), random)[:, None, :, None]
    columns = _moved(width, len(x), random)[:, None, None, :]
    return np.take_along_axis(np.take_along_axis(x, rows, 2), columns, 3)


def _moved(size: int, count: int, random: Random) -> Array:
    """Which index each place shows, (count, size)."""
    most = int(SHIFT * size)
    moves = random.integers(-most, most + 1, count)
    return np.asarray(np.clip(np.arange(size) + moves[:, None], 0, size - 1))


def mix(x: Array, random: Random) -> Array:
    """Some samples as weighted means with others."""
    share = np.where(random.random(len(x)) < MIXED, random.random(len(x)), 1.0)
    share = share.reshape(-1, *([1] * (x.ndim - 1))).astype(x.dtype)
    other = x[random.permutation(len(x))]
    return np.asarray(share * x + (1 - share) * other, x.dtype)


# Name: what it does, and to how many axes; None: to any.
AUGMENTS: Final[dict[str, tuple[Callable[[Array, Random], Array], int | None]]] = {
    "flip": (flip, 4),
    "mix": (mix, None),
    "shift": (shift, 4),
}
MIXING: Final = frozenset({"mix"})


def augmented(batch: Batch, names: Sequence[str]) -> Batch:
    """The batch with changed floats, as new samples; what has other axes stays."""
    random = np.random.default_rng(int(torch.randint(2**31, (1,))))
    feeds = dict(batch.feeds)
    for name in sorted(names):
        function, rank = AUGMENTS[name]
        for key, x in feeds.items():
            if x.dtype.kind == "f" and x.ndim > 1 and rank in (None, x.ndim):
                feeds[key] = np.ascontiguousarray(function(x, random))
    return Batch(feeds, batch.labels, ())
