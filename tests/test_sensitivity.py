"""Sensitivities: the same wherever they are measured, kept on disk, and what they are used for."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxprune
from onnxprune import sensing, workers
from onnxprune.budget import Budget, Options
from onnxprune.choosing import analyse
from onnxprune.cost import CostModel, cost_model
from onnxprune.errors import BudgetError, GateError, OnnxPruneError
from onnxprune.latency import Chain, Latency
from onnxprune.searching import smallest
from onnxprune.target import Target
from onnxprune.trials import Sensitivity, Trial, allotted, ratios_within, read_sensitivity
from tests.graphs import model, node, weight

Array = NDArray[Any]
RATIOS = (0.25, 0.5, 0.75)


def three() -> onnx.ModelProto:
    """Three hidden layers of 16; half of the second's channels count for nothing."""
    names = ["x", "h1", "h2", "h3", "y"]
    weights = {f"w{k}": weight(k, 16, 16) for k in range(1, 4)} | {"w4": weight(4, 5, 16)}
    weights["w2"][8:] = 0
    nodes = []
    for k in range(4):
        made = names[k + 1] if k == 3 else f"g{k}"
        nodes.append(node("Gemm", f"{names[k]} w{k + 1}", made, transB=1))
        if k < 3:
            nodes.append(node("Relu", made, names[k + 1]))
    return model(nodes, {"x": ("n", 16)}, {"y": ("n", 5)}, weights)


INPUTS = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)


def measured(path: Path | None = None, **options: Any) -> Sensitivity:
    given = {"calibration": INPUTS, "ratios": RATIOS, **options}
    return onnxprune.sensitivity(three(), path, **given)


@pytest.fixture(scope="module")
def table() -> Sensitivity:
    return measured()


def test_every_group_is_tried_at_every_ratio(table: Sensitivity) -> None:
    assert [(t.group, t.ratio) for t in table.trials] == [
        (f"w{k}:0", ratio) for k in (1, 2, 3) for ratio in RATIOS
    ]
    for trial in table.trials:
        assert trial.after == round(16 * (1 - trial.ratio))
    own = {(t.group, t.ratio): t for t in table.trials}
    assert own["w2:0", 0.5].divergence < 1e-10  # what counts for nothing costs nothing
    assert own["w2:0", 0.75].divergence > 1e-3
    assert own["w1:0", 0.25].divergence > 1e-4


def test_a_trial_is_what_pruning_that_group_alone_does(table: Sensitivity) -> None:
    _, report = onnxprune.prune(
        three(), ratio=0.5, include=["w3:0"], align=1, calibration=INPUTS, recover=False
    )
    own = next(t for t in table.trials if (t.group, t.ratio) == ("w3:0", 0.5))
    assert report.fidelity[0].kl == own.divergence
    assert 1 - report.fidelity[0].value == own.fall
    assert 1 - report.after.macs / report.before.macs == pytest.approx(own.macs, abs=1e-12)
    assert 1 - report.after.params / report.before.params == pytest.approx(own.params, abs=1e-12)


def test_milliseconds_that_go_are_said_where_they_are_asked_for(
    table: Sensitivity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all(trial.ms is None for trial in table.trials)
    price = 1e-3  # milliseconds for a multiply-accumulate

    def planted(coupling: Any, cost: CostModel, *rest: Any) -> Latency:
        assert rest[-1] == Target("cpu", 2)
        return Latency(tuple(Chain((key,), {"Gemm": price}) for key in cost.work.macs))

    monkeypatch.setattr(sensing, "measured_latency", planted)
    path = tmp_path / "s.json"
    timed = measured(path, ep="cpu", threads=2)
    whole = onnxprune.inspect(three()).macs
    for own, other in zip(timed.trials, table.trials, strict=True):
        assert own.ms == pytest.approx(price * whole * own.macs, rel=1e-9)
        assert replace(own, ms=None) == other
    assert read_sensitivity(path) == timed
    assert path.with_suffix(".csv").read_text().splitlines()[0].endswith(",macs,params,ms")
    with pytest.raises(OnnxPruneError, match=r"other settings \(target\)"):
        measured(path)


def test_milliseconds_are_fitted_to_runs() -> None:
    trials = measured(ep="cpu", ratios=(0.5,)).trials
    assert all(trial.ms is not None and trial.ms >= 0 for trial in trials)


def test_recovered_trials_fall_less(table: Sensitivity) -> None:
    fitted = measured(recover=True, include=["w1*"])
    plain = [t.divergence for t in table.trials if t.group == "w1:0"]
    assert all(t.divergence < own for t, own in zip(fitted.trials, plain, strict=True))


def test_labels_count_where_there_are_any() -> None:
    labels = np.zeros(64, int)
    found = measured(calibration=None, evaluate={"x": INPUTS, "y": labels}, include=["w3:0"])
    _, report = onnxprune.prune(
        three(), ratio=0.5, include=["w3:0"], align=1, evaluate={"x": INPUTS, "y": labels}
    )
    assert report.evaluation is not None
    assert found.trials[1].fall == report.evaluation.drop


@pytest.mark.slow
def test_workers_find_what_one_finds(table: Sensitivity, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("cloudpickle")
    found = measured(tmp_path / "s.json", jobs=2)
    assert found == table
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(table.to_json())


@pytest.mark.slow
def test_a_dask_cluster_finds_what_one_finds(table: Sensitivity) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        assert measured(cluster=address) == table


@pytest.mark.slow
def test_a_ray_cluster_finds_what_one_finds(table: Sensitivity) -> None:
    ray = pytest.importorskip("ray")
    assert measured(cluster="ray") == table
    assert not ray.is_initialized()


@dataclass(frozen=True)
class Deadly:
    """Its first worker dies of task 3; ``always`` kills every one."""

    mark: Path
    always: bool = False

    def trial(self, *key: Any) -> int:
        if key == (3,) and (self.always or not self.mark.exists()):
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(key[0]) ** 2


@pytest.mark.slow
def test_a_killed_worker_costs_its_tasks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("cloudpickle")
    keys = [(k,) for k in range(8)]
    found = sorted(workers.results(Deadly(tmp_path / "mark"), keys, 2, None))
    assert found == [k**2 for k in range(8)]
    with pytest.raises(OnnxPruneError, match="workers were killed 3 times, perhaps for want of"):
        list(workers.results(Deadly(tmp_path / "mark", always=True), keys, 2, None))


def test_a_broken_run_goes_on(
    table: Sensitivity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    done: list[Any] = []
    plain = sensing.Shop.trial

    def some(self: sensing.Shop, name: str, ratio: float) -> Trial:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append((name, ratio))
        return plain(self, name, ratio)

    monkeypatch.setattr(sensing.Shop, "trial", some)
    with pytest.raises(KeyboardInterrupt):
        measured(path)
    assert len(read_sensitivity(path).trials) == 4
    done.append("so that the others are let through")
    told: list[str] = []
    assert measured(path, progress=told.append) == table
    assert len(done) == 5 + len(told) == 10
    assert told[0] == "w2:0 without 50 %"
    assert path.with_suffix(".csv").read_text().splitlines()[0].startswith("group,ratio,before")
    assert len(path.with_suffix(".csv").read_text().splitlines()) == 10
    assert {own.name for own in tmp_path.iterdir()} == {"s.json", "s.csv"}
    assert read_sensitivity(path) == table
    more = measured(path, ratios=(*RATIOS, 0.9))
    assert [t.ratio for t in more.trials[:4]] == [0.25, 0.5, 0.75, 0.9]


def test_another_runs_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    measured(path, ratios=[0.5])
    with pytest.raises(OnnxPruneError, match=r"holds trials with other settings \(samples\)"):
        measured(path, samples=32)
    other = three()
    other.graph.node[0].name = "another"
    with pytest.raises(OnnxPruneError, match=r"other settings \(sha256\): remove it"):
        onnxprune.sensitivity(other, path, calibration=INPUTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [1.0]}, "the ratio 1 is tried: it must be between 0 and 1"),
        ({"ratios": []}, "no ratio is to be tried"),
        ({"jobs": 0}, "jobs is 0: it must be at least 1"),
        ({"calibration": None}, "sensitivities are measured on data: give inputs"),
        ({"cluster": "slurm"}, "the cluster is 'slurm': give dask://HOST:PORT or ray"),
        ({"path": Path("s.txt")}, "'s.txt' is to hold JSON: give it the suffix .json"),
        ({"path": Path("no/s.json")}, "can't be written: there is no folder 'no'"),
        ({"recover": True, "calibration": None, "evaluate": {"x": INPUTS, "y": np.zeros(64, int)}},
         "recovery needs inputs without labels"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        measured(**options)


@pytest.mark.parametrize(
    ("missing", "cluster", "message"),
    [
        ("joblib", None, r"joblib is not installed, .* pip install 'onnxprune\[jobs\]'"),
        ("distributed", "dask://127.0.0.1:1", r"Dask is not installed: .*onnxprune\[dask\]"),
        ("ray", "ray", r"Ray is not installed: .*onnxprune\[ray\]"),
    ],
)
def test_engines_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, missing: str, cluster: str | None, message: str
) -> None:
    if cluster is not None:
        pytest.importorskip("joblib")
        pytest.importorskip("cloudpickle")
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(OnnxPruneError, match=message):
        measured(jobs=2, cluster=cluster)


@pytest.mark.slow
def test_a_cluster_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECTING", 1)
    with pytest.raises(OnnxPruneError, match="1:9' can't be reached"):
        measured(cluster="dask://127.0.0.1:9")


@pytest.mark.parametrize("text", ["{", "[]", '{"trials": [{"group": 1}]}'])
def test_files_that_are_no_tables(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(OnnxPruneError, match="can't be read: No such file"):
        read_sensitivity(path)
    path.write_text(text)
    with pytest.raises(OnnxPruneError, match=r"s\.json' is no table of sensitivities: make one"):
        read_sensitivity(path)


def trial(group: str, ratio: float, fall: float, divergence: float = 0.0) -> Trial:
    return Trial(group, ratio, 16, round(16 * (1 - ratio)), fall, divergence, 0.0, 0.0)


def test_the_largest_ratio_below_a_threshold() -> None:
    trials = (
        trial("a", 0.75, 0.02),  # a lucky one: what is between is worse
        trial("a", 0.25, 0.01),
        trial("a", 0.5, 0.05),
        trial("b", 0.25, 0.0, 0.2),
        trial("b", 0.5, -0.1, 0.3),
    )
    found = Sensitivity("m", {}, trials)
    assert ratios_within(found, (0.02, 0.0)) == {"a": 0.25, "b": 0.5}
    assert ratios_within(found, (0.05, 0.0)) == {"a": 0.75, "b": 0.5}
    assert ratios_within(found, (0.0, 0.25)) == {"b": 0.25}  # of equal falls divergence decides
    assert ratios_within(found, (0.0, 0.1)) == {}


@pytest.mark.parametrize("macs", [0.9, 0.7, 0.5, 0.3])
def test_the_lowest_threshold_that_meets_a_budget(table: Sensitivity, macs: float) -> None:
    coupling = analyse(three(), {})
    found = allotted(coupling, table, Budget(macs=macs), Options())
    ratios = found.per_group
    assert found.scope == "per-group"
    assert ratios is not None
    costs = cost_model(coupling)

    def share(own: Any) -> float:
        counts = {g.factor: round(16 * (1 - own.get(g.name, 0.0))) for g in coupling.groups}
        return costs.cost(counts).macs / costs.cost({}).macs

    assert share(ratios) <= macs
    harms = {t.harm for t in table.trials if ratios.get(t.group, 0) >= t.ratio}
    below = [ratios_within(table, level) for level in sorted(harms)[:-1]]
    assert all(share(own) > macs for own in below)


def test_pruning_by_sensitivity(table: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(table.to_json())
    given: dict[str, Any] = {"macs": 0.7, "align": 1, "calibration": INPUTS, "recover": False}
    _, report = onnxprune.prune(three(), per_group_from=path, **given)
    rows = {row.name: row.after for row in report.groups}
    assert rows["w2:0"] == min(rows.values())  # where half counts for nothing
    assert report.after.macs <= 0.7 * report.before.macs
    assert report.fidelity == onnxprune.prune(three(), per_group_from=table, **given)[1].fidelity
    _, uniform = onnxprune.prune(three(), scope="uniform", **given)
    assert (report.fidelity[0].kl or 0) < (uniform.fidelity[0].kl or 0)
    with pytest.raises(OnnxPruneError, match="both given: give one of them"):
        onnxprune.prune(
            three(), per_group_from=table, scope="per-group", per_group={"*": 0.5}, macs=0.7
        )


def test_tables_of_other_models_and_without_a_budget(table: Sensitivity) -> None:
    coupling = analyse(three(), {})
    stranger = replace(table, trials=(trial("w9:0", 0.5, 0.1),))
    with pytest.raises(OnnxPruneError, match="has group 'w9:0', which"):
        allotted(coupling, stranger, Budget(macs=0.5), Options())
    with pytest.raises(OnnxPruneError, match="want a budget to meet"):
        allotted(coupling, table, Budget(ratio=0.5), Options())


def passing(least: float) -> Iterator[Any]:
    tried: list[float] = []

    def attempt(share: float) -> None:
        tried.append(share)
        if share < least:
            raise (GateError if share > 0.1 else BudgetError)(f"no at {share}")

    yield attempt
    yield tried


@pytest.mark.parametrize("least", [0.01, 0.05, 0.37, 0.5, 0.99])
def test_bisection_finds_the_smallest(least: float) -> None:
    attempt, tried = passing(least)
    found = smallest(attempt, 8)
    assert least <= found < least + 2**-8
    assert len(tried) == 8


def test_bisection_where_nothing_passes() -> None:
    attempt, _ = passing(1.0)
    with pytest.raises(GateError, match="no smaller model passes: with 98 % of the MACs, no at"):
        smallest(attempt, 6)


def test_without_a_budget_the_gates_decide(tmp_path: Path) -> None:
    given: dict[str, Any] = {"align": 1, "calibration": INPUTS}
    small, report = onnxprune.prune(
        three(),
        min_fidelity=0.9,
        output=tmp_path / "s.onnx",
        report_output=tmp_path / "r.json",
        **given,
    )
    assert report.fidelity[0].value >= 0.9
    assert report.verification is not None
    assert report.after.macs < 0.75 * report.before.macs  # w2's idle half is a quarter and more
    assert "is the least that the gates allow, found by bisection" in report.notes[0]
    assert (tmp_path / "s.onnx").read_bytes() == small.SerializeToString()
    share = report.settings["macs"]
    with pytest.raises(GateError, match="the fidelity of output"):
        onnxprune.prune(three(), macs=share - 2**-7, min_fidelity=0.9, **given)
    with pytest.raises(GateError, match="no smaller model passes"):
        onnxprune.prune(three(), include=["w1"], min_fidelity=1.0, **given)
    with pytest.raises(BudgetError, match="no budget is given"):
        onnxprune.prune(three(), **given)


def test_evaluating_two_models() -> None:
    labels = {"x": INPUTS, "y": np.zeros(64, int)}
    alone = onnxprune.evaluate(three(), evaluate=labels)
    assert alone.fidelity == ()
    assert alone.evaluation is not None
    small, report = onnxprune.prune(three(), ratio=0.5, evaluate=labels)
    both = onnxprune.evaluate(three(), small, evaluate=labels)
    assert (both.evaluation, both.fidelity) == (report.evaluation, report.fidelity)
    assert both.evaluation is not None
    assert both.evaluation.before == alone.evaluation.before
    assert onnxprune.evaluate(three(), small, calibration=INPUTS).evaluation is None
    with pytest.raises(OnnxPruneError, match="there is nothing to evaluate on: give data with"):
        onnxprune.evaluate(three(), calibration=INPUTS)
