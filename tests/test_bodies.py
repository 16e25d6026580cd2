"""Bodies of control flow in which something is known: what a step gives, and which way an If goes.

Each pruned model is held against the original with zeros in the weights that read what is removed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.axes import Reason
from onnxprune.bodies import graphs
from onnxprune.cost import cost_model
from onnxprune.coupling import Coupling
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from tests.graphs import coupled, halves, keeping, model, node, weight
from tests.test_control import BOOL, EXACT, FLOAT, INT, graph, outputs, silenced

Array = NDArray[Any]
X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def small_and_silent(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Half of every group removed, and the same silenced."""
    coupling = coupled(proto)
    keep = halves(coupling)
    return shrink(coupling, keep), silenced(proto, coupling, keep)


def agree(small: onnx.ModelProto, silent: onnx.ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Whether both compute the same, which is not nothing."""
    pairs = zip(outputs(small, feeds), outputs(silent, feeds), strict=True)
    return all(
        a.shape == b.shape and np.abs(a - b).max() <= EXACT * np.abs(b).max() and np.ptp(b) > 0.1
        for a, b in pairs
    )


def bodies(coupling: Coupling) -> dict[str, int]:
    """How many bodies of each If are looked into."""
    return {own.key: len(own.bodies) for own in coupling.model.every if "If" in own.op}


def counting(initial: str) -> onnx.ModelProto:
    """x (3, 4) -> 8 wide, repeated as often as a loop runs that gives the number 3 each time."""
    step = [
        node("Identity", "c_in", "c_out"),
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "k"),
    ]
    state: list[tuple[str, int, list[int]]] = [("i_in", INT, [])] if initial else []
    if state:
        step.append(node("Identity", "i_in", "i_out"))
    body = graph(
        step,
        [("c_out", BOOL), *(("i_out", INT) for _ in state), ("k", INT)],
        [("i", INT, []), ("c_in", BOOL, []), *state],
    )
    return model(
        [
            node("Loop", f"n true {initial}".strip(), f"{'last ' * len(state)}ks", body=body),
            node("ReduceSum", "ks", "total", keepdims=0),
            node("Div", "total three", "steps"),
            node("Unsqueeze", "steps zero", "lead"),
            node("Concat", "lead rest", "target", axis=0),
            node("MatMul", "x w1", "h"),
            node("Expand", "h target", "he"),
            node("ReduceSum", "he zero", "hs", keepdims=0),
            node("MatMul", "hs w2", "y"),
        ],
        {"x": [3, 4], "n": []},
        {"y": [3, 3]},
        {
            "w1": weight(1, 4, 8),
            "w2": weight(2, 8, 3),
            "true": np.array(True),
            "three": np.array(3),
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([3, 8]),
        },
        n=INT,
    )


@pytest.mark.parametrize("initial", ["", "three"])
def test_what_each_step_gives_is_not_what_the_loop_gives(initial: str) -> None:
    proto = counting(initial)
    coupling = coupled(proto)
    assert coupling.model.constant("k") is not None
    assert coupling.model.constant("ks") is None
    small, silent = small_and_silent(proto)
    for steps in (1, 4):
        assert agree(small, silent, {"x": X, "n": np.array(steps)})


def choosing(condition: list[onnx.NodeProto], width: int | str = 3) -> onnx.ModelProto:
    """x (n, 4) -> an If of two layers, 8 wide -> 3; nodes make the condition ``c``."""
    sides = {}
    for seed, side in enumerate(("then", "else")):
        own: dict[str, Any] = {f"w_{side}": weight(seed, 4, 8)}
        layer = node("MatMul", f"x w_{side}", f"h_{side}")
        sides[f"{side}_branch"] = graph([layer], [(f"h_{side}", FLOAT)], **own)
    return model(
        [*condition, node("If", "c", "m", **sides), node("MatMul", "m w2", "y")],
        {"x": [width, 4]},
        {"y": [width, 3]},
        {
            "w2": weight(6, 8, 3),
            "zero": np.array(0),
            "one": np.array(1),
            "d": np.array(True),
        },
    )


@pytest.mark.parametrize(("listed", "version"), [(True, 8), (True, 3), (False, 8)])
def test_a_condition_that_a_caller_may_give_is_not_known(listed: bool, version: int) -> None:
    proto = choosing([node("Not", "d", "c")])
    proto.ir_version = version
    if listed:
        for tensor in proto.graph.initializer:
            proto.graph.input.add().CopyFrom(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    free = listed and version >= 4
    assert bodies(coupled(proto)) == {"m": 2 if free else 1}
    if free:
        small, silent = small_and_silent(proto)
        for feeds in ({}, {"d": np.array(True)}, {"d": np.array(False)}):
            assert agree(small, silent, {"x": X, **feeds})


@pytest.mark.parametrize("width", ["n", 3])
def test_a_condition_that_another_branch_computes_of_a_size_is_not_known(width: int | str) -> None:
    sizes = [node("Shape", "x", "s"), node("Gather", "s zero", "rows")]
    inner = graph([*sizes, node("Equal", "rows one", "single")], [("single", BOOL)])
    other = graph([node("Identity", "d", "same")], [("same", BOOL)])
    proto = choosing([node("If", "d", "c", then_branch=inner, else_branch=other)], width)
    coupling = coupled(proto)
    assert bodies(coupling) == {"c": 1, "m": 2 if width == "n" else 1}
    keep = halves(coupling)
    assert verify(coupling, keep, shrink(coupling, keep)).ok
    small, silent = small_and_silent(proto)
    for rows in (1, 2, 3) if width == "n" else (3,):
        assert agree(small, silent, {"x": X[:rows]})


def drawing(kind: str) -> list[onnx.NodeProto]:
    """Nodes that make ``r`` (8, 8) of the stored ``k``: other values in each run."""
    if kind == "Dropout":
        return [node("Dropout", "k half d", "r")]
    if kind == "RandomNormalLike":
        return [node("RandomNormalLike", "k", "r")]
    inner = [node("Identity", "c_in", "c_out"), node("Bernoulli", "s_in", "s_out")]
    body = graph(
        inner,
        [("c_out", BOOL), ("s_out", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("s_in", FLOAT, [8, 8])],
    )
    return [node("Loop", "one d k", "r", body=body)]


def noisy(kind: str, output: bool) -> onnx.ModelProto:
    """x (3, 4) -> 8 -> times what is drawn -> 3; or what is drawn is added to an output."""
    ends = [node("MatMul", "g w2", "y")]
    if output:
        ends = [node("MatMul", "h w2", "u"), node("ReduceSum", "g", "v"), node("Add", "u v", "y")]
    layers = [node("MatMul", "x w1", "h"), node("MatMul", "x_wide r", "g")]
    if not output:
        layers[1].input[0] = "h"
    return model(
        [layers[0], *ends[: len(ends) - 2], *drawing(kind), layers[1], *ends[-2:]],
        {"x": [3, 4], **({"x_wide": [3, 8]} if output else {})},
        {"y": [3, 3]},
        {
            "k": weight(1, 8, 8) % 1,
            "w1": weight(2, 4, 8),
            "w2": weight(3, 8, 3),
            "d": np.array(True),
            "one": np.array(1),
            "half": np.array(0.5, np.float32),
        },
    )


DRAWING = ("Dropout", "Loop", "RandomNormalLike")


@pytest.mark.parametrize("kind", DRAWING)
def test_what_is_drawn_is_no_constant(kind: str) -> None:
    coupling = coupled(noisy(kind, output=False))
    assert "r" not in coupling.model.params
    assert any("r" in own.outputs for own in coupling.model.nodes)
    assert cost_model(coupling).work.elements["r"][0] > 0
    small = shrink(coupling, halves(coupling))
    session = runtime.session(small, None)
    first, other = (runtime.run(session, {"x": X}, ["y"])[0] for _ in range(2))
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("kind", ["Loop", "RandomNormalLike"])
def test_what_draws_draws_the_same_in_the_proof(kind: str) -> None:
    coupling = coupled(noisy(kind, output=True))
    keep = halves(coupling)
    small = shrink(coupling, keep)
    before = small.SerializeToString()
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert not found.blind
    assert small.SerializeToString() == before
    wrong = next(t for t in small.graph.initializer if t.name == "w2")
    wrong.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(wrong), "w2"))
    assert "draws" not in str(verify(coupling, keep, small).failure)
    assert not verify(coupling, keep, small).ok


def test_a_refusal_tells_that_the_model_draws() -> None:
    coupling = coupled(noisy("Dropout", output=True))
    keep = halves(coupling)
    small = shrink(coupling, keep)
    wrong = next(t for t in small.graph.initializer if t.name == "w2")
    wrong.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(wrong), "w2"))
    found = verify(coupling, keep, small)
    assert found.failure
    told = "; node 'n_r' (Dropout) draws random numbers, so that runs may differ by themselves"
    assert found.failure.endswith(told)


def one_way(dead: onnx.GraphProto, known: bool = True, **weights: Array) -> onnx.ModelProto:
    """x (3, 4) -> 8 -> an If that hands it on, always, or runs another body -> 3."""
    body = graph([node("Identity", "h", "same")], [("same", FLOAT)])
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("If", "d", "m", then_branch=body, else_branch=dead),
            node("MatMul", "m w2", "y"),
        ],
        {"x": [3, 4], **({} if known else {"d": []})},
        {"y": [3, 3]},
        {
            "w1": weight(2, 4, 8),
            "w2": weight(3, 8, 3),
            **({"d": np.array(True)} if known else {}),
            **weights,
        },
        d=BOOL,
    )


def another(operand: str) -> onnx.GraphProto:
    """A body that has a weight of its own for what it reads, 8 wide."""
    own: dict[str, Any] = {"v": weight(7, 8, 8)}
    return graph([node("MatMul", f"{operand} v", "other")], [("other", FLOAT)], **own)


def sizes(proto: onnx.ModelProto) -> int:
    """How many numbers of floats a model holds."""
    found = (t for own in graphs(proto.graph) for t in own.initializer if t.data_type == FLOAT)
    return sum(int(np.prod(t.dims)) for t in found)


def nested(dead: onnx.GraphProto) -> onnx.ModelProto:
    """The same inside of a body of an If that goes either way."""
    body = graph(
        [
            node("Identity", "h", "same"),
            node("If", "true", "r", then_branch=_then(), else_branch=dead),
        ],
        [("r", FLOAT)],
        true=np.array(True),
    )
    return one_way(body, known=False)


def _then() -> onnx.GraphProto:
    return graph([node("Relu", "h", "relu")], [("relu", FLOAT)])


@pytest.mark.parametrize("inner", [False, True])
def test_a_branch_that_never_runs_holds_nothing_back(inner: bool) -> None:
    proto = nested(another("h")) if inner else one_way(another("h"))
    coupling = coupled(proto)
    assert [group.name for group in coupling.groups] == ["w1:1"]
    keep = halves(coupling)
    small = shrink(coupling, keep)
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert sizes(small) == 4 * 4 + 4 * 3
    silent = silenced(proto, coupling, keep)
    for side in (True, False) if inner else (True,):
        assert agree(small, silent, {"x": X, **({"d": np.array(side)} if inner else {})})
    shape = inferred(small)["m"]
    assert shape == [3, 4]


def inferred(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """The shapes that onnx infers."""
    known = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known.value_info}


def test_a_branch_that_never_runs_stays_where_nothing_in_it_goes() -> None:
    proto = one_way(another("xx"), xx=weight(1, 3, 8))
    coupling = coupled(proto)
    small = shrink(coupling, halves(coupling))
    before, after = ([*graphs(own.graph)][2] for own in (proto, small))
    assert before == after
    assert sizes(small) == 4 * 4 + 4 * 3 + 8 * 8 + 3 * 8


@pytest.mark.parametrize("shared", ["w1", "b"])
def test_what_a_branch_that_never_runs_shares_is_held_and_counted_once(shared: str) -> None:
    body = [node("MatMul", "x w1", "z"), node("Add", "z b", "other")]
    dead = graph(body if shared == "w1" else [node("Identity", "b", "other")], [("other", FLOAT)])
    proto = one_way(dead, b=weight(5, 8))
    proto.graph.node[0].output[0] = proto.graph.node[0].name = "h0"
    proto.graph.node.insert(1, node("Add", "h0 b", "h"))
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).ok
    counts = {group.factor: 4 for group in coupling.groups}
    costs = cost_model(coupling)
    assert costs.cost({}).params == sizes(proto) == 4 * 8 + 8 + 8 * 3
    assert costs.cost(counts).params == sizes(small) == 4 * 4 + 4 + 4 * 3
    names = [t.name for t in proto.graph.initializer]
    assert [t.name for t in small.graph.initializer] == names


def test_a_branch_that_no_stub_can_stand_for_holds_what_it_reads() -> None:
    own: dict[str, Any] = {"v": weight(7, 8, 8)}
    other = [node("MatMul", "h v", "o"), node("SequenceConstruct", "o", "other")]
    dead = graph(other, [("other", FLOAT)], **own)
    proto = one_way(dead)
    then = graph([node("SequenceConstruct", "x", "same")], [("same", FLOAT)])
    kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(FLOAT, None))
    for body, attribute in zip((dead, then), proto.graph.node[1].attribute, strict=True):
        body.output[0].type.CopyFrom(kind)
        attribute.g.CopyFrom(body)
    del proto.graph.node[2]
    proto.graph.node.extend(
        [
            node("MatMul", "h w2", "u"),
            node("SequenceLength", "m", "count"),
            node("Cast", "count", "number", to=FLOAT),
            node("Add", "u number", "y"),
        ]
    )
    coupling = coupled(proto)
    assert bodies(coupling) == {"m": 1}
    assert coupling.groups == ()
    reason = Reason("a branch of it that never runs reads this", 1)
    assert coupling.factors.reason(coupling.layouts["h"][1]) == reason
    assert outputs(shrink(coupling, {}), {"x": X})[0].shape == (3, 3)


def measured(stated: bool) -> onnx.ModelProto:
    """x (3, 4) -> 8 -> 3; an If that always gives the sizes of a product of the 8 with 5."""
    then = [node("MatMul", "h v", "hv"), node("Shape", "hv", "s")]
    other = graph([node("Shape", "x", "s_x")], [("s_x", INT)])
    own: dict[str, Any] = {"v": weight(7, 8, 5)}
    body = graph(then, [("s", INT)], **own)
    for value in (body.output[0], other.output[0]) if stated else ():
        value.type.tensor_type.shape.dim.add().dim_value = 2
    proto = one_way(other)
    proto.graph.node[1].CopyFrom(node("If", "d", "m", then_branch=body, else_branch=other))
    proto.graph.node[2].input[0] = "h"
    proto.graph.output.append(onnx.helper.make_tensor_value_info("m", INT, [2]))
    return proto


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_whose_result_is_known_is_pruned_along(stated: bool) -> None:
    proto = measured(stated)
    coupling = coupled(proto)
    assert {(m.param, m.axis) for m in coupling.groups[0].members} == {
        *(("w1", 1), ("v", 0), ("w2", 0)),
    }
    keep = keeping(coupling, w1=[0, 2, 3, 6])
    small = shrink(coupling, keep)
    found = verify(coupling, keep, small)
    assert found.ok, found.failure
    assert sizes(small) == 4 * 4 + 4 * 5 + 4 * 3
    wide, narrow = (outputs(own, {"x": X})[1] for own in (proto, small))
    assert wide.tolist() == narrow.tolist() == [3, 5]


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_sizes_whose_annotation_may_state_no_shape(stated: bool, inside: bool) -> None:
    proto = measured(stated)
    proto.graph.node.insert(1, node("Shape", "h", "s_h"))
    proto.graph.node[2].attribute[1].g.node.insert(1, node("Shape", "h", "s_in"))
    note = onnx.helper.make_tensor_value_info(
        "s_in" if inside else "s_h", INT, [2] if stated else None
    )
    place = proto.graph.node[2].attribute[1].g if inside else proto.graph
    place.value_info.append(note)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("s_h", INT, [2]))
    coupling = coupled(proto)
    keep = keeping(coupling, w1=[0, 2, 3, 6])
    small = shrink(coupling, keep)
    assert verify(coupling, keep, small).ok
    place = small.graph.node[2].attribute[1].g if inside else small.graph
    assert [*place.value_info] == [note]


def halting(first: str, second: str, turn: int) -> onnx.GraphProto:
    """A loop's body: every other step goes another way, both with a layer; inner names are fixed.

    Args:
        first, second: the activations of the two branches.
        turn: the remainder of the step by 2 at which the first one runs.
    """
    sides = {}
    for side, op in (("then", first), ("else", second)):
        own: dict[str, Any] = {"a": weight(len(op), 8, 8)}
        nodes = [node("MatMul", "s a", "u"), node(op, "u", "o")]
        sides[f"{side}_branch"] = graph(nodes, [("o", FLOAT)], **own)
    return graph(
        [
            node("Identity", "c_in", "c_out"),
            node("Mod", "i two", "r"),
            node("Equal", "r turn", "q"),
            node("If", "q", "s_out", **sides),
        ],
        [("c_out", BOOL), ("s_out", FLOAT)],
        [("i", INT, []), ("c_in", BOOL, []), ("s", FLOAT, None)],
        two=np.array(2),
        turn=np.array(turn),
    )


def twins() -> onnx.ModelProto:
    """x (3, 4) -> 8 -> two loops one after the other, whose values have the same names -> 3."""
    loops = [
        node("Loop", "n - h", "h1", body=halting("Relu", "Tanh", 0)),
        node("Loop", "n - h1", "h2", body=halting("Tanh", "Softplus", 1)),
    ]
    return model(
        [node("MatMul", "x w1", "h"), *loops, node("MatMul", "h2 w2", "y")],
        {"x": [3, 4], "n": []},
        {"y": [3, 3]},
        {"w1": weight(2, 4, 8), "w2": weight(3, 8, 3)},
        n=INT,
    )


def test_branches_whose_results_have_the_same_names_are_proved_one_by_one() -> None:
    proto = twins()
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    feeds = {"x": X, "n": np.array(3)}
    found = verify(coupling, keep, small, inputs=feeds)
    assert found.ok, found.failure
    assert found.notes == ()
    assert agree(small, silenced(proto, coupling, keep), feeds)


@pytest.mark.parametrize(("loop", "side"), [(1, "else"), (2, "then")])
def test_a_mistake_in_one_of_them_that_never_runs_is_found(loop: int, side: str) -> None:
    coupling = coupled(twins())
    keep = halves(coupling)
    small = shrink(coupling, keep)
    inner = small.graph.node[loop].attribute[0].g.node[3]
    body = next(a.g for a in inner.attribute if a.name == f"{side}_branch")
    wrong = next(t for t in body.initializer if t.name == "a")
    wrong.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(wrong), "a"))
    found = verify(coupling, keep, small, inputs={"x": X, "n": np.array(1)})
    assert found.failure
    assert found.failure.startswith(f"the {side} branch of node ")


def test_a_branch_that_decides_is_forced_too() -> None:
    """Its results are pinned where values inside are compared, but the way is the same."""
    proto = choosing([])
    proto.graph.input.append(onnx.helper.make_tensor_value_info("c", BOOL, []))
    proto.graph.node.insert(0, node("Softplus", "x", "made"))
    for attribute in proto.graph.node[1].attribute:
        attribute.g.node[0].input[0] = "made"
        attribute.g.node[0].output[0] = attribute.g.node[0].name = f"wide_{attribute.name}"
        attribute.g.node.append(node("Round", f"wide_{attribute.name}", attribute.g.output[0].name))
    coupling = coupled(proto)
    keep = halves(coupling)
    small = shrink(coupling, keep)
    for side in (True, False):
        found = verify(coupling, keep, small, inputs={"x": 9 * X, "c": np.array(side)})
        assert found.ok, found.failure
        assert found.notes == ()
