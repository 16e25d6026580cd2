"""Amounts and shares as people write them, and as they read them."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Final

from onnxprune.errors import OnnxPruneError

POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_NUMBER: Final = r"(\d+\.?\d*|\.\d+)"
_AMOUNT: Final = re.compile(_NUMBER + r"(e\d+)?\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_PERCENT: Final = re.compile(_NUMBER + r"\s*%")
THOUSAND: Final = 1000
PERCENTS: Final = 100
DIGITS: Final = 3


def amount(value: float | str) -> float:
    """``0.5`` or ``50%`` (a fraction), ``2000000``, ``2MB``, ``512KiB``, ``1.5G``.

    Raises:
        OnnxPruneError: it is none of these, not above 0, or above 100 %.
    """
    if isinstance(value, Real):
        return _meant(float(value), value)
    text = str(value).strip()
    percent, found = _PERCENT.fullmatch(text), _AMOUNT.fullmatch(text)
    if not isinstance(value, str) or (percent is None and not _is_amount(found)):
        raise OnnxPruneError(
            f"the amount '{value}' can't be read: give a fraction such as 0.5 or 50%, or a number "
            "such as 2000000, 2MB, 512KiB or 1.5G"
        )
    if percent is not None:
        number = float(percent[1]) / 100
        if number > 1:
            raise OnnxPruneError(f"the amount '{value}' is more than all: give at most 100%")
    else:
        assert found is not None
        thousand = 1024.0 if found[4] else 1000.0
        number = float(found[1] + (found[2] or "")) * thousand ** POWERS[found[3].upper()]
    if not 0 < number < math.inf:
        raise OnnxPruneError(f"the amount '{value}' leaves nothing: give one above 0")
    return number if text[-1].isalpha() or percent is not None else _meant(number, value)


def _meant(number: float, value: float | str) -> float:
    """The number, unless it is too small for an amount and too large for a share."""
    if 1 < number <= PERCENTS:
        raise OnnxPruneError(
            f"the amount '{value}' is more than all of anything, and too little for a number: give "
            f"{number:g}% or {number / PERCENTS:g} for a share"
        )
    return number


def _is_amount(found: re.Match[str] | None) -> bool:
    """Whether it is more than the letters of one: an ``i`` wants a power before it."""
    return found is not None and not (found[4] and not found[3])


def share(value: float | str) -> float:
    """``0.5`` or ``50%``; whether it lies in range is not looked at.

    Raises:
        OnnxPruneError: it is neither.
    """
    if isinstance(value, Real):
        return float(value)
    percent = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        return float(percent[1]) / 100 if percent is not None else float(value)
    except (TypeError, ValueError) as error:
        raise OnnxPruneError(
            f"the share '{value}' can't be read: give one such as 0.5 or 50%"
        ) from error


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
