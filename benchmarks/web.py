"""The original and the pruned model in onnxruntime-web (WASM), in Node and in headless Chromium.

    python -m benchmarks.web [MODEL ...] [--shape x=1x3x48x192] [--runs 100] [--output FOLDER]

Without models: the classifier of PP-OCR that `make demo` uses, pruned to half of its MACs. Beside
WASM it times onnxruntime-node, which runs natively. Each result is a file that
`onnxprune bench --import` reads; the outputs are compared with those of ONNX Runtime in Python.
What is not there (npm, Chromium) is skipped with a message. WebGPU is not timed on a machine
without a graphics processor: a software adapter's times mean nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

import onnxprune
from benchmarks.harness import WORK
from onnxprune import providers, runtime
from onnxprune.api import bench_import
from onnxprune.cli.bench import sizes
from onnxprune.report import benches
from onnxprune.subjects import Wanted, feeds_of, subjects
from onnxprune.target import Target

HERE: Final = Path(__file__).resolve().parent / "web"
PLACES: Final = {
    "native": "onnxruntime-node",
    "wasm": "onnxruntime-web in Node",
    "chromium": "onnxruntime-web in headless Chromium",
}
TOLERANCE: Final = 1e-3  # of the largest value
COMPARED: Final = 1000  # numbers of each output, as in loop.js


def installed(folder: Path) -> str:
    """Put the scripts and their packages into a folder; why that fails, or nothing."""
    if shutil.which("npm") is None:
        return "npm is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "loop.js", "run.js"):
        shutil.copyfile(HERE / name, folder / name)
    # The wheels bring their binaries along; nothing else is to be downloaded.
    env = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"npm install failed: {done.stderr.strip()[-200:]}"


def prepared(models: list[Path], shapes: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write models and inputs where the scripts find them; the outputs that are right, by model."""
    with subjects(models) as found:
        wanted = Wanted(sizes=shapes)
        ((_, arrays),) = feeds_of(found, wanted)[0].items()
        settings: dict[str, list[Any]] = {"models": [], "inputs": []}
        for name, array in arrays.items():
            file = f"input{len(settings['inputs'])}.bin"
            (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
            row = {"name": name, "type": str(array.dtype), "dims": list(array.shape), "file": file}
            settings["inputs"].append(row)
        right = []
        for position, model in enumerate(found):
            file = f"model{position}.onnx"
            shutil.copyfile(model.path, folder / file)
            own = {"name": model.name, "size_bytes": model.size_bytes, "file": file}
            settings["models"].append(own)
            session = providers.open_session(model.path, None, Target())
            names = [value.name for value in session.get_outputs()]
            values = runtime.run(session, arrays, names)
            right.append(dict(zip(names, values, strict=True)))
    (folder / "web.json").write_text(json.dumps(settings), "utf-8")
    return right


def difference(found: list[Any], right: list[dict[str, Any]]) -> float:
    """The largest difference of an output, over its largest value."""
    worst = 0.0
    for outputs, wanted in zip(found, right, strict=True):
        for name, numbers in outputs:
            values = wanted[name].ravel()[:COMPARED]
            scale = float(np.abs(wanted[name]).max()) or 1.0
            worst = max(worst, float(np.abs(np.asarray(numbers) - values).max()) / scale)
    return worst


def classifier() -> Path:
    """The file inside the package that `make demo` installs."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("the package rapidocr-onnxruntime is not installed: run `make bench-web`")
    return Path(spec.origin).parent / "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def shipped(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """The demo's classifier, and the same pruned."""
    source = classifier()
    small = folder / "pruned.onnx"
    onnxprune.prune(source, macs=0.5, output=small)
    return [source, small], {"x": (1, 3, 48, 192)}


def main() -> None:
    """Time models in every place that there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--shape", action="append", default=[], type=sizes)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=WORK / "web")
    given = parser.parse_args()
    folder = given.output.resolve()
    problem = installed(folder)
    if problem:
        print(f"SKIPPED: {problem}")
        return
    models, shapes = (given.models, dict(given.shape)) if given.models else shipped(folder)
    right = prepared(models, shapes, folder)
    failed = False
    for place, name in PLACES.items():
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        if place == "chromium" and not Path(chromium).is_file():
            print(f"{name}: SKIPPED, there is no {chromium} (apt-get install chromium)")
            continue
        command = ["node", "run.js", str(folder), place, str(given.runs)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            failed = True
            print(f"{name}: FAILED\n{done.stderr.strip()[-2000:]}")
            continue
        found = json.loads(done.stdout)
        error = difference(found["outputs"], right)
        failed |= not error <= TOLERANCE
        target = folder / f"result_{place}.json"
        target.write_text(json.dumps(found["result"]), "utf-8")
        print(f"{name}: outputs differ from Python's by {error:.1e}; wrote {target}")
        if found["result"]["target"]["webgpu"] is False:
            print("WebGPU: SKIPPED, the browser has no adapter")
        Console(width=160).print(benches.tables([bench_import(target)]))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
