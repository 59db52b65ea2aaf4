"""polars: series and data frames, through the Arrow interface that polars itself speaks; pyarrow is not needed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import ShapeMismatchError, UnsupportedTypeError
from .arrow import Origin, take_arrow
from .columnar import array_as
from .forms import Foreign, Inner, Refused, Restore, table, with_remedy
from .pyarrow import columns_of, rows_apart, rows_missing, split_mask

AnyArray = npt.NDArray[Any]


_ORIGIN = Origin(
    "polars",
    {
        "string": "series.to_list() keeps text, series.cast(polars.Categorical) gives codes",
        "binary": "series.to_list()",
        "decimal": "series.cast(polars.Float64) rounds",
        "null": "series.cast(polars.Float64) gives it a dtype",
        "int128": "series.cast(polars.Int64) where they fit",
    },
    codes="these are the codes of series.to_physical()",
)


def _pl() -> Any:
    return sys.modules["polars"]


# --- from polars


def take(source: Any, inner: Inner) -> Foreign:
    """Take a series or a data frame; values are shared from its buffers."""
    pl = _pl()
    if isinstance(source, pl.LazyFrame):
        return Refused("polars", "LazyFrame", (), "a lazy frame has no values yet", "source.collect()")
    if isinstance(source, pl.DataFrame):
        columns = {name: inner(source[name]) for name in source.columns}
        return table("polars", "DataFrame", source.height, columns)
    if _holds(source.dtype, pl.Object):  # polars hands out their addresses as if they were values
        fact = "its elements are Python objects"
        return Refused("polars", "Object", (len(source),), fact, "series.to_list() gives the objects")
    if _holds(source.dtype, pl.Categorical, pl.Enum):  # Arrow's codes would be made anew for each chunk
        return take_arrow(source, _ORIGIN, codes=source.to_physical())
    return with_remedy(take_arrow(source, _ORIGIN), "series.fill_null(value) fills them")


def _holds(dtype: Any, *wanted: Any) -> bool:
    """Whether a dtype is one of those, or has one inside."""
    inside = [
        *(getattr(dtype, name, None) for name in ("inner", "key", "value")),
        *(part.dtype for part in getattr(dtype, "fields", ())),
    ]
    return _is(dtype, *wanted) or any(_holds(part, *wanted) for part in inside if part is not None)


def _is(dtype: Any, *classes: Any) -> bool:
    """Whether a dtype is of one of those classes; ``==`` would compare what it is of as well."""
    return dtype.base_type() in classes


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Make of tensors a series or frame of the names and dtypes of an example; polars copies.

    Raises:
        ShapeMismatchError: The columns or sizes are others than the example's.
        UnsupportedTypeError: The example is of a dtype that no tensor is made of.
    """
    pl = _pl()
    if isinstance(like, pl.LazyFrame):
        return restore(source, like.collect(), inner).lazy()
    if isinstance(like, pl.DataFrame):
        columns = columns_of(source, like.columns, inner)
        return pl.DataFrame(
            [_series(name, columns[name], like[name].dtype, inner, f"[{name!r}]") for name in columns_in(like)]
        )
    return _series(like.name, source, like.dtype, inner, "")


def columns_in(like: Any) -> list[str]:
    """The names of the columns of a frame, in order."""
    return list(like.columns)


def _series(name: str, source: Any, dtype: Any, inner: Restore, path: str) -> Any:
    pl = _pl()
    if isinstance(source, pl.Series) and source.dtype == dtype:
        return source.alias(name)
    source, mask = split_mask(source, inner, path)
    if _is(dtype, pl.Struct):
        columns = columns_of(source, [part.name for part in dtype.fields], inner)
        parts = [
            _series(part.name, columns[part.name], part.dtype, inner, f"{path}[{part.name!r}]") for part in dtype.fields
        ]
        result = pl.DataFrame(parts).to_struct(name)
    elif _is(dtype, pl.List):
        pieces = [_series("", piece, dtype.inner, inner, f"{path}[{i}]") for i, piece in enumerate(source)]
        result = pl.Series(name, pieces, dtype=dtype)
    elif getattr(dtype, "is_extension", bool)():
        result = _series(name, source, dtype.ext_storage(), inner, path).ext.to(dtype)
    elif _is(dtype, getattr(pl, "Map", None)):
        entries = pl.Struct({"key": dtype.key, "value": dtype.value})
        result = _series(name, source, pl.List(entries), inner, path).cast(dtype)
    elif _is(dtype, pl.Array):
        return _rows(name, source, mask, dtype, inner, path)
    else:
        result = _numbers(name, array_as(source, _dtype_of(dtype), inner, path), dtype)
    return result if mask is None else _without(result, rows_missing(mask))


def _without(series: Any, mask: Any) -> Any:
    """The same with nulls where the mask is True."""
    pl = _pl()
    if not mask.any():
        return series
    nulls = pl.Series(series.name, [None], dtype=series.dtype).new_from_index(0, len(series))
    return series.zip_with(pl.Series(~mask), nulls)


def _numbers(name: str, array: AnyArray, dtype: Any) -> Any:
    pl = _pl()
    if array.ndim != 1:
        raise ShapeMismatchError("to_numpy", f"like= is of dtype {dtype}", expected="1 dimension", got=array.ndim)
    absent = np.isnat(array) if array.dtype.kind in "Mm" else np.zeros(0, bool)
    if absent.any():  # polars has no NaT, it has nulls
        return _without(_numbers(name, np.where(absent, np.zeros((), array.dtype), array), dtype), absent)
    numbers = np.ascontiguousarray(array.view(np.int64) if array.dtype.kind in "Mm" else array)
    series = pl.Series(name, numbers)
    if _is(dtype, pl.Categorical, pl.Enum):
        return series.cat.to(dtype) if hasattr(series.cat, "to") else series.cast(dtype)
    return series.cast(pl.Int32).cast(dtype) if _is(dtype, pl.Date) else series.cast(dtype)


def _dtype_of(dtype: Any) -> np.dtype[Any]:
    """NumPy's dtype for the numbers of a dtype, as `take` gives it."""
    pl = _pl()
    if _is(dtype, pl.Date):
        return np.dtype("M8[D]")
    if _is(dtype, pl.Datetime, pl.Duration):
        return np.dtype(f"{'M' if _is(dtype, pl.Datetime) else 'm'}8[{dtype.time_unit}]")
    if _is(dtype, pl.Time):
        return np.dtype("m8[ns]")
    if _is(dtype, pl.Categorical, pl.Enum):
        dtype = pl.Series([], dtype=dtype).to_physical().dtype
    if _is(dtype, pl.Boolean) or (dtype.is_numeric() and not dtype.is_decimal()):
        numbers: np.dtype[Any] = pl.Series([], dtype=dtype).to_numpy().dtype
        return numbers
    raise UnsupportedTypeError(
        "to_numpy", f"like= cannot be of dtype {dtype}", hint="a series of numbers, booleans or times"
    )


def _rows(name: str, source: Any, mask: AnyArray | None, dtype: Any, inner: Restore, path: str) -> Any:
    """Rows of equal length; one of which every element is missing is missing itself."""
    width = dtype.shape[0]
    flat, gone, count = rows_apart(source, mask, width, str(dtype), inner, path)
    content = _series(name, flat, dtype.inner, inner, path)
    if dtype.inner.is_nested():  # polars reshapes what is innermost, and forgets which rows are missing
        result = _pl().Series(name, [content[i * width : (i + 1) * width] for i in range(count)], dtype=dtype)
    else:
        result = content.reshape((count, width)).cast(dtype)
    return result if gone is None else _without(result, gone)


def wrap(array: AnyArray, like: Any) -> Any:
    """Give a 1-d array of numbers, booleans or times the class and name of a series."""
    pl = _pl()
    if array.ndim != 1 or array.dtype.kind not in "biufMm" or not isinstance(like, pl.Series):
        return array
    return pl.Series(like.name, array)
