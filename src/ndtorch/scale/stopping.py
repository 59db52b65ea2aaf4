"""How work that goes on in threads hears that it should stop: a thread cannot be killed as a process can."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


class StoppedError(Exception):
    """Whoever asked for the work does not want it any more."""


def check_stopped(nbytes: int = 0) -> None:
    """Raise where this thread's work is no longer wanted; to be called now and then, at best with every block.

    Args:
        nbytes: How much has been written since; for callers that are told so anyway.

    Raises:
        StoppedError: It is not.
    """
    event: threading.Event | None = getattr(_here, "event", None)
    if event is not None and event.is_set():
        raise StoppedError


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Have an event stop what this thread does meanwhile."""
    _here.event = event
    try:
        yield
    finally:
        _here.event = None
