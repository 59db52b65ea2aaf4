"""`ndtorch doctor` and `ndtorch bench`: what this machine has, and how fast it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import print_lines, print_table, printable

if TYPE_CHECKING:
    from .._bench import Row
    from .._doctor import Report

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_UNITS = (("ns", 1e9), ("us", 1e6), ("ms", 1e3))
_THOUSAND = 1000


def add_to(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command("doctor", short_help="Check whether all that ndtorch stands on fits together.")(doctor)
    app.command("bench", short_help="Measure conversions here beside torch and NumPy.")(bench)


def doctor() -> None:
    """Check versions, torch's NumPy bridge, fast paths, memory pages and devices; exit 1 if something fails."""
    from .._doctor import doctor as examine

    report = examine()
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def bench(
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure conversions on this machine beside torch and NumPy: half a minute, smaller sizes than `make bench`."""
    from .._bench import machine
    from .._bench import table as measured

    rows = []
    for row in measured(short=True):
        rows.append(row)
        typer.echo(f"measured {row.work}", err=True)
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
        return
    typer.echo(machine())
    titles = ("work", "ours", "against", "theirs", "ratio")
    print_table(titles, [cells for row in rows for cells in _bench_rows(row)], right=4)


def _bench_rows(row: Row) -> list[tuple[str, ...]]:
    from .._bench import LIMIT

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


def _print_report(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in report.checks:
        table.add_row(Text(check.status, _COLOURS[check.status]), Text(check.name), Text(printable(check.fact)))
        if check.hint:
            table.add_row(Text(""), Text(""), Text(printable(f"Hint: {check.hint}")))
    print_lines(table)
