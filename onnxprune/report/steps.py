"""The curves of a probe, as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from onnxprune.errors import OnnxPruneError
from onnxprune.report.tables import table

if TYPE_CHECKING:
    from onnxprune.staircase import Probe

SHOWN = (64, 63, 60, 56, 48)


def table_of(found: Probe) -> RenderableType:
    """One row a kind of kernel: times at some counts, and the steps."""
    rows = table("kernel", *(f"{n} ch" for n in SHOWN), "step", "part", "off")
    for kind, curve in found.curves.items():
        times = dict(zip(curve.counts, curve.times_ms, strict=True))
        rows.add_row(
            kind,
            *(f"{1e3 * times[n]:.0f} us" if n in times else "-" for n in SHOWN),
            str(curve.block),
            str(curve.part),
            f"+{100 * curve.cliff:.0f} %" if curve.part > 1 else "-",
        )
    about = ", ".join(f"{name} {text}" for name, text in found.key.items())
    return Group(rows, "", found.summary(), about)


def check(path: Path) -> None:
    """Refuse what can't be drawn before anything is measured.

    Raises:
        OnnxPruneError: plotly is not installed, or the folder is not there.
    """
    _plotly()
    if not path.parent.is_dir():
        raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")


def draw(found: Probe, path: Path) -> None:
    """Write a page with the curves, each relative to its longest time; it needs no network.

    Raises:
        OnnxPruneError: plotly is not installed.
    """
    figure = _plotly().Figure()
    for kind, curve in found.curves.items():
        longest = max(curve.times_ms)
        figure.add_scatter(
            x=list(curve.counts),
            y=[ms / longest for ms in curve.times_ms],
            mode="lines+markers",
            name=f"{kind}: step {curve.block}, part {curve.part}",
            customdata=[1e3 * ms for ms in curve.times_ms],
            hovertemplate="%{x} channels: %{customdata:.0f} us",
        )
    figure.update_layout(
        title=found.summary(),
        xaxis_title="channels (of one group, where grouped)",
        yaxis_title="time, relative to the longest",
        yaxis_rangemode="tozero",
    )
    figure.write_html(str(path), include_plotlyjs=True, full_html=True)


def _plotly() -> ModuleType:
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise OnnxPruneError(
            "--plot needs plotly: install it with pip install 'onnxprune[report]'"
        ) from error
    found: ModuleType = graph_objects
    return found
