"""The loop: steps, judgement after each epoch, checkpoints, a log."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from onnxprune.errors import OnnxPruneError
from onnxprune.runtime import Feeds
from onnxprune.torch_bridge.at import Tensor, tensor
from onnxprune.torch_bridge.lazy import torch
from onnxprune.training.averages import Average
from onnxprune.training.checkpoints import Checkpoint
from onnxprune.training.settings import Training
from onnxprune.training.stream import Batch, Stream
from onnxprune.training.world import ALONE, World

Task = Callable[[Any, Mapping[str, Tensor], Batch], Tensor]  # module, feeds, batch -> loss
Judge = Callable[[Any], float]  # of a module, larger is better
Progress = Callable[[str], None]
LEAST_SIZE: Final = 1e-3  # of a tensor, for relative rates
COLUMNS: Final = ("step", "epoch", "lr", "loss", "gradient", "score", "seconds")


@dataclass
class State:
    """Where training stands."""

    step: int = 0
    before: float | None = None
    score: float | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    stale: int = 0
    stopped: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """What is trained, and how.

    Attributes:
        module: the bridge's module; it has the best weights in the end.
        task: the loss of a batch.
        stream: the batches.
        how: the settings.
        judge: at the start and after each epoch, larger is better; the best weights are kept, be
            they those of the start. Without it the last ones are.
        checkpoint: where the state is kept.
        log: a CSV file.
        world: the processes.
        progress: is told each step.
    """

    module: Any
    task: Task
    stream: Stream
    how: Training
    judge: Judge | None
    checkpoint: Checkpoint
    log: Path | None = None
    world: World = ALONE
    progress: Progress | None = None

    def run(self) -> State:
        """Train.

        Raises:
            OnnxPruneError: the loss is no number, or a file can't be written.
        """
        each = self.stream.steps()
        total = min(self.how.steps or math.inf, self.how.epochs * each)
        optimizer = _optimizer(self.module, self.how)
        average = Average(self.module, self.how.ema)
        state = self._resumed(optimizer, average)
        if state.step == 0 and self.judge is not None:
            self._judge(state, average, -1)
            state.before = state.score
        start = time.perf_counter() - (state.rows[-1]["seconds"] if state.rows else 0.0)
        for epoch, position, parts in self._left(state, each):
            if state.step >= total or state.stopped:
                break
            row = self._step(optimizer, parts, int(total), state)
            average.update(state.step)
            state.step += 1
            state.rows.append({"step": state.step, "epoch": epoch, **row, "score": ""})
            state.rows[-1]["seconds"] = round(time.perf_counter() - start, 3)
            last = position == each - 1 or state.step >= total
            if last:
                self._judge(state, average, epoch)
            if last or state.step % self.how.checkpoint_every == 0:
                self._keep(state, optimizer, average)
            if self.progress is not None:
                self.progress(f"step {state.step}/{int(total)}: {_told(state)}")
        if state.best:
            self.module.load_state_dict(state.best)
        return state

    def _left(self, state: State, each: int) -> Iterator[tuple[int, int, list[Sequence[int]]]]:
        """Epoch, position and batches of the steps that are left."""
        first = state.step // each
        for epoch in range(first, self.how.epochs):
            steps = self.stream.epoch(epoch)
            for position in range(state.step - epoch * each, each):
                yield epoch, position, steps[position]

    def _step(
        self, optimizer: Any, parts: list[Sequence[int]], total: int, state: State
    ) -> dict[str, Any]:
        """One step of the optimizer, on one batch or several; the mean of the loss over all."""
        rate, device = self.how.rate(state.step, total), next(self.module.parameters()).device
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        self.module.train(not self.how.freeze)
        optimizer.zero_grad()
        loss_sum = 0.0
        for part in parts:
            batch = self.stream.read(part)
            with _cast(self.how.amp, device):
                loss = self.task(self.module, on(batch.feeds, device), batch)
            (loss / len(parts)).backward()
            loss_sum += float(loss.detach())
        mean = loss_sum / len(parts)
        if not math.isfinite(mean):
            raise OnnxPruneError(
                f"the loss is {mean} at step {state.step + 1}: lower the learning rate "
                f"(lr is {rate:.3g})"
            )
        own = [p for group in optimizer.param_groups for p in group["params"]]
        if self.world.size > 1:
            for p in own:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.world.mean(p.grad for p in own)
            self.world.mean(self.module.buffers())
        norm = torch.nn.utils.clip_grad_norm_(own, self.how.clip or math.inf)
        optimizer.step()
        return {"lr": rate, "loss": mean, "gradient": float(norm)}

    def _judge(self, state: State, average: Average, epoch: int) -> None:
        """Judge the weights, and remember the best."""
        self.module.eval()
        with average.applied():
            score = None
            if self.judge is not None and self.world.leads:
                score = self.judge(self.module)
            score = self.world.told(score)
            better = score is None or state.score is None or score > state.score
            if better:
                state.best = {n: v.detach().clone() for n, v in self.module.state_dict().items()}
                state.best_epoch, state.score = epoch + 1, score
        if state.rows:
            state.rows[-1]["score"] = "" if score is None else score
        state.stale = 0 if better else state.stale + 1
        state.stopped = self.how.patience is not None and state.stale >= self.how.patience

    def _keep(self, state: State, optimizer: Any, average: Average) -> None:
        """Write the checkpoint and the log."""
        if not self.world.leads:
            return
        self.checkpoint.save(
            {
                "weights": self.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.values,
                "random": torch.get_rng_state(),
                **{name: getattr(state, name) for name in _KEPT},
            }
        )
        if self.log is not None:
            with self.log.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(state.rows)

    def _resumed(self, optimizer: Any, average: Average) -> State:
        """The state of the checkpoint, or that of the start."""
        torch.manual_seed(self.how.seed + self.world.rank)
        found = self.checkpoint.load()
        if found is None:
            return State()
        self.module.load_state_dict(found["weights"])
        optimizer.load_state_dict(found["optimizer"])
        average.values = found["average"]
        if self.world.leads:
            torch.set_rng_state(found["random"])
        return State(**{name: found[name] for name in _KEPT})


_KEPT: Final = ("step", "before", "score", "best", "best_epoch", "stale", "stopped", "rows")


def on(feeds: Feeds, device: Any) -> dict[str, Tensor]:
    """Feeds as tensors."""
    return {name: tensor(array).to(device) for name, array in feeds.items()}


def _cast(wanted: bool, device: Any) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def _optimizer(module: Any, how: Training) -> Any:
    """The optimizer; vectors and single numbers have no weight decay."""
    own = [p for p in module.parameters() if p.requires_grad]
    if not own:
        raise OnnxPruneError("the model has no weights that can be trained")
    decays = {True: how.weight_decay, False: 0.0}
    if how.relative:
        groups = [
            {"params": [p], "weight_decay": decays[p.ndim > 1], "size": _size(p)} for p in own
        ]
    else:
        groups = [
            {"params": [p for p in own if (p.ndim > 1) == wide], "weight_decay": decay, "size": 1.0}
            for wide, decay in decays.items()
        ]
        groups = [group for group in groups if group["params"]]
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=how.top, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=how.top)


def _size(p: Tensor) -> float:
    """The root mean square, or what stands for it where there is next to nothing."""
    return max(float(p.detach().float().square().mean().sqrt()), LEAST_SIZE)


def _told(state: State) -> str:
    """A word on how it goes."""
    row = state.rows[-1]
    best = "" if state.score is None else f", best {state.score:.4g}"
    return f"loss {row['loss']:.4g}{best}"
