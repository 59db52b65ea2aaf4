"""The ``.npy`` format: one array, with a header that names dtype, order and shape.

What a header claims is checked against the bytes that are there before memory is taken; NumPy's own reader would
take 32 GiB for a file of 128 bytes. Objects are never unpickled.
"""

from __future__ import annotations

import ast
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from .._errors import FormatError, UnsupportedDtypeError, UnsupportedTypeError
from .._options import World
from .._plan import Plan

AnyArray = npt.NDArray[Any]

WORLD: World = "numpy"

_MAGIC = b"\x93NUMPY"
_VERSIONS = {1: (2, "latin1"), 2: (4, "latin1"), 3: (4, "utf-8")}  # bytes of the header's length, its encoding
_MAX_HEADER = 1 << 16  # Python's parser is not made for more; NumPy itself stops at 10,000
_CHUNK = 1 << 22


class Stream(Protocol):
    """What an array can be read from: a file, or an entry of an archive."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read into a buffer and say how much."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an ``.npy`` header claims.

    Attributes:
        dtype: Dtype of the elements.
        shape: Sizes.
        order: ``C`` or ``F``.
        nbytes: Bytes of the header itself, where the elements begin.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str
    nbytes: int

    @property
    def data_nbytes(self) -> int:
        """Bytes of the elements, as an exact integer."""
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read the array, under the file's name.

    Memory:
        Memory of its own, or a read-only memory map if ``mapped``.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        where = repr(os.fspath(path))
        header = read_header(file, size, where)
        if not mapped or not header.data_nbytes:
            return {path.stem: read_data(file, header, where)}
        with _sensible_shape(header, where):
            array: Any = np.memmap(file, header.dtype, "r", header.nbytes, header.shape, cast(Any, header.order))
        return {path.stem: array}


def check(values: Mapping[str, Any], plans: Mapping[str, Plan]) -> None:
    """Refuse anything but one array, and dtypes that a header cannot name."""
    if len(values) != 1:
        names = ", ".join(map(repr, list(values)[:6])) + (", ..." if len(values) > 6 else "")
        raise FormatError(
            "write", f"a .npy file holds one array, not {len(values)}: {names}", hint=".npz and .safetensors hold many"
        )
    for name, value in values.items():
        check_dtype(name, value, ".npy")


def check_dtype(name: str, value: Any, suffix: str) -> None:
    """Refuse what NumPy would pickle, drop or write as nameless bytes, such as bfloat16."""
    if not isinstance(value, np.ndarray):
        raise UnsupportedTypeError(
            "write", f"cannot write {name!r}: {suffix} holds arrays, not a {type(value).__name__}"
        )
    if isinstance(value, np.ma.MaskedArray):
        hint = "array.filled(value) fills it; .data and .mask are arrays"
        raise UnsupportedTypeError("write", f"cannot write {name!r}: {suffix} has no masks", hint=hint)
    if value.dtype.hasobject:
        hint = "array.astype(dtype) with a dtype of numbers or text"
        raise UnsupportedTypeError("write", f"cannot write {name!r}: Python objects are never pickled", hint=hint)
    if not _can_be_named(value.dtype):
        raise UnsupportedDtypeError(
            "write",
            f"cannot write {name!r}: {suffix} has no name for {value.dtype}",
            hint="dtype='float32' (--dtype float32) holds every value of it, .safetensors keeps the dtype",
            dtype=str(value.dtype),
        )


def _can_be_named(dtype: np.dtype[Any]) -> bool:
    if dtype.names is not None:
        return all(_can_be_named(dtype[name]) for name in dtype.names)
    if dtype.subdtype is not None:
        return _can_be_named(dtype.subdtype[0])
    return np.dtype(dtype.str) == dtype


def write(stream: BinaryIO, values: Mapping[str, Any]) -> None:
    """Write the one array."""
    for array in values.values():
        write_array(stream, array)


def write_array(stream: Any, array: AnyArray) -> None:
    """Write header and elements, in Fortran order where that is the array's own.

    A real file would be written behind Python's back, where a full disk is an error without a number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that field names outside latin-1 need version 3 of the header
        np.lib.format.write_array(SimpleNamespace(write=stream.write), np.asarray(array), allow_pickle=False)


def read_header(stream: Stream, size: int, where: str) -> Header:
    """Read what a stream of ``size`` bytes claims to hold, and compare with ``size``.

    Raises:
        FormatError: It is not a header, or its claim is not what is there.
        UnsupportedTypeError: The elements are pickled objects.
    """
    text, nbytes = _header_text(stream, where)
    dtype, shape, order = _parsed_header(text, where)
    header = Header(dtype, shape, order, nbytes)
    if dtype.hasobject:
        hint = "save it as numbers or text: array.astype(dtype)"
        raise UnsupportedTypeError("read", f"{where} holds Python objects, which are never unpickled", hint=hint)
    if min(shape, default=0) < 0:
        raise FormatError("read", f"{where} claims the shape {shape}, which has a negative size")
    if not dtype.itemsize and 0 not in shape:
        raise FormatError("read", f"{where} claims elements of no bytes, dtype {dtype}")
    if size != nbytes + header.data_nbytes:
        word = "ends before its array does" if size < nbytes + header.data_nbytes else "goes on after its array"
        raise FormatError("read", f"{where} {word}", expected=f"{nbytes + header.data_nbytes} bytes", got=size)
    return header


def _header_text(stream: Stream, where: str) -> tuple[str, int]:
    start = stream.read(8)
    if not start:
        raise FormatError("read", f"{where} is empty")
    if start[:6] != _MAGIC or len(start) < 8:
        raise FormatError("read", f"{where} does not begin as .npy does", expected=_MAGIC, got=start[:6])
    if start[6] not in _VERSIONS:
        raise FormatError("read", f"{where} has an unknown .npy version", expected="1, 2 or 3", got=start[6])
    width, encoding = _VERSIONS[start[6]]
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        raise FormatError("read", f"{where} has an absurd header", expected=f"at most {_MAX_HEADER} bytes", got=length)
    raw = stream.read(length)
    if len(raw) < length:
        raise FormatError("read", f"{where} ends inside its header", expected=f"{length} bytes", got=len(raw))
    return raw.decode(encoding, "replace"), 8 + width + length


def _parsed_header(text: str, where: str) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    try:
        claims = ast.literal_eval(text.strip())
        if set(claims) != {"descr", "fortran_order", "shape"}:
            raise ValueError(f"its keys are {sorted(claims)}")
        shape, fortran = claims["shape"], claims["fortran_order"]
        if type(shape) is not tuple or any(type(n) is not int for n in shape) or type(fortran) is not bool:
            raise ValueError(f"shape {shape!r}, fortran_order {fortran!r}")
        dtype = np.lib.format.descr_to_dtype(claims["descr"])
        if dtype.subdtype is not None:
            raise ValueError(f"dtype {dtype} is an array itself")
    except (ValueError, TypeError, SyntaxError, AttributeError, IndexError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError("read", f"{where} has a header that says nothing sensible: {reason[:200]}") from None
    return dtype, shape, "F" if fortran else "C"


def read_data(stream: Stream, header: Header, where: str) -> AnyArray:
    """Read the elements after a checked header into new memory."""
    raw = np.empty(header.data_nbytes, np.uint8)
    view, done = memoryview(cast(Any, raw)), 0
    while done < raw.nbytes:
        count = stream.readinto(view[done : done + _CHUNK])
        if not count:
            raise FormatError("read", f"{where} ends inside its array", expected=f"{raw.nbytes} bytes", got=done)
        done += count
    with _sensible_shape(header, where):
        return np.ndarray(header.shape, header.dtype, buffer=raw, order=cast(Any, header.order))


@contextmanager
def _sensible_shape(header: Header, where: str) -> Iterator[None]:
    """More dimensions or larger ones than NumPy has are the file's fault."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise FormatError("read", f"{where} claims the shape {header.shape}: {error}") from None
