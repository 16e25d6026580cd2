"""Reading models and writing them: what is accepted, what is refused in one sentence, atomicity."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxprune import files
from onnxprune.errors import BadModelError, OnnxPruneError
from onnxprune.outside import INLINE_BYTES, PAGE_BYTES
from tests.graphs import convolutions, model, node, weight
from tests.test_shrink import values

Change = Callable[[onnx.ModelProto], object]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outside(path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write the model with every tensor in `weights.bin` beside it; read the model alone back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    external_data_helper.convert_model_to_external_data(
        copy, location="weights.bin", size_threshold=0
    )
    onnx.save(copy, path)
    return onnx.load(path, load_external_data=False)


def test_a_path_a_proto_and_a_graph_are_models(tmp_path: Path) -> None:
    proto = convolutions()
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    sources = [path, str(path), proto, gs.import_onnx(proto)]
    models = [files.load(source) for source in sources]
    assert [m.name for m in models] == ["net.onnx", "net.onnx", "g", "g"]
    assert [m.folder for m in models] == [tmp_path.resolve(), tmp_path.resolve(), None, None]
    for loaded in models:
        assert [n.op for n in loaded.nodes] == ["Conv", "Relu", "Conv", "Conv"]
        assert {name: p.shape for name, p in loaded.params.items()} == {
            name: value.shape for name, value in values(proto).items()
        }
        assert loaded.shape("y2") == (None, 8, 4, 4)
    assert files.load(models[0]) is models[0]
    assert files.load(proto, "mine").name == "mine"


@pytest.mark.parametrize("source", [None, 3, b"bytes", {"graph": 1}])
def test_anything_else_is_no_model(source: object) -> None:
    with pytest.raises(OnnxPruneError, match=r"a model is a path, an onnx\.ModelProto or a graph"):
        files.load(source)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match=r"none\.onnx' can't be read: No such file"):
        files.load(tmp_path / "none.onnx")
    with pytest.raises(BadModelError, match="can't be read: Is a directory"):
        files.load(tmp_path)


@pytest.mark.parametrize("data", [b"this is text\n", b"\x08\x08\x3a\xff\xff\xff\x0f"])
def test_a_file_that_is_not_onnx(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BadModelError, match=r"m\.onnx' is no ONNX file, or is cut short"):
        files.load(tmp_path / "m.onnx")


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    data = convolutions().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadModelError, match="is no ONNX file, or is cut short"):
        files.load(tmp_path / "m.onnx")


def future(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 999


def in_a_circle(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = "y2"


def from_nowhere(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].input[0] = "nothing"


def far_away(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(
        TensorProto(name="w1", data_type=1, dims=[8, 4, 3, 3], data_location=TensorProto.EXTERNAL)
    )
    proto.graph.initializer[0].external_data.add(key="location", value="far.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.ClearField("graph"), "'g' is no ONNX model: it has no graph with nodes"),
        (lambda p: p.graph.ClearField("node"), "it has no graph with nodes"),
        (lambda p: p.ClearField("ir_version"), "it has no graph with nodes"),
        (lambda p: p.ClearField("opset_import"), "'g' names no opset: an ONNX model must say"),
        (future, "'g' uses opset 999; this onnx .* knows opsets up to .*: update the onnx package"),
        (in_a_circle, r"node 'n_r1' \(Relu\) is in a cycle: the file is not valid"),
        (from_nowhere, r"node 'n_y2' \(Conv\) reads 'nothing', which nothing makes"),
        (far_away, "'g' keeps tensor 'w1' in 'far.bin', which is not beside it: put the data file"),
    ],
)
def test_what_can_not_be_a_model(change: Change, message: str) -> None:
    proto = convolutions()
    change(proto)
    with pytest.raises(BadModelError, match=message) as error:
        files.load(proto, "g")
    assert "\n" not in str(error.value)


def test_a_model_that_contradicts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("4 is not 5\nat node 'a'")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    with pytest.raises(BadModelError, match=r"^the model contradicts itself: 4 is not 5$"):
        files.load(convolutions())


def test_data_files_that_are_gone_or_cut_short(tmp_path: Path) -> None:
    outside(tmp_path / "m.onnx", convolutions())
    assert files.load(tmp_path / "m.onnx").params["w1"].read().shape == (8, 4, 3, 3)
    data = tmp_path / "weights.bin"
    loaded = files.load(tmp_path / "m.onnx")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(
        BadModelError, match=r"weights\.bin' is cut short: tensor 'w1' does not fit"
    ):
        loaded.params["w1"].read()
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(
        BadModelError, match=r"weights\.bin' is cut short: tensor 'w1' does not fit"
    ):
        files.save(proto, tmp_path / "s.onnx", tmp_path)
    assert not (tmp_path / "s.onnx").exists()
    data.unlink()
    with pytest.raises(BadModelError, match=r"keeps tensor 'w1' in 'weights\.bin', which is not"):
        files.load(tmp_path / "m.onnx")


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    outside(tmp_path / "m.onnx", convolutions())
    read = files.load(tmp_path / "m.onnx").params["w2"].read()
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, values(convolutions())["w2"])


def test_nodes_are_sorted() -> None:
    proto = convolutions()
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [n.outputs[0] for n in files.load(proto).nodes] == ["y1", "r1", "y2", "y"]


def test_nodes_in_order_stay_in_order() -> None:
    nodes = [node("Relu", "x", "b"), node("Relu", "x", "a"), node("Add", "b a", "y")]
    proto = model(nodes, {"x": [3]}, {"y": [3]}, {})
    assert [n.outputs[0] for n in files.load(proto).nodes] == ["b", "a", "y"]


def test_constants_are_parameters_wherever_they_stand() -> None:
    listed = helper.make_node("Constant", [], ["k"], value_ints=[1, 2])
    single = helper.make_node("Constant", [], ["f"], value_float=2.5)
    tensor = numpy_helper.from_array(weight(1, 3), "t")
    held = helper.make_node("Constant", [], ["c"], value=tensor)
    proto = model(
        [listed, single, held, node("Mul", "x f", "z"), node("Add", "z c", "y")],
        {"x": ["n", 3]},
        {"y": ["n", 3]},
        {},
    )
    loaded = files.load(proto)
    assert {name: p.shape for name, p in loaded.params.items()} == {"k": (2,), "f": (), "c": (3,)}
    assert loaded.params["f"].read() == 2.5
    assert [n.op for n in loaded.nodes] == ["Mul", "Add"]


def test_saving_inside_one_file(tmp_path: Path) -> None:
    proto = convolutions()
    path = tmp_path / "m.onnx"
    assert files.save(proto, path) == [path]
    assert path.read_bytes() == proto.SerializeToString()
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    old.touch()
    old.chmod(0o604)
    before = os.umask(0o027)
    try:
        files.save(convolutions(), old)
        files.save(convolutions(), new)
    finally:
        os.umask(before)
    assert old.stat().st_mode & 0o777 == 0o604
    assert new.stat().st_mode & 0o777 == 0o640


def mixture() -> onnx.ModelProto:
    """Tensors on both sides of the size that stays inline, empty and odd-sized ones among them."""
    sizes = {"a": (300, 7), "b": (3,), "c": (1025,), "d": (255,), "e": (0, 5), "f": ()}
    weights = {name: weight(k, *shape) for k, (name, shape) in enumerate(sizes.items())}
    weights["g"] = np.arange(2000, dtype=np.int8)
    weights["h"] = weight(9, 2000).astype(np.float16)
    nodes = [node("Identity", name, f"{name}_out") for name in weights]
    proto = model(
        nodes, {}, {f"{name}_out": value.shape for name, value in weights.items()}, weights
    )
    for output in proto.graph.output:
        kind = weights[output.name.removesuffix("_out")].dtype
        output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(kind)
    return proto


def test_external_data_makes_the_round_trip(tmp_path: Path) -> None:
    proto = mixture()
    light = outside(tmp_path / "m.onnx", proto)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "small.onnx"
    data = tmp_path / "out" / "small.onnx.data"
    assert files.save(light, path, tmp_path) == [path, data]
    assert sorted(path.parent.iterdir()) == [path, data]
    again = onnx.load(path)
    for name, value in values(proto).items():
        np.testing.assert_array_equal(values(again)[name], value)
    onnx.checker.check_model(path, full_check=True)
    found = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {})
    for value, expected in zip(found, values(proto).values(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_tensors_outside_start_at_pages(tmp_path: Path) -> None:
    light = outside(tmp_path / "m.onnx", mixture())
    files.save(light, tmp_path / "s.onnx", tmp_path)
    written = onnx.load(tmp_path / "s.onnx", load_external_data=False)
    infos = [external_data_helper.ExternalDataInfo(t) for t in written.graph.initializer]
    offsets = [int(str(info.offset)) for info in infos if info.offset is not None]
    assert len(offsets) > 3
    assert all(offset % PAGE_BYTES == 0 for offset in offsets)
    assert all(info.location == "s.onnx.data" for info in infos if info.location)


def test_new_small_tensors_stay_inside(tmp_path: Path) -> None:
    light = outside(tmp_path / "m.onnx", mixture())
    small = numpy_helper.from_array(np.zeros(INLINE_BYTES // 8, np.float32), "small")
    large = numpy_helper.from_array(np.ones(INLINE_BYTES, np.float32), "large")
    light.graph.initializer.extend([small, large])
    files.save(light, tmp_path / "s.onnx", tmp_path)
    written = onnx.load(tmp_path / "s.onnx", load_external_data=False)
    places = {t.name: t.data_location for t in written.graph.initializer}
    assert places["small"] == TensorProto.DEFAULT
    assert places["large"] == TensorProto.EXTERNAL
    np.testing.assert_array_equal(values(onnx.load(tmp_path / "s.onnx"))["large"], 1)


def test_strings_and_packed_numbers_stay_inside(tmp_path: Path) -> None:
    light = outside(tmp_path / "m.onnx", mixture())
    words = numpy_helper.from_array(np.full(500, "word", object), "words")
    packed = helper.make_tensor("packed", TensorProto.INT4, [4000], [1, -2] * 2000)
    light.graph.initializer.extend([words, packed])
    files.save(light, tmp_path / "s.onnx", tmp_path)
    written = {t.name: t for t in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert written["words"] == words
    np.testing.assert_array_equal(
        numpy_helper.to_array(written["packed"]), numpy_helper.to_array(packed)
    )


def test_data_without_a_stated_length(tmp_path: Path) -> None:
    """onnx lets `length` be left out: the type and the shape say it."""
    light = outside(tmp_path / "m.onnx", mixture())
    for tensor in light.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    files.save(light, tmp_path / "s.onnx", tmp_path)
    written = onnx.load(tmp_path / "s.onnx")
    for name, value in values(mixture()).items():
        np.testing.assert_array_equal(values(written)[name], value)
    onnx.checker.check_model(tmp_path / "s.onnx", full_check=True)


def test_a_model_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", 2000)
    path = tmp_path / "m.onnx"
    assert files.save(mixture(), path) == [path, tmp_path / "m.onnx.data"]
    for name, value in values(mixture()).items():
        np.testing.assert_array_equal(values(onnx.load(path))[name], value)


def test_a_model_that_protobuf_does_not_measure_is_too_large() -> None:
    class Huge:  # one of 2 GB takes 5 GB of memory to see
        def ByteSize(self) -> int:
            raise EncodeError("Failed to serialize proto")

    huge: Any = Huge()
    assert files._is_too_large(huge)
    assert not files._is_too_large(mixture())


def test_with_data_reads_it_in(tmp_path: Path) -> None:
    light = outside(tmp_path / "m.onnx", mixture())
    whole = files.with_data(light, tmp_path)
    for name, value in values(mixture()).items():
        np.testing.assert_array_equal(values(whole)[name], value)


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(
        OnnxPruneError, match=r"m\.onnx' can't be written: there is no folder '.*no"
    ):
        files.save(convolutions(), tmp_path / "no" / "m.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_failed_write_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    proto = outside(tmp_path / "m.onnx", mixture()) if external else mixture()
    files.save(proto, tmp_path / "s.onnx", tmp_path)
    before = listing(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        OnnxPruneError, match=r"s\.onnx(\.data)?' can't be written: No space left on device"
    ):
        files.save(proto, tmp_path / "s.onnx", tmp_path)
    assert listing(tmp_path) == before


def test_an_interrupted_write_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.onnx"
    path.write_bytes(b"old")

    def interrupted(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.together() as write:
        write(path, interrupted)
    assert listing(tmp_path) == {"s.onnx": b"old"}


def test_a_model_and_its_data_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New data under an old model would be silently wrong."""
    light = outside(tmp_path / "m.onnx", mixture())
    path = tmp_path / "s.onnx"
    files.save(light, path, tmp_path)
    before = listing(tmp_path)
    wider = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    tensor = numpy_helper.from_array(np.ones(5000, np.float32), "more")
    wider.graph.initializer.insert(0, tensor)
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if ".s.onnx." in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OnnxPruneError, match="No space left on device"):
        files.save(wider, path, tmp_path)
    assert listing(tmp_path) == before


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_file_in_the_format_of_the_runtime_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x18\0\0\0ORTM" + bytes(20))
    with pytest.raises(BadModelError, match=r"m.ort' is in ONNX Runtime's own format \(.ort\)"):
        files.load(tmp_path / "m.ort")
