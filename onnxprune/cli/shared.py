"""Options that several commands have: written once, and handed over as one argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., None]


@dataclass(frozen=True)
class Shared:
    """A table of options.

    Attributes:
        options: by the name of the parameter: its annotation, and its default.
        made: what the command gets for their values.
    """

    options: Mapping[str, tuple[Any, Any]]
    made: Callable[[Mapping[str, Any]], Any]


def sharing(**tables: Shared) -> Callable[[Command], Command]:
    """A command with the options of tables in place of its arguments of the same names."""
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, kind, default=default, annotation=own)
        for table in tables.values()
        for name, (own, default) in table.options.items()
    ]

    def decorated(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        own = [p for p in inspect.signature(command).parameters.values() if p.name not in tables]
        every = [*(p.replace(annotation=hints[p.name], kind=kind) for p in own), *added]

        @wraps(command)
        def run(**given: Any) -> None:
            values = {
                argument: table.made({name: given.pop(name) for name in table.options})
                for argument, table in tables.items()
            }
            command(**given, **values)

        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        return run

    return decorated
