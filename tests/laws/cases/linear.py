"""Cases of contractions: convolutions, matrix products, recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.laws.cases.build import Given, floats, make, uniform
from tests.laws.nodes import Case

MS = "com.microsoft::"
RANKS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((4,), (4,)),
    ((4,), (4, 4)),
    ((4, 4), (4,)),
    ((4, 4), (4, 4)),
    ((3, 4), (4, 5)),
    ((4, 4, 4), (4, 4)),
    ((4, 4), (4, 4, 4)),
    ((2, 3, 4), (2, 4, 5)),
    ((3, 3, 4), (4,)),
    ((2, 1, 3, 4), (5, 4, 3)),
    ((4,), (3, 4, 5)),
    ((2, 3, 4, 4), (2, 3, 4, 4)),
]


def cases() -> Iterator[Case]:
    yield from _convolutions()
    yield from _transposed()
    yield from _products()
    yield from _einsums()
    yield from _recurrent()


def _convolutions() -> Iterator[Case]:
    yield make("Conv", (2, 4, 5, 5), (6, 4, 3, 3), (6,), pads=[1, 1, 1, 1])
    yield make("Conv", (2, 4, 4, 4), (4, 4, 1, 1))
    yield make("Conv", (4, 4, 4, 4), (4, 4, 1, 1), (4,))
    yield make("Conv", (2, 4, 5, 5), (4, 4, 1, 1), strides=[2, 2])
    yield make("Conv", (2, 4, 5, 5), (4, 4, 1, 1), pads=[1, 0, 0, 0])
    yield make("Conv", (2, 4, 5, 5), (4, 4, 1, 1), auto_pad="SAME_UPPER")
    yield make("Conv", (2, 4, 6, 6), (6, 2, 3, 3), (6,), group=2)
    yield make("Conv", (2, 6, 6, 6), (6, 2, 3, 3), (6,), group=3, dilations=[2, 2])
    yield make("Conv", (2, 5, 5, 5), (5, 1, 3, 3), (5,), group=5)
    yield make("Conv", (2, 4, 5, 5), (12, 1, 3, 3), group=4)
    yield make("Conv", (2, 6, 7), (6, 3, 3), (6,), group=2, strides=[2])
    yield make("Conv", (2, 4, 3, 4, 5), (6, 4, 2, 2, 2), (6,))
    yield make("Conv", (2, 4, 3, 4, 5), (4, 1, 1, 1, 1), group=4)
    yield make(f"{MS}FusedConv", (2, 4, 5, 5), (6, 4, 3, 3), (6,), activation="Relu")
    yield make(f"{MS}FusedConv", (2, 4, 5, 5), (6, 4, 3, 3), (6,), (2, 6, 3, 3), activation="Relu")
    yield make("DeformConv", (2, 4, 5, 5), (6, 4, 3, 3), (2, 18, 3, 3), (6,), opset=22)
    yield make(
        "DeformConv", (2, 4, 5, 5), (6, 2, 2, 2), (2, 8, 4, 4), (6,), uniform(2, 4, 4, 4), group=2
    )


def _transposed() -> Iterator[Case]:
    yield make("ConvTranspose", (2, 4, 5, 5), (4, 6, 3, 3), (6,), strides=[2, 2])
    yield make("ConvTranspose", (2, 4, 4, 4), (4, 4, 1, 1))
    yield make("ConvTranspose", (2, 6, 5, 5), (6, 2, 3, 3), (4,), group=2)
    yield make("ConvTranspose", (2, 4, 5, 5), (4, 1, 2, 2), (4,), group=4, strides=[2, 2])
    yield make(
        "ConvTranspose", (2, 4, 5), (4, 3, 3), (3,), pads=[1, 1], output_padding=[1], strides=[2]
    )
    yield make("ConvTranspose", (2, 4, 3, 3, 3), (4, 3, 2, 2, 2), (3,))


def _products() -> Iterator[Case]:
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = ((5, 3) if a else (3, 5)), ((4, 5) if b else (5, 4))
        yield make("Gemm", x, y, (4,), transA=a, transB=b, alpha=0.5)
        yield make("Gemm", (4, 4), (4, 4), (4, 4), transA=a, transB=b, beta=2.0)
    for bias in ((), (1,), (4, 1), (1, 4), (1, 1)):
        yield make("Gemm", (4, 5), (5, 4), bias)
    yield make("Gemm", (4, 5), (5, 3))
    yield make(f"{MS}FusedGemm", (4, 5), (4, 5), (4,), transB=1, activation="Relu")
    for left, right in RANKS:
        yield make("MatMul", left, right)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        stack, other = ((2, 5, 3) if a else (2, 3, 5)), ((2, 4, 5) if b else (2, 5, 4))
        yield make(f"{MS}FusedMatMul", stack, other, transA=a, transB=b, alpha=0.5)
        yield make(f"{MS}TransposeMatMul", stack, other, transA=a, transB=b, alpha=0.5)
        first, second = (5, 2, 3) if a else (3, 2, 5), (4, 2, 5) if b else (5, 2, 4)
        flags: dict[str, Any] = {"transA": a, "transB": b}
        yield make(f"{MS}FusedMatMul", first, other, **flags, transBatchA=1)
        yield make(f"{MS}FusedMatMul", first, second, **flags, transBatchA=1, transBatchB=1)


def _einsums() -> Iterator[Case]:
    equations: list[tuple[str, tuple[tuple[int, ...], ...]]] = [
        ("ij,jk->ik", ((4, 4), (4, 4))),
        ("ij,jk", ((3, 4), (4, 5))),
        ("bhqd,bhkd->bhqk", ((2, 3, 4, 5), (2, 3, 4, 5))),
        ("nchw,oc->nohw", ((2, 4, 3, 3), (5, 4))),
        ("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))),
        ("i,j->ji", ((4,), (4,))),
        ("i,i->", ((4,), (4,))),
        ("ijk->kj", ((3, 4, 5),)),
        ("bij,bj,b->bi", ((3, 4, 5), (3, 5), (3,))),
        ("bnd,dhe->bhne", ((2, 3, 4), (4, 5, 6))),
        ("bii->bi", ((3, 4, 4),)),
        ("bii->b", ((3, 4, 4),)),
    ]
    for equation, shapes in equations:
        yield make("Einsum", *shapes, equation=equation)


def _recurrent() -> Iterator[Case]:
    lengths = np.array([4, 2, 3], np.int32)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}
    for op, count in gates.items():
        for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            for full in (False, True):
                h = 5
                operands: list[Given] = [(4, 3, 6), (d, count * h, 6), (d, count * h, h)]
                if full:
                    operands += [(d, 2 * count * h), lengths, (d, 3, h)]
                if full and op == "LSTM":
                    operands += [(d, 3, h), (d, 3 * h)]
                results = 3 if op == "LSTM" else 2
                yield make(op, *operands, results=results, hidden_size=h, direction=direction)
    yield make(
        "LSTM",
        (3, 4, 6),
        (1, 20, 6),
        (1, 20, 5),
        None,
        None,
        (3, 1, 5),
        (3, 1, 5),
        results=3,
        hidden_size=5,
        layout=1,
    )
    yield make(
        "GRU", (4, 3, 6), (1, 15, 6), (1, 15, 5), (1, 30), hidden_size=5, linear_before_reset=1
    )
    yield make("RNN", (4, 4, 4), (1, 4, 4), (1, 4, 4), (1, 8), hidden_size=4, clip=floats(2.0)[0])
