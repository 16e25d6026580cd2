"""The Python interface to what needs gradients (extra ``torch``): bridge, finetune, distill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import onnx

from onnxprune import files, torch_bridge
from onnxprune.api_rules import every_row, every_rule
from onnxprune.calibration import batches
from onnxprune.choosing import Progress, analyse
from onnxprune.errors import OnnxPruneError
from onnxprune.metrics import DEFAULT as METRIC
from onnxprune.metrics import Metric, check_metric
from onnxprune.pictures import Pictures
from onnxprune.plan import Plan, keep_of, read_plan
from onnxprune.sources import Source
from onnxprune.training import tuning
from onnxprune.training.distilling import Lesson, distillation
from onnxprune.training.finetuning import supervised
from onnxprune.training.losses import DEFAULT as LOSS
from onnxprune.training.losses import Loss
from onnxprune.training.settings import TrainingOptions, training
from onnxprune.training.sparsity import sparse as made_sparse
from onnxprune.training.stream import held_out
from onnxprune.training.tuning import Trained


def bridge(model: Any, rules: Mapping[str, str] | None = None) -> Any:
    """The model as a torch.nn.Module, its weights as parameters under their ONNX names.

    ``module(x)`` gives the output, ``module.written()`` the file's graph with the weights of now.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        rules: rows for custom operators; ``register_rule`` gives these a function of torch.

    Raises:
        OnnxPruneError: torch is missing, or an operator has no function of torch.
    """
    return torch_bridge.bridge(files.load(model, rules=every_rule(rules)), every_row())


def finetune(
    model: Any,
    output: str | Path | None = None,
    *,
    train: Source,
    evaluate: Source = None,
    metric: Metric = METRIC,
    loss: Loss = LOSS,
    sparse: float | None = None,
    pictures: Pictures | None = None,
    seed: int = 0,
    rules: Mapping[str, str] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[TrainingOptions],
) -> tuple[onnx.ModelProto, Trained]:
    """Train a model's weights on data with labels: the same graph comes back with better ones.

    Args:
        model: a path, a ModelProto or a graphsurgeon Graph.
        output: where to write the result, once ONNX Runtime's outputs are proved to be torch's.
        train: samples with labels (see ``onnxprune.sources``).
        evaluate: others, to judge each epoch by: the best is kept; without any, the last is.
        metric: by what, as of ``prune``.
        loss: ``cross-entropy``, ``mse``, ``ctc``, ``module:function``, or a function of outputs by
            name and labels (tensors). What stands before a final Softmax is what a loss reads.
        sparse: the strength of a penalty that makes weak channels weaker, to prune them
            afterwards (see ``onnxprune.training.sparsity``): 1e-4, say.
        pictures: how pictures become inputs.
        seed: of the order of samples.
        rules: rows for custom operators.
        checkpoint: a file that is written as training goes, gone on from where it is there, and
            removed at the end.
        log: a CSV file, with a row for each step.
        progress: is told each step.
        options: see ``onnxprune.training.settings.Training``.

    Returns:
        the trained model and what was done.

    Raises:
        OnnxPruneError: torch is missing, an operator has no function of torch, or data or settings
            make no sense.
        VerificationError: ONNX Runtime's outputs differ from torch's.
    """
    how, loaded = training(options, seed), files.load(model, rules=every_rule(rules))
    task, pictures = supervised(loss), pictures or Pictures()
    torch_bridge.need_torch()
    source = batches(train, loaded, pictures, samples=None, labels=True, batch=how.batch_size)
    told = loss if isinstance(loss, str) else getattr(loss, "__name__", "function")
    settings = {"train": _named(train), "loss": told, "sparse": sparse, **how.to_dict()}
    if sparse is not None:
        coupling = analyse(loaded, every_rule(rules))
        task = made_sparse(task, coupling, torch_bridge.bridge(loaded, every_row()), sparse)
    plan = tuning.Plan(loaded, task, source, how, settings)
    return _made(plan, output, (evaluate, metric, pictures), checkpoint, log, progress)


def distill(
    model: Any,
    output: str | Path | None = None,
    *,
    teacher: Any,
    data: Source,
    evaluate: Source = None,
    metric: Metric = METRIC,
    plan: Plan | str | Path | None = None,
    temperature: float = Lesson.temperature,
    depth: float = Lesson.depth,
    attention: float = Lesson.attention,
    labels: float = Lesson.labels,
    loss: str = LOSS,
    augment: Sequence[str] = (),
    pictures: Pictures | None = None,
    seed: int = 0,
    rules: Mapping[str, str] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[TrainingOptions],
) -> tuple[onnx.ModelProto, Trained]:
    """Train a smaller model to say what a larger one says, on data without labels.

    Without ``evaluate`` an eighth of the data is held back, and the weights that come closest to
    the teacher on it are kept. Arguments as of ``finetune``, and:

    Args:
        teacher: the model to learn from; it runs on ONNX Runtime.
        data: samples; labels are read where ``labels`` is above 0.
        plan: what the smaller model kept of the teacher, so that values inside the graph can be
            compared where it is narrower; without it, those that are as wide are.
        temperature: of class scores.
        depth: the weight of values inside the graph beside the outputs'; 0 looks at outputs alone.
        attention: the weight of attention maps, of the heads that are left.
        labels: the share of the labels' loss.
        loss: of the labels.
        augment: what is done to samples, for the teacher and the student alike: ``shift`` and
            ``flip`` pictures, ``mix`` samples with others.
    """
    lesson = Lesson(temperature, depth, attention, labels, loss, tuple(augment))
    lesson.check()
    how = training(options, seed)
    rows, pictures = every_rule(rules), pictures or Pictures()
    small, large = files.load(model, rules=rows), files.load(teacher, rules=rows)
    torch_bridge.need_torch()
    source = batches(data, small, pictures, samples=None, labels=labels > 0, batch=how.batch_size)
    settings = {"data": _named(data), "teacher": large.name, **asdict(lesson), **how.to_dict()}
    kept = None
    if plan is not None:
        coupling = analyse(large, rows)
        kept = (
            coupling,
            keep_of(plan if isinstance(plan, Plan) else read_plan(Path(plan)), coupling),
        )
    own, held = (source, source) if evaluate is not None else held_out(source)
    task, judge = distillation(small, large, lesson, kept, held, every_row())
    made = tuning.Plan(small, task, own, how, settings, judge)
    return _made(made, output, (evaluate, metric, pictures), checkpoint, log, progress)


def _made(
    plan: tuning.Plan,
    output: str | Path | None,
    judged: tuple[Source, Metric, Pictures],
    checkpoint: str | Path | None,
    log: str | Path | None,
    progress: Progress | None,
) -> tuple[onnx.ModelProto, Trained]:
    """Train and write."""
    from dataclasses import replace

    evaluate, metric, pictures = judged
    labelled = None
    if evaluate is not None:
        check_metric(metric)
        labelled = batches(evaluate, plan.model, pictures, samples=None, labels=True)
    plan = replace(
        plan,
        labelled=labelled,
        metric=metric,
        rows=every_row(),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        log=None if log is None else Path(log),
        progress=progress,
    )
    for path in (output, checkpoint, log):
        if path is not None and not Path(path).parent.is_dir():
            raise OnnxPruneError(
                f"'{path}' can't be written: there is no folder '{Path(path).parent}'"
            )
    proto, found, leads = tuning.trained(plan)
    if output is not None and leads:
        files.save(proto, Path(output), plan.model.folder, plan.model.proto)
    return proto, found


def _named(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__
