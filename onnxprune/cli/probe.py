"""The command that probes: which channel counts kernels like on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli import options
from onnxprune.cli.options import option
from onnxprune.cli.shell import app
from onnxprune.report.console import progress, show

KINDS = 5
Dtype = Annotated[str, option("--dtype", None, "The type of the values: float32 or float16.")]
Plot = Annotated[
    Path | None,
    option("--plot", None, "Draw the curves (plotly).", metavar="FILE.html"),
]
NoCache = Annotated[bool, option("--no-cache", None, "Do not keep what is found for --align auto.")]


@app.command()
def probe(
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = [],  # noqa: B006  (typer copies it)
    threads: options.Threads = 1,
    dtype: Dtype = "float32",
    plot: Plot = None,
    no_cache: NoCache = False,
    json_: options.AsJson = False,
) -> None:
    """Measure which channel counts kernels like here; --align auto goes by it then."""
    from onnxprune.report import steps

    if plot is not None:
        steps.check(plot)
    with progress(not json_, KINDS) as tell:
        from onnxprune import api

        found = api.probe(
            ep=ep,
            threads=threads,
            ep_options=options.ep_options_of(ep_option),
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
