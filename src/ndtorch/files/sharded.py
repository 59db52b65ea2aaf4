"""Data sets in shards: files whose arrays are the rows of one table, and beside them an index that says which.

The index is ``index.json``, told by its first key. Names, dtypes and shapes come from it alone; a shard is opened when
its rows are touched, and its header compared with what the index says.

=============  ==============================================================================================
key            value
=============  ==============================================================================================
``ndtorch``    version of the index, 1
``format``     format of the shards
``rows``       rows of all shards
``arrays``     by name: ``dtype``, its name or NumPy's description, and ``shape``, the sizes of a row
``shards``     columns: ``name``, ``rows``, ``nbytes``, ``crc32`` of all bytes, and ``arrays``, by name the
               CRC-32 of the elements, row by row and little-endian
=============  ==============================================================================================
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from isal.isal_zlib import crc32

from .._dtypes import BY_NAME, from_numpy_dtype
from .._errors import FormatError, NdtorchError
from . import remote
from .arrays import AnyArray, Checksum, FileArray, Packed, Stored
from .joined import Joined
from .npy import descr_of
from .unfinished import NOTE, way_on

NAME = "index.json"
VERSION = 1
KEPT = ".ndtorch/units"
"""Where a conversion keeps what it has done, in the folder of the shards."""

FORMATS = ("safetensors", "npy", "zarr")
_MARK = b'{"ndtorch":'
_MAX_OPEN = 256  # shards whose headers are kept

Open = Callable[[int], list[FileArray]]
"""Reads the headers of a shard."""


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says.

    Attributes:
        format: Name of the shards' format.
        arrays: Dtype and sizes of a row, by name.
        names: Paths of the shards in the folder.
        starts: The row that each begins with, and after these the number of all rows.
        nbytes: How long each is.
        crc32: The checksum of all bytes of each.
        checksums: By array the checksums of its elements in each; empty where they were not kept.
        is_current: Whether the folder still has this index, or it cannot be told.
    """

    format: str
    arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    names: list[str]
    starts: AnyArray
    nbytes: AnyArray
    crc32: AnyArray
    checksums: dict[str, AnyArray]
    is_current: Callable[[], bool] = lambda: True

    def claim(self, where: str, number: int) -> Claim:
        """What it says of a shard of the folder that errors call ``where``."""
        rows = int(self.starts[number + 1] - self.starts[number])
        arrays = tuple((name, dtype, row) for name, (dtype, row) in self.arrays.items())
        sums = tuple(int(self.checksums[name][number]) for name in self.arrays) if self.checksums else ()
        return Claim(f"{where}/{self.names[number]}", int(self.nbytes[number]), rows, arrays, sums)


class Claim(NamedTuple):
    """What an index says of one shard; it can be pickled.

    Attributes:
        where: What errors call the shard.
        nbytes: How long it is.
        rows: How many rows it has.
        arrays: Name, dtype and sizes of a row of each array.
        checksums: Those of their elements; empty where they were not kept.
    """

    where: str
    nbytes: int
    rows: int
    arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
    checksums: tuple[int, ...]

    def check_nbytes(self, nbytes: int) -> None:
        """Refuse a shard of another length."""
        if nbytes != self.nbytes:
            fact = f"{self.where!r} is not the shard that its index says"
            raise FormatError("read", fact, expected=f"{self.nbytes} bytes", got=nbytes)

    def proved(self, found: Iterable[FileArray]) -> dict[str, FileArray]:
        """The arrays of the shard, which are compared with their checksums where they are read whole.

        Raises:
            FormatError: They are others.
        """
        wanted = {name: (dtype.newbyteorder("="), (self.rows, *row)) for name, dtype, row in self.arrays}
        arrays = {array.name: array for array in found}
        got = {name: (array.dtype.newbyteorder("="), array.shape) for name, array in arrays.items()}
        if got != wanted:
            fact = f"{self.where!r} is not the shard that its index says"
            raise FormatError("read", fact, expected=_shown(wanted), got=_shown(got))
        sums = itertools.zip_longest(wanted, self.checksums)
        return {name: arrays[name] if crc is None else _with_checksum(arrays[name], crc) for name, crc in sums}


def _with_checksum(array: FileArray, crc: int) -> FileArray:
    layout = array.layout
    if isinstance(layout, Stored) and array.order == "C" and array.nbytes:
        return replace(array, layout=replace(layout, checksum=Checksum(layout.offset, array.nbytes, crc)))
    return replace(array, layout=replace(layout, crc32=crc)) if isinstance(layout, Packed) else array


# --- dtypes


def dtype_text(dtype: np.dtype[Any]) -> str:
    """A dtype in little-endian order as text.

    >>> dtype_text(np.dtype(">f4")), dtype_text(np.dtype("U3")), dtype_text(np.dtype([("x", "<i2"), ("y", "<f8", 3)]))
    ('float32', '<U3', '[["x", "<i2"], ["y", "<f8", [3]]]')
    """
    row = from_numpy_dtype(dtype)
    if row is not None:
        return row.name
    little = dtype.newbyteorder("<")
    return little.str if dtype.names is None else json.dumps(descr_of(little))


def dtype_of(text: str) -> np.dtype[Any]:
    """The dtype that a text means.

    >>> dtype_of("float32"), dtype_of('[["x", "<i2"], ["y", "<f8", [3]]]')
    (dtype('float32'), dtype([('x', '<i2'), ('y', '<f8', (3,))]))
    """
    row = BY_NAME.get(text)
    if row is not None and row.numpy is not None:
        return row.numpy
    descr: Any = _descr(json.loads(text)) if text[:1] == "[" else text
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(descr)
    if dtype.hasobject:
        raise ValueError("Python objects are never unpickled")
    if dtype.shape:
        raise ValueError(f"{text[:80]!r} is the dtype of arrays, and not of elements")
    return dtype


def _descr(claim: Any) -> Any:
    if isinstance(claim, str):
        return claim
    return [(_field(field[0]), _descr(field[1]), *(tuple(map(int, each)) for each in field[2:3])) for field in claim]


def _field(claim: Any) -> Any:
    """The name of a field, with its title if it has one."""
    return tuple(map(str, claim)) if isinstance(claim, list) else str(claim)


# --- the index


def local_index(folder: str) -> Index | None:
    """The index of a folder; ``None`` where it has none.

    Raises:
        FormatError: It is damaged, or shards are there and it is not.
    """
    path = os.path.join(folder, NAME)
    raw, stamp = _read(path)
    if raw.startswith(_MARK):
        return replace(_parsed(raw, repr(path)), is_current=_Unchanged(os.path.abspath(path), stamp, crc32(raw)))
    if not os.path.isdir(os.path.join(folder, *KEPT.split("/"))):
        return None
    damaged = repr(path) if raw else ""
    raise _without_index(folder, damaged, lambda: Path(folder, NOTE).read_bytes())


def _read(path: str) -> tuple[bytes, tuple[int, ...]]:
    """What an index holds, and what says whether it is the same file; the beginning of a file that is none."""
    raw, stamp = b"", cast(tuple[int, ...], ())
    with suppress(FileNotFoundError, IsADirectoryError), open(path, "rb", opener=_opened_at_once) as file:
        facts = os.fstat(file.fileno())
        stamp = _stamp(facts)
        if stat.S_ISREG(facts.st_mode):
            raw = file.read(len(_MARK))
            raw += file.read() if raw == _MARK else b""  # the file of somebody else may be of any length
    return raw, stamp


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """Whether a file is the one that was read, or says the same."""

    path: str
    stamp: tuple[int, ...]
    crc32: int

    def __call__(self) -> bool:
        with suppress(OSError):
            return _stamp(os.stat(self.path)) == self.stamp or crc32(_read(self.path)[0]) == self.crc32
        return False


def _opened_at_once(path: str, flags: int) -> int:
    """Open what may be a pipe, for whose other end nobody waits."""
    return os.open(path, flags | os.O_NONBLOCK)


def remote_index(url: str) -> Index | None:
    """The index of a folder behind a URL; ``None`` where it has none.

    Raises:
        FormatError: It is damaged, or shards are there and it is not.
    """
    fs, path = remote.located(url, "read")
    where, raw = repr(remote.shown(remote.member(url, NAME))), b""
    with remote.reported(url, "read"):
        with suppress(FileNotFoundError, IsADirectoryError):
            raw = fs.cat_file(f"{path.rstrip('/')}/{NAME}")
        if raw.startswith(_MARK):
            return _parsed(raw, where)
        if remote.is_http(url) or not fs.exists(f"{path.rstrip('/')}/{KEPT}"):
            return None
    raise _without_index(
        remote.shown(url), where if raw else "", lambda: cast(bytes, fs.cat_file(f"{path.rstrip('/')}/{NOTE}"))
    )


def _without_index(folder: str, damaged: str, read_note: Callable[[], bytes]) -> FormatError:
    fact = f"{folder!r} has shards and no {NAME}: its conversion has not finished"
    if damaged:
        fact = f"{damaged} is damaged: it does not begin as an index does"
    found = way_on(read_note, folder)
    return FormatError("read", fact, hint=found.call, command=found.command)


def _parsed(raw: bytes, where: str) -> Index:
    try:
        return _index(json.loads(raw))
    except (ValueError, TypeError, KeyError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise FormatError("read", f"{where} is damaged: {reason}") from None


def _index(facts: dict[str, Any]) -> Index:
    if facts["ndtorch"] != VERSION:
        raise ValueError(f"it is of version {facts['ndtorch']!r}, and {VERSION} is known")
    if facts["format"] not in FORMATS:
        raise ValueError(f"its shards are of the format {facts['format']!r}")
    arrays = {str(name): (dtype_of(one["dtype"]), _sizes(one["shape"])) for name, one in facts["arrays"].items()}
    shards = facts["shards"]
    names = [_checked(name) for name in shards["name"]]
    rows, nbytes, crc32 = (_counts(shards[key], len(names)) for key in ("rows", "nbytes", "crc32"))
    total = sum(shards["rows"])  # of Python's numbers, which do not wrap around
    if total != facts["rows"] or total >= 1 << 62 or len(set(names)) < len(names):
        raise ValueError("its rows do not add up, or a shard is there twice")
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    checksums = {name: _counts(each, len(names)) for name, each in shards.get("arrays", {}).items()}
    if set(checksums) not in (set(), set(arrays)) or (facts["format"] == "npy" and len(arrays) > 1):
        raise ValueError("its arrays and their checksums disagree")
    return Index(facts["format"], arrays, names, starts, nbytes, crc32, checksums)


def _checked(name: Any) -> str:
    steps = name.split("/")
    if not all(steps) or {".", ".."} & set(steps) or "\\" in name or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no name of a shard")
    name.encode()  # half a surrogate pair, which JSON can say, is in no name
    return str(name)


def _sizes(claim: Any) -> tuple[int, ...]:
    if not isinstance(claim, list) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in claim):
        raise ValueError(f"{str(claim)[:80]} are no sizes of a row")
    return tuple(claim)


def _counts(claim: Any, count: int) -> AnyArray:
    if not isinstance(claim, list) or len(claim) != count or any(type(n) is not int or n < 0 for n in claim):
        raise ValueError("its columns of shards are of several lengths, or no counts")
    return np.array(claim, np.int64)


# --- the arrays


def arrays_of(where: str, index: Index, open_one: Open) -> list[FileArray]:
    """The arrays of all shards; none of these is opened.

    Args:
        where: What errors call the folder.
        index: Its index.
        open_one: Reads the headers of a shard.
    """
    shards, label = _Shards(where, index, open_one), _label_of(index)

    def array(name: str) -> FileArray:
        dtype, row = index.arrays[name]
        layout = Joined(index.starts, lambda number: shards.open(number)[name], row, dtype, label)
        return FileArray(name, f"{where!r} array {name!r}", dtype, (int(index.starts[-1]), *row), layout)

    return [array(name) for name in index.arrays]


def _label_of(index: Index) -> str:
    crc = crc32("\0".join(index.names).encode())
    for column in (index.starts, index.nbytes, index.crc32):
        crc = crc32(column.tobytes(), crc)
    return f" in {len(index.names)} shards {crc:08x}"


class _Shards:
    """The headers of the shards that were used last; of the others they are read again."""

    def __init__(self, where: str, index: Index, open_one: Open) -> None:
        self._where = where
        self._index = index
        self._open_one = open_one
        self._opened: OrderedDict[int, dict[str, FileArray]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, number: int) -> dict[str, FileArray]:
        """The arrays of a shard, of which nothing but the header has been read."""
        with self._lock:
            found = self._opened.get(number)
            if found is not None:
                self._opened.move_to_end(number)
                return found
        found = self._checked(number)
        with self._lock:
            found = self._opened.setdefault(number, found)
            while len(self._opened) > _MAX_OPEN:
                self._opened.popitem(last=False)
        return found

    def _checked(self, number: int) -> dict[str, FileArray]:
        index = self._index
        try:
            found = self._open_one(number)
        except (NdtorchError, OSError) as error:  # in the moment between two data sets a shard is not there
            self._check_is_current(error)
            raise
        self._check_is_current()
        return index.claim(self._where, number).proved(found)

    def _check_is_current(self, cause: Exception | None = None) -> None:
        if not self._index.is_current():  # a conversion takes the index away before it changes a shard
            fact = f"{self._where!r} has other shards than when its {NAME} was read"
            hint = "nd.read or nd.Loader, called again, opens those that are there now"
            raise FormatError("read", fact, hint=hint) from cause


def _shown(arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    parts = [f"{name} {dtype_text(dtype)}[{','.join(map(str, shape))}]" for name, (dtype, shape) in arrays.items()]
    return "; ".join(parts)[:300] or "nothing"
