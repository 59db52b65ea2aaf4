"""Work done ahead of its consumer by threads, handed out in order.

Every task is claimed by one thread. A consumer that finds its next task unclaimed does it itself, and one whose next
task is in the works does later ones meanwhile: no helper is ever waited for that has not started, so a busy machine
costs its share and no more. Threads are not processes: what they work on releases the GIL.

Consumer and threads share two queues and no lock of ours. So nothing can be held by whoever is interrupted by a
signal, forked away or collected as garbage, and a task that is put wakes one thread, not all.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, NoReturn, TypeVar

import torch

T = TypeVar("T")

# That the end of the interpreter waits for threads in the middle of a task: it unwinds their stacks, and within torch
# that aborts the process. Whoever has pressed Ctrl-C does not wait.
_EXIT_SECONDS, _INTERRUPTED_SECONDS = 2.0, 0.25
_is_ending = threading.Event()
# torch brings its OpenMP with it; torch.set_num_threads is for the whole process, this for one thread.
_set_openmp_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)


class Failed:
    """What a task raised, in the place of its result."""

    def __init__(self, error: BaseException) -> None:
        self._error: BaseException | None = error

    def surface(self) -> NoReturn:
        """Raise it, in the thread that waits for the result. Once: it is given away."""
        error, self._error = self._error, None  # frames that the traceback knows may know this object
        try:
            if isinstance(error, StopIteration):  # which would look like the end of the data
                raise RuntimeError("a source of the loader raised StopIteration") from error
            assert error is not None
            raise error
        finally:
            del error


def is_ending() -> bool:
    """Whether the interpreter is on its way out, so that what takes long should not be begun."""
    return _is_ending.is_set()


def _attempt(do: Callable[[int], T], task: int, caught: type[BaseException]) -> T | Failed:
    """Do a task; give its result, or what it raised."""
    try:
        return do(task)
    except caught as error:
        return Failed(error)


def _one_by_one(do: Callable[[int], T]) -> Generator[Any, int, None]:
    """Do the tasks that are sent, for the consumer.

    A generator, since a traceback knows the frames below it as well: those of the consumer would be kept alive by an
    error that waits for its turn, and the loop with them. Nothing is below a generator that waits.
    """
    task = yield
    while True:
        task = yield _attempt(do, task, Exception)


class _Helpers(Generic[T]):
    """Tasks to be done and results. Threads refer to this alone, so that the consumer can be dropped."""

    def __init__(self, do: Callable[[int], T]) -> None:
        self.do = do
        self.todo: SimpleQueue[Any] = SimpleQueue()  # what is no number ends whoever takes it, and is put back
        self.done: SimpleQueue[tuple[int, T | Failed] | None] = SimpleQueue()  # None: see whether they are stopped
        self.is_stopped = False
        self.consumer: Callable[[], object] = lambda: None
        self.here = _one_by_one(do)
        next(self.here)

    def start(self, threads: int, consumer: object) -> None:
        """Have threads help, or as many as there are to be had, as long as the consumer lives."""
        # No `__del__` and nothing else in Python: a Ctrl-C that comes within it would be ignored.
        self.consumer = weakref.ref(consumer, self.todo.put)
        for number in range(threads):
            if _is_ending.is_set():
                return
            thread = _Thread(self, number)
            try:
                thread.start()
            except RuntimeError:  # the system has no more: the consumer does what nobody claims
                return
            except (
                BaseException
            ):  # threading knows one for good that a Ctrl-C keeps from starting, the data it does not
                thread.helpers = None
                raise

    def claim(self) -> int | None:
        """Take the next task, if there is one, without waiting for one."""
        try:
            task: int | None = self.todo.get_nowait()
        except Empty:
            return None
        if task is None:
            self.todo.put(None)
        return task

    def work(self) -> None:
        """Be one of the threads."""
        try:
            while isinstance(task := self.todo.get(), int) and not self.is_stopped and self.consumer() is not None:
                self.done.put((task, _attempt(self.do, task, BaseException)))
            self.todo.put(None)
            if self.is_stopped:  # perhaps before the last result was put
                self._drop()
        except BaseException:  # thrown into this thread from outside: which task was lost with it is not known
            self.stop()  # the consumer does again what it misses

    def stop(self) -> None:
        """Have the threads end with what they are doing."""
        self.is_stopped = True
        self.todo.put(None)
        self._drop()

    def _drop(self) -> None:
        while not self.done.empty():
            try:
                self.done.get_nowait()
            except Empty:
                break
        self.done.put(None)


class _NotAwaited(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return True


class _Thread(threading.Thread):
    def __init__(self, helpers: _Helpers[Any], number: int) -> None:
        super().__init__(name=f"ndtorch-loader-{number}", daemon=True)
        self.helpers: _Helpers[Any] | None = helpers
        # `start` waits until the thread runs: on a busy machine that takes milliseconds, ten times a short epoch.
        self._started = _NotAwaited()

    def run(self) -> None:
        helpers = self.helpers
        if helpers is not None:
            _leave_openmp()
            helpers.work()
            self.helpers = None  # threading drops this object some time after it says it has ended


def _leave_openmp() -> None:
    """Have torch's operations in this thread start no threads of their own: OpenMP keeps a pool for every thread."""
    torch.get_num_threads()  # sets the number of the process once in every thread, which must not come later
    if _set_openmp_threads is not None:
        _set_openmp_threads(1)


class Ahead(Generic[T]):
    """Results of ``do(0)`` to ``do(count - 1)``, in order. One consumer at a time.

    Args:
        do: Does one task; called by several threads at once.
        count: How many there are.
        threads: How many threads help; with 0 the consumer does what is to be done.
        ahead: How many results may be waiting or in the works.
    """

    def __init__(self, do: Callable[[int], T], count: int, *, threads: int, ahead: int) -> None:
        self._count = count
        self._ahead = ahead
        self._wanted = 0  # by the consumer, next
        self._asked = 0  # all below have been put on the queue
        self._made: dict[int, T | Failed] = {}
        helpers = _Helpers(do)
        self._helpers: _Helpers[T] | None = helpers if count else None  # None: it is over
        self._ask(helpers)
        helpers.start(min(threads, ahead, count - 1), self)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            result = self._next()
        except BaseException:  # Ctrl-C is for now, not for when the turn comes of the task that it hit
            self.close()
            raise
        if isinstance(result, Failed):
            self.close()
            result.surface()
        return result

    def _next(self) -> T | Failed:
        made = self._made
        while (helpers := self._helpers) is not None and self._wanted not in made:
            self._advance(helpers, made)
        try:
            result = made.pop(self._wanted)
        except KeyError:  # closed, perhaps by another thread
            raise StopIteration from None
        self._wanted += 1
        if self._wanted == self._count:
            self.close()
        elif helpers is not None:
            self._ask(helpers)
        return result

    def _ask(self, helpers: _Helpers[T]) -> None:
        while self._asked < min(self._count, self._wanted + self._ahead):
            helpers.todo.put(self._asked)
            self._asked += 1
            if self._asked == self._count:
                helpers.todo.put(None)

    def _advance(self, helpers: _Helpers[T], made: dict[int, T | Failed]) -> None:
        """Take one result, or do one task where there is none."""
        if helpers.is_stopped:
            self.go_alone()
        elif helpers.done.empty() and (task := helpers.claim()) is not None:
            made[task] = helpers.here.send(task)
        elif (item := helpers.done.get()) is not None:
            made[item[0]] = item[1]

    def go_alone(self) -> None:
        """Do the rest without threads, and again what they had claimed: in a forked child there are none."""
        if self._helpers is None:
            return
        alone = _Helpers(self._helpers.do)
        for task in range(self._wanted, self._asked):
            if task not in self._made:
                alone.todo.put(task)
        self._helpers = alone

    def close(self) -> None:
        """Have the threads end, drop what they have made, and hand out nothing more."""
        helpers, self._helpers = self._helpers, None
        self._made.clear()
        if helpers is not None:
            helpers.stop()


def _end() -> None:
    # Threads that are still at it when the interpreter is taken down are ended by unwinding their stacks, and torch
    # aborts the process where one of them is within an operation.
    _is_ending.set()
    threads = [thread for thread in threading.enumerate() if isinstance(thread, _Thread)]
    for thread in threads:
        helpers = thread.helpers
        if helpers is not None:
            helpers.stop()
    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    last = time.monotonic() + (_INTERRUPTED_SECONDS if is_interrupted else _EXIT_SECONDS)
    for thread in threads:
        if thread.is_alive():  # others have not begun, and will not
            thread.join(max(last - time.monotonic(), 0.0))


atexit.register(_end)
