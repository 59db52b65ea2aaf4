"""How tests compare: `assert_same` for values, `assert_shares` and `assert_independent` for memory.

The oracles here know nothing of ndtorch: addresses, dtypes and values are worked out from NumPy and torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch

_MAX_BYTES = 1 << 24  # addresses are listed byte by byte


def assert_same(actual: Any, expected: Any, *, strides: bool = False) -> None:
    """Fail unless two arrays, tensors or structures of them are alike in library, dtype, shape and every value.

    NaN equals NaN, NaT equals NaT, -0.0 differs from 0.0, and a masked element equals any other masked one.

    Args:
        actual: What the code under test made.
        expected: What NumPy or torch says it should be; `tensor_holding` and `array_holding` cross the border.
        strides: Whether the strides are promised too. Along an axis of one element any stride will do.
    """
    _compare(actual, expected, strides, "")


def tensor_holding(array: np.ndarray) -> torch.Tensor:
    """Make an independent tensor with the numbers of an array of any dtype both worlds have, byte by byte."""
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="))
    dtype = getattr(torch, array.dtype.name)
    if array.size == 0:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.tobytes()), dtype=dtype).reshape(array.shape)


def array_holding(tensor: torch.Tensor) -> np.ndarray:
    """Make an independent array with the numbers of a tensor of any dtype both worlds have, byte by byte."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.dtype == torch.complex32:
        plain = plain.to(torch.complex64)
    name = str(plain.dtype).removeprefix("torch.")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    return np.frombuffer(bytearray(_bytes_of(plain)), dtype).reshape(plain.shape)


def assert_shares(a: Any, b: Any) -> None:
    """Fail unless one of two arrays or tensors lies in the other's memory; proved by address and by writing through.

    Writes through every side that may be written, and restores what was there. A tensor over memory that the
    system protects, such as a read-only memory map, must not be given.
    """
    inner, outer = sorted((a, b), key=lambda x: byte_addresses(x).size)
    addresses = byte_addresses(inner)
    assert addresses.size, f"{_name(inner)} is empty: it shares nothing"
    outside = np.setdiff1d(addresses, byte_addresses(outer)).size
    assert not outside, f"{outside} of {addresses.size} bytes of {_name(inner)} lie outside {_name(outer)}"
    for written, seen in _ways_to_write(inner, outer):
        before = _bytes_of(seen)
        with _one_bit_flipped(written, int(addresses[0])):
            assert _bytes_of(seen) != before, f"a write through {_name(written)} is not seen in {_name(seen)}"
        assert _bytes_of(seen) == before, "the test did not restore what it wrote"


def assert_independent(a: Any, b: Any) -> None:
    """Fail unless two arrays or tensors have no byte in common; proved by address and by writing through."""
    common = np.intersect1d(byte_addresses(a), byte_addresses(b)).size
    assert not common, f"{_name(a)} and {_name(b)} have {common} bytes in common"
    if not byte_addresses(a).size or not byte_addresses(b).size:
        return
    for written, seen in _ways_to_write(a, b):
        before = _bytes_of(seen)
        with _one_bit_flipped(written, int(byte_addresses(written)[0])):
            assert _bytes_of(seen) == before, f"a write through {_name(written)} is seen in {_name(seen)}"


def byte_addresses(x: Any) -> np.ndarray:
    """List the address of every byte that an array or tensor can reach, each once, in ascending order."""
    return np.unique(np.add.outer(_element_addresses(x), np.arange(x.itemsize)))


def _element_addresses(x: Any) -> np.ndarray:
    """Give the address of every element; of one only along an axis whose elements all lie at one place."""
    if isinstance(x, torch.Tensor):
        assert x.device.type == "cpu", f"{_name(x)} has no address that NumPy could compare"
        start, strides = x.data_ptr(), tuple(stride * x.itemsize for stride in x.stride())
    else:
        start, strides = x.__array_interface__["data"][0], x.strides
    addresses = np.array(start, np.int64)
    for n, stride in zip(x.shape, strides, strict=True):
        steps = np.arange(n if stride else min(n, 1)) * stride
        assert addresses.size * steps.size * x.itemsize <= _MAX_BYTES, f"{_name(x)} is too large to list its bytes"
        addresses = np.add.outer(addresses, steps)
    return addresses


# ---- values ----


def _compare(actual: Any, expected: Any, strides: bool, path: str) -> None:
    where = f"at source{path}: " if path else ""
    if isinstance(expected, torch.Tensor):
        _compare_tensors(actual, expected, strides, where)
    elif isinstance(expected, np.ndarray):
        _compare_arrays(actual, expected, strides, where)
    elif isinstance(expected, np.generic):
        assert type(actual) is type(expected), f"{where}is a {type(actual)}, expected a {type(expected)}"
        _compare_arrays(np.asarray(actual), np.asarray(expected), False, where)
    elif isinstance(expected, dict):
        assert type(actual) is type(expected), f"{where}is a {type(actual)}, expected a {type(expected)}"
        assert list(actual) == list(expected), f"{where}keys are {list(actual)}, expected {list(expected)}"
        for key, value in expected.items():
            _compare(actual[key], value, strides, f"{path}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert type(actual) is type(expected), f"{where}is a {type(actual)}, expected a {type(expected)}"
        assert len(actual) == len(expected), f"{where}length is {len(actual)}, expected {len(expected)}"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            _compare(a, e, strides, f"{path}[{i}]")
    else:
        assert type(actual) is type(expected), f"{where}is a {type(actual)}, expected a {type(expected)}"
        assert actual == expected or (actual != actual and expected != expected), f"{where}{actual!r} != {expected!r}"


def _compare_tensors(actual: Any, expected: torch.Tensor, strides: bool, where: str) -> None:
    assert isinstance(actual, torch.Tensor), f"{where}is a {type(actual)}, expected a tensor"
    for fact in ("dtype", "shape", "device", "layout"):
        got, wanted = getattr(actual, fact), getattr(expected, fact)
        assert got == wanted, f"{where}{fact} is {got}, expected {wanted}"
    if strides:
        _compare_strides(actual.stride(), expected.stride(), expected.shape, where)
    _compare_values(array_holding(actual), array_holding(expected), where)


def _compare_arrays(actual: Any, expected: np.ndarray, strides: bool, where: str) -> None:
    assert isinstance(actual, np.ndarray), f"{where}is a {type(actual)}, expected an array"
    is_masked = isinstance(actual, np.ma.MaskedArray), isinstance(expected, np.ma.MaskedArray)
    assert is_masked[0] == is_masked[1], f"{where}is a {type(actual)}, expected a {type(expected)}"
    for fact in ("dtype", "shape"):
        got, wanted = getattr(actual, fact), getattr(expected, fact)
        assert got == wanted, f"{where}{fact} is {got}, expected {wanted}"
    if strides:
        _compare_strides(actual.strides, expected.strides, expected.shape, where)
    if is_masked[0]:
        masks = np.ma.getmaskarray(actual), np.ma.getmaskarray(expected)
        _compare_values(*masks, f"{where}mask: ")
        actual, expected = (np.ma.MaskedArray(x).filled(np.zeros((), x.dtype)[()]) for x in (actual, expected))
    _compare_values(np.asarray(actual), np.asarray(expected), where)


def _compare_strides(actual: tuple[int, ...], expected: tuple[int, ...], shape: tuple[int, ...], where: str) -> None:
    if 0 in shape:
        return
    both = [(a, e) for a, e, n in zip(actual, expected, shape, strict=True) if n > 1]
    assert all(a == e for a, e in both), f"{where}strides are {actual}, expected {expected} for shape {tuple(shape)}"


def _compare_values(actual: np.ndarray, expected: np.ndarray, where: str) -> None:
    if expected.dtype.names is not None:
        for name in expected.dtype.names:
            _compare_values(actual[name], expected[name], f"{where}field {name!r}: ")
        return
    if expected.dtype.kind == "O":
        for index in np.ndindex(expected.shape):
            _compare(actual[index], expected[index], False, f"[{index}]")
        return
    same = _is_same(actual, expected)
    if not same.all():
        index = tuple(int(i) for i in np.unravel_index(np.argmin(same), same.shape))
        wrong = int((~same).sum())
        raise AssertionError(
            f"{where}{wrong} of {same.size} values differ, the first at {index}: "
            f"{actual[index]!r}, expected {expected[index]!r}"
        )


def _is_same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kind = "f" if a.dtype.type.__module__.startswith("ml_dtypes") else a.dtype.kind
    if kind == "c":
        return _is_same(a.real, b.real) & _is_same(a.imag, b.imag)
    if kind in "Mm":
        return np.asarray(a.astype(np.int64) == b.astype(np.int64))
    if kind == "V":
        return np.array([x.tobytes() == y.tobytes() for x, y in zip(a.flat, b.flat, strict=True)]).reshape(a.shape)
    if kind != "f":
        return np.asarray(a == b)
    with np.errstate(invalid="ignore"):
        if a.dtype.kind != "f" or a.dtype.type is not np.longdouble:
            a, b = a.astype(np.float64), b.astype(np.float64)
        return np.asarray((a == b) & (np.signbit(a) == np.signbit(b)) | np.isnan(a) & np.isnan(b))


# ---- memory ----


def _ways_to_write(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """Pairs of what to write through and where to look."""
    ways = [(w, s) for w, s in ((a, b), (b, a)) if isinstance(w, torch.Tensor) or w.flags.writeable]
    assert ways, f"neither {_name(a)} nor {_name(b)} may be written: nothing proves that they share"
    return ways


@contextmanager
def _one_bit_flipped(x: Any, address: int) -> Iterator[None]:
    """Flip one bit of the byte at ``address``, through the library's own view of the element there."""
    # An inference tensor may only be written in that mode, and any other tensor may be.
    with torch.inference_mode(isinstance(x, torch.Tensor) and x.is_inference()):
        byte = _byte_at(x, address)
        byte ^= 1
        try:
            yield
        finally:
            byte ^= 1


def _byte_at(x: Any, address: int) -> Any:
    elements = _element_addresses(x)
    offset = address - elements
    index = np.argwhere((offset >= 0) & (offset < x.itemsize))[0]
    element = x[tuple(slice(i, i + 1) for i in index.tolist())] if x.ndim else x
    at = int(offset[tuple(index)])
    if isinstance(x, torch.Tensor):
        plain = _physical(element.detach())
        return plain.as_strided((1,), (1,), plain.storage_offset()).view(torch.uint8)[at : at + 1]
    own = np.asarray(element).reshape(-1).view(np.uint8)[at : at + 1]
    assert np.may_share_memory(own, x), "the test wrote into a copy of its own"
    return own


def _physical(x: torch.Tensor) -> torch.Tensor:
    """View the numbers that memory really holds, not their lazy conjugate or negative."""
    x = x.conj() if x.is_conj() else x
    return x._neg_view() if x.is_neg() else x


def _bytes_of(x: Any) -> bytes:
    if isinstance(x, np.ndarray):
        return np.asarray(x).tobytes()
    if not x.numel():
        return b""
    flat = x.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _name(x: Any) -> str:
    return f"{type(x).__name__} {x.dtype}{list(x.shape)}"
