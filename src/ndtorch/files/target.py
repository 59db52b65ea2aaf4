"""Where a file is written: a stream, a path or a folder beside the target, which takes its place at the end."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from . import Format, remote, upload
from .atomic import new_file, new_folder, scratch_folder
from .output import Output
from .zarr import is_store


class Target(NamedTuple):
    """A place to write to.

    Attributes:
        place: What the format's ``write`` is given.
        path: Where what is written can be read back before it takes its name; ``None`` where only afterwards.
    """

    place: Any
    path: str | None


@contextmanager
def new_target(
    path: str | os.PathLike[str],
    format: Format,
    watch: Callable[[int], None] | None = None,
    nbytes: int = 0,
    *,
    overwrite: bool = True,
) -> Iterator[Target]:
    """Give a place to write to; at the end it becomes the target, whole, or nothing has happened.

    Args:
        path: The target.
        format: Says whether a stream, a file or a folder is wanted.
        watch: Told how many bytes more have been written to a stream.
        nbytes: About how many there will be.
        overwrite: Whether a file that has appeared under the name meanwhile is replaced.
    """
    text = remote.local_path(os.fspath(path))
    if remote.is_url(text):
        with _new_remote(text, format, watch, nbytes) as found:
            yield found
        return
    target = Path(text)
    if format.target == "folder":
        with new_folder(target) as folder:
            yield Target(folder, os.fspath(folder))
        return
    with new_file(target, overwrite=overwrite) as (temporary, descriptor):
        if format.target == "file":
            yield Target(temporary, os.fspath(temporary))
        else:
            with io.FileIO(descriptor, "w", closefd=False) as stream:
                output = Output(cast(BinaryIO, stream), watch)
                output.reserve(nbytes)
                yield Target(output, os.fspath(temporary))


@contextmanager
def _new_remote(url: str, format: Format, watch: Callable[[int], None] | None, nbytes: int) -> Iterator[Target]:
    """Stream what can be streamed; the rest is written here and uploaded."""
    if format.target == "stream":
        with upload.new_object(url, nbytes) as stream:
            yield Target(Output(stream, watch), None)
        return
    with scratch_folder() as folder:
        place = folder / f"new{format.suffixes[0]}"
        place.mkdir() if format.target == "folder" else place.touch()
        yield Target(place, os.fspath(place))
        (upload.upload_folder if format.target == "folder" else upload.upload_file)(place, url)


def why_not_replaced(target: Path, *, is_folder: bool) -> str:
    """Say why something that exists is not replaced: with one name too few, much would be lost."""
    if not target.exists():
        return ""
    if not is_folder:
        return "" if target.is_file() else "it is a folder" if target.is_dir() else "it is a device, a pipe or a socket"
    if not target.is_dir():
        return "it is a file, and a folder would replace it"
    return "" if is_store(target) or not any(target.iterdir()) else "it is a folder, and no zarr store"
