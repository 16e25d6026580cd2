"""Custom operators: rules that packages bring along, libraries that ONNX Runtime needs for them."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune import api_rules
from onnxprune.errors import OnnxPruneError, RuleError
from tests.graphs import custom, model, node, weight
from tests.test_cli import run as run_cli

LINE = "n c *s, c -> n c *s"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Lets a package bring something along as its entry point 'own'."""

    def brought(code: str) -> None:
        (tmp_path / "brings_rules.py").write_text(code, encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop("brings_rules", None)
        point = EntryPoint("own", "brings_rules:ROWS", api_rules.GROUP)
        monkeypatch.setattr(api_rules, "entry_points", lambda group: [point])
        api_rules.installed_rules.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield brought
    api_rules.installed_rules.cache_clear()


@pytest.mark.parametrize(
    "code", [f"ROWS = {{'my::Op': '{LINE}'}}", f"ROWS = lambda: {{'my::Op': '{LINE}'}}"]
)
def test_a_package_brings_rules_along(package: Any, code: str) -> None:
    package(code)
    assert api_rules.every_rule(None) == {"my::Op": LINE}
    assert api_rules.every_rule({"my::Op": "... -> ..."}) == {"my::Op": "... -> ..."}
    assert [group.name for group in onnxprune.inspect(custom()).groups] == ["w1:0"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ROWS = 3", "gives 3: it has to be lines by operator"),
        ("ROWS = {'my::Op': 3}", "it has to be lines by operator"),
        ("OTHER = 3", "entry point 'own' of an installed package can't be loaded: AttributeError"),
        ("ROWS = {'my::Op': 'c d'}", "entry point 'own' of an installed package: rule 'c d'"),
        ("ROWS = {'Conv': '... -> ...'}", "operator Conv has a built-in rule: leave it out"),
    ],
)
def test_a_package_that_brings_nonsense_is_named(package: Any, code: str, message: str) -> None:
    package(code)
    with pytest.raises(RuleError, match=message.replace("(", r"\(")):
        onnxprune.inspect(model([], {"x": [1]}, {"x": [1]}, {}))


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OnnxPruneError, match=r"there is no library '.*none\.so' of custom"),
        onnxprune.ort_extensions(tmp_path / "none.so"),
    ):
        pass
    (tmp_path / "text.so").write_text("no library", encoding="utf-8")
    with (
        pytest.raises(OnnxPruneError, match=r"ONNX Runtime .* can't load '.*text\.so' as a lib"),
        onnxprune.ort_extensions(tmp_path / "text.so"),
    ):
        pass


def negated() -> onnx.ModelProto:
    """A net with an operator of onnxruntime-extensions in it: NegPos, x -> min(x, 0), max(x, 0)."""
    proto = model(
        [
            node("MatMul", "x w1", "a"),
            helper.make_node("NegPos", ["a"], ["n", "p"], domain="ai.onnx.contrib"),
            node("Sub", "p n", "b"),
            node("MatMul", "b w2", "y"),
        ],
        {"x": [3, 4]},
        {"y": [3, 2]},
        {"w1": weight(1, 4, 8), "w2": weight(2, 8, 2)},
    )
    proto.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return proto


def test_a_library_runs_custom_operators(tmp_path: Path) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    library = extensions.get_library_path()
    source, target = tmp_path / "net.onnx", tmp_path / "small.onnx"
    onnx.save(negated(), source)
    line = "ai.onnx.contrib::NegPos=... -> ..., ..."
    command = ["prune", str(source), "-o", str(target), "--ratio", "0.5", "--rule", line]
    run_cli(*command, code=2)
    run_cli(*command, "--ort-extension", library)
    assert onnx.load(target).graph.initializer[0].dims == [4, 4]
    with onnxprune.ort_extensions(library):
        rules = {"ai.onnx.contrib::NegPos": "... -> ..., ..."}
        _, report = onnxprune.prune(negated(), ratio=0.5, rules=rules)
    assert report.verification is not None
    assert report.verification.ok
    assert np.isfinite(report.verification.error)


def test_a_package_rule_counts_in_sensitivity_too(package: Any) -> None:
    """The graph has an operator of the package's, which the file itself says how to run."""
    proto = model(
        [
            node("Conv", "x w1", "a"),
            helper.make_node("Op", ["a", "s"], ["b"], domain="my"),
            node("Conv", "b w2", "c"),
            node("GlobalAveragePool", "c", "p"),
            node("Flatten", "p", "y"),
        ],
        {"x": ["n", 3, 4, 4]},
        {"y": ["n", 4]},
        {"w1": weight(1, 8, 3, 1, 1), "s": weight(2, 8, 1, 1), "w2": weight(3, 4, 8, 1, 1)},
    )
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.functions.append(
        helper.make_function(
            "my",
            "Op",
            ["v", "s"],
            ["r"],
            [helper.make_node("CumSum", ["v", "axis"], ["u"]), node("Mul", "u s", "r")],
            [helper.make_opsetid("", 18)],
        )
    )
    axis = helper.make_tensor("value", onnx.TensorProto.INT64, [], [2])
    proto.functions[0].node.insert(0, helper.make_node("Constant", [], ["axis"], value=axis))
    data = {"x": np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)}
    package("ROWS = {'my::Op': 'n c *s, c 1 1 -> n c *s'}")
    found = onnxprune.sensitivity(proto, calibration=data, ratios=[0.5])
    assert [row.group for row in found.trials] == ["w1:0"]
    with pytest.raises(OnnxPruneError, match="built-in rule"):
        onnxprune.sensitivity(proto, calibration=data, ratios=[0.5], rules={"Relu": "_ -> _"})
