"""The rows of a unit's files: each opened, small equal ones many at once, and parts of them as items to be written."""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _native
from .._errors import FormatError, MissingDependencyError, NdtorchError
from .._write import Casts, cast_item, item_of_file, item_of_memory, prepare
from ..files import ArrayFile, MissingChunks, open_file
from ..files.arrays import AnyArray, FileArray, Order, Stored
from ..files.items import Item
from ..files.remote import RemoteStorage, is_url, shown
from ..files.sharded import dtype_text
from ..files.storage import MemoryStorage, thread_count
from .ahead import KEPT, Ahead
from .stopping import check_stopped
from .units import SourceFile

Schema = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of a row, by the name of the array."""

REFUSALS = (NdtorchError, OSError, MemoryError)

_OF_THE_TARGET = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def is_of_target(error: BaseException) -> bool:
    """Whether something cannot be written, of which no source is to be blamed."""
    if isinstance(error, NdtorchError):
        return bool(error.facts.get("is_of_target"))
    return isinstance(error, OSError) and error.errno in _OF_THE_TARGET


_WAY_ON = "on_error='skip' (--on-error skip) leaves it out"

_SMALL = 128 << 10  # bytes of files that are read whole, by one call
_LOADED = 64 << 20  # bytes of those that are in memory at a time


class Reading(NamedTuple):
    """How sources are read.

    Attributes:
        casts: What happens to dtypes.
        source_format: Name of their format, where suffixes do not tell.
        name: What an array is called that has no name in its file.
        is_row: Whether a whole file is one row, as a picture always is; else the first axis of its arrays counts rows.
        missing_chunks: Whether chunks of Zarr that are not there are an error, or hold the fill value.
    """

    casts: Casts
    source_format: str | None = None
    name: str = "data"
    is_row: bool = False
    missing_chunks: MissingChunks = "error"


class Items:
    """Makes items of arrays in files; what becomes of a dtype is found out once.

    Args:
        casts: What happens to dtypes.
    """

    def __init__(self, casts: Casts) -> None:
        self._casts = casts
        self._is_plain = casts.asks_nothing
        self._targets: dict[np.dtype[Any], np.dtype[Any]] = {}

    def of_file(self, name: str, array: FileArray) -> Item:
        """The item of an array in a file.

        Raises:
            NdtorchError: It cannot be read, or not be cast so.
        """
        if self._is_plain:
            return item_of_file(name, array)
        if array.dtype not in self._targets:
            (first,) = prepare({name: array}, self._casts)
            self._targets[array.dtype] = first.item.dtype
        return self._cast(item_of_file(name, array))

    def of_memory(self, name: str, array: AnyArray) -> Item:
        """The item of an array that has been read from a file of a dtype that is known."""
        return self._cast(item_of_memory(name, array))

    def _cast(self, item: Item) -> Item:
        target = self._targets.get(item.dtype, item.dtype)
        return item if target == item.dtype else cast_item(item, target, self._casts.casting)


# --- one file


def opened(file: SourceFile, reading: Reading, name: str | None = None, ahead: Ahead | None = None) -> ArrayFile:
    """Read the headers of a source; a small one is read whole, and not held open."""
    if ahead is not None and file in ahead:
        content: bytes | None = ahead.content(file)
    else:
        content = _content(file) if file.nbytes <= _SMALL and not file.is_store else None
    storage = None if content is None else MemoryStorage(shown(file.path), content)
    claim = file.claim
    if claim is not None and claim.arrays:
        name = claim.arrays[0][0]  # of a file that has no names itself
    found = open_file(
        file.path, format=reading.source_format, name=name, storage=storage, missing_chunks=reading.missing_chunks
    )
    if claim is None:
        return found
    if not file.is_store:
        claim.check_nbytes(file.nbytes)
    return ArrayFile(found.path, found.format, list(claim.proved(found.values()).values()))


def _content(file: SourceFile) -> bytes | None:
    """All bytes of a small file; ``None`` of what is a folder by now."""
    if is_url(file.path):
        return RemoteStorage(file.path, file.nbytes).whole()
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, file.nbytes + 1)
    except IsADirectoryError:
        return None
    finally:
        os.close(descriptor)


class RowFile:
    """A file of rows, of which the headers have been read.

    Attributes:
        file: The file.
        files: This file: what several `EqualFiles` are.
        arrays: Its arrays, by the names that they get.
        items: The same as they are going to be written.
        rows: How many rows it has.
        schema: Dtype and shape of its rows.
    """

    def __init__(
        self, file: SourceFile, reading: Reading, items: Items | None = None, ahead: Ahead | None = None
    ) -> None:
        self.file = file
        self.files: tuple[SourceFile, ...] = (file,)
        self._make = items or Items(reading.casts)
        arrays = opened(file, reading, reading.name, ahead)
        self.arrays = dict(arrays)
        self.items = {name: self._make.of_file(name, array) for name, array in self.arrays.items()}
        self._is_row = reading.is_row or arrays.format.name == "picture"
        self.rows = 1 if self._is_row else self._count()
        lead = 0 if self._is_row else 1
        self.schema: Schema = {name: (dtype_text(each.dtype), each.shape[lead:]) for name, each in self.items.items()}
        self._cursors: dict[str, _Cursor] = {}

    def _count(self) -> int:
        lengths = {name: array.shape[0] if array.shape else None for name, array in self.arrays.items()}
        rows = next(iter(lengths.values()), None)
        odd = next((name for name, length in lengths.items() if length is None or length != rows), None)
        if rows is None or odd is not None:
            told = {name: "no rows" if length is None else f"{length} rows" for name, length in lengths.items()}
            listed = ", ".join(f"{name!r} {length}" for name, length in itertools.islice(told.items(), 6))
            hint = "arrays of one length along their first axis are rows of one table; rows='files' (--rows files) "
            hint += "makes each file one row"
            fact = f"{shown(self.file.path)!r} is no table: it has {listed or 'no arrays'}"
            raise FormatError("convert", fact, hint=hint)
        return rows

    def check(self, schema: Schema, *, hint: str | None = None) -> None:
        """Refuse a file whose rows are not those of the others."""
        if self.schema != schema:
            fact = f"{shown(self.file.path)!r} has other rows than the first file"
            raise FormatError("convert", fact, expected=told(schema), got=told(self.schema), hint=hint)

    def broken(self) -> list[tuple[SourceFile, BaseException]]:
        """Read all of it and keep nothing, to see whether that can be done."""
        return _why_broken(self.file, self.items.values())

    def part(self, name: str, start: int, stop: int) -> Item:
        """Rows of an array, as an item."""
        item, array, layout = self.items[name], self.arrays[name], self.arrays[name].layout
        if stop - start == self.rows:
            return self._item(item) if not self._is_row else self._item(_reshaped(item, (1, *item.shape)))
        shape = (stop - start, *array.shape[1:])
        if isinstance(layout, Stored) and array.order == "C":
            moved = replace(layout, offset=layout.offset + start * math.prod(array.shape[1:]) * array.dtype.itemsize)
            return self._item(self._make.of_file(name, replace(array, shape=shape, layout=moved)))
        cursor = self._cursors.setdefault(name, _Cursor(item))
        each = math.prod(item.shape[1:])
        return self._item(Item(name, item.dtype, shape, "C", lambda order: cursor.blocks(start * each, stop * each)))

    def _item(self, item: Item) -> Item:
        """The same in little-endian order: files of either may be rows of one table."""
        little = item.dtype.newbyteorder("<")
        if item.dtype == little:
            return item
        blocks = partial(_swapped, item, little)
        return replace(item, dtype=little, blocks=blocks, stored=None)


def _why_broken(file: SourceFile, items: Iterable[Item]) -> list[tuple[SourceFile, BaseException]]:
    try:
        for item in items:
            for _ in item.blocks("C"):
                pass
    except REFUSALS as error:
        return [(file, error)]
    return []


def _swapped(item: Item, dtype: np.dtype[Any], order: Order) -> Iterator[AnyArray]:
    return (block.astype(dtype, copy=False) for block in item.blocks(order))


def _reshaped(item: Item, shape: tuple[int, ...]) -> Item:
    """The same elements row by row in another shape."""
    stored = item.stored if item.order == "C" else None
    return replace(item, shape=shape, order="C", blocks=lambda order: item.blocks("C"), stored=stored)


def told(schema: Schema) -> str:
    """Rows in few words, such as ``'data' float32[32]``."""
    parts = [f"{name!r} {dtype}[{','.join(map(str, shape))}]" for name, (dtype, shape) in schema.items()]
    return ", ".join(parts[:6]) or "no arrays"


class _Cursor:
    """The elements of an array that is decoded from front to back, taken in parts."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._at = -1  # the element that comes next, once there is one
        self._rest: Iterator[AnyArray] = iter(())

    def blocks(self, start: int, stop: int) -> Iterator[AnyArray]:
        """Give the elements from ``start`` to ``stop``; to go on where the last part ended costs nothing."""
        if start != self._at:
            self._rest = self._from(start)
        self._at = -1
        left = stop - start
        while left:
            block = next(self._rest)
            if block.size > left:
                self._rest = itertools.chain((block[left:],), self._rest)
                block = block[:left]
            left -= block.size
            yield block
        self._at = stop

    def _from(self, start: int) -> Iterator[AnyArray]:
        for block in self._item.blocks("C"):
            if block.size > start:
                yield block[start:]
            start = max(start - block.size, 0)


# --- many small ones


class EqualFiles:
    """Small files of one array each, with headers that are equal byte by byte; all of them have been read.

    Attributes:
        files: The files.
        rows: How many rows they have.
        schema: Dtype and shape of their rows.
    """

    def __init__(self, files: Sequence[SourceFile], name: str, arrays: AnyArray, make: Items, *, is_row: bool) -> None:
        self.files = tuple(files)
        self._name = name
        self._make = make
        self._arrays = arrays  # one of each file
        self._array = arrays if is_row else arrays.reshape(len(files) * arrays.shape[1], *arrays.shape[2:])
        self.rows = len(self._array)
        self.schema: Schema = {name: (dtype_text(self.of(0, name).dtype), self._array.shape[1:])}

    def check(self, schema: Schema) -> None:
        """The first has been checked, and the others are like it."""

    def of(self, number: int, name: str) -> Item:
        """The array of one of the files, by another name."""
        return self._make.of_memory(name, self._arrays[number])

    def broken(self) -> list[tuple[SourceFile, BaseException]]:
        """All of it has been read; whether it can be cast is left to find out."""
        both = enumerate(self.files)
        return [one for number, file in both for one in _why_broken(file, [self.of(number, self._name)])]

    def part(self, name: str, start: int, stop: int) -> Item:
        """Rows of the array, as an item."""
        item = self._make.of_memory(name, self._array[start:stop])
        little = item.dtype.newbyteorder("<")
        return item if item.dtype == little else replace(item, dtype=little, blocks=partial(_swapped, item, little))


Rows = RowFile | EqualFiles


class Opened(NamedTuple):
    """What has been opened of a unit.

    Attributes:
        rows: What has rows.
        failures: Files that have none, and why.
    """

    rows: list[Rows]
    failures: list[tuple[SourceFile, BaseException]]


def open_rows(files: Sequence[SourceFile], reading: Reading, schema: Schema, *, keep_going: bool) -> Opened:
    """Open files as rows of one table.

    Args:
        files: The files.
        reading: How they are read.
        schema: What their rows have to be.
        keep_going: Whether what cannot be opened is put on a list; else the first is raised.
    """
    make, found, ahead = Items(reading.casts), Opened([], []), Ahead(files, KEPT)
    at = 0
    while at < len(files):
        check_stopped()
        try:
            first = RowFile(files[at], reading, make, ahead)
            first.check(schema)
            run = equal_run(files, at, first.arrays, make, is_row=reading.is_row)
            found.rows.append(run or first)
            at += len(run.files) if run else 1
        except REFUSALS as error:
            if not keep_going:
                raise named(error, files[at]) from None
            found.failures.append((files[at], error))
            at += 1
    return found


def _is_plain(file: SourceFile) -> bool:
    """Whether it is a file of this machine that nobody has said anything about."""
    return file.claim is None and not is_url(file.path)


def first_schema(files: Sequence[SourceFile], reading: Reading, *, skips: bool = False) -> Schema:
    """Dtype and shape of the rows of the first file, which those of the others have to have.

    Args:
        files: All files.
        reading: How they are read.
        skips: Whether files that cannot be read are passed over.

    Raises:
        NdtorchError: It cannot be read, or is no table.
    """
    for file in files[:-1] if skips else ():
        with suppress(*REFUSALS):
            return RowFile(file, reading).schema
    last = files[-1 if skips else 0]
    try:
        return RowFile(last, reading).schema
    except REFUSALS as error:
        raise named(error, last) from None


def named(error: BaseException, file: SourceFile) -> BaseException:
    """The same error, which says which file it is about."""
    path = shown(file.path)
    if path not in str(error) and isinstance(error, NdtorchError):
        error.fact = f"{path!r}: {error.fact}"
        return error.renamed(error.subject)
    if path not in str(error):
        error.add_note(f"in {path!r}")
    return error


def with_way_on(error: BaseException) -> BaseException:
    """The same error about a source, with the option that has a run go on without it."""
    if not isinstance(error, NdtorchError):
        error.add_note(f"Hint: {_WAY_ON}.")
    elif not isinstance(error, MissingDependencyError) and "on_error" not in (error.hint or ""):
        error.renamed(error.subject, hint=f"{error.hint}; {_WAY_ON}" if error.hint else _WAY_ON)
    return error


def equal_run(
    files: Sequence[SourceFile], at: int, arrays: Mapping[str, FileArray], make: Items, *, is_row: bool
) -> EqualFiles | None:
    """Read the file at a place and those after it that are like it, byte by byte in their headers, if there are any.

    Args:
        files: The files.
        at: Which is the first.
        arrays: What is in that one.
        make: Makes items; it has made one of this file.
        is_row: Whether each file is one row.
    """
    nbytes, array = files[at].nbytes, next(iter(arrays.values()), None)
    if array is None or len(arrays) > 1 or nbytes > _SMALL or not _is_plain(files[at]):
        return None
    layout = array.layout
    if not isinstance(layout, Stored) or layout.checksum is not None or array.order != "C" or not array.nbytes:
        return None
    if layout.storage.size != layout.offset + array.nbytes:
        return None
    most = range(at, min(len(files), at + max(_LOADED // array.nbytes, 1)))
    alike = list(itertools.takewhile(lambda n: _is_plain(files[n]) and files[n].nbytes == nbytes, most))
    if len(alike) < 2:
        return None
    read = np.empty((len(alike), *array.shape), array.dtype)
    paths = tuple(os.fsencode(files[n].path) for n in alike)
    header = layout.storage.read(0, layout.offset)
    count = _native.read_equal_files(paths, header, read.reshape(-1).view(np.uint8), thread_count())
    if count < 2:
        return None
    return EqualFiles(files[at : at + count], next(iter(arrays)), read[:count], make, is_row=is_row)
