"""The folders that Zarr stores are: on this system, or behind a URL."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Protocol

from .._errors import FormatError
from . import remote
from .storage import LocalStorage, Storage


class Store(Protocol):
    """A folder of folders and files, by their paths in it.

    Attributes:
        where: What errors call it.
    """

    where: str

    def has(self, path: str) -> bool:
        """Whether there is such a file."""

    def folders(self, path: str) -> list[tuple[str, str]]:
        """The folders in one, in order, each with where it leads to if it is a link."""

    def open(self, path: str) -> Storage:
        """Open a file.

        Raises:
            FormatError: It is a link out of the store.
        """

    def sizes(self, path: str) -> dict[str, int]:
        """Every file below a folder, by its path in that, and its bytes.

        Raises:
            FormatError: One is a link out of the store.
        """

    def of_library(self, zarr: Any) -> Any:
        """The same store as zarr-python has it."""


class LocalStore:
    """A folder of this system. Links that lead out of it are not followed."""

    def __init__(self, path: str) -> None:
        self.where = repr(path)
        self._root = os.path.realpath(path)

    def has(self, path: str) -> bool:
        """Whether there is such a file, or a link of that name."""
        return os.path.lexists(self._place(path))

    def folders(self, path: str) -> list[tuple[str, str]]:
        """The folders in one, in order, each with where it leads to if it is a link."""
        with os.scandir(self._place(path)) as entries:
            found = sorted((entry.name, entry.is_symlink(), entry.path) for entry in entries if entry.is_dir())
        return [(name, os.readlink(place) if is_link else "") for name, is_link, place in found]

    def open(self, path: str) -> Storage:
        """Open a file."""
        place = self._place(path)
        if os.path.islink(place) and self._leads_out(place):
            raise FormatError("read", f"{self.where}: {path!r} is a link out of its folder: it is not followed")
        return LocalStorage(place)

    def sizes(self, path: str) -> dict[str, int]:
        """Every file below a folder, by its path in that, and its bytes."""
        found: dict[str, int] = {}
        left = [""]
        while left:
            inner = left.pop()
            with os.scandir(os.path.join(self._place(path), inner)) as entries:
                for entry in entries:
                    key = f"{inner}/{entry.name}" if inner else entry.name
                    if entry.is_symlink() and self._leads_out(entry.path):
                        raise FormatError("read", f"{self.where} has a link out of its folder, {key[:200]!r}")
                    if entry.is_dir(follow_symlinks=False):
                        left.append(key)
                    elif entry.is_file():
                        found[key] = entry.stat().st_size
        return found

    def of_library(self, zarr: Any) -> Any:
        """The same store as zarr-python has it."""
        return zarr.storage.LocalStore(self._root, read_only=True)

    def _place(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    def _leads_out(self, place: str) -> bool:
        return not (os.path.realpath(place) + os.sep).startswith(self._root + os.sep)


class RemoteStore:
    """A folder behind a URL, listed once."""

    def __init__(self, url: str) -> None:
        self.where = repr(remote.shown(url))
        self._url = url.rstrip("/")

    @cached_property
    def _sizes(self) -> dict[str, int]:
        fs, path = remote.located(self._url, "read")
        with remote.reported(self._url, "read"):
            listed = fs.find(path, detail=True)
        start = len(path.rstrip("/")) + 1
        return {name[start:]: int(info["size"]) for name, info in listed.items() if info.get("type") == "file"}

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return path in self._sizes

    def folders(self, path: str) -> list[tuple[str, str]]:
        """The folders in one, in order; none is a link."""
        start = f"{path}/" if path else ""
        inside = (name[len(start) :] for name in self._sizes if name.startswith(start))
        return [(name, "") for name in sorted({inner.partition("/")[0] for inner in inside if "/" in inner})]

    def open(self, path: str) -> Storage:
        """Open a file."""
        return remote.RemoteStorage(remote.member(self._url, path), self._sizes.get(path))

    def sizes(self, path: str) -> dict[str, int]:
        """Every file below a folder, by its path in that, and its bytes."""
        start = f"{path}/" if path else ""
        return {name[len(start) :]: size for name, size in self._sizes.items() if name.startswith(start)}

    def of_library(self, zarr: Any) -> Any:
        """The same store as zarr-python has it."""
        with remote.reported(self._url, "read"):
            return zarr.storage.FsspecStore.from_url(self._url, read_only=True)
