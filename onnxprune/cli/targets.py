"""What a command reads and writes, checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from onnxprune.cli import options
from onnxprune.cli.options import rules_of
from onnxprune.cli.shared import Shared
from onnxprune.errors import GateError, OnnxPruneError
from onnxprune.report.console import progress, show

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

    def outputs(self) -> dict[str, Path]:
        """What the library is to write: nothing in a dry run."""
        names = {"the model": "output", "the plan": "plan_output", "the report": "report_output"}
        targets = {} if self.dry_run else self.targets
        return {names[what]: path for what, path in targets.items()}


def check(files: Files, inputs: Path | None, no_verify: bool) -> None:
    """Refuse, before any work is done, what could not be finished.

    Raises:
        OnnxPruneError: there is no target, one is a source or another target, or can't be written;
            a report of this kind can't be made.
    """
    if not files.targets and not files.dry_run:
        raise OnnxPruneError(
            "nothing to write: give -o FILE, or --dry-run to see what would happen"
        )
    if inputs is not None and no_verify:
        raise OnnxPruneError("--inputs are for the verification, which --no-verify switches off")
    taken = {path.resolve(): "this command reads" for path in files.sources if path is not None}
    for what, path in files.targets.items():
        if path.resolve() in taken:
            other = taken[path.resolve()]
            raise OnnxPruneError(
                f"{what} can't be written to '{path}', which {other}: give another path"
            )
        taken[path.resolve()] = f"is to hold {what}"
        if not path.parent.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: there is no folder '{path.parent}'")
        if path.is_dir():
            raise OnnxPruneError(f"'{path}' can't be written: it is a folder")
        if not os.access(path.parent, os.W_OK):
            raise OnnxPruneError(f"'{path}' can't be written: the folder may not be written to")
    if files.report is not None:
        from onnxprune.report import writing

        writing.check(files.report)


@contextmanager
def extended(libraries: Sequence[Path]) -> Iterator[None]:
    """Sessions in the block know the operators of these libraries.

    Raises:
        OnnxPruneError: ONNX Runtime can't load one.
    """
    if not libraries:
        yield
        return
    from onnxprune.extensions import ort_extensions

    with ort_extensions(*libraries):
        yield


@dataclass(frozen=True)
class Job:
    """What the commands that prune have in common: files, proof, and what is printed."""

    output: Path | None
    report: Path | None
    dry_run: bool
    inputs: Path | None
    no_verify: bool
    rule: list[str]
    recipe: Path | None
    ort_extension: list[Path]
    json_: bool
    quiet: bool
    every: bool

    def files(self, sources: Sequence[Path], plan: Path | None = None) -> Files:
        """What is read and written, checked.

        Raises:
            OnnxPruneError: see ``check``.
        """
        read = (*sources, self.inputs, self.recipe)
        files = Files(read, self.output, plan, self.report, self.dry_run)
        check(files, self.inputs, self.no_verify)
        return files

    def given(self, files: Files) -> dict[str, Any]:
        """The arguments of the library that these options are."""
        rules = rules_of(self.rule)
        own = {"verify": not self.no_verify, "inputs": self.inputs, "rules": rules}
        return own | files.outputs()

    def printed(self, found: Report, files: Files, failed: bool = False) -> None:
        """Print the result, and what was written; of a failure that is the report alone."""
        from onnxprune.report import tables

        if self.json_:
            typer.echo(found.to_json(), nl=False)
        elif not self.quiet:
            show(tables.report(found, self.every))
            for what, path in files.targets.items():
                if not files.dry_run and (not failed or path == files.report):
                    show(f"wrote {what} to {path}")
            if files.dry_run:
                show("dry run: nothing was written")

    @contextmanager
    def progress(self, files: Files, passes: int) -> Iterator[Callable[[str], None] | None]:
        """A bar; what was tried is printed where a proof or a gate fails, before the error."""
        bar = progress(not (self.json_ or self.quiet), passes)
        try:
            with extended(self.ort_extension), bar as tell:
                yield tell
        except GateError as error:
            if error.report is not None:
                self.printed(error.report, files, failed=True)
            raise


JOB: Final = Shared(
    {
        "rule": (options.Rules, []),
        "recipe": (options.RecipeFile, None),
        "ort_extension": (options.OrtExtensions, []),
        "inputs": (options.Inputs, None),
        "no_verify": (options.NoVerify, False),
        "output": (options.Output, None),
        "report": (options.WriteReport, None),
        "dry_run": (options.DryRun, False),
        "json_": (options.AsJson, False),
        "quiet": (options.Quiet, False),
        "every": (options.All, False),
    },
    lambda given: Job(**given),
)
