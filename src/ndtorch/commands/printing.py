"""What the command line prints: tables that survive a pipe, errors of one line in the words of its options."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import typer

from .._errors import NdtorchError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 10_000  # wide enough that nothing wraps in a file or a pipe
_CALLS = ("convert", "convert_file", "explain", "to_numpy", "to_torch")  # what the user has not called by that name

_OPTIONS = {
    "address": "--address",
    "casting": "--casting",
    "dtype": "--dtype",
    "engine": "--engine",
    "float_dtype": "--float-dtype",
    "format": "--from",
    "missing_chunks": "--missing-chunks",
    "name": "--name",
    "on_error": "--on-error",
    "overwrite": "--overwrite",
    "rank": "--rank",
    "workers": "--workers",
    "rows": "--rows",
    "to": "--to",
    "world_size": "--world",
}
_HAS_BOTH = re.compile(r"\b\w+=(?:'[^']*'|\w*) \((--[^)]+)\)")  # such as "dtype='float32' (--dtype float32)"
_ARGUMENT = re.compile(rf"\b({'|'.join(_OPTIONS)})=(?:'([^']*)'|(\w*))")
_EITHER = re.compile(r"(--casting \w+) or '(\w+)'")


def in_options(text: str) -> str:
    """Say with options of the command line what a message says with arguments of Python.

    >>> in_options("dtype='float32' (--dtype float32) holds it, casting='same_kind' or 'unsafe' accepts the loss")
    '--dtype float32 holds it, --casting same_kind or unsafe accepts the loss'
    """
    text = _HAS_BOTH.sub(lambda found: " or ".join(found[1].split(", ")), text)
    text = _ARGUMENT.sub(lambda found: _option(found[1], found[2] or found[3] or ""), text)
    return _EITHER.sub(r"\1 or \2", text)


def _option(name: str, value: str) -> str:
    return _OPTIONS[name] if value in ("", "True") else f"{_OPTIONS[name]} {value}"


def one_line(error: BaseException, about: str = "", *, has_hint: bool = True) -> str:
    """The message, where in the file it happened, all in one printable line.

    Args:
        error: What went wrong.
        about: The file that it is about, where the message does not say.
        has_hint: Whether what helps is said.
    """
    if isinstance(error, OSError) and not isinstance(error, NdtorchError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, NdtorchError):
        text = text if has_hint else text.removesuffix(f" Hint: {error.hint}.")
        command = error.facts.get("command")
        text = text.replace(error.hint, command) if error.hint and command else in_options(text)
        if error.subject in _CALLS:
            text = text.removeprefix(f"{error.subject}: ")
    notes = (_note(note) for note in getattr(error, "__notes__", []))
    text = " ".join((text, *(f"({note})" for note in notes)))
    return printable(f"{about}: {text}" if about else text)


def _note(note: str) -> str:
    return in_options(re.sub(r"^at source\['(.*?)'\]", r"at array '\1'", note))


def error_lines(error: BaseException, about: str = "", *, has_hint: bool = True, debug: bool = False) -> list[str]:
    """One line for stderr, after the traceback if that is wanted."""
    frames = "".join(traceback.format_exception(error)).splitlines() if debug else []
    return [*frames, f"ndtorch: {one_line(error, about, has_hint=has_hint)}"]


def print_table(
    titles: Sequence[str], rows: Sequence[tuple[str, ...]], *, right: int | None = None, like: Sequence[int] = ()
) -> None:
    """Print rows in columns.

    Args:
        titles: One for each column; none are printed where all are empty.
        rows: The cells.
        right: A column of numbers.
        like: Widths that the columns have at least, so that several tables are alike.
    """
    from rich.table import Table
    from rich.text import Text

    bold = "bold" if _console().is_terminal else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=bold, show_header=any(titles))
    for index, title in enumerate(titles):
        side: Literal["left", "right"] = "right" if index == right else "left"
        table.add_column(title, justify=side, overflow="fold", min_width=like[index] if like else None)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_lines(table)


def print_lines(table: Table) -> None:
    """Print without the blanks that a table pads its lines with."""
    console = _console()
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)
    return console


def printable(text: str) -> str:
    """Escape what a terminal would obey, and what the output's encoding has no way to say."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
