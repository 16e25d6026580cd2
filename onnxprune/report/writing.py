"""Reports as files: HTML, Markdown or JSON, by the suffix of the path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from onnxprune.errors import OnnxPruneError
from onnxprune.report import prunings
from onnxprune.report.markdown import markdown
from onnxprune.report.page import page, plotly
from onnxprune.report.sections import Document
from onnxprune.results import Report

Data = Mapping[str, Any]
RENDERED: Final[Mapping[str, Callable[[Document], str]]] = {".html": page, ".md": markdown}
JSON: Final = ".json"


def check(path: Path) -> None:
    """Refuse, before any work is done, what can't be written in the end.

    Raises:
        OnnxPruneError: the suffix is not known, or wants a package that is not there.
    """
    suffix = path.suffix.lower()
    if suffix not in (*RENDERED, JSON):
        raise OnnxPruneError(
            f"'{path}' can't hold a report: give a path that ends in .html, .md or .json"
        )
    if RENDERED.get(suffix) is page:
        plotly()


def report_text(path: str | Path | None) -> Callable[[Report], str]:
    """What the file of a report on pruning holds; JSON where there is no path.

    Raises:
        OnnxPruneError: see ``check``.
    """
    if path is None:
        return Report.to_json
    place = Path(path)
    check(place)
    return lambda report: rendered(place, report.to_json(), prunings.document)


def rendered(path: Path, text: str, document: Callable[[Data], Document]) -> str:
    """What is written to a path.

    Args:
        path: where to; its suffix says what.
        text: the report as JSON, the one source of every figure.
        document: its sections.

    Raises:
        OnnxPruneError: see ``check``.
    """
    check(path)
    render = RENDERED.get(path.suffix.lower())
    return text if render is None else render(document(json.loads(text)))
