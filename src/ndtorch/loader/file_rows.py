"""Rows that are read from files into memory when they are needed, and the columns made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from .. import _native
from .._dtypes import from_numpy_dtype
from .._errors import NdtorchError
from ..files.storage import LocalStorage
from .columns import Allocate, Column
from .orders import Rows

AnyArray = npt.NDArray[Any]
Form = Callable[[AnyArray], Column]
"""Makes the column of an array in memory, with the casts and the pictures that the loader was asked for."""


class InShards(NamedTuple):
    """Where rows are that the kernels can gather from shards.

    Attributes:
        shards: The rows of the shards.
        form: An array of one row that is as theirs.
        offset: How many bytes behind the beginning of those of the shards it begins.
    """

    shards: _native.Shards
    form: AnyArray
    offset: int = 0


class FileRows:
    """Rows of one shape and dtype in a file, or in several.

    Attributes:
        where: What errors call it, such as ``'x.h5' dataset 'images'``.
        length: How many rows there are.
        shape: Sizes of a row.
        dtype: What they are read as.
        wants_order: Whether rows have to be asked for in ascending order.
        stretch: How many rows are read as one, such as those of a chunk.
        read_ahead: How many bytes are announced before they are read, as in `Column`.
        scattered: What rows in random order cost, as in `Column`.
        label: What tells the files from others.
    """

    where: str
    length: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    wants_order: bool = False
    stretch: int = 1
    read_ahead: int = Column.read_ahead
    scattered: str = ""
    label: str = ""

    def begin(self) -> None:
        """Forget, as a loop begins, what may have changed since the last one."""

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Fill an array with rows, one after the other, row-major; errors say which of them."""
        raise NotImplementedError

    def announce(self, rows: Rows) -> None:
        """Have rows read ahead, if that can be done without waiting."""

    def mapped(self) -> AnyArray | None:
        """All rows as memory of the file, read-only, where that is possible."""
        return None

    def in_file(self) -> tuple[LocalStorage, int] | None:
        """The local file in which they follow each other without a gap, and the byte of the first, where they do."""
        return None

    def in_shards(self) -> InShards | None:
        """Where they are in shards that can be mapped."""
        return None

    def check(self) -> None:
        """Raise an error where what is mapped has lost its file."""

    def column(self, form: Form) -> Column:
        """The column of a loader that these rows are."""
        shards = None if from_numpy_dtype(self.dtype) is None else self.in_shards()
        if shards is not None:
            return ShardColumn(self, form, shards)
        mapped = None if from_numpy_dtype(self.dtype) is None else self.mapped()
        return FileColumn(self, form) if mapped is None else MappedColumn(self, form(mapped))

    @property
    def fingerprint(self) -> str:
        """What tells the rows from others, as far as that is known without reading them."""
        return f"{self.dtype}{list(self.shape)}{self.label}"

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class FileColumn(Column):
    """Rows that are read straight into the batch, or into memory of their own where they become something else.

    Args:
        rows: What is read.
        form: What becomes of it.
    """

    is_slow = True

    def __init__(self, rows: FileRows, form: Form) -> None:
        self.length = rows.length
        self.nbytes = rows.row_nbytes
        self.stretch = rows.stretch
        self.read_ahead = rows.read_ahead
        self.scattered = rows.scattered
        self.fingerprint = rows.fingerprint
        self._rows = rows
        self._form = form
        self._blank = form(np.zeros((1, *rows.shape), rows.dtype))
        self.is_direct = _is_plain_copy(self._blank, rows)

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Read the rows; where they are to be cast, or are not in order, give the gather that does it."""
        is_ordered = not self._rows.wants_order or bool((rows[1:] >= rows[:-1]).all())
        if self.is_direct and is_ordered:
            leaf, job = self._blank.take(np.zeros(len(rows), np.int64), allocate)
            assert job is not None
            self._rows.read(rows, job[0])
            return leaf, None
        picked = np.empty((len(rows), *self._rows.shape), self._rows.dtype)
        order = np.arange(len(rows)) if is_ordered else np.argsort(rows, kind="stable")
        self._rows.read(rows[order], picked)
        places = np.empty(len(rows), np.int64)
        places[order] = np.arange(len(rows))
        return self._form(picked).take(places, allocate)

    def begin(self) -> None:
        """Have the rows look at what may have changed."""
        self._rows.begin()

    def announce(self, rows: Rows) -> None:
        """Have rows read ahead."""
        self._rows.announce(rows)


def _is_plain_copy(blank: Column, rows: FileRows) -> bool:
    """Whether a column gives rows as they are, so that they can be read to where they belong."""
    made: list[AnyArray] = []

    def allocate(shape: tuple[int, ...], row: Any) -> Any:
        made.append(np.empty(shape, row.numpy))
        return None, made[-1]

    try:
        _, job = blank.take(np.zeros(1, np.int64), allocate)
    except Exception:  # it makes more of the memory than hand it out
        return False
    if job is None or job[3] is not None or len(made) != 1 or job[0] is not made[0]:
        return False
    return job[0].dtype == rows.dtype and job[0].shape[1:] == rows.shape and bool(rows.row_nbytes)


class ShardColumn(FileColumn):
    """Rows in shards that are mapped when they are wanted, gathered as those in memory are.

    Args:
        rows: What reads them where a shard is no memory.
        form: What becomes of them.
        shards: Where they are.
    """

    is_grouped = True

    def __init__(self, rows: FileRows, form: Form, shards: InShards) -> None:
        super().__init__(rows, form)
        self._shards, self._offset = shards.shards, shards.offset
        self._inner = form(shards.form)

    def join(self, table: _native.Table) -> bool:
        """Have the kernels take the rows by themselves."""
        return self._inner.join_shards(table, self._shards, self._offset)

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give memory for the rows, and the gather into it."""
        held = self._shards.rows(rows, self._offset)
        if held is None or len(held) < len(rows):
            return super().take(rows, allocate)
        return self._inner.take(cast(Any, held), allocate)

    def announce(self, rows: Rows) -> None:
        """Have rows read ahead of the shards that are mapped."""
        self._shards.announce(np.ascontiguousarray(rows))


class MappedColumn(Column):
    """Rows of a mapped file, gathered as those in memory are.

    To touch what a file has lost would end the process: before batches are made its length is looked at.

    Args:
        rows: The file.
        inner: The column over its memory.
    """

    is_slow = True
    is_grouped = True

    def __init__(self, rows: FileRows, inner: Column) -> None:
        self.length = inner.length
        self.nbytes = inner.nbytes
        self.fingerprint = rows.fingerprint
        self._rows = rows
        self._inner = inner
        inner.is_slow = True  # so that the kernels announce what they are going to touch

    def join(self, table: _native.Table) -> bool:
        """Have the kernels take the rows by themselves."""
        return self._inner.join(table)

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give memory for the rows, and the gather into it."""
        return self._inner.take(rows, allocate)

    def begin(self) -> None:
        """Look at the file as a loop begins."""
        self._rows.check()
        self._inner.begin()

    def check(self) -> None:
        """Raise where the file has become shorter."""
        self._rows.check()
        self._inner.check()

    def announce(self, rows: Rows) -> None:
        """Have rows read ahead."""
        self._rows.announce(rows)


class FieldRows(FileRows):
    """One field of records.

    Args:
        records: The rows of records.
        name: The field.
    """

    def __init__(self, records: FileRows, name: str) -> None:
        field = records.dtype[name]
        self.where = f"{records.where} field {name!r}"
        self.length = records.length
        self.shape = (*records.shape, *field.shape)
        self.dtype = field.base
        self.wants_order = records.wants_order
        self.stretch = records.stretch
        self.read_ahead = records.read_ahead
        self.scattered, self.label = records.scattered, records.label
        self._records = records
        self._name = name

    def begin(self) -> None:
        """Have the records look at what may have changed."""
        self._records.begin()

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Read whole records, and keep the field."""
        whole = np.empty((len(rows), *self._records.shape), self._records.dtype)
        self._records.read(rows, whole)
        target[...] = whole[self._name]

    def announce(self, rows: Rows) -> None:
        """Have the records read ahead."""
        self._records.announce(rows)

    def mapped(self) -> AnyArray | None:
        """The field of the records, where these are mapped."""
        records = self._records.mapped()
        return None if records is None else records[self._name]

    def in_shards(self) -> InShards | None:
        """The field of the records, where these are in shards."""
        records = self._records.in_shards()
        if records is None or records.form.dtype.fields is None:
            return None
        offset = records.form.dtype.fields[self._name][1]
        return InShards(records.shards, records.form[self._name], records.offset + offset)

    def check(self) -> None:
        """Raise an error where the records have lost their file."""
        self._records.check()


def fields_of(rows: FileRows) -> Any:
    """Rows of records as a dict of the rows of their fields; others as they are."""
    if rows.dtype.names is None:
        return rows
    return {name: fields_of(FieldRows(rows, name)) for name in rows.dtype.names}


@contextmanager
def at_row(where: str, row: int) -> Iterator[None]:
    """Add to an error at which row of what it happened; one of ours becomes one of the loader's."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NdtorchError):
            error.facts.setdefault("index", (int(row),))
            error.renamed("Loader")
        error.add_note(f"at row {row} of {where}")
        raise


def copy_rows(source: AnyArray, rows: Rows, target: AnyArray) -> None:
    """Copy rows of an array, byte by byte; both lie row by row and have rows of one size."""
    nbytes = target.nbytes // max(len(target), 1)
    if nbytes:
        raw, to = (array.reshape(-1).view(np.uint8).reshape(-1, nbytes) for array in (source, target))
        _native.gather(((to, raw, np.ascontiguousarray(rows), None, False),))


def stretches(rows: Rows, reach: int = 0) -> list[tuple[int, int]]:
    """Where ascending rows begin and end to follow each other, with at most ``reach`` left out between two.

    >>> stretches(np.array([3, 4, 4, 5, 9]))
    [(0, 4), (4, 5)]
    """
    breaks = np.flatnonzero(np.diff(rows) > 1 + reach) + 1
    ends = [0, *breaks.tolist(), len(rows)]
    return [(begin, end) for begin, end in itertools.pairwise(ends) if begin < end]
