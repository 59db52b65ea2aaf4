"""Columns put together: chunks joined, rows of equal length, missing rows, values that had to be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._casting import copy_into
from .forms import Memory, Parts, Refused, Restore, Unread, masked, ragged

AnyArray = npt.NDArray[Any]
Missing = tuple[int, tuple[int, ...]]
"""How many values are missing, and the index of the first."""


class Split(NamedTuple):
    """Values and the mask of the missing ones, on the way back."""

    data: Any
    mask: Any


def shape_of(form: Any) -> tuple[int, ...]:
    """Sizes of an array or of what an object was taken for."""
    return tuple(form.array.shape if isinstance(form, Memory) else form.shape)


def values_of(form: Any) -> Any:
    """The values of one array: its memory, or what reading it gives."""
    if isinstance(form, Memory):
        return form.array
    return form.read() if isinstance(form, Unread) else form


def is_masked(form: object) -> bool:
    """Whether values are missing."""
    return isinstance(form, Parts) and form.form == "masked"


# --- values that had to be made


def made(form: Any, reason: str) -> Any:
    """The same, of values that were made for this conversion and lie in nobody else's memory."""
    if isinstance(form, Memory):
        array: Any = form.array
        return Unread(form.library, array.dtype, array.shape, reason, lambda: array, note=form.note)
    if isinstance(form, Parts):
        return replace(form, parts={path: made(part, reason) for path, part in form.parts.items()})
    return form


# --- rows of equal length


def split_rows(form: Any, rows: int, length: int) -> Any:
    """Make n rows of k elements each out of n times k elements: one more dimension, where there can be one."""
    if isinstance(form, Refused):
        return form
    if isinstance(form, Parts) and form.form not in ("masked", "table"):
        return ragged(form.library, "list", form, np.arange(rows + 1) * length)
    shape = (rows, length, *shape_of(form)[1:])
    if isinstance(form, Memory):
        return replace(form, array=form.array.reshape(shape))
    if isinstance(form, Unread):
        return _reshaped(form, shape)
    if form.form == "table":
        columns = {path: split_rows(part, rows, length) for path, part in form.parts.items()}
        return replace(form, shape=(rows, len(columns)), parts=columns)
    data, mask = (split_rows(form.parts[path], rows, length) for path in (".data", ".mask"))
    if isinstance(data, Parts) and data.form == "ragged":
        return ragged(form.library, "list", form, np.arange(rows + 1) * length)
    return masked(form.library, data, mask, missing=_moved(form, shape_of(mask)), note=form.note)


def _reshaped(form: Unread, shape: tuple[int, ...]) -> Unread:
    read, fill, flat = form.read, form.fill, form.shape
    into = None if fill is None else lambda array: fill(array.reshape(flat))
    return replace(form, shape=shape, read=lambda: read().reshape(shape), fill=into)


def _moved(form: Parts, shape: tuple[int, ...]) -> Missing:
    """Where the first missing value is in another shape."""
    count, first = form.missing
    if not count:
        return form.missing
    flat = np.ravel_multi_index(first, form.shape)
    return count, tuple(map(int, np.unravel_index(int(flat), shape)))


def flat_rows(source: Any, length: int, to_array: Callable[[Any], AnyArray]) -> tuple[Any, int]:
    """Undo `split_rows`: what is in the rows, one after the other, and how many rows there were.

    Raises:
        ValueError: A row has another length.
    """
    if isinstance(source, dict):
        columns = {name: flat_rows(column, length, to_array) for name, column in source.items()}
        return {name: flat for name, (flat, _) in columns.items()}, min((n for _, n in columns.values()), default=0)
    if isinstance(source, tuple) and hasattr(source, "mask"):
        (data, rows), (mask, _) = (flat_rows(part, length, to_array) for part in source)
        return Split(data, mask), rows
    if isinstance(source, list):
        return _flat_lists(source, length, to_array), len(source)
    array = to_array(source)
    if array.ndim < 2 or array.shape[1] != length:
        raise ValueError(f"shape {array.shape}")
    return array.reshape(-1, *array.shape[2:]), len(array)


def _flat_lists(rows: list[Any], length: int, to_array: Callable[[Any], AnyArray]) -> Any:
    """Elements that are lists themselves; a row may say which of its own are missing."""
    pieces = [row.data if hasattr(row, "mask") else row for row in rows]
    if any(len(piece) != length for piece in pieces):
        raise ValueError("rows of other lengths")
    flat = [element for piece in pieces for element in piece]
    if not any(hasattr(row, "mask") for row in rows):
        return flat
    masks = [to_array(row.mask) if hasattr(row, "mask") else np.zeros(length, bool) for row in rows]
    return Split(flat, np.concatenate(masks))


def array_as(source: Any, dtype: Any, inner: Restore, path: str) -> AnyArray:
    """An array of a dtype; integers that were taken out of rows already become the times that they count."""
    dtype = np.dtype(dtype)
    if isinstance(source, np.ndarray) and source.dtype == np.int64 and dtype.kind in "Mm":
        return source.view(dtype)
    array: AnyArray = inner(source, np.empty(0, dtype), path)
    return array


# --- missing rows


def with_missing(form: Any, mask: Unread, missing: Missing) -> Any:
    """Take rows for missing, on top of the values that are missing already."""
    if isinstance(form, Refused) or not missing[0]:
        return form
    data, inner = (form.parts[".data"], form.parts[".mask"]) if is_masked(form) else (form, None)
    is_array = not isinstance(data, Parts)
    shape = shape_of(inner) if inner is not None else shape_of(data) if is_array else mask.shape
    if inner is None and shape == mask.shape:
        return masked(form.library, data, mask, missing=missing, note=form.note)
    wide = (*mask.shape, *(1 for _ in shape[len(mask.shape) :]))

    def read() -> AnyArray:
        rows = values_of(mask).reshape(wide)
        result = np.empty(shape, bool)
        np.logical_or(rows, False if inner is None else values_of(inner), out=result)
        return result

    both = Unread(form.library, np.dtype(bool), shape, mask.reason, read)
    if inner is not None:
        return masked(form.library, data, both, note=form.note)
    count, first = missing
    each = int(np.prod(shape[len(mask.shape) :]))
    whole = (count * each, (*first, *(0 for _ in shape[len(mask.shape) :])) if each else ())
    return masked(form.library, data, both, missing=whole, note=form.note)


# --- chunks


def joined(pieces: Sequence[Any], reason: str) -> Any:
    """Take chunks of one column, each taken for a form already, for the whole column."""
    refused = next((piece for piece in pieces if isinstance(piece, Refused)), None)
    if refused is not None:
        return refused
    pieces = [piece for piece in pieces if shape_of(piece)[0]] or pieces[:1]
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if any(map(is_masked, pieces)):
        return _join_masked(pieces, reason)
    if not isinstance(first, Parts):
        return _join_arrays(pieces, reason)
    parts = {path: joined([piece.parts[path] for piece in pieces], reason) for path in first.parts}
    length = sum(piece.shape[0] for piece in pieces)
    offsets = _join_offsets([piece.offsets for piece in pieces]) if first.form == "ragged" else None
    return replace(first, shape=(length, *first.shape[1:]), parts=parts, offsets=offsets)


def _join_offsets(pieces: list[AnyArray]) -> AnyArray:
    starts = [0, *accumulate(int(offsets[-1]) for offsets in pieces)]
    moved = [offsets[:-1].astype(np.int64) + start for offsets, start in zip(pieces, starts, strict=False)]
    return np.concatenate([*moved, starts[-1:]])


def _join_arrays(pieces: Sequence[Any], reason: str) -> Unread:
    shapes = [shape_of(piece) for piece in pieces]
    shape = (sum(n for n, *_ in shapes), *shapes[0][1:])
    first = values_of(pieces[0]).dtype if isinstance(pieces[0], Memory) else pieces[0].dtype
    return unread_in_steps(
        pieces[0].library, first, shape, reason, [_filler(piece) for piece in pieces], pieces[0].note
    )


Filler = tuple[int, Callable[[AnyArray], None]]


def _filler(piece: Any) -> Filler:
    def fill(array: AnyArray) -> None:
        copy_into(array, values_of(piece), casting="no", subject="to_torch", what=piece)

    return shape_of(piece)[0], fill


def unread_in_steps(
    library: str, dtype: Any, shape: tuple[int, ...], reason: str, fillers: list[Filler], note: str = ""
) -> Unread:
    """An array that several fill, each so many of its rows."""

    def fill(array: AnyArray) -> None:
        start = 0
        for length, step in fillers:
            step(array[start : start + length])
            start += length

    def read() -> AnyArray:
        array = np.empty(shape, dtype)
        fill(array)
        return array

    return Unread(library, dtype, shape, reason, read, fill, note=note)


def _join_masked(pieces: Sequence[Any], reason: str) -> Parts:
    data = joined([piece.parts[".data"] if is_masked(piece) else piece for piece in pieces], reason)
    inner = next(piece.parts[".mask"] for piece in pieces if is_masked(piece))
    fillers, count, first, start = [], 0, (), 0
    for piece in pieces:
        length = shape_of(piece)[0]
        mask = piece.parts[".mask"] if is_masked(piece) else np.zeros((length, *shape_of(inner)[1:]), bool)
        fillers.append(_filler(mask))
        if is_masked(piece) and piece.missing[0]:
            first = first or (piece.missing[1][0] + start, *piece.missing[1][1:])
            count += piece.missing[0]
        start += length
    library = pieces[0].library
    mask = unread_in_steps(library, np.dtype(bool), (start, *shape_of(inner)[1:]), reason, fillers)
    return masked(library, data, mask, missing=(count, first), note=pieces[0].note)
