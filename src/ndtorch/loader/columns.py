"""Columns: what a loader takes rows from, one leaf of the batch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from .. import _native
from .._dtypes import DType
from .orders import Rows

AnyArray = npt.NDArray[Any]
Allocate = Callable[[tuple[int, ...], DType], tuple[torch.Tensor, AnyArray]]


class Column:
    """Rows of one kind.

    Attributes:
        length: How many there are.
        nbytes: About how many bytes a row has in memory.
        is_slow: Whether a row may have to come from a disk or a network first.
        is_grouped: Whether to take several batches at once is worth it: where taking is hardly more than a gather.
        stretch: How many rows are read as one, such as those of a chunk of a file.
        read_ahead: How many bytes of rows are announced before they are taken: enough requests for a disk to have
            always some to do.
        scattered: What rows in random order cost, where that is more than rows in any other, in words that end "in
            random order ...".
        fingerprint: What tells rows from others, as far as that is known without reading them.
        moves: How often they have been found elsewhere as a loop began.
    """

    length: int
    nbytes: int = 0
    is_slow: bool = False
    is_grouped: bool = False
    stretch: int = 1
    read_ahead: int = 1 << 26
    scattered: str = ""
    fingerprint: str = ""
    moves: int = 0

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give the leaf of a batch, and the gather that fills it, where it is not filled yet.

        Args:
            rows: Their numbers, each within the column.
            allocate: Makes a tensor for the result and the array over it.
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Look where the rows are, as a loop begins."""

    def check(self) -> None:
        """Raise where rows have gone away since the loop began, as far as that is cheap to know."""

    def join(self, table: _native.Table) -> bool:
        """Have the kernels take the rows by themselves, together with those of other columns, where they can."""
        return False

    def join_shards(self, table: _native.Table, shards: _native.Shards, offset: int) -> bool:
        """The same of rows in shards, ``offset`` bytes behind where those begin, of which this column has the form."""
        return False

    def announce(self, rows: Rows) -> None:
        """Prepare for rows that will be taken soon. Waits for nothing and fails in silence: to take them does that."""


class MemoryColumn(Column):
    """Rows of an array in memory or in a mapped file, gathered by the kernels.

    Args:
        source: The array; its first axis counts the rows.
        row: The dtype of the results.
        is_mapped: Whether its memory is that of a file.
        pictures: What becomes of rows that are pictures.
    """

    is_grouped = True

    def __init__(
        self, source: AnyArray, row: DType, *, is_mapped: bool = False, pictures: Pictures | None = None
    ) -> None:
        self.length = len(source)
        self.is_slow = is_mapped
        self._source = source if pictures is None else pictures.of(source)
        self._row = row
        self._pictures = pictures
        self._shape = source.shape[1:] if pictures is None else pictures.shape(self._source)
        self.nbytes = source.nbytes // max(len(source), 1)
        self.fingerprint = f"{source.dtype}{list(source.shape[1:])}"

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give memory for the rows, and the gather into it."""
        tensor, target = allocate((len(rows), *self._shape), self._row)
        pictures = self._pictures
        if pictures is None:
            return tensor, (target, self._source, rows, None, False)
        return pictures.seen(tensor), (target, self._source, rows, pictures.steps, pictures.is_interleaved)

    def join(self, table: _native.Table) -> bool:
        """Add the array and what becomes of its rows, unless a subclass takes them in a way of its own."""
        return self._is_simple and table.add(*self._becoming(), self.is_slow)

    def join_shards(self, table: _native.Table, shards: _native.Shards, offset: int) -> bool:
        """Add rows that are as those of the array."""
        return self._is_simple and table.add_shards(*self._becoming(), shards, offset)

    @property
    def _is_simple(self) -> bool:
        is_moved = self._pictures is not None and self._pictures.steps is None and self._pictures.is_interleaved
        return type(self).take is MemoryColumn.take and not is_moved

    def _becoming(self) -> tuple[AnyArray, int, _native.Affine | None, bool]:
        """The array and what becomes of its rows."""
        if self._pictures is None:
            return self._source, self._row.scalar_type, None, False
        return self._source, self._row.scalar_type, self._pictures.steps, self._pictures.is_interleaved

    def announce(self, rows: Rows) -> None:
        """Have the rows of a mapped file read ahead."""
        if self.is_slow:
            _native.announce(self._source, rows)


class Pictures:
    """What becomes of pixels: as in `image_to_torch`.

    Attributes:
        row: The dtype of the results.
        steps: The arithmetic; None where the bytes of pixels are only moved.
        is_interleaved: Whether the channels stay last in memory.
    """

    def __init__(self, row: DType, steps: _native.Affine | None, *, is_interleaved: bool) -> None:
        self.row = row
        self.steps = steps
        self.is_interleaved = is_interleaved

    def of(self, source: AnyArray) -> AnyArray:
        """The same memory as NHWC, or as NCHW where it is only moved there."""
        pixels = source[..., None] if source.ndim == 3 else source
        return pixels if self.steps is not None or self.is_interleaved else pixels.transpose(0, 3, 1, 2)

    def shape(self, pixels: AnyArray) -> tuple[int, ...]:
        """The shape in memory of one result."""
        if self.steps is None or self.is_interleaved:
            return pixels.shape[1:]
        _, height, width, channels = pixels.shape
        return channels, height, width

    def seen(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as CHW."""
        return tensor.movedim(-1, -3) if self.is_interleaved else tensor


class WatchedColumn(MemoryColumn):
    """Rows of memory that may go away, or move, without its array's knowledge.

    Args:
        source: The array.
        row: The dtype of the results.
        find: Gives the array where it is now; raises where it is gone.
        check: Raises where the memory is not what it was.
        is_mapped: Whether its memory is that of a file.
        pictures: What becomes of rows that are pictures.
    """

    def __init__(
        self,
        source: AnyArray,
        row: DType,
        *,
        find: Callable[[], AnyArray],
        check: Callable[[], None],
        is_mapped: bool = False,
        pictures: Pictures | None = None,
    ) -> None:
        super().__init__(source, row, is_mapped=is_mapped, pictures=pictures)
        self._find, self._check = find, check
        self._found = source

    def begin(self) -> None:
        """Look where the rows are."""
        source = self._find()
        self.moves += source is not self._found
        self._found = source
        self._source = source if self._pictures is None else self._pictures.of(source)

    def check(self) -> None:
        """Raise where they are not what they were."""
        self._check()


class PickedColumn(Column):
    """Some rows of another column, in an order of their own.

    Args:
        column: The other.
        indices: Which row of it each row is.
    """

    def __init__(self, column: Column, indices: Rows) -> None:
        self.length = len(indices)
        self.nbytes, self.is_slow = column.nbytes, column.is_slow
        self._column = column
        self._indices = indices

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give what the other column gives for them."""
        return self._column.take(self._indices[rows], allocate)

    def announce(self, rows: Rows) -> None:
        """Have the other column prepare."""
        self._column.announce(self._indices[rows])

    def begin(self) -> None:
        """Have the other column look."""
        self._column.begin()

    def check(self) -> None:
        """Have the other column check."""
        self._column.check()
