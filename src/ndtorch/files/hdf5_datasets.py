"""Datasets of HDF5 files: where their elements are, and the ways to them, past the library where that can be."""

from __future__ import annotations

import fcntl
import io
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from .._errors import FormatError, MissingDependencyError, UnsupportedTypeError
from .arrays import AnyArray, Packed, Stored
from .atomic import is_temporary
from .chunks import Chunks, Place, count_chunks, inflate, read_apart, why_absurd
from .hdf5_types import Kind, decoded, failing, library
from .indexing import row_major
from .storage import Storage, StorageStream

_MAX_TEXTS = 1 << 20  # of varying length, whose lengths are looked at
_MAX_NAMED = 100_000  # chunks whose places are kept
_SMALL_CHUNK = 1 << 16  # bytes: below, the library is faster
_BUFFER = 1 << 16  # bytes read at a time of a file that is far away
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_PLUGINS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}
_GZIP, _SHUFFLE = 1, 2


# --- files


class File:
    """An open file; it closes when no array needs it any more."""

    def __init__(self, storage: Storage) -> None:
        self.h5py = library("read")
        self.storage = storage
        self.where = repr(storage.path)
        _refuse_writers(storage)
        # Through a stream the library knows neither name nor locks: whoever else opens the file is not disturbed, and
        # the name may belong to another file by now.
        stream: Any = StorageStream(storage)
        with storage.descriptor() as descriptor:
            is_local = descriptor is not None
        with failing(self.where):
            self._file = self.h5py.File(stream if is_local else io.BufferedReader(stream, _BUFFER), "r")

    @property
    def root(self) -> Any:
        """The group that all links start from."""
        return self.h5py.h5g.open(self._file.id, b"/")

    def texts_at(self, dataset: Any) -> int | None:
        """Where the places of text of varying length begin, if they are there and of the usual size."""
        how = self._file.id.get_create_plist()
        return dataset.get_offset() if how.get_sizes() == (8, 8) else None

    @property
    def begin(self) -> int:
        """Where HDF5 counts from: past a block of the user's."""
        return int(self._file.userblock_size)

    def dataset(self, place: bytes) -> Any:
        """Open a dataset by its path of hard links."""
        return self.h5py.h5d.open(self._file.id, place)


def _refuse_writers(storage: Storage) -> None:
    """Refuse a file that somebody has open for writing, this process included: what is in it may be half of it.

    HDF5 itself locks files so.
    """
    with storage.descriptor() as descriptor:
        if descriptor is None or is_temporary(storage.path):
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FormatError("read", f"{storage.path!r} is open for writing", hint="file.close() first") from None
        except OSError:  # a file system without locks
            return
        fcntl.flock(descriptor, fcntl.LOCK_UN)


# --- datasets


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, opened when elements of it are read."""

    file: File
    place: bytes
    where: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.kind.dtype.itemsize

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Have the library read a selection."""
        kind, rank = self.kind, len(self.shape) - len(self.kind.inner)
        target = np.empty(tuple(part.stop - part.start for part in slices[:rank]) + kind.inner, kind.raw)
        self._read_into(target, slices[:rank])
        inner: Any = (*(slice(None),) * rank, *slices[rank:], ...)  # with it, what has no axes is an array
        target = target[inner]
        return target.view(kind.dtype) if kind.decode is None else kind.decode(target)

    def fill(self, target: AnyArray) -> None:
        """Have the library read all of it."""
        rank = len(self.shape) - len(self.kind.inner)
        self._read_into(target.view(self.kind.raw), tuple(slice(0, n) for n in self.shape[:rank]))

    def _read_into(self, target: AnyArray, slices: tuple[slice, ...]) -> None:
        h5s = self.file.h5py.h5s
        if not target.size:
            return
        with failing(self.where):
            dataset = self.file.dataset(self.place)
            space, counts = dataset.get_space(), tuple(part.stop - part.start for part in slices)
            if counts:
                space.select_hyperslab(tuple(part.start for part in slices), counts)
            memory = h5s.create_simple(counts) if counts else h5s.create(h5s.SCALAR)
            dataset.read(memory, space, target, self.kind.memory)


def layout_of(source: Dataset, dataset: Any) -> tuple[Stored | Packed, str]:
    """Where the elements of a dataset are, and what they are packed by.

    Raises:
        FormatError: They are elsewhere, or cannot be what is claimed.
        MissingDependencyError: Nobody here can unpack them.
    """
    h5d = source.file.h5py.h5d
    plist = dataset.get_create_plist()
    layout, itemsize = plist.get_layout(), dataset.get_type().get_size()
    outside = other_files(plist, h5d)
    if outside:
        fact = f"{source.where} has its values in other files or datasets, {', '.join(map(repr, outside[:3]))}"
        raise FormatError("read", f"{fact}: they are not followed", hint="h5py.File(path)[name][()] reads them")
    filters = _filters_of(source, plist)
    stored = dataset.get_storage_size()
    sizes = plist.get_chunk() if layout == h5d.CHUNKED else ()
    nbytes = math.prod(source.shape) * source.itemsize
    absurd = why_absurd(source.where, nbytes, math.prod(sizes) * itemsize, stored)
    if absurd is not None:
        raise absurd
    begin = dataset.get_offset() if layout == h5d.CONTIGUOUS else None
    if begin is not None and source.kind.is_plain:
        if stored < nbytes or begin + nbytes > source.file.storage.size:
            raise source.file.storage.ends_early(begin + nbytes)
        return Stored(source.file.storage, begin, row_major(source.shape, source.itemsize)), ""
    note = _never_written(source, dataset, plist, sizes, stored)
    reason = "in the header of a file" if layout == h5d.COMPACT else "in a file in another form"
    if sizes:
        reason = "compressed chunks of a file" if filters else "chunks of a file"
    compression = "+".join(_filter_name(code) for code, _ in filters)
    direct = _Direct.of(source, dataset, filters, sizes)
    chunk_rows = sizes[0] if sizes else 1
    if direct is not None:
        return Packed(direct.read, chunk_rows, reason + note, direct.fill), compression
    fill = source.fill if source.kind.decode is None else None
    return Packed(source.read, chunk_rows, reason + note, fill), compression


def other_files(plist: Any, h5d: Any) -> list[str]:
    """The files that values of a dataset are in, other than its own; ``.`` is its own, where it is a virtual dataset.

    Args:
        plist: What the dataset was created with.
        h5d: The module of h5py.
    """
    if plist.get_layout() == h5d.VIRTUAL:
        return [plist.get_virtual_filename(index) for index in range(min(plist.get_virtual_count(), 8))] or ["."]
    return [os.fsdecode(plist.get_external(index)[0]) for index in range(plist.get_external_count())]


def _filters_of(source: Dataset, plist: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Number and settings of each filter, all of which the library must have."""
    h5z = source.file.h5py.h5z
    found = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    for code, _, _, _ in found:
        if not h5z.filter_avail(code):
            with suppress(ImportError):
                __import__("hdf5plugin")  # registers what it has
        if not h5z.filter_avail(code):
            fact = f"{source.where} is packed by {_filter_name(code)}, which this HDF5 does not have"
            raise MissingDependencyError("read", fact, hint="pip install hdf5plugin")
    return [(code, tuple(values)) for code, _, values, _ in found]


def _filter_name(code: int) -> str:
    return _FILTERS.get(code) or _PLUGINS.get(code, f"filter {code}")


def _never_written(source: Dataset, dataset: Any, plist: Any, sizes: tuple[int, ...], stored: int) -> str:
    """Say how much was never written and reads as the fill value; refuse it where there is none."""
    count = count_chunks(source.shape[: len(sizes)], sizes) if sizes else 1
    if not math.prod(source.shape) or plist.get_layout() == source.file.h5py.h5d.COMPACT or count > _MAX_NAMED:
        return ""
    missing = count - (dataset.get_num_chunks() if sizes else bool(stored))
    if missing <= 0:
        return ""
    what = f"{missing} of {count} chunks" if sizes else "all of it"
    if plist.fill_value_defined() == source.file.h5py.h5d.FILL_VALUE_UNDEFINED:
        raise FormatError("read", f"{source.where} was never written, {what}, and has no fill value")
    return f", of which were never written and read as the fill value: {what}" if sizes else ", never written"


# --- text of varying length, without the library


_TEXT = np.dtype([("nbytes", "<u4"), ("heap", "<u8"), ("index", "<u4")])
_HEAP = 16  # bytes of the header of a heap, and of each thing in it


class Texts:
    """Text of varying length, which lies in heaps; of a broken one the library would never come back.

    Args:
        file: The file.
        dataset: The dataset.
        shape: Its sizes.
        where: What errors call it.
    """

    def __init__(self, file: File, dataset: Any, shape: tuple[int, ...], where: str) -> None:
        self._file = file
        self._shape = shape
        self._where = where
        self._count = math.prod(shape)
        begin = file.texts_at(dataset)
        is_whole = self._count <= _MAX_TEXTS and dataset.get_storage_size() == self._count * _TEXT.itemsize
        if self._count and (begin is None or not is_whole):
            fact = "in chunks, or too much of it to look at every length"
            raise self._refused(fact)
        self._begin = begin or 0
        longest = max(int(self._places()["nbytes"].max(initial=0)), 1)
        if longest * self._count > max(4 << 20, 16 * file.storage.size):
            raise self._refused(f"{self._count} of up to {longest} bytes: too much at one length")
        self.dtype = np.dtype(f"U{longest}")

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Read a selection."""
        places = self._places().reshape(self._shape)[slices]
        heaps = _Heaps(self._file, self._where)
        raw = np.empty(places.size, object)
        raw[:] = [heaps.read(*place) for place in places.reshape(-1).tolist()]
        return decoded(raw.reshape(places.shape), self.dtype, self._where)

    def _places(self) -> AnyArray:
        raw = self._file.storage.read(self._begin, self._count * _TEXT.itemsize)
        if len(raw) < self._count * _TEXT.itemsize:
            raise self._file.storage.ends_early(self._begin + self._count * _TEXT.itemsize)
        return np.frombuffer(raw, _TEXT)

    def _refused(self, fact: str) -> UnsupportedTypeError:
        hint = "h5py.File(path)[name].asstr()[()].astype('U') reads it"
        return UnsupportedTypeError("read", f"{self._where} holds text of varying length, {fact}", hint=hint)


class _Heaps:
    """Global heaps, as the specification of HDF5's file format has them in section III.E."""

    def __init__(self, file: File, where: str) -> None:
        self._file = file
        self._where = where
        self._found: dict[int, tuple[bytes, dict[int, tuple[int, int]]]] = {}
        self._left = 2 * file.storage.size  # heaps that overlap would be read without end

    def read(self, nbytes: int, address: int, index: int) -> bytes:
        """Read so many bytes of one thing."""
        if not nbytes:
            return b""
        if address not in self._found:
            self._found[address] = self._heap(address)
        raw, things = self._found[address]
        begin, size = things.get(index, (0, 0))
        if size < nbytes:
            raise self._broken(address)
        return raw[begin : begin + nbytes]

    def _heap(self, address: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
        storage, begin = self._file.storage, self._file.begin + address
        head = storage.read(begin, _HEAP) if begin < storage.size else b""
        size = int.from_bytes(head[8:], "little")
        self._left -= size
        if head[:4] != b"GCOL" or size > storage.size - begin or self._left < 0:
            raise self._broken(address)
        raw, things, at = storage.read(begin, size), {}, _HEAP
        while at + _HEAP <= size:
            index, nbytes = int.from_bytes(raw[at : at + 2], "little"), int.from_bytes(raw[at + 8 : at + 16], "little")
            if not index:  # the rest is free
                break
            things[index] = (at + _HEAP, min(nbytes, size - at - _HEAP))
            at += _HEAP + -(-nbytes // 8) * 8
        return raw, things

    def _broken(self, address: int) -> FormatError:
        return FormatError("read", f"{self._where} has text in a heap that is broken, at {address}")


# --- chunks, without the library


class _Direct:
    """Chunks that the library says the places of: read and unpacked by several threads."""

    def __init__(self, source: Dataset, filters: list[tuple[int, tuple[int, ...]]], sizes: tuple[int, ...]) -> None:
        self._source = source
        self._filters = filters
        self._sizes = sizes
        self._nbytes = math.prod(sizes) * source.itemsize
        self._chunks = Chunks(source.shape, sizes, self._load)
        self._lock = Lock()
        self._index: dict[Place, tuple[int, int, int]] | None = None
        self._fill: AnyArray = np.empty((), source.kind.dtype)

    @classmethod
    def of(cls, source: Dataset, dataset: Any, filters: list[Any], sizes: tuple[int, ...]) -> _Direct | None:
        """Give it where that is faster than the library, and the chunks are not too small or too many."""
        itemsize = source.itemsize
        codes = [code for code, _ in filters]
        are_known = codes in ([], [_GZIP]) or (codes == [_SHUFFLE, _GZIP] and filters[0][1][:1] == (itemsize,))
        is_plain = source.kind.is_plain and not source.kind.inner and hasattr(dataset, "chunk_iter")
        is_large = bool(sizes) and math.prod(sizes) * itemsize >= _SMALL_CHUNK
        are_few = bool(sizes) and count_chunks(source.shape, sizes) <= _MAX_NAMED
        return cls(source, filters, sizes) if are_known and is_plain and is_large and are_few else None

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Read a selection."""
        target = np.empty(tuple(part.stop - part.start for part in slices), self._source.kind.dtype)
        self._read_into(target, slices)
        return target

    def fill(self, target: AnyArray) -> None:
        """Read all of it."""
        self._read_into(target, tuple(slice(0, n) for n in self._source.shape))

    def _read_into(self, target: AnyArray, slices: tuple[slice, ...]) -> None:
        with self._lock:
            if self._index is None and target.size:
                self._index = self._found()
        self._chunks.read_into(target, slices)

    def _found(self) -> dict[Place, tuple[int, int, int]]:
        source, index = self._source, {}

        def take(info: Any) -> None:
            place = tuple(at // size for at, size in zip(info.chunk_offset, self._sizes, strict=True))
            index[place] = (info.byte_offset, info.size, info.filter_mask)

        with failing(source.where):
            dataset = source.file.dataset(source.place)
            dataset.chunk_iter(take)
            value = np.zeros((), source.kind.raw)
            plist = dataset.get_create_plist()
            if plist.fill_value_defined() != source.file.h5py.h5d.FILL_VALUE_UNDEFINED:
                value = np.asarray(source.file.h5py.Dataset(dataset).fillvalue)
            if source.kind.dtype != value.dtype:
                value = value.astype(source.kind.raw).view(source.kind.dtype)
            self._fill = value
        return index

    def _load(self, place: Place, buffer: AnyArray) -> None:
        assert self._index is not None
        entry = self._index.get(place)
        if entry is None:
            buffer[...] = self._fill
            return
        where, storage = f"{self._source.where} chunk {place}", self._source.file.storage
        begin, size, mask = entry
        if begin + size > storage.size:
            raise storage.ends_early(begin + size)
        filters = [code for bit, (code, _) in enumerate(self._filters) if not mask >> bit & 1]
        if not filters:
            if size != self._nbytes:
                raise FormatError("read", f"{where} has another size", expected=f"{self._nbytes} bytes", got=size)
            read_apart(storage, buffer, begin)
            return
        raw = storage.read(begin, size)
        raw = inflate(raw, self._nbytes, where) if _GZIP in filters else raw
        if len(raw) != self._nbytes:
            raise FormatError("read", f"{where} has another size", expected=f"{self._nbytes} bytes", got=len(raw))
        flat, itemsize = np.frombuffer(raw, np.uint8), buffer.itemsize
        if _SHUFFLE in filters:
            planes = flat.reshape(itemsize, -1)[:, : buffer.size]
            buffer.view(np.uint8).reshape(-1, itemsize)[...] = planes.T
        else:
            buffer.view(np.uint8)[...] = flat[: buffer.nbytes]
