"""Own cases of the commuting square, by operator; the modules follow those of onnxprune.rules."""

from __future__ import annotations

from functools import lru_cache

from tests.laws.cases import attention, elementwise, folding, integers, linear, shaping
from tests.laws.nodes import Case


@lru_cache(maxsize=1)
def table() -> dict[str, list[Case]]:
    """Cases by operator."""
    found: dict[str, list[Case]] = {}
    for module in (attention, elementwise, folding, integers, linear, shaping):
        for case in module.cases():
            found.setdefault(case.op, []).append(case)
    return found
