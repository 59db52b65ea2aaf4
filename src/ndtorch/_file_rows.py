"""Arrays of many files, or of one, as the rows of one tensor: each is read into its place, equal files at once.

A header that is, byte for byte, that of the first file needs no parsing: that costs more than reading a small file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, ValuesView
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import _native
from ._dtypes import DType, from_numpy_dtype
from ._read import LazyArray, LazyArrays
from .files.arrays import FileArray, Stored
from .files.storage import thread_count

AnyArray = npt.NDArray[Any]
Allocate = Callable[[tuple[int, ...], DType], tuple[torch.Tensor, AnyArray]]


class FileRows(NamedTuple):
    """Arrays that are still in files.

    Attributes:
        number: How many there are.
        open_one: Reads the header of one.
        paths: The files, where each holds one of them and nothing else.
    """

    number: int
    open_one: Callable[[int], FileArray]
    paths: Sequence[str] | None = None


def rows_in_files(arrays: Any) -> FileRows | None:
    """The rows that a list of lazy arrays is, or ``nd.read(folder).values()``; ``None`` for whatever else it is."""
    if isinstance(arrays, list | tuple):
        if not arrays or not all(type(each) is LazyArray for each in arrays):
            return None
        return FileRows(len(arrays), lambda i: arrays[i].stored)
    mapping = getattr(arrays, "_mapping", None) if isinstance(arrays, ValuesView) else None
    if not isinstance(mapping, LazyArrays) or not len(mapping):
        return None
    names = list(mapping)
    paths = [mapping.local_path(name) for name in names]
    known = [path for path in paths if path is not None]
    return FileRows(len(names), lambda i: mapping.stored(names[i]), known if len(known) == len(names) else None)


def stack_rows(rows: FileRows, allocate: Allocate) -> torch.Tensor | None:
    """Read all rows into one new tensor; ``None`` where they are not of one shape and dtype that a tensor has.

    Raises:
        FormatError: One of the files is not what it claims to be.
    """
    first = rows.open_one(0)
    row = from_numpy_dtype(first.dtype)
    if first.error is not None or row is None or not first.dtype.isnative or not first.nbytes:
        return None
    if rows.paths is None and not all(_is_like(first, rows.open_one(i)) for i in range(1, rows.number)):
        return None
    result, target = allocate((rows.number, *first.shape), row)
    done = 0
    while done < rows.number:
        done += _read_equal(rows, done, first, target)
        if done < rows.number:
            # What is wrong with it, if anything, is said by whoever opens it alone.
            found = rows.open_one(done)
            if not _is_like(first, found):
                return None
            found.read_into(target[done])
            done += 1
    return result


def _is_like(first: FileArray, other: FileArray) -> bool:
    return other.error is None and other.shape == first.shape and other.dtype == first.dtype


def _read_equal(rows: FileRows, done: int, first: FileArray, target: AnyArray) -> int:
    """Read files from one on, as long as they are the header of the first and elements; give how many they were."""
    layout = first.layout
    if rows.paths is None or not isinstance(layout, Stored) or layout.checksum is not None or first.order != "C":
        return 0
    if layout.storage.size != layout.offset + first.nbytes:
        return 0
    header = layout.storage.read(0, layout.offset)
    paths = tuple(map(os.fsencode, rows.paths[done:]))
    return _native.read_equal_files(paths, header, target[done:].reshape(-1).view(np.uint8), thread_count())
