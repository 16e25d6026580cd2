"""The latency of a model as a function of kept counts, fitted to measured times.

What a runtime executes as one kernel is a chain of nodes (see ``onnxprune.work``). Its time is
taken for a sum of non-negative shares: of its multiply-accumulates, of the elements that it reads
and writes, and of what it takes in any case. All of these are weights of the products that costs
are made of, so the latency of the whole model is one more vector of weights beside that of the
MACs.

Kernels have steps, which a sum of products has not. The fit goes by counts that kernels like
(``onnxprune.alignment``), and those are what a selection may choose from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.cost import CostModel
from onnxprune.polynomials import ROW_OF_ONE
from onnxprune.trace import Kernel
from onnxprune.work import FIXED, Work

MAX_SHARES: Final = 7  # kinds of work of one chain that are told apart


@dataclass(frozen=True)
class Chain:
    """Nodes that run as one kernel, and the milliseconds that one unit of each work takes."""

    nodes: tuple[str, ...]
    prices: Mapping[str, float]


@dataclass(frozen=True)
class Latency:
    """A fitted model of the latency.

    Attributes:
        chains: what the kernels take.
        scale: what the sum of the kernels is multiplied by.
        rest_ms: what a run takes outside of its kernels.
        error: the mean relative error on the runs that it was fitted to.
    """

    chains: tuple[Chain, ...]
    scale: float = 1.0
    rest_ms: float = 0.0
    error: float = 0.0

    def weights(self, work: Work, rows: int) -> Values:
        """The milliseconds of a run, as weights (r,) of the products."""
        total = np.zeros(rows)
        for chain in self.chains:
            for kind, own in _kinds(work, chain.nodes, rows).items():
                total += chain.prices.get(kind, 0.0) * own
        total *= self.scale
        total[ROW_OF_ONE] += self.rest_ms
        return total

    def scaled(self, factor: float) -> Latency:
        """The same model of runs that take this many times as long."""
        return replace(self, scale=self.scale * factor, rest_ms=self.rest_ms * factor)


def with_latency(cost: CostModel, latency: Latency) -> CostModel:
    """The costs of a model, its latency with them."""
    return replace(cost, latency=latency.weights(cost.work, len(cost.sizes.rows)))


def fit(
    cost: CostModel, counts: Sequence[Values], runs: Sequence[Sequence[Kernel]], whole_ms: Values
) -> Latency:
    """Fit the latency to runs of the model at several widths.

    Args:
        cost: its costs.
        counts: the kept counts (v,) of each run, in the order of the groups; the first is full.
        runs: the kernels of each run.
        whole_ms: what each run (k,) took in all, measured without a profile.
    """
    products = np.stack([cost.sizes.at(kept) for kept in counts])
    chains, times = joined(runs)
    if len(chains) == 1:  # compiled: what a run takes is better known without the profiler
        times = whole_ms[:, None]
    rows = products.shape[1]
    found = []
    for nodes, own in zip(chains, times.T, strict=True):
        kinds = _kinds(cost.work, nodes, rows)
        amounts = {kind: products @ weights for kind, weights in kinds.items()}
        found.append(Chain(nodes, _prices(amounts, own)))
    bare = Latency(tuple(found))
    predicted = products @ bare.weights(cost.work, rows)
    scale, rest = _line(predicted, whole_ms)
    error = float(np.mean(np.abs(scale * predicted + rest - whole_ms) / whole_ms))
    return replace(bare, scale=scale, rest_ms=rest, error=error)


def joined(runs: Sequence[Sequence[Kernel]]) -> tuple[list[tuple[str, ...]], Values]:
    """The chains that hold the kernels of all runs, and the milliseconds (runs, chains) of each.

    Widths may change what a runtime fuses: nodes that share a kernel in one run are one chain. What
    a runtime inserts, to lay values out anew, counts to the kernel after it.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for kernels in runs:
        for keys in (sorted(kernel.nodes) for kernel in kernels):
            for key in keys:
                parent[root(key)] = root(keys[0])
    members: dict[str, list[str]] = {}
    for key in list(parent):
        members.setdefault(root(key), []).append(key)
    columns = {key: column for column, key in enumerate(members)}
    times = np.zeros((len(runs), len(members)))
    for row, kernels in enumerate(runs):
        waiting, last = 0.0, 0
        for kernel in kernels:
            waiting += kernel.ms
            if kernel.nodes:
                last = columns[root(kernel.nodes[0])]
                times[row, last] += waiting
                waiting = 0.0
        times[row, last] += waiting
    return [tuple(own) for own in members.values()], times


def _kinds(work: Work, nodes: Iterable[str], rows: int) -> dict[str, Values]:
    """What a chain does, by kind; the largest kinds, where there are too many to tell apart."""
    kinds = work.of(tuple(nodes), rows)
    one = np.zeros(rows)
    one[ROW_OF_ONE] = 1.0
    return {**dict(list(kinds.items())[:MAX_SHARES]), FIXED: one}


def _prices(amounts: Mapping[str, Values], times: Values) -> dict[str, float]:
    """What one unit of each kind costs; none costs less than nothing."""
    full = np.array([own[0] or 1.0 for own in amounts.values()])
    shares = np.stack(list(amounts.values()), axis=1) / full
    found = non_negative(shares, times) / full
    return {kind: float(price) for kind, price in zip(amounts, found, strict=True) if price > 0}


def _line(predicted: Values, measured: Values) -> tuple[float, float]:
    """The scale and the rest, neither below 0, that bring predictions nearest to measurements."""
    columns = np.stack([predicted, np.full(len(predicted), predicted[0])], axis=1)
    relative = columns / measured[:, None]
    scale, rest = non_negative(relative, np.ones(len(measured)))
    return float(scale), float(rest * predicted[0])


def non_negative(columns: Values, target: Values) -> Values:
    """The x (n,) >= 0 that minimises ``|columns @ x - target|``: the best of all subsets.

    There are few columns, so that every set of those that are not 0 can be tried.
    """
    rows, count = columns.shape
    best, least = np.zeros(count), float(target @ target)
    for size in range(1, min(rows, count) + 1):
        for chosen in combinations(range(count), size):
            own = columns[:, chosen]
            x, _, rank, _ = np.linalg.lstsq(own, target, rcond=None)
            if rank < size or (x < 0).any():
                continue
            miss = float(((own @ x - target) ** 2).sum())
            if miss < least * (1 - 1e-9):
                best, least = np.zeros(count), miss
                best[list(chosen)] = x
    return best
