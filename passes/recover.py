"""Recover: let what stayed do the work of what went, from unlabelled inputs alone.

Layers are taken in topological order. For each the kept weights W_K become those W that minimise

    |W x^ + b - t|^2 + penalty |W - W_K|^2

over calibration rows, where x^ is what the layer reads in the pruned model, with everything
before it recovered already, so that errors do not pile up; and t is what it gave in the original.
Where its result is added to another branch, t is the original's sum less the pruned model's other
branch: the layer also mends what came before it. The penalty is chosen on calibration samples that
the fit has not seen; where no choice is better there than W_K, the layer stays as it is. Norms get
new scales and shifts in their turn, for their statistics are those of fewer channels.

The method is that of channel pruning by reconstruction (He et al. 2017, Channel Pruning for
Accelerating Very Deep Neural Networks; Luo et al. 2017, ThiNet), made asymmetric and sequential,
on all linear operators by the letters of their rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.coupling import Coupling
from onnxprune.model import Array
from onnxprune.plan import Keep
from onnxprune.refit import Refit
from onnxprune.results import Layer
from onnxprune.runtime import Feeds
from onnxprune.stepping import Stepper

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recovery:
    """New values of parameters.

    Attributes:
        values: by parameter the full-size values; indices that the plan removes are as they were.
        layers: what was done, in topological order.
    """

    values: dict[str, Array] = field(repr=False)
    layers: tuple[Layer, ...]


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
    return Recovery(work.changed, tuple(layers))
