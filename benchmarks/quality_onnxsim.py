"""The child that prunes one file with onnxsim, with calibration and its own recovery.

    python -m benchmarks.quality_onnxsim FOLDER REPORT

FOLDER holds `net.onnx`, the jobs `jobs.json` and the calibration inputs `inputs_SEED.npz`.
Each job is {"file", "method", "everywhere", "ratio", "seed", "recovery"}: FILE and one line of
FOLDER/done.jsonl are written.

What onnxsim 0.8 has for a network that lost channels: `apply_pruning_finetune`, ridge regression of
MatMul and Gemm weights; `recover_batch_norm` with a target model, which matches mean and spread of
convolutions that kept their width; `apply_block_finetune_all_blocks`, Adam on blocks of MatMul and
Gemm towards the original's activations. None refits a convolution.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim

from benchmarks.child import Report, do_jobs

BATCH = 64
Batches = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One pruned file that is wanted."""

    file: str
    method: str  # l1, l2, wanda
    everywhere: bool  # one threshold for all layers
    ratio: float
    seed: int = 0
    recovery: str = ""


def main() -> None:
    """Do all jobs; one that fails says why, and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path)
    wanted = parser.parse_args()
    report = Report()
    report.details["version"] = onnxsim.__version__
    original = onnxsim.simplify(onnx.load(wanted.folder / "net.onnx"))[0]

    def done(given: dict[str, Any]) -> None:
        job = Job(**given)
        onnx.save(run(original, job, wanted.folder), wanted.folder / job.file)

    do_jobs(wanted.folder, done)
    report.write(wanted.report)


def run(original: Any, job: Job, folder: Path) -> Any:
    """Prune channels and heads, then recover."""
    inputs = dict(np.load(folder / f"inputs_{job.seed}.npz"))
    count = len(next(iter(inputs.values())))
    data = [
        {name: values[i : i + BATCH] for name, values in inputs.items()}
        for i in range(0, count, BATCH)
    ]
    if job.method == "wanda":
        pruned = onnxsim.apply_structured_wanda_pruning(
            original, data, sparsity=job.ratio, global_sparsity=job.everywhere
        )
        pruned = onnxsim.apply_attention_head_wanda_pruning(pruned, data, sparsity=job.ratio)
    else:
        pruned = onnxsim.apply_structured_pruning(
            original, job.ratio, importance_norm=job.method, global_sparsity=job.everywhere
        )
        pruned = onnxsim.apply_attention_head_pruning(pruned, job.ratio)
    for step in filter(None, job.recovery.split("+")):
        pruned = RECOVERIES[step](original, pruned, data)
    return pruned


def _least_squares(original: Any, pruned: Any, data: Batches) -> Any:
    return onnxsim.apply_pruning_finetune(original, pruned, data)


def _batch_norm(original: Any, pruned: Any, data: Batches) -> Any:
    """BatchNorms behind all convolutions whose width is the original's."""
    before, after = _widths(original), _widths(pruned)
    same = [name for name, width in after.items() if before.get(name) == width]
    return onnxsim.recover_batch_norm(
        pruned, conv_output_names=same, calibration_data=data, target_model=original
    )


def _blocks(original: Any, pruned: Any, data: Batches) -> Any:
    return onnxsim.apply_block_finetune_all_blocks(original, pruned, calibration_data=data)[0]


def _widths(model: Any) -> dict[str, int]:
    """Output channels of each convolution, by the name of its result."""
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    return {
        node.output[0]: shapes[node.input[1]][0]
        for node in model.graph.node
        if node.op_type == "Conv"
    }


RECOVERIES: dict[str, Callable[[Any, Any, Batches], Any]] = {
    "least squares": _least_squares,
    "batch norm": _batch_norm,
    "blocks": _blocks,
}


if __name__ == "__main__":
    main()
