"""The command line: what it writes, prints and exits with."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console
from typer.testing import CliRunner

from onnxprune import amounts, api, cli, finishing
from onnxprune.budget import MAX_RATIO
from onnxprune.cli import judged, options, shell
from onnxprune.cli.prune import CHOICES
from onnxprune.compare import INCOMPARABLE
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.judging import DataOptions
from onnxprune.notation import parse
from onnxprune.passes.score import CRITERIA, DATA_DRIVEN, DEFAULT
from onnxprune.passes.shrink import shrink
from onnxprune.plan import read_plan
from onnxprune.report import console, tables
from onnxprune.report.examples import EXAMPLES, examples
from onnxprune.rules import BUILT_IN
from onnxprune.rules.frozen import FROZEN
from onnxprune.verdict import Check, Verification
from tests import tiny

HALF = ["prune", "m.onnx", "-o", "small.onnx", "--ratio", "0.5"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.onnx, to work in."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "m.onnx")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def files() -> set[str]:
    return {path.name for path in Path().iterdir()}


def widths(path: str) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}


def output(path: str) -> Any:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})[0]


def test_prune_writes_a_smaller_model_and_shows_it() -> None:
    result = run(*HALF, "--plan", "p.json", "--report", "r.json")
    assert widths("small.onnx")["w2"] == (16, 8, 3, 3)
    assert output("small.onnx").shape == (1, 4, 8, 8)
    assert files() == {"m.onnx", "small.onnx", "p.json", "r.json"}
    for shown in ("w1:0", "16 -> 8", "w2:0", "32 -> 16", "MACs", "removed", "verified", "took"):
        assert shown in result.stdout, result.stdout
    assert "wrote the model to small.onnx" in result.stdout
    assert result.stderr == ""  # no progress where stderr is no terminal
    report = json.loads(Path("r.json").read_text())
    assert report["before"]["params"] > report["after"]["params"]
    assert {row["name"]: row["after"] for row in report["groups"]} == {"w1:0": 8, "w2:0": 16}
    assert read_plan(Path("p.json")).groups["w1:0"].size == 16


def test_json_is_the_report_alone() -> None:
    result = run(*HALF, "--report", "r.json", "--json")
    assert result.stdout == Path("r.json").read_text()
    assert result.stderr == ""


def test_quiet_prints_nothing() -> None:
    result = run(*HALF, "--quiet")
    assert result.output == ""
    assert files() == {"m.onnx", "small.onnx"}


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_dry_run_writes_nothing(extra: list[str]) -> None:
    shown = run(*HALF, "--plan", "p.json", "--report", "r.json", "--dry-run", *extra).stdout
    assert files() == {"m.onnx"}
    assert "w2:0" in shown
    assert extra or "dry run: nothing was written" in shown


def test_a_plan_alone_may_be_written() -> None:
    run("prune", "m.onnx", "--ratio", "0.5", "--plan", "p.json")
    assert files() == {"m.onnx", "p.json"}


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in DATA_DRIVEN])
def test_apply_replays_a_plan_to_the_byte(criterion: str) -> None:
    run(*HALF, "--criterion", criterion, "--plan", "p.json")
    shown = run("apply", "m.onnx", "p.json", "-o", "again.onnx", "--report", "r.json").stdout
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()
    assert "16 -> 8" in shown
    assert json.loads(Path("r.json").read_text())["after"]["params"] > 0


def test_the_same_seed_gives_the_same_files() -> None:
    for name in "ab":
        options = ["--criterion", "random", "--seed", "7", "--macs", "0.5", "--align", "1"]
        run("prune", "m.onnx", "-o", f"{name}.onnx", *options, "--plan", f"{name}.json")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_a_target_that_is_there_is_replaced() -> None:
    Path("small.onnx").write_bytes(b"old")
    run(*HALF)
    assert widths("small.onnx")["w1"] == (8, 3, 3, 3)


def test_verify_says_whether_it_is_the_same() -> None:
    run(*HALF, "--plan", "p.json")
    arguments = ["verify", "m.onnx", "small.onnx", "--plan", "p.json"]
    assert "verified" in run(*arguments).stdout
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["ok"]
    assert found["error"] <= 1e-5
    assert run(*arguments, "--quiet").output == ""
    np.savez("i.npz", x=np.ones((2, 3, 8, 8), np.float32))
    run(*arguments, "--inputs", "i.npz")


@pytest.mark.parametrize("extra", [[], ["--json"], ["--quiet"]])
def test_verify_exits_with_1_on_a_difference(extra: list[str]) -> None:
    run(*HALF, "--plan", "p.json")
    wrong = onnx.load("small.onnx")
    wrong.graph.initializer[0].raw_data = bytes(len(wrong.graph.initializer[0].raw_data))
    tiny.save(Path("small.onnx"), wrong)
    result = run("verify", "m.onnx", "small.onnx", "--plan", "p.json", *extra, code=1)
    assert result.stderr.startswith("onnxprune: ")
    assert "'y'" in result.stderr
    assert result.output.count("is not the masked original") == 1
    if "--json" in extra:
        assert json.loads(result.stdout)["ok"] is False


def test_a_failed_verification_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VerificationError("output 'y' differs by 0.1")

    monkeypatch.setattr(finishing, "verify", fail)
    result = run(*HALF, "--plan", "p.json", "--report", "r.json", code=1)
    assert result.stderr == "onnxprune: output 'y' differs by 0.1\n"
    assert result.stdout == ""
    assert files() == {"m.onnx"}
    assert "not verified" in run(*HALF, "--no-verify").stdout


def wrongly(*arguments: Any) -> onnx.ModelProto:
    """Shrink, and lose the weights of the first tensor."""
    made = shrink(*arguments)
    made.graph.initializer[0].raw_data = bytes(len(made.graph.initializer[0].raw_data))
    return made


@pytest.mark.parametrize("extra", [[], ["--json"], ["-q"]])
@pytest.mark.parametrize("command", ["prune", "apply"])
def test_a_failed_verification_leaves_a_report(
    command: str, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("prune", "m.onnx", "--ratio", "0.5", "--plan", "given.json")
    monkeypatch.setattr(finishing, "shrink", wrongly)
    told = [*HALF, "--plan", "p.json"]
    told = told if command == "prune" else ["apply", "m.onnx", "given.json", "-o", "small.onnx"]
    result = run(*told, "--report", "r.json", *extra, code=1)
    assert files() == {"m.onnx", "given.json", "r.json"}
    found = json.loads(Path("r.json").read_text())
    assert found["verification"]["ok"] is False
    assert "the first value that diverges is 'c1'" in found["verification"]["failure"]
    assert found["after"]["params"] < found["before"]["params"]
    times = 1 + 3 * ("--json" in extra)  # the failure, its summary, and why it was refused
    assert result.output.count("the first value that diverges is 'c1'") == times
    assert result.stderr.startswith("onnxprune: the pruned model is not the masked original: ")
    assert result.stderr.count("\n") == 1
    if extra == ["-q"]:
        assert result.stdout == ""
    elif extra == ["--json"]:
        assert result.stdout == Path("r.json").read_text()
    else:
        assert "DIFFERS" in result.stdout
        assert "wrote the report to r.json" in result.stdout
        assert "wrote the model" not in result.stdout


def test_a_failed_dry_run_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "shrink", wrongly)
    run(*HALF, "--report", "r.json", "--dry-run", code=1)
    assert files() == {"m.onnx"}


def test_what_can_not_be_compared_is_called_so() -> None:
    checks = (Check("y", INCOMPARABLE, 1e-5, 3), Check("z", 0.5, 1e-5, 3))
    screen = io.StringIO()
    Console(file=screen, width=99).print(tables.verification(Verification(1e-5, checks, "bad")))
    assert "incomparable" in screen.getvalue()
    assert "5.0e-01" in screen.getvalue()
    assert "e+308" not in screen.getvalue()


@pytest.mark.parametrize("option", ["--plan", "--report"])
@pytest.mark.parametrize("name", ["write_text", "replace"])
def test_a_plan_that_can_not_be_written_leaves_no_model(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = getattr(Path, name)

    def fail(self: Path, *arguments: Any, **keywords: Any) -> Any:
        if ".p.json." in self.name:
            raise OSError(28, os.strerror(28))
        return write(self, *arguments, **keywords)

    monkeypatch.setattr(Path, name, fail)
    result = run(*HALF, option, "p.json", code=2)
    assert result.output == "onnxprune: 'p.json' can't be written: No space left on device\n"
    assert files() == {"m.onnx"}


def broken(*_: object) -> None:
    raise ValueError("operands could not\nbe broadcast")


def test_a_bug_is_no_failed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "shrink", broken)
    result = run(*HALF, code=3)
    assert result.output == (
        "onnxprune: internal error: ValueError: operands could not be broadcast; this is a bug of "
        "onnxprune: please report it with the traceback that --debug shows\n"
    )
    assert files() == {"m.onnx"}


@pytest.mark.parametrize("where", ["before", "behind", "environment"])
def test_debug_shows_the_traceback(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "shrink", broken)
    arguments = {"before": ["--debug", *HALF], "behind": [*HALF, "--debug"]}.get(where, HALF)
    if where == "environment":
        monkeypatch.setenv("ONNXPRUNE_DEBUG", "1")
    stderr = run(*arguments, code=3).stderr
    assert stderr.startswith("Traceback")
    assert "in broken" in stderr
    assert stderr.endswith("please report it with this traceback\n")


@pytest.mark.parametrize(("owner", "name"), [(finishing, "shrink"), (Path, "replace")])
def test_an_interrupt_leaves_nothing(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupt)
    result = run(*HALF, code=130)
    assert result.output == "onnxprune: interrupted\n"
    assert files() == {"m.onnx"}


def test_an_interrupt_before_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shell, "app", interrupt)
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert capsys.readouterr().err == "onnxprune: interrupted\n"


def test_lack_of_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(finishing, "shrink", fail)
    assert "not enough memory" in run(*HALF, code=2).stderr


def test_inspect_shows_groups_and_what_is_frozen() -> None:
    shown = run("inspect", "m.onnx").stdout
    for text in ("opset", "17", "2 groups can be pruned", "w1:0", "frozen because", "graph input"):
        assert text in shown, shown
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)
    assert [row["name"] for row in found["groups"]] == ["w1:0", "w2:0"]
    assert found["params"] == 16 * 27 + 16 + 32 * 16 * 9 + 4 * 32


def test_inspect_shows_a_model_without_groups() -> None:
    tiny.save(Path("m.onnx"), tiny.frozen())
    assert "no group can be pruned" in run("inspect", "m.onnx").stdout


def long(name: str) -> str:
    return f"/backbone/{'encoder/' * 20}{name}"


def test_long_names_are_cut_in_tables_alone() -> None:
    proto = tiny.net()
    for node in proto.graph.node:
        node.input[1:] = [long(name) for name in node.input[1:]]
    for tensor in proto.graph.initializer:
        tensor.name = long(tensor.name)
    tiny.save(Path("m.onnx"), proto)
    for arguments in (["inspect", "m.onnx"], HALF):
        shown = run(*arguments).stdout
        assert re.search(r"^/backbone/enc.*….*/w2:0 +exact ", shown, re.MULTILINE), shown
        assert long("w2") not in shown
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)
    assert found["groups"][1]["name"] == long("w2") + ":0"
    assert tables.short("x" * 60) == "x" * 60
    assert tables.short("a" * 30 + "-" + "z" * 30) == "a" * 29 + "…" + "z" * 30


def test_what_rules_keep_whole_is_one_line_the_last() -> None:
    shown = run("inspect", "m.onnx").stdout
    line = "whole by the rules of Conv: kernel sizes, ids and the like"
    assert shown.count("whole by the rules") == 1
    assert re.search(line + r"\s+w1:2 \(3\)\s+4$", shown, re.MULTILINE)
    assert shown.index("it is an axis of a graph output") < shown.index(line)


def test_costs_say_what_inputs_they_are_for() -> None:
    assert "\nMACs for one sample, x: 1x3x8x8\n" in run("inspect", "m.onnx").stdout
    assert "\nMACs for one sample, x: 1x3x8x8\n" in run(*HALF).stdout
    assert json.loads(run(*HALF, "--json").stdout)["inputs"] == {"x": [1, 3, 8, 8]}
    assert json.loads(run("inspect", "m.onnx", "--json").stdout)["inputs"] == {"x": [1, 3, 8, 8]}
    shapes: dict[str, tuple[int, ...]] = {f"x{k}": (8, k) for k in range(9)}
    found = replace(api.inspect("m.onnx"), inputs=shapes)
    screen = io.StringIO()
    Console(file=screen, width=99).print(tables.inspection(found))
    assert "MACs for x0: 8x0, x1: 8x1, " in screen.getvalue()
    assert "x5: 8x5 and 3 more inputs" in screen.getvalue()
    shapes = {"x": (1, 80, 100), "lengths": (7,), "scale": ()}
    Console(file=screen, width=99).print(tables.inspection(replace(found, inputs=shapes)))
    assert "MACs for one sample, x: 1x80x100, lengths: 7, scale: scalar\n" in screen.getvalue()


def test_long_tables_are_cut() -> None:
    tiny.save(Path("m.onnx"), tiny.chain(*[8] * 31))
    assert "... and 9 more" in run("inspect", "m.onnx").stdout
    assert "... and" not in run("inspect", "m.onnx", "--all-groups").stdout
    assert "... and 9 more" in run(*HALF, "--no-verify").stdout
    assert "... and" not in run(*HALF, "--no-verify", "--all-groups").stdout


def test_the_largest_groups_come_first() -> None:
    tiny.save(Path("m.onnx"), tiny.chain(8, 4, 32, 32, 8))
    shown = run(*HALF).stdout
    places = [shown.index(name) for name in ("w2:0", "w1:0", "w0:0")]
    assert places == sorted(places)


def test_names_are_printed_as_they_are() -> None:
    proto = tiny.net()
    for node in proto.graph.node:
        node.input[:] = [name.replace("w2", "[red]:smile:w2") for name in node.input]
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("w2", "[red]:smile:w2")
    tiny.save(Path("m.onnx"), proto)
    assert "[red]:smile:w2:0" in run("inspect", "m.onnx").stdout
    assert "[red]:smile:w2" in run("explain", "m.onnx", "[red]:smile:w2:0").stdout


def test_explain_tells_of_groups_values_and_axes() -> None:
    assert "w2, axis 1 (contracted)" in run("explain", "m.onnx", "w1:0").stdout
    assert "group w1:0" in run("explain", "m.onnx", "r1").stdout
    assert "it is an axis of a graph input" in run("explain", "m.onnx", "x:1").stdout
    assert "graph output" in run("explain", "m.onnx", "y:1").stdout


def test_a_rule_can_be_given() -> None:
    tiny.save(Path("m.onnx"), tiny.net(activation="Wave", domain="my.domain"))
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)
    assert "my.domain::Wave" in found["uncovered"]
    assert "my.domain::Wave" in run("inspect", "m.onnx").stdout
    rule = ["--rule", "my.domain::Wave=... -> ..."]
    found = json.loads(run("inspect", "m.onnx", "--json", *rule).stdout)
    assert len(found["groups"]) == 2
    run(*HALF, "--no-verify", *rule)
    assert widths("small.onnx")["w1"] == (8, 3, 3, 3)
    result = run(*HALF, *rule, code=2)  # ONNX Runtime does not know it either
    assert "ONNX Runtime can't load the model" in result.stderr
    assert "--ort-extension" in result.stderr


def test_patterns_are_repeatable() -> None:
    run(*HALF, "--include", "w1*", "--include", "w1*", "--no-verify")
    assert widths("small.onnx")["w2"] == (32, 8, 3, 3)
    shown = run(*HALF, "--exclude", "w1*", "--exclude", "w9*", "--no-verify").stdout
    assert "note: --exclude 'w9*' matches no group that can be pruned" in shown
    assert "'w1*' matches no" not in shown
    assert widths("small.onnx")["w2"] == (16, 16, 3, 3)


def test_ratios_by_pattern() -> None:
    arguments = ["--scope", "per-group", "--group-ratio", "w1*=0.25", "--group-ratio", "w2*=0.5"]
    run("prune", "m.onnx", "-o", "small.onnx", *arguments, "--no-verify")
    assert widths("small.onnx")["w2"] == (16, 12, 3, 3)


@pytest.mark.parametrize("option", ["--macs", "--params", "--bytes", "--peak-memory"])
def test_budgets_reach_the_library(option: str) -> None:
    keys = {"--bytes": "size_bytes", "--peak-memory": "peak_bytes"}
    key = keys.get(option, option[2:])
    arguments = ["prune", "m.onnx", "--dry-run", "--json", option, "0.7", "--align", "1"]
    found = json.loads(run(*arguments).stdout)
    assert found["settings"][key] == 0.7
    assert found["after"][key] <= 0.7 * found["before"][key]


def test_notes_are_shown() -> None:
    shown = run("prune", "m.onnx", "--macs", "1", "--dry-run").stdout
    assert "note: the model is within the budget as it is" in shown


def test_every_choice_of_the_library_has_an_option() -> None:
    keywords = {
        name
        for name, parameter in inspect.signature(api.prune).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    elsewhere = {"recover", "per_group", "rules", "ep_options", "verify", "progress"}
    elsewhere |= {"inputs", "output", "plan_output", "report_output"}
    keywords |= get_type_hints(DataOptions).keys()
    elsewhere |= judged.SOURCES.keys() | judged.GATES.keys() | judged.TABLE.keys() | {"pictures"}
    assert set(CHOICES) | elsewhere == keywords


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="there is no keyword argument 'mac'"):
        api.prune("model.onnx", mac=0.5)  # type: ignore[call-arg]


def test_the_rule_table() -> None:
    shown = run("rules").stdout
    assert "BatchNormalization" in shown
    assert "operators covered" in shown
    assert "n c *" in run("rules", "globalaveragepool").stdout
    assert "computed" in run("rules", "ai.onnx::Conv").stdout
    assert "com.microsoft::Gelu" in run("rules", "Gelu").stdout
    frozen = run("rules", "--frozen").stdout
    assert "NonZero" in frozen
    assert "it picks at run time" in frozen
    assert "BatchNormalization" not in frozen
    assert "exclude each other" in run("rules", "--frozen", "--missing", code=2).stderr
    rows = json.loads(run("rules", "NonZero", "--json").stdout)
    assert [(row["op"], row["state"]) for row in rows] == [("NonZero", "frozen")]


def test_every_operator_has_a_rule_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("rules", "--missing").stdout == ""
    monkeypatch.delitem(FROZEN, "NonZero")
    shown = run("rules", "--missing").stdout
    assert "NonZero" in shown
    assert "What has no rule is kept whole" in shown


def test_rules_shows_what_a_computed_rule_gives() -> None:
    assert run("rules", "Reshape").stdout == (
        "Reshape (covered; trainable)\n"
        "  computed: Cut both shapes into the smallest blocks of equal product; [1] states the "
        "result.\n"
        "  such as, with shapes in [] and constants in {}\n"
        "    [2,5,12] {2,5,3,4}:  r0 r1 (r2 r3), ~ -> r0 r1 r2 r3 | [1]=r0 r1 r2 r3\n"
        "    [2,8,4,4] {2,-1}:  r0 r1 r2 r3, ~ -> r0 (r1 r2 r3) | [1]=r0 _\n"
        "    [1,6,4,4] {1,4,6,4}:  1 _a1 _a2 r0, ~ -> 1 _b1 _b2 r0 | [1]=1 _b1 _b2 r0\n"
    )
    assert "such as" not in run("rules", "Relu").stdout
    assert "such as" not in run("rules", "NonZero").stdout
    (row,) = json.loads(run("rules", "Concat", "--json").stdout)
    assert row["examples"] == ["[1,8,4] [1,3,4] axis=1:  a0 p0 a2, a0 p1 a2 -> a0 p0+p1 a2"]
    assert "[1,8,4,4] - - {1,8,8,8}:" in run("rules", "Resize").stdout


COMPUTED = [op for op, row in BUILT_IN.items() if not isinstance(row, str)]


def test_every_computed_rule_has_examples() -> None:
    assert set(EXAMPLES) == set(COMPUTED)


@pytest.mark.parametrize("op", COMPUTED)
def test_an_example_is_a_line_of_the_notation(op: str) -> None:
    found = examples(op)
    assert len(found) == len(EXAMPLES[op])
    for text in found:
        rule = parse(text.partition(":  ")[2])
        assert len(rule.operands) >= 1
        assert rule.results


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5),
        (".5", 0.5),
        ("1", 1),
        ("2000000", 2e6),
        ("2MB", 2e6),
        ("2 mb", 2e6),
        ("512KiB", 512 * 1024),
        ("1.5GB", 1.5e9),
        ("1.5GiB", 1.5 * 2**30),
        ("300M", 3e8),
        ("2e9", 2e9),
        ("100B", 100),
        ("50%", 0.5),
        ("12.5 %", 0.125),
        ("100%", 1),
    ],
)
def test_amounts(text: str, number: float) -> None:
    assert amounts.amount(text) == number


@pytest.mark.parametrize("text", ["", "MB", "-1", "1,5GB", "50%B", "%", "1 iB", "0x10", "inf"])
def test_a_bad_amount_is_refused(text: str) -> None:
    with pytest.raises(OnnxPruneError, match=r"can't be read: give a fraction such as 0\.5"):
        amounts.amount(text)


@pytest.mark.parametrize("text", ["0", "0MB", "1e999", "0%"])
def test_an_amount_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(OnnxPruneError, match="give one above 0"):
        amounts.amount(text)


def test_more_than_all_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="'101%' is more than all: give at most 100%"):
        amounts.amount("101%")


@pytest.mark.parametrize("given", ["50", 50, 1.5, "100"])
def test_what_is_no_share_and_no_amount_is_refused(given: Any) -> None:
    with pytest.raises(OnnxPruneError, match=f"'{given}' is more than all .* give {given}% or"):
        amounts.amount(given)


def test_percents_are_shares() -> None:
    percents, shares = (
        json.loads(run("prune", "m.onnx", "--dry-run", "--json", *arguments).stdout)
        for arguments in (
            ("--macs", "50%", "--max-ratio", "80%"),
            ("--macs", "0.5", "--max-ratio", "0.8"),
        )
    )
    assert percents["settings"] == shares["settings"]
    assert percents["after"] == shares["after"]
    run(*HALF[:-1], "50%", "--no-verify")
    assert widths("small.onnx")["w1"] == (8, 3, 3, 3)
    arguments = ["--scope", "per-group", "--group-ratio", "w1*=25%", "--no-verify"]
    run("prune", "m.onnx", "-o", "small.onnx", *arguments)
    assert widths("small.onnx")["w1"] == (12, 3, 3, 3)


@pytest.mark.parametrize(
    ("number", "count", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1234, "1.23 k", "1.23 kB"),
        (123456, "123 k", "123 kB"),
        (999999, "1.00 M", "1.00 MB"),
        (2.5e9, "2.50 G", "2.50 GB"),
    ],
)
def test_figures(number: float, count: str, size: str) -> None:
    assert amounts.count(number) == count
    assert amounts.size(number) == size


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with console.progress(False, 3) as tell:
        assert tell is None
    with console.progress(True, 3) as tell:
        assert tell is not None
        tell("couple")
    assert "couple" in screen.getvalue()


@pytest.mark.parametrize(
    "command", [[], ["inspect"], ["explain"], ["prune"], ["apply"], ["verify"], ["rules"]]
)
def test_help(command: list[str]) -> None:
    assert "Usage: onnxprune" in run(*command, "--help").stdout.replace("root", "onnxprune")


def test_the_help_of_prune_explains_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("prune", "--help").stdout).split())
    assert set(options.CRITERIA) == set(CRITERIA)
    assert options.DEFAULT == DEFAULT
    for name, text in options.CRITERIA.items():
        assert f"{name}: {text}" in shown
    for text in (
        f"(default: {DEFAULT})",
        f"(default: {MAX_RATIO})",
        "(the default); uniform: every group loses the same share",
        "[default: auto]",
    ):
        assert text in shown, text


def test_the_main_help_tells_the_exit_codes() -> None:
    shown = " ".join(run("--help").stdout.split())
    for text in ("0 done", "2 bad input", "3 an internal error", "--debug", "ONNXPRUNE_DEBUG"):
        assert text in shown


def test_the_version() -> None:
    assert run("--version").stdout == "onnxprune 0.1.0\n"


def test_python_m() -> None:
    command = [sys.executable, "-m", "onnxprune", "inspect", "none.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "onnxprune: 'none.onnx' can't be read: No such file or directory\n"


def test_the_command_line_starts_without_onnx() -> None:
    code = "import onnxprune.cli, sys; print({'onnx', 'numpy', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def samples(path: str, count: int = 24) -> None:
    """Inputs of m.onnx, with the model's own choices as labels."""
    x = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    np.savez(path, x=x, y=session.run(None, {"x": x})[0].argmax(axis=1))


def test_data_judges_the_result() -> None:
    samples("d.npz")
    data = ["--calibration", "d.npz", "--samples", "16", "--evaluate", "d.npz"]
    shown = run(*HALF, *data, "--report", "r.json").stdout
    for text in ("output", "cosine", "dB", "top1 of 24 samples: 100.00 % -> "):
        assert text in shown
    report = json.loads(Path("r.json").read_text())
    assert report["evaluation"]["before"] == 1
    assert report["fidelity"][0]["output"] == "y"
    assert report["recovery"]
    plain = json.loads(
        run(*HALF[:2], *HALF[4:], *data, "--dry-run", "--no-recover", "--json").stdout
    )
    assert not plain["recovery"]
    assert plain["settings"]["criterion"] == "obs"
    assert plain["evaluation"]["after"] < report["evaluation"]["after"]


def test_a_gate_that_says_no_writes_the_report_alone() -> None:
    samples("d.npz")
    given = ["--evaluate", "d.npz", "--max-drop", "1%", "--report", "r.json", "--plan", "p.json"]
    result = run(*HALF, *given, code=1)
    assert result.stderr.startswith("onnxprune: top1 fell from 1 to ")
    assert "max_drop allows 0.01: nothing was written" in result.stderr
    assert "wrote the report to r.json" in result.stdout
    assert files() == {"m.onnx", "d.npz", "r.json"}
    result = run(*HALF, "--calibration", "d.npz", "--min-fidelity", "99.99%", code=1)
    assert "min_fidelity asks for 0.9999" in result.stderr
    run(*HALF, "--min-fidelity", "0.5", code=2)
    assert (
        "'d.npz', which this command reads"
        in run(
            "prune", "m.onnx", "-o", "d.npz", "--ratio", "0.5", "--calibration", "d.npz", code=2
        ).stderr
    )


def test_options_of_pictures_are_read() -> None:
    given = judged.arguments(
        {"preset": None, "mean": judged.numbers("0.5,1,2"), "size": judged.size("32x48"), "x": 1}
    )
    pictures = given.pop("pictures")
    assert given == {"x": 1}
    assert (pictures.mean, pictures.size) == ((0.5, 1, 2), (32, 48))
    assert judged.size("224") == (224, 224)
    for text in ("0", "3x", "axb", "4x0"):
        with pytest.raises(OnnxPruneError, match=f"--size '{text}' can't be read: give 224 or"):
            judged.size(text)
    with pytest.raises(OnnxPruneError, match="'1;2' can't be read: give one number, or one a"):
        judged.numbers("1;2")
    refused = run(*HALF, "--calibration", ".", "--preset", "raw", "--size", "9", code=2)
    assert "input 'x' takes pictures of 8x8, the size given is 9x9" in refused.stderr


def test_evaluate_shows_metrics_and_fidelity() -> None:
    samples("d.npz")
    run(*HALF)
    assert (
        run("evaluate", "m.onnx", "--evaluate", "d.npz").stdout == "top1 of 24 samples: 100.00 %\n"
    )
    shown = run(
        "evaluate", "m.onnx", "small.onnx", "--evaluate", "d.npz", "--metric", "top1"
    ).stdout
    assert "100.00 % -> " in shown
    assert "largest error" in shown
    told = run("evaluate", "m.onnx", "small.onnx", "--calibration", "d.npz", "--json").stdout
    assert json.loads(told)["evaluation"] is None
    assert json.loads(told)["fidelity"][0]["samples"] == 24


def test_sensitivity_goes_into_prune() -> None:
    samples("d.npz")
    given = ["sensitivity", "m.onnx", "--calibration", "d.npz", "--ratios", "25%,0.5"]
    shown = run(*given, "-o", "s.json").stdout
    for text in ("fall without", "25 %", "50 %", "w1:0", "wrote 4 trials to s.json and s.csv"):
        assert text in shown
    assert json.loads(run(*given, "--json").stdout) == json.loads(Path("s.json").read_text())
    assert run(*given, "--quiet").stdout == ""
    half = ["prune", "m.onnx", "-o", "small.onnx", "--macs", "0.6", "--align", "1"]
    shown = run(*half, "--per-group-from", "s.json").stdout
    assert "verified" in shown
    small = widths("small.onnx")
    table = json.loads(Path("s.json").read_text())["trials"]
    worst = max((t for t in table if t["ratio"] == 0.5), key=lambda t: t["fall"])
    kept = {"w1:0": small["w1"][0] / 16, "w2:0": small["w2"][0] / 32}
    assert kept[worst["group"]] == max(kept.values())
    assert "--per-group-from" in run("prune", "--help").stdout
    assert "--per-group-from" not in run("apply", "--help").stdout


def test_gates_without_a_budget_search() -> None:
    samples("d.npz")
    data = ["--calibration", "d.npz", "--evaluate", "d.npz", "--max-drop", "20%"]
    shown = run("prune", "m.onnx", "-o", "small.onnx", *data, "--align", "1").stdout
    assert "% is the least that the gates allow, found by bisection" in shown
    assert widths("small.onnx")["w2"] != (32, 16, 3, 3)
