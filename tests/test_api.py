"""The Python interface: what it takes, what it gives back, what it refuses."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import external_data_helper, helper, numpy_helper

import onnxprune
from onnxprune import api, api_rules, choosing, files, finishing, outside
from onnxprune.coupling import Coupling
from onnxprune.errors import NothingToPruneError, OnnxPruneError, RuleError, VerificationError
from onnxprune.passes.select import select
from onnxprune.passes.shrink import shrink
from onnxprune.pipeline import analyse
from onnxprune.verdict import Verification
from tests import tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "m.onnx")


def width(proto: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(t.dims) for t in proto.graph.initializer if t.name == name)


def test_the_public_names_are_there() -> None:
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    assert set(onnxprune.__all__) <= set(dir(onnxprune))
    assert onnxprune.prune is api.prune
    assert onnxprune.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="has no attribute 'prone'"):
        _ = onnxprune.prone  # type: ignore[attr-defined]


def test_importing_costs_nothing() -> None:
    code = "import onnxprune, sys; print({'onnx', 'numpy', 'pydantic', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_path_gives_a_proto(path: Path) -> None:
    for source in (path, str(path)):
        small, report = onnxprune.prune(source, ratio=0.5)
        assert isinstance(small, onnx.ModelProto)
        assert width(small, "w2") == (16, 8, 3, 3)
        assert report.name == "m.onnx"
        assert report.plan.model.sha256 is not None


def test_a_proto_gives_a_proto_and_stays_as_it_is() -> None:
    proto = tiny.net()
    small, report = onnxprune.prune(proto, ratio=0.5)
    assert isinstance(small, onnx.ModelProto)
    assert width(small, "w1") == (8, 3, 3, 3)
    assert proto == tiny.net()
    assert report.verification is not None
    assert report.verification.ok
    assert report.verification.error <= 1e-5


def test_a_graph_gives_a_graph() -> None:
    small, _ = onnxprune.prune(gs.import_onnx(tiny.net()), ratio=0.5)
    assert isinstance(small, gs.Graph)
    assert small.tensors()["w1"].shape == [8, 3, 3, 3]


@pytest.mark.parametrize("source", [42, None, {}, b""])
def test_anything_else_is_refused(source: Any) -> None:
    with pytest.raises(OnnxPruneError, match=r"a model is a path, an onnx\.ModelProto or a graph"):
        onnxprune.prune(source, ratio=0.5)


def test_the_output_is_written(path: Path) -> None:
    target = path.with_name("small.onnx")
    small, _ = onnxprune.prune(path, ratio=0.5, output=target)
    assert onnx.load(target) == small


def test_bad_outputs_are_refused(path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="is the input: give another path"):
        onnxprune.prune(path, ratio=0.5, output=path.parent / "." / "m.onnx")
    with pytest.raises(OnnxPruneError, match="there is no folder"):
        onnxprune.prune(path, ratio=0.5, output=path.parent / "no" / "small.onnx")


def test_apply_replays_a_plan(path: Path) -> None:
    small, report = onnxprune.prune(path, macs=0.5)
    again, replayed = onnxprune.apply(path, report.plan)
    assert again == small
    assert replayed.after == report.after
    assert replayed.notes == ()
    file = path.with_name("p.json")
    file.write_text(report.plan.to_json())
    assert onnxprune.apply(path, file)[0] == small


def test_apply_says_that_the_file_is_another(path: Path) -> None:
    _, report = onnxprune.prune(path, ratio=0.5)
    twin = tiny.net()
    twin.producer_name = "another"
    _, replayed = onnxprune.apply(tiny.save(path.with_name("t.onnx"), twin), report.plan)
    assert "the plan was made for another file, 'm.onnx'; its names fit" in replayed.notes


def test_verify_finds_a_wrong_model(path: Path) -> None:
    small, report = onnxprune.prune(path, ratio=0.5)
    assert onnxprune.verify(path, small, report.plan).ok
    small.graph.initializer[0].raw_data = bytes(len(small.graph.initializer[0].raw_data))
    found = onnxprune.verify(path, small, report.plan)
    assert not found.ok
    assert found.failure is not None
    with pytest.raises(OnnxPruneError, match="seed is -1: it must be 0 or more"):
        onnxprune.verify(path, small, report.plan, seed=-1)


def test_a_wrong_result_is_not_given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> onnx.ModelProto:
        made = shrink(*arguments)
        made.graph.initializer[0].raw_data = bytes(len(made.graph.initializer[0].raw_data))
        return made

    monkeypatch.setattr(finishing, "shrink", wrong)
    target = path.with_name("small.onnx")
    with pytest.raises(VerificationError, match="'y'"):
        onnxprune.prune(path, ratio=0.5, output=target)
    assert not target.exists()
    _, report = onnxprune.prune(path, ratio=0.5, verify=False)
    assert report.verification is None
    assert any("not verified" in note for note in report.notes)


def test_texts_are_read_as_on_the_command_line(path: Path) -> None:
    wanted = onnxprune.prune(path, macs=0.5, max_ratio=0.8, verify=False)[1]
    found = onnxprune.prune(path, macs="50%", max_ratio="80%", verify=False)[1]
    assert (found.settings, found.after) == (wanted.settings, wanted.after)
    assert onnxprune.prune(path, ratio="50%", verify=False)[1].settings["ratio"] == 0.5
    assert onnxprune.prune(path, size_bytes="20kB")[1].after.size_bytes <= 20000
    assert onnxprune.prune(path, macs=np.float64(0.5))[1].settings["macs"] == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": "half"}, "the amount 'half' can't be read: give a fraction"),
        ({"macs": [0.5]}, r"the amount '\[0\.5\]' can't be read"),
        ({"params": b"1"}, "the amount 'b'1'' can't be read"),
        ({"ratio": "half"}, "the share 'half' can't be read"),
        ({"ratio": [0.5]}, r"the share '\[0\.5\]' can't be read"),
    ],
)
def test_what_is_no_amount_is_refused(path: Path, given: Any, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        onnxprune.prune(path, **given)


def test_real_inputs_may_be_arrays(path: Path) -> None:
    onnxprune.prune(path, ratio=0.5, inputs={"x": np.ones((1, 3, 8, 8), np.float32)})


def test_steps_score_again(path: Path) -> None:
    small, report = onnxprune.prune(path, macs=0.4, steps=3)
    assert report.settings["steps"] == 3
    assert report.after.macs <= 0.4 * report.before.macs
    assert onnxprune.verify(path, small, report.plan).ok
    with pytest.raises(OnnxPruneError, match="steps is 0: it must be at least 1"):
        onnxprune.prune(path, macs=0.4, steps=0)


def test_the_notes_of_all_steps_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([("a", "b"), ("b", "c"), ("a", "b")])
    monkeypatch.setattr(
        choosing, "select", lambda *given: replace(select(*given), limits=next(told))
    )
    notes = onnxprune.prune(path, macs=0.4, steps=3, exclude=["none*"])[1].notes
    excluded = "--exclude 'none*' matches no group that can be pruned"
    assert notes == (excluded, "step 1, 3 of 3: a", "b", "step 2 of 3: c")


def test_a_group_that_is_lost_on_the_way_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(model: Any, *given: Any) -> Coupling:
        found = analyse(model, *given)
        if isinstance(model, onnx.ModelProto):  # of a later step
            names = {"w1:0": "new"}
            groups = [replace(g, name=names.get(g.name, g.name)) for g in found.groups]
            found = replace(found, groups=tuple(groups))
        return found

    monkeypatch.setattr(choosing, "analyse", renamed)
    small, report = onnxprune.prune(path, ratio=0.75, steps=2)
    note = "step 2 of 2: group 'w1:0' is not found again after a step, and loses no more"
    assert report.notes == (note,)
    assert width(small, "w2") == (8, 8, 3, 3)  # 16 would be 4 after both steps


def test_bn_scale_says_what_has_no_scale(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes = onnxprune.prune(path, ratio=0.5, criterion="bn-scale")[1].notes
    assert notes[0].startswith("bn-scale: 2 of 2 groups have no BatchNormalization and go by l2")
    assert capfd.readouterr() == ("", "")


def test_progress_names_the_passes(path: Path) -> None:
    told: list[str] = []
    onnxprune.prune(path, ratio=0.5, progress=told.append)
    passes = [name for name in told if ":" not in name]
    assert passes == ["load", "couple", "score", "select", "shrink", "verify"]
    assert "score: w1" in told


def test_inspect_and_explain(path: Path) -> None:
    found = onnxprune.inspect(path)
    assert [row.name for row in found.groups] == ["w1:0", "w2:0"]
    assert {row.reason for row in found.frozen}
    assert "32 channels" in onnxprune.explain(path, "w2:0")
    with pytest.raises(OnnxPruneError, match="did you mean 'w2:0'"):
        onnxprune.explain(path, "W2")


def test_a_report_is_json(path: Path) -> None:
    _, report = onnxprune.prune(path, ratio=0.5)
    assert '"w1:0"' in report.to_json()
    assert report.to_json().endswith("}\n")
    assert '"groups"' in onnxprune.inspect(path).to_json()


def test_a_report_is_printed_in_a_few_lines(path: Path) -> None:
    _, report = onnxprune.prune(path, ratio=0.5)
    for text in (str(report), repr(report)):
        lines = text.splitlines()
        assert len(lines) == 3
        assert lines[0] == "Report of m.onnx"
        assert lines[1].startswith("  MACs 331 k -> 91.6 k, parameters 5.18 k -> 1.44 k, file 21.")
        assert lines[2].startswith("  verified: the largest relative error of an output is ")
    unproved = repr(onnxprune.prune(path, ratio=0.5, verify=False)[1])
    assert "  not verified: the proof was switched off" in unproved
    assert "note: not verified" in unproved
    failed = replace(report, verification=Verification(1e-5, failure="'y' differs"))
    assert "NOT verified: the pruned model is not the masked original: 'y' differs" in repr(failed)
    lines = repr(onnxprune.inspect(path)).splitlines()
    assert lines[0] == "Inspection of m.onnx: opset 17, 5 nodes"
    assert lines[1].startswith("  MACs 331 k, parameters 5.18 k, file 21.")
    assert lines[2] == "  2 groups can be pruned, 6 axes are frozen"


def test_costs_say_what_inputs_they_are_for(path: Path) -> None:
    inputs = {"x": (1, 3, 8, 8)}
    assert onnxprune.inspect(path).inputs == inputs
    assert onnxprune.prune(path, ratio=0.5)[1].inputs == inputs
    proto = tiny.chain(4, 8, 4)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    found = onnxprune.inspect(proto)
    assert found.inputs == {"x": (8, 4, 4, 4)}
    assert found.macs == 8 * 16 * (4 * 8 + 8 * 4)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
        proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    assert onnxprune.inspect(proto).inputs == {"x": (8, 4, 224, 224)}


def test_the_package_shows_its_own_names_alone(path: Path) -> None:
    onnxprune.inspect(path)  # imports what it needs
    shown = {name for name in dir(onnxprune) if not name.startswith("__")}
    assert shown == set(onnxprune.__all__) - {"__version__"}


def joined() -> onnx.ModelProto:
    """The input beside a convolution of 8, twice beside itself: 3 + 8 + 8 channels."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Concat", ["x", "c", "c"], ["j"], "join", axis=1),
        helper.make_node("Conv", ["j", "v"], ["y"], "last"),
    ]
    weights = [tiny.weight("w", 8, 3, 1, 1), tiny.weight("v", 4, 19, 1, 1)]
    return tiny.model(nodes, weights, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]})


def test_explain_names_every_part_of_a_sum() -> None:
    assert onnxprune.explain(joined(), "j:1") == (
        "value j\n"
        "  axis 1: _:3+w:0:8+w:0:8\n"
        "    _:3, 3 indices\n"
        "      whole: it is an axis of a graph input\n"
        "    w:0:8, 8 indices, 2 times\n"
        "      group w:0, 2 members"
    )
    assert onnxprune.explain(joined(), "w:2").endswith("axis 2: 1\n    whole: it has one index")


def test_explain_names_the_node_that_cuts_an_axis() -> None:
    """Half of ``(a:4 2)`` with an offset of 3 cuts through pairs: single indices are left."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Reshape", ["c", "apart"], ["r"], "apart"),
        helper.make_node("Transpose", ["r"], ["t"], "turn", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "back"], ["s"], "back"),
        helper.make_node("Slice", ["s", "three", "eight", "one"], ["h"], "cut"),
        helper.make_node("Conv", ["h", "v"], ["y"], "last"),
    ]
    weights = [tiny.weight("w", 8, 3, 1, 1), tiny.weight("v", 4, 5, 1, 1)]
    shapes = {
        "apart": [1, 2, 4, 4, 4],
        "back": [1, 8, 4, 4],
        "three": [3],
        "eight": [8],
        "one": [1],
    }
    weights += [numpy_helper.from_array(np.array(v), name) for name, v in shapes.items()]
    proto = tiny.model(nodes, weights, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]})
    cut = "node 'cut' (Slice)"
    assert onnxprune.explain(proto, "h:1").splitlines()[2:] == [
        "    1, 1 index, 5 times",
        f"      whole: single indices, first met at {cut}",
    ]
    assert onnxprune.explain(proto, "s:1").splitlines()[2:] == [
        f"    4 indices of it whole: {cut}: its rule can't cut this axis into factors"
    ]
    frozen = {(row.param, row.axis): row.reason for row in onnxprune.inspect(proto).frozen}
    assert frozen["v", 1] == f"it is cut into single indices, first met at {cut}"


def test_nothing_to_prune() -> None:
    with pytest.raises(NothingToPruneError, match="no group that can be pruned: 'w', axis 0"):
        onnxprune.prune(tiny.frozen(), ratio=0.5)


def test_a_rule_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_rules, "_user_rules", {})
    proto = tiny.net(activation="Wave", domain="my.domain")
    assert onnxprune.inspect(proto).groups == ()
    rules = {"my.domain::Wave": "... -> ..."}
    assert len(onnxprune.inspect(proto, rules=rules).groups) == 2
    onnxprune.register_rule("my.domain::Wave", "... -> ...")
    assert len(onnxprune.inspect(proto).groups) == 2
    with pytest.raises(RuleError, match="expected operands -> results"):
        onnxprune.register_rule("my.domain::Wave", "nonsense")


@pytest.mark.parametrize("line", ["_ c -> _ d", "_ c *s -> _ d *s", "_ c -> _ (c d)", "_ c -> c+d"])
def test_a_result_has_no_letters_of_its_own(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_rules, "_user_rules", {})
    with pytest.raises(RuleError, match="no operand has the letter 'd' of a result: use one that"):
        onnxprune.register_rule("my.domain::Wave", line)
    with pytest.raises(RuleError, match=r"no operand has the letter '\*s' of a result"):
        onnxprune.inspect(tiny.net(), rules={"my.domain::Wave": "_ c -> _ c *s"})
    for fine in (
        "_ c -> _ _d",
        "_ c -> _ 4 1",
        "_ c * -> _ c *",
        "_ c -> _ c | n=c",
        "~ -> c | n=c",
    ):
        onnxprune.register_rule("my.domain::Wave", fine)


def test_a_built_in_rule_is_replaced_on_purpose_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_rules, "_user_rules", {})
    with pytest.raises(RuleError, match=r"operator Relu has a built-in rule .* replace=True"):
        onnxprune.register_rule("Relu", "_ -> _")
    with pytest.raises(RuleError, match="operator Relu has a built-in rule"):
        onnxprune.inspect(path, rules={"Relu": "* -> *"})
    assert len(onnxprune.inspect(path).groups) == 2
    onnxprune.register_rule("Relu", "* -> *", replace=True)
    assert onnxprune.inspect(path).groups == ()


def test_external_data_is_found(path: Path) -> None:
    proto = tiny.net()
    external_data_helper.convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    onnx.save(proto, path)
    for steps in (1, 2):
        small, report = onnxprune.prune(path, ratio=0.5, steps=steps)
        assert onnxprune.verify(path, small, report.plan).ok
        assert width(small, "w2") == (16, 8, 3, 3)


def large(folder: Path) -> Path:
    """A model with all weights outside, in a folder of its own."""
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(tiny.net(), path, save_as_external_data=True, size_threshold=0)
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_the_tensors_of_a_large_model_go_straight_into_its_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors as of one that is held in memory, and none in the protobuf on the way."""
    path = large(tmp_path / "in")
    expected, _ = api.prune(path, ratio=0.5, output=tmp_path / "plain.onnx")
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(outside, "INLINE_BYTES", 0)
    target = tmp_path / "out" / "small.onnx"
    target.parent.mkdir()
    proto, report = api.prune(path, ratio=0.5, output=target)
    assert report.verification is not None
    assert {file.name for file in target.parent.iterdir()} == {"small.onnx", "small.onnx.data"}
    found, plain = tensors(target), tensors(tmp_path / "plain.onnx")
    assert found.keys() == plain.keys()
    for name, values in plain.items():
        np.testing.assert_array_equal(found[name], values)
    assert all(t.data_location == t.EXTERNAL for t in proto.graph.initializer)
    assert onnx.load(target, load_external_data=False) == proto
    assert len(expected.graph.node) == len(proto.graph.node)


def test_a_large_model_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VerificationError("output 'y' differs by 0.1")

    path = large(tmp_path / "in")
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(finishing, "verify", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(VerificationError):
        api.prune(path, ratio=0.5, output=tmp_path / "out" / "small.onnx")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("given", [{"output": "w.bin"}, {"plan_output": "w.bin"}])
def test_nothing_is_written_over_the_data_of_the_original(
    tmp_path: Path, given: dict[str, str]
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny.net(), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    before = (tmp_path / "w.bin").read_bytes()
    wanted = {"output": tmp_path / "s.onnx"} | {key: tmp_path / x for key, x in given.items()}
    with pytest.raises(OnnxPruneError, match="which holds data of the original: give another"):
        api.prune(path, ratio=0.5, **wanted)  # type: ignore[arg-type]
    assert (tmp_path / "w.bin").read_bytes() == before
    with pytest.raises(OnnxPruneError, match="which is to hold the data of the result"):
        api.prune(path, ratio=0.5, output=tmp_path / "s.onnx", plan_output=tmp_path / "s.onnx.data")
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "w.bin"}


@pytest.mark.parametrize("limit", [0, 2**29])
@pytest.mark.parametrize("exclude", [[], ["w1*"]])
def test_constants_may_lie_in_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, exclude: list[str]
) -> None:
    """A Constant node with external data, pruned or not, comes out as one that has it inside."""
    proto, again = tiny.net(), tiny.net()
    (stored,) = (t for t in proto.graph.initializer if t.name == "w2")
    node = helper.make_node("Constant", [], ["w2"], value=stored)
    proto.graph.node.insert(0, node)
    proto.graph.initializer.remove(stored)
    (tmp_path / "in").mkdir()
    path, target = tmp_path / "in" / "m.onnx", tmp_path / "s.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    monkeypatch.setattr(files, "LARGE", limit)
    api.prune(path, ratio=0.5, output=target, exclude=exclude)
    expected, _ = api.prune(again, ratio=0.5, exclude=exclude)
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    found = ort.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, x)
    plain = ort.InferenceSession(expected.SerializeToString()).run(None, x)
    np.testing.assert_array_equal(found[0], plain[0])


def test_a_proof_that_does_not_fit_into_memory_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = large(tmp_path / "in"), tmp_path / "small.onnx"
    monkeypatch.setattr("onnxprune.run.free_bytes", lambda: 100)
    with pytest.raises(OnnxPruneError, match=r"verifying 'm\.onnx' takes .* 100 B are free"):
        api.prune(path, ratio=0.5, output=target)
    _, report = api.prune(path, ratio=0.5, output=target, verify=False)
    assert report.verification is None
    assert target.exists()


def test_load_and_save(path: Path) -> None:
    model = onnxprune.load(path)
    assert model.name == "m.onnx"
    onnxprune.save(model.proto, path.with_name("copy.onnx"))
    assert path.with_name("copy.onnx").read_bytes() == path.read_bytes()


def test_a_recovered_model_is_proved_again_and_other_weights_are_not_believed(path: Path) -> None:
    feeds = [
        {"x": np.random.default_rng(k).standard_normal((1, 3, 8, 8), np.float32)} for k in range(8)
    ]
    small, report = onnxprune.prune(path, ratio=0.5, calibration=feeds)
    assert report.plan.recovered
    found = onnxprune.verify(path, small, report.plan)
    assert found.ok
    assert "recovered parameters are the pruned file's own" in found.notes[-1]
    only = report.plan.model_copy(update={"recovered": report.plan.recovered[:1]})
    assert not onnxprune.verify(path, small, only).ok
    plain, again = onnxprune.apply(path, report.plan)
    assert again.plan.recovered == ()
    assert "which a plan does not carry" in again.notes[-1]
    assert not onnxprune.verify(path, plain, report.plan).blind
    fitted, _ = onnxprune.apply(path, report.plan, calibration=feeds)
    assert fitted.SerializeToString() == small.SerializeToString()
