"""Recover: let what stayed do the work of what went, from unlabelled inputs alone.

Layers are taken in topological order. For each the kept weights W_K become those W that minimise

    |W x^ + b - t|^2 + penalty |W - W_K|^2

over calibration rows, where x^ is what the layer reads in the pruned model, with everything
before it recovered already, so that errors do not pile up; and t is what it gave in the original.
Where its result is added to another branch, t is the original's sum less the pruned model's other
branch: the layer also mends what came before it. The penalty is chosen on calibration samples that
the fit has not seen; where no choice is better there than W_K, the layer stays as it is. Norms get
new scales and shifts in their turn, for their statistics are those of fewer channels. In the end
the outputs are compared on the samples that were held back: where they are no nearer to the
original's than without recovery, all of it is dropped.

The method is that of channel pruning by reconstruction (He et al. 2017, Channel Pruning for
Accelerating Very Deep Neural Networks; Luo et al. 2017, ThiNet), made asymmetric and sequential,
on all linear operators by the letters of their rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.coupling import Coupling
from onnxprune.fidelity import divergence
from onnxprune.model import Array
from onnxprune.plan import Keep
from onnxprune.refit import Refit, is_held
from onnxprune.results import Layer
from onnxprune.runtime import Feeds
from onnxprune.stepping import Stepper

Progress = Callable[[str], None]
LEAST: Final = 2  # batches: one to fit on, one to judge by
DROPPED: Final = "all of recovery was dropped"


@dataclass(frozen=True)
class Recovery:
    """New values of parameters.

    Attributes:
        values: by parameter the full-size values; indices that the plan removes are as they were.
        layers: what was done, in topological order.
        notes: what the user should know.
    """

    values: dict[str, Array] = field(repr=False)
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


def recover(
    coupling: Coupling,
    keep: Keep,
    shrunk: onnx.ModelProto,
    feeds: Sequence[Feeds],
    *,
    values: Mapping[str, Array] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Recovery:
    """Fit the kept weights of all linear layers to the original.

    Needs the coupling of the original and what ``shrink`` made of it. Changes nothing.

    Args:
        coupling: the structure of the original model.
        keep: kept indices (size,) by factor.
        shrunk: the pruned model.
        feeds: calibration inputs, in two batches or more.
        values: full-size values that the pruned model has instead of the original's.
        seed: of the choice of rows.
        threads: threads inside an operator.
        progress: is told the name of each layer.

    Raises:
        RunError: ONNX Runtime fails on the calibration inputs.
    """
    if len(feeds) < LEAST:
        note = "not recovered: that wants two batches of calibration inputs or more"
        return Recovery({}, (), (note,))
    folder = coupling.model.folder
    work = Refit(
        coupling,
        keep,
        Stepper(coupling.model.proto, folder, feeds, threads),
        Stepper(shrunk, folder, feeds, threads),
        dict(values or {}),
        np.random.default_rng(seed),
    )
    layers = []
    for fitted, branch in work.found():
        if progress is not None:
            progress(fitted.node.label)
        layer = work.fit(fitted, branch)
        if layer is not None:
            layers.append(layer)
    before, after = _apart(work, shrunk, feeds, threads)
    if work.changed and before > 0 and not after < before:
        note = (
            f"recovery was dropped: on samples held back the outputs were {after:.3g} from the "
            f"original's with it, {before:.3g} without"
        )
        return Recovery(
            {}, tuple(replace(x, strength=None, reason=DROPPED) for x in layers), (note,)
        )
    return Recovery(work.changed, tuple(layers))


def _apart(
    work: Refit, shrunk: onnx.ModelProto, feeds: Sequence[Feeds], threads: int
) -> tuple[float, float]:
    """How far the outputs are from the original's without recovery and with it."""
    for stepper in (work.original, work.pruned):
        stepper.advance(len(stepper.nodes))
    runner = runtime.runner(shrunk, work.original.folder, threads)
    before = after = 0.0
    for batch, feed in enumerate(feeds):
        if is_held(batch, len(feeds)):
            both = work.original.values.keys() & work.pruned.values.keys()
            names = [name for name in work.original.outputs if name in both]
            expected = [work.original.values[name][batch] for name in names]
            bare = runner(feed)
            before += divergence([bare[name] for name in names], expected)
            after += divergence([work.pruned.values[name][batch] for name in names], expected)
    return before, after
