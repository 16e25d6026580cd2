"""The oracle's side of a comparison: inputs on which the original runs, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from onnxprune.data import check_inputs, further_inputs, random_inputs
from onnxprune.errors import RunError
from onnxprune.model import Model
from onnxprune.pair import Pair, Results, Runner
from onnxprune.runtime import Feeds

RUNS: Final = 2  # dynamic axes at two sizes, or two inputs of the same size
TRIALS: Final = 64  # of other sizes, where the original does not run at the usual ones
REAL: Final = "give real ones (--inputs FILE.npz)"


@dataclass(frozen=True)
class Prepared:
    """The oracle's side: the inputs of each run, and what the graph's outputs should be."""

    pair: Pair
    feeds: tuple[Feeds, ...]
    expected: tuple[Results, ...]

    @property
    def model(self) -> Model:
        """The original."""
        return self.pair.coupling.model


def prepared(
    pair: Pair, inputs: Feeds | None, seed: int, first: tuple[Feeds, ...] | None = None
) -> Prepared:
    """Run the oracle on small random inputs; where it can't, on those of the analysis' sizes.

    Where it can't run on these either, other sizes are tried.

    Args:
        pair: the models.
        inputs: real inputs; random ones where absent.
        seed: the seed of random inputs.
        first: inputs to try before all others.

    Raises:
        RunError: the original runs on none of them.
    """
    model = pair.coupling.model
    runner = pair.oracle(model.outputs)
    if inputs is not None:
        given = check_inputs(inputs, model)
        return Prepared(pair, (given,), expected_of(pair, runner, [given]))
    failure: RunError | None = None
    for feeds in (*((first,) if first else ()), *_choices(model, seed)):
        try:
            return Prepared(pair, feeds, expected_of(pair, runner, feeds))
        except RunError as error:
            failure = failure or error
    raise RunError(f"the original fails on random inputs: {failure}; {REAL}") from failure


def expected_of(pair: Pair, runner: Runner, feeds: Sequence[Feeds]) -> tuple[Results, ...]:
    """What the pruned model should give: of outputs that may lose channels what is kept."""
    model = pair.coupling.model
    return tuple(
        {name: pair.kept(name, x) if name in model.open_io else x for name, x in own.items()}
        for own in run_all(runner, feeds, model.outputs)
    )


def _choices(model: Model, seed: int) -> Iterator[tuple[Feeds, ...]]:
    """Random inputs for all runs, in sizes that more and more models may want."""
    fixed = len(model.samples) == 1
    for small in (True,) if fixed else (True, False):
        yield tuple(
            random_inputs(model, seed + k if fixed else seed, 0 if fixed else k, small)
            for k in range(RUNS)
        )
    pairs = zip(*(further_inputs(model, seed + k) for k in range(RUNS)), strict=True)
    yield from islice(pairs, TRIALS)


def run_all(runner: Runner, feeds: Sequence[Feeds], names: Sequence[str]) -> tuple[Results, ...]:
    """What a runner gives on each of some inputs."""
    return tuple(runner(one, names) for one in feeds)
