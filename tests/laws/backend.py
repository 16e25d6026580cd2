"""The operator cases that onnx's backend tests ship, as cases of the commuting square."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.model import operator
from tests.laws.nodes import Case, one_node

RANDOM = ("test_training_dropout",)  # what it drops depends on the shape


@lru_cache(maxsize=1)
def cases() -> dict[str, list[Case]]:
    """Cases of one node with tensors as operands, by operator."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    found: dict[str, list[Case]] = {}
    for test in collected:
        if (
            test.name.startswith(RANDOM)
            or test.model is None
            or len(test.model.graph.node) != 1
            or not test.data_sets
        ):
            continue
        node = test.model.graph.node[0]
        values = [_array(v) for v in test.data_sets[0][0]]
        if any(not isinstance(v, np.ndarray | np.generic) for v in values):
            continue
        given = dict(zip((i.name for i in test.model.graph.input), values, strict=True))
        operands = [np.asarray(given[x]) if x else None for x in node.input]
        case = Case(test.name, one_node(node, operands, test.model.opset_import))
        found.setdefault(operator(node), []).append(case)
    return found


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
