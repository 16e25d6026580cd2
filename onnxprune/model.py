"""The model as the passes see it: nodes, parameters, and what is known of shapes.

The file's protobuf stays the one truth and is never edited here. ``Node`` and ``Param`` are views
of it, in which each operand has the name that the plan uses: an initializer that serves unrelated
layers by accident goes by ``NAME@OUTPUT:INDEX``, one name for each use (see passes/normalize).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxprune.notation import Shape

Array = npt.NDArray[Any]
DEFAULTED_FROM: Final = 4  # from this IR version on an initializer among the inputs is a default


@dataclass(frozen=True)
class Body:
    """A body of a control-flow node that is looked into; all names of a file are distinct.

    ``place`` is its place among the bodies of the node, those that are not looked into counted.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    proto: onnx.GraphProto = field(repr=False)
    place: int


@dataclass(frozen=True)
class Node:
    """One node. ``op`` is the operator's type, with its domain where that is not ai.onnx.

    Attributes:
        index: its place among the nodes of the main graph; inside a body that of the body's owner.
        captured: the outer values that its bodies read.
        bodies: those that are looked into: of an If that always goes one way, that one alone.
        inside: whether it stands in a body.
    """

    index: int
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto = field(repr=False)
    captured: tuple[str, ...] = ()
    bodies: tuple[Body, ...] = ()
    inside: bool = False

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes' values, subgraphs left out."""
        return {
            a.name: helper.get_attribute_value(a)
            for a in self.proto.attribute
            if not a.HasField("g") and not a.graphs
        }

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """The outer values that bodies read which are not looked into."""
        if not self.captured:
            return ()
        seen = {body.place for body in self.bodies}
        others = [body for k, body in enumerate(subgraphs(self.proto)) if k not in seen]
        return tuple(dict.fromkeys(name for body in others for name in body_captures(body)))

    @property
    def key(self) -> str:
        """The first result that has a name: what the plan and edits know the node by."""
        return first_name(self.outputs)

    @property
    def label(self) -> str:
        """What a message calls the node: its name, or its first output's where it has none."""
        return f"node '{self.proto.name or self.key}' ({self.op})"


@dataclass(frozen=True)
class Param:
    """A constant tensor that may lose indices: an initializer, a Constant, or a folded value.

    Attributes:
        name: the plan's name for it.
        origin: the name of the file's tensor (or Constant output, or folded value) behind it.
        shape: its sizes.
        dtype: onnx.TensorProto data type.
        read: reads the values.
    """

    name: str
    origin: str
    shape: tuple[int, ...]
    dtype: int
    read: Callable[[], Array] = field(repr=False)
    folded: bool = False

    @property
    def size_bytes(self) -> float:
        """Bytes of the values in the file (half a byte for 4-bit types)."""
        return float(np.prod(self.shape, dtype=np.int64)) * itemsize(self.dtype)


@dataclass(frozen=True)
class Sample:
    """Shapes and small values of a graph for one choice of its dynamic sizes."""

    shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        proto: the file; weights kept outside it are not loaded.
        folder: where external data lies, if the model came from a file.
        name: what reports call it: the file's name.
        nodes: the nodes in topological order; those that only rename a constant are left out.
        params: parameters by plan name.
        samples: one where all sizes are fixed; else two, for two choices of the dynamic sizes.
        dtypes: element types of values, as far as they are known.
        held: whether an axis that is declared dynamic was held at one size, since the graph made
            no sense at others; what is computed from it must not be taken for fixed.
        open_io: inputs and outputs of the graph whose channels may go.
        renamed: the file's names of values in bodies, by those that ``proto`` has for them.
        defaults: initializers that a caller is meant to give other values for.
    """

    proto: onnx.ModelProto = field(repr=False)
    folder: Path | None
    name: str
    nodes: tuple[Node, ...] = field(repr=False)
    params: Mapping[str, Param] = field(repr=False)
    samples: tuple[Sample, ...] = field(repr=False)
    dtypes: Mapping[str, int] = field(repr=False)
    held: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False)
    open_io: frozenset[str] = frozenset()
    defaults: frozenset[str] = frozenset()

    @cached_property
    def opset(self) -> int:
        """The version of the ai.onnx operators."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=1)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a caller has to give."""
        stored = {i.name for i in self.proto.graph.initializer}
        return tuple(i.name for i in self.proto.graph.input if i.name not in stored)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(o.name for o in self.proto.graph.output)

    @cached_property
    def every(self) -> tuple[Node, ...]:
        """All nodes, also those in bodies, which come before their owner."""
        return tuple(each(self.nodes))

    @cached_property
    def used_params(self) -> tuple[str, ...]:
        """The parameters that nodes read, in the order of their first use."""
        names = (name for node in self.every for name in node.inputs if name in self.params)
        return tuple(dict.fromkeys(names))

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The node that makes each value, also of those in bodies."""
        return {name: node for node in self.every for name in node.outputs if name}

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def shape(self, value: str) -> Shape | None:
        """The shape of a value; an axis that is dynamic or unknown has None."""
        shapes = [sample.shapes.get(value) for sample in self.samples]
        first = shapes[0]
        if first is None or any(s is None or len(s) != len(first) for s in shapes):
            return None
        columns = zip(*(s for s in shapes if s is not None), strict=True)
        return tuple(column[0] if len(set(column)) == 1 else None for column in columns)

    def constant(self, value: str) -> Array | None:
        """A small value that is known and does not depend on dynamic sizes."""
        if self.held and value not in self.params:
            return None
        found = [sample.constants.get(value) for sample in self.samples]
        if found[0] is None or any(x is None or not np.array_equal(x, found[0]) for x in found):
            return None
        return found[0]


def itemsize(dtype: int) -> float:
    """Bytes of one element of an onnx.TensorProto data type."""
    name = onnx.TensorProto.DataType.Name(dtype)
    if name.endswith(("INT4", "4E2M1")):
        return 0.5
    if name.endswith("INT2"):
        return 0.25
    return float(np.dtype(helper.tensor_dtype_to_np_dtype(dtype)).itemsize)


def first_name(names: Iterable[str]) -> str:
    """The first name that is not empty; optional results that are left out have empty ones."""
    return next((name for name in names if name), "")


def each(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes, and before each of them the nodes of its bodies."""
    for node in nodes:
        for body in node.bodies:
            yield from each(body.nodes)
        yield node


def mapped(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node changed, and all nodes of its bodies."""
    bodies = tuple(
        replace(body, nodes=tuple(mapped(inner, change) for inner in body.nodes))
        for body in node.bodies
    )
    return change(replace(node, bodies=bodies) if bodies else node)


def placed(node: Node, index: int) -> Node:
    """The node at another place of the main graph."""
    return mapped(node, lambda own: replace(own, index=index))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captures(node: onnx.NodeProto) -> tuple[str, ...]:
    """The outer values that the bodies of a control-flow node read."""
    found = (name for body in subgraphs(node) for name in body_captures(body))
    return tuple(dict.fromkeys(found))


def body_captures(body: onnx.GraphProto) -> tuple[str, ...]:
    """The outer values that a body reads."""
    found: dict[str, None] = {}
    own = {i.name for i in body.input} | {i.name for i in body.initializer}
    own |= {i.values.name for i in body.sparse_initializer}
    for inner in body.node:
        for name in (*inner.input, *captures(inner)):
            if name and name not in own:
                found[name] = None
        own.update(inner.output)
    for result in body.output:
        if result.name not in own:
            found[result.name] = None
    return tuple(found)


def operator(proto: onnx.NodeProto) -> str:
    """The operator of a node: ``Conv``, or ``com.microsoft::Attention``."""
    if proto.domain in ("", "ai.onnx"):
        return proto.op_type
    return f"{proto.domain}::{proto.op_type}"
