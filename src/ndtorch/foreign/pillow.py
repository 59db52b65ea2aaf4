"""Pictures of Pillow: their pixels as `numpy.asarray` gives them, HWC, copied once."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import ShapeMismatchError
from ..files.pictures import fill_pixels, form_of, pixel_of
from .forms import Foreign, Inner, Restore, Unread

AnyArray = npt.NDArray[Any]

_NOTES = {
    "P": "its pixels are indices into a palette: picture.convert('RGB') gives colours",
    "PA": "its first channel holds indices into a palette: picture.convert('RGBA') gives colours",
}


def take(source: Any, inner: Inner) -> Foreign:
    """Take a picture, of which only the header may have been read so far."""
    dtype, shape = form_of(source)

    def read() -> AnyArray:
        array = np.empty(shape, dtype)
        fill_pixels(source, array)
        return array

    def fill(array: AnyArray) -> None:
        fill_pixels(source, array)

    reason = "Pillow keeps its pixels in a layout of its own"
    return Unread("PIL", dtype, shape, reason, read, fill, note=_NOTES.get(source.mode, ""))


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Make a picture of the same mode, palette and info of an array of any size.

    Memory:
        Always copied, as Pillow has a layout of its own.

    Raises:
        ShapeMismatchError: The array is no picture of that many channels.
    """
    dtype, bands = pixel_of(like.mode)
    array = inner(source, np.empty((0,), dtype))
    wanted = 2 if bands == 1 else 3
    if array.ndim != wanted or (bands > 1 and array.shape[2] != bands):
        expected = "(height, width)" if bands == 1 else f"(height, width, {bands})"
        fact = f"like= is a picture of mode {like.mode}"
        hint = "tensor.permute(1, 2, 0) puts the channels last"
        raise ShapeMismatchError("to_numpy", fact, expected=expected, got=tuple(array.shape), hint=hint)
    size = array.shape[1::-1]
    raw = "1;8" if like.mode == "1" else like.mode
    pixels = np.where(array, np.uint8(255), np.uint8(0)) if like.mode == "1" else array
    pillow: Any = sys.modules["PIL.Image"]
    picture = pillow.new(like.mode, size)
    if array.size:
        picture.frombytes(np.ascontiguousarray(pixels).tobytes(), "raw", raw)
    if like.mode in ("P", "PA"):
        colours = like.palette.mode
        picture.putpalette(like.getpalette(colours), colours)
    picture.info = dict(like.info)
    return picture


def wrap(array: AnyArray, like: Any) -> Any:
    """Make a picture of an array that fits the example's mode; else it stays an array."""
    dtype, bands = pixel_of(like.mode)
    shape = array.shape[2:] if array.ndim == 3 else ()
    fits = array.dtype == dtype and array.ndim in (2, 3) and shape == (() if bands == 1 else (bands,))
    return restore(array, like, lambda source, example: source) if fits else array
