"""What a worker does with a unit: reads its files, writes its outputs whole, and says what became of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .._errors import FormatError
from ..files import format_to_write
from ..files.arrays import AnyArray, Order
from ..files.items import Item
from ..files.names import checked
from ..files.remote import shown
from ..files.sharded import dtype_of
from .ledger import FOLDER, Entry, Failure, announce
from .outputs import Scratch, Written, scratch_of
from .rows import REFUSALS, Reading, Rows, Schema, named, open_rows
from .units import SourceFile, Unit, changed_files

Broken = list[tuple[SourceFile, BaseException]]
"""Sources that cannot be converted, and why."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """Makes shards of the rows of a unit; it can be pickled, and knows nothing of other units.

    Attributes:
        target: The folder or URL of the outputs.
        format: Name of their format.
        shard_nbytes: How long the elements of a shard may be; a row is never cut.
        reading: How sources are read.
        schema: Dtype and shape of a row, by the name of the array.
        options: All that an output depends on beside its sources, as text.
        skips: Whether a file that cannot be read is left out; else it stops the unit.
        verify: Whether what was written is read back and compared.
    """

    target: str
    format: str
    shard_nbytes: int
    reading: Reading
    schema: Schema
    options: str
    skips: bool = False
    verify: bool = False

    def __call__(self, unit: Unit) -> Entry:
        """Write the shards of a unit.

        Raises:
            NdtorchError: A file cannot be read, and none is to be left out.
        """
        return done_whole(unit, self._written, self, self.schema, FOLDER)

    def _written(self, unit: Unit, files: Sequence[SourceFile], scratch: Scratch) -> tuple[list[Written], Broken]:
        found = open_rows(files, self.reading, self.schema, keep_going=self.skips)
        try:
            return self._shards(unit, found.rows, scratch), found.failures
        except REFUSALS as error:
            broken = _unreadable(found.rows)
            if not broken:  # it is the output that could not be written
                raise
            if not self.skips:
                raise named(broken[0][1], broken[0][0]) from error
            return [], found.failures + broken

    def _shards(self, unit: Unit, rows: Sequence[Rows], scratch: Scratch) -> list[Written]:
        format = format_to_write("", self.format)
        starts = list(itertools.accumulate((each.rows for each in rows), initial=0))
        sizes = [(dtype_of(dtype).itemsize, shape) for dtype, shape in self.schema.values()]
        row_nbytes = sum(itemsize * int(np.prod(shape, dtype=object)) for itemsize, shape in sizes)
        step = max(self.shard_nbytes // row_nbytes if row_nbytes else starts[-1], 1)
        written = []
        width = max(3, len(str(starts[-1] // step)))
        for part, start in enumerate(range(0, starts[-1], step)):
            stop = min(start + step, starts[-1])
            items = [_joined(name, rows, starts, start, stop) for name in self.schema]
            name = f"{unit.number:06d}-{part:0{width}d}{format.suffixes[0]}"
            written.append(scratch.write(name, format, items, rows=stop - start, verify=self.verify))
        return written


class Asked(Protocol):
    """What was asked for, as every work has it."""

    @property
    def target(self) -> str:
        """The folder or URL of the outputs."""

    @property
    def options(self) -> str:
        """All that an output depends on beside its sources, as text."""

    @property
    def skips(self) -> bool:
        """Whether a file that cannot be read is left out."""


Write = Callable[[Unit, Sequence[SourceFile], Scratch], tuple[list[Written], Broken]]
"""Writes the outputs of some files of a unit; those that turn out to be broken make it no good."""


def done_whole(unit: Unit, write: Write, asked: Asked, schema: Schema, ledger: str) -> Entry:
    """Write all outputs of a unit, see that no source has changed meanwhile, and publish them together.

    Where broken sources are left out, all is written again without them: the rest moves up.

    Args:
        unit: The unit.
        write: Writes its outputs.
        asked: What was asked for.
        schema: Dtype and shape of a row; empty where outputs are no rows of one table.
        ledger: The folder of the ledger, in which they are announced.
    """
    begun = time.monotonic()
    left, failures = list(unit.files), list[Failure]()
    with scratch_of(asked.target) as scratch:
        while True:
            written, broken = write(unit, left, scratch)
            known = {file for file, _ in broken}
            late = changed_files([file for file in left if file not in known])
            broken += [(file, _changed(file)) for file in late]
            if broken and not asked.skips:
                raise named(broken[0][1], broken[0][0])
            failures += [Failure(shown(file.path), str(error)) for file, error in broken]
            if not late and (not broken or written):
                break
            gone = {file for file, _ in broken}
            left = [file for file in left if file not in gone]
            scratch.clear()
        failures.sort()
        outputs = tuple(each.output for each in written)
        entry = Entry(unit.number, unit.key(asked.options), outputs, tuple(failures), schema)
        scratch.publish(written, lambda place: announce(place, ledger, entry))
    return replace(entry, seconds=time.monotonic() - begun)


def _changed(file: SourceFile) -> FormatError:
    fact = f"{shown(file.path)!r} has changed since it was listed"
    return FormatError("convert", fact, hint="run it again")


def _unreadable(rows: Sequence[Rows]) -> Broken:
    """Read everything again, and say which files are why something could not be written."""
    return [one for each in rows for one in each.broken()]


def _joined(name: str, rows: Sequence[Rows], starts: Sequence[int], start: int, stop: int) -> Item:
    """Rows of all files, one after the other, as one item."""
    parts = []
    for each, first in zip(rows, starts, strict=False):
        low, high = max(start - first, 0), min(stop - first, each.rows)
        if low < high:
            parts.append(each.part(name, low, high))
    if len(parts) == 1 and parts[0].order == "C":
        return parts[0]
    head = parts[0]

    def blocks(order: Order) -> Iterator[AnyArray]:
        return itertools.chain.from_iterable(part.blocks("C") for part in parts)

    shape = (stop - start, *head.shape[1:])
    return Item(name, head.dtype, shape, "C", blocks, parts=tuple(parts))


def check_output(schema: Schema, format: str) -> None:
    """Refuse rows that a format cannot hold, before anything is written.

    Raises:
        NdtorchError: Such as several arrays in one ``.npy`` file.
    """
    for name in schema:
        checked(name)
    items = [
        Item(name, dtype_of(dtype), (1, *shape), "C", lambda order: iter(())) for name, (dtype, shape) in schema.items()
    ]
    format_to_write("", format).writer.check(items)
