"""Refit the two weights of a recurrent layer, one after the other; see ``onnxprune.recurrent``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxprune.gathering import SAME, is_held
from onnxprune.model import Array
from onnxprune.moments import TINY, Moments, best, is_finite, joined, ridge
from onnxprune.recurrent import Alone, B, Operands, R, Recurrent, W, X, operands_of
from onnxprune.refit import COMPUTED, SHARED, Refit
from onnxprune.results import Layer

ROWS: Final = 24  # rows for each number that a weight multiplies, at most
LEAST_ROWS: Final = 1 << 14
RESET_GATES: Final = 3  # of a layer whose last gate scales the state


@dataclass(frozen=True)
class Seen:
    """What one batch shows.

    Attributes:
        read: operands of the pruned layer, its weights apart.
        x, h: (d, p, *) what the pruned layer reads, and the kept states before, of the original.
        from_x, from_h: (d, p, o) what both products give to kept gates in the original.
        states: the kept states after each step of the original, as its node gives them.
    """

    read: list[Array | None]
    x: Array
    h: Array
    from_x: Array
    from_h: Array
    states: Array


def fit_recurrent(work: Refit, fitted: Recurrent) -> Layer | None:
    """Fit a recurrent layer; None where it misses nothing.

    Args:
        work: the run over all layers, which comes to this one.
        fitted: the layer.
    """
    node = fitted.node
    place = work.pruned.index[node.key]
    work.pruned.advance(place)
    reason = _refusal(work, fitted)
    if not reason:
        for name in fitted.reads:
            if name not in work.coupling.model.params:
                work.reach(name)
        layer = _Fit(work, fitted).layer()
    work.done(fitted.reads)
    return Layer(node.label, 0.0, 0.0, None, reason) if reason else layer


def _refusal(work: Refit, fitted: Recurrent) -> str:
    """Why a layer can't change."""
    node = fitted.node
    stored = [k for k in (W, R, B) if fitted.has(k)]
    if any(work.constant(node, k) is None for k in stored):
        return COMPUTED
    if any(name in work.original.constants for name in fitted.reads):
        return "its first state is computed in the graph"
    if any(work.uses[node.inputs[k]] > 1 for k in stored):
        return SHARED
    return ""


class _Fit:
    """The fit of one layer."""

    def __init__(self, work: Refit, fitted: Recurrent) -> None:
        self.work, self.fitted, self.node = work, fitted, fitted.node
        params, names = work.coupling.model.params, fitted.node.inputs
        self.whole = [np.asarray(params[name].read(), np.float32) for name in names[W : R + 1]]
        axes = work.coupling.layouts[names[W]][1], work.coupling.layouts[names[R]][2]
        self.gates, self.units = (
            np.flatnonzero(work.factors.mask(axis, work.keep)) for axis in axes
        )
        place = work.pruned.index[self.node.key]
        own = work.original.nodes[work.original.index[self.node.key]]
        self.before = Alone(work.original.proto, own)
        self.after = Alone(work.original.proto, work.pruned.nodes[place])
        count = work.pruned.count
        self.batches = [self.seen(batch) for batch in range(count)]
        self.held = [b for b in range(count) if is_held(b, count)] or list(range(count))

    def layer(self) -> Layer | None:
        """Fit one weight, then the other; keep what brings the states nearer."""
        scale = max(sum(self.spread(batch) for batch in self.held), TINY)
        params = [self.constant(position) for position in (W, R, B)]
        before = lost = self.missed(params)
        if before <= SAME * scale:
            return None
        strength: float | None = None
        for position in (W, R):
            found = self.changed(params, position)
            if found is None:
                continue
            own = self.missed(found[0])
            if own < lost:
                (params, strength), lost = found, own
        why = "" if strength is not None else "no fit does better on other samples"
        if strength is not None:
            for position, value in zip((W, R, B), params, strict=True):
                if value is not None:
                    self.work.put(self.node, position, value)
        return Layer(self.node.label, before / scale, lost / scale, strength, why)

    def changed(self, params: Operands, position: int) -> tuple[list[Array | None], float] | None:
        """All weights, with one of them fitted, and its bias; None where it misses nothing."""
        weight, bias = params[position - W], params[B - W]
        assert weight is not None, "a layer without it is refused"
        parts = [Moments(), Moments()]
        energy = 0.0
        matrix = weight.astype(np.float32).transpose(0, 2, 1)
        for batch, seen in enumerate(self.batches):
            rows, wanted = (seen.x, seen.from_x) if position == W else (seen.h, seen.from_h)
            energy += float(np.square(wanted, dtype=np.float64).sum())
            missed = wanted - np.matmul(rows, matrix)
            if bias is not None:
                rows = np.concatenate([rows, np.ones((*rows.shape[:2], 1), rows.dtype)], axis=2)
            parts[is_held(batch, len(self.batches))].add(rows, missed)
        whole = joined(parts)
        if whole.energy <= SAME * energy or not whole.count:
            return None
        judge = parts[1] if parts[1].count else parts[0]
        _, strength = best(parts[0], judge, bias is not None)
        delta = ridge(whole, strength, bias is not None)
        if position == R and self.fitted.reset:  # its last gate multiplies another state
            delta[:, :, -delta.shape[2] // RESET_GATES :] = 0
        found = list(params)
        found[position - W] = _summed(weight, delta[:, : matrix.shape[1]].transpose(0, 2, 1))
        if bias is not None:
            half = bias.shape[1] // 2
            added = np.zeros(bias.shape)
            own = slice(None, half) if position == W else slice(half, None)
            added[:, own] = delta[:, matrix.shape[1]]
            found[B - W] = _summed(bias, added)
        finite = all(is_finite(own, own.dtype) for own in found if own is not None)
        return (found, strength) if finite else None

    def missed(self, params: Operands) -> float:
        """The energy that the states miss of the original's, on samples held back."""
        lost = 0.0
        for batch in self.held:
            seen = self.batches[batch]
            own = [*seen.read]
            own[W : B + 1] = params
            lost += float(np.square(self.after(own) - seen.states, dtype=np.float64).sum())
        return lost

    def spread(self, batch: int) -> float:
        """The variance of the original's kept states, summed over rows."""
        states = self.batches[batch].states.astype(np.float64)
        flat = states.reshape(-1, states.shape[-1])
        return float(np.square(flat - flat.mean(axis=0)).sum())

    def seen(self, batch: int) -> Seen:
        """What one batch shows, of a choice of steps."""
        old = operands_of(self.work.original, self.fitted, batch)
        new = operands_of(self.work.pruned, self.fitted, batch)
        wide, narrow = (np.asarray(own, np.float32) for own in (old[X], new[X]) if own is not None)
        y = self.before(old)
        states = self.fitted.states(y, old)
        width = narrow.shape[2] + len(self.units)
        most = -(-max(ROWS * width, LEAST_ROWS) // self.work.pruned.count)
        at, of = self.fitted.steps(old, most, self.work.generator)
        ways = len(states)
        from_x = np.matmul(wide[at, of], self.whole[0][:, self.gates].transpose(0, 2, 1))
        h = states[:, at, of]
        from_h = np.matmul(h, self.whole[1][:, self.gates].transpose(0, 2, 1))
        x = np.broadcast_to(narrow[at, of], (ways, len(at), narrow.shape[2]))
        new[W : B + 1] = [None] * 3
        return Seen(new, x, h[..., self.units], from_x, from_h, y[..., self.units])

    def constant(self, position: int) -> Array | None:
        """A stored operand, as the pruned model has it."""
        return self.work.constant(self.node, position) if self.fitted.has(position) else None


def _summed(value: Array, added: Array) -> Array:
    return np.asarray(value + added, value.dtype)
