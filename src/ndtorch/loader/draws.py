"""Rows drawn by weight, with replacement, each draw computed from its place alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._errors import InvalidOptionError
from .checks import SUBJECT
from .orders import Memory, Order, Ordering, Rows, key_of

_WHAT_WEIGHTS_ARE = "one finite number of at least 0 for each row"


@dataclass(frozen=True, slots=True, eq=False)
class Weighted(Ordering):
    """Draws by the inverse of the cumulative weights.

    Attributes:
        length: How many draws an epoch has.
        ends: The sum of the weights up to and with each row.
        fingerprint: Of the weights.
    """

    length: int
    ends: npt.NDArray[np.float64]
    fingerprint: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> Drawn:
        """Give the draws of one epoch."""
        return Drawn(self.length, self.ends, key_of(seed, epoch))

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        return {"order": "weighted", "rows": len(self.ends), "samples": self.length, "weights": self.fingerprint}


class Drawn(Order):
    """The draws of one epoch."""

    def __init__(self, length: int, ends: npt.NDArray[np.float64], key: int) -> None:
        self.length = length
        self._ends = ends
        self._key = np.uint64(key)
        # What the product below rounds up to the sum itself belongs to the last row that has a weight.
        self._last = int(np.searchsorted(ends, ends[-1], side="left"))

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers of the rows that are drawn at those places."""
        at = _fractions(self._key, start, stop) * self._ends[-1]
        rows: Rows = np.searchsorted(self._ends, at, side="right")
        return np.minimum(rows, self._last, out=rows)


def weighted(length: int, weights: Any, num_samples: int | None) -> Weighted:
    """Read the weights of so many rows.

    Raises:
        InvalidOptionError: They are not numbers from which a row can be drawn.
    """
    values = _values_of(weights)
    if values.shape != (length,):
        raise _refused(f"weights= has the shape {values.shape} and the data {length} rows")
    odd = np.flatnonzero(~(values >= 0) | np.isinf(values))
    if odd.size:
        raise _refused(f"weights[{odd[0]}] is {values[odd[0]]}")
    if not values.any():
        raise _refused("no weight is above 0, so that nothing can be drawn")
    # Accumulated one by one on every machine; scaled, so that no sum overflows.
    ends = np.cumsum(values / values.max())
    return Weighted(length if num_samples is None else num_samples, ends, zlib.crc32(values.data))


def _values_of(weights: Any) -> npt.NDArray[np.float64]:
    if np.ma.is_masked(weights):
        raise _refused("weights= has masked values")
    try:
        if isinstance(weights, torch.Tensor):
            weights = weights.detach().cpu()
            array = weights.double().numpy() if not weights.is_complex() else weights.numpy()
        else:
            array = np.asarray(weights)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, sparse or meta tensors
        raise _refused(f"weights= is no array of numbers but {type(weights).__name__}") from None
    if array.dtype.kind not in "fiub":
        raise _refused(f"weights= holds {array.dtype}")
    values: npt.NDArray[np.float64] = array.astype(np.float64, order="C")
    return values


def _refused(fact: str) -> InvalidOptionError:
    return InvalidOptionError(SUBJECT, fact, hint=f"weights= takes {_WHAT_WEIGHTS_ARE}")


def _fractions(key: np.uint64, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Random numbers from 0 to before 1, one for each place: SplitMix64, as `mix` of the kernels has it."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
