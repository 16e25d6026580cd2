"""What a model costs for any kept counts, computed from the fits without rewriting.

Every cost is made of sizes of values, which are polynomials in the kept counts of the groups
(see ``onnxprune.polynomials``). ``cost_model`` compiles them into arrays once; a call of
``CostModel.cost`` is a handful of numpy operations. What no group touches is added up before.

Costs are those of one sample: where axis 0 of a graph input is dynamic, it counts as 1. Any other
dynamic axis has the size that the model's first sample gives it (see ``onnxprune.dynamic``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import dynamic
from onnxprune.axes import Values
from onnxprune.bodies import draws
from onnxprune.coupling import Coupling
from onnxprune.model import Model, Node, itemsize
from onnxprune.polynomials import ROW_OF_ONE, Indices, Polynomials, Sizes, SizeTable, tally
from onnxprune.storage import Tensors, file_bytes, tensors_of, uses
from onnxprune.work import READ, WRITTEN, Size, Work, work

MEASURES: Final = ("macs", "params", "size_bytes", "peak_bytes", "latency_ms")
# A kernel of ORT's CPU provider does 60 to 100 multiply-accumulates in a nanosecond, and moves 1 to
# 5 elements (fitted on MobileNetV2, EfficientNet-B0, DenseNet-121, ResNet-50, a text detector).
MOVED: Final = 20.0  # multiply-accumulates that take as long as one element read or written
UNKNOWN_TYPE: Final = onnx.TensorProto.FLOAT  # what a value of unknown type is taken for


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model costs.

    Attributes:
        macs: multiply-accumulates of the contractions, for one sample. What depends on constants
            alone is left out, for runtimes compute it once; so are nodes without a rule. Bodies of
            control flow count once.
        params: elements of the float and quantised tensors in use, and of what else a group
            touches; a tensor that several nodes read counts once.
        size_bytes: bytes of the file, external data included.
        peak_bytes: the largest sum of activations alive at once, in the order of the nodes. No
            operator is assumed to work in place; values of unknown shape count 0.
        latency_ms: how long one run takes, by a model of the latency; 0 where there is none (see
            ``onnxprune.latency``).
    """

    macs: int
    params: int
    size_bytes: int
    peak_bytes: int
    latency_ms: float = 0.0


@dataclass(frozen=True)
class Lifetimes:
    """When activations are alive.

    Attributes:
        base: (t,) bytes alive at each node that no group touches.
        rows, scales: (n,) the bytes of each other value are ``scales * products[rows]``.
        starts, stops: (n,) the first node at which it is alive, and the first at which it isn't.
    """

    base: Values
    rows: Indices
    scales: Values
    starts: Indices
    stops: Indices

    def at(self, products: Values) -> Values:
        """The bytes (t,) alive while each node runs."""
        sizes, count = self.scales * products[self.rows], len(self.base) + 1
        steps = tally(self.starts, sizes, count) - tally(self.stops, sizes, count)
        return self.base + np.cumsum(steps)[:-1]

    def weights(self, node: int, rows: int) -> Values:
        """The bytes alive at one node, as weights of the products (r,)."""
        alive = (self.starts <= node) & (node < self.stops)
        return tally(self.rows[alive], self.scales[alive], rows)

    def reaching(self, limit: float, products: Values) -> Values:
        """1 for the products (r,) of values that are alive where more than ``limit`` bytes are."""
        over = np.append(0, np.cumsum(self.at(products) > limit))
        alive = over[self.stops] > over[self.starts]
        return np.minimum(tally(self.rows[alive], self.scales[alive], len(products)), 1.0)


@dataclass(frozen=True)
class CostModel:
    """The costs of a model as functions of kept counts.

    Attributes:
        columns: where each group's factor stands in a vector of kept counts (v,): the order of
            the groups.
        sizes: the products that all costs are made of.
        macs: (r,) weights of the products.
        tensors, lifetimes: what parameters, bytes and peak are made of.
        fixed_params, fixed_bytes: what no group touches.
        work: what each node does.
        effort: (r,) what the nodes take, in multiply-accumulates: those of contractions, and
            those that would take as long as the elements that any node moves.
        latency: (r,) milliseconds as weights of the products; zeros where they are not known.
    """

    columns: Mapping[int, int] = field(repr=False)
    sizes: Sizes = field(repr=False)
    macs: Values = field(repr=False)
    tensors: Tensors = field(repr=False)
    lifetimes: Lifetimes = field(repr=False)
    fixed_params: float
    fixed_bytes: float
    work: Work = field(repr=False)
    effort: Values = field(repr=False)
    latency: Values = field(repr=False)

    def cost(self, counts: Mapping[int, int]) -> Cost:
        """The cost when these counts are kept.

        Args:
            counts: kept count by factor of a group; a factor that is absent keeps all.
        """
        kept = self.sizes.full.copy()
        for factor, count in counts.items():
            kept[self.columns[factor]] = count
        return self.at(kept)

    def at(self, kept: Values) -> Cost:
        """The cost for kept counts (v,) in the order of the groups."""
        products = self.sizes.at(kept)
        elements = self.tensors.at(products)
        return Cost(
            macs=round(float(self.macs @ products)),
            params=round(self.fixed_params + float(elements.sum())),
            size_bytes=round(self.fixed_bytes + float(self.tensors.itemsizes @ elements)),
            peak_bytes=round(float(self.lifetimes.at(products).max(initial=0.0))),
            latency_ms=float(self.latency @ products),
        )

    def slopes(self, kept: Values, measure: str) -> Values:
        """How a measure changes with each kept count (v,), all of which are positive.

        Copies on write are left out; the slope of the peak is that at the node where it lies.
        """
        rows = len(self.sizes.rows)
        if measure == "macs":
            weights = self.macs
        elif measure == "latency_ms":
            weights = self.latency
        elif measure == "peak_bytes":
            node = int(np.argmax(self.lifetimes.at(self.sizes.at(kept))))
            weights = self.lifetimes.weights(node, rows)
        else:
            weights = self.tensors.weights(rows, in_bytes=measure == "size_bytes")
        return self.sizes.gradient(kept, weights)

    def shares(self, measure: str) -> Values:
        """What of a measure, at full size, scales with each group (v,).

        For the multiply-accumulates that is what of the effort does: to be rid of those that take
        long is why there is a budget for them.
        """
        full = self.sizes.full
        slopes, whole = self.slopes(full, measure), float(getattr(self.at(full), measure))
        if measure == "macs":
            slopes = self.sizes.gradient(full, self.effort)
            whole = float(self.effort @ self.sizes.at(full))
        found: Values = slopes * full / whole
        return found

    def touching(self, measure: str, limit: float) -> npt.NDArray[np.bool_]:
        """Which groups (v,) can help to bring a measure down to a limit."""
        full = self.sizes.full
        if measure == "peak_bytes":
            weights = self.lifetimes.reaching(limit, self.sizes.at(full))
            return self.sizes.gradient(full, weights) > 0
        return self.slopes(full, measure) > 0


def cost_model(coupling: Coupling) -> CostModel:
    """Compile the costs of a model.

    Args:
        coupling: its structure; the groups' kept counts are the unknowns.
    """
    unknowns = [group.factor for group in coupling.groups]
    polynomials = Polynomials(coupling.factors, unknowns, single_samples(coupling))
    table = SizeTable(polynomials, unknowns)
    found, fixed_params = uses(coupling, table)
    constant = _constant_values(coupling.model)
    running = [n for n in coupling.model.nodes if not constant.issuperset(n.outputs)]
    activations = dict(_activations(coupling, table, constant))
    alive = list(_alive(coupling.model, running, activations))
    done = work(coupling, table, running, activations)
    macs = [size for _, sizes in done.macs.values() for size in sizes]
    sizes = table.close(np.array([group.size for group in coupling.groups], np.float64))
    products = sizes.at(sizes.full)
    tensors = tensors_of(found, products)
    stored = float(tensors.itemsizes @ tensors.elements)
    return CostModel(
        {factor: column for column, factor in enumerate(unknowns)},
        sizes,
        _summed(macs, len(products)),
        tensors,
        _lifetimes(alive, len(coupling.model.nodes)),
        fixed_params,
        file_bytes(coupling.model) - stored,
        done,
        _effort(done, len(products)),
        np.zeros(len(products)),
    )


def _effort(done: Work, rows: int) -> Values:
    """Multiply-accumulates, and what moving elements takes; fused nodes move none."""
    total = np.zeros(rows)
    for key in done.reads:
        if not done.is_fused(key):
            for kind, own in done.of((key,), rows).items():
                total += own * (MOVED if kind in (READ, WRITTEN) else 1.0)
    return total


def _summed(sizes: list[Size], rows: int) -> Values:
    scales, where = zip(*sizes, strict=True) if sizes else ((), ())
    return tally(np.array(where, np.intp), np.array(scales, np.float64), rows)


def single_samples(coupling: Coupling) -> dict[int, int]:
    """What factors that count samples are for one sample: told by their two sizes."""
    first, second = dynamic.BATCH
    found = {}
    for name, symbols in dynamic.dynamic_axes(coupling.model.proto).items():
        if symbols and symbols[0] is not None and name in coupling.layouts:
            batch = coupling.factors.normal(coupling.layouts[name][0])
            if isinstance(batch, int):
                found[batch] = 1
    for bound in coupling.bound if len(coupling.model.samples) > 1 else ():
        sizes, others = bound.fits[0].sizes, bound.fits[1].sizes
        for letter, layout in bound.letters.items():
            size, other = sizes.get(letter) or 0, others.get(letter) or 0
            if size != other and size * second == other * first:
                batch = coupling.factors.normal(layout)
                if isinstance(batch, int):
                    found[batch] = size // first
    return found


def _constant_values(model: Model) -> set[str]:
    """The values that depend on constants and fixed sizes alone: runtimes compute them once."""
    known = model.samples[0].constants
    constant = {*model.params, *(name for name in known if model.constant(name) is not None)}
    for node in model.nodes:
        reads = [name for name in node.inputs if name]
        if reads and not node.captured and constant.issuperset(reads) and not draws(node.proto):
            constant.update(node.outputs)
    return constant


def _activations(
    coupling: Coupling, table: SizeTable, constant: set[str]
) -> Iterator[tuple[str, Size]]:
    """The elements of every activation whose shape is known."""
    model = coupling.model
    made = (name for node in model.nodes for name in node.outputs if name)
    for name in dict.fromkeys((*model.inputs, *made)):
        layouts = coupling.layouts.get(name)
        size = None if layouts is None or name in constant else table.row(layouts)
        if size is not None:
            yield name, (float(size[0]), size[1])


def _alive(
    model: Model, running: Sequence[Node], activations: Mapping[str, Size]
) -> Iterator[tuple[float, int, int, int]]:
    """Bytes of one product, row, first node and last node of every activation."""
    last = {name: n.index for n in running for name in (*n.inputs, *n.captured)}
    last.update(dict.fromkeys(model.outputs, len(model.nodes) - 1))
    first = {name: node.index for node in running for name in node.outputs}
    widths: dict[int, float] = {}
    for name, (scale, row) in activations.items():
        dtype = model.dtypes.get(name, UNKNOWN_TYPE)
        width = widths.get(dtype) or widths.setdefault(dtype, itemsize(dtype))
        start = first.get(name, 0)
        yield scale * width, row, start, last.get(name, start)


def _lifetimes(alive: list[tuple[float, int, int, int]], nodes: int) -> Lifetimes:
    table = np.array(alive, np.float64).reshape(-1, 4)
    scales, (rows, starts, stops) = table[:, 0], table[:, 1:].astype(np.intp).T
    stops = stops + 1
    fixed, varies = rows == ROW_OF_ONE, rows != ROW_OF_ONE
    base = tally(starts[fixed], scales[fixed], nodes + 1)
    base -= tally(stops[fixed], scales[fixed], nodes + 1)
    return Lifetimes(
        np.cumsum(base)[:-1], rows[varies], scales[varies], starts[varies], stops[varies]
    )
