"""What becomes of a unit, and how that travels from another process: what cannot be pickled comes back as text."""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..._errors import NdtorchError
from ...files.remote import shown
from ..ledger import Entry
from ..units import SourceFile, Unit

_MOST_NAMES = 3  # of files in the message about a worker that died

Work = Callable[[Unit], Entry]
"""What is done with a unit. It can be pickled, and raises where the unit has failed."""


class Done(NamedTuple):
    """What became of a unit.

    Attributes:
        unit: The unit.
        entry: What was written; ``None`` where nothing was.
        error: What went wrong.
    """

    unit: Unit
    entry: Entry | None
    error: BaseException | None = None


class Answer(NamedTuple):
    """What a worker says about a unit, in what every process can read.

    Attributes:
        content: The entry or the error, pickled.
        is_error: Whether it is an error.
        frames: Where in the worker it went wrong, as text.
    """

    content: bytes
    is_error: bool
    frames: str = ""


class _WorkerError(Exception):
    """Where in a worker an error was raised: the cause of that error here, shown with its traceback."""

    def __str__(self) -> str:
        return f"in a worker\n\n{self.args[0]}"


def answered(work: Work, unit: Unit) -> Answer:
    """Do a unit in a worker."""
    try:
        return Answer(pickle.dumps(work(unit)), is_error=False)
    except Exception as error:
        return Answer(_pickled(error), is_error=True, frames=traceback.format_exc())


def done_of(unit: Unit, answer: Answer) -> Done:
    """What became of a unit, in the process that asked for it."""
    try:
        content = pickle.loads(answer.content)  # from a worker of ours
    except Exception as error:
        content = NdtorchError("convert", f"the answer of a worker cannot be read: {type(error).__name__}: {error}")
        return Done(unit, None, content)
    if not answer.is_error:
        return Done(unit, content)
    content.__cause__ = _WorkerError(answer.frames)
    return Done(unit, None, content)


def _pickled(error: Exception) -> bytes:
    """An error, or what it says where it cannot be made again from a pickle."""
    try:
        content = pickle.dumps(error)
        if type(pickle.loads(content)) is type(error):
            return content
    except Exception as refused:
        del refused  # an error may refuse in whatever way it likes
    return pickle.dumps(NdtorchError("convert", f"{type(error).__name__}: {error}"))


def worker_died(unit: Unit, why: str, times: int) -> NdtorchError:
    """The error of a unit whose worker has ended without an answer, as often as it was tried.

    Args:
        unit: The unit.
        why: What ended the worker.
        times: How many workers it was given to.
    """
    fact = f"{times} workers died on unit {unit.number}, {names_of(unit.files)}; the last one {why}"
    hint = "memory may have run out (fewer workers=), or a library cannot bear one of these files"
    return NdtorchError("convert", fact, hint=hint, files=tuple(file.path for file in unit.files))


def names_of(files: Sequence[SourceFile]) -> str:
    """The first few files of a unit, for people."""
    names = ", ".join(repr(shown(file.path)) for file in files[:_MOST_NAMES])
    more = len(files) - _MOST_NAMES
    return f"{names} and {more} more" if more > 0 else names


def how_it_ended(code: int) -> str:
    """Say how a process ended.

    >>> how_it_ended(-9), how_it_ended(1)
    ('was killed by SIGKILL', 'ended with exit code 1')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
