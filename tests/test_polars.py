"""polars' series and frames: what they become, what they share, and the way back; without pyarrow."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import pytest
import torch
from columns import as_lists
from comparison import assert_independent, assert_same, assert_shares

import ndtorch as nd
from ndtorch.foreign import polars as room

pl = pytest.importorskip("polars", reason="polars is not installed")

NUMBERS = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Float16, pl.Float32, pl.Float64),
)
TIMES = {  # dtype, NumPy's for it, whether the memory is the same
    "Date": (pl.Date, "M8[D]", False),
    "Time": (pl.Time, "m8[ns]", True),
    **{f"Datetime {unit}": (pl.Datetime(unit), f"M8[{unit}]", True) for unit in ("ms", "us", "ns")},
    "Datetime tz": (pl.Datetime("us", "Europe/Zurich"), "M8[us]", True),
    **{f"Duration {unit}": (pl.Duration(unit), f"m8[{unit}]", True) for unit in ("ms", "us", "ns")},
}


def shared(source: Any, **options: Any) -> Any:
    return nd.to_torch(source, readonly="share", **options)


# ---- numbers ----


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_are_shared_when_asked_and_copied_by_default_since_polars_shares_its_memory(dtype):
    series = pl.Series("q", [1, 2, 3, 4], dtype=dtype)[1:]
    view = shared(series)
    assert_same(nd.to_numpy(view), series.to_numpy())
    assert_shares(view, series.to_numpy(allow_copy=False))
    copy = nd.to_torch(series)
    assert_independent(copy, series.to_numpy(allow_copy=False))
    plan = nd.explain(series)
    assert (plan.shares, plan.reason, plan.nbytes_copied) == (False, "it is read-only", copy.nbytes)
    array = nd.to_numpy(series)
    assert not array.flags.writeable
    assert_same(array, series.to_numpy())
    assert nd.to_numpy(copy, like=series).equals(series, check_dtypes=True, check_names=True)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_missing_values_are_an_error_unless_asked_for(dtype):
    series = pl.Series([1, None, 3], dtype=dtype)
    with pytest.raises(nd.UnsupportedTypeError, match="1 of its 3 values is missing, the first at index 1"):
        nd.to_torch(series)
    split = shared(series, masked="split")
    assert as_lists(split) == series.to_list()
    assert nd.explain(series, masked="split", readonly="share").leaves[".data"].shares
    assert nd.to_numpy(split, like=series).equals(series, check_dtypes=True)
    filled = nd.to_torch(series, masked="nan")
    assert filled.isnan().tolist() == [False, True, False]


def test_memory_lives_as_long_as_the_tensor():
    view = shared(pl.Series(np.arange(100_000) * 3)[5:])
    noise = [pl.Series(np.zeros(100_000, np.int64)) + i for i in range(20)]
    assert view[-1].item() == 99_999 * 3
    del noise


@pytest.mark.parametrize("start", range(9))
def test_booleans_are_unpacked_from_any_bit_on(start):
    series = pl.Series([bool(int(bit)) for bit in f"{0xC0FFEE:024b}"])[start : start + 11]
    assert_same(nd.to_torch(series), torch.tensor(series.to_list()))
    assert nd.explain(series).reason == "its booleans are packed bits"
    missing = pl.Series([True, None, False])
    assert as_lists(nd.to_torch(missing, masked="split")) == [True, None, False]


def test_trap_polars_own_conversion_sends_integers_with_nulls_through_float64():
    series = pl.Series([2**60 + 1, None])
    if hasattr(series, "to_torch"):
        assert int(series.to_torch()[0]) == 2**60
    assert nd.to_torch(series, masked="split").data[0].item() == 2**60 + 1


# ---- times ----


@pytest.mark.parametrize("name", TIMES)
def test_times_are_int64_in_their_own_unit(name):
    dtype, numpy, is_shared = TIMES[name]
    series = pl.Series("t", [0, 5, 7], dtype=pl.Int32 if name == "Date" else pl.Int64).cast(dtype)
    assert_same(nd.to_torch(series), torch.tensor([0, 5, 7]))
    assert_same(nd.to_numpy(series), np.array([0, 5, 7]).view(numpy))
    assert nd.explain(series, readonly="share").shares == is_shared
    holes = pl.concat([series, pl.Series("t", [None], dtype=dtype)])
    for source in (series, holes, holes.rechunk()):
        back = nd.to_numpy(nd.to_torch(source, masked="split"), like=source)
        assert back.equals(source, check_dtypes=True, check_names=True)


def test_dates_before_1970_are_negative_and_a_missing_one_is_nat_when_asked():
    series = pl.Series([date(1969, 12, 31), None])
    assert_same(nd.to_torch(series, masked="nan"), torch.tensor([-1, -(2**63)]))


# ---- codes ----


@pytest.mark.parametrize(
    "dtype",
    [pl.Categorical, pl.Categorical(pl.Categories("test", physical=pl.UInt8)), pl.Enum(["c", "b", "a"])],
    ids=["Categorical", "8-bit Categorical", "Enum"],
)
def test_codes_are_those_of_to_physical_in_every_chunk_and_however_deep(dtype):
    pl.Series(["z", "y"]).cast(pl.Categorical)  # codes do not start at 0 in every series
    first, second = pl.Series(["a", None, "b"]).cast(dtype), pl.Series(["c", "a"]).cast(dtype)
    for series in (first, second, first.append(second)):
        result = nd.to_torch(series, masked="split")
        assert as_lists(result) == series.to_physical().to_list()
        assert nd.to_numpy(result, like=series).equals(series, check_dtypes=True)
    assert nd.explain(second).notes[0] == "these are the codes of series.to_physical()"
    lists = pl.Series([["a"], ["c", "b"]], dtype=pl.List(dtype))
    assert as_lists(nd.to_torch(lists)) == lists.to_physical().to_list()
    struct = pl.Series([{"u": "c", "v": date(2020, 1, 1)}], dtype=pl.Struct({"u": dtype, "v": pl.Date}))
    result = nd.to_torch(struct)
    assert as_lists(result) == [{"u": struct.struct["u"].to_physical()[0], "v": 18262}]
    for source in (lists, struct):
        assert nd.to_numpy(nd.to_torch(source), like=source).equals(source, check_dtypes=True)


# ---- nested ----


def test_lists_share_one_content():
    series = pl.Series([[1, 2], [], [3, 4, 5]])
    rows = shared(series)
    assert [row.tolist() for row in rows] == series.to_list()
    assert rows[2].data_ptr() == rows[0].data_ptr() + 16
    deep = pl.Series([[[1], []], [], [[2, 3]]])
    assert as_lists(nd.to_torch(deep)) == deep.to_list()


def test_array_is_one_more_dimension():
    values = np.arange(12, dtype=np.int16).reshape(2, 3, 2)
    series = pl.Series(values)
    assert series.dtype == pl.Array(pl.Int16, (3, 2))
    assert_same(nd.to_torch(series), torch.from_numpy(values))
    holes = pl.Series([[1, 2], None, [None, 4]], dtype=pl.Array(pl.Int8, 2))
    assert as_lists(nd.to_torch(holes, masked="split")) == [[1, 2], [None, None], [None, 4]]
    deep = pl.Series([[[1, 2], None], [[3, None], [4, 5]], None], dtype=pl.Array(pl.Int8, (2, 2)))
    lists = pl.Series([[[1], None], [[3, None], []], None], dtype=pl.Array(pl.List(pl.Int8), 2))
    for source in (series, holes, deep, lists):
        assert nd.to_numpy(nd.to_torch(source, masked="split"), like=source).equals(source, check_dtypes=True)


def test_struct_is_a_table():
    series = pl.Series("s", [{"x": 1, "y": [1.5]}, {"x": None, "y": []}])
    result = nd.to_torch(series, masked="split")
    assert as_lists(result) == series.to_list()
    holes = pl.Series("s", [{"x": 1}, None])
    split = nd.to_torch(holes, masked="split")
    assert split.mask.tolist() == [False, True]
    assert nd.to_numpy(split, like=holes).equals(holes)


def test_map_is_a_list_of_tables():
    if not hasattr(pl, "Map"):
        pytest.skip("this polars has no Map")
    series = pl.Series([{1: 2}, None, {}], dtype=pl.Map(pl.Int8, pl.Int16))
    result = nd.to_torch(series, masked="split")
    assert as_lists(result) == [[{"key": 1, "value": 2}], None, []]
    assert nd.to_numpy(result, like=series).to_list() == series.to_list()


# ---- chunks and frames ----


def test_chunks_are_joined_in_one_pass():
    series = pl.Series([1, 2]).append(pl.Series([3, None]))
    plan = nd.explain(series, masked="split")
    assert plan.leaves[".data"].reason == "it lies in 2 chunks"
    assert as_lists(nd.to_torch(series, masked="split")) == [1, 2, 3, None]
    assert_same(nd.to_torch(series[:3]), torch.tensor([1, 2, 3]))


def test_frame_is_a_dict_and_names_the_column_of_an_error():
    frame = pl.DataFrame({"a": [1, 2], "b": [1.5, None], "c": [True, False]})
    result = nd.to_torch({"frame": frame}, masked="split")["frame"]
    assert as_lists(result) == frame.to_dicts()
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch([frame])
    assert caught.value.path == "[0]['b']"
    assert nd.to_numpy(result, like=frame).equals(frame)
    longer = nd.to_numpy(
        {"a": torch.ones(3, dtype=torch.int64), "b": torch.ones(3), "c": torch.ones(3)},
        like=frame.drop("c").with_columns(c=1.5),
    )
    assert (longer.shape, longer.columns) == ((3, 3), ["a", "b", "c"])
    assert nd.to_torch(pl.DataFrame()) == {}
    assert_same(nd.to_torch(frame[["a"]], dtype="float32"), {"a": torch.tensor([1.0, 2.0])})
    with pytest.raises(nd.ShapeMismatchError, match="other columns"):
        nd.to_numpy({"z": torch.ones(1)}, like=frame)


def test_empty_series():
    for dtype in (pl.Int8, pl.Boolean, pl.Date, pl.Categorical, pl.Array(pl.Int8, 2)):
        series = pl.Series([], dtype=dtype)
        assert len(nd.to_torch(series)) == 0
        assert nd.to_numpy(nd.to_torch(series), like=series).equals(series, check_dtypes=True)
    assert nd.to_torch(pl.Series([], dtype=pl.List(pl.Int8))) == []
    assert as_lists(nd.to_torch(pl.Series([None], dtype=pl.Float32), masked="split")) == [None]


# ---- refused ----


REFUSED = {
    "String": (pl.Series(["a"]), "cast(polars.Categorical)"),
    "Binary": (pl.Series([b"a"]), "to_list()"),
    "Decimal": (pl.Series([1], dtype=pl.Decimal(5, 1)), "cast(polars.Float64)"),
    "Object": (pl.Series([object()]), "to_list()"),
    "Null": (pl.Series([None]), "cast(polars.Float64)"),
    "Int128": (pl.Series([1], dtype=pl.Int128), "cast(polars.Int64)"),
    "lists of strings": (pl.Series([["a"]]), "cast(polars.Categorical)"),
    "LazyFrame": (pl.LazyFrame({"a": [1]}), "source.collect()"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_with_the_call_that_helps(name):
    source, hint = REFUSED[name]
    for convert in (nd.to_torch, nd.to_numpy):
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            convert(source)
        assert hint in caught.value.hint


def test_hints_work():
    assert nd.to_torch(REFUSED["String"][0].cast(pl.Categorical)).shape == (1,)
    assert nd.to_torch(REFUSED["Decimal"][0].cast(pl.Float64)).tolist() == [1.0]
    assert nd.to_torch(REFUSED["Int128"][0].cast(pl.Int64)).tolist() == [1]
    assert nd.to_torch(REFUSED["LazyFrame"][0].collect())["a"].tolist() == [1]


def test_pyarrow_is_not_needed():
    code = """
import sys
sys.modules["pyarrow"] = None  # importing it fails
import polars as pl, ndtorch as nd
frame = pl.DataFrame({"x": [1, None], "y": [[1.5], []], "z": ["a", "b"]}).with_columns(pl.col("z").cast(pl.Categorical))
result = nd.to_torch(frame, masked="split")
assert nd.to_numpy(result, like=frame).equals(frame)
print(result["x"].data[0].item())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


# ---- against polars' own lists ----


def random_dtype(rng: random.Random, depth: int = 2) -> Any:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice([*NUMBERS, pl.Boolean, pl.Boolean, pl.Date, pl.Duration("ms"), pl.Datetime("us"), pl.Time])
    inside = random_dtype(rng, depth - 1)
    flat = random_dtype(rng, 0)
    return rng.choice(
        [
            pl.List(inside),
            pl.Array(flat, rng.randint(1, 3)),
            pl.Struct({"a": inside, "b": random_dtype(rng, depth - 1)}),
        ]
    )


def random_value(rng: random.Random, dtype: Any, nulls: float) -> Any:
    if rng.random() < nulls:
        return None
    if isinstance(dtype, pl.Struct):
        return {part.name: random_value(rng, part.dtype, nulls) for part in dtype.fields}
    if isinstance(dtype, pl.List | pl.Array):
        length = dtype.size if isinstance(dtype, pl.Array) else rng.randint(0, 3)
        return [random_value(rng, dtype.inner, nulls) for _ in range(length)]
    number = rng.randint(0, 100)
    if dtype.is_temporal():
        made = {pl.Date: date(1970, 1, 1), pl.Duration: timedelta(0), pl.Datetime: datetime(1970, 1, 1)}
        start = made.get(dtype.base_type())
        return time(0, 0, 0, number) if start is None else start + timedelta(number)
    return number / 4 if dtype.is_float() else bool(number % 2) if dtype == pl.Boolean else number


def in_numbers(value: Any, dtype: Any) -> Any:
    if isinstance(dtype, pl.Array):
        return [in_numbers(row, dtype.inner) for row in ([None] * dtype.size if value is None else value)]
    if value is None:
        return None
    if isinstance(dtype, pl.Struct):
        return {part.name: in_numbers(value[part.name], part.dtype) for part in dtype.fields}
    if isinstance(dtype, pl.List):
        return [in_numbers(row, dtype.inner) for row in value]
    if isinstance(value, timedelta):
        return value // timedelta(milliseconds=1)
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    if isinstance(value, date):
        return value.toordinal() - 719163
    return value.microsecond * 1000 if isinstance(value, time) else value


@pytest.mark.parametrize("seed", range(150))
def test_any_series_holds_what_polars_says_and_finds_the_way_back(seed):
    rng = random.Random(seed)
    dtype = random_dtype(rng)
    nulls = rng.choice([0, 0.2, 0.6])
    series = pl.Series("s", [random_value(rng, dtype, nulls) for _ in range(rng.randint(0, 20))], dtype=dtype)
    start = rng.randint(0, len(series))
    series = series[start : start + rng.randint(0, len(series) - start)]
    if rng.random() < 0.4:
        cut = rng.randint(0, len(series))
        series = pl.concat([series[:cut], series[cut:]], rechunk=False)
    before = series.to_list()
    expected = [in_numbers(value, dtype) for value in before]
    for readonly in ("copy", "share"):
        result = nd.to_torch(series, masked="split", readonly=readonly)
        assert as_lists(result) == expected, dtype
    assert len(as_lists(nd.to_numpy(series))) == len(expected)
    assert nd.explain(series, masked="split").error is None
    back = nd.to_numpy(result, like=series)
    assert (back.dtype, back.name) == (dtype, "s")
    assert [in_numbers(value, dtype) for value in back.to_list()] == expected, dtype
    assert series.to_list() == before


def test_wrapped_array_is_a_series_of_the_same_name():
    series = pl.Series("q", [1, 2])
    assert room.wrap(np.array([1.5]), series).equals(pl.Series("q", [1.5]), check_names=True)
    assert isinstance(room.wrap(np.zeros((2, 2)), series), np.ndarray)


@pytest.mark.parametrize(
    ("source", "like", "message"),
    [
        (torch.zeros(2, 3), pl.Series([1.5]), "1 dimension"),
        (torch.zeros(2, 3), pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2)), r"\(n, 2\)"),
        (torch.zeros(2), pl.Series(["a"]), "cannot be of dtype String"),
    ],
)
def test_way_back_names_what_does_not_fit(source, like, message):
    with pytest.raises(nd.NdtorchError, match=message):
        nd.to_numpy(source, like=like)
