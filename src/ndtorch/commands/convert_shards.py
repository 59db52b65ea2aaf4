"""`ndtorch convert` into shards: a shell over what `convert_many` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import typer

from .._errors import InvalidOptionError
from .printing import error_lines, in_options, one_line, printable
from .progress import UnitBar

if TYPE_CHECKING:
    from .._write import Casts
    from ..files import MissingChunks
    from ..scale.engines import Done
    from ..scale.job import Job
    from ..scale.ledger import Failure
    from ..scale.summary import Outlook, Summary

REFUSED = 1
SOME_FAILED = 3
_CODES = {"converted": 0, "partial": SOME_FAILED, "failed": REFUSED}
_MAX_ERRORS = 20  # lines on stderr about what was left out


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """The options that only a conversion into shards has, as they were given."""

    shard_size: str | None
    engine: str | None
    workers: int | None
    address: str | None
    rank: int | None
    world: int | None
    rows: str | None = None

    @property
    def are_wanted(self) -> bool:
        """Whether they ask for shards."""
        return not (self.shard_size is None and self.engine is None and self.rank is None and self.world is None)

    def check(self, *, jobs: int | None) -> None:
        """Refuse those that go with others only.

        Raises:
            InvalidOptionError: One does.
        """
        needs = "--shard-size, --engine, or --rank and --world"
        for option, value in (("--workers", self.workers), ("--address", self.address)):
            if value is not None and not self.are_wanted:
                raise InvalidOptionError("convert", f"{option} {value} goes with {needs}")
        if self.rows is not None and self.shard_size is None:
            raise InvalidOptionError("convert", f"--rows {self.rows} goes with --shard-size")
        if self.are_wanted and jobs is not None:
            fact = f"--jobs {jobs} is for files one by one"
            raise InvalidOptionError("convert", fact, hint=f"--workers {jobs} goes with shards")
        if (self.rank is None) != (self.world is None):
            given = f"--rank {self.rank}" if self.world is None else f"--world {self.world}"
            raise InvalidOptionError("convert", f"{given} was given alone; --rank and --world go together")


def convert_into_shards(
    sources: Sequence[str],
    target: str,
    options: ShardOptions,
    *,
    casts: Casts,
    source_format: str | None,
    target_format: str | None,
    name: str | None,
    missing_chunks: MissingChunks,
    verify: bool,
    overwrite: bool,
    on_error: str,
    dry_run: bool,
    output: ShardOutput,
) -> int:
    """Convert, say what became of it, and give the exit code."""
    from ..scale.job import planned
    from ..scale.request import Request

    defaults = Request()
    request = Request(
        engine=options.engine or defaults.engine,
        to=defaults.to if target_format is None else _checked_format(target_format, options),
        shard_size=options.shard_size,
        name=name,
        missing_chunks=missing_chunks,
        rows=cast('Literal["axis", "files"]', options.rows or defaults.rows),
        source_format=source_format,
        dtype=casts.dtype,
        float_dtype=casts.float_dtype,
        casting=casts.casting,
        overwrite=overwrite,
        on_error=on_error,
        verify=verify,
        workers=options.workers,
        address=options.address,
        rank=options.rank or 0,
        world_size=options.world or 1,
    )
    job = planned(list(sources), target, request)
    if dry_run:
        output.outlook(job.outlook())
        return 0
    summary = _run(job, output)
    output.summary(summary)
    return _CODES[summary.status]


def _checked_format(format: str, options: ShardOptions) -> str:
    from ..files import format_to_write
    from ..files.sharded import FORMATS

    name = format_to_write("", format).name
    if options.shard_size is not None and name not in FORMATS:
        raise InvalidOptionError("convert", f"--to {format} is no format of shards; {', '.join(FORMATS)} are")
    return name


def _run(job: Job, output: ShardOutput) -> Summary:
    todo = [unit for unit in job.units if job.is_mine(unit)]
    count = 0
    with UnitBar(sum(unit.nbytes for unit in todo), len(todo), wanted=output.has_bar) as bar:

        def progress(done: Done) -> None:
            nonlocal count
            count += done.entry is not None
            bar.finish(done.unit.nbytes)
            output.unit(done, bar)

        try:
            return job.run(progress)
        except BaseException as error:
            output.stopped(error, count, len(job.units), bar)
            raise


class ShardOutput:
    """Prints what becomes of units.

    Args:
        is_json: Whether programs read it: a line for each unit, and one for all.
        is_quiet: Whether people want errors only.
        debug: Whether errors come with their tracebacks.

    Attributes:
        has_bar: Whether there may be a bar.
    """

    def __init__(self, *, is_json: bool, is_quiet: bool, debug: bool) -> None:
        self._is_json = is_json
        self._is_text = not (is_json or is_quiet)
        self._debug = debug
        self.has_bar = not is_quiet
        self._errors = 0
        self._all_of_them = "they are in the lines above" if is_json else "the same command with --json names all"

    def outlook(self, outlook: Outlook) -> None:
        """Print what would be done."""
        if self._is_json:
            facts = {
                "status": "planned",
                "files": outlook.files,
                "units": outlook.units,
                "done": outlook.done,
                "mine": outlook.mine,
                "bytes_in": outlook.nbytes_in,
                "bytes_out": outlook.nbytes_out,
                "shards": outlook.shards,
                "rows": outlook.rows,
                "format": outlook.format,
                "arrays": {
                    name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in outlook.schema.items()
                },
            }
            typer.echo(json.dumps(facts))
        elif self._is_text:
            typer.echo("\n".join(printable(in_options(line)) for line in str(outlook).splitlines()))

    def unit(self, done: Done, bar: UnitBar) -> None:
        """Print what has become of a unit, as soon as that is known."""
        failures = () if done.entry is None else done.entry.failures
        if self._is_json:
            bar.print(json.dumps(_record(done)))
        if done.error is not None:
            self._error(error_lines(done.error, debug=self._debug), bar)
        for failure in failures:
            self._error([f"ndtorch: {_about(failure)}"], bar)

    def _error(self, lines: Sequence[str], bar: UnitBar) -> None:
        self._errors += 1
        if self._errors <= _MAX_ERRORS:
            for line in lines:
                bar.print(line, is_error=True)

    def summary(self, summary: Summary) -> None:
        """Print what has become of all."""
        if self._errors > _MAX_ERRORS:
            typer.echo(f"ndtorch: and {self._errors - _MAX_ERRORS} more; {self._all_of_them}", err=True)
        if self._is_json:
            facts = {
                "status": summary.status,
                "units": summary.units,
                "converted": summary.converted,
                "skipped": summary.skipped,
                "failed": summary.failed,
                "shards": summary.shards,
                "rows": summary.rows,
                "bytes_in": summary.nbytes_in,
                "bytes_out": summary.nbytes_out,
                "seconds": round(summary.seconds, 6),
                "rate": round(summary.rate),
                "failures": len(summary.failures),
            }
            typer.echo(json.dumps(facts))
        elif self._is_text:
            typer.echo("\n".join(printable(in_options(line)) for line in str(summary).splitlines()))

    def stopped(self, error: BaseException, count: int, total: int, bar: UnitBar) -> None:
        """Print how far it came, where some of it is done or somebody asked for the end."""
        is_interrupted = isinstance(error, KeyboardInterrupt)
        if is_interrupted or (count and self._is_text):
            how_far = f"after {count} of {total} units" if count else "before another unit was done"
            bar.print(f"ndtorch: stopped {how_far}; the same command goes on from there", is_error=True)


def _about(failure: Failure) -> str:
    from ..files.remote import shown

    path, reason = shown(failure.path), failure.reason.removeprefix("convert: ").removeprefix("read: ")
    return printable(reason if path in reason else f"{path}: {reason}")


def _record(done: Done) -> dict[str, object]:
    from ..files.remote import shown

    record: dict[str, object] = {"unit": done.unit.number, "files": len(done.unit.files), "bytes_in": done.unit.nbytes}
    if done.entry is None:
        assert done.error is not None
        error = {"type": type(done.error).__name__, "message": one_line(done.error)}
        return record | {"status": "failed", "errors": [error]}
    return record | {
        "status": "converted",
        "outputs": [each.name for each in done.entry.outputs],
        "rows": sum(each.rows for each in done.entry.outputs),
        "bytes": done.entry.nbytes,
        "seconds": round(done.entry.seconds, 6),
        "failures": [{"path": shown(each.path), "reason": each.reason} for each in done.entry.failures],
    }
