"""A report as one HTML page that needs nothing else: no network, no files beside it.

Cells hold the exact figure in the ``value`` of a ``data`` element, and what people read as its
text. The page forbids itself every address (Content-Security-Policy), so that none can slip in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

from onnxprune.errors import OnnxPruneError
from onnxprune.report.charts import LONGEST, figure
from onnxprune.report.sections import Block, Cell, Chart, Code, Column, Document, Table, written

FOLDED: Final = 25  # rows of a table, from which on it is folded
POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
STYLE: Final = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 16px 20px 64px; background: #fff;
  color: #1f2328; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem }
h3 { margin: 1.4rem 0 0; font-size: 1rem } a { color: #0550ae }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0; padding: 0; list-style: none }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid #d0d7de; border-radius: 6px }
.scroll:focus-visible { outline: 3px solid #0550ae }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e5e7eb; text-align: left;
  vertical-align: top }
th { font-weight: 600 } thead th { background: #f6f8fa } tbody th { font-weight: 400 }
tbody th, td { max-width: 30rem; overflow-wrap: break-word } tbody th { min-width: 8rem }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tbody tr:last-child > * { border-bottom: 0 }
pre { padding: .7rem; background: #f6f8fa; border-radius: 6px; white-space: pre-wrap }
summary { cursor: pointer; color: #0550ae }
.chart { min-height: 120px } .aside { color: #57606a; font-size: .875rem; margin: .2rem 0 }
@media (max-width: 600px) { body { padding: 8px 12px 48px } }
@media print { .scroll { overflow: visible } nav { display: none } }
"""
DRAW: Final = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const options = {responsive: true, displayModeBar: false};
for (const [id, one] of Object.entries(figures)) Plotly.newPlot(id, one.data, one.layout, options);
"""


def plotly() -> str:
    """The text of plotly's JavaScript.

    Raises:
        OnnxPruneError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise OnnxPruneError(
            "a report in HTML needs plotly: install it with pip install 'onnxprune[report]', or "
            "give the report a path that ends in .md or .json"
        ) from error
    return str(get_plotlyjs())


def page(document: Document) -> str:
    """The page.

    Raises:
        OnnxPruneError: plotly is not installed.
    """
    charts: dict[str, Any] = {}
    parts = []
    for number, section in enumerate(document.sections):
        parts.append(f'<section id="s{number}"><h2>{escape(section.title)}</h2>')
        for block in section.blocks:
            parts += _block(block, section.title, charts)
        parts.append("</section>")
    links = (
        f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(document.sections)
    )
    title = escape(document.title)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<header><h1>{title}</h1></header>",
            f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>\n<main>',
            "<noscript><p>Charts need JavaScript; the tables have all figures.</p></noscript>",
            *parts,
            "</main>",
            *(_scripts(charts) if charts else ()),
            "</body>\n</html>\n",
        ]
    )


def _scripts(charts: dict[str, Any]) -> Iterator[str]:
    """The figures, what draws them, and the call. A name can't end a script element."""
    data = json.dumps(charts, allow_nan=False).replace("<", "\\u003c")
    yield f'<script type="application/json" id="figures">{data}</script>'
    library = plotly().replace("</script", "<\\/script")
    yield from (f"<script>{text}</script>" for text in (library, DRAW))


def _block(block: Block, title: str, charts: dict[str, Any]) -> Iterator[str]:
    match block:
        case str():
            yield f"<p>{escape(block)}</p>"
        case Code():
            yield f"<pre><code>{escape(block.text)}</code></pre>"
        case Table():
            yield from _table(block, title)
        case Chart():
            yield from _chart(block, charts)


def _chart(chart: Chart, charts: dict[str, Any]) -> Iterator[str]:
    key = f"chart{len(charts)}"
    charts[key] = figure(chart)
    yield f"<h3>{escape(chart.title)}</h3>"
    if len(chart.labels) > LONGEST:
        told = f"The {LONGEST} largest of {len(chart.labels)}; the table has all."
        yield f'<p class="aside">{told}</p>'
    label = escape(f"{chart.title}: a chart; the table has its figures")
    yield f'<div class="chart" id="{key}" role="img" aria-label="{label}"></div>'


def _table(table: Table, title: str) -> Iterator[str]:
    folded = len(table.rows) > FOLDED
    if folded:
        yield f"<details><summary>Table of {len(table.rows)} rows</summary>"
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
    yield "<table><thead><tr>"
    sides = ['class="n"' if numeric else "" for numeric in table.numeric()]
    yield "".join(
        f'<th scope="col" {side}>{escape(column.title)}</th>'
        for column, side in zip(table.columns, sides, strict=True)
    )
    yield "</tr></thead><tbody>"
    for row in table.rows:
        head, *cells = map(_cell, table.columns, row)
        rest = "".join(f"<td {s}>{c}</td>" for s, c in zip(sides[1:], cells, strict=True))
        yield f'<tr><th scope="row">{head}</th>{rest}</tr>'
    yield "</tbody></table></div>"
    if folded:
        yield "</details>"


def _cell(column: Column, cell: Cell) -> str:
    text = escape(written(cell, column.share))
    if cell is None or isinstance(cell, str):
        return text
    return f'<data value="{json.dumps(cell)}">{text}</data>'
