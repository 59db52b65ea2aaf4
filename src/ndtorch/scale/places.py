"""Places: folders of outputs, on this machine or behind a URL, and the small files that are kept in them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from .._errors import FormatError
from ..files.atomic import put_file, sync_folder
from ..files.remote import is_url, located, member, reported, several
from ..files.target import why_not_replaced
from ..files.zarr import is_store

FOLDER = ".ndtorch"
"""What is ours and no output, in every place."""

SCRATCH = f"{FOLDER}/new"
"""Where things are in a place on this machine until they get their names."""

_AT_ONCE = 16  # requests
_Result = TypeVar("_Result")


class Sizes(Protocol):
    """How long things in a place are."""

    def of(self, name: str) -> int | None:
        """How long a file is, or all files of a folder together; ``None`` where there is neither."""
        ...


class Place(Protocol):
    """A folder of outputs.

    Attributes:
        path: Its path or URL.
    """

    path: str

    def member(self, name: str) -> str:
        """The path or URL of something in it."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and sizes of the files in it, or in a folder in it, not deeper; none where there is no such folder."""
        ...

    def looking(self) -> AbstractContextManager[Sizes]:
        """Look at the sizes of many files, as they are now."""
        ...

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all; one that exists is replaced."""
        ...

    def rename(self, names: Mapping[str, str]) -> None:
        """Give small files other names, those that are there."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders with all that is in them, those that are there."""
        ...

    def check_free(self, names: Iterable[tuple[str, bool]]) -> None:
        """Refuse names under which something lies that is not replaced: no file and, for a folder, no zarr store.

        Args:
            names: Each with whether a folder is going to have it.

        Raises:
            FormatError: Says what is there.
        """
        ...

    def several(self, do: Callable[[str], _Result], names: Sequence[str]) -> Iterable[_Result]:
        """Do something with each name, at the same time where each would be a request, and give it in their order."""
        ...


class LocalPlace:
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self.path = path

    def member(self, name: str) -> str:
        """The path of something in it."""
        return os.path.join(self.path, *name.split("/"))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and sizes of the files in it."""
        try:
            with os.scandir(self.member(folder) if folder else self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    @contextmanager
    def looking(self) -> Iterator[Sizes]:
        """Look at the sizes of many files, each when it is asked for."""
        yield self

    def of(self, name: str) -> int | None:
        """How long a file is, or all files of a store together; less than nothing of a folder that is none of ours."""
        path = self.member(name)
        try:
            found = os.stat(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISDIR(found.st_mode):
            return found.st_size
        if not is_store(path):
            return -1
        return sum(os.lstat(os.path.join(root, each)).st_size for root, _, names in os.walk(path) for each in names)

    def read(self, name: str) -> bytes:
        """Read a small file."""
        return Path(self.member(name)).read_bytes()

    def put(self, name: str, content: bytes) -> None:
        """Write a small file; it is on the disk when this returns."""
        target = Path(self.member(name))
        put_file(target, content, Path(self.member(SCRATCH)))
        sync_folder(target.parent)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give small files other names, those that are there."""
        for name, new in names.items():
            with suppress(FileNotFoundError):
                os.replace(self.member(name), self.member(new))

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders with all that is in them, those that are there."""
        for name in names:
            self._remove(self.member(name))

    def check_free(self, names: Iterable[tuple[str, bool]]) -> None:
        """Refuse names under which something lies that is not replaced; a link is, what it leads to stays."""
        folders = set()
        for name, is_folder in names:
            path = self.member(name)
            if not is_folder and not os.access(path, os.F_OK):  # of many names most are free: no exception for each
                folders.add(name.rpartition("/")[0])
                continue
            try:
                is_link = stat.S_ISLNK(os.lstat(path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                folders.add(name.rpartition("/")[0])
                continue
            if not is_link:
                why = why_not_replaced(Path(path), is_folder=is_folder)
            else:
                why = "it is a link, and a folder cannot replace it" if is_folder else ""
            if why:
                raise _taken(path, why)
        for folder in filter(None, folders):
            self._check_folders(Path(self.member(folder)))

    def _check_folders(self, step: Path) -> None:
        """Refuse a folder that cannot be made because something else has its name."""
        while len(step.parts) > len(Path(self.path).parts):
            if os.path.lexists(step) and not step.is_dir():
                raise _taken(step, "it is no folder")
            step = step.parent

    def several(self, do: Callable[[str], _Result], names: Sequence[str]) -> Iterable[_Result]:
        """Do something with each name, one after the other."""
        return map(do, names)

    def _remove(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


class RemotePlace:
    """A folder behind a URL: objects appear whole there."""

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")

    def member(self, name: str) -> str:
        """The URL of something in it."""
        return member(self.path, name)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and sizes of the objects in it."""
        fs, path = located(self.member(folder) if folder else self.path, "convert")
        with reported(self.path, "convert"):
            fs.invalidate_cache()
            try:
                found = fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        files = (each for each in found if each.get("type") != "directory")
        return {str(each["name"]).rstrip("/").rpartition("/")[2]: int(each["size"] or 0) for each in files}

    @contextmanager
    def looking(self) -> Iterator[Sizes]:
        """Look at the sizes of many objects, which are listed once."""
        yield _Listings(self.path)

    def read(self, name: str) -> bytes:
        """Read a small object."""
        fs, path = located(self.member(name), "convert")
        try:
            return bytes(fs.cat_file(path))
        except FileNotFoundError:
            raise
        except Exception:
            with reported(self.path, "convert"):
                raise
        raise AssertionError

    def put(self, name: str, content: bytes) -> None:
        """Write a small object."""
        fs, path = located(self.member(name), "convert")
        with reported(self.path, "convert"):
            fs.pipe_file(path, content)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give small objects other names, those that are there: for a moment each has both."""

        def copied(name: str) -> str | None:
            with suppress(FileNotFoundError):
                self.put(names[name], self.read(name))
                return name
            return None

        self.remove([name for name in self.several(copied, list(names)) if name is not None])

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, or all below names, those that are there."""
        for _ in self.several(self._remove, names):
            pass

    def check_free(self, names: Iterable[tuple[str, bool]]) -> None:
        """Find every name free: objects are replaced, and there are no folders but in their names."""

    def several(self, do: Callable[[str], _Result], names: Sequence[str]) -> Iterable[_Result]:
        """Do something with each name, several at a time."""
        return several(do, names, [self.path], _AT_ONCE)

    def _remove(self, name: str) -> None:
        fs, path = located(self.member(name), "convert")
        with reported(self.path, "convert"):
            fs.invalidate_cache()
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)


class _Listings:
    """Sizes of objects, from one listing of all, however many folders they are in."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sizes: dict[str, int] | None = None

    def of(self, name: str) -> int | None:
        """How long an object is, or all below a name together."""
        if self._sizes is None:
            self._sizes = self._listed()
        return self._sizes.get(name)

    def _listed(self) -> dict[str, int]:
        fs, path = located(self._url, "convert")
        with reported(self._url, "convert"):
            fs.invalidate_cache()
            try:
                found = fs.find(path, detail=True)
            except FileNotFoundError:
                return {}
        start, sizes = len(path.rstrip("/")) + 1, dict[str, int]()
        for name, facts in found.items():
            inner = name[start:]
            while inner and not inner.startswith(f"{FOLDER}/"):
                sizes[inner] = sizes.get(inner, 0) + int(facts.get("size") or 0)
                inner = inner.rpartition("/")[0]
        return sizes


def _taken(path: str | Path, why: str) -> FormatError:
    hint = "move it away, or remove it; the same call goes on then"
    return FormatError("convert", f"cannot write {os.fspath(path)!r}: {why}", hint=hint, is_of_target=True)


def place_at(path: str) -> Place:
    """The place that a path or a URL names."""
    return RemotePlace(path) if is_url(path) else LocalPlace(path)
