"""What the laws of the zoo share: which models run when, random plans, runs, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message

from onnxprune import compare, runtime
from onnxprune.axes import Mask, Opaque
from onnxprune.bodies import restore
from onnxprune.coupling import Coupling
from onnxprune.data import random_inputs
from onnxprune.files import load
from onnxprune.masks import best, composed, kept_count
from onnxprune.model import Model
from onnxprune.pair import behind
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.plan import counts_of
from onnxprune.rules.tables import ORDERING
from tests.zoo.fill import names

Results = dict[str, Any]
Factors = Mapping[int, int]  # a factor of one coupling by one of another

INNER = 8  # values inside the graph that are compared beside the outputs

# A few of each family and exporter that take less than a second together with all laws.
QUICK = frozenset[str]()


def cases() -> list[Any]:
    """The whole zoo as parameters of a test; `make check` runs the quick ones alone."""
    slow = pytest.mark.slow
    return [pytest.param(n, id=n, marks=() if n in QUICK else slow) for n in names()]


def structure(proto: onnx.ModelProto) -> Coupling:
    """The coupling of a model in memory."""
    return couple(normalize(load(proto)))


def half(coupling: Coupling, seed: int = 0) -> dict[int, Mask]:
    """Half of every group, mixing ones too, picked at random and at once; in rows, where it may."""
    keep = {}
    for position, group in enumerate(coupling.groups):
        generator = np.random.default_rng([seed, position])
        shape = (group.rows, group.size) if group.rows > 1 else (group.size,)
        keep[group.factor] = best(generator.random(shape), (group.size + 1) // 2)
    return keep


def summary(coupling: Coupling) -> str:
    """What can be pruned, and what of the parameters goes if half of every group does."""
    factors, params = coupling.factors, coupling.model.params
    counts = {group.factor: (group.size + 1) // 2 for group in coupling.groups}
    total = left = 0
    for name in coupling.layouts.keys() & params.keys():
        size = kept = 1
        for axis, layout in enumerate(coupling.layouts[name]):
            whole = isinstance(factors.normal(layout), Opaque)
            size *= params[name].shape[axis]
            kept *= params[name].shape[axis] if whole else factors.count(layout, counts)
        total, left = total + size, left + kept
    mixing = sum(group.mixing for group in coupling.groups)
    share = 100 * (1 - left / total) if total else 0.0
    return f"{len(counts) - mixing} exact, {mixing} mixing groups: {share:.1f} % of the parameters"


def original(coupling: Coupling) -> onnx.ModelProto:
    """The file itself: bodies that use a name each for its own have it there."""
    proto = onnx.ModelProto()
    proto.CopyFrom(coupling.model.proto)
    restore(proto, coupling.model.renamed)
    return proto


def identical(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Whether two models are the same byte for byte, compared a part at a time."""
    return all(x == y for x, y in zip_longest(_parts(a), _parts(b)))


def _parts(message: Message) -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        if isinstance(value, onnx.GraphProto):
            yield from _parts(value)
        elif isinstance(value, str | bytes | int | Message):
            yield field.name, _plain(value)
        else:
            yield from ((field.name, _plain(item)) for item in value)


def _plain(value: Any) -> Any:
    return value.SerializeToString(deterministic=True) if isinstance(value, Message) else value


def probes(coupling: Coupling, *others: onnx.ModelProto) -> tuple[str, ...]:
    """The outputs, and some floating-point values from all over the graph that all models make.

    Outputs alone would not do: detectors find nothing in noise, and give empty ones. Values behind
    TopK, NonMaxSuppression and the like are left out: where two scores are nearly equal, one
    rounding picks another box. (Law 2 compares them, with the oracle's picks put in.)
    """
    model = coupling.model
    picked = {name for node in model.nodes if node.op in ORDERING for name in node.outputs}
    picked |= behind(model.nodes, picked)
    made = [{x for node in proto.graph.node for x in node.output} for proto in others]
    inner = [
        name
        for bound in coupling.bound
        for name in bound.node.outputs
        if bound.fit.contracted
        and name not in picked
        and all(name in found for found in made)
        and model.dtypes.get(name) == onnx.TensorProto.FLOAT
    ]
    step = max(1, len(inner) // INNER)
    outputs = [name for name in model.outputs if name not in picked]
    return tuple(dict.fromkeys((*outputs, *inner[::-1][: step * INNER : step])))


def run(proto: onnx.ModelProto, model: Model, wanted: Sequence[str]) -> list[Results]:
    """What a model gives on two random inputs, dynamic axes at two sizes."""
    given = {output.name for output in proto.graph.output}
    extra = [onnx.ValueInfoProto(name=name) for name in wanted if name not in given]
    proto.graph.output.extend(extra)
    session = runtime.session(proto, None, optimize=False)
    del proto.graph.output[len(proto.graph.output) - len(extra) :]
    fixed = len(model.samples) == 1
    found = []
    for k in range(2):
        feeds = random_inputs(model, k, 0 if fixed else k)
        found.append(dict(zip(wanted, runtime.run(session, feeds, wanted), strict=True)))
    return found


def kept(coupling: Coupling, keep: Mapping[int, Mask], name: str, value: Any) -> Any:
    """What a pruned model has of a value of the original."""
    layouts = coupling.layouts.get(name, ())
    if not isinstance(value, np.ndarray) or value.ndim != len(layouts):
        return value
    for axis, layout in enumerate(layouts):
        if not isinstance(coupling.factors.normal(layout), Opaque):
            mask = coupling.factors.mask(layout, keep)
            if not mask.all():  # a dynamic axis has another size in each run
                value = np.take(value, np.flatnonzero(mask), axis=axis)
    return value


def errors(found: Sequence[Results], expected: Sequence[Results]) -> dict[str, float]:
    """The largest relative error of each value that can tell."""
    return {
        name: max(
            compare.relative_error(a[name], b[name]) for a, b in zip(found, expected, strict=True)
        )
        for name in expected[0]
        if not compare.is_blind([one[name] for one in expected])
    }


def together(
    first: Coupling, keep: Mapping[int, Mask], heirs: Factors, again: dict[int, Mask]
) -> dict[int, Mask]:
    """What is kept by two plans, the second one of what the first has left.

    Which factor the rows are of may have changed with the sizes: then the second plan is made to
    keep the same in every row, in place.
    """
    both = {}
    for factor, mask in keep.items():
        there = keep.get(first.factors.rows.get(factor, -1))
        rows = mask.shape[0] if mask.ndim > 1 else 1
        there = np.ones(rows, bool) if there is None else there
        both[factor] = mask
        if kept_count(mask) > 1:
            second = again[heirs[factor]]
            if second.ndim > 1 and (rows == 1 or len(second) != there.sum()):
                second = again[heirs[factor]] = second[0]
            both[factor] = composed(mask, second, there)
    return both


def heirs(first: Coupling, keep: Mapping[int, Mask], second: Coupling) -> Factors:
    """The factor of a pruned model that each pruned factor of the original became.

    Raises:
        AssertionError: an axis is not made of the same factors any more.
    """
    counts = counts_of(keep)
    found: dict[int, int] = {}
    for value in first.layouts.keys() & second.layouts.keys():
        for a, b in zip(first.layouts[value], second.layouts[value], strict=True):
            if Opaque() in (first.factors.normal(a), second.factors.normal(b)):
                continue
            old = [x for x in first.factors.leaves(a) if counts.get(x) != 1]
            new = second.factors.leaves(b)
            if keep.keys().isdisjoint(old):
                continue
            sizes = [counts.get(x, first.factors.size(x)) for x in old]
            assert sizes == [second.factors.size(x) for x in new], value
            for x, y in ((x, y) for x, y in zip(old, new, strict=True) if x in keep):
                assert found.setdefault(x, y) == y, value
    return found
