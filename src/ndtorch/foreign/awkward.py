"""awkward: ragged and nested arrays, taken layout by layout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import UnsupportedTypeError
from .columnar import Split, array_as, made, shape_of, split_rows, with_missing
from .forms import Foreign, Inner, Memory, Refused, Restore, Unread, ragged, table
from .pyarrow import columns_of, rows_apart, rows_missing, split_mask

AnyArray = npt.NDArray[Any]


def _ak() -> Any:
    return sys.modules["awkward"]


# --- from awkward


def take(source: Any, inner: Inner) -> Foreign:
    """Take an array, a record, a builder or a layout of awkward; what lies side by side is shared."""
    ak = _ak()
    if isinstance(source, ak.ArrayBuilder):
        copied: Foreign = made(_take(source.snapshot().layout), "a builder hands out a copy of what it has")
        return copied
    if isinstance(source, ak.Record):
        return _record(source, inner)
    layout = source if isinstance(source, ak.contents.Content) else source.layout
    backend = layout.backend.name
    if backend != "cpu":
        fact, hint = f"its backend is {backend}", "awkward.to_backend(source, 'cpu')"
        if backend == "typetracer":
            fact, hint = "a typetracer has a type but no values", "the array that it was made for"
        return Refused("awkward", "array", (), fact, hint)
    return _take(layout)  # type: ignore[no-any-return]


def _record(source: Any, inner: Inner) -> Foreign:
    """The fields of one record: numbers, and arrays where a field is a list."""
    values = {name: source[name] for name in source.fields}
    for name, value in values.items():
        if value is None or isinstance(value, str | bytes):
            fact = f"its field {name!r} is {'missing' if value is None else 'text'}"
            return Refused("awkward", "record", (len(values),), fact, "the other fields, as source[['x', 'y']]")
    return table("awkward", "record", 1, {name: inner(value) for name, value in values.items()})


def _take(layout: Any) -> Any:
    name = layout.parameter("__array__")
    length = layout.length
    if name in _TEXT:
        fact, hint = "torch has no text of varying length", "awkward.str.to_categorical(source) gives codes"
        return Refused("awkward", "string", (length,), fact, hint)
    if layout.is_union:
        hint = "awkward.enforce_type(source, 'float64') where all are numbers"
        return Refused("awkward", "union", (length,), "its values are of several types", hint)
    if name == "categorical":
        return _codes(layout)
    return next(take for kind, take in _TAKES if getattr(layout, kind))(layout)


_TEXT = ("string", "bytestring", "char", "byte")


def _codes(layout: Any) -> Any:
    """Where each value stands among the categories; -1 is a missing one."""
    index = np.asarray(layout.index.data)
    note = "these are the codes of awkward.categories(source)"
    return _where(Memory("awkward", index, note=note), index < 0 if layout.is_option else None)


def _where(form: Any, mask: AnyArray | None) -> Any:
    """The same with what the mask says missing."""
    count = 0 if mask is None else int(np.count_nonzero(mask))
    if mask is None or not count:
        return form
    reason = "its mask is made of an index or of bits"
    return with_missing(
        form, Unread("awkward", mask.dtype, mask.shape, reason, lambda: mask), (count, (int(np.argmax(mask)),))
    )


def _numbers(layout: Any) -> Foreign:
    return Memory("awkward", np.asarray(layout.data))


def _unknown(layout: Any) -> Foreign:
    return Memory("awkward", np.empty(0))  # as awkward.to_numpy has it


def _regular(layout: Any) -> Any:
    return split_rows(_take(layout.content[: layout.length * layout.size]), layout.length, layout.size)


def _lists(layout: Any) -> Any:
    starts, stops = np.asarray(layout.starts.data), np.asarray(layout.stops.data)
    reason = ""
    if layout.length and not np.array_equal(starts[1:], stops[:-1]):
        reason = "its lists do not lie one after the other"
        layout = layout.to_packed()
        starts, stops = np.asarray(layout.starts.data), np.asarray(layout.stops.data)
    offsets = np.append(starts, stops[-1:]).astype(np.int64) if layout.length else np.zeros(1, np.int64)
    content = _take(layout.content[offsets[0] : offsets[-1]])
    return ragged("awkward", "list", made(content, reason) if reason else content, offsets - offsets[0])


def _columns(layout: Any) -> Foreign:
    columns = {name: _take(layout.content(name)[: layout.length]) for name in layout.fields}
    return table("awkward", "record", layout.length, columns)


def _unmasked(layout: Any) -> Any:
    return _take(layout.content)


def _optional(layout: Any) -> Any:
    if not hasattr(layout, "index") and not hasattr(layout, "mask"):
        return _unmasked(layout)
    mask = np.asarray(layout.mask_as_bool(valid_when=False))[: layout.length]
    if not hasattr(layout, "index"):
        return _where(_take(layout.content[: layout.length]), mask)
    index = np.maximum(np.asarray(layout.index.data), 0)
    if layout.content.is_unknown:
        return Refused("awkward", "?unknown", (layout.length,), "all of it is missing and has no dtype", _WITH_TYPE)
    content = layout.content if layout.content.length else layout.content.form.length_one_array(highlevel=False)
    return _where(_gathered(content, index, "its values are packed, without the missing ones"), mask)


_WITH_TYPE = "awkward.enforce_type(source, '?float64') gives it a dtype"


def _picked(layout: Any) -> Any:
    return _gathered(layout.content, np.asarray(layout.index.data), "its values are picked by an index")


def _gathered(content: Any, index: AnyArray, reason: str) -> Any:
    """Elements of a content by their places, where there is no other way to them."""
    form = _take(content)
    if isinstance(form, Memory):
        array: Any = form.array
        shape = (len(index), *shape_of(form)[1:])
        return Unread("awkward", array.dtype, shape, reason, lambda: array[index])
    if isinstance(form, Refused):
        return form
    return made(_take(_ak().to_packed(content[index], highlevel=False)), reason)


_TAKES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("is_numpy", _numbers),
    ("is_unknown", _unknown),
    ("is_option", _optional),
    ("is_regular", _regular),
    ("is_list", _lists),
    ("is_record", _columns),
    ("is_indexed", _picked),
)


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Make of tensors an array of the type of an example.

    Raises:
        ShapeMismatchError: The fields or sizes are others than the example's.
        UnsupportedTypeError: The example is a builder or of a type that no tensor is made of.
    """
    ak = _ak()
    if isinstance(like, ak.contents.Content):
        return _built(source, like, inner, "")
    if isinstance(like, ak.Array):
        return ak.Array(_built(source, like.layout, inner, ""), behavior=like.behavior, attrs=like.attrs)
    if isinstance(like, ak.Record):
        columns = columns_of(source, like.fields, inner)
        return ak.Record({name: inner(columns[name], like[name], f"[{name!r}]") for name in like.fields})
    raise UnsupportedTypeError("to_numpy", "like= cannot be an awkward.ArrayBuilder", hint="like=builder.snapshot()")


def _built(source: Any, like: Any, inner: Restore, path: str) -> Any:
    contents = _ak().contents
    words = {"parameters": like.parameters}
    source, mask = split_mask(source, inner, path)
    if like.parameter("__array__") == "categorical":
        return _categorical(source, mask, like, inner, path)
    if like.parameter("__array__") in _TEXT or like.is_union or (like.is_unknown and len(source)):
        raise UnsupportedTypeError("to_numpy", f"like= cannot be of type {like.form.type}", hint="an array of numbers")
    if like.is_option:
        return _built_option(source, mask, like, inner, path)
    if mask is not None and not (like.is_regular and mask.ndim > 1):
        raise UnsupportedTypeError("to_numpy", f"like= has no missing values: {like.form.type}", hint="an option type")
    if like.is_numpy:
        array = array_as(source, like.dtype, inner, path)
        return contents.NumpyArray(array, **words)
    if like.is_regular:
        return _built_rows(source, mask, like, inner, path)
    if like.is_list:
        return _built_lists(source, like, inner, path)
    if like.is_record:
        columns = columns_of(source, like.fields, inner)
        parts = [_built(columns[name], like.content(name), inner, f"{path}[{name!r}]") for name in like.fields]
        return contents.RecordArray(parts, None if like.is_tuple else like.fields, None if parts else 0, **words)
    return _built(source, like.content, inner, path) if like.is_indexed else like


def _built_rows(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    flat, _, count = rows_apart(source, None, like.size, str(like.form.type), inner, path)
    if mask is not None:  # of elements alone: this type has no missing rows
        flat = Split(flat, mask.reshape(-1, *mask.shape[2:]))
    content = _built(flat, like.content, inner, path)
    return _ak().contents.RegularArray(content, like.size, count, parameters=like.parameters)


def _built_option(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    """The same kind of option as the example's; a row of which every element is missing is missing itself."""
    ak = _ak()
    gone = rows_missing(mask)
    if mask is not None and gone is not None and mask.ndim > 1:
        rest = mask & ~gone.reshape(-1, *(1 for _ in mask.shape[1:]))
        source = Split(source, rest) if rest.any() else source
    content = _built(source, like.content, inner, path)
    gone = np.zeros(content.length, bool) if gone is None else np.ascontiguousarray(gone)
    words = {"parameters": like.parameters}
    if isinstance(like, ak.contents.UnmaskedArray) and not gone.any():
        return ak.contents.UnmaskedArray(content, **words)
    if isinstance(like, ak.contents.ByteMaskedArray | ak.contents.BitMaskedArray):
        result = ak.contents.ByteMaskedArray(ak.index.Index8(gone.view(np.int8)), content, False, **words)
        is_bits = isinstance(like, ak.contents.BitMaskedArray)
        return result.to_BitMaskedArray(like.valid_when, like.lsb_order) if is_bits else result
    index = np.where(gone, -1, np.arange(content.length))
    return ak.contents.IndexedOptionArray(ak.index.Index64(index), content, **words)


def _categorical(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    codes = np.array(array_as(source, like.index.data.dtype, inner, path))
    if mask is not None:
        codes[mask] = -1
    return type(like)(type(like.index)(codes), like.content, parameters=like.parameters)


def _built_lists(source: Any, like: Any, inner: Restore, path: str) -> Any:
    ak = _ak()
    pieces = [_built(piece, like.content, inner, f"{path}[{i}]") for i, piece in enumerate(source)]
    offsets = np.concatenate([[0], np.cumsum([piece.length for piece in pieces])]).astype(np.int64)
    content = ak.concatenate(pieces, highlevel=False) if pieces else like.content[0:0]
    return ak.contents.ListOffsetArray(ak.index.Index64(offsets), content, parameters=like.parameters)


def wrap(array: AnyArray, like: Any) -> Any:
    """Give an array of numbers, booleans or times the class of an array of awkward."""
    ak = _ak()
    if array.ndim == 0 or array.dtype.kind not in "biufcMm" or not isinstance(like, ak.Array):
        return array
    return ak.Array(ak.contents.NumpyArray(array), behavior=like.behavior, attrs=like.attrs)
