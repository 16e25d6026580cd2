"""Run tests/test_ep.py on execution providers, each in a venv of its own.

    python benchmarks/eps.py [openvino openvino-plugin webgpu qnn]

The packages exclude each other or the project's own onnxruntime, so each provider has a venv
`.venv-ep-NAME` beside the project's. One that can't be installed is skipped, with a message.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = {
    "openvino": ("onnxruntime-openvino",),
    "openvino-plugin": ("onnxruntime", "onnxruntime-ep-openvino"),
    "webgpu": ("onnxruntime", "onnxruntime-ep-webgpu"),
    "qnn": ("onnxruntime", "onnxruntime-qnn"),
}
HOUSE: Final = ("ml_dtypes", "numpy", "onnx", "onnx-graphsurgeon", "pydantic", "rich", "typer")
TESTS: Final = ("pytest", "hypothesis")
SWIFTSHADER: Final = Path("/usr/lib/chromium/vk_swiftshader_icd.json")


def environment(name: str) -> dict[str, str] | str:
    """The variables that a provider needs, or why it can't run here."""
    own = {**os.environ, "ONNXPRUNE_EP": name, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if name != "webgpu":
        return own
    if not SWIFTSHADER.is_file():
        return (
            "there is no GPU driver and no SwiftShader: apt-get install chromium libvulkan1 brings "
            "one"
        )
    own["VK_ICD_FILENAMES"] = str(SWIFTSHADER)
    own["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] = "1"
    return own


def python(name: str) -> Path | None:
    """The interpreter of the provider's venv; None where its packages can't be installed."""
    folder = ROOT / f".venv-ep-{name}"
    found, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = " ".join((*PACKAGES[name], *HOUSE, *TESTS))
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return found
    venv.create(folder, clear=True, with_pip=True)
    command = [str(found), "-m", "pip", "install", "--quiet", "--no-input"]
    options = ["--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*command, *options, *wanted.split()], check=False)
    if done.returncode:
        return None
    stamp.write_text(wanted, "utf-8")
    return found


def main() -> None:
    """Test the providers that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PACKAGES))
    names = parser.parse_args().names or list(PACKAGES)
    failed = []
    for name in names:
        if name not in PACKAGES:
            sys.exit(f"there are no tests for '{name}': give some of {', '.join(PACKAGES)}")
        variables = environment(name)
        if isinstance(variables, str):
            print(f"{name}: SKIPPED, {variables}")
            continue
        interpreter = python(name)
        if interpreter is None:
            print(f"{name}: SKIPPED, {' and '.join(PACKAGES[name])} can't be installed here")
            continue
        print(f"{name}: {' and '.join(PACKAGES[name])}", flush=True)
        options = ["-q", "-p", "no:cacheprovider", "tests/test_ep.py"]
        command = [str(interpreter), "-m", "pytest", *options]
        if subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
