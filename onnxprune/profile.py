"""Where the time of a model goes: by layer, by operator, by provider, and what bounds it.

A layer is what the provider runs as one: a Conv with its activation, a LayerNormalization that the
file has as ten nodes, or a whole graph where the provider compiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import providers, runtime
from onnxprune.coupling import Coupling
from onnxprune.model import Model, first_name, operator
from onnxprune.target import Target
from onnxprune.trace import Kernel, constants, trace

SIDE: Final = 1024  # of the matrices that measure arithmetic
COPIED_BYTES: Final = 2**27  # far more than caches hold
TRIES: Final = 7


@dataclass(frozen=True)
class Roofline:
    """What the machine can do at best, as measured on the spot.

    Attributes:
        macs_per_s: multiply-accumulates of a float32 matrix product on the target.
        bytes_per_s: bytes read and written by a copy in main memory.
    """

    macs_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """The multiply-accumulates per byte from which on arithmetic is what takes the time."""
        return self.macs_per_s / self.bytes_per_s

    def least_ms(self, macs: int, size_bytes: int) -> float:
        """The time that so much work takes at best."""
        return max(macs / self.macs_per_s, size_bytes / self.bytes_per_s) * 1e3


@dataclass(frozen=True)
class Layer:
    """One row of a profile.

    Attributes:
        name: its node with the most multiply-accumulates, else its last; what ORT calls it where
            ORT inserted it.
        op: the operator of that node.
        kernel: the operator that the provider runs.
        nodes: the first results of the nodes that it stands for; none where ORT inserted it.
        groups: the groups whose channels the layer makes.
        provider: ORT's name of the provider.
        ms: its time.
        share: of the time of all layers.
        macs: its multiply-accumulates.
        size_bytes: what it reads and writes, as the provider stores it; None where that is unknown.
        bound: whether arithmetic or memory limits it, by the roofline; None where unknown.
        efficiency: the least time by the roofline, over the time it takes; None where unknown.
    """

    name: str
    op: str
    kernel: str
    nodes: tuple[str, ...]
    groups: tuple[str, ...]
    provider: str
    ms: float
    share: float
    macs: int
    size_bytes: int | None
    bound: Literal["compute", "memory"] | None
    efficiency: float | None


@dataclass(frozen=True)
class Profile:
    """The layers of a model in the order that they ran.

    Attributes:
        layers: the layers.
        total_ms: the sum of their times, some 2 microseconds of each being the profiler's own.
        roofline: what the machine can do.
        idle: nodes that did not run, by their first result (the other branch of an If).
    """

    layers: tuple[Layer, ...] = field(repr=False)
    total_ms: float
    roofline: Roofline
    idle: tuple[str, ...] = ()

    def by_operator(self) -> dict[str, float]:
        """Milliseconds by operator, the largest first."""
        return _sums((layer.op, layer.ms) for layer in self.layers)

    def by_provider(self) -> dict[str, float]:
        """Milliseconds by provider, the largest first."""
        return _sums((layer.provider, layer.ms) for layer in self.layers)

    def by_bound(self) -> dict[str, float]:
        """Milliseconds by what limits the layer, the largest first."""
        return _sums((layer.bound or "unknown", layer.ms) for layer in self.layers)


@dataclass(frozen=True)
class Change:
    """Layers of two profiles that stand for the same nodes.

    Attributes:
        name: the layer.
        op: its operator.
        groups: the groups whose channels it makes.
        before_ms, after_ms: its time in each; 0 where it is not there.
        before_macs, after_macs: its multiply-accumulates in each.
        before_kernel, after_kernel: what the provider runs in each.
    """

    name: str
    op: str
    groups: tuple[str, ...]
    before_ms: float
    after_ms: float
    before_macs: int
    after_macs: int
    before_kernel: str
    after_kernel: str


def profile(
    model: Model,
    feeds: runtime.Feeds,
    target: Target,
    *,
    macs: Mapping[str, int],
    groups: Mapping[str, tuple[str, ...]] | None = None,
    roofline: Roofline | None = None,
    runs: int = 20,
) -> Profile:
    """Run a model under ORT's profiler and say where the time goes.

    Args:
        model: the model.
        feeds: its inputs.
        target: what it runs on.
        macs: multiply-accumulates by node, for the sizes of these inputs (see ``node_macs``).
        groups: groups by node (see ``node_groups``).
        roofline: what the machine can do; measured where absent.
        runs: how many runs count.

    Raises:
        RunError: ONNX Runtime can't load or run the model.
        ProviderError: the provider is not there, or ran nothing.
    """
    kernels = trace(model.proto, model.folder, feeds, target, runs)
    return layered(model.proto, kernels, macs, groups or {}, roofline or measured(target))


def layered(
    proto: onnx.ModelProto,
    kernels: Sequence[Kernel],
    macs: Mapping[str, int],
    groups: Mapping[str, tuple[str, ...]],
    roofline: Roofline,
) -> Profile:
    """The profile that kernels make."""
    total = math.fsum(kernel.ms for kernel in kernels)
    ran = {key for kernel in kernels for key in kernel.nodes}
    keys = (first_name(node.output) for node in proto.graph.node)
    fixed = constants(proto.graph)
    idle = tuple(key for key in keys if key not in ran and key not in fixed)
    return Profile(layers_of(proto, kernels, macs, groups, roofline), total, roofline, idle)


def layers_of(
    proto: onnx.ModelProto,
    kernels: Sequence[Kernel],
    macs: Mapping[str, int],
    groups: Mapping[str, tuple[str, ...]],
    roofline: Roofline | None = None,
) -> tuple[Layer, ...]:
    """The layers that kernels make; without a roofline nothing is said of what bounds them."""
    nodes = {first_name(node.output): node for node in proto.graph.node}
    total = math.fsum(kernel.ms for kernel in kernels)
    layers = []
    for kernel in kernels:
        own = [macs.get(key, 0) for key in kernel.nodes]
        # The last of those with the most: what is fused into an operator comes after it.
        ranked = sorted(zip(own, range(len(own)), kernel.nodes, strict=True))
        main = ranked[-1][2] if ranked and not kernel.compiled else ""
        node = nodes.get(main)
        bound, efficiency = _bound(kernel, sum(own), roofline)
        layers.append(
            Layer(
                (node.name if node is not None else "") or main or kernel.name,
                kernel.op if node is None else operator(node),
                kernel.op,
                kernel.nodes,
                tuple(dict.fromkeys(g for key in kernel.nodes for g in groups.get(key, ()))),
                kernel.provider,
                kernel.ms,
                kernel.ms / total if total else 0.0,
                sum(own),
                kernel.size_bytes,
                bound,
                efficiency,
            )
        )
    return tuple(layers)


def _bound(
    kernel: Kernel, macs: int, roofline: Roofline | None
) -> tuple[Literal["compute", "memory"] | None, float | None]:
    if not kernel.size_bytes or roofline is None:
        return None, None
    least = roofline.least_ms(macs, kernel.size_bytes)
    side: Literal["compute", "memory"]
    side = "compute" if macs >= roofline.ridge * kernel.size_bytes else "memory"
    return side, least / kernel.ms if kernel.ms else None


def node_macs(coupling: Coupling) -> dict[str, int]:
    """Multiply-accumulates by node (its first result), at the sizes of the first sample."""
    found = {}
    for bound in coupling.bound:
        sizes = bound.fit.sizes
        terms = [[sizes.get(letter) or 0 for letter in term] for term in bound.fit.macs]
        found[bound.node.key] = sum(map(math.prod, terms))
    return found


def node_groups(coupling: Coupling) -> dict[str, tuple[str, ...]]:
    """The groups whose channels a node makes, by its first result."""
    makes: dict[str, list[str]] = {}
    for group in coupling.groups:
        for member in group.members:
            if not member.contracted:
                makes.setdefault(member.param, []).append(group.name)
    return {
        node.key: tuple(dict.fromkeys(g for name in node.inputs for g in makes.get(name, ())))
        for node in coupling.model.nodes
    }


def changes(before: Sequence[Layer], after: Sequence[Layer]) -> tuple[Change, ...]:
    """The layers of two profiles side by side, in the order of the first.

    Where the two fuse differently, layers are taken together until both sides stand for the same
    nodes. What ORT inserted is taken together by operator.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parents.setdefault(key, key)) != key:
            parents[key] = key = parents[above]
        return key

    every = (*before, *after)
    for layer in every:
        for key in layer.nodes[1:]:
            parents[root(key)] = root(layer.nodes[0])
    sides: dict[str, tuple[list[Layer], list[Layer]]] = {}
    for side, own in enumerate((before, after)):
        for layer in own:
            key = root(layer.nodes[0]) if layer.nodes else f"inserted {layer.kernel}"
            sides.setdefault(key, ([], []))[side].append(layer)
    return tuple(_change(key, *pair) for key, pair in sides.items())


def _change(key: str, before: Sequence[Layer], after: Sequence[Layer]) -> Change:
    first = max(before or after, key=lambda layer: (layer.macs, layer.ms))
    return Change(
        first.name if first.nodes else key,
        first.op,
        first.groups,
        math.fsum(layer.ms for layer in before),
        math.fsum(layer.ms for layer in after),
        sum(layer.macs for layer in before),
        sum(layer.macs for layer in after),
        " + ".join(dict.fromkeys(layer.kernel for layer in before)),
        " + ".join(dict.fromkeys(layer.kernel for layer in after)),
    )


def _sums(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, number in rows:
        found[name] = found.get(name, 0.0) + number
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def measured(target: Target) -> Roofline:
    """Measure what the machine can do: a matrix product on the target, a copy in main memory."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIDE, SIDE])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIDE, SIDE])
    weight = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node], "roof", [shape], [result], [numpy_helper.from_array(weight, "w")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = providers.open_session(proto, None, target)
    product_s = _fastest(lambda: runtime.run(session, {"x": weight}, ["y"]))
    source = np.zeros(COPIED_BYTES // target.threads, np.uint8)
    pairs = [(np.ones_like(source), source.copy()) for _ in range(target.threads)]
    with ThreadPoolExecutor(target.threads) as pool:
        copy_s = _fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return Roofline(SIDE**3 / product_s, 2 * source.nbytes * target.threads / copy_s)


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
