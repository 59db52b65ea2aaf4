"""One run at a time on one target: two of them would write the same outputs.

A run holds a lock in ``.ndtorch/locks``: ``all``, or ``RANK-of-WORLD`` where ranks share the work. Ranks of one world
go side by side; whatever else meets is refused. A run takes its own lock first and looks for others then, so that of
two that begin at the same time at least one sees the other.

On this machine, and on network file systems that have locks, the kernel holds it, and lets go when the process ends,
however it does. Behind URLs, and where there are no such locks, it is an object that says who holds it and since when,
written anew every 20 seconds and not believed after two minutes. That has limits: a run whose machine was killed keeps
others off for these two minutes, clocks have to agree to within a minute, and where two begin within the same second
both may be refused, or the one that was slower goes on and the other stops at its next look.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .._errors import FormatError, NdtorchError
from ..files.atomic import hold, remove_if_abandoned
from ..files.remote import is_url, shown
from .places import Place

FOLDER = ".ndtorch/locks"
HEARTBEAT = 20.0
STALE = 120.0
SETTLE = 0.5  # seconds between what is written and the look whether somebody else has written at the same time

_TRIES = 20


class Lock:
    """A lock that is held."""

    def check(self) -> None:
        """Refuse to go on where somebody else has it by now.

        Raises:
            FormatError: Somebody has.
        """


@contextmanager
def locked(place: Place, rank: int = 0, world_size: int = 1) -> Iterator[Lock]:
    """Hold the lock of a run.

    Args:
        place: Where its outputs go.
        rank: Which part of the work is its.
        world_size: How many such parts there are.

    Raises:
        FormatError: Another run holds one that excludes it; the error names its process and machine.
    """
    name = _name(rank, world_size)
    if not is_url(place.path):
        descriptor = _taken(place, name)
        if descriptor is not None:
            try:
                _check_others(place, name)
                yield Lock()
            finally:
                with suppress(OSError):
                    os.unlink(place.member(f"{FOLDER}/{name}"))
                os.close(descriptor)
            return
    lock = _Heartbeat(place, name)
    try:
        lock.begin()
        yield lock
    finally:
        lock.end()


def _name(rank: int, world_size: int) -> str:
    return "all" if world_size == 1 else f"{rank}-of-{world_size}"


def _excludes(one: str, other: str) -> bool:
    """Whether two runs may not be at work at the same time.

    >>> _excludes("all", "0-of-2"), _excludes("0-of-2", "1-of-2"), _excludes("0-of-2", "1-of-3")
    (True, False, True)
    """
    return one == other or one.partition("-")[2] != other.partition("-")[2]


# --- locks of the kernel


def _taken(place: Place, name: str) -> int | None:
    """A descriptor that holds the lock; ``None`` where the file system has no locks."""
    path = Path(place.member(f"{FOLDER}/{name}"))
    os.makedirs(path.parent, exist_ok=True)
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        is_held = hold(descriptor, path)
        if is_held:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
            return descriptor
        holder = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        if is_held is None:
            return None
        if holder and os.path.exists(path):
            raise _refusal(place, name, _facts(holder))
        time.sleep(0.01)  # somebody has just made it, or is about to remove it
    raise _refusal(place, name, {})


def _check_others(place: Place, name: str) -> None:
    for other in place.sizes(FOLDER):
        if other == name or not _excludes(name, other):
            continue
        path = Path(place.member(f"{FOLDER}/{other}"))
        remove_if_abandoned(path)
        with suppress(FileNotFoundError):
            raise _refusal(place, other, _facts(path.read_bytes()))


# --- objects


class _Heartbeat(Lock):
    """An object that says, again and again, who is at work."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._name = name
        self._path = f"{FOLDER}/{name}"
        self._owner = _owner()
        self._ended = threading.Event()
        self._lost: NdtorchError | None = None
        self._is_mine = False
        self._thread = threading.Thread(target=self._beat, name="ndtorch-lock", daemon=True)

    def begin(self) -> None:
        """Write the object, if no other excludes it, before and after that."""
        self._check_others()
        self._put()
        self._is_mine = True
        time.sleep(SETTLE)
        self._look()
        self._check_others()
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where somebody else has it by now."""
        if self._lost is not None:
            raise self._lost

    def end(self) -> None:
        """Remove the object, if it is still this run's."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._is_mine:
            with suppress(Exception):
                self._look()
                self._place.remove([self._path])

    def _put(self) -> None:
        self._owner["time"] = time.time()
        self._place.put(self._path, json.dumps(self._owner).encode())

    def _look(self) -> None:
        """See whether the object is still this run's."""
        facts = _read(self._place, self._path)
        if facts is not None and facts.get("run") != self._owner["run"]:
            self._is_mine = False
            raise _refusal(self._place, self._name, facts)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                self._look()
                self._put()
            except FormatError as error:
                if not self._is_mine:
                    self._lost = error
                    return
            except Exception as error:  # the network is away for a moment: the object is good for more than one beat
                del error

    def _check_others(self) -> None:
        for other in self._place.sizes(FOLDER):
            if not _excludes(self._name, other):
                continue
            facts = _read(self._place, f"{FOLDER}/{other}")
            if facts is None or facts.get("run") == self._owner["run"]:
                continue
            if _is_alive(facts):
                raise _refusal(self._place, other, facts)
            self._place.remove([f"{FOLDER}/{other}"])


def _is_alive(facts: dict[str, Any]) -> bool:
    """Whether who wrote an object may still be at work."""
    me = _owner()
    if facts.get("machine") == me["machine"] and facts.get("pid") != me["pid"]:
        return _started(facts.get("pid")) == facts.get("started")
    seen = facts.get("time")
    return isinstance(seen, int | float) and time.time() - seen < STALE


# --- who


def _owner() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _started(os.getpid()),
        "machine": _machine(),
        "time": time.time(),
        "run": uuid.uuid4().hex,
    }


def _machine() -> str:
    """What only processes have in common that see each other's numbers."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex


def _started(pid: object) -> str | None:
    """When a process began, which tells it from a later one of the same number; ``None`` where there is none."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _read(place: Place, path: str) -> dict[str, Any] | None:
    """What an object says; ``None`` where there is none any more."""
    try:
        return _facts(place.read(path))
    except (FileNotFoundError, FormatError):
        return None


def _facts(content: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _refusal(place: Place, name: str, facts: dict[str, Any]) -> FormatError:
    which = "another run" if name == "all" else f"rank {name.replace('-of-', ' of ')}"
    who = f"process {facts.get('pid', 'unknown')} on {facts.get('host', 'an unknown machine')}"
    since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(facts["time"])) if facts.get("time") else ""
    hint = "wait for it, or end it: the next run goes on where it stopped"
    if is_url(place.path):
        hint += f"; after a kill its lock counts for {STALE:.0f} s more"
    return FormatError(
        "convert",
        f"{shown(place.path)!r} is being written by {which}, {who}{since}",
        hint=hint,
        pid=facts.get("pid"),
        host=facts.get("host"),
    )
