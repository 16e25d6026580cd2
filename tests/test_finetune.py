"""Fine-tuning and distillation: the graph stays, the weights get better, a kill loses nothing."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxprune
from onnxprune import runtime
from onnxprune.cli import app
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.training import tuning
from onnxprune.training.settings import Training, training
from tests.graphs import halves, model, node, weight
from tests.training_nets import classifier, data

torch = pytest.importorskip("torch", reason="torch is not installed")

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "threads": 1, "device": "cpu"}


def weights(proto: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer}


def scores(proto: onnx.ModelProto, x: Any) -> Any:
    return runtime.run(runtime.session(proto, None), {"x": x}, [proto.graph.output[0].name])[0]


def accuracy(proto: onnx.ModelProto, given: dict[str, Any]) -> float:
    return float((scores(proto, given["x"]).argmax(1) == given["y"]).mean())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns_and_the_graph_stays(softmax: bool, optimizer: str) -> None:
    proto = classifier(softmax=softmax)
    rate = {"adamw": 2e-2, "sgd": 1e-1}[optimizer]
    settings = {**QUICK, "lr": rate, "optimizer": optimizer, "epochs": 8}
    small, found = onnxprune.finetune(proto, train=data(), evaluate=data(64, 1), **settings)
    assert accuracy(proto, data(64, 1)) < 0.6 < 0.9 < accuracy(small, data(64, 1))
    assert found.evaluation is not None
    assert found.evaluation.after == accuracy(small, data(64, 1)) > found.evaluation.before
    assert found.error < 1e-5
    assert found.loss[1] < found.loss[0]
    assert {n: len(v) for n, v in weights(small).items()} == {
        n: len(v) for n, v in weights(proto).items()
    }
    for kept in (small, proto):
        del kept.graph.initializer[:]
    assert small == proto


class Killed(Exception):
    """What a kill is to a test."""


def killer(step: int) -> Any:
    def tell(text: str) -> None:
        if text.startswith(f"step {step}/"):
            raise Killed

    return tell


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9}, {"relative": True}, {"optimizer": "sgd", "clip": None}]
)
@pytest.mark.parametrize("step", [4, 6, 7, 13])
def test_a_kill_loses_nothing(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    """Broken off after any step and run again, it ends with the same weights, log and figures."""
    own = {**QUICK, **options, "checkpoint_every": 2, "evaluate": data(64, 1)}
    whole, found = onnxprune.finetune(classifier(), train=data(), log=tmp_path / "whole.csv", **own)
    files: dict[str, Any] = {"checkpoint": tmp_path / "c", "log": tmp_path / "l.csv"}
    with pytest.raises(Killed):
        onnxprune.finetune(classifier(), train=data(), progress=killer(step), **files, **own)
    assert (tmp_path / "c").exists()
    started: list[str] = []
    again, other = onnxprune.finetune(
        classifier(), train=data(), progress=started.append, **files, **own
    )
    assert started[0].startswith(f"step {step - step % 2 + 1}/")
    assert weights(again) == weights(whole)
    assert other.evaluation == found.evaluation
    rows = [list(csv.DictReader((tmp_path / n).open())) for n in ("whole.csv", "l.csv")]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 18
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(Killed):
        onnxprune.finetune(classifier(), train=data(), checkpoint=path, progress=killer(6), **QUICK)
    with pytest.raises(OnnxPruneError, match="is of a run with another model, data or settings"):
        onnxprune.finetune(classifier(), train=data(), checkpoint=path, **{**QUICK, "lr": 0.5})
    path.write_text("nothing")
    with pytest.raises(OnnxPruneError, match="is no checkpoint that can be read"):
        onnxprune.finetune(classifier(), train=data(), checkpoint=path, **QUICK)


def test_the_best_epoch_is_kept_and_patience_stops() -> None:
    """With a rate that ruins everything the first epochs are the best."""
    ruin = {**QUICK, "lr": 30.0, "epochs": 12, "schedule": "constant", "patience": 3, "warmup": 0}
    given = data(64, 1)
    small, found = onnxprune.finetune(classifier(), train=data(), evaluate=given, **ruin)
    assert found.steps <= 6 * (found.best_epoch + 3)
    assert found.evaluation is not None
    assert accuracy(small, given) == found.evaluation.after


def test_gradients_are_clipped_and_the_rate_warms_up(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    own = {**QUICK, "warmup": 0.5, "clip": 1e-9, "optimizer": "sgd", "weight_decay": 0.0}
    small, _ = onnxprune.finetune(classifier(), train=data(), log=path, **own)
    rates = [float(row["lr"]) for row in csv.DictReader(path.open())]
    assert rates[:9] == sorted(rates[:9])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) == pytest.approx(1e-2)
    for name, value in weights(small).items():
        before = np.frombuffer(weights(classifier())[name], np.float32)
        np.testing.assert_allclose(np.frombuffer(value, np.float32), before, atol=1e-7)


def test_a_fixed_batch_is_trained_several_at_a_time() -> None:
    """A file that takes one sample at a time learns as one that takes them all at once."""
    own = {**QUICK, "optimizer": "sgd", "clip": None}  # so that the gradient's size counts
    one, many = (onnxprune.finetune(classifier(batch=b), train=data(), **own)[0] for b in (1, "N"))
    for name, value in weights(one).items():
        single, joined = (np.frombuffer(v, np.float32) for v in (value, weights(many)[name]))
        np.testing.assert_allclose(single, joined, rtol=1e-3, atol=1e-5)


def test_a_relative_rate_is_a_share_of_each_weight() -> None:
    """Adam's first step changes every number by the rate; of what is 0, by its least size."""
    proto = classifier()
    for tensor, factor in zip(proto.graph.initializer, (0.01, 0.0, 1.0, 1.0), strict=True):
        scaled = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
    own: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "steps": 1}
    better, _ = onnxprune.finetune(proto, train=data(), relative=True, lr=0.03, threads=1, **own)
    seen = set()
    for before, after in zip(proto.graph.initializer, better.graph.initializer, strict=True):
        start, end = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in (before, after))
        if before.data_type == onnx.TensorProto.FLOAT:
            size = np.sqrt(np.mean(start**2))
            seen.add(size > 1e-3)
            assert np.abs(end - start).max() == pytest.approx(0.03 * max(size, 1e-3), rel=1e-3)
    assert seen == {True, False}


def test_a_running_mean_follows_the_weights() -> None:
    from onnxprune.training.averages import Average

    module = onnxprune.bridge(classifier())
    average = Average(module, 0.9)
    expected = module.get_parameter("fc1.bias").detach().clone()
    for step in range(200):
        with torch.no_grad():
            module.get_parameter("fc1.bias").add_(1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.get_parameter("fc1.bias").detach()
    now = module.get_parameter("fc1.bias").detach().clone()
    with average.applied():
        torch.testing.assert_close(module.get_parameter("fc1.bias").detach(), expected)
    torch.testing.assert_close(module.get_parameter("fc1.bias").detach(), now)
    assert float((now - expected).mean()) == pytest.approx(9.0, abs=0.5)  # decay / (1 - decay)


def mean_loss(outputs: dict[str, Any], labels: Any) -> Any:
    return torch.nn.functional.cross_entropy(outputs["y"], labels)


def test_losses() -> None:
    same = [
        onnxprune.finetune(classifier(), train=data(), loss=loss, **QUICK)[0]
        for loss in ("cross-entropy", mean_loss, f"{__name__}:mean_loss")
    ]
    assert weights(same[0]) == weights(same[1]) == weights(same[2])
    x = data()["x"]
    wanted = {"x": x, "y": np.stack([x[:, 0], x[:, 1], x[:, 2]], 1)}
    _, found = onnxprune.finetune(
        classifier(), train=wanted, evaluate=wanted, metric="mse", loss="mse", **QUICK
    )
    assert found.evaluation is not None
    assert found.evaluation.after < found.evaluation.before
    with pytest.raises(OnnxPruneError, match="the loss 'hinge' is not known: choose cross-entropy"):
        onnxprune.finetune(classifier(), train=data(), loss="hinge", **QUICK)
    with pytest.raises(OnnxPruneError, match="no output holds values for labels"):
        onnxprune.finetune(classifier(), train=data(), loss="mse", **QUICK)
    with pytest.raises(OnnxPruneError, match="no output holds steps of scores"):
        onnxprune.finetune(classifier(), train=data(), loss="ctc", **QUICK)
    with pytest.raises(OnnxPruneError, match="wanted to be classes from 0 to 2"):
        onnxprune.finetune(classifier(), train={**data(), "y": data()["y"] + 1}, **QUICK)
    with pytest.raises(OnnxPruneError, match="no output holds scores of classes"):
        onnxprune.finetune(classifier(), train={**data(), "y": np.zeros((96, 5), int)}, **QUICK)


def test_ctc_learns_short_texts() -> None:
    proto = model(
        [node("MatMul", "x w", "z"), node("Softmax", "z", "y", axis=-1)],
        {"x": ["N", 8, 5]},
        {"y": ["N", 8, 4]},
        {"w": weight(0, 5, 4)},
    )
    random = np.random.default_rng(0)
    texts = [random.integers(1, 4, random.integers(1, 4)) for _ in range(64)]
    x = np.zeros((64, 8, 5), np.float32)
    for row, text in zip(x, texts, strict=True):
        row[np.arange(8), 0] = 1
        row[2 * np.arange(len(text)), text] = 1
        row[2 * np.arange(len(text)), 0] = 0
    padded = np.full((64, 3), -1)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    own = {**QUICK, "epochs": 40, "lr": 0.1}
    _, found = onnxprune.finetune(proto, train={"x": x, "y": padded}, loss="ctc", **own)
    assert found.loss[1] < 0.1 * found.loss[0]


def test_norms_are_unfolded_while_training() -> None:
    from tests.torch_bridge.test_bridge import bare

    random = np.random.default_rng(0)
    x = random.standard_normal((64, 3, 8, 8)).astype(np.float32)
    y = x[:, :1].mean((2, 3), keepdims=True).repeat(4, 1)
    small, found = onnxprune.finetune(
        bare(), train={"x": x, "y": y}, loss="mse", unfold=True, **QUICK
    )
    assert [t.name for t in small.graph.initializer] == ["w1", "b1", "w2", "b2"]
    assert found.error < 1e-5
    assert found.loss[1] < found.loss[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"lr": 0.0}, "lr is 0: it must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1: it must be 0 or more"),
        ({"warmup": 1.0}, "warmup is 1: it must be from 0 to below 1"),
        ({"optimizer": "lion"}, "optimizer 'lion' is not known: choose adamw, sgd"),
        ({"freeze": True, "unfold": True}, "unfold puts in norms that freeze would not let move"),
        ({"relative": True, "optimizer": "sgd"}, "relative is for adamw, .* the optimizer is sgd"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        training(options, 0)  # type: ignore[arg-type]


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="there is no keyword argument 'epoch'"):
        onnxprune.finetune(classifier(), train=data(), epoch=3)  # type: ignore[call-arg]


def test_schedules() -> None:
    for name, last in (("constant", 1.0), ("cosine", 0.0), ("linear", 0.0)):
        how = Training(schedule=name, lr=1.0, warmup=0.1)
        rates = [how.rate(step, 100) for step in range(100)]
        assert rates[10] == max(rates) == 1.0
        assert rates[0] == pytest.approx(1 / 11)
        assert rates[-1] == pytest.approx(last, abs=0.02)


def test_a_loss_that_is_no_number_ends_it() -> None:
    given = data()
    given["x"][0] = np.inf
    with pytest.raises(OnnxPruneError, match="the loss is nan at step 1: lower the learning rate"):
        onnxprune.finetune(classifier(), train=given, **{**QUICK, "batch_size": 96})


def test_a_result_that_torch_contradicts_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SAME", 0.0)
    out = tmp_path / "out.onnx"
    with pytest.raises(VerificationError, match=r"differ from torch's by .* nothing was written"):
        onnxprune.finetune(classifier(softmax=True), out, train=data(), **QUICK)
    assert not out.exists()


def test_a_model_without_weights_is_refused() -> None:
    proto = model([node("Relu", "x", "y")], {"x": ["N", 3]}, {"y": ["N", 3]}, {})
    given = {"x": np.zeros((8, 3), np.float32), "y": np.zeros(8, int)}
    with pytest.raises(OnnxPruneError, match="has no weights that can be trained"):
        onnxprune.finetune(proto, train=given, **QUICK)


def test_an_output_without_a_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "out.onnx"
    with pytest.raises(OnnxPruneError, match="there is no folder"):
        onnxprune.finetune(classifier(), out, train=data(), **QUICK)


def test_sparse_learning_makes_weak_channels_weaker() -> None:
    """Pruned without recovery, a net that learnt to be sparse keeps more of what it says."""
    from onnxprune.choosing import analyse
    from onnxprune.training.sparsity import parts_of, penalty

    own = {**QUICK, "epochs": 20, "lr": 2e-2, "weight_decay": 0.0}
    apart_, spread = [], []
    for strength in (None, 3e-3):
        net, _ = onnxprune.finetune(classifier(32), train=data(256), sparse=strength, **own)
        small, _ = onnxprune.prune(net, ratio=0.5, align=1)
        apart_.append(apart(small, net, data(256, 5)["x"]))
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in net.graph.initializer}
        norms = np.sort(np.square(stored["fc2.weight"]).sum(1))
        spread.append(norms[:16].sum() / norms[16:].sum())
        assert accuracy(net, data(64, 1)) > 0.9
    assert apart_[1] < 0.3 * apart_[0]
    assert spread[1] < 0.3 * spread[0]
    coupling = analyse(classifier(32), {})
    module = onnxprune.bridge(classifier(32))
    parts = parts_of(coupling, module)
    (group,) = coupling.groups
    each = sum(p.squares(module, 32) for p in parts[group.factor]).detach().numpy()
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in classifier(32).graph.initializer}
    plain = np.square(stored["fc1.weight"]).sum(0) + np.square(stored["fc1.bias"])
    np.testing.assert_allclose(each, plain + np.square(stored["fc2.weight"]).sum(1), rtol=1e-5)
    assert penalty(module, parts, {group.factor: 32}).item() >= each.sum()


def test_what_sparse_learning_refuses() -> None:
    with pytest.raises(OnnxPruneError, match="sparse is 0: it must be above 0"):
        onnxprune.finetune(classifier(), train=data(), sparse=0.0, **QUICK)
    proto = model(
        [node("MatMul", "x w", "y")], {"x": ["N", 6]}, {"y": ["N", 3]}, {"w": weight(0, 6, 3)}
    )
    with pytest.raises(OnnxPruneError, match="no group with trained weights to make sparse"):
        onnxprune.finetune(proto, train=data(), sparse=1e-3, **QUICK)


# Distillation


@pytest.fixture(scope="module")
def taught() -> onnx.ModelProto:
    own = {**QUICK, "epochs": 12, "lr": 3e-2}
    return onnxprune.finetune(classifier(32), train=data(256), **own)[0]


def apart(one: onnx.ModelProto, other: onnx.ModelProto, x: Any) -> float:
    """The mean divergence of class shares."""
    logs = [torch.log_softmax(torch.from_numpy(scores(m, x)), -1) for m in (other, one)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def pruned(taught: onnx.ModelProto) -> tuple[onnx.ModelProto, Any]:
    small, report = onnxprune.prune(taught, ratio=0.5, align=1, recover=False)
    return small, report.plan


@pytest.mark.parametrize("augment", [(), ("mix",)])
@pytest.mark.parametrize("with_plan", [False, True])
def test_a_student_comes_nearer_its_teacher(
    taught: onnx.ModelProto, with_plan: bool, augment: tuple[str, ...]
) -> None:
    """Without labels, and judged on samples that neither has seen."""
    small, plan = pruned(taught)
    x = data(128, 3)["x"]
    better, found = onnxprune.distill(
        small,
        teacher=taught,
        data={"x": x},
        plan=plan if with_plan else None,
        augment=augment,
        **{**QUICK, "epochs": 20},
    )
    before, after = (apart(other, taught, data(256, 5)["x"]) for other in (small, better))
    assert after < 0.2 * before
    assert found.evaluation is None
    assert [t.dims for t in better.graph.initializer] == [t.dims for t in small.graph.initializer]


@pytest.mark.parametrize("freeze", [False, True])
def test_samples_are_changed_in_each_step_and_never_to_judge(
    taught: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, freeze: bool
) -> None:
    """Frozen norms leave the module in evaluation; its samples are new ones nevertheless."""
    from onnxprune.training import distilling
    from onnxprune.training.augments import augmented

    changed: list[bool] = []

    def counted(batch: Any, names: Any) -> Any:
        changed.append(torch.is_grad_enabled())
        return augmented(batch, names)

    monkeypatch.setattr(distilling, "augmented", counted)
    small, _ = pruned(taught)
    own = {**QUICK, "epochs": 3, "freeze": freeze, "augment": ("mix",)}
    _, found = onnxprune.distill(small, teacher=taught, data={"x": data()["x"]}, **own)
    assert changed == [True] * found.steps


@pytest.mark.parametrize(("count", "batch", "held"), [(384, 128, 48), (10, 128, 1), (1, 128, 1)])
def test_an_eighth_of_the_samples_is_held_out_whatever_the_batch(
    count: int, batch: int, held: int
) -> None:
    """No sample is in both, and none in neither; a single one is."""
    from onnxprune.calibration import batches
    from onnxprune.files import load
    from onnxprune.pictures import Pictures
    from onnxprune.training.stream import held_out

    model = load(classifier())
    x = {"x": data(count)["x"]}
    both = held_out(batches(x, model, Pictures(), samples=None, batch=batch))
    train, own = ([i for part in each.parts for i in part] for each in both)
    assert len(own) == held
    assert all(len(part) <= batch for each in both for part in each.parts)
    assert sorted({*train, *own}) == list(range(count))
    assert not set(train) & set(own) or count == 1


def test_a_student_that_is_its_teacher_has_nothing_to_learn(taught: onnx.ModelProto) -> None:
    own = {**QUICK, "optimizer": "sgd", "weight_decay": 0.0}  # Adam takes rounding for a gradient
    _, found = onnxprune.distill(taught, teacher=taught, data={"x": data()["x"]}, **own)
    assert found.loss[0] < 1e-9


def test_the_temperature_leaves_the_size_of_the_gradient() -> None:
    """For scores that are small beside it."""
    from onnxprune.training.distilling import _divergence

    random = torch.Generator().manual_seed(0)
    wanted = torch.randn(64, 10, generator=random)
    sizes = []
    for temperature in (20.0, 40.0):
        scores = torch.randn(64, 10, generator=random).requires_grad_()
        _divergence(scores, wanted, temperature).backward()
        apart_ = scores - scores.mean(1, keepdim=True) - wanted + wanted.mean(1, keepdim=True)
        sizes.append(float(scores.grad.norm() / apart_.detach().norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_features_are_the_channels_that_survived() -> None:
    """A student whose kept channels are the teacher's has no loss inside the graph."""
    from onnxprune.choosing import analyse
    from onnxprune.files import load
    from onnxprune.full import kept_part
    from onnxprune.passes.shrink import shrink
    from onnxprune.training.distilling import features, whole
    from tests.graphs import residual

    coupling = analyse(load(residual()), {})
    keep = halves(coupling, exact=True)
    small = load(shrink(coupling, keep))
    module = onnxprune.bridge(small.proto)

    def kept(name: str, value: Any) -> Any:
        return kept_part(coupling, keep, name, value)

    names = features(small, module, coupling.model, kept)
    narrow = features(small, module, coupling.model, whole)
    assert names
    assert set(narrow) < set(names)


def attending() -> onnx.ModelProto:
    """Two heads of width 3 on (2, 5, 4): y = softmax(q k) v, and what is read of it."""
    from tests.graphs import model, node, weight

    nodes, weights = [], {}
    for i, name in enumerate(("q", "k", "v")):
        weights[f"w_{name}"] = weight(i, 4, 6) * 4
        nodes += [
            node("MatMul", f"x w_{name}", f"flat_{name}"),
            node("Reshape", f"flat_{name} split", f"own_{name}"),
            node(
                "Transpose", f"own_{name}", name, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
            ),
        ]
    weights |= {"w_o": weight(4, 6, 4)}
    nodes += [
        node("MatMul", "q k", "logits"),
        node("Softmax", "logits", "map", axis=-1),
        node("MatMul", "map v", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back join", "joined"),
        node("MatMul", "joined w_o", "y"),
    ]
    proto = model(nodes, {"x": (2, 5, 4)}, {"y": (2, 5, 4)}, weights)
    for name, value in (("split", [0, 0, 2, 3]), ("join", [0, 0, 6])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    return proto


def test_attention_maps_are_those_of_the_heads_that_survived() -> None:
    """A student with one head of two, and its teacher's weights, has its maps; another has not."""
    from onnxprune.choosing import analyse
    from onnxprune.files import load
    from onnxprune.full import kept_part
    from onnxprune.passes.shrink import shrink
    from onnxprune.training import distilling
    from onnxprune.training.stream import Batch

    coupling = analyse(load(attending()), {})
    heads = next(g for g in coupling.groups if g.size == 2)
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}
    losses = []
    for kept, told in (((False, True),) * 2, ((True, False), (False, True))):
        keep, taught = ({heads.factor: np.array(own)} for own in (kept, told))
        small = load(shrink(coupling, keep))
        module = onnxprune.bridge(small.proto)

        def part(name: str, value: Any, taught: Any = taught) -> Any:
            return kept_part(coupling, taught, name, value)

        assert distilling.attention_maps(small, module, coupling.model, part) == ["map"]
        assert not distilling.attention_maps(small, module, coupling.model, distilling.whole)
        both = []
        for share in (0.0, 2.0):
            lesson = distilling.Lesson(depth=0.0, attention=share)
            _, plain = distilling.learning(small, module, coupling.model, lesson, part)
            with torch.no_grad():
                both.append(
                    float(plain(module, {"x": torch.from_numpy(x["x"])}, Batch(x, np.zeros(2), ())))
                )
        losses.append((both[1] - both[0]) / 2)
    assert abs(losses[0]) < 1e-6
    assert losses[1] > 0.1
    own, wanted = (torch.softmax(torch.randn(3, 4, 5), -1) for _ in range(2))
    expected = (wanted * (wanted / own).log()).sum(-1).mean()
    assert distilling._strayed(own, wanted) == pytest.approx(float(expected), rel=1e-5)
    certain = torch.eye(5)[None]
    assert torch.isfinite(distilling._strayed(certain, certain.flip(-1)))


def test_what_distillation_refuses(taught: onnx.ModelProto) -> None:
    small, x = classifier(), {"x": data()["x"]}
    other = classifier()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "other"
    with pytest.raises(OnnxPruneError, match="the outputs of 'g' are y, those of the teacher"):
        onnxprune.distill(small, teacher=other, data=x, **QUICK)
    for option, message in (
        ({"temperature": 0.0}, "temperature is 0: it must be above 0"),
        ({"depth": -1.0}, "depth is -1: it must be 0 or more"),
        ({"attention": -1.0}, "attention is -1: it must be 0 or more"),
        ({"labels": 2.0}, "labels is 2: it is a share, from 0 to 1"),
        ({"augment": ("turn",)}, "augment 'turn' is not known: choose of flip, mix, shift"),
        ({"augment": ("mix",), "labels": 0.5}, "mixed samples have no labels"),
    ):
        with pytest.raises(OnnxPruneError, match=message):
            onnxprune.distill(small, teacher=taught, data=x, **option, **QUICK)


def test_labels_help_a_student(taught: onnx.ModelProto) -> None:
    small, _ = pruned(taught)
    better, found = onnxprune.distill(
        small, teacher=taught, data=data(), evaluate=data(64, 1), labels=0.5, **QUICK
    )
    assert found.evaluation is not None
    assert accuracy(better, data(64, 1)) == found.evaluation.after >= found.evaluation.before


def test_pictures_are_moved_and_turned() -> None:
    from onnxprune.training.augments import flip, mix, shift

    x = np.arange(2 * 3 * 8 * 16, dtype=np.float32).reshape(2, 3, 8, 16)
    random = np.random.default_rng(1)
    turned = flip(np.concatenate([x] * 8), random)
    each = [np.array_equal(a, b) for a, b in zip(turned, np.concatenate([x] * 8), strict=True)]
    assert {True, False} == set(each)
    assert all(np.array_equal(np.sort(a, -1), np.sort(b, -1)) for a, b in zip(turned[:2], x))  # noqa: B905
    moved = shift(x, random)
    assert moved.shape == x.shape
    assert np.isin(moved, x).all()
    mixed = mix(x, random)
    assert x.min() <= mixed.min() <= mixed.max() <= x.max()


# Several processes, and the command line

SCRIPT = """
import sys
import onnxprune
from tests.training_nets import classifier, data
onnxprune.finetune(classifier(), sys.argv[1], train=data(), evaluate=data(64, 1), epochs=3,
                   batch_size=16, lr=1e-2, threads=1, device="cpu")
"""


@pytest.mark.slow
def test_two_processes_are_one_with_a_double_batch(tmp_path: Path) -> None:
    script, out = tmp_path / "train.py", tmp_path / "two.onnx"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).parent.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    both = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = [sys.executable, *both, str(script), str(out)]
    subprocess.run(command, check=True, env=environment, cwd=root, timeout=300)
    settings = {**QUICK, "batch_size": 32, "evaluate": data(64, 1)}
    one, _ = onnxprune.finetune(classifier(), train=data(), **settings)
    two = weights(onnx.load(out))
    for name, value in weights(one).items():
        own, other = (np.frombuffer(v, np.float32) for v in (value, two[name]))
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_commands(tmp_path: Path, taught: onnx.ModelProto) -> None:
    small, _ = pruned(taught)
    for name, proto in (("small", small), ("large", taught)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    for name, given in (("train", data()), ("test", data(64, 1))):
        np.savez(tmp_path / f"{name}.npz", **given)
    own = ["--epochs", 2, "--batch-size", 16, "--threads", 1, "--device", "cpu"]
    out, log = tmp_path / "out.onnx", tmp_path / "log.csv"
    found = run(
        *("finetune", tmp_path / "small.onnx", "-o", out, "--train", tmp_path / "train.npz"),
        *("--evaluate", tmp_path / "test.npz", "--log", log, *own),
    )
    assert found.exit_code == 0, found.output
    assert "top1 on 64 samples: " in found.output
    assert "proved: ONNX Runtime's outputs" in found.output
    assert out.exists()
    assert len(log.read_text().splitlines()) == 13
    assert sorted(p.name for p in tmp_path.iterdir() if "checkpoint" in p.name) == []
    other = tmp_path / "other.onnx"
    found = run(
        *("distill", tmp_path / "small.onnx", "-o", other, "--teacher", tmp_path / "large.onnx"),
        *("--data", tmp_path / "train.npz", "--json", *own),
    )
    assert found.exit_code == 0, found.output
    assert '"temperature": 4.0' in found.output
    assert other.exists()
    found = run("finetune", out, "-o", out, "--train", tmp_path / "train.npz")
    assert found.exit_code == 2
    assert "which this command reads: give another path" in found.output
    assert run("finetune", out, "--train", tmp_path / "train.npz").exit_code == 2


# The last step of recovery


def test_recovery_may_end_with_a_distillation(taught: onnx.ModelProto) -> None:
    """It is proved as any other recovery, and on new samples nearer the original than without."""
    x, new = {"x": data(128, 3)["x"]}, data(256, 5)["x"]
    settings: dict[str, Any] = {"ratio": 0.75, "align": 1, "calibration": x}
    found = {}
    for how in (True, "distill"):
        small, report = onnxprune.prune(taught, recover=how, **settings)
        found[how] = apart(small, taught, new)
        assert report.verification is not None
        assert report.verification.ok
    assert any(note.startswith("distilled: 120 steps in ") for note in report.notes)
    assert set(report.plan.recovered) >= {"fc1.weight", "fc2.weight"}
    assert found["distill"] < 0.7 * found[True]
    again, report = onnxprune.apply(taught, report.plan, calibration=x, recover="distill")
    assert apart(again, taught, new) == pytest.approx(found["distill"], rel=1e-3)


def test_settings_in_constant_nodes_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """ReLU6 as exporters write it: a Clip with bounds that nodes hold."""
    from onnx import helper

    from onnxprune.training import recovering

    monkeypatch.setattr(recovering, "STEPS", 12)
    proto = classifier(16)
    bounds = [
        helper.make_node("Constant", [], [name], value_float=value)
        if name == "high"
        else helper.make_node(
            "Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(value, np.float32))
        )
        for name, value in (("low", 0.0), ("high", 6.0))
    ]
    proto.graph.node[1].CopyFrom(helper.make_node("Clip", ["h", "low", "high"], ["a"]))
    for place, own in enumerate(bounds):
        proto.graph.node.insert(place, own)
    x = {"x": data(128, 3)["x"]}
    small, report = onnxprune.prune(proto, ratio=0.5, align=1, calibration=x, recover="distill")
    assert report.verification is not None
    assert report.verification.ok
    assert not {"low", "high"} & set(report.plan.recovered)
    assert len(small.graph.node) == len(proto.graph.node)


def test_a_distillation_that_does_harm_is_dropped(
    taught: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxprune.training import recovering

    monkeypatch.setattr(recovering, "RATE", 1e3)
    settings: dict[str, Any] = {"ratio": 0.5, "align": 1, "calibration": {"x": data(128, 3)["x"]}}
    plain, _ = onnxprune.prune(taught, **settings)
    small, report = onnxprune.prune(taught, recover="distill", **settings)
    assert any("came no nearer the original" in note for note in report.notes)
    assert weights(small) == weights(plain)


def test_the_command_takes_ways_of_recovery(tmp_path: Path, taught: onnx.ModelProto) -> None:
    onnx.save(taught, tmp_path / "large.onnx")
    np.savez(tmp_path / "x.npz", x=data()["x"])
    own: list[Any] = ["prune", tmp_path / "large.onnx", "-o", tmp_path / "s.onnx"]
    own += ["--ratio", 0.5, "--calibration", tmp_path / "x.npz"]
    done = run(*own, "--recover", "distill", "--align", 1)
    assert done.exit_code == 0, done.output
    assert "distilled: 120 steps" in done.output
    for more, message in (
        (("--recover", "hope"), "--recover 'hope' is not known: choose least-squares or distill"),
        (("--recover", "distill", "--no-recover"), "exclude each other"),
    ):
        refused = run(*own, *more)
        assert refused.exit_code == 2
        assert message in refused.output
