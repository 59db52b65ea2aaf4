"""Folders and globs: all files of arrays in them, by name; only their names are read, and headers when asked for.

A file's name is its path in the folder without suffix, ``/`` between the steps, and the whole path where two would
have one name. An array in a file that holds several (``.npz``, ``.safetensors`` ...) has the name of the file before
its own; of these the headers are read at once. Hidden files and files of unknown suffix are left out. A folder that is
a zarr store is such a file. Links to files are followed, links to folders are not, unless the caller names one.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from .._errors import FormatError, NdtorchError
from .arrays import FileArray
from .names import SEPARATOR

ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")
"""Files that a folder has which is a zarr store."""

_MAGIC = re.compile(r"[*?\[]")
_CHOICE = re.compile(r"\[!?[^\]!][^\]]*\]")


class FolderArrays(Mapping[str, FileArray]):
    """The arrays of many files by name. A file of one array is opened whenever its array is asked for.

    Args:
        paths: Path of each file in the folder, with ``/``, in any order.
        open_one: Reads the headers of a file, given its path in the folder.
        holds_one: Whether a path is that of a file with one array, which needs no reading to be named.
        root: The folder itself, where it is on this machine.
    """

    def __init__(
        self,
        paths: Sequence[str],
        open_one: Callable[[str], list[FileArray]],
        holds_one: Callable[[str], bool],
        root: str | None = None,
    ) -> None:
        self._open_one = open_one
        self._root = None if root is None else os.path.abspath(root)
        self._entries: dict[str, str | FileArray | NdtorchError] = {}
        names = _names(paths)
        for path in sorted(paths):
            if holds_one(path):
                self._entries[names[path]] = path
            else:
                self._add_several(names[path], path)

    def _add_several(self, name: str, path: str) -> None:
        try:
            arrays = self._open_one(path)
        except NdtorchError as error:  # is raised when somebody asks for what is in it
            self._entries[name] = error
            return
        for array in arrays:
            full = f"{name}{SEPARATOR}{array.name}"
            self._entries[full] = replace(array, name=full)

    def path_of(self, name: str) -> str | None:
        """The path in the folder of the file that holds this array alone; ``None`` where it holds others too."""
        entry = self._entries[name]
        return entry if isinstance(entry, str) else None

    def local_path(self, name: str) -> str | None:
        """The whole path of the file that holds this array alone, where it is on this machine."""
        inner = self.path_of(name)
        return None if inner is None or self._root is None else os.path.join(self._root, inner)

    def __getitem__(self, name: str) -> FileArray:
        entry = self._entries[name]
        if isinstance(entry, FileArray):
            return entry
        if isinstance(entry, NdtorchError):
            raise entry
        array, *others = self._open_one(entry)
        if others:
            fact = f"{entry!r} of the folder holds {1 + len(others)} arrays"
            raise FormatError("read", fact, hint="read(path) of that file alone gives them")
        return replace(array, name=name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Name every file by its path without suffix, and by its whole path where that would be the name of something else.

    >>> _names(["a.npy", "b.npy", "b.png", "c.npy", "c/d.npy"])
    {'a.npy': 'a', 'b.npy': 'b.npy', 'b.png': 'b.png', 'c.npy': 'c.npy', 'c/d.npy': 'c/d'}
    """
    short = {path: _without_suffix(path) for path in paths}
    taken = set(short) | _folders_of(short)
    names = set(short.values())
    if len(names) == len(short) and names.isdisjoint(taken):
        return short
    count = Counter(short.values())
    return {path: path if count[name] > 1 or name in taken else name for path, name in short.items()}


def _folders_of(paths: Iterable[str]) -> set[str]:
    """Every folder on the way to these."""
    found: set[str] = set()
    for folder in {path.rpartition(SEPARATOR)[0] for path in paths}:
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition(SEPARATOR)[0]
    return found


def _without_suffix(path: str) -> str:
    start, dot, suffix = path.rpartition(".")
    return start if dot and SEPARATOR not in suffix else path


# --- what is in a folder


def is_zarr_store(folder: str) -> bool:
    """Whether a folder is one array or group of zarr."""
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in ZARR_MARKS)


def has_magic(path: str) -> bool:
    """Whether a path is a pattern, and not the name of something that exists."""
    return _MAGIC.search(path) is not None and not os.path.lexists(path)


class Listing(NamedTuple):
    """What is in a folder, by path in it.

    Attributes:
        folder: The folder.
        files: The files that are known by name.
        stores: The zarr stores.
    """

    folder: str
    files: list[str]
    stores: set[str]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether what is no folder is a link to one; a link to itself leads nowhere."""
    return entry.is_symlink() and os.path.isdir(entry.path)


def files_in(folder: str, is_known: Callable[[str], bool]) -> Listing:
    """List a folder, and those in it."""
    files: list[str] = []
    stores: set[str] = set()
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        entries = _entries(os.path.join(folder, inner))
        if inner and any(entry.name in ZARR_MARKS for entry in entries):
            stores.add(inner)
            continue
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            path = f"{inner}{SEPARATOR}{name}" if inner else name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif is_known(name) and not _leads_to_folder(entry):  # that could lead anywhere, also in a circle
                files.append(path)
    return Listing(folder, files, stores)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder or os.curdir) as entries:
        return list(entries)


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a pattern into the folder that it begins with and the rest.

    >>> split_pattern("data/run1/*/x?.npy"), split_pattern("*.npy")
    (('data/run1', '*/x?.npy'), ('', '*.npy'))
    """
    steps = pattern.split(SEPARATOR)
    count = next((n for n, step in enumerate(steps) if _MAGIC.search(step)), len(steps))
    folder = SEPARATOR.join(steps[:count])
    return folder or (SEPARATOR if pattern.startswith(SEPARATOR) else ""), SEPARATOR.join(steps[count:])


def files_matching(pattern: str, is_known: Callable[[str], bool]) -> Listing:
    """List what a pattern names: files and zarr stores, not other folders."""
    folder, steps = split_pattern(pattern)
    found = dict(_matching(folder, "", steps.rstrip(SEPARATOR).split(SEPARATOR)))
    files = [path for path, is_folder in found.items() if not is_folder and is_known(path)]
    stores = {path for path, is_folder in found.items() if is_folder and is_zarr_store(os.path.join(folder, path))}
    return Listing(folder, files, stores)


def _matching(folder: str, inner: str, steps: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """What the steps of a pattern name, ``**`` any number of folders, and whether each is a folder."""
    step, *others = steps
    here = os.path.join(folder, inner)
    if step == "**":
        yield from _matching(folder, inner, others or ["*"])
        for name in _folders_in(here):
            yield from _matching(folder, _under(inner, name), steps)
    elif not _MAGIC.search(step):
        if others:
            yield from _matching(folder, _under(inner, step), others)
        elif os.path.lexists(os.path.join(here, step)):
            yield _under(inner, step), os.path.isdir(os.path.join(here, step))
    else:
        matches = re.compile(fnmatch.translate(step)).match
        if others:
            for name in filter(matches, _folders_in(here)):
                yield from _matching(folder, _under(inner, name), others)
        elif os.path.isdir(here or os.curdir):
            found = (entry for entry in _entries(here) if matches(entry.name) and not entry.name.startswith("."))
            yield from ((_under(inner, entry.name), entry.is_dir()) for entry in found)


def _folders_in(folder: str) -> list[str]:
    if not os.path.isdir(folder or os.curdir):
        return []
    entries = _entries(folder)
    return [each.name for each in entries if each.is_dir(follow_symlinks=False) and not each.name.startswith(".")]


def real_path() -> Callable[[str], str]:
    """Give an ``os.path.realpath`` for many paths, which follows the links of each folder once.

    >>> real = real_path()
    >>> real("x.npy") == os.path.join(os.path.realpath(os.getcwd()), "x.npy")
    True
    """
    real_folder = cache(os.path.realpath)

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir) or os.path.islink(path):
            return os.path.realpath(path)
        return os.path.join(real_folder(folder), name)

    return real


def _under(folder: str, name: str) -> str:
    return f"{folder}{SEPARATOR}{name}" if folder else name


def regex_of(pattern: str) -> re.Pattern[str]:
    """What a pattern means for a whole path, where no folder is there to be looked into.

    >>> matches = regex_of("a/**/x[!0]*.npy").fullmatch
    >>> [bool(matches(path)) for path in ("a/x1.npy", "a/b/c/xy.npy", "a/x0.npy", "x1.npy")]
    [True, True, False, False]
    """
    *folders, last = pattern.split(SEPARATOR)
    steps = ["(?:.*/)?" if step == "**" else f"{_regex_of_step(step)}/" for step in folders]
    try:
        return re.compile("".join([*steps, ".*" if last == "**" else _regex_of_step(last)]), re.DOTALL)
    except re.error as error:
        raise FormatError("read", f"{pattern!r} is no pattern: {error}") from None


def _regex_of_step(step: str) -> str:
    def meaning(part: str) -> str:
        if part in ("*", "?"):
            return "[^/]*" if part == "*" else "[^/]"
        if not _CHOICE.fullmatch(part):
            return re.escape(part)
        inner = re.sub(r"([\\\[&~|])", r"\\\1", part[1:-1])
        return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"

    return "".join(meaning(part) for part in re.split(rf"(\*|\?|{_CHOICE.pattern})", step))
