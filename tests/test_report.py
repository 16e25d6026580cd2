"""Written reports: the page and the Markdown say what the JSON says, and nothing else."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxprune import api, api_bench, cli, environment, fronts, measuring, pipeline
from onnxprune.errors import OnnxPruneError
from onnxprune.metrics import Evaluation
from onnxprune.report import benches, charts, latencies, markdown, prunings, sections, writing
from onnxprune.results import Pace, Report, Try
from onnxprune.target import Target
from onnxprune.verdict import Check, Verification
from tests import tiny

ROUNDED = 5e-5  # relative: a figure is written with five digits
SHARE = 5.01e-4  # absolute: a share is written in tenths of a percent
HOSTILE = "</script><b>\"&amp;'|`_x_`*"
NUMBER = int | float


@dataclass
class Cell:
    text: str = ""
    value: Any = None


@dataclass
class Parsed(HTMLParser):
    """The tables of a page by section, and its elements."""

    tables: dict[str, list[list[list[Cell]]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    text: str = ""
    inside: list[str] = field(default_factory=list)
    title: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.inside.append(tag)
        if tag == "h2":
            self.title = ""
        elif tag == "table":
            self.tables.setdefault(self.title, []).append([])
        elif tag == "tr":
            self.tables[self.title][-1].append([])
        elif tag in ("td", "th"):
            self.row.append(Cell())
        elif tag == "data":
            self.row[-1].value = json.loads(str(found["value"]))
        elif tag == "script":
            self.scripts.append("")

    @property
    def row(self) -> list[Cell]:
        return self.tables[self.title][-1][-1]

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        where = self.inside[-1] if self.inside else ""
        if where == "script":
            self.scripts[-1] += data
        elif where == "h2":
            self.title += data
        elif where in ("td", "th", "data"):
            self.row[-1].text += data
        else:
            self.text += data


def parsed(html: str) -> Parsed:
    page = Parsed()
    page.feed(html)
    page.close()
    return page


def md_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, without the lines under their heads."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if not line.startswith("| "):
            tables.append([])
            continue
        cells = re.split(r"(?<!\\)\|", line[1:].rstrip()[:-1])
        own = [re.sub(r"\\([\\`*\[\]<&|~_>#+-])", r"\1", cell.strip()) for cell in cells]
        if not all(re.fullmatch(r"---:?", cell) for cell in own):
            tables[-1].append(own)
    return [table for table in tables if table]


def leaves(data: Any) -> Iterator[Any]:
    """The figures in plain data, booleans with them."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for own in data:
            yield from leaves(own)
    elif isinstance(data, NUMBER):
        yield data


def values(table: list[list[Cell]]) -> list[list[Any]]:
    """The exact cells of a table's body."""
    return [[c.text if c.value is None else c.value for c in row] for row in table[1:]]


def row_of(data: dict[str, Any], *keys: str) -> list[Any]:
    cells = ["-" if data[key] is None else data[key] for key in keys]
    return [", ".join(own) if isinstance(own, list) else own for own in cells]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report with everything in it, on a model with hostile names."""
    folder = tmp_path_factory.mktemp("report")
    proto = tiny.net()
    for node in proto.graph.node:
        node.name = f"{HOSTILE}{node.name}"
        node.input[:] = [f"{HOSTILE}w1" if name == "w1" else name for name in node.input]
    proto.graph.initializer[0].name = f"{HOSTILE}w1"
    path = tiny.save(folder / "a<b>&.onnx", proto)
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    given: dict[str, Any] = {"calibration": {"x": x}}
    table = api.sensitivity(path, ratios=(0.25, 0.5), **given)
    made: Report = api.prune(path, macs=0.5, per_group_from=table, align=1, **given)[1]
    pace = Pace(12.5, 6.125, 2.04, 1.9, 2.1, Target(), "0.5x", 0.5, 6.4, 3)
    notes = (f"a note of {HOSTILE}",)
    layers = fronts.layer_changes(api.analyse(path), (proto, None), {"x": x[:1]}, Target(), {})
    tries = (
        Try(0.75, 0.625, 7.8125, 0.89, 0.97, recovered=False, chosen=False),
        Try(0.5, 0.49, 6.125, 0.875, 0.96, recovered=True, chosen=True),
    )
    made = replace(made, layers=layers, tries=tries, pace=pace, notes=notes)
    return replace(made, evaluation=Evaluation("top1", 0.9, 0.875, 16))


def render(found: Report, suffix: str) -> str:
    return writing.report_text(f"r{suffix}")(found)


@pytest.fixture(scope="module")
def page(report: Report) -> Parsed:
    return parsed(render(report, ".html"))


@pytest.fixture(scope="module")
def data(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.to_json())
    return found


def test_tables_hold_the_figures_of_the_json(page: Parsed, data: dict[str, Any]) -> None:
    (costs,) = page.tables["Before and after"]
    for row, key in zip(
        values(costs), ("macs", "params", "size_bytes", "peak_bytes", "pace"), strict=True
    ):
        ends = [data["before"].get(key, 12.5), data["after"].get(key, 6.125)]
        assert row[1:] == [*ends, 1 - ends[1] / ends[0]]
    (groups,) = page.tables["Groups"]
    keys: tuple[str, ...] = ("name", "before", "after", "mixing", "members", "macs", "macs_after")
    assert values(groups) == [row_of(r, *keys, "params", "params_after") for r in data["groups"]]
    (layers,) = page.tables["Recovery"]
    keys = ("node", "before", "after", "strength", "reason")
    assert values(layers) == [row_of(r, *keys) for r in data["recovery"]]
    (times,) = page.tables["Layers"]
    keys = ("name", "op", "before_ms", "after_ms", "before_macs", "after_macs", "groups")
    assert values(times) == [
        row_of(r, *keys, "before_kernel", "after_kernel") for r in data["layers"]
    ]
    (tries,) = page.tables["Tries"]
    keys = ("macs", "latency", "latency_ms", "metric", "fidelity", "recovered", "chosen")
    assert [row[1:] for row in values(tries)] == [row_of(r, *keys) for r in data["tries"]]
    (trials,) = page.tables["Sensitivity"]
    keys = ("group", "ratio", "before", "after", "fall", "divergence", "macs", "params", "ms")
    assert values(trials) == [row_of(r, *keys) for r in data["sensitivity"]["trials"]]
    (frozen,) = page.tables["Frozen axes"]
    assert values(frozen) == [row_of(r, "param", "axis", "size", "reason") for r in data["frozen"]]
    checks = page.tables["Verification"][1]
    keys = ("value", "error", "allowed", "count", "output", "blind", "ordering")
    assert values(checks) == [row_of(r, *keys) for r in data["verification"]["checks"]]
    assert len(data["groups"]) == len(data["recovery"]) == 2
    assert len(data["sensitivity"]["trials"]) == 4
    assert len(data["frozen"]) == 6


def test_every_figure_of_the_json_is_there_and_no_other(page: Parsed, data: dict[str, Any]) -> None:
    every = [row for tables in page.tables.values() for table in tables for row in values(table)]
    shown = {own for row in every for own in row if not isinstance(own, str)}
    (costs,) = page.tables["Before and after"]
    computed = {row[-1] for row in values(costs)}
    told = dict(data)
    told["sensitivity"] = data["sensitivity"]["trials"]
    verdict = ("ok", "blind")  # told in words
    told["verification"] = {k: v for k, v in data["verification"].items() if k not in verdict}
    unseen = [told.pop("inputs"), told["settings"].pop("per_group"), told["pace"].pop("target")]
    unseen += [told["settings"].pop(key) for key in ("stairs",) if key in told["settings"]]
    assert set(leaves(told)) - {0.0} <= shown
    assert shown - computed <= set(leaves(data))
    assert len(shown) > 60


def figure_of(text: str) -> float:
    return float(text.removesuffix(" %").replace(",", ""))


def test_what_people_read_is_the_figure_rounded(page: Parsed) -> None:
    cells = [c for ts in page.tables.values() for t in ts for row in t for c in row]
    figures = [c for c in cells if isinstance(c.value, NUMBER) and not isinstance(c.value, bool)]
    assert len(figures) > 100
    for cell in figures:
        if cell.text.endswith(" %"):
            assert figure_of(cell.text) / 100 == pytest.approx(cell.value, abs=SHARE)
        elif isinstance(cell.value, int):
            assert figure_of(cell.text) == cell.value
        else:
            assert figure_of(cell.text) == pytest.approx(cell.value, rel=ROUNDED)
    assert {c.text for c in cells if isinstance(c.value, bool)} == {"yes", "no"}


def test_markdown_has_the_tables_of_the_page(report: Report, page: Parsed) -> None:
    html = [[[c.text for c in row] for row in table] for ts in page.tables.values() for table in ts]
    assert md_tables(render(report, ".md")) == html


def test_json_is_the_report(report: Report) -> None:
    assert render(report, ".json") == report.to_json()


def test_names_are_text(report: Report, page: Parsed) -> None:
    names = [row[0].text for row in page.tables["Groups"][0][1:]]
    assert names == [f"{HOSTILE}w1:0", "w2:0"]
    tags = [tag for tag, _ in page.tags]
    assert "b" not in tags
    assert tags.count("script") == 3
    assert f"a note of {HOSTILE}" in page.text
    figures = json.loads(page.scripts[0])
    labels = figures["chart0"]["layout"]["yaxis"]["ticktext"]
    assert labels == [charts.short(f"{HOSTILE}w1:0"), "w2:0"]
    meant = "&lt;/script&gt;&lt;b&gt;\"&amp;amp;'|`_x_`*w1:0"  # plotly reads it as HTML
    assert figures["chart0"]["data"][0]["customdata"][0] == meant
    assert "<" not in page.scripts[0]
    assert f"a note of {markdown.text(HOSTILE)}" in render(report, ".md")


@pytest.mark.parametrize("mark", ["\\", "`", "*", "[", "]", "<", "&", "|", "~"])
def test_markdown_marks_mean_themselves(mark: str) -> None:
    assert markdown.text(f"a{mark}b\nc") == f"a\\{mark}b c"


def test_markdown_marks_that_mean_something_at_an_edge_alone() -> None:
    assert markdown.text("a_b -> c") == "a_b -> c"
    assert markdown.text("_a_") == "\\_a\\_"
    assert [markdown.text(f"{mark} a") for mark in ">#+-"] == ["\\> a", "\\# a", "\\+ a", "\\- a"]


def test_a_page_refers_to_nothing_outside(page: Parsed) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    policies = [own["content"] for _, own in page.tags if "http-equiv" in own]
    inside = "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    assert policies == [f"default-src 'none'; {inside}"]
    assert "http" not in page.scripts[0] + page.scripts[2] + page.text
    targets = {f"#{own['id']}" for _, own in page.tags if "id" in own}
    links = [own["href"] for tag, own in page.tags if tag == "a"]
    assert len(links) == len(set(links)) == 15
    assert set(links) <= targets


def test_a_page_can_be_heard(page: Parsed) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    drawn = [own for _, own in page.tags if own.get("class") == "chart"]
    assert len(drawn) == len(json.loads(page.scripts[0])) == 7
    assert all(own["role"] == "img" and own["aria-label"] for own in drawn)
    heads = [own.get("scope") for tag, own in page.tags if tag == "th"]
    assert set(heads) == {"col", "row"}
    regions = [own for _, own in page.tags if own.get("class") == "scroll"]
    assert all(own["tabindex"] == "0" and own["aria-label"] for own in regions)


def test_long_tables_are_folded_and_charts_cut(report: Report) -> None:
    rows = tuple(replace(report.groups[0], name=f"g{k}", macs=k, macs_after=0) for k in range(100))
    page = parsed(render(replace(report, groups=rows), ".html"))
    assert [tag for tag, _ in page.tags].count("details") == 1
    assert len(page.tables["Groups"][0]) == 101
    figures = json.loads(page.scripts[0])
    shown = figures["chart1"]["data"][0]["customdata"]
    assert shown == [f"g{k}" for k in range(60, 100)]
    assert "The 40 largest of 100; the table has all." in page.text


def test_verdicts(report: Report, page: Parsed) -> None:
    assert report.verification is not None
    assert f"Verified: {report.verification.summary()}" in page.text
    found = Verification(1e-5, (Check("y", math.inf, 1e-5, 3),), failure="'y' differs")
    text = render(replace(report, verification=found), ".md")
    assert "NOT verified: the pruned model is not the masked original: 'y' differs" in text
    assert "| y | inf | 1e-05 | 3 |" in text
    assert parsed(render(replace(report, verification=found), ".html")).tables["Verification"]
    blind = render(replace(report, verification=Verification(1e-5)), ".md")
    assert "NOT verified: nothing that varies could be compared" in blind
    assert "Not verified: the proof was switched off." in render(
        replace(report, verification=None), ".md"
    )


def test_a_front_is_a_line_over_what_all_tries_have(report: Report) -> None:
    def front(**changed: Any) -> sections.Chart | None:
        tries = tuple(replace(own, **changed) for own in report.tries)
        data = json.loads(replace(report, tries=tries).to_json())
        (own,) = (s for s in prunings.document(data).sections if s.title == "Tries")
        return next((b for b in own.blocks if isinstance(b, sections.Chart)), None)

    chart = front()
    assert chart is not None
    (line,) = chart.series
    assert (line.name, line.places, line.values) == ("metric", (0.49, 0.625), (0.875, 0.89))
    by_macs = front(latency=None, latency_ms=None, metric=None)
    assert by_macs is not None
    (line,) = by_macs.series
    assert (line.name, line.places, line.values) == ("fidelity", (0.5, 0.75), (0.96, 0.97))
    assert front(metric=None, fidelity=None) is None


def test_a_bare_report_has_no_empty_sections(report: Report) -> None:
    bare = replace(report, groups=(), recovery=(), sensitivity=None, pace=None, fidelity=())
    bare = replace(
        bare,
        evaluation=None,
        notes=(),
        layers=(),
        tries=(),
        frozen=(),
        environment={},
        verification=None,
    )
    found = [own.title for own in prunings.document(json.loads(bare.to_json())).sections]
    expected = ["Summary", "Before and after", "What was asked", "Verification", "Time by pass"]
    assert found == expected


def test_figures_that_are_none_leave_gaps() -> None:
    series = sections.Series("s", (1.0, None, math.inf), low=(0.5, 0, 0), high=(2.0, 0, 0))
    chart = sections.Chart("intervals", "t", "ms", (series,), ("a", "b", "c"))
    (trace,) = charts.figure(chart)["data"]
    assert trace["x"] == [1.0, None, None]
    assert (trace["error_x"]["array"][0], trace["error_x"]["arrayminus"][0]) == (1.0, 0.5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> measuring.Bench:
    folder = tmp_path_factory.mktemp("bench")
    pair = [
        tiny.save(folder / f"{HOSTILE.replace('/', '')}.onnx"),
        tiny.save(folder / "small.onnx", tiny.net(width=8)),
    ]
    return api_bench.bench(*pair, runs=6, profile=True, mobile=True, memory=False)


def test_bench_tables_hold_the_figures_of_the_json(bench: measuring.Bench) -> None:
    text = benches.json_text([bench])
    page = parsed(writing.rendered(Path("b.html"), text, latencies.document))
    (data,) = json.loads(text)["benches"]
    (rows,) = page.tables["Latency"]
    timings = ("runs", "p50_ms", "low_ms", "high_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms")
    ratios = ("cpu_ms", "speedup", "speedup_low", "speedup_high", "load_ms")
    expected = [
        [
            *row_of(row, "model", "batch", "verdict"),
            *row_of(row["timing"], *timings, *ratios),
            *row_of(row, "throughput_per_s", "size_bytes", "peak_bytes", "difference"),
        ]
        for row in data["rows"]
    ]
    assert values(rows) == expected
    name = "small.onnx"
    (changed,) = page.tables[f"Layers of {name}, before and after"]
    keys: tuple[str, ...] = (
        "name",
        "op",
        "before_ms",
        "after_ms",
        "before_macs",
        "after_macs",
        "groups",
    )
    keys = (*keys, "before_kernel", "after_kernel")
    assert values(changed) == [row_of(row, *keys) for row in data["changes"][name]]
    both = list(bench.profiles.values())
    for side, own in zip(("before_ms", "after_ms"), both, strict=True):
        total = math.fsum(row[side] for row in data["changes"][name])
        assert total == pytest.approx(own.total_ms)
    layers = page.tables[f"Layers of {name}"][-1]
    keys = ("name", "op", "kernel", "ms", "share", "macs", "size_bytes", "bound", "efficiency")
    profile = data["profiles"][name]
    assert values(layers) == [row_of(r, *keys, "provider", "groups") for r in profile["layers"]]
    sums = {row[0]: row[1] for row in values(page.tables[f"Layers of {name}"][1])}
    own = data["sums"][name]["operator"]
    assert {k.removeprefix("operator: "): v for k, v in sums.items() if "operator" in k} == own
    assert math.fsum(own.values()) == pytest.approx(profile["total_ms"])
    figures = json.loads(page.scripts[0])
    runs = [trace["x"] for trace in figures["chart0"]["data"]]
    assert runs == [row["timing"]["times_ms"] for row in data["rows"]]
    html = [[[c.text for c in row] for row in table] for ts in page.tables.values() for table in ts]
    assert md_tables(writing.rendered(Path("b.md"), text, latencies.document)) == html


def test_a_simulated_device_has_no_charts_of_times(bench: measuring.Bench) -> None:
    rows = tuple(replace(row, timing=None, difference=1e-6) for row in bench.rows)
    found = replace(bench, rows=rows, profiles={}, name="phone")
    text = benches.json_text([found, bench])
    page = parsed(writing.rendered(Path("b.html"), text, latencies.document))
    (shown,) = page.tables["Latency on phone"]
    assert [row[-1] for row in values(shown)] == [1e-6, 1e-6]
    assert "phone, " in page.text
    assert "not timed: the device is simulated" in page.text
    assert page.tables["Latency on this machine"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "m.onnx")
    tiny.save(tmp_path / "s.onnx", tiny.net(width=8))
    return tmp_path


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


PRUNE = ("prune", "m.onnx", "-o", "o.onnx", "--ratio", "0.5")
APPLY = ("apply", "m.onnx", "p.json", "-o", "o.onnx")
BENCH = ("bench", "m.onnx", "s.onnx", "--runs", "4")


@pytest.mark.usefixtures("folder")
def test_commands_write_reports() -> None:
    shown = run(*PRUNE, "--plan", "p.json", "--report", "r.html").stdout
    assert "wrote the report to r.html" in shown
    run(*APPLY, "--report", "a.md")
    found = json.loads(run(*BENCH, "--json", "--report", "b.json").stdout)
    assert json.loads(Path("b.json").read_text()) == found
    assert {"python", "onnx", "onnxruntime", "onnxprune"} <= found["environment"].keys()
    assert "wrote the report to B.HTML" in run(*BENCH, "--report", "B.HTML").stdout
    page = parsed(Path("r.html").read_text("utf-8"))
    after = onnx.load("o.onnx").graph.initializer
    params = sum(math.prod(t.dims) for t in after)
    assert values(page.tables["Before and after"][0])[1][2] == params
    versions = dict(values(page.tables["Environment"][0]))
    assert versions["onnx"] == onnx.__version__
    assert f"| parameters | 5,184 | {params:,} |" in Path("a.md").read_text()
    assert parsed(Path("B.HTML").read_text("utf-8")).tables["Latency"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [PRUNE, APPLY, BENCH])
def test_other_suffixes_are_refused(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    Path("p.json").write_text("{}")
    stderr = run(*command, "--report", "r.pdf", code=2).stderr
    assert stderr == (
        "onnxprune: 'r.pdf' can't hold a report: give a path that ends in .html, .md or .json\n"
    )
    with pytest.raises(OnnxPruneError, match=r"'r' can't hold a report"):
        api.prune("m.onnx", ratio=0.5, report_output="r")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [PRUNE, APPLY, BENCH])
def test_a_page_needs_plotly(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    no_work(monkeypatch)
    Path("p.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    stderr = run(*command, "--report", "r.html", code=2).stderr
    assert stderr == (
        "onnxprune: a report in HTML needs plotly: install it with pip install "
        "'onnxprune[report]', or give the report a path that ends in .md or .json\n"
    )
    with pytest.raises(OnnxPruneError, match="a report in HTML needs plotly"):
        api.apply("m.onnx", "p.json", report_output="r.html")


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work fails."""
    for module, name in ((pipeline, "prune"), (pipeline, "replay"), (api_bench, "bench")):
        monkeypatch.delattr(module, name)


@pytest.mark.usefixtures("folder")
def test_what_bench_refuses_to_report() -> None:
    stderr = run(*BENCH, "--export", "out", "--report", "r.md", code=2).stderr
    assert "--export measures nothing, so --report has nothing to show" in stderr
    Path("i.json").write_text("{}")
    stderr = run("bench", "--import", "i.json", "--report", "i.json", code=2).stderr
    assert "the report can't be written to 'i.json', which this command reads" in stderr
    assert "there is no folder 'no'" in run(*BENCH, "--report", "no/r.md", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/usr/bin/onnxprune", "prune", "a b.onnx"], "onnxprune prune 'a b.onnx'"),
        (["C:/x/onnxprune.exe", "bench"], "onnxprune bench"),
        (["/x/onnxprune/__main__.py", "bench"], "onnxprune bench"),
        (["/x/ipykernel/__main__.py", "-f", "secret"], ""),
        (["train.py", "--token", "secret"], ""),
        ([""], ""),
    ],
)
def test_the_command_line(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert environment.command() == expected
    shown = [f"    {expected}"] if expected else []
    text = render(replace(report, command=environment.command()), ".md")
    assert [line for line in text.splitlines() if line.startswith("    ")] == shown


def test_an_environment_without_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert environment.environment()["no-such-package"] == "unknown"


NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def opened(html: str, folder: Path) -> tuple[str, list[str]]:
    """The DOM after all scripts have run, and what they wrote to the console."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    flags += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    console = [line for line in done.stderr.decode().splitlines() if ":CONSOLE:" in line]
    return done.stdout.decode(), console


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is there: apt-get install chromium")
def test_pages_in_chromium(report: Report, bench: measuring.Bench, tmp_path: Path) -> None:
    text = benches.json_text([bench])
    for number, html in enumerate(
        [render(report, ".html"), writing.rendered(Path("b.html"), text, latencies.document)]
    ):
        dom, console = opened(html, tmp_path)
        assert console == []
        before, after = parsed(html), parsed(dom)
        assert after.tables == before.tables
        charts_ = len(json.loads(before.scripts[0]))
        drawn = [str(own.get("class")).split() for _, own in after.tags]
        assert sum("svg-container" in own for own in drawn) == charts_
        assert charts_ == (7, 7)[number]
    request = "fetch('http://127.0.0.1:9/x'); Plotly.newPlot("
    for broken, told in (("Plotly.noSuch(", "TypeError"), (request, "Content Security Policy")):
        _, console = opened(html.replace("Plotly.newPlot(id", f"{broken}id"), tmp_path)
        assert any(told in line for line in console), console
