"""Casts: which are allowed, the cast itself, and the proof that every value survived it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from . import _native
from ._dtypes import KIND_ORDER, Kind, from_numpy_dtype
from ._errors import LossyCastError

Casting = Literal["no", "equiv", "safe", "same_kind", "unsafe", "exact"]
CASTINGS: tuple[str, ...] = get_args(Casting)

AnyArray = npt.NDArray[Any]


class Part(NamedTuple):
    """Where a flat block belongs in the array that it is streamed from, for the index in an error."""

    start: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]


class Region(NamedTuple):
    """The index that the first element of a piece has in the array it is part of, for the index in an error."""

    start: tuple[int, ...]


_NUMPY_KINDS: dict[str, Kind] = {"b": "bool", "u": "uint", "i": "int", "f": "float", "c": "complex"}
_BLOCK = 1 << 16  # elements compared at a time: a block and its temporaries stay in the cache


def kind_of(dtype: np.dtype[Any]) -> Kind | None:
    """Name the rung of a NumPy number format on the casting ladder; ``None`` when it is not a number.

    >>> kind_of(np.dtype(np.longdouble)), kind_of(np.dtype("S3"))
    ('float', None)
    """
    row = from_numpy_dtype(dtype)
    if row is not None:
        return row.kind
    if dtype.type.__module__.startswith("ml_dtypes"):
        kinds: tuple[Kind, ...] = ("uint", "int", "float", "complex")
        return next((kind for kind in kinds if kind in dtype.name), None)
    return _NUMPY_KINDS.get(dtype.kind)


def why_not_cast(source: np.dtype[Any], target: np.dtype[Any], casting: str) -> str:
    """Say why ``casting`` forbids a cast; ``""`` means that it is allowed.

    >>> why_not_cast(np.dtype("f8"), np.dtype("f4"), "same_kind")
    ''
    >>> why_not_cast(np.dtype("f8"), np.dtype("i4"), "same_kind")
    'float64 to int32 is not a same_kind cast'
    """
    source, target = source.newbyteorder("="), target.newbyteorder("=")
    if source == target or casting in ("unsafe", "exact"):
        return ""
    source_kind, target_kind = kind_of(source), kind_of(target)
    if source_kind is None or target_kind is None:
        allowed = False
    elif casting == "safe":
        allowed = np.can_cast(source, target, "safe")
    elif casting == "same_kind":
        allowed = KIND_ORDER[source_kind] <= KIND_ORDER[target_kind]
    else:  # "no" and "equiv": byte order is layout here, so both mean the same dtype
        allowed = False
    return "" if allowed else f"{source.name} to {target.name} is not a {casting} cast"


def copy_into(
    target: AnyArray, source: AnyArray, *, casting: str, subject: str, what: object, part: Part | Region | None = None
) -> None:
    """Fill ``target`` with ``source``, cast on the way; under ``exact`` prove that nothing was lost.

    The native kernels do what they can: every dtype of the table in any layout, in one pass on several threads.
    NumPy does the rest, such as longdouble and text, and finds the first value that an exact cast would lose.
    Casts that ``why_not_cast`` forbids never get here. Out-of-range values follow NumPy's unsafe cast on x86.

    Raises:
        LossyCastError: Under ``exact``, with the first index and value that did not survive.
    """
    exact = casting == "exact" and target.dtype != source.dtype.newbyteorder("=")
    has_kernel = target.dtype.isnative and all(from_numpy_dtype(array.dtype) for array in (source, target))
    if has_kernel and _native.copy(target, source, exact):
        return
    real = source.real if source.dtype.kind == "c" and target.dtype.kind in "iuf" else source
    with np.errstate(all="ignore"):
        try:
            np.copyto(target, real, casting="unsafe")
        except TypeError:  # ml_dtypes has no such cast; float32 holds all of its small formats exactly
            np.copyto(target, real.astype(np.float32), casting="unsafe")
    if exact:
        check_exact(source, target, subject=subject, what=what, part=part)


def check_exact(
    source: AnyArray, target: AnyArray, *, subject: str, what: object, part: Part | Region | None = None
) -> None:
    """Raise unless every element of ``target`` has the value of its element of ``source``.

    Raises:
        LossyCastError: With the first ``index`` in C order, the ``value`` there and what it ``became``.
    """
    flat = _first_inexact(source, target)
    if flat is None:
        return
    value, became = source.flat[flat], target.flat[flat]
    index = _index_of(flat, source.shape, part)
    name = target.dtype.name
    weaker = "'unsafe'" if why_not_cast(source.dtype, target.dtype, "same_kind") else "'same_kind' or 'unsafe'"
    raise LossyCastError(
        subject,
        f"casting='exact' from {what} to {name} would lose the value at index "
        f"{_index_text(index)}: {value.item()!s} would become {became.item()!s}",
        hint=f"casting={weaker} accepts the loss, a wider dtype avoids it",
        index=index,
        value=value,
        became=became,
        dtype=name,
    )


def _index_of(flat: int, shape: tuple[int, ...], part: Part | Region | None) -> tuple[int, ...]:
    if isinstance(part, Part):
        return tuple(int(i) for i in np.unravel_index(part.start + flat, part.shape, part.order))
    start = part.start if part is not None else (0,) * len(shape)
    return tuple(int(i) + at for i, at in zip(np.unravel_index(flat, shape), start, strict=True))


def _index_text(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _first_inexact(source: AnyArray, target: AnyArray) -> int | None:
    if source.size == 0:
        return None
    blocks = np.nditer(
        [source, target],
        flags=["external_loop", "buffered", "delay_bufalloc"],
        op_flags=[["readonly", "nbo"], ["readonly"]],
        order="C",
        buffersize=_BLOCK,
    )
    done = 0
    with blocks, np.errstate(all="ignore"):
        blocks.reset()
        for before, after in blocks:
            survived = _survived(before, after)
            if not survived.all():
                return done + int(np.argmin(survived))
            done += before.size
    return None


def _survived(before: AnyArray, after: AnyArray) -> Any:
    """Compare by value. NaN equals NaN; -0.0 equals 0; an imaginary part has to be zero to be dropped."""
    before_kind, after_kind = kind_of(before.dtype), kind_of(after.dtype)
    if before_kind == "complex":
        if after_kind == "complex":
            return _survived(before.real, after.real) & _survived(before.imag, after.imag)
        return (before.imag == 0) & _survived(before.real, after)
    if after_kind == "complex":
        return _survived(before, after.real)
    if before_kind == "float" and after_kind == "float":
        a, b = _widened(before), _widened(after)
        return (a == b) | (np.isnan(a) & np.isnan(b))
    if before_kind == "float":
        return _is_integer_within(_widened(before), after.dtype)
    if after_kind == "float":
        wide = _widened(after)
        return _is_integer_within(wide, before.dtype) & (wide.astype(before.dtype) == before)
    same_sign = (_integers(before) < 0) == (_integers(after) < 0)
    return (after.astype(before.dtype) == before) & same_sign


def _widened(values: AnyArray) -> AnyArray:
    """Floats in a format that holds all of them exactly and that NumPy computes in."""
    if values.dtype.type is np.longdouble:
        return values
    return values.astype(np.float64)


def _integers(values: AnyArray) -> AnyArray:
    """The same integers in a format that NumPy compares with 0 (ml_dtypes' small ones are widened)."""
    return values if values.dtype.kind in "biu" else values.astype(np.int64)


def _is_integer_within(values: AnyArray, dtype: np.dtype[Any]) -> Any:
    """Whether each float is a whole number that ``dtype`` can hold; the bounds are exact in binary."""
    if dtype.kind == "b":
        return (values == 0) | (values == 1)
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    low, past = float(int(limits.min)), float(int(limits.max) + 1)
    return (np.trunc(values) == values) & (values >= low) & (values < past)
