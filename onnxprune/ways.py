"""The ways through a model's branches: each is proved by making both models go it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.bodies import graphs
from onnxprune.coupling import Coupling
from onnxprune.model import Body, Node, each, first_name
from onnxprune.plan import Keep
from onnxprune.rules.control import branch, decides


@dataclass(frozen=True)
class Way:
    """One branch and the branches around it: what their conditions are, by the keys of the Ifs."""

    label: str
    conditions: tuple[tuple[str, bool], ...]


def ways(coupling: Coupling, keep: Keep) -> list[Way]:
    """The branches that lose something, those of one If after the other."""
    pruned = frozenset(factor for factor, mask in keep.items() if not mask.all())
    return [*_ways(coupling, pruned, coupling.model.nodes, ())] if pruned else []


def _ways(
    coupling: Coupling,
    pruned: frozenset[int],
    nodes: Sequence[Node],
    path: tuple[tuple[str, bool], ...],
) -> Iterator[Way]:
    for node in nodes:
        for position, body in enumerate(node.bodies):
            own = path
            if decides(node):
                taken = branch(node, True) == position
                own = (*path, (node.key, taken))
                if _loses(coupling, pruned, body):
                    side = "then" if taken else "else"
                    yield Way(f"the {side} branch of {node.label}", own)
            yield from _ways(coupling, pruned, body.nodes, own)


def _loses(coupling: Coupling, pruned: frozenset[int], body: Body) -> bool:
    """Whether any value that a body reads or makes loses something."""
    names = {name for node in each(body.nodes) for name in (*node.inputs, *node.outputs)}
    layouts = (x for name in names for x in coupling.layouts.get(name, ()))
    return any(not pruned.isdisjoint(coupling.factors.leaves(layout)) for layout in layouts)


def force(
    proto: onnx.ModelProto, way: Sequence[tuple[str, bool]], renamed: Mapping[str, str]
) -> None:
    """Let a model go a way, whatever the conditions are.

    Args:
        proto: the model; it is changed.
        way: the conditions by the keys of the Ifs.
        renamed: names that the file has for some of the keys.
    """
    wanted = dict(way)
    wanted.update({renamed[key]: value for key, value in way if key in renamed})
    every = [node for graph in graphs(proto.graph) for node in graph.node]
    taken = {name for node in every for name in node.output}
    names = {}
    for value in sorted(set(wanted.values())):
        name = f"way:{value}"
        while name in taken:
            name += "'"
        names[value] = name
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    for node in every:
        key = first_name(node.output)
        if key in wanted and len(node.input) == 1 and any(a.HasField("g") for a in node.attribute):
            node.input[0] = names[wanted[key]]
