"""A dense network loses the neurons whose sensitivity lies below alpha times the largest.

python -m examples.threshold_mlp.run
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import onnxprune
from examples.digits import accuracy, digits, network, write_table
from onnxprune.plan import Plan

README = Path(__file__).parent / "README.md"
SETTINGS: dict[str, Any] = {"batch_size": 64, "device": "cpu"}
ALLOWED = 0.1  # what accuracy may fall by before fine-tuning
FACTOR = 1.2  # alpha grows by this


def dense() -> onnx.ModelProto:
    """784 -> 64 -> 10 with ReLU."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["fc1"], transB=1),
        helper.make_node("Relu", ["fc1"], ["relu"]),
        helper.make_node("Gemm", ["relu", "fc2.weight", "fc2.bias"], ["y"], transB=1),
    ]
    shapes = {"fc1.weight": (64, 784), "fc1.bias": (64,), "fc2.weight": (10, 64), "fc2.bias": (10,)}
    return network(nodes, shapes)


def sensitivity(proto: onnx.ModelProto, data: dict[str, Any]) -> Any:
    """For each neuron (64,) the sum of |weight times gradient| over the weights that it makes."""
    import torch

    module = onnxprune.bridge(proto).eval()
    scores = module(torch.from_numpy(data["x"]))
    torch.nn.functional.cross_entropy(scores, torch.from_numpy(data["y"])).backward()
    weight = module.get_parameter("fc1.weight")
    return (weight * weight.grad).abs().sum(1).detach().numpy()


def without(proto: onnx.ModelProto, kept: Any) -> onnx.ModelProto:
    """The model with some neurons, proved."""
    small, report = onnxprune.apply(proto, Plan(initializers={"fc1.weight": {0: kept.tolist()}}))
    assert report.verification is not None
    assert report.verification.ok
    assert isinstance(small, onnx.ModelProto)
    return small


def largest_alpha(proto: onnx.ModelProto, scores: Any, test: dict[str, Any]) -> tuple[float, Any]:
    """The largest threshold, as a share of the largest score, that accuracy allows."""
    floor, alpha = accuracy(proto, test) - ALLOWED, 0.01
    kept = np.arange(len(scores))
    while True:
        own = np.flatnonzero(scores >= alpha * scores.max())
        if len(own) < 2 or accuracy(without(proto, own) if len(own) < 64 else proto, test) < floor:
            return alpha / FACTOR, kept
        kept, alpha = own, alpha * FACTOR


def quantised(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with int8 weights, and the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("float.onnx", "int8.onnx")]
        onnx.save(proto, paths[0])
        quantize_dynamic(*paths, weight_type=QuantType.QInt8)
        return onnx.load(paths[1]), paths[1].stat().st_size


def main() -> None:
    """Train; prune by thresholds and at random; fine-tune, distil, quantise."""
    train, test = digits()
    half = {name: values[:2000] for name, values in train.items()}
    held = {name: values[2000:] for name, values in train.items()}
    model, _ = onnxprune.finetune(dense(), train=half, epochs=15, **SETTINGS)
    scores = sensitivity(model, half)
    alpha, kept = largest_alpha(model, scores, held)
    chance = np.sort(np.random.default_rng(0).permutation(64)[: len(kept)])
    small = without(model, kept)
    tuned, _ = onnxprune.finetune(small, train=half, epochs=5, **SETTINGS)
    distilled, _ = onnxprune.distill(
        small, teacher=model, data={"x": half["x"]}, augment=("mix",), epochs=5, **SETTINGS
    )
    each = {
        "trained": model,
        f"neurons below {alpha:.3f} of the largest sensitivity removed": small,
        "then fine-tuned": tuned,
        "or distilled, without labels": distilled,
        "as many removed at random": without(model, chance),
    }
    rows: list[list[object]] = []
    for what, proto in each.items():
        eight, size = quantised(proto)
        neurons = next(t for t in proto.graph.initializer if t.name == "fc1.bias").dims[0]
        figures = [f"{accuracy(m, test):.3f}" for m in (proto, eight)]
        rows.append([what, neurons, *figures, size])
    write_table(README, ["", "neurons", "accuracy", "as int8", "bytes as int8"], rows)


if __name__ == "__main__":
    main()
