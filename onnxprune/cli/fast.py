"""The options of the command line that ask for speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.options import BUDGET

TARGET = "What it is to be fast on"


def latency(text: str) -> str:
    """``0.5x`` or ``0.5`` of the original's latency, or ``8ms``.

    Raises:
        BudgetError: it is none of these.
    """
    from onnxprune.speed import goal

    goal(text)
    return text


Latency = Annotated[
    str | None,
    typer.Option(
        "--latency",
        parser=latency,
        metavar="SHARE|TIME",
        help="The time of a run that may remain: 0.5x of the original's, or 8ms. It is measured.",
        rich_help_panel=BUDGET,
    ),
]
Ep = Annotated[
    str,
    typer.Option(
        "--ep", help="The execution provider that latency is measured on.", rich_help_panel=TARGET
    ),
]
EpOption = Annotated[
    list[str],
    typer.Option(
        "--ep-option",
        metavar="KEY=VALUE",
        help="An option of the provider. Repeatable.",
        rich_help_panel=TARGET,
    ),
]
Threads = Annotated[
    int,
    typer.Option("--threads", help="Threads inside an operator.", rich_help_panel=TARGET),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        help="Measure, and write nothing that is less so many times as fast.",
        rich_help_panel=TARGET,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Write a model that is slower than the original, or than --min-speedup.",
        rich_help_panel=TARGET,
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="The type of the values: float32 or float16.")]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.html", help="Draw the curves with plotly."),
]
