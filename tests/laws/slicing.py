"""Slicing and restating by a rule's fit, a second time: nothing of passes/shrink is used here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxprune.model import Array
from onnxprune.notation import Axis, Fit
from tests.laws.nodes import Case, one_node

Mask = npt.NDArray[np.bool_]
Masks = Mapping[str, Mask]
Patterns = Sequence[tuple[Axis, ...] | None]

SINGLE = frozenset({"group"})  # attributes of one number that may be left out


def axis_mask(axis: Axis, fit: Fit, masks: Masks) -> Mask:
    """The kept indices of an axis: Kronecker products, concatenated."""
    parts = []
    for term in axis:
        part = np.ones(1, bool)
        for letter in term:
            own = masks.get(letter, np.ones(fit.sizes[letter] or 0, bool))
            part = np.kron(part, own).astype(bool)
        parts.append(part)
    return np.concatenate(parts)


def sliced(values: Sequence[Array | None], patterns: Patterns, fit: Fit, masks: Masks) -> list[Any]:
    """Every tensor without the indices that are not kept."""
    found: list[Array | None] = []
    for value, axes in zip(values, patterns, strict=True):
        if value is not None and axes is not None:
            for position, axis in enumerate(axes):
                value = np.compress(axis_mask(axis, fit, masks), value, axis=position)
        found.append(value)
    return found


def pruned(case: Case, fit: Fit, masks: Masks) -> onnx.ModelProto:
    """The node on sliced operands, with what its clauses state restated."""
    operands = sliced(case.operands, fit.operands, fit, masks)
    node = onnx.NodeProto()
    node.CopyFrom(case.proto.graph.node[0])
    for target, axes in fit.clauses:
        if isinstance(target, str):
            _restate_attribute(node, target, axes, fit, masks)
            continue
        old = operands[target] if target < len(operands) else None
        if old is None:  # an operand that was not given is added
            node.input.extend([""] * (target + 1 - len(node.input)))
            operands.extend([None] * (target + 1 - len(operands)))
            node.input[target] = "restated"
            _drop_attribute(node, "num_outputs")  # instead of which the operand may stand
        sizes = _restated(None if old is None else old.tolist(), axes, fit, masks)
        operands[target] = np.array(sizes, np.int64 if old is None else old.dtype)
    return one_node(node, operands, case.proto.opset_import)


def _restated(old: Sequence[int] | None, axes: Sequence[Axis], fit: Fit, masks: Masks) -> list[int]:
    """The sizes that a clause states, of which those change that lose indices."""
    found = []
    for position, axis in enumerate(axes):
        changes = not masks.keys().isdisjoint(x for term in axis for x in term)
        if changes or old is None:
            found.append(int(axis_mask(axis, fit, masks).sum()))
        else:
            found.append(int(old[position]))
    return found


def _restate_attribute(
    node: onnx.NodeProto, name: str, axes: Sequence[Axis], fit: Fit, masks: Masks
) -> None:
    old = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
    single = isinstance(old, int) or (old is None and name in SINGLE)
    sizes = _restated([old] if isinstance(old, int) else old, axes, fit, masks)
    _drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, sizes[0] if single else sizes))


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
