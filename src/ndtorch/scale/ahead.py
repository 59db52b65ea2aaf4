"""Small files behind URLs, several read at a time: one after another, each costs the way there and back."""

from __future__ import annotations

from collections.abc import Sequence

from .._errors import NdtorchError
from ..files.remote import RemoteStorage, is_url, several
from .stopping import check_stopped
from .units import SourceFile

_WHOLE = 1 << 20  # bytes of files that are read by one request
_AT_ONCE = 16  # requests
_GROUP_NBYTES = 16 << 20
_GROUP_FILES = 256
KEPT = 64 << 20
"""Bytes of the files of one unit that are read ahead, where all of them stay in memory."""


class Ahead:
    """What the small ones of some files hold that are behind URLs: read in groups, when the first of one is wanted.

    Args:
        files: The files, in the order in which they are going to be asked for.
        most: How many bytes of them may be read ahead, if all of it is kept.
    """

    def __init__(self, files: Sequence[SourceFile], most: int | None = None) -> None:
        self._files: list[SourceFile] = []
        left = sum(file.nbytes for file in files) if most is None else most
        for file in files:
            if is_url(file.path) and not file.is_store and file.nbytes <= min(_WHOLE, left):
                self._files.append(file)
                left -= file.nbytes
        self._places = {file: number for number, file in enumerate(self._files)}
        self._read: dict[SourceFile, bytes | BaseException] = {}

    def __contains__(self, file: SourceFile) -> bool:
        """Whether it is one that is read ahead."""
        return file in self._places

    def content(self, file: SourceFile) -> bytes:
        """All bytes of a file.

        Raises:
            NdtorchError: It is gone, or shorter than it was.
            OSError: Its store refuses.
        """
        if file not in self._read:
            check_stopped()
            group = self._group(self._places[file])
            self._read = dict(
                zip(group, several(_content, group, [file.path for file in group], _AT_ONCE), strict=True)
            )
        found = self._read.pop(file)
        if isinstance(found, BaseException):
            raise found
        return found

    def _group(self, at: int) -> list[SourceFile]:
        stop, nbytes = at, 0
        for file in self._files[at : at + _GROUP_FILES]:
            if stop > at and nbytes + file.nbytes > _GROUP_NBYTES:
                break
            stop, nbytes = stop + 1, nbytes + file.nbytes
        return self._files[at:stop]


def _content(file: SourceFile) -> bytes | BaseException:
    """What a file holds, or why that cannot be told: the others of its group are read all the same."""
    try:
        return RemoteStorage(file.path, file.nbytes).whole()
    except (NdtorchError, OSError, MemoryError) as error:
        return error
