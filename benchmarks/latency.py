"""Latency: pruned files beside their originals on ONNX Runtime's CPU provider, one thread.

    python -m benchmarks.latency [--quick] [--keep] [--no-rivals] [--runs N] [--ratios] [models ...]

For each model, side by side in one interleaved run:

    macs          --macs 0.5, the defaults
    latency       --latency 0.5x (measured against the original while it is made)
    unaligned     --macs 0.5 --align 1
    uniform       --scope uniform --criterion random, the same share of MACs
    onnxsim       its file with the ratio whose MACs are nearest to 0.5
    torch         Torch-Pruning's, where its venv is there (see benchmarks.rivals)

`speedup` is the ratio of medians with its 95 % bootstrap interval; `quiet` that of the lower
quartiles of the same runs, which a busy machine moves less. `realised` is the speed-up over the
reduction of the MACs. With `--ratios` also --macs 0.9 to 0.25: none may be slower than the
original.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from benchmarks import harness, rivals, topologies
from onnxprune.errors import GateError, OnnxPruneError
from onnxprune.model import Array
from onnxprune.passes.benchmark import Timing, benchmark
from tests.zoo import fill

SHARE = 0.5
RATIOS = (0.9, 0.75, 0.25)
UNCOUNTED = "our counter finds no MACs in its file, so none of equal MACs can be told"
QUICK = ("mobilenet_v2", "ppocr_det")
ONNXSIM_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
GOALS = {
    "resnet50": 1.65,
    "mobilenet_v2": 1.75,
    "efficientnet_b0": 1.5,
    "densenet121": 2.0,
    "vit_b_16": 1.7,
    "bert_base": 1.7,
    "yolo": 1.6,
    "ppocr_det": 1.6,
    "ppocr_rec": 1.6,
}
SHAPES = {"ppocr_det": (1, 3, 320, 320), "ppocr_rec": (1, 3, 48, 320)}


@dataclass(frozen=True)
class Row:
    """One way to prune one model."""

    model: str
    way: str
    macs_left: float
    p50_ms: float
    cpu_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    quiet: float
    realised: float
    goal: float | None
    seconds: float
    notes: tuple[str, ...] = ()
    error: str = ""


def main() -> None:
    """Run, print and save."""
    wanted = _arguments()
    names = wanted.models or list(QUICK if wanted.quick else GOALS)
    rows = _kept(names) if wanted.keep else []
    for name in names:
        rows += _model_rows(name, wanted)
        path = _save(rows, vars(wanted))  # what is there survives an interruption
    _show(rows)
    print(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help=f"of {', '.join(GOALS)}")
    parser.add_argument("--runs", type=int, help="timed rounds; else until intervals are narrow")
    parser.add_argument("--quick", action="store_true", help="two models")
    parser.add_argument("--ratios", action="store_true", help="other shares of the MACs, too")
    parser.add_argument("--keep", action="store_true", help="other models' rows stay in the file")
    parser.add_argument("--no-rivals", action="store_true", help="without onnxsim")
    parser.add_argument("--package", type=Path, help="where rapidocr_onnxruntime lies unpacked")
    return parser.parse_args()


def _kept(names: Sequence[str]) -> list[Row]:
    """The rows of other models in the file of results."""
    path = harness.RESULTS / "latency.json"
    rows = json.loads(path.read_text("utf-8"))["results"]["rows"] if path.exists() else []
    nan = float("nan")
    known: list[dict[str, Any]]
    known = [{k: nan if v is None and k != "goal" else v for k, v in r.items()} for r in rows]
    return [Row(**row) for row in known if row["model"] not in names]


def _source(name: str, package: Path | None) -> onnx.ModelProto:
    if name == "yolo":
        return topologies.yolo()
    if name == "bert_base":
        return topologies.bert_base()
    if not name.startswith("ppocr"):
        return fill.load(f"torchvision/{name}")
    spec = find_spec("rapidocr_onnxruntime")
    folder = package or (Path(spec.origin).parent if spec and spec.origin else None)
    if folder is None:
        sys.exit("the package rapidocr-onnxruntime is not installed: run `make demo`")
    return onnx.load(folder / f"models/ch_PP-OCRv4_{name.removeprefix('ppocr_')}_infer.onnx")


def _inputs(name: str, model: onnx.ModelProto) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = SHAPES.get(name, tuple(dim.dim_value or 1 for dim in kind.shape.dim))
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        whole = dtype.kind in "iu"
        values = np.ones(shape) if whole else generator.standard_normal(shape)
        found[value.name] = values.astype(dtype)
    return found


def _model_rows(name: str, wanted: argparse.Namespace) -> list[Row]:
    model = _source(name, wanted.package)
    inputs = _inputs(name, model)
    before = onnxprune.inspect(model).macs
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        made = _made(model, inputs, Path(folder), wanted)
    good = {way: own for way, own in made.items() if isinstance(own[0], onnx.ModelProto)}
    models = [(model, None), *((own[0], None) for own in good.values())]
    times = benchmark(models, inputs, runs=wanted.runs, seconds=90)
    timed = dict(zip(["original", *good], times, strict=True))
    rows = [_row(name, "original", 1.0, times[0], times[0], 0.0, ())]
    for way, (small, seconds, notes) in made.items():
        if way in good:
            left = onnxprune.inspect(small).macs / before
            rows.append(_row(name, way, left, times[0], timed[way], seconds, notes))
        else:
            nan = float("nan")
            none = (nan, nan, nan, nan, nan, nan, nan, nan)
            rows.append(Row(name, way, *none, None, seconds, notes, str(small)))
        print(rows[-1], flush=True)
    return rows


def _made(
    model: onnx.ModelProto, inputs: dict[str, Array], folder: Path, wanted: argparse.Namespace
) -> dict[str, tuple[Any, float, tuple[str, ...]]]:
    """The model (or why there is none), seconds and notes of each way."""
    ways: dict[str, Mapping[str, Any]] = {
        "macs": {"macs": SHARE},
        "latency": {"latency": f"{SHARE}x", "inputs": inputs},
        "unaligned": {"macs": SHARE, "align": 1},
        "uniform": {"macs": SHARE, "scope": "uniform", "criterion": "random"},
    }
    if wanted.ratios:
        ways |= {f"macs {share}": {"macs": share} for share in RATIOS}
    found = {}
    for way, options in ways.items():
        start = time.perf_counter()
        try:
            small, report = onnxprune.prune(model, verify=False, **options)
            notes = tuple(note for note in report.notes if not note.startswith("not verified"))
            if report.pace is not None:
                notes = (*notes, str(report.pace))
            found[way] = (small, time.perf_counter() - start, notes)
        except (OnnxPruneError, GateError) as error:
            found[way] = (str(error), time.perf_counter() - start, ())
    if not wanted.no_rivals:
        found |= _rivals(model, folder)
    return found


def _rivals(model: onnx.ModelProto, folder: Path) -> dict[str, tuple[Any, float, tuple[str, ...]]]:
    python = rivals.venv_python("onnxsim")
    if python is None:
        return {"onnxsim": ("its venv has not been made: see benchmarks.rivals", 0.0, ())}
    source = folder / "original.onnx"
    onnx.save(model, source)
    before = onnxprune.inspect(model).macs
    best: tuple[float, Any, float, tuple[str, ...]] | None = None
    errors = [""]
    for ratio in ONNXSIM_RATIOS:
        run = rivals.run_onnxsim(python, source, folder / f"onnxsim-{ratio}.onnx", ratio)
        error = run.error or (rivals.check(python, source, run.output) if run.output else "no file")
        if error or run.output is None:
            errors.append(error)
            continue
        left = onnxprune.inspect(run.output).macs / before
        if not left:
            errors.append(UNCOUNTED)
            continue
        off = abs(left - SHARE)
        if best is None or off < best[0]:
            best = (off, onnx.load(run.output), run.wall_s, (f"ratio {ratio}",))
    return {"onnxsim": best[1:] if best is not None else (errors[-1] or "no file", 0.0, ())}


def _row(
    name: str,
    way: str,
    left: float,
    base: Timing,
    own: Timing,
    seconds: float,
    notes: tuple[str, ...],
) -> Row:
    quiet = float(np.quantile(base.times_ms, 0.25) / np.quantile(own.times_ms, 0.25))
    return Row(
        *(name, way, left, own.p50_ms, own.cpu_ms),
        *(own.speedup, own.speedup_low, own.speedup_high, quiet, own.speedup * left),
        *(GOALS.get(name) if way == "macs" else None, seconds, notes),
    )


def _save(rows: Sequence[Row], settings: Mapping[str, object]) -> Path:
    python = rivals.venv_python("onnxsim")
    versions = rivals.versions_of(python, ["onnxsim"]) if python else {}
    missing = [] if rivals.venv_python("torch") else ["torch: its venv has not been made"]
    results = {"rows": list(rows), "left_out": missing, "summary": _summary(rows)}
    return harness.save("latency", results, settings, versions)


def _summary(rows: Sequence[Row]) -> dict[str, object]:
    """Realised shares (medians over the models) by way, and the worst speed-up."""
    found: dict[str, object] = {}
    for way in dict.fromkeys(row.way for row in rows if row.way != "original"):
        own = [row for row in rows if row.way == way and not row.error]
        if own:
            found[way] = {
                "realised_median": float(np.median([row.realised for row in own])),
                "speedup_least": min(row.speedup for row in own),
                "speedup_median": float(np.median([row.speedup for row in own])),
            }
    return found


def _show(rows: Sequence[Row]) -> None:
    listed = [
        (
            *(row.model, row.way, row.macs_left, row.p50_ms, row.speedup),
            f"{row.speedup_low:.2f} to {row.speedup_high:.2f}",
            *(row.quiet, row.realised, row.goal, row.seconds),
        )
        for row in rows
    ]
    columns = ["model", "way", "MACs left", "p50 ms", "speed-up", "95 %", "quiet", "realised"]
    harness.show("Latency, ONNX Runtime CPU, 1 thread", [*columns, "goal", "s"], listed)
    failed = [(f"{row.model} by {row.way}", row.error) for row in rows if row.error]
    harness.show("Failed", ["what", "why"], failed)


if __name__ == "__main__":
    main()
