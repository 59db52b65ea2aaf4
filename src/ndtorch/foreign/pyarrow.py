"""pyarrow: arrays, chunked arrays, tables, record batches, scalars and tensors."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import ShapeMismatchError, UnsupportedTypeError
from .arrow import Origin, duplicate_names, take_arrow
from .columnar import Split, array_as, flat_rows, values_of
from .forms import Foreign, Inner, Memory, Refused, Restore, Unread, table, with_remedy

AnyArray = npt.NDArray[Any]


_ORIGIN = Origin(
    "pyarrow",
    {
        "string": "source.to_pylist() keeps text, source.dictionary_encode() gives codes",
        "binary": "source.dictionary_encode() gives codes, source.cast(pyarrow.binary(k)) bytes where all have k",
        "decimal": "source.cast('float64') rounds",
        "null": "source.cast('float64') gives it a dtype",
        "interval": "source.to_pylist()",
        "union": "source.field(i) gives the values of one type",
        "runs": "pyarrow.compute.run_end_decode(source)",
        "view": "pyarrow.array(source.to_pylist(), pyarrow.list_(source.type.value_type))",
    },
    codes="these are the codes of source.dictionary",
    one_dictionary=True,
)


def _pa() -> Any:
    return sys.modules["pyarrow"]


# --- from pyarrow


def take(source: Any, inner: Inner) -> Foreign:
    """Take an object of pyarrow; values are shared from its buffers."""
    pa = _pa()
    if isinstance(source, pa.Scalar):
        return _scalar(source, inner)
    if isinstance(source, pa.Tensor):
        return Memory("pyarrow", source.to_numpy())
    if isinstance(source, pa.RecordBatchReader):
        fact = "reading a stream uses it up"
        return Refused("pyarrow", "RecordBatchReader", (), fact, "source.read_all() gives a table")
    if not source.is_cpu:
        fact = "its buffers are not in the memory of the CPU"
        return Refused("pyarrow", _text(source), (len(source),), fact, _TO_CPU)
    if isinstance(source, pa.Table | pa.RecordBatch):
        return _columns(source, inner)
    if isinstance(source, pa.ChunkedArray) and source.num_chunks > 1:
        source = source.unify_dictionaries()
    return with_remedy(take_arrow(source, _ORIGIN), "source.fill_null(value) fills them")


_TO_CPU = "source.copy_to(pyarrow.default_cpu_memory_manager())"


def take_sparse(source: Any, inner: Inner) -> Foreign:
    """Refuse a sparse tensor of pyarrow: scipy's are taken."""
    name = type(source).__name__
    fact = "pyarrow's sparse tensors are not read here"
    hint = "source.to_tensor()" + ("" if name == "SparseCSFTensor" else " or source.to_scipy()")
    return Refused("pyarrow", name, tuple(source.shape), fact, hint)


def _text(source: Any) -> str:
    return str(getattr(source, "type", type(source).__name__))


def _columns(source: Any, inner: Inner) -> Foreign:
    names = source.schema.names
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        return duplicate_names("pyarrow", type(source).__name__, source.shape, twice)
    columns = {name: inner(column) for name, column in zip(names, source.columns, strict=True)}
    return table("pyarrow", type(source).__name__, source.num_rows, columns)


def _scalar(source: Any, inner: Inner) -> Foreign:
    pa = _pa()
    if isinstance(source, pa.StructScalar) and source.is_valid:
        return table("pyarrow", "struct", 1, {name: inner(source[name]) for name in source})
    array = inner(pa.repeat(source, 1))
    if isinstance(array, Memory | Unread):
        value = values_of(array)[0]
        reason = "a scalar has no array memory to share"
        return Unread("pyarrow", value.dtype, value.shape, reason, lambda: np.array(value), note=array.note)
    if array.form == "ragged" and not isinstance(source, pa.MapScalar):
        return inner(source.values)  # type: ignore[no-any-return]
    fact = "it is missing" if not source.is_valid else "it is made of parts"
    return Refused("pyarrow", str(source.type), (), fact, "pyarrow.array([source], source.type)")


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Make of tensors an object of the type, names and dictionary of an example.

    Raises:
        ShapeMismatchError: The columns or sizes are others than the example's.
        UnsupportedTypeError: The example is of a type that no tensor is made of.
    """
    pa = _pa()
    if isinstance(like, pa.Table | pa.RecordBatch):
        names = like.schema.names
        columns = columns_of(source, names, inner)
        arrays = [_array(columns[name], like.column(name), inner, f"[{name!r}]") for name in names]
        return type(like).from_arrays(arrays, schema=like.schema)
    if isinstance(like, pa.ChunkedArray):
        return pa.chunked_array([_array(source, like, inner, "")], type=like.type)
    if isinstance(like, pa.Array):
        return _array(source, like, inner, "")
    if isinstance(like, pa.Tensor):
        example = np.empty(0, like.type.to_pandas_dtype())
        return pa.Tensor.from_numpy(np.asarray(inner(source, example)), dim_names=like.dim_names or None)
    if isinstance(like, pa.StructScalar):
        columns = columns_of(source, list(like), inner)
        return pa.scalar({name: inner(columns[name], like[name], f"[{name!r}]").as_py() for name in like}, like.type)
    if isinstance(like, pa.Scalar):
        value = np.asarray(inner(source, None))
        return _array(value.reshape(1, *value.shape), pa.repeat(like, 1), inner, "")[0]
    raise UnsupportedTypeError("to_numpy", f"like= cannot be a pyarrow.{type(like).__name__}", hint="an Array or Table")


def columns_of(source: Any, names: Sequence[str], inner: Restore) -> Any:
    """The columns of a dict, which must be those."""
    if isinstance(source, dict) and set(source) == set(names):
        return source
    got = list(source) if isinstance(source, dict) else type(source).__name__
    fact = "like= has other columns than the source"
    raise ShapeMismatchError("to_numpy", fact, expected=list(names), got=got, hint="to_torch(like) gives a dict")


def split_mask(source: Any, inner: Restore, path: str) -> tuple[Any, AnyArray | None]:
    """Data and mask of what may be a masked array or `Masked`."""
    if isinstance(source, np.ma.MaskedArray):
        return source.data, np.ma.getmaskarray(source)
    if isinstance(source, tuple) and hasattr(source, "mask"):
        return source[0], np.asarray(inner(source[1], None, path + ".mask"), bool)
    return source, None


def _array(source: Any, like: Any, inner: Restore, path: str) -> Any:
    """One array of the type of ``like``, an array or chunked array."""
    pa = _pa()
    if isinstance(like, pa.ChunkedArray):
        like = like.unify_dictionaries()
        like = like.chunk(0) if like.num_chunks else pa.array([], like.type)
    if isinstance(source, pa.Array) and source.type == like.type:
        return source
    source, mask = split_mask(source, inner, path)
    kind = like.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(source, mask, like, inner, path)
    if pa.types.is_dictionary(kind):
        codes = _flat(array_as(source, kind.index_type.to_pandas_dtype(), inner, path), mask, kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, like.dictionary, ordered=kind.ordered)
    if pa.types.is_struct(kind):
        return _struct(source, mask, like, inner, path)
    if pa.types.is_fixed_size_list(kind):
        return _rows(source, mask, like, inner, path)
    if _is_list(kind):
        return _lists(source, mask, like, inner, path)
    if pa.types.is_fixed_size_binary(kind):
        rows = _sized(array_as(source, np.uint8, inner, path), 2, kind)
        return _from_items(np.ascontiguousarray(rows), rows_missing(mask), kind, len(rows))
    return _flat(array_as(source, _dtype_of(kind), inner, path), mask, kind)


def _is_list(kind: Any) -> bool:
    types = _pa().types
    views = (types.is_list_view, types.is_large_list_view)
    return bool(
        types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind) or any(is_(kind) for is_ in views)
    )


def rows_missing(mask: AnyArray | None) -> AnyArray | None:
    """Which rows are missing: those of which every element is."""
    return mask if mask is None or mask.ndim == 1 else np.asarray(mask.all(axis=tuple(range(1, mask.ndim))))


def _dtype_of(kind: Any) -> np.dtype[Any]:
    """NumPy's dtype for the numbers of a type, as `take_arrow` gives it."""
    types = _pa().types
    if types.is_date32(kind):
        return np.dtype("M8[D]")
    if types.is_timestamp(kind) or types.is_date64(kind):
        return np.dtype(f"M8[{getattr(kind, 'unit', 'ms')}]")
    if types.is_time(kind) or types.is_duration(kind):
        return np.dtype(f"m8[{kind.unit}]")
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return dtype
    raise UnsupportedTypeError(
        "to_numpy", f"like= cannot be of type {kind}", hint="an array of numbers, booleans or times"
    )


def _sized(array: AnyArray, ndim: int, kind: Any) -> AnyArray:
    if array.ndim == ndim:
        return array
    raise ShapeMismatchError("to_numpy", f"like= is of type {kind}", expected=f"{ndim} dimensions", got=array.ndim)


def _flat(array: AnyArray, mask: AnyArray | None, kind: Any) -> Any:
    """Numbers, booleans or times, over the memory of an array where that is as Arrow has it."""
    array = np.ascontiguousarray(_sized(array, 1, kind))
    if array.dtype.kind == "b":
        return _from_items(np.packbits(array, bitorder="little"), mask, kind, len(array))
    if array.dtype.kind in "Mm":
        absent = np.isnat(array)
        mask = absent if mask is None and absent.any() else mask  # Arrow has no NaT, it has nulls
    numbers = array.view(np.int64) if array.dtype.kind in "Mm" else array
    narrow = kind.bit_width // 8
    if numbers.itemsize != narrow:
        numbers = _narrowed(numbers, mask, np.dtype(f"i{narrow}"), kind)
    return _from_items(numbers, mask, kind, len(array))


def _narrowed(numbers: AnyArray, mask: AnyArray | None, dtype: np.dtype[Any], kind: Any) -> AnyArray:
    narrow = numbers.astype(dtype)
    lost = narrow != numbers if mask is None else (narrow != numbers) & ~mask
    if lost.any():
        at = int(np.argmax(lost))
        raise ShapeMismatchError(
            "to_numpy", f"the time at index {at} does not fit {kind}", hint="a wider type in like="
        )
    return narrow


def _from_items(items: AnyArray, mask: AnyArray | None, kind: Any, length: int) -> Any:
    pa = _pa()
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(kind, length, [valid, pa.py_buffer(items)])


def _struct(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    pa = _pa()
    fields = list(like.type)
    columns = columns_of(source, [part.name for part in fields], inner)
    arrays = [
        _array(columns[part.name], like.field(i), inner, f"{path}[{part.name!r}]") for i, part in enumerate(fields)
    ]
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=None if mask is None else pa.array(mask))


def _rows(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    """Rows of equal length; one of which every element is missing is missing itself."""
    pa = _pa()
    kind = like.type
    flat, gone, count = rows_apart(source, mask, kind.list_size, str(kind), inner, path)
    if not kind.list_size:  # for which from_arrays would divide by it, and end the process
        return pa.array([None if gone is not None and gone[i] else [] for i in range(count)], kind)
    content = _array(flat, like.values, inner, path)
    return pa.FixedSizeListArray.from_arrays(content, type=kind, mask=None if gone is None else pa.array(gone))


def rows_apart(
    source: Any, mask: AnyArray | None, length: int, text: str, inner: Restore, path: str
) -> tuple[Any, AnyArray | None, int]:
    """What is in rows of equal length, which rows are missing as a whole, and how many there are.

    Raises:
        ShapeMismatchError: The rows have another length.
    """
    try:
        flat, count = flat_rows(source, length, lambda part: np.asarray(inner(part, None, path)))
    except ValueError as error:
        got = str(error).removeprefix("shape ")
        raise ShapeMismatchError("to_numpy", f"like= is of type {text}", expected=f"(n, {length})", got=got) from None
    gone = rows_missing(mask)
    if mask is not None and gone is not None and mask.ndim > 1:
        rest = (mask & ~gone.reshape(-1, *(1 for _ in mask.shape[1:]))).reshape(-1, *mask.shape[2:])
        flat = Split(flat, rest) if rest.any() else flat
    return flat, gone if gone is not None and gone.any() else None, count


def _lists(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    pa = _pa()
    kind = like.type
    if not isinstance(source, list | tuple):
        source = list(source)
    entries = like.values
    pieces = [_array(piece, entries, inner, f"{path}[{i}]") for i, piece in enumerate(source)]
    lengths = [len(piece) for piece in pieces]
    if mask is not None:
        pieces = [piece for piece, gone in zip(pieces, mask, strict=True) if not gone]
        lengths = [0 if gone else length for length, gone in zip(lengths, mask, strict=True)]
    content = pa.concat_arrays(pieces) if pieces else pa.array([], entries.type)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        gone = None if mask is None else pa.array(mask)
        return type(like).from_arrays(np.cumsum(lengths) - lengths, lengths, content, type=kind, mask=gone)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("i8" if pa.types.is_large_list(kind) else "i4")
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(kind, len(lengths), [valid, pa.py_buffer(offsets)], children=[content])


def _extension(source: Any, mask: AnyArray | None, like: Any, inner: Restore, path: str) -> Any:
    pa = _pa()
    kind = like.type
    if mask is not None:
        source = np.ma.MaskedArray(np.asarray(inner(source, None, path)), mask=mask)
    if kind.extension_name == "arrow.bool8":
        array = inner(source, None, path) if mask is None else source
        array = array.astype(np.int8)
        return pa.ExtensionArray.from_storage(kind, _array(array, like.storage, inner, path))
    if kind.extension_name == "arrow.fixed_shape_tensor":
        source = _tensors(source if mask is not None else np.asarray(inner(source, None, path)), kind)
    return pa.ExtensionArray.from_storage(kind, _array(source, like.storage, inner, path))


def _tensors(array: AnyArray, kind: Any) -> AnyArray:
    """Rows of numbers of tensors, in the order that their dimensions have in memory."""
    order = kind.permutation or range(len(kind.shape))
    expected = tuple(kind.shape[axis] for axis in order)
    if array.shape[1:] != expected:
        raise ShapeMismatchError("to_numpy", f"like= is of type {kind}", expected=("n", *expected), got=array.shape)
    back = np.argsort(order)
    return array.transpose(0, *(back + 1)).reshape(len(array), -1)


def wrap(array: AnyArray, like: Any) -> Any:
    """Give a 1-d array of numbers, booleans or times the class of an array of pyarrow."""
    pa = _pa()
    if array.ndim != 1 or array.dtype.kind not in "biufMm" or not isinstance(like, pa.Array | pa.ChunkedArray):
        return array
    made = pa.array(array)
    return pa.chunked_array([made]) if isinstance(like, pa.ChunkedArray) else made
