"""A graph as a list of steps, each a row of the table on some names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx

from onnxprune.model import Array, captures, first_name, operator, subgraphs
from onnxprune.rules.tables import CONSTANTS, NORMS
from onnxprune.torch_bridge.at import At, Mode, Tensor, UntrainableError, attribute_values, tensor
from onnxprune.torch_bridge.lazy import torch
from onnxprune.torch_bridge.table import CONTROL, NO_GRADIENT, RANDOM, SETTINGS, SIZES, WEIGHTED

LARGEST: Final = 1e4  # a tensor with values beyond it is a mask, not a weight
FLOATS: Final = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)
Named = Iterator[tuple[str, onnx.TensorProto]]
Read = Callable[[onnx.TensorProto], Array]


@dataclass(frozen=True, slots=True)
class Step:
    """One node: its row, and the names that it reads and makes."""

    op: str
    row: Callable[..., Any] | None
    at: At
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: Mapping[str, Program]
    reads: frozenset[str]

    @property
    def key(self) -> str:
        """The first result that has a name."""
        return first_name(self.outputs)


@dataclass(frozen=True)
class Program:
    """A graph or body: what a caller gives, what it gets, and the nodes between."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass
class Stores:
    """What is stored in a file, as the building of programs finds it.

    Attributes:
        rows: the table, with the user's own.
        opsets: versions by domain.
        known: values of the main graph that depend on sizes alone; None of others.
        read: the values of a tensor.
        mode: shared by all nodes.
        weights: float tensors by name.
        constants: other tensors by name, and what is computed from them.
        uses: how often each name is read, in the whole file.
    """

    rows: Mapping[str, Callable[..., Any]]
    opsets: Mapping[str, int]
    known: Callable[[str], Array | None]
    read: Read
    mode: Mode = field(default_factory=Mode)
    weights: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)


def stored_tensors(graph: onnx.GraphProto) -> Named:
    """Every initializer and Constant of a graph and its bodies, each by a name of its own."""
    seen: set[str] = set()
    for name, own in _tensors(graph):
        key, turn = name, 1
        while key in seen:
            key, turn = f"{name}@{turn}", turn + 1
        seen.add(key)
        yield key, own


def _tensors(graph: onnx.GraphProto) -> Named:
    for own in graph.initializer:
        yield own.name, own
    for node in graph.node:
        value = _value(node)
        if value is not None:
            yield node.output[0], value
        for body in subgraphs(node):
            yield from _tensors(body)


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node."""
    if operator(node) not in CONSTANTS:
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def build(
    graph: onnx.GraphProto, stores: Stores, names: Named, outer: Mapping[str, str] | None = None
) -> Program:
    """The program of a graph; what it stores goes into ``stores``.

    Args:
        graph: its nodes may stand in any order that the file allows.
        stores: grows.
        names: of the tensors, in the order of ``stored_tensors``.
        outer: names of the tensors outside, for a body.

    Raises:
        UntrainableError: a tensor or an operator that a result depends on can't be carried.
    """
    keys = dict(outer or {})

    def keep(own: onnx.TensorProto, name: str) -> None:
        keys[name], _ = next(names)
        if own.data_type in FLOATS:
            stores.weights[keys[name]] = stores.read(own)
        else:
            stores.constants[keys[name]] = _constant(own, name, stores)

    for own in graph.initializer:
        keep(own, own.name)
    for sparse in graph.sparse_initializer:
        raise UntrainableError(
            f"initializer '{sparse.values.name}' is sparse, which the bridge to torch does not "
            "carry: store it as a plain tensor"
        )
    steps = []
    for node in graph.node:
        value = _value(node)
        if value is not None:
            keep(value, node.output[0])
        else:
            steps.append(_step(node, stores, names, keys))
    outputs = tuple(keys.get(o.name, o.name) for o in graph.output)
    live = _live(steps, set(outputs))
    if outer is None:
        live = _live(_folded(live, stores), set(outputs))
    for step in live:
        if step.row is None:
            raise UntrainableError(
                f"{step.at.label}: operator {step.op} has no row in the bridge to torch: give it "
                f"one with onnxprune.register_rule('{step.op}', ..., torch=function)"
            )
    inputs = tuple(i.name for i in graph.input if i.name not in keys)
    return Program(inputs, outputs, tuple(live))


def _constant(own: onnx.TensorProto, name: str, stores: Stores) -> Tensor:
    try:
        return tensor(stores.read(own))
    except UntrainableError as error:
        raise UntrainableError(f"tensor '{name}': {error}") from error


def _step(node: onnx.NodeProto, stores: Stores, names: Named, keys: Mapping[str, str]) -> Step:
    op = operator(node)
    label = f"node '{node.name or next(iter(node.output), '')}' ({op})"
    bodies = {a.name: build(a.g, stores, names, keys) for a in node.attribute if a.HasField("g")}
    row = CONTROL.get(op) if bodies else stores.rows.get(op)
    inputs = tuple(keys.get(x, x) for x in node.input)
    statistics = inputs[3:5] if op in NORMS else ()
    frozen = any(x not in stores.weights or stores.uses[x] > 1 for x in statistics)
    opset = stores.opsets.get(node.domain, 1)
    count = len(node.output)
    at = At(label, attribute_values(node), opset, count, frozen, stores.mode)
    reads = {*inputs, *(keys.get(x, x) for x in captures(node))} - {""}
    return Step(op, row, at, inputs, tuple(node.output), bodies, frozenset(reads))


def _live(steps: Sequence[Step], wanted: set[str]) -> list[Step]:
    """The steps that results depend on."""
    found = []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            found.append(step)
            wanted |= step.reads
    return found[::-1]


def _folded(steps: Sequence[Step], stores: Stores) -> list[Step]:
    """The steps that are left when what depends on sizes and stored numbers alone is computed."""
    left, weighted = [], set(stores.weights)
    for step in steps:
        sized = step.op in SIZES or not weighted.intersection(step.reads)
        known = [stores.known(name) for name in step.outputs] if sized else [None]
        if all(value is not None for value in known):
            made = tuple(tensor(value) for value in known)
        elif stores.constants.keys() >= step.reads and _computable(step):
            assert step.row is not None
            with torch.no_grad():
                result = step.row(step.at, *(stores.constants.get(x) for x in step.inputs))
            made = result if isinstance(result, tuple) else (result,)
        else:
            left.append(step)
            weighted.update(step.outputs if not sized else ())
            continue
        stores.constants.update(zip(step.outputs, made, strict=False))
    return left


def _computable(step: Step) -> bool:
    return step.row is not None and not step.bodies and step.op not in RANDOM


def every(program: Program) -> Iterator[Step]:
    """All steps, those of bodies too."""
    for part in programs(program):
        yield from part.steps


def programs(program: Program) -> Iterator[Program]:
    """The program and all bodies."""
    yield program
    for step in program.steps:
        for body in step.bodies.values():
            yield from programs(body)


def statistics(program: Program) -> set[str]:
    """The stored statistics of norms that move in training."""
    norms = (s for s in every(program) if s.op in NORMS and not s.at.frozen)
    return {name for step in norms for name in step.inputs[3:5]}


def formulas(program: Program, weights: Mapping[str, Array]) -> set[str]:
    """The float tensors that are part of a formula, and not trained.

    Single numbers (but for those that layers read as weights), settings such as the factors of a
    Resize, what operators without a gradient read, masks, and statistics that several norms share.
    """
    trained: set[str] = set()
    for step in every(program):
        for position, name in enumerate(step.inputs):
            if name not in weights or step.op in NO_GRADIENT:
                continue
            if position in SETTINGS.get(step.op, ()) or (step.op in NORMS and position > 2):
                continue
            if weights[name].size > 1 or step.op in WEIGHTED:
                trained.add(name)
    return {name for name in weights if name not in trained or _is_mask(weights[name])}


def _is_mask(values: Array) -> bool:
    wide = np.asarray(values, np.float32)
    return bool(wide.size) and not bool((np.abs(wide) < LARGEST).all())
