"""What a model runs on: an execution provider, its options, the threads, the optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from onnxprune.errors import OnnxPruneError

OPTIMIZATIONS: Final = ("disable", "basic", "extended", "layout", "all")

ON_THIS_CPU: Final = ("cpu", "openvino", "openvino-plugin")


@dataclass(frozen=True)
class Target:
    """Where latency is measured.

    Attributes:
        ep: the short name of an execution provider, see ``onnxprune.providers``.
        threads: threads inside an operator.
        options: the provider's own options.
        optimization: how far ONNX Runtime may rewrite the graph, one of ``OPTIMIZATIONS``; a
            float16 model runs at ``extended`` at most (see ``onnxprune.providers``).

    Raises:
        OnnxPruneError: the threads or the optimisation can't be.
    """

    ep: str = "cpu"
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    optimization: str = "all"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise OnnxPruneError(f"threads is {self.threads}: it must be at least 1")
        if self.optimization not in OPTIMIZATIONS:
            known = ", ".join(OPTIMIZATIONS)
            raise OnnxPruneError(
                f"there is no graph optimization '{self.optimization}': give one of {known}"
            )

    @property
    def one_core(self) -> bool:
        """Whether one thread of this process does it all: its CPU time then says what it takes.

        It does not wait for other processes, nor (measured for OpenVINO) does what waits for the
        thread spin.
        """
        here = self.options.get("device_type", "CPU") == "CPU"
        return self.ep in ON_THIS_CPU and self.threads == 1 and here
