"""What computed rules say of small nodes: each line shown is what the rule returns for its node."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.files import load
from onnxprune.rules import BUILT_IN
from onnxprune.rules.site import Site

OPSET: Final = 23
Operand = tuple[int, ...] | list[Any] | int | None


@dataclass(frozen=True)
class Case:
    """A node to show a rule on.

    Attributes:
        operands: a tuple is the shape of a value; a list or a number is a constant; None is absent.
        attributes: those of the node.
        results: how many it has.
        opset: the version of its operator.
        dtype: the element type of its first operand.
        made: the shape of its result, where onnx does not know the operator.
    """

    operands: tuple[Operand, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    results: int = 1
    opset: int = OPSET
    dtype: int = TensorProto.FLOAT
    made: tuple[int, ...] | None = None

    def __str__(self) -> str:
        named = (f"{key}={value}" for key, value in self.attributes.items())
        return " ".join((*map(_told, self.operands), *named)).replace(", ", ",")


def _told(operand: Operand) -> str:
    """A shape in brackets, a constant in braces."""
    if operand is None:
        return "-"
    if isinstance(operand, tuple):
        return str(list(operand))
    return "{" + str(operand).removeprefix("[").removesuffix("]") + "}"


def _case(*operands: Operand, **attributes: Any) -> Case:
    return Case(operands, attributes)


IMAGE: Final = (1, 8, 4, 4)
_BINARY: Final = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
_KINDS: Final = (
    *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"),
)
_BROADCAST: Final = (_case(IMAGE, (8, 1, 1)),)
_REDUCE: Final = (_case(IMAGE, [2, 3]), _case(IMAGE, [1], keepdims=0))
_SOFTMAX: Final = (_case((2, 5, 8), axis=-1), _case((2, 5, 8), axis=1))
_ARG: Final = (_case((2, 5, 8), axis=1), _case((2, 5, 8), axis=-1, keepdims=0))
_CONV: Final = (_case(IMAGE, (6, 8, 3, 3)), _case(IMAGE, (8, 4, 3, 3), group=2))
_GEMM: Final = (_case((2, 8), (8, 6)), _case((2, 8), (6, 8), (6,), transB=1))
_MATMUL: Final = (_case((2, 5, 8), (8, 6)), _case((2, 3, 5, 8), (2, 3, 8, 5)))
_NORM: Final = (_case((2, 5, 8), (8,)), _case((2, 5, 8), (5, 8), axis=1))
_UINT8: Final = TensorProto.UINT8
_QCONV: Final = (_case(IMAGE, (), (), (6, 8, 3, 3), (6,), (6,), (), ()),)
_HEADS: Final = _case((2, 5, 8), (2, 7, 8), (2, 7, 12), num_heads=4)
_SKIP: Final = (_case((2, 5, 8), (2, 5, 8), (8,)),)
_POOLED: Final = (_case(IMAGE, (), (), (), ()), _case(IMAGE, (), (), (), (), channels_last=1))
_EACH: Final = (_case((8, 4), (8,), (8,), axis=0),)
_LSTM8: Final = (*((5, 2, 6), (1, 6, 16), (1, 4, 16)), *[None] * 5, (1,), (1,), (1,), (1,))
_CONTRIB: Final[dict[str, tuple[Case, ...]]] = {
    "Attention": (_case((2, 5, 6), (6, 24), (24,), num_heads=4),),
    "DequantizeLinear": _EACH,
    "DynamicQuantizeLSTM": (_case(*_LSTM8, hidden_size=4),),
    "DynamicQuantizeMatMul": (_case((2, 8), (8, 6), (6,), (6,)),),
    "EmbedLayerNormalization": (_case((2, 5), (2, 5), (9, 8), (7, 8), (2, 8), (8,), (8,)),),
    "GroupQueryAttention": (
        _case(
            (2, 5, 64), (2, 5, 32), (2, 5, 32), None, None, (2,), (), num_heads=8, kv_num_heads=4
        ),
    ),
    "MatMulInteger16": _MATMUL,
    "MatMulIntegerToFloat": (_case((2, 8), (8, 6), (), (6,)),),
    "MatMulNBits": (
        _case((2, 64), (6, 2, 16), (6, 2), K=64, N=6, bits=4, block_size=32),
        _case((2, 64), (6, 2, 16), (6, 2), (6, 1), K=64, N=6, bits=4, block_size=32),
    ),
    "DecoderMaskedMultiHeadAttention": (
        _case((2, 1, 24), (2, 4, 7, 6), (2, 4, 7, 6), num_heads=4),
    ),
    "GatherBlockQuantized": (
        _case((50, 32), [3, 1, 4], (50, 4), block_size=16, bits=4),
        _case((50, 64), (2, 5), (50, 4), block_size=16, bits=8),
    ),
    "MoE": (_case((2, 5, 8), (10, 4), (4, 16, 8), (4, 16), (4, 8, 16), (4, 8), k=2),),
    "MultiHeadAttention": (_HEADS, replace(_HEADS, attributes={"num_heads": 4, "scale": 0.5})),
    "QAttention": (_case((2, 5, 6), (6, 24), (24,), (), (), num_heads=4),),
    "QGemm": (_case((2, 8), (), (), (8, 6), (6,), (6,)),),
    "QLinearAveragePool": _POOLED,
    "QLinearConcat": (_case((), (), (1, 8, 4), (), (), (1, 3, 4), (), (), axis=1),),
    "QLinearConv": _QCONV,
    "QLinearGlobalAveragePool": _POOLED,
    "QLinearSoftmax": (_case((2, 5, 8), (), (), (), ()),),
    "QMoE": (
        _case((10, 8), (10, 4), (4, 16, 4), (4, 16), (4, 16), (4, 8, 8), (4, 8), (4, 8), k=1),
        _case(
            *((10, 64), (10, 4), (4, 32, 64), (4, 32, 4), None, (4, 64, 32), (4, 64, 2)),
            k=1,
            expert_weight_bits=8,
            block_size=16,
        ),
    ),
    "QuantizeLinear": _EACH,
    "RotaryEmbedding": (_case((2, 5, 32), (2, 5), (9, 4), (9, 4)),),
    "SkipLayerNormalization": _SKIP,
    "SkipSimplifiedLayerNormalization": _SKIP,
}
EXAMPLES: Final[dict[str, tuple[Case, ...]]] = {
    **dict.fromkeys(_BINARY, _BROADCAST),
    **dict.fromkeys((f"Reduce{kind}" for kind in _KINDS), _REDUCE),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _SOFTMAX),
    **dict.fromkeys(("ArgMax", "ArgMin"), _ARG),
    "Attention": (_case((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)),),
    "BatchNormalization": (_case(IMAGE, (8,), (8,), (8,), (8,)),),
    "Concat": (_case((1, 8, 4), (1, 3, 4), axis=1),),
    "ConstantOfShape": (_case([2, 8]),),
    "Conv": _CONV,
    "ConvInteger": (Case((IMAGE, (6, 8, 3, 3)), dtype=_UINT8),),
    "CumProd": (Case(((2, 5, 8), 1), opset=26),),
    "CumSum": (_case((2, 5, 8), 1),),
    "DeformConv": (_case(IMAGE, (6, 8, 3, 3), (1, 18, 2, 2)),),
    "DepthToSpace": (
        _case((1, 8, 4, 4), blocksize=2),
        _case((1, 8, 4, 4), blocksize=2, mode="CRD"),
    ),
    "DequantizeLinear": (
        Case(((8, 4), (), 0), dtype=_UINT8),
        Case(((8, 4), (8,)), {"axis": 0}, dtype=_UINT8),
    ),
    "Einsum": (_case((2, 5, 8), (2, 8, 6), equation="bij,bjk->bik"),),
    "Expand": (_case((1, 8, 1, 1), [2, 8, 4, 4]),),
    "Flatten": (_case(IMAGE), _case(IMAGE, axis=2)),
    "GRU": (_case((5, 2, 6), (1, 12, 6), (1, 12, 4), hidden_size=4),),
    "Gather": (_case((10, 8), [1, 3]), _case((3, 5, 8), 0)),
    "GatherElements": (_case((3, 2), [[0, 2]], axis=0),),
    "GatherND": (_case((10, 8), [[1], [3]]),),
    "Gemm": _GEMM,
    "GroupNormalization": (_case(IMAGE, (8,), (8,), num_groups=2),),
    "LSTM": (_case((5, 2, 6), (1, 16, 6), (1, 16, 4), hidden_size=4),),
    "LayerNormalization": _NORM,
    "LpNormalization": (_case((2, 5, 8)),),
    "MatMul": _MATMUL,
    "MatMulInteger": _MATMUL,
    "MaxPool": (_case(IMAGE, kernel_shape=[2, 2]),),
    "MeanVarianceNormalization": (_case(IMAGE),),
    "OneHot": (_case([1, 3], 8, [0, 1]),),
    "PRelu": (_case(IMAGE, (8, 1, 1)),),
    "Pad": (_case(IMAGE, [0, 0, 1, 1, 0, 0, 1, 1]), _case((1, 8, 4), [0, 4, 0, 0, 4, 0])),
    "QLinearConv": _QCONV,
    "QLinearMatMul": (_case((2, 8), (), (), (8, 6), (6,), (6,), (), ()),),
    "QuantizeLinear": (_case((8, 4), ()), _case((8, 4), (8,), axis=0)),
    "RMSNormalization": _NORM,
    "RNN": (_case((5, 2, 6), (1, 4, 6), (1, 4, 4), hidden_size=4),),
    "Reshape": (
        _case((2, 5, 12), [2, 5, 3, 4]),
        _case((2, 8, 4, 4), [2, -1]),
        _case((1, 6, 4, 4), [1, 4, 6, 4]),
    ),
    "Resize": (_case(IMAGE, None, None, [1, 8, 8, 8]),),
    "ReverseSequence": (_case((5, 2, 8), [5, 5]),),
    "RotaryEmbedding": (_case((2, 4, 5, 8), (2, 5, 4), (2, 5, 4)),),
    "Scatter": (Case(((3, 2), [[0, 2]], (1, 2)), opset=10),),
    "ScatterElements": (_case((3, 2), [[0, 2]], (1, 2)),),
    "ScatterND": (_case((10, 8), [[1], [3]], (2, 8)),),
    "SimplifiedLayerNormalization": _NORM,
    "Slice": (
        _case((1, 8, 4), [0], [4], [1]),
        _case((1, 8, 4), [0], [8], [1], [2]),
    ),
    "SpaceToDepth": (_case(IMAGE, blocksize=2),),
    "Split": (Case(((1, 8, 4), [3, 5]), {"axis": 1}, 2),),
    "Squeeze": (_case((1, 8, 1, 1), [2, 3]),),
    "Tile": (_case((1, 8, 4), [1, 3, 1]),),
    "TopK": (Case(((2, 5, 8), [3]), {"axis": 1}, 2),),
    "Transpose": (_case((2, 5, 8), perm=[0, 2, 1]),),
    "Trilu": (_case((2, 5, 8)),),
    "Unsqueeze": (_case((2, 8), [2, 3]),),
    "Upsample": (Case((IMAGE,), {"scales": [1.0, 1.0, 2.0, 2.0]}, opset=7),),
    **{f"com.microsoft::{op}": cases for op, cases in _CONTRIB.items()},
    "com.microsoft::FusedConv": _CONV,
    "com.microsoft::FusedGemm": (Case(((2, 8), (8, 6)), made=(2, 6)),),
    "com.microsoft::FusedMatMul": _MATMUL,
    "com.microsoft::TransposeMatMul": _MATMUL,
}


def examples(op: str) -> tuple[str, ...]:
    """Small nodes of an operator with a computed rule, and the line that it gives each of them."""
    row = BUILT_IN.get(op)
    if row is None or isinstance(row, str):
        return ()
    found = []
    for case in EXAMPLES.get(op, ()):
        model = load(_model(op, case))
        found.append(f"{case}:  {row(Site(model.nodes[-1], model, model.samples[0]))}")
    return tuple(found)


def _model(op: str, case: Case) -> onnx.ModelProto:
    """The node alone in a graph."""
    domain, _, name = op.rpartition("::")
    names = ["" if x is None else f"x{k}" for k, x in enumerate(case.operands)]
    given = [
        helper.make_tensor_value_info(n, case.dtype if k == 0 else TensorProto.FLOAT, list(x))
        for k, (n, x) in enumerate(zip(names, case.operands, strict=True))
        if isinstance(x, tuple)
    ]
    stored = [
        numpy_helper.from_array(np.array(x, np.int64), n)
        for n, x in zip(names, case.operands, strict=True)
        if isinstance(x, list | int)
    ]
    results = [f"y{k}" for k in range(case.results)]
    node = helper.make_node(name, names, results, domain=domain, **case.attributes)
    made = [onnx.ValueInfoProto(name=result) for result in results]
    graph = helper.make_graph([node], "example", given, made, stored)
    if case.made is not None:
        graph.value_info.append(helper.make_tensor_value_info("y0", case.dtype, case.made))
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets)
