"""Arrays and tensors as columns, in their own memory."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _memory, _native
from .._convert import explain, to_torch
from .._dtypes import DType, from_numpy_dtype
from .._errors import NdtorchError, UnsupportedTypeError
from .._memory import FileMapping
from .._objects import is_number
from .._spec import Spec, describe, numbers_inside
from .._stack import array_of, readable, shrunk
from ..foreign import Memory, Parts, Unread
from .columns import Allocate, AnyArray, Column, MemoryColumn, PickedColumn, Pictures, WatchedColumn
from .movable import MovableArray
from .orders import Rows
from .parts import SUBJECT, Sources, combined, single
from .pictures import hint_at, pictures_of
from .wishes import Wishes

_NUMBERS = ("number", "time", "bytes", "text")  # forms that are numbers to torch
_SMALL = 1 << 20  # bytes whose file, if any, is not worth a look at the table of all mappings
_IN_MEMORY = ("/dev/shm/", "/memfd:")  # files that no disk has


def array_sources(array: AnyArray, wishes: Wishes, path: str) -> Sources:
    """Take an array of NumPy: one column, or one for each field of its records.

    Raises:
        UnsupportedTypeError: It has no rows, or torch has nothing that could hold them.
    """
    if isinstance(array, np.ma.MaskedArray):
        array = _unmasked(array)
    array = np.asarray(array).view()  # of our own: its shape stays, whatever becomes of the caller's
    if array.dtype.names is not None:
        check_rows(describe(array))
        names = array.dtype.names
        parts = [_field(array[name], wishes, path, f"[{name!r}]") for name in names]
        return combined(parts, lambda leaves: dict(zip(names, leaves, strict=True)))
    spec = describe(array)
    if spec.opaque is None:
        check_rows(spec)
    if spec.form not in _NUMBERS:
        return _converted(array, spec, wishes, path)
    return number_sources(numbers_inside(readable(array, SUBJECT)), spec, wishes, path)


def _field(field: AnyArray, wishes: Wishes, path: str, step: str) -> Sources:
    try:
        return array_sources(field, wishes, path + step)
    except NdtorchError as error:
        raise error.at(step) from None


def _unmasked(array: Any) -> AnyArray:
    mask = np.ma.getmaskarray(array)
    if np.any(np.ma.flatten_mask(mask) if mask.dtype.names else mask):
        raise refusal(explain(array).error)
    return np.asarray(array.data)


def check_rows(spec: Spec) -> None:
    """Raise unless it has a first axis, which counts the rows.

    Raises:
        UnsupportedTypeError: It has none.
    """
    if not spec.shape:
        fact = f"{spec} has no rows"
        raise UnsupportedTypeError(SUBJECT, fact, expected="an array of at least one axis", got=str(spec.shape))


def refusal(error: NdtorchError | None, *, hint: str | None = None) -> NdtorchError:
    """What `to_torch` says of a source, said by the loader, with the hint that helps here, if it is known."""
    assert error is not None
    hint = hint or error.hint or ""
    if "masked=" in hint:
        hint = "to_torch(data, masked='nan') makes missing values NaN"
        hint += f", {error.remedy}" if error.facts.get("remedy") else ""
    elif re.match(r"\w+=", hint):
        hint = f"give what to_torch makes of it, where {hint}"
    return error.renamed(SUBJECT, hint=hint or None)


def hint_at_objects(objects: AnyArray, path: str) -> str | None:
    """The call that makes rows of Python's objects of several kinds; ``None`` where none is known.

    Args:
        objects: An array of them.
        path: Where in the data it is, or the list that it was made of.
    """
    values, name = objects.ravel().tolist(), f"data{path}"
    others = [value for value in values if not isinstance(value, str)]
    if all(value is None or (is_number(value) and not isinstance(value, _COMPLEX)) for value in values):
        return f"numpy.array({name}, dtype=float) makes None NaN"
    if objects.ndim == 1 and len(others) < len(values) and all(map(_is_missing, others)):
        return f"[value if isinstance(value, str) else '' for value in {name}] keeps texts"
    if objects.ndim == 1 and all(map(is_number, others)):
        return f"list(map(str, {name})) makes texts of all"
    if objects.ndim > 1 and all(value is None for value in others):
        return f"numpy.where(numpy.equal({name}, None), '', {name}).tolist() keeps texts"
    return f"tuple({name}.T) takes column by column" if objects.ndim == 2 else None


_COMPLEX = (complex, np.complexfloating)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def number_sources(
    array: AnyArray, spec: Spec, wishes: Wishes, path: str, tensor: torch.Tensor | None = None
) -> Sources:
    """Take an array of numbers that torch has.

    Args:
        array: The numbers.
        spec: What they were before: text, times, a tensor.
        wishes: What is wanted.
        path: Where in the data it is.
        tensor: The tensor whose memory it is, if torch may move that.
    """
    wishes.leaves[path] = str(spec)
    row, pictures = form_of(array.dtype, array.shape[1:], wishes, path, is_numbers=spec.form == "number")
    is_mapped = _memory.is_mapped(array)
    mapping = spec.mapping or (_memory.mapping_of(array) if is_mapped or array.nbytes >= _SMALL else None)
    if mapping is not None and mapping.truncated:
        raise shrunk(array, mapping, SUBJECT)
    is_mapped = is_mapped or (mapping is not None and not mapping.path.startswith(_IN_MEMORY))
    if mapping is None and tensor is None:
        return single(MemoryColumn(array, row, is_mapped=is_mapped, pictures=pictures), path)
    watch = _Watch(array, mapping, tensor)
    column = WatchedColumn(array, row, find=watch.find, check=watch.check, is_mapped=is_mapped, pictures=pictures)
    return single(column, path)


class Form(NamedTuple):
    """What becomes of rows of one dtype and shape.

    Attributes:
        row: The dtype of the results.
        pictures: What becomes of those that are pictures.
    """

    row: DType
    pictures: Pictures | None

    def column(self, array: AnyArray) -> MemoryColumn:
        """Make the column of an array of such rows."""
        return MemoryColumn(numbers_inside(array), self.row, pictures=self.pictures)


def form_of(
    dtype: np.dtype[Any], shape: tuple[int, ...], wishes: Wishes, path: str, *, is_numbers: bool = True
) -> Form:
    """What is wanted of rows that torch has a dtype for.

    Args:
        dtype: Their dtype.
        shape: The shape of one.
        wishes: What is wanted.
        path: Where in the data they are.
        is_numbers: Whether they are that, and not text or times, which have numbers inside.
    """
    own = from_numpy_dtype(dtype)
    assert own is not None
    wish = wishes.image_at(path) if is_numbers else None
    pictures = None if wish is None else pictures_of(dtype, shape, wish)
    if pictures is None:
        if wish is not None:
            is_tensor = wishes.leaves.get(path, "").endswith("(torch)")
            pixels = f"data{path}.movedim(1, -1)" if is_tensor else f"numpy.moveaxis(data{path}, 1, -1)"
            wishes.is_no_picture(hint_at(path, dtype, shape, pixels))
        return Form(wishes.row_of(own), None)
    wishes.is_picture()
    return Form(pictures.row, pictures)


class _Watch:
    """Whether memory is still there: a file may be truncated, and torch may move a tensor."""

    def __init__(self, array: AnyArray, mapping: FileMapping | None, tensor: torch.Tensor | None) -> None:
        self._array = array
        self._mapping = mapping
        self._movable = None if tensor is None else MovableArray(tensor, array)

    def find(self) -> AnyArray:
        """Give the array where it is now."""
        if self._movable is not None:
            self._array = self._movable.find()
        self.check()
        return self._array

    def check(self) -> None:
        """Raise where it is not what it was."""
        if self._mapping is not None and self._mapping.has_shrunk():
            raise shrunk(self._array, self._mapping, SUBJECT)
        if self._movable is not None:
            self._movable.checked()


def _converted(array: AnyArray, spec: Spec, wishes: Wishes, path: str) -> Sources:
    """Take numbers that torch does not have, or numbers as Python's objects."""
    words = wishes.casts()
    planned = explain(array, **words)
    if planned.error is not None:
        raise refusal(planned.error, hint=hint_at_objects(array, path) if spec.form == "object" else None)
    if spec.form == "object":  # all read at once: which dtype holds them depends on all
        return tensor_sources(to_torch(array, **words), wishes, path)
    wishes.leaves[path] = str(spec)
    return single(_ConvertedColumn(array, words), path)


class _ConvertedColumn(Column):
    """Rows that only `to_torch` can cast."""

    def __init__(self, source: AnyArray, words: dict[str, Any]) -> None:
        self.length = len(source)
        self.nbytes = source.nbytes // max(len(source), 1)
        self._source = source
        self._words = words

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Cast the rows."""
        return to_torch(self._source[rows], **self._words), None


# --- tensors


def tensor_sources(tensor: torch.Tensor, wishes: Wishes, path: str) -> Sources:
    """Take a dense tensor. Its rows come without their gradients.

    Raises:
        UnsupportedTypeError: It has no rows in memory.
    """
    spec = describe(tensor)
    if spec.opaque is not None:
        fact, hint = spec.opaque
        raise UnsupportedTypeError(SUBJECT, f"cannot take rows of {spec}: {fact}", hint=hint)
    check_rows(spec)
    assert spec.dtype is not None
    if spec.device != "cpu" or spec.dtype.numpy is None:
        wishes.leaves[path] = str(spec)
        _check_no_picture(spec, wishes, path)
        return single(TensorColumn(tensor, spec.dtype, wishes.row_of(spec.dtype)), path)
    array = array_of(tensor, SUBJECT).view(np.ndarray)
    return number_sources(array, spec, wishes, path, tensor if spec.movable and array.size else None)


def _check_no_picture(spec: Spec, wishes: Wishes, path: str) -> None:
    wish = wishes.image_at(path)
    if wish is not None and wish.is_named:
        fact = f"image= cannot apply to {spec}: pixels become planes on the CPU"
        raise UnsupportedTypeError(SUBJECT, fact, hint="tensor.cpu(), with device= for where batches are wanted")


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PICKED_AS_THEY_ARE = ("bool", "uint8", "int", "float16", "bfloat16", "float32", "float64", "complex64", "complex128")


class TensorColumn(Column):
    """Rows of a tensor that no array reaches, picked by torch where they lie.

    Args:
        tensor: The tensor; its first dimension counts the rows.
        own: Its dtype.
        row: The dtype of the results.
    """

    def __init__(self, tensor: torch.Tensor, own: DType, row: DType) -> None:
        self.length = len(tensor)
        self.nbytes = tensor.nbytes // max(len(tensor), 1)
        self._dtype = own.torch
        self._row = row.torch
        plain = tensor.detach().resolve_conj().resolve_neg()
        is_known = own.name.startswith(_PICKED_AS_THEY_ARE)
        self._tensor = plain if is_known else plain.view(_WORDS[own.itemsize])  # torch computes little on others

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Pick the rows, and wait for them: another stream may want them."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.length:  # a device would end the process
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.length}")
        device = self._tensor.device
        with torch.no_grad():
            picked = self._tensor.index_select(0, torch.from_numpy(rows).to(device)).view(self._dtype)
            picked = picked.to(self._row)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return picked, None


# --- parts of other objects


def numbers_in(leaf: Any) -> AnyArray | None:
    """The plain numbers that a leaf holds, read where they have to be; ``None`` where it holds something else."""
    if isinstance(leaf, Parts) and leaf.form == "masked" and not leaf.nulls:
        return numbers_in(leaf.parts[".data"])
    if isinstance(leaf, Unread):
        leaf = to_torch(leaf, readonly="share")
    if isinstance(leaf, Memory):
        leaf = leaf.array
    if isinstance(leaf, torch.Tensor) and describe(leaf).form == "number":
        leaf = array_of(leaf, SUBJECT)
    if not isinstance(leaf, np.ndarray) or describe(leaf).form not in _NUMBERS:
        return None
    return numbers_inside(np.asarray(leaf).view())


# --- some rows of them


def picked_sources(sources: Sources, indices: Rows) -> Sources:
    """Some rows of all columns."""
    return sources._replace(columns=[PickedColumn(column, indices) for column in sources.columns])
