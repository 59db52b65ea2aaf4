"""HDF5 files through h5py: every dataset, by the path of links that leads to it.

Contiguous datasets lie in the file as they lie in memory: they are mapped and copied without the library, and so they
are written. Of chunks that are plain, or packed by gzip, the library says where they are, and several threads read
them; whatever else there is the library reads, one thread at a time.

======================  ===========================================================================
NumPy                   HDF5
======================  ===========================================================================
bool, complex, records  as h5py writes them: an enumeration, a compound of ``r`` and ``i``, a compound
bfloat16, float8_e5m2   a float of that layout, which every reader converts by itself
the other float8        unsigned integers of one byte, and the attribute ``dtype`` with the name
datetime64, timedelta64 as `h5py.opaque_dtype` has it, which h5py reads as such
bytes ``S``             text of one length, ASCII
text ``U``              text of one length, UTF-8, and the attribute ``dtype`` with the length, as ``<U5``
======================  ===========================================================================

Text of varying length is read where its lengths can be told, as text of the longest. Nothing outside the file is
ever read: external links, external storage and virtual datasets have an error each, and the rest can be read. What
was never written reads as the fill value, since HDF5 has no other way to say "all zeros"; `explain` counts it. HDF5
is a large C library: a file made to break it may end the process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from .._errors import FormatError, NdtorchError
from .arrays import FileArray, Packed, Unreadable
from .hdf5_datasets import Dataset, File, Texts, layout_of
from .hdf5_types import FAILURES, Written, failing, is_varying, kind_of, library, reason_of, refused_by_system
from .items import Item
from .names import check_tree
from .output import Output
from .storage import Storage

MAX_MEMBERS = 100_000
"""Paths that are followed: a file of hard links may have more of them than there are atoms."""

_MAX_DEPTH = 100  # of groups in groups
_MAX_HOPS = 16  # from one soft link to the next, as in HDF5
_MAX_DIMS = 32  # of a dataset


# --- reading: the links


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read what each dataset is; no element is read, of text of varying length the lengths are."""
    return sorted(_Links(File(storage)).arrays(), key=lambda array: array.name)


class _No(Exception):  # noqa: N818
    """A link leads to nothing that is read; says what it is."""


class _Links:
    """The links of a file, followed as far as they stay in it."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.h5py = file.h5py
        self.where = file.where
        self._count = 0

    def arrays(self) -> Iterator[FileArray]:
        """Every dataset by every path of links, and what stands for the links that are not followed."""
        with failing(self.where):
            root = self.file.root
            yield from self._members(root, "", b"/", (self._address(root),))

    def _address(self, thing: Any) -> Any:
        return self.h5py.h5o.get_info(thing).addr

    def _members(self, group: Any, prefix: str, place: bytes, above: tuple[Any, ...]) -> Iterator[FileArray]:
        names: list[bytes] = []
        self._count += group.get_num_objs()
        if self._count > MAX_MEMBERS:
            fact = f"{self.where} has more than {MAX_MEMBERS} links"
            raise FormatError("read", fact, hint="h5py.File(path)[name] is one of its datasets")
        group.links.iterate(names.append)
        for raw in names:
            name = prefix + raw.decode("utf-8", "surrogateescape")
            where = f"{self.where} dataset {name[:200]!r}"
            try:
                member, inner = self._follow(group, place, raw, 0)
            except _No as no:
                yield _unreadable(name, where, FormatError("read", f"{where} {no}"))
                continue
            if isinstance(member, self.h5py.h5d.DatasetID):
                yield _array(self.file, member, name, where, inner)
            elif isinstance(member, self.h5py.h5g.GroupID):
                address = self._address(member)
                why = "is a group that it lies in" if address in above else ""
                if not why and len(above) > _MAX_DEPTH:
                    why = f"lies more than {_MAX_DEPTH} groups deep"
                if why:
                    yield _unreadable(name, where, FormatError("read", f"{where} {why}"))
                else:
                    yield from self._members(member, f"{name}/", inner + b"/", (*above, address))

    def _follow(self, group: Any, place: bytes, name: bytes, hops: int) -> tuple[Any, bytes]:
        """Open what a link leads to, within this file, and say its path of hard links."""
        h5l = self.h5py.h5l
        try:
            kind = group.links.get_info(name).type
            if kind == h5l.TYPE_HARD:
                return self.h5py.h5o.open(group, name), place + name
            value = group.links.get_val(name) if kind in (h5l.TYPE_SOFT, h5l.TYPE_EXTERNAL) else b""
        except FAILURES as error:
            raise _No(f"cannot be opened: {reason_of(error)}") from None
        if kind == h5l.TYPE_EXTERNAL:
            raise _No(f"is a link to another file, {os.fsdecode(cast(Any, value)[0])!r}: it is not followed")
        if kind != h5l.TYPE_SOFT:
            raise _No(f"is a link of an unknown kind, {kind}")
        if hops == _MAX_HOPS:
            raise _No(f"is a link that leads to another, {_MAX_HOPS} times")
        return self._walk(group, place, value, hops + 1)

    def _walk(self, group: Any, place: bytes, path: bytes, hops: int) -> tuple[Any, bytes]:
        """Go where a soft link points, step by step: on the way there may be links to other files."""
        if path.startswith(b"/"):
            group, place = self.file.root, b"/"
        found, place = group, place.rstrip(b"/")
        for step in path.split(b"/"):
            if step in (b"", b"."):
                continue
            if not isinstance(found, self.h5py.h5g.GroupID) or not found.links.exists(step):
                raise _No(f"is a link to {os.fsdecode(path)[:200]!r}, where nothing is")
            found, place = self._follow(found, place + b"/", step, hops)
        return found, place or b"/"


def _unreadable(name: str, where: str, error: NdtorchError, shape: tuple[int, ...] = (), dtype: str = "") -> FileArray:
    return FileArray(name, where, np.dtype(np.uint8), shape, Unreadable(error), dtype_name=dtype or "unreadable")


def _array(file: File, dataset: Any, name: str, where: str, place: bytes) -> FileArray:
    h5s = file.h5py.h5s
    shape: tuple[int, ...] = ()
    try:
        space = dataset.get_space()
        if space.get_simple_extent_type() == h5s.NULL:
            error = FormatError("read", f"{where} is an HDF5 null dataspace, which has no shape")
            return _unreadable(name, where, error)
        shape = space.get_simple_extent_dims()
        if is_varying(file.h5py, dataset):
            texts = Texts(file, dataset, shape, where)
            return FileArray(name, where, texts.dtype, shape, Packed(texts.read, 1, "text of varying length in a file"))
        kind = kind_of(file.h5py, dataset, where)
        shape = (*shape, *kind.inner)
        layout, compression = layout_of(Dataset(file, place, where, kind, shape), dataset)
        return FileArray(name, where, kind.dtype, shape, layout, compression)
    except NdtorchError as error:
        return _unreadable(name, where, error, shape, str(getattr(error, "dtype", "")))
    except FAILURES as error:
        return _unreadable(name, where, FormatError("read", f"{where} is not sound: {reason_of(error)}"), shape)


# --- writing


def check(items: Sequence[Item]) -> None:
    """Refuse names that exclude each other, dtypes that HDF5 has no type for, and too many dimensions."""
    h5py = library("write")
    check_tree([item.name for item in items])
    for item in items:
        if len(item.shape) > _MAX_DIMS:
            fact = f"cannot write {item.name!r}: HDF5 has at most {_MAX_DIMS} dimensions"
            raise FormatError("write", fact, expected=f"at most {_MAX_DIMS}", got=len(item.shape))
        Written.of(h5py, item)


def write(path: Path, items: Sequence[Item]) -> None:
    """Have the library lay the file out, then write the elements to their places, without it."""
    h5py = library("write")
    layout = {"alignment_threshold": 1, "alignment_interval": 64}
    with refused_by_system(), h5py.File(path, "w", locking=False, **layout) as file:
        begins = [_created(h5py, file, item) for item in items]
    with io.FileIO(path, "r+") as stream:
        for item, begin in zip(items, begins, strict=True):
            if begin is None:
                continue
            stream.seek(begin)
            output = Output(cast(BinaryIO, stream), start=begin)
            encode = Written.of(h5py, item).encode
            if encode is None and item.order == "C":
                output.write_as_it_lies(item)
            else:
                for block in item.blocks("C"):
                    output.write(block if encode is None else encode(block))


def _created(h5py: Any, file: Any, item: Item) -> int | None:
    """Make a dataset, with groups around it, and say where its elements belong, if it has any."""
    h5d, h5p, h5s = h5py.h5d, h5py.h5p, h5py.h5s
    written = Written.of(h5py, item)
    how = h5p.create(h5p.DATASET_CREATE)
    how.set_layout(h5d.CONTIGUOUS)
    how.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)  # the same arrays make the same file
    link = h5p.create(h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    space = h5s.create_simple(item.shape) if item.shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(file.id, item.name.encode(), written.type, space, how, lcpl=link)
    if written.name:
        h5py.Dataset(dataset).attrs["dtype"] = np.bytes_(written.name)
    return dataset.get_offset() if item.nbytes else None
