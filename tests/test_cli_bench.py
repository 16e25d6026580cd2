"""onnxprune bench: what it prints, what it refuses, and the way to another machine and back."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune import api_bench, carrying, mobile, providers, remote, runner, runtime, subjects
from onnxprune.cli import app
from onnxprune.errors import OnnxPruneError
from onnxprune.measuring import Bench, Row
from onnxprune.report import benches
from onnxprune.target import Target
from tests import tiny

X = np.ones((1, 3, 8, 8), np.float32)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A model and a smaller one."""
    return [
        tiny.save(tmp_path / "big.onnx"),
        tiny.save(tmp_path / "small.onnx", tiny.net(width=8)),
    ]


def test_two_models_side_by_side(pair: list[Path]) -> None:
    result = invoke(*pair, "--runs", 4)
    assert result.exit_code == 0, result.output
    for text in ("big.onnx", "small.onnx", "p50", "samples/s", "CPU", "cpu, 1 thread"):
        assert text in result.output
    assert "dynamic axes were chosen: x=1x3x8x8 (--shape sets them)" in result.output


@pytest.mark.slow
def test_json_holds_everything(pair: list[Path]) -> None:
    result = invoke(*pair, "--runs", 4, "--batch", "1,2", "--profile", "--mobile", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.output)["benches"]
    assert [(row["model"], row["batch"]) for row in found["rows"]] == [
        *(("big.onnx", 1), ("small.onnx", 1), ("big.onnx", 2), ("small.onnx", 2))
    ]
    for row in found["rows"]:
        timing = row["timing"]
        assert len(timing["times_ms"]) == timing["runs"] == 4
        assert row["throughput_per_s"] == pytest.approx(row["batch"] * 1e3 / timing["p50_ms"])
        assert row["size_bytes"] == pair[row["model"] == "small.onnx"].stat().st_size
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
        assert timing["load_ms"] > 0
    assert found["inputs"] == {"x": [1, 3, 8, 8]}
    assert found["target"]["ep"] == "cpu"
    assert {"processor", "onnxruntime", "cores"} <= found["machine"].keys()
    for profile in found["profiles"].values():
        total = sum(layer["ms"] for layer in profile["layers"])
        assert profile["total_ms"] == pytest.approx(total)
    assert {u["provider"] for u in found["mobile"]["big.onnx"]} >= {"nnapi", "coreml-mlprogram"}


def test_csv_has_a_row_for_each(pair: list[Path]) -> None:
    result = invoke(*pair, "--runs", 4, "--csv")
    assert result.exit_code == 0, result.output
    first, second = csv.DictReader(io.StringIO(result.output))
    assert (first["model"], second["model"]) == ("big.onnx", "small.onnx")
    assert (first["speedup"], first["ep"], first["threads"]) == ("1.0", "cpu", "1")
    assert float(second["p50_ms"]) > 0


def test_the_table_of_layers(pair: list[Path]) -> None:
    alone = invoke(pair[0], "--runs", 2, "--profile")
    assert alone.exit_code == 0, alone.output
    for text in ("conv2", "w2:0", "bound by", "operators: ", "MAC/s"):
        assert text in alone.output
    both = invoke(*pair, "--runs", 2, "--profile", "--all")
    assert both.exit_code == 0, both.output
    for text in ("big.onnx -> small.onnx", "ms before", "saved", "conv1", "conv2", "conv3"):
        assert text in both.output


def test_mobile_providers_are_named(pair: list[Path]) -> None:
    result = invoke(pair[0], "--runs", 2, "--mobile")
    assert result.exit_code == 0, result.output
    assert "nnapi" in result.output
    assert "of 5" in result.output


def test_inputs_from_a_file(pair: list[Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.concatenate([X, 2 * X]))
    result = invoke(pair[0], "--inputs", tmp_path / "in.npz", "--runs", 2, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.output)["benches"]
    assert found["inputs"] == {"x": [2, 3, 8, 8]}
    assert found["rows"][0]["batch"] == 2
    own = [note for note in found["notes"] if "busy" not in note]
    assert own == ["the 2 samples of --inputs are one batch (--batch sets others)"]


def test_the_shape_is_that_which_was_asked_for(pair: list[Path]) -> None:
    result = invoke(pair[0], "--shape", "x=5x3x8x8", "--runs", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["benches"][0]["inputs"] == {"x": [5, 3, 8, 8]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to measure: give models, or --import"),
        (["--export", "new", "--import", "x.json"], "--export has nothing to carry: give models"),
        (["MODEL", "--json", "--csv"], "--json and --csv exclude each other"),
        (["MODEL", "--ep-option", "a"], "--ep-option 'a' can't be read: give KEY=VALUE"),
        (["MODEL", "--shape", "x"], "--shape 'x' can't be read: give NAME=1x3x224x224"),
        (["MODEL", "--shape", "x=1xa"], "--shape 'x=1xa' can't be read"),
        (["MODEL", "--batch", "1,b"], "--batch '1,b' can't be read: give numbers such as 1,8,32"),
        (["MODEL", "--batch", "0"], "--batch '0' can't be read"),
        (["MODEL", "--shape", "y=1"], "--shape names the input 'y': the model has 'x'"),
        (["MODEL", "--shape", "x=1x3x8"], "the shape 1x3x8, the model wants ?x3x8x8 (? is free)"),
        (["MODEL", "--shape", "x=1x4x8x8"], "the shape 1x4x8x8, the model wants ?x3x8x8"),
        (["MODEL", "--shape", "x=0x3x8x8"], "the shape 0x3x8x8, the model wants ?x3x8x8"),
        (["MODEL", "--ep", "gpu"], "there is no execution provider 'gpu'"),
        (["MODEL", "--ep", "xnnpack"], "build ONNX Runtime with --use_xnnpack"),
        (["MODEL", "--threads", "0"], "threads is 0: it must be at least 1"),
        (["MODEL", "--graph-optimization", "x"], "there is no graph optimization 'x'"),
        (["nowhere.onnx"], "'nowhere.onnx' can't be read"),
        (["nowhere.ort"], "'nowhere.ort' can't be read"),
        (["--import", "nowhere.json"], "'nowhere.json' can't be read"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, pair: list[Path]) -> None:
    result = invoke(*(str(pair[0]) if a == "MODEL" else a for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_fixed_batch_can_not_be_chosen(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx", tiny.chain(3, 8, 4))
    assert "the batch of 'm.onnx' is fixed" in invoke(path, "--batch", "2").stderr


def test_models_with_other_inputs(tmp_path: Path, pair: list[Path]) -> None:
    other = tiny.save(tmp_path / "m.onnx", tiny.chain(3, 8, 4))
    message = "input 'x' has shape [1, 3, 8, 8], but a model wants [1, 3, 4, 4]"
    assert message in invoke(pair[0], other).stderr


def test_shapes_do_not_go_with_inputs(pair: list[Path]) -> None:
    with pytest.raises(OnnxPruneError, match="--shape is for random inputs"):
        onnxprune.bench(pair[0], inputs={"x": X}, sizes={"x": (1, 3, 8, 8)})


def test_nothing_to_measure() -> None:
    with pytest.raises(OnnxPruneError, match="there is no model to measure"):
        onnxprune.bench()


def test_a_batch_below_one(pair: list[Path]) -> None:
    with pytest.raises(OnnxPruneError, match="--batch is 0: it must be at least 1"):
        onnxprune.bench(pair[0], batches=[0])


def test_models_in_memory_and_twins(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    twin = tiny.save(tmp_path / "b" / "big.onnx")
    told: list[str] = []
    found = onnxprune.bench(
        pair[0], twin, tiny.net(), inputs={"x": X}, runs=2, memory=False, progress=told.append
    )
    names = [row.model for row in found.rows]
    assert names == [str(pair[0]), str(twin), "model2.onnx"]
    assert told[-1] == "run 2, batch 1"


def test_outside_data_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny.net(), path, save_as_external_data=True, location="w.data", size_threshold=0)
    total = path.stat().st_size + (tmp_path / "w.data").stat().st_size
    assert onnxprune.bench(path, runs=2).rows[0].size_bytes == total


def test_memory_counts_from_before_the_model(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_status", {"VmRSS": 100, "VmHWM": 130}.__getitem__)
    np.savez(tmp_path / "in.npz", x=X)
    target = {"threads": 1, "provider": "CPUExecutionProvider", "options": {}, "plugin": None}
    own = (str(pair[0]), "ORT_ENABLE_ALL", target, str(tmp_path / "in.npz"))
    assert remote.peak_bytes(*own) == 30
    monkeypatch.setattr(remote, "_status", lambda _: None)
    assert remote.peak_bytes(*own) is None


@pytest.mark.slow
def test_peak_memory_is_that_of_the_model(tmp_path: Path) -> None:
    wide = tiny.chain(3, 2048, 4096, 4)  # 2048 * 4096 * 4 bytes = 34 MB of weights
    path = tiny.save(tmp_path / "wide.onnx", wide)
    x = np.ones((1, 3, 4, 4), np.float32)
    found = onnxprune.bench(path, inputs={"x": x}, runs=2).rows[0].peak_bytes
    if found is None:
        pytest.skip("this system does not tell the memory of a process")
    assert 30e6 < found < 300e6


def test_interrupted_figures_are_shown(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner.timed
    count = [0]

    def timed(call: Any) -> tuple[float, float]:
        count[0] += 1
        if count[0] > 60:
            raise KeyboardInterrupt
        return real(call)

    monkeypatch.setattr(runner, "timed", timed)
    monkeypatch.setattr(runner, "is_stable", lambda _: True)
    result = invoke(*pair, "--runs", 500)
    assert result.exit_code == 130
    assert "interrupted: the figures are those of fewer runs" in result.output
    assert "p50" in result.output


def test_a_simulated_device_is_compared_not_timed(
    pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "simulated", lambda _: True)
    result = invoke(pair[0], "--profile")
    assert result.exit_code == 0, result.output
    assert "nothing was timed; outputs were compared" in result.output
    assert "not timed: the device is simulated" in result.output
    assert "no profile" in result.output
    (row,) = onnxprune.bench(pair[0]).rows
    assert row.timing is None
    assert row.throughput is None
    assert row.difference == 0.0


def test_nodes_that_fell_back_are_said(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"CPUExecutionProvider": 0.75, "OtherExecutionProvider": 0.25}
    monkeypatch.setattr(providers, "assignment", lambda _: shares)
    found = onnxprune.bench(pair[0], runs=2, memory=False)
    assert "'cpu' ran 75 % of the nodes of big.onnx, 25 % by OtherExecutionProvider" in found.notes


def test_a_busy_machine_is_said(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(call: Any) -> tuple[float, float]:
        call()
        return 3.0, 1.5

    monkeypatch.setattr(runner, "timed", timed)
    (note,) = onnxprune.bench(pair[0], runs=2, memory=False, inputs={"x": X}).notes
    assert note.startswith("the machine is busy: runs took up to 2.00 times their CPU time")


def exported(pair: list[Path], folder: Path, *arguments: object) -> Path:
    result = invoke(*pair, "--export", folder, "--runs", 6, *arguments)
    assert result.exit_code == 0, result.output
    assert "python run.py" in result.output
    return folder


def carried(folder: Path, *arguments: object) -> Path:
    """Run the exported folder as on another machine: without onnxprune."""
    code = "import sys; sys.modules['onnxprune'] = None; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"  # noqa: E501
    command = [sys.executable, "-c", f"import sys; sys.argv = sys.argv[1:]; {code}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*command, folder / "run.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "big.onnx" in done.stdout
    return folder / "result.json"


@pytest.mark.slow
def test_there_and_back(pair: list[Path], tmp_path: Path) -> None:
    folder = exported(pair, tmp_path / "carry", "--batch", "1,2")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        *("run.py", "bench.json", "inputs_1.npz", "inputs_2.npz"),
        *("models/0/big.onnx", "models/1/small.onnx"),
    }
    result = carried(folder, "--threads", 1)
    found = api_bench.bench_import(result)
    assert [(row.model, row.batch) for row in found.rows] == [
        *(("big.onnx", 1), ("small.onnx", 1), ("big.onnx", 2), ("small.onnx", 2))
    ]
    raw = json.loads(result.read_text())["batches"][0]["models"][1]
    timing = found.rows[1].timing
    assert timing is not None
    assert timing.times_ms == tuple(raw["wall_ms"])
    assert timing.p50_ms == pytest.approx(np.median(raw["wall_ms"]))
    assert timing.runs == 6
    assert timing.shares == {"CPUExecutionProvider": 1.0}
    assert (found.rows[0].peak_bytes or 0) >= 0
    shown = invoke(pair[0], "--runs", 2, "--import", result)
    assert shown.exit_code == 0, shown.output
    assert "result: " in shown.output
    assert shown.output.count("big.onnx") == 6  # two tables for each of three


def test_outside_data_is_carried(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(tiny.net(), path, save_as_external_data=True, location="w.data", size_threshold=0)
    folder = exported([path], tmp_path / "carry")
    assert (folder / "models/0/w.data").is_file()
    assert carried(folder).is_file()


def test_a_folder_that_is_not_empty_stays(pair: list[Path], tmp_path: Path) -> None:
    assert f"'{tmp_path}' is there already" in invoke(pair[0], "--export", tmp_path).stderr
    deep = tmp_path / "no" / "where"
    assert "there is no folder" in invoke(pair[0], "--export", deep).stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9, this onnxprune reads 1"),
        ({"target": {}}, "is no result of an exported benchmark: Field required"),
        ({"batches": 3}, "is no result of an exported benchmark"),
        ({"phases": [0, 1]}, "is damaged: runs of a model are missing or out of order"),
        ({"phases": [1, 0, 0]}, "is damaged"),
        ({"phases": [0, 0, 2]}, "is damaged"),
    ],
)
def test_results_that_can_not_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = {
        "name": "m",
        "size_bytes": 1,
        "peak_bytes": None,
        "load_ms": 1.0,
        "shares": None,
        "wall_ms": [1.0, 2.0, 3.0],
        "cpu_ms": [1.0, 2.0, 3.0],
    }
    batch = {"batch": 1, "phases": [0, 0, 1], "interrupted": True, "models": [model]}
    target = {"threads": 1, "provider": "OtherExecutionProvider"}
    result = {"format": 1, "machine": {}, "target": target, "batches": [batch]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result))
    assert carrying.imported(path).notes == ("interrupted: the figures are those of fewer runs",)
    (batch if "phases" in change else result).update(change)
    path.write_text(json.dumps(result))
    with pytest.raises(OnnxPruneError, match=message):
        carrying.imported(path)


def test_the_runner_refuses_a_provider_that_is_not_there(pair: list[Path], tmp_path: Path) -> None:
    target = {"threads": 1, "provider": "DnnlExecutionProvider", "options": {}, "plugin": None}
    with pytest.raises(SystemExit, match="has no DnnlExecutionProvider on this machine"):
        remote.open_session(str(pair[0]), "ORT_ENABLE_ALL", target)


def test_the_runner_refuses_a_provider_that_ran_nothing(
    pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["DnnlExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda m, o, **_: real(m, o))
    target = {"threads": 1, "provider": "DnnlExecutionProvider", "options": {}, "plugin": None}
    with pytest.raises(SystemExit, match="DnnlExecutionProvider ran no node"):
        remote.open_session(str(pair[0]), "ORT_ENABLE_ALL", target)


def test_the_exported_runner_is_one_text_without_the_house() -> None:
    text = carrying.script()
    compile(text, "run.py", "exec")
    lines = text.splitlines()
    assert not [x for x in lines if x.startswith(("from onnxprune", "import onnxprune"))]
    assert lines.count("from __future__ import annotations") == 1


def test_the_ort_format(pair: list[Path], tmp_path: Path) -> None:
    small = tmp_path / "small.ort"
    _, report = onnxprune.prune(pair[0], macs=0.5, output=small)
    again, _ = onnxprune.prune(pair[0], macs=0.5)
    assert report.verification is not None
    assert report.verification.ok
    session = providers.open_session(small, None, Target())
    right = runtime.run(runtime.session(again, None), {"x": X}, ["y"])[0]
    np.testing.assert_allclose(
        runtime.run(session, {"x": X}, ["y"])[0], right, rtol=1e-5, atol=1e-4
    )
    found = onnxprune.bench(pair[0], small, runs=2, memory=False)
    assert [row.model for row in found.rows] == ["big.onnx", "small.ort"]
    assert found.rows[1].size_bytes == small.stat().st_size


def test_ort_files_alone_need_inputs(tmp_path: Path) -> None:
    path = tmp_path / "m.ort"
    mobile.write_ort(tiny.net(), None, path)
    with pytest.raises(OnnxPruneError, match=r"\.ort format don't tell their inputs"):
        onnxprune.bench(path)
    np.savez(tmp_path / "in.npz", x=X)
    for inputs in ({"x": X}, tmp_path / "in.npz"):
        (row,) = onnxprune.bench(path, inputs=inputs, runs=2, memory=False, profile=True).rows
        assert row.timing is not None


def test_the_ort_format_is_bound_to_no_processor(tmp_path: Path) -> None:
    mobile.write_ort(tiny.net(), None, tmp_path / "m.ort")
    assert b"FusedConv" in (tmp_path / "m.ort").read_bytes()
    assert b"_nchwc" not in (tmp_path / "m.ort").read_bytes()


def test_the_ort_format_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="can't be written: No such file"):
        mobile.write_ort(tiny.net(), None, tmp_path / "no" / "m.ort")


def test_what_mobile_providers_would_take() -> None:
    found = {u.provider: u for u in mobile.usability(tiny.chain(3, 8, 4), None)}
    assert {(u.nodes, u.taken, u.partitions, u.worth) for u in found.values()} == {(2, 2, 1, "yes")}
    strange = tiny.net(activation="Celu")
    strange.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    strange.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    nnapi = mobile.usability(strange, None)[0]
    assert (nnapi.nodes, nnapi.taken, nnapi.partitions) == (5, 4, 2)
    assert nnapi.refused == ("Celu",)
    dynamic = mobile.usability(tiny.net(), None)[0]
    assert (dynamic.taken, dynamic.dynamic, dynamic.worth) == (0, 5, "no")


def test_a_busy_machine_is_said_of_others_too(tmp_path: Path) -> None:
    model = {
        "name": "m",
        "size_bytes": 1,
        "peak_bytes": None,
        "load_ms": 1.0,
        "shares": None,
        "wall_ms": [3.0, 3.0],
        "cpu_ms": [1.0, 1.0],
    }
    batch = {"batch": 1, "phases": [0, 0], "interrupted": False, "models": [model]}
    path = tmp_path / "r.json"
    for provider, busy in (("CPUExecutionProvider", True), ("CUDAExecutionProvider", False)):
        target = {"threads": 1, "provider": provider}
        result = {"format": 1, "machine": {}, "target": target, "batches": [batch]}
        path.write_text(json.dumps(result))
        assert any("busy" in note for note in carrying.imported(path).notes) == busy


def test_sizes_that_are_chosen() -> None:
    from onnxprune import files

    fixed, said = subjects.sized(files.load(tiny.net()), {})
    assert said == "x=1x3x8x8"
    assert fixed.shape("y") == (1, 4, 8, 8)
    assert subjects.sized(files.load(tiny.chain(3, 4)), {})[1] == ""


def test_verdicts() -> None:
    row = Row("m", None, 1, None, None, None)
    assert row.verdict == "not timed: the device is simulated"
    empty = Bench((), {"ep": "cpu", "threads": 1}, {})
    assert benches.csv([empty]).count("\n") == 1
