"""Shapes, strides and indices of arrays that are not in memory: what an index means, and how to cut an array up."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

Key = tuple[int | slice, ...]


def row_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of elements that lie row by row.

    >>> row_major((2, 3), 8)
    (24, 8)
    """
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def column_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of elements that lie column by column.

    >>> column_major((2, 3), 8)
    (8, 16)
    """
    return row_major(shape[::-1], itemsize)[::-1]


def are_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether elements lie row by row, without gaps."""
    steps = zip(shape, strides, row_major(shape, itemsize), strict=True)
    return 0 in shape or all(n == 1 or stride == step for n, stride, step in steps)


def slabs(shape: tuple[int, ...], limit: int, rows: int = 1) -> Iterator[Key]:
    """Cut an array into parts of at most ``limit`` elements, in row-major order, each an index.

    ``rows`` of the first axis stay together where they fit.

    >>> list(slabs((4, 3), 6))
    [(slice(0, 2, None),), (slice(2, 4, None),)]
    >>> list(slabs((2, 3), 2))
    [(0, slice(0, 2, None)), (0, slice(2, 3, None)), (1, slice(0, 2, None)), (1, slice(2, 3, None))]
    """
    if not shape:
        yield ()
        return
    axis = next((axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= limit), len(shape) - 1)
    step = max(limit // max(math.prod(shape[axis + 1 :]), 1), 1)
    if axis == 0 and step > rows:
        step -= step % rows
    for outer in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, min(start + step, shape[axis])))


def bounds(key: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], Any]:
    """Split an index into one slice of step 1 for each axis, and the index of the same elements in what that gives.

    >>> bounds((-1, slice(0, 9, 4)), (4, 10))
    ((slice(3, 4, None), slice(0, 9, None)), (0, slice(None, None, 4)))
    """
    if not is_basic(key):
        return tuple(slice(0, n) for n in shape), key
    keys = key if isinstance(key, tuple) else (key,)
    used = sum(each is not None and each is not ... for each in keys)
    if used > len(shape) or sum(each is ... for each in keys) > 1:
        np.broadcast_to(np.empty((), bool), shape)[key]  # whose error says it best
    if all(each is not ... for each in keys):
        keys = (*keys, ...)
    slices: list[slice] = []
    rest: list[Any] = []
    for each in keys:
        if each is None:
            rest.append(None)
        elif each is ...:
            free = len(shape) - used
            slices += [slice(0, n) for n in shape[len(slices) : len(slices) + free]]
            rest += [slice(None)] * free
        else:
            part, inner = _bound(each, shape[len(slices)], len(slices))
            slices.append(part)
            rest.append(inner)
    return tuple(slices), tuple(rest)


def _bound(key: Any, n: int, axis: int) -> tuple[slice, int | slice]:
    if not isinstance(key, slice):
        index = operator.index(key)
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of bounds for axis {axis} with size {n}")
        return slice(index % n, index % n + 1), 0
    picked = range(n)[key]
    if not picked:
        return slice(0, 0), slice(None)
    low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1])
    return slice(low, high + 1), slice(None) if picked.step == 1 else slice(None, None, picked.step)


def for_array(key: Any) -> Any:
    """The same index, so that one element is an array of no dimensions: a scalar has lost its byte order."""
    if not is_basic(key):
        return key
    keys = key if isinstance(key, tuple) else (key,)
    return keys if any(each is ... for each in keys) else (*keys, ...)


def is_basic(key: Any) -> bool:
    """Whether an index is made of integers, slices, ``None`` and ``...`` alone: what it selects is a view."""
    keys = key if isinstance(key, tuple) else (key,)
    return all(
        each is None
        or each is ...
        or isinstance(each, slice)
        or (hasattr(each, "__index__") and np.ndim(each) == 0 and not isinstance(each, bool | np.bool_))
        for each in keys
    )
