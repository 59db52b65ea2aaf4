"""`inspect`: what a file of arrays holds, from its headers alone, as a table or as JSON. Takes no torch."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, overload

from ._dtypes import from_numpy_dtype
from ._errors import NdtorchError
from ._statistics import Statistics, statistics_of
from .files import AnyPath, ArrayFile, open_file
from .files.arrays import FileArray, Stored
from .files.remote import shown

_PAGE = 4096
_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")
_COUNTS = ("nans", "infs", "zeros")
_TITLES = ("array", "dtype", "shape", "order", "bytes", "align", "compression")
_STATISTICS = ("min", "max", "mean", "std", *_COUNTS)
_RIGHT = {"bytes", "align", *_STATISTICS}
_WORD = 32  # characters of a text that is an extreme


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What is known of one array of a file.

    Attributes:
        name: Its name in the file.
        dtype: Such as ``float32``, or what the format calls it where NumPy has no such dtype.
        shape: Its sizes.
        order: ``C`` row by row, ``F`` column by column, ``strided`` any other way; empty where its elements are packed.
        byteorder: ``little`` or ``big``; empty where an element is one byte, or none is known.
        nbytes: Bytes of its elements in memory.
        compression: Such as ``deflate``; empty where there is none.
        offset: Where in the file its elements begin; ``None`` where they do not lie as in memory.
        alignment: The greatest power of two, up to a page, that ``offset`` is a multiple of; ``None`` likewise.
        stats: What its values are like, where that was asked for and its dtype has such a thing.
        error: What reading it raises, as far as that is known, or ``None``.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "x.npy"), np.zeros((3, 2), order="F"))
    ...     found = nd.inspect(os.path.join(folder, "x.npy"))["x"]
    >>> found.order, found.offset, found.alignment
    ('F', 128, 128)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: str
    byteorder: str
    nbytes: int
    compression: str
    offset: int | None
    alignment: int | None
    stats: Statistics | None = None
    error: NdtorchError | None = None


class Inspection(Sequence[ArrayInfo]):
    """What a file holds: its arrays in their order, also by name. Prints as a table.

    Attributes:
        path: The file.
        format: Name of its format.
        file_nbytes: Bytes of the file, or of all files of a folder; ``None`` where nobody says.
        is_folder: Whether it is a folder.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "ages.npy"), np.array([31, 7], dtype=np.uint8))
    ...     found = nd.inspect(os.path.join(folder, "ages.npy"), stats=True)
    >>> len(found), found["ages"].stats.mean
    (1, 19.0)
    """

    def __init__(
        self,
        path: str,
        format: str,
        file_nbytes: int | None,
        arrays: Sequence[ArrayInfo],
        *,
        is_folder: bool = False,
    ) -> None:
        self.is_folder = is_folder
        self.path = path
        self.format = format
        self.file_nbytes = file_nbytes
        self._arrays = tuple(arrays)
        self._by_name = {array.name: array for array in arrays}

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of all arrays in memory."""
        return sum(array.nbytes for array in self._arrays)

    @overload
    def __getitem__(self, key: int | str) -> ArrayInfo: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[ArrayInfo, ...]: ...

    def __getitem__(self, key: int | str | slice) -> ArrayInfo | tuple[ArrayInfo, ...]:
        return self._by_name[key] if isinstance(key, str) else self._arrays[key]

    def __len__(self) -> int:
        return len(self._arrays)

    def to_json(self) -> str:
        """The same as JSON (RFC 8259), an array a line; what it has no number for is text: ``"inf"``, ``"nan"``."""
        facts = {"path": self.path, "format": self.format, "file_nbytes": self.file_nbytes, "nbytes": self.nbytes}
        arrays = ",\n".join(json.dumps(_plain_info(array), allow_nan=False) for array in self._arrays)
        return f'{json.dumps(facts)[:-1]}, "arrays": [\n{arrays}\n]}}'

    def __str__(self) -> str:
        titles, rows = self._table()
        return "\n".join((self.headline, *_aligned(titles, rows)))

    def __repr__(self) -> str:
        return f"<inspection: {self.headline}>"

    def _repr_html_(self) -> str:
        titles, rows = self._table()
        head = "".join(f"<th>{escape(title)}</th>" for title in titles)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self.headline)}</p>{table}"

    @property
    def headline(self) -> str:
        """One line: the file, its format, how much it holds."""
        count = f"{len(self):,} array" + ("" if len(self) == 1 else "s")
        size = (
            ""
            if self.file_nbytes is None
            else f", {'files' if self.is_folder else 'file'} of {size_text(self.file_nbytes)}"
        )
        return f"{printable(self.path)}: {self.format}, {count}, {size_text(self.nbytes)}{size}"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Titles and cells, without the columns in which nothing is said."""
        with_stats = any(array.stats is not None for array in self._arrays)
        titles = (*_TITLES, *(_STATISTICS if with_stats else ()), "error")
        rows = [(*_cells(one), *(statistics_cells(one.stats) if with_stats else ()), _error(one)) for one in self]
        kept = [i for i, title in enumerate(titles) if title in _TITLES[:5] or any(row[i] for row in rows)]
        return tuple(titles[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def inspect(path: AnyPath, /, *, name: str | None = None, format: str | None = None, stats: bool = False) -> Inspection:
    """Say what a file of arrays holds; reads its headers only, and imports no torch.

    Memory:
        None of the elements; with ``stats`` a block of them at a time.

    Args:
        path: The file.
        name: What an array is called that has no name in its file; else it is the stem of the file's name.
        format: Name of its format, where neither suffix nor first bytes tell, or they tell the wrong one.
        stats: Whether to read the values as well, for their minimum, maximum, mean, standard deviation and how many
            are NaN, infinite and zero.

    Raises:
        FormatError: It is missing, truncated, or not what it claims to be.
        UnsupportedTypeError: It holds pickled Python objects.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "x.npy"), np.arange(6.0).reshape(2, 3))
    ...     found = nd.inspect(os.path.join(folder, "x.npy"), stats=True)
    >>> print(str(found).partition("x.npy: ")[2])
    npy, 1 array, 48 bytes, file of 176 bytes
    array  dtype    shape   order  bytes  align  min  max  mean     std  nans  infs  zeros
    x      float64  [2, 3]  C         48    128    0    5   2.5  1.7078     0     0      1
    """
    file = open_file(path, format=format, name=name)
    return inspected(file, stats=stats)


def printed(found: Inspection, *, as_json: bool = False) -> str:
    """What the command line prints: the table or JSON, in characters that the output has."""
    text = found.to_json() if as_json else str(found)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def inspected(file: ArrayFile, *, stats: bool = False) -> Inspection:
    """Say what an open file holds."""
    arrays = [info_of(array, stats=stats) for array in file.values()]
    is_folder = os.path.isdir(file.path) or file.format.name in ("folder", "shards")
    return Inspection(shown(file.path), file.format.name, _file_nbytes(file), arrays, is_folder=is_folder)


def info_of(array: FileArray, *, stats: bool = False) -> ArrayInfo:
    """Say what is known of one array."""
    offset = array.layout.offset if isinstance(array.layout, Stored) else None
    found, error = None, None if array.is_none else array.error
    if stats and array.error is None:
        try:
            found = statistics_of(array)
        except NdtorchError as damage:  # the other arrays may be sound
            error = damage
    return ArrayInfo(
        name=array.name,
        dtype=array.dtype_text,
        shape=array.shape,
        order=array.order,
        byteorder=_byteorder(array),
        nbytes=array.nbytes,
        compression=array.compression,
        offset=offset,
        alignment=None if offset is None else math.gcd(offset, _PAGE),
        stats=found,
        error=error,
    )


def _byteorder(array: FileArray) -> str:
    is_number = array.dtype.names is None and array.dtype.kind not in "SV"
    if not isinstance(array.layout, Stored) or not (is_number or from_numpy_dtype(array.dtype)):
        return ""
    return "big" if array.dtype.byteorder == ">" else "" if array.dtype.itemsize == 1 else "little"


def _file_nbytes(file: ArrayFile) -> int | None:
    if os.path.isfile(file.path):
        return os.path.getsize(file.path)
    if os.path.isdir(file.path):
        return sum(
            os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(file.path) for name in names
        )
    if file.format.name in ("folder", "shards"):
        return None
    layouts = (array.layout for array in file.values())
    return next((layout.storage.size for layout in layouts if isinstance(layout, Stored)), None)


# --- as JSON


def _plain_info(array: ArrayInfo) -> dict[str, Any]:
    names = ("name", "dtype", "shape", "order", "byteorder", "nbytes", "compression", "offset", "alignment")
    facts = {name: getattr(array, name) for name in names}
    stats = None if array.stats is None else {name: plain(value) for name, value in asdict(array.stats).items()}
    return {**facts, "stats": stats, "error": None if array.error is None else str(array.error)}


def plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    if not hasattr(value, "dtype") or value.dtype.kind == "f":
        return float(value) if math.isfinite(value) and math.isfinite(float(value)) else str(value)
    return str(value)


# --- as a table


def _cells(array: ArrayInfo) -> tuple[str, ...]:
    dtype = array.dtype + (" big-endian" if array.byteorder == "big" else "")
    align = "" if array.alignment is None else str(array.alignment)
    shape = str(list(array.shape))
    return (array.name, dtype, shape, array.order, f"{array.nbytes:,}", align, array.compression)


def statistics_cells(stats: Statistics | None) -> tuple[str, ...]:
    """The statistics as texts of few digits; empty ones where there is nothing to say."""
    return tuple("" if stats is None else short(getattr(stats, title)) for title in _STATISTICS)


def short(value: Any) -> str:
    """A number in few digits, a text in few characters.

    >>> short(0.1 + 0.2), short(12345678), short(None)
    ('0.3', '12,345,678', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool | bytes):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**12 else str(value)
    if isinstance(value, str):
        return value if len(value) <= _WORD else f"{value[:_WORD]}..."
    return f"{value:.5g}" if not hasattr(value, "dtype") or value.dtype.kind == "f" else str(value)


def _error(array: ArrayInfo) -> str:
    return "" if array.error is None else str(array.error)


def _aligned(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [titles, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    pads = [str.rjust if title in _RIGHT else str.ljust for title in titles]
    return ["  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)).rstrip() for row in cells]


def printable(text: str) -> str:
    """Escape what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def size_text(nbytes: int) -> str:
    """Bytes in the unit that suits them.

    >>> size_text(999), size_text(1_234_567)
    ('999 bytes', '1.23 MB')
    """
    step, value = 0, float(nbytes)
    while value >= 999.5 and step < len(_UNITS) - 1:
        step, value = step + 1, value / 1000
    if not step:
        return f"{nbytes} byte" + ("" if nbytes == 1 else "s")
    return f"{value:.3g} {_UNITS[step]}"
