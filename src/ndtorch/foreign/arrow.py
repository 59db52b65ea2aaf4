"""The Arrow C data interface: what any library of columns hands out, taken for one of the forms.

Structures and formats: https://arrow.apache.org/docs/format/CDataInterface.html. Nothing is copied here: values are
shared from the buffers, and what is packed, narrow or scattered is left unread. Arrow's memory is immutable.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .columnar import Missing, joined, split_rows, values_of, with_missing
from .forms import Foreign, Memory, Parts, Refused, Unread, masked, ragged, table

AnyArray = npt.NDArray[Any]

IMMUTABLE = "Arrow's memory is immutable: other arrays may share it"
_PACKED = "its booleans are packed bits"


# --- the structures of the interface


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Owned:
    """A structure that the other side filled for us, and that we have to release."""

    __slots__ = ("struct",)

    def __init__(self, struct: Any) -> None:
        self.struct = struct

    def __del__(self, release: Any = _Release, reference: Any = ctypes.byref) -> None:
        if self.struct.release:
            release(self.struct.release)(reference(self.struct))


class _Window:
    """Memory at an address that an owner keeps alive, for NumPy; read-only."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: Any, address: int, dtype: np.dtype[Any], length: int) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (length,),
            "typestr": dtype.str,
        }


@dataclass(frozen=True, slots=True)
class _Field:
    """A type, read from its schema: what the formats of the interface mean is in the tables below."""

    format: str
    name: str = ""
    extension: str = ""
    extension_data: bytes = b""
    children: tuple[_Field, ...] = ()
    dictionary: _Field | None = None

    def has_dictionary(self) -> bool:
        """Whether it holds codes anywhere."""
        return self.dictionary is not None or any(child.has_dictionary() for child in self.children)


def _field_of(schema: Any) -> _Field:
    metadata = _metadata_of(schema.metadata)
    return _Field(
        schema.format.decode(),
        (schema.name or b"").decode(),
        metadata.get(b"ARROW:extension:name", b"").decode(),
        metadata.get(b"ARROW:extension:metadata", b""),
        tuple(_field_of(schema.children[i].contents) for i in range(schema.n_children)),
        _field_of(schema.dictionary.contents) if schema.dictionary else None,
    )


def _metadata_of(address: int | None) -> dict[bytes, bytes]:
    """Pairs of key and value, each behind its length."""
    place = address or 0
    found: list[bytes] = []

    def number() -> int:
        nonlocal place
        value = ctypes.c_int32.from_address(place).value
        place += 4
        return value

    for _ in range(2 * number() if place else 0):
        length = number()
        found.append(ctypes.string_at(place, length))
        place += length
    return dict(zip(found[::2], found[1::2], strict=True))


# --- what a library hands out


@dataclass(frozen=True, slots=True)
class Origin:
    """Who handed it out.

    Attributes:
        library: Its name as printed.
        hints: What to call instead of what is refused, by the names in `_REFUSED`.
        codes: What is said of codes.
        one_dictionary: That a code means the same in every chunk.
        owner: What keeps the memory alive.
    """

    library: str
    hints: Mapping[str, str] = field(default_factory=dict)
    codes: str = "these are the codes of a dictionary"
    one_dictionary: bool = False
    owner: Any = None


def take_arrow(source: Any, origin: Origin, *, codes: Any = None) -> Foreign:
    """Take what an object hands out through ``__arrow_c_array__`` or, chunk by chunk, ``__arrow_c_stream__``.

    Args:
        source: The object.
        origin: Who handed it out.
        codes: The same with the codes of its own that it has in place of dictionaries, where it has such.
    """
    if hasattr(type(source), "__arrow_c_array__"):
        schema, array = source.__arrow_c_array__()
        kind = _field_of(_Schema.from_address(_get_pointer(schema, b"arrow_schema")))
        struct = _Array.from_address(_get_pointer(array, b"arrow_array"))
        whole: Foreign = _take(replace(origin, owner=array), kind, struct, 0, struct.length)
        return whole
    kind, chunks = _chunks_of(source.__arrow_c_stream__())
    if codes is not None:
        plain, chunks = _chunks_of(codes.__arrow_c_stream__())
        kind = _with_codes(kind, plain)
    elif len(chunks) > 1 and kind.has_dictionary() and not origin.one_dictionary:
        fact = "one code may mean different things in each of its chunks"
        hint = "pyarrow.chunked_array(source).unify_dictionaries()"
        return Refused(origin.library, "dictionary", (), fact, hint)
    pieces = [_take(replace(origin, owner=chunk), kind, chunk.struct, 0, chunk.struct.length) for chunk in chunks]
    column: Foreign = joined(pieces, f"it lies in {len(chunks)} chunks")
    return column


def _with_codes(kind: _Field, plain: _Field) -> _Field:
    """The formats of the codes where there are dictionaries."""
    if kind.dictionary is not None:
        return replace(kind, format=plain.format)
    pairs = zip(kind.children, plain.children, strict=True)
    return replace(kind, children=tuple(_with_codes(*pair) for pair in pairs))


def _chunks_of(capsule: Any) -> tuple[_Field, list[_Owned]]:
    address = _get_pointer(capsule, b"arrow_array_stream")
    stream = _Stream.from_address(address)

    def next_of(get: Any, cls: Any) -> _Owned:
        owned = _Owned(cls())
        if get(address, ctypes.byref(owned.struct)):
            raise RuntimeError((stream.get_last_error(address) or b"its stream failed").decode())
        return owned

    schema = next_of(stream.get_schema, _Schema)  # released when nobody holds it
    kind = _field_of(schema.struct)
    chunks = []
    while (chunk := next_of(stream.get_next, _Array)).struct.release:
        chunks.append(chunk)
    return kind, chunks or [_Owned(_empty(kind))]


def _empty(kind: _Field) -> Any:
    """An array of no elements."""
    children = [_empty(child) for child in kind.children]
    pointers = (ctypes.POINTER(_Array) * len(children))(*map(ctypes.pointer, children))
    struct = _Array(n_children=len(children), children=pointers)
    if kind.dictionary is not None:
        struct.dictionary = ctypes.pointer(_empty(kind.dictionary))
    return struct


# --- one array


def _take(origin: Origin, kind: _Field, array: Any, start: int, length: int) -> Any:
    """Take ``length`` elements from ``start`` on, which must lie in the array."""
    if not 0 <= start <= start + length <= array.length or array.offset < 0:
        raise ValueError(f"{length} elements from {start} on of an array of {array.length}")
    place = array.offset + start
    form = _values(origin, kind, array, place, length)
    if isinstance(form, Refused):
        return form
    mask, missing = _missing(origin, array, place, length)
    form = with_missing(form, mask, missing) if mask is not None else form
    if kind.dictionary is not None and array.dictionary:
        form = _with_missing_entries(origin, form, array.dictionary.contents)
    return form if kind.extension == "" else _extension(origin, kind, form)


def _values(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Any:
    name = kind.format
    if name in _NUMBERS:
        note = origin.codes if kind.dictionary is not None else IMMUTABLE
        return Memory(origin.library, _view(origin, array, 1, _NUMBERS[name], place, length), note=note)
    if name[:3] in _TIMES:
        return _times(origin, kind, array, place, length)
    take = _NESTED.get(name.partition(":")[0])
    if take is not None:
        return take(origin, kind, array, place, length)
    return _refused(origin, kind, length)


def _view(origin: Origin, array: Any, buffer: int, dtype: Any, start: int, length: int) -> AnyArray:
    """Items of a buffer, in its own memory."""
    dtype = np.dtype(dtype)
    if not length:
        return np.empty(0, dtype)
    address = array.buffers[buffer] if buffer < array.n_buffers else None
    if not address:
        raise ValueError("a buffer is missing")
    return np.asarray(_Window(origin.owner, address + start * dtype.itemsize, dtype, length))


_NUMBERS = dict(zip("cCsSiIlLefg", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"], strict=True))
_UNITS = ("s", "ms", "us", "ns")
_TIMES = (
    {"tdD": ("i4", "M8[D]"), "tdm": ("i8", "M8[ms]")}
    | {f"tt{unit[0]}": ("i4" if unit in ("s", "ms") else "i8", f"m8[{unit}]") for unit in _UNITS}
    | {f"ts{unit[0]}": ("i8", f"M8[{unit}]") for unit in _UNITS}
    | {f"tD{unit[0]}": ("i8", f"m8[{unit}]") for unit in _UNITS}
)
"""By the start of the format: the numbers as they are stored, and NumPy's dtype for them."""


def _times(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    stored, name = _TIMES[kind.format[:3]]
    dtype = np.dtype(name)
    numbers = _view(origin, array, 1, stored, place, length)
    zone = kind.format.partition(":")[2]
    note = f"its times are UTC, for the zone {zone}" if zone else IMMUTABLE
    if numbers.itemsize == dtype.itemsize:
        return Memory(origin.library, numbers.view(dtype), note=note)
    reason = "its times are 32-bit and NumPy's are 64-bit"
    read = numbers.astype  # of int64, since a cast to datetime64 would read the values in NumPy's unit
    return Unread(origin.library, dtype, (length,), reason, lambda: read(np.int64).view(dtype))


def _booleans(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    return Unread(origin.library, np.dtype(bool), (length,), _PACKED, _bits(origin, array, 1, place, length))


def _bits(origin: Origin, array: Any, buffer: int, place: int, length: int) -> Callable[[], AnyArray]:
    first = place // 8
    packed = _view(origin, array, buffer, np.uint8, first, (place + length + 7) // 8 - first if length else 0)
    shift = place - first * 8
    return lambda: np.unpackbits(packed, count=shift + length, bitorder="little")[shift:].view(bool)


def _bytes(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    width = int(kind.format.partition(":")[2])
    items = _view(origin, array, 1, np.uint8, place * width, length * width)
    return Memory(origin.library, items.reshape(length, width), note=IMMUTABLE)


# --- nested


def _struct(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    names = [child.name for child in kind.children]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        return duplicate_names(origin.library, "struct", (length, len(names)), twice)
    columns = {
        child.name: _take(origin, child, array.children[i].contents, place, length)
        for i, child in enumerate(kind.children)
    }
    return table(origin.library, "struct", length, columns)


def duplicate_names(library: str, text: str, shape: tuple[int, ...], names: list[str]) -> Refused:
    """Refuse columns that a dict could not tell apart."""
    fact = f"several of its columns are named {', '.join(map(repr, names))}"
    return Refused(library, text, shape, fact, "source.rename_columns([...]) gives each a name of its own")


def _lists(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    dtype = "i8" if kind.format == "+L" else "i4"
    offsets = _view(origin, array, 1, dtype, place, length + 1) if length else np.zeros(1, dtype)
    return _cut_lists(origin, kind, array, offsets)


def _list_views(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Foreign:
    """Lists that may lie in any order; those that lie one after the other are lists like others."""
    dtype = "i8" if kind.format == "+vL" else "i4"
    starts, sizes = (_view(origin, array, buffer, dtype, place, length) for buffer in (1, 2))
    ends = starts + sizes
    if not np.array_equal(starts[1:], ends[:-1]):
        return _refused(origin, kind, length)
    return _cut_lists(origin, kind, array, np.append(starts, ends[-1:]) if length else np.zeros(1, dtype))


def _cut_lists(origin: Origin, kind: _Field, array: Any, offsets: AnyArray) -> Foreign:
    first, last = int(offsets[0]), int(offsets[-1])
    content = _take(origin, kind.children[0], array.children[0].contents, first, last - first)
    return ragged(origin.library, "list", content, offsets - first if first else offsets)


def _rows(origin: Origin, kind: _Field, array: Any, place: int, length: int) -> Any:
    width = int(kind.format.partition(":")[2])
    content = _take(origin, kind.children[0], array.children[0].contents, place * width, length * width)
    return split_rows(content, length, width)


_NESTED: dict[str, Callable[[Origin, _Field, Any, int, int], Any]] = {
    "b": _booleans,
    "w": _bytes,
    "+s": _struct,
    "+l": _lists,
    "+L": _lists,
    "+m": _lists,
    "+vl": _list_views,
    "+vL": _list_views,
    "+w": _rows,
}


# --- missing values


def _missing(origin: Origin, array: Any, place: int, length: int) -> tuple[Unread | None, Missing]:
    """The mask of what is missing, left packed, how many are missing and where the first is."""
    if array.null_count == 0 or array.n_buffers == 0 or not array.buffers[0] or not length:
        return None, (0, ())
    valid = _bits(origin, array, 0, place, length)
    first = place // 8
    packed = _view(origin, array, 0, np.uint8, first, (place + length + 7) // 8 - first).copy()
    packed[0] |= (1 << (place - first * 8)) - 1  # what is not of this slice counts as valid
    packed[-1] |= 0xFF << ((place + length - 1) % 8 + 1) & 0xFF
    count = 8 * packed.size - int(np.bitwise_count(packed).sum(dtype=np.int64))
    where = int(np.argmax(packed != 0xFF))
    bit = int(np.argmin(np.unpackbits(packed[where : where + 1], bitorder="little")))

    def read() -> AnyArray:
        bits = valid()
        return np.logical_not(bits, out=bits)

    mask = Unread(origin.library, np.dtype(bool), (length,), "its mask is packed bits", read)
    return mask, (count, ((first + where) * 8 + bit - place,) if count else ())


def _with_missing_entries(origin: Origin, form: Any, entries: Any) -> Any:
    """A code may also stand for an entry of the dictionary that is missing."""
    gone, missing = _missing(origin, entries, entries.offset, entries.length)
    if gone is None or not missing[0]:
        return form
    codes = values_of(form.parts[".data"] if isinstance(form, Parts) else form)
    mask = values_of(gone)[np.clip(codes, 0, entries.length - 1)]
    count = int(np.count_nonzero(mask))
    unread = Unread(origin.library, np.dtype(bool), mask.shape, "entries of its dictionary are missing", lambda: mask)
    return with_missing(form, unread, (count, (int(np.argmax(mask)),) if count else ()))


# --- extensions and refusals


def _extension(origin: Origin, kind: _Field, form: Any) -> Any:
    if kind.extension == "arrow.fixed_shape_tensor":
        return _tensors(kind, form)
    if kind.extension == "arrow.bool8":
        return _map_array(form, np.dtype(bool), "its booleans may be any byte but 0", lambda array: array != 0)
    if isinstance(form, Refused) or form.note not in ("", IMMUTABLE):
        return form
    return replace(form, note=f"the storage of its type {kind.extension!r}")


def _map_array(form: Any, dtype: np.dtype[Any], reason: str, change: Callable[[AnyArray], AnyArray]) -> Any:
    if isinstance(form, Parts) and ".data" in form.parts:
        data = _map_array(form.parts[".data"], dtype, reason, change)
        return replace(form, parts={**form.parts, ".data": data})
    return Unread(form.library, dtype, form.array.shape, reason, lambda: change(form.array))


def _tensors(kind: _Field, form: Any) -> Any:
    """Each row is a tensor; its dimensions may stand in another order in memory."""
    facts = json.loads(kind.extension_data)
    shape = tuple(facts["shape"])
    order = facts.get("permutation") or range(len(shape))
    axes = (0, *(axis + 1 for axis in order))
    return _tensors_of(form, shape, axes)


def _tensors_of(form: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    if isinstance(form, Memory):
        array: Any = form.array
        return replace(form, array=array.reshape(len(array), *shape).transpose(axes))
    if isinstance(form, Unread):
        read = form.read
        whole = (form.shape[0], *shape)
        turned = tuple(whole[axis] for axis in axes)
        return replace(form, shape=turned, read=lambda: read().reshape(whole).transpose(axes), fill=None)
    if not isinstance(form, Parts) or form.form != "masked":
        return form
    data, mask = (_tensors_of(form.parts[path], shape, axes) for path in (".data", ".mask"))
    return masked(form.library, data, mask, note=form.note)


_REFUSED = {  # by the start of the format: name, what it is, why it has no form
    "u": ("string", "string", "torch has no text of varying length"),
    "U": ("string", "string", "torch has no text of varying length"),
    "vu": ("string", "string", "torch has no text of varying length"),
    "z": ("binary", "binary", "torch has no bytes of varying length"),
    "Z": ("binary", "binary", "torch has no bytes of varying length"),
    "vz": ("binary", "binary", "torch has no bytes of varying length"),
    "d": ("decimal", "decimal", "torch has no decimal numbers"),
    "n": ("null", "null", "it has neither values nor a dtype"),
    "tiM": ("interval", "interval", "a calendar interval is no one number"),
    "tiD": ("interval", "interval", "a calendar interval is no one number"),
    "tin": ("interval", "interval", "a calendar interval is no one number"),
    "+ud": ("union", "union", "its values are of several types"),
    "+us": ("union", "union", "its values are of several types"),
    "+r": ("runs", "run-end encoded", "its values are runs"),
    "+vl": ("view", "list view", "its lists do not lie one after the other"),
    "+vL": ("view", "list view", "its lists do not lie one after the other"),
    "_pli128": ("int128", "int128", "torch has no 128-bit integers"),
    "_plu128": ("int128", "uint128", "torch has no 128-bit integers"),
}


def _refused(origin: Origin, kind: _Field, length: int) -> Refused:
    unknown = ("unknown", kind.format, f"its Arrow format {kind.format!r} is not known here")
    name, text, fact = _REFUSED.get(kind.format.partition(":")[0], unknown)
    hint = origin.hints.get(name, "a column of numbers, booleans or times")
    return Refused(origin.library, text, (length,), fact, hint)
