"""Staging memory for copies to a device: blocks that are lent, and lent again once the copies out of them are done.

Whether a block is in use is a question of ownership: it comes back when the last array or tensor over it is gone.
Whether it may be written is one of events: the device says when it has read it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]

_SMALLEST = 1 << 12
_BUDGET = 1 << 28


class Event(Protocol):
    """A point in what a device has been told to do, as `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether the device is past it."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


class _Block:
    """One stretch of staging memory, and what it has to wait for before it is written again."""

    __slots__ = ("event", "memory")

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.event: Event | None = None


class _Lent(weakref.ref[Bytes]):
    """Says when the memory of a block comes back: when the array over it is gone."""

    __slots__ = ("address", "block")
    address: int
    block: _Block


class Ring:
    """Blocks of staging memory.

    A new block is made where none of the size is idle, or where those that are wait for the device and there is room in
    the budget. So what a ring holds is bounded by the budget and by what is lent at a time.

    Args:
        pin: Makes so many bytes of memory that the device can read on its own.
        budget: How many bytes there may be before a block is waited for.
    """

    def __init__(self, pin: Callable[[int], torch.Tensor], budget: int = _BUDGET) -> None:
        self._pin = pin
        self._budget = budget
        self._idle: dict[int, deque[_Block]] = {}  # by size, what came back first in front
        self._lent: dict[int, _Lent] = {}  # by address
        self._back: SimpleQueue[_Lent] = SimpleQueue()  # those whose arrays are gone
        self._count = threading.Lock()
        self.nbytes = 0  # of all blocks

    def lend(self, nbytes: int) -> Bytes:
        """Give so many bytes that nobody else has and no copy reads. They come back when nobody has them any more."""
        size = 1 << (max(nbytes, _SMALLEST) - 1).bit_length()  # as torch rounds pinned memory
        self._take_back()
        block = self._reused(self._idle.setdefault(size, deque()), size) or self._new(size)
        array = block.memory[:nbytes]
        # An array may go in whatever thread and at whatever time: nothing is called then that takes a lock, or that is
        # written in Python and would swallow a Ctrl-C.
        lent = _Lent(array, self._back.put)
        lent.address, lent.block = block.memory.ctypes.data, block
        self._lent[lent.address] = lent
        return array

    def follow(self, address: int, event: Event) -> None:
        """Write a block again only behind an event; addresses that are none of a block that is lent mean nothing."""
        lent = self._lent.get(address)
        if lent is not None:
            lent.block.event = event

    @property
    def in_use(self) -> int:
        """How many blocks somebody has."""
        self._take_back()
        return len(self._lent)

    def _take_back(self) -> None:
        while True:
            try:
                lent = self._back.get_nowait()
            except Empty:
                return
            del self._lent[lent.address]
            self._idle.setdefault(lent.block.memory.size, deque()).append(lent.block)

    def _reused(self, idle: deque[_Block], size: int) -> _Block | None:
        try:
            block = idle.popleft()
        except IndexError:
            return None
        if block.event is not None and not block.event.query():
            if self.nbytes + size <= self._budget:
                idle.appendleft(block)
                return None
            block.event.synchronize()
        block.event = None
        return block

    def _new(self, size: int) -> _Block:
        self._make_room(size)
        block = _Block(self._pin(size).numpy())
        with self._count:
            self.nbytes += size
        return block

    def _make_room(self, size: int) -> None:
        """Drop idle blocks of other sizes, of which there is no more need as it seems."""
        for other, idle in list(self._idle.items()):
            while self.nbytes + size > self._budget:
                try:
                    block = idle.popleft()
                except IndexError:
                    break
                if block.event is not None:
                    block.event.synchronize()
                with self._count:
                    self.nbytes -= other
