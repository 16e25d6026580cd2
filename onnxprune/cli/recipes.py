"""Recipes on the command line: a file gives what the command itself does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from typer.core import TyperCommand

# Options of which one side only can be given: what the command gives wins over the recipe.
RIVALS: Final = (
    ({"ratio"}, {"macs", "params", "size_bytes", "peak_bytes", "latency"}),
    ({"scope"}, {"per_group_from"}),
    ({"recover"}, {"no_recover"}),
    ({"inputs"}, {"no_verify"}),
)


class FromRecipe(TyperCommand):
    """A command that takes options of its own from ``--recipe FILE``, unless they are given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let the recipe's options be the defaults.

        Raises:
            OnnxPruneError: the recipe can't be read.
        """
        given = self.make_parser(ctx).parse_args(args=list(args))[0]
        if given.get("recipe") is not None:
            found = _options(Path(given["recipe"]))
            sides = [(a, b) for pair in RIVALS for a, b in (pair, pair[::-1])]
            beaten = {name for a, b in sides if a & given.keys() for name in b}
            own = {param.name for param in self.params} - beaten
            ctx.default_map = {name: value for name, value in found.items() if name in own}
        return super().parse_args(ctx, args)


def _options(path: Path) -> dict[str, Any]:
    """A recipe's options, as they would be written on the command line, by parameter."""
    from onnxprune.recipe import load_recipe

    found = load_recipe(path).model_dump(exclude_none=True)
    tables = {"rules": "rule", "ep_options": "ep_option", "per_group": "group_ratio"}
    for name, option in tables.items():
        found[option] = [f"{key}={value}" for key, value in found.pop(name, {}).items()]
    found["ort_extension"] = found.pop("ort_extensions")
    for name, between in (("mean", ","), ("std", ","), ("size", "x"), ("align", "")):
        if name in found:
            found[name] = _joined(found[name], between)
    found["no_verify"] = not found.pop("verify", True)
    recover = found.pop("recover", None)
    if recover is False:
        found["no_recover"] = True
    elif recover is not None:
        from onnxprune.cli.judged import LEAST_SQUARES

        found["recover"] = LEAST_SQUARES if recover is True else recover
    return found


def _joined(value: Any, between: str) -> str:
    return between.join(map(str, value)) if isinstance(value, list) else str(value)
