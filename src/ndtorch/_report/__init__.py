"""`report`: one page that shows what a file of arrays holds. Takes no torch, and needs no network to be looked at."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .._errors import FormatError, InvalidOptionError, NdtorchError
from .._inspect import ArrayInfo, Inspection, inspected
from .._statistics import histogram_of, statistics_of
from ..files import AnyPath, open_file
from ..files.arrays import FileArray
from ..files.atomic import new_file
from .page import Shown, page
from .sample import Sample, packed, steps_of, view_of

_MAX_ARRAYS = 2000  # that a page lists
_BUDGET = 16 << 20  # bytes of elements that a page holds
_MAX_TEXTS = 2000  # of one array


def report(
    path: AnyPath,
    target: str | os.PathLike[str],
    /,
    *,
    overwrite: bool = False,
    max_elements: int = 1 << 20,
    name: str | None = None,
    format: str | None = None,
) -> Path:
    """Write a page that shows the arrays of a file: a table, histograms, pictures, heat maps, lines, memory layouts.

    Statistics and histograms are of all elements. To look at, the page holds at most ``max_elements`` of each array and
    16 MiB in all, every so manieth index of its axes, and says which; it lists at most 2,000 arrays.

    Memory:
        A block at a time, and what the page holds.

    Args:
        path: The file.
        target: The page, one file that needs no other. It is there whole or not at all.
        overwrite: Whether a target that exists is replaced.
        max_elements: How many elements of one array the page holds at most.
        name: What an array is called that has no name in its file; else it is the stem of the file's name.
        format: Name of its format, where neither suffix nor first bytes tell.

    Raises:
        FormatError: The file is not what it claims to be, or the target exists. What only an array's values show is
            said in the page.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "x.npy"), np.eye(3))
    ...     written = nd.report(os.path.join(folder, "x.npy"), os.path.join(folder, "x.html"))
    ...     written.name, written.read_text(encoding="utf-8")[:15]
    ('x.html', '<!doctype html>')
    """
    if isinstance(max_elements, bool) or not isinstance(max_elements, int) or max_elements < 1:
        expected = "a positive integer"
        raise InvalidOptionError("report", "max_elements", expected=expected, got=repr(max_elements))
    written = Path(target)
    _check_target(written, path, overwrite)
    file = open_file(path, format=format, name=name)
    found = inspected(file)
    arrays = [file[each] for each in list(file)[:_MAX_ARRAYS]]
    limit = _fair_limit([array.nbytes for array in arrays])
    shown = [_shown(array, info, max_elements, limit) for array, info in zip(arrays, found, strict=False)]
    infos = [one.info for one in shown]
    listed = Inspection(found.path, found.format, found.file_nbytes, infos, is_folder=found.is_folder)
    with new_file(written) as (_, descriptor), open(descriptor, "wb", closefd=False) as stream:
        for part in page(found.headline, listed, shown, len(found)):
            stream.write(part.encode("utf-8", "backslashreplace"))
    return written


def _check_target(target: Path, source: AnyPath, overwrite: bool) -> None:
    shown = repr(os.fspath(target))
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        hint = f"os.makedirs({os.fspath(folder)!r}) (mkdir -p) makes it"
        raise FormatError("report", f"cannot write {shown}: no folder {os.fspath(folder)!r}", hint=hint)
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "a device, a pipe or a socket"
        raise FormatError("report", f"cannot write {shown}: it is {what}")
    if target.exists() and not overwrite:
        hint = "overwrite=True (--overwrite) replaces it, all or nothing"
        raise FormatError("report", f"{shown} exists", hint=hint)
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise FormatError("report", f"cannot write {shown}: it is the file to report on")


def _fair_limit(sizes: list[int]) -> int:
    """The most bytes that each array may have in the page, so that small ones leave room to large ones."""
    left = _BUDGET
    for position, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - position)
        if size > share:
            return share
        left -= size
    return _BUDGET


def _shown(array: FileArray, info: ArrayInfo, max_elements: int, limit: int) -> Shown:
    """Stream an array twice: for its statistics and the sample, then for the histogram, which needs the extremes."""
    if array.error is not None:
        return Shown(info, array)
    view = view_of(array.dtype, array.shape)
    most = max(min(max_elements, limit // max(array.dtype.itemsize, 1)), 1)
    if array.dtype.kind in "USMmVO" and view.mode == "values":
        most = min(most, _MAX_TEXTS)
    try:
        sample = Sample(array, steps_of(array.shape, most, view))
        stats = statistics_of(array, watch=sample.take)
        info = replace(info, stats=stats)
        histogram = None if stats is None else histogram_of(array, stats)
        kind, data = packed(sample.result())
    except NdtorchError as error:
        return Shown(replace(info, error=error), array)
    return Shown(info, array, view, histogram, kind, data, sample.counts, sample.steps)
