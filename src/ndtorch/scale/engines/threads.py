"""This machine's threads: most of the work is reading, writing and copying, which release the GIL."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue

from ..stopping import stopped_by
from ..units import Unit
from .outcomes import Done, Work


class Threads:
    """Several units at a time, each by a thread.

    Args:
        workers: How many; one is the thread that asks.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, units: Iterable[Unit]) -> Generator[Done, None, None]:
        """Do all units."""
        if self.workers == 1:
            return (_done(work, unit) for unit in units)
        return self._in_threads(work, units)

    def _in_threads(self, work: Work, units: Iterable[Unit]) -> Generator[Done, None, None]:
        waiting, threads = iter(units), list[threading.Thread]()
        tasks: SimpleQueue[Unit | None] = SimpleQueue()
        results: SimpleQueue[Done] = SimpleQueue()
        stop = threading.Event()
        running = 0
        done: Done | None = None  # given away when its place is taken
        try:
            while True:
                while running < self.workers and (unit := next(waiting, None)) is not None:
                    tasks.put(unit)
                    running += 1
                    if len(threads) < running:
                        # A daemon: a second Ctrl-C does not wait for it.
                        threads.append(threading.Thread(target=_serve, args=(work, tasks, results, stop), daemon=True))
                        threads[-1].start()
                if done is not None:
                    yield done
                if not running:
                    return
                done = results.get()
                running -= 1
        finally:
            stop.set()
            for _ in threads:
                tasks.put(None)
            for thread in threads:
                if thread.is_alive():  # one that a Ctrl-C kept from starting cannot be joined
                    thread.join()


def _serve(work: Work, tasks: SimpleQueue[Unit | None], results: SimpleQueue[Done], stop: threading.Event) -> None:
    with stopped_by(stop):
        while (unit := tasks.get()) is not None and not stop.is_set():
            results.put(_done(work, unit))


def _done(work: Work, unit: Unit) -> Done:
    try:
        return Done(unit, work(unit))
    except Exception as error:
        return Done(unit, None, error)
