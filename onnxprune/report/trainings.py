"""What training did, in a few lines."""

from __future__ import annotations

from typing import Any


def trained(found: Any) -> str:
    """The lines of ``onnxprune.training.tuning.Trained``."""
    first, last = found.loss
    lines = [
        f"{found.name}: {found.steps} steps in {found.seconds:.0f} s; the mean loss of an epoch "
        f"went from {first:.4g} to {last:.4g}"
    ]
    own = found.evaluation
    if own is not None:
        lines.append(
            f"{own.metric} on {own.samples} samples: {own.before:.4f} -> {own.after:.4f} "
            f"(epoch {found.best_epoch})"
        )
    else:
        lines.append(f"the weights of epoch {found.best_epoch} were kept")
    if not found.best_epoch:
        lines.append("no epoch was better than the start: the weights are as they were")
    lines.append(
        "proved: ONNX Runtime's outputs of the written graph differ from torch's by at most "
        f"{found.error:.1e} of the largest value"
    )
    return "\n".join(lines)
