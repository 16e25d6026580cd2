"""The typer application: its errors become one line on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from onnxprune.errors import GateError, OnnxPruneError

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERNAL: Final = 3
INTERRUPTED: Final = 130
DEBUG: Final = "--debug"


class _Commands(TyperGroup):
    """All commands; errors become one line on stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``--debug`` may stand behind the command as well."""
        own = args[: args.index("--")] if "--" in args else args
        if DEBUG in own:
            args = [DEBUG, *(text for text in own if text != DEBUG), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GateError as error:
            raise _ends(str(error), FAILED) from error
        except OnnxPruneError as error:
            raise _ends(str(error), BAD_INPUT) from error
        except BrokenPipeError:
            raise  # the reader of stdout has gone: nobody is there to tell
        except OSError as error:
            where = f"'{error.filename}': " if error.filename else ""
            raise _ends(f"{where}{error.strerror or error}", BAD_INPUT) from error
        except MemoryError as error:
            raise _ends("there is not enough memory for this model", BAD_INPUT) from error
        except KeyboardInterrupt as error:
            raise _ends("interrupted", INTERRUPTED) from error
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise  # typer's own: it tells of them itself
            raise _bug(error, ctx.params["debug"]) from error


def _bug(error: Exception, debug: bool) -> typer.Exit:
    """An error that nobody foresaw, in a sentence; with the traceback where that is asked for."""
    if debug:
        typer.echo("".join(traceback.format_exception(error)), err=True)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    how = f"with the traceback that {DEBUG} shows" if not debug else "with this traceback"
    return _ends(
        f"internal error: {text}; this is a bug of onnxprune: please report it {how}", INTERNAL
    )


def _ends(text: str, code: int) -> typer.Exit:
    typer.echo(f"onnxprune: {text}", err=True)
    return typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    name="onnxprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 a gate or the verification failed, and no model was written; "
    "2 bad input; 3 an internal error; 130 interrupted.",
)


def _end(number: int, _: object) -> None:
    """Leave as after Ctrl-C where a system asks for it, so that no temporary file stays."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _end)
    try:
        app(prog_name="onnxprune")
    except KeyboardInterrupt:  # before a command began
        typer.echo("onnxprune: interrupted", err=True)
        sys.exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"onnxprune {version('onnxprune')}")
        raise typer.Exit


@app.callback()
def onnxprune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            DEBUG, envvar="ONNXPRUNE_DEBUG", help="Show the traceback of an internal error."
        ),
    ] = False,
) -> None:
    """A structured pruning compiler for ONNX: any .onnx in, a proven smaller .onnx out."""
