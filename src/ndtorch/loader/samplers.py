"""Orders that somebody else makes: lists of row numbers, and samplers as torch has them."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._errors import InvalidOptionError, UnsupportedTypeError
from .._spec import describe
from .checks import SUBJECT
from .generators import check, generators_in, restore, samplers_in, save, seeded
from .orders import Memory, Order, Ordering, Rows, key_of

_CHUNK = 1 << 16  # numbers that are drawn before they are looked at
_MOST = 1 << 24  # numbers that a sampler may give that does not say how many it has


@dataclass(frozen=True, slots=True, eq=False)
class Listed(Ordering, Order):
    """Rows in the order of a list of numbers; every epoch is the same."""

    length: int
    numbers: Rows
    row_count: int

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> Listed:
        """Give the order of one epoch, which is this."""
        return self

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers at those places."""
        return self.numbers[start:stop]

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        fingerprint = zlib.crc32(self.numbers.data)
        return {"order": "list", "rows": self.row_count, "samples": self.length, "numbers": fingerprint}


class Sampled(Ordering):
    """Rows, or batches of rows, as a sampler gives them.

    It is iterated once for every epoch, with the global generators seeded by the seed and the epoch. Generators that it
    holds itself are its own; their state at the start of an epoch belongs to what the epoch is made again from.

    Args:
        sampler: The sampler.
        row_count: How many rows there are.
        is_batched: Whether it gives lists of numbers.
    """

    def __init__(self, sampler: Iterable[Any], row_count: int, *, is_batched: bool) -> None:
        self._sampler = sampler
        self._row_count = row_count
        self._is_batched = is_batched
        self._option = "batch_sampler" if is_batched else "sampler"
        self._name = f"{self._option}={type(sampler).__name__}"

    @property
    def length(self) -> int:  # type: ignore[override]  # a sampler may change its own
        """How many samples, or batches, the sampler says that it has.

        Raises:
            UnsupportedTypeError: It does not say, which is a ``TypeError``, as ``len`` has it.
        """
        length = self._known_length()
        if length is None:
            hint = f"give {type(self._sampler).__name__} a __len__"
            raise UnsupportedTypeError(SUBJECT, f"{self._name} does not say how many it gives", hint=hint)
        return length

    def of_epoch(self, seed: int, epoch: int, memory: Memory | None = None) -> SampledOrder:
        """Draw the order of one epoch.

        Raises:
            InvalidOptionError: A number names no row, or the sampler gives others than it gave when ``memory`` was.
        """
        if memory is not None:
            for generator, text in zip(generators_in(self._sampler), memory["generators"], strict=True):
                restore(generator, text)
        before = self.memory_now()
        for each in samplers_in(self._sampler):
            if callable(set_epoch := getattr(each, "set_epoch", None)):
                set_epoch(epoch)
        with seeded(key_of(seed, epoch)):
            numbers, bounds = self._drawn_batches() if self._is_batched else (self._drawn(), None)
        drawn = None if self._is_shared else zlib.crc32(numbers.data)
        if memory is not None and memory["drawn"] not in (None, drawn):
            fact = f"{self._name} gives other numbers than it gave when the state was saved"
            hint = "a sampler with randomness of its own keeps it in a generator that is an attribute of its"
            raise InvalidOptionError(SUBJECT, fact, hint=hint)
        return SampledOrder(numbers, bounds, {**before, "drawn": drawn})

    def facts(self) -> dict[str, int | str]:
        """Say what has to be the same where an epoch is to go on."""
        order = "batches" if self._is_batched else "sampler"
        return {"order": order, "rows": self._row_count, "sampler": type(self._sampler).__name__}

    def memory_now(self) -> Memory:
        """Say what an epoch that began now would depend on, besides the seed and its number."""
        return {"generators": [save(each) for each in generators_in(self._sampler)], "drawn": None}

    def check(self, memory: Any) -> Memory:
        """Refuse what is no memory of such a sampler."""
        generators = generators_in(self._sampler)
        states = memory.get("generators") if isinstance(memory, Mapping) else None
        if not isinstance(states, list) or len(states) != len(generators) or "drawn" not in memory:
            fact = f"the state is not of {self._name} with {len(generators)} generators of its own"
            raise InvalidOptionError(SUBJECT, fact, hint="the sampler is made as it was when the state was saved")
        for generator, text in zip(generators, states, strict=True):
            try:
                check(generator, text)
            except ValueError as error:
                raise InvalidOptionError(SUBJECT, f"the state of {self._name} has {error}") from None
        return dict(memory)

    @property
    def _is_shared(self) -> bool:
        """Whether other processes have other parts of the same order, but may be given the state of this one."""
        return any(hasattr(each, "num_replicas") for each in samplers_in(self._sampler))

    def _known_length(self) -> int | None:
        try:
            return len(self._sampler)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def _drawn(self) -> Rows:
        return drawn_from(iter(self._sampler), self._row_count, self._known_length(), self._name)

    def _drawn_batches(self) -> tuple[Rows, Rows]:
        most = max(_MOST, 2 * self._row_count)
        batches: list[Rows] = []
        count = 0
        for batch in self._sampler:
            if not isinstance(batch, Iterable):
                fact = f"{self._name} gives {_named(batch)}, not lists of numbers"
                raise InvalidOptionError(SUBJECT, fact, hint="sampler= takes one number at a time")
            batches.append(listed_in(batch, self._row_count, self._name))
            count += len(batches[-1])
            if self._known_length() is None and max(count, len(batches)) > most:
                raise _endless(self._name, most)
        bounds = np.cumsum([0, *map(len, batches)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.int64), *batches]), bounds


class SampledOrder(Order):
    """What a sampler gave for one epoch.

    Attributes:
        bounds: Where each batch begins and ends, where it gave batches.
        memory: What made it give these.
    """

    def __init__(self, numbers: Rows, bounds: Rows | None, memory: Memory) -> None:
        self.length = len(numbers)
        self.bounds = bounds
        self.memory = memory
        self._numbers = numbers

    def rows(self, start: int, stop: int) -> Rows:
        """Give the numbers at those places."""
        return self._numbers[start:stop]


def listed(numbers: Any, row_count: int, option: str) -> Listed:
    """Make an order of a list or an array of row numbers, or of an iterator that gives them once."""
    name = f"{option}={type(numbers).__name__}"
    rows = (
        drawn_from(numbers, row_count, None, name)
        if isinstance(numbers, Iterator)
        else listed_in(numbers, row_count, name)
    )
    return Listed(len(rows), rows, row_count)


def is_list(sampler: Any) -> bool:
    """Whether these are the numbers themselves, the same in every process, and not what draws them."""
    return isinstance(sampler, list | tuple | range | np.ndarray | torch.Tensor | Iterator)


def drawn_from(numbers: Iterator[Any], row_count: int, length: int | None, name: str) -> Rows:
    """Read the row numbers that an iterator gives, to its end."""
    most = max(_MOST, 2 * row_count, length or 0)
    chunks: list[Rows] = [np.empty(0, np.int64)]
    count = 0
    while chunk := list(islice(numbers, _CHUNK)):
        chunks.append(_rows_of(_indices(chunk, name), row_count, name))
        count += len(chunk)
        if count > most:
            raise _endless(name, most)
    return np.concatenate(chunks)


def listed_in(numbers: Any, row_count: int, name: str) -> Rows:
    """Read row numbers out of a list or an array."""
    if np.ma.is_masked(numbers):
        raise InvalidOptionError(SUBJECT, f"{name} has masked values", hint="array.compressed() leaves them out")
    if isinstance(numbers, torch.Tensor):
        try:
            numbers = numbers.detach().cpu().numpy()
        except (NotImplementedError, RuntimeError, TypeError):  # meta and sparse tensors
            fact = f"{name} is {describe(numbers)}, whose numbers cannot be read"
            raise InvalidOptionError(SUBJECT, fact, hint="numbers of rows are one row of integers") from None
    elif not isinstance(numbers, np.ndarray):
        return _rows_of(_indices(numbers, name), row_count, name)
    if numbers.dtype == np.bool_:
        raise _mask(name)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise InvalidOptionError(
            SUBJECT, f"{name} is {describe(numbers)}", hint="numbers of rows are one row of integers"
        )
    return _rows_of(numbers, row_count, name)


def _indices(numbers: Iterable[Any], name: str) -> npt.NDArray[Any]:
    """Python's whole numbers, or NumPy's, as an array of these."""
    if not isinstance(numbers, list | tuple | range):
        numbers = list(numbers)
    if len(numbers) and all(isinstance(each, bool | np.bool_) for each in numbers):
        raise _mask(name)
    try:
        return np.fromiter(map(operator.index, numbers), np.int64, len(numbers))
    except (OverflowError, TypeError):
        odd = next(each for each in numbers if not _is_row_number(each))
        hint = "batch_sampler= takes lists of numbers" if isinstance(odd, Iterable) and "batch" not in name else None
        fact = f"{name} gives {_named(odd)}, which is no number of a row"
        raise InvalidOptionError(SUBJECT, fact, hint=hint) from None


def _is_row_number(value: Any) -> bool:
    try:
        return abs(operator.index(value)) < 1 << 63
    except TypeError:
        return False


def _rows_of(numbers: npt.NDArray[Any], row_count: int, name: str) -> Rows:
    """Numbers of rows, of which negative ones count from the end, as in NumPy."""
    if not numbers.size:
        return np.empty(0, np.int64)
    if numbers.max() >= row_count or numbers.min() < -row_count:
        odd = numbers[(numbers >= row_count) | (numbers < -row_count)][0]
        raise InvalidOptionError(SUBJECT, f"{name} gives {odd}, and the data has {row_count} rows")
    rows = numbers.astype(np.int64)
    rows[rows < 0] += row_count
    return rows


def _mask(name: str) -> InvalidOptionError:
    return InvalidOptionError(
        SUBJECT, f"{name} holds a mask", hint="np.flatnonzero(mask) gives the numbers of its rows"
    )


def _endless(name: str, most: int) -> InvalidOptionError:
    fact = f"{name} has given {most} numbers and not come to an end"
    return InvalidOptionError(SUBJECT, fact, hint="itertools.islice ends an epoch, a __len__ says that it is so long")


def _named(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 and "\n" not in text else f"a {type(value).__name__}"
