"""Recipes: what a file may say, from Python and on the command line, and what it is refused for."""

import inspect
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api
from onnxprune.errors import OnnxPruneError
from onnxprune.judging import DataOptions
from onnxprune.recipe import PICTURES, Recipe
from tests.graphs import custom, weight
from tests.test_cli import run

EVERYTHING = """
macs = "60%"
params = 0.7
bytes = "2MB"
peak-memory = 0.9
latency = "0.5x"
criterion = "l1"
scope = "per-group"
group-ratio = { "a*" = 0.5, "b" = "25%" }
align = 4
min-channels = 2
max-ratio = "80%"
include = ["a*"]
exclude = ["z"]
exact-only = true
allow-io-change = ["k", "v"]
steps = 2
schedule = "linear"
ep = "cpu"
ep-option = { arena = "1" }
threads = 2
min-speedup = 1.5
force = true
seed = 7
inputs = "real.npz"
recover = "distill"
calibration = "pages.npy"
samples = 64
evaluate = "module:function"
metric = "top5"
max-drop = "1%"
min-fidelity = 0.99
preset = "raw"
mean = 0.5
std = [1, 2.5, 3]
layout = "NCHW"
size = [224, 320]
per-group-from = "sensitivity.json"
verify = true

[rules]
"my::Op" = "n c *s, c -> n c *s"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.onnx, to work in."""
    monkeypatch.chdir(tmp_path)
    onnx.save(custom(), tmp_path / "m.onnx")
    return tmp_path


def recipe(text: str, name: str = "recipe.toml") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_a_recipe_says_all_that_the_library_takes() -> None:
    options = onnxprune.load_recipe(recipe(EVERYTHING)).options
    assert options["size_bytes"] == "2MB"
    assert options["per_group"] == {"a*": 0.5, "b": "25%"}
    assert options["recover"] == "distill"
    assert options["allow_io_change"] == ["k", "v"]
    assert options["pictures"] == onnxprune.Pictures("raw", [0.5], [1, 2.5, 3], "NCHW", (224, 320))
    assert options["rules"] == {"my::Op": "n c *s, c -> n c *s"}
    known = {*inspect.signature(api.prune).parameters, *DataOptions.__annotations__, "pictures"}
    assert options.keys() <= known
    left = {"model", "ratio", "output", "plan_output", "report_output", "progress", "options"}
    assert {*Recipe.model_fields} - {*PICTURES, "ort_extensions"} - {"ratio"} == (
        {*inspect.signature(api.prune).parameters} - left
    ) | {"samples", "metric", "max_drop", "min_fidelity"}


def test_toml_and_json_and_the_names_of_python_are_the_same() -> None:
    data = {"peak_bytes": 0.5, "rules": {"my::Op": "... -> ..."}, "ep_options": {"a": "b"}}
    text = 'peak-memory = 0.5\nep-option = {a = "b"}\n[rules]\n"my::Op" = "... -> ..."\n'
    found = onnxprune.load_recipe(recipe(json.dumps(data), "recipe.json"))
    assert found == onnxprune.load_recipe(recipe(text))


def test_files_are_looked_for_beside_the_recipe() -> None:
    text = 'calibration = "pages.npy"\nevaluate = "own:labelled"\nort-extension = ["lib.so"]'
    path = recipe(text, "elsewhere/recipe.toml")
    assert onnxprune.load_recipe(path).calibration == "pages.npy"
    Path("elsewhere/pages.npy").touch()
    Path("elsewhere/lib.so").touch()
    found = onnxprune.load_recipe(path)
    assert found.calibration == "elsewhere/pages.npy"
    assert found.evaluate == "own:labelled"
    assert found.ort_extensions == ["elsewhere/lib.so"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('macs = "lots"', "key 'macs': the amount 'lots' can't be read: give a fraction"),
        ("macs = true", "key 'macs': it should be a valid number or a valid string, not True"),
        ('peak-memory = "8MB"\npeak_bytes = 3', "key 'peak_bytes': it says the same as 'peak-mem"),
        ('max-ratio = "x"', "key 'max-ratio': the share 'x' can't be read"),
        ('latency = "soon"', "key 'latency': the latency 'soon' can't be read"),
        ("mac = 1", "key 'mac': there is no such option: did you mean 'macs'?"),
        (
            "no-balanced = true",
            "key 'no-balanced': there is no such option: write balanced = false",
        ),
        ("output = 'x'", "key 'output': there is no such option: see prune --help"),
        ("steps = 0", "key 'steps': it should be greater than or equal to 1, not 0"),
        ('scope = "x"', "key 'scope': it should be 'global', 'uniform', 'by-cost' or 'per-group'"),
        ('criterion = "best"', "key 'criterion': 'best' is no criterion: choose one of activation"),
        ('align = "x"', "key 'align': it should be 'auto' or a valid integer, not 'x'"),
        ("size = [1]", r"key 'size': \[1\] is no size: give one number, or \[height, width\]"),
        ('[rules]\n"a::B" = "n c -> n d"', "key 'rules', 'a::B': rule 'n c -> n d': no operand"),
        ('[rules]\nConv = "n c -> n c"', "key 'rules': operator Conv has a built-in rule"),
        ('[group-ratio]\n"a*" = "x"', r"key 'group-ratio', 'a\*': the share 'x' can't be read"),
        ("a = " + "[" * 9999, "recipe 'recipe.toml' is no TOML: maximum recursion depth exceeded"),
        ("=", r"recipe 'recipe.toml' is no TOML: Invalid statement \(at line 1"),
    ],
)
def test_what_a_recipe_can_not_say(text: str, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        onnxprune.load_recipe(recipe(text))


def test_what_is_no_recipe() -> None:
    with pytest.raises(OnnxPruneError, match=r"'r\.yaml' is neither \.toml nor \.json: give"):
        onnxprune.load_recipe("r.yaml")
    with pytest.raises(OnnxPruneError, match=r"recipe 'r\.toml' can't be read: No such file"):
        onnxprune.load_recipe("r.toml")
    with pytest.raises(OnnxPruneError, match=r"'r\.json' holds no keys: give options with"):
        onnxprune.load_recipe(recipe("[1]", "r.json"))


RULES = '[rules]\n"my::Op" = "n c *s, c -> n c *s"\n'


def test_a_recipe_gives_rules_to_every_command_that_reads_a_model() -> None:
    name = recipe('align = 1\nratio = 0.5\nverify = false\ncriterion = "l1"\n' + RULES)
    told = json.loads(run("inspect", "m.onnx", "--recipe", name, "--json").stdout)
    assert [group["name"] for group in told["groups"]] == ["w1:0"]
    assert "group w1:0" in run("explain", "m.onnx", "w1:0", "--recipe", name).stdout
    run("prune", "m.onnx", "--recipe", name, "-o", "s.onnx", "--plan", "p.json")
    run("apply", "m.onnx", "p.json", "--recipe", name, "-o", "again.onnx")
    assert Path("s.onnx").read_bytes() == Path("again.onnx").read_bytes()
    found = run("verify", "m.onnx", "s.onnx", "--plan", "p.json", "--recipe", name, code=2)
    assert "my:Op" in found.output.replace("::", ":")  # nobody can run it, so far we come
    given = onnxprune.load_recipe(name)
    small, report = onnxprune.prune("m.onnx", **given.options)
    assert small == onnx.load("s.onnx")
    assert report.settings["criterion"] == "l1"


def test_the_command_line_comes_before_a_recipe() -> None:
    name = recipe('macs = 0.5\nalign = 4\nverify = false\ncriterion = "l1"\nseed = 5\n' + RULES)
    small = ["prune", "m.onnx", "--recipe", name, "-o", "s.onnx", "--report", "r.json"]

    def settings(*more: str) -> dict[str, object]:
        run(*small, *more)
        found: dict[str, object] = json.loads(Path("r.json").read_text("utf-8"))["settings"]
        return found

    own = settings()
    assert (own["criterion"], own["align"], own["macs"], own["seed"]) == ("l1", 4, 0.5, 5)
    own = settings("--criterion", "l2", "--align", "1", "--macs", "0.75")
    assert (own["criterion"], own["align"], own["macs"], own["seed"]) == ("l2", 1, 0.75, 5)
    own = settings("--ratio", "0.25")
    assert own["ratio"] == 0.25
    assert own.get("macs") is None


def test_pictures_and_recovery_come_through() -> None:
    """What the library is told by a recipe is what it is told by the options themselves."""
    name = recipe(
        'ratio = 0.5\nverify = false\nrecover = false\ncalibration = "x.npy"\nsamples = 3\n'
        "mean = [0.5, 1]\nsize = [4, 5]\n" + RULES
    )
    told: dict[str, object] = {}
    np.save("x.npy", weight(1, 4, 3, 4, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "prune", lambda *_, **given: told.update(given) or 1 / 0)
        run("prune", "m.onnx", "--recipe", name, "-o", "s.onnx", code=3)
    assert told["recover"] is False
    assert told["samples"] == 3
    assert told["pictures"] == onnxprune.Pictures(mean=(0.5, 1.0), size=(4, 5))
    assert told["verify"] is False
    assert told["rules"] == {"my::Op": "n c *s, c -> n c *s"}


def test_options_that_exclude_each_other_go_by_the_command_line() -> None:
    both = recipe('ratio = 0.5\nrecover = "distill"\nscope = "uniform"\n' + RULES)
    found = run(
        *("prune", "m.onnx", "--recipe", both, "-o", "s.onnx", "--no-recover", "--no-verify"),
        *("--per-group-from", "none.json"),
        code=2,
    )
    assert "'none.json' can't be read" in " ".join(found.output.split())


def test_a_recipe_is_not_written_over_and_a_bad_one_is_told() -> None:
    name = recipe("ratio = 0.5\nverify = false\n" + RULES)
    found = run("prune", "m.onnx", "--recipe", name, "-o", name, code=2)
    assert "which this command reads" in " ".join(found.output.split())
    bad = recipe("macz = 1", "bad.toml")
    found = run("inspect", "m.onnx", "--recipe", bad, code=2)
    assert "key 'macz': there is no such option" in " ".join(found.output.split())
