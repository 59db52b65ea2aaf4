"""Memory: byte ranges, exact overlap, and private mappings of files that are mapped read-only."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FileMapping:
    """The part of a file that an array is mapped from.

    Attributes:
        path: File name, which alone proves nothing: after a replacement it names another file.
        offset: Byte of the file that holds the array's lowest byte.
        nbytes: Bytes from the lowest to past the highest element.
        device: Device number of the file that is mapped.
        inode: Inode number of the file that is mapped.
        shared: Whether writes to the file are seen; the pages of a private mapping may differ from the file.
        truncated: Whether the file has become shorter than the array, so that reading it would kill the process.
    """

    path: str
    offset: int
    nbytes: int
    device: int
    inode: int
    shared: bool
    truncated: bool

    def has_shrunk(self) -> bool:
        """Whether the file has become shorter than the array since; False where another has taken its name."""
        try:
            file = os.stat(self.path)
        except OSError:
            return False
        is_it = (file.st_dev, file.st_ino) == (self.device, self.inode)
        return is_it and file.st_size < self.offset + self.nbytes


def byte_bounds(address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Lowest address and one past the highest of a strided array; equal when it is empty."""
    if 0 in shape:
        return address, address
    steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    return address + sum(s for s in steps if s < 0), address + sum(s for s in steps if s > 0) + itemsize


def file_behind(view: AnyArray, owner: AnyArray) -> FileMapping | None:
    """Find the file that an array is mapped from.

    ``None`` for ordinary memory, for a file that was deleted or replaced, and where the system does not tell.
    """
    return mapping_of(view) if is_mapped(owner) else None


def mapping_of(view: AnyArray) -> FileMapping | None:
    """Find that file, whatever owns the memory; it takes a look at the table of all mappings."""
    if view.size == 0:
        return None
    low, high = byte_bounds(view.__array_interface__["data"][0], view.shape, view.strides, view.itemsize)
    found = _native.mapping_at(low)
    if found is None:
        return None
    path, offset, device, inode, bytes_left, shared, _ = found
    if bytes_left < high - low:
        return None
    try:
        file = os.stat(path)
    except OSError:
        return None
    if (file.st_dev, file.st_ino) != (device, inode):
        return None
    return FileMapping(path, offset, high - low, device, inode, shared, file.st_size < offset + high - low)


def is_mapped(array: AnyArray) -> bool:
    """Whether the memory of an array is that of a `mmap.mmap`."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return isinstance(owner, mmap.mmap)


def map_privately(array: AnyArray, mapping: FileMapping) -> AnyArray | None:
    """Map the file behind a read-only array once more, private and writable; ``None`` when it has changed.

    Memory:
        Nothing is read or copied now. A page is copied when it is first written; the file never changes.
    """
    raw = _native.map_private(mapping.path, mapping.offset, mapping.nbytes, mapping.device, mapping.inode)
    if raw is None:
        return None
    address = array.__array_interface__["data"][0]
    low, _ = byte_bounds(address, array.shape, array.strides, array.itemsize)
    return np.ndarray(array.shape, array.dtype, buffer=raw, offset=address - low, strides=array.strides)


class _Footprint:
    """A strided range of addresses that NumPy can reason about without reading it."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{itemsize}",
            "shape": shape,
            "strides": strides,
            "data": (address, True),
        }


def footprint(address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> AnyArray:
    """An array over addresses that may not be read: to index it says where the elements would be."""
    return np.asarray(_Footprint(address, shape, strides, itemsize))


def overlap(
    a: tuple[int, tuple[int, ...], tuple[int, ...], int],
    b: tuple[int, tuple[int, ...], tuple[int, ...], int],
    *,
    max_work: int = -1,
) -> bool:
    """Whether two footprints (address, shape, strides in bytes, itemsize) have a byte in common, exactly.

    ``max_work`` bounds the search, as in `numpy.shares_memory`: what takes longer counts as overlapping.
    """
    if 0 in a[1] or 0 in b[1] or not a[3] or not b[3]:
        return False
    (low_a, high_a), (low_b, high_b) = byte_bounds(*a), byte_bounds(*b)
    if high_a <= low_b or high_b <= low_a:
        return False
    try:
        views = footprint(*a), footprint(*b)
        return bool(np.shares_memory(*views, max_work))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
