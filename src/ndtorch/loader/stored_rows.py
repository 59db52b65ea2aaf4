"""Rows of arrays that lie in a file as they lie in memory: mapped, or read one by one."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import _native
from .._errors import FormatError, UnsupportedTypeError
from ..files.arrays import FileArray, Packed, Stored
from ..files.joined import Joined
from ..files.storage import LocalStorage
from .chunk_rows import Piece, StretchRows, rows_of_piece
from .columns import Column
from .file_rows import FileColumn, FileRows, Form, at_row
from .orders import Rows
from .shard_rows import ShardRows

AnyArray = npt.NDArray[Any]

# Measured with warm caches: reading rows of 48 KB takes a sixth longer than copying them out of a map, and a file that
# is truncated meanwhile is an error and not the end of the process. Of 784 bytes reading takes six times as long.
_LONG = 32 << 10
_REQUESTS = 8  # for a file that is far away, at a time


def rows_of_array(array: FileArray) -> FileRows:
    """The rows of an array in a file.

    Raises:
        NdtorchError: It cannot be read, or has no rows.
    """
    array.require()
    if not array.shape:
        fact = f"{array.where} has no rows"
        raise UnsupportedTypeError("Loader", fact, expected="an array of at least one dimension", got="()")
    if isinstance(array.layout, Joined):
        return ShardRows(array, rows_of_array, _LONG)
    layout, length = array.layout, array.shape[0]
    inner = tuple(slice(0, n) for n in array.shape[1:])
    if isinstance(layout, Packed):
        read, per = layout.read, length if layout.stream is not None else layout.rows
        return rows_of_piece(
            Piece(array.where, array.shape, array.dtype, per, lambda a, b: read((slice(a, b), *inner)))
        )
    assert isinstance(layout, Stored)
    with layout.storage.descriptor() as descriptor:
        is_local = descriptor is not None
    if is_local and (array.order == "C" or array.map(writable=False) is not None):
        return StoredRows(array, layout)
    is_dense = array.order == "C"
    piece = Piece(
        array.where, array.shape, array.dtype, 1 if is_dense else length, lambda a, b: array.select(slice(a, b))
    )
    return StretchRows(piece, _REQUESTS) if is_dense else rows_of_piece(piece)


class StoredRows(FileRows):
    """Rows of a local file.

    Args:
        array: What is known of the array.
        layout: Where it is.
    """

    def __init__(self, array: FileArray, layout: Stored) -> None:
        self.where = array.where
        self.length, self.shape, self.dtype = array.shape[0], array.shape[1:], array.dtype
        self._array = array
        self._is_dense = array.order == "C"
        self._storage = layout.storage
        self._begin = layout.offset
        self._step = layout.strides[0]
        ends = (max(n - 1, 0) * step for n, step in zip(array.shape, layout.strides, strict=True))
        self._end = layout.offset + (sum(ends) + array.dtype.itemsize if array.nbytes else 0)

    def column(self, form: Form) -> Column:
        """Long rows that become nothing else are read, others are gathered from a map."""
        if self._is_dense and self.row_nbytes >= _LONG:
            column = FileColumn(self, form)
            if column.is_direct:
                return column
        return super().column(form)

    def mapped(self) -> AnyArray | None:
        """All rows as memory of the file, read-only."""
        return self._array.map(writable=False)

    def in_file(self) -> tuple[LocalStorage, int] | None:
        """The file in which they follow each other."""
        is_there = self._is_dense and self.row_nbytes > 0 and isinstance(self._storage, LocalStorage)
        return (cast(LocalStorage, self._storage), self._begin) if is_there else None

    def check(self) -> None:
        """Raise an error where the file has become shorter."""
        size = self._storage.size_now() if isinstance(self._storage, LocalStorage) else self._end
        if size < self._end:
            raise self._ends_early(size)

    def _ends_early(self, size: int) -> FormatError:
        fact = f"{self.where} has become shorter than its array"
        return FormatError("Loader", fact, expected=f"{self._end} bytes", got=size, hint="read it again")

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Read rows by their places."""
        raw = target.reshape(-1).view(np.uint8)
        if not raw.size:
            return
        if not self._is_dense:
            self.check()
            target[...] = cast(AnyArray, self.mapped())[rows]
            return
        with self._storage.descriptor() as descriptor:
            assert descriptor is not None
            step = self._step if self.length > 1 else self.row_nbytes
            done = _native.read_rows(descriptor, self._begin, step, self.row_nbytes, rows, raw)
            if done == len(rows):
                return
            size = os.fstat(descriptor).st_size
        with at_row(self.where, int(rows[done])):
            raise self._ends_early(size)

    def announce(self, rows: Rows) -> None:
        """Have the kernel read the rows; where they lie scattered it would read everything."""
        if not self._is_dense or not self.row_nbytes:
            return
        with self._storage.descriptor() as descriptor:
            if descriptor is not None:
                _native.announce_file(descriptor, self._begin, self._step, self.row_nbytes, rows)
