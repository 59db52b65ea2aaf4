"""One conversion: checked and planned before anything is written, then done unit by unit, under a lock."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from .._errors import FormatError, InvalidOptionError, NdtorchError
from .._pairs import find_sources
from ..files import FORMATS, AnyPath, format_to_write
from ..files.folders import real_path
from ..files.remote import is_http, is_url, local_path, shown
from ..files.unfinished import NOTE
from .copies import LEDGER as COPIES
from .copies import FileWork, check_outputs, nbytes_as_written
from .engines import Done, engine_for
from .index import write_index
from .ledger import FOLDER as SHARDS
from .ledger import Failure, Ledger
from .lock import Lock, locked
from .outputs import sweep_scratch
from .places import Place, place_at
from .plans import Plans
from .request import Request
from .rows import REFUSALS, Items, RowFile, Schema, is_of_target, named, opened, with_way_on
from .sizes import nbytes_of
from .summary import Outlook, Summary
from .units import SourceFile, Unit, source_files, units_of
from .work import ShardWork, check_output

_MOST_NAMES = 4  # of sources in an error
_SAMPLE = 8  # headers that are looked at before anything is written, and that sizes are estimated from
_OTHER_ROWS = "rows of each kind go into a folder of their own; on_error='skip' (--on-error skip) leaves others out"

Progress = Callable[[Done], None]
"""Told of each unit that is done, by the thread that asked for the conversion."""


class Sample(NamedTuple):
    """A source, as its headers say.

    Attributes:
        nbytes_in: Its bytes.
        nbytes_out: Those of its arrays as they are going to be written.
        rows: How many rows it has; 0 where each source has its output.
    """

    nbytes_in: int
    nbytes_out: int
    rows: int = 0


@dataclass(slots=True)
class Job:
    """A conversion that has been checked and planned; nothing is written yet.

    Attributes:
        request: What was asked for.
        sources: The sources as they were named, without what is secret in URLs.
        place: Where outputs go.
        units: What there is to do, for all ranks together.
        schema: Dtype and shape of a row, by the name of the array; empty where each source has its output.
        samples: A few sources, whose headers have been read.
    """

    request: Request
    sources: list[str]
    place: Place
    units: list[Unit]
    schema: Schema
    samples: list[Sample]
    _work: ShardWork | FileWork = field(init=False)

    def __post_init__(self) -> None:
        asked, path = self.request, self.place.path
        common = (asked.output, asked.is_skipping, asked.verify)
        if asked.shard_size is None:
            self._work = FileWork(path, asked.to, asked.reading, *common, keeps_stems=asked.name is None)
        else:
            self._work = ShardWork(path, asked.to, nbytes_of(asked.shard_size), asked.reading, self.schema, *common)

    @property
    def files(self) -> int:
        """How many sources there are."""
        return sum(len(unit.files) for unit in self.units)

    @property
    def rows_each(self) -> int:
        """How many rows each source has, as far as that has been looked at; 0 where they are not equally many."""
        counts = {sample.rows for sample in self.samples}
        return counts.pop() if len(counts) == 1 else 0

    def ledger(self) -> Ledger:
        """What of it has been done before."""
        is_of_shards = self.request.is_of_shards
        folder, schema = (SHARDS, self.schema) if is_of_shards else (COPIES, None)
        return Ledger(self.place, self.request.output, folder, schema)

    def is_mine(self, unit: Unit) -> bool:
        """Whether a unit is this rank's."""
        return unit.number % self.request.world_size == self.request.rank

    def outlook(self) -> Outlook:
        """Say what would be done; nothing is written."""
        _check_made_for(self)
        before = self.ledger().kept(self.units)
        nbytes_in, nbytes_out, rows = (sum(column) for column in zip(*self.samples, strict=True))
        growth = nbytes_out / max(nbytes_in, 1)
        nbytes = sum(unit.nbytes for unit in self.units)
        return Outlook(
            files=self.files,
            units=len(self.units),
            done=len(before),
            mine=sum(self.is_mine(unit) and unit.number not in before for unit in self.units),
            nbytes_in=nbytes,
            nbytes_out=round(nbytes * growth),
            rows=self.files * self.rows_each or round(nbytes * rows / max(nbytes_in, 1)),
            rows_each=self.rows_each,
            shards=sum(self._count_of(unit, growth) for unit in self.units),
            format=self.request.to,
            schema=self.schema,
            is_of_shards=self.request.is_of_shards,
        )

    def _count_of(self, unit: Unit, growth: float) -> int:
        """About how many outputs a unit has."""
        size = self.request.shard_size
        return len(unit.files) if size is None else max(math.ceil(unit.nbytes * growth / nbytes_of(size)), 1)

    def run(self, progress: Progress | None = None) -> Summary:
        """Do what is to be done.

        Raises:
            NdtorchError: A unit failed, and nothing is to be left out; another run is at work there; or a rank that has
                finished had listed other sources.
        """
        begun = time.monotonic()
        _check_made_for(self)
        with locked(self.place, self.request.rank, self.request.world_size) as lock:
            _check_made_for(self)
            sweep_scratch(self.place.path)
            _remember(self)
            return _Run(self, lock, progress).done(begun)


class _Run:
    """Units on their way through an engine into the ledger."""

    def __init__(self, job: Job, lock: Lock, progress: Progress | None) -> None:
        self._job = job
        self._lock = lock
        self._progress = progress
        self._ledger = job.ledger()
        asked, world_size = job.request, job.request.world_size
        is_alone = world_size == 1
        self._plans = None if is_alone else Plans(job.place, asked.rank, world_size, asked.output, job.units)
        self._shards = self._nbytes_in = self._nbytes_out = self._converted = self._sources = 0
        self._failed: set[int] = set()
        self._failures: list[Failure] = []

    def done(self, begun: float) -> Summary:
        job, request = self._job, self._job.request
        if self._plans is not None:
            self._plans.begin()
        all_mine = [unit for unit in job.units if job.is_mine(unit)]
        before = self._ledger.begin(all_mine)
        mine = [unit for unit in all_mine if unit.number not in before]
        if mine:
            engine = engine_for(
                request.engine,
                mine,
                workers=request.workers,
                address=request.address,
                source_format=request.source_format,
            )
            try:
                with closing(engine.run(job._work, mine)) as results:
                    for each in results:
                        self._enter(each)
            except BaseException:
                with suppress(Exception):
                    sweep_scratch(job.place.path)  # what workers that were killed have left there
                raise
        rows, is_whole = self._finish()
        return Summary(
            units=len(job.units),
            converted=self._converted,
            skipped=len(before),
            failed=len(self._failed),
            shards=self._shards,
            rows=rows,
            nbytes_in=self._nbytes_in,
            nbytes_out=self._nbytes_out,
            seconds=time.monotonic() - begun,
            failures=tuple(self._failures),
            is_of_shards=request.is_of_shards,
            sources=self._sources,
            is_whole=is_whole,
            schema=job.schema,
            files=job.files,
            rows_each=job.rows_each,
        )

    def _enter(self, done: Done) -> None:
        self._lock.check()
        if done.entry is None:
            assert done.error is not None
            is_broken = isinstance(done.error, REFUSALS) and not is_of_target(done.error)
            if not is_broken:
                raise done.error
            if not self._job.request.is_skipping:
                raise with_way_on(done.error)
            self._failed.add(done.unit.number)
            self._failures += (Failure(shown(file.path), str(done.error)) for file in done.unit.files)
        else:
            self._ledger.enter(done.unit, done.entry)
            self._converted += 1
            self._sources += len(done.unit.files) - len(done.entry.failures)
            self._shards += len(done.entry.outputs)
            self._nbytes_in += done.unit.nbytes
            self._nbytes_out += done.entry.nbytes
            self._failures += done.entry.failures
        if self._progress is not None:
            self._progress(done)

    def _finish(self) -> tuple[int, bool]:
        """Write the index when all is done that can be, and remove what is out of date.

        Returns:
            The number of rows, and whether no other rank has anything to do.
        """
        job = self._job
        finished = self._ledger.done(job.units)
        missing = {unit.number for unit in job.units} - finished
        # Ranks do not know what of the others has failed, and what is still to come.
        if missing - (self._failed if job.request.world_size == 1 else set()) or not finished:
            if self._plans is not None:
                self._plans.finish()
            return 0, missing <= self._failed
        self._lock.check()
        rows = 0
        if job.request.is_of_shards:
            entries = self._ledger.read(sorted(finished))
            rows = write_index(job.place, job.request.to, entries)
        if not missing:
            self._ledger.tidy(job.units)
        if self._plans is not None:
            self._plans.forget()
        return rows, True


# --- before anything is written


def planned(sources: AnyPath | Sequence[AnyPath], target: AnyPath, request: Request) -> Job:
    """Check what was asked for, list the sources, and read the headers of a few.

    Raises:
        NdtorchError: It cannot be done.
        OSError: The system refuses to list or to read.
    """
    request.check()
    given = _given(sources)
    if not given:
        raise InvalidOptionError("convert", "there are no sources", hint="name files, folders, patterns or URLs")
    path = local_path(os.fspath(target))
    _check_target(path, request)
    found = find_sources(given, any_suffix=request.source_format is not None, outside=path)
    _check_apart(path, [source.path for source in found])
    named = [source._replace(path=_absolute(source.path)) for source in found]
    files = source_files(named, skips=request.is_skipping)
    if not files:
        fact = f"{shown(found[0].path)!r} is a data set without rows, so there is nothing to convert"
        raise FormatError("convert", fact, hint="name sources that have rows")
    place = place_at(_absolute(path))
    if request.is_of_shards:
        schema, samples = _sampled(files, request)
        check_output(schema, request.to)
    else:
        schema, samples = {}, _sampled_files(files, request)
        check_outputs(files, format_to_write("", request.to), place, overwrite=request.overwrite)
    names = [shown(_absolute(local_path(os.fspath(each)))) for each in given]
    return Job(request, names, place, list(units_of(files)), schema, samples)


def _given(sources: AnyPath | Sequence[AnyPath]) -> list[AnyPath]:
    """The sources one by one; arrays are none, though some can be looped over."""
    if isinstance(sources, str | os.PathLike):
        return [sources]
    given: list[AnyPath] = []
    for each in [sources] if hasattr(sources, "dtype") else sources:
        if not isinstance(each, str | os.PathLike):
            fact = f"a source is no path but {type(each).__module__.partition('.')[0]}'s {type(each).__name__}"
            hint = "ndtorch.write(path, array) writes arrays, those of dask chunk by chunk"
            raise InvalidOptionError("convert", fact, hint=hint)
        given.append(each)
    return given


def _absolute(path: str) -> str:
    """What a path means here: a worker may run elsewhere, and the next run may be started elsewhere."""
    return path if is_url(path) else os.path.abspath(path)


def _check_target(path: str, request: Request) -> None:
    """Refuse a target that is no folder, or one of somebody else's."""
    if is_url(path):
        if is_http(path):
            raise FormatError("convert", f"cannot write {shown(path)!r}: what is behind http is read only")
        return
    if not path:
        raise FormatError("convert", "the target has no name", hint="name a folder")
    suffixes = [suffix for row in FORMATS for suffix in row.suffixes]
    if os.path.splitext(path.rstrip("/"))[1].lower() in suffixes:
        hint = "name a folder; without --shard-size and --engine, convert writes one file"
        raise FormatError("convert", f"{path!r} is the name of a file, and outputs go into a folder", hint=hint)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise FormatError("convert", f"cannot write into {path!r}: it is no folder", hint="name a folder")
    other = COPIES if request.is_of_shards else SHARDS
    if os.path.isdir(os.path.join(path, other)):
        kind = "an output for each source" if request.is_of_shards else "a data set in shards"
        raise FormatError("convert", f"{path!r} holds {kind}", hint="name another folder")
    is_ours = os.path.isdir(os.path.join(path, ".ndtorch"))
    if request.is_of_shards and os.path.isdir(path) and not is_ours and os.listdir(path):
        fact = f"{path!r} holds files that no conversion into shards has written"
        raise FormatError("convert", fact, hint="name a new or an empty folder")


def _check_apart(path: str, sources: Sequence[str]) -> None:
    """Refuse to write where sources lie."""
    if is_url(path):
        folder = path.rstrip("/") + "/"
        inside = next((each for each in sources if f"{each.rstrip('/')}/".startswith(folder)), None)
    else:
        folder, real = os.path.realpath(path) + os.sep, real_path()
        inside = next((each for each in sources if not is_url(each) and (real(each) + os.sep).startswith(folder)), None)
    if inside is not None:
        where = "is" if shown(inside).rstrip("/") == shown(path).rstrip("/") else "lies in"
        fact = f"the source {shown(inside)!r} {where} the target {shown(path)!r}"
        raise FormatError("convert", fact, hint="name another folder for the outputs")


def _sampled(files: Sequence[SourceFile], request: Request) -> tuple[Schema, list[Sample]]:
    """The rows of the first file that can be read, and how large some files are as they are going to be written.

    Some are those at even distances, and the first of each suffix: a file of other rows is mostly another kind of file.

    Raises:
        FormatError: One has other rows than the first.
    """
    schema: Schema | None = None
    samples: list[Sample] = []
    refusal: BaseException | None = None
    step = max(len(files) // _SAMPLE, 1)
    suffixes: set[str] = set()
    for number, file in enumerate(files):
        suffix = os.path.splitext(file.path)[1]
        if schema is not None and number % step and suffix in suffixes:
            continue
        suffixes.add(suffix)
        try:
            opened = RowFile(file, request.reading)
        except REFUSALS as error:
            refusal = refusal or error
            if not request.is_skipping and schema is None:
                raise with_way_on(named(error, file)) from None
            continue
        schema = schema or opened.schema
        if opened.schema == schema:
            samples.append(Sample(file.nbytes, sum(item.nbytes for item in opened.items.values()), opened.rows))
        elif not request.is_skipping:
            opened.check(schema, hint=_OTHER_ROWS)
    if schema is None:
        assert refusal is not None
        raise refusal
    return schema, samples


def _sampled_files(files: Sequence[SourceFile], request: Request) -> list[Sample]:
    """How large some files are as they are going to be written."""
    samples: list[Sample] = []
    format, make = format_to_write("", request.to), Items(request.reading.casts)
    for file in files[:: max(len(files) // _SAMPLE, 1)]:
        try:
            arrays = opened(file, request.reading)
            items = [make.of_file(name, array) for name, array in arrays.items()]
            samples.append(Sample(file.nbytes, nbytes_as_written(format, items)))
        except REFUSALS as error:
            if not request.is_skipping:
                raise with_way_on(named(error, file)) from None
    return samples or [Sample(1, 1)]


# --- what a target was made for


def _made_for(job: Job) -> dict[str, object]:
    return {"options": job.request.output, "sources": job.sources}


def _check_made_for(job: Job) -> None:
    """Refuse to make another data set of the one that is there; changed files of the same sources are no other."""
    if job.request.overwrite or os.path.basename(NOTE) not in job.place.sizes(os.path.dirname(NOTE)):
        return
    try:
        before = json.loads(job.place.read(NOTE))
    except (ValueError, RecursionError, OSError, NdtorchError):
        return  # nothing is known about it
    if not isinstance(before, dict) or before == _made_for(job):
        return
    options = job.request.changed(before.get("options"))
    which = f"options: {options}" if options else f"sources: {_changed_sources(before.get('sources'), job.sources)}"
    where = shown(job.place.path)
    hint = "overwrite=True (--overwrite) replaces it, the same command goes on with it, another folder leaves it alone"
    raise FormatError("convert", f"{where!r} holds a data set that was made with other {which}", hint=hint)


def _changed_sources(before: object, now: list[str]) -> str:
    """Say which sources there were and which there are; where these are many, only those of one side, and a few."""
    then = [str(each) for each in before] if isinstance(before, list) else []
    if sorted(then) == sorted(now):
        return "the same in another order"
    return f"its sources were {_few(then, now)} and are {_few(now, then)}"


def _few(names: list[str], others: list[str]) -> str:
    if len(names) <= _MOST_NAMES:
        return repr(names)
    known = set(others)
    odd = [name for name in names if name not in known]
    listed = ", ".join(map(repr, odd[:_MOST_NAMES]))
    rest = len(names) - len(odd[:_MOST_NAMES])
    return f"[{listed}, and {rest:,} more]" if listed else f"[{rest:,} of these]"


def _remember(job: Job) -> None:
    content = json.dumps(_made_for(job)).encode()
    if os.path.basename(NOTE) in job.place.sizes(os.path.dirname(NOTE)):
        try:
            if job.place.read(NOTE) == content:
                return
        except (OSError, NdtorchError) as error:
            del error
    job.place.put(NOTE, content)
