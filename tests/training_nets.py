"""Small nets and data that can be learnt in a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests import graphs
from tests.graphs import node, weight


def classifier(width: int = 8, softmax: bool = False, batch: int | str = "N") -> onnx.ModelProto:
    """Two dense layers from 6 numbers to 3 classes."""
    nodes = [
        node("Gemm", "x fc1.weight fc1.bias", "h"),
        node("Relu", "h", "a"),
        node("Gemm", "a fc2.weight fc2.bias", "z"),
        node(*(("Softmax", "z", "y") if softmax else ("Identity", "z", "y"))),
    ]
    weights: dict[str, Any] = {
        "fc1.weight": weight(0, 6, width),
        "fc1.bias": weight(1, width),
        "fc2.weight": weight(2, width, 3),
        "fc2.bias": weight(3, 3),
    }
    return graphs.model(nodes, {"x": [batch, 6]}, {"y": [batch, 3]}, weights)


def data(count: int = 96, seed: int = 0) -> dict[str, Any]:
    """Points around three centres, and which one."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    centres = np.random.default_rng(7).standard_normal((3, 6)) * 2
    x = centres[labels] + random.standard_normal((count, 6))
    return {"x": x.astype(np.float32), "y": labels}
