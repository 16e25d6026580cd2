"""What a command reads and writes, checked before any work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from onnxprune.errors import OnnxPruneError
from onnxprune.report.console import show

if TYPE_CHECKING:
    from onnxprune.results import Report


@dataclass(frozen=True)
class Files:
    """What a command reads and writes."""

    sources: tuple[Path | None, ...]
    output: Path | None
    plan: Path | None
    report: Path | None
    dry_run: bool

    @property
    def targets(self) -> dict[str, Path]:
        """The files to write, by what they are."""
        every = {"the model": self.output, "the plan": self.plan, "the report": self.report}
        return {what: path for what, path in every.items() if path is not None}


def check(files: Files, inputs: Path | None, no_verify: bool) -> None:
    """Refuse, before any work is done, what could not be finished.

    Raises:
        OnnxPruneError: a target is a source or another target, or can't be written.
    """
    if inputs is not None and no_verify:
        raise OnnxPruneError("--inputs are for the verification, which --no-verify switches off")
    taken = {path.resolve(): "an input" for path in files.sources if path is not None}
    for what, path in files.targets.items():
        if path.resolve() in taken:
            other = taken[path.resolve()]
            raise OnnxPruneError(
                f"'{path}' is to hold {what}, but is {other} too: give another path"
            )
        taken[path.resolve()] = what
        if not path.parent.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")
        if path.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: it is a folder")
        if not os.access(path.parent, os.W_OK):
            raise OnnxPruneError(f"'{path}' can't be written: the folder may not be written to")


def finish(found: Report, files: Files, json_: bool, quiet: bool, every: bool) -> None:
    """Write the plan and the report, and print the result."""
    from onnxprune.files import write_atomically
    from onnxprune.report import tables

    def fill(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    texts = {"the plan": found.plan.to_json, "the report": found.to_json}
    targets = {} if files.dry_run else files.targets
    for what in texts.keys() & targets:
        text = texts[what]()
        write_atomically(targets[what], fill)
    if json_:
        typer.echo(found.to_json(), nl=False)
    elif not quiet:
        show(tables.report(found, every))
        for what, path in targets.items():
            show(f"wrote {what} to {path}")
        if files.dry_run:
            show("dry run: nothing was written")
