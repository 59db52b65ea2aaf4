"""Conversions of many files into shards: planned as units, done by an engine, entered in a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from .._keywords import names_what_is_meant

if TYPE_CHECKING:
    from .._casting import Casting
    from ..files import AnyPath, MissingChunks
    from .job import Progress
    from .summary import Summary

_WORKERS = "workers= says how many units are done at a time"
_TO = "to= names the format of the outputs, source_format= that of the sources"
_MEANT = {
    "format": _TO,
    "target_format": _TO,
    "jobs": _WORKERS,
    "n_jobs": _WORKERS,
    "num_workers": _WORKERS,
    "sources": "the sources come first, without a name",
    "target": "the target comes after the sources, without a name",
    "verbose": "progress= is called with each unit that is done",
    "world": "world_size= says how many parts there are, rank= which of them to do",
}


@names_what_is_meant(_MEANT)
def convert_many(
    sources: AnyPath | Sequence[AnyPath],
    target: AnyPath,
    /,
    *,
    engine: str = "local",
    to: str = "safetensors",
    shard_size: int | str | None = "256MB",
    name: str | None = None,
    source_format: str | None = None,
    dtype: object = None,
    float_dtype: object = None,
    casting: Casting = "same_kind",
    rows: Literal["axis", "files"] = "axis",
    missing_chunks: MissingChunks = "error",
    overwrite: bool = False,
    on_error: str = "stop",
    verify: bool = False,
    workers: int | None = None,
    address: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Convert many files of rows into the shards of one data set, on this machine or a cluster.

    The work is cut into units of some 256 MB or 500 files. A unit that is done is entered in a ledger in
    ``target/.ndtorch``, so the same call after a kill goes on where the last one stopped, and does again only what has
    changed since. ``index.json`` is written at the end; one that is there goes before the first unit is done again.

    Memory:
        Each worker streams its files in blocks; nothing is held but the names of the sources.

    Args:
        sources: Files, URLs, folders and patterns, as in `read`; the first axis of their arrays counts rows.
        target: The folder or URL of the outputs. A folder is made where it is missing.
        engine: Who does the work. ``local`` is this machine: threads, or supervised processes where the library of the
            sources holds the GIL and there are more units than workers; ``threads`` and ``processes`` say which.
            ``ray`` is Ray Core.
        to: The format of the shards: ``safetensors``, ``npy`` (of one array) or ``zarr``; without shards any that
            can be written.
        shard_size: How long the elements of a shard may be, such as ``"256MB"``; a row is never cut, and no shard
            spans two units. ``None`` regroups nothing: each source has an output of its own, named like it, and there
            is no index.
        name: What an array is called that has no name in its file; else ``data``, or what its file is called where
            each source has its output.
        source_format: Name of the format of the sources, where their suffixes do not tell.
        dtype: As in `to_torch`: casts every array of numbers.
        float_dtype: As in `to_torch`: casts floating arrays only.
        casting: As in `to_torch`.
        rows: ``axis`` has the first axis of each array count rows, ``files`` makes each file one row, as a picture
            always is.
        missing_chunks: As in `read`.
        overwrite: Whether a data set that was made of other sources or with other options is replaced; without it
            only files that have changed are converted again. Units that are done as they are wanted are kept.
        on_error: ``stop`` raises the first error, and what is done stays done. ``skip`` leaves out what cannot be
            converted: a file that cannot be read, and all files of a unit that two workers have died on, which the
            next call tries again. What follows moves up: ``failures`` of the result has the path of each, so that
            labels that are kept elsewhere can lose theirs.
        verify: Whether each shard is read back and compared before it takes its name.
        workers: How many units are done at a time; else as many as there are CPUs.
        address: A Ray cluster that runs already, as in ``ray.init``; ndtorch and the files have to be within reach
            of its machines (``runtime_env`` is the caller's: whoever has called ``ray.init`` is left as they are).
            ``RAY_AUTH_MODE=token`` in the environment sends the token of a cluster that asks for one, as that of
            ``ray start`` may. Without an address, and without ``RAY_ADDRESS``, Ray is started on this machine, with its
            telemetry off.
        rank: Which part of the units to do, of jobs that share the work with no engine; every job makes the same plan,
            and the one that finishes last writes the index.
        world_size: How many parts there are; goes with ``rank``.
        progress: Called with each unit that is done: ``done.unit.nbytes``, ``done.unit.files``, and of what was written
            ``done.entry.outputs`` and ``done.entry.failures``; ``done.entry`` is ``None`` where the unit failed.

    Returns:
        Units, shards, rows, bytes in and out, seconds, and in ``failures`` the absolute path of each source that was
        left out, and why.

    Raises:
        FormatError: A source is missing, or not what it claims to be, or its rows are not those of the others; another
            run is writing there; there is a data set made in another way; or another rank had listed other sources.
        InvalidOptionError: An option has no such value.
        UnsupportedDtypeError: No file holds such a dtype.
        MissingDependencyError: Ray, or what reads a source, is not installed.
        NdtorchError: Two workers died on one unit.
        OSError: The system refuses to read or to write.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(3):
    ...         np.save(os.path.join(folder, f"{i}.npy"), np.full((4, 2), i, "float32"))
    ...     done = nd.convert_many(os.path.join(folder, "*.npy"), os.path.join(folder, "shards"), shard_size="64B")
    ...     print(done.rows, done.shards, sorted(os.listdir(os.path.join(folder, "shards")))[1])
    12 2 000000-000.safetensors
    """
    from .job import planned  # not at the top: what a worker process needs first takes no torch
    from .request import Request, check_both

    check_both(rank, world_size)
    request = Request(
        engine=engine,
        to=to,
        shard_size=shard_size,
        name=name,
        source_format=source_format,
        dtype=dtype,
        float_dtype=float_dtype,
        casting=casting,
        rows=rows,
        missing_chunks=missing_chunks,
        overwrite=overwrite,
        on_error=on_error,
        verify=verify,
        workers=workers,
        address=address,
        rank=0 if rank is None else rank,
        world_size=1 if world_size is None else world_size,
    )
    return planned(sources, target, request).run(progress)


__all__ = ["convert_many"]
