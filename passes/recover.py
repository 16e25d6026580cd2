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
original's than without recovery, all of it is dropped. Weights that several layers share come
last (``onnxprune.sharing``); recurrent ones are two products (``onnxprune.recurrent``).

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
from onnxprune.gathering import is_held
from onnxprune.model import Array
from onnxprune.plan import Keep
from onnxprune.recurrent import Recurrent
from onnxprune.refit import Refit
from onnxprune.refit_recurrent import fit_recurrent
from onnxprune.results import Layer
from onnxprune.runtime import Feeds
from onnxprune.sharing import fit_shared, shared_weights
from onnxprune.stepping import Stepper

Progress = Callable[[str], None]
LEAST: Final = 2  # batches: one to fit on, one to judge by
DROPPED: Final = "all of recovery was dropped"
NOT_SHARED: Final = (
    "{} weights that several layers share stay as they are: on samples held back the outputs were "
    "no nearer to the original's with a fit"
)


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
    layers = _layers(work, progress)
    judge = _Judge(work, shrunk, feeds, threads)
    before, after = judge.before, judge.after()
    if work.changed and before > 0 and not after < before:
        note = (
            f"recovery was dropped: on samples held back the outputs were {after:.3g} from the "
            f"original's with it, {before:.3g} without"
        )
        return Recovery(
            {}, tuple(replace(x, strength=None, reason=DROPPED) for x in layers), (note,)
        )
    shared, alone = shared_weights(work), dict(work.changed)
    if not shared or not after > 0:
        return Recovery(alone, tuple(layers))
    told = fit_shared(work, shared, feeds)
    if not judge.after() < after:
        return Recovery(alone, tuple(layers), (NOT_SHARED.format(len(shared)),))
    return Recovery(work.changed, tuple(told.get(layer.node, layer) for layer in layers))


def _layers(work: Refit, progress: Progress | None) -> list[Layer]:
    """Fit all layers, one after the other; what was done to each that misses anything."""
    layers = work.passed_over()
    for fitted, branch in work.found():
        if progress is not None:
            progress(fitted.node.label)
        if isinstance(fitted, Recurrent):
            layer = fit_recurrent(work, fitted)
        else:
            layer = work.fit(fitted, branch)
        if layer is not None:
            layers.append(layer)
    return layers


class _Judge:
    """How far the outputs are from the original's on samples that are held back.

    Attributes:
        before: without recovery.
    """

    def __init__(
        self, work: Refit, shrunk: onnx.ModelProto, feeds: Sequence[Feeds], threads: int
    ) -> None:
        work.original.advance(len(work.original.nodes))
        work.pruned.advance(len(work.pruned.nodes))
        both = work.original.values.keys() & work.pruned.values.keys()
        self.names = [name for name in work.original.outputs if name in both]
        self.work, self.expected, self.before = work, {}, 0.0
        runner = runtime.runner(shrunk, work.original.folder, threads)
        for batch, feed in enumerate(feeds):
            if is_held(batch, len(feeds)):
                self.expected[batch] = [work.original.values[x][batch] for x in self.names]
                bare = runner(feed)
                self.before += divergence([bare[x] for x in self.names], self.expected[batch])

    def after(self) -> float:
        """With what is fitted by now."""
        pruned = self.work.pruned
        pruned.advance(len(pruned.nodes))
        return sum(
            divergence([pruned.values[x][batch] for x in self.names], expected)
            for batch, expected in self.expected.items()
        )
