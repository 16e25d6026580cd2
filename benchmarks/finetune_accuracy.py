"""Accuracy after pruning and a short training with labels, at equal MACs: us and Torch-Pruning.

    python -m benchmarks.train                            # the nets, once (hours)
    python -m benchmarks.finetune_accuracy                # everything that is not measured yet
    python -m benchmarks.finetune_accuracy --only vgg_bn --criteria l2 taylor --seeds 0

Both tools prune the same nets to 70, 50 and 30 % of their MACs, and are then trained for the same
steps on the same images, flipped and shifted once for all: in one cycle of SGD with momentum (of
AdamW for the transformer) where the criterion is all there is. Torch-Pruning's has the scope that
`benchmarks.quality` found best for it without training; its taylor and hessian get labels. Ours is
the criterion alone (folded norms put back while training), and OBS with recovery: as it is, with a
distillation on 384 images without labels, and trained as well, as `finetune` and `distill` do with
--relative. Seeds draw the calibration and the training images. All criteria see the first seed, and
the FINALISTS that it finds best at a target all of them, which favours the rival. Rows are appended
to `work/finetune.jsonl` as they come; those of onnxprune are measured anew when its commit changes.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, rivals
from benchmarks.finetune import keep_part
from benchmarks.finetune_makers import BATCH, OURS, RECOVERED, SHARED, ours, torch_pruning
from benchmarks.quality import NETS, SCREENED, Measurements, rank
from benchmarks.quality_makers import LABELLED
from benchmarks.quality_nets import (
    SEEDS,
    Request,
    Row,
    known_option,
    net,
    read_rows,
)

TARGETS = (0.5, 0.7, 0.3)
STEPS = 60
IMAGES = 5000
FINALISTS = 2
RATES = {"vit": 1e-3}  # of what lost most of its accuracy
RATE = 0.03
GENTLE = {"labels": 3e-3, "teacher": 1e-2}  # of what was recovered: shares of each weight's size
MAKERS = {"onnxprune": ours, "Torch-Pruning": torch_pruning}
ROWS = harness.WORK / "finetune.jsonl"
QUICK_STEPS = 6


def scopes(digest: str, criteria: Sequence[str]) -> dict[tuple[str, float], str]:
    """Torch-Pruning's best scope of each criterion at each target, as `quality` has found it."""
    best: dict[tuple[str, float], Row] = {}
    for row in read_rows():
        request = row.request
        key = request.criterion, request.target
        fits = row.digest == digest and request.tool == "Torch-Pruning"
        fits = (
            fits and not request.steps and row.images == SCREENED and request.criterion in criteria
        )
        if fits and (key not in best or rank(row) > rank(best[key])):
            best[key] = row
    return {key: row.request.scope for key, row in best.items()}


def requests_of(
    name: str,
    digest: str,
    labels: Mapping[str, Sequence[str]],
    targets: Sequence[float],
    steps: int,
) -> list[Request]:
    """What is wanted of a net with the first seed, by target."""
    known = scopes(digest, labels["Torch-Pruning"])
    strong = RATES.get(name, RATE)
    found = []
    for target in targets:
        for label in labels["onnxprune"]:
            then = OURS[label].then
            rate = GENTLE.get(then, 0.0) if label in RECOVERED else strong
            found.append(Request("onnxprune", label, "", 0, target, steps if then else 0, rate))
        for label in labels["Torch-Pruning"]:
            scope = known.get((label, target), "global")
            found.append(Request("Torch-Pruning", label, scope, 0, target, steps, strong))
    return found


def measure(
    found: Measurements, asked: Sequence[Request], seeds: Sequence[int], images: int
) -> list[Row]:
    """The rows of the first seed, and those of the others: of ours, and of the best of the rest."""
    rows = [row for request in asked for row in found.get([_with(request, seeds[0])], images)]
    finals = []
    for target in dict.fromkeys(request.target for request in asked):
        for tool, own in (("onnxprune", set(SHARED)), ("Torch-Pruning", set(SHARED))):
            some = [r for r in rows if r.request.target == target and r.request.tool == tool]
            ranked = sorted((r for r in some if r.request.criterion in own), key=rank)
            finals += [r.request for r in ranked[-FINALISTS:]]
            finals += [r.request for r in some if r.request.criterion not in own]
    more = [_with(request, seed) for seed in seeds[1:] for request in finals]
    return rows + [row for request in more for row in found.get([request], images)]


def _with(request: Request, seed: int) -> Request:
    from dataclasses import replace

    return replace(request, seed=seed)


def line_of(rows: Iterable[Row]) -> dict[str, Any] | None:
    """Mean and spread in percent, and how many seeds; None where nothing was measured."""
    own = [row for row in rows if row.accuracy is not None]
    if not own:
        return None
    values = [100 * (row.accuracy or 0.0) for row in own]
    return {
        "mean": float(np.mean(values)),
        "spread": (max(values) - min(values)) / 2,
        "seeds": len(values),
        "left": float(np.mean([row.left for row in own])),
        "cpu_s": float(np.mean([row.cpu_s for row in own])),
    }


def lines(rows: Sequence[Row]) -> dict[tuple[str, str], dict[float, dict[str, Any]]]:
    """The figures of each tool and criterion, by target."""
    sorted_out: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        request = row.request
        sorted_out[request.tool, request.criterion, request.target].append(row)
    found: dict[tuple[str, str], dict[float, dict[str, Any]]] = defaultdict(dict)
    for (tool, criterion, target), own in sorted_out.items():
        line = line_of(own)
        if line is not None:
            found[tool, criterion][target] = line
    return dict(found)


def aims(
    base: float, found: Mapping[tuple[str, str], Mapping[float, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """At each target: our best, the rival's best that meets the MACs, and how far from the base."""
    rows = []
    for target in sorted({t for own in found.values() for t in own}, reverse=True):
        best: dict[str, tuple[float, str]] = {}
        for (tool, criterion), own in found.items():
            line = own.get(target)
            if line is not None and line["left"] <= target + 0.03:
                best[tool] = max(best.get(tool, (-1.0, "")), (line["mean"], criterion))
        if len(best) == len(MAKERS):
            (mine, label), (theirs, criterion) = best["onnxprune"], best["Torch-Pruning"]
            rows.append(
                {
                    "target": target,
                    "ours": label,
                    "ours_mean": mine,
                    "theirs": criterion,
                    "theirs_mean": theirs,
                    "ahead": mine - theirs,
                    "below_base": base - mine,
                }
            )
    return rows


def cell(line: Mapping[str, Any] | None, target: float) -> str:
    """Mean, half the range over seeds, the MACs where they are not what was asked for."""
    if line is None:
        return "-"
    seeds = f" ±{line['spread']:.1f}" if line["seeds"] > 1 else ""
    off = "" if abs(line["left"] - target) <= 0.01 else f" (at {line['left']:.0%})"
    return f"{line['mean']:.1f}{seeds}{off}"


def show(
    name: str, base: float, rows: Sequence[Row], steps: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Print a net's table and its aims; both as plain data."""
    found = lines(rows)
    targets = sorted({t for own in found.values() for t in own}, reverse=True)
    shown: list[list[object]] = [["the original", f"{base:.1f}", *[""] * (len(targets) - 1)]]
    for (tool, criterion), own in found.items():
        said = f"{criterion}{', labels' if tool != 'onnxprune' and criterion in LABELLED else ''}"
        shown.append([f"{tool}: {said}", *(cell(own.get(t), t) for t in targets)])
    columns = [name, *(f"{t:.0%}" for t in targets)]
    harness.show(f"Top-1 after at most {steps} steps of {BATCH}; ± over seeds", columns, shown)
    reached = aims(base, found)
    for row in reached:
        print(
            f"{name} at {row['target']:.0%}: {row['ours']} {row['ours_mean']:.1f}, Torch-Pruning's "
            f"{row['theirs']} {row['theirs_mean']:.1f}; {row['below_base']:.1f} below the original"
        )
    table = [
        {"tool": tool, "criterion": criterion, "target": target, **line}
        for (tool, criterion), own in found.items()
        for target, line in own.items()
    ]
    return table, reached


def arguments() -> Any:
    """What is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="the folder of cifar10_train.npz")
    parser.add_argument("--only", nargs="*", default=NETS, choices=NETS)
    parser.add_argument("--tools", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--criteria", nargs="*", default=SHARED, choices=SHARED)
    parser.add_argument("--ours", nargs="*", default=list(RECOVERED), choices=list(RECOVERED))
    parser.add_argument("--targets", nargs="*", type=float, default=TARGETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="see that it runs; nothing is saved")
    known_option(parser)
    parser.add_argument("--no-save", action="store_true", help="print only")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.targets, wanted.seeds, wanted.steps = (0.5,), (0,), QUICK_STEPS
        wanted.criteria, wanted.no_save = ("l2", "taylor"), True
    return wanted


def main() -> None:
    """Measure, print, save."""
    wanted = arguments()
    labels = {"onnxprune": [*wanted.ours, *wanted.criteria], "Torch-Pruning": wanted.criteria}
    labels = {tool: own if tool in wanted.tools else [] for tool, own in labels.items()}
    results = {}
    for name in wanted.only:
        subject = net(name, wanted.cifar)
        found = Measurements(subject, False, wanted.known, MAKERS, ROWS)
        asked = requests_of(name, subject.digest, labels, wanted.targets, wanted.steps)
        rows = measure(found, asked, wanted.seeds, SCREENED if wanted.quick else IMAGES)
        base = 100 * subject.accuracy
        table, reached = show(name, base, rows, wanted.steps)
        results[name] = {"base": base, "digest": subject.digest, "lines": table, "aims": reached}
    if wanted.no_save:
        return
    python = rivals.venv_python("torch")
    versions = rivals.versions_of(python, ["torch", "torch-pruning"]) if python else {}
    settings = {"batch": BATCH, "command": sys.argv[1:], "images": IMAGES, "steps": wanted.steps}
    keep_part("accuracy", results, settings, versions)


if __name__ == "__main__":
    main()
