"""Times the models of a folder; needs Python, numpy and onnxruntime alone.

``onnxprune bench --export`` writes this text, behind that of ``onnxprune.runner``, as ``run.py``
into a folder. There ``python run.py`` reads ``bench.json``, times the models, and writes
``result.json`` for ``onnxprune bench --import``. So nothing else of onnxprune may be imported
here, and Python 3.8 must understand it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from typing import Any, Callable, Sequence  # noqa: UP035  (Python 3.8 runs this)

import numpy as np

from onnxprune.runner import measured

FORMAT = 1  # of result.json


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": import_module("onnxruntime").__version__,
    }
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            lines = [line for line in file if line.startswith("model name")]
        found["processor"] = lines[0].partition(":")[2].strip() if lines else found["processor"]
        found["load"] = round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        pass  # not on this system
    return found


def open_session(model: str, optimization: str, target: dict[str, Any]) -> Any:
    """A session on the provider that ``target`` names; an error where that runs nothing.

    Args:
        model: the file.
        optimization: ORT's name of the level.
        target: threads, provider (ORT's name), options, and the module of a plug-in or None.
    """
    ort = import_module("onnxruntime")
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = target["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, optimization)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    name, given = target["provider"], target["options"]
    if target.get("plugin"):
        module = import_module(target["plugin"])
        library = module.get_library_path()
        kinds = {option.partition("_")[0] for option in given}
        told = {k: v for k, v in target.get("told", {}).items() if k.partition("_")[0] not in kinds}
        given = {**given, **{k: getattr(module, v)() for k, v in told.items()}}
        if not _devices(ort, library):
            ort.register_execution_provider_library(name, library)
        options.add_provider_for_devices(_devices(ort, library)[:1], given)
        session = ort.InferenceSession(model, options, enable_fallback=0)
    else:
        if name not in ort.get_available_providers():
            sys.exit(f"onnxruntime {ort.__version__} has no {name} on this machine")
        session = ort.InferenceSession(model, options, providers=[(name, given)], enable_fallback=0)
    shares = shares_of(session)
    if shares is not None and "CPU" not in name and not shares.get(name):
        sys.exit(f"{name} ran no node of {model}: the times would be those of the CPU")
    return session


def _devices(ort: Any, library: str) -> list[Any]:
    devices = ort.get_ep_devices()
    return [d for d in devices if d.ep_metadata.get("library_path") == str(library)]


def shares_of(session: Any) -> dict[str, float] | None:
    """The share of nodes by provider; None where this ONNX Runtime can't tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def fed(session: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """A run of the session on those inputs that it wants."""
    own = {value.name: inputs[value.name] for value in session.get_inputs()}
    return lambda: session.run(None, own)


def peak_bytes(model: str, optimization: str, target: dict[str, Any], inputs: str) -> int | None:
    """What loading and running a model adds to this process's memory at most; Linux alone.

    Run it in a process of its own: memory that was used and freed before would hide it.
    """
    feeds = read(inputs)
    before = _status("VmRSS")
    call = fed(open_session(model, optimization, target), feeds)
    call()
    call()
    after = _status("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def _status(key: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123
            found = [line.split()[1] for line in file if line.startswith(key)]
    except OSError:
        return None
    return int(found[0]) * 1024 if found else None


def peak_in_child(arguments: Sequence[Any]) -> int | None:
    """``peak_bytes`` in a child process; None where that fails."""
    # Not the file where this is a module: its neighbours would hide modules of Python's own.
    start = ["-m", __name__] if __name__ != "__main__" else [os.path.abspath(__file__)]  # noqa: PTH100
    command = [sys.executable, *start, "--peak", json.dumps(list(arguments))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, check=False, env=env)
    if done.returncode:
        return None
    found: int | None = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def read(path: str) -> dict[str, Any]:
    """The arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def run(settings: dict[str, Any], tell: Callable[[int], Any]) -> dict[str, Any]:
    """Time the models of ``bench.json``, each batch for itself; raw times as plain data."""
    models, target, found = settings["models"], settings["target"], []
    for batch in settings["inputs"]:
        feeds = read(batch["file"])
        sessions: dict[int, list[float]] = {k: [] for k in range(len(models))}
        shares: dict[int, Any] = {}

        def opened(order: Sequence[int]) -> list[Callable[[], Any]]:
            calls = {}
            for position in order:
                start, model = time.perf_counter(), models[position]
                session = open_session(model["file"], model["optimization"], target)
                sessions[position].append((time.perf_counter() - start) * 1e3)  # noqa: B023
                shares[position] = shares_of(session)  # noqa: B023
                calls[position] = fed(session, feeds)  # noqa: B023
            return [calls[position] for position in range(len(models))]

        wall, cpu, phases, stopped = measured(
            opened,
            len(models),
            settings["runs"],
            settings["seconds"],
            tell=tell,
        )
        rows = [
            {
                "name": model["name"],
                "size_bytes": model["size_bytes"],
                "peak_bytes": peak_in_child(
                    [model["file"], model["optimization"], target, batch["file"]]
                ),
                "load_ms": float(np.median(sessions[position])),
                "shares": shares[position],
                "wall_ms": wall[position].tolist(),
                "cpu_ms": cpu[position].tolist(),
            }
            for position, model in enumerate(models)
        ]
        found.append(
            {
                "batch": batch["batch"],
                "phases": phases.tolist(),
                "interrupted": stopped,
                "models": rows,
            }
        )
        if stopped:
            break
    return {"format": FORMAT, "machine": machine(), "target": target, "batches": found}


def main() -> None:
    """Time the models that lie beside this file, or measure the memory of one."""
    parser = argparse.ArgumentParser(description="Time the models of this folder.")
    parser.add_argument("--threads", type=int, help="threads inside an operator")
    parser.add_argument("--provider", help="ONNX Runtime's name of an execution provider")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plugin", help="the Python module of a plug-in provider")
    parser.add_argument("--runs", type=int, help="timed runs of each model")
    parser.add_argument("--seconds", type=float, help="the longest that the runs may take")
    parser.add_argument("--output", default="result.json")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        sys.stdout.write(json.dumps(peak_bytes(*json.loads(given.peak))) + "\n")
        return
    os.chdir(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    with open("bench.json", encoding="utf-8") as file:  # noqa: PTH123
        settings = json.load(file)
    target = settings["target"]
    if given.provider:
        target.update(provider=given.provider, options={}, plugin=given.plugin, told={})
    target["threads"] = given.threads or target["threads"]
    target["options"].update(text.split("=", 1) for text in given.option)
    settings["runs"] = given.runs or settings["runs"]
    settings["seconds"] = given.seconds or settings["seconds"]
    found = run(settings, lambda turn: sys.stderr.write(f"\rrun {turn} "))
    with open(given.output, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(found, file)
    sys.stderr.write("\n")
    for batch in found["batches"]:
        for row in batch["models"]:
            median = np.median(row["wall_ms"])
            sys.stdout.write(f"{row['name']}, batch {batch['batch']}: {median:.3f} ms\n")
    sys.stdout.write(f"wrote {given.output}: show it with 'onnxprune bench --import'\n")


if __name__ == "__main__":
    main()
