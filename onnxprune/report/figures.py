"""Numbers as people read them."""

from __future__ import annotations

from typing import Final

THOUSAND: Final = 1000
DIGITS: Final = 3


def count(number: float) -> str:
    """``1234567`` -> ``1.23 M``; below a thousand as it is."""
    return _scaled(number, ("", "k", "M", "G", "T", "P"))


def size(number: float) -> str:
    """``1234567`` bytes -> ``1.23 MB``: powers of 1000, as on the command line."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def _scaled(number: float, units: tuple[str, ...]) -> str:
    step = 0
    while number >= THOUSAND - 0.5 and step < len(units) - 1:
        number, step = number / THOUSAND, step + 1
    decimals = DIGITS - len(str(int(number))) if step else 0
    return f"{number:.{decimals}f} {units[step]}".rstrip()


def removed(before: float, after: float) -> str:
    """The share that went, in percent; ``-`` where there was nothing."""
    return f"{100 * (before - after) / before:.1f} %" if before else "-"


def seconds(number: float) -> str:
    """Seconds; short times in milliseconds."""
    return f"{number:.1f} s" if number >= 1 else f"{THOUSAND * number:.0f} ms"
