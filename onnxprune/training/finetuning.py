"""The task of fine-tuning: a loss of outputs and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.torch_bridge.at import Tensor
from onnxprune.torch_bridge.scores import score_names
from onnxprune.training.loop import Task
from onnxprune.training.losses import Loss, label_tensor, loss_of
from onnxprune.training.stream import Batch


def supervised(loss: Loss) -> Task:
    """The task of a loss by name, or a function of outputs by name and labels.

    Raises:
        OnnxPruneError: there is none of this name.
    """
    function, named = loss_of(loss), isinstance(loss, str) and ":" not in loss

    def task(module: Any, feeds: Mapping[str, Tensor], batch: Batch) -> Tensor:
        names = list(module.program.outputs)
        reads = score_names(module) if named else {name: name for name in names}
        found = module.run(feeds, sorted(set(reads.values())))
        outputs = {name: found[reads[name]] for name in names}
        device = next(iter(outputs.values())).device
        return function(outputs, label_tensor(batch.labels).to(device))

    return task
