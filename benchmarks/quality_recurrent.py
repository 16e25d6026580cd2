"""Accuracy of recurrent networks after pruning, with and without recovery, at equal MACs.

    python -m benchmarks.quality_recurrent           # trains an LSTM and a GRU first: extra torch

Two bidirectional layers of 64 units read twenty noisy tokens, and say for each what stood one or
two places before it, by which of two neighbours is larger. 256 unlabelled sequences calibrate;
500 others are judged, each of their 20 steps a sample.
"""

import argparse
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxprune
from benchmarks import harness

TARGETS = (0.7, 0.5, 0.3)
KINDS = ("LSTM", "GRU")
TOKENS, STEPS, WIDTH, UNITS = 10, 20, 48, 64
BATCH, TRAINED, RATE = 64, 500, 3e-3
NOISE = 0.3
TEST, CALIBRATION = 500, 16  # sequences to judge, and sequences of each of 16 calibration batches
VARIANTS: dict[str, dict[str, Any]] = {
    "l2, not recovered": {"criterion": "l2", "recover": False},
    "l2 + recovery": {"criterion": "l2"},
    "obs + recovery (default)": {},
}


def sequences(count: int, seed: int) -> tuple[Any, Any]:
    """Noisy tokens (t, n, 10) and what is to be said of each (t, n)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TOKENS, (STEPS, count), generator=generator)
    noise = NOISE * torch.randn(STEPS, count, TOKENS, generator=generator)
    later, once, twice = (torch.roll(tokens, k, 0) for k in (-1, 1, 2))
    said = torch.where(tokens > later, once, twice)
    return torch.nn.functional.one_hot(tokens, TOKENS).float() + noise, said


def trained(kind: str) -> onnx.ModelProto:
    """A trained network, exported."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc]
        """Embed, remember, say."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(TOKENS, WIDTH)
            self.remember = getattr(torch.nn, kind)(WIDTH, UNITS, num_layers=2, bidirectional=True)
            self.say = torch.nn.Linear(2 * UNITS, TOKENS)

        def forward(self, x: Any) -> Any:
            """x (t, n, 10)."""
            return self.say(self.remember(torch.relu(self.embed(x)))[0])

    torch.manual_seed(0)
    net = Network()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for step in range(TRAINED):
        x, said = sequences(BATCH, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x).flatten(0, 1), said.flatten()).backward()
        optimizer.step()
    file = io.BytesIO()
    torch.onnx.export(
        net.eval(),
        (sequences(2, 0)[0],),
        file,
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {1: "n"}, "y": {1: "n"}},
    )
    return onnx.load_from_string(file.getvalue())


def accuracy(proto: onnx.ModelProto, count: int = TEST) -> float:
    """The share of steps that are right, in percent."""
    x, said = sequences(count, 10**6)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    found = session.run(None, {"x": x.numpy()})[0].argmax(-1)
    return float(100 * np.mean(found == said.numpy()))


def calibration() -> Iterator[dict[str, Any]]:
    """Unlabelled sequences that were not trained on."""
    for batch in range(16):
        yield {"x": sequences(CALIBRATION, 2 * 10**6 + batch)[0].numpy()}


def main() -> None:
    """Train, prune, judge, print, save."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    import torch

    torch.set_num_threads(1)
    rows = []
    for kind in KINDS:
        net = trained(kind)
        rows.append({"net": kind, "variant": "the original", "1": accuracy(net)})
        for variant, given in VARIANTS.items():
            row: dict[str, Any] = {"net": kind, "variant": variant}
            for target in TARGETS:
                small, _ = onnxprune.prune(
                    net, macs=target, align=1, calibration=calibration, **given
                )
                row[str(target)] = accuracy(small)
            rows.append(row)
    columns = ["net", "variant", "1", *map(str, TARGETS)]
    shown = [[row.get(name) for name in columns] for row in rows]
    harness.show("Steps right, in percent, at MACs left", columns, shown)
    harness.save("quality_recurrent", rows, {"steps": TRAINED}, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
