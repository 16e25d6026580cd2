"""How near the bridge's outputs are to ONNX Runtime's, on the topologies of the zoo.

    python -m benchmarks.bridge               # all 265 (20 minutes)
    python -m benchmarks.bridge --every 8

Where they differ by more than 1e-5 of the largest value the graph is run by the bridge once more in
double precision: a net with random weights may amplify roundings, and ONNX Runtime's result is then
as far from that as torch's.
"""

import argparse
from typing import Any

import numpy as np

from benchmarks.harness import save, show
from onnxprune import runtime
from onnxprune.data import random_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.files import load
from onnxprune.torch_bridge import bridge
from tests.zoo import fill

NEAR = 1e-5


def apart(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest value; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    expected = expected.astype(np.float64)  # of whole numbers, too, which may all be 0
    largest = float(np.max(np.abs(expected), initial=1e-12))
    return float(np.max(np.abs(found.astype(np.float64) - expected), initial=0.0)) / largest


def row(name: str) -> dict[str, Any]:
    """What one model says."""
    import torch

    proto = fill.load(name)
    model = load(proto)
    feeds = random_inputs(model, 0)
    outputs = list(model.outputs)
    try:
        module = bridge(model).eval()
        expected = runtime.run(runtime.session(proto, None), feeds, outputs)
        with torch.no_grad():
            given = {key: torch.from_numpy(np.array(value)) for key, value in feeds.items()}
            found = module.run(given)
            errors = [apart(found[n].numpy(), e) for n, e in zip(outputs, expected, strict=True)]
            result: dict[str, Any] = {"name": name, "error": max(errors)}
            if result["error"] > NEAR:
                wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
                exact = module.double().run(wide)
                for key, other in (("torch", found), ("ort", dict(zip(outputs, expected)))):  # noqa: B905
                    own = [apart(np.asarray(other[n]), exact[n].numpy()) for n in outputs]
                    result[f"{key}_to_double"] = max(own)
    except OnnxPruneError as error:
        return {"name": name, "error": float("inf"), "why": str(error)}
    return result


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rows = []
    for name in fill.names()[:: given.every]:
        rows.append(row(name))
        print(rows[-1], flush=True)
    near = sum(own["error"] <= NEAR for own in rows)
    rounded = sum(
        own["error"] > NEAR and own.get("torch_to_double", 1) <= 4 * own.get("ort_to_double", 0)
        for own in rows
    )
    settings = {"every": given.every, "near": NEAR}
    save("bridge", rows, settings, {"torch": torch.__version__})
    counts = [("models", len(rows)), (f"within {NEAR:g}", near), ("as far as ORT itself", rounded)]
    show("the bridge beside ONNX Runtime", ("what", "count"), counts)


if __name__ == "__main__":
    main()
