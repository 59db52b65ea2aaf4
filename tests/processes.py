"""Which processes there are, of those that this one or a driver has started, and what this one has open."""

from __future__ import annotations

import os
from pathlib import Path

_FIELDS = {"parent": 1, "session": 3}  # of /proc/PID/stat, behind the name


def processes(**whose: int) -> set[int]:
    """The processes that have not ended of a parent or a session, such as ``processes(parent=os.getpid())``."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and all(fields[_FIELDS[name]] == str(pid) for name, pid in whose.items()):
            found.add(int(status.parent.name))
    return found


def descriptors_of(path: Path) -> int:
    """How often this process has a file open: others come and go, as a connection that a thread has had enough of."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(descriptor) == str(path)
        except OSError:  # the one that the folder was read by
            continue
    return found
