"""This machine's processes, supervised: for sources whose library holds the GIL, or crashes.

Each unit that a process dies on is tried once more in a fresh one; the other processes go on. All end with the one that
started them, however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_executable
from typing import Any

from ..._errors import NdtorchError
from ..units import Unit
from . import worker
from .outcomes import Done, Work, done_of, how_it_ended, worker_died

_TRIES = 2  # of a unit
_MOST_FALSE_STARTS = 3  # in a row
_LOOK_EVERY = 1.0  # seconds; the end of a process shows at once, except where a child of its own outlives it
_END_WITHIN = 10.0


class Processes:
    """Several units at a time, each by a process.

    Args:
        workers: How many processes there may be; there are never more than units.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, units: Iterable[Unit]) -> Generator[Done, None, None]:
        """Do all units."""
        crew = _Crew(work, units, self.workers)
        try:
            crew.fill()
            while not crew.is_idle():
                yield from crew.step()
        finally:
            crew.stop()


class _Worker:
    """A process, and the unit it has been given."""

    def __init__(self, unit: Unit) -> None:
        self.unit: Unit | None = unit
        self.is_ready = False
        self.connection, other = Pipe()
        try:
            self.process = _started(other)
        except BaseException:
            self.connection.close()
            raise
        finally:
            other.close()

    def kill(self) -> int:
        """End it, and say how it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.connection.close()
        return self.process.wait(_END_WITHIN)


class _Crew:
    """The processes, and what is left to do."""

    def __init__(self, work: Work, units: Iterable[Unit], most: int) -> None:
        self._work = work
        self._waiting = iter(units)
        self._again: deque[Unit] = deque()
        self._most = most
        self._workers: list[_Worker] = []
        self._deaths: dict[int, int] = {}
        self._false_starts = 0

    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not any(each.unit for each in self._workers)

    def step(self) -> list[Done]:
        """Wait until something happens, and give the units that are done."""
        connections = {each.connection: each for each in self._workers}
        heard = wait(list(connections), _LOOK_EVERY)
        silent = [each for each in self._workers if each.connection not in heard and each.process.poll() is not None]
        finished = []
        for each in [*(connections[one] for one in heard if isinstance(one, Connection)), *silent]:
            done = self._heard(each)
            if done is not None:
                finished.append(done)
        self.fill()
        return finished

    def _heard(self, worker: _Worker) -> Done | None:
        try:
            message: Any = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError, pickle.UnpicklingError):
            message = None
        if message is None:
            return self._buried(worker)
        if not worker.is_ready:
            worker.is_ready, self._false_starts = True, 0
            return None if self._sent(worker, self._work) and self._sent(worker, worker.unit) else self._buried(worker)
        unit, worker.unit = worker.unit, None
        assert unit is not None
        following = self._next()
        if following is not None:
            worker.unit = following
            if not self._sent(worker, following):
                self._again.append(following)
                self._remove(worker)
        return done_of(unit, message)

    def _sent(self, worker: _Worker, message: object) -> bool:
        try:
            worker.connection.send(message)
        except OSError:
            return False
        return True

    def _buried(self, worker: _Worker) -> Done | None:
        """Have the unit of a worker that has died done again, or give it up."""
        unit = worker.unit
        why = how_it_ended(self._remove(worker))
        if not worker.is_ready:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                fact = f"no worker process can start: the last one {why}"
                raise NdtorchError("convert", fact, hint="engine='threads' (--engine threads) needs none")
        if unit is None:
            return None
        if worker.is_ready:
            self._deaths[unit.number] = self._deaths.get(unit.number, 0) + 1
        if self._deaths.get(unit.number, 0) < _TRIES:
            self._again.append(unit)
            return None
        return Done(unit, None, worker_died(unit, why, _TRIES))

    def _remove(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.kill()

    def _next(self) -> Unit | None:
        return self._again.popleft() if self._again else next(self._waiting, None)

    def fill(self) -> None:
        """Give what is to be done to workers that have nothing, and to new ones."""
        while idle := next((each for each in self._workers if each.is_ready and each.unit is None), None):
            unit = self._next()
            if unit is None:
                break
            idle.unit = unit
            if not self._sent(idle, unit):
                self._again.append(unit)
                self._remove(idle)
        while len(self._workers) < self._most and (unit := self._next()) is not None:
            self._workers.append(_Worker(unit))

    def stop(self) -> None:
        """End all at once."""
        for each in self._workers:
            each.process.kill()
        for each in self._workers:
            with suppress(subprocess.TimeoutExpired):  # in the middle of what cannot be interrupted; it will
                each.kill()
        self._workers.clear()


def _started(connection: Connection) -> subprocess.Popen[bytes]:
    """Start a worker. What it prints goes to stderr: stdout may be read by a program."""
    number = connection.fileno()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    program = worker.START.format(worker.__name__)
    # A worker hears of Ctrl-C from this process, and not from the terminal.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            # Unbuffered: it is killed when nothing is left to do, and what it has printed stays.
            [os.fsdecode(get_executable()), *flags, "-u", "-c", program, str(number), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=[number],
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(pickle.dumps(sys.path))
    return process
