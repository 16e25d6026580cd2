"""Commands that look at models on data: evaluate, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.amounts import share
from onnxprune.cli import options
from onnxprune.cli.judged import GATES, RECOVERY, TABLE, data_options
from onnxprune.cli.options import option
from onnxprune.cli.shared import sharing
from onnxprune.cli.shell import app
from onnxprune.report.console import progress, show

OtherFile = Annotated[Path | None, options.argument("[SMALL]", "The pruned model.")]


def ratios(text: str) -> tuple[float, ...]:
    """``0.1,0.5`` or ``10%,50%``.

    Raises:
        OnnxPruneError: it is neither.
    """
    return tuple(share(part.strip()) for part in text.split(","))


Ratios = Annotated[
    Any,
    option(
        "--ratios",
        None,
        "The shares that are tried (default: 0.1,0.2,...,0.9).",
        parser=ratios,
        metavar="SHARE,...",
        show_default=False,
    ),
]
Table = Annotated[
    Path | None,
    option(
        "-o --output",
        options.FILES,
        "Where to write the trials as they are done, with a .csv beside it; what it holds "
        "already is not done again.",
        metavar="FILE.json",
    ),
]
Timed = Annotated[
    str | None,
    option(
        "--ep",
        options.TARGET,
        "Also say how many milliseconds each trial saves on this execution provider.",
        metavar="NAME",
    ),
]
Jobs = Annotated[int, option("--jobs", None, "So many trials at once, each on one thread.")]
Cluster = Annotated[
    str | None,
    option(
        "--cluster",
        None,
        "Instead, on a cluster: dask://HOST:PORT, or ray (extras dask and ray).",
        metavar="ENGINE",
    ),
]
Recover = Annotated[bool, option("--recover", None, "Recover each trial first; much slower.")]


@app.command()
@sharing(data=data_options(*GATES, *RECOVERY, *TABLE))
def evaluate(
    model: options.ModelFile,
    small: OtherFile = None,
    threads: options.Threads = 1,
    seed: options.Seed = 0,
    json_: options.AsJson = False,
    *,
    data: dict[str, Any],
) -> None:
    """Show the metric of a model; with a second one, that of both, and its fidelity."""
    with progress(not json_):
        from onnxprune import api
        from onnxprune.report import tables

        found = api.evaluate(model, small, threads=threads, seed=seed, **data)
    if json_:
        typer.echo(found.to_json(), nl=False)
    else:
        for part in tables.judgement(found.fidelity, found.evaluation):
            show(part)


@app.command()
@sharing(data=data_options(*GATES, *RECOVERY, *TABLE))
def sensitivity(
    model: options.ModelFile,
    output: Table = None,
    ratios: Ratios = None,
    criterion: options.Criterion = None,
    recover: Recover = False,
    include: options.Include = [],  # noqa: B006  (typer copies it)
    exclude: options.Exclude = [],  # noqa: B006
    jobs: Jobs = 1,
    cluster: Cluster = None,
    ep: Timed = None,
    threads: options.Threads = 1,
    rule: options.Rules = [],  # noqa: B006
    seed: options.Seed = 0,
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
    *,
    data: dict[str, Any],
) -> None:
    """Show what the model loses when one group alone loses channels, at several ratios."""
    tried: Sequence[float] | None = ratios
    with progress(not (json_ or quiet)) as tell:
        from onnxprune import api
        from onnxprune.report import tables

        if tried is not None:
            data["ratios"] = tried
        found = api.sensitivity(
            model,
            output,
            criterion=criterion,
            recover=recover,
            include=include,
            exclude=exclude,
            jobs=jobs,
            cluster=cluster,
            ep=ep,
            threads=threads,
            rules=options.rules_of(rule),
            seed=seed,
            progress=tell,
            **data,
        )
    if json_:
        typer.echo(found.to_json(), nl=False)
    elif not quiet:
        show(tables.sensitivity(found))
        if output is not None:
            show(f"wrote {len(found.trials)} trials to {output} and {output.with_suffix('.csv')}")
