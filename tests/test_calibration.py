"""Samples: every kind of source gives the same batches, and bad ones are told in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune import runtime
from onnxprune.calibration import BATCH, BATCHES, Labelled, batches
from onnxprune.errors import OnnxPruneError
from onnxprune.files import load
from onnxprune.model import Model
from onnxprune.pictures import Pictures
from onnxprune.runtime import Feeds
from onnxprune.sources import Form, Source
from onnxprune.synthetic import (
    KINDS,
    PLAIN,
    Kind,
    matched,
    pictures_like,
    synthetic_samples,
    unlike,
)
from tests import tiny
from tests.graphs import model, node, weight

Array = NDArray[Any]
COUNT = 40


def load_labelled(source: Source, model: Model, **how: Any) -> Labelled:
    """Batches with labels: all of them, in their own order."""
    return _loaded(source, model, labels=True, **{"samples": None, **how})


def load_samples(source: Source, model: Model, **how: Any) -> tuple[Feeds, ...]:
    """Batches without labels."""
    return tuple(feeds for feeds, _ in _loaded(source, model, **how))


def _loaded(source: Source, model: Model, **how: Any) -> Labelled:
    names = vars(Pictures())
    pictures = Pictures(**{name: how.pop(name) for name in [*how] if name in names})
    return batches(source, model, pictures, **how)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def net(batch: int | str = "n", kind: int = TensorProto.FLOAT) -> Model:
    shape: tuple[int | str, ...] = (batch, 3, 4, 4)
    return load(model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}, kind=kind))


def pair(first: Any, second: Any) -> Model:
    """Two inputs and two outputs of these shapes."""
    nodes = [node("Identity", "a", "p"), node("Identity", "b", "q")]
    return load(model(nodes, {"a": first, "b": second}, {"p": first, "q": second}, {}))


def pixels(count: int = COUNT) -> Array:
    """Samples of which each says in every number which one it is."""
    return np.broadcast_to(
        np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 4, 4)
    )


def ids(found: Any) -> list[int]:
    return [int(k) for feeds in found for k in feeds["x"][:, 0, 0, 0]]


def test_all_sources_hold_the_same_samples() -> None:
    x = pixels()
    np.savez("named.npz", x=x, other=np.zeros(3))
    np.savez("single.npz", images=x, y=np.arange(COUNT))
    np.save("single.npy", x)
    Path("own_source.py").write_text(
        "import numpy as np\n"
        "def singles():\n"
        "    for own in np.load('single.npy'): yield {'x': own}\n"
        "def ones():\n"
        "    for own in np.load('single.npy'): yield own[None]\n"
        "def pairs():\n"
        "    for k in range(0, 40, 2): yield {'x': np.load('single.npy')[k:k + 2], 'more': 1}\n"
    )
    sources: list[Any] = ["named.npz", Path("single.npz"), "single.npy", {"x": x}, x]
    functions: list[Any] = ["own_source:singles", "own_source:ones", "own_source:pairs"]
    functions.append([{"x": own} for own in x])
    for source in sources + functions:
        found = load_samples(source, net())
        assert sorted(ids(found)) == list(range(COUNT)), source
        if isinstance(source, list) or "own_source" in str(source):
            assert ids(found) == list(range(COUNT))
    assert [len(feeds["x"]) for feeds in load_samples("own_source:pairs", net())] == [2] * 20


def test_samples_are_a_random_choice_of_the_seed() -> None:
    chosen = ids(load_samples(pixels(), net(), samples=12))
    assert len(set(chosen)) == 12
    assert chosen == ids(load_samples(pixels(), net(), samples=12))
    assert chosen != ids(load_samples(pixels(), net(), samples=12, seed=1))
    assert chosen != sorted(chosen)  # neighbours in a file are often of one class


@pytest.mark.parametrize("count", [1, 3, 17, 40, 400])
def test_batches_are_many_and_small(count: int) -> None:
    sizes = [len(feeds["x"]) for feeds in load_samples(pixels(count), net(), samples=count)]
    assert sum(sizes) == count
    assert max(sizes) <= BATCH
    assert len(sizes) >= min(BATCHES, count)


def test_batches_are_smaller_where_activations_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.calibration.BATCH_BYTES", 3 * 4 * 3 * 16)
    sizes = [len(feeds["x"]) for feeds in load_samples(pixels(), net())]
    assert set(sizes[:-1]) == {3}


def test_a_fixed_batch_is_kept_to() -> None:
    assert [len(feeds["x"]) for feeds in load_samples(pixels(7), net(1))] == [1] * 7
    assert [len(feeds["x"]) for feeds in load_samples(pixels(11), net(4))] == [4, 4]
    assert [len(feeds["x"]) for feeds in load_samples(pixels(9), net(), batch=2)] == [2] * 4 + [1]
    with pytest.raises(OnnxPruneError, match="takes 16 samples at a time, and the source"):
        load_samples(pixels(9), net(16))


def test_an_axis_of_one_sample_may_be_there() -> None:
    found = load_samples(pixels(8)[:, None], net())
    assert sorted(ids(found)) == list(range(8))
    assert found[0]["x"].shape == (2, 3, 4, 4)


def test_inputs_without_a_common_axis_are_whole_runs() -> None:
    found = pair(["n", 3], [2])
    assert Form.of(found).whole
    a, b = np.zeros((5, 7, 3), np.float32), np.arange(10, dtype=np.float32).reshape(5, 2)
    feeds = load_samples({"a": a, "b": b}, found)
    assert [f["a"].shape for f in feeds] == [(7, 3)] * 5
    assert sorted(f["b"][0] for f in feeds) == [0, 2, 4, 6, 8]
    labelled = load_labelled([({"a": a[0], "b": b[0]}, 3)], found)
    assert labelled[0][1] == 3


@pytest.mark.parametrize(
    ("first", "second", "whole", "batch"),
    [
        (["n", 3], ["n", 2], False, None),
        (["n", 3], ["", 2], False, None),
        (["", 3], ["", 2], False, None),
        (["n", 3], ["m", 2], True, None),
        (["", 3], [4, 2], True, None),
        ([4, 3], [4, 2], False, 4),
        ([4, 3], [5, 2], True, None),
        ([4, 3], [], True, None),
    ],
)
def test_the_axis_of_samples(first: Any, second: Any, whole: bool, batch: int | None) -> None:
    found = Form.of(pair(first, second))
    assert (found.whole, found.batch) == (whole, batch)


def test_lengths_that_differ_go_into_batches_of_their_own() -> None:
    shape: tuple[int | str, ...] = ("n", "length")
    own = load(model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}))
    rows = [np.full(length, k, np.float32) for k, length in enumerate([3, 3, 5, 3, 3])]
    found = load_samples(lambda: ({"x": row} for row in rows), own, batch=2)
    assert [feeds["x"].shape for feeds in found] == [(2, 3), (1, 5), (2, 3)]


def test_a_function_without_end_is_read_as_far_as_asked() -> None:
    def endless() -> Iterator[dict[str, Array]]:
        while True:
            yield {"x": pixels(1)[0]}

    assert sum(len(feeds["x"]) for feeds in load_samples(endless, net(), samples=10)) == 10


def test_types_are_cast_where_nothing_is_lost() -> None:
    assert load_samples(pixels().astype(float), net())[0]["x"].dtype == np.float32
    half = net(kind=TensorProto.FLOAT16)
    assert load_samples(pixels(), half)[0]["x"].dtype == np.float16
    whole = net(kind=TensorProto.INT64)
    assert load_samples(pixels().astype(np.uint8), whole)[0]["x"].dtype == np.int64
    with pytest.raises(OnnxPruneError, match="has type float32, the samples have uint8: give them"):
        load_samples(pixels().astype(np.uint8), net())
    with pytest.raises(OnnxPruneError, match="has type uint8, the samples have int64"):
        load_samples(pixels(300).astype(np.int64), net(kind=TensorProto.UINT8), samples=300)


def test_labels_come_along() -> None:
    np.savez("e.npz", x=pixels(), label=np.arange(COUNT))
    function = [({"x": own}, k) for k, own in enumerate(pixels())]
    runs = [({"x": pixels()[k : k + 4]}, np.arange(k, k + 4)) for k in range(0, COUNT, 4)]
    for source in ("e.npz", function, runs):
        found = load_labelled(source, net())
        for feeds, labels in found:
            np.testing.assert_array_equal(feeds["x"][:, 0, 0, 0], labels)
        assert [int(k) for _, labels in found for k in labels] == list(range(COUNT))
    assert len(found[1:3]) == 2
    assert ids([feeds for feeds, _ in load_labelled("e.npz", net(), samples=6)]) != list(range(6))


def test_an_input_named_like_labels_is_an_input() -> None:
    own = load(model([node("Identity", "y", "z")], {"y": ("n", 2)}, {"z": ("n", 2)}, {}))
    arrays = {"y": np.ones((8, 2), np.float32), "label": np.arange(8)}
    (_, labels), *_ = load_labelled(arrays, own)
    assert labels.tolist() == [0, 1]


def image_folder(path: Path, sizes: dict[str, tuple[int, int]]) -> None:
    from PIL import Image

    for k, (name, (width, height)) in enumerate(sizes.items()):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (10 * k, 100, 255)).save(path / name)


NAMES = {"cat/1.png": (4, 4), "cat/2.jpg": (9, 5), "dog/1.PNG": (3, 30), "bee/1.jpeg": (4, 4)}


def test_pictures_become_inputs(folder: Path) -> None:
    pytest.importorskip("PIL")
    image_folder(folder / "p", NAMES)
    found = load_labelled("p", net(), preset="raw255")
    assert [int(k) for _, labels in found for k in labels] == [0, 1, 1, 2]
    x = np.concatenate([feeds["x"] for feeds, _ in found])
    assert x.shape == (4, 3, 4, 4)
    assert x[1, :, 2, 2].tolist() == [0, 100, 255]  # cat/1.png comes second
    own = np.concatenate([f["x"] for f, _ in load_labelled("p", net(), preset="imagenet")])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (x[1, :, 0, 0] / 255 - mean) / std
    np.testing.assert_allclose(own[1, :, 0, 0], expected, rtol=1e-5)
    ((feeds, _), *_) = load_labelled("p", net(), mean=[0.5], std=[0.25])
    np.testing.assert_allclose(feeds["x"][0, 2, 0, 0], (1 - 0.5) / 0.25, rtol=1e-3)


def test_pictures_keep_their_proportions_and_their_middle(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    own = np.zeros((8, 24, 3), np.uint8)
    own[:, 8:16] = 255  # the middle third is what a square shows
    (folder / "p").mkdir()
    image.fromarray(own).save(folder / "p" / "a.png")
    shape: tuple[int | str, ...] = ("n", "h", "w", 3)
    last = load(model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}))
    (feeds,) = load_samples("p", last, preset="raw", size=(8, 8))
    assert feeds["x"].shape == (1, 8, 8, 3)
    assert feeds["x"].min() == 1.0
    whole = load(
        model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}, kind=TensorProto.UINT8)
    )
    assert load_samples("p", whole, size=(8, 8))[0]["x"].dtype == np.uint8


def test_labels_of_pictures(folder: Path) -> None:
    pytest.importorskip("PIL")
    image_folder(folder / "p", {"2/a.png": (4, 4), "10/a.png": (4, 4)})
    found = load_labelled("p", net(), preset="raw")
    assert sorted(int(k) for _, labels in found for k in labels) == [2, 10]
    (folder / "p" / "labels.csv").write_text("file,label\n2/a.png, 7\n10/a.png,5\n")
    found = load_labelled("p", net(), preset="raw")
    assert [int(k) for _, labels in found for k in labels] == [5, 7]
    (folder / "p" / "labels.csv").write_text("2/a.png,7\n")
    with pytest.raises(OnnxPruneError, match=r"10/a\.png' has no label: put pictures into one"):
        load_labelled("p", net(), preset="raw")


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        (("n", 3, 4, 4), Pictures(), "scaled is not known: give --preset"),
        (("n", 3, 4, 4), Pictures("imagnet"), "preset 'imagnet' is not known: choose one of clip"),
        (("n", 3, 4, 4), Pictures("raw", size=(5, 4)), "pictures of 4x4, the size given is 5x4"),
        (("n", 3, "h", 4), Pictures("raw"), "takes pictures of any size: say which"),
        (("n", "c", 8, 8), Pictures("raw"), "does not say where its channels are"),
        (("n", 3, 4, 4), Pictures("raw", layout="CHW"), "the layout is 'CHW': give NCHW or NHWC"),
        (("n", 2, 4, 2), Pictures("raw", layout="NCHW"), "has 2 channels in the layout NCHW"),
        (("n", 3, 4, 4), Pictures(mean=[1, 2], std=[1]), "mean has 2 numbers, .* 3 channels"),
        (("n", 3, 4, 4), Pictures(mean=[0], std=[0]), "std is 0.*: it must be above 0"),
        (("n", 3), Pictures("raw"), r"one input of four axes, and this one has x \(2 axes\)"),
    ],
)
def test_pictures_that_do_not_fit(folder: Path, shape: Any, how: Pictures, message: str) -> None:
    pytest.importorskip("PIL")
    image_folder(folder / "p", NAMES)
    own = load(model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}))
    with pytest.raises(OnnxPruneError, match=message):
        load_samples("p", own, **vars(how))


def test_pictures_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    (folder / "p").mkdir()
    with pytest.raises(OnnxPruneError, match="the folder 'p' has no pictures"):
        load_samples("p", net(), preset="raw")
    (folder / "p" / "a.png").write_bytes(b"no picture")
    with pytest.raises(OnnxPruneError, match=r"a\.png' can't be read as a picture"):
        load_samples("p", net(), preset="raw")
    with pytest.raises(OnnxPruneError, match="has type int64: pictures become floats, or go to"):
        load_samples("p", net(kind=TensorProto.INT64), preset="raw")
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(OnnxPruneError, match=r"not installed: pip install 'onnxprune\[images\]'"):
        load_samples("p", net(), preset="raw")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.npz", "'absent.npz': it is not there; give an .npz or .npy"),
        ("text.txt", "'text.txt': it is no .npz or .npy file"),
        ("broken.npz", "'broken.npz' can't be read as an .npz file of samples"),
        ("broken.npy", "'broken.npy' can't be read as an .npy file of samples"),
        ("two.npz", "'two.npz' has no array 'x': it holds 'a', 'b'"),
        ("empty.npy", "'empty.npy' has no samples"),
        ("flat.npy", r"'x' of 'flat.npy' has shape \(5, 3\): the first axis is the sample"),
        ("nowhere:samples", "'nowhere:samples' can't be imported: ModuleNotFoundError"),
        ("bad_source:samples", "'bad_source:samples' can't be called: the module has no such"),
        ("bad_source:number", "yields samples failed: TypeError"),
        ("bad_source:fails", "yields samples failed: ValueError: no luck"),
        ("bad_source:other", "the samples have no input 'x': they hold 'z'"),
        (3, "can't be read from a int: give a path"),
        (pixels()[:, :, :, :2], "axis 3: has size 2, the model wants 4"),
        (np.zeros((4, 2, 3, 4, 4), np.float32), "axis 1 should have size 1"),
        ([{"x": np.zeros(3, np.float32)}], r"have shapes x \(3,\): give one sample, or a batch"),
    ],
)
def test_bad_sources(source: Any, message: str) -> None:
    Path("text.txt").write_text("x")
    Path("broken.npz").write_text("x")
    Path("broken.npy").write_text("x")
    np.savez("two.npz", a=np.ones(3), b=np.ones(3))
    np.save("empty.npy", pixels(0))
    np.save("flat.npy", np.ones((5, 3), np.float32))
    Path("bad_source.py").write_text(
        "def number(): return 3\n"
        "def fails(): raise ValueError('no luck')\n"
        "def other(): yield {'z': 1}\n"
    )
    with pytest.raises(OnnxPruneError, match=message):
        load_samples(source, net())


def test_bad_amounts_and_labels() -> None:
    with pytest.raises(OnnxPruneError, match="samples is 0: it must be at least 1"):
        load_samples(pixels(), net(), samples=0)
    with pytest.raises(OnnxPruneError, match="batch is 0: it must be at least 1"):
        load_samples(pixels(), net(), batch=0)
    with pytest.raises(OnnxPruneError, match="has no labels: add an array y or label or labels"):
        load_labelled(pixels(), net())
    with pytest.raises(OnnxPruneError, match="yields pairs"):
        load_labelled([{"x": pixels()[0]}], net())
    with pytest.raises(OnnxPruneError, match="numbers of samples: 40 of x, 3 of the labels"):
        load_labelled({"x": pixels(), "y": np.arange(3)}, net())
    with pytest.raises(OnnxPruneError, match="yields feeds by input name, this one a int"):
        load_samples([3], pair(["n", 1], ["n", 1]))
    none = load(model([node("Identity", "c", "y")], {}, {"y": (2,)}, {"c": np.ones(2, np.float32)}))
    with pytest.raises(OnnxPruneError, match="the model has no inputs"):
        load_samples(pixels(), none)


def test_synthetic_samples_fit_and_differ() -> None:
    found = synthetic_samples(load(tiny.net()), samples=64)
    assert [len(feeds["x"]) for feeds in found] == [16] * 4
    assert [len(f["x"]) for f in synthetic_samples(load(tiny.net()), samples=384)] == [32] * 12
    assert [f["x"].shape[0] for f in synthetic_samples(net(1), samples=8)] == [1] * 8
    assert not np.array_equal(found[0]["x"], found[1]["x"])


def test_synthetic_pictures_have_spectra_like_pictures() -> None:
    found = pictures_like(np.random.default_rng(0), (64, 3, 32, 32))
    assert found.std() == pytest.approx(1, abs=0.02)
    power = np.square(np.abs(np.fft.fft2(found))).mean(axis=(0, 1))
    octaves = [np.sqrt(power[0, k]) for k in (2, 4, 8)]
    assert octaves[0] / octaves[1] == pytest.approx(2**1.5, rel=0.15)
    assert octaves[1] / octaves[2] == pytest.approx(2**1.5, rel=0.15)
    channels = np.corrcoef(found.transpose(1, 0, 2, 3).reshape(3, -1))
    assert channels[0, 1] == pytest.approx(0.81, abs=0.02)
    shape: tuple[int | str, ...] = ("n", 16, 16, 3)
    last = load(model([node("Identity", "x", "y")], {"x": shape}, {"y": shape}, {}))
    (first, *_) = synthetic_samples(last)
    steps = np.square(np.diff(first["x"], axis=1)).mean() / first["x"].var()
    assert steps < 1.2  # 2 where neighbours have nothing in common
    assert synthetic_samples(last)[3]["x"].tobytes() == synthetic_samples(last)[3]["x"].tobytes()


def normalized(kind: Kind) -> Model:
    """Two convolutions with norms that remember what noise of this kind does there."""
    generator = np.random.default_rng(5)
    weights = {
        "w1": weight(1, 8, 3, 3, 3),
        "w2": weight(2, 6, 8, 3, 3),
        **{
            f"{what}{k}": np.ones(size, np.float32)
            for k, size in ((1, 8), (2, 6))
            for what in "sbmv"
        },
    }
    nodes = [
        node("Conv", "x w1", "c1"),
        node("BatchNormalization", "c1 s1 b1 m1 v1", "n1"),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 w2", "c2"),
        node("BatchNormalization", "c2 s2 b2 m2 v2", "y"),
    ]
    shapes: tuple[dict[str, Any], dict[str, Any]] = {"x": ["n", 3, 32, 32]}, {"y": ["n", 6, 28, 28]}
    seen = {"x": pictures_like(generator, (64, 3, 32, 32), kind).astype(np.float32)}
    for k in "12":
        proto = model(nodes, *shapes, weights)
        proto.graph.output.append(onnx.ValueInfoProto(name=f"c{k}"))
        found = runtime.runner(proto, None)(seen)[f"c{k}"]
        weights[f"m{k}"], weights[f"v{k}"] = found.mean((0, 2, 3)), found.var((0, 2, 3))
    return load(model(nodes, *shapes, weights))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_drawn_that_norms_remember(kind: Kind) -> None:
    own = normalized(kind)
    assert matched(own) == kind
    first = synthetic_samples(own)[0]["x"]
    assert first.mean() == pytest.approx(kind.mean, abs=0.4 * kind.deviation)
    assert first.std() == pytest.approx(kind.deviation, rel=0.4)


@pytest.mark.parametrize(
    ("shift", "scale", "nats"), [(0, 1, 0.0), (3, 1, 4.5), (0, 2, (4 - 1 - np.log(4)) / 2)]
)
def test_how_unlike_noise_is_in_nats(shift: float, scale: float, nats: float) -> None:
    plain = np.random.default_rng(0).standard_normal((500, 3, 4, 4))
    norms = [("x", np.zeros(3), np.ones(3)), ("z", 2 * np.ones(3), 9 * np.ones(3))]
    values = {"x": shift + scale * plain, "z": 2 + 3 * plain}
    assert unlike(values, norms) == pytest.approx(nats / 2, abs=0.02)


def test_noise_is_plain_where_nothing_is_remembered() -> None:
    assert matched(load(tiny.net())) == PLAIN


def test_pictures_stand_upright(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    own = np.zeros((4, 4, 3), np.uint8)
    own[0] = 255  # the upper row is white
    (folder / "p").mkdir()
    image.fromarray(own).save(folder / "p" / "a.png")
    (feeds,) = load_samples("p", net(), preset="raw")
    np.testing.assert_array_equal(feeds["x"][0, :, 0], 1)
    np.testing.assert_array_equal(feeds["x"][0, :, 1:], 0)


def test_a_run_of_its_own_has_all_axes() -> None:
    feeds = {"a": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
    with pytest.raises(OnnxPruneError, match="give one sample, or a batch, of every input"):
        load_samples([feeds], pair(["n", 3], [2]))


def test_what_is_no_number_is_refused() -> None:
    values = pixels().copy()
    values[7, 0, 0, 0] = np.nan
    with pytest.raises(OnnxPruneError, match=r"sample 7 has values of input 'x' .* \(NaN\)"):
        load_samples(values, net(), samples=COUNT)
    masked = pixels().copy()
    masked[7] = -np.inf
    assert len(load_samples(masked, net())) > 1
