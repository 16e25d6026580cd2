"""The options of the command line that ask for speed."""

from __future__ import annotations

from typing import Annotated

from onnxprune.cli.options import BUDGET, TARGET, option


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
    option(
        "--latency",
        BUDGET,
        "The time of a run that may remain: 0.5x of the original's, or 8ms. It is measured.",
        parser=latency,
        metavar="SHARE|TIME",
    ),
]
MinSpeedup = Annotated[
    float | None,
    option(
        "--min-speedup", TARGET, "Measure, and write nothing that is less so many times as fast."
    ),
]
Force = Annotated[
    bool,
    option(
        "--force",
        TARGET,
        "Write a model that is slower than the original, or than --min-speedup.",
    ),
]
