"""Tensors whose memory torch may move: arrays over them, found anew as a loop begins and compared while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._bridge import const_data_ptr
from .._errors import NdtorchError
from .._spec import describe
from .._stack import array_of
from .columns import AnyArray
from .parts import SUBJECT


class MovableArray:
    """The array over a tensor that torch may give other memory, which leaves the array dangling (pytorch#51849)."""

    __slots__ = ("_address", "_array", "_tensor")

    def __init__(self, tensor: torch.Tensor, array: AnyArray) -> None:
        self._array = array
        self._tensor = tensor
        self._address = const_data_ptr(tensor)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array, for good."""
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array, for good."""
        return self._array.shape

    def find(self) -> AnyArray:
        """Give the array where it is now.

        Raises:
            NdtorchError: The tensor is another one by now.
        """
        if const_data_ptr(self._tensor) != self._address:
            try:
                array = array_of(self._tensor, SUBJECT)
            except NdtorchError as error:
                raise error.renamed(SUBJECT) from None
            if (array.shape, array.dtype) != (self._array.shape, self._array.dtype):
                expected, got = describe(self._array), describe(self._tensor)
                fact = "a tensor has become another one since the loader was made"
                raise NdtorchError(SUBJECT, fact, expected=expected, got=got, hint="make the loader anew")
            self._array = array  # before the address, by which other threads know that it is there
            self._address = const_data_ptr(self._tensor)
        return self._array

    def checked(self) -> AnyArray:
        """Give the array where it was found last.

        Raises:
            NdtorchError: The tensor is elsewhere by now.
        """
        if const_data_ptr(self._tensor) != self._address:
            fact = f"torch has moved {describe(self._tensor)} to other memory while a loop was running"
            raise NdtorchError(SUBJECT, fact, hint="tensor.share_memory_() before the loop begins")
        return self._array
