"""Commands that train weights: finetune, distill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from onnxprune.cli import options
from onnxprune.cli.judged import PICTURES, SOURCE, arguments
from onnxprune.cli.judged import Evaluate as Evaluated
from onnxprune.cli.judged import Metric as Metrics
from onnxprune.cli.options import option
from onnxprune.cli.shared import Shared, sharing
from onnxprune.cli.shell import app
from onnxprune.errors import OnnxPruneError
from onnxprune.report.console import progress, show

TRAINING: Final = "Training"
LOSSES: Final = "cross-entropy, mse, ctc or module:function"

Train = Annotated[
    str, option("--train", "Data", f"Inputs with labels: {SOURCE}.", metavar="SOURCE")
]
Inputs = Annotated[str, option("--data", "Data", f"Inputs: {SOURCE}.", metavar="SOURCE")]
Loss = Annotated[str, option("--loss", TRAINING, f"What is made small: {LOSSES}.")]
TeacherFile = Annotated[
    Path, option("--teacher", "Data", "The model to learn from.", metavar="MODEL")
]
KeptPlan = Annotated[
    Path | None,
    option(
        "--plan",
        TRAINING,
        "The plan that the model was pruned by: values inside the graph are compared by it.",
    ),
]
Temperature = Annotated[float, option("--temperature", TRAINING, "Of class scores.")]
Depth = Annotated[
    float,
    option("--depth", TRAINING, "Weight of values inside the graph beside the outputs'; 0 is off."),
]
Attention = Annotated[
    float,
    option("--attention", TRAINING, "Weight of attention maps, of the heads that are left."),
]
Labels = Annotated[
    float, option("--labels", TRAINING, "The share of the labels' loss; 0: there are no labels.")
]


Augment = Annotated[
    str,
    option(
        "--augment",
        TRAINING,
        "More samples of the same, for the teacher, too: shift and flip (pictures), mix.",
        metavar="NAME,...",
    ),
]


Sparse = Annotated[
    float | None,
    option(
        "--sparse",
        TRAINING,
        "Strength of a penalty that makes weak channels weaker, to prune them afterwards: 1e-4.",
    ),
]


def _one(kind: Any, name: str, what: str) -> Any:
    return Annotated[kind, option(name, TRAINING, what, show_default=False)]


_OPTIONS: Final[Mapping[str, tuple[Any, Any]]] = {
    "epochs": (_one(int | None, "--epochs", "How often all samples are seen (default: 10)."), None),
    "steps": (_one(int | None, "--steps", "Stop after so many steps instead."), None),
    "lr": (
        _one(float | None, "--lr", "Largest learning rate (default: 1e-3, of sgd 1e-2)."),
        None,
    ),
    "relative": (
        _one(bool, "--relative", "The rate is a share of each weight's size (default: 1e-2)."),
        False,
    ),
    "optimizer": (_one(str | None, "--optimizer", "adamw (the default) or sgd."), None),
    "schedule": (
        _one(str | None, "--schedule", "cosine (the default), linear or constant."),
        None,
    ),
    "warmup": (_one(float | None, "--warmup", "Share of the steps to warm up in (0.05)."), None),
    "batch_size": (_one(int | None, "--batch-size", "Samples of a step (default: 64)."), None),
    "weight_decay": (_one(float | None, "--weight-decay", "Of kernels (default: 1e-4)."), None),
    "clip": (_one(float | None, "--clip", "Largest norm of the gradient (default: 1)."), None),
    "ema": (_one(float | None, "--ema", "Keep a running mean of the weights: 0.99, say."), None),
    "patience": (
        _one(int | None, "--patience", "Stop after so many epochs that were not better."),
        None,
    ),
    "amp": (_one(bool, "--amp", "bfloat16 where torch allows it."), False),
    "freeze": (_one(bool, "--freeze-norms", "Statistics of norms stay as they are."), False),
    "unfold": (_one(bool, "--unfold", "Put folded norms back while training."), False),
    "device": (_one(str | None, "--device", "auto (the default), cpu or cuda."), None),
    "threads": (_one(int | None, "--threads", "Threads of torch."), None),
    "checkpoint": (
        _one(
            Path | None,
            "--checkpoint",
            "Go on from this file if it is there, and write it as training goes (default: beside "
            "the output, with .checkpoint added).",
        ),
        None,
    ),
    "checkpoint_every": (
        _one(int | None, "--checkpoint-every", "Steps between checkpoints (default: 200)."),
        None,
    ),
    "log": (_one(Path | None, "--log", "Write a row for each step here, as CSV."), None),
    "seed": (options.Seed, 0),
    "rule": (options.Rules, []),
    "evaluate": (Evaluated, None),
    "metric": (Metrics, None),
    **{name: (own, None) for name, own in PICTURES.items()},
    "output": (options.Output, None),
    "json_": (options.AsJson, False),
    "quiet": (options.Quiet, False),
}


def _given(found: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, as arguments of the library; and how to show the result."""
    given = arguments(found)
    for name in ("amp", "freeze", "relative", "unfold"):
        if not given[name]:
            del given[name]
    given["rules"] = options.rules_of(given.pop("rule"))
    output = given.get("output")
    if output is None:
        raise OnnxPruneError("nothing to write: give -o FILE")
    given.setdefault("checkpoint", output.with_name(f"{output.name}.checkpoint"))
    return given


TRAINED: Final = Shared(_OPTIONS, _given)


@app.command()
@sharing(given=TRAINED)
def finetune(
    model: options.ModelFile,
    train: Train,
    loss: Loss = "cross-entropy",
    sparse: Sparse = None,
    *,
    given: dict[str, Any],
) -> None:
    """Train a model's weights on data with labels; the graph stays as it is."""
    _run("finetune", model, {"train": train, "loss": loss, "sparse": sparse}, given, (train,))


@app.command()
@sharing(given=TRAINED)
def distill(
    model: options.ModelFile,
    teacher: TeacherFile,
    inputs: Inputs,
    plan: KeptPlan = None,
    temperature: Temperature = 4.0,
    depth: Depth = 1.0,
    attention: Attention = 0.0,
    labels: Labels = 0.0,
    loss: Loss = "cross-entropy",
    augment: Augment = "",
    *,
    given: dict[str, Any],
) -> None:
    """Train a pruned model to say what its original says, without labels."""
    own = {"teacher": teacher, "data": inputs, "plan": plan, "temperature": temperature}
    own["augment"] = tuple(part for part in augment.split(",") if part)
    own |= {"depth": depth, "attention": attention, "labels": labels, "loss": loss}
    _run("distill", model, own, given, (inputs, str(teacher)))


def _run(
    what: str, model: Path, own: dict[str, Any], given: dict[str, Any], read: tuple[str, ...]
) -> None:
    """Train, and print what was done."""
    as_json, quiet = given.pop("json_"), given.pop("quiet")
    output = given["output"]
    for path in (str(model), *read, str(given.get("evaluate", ""))):
        if path and Path(path).resolve() == output.resolve():
            raise OnnxPruneError(
                f"the model can't be written to '{output}', which this command reads: give another "
                "path"
            )
    with progress(not (as_json or quiet)) as tell:
        from onnxprune import api
        from onnxprune.report import trainings

        found = getattr(api, what)(model, progress=tell, **own, **given)[1]
    if as_json:
        typer.echo(found.to_json(), nl=False)
    elif not quiet:
        show(trainings.trained(found))
        show(f"wrote the model to {output}")
