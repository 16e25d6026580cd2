"""Bad input: one sentence on stderr, exit code 2, no traceback, nothing written."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper
from typer.testing import CliRunner

from onnxprune.cli import app
from tests import tiny

PRUNE = ["prune", "m.onnx", "-o", "small.onnx"]
HALF = [*PRUNE, "--macs", "0.5"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.onnx, to work in."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "m.onnx")
    return tmp_path


def refused(arguments: list[str], message: str, code: int = 2) -> str:
    """Run; check the code, that one line says it, and that nothing was written."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert after == before
    return result.stderr


def externals(proto: onnx.ModelProto) -> onnx.ModelProto:
    external_data_helper.convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    onnx.save(proto, "m.onnx")
    return proto


def write(path: str, data: bytes) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(data)


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[], object]:
    """m.onnx with a change."""

    def make() -> None:
        proto = tiny.net()
        change(proto)
        tiny.save(Path("m.onnx"), proto)

    return make


def set_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 999


def short_data() -> None:
    externals(tiny.net())
    Path("w.bin").write_bytes(Path("w.bin").read_bytes()[:100])


def no_data() -> None:
    externals(tiny.net())
    Path("w.bin").unlink()


MODELS: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (Path("m.onnx").unlink, "'m.onnx' can't be read: No such file or directory"),
    "text": (write("m.onnx", b"hello, this is no model"), "'m.onnx' is no ONNX"),
    "empty": (write("m.onnx", b""), "'m.onnx' is no ONNX model"),
    "zip": (write("m.onnx", b"PK\x03\x04" + bytes(100)), "'m.onnx' is no ONNX"),
    "truncated": (
        lambda: Path("m.onnx").write_bytes(Path("m.onnx").read_bytes()[:-500]),
        "'m.onnx' is no ONNX file, or is cut short",
    ),
    "no graph": (changed(lambda p: p.ClearField("graph")), "it has no graph with nodes"),
    "no opset": (changed(lambda p: p.ClearField("opset_import")), "names no opset"),
    "opset": (changed(set_opset), "uses opset 999"),
    "no data": (no_data, "keeps tensor 'w1' in 'w.bin', which is not beside it"),
    "short data": (short_data, "is cut short"),
    "loose": (
        changed(lambda p: p.graph.node[1].input.__setitem__(0, "nowhere")),
        "reads 'nowhere', which nothing makes",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_refused(name: str) -> None:
    make, message = MODELS[name]
    make()
    refused(HALF, message)


def test_a_folder_is_no_model(folder: Path) -> None:
    (folder / "d").mkdir()
    refused(["inspect", "d"], "'d' can't be read: Is a directory")


def test_a_model_without_groups_says_why() -> None:
    tiny.save(Path("m.onnx"), tiny.frozen())
    refused(HALF, "'m.onnx' has no group that can be pruned: 'w', axis 0: it is an axis of a graph")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no budget is given: give a ratio"),
        (["--ratio", "0.5", "--macs", "0.5"], "a ratio and a budget are given"),
        (["--ratio", "0"], "ratio is 0: the share that goes lies between"),
        (["--ratio", "1"], "ratio is 1:"),
        (["--ratio", "1.5"], "ratio is 1.5:"),
        (["--ratio", "-0.1"], "ratio is -0.1:"),
        (["--ratio", "nan"], "ratio is nan:"),
        (["--macs", "0"], "the amount '0' leaves nothing"),
        (["--macs", "half"], "the amount 'half' can't be read"),
        (["--bytes", "2 parsecs"], "the amount '2 parsecs' can't be read"),
        (["--macs", "0.5", "--criterion", "l3"], "criterion 'l3' is not known: choose one of"),
        (["--macs", "0.5", "--scope", "galactic"], "scope is 'galactic': it must be one of"),
        (["--macs", "0.5", "--scope", "per-group"], "the scope per-group and ratios by pattern"),
        (["--scope", "per-group", "--group-ratio", "w1"], "--group-ratio 'w1' can't be read"),
        (["--scope", "per-group", "--group-ratio", "w1=x"], "the share 'x' can't be read: give"),
        (["--ratio", "half"], "the share 'half' can't be read: give one such as 0.5 or 50%"),
        (["--ratio", "200%"], "ratio is 2: the share that goes lies between"),
        (["--macs", "0.5", "--align", "odd"], "--align is 'odd'"),
        (["--macs", "0.5", "--align", "0"], "--align is '0'"),
        (["--macs", "0.5", "--min-channels", "0"], "min_channels is 0: it must be at least 1"),
        (["--macs", "0.5", "--max-ratio", "2"], "max_ratio is 2: it must be"),
        (["--macs", "0.5", "--steps", "0"], "steps is 0"),
        (["--macs", "0.5", "--seed", "-1"], "seed is -1: it must be 0 or more"),
        (["--macs", "0.5", "--min-speedup", "nan"], "min_speedup is nan: it must be above 0"),
        (["--macs", "0.5", "--min-speedup", "0"], "min_speedup is 0: it must be above 0"),
        (["--macs", "0.5", "--schedule", "cubic"], "is for several steps, and there is one"),
        (
            ["--macs", "0.5", "--steps", "2", "--schedule", "square"],
            "there is no schedule 'square': choose exp",
        ),
        (["--macs", "0.5", "--include", "nothing*"], "--include 'nothing*' matches no group of 'm"),
        (
            ["--scope", "per-group", "--group-ratio", "nothing*=0.5"],
            "--group-ratio 'nothing*' matches no group of 'm",
        ),
        (["--ratio", "0.5", "--include", "w1*", "--include", "w9"], "--include 'w9' matches no"),
        (["--macs", "0.5", "--rule", "Foo"], "--rule 'Foo' can't be read"),
        (["--macs", "0.5", "--rule", "Relu=... -> ..."], "operator Relu has a built-in rule (see"),
        (["--macs", "0.5", "--rule", "my::A=c -> d"], "no operand has the letter 'd' of a result"),
        (["--macs", "0.5", "--rule", "a::B=x y"], "rule 'x y'"),
        (["--macs", "0.5", "--no-verify", "--inputs", "i.npz"], "--inputs are for the verif"),
        (["--macs", "0.0001"], "of the MACs can go"),
        (["--macs", "101"], "--macs 101: at most"),
        (["--params", "101"], "of the parameters can go"),
        (["--macs", "2000"], "--macs 2.00 k: at most 9"),
        (["--bytes", "1kB"], "--bytes 1.00 kB: at most"),
        (["--bytes", "101"], "of the bytes can go"),
        (["--peak-memory", "101"], "peak memory of 101 B can't be reached: ONNX Runtime plans"),
        (
            ["--macs", "0.5", "--plan", "small.onnx"],
            "the plan can't be written to 'small.onnx', which is to hold the model: give another",
        ),
        (
            ["--macs", "0.5", "--report", "m.onnx"],
            "the report can't be written to 'm.onnx', which this command reads: give another",
        ),
        (["--macs", "0.5", "--report", "no/r.json"], "there is no folder 'no'"),
    ],
)
def test_a_bad_option_is_refused(options: list[str], message: str) -> None:
    refused([*PRUNE, *options], message)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("m.onnx", "the model can't be written to 'm.onnx', which this command reads"),
        ("./no/../m.onnx", "give another path"),
        ("no/small.onnx", "there is no folder 'no'"),
        ("d", "it is a folder"),
    ],
)
def test_a_bad_output_is_refused(folder: Path, output: str, message: str) -> None:
    (folder / "d").mkdir()
    refused(["prune", "m.onnx", "-o", output, "--macs", "0.5"], message)


def test_no_output_is_refused() -> None:
    refused(["prune", "m.onnx", "--macs", "0.5"], "nothing to write: give -o FILE")
    refused(["apply", "m.onnx", "p.json"], "nothing to write: give -o FILE")


@pytest.mark.parametrize(
    "arguments",
    [[*HALF, "--nope"], ["nope"], ["prune"], [*HALF, "--steps", "many"], ["verify", "m.onnx", "m"]],
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), "m.onnx")

    monkeypatch.setattr(Path, "read_bytes", read)
    result = CliRunner().invoke(app, ["inspect", "m.onnx"])
    assert result.exit_code == 2
    assert result.stderr == "onnxprune: 'm.onnx' can't be read: Permission denied\n"


def test_a_folder_that_may_not_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(HALF, "the folder may not be written to")


@pytest.mark.parametrize("last", [["--plan", "p.json"], []])
def test_a_failing_write_is_reported(last: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    refused([*HALF, *last], "No space left on device")


def plan(**changes: object) -> dict[str, object]:
    """A plan for ``tiny.net()``."""
    kept = [0, 1, 2, 3, 4, 5, 6, 7]
    axes = {"w1": {"0": kept}, "b1": {"0": kept}, "w2": {"1": kept}}
    return {"format": 1, "initializers": axes, **changes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'p.json' is no plan"),
        ("{", "'p.json' is no plan"),
        ("[]", "'p.json' is no plan"),
        ('{"format": 2}', "'p.json' is no plan: format"),
        ('{"formt": 1}', "'p.json' is no plan: formt"),
        (json.dumps(plan(initializers={"w1": {"0": ["a"]}})), "'p.json' is no plan"),
        (json.dumps(plan(initializers={"w1": {"x": [0]}})), "'p.json' is no plan"),
        (json.dumps(plan(initializers={"w1": {"0": [-1]}})), "'p.json' is no plan"),
        (json.dumps(plan(initializers={"v9": {"0": [0]}})), "it was made for another model"),
        (json.dumps(plan(initializers={"w1": {"0": [70]}})), "'w1', axis 0: has 16 channels"),
        (json.dumps(plan(initializers={"w1": {"7": [0]}})), "'w1', axis 7: the tensor has 4 axes"),
        (json.dumps(plan(initializers={"w1": {"0": []}})), "the plan keeps nothing"),
        (json.dumps(plan(initializers={"w1": {"0": [1, 1]}})), "'w1', axis 0"),
        (json.dumps(plan(initializers={"w1": {"1": [0]}})), "'w1', axis 1: can't be pruned"),
        (
            json.dumps(plan(initializers={"w1": {"0": [0, 1]}, "b1": {"0": [2, 3]}})),
            "contradicts what the plan keeps elsewhere",
        ),
    ],
)
def test_a_bad_plan_is_refused(text: str, message: str) -> None:
    Path("p.json").write_text(text)
    tiny.save(Path("s.onnx"))
    refused(["apply", "m.onnx", "p.json", "-o", "small.onnx"], message)
    refused(["verify", "m.onnx", "s.onnx", "--plan", "p.json"], message)


def test_a_pruned_model_that_is_none_is_refused() -> None:
    Path("p.json").write_text(json.dumps(plan()))
    Path("s.onnx").write_bytes(b"no model")
    refused(["verify", "m.onnx", "s.onnx", "--plan", "p.json"], "'s.onnx' is no ONNX")
    refused(["verify", "m.onnx", "s2.onnx", "--plan", "p.json"], "'s2.onnx' can't be read")


def test_a_missing_plan_is_refused() -> None:
    refused(
        ["apply", "m.onnx", "p.json", "-o", "small.onnx"], "the plan 'p.json' can't be read: No"
    )


def test_a_plan_that_is_no_text_is_refused() -> None:
    Path("p.json").write_bytes(b"\xff\xfe\x00")
    message = "the plan 'p.json' can't be read: it is no UTF-8 text"
    refused(["apply", "m.onnx", "p.json", "-o", "small.onnx"], message)


def test_a_plan_does_not_go_over_the_model() -> None:
    Path("p.json").write_text(json.dumps(plan()))
    refused(["apply", "m.onnx", "p.json", "-o", "p.json"], "the model can't be written to 'p.json'")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((1, 3, 8, 8), np.float32)}, "has no array 'x': it holds 'z'"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, "input 'x', axis 3: has size 9"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, "the model wants 4 axes"),
        ({"x": np.zeros((1, 3, 8, 8), np.int64)}, "input 'x' has type int64"),
    ],
)
def test_bad_inputs_are_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("i.npz", **arrays)  # type: ignore[arg-type]
    refused([*HALF, "--inputs", "i.npz"], message)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_no_npz_is_refused(data: bytes) -> None:
    Path("i.npz").write_bytes(data)
    refused([*HALF, "--inputs", "i.npz"], "'i.npz' can't be read as an .npz file")


def test_missing_inputs_are_refused() -> None:
    refused([*HALF, "--inputs", "none.npz"], "'none.npz' can't be read")


def test_an_unknown_name_is_not_explained() -> None:
    refused(["explain", "m.onnx", "w9"], "has no group or value 'w9'")
    refused(["explain", "m.onnx", "w1:9"], "'w1' has 4 axes, so there is no axis 9")


def test_an_unknown_operator_is_refused() -> None:
    refused(["rules", "Kohlrabi"], "there is no operator 'Kohlrabi'")
