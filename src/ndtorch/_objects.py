"""Python objects read into numbers: scalars, nested lists, object arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import _bridge
from ._errors import LossyCastError, NdtorchError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ._options import Options

AnyArray = npt.NDArray[Any]

_PYTHON_NUMBERS = (bool, int, float, complex)
_MAX_DIMS = 64  # of a NumPy array; a list inside itself is deeper


def is_number(value: object) -> bool:
    """Whether a value is a single number of Python or NumPy."""
    return isinstance(value, (*_PYTHON_NUMBERS, np.number, np.bool_))


def is_list_of_numbers(value: object) -> bool:
    """Whether a list or tuple holds numbers only, or equally long lists of them, and so is one array.

    >>> is_list_of_numbers([[1, 2], [3, 4]]), is_list_of_numbers([[1, 2], [3]]), is_list_of_numbers([1, "a"])
    (True, False, False)
    """
    return _list_shape(value) is not None


def _list_shape(value: object, depth: int = 0) -> tuple[int, ...] | None:
    if type(value) not in (list, tuple) or not value or depth == _MAX_DIMS:
        return None
    assert isinstance(value, list | tuple)
    types = set(map(type, value))
    if all(issubclass(t, (*_PYTHON_NUMBERS, np.number, np.bool_)) for t in types):
        return (len(value),)
    if not types <= {list, tuple}:
        return None
    inner = _list_shape(value[0], depth + 1)
    # The first that is no array ends it: a list inside itself would branch without end.
    if inner is None or any(_list_shape(item, depth + 1) != inner for item in value[1:]):
        return None
    return (len(value), *inner)


def numbers_of(source: Any, options: Options) -> torch.Tensor | AnyArray:
    """Read a Python number or a list of numbers into fresh memory.

    A tensor of the dtype that `torch.tensor` chooses; when a dtype is asked for, the widest array NumPy makes of
    the numbers, so that the cast starts from their exact values.
    """
    asked = options.dtype is not None or options.float_dtype is not None or options.to == "numpy"
    try:
        if not asked:
            return torch.tensor(source, device="cpu")
        array = np.asarray(source)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _unreadable(source, options, error) from None
    return _rounded(source, options) if array.dtype == object else array


def _rounded(source: Any, options: Options) -> AnyArray:
    """Integers beyond 64 bits as float64, where the caller asked for floats."""
    if options.dtype is None or options.dtype.kind not in ("float", "complex"):
        raise _unreadable(source, options, "an integer is too large for 64 bits")
    objects = np.asarray(source, dtype=object)
    try:
        array: AnyArray = objects.astype(np.complex128 if options.dtype.kind == "complex" else np.float64)
    except (OverflowError, TypeError) as error:
        raise _unreadable(source, options, error) from None
    if options.casting == "exact":
        _check_integers(objects, array, options)
    return array


def _unreadable(source: Any, options: Options, why: object) -> NdtorchError:
    what = f"a {type(source).__name__}" + (" of numbers" if isinstance(source, list | tuple) else "")
    if "verflow" in str(why) or "too large" in str(why):
        fact = f"cannot convert {what}: an integer does not fit int64"
        hint = "dtype='uint64' holds 0 to 2**64 - 1, dtype='float64' rounds"
        return LossyCastError(options.subject, fact, hint=hint)
    fact = f"cannot convert {what}: {str(why).splitlines()[0]}"
    return UnsupportedTypeError(options.subject, fact, hint="numpy.asarray(source, dtype=...) says what is meant")


def array_of(objects: AnyArray, options: Options) -> AnyArray:
    """Read an object array into numbers: all numbers give an exact numeric array, equal arrays are stacked.

    Raises:
        UnsupportedTypeError: Names the first ``index`` whose element is neither, and its type.
        ShapeMismatchError: Names the first array whose shape differs.
        LossyCastError: Names the first integer that no common dtype holds.
    """
    elements = [value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value for value in objects.flat]
    if elements and all(isinstance(value, np.ndarray | torch.Tensor) for value in elements):
        return _stacked(objects, elements, options)
    for index, value in zip(_indices(objects), elements, strict=True):
        if not is_number(value):
            raise UnsupportedTypeError(
                options.subject,
                f"cannot convert an object array: the element at index {_index_text(index)} is {_type_text(value)}",
                expected="only numbers, or only arrays of one shape",
                got=_type_text(value),
                hint="replace it by a number, or convert a list of the elements",
                index=index,
                type=type(value),
            )
    dtype = _common_dtype(objects, elements, options)
    array = np.array(elements, dtype=dtype).reshape(objects.shape)
    if dtype.kind in "fc":
        _check_integers(objects, array, options)
    return array


def _check_integers(objects: AnyArray, array: AnyArray, options: Options) -> None:
    for index, value in zip(_indices(objects), objects.flat, strict=True):
        if isinstance(value, int | np.integer) and int(array[index].real) != int(value):
            raise _inexact(index, value, f"does not fit {array.dtype}", options)


def _common_dtype(objects: AnyArray, elements: list[Any], options: Options) -> np.dtype[Any]:
    """The smallest dtype that NumPy promotes all elements to; Python floats count as float64."""
    if not elements:
        return np.dtype(np.float64)
    found = {np.asarray(value).dtype for value in elements if type(value) is not int}
    integers = [value for value in elements if type(value) is int]
    if integers:
        limits = np.iinfo(np.uint64 if min(integers) >= 0 and max(integers) > np.iinfo(np.int64).max else np.int64)
        for index, value in zip(_indices(objects), elements, strict=True):
            if type(value) is int and not limits.min <= value <= limits.max:
                raise _inexact(index, value, f"does not fit {limits.dtype}", options)
        found.add(limits.dtype)
    return np.result_type(*found)


def _inexact(index: tuple[int, ...], value: Any, why: str, options: Options) -> LossyCastError:
    return LossyCastError(
        options.subject,
        f"cannot convert an object array exactly: the integer {value} at index {_index_text(index)} {why}",
        hint="array.astype(float) rounds it",
        index=index,
        value=value,
    )


def _stacked(objects: AnyArray, elements: list[Any], options: Options) -> AnyArray:
    arrays = [_host_array(value) for value in elements]
    first = arrays[0]
    for index, array in zip(_indices(objects), arrays, strict=True):
        if array.shape != first.shape:
            raise ShapeMismatchError(
                options.subject,
                f"cannot stack an object array of arrays: the one at index {_index_text(index)} has another shape",
                expected=first.shape,
                got=array.shape,
                hint="to_torch(list(array)) gives a list of tensors",
                index=index,
            )
    try:
        return np.stack(arrays).reshape(objects.shape + first.shape)
    except TypeError as error:
        raise UnsupportedDtypeError(
            options.subject, f"cannot stack an object array of arrays: {error}", hint="give the arrays one dtype"
        ) from None


def _host_array(value: AnyArray | torch.Tensor) -> AnyArray:
    if isinstance(value, np.ndarray):
        return value
    return _bridge.alias(value.detach().resolve_conj().resolve_neg().cpu(), writable=False)


def _indices(objects: AnyArray) -> Iterator[tuple[int, ...]]:
    return np.ndindex(objects.shape)


def _index_text(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _type_text(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
