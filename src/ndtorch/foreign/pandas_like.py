"""The way back to pandas: a frame, series, index or extension array by example, over the memory of the tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._errors import NdtorchError, ShapeMismatchError, UnsupportedTypeError
from .forms import Restore
from .pandas import level_names

AnyArray = npt.NDArray[Any]


def _pandas() -> Any:
    return sys.modules["pandas"]


# --- like=


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Convert a source into what a pandas object is: dtypes, categories, zones, missing values, names, index.

    The index is kept where the lengths agree; else it becomes a fresh RangeIndex.
    """
    if hasattr(like, "columns"):
        return _frame(source, like, inner)
    if hasattr(like, "get_level_values"):
        return _index(source, like, inner)
    if hasattr(like, "iloc"):
        return _finished(_series(_values(source, like, inner), like), like)
    return _values(source, like, inner)


def _series(values: Any, like: Any) -> Any:
    return _pandas().Series(values, index=_index_for(len(values), like), name=like.name, dtype=like.dtype, copy=False)


def _index_for(length: int, like: Any) -> Any:
    return like.index if length == len(like) else _pandas().RangeIndex(length)


def _finished(result: Any, like: Any) -> Any:
    """The subclass and attrs of the example."""
    if type(result) is not type(like):
        result = like._constructor(result, copy=False)
    return result.__finalize__(like)


def _frame(source: Any, like: Any, inner: Restore) -> Any:
    if not isinstance(source, Mapping | torch.Tensor | np.ndarray):
        source = inner(source, None)
    pandas = _pandas()
    if not isinstance(source, Mapping):
        source = _matrix(source, like, inner)
        if all(dtype == source.dtype for dtype in like.dtypes):
            frame = pandas.DataFrame(source, _index_for(len(source), like), like.columns, copy=False)
            return _finished(frame, like)
        parts = [source[:, i] for i in range(source.shape[1])]
    else:
        _check_names(source, list(like.columns), "DataFrame", "columns")
        parts = [source[name] for name in like.columns]
    values = []
    for part, (name, column) in zip(parts, like.items(), strict=True):
        values.append(_part(part, column, name, inner))
    index = _index_for(_common_length(values, like.columns), like) if values else like.index
    frame = pandas.DataFrame(dict(enumerate(values)), index=index, copy=False)
    frame.columns = like.columns
    return _finished(frame, like)


def _matrix(source: Any, like: Any, inner: Restore) -> AnyArray:
    matrix = inner(source, None)
    if isinstance(matrix, np.ndarray) and matrix.ndim == 2 and matrix.shape[1] == like.shape[1]:
        return matrix
    got = list(matrix.shape) if isinstance(matrix, np.ndarray) else f"a {type(matrix).__name__}"
    fact = f"like= is a DataFrame of {like.shape[1]} columns"
    expected = f"a dict of columns, or a shape of [rows, {like.shape[1]}]"
    raise ShapeMismatchError("to_numpy", fact, expected=expected, got=got)


def _check_names(source: Mapping[Any, Any], names: list[Any], kind: str, parts: str) -> None:
    known = set(names)
    missing = [name for name in names if name not in source]
    unknown = [name for name in source if name not in known]
    if missing or unknown or len(known) != len(names):
        fact = f"like= is a {kind} with other {parts}"
        fact += f": {missing} missing" if missing else ""
        fact += f": {unknown} unknown" if unknown else ""
        hint = f"to_torch(source) gives a dict with the same {parts}"
        raise ShapeMismatchError("to_numpy", fact, expected=names, got=list(source), hint=hint)


def _part(source: Any, like: Any, name: Any, inner: Restore) -> Any:
    try:
        return _values(source, like, inner)
    except NdtorchError as error:
        raise error.at(f"[{name!r}]") from None


def _common_length(values: list[Any], names: Any) -> int:
    for name, column in zip(names, values, strict=True):
        if len(column) != len(values[0]):
            fact = f"the columns {names[0]!r} and {name!r} have different lengths"
            raise ShapeMismatchError("to_numpy", fact, expected=len(values[0]), got=len(column))
    return len(values[0])


# --- indexes


def _index(source: Any, like: Any, inner: Restore) -> Any:
    pandas = _pandas()
    if hasattr(like, "levels"):
        return _multi_index(source, like, inner)
    values = _values(source, like, inner)
    if hasattr(like, "step") and hasattr(like, "start") and len(values) == len(like) and (values == like).all():
        return like
    index = pandas.Index(values, name=like.name, dtype=like.dtype, copy=False)
    if getattr(like, "freq", None) is not None and index.equals(like):
        return like  # pandas would have to prove the frequency anew
    return index


def _multi_index(source: Any, like: Any, inner: Restore) -> Any:
    names = level_names(like)
    if not isinstance(source, Mapping):
        source = inner(source, None)
    _check_names(source, names, "MultiIndex", "levels")
    levels, codes = [], []
    for i, name in enumerate(names):
        level, places = _factorized(source[name], like.levels[i], name, inner)
        levels.append(level)
        codes.append(places)
    _common_length(codes, names)
    return _pandas().MultiIndex(levels=levels, codes=codes, names=like.names)


def _factorized(source: Any, like: Any, name: Any, inner: Restore) -> tuple[Any, AnyArray]:
    """The distinct values of a level and where they stand; -1 for what is missing."""
    data, mask = _parts_of(source, inner)
    values = _part(data, like, name, inner)
    if mask is None:
        codes, level = _pandas().factorize(values, sort=True)
        return level, codes
    missing = _mask_like(mask, len(values), inner)
    places = np.full(len(values), -1, np.int64)
    places[~missing], level = _pandas().factorize(values[~missing], sort=True)
    return level, places


# --- columns


def _values(source: Any, like: Any, inner: Restore) -> Any:
    """One column: an array where the example has a dtype of NumPy's, else an extension array of its dtype."""
    dtype = like.dtype
    if isinstance(dtype, np.dtype):
        values = _numbers(source, dtype, inner)
        is_column = hasattr(like, "name")
        return values if is_column else _pandas().array(values, dtype=dtype, copy=False)
    return _extension(source, like.array if hasattr(like, "array") else like, inner)


def _numbers(source: Any, dtype: np.dtype[Any], inner: Restore) -> AnyArray:
    """Values of a dtype that has no missing ones."""
    data, mask = _parts_of(source, inner)
    size = len(data) if dtype.kind == "O" and hasattr(data, "__len__") else 0  # Python objects want as many examples
    values: AnyArray = inner(data, np.empty(size, dtype))
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise _not_one_column(values)
    if mask is not None and _mask_like(mask, len(values), inner).any():
        fact = f"like= is {dtype}, which has no missing values, but the source has some"
        raise UnsupportedTypeError("to_numpy", fact, hint="give like= the object that was converted")
    return values


def _not_one_column(values: Any) -> ShapeMismatchError:
    got = f"shape {list(values.shape)}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
    fact = "a column, series or index is one array of one dimension"
    return ShapeMismatchError("to_numpy", fact, expected="shape [n]", got=got)


def _parts_of(source: Any, inner: Restore) -> tuple[Any, Any]:
    """Values and mask of a source that has one, such as `Masked`; else the source and None."""
    if not isinstance(source, tuple | torch.Tensor | np.ndarray):
        source = inner(source, None)
    if isinstance(source, np.ma.MaskedArray):
        return source.data, np.ma.getmaskarray(source)
    if isinstance(source, tuple) and getattr(source, "_fields", ()) == ("data", "mask"):
        return source[0], source[1]
    return source, None


def _mask_like(mask: Any, length: int, inner: Restore) -> AnyArray:
    values: AnyArray = inner(mask, np.empty(0, bool))
    if values.shape != (length,):
        raise ShapeMismatchError("to_numpy", "data and mask differ", expected=[length], got=list(values.shape))
    return values


# --- extension arrays


def _extension(source: Any, like: Any, inner: Restore) -> Any:
    dtype, name = like.dtype, type(like.dtype).__name__
    pandas = _pandas()
    if name == "NumpyEADtype":
        return type(like)(_numbers(source, dtype.numpy_dtype, inner))
    if name == "DatetimeTZDtype":
        times = _numbers(source, np.dtype(f"M8[{like.unit}]"), inner)
        return pandas.array(times.view(np.int64), dtype=dtype, copy=False)
    if name == "CategoricalDtype":
        return _categorical(source, like, inner)
    if name == "PeriodDtype":
        ordinals, missing = _optional(source, np.dtype(np.int64), inner)
        return type(like)(_without(ordinals, missing, _NAT), dtype=dtype)
    if name == "SparseDtype":
        return type(like)(_numbers(source, dtype.subtype, inner), fill_value=like.fill_value, kind=like.kind)
    if name == "ArrowDtype":
        return _arrow(source, like, inner)
    if hasattr(like, "_data") and hasattr(like, "_mask"):
        return _nullable(source, like, inner)
    fact = f"like= cannot hold {dtype}"
    raise UnsupportedTypeError("to_numpy", fact, hint="columns that to_torch converts have a way back")


def _optional(source: Any, dtype: np.dtype[Any], inner: Restore) -> tuple[AnyArray, AnyArray | None]:
    """Values of a dtype and, where the source has one, their mask."""
    data, mask = _parts_of(source, inner)
    values = _numbers(data, dtype, inner)
    return values, None if mask is None else _mask_like(mask, len(values), inner)


def _without(values: AnyArray, missing: AnyArray | None, stand_in: int) -> AnyArray:
    """The values with what pandas puts in place of a missing one; copied only when there is another."""
    if missing is None or (values[missing] == stand_in).all():
        return values
    return np.where(missing, values.dtype.type(stand_in), values)


_NAT = -(2**63)


def _categorical(source: Any, like: Any, inner: Restore) -> Any:
    data, mask = _parts_of(source, inner)
    plain = inner(data, None)
    if isinstance(plain, np.ndarray) and plain.dtype.kind == "f":
        plain = _whole(np.where(np.isnan(plain), -1, plain), np.dtype(np.int64))
    is_signed = isinstance(plain, np.ndarray) and plain.dtype.kind == "i"
    codes = _numbers(plain, plain.dtype if is_signed else np.dtype(np.int64), inner)
    if mask is not None:
        codes = _without(codes, _mask_like(mask, len(codes), inner), -1)
    count = len(like.categories)
    if codes.size and not -1 <= codes.min() <= codes.max() < count:
        fact = f"like= has {count} categories and codes lie outside of them"
        got = f"{codes.min()} to {codes.max()}"
        raise NdtorchError("to_numpy", fact, expected=f"codes from -1 to {count - 1}", got=got)
    # Narrowed only now, when none of them can wrap around to another category.
    return type(like).from_codes(codes.astype(like.codes.dtype, copy=False), dtype=like.dtype)


def _nullable(source: Any, like: Any, inner: Restore) -> Any:
    """Values and mask; a NaN in a source without a mask stands for a missing value, as in pandas' own constructors."""
    data, mask = _parts_of(source, inner)
    dtype = like._data.dtype
    if mask is None:
        plain = inner(data, None)
        if not isinstance(plain, np.ndarray):
            raise _not_one_column(plain)
        mask = np.isnan(plain) if plain.dtype.kind == "f" else np.zeros(plain.shape, bool)
        data = data if dtype.kind == "f" else _whole(np.where(mask, plain.dtype.type(0), plain), dtype)
    values = _numbers(data, dtype, inner)
    missing = _mask_like(mask, len(values), inner)
    return type(like)(values, missing)


def _whole(values: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Integers that were made floats for the sake of NaN, as integers again; the floats where one is none."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(invalid="ignore"):
        integers = values.astype(dtype)
    return integers if (integers == values).all() else values


def _arrow(source: Any, like: Any, inner: Restore) -> Any:
    kind, pyarrow = like.dtype.pyarrow_dtype, sys.modules["pyarrow"]
    dtype = like.dtype.numpy_dtype
    is_plain = dtype.kind in "biufmM" and (dtype.kind == "b" or dtype.itemsize * 8 == kind.bit_width)
    if not is_plain:
        return type(like)(inner(source, like.__arrow_array__()))
    values, missing = _optional(source, dtype, inner)
    return type(like)(pyarrow.array(values, type=kind, mask=missing))


# --- results of functions


def wrap(array: AnyArray, like: Any) -> Any:
    """Give an array the index of an example of the same length, and its columns where it has as many."""
    pandas = _pandas()
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or len(array) != len(like):
        return array
    if hasattr(like, "columns"):
        if array.ndim == 1:
            return pandas.Series(array, index=like.index, copy=False)
        if array.shape != like.shape:
            return array
        return _finished(pandas.DataFrame(array, like.index, like.columns, copy=False), like)
    if array.ndim == 2:
        return array
    if hasattr(like, "iloc"):
        return _finished(pandas.Series(array, index=like.index, name=like.name, copy=False), like)
    return pandas.Index(array, name=like.name, copy=False) if hasattr(like, "get_level_values") else array
