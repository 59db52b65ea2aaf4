"""Arrays that lie in chunks: which of them a selection touches, and their way into one array by several threads."""

from __future__ import annotations

import itertools
import math
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError

from .._errors import FormatError
from .arrays import AnyArray
from .storage import Storage, thread_count

Place = tuple[int, ...]
"""Which chunk: its number along each axis."""

_BROKEN: tuple[type[Exception], ...] = (zlib.error, cast(Any, IsalError), ValueError, OverflowError)
_LARGE = 8 << 20  # bytes from which on a second thread pays
_AT_ONCE = 4 << 20  # bytes that a storage reads by one thread
_MAX_CHUNK = 256 << 20
_MAX_EMPTY = 16 << 30
_MAX_RATIO = 1100  # of what deflate packs to what it unpacks to


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of one size each, the last along an axis filled up.

    Attributes:
        shape: Sizes of the array.
        sizes: Sizes of a chunk.
        load: ``load(place, buffer)`` fills a buffer with the first of a chunk's elements, row by row.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    load: Callable[[Place, AnyArray], None]

    def read_into(self, target: AnyArray, slices: tuple[slice, ...]) -> None:
        """Fill an array with a selection, by several threads where it is large."""

        def work(place: Place) -> None:
            inner, outer = self._parts(place, slices)
            region: AnyArray = target[cast(Any, (*outer, ...))]  # with it, what has no axes is an array too
            if self._is_front(inner) and region.flags.c_contiguous:
                self.load(place, region.reshape(-1))
                return
            whole = np.empty(self.sizes, target.dtype)
            self.load(place, whole.reshape(-1))
            region[...] = whole[inner]

        if target.size:
            each(work, self.touched(slices), thread_count() if target.nbytes >= _LARGE else 1)

    def touched(self, slices: tuple[slice, ...]) -> Iterator[Place]:
        """The chunks that a selection, one slice of step 1 for each axis, has a part of."""
        steps = zip(slices, self.sizes, strict=True)
        return itertools.product(*(range(part.start // size, -(-part.stop // size)) for part, size in steps))

    def _parts(self, place: Place, slices: tuple[slice, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What a chunk has of a selection: where that is in the chunk, and where in the result."""
        inner, outer = [], []
        for number, part, size in zip(place, slices, self.sizes, strict=True):
            begin, low, high = number * size, max(part.start, number * size), min(part.stop, (number + 1) * size)
            inner.append(slice(low - begin, high - begin))
            outer.append(slice(low - part.start, high - part.start))
        return tuple(inner), tuple(outer)

    def _is_front(self, inner: tuple[slice, ...]) -> bool:
        """Whether a part of a chunk is its first elements."""
        axis = next((axis for axis, size in enumerate(self.sizes) if size > 1), len(self.sizes))
        rest = zip(inner[axis + 1 :], self.sizes[axis + 1 :], strict=True)
        return all(not part.start for part in inner) and all(part.stop == size for part, size in rest)


def places(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[Place]:
    """Every chunk of an array.

    >>> list(places((3, 2), (2, 2)))
    [(0, 0), (1, 0)]
    """
    return itertools.product(*(range(-(-n // size)) for n, size in zip(shape, sizes, strict=True)))


def count_chunks(shape: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    """How many chunks an array has.

    >>> count_chunks((3, 2), (2, 2))
    2
    """
    return math.prod(-(-n // size) for n, size in zip(shape, sizes, strict=True))


def each(work: Callable[[Place], None], wanted: Iterable[Place], count: int) -> None:
    """Do something for each of many places, by ``count`` threads; the first failure ends it."""
    if count < 2:
        for place in wanted:
            work(place)
        return
    left, lock, failed = iter(wanted), threading.Lock(), threading.Event()

    def run() -> None:
        try:
            while not failed.is_set():
                with lock:
                    place = next(left, None)
                if place is None:
                    return
                work(place)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(run) for _ in range(count - 1)]
        run()
        for other in others:
            other.result()


def read_apart(storage: Storage, buffer: AnyArray, begin: int) -> None:
    """Fill an array with bytes of a file by this thread alone: others read other chunks."""
    view = memoryview(cast(Any, buffer.view(np.uint8)))
    for at in range(0, len(view), _AT_ONCE):
        storage.read_into(view[at : at + _AT_ONCE], begin + at)


def why_absurd(where: str, nbytes: int, chunk_nbytes: int, stored: int) -> FormatError | None:
    """The error for an array that claims more than the bytes stored for it can hold; they might fill all memory.

    Args:
        where: What errors call the array.
        nbytes: What it claims.
        chunk_nbytes: What one chunk claims, which is unpacked at a time.
        stored: Bytes of its chunks as they are stored.
    """
    if nbytes >= 1 << 63 or chunk_nbytes >= 1 << 63:
        return FormatError(
            "read", f"{where} claims more bytes than there are addresses", expected="< 2**63", got=nbytes
        )
    if chunk_nbytes > max(_MAX_CHUNK, stored * _MAX_RATIO):
        fact = f"{where} claims chunks of {chunk_nbytes} bytes, and {stored} bytes are stored for all of them"
        return FormatError("read", fact)
    if nbytes > _MAX_EMPTY + stored * _MAX_RATIO:
        return FormatError("read", f"{where} claims {nbytes} bytes, and {stored} bytes are stored for it")
    return None


def inflate(packed: bytes, nbytes: int, where: str) -> bytes:
    """Unpack what zlib or gzip packed, which has to give exactly so many bytes: no more is unpacked.

    Raises:
        FormatError: It is damaged, or gives more or fewer.
    """
    wbits = 31 if packed[:2] == b"\x1f\x8b" else 15
    inflater = isal_zlib.decompressobj(wbits)
    try:
        raw: bytes = inflater.decompress(packed, nbytes + 1)
    except _BROKEN as error:
        raise FormatError("read", f"{where} is damaged: {error}") from None
    if len(raw) != nbytes or not inflater.eof:
        got = f"{len(raw)}" if inflater.eof else "more" if len(raw) > nbytes else "it ends early"
        raise FormatError("read", f"{where} unpacks to another size", expected=f"{nbytes} bytes", got=got)
    return raw
