"""Ragged rows: lists of arrays, one after the other in memory or each in its own; padded, or as lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import _native
from .._dtypes import DType
from .._errors import NdtorchError, ShapeMismatchError
from .._stack import padding_of
from .columns import Allocate, AnyArray, Column
from .orders import Rows
from .parts import SUBJECT
from .reading import Readers


def checked_padding(value: Any, row: DType) -> AnyArray | None:
    """The value that fills up, as an array of one item."""
    try:
        return None if value is None else padding_of(value, row)
    except NdtorchError as error:
        raise error.renamed(SUBJECT, hint="a number that the rows could hold") from None


class ListColumn(Column):
    """Arrays of a list: one tensor where all are of one shape, padded where that is wanted, else a list of tensors.

    Args:
        readers: Give the arrays.
        row: The dtype of the results.
        pad_value: What fills up the shorter ones; None leaves them as they are.

    Raises:
        ShapeMismatchError: One of them has another number of axes than the first; or, with ``pad_value``, differs
            from it in more than the length of the first axis.
        LossyCastError: ``pad_value`` is no value of that dtype.
    """

    def __init__(self, readers: Readers, row: DType, pad_value: Any = None) -> None:
        self.length, self.nbytes, self.is_slow = len(readers), readers.nbytes, readers.is_slow
        self._readers = readers
        self._row = row
        self._padding = checked_padding(pad_value, row)
        _check_shapes(readers.shapes, is_padded=self._padding is not None)
        self._shape = readers.shapes[0]  # which a batch without rows has as well
        self._is_equal = len(set(readers.shapes)) == 1
        self._is_cast = set(readers.dtypes) != {row.numpy}
        self._is_jagged = len({shape[1:] for shape in readers.shapes}) == 1  # differs in length alone

    def begin(self) -> None:
        """Look where the arrays are."""
        self._readers.begin()

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Put the arrays together."""
        numbers = rows.tolist()
        leaf = self._put_together(tuple([self._readers.read(row) for row in numbers]), allocate)
        self._readers.check(numbers)
        return leaf, None

    def _put_together(self, arrays: tuple[AnyArray, ...], allocate: Allocate) -> Any:
        if self._padding is not None:
            return padded(arrays, self._shape[1:], self._row, self._padding, allocate)
        if self._is_equal:
            return _stacked(arrays, self._shape, self._row, allocate, None)
        if self._is_jagged and arrays:
            return self._joined(arrays, allocate)
        return [_stacked((array,), array.shape, self._row, allocate, None)[0] for array in arrays]

    def _joined(self, arrays: Sequence[AnyArray], allocate: Allocate) -> list[torch.Tensor]:
        """A tensor for each, over one piece of memory."""
        lengths = [len(array) for array in arrays]
        tensor, target = allocate((sum(lengths), *self._shape[1:]), self._row)
        if self._is_cast:
            ends = np.cumsum(lengths).tolist()
            for array, length, end in zip(arrays, lengths, ends, strict=True):
                _native.copy(target[end - length : end], array, False)
        else:
            np.concatenate(arrays, out=target)
        return split(tensor, lengths)


class RaggedColumn(Column):
    """Slices of one array that lie one after the other.

    Args:
        content: All elements.
        offsets: Slice i is ``content[offsets[i]:offsets[i + 1]]``.
        row: The dtype of the results.
        pad_value: What fills up the shorter ones; None makes batches lists of tensors.
    """

    def __init__(self, content: AnyArray, offsets: AnyArray, row: DType, pad_value: Any = None) -> None:
        self._content = content
        self._offsets = np.asarray(offsets, np.int64)
        if np.any(np.diff(self._offsets) < 0) or self._offsets[0] < 0 or self._offsets[-1] > len(content):
            raise ShapeMismatchError(SUBJECT, "its offsets are no slices of its content", hint="build the array anew")
        self.length = len(self._offsets) - 1
        self.nbytes = content.nbytes // max(self.length, 1)
        self._row = row
        self._padding = checked_padding(pad_value, row)

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give the slices: as one gather of their elements, or padded."""
        starts = self._offsets[rows]
        lengths = self._offsets[rows + 1] - starts
        if self._padding is not None:
            ends = (starts + lengths).tolist()
            slices = tuple([self._content[a:b] for a, b in zip(starts.tolist(), ends, strict=True)])
            return padded(slices, self._content.shape[1:], self._row, self._padding, allocate), None
        elements = np.arange(lengths.sum(), dtype=np.int64)
        elements += np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        tensor, target = allocate((len(elements), *self._content.shape[1:]), self._row)
        leaf = split(tensor, lengths.tolist())
        return leaf, (target, self._content, elements, None, False) if target.size else None


def padded(
    arrays: tuple[AnyArray, ...], item: tuple[int, ...], row: DType, padding: AnyArray, allocate: Allocate
) -> tuple[torch.Tensor, torch.Tensor]:
    """One tensor of all, filled up to the longest, and their lengths, as `stack` has it; items are of one shape."""
    lengths = [len(array) for array in arrays]
    shape = (max(lengths, default=0), *item)
    return _stacked(arrays, shape, row, allocate, padding), torch.tensor(lengths, dtype=torch.int64, device="cpu")


def split(tensor: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Slices of a tensor that lie one after the other."""
    return list(tensor.unsafe_split_with_sizes(lengths))


def _stacked(
    arrays: tuple[AnyArray, ...], shape: tuple[int, ...], row: DType, allocate: Allocate, padding: AnyArray | None
) -> torch.Tensor:
    tensor, target = allocate((len(arrays), *shape), row)
    if target.size:
        _native.stack(target, arrays, padding)
    return tensor


def _check_shapes(shapes: Sequence[tuple[int, ...]], *, is_padded: bool) -> None:
    first = shapes[0]
    odd: int | None = None
    if is_padded:
        hint = "pad_value= fills up the first axis only"
        odd = next((i for i, shape in enumerate(shapes) if not shape or shape[1:] != first[1:]), None)
    else:
        hint = "a list is rows and a tuple is columns: give the rows as many axes, or a tuple in its place"
        odd = next((i for i, shape in enumerate(shapes) if len(shape) != len(first)), None)
    if odd is not None:
        fact = f"array {odd} has another shape than array 0" if shapes[odd] != first else "array 0 has no first axis"
        raise ShapeMismatchError(SUBJECT, fact, expected=first, got=shapes[odd], hint=hint, index=odd)
