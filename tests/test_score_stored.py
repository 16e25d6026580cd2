"""Scores of quantised files: the integers count as the numbers that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxprune.passes.score import score
from onnxprune.passes.score.stored import meant, stored_values
from tests.graphs import coupled, model, node, weight

# Weights of a byte are off by half a step of 1/127 of the largest at most: so are sums of them.
ROUNDED = 0.01
WIDTHS = (8, 12)


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        rows = np.random.default_rng(0)
        self.left = [{"x": rows.standard_normal((4, 4, 6, 6)).astype(np.float32)} for _ in "ab"]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return self.left.pop() if self.left else None


def uneven(seed: int, *shape: int) -> NDArray[np.float32]:
    """Weights of which the channels differ in size, and which lie on one side of 0."""
    scale = np.linspace(0.2, 2, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray((weight(seed, *shape) + np.float32(0.4)) * scale, np.float32)


def net() -> onnx.ModelProto:
    """x -> Conv 8 -> Relu -> Conv 12 -> Relu -> mean -> MatMul 5."""
    return model(
        [
            node("Conv", "x w1 b1", "a"),
            node("Relu", "a", "r"),
            node("Conv", "r w2 b2", "b"),
            node("Relu", "b", "s"),
            node("GlobalAveragePool", "s", "m"),
            node("Flatten", "m", "f"),
            node("MatMul", "f w3", "y"),
        ],
        {"x": [4, 4, 6, 6]},
        {"y": [4, 5]},
        {
            "w1": uneven(1, 8, 4, 3, 3),
            "b1": weight(2, 8),
            "w2": uneven(3, 12, 8, 1, 1),
            "b2": weight(4, 12),
            "w3": uneven(5, 12, 5),
        },
    )


KINDS = {
    "QDQ": (QuantFormat.QDQ, False, QuantType.QInt8),
    "QDQ by channel": (QuantFormat.QDQ, True, QuantType.QInt8),
    "QDQ of unsigned weights": (QuantFormat.QDQ, False, QuantType.QUInt8),
    "QOperator": (QuantFormat.QOperator, False, QuantType.QUInt8),
    "QOperator by channel": (QuantFormat.QOperator, True, QuantType.QInt8),
    "dynamic": (None, False, QuantType.QUInt8),
}


@pytest.mark.parametrize("sides", ["contracted", "produced"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_file_ranks_as_its_float_twin(kind: str, sides: str, tmp_path: Path) -> None:
    form, by_channel, weights = KINDS[kind]
    source, target = str(tmp_path / "float.onnx"), str(tmp_path / "int.onnx")
    onnx.save(net(), source)
    if form is None:
        quantize_dynamic(source, target, per_channel=by_channel, weight_type=weights)
    else:
        quantize_static(
            source,
            target,
            Inputs(),
            quant_format=form,
            per_channel=by_channel,
            weight_type=weights,
            activation_type=QuantType.QUInt8,
        )
    found = []
    for path in (source, target):
        coupling = coupled(onnx.load(path))
        scores = score(coupling, "l1", sides=sides)
        found.append({g.size: scores[g.factor] for g in coupling.groups})
    assert found[0].keys() == found[1].keys() == set(WIDTHS)
    for size in WIDTHS:
        assert np.abs(found[1][size] - found[0][size]).max() < ROUNDED * found[0][size].max()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_packed_weights_are_the_numbers_that_they_stand_for(bits: int, zeros: str) -> None:
    rows, blocks, size = 6, 3, 16
    draw = np.random.default_rng(bits)
    numbers = draw.integers(0, 2**bits, (rows, blocks, size))
    offsets = draw.integers(0, 2**bits, (rows, blocks))
    scales = draw.random((rows, blocks)).astype(np.float32)

    def packed(values: NDArray[np.int64]) -> NDArray[np.uint8]:
        per = 8 // bits
        wide = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per)])
        parts = wide.reshape(*wide.shape[:-1], -1, per) << (bits * np.arange(per))
        return np.asarray(parts.sum(axis=-1), np.uint8)

    own: dict[str, NDArray[Any]] = {"q": packed(numbers), "s": scales}
    if zeros != "none":
        own["z"] = packed(offsets) if zeros == "packed" else offsets.astype(np.float32)
    else:
        offsets = np.full_like(offsets, 2 ** (bits - 1))
    proto = model(
        [
            onnx.helper.make_node(
                "MatMulNBits",
                ["x", *own],
                ["y"],
                domain="com.microsoft",
                K=blocks * size,
                N=rows,
                bits=bits,
                block_size=size,
            )
        ],
        {"x": [2, blocks * size]},
        {"y": [2, rows]},
        own,
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    own_model = coupled(proto).model
    wanted = (numbers - offsets[..., None]) * scales[..., None]
    assert np.allclose(meant(own_model, "q", stored_values(own_model)["q"]), wanted, atol=1e-6)
