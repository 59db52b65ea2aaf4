"""Writing to URLs: an object appears when all of it has been uploaded, or not at all.

Drivers that can do that (``s3://``, ``gs://``) are given the bytes in parts as they come; after a kill the parts that
S3 has got are no object, and its rules on the lifecycle of incomplete uploads clear them away. All other drivers are
given the whole file from a local one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from .._errors import FormatError
from .atomic import scratch_folder
from .remote import REQUEST, is_http, kind_of, located, member, reported, several, shown

_PART = 16 << 20
_SMALL = 4 << 20  # bytes that are sent by one request
_AT_ONCE = 8  # objects: each is in memory until it has been sent
_MAX_PARTS = 9_000  # S3 takes 10,000
_APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs"}  # what ``autocommit=False`` uploads appears with commit() or not at all


def check_target(url: str, *, is_folder: bool, overwrite: bool, subject: str) -> None:
    """Refuse a URL that cannot be written to, or that is in use.

    Raises:
        FormatError: There is something, or it is of a kind that is only read.
    """
    if is_http(url):
        raise FormatError(subject, f"cannot write {shown(url)!r}: what is behind http is read only")
    kind = kind_of(url, subject)
    if kind == "directory" and not is_folder:
        raise FormatError(subject, f"cannot write {shown(url)!r}: it is a folder")
    if kind and is_folder and overwrite:
        hint = "write under a new name, or remove it first"
        raise FormatError(
            subject, f"{shown(url)!r} exists, and a remote folder cannot be replaced in one step", hint=hint
        )
    if kind and not overwrite:
        hint = "overwrite=True (--overwrite) replaces it, all or nothing"
        raise FormatError(subject, f"{shown(url)!r} exists", hint=None if is_folder else hint)


@contextmanager
def new_object(url: str, nbytes: int = 0) -> Iterator[BinaryIO]:
    """Give a stream whose bytes are going to be the object when all of them are there; else nothing has happened.

    Args:
        url: The object.
        nbytes: About how many bytes there will be; the parts grow with them.
    """
    fs, path = located(url, "write")
    if not _appears_whole(fs):
        with scratch_folder() as folder:
            with io.FileIO(folder / "object", "w") as stream:
                yield cast(BinaryIO, stream)
            _put(fs, folder / "object", path, url)
        return
    with reported(url, "write"):
        upload = fs.open(path, "wb", block_size=max(_PART, nbytes // _MAX_PARTS + 1), autocommit=False)
    try:
        yield cast(BinaryIO, _Upload(upload, url))
        with reported(url, "write"):
            upload.close()
            upload.commit()
    except BaseException:
        with suppress(Exception):
            upload.discard()
        with suppress(AttributeError):
            upload.closed = True  # else it would upload the rest when it is collected
        raise


def _appears_whole(fs: Any) -> bool:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & _APPEAR_WHOLE)


class _Upload:
    """A stream of fsspec in the place of a raw file."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream = stream
        self._url = url

    def write(self, data: memoryview) -> int:
        """Write some bytes, and say how many they were."""
        with reported(self._url, "write"):
            return int(self._stream.write(data[:REQUEST]))


def _put(fs: Any, source: Path, path: str, url: str) -> None:
    try:
        with reported(url, "write"):
            fs.put_file(os.fspath(source), path)
    except BaseException:
        with suppress(Exception):
            fs.rm_file(path)
        raise


def upload_file(source: Path, url: str) -> None:
    """Upload a local file; it appears whole or not at all. A small one takes one request, and not three."""
    fs, path = located(url, "write")
    if source.stat().st_size <= _SMALL and _appears_whole(fs):
        with reported(url, "write"):
            fs.pipe_file(path, source.read_bytes())
        return
    with open(source, "rb") as stream, new_object(url, source.stat().st_size) as target:
        while block := stream.read(REQUEST):
            view = memoryview(block)
            while view:
                view = view[target.write(view) :]


def upload_files(targets: Mapping[Path, str]) -> None:
    """Upload local files, small ones several at a time; each appears whole or not at all."""
    is_small = {source: source.stat().st_size <= REQUEST for source in targets}
    small = [source for source in targets if is_small[source]]
    for source in targets:
        if not is_small[source]:
            upload_file(source, targets[source])
    for _ in several(lambda source: upload_file(source, targets[source]), small, targets.values(), _AT_ONCE):
        pass


def upload_folder(source: Path, url: str) -> None:
    """Upload a zarr store; what says that it is one comes last. Any failure removes what has been uploaded."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    marks = [path for path in files if path.name.startswith(".z") or path.name == "zarr.json"]
    marks.sort(key=lambda path: -len(path.parts))
    targets = {file: member(url, file.relative_to(source).as_posix()) for file in files}
    try:
        upload_files({file: targets[file] for file in files if file not in marks})
        for mark in marks:
            upload_file(mark, targets[mark])
    except BaseException:
        for each in targets.values():
            remove(each)
        raise


def remove(url: str) -> None:
    """Remove an object, if it is there and that is possible."""
    with suppress(Exception):
        fs, path = located(url, "write")
        fs.rm_file(path)
