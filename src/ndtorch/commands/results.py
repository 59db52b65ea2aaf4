"""What `ndtorch convert` says: tables for people, a line of JSON for each output for programs, errors for both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from .printing import error_lines, one_line, print_table, printable
from .progress import Bars

if TYPE_CHECKING:
    from .._convert_many import Outcome, Planned
    from .._pairs import Pair

_TITLES = ("array", "from", "to", "bytes", "how")
_NUMBERS = 3  # the column of bytes
_MAX_ERRORS = 20  # lines on stderr about what was found before anything was written


class Results:
    """Prints what became of files.

    Args:
        is_json: Whether programs read it.
        is_quiet: Whether people want errors only.
        debug: Whether errors come with their tracebacks.
    """

    def __init__(self, *, is_json: bool, is_quiet: bool, debug: bool) -> None:
        self._is_json = is_json
        self._is_text = not (is_json or is_quiet)
        self._debug = debug

    def plans(self, planned: Sequence[Planned]) -> None:
        """Print what would become of files."""
        if self._is_json:
            for one in planned:
                typer.echo(_record(one.pair, "failed" if one.errors else "planned", one, one.errors))
        elif self._is_text and len(planned) == 1:
            print_table(_TITLES, _rows(planned[0]), right=_NUMBERS)
        elif self._is_text:
            _print_plans(planned)

    def refused(self, errors: Mapping[Pair, Sequence[BaseException]]) -> None:
        """Print why files are not going to be converted."""
        if self._is_json:
            for pair, some in errors.items():
                typer.echo(_record(pair, "failed", None, some))
        self.errors(errors)

    def errors(self, errors: Mapping[Pair, Sequence[BaseException]]) -> None:
        """Print errors, one line each, as many as anybody reads."""
        every = [(pair, error) for pair, some in errors.items() for error in some]
        said: set[str | None] = set()  # hints, once each
        for pair, error in every[:_MAX_ERRORS]:
            hint = getattr(error, "hint", None)
            lines = error_lines(error, _about(pair, error), has_hint=hint not in said, debug=self._debug)
            typer.echo("\n".join(lines), err=True)
            said.add(hint)
        if len(every) > _MAX_ERRORS:
            typer.echo(f"ndtorch: and {len(every) - _MAX_ERRORS} more", err=True)

    def outcome(self, outcome: Outcome, bars: Bars, widths: tuple[int, int]) -> None:
        """Print what has become of one file of many, as soon as that is known."""
        one = outcome.planned
        if self._is_json:
            bars.print(_record(one.pair, outcome.status, one, outcome.errors, outcome.seconds))
        elif self._is_text and outcome.status == "converted" and bars.count > 1:
            source, target = (printable(text).ljust(width) for text, width in zip(_names(one), widths, strict=True))
            bars.print(f"{source}  {target}  {one.nbytes:>15,} bytes")
        for error in outcome.errors:
            for line in error_lines(error, _about(one.pair, error), debug=self._debug):
                bars.print(line, is_error=True)

    def summary(self, outcomes: Sequence[Outcome]) -> None:
        """Print what has become of all."""
        if not self._is_text:
            return
        done = [each.planned for each in outcomes if each.status == "converted"]
        if len(outcomes) == 1:
            for one in done:
                print_table(_TITLES, _rows(one), right=_NUMBERS)
            return
        text = f"{len(done)} of {len(outcomes)} files converted, {sum(one.nbytes for one in done):,} bytes"
        for status in ("failed", "stopped"):
            number = sum(each.status == status for each in outcomes)
            text += f", {number} {status}" if number else ""
        typer.echo(text)


def widths_of(planned: Sequence[Planned]) -> tuple[int, int]:
    """How wide the columns of names are."""
    names = [_names(one) for one in planned]
    return max(len(printable(source)) for source, _ in names), max(len(printable(target)) for _, target in names)


def _names(one: Planned) -> tuple[str, str]:
    return str(one.pair), one.pair.shown_target


def _about(pair: Pair, error: BaseException) -> str:
    """The file that an error is about; those of the system name it themselves, others mostly."""
    from ..files.remote import shown

    known = isinstance(error, OSError) or pair.shown_target in str(error)
    return "" if known or any(shown(source.path) in str(error) for source in pair.sources) else str(pair)


def _print_plans(planned: Sequence[Planned]) -> None:
    """A table for each file, with columns of one width."""
    tables = [_rows(one, "  ") for one in planned]
    widths = [max(len(printable(row[column])) for rows in tables for row in rows) for column in range(len(_TITLES))]
    for one, rows in zip(planned, tables, strict=True):
        typer.echo(printable(f"{one.pair} -> {one.pair.shown_target}"))
        print_table([""] * len(_TITLES), rows, right=_NUMBERS, like=widths)


def _rows(one: Planned, indent: str = "") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (indent + each.name, each.source, each.target or "-", f"{each.nbytes:,}", each.how) for each in one.arrays
    ]
    return rows or [(indent + "-", "-", "-", "0", "cannot be read" if one.errors else "no arrays")]


def _record(
    pair: Pair, status: str, planned: Planned | None, errors: Sequence[BaseException], seconds: float | None = None
) -> str:
    from ..files.remote import shown

    record: dict[str, Any] = {
        "sources": [shown(source.path) for source in pair.sources],
        "target": pair.shown_target,
        "format": pair.format.name,
        "status": status,
    }
    if planned is not None:
        record["bytes"] = planned.nbytes
        record["arrays"] = [
            {"name": each.name, "from": each.source, "to": each.target or None, "bytes": each.nbytes, "how": each.how}
            for each in planned.arrays
        ]
    if seconds is not None:
        record["seconds"] = round(seconds, 6)
    if errors:
        record["errors"] = [
            {"type": type(error).__name__, "message": one_line(error, _about(pair, error))} for error in errors
        ]
    return json.dumps(record)
