"""The commuting square of one node: op(prune(x)) == prune(op(x)).

Nothing here uses onnxprune's own slicing or restating: it is written a second time, from the
notation alone, so that a mistake has to be made twice to go unseen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.model import Array
from onnxprune.notation import Fit, is_whole
from onnxprune.rules import Row
from tests.laws.effects import (
    CAUSAL,
    HIDES,
    MEANS,
    NEUTRAL,
    PACKED,
    PICKED,
    PLAIN,
    POINTERS,
    READ_BY,
    SCALED,
    THROUGHOUT,
    ZERO_BYTES,
    ZERO_POINTS,
)
from tests.laws.nodes import RUNNERS, Case, attempt
from tests.laws.slicing import Mask, Masks, Patterns, axis_mask, pruned, sliced

RTOL = {"float64": 1e-9, "float32": 1e-5, "float16": 2e-2, "bfloat16": 5e-2}
TRIES = 16


class Broken(AssertionError):
    """The square does not commute: the rule is wrong."""


@dataclass(frozen=True)
class Trial:
    """What is kept, and the operands of the full run.

    ``exact``: the results must be equal, not only their shapes. ``scale``: the attribute of the
    full run that the pruned one has by default.
    """

    masks: Masks
    operands: Sequence[Array | None]
    exact: bool = True
    scale: float | None = None


def commute(case: Case, row: Row | None = None, seed: int = 0) -> int:
    """Check the square of one case; how many results were compared.

    Raises:
        Broken: it does not commute.
    """
    fit = case.fit(row)
    unknown = [x for x, size in fit.sizes.items() if size is None]
    if unknown:
        raise Broken(f"{case.name}: the sizes of {unknown} are unknown")
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    return sum(_compare(case, fit, trial) for trial in trials(case, fit, rng))


def trials(case: Case, fit: Fit, rng: np.random.Generator) -> Iterator[Trial]:
    """All exact letters lose indices; then the mixing ones as well, as far as a law is known."""
    letters = free_letters(fit)
    exact = [x for x in letters if x not in fit.mixing]
    if exact:
        masks = choose(exact, fit, rng)
        yield Trial(masks, zeroed(case, fit, masks, rng))
    if len(exact) == len(letters) or case.op in POINTERS:
        return
    masks = choose(letters, fit, rng, _least(case))
    if case.op in NEUTRAL:
        operands = zeroed(case, fit, {x: masks[x] for x in exact}, rng)
        stated = NEUTRAL[case.op]
        count = len(operands) if case.op in THROUGHOUT else 1
        values = stated if isinstance(stated, dict) else dict.fromkeys(range(count), stated)
        for index, value in values.items():
            operands[index] = neutralised(operands[index], index, fit, masks, value)
        yield Trial(masks, operands)
        return
    yield Trial(masks, zeroed(case, fit, {x: masks[x] for x in exact}, rng), exact=False)
    if case.op in SCALED:
        yield from _scaled(case, fit, exact, rng)
    if CAUSAL.isdisjoint(case.node.attributes):
        yield from _hidden(case, fit, exact, rng)
    if case.op in MEANS:
        masks, twins = pairs([x for x in letters if x in fit.mixing], fit, rng)
        if masks:
            yield Trial(masks, doubled(case.operands, fit.operands, fit, twins))


def _scaled(
    case: Case, fit: Fit, exact: Sequence[str], rng: np.random.Generator
) -> Iterator[Trial]:
    letter = SCALED[case.op]
    if letter not in fit.mixing:
        return
    masks = choose([*exact, letter], fit, rng)
    operands = zeroed(case, fit, {x: masks[x] for x in exact}, rng)
    zeros = ZERO_POINTS.get(case.op, {}).values()
    for index in range(len(operands)):
        if index not in zeros:
            nothing = _nothing(case, index)
            operands[index] = neutralised(operands[index], index, fit, masks, nothing)
    is_stated = "scale" in case.node.attributes
    yield Trial(masks, operands, scale=None if is_stated else float(masks[letter].sum()) ** -0.5)


def _hidden(
    case: Case, fit: Fit, exact: Sequence[str], rng: np.random.Generator
) -> Iterator[Trial]:
    """Keys that a mask hides are none."""
    for index, filling in HIDES.get(case.op, {}).items():
        axes = fit.operands[index] if index < len(fit.operands) else None
        own = {x for axis in (axes or ())[1:] for term in axis for x in term} & fit.mixing
        if own:
            masks = choose([*exact, *sorted(own)], fit, rng)
            operands = zeroed(case, fit, {x: masks[x] for x in exact}, rng)
            operands[index] = neutralised(operands[index], index, fit, masks, filling)
            yield Trial(masks, operands)


def _compare(case: Case, fit: Fit, trial: Trial) -> int:
    small = pruned(case, fit, trial.masks)
    check_shapes(case, fit, trial.masks, small)
    full = case.with_operands(trial.operands)
    if trial.scale is not None:
        full.graph.node[0].attribute.append(onnx.helper.make_attribute("scale", trial.scale))
    patterns = [axes for name, axes in zip(case.node.outputs, fit.results, strict=True) if name]
    compared = 0
    for runner in RUNNERS:
        before = attempt(runner, full)
        if before is None:
            continue
        after = attempt(runner, small)
        where = f"{case.name}: {runner}, where {sorted(trial.masks)} lose indices,"
        if after is None:
            raise Broken(f"{where} does not run the pruned node")
        wanted = sliced(before, patterns, fit, trial.masks)
        places = [k for k, name in enumerate(case.node.outputs) if name]
        for place, expected, got in zip(places, wanted, after, strict=True):
            exact = trial.exact or place in PLAIN.get(case.op, ())
            right = same(expected, got) if exact else expected.shape == got.shape
            if not right:
                raise Broken(f"{where} gives something else")
            compared += 1
    return compared


def free_letters(fit: Fit) -> list[str]:
    """The letters that the rule lets go, mixing ones too."""
    axes = chain.from_iterable(x for x in (*fit.operands, *fit.results) if x is not None)
    letters = dict.fromkeys(x for axis in axes for term in axis for x in term)
    return [x for x in letters if not is_whole(x) and (fit.sizes[x] or 0) > 1]


def _least(case: Case) -> dict[str, int]:
    """How many indices have to stay of a letter among which the operator picks."""
    letter, attribute = PICKED.get(case.op, ("", ""))
    return {letter: int(case.node.attributes.get(attribute, 1))} if letter else {}


def choose(
    letters: Sequence[str],
    fit: Fit,
    rng: np.random.Generator,
    least: Mapping[str, int] | None = None,
) -> dict[str, Mask]:
    """A random strict, non-empty subset to keep of each letter.

    As far as their sizes allow, no two letters keep equally many, or the same indices: a rule that
    takes one for the other must not get away with it.
    """
    masks: dict[str, Mask] = {}
    counts: set[int] = set()
    for letter in letters:
        size = fit.sizes[letter] or 0
        every = range((least or {}).get(letter, 1), size)
        free = [n for n in every if n not in counts] or list(every)
        count = int(rng.choice(free))
        for _ in range(TRIES):
            mask = np.isin(np.arange(size), rng.permutation(size)[:count])
            if not any(np.array_equal(mask, other) for other in masks.values()):
                break
        masks[letter] = mask
        counts.add(count)
    return masks


def zeroed(case: Case, fit: Fit, masks: Masks, rng: np.random.Generator) -> list[Array | None]:
    """The operands of the full run: what a contraction loses is zero in one of its operands.

    A letter that stands on two axes of one operand is contracted on the later one.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    again = []
    for index, axes in enumerate(fit.operands):
        seen: set[str] = set()
        for position, axis in enumerate(axes or ()):
            for letter in sorted({x for term in axis for x in term} & masks.keys()):
                if letter in seen:
                    again.append((letter, index, position))
                elif letter in fit.contracted:
                    places.setdefault(letter, []).append((index, position))
                seen.add(letter)
    found = list(case.operands)
    chosen = [(x, *_one_of(spots, case, rng)) for x, spots in places.items()]
    for letter, index, position in (*chosen, *again):
        axes, value = fit.operands[index], found[index]
        assert axes is not None
        assert value is not None
        kept = axis_mask(axes[position], fit, {letter: masks[letter]})
        found[index] = _filled(value, kept, position, _nothing(case, index))
    return found


def _one_of(spots: list[tuple[int, int]], case: Case, rng: np.random.Generator) -> tuple[int, int]:
    """A place of a letter; not in a zero point, or where nothing stands for 0."""
    inside = [spot for spot in spots if spot[0] == READ_BY.get(case.op)]
    if inside:
        return inside[0]
    zeros = ZERO_POINTS.get(case.op, {})
    others = {*zeros.values(), *(zeros if case.op in PACKED else ())}
    found = [spot for spot in spots if spot[0] not in others] or spots
    return found[rng.integers(len(found))]


def _nothing(case: Case, index: int) -> float | Array:
    """What stands for 0 in an operand: a number, or one for each index of the last axis."""
    stated, bytes_ = ZERO_BYTES.get(case.op, ("", {}))
    if index in bytes_:
        return bytes_[index][case.node.attributes[stated]]
    position = ZERO_POINTS.get(case.op, {}).get(index, len(case.operands))
    zero = case.operands[position] if position < len(case.operands) else None
    if zero is None or case.op in PACKED:
        return 0
    return zero.reshape(-1)[0] if np.all(zero == zero.reshape(-1)[0]) else zero


def _filled(value: Array, kept: Mask, position: int, filling: float | Array) -> Array:
    shape = [-1 if k == position else 1 for k in range(value.ndim)]
    if value.dtype.kind in "iu" and isinstance(filling, float | int):
        limits = np.iinfo(value.dtype)
        filling = np.clip(filling, limits.min, limits.max)
    elif value.dtype.kind == "b":
        filling = filling > 0
    return np.where(kept.reshape(shape), value, np.array(filling, value.dtype))


def neutralised(
    value: Array | None, index: int, fit: Fit, masks: Masks, neutral: float | Array
) -> Array | None:
    """An operand, its removed indices of mixing letters without effect."""
    axes = fit.operands[index] if value is not None else None
    if value is None or axes is None:
        return value
    mixing = {x: mask for x, mask in masks.items() if x in fit.mixing}
    for position, axis in enumerate(axes):
        value = _filled(value, axis_mask(axis, fit, mixing), position, neutral)
    return value


def pairs(
    letters: Sequence[str], fit: Fit, rng: np.random.Generator
) -> tuple[dict[str, Mask], dict[str, npt.NDArray[np.int64]]]:
    """Half of the indices of each letter of even size, and for each index its twin among them."""
    masks, twins = {}, {}
    for letter in letters:
        size = fit.sizes[letter] or 0
        if size % 2 == 0:
            order = rng.permutation(size)
            kept, removed = order[: size // 2], order[size // 2 :]
            masks[letter] = np.isin(np.arange(size), kept)
            twins[letter] = np.arange(size)
            twins[letter][removed] = kept
    return masks, twins


def doubled(
    values: Sequence[Array | None],
    patterns: Patterns,
    fit: Fit,
    twins: Mapping[str, npt.NDArray[np.int64]],
) -> list[Array | None]:
    """Every tensor with each removed index a copy of its twin."""
    found: list[Array | None] = []
    for value, axes in zip(values, patterns, strict=True):
        if value is not None and axes is not None:
            for position, axis in enumerate(axes):
                sources, start = [], 0
                for term in axis:
                    sizes = [fit.sizes[x] or 0 for x in term]
                    grid = start + np.arange(math.prod(sizes)).reshape(sizes)
                    start += grid.size
                    for k, letter in enumerate(term):
                        if letter in twins:
                            grid = np.take(grid, twins[letter], axis=k)
                    sources.append(grid.reshape(-1))
                value = np.take(value, np.concatenate(sources), axis=position)
        found.append(value)
    return found


def same(expected: Array, got: Array) -> bool:
    """Whether two results are equal up to the rounding of their type."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if expected.dtype.kind in "biuOUST":
        return bool(np.array_equal(expected, got))
    rtol = RTOL.get(str(expected.dtype), 0.0)
    a, b = expected.astype(np.float64), got.astype(np.float64)
    scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
    return bool(np.allclose(a, b, rtol=rtol, atol=rtol * scale, equal_nan=True))


def check_shapes(case: Case, fit: Fit, masks: Masks, proto: onnx.ModelProto) -> None:
    """Shape inference of the pruned node finds what the rule predicts."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        if not _infers(case.proto):
            return
        raise Broken(f"{case.name}: shape inference refuses the pruned node: {error}") from error
    types = {o.name: o.type.tensor_type for o in inferred.graph.output}
    for name, axes in zip(case.node.outputs, fit.results, strict=True):
        if not name or axes is None or not types[name].HasField("shape"):
            continue
        dims = types[name].shape.dim
        predicted = [int(axis_mask(axis, fit, masks).sum()) for axis in axes]
        found = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        if len(found) != len(predicted) or any(
            f not in (None, p) for f, p in zip(found, predicted, strict=True)
        ):
            raise Broken(f"{case.name}: inferred {found}, the rule predicts {predicted}")


def _infers(proto: onnx.ModelProto) -> bool:
    try:
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True
