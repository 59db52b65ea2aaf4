"""A list of samples as columns: one for what all of them have in one place, its kind decided from all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
import torch

from .. import _bridge, _native
from .._collate import columns_by_key, columns_by_position, numbers_of, odd_sample
from .._convert import to_torch
from .._dtypes import from_numpy_dtype
from .._errors import NdtorchError, UnsupportedTypeError
from .._images import check_mode, is_pillow
from .._objects import is_list_of_numbers
from .._spec import describe
from .._stack import array_of, as_arrays, promoted
from .._structures import is_structure, not_convertible, take_apart
from ..foreign import Memory, Unread, recognise
from .arrays import array_sources, hint_at_objects, refusal, tensor_sources
from .columns import Allocate, AnyArray, Column
from .movable import MovableArray
from .orders import Rows
from .parts import SUBJECT, Sources, combined, single
from .pictures import PictureListColumn, hint_at, looks_like_pictures
from .ragged import ListColumn, RaggedColumn
from .reading import Element, Readers
from .wishes import Wishes


def list_sources(samples: Sequence[Any], wishes: Wishes, path: str, *, in_sample: bool = False) -> Sources:
    """Take a list of samples.

    Args:
        samples: All of one kind: numbers, arrays, text, None, or structures of these.
        wishes: What is wanted.
        path: Where in the data they are.
        in_sample: Whether these are leaves of larger samples, whose numbers are as `collate` has them.

    Raises:
        ShapeMismatchError: One is not like the first; its ``index`` says which.
        UnsupportedTypeError: One is nothing that a batch could be made of.
    """
    samples = list(samples)  # of our own: it stays as long as it is
    if not samples:
        return tensor_sources(torch.empty(0, device="cpu"), wishes, path)
    try:
        kind = _kind_of_all(samples, None if in_sample else path)
        if kind == "structure":
            return _structure_sources(samples, wishes, path)
    except NdtorchError as error:
        raise error.renamed(SUBJECT) from None
    wishes.leaves[path] = f"a list of {len(samples)} {_NAMES[kind]}"
    if kind in ("text", "None"):
        return single(ObjectsColumn(samples), path)
    if kind == "number":
        return tensor_sources(_numbers(samples, wishes, in_sample=in_sample), wishes, path)
    if kind == "scalar":
        return array_sources(np.array(samples), wishes, path)
    if kind == "foreign":
        return list_sources([_element(i, value) for i, value in enumerate(samples)], wishes, path, in_sample=in_sample)
    if all(type(sample) is list for sample in samples):
        return _lists_sources(samples, wishes, path)
    return _arrays_sources(samples, wishes, path)


_NAMES = {
    "None": "None",
    "text": "texts",
    "number": "numbers",
    "scalar": "values",
    "array": "arrays",
    "foreign": "objects",
}


class ObjectsColumn(Column):
    """Text and None, which stay what they are: batches are lists."""

    def __init__(self, values: list[Any]) -> None:
        self.length = len(values)
        self._values = values

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Give a list of them."""
        values = self._values
        return [values[row] for row in rows.tolist()], None


# --- of which kind


def _kind_of_all(samples: list[Any], path: str | None) -> str:
    known = {cls: _kind_of_class(cls) for cls in set(map(type, samples))}
    if len(known) == 1 and (kind := next(iter(known.values()))) is not None:
        return kind
    kinds = [known[type(sample)] or _kind_of(sample, i) for i, sample in enumerate(samples)]
    odd = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        error = odd_sample(odd, "another kind than sample 0", *(_text_of(samples[i]) for i in (0, odd)))
        if path is not None and set(kinds) <= {"None", "text", "number"}:
            error.hint = hint_at_objects(np.array(samples, object), path) or error.hint
        raise error
    return kinds[0]


def _kind_of_class(cls: type) -> str | None:
    """The kind of all instances of a class; ``None`` where that depends on the instance."""
    if cls is NoneType:
        return "None"
    if issubclass(cls, str | bytes):
        return "text"
    if issubclass(cls, bool | int | float | complex | np.number | np.bool_):
        return "number"
    if issubclass(cls, np.generic):
        return "scalar"
    if issubclass(cls, np.ndarray | torch.Tensor):
        return "array"
    return "structure" if cls in (dict, tuple) else None


def _kind_of(sample: Any, index: int) -> str:
    if type(sample) is list:
        return "array" if not sample or is_list_of_numbers(sample) else "structure"
    if is_structure(sample):
        return "structure"
    if isinstance(sample, os.PathLike):
        raise _not_opened(sample).at(f"[{index}]")
    taken = recognise(sample)
    if taken is sample:
        raise not_convertible(sample, SUBJECT).at(f"[{index}]")
    return "array" if isinstance(taken, Memory | Unread) else "foreign"


def _not_opened(path: os.PathLike[str]) -> UnsupportedTypeError:
    where = os.path.join(os.path.dirname(os.fspath(path)), "*" + os.path.splitext(os.fspath(path))[1])
    hint = f"ndtorch.read({where!r}).values() has each file as one sample"
    return UnsupportedTypeError(SUBJECT, "a list of paths is not opened", expected="samples", got="paths", hint=hint)


def _text_of(sample: Any) -> str:
    if type(sample) is list:
        return f"a list of {'numbers' if is_list_of_numbers(sample) else 'other things'}" if sample else "an empty list"
    return str(describe(sample)) if isinstance(sample, np.ndarray | torch.Tensor) else type(sample).__name__


def _element(index: int, value: Any) -> Any:
    try:
        return to_torch(value, readonly="share")
    except NdtorchError as error:
        raise refusal(error).at(f"[{index}]") from None


# --- structures


def _structure_sources(samples: list[Any], wishes: Wishes, path: str) -> Sources:
    types = set(map(type, samples))
    if types == {dict}:
        by_key = columns_by_key(samples)
        keys = list(by_key)
        parts = [_place(column, wishes, path, f"[{key!r}]") for key, column in by_key.items()]
        return combined(parts, lambda leaves: dict(zip(keys, leaves, strict=True)))
    if types in ({tuple}, {list}):
        cls = type(samples[0])
        columns = columns_by_position(samples)
        return combined([_place(column, wishes, path, f"[{i}]") for i, column in enumerate(columns)], cls)
    first, *others = (take_apart(sample, SUBJECT, is_leaf=_is_list_of_numbers) for sample in samples)
    for i, other in enumerate(others, 1):
        if other.treespec != first.treespec:
            raise odd_sample(i, "another structure than sample 0", first.treespec, other.treespec)
    places = zip(first.paths(), zip(*(each.leaves for each in (first, *others)), strict=True), strict=True)
    return combined([_place(list(leaves), wishes, path, step) for step, leaves in places], first.rebuild)


def _place(column: list[Any], wishes: Wishes, path: str, step: str) -> Sources:
    try:
        return list_sources(column, wishes, path + step, in_sample=True)
    except NdtorchError as error:
        raise error.at(step) from None


def _is_list_of_numbers(value: Any) -> bool:
    return type(value) is list and (not value or is_list_of_numbers(value))


# --- numbers


def _numbers(samples: list[Any], wishes: Wishes, *, in_sample: bool) -> torch.Tensor:
    try:
        return numbers_of(samples, _bridge.fresh) if in_sample else _tensor_of(samples, wishes)
    except NdtorchError as error:
        raise refusal(error) from None


def _tensor_of(numbers: list[Any], wishes: Wishes) -> torch.Tensor:
    """Read numbers as `to_torch` does, so that a cast starts from their exact values."""
    result: torch.Tensor = to_torch(numbers, **wishes.casts())
    return result


def _lists_sources(samples: list[list[Any]], wishes: Wishes, path: str) -> Sources:
    """Lists of numbers: one array where they are equally long, else, or all empty, one after the other: ragged rows."""
    pad_value = wishes.padding_at(path)
    try:
        if pad_value is None and is_list_of_numbers(samples):
            return tensor_sources(_tensor_of(samples, wishes), wishes, path)
        flat = list(chain.from_iterable(samples))
        if flat and not is_list_of_numbers(flat):
            return _arrays_sources([np.asarray(_tensor_of(sample, wishes)) for sample in samples], wishes, path)
        content = array_of(_tensor_of(flat, wishes), SUBJECT)
    except NdtorchError as error:
        raise refusal(error) from None
    offsets = np.cumsum([0, *map(len, samples)])
    return ragged_sources(content, offsets, wishes, path)


def ragged_sources(content: AnyArray, offsets: AnyArray, wishes: Wishes, path: str) -> Sources:
    """Take slices of one array of numbers that lie one after the other."""
    own = from_numpy_dtype(content.dtype)
    assert own is not None
    wishes.leaves[path] = f"{len(offsets) - 1} ragged rows"
    return single(RaggedColumn(content, offsets, wishes.row_of(own), wishes.padding_at(path)), path)


# --- arrays


def _arrays_sources(samples: list[Any], wishes: Wishes, path: str) -> Sources:
    arrays = _arrays_of(samples)
    wish = wishes.image_at(path)
    are_pillow = all(map(is_pillow, samples))
    if wish is not None:
        wish = wish._replace(is_named=wish.is_named or are_pillow)
        if wish.is_named or all(looks_like_pictures(array.dtype, array.shape) for array in arrays):
            wishes.is_picture()
            _check_modes(samples)
            readers = Readers(arrays, path, samples if are_pillow else None)
            return single(PictureListColumn(readers, wish), path)
        are_tensors = isinstance(samples[0], torch.Tensor)
        pixels = "image.movedim(0, -1)" if are_tensors else "numpy.moveaxis(image, 0, -1)"
        wishes.is_no_picture(hint_at(path, arrays[0].dtype, arrays[0].shape, f"{pixels} of each"))
    dtypes = {array.dtype for array in arrays}
    rows = [row for row in map(from_numpy_dtype, dtypes) if row is not None]
    kinds = 0
    for row in rows:
        kinds |= 1 << row.scalar_type
    pad_value = wishes.padding_at(path) if any(array.shape for array in arrays) else None
    return single(ListColumn(Readers(arrays, path), wishes.row_of(promoted(kinds)), pad_value), path)


def _arrays_of(samples: list[Any]) -> list[Element]:
    """Each as an array of a dtype that torch has, in its own memory where it has any, or unread."""
    taken = [recognise(sample) for sample in samples]
    if not any(isinstance(each, Unread) for each in taken):
        return list(map(_watched, samples, _in_memory(tuple(samples))))
    arrays: list[Element] = []
    for i, (sample, each) in enumerate(zip(samples, taken, strict=True)):
        is_late = isinstance(each, Unread) and from_numpy_dtype(each.dtype) is not None
        arrays.append(each if is_late else _watched(sample, *_in_memory((_element(i, sample),))))
    return arrays


def _watched(sample: Any, array: AnyArray) -> Element:
    """The array over a sample, together with that where it is a tensor that may move."""
    is_movable = isinstance(sample, torch.Tensor) and sample.device.type == "cpu" and _bridge.is_movable(sample)
    return MovableArray(sample, array) if is_movable and array.size else array.view()


def _in_memory(samples: tuple[Any, ...]) -> tuple[AnyArray, ...]:
    try:
        return as_arrays(samples, None)
    except NdtorchError as error:
        raise refusal(error) from None


def _check_modes(samples: list[Any]) -> None:
    for i, sample in enumerate(samples):
        if is_pillow(sample):
            try:
                check_mode(sample, SUBJECT)
            except NdtorchError as error:
                raise error.at(f"[{i}]") from None
