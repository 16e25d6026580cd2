"""Shares and times as people read them; see ``onnxprune.amounts`` for counts and sizes."""

from __future__ import annotations

from typing import Final

THOUSAND: Final = 1000


def removed(before: float, after: float) -> str:
    """The share that went, in percent; ``-`` where there was nothing."""
    return f"{100 * (before - after) / before:.1f} %" if before else "-"


def seconds(number: float) -> str:
    """Seconds; short times in milliseconds."""
    return f"{number:.1f} s" if number >= 1 else f"{THOUSAND * number:.0f} ms"


def milliseconds(number: float) -> str:
    """Milliseconds with three digits; long times in seconds."""
    if number >= THOUSAND:
        return f"{number / THOUSAND:.2f} s"
    return f"{number:.{max(0, 3 - len(str(int(number))))}f} ms"
