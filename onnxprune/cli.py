"""The command line. It prints; the library does not.

Exit codes: 0 done, 1 a gate or the verification failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from onnxprune import cli_options as options
from onnxprune.errors import GateError, OnnxPruneError, VerificationError
from onnxprune.report.console import progress, show

if TYPE_CHECKING:
    from onnxprune.results import Report

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130
PASSES: Final = 5  # load, couple, shrink, verify, write; score and select come once a step
# Options of the command that go to api.prune by their own names.
CHOICES: Final = (
    *("ratio", "macs", "params", "size_bytes", "peak_bytes", "criterion", "scope", "align"),
    *("min_channels", "max_ratio", "include", "exclude", "exact_only", "steps", "inputs", "seed"),
)


class _Commands(TyperGroup):
    """All commands; errors become one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GateError as error:
            raise _ends(str(error), FAILED) from error
        except OnnxPruneError as error:
            raise _ends(str(error), BAD_INPUT) from error
        except BrokenPipeError:
            raise  # the reader of stdout has gone: nobody is there to tell
        except OSError as error:
            where = f"'{error.filename}': " if error.filename else ""
            raise _ends(f"{where}{error.strerror or error}", BAD_INPUT) from error
        except MemoryError as error:
            raise _ends("there is not enough memory for this model", BAD_INPUT) from error
        except KeyboardInterrupt as error:
            raise _ends("interrupted", INTERRUPTED) from error


def _ends(text: str, code: int) -> typer.Exit:
    typer.echo(f"onnxprune: {text}", err=True)
    return typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    name="onnxprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="onnxprune")
    except KeyboardInterrupt:  # before a command began
        typer.echo("onnxprune: interrupted", err=True)
        sys.exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"onnxprune {version('onnxprune')}")
        raise typer.Exit


@app.callback()
def onnxprune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A structured pruning compiler for ONNX: any .onnx in, a proven smaller .onnx out."""


@app.command()
def inspect(
    model: options.ModelFile,
    rule: options.Rules = [],  # noqa: B006  (typer copies it)
    json_: options.AsJson = False,
    every: options.All = False,
) -> None:
    """Show a model's size and MACs, its groups, and what is frozen and why."""
    rules = options.rules_of(rule)
    with progress(not json_):
        from onnxprune import api
        from onnxprune.report import tables

        found = api.inspect(model, rules)
    if json_:
        typer.echo(found.to_json(), nl=False)
    else:
        show(tables.inspection(found, every))


@app.command()
def explain(
    model: options.ModelFile,
    what: options.What,
    rule: options.Rules = [],  # noqa: B006
) -> None:
    """Show the layout of a value, the members of a group, or why an axis can't be pruned."""
    rules = options.rules_of(rule)
    with progress(True):
        from onnxprune import api

        text = api.explain(model, what, rules)
    show(text)


@app.command()
def prune(
    ctx: typer.Context,
    model: options.ModelFile,
    output: options.Output = None,
    ratio: options.Ratio = None,
    macs: options.Macs = None,
    params: options.Params = None,
    size_bytes: options.SizeBytes = None,
    peak_bytes: options.PeakBytes = None,
    criterion: options.Criterion = None,
    scope: options.Scope = "global",
    group_ratio: options.GroupRatio = [],  # noqa: B006
    align: options.Align = "auto",
    min_channels: options.MinChannels = 1,
    max_ratio: options.MaxRatio = None,
    include: options.Include = [],  # noqa: B006
    exclude: options.Exclude = [],  # noqa: B006
    exact_only: options.ExactOnly = False,
    steps: options.Steps = 1,
    rule: options.Rules = [],  # noqa: B006
    inputs: options.Inputs = None,
    no_verify: options.NoVerify = False,
    seed: options.Seed = 0,
    plan: options.WritePlan = None,
    report: options.WriteReport = None,
    dry_run: options.DryRun = False,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
    every: options.All = False,
) -> None:
    """Make a model smaller, and prove that nothing else changed."""
    if output is None and plan is None and report is None and not dry_run:
        raise OnnxPruneError(
            "nothing to write: give -o FILE, or --dry-run to see what would happen"
        )
    files = _Files((model, inputs), output, plan, report, dry_run)
    _check(files, inputs, no_verify)
    given = {name: ctx.params[name] for name in CHOICES if ctx.params[name] is not None}
    given["per_group"], given["rules"] = options.ratios_of(group_ratio), options.rules_of(rule)
    with progress(not (json_ or quiet), PASSES + 2 * steps) as tell:
        from onnxprune import api

        target = None if dry_run else output
        found = api.prune(model, verify=not no_verify, output=target, progress=tell, **given)[1]
    _finish(found, files, json_, quiet, every)


@app.command()
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
) -> None:
    """Replay a plan, on its own model or on a twin with the same names (fp16, QDQ)."""
    if output is None and not dry_run:
        raise OnnxPruneError(
            "nothing to write: give -o FILE, or --dry-run to see what would happen"
        )
    files = _Files((model, plan, inputs), output, None, report, dry_run)
    _check(files, inputs, no_verify)
    rules = options.rules_of(rule)
    with progress(not (json_ or quiet), PASSES - 1) as tell:
        from onnxprune import api

        _, found = api.apply(
            model,
            plan,
            verify=not no_verify,
            inputs=inputs,
            rules=rules,
            output=None if dry_run else output,
            progress=tell,
        )
    _finish(found, files, json_, quiet, every)


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
        show(tables.verification(found))
    if not found.ok:
        raise VerificationError(found.summary())


@app.command()
def rules(
    operator: options.Operator = None,
    missing: options.Missing = False,
    json_: options.AsJson = False,
) -> None:
    """Show the rule table: what each operator does with axes, and which have no rule and why."""
    from onnxprune.report import tables
    from onnxprune.report.operators import operators

    rows = operators()
    if operator is not None:
        wanted = operator.removeprefix("ai.onnx::").lower()
        rows = tuple(r for r in rows if wanted in (r.op.lower(), r.op.lower().rpartition("::")[2]))
        if not rows:
            raise OnnxPruneError(
                f"there is no operator '{operator}': 'onnxprune rules' and 'onnxprune rules "
                "--missing' list those of ai.onnx and com.microsoft"
            )
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif operator is not None:
        show("\n".join(tables.operator(row) for row in rows))
    else:
        show(tables.operators(rows, missing))


@dataclass(frozen=True)
class _Files:
    """What a command reads and writes."""

    sources: tuple[Path | None, ...]
    output: Path | None
    plan: Path | None
    report: Path | None
    dry_run: bool

    @property
    def targets(self) -> dict[str, Path]:
        """The files to write, by what they are."""
        every = {"the model": self.output, "the plan": self.plan, "the report": self.report}
        return {what: path for what, path in every.items() if path is not None}


def _check(files: _Files, inputs: Path | None, no_verify: bool) -> None:
    """Refuse, before any work is done, what could not be finished.

    Raises:
        OnnxPruneError: a target is a source or another target, or can't be written.
    """
    if inputs is not None and no_verify:
        raise OnnxPruneError("--inputs are for the verification, which --no-verify switches off")
    taken = {path.resolve(): "an input" for path in files.sources if path is not None}
    for what, path in files.targets.items():
        if path.resolve() in taken:
            other = taken[path.resolve()]
            raise OnnxPruneError(
                f"'{path}' is to hold {what}, but is {other} too: give another path"
            )
        taken[path.resolve()] = what
        if not path.parent.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")
        if path.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: it is a folder")
        if not os.access(path.parent, os.W_OK):
            raise OnnxPruneError(f"'{path}' can't be written: the folder may not be written to")


def _finish(found: Report, files: _Files, json_: bool, quiet: bool, every: bool) -> None:
    """Write the plan and the report, and print the result."""
    from onnxprune.files import write_atomically
    from onnxprune.report import tables

    def fill(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    texts = {"the plan": found.plan.to_json, "the report": found.to_json}
    targets = {} if files.dry_run else files.targets
    for what in texts.keys() & targets:
        text = texts[what]()
        write_atomically(targets[what], fill)
    if json_:
        typer.echo(found.to_json(), nl=False)
    elif not quiet:
        show(tables.report(found, every))
        for what, path in targets.items():
            show(f"wrote {what} to {path}")
        if files.dry_run:
            show("dry run: nothing was written")
