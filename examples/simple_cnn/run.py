"""A small CNN loses the channels with the smallest weights, and is trained again.

python -m examples.simple_cnn.run
"""

from pathlib import Path
from typing import Any

import onnx
from onnx import helper

import onnxprune
from examples.digits import accuracy, digits, network, parameters, write_table
from onnxprune.plan import Plan

README = Path(__file__).parent / "README.md"
SETTINGS: dict[str, Any] = {"batch_size": 64, "device": "cpu"}


def simple_cnn() -> onnx.ModelProto:
    """conv 1->4, conv 4->8, fc 392->64, fc 64->10, with ReLU and 2x2 max pooling."""
    nodes = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))

    for layer, source in (("conv1", "x"), ("conv2", "pool1")):
        add("Conv", [source, f"{layer}.weight", f"{layer}.bias"], layer, pads=[1, 1, 1, 1])
        add("Relu", [layer], f"relu_{layer}")
        pooled = f"pool{layer[-1]}"
        add("MaxPool", [f"relu_{layer}"], pooled, kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten", ["pool2"], "flat")
    add("Gemm", ["flat", "fc1.weight", "fc1.bias"], "fc1", transB=1)
    add("Relu", ["fc1"], "relu_fc1")
    add("Gemm", ["relu_fc1", "fc2.weight", "fc2.bias"], "y", transB=1)
    shapes = {
        "conv1.weight": (4, 1, 3, 3),
        "conv1.bias": (4,),
        "conv2.weight": (8, 4, 3, 3),
        "conv2.bias": (8,),
        "fc1.weight": (64, 8 * 7 * 7),
        "fc1.bias": (64,),
        "fc2.weight": (10, 64),
        "fc2.bias": (10,),
    }
    return network(nodes, shapes)


def smallest(proto: onnx.ModelProto, layer: str, count: int) -> Plan:
    """The plan without the channels whose own weights have the smallest sum of magnitudes."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    sizes = abs(stored[f"{layer}.weight"]).sum((1, 2, 3))
    kept = sorted(sizes.argsort()[count:].tolist())
    return Plan(initializers={f"{layer}.weight": {0: kept}})


def main() -> None:
    """Train, prune, train again; twice."""
    train, test = digits()
    model, _ = onnxprune.finetune(simple_cnn(), train=train, epochs=10, lr=3e-3, **SETTINGS)
    rows = [["trained", parameters(model), f"{accuracy(model, test):.3f}", ""]]
    for layer, count in (("conv1", 2), ("conv2", 4)):
        small, report = onnxprune.apply(model, smallest(model, layer, count))
        assert report.verification is not None
        assert report.verification.ok
        again, _ = onnxprune.finetune(small, train=train, epochs=3, lr=1e-3, **SETTINGS)
        what = f"{count} channels of {layer} removed"
        figures = [f"{accuracy(m, test):.3f}" for m in (small, again)]
        rows.append([what, parameters(small), *figures])
        model = again
    write_table(README, ["", "parameters", "accuracy", "after training again"], rows)


if __name__ == "__main__":
    main()
