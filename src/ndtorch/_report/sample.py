"""The part of an array that a page holds: all of it where it is small, else every so manieth index of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._dtypes import from_numpy_dtype
from .._statistics import stream_order, widened
from ..files.arrays import FileArray

AnyArray = npt.NDArray[Any]
Steps = tuple[int, ...]

_CHANNELS = (1, 3, 4)


class View(NamedTuple):
    """How an array is shown at first.

    Attributes:
        mode: ``picture``, ``map``, ``line`` or ``values``.
        layout: Of a picture ``HW``, ``HWC`` or ``CHW``; more axes before these make a batch.
    """

    mode: str
    layout: str = ""


def view_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> View:
    """Choose how an array is shown.

    >>> view_of(np.dtype(np.uint8), (10, 3, 32, 32))
    View(mode='picture', layout='CHW')
    >>> view_of(np.dtype(np.float32), (10,))
    View(mode='line', layout='')
    """
    row = from_numpy_dtype(dtype)
    if not shape or 0 in shape or (row is None and dtype.kind not in "fc"):
        return View("values")
    if dtype.kind == "u" and dtype.itemsize <= 2 and len(shape) > 1 and min(shape[-2:]) > 1:
        if len(shape) > 2 and shape[-1] in _CHANNELS and min(shape[-3:-1]) > 1:
            return View("picture", "HWC")
        if len(shape) > 2 and shape[-3] in _CHANNELS:
            return View("picture", "CHW")
        return View("picture", "HW")
    is_matrix = len(shape) > 1 and min(shape[-2:]) > 1
    return View("map" if is_matrix else "line")


def steps_of(shape: tuple[int, ...], limit: int, view: View) -> Steps:
    """Take every so manieth index of each axis, so that at most ``limit`` elements remain.

    The axes of a picture or matrix stay whole as long as one of them fits, its channels always.

    >>> steps_of((1000, 100, 100), 20_000, View("map"))
    (500, 1, 1)
    >>> steps_of((400, 400, 3), 30_000, View("picture", "HWC"))
    (4, 4, 1)
    """
    steps = [1] * len(shape)
    channel = {"HWC": len(shape) - 1, "CHW": len(shape) - 3}.get(view.layout)
    plane = max(len(shape) - (3 if channel is not None else 2), 0)
    leading = [axis for axis in range(plane) if axis != channel]
    _thin(shape, steps, leading, limit)
    _thin(shape, steps, [axis for axis in range(plane, len(shape)) if axis != channel], limit)
    return tuple(steps)


def _thin(shape: tuple[int, ...], steps: list[int], axes: Sequence[int], limit: int) -> None:
    """Raise the steps of some axes, that of the longest first, until few enough elements remain or one of each."""

    def count(axis: int) -> int:
        return -(-shape[axis] // steps[axis])

    while axes and math.prod(map(count, range(len(shape)))) > limit:
        axis = max(axes, key=count)
        if count(axis) == 1:
            return
        others = math.prod(count(other) for other in range(len(shape)) if other != axis)
        wanted = max(limit // others, count(axis) // 2, 1)  # by halves, so that equal axes stay equal
        steps[axis] = max(-(-shape[axis] // wanted), steps[axis] + 1)


class Sample:
    """Collects the elements at every so manieth index while an array is streamed."""

    def __init__(self, array: FileArray, steps: Steps) -> None:
        self.steps = steps
        self.counts = tuple(-(-n // step) for n, step in zip(array.shape, steps, strict=True))
        self._backwards = stream_order(array) == "F"
        order = slice(None, None, -1 if self._backwards else 1)
        shape, self._counts, used = array.shape[order], self.counts[order], steps[order]
        grid = np.zeros((), np.int64)
        for n, count, step in zip(shape, self._counts, used, strict=True):
            grid = (grid * n)[..., None] + np.arange(count, dtype=np.int64) * step
        self._places = grid.reshape(-1)
        self._values = np.empty(self._places.size, array.dtype)
        self._seen = self._taken = 0

    def take(self, values: AnyArray) -> None:
        """Take what is wanted of the next elements of the stream."""
        end = int(np.searchsorted(self._places, self._seen + values.size))
        if end > self._taken:
            self._values[self._taken : end] = values[self._places[self._taken : end] - self._seen]
        self._seen, self._taken = self._seen + values.size, end

    def result(self) -> AnyArray:
        """The elements, once all of the array has been streamed."""
        whole = self._values.reshape(self._counts)
        return whole.T if self._backwards else whole


def packed(values: AnyArray) -> tuple[str, bytes | list[str]]:
    """The values as a JavaScript typed array has them, with the letters of its type; text as a list."""
    row = from_numpy_dtype(values.dtype)
    kind = values.dtype.kind if row is None else row.kind
    if kind == "bool":
        values = (values.view(np.uint8) != 0) if values.flags.c_contiguous else values.astype(np.uint8) != 0
        values = values.astype(np.uint8)
    elif kind in ("float", "f"):
        values = widened(np.ascontiguousarray(values))
        values = values.astype(np.float64) if values.itemsize > 8 else values
    elif kind in ("complex", "c"):
        values = _parts(values)
    elif kind not in ("int", "uint"):
        return "text", [_text(value) for value in values.reshape(-1)]
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return f"{little.dtype.kind}{little.itemsize}", little.tobytes()


def _parts(values: AnyArray) -> AnyArray:
    """Complex numbers as real ones, with an axis of two in front."""
    return np.stack((values.real, values.imag)).astype(np.float32 if values.itemsize == 8 else np.float64)


def _text(value: Any) -> str:
    shown = value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
