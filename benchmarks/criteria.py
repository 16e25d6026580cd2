"""Which criterion, sides, scale and scope lose least, on trained models, without labels.

    python -m benchmarks.criteria                # models that packages ship: some 20 minutes
    python -m benchmarks.criteria --more DIR     # and those of benchmarks/export_trained.py
    python -m benchmarks.criteria --only magika --quick
    python -m benchmarks.criteria --budgets      # the second question alone: l2 by sides and scope

Two questions, two tables:
- groups: a quarter or half of one group goes, all others stay whole. How large is the error of the
  outputs, compared with a random choice? Says how good the order inside groups is.
- budgets: 20, 30 or 50 % of the MACs go, from all groups. How large is the error? Says whether
  scores of different groups can be compared.
Errors are relative to the original's outputs on realistic inputs; nothing is recovered afterwards.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import harness
from benchmarks.trained import PACKAGES, SHIPPED, Trained, fixed, install, shipped
from onnxprune import runtime
from onnxprune.axes import Mask, Values
from onnxprune.budget import Budget, Options, Scope
from onnxprune.cost import cost_model
from onnxprune.coupling import Coupling, Group
from onnxprune.files import load
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.score import CRITERIA, MERGING, SIDES, merge_weights, merges, score
from onnxprune.passes.select import select
from onnxprune.passes.shrink import shrink

Array = NDArray[Any]
RATIOS = (0.25, 0.5)
KEPT_MACS = (0.8, 0.7, 0.5)
SEEDS = 3
SMALLEST_GROUP = 6
KEPT = harness.WORK / "criteria.jsonl"  # rows of models that are done
FLOOR, CEILING = 1e-6, 1.5  # of errors: below is rounding, above all is lost alike


@dataclass(frozen=True)
class Variant:
    """One way to score; what is None is the default."""

    criterion: str
    sides: str | None = None
    scale: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What the tables call it."""
        return " ".join(filter(None, (self.criterion, self.sides, self.scale)))

    def scores(self, coupling: Coupling) -> dict[int, Values]:
        """The scores."""
        given = {"sides": self.sides, "scale": self.scale}
        chosen = {key: value for key, value in given.items() if value is not None}
        return score(coupling, self.criterion, self.seed, balanced=False, **chosen)  # type: ignore[arg-type]


RANDOM = [Variant("random", seed=seed) for seed in range(SEEDS)]
ORDERS = [*RANDOM, *(Variant(c) for c in CRITERIA if c != "random")]
ORDERS += [Variant("l2", sides=sides) for sides in SIDES]
ORDERS += [Variant(c, sides=sides) for c in ("l1", "fpgm") for sides in ("both", "produced")]
SCALED = [Variant("l2", scale=scale) for scale in ("max", "none")]


@dataclass(frozen=True)
class Row:
    """One pruned model; ``group`` or ``scope`` is empty."""

    model: str
    variant: str
    group: str
    scope: str
    kept: float
    error: float
    cosine: float
    agreement: float


class Subject:
    """A trained model, its structure, and its outputs."""

    def __init__(self, trained: Trained) -> None:
        self.name, self.feeds = trained.name, trained.feeds
        self.coupling = couple(normalize(load(trained.proto)))
        self.cost = cost_model(self.coupling)
        self.outputs = runtime.session(trained.proto, None).run(None, trained.feeds)
        self.known: dict[Any, tuple[float, float, float]] = {}

    def measure(self, keep: Mapping[int, Mask], variant: Variant) -> tuple[float, float, float]:
        """Relative error, cosine and agreement of the outputs; each choice runs once."""
        merging = variant.criterion in MERGING
        key = merging, *((factor, mask.tobytes()) for factor, mask in sorted(keep.items()))
        if key not in self.known:
            values = merge_weights(self.coupling, merges(self.coupling, keep)) if merging else None
            proto = shrink(self.coupling, keep, values)
            found = runtime.session(proto, None).run(None, self.feeds)
            self.known[key] = compared(self.outputs, found)
        return self.known[key]


def compared(expected: Sequence[Array], found: Sequence[Array]) -> tuple[float, float, float]:
    """Means over the outputs: relative error, cosine of each sample, the same largest index."""
    errors, cosines = [], []
    for a, b in zip(expected, found, strict=True):
        if a.dtype.kind == "f":
            a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
            norms = [np.linalg.norm(x, axis=1) for x in (a, b)]
            errors.append(np.linalg.norm(a - b) / np.linalg.norm(a))
            cosines.append(np.mean((a * b).sum(1) / np.maximum(norms[0] * norms[1], 1e-30)))
    same = expected[0].argmax(-1) == found[0].argmax(-1)
    return float(np.mean(errors)), float(np.mean(cosines)), float(same.mean())


def one_group_at_a_time(subject: Subject, variants: Iterable[Variant]) -> Iterator[Row]:
    """Rows of the first question."""
    groups = [g for g in subject.coupling.groups if g.size >= SMALLEST_GROUP]
    for variant in variants:
        scores = variant.scores(subject.coupling)
        for group in groups:
            for ratio in RATIOS:
                mask = best(scores[group.factor], group, 1 - ratio)
                figures = subject.measure({group.factor: mask}, variant)
                yield Row(subject.name, variant.name, group.name, "", 1 - ratio, *figures)


def best(scores: Values, group: Group, share: float) -> Mask:
    """The mask of the highest scores."""
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    return np.asarray(rank < max(1, round(group.size * share)))


def all_groups(
    subject: Subject, variants: Iterable[Variant], scopes: Iterable[Scope]
) -> Iterator[Row]:
    """Rows of the second question."""
    for variant in variants:
        scores = variant.scores(subject.coupling)
        for scope in scopes:
            for kept in KEPT_MACS:
                options = Options(scope=scope, align=1)
                chosen = select(subject.coupling, scores, Budget(macs=kept), options, subject.cost)
                figures = subject.measure(chosen.keep, variant)
                yield Row(subject.name, variant.name, "", scope, kept, *figures)


def rows_of(trained: Trained, quick: bool, budgets: bool = False) -> list[Row]:
    """All rows of a model."""
    subject = Subject(trained)
    if budgets:
        by_side = [Variant("l2", sides=sides) for sides in SIDES]
        return list(all_groups(subject, [*RANDOM, *by_side], ("uniform", "global")))
    orders = [*RANDOM, Variant("l2"), Variant("l2", sides="produced")] if quick else ORDERS
    rows = list(one_group_at_a_time(subject, orders))
    rows += all_groups(subject, orders, ("uniform", "global"))
    rows += all_groups(subject, [] if quick else SCALED, ("global",))
    return rows


def against_random(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """By variant and model the error over that of a random choice, as geometric mean of groups."""
    logs: dict[tuple[str, str, float], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row.group:
            logs[row.model, row.group, row.kept][row.variant].append(
                math.log(max(row.error, FLOOR))
            )
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (model, _, _), by_variant in logs.items():
        random = float(np.mean(by_variant["random"]))
        for variant, values in by_variant.items():
            found[variant][model].append(float(np.mean(values)) - random)
    return {
        variant: {model: math.exp(float(np.mean(values))) for model, values in by_model.items()}
        for variant, by_model in found.items()
    }


def by_budget(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """By variant with scope, and model: the mean error over the budgets."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.scope:
            name = f"{row.variant}, {row.scope}"
            found[name][row.model].append(min(row.error, CEILING))
    return {
        variant: {model: float(np.mean(values)) for model, values in by_model.items()}
        for variant, by_model in found.items()
    }


def show(title: str, table: dict[str, dict[str, float]], mean: Any, caption: str) -> None:
    """Print a table, the best variant first."""
    models = list(dict.fromkeys(model for row in table.values() for model in row))
    means = {variant: float(mean(list(row.values()))) for variant, row in table.items()}
    lines = [
        [variant, means[variant], *(table[variant].get(model, math.nan) for model in models)]
        for variant in sorted(table, key=lambda v: means[v])
    ]
    harness.show(title, ["criterion, sides, scale", "mean", *models], lines, caption)


def geometric(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(float(np.mean(np.log(values))))


def main() -> None:
    """Measure, print, save; models that an earlier run finished are not measured again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--more", type=Path, help="a folder of NAME.onnx with NAME.npz as inputs")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--quick", action="store_true", help="l2 and random alone")
    parser.add_argument("--budgets", action="store_true", help="l2 and random, all groups")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    wanted = parser.parse_args()
    install()
    more = {p.stem: p for p in sorted(wanted.more.glob("*.onnx"))} if wanted.more else {}
    names = [n for n in (*SHIPPED, *more) if not wanted.only or n in wanted.only]
    kind = "budgets" if wanted.budgets else "quick" if wanted.quick else ""
    known = KEPT.with_suffix(f".{kind}.jsonl") if kind else KEPT
    known.parent.mkdir(parents=True, exist_ok=True)
    known.open("w" if wanted.fresh else "a").close()
    rows = [Row(**json.loads(line)) for line in known.read_text("utf-8").splitlines()]
    for name in [n for n in names if n not in {row.model for row in rows}]:
        inputs = dict(np.load(more[name].with_suffix(".npz"))) if name in more else {}
        given = fixed(name, onnx.load(more[name]), inputs) if inputs else shipped(name)
        new = rows_of(given, wanted.quick, wanted.budgets)
        rows += new
        with known.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(asdict(row))}\n" for row in new)
        print(f"{name}: {len(new)} pruned models", flush=True)
    rows = [row for row in rows if row.model in names]
    groups, budgets = against_random(rows), by_budget(rows)
    if groups:
        show("One group at a time", groups, geometric, "error over that of a random choice")
    show("All groups", budgets, np.mean, f"relative error, keeping {KEPT_MACS} of the MACs")
    settings = {"ratios": RATIOS, "kept_macs": KEPT_MACS, "seeds": SEEDS, "packages": PACKAGES}
    harness.save(f"criteria{kind and '_'}{kind}", {"groups": groups, "budgets": budgets}, settings)


if __name__ == "__main__":
    main()
