"""The main job on a real trained model: `make demo`.

The text detector of PP-OCRv4 (4.7 MB, from the package rapidocr-onnxruntime; its BatchNorms are
still there, its weights lie in Constant nodes, its batch and image sizes are dynamic) is pruned to
half of its MACs, recovered on unlabelled pages of rendered text, proved equal to its masked
original, and timed before and after.
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
from benchmarks.trained import Array, pages_of_text
from onnxprune import runtime
from onnxprune.passes.benchmark import Timing, benchmark
from onnxprune.report import tables
from onnxprune.target import Target

MODEL = Path("models/ch_PP-OCRv4_det_infer.onnx")
SIDE = 320
PAGES = 24
OTHERS = 6
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


def missed(original: onnx.ModelProto, small: onnx.ModelProto, pages: list[Array]) -> float:
    """Mean absolute error of the first output over the mean absolute deviation of the original."""
    runs = []
    for proto in (original, small):
        session = runtime.session(proto, None)
        feeds = ({proto.graph.input[0].name: page} for page in pages)
        runs.append([runtime.run(session, one, [proto.graph.output[0].name])[0] for one in feeds])
    lost = sum(float(np.abs(b - a).sum()) for a, b in zip(*runs, strict=True))
    return lost / sum(float(np.abs(a - a.mean()).sum()) for a in runs[0])


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
        models = [(onnx.load(source), None)]
        name = models[0][0].graph.input[0].name
        pages = Path(folder) / "pages.npy"
        np.save(pages, pages_of_text(PAGES, np.random.default_rng(0)))
        console.print(
            f"onnxprune prune {source.name} -o small.onnx --macs {wanted.macs} "
            f"--calibration {pages.name}   ({PAGES} pages of rendered text, no labels)"
        )
        _, plain = onnxprune.prune(source, macs=wanted.macs)
        small, report = onnxprune.prune(
            source, macs=wanted.macs, output=target, calibration=str(pages)
        )
        console.print(tables.report(report))
        other = [pages_of_text(1, np.random.default_rng(1 + k)) for k in range(OTHERS)]
        console.print(
            f"on {OTHERS} other pages the mean error of the text map, relative to the map: "
            f"{missed(models[0][0], small, other):.3f}; without calibration: "
            f"{missed(models[0][0], onnxprune.apply(source, plain.plan)[0], other):.3f}"
        )
        models.append((onnx.load(target), None))
        timings = benchmark(
            models, {name: other[0]}, target=Target(threads=THREADS), runs=wanted.runs
        )
        console.print(said((timings[0], timings[1])))


if __name__ == "__main__":
    main()
