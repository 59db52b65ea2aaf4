"""The options of a conversion, checked once and passed on as one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from ._casting import CASTINGS
from ._dtypes import DType, from_numpy_dtype
from ._errors import InvalidOptionError, UnsupportedDtypeError
from ._torch_dtypes import resolve

_NONE_MEANT: Mapping[str, str] = {}

World = Literal["torch", "numpy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller asked for. The defaults ask for nothing.

    Attributes:
        to: Which library the result belongs to.
        dtype: Row to cast numbers to.
        numpy_dtype: The same for `to_numpy`, where it may also be time, text or another byte order.
        float_dtype: Row to cast floating numbers to; complex ones follow to the matching width.
        device: Where the result lies; ``None`` leaves tensors where they are and arrays on the CPU.
        copy: The array API's three values.
        casting: Which casts are allowed.
        readonly: What becomes of memory that its owner does not let us write.
        masked: What becomes of a masked array.
    """

    to: World
    dtype: DType | None = None
    numpy_dtype: np.dtype[Any] | None = None
    float_dtype: DType | None = None
    device: str | None = None
    copy: bool | None = None
    casting: str = "same_kind"
    readonly: str = "copy"
    masked: str = "error"

    @property
    def subject(self) -> str:
        """The name of the function that was called."""
        return f"to_{self.to}"

    @property
    def asks_nothing(self) -> bool:
        """Whether all options have their defaults."""
        dtypes = (self.dtype, self.numpy_dtype, self.float_dtype)  # compared by identity: dtype("f8") == None in NumPy
        rest = (self.device, self.copy, self.casting, self.readonly, self.masked)
        return all(dtype is None for dtype in dtypes) and rest == (None, None, "same_kind", "copy", "error")

    def without_dtype(self) -> Options:
        """The same for a part whose dtype is not the caller's to change, such as a mask."""
        return replace(self, dtype=None, numpy_dtype=None, float_dtype=None)

    def for_fresh_memory(self) -> Options:
        """The same for memory that was made a moment ago and belongs to nobody else."""
        return replace(self, copy=None, readonly="share")


def torch_options(**words: Any) -> Options:
    """Check the options of `to_torch`."""
    return _checked(_torch_options, words)


def numpy_options(**words: Any) -> Options:
    """Check the options of `to_numpy`."""
    return _checked(_numpy_options, words)


def unknown_option(function: str, name: str, known: Iterable[str], meant: Mapping[str, str] = _NONE_MEANT) -> TypeError:
    """Make the error for an option that a function does not have, with what helps instead.

    Args:
        function: The name of the function.
        name: What was given.
        known: The options that it has.
        meant: What helps instead, by names that people know from elsewhere; else the nearest of the known ones does.

    >>> unknown_option("stack", "dims", ["dim", "dtype"])
    TypeError('stack: dims= is no option. Hint: dim= is one.')
    >>> unknown_option("stack", "axis", ["dim", "dtype"], {"axis": "dim= says where the new dimension goes"})
    TypeError('stack: axis= is no option. Hint: dim= says where the new dimension goes.')
    """
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = meant.get(name) or (f"{near[0]}= is one" if near else f"{', '.join(known)} are")
    return TypeError(f"{function}: {name}= is no option. Hint: {hint}.")


def _checked(check: Any, words: dict[str, Any]) -> Options:
    """Ask the cache first: a loop calls with the same words over and over."""
    known = check.__wrapped__.__kwdefaults__
    unknown = next((word for word in words if word not in known), None)
    if unknown is not None:
        raise InvalidOptionError(
            "explain", f"{unknown}= is no option of the call", expected=", ".join(known), got=unknown
        )
    try:
        options: Options = check(**words)
    except TypeError:  # one of them cannot be hashed
        options = check.__wrapped__(**words)
    return options


@lru_cache(maxsize=256, typed=True)
def _torch_options(
    *,
    dtype: object = None,
    float_dtype: object = None,
    device: object = None,
    copy: bool | None = None,
    casting: str = "same_kind",
    readonly: str = "copy",
    masked: str = "error",
) -> Options:
    subject = "to_torch"
    _check_choices(subject, copy, casting, dtype, float_dtype)
    _one_of(subject, "readonly", readonly, ("copy", "share", "error"))
    _one_of(subject, "masked", masked, ("error", "split", "nan"))
    return Options(
        to="torch",
        dtype=None if dtype is None else resolve(dtype, subject=subject),
        float_dtype=resolve_float(subject, float_dtype),
        device=resolve_device(subject, device),
        copy=copy,
        casting=casting,
        readonly=readonly,
        masked=masked,
    )


@lru_cache(maxsize=256, typed=True)
def _numpy_options(
    *,
    dtype: object = None,
    float_dtype: object = None,
    copy: bool | None = None,
    casting: str = "same_kind",
) -> Options:
    subject = "to_numpy"
    _check_choices(subject, copy, casting, dtype, float_dtype)
    return Options(
        to="numpy",
        numpy_dtype=None if dtype is None else _resolve_numpy(subject, dtype),
        float_dtype=resolve_float(subject, float_dtype),
        copy=copy,
        casting=casting,
    )


def _check_choices(subject: str, copy: object, casting: object, dtype: object, float_dtype: object) -> None:
    if copy is not None and not isinstance(copy, bool | np.bool_):
        raise InvalidOptionError(
            subject, f"copy={copy!r} has no meaning", expected="None, True or False", got=repr(copy)
        )
    _one_of(subject, "casting", casting, CASTINGS)
    if dtype is not None and float_dtype is not None:
        raise InvalidOptionError(
            subject,
            f"dtype={dtype} and float_dtype={float_dtype} were both given",
            hint="float_dtype= casts floating leaves only, dtype= casts every number: use one",
        )


def _one_of(subject: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidOptionError(
            subject,
            f"{option}={value!r} has no meaning",
            expected="one of " + ", ".join(choices),
            got=repr(value),
        )


def resolve_float(subject: str, dtype: object) -> DType | None:
    """Find the row of a floating dtype."""
    if dtype is None:
        return None
    row = resolve(dtype, subject=subject, option="float_dtype")
    if row.kind != "float":
        raise InvalidOptionError(
            subject,
            f"float_dtype={dtype} is not a floating dtype",
            hint="float32, float16 and bfloat16 are some",
        )
    return row


def resolve_device(subject: str, device: object) -> str | None:
    if device is None:
        return None
    hint = "device='cpu' always works"
    try:
        wanted = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidOptionError(subject, f"device={device!r} is not a device ({reason})", hint=hint) from None
    try:
        torch.empty(0, device=wanted)  # the one question that every kind of device answers alike
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidOptionError(subject, f"device={device!r} cannot be used here ({reason})", hint=hint) from None
    return str(wanted)


def _resolve_numpy(subject: str, dtype: object) -> np.dtype[Any]:
    """NumPy's own dtypes first, so that units, lengths and byte orders are kept; else a row of the table."""
    if not isinstance(dtype, torch.dtype):
        try:
            wanted: np.dtype[Any] = np.dtype(dtype)  # type: ignore[call-overload]
        except TypeError:
            pass
        else:
            if wanted.names is not None or (wanted.kind in "OVT" and from_numpy_dtype(wanted) is None):
                hint = (
                    "like= with an array of that dtype restores fields"
                    if wanted.names
                    else "a dtype of numbers, time, bytes or text"
                )
                raise UnsupportedDtypeError(subject, f"dtype={wanted} cannot be cast to", hint=hint)
            return wanted
    row = resolve(dtype, subject=subject)
    if row.numpy is None:
        raise UnsupportedDtypeError(
            subject,
            f"dtype={row.name} has no NumPy counterpart",
            hint="dtype='complex64' holds it exactly",
        )
    return row.numpy
