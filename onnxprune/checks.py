"""Whether a file is in order before it runs: onnx's checker, strict shapes, the same contract."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper

from onnxprune.rules.values import is_small
from onnxprune.shapes import is_external, stored

BRIEF = 300


def complaint(proto: onnx.ModelProto) -> str | None:
    """What onnx's checker or its strict shape inference has against a model; None if nothing.

    Both see a copy whose large constants are inputs, so that no weight is copied or loaded.
    """
    light = _light(proto)
    try:
        onnx.checker.check_model(light)
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # noqa: BLE001  (checker, inference and protobuf have their own)
        return " ".join(str(error).split())[:BRIEF]
    return None


def _light(proto: onnx.ModelProto) -> onnx.ModelProto:
    large = {}
    for name, tensor in stored(proto).items():
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if is_external(tensor) or not is_small(tensor.dims, dtype):
            large[name] = helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    source, graph = proto.graph, light.graph
    graph.name = source.name or "graph"
    graph.input.extend(value for value in source.input if value.name not in large)
    graph.input.extend(large.values())
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.initializer.extend(t for t in source.initializer if t.name not in large)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.node.extend(n for n in source.node if not n.output or n.output[0] not in large)
    return light


def contract(
    original: onnx.ModelProto, other: onnx.ModelProto, open_io: Collection[str] = ()
) -> str | None:
    """Where the inputs, outputs or opsets of two models differ; None where they don't.

    Of those in ``open_io`` only the names and element types have to agree.
    """
    sides = [_declared(proto, open_io) for proto in (original, other)]
    for what in sides[0]:
        if sides[0][what] != sides[1][what]:
            return f"its {what} are not those of the original"
    return None


def _declared(
    proto: onnx.ModelProto, open_io: Collection[str]
) -> dict[str, list[tuple[str, object]]]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        "inputs": [
            (i.name, _type(i, open_io)) for i in proto.graph.input if i.name not in constants
        ],
        "outputs": [(o.name, _type(o, open_io)) for o in proto.graph.output],
        "opsets": sorted((o.domain, o.version) for o in proto.opset_import),
    }


def _type(value: onnx.ValueInfoProto, open_io: Collection[str]) -> object:
    kind = value.type.tensor_type
    if value.name in open_io:
        return kind.elem_type, len(kind.shape.dim)
    return value.type.SerializeToString(deterministic=True)
