"""The ``.npz`` format: a zip archive of ``.npy`` entries, one per array.

NumPy's own reader takes no memory map of it (numpy#5976) and believes the sizes that the archive claims. Here an entry
that is not packed is mapped like an ``.npy`` file; one that is packed is unpacked as a stream, into no more memory than
is asked for.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from .._errors import FormatError
from . import npy
from .archive import METHODS, ArchiveWriter, Entry, Unpacked, check_directory, check_name, read_directory
from .arrays import BLOCK, AnyArray, Checksum, FileArray, Packed, Stored
from .indexing import slabs
from .items import Item
from .output import Output
from .storage import Storage

_SUFFIX = ".npy"


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read the directory and the header of every entry."""
    return [_array(storage, entry) for entry in read_directory(storage)]


def _array(storage: Storage, entry: Entry) -> FileArray:
    if not entry.name.endswith(_SUFFIX):
        hint = "format='pt' (--from pt) reads it" if entry.name.endswith("/data.pkl") else None
        fact = f"{storage.path!r} has an entry that is no array"
        raise FormatError("read", fact, expected="name.npy", got=entry.name[:80], hint=hint)
    name, where = entry.name.removesuffix(_SUFFIX), f"{storage.path!r} entry {entry.name[:80]!r}"
    packed = _PackedEntry(storage, entry, where)
    is_stored = entry.method == zipfile.ZIP_STORED

    def read_stored(offset: int, nbytes: int) -> bytes:
        return storage.read(entry.offset + offset, min(nbytes, entry.size - offset))

    header = npy.read_header(read_stored if is_stored else packed.peek, entry.size, where)
    if is_stored:
        checksum = Checksum(entry.offset, entry.size, entry.crc32)
        stored = Stored(storage, entry.offset + header.nbytes, header.strides, checksum)
        return FileArray(name, where, header.dtype, header.shape, stored)
    elements = _PackedArray(packed, header)
    layout = Packed(elements.read, fill=elements.fill, stream=elements.stream, order=elements.order)
    return FileArray(name, where, header.dtype, header.shape, layout, compression=METHODS[entry.method])


@dataclass(frozen=True, slots=True)
class _PackedEntry:
    storage: Storage
    entry: Entry
    where: str

    def unpack(self) -> Unpacked:
        return Unpacked(self.storage, self.entry, self.where)

    def peek(self, offset: int, nbytes: int) -> bytes:
        """Bytes from near the beginning; what is before them is unpacked again."""
        unpacked = self.unpack()
        unpacked.skip(min(offset, self.entry.size))
        return unpacked.read(nbytes)


@dataclass(frozen=True, slots=True)
class _PackedArray:
    """The elements of a packed entry, in the order in which they come out of it."""

    entry: _PackedEntry
    header: npy.Header

    @property
    def order(self) -> Literal["C", "F"]:
        return "F" if self.header.order == "F" and len(self.header.shape) > 1 else "C"

    @property
    def _shape(self) -> tuple[int, ...]:
        """The sizes of the array of which the elements come row by row."""
        return self.header.shape[::-1] if self.order == "F" else self.header.shape

    def _elements(self) -> Unpacked:
        unpacked = self.entry.unpack()
        unpacked.skip(self.header.nbytes)
        return unpacked

    def stream(self) -> Iterator[AnyArray]:
        """All elements, flat, in blocks; the last is given when the checksum was right."""
        unpacked, left, dtype = self._elements(), self.header.data_nbytes, self.header.dtype
        buffers = itertools.cycle([np.empty(max(BLOCK // dtype.itemsize, 1), dtype) for _ in range(2)])
        while left:
            block = next(buffers)[: left // dtype.itemsize]
            unpacked.read_into(_bytes_of(block))
            left -= block.nbytes
            yield block

    def fill(self, target: AnyArray) -> None:
        """Fill an array of the whole shape: in place where the elements come row by row."""
        if self.order == "C" and target.flags.c_contiguous and target.dtype == self.header.dtype:
            self._elements().read_into(_bytes_of(target.reshape(-1)))
        else:
            self._copy(tuple(slice(0, n) for n in self.header.shape), target)

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Give a part: all before it and in it is unpacked, and nothing but the part is kept."""
        target = np.empty([key.stop - key.start for key in slices], self.header.dtype)
        if target.size:
            self._copy(slices, target)
        return target

    def _copy(self, slices: tuple[slice, ...], target: AnyArray) -> None:
        if self.order == "F":
            slices, target = slices[::-1], target.T
        unpacked, shape, itemsize = self._elements(), self._shape, self.header.dtype.itemsize
        first = _flat(shape, [key.start for key in slices])
        last = _flat(shape, [key.stop - 1 for key in slices])
        done = 0
        for key, begin, count in _pieces(shape, max(BLOCK // itemsize, 1)):
            if begin > last:
                return
            if begin + count <= first:
                continue
            unpacked.skip((begin - done) * itemsize)
            block = np.empty(count, self.header.dtype)
            unpacked.read_into(_bytes_of(block))
            done = begin + count
            _put(target, slices, key, block, shape)


def _bytes_of(flat: AnyArray) -> memoryview:
    return memoryview(cast(Any, flat.view(np.uint8)))


def _flat(shape: tuple[int, ...], index: Sequence[int]) -> int:
    """The place of an element, row by row."""
    place = 0
    for n, step in zip(shape, index, strict=True):
        place = place * n + step
    return place


def _pieces(shape: tuple[int, ...], limit: int) -> Iterator[tuple[tuple[int | slice, ...], int, int]]:
    """Parts in row-major order, each with its first element's place and the number of its elements."""
    begin = 0
    for key in slabs(shape, limit):
        rows = [each.stop - each.start for each in key if isinstance(each, slice)]
        count = int(np.prod([*rows, *shape[len(key) :]], dtype=np.int64))
        yield key, begin, count
        begin += count


def _put(
    target: AnyArray, slices: tuple[slice, ...], key: tuple[int | slice, ...], block: AnyArray, shape: tuple[int, ...]
) -> None:
    """Put what a selection has of a part where it belongs in what was selected."""
    source: list[slice] = []
    place: list[slice] = []
    for wanted, part in itertools.zip_longest(slices, key, fillvalue=None):
        assert wanted is not None
        here = slice(part, part + 1) if isinstance(part, int) else part or slice(0, wanted.stop)
        low, high = max(wanted.start, here.start), min(wanted.stop, here.stop)
        if low >= high:
            return
        source.append(slice(low - here.start, high - here.start))
        place.append(slice(low - wanted.start, high - wanted.start))
    sizes = [1 if isinstance(part, int) else part.stop - part.start for part in key]
    target[tuple(place)] = block.reshape((*sizes, *shape[len(key) :]))[tuple(source)]


# --- writing


def check(items: Sequence[Item]) -> None:
    """Refuse dtypes that ``.npy`` cannot name, and names that a zip archive cannot hold."""
    for item in items:
        check_name(item.name, _SUFFIX)
        npy.check_dtype(item, ".npz")
    check_directory(item.name + _SUFFIX for item in items)


def write(output: Output, items: Sequence[Item]) -> None:
    """Write one entry per array, not packed; the bytes depend on nothing but the arrays."""
    archive = ArchiveWriter(output)
    for item in items:
        header = npy.header_of(item)
        parts = itertools.chain([header], item.blocks(item.order))
        archive.write(item.name + _SUFFIX, parts, len(header) + item.nbytes)
    archive.close()
