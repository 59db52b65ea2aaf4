"""`to_torch` for one source: what comes out, and whose memory it is. Structures are in test_structures."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, tensor_holding
from strategies import DTYPES, NATIVE, SHAREABLE, UNSHAREABLE, can_be, filled, read_only

import ndtorch as nd

EPOCH = np.array([["1970-01-02", "NaT"], ["1969-12-31", "2024-02-29"]], "datetime64[D]")


# ---- plain arrays ----


@pytest.mark.parametrize("layout", SHAREABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_writable_native_array_is_shared_with_its_strides(dtype: str, layout: str) -> None:
    array = SHAREABLE[layout](filled(DTYPES[dtype][0]))
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(array))
    assert tuple(s * array.itemsize for s in tensor.stride()) == array.strides
    assert_shares(tensor, array)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(name, layout) for name, (numpy, _) in DTYPES.items() for layout in UNSHAREABLE if can_be(layout, numpy)],
)
def test_array_that_torch_cannot_describe_is_copied_in_one_row_major_pass(dtype: str, layout: str) -> None:
    plain = filled(DTYPES[dtype][0])
    array = UNSHAREABLE[layout](plain)
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(plain), strides=True)
    assert_independent(tensor, array)
    with pytest.raises(nd.CopyRequiredError):
        nd.to_torch(array, copy=False)


@pytest.mark.parametrize("layout", SHAREABLE)
def test_copy_true_always_gives_independent_memory(layout: str) -> None:
    array = SHAREABLE[layout](filled("float32"))
    tensor = nd.to_torch(array, copy=True)
    assert_same(tensor, tensor_holding(array))
    assert_independent(tensor, array)


@pytest.mark.parametrize("strides", [(-8,), (3,), (0,), (2**62,)])
def test_stride_along_one_item_does_not_matter(strides: tuple[int, ...]) -> None:
    array = np.ndarray((1,), np.float64, np.ones(1), strides=strides)
    tensor = nd.to_torch(array, copy=False)
    assert tensor.tolist() == [1.0]
    assert_shares(tensor, array)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("make", [np.zeros, lambda s: np.zeros(s)[::-1], lambda s: read_only(np.zeros(s, ">f8"))])
def test_empty_array_satisfies_every_copy(make: Callable[..., Any], shape: tuple[int, ...]) -> None:
    for copy in (None, False, True):
        assert_same(nd.to_torch(make(shape), copy=copy), torch.zeros(shape, dtype=torch.float64))


def test_array_without_dimensions_is_shared() -> None:
    array = np.array(2.5)
    assert_same(nd.to_torch(array), torch.tensor(2.5, dtype=torch.float64))
    assert_shares(nd.to_torch(array), array)


def test_subclass_of_array_is_shared_as_a_plain_tensor() -> None:
    array = filled("float32").view(type("Picture", (np.ndarray,), {}))
    tensor = nd.to_torch(array)
    assert type(tensor) is torch.Tensor
    assert_shares(tensor, np.asarray(array))


# ---- read-only and broadcast arrays ----


def test_read_only_array_is_copied_shared_or_refused_as_the_caller_says() -> None:
    array = read_only(filled("float32"))
    for tensor in (nd.to_torch(array), nd.to_torch(array, readonly="copy")):
        assert_same(tensor, tensor_holding(array))
        assert_independent(tensor, array)
    assert_same(nd.to_torch(array, readonly="share"), tensor_holding(array), strides=True)
    assert_shares(nd.to_torch(array, readonly="share"), array)
    assert_shares(nd.to_torch(array, readonly="share", copy=False), array)
    for options in ({"readonly": "error"}, {"copy": False}, {"readonly": "copy", "copy": False}):
        with pytest.raises(nd.CopyRequiredError, match="read-only"):
            nd.to_torch(array, **options)
    assert not array.flags.writeable


def test_readonly_error_does_not_refuse_a_copy_that_was_asked_for() -> None:
    array = read_only(filled("float32"))
    assert_independent(nd.to_torch(array, readonly="error", copy=True), array)
    assert_independent(nd.to_torch(array, readonly="error", dtype="float64"), array)


@pytest.mark.parametrize(("small", "shape"), [((3,), (4, 3)), ((4, 1), (4, 3)), ((), (2, 3)), ((2, 1, 3), (2, 5, 3))])
def test_broadcast_array_is_expanded_over_a_copy_of_its_distinct_items(small: Any, shape: tuple[int, ...]) -> None:
    distinct = filled("float64", small)
    array = np.broadcast_to(distinct, shape)
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(array))
    assert tensor.untyped_storage().nbytes() == distinct.nbytes
    assert [s == 0 for s in tensor.stride()] == [s == 0 for s in array.strides]
    assert_independent(tensor, array)
    cast = nd.to_torch(array, dtype="float32")
    assert_same(cast, tensor_holding(array.astype(np.float32)))
    assert cast.untyped_storage().nbytes() == distinct.size * 4


def test_reversed_broadcast_array_keeps_its_values() -> None:
    array = np.broadcast_to(np.arange(3.0), (4, 3))[::-1, ::-1]
    assert_same(nd.to_torch(array), tensor_holding(array))


# ---- time, text, fields, masks ----


@pytest.mark.parametrize("unit", ["D", "ns", "25s", "Y", "as"])
@pytest.mark.parametrize("kind", ["datetime64", "timedelta64"])
def test_time_is_shared_as_its_integers(kind: str, unit: str) -> None:
    array = np.array([[1, -5], [0, 7]]).view(f"{kind}[{unit}]")
    array[1, 0] = "NaT"
    tensor = nd.to_torch(array)
    assert_same(tensor, torch.tensor([[1, -5], [-(2**63), 7]]))
    assert_shares(tensor, array)


def test_time_in_the_other_byte_order_is_copied() -> None:
    tensor = nd.to_torch(EPOCH.astype(EPOCH.dtype.newbyteorder("S")))
    assert tensor.tolist() == [[1, -(2**63)], [-1, 19782]]


def test_text_and_bytes_are_shared_as_characters_in_one_more_dimension() -> None:
    names, words = np.array([["aé", "😀"]]), np.array([b"ab\xff", b"c"])
    assert_same(nd.to_torch(names), torch.tensor([[[97, 233], [0x1F600, 0]]], dtype=torch.int32))
    assert_same(nd.to_torch(words), torch.tensor([[97, 98, 255], [99, 0, 0]], dtype=torch.uint8))
    assert nd.to_torch(names).data_ptr() == names.__array_interface__["data"][0]
    assert_shares(nd.to_torch(words), words[:, None].view(np.uint8))
    swapped = names.astype(names.dtype.newbyteorder("S"))
    assert_same(nd.to_torch(swapped), nd.to_torch(names, copy=True))


def test_structured_array_is_a_dict_with_each_field_shared_where_its_strides_allow() -> None:
    inner = np.dtype([("id", "i4"), ("name", "S4")])
    array = np.zeros(3, [("box", "f4", (2, 2)), ("of", inner), ("day", "M8[D]"), ("flag", "?"), ("odd", "f8")])
    array["box"], array["of"]["id"], array["of"]["name"] = 1.5, [1, 2, 3], b"xyz"
    tensors = nd.to_torch(array)
    assert list(tensors) == ["box", "of", "day", "flag", "odd"]
    assert list(tensors["of"]) == ["id", "name"]
    assert_same(tensors["box"], torch.full((3, 2, 2), 1.5))
    assert_same(tensors["of"]["id"], torch.tensor([1, 2, 3], dtype=torch.int32))
    assert tensors["of"]["name"].shape == (3, 4)
    assert array.itemsize % 8, "the rows are packed, so that eight-byte fields have strides torch cannot have"
    assert_independent(tensors["odd"], array["odd"])
    assert_shares(tensors["flag"], array["flag"])
    aligned = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    assert_shares(nd.to_torch(aligned)["b"], aligned["b"])
    assert_shares(nd.to_torch(aligned.view(np.recarray), copy=False)["a"], aligned["a"])


def test_masked_array_is_refused_or_split_into_shared_data_and_mask() -> None:
    array = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])
    with pytest.raises(nd.UnsupportedTypeError, match="masked='split'"):
        nd.to_torch(array)
    data, mask = split = nd.to_torch(array, masked="split")
    assert isinstance(split, nd.Masked)
    assert_shares(data, array.data)
    assert_shares(mask, array.mask)
    assert mask.tolist() == [False, True, False]
    whole = nd.to_torch(np.ma.array([1, 2]), masked="split", dtype="float32")
    assert_same(tuple(whole), (torch.tensor([1.0, 2.0]), torch.tensor([False, False])))
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(np.ma.array([1, 2]))


# ---- numbers that torch has no format for ----


@pytest.mark.parametrize(("code", "into"), [("longdouble", "float64"), ("clongdouble", "complex128")])
def test_long_double_needs_a_dtype_and_exact_proves_that_nothing_is_lost(code: str, into: str) -> None:
    array = np.array([1, 2.5], code)
    with pytest.raises(nd.UnsupportedDtypeError, match=f"dtype='{into}'"):
        nd.to_torch(array)
    assert_same(nd.to_torch(array, dtype=into, casting="exact"), torch.tensor([1, 2.5], dtype=getattr(torch, into)))
    if np.finfo(code).nmant > 52:
        with pytest.raises(nd.LossyCastError) as caught:
            nd.to_torch(array + np.array([0, 1], code) / 3, dtype=into, casting="exact")
        assert caught.value.index == (1,)
        assert nd.to_torch(array / 3, float_dtype="float64").dtype == getattr(torch, into)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float4_e2m1fn])
def test_ml_dtype_that_torch_has_not_needs_a_dtype(dtype: Any) -> None:
    array = np.array([0, 1, 2], dtype)
    with pytest.raises(nd.UnsupportedDtypeError, match="dtype="):
        nd.to_torch(array)
    assert_same(nd.to_torch(array, dtype="float32"), torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ([1, 2], torch.tensor([1, 2])),
        ([1, 2.5, True], torch.tensor([1, 2.5, 1], dtype=torch.float64)),
        ([True, False], torch.tensor([True, False])),
        ([1, 2j], torch.tensor([1, 2j], dtype=torch.complex128)),
        ([2**63, 1], torch.tensor([2**63, 1], dtype=torch.uint64)),
        ([np.float32(1.5), np.float32(2)], torch.tensor([1.5, 2])),
        ([-1, np.uint8(255)], torch.tensor([-1, 255])),
    ],
)
def test_object_array_of_numbers_becomes_the_exact_tensor(elements: list[Any], expected: torch.Tensor) -> None:
    assert_same(nd.to_torch(np.array(elements, dtype=object)), expected)
    assert_same(nd.to_torch(np.array([elements, elements], dtype=object)), torch.stack([expected, expected]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_object_array_is_cast_from_the_numbers_it_holds(dtype: str) -> None:
    array = np.array([1, 2.5], dtype=object)
    assert_same(nd.to_torch(array, dtype=dtype), torch.tensor([1, 2.5], dtype=getattr(torch, dtype)))
    assert_same(nd.to_torch(array, float_dtype="float32"), torch.tensor([1, 2.5]))
    with pytest.raises(nd.LossyCastError, match="same_kind"):
        nd.to_torch(array, dtype="int32")


def test_object_array_of_equal_arrays_is_stacked() -> None:
    objects = np.empty((2,), object)
    objects[:] = [np.arange(3), torch.arange(3, 6)]
    assert_same(nd.to_torch(objects), torch.tensor([[0, 1, 2], [3, 4, 5]]))


@pytest.mark.parametrize(
    ("elements", "index", "error"),
    [
        ([1, None, "x"], (1,), nd.UnsupportedTypeError),
        ([1.0, "a"], (1,), nd.UnsupportedTypeError),
        ([Decimal(1)], (0,), nd.UnsupportedTypeError),
        ([[1, 2], [3, {}]], (1, 1), nd.UnsupportedTypeError),
        ([0.5, 2**53 + 1], (1,), nd.LossyCastError),
        ([1, 2**70], (1,), nd.LossyCastError),
        ([-1, 2**63], (1,), nd.LossyCastError),
        ([2**63, -1], (0,), nd.LossyCastError),
    ],
)
def test_object_array_that_is_no_tensor_names_the_first_index(elements: Any, index: Any, error: Any) -> None:
    with pytest.raises(error) as caught:
        nd.to_torch(np.array(elements, dtype=object))
    assert caught.value.index == index
    assert (str(index) if len(index) > 1 else str(index[0])) in caught.value.fact


# ---- Python and NumPy scalars, lists of numbers ----

PYTHON = [
    True,
    3,
    -1.5,
    1j,
    float("nan"),
    [],
    [1, 2],
    [1, 2.5],
    [[1], [2]],
    (1, 2),
    [True, 2],
    [[True, False]],
    [1, 2j],
]
SCALARS = [numpy.type(1) for numpy, _ in NATIVE.values() if numpy != np.uint64]  # which torch.tensor refuses


@pytest.mark.parametrize("value", [*PYTHON, *SCALARS, [np.float32(1), np.float32(2)], [np.int8(1)]], ids=repr)
def test_scalars_and_lists_of_numbers_become_what_torch_makes_of_them(value: Any) -> None:
    assert_same(nd.to_torch(value), torch.tensor(value))


def test_scalar_keeps_the_dtype_that_torch_itself_refuses() -> None:
    assert_same(nd.to_torch(ml_dtypes.bfloat16(1.5)), torch.tensor(1.5, dtype=torch.bfloat16))
    assert_same(nd.to_torch(np.uint64(2**64 - 1)), torch.tensor(2**64 - 1, dtype=torch.uint64))


def test_python_floats_are_cast_from_their_full_value() -> None:
    assert nd.to_torch([0.1, 0.2], dtype="float64").tolist() == [0.1, 0.2]
    assert nd.to_torch(2**53 + 1, dtype="int64").item() == 2**53 + 1
    assert_same(nd.to_torch([2**64 - 1], dtype="uint64"), torch.tensor([2**64 - 1], dtype=torch.uint64))


def test_integer_too_large_for_int64_is_refused_with_dtypes_that_hold_it() -> None:
    with pytest.raises(nd.LossyCastError, match=r"dtype='uint64' .*dtype='float64' rounds"):
        nd.to_torch([2**63])
    assert nd.to_torch([2**63], dtype="uint64").tolist() == [2**63]
    assert nd.to_torch([2**70, 1], dtype="float64").tolist() == [2.0**70, 1.0]


@pytest.mark.parametrize("value", [3, [1.5], np.float32(1)], ids=repr)
def test_memory_of_a_scalar_or_list_cannot_be_shared(value: Any) -> None:
    with pytest.raises(nd.CopyRequiredError):
        nd.to_torch(value, copy=False)


@pytest.mark.parametrize(
    "value", ["text", None, object(), {1, 2}, print, np.dtype("f4")], ids=lambda value: type(value).__name__
)
def test_what_holds_no_numbers_is_refused(value: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(value)


def test_bytes_are_a_buffer_that_cannot_be_written() -> None:
    source = b"bytes"
    assert_same(nd.to_torch(source), torch.tensor(list(source), dtype=torch.uint8))
    with pytest.raises(nd.CopyRequiredError, match="read-only"):
        nd.to_torch(source, copy=False)
    assert nd.to_torch([source, source]) == [source, source]  # inside a structure they are a name, as text is


# ---- tensors, devices ----


def test_tensor_is_itself_unless_something_is_asked() -> None:
    tensor = torch.arange(3.0, requires_grad=True)
    assert nd.to_torch(tensor) is tensor
    assert nd.to_torch(tensor, dtype="float32", device="cpu", copy=False) is tensor
    assert nd.to_torch(tensor, float_dtype=torch.float32) is tensor
    assert_independent(nd.to_torch(tensor, copy=True), tensor)
    assert_same(nd.to_torch(tensor, dtype="float64"), tensor.double())
    assert nd.to_torch(tensor, device="meta").is_meta
    with pytest.raises(nd.CopyRequiredError):
        nd.to_torch(tensor, dtype="float64", copy=False)


def test_array_reaches_the_device_that_was_asked_for() -> None:
    array = filled("float32")
    assert_shares(nd.to_torch(array, device="cpu", copy=False), array)
    assert_shares(nd.to_torch(array, device=torch.device("cpu")), array)
    assert nd.to_torch(array, device="meta").shape == (3, 4)
    with pytest.raises(nd.CopyRequiredError, match="meta"):
        nd.to_torch(array, device="meta", copy=False)


@pytest.mark.cuda
def test_array_on_a_gpu_has_the_same_values() -> None:
    for layout in (*SHAREABLE.values(), *UNSHAREABLE.values()):
        tensor = nd.to_torch(layout(filled("float32")), device="cuda")
        assert tensor.is_cuda
        assert_same(nd.to_numpy(tensor), filled("float32"))


# ---- dtype ----


@pytest.mark.parametrize(
    "spelling", [torch.float32, np.float32, np.dtype("f4"), "float32", "torch.float32", "f4", ">f4"]
)
def test_dtype_may_be_spelled_as_either_library_does(spelling: Any) -> None:
    assert_same(nd.to_torch(np.arange(3), dtype=spelling), torch.arange(3).float())


def test_float_dtype_leaves_whole_numbers_time_and_text_alone() -> None:
    for name, (numpy, dtype) in NATIVE.items():
        is_float, is_complex = name.startswith("float"), name.startswith("complex")
        wanted = torch.float32 if is_float else torch.complex64 if is_complex else dtype
        assert nd.to_torch(filled(numpy), float_dtype="float32").dtype == wanted
    assert nd.to_torch(filled("c8"), float_dtype="float64").dtype == torch.complex128
    assert_shares(nd.to_torch(EPOCH, float_dtype="float16"), EPOCH)


@pytest.mark.parametrize("array", [EPOCH, np.array(["a"]), np.array([b"a"])], ids=str)
def test_dtype_cannot_apply_to_time_and_text(array: np.ndarray) -> None:
    with pytest.raises(nd.UnsupportedDtypeError, match="cannot apply"):
        nd.to_torch(array, dtype="float32")
