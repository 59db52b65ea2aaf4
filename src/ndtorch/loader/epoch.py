"""One pass over the data: groups of batches made ahead, handed out one by one."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from .._errors import NdtorchError, UnsupportedTypeError
from .ahead import Ahead, Failed
from .batches import Batches
from .dealing import Steps
from .pace import Pace
from .placement import Placement
from .surroundings import has_modes, without_modes

_NAMED_ROWS = 8  # of a batch that failed


class _Maker:
    """Makes groups of batches; knows nothing of the loop, so that a thread in the works keeps no loop alive."""

    def __init__(self, batches: Batches, placement: Placement, steps: int, group: int) -> None:
        self._batches = batches
        self._placement = placement
        self._steps = steps
        self._group = group

    def __call__(self, task: int) -> list[Any]:
        if has_modes():
            with without_modes():
                return self._make_all(task)
        return self._make_all(task)

    def _make_all(self, task: int) -> list[Any]:
        first = task * self._group
        last = min(first + self._group, self._steps)
        if last - first > 1:
            try:
                return self._make(first, last)
            except Exception:
                pass  # which of them it was shows when they are made one by one
        made: list[Any] = []
        try:
            for step in range(first, last):
                made += self._make_one(step)
        except Exception as error:
            if not made:
                raise
            return [*made, Failed(error)]  # no name for it here: the traceback knows this frame
        return made

    def _make(self, first: int, last: int) -> list[Any]:
        return [self._placement.send(leaves) for leaves in self._batches.make(first, last)]

    def _make_one(self, step: int) -> list[Any]:
        try:
            return self._make(step, step + 1)
        except Exception as error:
            note = f"at batch {step} of the loop{self._rows(step)}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    def _rows(self, step: int) -> str:
        """Name the rows of a batch in which an error was raised, unless that is an error, too."""
        try:
            rows = self._batches.rows(step).tolist()
        except Exception:
            return ""
        if not rows:
            return ", no rows"
        named = ", ".join(map(str, rows[:_NAMED_ROWS]))
        return f", rows {named}" if len(rows) <= _NAMED_ROWS else f", rows {named} and {len(rows) - _NAMED_ROWS} more"


class Beginning(NamedTuple):
    """What a loop begins with.

    Attributes:
        batches: Makes the batches.
        dealing: Says how many there are.
        placement: Where they are wanted.
        pace: How they are made ahead.
        hand_out: Makes a batch of its leaves.
        stepped: Is told the position behind every batch that is handed out, and whether it was the last.
        ended: Is told that the loop has come to its end.
    """

    batches: Batches
    dealing: Steps
    placement: Placement
    pace: Pace
    hand_out: Callable[[list[Any]], Any]
    stepped: Callable[[int, bool], None]
    ended: Callable[[], None]


class _Parts(NamedTuple):
    """What a loop is made of; dropped as a whole when it is over, so that a finished loop keeps nothing alive."""

    groups: Ahead[list[Any]]
    begun: Beginning


class Epoch(Iterator[Any]):
    """Batches in order. Threads may share one: each batch goes to one of them.

    Args:
        begin: Begins the loop; called when its first batch is asked for.
    """

    def __init__(self, begin: Callable[[], Beginning]) -> None:
        self._begin: Callable[[], Beginning] | None = begin
        self._parts: _Parts | None = None
        self._ended: Callable[[], None] | None = None  # once all batches have been handed out
        self._step = 0
        self._ready: deque[Any] = deque()
        self._turn = threading.RLock()
        self._is_busy = False
        self._process = os.getpid()

    def __next__(self) -> Any:
        if self._process != os.getpid():
            self._go_on_in_child()
        with self._turn:
            if self._is_busy:
                raise NdtorchError("Loader", "a source asked for the next batch of the loop that waits for it")
            self._is_busy = True
            try:
                return self._next()
            except BaseException:
                self.close()
                raise
            finally:
                self._is_busy = False

    def _next(self) -> Any:
        parts = self._begun()
        if parts is None:
            self._end()
        if not self._ready:
            self._ready.extend(next(parts.groups))
        sent = self._ready.popleft()
        if isinstance(sent, Failed):
            sent.surface()
        begun = parts.begun
        leaves = begun.placement.receive(sent)
        self._step += 1
        is_last = self._step == begun.dealing.steps
        begun.stepped(begun.dealing.position(self._step), is_last)
        if is_last:
            self.close()  # and not when somebody asks for one more, which may never be
            self._ended = begun.ended
        return begun.hand_out(leaves)

    def _begun(self) -> _Parts | None:
        begin, self._begin = self._begin, None
        if begin is not None:
            begun = begin()
            if begun.dealing.steps <= 0:
                self._ended = begun.ended
                return None
            maker = _Maker(begun.batches, begun.placement, begun.dealing.steps, begun.pace.group)
            tasks = -(-begun.dealing.steps // begun.pace.group)
            self._parts = _Parts(Ahead(maker, tasks, threads=begun.pace.threads, ahead=begun.pace.ahead), begun)
        return self._parts

    def _end(self) -> NoReturn:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()
        raise StopIteration

    def __len__(self) -> int:
        """Batches that are left; to ask for that begins the loop."""
        if self._process != os.getpid():
            self._go_on_in_child()
        with self._turn:
            parts = self._begun()
            return parts.begun.dealing.steps - self._step if parts is not None else 0

    def __reduce__(self) -> NoReturn:
        fact = "a running loop cannot be copied or pickled"
        hint = "pickle the Loader: its copy goes on where this loop stands"
        raise UnsupportedTypeError("Loader", fact, hint=hint)

    def _go_on_in_child(self) -> None:
        # Of a forked process only the thread that forked is left, and locks are as the others held them.
        self._process = os.getpid()
        self._turn = threading.RLock()
        self._is_busy = False
        if self._parts is not None:
            self._parts.groups.go_alone()

    def close(self) -> None:
        """Have the threads end, and drop what they have made."""
        parts, self._parts, self._begin = self._parts, None, None
        self._ready.clear()
        if parts is not None:
            parts.groups.close()
