"""How training goes: its settings, and what comes of them at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypedDict, get_type_hints

from onnxprune.errors import OnnxPruneError

OPTIMIZERS: Final = ("adamw", "sgd")
SCHEDULES: Final = ("cosine", "constant", "linear")
DEVICES: Final = ("auto", "cpu", "cuda")
RATES: Final = {"adamw": 1e-3, "sgd": 1e-2}
RELATIVE: Final = 1e-2


class TrainingOptions(TypedDict, total=False):
    """Keywords of training; see ``Training``."""

    epochs: int
    steps: int | None
    lr: float | None
    relative: bool
    optimizer: str
    schedule: str
    warmup: float
    batch_size: int
    weight_decay: float
    clip: float | None
    ema: float | None
    patience: int | None
    amp: bool
    freeze: bool
    unfold: bool
    device: str
    threads: int | None
    checkpoint_every: int


@dataclass(frozen=True)
class Training:
    """How training goes.

    Attributes:
        epochs: how often all samples are seen.
        steps: stop after so many steps, whatever the epochs; the schedule is made for these.
        lr: the largest learning rate; 1e-3 for adamw, 1e-2 for sgd and for relative where None.
        relative: times the size of each tensor (its root mean square at the start, at least 1e-3):
            how large weights are differs from one model to another, and where norms were folded
            from layer to layer (Shazeer and Stern 2018, Adafactor). It is for adamw.
        optimizer: ``adamw``, or ``sgd`` (with Nesterov's momentum 0.9).
        schedule: how the rate falls after warm-up: ``cosine``, ``linear`` (to 0), ``constant``.
        warmup: the share of the steps in which it rises.
        batch_size: samples of a step, in each process.
        weight_decay: of matrices and kernels; vectors (norms, biases) have none.
        clip: the largest norm of all gradients together; None does not clip.
        ema: decay of a running mean of the weights, which is what is judged and kept; None is off.
        patience: stop when the metric has not become better in so many epochs; None never stops.
        amp: bfloat16 where torch's autocast says so.
        freeze: leave statistics of norms as they are, and drop nothing out.
        unfold: put norms behind convolutions while training (see ``torch_bridge.unfolding``).
        device: ``cpu``, ``cuda``, or ``auto``: cuda where there is one.
        threads: of torch, in an operator; None leaves it as it is.
        checkpoint_every: steps between checkpoints.
        seed: of the order of samples.
    """

    epochs: int = 10
    steps: int | None = None
    lr: float | None = None
    relative: bool = False
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.05
    batch_size: int = 64
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    ema: float | None = None
    patience: int | None = None
    amp: bool = False
    freeze: bool = False
    unfold: bool = False
    device: str = "auto"
    threads: int | None = None
    checkpoint_every: int = 200
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense, before any work is done.

        Raises:
            OnnxPruneError: which setting is out of range, or not known.
        """
        if self.freeze and self.unfold:
            raise OnnxPruneError("unfold puts in norms that freeze would not let move: give one")
        if self.relative and self.optimizer != "adamw":
            raise OnnxPruneError(
                f"relative is for adamw, whose steps are as large as the rate: the optimizer is "
                f"{self.optimizer}"
            )
        for name in ("epochs", "steps", "batch_size", "patience", "threads", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OnnxPruneError(f"{name} is {value}: it must be at least 1")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OnnxPruneError(f"{name} is {value:g}: it must be above 0")
        if not self.weight_decay >= 0:
            raise OnnxPruneError(f"weight_decay is {self.weight_decay:g}: it must be 0 or more")
        for name in ("warmup", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise OnnxPruneError(f"{name} is {value:g}: it must be from 0 to below 1")
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise OnnxPruneError(
                    f"{name} '{getattr(self, name)}' is not known: choose {', '.join(known)}"
                )

    @property
    def top(self) -> float:
        """The largest learning rate."""
        default = RELATIVE if self.relative else RATES[self.optimizer]
        return default if self.lr is None else self.lr

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, of so many."""
        rising = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < rising:
            return self.top * (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - rising)
        fallen = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "linear": 1 - done,
        }
        return self.top * fallen[self.schedule]

    def to_dict(self) -> dict[str, Any]:
        """What changes the result, as plain data."""
        kept = asdict(self)
        for name in ("threads", "checkpoint_every"):
            del kept[name]
        return kept


_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "device": DEVICES,
}


def training(options: TrainingOptions, seed: int, **defaults: Any) -> Training:
    """Settings from the arguments of the interface, checked.

    Raises:
        TypeError: one of the options is unknown.
        OnnxPruneError: one makes no sense.
    """
    unknown = sorted(options.keys() - get_type_hints(TrainingOptions))
    if unknown:
        raise TypeError(f"there is no keyword argument '{unknown[0]}'")
    found = Training(**{"seed": seed, **defaults, **options})
    found.check()
    return found
