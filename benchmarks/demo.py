"""The main job on a real trained model: `make demo`.

The text detector of PP-OCRv4 (4.7 MB, from the package rapidocr-onnxruntime; its BatchNorms are
still there, its weights lie in Constant nodes, its batch and image sizes are dynamic) is pruned to
half of its MACs, proved equal to its masked original, and timed before and after.
"""

import argparse
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console

import onnxprune
from onnxprune.passes.benchmark import Timing, benchmark
from onnxprune.report import tables
from onnxprune.target import Target

MODEL = Path("models/ch_PP-OCRv4_det_infer.onnx")
SIDE = 320
THREADS = 1


def shipped() -> Path:
    """The model's file inside the installed package."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("the package rapidocr-onnxruntime is not installed: run `make demo`")
    return Path(spec.origin).parent / MODEL


def said(timings: tuple[Timing, Timing]) -> str:
    """The latency line."""
    before, after = timings
    words = (
        f"{after.speedup:.2f}x faster (95 % interval {after.speedup_low:.2f} to "
        f"{after.speedup_high:.2f})"
        if after.differs
        else "no difference"
    )
    return (
        f"ONNX Runtime {metadata.version('onnxruntime')} CPU, {THREADS} thread, 1x3x{SIDE}x{SIDE}, "
        f"p50 of {after.runs} interleaved runs: {before.p50_ms:.1f} ms -> {after.p50_ms:.1f} ms, "
        f"{words}"
    )


def main() -> None:
    """Prune, verify, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs that may remain")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each model")
    wanted = parser.parse_args()
    console = Console(width=110, soft_wrap=False)
    source = shipped()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "small.onnx"
        console.print(f"onnxprune prune {source.name} -o small.onnx --macs {wanted.macs}")
        _, report = onnxprune.prune(source, macs=wanted.macs, output=target)
        console.print(tables.report(report))
        image = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE), np.float32)
        models = [(onnx.load(path), None) for path in (source, target)]
        name = models[0][0].graph.input[0].name
        timings = benchmark(models, {name: image}, target=Target(threads=THREADS), runs=wanted.runs)
        console.print(said((timings[0], timings[1])))
        console.print(
            "Accuracy is not recovered yet: this is the pruned structure with its original weights."
        )


if __name__ == "__main__":
    main()
