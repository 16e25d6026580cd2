"""The child that checks a rival's file: `python -m benchmarks.rival_check ORIGINAL PRUNED`.

It must load, run on random inputs and give results of the original's names, shapes and types. That
is far less than onnxprune's verification asks, and all that can be asked of a file without a plan.
"""

import sys
from typing import Any

import numpy as np

UNKNOWN_SIZE = 2  # for dynamic axes


def main(original: str, pruned: str) -> None:
    """Exit with one sentence on standard error when the pruned file is not a stand-in."""
    expected = results(original)
    found = results(pruned)
    if list(expected) != list(found):
        sys.exit(f"results: expected {list(expected)}, found {list(found)}")
    for name, value in expected.items():
        other = found[name]
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            wanted = f"{value.dtype} {value.shape}"
            sys.exit(f"result {name!r}: expected {wanted}, found {other.dtype} {other.shape}")
        if np.isfinite(value).all() and not np.isfinite(other).all():
            sys.exit(f"result {name!r}: not finite any more")


def results(path: str) -> dict[str, Any]:
    """Every result of the model on inputs that depend on their names and shapes alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: _random(value.type, value.shape) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _random(kind: str, shape: list[int | str | None]) -> Any:
    """Values of a type such as `tensor(float)`; integers are 0 or 1, to be legal as indices."""
    sizes = [size if isinstance(size, int) and size > 0 else UNKNOWN_SIZE for size in shape]
    generator = np.random.default_rng(0)
    name = kind.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return generator.standard_normal(sizes).astype(dtype)
    return generator.integers(0, 2, sizes).astype(dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
