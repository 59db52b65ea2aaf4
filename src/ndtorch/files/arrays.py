"""One array in a file: what its header says of it, and the ways to its elements: map, read, select, stream."""

from __future__ import annotations

import itertools
import math
import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from .._dtypes import from_numpy_dtype
from .._errors import FormatError, NdtorchError
from .._memory import byte_bounds, footprint
from .indexing import are_dense, bounds, column_major, for_array, is_basic, slabs
from .joined import Joined
from .storage import LocalStorage, Storage, checksum_of, empty, join_checksums, read_transposed

AnyArray = npt.NDArray[Any]
Order = Literal["C", "F"]

BLOCK = 16 << 20
"""Bytes that are streamed at a time: far above what a system call costs, far below memory."""

MAX_DIMS = 64
"""Dimensions of a NumPy array."""

_SLAB = 4 * BLOCK  # of what is transposed or decoded: the more at a time, the less is read twice
_NEAR = 1 << 16  # bytes that are read through for a few among them
_PAGE = 4096  # from one element to the next: no page between them is left out, so they are read through
_ANYWHERE = 1 << 20  # an address that nobody reads


@dataclass(slots=True)
class Checksum:
    """The CRC-32 of a range of bytes that holds the elements, and maybe a header before them.

    Attributes:
        offset: Where the range begins.
        nbytes: How long it is.
        crc32: What it has to be.
        is_proven: Whether somebody has compared it; arrays in one range need that once.
    """

    offset: int
    nbytes: int
    crc32: int
    is_proven: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """Elements that lie in a file as they lie in memory.

    Attributes:
        storage: Where the bytes are.
        offset: Byte of the first element.
        strides: Bytes from one element to the next, by axis; none is negative.
        checksum: What the bytes have to add up to, where the format keeps that.
    """

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """Elements that a library has to decode.

    Attributes:
        read: Gives the elements of a selection, one slice of step 1 for each axis, as a new array of those sizes.
        rows: How many of the first axis are decoded together: streaming reads multiples of that.
        reason: Why they cannot be mapped, in words that finish "its values are ...".
        fill: Fills a row-major array of the whole shape instead, where the library can.
        stream: Streams all elements, flat, in blocks, where decoding a part means to decode all before it.
        order: How they go by in that stream; without one empty.
        crc32: What the elements, row by row in little-endian order, have to add up to, where that was kept.
    """

    read: Callable[[tuple[slice, ...]], AnyArray]
    rows: int = 1
    reason: str = "compressed"
    fill: Callable[[AnyArray], None] | None = None
    stream: Callable[[], Iterator[AnyArray]] | None = None
    order: Literal["C", "F", ""] = ""
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Elements that NumPy has no dtype for, or that nobody should read; the error says why."""

    error: NdtorchError


@dataclass(frozen=True, slots=True)
class Absent(Unreadable):
    """None, in the place of an array: a value that a mapping can hold and no other file; the error is for those."""


@dataclass(frozen=True, slots=True)
class FileArray:
    """One array of a file, of which nothing but the header has been read.

    Attributes:
        name: Its name in the file.
        where: What errors call it, such as ``'x.npz' entry 'a'``.
        dtype: Its dtype; of what is unreadable any.
        shape: Its sizes.
        layout: Where its elements are.
        compression: Such as ``deflate``; empty where there is none.
        dtype_name: What the format calls a dtype that NumPy has no name for.
    """

    name: str
    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    layout: Stored | Packed | Joined | Unreadable
    compression: str = ""
    dtype_name: str = ""

    def __post_init__(self) -> None:
        """Refuse what NumPy has no array for, even where the file claims that it is empty."""
        if isinstance(self.layout, Unreadable):
            return
        extent = math.prod(n for n in self.shape if n) * max(self.dtype.itemsize, 1)
        if len(self.shape) > MAX_DIMS or extent >= 1 << 63:
            shape = str(self.shape) if len(self.shape) <= MAX_DIMS else f"of {len(self.shape)} dimensions"
            raise FormatError("read", f"{self.where} claims the shape {shape}, larger than any array")

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in memory, as an exact integer."""
        return 0 if self.is_none else math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_text(self) -> str:
        """The one spelling of the dtype, such as ``float32``."""
        row = from_numpy_dtype(self.dtype)
        return self.dtype_name or (str(self.dtype) if row is None else row.name)

    @property
    def order(self) -> str:
        """``C`` row by row, ``F`` column by column, ``strided`` any other way, empty where there is no telling."""
        if isinstance(self.layout, Joined):
            return "C"
        if not isinstance(self.layout, Stored):
            return self.layout.order if isinstance(self.layout, Packed) else ""
        itemsize = self.dtype.itemsize
        if are_dense(self.shape, self.layout.strides, itemsize):
            return "C"
        return "F" if are_dense(self.shape[::-1], self.layout.strides[::-1], itemsize) else "strided"

    @property
    def is_none(self) -> bool:
        """Whether it is None, and no array."""
        return isinstance(self.layout, Absent)

    def __str__(self) -> str:
        return "None" if self.is_none else f"{self.dtype_text}[{','.join(map(str, self.shape))}]"

    @property
    def error(self) -> NdtorchError | None:
        """What reading would raise, known from the header alone."""
        return self.layout.error if isinstance(self.layout, Unreadable) else None

    @property
    def why_not_in_memory(self) -> str:
        """Why its memory cannot be shared, in words that finish "cannot share memory with it: ..."."""
        return f"its values are {self.layout.reason}" if isinstance(self.layout, Packed) else "its values are in a file"

    def require(self) -> None:
        """Raise what is wrong with an array that cannot be read."""
        if self.error is not None:
            raise self.error

    # --- all of it

    def map(self, *, writable: bool = True) -> AnyArray | None:
        """Map the elements privately: nothing is read before it is touched, writes stay in this process.

        Not ``writable``, the mapping is the file's own memory, which no limit of this process's memory counts, and its
        elements may lie unaligned.

        ``None`` where they are packed, remote, none, or lie where NumPy could not use them.
        """
        layout = self.layout
        if isinstance(layout, Joined):
            return layout.map(writable=writable)
        if not isinstance(layout, Stored) or not self.nbytes:
            return None
        if writable and layout.offset % self.dtype.alignment:
            return None
        raw = layout.storage.map(layout.offset, self._extent(), writable=writable)
        return None if raw is None else self._over(raw)

    def read(self) -> AnyArray:
        """Read all elements into new memory, and compare them with the checksum that the format keeps."""
        self.require()
        layout = self.layout
        if isinstance(layout, Stored):
            raw = empty(self._extent())
            self._read_extent(layout, raw)
            return self._over(raw)
        target = np.empty(self.shape, self.dtype)
        self.read_into(target)
        return target

    def read_into(self, target: AnyArray) -> None:
        """Fill a row-major array of the same shape and dtype."""
        self.require()
        layout = self.layout
        if isinstance(layout, Stored):
            if self.order == "C":
                self._read_extent(layout, target.reshape(-1).view(np.uint8))
            else:
                target[...] = self.read()
        elif isinstance(layout, Joined):
            layout.read_into(target)
        elif isinstance(layout, Packed):
            if layout.fill is not None:
                layout.fill(target)
            else:
                target[...] = layout.read(tuple(slice(0, n) for n in self.shape))
            if layout.crc32 is not None:
                self._compare_elements(layout.crc32, checksum_of_elements([target]))

    def check(self) -> None:
        """Compare the bytes with the checksum that the format keeps, if it keeps one, without keeping them.

        Raises:
            FormatError: They are not what was written.
        """
        layout = self.layout
        if isinstance(layout, Joined):
            layout.check()
        if isinstance(layout, Stored) and layout.checksum is not None and not layout.checksum.is_proven:
            checksum = layout.checksum
            self._compare(checksum, checksum_of(layout.storage, checksum.offset, checksum.nbytes))

    # --- some of it

    def select(self, key: Any) -> AnyArray:
        """Give what an index selects, as NumPy would: mapped where that can be, else little more than that is read.

        Only whole arrays are compared with a checksum.
        """
        self.require()
        if isinstance(self.layout, Joined):
            return self.layout.select(key)
        mapped = self.map()
        if mapped is not None:
            return np.asarray(mapped[for_array(key)])
        if isinstance(self.layout, Stored) and is_basic(key):
            return self._read_part(self.layout, key if isinstance(key, tuple) else (key,))
        if isinstance(self.layout, Packed):
            slices, rest = bounds(key, self.shape)
            return np.asarray(self.layout.read(slices)[for_array(rest)], self.dtype)
        return np.asarray(self.read()[for_array(key)])

    def _read_part(self, layout: Stored, key: tuple[Any, ...]) -> AnyArray:
        whole = footprint(_ANYWHERE, self.shape, layout.strides, self.dtype.itemsize)
        return self._at(layout, whole[for_array(key)])

    def _at(self, layout: Stored, part: AnyArray) -> AnyArray:
        """Read the elements that a part of the footprint stands for."""
        low, high = _bounds_of(part)
        raw = empty(high - low)
        layout.storage.read_into(memoryview(cast(Any, raw)), layout.offset + low - _ANYWHERE)
        if not raw.size:
            return np.empty(part.shape, self.dtype)
        return np.ndarray(part.shape, self.dtype, buffer=raw, strides=part.strides, offset=_address(part) - low)

    # --- all of it, a block at a time

    def blocks(self, order: Order = "C") -> Iterator[AnyArray]:
        """Stream the elements in rows (``C``) or columns (``F``), flat, in blocks of about `BLOCK` bytes.

        A block is valid until the next but one is asked for. At the end the checksum is compared, where there is one.
        """
        self.require()
        if not self.nbytes:
            return iter(())
        layout = self.layout
        if self.order == (order if len(self.shape) > 1 else "C"):
            if isinstance(layout, Stored):
                return self._stored_blocks(layout)
            if isinstance(layout, Packed) and layout.stream is not None:
                return layout.stream()
            if isinstance(layout, Joined):
                return layout.blocks()
        if order == "F":
            raise ValueError(f"{self.where} does not lie column by column")
        if isinstance(layout, Stored) and self.order == "strided":
            return self._strided_blocks(layout)
        if isinstance(layout, Stored):
            return self._transposed_blocks(layout)
        assert isinstance(layout, Packed)
        blocks = self._packed_blocks(layout) if layout.stream is None else self._decoded_blocks(layout.stream)
        return blocks if layout.crc32 is None else self._compared_blocks(blocks, layout.crc32)

    def _stored_blocks(self, layout: Stored) -> Iterator[AnyArray]:
        checksum = layout.checksum if layout.checksum is not None and not layout.checksum.is_proven else None
        begin, end = layout.offset, layout.offset + self.nbytes
        crc = 0 if checksum is None else checksum_of(layout.storage, checksum.offset, begin - checksum.offset)
        step = max(BLOCK // self.dtype.itemsize, 1) * self.dtype.itemsize
        buffers = itertools.cycle([empty(min(step, end - begin)) for _ in range(min(2, -(-(end - begin) // step)))])
        for offset in range(begin, end, step):
            block = next(buffers)[: min(step, end - offset)]
            part = layout.storage.read_into(memoryview(cast(Any, block)), offset, checksum=checksum is not None)
            crc = join_checksums(crc, part, block.nbytes)
            yield block.view(self.dtype)
        if checksum is not None:
            rest = checksum.offset + checksum.nbytes - end
            self._compare(checksum, join_checksums(crc, checksum_of(layout.storage, end, rest), rest))

    def _transposed_blocks(self, layout: Stored) -> Iterator[AnyArray]:
        """Rows of elements that lie in columns.

        The axes before one are fixed, of that one some are taken, and all of those after it. In the file they are runs:
        one for every element of the axes after it, each with gaps, where there are axes before it.
        """
        self.check()
        shape, itemsize = self.shape, self.dtype.itemsize
        axes = (axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) * itemsize <= _SLAB)
        axis = next(axes, len(shape) - 1)
        runs, stride = math.prod(shape[axis + 1 :]), math.prod(shape[:axis]) * itemsize
        step = min(max(1 + (_SLAB // runs - itemsize) // stride, 1), shape[axis])
        dtype = _whole_elements(self.dtype)
        buffer = empty(runs * ((step - 1) * stride + itemsize))
        buffers = itertools.cycle([np.empty(runs * step, dtype) for _ in range(2)])
        for outer in itertools.product(*map(range, shape[:axis])):
            first = layout.offset + sum(map(operator.mul, outer, layout.strides))
            for start in range(0, shape[axis], step):
                count = min(step, shape[axis] - start)
                if len(shape) == 2 and axis == 0:
                    block = next(buffers)[: count * runs]
                    matrix = block.reshape(count, runs)
                    read_transposed(layout.storage, matrix, first + start * stride, shape[0] * stride)
                    yield block.view(self.dtype)
                    continue
                nbytes = (count - 1) * stride + itemsize
                raw = buffer[: runs * nbytes]
                layout.storage.read_runs(raw, first + start * stride, nbytes, shape[axis] * stride)
                rest = column_major(shape[axis + 1 :], nbytes)
                part = np.ndarray((count, *shape[axis + 1 :]), dtype, raw, strides=(stride, *rest))
                block = next(buffers)[: count * runs]
                np.copyto(block.reshape(part.shape), part)
                yield block.view(self.dtype)

    def _packed_blocks(self, layout: Packed) -> Iterator[AnyArray]:
        for key in slabs(self.shape, max(_SLAB // self.dtype.itemsize, 1), layout.rows):
            slices, rest = bounds(key, self.shape)
            yield np.ascontiguousarray(layout.read(slices)[for_array(rest)]).reshape(-1)

    def _compared_blocks(self, blocks: Iterator[AnyArray], expected: int) -> Iterator[AnyArray]:
        """The same, compared before the last is given: who asks for so many elements does not ask for the end."""
        crc, left = 0, math.prod(self.shape)
        for block in blocks:
            crc, left = checksum_of_elements([block], crc), left - block.size
            if not left:
                self._compare_elements(expected, crc)
            yield block

    def _decoded_blocks(self, stream: Callable[[], Iterator[AnyArray]]) -> Iterator[AnyArray]:
        """Rows of elements that go by in columns: decoded once, into memory or a file without a name."""
        if self.nbytes <= _SLAB:
            columns = np.concatenate([block.copy() for block in stream()])
            yield from blocks_of(columns.reshape(self.shape[::-1]).T)
            return
        with tempfile.NamedTemporaryFile(prefix="ndtorch-") as file:
            for block in stream():
                file.write(block.view(np.uint8).data)
            file.flush()
            storage = LocalStorage(file.name)
            layout = Stored(storage, 0, column_major(self.shape, self.dtype.itemsize))
            with storage.descriptor():  # open to the end: there is no name any more to open it by again
                file.close()
                yield from replace(self, layout=layout).blocks()

    def _strided_blocks(self, layout: Stored) -> Iterator[AnyArray]:
        """Rows of elements that lie any other way: of what lies far apart one step of the widest axis at a time."""
        self.check()
        for key in slabs(self.shape, max(_SLAB // self.dtype.itemsize, 1)):
            whole = footprint(_ANYWHERE, self.shape, layout.strides, self.dtype.itemsize)
            part = whole[(*key, ...)]
            block = np.empty(part.shape, self.dtype)
            self._gather(layout, part, block)
            yield block.reshape(-1)

    def _gather(self, layout: Stored, part: AnyArray, target: AnyArray) -> None:
        """Read what lies near in one piece, with what is between; of the rest one step of the widest axis at a time."""
        low, high = _bounds_of(part)
        axis = max(range(part.ndim), key=lambda axis: part.strides[axis] * (part.shape[axis] > 1), default=None)
        step = 1 if axis is None or part.strides[axis] > _PAGE else max(BLOCK // 2 // max(part.strides[axis], 1), 1)
        limit = max(4 * part.nbytes, _NEAR if step == 1 else BLOCK)
        if axis is None or high - low <= limit:
            target[...] = self._at(layout, part)
            return
        many = step if step < part.shape[axis] else 1
        for start in range(0, part.shape[axis], many):
            some: Any = (*(slice(None),) * axis, start if many == 1 else slice(start, start + many), ...)
            self._gather(layout, part[some], target[some])

    # --- bytes

    def _extent(self) -> int:
        """Bytes from the first element to past the last."""
        assert isinstance(self.layout, Stored)
        return byte_bounds(0, self.shape, self.layout.strides, self.dtype.itemsize)[1]

    def _over(self, raw: AnyArray) -> AnyArray:
        assert isinstance(self.layout, Stored)
        strides = self.layout.strides if raw.size else None
        try:
            return np.ndarray(self.shape, self.dtype, buffer=raw, strides=strides)
        except (ValueError, OverflowError) as error:  # more dimensions, or larger ones, than NumPy has
            raise FormatError("read", f"{self.where} claims the shape {self.shape}: {error}") from None

    def _read_extent(self, layout: Stored, raw: AnyArray) -> None:
        checksum = layout.checksum if layout.checksum is not None and not layout.checksum.is_proven else None
        view = memoryview(cast(Any, raw))
        crc = layout.storage.read_into(view, layout.offset, checksum=checksum is not None)
        if checksum is not None:
            before, end = layout.offset - checksum.offset, layout.offset + raw.nbytes
            after = checksum.offset + checksum.nbytes - end
            crc = join_checksums(checksum_of(layout.storage, checksum.offset, before), crc, raw.nbytes)
            self._compare(checksum, join_checksums(crc, checksum_of(layout.storage, end, after), after))

    def _compare(self, checksum: Checksum, got: int) -> None:
        if got != checksum.crc32:
            fact = f"{self.where} is damaged: its bytes do not add up to their checksum"
            raise FormatError("read", fact, expected=f"CRC-32 {checksum.crc32:08x}", got=f"{got:08x}")
        checksum.is_proven = True

    def _compare_elements(self, expected: int, got: int) -> None:
        if got != expected:
            fact = f"{self.where} is damaged: its elements do not add up to their checksum"
            raise FormatError("read", fact, expected=f"CRC-32 {expected:08x}", got=f"{got:08x}")


def checksum_of_elements(blocks: Iterable[AnyArray], crc: int = 0) -> int:
    """The CRC-32 of elements in a row, in little-endian order, after those that have added up to ``crc``."""
    for block in blocks:
        little = np.ascontiguousarray(block.astype(block.dtype.newbyteorder("<"), copy=False))
        crc = crc32(cast(Any, little.reshape(-1).view(np.uint8)), crc)
    return int(crc)


def _address(part: AnyArray) -> int:
    return int(part.__array_interface__["data"][0])


def _bounds_of(part: AnyArray) -> tuple[int, int]:
    return byte_bounds(_address(part), part.shape, part.strides, part.itemsize)


def blocks_of(array: AnyArray, order: Order = "C") -> Iterator[AnyArray]:
    """Stream an array in memory as `FileArray.blocks` does: views where it lies so, else copies of a block each."""
    array = np.asarray(array)
    if order == "F":
        array = array.T
    if not array.nbytes:
        return
    if array.flags.c_contiguous:
        flat, step = array.reshape(-1), max(BLOCK // array.itemsize, 1)
        yield from (flat[start : start + step] for start in range(0, flat.size, step))
    else:
        limit, elements = max(BLOCK // array.itemsize, 1), array.view(_whole_elements(array.dtype))
        for key in slabs(array.shape, limit):
            yield np.ascontiguousarray(elements[key]).reshape(-1).view(array.dtype)


def _whole_elements(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype to copy elements by: of fields NumPy leaves out the bytes between them, which then are anything."""
    return dtype if dtype.names is None else np.dtype(f"V{dtype.itemsize}")
