"""How much memory this process may still take: what of a file is kept decoded is measured by that."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_LIMITED = (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize"))
_UNKNOWN = 1 << 30


def memory_left() -> int:
    """Bytes that are free: of the machine, of the control group, and of the limits that this process has.

    >>> memory_left() > 0
    True
    """
    return max(min(_limits(), default=_UNKNOWN), 0)


def _limits() -> Iterator[int]:
    used = _table("/proc/self/status")
    for limit, counted in _LIMITED:
        soft, _ = resource.getrlimit(getattr(resource, limit))
        if soft != resource.RLIM_INFINITY:
            yield soft - used.get(counted, 0)
    available = _table("/proc/meminfo").get("MemAvailable")
    if available is not None:
        yield available
    most, taken = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.stat").split()
    if most.isdecimal():
        yield int(most) - (int(taken[1]) if taken[:1] == ["anon"] else 0)


def _table(path: str) -> dict[str, int]:
    """The sizes in a file of the system, of lines such as ``VmData:   1024 kB``."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[2:] == ["kB"]}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # another system, or none of our business there
        return ""
