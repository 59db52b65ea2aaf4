"""In which order samples come: places of an epoch to numbers of rows, computed for any stretch on its own.

An order depends on its seed and the epoch alone. None of them keeps an index for every sample, except those that are
made of what the caller gives for every sample: weights, and the samplers of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native

Rows = npt.NDArray[np.int64]


Memory = dict[str, Any]
"""What an epoch of an order that is not computed depends on, besides the seed and its number: text and numbers."""


class Order:
    """The order of one epoch.

    Attributes:
        length: How many samples the epoch has.
        bounds: Where each batch begins and ends, where the order comes in batches.
        memory: What it is made again from, besides the seed and its number.
    """

    length: int
    bounds: Rows | None = None
    memory: Memory | None = None

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers of the rows at the places from ``start`` to ``stop``."""
        raise NotImplementedError


class Ordering:
    """What gives every epoch its order.

    Attributes:
        length: How many samples every epoch has, or batches, where the order comes in batches.
    """

    length: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> Order:
        """Give the order of one epoch, or make again what another one was."""
        raise NotImplementedError

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on as it was, besides the seed."""
        raise NotImplementedError

    def memory_now(self) -> Memory | None:
        """Say what an epoch that began now would depend on, besides the seed and its number."""
        return None

    def check(self, memory: Any) -> Memory | None:
        """Refuse what is no memory of such an order."""
        return None


@dataclass(frozen=True, slots=True)
class Sequential(Ordering, Order):
    """Rows as they lie; every epoch is the same."""

    length: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> Sequential:
        """Give the order of one epoch, which is this."""
        return self

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers themselves."""
        return np.arange(start, stop, dtype=np.int64)

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        return {"order": "sequential", "rows": self.length}


@dataclass(frozen=True, slots=True)
class Shuffled(Ordering):
    """A new random permutation of all rows for every epoch, computed as it is needed."""

    length: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> Permuted:
        """Give the permutation of one epoch."""
        return Permuted(self.length, key_of(seed, epoch))

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        return {"order": "shuffled", "rows": self.length}


class Permuted(Order):
    """One permutation.

    Attributes:
        permutation: What the kernels know it by.
    """

    def __init__(self, length: int, key: int) -> None:
        self.length = length
        self.permutation = _native.permutation(length, key)

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers of the rows at those places."""
        rows = np.empty(stop - start, np.int64)
        self.permutation.fill(start, rows)
        return rows


def key_of(seed: int, *numbers: int) -> int:
    """Mix a seed and what it is for into a key of 64 bits."""
    key = _native.mix(0, seed % (1 << 64))
    for number in numbers:
        key = _native.mix(key, number)
    return key
