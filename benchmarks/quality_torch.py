"""The child that prunes a trained net with Torch-Pruning to given MACs.

    python -m benchmarks.quality_torch NET FOLDER REPORT

FOLDER holds `net.pt`, the jobs `jobs.json` and the calibration images `calib_SEED.npz` (`image`,
`label`). Each job is {"file", "criterion", "scope", "seed", "target", "steps", "rate", "data"}: the
net is pruned to the share `target` of its MACs, as near as whole channels allow, and tuned for
`steps` batches with labels, those of `data` (an .npz of `x` and `y`) where it is given, else
augmented training images; FILE and one line of FOLDER/done.jsonl are written.

Gradients are taken once, of the whole net, as averages over all calibration images: Torch-Pruning's
own Hessian forgets all samples but the last (its counter asks for a name, and stores a parameter).
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch.nn import functional

from benchmarks import cifar
from benchmarks.child import Report, do_jobs
from benchmarks.nets import CLASSES, NETS, SIDE, Encoder, Inverted, Residual
from benchmarks.rival_torch import heads_of, mend
from benchmarks.train import augmented, export

MAX_RATIO = 0.9  # no layer loses more, as with onnxprune
HALVINGS = 12
BATCH = 128
SAMPLES = 64  # whose own gradients the Hessian averages

importances = torch_pruning.importance
MAGNITUDES: dict[str, Callable[[], Any]] = {
    "l1": lambda: importances.GroupMagnitudeImportance(p=1),
    "l2": lambda: importances.GroupMagnitudeImportance(p=2),
    "bn-scale": importances.BNScaleImportance,
    "lamp": importances.LAMPImportance,
    "fpgm": importances.FPGMImportance,
    "random": importances.RandomImportance,
    "activation": importances.ActivationImportance,
    "taylor": importances.GroupTaylorImportance,
    "hessian": importances.GroupHessianImportance,
}


@dataclass(frozen=True)
class Job:
    """One pruned net that is wanted."""

    file: str
    criterion: str
    scope: str  # uniform, global, isomorphic; inner: uniform, residual streams left alone
    seed: int
    target: float
    steps: int = 0
    rate: float = 0.0
    data: str = ""


def main() -> None:
    """Do all jobs; one that fails says why, and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report = Report()
    net = NETS[wanted.net]()
    net.load_state_dict(torch.load(wanted.folder / "net.pt"))
    net.eval()
    export(net, wanted.folder / "base.onnx")
    do_jobs(wanted.folder, lambda given: run(net, Job(**given), wanted.folder))
    report.write(wanted.report)


def run(net: Any, job: Job, folder: Path) -> None:
    """Prune a copy, tune it, and write it."""
    torch.manual_seed(job.seed)
    prepare(net, job, folder)
    pruned = nearest(net, job)
    if job.steps:
        tune(pruned, job)
    export(pruned.eval(), folder / job.file)


def nearest(net: Any, job: Job) -> Any:
    """The pruned copy whose MACs are nearest to the target, by bisection of the ratio."""
    low, high = 0.0, 1.0
    found: list[tuple[float, int, Any]] = []
    wanted = job.target * macs(net)
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        pruned = prune(net, job, ratio)
        left = macs(pruned)
        found.append((abs(left - wanted), len(found), pruned))
        low, high = (ratio, high) if left > wanted else (low, ratio)
    return min(found, key=lambda each: each[:2])[2]


def prune(net: Any, job: Job, ratio: float) -> Any:
    """A pruned copy."""
    torch.manual_seed(job.seed)  # the same random order at each ratio
    pruned = _copied(net)
    heads = heads_of(pruned)
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        torch.zeros(1, 3, SIDE, SIDE),
        importance=MAGNITUDES[job.criterion](),
        global_pruning=job.scope in {"global", "isomorphic"},
        isomorphic=job.scope == "isomorphic",
        pruning_ratio=ratio,
        max_pruning_ratio=MAX_RATIO,
        ignored_layers=[*_classifiers(pruned), *(_outer(pruned) if job.scope == "inner" else [])],
        num_heads=dict(heads),
    )
    pruner.step()
    mend(pruned, pruner.num_heads)
    return pruned


def prepare(net: Any, job: Job, folder: Path) -> None:
    """Leave in the net what the criterion looks at: gradients, or the size of activations."""
    net.zero_grad()
    if job.criterion not in {"activation", "taylor", "hessian"}:
        return
    with np.load(folder / f"calib_{job.seed}.npz") as file:
        x, y = torch.from_numpy(file["image"]), torch.from_numpy(file["label"])
    if job.criterion == "activation":
        with MAGNITUDES["activation"]().compute_importance(net), torch.no_grad():
            net(x)
    elif job.criterion == "taylor":
        functional.cross_entropy(net(x), y).backward()
    else:
        squares = [torch.zeros_like(p) for p in net.parameters()]
        for i in range(SAMPLES):
            net.zero_grad()
            functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
            for square, p in zip(squares, net.parameters(), strict=True):
                square += p.grad**2 / SAMPLES
        for square, p in zip(squares, net.parameters(), strict=True):
            p.grad = square


def tune(net: Any, job: Job) -> None:
    """A short fine-tune with labels: one cycle of the rate."""
    if any(isinstance(layer, Encoder) for layer in net.modules()):
        optimizer: Any = torch.optim.AdamW(net.parameters(), job.rate, weight_decay=5e-2)
    else:
        optimizer = torch.optim.SGD(
            net.parameters(), job.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.rate, total_steps=job.steps)
    net.train()
    for x, y in batches(job):
        loss = functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def batches(job: Job) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels of each step: in the order of `data`, else augmented training images."""
    if job.data:
        with np.load(job.data) as file:
            x, y = file["x"], file["y"]
        yield from zip(np.split(x, job.steps), np.split(y, job.steps), strict=True)
        return
    data = cifar.images("train")
    order = torch.randperm(len(data.labels)).numpy()
    for step in range(job.steps):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        yield cifar.normalised(augmented(data.pixels[chosen])), data.labels[chosen]


def macs(net: Any) -> int:
    """Multiplications of convolutions, linear layers and attention, of one image."""
    total = 0

    def count(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        if isinstance(layer, torch.nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, torch.nn.Linear):
            total += output.numel() * layer.in_features
        elif hasattr(layer, "qkv"):
            tokens = inputs[0].shape[1]
            total += 2 * tokens * tokens * layer.num_heads * layer.head_dim

    hooks = [layer.register_forward_hook(count) for layer in net.modules()]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return total


def _copied(net: Any) -> Any:
    """A copy with its gradients, which deepcopy leaves behind."""
    copied = copy.deepcopy(net)
    for old, new in zip(net.parameters(), copied.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return copied


def _classifiers(net: Any) -> list[Any]:
    return [
        layer
        for layer in net.modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == CLASSES
    ]


def _outer(net: Any) -> list[Any]:
    """Layers that write to a residual stream."""
    found: list[Any] = []
    for layer in net.modules():
        if isinstance(layer, Residual):
            found += [layer.b, layer.skip]
        elif isinstance(layer, Inverted):
            found.append(layer.c)
        elif isinstance(layer, Encoder):
            found += [layer.attention.proj, layer.fc2]
    if found:
        found.append(next(layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)))
    return found


if __name__ == "__main__":
    main()
