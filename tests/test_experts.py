"""Mixtures of experts: floats with a gate, and packed weights, pruned and proved as whole nets."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune.passes.score.stored import meant, stored_values
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, halves, model, node, proven, weight

GATE = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "swiglu_limit": 7.0,
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
}
EXPERTS, K = 5, 2  # of which each token takes so many


def packed(values: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (experts, rows, width / share) and scales (experts, rows[, blocks])."""
    wide = values.reshape(*values.shape[:2], -1, block or values.shape[2])
    scale = np.abs(wide).max(axis=-1) / (2 ** (bits - 1) - 1)
    numbers = np.round(wide / scale[..., None]).reshape(values.shape) + 2 ** (bits - 1)
    share = 8 // bits
    parts = numbers.astype(np.uint8).reshape(*values.shape[:2], -1, share)
    found = sum(parts[..., k] << np.uint8(bits * k) for k in range(share))
    scale = scale if block else scale[..., 0]
    return np.asarray(found, np.uint8), scale.astype(np.float32)


def net(bits: int, block: int, gated: bool, h: int = 32, i: int = 48) -> onnx.ModelProto:
    """x (7, 6) -> h wide tokens -> experts i wide inside -> 5; floats where bits is 0."""
    rows = 2 if gated else 1
    w1, w2 = weight(1, EXPERTS, rows * i, h), weight(2, EXPERTS, h, i)
    how: dict[str, Any] = {"k": K, **(GATE if gated else {"activation_type": "silu"})}
    tensors = {"w_in": weight(3, 6, h), "w_router": weight(4, 6, EXPERTS), "w_out": weight(5, h, 5)}
    tensors |= {"b1": weight(6, EXPERTS, rows * i), "b2": weight(7, EXPERTS, h)}
    if bits:
        q1, s1 = packed(w1 * 20, bits, block)
        q2, s2 = packed(w2 * 20, bits, block)
        tensors |= {"w1": q1, "s1": s1, "w2": q2, "s2": s2}
        how |= {"expert_weight_bits": bits, **({"block_size": block} if block else {})}
        experts = helper.make_node(
            "QMoE", ["t", "route", "w1", "s1", "b1", "w2", "s2", "b2"], ["m"], "experts", **how
        )
    else:
        tensors |= {"w1": w1, "w2": w2}
        experts = helper.make_node("MoE", ["t", "route", "w1", "b1", "w2", "b2"], ["m"], "e", **how)
    experts.domain = "com.microsoft"
    proto = model(
        [
            node("MatMul", "x w_in", "t"),
            node("MatMul", "x w_router", "route"),
            experts,
            node("Add", "t m", "s"),
            node("MatMul", "s w_out", "y"),
        ],
        {"x": [7, 6]},
        {"y": [7, 5]},
        tensors,
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


@pytest.mark.parametrize(
    ("bits", "block", "gated", "inside", "tokens"),
    [
        (0, 0, False, 48, 32),
        (0, 0, True, 48, 32),
        (4, 0, False, 24, 16),
        (4, 0, True, 24, 16),
        (4, 16, True, 3, 2),
        (8, 0, True, 48, 32),
        (8, 16, False, 3, 2),
    ],
)
def test_experts_lose_channels(
    bits: int, block: int, gated: bool, inside: int, tokens: int
) -> None:
    """Inside of them one by one, in bytes, or in blocks; the tokens' width along with all else."""
    proto = net(bits, block, gated)
    coupling = coupled(proto)
    sizes = {(group.size, group.mixing) for group in coupling.groups}
    assert sizes == {(inside, False), (tokens, True), (EXPERTS, True)}
    _, small = proven(proto)
    dims = {t.name: list(t.dims) for t in small.graph.initializer}
    before = {t.name: list(t.dims) for t in proto.graph.initializer}
    kept = [1 / 2 if not block else 1 / 3, 1 / 2]
    assert dims["b1"] == [K, before["b1"][1] * kept[0]]
    assert dims["w2"] == [K, 16, before["w2"][2] * kept[0]]
    assert dims["w_router"] == [6, K]


@pytest.mark.parametrize("spoilt", ["w1", "s1", "b1", "w2"])
def test_a_mistake_in_an_expert_is_found(spoilt: str) -> None:
    coupling = coupled(net(4, 0, True))
    keep = halves(coupling)
    small = shrink(coupling, keep)
    tensor = next(t for t in small.graph.initializer if t.name == spoilt)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values[:, ::-1].copy(), spoilt))
    assert not verify(coupling, keep, small).ok


@pytest.mark.parametrize(("bits", "block"), [(4, 0), (4, 16), (8, 0), (8, 16)])
def test_packed_weights_count_as_what_they_stand_for(bits: int, block: int) -> None:
    """Each byte as the root of its numbers' squares, to half a step of quantisation."""
    read = onnxprune.load(net(bits, block, True))
    nodes = stored_values(read)
    for name, seed, shape in (("w1", 1, (EXPERTS, 96, 32)), ("w2", 2, (EXPERTS, 32, 48))):
        plain = 20 * weight(seed, *shape)
        parts = plain.reshape(*shape[:2], -1, 8 // bits)
        found = meant(read, name, nodes[name])
        step = np.abs(plain).max() / (2 ** (bits - 1) - 1)
        np.testing.assert_allclose(found, np.sqrt((parts**2).sum(axis=-1)), atol=0.75 * step)


@pytest.mark.parametrize("channels", [1, 3])
def test_as_many_experts_stay_as_a_token_takes(channels: int) -> None:
    own = net(4, 16, True)
    small, report = onnxprune.prune(own, ratio=0.9, align=1, min_channels=channels)
    assert report.verification is not None
    assert report.verification.ok
    assert report.after.size_bytes < report.before.size_bytes
    assert onnxprune.inspect(small).macs == report.after.macs
    assert {t.name: t.dims for t in small.graph.initializer}["w_router"] == [6, max(K, channels)]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_table_of_tokens_loses_whole_blocks(bits: int) -> None:
    """ids (n, s) -> 64 wide tokens, in four blocks of 16 -> a layer -> 5."""
    table = np.clip(weight(1, 11, 64) * 20, -3, 3)
    values, scale = packed(table[None], bits, 16)
    proto = model(
        [
            onnx.helper.make_node(
                "GatherBlockQuantized",
                ["table", "ids", "scale"],
                ["t"],
                domain="com.microsoft",
                bits=bits,
                block_size=16,
            ),
            node("MatMul", "t w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "y"),
        ],
        {"ids": ["n", "s"]},
        {"y": ["n", "s", 5]},
        {"table": values[0], "scale": scale[0], "w1": weight(2, 64, 8), "w2": weight(3, 8, 5)},
        ids=onnx.TensorProto.INT64,
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    coupling = coupled(proto)
    assert [(group.size, group.mixing) for group in coupling.groups] == [(4, False), (8, False)]
    assert coupling.model.dtypes["t"] == onnx.TensorProto.FLOAT
    _, small = proven(proto)
    dims = {t.name: list(t.dims) for t in small.graph.initializer}
    assert (dims["table"], dims["scale"], dims["w1"]) == ([11, 4 * bits], [11, 2], [32, 4])
    found = meant(coupling.model, "table", stored_values(coupling.model)["table"])
    parts = table.reshape(11, -1, 8 // bits)
    step = 3 / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(found, np.sqrt((parts**2).sum(axis=-1)), atol=0.75 * step)
