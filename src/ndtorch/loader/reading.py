"""Elements of a list that are arrays, or can be read as arrays when a batch wants them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from .._errors import NdtorchError
from .._images import pixels_of
from ..foreign.forms import Unread
from .columns import AnyArray
from .movable import MovableArray
from .parts import SUBJECT

Element = AnyArray | MovableArray | Unread


class Readers:
    """Arrays by number: those that are in memory, and those that have to be made.

    Args:
        arrays: Each an array of a dtype that torch has, where it stays or over a tensor that may move, or unread.
        path: Where in the data they are, for errors.
        pictures: The objects of Pillow that these are, whose pixels are wanted as `image_to_torch` takes them.

    Attributes:
        dtypes: One for each.
        shapes: One for each.
        nbytes: About how many bytes one has.
        is_slow: Whether one has to be made.
    """

    def __init__(self, arrays: Sequence[Element], path: str, pictures: Sequence[Any] | None = None) -> None:
        self._arrays = arrays
        self._movable = [(row, array) for row, array in enumerate(arrays) if isinstance(array, MovableArray)]
        self._path = path
        self._pictures = pictures
        self.dtypes = [array.dtype for array in arrays]
        self.shapes = [tuple(array.shape) for array in arrays]
        if pictures is not None:  # of one bit they are seen as grey
            self.dtypes = [np.dtype(np.uint8) if dtype == np.bool_ else dtype for dtype in self.dtypes]
        self.is_slow = any(isinstance(array, Unread) for array in arrays)
        total = sum(dtype.itemsize * prod(shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True))
        self.nbytes = total // max(len(arrays), 1)

    def __len__(self) -> int:
        return len(self._arrays)

    def begin(self) -> None:
        """Look where those are that may have moved, as a loop begins."""
        for row, array in self._movable:
            try:
                array.find()
            except Exception as error:
                self._note(error, row)
                raise

    def read(self, row: int) -> AnyArray:
        """Give one; where it cannot be read, the error says which it is."""
        array = self._arrays[row]
        if isinstance(array, np.ndarray):
            return array
        try:
            if isinstance(array, MovableArray):
                return array.checked()
            result = pixels_of(self._pictures[row], SUBJECT) if self._pictures is not None else array.read()
            if tuple(result.shape) != self.shapes[row] or result.dtype != self.dtypes[row]:
                fact = f"it has changed from {self.dtypes[row]}{list(self.shapes[row])}"
                raise NdtorchError(SUBJECT, fact, hint="make the loader anew")
        except Exception as error:
            self._note(error, row)
            raise
        return result

    def check(self, rows: Iterable[int]) -> None:
        """Raise where one has moved since it was read: what has been copied of it may be anything."""
        for row in rows if self._movable else ():
            if isinstance(self._arrays[row], MovableArray):
                self.read(row)

    def _note(self, error: Exception, row: int) -> None:
        if isinstance(error, NdtorchError):
            error.facts.setdefault("index", (row,))
            error.renamed(SUBJECT)
        error.add_note(f"at row {row} of data{self._path}")
