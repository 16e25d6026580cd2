"""The last step of recovery: the pruned model learns from the original, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx

from onnxprune import views
from onnxprune.calibration import Batches, batches
from onnxprune.choosing import Progress
from onnxprune.coupling import Coupling
from onnxprune.full import fitted_values
from onnxprune.model import Array, Model
from onnxprune.pictures import Pictures
from onnxprune.plan import Keep
from onnxprune.runtime import Feeds
from onnxprune.torch_bridge.program import FLOATS
from onnxprune.training.distilling import Lesson, distillation
from onnxprune.training.settings import Training
from onnxprune.training.stream import held_out
from onnxprune.training.tuning import Plan, trained

STEPS: Final = 120
BATCH: Final = 64
RATE: Final = 1e-2  # of each tensor's size
# What is done to samples, which are few; docs/finetuning.md says what it is worth.
PHOTOS: Final = ("flip", "mix", "shift")
OTHERS: Final = ("mix",)


def distilled(
    coupling: Coupling,
    keep: Keep,
    small: onnx.ModelProto,
    feeds: Sequence[Feeds],
    rows: Mapping[str, Any],
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Array], str]:
    """What a pruned model's parameters are after a short distillation, at full size; and a note.

    An eighth of the inputs is held back: where the model comes no nearer the original on these, it
    stays as it was.

    Args:
        coupling: the structure of the original model.
        keep: kept indices (size,) by factor.
        small: the pruned model, with recovered weights.
        feeds: calibration inputs.
        rows: functions of torch for custom operators.
        seed: of the order of samples.
        progress: is told each step.

    Raises:
        OnnxPruneError: torch is missing, or an operator has no function of torch.
    """
    teacher = coupling.model
    student = views.view(small, teacher.folder, teacher.name)
    source, held = held_out(_gathered(feeds, student))
    lesson = Lesson(augment=PHOTOS if _are_photos(feeds[0]) else OTHERS)
    how = Training(10**6, STEPS, RATE, True, batch_size=BATCH, freeze=True, seed=seed)
    task, judge = distillation(student, teacher, lesson, (coupling, keep), held, rows)
    plan = Plan(student, task, source, how, {}, judge, rows=rows, progress=progress)
    proto, found, _ = trained(plan)
    if not found.best_epoch:
        return {}, "distillation came no nearer the original on inputs that were held back"
    # What no rule reads (a bound of Clip) has no layout, nor is it trained.
    known = coupling.layouts
    names = [n for n, own in teacher.params.items() if own.dtype in FLOATS and n in known]
    values = fitted_values(coupling, keep, proto, names)
    return values, f"distilled: {found.steps} steps in {found.seconds:.0f} s"


def _are_photos(feeds: Feeds) -> bool:
    """Whether the inputs are pictures in colour: those may be turned over, digits may not."""
    return all(x.ndim == 4 and x.shape[1] == 3 for x in feeds.values())


def _gathered(feeds: Sequence[Feeds], model: Model) -> Batches:
    """Batches of the samples of some feeds, put together anew where their shapes allow it."""
    shapes = {tuple((k, v.shape[1:]) for k, v in sorted(own.items())) for own in feeds}
    given: Any = list(feeds)
    if len(shapes) == 1 and all(v.ndim for v in feeds[0].values()):
        given = {name: np.concatenate([own[name] for own in feeds]) for name in feeds[0]}
    return batches(given, model, Pictures(), samples=None, batch=BATCH)
