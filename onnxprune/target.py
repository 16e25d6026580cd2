"""What a model runs on: an execution provider, its options, and the threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """Where latency is measured.

    Attributes:
        ep: the short name of an execution provider.
        threads: threads inside an operator.
        options: the provider's own options.
    """

    ep: str = "cpu"
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
