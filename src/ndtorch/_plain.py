"""Plain: what ``torch.load(weights_only=True)`` takes instead of one object that it refuses."""

from __future__ import annotations

import array
import datetime
import pathlib
import types
from collections import UserString
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ._casting import kind_of
from ._errors import LossyCastError, UnsupportedTypeError
from ._spec import Spec, why_opaque

SUBJECT = "to_checkpoint"

_KEPT = {type(None), bool, float, complex, str, bytearray}
_KEPT |= {torch.dtype, torch.device, torch.layout, torch.qscheme, torch.Size}
_SMALL_INT = 1 << 63
_LARGEST_INT = 255 * 8  # bits with the sign: pickle writes larger ones in a way that weights_only does not read

Plain = tuple[Any, str]
"""The plain value, and what else to know of it."""


def is_plain(value: object) -> bool:
    """Whether ``weights_only`` takes an object as it is, seen at a glance."""
    cls = type(value)
    return cls in _KEPT or (isinstance(value, int) and cls is int and abs(value) < _SMALL_INT)


def plain_leaf(value: Any) -> Plain:
    """Give the plain form of a number, a text or a name, one of the `LEAVES`.

    A value that is taken as it is comes back as the same object.

    Raises:
        LossyCastError: Float has no such number.
        UnsupportedTypeError: An integer that is too large, a class that is no NumPy dtype.

    >>> plain_leaf(np.float32(0.5)), plain_leaf(np.timedelta64(3, "s"))
    ((0.5, ''), (3, 'counts of s'))
    """
    return next(plain(value) for cls, plain in _PLAIN if isinstance(value, cls))


def name_of(value: object) -> str:
    """The class of an object, as messages and tables have it."""
    cls = type(value)
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def refused(value: object, hint: str = "") -> UnsupportedTypeError:
    """Make the error for an object that has no plain form."""
    fact = f"cannot save a {name_of(value)}: weights_only refuses it"
    return UnsupportedTypeError(SUBJECT, fact, hint=hint or _hint_of(value), type=type(value))


def time_unit(dtype: np.dtype[Any]) -> str:
    """Say what the integers of a datetime64 or timedelta64 count.

    >>> time_unit(np.dtype("datetime64[ns]")), time_unit(np.dtype("m8[25s]"))
    ('counts of ns', 'counts of 25 s')
    """
    unit, step = np.datetime_data(dtype)
    return f"counts of {unit}" if step == 1 else f"counts of {step} {unit}"


def array_detail(spec: Spec) -> str:
    """Say what the tensors made of an array hold, where that is not simply its numbers."""
    own = {"bytes": "one uint8 per character", "text": "one code point per character"}.get(spec.form, "")
    if spec.form == "time" and spec.own_dtype is not None:
        own = time_unit(spec.own_dtype)
    parts = ((path, array_detail(part)) for path, part in spec.parts.items())
    return "; ".join([own] * bool(own) + [f"{path} {detail}" for path, detail in parts if detail])


# ---- numbers and text ----


def _numpy_scalar(value: np.generic) -> Plain:
    if isinstance(value, np.datetime64 | np.timedelta64):
        nat = ", NaT as -2**63" if np.isnat(value) else ""
        return int(value.astype(np.int64)), time_unit(value.dtype) + nat
    if isinstance(value, np.str_):
        return _base(str.__str__)(value)
    if isinstance(value, np.bytes_):
        return _bytes(value)
    kind = kind_of(value.dtype)
    if kind in ("float", "complex"):
        return _inexact(value, complex if kind == "complex" else float), ""
    number: Any = value
    return bool(number) if kind == "bool" else int(number), ""


def _inexact(value: Any, cls: Callable[[Any], Any]) -> Any:
    number = cls(value)
    if number == value or value != value:
        return number
    raise LossyCastError(
        SUBJECT,
        f"cannot save a {name_of(value)} as {cls.__name__}: {value!s} would become {number!r}",
        hint=f"{cls.__name__}(value) if it may be rounded",
        value=value,
    )


def _int(value: int) -> Plain:
    if int.bit_length(value) >= _LARGEST_INT:
        fact = f"cannot save an integer of {int.bit_length(value):,} bits: weights_only refuses it"
        raise UnsupportedTypeError(SUBJECT, fact, hint="hex(value) is text, int(text, 16) the way back")
    return (value if type(value) is int else int.__int__(value)), ""


def _bytes(value: bytes) -> Plain:
    if not value:
        return bytearray(), "as are all empty bytes"
    return (value if type(value) is bytes else b"".join([value])), ""


def _base(plain: Callable[[Any], Any]) -> Callable[[Any], Plain]:
    """Take the value of a subclass of a plain class, whatever the subclass redefines."""
    return lambda value: (plain(value), "")


def _scalar_type(value: type) -> Plain:
    if not issubclass(value, np.generic):
        raise refused(value, f"save its name, {value.__qualname__!r}")
    return value.__name__, f"the name of {value.__module__}.{value.__qualname__}"


_PLAIN: tuple[tuple[Any, Callable[[Any], Plain]], ...] = (
    (np.generic, _numpy_scalar),
    (int, _int),
    (str, _base(str.__str__)),
    (float, _base(float.__float__)),
    (complex, _base(complex.__pos__)),
    (bytes, _bytes),
    (bytearray, _base(lambda value: bytearray(memoryview(value)))),
    (pathlib.PurePath | np.dtype | torch.memory_format | UserString, _base(str)),
    (datetime.date | datetime.time, _base(lambda value: value.isoformat())),
    (type, _scalar_type),
)

LEAVES = tuple(cls for cls, _ in _PLAIN)
"""Classes whose objects have a plain form that is no container."""

# ---- hints ----

_HINTS: tuple[tuple[Any, str], ...] = (
    (torch.nn.Module, "module.state_dict() has its weights"),
    (torch.UntypedStorage | torch.TypedStorage, "torch.empty(0, dtype=torch.uint8).set_(value) is a tensor of it"),
    (array.array | memoryview, "numpy.asarray(value) makes an array of it"),
    (np.void, "value.tobytes() gives its bytes"),
    (datetime.timedelta, "value.total_seconds() is a number"),
    (types.ModuleType, "value.__name__ is text"),
)

_HINTS_BY_ATTRIBUTE = {
    "state_dict": "value.state_dict() has its state",
    "bit_generator": "value.bit_generator.state has its state",
    "get_state": "value.get_state() has its state",
    "getstate": "value.getstate() has its state",
    "__array__": "numpy.asarray(value) makes an array of it",
    "as_integer_ratio": "str(value) is text",
    "__call__": "leave it out, or save value.__qualname__",
}


def _hint_of(value: object) -> str:
    by_class = (hint for cls, hint in _HINTS if isinstance(value, cls))
    by_attribute = (hint for name, hint in _HINTS_BY_ATTRIBUTE.items() if hasattr(type(value), name))
    otherwise = "leave it out, save vars(value), or register its class with optree.register_pytree_node(...)"
    return [*by_class, *by_attribute, otherwise][0]


# ---- tensors ----

_TAKEN_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_SUB_BYTE = {getattr(torch, f"{sign}int{bits}", None) for sign in ("", "u") for bits in range(1, 8)}


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor that ``weights_only`` takes: the same object, or one of torch's own class over its memory.

    Raises:
        UnsupportedTypeError: It has no memory to save, or only its own class knows what is in it.
    """
    with torch._C.DisableTorchFunctionSubclass():
        why = _why_not_taken(tensor)
        if why is not None:
            fact = f"cannot save a {name_of(tensor)}: {why[0]}"
            raise UnsupportedTypeError(SUBJECT, fact, hint=why[1], type=type(tensor))
        if type(tensor) in (torch.Tensor, torch.nn.Parameter):
            return tensor
        return dressed_like(tensor, tensor.detach().as_subclass(torch.Tensor))


def dressed_like(tensor: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Make ``plain`` a parameter if ``tensor`` is one, with its gradient flag and its attributes."""
    if isinstance(tensor, torch.nn.Parameter):
        plain = torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
    elif tensor.requires_grad:
        plain.requires_grad_()
    vars(plain).update(attributes_of(tensor))
    return plain


def attributes_of(tensor: torch.Tensor) -> dict[str, Any]:
    """What was written on a tensor, which is saved with it; without torch's own mark on parameters."""
    return {name: value for name, value in vars(tensor).items() if name != "_is_param"}


def _why_not_taken(tensor: torch.Tensor) -> tuple[str, str] | None:
    if is_lazy(tensor):
        return "it has no shape yet", "a first forward pass gives it one"
    if tensor.dtype in _SUB_BYTE:
        return f"weights_only does not know {tensor.dtype}", "tensor.view(torch.uint8) has its bytes"
    if tensor.layout is torch.jagged:
        return "whoever loads it has to import torch.nested first", "list(tensor.unbind()) is a list of tensors"
    is_own = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    if is_own and (tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.layout in _TAKEN_LAYOUTS):
        return None
    if not is_own and type(tensor).__name__ not in ("DTensor", "FakeTensor"):  # which have hints of their own
        return "it computes its values through __torch_dispatch__", "save the plain tensors that it wraps"
    return why_opaque(tensor)
