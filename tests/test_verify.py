"""What verify proves, and that a planted mistake dies."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune import compare, files, oracle, runtime
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError, RunError
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.shapes import is_external
from tests.graphs import (
    convolutions,
    coupled,
    halves,
    keeping,
    model,
    node,
    recurrent,
    residual,
    weight,
)
from tests.zoo.fill import load

Array = NDArray[Any]
NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolutions": convolutions,
    "grouped": lambda: convolutions(groups=2),
    "depthwise": lambda: convolutions(groups=8),
    "residual": residual,
    "decomposed": lambda: residual(decomposed=True),
    "double": lambda: residual(TensorProto.DOUBLE),
    "half": lambda: residual(TensorProto.FLOAT16),
    "bfloat16": lambda: residual(TensorProto.BFLOAT16),
    "recurrent": recurrent,
    "zoo": lambda: load("timm/levit_128s"),
}


def pruned(name: str) -> tuple[Coupling, dict[int, Mask], onnx.ModelProto]:
    coupling = coupled(NETS[name]())
    keep = halves(coupling)
    return coupling, keep, shrink(coupling, keep)


def tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in proto.graph.initializer if t.name == name)
    return found


def set_values(proto: onnx.ModelProto, name: str, values: Array) -> None:
    tensor(proto, name).CopyFrom(numpy_helper.from_array(values, name))


@pytest.mark.parametrize("name", NETS)
def test_a_pruned_model_is_proven(name: str) -> None:
    found = verify(*pruned(name))
    assert found.ok, found.failure
    assert not found.blind
    assert found.count > 0
    assert found.noise is None
    assert found.error <= found.tolerance == (1e-9 if name == "double" else 1e-5)
    bfloat = "does not run BFLOAT16 on a CPU" in " ".join(found.notes)
    assert bfloat == (name == "bfloat16")


@pytest.mark.parametrize("name", NETS)
def test_nothing_removed_is_no_difference(name: str) -> None:
    coupling = coupled(NETS[name]())
    found = verify(coupling, {}, shrink(coupling, {}))
    assert found.ok
    assert found.error == 0


ALL = [pytest.param(name, marks=[pytest.mark.slow] * (name == "zoo")) for name in NETS]


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_index_dies(name: str) -> None:
    """For every axis of every pruned weight: one kept index taken from another place."""
    coupling, keep, proto = pruned(name)
    names = {t.name for t in proto.graph.initializer}
    axes = {(m.param, m.axis): m.layout for g in coupling.groups for m in g.members}
    planted = 0
    for (param, axis), layout in list(axes.items())[:: 1 + len(axes) // 12]:
        mask = coupling.factors.mask(layout, keep)
        if param not in names or mask.all():
            continue
        right = np.flatnonzero(mask)
        wrong = right.copy()
        wrong[-1] = np.flatnonzero(~mask)[-1]
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        full = coupling.model.params[param].read()
        other = np.take(full, wrong, axis=axis)
        for k, own in enumerate(coupling.layouts[param]):
            if k != axis:
                other = np.compress(coupling.factors.mask(own, keep), other, axis=k)
        if np.array_equal(other, numpy_helper.to_array(tensor(proto, param))):
            continue  # the two indices hold the same numbers
        set_values(copy, param, np.ascontiguousarray(other))
        assert not verify(coupling, keep, copy).ok, (param, axis)
        planted += 1
    assert planted >= 3


@pytest.mark.parametrize("name", ["convolutions", "residual", "recurrent"])
def test_another_mask_dies(name: str) -> None:
    coupling, keep, proto = pruned(name)
    for factor, mask in keep.items():
        assert not verify(coupling, {**keep, factor: np.roll(mask, 1)}, proto).ok


@pytest.mark.parametrize(
    ("name", "part"),
    [("convolutions", "contracted"), ("recurrent", "repeated"), ("residual", "gathers")],
)
def test_an_oracle_without_a_mask_dies(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupling, keep, proto = pruned(name)
    nothing: Any = [] if part == "gathers" else set()
    monkeypatch.setattr(oracle._Writer, part, lambda *_: nothing)
    if part == "gathers":
        monkeypatch.setattr(oracle._Writer, "widened", lambda *_: [])
    assert not verify(coupling, keep, proto).ok


def test_the_first_value_that_diverges_is_named() -> None:
    coupling, keep, proto = pruned("convolutions")
    bias = next(t.name for t in proto.graph.initializer if t.name.startswith("b"))
    reader = next(n for n in proto.graph.node if bias in n.input)
    set_values(proto, bias, numpy_helper.to_array(tensor(proto, bias)) + 1)
    found = verify(coupling, keep, proto)
    assert found.failure is not None
    where = (
        rf"the first value that diverges is '{reader.output[0]}' of node '{reader.name}' \(Conv\)"
    )
    assert re.search(rf"output 'y' differs by \d.*{where}: it differs by \d", found.failure)
    assert found.summary().startswith("the pruned model is not the masked original: output 'y'")


def test_a_wrong_shape_inside_is_named() -> None:
    coupling, keep, _ = pruned("residual")
    mixing = {f: m for f, m in keep.items() if coupling.factors.is_mixing(f)}
    found = verify(coupling, keep, shrink(coupling, mixing))
    assert found.failure is not None
    assert re.search(
        r"'a' of node 'n_a' \(Gemm\): its shape is \(2, 4\), not \(2, 2\)", found.failure
    )


def test_a_file_that_is_not_in_order_fails() -> None:
    coupling, keep, proto = pruned("residual")
    renamed, broken, cut = (onnx.ModelProto() for _ in range(3))
    for copy in (renamed, broken, cut):
        copy.CopyFrom(proto)
    renamed.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    broken.graph.node[-1].op_type = "MatMuls"
    del tensor(cut, "w3").dims[:]
    tensor(cut, "w3").dims.extend([2, 3])
    messages = [verify(coupling, keep, copy).failure for copy in (renamed, broken, cut)]
    assert messages[0] == (
        "the pruned model is not in order: its outputs are not those of the original"
    )
    assert re.match("the pruned model is not in order: .*MatMuls", str(messages[1]))
    assert re.match("the pruned model is not in order: .*dimension", str(messages[2]))


def test_a_model_that_does_not_run_fails() -> None:
    coupling, keep, proto = pruned("residual")
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    relu.CopyFrom(node("Gather", "a far", "r", axis=1))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 99]), "far"))
    failure = str(verify(coupling, keep, proto).failure)
    assert failure.startswith("the pruned model does not run: ONNX Runtime can't run the model: ")
    assert "99" in failure


def test_what_the_checker_refuses_already_is_a_note() -> None:
    proto = residual()
    proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 5])
    )
    coupling = coupled(residual())
    object.__setattr__(coupling.model, "proto", proto)
    found = verify(coupling, {}, proto)
    assert found.ok
    assert found.notes[0].startswith("onnx's checker refuses the original already: ")


def ranking(head: Array, choose: int) -> onnx.ModelProto:
    """x (n, 3) -> 6 -> 8 ranks -> rows of a table, the best ranks' -> 2."""
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("Relu", "h", "r"),
            node("MatMul", "r w2", "ranks"),
            node("TopK", "ranks k", "best which"),
            node("Gather", "table which", "rows"),
            node("MatMul", "rows w3", "y"),
        ],
        {"x": ["n", 3]},
        {"y": ["n", choose, 2], "best": ["n", choose]},
        {
            "w1": weight(1, 3, 6),
            "w2": head,
            "k": np.array([choose]),
            "table": weight(3, 8, 5),
            "w3": weight(4, 5, 2),
        },
    )


def test_a_flip_of_order_passes_with_a_remark() -> None:
    head = weight(2, 6, 8)
    head[:, 4:] = head[:, :4]  # every rank stands there twice
    coupling = coupled(ranking(head, 3))
    keep = keeping(coupling, w1=[0, 2, 3])
    proto = shrink(coupling, keep)
    flipped = numpy_helper.to_array(tensor(proto, "w2")).copy()
    flipped[:, 4:] *= 1 + np.copysign(3e-7, 1)
    flipped[:, :4] *= 1 - np.copysign(3e-7, 1)
    set_values(proto, "w2", flipped.astype(np.float32))
    found = verify(coupling, keep, proto)
    assert found.ok, found.failure
    assert [(c.value, c.ordering, c.output) for c in found.checks[:2]] == [
        ("y", True, True),
        ("best", False, True),
    ]
    assert not found.checks[2].output
    assert all(check.ok for check in found.checks)
    table = numpy_helper.to_array(tensor(proto, "table")).copy()
    table[:, 0] += 1
    set_values(proto, "table", table)
    found = verify(coupling, keep, proto)
    assert "the first value that diverges is 'rows' of node 'n_rows' (Gather)" in str(found.failure)


def test_a_wrong_order_is_no_flip() -> None:
    coupling = coupled(ranking(weight(2, 6, 8), 3))
    keep = keeping(coupling, w1=[0, 2, 3])
    proto = shrink(coupling, keep)
    ranks = numpy_helper.to_array(tensor(proto, "w2"))
    set_values(proto, "w2", ranks + weight(9, *ranks.shape) / 100)
    assert "'ranks' of node 'n_ranks' (MatMul)" in str(verify(coupling, keep, proto).failure)


def test_an_output_that_hardly_varies_is_backed() -> None:
    proto = residual()
    set_values(proto, "w3", np.zeros((6, 2), np.float32))
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    found = verify(coupling, keep, small)
    assert found.ok
    assert found.checks[0].blind
    assert not found.blind
    assert found.inner_values == len({"h", "l", "a", "o"})
    assert found.count == found.inner_numbers == 2 * (3 + 3 + 2 + 3)
    set_values(small, "b1", numpy_helper.to_array(tensor(small, "b1")) + 1)
    assert "'a' of node 'n_a' (Gemm)" in str(verify(coupling, keep, small).failure)


def test_nothing_to_compare_is_said() -> None:
    proto = residual()
    for name in ("w0", "w2", "w3", "shift", "scale", "w1", "b1"):
        old = tensor(proto, name)
        set_values(proto, name, np.zeros(tuple(old.dims), np.float32))
    coupling = coupled(proto)
    keep = halves(coupling)
    found = verify(coupling, keep, shrink(coupling, keep))
    assert found.ok
    assert found.blind
    assert "not proven" in found.summary()


def test_a_net_that_magnifies_rounding_gets_a_small_multiple_of_its_noise() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "h"),
            node("MatMul", "h w2", "a"),
            node("Add", "a big", "far"),
            node("Sub", "far big", "y"),
        ],
        {"x": [64, 16]},
        {"y": [64, 64]},
        {"w1": weight(1, 16, 32), "w2": weight(2, 32, 64), "big": np.array(700, np.float32)},
    )
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    head = numpy_helper.to_array(tensor(small, "w2"))
    set_values(small, "w2", head * np.float32(1 + 2e-7))
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert found.noise is not None
    assert found.tolerance < found.error <= compare.NOISE_FACTOR * found.noise < 1e-3
    assert not verify(coupling, keep, small, tolerance=1e-5).ok
    set_values(small, "w2", head * np.float32(1.003))
    assert not verify(coupling, keep, small).ok


def normalised_twice() -> onnx.ModelProto:
    """The mean of what has been normalised is 0 but for rounding."""
    return model(
        [
            node("MatMul", "x w0", "a"),
            node("MatMul", "a w1", "h"),
            node("ReduceMean", "h", "mean", axes=[-1]),
            node("Sub", "h mean", "centred"),
            node("ReduceL2", "centred", "deviation", axes=[-1]),
            node("Div", "centred deviation", "unit"),
            node("ReduceMean", "unit", "nothing", axes=[-1]),
            node("Sub", "unit nothing", "l"),
            node("MatMul", "l w2", "y"),
        ],
        {"x": [32, 7]},
        {"y": [32, 5]},
        {"w0": weight(0, 7, 900), "w1": weight(1, 900, 96), "w2": weight(2, 96, 5)},
    )


def test_a_mean_that_is_all_rounding_is_not_held_against_the_model() -> None:
    coupling = coupled(normalised_twice())
    keep = halves(coupling)
    small = shrink(coupling, keep)
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert found.checks[-1].value in "ah"
    mean, subtract = (n for n in small.graph.node if "nothing" in (*n.input, *n.output))
    mean.name = mean.output[0] = subtract.input[1] = "right"
    small.graph.node.append(node("ReduceMax", "unit", "nothing", axes=[-1]))
    assert "value 'nothing' differs" in str(verify(coupling, keep, small).failure)


def test_real_inputs_and_steps() -> None:
    coupling, keep, proto = pruned("residual")
    steps: list[str] = []
    inputs = {"x": weight(1, 7, 3)}
    found = verify(coupling, keep, proto, inputs=inputs, progress=steps.append)
    assert found.ok
    assert found.checks[0].count == 14
    assert found.count == 14 + 7 * (3 + 3 + 2 + 3)
    assert steps == ["check the file", "run the original", "run the pruned model"]


def test_an_original_that_does_not_run_is_no_verdict() -> None:
    coupling, keep, proto = pruned("residual")
    with pytest.raises(OnnxPruneError, match="input 'x', axis 1: has size 4, the model wants 3"):
        verify(coupling, keep, proto, inputs={"x": weight(1, 7, 4)})
    table = model(
        [node("Gather", "table i", "g"), node("MatMul", "g w1", "h"), node("MatMul", "h w2", "y")],
        {"i": [2]},
        {"y": [2, 3]},
        {"table": weight(1, 5, 4), "w1": weight(2, 4, 6), "w2": weight(3, 6, 3)},
        i=TensorProto.INT64,
    )
    coupling = coupled(table)
    proto = shrink(coupling, halves(coupling))
    with pytest.raises(OnnxPruneError, match=r"ONNX Runtime can't run the model: .*bounds"):
        verify(coupling, halves(coupling), proto, inputs={"i": np.array([0, 9])})


def test_replaced_values_are_the_oracles_too() -> None:
    coupling, keep, _ = pruned("residual")
    values = {"w3": weight(11, 6, 2)}
    proto = shrink(coupling, keep, values)
    assert verify(coupling, keep, proto, values=values).ok
    assert not verify(coupling, keep, proto).ok


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_an_output_that_overflows_dies_though_the_oracle_overflows_too(kind: int) -> None:
    coupling = coupled(residual(kind))
    keep = halves(coupling)
    old = coupling.model.params["w2"].read()
    values = {"w2": np.full(old.shape, np.finfo(old.dtype).max, old.dtype)}
    found = verify(coupling, keep, shrink(coupling, keep, values), values=values)
    assert not found.ok
    assert "is not finite in" in found.summary()
    assert "where the original's is: what is left overflows" in found.summary()


def test_an_output_that_is_infinite_already_passes() -> None:
    coupling = coupled(
        model(
            [node("MatMul", "x w", "a"), node("MatMul", "a v", "b"), node("Add", "b i", "y")],
            {"x": [3, 4]},
            {"y": [3, 2]},
            {"w": weight(0, 4, 6), "v": weight(1, 6, 2), "i": np.array([0, -np.inf], np.float32)},
        )
    )
    keep = halves(coupling)
    assert verify(coupling, keep, shrink(coupling, keep)).ok


def test_external_data_stays_outside(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(residual(), path, save_as_external_data=True, size_threshold=0)
    coupling = couple(normalize(files.load(path)))
    keep = halves(coupling)
    original = oracle.masked(coupling, keep)
    assert is_external(tensor(original, "w3"))
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).ok
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    whole = files.with_data(small, tmp_path)
    onnx.save_model(whole, elsewhere / "small.onnx", save_as_external_data=True, size_threshold=0)
    other = files.load(elsewhere / "small.onnx")
    assert any(is_external(t) for t in other.proto.graph.initializer)
    assert verify(coupling, keep, other.proto, folder=other.folder).ok


def test_decisions_inside_bodies_are_pinned() -> None:
    head = weight(2, 6, 8)
    head[:, 4:] = head[:, :4]
    proto = ranking(head, 3)
    top, made = proto.graph.node[3], onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [node("TopK", "ranks k", "inner_best inner_which")],
        "body",
        [],
        [made("inner_best", 1, ["n", 3]), made("inner_which", 7, ["n", 3])],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    top.CopyFrom(node("If", "yes", "best which", then_branch=body, else_branch=body))
    coupling = coupled(proto)
    keep = keeping(coupling, w1=[0, 2, 3])
    small = shrink(coupling, keep)
    flipped = numpy_helper.to_array(tensor(small, "w2")).copy()
    flipped[:, 4:] *= np.float32(1 + 3e-7)
    set_values(small, "w2", flipped)
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert found.checks[0].ordering


def test_a_value_that_a_fusion_drops_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = runtime.session, []

    def session(proto: onnx.ModelProto, folder: Path | None, optimize: bool = True) -> Any:
        asked.append(optimize)
        if optimize and len(proto.graph.output) > 1:
            raise RunError("a fusion dropped it")
        return real(proto, folder, optimize=optimize)

    monkeypatch.setattr(runtime, "session", session)
    found = verify(*pruned("residual"))
    assert found.ok
    assert found.inner_values > 0
    assert asked == [True, True, True, False, True, False]


def test_errors() -> None:
    x = np.array([1.0, 2.0, 4.0], np.float32)
    assert compare.relative_error(x, x) == 0
    assert compare.relative_error(x + np.float32(0.5), x) == 0.125
    assert compare.relative_error(x.astype(np.float64), x) == compare.INCOMPARABLE
    assert compare.relative_error(x[:2], x) == compare.INCOMPARABLE
    assert compare.relative_error(x * 0 + 2, x * 0) == 2
    infinite = np.array([np.inf, np.nan, 1], np.float32)
    assert compare.relative_error(infinite, infinite) == 0
    assert compare.relative_error(-infinite, infinite) == compare.INCOMPARABLE
    assert compare.relative_error([x, x + 4], [x, x]) == 1
    assert compare.relative_error({1: x}, {2: x}) == compare.INCOMPARABLE
    assert compare.relative_error(np.array(["a"]), np.array(["b"])) == 1
    assert compare.relative_error(np.array([3, 4]), np.array([3, 4])) == 0


@pytest.mark.parametrize(
    ("runs", "blind"),
    [
        ([np.zeros(5), np.zeros(5)], True),
        ([np.array([0.0, 1, 1]), np.array([1.0, 0, 1])], True),
        ([np.array([1.0, 2, 3]), np.array([1.0, 2, 3])], True),
        ([np.array([[1.0, 2, 3]] * 2), np.array([[1.0, 2, 3]] * 3)], True),
        ([np.full(4, np.nan), np.full(4, np.nan)], True),
        ([np.array([1.0, 2, 3]), np.array([1.0, 2, 4])], False),
        ([np.array([[1.0]]), np.array([[2.0]])], False),
        ([np.array([[1.0, 2, 3]])], False),
        ([np.array([1, 2, 3]), np.array([1, 2, 4])], True),
    ],
)
def test_blindness(runs: list[Array], blind: bool) -> None:
    assert compare.is_blind(runs) == blind


def test_a_small_part_of_a_joined_output_has_its_own_scale() -> None:
    nodes = [
        node("Conv", "x w", "h"),
        node("Relu", "h", "r"),
        node("Conv", "r wide", "boxes"),
        node("Conv", "r narrow", "raw"),
        node("Sigmoid", "raw", "scores"),
        node("Concat", "boxes scores", "both", axis=1),
        node("Transpose", "both", "y", perm=[0, 2, 3, 1]),
    ]
    weights = {"w": weight(0, 8, 3, 1, 1), "narrow": weight(2, 2, 8, 1, 1)}
    weights["wide"] = weight(1, 4, 8, 1, 1) * 1e6
    proto = model(nodes, {"x": [1, 3, 5, 5]}, {"y": [1, 5, 5, 6]}, weights)
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).ok
    next(node for node in small.graph.node if node.op_type == "Sigmoid").op_type = "HardSigmoid"
    found = verify(coupling, keep, small)
    assert not found.ok
    assert found.checks[0].ok, "the boxes hide it"
    assert "'scores'" in found.summary()
