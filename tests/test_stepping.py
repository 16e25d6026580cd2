"""Laws of running a graph piece by piece: it gives what the whole gives, wherever it is cut."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.stepping import Stepper
from onnxprune.store import Store
from tests.graphs import model, node, residual, weight
from tests.zoo.fill import load

Array = NDArray[Any]
SAME = 1e-6  # relative: fusions differ between the pieces and the whole


def feeds_of(proto: onnx.ModelProto, count: int = 3) -> list[dict[str, Array]]:
    shapes = {
        value.name: [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    return [
        {
            name: np.random.default_rng(seed).standard_normal(shape, np.float32)
            for name, shape in shapes.items()
        }
        for seed in range(count)
    ]


def whole(proto: onnx.ModelProto, feeds: list[dict[str, Array]]) -> list[list[Array]]:
    session = runtime.session(proto, None)
    names = [output.name for output in proto.graph.output]
    return [runtime.run(session, one, names) for one in feeds]


def close(a: Array, b: Array) -> bool:
    return bool(np.abs(a - b).max() <= SAME * np.abs(b).max())


@pytest.mark.parametrize("stride", [1, 2, 3, 100])
@pytest.mark.parametrize("name", ["residual", "timm/levit_128s", "paddle/lenet"])
def test_pieces_give_what_the_whole_gives(name: str, stride: int) -> None:
    if name != "residual" and stride < 3:
        stride *= 20
    proto = residual() if name == "residual" else load(name)
    feeds = feeds_of(proto, 2)
    stepper = Stepper(proto, None, feeds)
    for stop in range(stride, len(stepper.nodes) + stride, stride):
        stepper.advance(min(stop, len(stepper.nodes)))
    found = [[stepper.values[x][k] for x in stepper.outputs] for k in range(2)]
    for one, other in zip(found, whole(proto, feeds), strict=True):
        assert all(close(a, b) for a, b in zip(one, other, strict=True))
    assert set(stepper.values) == set(stepper.outputs), "nothing else is kept"


def chain() -> onnx.ModelProto:
    """x -> MatMul a -> Relu r -> MatMul b -> + r -> y; b is behind a constant that is computed."""
    return model(
        [
            node("Neg", "minus", "w2"),
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "b"),
            node("Add", "b r", "y"),
        ],
        {"x": [4, 5]},
        {"y": [4, 5]},
        {"w1": weight(1, 5, 5), "minus": weight(2, 5, 5)},
    )


def test_constants_that_are_computed_are_no_step() -> None:
    stepper = Stepper(chain(), None, feeds_of(chain()))
    assert [n.op_type for n in stepper.nodes] == ["MatMul", "Relu", "MatMul", "Add"]
    assert stepper.index == {"a": 0, "r": 1, "b": 2, "y": 3}


def test_what_is_asked_for_stays_and_the_rest_goes() -> None:
    stepper = Stepper(chain(), None, feeds_of(chain()))
    stepper.advance(2, also=["a"])
    assert set(stepper.values) == {"a", "r"}
    stepper.advance(3)
    assert set(stepper.values) == {"r", "b"}
    stepper.advance(1)
    assert stepper.position == 3, "there is no way back"


def test_a_new_constant_counts_for_what_has_not_run() -> None:
    proto, feeds = chain(), feeds_of(chain())
    stepper = Stepper(proto, None, feeds)
    stepper.advance(2)
    before = [np.array(value) for value in stepper.values["r"]]
    stepper.replace(0, 1, np.zeros((5, 5), np.float32))
    stepper.replace(2, 1, -np.eye(5, dtype=np.float32))
    stepper.advance(4)
    for r, y in zip(before, stepper.values["y"], strict=True):
        assert close(y, r - r), "the second weight is the negative"


def test_what_does_not_fit_waits_on_disk() -> None:
    proto = load("timm/levit_128s")
    feeds = feeds_of(proto, 2)
    roomy, tight = Stepper(proto, None, feeds), Stepper(proto, None, feeds, limit_bytes=1 << 16)
    for stop in (40, 90, 150, len(roomy.nodes)):
        roomy.advance(stop)
        tight.advance(stop)
        for name, kept in roomy.values.items():
            pairs = zip(kept, tight.values[name], strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
    assert not roomy.store.files
    assert tight.store.files > 4
    assert tight.store.used_bytes <= 1 << 16
    folder = tight.store.path().parent
    waiting = [item for kept in tight.values.values() for item in kept._items]
    assert sum(isinstance(item, Path) for item in waiting) == len(list(folder.iterdir()))
    for name in list(tight.values):
        tight.drop(name)
    assert tight.store.used_bytes == 0
    assert not list(folder.iterdir())


def test_bfloat16_stays_in_memory() -> None:
    store = Store(limit_bytes=0)
    kept = store.keep([np.ones(3, ml_dtypes.bfloat16), np.ones(3, np.float32)])
    assert [array.dtype.name for array in kept] == ["bfloat16", "float32"]
    assert store.files == 1


def test_a_sequence_can_not_be_kept() -> None:
    nodes = [node("SequenceConstruct", "x x", "s"), node("ConcatFromSequence", "s", "y", axis=0)]
    proto = model(nodes, {"x": [2, 4]}, {"y": [4, 4]}, {})
    stepper = Stepper(proto, None, feeds_of(proto))
    sentence = (
        "^value 's' is a sequence or an optional: calibration can't run the model piece by piece; "
        "leave --calibration out$"
    )
    with pytest.raises(OnnxPruneError, match=sentence):
        stepper.advance(1)
