"""Inputs: random ones are within the declared types, a user's are checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.data import bound_of_ids, check_inputs, load_inputs, one_sample, random_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.files import load
from onnxprune.model import Model
from tests.graphs import model, node, weight

Array = NDArray[Any]


def embedding() -> Model:
    """Token ids pick from a table of 11, types from one of 2; a mask of the same shape."""
    return load(
        model(
            [
                node("Gather", "words ids", "w"),
                node("Unsqueeze", "types last", "u"),
                node("Cast", "u", "v", to=TensorProto.INT32),
                node("Squeeze", "v last", "s"),
                node("Gather", "kinds s", "k"),
                node("Add", "w k", "a"),
                node("Cast", "attention_mask", "m", to=TensorProto.FLOAT),
                node("Unsqueeze", "m last", "n"),
                node("Mul", "a n", "y"),
            ],
            {"ids": ["batch", "time"], "types": ["batch", "time"], "attention_mask": ["batch", 31]},
            {"y": ["batch", "time", 4]},
            {"words": weight(1, 11, 4), "kinds": weight(2, 2, 4), "last": np.array([-1])},
            ids=TensorProto.INT64,
            types=TensorProto.INT64,
            attention_mask=TensorProto.INT64,
        )
    )


def plain(kind: int, *shape: int | str, name: str = "x") -> Model:
    return load(model([node("Identity", name, "y")], {name: shape}, {"y": shape}, {}, kind=kind))


def test_ids_stay_inside_their_tables() -> None:
    found = embedding()
    assert [bound_of_ids(found, name) for name in found.inputs] == [11, 2, None]
    ids = random_inputs(found, 0)["ids"]
    assert (ids.min(), ids.max()) == (0, 10)
    assert set(np.unique(random_inputs(found, 0)["types"])) == {0, 1}


def test_a_table_of_unknown_size_is_picked_from_at_0() -> None:
    found = load(
        model(
            [node("Gather", "x i", "y")],
            {"x": ["rows", 3], "i": [5]},
            {"y": [5, 3]},
            {},
            i=TensorProto.INT64,
        )
    )
    assert not random_inputs(found, 0)["i"].any()


def test_masks_hide_little_and_never_all() -> None:
    mask = random_inputs(embedding(), 0)["attention_mask"]
    assert mask.dtype == np.int64
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() > 0.75
    assert mask[:, 0].all()


def test_sizes_are_small_in_front_and_the_analysis_own_elsewhere() -> None:
    found = embedding()
    first, second = (random_inputs(found, 0, choice) for choice in range(2))
    assert (first["ids"].shape, second["ids"].shape) == ((2, 31), (3, 37))
    assert first["attention_mask"].shape == (2, 31)
    assert random_inputs(found, 0, 1, small=False)["ids"].shape == (17, 37)


def test_one_sample_has_the_sizes_of_the_costs_and_a_batch_of_one() -> None:
    found = one_sample(embedding(), 0)
    full = random_inputs(embedding(), 0, small=False)
    assert {name: array.shape for name, array in found.items()} == {
        name: (1, *array.shape[1:]) for name, array in full.items()
    }
    assert full["ids"].shape[0] > 1
    fixed = plain(TensorProto.FLOAT, 13, 3)  # as many as a dynamic batch is taken for
    assert one_sample(fixed, 0)["x"].shape == (13, 3)


def test_the_same_arguments_give_the_same_values() -> None:
    found = plain(TensorProto.FLOAT, 3, 5)
    first, again, other = (random_inputs(found, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "kind",
    ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT32", "INT16", "UINT32", "BOOL", "INT8", "UINT8"],
)
def test_values_have_the_declared_type(kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    values = random_inputs(plain(number, 40, 50), 0)["x"]
    assert values.dtype == helper.tensor_dtype_to_np_dtype(number)
    assert values.shape == (40, 50)
    plain_values = values.astype(np.float64)
    if "FLOAT" in kind or kind == "DOUBLE":
        assert abs(plain_values.std() - 1) < 0.1
    elif kind.endswith("INT8"):
        info = np.iinfo(values.dtype)
        assert (plain_values.min(), plain_values.max()) == (info.min, info.max)
    else:
        assert set(np.unique(plain_values)) == {0, 1}


def test_scalars_masks_and_strings() -> None:
    assert random_inputs(plain(TensorProto.FLOAT), 0)["x"].shape == ()
    mask = random_inputs(plain(TensorProto.BOOL, 9, 20, name="src_mask"), 0)["src_mask"]
    assert mask.dtype == bool
    assert mask.mean() > 0.7
    additive = random_inputs(plain(TensorProto.FLOAT, 9, 20, name="mask"), 0)["mask"]
    assert additive.min() < 0
    words = random_inputs(plain(TensorProto.STRING, 2), 0)["x"]
    assert words.tolist() == ["a", "a"]


def test_what_has_no_random_values_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="input 'x' has type COMPLEX64: random values"):
        random_inputs(plain(TensorProto.COMPLEX64, 2), 0)
    proto = model([node("SequenceAt", "x i", "y")], {"x": [2], "i": []}, {"y": [2]}, {})
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(OnnxPruneError, match="input 'x' is no tensor"):
        random_inputs(load(proto), 0)


def test_real_inputs_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    found = embedding()
    ids = np.zeros((4, 31), np.int64)
    np.savez(path, ids=ids, types=ids + 1, attention_mask=ids, label=ids)
    loaded = load_inputs(path, found)
    assert list(loaded) == ["ids", "types", "attention_mask"]
    np.testing.assert_array_equal(loaded["types"], ids + 1)


def test_a_file_of_inputs_that_does_not_do_is_refused(tmp_path: Path) -> None:
    found = embedding()
    path = tmp_path / "inputs.npz"
    with pytest.raises(OnnxPruneError, match=r"inputs.npz' can't be read as an .npz file"):
        load_inputs(path, found)
    path.write_bytes(b"PK nothing")
    with pytest.raises(OnnxPruneError, match=r"can't be read as an .npz file"):
        load_inputs(path, found)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(OnnxPruneError, match=r"can't be read as an .npz file"):
        load_inputs(tmp_path / "one.npy", found)
    np.savez(path, ids=np.zeros((1, 31), np.int64))
    with pytest.raises(OnnxPruneError, match="has no array 'types': it holds 'ids'"):
        load_inputs(path, found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ids", np.zeros((4, 31), np.int32), "'ids' has type int32, the model wants int64"),
        ("ids", np.zeros(4, np.int64), r"'ids' has shape \(4,\), the model wants 2 axes"),
        ("attention_mask", np.zeros((4, 30), np.int64), "axis 1: has size 30, .* wants 31"),
        ("types", np.zeros((4, 30), np.int64), "size 30, but 'time' is 31 in input 'ids'"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(name: str, value: Array, message: str) -> None:
    good = dict.fromkeys(("ids", "types", "attention_mask"), np.zeros((4, 31), np.int64))
    with pytest.raises(OnnxPruneError, match=message):
        check_inputs({**good, name: value}, embedding())


def test_an_input_that_is_missing_is_named() -> None:
    with pytest.raises(OnnxPruneError, match="the inputs have no 'types'"):
        check_inputs({"ids": np.zeros((4, 31), np.int64)}, embedding())


def test_bfloat16_may_come_as_float32() -> None:
    found = check_inputs({"x": np.ones(3, np.float32)}, plain(TensorProto.BFLOAT16, 3))
    assert found["x"].dtype == helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
