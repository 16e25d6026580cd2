"""Channels that nearly repeat each other: which one stands for which, and how to merge them.

Removing a channel that another one follows costs nothing once the readers' weights of the removed
channel are added to those of the one that stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxprune.axes import Mask, Values
from onnxprune.coupling import Coupling, Group
from onnxprune.model import Array
from onnxprune.oracle import FLOATS
from onnxprune.passes.score.chains import Site, Users, ratios, users
from onnxprune.passes.score.hashing import Indices, Rows, nearest
from onnxprune.passes.score.magnitude import weights
from onnxprune.passes.score.slices import as_float, rows
from onnxprune.plan import Keep

TOLERANCE: Final = 0.25  # relative error of a channel that another one stands for


@dataclass(frozen=True)
class Twins:
    """Channels of one group for which others stand.

    Attributes:
        removed: the channels (t,) that can go.
        kept: the channels (t,) that stand for them; none of these is in ``removed``.
        errors: what the kept channel's weights can't say of the removed one's (t,), relative.
        ratios: by parameter and reading axis, how often (t,) the kept channel's weights get those
            of the removed one.
    """

    removed: Indices
    kept: Indices
    errors: Values
    ratios: Mapping[Site, Values]

    def take(self, chosen: npt.NDArray[np.bool_]) -> Twins:
        """Those of a mask (t,)."""
        found = {site: ratio[chosen] for site, ratio in self.ratios.items()}
        return Twins(self.removed[chosen], self.kept[chosen], self.errors[chosen], found)


def twins(
    coupling: Coupling,
    nodes: Users,
    group: Group,
    seed: int,
    tolerance: float,
    keep: Mask | None = None,
) -> Twins | None:
    """The channels of a group for which others can stand; None if there are none.

    A mixing group has no twins: its norms see what is removed.

    Args:
        coupling: the structure of the model.
        nodes: its ``users``.
        group: the group.
        seed: the seed of the hash.
        tolerance: the largest relative error of what counts as equal.
        keep: where given, the kept stand for the removed; else the larger for the smaller.
    """
    if group.mixing or all(m.contracted for m in group.members):
        return None
    units, sizes = _directions(coupling, group)
    order = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    best, cosines = nearest(units, order if keep is None else (~keep).astype(np.intp), seed)
    least = np.sqrt(1 - tolerance**2)
    standing: dict[int, int] = {}
    for j in np.argsort(order):
        i = standing.get(int(best[j]), int(best[j]))
        if i != best[j]:  # the nearest goes too: ask the one that stands for it
            cosines[j] = min(1.0, float(units[i] @ units[j]))
        if i >= 0 and cosines[j] >= least:
            standing[int(j)] = i
    removed = np.array(sorted(standing), np.intp)
    kept = np.array([standing[j] for j in removed], np.intp)
    if not len(removed):
        return None
    sites = ratios(coupling, nodes, group, (removed, kept), tolerance)
    if not sites or any(coupling.model.params[name].dtype not in FLOATS for name, _ in sites):
        return None
    errors = np.sqrt(1 - np.square(cosines[removed].astype(np.float64)))
    found = Twins(removed, kept, errors, sites)
    return found.take(np.all([np.isfinite(ratio) for ratio in sites.values()], axis=0))


def _directions(coupling: Coupling, group: Group) -> tuple[Rows, Values]:
    """What makes each channel (size, f), with norm 1; and how large it is (size,)."""
    pieces, sizes = [], np.zeros(group.size)
    made = [m for m in group.members if not m.contracted]
    for m in [m for m in weights(coupling, group) if not m.contracted] or made:
        values = as_float(coupling.model.params[m.param].read())
        slices = rows(coupling.factors, m.layout, m.axis, values, group.factor)
        norms = np.linalg.norm(slices, axis=1)
        # Each member has the same say; so a channel keeps its direction when one member scales.
        pieces.append(slices / np.where(norms > 0, norms, 1)[:, None])
        sizes += norms / (norms.mean() or 1)
    table = np.concatenate(pieces, axis=1, dtype=np.float32)
    table /= np.maximum(np.linalg.norm(table, axis=1), np.float32(1e-30))[:, None]
    return table, sizes


def merges(
    coupling: Coupling, keep: Keep, seed: int = 0, tolerance: float = TOLERANCE
) -> dict[int, Twins]:
    """By factor the removed channels for which a kept one stands.

    Args:
        coupling: the structure of the model.
        keep: kept indices (size,) by factor.
        seed: the seed that the scores were made with.
        tolerance: the largest relative error of what counts as equal.
    """
    found, nodes = {}, users(coupling)
    for group in coupling.groups:
        mask = keep.get(group.factor)
        if mask is None or mask.all():
            continue
        pairs = twins(coupling, nodes, group, seed, tolerance, mask)
        if pairs is not None and len(pairs.removed):
            found[group.factor] = pairs
    return found


def merge_weights(coupling: Coupling, merged: Mapping[int, Twins]) -> dict[str, Array]:
    """The readers' parameters, full size, with the removed channels' weights added to the kept's.

    Args:
        coupling: the structure of the model.
        merged: what ``merges`` found.

    Returns:
        By parameter what ``shrink`` and ``verify`` take as ``values``.
    """
    values: dict[str, Array] = {}
    for factor, pairs in merged.items():
        for (param, axis), ratio in pairs.ratios.items():
            if param not in values:
                values[param] = as_float(coupling.model.params[param].read()).copy()
            moved = np.moveaxis(values[param], axis, 0)
            own = np.arange(len(moved))
            places = rows(coupling.factors, coupling.layouts[param][axis], 0, own, factor)
            target, source = places[pairs.kept].ravel(), places[pairs.removed].ravel()
            times = np.repeat(ratio, places.shape[1]).reshape(-1, *[1] * (moved.ndim - 1))
            np.add.at(moved, target, (times * moved[source]).astype(moved.dtype))
    return {
        name: array.astype(coupling.model.params[name].read().dtype, copy=False)
        for name, array in values.items()
    }
