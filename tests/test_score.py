"""Laws of the scores: what they are sums of, what they don't depend on, what ranks lowest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.axes import Values
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.score import CRITERIA, DATA_DRIVEN, SIDES, remarks, score
from onnxprune.passes.score.slices import rows
from tests.graphs import coupled, model, node, recurrent, residual, weight

Array = NDArray[Any]
PLAIN = [name for name in CRITERIA if name not in DATA_DRIVEN]
WEIGHTS = [name for name in PLAIN if name != "random"]
MAGNITUDES = [name for name in WEIGHTS if name != "fpgm"]  # fpgm asks what is special, not large


def network(seed: int = 0) -> onnx.ModelProto:
    """Conv 6 -> BatchNorm -> ReLU -> Conv 8 -> ReLU -> depthwise, + skip -> Flatten -> Gemm."""
    return model(
        [
            node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c1 scale shift mean variance", "n1"),
            node("Relu", "n1", "r1"),
            node("Conv", "r1 w2", "c2"),
            node("Relu", "c2", "r2"),
            node("Conv", "r2 w3", "c3", group=8, pads=[1, 1, 1, 1]),
            node("Add", "c3 r2", "s"),
            node("Flatten", "s", "f"),
            node("Gemm", "f w4 b4", "y", transB=1),
        ],
        {"x": ["n", 3, 4, 4]},
        {"y": ["n", 5]},
        {
            "w1": weight(seed, 6, 3, 3, 3),
            "b1": weight(seed + 1, 6),
            "scale": weight(seed + 2, 6),
            "shift": weight(seed + 3, 6),
            "mean": weight(seed + 4, 6),
            "variance": np.abs(weight(seed + 5, 6)) + np.float32(0.1),
            "w2": weight(seed + 6, 8, 6, 1, 1),
            "w3": weight(seed + 7, 8, 1, 3, 3),
            "w4": weight(seed + 8, 5, 8 * 16),
            "b4": weight(seed + 9, 5),
        },
    )


def edited(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with other tensors of the same names."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name]), tensor.name))
    return made


def read(coupling: Coupling, name: str) -> Array:
    return coupling.model.params[name].read().astype(np.float64)


def by_name(coupling: Coupling, scores: Mapping[int, Values]) -> dict[str, Values]:
    return {group.name: scores[group.factor] for group in coupling.groups}


def rescaled(values: Array) -> Array:
    return np.asarray(values / values.mean())


# scores of a small network, by hand


def test_sides_and_members_count_alike() -> None:
    coupling = coupled(network())
    w2, w3, w4 = (read(coupling, name) for name in ("w2", "w3", "w4"))
    pixels = w4.reshape(5, 8, 16)
    sums = {
        "l1": [np.abs(w2).sum((1, 2, 3)), np.abs(w3).sum((1, 2, 3)), np.abs(pixels).sum((0, 2))],
        "l2": [(w2**2).sum((1, 2, 3)), (w3**2).sum((1, 2, 3)), (pixels**2).sum((0, 2))],
        "linf": [np.abs(w2).max((1, 2, 3)), np.abs(w3).max((1, 2, 3)), np.abs(pixels).max((0, 2))],
    }
    for criterion, members in sums.items():
        made = np.mean([rescaled(values) for values in members[:2]], axis=0)
        side = {"produced": made, "contracted": rescaled(members[2])}
        side["both"] = (side["produced"] + side["contracted"]) / 2
        side["product"] = side["produced"] * side["contracted"]
        root = 0.5 if criterion == "l2" else 1
        for sides in SIDES:
            found = by_name(coupling, score(coupling, criterion, sides=sides))["w2:0"]
            np.testing.assert_allclose(found, rescaled(side[sides] ** root), rtol=1e-5)


def test_the_units_of_an_lstm_are_scored_over_all_its_gates() -> None:
    coupling = coupled(recurrent())
    group = next(g for g in coupling.groups if g.size == 4)
    gates = read(coupling, "w").reshape(4, 4, 6)
    found = score(coupling, "linf", sides="contracted")[group.factor]
    both = [np.abs(read(coupling, name)) for name in ("r", "w1")]
    expected = rescaled(both[0].max((0, 1))) + rescaled(both[1].max(1))
    np.testing.assert_allclose(found, rescaled(expected), rtol=1e-5)
    made = score(coupling, "l1", sides="produced")[group.factor]
    recurrent_rows = np.abs(read(coupling, "r").reshape(4, 4, 4)).sum((0, 2))
    expected = rescaled(np.abs(gates).sum((0, 2))) + rescaled(recurrent_rows)
    np.testing.assert_allclose(made, rescaled(expected), rtol=1e-5)


def test_the_scale_says_what_becomes_one() -> None:
    coupling = coupled(network())
    for values in score(coupling, "l1", scale="mean").values():
        assert values.mean() == pytest.approx(1)
    for values in score(coupling, "l1", scale="max").values():
        assert values.max() == pytest.approx(1)
    raw = by_name(coupling, score(coupling, "l1", scale="none"))["w1:0"]
    np.testing.assert_allclose(raw, np.abs(read(coupling, "w2")).sum((0, 2, 3)), rtol=1e-5)


def test_bn_scale_is_gamma_and_l2_where_there_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    coupling = coupled(network())
    found = by_name(coupling, score(coupling, "bn-scale"))
    np.testing.assert_allclose(found["w1:0"], rescaled(np.abs(read(coupling, "scale"))))
    np.testing.assert_array_equal(found["w2:0"], by_name(coupling, score(coupling, "l2"))["w2:0"])
    assert remarks(coupling, "bn-scale") == [
        "bn-scale: 1 of 2 groups have no BatchNormalization and go by l2; the first is 'w2:0'"
    ]
    assert remarks(coupling, "l2") == []
    assert capfd.readouterr() == ("", "")


def test_bn_scale_has_no_remark_where_all_groups_have_one() -> None:
    proto = network()
    del proto.graph.node[3:]
    proto.graph.node.append(node("Flatten", "r1", "f"))
    proto.graph.node.append(node("MatMul", "f w4", "y"))
    proto = edited(proto, {"w4": weight(1, 6 * 16, 5)})
    assert remarks(coupled(proto), "bn-scale") == []


def test_lamp_is_the_share_of_what_is_not_smaller() -> None:
    coupling = coupled(network())
    lamp, l2 = score(coupling, "lamp"), score(coupling, "l2")
    for factor, values in l2.items():
        squares = values**2
        expected = [value / squares[squares >= value].sum() for value in squares]
        np.testing.assert_allclose(lamp[factor], expected)
        assert lamp[factor].max() == pytest.approx(1)
        assert np.array_equal(np.argsort(lamp[factor]), np.argsort(values))


def test_equal_channels_have_equal_lamp_scores() -> None:
    coupling = coupled(edited(network(), {"w4": np.ones((5, 8 * 16), np.float32)}))
    found = by_name(coupling, score(coupling, "lamp", sides="contracted"))["w2:0"]
    np.testing.assert_allclose(found, 1 / 8)


def test_fpgm_prefers_what_is_far_from_the_others() -> None:
    values = weight(4, 6, 3, 3, 3) * np.float32(0.1) + np.float32(1)
    values[2] *= -1
    coupling = coupled(edited(network(), {"w1": values}))
    found = by_name(coupling, score(coupling, "fpgm", sides="produced"))["w1:0"]
    assert found.argmax() == 2


# laws


def permuted(coupling: Coupling, group: Group, order: Array) -> dict[str, Array]:
    """The tensors with the channels of one group in another order."""
    values: dict[str, Array] = {}
    for member in group.members:
        array = values.get(member.param, coupling.model.params[member.param].read())
        own = np.arange(array.shape[member.axis])
        places = rows(coupling.factors, member.layout, 0, own, group.factor)
        own[places] = places[order]
        values[member.param] = np.take(array, own, axis=member.axis)
    return values


NETS = {"network": network(), "residual": residual(), "recurrent": recurrent()}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", WEIGHTS)
def test_scores_follow_their_channels(criterion: str, net: str) -> None:
    coupling = coupled(NETS[net])
    before = score(coupling, criterion)
    for group in coupling.groups:
        order = np.random.default_rng(7).permutation(group.size)
        other = coupled(edited(NETS[net], permuted(coupling, group, order)))
        after = score(other, criterion)
        for factor, values in before.items():
            expected = values[order] if factor == group.factor else values
            np.testing.assert_allclose(after[factor], expected, rtol=1e-4)


@pytest.mark.parametrize("param", ["w1", "scale", "w2", "w3", "w4"])
@pytest.mark.parametrize("criterion", WEIGHTS)
def test_the_size_of_a_layer_says_nothing(criterion: str, param: str) -> None:
    coupling = coupled(network())
    larger = {param: coupling.model.params[param].read() * np.float32(8)}
    other = score(coupled(edited(network(), larger)), criterion)
    for factor, values in score(coupling, criterion).items():
        np.testing.assert_allclose(other[factor], values, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["l1", "l2", "linf"])
def test_the_product_does_not_see_how_two_layers_share_a_factor(criterion: str) -> None:
    coupling = coupled(NETS["residual"])
    group = next(g for g in coupling.groups if g.name == "w1:1")
    times = np.array([1, 5, 0.1, 2], np.float32)
    w1, b1, w2 = (coupling.model.params[name].read() for name in ("w1", "b1", "w2"))
    shared: dict[str, Array] = {"w1": w1 * times, "b1": b1 * times, "w2": w2 / times[:, None]}
    other = score(coupled(edited(NETS["residual"], shared)), criterion, sides="product")
    values = score(coupling, criterion, sides="product")[group.factor]
    np.testing.assert_allclose(other[group.factor], values, rtol=1e-4)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", MAGNITUDES)
def test_a_channel_of_zeros_ranks_lowest(criterion: str, net: str, sides: str) -> None:
    coupling = coupled(NETS[net])
    for group in coupling.groups:
        values: dict[str, Array] = {}
        for member in group.members:
            array = values.get(member.param, coupling.model.params[member.param].read()).copy()
            own = np.arange(array.shape[member.axis])
            place = rows(coupling.factors, member.layout, 0, own, group.factor)[1]
            np.moveaxis(array, member.axis, 0)[place] = 0
            values[member.param] = array
        found = score(coupled(edited(NETS[net], values)), criterion, sides=sides)[group.factor]
        assert found.argmin() == 1
        assert (found > found[1]).sum() == group.size - 1


def test_random_scores_go_by_the_seed_and_the_group() -> None:
    coupling = coupled(network())
    first, again, other = (by_name(coupling, score(coupling, "random", seed=s)) for s in (1, 1, 2))
    for name, values in first.items():
        assert np.array_equal(values, again[name])
        assert not np.array_equal(values, other[name])
    assert not np.array_equal(first["w1:0"], first["w2:0"][:6])


@pytest.mark.parametrize("criterion", PLAIN)
def test_every_group_has_finite_scores(criterion: str) -> None:
    for proto in NETS.values():
        coupling = coupled(proto)
        found = score(coupling, criterion)
        assert found.keys() == {group.factor for group in coupling.groups}
        for group in coupling.groups:
            assert found[group.factor].shape == (group.size,)
            assert found[group.factor].dtype == np.float64
            assert np.isfinite(found[group.factor]).all()
            assert (found[group.factor] >= 0).all()


def test_a_mask_of_minus_infinity_says_nothing() -> None:
    coupling = coupled(network())
    broken = coupling.model.params["w4"].read().copy()
    broken[0, 0] = -np.inf
    other = coupled(edited(network(), {"w4": broken}))
    made = score(coupling, "l2", sides="produced")
    for name, values in by_name(other, score(other, "l2", sides="both")).items():
        if name == "w2:0":
            np.testing.assert_allclose(values, by_name(coupling, made)[name])


def test_a_group_without_any_finite_weight_is_even() -> None:
    nothing = {"w1": np.full((6, 3, 3, 3), np.nan, np.float32)}
    nothing["w2"] = np.full((8, 6, 1, 1), np.nan, np.float32)
    coupling = coupled(edited(network(), nothing))
    assert by_name(coupling, score(coupling, "l2"))["w1:0"].tolist() == [1] * 6


def test_each_parameter_is_read_once() -> None:
    told: list[str] = []
    score(coupled(network()), "l2", progress=told.append)
    assert sorted(told) == ["w1", "w2", "w3", "w4"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"criterion": "l3"},
            "criterion 'l3' is not known: choose one of activation, bn-scale, fisher, flap, fpgm, "
            "hessian, l1, l2, lamp, linf, obs, random, redundancy, taylor, wanda",
        ),
        (
            {"sides": "left"},
            "sides 'left' is not known: choose one of both, contracted, produced, product",
        ),
        ({"scale": "sum"}, "scale 'sum' is not known: choose one of max, mean, none"),
    ],
)
def test_an_unknown_name_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(OnnxPruneError) as error:
        score(coupled(network()), **given)  # type: ignore[arg-type]
    assert str(error.value) == message
