"""`ndtorch convert`: a shell over `pair_up`, `plan_many` and `convert_many`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import InvalidOptionError
from .options import Casting, Dtype, FloatDtype, From, Name, checked_casts, checked_format
from .progress import Bars
from .results import Results, widths_of

if TYPE_CHECKING:
    from .._convert_many import Outcome, Planned, Request

REFUSED = 1
SOME_FAILED = 3
_MOST_JOBS = 4  # each takes some 100 MB at worst

_HELP = """Convert files of arrays into another format, in a stream, each output whole or not at all.

SRC is a file, a URL, a folder (all files of arrays in it) or a quoted pattern such as 'data/**/*.npy'.

DST is a file where its suffix is known or it is one already: all sources are joined into it, arrays named
SOURCE/ARRAY. Else it is a folder, made if missing, with one output in the format of --to for each source, named like
its source; below a folder or a pattern the folders are kept.

Everything is checked before anything is written: headers, casts, names, outputs that exist.

\b
Exit codes:
  0    all was converted
  1    an input, an option or an output was refused, or a conversion failed and the rest was stopped
  2    the command line makes no sense
  3    some files failed, the rest was converted (--on-error skip)
  130  interrupted; no output is half written
"""


def add_to(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command("convert", help=_HELP, short_help="Convert files of arrays into another format.")(convert)


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist, all or nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would become of each array, and what would fail; write nothing.")
    ] = False,
    on_error: Annotated[
        str, typer.Option(metavar="stop|skip", help="Whether a file that fails stops the others or is left out.")
    ] = "stop",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Files converted at a time; else as many as CPUs, 4 at most."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each output.")] = False,
) -> None:
    """Convert files of arrays."""
    if on_error not in ("stop", "skip"):
        raise InvalidOptionError("convert", f"--on-error {on_error} has no meaning; stop and skip have")
    from .._pairs import pair_up, why_not_written

    pairs = pair_up(
        sources,
        target,
        source_format=checked_format("--from", source_format),
        target_format=checked_format("--to", target_format),
    )
    casts = checked_casts(dtype, float_dtype, casting)
    from .._convert_many import Request, plan_many

    request = Request(casts=casts, source_format=source_format, name=name, overwrite=overwrite, verify=verify)
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
    from .._convert_many import convert_many

    done: list[Outcome] = []
    widths = widths_of(planned)
    outcomes = convert_many(planned, request, jobs=jobs, stop_on_error=not is_skipping, advance=bars.advance)
    with bars, closing(outcomes):  # which stops those at work when Ctrl-C comes while something is printed
        for outcome in outcomes:
            bars.finish(outcome.planned)
            results.outcome(outcome, bars, widths)
            done.append(outcome)
    results.summary(done)
    return _code(sum(each.status != "converted" for each in done), len(done), is_skipping=is_skipping)
