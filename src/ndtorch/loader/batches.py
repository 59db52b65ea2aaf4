"""Batches: the rows of steps, gathered from every column that is memory by one call of the kernels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from .. import _native
from .._errors import NdtorchError
from .columns import Column
from .dealing import Steps
from .orders import Order, Permuted, Rows
from .placement import InMemory, Placement
from .sources import Sources

_READ_AHEAD_STEPS = 64
_RAMP = 4  # so that the first batch does not wait until as much has been asked for

Places = list[tuple[int, int]]


class Batches:
    """Makes the batches of one epoch for one rank.

    Args:
        sources: Where the rows are.
        order: Which row is at which place.
        dealing: Which places belong to a step.
        rank: Whose part of a step.
        placement: Makes the memory of results.
    """

    def __init__(self, sources: Sources, order: Order, dealing: Steps, rank: int, placement: Placement) -> None:
        self._order = order
        self._dealing = dealing
        self._rank = rank
        self._allocate = placement.allocate
        self._columns = list(enumerate(sources.columns))
        for column in sources.columns:
            column.begin()
        self._moves = [(column, column.moves) for column in sources.columns]
        self._table = _native.Table()
        self._blocks = placement.blocks if isinstance(placement, InMemory) else None
        # Rows of the columns of the table are taken by the kernels, which need no Python for it.
        self._joined = [at for at, column in self._columns if self._blocks and column.join(self._table)]
        self._others = [(at, column) for at, column in self._columns if at not in self._joined]
        # How many steps are announced ahead of those that are gathered, and up to which they have been.
        self._reach = self._reach_of([column for column in sources.columns if column.is_slow])
        self._announced = 0

    def _reach_of(self, slow: list[Column]) -> int:
        if not slow or not self._dealing.steps:
            return 0
        begin, end = self._dealing.places(0, self._rank)
        steps = min(column.read_ahead // max((end - begin) * column.nbytes, 1) for column in slow)
        return min(max(steps, 2), _READ_AHEAD_STEPS)

    def rows(self, step: int) -> Rows:
        """The rows of a step, in order."""
        return self._order.rows(*self._dealing.places(step, self._rank))

    def make(self, first: int, last: int) -> list[list[Any]]:
        """Gather the batches of the steps from ``first`` to before ``last``, each as one leaf for every column.

        What has to be read from a disk is announced before, and that of the steps that follow as well.
        """
        for column, moves in self._moves:
            column.check()
            if column.moves != moves:  # the table has the rows where they were
                fact = "torch has moved a tensor to other memory while a loop was running, and another one has begun"
                raise NdtorchError("Loader", fact, hint="tensor.share_memory_() before the loop begins")
        batches = self._made(first, last)
        for column, _ in self._moves:
            if not column.is_slow:  # of memory that has moved since, anything may have been gathered
                column.check()
        return batches

    def _made(self, first: int, last: int) -> list[list[Any]]:
        later = self._later(first, last) if self._reach else range(0)
        gathered = self._gathered(first, last, later) if self._joined else None
        if gathered is not None and not self._others:
            return gathered
        batches: list[list[Any]] = [[None] * len(self._columns) for _ in range(first, last)]
        for batch, leaves in zip(batches, gathered or (), strict=False):
            for at, leaf in zip(self._joined, leaves, strict=True):
                batch[at] = leaf
        others = self._columns if gathered is None else self._others
        self._announce(later, others)
        self._take(batches, first, others)
        return batches

    def _later(self, first: int, last: int) -> range:
        """The steps that are to be announced after these, more from call to call until they are as many as shall be.

        Two threads may announce one twice, which does no harm.
        """
        begin = max(self._announced, last)
        end = min(last + self._reach, begin + _RAMP * (last - first), self._dealing.steps)
        self._announced = max(begin, end)
        return range(begin, end)

    def _gathered(self, first: int, last: int, later: range) -> list[list[Any]] | None:
        """The leaves of the table's columns; None where torch wants to see every tensor that is made."""
        places = self._places(range(first, last))
        if self._blocks is None or any(begin == end for begin, end in places):
            return None
        order, places = self._numbers(places)
        ahead = [(begin, end) for begin, end in self._places(later) if begin < end]
        if not ahead:
            return self._table.gather(self._blocks, order, places)
        return self._table.gather(self._blocks, order, places, *self._numbers(ahead))

    def _places(self, steps: range) -> Places:
        return [self._dealing.places(step, self._rank) for step in steps]

    def _numbers(self, places: Places) -> tuple[_native.Permutation | Rows, Places]:
        """What the kernels need to know the rows: the order itself where it is theirs, else the numbers."""
        if isinstance(self._order, Permuted):
            return self._order.permutation, places
        rows = [self._order.rows(*each) for each in places]
        ends = np.cumsum([0, *map(len, rows)]).tolist()
        return np.concatenate(rows), list(pairwise(ends))

    def _announce(self, steps: range, columns: list[tuple[int, Column]]) -> None:
        slow = [column for _, column in columns if column.is_slow]
        for step in steps if slow else ():
            rows = self.rows(step)
            for column in slow:
                column.announce(rows)

    def _take(self, batches: list[list[Any]], first: int, columns: list[tuple[int, Column]]) -> None:
        jobs: list[_native.GatherJob] = []
        for step, batch in enumerate(batches, first):
            rows = self.rows(step)
            for at, column in columns:
                batch[at], job = column.take(rows, self._allocate)
                if job is not None:
                    jobs.append(job)
        _native.gather(tuple(jobs))
