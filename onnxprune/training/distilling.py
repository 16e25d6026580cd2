"""The task of distillation: a smaller model learns what a larger one says, labels or not.

The teacher runs on ONNX Runtime; what it says of a sample is remembered as far as memory goes. The
student learns

- its class scores, by the divergence of softmax(scores / T), times T squared
  (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015);
- its other outputs, by their squared error as a share of their mean square;
- values inside the graph, in the same way: those that both have under one name, and of these the
  channels that the smaller one kept;
- its attention maps, of the heads that it kept, by the divergence of their rows (Wang et al. 2020,
  MiniLM, without its relations of values).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.calibration import Batches
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.full import kept_part
from onnxprune.model import Array, Model
from onnxprune.plan import Keep
from onnxprune.rules.tables import ADDS, LINEAR, PROBABILITIES
from onnxprune.runtime import Feeds
from onnxprune.torch_bridge import bridge
from onnxprune.torch_bridge.at import Tensor, tensor
from onnxprune.torch_bridge.lazy import F, torch
from onnxprune.torch_bridge.scores import score_names
from onnxprune.training.augments import AUGMENTS, MIXING, augmented
from onnxprune.training.loop import Judge, Task, on
from onnxprune.training.losses import label_tensor, loss_of
from onnxprune.training.stream import Batch, Stream

Kept = Callable[
    [str, Array], Array
]  # a value of the teacher, by name -> what the student has of it
REMEMBERED: Final = 1 << 28  # bytes of what the teacher said
FEATURES: Final = 6  # values inside the graph that are compared


def whole(name: str, value: Array) -> Array:
    """All of a value: of a student as wide as its teacher."""
    return value


@dataclass
class Teacher:
    """A model that says what is right.

    Attributes:
        model: the larger model.
        names: the values that are learnt.
        kept: what the student has of a value.
    """

    model: Model
    names: Sequence[str]
    kept: Kept = whole
    _known: dict[int, dict[str, Array]] = field(default_factory=dict)
    _bytes: int = 0
    _runner: Callable[[Feeds], Mapping[str, Any]] | None = None

    def says(self, batch: Batch) -> dict[str, Array]:
        """The values for a batch."""
        part = batch.part
        if part and all(index in self._known for index in part):
            own = [self._known[index] for index in part]
            return {name: np.stack([one[name] for one in own]) for name in self.names}
        if self._runner is None:
            self._runner = _runner(self.model, self.names)
        found = self._runner(batch.feeds)
        values = {name: self.kept(name, np.asarray(found[name])) for name in self.names}
        if part and all(v.ndim and len(v) == len(part) for v in values.values()):
            self._remember(part, values)
        return values

    def _remember(self, part: Sequence[int], values: Mapping[str, Array]) -> None:
        size = sum(v.nbytes for v in values.values())
        if self._bytes + size <= REMEMBERED:
            self._bytes += size
            for place, index in enumerate(part):
                self._known[index] = {name: np.array(v[place]) for name, v in values.items()}


def _runner(model: Model, names: Sequence[str]) -> Callable[[Feeds], Mapping[str, Any]]:
    """The teacher with values inside its graph as outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    outputs = {o.name for o in proto.graph.output}
    for name in names:
        if name not in outputs:
            proto.graph.output.add(name=name)
    session = runtime.session(proto, model.folder)
    return lambda feeds: dict(zip(names, runtime.run(session, feeds, names), strict=True))


def features(student: Model, module: Any, teacher: Model, kept: Kept) -> list[str]:
    """Values inside the graph that both have, evenly spread: sums, else results of layers."""
    made = {name for step in module.program.steps for name in step.outputs}
    for ops in (ADDS, LINEAR):
        own = [n.outputs[0] for n in student.nodes if n.op in ops and n.outputs[0] in made]
        own = [name for name in own if _fits(name, student, teacher, kept)]
        own = [name for name in own if name not in student.outputs]
        if len(own) > 1:
            return _spread(own)
    return []


def attention_maps(student: Model, module: Any, teacher: Model, kept: Kept) -> list[str]:
    """What a Softmax gives and a product reads, (..., queries, keys), evenly spread.

    Rows that lost keys are no distributions any more: such maps are left out.
    """
    made = {name for step in module.program.steps for name in step.outputs}
    read = {name for node in student.nodes if node.op in LINEAR for name in node.inputs}
    own = [n.outputs[0] for n in student.nodes if n.op in PROBABILITIES]
    shapes = teacher.samples[0].shapes
    return _spread(
        [
            name
            for name in own
            if name in made & read
            and len(shapes.get(name) or ()) > 2
            and (shapes[name] or ())[-1] == (student.samples[0].shapes[name] or ())[-1]
            and _fits(name, student, teacher, kept)
        ]
    )


def _spread(names: Sequence[str]) -> list[str]:
    """At most so many of them."""
    places = np.unique(np.linspace(0, len(names) - 1, FEATURES).round().astype(int))
    return [names[place] for place in places] if names else []


def _fits(name: str, student: Model, teacher: Model, kept: Kept) -> bool:
    """Whether what the student has of the teacher's value has its shape."""
    shapes = [model.samples[0].shapes.get(name) for model in (student, teacher)]
    if any(shape is None or None in shape or len(shape) < 2 for shape in shapes):
        return False
    small, large = (tuple(int(n or 0) for n in shape or ()) for shape in shapes)
    probe = np.broadcast_to(np.zeros((), np.float32), large)
    return tuple(kept(name, probe).shape) == small and small[0] == large[0]


@dataclass(frozen=True)
class Lesson:
    """What is learnt of a teacher.

    Attributes:
        temperature: of class scores.
        depth: the weight of values inside the graph, beside the outputs'.
        attention: the weight of attention maps.
        labels: the share of the labels' loss, 0 without labels.
        loss: of labels.
        augment: names in ``AUGMENTS``: what is done to samples, which the teacher then sees, too.
    """

    temperature: float = 4.0
    depth: float = 1.0
    attention: float = 0.0
    labels: float = 0.0
    loss: str = "cross-entropy"
    augment: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OnnxPruneError: which number is out of range.
        """
        if not self.temperature > 0:
            raise OnnxPruneError(f"temperature is {self.temperature:g}: it must be above 0")
        for name in ("depth", "attention"):
            if not getattr(self, name) >= 0:
                raise OnnxPruneError(f"{name} is {getattr(self, name):g}: it must be 0 or more")
        for name in self.augment:
            if name not in AUGMENTS:
                raise OnnxPruneError(
                    f"augment '{name}' is not known: choose of {', '.join(AUGMENTS)}"
                )
        if self.labels and self.augment and set(self.augment) & MIXING:
            raise OnnxPruneError("mixed samples have no labels: give mix without labels")
        if not 0 <= self.labels <= 1:
            raise OnnxPruneError(f"labels is {self.labels:g}: it is a share, from 0 to 1")


def distillation(
    student: Model,
    teacher: Model,
    lesson: Lesson,
    plan: tuple[Coupling, Keep] | None,
    held: Batches,
    rows: Mapping[str, Any],
) -> tuple[Task, Judge]:
    """The task of a lesson, and how near the teacher a module is on batches that were held back.

    Args:
        student: the smaller model.
        teacher: the larger one.
        lesson: what is learnt.
        plan: the teacher's structure and what was kept of it; None where that is not known.
        held: the batches.
        rows: functions of torch for custom operators.

    Raises:
        OnnxPruneError: the models' inputs or outputs differ.
    """
    _check_same(student, teacher)
    kept: Kept = whole if plan is None else partial(kept_part, *plan)
    task, plain = learning(student, bridge(student, rows), teacher, lesson, kept)
    quiet = Stream(held, max(map(len, held.parts)), 0)

    def judge(module: Any) -> float:
        device = next(module.parameters()).device
        losses = []
        with torch.no_grad():
            for part in held.parts:
                batch = quiet.read(part)
                losses.append(float(plain(module, on(batch.feeds, device), batch)))
        return -sum(losses) / len(losses)

    return task, judge


def _check_same(student: Model, teacher: Model) -> None:
    """Both take and give values of the same names.

    Raises:
        OnnxPruneError: they don't.
    """
    for what in ("inputs", "outputs"):
        own, other = (set(getattr(model, what)) for model in (student, teacher))
        if own != other:
            raise OnnxPruneError(
                f"the {what} of '{student.name}' are {', '.join(sorted(own))}, those of the "
                f"teacher '{teacher.name}' {', '.join(sorted(other))}: both must have the same"
            )


def learning(
    student: Model, module: Any, teacher: Model, lesson: Lesson, kept: Kept = whole
) -> tuple[Task, Task]:
    """The task of a lesson, on changed samples where it says so; and on samples as they are."""
    reads = score_names(module)
    inner = features(student, module, teacher, kept) if lesson.depth else []
    maps = attention_maps(student, module, teacher, kept) if lesson.attention else []
    names = sorted({*reads.values(), *inner, *maps})
    own = Teacher(teacher, names, kept)
    classes = {name for name in reads.values() if _is_scores(name, student)}
    function = loss_of(lesson.loss)

    def plain(module: Any, feeds: Mapping[str, Tensor], batch: Batch) -> Tensor:
        device = next(iter(feeds.values())).device
        found = module.run(feeds, names)
        wanted = {n: tensor(v).to(device) for n, v in own.says(batch).items()}
        total = torch.zeros((), device=device)
        for name in dict.fromkeys(reads.values()):
            if found[name].is_floating_point():
                apart = _divergence if name in classes else _missed
                total = total + apart(found[name], wanted[name], lesson.temperature)
        for name in inner:
            missed = _missed(found[name], wanted[name], 1.0)
            total = total + lesson.depth / len(inner) * missed
        for name in maps:
            total = total + lesson.attention / len(maps) * _strayed(found[name], wanted[name])
        if lesson.labels:
            outputs = {name: found[read] for name, read in reads.items()}
            told = function(outputs, label_tensor(batch.labels).to(device))
            total = (1 - lesson.labels) * total + lesson.labels * told
        return total

    def task(module: Any, feeds: Mapping[str, Tensor], batch: Batch) -> Tensor:
        changed = augmented(batch, lesson.augment)
        return plain(module, on(changed.feeds, next(iter(feeds.values())).device), changed)

    return (task if lesson.augment else plain), plain


def _is_scores(name: str, model: Model) -> bool:
    """Whether a value is class scores: (n, classes), as far as shapes say."""
    shape = model.samples[0].shapes.get(name) or ()
    return len(shape) == 2 and (shape[1] or 0) > 1


def _divergence(own: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Of softmax(scores / T), times T squared: so its gradient's size does not depend on T."""
    scores = F.log_softmax(own.float() / temperature, -1)
    told = F.log_softmax(wanted.float() / temperature, -1)
    return F.kl_div(scores, told, reduction="batchmean", log_target=True) * temperature**2


def _missed(own: Tensor, wanted: Tensor, _: float) -> Tensor:
    """The squared error, as a share of the mean square."""
    wanted = wanted.float()
    return F.mse_loss(own.float(), wanted) / (wanted * wanted).mean().clamp(min=1e-12)


def _strayed(own: Tensor, wanted: Tensor) -> Tensor:
    """The divergence of the rows of attention maps, the mean over all."""
    floor = torch.finfo(torch.float32).tiny
    logs = own.float().clamp(min=floor).log(), wanted.float().clamp(min=floor).log()
    return (wanted.float() * (logs[1] - logs[0])).sum(-1).mean()
