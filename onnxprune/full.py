"""Values at full size and as a pruned model has them: one from the other."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.axes import Factors, Layout, Mask, Opaque
from onnxprune.coupling import Coupling
from onnxprune.matching import fixed_part
from onnxprune.model import Array, first_name
from onnxprune.plan import Keep
from onnxprune.shapes import stored
from onnxprune.views import read_tensor


def kept_part(coupling: Coupling, keep: Keep, name: str, value: Any) -> Any:
    """What a pruned model has of a value of the original, whose dynamic axes may have any size."""
    layouts, factors = coupling.layouts.get(name, ()), coupling.factors
    if not isinstance(value, np.ndarray) or value.ndim != len(layouts):
        return value
    for axis, layout in enumerate(layouts):
        if not isinstance(factors.normal(layout), Opaque):
            mask = factors.mask(layout, keep)
            if not mask.all():
                mask = _repeated(factors, keep, layout, mask, value.shape[axis])
                value = np.take(value, np.flatnonzero(mask), axis=axis)
    return value


def _repeated(factors: Factors, keep: Keep, layout: Layout, mask: Mask, size: int) -> Mask:
    """The mask of an axis ``(batch head)`` for another batch than that of the analysis."""
    inner = None if size == len(mask) else fixed_part(factors, layout)
    if inner is None:
        return mask
    own = factors.mask(inner, keep)
    return np.tile(own, size // len(own))


def full_size(coupling: Coupling, keep: Keep, name: str, small: Array, base: Array) -> Array:
    """A parameter at full size: what is kept from ``small``, the rest from ``base``."""
    full = np.array(base)
    masks = [coupling.factors.mask(layout, keep) for layout in coupling.layouts[name]]
    full[np.ix_(*(np.flatnonzero(mask) for mask in masks))] = small
    return full


def fitted_values(
    coupling: Coupling,
    keep: Keep,
    small: onnx.ModelProto,
    names: Collection[str],
    folder: Path | None = None,
) -> dict[str, Array]:
    """What a pruned model has of these parameters, at full size.

    A proof that goes by these says that the pruned model is the original with these weights and
    without the removed indices. All other weights have to be the original's.

    Args:
        coupling: the structure of the original model.
        keep: kept indices (size,) by factor.
        small: the pruned model.
        names: the parameters that were fitted.
        folder: where its external data lies.
    """
    tensors = stored(small)
    nodes = {first_name(node.output): node for node in small.graph.node}
    found: dict[str, Array] = {}
    for node in coupling.model.nodes:
        own = nodes.get(node.key)
        for position, name in enumerate(node.inputs):
            if name not in names or name in found or own is None or position >= len(own.input):
                continue
            tensor = tensors.get(own.input[position])
            if tensor is None:
                continue
            base, value = coupling.model.params[name].read(), read_tensor(tensor, folder)
            if value.shape == kept_part(coupling, keep, name, base).shape:
                found[name] = full_size(coupling, keep, name, value, base)
    return found
