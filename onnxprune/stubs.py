"""Branches that never run: where they read what is pruned, a stub takes their place.

An If that always goes one way binds the branch that runs alone. The other one stays in the file
as it is, unless it reads a value or a constant that loses something: it would make no sense then,
or hold a full copy of the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import Model, Node, subgraphs
from onnxprune.rules.control import LINKS

FROM_OPSET: Final = 9  # which ConstantOfShape is of
TYPES: Final = frozenset(
    {
        *(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)


def idle(node: Node) -> int | None:
    """Which body of a node never runs, by its place among its attributes; None if each may."""
    seen = {body.place for body in node.bodies}
    others = [k for k, _ in enumerate(subgraphs(node.proto)) if k not in seen]
    return others[0] if node.op in LINKS and seen and others else None


def is_replaceable(node: Node, model: Model) -> bool:
    """Whether a stub can stand for the body that never runs: its results are known tensors."""
    return (
        idle(node) is not None
        and model.opset >= FROM_OPSET
        and all(
            _kind(name, model) in TYPES and model.shape(name) is not None
            for name in node.bodies[0].outputs
        )
    )


def stub(
    node: Node, model: Model, shapes: Sequence[Sequence[int]], unused: Callable[[str], str]
) -> onnx.GraphProto:
    """Zeros for each result.

    Args:
        node: one that is replaceable.
        model: the model.
        shapes: those of the results.
        unused: gives a free name like the one that it is given.
    """
    place = idle(node)
    assert place is not None
    old = [*subgraphs(node.proto)][place]
    nodes, outputs = [], []
    for value, running, shape in zip(old.output, node.bodies[0].outputs, shapes, strict=True):
        kind = _kind(running, model)
        sizes = numpy_helper.from_array(np.array(shape, np.int64))
        zero = helper.make_tensor("", kind, [1], [0])
        size = unused(f"{value.name}/sizes")
        nodes.append(helper.make_node("Constant", [], [size], value=sizes))
        nodes.append(helper.make_node("ConstantOfShape", [size], [value.name], value=zero))
        outputs.append(helper.make_tensor_value_info(value.name, kind, None))
    return helper.make_graph(nodes, old.name, [], outputs, doc_string=old.doc_string or None)


def _kind(name: str, model: Model) -> int:
    """The element type of a value; 0 where it is not known."""
    param = model.params.get(name)
    return param.dtype if param is not None else model.dtypes.get(name, TensorProto.UNDEFINED)
