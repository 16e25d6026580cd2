"""Bodies of control flow: distinct names, the constants in them, and branches that never run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxprune.model import Array, Node, Sample, each, mapped, operator, subgraphs
from onnxprune.rules.control import branch, decides
from onnxprune.rules.tables import CASTS, DRAWS, DRAWS_IN_TRAINING, MOVES
from onnxprune.rules.values import SIZES


def has_bodies(proto: onnx.ModelProto) -> bool:
    """Whether any node of the main graph has one."""
    return any(True for node in proto.graph.node for _ in subgraphs(node))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs(body)


def inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors that stand in nodes and bodies: all but the graph's own initializers."""
    for own in graphs(graph):
        if own is not graph:
            yield from own.initializer
        for node in own.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def distinct(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with a name of its own for each value, and the old names by the new ones.

    Two branches may use a name each for its own. The first keeps it; a copy is made if one doesn't.
    """
    names = [x for graph in graphs(proto.graph) for x in _own(graph)]
    if len(names) == len(set(names)):
        return proto, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    taken, old = set(names), dict[str, str]()
    seen = set(_own(copy.graph))
    for node in copy.graph.node:
        for body in subgraphs(node):
            _rename(body, {}, seen, taken, old)
    return copy, old


def _own(graph: onnx.GraphProto) -> list[str]:
    """The values that a graph itself names."""
    given = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    made = [name for node in graph.node for name in node.output if name]
    return list(dict.fromkeys((*given, *stored, *made)))


def _rename(
    graph: onnx.GraphProto,
    outer: Mapping[str, str],
    seen: set[str],
    taken: set[str],
    old: dict[str, str],
) -> None:
    """Give a body's values names that no other graph has, and those of the bodies in it.

    Args:
        graph: the body; it is changed.
        outer: new names of values around it.
        seen: the names of the graphs before it.
        taken: all names of the file.
        old: is given the old names by the new ones.
    """
    own = {}
    for name in _own(graph):
        fresh = name
        if name in seen:
            while fresh in taken:
                fresh += "'"
            taken.add(fresh)
            old[fresh] = name
        seen.add(fresh)
        own[name] = fresh
    new = {**outer, **own}
    _rename_values(graph, new)
    for node in graph.node:
        for body in subgraphs(node):
            _rename(body, new, seen, taken, old)


def restore(proto: onnx.ModelProto, old: Mapping[str, str]) -> None:
    """Give the values of bodies the names that they had in the file."""
    for graph in graphs(proto.graph) if old else ():
        _rename_values(graph, old)


def _rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give the values of one graph, but not of the bodies in it, other names."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = names.get(tensor.values.name, tensor.values.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def draws(node: onnx.NodeProto) -> bool:
    """Whether a node, or any in its bodies, gives other values in each run."""
    op = operator(node)
    position = DRAWS_IN_TRAINING.get(op, len(node.input))
    if op in DRAWS or any(node.input[position : position + 1]):
        return True
    return any(draws(inner) for body in subgraphs(node) for inner in body.node)


def settled(
    nodes: Sequence[Node], samples: Sequence[Sample], given: Collection[str]
) -> tuple[Node, ...]:
    """The nodes; an If whose condition is the same in all runs has only the body that runs.

    That two choices of the dynamic sizes agree is not enough: the size 1 is neither of them. So a
    condition counts as known where nothing on the way to it is computed from a dynamic size, or
    from what a caller may give.

    Args:
        nodes: the nodes.
        samples: what is known of their values.
        given: the values that a caller may give, those with a stored default too.
    """
    makers = {name: node for node in each(nodes) for name in node.outputs if name}
    fixed = _Fixed(makers, samples, frozenset(given))

    def settle(node: Node) -> Node:
        if not decides(node) or not fixed.holds(node.inputs[0]):
            return node
        value = samples[0].constants[node.inputs[0]]
        return replace(node, bodies=(node.bodies[branch(node, bool(value.reshape(-1)[0]))],))

    return tuple(mapped(node, settle) for node in nodes)


@dataclass(frozen=True)
class _Fixed:
    """What is the same in all runs: by its makers, its values in each sample, what is given."""

    makers: Mapping[str, Node]
    samples: Sequence[Sample]
    given: frozenset[str]

    def holds(self, name: str) -> bool:
        """Whether a value is the same at all sizes, whatever a caller gives."""
        if name in self.given or not self._agreed(name):
            return False
        node = self.makers.get(name)
        if node is None or node.op in SIZES:
            return True
        reads = [*node.inputs, *(x for body in node.bodies for x in body.outputs)]
        if all(self.holds(x) for x in reads if x):
            return True
        others = all(self.holds(x) for x in reads[1:] if x)
        return others and self._picks(name)

    def _agreed(self, name: str) -> bool:
        """Whether a value is known, and the same in all samples."""
        found: list[Array | None] = [sample.constants.get(name) for sample in self.samples]
        first = found[0]
        return first is not None and all(
            x is not None and x.shape == first.shape and bool((x == first).all()) for x in found
        )

    def _picks(self, name: str) -> bool:
        """Whether the elements of a value are sizes as they are, of which some may be dynamic."""
        node = self.makers.get(name)
        if node is None or node.op in SIZES:
            return node is not None
        return node.op in MOVES | CASTS and self._picks(node.inputs[0])
