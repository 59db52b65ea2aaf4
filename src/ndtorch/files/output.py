"""A file that is written from front to back: bytes from memory, or copied by the kernel out of another file."""

from __future__ import annotations

import errno
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from .. import _native
from .arrays import AnyArray, Stored
from .items import Item
from .storage import thread_count

_AT_ONCE = 64 << 20  # bytes copied by one call: progress is seen after each
_SLAB = 64 << 20  # of columns that become rows: the more at a time, the longer are the pieces of a row
_WRITTEN_AT_ONCE = 8 << 20  # from memory: the disk begins with them while the next are copied
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


class Output:
    """Where a format writes.

    Args:
        stream: A raw file of this system, or one of fsspec's.
        watch: Told after every step how many bytes were written.
        start: Where in the stream it begins; the stream is there.
    """

    def __init__(self, stream: BinaryIO, watch: Callable[[int], None] | None = None, *, start: int = 0) -> None:
        self._stream = stream
        self._watch = watch
        self._done = start

    def tell(self) -> int:
        """Where in the stream it is."""
        return self._done

    def flush(self) -> None:
        """Nothing waits here."""

    def reserve(self, nbytes: int) -> None:
        """Set space aside, where the system can: a full disk is found before anything is written."""
        target = self._descriptor()
        if target is not None:
            _native.reserve(target, nbytes)

    def write(self, data: Any) -> int:
        """Write bytes, or the memory of a contiguous array, and say how many they were."""
        count = self._put(data)
        self._advance(count)
        return count

    def write_rows(self, item: Item) -> None:
        """Write the elements of an array row by row, in little-endian order."""
        if item.parts:
            for part in item.parts:
                self.write_rows(part)
            return
        little = item.dtype.newbyteorder("<")
        if little == item.dtype and item.order == "C" and self._copy(item):
            return
        if item.order == "F" and len(item.shape) == 2 and self._scatter(item, little):
            return
        self._write_blocks(block.astype(little, copy=False) for block in item.blocks("C"))

    def write_as_it_lies(self, item: Item) -> None:
        """Write the elements of an array in its own order and byte order."""
        if item.parts:
            self.write_rows(item)
        elif not self._copy(item):
            self._write_blocks(item.blocks(item.order))

    def _write_blocks(self, blocks: Iterable[AnyArray]) -> None:
        """Write blocks, each by another thread while this one makes the next."""
        left = iter(blocks)
        first, second = next(left, None), next(left, None)
        if second is None:  # a thread would cost more than it saves
            self._advance(0 if first is None else self._put(first))
            return
        pending: Future[int] | None = None
        with ThreadPoolExecutor(1) as pool:
            for block in itertools.chain((first, second), left):
                if pending is not None:
                    self._advance(pending.result())
                pending = pool.submit(self._put, block)
            if pending is not None:
                self._advance(pending.result())

    def _scatter(self, item: Item, dtype: np.dtype[Any]) -> bool:
        """Write wide columns into all the rows that they are part of; whether that is the better way.

        Reading rows out of columns takes a piece of every column for each slab; here a slab is some whole columns, and
        what is written of each row is the longer the fewer rows there are.
        """
        rows, columns = item.shape
        target, row_nbytes = self._descriptor(), columns * dtype.itemsize
        if target is None or rows >= columns or item.nbytes <= _SLAB or not (dtype.isnative and item.row):
            return False
        slab, first, filled = np.empty((rows, 0), dtype), 0, 0
        for block in _whole_columns(item.blocks("F"), rows):
            left = block
            while len(left):
                if not slab.size:
                    slab = np.empty((rows, min(max(_SLAB // rows // dtype.itemsize, 1), columns - first)), dtype)
                count = min(slab.shape[1] - filled, len(left))
                _native.copy(slab[:, filled : filled + count], left[:count].T, False)
                filled, left = filled + count, left[count:]
                if filled == slab.shape[1]:
                    place = self._done + first * dtype.itemsize
                    _native.write_runs(target, place, row_nbytes, slab.reshape(-1).view(np.uint8), rows, thread_count())
                    if self._watch is not None:
                        self._watch(slab.nbytes)
                    first, filled, slab = first + filled, 0, np.empty((rows, 0), dtype)
        self._done += item.nbytes
        self._stream.seek(self._done)
        return True

    def _put(self, data: Any) -> int:
        plain: Any = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else data
        view, target = memoryview(plain).cast("B"), self._descriptor()
        done = 0
        while done < len(view):
            count = self._stream.write(view[done : done + _WRITTEN_AT_ONCE])
            if target is not None and count >= _WRITTEN_AT_ONCE // 2:
                _native.start_writeback(target, self._stream.tell() - count, count)
            done += count
        return done

    def _copy(self, item: Item) -> bool:
        """Have the kernel copy what a file has as it is to be written; whether it did."""
        target = self._descriptor()
        if item.stored is None or target is None or item.stored.checksum is not None:
            return False
        with item.stored.storage.descriptor() as source:
            return source is not None and self._copy_from(source, target, item, item.stored)

    def _copy_from(self, source: int, target: int, item: Item, stored: Stored) -> bool:
        offset, left = stored.offset, item.nbytes
        while left:
            count = min(left, _AT_ONCE)
            try:
                is_all = _native.copy_file(source, offset, target, self._done, count, thread_count())
            except OSError as error:
                if error.errno in _CANNOT and left == item.nbytes:
                    return False
                raise
            if not is_all:
                raise stored.storage.ends_early(offset + left)
            self._advance(count)
            offset, left = offset + count, left - count
            self._stream.seek(self._done)
        return True

    def _descriptor(self) -> int | None:
        """That of a file which has no buffer of its own: what is written past the stream is where it belongs."""
        return self._stream.fileno() if isinstance(self._stream, io.FileIO) else None

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._watch is not None:
            self._watch(nbytes)


def _whole_columns(blocks: Iterable[AnyArray], rows: int) -> Iterator[AnyArray]:
    """Cut a stream of columns, which ends anywhere in one, into matrices of whole ones."""
    rest: AnyArray | None = None
    for block in blocks:
        if rest is not None:
            needed = rows - rest.size
            rest, block = np.concatenate([rest, block[:needed]]), block[needed:]
            if rest.size < rows:
                continue
            yield rest.reshape(1, rows)
        whole = block.size // rows * rows
        if whole:
            yield block[:whole].reshape(-1, rows)
        rest = block[whole:].copy() if whole < block.size else None
