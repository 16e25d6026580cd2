"""The masked oracle does what numpy does on weights that are sliced by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune import runtime
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.data import random_inputs
from onnxprune.oracle import masked
from tests.graphs import (
    coupled,
    halves,
    keeping,
    model,
    node,
    recurrent,
    residual,
    weight,
)
from tests.zoo.fill import load, names

Array = NDArray[Any]
GATED = "others/encoderlayer_nofastpath.legacy"
SMALL = [
    GATED,
    "keras_torch/cnn",
    "others/bert.dynamo",
    "others/flax_block",
    "others/torch_bilstm.dynamo",
    "paddle/lenet",
    "timm/levit_128s",
    "timm/mobilenetv3_small_050",
    "torchvision/shufflenet_v2_x0_5",
]


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    if all(output.HasField("type") for output in proto.graph.output):
        onnx.checker.check_model(proto)
    return runtime.run(runtime.session(proto, None), feeds, [o.name for o in proto.graph.output])


def weights_of(proto: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def normalised(h: Array) -> Array:
    centred = h - h.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))


def oracle_of(proto: onnx.ModelProto, feeds: Mapping[str, Array], **kept: list[int]) -> list[Array]:
    coupling = coupled(proto)
    return run(masked(coupling, keeping(coupling, **kept)), feeds)


def test_removed_convolution_channels_have_no_effect() -> None:
    proto = model(
        [
            node("Conv", "x w1 b1", "y1"),
            node("Sigmoid", "y1", "s"),  # not 0 where its operand is 0
            node("Conv", "s w2", "y"),
        ],
        {"x": ["n", 3, 2, 2]},
        {"y": ["n", 2, 2, 2]},
        {"w1": weight(1, 6, 3, 1, 1), "b1": weight(2, 6), "w2": weight(3, 2, 6, 1, 1)},
    )
    x, w, kept = weight(4, 2, 3, 2, 2), weights_of(proto), [0, 2, 5]
    hidden = np.einsum("oi,nihw->nohw", w["w1"][kept, :, 0, 0], x)
    hidden = 1 / (1 + np.exp(-(hidden + w["b1"][kept][:, None, None])))
    expected = np.einsum("oi,nihw->nohw", w["w2"][:, kept, 0, 0], hidden)
    (found,) = oracle_of(proto, {"x": x}, w1=kept)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_norm_sees_the_kept_indices_alone(decomposed: bool) -> None:
    proto = residual(decomposed=decomposed)
    x, w = weight(7, 5, 3), weights_of(proto)
    wide, narrow = [0, 1, 4], [1, 3]
    h = x @ w["w0"][:, wide]
    unit = normalised(h) * w["scale"][wide] + w["shift"][wide]
    branch = np.maximum(unit @ w["w1"][wide][:, narrow] + w["b1"][narrow], 0)
    expected = (h + branch @ w["w2"][narrow][:, wide]) @ w["w3"][wide]
    (found,) = oracle_of(proto, {"x": x}, w0=wide, w1=narrow)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


NATIVE = [node("GroupNormalization", "h scale shift", "u", num_groups=2)]
DECOMPOSED = [
    node("Reshape", "h cut", "g"),
    node("InstanceNormalization", "g one none", "v"),
    node("Shape", "h", "sizes"),
    node("Reshape", "v sizes", "k"),
    node("Mul", "k scale", "w"),
    node("Add", "w shift", "u"),
]


@pytest.mark.parametrize("norm", [DECOMPOSED, NATIVE])
def test_groups_of_a_norm_lose_the_same_number(norm: list[onnx.NodeProto]) -> None:
    tail = () if norm is NATIVE else (1,)
    proto = model(
        [node("Conv", "x w1", "h"), *norm, node("Conv", "u w2", "y")],
        {"x": ["n", 3, 2]},
        {"y": ["n", 2, 2]},
        {
            "w1": weight(1, 6, 3, 1),
            "scale": weight(2, 6, *tail),
            "shift": weight(3, 6, *tail),
            "w2": weight(4, 2, 6, 1),
            "cut": np.array([0, 2, -1]),
            "one": np.ones(2, np.float32),
            "none": np.zeros(2, np.float32),
        },
        opset=21,
    )
    coupling = coupled(proto)
    (inner,) = (g for g in coupling.groups if g.mixing)
    assert inner.size == 3
    keep = {inner.factor: np.array([True, False, True])}
    x, w, kept = weight(5, 2, 3, 2), weights_of(proto), [0, 2, 3, 5]
    h = np.einsum("oi,nis->nos", w["w1"][kept, :, 0], x)
    unit = normalised(h.reshape(2, 2, 4)).reshape(h.shape)
    unit = unit * w["scale"][kept].reshape(4, 1) + w["shift"][kept].reshape(4, 1)
    expected = np.einsum("oi,nis->nos", w["w2"][:, kept, 0], unit)
    (found,) = run(masked(coupling, keep), {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_softmax_over_a_pruned_axis_runs_on_what_is_kept() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Softmax", "h", "p"), node("MatMul", "p w2", "y")],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {"w1": weight(1, 3, 5), "w2": weight(2, 5, 2)},
    )
    x, w, kept = weight(3, 4, 3), weights_of(proto), [1, 2, 4]
    power = np.exp(x @ w["w1"][:, kept])
    expected = power / power.sum(-1, keepdims=True) @ w["w2"][kept]
    (found,) = oracle_of(proto, {"x": x}, w1=kept)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_recurrent_layer_forgets_removed_units() -> None:
    proto = recurrent()
    x, w = weight(5, 5, 2, 3), weights_of(proto)
    inner, kept = [0, 3, 4], [0, 2]
    rows = [gate * 4 + unit for gate in range(4) for unit in kept]
    e, wi, r = x @ w["w0"][:, inner], w["w"][0][rows][:, inner], w["r"][0][rows][:, kept]
    bias = w["b"][0][rows] + w["b"][0][[16 + row for row in rows]]
    h = c = np.zeros((2, 2), np.float32)
    for step in e:
        i, o, f, g = np.split(step @ wi.T + h @ r.T + bias, 4, axis=-1)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    (found,) = oracle_of(proto, {"x": x}, w0=inner, w=kept)
    np.testing.assert_allclose(found, h @ w["w1"][kept], rtol=1e-5, atol=1e-6)


def test_integers_are_left_out_of_sums_not_multiplied() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Cast", "h", "i", to=TensorProto.INT8),
        node("Slice", "i start end one", "late"),
        node("Cast", "late", "l", to=TensorProto.INT32),
        node("Cast", "i", "j", to=TensorProto.INT32),
        node("ReduceSum", "j one", "s", keepdims=0),
        node("ReduceSum", "l one", "t", keepdims=0),
        node("Add", "s t", "y"),
    ]
    weights = {"w": weight(1, 3, 6) * 20, "start": np.array([2]), "end": np.array([6])}
    proto = model(
        nodes,
        {"x": ["n", 3]},
        {"y": ["n"]},
        {**weights, "one": np.array([1])},
        y=TensorProto.INT32,
    )
    coupling = coupled(proto)
    keep = halves(coupling)
    assert sorted(mask.size for mask in keep.values()) == [2, 4]
    mask = coupling.factors.mask(coupling.layouts["w"][1], keep)
    x = weight(2, 4, 3) * 3
    h = (x @ weights["w"]).astype(np.int8).astype(np.int32)
    expected = h[:, mask].sum(1) + h[:, 2:][:, mask[2:]].sum(1)
    oracle = masked(coupling, keep)
    (found,) = run(oracle, {"x": x})
    np.testing.assert_array_equal(found, expected)
    types = [n.op_type for n in oracle.graph.node]
    assert types.count("Gather") == 2
    assert types.count("Cast") == 3 + 2  # Mul takes no int8


@pytest.mark.parametrize("opset", [7, 9, 13, 17])
def test_old_opsets_run(opset: int) -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Softmax", "h", "p"), node("MatMul", "p w2", "y")],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {"w1": weight(1, 3, 4), "w2": weight(2, 4, 2)},
        opset=opset,
    )
    coupling = coupled(proto)
    assert [g.size for g in coupling.groups] == [4]
    run(masked(coupling, halves(coupling)), {"x": weight(3, 2, 3)})


def test_names_do_not_collide() -> None:
    proto = residual()
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "oracle:1"
    proto.graph.node[5].input[0] = "oracle:1"
    coupling = coupled(proto)
    oracle = masked(coupling, halves(coupling))
    run(oracle, {"x": weight(1, 2, 3)})
    assert any(t.name.startswith("_oracle:") for t in oracle.graph.initializer)


def test_an_empty_keep_changes_nothing() -> None:
    proto = residual()
    coupling = coupled(proto)
    everything = {g.factor: np.ones(g.size, bool) for g in coupling.groups}
    for keep in ({}, everything):
        assert masked(coupling, keep).graph == proto.graph


def test_values_replace_the_weights() -> None:
    proto = residual()
    coupling = coupled(proto)
    other = weights_of(proto)["w3"] * 2
    x = {"x": weight(1, 4, 3)}
    keep = halves(coupling)
    (before,) = run(masked(coupling, keep), x)
    (after,) = run(masked(coupling, keep, values={"w3": other}), x)
    np.testing.assert_allclose(after, before * 2, rtol=1e-6)


def test_extra_outputs_are_given_once() -> None:
    coupling = coupled(residual())
    oracle = masked(coupling, {}, ["h", "y", "h"])
    assert [o.name for o in oracle.graph.output] == ["y", "h"]


def test_jitter_is_one_rounding() -> None:
    coupling = coupled(residual())
    keep = halves(coupling)
    plain, other = (weights_of(masked(coupling, keep, jitter=j)) for j in (None, 3))
    masks = [n for n, v in other.items() if n.startswith("oracle:") and v.dtype == np.float32]
    assert masks
    for name in masks:
        off = np.abs(other[name] - np.round(other[name]))
        assert 0 < off.max() <= np.finfo(np.float32).eps
    assert all(set(np.unique(v)) <= {0, 1} for n, v in plain.items() if n in masks)


def test_what_is_gathered_is_jittered_too() -> None:
    coupling = coupled(residual())
    graph = masked(coupling, halves(coupling), jitter=3).graph
    (norm,) = (n for n in graph.node if n.op_type == "LayerNormalization")
    makers = {name: n.op_type for n in graph.node for name in n.output}
    assert [makers[name] for name in norm.input] == ["Mul"] * 3


def test_an_attribute_that_states_a_mixed_letter_is_told() -> None:
    proto = model(
        [node("Conv", "x w1", "h"), node("LRN", "h", "u", size=5), node("Conv", "u w2", "y")],
        {"x": ["n", 3, 2, 1]},
        {"y": ["n", 2, 2, 1]},
        {"w1": weight(1, 5, 3, 1, 1) * 30, "w2": weight(2, 2, 5, 1, 1)},
    )
    coupling = coupled(proto, {"LRN": "n c! *s -> n c! *s | size=c"})
    x, w, kept = weight(3, 2, 3, 2, 1), weights_of(proto), [0, 1, 4]
    h = np.einsum("oi,nist->nost", w["w1"][kept, :, 0, 0], x)
    near = np.stack([(h[:, max(0, k - 1) : k + 2] ** 2).sum(1) for k in range(3)], 1)
    unit = h / (1 + 1e-4 / 3 * near) ** 0.75
    expected = np.einsum("oi,nist->nost", w["w2"][:, kept, 0, 0], unit)
    (found,) = run(masked(coupling, keeping(coupling, w1=kept)), {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_operand_that_states_a_mixed_letter_is_told() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Reshape", "h to", "r"), node("MatMul", "r w2", "y")],
        {"x": ["n", 3]},
        {"y": ["n", 2]},
        {"w1": weight(1, 3, 5), "w2": weight(2, 5, 2), "to": np.array([-1, 5])},
    )
    coupling = coupled(proto, {"Reshape": "n c!, ~ -> n c! | [1]=n c"})
    x, w, kept = weight(3, 4, 3), weights_of(proto), [0, 1, 4]
    expected = x @ w["w1"][:, kept] @ w["w2"][kept]
    oracle = masked(coupling, keeping(coupling, w1=kept), ["r"])
    found, full = run(oracle, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert full.shape == (4, 5)


def scrambled(coupling: Coupling, keep: Mapping[int, Mask]) -> dict[str, Array]:
    """Every parameter that loses indices, with other values there."""
    found: dict[str, Array] = {}
    generator = np.random.default_rng(1)
    for group in coupling.groups:
        for member in group.members:
            param = coupling.model.params[member.param]
            values = found.setdefault(param.name, np.array(param.read()))
            mask = coupling.factors.mask(member.layout, keep)
            lost = [slice(None)] * values.ndim
            lost[member.axis] = np.flatnonzero(~mask)  # type: ignore[call-overload]
            values[tuple(lost)] = generator.uniform(0.5, 1, values[tuple(lost)].shape)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_what_is_removed_has_no_effect(name: str) -> None:
    assert name in names()
    coupling = coupled(load(name))
    keep = halves(coupling)
    assert keep
    feeds = random_inputs(coupling.model, 0)
    plain = run(masked(coupling, keep), feeds)
    other = run(masked(coupling, keep, values=scrambled(coupling, keep)), feeds)
    full = run(masked(coupling, {}), feeds)
    for a, b, c in zip(plain, other, full, strict=True):
        assert np.abs(a).max() > 0
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
        assert np.abs(a - c).max() > 1e-3 * np.abs(a).max()


def test_half_precision_masks_have_the_type_of_their_operand() -> None:
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        coupling = coupled(residual(kind))
        oracle = masked(coupling, halves(coupling))
        masks = [t for t in oracle.graph.initializer if t.name.startswith("oracle:")]
        assert {t.data_type for t in masks} == {kind, TensorProto.INT64}
        onnx.shape_inference.infer_shapes(oracle, check_type=True, strict_mode=True)
