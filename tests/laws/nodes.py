"""One node as a model, and what runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune import runtime
from onnxprune.files import load
from onnxprune.model import Array, Model, Node, operator
from onnxprune.notation import Fit
from onnxprune.rules import BUILT_IN, Row, fit_node
from onnxprune.rules.site import Site

Runner = Callable[[onnx.ModelProto], list[Array]]

# What a runtime gets wrong itself: it is not asked.
FAULTY = {
    ("reference", "GlobalMaxPool"): "it takes the wrong axes where the rank is not 4",
    ("reference", "LRN"): "it loops over as many channels as the batch has samples",
}


def one_node(
    node: onnx.NodeProto, operands: Sequence[Array | None], opsets: Sequence[Any]
) -> onnx.ModelProto:
    """A model of one node whose operands are all stored in it."""
    graph = onnx.GraphProto(name="square")
    graph.node.append(node)
    for name in dict.fromkeys(x for x in node.output if x):
        graph.output.add(name=name)
    known = {}
    for name, value in zip(node.input, operands, strict=True):
        if name and value is not None:
            known[name] = numpy_helper.from_array(value, name)
    graph.initializer.extend(known.values())
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_ort(proto: onnx.ModelProto) -> list[Array]:
    names = [o.name for o in proto.graph.output]
    return runtime.run(runtime.session(proto, None, optimize=False), {}, names)


def by_reference(proto: onnx.ModelProto) -> list[Array]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [np.asarray(x) for x in ReferenceEvaluator(proto).run(None, {})]


RUNNERS: dict[str, Runner] = {"ort": by_ort, "reference": by_reference}


def attempt(runner: str, proto: onnx.ModelProto) -> list[Array] | None:
    """The results, or None where this runtime has not got the operator, type or opset."""
    if (runner, operator(proto.graph.node[0])) in FAULTY:
        return None
    try:
        return RUNNERS[runner](proto)
    except Exception:  # noqa: BLE001  (each runtime has its own ways to refuse)
        return None


@dataclass(frozen=True)
class Case:
    """One node with all its operands."""

    name: str
    proto: onnx.ModelProto

    @property
    def op(self) -> str:
        return operator(self.proto.graph.node[0])

    @property
    def node(self) -> Node:
        return self.model.nodes[0]

    @cached_property
    def model(self) -> Model:
        """With the shapes of results that onnx's inference does not find, found by running."""
        model = load(self.proto, self.name)
        sample = model.samples[0]
        known = dict(sample.shapes)
        names = [o.name for o in self.proto.graph.output]
        if any(None in known.get(name, (None,)) for name in names):
            found = (attempt(runner, self.proto) for runner in RUNNERS)
            results = next((r for r in found if r is not None), [])
            known.update({n: r.shape for n, r in zip(names, results, strict=False)})
        return replace(model, samples=(replace(sample, shapes=known),))

    @cached_property
    def operands(self) -> list[Array | None]:
        values = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        return [values.get(name) for name in self.proto.graph.node[0].input]

    def with_operands(self, operands: Sequence[Array | None]) -> onnx.ModelProto:
        return one_node(self.proto.graph.node[0], operands, self.proto.opset_import)

    def line(self) -> str:
        """The row of the built-in table, computed if it has to be."""
        row = BUILT_IN[self.op]
        return row(Site(self.node, self.model, self.model.samples[0])) if callable(row) else row

    def fit(self, row: Row | None = None) -> Fit:
        return fit_node(self.node, self.model, {} if row is None else {self.node.op: row})[0]
