"""The masked original and the pruned model side by side: running both, and what both compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from onnxprune import runtime
from onnxprune.compare import is_float
from onnxprune.coupling import Coupling
from onnxprune.errors import RunError
from onnxprune.full import kept_part
from onnxprune.guard import is_unsafe, make_safe
from onnxprune.model import Array, Node, operator, subgraphs
from onnxprune.oracle import FLOATS, masked
from onnxprune.plan import Keep
from onnxprune.rules.control import links
from onnxprune.rules.tables import (
    CASTS,
    JOINS,
    JUMPS,
    KEEPS_SIZE,
    MOVES,
    ROUNDS,
    ROUNDS_AT,
    ROUNDS_BY_DATA,
)
from onnxprune.ways import Step, force
from onnxprune.widen import widen, widened

Results = dict[str, Any]
PORTION_BYTES: Final = 2**29  # of values inside the graph that are held at once, per model
UNKNOWN: Final = 256  # indices that an axis of unknown size is supposed to have
Runner = Callable[[runtime.Feeds, Sequence[str]], Results]


@dataclass(frozen=True)
class Pair:
    """Two models that have to agree.

    Attributes:
        coupling: the structure of the original.
        keep: the kept indices by factor.
        shrunk: the pruned model.
        folder: where the external data of the pruned model lies.
        values: full-size values of parameters that replace the original's.
        wide: whether both run as float32 models (see ``onnxprune.widen``).
        forced: the way that both go through their branches (see ``onnxprune.ways``).
    """

    coupling: Coupling
    keep: Keep
    shrunk: onnx.ModelProto = field(repr=False)
    folder: Path | None = None
    values: Mapping[str, Array] | None = None
    wide: bool = False
    forced: tuple[Step, ...] = ()

    def oracle(
        self, names: Sequence[str], jitter: int | None = None, pins: Results | None = None
    ) -> Runner:
        """A session of the masked original that can give these values.

        Args:
            names: values of the graph.
            jitter: a seed of rounding errors (see ``masked``); the graph isn't optimised then,
                so that its additions run in another order.
            pins: results of deciding nodes that are inputs, not computed (any sizes will do).
        """
        proto = masked(self.coupling, self.keep, names, self.values, jitter)
        fuse = jitter is None and self.fuses(set(names) - set(self.coupling.model.outputs))
        return self._runner(proto, self.coupling.model.folder, fuse, True, pins)

    def pruned(self, names: Sequence[str], pins: Results | None = None) -> Runner:
        """A session of the pruned model that can give these values.

        What deciding nodes make of their operands, where their results are pinned, goes by
        ``unpinned`` names.
        """
        proto = self.shrunk
        extra = [x for x in dict.fromkeys(names) if x not in {o.name for o in proto.graph.output}]
        if extra or pins or self.wide or self.forced or is_unsafe(proto):
            proto = onnx.ModelProto()
            proto.CopyFrom(self.shrunk)
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        retry = bool(extra or pins)
        run = self._runner(proto, self.folder, self.fuses(extra), retry, pins)
        opened = self.coupling.model.open_io
        if not opened:
            return run

        def narrowed(feeds: runtime.Feeds, asked: Sequence[str]) -> Results:
            own = {x: self.kept(x, array) if x in opened else array for x, array in feeds.items()}
            return run(own, asked)

        return narrowed

    def fuses(self, extra: Collection[str]) -> bool:
        """Whether ONNX Runtime may fuse nodes where values inside the graph are asked for.

        Around QuantizeLinear it fuses into kernels that round otherwise, and that it can do so in
        the pruned model, but not around a mask of the oracle, is no difference of the two. Around
        DynamicQuantizeLinear that shows at the outputs, too.
        """
        ops = {node.op for node in self.coupling.model.every}
        if not ROUNDS_BY_DATA.isdisjoint(ops):
            return False
        return not extra or ROUNDS.isdisjoint(ops)

    def _runner(
        self,
        proto: onnx.ModelProto,
        folder: Path | None,
        fuse: bool,
        retry: bool,
        pins: Results | None,
    ) -> Runner:
        if self.forced:
            force(proto, self.forced, self.coupling.model.renamed)
        if pins:
            _pin(proto.graph, pins)  # after that nodes go by other keys
        if is_unsafe(proto):
            make_safe(proto)
        if self.wide:
            widen(proto, folder)
        try:
            session = runtime.session(proto, folder, optimize=fuse)
        except RunError:
            if not (fuse and retry):
                raise
            # Some fusions drop a value that is asked for, and then ONNX Runtime misses it.
            session = runtime.session(proto, folder, optimize=False)
        known = {value.name for value in session.get_inputs()}

        def run(feeds: runtime.Feeds, names: Sequence[str]) -> Results:
            if not names:
                return {}  # ONNX Runtime would give every output
            given = {name: value for name, value in feeds.items() if name in known}
            if self.wide:
                given = {name: widened(value) for name, value in given.items()}
            return dict(zip(names, runtime.run(session, given, names), strict=True))

        return run

    def kept(self, name: str, value: Any) -> Any:
        """What the pruned model has of a value of the original."""
        return kept_part(self.coupling, self.keep, name, value)

    def shared(self) -> Iterator[tuple[Node, str]]:
        """The values that nodes of both models make, in topological order."""
        made = {name for node in self.shrunk.graph.node for name in node.output}
        for node in self.coupling.model.nodes:
            for name in node.outputs:
                if name in made and name in self.coupling.layouts:
                    yield node, name

    def deciding(self) -> list[Node]:
        """The nodes whose results jump when an operand moves by one rounding."""
        common = {name for _, name in self.shared()}
        model, found = self.coupling.model, []
        for node in model.nodes:
            kinds = {model.dtypes.get(name) for name in node.outputs if name}
            cuts_off = node.op in CASTS and kinds.isdisjoint(FLOATS)
            jumps = cuts_off or not JUMPS.isdisjoint(operators(node.proto))
            reads = (*node.inputs, *node.captured)
            if jumps and any(name in common and self.is_float(name) for name in reads):
                found.append(node)
        return found

    def least(self, name: str) -> float:
        """The size that a value's rounding goes by, at least; 0 where that is its own."""
        node = self.coupling.model.makers.get(name)
        if node is None:
            return 0.0
        if node.bodies:
            sources = [link.sources for link in links(node)[1] if link.value == name]
            return min((self.least(x) for own in sources for x in own), default=0.0)
        if node.op in KEEPS_SIZE:
            return self.least(node.inputs[0])
        return ROUNDS_AT.get(node.op, 0.0)

    def is_float(self, name: str) -> bool:
        """Whether a value holds floating-point numbers, as far as is known."""
        return self.coupling.model.dtypes.get(name) in FLOATS

    def telling(self) -> list[str]:
        """The values inside the graph that are worth comparing, in topological order.

        They are the results of all nodes that read a pruned parameter or combine pruned indices,
        what deciding nodes read, and what an output is joined of. An error there may be damped
        beyond notice at the outputs, or be small beside their largest part.
        """
        made = [name for _, name in self.shared()]
        read = {x for node in self.deciding() for x in (*node.inputs, *node.captured)}
        read.update(self._joined())
        wanted = set(self._touched()) | {name for name in read if self.is_float(name)}
        wanted.difference_update(self.coupling.model.outputs)
        if self.forced:  # all that lies before the branch has been compared without it
            nodes, first = self.coupling.model.nodes, self.forced[0].key
            own = next(set(node.outputs) for node in nodes if node.key == first)
            wanted &= own | behind(nodes, own)
        return [name for name in made if name in wanted]

    def _joined(self) -> Iterator[str]:
        """The parts that the graph's outputs are put together of without computing anything."""
        moved = set(self.coupling.model.outputs)
        for node in reversed(self.coupling.model.nodes):
            if node.op in MOVES and not moved.isdisjoint(node.outputs):
                moved.update(node.inputs)
                if node.op in JOINS:
                    yield from node.inputs

    def _touched(self) -> Iterator[str]:
        pruned = frozenset(factor for factor, mask in self.keep.items() if not mask.all())
        factors, params = self.coupling.factors, self.coupling.model.params
        layouts = self.coupling.layouts
        reading = {
            name
            for name in params
            if any(not pruned.isdisjoint(factors.leaves(x)) for x in layouts.get(name, ()))
        }
        combining = {
            bound.node.index
            for bound in self.coupling.bound
            if bound.removed(factors, pruned) & (bound.fit.contracted | bound.fit.mixing)
        }
        for node, name in self.shared():
            if node.index in combining or not reading.isdisjoint(node.inputs):
                yield name


def operators(node: onnx.NodeProto) -> set[str]:
    """The operator of a node, and those inside its bodies."""
    inner = (operators(own) for body in subgraphs(node) for own in body.node)
    return {operator(node)}.union(*inner)


def unpinned(name: str) -> str:
    """What the pruned model itself makes where the value of this name is pinned."""
    return f"{name}@unpinned"


def _pin(graph: onnx.GraphProto, pins: Results) -> None:
    """Let the graph be given these values; the nodes that make them write to other names."""
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name in pins:
                node.output[position] = unpinned(name)
    for name, value in pins.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))


def behind(nodes: Sequence[Node], sources: Set[str]) -> set[str]:
    """The values that depend on any of these values, themselves left out."""
    found: set[str] = set()
    for node in nodes:
        if any(x in sources or x in found for x in (*node.inputs, *node.captured)):
            found.update(node.outputs)
    return found - {""}


def before(nodes: Sequence[Node], value: str) -> set[str]:
    """A value and all that it depends on."""
    wanted = {value}
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted.update((*node.inputs, *node.captured))
    return wanted


def side_by_side(
    pair: Pair, names: Sequence[str], feeds: Sequence[runtime.Feeds], jitter: int | None = None
) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Each value, as it is in every run of the pruned model and of the oracle.

    The oracle's decisions are put into the pruned model. What that makes of them itself comes last,
    the results of all deciding nodes. With a jitter the oracle stands in for the pruned model, with
    rounding errors.
    """
    results = [name for node in pair.deciding() for name in node.outputs if name]
    every = list(dict.fromkeys((*(name for name in names if name not in results), *results)))
    runner = pair.oracle(every)
    wanted = [runner(one, every) for one in feeds]
    del runner  # before the next session takes as much memory
    if jitter is None:
        wanted = [{name: pair.kept(name, x) for name, x in one.items()} for one in wanted]
    pins = [{name: one[name] for name in results} for one in wanted]
    given = [{**one, **pin} for one, pin in zip(feeds, pins, strict=True)]
    asked = {name: unpinned(name) if name in results else name for name in every}
    aliases = list(asked.values())
    other = pair.pruned(aliases, pins[0]) if jitter is None else None
    runner = other or pair.oracle(aliases, jitter, pins[0])
    found = [runner(one, aliases) for one in given]
    for name, alias in asked.items():
        yield name, [one.pop(alias) for one in found], [one.pop(name) for one in wanted]


def overflowing(
    pair: Pair, feeds: Sequence[runtime.Feeds], expected: Sequence[Results]
) -> str | None:
    """Which output is not finite where the original is, with nothing masked and nothing fitted."""
    suspects = [
        name
        for name in pair.coupling.model.outputs
        if any(is_float(own[name]) and not _is_finite(own[name]).all() for own in expected)
    ]
    plain = replace(pair, keep={}, values=None).oracle(suspects) if suspects else None
    for one, own in zip(feeds if plain else (), expected, strict=False):
        assert plain is not None, "there is no turn without it"
        for name, value in plain(one, suspects).items():
            lost = _is_finite(value) & ~_is_finite(own[name])
            if lost.any():
                return (
                    f"output '{name}' is not finite in {int(lost.sum())} of {lost.size} places "
                    "where the original's is: what is left overflows"
                )
    return None


def _is_finite(value: Array) -> Array:
    return np.isfinite(value.astype(np.float64))


def portions(pair: Pair, names: Sequence[str], feeds: runtime.Feeds) -> Iterator[list[str]]:
    """The names, in portions whose values fit into memory."""
    model = pair.coupling.model
    shapes = model.samples[0].shapes
    analysed = sum(math.prod(n or 1 for n in shapes[name]) for name in model.inputs)
    share = min(1.0, sum(value.size for value in feeds.values()) / max(analysed, 1))
    portion: list[str] = []
    total = 0.0
    for name in names:
        size_bytes = 4 * share * math.prod(n or UNKNOWN for n in shapes.get(name, ()))
        if portion and total + size_bytes > PORTION_BYTES:
            yield portion
            portion, total = [], 0.0
        portion.append(name)
        total += size_bytes
    if portion:
        yield portion
