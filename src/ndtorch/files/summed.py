"""An output that takes the checksum of all that goes into it on the way, while it is in the cache of a core.

To read back what was written takes as long as a third of writing it, and finds the pages that were just written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np
from isal.isal_zlib import crc32

from .. import _native
from .arrays import Stored
from .items import Item
from .output import Output
from .storage import empty, in_parts, join_checksums

_PIECE = 256 << 10  # bytes: they are still in the cache of a core when they are written
_STARTED = 8 << 20  # bytes that the disk begins with at a time
_AT_ONCE = 64 << 20  # bytes copied between two looks at who watches


class SummedOutput(Output):
    """Where a format writes, with the CRC-32 of all bytes so far and of each array's elements.

    Args:
        stream: A raw file of this system, at its beginning.
        watch: As in `Output`.

    Attributes:
        crc32: The checksum of all bytes so far; ``None`` where they were not written from front to back.
        sums: The checksums of the elements as they were written, by the name of the array.
    """

    def __init__(self, stream: BinaryIO, watch: Callable[[int], None] | None = None) -> None:
        super().__init__(stream, watch)
        self.crc32: int | None = 0
        self.sums: dict[str, int] = {}

    def write_rows(self, item: Item) -> None:
        """Write the elements of an array row by row, in little-endian order."""
        self._sum_up(item, super().write_rows)

    def write_as_it_lies(self, item: Item) -> None:
        """Write the elements of an array in its own order and byte order."""
        self._sum_up(item, super().write_as_it_lies)

    def _sum_up(self, item: Item, write: Callable[[Item], None]) -> None:
        before, start = self.crc32, self.tell()
        write(item)
        if before is not None and self.crc32 is not None:
            # Of all bytes it is that of those before, moved on by the length of these, combined with that of these.
            self.sums[item.name] = self.crc32 ^ join_checksums(before, 0, self.tell() - start)

    def _scatter(self, item: Item, dtype: np.dtype[Any]) -> bool:
        is_done = super()._scatter(item, dtype)
        if is_done:
            self.crc32 = None
        return is_done

    def _put(self, data: Any) -> int:
        plain: Any = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else data
        view, target = memoryview(plain).cast("B"), self._descriptor()
        done = started = 0
        while done < len(view):
            piece = view[done : done + _PIECE]
            count = self._stream.write(piece)
            if self.crc32 is not None:
                self.crc32 = crc32(piece[:count], self.crc32)
            done += count
            if target is not None and (done - started >= _STARTED or (started and done == len(view))):
                _native.start_writeback(target, self._stream.tell() - (done - started), done - started)
                started = done
        return done

    def _copy_from(self, source: int, target: int, item: Item, stored: Stored) -> bool:
        offset, left = stored.offset, item.nbytes
        while left:
            count = min(left, _AT_ONCE)
            crc = in_parts(_Copy(source, offset, target, self._done, stored), count)
            if self.crc32 is not None:
                self.crc32 = join_checksums(self.crc32, crc, count)
            self._advance(count)
            offset, left = offset + count, left - count
            self._stream.seek(self._done)
        return True


class _Copy:
    """A copy from one file into another that takes the checksum of what it copies."""

    def __init__(self, source: int, offset: int, target: int, place: int, stored: Stored) -> None:
        self._source, self._offset = source, offset
        self._target, self._place = target, place
        self._stored = stored

    def __call__(self, begin: int, end: int) -> int:
        """Copy the bytes between two places, and give their CRC-32."""
        buffer = memoryview(cast(Any, empty(min(_PIECE, end - begin))))
        crc, at, started = 0, begin, begin
        while at < end:
            count = os.preadv(self._source, [buffer[: end - at]], self._offset + at)
            if not count:
                raise self._stored.storage.ends_early(self._offset + end)
            crc = crc32(buffer[:count], crc)
            self._write(buffer[:count], self._place + at)
            at += count
            if at - started >= _STARTED or at == end:
                _native.start_writeback(self._target, self._place + started, at - started)
                started = at
        return crc

    def _write(self, piece: memoryview, place: int) -> None:
        while len(piece):
            count = os.pwrite(self._target, piece, place)
            piece, place = piece[count:], place + count
