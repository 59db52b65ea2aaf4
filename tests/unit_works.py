"""Work for engines that goes wrong on purpose; other processes find it here."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from ndtorch.scale.ledger import Entry
from ndtorch.scale.stopping import check_stopped
from ndtorch.scale.units import SourceFile, Unit

PATIENCE = 120.0
"""Seconds that anything may take, on a machine that does much else."""


def units(count: int) -> list[Unit]:
    """Units of one file each, which nobody has to be able to read."""
    return [Unit(number, (SourceFile(f"{number}.npy", f"{number}.npy", 1, ""),)) for number in range(count)]


def entry(unit: Unit) -> Entry:
    return Entry(unit.number, f"made by {os.getpid()}", ())


@dataclass(frozen=True)
class Plain:
    """Does nothing, and says which process it was."""

    def __call__(self, unit: Unit) -> Entry:
        return entry(unit)


@dataclass(frozen=True)
class Dies:
    """Kills its process on some units, so often for each; a file for each death counts."""

    folder: str
    numbers: tuple[int, ...]
    times: int = 1
    signal: int = signal.SIGKILL

    def __call__(self, unit: Unit) -> Entry:
        deaths = len(list(Path(self.folder).glob(f"death-{unit.number}-*")))
        if unit.number in self.numbers and deaths < self.times:
            (Path(self.folder) / f"death-{unit.number}-{deaths}").touch()
            if not self.signal:
                os._exit(3)
            os.kill(os.getpid(), self.signal)
            time.sleep(PATIENCE)
        return entry(unit)


@dataclass(frozen=True)
class Raises:
    """Raises on some units."""

    error: Exception
    numbers: tuple[int, ...] = (1,)

    def __call__(self, unit: Unit) -> Entry:
        if unit.number in self.numbers:
            raise self.error
        return entry(unit)


class UnpicklableError(Exception):
    """Holds what no pickle can hold."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.function = lambda: None


class ForgetfulError(Exception):
    """Can be pickled, and not be made again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


@dataclass(frozen=True)
class RaisesOddly:
    """Raises what does not travel."""

    is_forgetful: bool

    def __call__(self, unit: Unit) -> Entry:
        raise ForgetfulError("it went ", "wrong") if self.is_forgetful else UnpicklableError("it went wrong")


@dataclass(frozen=True)
class AnswersOddly:
    """Gives what cannot be pickled."""

    def __call__(self, unit: Unit) -> Entry:
        return lambda: None  # type: ignore[return-value]


@dataclass(frozen=True)
class Talks:
    """Prints and warns in every way there is."""

    def __call__(self, unit: Unit) -> Entry:
        print("a print")
        os.write(1, b"a write to stdout\n")
        print("an error", file=sys.stderr)
        warnings.warn("a warning", stacklevel=1)
        return entry(unit)


@dataclass(frozen=True)
class Waits:
    """Leaves its process id in a folder and goes on until it is told to stop, or killed."""

    folder: str
    after: int = field(default=0)

    def __call__(self, unit: Unit) -> Entry:
        if unit.number < self.after:
            return entry(unit)
        (Path(self.folder) / f"pid-{unit.number}").write_text(str(os.getpid()))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            check_stopped()
            time.sleep(0.02)
        return entry(unit)
