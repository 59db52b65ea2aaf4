"""The command line: a shell over what Python can call. Only it and its commands print or exit."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from ._errors import NdtorchError
from .commands import convert, explain, look, machine
from .commands.printing import one_line

_INTERRUPTED = 130


class _OneLineErrors(TyperGroup):
    """Commands whose failures are one line on stderr, unless ``--debug`` asks for the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has gone, such as `head`: typer ends the process quietly
        except (NdtorchError, OSError, MemoryError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"ndtorch: {one_line(error)}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            unknown: Any = error  # typer has no public name for what it raises of an option that there is not
            if getattr(error, "option_name", "") == "--debug":
                unknown.message += f"; it comes before the command: ndtorch --debug {unknown.ctx.info_name} ..."
            raise


app = typer.Typer(
    name="ndtorch",
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The bridge between NumPy and PyTorch: convert files of arrays, explain what would be shared or copied.",
)
for _commands in (convert, explain, look, machine):
    _commands.add_to(app)


def main() -> None:
    """Run the command line; the entry point ``ndtorch``."""
    try:
        app(prog_name="ndtorch")
    except KeyboardInterrupt:  # before a command began, or after it was done
        sys.exit(_INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ndtorch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass
