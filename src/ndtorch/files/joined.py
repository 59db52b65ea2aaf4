"""Rows of several arrays as those of one: parts that are opened when they are touched, and the ways to their rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from .indexing import bounds, for_array, is_basic
from .storage import AnyArray, thread_count

_NEAR = 1 << 16  # bytes that are read through for a few rows among them


class Part(Protocol):
    """An array of a file, as `FileArray` is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""

    def read_into(self, target: AnyArray) -> None:
        """Fill a row-major array of the same shape and dtype."""

    def map(self, *, writable: bool = True) -> AnyArray | None:
        """Map the elements, where that can be."""

    def select(self, key: Any) -> AnyArray:
        """Give what an index selects."""

    def blocks(self, order: Literal["C", "F"] = "C") -> Iterator[AnyArray]:
        """Stream the elements."""

    def check(self) -> None:
        """Compare the bytes with their checksum."""


class _Run(NamedTuple):
    """Wanted rows of one part: which part, and their numbers in it."""

    part: int
    rows: AnyArray


class Joined:
    """Elements that are the rows of several arrays, one after the other.

    Attributes:
        starts: The row that each part begins with, and after these the number of all rows.
        label: What tells the parts from others.

    Args:
        starts: As the attribute.
        open_part: Gives an array, of whose header it has seen that it is the wanted one. Asked again and again: who
            wants to keep an array open has to.
        row: Sizes of a row.
        dtype: Dtype of all parts.
        label: As the attribute.
    """

    def __init__(
        self,
        starts: AnyArray,
        open_part: Callable[[int], Part],
        row: tuple[int, ...],
        dtype: np.dtype[Any],
        label: str = "",
    ) -> None:
        self.starts = starts
        self.label = label
        self._open = open_part
        self._row = row
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self.starts) - 1

    def part(self, number: int) -> Part:
        """Open a part.

        Raises:
            FormatError: It is missing, or not what it should be.
        """
        return self._open(number)

    @property
    def parts(self) -> Iterator[Part]:
        """Open all parts, one after the other."""
        return map(self._open, range(len(self)))

    # --- all of it

    def map(self, *, writable: bool = True) -> AnyArray | None:
        """Map the elements, where they are those of one part."""
        return self.part(0).map(writable=writable) if len(self) == 1 else None

    def check(self) -> None:
        """Compare the bytes of all parts with their checksums."""
        for part in self.parts:
            part.check()

    def read_into(self, target: AnyArray) -> None:
        """Fill a row-major array, several parts at a time."""

        def read(number: int) -> None:
            self.part(number).read_into(target[self.starts[number] : self.starts[number + 1]])

        _each(read, range(len(self)))

    def blocks(self) -> Iterator[AnyArray]:
        """Stream all elements, flat."""
        return itertools.chain.from_iterable(part.blocks("C") for part in self.parts)

    # --- some of it

    def select(self, key: Any) -> AnyArray:
        """Give what an index selects, as NumPy would; of rows that are not wanted few are read."""
        shape = (int(self.starts[-1]), *self._row)
        if not is_basic(key):
            return self._picked(key if isinstance(key, tuple) else (key,), shape)
        slices, rest = bounds(key, shape)
        rest = list(rest) if isinstance(rest, tuple) else [rest]
        place = next(n for n, each in enumerate(rest) if each is not None)
        rows: AnyArray | slice = slices[0]
        if isinstance(rest[place], slice) and rest[place].step not in (None, 1):
            rows = np.arange(slices[0].start, slices[0].stop)[rest[place]]
            rest[place] = slice(None)
        return np.asarray(self.take(rows, slices[1:])[for_array(tuple(rest))])

    def _picked(self, key: tuple[Any, ...], shape: tuple[int, ...]) -> AnyArray:
        """What an index with arrays in it selects: of the first axis the rows that it names, of others all."""
        first, rest = key[0], key[1:]
        if first is None or first is ...:
            return np.asarray(self.take(slice(0, shape[0]))[for_array(key)])
        if isinstance(first, slice):
            rows = np.arange(shape[0])[first]
            return np.asarray(self.take(rows)[(slice(None), *rest)])
        index = np.asarray(first)
        if index.dtype == np.bool_ and index.ndim:
            if index.shape != shape[: index.ndim]:
                np.broadcast_to(np.empty((), bool), shape)[key]  # whose error says it best
            rows = np.flatnonzero(index.reshape(len(index), -1).any(1)) if index.size else np.arange(0)
            return np.asarray(self.take(rows)[(index[rows], *rest)])
        if index.dtype == np.bool_ or (index.size and index.dtype.kind not in "iu"):
            return np.asarray(self.take(slice(0, shape[0]))[for_array(key)])
        index = index.astype(np.int64, copy=False)
        odd = index[(index < -shape[0]) | (index >= shape[0])]
        if odd.size:
            raise IndexError(f"index {odd.flat[0]} is out of bounds for axis 0 with size {shape[0]}")
        rows, inverse = np.unique(np.where(index < 0, index + shape[0], index), return_inverse=True)
        return np.asarray(self.take(rows)[(inverse.reshape(index.shape), *rest)])

    def take(self, rows: AnyArray | slice, inner: Sequence[slice] = ()) -> AnyArray:
        """Give rows, of each what slices of step 1 select of the other axes.

        Args:
            rows: A slice of step 1, or numbers in any order, all within bounds.
            inner: One slice for each other axis; none is all.
        """
        inner = tuple(inner) or tuple(slice(0, n) for n in self._row)
        runs, place = list(self._runs(rows)), 0
        if len(runs) == 1 and isinstance(rows, slice):
            return self.part(runs[0].part).select((_as_slice(runs[0].rows), *inner))
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        target = np.empty((count, *(each.stop - each.start for each in inner)), self._dtype)
        jobs: list[tuple[_Run, AnyArray]] = []
        for run in runs:
            jobs.append((run, target[place : place + len(run.rows)]))
            place += len(run.rows)
        _each(lambda job: self._take_from(job[0], job[1], inner), jobs)
        return target

    def _runs(self, rows: AnyArray | slice) -> Iterator[_Run]:
        """Cut wanted rows where the part changes."""
        if isinstance(rows, slice):
            if rows.stop <= rows.start:
                return
            first, last = np.searchsorted(self.starts, (rows.start, rows.stop - 1), "right") - 1
            for part in range(int(first), int(last) + 1):
                begin, end = int(self.starts[part]), int(self.starts[part + 1])
                if end > begin:
                    yield _Run(part, np.arange(max(rows.start, begin) - begin, min(rows.stop, end) - begin))
            return
        parts = np.searchsorted(self.starts, rows, "right") - 1
        ends = [*(np.flatnonzero(np.diff(parts)) + 1), len(rows)]
        for begin, end in itertools.pairwise([0, *ends] if len(rows) else []):
            part = int(parts[begin])
            yield _Run(part, rows[begin:end] - self.starts[part])

    def _take_from(self, run: _Run, target: AnyArray, inner: tuple[slice, ...]) -> None:
        part, rows = self.part(run.part), run.rows
        is_whole = all(each.stop - each.start == n for each, n in zip(inner, self._row, strict=True))
        if is_whole and len(rows) == part.shape[0] and _is_run(rows):
            part.read_into(target)
            return
        if not _is_run(rows):
            mapped = part.map()
            if mapped is not None:
                target[...] = mapped[cast(Any, (rows, *inner))]
                return
        near = max(_NEAR // max(part.dtype.itemsize * int(np.prod(self._row)), 1), 1)
        ends = [0, *(np.flatnonzero((np.diff(rows) < 0) | (np.diff(rows) > near)) + 1), len(rows)]
        for begin, end in itertools.pairwise(ends):
            some = rows[begin:end]
            found = part.select((slice(int(some[0]), int(some[-1]) + 1), *inner))
            target[begin:end] = found if _is_run(some) else found[some - some[0]]


def _is_run(rows: AnyArray) -> bool:
    """Whether rows are all from the first to the last."""
    return bool((np.diff(rows) == 1).all())


def _as_slice(rows: AnyArray) -> slice:
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _each(do: Callable[[Any], None], jobs: Sequence[Any]) -> None:
    """Do something for each of many, a few at a time."""
    if len(jobs) < 2:
        for job in jobs:
            do(job)
        return
    with ThreadPoolExecutor(min(thread_count(), len(jobs))) as pool:
        try:
            for _ in pool.map(do, jobs):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
