"""Mobile: what NNAPI and CoreML would take of a model, and the format of mobile builds.

Which nodes they take is what ONNX Runtime's own usability checker says, by its tables of operators;
on the device, the sizes and attributes of a node count, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort

from onnxprune import providers
from onnxprune.errors import OnnxPruneError
from onnxprune.files import Write, together
from onnxprune.target import Target

ORT_FORMAT: Final = ".ort"
UNLAID: Final = (
    "the .ort file is not laid out for this machine's processor, so that it runs on any: on x86 "
    "its convolutions are slower than those of the same model as .onnx, which is what was measured"
)
ADVICE: Final = {"YES": "yes", "MAYBE": "maybe", "NO": "no"}


@dataclass(frozen=True)
class Usability:
    """What one mobile provider would take of a model.

    Attributes:
        provider: ``nnapi``, ``coreml-mlprogram`` or ``coreml-neuralnetwork``.
        nodes: nodes of the model, after the basic optimisations.
        taken: how many it would take.
        partitions: into how many parts they fall: each costs a copy to the device and back.
        refused: the operators that it does not know, sorted.
        dynamic: nodes that it would take if their inputs had fixed sizes.
        worth: whether the checker advises to try: yes, maybe, no.
    """

    provider: str
    nodes: int
    taken: int
    partitions: int
    refused: tuple[str, ...]
    dynamic: int
    worth: str


def usability(proto: onnx.ModelProto, folder: Path | None) -> tuple[Usability, ...]:
    """What NNAPI and CoreML would take of a model, as far as it can be told without the device.

    Raises:
        RunError: ONNX Runtime can't load the model.
        OnnxPruneError: this onnxruntime has no usability checker.
    """
    try:
        from onnxruntime.tools.mobile_helpers import usability_checker as checker
    except ImportError as error:
        raise OnnxPruneError(
            f"onnxruntime {ort.__version__} has no mobile usability checker: update the package"
        ) from error
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "basic.onnx"

        def write(options: ort.SessionOptions) -> None:
            options.optimized_model_filepath = str(file)

        providers.open_session(proto, folder, Target(optimization="basic"), write)
        # Shapes are inferred without the weights' values, which may be large and lie outside.
        light = onnx.load(str(file), load_external_data=False)
    shaped = onnx.shape_inference.infer_shapes(light)
    coreml = partial(checker.check_coreml_partitions, require_fixed_input_sizes=True)
    checks: dict[str, Callable[[onnx.ModelProto], Any]] = {
        "nnapi": partial(checker.check_nnapi_partitions, require_fixed_input_sizes=True),
        "coreml-mlprogram": partial(coreml, config_filename="coreml_supported_mlprogram_ops.md"),
        "coreml-neuralnetwork": partial(
            coreml, config_filename="coreml_supported_neuralnetwork_ops.md"
        ),
    }
    return tuple(_usability(name, check(shaped)) for name, check in checks.items())


def _usability(name: str, found: Any) -> Usability:
    return Usability(
        name,
        found.num_nodes,
        found.num_supported_nodes,
        found.num_partitions,
        tuple(sorted(op.removeprefix("ai.onnx:") for op in found.unsupported_ops)),
        found.nodes_unsupported_due_to_dynamic_input,
        ADVICE[found.suitability().name] if found.num_nodes else "no",
    )


def write_ort(
    proto: onnx.ModelProto, folder: Path | None, path: Path, write: Write | None = None
) -> None:
    """Write a model in ORT's own format, which mobile builds load, atomically.

    Fused, but not laid out for this machine's processor (no NCHWc), as ORT's converter does it.

    Args:
        proto: the model.
        folder: where its external data lies.
        path: where to, ending in ``.ort``; all weights go inside.
        write: from ``files.together``, where other files are to appear with it.

    Raises:
        RunError: ONNX Runtime can't load the model.
        OnnxPruneError: the file can't be written.
    """
    if write is None:
        with together() as own:
            return write_ort(proto, folder, path, own)

    def fill(place: Path) -> None:
        def configure(options: ort.SessionOptions) -> None:
            options.optimized_model_filepath = str(place)
            options.add_session_config_entry("session.save_model_format", "ORT")

        providers.open_session(proto, folder, Target(), configure, skip=("NchwcTransformer",))

    return write(path, fill)
