"""ONNX Runtime: sessions and runs, and the values of constant parts of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxprune.errors import RunError
from onnxprune.model import Array, captures
from onnxprune.providers import brief, open_session
from onnxprune.target import Target

Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], Mapping[str, Any]]  # outputs by name
CPU: Final = Target()


def session(
    proto: onnx.ModelProto, folder: Path | None, target: Target = CPU, optimize: bool = True
) -> ort.InferenceSession:
    """A session of a model in memory.

    Args:
        proto: the model; external data is looked for in ``folder``.
        folder: where the model's file lies.
        target: what it runs on: the CPU with one thread where absent.
        optimize: whether ORT may fuse and rearrange the graph.

    Raises:
        RunError: ORT refuses the model.
        ProviderError: the target's provider is not there, or ran nothing.
    """
    wanted = target if optimize else replace(target, optimization="disable")
    return open_session(proto, folder, wanted)


def run(session_: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str]) -> list[Array]:
    """Run once.

    Raises:
        RunError: ORT fails on these inputs.
    """
    try:
        return list(session_.run(list(outputs), dict(feeds)))
    except Exception as error:
        raise RunError(f"ONNX Runtime can't run the model: {brief(error)}") from error


def runner(proto: onnx.ModelProto, folder: Path | None, threads: int = 1) -> Runner:
    """A function that gives all outputs of a model by name for feeds.

    Raises:
        RunError: ORT refuses the model, or fails on the feeds.
    """
    own = session(proto, folder, replace(CPU, threads=threads))
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
