"""Layouts: the expressions over factors that say what an axis is made of (see onnxprune.axes)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Product:
    """``(a b c)``, outermost part first."""

    parts: tuple[Layout, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Sum:
    """``a + b + c``, first part first."""

    parts: tuple[Layout, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """An axis of unknown size."""


class Reason(NamedTuple):
    """Why a factor is frozen: what was found, and at which node (-1: none)."""

    text: str
    node: int = -1


Layout = int | Product | Sum | Opaque
ONE: Final = Product((), 1)
ZERO: Final = Sum((), 0)
OPAQUE: Final = Opaque()


def flattened(parts: Iterable[Layout], kind: type[Product | Sum]) -> list[Layout]:
    """The parts, those of this kind replaced by their own; parts of a normal form have none."""
    flat: list[Layout] = []
    for part in parts:
        if isinstance(part, Product | Sum) and isinstance(part, kind):
            flat.extend(part.parts)
        else:
            flat.append(part)
    return flat


def leaves(layout: Layout) -> Iterator[int]:
    """The factors that a layout names, as often as it does."""
    if isinstance(layout, int):
        yield layout
    elif isinstance(layout, Product | Sum):
        for part in layout.parts:
            yield from leaves(part)
