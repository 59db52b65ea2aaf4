"""The ``.npy`` format: one array, with a header that names dtype, order and shape.

What a header claims is checked against the bytes that are there before memory is taken; NumPy's own reader would
take 32 GiB for a file of 128 bytes. Objects are never unpickled.

NumPy has no names for bfloat16 and the float8 formats, and would write them as nameless bytes. They are written as a
record of one field that has the name of the dtype and its bits as an integer: ``[('bfloat16', '<u2')]``. NumPy reads
that, and ``array['bfloat16'].view(ml_dtypes.bfloat16)`` is the numbers.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._dtypes import BY_NAME, from_numpy_dtype
from .._errors import FormatError, UnsupportedDtypeError, UnsupportedTypeError
from .._turns import own_filters
from .arrays import FileArray, Stored
from .indexing import column_major, row_major
from .items import Item
from .output import Output
from .storage import Storage

Read = Callable[[int, int], bytes]
"""``read(offset, nbytes)``: bytes of a file, or of an entry of an archive; fewer only at its end."""

MAGIC = b"\x93NUMPY"
_VERSIONS = {1: (2, "latin1"), 2: (4, "latin1"), 3: (4, "utf-8")}  # bytes of the header's length, its encoding
_MAX_HEADER = 1 << 16  # Python's parser is not made for more; NumPy itself stops at 10,000
_MAX_NESTING = 60  # of brackets: a record in a record has three
_QUOTED = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_PLAIN = re.compile(r"(?:[\s\d()\[\]{},:]|-(?=\d)|True|False|None)*")
_ALIGNMENT = 64
_FIRST_READ = 4096
_NONSENSE = (ValueError, TypeError, SyntaxError, AttributeError, LookupError, ArithmeticError)


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

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, by axis."""
        make = column_major if self.order == "F" else row_major
        return make(self.shape, self.dtype.itemsize)


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read the header of the one array, which gets ``name``."""
    where = repr(storage.path)
    header = read_header(storage.read, storage.size, where)
    layout = Stored(storage, header.nbytes, header.strides)
    return [FileArray(name, where, header.dtype, header.shape, layout)]


def check(items: Sequence[Item]) -> None:
    """Refuse anything but one array, and dtypes that a header cannot name."""
    if len(items) != 1:
        names = ", ".join(repr(item.name) for item in items[:6]) + (", ..." if len(items) > 6 else "")
        hint = ".npz and .safetensors hold many"
        raise FormatError("write", f"a .npy file holds one array, not {len(items)}: {names}", hint=hint)
    check_dtype(items[0], ".npy")


def check_dtype(item: Item, suffix: str) -> None:
    """Refuse what NumPy would pickle, or write as nameless bytes."""
    if item.dtype.hasobject:
        hint = "array.astype(dtype) with a dtype of numbers or text"
        raise UnsupportedTypeError("write", f"cannot write {item.name!r}: Python objects are never pickled", hint=hint)
    if not item.dtype.itemsize and 0 not in item.shape:
        raise UnsupportedDtypeError(
            "write", f"cannot write {item.name!r}: its elements have no bytes", dtype=str(item.dtype)
        )
    descr_of(item.dtype)
    if not _can_be_named(item.dtype):
        raise UnsupportedDtypeError(
            "write",
            f"cannot write {item.name!r}: {suffix} has no name for {item.dtype}",
            hint="dtype='float32' (--dtype float32) holds every value of it",
            dtype=str(item.dtype),
        )
    length = len(header_of(item)) if item.dtype.names is not None else 0
    if length > _MAX_HEADER:
        hint = "array['field'] is an array of its own"
        fact = f"cannot write {item.name!r}: the names of its {len(item.dtype.names or ())} fields are too long"
        raise FormatError("write", fact, expected=f"at most {_MAX_HEADER} bytes", got=length, hint=hint)


def _can_be_named(dtype: np.dtype[Any]) -> bool:
    return from_numpy_dtype(dtype) is not None or _has_name(dtype)


def _has_name(dtype: np.dtype[Any]) -> bool:
    if dtype.names is not None:
        return all(_has_name(dtype[name]) for name in dtype.names)
    if dtype.subdtype is not None:
        return _has_name(dtype.subdtype[0])
    try:
        return np.dtype(dtype.str) == dtype
    except TypeError:  # ml_dtypes calls a float8 "<f1", which NumPy does not know
        return False


def write(output: Output, items: Sequence[Item]) -> None:
    """Write the one array."""
    for item in items:
        write_array(output, item)


def write_array(output: Output, item: Item) -> None:
    """Write header and elements, in Fortran order where that is the array's own."""
    output.write(header_of(item))
    output.write_as_it_lies(item)


def header_of(item: Item) -> bytes:
    """The bytes before the elements."""
    descr = descr_of(_written_as(item.dtype))
    claims = {"descr": descr, "fortran_order": item.order == "F", "shape": item.shape}
    stream = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(stream, claims)
    except ValueError:  # too long, or field names outside latin-1
        text = repr(claims).encode()
        padding = -(len(MAGIC) + 6 + len(text) + 1) % _ALIGNMENT
        text += b" " * padding + b"\n"
        return MAGIC + bytes((3, 0)) + len(text).to_bytes(4, "little") + text
    return stream.getvalue()


def descr_of(dtype: np.dtype[Any]) -> Any:
    """What NumPy's files call a dtype.

    Raises:
        UnsupportedDtypeError: Nothing: its fields are not in the order in which they lie, or share bytes.
    """
    try:
        if not _has_metadata(dtype):
            return np.lib.format.dtype_to_descr(dtype)
        with own_filters():
            warnings.simplefilter("ignore", UserWarning)  # metadata of a dtype is not kept
            return np.lib.format.dtype_to_descr(dtype)
    except ValueError:
        fact = f"there is no name for {dtype}: its fields are not in the order in which they lie, or share bytes"
        hint = "numpy.lib.recfunctions.repack_fields(array) has them one after the other"
        raise UnsupportedDtypeError("write", fact, hint=hint, dtype=str(dtype)) from None


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    if dtype.metadata is not None:
        return True
    return any(_has_metadata(dtype[name]) for name in dtype.names or ()) or (
        dtype.subdtype is not None and _has_metadata(dtype.subdtype[0])
    )


def _written_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    row = from_numpy_dtype(dtype)
    if row is None or _has_name(dtype):
        return dtype
    return np.dtype([(row.name, f"<u{dtype.itemsize}")])


def _read_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The number format that a record of one field stands for, where its name says so."""
    if dtype.names is None or len(dtype.names) != 1:
        return dtype
    row = BY_NAME.get(dtype.names[0])
    if row is None or row.numpy is None or _has_name(row.numpy):
        return dtype
    return row.numpy if dtype == np.dtype([(row.name, f"<u{row.itemsize}")]) else dtype


# --- reading


def read_header(read: Read, size: int, where: str) -> Header:
    """Read what a file or entry of ``size`` bytes claims to hold, and compare with ``size``.

    Raises:
        FormatError: It is not a header, or its claim is not what is there.
        UnsupportedTypeError: The elements are pickled objects.
    """
    raw, encoding, begin = _header_text(read, where)
    try:
        dtype, shape, order = _parsed(raw, encoding)
    except (*_NONSENSE, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError("read", f"{where} has a header that says nothing sensible: {reason[:200]}") from None
    header = Header(dtype, shape, order, begin + len(raw))
    if dtype.hasobject:
        hint = "save it as numbers or text: array.astype(dtype)"
        raise UnsupportedTypeError("read", f"{where} holds Python objects, which are never unpickled", hint=hint)
    if min(shape, default=0) < 0:
        raise FormatError("read", f"{where} claims the shape {shape}, which has a negative size")
    if not dtype.itemsize and 0 not in shape:
        raise FormatError("read", f"{where} claims elements of no bytes, dtype {dtype}")
    expected = header.nbytes + header.data_nbytes
    if size != expected:
        word = "ends before its array does" if size < expected else "goes on after its array"
        raise FormatError("read", f"{where} {word}", expected=f"{expected} bytes", got=size)
    return header


def _header_text(read: Read, where: str) -> tuple[bytes, str, int]:
    start = read(0, _FIRST_READ)
    if not start:
        raise FormatError("read", f"{where} is empty")
    if start[:6] != MAGIC or len(start) < 8:
        raise FormatError("read", f"{where} does not begin as .npy does", expected=MAGIC, got=start[:6])
    if start[6] not in _VERSIONS:
        raise FormatError("read", f"{where} has an unknown .npy version", expected="1, 2 or 3", got=start[6])
    width, encoding = _VERSIONS[start[6]]
    begin = 8 + width
    length = int.from_bytes(start[8:begin], "little")
    if length > _MAX_HEADER:
        raise FormatError("read", f"{where} has an absurd header", expected=f"at most {_MAX_HEADER} bytes", got=length)
    raw = start[begin : begin + length]
    if len(raw) < length and len(start) == _FIRST_READ:
        raw = read(begin, length)
    if len(raw) < length:
        raise FormatError("read", f"{where} ends inside its header", expected=f"{length} bytes", got=len(raw))
    return raw, encoding, begin


def _check_syntax(text: str) -> None:
    """Refuse what no header has: Python's parser ends the process where the stack of a thread is too small for it."""
    rest = _QUOTED.sub("", text)
    if not _PLAIN.fullmatch(rest):
        raise ValueError("it is more than numbers, text, tuples, lists and a dict")
    depth = itertools.accumulate((each in "([{") - (each in ")]}") for each in rest)
    if max(depth, default=0) > _MAX_NESTING:
        raise ValueError(f"its brackets are more than {_MAX_NESTING} deep")


@lru_cache(maxsize=256)
def _parsed(raw: bytes, encoding: str) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    text = raw.decode(encoding, "replace").strip()
    _check_syntax(text)
    claims = ast.literal_eval(text)
    if set(claims) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"its keys are {sorted(claims)}")
    shape, fortran = claims["shape"], claims["fortran_order"]
    if type(shape) is not tuple or any(type(n) is not int for n in shape) or type(fortran) is not bool:
        raise ValueError(f"shape {str(shape)[:80]}, fortran_order {str(fortran)[:80]}")
    if any(abs(n) >> 63 for n in shape):  # Python refuses to print the largest numbers
        raise ValueError("a size in its shape is no 64-bit integer")
    dtype = np.lib.format.descr_to_dtype(claims["descr"])
    if dtype.subdtype is not None:
        raise ValueError(f"dtype {dtype} is an array itself")
    np.broadcast_to(np.empty((), bool), [1] * len(shape))  # has at most 64 axes, says NumPy
    return _read_as(dtype), shape, "F" if fortran else "C"
