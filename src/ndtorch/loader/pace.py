"""How many threads make batches ahead, how many batches at a time, and how far ahead."""

from __future__ import annotations

import operator
import os
from typing import Any, NamedTuple

from .._errors import InvalidOptionError

_GROUP_BYTES = 1 << 22  # that one thread moves at a time: handing over a group costs what moving 200 KB costs
_GROUP_STEPS = 16
_AHEAD_BYTES = 1 << 28  # that batches made ahead may take, unless `prefetch` says how many
_ALONE_BYTES = 1 << 22  # a whole epoch of less is made sooner than threads are started


class Pace(NamedTuple):
    """What one epoch is made with.

    Attributes:
        threads: How many help; 0 makes each batch when it is asked for.
        group: How many batches are made at a time.
        ahead: How many such groups may be waiting or in the works.
    """

    threads: int
    group: int
    ahead: int


class Wishes(NamedTuple):
    """The options ``threads`` and ``prefetch`` of a loader, checked."""

    threads: int | None
    prefetch: int | None

    def pace(self, steps: int, nbytes: int, *, is_grouped: bool, is_slow: bool) -> Pace:
        """Decide for an epoch.

        Args:
            steps: How many batches it has.
            nbytes: About how many bytes are moved for one of them; 0 where that is not known.
            is_grouped: Whether several may be made at a time.
            is_slow: Whether making them may have to wait for a disk or a network.
        """
        is_short = is_grouped and not is_slow and steps * nbytes < _ALONE_BYTES
        if self.threads == 0 or self.prefetch == 0 or (self.threads is None and is_short):
            return Pace(0, 1, 1)
        threads = _threads(is_slow=is_slow) if self.threads is None else self.threads
        group = min(max(_GROUP_BYTES // max(nbytes, 1), 1), _GROUP_STEPS) if is_grouped else 1
        if self.prefetch is None:
            fit = _AHEAD_BYTES // max(group * nbytes, 1)
            return Pace(threads, group, min(2 * threads, max(fit, 2)))
        # Waiting at most: the groups ahead, and of the one that is being handed out all but one batch.
        group = min(group, (self.prefetch + 1) // 2)
        return Pace(threads, group, (self.prefetch + 1) // group - 1)


def _threads(*, is_slow: bool) -> int:
    """How many threads help where nobody says it.

    One core is left to the loop. That does not wait idly but gathers as well, so that one thread and the loop keep two
    cores busy, and on two cores a second thread would take turns with the loop: measured, it gains nothing there, and
    beside a busy neighbour it loses. Four threads move what memory gives. Threads that wait for a disk need no core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - 1, 2 if is_slow else 1), 4)


def wishes_of(threads: Any, prefetch: Any) -> Wishes:
    """Check the options.

    Raises:
        InvalidOptionError: One is no count, or they contradict each other.
    """
    wishes = Wishes(_count("threads", threads), _count("prefetch", prefetch))
    if wishes.threads == 0 and wishes.prefetch:
        fact = f"threads=0 makes no batch ahead, and prefetch={prefetch!r} asks for some"
        raise InvalidOptionError("Loader", fact, hint="threads=1, or prefetch=None")
    if wishes.threads and wishes.prefetch == 0:
        fact = f"prefetch=0 leaves nothing to do for threads={threads!r}"
        raise InvalidOptionError("Loader", fact, hint="threads=0, or prefetch=None")
    return wishes


def _count(option: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        fact = f"{option}={value!r} is not a count"
        raise InvalidOptionError("Loader", fact, expected="an integer of at least 0, or None", got=repr(value))
    return number
