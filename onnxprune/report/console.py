"""Where results and progress go: results to stdout, progress to a terminal's stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType

WIDE: Final = 160  # columns where stdout is a file or a pipe


def show(what: RenderableType) -> None:
    """Print to stdout; names are printed as they are, without markup or emoji."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    console = Console(width=wide, markup=False, emoji=False, highlight=False)
    console.print(what, soft_wrap=isinstance(what, str))


@contextmanager
def progress(wanted: bool, passes: int | None = None) -> Iterator[Callable[[str], None] | None]:
    """A bar on stderr, gone when the work is done; None where nobody would see it.

    Args:
        wanted: whether the user wants to see it at all.
        passes: how many passes will be told; None for a spinner alone.

    Yields:
        a function that is told the name of each pass as it starts; what it is at inside one
        follows a colon.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("read", total=passes, completed=-1 if passes else 0)

        def tell(name: str) -> None:
            bar.update(task, description=name, advance=":" not in name)

        yield tell
