"""Charts as plotly's data and layout. Names are text: plotly reads some HTML in labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from onnxprune.report.sections import Chart, Series

LONGEST: Final = 40  # rows of a chart; the table below it has all
LABEL: Final = 28  # characters of a row's label
BAR_PX: Final = 12
GAP_PX: Final = 12
FRAME_PX: Final = 130
PLOT_PX: Final = 320
# Tell apart in grey and for the colour-blind (Okabe and Ito); the first two are before and after.
COLOURS: Final = (
    *("#8c959f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"),
)
GRID: Final = {"gridcolor": "#e5e7eb", "zerolinecolor": "#9ca3af", "automargin": True}


def figure(chart: Chart) -> dict[str, Any]:
    """What ``Plotly.newPlot`` is given."""
    chosen = shown(chart)
    rows = [short(chart.labels[k]) for k in chosen]
    if chart.kind == "boxes":
        rows = [short(own.name) for own in chart.series]
    figures = {**GRID, "title": {"text": text(chart.figures)}, "rangemode": "tozero"}
    if chart.kind == "lines":
        axes = {**GRID, "title": {"text": text(chart.other)}}, figures
    else:
        axes = figures, _rows(rows)
    thick = BAR_PX * (len(chart.series) if chart.kind == "bars" else 1) + GAP_PX
    layout = {
        "height": FRAME_PX + (thick * len(rows) if rows else PLOT_PX),
        "margin": {"l": 8, "r": 16, "t": 8, "b": 48},
        "font": {"family": "system-ui, sans-serif", "color": "#1f2328"},
        "colorway": list(COLOURS[1:] if len(chart.series) == 1 else COLOURS),
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        "showlegend": len(chart.series) > 1 and chart.kind != "boxes",
        "barmode": "group",
        "dragmode": False,  # a finger scrolls the page
        "xaxis": axes[0],
        "yaxis": axes[1],
    }
    traces = [_trace(chart, own, k, chosen) for k, own in enumerate(chart.series)]
    return {"data": traces, "layout": layout}


def _rows(labels: Sequence[str]) -> dict[str, Any]:
    """An axis with a row for each label, the first on top; labels may be the same."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": list(labels)}
    return {**GRID, **ticks, "range": [len(labels) - 0.5, -0.5], "zeroline": False}


def shown(chart: Chart) -> list[int]:
    """The rows of a chart, in order: the largest, where there are many."""
    if chart.kind not in ("bars", "intervals"):
        return []
    worth = [max(own.values[k] or 0 for own in chart.series) for k in range(len(chart.labels))]
    largest = sorted(range(len(worth)), key=lambda k: -worth[k])[:LONGEST]
    return sorted(largest)


def short(name: str) -> str:
    """The name as a label: its end says more than its start."""
    return text(name if len(name) <= LABEL else f"…{name[1 - LABEL :]}")


def text(own: str) -> str:
    """A text in which plotly finds no markup."""
    return escape(own, quote=False)


def _trace(chart: Chart, own: Series, number: int, chosen: Sequence[int]) -> dict[str, Any]:
    named = {"name": text(own.name)}
    if chart.kind == "lines":
        line = {"x": list(own.places), "y": _finite(own.values), "mode": "lines+markers"}
        return {"type": "scatter", **named, **line}
    if chart.kind == "boxes":
        x = _finite(own.values)
        return {"type": "box", **named, "x": x, "y": [number] * len(x), "orientation": "h"}
    rows = {
        "x": _finite(own.values[k] for k in chosen),
        "y": list(range(len(chosen))),
        "customdata": [text(chart.labels[k]) for k in chosen],
        "hovertemplate": "%{customdata}: %{x}<extra>" + named["name"] + "</extra>",
        "orientation": "h",
    }
    if chart.kind == "bars":
        return {"type": "bar", **named, **rows}
    error = {
        "type": "data",
        "symmetric": False,
        "array": _finite(own.high[k] - (own.values[k] or 0) for k in chosen),
        "arrayminus": _finite((own.values[k] or 0) - own.low[k] for k in chosen),
    }
    return {"type": "scatter", "mode": "markers", **named, **rows, "error_x": error}


def _finite(values: Iterable[float | None]) -> list[float | None]:
    """The values as JSON has them: it knows no infinity."""
    return [None if own is None or not math.isfinite(own) else own for own in values]
