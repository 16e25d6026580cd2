"""What accuracy without labels costs: OBS scores and recovery, beside the forward passes they need.

    python -m benchmarks.cost                                # three models, 256 samples each
    python -m benchmarks.cost torchvision/resnet50 --samples 64 --no-save

Each model runs in a process of its own, on one thread: its samples through ONNX Runtime once
(`forward`), scores by OBS, and recovery at half of the MACs. The weights are the zoo's and the
samples are synthetic: neither changes what is computed. `peak` is the most resident memory of a
phase. To reach: scores in 3 times the forward passes; ResNet-50 in 600 s and 4 GB in all.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import harness
from benchmarks.child import Report

MODELS: Final = ("torchvision/resnet50", "torchvision/vit_b_16", "transformers/bert")
SAMPLES: Final = 256
PHASES: Final = ("forward", "score", "select", "recover")
SCORE_GOAL: Final = 3.0
TIMEOUT_S: Final = 3600
SHARE: Final = 0.5


@dataclass(frozen=True)
class Row:
    """CPU and wall seconds and peak memory of each phase of one model."""

    model: str
    samples: int
    cpu_s: dict[str, float]
    wall_s: dict[str, float]
    peak_mb: dict[str, float]
    fitted: int
    error: str = ""

    @property
    def cells(self) -> list[object]:
        """What the table shows."""
        if self.error:
            return [self.model, self.samples, self.error, *[None] * 5]
        forward, score, fit = (self.cpu_s[name] for name in ("forward", "score", "recover"))
        wall = sum(self.wall_s[name] for name in PHASES[1:])
        peak = max(self.peak_mb[name] for name in PHASES)
        return [self.model, self.samples, forward, score, score / forward, fit, wall, peak]


def measured(model: str, samples: int) -> Row:
    """The row of one model, made in a child."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.cost"]
        command += ["--child", model, str(samples), report]
        usage = harness.measure(command, TIMEOUT_S)
        if usage.error or not report.exists():
            return Row(model, samples, {}, {}, {}, 0, usage.error)
        told = json.loads(report.read_text("utf-8"))
    phases = told["phases"]
    cpu_s, wall_s, peak_mb = (
        {name: phases[name][what] for name in PHASES} for what in ("cpu_s", "wall_s", "peak_rss_mb")
    )
    counted = int(told["details"]["samples"])
    return Row(model, counted, cpu_s, wall_s, peak_mb, int(told["details"]["fitted"]))


def child(model: str, samples: int, path: Path) -> None:
    """Measure in this process."""
    from onnxprune import files, runtime
    from onnxprune.budget import Budget, Options
    from onnxprune.passes.couple import couple
    from onnxprune.passes.normalize import normalize
    from onnxprune.passes.recover import recover
    from onnxprune.passes.score import score
    from onnxprune.passes.select import select
    from onnxprune.passes.shrink import shrink
    from onnxprune.synthetic import synthetic_samples
    from tests.zoo.fill import load

    report = Report()
    coupling = couple(normalize(files.load(load(model)), {}), {})
    feeds = synthetic_samples(coupling.model, samples=samples)
    with report.phase("forward"):
        run = runtime.runner(coupling.model.proto, None)
        for feed in feeds:
            run(feed)
    with report.phase("score"):
        scores = score(coupling, "obs", feeds=feeds)
    with report.phase("select"):
        options = Options(scope="uniform")
        keep = select(coupling, scores, Budget(macs=SHARE), options).keep
        small = shrink(coupling, keep)
    with report.phase("recover"):
        found = recover(coupling, keep, small, feeds)
    report.details["samples"] = sum(len(next(iter(feed.values()))) for feed in feeds)
    report.details["fitted"] = sum(layer.strength is not None for layer in found.layers)
    report.write(path)


def main() -> None:
    """Measure, print, save."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="names in the zoo")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--no-save", action="store_true", help="print only")
    wanted = parser.parse_args()
    rows = []
    for name in wanted.models:
        rows.append(measured(name, wanted.samples))
        print(rows[-1], flush=True)
    columns = ["model", "samples", "forward", "obs", "obs / forward", "recovery", "wall", "peak MB"]
    told = "CPU s; wall s of scores and recovery"
    harness.show("Cost of scores and recovery", columns, [row.cells for row in rows], told)
    if not wanted.no_save:
        settings = {"command": sys.argv, "samples": wanted.samples, "goal": SCORE_GOAL}
        print(harness.save("cost", rows, settings))


if __name__ == "__main__":
    main()
