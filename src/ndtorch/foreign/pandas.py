"""pandas: frames, series and indexes column by column, and the arrays behind them; `pandas_like.py` is the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .forms import Foreign, Inner, Memory, Refused, Unread, masked, table, with_remedy

AnyArray = npt.NDArray[Any]

_FROZEN = "pandas hands out its memory read-only: other frames and indexes may share it"
_CODES = "integer codes into its categories, which like= restores"
_UTC = "times in UTC, without their zone, which like= restores"


def take(source: Any, inner: Inner) -> Foreign:
    """Take a DataFrame, Series, Index or ExtensionArray.

    Frames, series and indexes share memory among themselves and count on nobody to write there: their memory is
    read-only, whatever an array over it says. An ExtensionArray that stands alone may be written.
    """
    if hasattr(source, "columns"):
        return _frame(source, inner)
    if hasattr(source, "get_level_values"):
        return _index(source, inner)
    if hasattr(source, "iloc"):
        return _column(source, "series", inner)
    return _extension(source, "array", inner)


def _frame(frame: Any, inner: Inner) -> Foreign:
    columns = frame.columns
    if not columns.is_unique:
        names = ", ".join(map(repr, dict.fromkeys(columns[columns.duplicated()])))
        hint = "frame.columns = [...] gives them names of their own, frame.to_numpy() makes one matrix"
        return Refused("pandas", "DataFrame", frame.shape, f"several of its columns have the name {names}", hint)
    taken = {name: _column(column, f"frame[{name!r}]", inner) for name, column in frame.items()}
    return table("pandas", "DataFrame", len(frame), taken)


def _column(column: Any, call: str, inner: Inner) -> Foreign:
    """Take a series or an index, which `call` says how to reach."""
    if isinstance(column.dtype, np.dtype):
        return _frozen(column.to_numpy())
    return _extension(column.array, call, inner, is_frozen=True)


def _frozen(array: AnyArray) -> Memory:
    return Memory("pandas", _read_only(array), note=_FROZEN)


def _read_only(array: AnyArray) -> AnyArray:
    view = array.view()
    view.flags.writeable = False
    return view


# --- indexes


def _index(index: Any, inner: Inner) -> Foreign:
    if hasattr(index, "codes") and hasattr(index, "levels"):
        return _multi_index(index, inner)
    if hasattr(index, "step") and hasattr(index, "start"):
        reason = "a RangeIndex is three numbers, its values are not in memory"
        start, stop, step = index.start, index.stop, index.step
        return Unread("pandas", index.dtype, index.shape, reason, lambda: np.arange(start, stop, step, dtype=np.int64))
    return _column(index, "index", inner)


def _multi_index(index: Any, inner: Inner) -> Foreign:
    """The values of each level by its name; by its number where names are missing or not unique."""
    names = level_names(index)
    levels = {name: _level(index, i, f"index.get_level_values({i})", inner) for i, name in enumerate(names)}
    return table("pandas", "MultiIndex", len(index), levels)


def level_names(index: Any) -> list[Any]:
    """Keys of the dict that a MultiIndex becomes."""
    names = list(index.names)
    return names if None not in names and len(set(names)) == len(names) else list(range(index.nlevels))


def _level(index: Any, i: int, call: str, inner: Inner) -> Foreign:
    level, codes = index.levels[i], np.asarray(index.codes[i])
    note = ""
    values = level.to_numpy()
    if not isinstance(level.dtype, np.dtype):
        taken = _extension(level.array, call, inner)
        if isinstance(taken, Refused):
            return taken
        note = taken.note
        values = taken.array if isinstance(taken, Memory) else values
    if values.dtype.kind == "O":
        hint = f"index.codes[{i}] gives codes into index.levels[{i}]"
        return Refused("pandas", "object", codes.shape, "its level holds Python objects", hint)
    missing = codes < 0
    reason = "a MultiIndex holds codes into its levels"
    unread = Unread("pandas", values.dtype, codes.shape, reason, lambda: _looked_up(values, codes), note=note)
    if not missing.any() or values.dtype.kind not in "biu":
        return unread
    return with_remedy(masked("pandas", unread, missing), f"{call}.fillna(value) fills them")


def _looked_up(values: AnyArray, codes: AnyArray) -> AnyArray:
    """Values by their codes; -1 stands for a missing one, which is NaN or NaT where there is one."""
    if not values.size:
        return np.full(codes.shape, _missing(values.dtype), values.dtype)
    result = values.take(codes, mode="wrap")
    if values.dtype.kind not in "biu":
        result[codes < 0] = _missing(values.dtype)
    return result


def _missing(dtype: np.dtype[Any]) -> Any:
    return np.array("NaT", dtype) if dtype.kind in "mM" else 0 if dtype.kind in "biu" else np.nan


# --- extension arrays


def _extension(array: Any, call: str, inner: Inner, *, is_frozen: bool = False) -> Foreign:
    remedy = f"{call}.fillna(value) fills them"
    if type(array.dtype).__name__ == "CategoricalDtype":  # which takes no value that is not one of its categories
        remedy = f"{call}.{'codes' if call in ('array', 'index') else 'cat.codes'} has -1 for them"
    return with_remedy(_values(array, call, inner, is_frozen=is_frozen), remedy)


def _values(array: Any, call: str, inner: Inner, *, is_frozen: bool) -> Foreign:
    dtype = array.dtype
    name = type(dtype).__name__
    is_frozen = is_frozen or getattr(array, "_readonly", False)
    if isinstance(dtype, np.dtype) or name == "NumpyEADtype":
        return _memory(_numpy_behind(array), is_frozen)
    if name == "DatetimeTZDtype":
        return _memory(array.asi8.view(f"M8[{array.unit}]"), is_frozen, _UTC)
    if name == "CategoricalDtype":
        return _categorical(array, is_frozen)
    if name == "PeriodDtype":
        note = f"the ordinals of {dtype}, which like= restores"
        ordinals = _memory(array.asi8, is_frozen, note)
        missing = array.isna()
        return masked("pandas", ordinals, missing, note=note) if missing.any() else ordinals
    if name == "SparseDtype":
        return _sparse(array)
    if name == "IntervalDtype":
        owner = call if call == "array" else f"{call}.array"
        hint = f"{owner}.left and {owner}.right convert"
        return Refused("pandas", str(dtype), array.shape, "an interval is two values", hint)
    if name == "StringDtype" or dtype.type is str:
        return _text(array, call)
    if name == "ArrowDtype":
        return _arrow(array, call, inner)
    if hasattr(array, "_data") and hasattr(array, "_mask") and hasattr(dtype, "numpy_dtype"):
        data = _memory(array._data, is_frozen)
        return masked("pandas", data, _read_only(array._mask) if is_frozen else array._mask, note=data.note)
    return _unknown(array, call)


def _memory(array: AnyArray, is_frozen: bool, note: str = "") -> Memory:
    if not is_frozen:
        return Memory("pandas", array, note=note)
    frozen = _frozen(array)
    return replace(frozen, note=f"{note}; {frozen.note}") if note else frozen


def _numpy_behind(array: Any) -> AnyArray:
    """The memory of an array of NumPy's own dtypes; read-only where pandas says that the array is."""
    values: AnyArray = array.to_numpy() if not hasattr(array, "_ndarray") else array._ndarray
    return _read_only(values) if getattr(array, "_readonly", False) else values


def _categorical(array: Any, is_frozen: bool) -> Foreign:
    codes = _memory(array.codes, is_frozen, _CODES)  # read-only by themselves: categories and codes belong together
    missing = array.codes == -1
    return masked("pandas", codes, missing, note=codes.note) if missing.any() else codes


def _sparse(array: Any) -> Foreign:
    dtype = array.dtype.subtype
    if not isinstance(dtype, np.dtype) or dtype.kind == "O":
        return Refused("pandas", str(array.dtype), array.shape, "its values are objects", "a dense array of numbers")

    def fill(dense: AnyArray) -> None:
        dense[...] = array.fill_value
        dense[array.sp_index.to_int_index().indices] = array.sp_values

    def read() -> AnyArray:
        dense = np.empty(array.shape, dtype)
        fill(dense)
        return dense

    reason = "it is sparse: only values that differ from its fill value are in memory"
    note = "frame.sparse.to_coo() makes a scipy matrix, which becomes a sparse tensor"
    return Unread("pandas", dtype, array.shape, reason, read, fill, note=note)


def _text(array: Any, call: str) -> Refused:
    has_missing = array.isna().any()
    texts = f"{call}.fillna('')" if has_missing else call
    hint = f"{texts}.tolist() keeps text" if call == "array" else f"{texts}.to_list() keeps text"
    hint += f", {call}.astype('category') gives codes"
    if not has_missing:  # pandas would cut every text to the length of its first
        hint += f", {call}.to_numpy(dtype='U') code points"
    return Refused("pandas", str(array.dtype), array.shape, "text of varying length has no tensor form", hint)


def _arrow(array: Any, call: str, inner: Inner) -> Foreign:
    taken = inner(array.__arrow_array__())
    hint = f"{call}.astype(dtype) with a dtype of numbers or times"
    if isinstance(taken, Refused):
        return replace(taken, library="pandas", hint=hint)
    if isinstance(taken, Foreign) and taken.library == "pyarrow":
        return replace(taken, library="pandas")
    if array.dtype.numpy_dtype.kind == "O":
        return Refused("pandas", str(array.dtype), array.shape, "NumPy has no such values", hint)
    return _unknown(array, call, array.dtype.numpy_dtype)


def _unknown(array: Any, call: str, dtype: np.dtype[Any] | None = None) -> Foreign:
    """An array that says what its values are only when it is read."""
    missing = np.asarray(array.isna())
    words: dict[str, Any] = {"dtype": dtype}
    if dtype is not None and dtype.kind in "biu" and missing.any():
        words["na_value"] = np.zeros((), dtype)[()]
    values = array.to_numpy(**words)
    if values.dtype.kind == "O":
        hint = f"{call}.to_numpy(dtype) with a number dtype"
        return Refused("pandas", str(array.dtype), array.shape, f"pandas reads its {array.dtype} as objects", hint)
    reason = f"{type(array).__name__} makes new memory when it is read"
    unread = Unread("pandas", values.dtype, values.shape, reason, lambda: array.to_numpy(copy=True, **words))
    has_mask = missing.any() and (dtype is not None or values.dtype.kind in "biu")
    return masked("pandas", unread, missing) if has_mask else unread
