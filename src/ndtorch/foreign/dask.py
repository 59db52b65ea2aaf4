"""Dask: an array is computed a few chunks at a time, each of which goes to its place or into a file, and is let go.

An array never is in memory twice, and one that is written never whole. A mask of its chunks does not vanish, and a
chunk that is not what the array says of it is an error.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from .._errors import ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from .._turns import Turns
from ..files.arrays import FileArray, Stored, blocks_of
from ..files.indexing import row_major
from ..files.storage import LocalStorage, thread_count
from .dask_graph import Graph
from .forms import Foreign, Inner, Parts, Refused, Restore, Unread

AnyArray = npt.NDArray[Any]
Place = tuple[int, ...]

_AT_ONCE = 64 << 20  # bytes of chunks that are computed together, and more only to keep dask's threads busy
_MAX_CHUNKS = 256  # that are computed together: dask takes longer than in proportion to put more in order
_MAX_BAND = 256 << 20  # of chunks side by side, of which rows are made in memory
_REASON = "its values are chunks that dask has yet to compute"
_MAX_DIMS = 64  # of a NumPy array


def take(source: Any, inner: Inner) -> Foreign:
    """Take an array of which nothing is computed; one that says that its chunks have masks is data and mask."""
    refused = _refused(source)
    if refused is not None:
        return refused
    if isinstance(source._meta, np.ma.MaskedArray):
        return _take_masked(source)
    chunks = Chunks(source)
    return Unread(
        "dask", chunks.dtype, chunks.shape, _REASON, chunks.read, pieces=chunks.in_groups, blocks=chunks.row_by_row
    )


def take_frame(source: Any, inner: Inner) -> Foreign:
    """Refuse what is made of frames: how long they are is known when they are computed."""
    fact = "how many rows it has is known when it has been computed"
    hint = "source.to_dask_array(lengths=True) is an array, source.compute() a frame of pandas"
    return Refused("dask", type(source).__name__, (), fact, hint)


def take_delayed(source: Any, inner: Inner) -> Foreign:
    """Refuse what may become anything."""
    hint = "source.compute() gives it, dask.array.from_delayed(source, shape, dtype) is an array"
    return Refused("dask", type(source).__name__, (), "what it holds is known when it has been computed", hint)


def _refused(source: Any) -> Refused | None:
    meta, dtype, shape = source._meta, source.dtype, tuple(source.shape)
    if not isinstance(meta, np.ndarray) or not isinstance(dtype, np.dtype):
        cls = type(meta)
        name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
        return Refused("dask", str(dtype), shape, f"its chunks are no NumPy arrays but {name}", _plain(cls))
    if any(n != n for n in shape):
        hint = "source.compute_chunk_sizes() finds them out"
        return Refused("dask", str(dtype), shape, "some of its sizes are known only when it has been computed", hint)
    if dtype.kind == "O":
        fact = "only computing it tells what its objects are"
        return Refused("dask", str(dtype), shape, fact, "source.astype(dtype), or source.compute()")
    if len(shape) > _MAX_DIMS:
        return Refused("dask", str(dtype), shape, f"NumPy has at most {_MAX_DIMS} dimensions", "source[0]")
    return None


def _plain(cls: type) -> str:
    """What makes NumPy arrays of other chunks."""
    known = {
        "cupy": "cupy.asnumpy",
        "sparse": "lambda chunk: chunk.todense()",
        "scipy": "lambda chunk: chunk.toarray()",
    }
    return f"source.map_blocks({known.get(cls.__module__.partition('.')[0], 'numpy.asarray')}, dtype=source.dtype)"


def _take_masked(source: Any) -> Foreign:
    if source.dtype.names is not None:
        fact = "its fields have masks each"
        return Refused("dask", "struct", source.shape, fact, "dask.array.ma.filled(source, value) fills them")
    chunks = MaskedChunks(source)
    shape, dtype = chunks.shape, chunks.dtype
    data = Unread("dask", dtype, shape, _REASON, chunks.read, pieces=chunks.in_groups)
    mask = Unread("dask", np.dtype(bool), shape, _REASON, chunks.read_mask)
    nulls = "only computing it tells which values are missing"
    return Parts("dask", "masked", "masked", shape, {".data": data, ".mask": mask}, nulls=nulls)


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give what came from an array its dtype, as a NumPy array."""
    example = np.empty((), like.dtype)
    if any(n != n for n in like.shape):
        return inner(source, example[None][:0])
    return inner(source, np.broadcast_to(example, like.shape))


# --- chunks


class Chunks:
    """The chunks of an array whose sizes are known.

    Args:
        source: The array of dask.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self.where = f"dask array {str(source.name)!r}"
        self.dtype: np.dtype[Any] = source.dtype
        self.shape = tuple(map(int, source.shape))
        self.sizes = [tuple(map(int, sizes)) for sizes in source.chunks]
        self._turns = Turns()
        self._rows: tuple[list[list[Place]], Graph] | None = None
        self._starts = [(0, *itertools.accumulate(sizes)) for sizes in self.sizes]

    def read(self) -> AnyArray:
        """Compute all of it, into new memory."""
        array: AnyArray = np.empty(self.shape, self.dtype)
        for start, part in self.in_groups():
            _region(array, start, part)[...] = part
        return array

    def in_groups(self) -> Iterator[tuple[Place, AnyArray]]:
        """Compute each chunk, a few at a time, and say where it begins.

        Raises:
            NdtorchError: A task failed, or a chunk is not what the array says of it.
        """
        yield from self._computed([[place] for place in self._places() if self._size(place)])

    def row_by_row(self) -> Iterator[AnyArray]:
        """Compute the elements row by row, flat, in blocks: chunks side by side are put together first."""
        bands = self._bands()
        largest = max((sum(map(self._nbytes, band)) for band in bands if len(band) > 1), default=0)
        if largest > _MAX_BAND:
            yield from self._through_a_file()
            return
        parts = self._computed(bands)
        for band in bands:
            yield from blocks_of(self._side_by_side(band, parts))

    def rows(self, start: int, stop: int) -> AnyArray:
        """Compute some rows, by this thread alone: the chunks that they are in.

        Raises:
            NdtorchError: A task failed, or a chunk is not what the array says of it.
        """
        rows: AnyArray = np.empty((stop - start, *self.shape[1:]), self.dtype)
        starts, (places, graph) = self._starts[0], self._by_rows()
        for number in range(bisect_right(starts, start) - 1, len(self.sizes[0])):
            low, high = max(start, starts[number]), min(stop, starts[number + 1])
            if low >= high or not places[number]:
                continue
            target = rows[low - start : high - start]
            for place, chunk in zip(places[number], graph.one(number), strict=True):
                part = self._plain(self._checked(chunk, place), place)[low - starts[number] : high - starts[number]]
                _region(target, (0, *self._begin(place)[1:]), part)[...] = part
            if high == stop:
                break
        return rows

    def _by_rows(self) -> tuple[list[list[Place]], Graph]:
        """The chunks of each step along the first axis, and the graph that computes them."""
        with self._turns.taken():
            if self._rows is None:
                by_row = itertools.groupby(self._places(), lambda place: place[0])
                rows = [[place for place in row if self._size(place)] for _, row in by_row]
                self._rows = rows, self._graph(rows)
            return self._rows

    def _graph(self, groups: list[list[Place]]) -> Graph:
        number = {place: number for number, place in enumerate(self._places())}
        return Graph(self._source, [[number[place] for place in group] for group in groups])

    # --- which

    def _places(self) -> Iterator[Place]:
        return itertools.product(*(range(len(sizes)) for sizes in self.sizes))

    def _extent(self, place: Place) -> tuple[int, ...]:
        return tuple(sizes[number] for sizes, number in zip(self.sizes, place, strict=True))

    def _begin(self, place: Place) -> Place:
        return tuple(starts[number] for starts, number in zip(self._starts, place, strict=True))

    def _size(self, place: Place) -> int:
        return math.prod(self._extent(place))

    def _nbytes(self, place: Place) -> int:
        return self._size(place) * self.dtype.itemsize

    def _bands(self) -> list[list[Place]]:
        """The chunks whose elements, put together, lie one after the other in the array."""
        depth = next((axis for axis, sizes in enumerate(self.sizes) if max(sizes, default=1) > 1), len(self.sizes))
        places = (place for place in self._places() if self._size(place))
        return [list(band) for _, band in itertools.groupby(places, lambda place: place[: depth + 1])]

    # --- computed

    def _computed(self, units: list[list[Place]]) -> Iterator[tuple[Place, AnyArray]]:
        """Compute units of chunks, several at once, and give their chunks in turn."""
        groups = list(self._groups(units))
        for group, chunks in zip(groups, self._graph(groups), strict=True):
            for place in group:
                yield self._begin(place), self._plain(self._checked(chunks.pop(0), place), place)

    def _groups(self, units: list[list[Place]]) -> Iterator[list[Place]]:
        busy = sys.modules["dask.system"].CPU_COUNT
        group: list[Place] = []
        nbytes = 0
        for unit in units:
            more = sum(map(self._nbytes, unit))
            if len(group) >= _MAX_CHUNKS or (len(group) >= busy and nbytes + more > _AT_ONCE):
                yield group
                group, nbytes = [], 0
            group += unit
            nbytes += more
        if group:
            yield group

    def _checked(self, chunk: Any, place: Place) -> AnyArray:
        """The chunk as an array of the dtype and shape that dask expects there; nothing is cast that could be lost."""
        which = f"chunk {place} of {self.where}"
        if not isinstance(chunk, np.ndarray | np.generic | bool | int | float | complex):
            fact, hint = f"{which} is a {type(chunk).__name__}", f"{_plain(type(chunk))} makes it an array"
            raise UnsupportedTypeError("to_torch", fact, expected="a NumPy array", got=type(chunk).__name__, hint=hint)
        array: AnyArray = chunk if isinstance(chunk, np.ndarray) else np.asarray(chunk)
        if array.shape != self._extent(place):
            raise ShapeMismatchError(
                "to_torch", f"{which} has another shape", expected=self._extent(place), got=array.shape
            )
        if not _is_held_by(array.dtype, self.dtype):
            hint = "map_blocks(function, dtype=...) says what function gives"
            fact = f"{which} has another dtype than the array says"
            raise UnsupportedDtypeError("to_torch", fact, expected=self.dtype, got=array.dtype, hint=hint)
        return array

    def _plain(self, chunk: AnyArray, place: Place) -> AnyArray:
        if isinstance(chunk, np.ma.MaskedArray):
            fact = f"chunk {place} of {self.where} has a mask, and the array does not say that its chunks do"
            hint = "dask.array.ma.masked_array(source) says so, dask.array.ma.filled(source, value) fills it"
            raise UnsupportedTypeError("to_torch", fact, hint=hint)
        return np.asarray(chunk)

    # --- rows of chunks side by side

    def _side_by_side(self, band: list[Place], parts: Iterator[tuple[Place, AnyArray]]) -> AnyArray:
        if len(band) == 1:
            return next(parts)[1].astype(self.dtype, copy=False)
        first, last = self._begin(band[0]), band[-1]
        end = tuple(map(sum, zip(self._begin(last), self._extent(last), strict=True)))
        whole = np.empty([high - low for low, high in zip(first, end, strict=True)], self.dtype)
        for start, part in itertools.islice(parts, len(band)):
            _region(whole, tuple(at - low for at, low in zip(start, first, strict=True)), part)[...] = part
        return whole

    def _through_a_file(self) -> Iterator[AnyArray]:
        """Rows of chunks of which too many lie side by side: all are written into a file without a name first."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        with tempfile.NamedTemporaryFile(prefix="ndtorch-", buffering=0) as file:
            _native.reserve(file.fileno(), nbytes)
            for start, part in self.in_groups():
                _write_part(file.fileno(), self.shape, start, np.ascontiguousarray(part, self.dtype))
            storage = LocalStorage(file.name)
            layout = Stored(storage, 0, row_major(self.shape, self.dtype.itemsize))
            with storage.descriptor():  # open to the end: there is no name any more to open it by again
                file.close()
                yield from FileArray("", self.where, self.dtype, self.shape, layout).blocks()


class MaskedChunks(Chunks):
    """Chunks with masks. One pass computes both; the mask waits for whoever asks for it after the values."""

    _mask: AnyArray | None = None

    def in_groups(self) -> Iterator[tuple[Place, AnyArray]]:
        """Compute the values of each chunk, a few at a time, and say where it begins; keep the mask."""
        mask: AnyArray = np.zeros(self.shape, bool)
        for start, part in super().in_groups():
            _region(mask, start, part)[...] = np.ma.getmaskarray(part)
            yield start, np.ma.getdata(part)
        self._mask = mask

    def read_mask(self) -> AnyArray:
        """The mask, which was computed with the values if anybody has asked for these."""
        if self._mask is None:
            for _ in self.in_groups():
                pass
        mask, self._mask = self._mask, None
        assert mask is not None
        return mask

    def _plain(self, chunk: AnyArray, place: Place) -> AnyArray:
        return chunk


def _is_held_by(found: np.dtype[Any], said: np.dtype[Any]) -> bool:
    """Whether every value of one dtype is a value of the other, which is of the same kind."""
    found, said = found.newbyteorder("="), said.newbyteorder("=")
    if found == said:
        return True
    return found.kind == said.kind and said.kind in "iufcSU" and np.can_cast(found, said, "safe")


def _region(array: AnyArray, start: Place, part: AnyArray) -> AnyArray:
    """Where a part of an array belongs; an array too where that has no axes."""
    slices: Any = tuple(slice(at, at + n) for at, n in zip(start, part.shape, strict=True))
    region: AnyArray = array[(*slices, ...)]
    return region


def _write_part(file: int, shape: tuple[int, ...], start: Place, part: AnyArray) -> None:
    """Write a part of an array to its places in a file that has all of it row by row."""
    steps = row_major(shape, part.itemsize)
    axis = max((axis for axis, n in enumerate(shape) if part.shape[axis] < n), default=0)
    above = max(axis - 1, 0)  # along it one call writes the pieces that lie one step apart
    count, step = (part.shape[above], steps[above]) if axis else (1, part.nbytes)
    for place in itertools.product(*map(range, part.shape[:above])):
        offset = sum(map(lambda at, low, width: (at + low) * width, (*place, *(0,) * len(shape)), start, steps))
        inner = np.ascontiguousarray(part[place]) if place else part
        _native.write_runs(file, offset, step, inner.reshape(-1).view(np.uint8), count, thread_count())
