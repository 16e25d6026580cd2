"""Batches for training: every epoch another order, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxprune.calibration import Batches
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array
from onnxprune.runtime import Feeds


class Batch(NamedTuple):
    """Feeds, labels, and which samples they are."""

    feeds: Feeds
    labels: Array
    part: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The batches of each epoch.

    Attributes:
        source: samples, and the batches that the model takes.
        size: samples of a step in each process; a model of a fixed batch gets several at a step.
        seed: of the order.
        world: so many processes share each step.
        rank: which of them this one is.
    """

    source: Batches
    size: int
    seed: int
    world: int = 1
    rank: int = 0

    @property
    def free(self) -> bool:
        """Whether samples may be put together anew."""
        return self.source.samples.kinds is None and not self.source.form.whole

    @property
    def fixed(self) -> int:
        """How many samples the model takes at a time: as many as a step has, if it may."""
        return self.source.form.batch or self.size

    def epoch(self, number: int) -> list[list[Sequence[int]]]:
        """For each step of an epoch this process's batches, as indices of samples."""
        order = np.random.default_rng([self.seed, number])
        if not self.free:
            parts = [self.source.parts[i] for i in order.permutation(len(self.source.parts))]
            most = max(map(len, parts))
            each = max(1, self.size // most) * self.world
        else:
            indices = order.permutation([i for part in self.source.parts for i in part]).tolist()
            width = min(self.fixed, max(1, len(indices) // self.world))
            parts = [indices[i : i + width] for i in range(0, len(indices), width)]
            parts = [p for p in parts if len(p) == width] or parts[:1]
            each = max(1, self.size // width) * self.world
        steps = [parts[i : i + each] for i in range(0, len(parts), each)]
        steps = [step for step in steps if len(step) >= self.world]
        return [step[self.rank :: self.world] for step in steps]

    def read(self, part: Sequence[int]) -> Batch:
        """One batch."""
        batches = Batches(self.source.samples, self.source.form, [part])
        feeds, labels = batches[0]
        return Batch(feeds, labels, tuple(part))

    def check(self) -> None:
        """See that there is a step at all.

        Raises:
            OnnxPruneError: there are too few samples.
        """
        if not self.epoch(0):
            raise OnnxPruneError(
                f"{self.world} processes want at least a batch each: there are too few samples"
            )

    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.epoch(0))


def held_out(source: Batches, share: float = 0.125) -> tuple[Batches, Batches]:
    """Samples to train on, and at least one to judge by; of a single one both are all.

    Where samples may not be put together anew, whole batches are held back.
    """
    form, width = source.form, max(map(len, source.parts))
    free = source.samples.kinds is None and not form.whole and form.batch is None
    units = [(i,) for part in source.parts for i in part] if free else list(source.parts)
    if len(units) < 2:
        return source, source
    most = len(units) - max(1, round(share * len(units)))
    train, held = (
        Batches(source.samples, form, _joined(own, width) if free else own)
        for own in (units[:most], units[most:])
    )
    return train, held


def _joined(units: Sequence[Sequence[int]], width: int) -> list[tuple[int, ...]]:
    """Single samples as batches."""
    indices = [i for unit in units for i in unit]
    return [tuple(indices[i : i + width]) for i in range(0, len(indices), width)]
