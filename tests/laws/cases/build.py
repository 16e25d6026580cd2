"""Short ways to write a case."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.model import Array
from tests.laws.nodes import Case, one_node

USUAL_OPSET = 22

# A shape stands for random floats of it, a list for a vector of int64, None for an absent operand.
Given = tuple[int, ...] | list[int] | Array | None


def random(shape: tuple[int, ...], seed: str = "") -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{shape}{seed}".encode()))


def normal(*shape: int, seed: str = "") -> Array:
    return random(shape, seed).standard_normal(shape).astype(np.float32)


def uniform(*shape: int, low: float = 0.1, high: float = 0.9) -> Array:
    return random(shape).uniform(low, high, shape).astype(np.float32)


def integers(*shape: int, high: int = 7, dtype: Any = np.int64, low: int = 0) -> Array:
    return random(shape).integers(low, high, shape).astype(dtype)


def flags(*shape: int, seed: str = "") -> Array:
    return random(shape, seed).random(shape) < 0.5


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def make(
    op: str,
    *operands: Given,
    opset: int | None = None,
    results: int = 1,
    note: str = "",
    **attributes: Any,
) -> Case:
    """A case of one node; the operator may be written ``domain::Op``.

    Its name tells the operands' shapes and the attributes apart: a failure can be read.
    """
    domain, _, kind = op.rpartition("::")
    values = [_operand(given, f"{kind}{k}") for k, given in enumerate(operands)]
    inputs = ["" if v is None else f"x{k}" for k, v in enumerate(values)]
    while inputs and not inputs[-1]:
        inputs.pop()
    outputs = [f"y{k}" for k in range(results)]
    node = helper.make_node(kind, inputs, outputs, domain=domain, **attributes)
    if opset is None:
        opset = USUAL_OPSET
        if onnx.defs.has(kind) and not _is_known(kind, opset):
            opset = onnx.defs.get_schema(kind).since_version
    opsets = [helper.make_operatorsetid("", opset)]
    if domain:
        opsets.append(helper.make_operatorsetid(domain, 1))
    described = [str(list(v.shape)).replace(" ", "") if v is not None else "-" for v in values]
    described += [f"{k}={v}".replace(" ", "") for k, v in attributes.items()]
    name = " ".join([kind, *described, f"@{opset}", note]).strip()
    return Case(name, one_node(node, values[: len(inputs)], opsets))


def _is_known(kind: str, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(kind, opset).deprecated
    except onnx.defs.SchemaError:
        return False


def _operand(given: Given, seed: str) -> Array | None:
    if isinstance(given, tuple):
        return normal(*given, seed=seed)
    if isinstance(given, list):
        return np.array(given, np.int64)
    return given
