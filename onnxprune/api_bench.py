"""The Python interface of ``onnxprune bench``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import carrying, measuring
from onnxprune.measuring import Bench
from onnxprune.subjects import Wanted, subjects
from onnxprune.target import Target


def bench(
    *models: Any,
    ep: str = "cpu",
    threads: int = 1,
    ep_options: Mapping[str, str] | None = None,
    graph_optimization: str = "all",
    inputs: str | Path | Mapping[str, Any] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    batches: Sequence[int] = (),
    runs: int | None = None,
    seconds: float = 60.0,
    profile: bool = False,
    mobile: bool = False,
    memory: bool = True,
    seed: int = 0,
    export: str | Path | None = None,
    progress: Callable[[str], object] | None = None,
) -> Bench:
    """Measure models side by side; the first is the one that the others are compared with.

    Args:
        models: paths (.onnx or .ort), ModelProtos or graphsurgeon Graphs.
        ep: the short name of an execution provider (see ``onnxprune.catalogue``).
        threads: threads inside an operator.
        ep_options: the provider's own options.
        graph_optimization: disable, basic, extended, layout or all.
        inputs: real inputs: an .npz file or arrays by name; random ones where absent.
        sizes: shapes of random inputs by name; a batch of 1 and usual sizes where absent.
        batches: batch sizes to measure at, where the batch is dynamic.
        runs: timed runs of each model; where absent 50 and more, until the intervals are narrow.
        seconds: the longest that the timed runs of a batch size may take, where ``runs`` is absent.
        profile: whether to say where the time goes, by layer.
        mobile: whether to say what NNAPI and CoreML would take.
        memory: whether to measure peak memory, in child processes.
        seed: of inputs and bootstrap.
        export: measure nothing, write a folder to carry to another machine.
        progress: is told what is going on.

    Returns:
        what was measured; with ``export`` no rows, and the files in the notes.

    Raises:
        OnnxPruneError: bad input, or a provider that is not there or ran nothing.
    """
    wanted = Wanted(
        Target(ep, threads, ep_options or {}, graph_optimization),
        inputs,
        sizes or {},
        tuple(batches),
        runs,
        seconds,
        seed,
        memory,
        profile,
        mobile,
    )
    with subjects(models) as found:
        if export is None:
            return measuring.measure(found, wanted, progress)
        written = carrying.export(found, wanted, Path(export))
        return Bench((), measuring.plain(wanted.target), {}, notes=tuple(map(str, written)))


def bench_import(path: str | Path) -> Bench:
    """What the runner of an exported folder measured on another machine.

    Raises:
        OnnxPruneError: the file is no such result.
    """
    return carrying.imported(Path(path))
