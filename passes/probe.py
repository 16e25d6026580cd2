"""Probe: measure how the time of kernels depends on their channels, on this machine.

For each kind of kernel a small model is timed at a row of channel counts, in turn. ONNX Runtime's
CPU provider takes convolutions in blocks; other providers and processors have other steps, or none.
What is found is what ``onnxprune.alignment`` rounds kept counts to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune import providers, runner, runtime
from onnxprune.errors import OnnxPruneError, ProviderError
from onnxprune.staircase import GROUPED, PRODUCT, Probe, fitted, key_of, stairs_of
from onnxprune.target import Target

# Multiples of 4, 8, 16 and 32, and what lies between them.
COUNTS: Final = (
    *(32, 36, 40, 44, 47, 48, 50, 52, 56, 58, 60, 62, 63, 64),
    *(68, 72, 76, 79, 80, 84, 88, 90, 92, 95, 96),
)
GROUPS: Final = 4
EDGE: Final = 128  # channels of what goes in and comes out
SIDE: Final = 28  # pixels
ROWS: Final = 64  # of a matrix
WARM_UP: Final = 3
ROUNDS: Final = 60
SECONDS: Final = 5.0  # of each kind, whatever the rounds
LOW: Final = 0.1  # the quantile that counts: what else runs makes runs slower, never faster
DTYPES: Final = ("float32", "float16")
KINDS: Final = ("conv 1x1", "conv 3x3", "depthwise", GROUPED, PRODUCT)
Timer = Callable[[str, Sequence[onnx.ModelProto], Target], Sequence[float]]
Tell = Callable[[str], object]


def probe(
    target: Target,
    dtype: str = "float32",
    timer: Timer | None = None,
    tell: Tell | None = None,
) -> Probe:
    """Time kernels at many channel counts, and find their steps.

    Args:
        target: the provider, its options and the threads.
        dtype: the type of all values.
        timer: gives the milliseconds of models, timed side by side.
        tell: is told each kind of kernel as it is begun.

    Raises:
        OnnxPruneError: there are no kernels of this type.
        ProviderError: the provider is not there, or only simulates its device.
    """
    if dtype not in DTYPES:
        raise OnnxPruneError(f"there is no probe for {dtype}: give one of {', '.join(DTYPES)}")
    curves = {}
    for kind in KINDS:
        if tell is not None:
            tell(f"probe {kind}")
        models = [model_of(kind, count, dtype) for count in COUNTS]
        curves[kind] = fitted(COUNTS, (timer or _times)(kind, models, target))
    return Probe(key_of(target, dtype), curves, stairs_of(curves))


def _times(kind: str, models: Sequence[onnx.ModelProto], target: Target) -> Sequence[float]:
    """Low quantiles of as many rounds as there is time for.

    With one thread on the CPU they are of the processor's time, which waiting does not add to.
    """
    if providers.simulated(target):
        raise ProviderError(
            f"the execution provider '{target.ep}' only simulates its device on this machine: its "
            f"times mean nothing, so there is no curve of {kind}"
        )
    calls = [_call(model, target) for model in models]
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < WARM_UP + ROUNDS and (
        len(rounds) < WARM_UP + runner.FEWEST or time.perf_counter() - start < SECONDS
    ):
        rounds.append([runner.timed(call)[target.one_core] for call in calls])
    return [float(own) for own in np.quantile(rounds[WARM_UP:], LOW, axis=0)]


def _call(model: onnx.ModelProto, target: Target) -> Callable[[], object]:
    session = providers.open_session(model, None, target)
    given = model.graph.input[0]
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    feeds = {given.name: np.ones(shape, dtype)}
    return lambda: runtime.run(session, feeds, ["y"])


def model_of(kind: str, count: int, dtype: str = "float32") -> onnx.ModelProto:
    """A small model whose work is linear in ``count`` channels of one kind of kernel."""
    nodes: Sequence[tuple[Mapping[str, Any], Sequence[int]]]
    if kind == PRODUCT:
        shape = [ROWS, 4 * EDGE]
        nodes = [({}, (4 * EDGE, count)), ({}, (count, 4 * EDGE))]
    else:
        shape = [1, EDGE, SIDE, SIDE]
        side = 1 if kind in ("conv 1x1", "depthwise") else 3
        groups = GROUPS if kind == GROUPED else 1
        made = _conv(groups * count, EDGE // groups, side, groups)
        own = [_conv(count, 1, 3, count)] * 2 if kind == "depthwise" else []
        nodes = [made, *own, _conv(EDGE, count, side, groups)]
    return _chained("MatMul" if kind == PRODUCT else "Conv", shape, nodes, np.dtype(dtype))


def _conv(out: int, into: int, side: int, groups: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    return {"group": groups, "pads": [side // 2] * 4}, (out, into, side, side)


def _chained(
    op: str,
    shape: Sequence[int],
    nodes: Sequence[tuple[Mapping[str, Any], Sequence[int]]],
    dtype: np.dtype[Any],
) -> onnx.ModelProto:
    """One node after another, each with a weight of its own."""
    names = ["x", *(f"v{k}" for k in range(1, len(nodes))), "y"]
    generator = np.random.default_rng(0)
    made, weights = [], []
    for k, (attributes, size) in enumerate(nodes):
        made.append(helper.make_node(op, [names[k], f"w{k}"], [names[k + 1]], **attributes))
        values = 0.01 * generator.standard_normal(size, np.float32)
        weights.append(numpy_helper.from_array(values.astype(dtype), f"w{k}"))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph(made, "probe", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
