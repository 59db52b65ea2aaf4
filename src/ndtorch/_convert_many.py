"""Many conversions: planned array by array, then done on several threads, each output whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from ._errors import FormatError, NdtorchError
from ._pairs import Pair, Source, why_not_target
from ._write import Casts, Prepared, prepare, write_prepared
from .files import ArrayFile, Format, MissingChunks, open_file
from .files.arrays import AnyArray, FileArray, Order, Packed
from .files.items import Item
from .files.names import SEPARATOR, checked
from .files.remote import is_url, shown

REFUSALS = (NdtorchError, OSError, MemoryError)
"""What goes wrong with one file and leaves the others alone; anything else is a defect of ours."""

_MAX_OPEN = 64  # files that stay open from their plan until they are read

Advance = Callable[["Planned", int], None]
"""Told by any thread how many bytes more of a file have been written."""


_AS_IT_IS = Casts()


class _StoppedError(Exception):
    """Another conversion failed, or somebody pressed Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for, for all files alike.

    Attributes:
        casts: What happens to dtypes.
        source_format: Name of the format of the sources, where their suffixes do not tell.
        name: What an array is called that has no name in its file; else the stem of the file's name.
        overwrite: Whether outputs that exist are replaced.
        verify: Whether what was written is read back and compared before it takes its name.
        missing_chunks: Whether chunks of Zarr that are not there are an error, or hold the fill value.
    """

    casts: Casts = _AS_IT_IS
    source_format: str | None = None
    name: str | None = None
    overwrite: bool = False
    verify: bool = False
    missing_chunks: MissingChunks = "error"

    def open(self, path: str) -> ArrayFile:
        """Read the headers of a source."""
        return open_file(path, format=self.source_format, name=self.name, missing_chunks=self.missing_chunks)


class PlannedArray(NamedTuple):
    """What is to become of one array.

    Attributes:
        name: Its name in the output.
        source: What it is, such as ``float64[3,4]``.
        target: What it becomes; empty where it cannot.
        nbytes: Bytes of its elements in the output.
        how: What is done to it, or why nothing can be.
    """

    name: str
    source: str
    target: str
    nbytes: int
    how: str


@dataclass(slots=True, eq=False)
class Planned:
    """What is to become of one file.

    Attributes:
        pair: What is read, and what is written.
        arrays: What becomes of each array.
        errors: Why nothing is going to be written; one for each array that cannot be.
        prepared: What is going to be written, while its sources are open.
    """

    pair: Pair
    arrays: tuple[PlannedArray, ...] = ()
    errors: tuple[BaseException, ...] = ()
    prepared: list[Prepared] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all elements in the output."""
        return sum(array.nbytes for array in self.arrays)


class Outcome(NamedTuple):
    """What became of one file.

    Attributes:
        planned: What was to become of it.
        status: Whether it was ``converted``, has ``failed``, or was ``stopped`` because another one failed.
        seconds: How long that took.
        errors: What went wrong.
    """

    planned: Planned
    status: str
    seconds: float = 0.0
    errors: tuple[BaseException, ...] = ()


# --- planning


def plan_many(pairs: Sequence[Pair], request: Request, refused: Mapping[Pair, NdtorchError]) -> list[Planned]:
    """Read the headers of all sources and say what becomes of each array; nothing is written.

    Args:
        pairs: What is read, and what is written.
        request: What was asked for.
        refused: Outputs that cannot be written, and why.
    """
    request.casts.check("convert")
    planned = []
    for pair in pairs:
        one = _planned(pair, request)
        if pair in refused:
            one.errors = (refused[pair], *one.errors)
        if len(pairs) > _MAX_OPEN:
            _forget_frames(one.errors)
        if len(pairs) > _MAX_OPEN or one.errors:
            one.prepared = None
        planned.append(one)
    return planned


def _planned(pair: Pair, request: Request) -> Planned:
    one = Planned(pair)
    prepared: list[Prepared] = []
    try:
        for name, array, again in _leaves(pair, request):
            row, ready = _planned_array(pair.format, name, array, request.casts)
            one.arrays += (row,)
            if isinstance(ready, Prepared):
                prepared.append(_reopening(ready, again, request.casts) if len(pair.sources) > _MAX_OPEN else ready)
            else:
                one.errors += (ready,)
        if not one.errors:
            pair.format.writer.check([each.item for each in prepared])
            one.prepared = prepared
    except REFUSALS as error:
        one.errors += (error,)
    return one


Again = Callable[[], FileArray]


def _leaves(pair: Pair, request: Request) -> Iterator[tuple[str, FileArray, Again]]:
    """The arrays of all sources, by the name that each gets, and how to open it again."""
    if pair.is_joined and request.name is not None:
        hint = "without --name they have the names of their files"
        raise FormatError("convert", f"{pair} cannot all be named {request.name!r}", hint=hint)
    taken: dict[str, Source] = {}
    for source in pair.sources:
        file = request.open(source.path)
        for own in file:
            name = _joined_name(source, own, file.format) if pair.is_joined else own
            if name in taken:
                fact = f"{shown(taken[name].path)!r} and {shown(source.path)!r} would both have an array {name!r}"
                raise FormatError("convert", fact, hint="rename a file, or convert them one by one")
            taken[name] = source
            yield name, file[own], _opener(source, own, request)


def _joined_name(source: Source, own: str, format: Format) -> str:
    """The name of the file, and after it that of the array where the format keeps names; as in `read` of a folder."""
    stem = source.stem.replace(os.sep, SEPARATOR)
    return stem if format.is_of_one else f"{stem}{SEPARATOR}{own}"


def _opener(source: Source, own: str, request: Request) -> Again:
    return lambda: request.open(source.path)[own]


def _planned_array(
    format: Format, name: str, array: FileArray, casts: Casts
) -> tuple[PlannedArray, Prepared | NdtorchError]:
    try:
        if not format.is_of_one:
            checked(name)
        (ready,) = prepare({name: array}, casts)
    except NdtorchError as error:
        return PlannedArray(name, str(array), "", 0, "refused"), error
    item = ready.item
    dtype = str(item.dtype) if item.row is None else item.row.name
    target = f"{dtype}[{','.join(map(str, item.shape))}]"
    return PlannedArray(name, str(array), target, item.nbytes, _how(array, item, format)), ready


def _how(array: FileArray, item: Item, format: Format) -> str:
    """What is done to the elements on their way."""
    steps = []
    if isinstance(array.layout, Packed):
        steps.append(f"decoded ({array.compression})" if array.compression else "decoded")
    if array.order == "strided" or (item.order == "F" and not format.keeps_columns):
        steps.append("laid out row by row")
    if item.dtype.newbyteorder("=") != array.dtype.newbyteorder("="):
        steps.append("cast")
    return ", ".join(steps) or "copied as it lies"


def _reopening(ready: Prepared, again: Again, casts: Casts) -> Prepared:
    """The same without a file that stays open: there may be more files than a process may open."""
    item = ready.item
    name, expected = item.name, (item.dtype, item.shape)  # and not the item, which holds its file open

    def blocks(order: Order) -> Iterator[AnyArray]:
        (now,) = prepare({name: again()}, casts)
        if (now.item.dtype, now.item.shape) != expected:
            raise FormatError("convert", f"{name!r} has been replaced since its header was read")
        return now.item.blocks(order)

    # A plan knows its source, and that its file; nobody asks for it here.
    return Prepared(replace(item, blocks=blocks, stored=None), cast(Any, None))


# --- converting


def convert_planned(
    planned: Sequence[Planned],
    request: Request,
    *,
    jobs: int = 1,
    stop_on_error: bool = True,
    advance: Advance = lambda planned, nbytes: None,
) -> Generator[Outcome, None, None]:
    """Convert files on several threads, and give what became of each, in their order.

    Whoever stops asking, by Ctrl-C too, stops those at work, and their outputs stay as they were.

    Args:
        planned: What to convert. What has errors is not touched.
        request: What was asked for.
        jobs: How many files are converted at a time.
        stop_on_error: Whether the first failure stops all others; what was converted before stays.
        advance: Told how many bytes have been written.
    """
    stop = threading.Event()

    def convert(one: Planned) -> Outcome:
        outcome = _converted(one, request, stop, advance)
        if outcome.status == "failed" and stop_on_error:
            stop.set()
        if len(planned) > _MAX_OPEN:
            _forget_frames(outcome.errors)
        return outcome

    folders = _make_folders(planned)
    try:
        yield from (
            map(convert, planned) if jobs == 1 or len(planned) == 1 else _in_threads(convert, planned, jobs, stop)
        )
    finally:
        _remove_empty(folders)


def _in_threads(
    convert: Callable[[Planned], Outcome], planned: Sequence[Planned], jobs: int, stop: threading.Event
) -> Iterator[Outcome]:
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting: list[Future[Outcome]] = [pool.submit(convert, one) for one in planned]
        for future in waiting:
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _converted(one: Planned, request: Request, stop: threading.Event, advance: Advance) -> Outcome:
    if one.errors:
        return Outcome(one, "failed", errors=one.errors)
    begun = time.monotonic()
    try:
        if stop.is_set():
            raise _StoppedError
        _write(one, request, stop, advance)
    except _StoppedError:
        return Outcome(one, "stopped")
    except REFUSALS as error:
        return Outcome(one, "failed", time.monotonic() - begun, (error,))
    finally:
        one.prepared = None  # closes the sources
    return Outcome(one, "converted", time.monotonic() - begun)


def _write(one: Planned, request: Request, stop: threading.Event, advance: Advance) -> None:
    pair = one.pair
    prepared = one.prepared
    if prepared is None:
        again = _planned(pair, request)
        if again.errors:
            raise again.errors[0]
        prepared = again.prepared or []

    def watch(nbytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(one, nbytes)

    is_stream = pair.format.target == "stream"
    watched = [each._replace(item=_watched(each.item, _no_bytes(watch) if is_stream else watch)) for each in prepared]
    refused = why_not_target(pair, overwrite=request.overwrite)
    if refused is not None:
        raise refused
    write_prepared(pair.target, pair.format, watched, overwrite=request.overwrite, verify=request.verify, watch=watch)


def _no_bytes(watch: Callable[[int], None]) -> Callable[[int], None]:
    """Streams count what they write; what is read for them only has to hear that it should stop."""
    return lambda nbytes: watch(0)


def _watched(item: Item, watch: Callable[[int], None]) -> Item:
    left = item.nbytes

    def blocks(order: Order) -> Iterator[AnyArray]:
        nonlocal left
        for block in item.blocks(order):
            count = min(block.nbytes, left)  # what is verified is read again
            left -= count
            watch(count)
            yield block

    return replace(item, blocks=blocks)


def _make_folders(planned: Sequence[Planned]) -> list[str]:
    """Make the folders that outputs lie in, and give those that are new, inner ones last."""
    made: list[str] = []
    for folder in {os.path.dirname(one.pair.target) for one in planned if _needs_folder(one)}:
        missing = []
        while folder and not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            os.mkdir(each)
            made.append(each)
    return made


def _needs_folder(one: Planned) -> bool:
    pair = one.pair
    return (
        bool(pair.folder)
        and not one.errors
        and not is_url(pair.target)
        and why_not_target(pair, overwrite=True) is None
    )


def _remove_empty(folders: Sequence[str]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):
            os.rmdir(folder)


def _forget_frames(errors: Sequence[BaseException]) -> None:
    """Frames hold files open, and there may be more files than a process may open."""
    for error in errors:
        error.__traceback__ = error.__context__ = None
