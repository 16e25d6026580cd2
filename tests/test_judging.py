"""Fidelity, metrics and gates: what they say of outputs that are known by hand."""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxprune
from onnxprune import choosing, finishing, judging, pipeline, runtime, searching
from onnxprune.budget import Budget, Options
from onnxprune.errors import GateError, OnnxPruneError
from onnxprune.fidelity import Fidelity, divergence, fidelity
from onnxprune.files import load
from onnxprune.judging import Data, Judge, Judgement
from onnxprune.metrics import Evaluation, evaluate
from onnxprune.report.writing import report_text
from onnxprune.runtime import Feeds, Runner
from onnxprune.synthetic import NOTE
from tests import tiny
from tests.graphs import model, node, weight

Array = NDArray[Any]


def saying(values: dict[str, Any]) -> Runner:
    """A model that says the rows of ``values`` that its feed ``k`` asks for."""
    return lambda feeds: {name: np.asarray(own)[feeds["k"]] for name, own in values.items()}


def turns(count: int, batch: int) -> list[Feeds]:
    return [{"k": np.arange(k, min(k + batch, count))} for k in range(0, count, batch)]


def logits(seed: int = 0, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape or (12, 5)).astype(np.float32)


def one(found: Any, expected: Any, batch: int = 4) -> Fidelity:
    feeds = turns(len(expected), batch)
    (row,) = fidelity(saying({"y": expected}), saying({"y": found}), feeds)
    return row


def test_a_model_is_faithful_to_itself() -> None:
    own = one(logits(), logits())
    assert (own.agreement, own.missed, own.max_error, own.sqnr_db) == (1, 0, 0, None)
    assert own.cosine == pytest.approx(1, abs=1e-12)
    assert own.kl == pytest.approx(0, abs=1e-12)
    assert (own.value, own.scores, own.samples) == (1, True, 12)


@pytest.mark.parametrize("shape", [(12, 5), (12, 1), (12, 2, 6), (12, 3, 4, 4), (12,)])
def test_batches_change_nothing(shape: tuple[int, ...]) -> None:
    expected, found = logits(0, *shape), logits(1, *shape)
    whole = one(found, expected, 12)
    for batch in (1, 5):
        parts = one(found, expected, batch)
        for name, value in vars(whole).items():
            other = vars(parts)[name]
            assert value == other or value == pytest.approx(other, rel=1e-9), name


def test_fidelity_by_hand() -> None:
    expected = np.array([[1.0, 2, 3], [3, 1, 2]], np.float32)
    found = np.array([[1.0, 2, 4], [1, 3, 2]], np.float32)
    own = one(found, expected)
    assert own.agreement == 0.5
    assert own.max_error == 2
    assert own.missed == pytest.approx((1 + 4 + 4) / 6 / expected.var())
    assert own.sqnr_db == pytest.approx(10 * np.log10(28 / 9))
    first, second = 17 / np.sqrt(14 * 21), 10 / 14
    assert own.cosine == pytest.approx((first + second) / 2)
    p = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    q = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    assert own.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-6)


def test_what_can_not_be_compared_is_missed() -> None:
    expected, nothing = logits(), logits()
    nothing[:4] = np.nan
    own = one(nothing, expected)
    assert own.incomparable == 4
    assert own.agreement == pytest.approx(8 / 12)
    assert own.missed == pytest.approx(4 / 12)
    (row,) = fidelity(saying({"y": expected}), lambda feeds: {"y": np.ones(3)}, turns(12, 4))
    assert (row.incomparable, row.agreement, row.value) == (12, 0, 0)
    masked = expected.copy()
    masked[:, 0] = -np.inf  # in both alike: an output that masks
    assert one(masked, masked).missed == 0


def test_whole_numbers_agree_or_do_not() -> None:
    own = one(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert (own.agreement, own.value, own.missed) == (0.75, 0.75, None)


def test_maps_have_no_agreement() -> None:
    own = one(logits(1, 4, 3, 4, 4), logits(0, 4, 3, 4, 4))
    assert own.agreement is None
    assert own.value == 1 - (own.missed or 0) < 0


def test_outputs_that_are_no_tensors_are_left_out() -> None:
    runner = saying({"y": logits()})
    assert len(fidelity(lambda f: {**runner(f), "s": ["a"]}, runner, turns(12, 4))) == 1


def labelled(labels: Any, batch: int = 5) -> list[tuple[Feeds, Array]]:
    feeds = turns(len(labels), batch)
    return [(own, np.asarray(labels)[own["k"]]) for own in feeds]


def test_top_counts_labels_among_the_highest() -> None:
    scores = np.tile(np.arange(8.0), (8, 1))
    runner = saying({"y": scores})
    assert evaluate(runner, labelled(np.arange(8))) == 1 / 8
    assert evaluate(runner, labelled(np.arange(8)), "top5") == 5 / 8
    flat = saying({"y": np.zeros((8, 8))})  # a model that says nothing is right by chance alone
    assert evaluate(flat, labelled(np.arange(8))) == 1 / 8
    assert evaluate(saying({"y": np.full((8, 8), np.nan)}), labelled(np.arange(8))) == 0


def test_top_finds_the_axis_of_classes() -> None:
    maps = logits(0, 6, 3, 4, 5)
    assert evaluate(saying({"y": maps}), labelled(maps.argmax(axis=1))) == 1
    tokens = logits(0, 6, 4, 7)
    assert evaluate(saying({"y": tokens}), labelled(tokens.argmax(axis=-1))) == 1
    pooled = logits(0, 6, 9, 1, 1)
    assert evaluate(saying({"y": pooled}), labelled(pooled[:, :, 0, 0].argmax(axis=1))) == 1
    both = {"embedding": logits(0, 6, 2, 3, 4), "classes": np.arange(6)}
    assert evaluate(saying(both), labelled(np.arange(6))) == 1


def test_mse_is_that_of_the_output_with_the_labels_shape() -> None:
    values = logits(0, 6, 1)
    assert evaluate(saying({"y": values}), labelled(values[:, 0] + 2), "mse") == pytest.approx(4)
    assert Evaluation("mse", 1.0, 1.5, 6).drop == 0.5
    assert Evaluation("top1", 1.0, 0.5, 6).drop == 0.5


def test_a_metric_of_the_users_sees_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(outputs: dict[str, Any], labels: Array) -> float:
        assert outputs["y"].shape == (12, 5)
        assert labels.shape == (12,)
        return 0.25

    runner = saying({"y": logits()})
    assert evaluate(runner, labelled(np.arange(12)), share) == 0.25
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_metric.py").write_text("def size(outputs, labels): return len(labels)\n")
    assert evaluate(runner, labelled(np.arange(12)), "own_metric:size") == 12
    with pytest.raises(OnnxPruneError, match="the metric '<lambda>' failed: ZeroDivisionError"):
        evaluate(runner, labelled(np.arange(12)), lambda *_: 1 / 0)
    rows: Iterator[int] = iter(range(1, 4))
    ragged = [({"k": np.arange(k)}, np.arange(k)) for k in rows]
    counts = evaluate(
        lambda f: {"y": np.ones((1, len(f["k"])))}, ragged, lambda outputs, _: len(outputs["y"])
    )
    assert counts == 3  # shapes that differ stay a list


@pytest.mark.parametrize(
    ("labels", "metric", "message"),
    [
        (np.arange(12), "top2", "the metric 'top2' is not known: choose top1, top5, mse or give"),
        (np.arange(12), "top1", "classes from 0 to 4: the model has that many"),
        (np.zeros(12), "top1", "labels of type float64 are wanted to be classes"),
        (np.zeros((12, 2), int), "top1", r"no output holds scores .* \(5, 2\): there are 'y'"),
        (np.zeros((12, 2)), "mse", r"no output holds values for labels of shape \(5, 2\)"),
    ],
)
def test_labels_that_do_not_fit(labels: Array, metric: str, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        evaluate(saying({"y": logits()}), labelled(labels), metric)


ROW = Fidelity("y", 10, True, 0.9, 0.9, 0.1, 10.0, 0.2, 1.0)


@pytest.mark.parametrize(
    ("data", "rows", "own", "message"),
    [
        (Data(min_fidelity=0.9), ROW, None, None),
        (Data(min_fidelity=0.91), ROW, None, "output 'y' is 0.9, and min_fidelity asks for 0.91"),
        (Data(min_fidelity=0.8), replace(ROW, scores=False), None, None),
        (Data(min_fidelity=0.81), replace(ROW, scores=False), None, "is 0.8, and min_fidelity"),
        (Data(min_fidelity=0.1), None, None, "no output can be compared"),
        (Data(max_drop=0.1), ROW, Evaluation("top1", 0.75, 0.65, 9), None),
        (
            Data(max_drop=0.09),
            ROW,
            Evaluation("top1", 0.75, 0.65, 9),
            "top1 fell from 0.75 to 0.65",
        ),
        (Data(max_drop=0.0), ROW, Evaluation("top1", 0.5, 0.6, 9), None),
        (Data(max_drop=0.1), ROW, Evaluation("mse", 0.5, 0.7, 9), "mse rose from 0.5 to 0.7, and"),
        (Data(max_drop=1.0), ROW, Evaluation("own", 0.5, float("nan"), 9), "fell from 0.5 to nan"),
    ],
)
def test_gates(data: Data, rows: Any, own: Evaluation | None, message: str | None) -> None:
    found = Judgement(() if rows is None else (rows,), own).refused(data)
    assert found is None if message is None else message in str(found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(max_drop=0.1, calibration="x"), "max_drop limits the fall of a metric: give data"),
        (Data(max_drop=-0.1, evaluation="x"), "max_drop is -0.1: it must be 0 or more"),
        (Data(min_fidelity=0.9), "min_fidelity compares outputs on data: give some"),
        (Data(min_fidelity=99, calibration="x"), "min_fidelity is 99: it is at most 1"),
        (Data(samples=0, calibration="x"), "samples is 0: it must be at least 1"),
        (Data(metric="best", evaluation="x"), "the metric 'best' is not known"),
    ],
)
def test_gates_that_make_no_sense(data: Data, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        data.check()


def classifier() -> onnx.ModelProto:
    """A layer, 24 hidden channels, five classes; the second half of the channels hardly counts."""
    weights = {"w1": weight(1, 24, 8), "w2": weight(2, 5, 24)}
    weights["w2"][:, 12:] *= 1e-3
    nodes = [
        node("Gemm", "x w1", "h", transB=1),
        node("Relu", "h", "r"),
        node("Gemm", "r w2", "y", transB=1),
    ]
    return model(nodes, {"x": ("n", 8)}, {"y": ("n", 5)}, weights)


def data_of(proto: onnx.ModelProto, count: int = 40) -> dict[str, Array]:
    """Inputs, with the model's own choices as labels."""
    x = logits(0, count, 8)
    scores = runtime.runner(proto, None)({"x": x})["y"]
    return {"x": x, "y": scores.argmax(axis=1)}


def test_reports_say_what_data_says(tmp_path: Path) -> None:
    proto = classifier()
    own = data_of(proto)
    _, report = onnxprune.prune(proto, ratio=0.5, align=1, calibration={"x": own["x"]}, samples=16)
    assert report.evaluation is None
    assert report.fidelity[0].samples == 16
    assert report.fidelity[0].value > 0.9
    assert report.settings["calibration"] == "dict"
    _, report = onnxprune.prune(proto, ratio=0.75, align=1, evaluate=own)
    assert report.evaluation is not None
    assert (report.evaluation.before, report.evaluation.samples) == (1.0, 40)
    assert report.evaluation.after < 1
    assert report.evaluation.after == report.fidelity[0].agreement  # labels are its own choices
    told = json.loads(report.to_json())
    assert told["evaluation"]["drop"] == pytest.approx(report.evaluation.drop)
    assert told["fidelity"][0]["value"] == report.fidelity[0].value
    assert "top1 1 ->" in repr(report)
    _, report = onnxprune.prune(proto, ratio=0.5)
    assert report.fidelity == ()


def test_a_gate_that_says_no_leaves_the_report_alone(tmp_path: Path) -> None:
    proto = classifier()
    own = data_of(proto)
    names = {f"{what}output": tmp_path / f"{what}file" for what in ("", "plan_")}
    names["report_output"] = tmp_path / "report.json"
    given: dict[str, Any] = {"ratio": 0.75, "align": 1, **names}
    with pytest.raises(GateError, match="top1 fell from 1 to ") as found:
        onnxprune.prune(proto, evaluate=own, max_drop=0.01, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert found.value.report.evaluation.after < 0.99
    assert found.value.report.refused.startswith("top1 fell from 1 to ")
    assert "REFUSED: top1 fell" in repr(found.value.report)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["refused"] == found.value.report.refused
    assert "REFUSED, no model was written: top1 fell" in report_text("r.md")(found.value.report)
    with pytest.raises(GateError, match="the fidelity of output 'y' is"):
        onnxprune.prune(proto, calibration=own, min_fidelity="99.9%", **given)
    onnxprune.prune(proto, evaluate=own, max_drop=0.9, min_fidelity=0.1, **given)
    assert len(list(tmp_path.iterdir())) == 3
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["refused"] == ""
    plan = tmp_path / "plan_file"
    _, report = onnxprune.apply(proto, plan, evaluate=own)
    assert report.evaluation is not None
    with pytest.raises(GateError, match="max_drop allows 0"):
        onnxprune.apply(proto, plan, evaluate=own, max_drop=0)


def test_the_original_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = classifier()
    original = load(proto)
    ran: list[int] = []
    plain = runtime.run

    def counted(*given: Any) -> Any:
        ran.append(1)
        return plain(*given)

    monkeypatch.setattr(runtime, "run", counted)
    own = Judge(original, Data(data_of(proto), data_of(proto)))
    ran.clear()
    first = own.judge(proto)
    both = len(ran)
    assert own.judge(proto) == first
    assert len(ran) - both < both  # the smaller model alone
    monkeypatch.setattr(judging, "REMEMBERED", 0)
    assert Judge(original, Data(data_of(proto), data_of(proto))).judge(proto) == first


def test_without_data_random_inputs_stand_in_and_say_so() -> None:
    data = Data()
    assert [data.given, *data.notes] == [False]
    assert len(data.feeds(load(tiny.net()))) > 1
    assert list(data.notes) == [NOTE]
    _, report = onnxprune.prune(tiny.net(), ratio=0.5, calibration="synthetic", samples=32)
    assert NOTE in report.notes
    assert report.recovery
    assert Judge(load(tiny.net()), data).judge(tiny.net()) == Judgement()


def test_few_samples_are_said() -> None:
    proto = classifier()
    for count, said in ((judging.FEW, False), (judging.FEW - 1, True)):
        given = {"x": data_of(proto, count)["x"]}
        _, report = onnxprune.prune(proto, ratio=0.5, align=1, calibration=given)
        told = [f"{count} calibration samples are few" in note for note in report.notes]
        assert any(told) == said


def test_a_count_of_samples_wants_calibration_inputs() -> None:
    proto = classifier()
    with pytest.raises(OnnxPruneError, match="calibration inputs are taken, and there are none"):
        onnxprune.evaluate(proto, evaluate=data_of(proto), samples=8)


def test_data_knows_one_judge_for_each_model() -> None:
    data = Data(data_of(classifier()))
    one, other = load(classifier()), load(classifier())
    first = judging.judge_of(one, data)
    assert judging.judge_of(one, data) is first
    assert judging.judge_of(other, data).model is other


def test_what_is_not_finite_any_more_is_infinitely_far() -> None:
    value = np.array([[1.0, 2.0], [3.0, -np.inf]], np.float32)
    assert divergence([value], [value]) == 0.0
    for worse in (np.nan, np.inf):
        other = value.copy()
        other[0, 0] = worse
        assert divergence([other], [value]) == math.inf
    further = value.copy()
    further[0, 0], further[1, 1] = 4.0, 7.0
    spread = np.array([1.0, 2.0, 3.0]).var()
    assert divergence([further], [value]) == pytest.approx(3.0 / spread)


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """A list that grows with each call of a function of a module."""
    calls: list[int] = []
    plain = getattr(module, name)

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return plain(*given, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_search_scores_once_and_fits_once_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = classifier()
    own = data_of(proto)
    analysed = counting(monkeypatch, pipeline, "analyse")
    scored = counting(monkeypatch, pipeline, "scored_by")
    fitted = counting(monkeypatch, finishing, "recover")
    given: dict[str, Any] = {"calibration": {"x": own["x"]}, "evaluate": own, "align": 1}
    found, report = onnxprune.prune(proto, max_drop=0.1, **given)
    assert (len(analysed), len(scored)) == (1, 1)
    assert 1 <= len(fitted) <= searching.ROUNDS
    assert report.evaluation is not None
    assert report.evaluation.drop <= 0.1
    share = report.after.macs / report.before.macs
    again, _ = onnxprune.prune(proto, macs=report.settings["macs"], **given)
    assert share < 1
    assert found.SerializeToString() == again.SerializeToString(), "as if it were asked for"


def test_a_latency_that_is_sought_in_steps_takes_the_first_ones_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto = classifier()
    coupling = choosing.analyse(proto, {})
    feeds = [{"x": logits(k, 10, 8)} for k in range(4)]
    fitted = counting(monkeypatch, choosing, "recover")
    budget, options = Budget(macs=0.5), Options(align=1)
    choice = choosing.Choice(budget, options, "obs", steps=3, seed=0)
    scores = choosing.scored_by(coupling, choice, feeds, lambda _: nullcontext())
    chooser = choosing.Chooser(coupling, choice, {}, feeds, lambda _: nullcontext(), scores)

    def chosen(macs: float) -> list[int]:
        keep, _ = chooser.at(Budget(macs=macs))
        return [int(mask.sum()) for mask in keep.values()]

    first = chosen(0.6)
    assert len(fitted) == 2
    assert chosen(0.6) == first
    assert chosen(0.5) < first
    assert len(fitted) == 2, "nothing is fitted again"
    assert chosen(0.6) == first, "what is remembered does not change"


def test_labels_that_calibration_has_no_use_for_may_be_fewer() -> None:
    proto = classifier()
    own = data_of(proto)
    given = {"x": own["x"], "y": own["y"][:3]}
    _, report = onnxprune.prune(proto, ratio=0.5, align=1, calibration=given)
    assert report.fidelity


def test_a_distillation_wants_something_to_learn_from() -> None:
    with pytest.raises(OnnxPruneError, match="--recover distill learns from calibration inputs"):
        onnxprune.prune(classifier(), ratio=0.5, recover="distill")
