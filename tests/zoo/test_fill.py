"""The zoo fills deterministically, completely, and what comes out runs."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.zoo.fill import fill, load, names, tensors

SMALL = [
    "keras_jax/lstm",
    "others/torch_bilstm.dynamo",
    "paddle/lenet",
    "timm/mobilenetv3_small_050",
    "torchvision/shufflenet_v2_x0_5",
]


def stripped(name: str, kind: int, dims: list[int], doc: str) -> TensorProto:
    return TensorProto(name=name, data_type=kind, dims=dims, doc_string=doc)


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def zeros_for(value: onnx.ValueInfoProto) -> np.ndarray:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.dim_value > 0 else 1 for dim in tensor.shape.dim]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def test_the_zoo_is_complete() -> None:
    assert len(names()) == 265
    assert len(set(names())) == 265
    assert set(SMALL) <= set(names())


@pytest.mark.parametrize("name", ["paddle/lenet", "others/torch_bilstm.dynamo"])
def test_filling_is_deterministic(name: str) -> None:
    first = load(name, seed=3).SerializeToString(deterministic=True)
    assert load(name, seed=3).SerializeToString(deterministic=True) == first
    assert load(name, seed=4).SerializeToString(deterministic=True) != first


def test_values_are_the_same_on_every_machine() -> None:
    tensor = stripped("weight", TensorProto.FLOAT, [4], "fill: normal 1.0 0.5")
    model = model_of(helper.make_graph([], "g", [], [], [tensor]))
    fill(model)
    expected = [0.677435, 1.412006, 0.917382, 0.279658]
    values = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_stays_stripped(name: str) -> None:
    for label, tensor in tensors(load(name).graph):
        assert not tensor.doc_string, label
        assert onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims), label


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_strings_mean_what_they_say(kind: str) -> None:
    data_type = TensorProto.DataType.Value(kind)
    fills = {
        "normal": "fill: normal 3.0 0.5",
        "uniform": "fill: uniform 0.5 1.5",
        "constant": "fill: constant -0.0",
    }
    tensors_ = [stripped(name, data_type, [100, 100], doc) for name, doc in fills.items()]
    model = model_of(helper.make_graph([], "g", [], [], tensors_))
    fill(model)
    normal, uniform, constant = (
        onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    )
    assert normal.dtype == helper.tensor_dtype_to_np_dtype(data_type)
    assert normal.shape == (100, 100)
    assert abs(normal.astype(np.float64).mean() - 3.0) < 0.02
    assert abs(normal.astype(np.float64).std() - 0.5) < 0.02
    assert 0.5 <= uniform.min() < 0.51
    assert 1.49 < uniform.max() <= 1.5
    assert np.all(constant == 0)
    assert np.all(np.signbit(constant.astype(np.float32)))


def test_constant_nodes_and_bodies_are_filled() -> None:
    doc = "fill: normal 0.0 1.0"
    inner = stripped("inner", TensorProto.FLOAT, [3, 5], doc)
    constant = helper.make_node(
        "Constant", [], ["c"], value=stripped("", TensorProto.FLOAT, [5], doc)
    )
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [3, 5])
    add = helper.make_node("Add", ["inner", "c"], ["r"])
    body = helper.make_graph([constant, add], "body", [], [result], [inner])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5])
    model = model_of(helper.make_graph([branch], "g", [x], [y]))
    fill(model)
    filled = [(name, onnx.numpy_helper.to_array(t)) for name, t in tensors(model.graph)]
    assert [name for name, _ in filled] == ["inner", "c", "inner", "c"]
    assert all(values.any() for _, values in filled)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", SMALL)
def test_filled_models_run(name: str) -> None:
    model = load(name)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    initializers = {tensor.name for tensor in model.graph.initializer}
    feeds = {v.name: zeros_for(v) for v in model.graph.input if v.name not in initializers}
    results = session.run(None, feeds)
    assert results
    assert all(np.isfinite(result).all() for result in results)


def test_an_unknown_fill_is_refused() -> None:
    tensor = stripped("weight", TensorProto.FLOAT, [4], "fill: poisson 1.0")
    with pytest.raises(ValueError, match="tensor 'weight': no fill of kind 'poisson'"):
        fill(model_of(helper.make_graph([], "g", [], [], [tensor])))
