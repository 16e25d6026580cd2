"""Commands that prune and prove: prune, apply, verify."""

from __future__ import annotations

from typing import Any, Final

import typer

from onnxprune.cli import fast, options
from onnxprune.cli.judged import data_options, sources
from onnxprune.cli.recipes import FromRecipe
from onnxprune.cli.shared import sharing
from onnxprune.cli.shell import app
from onnxprune.cli.targets import JOB, Job, extended
from onnxprune.errors import VerificationError
from onnxprune.report.console import progress, show

PASSES: Final = 5  # load, couple, shrink, verify, write; score and select come once a step
TUNING: Final = 4  # more passes with a latency: profile, tune, score and select once more
# Options of the command that go to api.prune by their own names.
CHOICES: Final = (
    *("ratio", "macs", "params", "size_bytes", "peak_bytes", "latency", "criterion", "scope"),
    *("align", "min_speedup", "force", "ep", "threads"),
    "allow_io_change",
    *("min_channels", "max_ratio", "include", "exclude", "exact_only", "balanced", "steps"),
    *("schedule", "seed"),
)


@app.command(cls=FromRecipe)
@sharing(job=JOB, data=data_options())
def prune(
    ctx: typer.Context,
    model: options.ModelFile,
    ratio: options.Ratio = None,
    macs: options.Macs = None,
    params: options.Params = None,
    size_bytes: options.SizeBytes = None,
    peak_bytes: options.PeakBytes = None,
    latency: fast.Latency = None,
    criterion: options.Criterion = None,
    scope: options.Scope = None,
    group_ratio: options.GroupRatio = [],  # noqa: B006  (typer copies it)
    align: options.Align = "auto",
    min_channels: options.MinChannels = 1,
    max_ratio: options.MaxRatio = None,
    include: options.Include = [],  # noqa: B006
    exclude: options.Exclude = [],  # noqa: B006
    exact_only: options.ExactOnly = False,
    balanced: options.Balanced = True,
    allow_io_change: options.AllowIoChange = [],  # noqa: B006
    steps: options.Steps = 1,
    schedule: options.Schedule = "exponential",
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = [],  # noqa: B006
    threads: options.Threads = 1,
    min_speedup: fast.MinSpeedup = None,
    force: fast.Force = False,
    seed: options.Seed = 0,
    plan: options.WritePlan = None,
    *,
    job: Job,
    data: dict[str, Any],
) -> None:
    """Make a model smaller, and prove that nothing else changed."""
    files = job.files((model, *sources(data)), plan)
    given = {name: ctx.params[name] for name in CHOICES if ctx.params[name] is not None}
    given["per_group"] = options.ratios_of(group_ratio)
    given["ep_options"] = options.ep_options_of(ep_option)
    given |= job.given(files) | data
    passes = PASSES + 2 * steps + TUNING * (latency is not None)
    with job.progress(files, passes) as tell:
        from onnxprune import api

        found = api.prune(model, progress=tell, **given)[1]
    job.printed(found, files)


@app.command(cls=FromRecipe)
@sharing(job=JOB, data=data_options("per_group_from"))
def apply(
    model: options.ModelFile, plan: options.PlanFile, *, job: Job, data: dict[str, Any]
) -> None:
    """Replay a plan, on its own model or on a twin with the same names (fp16, QDQ)."""
    files = job.files((model, plan, *sources(data)))
    given = job.given(files) | data
    with job.progress(files, PASSES - 1) as tell:
        from onnxprune import api

        found = api.apply(model, plan, progress=tell, **given)[1]
    job.printed(found, files)


@app.command(cls=FromRecipe)
def verify(
    model: options.ModelFile,
    small: options.SmallFile,
    plan: options.GivenPlan,
    rule: options.Rules = [],  # noqa: B006
    ort_extension: options.OrtExtensions = [],  # noqa: B006
    recipe: options.RecipeFile = None,  # FromRecipe reads it
    inputs: options.Inputs = None,
    seed: options.Seed = 0,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove that a pruned model is the original without what its plan removes."""
    rules = options.rules_of(rule)
    with progress(not (json_ or quiet)), extended(ort_extension):
        from onnxprune import api
        from onnxprune.report import tables

        found = api.verify(model, small, plan, inputs=inputs, seed=seed, rules=rules)
    if json_:
        typer.echo(tables.verification_json(found), nl=False)
    elif not quiet:
        show(tables.verification(found))  # without the verdict on a failure: that is the error
    if not found.ok:
        raise VerificationError(found.summary())
