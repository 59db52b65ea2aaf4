"""Files of one sample each: those of a batch are read when it is made, equal ones by the kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import _bridge, _native
from .._dtypes import from_numpy_dtype
from .._errors import NdtorchError, ShapeMismatchError
from .._file_rows import FileRows as Samples
from .._stack import stack
from ..files.arrays import FileArray, Stored
from .columns import Allocate, Column
from .file_rows import FileRows, Form, at_row
from .orders import Rows

AnyArray = npt.NDArray[Any]


class _Equal(NamedTuple):
    """What a file of one sample is, byte for byte, before its elements.

    Attributes:
        header: Those bytes.
        paths: All files.
    """

    header: bytes
    paths: Sequence[str]


class SampleFiles(FileRows):
    """Samples of one shape and dtype, each in a file of its own.

    Args:
        samples: The arrays; those that are known already are compared, others when they are read.

    Raises:
        ShapeMismatchError: Two that are known are of different shapes or dtypes.
    """

    def __init__(self, samples: Samples) -> None:
        first = opened_at(samples, 0)
        self.length, self.shape, self.dtype = samples.number, first.shape, first.dtype
        self.where = first.where
        self._samples = samples
        self._first = first
        self._equal = _equal(samples, first)
        if samples.paths is None:
            for i in range(samples.number):
                self._check(i, samples.open_one(i))

    def read(self, rows: Rows, target: AnyArray) -> None:
        """Read the files of some samples."""
        done = 0
        while done < len(rows):
            done += self._read_equal(rows[done:], target[done:])
            if done < len(rows):  # it is missing, or of another kind: whoever opens it alone says so
                self._read_one(int(rows[done]), target[done : done + 1])
                done += 1

    def _read_equal(self, rows: Rows, target: AnyArray) -> int:
        if self._equal is None:
            return 0
        paths = tuple(os.fsencode(self._equal.paths[row]) for row in rows.tolist())
        return _native.read_equal_files(paths, self._equal.header, target.reshape(-1).view(np.uint8), 1)

    def _read_one(self, row: int, target: AnyArray) -> None:
        with at_row(name_of(self._samples, row), row):
            found = self._samples.open_one(row)
            found.require()
            self._check(row, found)
            found.read_into(target.reshape(found.shape))

    def _check(self, row: int, found: FileArray) -> None:
        if (found.shape, found.dtype) != (self.shape, self.dtype):
            fact = f"sample {row}, {name_of(self._samples, row)}, is {found} and sample 0 is {self._first}"
            hint = "pad_value=0 fills up" if found.shape[1:] == self.shape[1:] and found.shape else None
            raise ShapeMismatchError("Loader", fact, expected=self._first, got=found, hint=hint, index=(row,))


def _equal(samples: Samples, first: FileArray) -> _Equal | None:
    layout = first.layout
    if samples.paths is None or not isinstance(layout, Stored) or layout.checksum is not None or first.order != "C":
        return None
    is_whole = bool(first.nbytes) and layout.storage.size == layout.offset + first.nbytes
    return _Equal(layout.storage.read(0, layout.offset), samples.paths) if is_whole else None


def name_of(samples: Samples, row: int) -> str:
    """What errors call a sample."""
    if samples.paths is not None:
        return repr(samples.paths[row])
    try:
        return samples.open_one(row).where
    except NdtorchError:  # which names the file
        return "the samples"


def opened_at(samples: Samples, row: int) -> FileArray:
    """Read the header of a sample.

    Raises:
        NdtorchError: It cannot be read: which sample it is, and in which file.
    """
    with at_row(name_of(samples, row), row):
        found = samples.open_one(row)
        found.require()
        return found


def are_alike(samples: Samples) -> bool:
    """Whether samples are of one shape and dtype, as far as that is known without opening their files."""
    if samples.paths is not None:
        return True
    first = opened_at(samples, 0)
    others = (samples.open_one(i) for i in range(1, samples.number))
    return all((other.shape, other.dtype) == (first.shape, first.dtype) for other in others)


class RaggedFiles(Column):
    """Samples of different lengths, each in a file of its own: a list for each batch, or filled up.

    Args:
        samples: The arrays.
        form: What becomes of them.
        pad_value: What fills up, or None for lists.
    """

    is_slow = True

    def __init__(self, samples: Samples, form: Form, pad_value: Any) -> None:
        first = opened_at(samples, 0)
        column = form(np.zeros((1, *first.shape), first.dtype))  # says what cannot be, before a loop begins
        self._none, _ = column.take(np.empty(0, np.int64), _bridge.fresh)
        self.length = samples.number
        self.nbytes = first.nbytes
        self._samples = samples
        self._form = form
        self._pad_value = pad_value

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, None]:
        """Read some samples."""
        leaves = [self._sample(row) for row in rows.tolist()]
        if self._pad_value is None:
            return leaves, None
        if not leaves:
            lengths = torch.empty(0, dtype=torch.int64, device="cpu")
            return (self._none.new_empty((0, 0, *self._none.shape[2:])), lengths), None
        return stack(leaves, pad_value=self._pad_value), None

    def _sample(self, row: int) -> torch.Tensor:
        with at_row(name_of(self._samples, row), row):
            array = self._samples.open_one(row).read()
            leaf, job = self._form(array[None]).take(np.zeros(1, np.int64), _bridge.fresh)
            if job is not None:
                _native.gather((job,))
            tensor: torch.Tensor = leaf[0]
            return tensor


def column_of_samples(samples: Samples, form: Form, pad_value: Any) -> Column:
    """The column of samples in files of their own."""
    is_ragged = pad_value is not None or not are_alike(samples)
    first = opened_at(samples, 0)
    if is_ragged and from_numpy_dtype(first.dtype) is not None:
        return RaggedFiles(samples, form, pad_value)
    return SampleFiles(samples).column(form)
