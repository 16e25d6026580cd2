"""Laws of recovery: what can be made up for is, what can't is left, and the proof holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.numpy_helper import to_array

from onnxprune import api, runtime
from onnxprune.affine import Lines
from onnxprune.axes import Mask
from onnxprune.coupling import Coupling
from onnxprune.full import fitted_values
from onnxprune.gathering import Gathered
from onnxprune.linear import Linear
from onnxprune.passes.recover import Recovery, recover
from onnxprune.passes.score import score
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import verify
from onnxprune.recurrent import Recurrent
from onnxprune.refit import SHARED, Refit
from onnxprune.stepping import Stepper
from tests.graphs import convolutions, coupled, halves, keeping, model, node, residual, weight
from tests.zoo.fill import load

Array = NDArray[Any]
EXACT = 1e-3  # relative: the smallest penalty of the fit leaves so much


def batches(count: int, *shape: int, name: str = "x") -> list[dict[str, Array]]:
    return [
        {name: np.random.default_rng(seed).standard_normal(shape, np.float32)}
        for seed in range(count)
    ]


def outputs(proto: onnx.ModelProto, feeds: list[dict[str, Array]]) -> list[Array]:
    session = runtime.session(proto, None)
    names = [output.name for output in proto.graph.output]
    return [value for one in feeds for value in runtime.run(session, one, names)]


def missed(proto: onnx.ModelProto, original: onnx.ModelProto, feeds: Any) -> float:
    """The root of the mean square error of the outputs, relative to that of the outputs."""
    pairs = list(zip(outputs(proto, feeds), outputs(original, feeds), strict=True))
    lost = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return float(np.sqrt(lost / sum(float(np.square(b).sum()) for _, b in pairs)))


def recovered(
    coupling: Coupling, keep: dict[int, Mask], feeds: Any, **given: Any
) -> tuple[Recovery, onnx.ModelProto, onnx.ModelProto]:
    """What recovery says, the pruned model before it, and after it."""
    small = shrink(coupling, keep)
    found = recover(coupling, keep, small, feeds, **given)
    return found, small, shrink(coupling, keep, found.values)


def mixed(op: str = "MatMul") -> onnx.ModelProto:
    """x -> a (8) -> y, where channels 4 to 7 of a are mixtures of 0 to 3, and a bias follows."""
    first = weight(1, 6, 8)
    first[:, 4:] = first[:, :4] @ weight(2, 4, 4)
    last = weight(3, 8, 5)
    if op == "Conv":
        weights = {"w1": first.T[:, :, None, None], "w2": last.T[:, :, None, None]}
        nodes = [node("Conv", "x w1", "a"), node("Conv", "a w2 b2", "y")]
        return model(
            nodes, {"x": ["n", 6, 4, 4]}, {"y": ["n", 5, 4, 4]}, {**weights, "b2": weight(4, 5)}
        )
    nodes = [node("MatMul", "x w1", "a"), node("MatMul", "a w2", "p"), node("Add", "p b2", "y")]
    weights = {"w1": first, "w2": last, "b2": weight(4, 5)}
    return model(nodes, {"x": ["n", 6]}, {"y": ["n", 5]}, weights)


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_mixtures_of_what_stays_are_made_up_for(op: str) -> None:
    proto = mixed(op)
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    shape = (40, 6) if op == "MatMul" else (6, 6, 4, 4)
    feeds, other = batches(8, *shape), batches(3, *shape)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert missed(small, proto, other) > 0.1
    assert missed(fitted, proto, other) < EXACT
    assert [layer.node for layer in found.layers] == [
        "node 'n_p' (MatMul)" if op == "MatMul" else "node 'n_y' (Conv)"
    ]
    assert found.layers[0].after < EXACT < found.layers[0].before


def test_a_constant_channel_goes_into_the_bias_behind() -> None:
    proto = mixed()
    w1 = to_array(proto.graph.initializer[0]).copy()
    w1[:, 4:] = 0
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w1, "w1"))
    proto.graph.node.insert(1, node("Add", "a b1", "c"))
    proto.graph.node[2].input[0] = "c"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(9, 8) + 1, "b1"))
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    found, small, fitted = recovered(coupling, keep, batches(8, 40, 6))
    assert set(found.values) == {"w2", "b2"}
    assert missed(small, proto, batches(2, 40, 6)) > 0.1
    assert missed(fitted, proto, batches(2, 40, 6)) < EXACT


def normed() -> onnx.ModelProto:
    """Conv -> Sigmoid -> Conv without a bias -> BatchNormalization, the last two a branch."""
    rng = np.random.default_rng(5)
    vectors = {k: rng.uniform(0.5, 2, 4).astype(np.float32) for k in ("s", "t", "m", "v")}
    return model(
        [
            node("Conv", "x w1", "a"),
            node("Sigmoid", "a", "g"),
            node("Conv", "g w2", "c"),
            node("BatchNormalization", "c s t m v", "n"),
            node("Add", "n x", "y"),
        ],
        {"x": ["n", 4, 5, 5]},
        {"y": ["n", 4, 5, 5]},
        {"w1": weight(1, 8, 4, 1, 1), "w2": weight(2, 4, 8, 3, 3)[:, :, 1:2, 1:2], **vectors},
    )


def test_a_norm_behind_carries_the_bias() -> None:
    proto = normed()
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) % 2 == 0}
    feeds = batches(8, 8, 4, 5, 5)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert set(found.values) == {"w2", "t"}
    assert missed(fitted, proto, batches(2, 8, 4, 5, 5)) < 0.5 * missed(
        small, proto, batches(2, 8, 4, 5, 5)
    )
    plain = outputs(proto, feeds)
    means = [
        np.mean(np.concatenate(found), axis=(0, 2, 3)) for found in (plain, outputs(fitted, feeds))
    ]
    assert np.abs(means[0] - means[1]).max() < 0.02


def test_a_branch_mends_what_came_before_it() -> None:
    """The stem is pruned beyond repair; the branch behind it sees the loss and takes it back."""
    proto = model(
        [
            node("MatMul", "x w1", "h"),
            node("Relu", "h", "r"),
            node("MatMul", "r w2", "s"),
            node("MatMul", "x w3", "b"),
            node("Add", "s b", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 6]},
        {"w1": weight(1, 6, 8), "w2": weight(2, 8, 6), "w3": weight(3, 6, 6)},
    )
    coupling = coupled(proto)
    keep = keeping(coupling, w1=[0, 1])
    found, small, fitted = recovered(coupling, keep, batches(8, 60, 6))
    assert set(found.values) == {"w2", "w3"}
    assert found.layers[1].after < found.layers[1].before
    other = batches(2, 60, 6)
    alone = dict(found.values)
    del alone["w3"]
    without = shrink(coupling, keep, alone)
    assert (
        missed(fitted, proto, other) < missed(without, proto, other) < missed(small, proto, other)
    )


@pytest.mark.parametrize("name", ["convolutions", "residual", "paddle/lenet", "timm/levit_128s"])
def test_every_change_is_better_where_it_was_not_fitted_and_is_proven(name: str) -> None:
    made = {"convolutions": convolutions(), "residual": residual()}
    proto = made[name] if name in made else load(name)
    coupling = coupled(proto)
    keep = halves(coupling)
    count = 4 if name in made else 3
    value = proto.graph.input[0]
    shape = [dim.dim_value or 4 for dim in value.type.tensor_type.shape.dim]
    feeds = batches(count, *shape, name=value.name)
    found, _, fitted = recovered(coupling, keep, feeds)
    assert found.layers
    for layer in found.layers:
        assert (layer.strength is None) == bool(layer.reason)
        assert layer.after <= layer.before
        assert layer.strength is None or layer.after < layer.before
    verdict = verify(coupling, keep, fitted, values=found.values)
    assert verdict.ok, verdict.summary()
    assert not verify(coupling, keep, fitted).ok, "the original's weights are others"
    again = fitted_values(coupling, keep, fitted, found.values)
    assert again.keys() == found.values.keys()
    assert all(np.array_equal(again[key], found.values[key]) for key in again)


def test_nothing_removed_is_nothing_recovered() -> None:
    coupling = coupled(convolutions())
    found, small, fitted = recovered(coupling, {}, batches(4, 4, 4, 6, 6))
    assert not found.layers
    assert not found.values
    assert fitted.SerializeToString() == small.SerializeToString()


def heads() -> onnx.ModelProto:
    """Two inputs of other spreads through the same two layers, mixtures between them."""
    first = weight(1, 6, 8)
    first[:, 4:] = first[:, :4] @ weight(2, 4, 4)
    return model(
        [
            node("MatMul", "x w1", "a"),
            node("MatMul", "a w2", "b"),
            node("Mul", "x spread", "z"),
            node("MatMul", "z w1", "c"),
            node("MatMul", "c w2", "d"),
            node("Add", "b d", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 3]},
        {
            "w1": first,
            "w2": weight(3, 8, 3),
            "spread": np.array([3, 1, 0, 2, 1, 0.2], np.float32),
        },
    )


def test_a_weight_that_serves_two_layers_is_fitted_to_what_both_miss() -> None:
    proto = heads()
    coupling = coupled(proto)
    (group,) = coupling.groups
    keep = {group.factor: np.arange(8) < 4}
    feeds = batches(8, 40, 6)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert set(found.values) == {"w2"}
    told = {layer.node: layer for layer in found.layers}
    assert told["node 'n_b' (MatMul)"].strength is not None
    assert replace(told["node 'n_d' (MatMul)"], node="") == replace(
        told["node 'n_b' (MatMul)"], node=""
    )
    test = batches(2, 50, 6)
    assert missed(small, proto, test) > 0.1
    assert missed(fitted, proto, test) < EXACT
    assert verify(coupling, keep, fitted, values=found.values).ok


def test_the_fit_of_a_shared_weight_is_that_of_all_rows_together() -> None:
    proto = heads()
    first = weight(1, 6, 8)  # no mixtures: what is removed can't be made up for
    proto.graph.initializer[0].raw_data = first.tobytes()
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    feeds = batches(8, 400, 6)
    found = recovered(coupling, keep, feeds)[0]
    spread = coupling.model.params["spread"].read()
    x = np.concatenate([feed["x"] for feed in feeds])
    last = coupling.model.params["w2"].read()
    whole = np.concatenate([x @ first, (x * spread) @ first])
    best = np.linalg.lstsq(whole[:, :4], whole @ last, rcond=None)[0]
    lost = [
        float(np.square(whole @ last - whole[:, :4] @ own).sum())
        for own in (
            best,
            found.values["w2"][:4],
            np.linalg.lstsq((x @ first)[:, :4], x @ first @ last, rcond=None)[0],
        )
    ]
    assert lost[1] < 1.01 * lost[0]
    assert lost[2] > 1.05 * lost[0], "what is best for one use is not for both"


def test_a_shared_fit_that_makes_the_outputs_worse_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coupling = coupled(heads())
    keep = {coupling.groups[0].factor: np.arange(8) % 2 == 0}
    plain = Gathered.fitted

    def wrong(self: Gathered, linear: Linear) -> Any:
        found = plain(self, linear)
        return found and replace(found, weight=1e3 * np.asarray(self.weight))

    monkeypatch.setattr(Gathered, "fitted", wrong)
    found = recovered(coupling, keep, batches(8, 40, 6))[0]
    assert not found.values
    assert "2 weights that several layers share stay as they are" in found.notes[0]
    assert {layer.reason for layer in found.layers} == {SHARED}


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("perms", [[[1, 0]], [None], [[1, 2, 0], [2, 1, 0]]])
def test_a_weight_behind_a_transpose_is_fitted_where_it_is_stored(
    perms: list[list[int] | None], uses: int
) -> None:
    first, last = weight(1, 6, 8), weight(3, 8, 5)
    first[:, 4:] = first[:, :4] @ weight(2, 4, 4)
    stored, batched = last, len(perms) > 1
    if batched:
        stored = np.stack([last] * 2)
    for perm in reversed(perms):  # what undoes the turns
        order = perm or list(range(stored.ndim))[::-1]
        stored = np.ascontiguousarray(stored.transpose(np.argsort(order)))
    names = ["w2", *(f"t{k}" for k in range(len(perms)))]
    turns = [
        node("Transpose", a, b, **({"perm": perm} if perm else {}))
        for a, b, perm in zip(names, names[1:], perms, strict=False)
    ]
    products = [node("MatMul", f"{x} {names[-1]}", y) for x, y in (("a", "p"), ("c", "q"))[:uses]]
    nodes = [node("MatMul", "x w1", "a"), node("Neg", "a", "c"), *turns, *products]
    shape: list[int | str] = ["n", 4, 6] if not batched else [2, "n", 6]
    outputs_of: dict[str, Any] = {own.output[0]: [*shape[:2], 5] for own in products}
    proto = model(nodes, {"x": shape}, outputs_of, {"w1": first, "w2": stored})
    coupling = coupled(proto)
    (group,) = coupling.groups
    keep = {group.factor: np.arange(8) < 4}
    feeds = batches(8, 2, 40, 6) if batched else batches(8, 40, 4, 6)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert set(found.values) == {"w2"}
    assert found.values["w2"].shape == stored.shape
    assert missed(small, proto, feeds[:2]) > 0.1
    assert missed(fitted, proto, feeds[:2]) < EXACT
    assert verify(coupling, keep, fitted, values=found.values).ok
    again = fitted_values(coupling, keep, fitted, ["w2"])["w2"]
    assert np.array_equal(again, found.values["w2"])
    scores = score(coupling, "obs", feeds=feeds)[group.factor]
    assert np.sort(scores)[:4].max() < 0.5 * np.sort(scores)[4:].min(), "four are mixtures"


def test_what_can_not_be_fitted_is_told() -> None:
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Relu", "a", "r"),
        node("Transpose", "w2", "t", perm=[1, 0]),
        node("Tanh", "t", "u"),
        node("MatMul", "r u", "y"),
    ]
    proto = model(
        nodes, {"x": ["n", 6]}, {"y": ["n", 3]}, {"w1": weight(1, 6, 8), "w2": weight(2, 3, 8)}
    )
    coupling = coupled(proto)
    found = recovered(coupling, halves(coupling), batches(4, 20, 6))[0]
    (layer,) = (layer for layer in found.layers if layer.node == "node 'n_y' (MatMul)")
    assert layer.strength is None
    assert layer.reason == "its weight is computed in the graph"


def test_the_same_seed_gives_the_same_and_layers_are_told() -> None:
    coupling = coupled(convolutions())
    keep, feeds = halves(coupling), batches(4, 4, 4, 6, 6)
    told: list[str] = []
    first = recovered(coupling, keep, feeds, seed=3, progress=told.append)[0]
    second = recovered(coupling, keep, feeds, seed=3)[0]
    assert all(np.array_equal(first.values[k], second.values[k]) for k in second.values)
    assert told == ["node 'n_y1' (Conv)", "node 'n_y2' (Conv)", "node 'n_y' (Conv)"]


def test_a_norm_over_fewer_channels_gets_another_scale_and_shift() -> None:
    """Half of a mixing width goes; what a line for each channel can mend is mended."""
    vectors = {"s": weight(7, 16) + 1, "t": weight(8, 16)}
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Add", "a b1", "h"),
            node("LayerNormalization", "h s t", "n"),
            node("MatMul", "n w2", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 3]},
        {"w1": weight(1, 6, 16), "b1": 3 * weight(2, 16), "w2": weight(3, 16, 3), **vectors},
    )
    coupling = coupled(proto)
    assert [group.mixing for group in coupling.groups] == [True]
    keep = {coupling.groups[0].factor: np.arange(16) < 8}
    feeds, other = batches(8, 60, 6), batches(3, 60, 6)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert set(found.values) == {"s", "t", "w2"}
    norm = found.layers[0]
    assert "LayerNormalization" in norm.node
    assert norm.after < 0.5 * norm.before
    without = shrink(coupling, keep, {"w2": found.values["w2"]})
    assert missed(fitted, proto, other) < 0.7 * min(
        missed(small, proto, other), missed(without, proto, other)
    )
    assert verify(coupling, keep, fitted, values=found.values).ok


def test_lines_are_least_squares() -> None:
    generator = np.random.default_rng(0)
    y = generator.standard_normal((50, 3, 2)).astype(np.float32)
    t = (y * np.array([2.0, -1.0, 0.5])[:, None] + np.array([1.0, 0.0, -3.0])[:, None]).astype("f4")
    lines = Lines()
    lines.add(y[:30], t[:30], axis=1)
    lines.add(y[30:], t[30:], axis=1)
    slope, shift = lines.solved(free=True)
    assert np.allclose(slope, [2, -1, 0.5], atol=5e-3)
    assert np.allclose(shift, [1, 0, -3], atol=5e-3)
    direct = np.square(y * slope[:, None] + shift[:, None] - t).sum()
    assert lines.left(slope, shift) == pytest.approx(float(direct), abs=1e-3)
    assert lines.left(1.0, 0.0) == pytest.approx(float(np.square(y - t).sum()), rel=1e-4)
    tight, none = lines.solved(free=False)
    assert not none.any()
    assert tight[1] == pytest.approx(
        float((y[:, 1] * t[:, 1]).sum() / (y[:, 1] ** 2).sum()), abs=1e-2
    )


def final_steps(coupling: Coupling, keep: dict[int, Mask], feeds: Any) -> float:
    """What the file misses of the model that recovery itself ended with."""
    small = shrink(coupling, keep)
    original, pruned = (Stepper(proto, None, feeds) for proto in (coupling.model.proto, small))
    work = Refit(coupling, keep, original, pruned, {}, np.random.default_rng(0))
    for fitted, branch in work.found():
        if not isinstance(fitted, Recurrent):
            work.fit(fitted, branch)
    work.pruned.advance(len(work.pruned.nodes))
    written = outputs(shrink(coupling, keep, work.changed), feeds)
    kept = [work.pruned.values[x][k] for k in range(len(feeds)) for x in work.pruned.outputs]
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(kept, written, strict=True)
    )


def test_one_zero_bias_of_all_layers_is_no_tie() -> None:
    zero = np.zeros(8, np.float32)
    proto = model(
        [
            node("Gemm", "x w1 z", "a"),
            node("Sigmoid", "a", "g"),
            node("Gemm", "g w2 z", "b"),
            node("Sigmoid", "b", "h"),
            node("Gemm", "h w3 z", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 8]},
        {"w1": weight(1, 6, 8), "w2": weight(2, 8, 8), "w3": weight(3, 8, 8), "z": zero},
    )
    coupling = coupled(proto)
    keep, feeds = halves(coupling), batches(6, 60, 6)
    found, small, fitted = recovered(coupling, keep, feeds)
    assert missed(fitted, proto, batches(2, 60, 6)) < 0.5 * missed(small, proto, batches(2, 60, 6))
    assert sum("z" in name for name in found.values) == 2
    assert final_steps(coupling, keep, feeds) < 1e-5


@pytest.mark.parametrize("name", ["timm/levit_128s", "timm/mobilevit_xs.legacy", "paddle/lenet"])
def test_the_file_is_what_recovery_ended_with(name: str) -> None:
    proto = load(name)
    value = proto.graph.input[0]
    shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    coupling = coupled(proto)
    assert final_steps(coupling, halves(coupling), batches(2, *shape, name=value.name)) < 1e-4


@pytest.mark.parametrize("added", ["scalar", "activation", "cast", "renamed"])
def test_what_else_is_added_is_not_taken_for_nothing(added: str) -> None:
    name = {"scalar": "c", "activation": "u", "cast": "k", "renamed": "i"}[added]
    proto = model(
        [
            node("Gemm", "x w1 b1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "x w3", "u"),
            node("Cast", "half", "k", to=TensorProto.FLOAT),
            node("Identity", "b2", "i"),
            node("Gemm", f"r w2 {name}", "y"),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 5]},
        {
            "w1": weight(1, 6, 8),
            "b1": weight(2, 8),
            "w2": weight(3, 8, 5),
            "w3": 3 * weight(4, 6, 5),
            "c": np.array([5], np.float32),
            "half": (weight(5, 5) + 5).astype(np.float16),
            "b2": weight(6, 5) + 5,
        },
    )
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    found, small, fitted = recovered(coupling, keep, batches(6, 60, 6))
    other = batches(2, 60, 6)
    assert missed(fitted, proto, other) <= missed(small, proto, other)
    if added != "renamed":
        assert found.layers[-1].reason == "what it adds is no stored vector of its own"
        assert not found.values
    else:
        assert missed(fitted, proto, other) < 0.9 * missed(small, proto, other)


def test_rows_that_are_not_finite_are_left_out() -> None:
    proto = mixed()
    proto.graph.node.insert(1, node("Exp", "a", "e"))
    proto.graph.node[2].input[0] = "e"
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    feeds = batches(8, 40, 6)
    feeds[1]["x"][3] = 1e6
    found, small, fitted = recovered(coupling, keep, feeds)
    assert found.values
    assert all(np.isfinite(values).all() for values in found.values.values())
    assert missed(fitted, proto, batches(2, 40, 6)) < missed(small, proto, batches(2, 40, 6))


def test_external_data_is_read(tmp_path: Path) -> None:
    onnx.save(mixed(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    coupling = api.analyse(tmp_path / "m.onnx")
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    small = shrink(coupling, keep)
    assert recover(coupling, keep, small, batches(6, 40, 6)).values.keys() == {"w2", "b2"}


def test_what_makes_the_outputs_worse_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = coupled(mixed())
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    put = Refit.put

    def wrongly(self: Refit, at: Any, position: int, small: Array) -> None:
        put(self, at, position, -10 * small)

    monkeypatch.setattr(Refit, "put", wrongly)
    found = recovered(coupling, keep, batches(8, 40, 6))[0]
    assert not found.values
    assert "recovery was dropped: on samples held back the outputs were" in found.notes[0]
    assert {layer.reason for layer in found.layers} == {"all of recovery was dropped"}


def test_one_batch_is_too_few() -> None:
    coupling = coupled(mixed())
    found = recovered(coupling, halves(coupling), batches(1, 40, 6))[0]
    assert found == Recovery({}, (), found.notes)
    assert found.notes == ("not recovered: that wants two batches of calibration inputs or more",)


def test_rows_that_are_picked_at_run_time_stay() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("ReduceSum", "r last", "s", keepdims=0),
            node("TopK", "s k", "v i", axis=0),
            node("Gather", "r i", "t", axis=0),
            node("MatMul", "t w2", "y"),
        ],
        {"x": [40, 6]},
        {"y": [8, 3]},
        {
            "w1": weight(1, 6, 8),
            "w2": weight(2, 8, 3),
            "last": np.array([1]),
            "k": np.array([8]),
        },
    )
    coupling = coupled(proto)
    found = recovered(coupling, halves(coupling), batches(6, 40, 6))[0]
    assert [layer.reason for layer in found.layers] == ["its rows are picked at run time"]


def test_an_output_that_is_a_weight_is_no_matter() -> None:
    proto = mixed()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("b2", TensorProto.FLOAT, [5]))
    coupling = coupled(proto)
    keep = {coupling.groups[0].factor: np.arange(8) < 4}
    found = recovered(coupling, keep, batches(6, 40, 6))[0]
    assert "w2" in found.values
