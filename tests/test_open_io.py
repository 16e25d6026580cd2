"""Inputs and outputs whose channels may go: a KV cache loses the heads that attention loses."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from tests.graphs import model, node, weight
from tests.test_cli import run as run_cli

CACHE = ("past_k", "past_v", "k", "v")


def cached() -> onnx.ModelProto:
    """One head-wise attention with a cache: x (n, 3, 8), 4 heads of 6, past (n, 4, t, 6)."""
    split = [
        step
        for x in "qkv"
        for step in (
            node("MatMul", f"x w{x}", f"{x}0"),
            node("Reshape", f"{x}0 heads", f"{x}1"),
            node("Transpose", f"{x}1", f"{x}2", perm=[0, 2, 1, 3]),
        )
    ]
    return model(
        [
            *split,
            node("Concat", "past_k k2", "k", axis=2),
            node("Concat", "past_v v2", "v", axis=2),
            node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
            node("MatMul", "q2 kt", "s"),
            node("Softmax", "s", "p", axis=-1),
            node("MatMul", "p v", "a"),
            node("Transpose", "a", "a1", perm=[0, 2, 1, 3]),
            node("Reshape", "a1 flat", "a2"),
            node("MatMul", "a2 wo", "y"),
        ],
        {"x": ["n", 3, 8], "past_k": ["n", 4, "t", 6], "past_v": ["n", 4, "t", 6]},
        {"y": ["n", 3, 5], "k": ["n", 4, "u", 6], "v": ["n", 4, "u", 6]},
        {
            **{f"w{x}": weight(seed, 8, 24) for seed, x in enumerate("qkv")},
            "wo": weight(4, 24, 5),
            "heads": np.array([0, 3, 4, 6]),
            "flat": np.array([0, 3, 24]),
        },
    )


def test_a_cache_is_frozen_unless_it_may_change() -> None:
    """Heads, and the sizes of keys and values, stay where only some of the cache may change."""
    assert onnxprune.inspect(cached()).groups == ()
    small, _ = onnxprune.prune(cached(), ratio=0.5, align=1, allow_io_change=["past_k", "k"])
    assert {tuple(t.dims) for t in small.graph.initializer if len(t.dims) > 1} == {
        *((8, 12), (8, 24), (24, 5))
    }


def test_a_cache_that_may_change_loses_heads() -> None:
    small, report = onnxprune.prune(cached(), ratio=0.5, align=1, allow_io_change=CACHE)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*small.graph.input, *small.graph.output)
    }
    assert shapes == {
        "x": ["n", 3, 8],
        "past_k": ["n", 2, "t", 3],
        "past_v": ["n", 2, "t", 3],
        "y": ["n", 3, 5],
        "k": ["n", 2, "u", 3],
        "v": ["n", 2, "u", 3],
    }
    assert report.verification is not None
    assert report.verification.ok
    assert "input 'past_k' was ?x4x?x6 and is ?x2x?x3 now" in report.notes
    assert "output 'v' was ?x4x?x6 and is ?x2x?x3 now" in report.notes
    assert onnxprune.verify(cached(), small, report.plan).ok
    again, _ = onnxprune.apply(cached(), report.plan)
    assert again == small
    with pytest.raises(OnnxPruneError):
        onnxprune.apply(cached(), report.plan.model_copy(update={"open_io": ()}))


def test_a_wrong_cache_is_found() -> None:
    small, report = onnxprune.prune(cached(), ratio=0.5, align=1, allow_io_change=CACHE)
    value = next(t for t in small.graph.initializer if t.name == "wk")
    array = onnx.numpy_helper.to_array(value).copy()
    value.CopyFrom(onnx.numpy_helper.from_array(array[:, ::-1].copy(), "wk"))
    assert not onnxprune.verify(cached(), small, report.plan).ok


def test_io_that_is_not_there_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match=r"has no input or output 'z' whose.* it has 'x', 'pa"):
        onnxprune.prune(cached(), ratio=0.5, allow_io_change=["z"])
    feeds = {name: np.zeros((1, 3, 8), np.float32) for name in ("x",)}
    for more in ({"calibration": feeds}, {"latency": 0.5}, {"peak_bytes": 0.5}):
        how = {"ratio": 0.5} if "calibration" in more else {}
        with pytest.raises(OnnxPruneError, match="leave out data, latency and peak memory"):
            onnxprune.prune(cached(), allow_io_change=CACHE, **how, **more)  # type: ignore[arg-type]
    onnx.save(cached(), tmp_path / "net.onnx")
    names = [x for name in CACHE for x in ("--allow-io-change", name)]
    run_cli(
        *("prune", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "small.onnx")),
        *("--ratio", "0.5", "--align", "1", *names),
    )
    found = onnx.load(tmp_path / "small.onnx").graph.input[1].type.tensor_type.shape.dim
    assert found[1].dim_value == 2


def fused(op: str) -> onnx.ModelProto:
    """x (2, s, 8) -> 4 heads of 8 (of keys and values 2, if queries share them), with a cache.

    A decoder reads one token behind 5 of the past.
    """
    shared = op == "GroupQueryAttention"
    heads, keys, buffered = 4, 2 if shared else 4, "Decoder" in op
    weights = {
        "wq": weight(1, 8, 8 * heads),
        "wk": weight(2, 8, 8 * keys),
        "wv": weight(3, 8, 8 * keys),
        "wo": weight(4, 8 * heads, 5),
    }
    names = ["q", "key", "value", "past_k", "past_v"]
    how: dict[str, Any] = {"num_heads": heads}
    if shared:
        weights |= {"last": np.full(2, 5, np.int32), "total": np.array(6, np.int32)}
        names += ["last", "total"]
        how["kv_num_heads"] = keys
    elif buffered:
        weights["until"] = np.array([5], np.int32)
        names[3:3] = ["", ""]  # masks
        names.append("until")
        how["past_present_share_buffer"] = 1
    else:
        names[3:3] = ["", "", ""]  # bias, masks
    attention = onnx.helper.make_node(op, names, ["a", "k", "v"], "heads", **how)
    attention.domain = "com.microsoft"
    past = [2, keys, 9 if buffered else 5, 8]
    now = [2, keys, 9 if buffered else 6, 8]
    proto = model(
        [
            node("MatMul", "x wq", "q"),
            node("MatMul", "x wk", "key"),
            node("MatMul", "x wv", "value"),
            attention,
            node("MatMul", "a wo", "y"),
        ],
        {"x": [2, 1, 8], "past_k": past, "past_v": past},
        {"y": [2, 1, 5], "k": now, "v": now},
        weights,
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return proto


OPERATORS = ("DecoderMaskedMultiHeadAttention", "GroupQueryAttention", "MultiHeadAttention")


@pytest.mark.parametrize("op", OPERATORS)
def test_heads_in_the_cache_of_a_fused_operator_stay(op: str) -> None:
    """Without a word none go, but for queries that share one of them: these are in no cache."""
    shared = op == "GroupQueryAttention"
    assert [g.name for g in onnxprune.inspect(fused(op)).groups] == ["wq:1[1]"] * shared
    assert "it is an axis of a graph" in onnxprune.explain(fused(op), "wk:1")
    if shared:
        small, report = onnxprune.prune(fused(op), ratio=0.5, align=1)
        assert list(small.graph.input) == list(fused(op).graph.input)
        assert report.verification is not None
        assert report.verification.ok
        assert {a.name: a.i for a in small.graph.node[3].attribute}["num_heads"] == 2


@pytest.mark.parametrize("op", OPERATORS)
def test_heads_in_a_cache_that_may_change_go(op: str) -> None:
    """The pruned file runs on what is kept of the cache, and gives what is kept of the new one."""
    proto = fused(op)
    small, report = onnxprune.prune(proto, ratio=0.5, align=1, allow_io_change=CACHE)
    shared = op == "GroupQueryAttention"
    before, after = (9, 9) if "Decoder" in op else (5, 6)  # how long the cache is
    heads, size = (1, 8) if shared else (2, 8 if "Decoder" in op else 4)  # some keep a head's size
    told = {
        f"input 'past_k' was 2x{2 * heads}x{before}x8 and is 2x{heads}x{before}x{size} now",
        f"output 'v' was 2x{2 * heads}x{after}x8 and is 2x{heads}x{after}x{size} now",
    }
    assert told <= {*report.notes}
    assert report.verification is not None
    assert report.verification.ok
    attributes = {a.name: a.i for a in small.graph.node[3].attribute}
    assert attributes["num_heads"] == heads  # of four queries' heads half of each half, too
    assert attributes.get("kv_num_heads") == (heads if shared else None)
    feeds = {"x": weight(5, 2, 1, 8)}
    feeds |= {x: weight(k, 2, heads, before, size) for k, x in enumerate(("past_k", "past_v"))}
    found = runtime.runner(small, None)(feeds)
    assert {name: value.shape for name, value in found.items()} == {
        "y": (2, 1, 5),
        "k": (2, heads, after, size),
        "v": (2, heads, after, size),
    }
    np.testing.assert_array_equal(found["k"][:, :, :5], feeds["past_k"][:, :, :5])


@pytest.mark.parametrize("op", OPERATORS)
def test_a_wrong_head_of_a_fused_cache_is_found(op: str) -> None:
    small, report = onnxprune.prune(fused(op), ratio=0.5, align=1, allow_io_change=CACHE)
    value = next(t for t in small.graph.initializer if t.name == "wv")
    array = onnx.numpy_helper.to_array(value).copy()
    value.CopyFrom(onnx.numpy_helper.from_array(array[:, ::-1].copy(), "wv"))
    assert not onnxprune.verify(fused(op), small, report.plan).ok
