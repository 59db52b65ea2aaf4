"""The commands that look into files, `inspect` and `report`. None of them needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import From, Name


def add_to(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command("inspect", short_help="List the arrays of a file, from its headers alone.")(inspect_file)
    app.command("report", short_help="Write a page that shows the arrays of a file.")(report_file)


def inspect_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, folder, pattern or URL of arrays.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Read the values too: extremes, mean, NaN, inf.")] = False,
    from_format: From = None,
    name: Name = None,
) -> None:
    """List the arrays of a file: dtype, shape, order, bytes, compression; reads headers only."""
    from .._inspect import inspect, printed

    typer.echo(printed(inspect(file, name=name, format=from_format, stats=stats), as_json=as_json))


def report_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, folder, pattern or URL of arrays.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE", help="The page to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace PAGE if it exists.")] = False,
    max_elements: Annotated[int, typer.Option(min=1, help="Values of each array that the page holds at most.")] = 1
    << 20,
    from_format: From = None,
    name: Name = None,
) -> None:
    """Write a page that shows the arrays of a file: tables, histograms, pictures, heat maps; needs no network."""
    from .._report import report

    written = report(file, output, overwrite=overwrite, max_elements=max_elements, format=from_format, name=name)
    typer.echo(f"{written}: {written.stat().st_size:,} bytes")
