"""`ndtorch convert`: a shell over `pair_up`, `plan_many` and `convert_planned`; of shards over `convert_many`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from .._errors import InvalidOptionError
from .convert_shards import ShardOptions, ShardOutput, convert_into_shards
from .options import Casting, Dtype, FloatDtype, From, Name, checked_casts, checked_format
from .printing import one_line
from .progress import Bars
from .results import Results, widths_of

if TYPE_CHECKING:
    from .._convert_many import Outcome, Planned, Request
    from ..files import MissingChunks

REFUSED = 1
SOME_FAILED = 3
_MOST_JOBS = 4  # each takes some 100 MB at worst

_HELP = """Convert files of arrays into another format, in a stream, each output whole or not at all.

SRC is a file, a URL, a folder (all files of arrays in it) or a quoted pattern such as 'data/**/*.npy'.

DST is a file where its suffix is known or it is one already: all sources are joined into it, arrays named
SOURCE/ARRAY. Else it is a folder, made if missing, with one output in the format of --to for each source, named like
its source; below a folder or a pattern the folders are kept.

Everything is checked before anything is written: headers, casts, names, outputs that exist.

With --shard-size the rows of all sources become the shards of one data set in the folder or behind the URL DST, with
an index.json by which `read` and `Loader` open them as one. With --engine, or --rank and --world, the work is done in
units of some 256 MB or 500 files: into shards or, without --shard-size, one output for each source. The same command
after a kill goes on where it stopped, and does again only what has changed. Other options or sources than before need
--overwrite. Two runs on one DST refuse each other; ranks go side by side. Only a few headers are read before the work
begins: a file that is broken, or has other rows, is met on the way, see --on-error.

\b
Examples:
  ndtorch convert x.npz x.safetensors --float-dtype bfloat16
  ndtorch convert data out --to safetensors --dry-run
  ndtorch convert 'raw/**/*.npy' shards --shard-size 256MB
  ndtorch convert raw s3://bucket/shards --shard-size 256MB --engine ray --address auto

\b
Exit codes:
  0    all was converted
  1    an input, an option or an output was refused, or a conversion failed and the rest was stopped
  2    the command line makes no sense: an option that there is not, or one without those that it goes with
  3    some files failed, the rest was converted (--on-error skip)
  130  interrupted; no output is half written
"""
_OVERWRITE = "Replace outputs that exist, all or nothing; of shards those made of other sources or with other options."
_DRY_RUN = "Say what would become of each array, or of all with shards, and what would fail; write nothing."


class _Convert(TyperCommand):
    """A command whose last argument is DST: where only one is given, that is what is missing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the command line apart."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            missing: Any = error.param
            if (
                missing is not None
                and missing.name == "sources"
                and self.make_parser(ctx).parse_args(given)[0]["target"]
            ):
                missing = next(each for each in self.params if each.name == "target")
            error.param = missing
            raise


def add_to(app: typer.Typer) -> None:
    """Add the command to a command line."""
    short = "Convert files of arrays into another format."
    app.command("convert", cls=_Convert, help=_HELP, short_help=short)(convert)


def convert(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SRC", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", show_default=False)],
    source_format: From = None,
    target_format: Annotated[
        str | None,
        typer.Option("--to", metavar="FORMAT", help="The format that is written, where the suffix does not tell."),
    ] = None,
    name: Name = None,
    dtype: Dtype = None,
    float_dtype: FloatDtype = None,
    casting: Casting = "same_kind",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read back and compare before an output takes its name.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=_OVERWRITE)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
    on_error: Annotated[
        str, typer.Option(metavar="stop|skip", help="Whether a file that fails stops the others or is left out.")
    ] = "stop",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Files converted at a time; else as many as CPUs, 4 at most."),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", show_default=False, help="Regroups rows into shards of one data set, such as 256MB each."
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="axis|files",
            show_default=False,
            help="Whether the first axis of an array counts the rows of shards, or each file is one; else axis.",
        ),
    ] = None,
    missing_chunks: Annotated[
        str,
        typer.Option(
            metavar="error|fill",
            help="Whether chunks of Zarr stores that are not there are an error, or hold the fill value.",
        ),
    ] = "error",
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="local|threads|processes|ray",
            show_default=False,
            help="Who does the work: this machine (local: threads or processes as the sources ask for), or Ray.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Units that are done at a time; else as many as CPUs."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default=False,
            help="A Ray cluster, or auto for the one on this machine; else RAY_ADDRESS, else Ray is started here.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=0, show_default=False, help="Which part of the units to do, from 0; needs no engine."),
    ] = None,
    world: Annotated[int | None, typer.Option(min=1, show_default=False, help="How many such parts there are.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one line of JSON for each output; for each unit and for all, of shards."),
    ] = False,
) -> None:
    """Convert files of arrays."""
    if on_error not in ("stop", "skip"):
        raise InvalidOptionError("convert", f"--on-error {on_error} has no meaning; stop and skip have")
    if missing_chunks not in ("error", "fill"):
        raise InvalidOptionError("convert", f"--missing-chunks {missing_chunks} has no meaning; error and fill have")
    chunks = cast("MissingChunks", missing_chunks)
    shards = ShardOptions(
        shard_size=shard_size, engine=engine, workers=workers, address=address, rank=rank, world=world, rows=rows
    )
    try:
        shards.check(jobs=jobs)
    except InvalidOptionError as error:
        raise typer.BadParameter(one_line(error), ctx=context) from None
    if shards.are_wanted:
        code = convert_into_shards(
            sources,
            target,
            shards,
            casts=checked_casts(dtype, float_dtype, casting),
            source_format=checked_format("--from", source_format),
            target_format=checked_format("--to", target_format),
            name=name,
            missing_chunks=chunks,
            verify=verify,
            overwrite=overwrite,
            on_error=on_error,
            dry_run=dry_run,
            output=ShardOutput(is_json=as_json, is_quiet=quiet, debug=_wants_debug(context)),
        )
        raise typer.Exit(code)
    from .._pairs import pair_up, why_not_written

    pairs = pair_up(
        sources,
        target,
        source_format=checked_format("--from", source_format),
        target_format=checked_format("--to", target_format),
    )
    casts = checked_casts(dtype, float_dtype, casting)
    from .._convert_many import Request, plan_many

    request = Request(
        casts=casts,
        source_format=source_format,
        name=name,
        overwrite=overwrite,
        verify=verify,
        missing_chunks=chunks,
    )
    results = Results(is_json=as_json, is_quiet=quiet, debug=_wants_debug(context))
    refused = why_not_written(pairs, overwrite=overwrite)
    if refused and not dry_run:
        results.refused({pair: (error,) for pair, error in refused.items()})
        raise typer.Exit(REFUSED)
    planned = plan_many(pairs, request, refused)
    failing = {one.pair: one.errors for one in planned if one.errors}
    code = _code(len(failing), len(planned), is_skipping=on_error == "skip" and not refused)
    if dry_run:
        results.plans(planned)
        results.errors(failing)
    elif code == REFUSED:
        results.refused(failing)
    else:
        jobs = jobs or min(_MOST_JOBS, len(os.sched_getaffinity(0)))
        bars = Bars(sum(one.nbytes for one in planned), len(planned), wanted=not quiet)
        code = _convert(planned, request, results, bars, jobs=jobs, is_skipping=on_error == "skip")
    raise typer.Exit(code)


def _wants_debug(context: typer.Context) -> bool:
    return bool(context.parent is not None and context.parent.params.get("debug"))


def _code(failed: int, count: int, *, is_skipping: bool) -> int:
    if not failed:
        return 0
    return SOME_FAILED if is_skipping and failed < count else REFUSED


def _convert(
    planned: Sequence[Planned], request: Request, results: Results, bars: Bars, *, jobs: int, is_skipping: bool
) -> int:
    from .._convert_many import convert_planned

    done: list[Outcome] = []
    widths = widths_of(planned)
    outcomes = convert_planned(planned, request, jobs=jobs, stop_on_error=not is_skipping, advance=bars.advance)
    with bars, closing(outcomes):  # which stops those at work when Ctrl-C comes while something is printed
        for outcome in outcomes:
            bars.finish(outcome.planned)
            results.outcome(outcome, bars, widths)
            done.append(outcome)
    results.summary(done)
    return _code(sum(each.status != "converted" for each in done), len(done), is_skipping=is_skipping)
