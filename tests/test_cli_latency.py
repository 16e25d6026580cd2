"""The command line's options of speed, and probe."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onnxprune import api, cli
from onnxprune.alignment import Stairs
from onnxprune.errors import GateError
from onnxprune.report import steps, tables
from onnxprune.results import Pace
from onnxprune.staircase import Curve, Probe
from onnxprune.target import Target
from tests import tiny


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with m.onnx, to work in."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "m.onnx")


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_options_of_speed_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def prune(source: Path, **options: Any) -> Any:
        given.update(options)
        raise GateError("slower than the original")

    monkeypatch.setattr(api, "prune", prune)
    options = ["--latency", "0.5x", "--threads", "2", "--min-speedup", "1.5", "--force"]
    more = ["--ep", "openvino", "--ep-option", "device_type=CPU", "--dry-run"]
    done = run("prune", "m.onnx", *options, *more, code=1)
    assert done.stderr == "onnxprune: slower than the original\n"
    assert (given["latency"], given["threads"], given["min_speedup"]) == ("0.5x", 2, 1.5)
    assert (given["ep"], given["ep_options"]) == ("openvino", {"device_type": "CPU"})
    assert given["force"] is True


@pytest.mark.parametrize("text", ["soon", "0", "5 apples"])
def test_a_latency_that_can_not_be_read_is_refused(text: str) -> None:
    done = run("prune", "m.onnx", "--latency", text, "--dry-run", code=2)
    assert f"the latency '{text}' can't be read: give a share such as 0.5" in done.stderr


def test_a_probe_is_shown_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = (48, 56, 60, 63, 64)
    curve = Curve(counts, (0.1, 0.2, 0.2, 0.4, 0.2), 16, 4, 1.0)
    found = Probe({"provider": "cpu", "threads": "1"}, {"conv 3x3": curve}, Stairs())
    given: dict[str, Any] = {}

    def probe(**options: Any) -> Probe:
        given.update(options)
        return found

    monkeypatch.setattr(api, "probe", probe)
    shown = run("probe", "--threads", "2", "--no-cache").stdout
    assert (given["threads"], given["keep"], given["dtype"]) == (2, False, "float32")
    assert all(word in shown for word in ("conv 3x3", "400 us", "+100 %", "blocks of 16"))
    assert json.loads(run("probe", "--json").stdout)["stairs"]["block"] == 16
    drawn: list[Path] = []
    monkeypatch.setattr(steps, "check", lambda path: None)
    monkeypatch.setattr(steps, "draw", lambda probe, path: drawn.append(path))
    path = tmp_path / "curves.html"
    assert f"wrote the curves to {path}" in run("probe", "--plot", str(path)).stdout
    assert drawn == [path]


def test_the_measured_latency_is_told() -> None:
    pace = Pace(80.0, 40.4, 1.98, 1.9, 2.05, Target(threads=2), "0.5x", 0.5, 41.0, 2)
    said = tables.pace(pace)
    assert said == (
        "measured on cpu, threads 2: 80 ms -> 40.4 ms, 1.98x as fast (95 % interval 1.90 to 2.05); "
        "predicted 41 ms; asked for 0.5x"
    )
    assert "no difference" in tables.pace(replace(pace, speedup_low=0.9))
