"""Accuracy after pruning without labels and without training, at equal MACs: us and the rivals.

    python -m benchmarks.train                       # the nets, once (hours)
    python -m benchmarks.quality                     # everything that is not measured yet
    python -m benchmarks.quality --only resnet20 --tools onnxprune

Each criterion of each tool prunes each net to 70, 50 and 30 % of its MACs, as near as whole
channels allow, counted by onnxprune. Where a tool has several scopes (one ratio for all layers, one
threshold, residual streams left alone), the first 1,000 test images choose the scope, in the
rivals' favour; then all 5,000 are measured with three draws of 384 calibration images: of ours, and
of the three criteria of each rival that came out best (of the others see ~, on 1,000 images). For
reference, Torch-Pruning's best two at half of the MACs are tuned for 60 batches with labels. Rows
are appended to `work/quality.jsonl` as they come; those of onnxprune are measured anew when its
commit changes.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import harness, rivals
from benchmarks.quality_makers import (
    LABELLED,
    MAKERS,
    ONNXSIM,
    ONNXSIM_SCOPES,
    OURS,
    SEEDED,
    TORCH,
    TORCH_SCOPES,
    Maker,
    offered,
)
from benchmarks.quality_nets import (
    ROWS,
    SEEDS,
    Net,
    Request,
    Row,
    add_row,
    commit,
    known_option,
    net,
    read_rows,
)

NETS = ("resnet20", "vgg_bn", "mobilenet_v2", "vit")
TARGETS = (0.7, 0.5, 0.3)
SCREENED, ALL = 1000, 5000  # test images
STEPS = 60
RATES = {"vit": (3e-4, 1e-3)}
SGD_RATES = (0.01, 0.03)
FINALISTS = 3  # criteria of a rival at each target that see all images
TUNED = {0.5: 2}  # how many of Torch-Pruning's criteria, the best at each target


class Measurements:
    """Rows of one net; asks for what is missing."""

    def __init__(
        self,
        subject: Net,
        again: bool,
        known_at: str = "",
        makers: Mapping[str, Maker] = MAKERS,
        path: Path = ROWS,
    ) -> None:
        self.net, self.idle, self.makers, self.path = subject, bool(known_at), makers, path
        self.commit = known_at or commit()
        known = [] if again else [row for row in read_rows(path) if row.digest == subject.digest]
        self.rows = {row.key: row for row in known}

    def get(self, requests: Iterable[Request], images: int) -> list[Row]:
        """The rows of all requests; those that are not known are measured, tool by tool.

        Idle, it leaves out what is not known.
        """
        wanted = list(dict.fromkeys(requests))
        for tool, maker in self.makers.items():
            missing = [
                request
                for request in wanted
                if request.tool == tool and self._key(request, images) not in self.rows
            ]
            if missing and not self.idle:
                with tempfile.TemporaryDirectory(dir=self.net.folder) as folder:
                    for request, made in maker(self.net, missing, Path(folder)):
                        row = self.net.measured(request, made, images, self._commit(request))
                        self.rows[row.key] = row
                        add_row(row, self.path)
                        print(_line(row), flush=True)
        keys = [self._key(request, images) for request in wanted]
        return [self.rows[key] for key in keys if key in self.rows]

    def _commit(self, request: Request) -> str:
        return self.commit if request.tool == "onnxprune" else ""

    def _key(self, request: Request, images: int) -> tuple[object, ...]:
        return self.net.digest, self._commit(request), request, images


def measure_ours(found: Measurements, labels: Sequence[str]) -> list[Row]:
    """Our variants, with each seed where they look at data."""
    requests = []
    for label in labels:
        if not offered(OURS[label]):
            print(f"onnxprune {label}: this version does not offer it", flush=True)
            continue
        seeds = OURS[label].draws or SEEDS[:1]
        requests += [Request("onnxprune", label, "", s, t) for t in TARGETS for s in seeds]
    return found.get(requests, ALL)


def measure_rival(
    found: Measurements, tool: str, criteria: Sequence[str], scopes: Sequence[str]
) -> list[Row]:
    """All criteria of a rival, each in its best scope; the best of them on all images."""
    asked = [Request(tool, c, s, 0, t) for c in criteria for s in scopes for t in TARGETS]
    best: dict[tuple[str, float], Row] = {}
    for row in found.get(asked, SCREENED):
        key = row.request.criterion, row.request.target
        if key not in best or rank(row) > rank(best[key]):
            best[key] = row
    finals: list[Request] = []
    others: list[Row] = []
    for target in TARGETS:
        screened = [best[c, target] for c in criteria if (c, target) in best]
        ranked = sorted(screened, key=rank, reverse=True)
        others += ranked[FINALISTS:]
        for request in (row.request for row in ranked[:FINALISTS]):
            seeded = request.criterion in SEEDED or "wanda" in request.criterion
            finals += [replace(request, seed=s) for s in (SEEDS if seeded else SEEDS[:1])]
    return found.get(finals, ALL) + others


def measure_tuned(found: Measurements, rows: Sequence[Row]) -> list[Row]:
    """Torch-Pruning's best at each target, after a short training with labels, at its best rate."""
    requests = []
    for target, count in TUNED.items():
        ranked = sorted(_at(rows, target), key=rank, reverse=True)
        best: dict[str, Request] = {}
        for row in ranked:
            best.setdefault(row.request.criterion, row.request)
        for r in list(best.values())[:count]:
            requests += [
                Request(r.tool, r.criterion, r.scope, r.seed, target, STEPS, rate)
                for rate in RATES.get(found.net.name, SGD_RATES)
            ]
    return found.get(requests, ALL)


def table(subject: Net, rows: Sequence[Row]) -> list[list[object]]:
    """A line for each tool and criterion: accuracy in percent, its spread and MACs left."""
    lines: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        request = row.request
        said = f"{request.criterion}{', labels' if request.criterion in LABELLED else ''}"
        tuned = f" + {request.steps} steps with labels" if request.steps else ""
        lines[request.tool, said + tuned][request.target].append(row)
    found: list[list[object]] = [["the original", f"{100 * subject.accuracy:.1f}", "", ""]]
    for (tool, said), by_target in lines.items():
        found.append([f"{tool}: {said}", *(_cell(by_target[target]) for target in TARGETS)])
    return found


def best_tuned(rows: Sequence[Row]) -> list[Row]:
    """The best of all at each target."""
    return [max(_at(rows, target), key=rank) for target in TARGETS if _at(rows, target)]


def _cell(rows: Sequence[Row]) -> str:
    """Mean, half the range over seeds, and the MACs where they are not what was asked for."""
    values = [100 * row.accuracy for row in rows if row.accuracy is not None]
    if not values:
        return "failed" if rows else "-"
    spread = f" ±{(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    left = float(np.mean([row.left for row in rows if row.left is not None]))
    off = "" if abs(left - rows[0].request.target) <= 0.01 else f" (at {left:.0%})"
    about = "~" if rows[0].images < ALL else ""
    return f"{about}{np.mean(values):.1f}{spread}{off}"


def _at(rows: Sequence[Row], target: float) -> list[Row]:
    return [row for row in rows if row.request.target == target and row.accuracy is not None]


def rank(row: Row) -> float:
    """Accuracy; a file that misses the MACs by much counts for less than any that meets them."""
    if row.accuracy is None or row.left is None:
        return -2.0
    return row.accuracy - (row.left > row.request.target + 0.03)


def _line(row: Row) -> str:
    request = row.request
    said = f"{row.net} {request.tool} {request.criterion} {request.scope} {request.target:.0%}"
    if row.accuracy is None:
        return f"{said}: {row.error}"
    steps = f" {request.steps} steps at {request.rate}" if request.steps else ""
    return (
        f"{said} seed {request.seed}{steps}: {100 * row.accuracy:.2f} % of {row.images} "
        f"at {row.left:.3f} of the MACs, {row.cpu_s:.1f} s"
    )


def measure_net(found: Measurements, tools: Sequence[str], labels: Sequence[str]) -> list[Row]:
    """All rows of a net that belong into its table."""
    subject = found.net
    rows: list[Row] = []
    if "onnxprune" in tools:
        rows += measure_ours(found, labels)
    if "Torch-Pruning" in tools:
        scopes = [s for s in TORCH_SCOPES if s != "inner" or subject.name != "vgg_bn"]
        pruned = measure_rival(found, "Torch-Pruning", TORCH, scopes)
        rows += pruned + best_tuned(measure_tuned(found, pruned))
    if "onnxsim" in tools:
        rows += measure_rival(found, "onnxsim", ONNXSIM, ONNXSIM_SCOPES)
    return rows


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="the folder of cifar10_train.npz")
    parser.add_argument("--only", nargs="*", default=NETS, choices=NETS)
    parser.add_argument("--tools", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--ours", nargs="*", default=list(OURS), help="variants of onnxprune")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    known_option(parser)
    parser.add_argument("--no-save", action="store_true", help="print only")
    wanted = parser.parse_args()
    results = {}
    for name in wanted.only:
        subject = net(name, wanted.cifar)
        found = Measurements(subject, wanted.again, wanted.known)
        rows = measure_net(found, wanted.tools, wanted.ours)
        columns = [f"{subject.name}, {subject.macs / 1e6:.0f} M MACs", "70 %", "50 %", "30 %"]
        harness.show("Top-1 in percent at MACs left", columns, table(subject, rows))
        figures = {"accuracy": subject.accuracy, "digest": subject.digest, "macs": subject.macs}
        results[name] = {"base": figures, "rows": rows}
    if wanted.no_save:
        return
    versions: dict[str, str] = {}
    for tool, rival, package in (
        ("Torch-Pruning", "torch", "torch-pruning"),
        ("onnxsim", "onnxsim", "onnxsim"),
    ):
        python = rivals.venv_python(rival)
        if tool in wanted.tools and python:
            versions |= rivals.versions_of(python, [package])
    settings = {"command": sys.argv, "images": ALL, "seeds": SEEDS, "steps": STEPS}
    harness.save("quality", results, settings, versions)


if __name__ == "__main__":
    main()
