"""The ``.npz`` format: a zip archive of ``.npy`` entries, one per array.

Sizes in an archive's directory are claims too: they are checked against the file, and memory is filled as data
arrives, so that a small archive cannot take much memory.
"""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from .._errors import FormatError
from .._options import World
from .._plan import Plan
from . import npy

WORLD: World = "numpy"

_MAX_NAME = 65_535  # bytes, with the suffix
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # the most that a byte can expand to
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


def read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read every array, by name.

    Memory:
        Memory of its own; an archive cannot be mapped.
    """
    where = repr(os.fspath(path))
    if not path.stat().st_size:
        raise FormatError("read", f"{where} is empty")
    arrays: dict[str, Any] = {}
    with _broken_is_format_error(where), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _name_of(info, where)
            if name in arrays:
                raise FormatError("read", f"{where} has two arrays {name!r}")
            arrays[name] = _read_entry(archive, info, f"{where} entry {info.filename!r}", path.stat().st_size)
    return arrays


def _name_of(info: zipfile.ZipInfo, where: str) -> str:
    if not info.filename.endswith(".npy"):
        raise FormatError("read", f"{where} has an entry that is no array", expected="name.npy", got=info.filename)
    return info.filename.removesuffix(".npy")


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, file_size: int) -> npy.AnyArray:
    ratio = _MAX_RATIO.get(info.compress_type)
    if info.compress_size > file_size or (ratio is not None and info.file_size > info.compress_size * ratio):
        raise FormatError(
            "read",
            f"{where} claims {info.file_size} bytes, packed into {info.compress_size}, of a file of {file_size}",
        )
    with _broken_is_format_error(where), archive.open(info) as stream:
        header = npy.read_header(cast(npy.Stream, stream), info.file_size, where)
        return npy.read_data(cast(npy.Stream, stream), header, where)


@contextmanager
def _broken_is_format_error(where: str) -> Iterator[None]:
    try:
        yield
    except FormatError:
        raise
    except _BROKEN as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise FormatError("read", f"{where} is not a sound zip archive: {reason}") from None


def check(values: Mapping[str, Any], plans: Mapping[str, Plan]) -> None:
    """Refuse dtypes that ``.npy`` cannot name, and names that a zip archive cannot hold."""
    for name, value in values.items():
        if "\0" in name or len(name.encode()) + len(".npy") > _MAX_NAME:
            what = "a NUL character" if "\0" in name else f"{len(name.encode())} bytes"
            raise FormatError("write", f"cannot write {name[:40]!r}: a zip archive has no names with {what}")
        npy.check_dtype(name, value, ".npz")


def write(stream: BinaryIO, values: Mapping[str, Any]) -> None:
    """Write one stored entry per array; the bytes depend on nothing but the arrays."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in values.items():
            # Sizes are known when the entry is complete, so it must allow for more than 4 GiB from the start.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                npy.write_array(entry, array)
