"""Shapes that inference leaves unknown, as runs on ONNX Runtime show them.

An operator that nobody tells the shapes of (a custom one, one of ONNX Runtime's own), and sizes
that are computed in ways which are not evaluated, would freeze all that stands behind them. So the
model is run, once for each choice of its dynamic sizes and each of several inputs, and the unknown
shapes are read. What agrees is known; what differs between the choices is dynamic, as anywhere.

Sizes that data decides (how many boxes NonMaxSuppression finds) may agree by accident. So what may
depend on them is told apart beforehand, by what operators do; of such values the rank alone counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnxprune import runtime
from onnxprune.data import random_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model, Node
from onnxprune.rules.tables import DRAWS, SIZED_BY_DATA, STATING
from onnxprune.rules.values import SIZES
from onnxprune.shapes import Seen

SEEDS: Final = (0, 1)
MOST_BYTES: Final = 2**29  # of weights: a larger model is not run, only to be looked at
PREFIX: Final = "traced:"
INTEGERS: Final = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
OF_A_DOMAIN: Final = "::"  # in names of operators that are none of onnx's


def traced(model: Model) -> tuple[Seen, ...]:
    """The shapes of values that inference does not know, for each sample of the model.

    Nothing where all is known, or ONNX Runtime does not run the model on random inputs.
    """
    open_ = sized_by_data(model)
    wanted = [name for name in _unknown(model, open_) if not name.startswith(PREFIX)]
    if not wanted or sum(param.size_bytes for param in model.params.values()) > MOST_BYTES:
        return ()
    try:
        session, kinds = _session(model, wanted)
        return tuple(
            _seen(model, session, kinds, choice, open_) for choice in range(len(model.samples))
        )
    except OnnxPruneError:
        return ()


def sized_by_data(model: Model) -> set[str]:
    """The values of the main graph whose sizes may depend on what other values hold."""
    data, sized = set(model.inputs) | model.defaults, set[str]()
    for node in model.nodes:
        reads = (*node.inputs, *node.captured)
        if node.op in SIZES:
            holds, grows = not sized.isdisjoint(reads), False
        else:
            holds = not data.isdisjoint(reads) or node.op in DRAWS
            grows = not sized.isdisjoint(reads) or _is_stated(model, node, data, holds)
        made = {name for name in node.outputs if name}
        known = all(made <= sample.constants.keys() for sample in model.samples)
        data |= made if holds and not known else set()
        sized |= made if grows and not known else set()
    return sized


def _is_stated(model: Model, node: Node, data: set[str], holds: bool) -> bool:
    """Whether a node's results are as large as data says.

    Of an operator that is none of onnx's any integer, or vector of integers, may say it.
    """
    if node.captured or node.bodies or node.op in SIZED_BY_DATA:
        return holds
    positions: Iterable[int] = STATING.get(node.op, ())
    if OF_A_DOMAIN in node.op:
        positions = (k for k, name in enumerate(node.inputs) if _is_vector(model, name))
    return any(k < len(node.inputs) and node.inputs[k] in data for k in positions)


def _is_vector(model: Model, name: str) -> bool:
    """Whether a value holds an integer, or a vector of integers."""
    shapes = [sample.shapes.get(name) for sample in model.samples]
    long = any(shape is not None and len(shape) > 1 for shape in shapes)
    return model.dtypes.get(name) in INTEGERS and not long


def _unknown(model: Model, open_: set[str]) -> Iterator[str]:
    """Results of unknown rank, and of unknown sizes that no data decides."""
    for node in model.nodes:
        for name in node.outputs:
            shapes = [sample.shapes.get(name) for sample in model.samples]
            lacks = any(shape is None or (None in shape and name not in open_) for shape in shapes)
            if name and lacks:
                yield name


def _session(model: Model, names: Sequence[str]) -> tuple[ort.InferenceSession, dict[str, int]]:
    """A session that gives the shapes of values, and the element types of those that are tensors.

    Raises:
        RunError: ONNX Runtime refuses the model.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    typed = runtime.session(proto, model.folder, optimize=False).get_outputs()
    kinds = {own.name: _KINDS[own.type] for own in typed if own.type in _KINDS}
    del proto.graph.output[:]
    for name in kinds:
        proto.graph.node.append(helper.make_node("Shape", [name], [f"{PREFIX}{name}"]))
        proto.graph.output.add(name=f"{PREFIX}{name}")
    return runtime.session(proto, model.folder, optimize=False), kinds


def _seen(
    model: Model,
    session: ort.InferenceSession,
    kinds: Mapping[str, int],
    choice: int,
    open_: set[str],
) -> Seen:
    """What runs at one choice of the dynamic sizes agree on.

    Raises:
        OnnxPruneError: there are no random inputs for the model, or it does not run on them.
    """
    asked = [f"{PREFIX}{name}" for name in kinds]
    runs = [random_inputs(model, seed, choice, small=False) for seed in SEEDS]
    found = [runtime.run(session, feeds, asked) for feeds in runs]
    with suppress(OnnxPruneError):  # it may refuse such inputs
        found.append(runtime.run(session, _alike(runs[0]), asked))
    shapes = {}
    for name, *sizes in zip(kinds, *found, strict=True):
        rows = [tuple(int(n) for n in own) for own in sizes]
        if len({len(row) for row in rows}) != 1:
            continue
        columns = list(zip(*rows, strict=True))
        agreed = (column[0] if len(set(column)) == 1 else None for column in columns)
        shapes[name] = tuple(None if name in open_ or not size else size for size in agreed)
    return Seen(shapes, {name: kinds[name] for name in shapes})


def _alike(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs with all their numbers alike; but for integers, by which something may divide."""
    whole = (np.bool_, np.integer, np.object_)
    return {
        name: x if any(np.issubdtype(x.dtype, kind) for kind in whole) else np.ones_like(x)
        for name, x in feeds.items()
    }


# ONNX Runtime's names of tensor types.
_KINDS: Final = {
    f"tensor({name})": kind
    for kind, name in (
        (onnx.TensorProto.FLOAT, "float"),
        (onnx.TensorProto.DOUBLE, "double"),
        (onnx.TensorProto.FLOAT16, "float16"),
        (onnx.TensorProto.BFLOAT16, "bfloat16"),
        (onnx.TensorProto.BOOL, "bool"),
        (onnx.TensorProto.STRING, "string"),
        *(
            (getattr(onnx.TensorProto, f"{u}INT{n}"), f"{u.lower()}int{n}")
            for u in ("", "U")
            for n in (8, 16, 32, 64)
        ),
    )
}
