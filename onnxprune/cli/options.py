"""The options of the command line: their help, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from onnxprune.amounts import amount, share
from onnxprune.errors import OnnxPruneError


def alignment(text: str) -> int | str:
    """``auto``, or a number of channels.

    Raises:
        OnnxPruneError: it is neither.
    """
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise OnnxPruneError(f"--align is '{text}': give auto, or a number of channels (1 is off)")
    return int(text)


def rules_of(texts: Sequence[str]) -> dict[str, str]:
    """Lines by operator, from ``my.domain::MyOp=_ c *, c -> _ c *``.

    Raises:
        OnnxPruneError: a text has no operator or no line.
    """
    found = {}
    for text in texts:
        op, _, line = (part.strip() for part in text.partition("="))
        if not op or not line:
            raise OnnxPruneError(
                f"--rule '{text}' can't be read: give 'OPERATOR=LINE', such as "
                "'my.domain::MyOp=_ c *, c -> _ c *'"
            )
        found[op] = line
    return found


def ratios_of(texts: Sequence[str]) -> dict[str, float] | None:
    """Ratios by pattern, from ``PATTERN=0.5``; None where there are none.

    Raises:
        OnnxPruneError: a text has no pattern, or no share behind it.
    """
    found = {}
    for text in texts:
        pattern, _, ratio = text.rpartition("=")
        if not pattern:
            raise OnnxPruneError(
                f"--group-ratio '{text}' can't be read: give 'PATTERN=RATIO', such as 'layer1*=0.5'"
            )
        found[pattern] = share(ratio)
    return found or None


# Paths are not checked by typer (readable=False): the library says what is wrong with a file.
BUDGET = "What is pruned (one of --ratio and the budgets; budgets go together)"
CHOICE = "How it is chosen"
PROOF = "Proof"
FILES = "Files and output"

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", readable=False, help="The model, an .onnx file.")
]
SmallFile = Annotated[
    Path, typer.Argument(metavar="SMALL", readable=False, help="The pruned model.")
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", readable=False, help="The plan, a .json file.")
]
GivenPlan = Annotated[
    Path, typer.Option("--plan", readable=False, help="The plan that the model was pruned by.")
]
What = Annotated[
    str, typer.Argument(metavar="VALUE[:AXIS] | GROUP", help="A name that inspect shows.")
]
Operator = Annotated[
    str | None, typer.Argument(metavar="OPERATOR", help="One operator, such as Conv.")
]
Missing = Annotated[bool, typer.Option("--missing", help="List what has no rule, and why.")]

Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        parser=share,
        metavar="SHARE",
        help="Take this share from every group: 0.5 or 50%.",
        rich_help_panel=BUDGET,
    ),
]


def _budget(name: str, what: str, example: str) -> typer.models.OptionInfo:
    text = f"The {what} that may remain: a fraction (0.5 or 50%) or an amount ({example})."
    option: typer.models.OptionInfo = typer.Option(
        name, parser=amount, metavar="AMOUNT", help=text, rich_help_panel=BUDGET
    )
    return option


# What an index is worth; docs/criteria.md says more. A test holds this against score.CRITERIA.
DEFAULT: Final = "l2"
CRITERIA: Final = {
    "l1": "sum of the absolute weights",
    "l2": "root of their squares",
    "linf": "largest weight",
    "fpgm": "distance to all others of its group",
    "bn-scale": "scale of its BatchNormalization (l2 where there is none)",
    "lamp": "square against all squares of the group that are larger",
    "redundancy": "l2, times what no other channel stands for; near-copies are merged",
    "activation": "energy of what is read there (wants --calibration)",
    "wanda": "weights times the norm of what they read (wants --calibration)",
    "flap": "weights times the fluctuation of what they read (wants --calibration)",
    "obs": "what its loss costs when all others make up for it (wants --calibration)",
    "random": "nothing: the baseline",
}


def _criteria() -> str:
    """The help of ``--criterion``: a line for each."""
    told = "; ".join(f"{name}: {text}" for name, text in CRITERIA.items())
    return f"What a channel is worth. {told}. (default: {DEFAULT})"


Macs = Annotated[float | None, _budget("--macs", "multiply-accumulates", "300M")]
Params = Annotated[float | None, _budget("--params", "parameters", "2M")]
SizeBytes = Annotated[float | None, _budget("--bytes", "bytes of the file", "2MB, 512KiB")]
PeakBytes = Annotated[
    float | None, _budget("--peak-memory", "bytes of activations alive at once", "8MB")
]
Criterion = Annotated[
    str | None,
    typer.Option("--criterion", help=_criteria(), rich_help_panel=CHOICE, show_default=False),
]
Scope = Annotated[
    str | None,
    typer.Option(
        "--scope",
        help="How a budget is shared out. global: the lowest scores of all groups go first "
        "(the default); uniform: every group loses the same share (the default with "
        "--calibration); per-group: shares in the proportions of --group-ratio.",
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]
GroupRatio = Annotated[
    list[str],
    typer.Option(
        "--group-ratio",
        metavar="PATTERN=RATIO",
        help="With --scope per-group: the ratio of matching groups. Repeatable.",
        rich_help_panel=CHOICE,
    ),
]
Align = Annotated[
    str,
    typer.Option(
        "--align",
        parser=alignment,
        metavar="auto|N",
        help="Kept counts are multiples of this: what kernels like, or N; 1 is off.",
        rich_help_panel=CHOICE,
    ),
]
MinChannels = Annotated[
    int,
    typer.Option(
        "--min-channels", help="Every group keeps at least so many.", rich_help_panel=CHOICE
    ),
]
MaxRatio = Annotated[
    float | None,
    typer.Option(
        "--max-ratio",
        parser=share,
        metavar="SHARE",
        help="No group loses a larger share under a budget (default: 0.9).",
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]
Include = Annotated[
    list[str],
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Prune only groups with a matching name or member (* and ?). Repeatable.",
        rich_help_panel=CHOICE,
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Leave such groups alone. Repeatable.",
        rich_help_panel=CHOICE,
    ),
]
ExactOnly = Annotated[
    bool,
    typer.Option(
        "--exact-only",
        help="Leave groups alone whose removal changes what survives (norm statistics).",
        rich_help_panel=CHOICE,
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--steps", help="Prune in so many steps, scoring again between.", rich_help_panel=CHOICE
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="For random choices and inputs.", rich_help_panel=PROOF)
]
Rules = Annotated[
    list[str],
    typer.Option(
        "--rule",
        metavar="OPERATOR=LINE",
        help="A rule for a custom operator: 'my.domain::MyOp=_ c *, c -> _ c *'. Repeatable.",
        rich_help_panel=CHOICE,
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE.npz",
        readable=False,
        help="Real inputs by name for the verification.",
        rich_help_panel=PROOF,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Skip the proof (the report says so).", rich_help_panel=PROOF),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", readable=False, help="Where to write the model.", rich_help_panel=FILES
    ),
]
WritePlan = Annotated[
    Path | None,
    typer.Option(
        "--plan", readable=False, help="Write the plan here, as JSON.", rich_help_panel=FILES
    ),
]
WriteReport = Annotated[
    Path | None,
    typer.Option(
        "--report",
        readable=False,
        help="Write the report here: .html (extra 'report'), .md or .json.",
        rich_help_panel=FILES,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Do and show everything, write nothing.", rich_help_panel=FILES),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON, nothing else.", rich_help_panel=FILES),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=FILES)
]
All = Annotated[
    bool,
    typer.Option("--all-groups", "--all", help="Show every row.", rich_help_panel=FILES),
]
