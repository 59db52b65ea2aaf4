"""Rows of arrays that lie in chunks, in stretches or in one piece: decoded once where that is possible."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._errors import FormatError, UnsupportedTypeError
from .chunk_cache import shared_cache
from .file_rows import FileRows, at_row, copy_rows, stretches
from .memory_left import memory_left
from .orders import Rows

AnyArray = npt.NDArray[Any]
Decode = Callable[[int, int], AnyArray]
"""``decode(start, stop)`` gives the rows from one to before another, as a new array."""

_SMALL = 1 << 16  # bytes: what a chunk of fewer takes to be decoded counts less than to keep it
_KEPT = 1 << 20  # bytes of rows that are decoded together where chunks are smaller, or none
_AT_ONCE = 16 << 20  # bytes of a stretch that are read at a time
_NEAR = 1 << 16  # bytes between two stretches that are read through


class Piece(NamedTuple):
    """An array whose rows have to be decoded.

    Attributes:
        where: What errors call it.
        shape: Its sizes.
        dtype: What it is decoded to.
        chunk_rows: How many rows are decoded together; all of them, where it is packed as one piece.
        decode: Decodes some.
        hint: What helps where all that is decoded together is too much.
        is_live: Whether its owner may write to it between two loops, so that what is kept is good for one of them.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    decode: Decode
    hint: str = "nd.convert_file(path, 'file.npy') once, and read that"
    is_live: bool = False

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row in memory."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def rows_of_piece(piece: Piece) -> FileRows:
    """The rows of an array that has to be decoded: by chunks that are kept a while, or as they come.

    Raises:
        UnsupportedTypeError: One chunk has more bytes than there is memory for.
    """
    row_nbytes, length = max(piece.row_nbytes, 1), piece.shape[0]
    per = min(max(piece.chunk_rows, 1), max(length, 1))
    if per * row_nbytes > memory_left() // 2:
        what = "is packed as one piece" if per >= length else f"is packed by {per} rows"
        fact = f"{piece.where} {what}, of {per * row_nbytes} bytes in memory, which is more than half of what is left"
        raise UnsupportedTypeError("Loader", fact, hint=piece.hint)
    if per >= length or per * row_nbytes >= _SMALL:
        return ChunkRows(piece, per)
    if length * row_nbytes <= shared_cache().capacity:
        return ChunkRows(piece, per * max(_KEPT // (per * row_nbytes), 1))
    return StretchRows(piece)


class ChunkRows(FileRows):
    """Rows out of decoded chunks, which a cache keeps for those who come next.

    Args:
        piece: The array.
        chunk_rows: How many rows are decoded and kept together.
    """

    wants_order = True
    _number = itertools.count()

    def __init__(self, piece: Piece, chunk_rows: int) -> None:
        self.where = piece.where
        self.length, self.shape, self.dtype = piece.shape[0], piece.shape[1:], piece.dtype
        self.stretch = chunk_rows
        self._piece = piece
        self._cache = shared_cache()
        self._key = next(ChunkRows._number)
        self._renewals = 0  # part of the keys: what a thread of an earlier loop decodes late is not taken for new
        self._whole: tuple[int, AnyArray] | None = None  # where there is but one chunk: it is not dropped for others
        self.read_ahead = self._cache.capacity // 4  # what is decoded too early is gone before it is taken
        if self.stretch < self.length and self.length * self.row_nbytes > self._cache.capacity:
            size = f"{self.length * self.row_nbytes} bytes in chunks of {chunk_rows} rows"
            kept = f"{self._cache.capacity} bytes of them can be kept"
            self.scattered = f"{self.where} has {size}, and {kept}: a chunk is decoded for almost every row"
        weakref.finalize(self, self._cache.forget, self._key).atexit = False

    def begin(self) -> None:
        """Forget what was decoded for earlier loops, where it may have been written to since."""
        if self._piece.is_live:
            self._renewals += 1
            self._cache.forget(self._key)

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Copy rows out of their chunks; a chunk that another thread decodes is left for the end."""
        numbers = rows // self.stretch
        left = stretches(numbers, -1)
        for may_wait in (False, True):
            postponed = []
            for begin, end in left:
                number = int(numbers[begin])
                with at_row(self.where, int(rows[begin])):
                    chunk = self._chunk(number, may_wait=may_wait)
                if chunk is None:
                    postponed.append((begin, end))
                else:
                    copy_rows(chunk, rows[begin:end] - number * self.stretch, target[begin:end])
                del chunk  # or it would be in memory beside the next
            left = postponed

    def _chunk(self, number: int, *, may_wait: bool) -> AnyArray | None:
        renewals, whole = self._renewals, self._whole
        if whole is not None and whole[0] == renewals:
            return whole[1]
        chunk = self._cache.get(*self._wanted(number), may_wait=may_wait)
        if self.stretch >= self.length and chunk is not None:
            self._whole = renewals, chunk
        return chunk

    def announce(self, rows: Rows) -> None:
        """Have chunks decoded by threads that do nothing else."""
        numbers = np.unique(rows // self.stretch)
        if self._whole is not None and self._whole[0] == self._renewals:
            return
        if len(numbers) * self.stretch * self.row_nbytes <= self._cache.capacity // 2:  # else they are gone before that
            for number in numbers.tolist():
                self._cache.ahead(*self._wanted(number))

    def _wanted(self, number: int) -> tuple[tuple[int, int, int], int, Callable[[], AnyArray]]:
        start, piece = number * self.stretch, self._piece
        stop = min(start + self.stretch, self.length)

        def load() -> AnyArray:
            return _decoded(piece, start, stop)

        return (self._key, self._renewals, number), (stop - start) * self.row_nbytes, load


class StretchRows(FileRows):
    """Rows that are read when they are asked for, those that follow each other at once.

    Args:
        piece: The array.
        requests: How many stretches are read at a time.
    """

    wants_order = True

    def __init__(self, piece: Piece, requests: int = 1) -> None:
        self.where = piece.where
        self.length, self.shape, self.dtype = piece.shape[0], piece.shape[1:], piece.dtype
        self.stretch = piece.chunk_rows
        self._piece = piece
        self._requests = requests

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Read the stretches that have all the rows."""
        row_nbytes = max(self.row_nbytes, 1)
        most = max(_AT_ONCE // row_nbytes, 1)
        parts = []
        for begin, end in stretches(rows, _NEAR // row_nbytes if self._requests > 1 else 0):
            cuts = np.searchsorted(rows[begin:end], np.arange(rows[begin] + most, rows[end - 1] + 1, most)) + begin
            ends = [begin, *cuts.tolist(), end]
            parts += [part for part in itertools.pairwise(ends) if part[0] < part[1]]

        def fill(part: tuple[int, int]) -> None:
            some = rows[slice(*part)]
            with at_row(self.where, int(some[0])):
                found = _decoded(self._piece, int(some[0]), int(some[-1]) + 1)
            copy_rows(found, some - some[0], target[slice(*part)])

        if self._requests < 2 or len(parts) < 2:
            for part in parts:
                fill(part)
            return
        with ThreadPoolExecutor(min(self._requests, len(parts))) as pool:
            for done in [pool.submit(fill, part) for part in parts]:
                done.result()


def _decoded(piece: Piece, start: int, stop: int) -> AnyArray:
    found = np.ascontiguousarray(piece.decode(start, stop), piece.dtype)
    expected = (stop - start, *piece.shape[1:])
    if found.shape != expected:  # somebody has resized it meanwhile
        fact = f"{piece.where} has another shape than when the loader was made"
        raise FormatError("Loader", fact, expected=expected, got=found.shape, hint="make the loader anew")
    return found
