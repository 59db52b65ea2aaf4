"""``masked="nan"``: missing values become NaN (NaT for time) in a copy, and nothing else changes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same
from hypothesis import given
from hypothesis import strategies as st
from strategies import NATIVE, SMALL_FLOATS, arrays, filled, read_only

import ndtorch as nd

MASK = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
NAT = -(2**63)


def nan(source: Any, **options: Any) -> Any:
    return nd.to_torch(source, masked="nan", **options)


def masked(dtype: Any, mask: Any = MASK) -> np.ma.MaskedArray:
    return np.ma.array(filled(dtype), mask=mask)


def expected(array: np.ndarray, mask: np.ndarray, dtype: Any) -> torch.Tensor:
    """NumPy's own cast, then NaN by hand."""
    result = np.array(array).astype(dtype)
    result[mask] = np.nan
    raw = torch.frombuffer(bytearray(result.tobytes()), dtype=torch.uint8)
    return raw.view(getattr(torch, result.dtype.name)).reshape(result.shape)


# ---- dtypes ----


@pytest.mark.parametrize("name", [*NATIVE, *SMALL_FLOATS])
def test_missing_becomes_nan_and_the_rest_keeps_its_value(name: str) -> None:
    numpy = {**NATIVE, **SMALL_FLOATS}[name][0]
    source = masked(numpy)
    has_nan = name.startswith(("float", "bfloat", "complex"))
    target = numpy if has_nan else np.dtype("float64")
    assert_same(nan(source), expected(source.data, MASK, target))


@pytest.mark.parametrize("name", ["bool", "int8", "uint64", "int64"])
def test_numbers_without_nan_become_float64_or_the_float_dtype(name: str) -> None:
    source = masked(name)
    assert nan(source).dtype == torch.float64
    for dtype in ("float16", "float32", "bfloat16"):
        wanted = getattr(ml_dtypes, dtype, dtype)
        assert_same(nan(source, float_dtype=dtype), expected(source.data, MASK, wanted))
        assert_same(nan(source, dtype=dtype), expected(source.data, MASK, wanted))


@pytest.mark.parametrize("name", SMALL_FLOATS)
def test_any_float_can_be_asked_for_even_where_torch_fills_none(name: str) -> None:
    array = 2.0 ** (np.arange(12).reshape(3, 4) % 4)
    assert_same(nan(np.ma.array(array, mask=MASK), dtype=name), expected(array, MASK, SMALL_FLOATS[name][0]))


def test_complex_follows_to_the_matching_width() -> None:
    source = masked("complex128")
    assert_same(nan(source, float_dtype="float32"), expected(source.data, MASK, "complex64"))
    assert_same(nan(masked("int16"), dtype="complex64"), expected(filled("int16"), MASK, "complex64"))
    assert_same(nan(source, float_dtype="float64"), expected(source.data, MASK, "complex128"))


@pytest.mark.parametrize("dtype", ["M8[D]", "M8[ns]", "m8[s]", ">M8[us]"])
def test_missing_time_becomes_nat(dtype: str) -> None:
    source = np.ma.array(np.arange(1, 13).reshape(3, 4).astype("i8").astype(dtype), mask=MASK)
    codes = np.where(MASK, NAT, np.arange(1, 13).reshape(3, 4))
    for options in ({}, {"float_dtype": "float32"}, {"casting": "exact"}):
        assert_same(nan(source, **options), torch.tensor(codes))
    with pytest.raises(nd.UnsupportedDtypeError, match="holds time"):
        nan(source, dtype="float32")
    back = nd.to_numpy(nan(source), dtype=source.dtype.newbyteorder("="))
    assert (np.isnat(back) == MASK).all()


def test_small_integers_of_ml_dtypes_become_float64() -> None:
    source = np.ma.array(np.array([1, 2, -3], ml_dtypes.int4), mask=[0, 1, 0])
    assert_same(nan(source), torch.tensor([1, float("nan"), -3], dtype=torch.float64))


def test_long_double_is_never_rounded_without_being_asked() -> None:
    source = np.ma.array([1, 2], np.longdouble, mask=[0, 1])
    with pytest.raises(nd.UnsupportedDtypeError, match="dtype='float64'"):
        nan(source)
    assert_same(nan(source, dtype="float64"), torch.tensor([1, float("nan")], dtype=torch.float64))
    assert str(nd.explain(source, masked="nan").error).startswith("to_torch: cannot convert")


# ---- shapes and layouts ----


@pytest.mark.parametrize("dtype", ["f4", "i4", "M8[s]", "c8"])
def test_no_mask_and_nothing_missing_are_a_copy_in_the_same_dtype_as_ever(dtype: str) -> None:
    data = filled("i8").astype(dtype)
    for source in (np.ma.array(data), np.ma.array(data, mask=np.zeros_like(MASK))):
        result = nan(source)
        target = {"i4": "f8", "M8[s]": "i8"}.get(dtype, dtype)
        assert_same(result, torch.tensor(filled("i8").astype(target)))
        if dtype != "i4":
            assert_independent(result, data.view("i8") if dtype == "M8[s]" else data)


def test_all_missing_and_none_at_all() -> None:
    assert nan(masked("i4", True)).isnan().all()
    for shape in ((0,), (3, 0)):
        result = nan(np.ma.array(np.zeros(shape, "i4"), mask=np.zeros(shape, bool)))
        assert (tuple(result.shape), result.dtype) == (shape, torch.float64)


def test_single_values() -> None:
    assert nan(np.ma.array(3, mask=True)).isnan()
    assert nan(np.ma.array(3, mask=False)).item() == 3.0
    assert nan(np.ma.masked).isnan()


def test_one_element_that_stands_for_many_is_missing_only_where_the_mask_says() -> None:
    row = np.arange(4.0)
    source = np.ma.array(np.broadcast_to(row, (3, 4)), mask=MASK, copy=False)
    assert source.data.strides[0] == 0
    plan = nd.explain(source, masked="nan")
    assert (plan.action, plan.nbytes_copied) == ("fill", 96)
    assert_same(nan(source), expected(np.tile(row, (3, 1)), MASK, "f8"))
    assert_same(nan(source, dtype="float32"), expected(np.tile(row, (3, 1)), MASK, "f4"))
    assert row.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("take", [np.s_[::-1], np.s_[:, ::2], np.s_[1:, ::-2]])
def test_views_of_masked_arrays(take: Any) -> None:
    source = masked("f4")[take]
    assert_same(nan(source), expected(source.data, MASK[take], "f4"))


def test_mask_in_any_layout() -> None:
    source = np.ma.array(filled("f8"), mask=MASK[::-1][::-1], copy=False)
    source._mask = np.asfortranarray(MASK)[::-1][::-1]
    assert_same(nan(source), expected(filled("f8"), MASK, "f8"))
    source._mask = read_only(MASK.copy())
    assert_same(nan(source), expected(filled("f8"), MASK, "f8"))
    source._mask = np.broadcast_to(MASK[0], (3, 4))
    assert_same(nan(source), expected(filled("f8"), np.tile(MASK[0], (3, 1)), "f8"))


@given(arrays(), st.integers(0, 2**32 - 1))
def test_any_array_in_any_layout_keeps_what_is_not_missing(array: np.ndarray, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, array.shape).astype(bool)
    source = np.ma.array(array, mask=mask, copy=False)
    before = array.tobytes()
    tensor, plan = nan(source), nd.explain(source, masked="nan")
    split = nd.to_torch(source, masked="split")
    kept = split.data if split.data.dtype == tensor.dtype else split.data.to(torch.float64)
    if split.data.dtype == torch.uint64:  # torch's cast of large ones may differ from NumPy's by rounding
        kept = torch.tensor(np.asarray(array, "u8").astype("f8"))
    assert_same(tensor.nan_to_num() if tensor.itemsize > 1 else tensor.float().nan_to_num(), _where(mask, kept))
    assert tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).isnan()[torch.tensor(mask)].all()
    assert (plan.dtype, plan.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    assert plan.nbytes_copied == tensor.nbytes
    assert not plan.shares
    assert array.tobytes() == before


def _where(mask: np.ndarray, kept: torch.Tensor) -> torch.Tensor:
    plain = kept.contiguous().clone() if kept.itemsize > 1 else kept.to(torch.float32)
    plain[torch.tensor(mask)] = 0
    return plain.nan_to_num()


# ---- options ----


def test_it_is_always_a_copy() -> None:
    data = filled("f8")
    source = np.ma.array(data, mask=MASK, copy=False)
    tensor = nan(source)
    assert_independent(tensor, data)
    plan = nd.explain(source, masked="nan")
    assert (plan.shares, plan.action, plan.nbytes_copied) == (False, "fill", 96)
    assert plan.reason == "missing values become NaN, in a copy"
    for readonly in ("copy", "share", "error"):
        assert_same(nan(np.ma.array(read_only(data), mask=MASK, copy=False), readonly=readonly), tensor)
    with pytest.raises(nd.CopyRequiredError, match="missing values become NaN, in a copy") as raised:
        nan([source], copy=False)
    assert raised.value.path == "[0]"
    assert str(nd.explain(source, masked="nan", copy=False).error) == str(raised.value)
    assert_same(nan(source, copy=True), tensor)


def test_casting_holds_for_what_is_not_missing() -> None:
    source = np.ma.array([2**53 + 1, 5], mask=[0, 1])
    with pytest.raises(nd.LossyCastError) as raised:
        nan(source, casting="exact")
    assert (raised.value.index, raised.value.value) == ((0,), 2**53 + 1)
    assert nan(source).tolist()[0] == 2.0**53
    for casting in ("no", "equiv"):
        with pytest.raises(nd.LossyCastError, match=f"is not a {casting} cast"):
            nan(source, casting=casting)
    assert nan(np.ma.array([1.0], mask=[1]), casting="no").isnan()


@pytest.mark.parametrize("dtype", [None, "float64", "float32"])
def test_exact_does_not_look_at_what_stands_behind_a_missing_value(dtype: str | None) -> None:
    for garbage in (2**53 + 1, -(2**63)):
        source = np.ma.array([3, garbage], mask=[0, 1])
        assert nan(source, dtype=dtype, casting="exact")[0] == 3
        assert source.data[1] == garbage
    wide = np.ma.array([1.5, 1e300], mask=[0, 1])
    assert nan(wide, dtype=dtype, casting="exact")[0] == 1.5


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device(device: str) -> None:
    tensor = nan(masked("i4"), device=device)
    assert (tensor.device.type, tensor.dtype) == (device, torch.float64)
    if device == "cpu":
        assert_same(tensor, expected(filled("i4"), MASK, "f8"))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["float32", "int64", "float8_e5m2", "bool"])
def test_on_a_gpu(name: str) -> None:
    source = masked({**NATIVE, **SMALL_FLOATS}[name][0])
    assert_same(nan(source, device="cuda").cpu(), nan(source))


# ---- what is refused ----


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_dtype_without_nan_is_refused(dtype: str) -> None:
    with pytest.raises(nd.UnsupportedDtypeError, match=f"dtype={dtype} has none") as raised:
        nan(masked("f4"), dtype=dtype)
    assert str(nd.explain(masked("f4"), masked="nan", dtype=dtype).error) == str(raised.value)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (np.ma.array(["a", "b"], mask=[0, 1]), "text"),
        (np.ma.array([b"a", b"b"], mask=[0, 1]), "bytes"),
        (np.ma.array([(1, 2.0)], "i4,f8", mask=[(0, 1)]), "struct"),
        (np.ma.array([1, None], object, mask=[0, 1]), "object"),
    ],
    ids=["text", "bytes", "fields", "objects"],
)
def test_what_has_no_nan_is_refused(source: Any, form: str) -> None:
    with pytest.raises(nd.UnsupportedDtypeError, match=f"it holds {form}.*masked='split'") as raised:
        nan({"a": source})
    assert raised.value.path == "['a']"
    assert str(nd.explain(source, masked="nan").error) == str(raised.value)


def test_without_the_option_it_is_refused_and_other_words_have_no_meaning() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask"):
        nd.to_torch(masked("f4"))
    with pytest.raises(nd.InvalidOptionError, match="one of error, split, nan"):
        nd.to_torch(masked("f4"), masked="zero")


# ---- structures ----


def test_structures_keep_what_is_not_masked() -> None:
    plain = np.arange(3)
    source = {"x": masked("i2"), "y": [plain, np.ma.array([1.5], mask=[1])], "z": "text"}
    result = nan(source, float_dtype="float32")
    assert_same(result["x"], expected(filled("i2"), MASK, "f4"))
    assert nd.shares_memory(result["y"][0], plain)
    assert_same(result["y"][1], torch.tensor([float("nan")]))
    assert result["z"] == "text"
    plan = nd.explain(source, masked="nan", float_dtype="float32")
    assert {path: leaf.shares for path, leaf in plan.leaves.items()} == {
        "['x']": False,
        "['y'][0]": True,
        "['y'][1]": False,
    }
    assert nd.explain(plain, masked="nan").shares


def test_trace_counts_the_copy() -> None:
    with nd.trace() as seen:
        nan([masked("f4")])
    assert [(r.path, r.shared, r.nbytes_copied, r.reason) for r in seen] == [
        ("[0]", False, 48, "missing values become NaN, in a copy")
    ]
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError, match="become NaN"):
        nan(masked("f4"))
