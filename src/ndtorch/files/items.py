"""What is written into a file: arrays by name, in blocks, each already in the dtype that the file will have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._dtypes import DType, from_numpy_dtype
from .arrays import AnyArray, Order, Stored


@dataclass(frozen=True, slots=True)
class Item:
    """One array on its way into a file.

    Attributes:
        name: Its name in the file.
        dtype: The dtype that it is to have there.
        shape: Its sizes.
        order: How it lies where it comes from; formats that keep the order of columns write it so.
        blocks: Streams its elements, flat and in that dtype, row by row (``C``) or, where its own order is ``F``,
            column by column. A block is valid until the next but one is asked for.
        stored: Where a file has exactly these bytes in its own order, so that the kernel can copy them.
        parts: Where its rows are those of several of the same dtype, one after the other: these.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Order
    blocks: Callable[[Order], Iterator[AnyArray]]
    stored: Stored | None = None
    parts: tuple[Item, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row(self) -> DType | None:
        """Its row in the table of dtypes; ``None`` for text, time, fields and the like."""
        return from_numpy_dtype(self.dtype)
