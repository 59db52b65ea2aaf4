"""Files of named arrays: each format one module and one line in the table.

A format module has ``read_headers``, which gives the arrays of a file and reads none of them; a format that can
be written has ``check``, which refuses what the format cannot hold before anything is written, and ``write``. None of
them imports torch: to look into a file takes none.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, cast

from .._errors import FormatError, InvalidOptionError, NdtorchError
from . import folders, remote, sharded
from .arrays import FileArray
from .folders import FolderArrays
from .items import Item
from .storage import LocalStorage, Storage

AnyPath = str | os.PathLike[str]
MissingChunks = Literal["error", "fill"]
"""What chunks of Zarr are that are not there: lost, or of nothing but the fill value."""

MISSING_CHUNKS = ("error", "fill")


class Reader(Protocol):
    """What the module of every format has. A format whose unit is a folder is given a path, not a storage."""

    def read_headers(self, storage: Any, name: str) -> list[FileArray]:
        """Read the headers, after all that they claim was checked; ``name`` is for an array that has none."""


class Writer(Protocol):
    """What the module of a format that can be written has as well."""

    def check(self, items: Sequence[Item]) -> None:
        """Refuse what the format cannot hold."""

    def write(self, target: Any, items: Sequence[Item]) -> None:
        """Write items that passed `check`."""


@dataclass(frozen=True, slots=True)
class Format:
    """One row: a format, and how it is told.

    Attributes:
        name: Its name, as in ``format=`` and ``--from``.
        suffixes: Suffixes of its files; the first is the one that it is written under.
        magic: What its files begin with, any of these; empty where only the suffix tells.
        module: The module of this package that knows it.
        target: What ``write`` is given: an `Output`, the path of a new file, that of a new folder, or nothing at all
            because the format is read only.
        keeps_columns: Whether it holds elements that lie column by column as they lie.
        is_of_one: Whether a file of it holds one array, which has no name in it.
        holds_gil: Whether the library that reads it keeps other threads of Python from running meanwhile.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    module: str
    target: Literal["stream", "file", "folder", ""]
    keeps_columns: bool = False
    is_of_one: bool = False
    holds_gil: bool = False

    @property
    def reader(self) -> Reader:
        """What reads it."""
        return cast(Reader, self._module())

    @property
    def writer(self) -> Writer:
        """What writes it."""
        return cast(Writer, self._module())

    def _module(self) -> Any:
        return _imported(self.module)


@cache
def _imported(module: str) -> Any:
    return importlib.import_module(f".{module}", __name__)


_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")

FORMATS = (
    Format("npy", (".npy",), (b"\x93NUMPY",), "npy", "stream", keeps_columns=True, is_of_one=True),
    Format("npz", (".npz",), _ZIP, "npz", "stream", keeps_columns=True),
    Format("safetensors", (".safetensors",), (), "safetensors", "stream"),
    Format("pt", (".pt", ".pth"), _ZIP, "torch_file", "stream", keeps_columns=True),
    Format("h5", (".h5", ".hdf5"), (b"\x89HDF\r\n\x1a\n",), "hdf5", "file", holds_gil=True),
    Format("zarr", (".zarr",), (), "zarr", "folder", holds_gil=True),
    Format(
        "picture", (".png", ".jpg", ".jpeg", ".tif", ".tiff"), _PICTURES, "pictures", "", is_of_one=True, holds_gil=True
    ),
)

_BY_NAME = {row.name: row for row in FORMATS} | {suffix[1:]: row for row in FORMATS for suffix in row.suffixes}
_BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}
_OF_FILES = {suffix[1:] for suffix, row in _BY_SUFFIX.items() if row.target != "folder"}
_FOLDER = Format("folder", (), (), "folders", "")  # of files of any of these
_SHARDS = Format("shards", (), (), "sharded", "")  # a folder with an index, as `convert_many` writes it


class ArrayFile(Mapping[str, FileArray]):
    """The arrays of one file or folder by name, of which nothing but the headers has been read.

    Attributes:
        path: Its name, as the caller wrote it.
        format: Its format.
    """

    def __init__(self, path: str, format: Format, arrays: Sequence[FileArray] | FolderArrays) -> None:
        self.path = path
        self.format = format
        self._arrays: Mapping[str, FileArray]
        if isinstance(arrays, FolderArrays):
            self._arrays = arrays
            return
        self._arrays = {array.name: array for array in arrays}
        if len(self._arrays) < len(arrays):
            names = sorted(array.name for array in arrays)
            twice = next(one for one, other in itertools.pairwise(names) if one == other)
            raise FormatError("read", f"{remote.shown(path)!r} has two arrays {twice!r}")

    def __getitem__(self, name: str) -> FileArray:
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def local_path(self, name: str) -> str | None:
        """The path of the file in a folder that holds this array alone; ``None`` for whatever else it may be."""
        return self._arrays.local_path(name) if isinstance(self._arrays, FolderArrays) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def open_file(
    path: AnyPath,
    *,
    format: str | None = None,
    name: str | None = None,
    storage: Storage | None = None,
    missing_chunks: MissingChunks = "error",
) -> ArrayFile:
    """Read the headers of a file of arrays, list those in a folder, or open the shards of one data set.

    Args:
        path: The file, a folder, a pattern such as ``data/*.npy``, or a URL of one of these.
        format: Name of its format, where neither suffix nor first bytes tell, or they tell the wrong one; of all files
            in a folder.
        name: What an array is called that has no name in its file; else it is the stem of the file's name.
        storage: Where its bytes are, for who has opened it before.
        missing_chunks: Whether chunks of Zarr that are not there are an error, or hold the fill value.

    Raises:
        FormatError: It is missing, truncated, or not what it claims to be.
        UnsupportedTypeError: It holds pickled Python objects.
        MissingDependencyError: It takes a library that is not installed.
    """
    if missing_chunks not in MISSING_CHUNKS:
        raise InvalidOptionError(
            "read", f"missing_chunks={missing_chunks!r}", expected="'error' or 'fill'", got=repr(missing_chunks)
        )
    stores = _store_reader(missing_chunks)
    text = remote.local_path(os.fspath(path))
    given = None if format in (None, _SHARDS.name, _FOLDER.name) else _by_name(str(format), "read")
    if storage is not None:
        found = given or _told(text, storage)
        return ArrayFile(text, found, _headers(found, storage, name or stem(text), is_given=given is not None))
    if remote.is_url(text):
        return _open_url(text, given, name, stores)
    if folders.has_magic(text) or (os.path.isdir(text) and not _is_zarr(text, given)):
        _check_no_name(name, text)
        index = sharded.local_index(text) if given is None and not folders.has_magic(text) else None
        if index is not None:
            return ArrayFile(text, _SHARDS, sharded.arrays_of(text, index, _shard_opener(text, index, stores)))
        return ArrayFile(text, given or _FOLDER, _local_folder(text, given, stores))
    if os.path.isdir(text):
        return ArrayFile(text, _BY_NAME["zarr"], stores(text, name or stem(text)))
    storage = LocalStorage(text)
    found = given or _told(text, storage)
    return ArrayFile(text, found, _headers(found, storage, name or stem(text), is_given=given is not None))


_Stores = Callable[[str, str], list[FileArray]]
"""Reads the headers of a store of Zarr, given its path or URL and a name for an array that has none."""


def _store_reader(missing_chunks: MissingChunks) -> _Stores:
    def read_headers(path: str, name: str) -> list[FileArray]:
        found: list[FileArray] = _imported("zarr").read_headers(path, name, fills=missing_chunks == "fill")
        return found

    return read_headers


def _open_url(url: str, given: Format | None, name: str | None, stores: _Stores) -> ArrayFile:
    found = given or _BY_SUFFIX.get(_suffix(url))
    is_pattern = remote.has_magic(url)
    is_folder = not is_pattern and (found is None or found.target == "folder" or url.endswith("/"))
    if is_folder and remote.kind_of(url, "read") != "directory":
        is_folder = False
    if is_pattern or (is_folder and not (found is _BY_NAME["zarr"] or (given is None and remote.is_zarr_store(url)))):
        _check_no_name(name, url)
        index = sharded.remote_index(url) if given is None and not is_pattern else None
        if index is not None:
            return ArrayFile(
                url, _SHARDS, sharded.arrays_of(remote.shown(url), index, _shard_opener(url, index, stores))
            )
        return ArrayFile(url, given or _FOLDER, _remote_folder(url, given, stores))
    if is_folder:
        return ArrayFile(url, _BY_NAME["zarr"], stores(url, name or stem(url)))
    storage = remote.RemoteStorage(url)
    found = found or _told(url, storage)
    return ArrayFile(url, found, _headers(found, storage, name or stem(url), is_given=given is not None))


def _is_zarr(folder: str, given: Format | None) -> bool:
    if given is not None:
        return given is _BY_NAME["zarr"]
    return _suffix(folder) == ".zarr" or folders.is_zarr_store(folder)


def _check_no_name(name: str | None, path: str) -> None:
    if name is not None:
        fact = f"name={name!r} is for one array, and {remote.shown(path)!r} is a folder or pattern"
        raise InvalidOptionError("read", fact, hint="leave it out: each array has the name of its file")


def _local_folder(path: str, given: Format | None, read_store: _Stores) -> FolderArrays:
    """The arrays of all files in a folder, or of those that a pattern names."""
    list_files = folders.files_matching if folders.has_magic(path) else folders.files_in
    folder, files, stores = list_files(path, _is_known if given is None else _is_any)
    if not files and not stores:
        raise _nothing_in(path)

    def open_one(inner: str) -> list[FileArray]:
        whole = os.path.join(folder, inner)
        if inner in stores:
            return read_store(whole, stem(inner))
        return _in_folder(inner, given).reader.read_headers(LocalStorage(whole), stem(inner))

    return _folder_arrays(files, stores, open_one, given, folder)


def _shard_opener(folder: str, index: sharded.Index, read_store: _Stores) -> Callable[[int], list[FileArray]]:
    """What reads the headers of a shard; of its size it believes what is there."""
    format = _by_name(index.format, "read")
    only = next(iter(index.arrays), "")

    def open_one(number: int) -> list[FileArray]:
        inner, nbytes = index.names[number], int(index.nbytes[number])
        if remote.is_url(folder):
            whole = remote.member(folder, inner)
            if format.target == "folder":
                return read_store(whole, only)
            return format.reader.read_headers(remote.RemoteStorage(whole, nbytes), only)
        whole = os.path.join(folder, *inner.split("/"))
        if format.target == "folder":
            if not os.path.isdir(whole):
                raise FormatError("read", f"{whole!r}: no such shard")
            return read_store(whole, only)
        storage = LocalStorage(whole)
        index.claim(folder, number).check_nbytes(storage.size)
        return format.reader.read_headers(storage, only)

    return open_one


def _folder_arrays(
    files: Collection[str],
    stores: set[str],
    open_one: Callable[[str], list[FileArray]],
    given: Format | None,
    root: str | None = None,
) -> FolderArrays:
    def is_of_one(inner: str) -> bool:
        return inner not in stores and _in_folder(inner, given).is_of_one

    return FolderArrays([*files, *stores], open_one, is_of_one, root)


def _remote_folder(url: str, given: Format | None, read_store: _Stores) -> FolderArrays:
    folder, sizes, stores = remote.files_in(url, _is_known if given is None else _is_any)
    if not sizes and not stores:
        raise _nothing_in(remote.shown(url))

    def open_one(inner: str) -> list[FileArray]:
        whole = remote.member(folder, inner)
        if inner in stores:
            return read_store(whole, stem(inner))
        storage = remote.RemoteStorage(whole, sizes[inner])
        return _in_folder(inner, given).reader.read_headers(storage, stem(inner))

    return _folder_arrays(sizes, stores, open_one, given)


def _in_folder(path: str, given: Format | None) -> Format:
    return given or _BY_NAME[path.rpartition(".")[2].lower()]


def _is_known(path: str) -> bool:
    start, _, suffix = path.rpartition(".")
    return bool(start) and suffix.lower() in _OF_FILES


def _is_any(path: str) -> bool:
    return True


def _nothing_in(path: str) -> FormatError:
    hint = f"known are {', '.join(_BY_SUFFIX)}; format= (--from) names one for all files"
    return FormatError("read", f"{path!r} has no file of arrays", hint=hint)


def format_to_write(path: AnyPath, format: str | None = None) -> Format:
    """The format that a file is to be written in: by name, or by its suffix.

    Raises:
        FormatError: There is none of that suffix, or it can only be read.
    """
    text = os.fspath(path)
    found = _by_name(format, "write") if format is not None else _BY_SUFFIX.get(_suffix(text))
    if found is None:
        raise _unknown(text, "write")
    if not found.target:
        hint = "image_to_numpy gives an array that Pillow saves: Image.fromarray(array).save(path)"
        raise FormatError("write", f"{remote.shown(text)!r}: pictures are read, not written", hint=hint)
    return found


def holds_gil(path: str, format: str | None = None) -> bool:
    """Whether a file is read by a library that keeps other threads of Python from running; by its suffix alone.

    >>> holds_gil("a.h5"), holds_gil("a.npy"), holds_gil("a.bin", "h5")
    (True, False, True)
    """
    found = _BY_SUFFIX.get(_suffix(path)) if format is None else _by_name(format, "read")
    return found is not None and found.holds_gil


def stem(path: str) -> str:
    """The name of a file without its folder and suffix, for an array that has no name of its own."""
    return os.path.splitext(os.path.basename(_named(path)))[0] or "array"


def _told(path: str, storage: Storage) -> Format:
    """The format of a file, by its suffix, or else by its first bytes."""
    found = _BY_SUFFIX.get(_suffix(path)) or _by_content(storage)
    if found is None:
        raise _unknown(path, "read")
    return found


def _by_content(storage: Storage) -> Format | None:
    start = storage.read(0, 16)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return _BY_NAME["safetensors"]
    if start.startswith(_ZIP):
        from .torch_file import is_torch

        return _BY_NAME["pt" if is_torch(storage) else "npz"]
    return next((row for row in FORMATS if any(start.startswith(magic) for magic in row.magic)), None)


def _headers(found: Format, storage: Storage, name: str, *, is_given: bool) -> list[FileArray]:
    """Read the headers; where the suffix says one format and the first bytes another, an error names that."""
    try:
        return found.reader.read_headers(storage, name)
    except FormatError as error:
        other = None
        if not is_given and error.hint is None:
            with suppress(NdtorchError, OSError):
                other = _by_content(storage)
        if other is None or other is found:
            raise
        hint = f"its first bytes are those of {other.name}: format={other.name!r} (--from {other.name}) reads it"
        raise error.renamed("read", hint=hint) from None


def _by_name(format: str, subject: str) -> Format:
    found = _BY_NAME.get(format.lower().removeprefix("."))
    if found is None:
        raise InvalidOptionError(
            subject, f"format={format!r} is unknown", expected=", ".join(row.name for row in FORMATS), got=format
        )
    return found


def _suffix(path: str) -> str:
    return os.path.splitext(os.path.basename(_named(path)))[1].lower()


def _named(path: str) -> str:
    return (remote.name_in(path) if remote.is_url(path) else path).rstrip("/")


def _unknown(path: str, subject: str) -> FormatError:
    suffix = _suffix(path)
    fact = f"{remote.shown(path)!r} has " + (f"an unknown suffix, {suffix!r}" if suffix else "no suffix")
    known = ", ".join(suffix for row in FORMATS for suffix in row.suffixes if row.target or subject == "read")
    option = "--from" if subject == "read" else "--to"
    return FormatError(subject, fact, hint=f"known are {known}; format= ({option}) names one")
