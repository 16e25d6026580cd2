"""Edits of a graph, collected first and written into a new protobuf at once.

The original is never touched, and no tensor is copied that an edit replaces. A constant that
several operands read is changed in place when all of them want the same; where they differ, each
different wish becomes a new initializer (copy on write).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import onnx
from onnx import helper

from onnxprune.bodies import graphs
from onnxprune.files import copy_fields
from onnxprune.model import Model, Node, captures, first_name, operator, subgraphs
from onnxprune.rules import RENAMES
from onnxprune.shapes import stored_anywhere

LISTED_BELOW: Final = 4  # IR versions below it list every initializer as an input
Use = tuple[str, int]  # a node's first output, and the operand's position


@dataclass(frozen=True)
class Wish:
    """What one operand wants instead of the constant that it reads.

    ``key`` says whether two wishes are the same; ``make`` gives the tensor under a name.
    """

    key: Hashable
    name: str
    make: Callable[[str], onnx.TensorProto] = field(repr=False)


class Edits:
    """Edits of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.wishes: dict[str, dict[Use, Wish]] = defaultdict(dict)
        self.attributes: dict[str, dict[str, Any]] = defaultdict(dict)
        self.operands: dict[Use, str] = {}
        self.before: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.replaced: dict[str, list[onnx.NodeProto]] = {}
        self.added: dict[str, onnx.TensorProto] = {}
        self.stubs: dict[Use, onnx.GraphProto] = {}  # by node, and the body's place
        self.holding: set[str] = set()  # nodes with a body in which something changes
        self.constants = stored_anywhere(model.proto)
        self.taken = set(model.renamed.values())
        for graph in graphs(model.proto.graph):
            self.taken.update(name for node in graph.node for name in node.output)
            self.taken.update(value.name for value in (*graph.input, *graph.initializer))

    def unused(self, name: str) -> str:
        """The name, or the next free one: the file may be the result of an earlier pruning."""
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def constant(self, origin: str, node: Node, position: int, wish: Wish) -> None:
        """Let one operand read another constant than the file's ``origin``."""
        self.wishes[origin][(node.key, position)] = wish

    def attribute(self, node: Node, name: str, value: Any) -> None:
        """Set an attribute of a node; None removes it."""
        self.attributes[node.key][name] = value

    def operand(self, node: Node, position: int, name: str) -> None:
        """Let an operand read another value."""
        self.operands[(node.key, position)] = name

    def insert(self, node: Node, nodes: Iterable[onnx.NodeProto]) -> None:
        """Put nodes before a node."""
        self.before[node.key].extend(nodes)

    def replace(self, output: str, nodes: list[onnx.NodeProto]) -> None:
        """Put nodes in the place of the one with this first output."""
        self.replaced[output] = nodes

    def stub(self, node: Node, place: int, body: onnx.GraphProto) -> None:
        """Put another body in the place of one that never runs."""
        self.stubs[(node.key, place)] = body

    def add(self, tensor: onnx.TensorProto) -> None:
        """Add an initializer."""
        self.added[tensor.name] = tensor

    def applied(self) -> onnx.ModelProto:
        """The edited model: what the edits left without a reader is gone, all else is the same."""
        in_place = self._settle()
        changed = {key for key, _ in self.operands} | self.attributes.keys() | self.before.keys()
        changed |= self.replaced.keys() | in_place.keys() | self.added.keys()
        stubbed = {key for key, _ in self.stubs}
        changed |= stubbed
        self.holding = stubbed | {
            first_name(raw.output)
            for graph in graphs(self.model.proto.graph)
            for raw in graph.node
            if any(not changed.isdisjoint(_named(body)) for body in subgraphs(raw))
        }
        source = self.model.proto
        proto = onnx.ModelProto()
        copy_fields(proto, source, {"graph"})
        copy_fields(proto.graph, source.graph, {"node", "initializer"})
        nodes = [new for raw in source.graph.node for new in self._node(raw, in_place)]
        targets = {o.name for o in source.graph.output} | _dead_ends(source.graph)
        alive = _live(targets, nodes)
        proto.graph.node.extend(node for node in nodes if id(node) in alive)
        self._write_initializers(proto, in_place)
        return proto

    def _settle(self) -> dict[str, Wish]:
        """Decide for each constant whether it changes in place; name the copies."""
        folded = {p.origin for p in self.model.params.values() if p.folded}
        read = Counter(name for node in self.model.every for name in node.inputs)
        gone = {x for x in folded & self.wishes.keys() if read[x] == len(self.wishes[x])}
        uses = self._uses(gone)
        in_place = {}
        for origin, wishes in self.wishes.items():
            by_key: dict[Hashable, list[Use]] = defaultdict(list)
            for use, wish in wishes.items():
                by_key[wish.key].append(use)
            if uses[origin] == len(wishes) and (origin in self.constants or origin in gone):
                wish = wishes[by_key.pop(next(iter(by_key)))[0]]
                if origin in self.constants:
                    in_place[origin] = wish
                else:
                    self.added[origin] = wish.make(origin)
            for readers in by_key.values():
                wish = wishes[readers[0]]
                name = self.unused(wish.name)
                self.added[name] = wish.make(name)
                for use in readers:
                    self.operands[use] = name
        return in_place

    def _uses(self, gone: set[str]) -> Counter[str]:
        """How many operands read each constant, through the view's names, once ``gone`` is gone."""
        graph = self.model.proto.graph
        nodes = [raw for raw in graph.node if not gone.intersection(raw.output)]
        alive = _live({o.name for o in graph.output} | _dead_ends(graph), nodes)
        origin = {name: param.origin for name, param in self.model.params.items()}
        seen = {node.key for node in self.model.every} | self.constants.keys()
        stubbed = {key for key, _ in self.stubs}
        uses = Counter(output.name for output in graph.output)
        for node in self.model.every:
            unseen = node.unseen if node.key not in stubbed else ()
            uses.update(origin.get(name, name) for name in (*node.inputs, *unseen) if name)
            uses.update(name for body in node.bodies for name in body.outputs)
            inner = (raw for body in node.bodies for raw in body.proto.node)
            uses.update(name for raw in inner if self._is_left_out(raw, seen) for name in raw.input)
        for raw in nodes:
            if id(raw) in alive and self._is_left_out(raw, seen):
                uses.update((*raw.input, *captures(raw)))
        return uses

    def _is_left_out(self, raw: onnx.NodeProto, seen: Collection[str]) -> bool:
        """Whether a node is none of the model's, and doesn't just rename a constant."""
        looked_through = operator(raw) in RENAMES and raw.input[0] in self.constants
        return first_name(raw.output) not in seen and not looked_through

    def _node(self, raw: onnx.NodeProto, in_place: dict[str, Wish]) -> Iterable[onnx.NodeProto]:
        """The node with its edits, preceded by what is inserted before it."""
        key = first_name(raw.output)
        if key in self.replaced:
            return self.replaced[key]
        if key in self.added:
            return []
        if key in self.constants and key in in_place:
            return [_constant_node(raw, in_place[key].make(""))]
        positions = [k for k in range(len(raw.input) + 1) if (key, k) in self.operands]
        holds = key in self.holding
        if not positions and key not in self.attributes and not holds:
            return [*self.before.get(key, ()), raw]
        node = onnx.NodeProto()
        node.CopyFrom(raw)
        for place, body in enumerate(subgraphs(node)) if holds else ():
            if (key, place) in self.stubs:
                body.CopyFrom(self.stubs[(key, place)])
            else:
                self._body(body, in_place)
        for position in positions:
            while len(node.input) <= position:
                node.input.append("")
            node.input[position] = self.operands[(key, position)]
        for name, value in self.attributes.get(key, {}).items():
            _set_attribute(node, name, value)
        return [*self.before.get(key, ()), node]

    def _body(self, body: onnx.GraphProto, in_place: dict[str, Wish]) -> None:
        """Write the edits into a body."""
        nodes = [new for raw in body.node for new in self._node(raw, in_place)]
        alive = _live({o.name for o in body.output} | _dead_ends(body), nodes)
        kept = [node for node in nodes if id(node) in alive]
        used = {name for node in kept for name in (*node.input, *captures(node))}
        used.update(value.name for value in body.output)
        read = {name for node in body.node for name in (*node.input, *captures(node))}
        tensors = [
            in_place[tensor.name].make(tensor.name) if tensor.name in in_place else tensor
            for tensor in body.initializer
            if tensor.name in used or tensor.name not in read
        ]
        copies = onnx.GraphProto()
        copies.node.extend(kept)
        copies.initializer.extend(tensors)
        del body.node[:], body.initializer[:]
        body.node.extend(copies.node)
        body.initializer.extend(copies.initializer)

    def _write_initializers(self, proto: onnx.ModelProto, in_place: dict[str, Wish]) -> None:
        """The file's initializers in their order, then the new ones."""
        used = {name for node in proto.graph.node for name in (*node.input, *captures(node))}
        used.update(output.name for output in proto.graph.output)
        before = {name for n in self.model.proto.graph.node for name in (*n.input, *captures(n))}
        for tensor in self.model.proto.graph.initializer:
            name = tensor.name
            if name in before and name not in used:
                continue
            wish = in_place.get(name)
            if wish is None:
                proto.graph.initializer.append(tensor)
            else:
                proto.graph.initializer.append(wish.make(name))
        added = [tensor for name, tensor in self.added.items() if name in used]
        proto.graph.initializer.extend(added)
        gone = before - used
        inputs = [v for v in proto.graph.input if v.name not in gone or v.name in self.model.inputs]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        if proto.ir_version < LISTED_BELOW:
            for tensor in added:
                kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                proto.graph.input.append(kind)


def _named(body: onnx.GraphProto) -> Iterator[str]:
    """The keys of the nodes in a body and in the bodies in it, and its initializers."""
    for graph in graphs(body):
        yield from (tensor.name for tensor in graph.initializer)
        yield from (first_name(node.output) for node in graph.node)


def _constant_node(raw: onnx.NodeProto, value: onnx.TensorProto) -> onnx.NodeProto:
    node = onnx.NodeProto()
    copy_fields(node, raw, {"attribute"})
    node.attribute.append(helper.make_attribute("value", value))
    return node


def _set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    position = next((k for k, a in enumerate(node.attribute) if a.name == name), None)
    if position is None and value is not None:
        node.attribute.append(helper.make_attribute(name, value))
    elif position is not None and value is not None:
        node.attribute[position].CopyFrom(helper.make_attribute(name, value))
    elif position is not None:
        del node.attribute[position]


def _live(targets: Iterable[str], nodes: list[onnx.NodeProto]) -> set[int]:
    """The nodes that the targets depend on, by identity."""
    makers = {name: node for node in nodes for name in node.output if name}
    todo, alive = list(targets), set()
    while todo:
        node = makers.get(todo.pop())
        if node is not None and id(node) not in alive:
            alive.add(id(node))
            todo.extend(node.input)
            todo.extend(captures(node))
    return alive


def _dead_ends(graph: onnx.GraphProto) -> set[str]:
    """Outputs of the nodes that led nowhere from the start: these nodes stay."""
    nodes = list(graph.node)
    alive = _live({o.name for o in graph.output}, nodes)
    return {name for node in nodes if id(node) not in alive for name in node.output if name}
