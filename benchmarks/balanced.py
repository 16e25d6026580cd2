"""What balanced selection gains over the same positions in every row (heads, groups of a conv).

    python -m benchmarks.balanced                  # kept score, on topologies of the zoo
    python -m benchmarks.balanced --nets DIR       # and accuracy of DIR/vit.onnx (benchmarks.train)

- kept: of the groups that have rows, half of each goes. Which share of the sum of squared scores
  (l2) stays? Weights of the zoo are random, all alike; those of a trained net are not.
- accuracy: top-1 of a small ViT on DIR/test.npz (x, y), recovered on DIR/calib.npz where the
  criterion is obs; with part of the MACs, or of the dims of heads alone, removed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from benchmarks import harness
from onnxprune import files, runtime
from onnxprune.coupling import Coupling
from onnxprune.masks import best
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from onnxprune.passes.score import score
from tests.zoo.fill import load

ZOO = (
    "torchvision/resnext50_32x4d",
    "torchvision/regnet_y_400mf",
    "torchvision/swin_t",
    "torchvision/vit_b_16",
    "timm/vit_tiny_patch16_224",
    "transformers/bert",
    "transformers/gpt2_eager.legacy",
    "transformers/mistral",
)
KEPT = 0.5
MACS = (0.7, 0.5, 0.3)
RATIOS = (0.25, 0.5, 0.75)
BATCH = 250


@dataclass(frozen=True)
class Score:
    """The share of the squared scores that stays, in the mean over the groups with rows."""

    model: str
    groups: int
    rows: float
    same: float
    balanced: float


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent."""

    criterion: str
    what: str
    same: float
    balanced: float


def kept(name: str, coupling: Coupling) -> Score | None:
    """What half of each group with rows scores; None where there is none."""
    groups = [group for group in coupling.groups if group.rows > 1]
    scores = score(coupling, "l2") if groups else {}
    shares = []
    for group in groups:
        squares = np.square(scores[group.factor])
        count = max(1, round(group.size * KEPT))
        same = squares[:, best(squares.sum(axis=0), count)].sum()
        own = squares[best(squares, count)].sum()
        shares.append((same / squares.sum(), own / squares.sum()))
    if not groups:
        return None
    same, own = np.mean(shares, axis=0)
    rows = float(np.mean([group.rows for group in groups]))
    return Score(name, len(groups), rows, float(same), float(own))


def structure(model: Any) -> Coupling:
    """The coupling of a model."""
    return couple(normalize(files.load(model)))


def accuracy(model: onnx.ModelProto, test: dict[str, Any]) -> float:
    """Top-1 in percent."""
    session = runtime.session(model, None)
    (feed,), (out,) = session.get_inputs(), session.get_outputs()
    right = 0
    for start in range(0, len(test["y"]), BATCH):
        x, y = (test[key][start : start + BATCH] for key in "xy")
        right += int((runtime.run(session, {feed.name: x}, [out.name])[0].argmax(1) == y).sum())
    return 100 * right / len(test["y"])


def accuracies(folder: Path) -> Iterator[Accuracy]:
    """Both ways to choose, at equal counts."""
    net, test = folder / "vit.onnx", dict(np.load(folder / "test.npz"))
    dims = [group.name for group in structure(net).groups if group.rows > 1]
    patterns = [name.replace("[", "?").replace("]", "?") for name in dims]
    for criterion, fit in (("l2", False), ("obs", False), ("obs", True)):
        given: dict[str, Any] = {"criterion": criterion, "align": 1, "recover": fit}
        if criterion == "obs":
            given["calibration"] = str(folder / "calib.npz")
        wanted: list[tuple[str, dict[str, Any]]] = [
            *((f"{100 * share:.0f} % of the MACs left", {"macs": share}) for share in MACS),
            *(
                (f"{100 * (1 - r):.0f} % of the dims left", {"ratio": r, "include": patterns})
                for r in RATIOS
            ),
        ]
        for what, how in wanted:
            found = [
                accuracy(onnxprune.prune(net, balanced=own, **given, **how)[0], test)
                for own in (False, True)
            ]
            name = f"{criterion}, recovered" if fit else criterion
            yield Accuracy(name, what, *found)
            print(f"{name}, {what}: {found}", flush=True)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", type=Path, help="the folder of vit.onnx, test.npz and calib.npz")
    wanted = parser.parse_args()
    models: dict[str, Any] = {name: load(name) for name in ZOO}
    if wanted.nets:
        models["vit.onnx, trained"] = wanted.nets / "vit.onnx"
    scores = [kept(name, structure(model)) for name, model in models.items()]
    rows = [(x.model, x.groups, x.rows, x.same, x.balanced) for x in scores if x]
    columns = ("model", "groups", "rows", "same positions", "balanced")
    harness.show("Share of the squared scores that half of each group keeps", columns, rows)
    found = list(accuracies(wanted.nets)) if wanted.nets else []
    if found:
        heads = ("criterion", "", "same positions", "balanced")
        table = [(x.criterion, x.what, x.same, x.balanced) for x in found]
        harness.show("Top-1 of a small ViT on CIFAR-10", heads, table)
    settings = {"kept": KEPT, "macs": MACS, "ratios": RATIOS}
    harness.save("balanced", {"scores": scores, "accuracies": found}, settings)


if __name__ == "__main__":
    main()
