"""Outputs of a unit: written where nobody looks, checksummed as they lie there, then published together."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from isal.isal_zlib import crc32

from .._errors import FormatError
from .._write import verify_written
from ..files import Format, open_file
from ..files.arrays import FileArray, Stored, checksum_of_elements
from ..files.atomic import move_folder, scratch_folder, sweep, sync_all, sync_folder
from ..files.items import Item
from ..files.output import Output as Stream
from ..files.remote import RemoteStorage, is_url, member
from ..files.storage import LocalStorage, Storage, checksum_of, join_checksums
from ..files.summed import SummedOutput
from ..files.upload import upload_files, upload_folder
from .ledger import Output
from .places import SCRATCH, Place, place_at
from .stopping import check_stopped


class Written(NamedTuple):
    """What is going to be an output.

    Attributes:
        path: Where it is until then.
        output: What it is going to be.
    """

    path: str
    output: Output
    is_folder: bool = False


class Scratch:
    """A folder for the outputs of one unit until all of them are there.

    Args:
        target: The folder or URL of the outputs.
        folder: The folder.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self._place: Place = place_at(target)
        self._folder = folder
        self._count = 0
        self._is_verified = False

    def write(
        self, name: str, format: Format, items: Sequence[Item], *, rows: int = 0, verify: bool = False
    ) -> Written:
        """Write one output, and take its checksum: of what is written, on its way where that is from front to back.

        Args:
            name: What it is going to be called in the place.
            format: In which format.
            items: Its arrays.
            rows: How many rows they have.
            verify: Whether to compare what was written with where it comes from.
        """
        check_stopped()
        self._is_verified |= verify
        format.writer.check(items)
        path = os.path.join(self._folder, f"{self._count}{format.suffixes[0]}")
        self._count += 1
        nbytes = sum(item.nbytes for item in items)
        if format.target == "stream" and not rows and nbytes <= _SMALL and not verify:
            return Written(path, self._write_small(path, name, format, items))
        if format.target == "stream":
            output = _streamed(path, name, format, items, rows)
        else:
            os.mkdir(path) if format.target == "folder" else Path(path).touch()
            format.writer.write(Path(path), items)
            output = None
        if verify:
            verify_written(path, format, items)
        output = output or _measured(Path(path), name, format, items, rows)
        return Written(path, output, format.target == "folder")

    def _write_small(self, path: str, name: str, format: Format, items: Sequence[Item]) -> Output:
        """Write a small file in one piece."""
        buffer = io.BytesIO()
        format.writer.write(Stream(cast(BinaryIO, buffer), check_stopped), items)
        content = buffer.getbuffer()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return Output(name, 0, len(content), crc32(content))
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Forget what was written."""
        for path in list(self._folder.iterdir()):
            _remove(path)

    def publish(self, written: Sequence[Written], announce: Callable[[Place], None]) -> None:
        """Have all of it on the disk, then give it its names; any failure takes back what has got one.

        Args:
            written: What gets a name.
            announce: Says what is going to be there, for who comes after a kill.

        Raises:
            FormatError: Something lies under a name that is not replaced.
        """
        self._place.check_free((each.output.name, each.is_folder) for each in written)
        announce(self._place)
        done: list[str] = []
        try:
            if is_url(self._place.path):
                self._upload(written, done)
            else:
                self._rename(written, done)
        except BaseException:
            for name in done:
                with suppress(Exception):
                    self._place.remove([name])
            raise

    def _rename(self, written: Sequence[Written], done: list[str]) -> None:
        sync_all([Path(each.path) for each in written])
        folders: dict[str, None] = {self._place.path: None}
        for path, output, is_folder in written:
            target = self._place.member(output.name)
            if "/" in output.name and (folder := os.path.dirname(target)) not in folders:
                folders |= dict.fromkeys(_made(folder, self._place.path))
            if is_folder:
                move_folder(Path(path), Path(target))
            else:
                os.replace(path, target)
            done.append(output.name)  # not before: what is there until then may be somebody else's
        for folder in folders:
            sync_folder(Path(folder))

    def _upload(self, written: Sequence[Written], done: list[str]) -> None:
        folders = [each for each in written if each.is_folder]
        self._place.remove([each.output.name for each in folders])  # chunks of older ones would be among the new
        done += [each.output.name for each in written]
        for path, output, _ in folders:
            upload_folder(Path(path), self._place.member(output.name))
        upload_files({Path(each.path): self._place.member(each.output.name) for each in written if not each.is_folder})
        for path, output, _ in written if self._is_verified else ():
            _check_uploaded(Path(path), self._place.member(output.name))


_SMALL = 1 << 20  # bytes of elements that are written by one call


@contextmanager
def scratch_of(target: str) -> Iterator[Scratch]:
    """Give a scratch folder for a unit, on the disk of the target; what killed runs have left there goes first."""
    home = _home(target)
    home.mkdir(parents=True, exist_ok=True)
    with scratch_folder(home) as folder:
        yield Scratch(target, folder)


def sweep_scratch(target: str) -> None:
    """Remove what killed runs and workers have left on its way into a place."""
    sweep(_home(target))


def _home(target: str) -> Path:
    return Path(tempfile.gettempdir()) if is_url(target) else Path(target, *SCRATCH.split("/"))


def _made(folder: str, root: str) -> list[str]:
    """Make a folder below another, and name all on the way: their names have to last too."""
    os.makedirs(folder, exist_ok=True)
    found = []
    while len(folder) > len(root):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        for each in path.iterdir():
            _remove(each)
        path.rmdir()
    else:
        path.unlink()


# --- checksums


def _streamed(path: str, name: str, format: Format, items: Sequence[Item], rows: int) -> Output | None:
    """Write a file from front to back; what it is, where its checksums could be taken on the way."""
    with io.FileIO(path, "x") as file:
        stream = SummedOutput(cast(BinaryIO, file), check_stopped)
        stream.reserve(sum(item.nbytes for item in items))
        format.writer.write(stream, items)
    if stream.crc32 is None:
        return None
    arrays = {item.name: stream.sums[item.name] for item in items} if rows else {}
    return Output(name, rows, stream.tell(), stream.crc32, arrays)


def _check_uploaded(path: Path, url: str) -> None:
    """Read back what has been uploaded, and compare it with the file, or all files of a folder, that it was made of."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    for each in files:
        there = member(url, each.relative_to(path).as_posix()) if path.is_dir() else url
        ours, theirs = LocalStorage(each), RemoteStorage(there)
        size = ours.size
        if theirs.size != size or checksum_of(theirs, 0, size) != checksum_of(ours, 0, size):
            hint = "run it again; the store, or what lies between, is faulty"
            raise FormatError("convert", f"{theirs.path!r} reads back different from what was sent", hint=hint)
        ours.close()


def _measured(path: Path, name: str, format: Format, items: Sequence[Item], rows: int) -> Output:
    if path.is_dir() or not rows:
        nbytes, crc = _of_files(path)
    else:
        nbytes, crc = path.stat().st_size, 0
    if not rows:
        return Output(name, rows, nbytes, crc)
    arrays = open_file(path, format=format.name, name=items[0].name if items else None)
    if path.is_dir():
        return Output(name, rows, nbytes, crc, {each.name: _of_elements(arrays[each.name]) for each in items})
    storage: Storage = LocalStorage(path)
    sums = {array.name: _of_elements(array) for array in arrays.values()}
    crc = at = 0
    for array in sorted(arrays.values(), key=_offset):
        crc = join_checksums(crc, checksum_of(storage, at, _offset(array) - at), _offset(array) - at)
        crc = join_checksums(crc, sums[array.name], array.nbytes)
        at = _offset(array) + array.nbytes
    crc = join_checksums(crc, checksum_of(storage, at, nbytes - at), nbytes - at)
    return Output(name, rows, nbytes, crc, {each.name: sums[each.name] for each in items})


def _offset(array: FileArray) -> int:
    assert isinstance(array.layout, Stored)
    return array.layout.offset


def _of_elements(array: FileArray) -> int:
    """The CRC-32 of the elements of an array, row by row and little-endian."""
    if isinstance(array.layout, Stored) and array.order == "C":
        return checksum_of(array.layout.storage, array.layout.offset, array.nbytes)
    return checksum_of_elements(array.blocks("C"))


def _of_files(path: Path) -> tuple[int, int]:
    """Length and checksum of a file, or of all files of a folder in the order of their names, one after the other."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    nbytes = crc = 0
    for each in files:
        storage = LocalStorage(each)
        crc = join_checksums(crc, checksum_of(storage, 0, storage.size), storage.size)
        nbytes += storage.size
        storage.close()
    return nbytes, crc
