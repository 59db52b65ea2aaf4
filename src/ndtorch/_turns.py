"""Turns that threads of one process take; a forked child does not wait for one that it has not."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """A lock of the process that asks for it. Whoever has it may take it again."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for one's turn, and have it meanwhile."""
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        with self._lock:
            yield


_of_filters = Turns()


@contextmanager
def own_filters() -> Iterator[None]:
    """Have filters of warnings of one's own meanwhile.

    They belong to the whole process: of two threads that each put back what they have found, the one that came second
    and leaves last would put back for good what the first had set.
    """
    with _of_filters.taken(), warnings.catch_warnings():
        yield
