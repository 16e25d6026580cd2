"""A report as Markdown, with the tables of the page; charts show nothing that they have not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from onnxprune.report.sections import Block, Chart, Code, Document, Table, written

_MEANT: Final = re.compile(r"([\\`*\[\]<&|~]|^[>#+-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def markdown(document: Document) -> str:
    """The report; it ends with a newline."""
    lines = [f"# {text(document.title)}", ""]
    for section in document.sections:
        lines += [f"## {text(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines).rstrip("\n") + "\n"


def text(own: str) -> str:
    """A text that means itself: one line, without markup."""
    return _MEANT.sub(r"\\\1", " ".join(own.split()))


def _block(block: Block) -> Iterator[str]:
    match block:
        case str():
            yield from (text(block), "")
        case Code():
            yield from (*(f"    {line}" for line in block.text.splitlines()), "")
        case Table():
            yield from (*_table(block), "")
        case Chart():
            pass


def _table(table: Table) -> Iterator[str]:
    yield _row(text(column.title) for column in table.columns)
    yield _row("---:" if numeric else "---" for numeric in table.numeric())
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        yield _row(text(written(cell, column.share)) for column, cell in cells)


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
