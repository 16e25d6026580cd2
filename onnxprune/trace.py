"""ONNX Runtime's profile of a run, joined back to the nodes of the file.

What ORT 1.31 does to names, as measured on 25 files:

- a node that it leaves alone keeps its name; so does a Conv that an activation is fused into;
- a Conv or pooling in the blocked layout is called ``VALUE_nchwc`` after its result, a
  BatchNormalization that becomes a Conv ``VALUE_bn_nchwc``; its result gets a new name, and the
  ReorderOutput behind it makes the old one;
- other fusions add to a name: ``NAME/MatMulAddFusion``, ``NAME/QuickGeluFusion/``; or have a new
  name, and a result with the old one (LayerNormalization, Gelu);
- what it inserts (ReorderInput, Transpose, Reshape before a Gemm) has a new name and new results.

So each node of a copy is named after its first result, and a kernel belongs to the values that its
name or its results tell. A node of the file belongs to the kernel that makes the first such value
that depends on it.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune import providers, runtime
from onnxprune.errors import ProviderError, RunError
from onnxprune.model import captures, first_name, subgraphs
from onnxprune.target import Target

SUFFIX: Final = "_kernel_time"
ADDED: Final = re.compile(r"(_bn)?_nchwc$|/\w*Fusion\w*/?$|_token_\d+$")
# Kernels that only lay the same values out in another way.
CONVERSIONS: Final = frozenset({"ReorderInput", "ReorderOutput", "Reshape", "Transpose"})
BYTES: Final = ("activation_size", "parameter_size", "output_size")
QUICK: Final = 0.3  # the share of the runs that counts for a kernel: its quickest ones
FEWEST: Final = 3  # runs, whatever time they take


@dataclass(frozen=True)
class Kernel:
    """What ONNX Runtime ran as one.

    Attributes:
        name: what ORT calls it.
        op: the operator that it runs.
        provider: ORT's name of the provider.
        nodes: the nodes of the file that it stands for, by their first result, in order; none
            where ORT inserted it.
        ms: its own time in one run: the mean of the quickest of the runs (see ``quick``).
        size_bytes: what it reads and writes: activations, parameters, results; None where the
            provider does not tell.
        compiled: whether the provider made one of several nodes, in a way of its own.
    """

    name: str
    op: str
    provider: str
    nodes: tuple[str, ...]
    ms: float
    size_bytes: int | None
    compiled: bool = False


def trace(
    proto: onnx.ModelProto,
    folder: Path | None,
    feeds: runtime.Feeds,
    target: Target,
    runs: int = 20,
    warm_up: int = 3,
) -> tuple[Kernel, ...]:
    """Run a model with ORT's profiler on; the kernels of the session in the order that they ran.

    What depends on constants alone belongs to no kernel. The profiler adds about 2 microseconds to
    each kernel, and far more between them: the time of a whole run under it means nothing.

    Raises:
        RunError: ONNX Runtime can't load or run the model.
        ProviderError: the provider is not there, or ran nothing.
    """
    kernels, _ = traces([(proto, folder)], feeds, target, runs, warm_up, plain=0)[0]
    return kernels


def traces(
    models: Sequence[tuple[onnx.ModelProto, Path | None]],
    feeds: runtime.Feeds,
    target: Target,
    runs: int = 20,
    warm_up: int = 3,
    plain: int = 10,
    seconds: float = math.inf,
) -> list[tuple[tuple[Kernel, ...], float]]:
    """The same for several models whose runs take turns, and what a run takes without a profile.

    Args:
        models: each with the folder of its external data.
        feeds: inputs by name.
        target: what they run on.
        runs, warm_up: runs of each with the profiler on that count, and before that.
        plain: runs of each without it; the lower quartile is what one takes, of the processor's
            time where that says it.
        seconds: what all of them may take, with and without the profiler each; three are made
            whatever they take.

    Raises:
        RunError: ONNX Runtime can't load or run a model.
        ProviderError: the provider is not there, or ran nothing.
    """
    found = []
    with tempfile.TemporaryDirectory() as place:
        opened = [_opened(*own, target, Path(place) / str(k)) for k, own in enumerate(models)]
        sessions = [session for _, session, _ in opened]
        outputs = [value.name for value in sessions[0].get_outputs()]
        for _ in _turns(warm_up + runs, warm_up + FEWEST, seconds):
            for session in sessions:
                runtime.run(session, feeds, outputs)
        events = [json.loads(Path(s.end_profiling()).read_text("utf-8")) for s in sessions]
        whole: list[list[float]] = [[] for _ in sessions]
        clock = time.process_time if target.one_core else time.perf_counter
        for _ in _turns(plain, FEWEST, seconds):
            for session, times in zip(sessions, whole, strict=True):
                start = clock()
                runtime.run(session, feeds, outputs)
                times.append((clock() - start) * 1e3)
        for (named, session, optimized), own, times in zip(opened, events, whole, strict=True):
            parts = providers.placement(session).parts
            kernels = _kernels(named.graph, own, warm_up, optimized, parts)
            found.append((kernels, float(np.quantile(times, 0.25)) if times else 0.0))
    return found


def _turns(most: int, fewest: int, seconds: float) -> Iterator[int]:
    """Numbers from 0 on, as many as there is time for."""
    start = time.perf_counter()
    for turn in range(most):
        if turn >= fewest and time.perf_counter() - start >= seconds:
            return
        yield turn


def _kernels(
    graph: onnx.GraphProto,
    events: Sequence[Mapping[str, Any]],
    warm_up: int,
    optimized: onnx.GraphProto,
    parts: Sequence[tuple[str, tuple[tuple[str, str], ...]]],
) -> tuple[Kernel, ...]:
    times = _own_times(events, warm_up)
    owners = _owners(graph, [event for event, _ in times], optimized, parts)
    return tuple(_kernel(e, ms, own) for (e, ms), own in zip(times, owners, strict=True))


def _opened(
    proto: onnx.ModelProto, folder: Path | None, target: Target, place: Path
) -> tuple[onnx.ModelProto, ort.InferenceSession, onnx.GraphProto]:
    """A copy whose nodes have names, a session of it that profiles, and the graph of that."""
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    _name(named.graph)
    place.mkdir()
    return named, *_session(named, folder, target, place)


def _name(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.name = first_name(node.output)
        for body in subgraphs(node):
            _name(body)


def _session(
    proto: onnx.ModelProto, folder: Path | None, target: Target, place: Path
) -> tuple[ort.InferenceSession, onnx.GraphProto]:
    """A session that profiles, and the graph that it runs, where the provider can write it."""
    file = place / "optimized.onnx"

    def profile(options: ort.SessionOptions) -> None:
        options.enable_profiling, options.profile_file_prefix = True, str(place / "trace")

    def write(options: ort.SessionOptions) -> None:
        profile(options)
        options.optimized_model_filepath = str(file)
        key = "session.optimized_model_external_initializers_file_"
        options.add_session_config_entry(f"{key}name", "optimized.data")
        options.add_session_config_entry(f"{key}min_size_in_bytes", "1024")

    try:
        session = providers.open_session(proto, folder, target, write)
    except (ProviderError, RunError):  # a provider that compiles can't write its graph
        session = providers.open_session(proto, folder, target, profile)
    if not file.is_file():
        return session, onnx.GraphProto()
    return session, onnx.load(str(file), load_external_data=False).graph


def _own_times(
    events: Sequence[Mapping[str, Any]], warm_up: int
) -> list[tuple[Mapping[str, Any], float]]:
    """The first event of each kernel, and its own time in one run, in milliseconds.

    A control-flow kernel spans those of its bodies: their time is taken off. A kernel that runs
    several times in one run (in a Loop) counts with the sum.
    """
    runs = sorted((e for e in events if e["name"] == "model_run"), key=_start)[warm_up:]
    kernels = sorted((e for e in events if e["cat"] == "Node"), key=_start)
    kernels = [e for e in kernels if e["name"].endswith(SUFFIX)]
    sums: dict[tuple[str, str], list[float]] = {}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for turn, run in enumerate(runs):
        stack: list[tuple[float, tuple[str, str]]] = []
        for event in kernels:
            begin = _start(event)
            if not _start(run) <= begin < _start(run) + run["dur"]:
                continue
            key = (event["name"], event["args"].get("node_index", ""))
            first.setdefault(key, event)
            own = sums.setdefault(key, [0.0] * len(runs))
            own[turn] += event["dur"]
            while stack and begin >= stack[-1][0]:
                stack.pop()
            if stack:
                sums[stack[-1][1]][turn] -= event["dur"]
            stack.append((begin + event["dur"], key))
    return [(first[key], quick(own) / 1e3) for key, own in sums.items()]


def _start(event: Mapping[str, Any]) -> float:
    return float(event["ts"])


def quick(values: Sequence[float]) -> float:
    """The mean of the quickest three tenths.

    What else a machine does makes kernels slower and never faster, and long ones above all: on a
    busy one the middle of the runs says more of the scheduler than of the kernel. The mean is finer
    than a clock of microseconds.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    return float(np.mean(ordered[: max(1, round(QUICK * len(ordered)))]))


def _kernel(event: Mapping[str, Any], ms: float, nodes: tuple[str, ...]) -> Kernel:
    args = event["args"]
    sizes = [int(args[key]) for key in BYTES if key in args]
    whole = sum(sizes) if len(sizes) == len(BYTES) else None
    name = str(event["name"]).removesuffix(SUFFIX)
    op, provider = args.get("op_name", ""), args.get("provider", "")
    return Kernel(name, op, provider, nodes, ms, whole, name.startswith(f"{provider}_"))


def _owners(
    graph: onnx.GraphProto,
    events: Sequence[Mapping[str, Any]],
    optimized: onnx.GraphProto,
    parts: Sequence[tuple[str, tuple[tuple[str, str], ...]]],
) -> list[tuple[str, ...]]:
    """The nodes of the file that each kernel stands for, by their first result.

    Kernels come in the order that they ran: what a kernel needs and an earlier one made is that
    one's.
    """
    fixed = constants(graph)
    makers = {
        value: node
        for node in _every(graph)
        for value in node.output
        if value and value not in fixed
    }
    keys = [str(event["name"]).removesuffix(SUFFIX) for event in events]
    anchors = _anchors(makers, keys, optimized)
    found: list[dict[str, None]] = [{} for _ in events]
    owned: set[str] = set()
    compiled = [own for _, own in parts if len(own) > 1]
    for position, event in enumerate(events):
        provider = event["args"].get("provider", "")
        if not anchors[position] and compiled and keys[position].startswith(f"{provider}_"):
            found[position] = {name: None for name, _ in compiled.pop(0) if name in makers}
            owned.update(found[position])
    for position, own in enumerate(anchors):
        waiting = list(own)
        while waiting:
            node = makers.get(waiting.pop())
            key = first_name(node.output) if node is not None else ""
            if node is None or key in owned:
                continue
            owned.add(key)
            found[position][key] = None
            before = (*node.input, *captures(node))
            waiting += [v for v in before if v in makers]
    ranks = {first_name(node.output): rank for rank, node in enumerate(_every(graph))}
    return [tuple(sorted(own, key=ranks.__getitem__)) for own in found]


def _anchors(
    makers: Mapping[str, onnx.NodeProto], keys: Sequence[str], optimized: onnx.GraphProto
) -> list[list[str]]:
    """The values of the file that each kernel makes, by its name, then by its results."""
    running = {node.name or node.op_type: node for node in _every(optimized)}
    found = [[name] if (name := _stated(key, makers)) else [] for key in keys]
    taken = {value for own in found for value in own}
    at = {key: position for position, key in enumerate(keys)}
    sources = {v: at[k] for k, n in running.items() if k in at for v in n.output if v}
    for position in reversed(range(len(keys))):
        node = running.get(keys[position])
        results = [v for v in node.output if v in makers and v not in taken] if node else []
        if not results or node is None:
            continue
        taken.update(results)
        source = sources.get(node.input[0]) if node.input else None
        if node.op_type in CONVERSIONS and not found[position] and source is not None:
            position = source  # the values are those of the kernel before, laid out anew
        found[position] += results
    return found


def _stated(key: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The value that a kernel is named after; empty where it is not."""
    while key and key not in makers:
        shorter = ADDED.sub("", key)
        if shorter == key:
            return ""
        key = shorter
    return key


def constants(graph: onnx.GraphProto) -> set[str]:
    """What is computed from constants alone: runtimes do it once, and no kernel stands for it."""
    found = {"", *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if found.issuperset((*node.input, *captures(node))):
            found.update(node.output)
    return found


def _every(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, bodies included."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from _every(body)
