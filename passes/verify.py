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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto

from onnxprune import compare
from onnxprune.checks import complaint, contract
from onnxprune.coupling import Coupling
from onnxprune.data import check_inputs, random_inputs
from onnxprune.model import Array, Model
from onnxprune.pair import Pair, Results, Runner, behind, unpinned
from onnxprune.plan import Keep
from onnxprune.rules.tables import ORDERING
from onnxprune.runtime import Feeds, RunError
from onnxprune.verdict import Check, Verification

__all__ = ["Check", "Verification", "verify"]

Progress = Callable[[str], None]
RUNS: Final = 2  # dynamic axes at two sizes, or two inputs of the same size
PORTION_BYTES: Final = 2**29  # of values inside the graph that are held at once, per model
CHUNK: Final = 32  # values fetched at once in the search for the first that diverges
UNKNOWN: Final = 256  # indices that an axis of unknown size is supposed to have
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
    run = _prepared(pair, inputs, seed)
    say("run the pruned model")
    found = _verdict(run, tolerance or limit, tolerance is None)
    if half and found.ok:
        failure, note = _as_it_is(replace(run, pair=replace(pair, wide=False)), kind)
        found = replace(found, failure=failure)
        notes += note
    return replace(found, notes=notes)


@dataclass(frozen=True)
class _Run:
    """The oracle's side: the inputs of each run, and what the graph's outputs should be."""

    pair: Pair
    feeds: tuple[Feeds, ...]
    expected: tuple[Results, ...]

    @property
    def model(self) -> Model:
        return self.pair.coupling.model


def _in_order(model: Model, shrunk: onnx.ModelProto) -> tuple[str | None, tuple[str, ...]]:
    """A failure, and notes on what can't be checked."""
    differs = contract(model.proto, shrunk)
    if differs:
        return f"the pruned model is not in order: {differs}", ()
    wrong = complaint(shrunk)
    if wrong is None:
        return None, ()
    earlier = complaint(model.proto)
    if earlier is None:
        return f"the pruned model is not in order: {wrong}", ()
    return None, (f"onnx's checker refuses the original already: {earlier}",)


def _prepared(pair: Pair, inputs: Feeds | None, seed: int) -> _Run:
    """Run the oracle on small random inputs; where it can't, on those of the analysis' sizes."""
    model = pair.coupling.model
    runner = pair.oracle(model.outputs)
    if inputs is not None:
        given = check_inputs(inputs, model)
        return _Run(pair, (given,), _all(runner, [given], model.outputs))
    fixed = len(model.samples) == 1
    for small in (True, False):
        feeds = tuple(
            random_inputs(model, seed + k if fixed else seed, 0 if fixed else k, small)
            for k in range(RUNS)
        )
        try:
            return _Run(pair, feeds, _all(runner, feeds, model.outputs))
        except RunError:
            if fixed or not small:
                raise
    raise AssertionError("the loop returns or raises")


def _all(runner: Runner, feeds: Sequence[Feeds], names: Sequence[str]) -> tuple[Results, ...]:
    return tuple(runner(one, names) for one in feeds)


def _check(
    pair: Pair, name: str, found: Sequence[Results], wanted: Sequence[Results], limit: float
) -> Check:
    values = [results[name] for results in wanted]
    pairs = zip((results[name] for results in found), values, strict=True)
    least = pair.least(name)
    error = max(compare.relative_error(a, b, least) for a, b in pairs)
    count = sum(compare.count(value) for value in values)
    return Check(name, error, limit, count, compare.is_blind(values))


def _verdict(run: _Run, limit: float, adaptive: bool) -> Verification:
    outputs = run.model.outputs
    try:
        found = _all(run.pair.pruned(outputs), run.feeds, outputs)
        checks = [_check(run.pair, name, found, run.expected, limit) for name in outputs]
        inner = [c for names in _portions(run) for c in _inside(run, names, run.feeds[:1], limit)]
    except RunError as error:
        return Verification(limit, failure=f"the pruned model does not run: {error}")
    noise = _noise(run, [*checks, *inner]) if adaptive else {}
    checks, inner = _allowing(noise, checks), _allowing(noise, inner)
    if all(check.ok for check in inner):
        checks = _decided(run, checks)
    wrong = [check for check in (*checks, *inner) if not check.ok]
    worst = sorted(inner, key=lambda check: check.error / check.allowed)[-1:]
    return Verification(
        limit,
        (*checks, *worst),
        _explained(run, wrong) if wrong else None,
        max(noise.values(), default=None),
        len(inner),
        sum(check.count for check in inner if not check.blind),
    )


def _portions(run: _Run) -> Iterator[list[str]]:
    """The values inside the graph to compare, in portions that fit into memory."""
    shapes, names = run.model.samples[0].shapes, run.pair.telling()
    analysed = sum(math.prod(n or 1 for n in shapes[name]) for name in run.model.inputs)
    share = min(1.0, sum(value.size for value in run.feeds[0].values()) / max(analysed, 1))
    portion: list[str] = []
    total = 0.0
    for name in names:
        size_bytes = 4 * share * math.prod(n or UNKNOWN for n in shapes.get(name, ()))
        if portion and total + size_bytes > PORTION_BYTES:
            yield portion
            portion, total = [], 0.0
        portion.append(name)
        total += size_bytes
    if portion:
        yield portion


def _inside(
    run: _Run, names: Sequence[str], feeds: Sequence[Feeds], limit: float, jitter: int | None = None
) -> list[Check]:
    """Compare values of both graphs, with the oracle's decisions put into the pruned model.

    With a jitter, the oracle is compared with itself under rounding errors.
    """
    pair, deciding = run.pair, run.pair.deciding()
    results = [name for node in deciding for name in node.outputs if name]
    every = list(dict.fromkeys((*names, *results)))
    wanted = _all(pair.oracle(every), feeds, every)
    if jitter is None:
        wanted = tuple({k: pair.kept(k, v) for k, v in one.items()} for one in wanted)
    pins = [{name: one[name] for name in results} for one in wanted]
    given = [{**one, **pin} for one, pin in zip(feeds, pins, strict=True)]
    asked = {name: unpinned(name) if name in results else name for name in every}
    if jitter is None:
        runner = pair.pruned(list(asked.values()), pins[0])
    else:
        runner = pair.oracle(list(asked.values()), jitter, pins[0])
    found = [
        {name: one[alias] for name, alias in asked.items()}
        for one in _all(runner, given, list(asked.values()))
    ]
    checks = [_check(run.pair, name, found, wanted, limit) for name in names]
    ordered = {name for node in deciding if node.op in ORDERING for name in node.outputs}
    for name in results:
        if name not in ordered:
            share = max(
                compare.differing(a[name], b[name]) for a, b in zip(found, wanted, strict=True)
            )
            checks.append(Check(name, share, FLIPS, 0, blind=True))
    return [replace(check, output=False) for check in checks]


def _noise(run: _Run, checks: Sequence[Check]) -> dict[str, float]:
    """What rounding alone does to the values that differ: the oracle against itself, jittered."""
    wrong = [check.value for check in checks if not check.ok and check.count]
    if not wrong:
        return {}
    found = _inside(run, wrong, run.feeds, compare.NOISE_LIMIT, jitter=0)
    return {c.value: c.error for c in found if c.value in wrong and c.error < 1}


def _allowing(noise: Mapping[str, float], checks: Sequence[Check]) -> list[Check]:
    found = []
    for check in checks:
        own = min(compare.NOISE_FACTOR * noise.get(check.value, 0.0), compare.NOISE_LIMIT)
        found.append(replace(check, allowed=max(check.allowed, own)))
    return found


def _decided(run: _Run, checks: Sequence[Check]) -> list[Check]:
    """Check the outputs that differ behind decisions again, with the oracle's decisions put in.

    A decision that is an output itself passes: what decides has been compared.
    """
    deciding = run.pair.deciding()
    results = {name for node in deciding for name in node.outputs}
    doubtful = behind(run.model.nodes, results) | results
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


def _explained(run: _Run, wrong: Sequence[Check]) -> str:
    """The failure in a sentence that names the first value that diverges."""
    check = wrong[0]
    text = f"{'output' if check.output else 'value'} '{check.value}' {_differs(check)}"
    for feeds in run.feeds:
        try:
            first = _first(run, feeds, check.allowed)
        except RunError as error:
            return f"{text}; the first value that diverges was not found: {error}"
        if first:
            return f"{text}; the first value that diverges is {first}"
    return f"{text}; no value before it does"


def _differs(check: Check) -> str:
    if check.error == compare.INCOMPARABLE:
        return "has another shape or type, or other infinite values"
    return f"differs by {check.error:.1e} (allowed: {check.allowed:.1e})"


def _first(run: _Run, feeds: Feeds, allowed: float) -> str | None:
    """The first value in topological order that differs, in words."""
    pair = run.pair
    results = [name for node in pair.deciding() for name in node.outputs if name]
    places = [(node, name) for node, name in pair.shared() if name not in results]
    names = [name for _, name in places]
    original = pair.oracle([*names, *results])
    pins = {name: pair.kept(name, value) for name, value in original(feeds, results).items()}
    pruned = pair.pruned(names, pins)
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        wanted, found = original(feeds, chunk), pruned({**feeds, **pins}, chunk)
        for node, name in places[start : start + CHUNK]:
            expected = pair.kept(name, wanted[name])
            error = compare.relative_error(found[name], expected, pair.least(name))
            if error > allowed:
                return f"'{name}' of {node.label}: {_told(found[name], expected, error)}"
    return None


def _told(found: Any, expected: Any, error: float) -> str:
    if error != compare.INCOMPARABLE:
        return f"it differs by {error:.1e}"
    shapes = [getattr(value, "shape", "?") for value in (found, expected)]
    if shapes[0] != shapes[1]:
        return f"its shape is {shapes[0]}, not {shapes[1]}"
    return "it has another type, or other infinite values"


def _as_it_is(run: _Run, kind: int) -> tuple[str | None, tuple[str, ...]]:
    """Run half-precision models in their own type: a failure, and notes on what can't be run."""
    names, feeds = run.model.outputs, run.feeds[:1]
    name = TensorProto.DataType.Name(kind)
    try:
        expected = _all(run.pair.oracle(names), feeds, names)
    except RunError:
        return None, (f"ONNX Runtime does not run {name} on a CPU: compared as float32 alone",)
    try:
        found = _all(run.pair.pruned(names), feeds, names)
    except RunError as error:
        return f"the pruned model does not run: {error}", ()
    for output in names:
        check = _check(run.pair, output, found, expected, compare.TOLERANCE[kind])
        if not check.ok:
            return f"as {name}, output '{output}' {_differs(check)}", ()
    return None, ()
