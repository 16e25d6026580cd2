"""ONNX Runtime: sessions with stated threads, and the values of constant parts of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import external_data_helper, numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, captures

ort.set_default_logger_severity(4)
Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], Mapping[str, Any]]  # outputs by name
MESSAGE_LIMIT = 300


class RunError(OnnxPruneError):
    """ONNX Runtime can't load or run the model."""


def session(
    proto: onnx.ModelProto, folder: Path | None, threads: int = 1, optimize: bool = True
) -> ort.InferenceSession:
    """A CPU session of a model in memory.

    Args:
        proto: the model; external data is looked for in ``folder``.
        folder: where the model's file lies.
        threads: threads inside an operator.
        optimize: whether ORT may fuse and rearrange the graph.

    Raises:
        RunError: ORT refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer):
        # ORT 1.31 and 1.32 end the process when they fully optimise some float16 transformers.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    providers = ["CPUExecutionProvider"]
    try:
        if folder is not None and any(
            external_data_helper.uses_external_data(t) for t in proto.graph.initializer
        ):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        return ort.InferenceSession(
            proto.SerializeToString(), options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        raise RunError(f"ONNX Runtime can't load the model: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:MESSAGE_LIMIT]


def run(session_: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str]) -> list[Array]:
    """Run once.

    Raises:
        RunError: ORT fails on these inputs.
    """
    try:
        return list(session_.run(list(outputs), dict(feeds)))
    except Exception as error:
        raise RunError(f"ONNX Runtime can't run the model: {_brief(error)}") from error


def runner(proto: onnx.ModelProto, folder: Path | None, threads: int = 1) -> Runner:
    """A function that gives all outputs of a model by name for feeds.

    Raises:
        RunError: ORT refuses the model, or fails on the feeds.
    """
    own = session(proto, folder, threads)
    names = [output.name for output in own.get_outputs()]
    return lambda feeds: dict(zip(names, run(own, feeds, names), strict=True))


def constant_values(
    proto: onnx.ModelProto, folder: Path | None, names: Sequence[str], known: Mapping[str, Array]
) -> list[Array]:
    """The values of graph values that depend on constants, and on values that are known, alone."""
    wanted, nodes = set(names), []
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output) - known.keys():
            nodes.append(node)
            wanted.update(node.input, captures(node))
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.graph.name = "constant"
    part.graph.node.extend(reversed(nodes))
    stored = [t for t in proto.graph.initializer if t.name in wanted]
    part.graph.initializer.extend(stored)
    given = (wanted & known.keys()) - {t.name for t in stored}
    part.graph.initializer.extend(numpy_helper.from_array(known[x], x) for x in sorted(given))
    for name in names:
        part.graph.output.add(name=name)
    return run(session(part, folder, optimize=False), {}, names)
