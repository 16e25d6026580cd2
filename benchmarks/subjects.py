"""The files that benchmarks work on, and their MACs by our counter; each child-made.

python -m benchmarks.subjects fill NAME FILE     a model of the zoo, its weights filled
python -m benchmarks.subjects count FILE         its MACs
python -m benchmarks.subjects copy FILE FILE REPORT     onnx.load and onnx.save, measured
"""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.child import Report
from benchmarks.harness import measure


def filled(name: str, path: Path, timeout_s: float = 600) -> None:
    """Write the model of the zoo called `name` to `path`.

    Raises:
        RuntimeError: it could not be written.
    """
    usage = measure([sys.executable, "-m", "benchmarks.subjects", "fill", name, path], timeout_s)
    if usage.error:
        raise RuntimeError(f"{name} could not be filled: {usage.error}")


def macs(path: Path, timeout_s: float = 600) -> int | str:
    """The MACs of a file by onnxprune's counter, or why it can't be read."""
    usage = measure([sys.executable, "-m", "benchmarks.subjects", "count", path], timeout_s)
    return usage.error or int(usage.stdout)


def _fill(name: str, path: str) -> None:
    import onnx

    from tests.zoo.fill import load

    onnx.save(load(name), path)


def _count(path: str) -> None:
    from onnxprune.api import inspect

    print(inspect(path).macs)


def _copy(source: str, target: str, report_file: str) -> None:
    report = Report()
    with report.phase("import"):
        import onnx
    with report.phase("read"):
        model = onnx.load(source)
    with report.phase("write"):
        onnx.save(model, target)
    report.write(Path(report_file))


if __name__ == "__main__":
    tasks: dict[str, Callable[..., None]] = {"copy": _copy, "count": _count, "fill": _fill}
    tasks[sys.argv[1]](*sys.argv[2:])
