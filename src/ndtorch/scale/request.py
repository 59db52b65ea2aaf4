"""What is asked of a conversion of many files, checked before anything is looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._casting import CASTINGS, Casting
from .._errors import InvalidOptionError
from .._write import Casts
from ..files import MISSING_CHUNKS, MissingChunks, format_to_write
from ..files.sharded import FORMATS
from ..files.unfinished import OPTIONS
from .engines import check_engine
from .rows import Reading
from .sizes import nbytes_of

ROWS = ("axis", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for; checked by `Request.check`."""

    engine: str = "local"
    to: str = "safetensors"
    shard_size: int | str | None = "256MB"
    name: str | None = None
    source_format: str | None = None
    dtype: object = None
    float_dtype: object = None
    casting: Casting = "same_kind"
    rows: Literal["axis", "files"] = "axis"
    missing_chunks: MissingChunks = "error"
    overwrite: bool = False
    on_error: str = "stop"
    verify: bool = False
    workers: int | None = None
    address: str | None = None
    rank: int = 0
    world_size: int = 1

    def check(self) -> None:
        """Refuse what has no meaning, or excludes each other.

        Raises:
            InvalidOptionError: An option has no such value.
            MissingDependencyError: The engine's library is not installed.
            UnsupportedDtypeError: There is no cast to a dtype.
        """
        check_engine(self.engine, workers=self.workers, address=self.address)
        if self.shard_size is None:
            format_to_write("", self.to)
        elif self.to not in FORMATS:
            raise _unknown("to", self.to, FORMATS)
        if self.on_error not in ("stop", "skip"):
            raise _unknown("on_error", self.on_error, ("stop", "skip"))
        if self.casting not in CASTINGS:
            raise _unknown("casting", self.casting, CASTINGS)
        if self.rows not in ROWS:
            raise _unknown("rows", self.rows, ROWS)
        if self.missing_chunks not in MISSING_CHUNKS:
            raise _unknown("missing_chunks", self.missing_chunks, MISSING_CHUNKS)
        if self.shard_size is None and self.rows != "axis":
            fact = f"rows={self.rows!r} is about the rows of shards, and there are none"
            raise InvalidOptionError("convert", fact, hint="shard_size='256MB' (--shard-size 256MB) makes shards")
        if self.dtype is not None and self.float_dtype is not None:
            hint = "float_dtype casts floating arrays only, dtype every array of numbers: use one"
            fact = f"dtype={self.dtype!r} and float_dtype={self.float_dtype!r} were both given"
            raise InvalidOptionError("convert", fact, hint=hint)
        self.reading.casts.check("convert")
        if self.shard_size is not None:
            nbytes_of(self.shard_size)
        _check_rank(self.rank, self.world_size)

    @property
    def is_skipping(self) -> bool:
        """Whether what fails is left out."""
        return self.on_error == "skip"

    @property
    def is_of_shards(self) -> bool:
        """Whether rows are regrouped; else each source has its output."""
        return self.shard_size is not None

    @property
    def reading(self) -> Reading:
        """How sources are read."""
        casts = Casts(dtype=self.dtype, float_dtype=self.float_dtype, casting=self.casting)
        return Reading(casts, self.source_format, self.name or "data", self.rows == "files", self.missing_chunks)

    @property
    def output(self) -> str:
        """All that an output depends on beside its sources, as text."""
        size = None if self.shard_size is None else nbytes_of(self.shard_size)
        facts = [1, self.to, size, self.name, self.source_format]
        facts += [_dtype_text(self.dtype), _dtype_text(self.float_dtype), self.casting, self.rows]
        return json.dumps([*facts, self.missing_chunks] if self.missing_chunks != "error" else facts)

    def changed(self, before: object) -> str:
        """Say in which options another `output` differs; empty where it does not."""
        if before == self.output:
            return ""
        try:
            then, now = (json.loads(text) for text in (str(before), self.output))
            then, now = ([*facts, "error"][: len(OPTIONS)] for facts in (then, now))
            pairs = zip(OPTIONS, then, now, strict=True)
            return ", ".join(f"{name} was {old} and is {new}" for name, old, new in pairs if old != new)
        except (TypeError, ValueError):  # of another version
            return "those of another version"


def _dtype_text(dtype: object) -> str:
    """One name of a dtype for all that it may be called: ``"f4"``, ``numpy.float32`` and ``torch.float32`` are one."""
    if dtype is None or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload,no-any-return]
    except TypeError:
        return str(dtype)


def _unknown(option: str, value: object, known: Sequence[str]) -> InvalidOptionError:
    return InvalidOptionError(
        "convert", f"{option}={value!r} is unknown", expected=f"one of {', '.join(known)}", got=repr(value)
    )


def check_both(rank: object, world_size: object) -> None:
    """Refuse a rank without the number of ranks, or the other way round: every job would do the same part.

    Raises:
        InvalidOptionError: One of them is ``None``.
    """
    if (rank is None) == (world_size is None):
        return
    one, other, value = ("rank", "world_size", rank) if world_size is None else ("world_size", "rank", world_size)
    if isinstance(value, int) and value >= 0:  # `Request.check` has words for what is none
        raise InvalidOptionError("convert", f"{one}={value} was given without {other}=", hint="give both or neither")


def _check_rank(rank: object, world_size: object) -> None:
    for option, value in (("rank", rank), ("world_size", world_size)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidOptionError("convert", f"{option}={value!r} is no number", expected="an int", got=repr(value))
    assert isinstance(rank, int)
    assert isinstance(world_size, int)
    if world_size < 1 or not 0 <= rank < world_size:
        fact = f"rank={rank} is none of world_size={world_size}"
        hint = f"ranks count from 0 to {world_size - 1}" if world_size > 0 else "there is at least one rank"
        raise InvalidOptionError("convert", fact, hint=hint)
