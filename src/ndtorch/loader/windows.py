"""Window shuffle: random among a few hundred stretches at a time, for data that is faster read in stretches.

The rows are cut into blocks that lie together, the blocks are put into random order, and the sequence that this gives
is cut into windows, in each of which the rows are shuffled. So a window reads its blocks and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import _native
from .orders import Memory, Order, Ordering, Permuted, Rows, key_of

# A batch of a window is about as mixed as one of as many rows as the window has blocks, and a block of the default
# window is 1 MB: what a disk reads in the time that it takes to find it.
_BLOCKS = 256
_WINDOW_BYTES = 256 << 20
_LEAST_ROWS = 1024
_WINDOWS_KEPT = 4  # that the threads are in at a time


def default_window(row_bytes: int) -> int:
    """How many rows make 256 MB; it does not depend on the batches, so that an epoch may go on with other ones."""
    return max(_WINDOW_BYTES // max(row_bytes, 1), _LEAST_ROWS)


def block_of(window: int, stretch: int) -> int:
    """How many rows stay together: a 256th of the window, in whole stretches of rows that can only be read as one."""
    return -(-max(window // _BLOCKS, 1) // stretch) * stretch


@dataclass(frozen=True, slots=True)
class Windowed(Ordering):
    """Random order of blocks, then of the rows within each window."""

    length: int
    window: int
    block: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> WindowOrder | Permuted:
        """Give the order of one epoch."""
        if self.block == 1 or self.window >= self.length:  # either of the two shuffles is enough then
            return Permuted(self.length, key_of(seed, epoch))
        return WindowOrder(self.length, self.window, self.block, key_of(seed, epoch))

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        return {"order": "window", "rows": self.length, "window": self.window, "block": self.block}


class _Window(NamedTuple):
    """One window.

    Attributes:
        first: Its first place.
        within: The order of its rows.
        starts: The places of the sequence at which its blocks begin.
        shifts: From a place of the sequence to a row, for each block.
    """

    first: int
    within: _native.Permutation
    starts: Rows
    shifts: Rows


class WindowOrder(Order):
    """The order of one epoch. The last block may be a smaller one, which comes at a random turn as the others do."""

    def __init__(self, length: int, window: int, block: int, key: int) -> None:
        self.length = length
        self._window = window
        self._block = block
        self._key = key
        full, self._rest = divmod(length, block)
        self._blocks = _native.permutation(full, key_of(key, 0))
        self._full = full
        # The turn of the smaller block, all equally likely; behind the last one where there is none.
        self._turn = key_of(key, 1) * (full + 1) >> 64 if self._rest else full
        self._known: OrderedDict[int, _Window] = OrderedDict()

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers of the rows at those places."""
        rows = np.empty(stop - start, np.int64)
        place = start
        while place < stop:
            number = place // self._window
            end = min((number + 1) * self._window, stop)
            self._fill(self._at(number), place, rows[place - start : end - start])
            place = end
        return rows

    def _fill(self, window: _Window, place: int, out: Rows) -> None:
        window.within.fill(place - window.first, out)
        out += window.first
        out += window.shifts[np.searchsorted(window.starts, out, side="right") - 1]

    def _at(self, number: int) -> _Window:
        """The window of that number; several threads may ask at once, and make it more than once."""
        window = self._known.get(number)
        if window is None:
            window = self._known[number] = self._make(number)
            while len(self._known) > _WINDOWS_KEPT:
                self._known.popitem(last=False)
        return window

    def _make(self, number: int) -> _Window:
        first = number * self._window
        size = min(self._window, self.length - first)
        turns = np.arange(self._turn_at(first), self._turn_at(first + size - 1) + 1)
        is_late = turns > self._turn  # behind the smaller block
        starts = turns * self._block - is_late * (self._block - self._rest)
        blocks = self._blocks_at(turns - is_late)
        blocks[turns == self._turn] = self._full
        within = _native.permutation(size, key_of(self._key, 2, number))
        return _Window(first, within, starts, blocks * self._block - starts)

    def _turn_at(self, place: int) -> int:
        """The turn of the block at a place of the sequence."""
        if place < self._turn * self._block + self._rest:
            return place // self._block
        return (place - self._rest) // self._block + (self._rest > 0)

    def _blocks_at(self, turns: Rows) -> Rows:
        """Which full blocks have their turn; anything for a turn behind the last."""
        begin = int(turns[0])
        numbers = np.empty(min(int(turns[-1]) + 1, self._full) - begin, np.int64)
        self._blocks.fill(begin, numbers)
        known = np.append(numbers, -1)
        return known[np.minimum(turns - begin, len(numbers))]
