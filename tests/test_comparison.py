"""The oracle itself: it accepts what is the same and rejects every single difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import array_holding, assert_independent, assert_same, assert_shares, byte_addresses, tensor_holding

ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
RECORD = [("x", "f8"), ("y", [("a", "i2"), ("b", "S3")]), ("z", "i4", (2,))]


def record(**change: Any) -> np.ndarray:
    array = np.zeros(3, RECORD)
    array["x"] = [1, np.nan, -0.0]
    array["y"]["a"] = [1, 2, 3]
    for name, value in change.items():
        array[name][1] = value
    return array


def strings_of_different_padding() -> tuple[np.ndarray, np.ndarray]:
    dtype = np.dtype({"names": ["x"], "formats": ["i4"], "offsets": [0], "itemsize": 8})
    a, b = np.zeros(2, dtype), np.zeros(2, dtype)
    b.view(np.uint8)[4:8] = 255
    return a, b


ALIKE: dict[str, tuple[Any, Any]] = {
    "integers": (np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3)),
    "layouts when strides are not promised": (
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ),
    "NaN": (np.array([np.nan, 1]), np.array([np.nan, 1])),
    "NaN of another sign": (np.array([np.nan]), np.array([-np.nan])),
    "complex NaN": (np.array([complex(np.nan, 1)]), np.array([complex(np.nan, 1)])),
    "NaT": (np.array(["NaT", "2024-01-01"], "M8[D]"), np.array(["NaT", "2024-01-01"], "M8[D]")),
    "text": (np.array(["a", "bc"]), np.array(["a", "bc"])),
    "records": (record(), record()),
    "records of other padding": strings_of_different_padding(),
    "masked elements of other data": (
        np.ma.MaskedArray([1, 2], mask=[False, True]),
        np.ma.MaskedArray([1, 9], mask=[False, True]),
    ),
    "names of one dtype": (np.zeros(2, np.ulonglong), np.zeros(2, np.uint64)),
    "empty arrays": (np.zeros((0, 3)), np.zeros((0, 3))),
    "tensors": (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
    "conj bits": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
    "longdouble": (np.array([np.longdouble(1) / 3]), np.array([np.longdouble(1) / 3])),
    "objects": (np.array([1, "a", None], object), np.array([1, "a", None], object)),
    "structures": ({"a": [np.zeros(2), "s", None]}, {"a": [np.zeros(2), "s", None]}),
    "strides of axes of one element": (np.zeros((1, 3)), np.lib.stride_tricks.as_strided(np.zeros(3), (1, 3), (64, 8))),
}

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "value": (np.array([1, 2, 3]), np.array([1, 2, 4])),
    "last value of a block": (np.arange(1000.0), np.append(np.arange(999.0), 0)),
    "float value by one ulp": (np.array([1.0]), np.array([np.nextafter(1.0, 2.0)])),
    "longdouble value by one ulp": (np.array([np.longdouble(1)]), np.nextafter(np.longdouble([1]), np.longdouble([2]))),
    "dtype": (np.zeros(3, np.float32), np.zeros(3, np.float64)),
    "byte order": (np.zeros(3, "<i4"), np.zeros(3, ">i4")),
    "signedness": (np.zeros(3, np.int8), np.zeros(3, np.uint8)),
    "time unit": (np.zeros(2, "M8[s]"), np.zeros(2, "M8[ms]")),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "rank": (np.zeros(1), np.zeros(())),
    "NaN against a number": (np.array([np.nan]), np.array([0.0])),
    "sign of zero": (np.array([-0.0]), np.array([0.0])),
    "sign of a complex zero": (np.array([complex(0, -0.0)]), np.array([0j])),
    "imaginary part": (np.array([1 + 2j]), np.array([1 + 3j])),
    "NaT against a date": (np.array(["NaT"], "M8[D]"), np.array(["1970-01-01"], "M8[D]")),
    "text value": (np.array(["ab"]), np.array(["ac"])),
    "bool": (np.array([True, False]), np.array([True, True])),
    "inner field": (record(), record(y=(7, b""))),
    "field with a shape": (record(), record(z=(0, 1))),
    "field name": (np.zeros(1, [("a", "i4")]), np.zeros(1, [("b", "i4")])),
    "mask": (np.ma.MaskedArray([1, 2], mask=[False, True]), np.ma.MaskedArray([1, 2], mask=[True, False])),
    "missing mask": (np.ma.MaskedArray([1, 2]), np.array([1, 2])),
    "void bytes": (np.array([b"ab"], "V2"), np.array([b"ac"], "V2")),
    "object type": (np.array([1], object), np.array([1.0], object)),
    "library": (torch.zeros(2), np.zeros(2, np.float32)),
    "library the other way": (np.zeros(2, np.float32), torch.zeros(2)),
    "list for an array": ([0.0, 0.0], np.zeros(2)),
    "scalar type": (np.float32(1), np.float64(1)),
    "tensor value": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "tensor sign of zero": (torch.tensor([-0.0]), torch.tensor([0.0])),
    "tensor dtype": (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
    "tensor shape": (torch.zeros(2, 1), torch.zeros(2)),
    "tensor device": (torch.zeros(2, device="meta"), torch.zeros(2)),
    "conj bit": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j])),
    "keys": ({"a": np.zeros(2)}, {"b": np.zeros(2)}),
    "order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "length": ([np.zeros(2)], [np.zeros(2), np.zeros(2)]),
    "container": ([np.zeros(2)], (np.zeros(2),)),
    "leaf": ({"a": [np.zeros(2)]}, {"a": [np.ones(2)]}),
    "passed-through text": ({"a": "x"}, {"a": "y"}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_the_same_is_accepted(name: str) -> None:
    assert_same(*ALIKE[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_single_difference_is_rejected_from_both_sides(name: str) -> None:
    a, b = DIFFERENT[name]
    with pytest.raises(AssertionError):
        assert_same(a, b)
    with pytest.raises(AssertionError):
        assert_same(b, a)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_small_floats_are_compared_by_value(name: str) -> None:
    dtype = getattr(ml_dtypes, name)
    values = np.array([1, 2, np.nan, 4], np.float32).astype(dtype)
    assert_same(values, values.copy())
    for wrong in (values[::-1].copy(), values.astype(np.float32)):
        with pytest.raises(AssertionError):
            assert_same(wrong, values)
    tensor = tensor_holding(values)
    assert tensor.dtype == getattr(torch, name)
    assert_same(tensor.float(), torch.tensor([1, 2, float("nan"), 4]))
    with pytest.raises(AssertionError):
        assert_same(tensor_holding(values[::-1]), tensor)


def test_strides_are_compared_only_when_promised() -> None:
    row_major, column_major = np.zeros((2, 3)), np.zeros((2, 3), order="F")
    assert_same(row_major, column_major)
    for a, b in ((row_major, column_major), (torch.zeros(2, 3), torch.zeros(3, 2).T)):
        with pytest.raises(AssertionError, match="strides are"):
            assert_same(a, b, strides=True)
        assert_same(b, b, strides=True)


def test_a_difference_is_reported_with_its_index_and_path() -> None:
    with pytest.raises(AssertionError, match=r"at source\['x'\]\[1\]: 1 of 4 values differ, the first at \(1, 0\)"):
        assert_same({"x": [0, np.array([[1, 2], [9, 4]])]}, {"x": [0, np.array([[1, 2], [3, 4]])]})


@pytest.mark.parametrize("code", [*"?bhilqBHILQefdFD", *ML_DTYPES])
def test_oracles_carry_every_dtype_across_and_back(code: str) -> None:
    array = np.array([[0, 1, 2], [1, 0, 1]]).astype(getattr(ml_dtypes, code, code))
    tensor = tensor_holding(array[:, ::-1])
    assert_same(array_holding(tensor), np.ascontiguousarray(array[:, ::-1]))
    assert_same(tensor.to(torch.complex128), torch.tensor(array[:, ::-1].astype(complex)))
    assert_independent(array, tensor)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex32_tensors_are_compared_by_value() -> None:
    values = torch.tensor([1 + 2j, -0.0], dtype=torch.complex64)
    assert_same(values.to(torch.complex32), values.to(torch.complex32))
    for wrong in (values.conj(), values):
        with pytest.raises(AssertionError):
            assert_same(wrong.to(torch.complex32) if wrong is not values else wrong, values.to(torch.complex32))


def test_oracles_keep_the_shape_of_empty_sources() -> None:
    assert tensor_holding(np.zeros((0, 3), np.int16)).shape == (0, 3)
    assert array_holding(torch.zeros(2, 0, dtype=torch.bfloat16)).shape == (2, 0)


BASE = np.arange(24.0).reshape(2, 3, 4)


def read_only() -> np.ndarray:
    array = np.arange(3.0)
    array.flags.writeable = False
    return array


def with_view(whole: Any, view: Callable[[Any], Any]) -> tuple[Any, Any]:
    return whole, view(whole)


SHARING: dict[str, tuple[Any, Any]] = {
    "array and tensor": with_view(BASE, torch.from_numpy),
    "permuted tensor": with_view(BASE, lambda a: torch.from_numpy(a).permute(2, 0, 1)),
    "every other column": with_view(BASE, lambda a: torch.from_numpy(a[:, :, 1::2])),
    "reversed array": (BASE[::-1], torch.from_numpy(BASE)),
    "one element": with_view(BASE, lambda a: torch.from_numpy(a)[1, 2, 3]),
    "scalar array": with_view(np.ones(()), torch.from_numpy),
    "field of a record": with_view(record(), lambda a: a["y"]["b"]),
    "read-only array": with_view(read_only(), torch.from_dlpack),
    "expanded tensor": with_view(torch.zeros(1), lambda t: t.expand(4).numpy()),
    "parameter": with_view(torch.nn.Parameter(torch.ones(2)), lambda t: t.detach().numpy()),
    "complex part": with_view(torch.tensor([1 + 2j, 3j]), lambda t: t.imag.numpy()),
    "conj bit": with_view(torch.tensor([1 + 2j, 3j]), lambda t: t.conj()),
    "neg bit": with_view(torch.tensor([1 + 2j, 3j]), lambda t: t.conj().imag),
    "column": with_view(torch.arange(6).reshape(3, 2), lambda t: t[:, 1:].numpy()),
    "bool": with_view(np.zeros(3, bool), torch.from_numpy),
    "bfloat16": with_view(np.ones(3, ml_dtypes.bfloat16), lambda a: torch.from_numpy(a.view(np.int16))),
    "text": with_view(np.array(["ab", "cd"])[::-1], lambda a: a[1:]),
    "time": with_view(np.zeros(4, "M8[s]")[::2], lambda a: torch.from_numpy(a.view(np.int64))),
}


@pytest.mark.parametrize("name", SHARING)
def test_shared_memory_is_recognised_and_left_as_it_was(name: str) -> None:
    a, b = SHARING[name]
    before = str((a.tolist(), b.tolist()))
    assert_shares(a, b)
    assert_shares(b, a)
    assert str((a.tolist(), b.tolist())) == before
    with pytest.raises(AssertionError, match="bytes in common"):
        assert_independent(a, b)


@pytest.mark.parametrize("name", SHARING)
def test_a_copy_is_recognised_and_left_as_it_was(name: str) -> None:
    a, b = SHARING[name]
    copy = b.clone() if isinstance(b, torch.Tensor) else b.copy()
    before = str((a.tolist(), copy.tolist()))
    for pair in ((a, copy), (copy, a)):
        assert_independent(*pair)
        with pytest.raises(AssertionError, match="lie outside"):
            assert_shares(*pair)
    assert str((a.tolist(), copy.tolist())) == before


class PretendsToShare(np.ndarray):
    """An array that says it lies where another one does."""

    __array_interface__: Any = None


def test_the_same_address_alone_does_not_prove_sharing() -> None:
    honest = np.zeros(3)
    liar = np.ones(3).view(PretendsToShare)
    liar.__array_interface__ = honest.__array_interface__
    with pytest.raises(AssertionError, match="is not seen"):
        assert_shares(honest, liar)


def test_different_addresses_alone_do_not_prove_independence() -> None:
    one, other = np.zeros(3), np.zeros(3)
    liar = one.view(PretendsToShare)
    liar.__array_interface__ = other.__array_interface__
    with pytest.raises(AssertionError, match="is seen in"):
        assert_independent(one, liar)
    assert one.tolist() == [0, 0, 0]


def test_partly_overlapping_views_neither_share_nor_are_independent() -> None:
    a, b = BASE.reshape(-1)[:6], torch.from_numpy(BASE.reshape(-1)[4:10])
    with pytest.raises(AssertionError, match="lie outside"):
        assert_shares(a, b)
    with pytest.raises(AssertionError, match="16 bytes in common"):
        assert_independent(a, b)


def test_interleaved_views_of_one_buffer_are_independent() -> None:
    assert_independent(BASE[:, :, ::2], torch.from_numpy(BASE[:, :, 1::2]))


def test_an_empty_array_shares_nothing() -> None:
    with pytest.raises(AssertionError, match="is empty"):
        assert_shares(BASE[:0], torch.from_numpy(BASE))
    assert_independent(BASE[:0], torch.from_numpy(BASE))


def test_two_read_only_arrays_prove_nothing() -> None:
    array = read_only()
    with pytest.raises(AssertionError, match="nothing proves"):
        assert_shares(array, array[:])


def test_an_inference_tensor_can_be_written_through() -> None:
    with torch.inference_mode():
        tensor = torch.ones(3)
        array = tensor.numpy()
    assert_shares(array, tensor)
    assert tensor.tolist() == [1, 1, 1]


def test_addresses_count_bytes_once() -> None:
    assert byte_addresses(np.broadcast_to(np.float64(1), (1000, 1000))).size == 8
    assert byte_addresses(np.zeros((3, 4), np.int16)[::-2, ::3]).size == 2 * 2 * 2
    assert byte_addresses(torch.zeros(5, dtype=torch.complex64).imag).size == 5 * 4
