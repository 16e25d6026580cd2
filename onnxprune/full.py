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
from onnxprune.tables import by_rows
from onnxprune.views import read_tensor


def kept_part(coupling: Coupling, keep: Keep, name: str, value: Any) -> Any:
    """What a pruned model has of a value of the original, whose dynamic axes may have any size."""
    layouts, factors = coupling.layouts.get(name, ()), coupling.factors
    if not isinstance(value, np.ndarray) or value.ndim != len(layouts):
        return value
    masks = {
        axis: factors.mask(layout, keep)
        for axis, layout in enumerate(layouts)
        if not isinstance(factors.normal(layout), Opaque)
    }
    lossy = [axis for axis, mask in masks.items() if not mask.all()]
    lossy.sort(key=lambda axis: -masks[axis].ndim)  # tables first, while all rows are there
    for axis in lossy:
        mask = masks[axis]
        if mask.ndim > 1:
            value = _by_rows(coupling, layouts, axis, mask, value)
        else:
            mask = _repeated(factors, keep, layouts[axis], mask, value.shape[axis])
            value = np.take(value, np.flatnonzero(mask), axis=axis)
    return value


def _repeated(factors: Factors, keep: Keep, layout: Layout, mask: Mask, size: int) -> Mask:
    """The mask of an axis ``(batch head)`` for another batch than that of the analysis."""
    inner = None if size == len(mask) else fixed_part(factors, layout)
    if inner is None:
        return mask
    own = factors.mask(inner, keep)
    return np.tile(own, size // len(own))


def _by_rows(
    coupling: Coupling, layouts: tuple[Layout, ...], axis: int, table: Mask, value: Array
) -> Array:
    """What is left of an axis of which each row keeps other indices (rows, size)."""
    place, own = by_rows(coupling.factors, layouts, axis, table)
    moved = np.moveaxis(value, (place, axis), (0, 1))
    left = moved[own].reshape(len(own), -1, *moved.shape[2:])
    return np.moveaxis(left, (0, 1), (place, axis))


def full_size(coupling: Coupling, keep: Keep, name: str, small: Array, base: Array) -> Array:
    """A parameter at full size: what is kept from ``small``, the rest from ``base``."""
    full = np.array(base)
    masks = [coupling.factors.mask(layout, keep) for layout in coupling.layouts[name]]
    if any(mask.ndim > 1 for mask in masks):
        places = kept_part(coupling, keep, name, np.arange(full.size).reshape(full.shape))
        full.reshape(-1)[places] = small
        return full
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
