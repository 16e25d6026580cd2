"""Train the nets of `benchmarks.nets` on CIFAR-10, in rounds of longer and longer schedules.

    python -m benchmarks.train                      # three rounds: some four hours of one thread
    python -m benchmarks.train --rounds 1 --only resnet20

It runs in the torch venv (`python -m benchmarks.rivals torch`, or ONNXPRUNE_VENV_TORCH). Each epoch
leaves a checkpoint: an interrupted run goes on from there. A finished round writes NAME.onnx,
NAME.pt and NAME.json (accuracy) to `work/nets`, if it is better than what is there.
"""

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cifar, rivals

EPOCHS = {  # of each round
    "resnet20": (3, 10, 40),
    "vgg_bn": (3, 8, 30),
    "mobilenet_v2": (2, 5, 20),
    "vit": (4, 14, 60),
}
HALF = {"resnet20", "vgg_bn", "vit"}  # twice as fast with activations in bfloat16
BATCH = 128
OPSET = 17
FEW = 2000  # test images beside the nets, for a quick look


def main() -> None:
    """Train; without torch, start again in its venv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="the folder of cifar10_train.npz")
    parser.add_argument("--only", nargs="*", default=[], help="names of nets")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    if find_spec("torch") is None:
        python = rivals.venv_python("torch")
        if python is None:
            sys.exit("training needs torch: run python -m benchmarks.rivals torch first")
        os.execv(python, [str(python), "-m", "benchmarks.train", *sys.argv[1:]])
    import torch

    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    _samples(wanted.cifar)
    for turn in range(wanted.rounds):
        for name, epochs in EPOCHS.items():
            if not wanted.only or name in wanted.only:
                train(name, epochs[turn])


def train(name: str, epochs: int) -> None:
    """One round of one net: from its checkpoint, or from the start."""
    import torch

    from benchmarks.nets import NETS

    figures = cifar.FOLDER / f"{name}.json"
    done = json.loads(figures.read_text("utf-8")) if figures.exists() else {}
    if done.get("epochs", 0) >= epochs:
        return
    torch.manual_seed(epochs)
    net = NETS[name]().to(memory_format=torch.channels_last)
    data, test = cifar.images("train"), cifar.images("test")
    steps = len(data.labels) // BATCH
    optimizer, schedule = _optimizer(name, net, epochs * steps)
    state = cifar.FOLDER / f"{name}_{epochs}.state"
    first = 0
    if state.exists():
        kept = torch.load(state, weights_only=False)
        first = kept["epoch"] + 1
        for part, value in zip((net, optimizer, schedule), kept["parts"], strict=True):
            part.load_state_dict(value)
    for epoch in range(first, epochs):
        start = time.process_time()
        torch.manual_seed(1000 * epochs + epoch)
        loss = _epoch(net, data, optimizer, schedule, name in HALF)
        right = accuracy(net, test)
        spent = time.process_time() - start
        print(f"{name} {epoch + 1}/{epochs}: {loss:.3f} {right:.4f} {spent:.0f} s", flush=True)
        parts = [part.state_dict() for part in (net, optimizer, schedule)]
        torch.save({"epoch": epoch, "parts": parts}, f"{state}.tmp")
        Path(f"{state}.tmp").replace(state)
    right = accuracy(net, test)
    if right > done.get("accuracy", 0):
        publish(name, net, {"accuracy": right, "epochs": epochs})
    else:
        figures.write_text(json.dumps(done | {"epochs": epochs}), encoding="utf-8")
    state.unlink()


def accuracy(net: Any, test: cifar.Images) -> float:
    """Top-1 on the test images."""
    import torch

    net.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test.labels), 500):
            x = torch.from_numpy(cifar.normalised(test.pixels[start : start + 500]))
            found = net(x.contiguous(memory_format=torch.channels_last)).argmax(1).numpy()
            right += int((found == test.labels[start : start + 500]).sum())
    return right / len(test.labels)


def publish(name: str, net: Any, figures: dict[str, float]) -> None:
    """Write NAME.onnx (BatchNorms folded, dynamic batch), NAME.pt and NAME.json."""
    import torch

    net = net.eval().to(memory_format=torch.contiguous_format)
    part = cifar.FOLDER / f"{name}.part"
    torch.save(net.state_dict(), part)
    export(net, part.with_suffix(".part.onnx"))
    part.replace(cifar.FOLDER / f"{name}.pt")
    part.with_suffix(".part.onnx").replace(cifar.FOLDER / f"{name}.onnx")
    (cifar.FOLDER / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")


def export(net: Any, path: Path) -> None:
    """Write a module with PyTorch's legacy exporter."""
    import torch

    with torch.no_grad():
        torch.onnx.export(
            net,
            (torch.randn(2, 3, 32, 32),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _epoch(net: Any, data: cifar.Images, optimizer: Any, schedule: Any, half: bool) -> float:
    """Shuffled batches, flipped and shifted by up to four pixels; the mean loss."""
    import torch

    net.train()
    total, order = 0.0, torch.randperm(len(data.labels))
    for step in range(len(order) // BATCH):
        chosen = order[step * BATCH : (step + 1) * BATCH].numpy()
        x = torch.from_numpy(cifar.normalised(augmented(data.pixels[chosen])))
        y = torch.from_numpy(data.labels[chosen])
        optimizer.zero_grad()
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, half):
            loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / (len(order) // BATCH)


def augmented(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each image (n, 3, 32, 32) flipped or not, and shifted within a black border."""
    import torch

    count = len(pixels)
    flips, shifts = torch.rand(count).numpy() < 0.5, torch.randint(0, 9, (count, 2)).numpy()
    padded = np.pad(pixels, ((0, 0), (0, 0), (4, 4), (4, 4)))
    found = np.empty_like(pixels)
    for i, (down, right) in enumerate(shifts):
        image = padded[i, :, down : down + 32, right : right + 32]
        found[i] = image[:, :, ::-1] if flips[i] else image
    return found


def _optimizer(name: str, net: Any, steps: int) -> tuple[Any, Any]:
    """One cycle of SGD with momentum; AdamW for the transformer."""
    import torch

    if name == "vit":
        optimizer: Any = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=5e-2)
        rate = 1.5e-3
    else:
        rate = 0.1 if name == "vgg_bn" else 0.2
        optimizer = torch.optim.SGD(
            net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    cycle = torch.optim.lr_scheduler.OneCycleLR
    return optimizer, cycle(optimizer, rate, total_steps=steps, pct_start=0.25)


def _samples(path: Path | None) -> None:
    """Decode the data, and put a few test and calibration images beside the nets."""
    train, test = cifar.images("train", path), cifar.images("test", path)
    few = cifar.normalised(test.pixels[:FEW])
    np.savez(cifar.FOLDER / "test.npz", x=few, y=test.labels[:FEW])
    np.savez(cifar.FOLDER / "calib.npz", image=cifar.normalised(train.pixels[cifar.chosen(0)]))


if __name__ == "__main__":
    main()
