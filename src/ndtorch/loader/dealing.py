"""How an epoch is dealt into steps, and a step to ranks: arithmetic alone.

A step takes the next ``batch_size * world_size`` places of the order, and rank r the r-th part of them. So all ranks
take the same number of steps, no place is dealt twice or left out, and where the epoch stands is one number: how many
places have been dealt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from .._errors import InvalidOptionError
from .orders import Rows


class Steps(Protocol):
    """The steps of what is left of an epoch."""

    @property
    def steps(self) -> int:
        """How many steps every rank takes."""
        ...

    def position(self, step: int) -> int:
        """Where the epoch stands before a step."""
        ...

    def places(self, step: int, rank: int) -> tuple[int, int]:
        """The places of a rank in a step."""
        ...


@dataclass(frozen=True, slots=True)
class Dealing:
    """Places from ``start`` to ``total`` as steps.

    The last step is a smaller one, dealt as evenly as can be. Where it has not one place for every rank, the last two
    steps share what both have. ``drop_last`` leaves it out.
    """

    total: int
    batch_size: int
    world_size: int = 1
    drop_last: bool = False
    start: int = 0
    _width: int = field(init=False, repr=False, compare=False)  # of a full step
    _full: int = field(init=False, repr=False, compare=False)
    _rest: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what would leave a rank without a sample while others have one: they would wait for it for ever."""
        width = self.batch_size * self.world_size
        full, rest = divmod(self.total - self.start, width)
        for name, value in (("_width", width), ("_full", full), ("_rest", rest)):
            object.__setattr__(self, name, value)
        if self.drop_last or not self._rest or self._rest >= self.world_size:
            return
        if self._full == 0 or self._width + self._rest < 2 * self.world_size:
            left, ranks = self.total - self.start, self.world_size
            fact = f"{left} samples cannot be dealt to {ranks} ranks in equal numbers of steps of {self.batch_size}"
            raise InvalidOptionError("Loader", fact, hint="drop_last=True, or a larger batch_size")

    @property
    def steps(self) -> int:
        """How many steps every rank takes."""
        return self._full if self.drop_last or not self._rest else self._full + 1

    def position(self, step: int) -> int:
        """How many places have been dealt before a step."""
        at = self.start + step * self._width
        if self.drop_last or step < self._full:
            return at
        if step > self._full:
            return self.total
        shares = 0 < self._rest < self.world_size  # the last two steps have half each
        return self.total - (self._width + self._rest) // 2 if shares else at

    def places(self, step: int, rank: int) -> tuple[int, int]:
        """The places of a rank in a step."""
        begin, end = self.position(step), self.position(step + 1)
        if self.world_size == 1:
            return begin, end
        share = end - begin
        return begin + share * rank // self.world_size, begin + share * (rank + 1) // self.world_size


class Batched:
    """Steps of an order that comes in batches, for one process. Where it stands is how many of them have been dealt.

    Args:
        bounds: Where each batch begins and ends.
        start: How many have been dealt before.
    """

    def __init__(self, bounds: Rows, start: int = 0) -> None:
        self._bounds = bounds
        self._start = start

    @property
    def steps(self) -> int:
        """How many batches are left."""
        return len(self._bounds) - 1 - self._start

    def position(self, step: int) -> int:
        """How many batches have been dealt before a step."""
        return self._start + step

    def places(self, step: int, rank: int) -> tuple[int, int]:
        """The places of a batch."""
        at = self._start + step
        return int(self._bounds[at]), int(self._bounds[at + 1])
