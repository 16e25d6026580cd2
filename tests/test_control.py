"""Bodies of If, Loop and Scan: what goes in them goes in the file, and nothing else changes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import inferring, runtime
from onnxprune.axes import Mask
from onnxprune.bodies import graphs
from onnxprune.coupling import Coupling
from onnxprune.errors import BadModelError
from onnxprune.pair import Pair
from onnxprune.passes import couple as coupling_pass
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.rules import control, tables
from onnxprune.rules.control import Link
from tests.graphs import coupled, halves, keeping, model, node, weight

Array = NDArray[Any]
EXACT = 2e-6  # relative: sums of at most 8 float32 products in another order


def graph(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[tuple[str, int]],
    inputs: Sequence[tuple[str, int, Sequence[int] | None]] = (),
    **weights: Any,
) -> onnx.GraphProto:
    """A body; its outputs by name and element type."""
    return helper.make_graph(
        list(nodes),
        "body",
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )


FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def branches(same_names: bool = False) -> onnx.ModelProto:
    """x -> 8 wide -> If: two layers of 6 (own weights, captured input) -> 3."""
    sides = {}
    for seed, side in enumerate(("then", "else")):
        inner = "w" if same_names else f"w_{side}"
        result = "r" if same_names else f"r_{side}"
        body = [node("MatMul", f"h {inner}", f"{result}0"), node("Relu", f"{result}0", result)]
        own: dict[str, Any] = {inner: weight(seed, 8, 6)}
        sides[f"{side}_branch"] = graph(body, [(result, FLOAT)], **own)
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("If", "c", "m", **sides),
            node("MatMul", "m w2", "y"),
        ],
        {"x": ["n", 4], "c": []},
        {"y": ["n", 3]},
        {"w1": weight(5, 4, 8), "w2": weight(6, 6, 3)},
        c=BOOL,
    )


def loop(nested: bool = False) -> onnx.ModelProto:
    """h <- tanh(h u + x w1), five times, from a stored h0 (2, 8); all steps and the last give y."""
    step = [node("MatMul", "h_in u", "hu"), node("Add", "hu xw", "sum"), node("Tanh", "sum", "t")]
    if nested:
        same = graph([node("Identity", "t", "t_same")], [("t_same", FLOAT)])
        other = graph([node("MatMul", "t v", "t_other")], [("t_other", FLOAT)], v=weight(7, 8, 8))
        step += [
            node("Less", "i two", "early"),
            node("If", "early", "h_out", then_branch=same, else_branch=other),
        ]
    else:
        step.append(node("Identity", "t", "h_out"))
    step += [node("Identity", "c_in", "c_out"), node("MatMul", "h_out k", "scan")]
    body = graph(
        step,
        [("c_out", BOOL), ("h_out", FLOAT), ("scan", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("h_in", FLOAT, [2, 8])],
        u=weight(1, 8, 8),
        k=weight(2, 8, 6),
        two=np.array(2),
    )
    return model(
        [
            node("MatMul", "x w1", "xw"),
            node("Loop", "m - h0", "h steps", body=body),
            node("MatMul", "h w2", "a"),
            node("MatMul", "steps w3", "b"),
        ],
        {"x": [2, 4]},
        {"a": [2, 3], "b": ["t", 2, 3]},
        {
            "m": np.array(5),
            "h0": weight(3, 2, 8),
            "w1": weight(4, 4, 8),
            "w2": weight(5, 8, 3),
            "w3": weight(6, 6, 3),
        },
    )


def scan() -> onnx.ModelProto:
    """The same recurrence over axis 1 of x (2, t, 4), its steps given along axis 1."""
    body = graph(
        [
            node("MatMul", "x_t w1", "xw"),
            node("MatMul", "h_in u", "hu"),
            node("Add", "hu xw", "sum"),
            node("Tanh", "sum", "h_out"),
            node("MatMul", "h_out k", "each"),
        ],
        [("h_out", FLOAT), ("each", FLOAT)],
        [("h_in", FLOAT, [2, 8]), ("x_t", FLOAT, [2, 4])],
        u=weight(1, 8, 8),
        w1=weight(4, 4, 8),
        k=weight(2, 8, 6),
    )
    runs = node("Scan", "h0 x", "h steps", body=body, num_scan_inputs=1)
    runs.attribute.append(helper.make_attribute("scan_input_axes", [1]))
    runs.attribute.append(helper.make_attribute("scan_output_axes", [1]))
    return model(
        [runs, node("MatMul", "h w2", "a"), node("MatMul", "steps w3", "b")],
        {"x": [2, "t", 4]},
        {"a": [2, 3], "b": [2, "t", 3]},
        {"h0": weight(3, 2, 8), "w2": weight(5, 8, 3), "w3": weight(6, 6, 3)},
    )


CASES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "branches": branches,
    "branches of the same names": lambda: branches(same_names=True),
    "loop": loop,
    "nested": lambda: loop(nested=True),
    "scan": scan,
}


def tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for own in graphs(proto.graph) for tensor in own.initializer]


def silenced(proto: onnx.ModelProto, coupling: Coupling, keep: Mapping[int, Mask]) -> Any:
    """The original with zeros in the weights that read removed indices: knows no rule."""
    zeros: dict[str, list[tuple[int, Array]]] = {}
    for group in coupling.groups:
        for member in group.members:
            if member.contracted:
                mask = coupling.factors.mask(member.layout, keep)
                zeros.setdefault(member.param, []).append((member.axis, mask))
    assert zeros
    copy = onnx.ModelProto()
    copy.CopyFrom(coupling.model.proto)
    for tensor in tensors(copy):
        value = numpy_helper.to_array(tensor).copy()
        for axis, mask in zeros.get(tensor.name, ()):
            np.moveaxis(value, axis, 0)[~mask] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


def outputs(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    return runtime.run(
        runtime.session(proto, None), feeds, [value.name for value in proto.graph.output]
    )


def inputs(proto: onnx.ModelProto) -> list[dict[str, Array]]:
    rows = np.random.default_rng(1)
    if proto.graph.input[-1].name == "c":
        x = rows.standard_normal((3, 4)).astype(np.float32)
        return [{"x": x, "c": np.array(side)} for side in (True, False)]
    shape = [2, 5, 4] if len(proto.graph.input[0].type.tensor_type.shape.dim) == 3 else [2, 4]
    return [{"x": rows.standard_normal(shape).astype(np.float32)}]


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_body_is_the_original_with_silent_indices(name: str) -> None:
    proto = CASES[name]()
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    silent = silenced(proto, coupling, keep)
    assert sum(np.prod(t.dims) for t in tensors(small)) < sum(
        0.6 * np.prod(t.dims) for t in tensors(proto)
    )
    for feeds in inputs(proto):
        for found, wanted in zip(outputs(small, feeds), outputs(silent, feeds), strict=True):
            assert np.abs(found - wanted).max() <= EXACT * np.abs(wanted).max()
            assert np.ptp(wanted) > 0.1


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_body_is_proved(name: str) -> None:
    coupling = coupled(CASES[name]())
    keep = halves(coupling)
    found = verify(coupling, keep, shrink(coupling, keep))
    assert found.ok, found.failure
    assert not found.blind
    assert found.notes == ()


GROUPS = {
    "branches": {"w1:1": 8, "w_else:1": 6},
    "branches of the same names": {"w1:1": 8, "w:1": 6},
    "loop": {"w1:1": 8, "k:1": 6},
    "nested": {"w1:1": 8, "k:1": 6},
    "scan": {"w1:1": 8, "k:1": 6},
}


@pytest.mark.parametrize("name", CASES)
def test_groups_go_through_bodies(name: str) -> None:
    groups = coupled(CASES[name]()).groups
    assert {group.name: group.size for group in groups} == GROUPS[name]
    assert not any(group.mixing for group in groups)


def test_a_state_couples_all_that_carries_it() -> None:
    group = next(g for g in coupled(loop(nested=True)).groups if g.name == "w1:1")
    members = {(member.param, member.axis) for member in group.members}
    assert members == {
        *(("w1", 1), ("h0", 1), ("u", 0), ("u", 1)),
        *(("v", 0), ("v", 1), ("k", 0), ("w2", 0)),
    }


@pytest.mark.parametrize("name", CASES)
def test_an_empty_plan_is_the_identity(name: str) -> None:
    proto = CASES[name]()
    assert shrink(coupled(proto), {}).SerializeToString(deterministic=True) == (
        proto.SerializeToString(deterministic=True)
    )


def test_what_a_body_keeps_in_another_file_is_pruned(tmp_path: Path) -> None:
    proto = branches()
    inner = proto.graph.node[1].attribute[0].g.initializer[0]
    (tmp_path / "inner.bin").write_bytes(inner.raw_data)
    onnx.external_data_helper.set_external_data(inner, "inner.bin")
    inner.ClearField("raw_data")
    onnx.save(proto, tmp_path / "net.onnx")
    small, report = onnxprune.prune(tmp_path / "net.onnx", ratio=0.5)
    assert report.verification is not None
    assert report.verification.ok
    assert sorted(tuple(t.dims) for t in tensors(small)) == [(3, 3), (4, 3), (4, 3), (4, 4)]
    (tmp_path / "inner.bin").unlink()
    with pytest.raises(BadModelError, match=r"keeps tensor 'w_.*' in 'inner.bin'"):
        onnxprune.prune(tmp_path / "net.onnx", ratio=0.5)


def test_names_in_bodies_stay() -> None:
    proto = branches(same_names=True)
    coupling = coupled(proto)
    small = shrink(coupling, halves(coupling))
    for before, after in zip(graphs(proto.graph), graphs(small.graph), strict=True):
        assert [n.output for n in before.node] == [n.output for n in after.node]
        assert [t.name for t in before.initializer] == [t.name for t in after.initializer]


def test_each_branch_is_run() -> None:
    """A mistake in either branch is found, whatever the condition is."""
    for side in ("then", "else"):
        coupling = coupled(branches())
        keep = halves(coupling)
        small = shrink(coupling, keep)
        wrong = next(t for t in tensors(small) if t.name == f"w_{side}")
        value = numpy_helper.to_array(wrong).copy()
        value[0] *= 1.01
        wrong.CopyFrom(numpy_helper.from_array(value, wrong.name))
        found = verify(coupling, keep, small)
        assert not found.ok


def test_a_mistake_in_a_nested_branch_is_found_where_it_never_runs() -> None:
    proto = loop(nested=True)
    body = proto.graph.node[1].attribute[0].g
    next(t for t in body.initializer if t.name == "two").CopyFrom(
        numpy_helper.from_array(np.array(99), "two")
    )
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    wrong = next(t for t in tensors(small) if t.name == "v")
    wrong.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(wrong) * 1.01, "v"))
    found = verify(coupling, keep, small)
    assert found.failure
    assert found.failure.startswith("the else branch of node 'n_h_out' (If): ")


@pytest.mark.parametrize("dropped", ["comes back and out", "comes out", "goes in"])
def test_a_link_that_is_left_out_dies(monkeypatch: pytest.MonkeyPatch, dropped: str) -> None:
    real = control.links

    def cut(own: Any) -> control.Wiring:
        entering, leaving = real(own)
        if own.op != "Loop":
            return entering, leaving
        if dropped == "goes in":
            return [Link(link.value, ("h0",)) for link in entering], [
                Link(link.value, link.sources[-1:], gained=link.gained) for link in leaving
            ]
        carried = {link.value for link in entering} if dropped == "comes out" else set()
        kept = [x for x in leaving if x.value in carried or x.gained is not None]
        return entering, kept

    proto = loop()
    if dropped == "goes in":  # the state that goes in is then bound to nothing
        proto.graph.node[1].input[2] = "h1"
        proto.graph.node.insert(0, node("Relu", "h0", "h1"))
    monkeypatch.setattr(inferring, "links", cut)
    monkeypatch.setattr(coupling_pass, "links", cut)
    coupling = coupled(proto)
    keep = halves(coupling)
    whole = GROUPS["loop"].keys() <= {group.name for group in coupling.groups}
    try:
        proved = verify(coupling, keep, shrink(coupling, keep)).ok
    except Exception:  # noqa: BLE001  (the pruned model is not even a model)
        proved = False
    assert not (whole and proved)


def shaped(batch: int | str) -> onnx.ModelProto:
    """A layer, and an If on the size of an axis: one branch changes the rank."""
    squeezed = graph([node("ReduceSum", "h zero", "thin", keepdims=0)], [("thin", FLOAT)])
    as_it_is = graph([node("Identity", "h", "same")], [("same", FLOAT)])
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("Shape", "h", "s"),
            node("Gather", "s zero", "n"),
            node("Equal", "n one", "single"),
            node("If", "single", "m", then_branch=squeezed, else_branch=as_it_is),
            node("MatMul", "m w2", "y"),
        ],
        {"x": [batch, 3, 4]},
        {"y": ["a", 3, 3]},
        {
            "w1": weight(1, 4, 8),
            "w2": weight(2, 8, 3),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    )


def test_a_branch_that_never_runs_binds_nothing() -> None:
    coupling = coupled(shaped(2))
    assert [group.name for group in coupling.groups] == ["w1:1"]
    keep = keeping(coupling, w1=[0, 3, 4])
    assert verify(coupling, keep, shrink(coupling, keep)).ok


def test_a_branch_that_runs_at_size_one_alone_is_not_forgotten() -> None:
    assert coupled(shaped("n")).groups == ()


def test_a_state_that_grows_stays_whole() -> None:
    body = graph(
        [
            node("Concat", "h_in x", "h_out", axis=1),
            node("Identity", "c_in", "c_out"),
        ],
        [("c_out", BOOL), ("h_out", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("h_in", FLOAT, None)],
    )
    proto = model(
        [
            node("MatMul", "x0 w1", "x"),
            node("Loop", "m - x", "h", body=body),
            node("ReduceSum", "h", "y"),
        ],
        {"x0": [2, 4]},
        {"y": [1, 1]},
        {"m": np.array(3), "w1": weight(4, 4, 8)},
    )
    coupling = coupled(proto)
    assert coupling.groups == ()
    reason = coupling.factors.reason(coupling.layouts["w1"][1])
    assert reason is not None
    assert "differs between the ways" in coupling.says(reason)


def test_a_sigmoid_rounds_as_it_does_behind_a_branch() -> None:
    """What moves it, or takes its mean, has its rounding; what is joined of it has its own."""
    sides = {
        f"{side}_branch": graph([node("Unsqueeze", "g zero", side)], [(side, FLOAT)])
        for side in ("then", "else")
    }
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Sigmoid", "a", "g"),
            node("If", "c", "u", **sides),
            node("ReduceMean", "u", "m", axes=[0]),
            node("Concat", "m x", "j", axis=-1),
            node("MatMul", "j w2", "y"),
        ],
        {"x": [2, 4], "c": []},
        {"y": [1, 2, 3]},
        {"w1": weight(1, 4, 8), "w2": weight(2, 12, 3), "zero": np.array([0])},
        c=BOOL,
    )
    pair = Pair(coupled(proto), {}, proto)
    own = tables.ROUNDS_AT["Sigmoid"]
    found = {name: pair.least(name) for name in ("x", "a", "g", "u", "m", "j", "y")}
    assert found == {"x": 0, "a": 0, "g": own, "u": own, "m": own, "j": 0, "y": 0}
