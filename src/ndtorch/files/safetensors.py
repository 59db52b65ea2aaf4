"""The ``.safetensors`` format: a JSON header and the tensors' bytes, row by row, little-endian, without gaps.

The header is read here, since the library does not say where in the file a tensor lies and keeps what it reads in
memory of its own; every claim is checked as the library checks it. Files are written here as well: the library wants
the whole file in memory, and believes whatever strides an array has (safetensors#825).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._dtypes import TABLE, from_numpy_dtype
from .._errors import FormatError, UnsupportedDtypeError, UnsupportedTypeError
from .arrays import MAX_DIMS, FileArray, Stored, Unreadable
from .indexing import row_major
from .items import Item
from .output import Output
from .storage import Storage

_METADATA = "__metadata__"
_ALIGNMENT = 8
_MAX_HEADER = 100_000_000  # more than that no reader accepts
_BY_TAG = {row.safetensors: row.numpy for row in TABLE if row.safetensors is not None}
_ORDER = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16"),
    *("I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
_MANY = 4 << 20  # bytes of a header from which on it is looked at before it is parsed
_SHORTEST = len('"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}') - 10
_MANY_ITEMS, _LONG = 1000, 1000  # items, and characters of a name, from which on a header may be too long
_RANK = {tag: rank for rank, tag in enumerate(_ORDER)}
_UNREADABLE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # what the format has and NumPy has not


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read the header."""
    where = repr(storage.path)
    start = storage.read(0, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise _unsound(where, "it is empty" if not start else "it ends inside the length of its header")
    if length > _MAX_HEADER:
        raise FormatError("read", f"{where} has an absurd header", expected=f"at most {_MAX_HEADER} bytes", got=length)
    if 8 + length > storage.size:
        raise FormatError(
            "read", f"{where} ends inside its header", expected=f"{8 + length} bytes", got=f"{storage.size}"
        )
    claims = _claims(storage.read(8, length), where)
    begin, end = 8 + length, 0
    arrays = []
    for tensor, claim in sorted(claims.items(), key=lambda pair: pair[1]["data_offsets"]):
        array = _array(storage, tensor, claim, begin, end, where)
        end = claim["data_offsets"][1]
        arrays.append(array)
    if begin + end != storage.size:
        word = "ends before its last tensor" if begin + end > storage.size else "goes on after its last tensor"
        raise FormatError("read", f"{where} {word}", expected=f"{begin + end} bytes", got=storage.size)
    return arrays


def _claims(raw: bytes, where: str) -> dict[str, Any]:
    if len(raw) > _MANY:
        _check_parts(raw, where)
    try:
        claims = json.loads(raw.decode(), object_pairs_hook=_unique)
        for name in claims if isinstance(claims, dict) else ():
            name.encode()  # half of a surrogate pair is no text, and nobody could print it
    except (ValueError, RecursionError) as error:
        raise _unsound(where, f"its header is no JSON ({str(error)[:100]})") from None
    if not isinstance(claims, dict) or raw[:1] != b"{":
        raise _unsound(where, "its header is no JSON object")
    metadata = claims.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unsound(where, f"{_METADATA} is no table of text")
    for name, claim in claims.items():
        _check_claim(name, claim, where)
    return claims


def _check_parts(raw: bytes, where: str) -> None:
    """Refuse what would be far more objects than the tensors of so long a header: a list of no bytes takes 56."""
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    characters = np.frombuffer(unescaped, np.uint8)
    is_text = np.bitwise_xor.accumulate((characters == ord('"')).view(np.uint8)).view(np.bool_)
    tensors, lists = (np.count_nonzero((characters == ord(sign)) & ~is_text) for sign in "{[")
    if tensors > len(raw) // _SHORTEST or lists > 2 * tensors:
        raise _unsound(where, "its header has more objects and lists than tensors have")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"a key is there twice among {[key for key, _ in pairs][:6]}")
    return result


def _check_claim(name: str, claim: Any, where: str) -> None:
    """Refuse what is not a dtype, a shape and two offsets; the numbers must be counts."""
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise _unsound(where, f"{name[:80]!r} has no dtype, shape and data_offsets")
    shape, offsets = claim["shape"], claim["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers) or len(offsets) != 2:
        raise _unsound(where, f"{name[:80]!r} claims the shape {str(shape)[:80]} at {str(offsets)[:80]}")


def _array(storage: Storage, name: str, claim: dict[str, Any], begin: int, end: int, where: str) -> FileArray:
    tag, shape, (low, high) = claim["dtype"], tuple(claim["shape"]), claim["data_offsets"]
    where = f"{where} tensor {name[:80]!r}"
    if low != end or high < low:
        what = "overlaps" if low < end else "leaves a gap after"
        raise FormatError("read", f"{where} {what} the tensor before it", expected=f"to begin at {end}", got=low)
    tag = tag if isinstance(tag, str) else str(tag)
    dtype = _BY_TAG.get(tag)
    bits = _UNREADABLE_BITS.get(tag, 0) if dtype is None else dtype.itemsize * 8
    if not bits:
        raise FormatError("read", f"{where} has an unknown dtype, {tag[:40]!r}")
    if len(shape) > MAX_DIMS:  # the product of a million sizes would take minutes
        raise FormatError(
            "read", f"{where} has {len(shape)} dimensions", expected=f"at most {MAX_DIMS}", got=len(shape)
        )
    if math.prod(shape) * bits != (high - low) * 8:
        expected = f"{math.prod(shape) * bits // 8} bytes"
        raise FormatError("read", f"{where} claims the shape {list(shape)} of {tag}", expected=expected, got=high - low)
    if dtype is None:
        error = UnsupportedDtypeError("read", f"{where} is {tag}, which NumPy has no dtype for", dtype=tag)
        return FileArray(name, where, np.dtype(np.uint8), shape, Unreadable(error), dtype_name=tag)
    return FileArray(name, where, dtype, shape, Stored(storage, begin + low, row_major(shape, dtype.itemsize)))


def _unsound(where: str, reason: str) -> FormatError:
    return FormatError("read", f"{where} is not a sound safetensors file: {reason}")


# --- writing


def check(items: Sequence[Item]) -> None:
    """Refuse what would lose its meaning as a plain tensor, and dtypes that the format has no tag for."""
    for item in items:
        if item.name == _METADATA:
            raise FormatError("write", f"cannot write {item.name!r}: .safetensors keeps that name for itself")
        _check_dtype(item)
    if len(items) < _MANY_ITEMS and all(len(item.name) < _LONG for item in items):
        return
    length = len(_header(items))
    if length > _MAX_HEADER:
        fact = f"{len(items)} names and shapes are too long"
        raise FormatError("write", fact, expected=f"at most {_MAX_HEADER} bytes", got=length)


_HINTS = {
    "M": "array.view('int64') is the number of units; .npz keeps time",
    "m": "array.view('int64') is the number of units; .npz keeps time",
    "S": "array.view('uint8') is the characters; .npz keeps text",
    "U": "leave it out, .npz keeps text; numpy.atleast_1d(array).view('int32') is the code points",
    "V": "array['field'] is an array of its own; .npz keeps fields",
}


def _check_dtype(item: Item) -> None:
    row = item.row
    if row is not None and row.safetensors is not None:
        return
    if row is None and item.dtype.kind in _HINTS:
        fact = f"cannot write {item.name!r}: .safetensors holds numbers only and it is {item.dtype}"
        raise UnsupportedTypeError("write", fact, hint=_HINTS[item.dtype.kind])
    name = str(item.dtype) if row is None else row.name
    hint = "dtype= (--dtype) casts it"
    if item.dtype.kind == "c":
        hint = "float_dtype='float32' (--float-dtype float32) makes it complex64, .npz keeps it"
    raise UnsupportedDtypeError(
        "write", f"cannot write {item.name!r}: .safetensors has no {name}", hint=hint, dtype=name
    )


def write(output: Output, items: Sequence[Item]) -> None:
    """Write the header and each tensor's bytes, laid out row by row."""
    header = _header(items)
    output.write(len(header).to_bytes(8, "little") + header)
    for item in _in_order(items):
        output.write_rows(item)


def _in_order(items: Sequence[Item]) -> list[Item]:
    """Wide elements first, so that each tensor begins at a multiple of its element; as the library does it."""
    return sorted(items, key=lambda item: (-_RANK[_tag(item)], item.name))


def _tag(item: Item) -> str:
    row = from_numpy_dtype(item.dtype)
    return "" if row is None or row.safetensors is None else row.safetensors


def _header(items: Sequence[Item]) -> bytes:
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offset = 0
    for item in _in_order(items):
        end = offset + item.nbytes
        header[item.name] = {"dtype": _tag(item), "shape": list(item.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % _ALIGNMENT)
