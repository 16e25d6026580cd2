"""The Python interface: everything that the command line does, as functions.

``model`` may be a path, an onnx.ModelProto or an onnx-graphsurgeon Graph. A Graph comes back as a
Graph; the others come back as a ModelProto.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnxprune import cost, data, explaining, files
from onnxprune.axes import Mask
from onnxprune.budget import MAX_RATIO, Budget, Options, Scope, check
from onnxprune.coupling import Coupling
from onnxprune.errors import NothingToPruneError, OnnxPruneError, VerificationError
from onnxprune.files import load, save
from onnxprune.model import Array, Model
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.score import CRITERIA, DEFAULT, MERGING, merge_weights, merges, score
from onnxprune.passes.select import select
from onnxprune.passes.shrink import shrink
from onnxprune.passes.verify import Verification
from onnxprune.passes.verify import verify as run_verification
from onnxprune.plan import Plan, keep_of, make_plan, read_plan
from onnxprune.results import Inspection, Report
from onnxprune.rules import Row, stated_row

Progress = Callable[[str], None]
Inputs = str | Path | Mapping[str, Any] | None
_user_rules: dict[str, Row] = {}


def register_rule(op: str, line: str) -> None:
    """Give an operator a rule, for this process.

    Args:
        op: the operator with its domain: ``my.domain::MyOp``.
        line: the row: ``_ c *, c -> _ c *``.

    Raises:
        RuleError: the line breaks the notation.
    """
    _user_rules[op] = stated_row(line)


def analyse(model: Any, rules: Mapping[str, str] | None = None) -> Coupling:
    """Load, normalize and couple.

    Raises:
        BadModelError: the model can't be read.
    """
    every = {**_user_rules, **{op: stated_row(line) for op, line in (rules or {}).items()}}
    return couple(normalize(load(model), every), every)


def inspect(model: Any, rules: Mapping[str, str] | None = None) -> Inspection:
    """What a model is made of, and which of it can be pruned."""
    return explaining.inspection(analyse(model, rules))


def explain(model: Any, what: str, rules: Mapping[str, str] | None = None) -> str:
    """The layout of VALUE or VALUE:AXIS, or the members of a GROUP, and what freezes it.

    Raises:
        OnnxPruneError: the model has nothing of this name.
    """
    return explaining.explanation(analyse(model, rules), what)


class _Clock:
    """Seconds by pass, and the caller's progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def prune(
    model: Any,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    size_bytes: float | None = None,
    peak_bytes: float | None = None,
    criterion: str = DEFAULT,
    scope: Scope = "global",
    align: Literal["auto"] | int = "auto",
    min_channels: int = 1,
    max_ratio: float = MAX_RATIO,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    exact_only: bool = False,
    per_group: Mapping[str, float] | None = None,
    steps: int = 1,
    seed: int = 0,
    verify: bool = True,
    inputs: Inputs = None,
    rules: Mapping[str, str] | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Any, Report]:
    """Make a model smaller, and prove that nothing else changed.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        ratio: the share of every group that goes; with a budget it is not given.
        macs: the multiply-accumulates that may remain, as a fraction (<= 1) or a number.
        params: the same for parameters.
        size_bytes: the same for the bytes of the file.
        peak_bytes: the same for the bytes of activations alive at once.
        criterion: see ``CRITERIA``.
        scope: how a budget is shared out: ``global`` (one threshold for all scores), ``uniform``
            (one ratio for all groups) or ``per-group`` (``per_group`` gives ratios by pattern).
        align: kept counts are multiples of this; ``auto`` knows what ORT's kernels like, 1 is off.
        min_channels: every group keeps at least so many.
        max_ratio: no group loses a larger share under a budget.
        include: prune only groups whose name, or a member's, matches one of these patterns.
        exclude: leave such groups alone.
        exact_only: leave mixing groups alone.
        per_group: ratio by pattern, for the scope per-group.
        steps: prune in so many steps, and score again between them.
        seed: for the random criterion, hashing, and the inputs of the verification.
        verify: whether to prove the result; without it the report says so.
        inputs: real inputs for the verification (.npz or arrays by name).
        rules: rows for custom operators.
        output: where to write the result, once it is proved.
        progress: is told the name of each pass as it starts.

    Returns:
        the smaller model and the report.

    Raises:
        OnnxPruneError: bad input, in one sentence.
        VerificationError: the result differs from the masked original.
    """
    clock = _Clock(progress)
    target = _target(model, output)
    budget = Budget(
        ratio=ratio, macs=macs, params=params, size_bytes=size_bytes, peak_bytes=peak_bytes
    )
    chosen = Options(
        scope=scope,
        align=align,
        min_channels=min_channels,
        max_ratio=max_ratio,
        include=tuple(include),
        exclude=tuple(exclude),
        exact_only=exact_only,
        per_group=per_group,
    )
    check(budget, chosen)
    with clock.step("load"):
        loaded = load(model)
    with clock.step("couple"):
        coupling = analyse(loaded, rules)
    if not coupling.groups:
        raise NothingToPruneError(explaining.nothing_to_prune(coupling))
    keep, notes = _choose(coupling, budget, chosen, criterion, steps, seed, rules, clock)
    settings = {
        **{k: v for k, v in vars(budget).items() if v is not None},
        **vars(chosen),
        "criterion": criterion,
        "steps": steps,
        "seed": seed,
    }
    plan = make_plan(coupling, keep, _digest(model), seed if criterion in MERGING else None)
    return _finish(model, coupling, keep, plan, settings, notes, verify, inputs, target, clock)


def _target(source: Any, output: str | Path | None) -> Path | None:
    """Where to write to.

    Raises:
        OnnxPruneError: it is the input, or its folder is not there.
    """
    if output is None:
        return None
    target = Path(output)
    if isinstance(source, str | os.PathLike) and target.resolve() == Path(source).resolve():
        raise OnnxPruneError(f"the output '{target}' is the input: give another path")
    if not target.parent.is_dir():
        raise OnnxPruneError(f"'{target}' can't be written: there is no folder '{target.parent}'")
    return target


def _choose(
    coupling: Coupling,
    budget: Budget,
    options: Options,
    criterion: str,
    steps: int,
    seed: int,
    rules: Mapping[str, str] | None,
    clock: _Clock,
) -> tuple[dict[int, Mask], list[str]]:
    """Score and select, in one step or several; masks by factor of the first coupling."""
    if steps < 1:
        raise OnnxPruneError(f"steps is {steps}: it must be at least 1")
    keep: dict[int, Mask] = {g.factor: np.ones(g.size, bool) for g in coupling.groups}
    notes: list[str] = []
    current = coupling
    for step in range(1, steps + 1):
        if step > 1:
            smaller = load(shrink(coupling, keep), folder=coupling.model.folder)
            current = analyse(smaller, rules)
        with clock.step("score"):
            scores = score(current, criterion, seed=seed)
        with clock.step("select"):
            share = budget.at_step(step, steps, cost.cost_model(coupling).cost({}))
            selection = select(current, scores, share, options.at_step(steps))
        for group in coupling.groups:
            own = current.group(group.name)
            if own is not None and own.factor in selection.keep:
                keep[group.factor][np.flatnonzero(keep[group.factor])] = selection.keep[own.factor]
        notes = list(selection.limits)
    return {factor: mask for factor, mask in keep.items() if not mask.all()}, notes


def _finish(
    source: Any,
    coupling: Coupling,
    keep: dict[int, Mask],
    plan: Plan,
    settings: dict[str, Any],
    notes: list[str],
    verify: bool,
    inputs: Inputs,
    target: Path | None,
    clock: _Clock,
) -> tuple[Any, Report]:
    values = _merged(coupling, keep, plan)
    with clock.step("shrink"):
        proto = shrink(coupling, keep, values)
    verification = None
    if verify:
        with clock.step("verify"):
            verification = _proved(coupling, keep, proto, values, inputs, settings.get("seed", 0))
    else:
        notes = [*notes, "not verified: the proof was switched off"]
    before, after, rows = explaining.costs(coupling, keep)
    report = Report(
        name=coupling.model.name,
        settings=settings,
        before=before,
        after=after,
        groups=rows,
        verification=verification,
        seconds=clock.seconds,
        notes=tuple(notes),
        plan=plan,
    )
    if target is not None:
        with clock.step("write"):
            files.save(proto, target, coupling.model.folder)
        return _like(source, proto), report
    return _like(source, files.with_data(proto, coupling.model.folder)), report


def _merged(coupling: Coupling, keep: Mapping[int, Mask], plan: Plan) -> dict[str, Array] | None:
    """The values of the parameters that take over what removed near-copies did."""
    if plan.merge_seed is None:
        return None
    return merge_weights(coupling, merges(coupling, keep, plan.merge_seed))


def _proved(
    coupling: Coupling,
    keep: Mapping[int, Mask],
    proto: onnx.ModelProto,
    values: Mapping[str, Array] | None,
    inputs: Inputs,
    seed: int,
) -> Verification:
    if isinstance(inputs, str | Path):
        inputs = data.load_inputs(Path(inputs), coupling.model)
    found = run_verification(coupling, keep, proto, inputs=inputs, seed=seed, values=values)
    if not found.ok:
        raise VerificationError(found.summary())
    return found


def _like(source: Any, proto: onnx.ModelProto) -> Any:
    """The result in the kind that the caller gave."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto | Model):
        return proto
    import onnx_graphsurgeon as gs  # noqa: PLC0415

    return gs.import_onnx(proto)


def _digest(source: Any) -> str | None:
    return files.sha256(Path(source)) if isinstance(source, str | os.PathLike) else None


def _plan(plan: Plan | str | Path) -> Plan:
    return plan if isinstance(plan, Plan) else read_plan(Path(plan))


def apply(
    model: Any,
    plan: Plan | str | Path,
    *,
    verify: bool = True,
    inputs: Inputs = None,
    rules: Mapping[str, str] | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Any, Report]:
    """Replay a plan, on its own model or on a twin with the same names (fp16, QDQ).

    Raises:
        BadPlanError: the plan does not fit the model.
        VerificationError: the result differs from the masked original.
    """
    clock = _Clock(progress)
    target = _target(model, output)
    read = _plan(plan)
    with clock.step("couple"):
        coupling = analyse(model, rules)
    keep = keep_of(read, coupling)
    notes = []
    digest = _digest(model)
    if digest is not None and read.model.sha256 is not None and digest != read.model.sha256:
        notes.append(f"the plan was made for another file, '{read.model.name}'; its names fit")
    settings = {"plan": read.model.name}
    return _finish(model, coupling, keep, read, settings, notes, verify, inputs, target, clock)


def verify(
    model: Any,
    small: Any,
    plan: Plan | str | Path,
    *,
    inputs: Inputs = None,
    seed: int = 0,
    rules: Mapping[str, str] | None = None,
) -> Verification:
    """Compare a pruned model with its masked original.

    Returns:
        the errors by output; ``ok`` says whether all are within the tolerance.

    Raises:
        BadPlanError: the plan does not fit the model.
    """
    read = _plan(plan)
    coupling = analyse(model, rules)
    keep = keep_of(read, coupling)
    values = _merged(coupling, keep, read)
    if isinstance(inputs, str | Path):
        inputs = data.load_inputs(Path(inputs), coupling.model)
    other = load(small)
    return run_verification(
        coupling, keep, other.proto, inputs=inputs, seed=seed, values=values, folder=other.folder
    )


__all__: Sequence[str] = [
    "CRITERIA",
    "Budget",
    "Options",
    "analyse",
    "apply",
    "explain",
    "inspect",
    "load",
    "prune",
    "register_rule",
    "save",
    "verify",
]
