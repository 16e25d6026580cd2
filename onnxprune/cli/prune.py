"""Commands that prune and prove: prune, apply, verify."""

from __future__ import annotations

from typing import Any, Final

import typer

from onnxprune.cli import fast, options
from onnxprune.cli.bench import pair
from onnxprune.cli.judged import sources, with_data
from onnxprune.cli.shell import app
from onnxprune.cli.targets import Files, check, failures_shown, finish
from onnxprune.errors import VerificationError
from onnxprune.report.console import progress, show

PASSES: Final = 5  # load, couple, shrink, verify, write; score and select come once a step
TUNING: Final = 4  # more passes with a latency: profile, tune, score and select once more
# Options of the command that go to api.prune by their own names.
CHOICES: Final = (
    *("ratio", "macs", "params", "size_bytes", "peak_bytes", "latency", "criterion", "scope"),
    *("align", "min_speedup", "force", "ep", "threads"),
    *("min_channels", "max_ratio", "include", "exclude", "exact_only", "steps", "inputs", "seed"),
)


@app.command()
@with_data()
def prune(
    ctx: typer.Context,
    model: options.ModelFile,
    output: options.Output = None,
    ratio: options.Ratio = None,
    macs: options.Macs = None,
    params: options.Params = None,
    size_bytes: options.SizeBytes = None,
    peak_bytes: options.PeakBytes = None,
    latency: fast.Latency = None,
    criterion: options.Criterion = None,
    scope: options.Scope = None,
    group_ratio: options.GroupRatio = [],  # noqa: B006
    align: options.Align = "auto",
    min_channels: options.MinChannels = 1,
    max_ratio: options.MaxRatio = None,
    include: options.Include = [],  # noqa: B006
    exclude: options.Exclude = [],  # noqa: B006
    exact_only: options.ExactOnly = False,
    steps: options.Steps = 1,
    rule: options.Rules = [],  # noqa: B006
    ep: fast.Ep = "cpu",
    ep_option: fast.EpOption = [],  # noqa: B006
    threads: fast.Threads = 1,
    min_speedup: fast.MinSpeedup = None,
    force: fast.Force = False,
    inputs: options.Inputs = None,
    no_verify: options.NoVerify = False,
    seed: options.Seed = 0,
    plan: options.WritePlan = None,
    report: options.WriteReport = None,
    dry_run: options.DryRun = False,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
    every: options.All = False,
    *,
    data: dict[str, Any],
) -> None:
    """Make a model smaller, and prove that nothing else changed."""
    files = Files((model, inputs, *sources(data)), output, plan, report, dry_run)
    check(files, inputs, no_verify)
    given = {name: ctx.params[name] for name in CHOICES if ctx.params[name] is not None}
    given["per_group"], given["rules"] = options.ratios_of(group_ratio), options.rules_of(rule)
    given["ep_options"] = dict(pair("--ep-option", text) for text in ep_option)
    given |= files.outputs() | data
    bar = progress(not (json_ or quiet), PASSES + 2 * steps + TUNING * (latency is not None))
    with failures_shown(files, json_, quiet, every), bar as tell:
        from onnxprune import api

        found = api.prune(model, verify=not no_verify, progress=tell, **given)[1]
    finish(found, files, json_, quiet, every)


@app.command()
@with_data("per_group_from")
def apply(
    model: options.ModelFile,
    plan: options.PlanFile,
    output: options.Output = None,
    rule: options.Rules = [],  # noqa: B006
    inputs: options.Inputs = None,
    no_verify: options.NoVerify = False,
    report: options.WriteReport = None,
    dry_run: options.DryRun = False,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
    every: options.All = False,
    *,
    data: dict[str, Any],
) -> None:
    """Replay a plan, on its own model or on a twin with the same names (fp16, QDQ)."""
    files = Files((model, plan, inputs, *sources(data)), output, None, report, dry_run)
    check(files, inputs, no_verify)
    rules = options.rules_of(rule)
    bar = progress(not (json_ or quiet), PASSES - 1)
    with failures_shown(files, json_, quiet, every), bar as tell:
        from onnxprune import api

        given: dict[str, Any] = {
            "inputs": inputs,
            "rules": rules,
            "progress": tell,
            **files.outputs(),
            **data,
        }
        _, found = api.apply(model, plan, verify=not no_verify, **given)
    finish(found, files, json_, quiet, every)


@app.command()
def verify(
    model: options.ModelFile,
    small: options.SmallFile,
    plan: options.GivenPlan,
    rule: options.Rules = [],  # noqa: B006
    inputs: options.Inputs = None,
    seed: options.Seed = 0,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove that a pruned model is the original without what its plan removes."""
    rules = options.rules_of(rule)
    with progress(not (json_ or quiet)):
        from onnxprune import api
        from onnxprune.report import tables

        found = api.verify(model, small, plan, inputs=inputs, seed=seed, rules=rules)
    if json_:
        typer.echo(tables.verification_json(found), nl=False)
    elif not quiet:
        show(tables.verification(found))  # without the verdict on a failure: that is the error
    if not found.ok:
        raise VerificationError(found.summary())
