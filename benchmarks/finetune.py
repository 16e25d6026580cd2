"""What gradients cost: the bridge's module beside the native one it was exported from.

    python -m benchmarks.finetune               # a training step of four nets, scores of ResNet-50

Steps of both are taken in turn, on one thread; the ratio is that of the medians of CPU seconds.
Gradient scores (``--criterion fisher``) of some batches are set against as many forward and
backward passes of the native module.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, interleaved, save, show, versions

STEPS = 9
BATCH = 32


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def medians(native: Callable[[], object], own: Callable[[], object], runs: int) -> dict[str, float]:
    """CPU seconds of both, and their ratio."""
    candidates = {"native_s": lambda: seconds(native), "own_s": lambda: seconds(own)}
    found = {k: statistics.median(v) for k, v in interleaved(candidates, runs).items()}
    return found | {"ratio": found["own_s"] / found["native_s"]}


def exported(net: Any, shape: tuple[int, ...]) -> Any:
    """The file of a module, its norms kept."""
    import torch

    from onnxprune.files import load

    keep = torch.onnx.TrainingMode.PRESERVE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            net.eval(),
            (torch.randn(2, *shape),),
            path,
            dynamo=False,
            training=keep,
            do_constant_folding=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )
        return load(path)


def step_of(module: Any, x: Any, labels: Any) -> Callable[[], object]:
    """A training step."""
    import torch

    own = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()

    return step


def compare(name: str, net: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A row: CPU seconds of a step, native and by the bridge."""
    import torch

    from onnxprune.torch_bridge import bridge

    module = bridge(exported(net, shape)).train()
    x, labels = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    native, own = (step_of(one, x, labels) for one in (net.train(), module))
    return {"what": f"step of {name}", **medians(native, own, STEPS)}


def resnet50() -> Any:
    """ResNet-50 (He et al. 2015) with random weights."""
    from torch import nn
    from torch.nn import functional

    from benchmarks.nets import norm

    class Bottleneck(nn.Module):  # type: ignore[misc]
        """relu(c(relu(b(relu(a(x))))) + skip(x))."""

        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = norm(inputs, width, kernel=1), norm(width, width, stride)
            self.c = norm(width, 4 * width, kernel=1)
            same = inputs == 4 * width and stride == 1
            self.skip = nn.Identity() if same else norm(inputs, 4 * width, stride, kernel=1)

        def forward(self, x: Any) -> Any:
            """x (n, c, h, w)."""
            inner = functional.relu(self.b(functional.relu(self.a(x))))
            return functional.relu(self.c(inner) + self.skip(x))

    layers = [norm(3, 64, 2, kernel=7), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(width, 64 << stage, stride))
            width = 4 * (64 << stage)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
    return nn.Sequential(*layers, *tail)


def scoring(net: Any, shape: tuple[int, ...], batches: int = 2) -> dict[str, Any]:
    """A row: gradient scores beside as many forward and backward passes of the native module."""
    import torch

    from onnxprune.passes.couple import couple
    from onnxprune.passes.normalize import normalize
    from onnxprune.passes.score import score

    coupling = couple(normalize(exported(net, shape)))
    feeds = [{"x": torch.randn(8, *shape).numpy()} for _ in range(batches)]

    def native() -> None:
        for own in feeds:
            net.zero_grad()
            net(torch.from_numpy(own["x"])).logsumexp(-1).sum().backward()

    what = f"fisher scores of ResNet-50, {batches} batches of 8"
    return {"what": what, **medians(native, lambda: score(coupling, "fisher", feeds=feeds), 3)}


def keep_part(
    part: str, rows: object, settings: dict[str, Any], more_versions: dict[str, str]
) -> None:
    """Write one part of `results/finetune.json`, and leave the others as they are.

    Parts are measured apart: each has its own settings, versions and date.
    """
    path = RESULTS / "finetune.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {"results": {}}
    if isinstance(known["results"], list):  # of the days when there was one part
        own = {key: known[key] for key in ("date", "settings", "versions")}
        known["results"] = {"cost": own | {"rows": known["results"]}}
    own = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "settings": settings,
        "versions": versions() | more_versions,
    }
    save("finetune", known["results"] | {part: own}, {})


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    import torch

    from benchmarks import nets

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [compare(name, make(), (3, nets.SIDE, nets.SIDE)) for name, make in nets.NETS.items()]
    rows.append(scoring(resnet50(), (3, 224, 224)))
    settings = {"batch": BATCH, "steps": STEPS, "threads": 1}
    keep_part("cost", rows, settings, {"torch": torch.__version__})
    columns = ("what", "native_s", "own_s", "ratio")
    show("CPU seconds, medians", columns, [[row[c] for c in columns] for row in rows])


if __name__ == "__main__":
    main()
