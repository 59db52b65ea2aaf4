"""What the values of an array in a file are like: extremes, moments, counts and a histogram, a block at a time.

Real numbers go through in pieces that stay in the cache, a thread for each part of a block. Mean and variance are
joined piece by piece as Chan, Golub and LeVeque do it ("Updating formulae and a pairwise algorithm for computing sample
variances", 1979), in extended precision; integers are summed exactly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ._dtypes import from_numpy_dtype
from .files.arrays import FileArray, Order, Packed, Stored

AnyArray = npt.NDArray[Any]
Edge = int | float

_PIECE = 1 << 15  # elements: as float64 they fill half of a second-level cache, and 32-bit integers sum exactly
_MANY = 1 << 20  # elements to count before the counts are added up
_EXACT = 1 << 38  # integers below this sum exactly in float64, a piece at a time
_LARGE, _SMALL = 1e150, 1e-140  # beyond these the square of a float64 is none
_WIDE = np.longdouble
_HALF_INF = 0x7C00  # the bits of a float16 that is infinite; more are NaN
_NAT = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the values of one array are like; ``None`` where its dtype has no such thing.

    NaN, and NaT for times, is counted and left out of the rest. Infinities take part, as in NumPy: the mean of finite
    numbers and ``inf`` is ``inf``. A ``bool`` is 0 or 1. Of complex numbers there are only the counts: a NaN or an
    infinity in either part makes one; text and times have extremes and no mean.

    Attributes:
        count: How many elements there are.
        min: The least.
        max: The greatest.
        mean: Of integers the nearest float to the exact mean.
        std: The standard deviation of the population, as ``np.std``.
        nans: How many are NaN, or NaT.
        infs: How many are infinite.
        zeros: How many are zero.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "x.npy"), np.array([1.0, np.nan, 3.0]))
    ...     nd.inspect(os.path.join(folder, "x.npy"), stats=True)[0].stats
    Statistics(count=3, min=1.0, max=3.0, mean=2.0, std=1.0, nans=1, infs=0, zeros=0)
    """

    count: int
    min: Any = None
    max: Any = None
    mean: Any = None
    std: Any = None
    nans: int | None = None
    infs: int | None = None
    zeros: int | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie in bins of one width.

    Attributes:
        low: Where the first bin begins.
        high: Where the last one ends.
        counts: Of each bin.
        is_whole: Whether a bin is a range of integers; ``high`` is the last then.
    """

    low: Edge
    high: Edge
    counts: tuple[int, ...]
    is_whole: bool


def statistics_of(array: FileArray, *, watch: Callable[[AnyArray], None] | None = None) -> Statistics | None:
    """Stream an array and give what its values are like; ``None`` for records, which have no order.

    Args:
        array: The array.
        watch: Shown every block that is streamed, in the order in which the elements lie.

    Raises:
        NdtorchError: It cannot be read.
    """
    array.require()
    make = _accumulator(array.dtype)
    if make is None:
        for values in _blocks(array) if watch is not None else ():
            watch(values)  # type: ignore[misc]
        return None
    parts = [make() for _ in range(_threads())]

    def take(part: _Accumulator, values: AnyArray) -> None:
        with np.errstate(all="ignore"):
            step = _MANY if isinstance(part, _Codes) else _PIECE
            for start in range(0, values.size, step):
                part.add(values[start : start + step])

    with ThreadPoolExecutor(len(parts)) as pool:
        for values in _blocks(array):
            if watch is not None:
                watch(values)
            step = -(-values.size // (len(parts) * _PIECE)) * _PIECE
            list(pool.map(take, parts, (values[i * step : (i + 1) * step] for i in range(len(parts)))))
    whole = parts[0]
    with np.errstate(all="ignore"):
        for part in parts[1:]:
            whole.join(part)
    return whole.result(math.prod(array.shape))


def _threads() -> int:
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def stream_order(array: FileArray) -> Order:
    """The order in which an array is streamed here: that of its elements, as nothing here depends on where one is."""
    layout = array.layout
    is_streamed = isinstance(layout, Stored) or (isinstance(layout, Packed) and layout.stream is not None)
    return "F" if is_streamed and array.order == "F" and len(array.shape) > 1 else "C"


def _blocks(array: FileArray) -> Iterator[AnyArray]:
    return array.blocks(stream_order(array))


class _Accumulator(Protocol):
    """What has been seen of an array so far."""

    def add(self, values: AnyArray) -> None:
        """Take some more values in."""

    def join(self, other: Any) -> None:
        """Take in what another one, of the same kind, has seen."""

    def result(self, count: int) -> Statistics:
        """Say what ``count`` values are like, all of which have been taken in."""


def _accumulator(dtype: np.dtype[Any]) -> Callable[[], _Accumulator] | None:
    row = from_numpy_dtype(dtype)
    kind = dtype.kind if row is None else row.kind
    made: dict[str, Callable[[], _Accumulator]] = {
        **dict.fromkeys(("bool", "uint", "int"), _Integers),
        **dict.fromkeys(("float", "f"), _Floats),
        **dict.fromkeys(("complex", "c"), _Complex),
        **dict.fromkeys("Mm", _Times),
        **dict.fromkeys("US", _Text),
    }
    if kind == "float" and dtype.itemsize == 1:
        return lambda: _Codes(dtype)
    return made.get(kind)


class _Moments:
    """Count, mean and sum of squared distances from it."""

    def __init__(self) -> None:
        self.count = 0
        self.mean, self.squares = _WIDE(0), _WIDE(0)

    def join(self, count: int, mean: Any, squares: Any) -> None:
        """Take in another set of values by what is known of it."""
        if not count:
            return
        total, distance = self.count + count, mean - self.mean
        self.mean += distance * (_WIDE(count) / total)
        self.squares += squares + distance * distance * (_WIDE(self.count) * count / total)
        self.count = total

    def std(self) -> Any:
        """The standard deviation of the population."""
        return np.sqrt(self.squares / self.count)


def _squared_sum(numbers: AnyArray) -> Any:
    """The sum of squares, pairwise; BLAS would start threads of its own for as little as this."""
    np.multiply(numbers, numbers, out=numbers)
    return _WIDE(numbers.sum())


class _Integers:
    """Integers and truth values, exactly."""

    def __init__(self) -> None:
        self.low: int | None = None
        self.high: int | None = None
        self.pivot: int | None = None  # that the moments are of the distances from, or they would be too coarse
        self.sum = self.zeros = 0
        self.is_bool = False
        self.moments = _Moments()
        self._scratch = np.empty(_PIECE)

    def add(self, values: AnyArray) -> None:
        if values.dtype.kind == "b":
            self._add_truths(int(np.count_nonzero(values.view(np.uint8))), values.size)
            return
        values = _native(values)
        low, high, count = int(values.min()), int(values.max()), values.size
        self._widen(low, high)
        if low <= 0 <= high:
            self.zeros += count - int(np.count_nonzero(values))
        offset = 0
        if values.itemsize == 8:  # which float64 does not hold: their distance from the least
            offset, values = low, _from_least(values, low)
        numbers = self._scratch[:count]
        np.copyto(numbers, values, casting="unsafe")
        total = int(numbers.sum()) if high - low < _EXACT else _exact_sum(values)
        mean = total / count
        numbers -= mean
        self.sum += total + offset * count
        self.moments.join(count, _WIDE(offset - self._pivoted(low)) + _WIDE(mean), _squared_sum(numbers))

    def _pivoted(self, low: int) -> int:
        if self.pivot is None:
            self.pivot = low
        return self.pivot

    def _add_truths(self, trues: int, count: int) -> None:
        """Truth values, which in a file may be other bytes than 0 and 1."""
        self.is_bool = True
        self._widen(int(trues == count), int(trues > 0))
        self.sum, self.zeros = self.sum + trues, self.zeros + count - trues
        self._pivoted(0)
        self.moments.join(count, _WIDE(trues) / count, _WIDE(trues) * (count - trues) / count)

    def _widen(self, low: int, high: int) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def join(self, other: _Integers) -> None:
        if other.low is None or other.high is None or other.pivot is None:
            return
        self._widen(other.low, other.high)
        self.sum, self.zeros, self.is_bool = self.sum + other.sum, self.zeros + other.zeros, other.is_bool
        apart = _WIDE(other.pivot - self._pivoted(other.pivot))
        self.moments.join(other.moments.count, other.moments.mean + apart, other.moments.squares)

    def result(self, count: int) -> Statistics:
        if self.low is None or self.high is None:
            return Statistics(count, nans=0, infs=0, zeros=0)
        low, high = (bool(self.low), bool(self.high)) if self.is_bool else (self.low, self.high)
        mean, std = self.sum / self.moments.count, float(self.moments.std())
        return Statistics(count, low, high, mean, std, 0, 0, self.zeros)


def _from_least(values: AnyArray, low: int) -> AnyArray:
    """Distances of 64-bit integers from the least of them, which as unsigned numbers never overflow."""
    return values.view(np.uint64) - np.uint64(low % (1 << 64))


def _exact_sum(values: AnyArray) -> int:
    """The sum of a piece of unsigned 64-bit integers, by halves."""
    return (int((values >> np.uint64(32)).sum()) << 32) + int((values & np.uint64(0xFFFFFFFF)).sum())


class _Floats:
    """Real numbers of any width."""

    def __init__(self) -> None:
        self.low: Any = None
        self.high: Any = None
        self.nans = self.zeros = self.above = self.below = 0
        self.moments = _Moments()
        self._scratch = np.empty(_PIECE)

    def add(self, values: AnyArray) -> None:
        values = widened(values)
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            values = self._take_out(values)
            if not values.size:
                return
            low, high = values.min(), values.max()
        self._widen(low, high)
        if low <= 0 <= high:
            self.zeros += int(np.count_nonzero(values == 0))
        size = max(abs(low), abs(high))
        if values.itemsize > 8 or size > _LARGE or 0 < size < _SMALL:
            numbers: AnyArray = values.astype(_WIDE)
        else:
            numbers = self._scratch[: values.size]
            np.copyto(numbers, values)
        mean = numbers.sum() / numbers.size
        numbers -= mean
        self.moments.join(values.size, _WIDE(mean), _squared_sum(numbers))

    def add_often(self, number: Any, times: int) -> None:
        """Take in one number that is there many times."""
        if not times:
            return
        if not np.isfinite(number):
            self.nans += times * bool(np.isnan(number))
            self.above, self.below = self.above + times * bool(number > 0), self.below + times * bool(number < 0)
            return
        self._widen(number, number)
        self.zeros += times * bool(number == 0)
        self.moments.join(times, _WIDE(number), _WIDE(0))

    def _take_out(self, values: AnyArray) -> AnyArray:
        """Count what is not finite, and give the rest."""
        finite = np.isfinite(values)
        others = values[~finite]
        self.above += int(np.count_nonzero(others > 0))
        self.below += int(np.count_nonzero(others < 0))
        self.nans += int(np.count_nonzero(np.isnan(others)))
        rest: AnyArray = values[finite]
        return rest

    def _widen(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def join(self, other: _Floats) -> None:
        if other.low is not None:
            self._widen(other.low, other.high)
        self.nans, self.zeros = self.nans + other.nans, self.zeros + other.zeros
        self.above, self.below = self.above + other.above, self.below + other.below
        self.moments.join(other.moments.count, other.moments.mean, other.moments.squares)

    def result(self, count: int) -> Statistics:
        infs = self.above + self.below
        if self.low is None and not infs:
            return Statistics(count, nans=self.nans, infs=0, zeros=0)
        low = -math.inf if self.below else math.inf if self.low is None else self.low.item()
        high = math.inf if self.above else -math.inf if self.high is None else self.high.item()
        if infs:
            mean = math.nan if self.above and self.below else math.inf if self.above else -math.inf
            return Statistics(count, low, high, mean, math.nan, self.nans, infs, self.zeros)
        mean, std = float(self.moments.mean), float(self.moments.std())
        return Statistics(count, low, high, mean, std, self.nans, infs, self.zeros)


class _Codes:
    """Numbers of eight bits: how often each of the 256 is there says it all."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._pairs = np.zeros(1 << 16, np.int64)
        self._last = np.zeros(256, np.int64)

    def add(self, values: AnyArray) -> None:
        codes = values.view(np.uint8)
        even = codes.size // 2 * 2
        self._pairs += np.bincount(codes[:even].view(np.uint16), minlength=1 << 16)
        self._last += np.bincount(codes[even:], minlength=256)

    def join(self, other: _Codes) -> None:
        self._pairs += other._pairs
        self._last += other._last

    def result(self, count: int) -> Statistics:
        pairs = self._pairs.reshape(256, 256)
        counts = pairs.sum(0) + pairs.sum(1) + self._last
        every = np.arange(256, dtype=np.uint8).view(self._dtype).astype(np.float64)
        seen = _Floats()
        for number, times in zip(every, counts.tolist(), strict=True):
            seen.add_often(number, times)
        return seen.result(count)


class _Complex:
    """Complex numbers, which have no order."""

    def __init__(self) -> None:
        self.nans = self.infs = self.zeros = 0

    def add(self, values: AnyArray) -> None:
        values = _native(values)
        nan = np.isnan(values)
        self.nans += int(np.count_nonzero(nan))
        self.infs += int(np.count_nonzero(np.isinf(values) & ~nan))
        self.zeros += int(np.count_nonzero(values == 0))

    def join(self, other: _Complex) -> None:
        self.nans, self.infs, self.zeros = self.nans + other.nans, self.infs + other.infs, self.zeros + other.zeros

    def result(self, count: int) -> Statistics:
        return Statistics(count, nans=self.nans, infs=self.infs, zeros=self.zeros)


class _Times:
    """Points in time and durations."""

    def __init__(self) -> None:
        self.low: Any = None
        self.high: Any = None
        self.nats = 0

    def add(self, values: AnyArray) -> None:
        values = _native(values)
        numbers = values.view(np.int64)
        if numbers.min() == _NAT:
            values = values[numbers != _NAT]
            self.nats += numbers.size - values.size
        if values.size:
            self._widen(values.min(), values.max())

    def _widen(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def join(self, other: _Times) -> None:
        if other.low is not None:
            self._widen(other.low, other.high)
        self.nats += other.nats

    def result(self, count: int) -> Statistics:
        return Statistics(count, self.low, self.high, nans=self.nats)


class _Text:
    """Text, in the order of its code points, and bytes."""

    def __init__(self) -> None:
        self.low: Any = None
        self.high: Any = None

    def add(self, values: AnyArray) -> None:
        words = values.tolist()
        self._widen(min(words), max(words))

    def _widen(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def join(self, other: _Text) -> None:
        if other.low is not None:
            self._widen(other.low, other.high)

    def result(self, count: int) -> Statistics:
        return Statistics(count, self.low, self.high)


# --- histogram


def histogram_of(array: FileArray, statistics: Statistics, bins: int = 64) -> Histogram | None:
    """Stream an array once more and count its finite values in bins; ``None`` where there are none to count."""
    low, high = statistics.min, statistics.max
    if isinstance(low, bool):
        return Histogram(0, 1, (statistics.zeros or 0, statistics.count - (statistics.zeros or 0)), True)
    if isinstance(low, int):
        return _counted(array, _Whole(low, high, bins))
    if not isinstance(low, float | np.longdouble):
        return None
    if statistics.infs:
        low, high = _finite_extremes(array)
    return None if low is None else _counted(array, _Real(float(low), float(high), bins))


def _finite_extremes(array: FileArray) -> tuple[Any, Any]:
    low = high = None
    for block in _blocks(array):
        for start in range(0, block.size, _PIECE):
            values = widened(block[start : start + _PIECE])
            values = values[np.isfinite(values)]
            if values.size:
                low = values.min() if low is None else min(low, values.min())
                high = values.max() if high is None else max(high, values.max())
    return low, high


class _Whole:
    """Bins of a whole width, exactly."""

    def __init__(self, low: int, high: int, bins: int) -> None:
        self.low = low
        self.width = max(-(-(high - low + 1) // bins), 1)
        self.count = (high - low) // self.width + 1
        self.high, self.is_whole = low + self.count * self.width - 1, True

    def places(self, values: AnyArray) -> AnyArray:
        values = _native(values)
        wide = values if values.itemsize == 8 else values.astype(np.int64)
        return (_from_least(wide, self.low) // np.uint64(self.width)).astype(np.intp)


class _Real:
    """Bins between two finite numbers; the last holds the greatest."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high, self.is_whole = low, high, False
        self.count = bins if low < high else 1
        # The range may be greater than the greatest number, and each bin thinner than the least.
        self._by = 0.25 if max(abs(low), abs(high)) > _LARGE else 2.0**500 if max(abs(low), abs(high)) < _SMALL else 1.0
        self._start = low * self._by
        self._scale = self.count / (high * self._by - self._start) if low < high else 0.0

    def places(self, values: AnyArray) -> AnyArray:
        numbers = widened(values).astype(np.float64)
        numbers = numbers[np.isfinite(numbers)]
        numbers *= self._by
        numbers -= self._start
        numbers *= self._scale
        return np.minimum(numbers, self.count - 1).astype(np.intp)


def _counted(array: FileArray, bins: _Whole | _Real) -> Histogram:
    counts = np.zeros(bins.count, np.int64)
    with np.errstate(all="ignore"):
        for block in _blocks(array):
            for start in range(0, block.size, _PIECE):
                counts += np.bincount(bins.places(block[start : start + _PIECE]), minlength=bins.count)
    return Histogram(bins.low, bins.high, tuple(counts.tolist()), bins.is_whole)


# --- number formats


def _native(values: AnyArray) -> AnyArray:
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def widened(values: AnyArray) -> AnyArray:
    """The same real numbers in a format that the processor computes with, in its byte order.

    >>> widened(np.array([1.5, -2.0], np.float16))
    array([ 1.5, -2. ], dtype=float32)
    """
    if values.dtype.char in "fdg":
        return _native(values)
    if values.dtype.char == "e":
        return _widened_half(_native(values))
    if values.itemsize > 1:
        return values.astype(np.float32)  # bfloat16: ml_dtypes has a loop for that
    every = np.arange(256, dtype=np.uint8).view(values.dtype).astype(np.float32)
    return every[values.view(np.uint8)]


def _widened_half(values: AnyArray) -> AnyArray:
    """The same as ``astype(np.float32)``, which goes one by one."""
    bits = values.view(np.uint16)
    size = bits & np.uint16(0x7FFF)
    if size.max(initial=0) >= _HALF_INF:
        return values.astype(np.float32)
    numbers = (size.astype(np.uint32) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
    signs = (bits ^ size).astype(np.uint32) << np.uint32(16)
    return (numbers.view(np.uint32) | signs).view(np.float32)
