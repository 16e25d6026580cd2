"""The ways through a model's branches: each is proved by making both models go it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.bodies import graphs
from onnxprune.coupling import Coupling
from onnxprune.model import Body, Node, each, first_name, subgraphs
from onnxprune.plan import Keep
from onnxprune.rules.control import branch, decides


@dataclass(frozen=True)
class Step:
    """From a node into one of its bodies.

    Attributes:
        key: the node's.
        place: the body's, among the node's attributes.
        condition: what lets the node run that body, if it decides.
    """

    key: str
    place: int
    condition: bool | None


@dataclass(frozen=True)
class Way:
    """One branch: the way to it through the bodies around it."""

    label: str
    steps: tuple[Step, ...]


def ways(coupling: Coupling, keep: Keep) -> list[Way]:
    """The branches that lose something, those of one If after the other."""
    pruned = frozenset(factor for factor, mask in keep.items() if not mask.all())
    return [*_ways(coupling, pruned, coupling.model.nodes, ())] if pruned else []


def _ways(
    coupling: Coupling, pruned: frozenset[int], nodes: Sequence[Node], path: tuple[Step, ...]
) -> Iterator[Way]:
    for node in nodes:
        for body in node.bodies:
            taken = branch(node, True) == body.place if decides(node) else None
            own = (*path, Step(node.key, body.place, taken))
            if taken is not None and loses(coupling, pruned, body):
                yield Way(f"the {side(node, body)} branch of {node.label}", own)
            yield from _ways(coupling, pruned, body.nodes, own)


def side(node: Node, body: Body) -> str:
    """Which branch of a node a body is."""
    return "then" if branch(node, True) == body.place else "else"


def loses(coupling: Coupling, pruned: frozenset[int], body: Body) -> bool:
    """Whether any value that a body reads or makes loses something."""
    names = {name for node in each(body.nodes) for name in (*node.inputs, *node.outputs)}
    layouts = (x for name in names for x in coupling.layouts.get(name, ()))
    return any(not pruned.isdisjoint(coupling.factors.leaves(layout)) for layout in layouts)


def force(proto: onnx.ModelProto, way: Sequence[Step], renamed: Mapping[str, str]) -> None:
    """Let a model go a way, whatever the conditions are.

    The way is followed from body to body: other bodies may have Ifs with results of the same names.

    Args:
        proto: the model; it is changed.
        way: the steps of the way.
        renamed: names that the file has for some of the keys.
    """
    every = [*graphs(proto.graph)]
    taken = {name for graph in every for node in graph.node for name in node.output}
    taken.update(tensor.name for graph in every for tensor in graph.initializer)
    names = {}
    for value in sorted({step.condition for step in way if step.condition is not None}):
        name = f"way:{value}"
        while name in taken:
            name += "'"
        names[value] = name
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    graph = proto.graph
    for step in way:
        keys = {step.key, renamed.get(step.key, step.key)}
        node = next((own for own in graph.node if first_name(own.output) in keys), None)
        if node is None:
            return  # it has been cut out, with all that is inside
        if step.condition is not None:
            node.input[0] = names[step.condition]
        graph = [*subgraphs(node)][step.place]
