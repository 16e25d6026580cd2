"""The flow of fine-tuning and distillation: train, write, prove that the file is the module."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from onnxprune import files, runtime
from onnxprune.calibration import Batches, Labelled
from onnxprune.environment import environment
from onnxprune.errors import VerificationError
from onnxprune.metrics import MSE, Evaluation, Metric, check_metric, evaluate
from onnxprune.model import Model
from onnxprune.results import Jsonable
from onnxprune.runtime import Feeds
from onnxprune.torch_bridge import bridge
from onnxprune.torch_bridge.at import array
from onnxprune.torch_bridge.lazy import torch
from onnxprune.torch_bridge.unfolding import unfold
from onnxprune.training.checkpoints import Checkpoint
from onnxprune.training.loop import Judge, Loop, Progress, State, Task, on
from onnxprune.training.settings import Training
from onnxprune.training.stream import Stream
from onnxprune.training.world import World, world

SAME: Final = 1e-4  # of the largest value: what ONNX Runtime and torch may differ by
STATISTICS: Final = 8  # batches that the statistics of unfolded norms are taken of


@dataclass(frozen=True)
class Trained(Jsonable):
    """What training did.

    Attributes:
        name: the model's.
        settings: of the run.
        steps: how many were made.
        best_epoch: the epoch whose weights were kept, from 1; 0 of those at the start.
        loss: of the first and of the last epoch, the means.
        evaluation: the metric before and after, where there are labels to judge by.
        error: the largest difference between ONNX Runtime's outputs and torch's, relative.
        seconds: of training.
        environment: machine and versions.
    """

    name: str
    settings: dict[str, Any]
    steps: int
    best_epoch: int
    loss: tuple[float, float]
    evaluation: Evaluation | None
    error: float
    seconds: float
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        told = self.evaluation
        own = None if told is None else asdict(told) | {"drop": told.drop}
        return asdict(self) | {"evaluation": own, "loss": list(self.loss)}


@dataclass(frozen=True)
class Plan:
    """What is trained on what.

    Attributes:
        model: whose weights are trained.
        task: the loss of a batch.
        source: the samples.
        how: the settings.
        settings: all of them, for the report, and to know a checkpoint by.
        judge: how good a module is, where no labels say so.
        labelled: samples with labels to judge by.
        metric: by what.
        rows: functions of torch for custom operators.
        checkpoint: a file that training goes on from.
        log: a CSV file.
        progress: is told each step.
    """

    model: Model
    task: Task
    source: Batches
    how: Training
    settings: Mapping[str, Any]
    judge: Judge | None = None
    labelled: Labelled | None = None
    metric: Metric = ""
    rows: Mapping[str, Any] | None = None
    checkpoint: Path | None = None
    log: Path | None = None
    progress: Progress | None = None


def trained(plan: Plan) -> tuple[onnx.ModelProto, Trained, bool]:
    """Train; the graph with the best weights, proved, what was done, and whether to write it.

    Raises:
        OnnxPruneError: bad data or settings, or a loss that is no number.
        VerificationError: ONNX Runtime's outputs differ from the module's.
    """
    device = plan.how.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if plan.how.threads is not None:
        torch.set_num_threads(plan.how.threads)
    with world(device) as processes:
        place = f"cuda:{processes.local}" if device == "cuda" else device
        return _trained(plan, processes, torch.device(place))


def _trained(plan: Plan, processes: World, device: Any) -> tuple[onnx.ModelProto, Trained, bool]:
    module = bridge(plan.model, plan.rows).to(device)
    stream = Stream(plan.source, plan.how.batch_size, plan.how.seed, processes.size, processes.rank)
    stream.check()
    if plan.how.unfold:
        unfold(module.eval(), (on(plan.source[i][0], device) for i in _few(plan.source)))
    run = {**plan.settings, "model": _digest(plan.model), "processes": processes.size}
    checkpoint = Checkpoint(plan.checkpoint, run)
    judge = plan.judge if plan.labelled is None else _metric(plan)
    loop = Loop(
        *(module, plan.task, stream, plan.how, judge, checkpoint),
        *(plan.log, processes, plan.progress),
    )
    start = time.perf_counter()
    state = loop.run()
    seconds = time.perf_counter() - start
    module.eval()
    written = module.written()
    error = _proved(module, written, plan, device)
    evaluation = _evaluation(plan, state)
    found = Trained(
        name=plan.model.name,
        settings=dict(plan.settings),
        steps=state.step,
        best_epoch=state.best_epoch,
        loss=_losses(state, stream.steps()),
        evaluation=evaluation,
        error=error,
        seconds=seconds,
        environment=environment(),
    )
    if processes.leads:
        checkpoint.done()
    return written, found, processes.leads


def _few(source: Batches) -> range:
    return range(min(STATISTICS, len(source)))


def _digest(model: Model) -> str:
    import hashlib

    return hashlib.sha256(model.proto.SerializeToString(deterministic=True)).hexdigest()


def _losses(state: State, each: int) -> tuple[float, float]:
    losses = [row["loss"] for row in state.rows]
    return float(np.mean(losses[:each])), float(np.mean(losses[-each:]))


def _metric(plan: Plan) -> Judge:
    """The metric of what would be written, by ONNX Runtime; of an error the negative."""
    assert plan.labelled is not None
    labelled, sign = plan.labelled, -1.0 if plan.metric == MSE else 1.0

    def judge(module: Any) -> float:
        runner = runtime.runner(module.written(), None)
        return sign * evaluate(runner, labelled, plan.metric)

    return judge


def _evaluation(plan: Plan, state: State) -> Evaluation | None:
    if plan.labelled is None or state.before is None or state.score is None:
        return None
    sign = -1.0 if plan.metric == MSE else 1.0
    count = sum(len(part) for part in getattr(plan.labelled, "parts", ()))
    return Evaluation(check_metric(plan.metric), sign * state.before, sign * state.score, count)


def _proved(module: Any, written: onnx.ModelProto, plan: Plan, device: Any) -> float:
    """How far ONNX Runtime's outputs of the written graph are from the module's, on a batch.

    Raises:
        VerificationError: further than rounding explains.
    """
    feeds: Feeds = plan.source[0][0]
    names = list(module.program.outputs)
    expected = runtime.run(runtime.session(written, None), feeds, names)
    with torch.no_grad():
        found = module.run(on(feeds, device), names)
    worst = 0.0
    for name, wanted in zip(names, expected, strict=True):
        if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
            continue
        largest = float(np.max(np.abs(wanted), initial=1e-12))
        own = array(found[name]).astype(np.float64)
        worst = max(worst, float(np.max(np.abs(own - wanted), initial=0.0)) / largest)
    half = any(v.dtype != np.float32 for v in expected if isinstance(v, np.ndarray))
    if not worst <= (100 * SAME if half else SAME):
        raise VerificationError(
            f"ONNX Runtime's outputs of the trained graph differ from torch's by {worst:.2g} of "
            f"the largest value, and {SAME:g} is allowed: nothing was written"
        )
    return worst


def save(proto: onnx.ModelProto, target: Path, model: Model) -> None:
    """Write the graph where external data lies as the original's does."""
    files.save(proto, target, model.folder, model.proto)
