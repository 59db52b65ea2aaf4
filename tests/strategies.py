"""What tests are fed: dtypes of both worlds, memory layouts by name, and arrays that Hypothesis draws.

Nothing here knows ndtorch: the pairs of dtypes are written down, and layouts are made from addresses and strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

NATIVE = {
    name: (np.dtype(name), getattr(torch, name))
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
SMALL_FLOATS = {
    name: (np.dtype(getattr(ml_dtypes, name)), getattr(torch, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
}
DTYPES = {**NATIVE, **SMALL_FLOATS}
"""Every dtype that both worlds have, as (NumPy's, torch's), by its one name."""


def filled(dtype: Any, shape: tuple[int, ...] | int = (3, 4)) -> np.ndarray:
    """An array of small whole numbers, all different where the dtype allows."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    numbers = np.arange(1, count + 1) % (2 if dtype.kind == "b" else 100)
    if dtype.name == "float8_e8m0fnu":
        numbers = 2.0 ** (np.arange(count) % 8)  # it holds powers of two only
    return numbers.astype(dtype).reshape(shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# ---- layouts: the same values, laid out in memory in another way ----


def pitched(array: np.ndarray, pitch: int, offset: int = 0) -> np.ndarray:
    """The same values ``pitch`` bytes apart, the first ``offset`` bytes after an aligned address."""
    raw = np.zeros(offset + pitch * max(array.size, 1) + 64, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64 + offset
    strides = tuple(s // array.itemsize * pitch for s in np.empty(array.shape, array.dtype).strides)
    other = np.ndarray(array.shape, array.dtype, raw, start, strides)
    other[...] = array
    return other


def _every_other(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], array.shape[-1] * 2), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


SHAREABLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "row-major": np.array,
    "column-major": np.asfortranarray,
    "transposed": lambda a: np.array(a.T).T,
    "every other item": _every_other,
    "part of a larger array": lambda a: np.pad(a, 1)[tuple(slice(1, -1) for _ in a.shape)],
    "a new axis": lambda a: np.array(a)[:, None][:, 0],
}
"""Layouts that torch can describe. For arrays of one dimension or more."""

UNSHAREABLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed rows": lambda a: np.array(a[::-1])[::-1],
    "reversed items": lambda a: np.array(a[..., ::-1])[..., ::-1],
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "unaligned": lambda a: pitched(a, a.itemsize, 1),
    "odd pitch": lambda a: pitched(a, a.itemsize * 2 - 1),
}
"""Layouts that torch cannot describe, for arrays of two or more items along their first and last axis."""


def can_be(layout: str, dtype: np.dtype) -> bool:
    """Whether a dtype can be laid out like this and be anything but plain."""
    if layout == "other byte order":
        return not dtype.newbyteorder("S").isnative
    return layout not in ("unaligned", "odd pitch") or dtype.itemsize > 1


# ---- Hypothesis ----


def dtypes() -> st.SearchStrategy[np.dtype]:
    return st.sampled_from([numpy for numpy, _ in DTYPES.values()])


@st.composite
def arrays(draw: st.DrawFn, *, of: st.SearchStrategy[np.dtype] | None = None, max_side: int = 4) -> np.ndarray:
    """Any array torch may meet: any strides and alignment, both byte orders, writable or not, any bits as values."""
    dtype = draw(dtypes() if of is None else of)
    if draw(st.booleans()):
        dtype = dtype.newbyteorder("S")
    shape = tuple(draw(st.lists(st.integers(0, max_side), max_size=4)))
    pitch = dtype.itemsize + draw(st.sampled_from([0, 0, 0, 1, dtype.itemsize]))
    strides = [0] * len(shape)
    start = draw(st.sampled_from([0, 0, 0, 1]))
    for axis in draw(st.permutations(range(len(shape)))):
        step = draw(st.sampled_from([1, 1, 1, 2, -1, -2, 0]))
        strides[axis] = pitch * step
        start += max(shape[axis] - 1, 0) * max(-strides[axis], 0)
        pitch *= max(shape[axis] * abs(step), 1)
    raw = np.zeros(start + pitch + 128, np.uint8)
    start += -raw.__array_interface__["data"][0] % 64
    array = np.ndarray(shape, dtype, raw, start, tuple(strides))
    array[...] = any_values(dtype, shape, draw(st.integers(0, 2**32 - 1)))
    if draw(st.integers(0, 3)) == 0:
        array.flags.writeable = False
    return array


def any_values(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bit pattern of a dtype, so that every NaN, infinity and subnormal has its turn."""
    count = int(np.prod(shape))
    raw = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8)
    if dtype.kind == "b":
        raw &= 1
    return raw.view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, *, max_side: int = 4) -> torch.Tensor:
    """Any dense tensor on the CPU: strided, expanded, requiring grad, conjugated or negated."""
    numpy, dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, max_side), max_size=3))
    raw = any_values(numpy, (int(np.prod([n * 2 for n in shape])) + 1,), draw(st.integers(0, 2**32 - 1)))
    base = torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype)
    strides, pitch = [0] * len(shape), 1
    for axis in draw(st.permutations(range(len(shape)))):
        step = draw(st.sampled_from([1, 1, 2, 0]))
        strides[axis] = pitch * step
        pitch *= max(shape[axis] * step, 1)
    tensor = base.as_strided(shape, strides, draw(st.integers(0, 1)) if pitch < len(base) else 0)
    if dtype.is_complex and draw(st.booleans()):
        tensor = draw(st.sampled_from([torch.Tensor.conj, lambda t: t.conj().imag]))(tensor)
    elif dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) and draw(st.booleans()):
        tensor = tensor.requires_grad_()
    return tensor


def overlapping(base: np.ndarray) -> st.SearchStrategy[np.ndarray]:
    """Views into one buffer of bytes with any item size, start and strides, negative and overlapping ones too."""

    @st.composite
    def views(draw: st.DrawFn) -> np.ndarray:
        item = draw(st.sampled_from([1, 2, 4, 8]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        strides = [draw(st.integers(-9, 9)) for _ in shape]
        low = sum(min((n - 1) * s, 0) for n, s in zip(shape, strides, strict=True) if n)
        high = sum(max((n - 1) * s, 0) for n, s in zip(shape, strides, strict=True) if n) + item
        start = draw(st.integers(-low, base.nbytes - high))
        whole = base[start : start + item].view(f"u{item}")
        return as_strided(whole[0:1].reshape(()), shape, strides)

    return views()
