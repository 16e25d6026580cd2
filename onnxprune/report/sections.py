"""What a written report consists of, as data: sections of texts, tables and charts.

``page`` and ``markdown`` render them. Cells are the JSON's own figures, so that a table can't say
anything else; how a figure is written is decided here, once for all renderers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Cell = str | int | float | bool | None
Kind = Literal["bars", "lines", "boxes", "intervals"]
LARGE: Final = 1e5  # from here on a figure is written without decimals


@dataclass(frozen=True)
class Column:
    """A column: its title, and whether its figures are shares, written in percent."""

    title: str
    share: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self) -> tuple[bool, ...]:
        """By column whether it holds figures alone."""
        columns = zip(*self.rows, strict=True)
        return tuple(not any(isinstance(own, str | bool) for own in column) for column in columns)


@dataclass(frozen=True)
class Series:
    """Figures of a chart that belong together.

    Attributes:
        name: what they are of.
        values: the figures; None leaves a gap.
        places: where they lie on the other axis; for lines alone.
        low, high: the intervals around them; for intervals alone.
    """

    name: str
    values: tuple[float | None, ...]
    places: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart, which shows nothing that no table has.

    Attributes:
        kind: bars and intervals have a row for each label, boxes one for each series; lines have
            places.
        title: what it shows.
        figures: the title of the axis of the figures, with their unit.
        series: the figures.
        labels: the rows.
        other: the title of the other axis.
    """

    kind: Kind
    title: str
    figures: str
    series: tuple[Series, ...]
    labels: tuple[str, ...] = ()
    other: str = ""


@dataclass(frozen=True)
class Code:
    """A text to be pasted into a shell."""

    text: str


Block = str | Table | Chart | Code


@dataclass(frozen=True)
class Section:
    """A part of a report under a title of its own; without blocks it is not shown."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: tuple[Section, ...]


def table(columns: Iterable[str | Column], rows: Iterable[Iterable[Cell]]) -> tuple[Table, ...]:
    """The table, or nothing where it has no rows."""
    titles = tuple(Column(own) if isinstance(own, str) else own for own in columns)
    cells = tuple(tuple(row) for row in rows)
    assert all(len(row) == len(titles) for row in cells)
    return (Table(titles, cells),) if cells else ()


def facts(found: Mapping[str, Any]) -> tuple[Table, ...]:
    """A table of names and values; what is empty is left out."""
    kept = {name: own for name, own in found.items() if own not in (None, "", [], {}, ())}
    return table(("what", "value"), ((name, plain(own)) for name, own in kept.items()))


def columns_of(rows: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> list[list[Cell]]:
    """Rows of a table from rows of the JSON."""
    wanted = list(keys)
    return [[plain(row.get(key)) for key in wanted] for row in rows]


def plain(value: Any) -> Cell:
    """A value of the JSON as a cell: a list of names as such, other structures as JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and all(isinstance(own, str) for own in value):
        return ", ".join(value)
    return json.dumps(value, sort_keys=True)


def written(cell: Cell, share: bool = False) -> str:
    """A cell as people read it: whole numbers in full, others with five digits."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if share:
        return f"{100 * cell:.1f} %"
    if isinstance(cell, int) or (math.isfinite(cell) and abs(cell) >= LARGE):
        return f"{cell:,.0f}" if isinstance(cell, float) else f"{cell:,}"
    return f"{cell:.5g}"
