"""The command line: a shell over `convert_file`, `explain`, `doctor` and `_bench`. Only this module prints or exits."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from . import __version__
from ._bench import LIMIT, Row, machine
from ._bench import table as measured
from ._convert import explain as explain_array
from ._doctor import Report
from ._doctor import doctor as examine
from ._drawing import memory_word
from ._errors import NdtorchError
from ._plan import MOVABLE, Plan
from .files import Converted, convert_file, read

_PIPE_WIDTH = 10_000  # wide enough that nothing wraps in a file or a pipe
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_INTERRUPTED = 130
_UNITS = (("ns", 1e9), ("us", 1e6), ("ms", 1e3))
_THOUSAND = 1000


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
            typer.echo(f"ndtorch: {_one_line(error)}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="ndtorch",
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The bridge between NumPy and PyTorch: convert files of arrays, explain what would be shared or copied.",
)


def main() -> None:
    """Run the command line; the entry point ``ndtorch``."""
    app(prog_name="ndtorch")


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


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A .npy, .npz or .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file to write; its suffix says the format.")],
    dtype: Annotated[str | None, typer.Option(help="Cast every array of numbers, such as float32.")] = None,
    float_dtype: Annotated[str | None, typer.Option(help="Cast floating arrays only, such as bfloat16.")] = None,
    casting: Annotated[
        str, typer.Option(help="Casts that are allowed: no, equiv, safe, same_kind, unsafe or exact.")
    ] = "same_kind",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists, all or nothing.")] = False,
) -> None:
    """Convert a file of arrays into another format, and say what was copied and why."""
    words: Any = casting
    converted = convert_file(source, target, dtype=dtype, float_dtype=float_dtype, casting=words, overwrite=overwrite)
    _print_table(("array", "from", "to", "bytes", "memory"), [_converted_row(one) for one in converted], right=3)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .npy, .npz or .safetensors file.")],
    to: Annotated[str, typer.Option(help="The library whose objects are wanted: torch or numpy.")] = "torch",
) -> None:
    """Say for each array of a file what a conversion would share or copy, and why."""
    plans = {name: explain_array(array, to=to) for name, array in read(file, mapped=True).items()}
    _print_table(("array", "from", "to", "memory"), [_explained_row(name, plan) for name, plan in plans.items()])


@app.command()
def doctor() -> None:
    """Check versions, torch's NumPy bridge, fast paths, memory pages and devices; exit 1 if something fails."""
    report = examine()
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def bench(
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure conversions on this machine beside torch and NumPy: half a minute, smaller sizes than `make bench`."""
    rows = []
    for row in measured(short=True):
        rows.append(row)
        typer.echo(f"measured {row.work}", err=True)
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
        return
    typer.echo(machine())
    titles = ("work", "ours", "against", "theirs", "ratio")
    _print_table(titles, [cells for row in rows for cells in _bench_rows(row)], right=4)


# --- rows


def _converted_row(one: Converted) -> tuple[str, ...]:
    words = _memory(one.plan)
    return (one.name, str(one.plan.source), _result(one.plan), f"{one.nbytes:,}", _joined(words, one.note))


def _explained_row(name: str, plan: Plan) -> tuple[str, ...]:
    return (name, str(plan.source), _result(plan), _memory(plan))


def _result(plan: Plan) -> str:
    if plan.error is not None:
        return "-"
    if plan.leaves:
        return f"{len(plan.leaves)} fields"
    return f"{plan.dtype}[{','.join(map(str, plan.shape))}]"


def _memory(plan: Plan) -> str:
    """What happens to the bytes, why, and what else there is to know."""
    if plan.error is not None:
        return str(plan.error)
    notes = (note for note in plan.notes if note != MOVABLE)  # a command moves no tensor
    return _joined(memory_word(plan), plan.reason, *notes)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _bench_rows(row: Row) -> list[tuple[str, ...]]:
    return [
        (
            "" if i else row.work,
            "" if i else _duration(row.ours),
            "the limit" if peer == LIMIT else peer,
            _duration(theirs),
            f"{row.ratio(peer):.2f}",
        )
        for i, (peer, theirs) in enumerate(row.peers.items())
    ]


def _duration(seconds: float) -> str:
    unit, scale = next((pair for pair in _UNITS if seconds * pair[1] < _THOUSAND), ("s", 1.0))
    return f"{seconds * scale:.3g} {unit}"


# --- printing


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)
    return console


def _print_table(titles: tuple[str, ...], rows: list[tuple[str, ...]], *, right: int | None = None) -> None:
    console = _console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold" if console.is_terminal else "")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index == right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    _print_lines(console, table)


def _print_report(report: Report) -> None:
    console = _console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in report.checks:
        table.add_row(Text(check.status, _COLOURS[check.status]), Text(check.name), Text(_printable(check.fact)))
        if check.hint:
            table.add_row(Text(""), Text(""), Text(_printable(f"Hint: {check.hint}")))
    _print_lines(console, table)


def _print_lines(console: Console, table: Table) -> None:
    """Print without the blanks that a table pads its lines with."""
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _one_line(error: BaseException) -> str:
    """The message, where in the file it happened, all in one printable line."""
    if isinstance(error, OSError) and not isinstance(error, NdtorchError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    notes = getattr(error, "__notes__", [])
    return _printable(" ".join((text, *(f"({note})" for note in notes))))


def _printable(text: str) -> str:
    """Escape what a terminal would obey, and what the output's encoding has no way to say."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


if __name__ == "__main__":
    main()
