"""The law of the bridge's rows: each gives what onnx's backend tests expect of its operator."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.files import load
from onnxprune.model import operator
from onnxprune.torch_bridge import UntrainableError, bridge
from onnxprune.torch_bridge.table import CONTROL, NO_GRADIENT, TABLE

torch = pytest.importorskip("torch", reason="torch is not installed")

EXACT, HALF, BRAIN = 1e-5, 2e-3, 1e-2  # relative, in single and half precision, and bfloat16
PRINTED = 1e-4  # where the expected values are written with four decimals

# Cases that the bridge does not carry, by the beginning of their names; each with the reason.
WITHOUT = {
    "test_col2im_5d": "torch folds two axes",
    "test_equal_string": "torch has no texts",
    "test_identity_opt": "optional values",
    "test_if_opt": "optional values",
    "test_loop16_seq_none": "optional values",
    "test_scan_sum": "Scan of opset 8",
    "test_training_dropout": "what is dropped is random",
    "test_unique_bfloat16": "ONNX Runtime has no kernel",
}
# Types that torch has no tensors of.
UNSUITED = ("int4", "uint4", "int2", "uint2", "float4", "float8")
WRITTEN = ("test_averagepool_2d_ceil_last", "test_gridsample_bicubic", "test_roialign_aligned")
# ONNX Runtime takes whole sizes where onnx takes the fraction: it is the one to agree with.
OTHERWISE = ("downsample_scales_linear_align_corners", "downsample_scales_cubic_align_corners")
# Rows without such a case: other tests hold them against ONNX Runtime.
ELSEWHERE = {
    "ConcatFromSequence",
    "GlobalLpPool",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceLength",
    "SimplifiedLayerNormalization",
    *(op for op in TABLE if "::" in op and op != "ai.onnx.ml::ArrayFeatureExtractor"),
}


@lru_cache(maxsize=1)
def every_case() -> list[Any]:
    """Cases of one node of onnx's own tests."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    whole = [(case, case.model) for case in collected if case.data_sets]
    return [case for case, model in whole if model is not None and len(model.graph.node) == 1]


@lru_cache(maxsize=1)
def cases() -> dict[str, list[Any]]:
    """Cases of one node with a row, by operator."""
    found: dict[str, list[Any]] = {}
    for case in every_case():
        op = operator(case.model.graph.node[0])
        if op in {*TABLE, *CONTROL} and not case.name.startswith(tuple(WITHOUT)):
            found.setdefault(op, []).append(case)
    return found


def value(given: Any) -> Any:
    return numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given


def is_suited(given: Any) -> bool:
    return not str(getattr(given, "dtype", "")).startswith(UNSUITED)


def as_torch(given: Any) -> Any:
    from onnxprune.torch_bridge.at import tensor

    return [tensor(x) for x in given] if isinstance(given, list) else tensor(given)


def close(found: Any, expected: Any, name: str) -> None:
    from onnxprune.torch_bridge.at import array

    if isinstance(expected, list):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            close(one, other, name)
        return
    own, wanted = array(found), np.asarray(expected)
    assert own.shape == wanted.shape, name
    if wanted.dtype.kind in "iub":
        assert np.array_equal(own.astype(wanted.dtype), wanted), name
        return
    narrow = {"float16": HALF, "bfloat16": BRAIN}.get(wanted.dtype.name, EXACT)
    near = PRINTED if name.startswith(WRITTEN) else narrow / 10
    np.testing.assert_allclose(
        own.astype(np.float64), wanted.astype(np.float64), narrow, near, err_msg=name
    )


@pytest.mark.parametrize("op", sorted({*TABLE, *CONTROL} - ELSEWHERE))
def test_a_row_does_what_onnx_expects(op: str) -> None:
    count = 0
    for case in cases()[op]:
        operands, results = ([value(v) for v in values] for values in case.data_sets[0])
        if not all(map(is_suited, (*operands, *results))) or _casts_to_unsuited(case):
            continue
        names = [i.name for i in case.model.graph.input]
        if case.name.endswith(OTHERWISE):
            session = runtime.session(case.model, None)
            feeds = dict(zip(names, operands, strict=True))
            results = runtime.run(session, feeds, [o.name for o in case.model.graph.output])
        module = bridge(load(case.model)).eval()
        with torch.no_grad():
            found = module.run(dict(zip(names, map(as_torch, operands), strict=True)))
        for output, expected in zip(case.model.graph.output, results, strict=True):
            close(found[output.name], expected, case.name)
        count += 1
    assert count


def _casts_to_unsuited(case: Any) -> bool:
    """Whether types appear that only the graph states."""
    types = [v.type.tensor_type.elem_type for v in case.model.graph.output]
    names = [onnx.TensorProto.DataType.Name(t).lower() for t in types]
    return any(name.startswith(UNSUITED) for name in names)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_is_left_out_is_there(name: str) -> None:
    """A case that onnx renames or drops has no business in the list."""
    left_out = [case for case in every_case() if case.name.startswith(name)]
    assert any(operator(case.model.graph.node[0]) in {*TABLE, *CONTROL} for case in left_out)


def test_integer_results_carry_no_gradient() -> None:
    """Rows that are said to have no gradient have none, on the first case of each."""
    for op in sorted(NO_GRADIENT & cases().keys()):
        case = cases()[op][0]
        operands = [value(v) for v in case.data_sets[0][0]]
        if not all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in operands):
            continue
        given = [torch.tensor(v, requires_grad=True) for v in operands]
        found = bridge(load(case.model)).run(
            dict(zip([i.name for i in case.model.graph.input], given, strict=True))
        )
        assert not any(x.requires_grad for x in found.values()), op


def test_a_type_without_tensors_is_refused() -> None:
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [2], b"\x21", raw=True)
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["y"], name="dq")
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    with pytest.raises(UntrainableError, match="tensor 'w': torch has no tensors of type int4"):
        bridge(load(model))
