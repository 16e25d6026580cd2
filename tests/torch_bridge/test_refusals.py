"""What the bridge does not carry is refused in one sentence that names the node."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.files import load
from onnxprune.torch_bridge import UntrainableError, bridge
from tests import graphs
from tests.graphs import weight

torch = pytest.importorskip("torch", reason="torch is not installed")

PACKED = "packed operands, a mask of keys or a cache"
AHEAD = "a mask of what lies ahead, or present keys"
MASK = "a mask, a cache or present keys"
FOUR = TensorProto.INT4
TOKENS, KEYS = weight(0, 2, 3, 8), np.ones((2, 3), np.int32)
GRU = [weight(0, 5, 1, 2), weight(1, 1, 9, 2), weight(2, 1, 9, 3)]
COLUMNS = [weight(0, 1, 4, 3), np.array([6]), np.array([4])]
NORM = [weight(0, 4), *(np.ones(4, np.float32) for _ in range(4))]
# Operator, operands, attributes, results, and what is not carried.
CASES: dict[str, tuple[str, list[Any], dict[str, Any], int, str]] = {
    "norm": ("BatchNormalization", NORM, {}, 1, "an operand without channels"),
    "conv": (
        *("Conv", [weight(0, 1, 1, 3, 3, 3, 3), weight(1, 1, 1, 1, 1, 1, 1)], {}, 1),
        "a convolution over 4 axes",
    ),
    "image": ("Col2Im", COLUMNS, {}, 1, "an image with 1 axes"),
    "clip": ("GRU", GRU, {"hidden_size": 3, "clip": 1.0}, 1, "the attribute clip"),
    "int4": (
        *("QuantizeLinear", [TOKENS, np.float32(0.1)], {"output_dtype": FOUR}, 1),
        "numbers of type torch.int4",
    ),
    "packed": ("com.microsoft::MultiHeadAttention", [TOKENS], {"num_heads": 2}, 1, PACKED),
    "keys": (
        *("com.microsoft::MultiHeadAttention", [TOKENS, TOKENS, TOKENS, None, KEYS]),
        *({"num_heads": 2}, 1, PACKED),
    ),
    "ahead": (
        *("com.microsoft::MultiHeadAttention", [TOKENS, TOKENS, TOKENS]),
        *({"num_heads": 2, "unidirectional": 1}, 1, AHEAD),
    ),
    "present": (
        *("com.microsoft::MultiHeadAttention", [TOKENS, TOKENS, TOKENS]),
        *({"num_heads": 2}, 3, AHEAD),
    ),
    "mask": (
        *("com.microsoft::Attention", [TOKENS, weight(1, 8, 24), weight(2, 24), KEYS]),
        *({"num_heads": 2}, 1, MASK),
    ),
    "causal": (
        *("com.microsoft::Attention", [TOKENS, weight(1, 8, 24), weight(2, 24)]),
        *({"num_heads": 2, "unidirectional": 1}, 1, MASK),
    ),
    "batch": (
        *("com.microsoft::FusedMatMul", [TOKENS, weight(1, 2, 8, 3)]),
        *({"transBatchA": 1}, 1, "transposed batch axes"),
    ),
}


def module_of(case: str) -> tuple[Any, Any]:
    """The module of one node, and its input: the first operand."""
    op, operands, attributes, results, _ = CASES[case]
    domain, _, name = op.rpartition("::")
    names = ["" if x is None else f"o{k}" for k, x in enumerate(operands)]
    made = [f"y{k}" for k in range(results)]
    nodes = [helper.make_node(name, names, made, "n", domain=domain, **attributes)]
    stored = {n: x for n, x in zip(names[1:], operands[1:], strict=True) if n}
    sizes: dict[str, Any] = {key: [] for key in made}
    proto = graphs.model(nodes, {"o0": operands[0].shape}, sizes, stored, 21)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return bridge(load(proto)), torch.from_numpy(operands[0])


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_a_row_does_not_carry_is_refused(case: str) -> None:
    module, x = module_of(case)
    op, wrong = CASES[case][0], CASES[case][-1]
    sentence = f"node 'n' ({op}): {wrong}, which the bridge to torch does not carry"
    with pytest.raises(UntrainableError, match=f"^{re.escape(sentence)}$"):
        module(x)


def test_a_type_that_torch_lacks_is_refused() -> None:
    nodes = [graphs.node("Cast", "x", "y", to=TensorProto.FLOAT8E4M3FN)]
    kinds = {"y": TensorProto.FLOAT8E4M3FN}
    proto = graphs.model(nodes, {"x": [2]}, {"y": [2]}, {}, 21, **kinds)
    with pytest.raises(UntrainableError, match=r"^torch has no type float8e4m3fn$"):
        bridge(load(proto))(torch.ones(2))


def test_a_sparse_initializer_is_refused() -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 5]), "places")
    proto = graphs.model([graphs.node("MatMul", "x w", "y")], {"x": [2, 4]}, {"y": [2, 3]}, {})
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    sentence = (
        "initializer 'w' is sparse, which the bridge to torch does not carry: store it as a "
        "plain tensor"
    )
    with pytest.raises(UntrainableError, match=f"^{sentence}$"):
        bridge(load(proto))


def test_a_scan_of_opset_8_is_refused() -> None:
    given = [("s", [2]), ("x", [2])]
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in given]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "u")]
    inner = [graphs.node("Add", "s x", "t"), graphs.node("Identity", "t", "u")]
    body = helper.make_graph(inner, "body", kinds, made)
    scan = graphs.node("Scan", "- a b", "y z", body=body, num_scan_inputs=1)
    sizes: dict[str, Any] = {"a": [1, 2], "b": [1, 3, 2]}
    proto = graphs.model([scan], sizes, {"y": [1, 2], "z": [1, 3, 2]}, {}, 8)
    sentence = r"^node 'n_y' \(Scan\): Scan of opset 8, which the bridge to torch does not carry$"
    with pytest.raises(UntrainableError, match=sentence):
        bridge(load(proto))(torch.ones(1, 2), torch.ones(1, 3, 2))
