"""The command that probes: which channel counts kernels like on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli import fast, options
from onnxprune.cli.bench import pair
from onnxprune.cli.shell import app
from onnxprune.report.console import progress, show

KINDS = 5
Dtype = Annotated[str, typer.Option("--dtype", help="The type of the values: float32 or float16.")]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.html", readable=False, help="Draw the curves (plotly)."),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Do not keep what is found for --align auto.")
]


@app.command()
def probe(
    ep: fast.Ep = "cpu",
    ep_option: fast.EpOption = [],  # noqa: B006  (typer copies it)
    threads: fast.Threads = 1,
    dtype: Dtype = "float32",
    plot: Plot = None,
    no_cache: NoCache = False,
    json_: options.AsJson = False,
) -> None:
    """Measure which channel counts kernels like here; --align auto goes by it then."""
    from onnxprune.report import steps

    if plot is not None:
        steps.check(plot)
    given = dict(pair("--ep-option", text) for text in ep_option)
    with progress(not json_, KINDS) as tell:
        from onnxprune import api

        found = api.probe(
            ep=ep,
            threads=threads,
            ep_options=given,
            dtype=dtype,
            keep=not no_cache,
            progress=tell,
        )
    if plot is not None:
        steps.draw(found, plot)
    if json_:
        typer.echo(found.to_json(), nl=False)
    else:
        show(steps.table_of(found))
        if plot is not None:
            show(f"wrote the curves to {plot}")
