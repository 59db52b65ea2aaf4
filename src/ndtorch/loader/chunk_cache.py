"""Decoded chunks of files: those used last are kept, each is decoded by one thread, once for all who want it."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from ..files.storage import thread_count
from .memory_left import memory_left

AnyArray = npt.NDArray[Any]
Load = Callable[[], AnyArray]

_MOST = 1 << 30  # bytes that are kept, however much memory there is
_SHARE = 4  # of the memory that is left, one part
_MAX_AHEAD = 8  # chunks that are decoded ahead, or wait for that; an announcement of more is forgotten


class _Chunk:
    """One chunk, which is in the works until ``is_done``, and ``is_early`` until somebody wants it."""

    __slots__ = ("array", "is_done", "is_early", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.array: AnyArray | None = None  # stays None where decoding failed
        self.is_done = threading.Event()
        self.is_early = False
        self.nbytes = nbytes


class ChunkCache:
    """Chunks by key, of all columns that live.

    Args:
        capacity: Bytes that are kept, chunks in the works among them. One chunk is kept even if it has more.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.RLock()  # a finalizer that forgets may run while it is held
        self._chunks: OrderedDict[Hashable, _Chunk] = OrderedDict()
        self._nbytes = 0
        self._pool: ThreadPoolExecutor | None = None
        self._early = 0  # chunks that nobody has wanted yet, and those that wait to be decoded
        self._queue: set[Hashable] = set()  # which of them wait
        _living.add(self)

    def get(
        self, key: Hashable, nbytes: int, load: Load, *, may_wait: bool = True, is_early: bool = False
    ) -> AnyArray | None:
        """Give a chunk, and decode it if nobody has.

        ``None`` while another thread decodes it and the caller has others to do first: without ``may_wait``. With
        ``is_early`` it is for somebody who will want it, and ``None`` once somebody has.
        """
        while True:
            with self._lock:
                if is_early and key not in self._queue:
                    return None  # it has been wanted, and may be gone again
                if not is_early:
                    self._queue.discard(key)
                chunk = self._chunks.get(key)
                if chunk is None:
                    mine = self._chunks[key] = _Chunk(nbytes)
                    self._nbytes += nbytes
                    self._note_early(mine, is_early)
                    self._make_room()
                    break
                if not is_early:
                    self._note_early(chunk, False)
                    self._chunks.move_to_end(key)
            if not chunk.is_done.is_set() and not may_wait:
                return None
            chunk.is_done.wait()
            if chunk.array is not None:
                return chunk.array
            # It failed, or a fork has cut it short: whoever comes next tries, and has an error of its own.
        return self._decode(key, mine, load)

    def _decode(self, key: Hashable, chunk: _Chunk, load: Load) -> AnyArray:
        try:
            array = chunk.array = load()
        except BaseException:
            with self._lock:
                self._drop(key, chunk)
            raise
        finally:
            chunk.is_done.set()
        return array

    def ahead(self, key: Hashable, nbytes: int, load: Load) -> None:
        """Have a chunk decoded by a thread of the cache's own, soon; forget it where too many wait already."""
        with self._lock:
            if (
                key in self._chunks
                or key in self._queue
                or self._early >= min(_MAX_AHEAD, self.capacity // (2 * max(nbytes, 1)))
            ):
                return  # they would push each other out before anybody wants them
            if self._pool is None:
                self._pool = ThreadPoolExecutor(min(thread_count(), 2), thread_name_prefix="ndtorch-chunks")
                weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
            self._early += 1
            self._queue.add(key)
            pool = self._pool

        def decode() -> None:
            try:
                self.get(key, nbytes, load, may_wait=False, is_early=True)
            except Exception:
                pass
            finally:
                with self._lock:
                    self._early -= 1
                    self._queue.discard(key)

        try:
            pool.submit(decode)
        except RuntimeError:  # the interpreter ends, or no thread can be had
            with self._lock:
                self._early -= 1
                self._queue.discard(key)

    def _note_early(self, chunk: _Chunk, is_early: bool) -> None:
        self._early += is_early - chunk.is_early
        chunk.is_early = is_early

    def forget(self, owner: object) -> None:
        """Drop the chunks whose key begins with this."""
        with self._lock:
            for key, chunk in list(self._chunks.items()):
                if isinstance(key, tuple) and key[0] == owner:
                    self._drop(key, chunk)

    def _make_room(self) -> None:
        """Drop what was used longest ago; what is in the works stays, and so does the last."""
        for key, chunk in list(self._chunks.items())[:-1] if self._nbytes > self.capacity else ():
            if self._nbytes <= self.capacity:
                return
            if chunk.is_done.is_set():
                self._drop(key, chunk)

    def _drop(self, key: Hashable, chunk: _Chunk) -> None:
        if self._chunks.get(key) is chunk:
            del self._chunks[key]
            self._nbytes -= chunk.nbytes
            self._note_early(chunk, False)

    def _after_fork(self) -> None:
        """Give up what threads of the parent have in the works: they are not there."""
        self._lock = threading.RLock()
        self._pool = None
        self._queue.clear()
        self._early = sum(chunk.is_early for chunk in self._chunks.values())
        for key, chunk in list(self._chunks.items()):
            if not chunk.is_done.is_set():
                self._drop(key, chunk)
                chunk.is_done.set()


_living: weakref.WeakSet[ChunkCache] = weakref.WeakSet()
_shared: list[weakref.ref[ChunkCache]] = []
_shared_lock = threading.Lock()


def _restart() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for cache in list(_living):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart)


def shared_cache() -> ChunkCache:
    """The cache of all columns that live; with the last of them it goes."""
    with _shared_lock:
        cache = _shared[0]() if _shared else None
        if cache is None:
            cache = ChunkCache(min(_MOST, memory_left() // _SHARE))
            _shared[:] = [weakref.ref(cache)]
        return cache
