"""How each tool makes the pruned files that `benchmarks.quality` asks for."""

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from benchmarks.cifar import CALIBRATION
from benchmarks.harness import measure
from benchmarks.quality_nets import SEEDS, Made, Request, Subject
from benchmarks.rivals import onnxprune_macs, venv_python

Maker = Callable[[Subject, Sequence[Request], Path], Iterator[tuple[Request, Made]]]
TIMEOUT_S = 4 * 3600
LADDER = [round(0.03 * step, 2) for step in range(1, 32)]  # onnxsim's ratios
LABELLED = {"taylor", "hessian"}  # criteria of Torch-Pruning that need labels
SEEDED = {"activation", "taylor", "hessian", "random"}  # what they find depends on the seed

TORCH = ("l1", "l2", "bn-scale", "lamp", "fpgm", "random", "activation", "taylor", "hessian")
TORCH_SCOPES = ("uniform", "global", "isomorphic", "inner")

# onnxsim: what is pruned by, and what recovers afterwards.
ONNXSIM = (
    "l2",
    "wanda",
    "wanda + least squares+batch norm",
    "wanda + blocks",
)
ONNXSIM_SCOPES = ("uniform", "global")


@dataclass(frozen=True)
class Variant:
    """A row of ours: arguments of `onnxprune.prune`, and which draws of calibration data."""

    arguments: dict[str, Any]
    draws: tuple[int, ...] = ()  # none: it is given no data


# Alignment is off throughout, so that MACs are equal.
OURS: dict[str, Variant] = {
    "l2": Variant({"criterion": "l2"}),
    "l2, uniform": Variant({"criterion": "l2", "scope": "uniform"}),
    "l2 + recovery": Variant({"criterion": "l2"}, draws=SEEDS[:1]),
    "obs, not recovered": Variant({"criterion": "obs", "recover": False}, draws=SEEDS[:1]),
    "obs + recovery, global": Variant({"criterion": "obs", "scope": "global"}, draws=SEEDS[:1]),
    "obs + recovery, uniform": Variant({"criterion": "obs", "scope": "uniform"}, draws=SEEDS[:1]),
    "obs + recovery, no data": Variant({"calibration": "synthetic"}),
    "obs + recovery (default)": Variant({}, draws=SEEDS),
}


def offered(variant: Variant) -> bool:
    """Whether this version of onnxprune knows the arguments."""
    from onnxprune.api import prune
    from onnxprune.passes.score import CRITERIA, DEFAULT

    known = inspect.signature(prune).parameters
    wanted = {*variant.arguments, *({"calibration"} if variant.draws else ())}
    return wanted <= {*known} and variant.arguments.get("criterion", DEFAULT) in CRITERIA


def ours(net: Subject, requests: Sequence[Request], folder: Path) -> Iterator[tuple[Request, Made]]:
    """Prune with onnxprune in this process."""
    import onnxprune
    from onnxprune.errors import OnnxPruneError

    for request in requests:
        variant = OURS[request.criterion]
        given = dict(variant.arguments)
        if variant.draws:
            given["calibration"] = net.folder / f"inputs_{request.seed}.npz"
            given["samples"] = CALIBRATION
        output = folder / "ours.onnx"
        start = time.process_time()
        try:
            small, _ = onnxprune.prune(
                net.folder / "net.onnx",
                macs=request.target,
                align=1,
                **given,
            )
            onnx.save(small, output)
            made = Made(output, time.process_time() - start)
        except OnnxPruneError as error:
            made = Made(None, time.process_time() - start, str(error)[:300])
        yield request, made


def torch_pruning(
    net: Subject, requests: Sequence[Request], folder: Path
) -> Iterator[tuple[Request, Made]]:
    """Prune with Torch-Pruning, all requests in one child."""
    python = child_python("torch")
    jobs: list[dict[str, Any]] = [
        {"file": f"torch_{i}.onnx"}
        | {name: value for name, value in asdict(request).items() if name != "tool"}
        for i, request in enumerate(requests)
    ]
    made = run_jobs(python, [net.name], "quality_torch", net, jobs, folder)
    yield from zip(requests, made, strict=True)


def onnxsim(
    net: Subject, requests: Sequence[Request], folder: Path
) -> Iterator[tuple[Request, Made]]:
    """Prune with onnxsim at a ladder of ratios, then recover the file nearest to the target."""
    ladders: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    jobs: list[dict[str, Any]] = []
    for request in requests:
        method = request.criterion.partition(" + ")[0]
        # Uniform ratios leave the same counts whatever the scores.
        key = method if request.scope == "global" else "l2", request.scope, request.seed
        if key not in ladders:
            ladders[key] = _ladder(net, key, folder)
        nearest = min(ladders[key], key=lambda at: abs(at[1] - request.target), default=(0.0, 1.0))
        jobs.append(_job(f"sim_{len(jobs)}.onnx", request, nearest[0]))
    made = run_jobs(child_python("onnxsim"), [], "quality_onnxsim", net, jobs, folder)
    yield from zip(requests, made, strict=True)


MAKERS: dict[str, Maker] = {"onnxprune": ours, "Torch-Pruning": torch_pruning, "onnxsim": onnxsim}


def _ladder(net: Subject, key: tuple[str, str, int], folder: Path) -> list[tuple[float, float]]:
    """Ratios and the share of MACs that onnxsim leaves at them."""
    _, scope, seed = key
    kept = net.folder / f"ladder_{'_'.join(map(str, key))}.json"
    if not kept.exists():
        asked = [Request("onnxsim", key[0], scope, seed, 0.0)] * len(LADDER)
        jobs = [_job(f"step_{i}.onnx", r, LADDER[i]) for i, r in enumerate(asked)]
        found = list(run_jobs(child_python("onnxsim"), [], "quality_onnxsim", net, jobs, folder))
        shares = [
            (ratio, onnxprune_macs(made.path) / net.macs)
            for ratio, made in zip(LADDER, found, strict=True)
            if made.path
        ]
        kept.write_text(json.dumps(shares), encoding="utf-8")
    return [(ratio, share) for ratio, share in json.loads(kept.read_text("utf-8"))]


def _job(file: str, request: Request, ratio: float) -> dict[str, Any]:
    method, _, recovery = request.criterion.partition(" + ")
    return {
        "everywhere": request.scope == "global",
        "file": file,
        "method": method,
        "ratio": ratio,
        "recovery": recovery,
        "seed": request.seed,
    }


def run_jobs(
    python: Path, first: list[str], module: str, net: Subject, jobs: list[Any], folder: Path
) -> list[Made]:
    """Run a child over its jobs; what it did not come to failed with what the child died of."""
    for file in net.folder.iterdir():
        if file.stem in {"net", "base"} or file.name.startswith(("calib", "inputs")):
            target = folder / file.name
            target.unlink(missing_ok=True)
            target.symlink_to(file)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (folder / "done.jsonl").unlink(missing_ok=True)
    command: list[str | Path] = [
        python,
        "-m",
        f"benchmarks.{module}",
        *first,
        folder,
        folder / "report.json",
    ]
    usage = measure(command, TIMEOUT_S)
    done = folder / "done.jsonl"
    lines = done.read_text("utf-8").splitlines() if done.exists() else []
    told = {line["file"]: line for line in map(json.loads, lines)}
    found = []
    for job in jobs:
        line = told.get(job["file"], {"error": usage.error or "never begun", "cpu_s": 0.0})
        path = None if line["error"] else folder / job["file"]
        found.append(Made(path, line["cpu_s"], line["error"]))
    return found


def child_python(rival: str) -> Path:
    """The interpreter of a rival; without one the benchmark ends."""
    python = venv_python(rival)
    if python is None:
        sys.exit(f"{rival} has no venv: run python -m benchmarks.rivals {rival} first")
    return python
