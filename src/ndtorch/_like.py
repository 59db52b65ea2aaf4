"""The way back by example: ``like=`` restores what a tensor could not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ._errors import CopyRequiredError, InvalidOptionError, NdtorchError, ShapeMismatchError, UnsupportedTypeError
from ._objects import is_list_of_numbers, is_number
from ._options import Options
from ._spec import Spec, describe
from ._structures import is_structure, passes_through, take_apart
from ._torch_dtypes import BY_TORCH
from .foreign import Memory, Unread, library_of, recognise

AnyArray = npt.NDArray[Any]
ToNumpy = Callable[..., Any]
"""Converts one source with the given options; ``path`` says where it is in a structure."""


def restore_whole(source: Any, like: Any, options: Options, to_numpy: ToNumpy) -> Any:
    """Do what `restore` does, and see that one array was not made of a structure.

    Raises:
        NdtorchError: The two differ in structure; the note has the path.
    """
    result = restore(source, like, options, to_numpy)
    if isinstance(like, np.ndarray) and isinstance(result, dict | list | tuple):
        fact, got = "like= is one array, the source is a structure", f"a {type(source).__name__}"
        hint = "give like= the structure that was converted"
        raise ShapeMismatchError(options.subject, fact, expected="one array or tensor", got=got, hint=hint)
    return result


def restore(source: Any, like: Any, options: Options, to_numpy: ToNumpy) -> Any:
    """Convert ``source`` into what ``like`` is: its structure, dtypes, fields, mask and units.

    Raises:
        NdtorchError: The two differ in structure; the note has the path.
    """
    if options.numpy_dtype is not None or options.float_dtype is not None:
        raise InvalidOptionError(
            options.subject, "like= and a dtype were both given", hint="like= brings its own dtype: use one"
        )
    if isinstance(like, np.ma.MaskedArray):
        return _masked(source, like, options, to_numpy)
    if isinstance(like, np.ndarray) and like.dtype.names is not None:
        return _struct(source, like, options, to_numpy)
    if isinstance(like, np.ndarray):
        return _array(source, like, options, to_numpy)
    if isinstance(like, np.generic):
        return restore(source, np.asarray(like), options, to_numpy)[()]
    if isinstance(like, torch.Tensor):
        row = BY_TORCH.get(like.dtype)
        return to_numpy(source, replace(options, numpy_dtype=row.numpy if row else None))
    library = library_of(like)
    if library is not None and library.restore is not None:
        return _foreign(library.restore, source, like, options, partial(_inside, options, to_numpy))
    if is_list_of_numbers(like) or is_number(like):
        return _python(source, like, options, to_numpy)
    if is_structure(like):
        return _structure(source, like, options, to_numpy)
    taken = recognise(like, "numpy")
    if isinstance(taken, Unread):  # a buffer or the like: an array of its dtype is what is left of it
        return restore(source, np.empty(0, taken.dtype), options, to_numpy)
    if isinstance(taken, Memory):
        return restore(source, taken.array, options, to_numpy)
    raise UnsupportedTypeError(
        options.subject, f"like= cannot be a {type(like).__name__}", hint="like= takes what to_torch was given"
    )


def _foreign(restore: Callable[..., Any], source: Any, like: Any, options: Options, inner: ToNumpy) -> Any:
    try:
        return restore(source, like, inner)
    except (NdtorchError, MemoryError):
        raise
    except Exception as error:  # an example may be closed or deleted, and its library raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fact = f"like= is a {type(like).__name__} that cannot serve as an example: {reason}"
        hint = "an example whose own values can be read"
        raise UnsupportedTypeError(options.subject, fact, hint=hint) from error


def _inside(options: Options, to_numpy: ToNumpy, source: Any, like: Any, path: str = "") -> Any:
    """Restore what lies inside a foreign object; without an example it becomes a plain array."""
    try:
        return to_numpy(source, options, path) if like is None else restore(source, like, options, to_numpy)
    except NdtorchError as error:
        raise error.at(path) from None


def _structure(source: Any, like: Any, options: Options, to_numpy: ToNumpy) -> Any:
    structure = take_apart(like, options.subject)
    results = []
    parts = structure.subtrees_of(source, options.subject)
    for part, leaf, path in zip(parts, structure.leaves, structure.paths(), strict=True):
        if passes_through(part) and passes_through(leaf):
            results.append(part)
            continue
        try:
            results.append(restore_whole(part, leaf, options, partial(_under, to_numpy, path)))
        except NdtorchError as error:
            raise error.at(path) from None
    return structure.rebuild(results)


def _under(to_numpy: ToNumpy, prefix: str, source: Any, options: Options, path: str = "") -> Any:
    return to_numpy(source, options, prefix + path)


def _array(source: Any, like: AnyArray, options: Options, to_numpy: ToNumpy) -> AnyArray:
    if like.dtype.kind == "O":
        return _objects(to_numpy(source, options), like)
    if like.dtype.kind in "VT" and describe(like).opaque is not None:
        raise UnsupportedTypeError(
            options.subject, f"like= cannot be {describe(like)}", hint="an array of numbers, time, text or fields"
        )
    array: AnyArray = to_numpy(source, replace(options, numpy_dtype=like.dtype))
    return array.view(type(like)) if isinstance(like, np.recarray) else array


def _python(source: Any, like: Any, options: Options, to_numpy: ToNumpy) -> Any:
    array = _array(source, np.asarray(like), options, to_numpy)
    if is_list_of_numbers(like):
        values = array.tolist()
        return tuple(values) if isinstance(like, tuple) else values
    if array.size != 1:
        raise ShapeMismatchError(options.subject, "like= is one number", expected="one element", got=array.shape)
    return array.item()


def _objects(array: AnyArray, like: AnyArray) -> AnyArray:
    objects = np.empty(like.shape, dtype=object)
    if array.shape[: like.ndim] != like.shape:
        raise ShapeMismatchError(
            "to_numpy", "like= is an object array of another shape", expected=like.shape, got=array.shape
        )
    is_object = array.ndim > like.ndim or array.dtype.kind == "O"
    for index in np.ndindex(like.shape):
        objects[index] = array[index] if is_object else array[index].item()
    return objects


def _masked(source: Any, like: Any, options: Options, to_numpy: ToNumpy) -> Any:
    if not (isinstance(source, tuple) and len(source) == 2):
        raise UnsupportedTypeError(
            options.subject,
            "like= is a masked array but the source has no mask",
            expected="Masked(data, mask)",
            got=type(source).__name__,
            hint="to_torch(array, masked='split') gives one",
        )
    data = restore(source[0], like.data, options, to_numpy)
    mask = _mask_array(source[1], like, data, options, to_numpy)
    return np.ma.MaskedArray(data, mask=mask, fill_value=like.fill_value, copy=False, hard_mask=like.hardmask)


def _mask_array(mask: Any, like: Any, data: AnyArray, options: Options, to_numpy: ToNumpy) -> AnyArray:
    if data.dtype.names is None:
        array: AnyArray = to_numpy(mask, options)
        return array
    return _struct(mask, np.ma.getmaskarray(like), options, to_numpy)


# --- fields


def _struct(source: Any, like: AnyArray, options: Options, to_numpy: ToNumpy) -> AnyArray:
    if isinstance(source, np.ndarray) and source.dtype == like.dtype:
        return source
    names = like.dtype.names or ()
    _check_fields(source, names, options.subject)
    if options.copy is not True and _is_memory_of(source, like):
        return like.view()
    if options.copy is False:
        raise _scattered(options)
    shape = _record_shape(source[names[0]], like[names[0]], like.ndim) if names else like.shape
    result = np.zeros(shape, like.dtype)
    for name in names:
        try:
            part = restore(source[name], like[name], options, to_numpy)
            if part.shape != result[name].shape:
                raise ShapeMismatchError(
                    options.subject,
                    "a field has another shape than the first",
                    expected=result[name].shape,
                    got=part.shape,
                )
        except NdtorchError as error:
            raise error.at(f"[{name!r}]") from None
        result[name] = part
    return result.view(type(like)) if isinstance(like, np.recarray) else result


def _scattered(options: Options) -> NdtorchError:
    reason = "its fields do not lie in the memory of one structured array"
    return CopyRequiredError(
        options.subject, f"cannot share memory with a dict of tensors: {reason}", hint="copy=None copies", reason=reason
    )


def _check_fields(source: Any, names: tuple[str, ...], subject: str) -> None:
    got = list(source) if isinstance(source, dict) else type(source).__name__
    if not isinstance(source, dict) or set(source) != set(names):
        raise ShapeMismatchError(
            subject,
            "like= is a structured array with other fields",
            expected=list(names),
            got=got,
            hint="to_torch(array) gives a dict with the same fields",
        )


def _record_shape(first: Any, like_field: AnyArray, ndim: int) -> tuple[int, ...]:
    if isinstance(first, dict):
        name, part = next(iter(first.items()))
        return _record_shape(part, like_field[name], ndim)
    inner = len(describe(like_field).view_shape) - ndim
    shape = tuple(first.shape)
    return shape[: len(shape) - inner] if inner else shape


def _is_memory_of(source: Any, like: AnyArray) -> bool:
    """Whether every tensor is exactly the memory of its field in ``like``, so that ``like`` is the way back."""
    for name in like.dtype.names or ():
        part, field = source[name], like[name]
        if isinstance(part, dict):
            if field.dtype.names is None or set(part) != set(field.dtype.names) or not _is_memory_of(part, field):
                return False
        elif not isinstance(part, torch.Tensor) or _place(describe(part)) != _place(describe(field)):
            return False
    return True


def _place(spec: Spec) -> tuple[object, ...]:
    return (spec.address, spec.view_shape, spec.strides, spec.dtype, spec.lazy)
