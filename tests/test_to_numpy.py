"""`to_numpy` for one source: what comes out, and whose memory it is; `like=` for what a tensor cannot say itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import array_holding, assert_independent, assert_same, assert_shares, tensor_holding
from strategies import DTYPES, NATIVE, SHAREABLE, UNSHAREABLE, filled, read_only

import ndtorch as nd

TENSOR_LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "row-major": torch.clone,
    "transposed": lambda t: t.t().clone().t(),
    "every other item": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "storage offset": lambda t: torch.cat([t, t])[3:],
    "a new axis": lambda t: t.clone()[:, None][:, 0],
    "overlapping windows": lambda t: t.reshape(-1)[:6].clone().as_strided((3, 4), (1, 1)),
}


# ---- plain tensors ----


@pytest.mark.parametrize("layout", TENSOR_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_tensor_is_shared_with_its_strides(dtype: str, layout: str) -> None:
    tensor = TENSOR_LAYOUTS[layout](tensor_holding(filled(DTYPES[dtype][0])))
    array = nd.to_numpy(tensor)
    assert type(array) is np.ndarray
    assert array.flags.writeable
    assert_same(array, array_holding(tensor))
    assert array.strides == tuple(s * tensor.itemsize for s in tensor.stride())
    assert_shares(array, tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
@pytest.mark.parametrize("copy", [None, False, True])
def test_tensor_without_items_or_dimensions_becomes_such_an_array(shape: tuple[int, ...], copy: bool | None) -> None:
    array = nd.to_numpy(torch.ones(shape, dtype=torch.bfloat16), copy=copy)
    assert_same(array, np.ones(shape, ml_dtypes.bfloat16))


@pytest.mark.parametrize("layout", TENSOR_LAYOUTS)
def test_copy_true_always_gives_independent_writable_memory(layout: str) -> None:
    tensor = TENSOR_LAYOUTS[layout](torch.arange(12.0).reshape(3, 4))
    array = nd.to_numpy(tensor, copy=True)
    assert_same(array, array_holding(tensor))
    assert array.flags.writeable
    assert_independent(array, tensor)


@pytest.mark.parametrize("copy", [None, False])
def test_tensor_that_requires_grad_is_seen_through_a_read_only_view(copy: bool | None) -> None:
    leaf = torch.arange(4.0, requires_grad=True)
    for tensor in (leaf, leaf * 2, leaf[1:], torch.nn.Parameter(torch.ones(3))):
        array = nd.to_numpy(tensor, copy=copy)
        assert_same(array, tensor.detach().numpy())
        assert not array.flags.writeable
        assert_shares(array, tensor.detach())
    assert nd.to_numpy(leaf, copy=True).flags.writeable
    assert nd.to_numpy(leaf.detach()).flags.writeable
    assert leaf.requires_grad


@pytest.mark.parametrize("copy", [None, False])
def test_expanded_tensor_is_seen_through_a_read_only_view(copy: bool | None) -> None:
    tensor = torch.arange(3.0).expand(4, 3)
    array = nd.to_numpy(tensor, copy=copy)
    assert_same(array, np.broadcast_to(np.arange(3, dtype=np.float32), (4, 3)), strides=True)
    assert not array.flags.writeable
    assert_shares(array, tensor[0])
    assert nd.to_numpy(torch.ones(3, 1).expand(3, 1)).flags.writeable


@pytest.mark.parametrize(
    ("tensor", "values"),
    [
        (torch.tensor([1 + 2j, 3 - 1j]).conj(), [1 - 2j, 3 + 1j]),
        (torch.tensor([1 + 2j, 3 - 1j]).conj().imag, [-2.0, 1.0]),
        (torch.tensor([1 + 2j], requires_grad=True).conj(), [1 - 2j]),
    ],
)
def test_lazy_conjugate_and_negative_are_resolved_in_new_memory(tensor: torch.Tensor, values: list[Any]) -> None:
    array = nd.to_numpy(tensor)
    assert array.tolist() == values
    assert array.flags.writeable
    assert tensor.is_conj() or tensor.is_neg()
    with pytest.raises(nd.CopyRequiredError, match="bit is set"):
        nd.to_numpy(tensor, copy=False)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_half_complex_widens_exactly() -> None:
    tensor = torch.view_as_complex(torch.tensor([[1, -2], [0.099975586, 65504]], dtype=torch.float16))
    assert tensor.dtype == torch.complex32
    assert_same(nd.to_numpy(tensor), np.array([1 - 2j, 0.099975586 + 65504j], np.complex64))
    with pytest.raises(nd.CopyRequiredError):
        nd.to_numpy(tensor, copy=False)
    assert_same(nd.to_numpy(tensor, float_dtype="float64"), np.array([1 - 2j, 0.0999755859375 + 65504j]))


@pytest.mark.filterwarnings("ignore:.*nested")  # said once a process
def test_nested_and_jagged_tensors_are_lists_of_shared_arrays() -> None:
    parts = [torch.arange(2.0), torch.arange(3.0) + 5]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        arrays = nd.to_numpy(nested)
        assert_same(arrays, [part.numpy() for part in parts])
        for array, part in zip(arrays, nested.unbind(), strict=True):
            assert_shares(array, part)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:.*quantiz.*")
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda: torch.ones(2, 2, 2).to_sparse(2), "to_dense"),
        (lambda: torch.eye(2).to_sparse_bsc((1, 1)), "to_dense"),
        (lambda: torch.eye(2).expand(3, 2, 2).to_sparse_csr(), "unbind"),
        (lambda: torch.empty(2, 2, layout=torch.sparse_csr, device="meta"), "torch.empty_like"),
        (lambda: torch.ones(2, device="meta"), "torch.empty_like"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dequantize"),
        (lambda: torch._efficientzerotensor(3), "torch.zeros_like"),
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), r"view\(torch.uint8\)"),
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8), r"view\(torch.uint8\)"),
        (lambda: torch._C._functorch._add_batch_dim(torch.ones(2), 0, 1), "outside the transformed function"),
    ],
)
def test_tensor_without_plain_memory_is_refused_with_the_call_that_helps(make: Callable[[], Any], call: str) -> None:
    tensor = make()
    for options in ({}, {"copy": True}):
        with pytest.raises(nd.UnsupportedTypeError, match=f"Hint: .*{call}"):
            nd.to_numpy(tensor, **options)


def test_fake_tensor_is_refused() -> None:
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
    with pytest.raises(nd.UnsupportedTypeError, match="fake tensor"):
        nd.to_numpy(fake)


@pytest.mark.cuda
def test_tensor_on_a_gpu_is_copied_and_never_shared() -> None:
    tensor = torch.arange(6.0, device="cuda").reshape(2, 3)
    assert_same(nd.to_numpy(tensor.t()), np.arange(6, dtype=np.float32).reshape(2, 3).T)
    with pytest.raises(nd.CopyRequiredError, match="cuda"):
        nd.to_numpy(tensor, copy=False)


@pytest.mark.parametrize("read", [lambda a: a, lambda a: a.astype(a.dtype.newbyteorder("S")), lambda a: a[::-1]])
def test_array_is_itself_unless_something_is_asked(read: Callable[[np.ndarray], np.ndarray]) -> None:
    array = read(np.arange(3.0))
    assert nd.to_numpy(array) is array
    assert nd.to_numpy(array, copy=False, dtype=array.dtype) is array
    assert_same(nd.to_numpy(array, dtype="float32"), array.astype(np.float32))
    assert_independent(nd.to_numpy(array, copy=True), array)


@pytest.mark.parametrize(
    "value", [3, 1.5, True, 2j, [1, 2], [[1.5], [2]], (True, False), [1, 2.5], np.float32(2)], ids=repr
)
def test_numbers_become_what_numpy_makes_of_them(value: Any) -> None:
    assert_same(np.asarray(nd.to_numpy(value)), np.asarray(value))


# ---- dtype ----


@pytest.mark.parametrize("spelling", [torch.float64, np.float64, "float64", "f8", np.dtype("f8"), "torch.float64"])
def test_dtype_may_be_spelled_as_either_library_does(spelling: Any) -> None:
    tensor = torch.arange(3.0, requires_grad=True)
    array = nd.to_numpy(tensor, dtype=spelling)
    assert_same(array, np.arange(3.0))
    assert array.flags.writeable


def test_dtype_in_the_other_byte_order_is_kept() -> None:
    wanted = np.dtype("f4").newbyteorder("S")
    assert_same(nd.to_numpy(torch.arange(3.0), dtype=wanted), np.arange(3).astype(wanted))
    with pytest.raises(nd.CopyRequiredError):
        nd.to_numpy(torch.arange(3.0), dtype=wanted, copy=False)


def test_float_dtype_casts_floats_only() -> None:
    for name, (numpy, _) in NATIVE.items():
        wanted = "float32" if name.startswith("float") else "complex64" if name.startswith("complex") else name
        assert nd.to_numpy(tensor_holding(filled(numpy)), float_dtype=torch.float32).dtype == wanted
    assert nd.to_numpy(torch.ones(2), float_dtype="bfloat16").dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timedelta64[25s]", "datetime64[D]"])
def test_time_names_shared_integers(dtype: str) -> None:
    tensor = torch.tensor([[0, 1], [-(2**63), -1]])
    array = nd.to_numpy(tensor, dtype=dtype)
    assert_same(array, tensor.numpy().view(dtype))
    assert np.isnat(array[1, 0])
    assert_shares(array.view(np.int64), tensor)
    swapped = np.dtype(dtype).newbyteorder("S")
    assert_same(nd.to_numpy(tensor, dtype=swapped), array.astype(swapped))
    with pytest.raises(nd.UnsupportedDtypeError, match="int64"):
        nd.to_numpy(tensor.int(), dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "text"), [("S", [b"ab", b"c"]), ("S3", [b"ab", b"c"]), ("U", ["ab", "c"]), ("U3", ["ab", "c"])]
)
def test_text_names_shared_characters(dtype: str, text: list[Any]) -> None:
    kind = torch.uint8 if dtype[0] == "S" else torch.int32
    tensor = torch.tensor([[97, 98, 0], [99, 0, 0]], dtype=kind)
    array = nd.to_numpy(tensor, dtype=dtype)
    assert_same(array, np.array(text, f"{dtype[0]}3"))
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    tensor[1, 1] = 120
    assert array[1] in (b"cx", "cx")
    for wrong in (f"{dtype[0]}2", f"{dtype[0]}4"):
        with pytest.raises(nd.UnsupportedDtypeError, match="last dimension"):
            nd.to_numpy(tensor, dtype=wrong)
    swapped = np.dtype(f"{dtype[0]}3").newbyteorder("S")
    assert_same(
        nd.to_numpy(tensor, dtype=swapped), np.array(["ab", "cx"] if kind is torch.int32 else [b"ab", b"cx"], swapped)
    )
    with pytest.raises(nd.UnsupportedDtypeError):
        nd.to_numpy(tensor.float(), dtype=dtype)


def test_text_in_strided_characters_keeps_its_values() -> None:
    tensor = torch.tensor([[97, 0, 98], [99, 0, 100]], dtype=torch.uint8)
    assert nd.to_numpy(tensor[:, ::2], dtype="S").tolist() == [b"ab", b"cd"]
    assert nd.to_numpy(tensor.t(), dtype="S").tolist() == [b"ac", b"", b"bd"]
    for scattered in (tensor[:, ::2], tensor.t()):
        with pytest.raises(nd.CopyRequiredError):
            nd.to_numpy(scattered, dtype="S", copy=False)
    assert nd.to_numpy(tensor[::2], dtype="S", copy=False).tolist() == [b"a\0b"]


@pytest.mark.parametrize("dtype", ["O", "V4", [("a", "f4")], np.dtypes.StringDType()], ids=str)
def test_dtype_that_is_no_number_time_or_text_is_refused(dtype: Any) -> None:
    with pytest.raises(nd.UnsupportedDtypeError):
        nd.to_numpy(torch.ones(2), dtype=dtype)


# ---- like ----

FIELDS = [("x", "f4", (2,)), ("in", [("d", "M8[s]"), ("s", "U2")]), ("n", "i8")]
RECORDS = np.array([((1, 2), (5, "ab"), 7), ((3, 4), ("NaT", "c"), 8)], FIELDS)
LIKES: dict[str, np.ndarray] = {
    **{layout: SHAREABLE[layout](filled("f4")) for layout in SHAREABLE},
    **{layout: UNSHAREABLE[layout](filled("f4")) for layout in UNSHAREABLE},
    "days": np.array([["2024-02-29", "NaT"]], "M8[D]"),
    "durations in the other byte order": np.array([1, 2], "m8[ns]").astype(np.dtype("m8[ns]").newbyteorder("S")),
    "bytes": np.array([[b"a", b"xyz"]]),
    "text": np.array(["é", "two", ""]),
    "text in the other byte order": np.array(["é", "two"]).astype(np.dtype("U3").newbyteorder("S")),
    "fields": RECORDS,
    "packed fields": np.zeros(3, [("a", "i1"), ("b", ">f8")]),
    "records": RECORDS.view(np.recarray),
    "one record": np.array(RECORDS[0]),
    "masked": np.ma.array([1.5, 2, 3], mask=[0, 1, 0], fill_value=-1),
    "masked, nothing missing": np.ma.array([1, 2]),
    "masked fields": np.ma.array([(1, 2.0)], mask=[(True, False)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked time": np.ma.array(["2024-01-01", "2024-01-02"], mask=[1, 0], dtype="M8[D]"),
    "long double": np.array([1, 2.5], np.longdouble),
    "objects": np.array([[1.5, 2.5], [3.0, 4.0]], object),
    "empty": np.zeros((0, 3), ">f8"),
    "empty text": np.zeros(0, "U4"),
    "empty fields": RECORDS[:0],
    "no dimensions": np.array(3.5, "f2"),
    "no dimensions, text": np.array("word"),
    "no dimensions, time": np.array("2024-01-01", "M8[us]"),
    "read-only": read_only(filled("i2")),
    "broadcast": np.broadcast_to(np.arange(3, dtype="i2"), (2, 3)),
}


def _forward(source: Any) -> Any:
    options: dict[str, Any] = {"dtype": "float64"} if source.dtype == np.longdouble else {}
    return nd.to_torch(source, masked="split", **options)


@pytest.mark.parametrize("name", LIKES)
def test_like_restores_the_array_that_was_converted(name: str) -> None:
    array = LIKES[name]
    before = array.tobytes()
    back = nd.to_numpy(_forward(array), like=array)
    assert type(back) is type(array)
    assert_same(back, array)
    if isinstance(array, np.ma.MaskedArray):
        assert_same(back.filled(), array.filled())
    assert array.tobytes() == before


SHARED_BACK = [*SHAREABLE, "days", "bytes", "text", "fields", "records", "masked", "masked time", "no dimensions"]


@pytest.mark.parametrize("name", [*SHARED_BACK, "no dimensions, time"])
def test_way_there_and_back_shares_memory_throughout(name: str) -> None:
    array = LIKES[name].copy() if name not in SHAREABLE else LIKES[name]
    back = nd.to_numpy(_forward(array), like=array, copy=False)
    assert np.shares_memory(back, array)
    assert_same(back, array)
    if name in SHAREABLE or isinstance(array, np.ma.MaskedArray):
        assert_shares(np.asarray(back), np.asarray(array))


@pytest.mark.parametrize(
    "value", [2.5, 3, True, [1, 2], (1.5, 2.5), [[1], [2]], np.float32(1.5), np.datetime64("2024-01-01"), RECORDS[0]]
)
def test_like_restores_scalars_and_lists_of_numbers(value: Any) -> None:
    back = nd.to_numpy(nd.to_torch(value), like=value)
    assert type(back) is type(value)
    assert back == value


def test_like_brings_its_dtype_and_so_excludes_another() -> None:
    assert nd.to_numpy(torch.ones(2), like=np.zeros(2, "f8")).dtype == np.float64
    assert nd.to_numpy(torch.ones(2), like=torch.zeros(2, dtype=torch.bfloat16)).dtype == ml_dtypes.bfloat16
    for options in ({"dtype": "f4"}, {"float_dtype": "f4"}):
        with pytest.raises(nd.InvalidOptionError):
            nd.to_numpy(torch.ones(2), like=np.zeros(2), **options)
    with pytest.raises(nd.LossyCastError):
        nd.to_numpy(torch.tensor([0.5]), like=np.zeros(1, "i4"))


@pytest.mark.parametrize(
    ("source", "like"),
    [
        (torch.ones(2), 1.0),
        (torch.ones(2), RECORDS),
        ({"a": torch.ones(2)}, RECORDS),
        ({"x": torch.ones(2), "in": {}, "n": torch.ones(2)}, RECORDS),
        (torch.ones(2), np.ma.array([1, 2])),
        (torch.ones(2), np.array([1, 2, 3], object)),
        (torch.ones(2), {"a": np.ones(2)}),
        ([torch.ones(2)], [np.ones(2), np.ones(2)]),
        ({"a": torch.ones(2)}, {"b": np.ones(2)}),
    ],
)
def test_like_of_another_structure_is_refused(source: Any, like: Any) -> None:
    with pytest.raises((nd.ShapeMismatchError, nd.UnsupportedTypeError)):
        nd.to_numpy(source, like=like)
