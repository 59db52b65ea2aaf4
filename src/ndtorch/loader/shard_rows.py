"""Rows of a data set in shards: each opened when its rows are wanted, many of them for one batch."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from .. import _native
from .._errors import FormatError, NdtorchError
from .._turns import Turns
from ..files.arrays import FileArray
from ..files.joined import Joined
from ..files.storage import LocalStorage, descriptors
from .chunk_cache import shared_cache
from .chunk_rows import ChunkRows, StretchRows
from .columns import Column
from .file_rows import FileColumn, FileRows, Form, InShards
from .memory_left import memory_left
from .orders import Rows

AnyArray = npt.NDArray[Any]
RowsOf = Callable[[FileArray], FileRows]

_MAX_OPEN = 4096  # shards that are mapped, or have chunks in memory, of one array
_MAX_MAPS = 32768  # of the arrays of all loaders together; the kernel allows a process 65,530, its threads' stacks too
_FEWEST = 64  # that an array may have all the same
_MAX_READ = 64  # files that one call reads from: a process may often have 1,024 open
_REQUESTS = 8  # for shards that are far away, at a time
_SMALL = 1 << 20  # bytes of a shard that is rather read than mapped: then nobody has to look at each file every time
_MOST_READ = 256 << 20  # bytes of such shards that are kept, of the arrays of all loaders together
_SHARE = 4  # of the memory that is left, one part
_SAMPLES = 4  # rows of which it is asked whether they are in memory, before that is asked of all files


class _Shard(NamedTuple):
    """A shard that is open.

    Attributes:
        rows: Its rows.
        place: The local file in which these follow each other, and the byte of the first.
    """

    rows: FileRows
    place: tuple[LocalStorage, int] | None


class _Run(NamedTuple):
    """Wanted rows that follow each other in a batch and are of one shard: from ``begin`` to before ``end``."""

    shard: int
    begin: int
    end: int


@contextmanager
def _within(starts: AnyArray, shard: int) -> Iterator[None]:
    """Have an error say which row of all it was, where it says which of the shard."""
    try:
        yield
    except NdtorchError as error:
        index = error.facts.get("index")
        if isinstance(index, tuple) and len(index) == 1:
            error.facts["index"] = (index[0] + int(starts[shard]),)
        raise


class _Opener:
    """Opens shards; knows nothing of who has them open.

    Args:
        array: What the shards are together.
        rows_of: Gives the rows of one.

    Attributes:
        is_reading: Whether a shard that is opened as memory is read whole, rather than mapped.
    """

    is_reading = False

    def __init__(self, array: FileArray, rows_of: RowsOf) -> None:
        self._joined = cast(Joined, array.layout)
        self._dtype = array.dtype
        self._rows_of = rows_of

    def rows(self, number: int) -> FileRows:
        """Open a shard."""
        array = cast(FileArray, self._joined.part(number))
        if array.dtype != self._dtype:
            raise FormatError("Loader", f"{array.where} has another dtype", expected=self._dtype, got=array.dtype)
        return self._rows_of(array)

    def memory(self, number: int) -> tuple[object, int, bytes, int, int, int, int, bool] | None:
        """Open a shard as memory, where it is that, for the kernels; the first of it is for `check`."""
        rows = self.rows(number)
        place = rows.in_file()
        memory = None if place is None else self._copy(rows, number) if self.is_reading else rows.mapped()
        if place is None or memory is None:
            return None
        path, device, inode = place[0].identity
        address, end = memory.__array_interface__["data"][0], place[1] + memory.nbytes
        with place[0].descriptor() as descriptor:
            return (rows, memory), address, os.fsencode(path), descriptor, device, inode, end, not self.is_reading

    def _copy(self, rows: FileRows, number: int) -> AnyArray:
        memory = np.empty((rows.length, *rows.shape), rows.dtype)
        with _within(self._joined.starts, number):
            rows.read(np.arange(rows.length), memory)
        return memory

    @staticmethod
    def check(opened: tuple[FileRows, AnyArray]) -> None:
        """Raise an error where a shard that is memory has become shorter."""
        opened[0].check()


class ShardRows(FileRows):
    """Rows of arrays of one kind, one array after the other.

    Short rows are gathered by one call from the maps of all their shards: in random order each row of a batch may be of
    another shard. Small shards that are together few bytes are read whole instead, when their rows are wanted. So one
    call reads long rows from several files.

    Args:
        array: What the shards are together.
        rows_of: Gives the rows of one.
        long: How many bytes a row has that is rather read than mapped.
    """

    _is_far = False
    _shards: _native.Shards | None = None
    _most = 0  # maps
    _kept = 0  # bytes of shards that are read whole

    def __init__(self, array: FileArray, rows_of: RowsOf, long: int) -> None:
        self.where = array.where
        self.length, self.shape, self.dtype = array.shape[0], array.shape[1:], array.dtype
        joined = cast(Joined, array.layout)
        self._starts, self.label = joined.starts, joined.label
        self._opener = _Opener(array, rows_of)
        self._is_short = self.row_nbytes < long
        self._opened: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()
        with _turns.taken():
            _all.add(self)
        filled = np.flatnonzero(np.diff(self._starts))
        if len(filled):
            self._learn_from(self._open(int(filled[0])).rows)

    def _learn_from(self, rows: FileRows) -> None:
        """All shards are of one format: what the first one wants, they all want."""
        self.wants_order, self.stretch = rows.wants_order, rows.stretch
        self._is_far = isinstance(rows, StretchRows)
        nbytes, capacity = self.length * self.row_nbytes, shared_cache().capacity
        if isinstance(rows, ChunkRows) and nbytes > capacity:
            size = f"{nbytes} bytes in chunks of {rows.stretch} rows"
            kept = f"{capacity} bytes of them can be kept"
            self.scattered = f"{self.where} has {size}, and {kept}: a chunk is decoded for almost every row"
        if rows.in_file() is not None:
            opener = self._opener
            opener.is_reading = self._may_read_all(nbytes)
            most = len(self._starts) - 1 if opener.is_reading else self._share_of_maps()
            self._shards = _native.Shards(self._starts, self.row_nbytes, opener.memory, opener.check, most)

    def _may_read_all(self, nbytes: int) -> bool:
        """Whether all shards may be read and kept: where they are small, and as much is left of what all may keep."""
        shards = len(self._starts) - 1
        if not self._is_short or shards > _MAX_OPEN or nbytes > shards * _SMALL or nbytes > memory_left() // _SHARE:
            return False
        with _turns.taken():
            if nbytes <= _MOST_READ - sum(other._kept for other in _all):
                self._kept = nbytes
        return self._kept > 0

    def _share_of_maps(self) -> int:
        """How many maps this array may have: a part of what the others have left."""
        shards = max(len(self._starts) - 1, 1)
        with _turns.taken():
            left = _MAX_MAPS - sum(other._most for other in _all)
            self._most = min(shards, _MAX_OPEN, max(left // 4, _FEWEST))
        return self._most

    def column(self, form: Form) -> Column:
        """Long rows that become nothing else are read, others are gathered from maps."""
        if not self._is_short:
            column = FileColumn(self, form)
            if column.is_direct:
                return column
        return super().column(form)

    def in_shards(self) -> InShards | None:
        """Where the rows are, if they are memory."""
        return None if self._shards is None else InShards(self._shards, np.zeros((1, *self.shape), self.dtype))

    # --- shards

    def _open(self, number: int) -> _Shard:
        with self._lock:
            found = self._opened.get(number)
            if found is not None:
                self._opened.move_to_end(number)
                return found
        rows = self._opener.rows(number)
        found = _Shard(rows, rows.in_file())
        with self._lock:
            found = self._opened.setdefault(number, found)
            while len(self._opened) > _MAX_OPEN:
                self._opened.popitem(last=False)
        return found

    def _shards_of(self, rows: Rows) -> AnyArray:
        return cast(AnyArray, np.searchsorted(self._starts, rows, "right") - 1)

    # --- rows

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Gather rows from maps, or read them from their files."""
        rows = np.ascontiguousarray(rows)
        if self._is_short and self._gathered(rows, target):
            return
        shards = self._shards_of(rows)
        if self._shards is None or not self._read_at_once(rows, shards, target):
            self._read_runs(rows, shards, target)

    def _gathered(self, rows: Rows, target: AnyArray) -> bool:
        """Gather rows from the maps of their shards, where all of these have one."""
        if self._shards is None:
            return False
        raw = target.reshape(-1).view(np.uint8).reshape(-1, self.row_nbytes)
        form = np.zeros((1, self.row_nbytes), np.uint8)
        done = 0
        while done < len(rows):
            held = self._shards.rows(rows[done:])
            if held is None:
                return False
            _native.gather(((raw[done : done + len(held)], form, held, None, False),))
            done += len(held)
        return True

    def _read_at_once(self, rows: Rows, shards: AnyArray, target: AnyArray) -> bool:
        """Read rows from many files by few calls; not all of them, where that needs to be said by name."""
        raw = target.reshape(-1).view(np.uint8)
        numbers, of_files = np.unique(shards, return_inverse=True)
        own, places = rows - self._starts[shards], np.arange(len(rows))
        opened = [self._open(number) for number in numbers.tolist()]
        for begin in range(0, len(numbers), _MAX_READ):
            some: AnyArray | slice = slice(None)
            if len(numbers) > _MAX_READ:
                some = (of_files >= begin) & (of_files < begin + _MAX_READ)
            files = _files_of(opened[begin : begin + _MAX_READ])
            if files is None:
                return False
            wanted = (of_files[some] - begin, own[some], places[some])
            with descriptors(files[0]) as numbers_of:
                done = _native.read_rows_of_files(numbers_of, files[1], self.row_nbytes, *wanted, raw)
            if done < len(wanted[0]):
                return False
        return True

    def _read_runs(self, rows: Rows, shards: AnyArray, target: AnyArray) -> None:
        """Read rows shard by shard."""
        ends = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        runs = [_Run(int(shards[a]), a, b) for a, b in itertools.pairwise(ends) if a < b]

        def fill(run: _Run) -> None:
            some = rows[run.begin : run.end] - self._starts[run.shard]
            with _within(self._starts, run.shard):
                self._open(run.shard).rows.read(some, target[run.begin : run.end])

        if not self._is_far or len(runs) < 2:
            for run in runs:
                fill(run)
            return
        with ThreadPoolExecutor(min(_REQUESTS, len(runs))) as pool:
            for done in [pool.submit(fill, run) for run in runs]:
                done.result()

    def announce(self, rows: Rows) -> None:
        """Have rows read ahead of the shards that are open: to open one may take a while."""
        rows = np.ascontiguousarray(rows)
        if self._shards is None:
            self._announce_each(rows)
        elif self._is_short:
            self._shards.announce(rows)
        elif self._announce_files(rows[:: max(len(rows) // _SAMPLES, 1)]):
            self._announce_files(rows)

    def _announce_each(self, rows: Rows) -> None:
        shards = self._shards_of(rows)
        for number in np.unique(shards).tolist():
            shard = self._opened.get(number)
            if shard is not None:
                with suppress(NdtorchError, OSError):
                    shard.rows.announce(rows[shards == number] - self._starts[number])

    def _announce_files(self, rows: Rows) -> bool:
        """Have rows read ahead of files, of no more than may be open at a time; whether they have to be read."""
        shards = self._shards_of(rows)
        numbers, of_files = np.unique(shards, return_inverse=True)
        found = [self._opened.get(number) for number in numbers.tolist()]
        opened = [number for number, shard in enumerate(found) if shard is not None][:_MAX_READ]
        places = np.full(len(found), -1)
        places[opened] = np.arange(len(opened))
        wanted = places[of_files]
        files = _files_of([cast(_Shard, found[number]) for number in opened])
        is_there = wanted >= 0
        own = (rows - self._starts[shards])[is_there]
        with suppress(NdtorchError, OSError):
            if files is not None:
                with descriptors(files[0]) as numbers_of:
                    wants = (wanted[is_there], own)
                    return _native.announce_files(numbers_of, files[1], self.row_nbytes, *wants)
        return False


def _files_of(opened: Sequence[_Shard]) -> tuple[list[LocalStorage], list[int]] | None:
    """The files of shards, and the bytes that their rows begin with; None where one has no such file."""
    places = [shard.place for shard in opened if shard.place is not None]
    return None if len(places) < len(opened) else ([each[0] for each in places], [each[1] for each in places])


_all: weakref.WeakSet[ShardRows] = weakref.WeakSet()
_turns = Turns()  # of threads that make some


def _renew_locks() -> None:
    for rows in list(_all):
        rows._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A lock that another thread holds while this one forks is never given back in the child.
    os.register_at_fork(after_in_child=_renew_locks)
