"""pandas: frames, series, indexes and extension arrays to tensors and back. The oracle is pandas itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares

import ndtorch as nd

pd = pytest.importorskip("pandas", reason="pandas is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from pandas.testing import (  # noqa: E402
    assert_extension_array_equal,
    assert_frame_equal,
    assert_index_equal,
    assert_series_equal,
)

from ndtorch.foreign import library_of  # noqa: E402

EPOCH = pd.Timestamp(0)


def numbers(dtype: str) -> Any:
    return pd.array(np.array([3, 0, 1, 2]).astype(dtype))


# What is in memory as numbers: the array, and those numbers as NumPy has them.
PLAIN: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
    **{
        dtype: (
            lambda dtype=dtype: pd.arrays.NumpyExtensionArray(np.array([3, 0, 1, 2], dtype)),
            np.array([3, 0, 1, 2], dtype),
        )
        for dtype in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    },
    "float16": (lambda: pd.arrays.NumpyExtensionArray(np.array([1.5, np.nan], "f2")), np.array([1.5, np.nan], "f2")),
    "float32": (lambda: pd.array(np.array([1.5, np.nan], "f4"), dtype=np.dtype("f4")), np.array([1.5, np.nan], "f4")),
    "float64": (lambda: pd.array(np.array([-0.0, np.nan]), dtype=np.dtype("f8")), np.array([-0.0, np.nan])),
    "complex128": (lambda: pd.arrays.NumpyExtensionArray(np.array([1 + 2j, 0])), np.array([1 + 2j, 0])),
    "bool": (lambda: pd.arrays.NumpyExtensionArray(np.array([True, False])), np.array([True, False])),
    "datetime": (lambda: pd.array(np.array(["2020-02-29", "NaT"], "M8[s]")), np.array(["2020-02-29", "NaT"], "M8[s]")),
    "timedelta": (lambda: pd.array(np.array([7, "NaT"], "m8[ms]")), np.array([7, "NaT"], "m8[ms]")),
    "zone": (
        lambda: pd.DatetimeIndex(["2020-07-01 12:00", None], tz="Europe/Paris").as_unit("ns").array,
        np.array(["2020-07-01T10:00", "NaT"], "M8[ns]"),
    ),
    "period": (lambda: pd.period_range("1970-03", periods=2, freq="M").array, np.array([2, 3])),
}
CODES = {
    "category": (lambda: pd.Categorical(["b", "a", "b"], ["a", "b", "c"], ordered=True), np.array([1, 0, 1], np.int8))
}

# What has missing values: the array, its values with 0 for what is missing, and the mask.
MASKED: dict[str, tuple[Callable[[], Any], np.ndarray, list[bool]]] = {
    **{
        dtype: (
            lambda dtype=dtype: pd.array([3, None, 1], dtype=dtype),
            np.array([3, 0, 1], dtype.lower()),
            [False, True, False],
        )
        for dtype in ["Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"]
    },
    "boolean": (
        lambda: pd.array([None, True, False], dtype="boolean"),
        np.array([False, True, False]),
        [True, False, False],
    ),
    "Int64 whole": (lambda: pd.array([2**63 - 1, -1], dtype="Int64"), np.array([2**63 - 1, -1]), [False, False]),
    "category": (lambda: pd.Categorical(["b", None], ["a", "b"]), np.array([1, 0], np.int8), [False, True]),
    "period": (lambda: pd.PeriodIndex(["1970-03", None], freq="M").array, np.array([2, 0]), [False, True]),
}

# What has to be made.
MADE: dict[str, tuple[Callable[[], Any], np.ndarray, str]] = {
    "sparse": (lambda: pd.arrays.SparseArray([0, 0, 5]), np.array([0, 0, 5]), "it is sparse"),
    "sparse blocks": (
        lambda: pd.arrays.SparseArray([0.5, np.nan, 1], kind="block"),
        np.array([0.5, np.nan, 1]),
        "it is sparse",
    ),
    "sparse bool": (
        lambda: pd.arrays.SparseArray([True, False], fill_value=False),
        np.array([True, False]),
        "it is sparse",
    ),
    "objects": (
        lambda: pd.array(np.array([1, 2**62 + 1], object), dtype=object),
        np.array([1, 2**62 + 1]),
        "Python objects",
    ),
}

HOLDERS: dict[str, Callable[[Any], Any]] = {
    "series": lambda array: pd.Series(array, index=range(5, 5 + len(array)), name="s", copy=False),
    "index": lambda array: pd.Index(array, name="i", copy=False),
}


def is_indexable(name: str) -> bool:
    return name not in ("float16",)  # pandas has no such index


def memory_of(value: Any) -> np.ndarray:
    """The numbers of a pandas object where they are; as an array that may be read only."""
    array = value if library_of(value).module == "pandas.api.extensions" else value.array
    if hasattr(array, "asi8"):
        return array.asi8
    if hasattr(array, "codes"):
        return array.codes
    return array._data if hasattr(array, "_mask") else array._ndarray


def assert_equal(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, pd.DataFrame):
        assert_frame_equal(actual, expected, check_freq=True)
        assert actual.attrs == expected.attrs
    elif isinstance(expected, pd.Series):
        assert_series_equal(actual, expected)
        assert actual.attrs == expected.attrs
    elif isinstance(expected, pd.Index):
        assert_index_equal(actual, expected, exact=True)
        assert getattr(actual, "freq", None) == getattr(expected, "freq", None)
    else:
        assert_extension_array_equal(actual, expected)


def as_tensor(values: np.ndarray) -> torch.Tensor:
    plain = values.view(np.int64) if values.dtype.kind in "mM" else values
    return torch.tensor(plain.tolist(), dtype=getattr(torch, plain.dtype.name))


# ---- values and memory ----


@pytest.mark.parametrize("name", [*PLAIN, *CODES])
def test_extension_array_that_stands_alone_is_shared_as_far_as_pandas_lets_it_be_written(name: str) -> None:
    make, values = {**PLAIN, **CODES}[name]
    array = make()
    shared = nd.to_torch(array, readonly="share")
    assert_same(shared, as_tensor(values))
    assert shared.data_ptr() == memory_of(array).__array_interface__["data"][0]
    may_write = name != "category" and not getattr(array, "_readonly", False)  # codes and categories belong together
    assert nd.explain(array).shares == may_write
    if may_write:
        assert_shares(nd.to_torch(array), memory_of(array))


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", [*PLAIN, *CODES])
def test_series_and_index_are_copied_unless_sharing_is_asked_for(name: str, holder: str) -> None:
    if holder == "index" and not is_indexable(name):
        pytest.skip("pandas has no index of this dtype")
    make, values = {**PLAIN, **CODES}[name]
    source = HOLDERS[holder](make())
    plan = nd.explain(source)
    assert (plan.shares, plan.reason, plan.nbytes_copied) == (False, "it is read-only", values.nbytes)
    assert any("pandas hands out its memory read-only" in note for note in plan.notes)
    fresh = nd.to_torch(source)
    assert_same(fresh, as_tensor(values))
    assert_independent(fresh, memory_of(source))
    shared = nd.to_torch(source, readonly="share", copy=False)
    assert nd.explain(source, readonly="share").shares
    assert_same(shared, as_tensor(values))
    assert shared.data_ptr() == memory_of(source).__array_interface__["data"][0]
    with pytest.raises(nd.CopyRequiredError, match="it is read-only"):
        nd.to_torch(source, copy=False)


@pytest.mark.parametrize("holder", ["alone", *HOLDERS])
@pytest.mark.parametrize("name", MASKED)
def test_missing_values_are_an_error_a_mask_or_nan_as_asked(name: str, holder: str) -> None:
    make, values, mask = MASKED[name]
    source = HOLDERS.get(holder, lambda array: array)(make())
    if any(mask):
        with pytest.raises(nd.UnsupportedTypeError, match=f"{sum(mask)} of its {len(mask)} values") as caught:
            nd.to_torch(source)
        assert "masked='split'" in caught.value.hint
    else:
        assert_same(nd.to_torch(source), as_tensor(values))
    data, missing = nd.to_torch(source, masked="split", readonly="share")
    assert_same(missing, torch.tensor(mask))
    assert data.data_ptr() == memory_of(source).__array_interface__["data"][0]
    assert nd.explain(source, masked="split", readonly="share").shares
    assert_same(torch.where(missing, torch.zeros((), dtype=data.dtype), data), as_tensor(values))
    if holder != "alone":
        assert_independent(nd.to_torch(source, masked="split").data, memory_of(source))
    filled = nd.to_torch(source, masked="nan")
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(float)
    assert_same(filled, as_tensor(np.where(mask, np.nan, values.astype(dtype)).astype(dtype)))


@pytest.mark.parametrize("holder", ["alone", *HOLDERS])
@pytest.mark.parametrize("name", MADE)
def test_what_pandas_does_not_hold_as_numbers_is_read_into_memory_of_its_own(name: str, holder: str) -> None:
    make, values, reason = MADE[name]
    source = HOLDERS.get(holder, lambda array: array)(make())
    plan = nd.explain(source)
    assert reason in plan.reason
    assert plan.nbytes_copied == values.nbytes
    assert_same(nd.to_torch(source), as_tensor(values))
    with pytest.raises(nd.CopyRequiredError, match=reason):
        nd.to_torch(source, copy=False)


@pytest.mark.parametrize("name", [*PLAIN, *MASKED, *MADE])
def test_extension_array_can_be_written_through_only_alone(name: str) -> None:
    array = {**PLAIN, **MASKED, **MADE}[name][0]()
    series = pd.Series(array)
    before = series.copy(deep=True)
    for value in (series, pd.DataFrame({"x": series})):
        result = nd.to_torch(value, masked="split")
        while not isinstance(result, torch.Tensor):
            result = next(iter(result.values())) if isinstance(result, dict) else result[0]
        result.zero_()
    assert_series_equal(series, before)


def test_range_index_is_made() -> None:
    index = pd.RangeIndex(2, 11, 3)
    assert "RangeIndex is three numbers" in nd.explain(index).reason
    assert_same(nd.to_torch(index), torch.tensor([2, 5, 8]))
    assert_same(nd.to_torch(index, dtype="float32"), torch.tensor([2.0, 5.0, 8.0]))


def test_multi_index_becomes_a_dict_of_its_levels() -> None:
    times = pd.DatetimeIndex(["2020", None, "2021"], tz="UTC").as_unit("s")
    index = pd.MultiIndex.from_arrays([[7, None, 9], [0.5, 1.5, None], times], names=["n", "x", "t"])
    result = nd.to_torch(index, masked="split")
    assert_same(result["n"].mask, torch.tensor([False, True, False]))
    assert_same(result["n"].data[[0, 2]], torch.tensor([7, 9]))
    assert_same(result["x"], torch.tensor([0.5, 1.5, float("nan")], dtype=torch.float64))
    assert_same(result["t"], torch.tensor([1577836800, -(2**63), 1609459200]))
    unnamed = pd.MultiIndex.from_product([[1, 2], [3.0]])
    assert_same(nd.to_torch(unnamed), {0: torch.tensor([1, 2]), 1: torch.tensor([3.0, 3.0], dtype=torch.float64)})


# ---- frames ----


def frame_of_all() -> Any:
    """One column of every kind that has a way to torch, with an index of its own."""
    columns = {}
    for group in (PLAIN, CODES, MASKED, MADE):
        for name, (make, *_) in group.items():
            array = make()
            columns[name, len(columns)] = array.take([0, 1, 0])
    frame = pd.DataFrame(dict(columns.items()))
    frame.columns = [f"{name} {i}" for name, i in columns]
    frame.index = pd.Index([4, 5, 6], name="row")
    frame.attrs = {"unit": "m"}
    return frame


def test_frame_becomes_a_dict_of_its_columns_and_comes_back() -> None:
    frame = frame_of_all()
    result = nd.to_torch(frame, masked="split")
    assert list(result) == list(frame.columns)
    for name, column in frame.items():
        assert_same(result[name], nd.to_torch(column, masked="split"))
    assert_equal(nd.to_numpy(result, like=frame), frame)


def test_plan_of_a_frame_agrees_with_the_call() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": pd.array([1, 2], dtype="Int8"), "c": pd.arrays.SparseArray([0.0, 1.0])})
    for words in ({}, {"readonly": "share"}, {"copy": True}, {"float_dtype": "float32"}):
        plan = nd.explain(frame, masked="split", **words)
        result = nd.to_torch(frame, masked="split", **words)
        assert list(plan.leaves) == ["['a']", "['b']", "['c']"]
        for name in "ab":
            data = result[name] if name == "a" else result[name].data
            same = data.data_ptr() == memory_of(frame[name]).__array_interface__["data"][0]
            assert plan.leaves[f"['{name}']"].shares == same == (words == {"readonly": "share"})
    with nd.trace() as seen:
        nd.to_torch(frame, masked="split")
    assert seen.nbytes_copied == nd.explain(frame, masked="split").nbytes_copied == 16 + 2 + 2 + 16


def test_columns_of_one_block_share_it() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    frame = pd.DataFrame(matrix, columns=list("abc"), copy=False)
    result = nd.to_torch(frame, readonly="share")
    for i, name in enumerate("abc"):
        assert_same(result[name], torch.tensor(matrix[:, i].tolist(), dtype=torch.float64))
        assert result[name].data_ptr() == matrix[:, i].__array_interface__["data"][0]


def test_keys_are_the_column_names_as_they_are() -> None:
    names = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])
    assert list(nd.to_torch(pd.DataFrame([[1, 2]], columns=names))) == [("a", 1), ("b", 2)]
    assert list(nd.to_torch(pd.DataFrame({3: [1], "x": [2], (4, None): [3]}))) == [3, "x", (4, None)]


def test_frame_without_columns_or_rows_is_a_dict_too() -> None:
    assert nd.to_torch(pd.DataFrame(index=[1, 2])) == {}
    assert_equal(nd.to_numpy({}, like=pd.DataFrame(index=[1, 2])), pd.DataFrame(index=[1, 2]))
    frame = pd.DataFrame({"a": np.empty(0), "b": pd.array([], dtype="Int64")})
    result = nd.to_torch(frame, masked="split")
    assert_same(result["a"], torch.empty(0, dtype=torch.float64))
    assert_equal(nd.to_numpy(result, like=frame), frame)


def test_duplicate_column_names_are_refused_by_name() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    with pytest.raises(nd.UnsupportedTypeError, match="several of its columns have the name 'a'"):
        nd.to_torch(frame)


def test_column_that_cannot_be_converted_is_named() -> None:
    frame = pd.DataFrame({"age": [1], "name": ["Ada"]})
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length") as caught:
        nd.to_torch({"table": frame})
    assert caught.value.path == "['table']['name']"
    assert "frame['name'].astype('category') gives codes" in caught.value.hint
    assert_same(nd.to_torch(frame["name"].astype("category")), torch.tensor([0], dtype=torch.int8))


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: pd.Series(["a"]), "text of varying length"),
        (lambda: pd.Series(["a"], dtype="string"), "text of varying length"),
        (lambda: pd.Index(["a"]), "text of varying length"),
        (lambda: pd.array(["a"]), "text of varying length"),
        (lambda: pd.Series(["a"], dtype=object), "the element at index 0 is a str"),
        (lambda: pd.Series([1, None], dtype=object), "the element at index 1 is None"),
        (lambda: pd.Series([pd.NA], dtype=object), "NAType"),
        (lambda: pd.Series(pd.interval_range(0, 2)), "an interval is two values"),
        (lambda: pd.interval_range(0, 2), "an interval is two values"),
        (lambda: pd.MultiIndex.from_arrays([[1], ["a"]]), "text of varying length"),
    ],
)
def test_values_without_a_tensor_form_are_refused(make: Callable[[], Any], fact: str) -> None:
    with pytest.raises(nd.NdtorchError, match=fact) as caught:
        nd.to_torch(make())
    assert caught.value.hint
    assert str(nd.explain(make()).error) == str(caught.value)


def test_hint_for_intervals_works() -> None:
    series = pd.Series(pd.interval_range(0, 2))
    with pytest.raises(nd.UnsupportedTypeError, match=r"series\.array\.left and series\.array\.right convert"):
        nd.to_torch(series)
    assert_same(nd.to_torch(series.array.left), torch.tensor([0, 1]))


def test_upstream_traps() -> None:
    """torch.tensor asks a series for its item 0 (pytorch#51112); pandas makes nulls objects or floats (ray#59445)."""
    series = pd.Series([1, 2], index=[5, 6])
    with pytest.raises((KeyError, ValueError)):
        torch.tensor(series)
    assert_same(nd.to_torch(series), torch.tensor([1, 2]))
    nullable = pd.Series([2**53 + 1, None], dtype="Int64")
    assert nullable.to_numpy().dtype != np.int64
    assert int(nd.to_torch(nullable, masked="split").data[0]) == 2**53 + 1


# ---- options ----


def test_dtypes_are_cast_by_the_rules_of_all_arrays() -> None:
    frame = pd.DataFrame({"i": [1, 2], "f": [0.5, 1.5], "t": pd.to_datetime(["2020", None])})
    result = nd.to_torch(frame, float_dtype="float32")
    assert [tensor.dtype for tensor in result.values()] == [torch.int64, torch.float32, torch.int64]
    with pytest.raises(nd.UnsupportedDtypeError) as caught:
        nd.to_torch(frame, dtype="float32")
    assert caught.value.path == "['t']"
    with pytest.raises(nd.LossyCastError) as lossy:
        nd.to_torch(frame[["i", "f"]], dtype="int8", casting="exact")
    assert (lossy.value.path, lossy.value.index) == ("['f']", (0,))
    assert nd.to_torch(pd.Series([1, 2]), dtype="int8", device="cpu").dtype == torch.int8
    with pytest.raises(nd.CopyRequiredError, match="it is read-only"):
        nd.to_torch(pd.Series([1, 2]), readonly="error")


def test_frames_inside_structures_are_converted() -> None:
    frame, target = pd.DataFrame({"x": [1.0, 2.0]}), pd.Series([0, 1], name="y")
    tree = {"table": frame, "y": target, "note": "kept", "rest": [np.ones(2), pd.Index([3])]}
    result = nd.to_torch(tree)
    assert_same(result["table"], {"x": torch.tensor([1.0, 2.0], dtype=torch.float64)})
    assert_same(result["rest"][1], torch.tensor([3]))
    back = nd.to_numpy(result, like=tree)
    assert_equal(back["table"], frame)
    assert_equal(back["y"], target)


def test_subclasses_are_converted_and_come_back_as_what_they_are() -> None:
    class Series(pd.Series):
        @property
        def _constructor(self) -> Any:
            return Series

    class Frame(pd.DataFrame):
        _metadata = ["unit"]

        @property
        def _constructor(self) -> Any:
            return Frame

    frame = Frame({"x": [1, 2]})
    frame.unit = "m"
    back = nd.to_numpy(nd.to_torch(frame), like=frame)
    assert (type(back), back.unit) == (Frame, "m")
    assert type(nd.to_numpy(torch.zeros(3), like=Series([1.0]))) is Series


# ---- to NumPy ----


def test_to_numpy_gives_the_memory_of_a_series_read_only() -> None:
    values = np.arange(3)
    array = nd.to_numpy(pd.Series(values, copy=False))
    assert_same(array, values)
    assert array.__array_interface__["data"] == (values.__array_interface__["data"][0], True)
    assert_independent(nd.to_numpy(pd.Series(values, copy=False), copy=True), values)


def test_to_numpy_keeps_masks_units_and_names() -> None:
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int16"), "t": pd.to_datetime(["2020", None]).as_unit("s")})
    result = nd.to_numpy(frame)
    assert_same(result["n"], np.ma.MaskedArray([1, 0], [False, True], np.int16))
    assert_same(result["t"], np.array(["2020-01-01", "NaT"], "M8[s]"))
    assert_equal(nd.to_numpy(result, like=frame), frame)
    assert_equal(nd.to_numpy(frame, like=frame), frame)


# ---- like= ----


def everything() -> dict[str, Any]:
    arrays = {
        f"{name} {i}": make()
        for i, group in enumerate((PLAIN, CODES, MASKED, MADE))
        for name, (make, *_) in group.items()
    }
    found = dict(arrays)
    for holder, hold in HOLDERS.items():
        found |= {
            f"{name} {holder}": hold(array)
            for name, array in arrays.items()
            if holder == "series" or is_indexable(name.split()[0])
        }
    found["range"] = pd.RangeIndex(2, 10, 3, name="r")
    found["dates"] = pd.date_range("2020", periods=3, freq="D", tz="UTC", name="d")
    found["periods"] = pd.period_range("2020", periods=3, freq="Q-JAN")
    found["levels"] = pd.MultiIndex.from_arrays([[1, None, 3], pd.Categorical(["x", "y", "x"])], names=["n", "c"])
    return found


@pytest.mark.parametrize("name", everything())
def test_like_gives_back_what_was_converted(name: str) -> None:
    source = everything()[name]
    expected = copy.deepcopy(source)
    for words in ({}, {"readonly": "share"}):
        tensors = nd.to_torch(source, masked="split", **words)
        assert_equal(nd.to_numpy(tensors, like=source), expected)
        assert_equal(nd.to_numpy(nd.to_numpy(source), like=source), expected)


@pytest.mark.parametrize("name", [*PLAIN, *CODES])
def test_like_shares_the_memory_of_the_tensor(name: str) -> None:
    make, _ = {**PLAIN, **CODES}[name]
    tensor = nd.to_torch(make(), copy=True)
    back = nd.to_numpy(tensor, like=pd.Series(make()))
    assert memory_of(back).__array_interface__["data"][0] == tensor.data_ptr()
    assert (
        memory_of(nd.to_numpy(tensor, like=pd.Series(make()), copy=True)).__array_interface__["data"][0]
        != tensor.data_ptr()
    )


def test_like_of_another_length_gets_a_fresh_index() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"])}, index=["p", "q"])
    half = {"a": torch.tensor([9]), "b": torch.tensor([1], dtype=torch.int8)}
    expected = pd.DataFrame({"a": [9], "b": pd.Categorical(["y"], ["x", "y"])})
    assert_equal(nd.to_numpy(half, like=frame), expected)
    assert_equal(
        nd.to_numpy(torch.tensor([3.0] * 3), like=pd.Series([1.0], index=[7], name="s")), pd.Series([3.0] * 3, name="s")
    )


def test_matrix_becomes_a_frame_over_its_memory_or_column_by_column() -> None:
    like = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[5, 6])
    matrix = torch.arange(4.0, dtype=torch.float64).reshape(2, 2)
    back = nd.to_numpy(matrix, like=like)
    assert_equal(back, pd.DataFrame([[0.0, 1.0], [2.0, 3.0]], [5, 6], ["a", "b"]))
    assert back.to_numpy().__array_interface__["data"][0] == matrix.data_ptr()
    mixed = pd.DataFrame({"a": [1], "b": np.ones(1, "f4"), "c": pd.Categorical(["x"])})
    assert_equal(
        nd.to_numpy(torch.tensor([[1, 2, 0], [3, 4, 0]]), like=mixed).dtypes.to_frame(), mixed.dtypes.to_frame()
    )
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_numpy(torch.ones(1, 3), like=mixed)
    assert caught.value.path == "['a']"


def test_nan_stands_for_a_missing_value_where_the_source_has_no_mask() -> None:
    like = pd.Series([1.5, None], dtype="Float64")
    assert_equal(nd.to_numpy(nd.to_torch(like, masked="nan"), like=like), like)
    integers = pd.Series([1, None], dtype="Int64")
    assert_equal(nd.to_numpy(nd.to_torch(integers, masked="nan"), like=integers, casting="exact"), integers)


@pytest.mark.parametrize(
    ("source", "like", "error", "match"),
    [
        ({"a": [1]}, pd.DataFrame({"a": [1], "b": [1]}), nd.ShapeMismatchError, r"\['b'\] missing"),
        ({"a": [1], "z": [1]}, pd.DataFrame({"a": [1]}), nd.ShapeMismatchError, r"\['z'\] unknown"),
        (
            {"a": [1], "b": [1, 2]},
            pd.DataFrame({"a": [1], "b": [1]}),
            nd.ShapeMismatchError,
            "'a' and 'b' have different lengths",
        ),
        (torch.zeros(2, 3), pd.DataFrame({"a": [1]}), nd.ShapeMismatchError, "a DataFrame of 1 columns"),
        (torch.zeros(2), pd.DataFrame({"a": [1]}), nd.ShapeMismatchError, "a DataFrame of 1 columns"),
        (torch.zeros(2, 3), pd.Series([1.0]), nd.ShapeMismatchError, "one array of one dimension"),
        ({"a": [1]}, pd.Series([1.0]), nd.ShapeMismatchError, "one array of one dimension"),
        ({"a": [1]}, pd.Series([1], dtype="Int8"), nd.ShapeMismatchError, "one array of one dimension"),
        (torch.tensor(1.0), pd.Series([1.0]), nd.ShapeMismatchError, "one array of one dimension"),
        (torch.tensor([5]), pd.Series(["a"], dtype="category"), nd.NdtorchError, "codes lie outside"),
        (torch.tensor([256]), pd.Series(["a"], dtype="category"), nd.NdtorchError, "codes lie outside"),
        (torch.tensor([0.5]), pd.Series(["a"], dtype="category"), nd.LossyCastError, "cannot cast"),
        (torch.tensor([5]), pd.Series(["a"]), nd.UnsupportedTypeError, "like= cannot hold str"),
        (
            nd.Masked(torch.ones(1), torch.tensor([True])),
            pd.Series([1.0]),
            nd.UnsupportedTypeError,
            "has no missing values",
        ),
        (
            nd.Masked(torch.ones(2), torch.tensor([True])),
            pd.array([1.0]),
            nd.ShapeMismatchError,
            "data and mask differ",
        ),
        (torch.tensor([0.5]), pd.Series([1]), nd.LossyCastError, "cannot cast"),
    ],
)
def test_like_that_does_not_fit_is_an_error(source: Any, like: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        nd.to_numpy(source, like=like)


def test_codes_of_any_integer_dtype_are_categories() -> None:
    like = pd.Series(["a", "b"], dtype="category")
    for dtype in (torch.int64, torch.uint8, torch.int16):
        assert_equal(nd.to_numpy(torch.tensor([0, 1], dtype=dtype), like=like), like)


def test_like_names_the_column_that_does_not_fit() -> None:
    like = pd.DataFrame({"a": [1.0], "b": pd.Categorical(["x"])})
    with pytest.raises(nd.NdtorchError, match="codes lie outside") as caught:
        nd.to_numpy({"t": {"a": torch.ones(1), "b": torch.tensor([3], dtype=torch.int8)}}, like={"t": like})
    assert caught.value.path == "['t']['b']"


# ---- Arrow's dtypes ----

ARROW = {
    "int64": [1, 2**62 + 1, 3],
    "uint8": [1, 2, 255],
    "double": [1.5, -0.0, 2.0],
    "bool": [True, False, True],
    "timestamp[us]": [EPOCH, pd.Timestamp("2020"), EPOCH],
    "timestamp[ns, UTC]": [pd.Timestamp("2020", tz="UTC")] * 3,
    "duration[s]": [pd.Timedelta(1, "s")] * 3,
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ARROW)
def test_arrow_columns_keep_every_value_and_know_what_is_missing(name: str, missing: bool) -> None:
    values = [*ARROW[name][:2], None] if missing else ARROW[name]
    series = pd.Series(values, dtype=f"{name}[pyarrow]", name="s")
    if missing:
        with pytest.raises(nd.UnsupportedTypeError, match="1 of its 3 values is missing, the first at index 2"):
            nd.to_torch(series)
    result = nd.to_torch(series, masked="split")
    data, mask = result if missing else (result, torch.zeros(3, dtype=torch.bool))
    assert mask.tolist() == series.isna().tolist()
    for i, value in enumerate(values):
        if value is not None and data.dtype != torch.bool and not isinstance(value, int | float):
            unit = pd.Timedelta(1, name.partition("[")[2].partition("]")[0].partition(",")[0])
            value = (value - EPOCH.tz_localize(value.tz) if isinstance(value, pd.Timestamp) else value) // unit
        assert value is None or data[i].item() == value
    assert_equal(nd.to_numpy(result, like=series), series)


def test_arrow_text_is_refused() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length"):
        nd.to_torch(pd.Series(["a"], dtype="string[pyarrow]"))
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length"):
        nd.to_torch(pd.Series(["a"], dtype=pd.ArrowDtype(sys.modules["pyarrow"].string())))


def arrow_rows() -> dict[str, tuple[Any, list[Any]]]:
    pa = sys.modules["pyarrow"]
    day = pd.Timestamp("2020-02-29").date()
    return {
        "date": (pa.date32(), [day, None]),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "b"]),
        "list": (pa.list_(pa.int64()), [[1, 2], [3]]),
        "struct": (pa.struct([("a", pa.int64())]), [{"a": 1}, {"a": 2}]),
    }


def needs_arrow_row() -> None:
    if library_of(sys.modules["pyarrow"].array([1])) is None:
        pytest.skip("ndtorch has no row for pyarrow: its columns are read through pandas")


@pytest.mark.parametrize("name", arrow_rows())
def test_arrow_columns_of_any_kind_come_back(name: str) -> None:
    needs_arrow_row()
    kind, values = arrow_rows()[name]
    series = pd.Series(pd.array(values, dtype=pd.ArrowDtype(kind)), name="s")
    assert_equal(nd.to_numpy(nd.to_torch(series, masked="split"), like=series), series)


def test_arrow_columns_are_shared_both_ways() -> None:
    needs_arrow_row()
    series = pd.Series([1, 2], dtype="int64[pyarrow]")
    address = series.array.__arrow_array__().chunk(0).buffers()[1].address
    assert nd.to_torch(series, readonly="share").data_ptr() == address
    assert nd.to_torch(series).data_ptr() != address
    tensor = torch.tensor([3, 4])
    back = nd.to_numpy(tensor, like=series)
    assert back.array.__arrow_array__().chunk(0).buffers()[1].address == tensor.data_ptr()


def test_arrow_values_without_a_tensor_form_are_refused() -> None:
    series = pd.Series(pd.array([1], dtype=pd.ArrowDtype(sys.modules["pyarrow"].decimal128(5, 2))))
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch(series)
    assert "series.astype(dtype)" in caught.value.hint
    assert_same(nd.to_torch(series.astype("float64")), torch.tensor([1.0], dtype=torch.float64))


# ---- other libraries' extension arrays ----


class Metre(pd.api.extensions.ExtensionDtype):
    name = "metre"
    type = float


class Metres(pd.api.extensions.ExtensionArray):
    """The least that pandas wants of an extension array."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    dtype = Metre()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, item: Any) -> Any:
        return self.values[item]

    def isna(self) -> Any:
        return np.zeros(len(self), bool)

    def to_numpy(self, dtype: Any = None, copy: bool = False, na_value: Any = None) -> Any:
        return self.values.copy()


def test_extension_array_of_another_library_is_read() -> None:
    assert "Metres makes new memory" in nd.explain(Metres([1, 2])).reason
    assert_same(nd.to_torch(Metres([1, 2])), torch.tensor([1, 2]))
    with pytest.raises(nd.UnsupportedTypeError, match="as objects"):
        nd.to_torch(Metres(["a", None]))


# ---- differential ----


@pytest.mark.parametrize("seed", range(20))
def test_random_frames_agree_with_a_loop_over_their_values(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(0, 7))
    dtypes = ["int16", "uint64", "float32", "bool", "Int32", "UInt8", "Float64", "boolean", "category", "Sparse[int64]"]
    columns = {}
    for i in range(int(random.integers(1, 6))):
        dtype = str(random.choice(dtypes))
        values: list[Any] = random.integers(0, 2, rows).tolist()
        if dtype[0] in "IUF" or dtype in ("boolean", "category"):
            values = [None if random.random() < 0.3 else value for value in values]
        columns[i] = pd.Series(values, dtype=dtype)
    frame = pd.DataFrame(columns, index=random.permutation(rows))
    whole = frame.iloc[:: int(random.choice([1, 2, -1]))]
    for share in ("share", "copy"):
        result = nd.to_torch(whole, masked="split", readonly=share)
        for name, column in whole.items():
            data, mask = result[name] if isinstance(result[name], tuple) else (result[name], None)
            for place, value in enumerate(column.tolist()):
                is_missing = pd.isna(value)
                assert is_missing == (mask is not None and bool(mask[place]))
                if column.dtype == "category":
                    value = -1 if is_missing else column.cat.categories.get_loc(value)
                assert is_missing or data[place].item() == value
        assert_equal(nd.to_numpy(result, like=whole), whole)


# ---- results of functions ----


def test_wrap_gives_an_array_the_index_of_an_example_where_it_fits() -> None:
    series = pd.Series([1.0, 2.0], index=["p", "q"], name="s")
    wrap = library_of(series).wrap
    assert_equal(wrap(np.array([3, 4]), series), pd.Series([3, 4], ["p", "q"], name="s"))
    frame = pd.DataFrame({"a": [1], "b": [2]}, index=["p"])
    assert_equal(wrap(np.array([[3, 4]]), frame), pd.DataFrame({"a": [3], "b": [4]}, index=["p"]))
    assert_equal(wrap(np.array([3]), frame), pd.Series([3], index=["p"]))
    assert_equal(wrap(np.array([3]), pd.Index(["x"], name="i")), pd.Index([3], name="i"))
    for array, like in [
        (np.ones(3), series),
        (np.ones((2, 2)), series),
        (np.ones((1, 3)), frame),
        (np.ones(()), series),
    ]:
        assert wrap(array, like) is array
