"""Verify: prove that the pruned model is the original with the removed indices without effect.

1. The file is in order: the same inputs and outputs, onnx's checker, strict shape inference,
   ONNX Runtime loads it.
2. It computes the same: both models run on the same inputs, twice, dynamic axes at two sizes, and
   every output agrees with that of the masked oracle (see ``onnxprune.oracle``).
3. So does every node that reads a pruned parameter or combines pruned indices: a mistake in a
   branch may be damped beyond notice at the outputs, or an output may hardly vary.

Some operators decide (TopK, NonMaxSuppression, Greater, ...): their results jump where a number
moves by one rounding. Values inside are compared with the oracle's decisions put into the pruned
model, and so are outputs that differ behind decisions, if all that decides agrees.

An If runs one of two branches. Each that lost something is run: both models are made to go that
way, whatever the condition says. Values inside of bodies are not compared themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto

from onnxprune import compare
from onnxprune.checks import complaint, contract
from onnxprune.coupling import Coupling
from onnxprune.entering import unentered
from onnxprune.errors import RunError
from onnxprune.guard import what_differs
from onnxprune.model import Array, Model
from onnxprune.pair import (
    Pair,
    Results,
    before,
    behind,
    operators,
    overflowing,
    portions,
    side_by_side,
)
from onnxprune.plan import Keep
from onnxprune.preparing import Prepared, expected_of, prepared, run_all
from onnxprune.rules.tables import ORDERING
from onnxprune.runtime import Feeds
from onnxprune.verdict import Check, Verification
from onnxprune.ways import Way, ways

__all__ = ["Check", "Verification", "verify"]

Progress = Callable[[str], None]
FLIPS: Final = 0.01  # share of decisions on single numbers that may jump by themselves


def verify(
    coupling: Coupling,
    keep: Keep,
    shrunk: onnx.ModelProto,
    *,
    inputs: Feeds | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    folder: Path | None = None,
    values: Mapping[str, Array] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a pruned model with the masked original.

    Needs the coupling of the original. Changes nothing. Promises: no part of the proof comes from
    the code that made the pruned model.

    Args:
        coupling: the structure of the original model.
        keep: kept indices (size,) by factor.
        shrunk: the pruned model.
        inputs: real inputs; random ones where absent.
        seed: the seed of random inputs.
        tolerance: the largest relative error that passes; where absent, that of the float type,
            or a small multiple of what rounding does to the oracle by itself.
        folder: where external data of the pruned model lies, if not beside the original.
        values: full-size values of parameters that replace the original's.
        progress: is called with the name of each step.

    Raises:
        OnnxPruneError: inputs do not fit the model, or the original does not run on them.
    """
    model = coupling.model
    kind = compare.coarsest(model)
    half = kind in compare.HALF
    limit = compare.TOLERANCE[TensorProto.FLOAT if half else kind]
    say = progress or (lambda _: None)
    say("check the file")
    failure, notes = _in_order(model, shrunk)
    if failure:
        return Verification(limit, failure=failure, notes=notes)
    pair = Pair(coupling, keep, shrunk, folder or model.folder, values, wide=half)
    say("run the original")
    run = prepared(pair, inputs, seed)
    say("run the pruned model")
    found = _verdict(run, tolerance or limit, tolerance is None)
    runs = [run]
    for way in ways(coupling, keep) if found.ok else ():
        say(f"run {way.label}")
        found = _on_way(found, way, runs, seed, (tolerance or limit, tolerance is None))
    notes += unentered(runs) if found.ok else ()
    if half and found.ok:
        failure, note = _as_it_is(replace(run, pair=replace(pair, wide=False)), kind)
        found = replace(found, failure=failure)
        notes += note
    return replace(found, notes=(*notes, *found.notes))


def _on_way(
    found: Verification, way: Way, runs: list[Prepared], seed: int, allowed: tuple[float, bool]
) -> Verification:
    """The verdict with that on one way through the model's branches, whose run joins the others."""
    pair = replace(runs[0].pair, forced=way.steps)
    try:
        runs.append(prepared(pair, None, seed, runs[0].feeds))
    except RunError:
        return found  # which ``unentered`` tells
    own = _verdict(runs[-1], *allowed)
    if own.failure is not None:
        return replace(found, failure=f"{way.label}: {own.failure}")
    if own.blind:
        note = f"{way.label} gives nothing that varies: it was not compared"
        return replace(found, notes=(*found.notes, note))
    worst = max(own.checks, key=lambda check: check.error / check.allowed)
    return replace(
        found,
        checks=(*found.checks, replace(worst, value=f"{worst.value} ({way.label})")),
        noise=max((x for x in (found.noise, own.noise) if x is not None), default=None),
        inner_values=found.inner_values + own.inner_values,
        inner_numbers=found.inner_numbers + own.inner_numbers,
    )


def _in_order(model: Model, shrunk: onnx.ModelProto) -> tuple[str | None, tuple[str, ...]]:
    """A failure, and notes on what can't be checked."""
    differs = contract(model.proto, shrunk, model.open_io)
    if differs:
        return f"the pruned model is not in order: {differs}", ()
    wrong = complaint(shrunk)
    if wrong is None:
        return None, ()
    earlier = complaint(model.proto)
    if earlier is None:
        return f"the pruned model is not in order: {wrong}", ()
    return None, (f"onnx's checker refuses the original already: {earlier}",)


def _check(
    pair: Pair, name: str, found: Sequence[Any], wanted: Sequence[Any], limit: float
) -> Check:
    """Compare one value, of every run."""
    pairs = zip(found, wanted, strict=True)
    error = max(compare.relative_error(a, b, pair.least(name)) for a, b in pairs)
    count = sum(compare.count(value) for value in wanted)
    return Check(name, error, limit, count, compare.is_blind(wanted))


def _outputs(run: Prepared, found: Sequence[Results], limit: float) -> list[Check]:
    return [
        _check(run.pair, x, [one[x] for one in found], [one[x] for one in run.expected], limit)
        for x in run.model.outputs
    ]


def _verdict(run: Prepared, limit: float, adaptive: bool) -> Verification:
    outputs = run.model.outputs
    try:
        checks = _outputs(run, run_all(run.pair.pruned(outputs), run.feeds, outputs), limit)
        inner = [
            check
            for names in portions(run.pair, run.pair.telling(), run.feeds[0])
            for check in _inside(run, names, run.feeds[:1], limit)
        ]
    except RunError as error:
        return Verification(limit, failure=f"the pruned model does not run: {error}")
    noise = _noise(run, [*checks, *inner]) if adaptive else {}
    checks, inner = _allowing(noise, checks), _allowing(noise, inner)
    if all(check.ok for check in inner):
        checks = _decided(run, checks)
    overflow = overflowing(run.pair, run.feeds, run.expected)
    if overflow is not None:
        return Verification(limit, tuple(checks), overflow)
    wrong = [check for check in (*checks, *inner) if not check.ok]
    worst = sorted(inner, key=lambda check: (not check.blind, check.error / check.allowed))[-1:]
    return Verification(
        limit,
        (*checks, *worst),
        _explained(run, wrong) + what_differs(run.model) if wrong else None,
        max((x for x in noise.values() if x < 1), default=None),
        len(inner),
        sum(check.count for check in inner if not check.blind),
    )


def _inside(
    run: Prepared,
    names: Sequence[str],
    feeds: Sequence[Feeds],
    limit: float,
    jitter: int | None = None,
) -> list[Check]:
    """Compare values of both graphs, and single decisions, with the oracle's decisions put in."""
    deciding = run.pair.deciding()
    results = {name for node in deciding for name in node.outputs}
    by_order = [node for node in deciding if not ORDERING.isdisjoint(operators(node.proto))]
    ordered = {name for node in by_order for name in node.outputs}
    checks = []
    for name, found, wanted in side_by_side(run.pair, names, feeds, jitter):
        if name in names:
            check = _check(run.pair, name, found, wanted, limit)
            checks.append(replace(check, output=False))
        elif name in results - ordered:
            pairs = zip(found, wanted, strict=True)
            share = max(compare.differing(a, b) for a, b in pairs)
            checks.append(Check(name, share, FLIPS, 0, blind=True, output=False))
    return checks


def _noise(run: Prepared, checks: Sequence[Check]) -> dict[str, float]:
    """What rounding alone does to the values that differ: the oracle against itself, jittered."""
    wrong = [check.value for check in checks if not check.ok and check.count]
    found = _inside(run, wrong, run.feeds, compare.NOISE_LIMIT, jitter=0) if wrong else []
    return {c.value: c.error for c in found if c.value in wrong and c.error < compare.INCOMPARABLE}


def _allowing(noise: Mapping[str, float], checks: Sequence[Check]) -> list[Check]:
    """Allow what rounding does; a value inside that is little else (a mean of 0) tells nothing."""
    found = []
    for check in checks:
        own = compare.NOISE_FACTOR * noise.get(check.value, 0.0)
        is_all = own > compare.NOISE_LIMIT and not check.output
        if not is_all:
            own = min(own, compare.NOISE_LIMIT) if own < compare.NOISE_FACTOR else 0.0
        found.append(replace(check, allowed=max(check.allowed, own), blind=check.blind or is_all))
    return found


def _decided(run: Prepared, checks: Sequence[Check]) -> list[Check]:
    """Check the outputs that differ behind decisions again, with the oracle's decisions put in.

    A decision that is an output itself passes: what decides has been compared.
    """
    results = {name for node in run.pair.deciding() for name in node.outputs}
    doubtful = _doubtful(run)
    wrong = [check for check in checks if not check.ok and check.value in doubtful]
    if not wrong:
        return list(checks)
    again = _inside(run, [check.value for check in wrong], run.feeds, 0.0)
    errors = {check.value: check.error for check in again}
    found = []
    for check in checks:
        error = errors.get(check.value, check.error)
        if check in wrong and not check.count and check.value in results:
            error = 0.0
        passes = check in wrong and error <= check.allowed
        found.append(replace(check, error=error, ordering=passes))
    return found


def _doubtful(run: Prepared) -> set[str]:
    """The results of decisions, and all that depends on them."""
    results = {name for node in run.pair.deciding() for name in node.outputs}
    return behind(run.model.nodes, results) | results


def _explained(run: Prepared, wrong: Sequence[Check]) -> str:
    """The failure in a sentence that names the first value that diverges."""
    check = wrong[0]
    text = f"{'output' if check.output else 'value'} '{check.value}' {_differs(check)}"
    for feeds in run.feeds:
        try:
            first = _first(run, feeds, check)
        except RunError as error:
            return f"{text}; the first value that diverges was not found: {error}"
        if first:
            return f"{text}; the first value that diverges is {first}"
    return f"{text}; no value before it does"


def _differs(check: Check) -> str:
    if check.error == compare.INCOMPARABLE:
        return "has another shape or type, or other infinite values"
    return f"differs by {check.error:.1e} (allowed: {check.allowed:.1e})"


def _first(run: Prepared, feeds: Feeds, check: Check) -> str | None:
    """The first value in topological order that differs, and leads to this one, in words."""
    decisions = {name for node in run.pair.deciding() for name in node.outputs}
    leading = before(run.model.nodes, check.value) - decisions
    labels = {name: node.label for node, name in run.pair.shared() if name in leading}
    for names in portions(run.pair, list(labels), feeds):
        errors = {}
        for name, (found,), (wanted,) in side_by_side(run.pair, names, [feeds]):
            error = compare.relative_error(found, wanted, run.pair.least(name))
            if error > check.allowed:
                errors[name] = _told(found, wanted, error)
        for name in names:
            if name in errors:
                return f"'{name}' of {labels[name]}: {errors[name]}"
    return None


def _told(found: Any, expected: Any, error: float) -> str:
    if error != compare.INCOMPARABLE:
        return f"it differs by {error:.1e}"
    shapes = [getattr(value, "shape", "?") for value in (found, expected)]
    if shapes[0] != shapes[1]:
        return f"its shape is {shapes[0]}, not {shapes[1]}"
    return "it has another type, or other infinite values"


def _as_it_is(run: Prepared, kind: int) -> tuple[str | None, tuple[str, ...]]:
    """Run half-precision models in their own type: a failure, and notes on what can't be run."""
    names, feeds = run.model.outputs, run.feeds[:1]
    name = TensorProto.DataType.Name(kind)
    try:
        expected = expected_of(run.pair, run.pair.oracle(names), feeds)
    except RunError:
        return None, (f"ONNX Runtime does not run {name} on a CPU: compared as float32 alone",)
    try:
        found = run_all(run.pair.pruned(names), feeds, names)
    except RunError as error:
        return f"the pruned model does not run: {error}", ()
    overflow = overflowing(run.pair, feeds, expected)
    if overflow is not None:
        return f"as {name}, {overflow}", ()
    doubtful = _doubtful(run)
    for check in _outputs(replace(run, expected=expected), found, compare.TOLERANCE[kind]):
        if not check.ok and check.value not in doubtful:
            return f"as {name}, output '{check.value}' {_differs(check)}", ()
    return None, ()
