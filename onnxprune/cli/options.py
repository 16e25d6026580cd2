"""The options of the command line: their help, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

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


BUDGET: Final = "What is pruned (one of --ratio and the budgets; budgets go together)"
CHOICE: Final = "How it is chosen"
TARGET: Final = "What it runs on"
PROOF: Final = "Proof"
FILES: Final = "Files and output"


def argument(metavar: str, what: str) -> Any:
    """A positional argument; of a path, the library says what is wrong with it, not typer."""
    return typer.Argument(metavar=metavar, readable=False, help=what)


def option(names: str, panel: str | None, what: str, **how: Any) -> Any:
    """An option, by its names apart by blanks; paths as of ``argument``."""
    return typer.Option(*names.split(), help=what, rich_help_panel=panel, readable=False, **how)


def _budget(name: str, what: str, example: str) -> Any:
    text = f"The {what} that may remain: a fraction (0.5 or 50%) or an amount ({example})."
    return option(name, BUDGET, text, parser=amount, metavar="AMOUNT")


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
    "taylor": "size of the first-order change (wants --calibration and the extra torch)",
    "fisher": "square of the gradient, labels drawn (wants --calibration and the extra torch)",
    "hessian": "second derivative, estimated (wants --calibration and the extra torch)",
    "random": "nothing: the baseline",
}


def _criteria() -> str:
    """The help of ``--criterion``: a line for each."""
    told = "; ".join(f"{name}: {text}" for name, text in CRITERIA.items())
    return f"What a channel is worth. {told}. (default: {DEFAULT})"


ModelFile = Annotated[Path, argument("MODEL", "The model, an .onnx file.")]
SmallFile = Annotated[Path, argument("SMALL", "The pruned model.")]
PlanFile = Annotated[Path, argument("PLAN", "The plan, a .json file.")]
GivenPlan = Annotated[Path, option("--plan", None, "The plan that the model was pruned by.")]
What = Annotated[str, argument("VALUE[:AXIS] | GROUP", "A name that inspect shows.")]
Operator = Annotated[str | None, argument("OPERATOR", "One operator, such as Conv.")]
Frozen = Annotated[bool, option("--frozen", None, "List what is frozen on purpose, and why.")]
Missing = Annotated[
    bool,
    option("--missing", None, "List what has neither a rule nor a reason; nothing, if all do."),
]

Ratio = Annotated[
    float | None,
    option(
        "--ratio",
        BUDGET,
        "Take this share from every group: 0.5 or 50%.",
        parser=share,
        metavar="SHARE",
    ),
]
Macs = Annotated[float | None, _budget("--macs", "multiply-accumulates", "300M")]
Params = Annotated[float | None, _budget("--params", "parameters", "2M")]
SizeBytes = Annotated[float | None, _budget("--bytes", "bytes of the file", "2MB, 512KiB")]
PeakBytes = Annotated[
    float | None,
    _budget("--peak-memory", "bytes of activations, as ONNX Runtime plans them", "8MB"),
]
Criterion = Annotated[str | None, option("--criterion", CHOICE, _criteria(), show_default=False)]
Scope = Annotated[
    str | None,
    option(
        "--scope",
        CHOICE,
        "How a budget is shared out. global: the lowest scores of all groups go first (the "
        "default); uniform: every group loses the same share; by-cost: the same, but less of "
        "groups that cost little (the default with --calibration); "
        "per-group: shares in the proportions of --group-ratio.",
        show_default=False,
    ),
]
GroupRatio = Annotated[
    list[str],
    option(
        "--group-ratio",
        CHOICE,
        "With --scope per-group: the ratio of matching groups. Repeatable.",
        metavar="PATTERN=RATIO",
    ),
]
Align = Annotated[
    str,
    option(
        "--align",
        CHOICE,
        "Kept counts are multiples of this: what kernels like, or N; 1 is off.",
        parser=alignment,
        metavar="auto|N",
    ),
]
MinChannels = Annotated[
    int, option("--min-channels", CHOICE, "Every group keeps at least so many.")
]
MaxRatio = Annotated[
    float | None,
    option(
        "--max-ratio",
        CHOICE,
        "No group loses a larger share under a budget (default: 0.9).",
        parser=share,
        metavar="SHARE",
        show_default=False,
    ),
]
Include = Annotated[
    list[str],
    option(
        "--include",
        CHOICE,
        "Prune only groups with a matching name or member (* and ?). Repeatable.",
        metavar="PATTERN",
    ),
]
Exclude = Annotated[
    list[str],
    option("--exclude", CHOICE, "Leave such groups alone. Repeatable.", metavar="PATTERN"),
]
ExactOnly = Annotated[
    bool,
    option(
        "--exact-only",
        CHOICE,
        "Leave groups alone whose removal changes what survives (norm statistics).",
    ),
]
Balanced = Annotated[
    bool,
    option(
        "--balanced/--no-balanced",
        CHOICE,
        "Let each row of a product (each head, each group of a convolution) keep channels of its "
        "own, as many as the others, where the model allows it.",
    ),
]
Steps = Annotated[int, option("--steps", CHOICE, "Prune in so many steps, scoring again between.")]
Schedule = Annotated[
    str,
    option(
        "--schedule",
        CHOICE,
        "How much goes in each step: exponential (the same share of what is left), linear (the "
        "same amount) or cubic (most at first).",
    ),
]
Rules = Annotated[
    list[str],
    option(
        "--rule",
        CHOICE,
        "A rule for a custom operator: 'my.domain::MyOp=_ c *, c -> _ c *'. Repeatable.",
        metavar="OPERATOR=LINE",
    ),
]

RecipeFile = Annotated[
    Path | None,
    option(
        "--recipe",
        FILES,
        "Take what is not given here from a recipe: options by their names, and [rules] by "
        "operator (.toml or .json).",
        metavar="FILE",
    ),
]
AllowIoChange = Annotated[
    list[str],
    option(
        "--allow-io-change",
        CHOICE,
        "An input or output of the graph whose channels may go, such as a KV cache; its new shape "
        "is reported. Repeatable.",
        metavar="NAME",
    ),
]
OrtExtensions = Annotated[
    list[Path],
    option(
        "--ort-extension",
        PROOF,
        "A library of custom operators (.so, .dll, .dylib), so that ONNX Runtime runs the model. "
        "Repeatable.",
        metavar="LIB",
    ),
]

Ep = Annotated[
    str,
    option(
        "--ep",
        TARGET,
        "Execution provider: cpu, openvino, openvino-plugin, webgpu, qnn, xnnpack, dnnl, cuda, "
        "tensorrt, directml, coreml, nnapi, acl or armnn.",
    ),
]
EpOption = Annotated[
    list[str],
    option("--ep-option", TARGET, "An option of the provider. Repeatable.", metavar="KEY=VALUE"),
]
Threads = Annotated[int, option("--threads", TARGET, "Threads inside an operator.")]

Seed = Annotated[int, option("--seed", PROOF, "For random choices and inputs.")]
Inputs = Annotated[
    Path | None,
    option("--inputs", PROOF, "Real inputs by name for the verification.", metavar="FILE.npz"),
]
NoVerify = Annotated[bool, option("--no-verify", PROOF, "Skip the proof (the report says so).")]

Output = Annotated[Path | None, option("-o --output", FILES, "Where to write the model.")]
WritePlan = Annotated[Path | None, option("--plan", FILES, "Write the plan here, as JSON.")]
WriteReport = Annotated[
    Path | None,
    option("--report", FILES, "Write the report here: .html (extra 'report'), .md or .json."),
]
DryRun = Annotated[bool, option("--dry-run", FILES, "Do and show everything, write nothing.")]
AsJson = Annotated[bool, option("--json", FILES, "Print the result as JSON, nothing else.")]
Quiet = Annotated[bool, option("--quiet -q", FILES, "Print nothing but errors.")]
All = Annotated[bool, option("--all-groups --all", FILES, "Show every row.")]


def pair(name: str, text: str) -> tuple[str, str]:
    """``KEY=VALUE``.

    Raises:
        OnnxPruneError: it has no key or no value.
    """
    key, _, value = text.partition("=")
    if not key or not value:
        raise OnnxPruneError(f"{name} '{text}' can't be read: give KEY=VALUE")
    return key, value


def ep_options_of(texts: Sequence[str]) -> dict[str, str]:
    """Options of a provider, from ``KEY=VALUE``."""
    return dict(pair("--ep-option", text) for text in texts)
