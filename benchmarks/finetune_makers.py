"""How both tools make the tuned files that `benchmarks.finetune_accuracy` asks for."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import cifar
from benchmarks.harness import WORK
from benchmarks.quality_makers import child_python, run_jobs
from benchmarks.quality_nets import Made, Request, Subject

FOLDER = WORK / "finetune"
BATCH = 64
SHIFT = 4  # pixels, within a black border
TRANSFORMER = "vit"
LABELS = 0.3  # the share of the labels' loss, beside the teacher


@dataclass(frozen=True)
class Variant:
    """A row of ours: what chooses, what recovers, and what is trained then.

    `then`: "" nothing, "labels" what the rivals get, "teacher" the original's word beside them.
    """

    criterion: str
    recover: bool | Literal["distill"] = False
    then: str = ""


SHARED = ("l1", "l2", "bn-scale", "lamp", "fpgm", "random", "activation", "taylor", "hessian")
RECOVERED = {
    "obs + recovery": Variant("obs", True),
    "obs + recovery + distill": Variant("obs", "distill"),
    "obs + recovery, tuned": Variant("obs", True, "labels"),
    "obs + recovery, tuned with the teacher": Variant("obs", True, "teacher"),
}
OURS = {name: Variant(name, False, "labels") for name in SHARED} | RECOVERED


def samples(seed: int, steps: int) -> Path:
    """The images of all steps, flipped and shifted, as `x` and `y`: the same for every tool."""
    path = FOLDER / f"train_{seed}_{steps}x{BATCH}.npz"
    if path.exists():
        return path
    data, random = cifar.images("train"), np.random.default_rng(seed)
    chosen = random.permutation(len(data.labels))[: steps * BATCH]
    pixels = data.pixels[chosen]
    padded = np.pad(pixels, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    side = pixels.shape[-1]
    moves = random.integers(0, 2 * SHIFT + 1, (len(chosen), 2))
    for i, (down, right) in enumerate(moves):
        image = padded[i, :, down : down + side, right : right + side]
        pixels[i] = image[:, :, ::-1] if random.random() < 0.5 else image
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, x=cifar.normalised(pixels), y=data.labels[chosen])
    unfinished.replace(path)
    return path


def ours(net: Subject, requests: Sequence[Request], folder: Path) -> Iterator[tuple[Request, Made]]:
    """Prune and tune with onnxprune in this process."""
    import torch

    from onnxprune.errors import OnnxPruneError

    torch.set_num_threads(1)
    for request in requests:
        start = time.process_time()
        try:
            path = _tuned(net, request, folder)
            made = Made(path, time.process_time() - start)
        except OnnxPruneError as error:
            made = Made(None, time.process_time() - start, str(error)[:300])
        yield request, made


def _tuned(net: Subject, request: Request, folder: Path) -> Path:
    import onnxprune

    variant = OURS[request.criterion]
    small, plan, tuned = (folder / name for name in ("small.onnx", "plan.json", "tuned.onnx"))
    onnxprune.prune(
        net.folder / "net.onnx",
        output=small,
        macs=request.target,
        align=1,
        criterion=variant.criterion,
        recover=variant.recover,
        seed=request.seed,
        calibration=net.folder / f"inputs_{request.seed}.npz",
        samples=cifar.CALIBRATION,
        plan_output=plan,
    )
    if not variant.then:
        return small
    train = samples(request.seed, request.steps)
    common: dict[str, Any] = {"steps": request.steps, "batch_size": BATCH, "seed": request.seed}
    own = {"relative": True} if variant.recover else _recipe(net.name)
    common |= {"lr": request.rate} | own
    if variant.then == "teacher":
        teacher: dict[str, Any] = {"teacher": net.folder / "net.onnx", "plan": plan}
        onnxprune.distill(small, tuned, data=train, labels=LABELS, epochs=2, **teacher, **common)
    else:
        onnxprune.finetune(small, tuned, train=train, epochs=1, **common)
    return tuned


def _recipe(name: str) -> dict[str, Any]:
    """What `quality_torch.tune` does: one cycle, and folded norms are put back first."""
    common: dict[str, Any] = {"warmup": 0.3, "clip": 5.0}
    if name == TRANSFORMER:
        return common | {"optimizer": "adamw", "weight_decay": 5e-2}
    return common | {"optimizer": "sgd", "weight_decay": 5e-4, "unfold": True}


def torch_pruning(
    net: Subject, requests: Sequence[Request], folder: Path
) -> Iterator[tuple[Request, Made]]:
    """Prune and tune with Torch-Pruning: a child for each request, so that rows come one by one."""
    python = child_python("torch")
    for request in requests:
        job = {name: value for name, value in asdict(request).items() if name != "tool"}
        data = samples(request.seed, request.steps).resolve()
        jobs = [job | {"file": "torch.onnx", "data": str(data)}]
        yield request, run_jobs(python, [net.name], "quality_torch", net, jobs, folder)[0]
