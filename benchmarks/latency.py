"""Latency: pruned files beside their originals on one thread.

    python -m benchmarks.latency [--quick] [--keep] [--no-rivals] [--runs N] [--ratios] [models ...]
    python -m benchmarks.latency --ep openvino --keep     # in a venv with that provider

For each model, side by side in one interleaved run:

    macs          --macs 0.5, the defaults
    latency       --latency 0.5x (measured against the original while it is made)
    unaligned     --macs 0.5 --align 1
    uniform       --scope uniform --criterion random, the same share of MACs
    onnxsim       its file with the ratio whose MACs are nearest to 0.5
    torch         Torch-Pruning's with the ratio whose MACs are nearest, of torchvision's models,
                  where its venv is there (see benchmarks.rivals)

`speedup` is the ratio of medians with its 95 % bootstrap interval; `cpu` that of the lower
quartiles of the processor's time of the same runs, which a busy machine moves less. `realised` is
the speed-up over the reduction of the MACs. With `--ratios` also --macs 0.9 to 0.25: none may be
slower than the original. With `--keep` what an earlier run has of this commit is not done again,
and other rows stay. Another provider than the CPU is given `latency` alone.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from benchmarks import harness, rivals, topologies
from benchmarks.latency_rows import SHARE, Row, kept, show, summary
from onnxprune.errors import GateError, OnnxPruneError
from onnxprune.model import Array
from onnxprune.passes.benchmark import Timing, benchmark
from onnxprune.target import Target
from tests.zoo import fill

RATIOS = (0.9, 0.75, 0.25)
SECONDS = 60  # of the interleaved runs of one model
UNCOUNTED = "our counter finds no MACs in its file, so none of equal MACs can be told"
QUICK = ("mobilenet_v2", "ppocr_det")
ONNXSIM_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TORCH_RATIOS = (0.25, 0.3, 0.35)
TORCH_MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vit_b_16")
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
Made = tuple[Any, float, tuple[str, ...]]  # a model or why there is none, seconds, notes
Run = Callable[[Path, float], rivals.RivalRun]
SHAPES = {"ppocr_det": (1, 3, 320, 320), "ppocr_rec": (1, 3, 48, 320)}


def main() -> None:
    """Run, print and save."""
    wanted = _arguments()
    names = wanted.models or list(QUICK if wanted.quick else GOALS)
    commit = harness.versions()["commit"].rstrip("+")  # the results lie in the tree
    rows = kept() if wanted.keep else []
    if not wanted.models:
        names = [name for name in names if not _is_done(rows, name, wanted, commit)]
    for name in names:
        rows = [row for row in rows if (row.model, row.ep) != (name, wanted.ep)]
        rows += _model_rows(name, wanted, commit)
        _save(rows, vars(wanted))  # what is there survives an interruption
    show(rows)
    print(_save(rows, vars(wanted)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help=f"of {', '.join(GOALS)}")
    parser.add_argument("--runs", type=int, help="timed rounds; else until intervals are narrow")
    parser.add_argument("--quick", action="store_true", help="two models")
    parser.add_argument("--ratios", action="store_true", help="other shares of the MACs, too")
    parser.add_argument("--keep", action="store_true", help="go on with the file of results")
    parser.add_argument(
        "--no-rivals", action="store_true", help="without onnxsim and Torch-Pruning"
    )
    parser.add_argument("--ep", default="cpu", help="the execution provider")
    parser.add_argument("--package", type=Path, help="where rapidocr_onnxruntime lies unpacked")
    return parser.parse_args()


def _is_done(rows: Sequence[Row], name: str, wanted: argparse.Namespace, commit: str) -> bool:
    """Whether the file has all that is wanted of a model, of this commit."""
    own = {row.way for row in rows if (row.model, row.ep, row.commit) == (name, wanted.ep, commit)}
    return {"original", *_ways(wanted, {})} <= own


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


def _model_rows(name: str, wanted: argparse.Namespace, commit: str) -> list[Row]:
    model = _source(name, wanted.package)
    inputs = _inputs(name, model)
    before = onnxprune.inspect(model).macs
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        made = _made(name, model, inputs, Path(folder), wanted)
    good = {way: own for way, own in made.items() if isinstance(own[0], onnx.ModelProto)}
    models = [(model, None), *((own[0], None) for own in good.values())]
    feeds = _named(inputs, [own[0] for own in good.values()])
    target = Target(wanted.ep)
    times = benchmark(models, feeds, target=target, runs=wanted.runs, seconds=SECONDS)
    timed = dict(zip(["original", *good], times, strict=True))
    rows = [_row(name, "original", 1.0, times[0], times[0], 0.0, ())]
    for way, (small, seconds, notes) in made.items():
        if way in good:
            left = onnxprune.inspect(small).macs / before
            rows.append(_row(name, way, left, times[0], timed[way], seconds, notes))
        else:
            nan = float("nan")
            none = (nan, nan, nan, nan, nan, nan, nan, nan)
            rows.append(Row(name, way, *none, None, seconds, notes=notes, error=str(small)))
        print(rows[-1], flush=True)
    return [replace(row, ep=wanted.ep, commit=commit) for row in rows]


def _named(inputs: Mapping[str, Array], others: Sequence[onnx.ModelProto]) -> dict[str, Array]:
    """The inputs, by the names too that another export of the model gives its only one."""
    found = dict(inputs)
    for proto in others:
        names = [value.name for value in proto.graph.input]
        if len(names) == len(inputs) == 1:
            found.setdefault(names[0], next(iter(inputs.values())))
    return found


def _ways(wanted: argparse.Namespace, inputs: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """The arguments of ``onnxprune.prune`` by way."""
    latency = {"latency": f"{SHARE}x", "inputs": inputs, "ep": wanted.ep}
    if wanted.ep != "cpu":
        return {"latency": latency}
    ways: dict[str, dict[str, Any]] = {
        "macs": {"macs": SHARE},
        "latency": latency,
        "unaligned": {"macs": SHARE, "align": 1},
        "uniform": {"macs": SHARE, "scope": "uniform", "criterion": "random"},
    }
    return ways | ({f"macs {s}": {"macs": s} for s in RATIOS} if wanted.ratios else {})


def _made(
    name: str,
    model: onnx.ModelProto,
    inputs: dict[str, Array],
    folder: Path,
    wanted: argparse.Namespace,
) -> dict[str, Made]:
    """The model (or why there is none), seconds (the probe's left out) and notes of each way."""
    found: dict[str, Made] = {}
    for way, options in _ways(wanted, inputs).items():
        start = time.perf_counter()
        probed = 0.0
        try:
            small, report = onnxprune.prune(model, verify=False, **options)
            notes = tuple(note for note in report.notes if not note.startswith("not verified"))
            probed = report.seconds.get("probe", 0.0)
            if report.pace is not None:
                notes = (*notes, str(report.pace))
            found[way] = (small, time.perf_counter() - start - probed, notes)
        except (OnnxPruneError, GateError) as error:
            found[way] = (str(error), time.perf_counter() - start, ())
    if wanted.no_rivals or wanted.ep != "cpu":
        return found
    source = folder / "original.onnx"
    onnx.save(model, source)
    found["onnxsim"] = _nearest("onnxsim", source, ONNXSIM_RATIOS, _onnxsim(source, folder))
    if name in TORCH_MODELS:
        runs = _torch(f"torchvision/{name}", folder)
        found["torch"] = _nearest("torch", source, TORCH_RATIOS, runs)
    return found


def _onnxsim(source: Path, folder: Path) -> Run:
    return lambda python, ratio: rivals.run_onnxsim(
        python, source, folder / f"onnxsim-{ratio}.onnx", ratio
    )


def _torch(architecture: str, folder: Path) -> Run:
    return lambda python, ratio: rivals.run_torch_pruning(
        python, architecture, folder / f"torch-{ratio}", ratio
    )


def _nearest(rival: str, source: Path, ratios: Sequence[float], run_at: Run) -> Made:
    """The rival's file whose MACs are nearest to those of ours."""
    python = rivals.venv_python(rival)
    if python is None:
        return "its venv has not been made: see benchmarks.rivals", 0.0, ()
    before = onnxprune.inspect(source).macs
    best: tuple[float, Made] | None = None
    errors = [""]
    for ratio in ratios:
        run = run_at(python, ratio)
        if run.error or run.output is None:
            errors.append(run.error or "no file")
            continue
        original = run.output.with_name("original.onnx")  # Torch-Pruning exports its own
        error = rivals.check(python, original, run.output)
        left = 0.0 if error else onnxprune.inspect(run.output).macs / before
        if not left:
            errors.append(error or UNCOUNTED)
            continue
        off = abs(left - SHARE)
        if best is None or off < best[0]:
            best = (off, (onnx.load(run.output), run.wall_s, (f"ratio {ratio}",)))
    return best[1] if best is not None else (errors[-1] or "no file", 0.0, ())


def _row(
    name: str,
    way: str,
    left: float,
    base: Timing,
    own: Timing,
    seconds: float,
    notes: tuple[str, ...],
) -> Row:
    cpu = float(np.quantile(base.cpu_times_ms, 0.25) / np.quantile(own.cpu_times_ms, 0.25))
    return Row(
        *(name, way, left, own.p50_ms, own.cpu_ms),
        *(own.speedup, own.speedup_low, own.speedup_high, cpu, own.speedup * left),
        *(GOALS.get(name) if way == "macs" else None, seconds),
        notes=notes,
    )


def _save(rows: Sequence[Row], settings: Mapping[str, object]) -> Path:
    python = rivals.venv_python("onnxsim")
    versions = rivals.versions_of(python, ["onnxsim"]) if python else {}
    missing = [] if rivals.venv_python("torch") else ["torch: its venv has not been made"]
    results = {"rows": list(rows), "left_out": missing, "summary": summary(rows)}
    return harness.save("latency", results, settings, versions)


if __name__ == "__main__":
    main()
