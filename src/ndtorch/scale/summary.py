"""What became of a conversion, and what would become of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .ledger import Failure
from .rows import Schema, told

_MANY = 32  # files, of which each may have been meant as one row

Status = Literal["converted", "partial", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of a conversion.

    Attributes:
        units: How many units the whole conversion has, those of other ranks among them.
        converted: Units that were done now.
        skipped: Units of this rank that had been done before.
        failed: Units of which nothing was written.
        shards: Outputs that were written now: shards, or one for each source.
        rows: Rows of the data set; 0 where there are no shards, and while no index has been written since units
            of other ranks are missing.
        nbytes_in: Bytes of the sources that were read now.
        nbytes_out: Bytes that were written now.
        seconds: How long it took.
        failures: Sources that were left out, by their absolute paths, and why; of ranks those of this one.
        is_of_shards: Whether rows were regrouped; else each source has its output.
        sources: Sources that were converted now.
        is_whole: Whether no other rank has a unit to do.
        schema: Dtype and shape of a row, by the name of the array; empty where there are no shards.
        files: How many sources the whole conversion has.
        rows_each: How many rows each of them has, as far as was looked at; 0 where they are not equally many.
    """

    units: int
    converted: int
    skipped: int
    failed: int
    shards: int
    rows: int
    nbytes_in: int
    nbytes_out: int
    seconds: float
    failures: tuple[Failure, ...] = ()
    is_of_shards: bool = True
    sources: int = 0
    is_whole: bool = True
    schema: Schema = field(default_factory=dict)
    files: int = 0
    rows_each: int = 0

    @property
    def status(self) -> Status:
        """Whether all of this rank's sources were ``converted``, some left out (``partial``), or all (``failed``)."""
        if not self.failures:
            return "converted"
        return "partial" if self.sources or self.skipped else "failed"

    @property
    def rate(self) -> float:
        """Bytes of the sources for each second."""
        return self.nbytes_in / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.converted} of {_counted(self.units, 'unit')} converted"
            + (f", {self.skipped} had been done before" if self.skipped else "")
            + (f", {self.failed} failed" if self.failed else ""),
        ]
        if self.converted:
            lines.append(
                f"{sized(self.nbytes_in)} in, {sized(self.nbytes_out)} out in {_outputs(self)}, "
                f"{self.seconds:.1f} s, {sized(self.rate)}/s"
            )
        if self.rows:
            each = f", each with {told(self.schema)}" if self.schema else ""
            lines += [f"{_counted(self.rows, 'row')} in the data set{each}", *_row_advice(self)]
        if not self.is_whole:
            lines.append(("no index yet: " if self.is_of_shards else "") + "other ranks have units to do")
        if self.failures:
            lines.append(f"{_counted(len(self.failures), 'source')} left out")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What would become of a conversion; sizes are estimated from a few headers.

    Attributes:
        files: How many sources there are.
        units: How many units these are.
        done: Units that are done.
        mine: Units that this rank has to do.
        nbytes_in: Bytes of the sources.
        nbytes_out: About how many bytes would be written.
        shards: About how many outputs.
        format: Name of their format.
        schema: Dtype and shape of a row, by the name of the array; empty where each source has its output.
        is_of_shards: Whether it has not.
        rows: About how many rows.
        rows_each: How many each source has, as far as was looked at; 0 where they are not equally many.
    """

    files: int
    units: int
    done: int
    mine: int
    nbytes_in: int
    nbytes_out: int
    shards: int
    format: str
    schema: Schema
    is_of_shards: bool = True
    rows: int = 0
    rows_each: int = 0

    def __str__(self) -> str:
        rows = (f"  {name}: {dtype}[{','.join(map(str, shape))}]" for name, (dtype, shape) in self.schema.items())
        lines = [
            f"{_counted(self.files, 'file')}, {sized(self.nbytes_in)}, in {_counted(self.units, 'unit')}",
            f"{self.mine} of them to do here" + (f", {self.done} are done" if self.done else ""),
            f"about {_outputs(self)} of {self.format}, {sized(self.nbytes_out)}"
            + (f", about {_counted(self.rows, 'row')}, each with" if self.is_of_shards else ""),
            *rows,
            *_row_advice(self),
        ]
        return "\n".join(lines)


def sized(nbytes: float) -> str:
    """A size for people.

    >>> sized(999), sized(1_500_000), sized(256_000_000_000)
    ('999 bytes', '1.5 MB', '256.0 GB')
    """
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _row_advice(about: Summary | Outlook) -> list[str]:
    """What makes each file a row, where many files of equally many rows may have been meant as that."""
    if about.files <= _MANY or about.rows_each <= 1:
        return []
    return [f"each file has {about.rows_each:,} rows; rows='files' (--rows files) makes each file one row"]


def _outputs(about: Summary | Outlook) -> str:
    return _counted(about.shards, "shard" if about.is_of_shards else "file")
