"""Normalize: give every use of a constant the name that the plan knows it by.

- Identity of a constant is looked through.
- A vector that several nodes read is one parameter for each use, ``NAME@OUTPUT:INDEX``: exporters
  merge equal tensors, and a zero bias must not couple two halves of a network. A matrix that
  several nodes read is a true tie (an embedding and its output head) and stays one.
- A constant computed in the graph by an operator that contracts, mixes or keeps axes whole (weight
  standardisation, weight norm, a bias with zeros scattered in) is a parameter of its own, folded
  when its values are needed. What draws random numbers makes no constants.

Only the view changes: the protobuf stays as it was, and shrink writes copies where uses differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from onnxprune import runtime
from onnxprune.bodies import draws
from onnxprune.model import Array, Model, Node, Param, mapped, placed
from onnxprune.notation import is_whole
from onnxprune.rules import RENAMES, Row, Unprunable, fit_node
from onnxprune.rules.tables import DEQUANTIZES


def normalize(model: Model, rules: Mapping[str, Row] | None = None) -> Model:
    """The model with one name for each independent use of a constant.

    Needs a loaded model. Promises: no value of the graph changes.
    """
    return _folded(_unshared(_looked_through(model)), rules or {})


def _looked_through(model: Model) -> Model:
    """Identity nodes of constants are left out; their readers read the constant."""
    origin: dict[str, str] = {}

    def walk(nodes: Iterable[Node], outputs: Container[str]) -> Iterator[Node]:
        for node in nodes:
            inputs = tuple(origin.get(name, name) for name in node.inputs)
            passes = node.op in RENAMES and inputs[0] in model.params
            if passes and node.outputs[0] not in outputs and not _is_captured(model, node):
                origin[node.outputs[0]] = inputs[0]
                continue
            bodies = tuple(
                replace(body, nodes=tuple(walk(body.nodes, body.outputs))) for body in node.bodies
            )
            yield replace(node, inputs=inputs, bodies=bodies)

    nodes = tuple(placed(n, k) for k, n in enumerate(walk(model.nodes, model.outputs)))
    return replace(model, nodes=nodes) if origin else model


def _is_captured(model: Model, node: Node) -> bool:
    return any(node.outputs[0] in other.captured for other in model.every if other.captured)


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether at most one axis is longer than 1."""
    return sum(size != 1 for size in shape) <= 1


def _unshared(model: Model) -> Model:
    """Vectors and constant-valued tensors: one parameter for each use."""
    uses = Counter(name for node in model.every for name in (*node.inputs, *node.unseen))
    uses.update(model.outputs)
    uses.update(x for node in model.every for body in node.bodies for x in body.outputs)
    shared = {name for name, count in uses.items() if count > 1 and name in model.params}
    shared = {name for name in shared if _is_accident(model.params[name])}
    if not shared:
        return model
    params = dict(model.params)
    shapes = [dict(sample.shapes) for sample in model.samples]
    constants = [dict(sample.constants) for sample in model.samples]

    def apart(node: Node) -> Node:
        inputs = list(node.inputs)
        for position, name in enumerate(node.inputs):
            if name not in shared:
                continue
            inputs[position] = use = f"{name}@{node.key}:{position}"
            params[use] = replace(params[name], name=use)
            for shape in shapes:
                shape[use] = params[name].shape
            for known in constants:
                if name in known:
                    known[use] = known[name]
        return replace(node, inputs=tuple(inputs))

    nodes = tuple(mapped(node, apart) for node in model.nodes)
    samples = tuple(
        replace(sample, shapes=a, constants=b)
        for sample, a, b in zip(model.samples, shapes, constants, strict=True)
    )
    return replace(model, nodes=nodes, params=params, samples=samples)


def _is_accident(param: Param) -> bool:
    """A vector, or a tensor of one repeated value: shared because it happens to be equal."""
    if is_vector(param.shape):
        return True
    values = param.read()
    return bool(np.all(values == values.reshape(-1)[0]))


def _folded(model: Model, rules: Mapping[str, Row]) -> Model:
    """Constants that a contraction or a mixing operator makes are parameters."""
    values = _FoldedValues(model)
    # What a caller may give is none: its values, and the input, would be lost.
    constant = {x for x, own in model.params.items() if own.origin not in model.defaults}
    known = {x for x in model.samples[0].constants if model.constant(x) is not None}
    params: dict[str, Param] = {}
    nodes: list[Node] = []
    for node in model.nodes:
        reads = [name for name in node.inputs if name]
        fixed = bool(reads) and not node.captured and not draws(node.proto)
        fixed = fixed and all(name in constant or name in known for name in reads)
        if fixed and not all(name in known for name in node.outputs):
            constant.update(node.outputs)
            if _reduces(node, model, rules):
                for name in node.outputs:
                    shape = model.shape(name)
                    if name and shape is not None and None not in shape:
                        sizes = tuple(n for n in shape if n is not None)
                        read = partial(values.read, name)
                        dtype = model.dtypes.get(name, 1)
                        params[name] = Param(name, name, sizes, dtype, read, folded=True)
                continue
        nodes.append(placed(node, len(nodes)))
    if not params:
        return model
    values.names = tuple(params)
    kept = _without_unread(nodes, constant, set(model.outputs))
    return replace(model, nodes=kept, params={**model.params, **params})


def _without_unread(nodes: list[Node], constant: set[str], outputs: set[str]) -> tuple[Node, ...]:
    """Leave out the constant nodes that only folded ones read: they go with these."""
    read = set(outputs)
    kept = []
    for node in reversed(nodes):
        if not read.isdisjoint(node.outputs) or not constant.issuperset(node.outputs):
            kept.append(node)
            read.update(node.inputs, node.captured)
    return tuple(placed(node, k) for k, node in enumerate(reversed(kept)))


def _reduces(node: Node, model: Model, rules: Mapping[str, Row]) -> bool:
    if node.op in DEQUANTIZES:
        return False  # what is stored as integers stays so, if in whole blocks
    try:
        fit = fit_node(node, model, rules)[0]
    except Unprunable:
        return True
    made = {x for axes in fit.results for axis in axes or () for term in axis for x in term}
    stays = any(is_whole(x) and fit.sizes[x] != 1 for x in made)
    return bool(fit.contracted or fit.mixing or stays)


class _FoldedValues:
    """The values of all folded constants, computed in one run when the first is asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names: tuple[str, ...] = ()
        self.values: dict[str, Array] = {}

    def read(self, name: str) -> Array:
        """The values of one folded constant."""
        if not self.values:
            known = self.model.samples[0].constants
            found = runtime.constant_values(self.model.proto, self.model.folder, self.names, known)
            self.values = dict(zip(self.names, found, strict=True))
        return self.values[name]
