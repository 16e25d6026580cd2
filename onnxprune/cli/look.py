"""Commands that look: inspect, explain, rules."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import typer

from onnxprune.cli import options
from onnxprune.cli.recipes import FromRecipe
from onnxprune.cli.shell import app
from onnxprune.errors import OnnxPruneError
from onnxprune.report.console import progress, show


@app.command(cls=FromRecipe)
def inspect(
    model: options.ModelFile,
    rule: options.Rules = [],  # noqa: B006  (typer copies it)
    recipe: options.RecipeFile = None,  # FromRecipe reads it
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


@app.command(cls=FromRecipe)
def explain(
    model: options.ModelFile,
    what: options.What,
    rule: options.Rules = [],  # noqa: B006
    recipe: options.RecipeFile = None,
) -> None:
    """Show the layout of a value, the members of a group, or why an axis can't be pruned."""
    rules = options.rules_of(rule)
    with progress(True):
        from onnxprune import api

        text = api.explain(model, what, rules)
    show(text)


@app.command()
def rules(
    operator: options.Operator = None,
    frozen: options.Frozen = False,
    missing: options.Missing = False,
    json_: options.AsJson = False,
) -> None:
    """Show the rule table: what each operator does with axes, and which have no rule and why."""
    from onnxprune.report import tables
    from onnxprune.report.examples import examples
    from onnxprune.report.operators import operators

    if frozen and missing:
        raise OnnxPruneError("--frozen and --missing exclude each other")
    rows = operators()
    if operator is not None:
        wanted = operator.removeprefix("ai.onnx::").lower()
        rows = tuple(r for r in rows if wanted in (r.op.lower(), r.op.lower().rpartition("::")[2]))
        if not rows:
            raise OnnxPruneError(
                f"there is no operator '{operator}': 'onnxprune rules' and 'onnxprune rules "
                "--frozen' list those of ai.onnx and com.microsoft"
            )
        rows = tuple(replace(row, examples=examples(row.op)) for row in rows)
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif operator is not None:
        show("\n".join(tables.operator(row) for row in rows))
    else:
        state = "frozen" if frozen else "missing" if missing else "covered"
        for part in tables.operators(rows, state):
            show(part)
