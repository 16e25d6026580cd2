"""Models larger than memory should be: time and peak memory of pruning a file of several gigabytes.

    python -m benchmarks.big [--gb 6] [--keep]

An embedding, feed-forward blocks on a residual stream and a head, with random weights in a data
file. `onnxprune prune --ratio 0.5 --no-verify` runs in a process of its own, in turn with a plain
copy of the files; its peak of resident memory (which counts pages of mapped files) is held against
the largest tensor, and its time against the copy's. Then the result is checked by other means: it
runs on ONNX Runtime, and NumPy computes the original from its data file, block by block, with the
removed channels set to zero.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks import harness

WIDTH, INNER, WORDS, CLASSES, TOKENS = 4096, 11008, 32000, 1000, 4
ROUNDS = 2
TOLERANCE = 1e-4  # of the largest output: sums over thousands of channels in another order
GIGABYTE = 10**9
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One run, or the copy it is held against."""

    what: str
    wall_s: float
    cpu_s: float
    peak_mb: float


def main() -> None:
    """Make, prune, check, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=6, help="bytes of the weights, in 1e9")
    parser.add_argument("--keep", action="store_true", help="leave the files in work/big")
    wanted = parser.parse_args()
    folder = harness.WORK / "big"
    folder.mkdir(parents=True, exist_ok=True)
    model, plan, small = (folder / name for name in ("big.onnx", "plan.json", "small.onnx"))
    blocks = max(1, round((wanted.gb * GIGABYTE / 4 - WORDS * WIDTH) / (2 * WIDTH * INNER)))
    largest = make(model, blocks)
    size = sum(path.stat().st_size for path in folder.glob("big.onnx*"))
    rows = [row for _ in range(ROUNDS) for row in (copied(folder), pruned(model, small, plan))]
    error = checked(folder, blocks)
    copy_s, own_s = (min(r.wall_s for r in rows if r.what == what) for what in ("copy", "prune"))
    above_mb = max(r.peak_mb for r in rows if r.what == "prune") - largest / 1e6
    harness.show(
        f"{size / GIGABYTE:.2f} GB, {blocks} blocks, largest tensor {largest / 1e6:.0f} MB",
        ["", "wall s", "CPU s", "peak resident MB"],
        [(row.what, row.wall_s, row.cpu_s, row.peak_mb) for row in rows],
    )
    print(f"peak above the largest tensor: {above_mb:.0f} MB (aim: under 1500)")
    print(f"time against a copy: {own_s / copy_s:.2f} (aim: under 3)")
    print(f"largest error against NumPy's masked original: {error:.1e} of the largest output")
    figures = {"above_mb": above_mb, "against_copy": own_s / copy_s, "error": error, "rows": rows}
    print(harness.save("big", figures | {"bytes": size, "blocks": blocks}, vars(wanted)))
    if not wanted.keep:
        shutil.rmtree(folder)
    if not error <= TOLERANCE:
        sys.exit("the result differs from the masked original")


def shapes(blocks: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The weights in the order of the data file."""
    yield "embedding", (WORDS, WIDTH)
    for block in range(blocks):
        yield f"up{block}", (WIDTH, INNER)
        yield f"down{block}", (INNER, WIDTH)
    yield "head", (WIDTH, CLASSES)


def make(path: Path, blocks: int) -> int:
    """Write the model, a tensor at a time; returns the bytes of the largest tensor."""
    generator = np.random.default_rng(0)
    graph = onnx.GraphProto(name="big")
    graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [1, TOKENS]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, TOKENS, CLASSES]))
    graph.node.append(helper.make_node("Gather", ["embedding", "ids"], ["x0"]))
    for block in range(blocks):
        x, next_x = f"x{block}", f"x{block + 1}"
        graph.node.extend(
            [
                helper.make_node("MatMul", [x, f"up{block}"], [f"h{block}"]),
                helper.make_node("Relu", [f"h{block}"], [f"r{block}"]),
                helper.make_node("MatMul", [f"r{block}", f"down{block}"], [f"d{block}"]),
                helper.make_node("Add", [x, f"d{block}"], [next_x]),
            ]
        )
    graph.node.append(helper.make_node("MatMul", [f"x{blocks}", "head"], ["y"]))
    largest = 0
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for name, shape in shapes(blocks):
            tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            start = file.tell()
            for row in range(0, shape[0], 1024):
                rows = (min(1024, shape[0] - row), shape[1])
                values = generator.standard_normal(rows, np.float32) * shape[0] ** -0.5
                file.write(values.data)
            length = file.tell() - start
            largest = max(largest, length)
            places = {"location": f"{path.name}.data", "offset": start, "length": length}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return largest


def copied(folder: Path) -> Row:
    """A plain copy of the file and its data."""
    start, cpu = time.perf_counter(), time.process_time()
    for path in folder.glob("big.onnx*"):
        shutil.copyfile(path, folder / "copy")
    row = Row("copy", time.perf_counter() - start, time.process_time() - cpu, float("nan"))
    (folder / "copy").unlink()
    return row


def pruned(model: Path, small: Path, plan: Path) -> Row:
    """The command line, in a process of its own."""
    how = ["--ratio", "0.5", "--align", "1", "--no-verify", "--plan", str(plan)]
    command = [sys.executable, "-m", "onnxprune", "prune", str(model), "-o", str(small), *how]
    used = harness.measure(command, 3600)
    if used.error:
        sys.exit(used.error)
    return Row("prune", used.wall_s, used.cpu_s, used.peak_rss_mb)


def checked(folder: Path, blocks: int) -> float:
    """How far the pruned model is from the masked original, of the largest output."""
    groups = json.loads((folder / "plan.json").read_text("utf-8"))["groups"]
    keep = {name: np.array(group["keep"]) for name, group in groups.items()}
    offset, weights = 0, {}
    for name, shape in shapes(blocks):
        weights[name] = (offset, shape)
        offset += 4 * shape[0] * shape[1]
    ids = np.arange(TOKENS, dtype=np.int64)[None] * 7

    def read(name: str) -> Values:
        start, shape = weights[name]
        return np.memmap(folder / "big.onnx.data", np.float32, "r", start, shape)

    def masked(values: Values, name: str, axis: int) -> Values:
        mask = np.zeros(values.shape[-1], np.float32)
        mask[keep[f"{name}:{axis}"]] = 1
        return np.asarray(values * mask, np.float32)

    x = masked(read("embedding")[ids], "embedding", 1)
    for block in range(blocks):
        hidden = masked(np.maximum(x @ read(f"up{block}"), 0), f"up{block}", 1)
        x = masked(x + hidden @ read(f"down{block}"), "embedding", 1)
    expected = x @ read("head")
    session = ort.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"ids": ids})
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
