"""Bars on a terminal while long work goes on: how much, how fast, how long to go. Nothing anywhere else."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import typer

from .printing import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from .._convert_many import Planned

SHOWN_AFTER = 1.0
"""Seconds of work from which on there are bars."""

_LONGEST = 40  # characters of a label


class Bars:
    """A bar for all files together, and one for each file that is being worked on.

    Args:
        total: Bytes of all files.
        count: How many files there are.
        wanted: Whether there may be bars at all; even then there are none unless stderr is a terminal.

    Attributes:
        count: How many files there are.
    """

    def __init__(self, total: int, count: int, *, wanted: bool = True) -> None:
        self._total = total
        self.count = count
        self._is_wanted = wanted and _is_terminal()
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._whole: TaskID | None = None
        self._tasks: dict[Planned, TaskID] = {}
        self._done: dict[Planned, int] = {}
        self._sum = 0
        self._finished = 0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, one: Planned, nbytes: int) -> None:
        """Say that more of a file is done; from any thread."""
        if not self._is_wanted:
            return
        with self._lock:
            self._done[one] = self._done.get(one, 0) + nbytes
            self._sum += nbytes
            if self._progress is None and time.monotonic() - self._begun >= SHOWN_AFTER:
                self._progress = self._shown()
            if self._progress is None:
                return
            if one not in self._tasks:
                self._tasks[one] = self._progress.add_task(_short(one.pair.shown_target), total=one.nbytes)
            self._progress.update(self._tasks[one], completed=min(self._done[one], one.nbytes))
            if self._whole is not None:
                self._progress.update(self._whole, completed=min(self._sum, self._total))

    def finish(self, one: Planned) -> None:
        """Say that a file is done with."""
        with self._lock:
            self._finished += 1
            if self._progress is None:
                return
            if one in self._tasks:
                self._progress.remove_task(self._tasks.pop(one))
            if self._whole is not None:
                self._progress.update(self._whole, description=self._summary())

    def print(self, line: str, *, is_error: bool = False) -> None:
        """Print a line on stdout or stderr, above the bars if they are on the same terminal."""
        _print(self._progress, line, is_error=is_error)

    def _summary(self) -> str:
        return f"{self._finished} of {self.count} files"

    def _shown(self) -> Progress:
        progress = _new_progress()
        if self.count > 1:
            self._whole = progress.add_task(self._summary(), total=self._total)
        progress.start()
        return progress


class UnitBar:
    """One bar for all units of a conversion into shards.

    Args:
        total: Bytes of all units.
        count: How many units there are.
        wanted: Whether there may be a bar at all; even then there is none unless stderr is a terminal.
    """

    def __init__(self, total: int, count: int, *, wanted: bool = True) -> None:
        self._total = total
        self._count = count
        self._is_wanted = wanted and _is_terminal()
        self._begun = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._sum = self._finished = 0

    def __enter__(self) -> UnitBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def finish(self, nbytes: int) -> None:
        """Say that a unit of so many bytes is done with."""
        self._finished += 1
        self._sum += nbytes
        if self._progress is None and self._is_wanted and time.monotonic() - self._begun >= SHOWN_AFTER:
            self._progress = _new_progress()
            self._task = self._progress.add_task("", total=self._total)
            self._progress.start()
        if self._progress is not None and self._task is not None:
            text = f"{self._finished} of {self._count} units"
            self._progress.update(self._task, completed=self._sum, description=text)

    def print(self, line: str, *, is_error: bool = False) -> None:
        """Print a line on stdout or stderr, above the bar if it is on the same terminal."""
        _print(self._progress, line, is_error=is_error)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _print(progress: Progress | None, line: str, *, is_error: bool) -> None:
    if progress is not None and (is_error or sys.stdout.isatty()):
        from rich.text import Text

        progress.console.print(Text(line), soft_wrap=True)
    else:
        typer.echo(line, err=is_error)


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(file=sys.stderr, force_terminal=True, highlight=False, markup=False, emoji=False)
    columns = (BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _short(label: str) -> str:
    label = printable(label)
    return label if len(label) <= _LONGEST else f"...{label[3 - _LONGEST :]}"
