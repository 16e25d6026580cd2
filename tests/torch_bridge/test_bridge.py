"""The bridge: outputs equal ONNX Runtime's, gradients reach the weights, files keep their shape."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import bodies, files, runtime
from onnxprune.data import random_inputs
from onnxprune.errors import OnnxPruneError, RuleError
from onnxprune.files import load, read_proto, save
from onnxprune.shapes import is_external
from onnxprune.torch_bridge import UntrainableError, bridge, carried
from tests import graphs
from tests.graphs import node, weight
from tests.zoo import fill

torch = pytest.importorskip("torch", reason="torch is not installed")

SAME = 1e-5  # of the largest value
# The smallest of the zoo that hold all its operators, but for those of the detectors.
ZOO = (
    "keras_jax/lstm",
    "keras_torch/cnn",
    "keras_torch/lstm",
    "others/bert.dynamo",
    "others/encoderlayer_nofastpath.legacy",
    "others/flax_block",
    "others/monai_unet3d.legacy",
    "others/simplecnn.dynamo",
    "others/skl_logreg",
    "others/skl_scaler_pca_mlp",
    "others/torch_bilstm.legacy",
    "paddle/lenet",
)


def feeds_of(module: Any, seed: int = 0) -> dict[str, Any]:
    given = random_inputs(module.model, seed)
    return {name: torch.from_numpy(np.array(value)) for name, value in given.items()}


def apart(module: Any, proto: onnx.ModelProto, folder: Path | None = None, seed: int = 0) -> float:
    """The largest difference from ONNX Runtime, relative to the largest value of each output."""
    feeds = feeds_of(module, seed)
    with torch.no_grad():
        found = module.eval().run(feeds)
    arrays = {name: value.numpy() for name, value in feeds.items()}
    outputs = [o.name for o in proto.graph.output]
    worst = 0.0
    expected = runtime.run(runtime.session(proto, folder), arrays, outputs)
    for name, wanted in zip(outputs, expected, strict=True):
        if not isinstance(wanted, np.ndarray):
            continue
        own = found[name].numpy()
        assert own.shape == wanted.shape
        largest = float(np.max(np.abs(wanted), initial=1e-12))
        worst = max(worst, float(np.max(np.abs(own - wanted), initial=0.0)) / largest)
    return worst


def trained(module: Any, seed: int = 0, steps: int = 3) -> None:
    """A few steps on random targets."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    module.train()
    for step in range(steps):
        found = module.run(feeds_of(module, seed + step))
        loss = sum((v.float() ** 2).mean() for v in found.values() if v.requires_grad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()


@pytest.mark.parametrize("name", ZOO)
def test_outputs_equal_those_of_onnx_runtime(name: str) -> None:
    proto = fill.load(name)
    assert apart(bridge(load(proto)), proto) < SAME


@pytest.mark.parametrize("name", [n for n in ZOO if "skl" not in n])
def test_gradients_reach_every_weight(name: str) -> None:
    module = bridge(load(fill.load(name))).train()
    found = module.run(feeds_of(module))
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (v.float() * torch.rand(v.shape, generator=generator)).sum()
        for v in found.values()
        if v.requires_grad
    )
    loss.backward()
    reached = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert reached
    for own, grad in reached.items():
        assert grad is not None, own
        assert bool(torch.isfinite(grad).all()), own
        assert bool((grad != 0).any()), own


def test_what_is_not_trained_is_part_of_a_formula() -> None:
    """Every stored float is a parameter, a statistic, or a single number or setting."""
    proto = fill.load("others/bert.dynamo")
    module = bridge(load(proto))
    floats = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}
    fixed = {n for n, p in module.named_parameters() if not p.requires_grad}
    trained_ = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained_ | fixed <= {*floats, *(n.output[0] for n in proto.graph.node)}
    large = {t.name for t in proto.graph.initializer if np.prod(t.dims) > 1 and t.name in floats}
    assert large <= trained_
    assert all(module.weight(name).numel() == 1 for name in fixed)


def test_an_untrained_module_writes_the_file_back_byte_for_byte() -> None:
    for name in ZOO:
        proto = fill.load(name)
        model = load(proto)
        assert bridge(model).written().SerializeToString() == as_read(model).SerializeToString()


@pytest.mark.parametrize("name", ["keras_torch/cnn", "others/bert.dynamo", "keras_jax/lstm"])
def test_trained_weights_go_into_the_same_graph(name: str) -> None:
    model = load(fill.load(name))
    module = bridge(model)
    trained(module)
    written = module.written()
    assert apart(module, written) < SAME
    assert apart(module, model.proto) > 10 * SAME
    old, new = onnx.ModelProto(), onnx.ModelProto()
    for proto, source in ((old, as_read(model)), (new, written)):
        proto.CopyFrom(source)
        for _, tensor in _every_tensor(proto):
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    assert old == new


def as_read(model: Any) -> onnx.ModelProto:
    """The file of a model, with its own names in bodies."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    bodies.restore(proto, model.renamed)
    return proto


def _every_tensor(proto: onnx.ModelProto) -> Any:
    from onnxprune.torch_bridge.program import stored_tensors

    return stored_tensors(proto.graph)


def conv_norm() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x conv.weight", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a bn.scale bn.shift bn.mean bn.var", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c second.weight second.bias", "y"),
    ]
    weights: dict[str, Any] = {
        "conv.weight": weight(0, 6, 3, 3, 3),
        "bn.scale": weight(1, 6) + 1,
        "bn.shift": weight(2, 6),
        "bn.mean": weight(3, 6),
        "bn.var": np.abs(weight(4, 6)) + 0.5,
        "second.weight": weight(5, 4, 6, 1, 1),
        "second.bias": weight(6, 4),
    }
    return graphs.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 8, 8]}, weights)


def test_parameters_go_by_their_onnx_names_and_statistics_are_buffers() -> None:
    module = bridge(load(conv_norm()))
    names = {name for name, _ in module.named_parameters()}
    assert names == {"conv.weight", "bn.scale", "bn.shift", "second.weight", "second.bias"}
    assert {name for name, _ in module.named_buffers()} == {"bn.mean", "bn.var"}
    state = {name: value + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    assert torch.equal(module.get_parameter("second.bias"), state["second.bias"])


def test_statistics_move_in_training_alone() -> None:
    module = bridge(load(conv_norm()))
    before = module.get_buffer("bn.mean").clone()
    module.eval()(torch.randn(4, 3, 8, 8))
    assert torch.equal(module.get_buffer("bn.mean"), before)
    module.train()(torch.randn(4, 3, 8, 8))
    assert not torch.equal(module.get_buffer("bn.mean"), before)


def test_statistics_that_two_norms_share_stay() -> None:
    proto = conv_norm()
    proto.graph.node[3].input[0] = "d"
    shared = node("BatchNormalization", "c bn.scale bn.shift bn.mean bn.var", "d")
    proto.graph.node.insert(3, shared)
    module = bridge(load(proto))
    before = module.weight("bn.mean").clone()
    module.train()(torch.randn(4, 3, 8, 8))
    assert torch.equal(module.weight("bn.mean"), before)
    assert "bn.mean" not in dict(module.named_buffers())
    assert not module.is_trained("bn.mean")


def _bodies(proto: onnx.ModelProto) -> list[Any]:
    """The names in the bodies of the last node."""
    found = [a.g for a in proto.graph.node[-1].attribute]
    return [[(list(n.input), list(n.output)) for n in g.node] for g in found]


def test_weights_in_constant_nodes_and_bodies() -> None:
    then, other = (
        helper.make_graph(
            [
                helper.make_node(
                    "Constant", [], ["w"], value=numpy_helper.from_array(weight(s, 4, 4))
                ),
                helper.make_node("MatMul", ["h", "w"], [f"o{s}"]),
            ],
            f"body{s}",
            [],
            [helper.make_tensor_value_info(f"o{s}", TensorProto.FLOAT, None)],
        )
        for s in (0, 1)
    )
    value = numpy_helper.from_array(weight(2, 4, 4))
    nodes = [
        helper.make_node("Constant", [], ["first"], value=value),
        node("MatMul", "x first", "h"),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    sizes: dict[str, Any] = {"x": [2, 4], "c": []}
    proto = graphs.model(nodes, sizes, {"y": [2, 4]}, {}, 17, c=TensorProto.BOOL)
    module = bridge(load(proto))
    assert {n for n, _ in module.named_parameters()} == {"first", "w", "w'"}
    for own in (True, False):
        x, c = np.ones((2, 4), np.float32), np.array(own)
        module.zero_grad()
        y = module(torch.from_numpy(x), torch.tensor(own))
        expected = runtime.run(runtime.session(proto, None), {"x": x, "c": c}, ["y"])[0]
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=SAME)
        y.sum().backward()
        assert (module.get_parameter("w'").grad is not None) == own  # branches go by name
    with torch.no_grad():
        module.get_parameter("w").mul_(2)
    names = [[t.name for _, t in _every_tensor(m)] for m in (module.written(), proto)]
    assert [n.output for n in module.written().graph.node] == [n.output for n in proto.graph.node]
    assert names[0] == names[1]
    assert _bodies(module.written()) == _bodies(proto), "names are the file's own again"
    written = runtime.session(module.written(), None)
    found = runtime.run(written, {"x": x, "c": np.array(False)}, ["y"])[0]
    np.testing.assert_allclose(found, 2 * expected, rtol=SAME)


def test_half_precision_has_masters_in_single() -> None:
    proto = graphs.model(
        [node("MatMul", "x w", "a"), node("Relu", "a", "y")],
        {"x": [2, 4]},
        {"y": [2, 3]},
        {"w": weight(0, 4, 3).astype(np.float16)},
        kind=TensorProto.FLOAT16,
    )
    module = bridge(load(proto))
    parameter = module.get_parameter("w")
    assert parameter.dtype is torch.float32
    assert apart(module, proto) < 2e-3
    module(torch.ones(2, 4, dtype=torch.float16)).sum().backward()
    assert parameter.grad is not None
    with torch.no_grad():
        parameter.add_(1e-5)  # less than half precision holds
    assert module.written().graph.initializer[0].data_type == TensorProto.FLOAT16


def test_weights_outside_the_file_are_read_and_written(tmp_path: Path) -> None:
    proto = conv_norm()
    path = tmp_path / "big.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="big.data")
    module = bridge(load(path))
    assert apart(module, read_proto(path), tmp_path) < SAME
    trained(module)
    out = tmp_path / "out.onnx"
    save(module.written(), out, tmp_path, module.model.proto)
    assert apart(module, read_proto(out), tmp_path) < SAME


def test_one_output_is_a_tensor_and_inputs_go_by_name() -> None:
    module = bridge(load(conv_norm())).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), module(x=x))


@pytest.mark.parametrize("limit", [1000, files.PROTOBUF_LIMIT])
def test_what_was_trained_is_written_whatever_the_size(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v", "y")]
    weights = {"w": weight(0, 8, 16), "v": weight(1, 16, 20)}  # 512 and 1280 bytes
    proto = graphs.model(nodes, {"x": [2, 8]}, {"y": [2, 20]}, weights)
    path, out = tmp_path / "big.onnx", tmp_path / "elsewhere" / "out.onnx"
    out.parent.mkdir()
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="big.data")
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", limit)
    for names in (["w"], ["v"], ["w", "v"], []):
        module = bridge(load(path))
        with torch.no_grad():
            for name in names:
                module.get_parameter(name).mul_(2)
        written = module.written()
        outside = {t.name for t in written.graph.initializer if is_external(t)}
        assert outside == (weights.keys() - names if limit == 1000 else set())
        for own in written.graph.initializer:
            assert own.HasField("raw_data") != is_external(own) == bool(own.external_data)
        save(written, out, tmp_path)
        assert apart(module, read_proto(out), out.parent) < SAME


def test_a_constant_outside_the_file_is_read_trained_and_written(tmp_path: Path) -> None:
    value = numpy_helper.from_array(weight(0, 8, 16), "c")
    constant = helper.make_node("Constant", [], ["w"], value=value)
    nodes = [constant, node("MatMul", "x w", "a"), node("MatMul", "a v", "y")]
    sizes: dict[str, Any] = {"x": [2, 8]}
    proto = graphs.model(nodes, sizes, {"y": [2, 20]}, {"v": weight(1, 16, 20)})
    path, out = tmp_path / "m.onnx", tmp_path / "elsewhere" / "out.onnx"
    out.parent.mkdir()
    onnx.external_data_helper.convert_model_to_external_data(
        proto, location="m.data", size_threshold=0, convert_attribute=True
    )
    onnx.save(proto, path)
    assert is_external(read_proto(path).graph.node[0].attribute[0].t)
    for factor in (1.0, 2.0):
        module = bridge(load(path))
        with torch.no_grad():
            module.get_parameter("w").mul_(factor)
        save(module.written(), out, tmp_path)
        assert apart(module, read_proto(out), out.parent) < SAME


@pytest.mark.parametrize(
    ("ordered", "named", "wrong"),
    [
        (0, "", "'x' was not given"),
        (1, "", "'y' was not given"),
        (0, "y", "'x' was not given"),
        (3, "", "3 were given in order"),
        (2, "typo", "'typo' is none of them"),
        (1, "y w", "'w' is none of them"),
        (2, "x", "'x' was given in order and by name"),
        (1, "x y", "'x' was given in order and by name"),
    ],
)
def test_the_inputs_are_given_once_each(ordered: int, named: str, wrong: str) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Add", "a y", "z")]
    sizes: dict[str, Any] = {"x": [2, 4], "y": [2, 3]}
    module = bridge(load(graphs.model(nodes, sizes, {"z": [2, 3]}, {"w": weight(0, 4, 3)})))
    x, y = torch.ones(2, 4), torch.ones(2, 3)
    for given, own in (((x, y), {}), ((x,), {"y": y}), ((), {"y": y, "x": x})):
        assert torch.equal(module(*given, **own), module(x, y))
    with pytest.raises(OnnxPruneError, match=f"^the module wants the inputs x, y: {wrong}$"):
        module(*(x, y, y)[:ordered], **dict.fromkeys(named.split(), y))


def test_an_operator_without_a_row_is_refused_by_name() -> None:
    nodes = [node("Relu", "x", "a"), node("Det", "a", "y")]
    proto = graphs.model(nodes, {"x": [2, 2]}, {"y": []}, {})
    with pytest.raises(UntrainableError, match=r"node 'n_y' \(Det\): operator Det has no row"):
        bridge(load(proto))


def test_what_no_output_needs_is_not_asked_for() -> None:
    nodes = [node("Relu", "x", "y"), node("Det", "x", "unused")]
    proto = graphs.model(nodes, {"x": [2, 2]}, {"y": [2, 2]}, {})
    assert apart(bridge(load(proto)), proto) == 0


def test_a_custom_operator_has_its_function_in_the_line_of_its_rule() -> None:
    line = "... -> ..."
    onnxprune.register_rule("my.own::Scaled", line, torch=lambda x, factor=1.0: x * factor)
    nodes = [
        helper.make_node("Scaled", ["x"], ["a"], domain="my.own", factor=3.0),
        node("MatMul", "a w", "y"),
    ]
    proto = graphs.model(nodes, {"x": [2, 4]}, {"y": [2, 3]}, {"w": weight(0, 4, 3)})
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    module = onnxprune.bridge(proto)
    x = torch.randn(2, 4)
    assert torch.allclose(module(x), 3 * x @ module.get_parameter("w"))
    with pytest.raises(RuleError, match="Relu has a built-in rule"):
        onnxprune.register_rule("Relu", line, torch=lambda x: x)
    with pytest.raises(RuleError, match="Normalizer has a function of torch: to replace it"):
        onnxprune.register_rule("ai.onnx.ml::Normalizer", line, torch=lambda x: x)


def test_torch_is_asked_for_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.torch_bridge import lazy

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(lazy, "torch", lazy._Lazy("torch"))
    with pytest.raises(OnnxPruneError, match=f"^{re.escape(lazy.MISSING)}$"):
        bridge(load(conv_norm()))


def test_rules_say_which_operators_are_trainable() -> None:
    assert carried("Conv") == carried("If") == "yes"
    assert carried("ArgMax") == "no gradient"
    assert carried("Det") == carried("my.own::Unknown") == "no"


def bare() -> onnx.ModelProto:
    """Two convolutions as exporters leave them when they have folded the norms."""
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b w2 b2", "c", group=2),
        node("GlobalAveragePool", "c", "y"),
    ]
    weights: dict[str, Any] = {
        "w1": weight(0, 6, 3, 3, 3),
        "b1": weight(1, 6),
        "w2": weight(2, 4, 3, 1, 1),
        "b2": weight(3, 4),
    }
    return graphs.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 1, 1]}, weights)


def test_unfolded_norms_change_nothing_and_fold_back() -> None:
    from onnxprune.torch_bridge.unfolding import unfold

    proto = bare()
    module = bridge(load(proto)).eval()
    norms = unfold(module, [{"x": torch.randn(4, 3, 8, 8)} for _ in range(3)])
    assert [norm.weight for norm in norms] == ["w1", "w2"]
    assert apart(module, proto) < SAME
    assert apart(module, module.written()) < SAME
    before = norms[0].module.mean.clone()
    trained(module)
    assert not torch.equal(norms[0].module.mean, before)
    assert not torch.equal(module.get_parameter("w1"), torch.from_numpy(weight(0, 6, 3, 3, 3)))
    assert apart(module, module.written()) < SAME
    assert [t.name for t in module.written().graph.initializer] == ["w1", "b1", "w2", "b2"]


@pytest.mark.parametrize("shown", ["w1", "b1", "w2", "b2"])
def test_a_weight_that_is_a_result_too_has_no_norm_unfolded(shown: str) -> None:
    from onnxprune.torch_bridge.unfolding import unfold

    def sized(name: str) -> list[Any]:
        own = next(t for t in proto.graph.initializer if t.name == shown)
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, own.dims)]

    proto = bare()
    proto.graph.output.extend(sized(shown))
    inside = bare()  # the result of a branch is a value outside it
    branch = helper.make_graph([], "branch", [], sized(shown))
    other = helper.make_graph([node("Neg", shown, "n")], "other", [], sized("n"))
    inside.graph.node.append(node("If", "c", "z", then_branch=branch, else_branch=other))
    inside.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    inside.graph.output.extend(sized("z"))
    for own in (proto, inside):
        module = bridge(load(own)).eval()
        norms = unfold(module, [feeds_of(module, seed) for seed in range(3)])
        assert len(norms) == 1
        assert shown not in (norms[0].weight, norms[0].bias)
        trained(module)
        feeds = feeds_of(module)
        before, after = (bridge(load(p)).eval().run(feeds) for p in (own, module.written()))
        for name, value in module.run(feeds).items():  # ONNX Runtime refuses the second model
            assert torch.allclose(value, after[name], rtol=SAME, atol=SAME)
            assert not torch.allclose(value, before[name], rtol=SAME, atol=10 * SAME)


def test_unfolding_wants_data() -> None:
    from onnxprune.torch_bridge.unfolding import unfold

    missing = "norms can't be unfolded: there are no inputs to take statistics of"
    with pytest.raises(OnnxPruneError, match=missing):
        unfold(bridge(load(bare())), [])


def test_a_failure_of_torch_names_the_node() -> None:
    module = bridge(load(conv_norm()))
    with pytest.raises(UntrainableError, match=r"node 'n_a' \(Conv\): torch fails on operands"):
        module(torch.randn(2, 5, 8, 8))


def test_a_value_that_was_computed_away_is_not_there() -> None:
    module = bridge(load(conv_norm()))
    with pytest.raises(OnnxPruneError, match="has no value 'nothing': it was computed away"):
        module.run({"x": torch.randn(2, 3, 8, 8)}, ["nothing"])
