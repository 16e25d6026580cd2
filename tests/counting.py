"""What a model costs, counted the slow way: from the shapes of one run, node by node.

Knows nothing of layouts, rules or couplings, and is what ``onnxprune.cost`` is tested against.
"""

import math

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxprune.cost import Cost

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8}


def count(model: onnx.ModelProto, batch: int = 1) -> Cost:
    """The cost of a model whose tensors are all in the main graph."""
    stored = {t.name: t for t in model.graph.initializer}
    stored |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    inputs = [v for v in model.graph.input if v.name not in stored]
    nodes = [n for n in model.graph.node if n.output[0] not in stored]
    constant = set(stored)
    fixed = all(d.dim_value > 0 for v in inputs for d in v.type.tensor_type.shape.dim)
    for node in nodes:
        sizes = fixed and node.op_type == "Shape"
        if sizes or (node.input and constant.issuperset(x for x in node.input if x)):
            constant.update(node.output)
    running = [n for n in nodes if not constant.issuperset(n.output)]
    values = run(model, inputs, [x for n in nodes for x in n.output if x], batch)
    values |= {name: (tuple(t.dims), itemsize(t.data_type)) for name, t in stored.items()}
    read = {x for n in nodes for x in n.input}
    macs = sum(macs_of(n, values) for n in running)
    params = sum(
        math.prod(t.dims) for name, t in stored.items() if name in read and t.data_type in FLOATS
    )
    size = len(model.SerializeToString())
    return Cost(macs, params, size, peak(model, inputs, running, values))


Values = dict[str, tuple[tuple[int, ...], int]]  # shape and bytes of one element


def itemsize(kind: int) -> int:
    return helper.tensor_dtype_to_np_dtype(kind).itemsize


def run(
    model: onnx.ModelProto, inputs: list[onnx.ValueInfoProto], names: list[str], batch: int
) -> Values:
    """Shapes and element sizes of the inputs and of these values, seen in one run."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    seen.graph.output.extend(
        helper.make_empty_tensor_value_info(n) for n in names if n not in known
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(seen.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {}
    for value in inputs:
        kind = value.type.tensor_type
        dims = [d.dim_value or (batch if k == 0 else 31) for k, d in enumerate(kind.shape.dim)]
        feeds[value.name] = np.ones(dims, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    found = dict(zip(names, session.run(names, feeds), strict=True)) | feeds
    return {name: (array.shape, array.itemsize) for name, array in found.items()}


def macs_of(node: onnx.NodeProto, values: Values) -> int:
    """Multiply-accumulates of one node."""
    shapes = [values[name][0] if name else () for name in node.input]
    made = math.prod(values[node.output[0]][0])
    match node.op_type:
        case "Conv":
            return made * math.prod(shapes[1][1:])
        case "ConvTranspose":
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case "Gemm":
            transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
            return made * shapes[0][0 if transposed else 1]
        case "MatMul":
            return made * shapes[0][-1]
        case "LSTM":
            length, samples, width = shapes[0]
            directions, gates, _ = shapes[1]
            return length * samples * directions * gates * (width + shapes[2][2])
        case "Einsum":
            raise NotImplementedError("no model of these tests has one")
        case _:
            return 0


def peak(
    model: onnx.ModelProto,
    inputs: list[onnx.ValueInfoProto],
    nodes: list[onnx.NodeProto],
    values: Values,
) -> int:
    """The most bytes of activations alive while a node runs; constants have none."""
    last = {x: k for k, n in enumerate(nodes) for x in n.input}
    last |= {o.name: len(nodes) for o in model.graph.output}
    alive = {v.name for v in inputs}
    most = 0
    for k, node in enumerate(nodes):
        alive.update(x for x in node.output if x)
        sizes = [math.prod(values[x][0]) * values[x][1] for x in alive]
        most = max(most, sum(sizes))
        alive = {x for x in alive if last.get(x, -1) > k}
    return most
