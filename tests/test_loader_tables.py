"""Objects of other libraries as columns: a table gives a dict, its batches are what `to_torch` makes of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


def batches(data: Any, batch_size: int = 2, **options: Any) -> list[Any]:
    return list(nd.Loader(data, batch_size, threads=0, shuffle=True, **options))


def orders(n: int, batch_size: int = 2) -> list[np.ndarray]:
    return [batch.numpy() for batch in nd.Loader(torch.arange(n), batch_size, threads=0, shuffle=True)]


X, Y = np.array([1.5, 2.5, 3.5, 4.5, 5.5]), np.arange(5)


def frame() -> Any:
    pd = library("pandas")
    return pd.DataFrame(
        {
            "x": X,
            7: Y,
            "class": pd.Categorical(list("abcab")),
            "when": pd.date_range("2024", periods=5),
            "whole": pd.array(Y, dtype="Int64"),
        },
        index=[9, 8, 7, 6, 5],
    )


TABLES: dict[str, Callable[[], Any]] = {
    "frame of pandas": frame,
    "series of pandas": lambda: frame()["x"],
    "index of pandas": lambda: frame().index,
    "frame of polars": lambda: library("polars").DataFrame({"x": X, "y": Y}),
    "series of polars": lambda: library("polars").Series(Y),
    "table of Arrow": lambda: library("pyarrow").table({"x": X, "y": Y}),
    "chunks of Arrow": lambda: library("pyarrow").chunked_array([X[:2], X[2:]]),
    "data set of xarray": lambda: library("xarray").Dataset({"x": ("n", X), "y": (("n", "k"), np.ones((5, 2)))}),
    "array of xarray": lambda: library("xarray").DataArray(np.arange(10.0).reshape(5, 2)),
    "array of JAX": lambda: library("jax.numpy").asarray(np.arange(10, dtype=np.float32).reshape(5, 2)),
    "records of awkward": lambda: library("awkward").Array([{"x": 1.5 * i, "y": i} for i in range(5)]),
    "bytes": lambda: bytearray(b"abcde"),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("cast", [None, "float16"])
def test_table_gives_the_rows_that_to_torch_gives(kind: str, cast: Any) -> None:
    source = TABLES[kind]()
    whole = nd.to_torch(source, float_dtype=cast)
    for batch, rows in zip(batches((source, Y), float_dtype=cast), orders(5), strict=True):
        expected = {k: v[rows] for k, v in whole.items()} if isinstance(whole, dict) else whole[rows]
        assert_same(batch, (expected, torch.from_numpy(Y[rows])))


RAGGED: dict[str, Callable[[], Any]] = {
    "awkward": lambda: library("awkward").Array([[1, 2], [], [3], [4, 5, 6], [7]]),
    "awkward in another order": lambda: library("awkward").Array([[7], [4, 5, 6], [3], [], [1, 2]])[::-1],
    "part of awkward": lambda: library("awkward").Array([[9, 9], [1, 2], [], [3], [4, 5, 6], [7], [8]])[1:6],
    "Arrow": lambda: library("pyarrow").array([[1, 2], [], [3], [4, 5, 6], [7]]),
    "polars": lambda: library("polars").Series([[1, 2], [], [3], [4, 5, 6], [7]]),
    "nested tensor": lambda: torch.nested.nested_tensor(
        [torch.tensor(each, dtype=torch.int64) for each in LISTS], layout=torch.jagged
    ),
}
LISTS = [[1, 2], [], [3], [4, 5, 6], [7]]


@pytest.mark.parametrize("kind", RAGGED)
def test_ragged_rows_of_a_library_are_lists_or_padded(kind: str) -> None:
    source = RAGGED[kind]()
    for batch, padded, rows in zip(
        batches({"r": source}), batches({"r": source}, pad_value=-1), orders(5), strict=True
    ):
        tensors = [torch.tensor(LISTS[row], dtype=torch.int64) for row in rows]
        assert_same(batch, {"r": tensors})
        lengths = torch.tensor([len(each) for each in tensors])
        assert_same(padded, {"r": (torch.nn.utils.rnn.pad_sequence(tensors, True, -1), lengths)})


def test_float_dtype_casts_ragged_rows() -> None:
    source = library("awkward").Array([[1.5, 2.5], [], [3.5]])
    (batch,) = list(nd.Loader(source, 3, float_dtype="bfloat16"))
    assert_same(batch, [torch.tensor(each, dtype=torch.bfloat16) for each in ([1.5, 2.5], [], [3.5])])


def test_column_of_ragged_rows_stands_beside_others() -> None:
    polars = library("polars")
    source = polars.DataFrame({"x": [1, 2, 3], "l": [[1.0], [2.0, 3.0], []]})
    (batch,) = list(nd.Loader(source, 3, pad_value=0))
    padded = torch.tensor([[1, 0], [2, 3], [0, 0]], dtype=torch.float64)
    assert_same(batch, {"x": torch.tensor([1, 2, 3]), "l": (padded, torch.tensor([1, 2, 0]))})


def test_list_of_frames_and_series_is_a_list_of_samples() -> None:
    source = frame()
    (batch,) = list(nd.Loader([source, source], 2))
    assert_same(batch["x"], torch.from_numpy(np.stack([X, X])))
    assert_same(list(nd.Loader([source["x"], source["x"][:2]], 2)), [[torch.from_numpy(X), torch.from_numpy(X[:2])]])


def test_missing_values_are_refused_where_they_are() -> None:
    pd = library("pandas")
    source = {"t": pd.DataFrame({"ok": [1, 2], "n": pd.array([1, None], dtype="Int64")})}
    with pytest.raises(nd.UnsupportedTypeError, match=r"Loader: .*missing.*to_torch\(data, masked='nan'\)") as caught:
        nd.Loader(source)
    assert caught.value.path == "['t']['n']"
    (batch,) = nd.Loader(nd.to_torch(source, masked="nan"), 2)
    assert_same(batch["t"]["ok"], torch.tensor([1, 2]))


def test_text_of_a_table_is_refused_where_it_is() -> None:
    source = library("pandas").DataFrame({"x": [1, 2], "s": ["a", "b"]})
    with pytest.raises(nd.UnsupportedTypeError, match=r"Loader: .*frame\['s'\]") as caught:
        nd.Loader(source)
    assert caught.value.path == "['s']"


@pytest.mark.parametrize("layout", ["csr", "coo", "dok", "bsr"])
def test_sparse_matrix_is_refused(layout: str) -> None:
    sparse = library("scipy.sparse")
    matrix = getattr(sparse, f"{layout}_array")(np.eye(4))
    with pytest.raises(nd.UnsupportedTypeError, match=r"Loader: .*it is sparse.*toarray\(\)") as caught:
        nd.Loader({"m": matrix})
    assert caught.value.path == "['m']"


def test_columns_of_several_lengths_name_both() -> None:
    source = library("xarray").Dataset({"x": ("n", X), "y": ("m", Y[:3])})
    with pytest.raises(nd.ShapeMismatchError, match=r"data\['d'\]\['y'\] has 3 rows and data\['d'\]\['x'\] has 5"):
        nd.Loader({"d": source})


MISSING = {
    "Int64": lambda pd: pd.array([31, None], dtype="Int64"),
    "period": lambda pd: pd.PeriodIndex(["2020", None], freq="D").array,
    "categories": lambda pd: pd.Categorical(["a", None]),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("holder", ["frame", "series", "index", "array"])
def test_hint_at_missing_values_of_pandas_is_a_call_that_works(name: str, holder: str) -> None:
    pd = library("pandas")
    array = MISSING[name](pd)
    made = {"frame": lambda: pd.DataFrame({"age": array}), "series": lambda: pd.Series(array), "array": lambda: array}
    source = made.get(holder, lambda: pd.Index(array))()
    with pytest.raises(nd.UnsupportedTypeError, match="1 of its 2 values is missing") as caught:
        nd.Loader(source)
    assert caught.value.hint.startswith("to_torch(data, masked='nan') makes missing values NaN, ")
    call = caught.value.hint.split(", ")[-1].split(" ")[0]
    assert call.startswith("frame['age']." if holder == "frame" else f"{holder}.")
    value = 7 if name == "Int64" else pd.Period("2021", freq="D")
    (batch,) = nd.Loader(eval(call, {holder: source, "value": value}), 2)
    expected = {"Int64": [31, 7], "period": [18262, 18628], "categories": [0, -1]}[name]
    assert batch.tolist() == expected


def test_hints_at_missing_values_are_those_of_their_library() -> None:
    for name, make in (("polars", "Series"), ("pyarrow", "array")):
        source = getattr(library(name), make)([31, None])
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            nd.Loader(source)
        call = caught.value.hint.split(", ")[-1].removesuffix(" fills them")
        (batch,) = nd.Loader(eval(call, {"series": source, "source": source, "value": 7}), 2)
        assert batch.tolist() == [31, 7]


@pytest.mark.parametrize("texts", [["n1", "n22"], ["n1", None]])
@pytest.mark.parametrize("holder", ["frame", "series", "index", "array"])
def test_hint_at_text_of_pandas_is_first_of_all_the_call_that_keeps_it(texts: list[str], holder: str) -> None:
    pd = library("pandas")
    column = pd.Series(texts, dtype="string")
    source = {"frame": pd.DataFrame({"name": column}), "series": column, "index": pd.Index(column)}.get(holder)
    source = column.array if source is None else source
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length") as caught:
        nd.Loader(source)
    call = caught.value.hint.split(" keeps text")[0]
    (batch,) = nd.Loader((eval(call, {holder: source}), np.arange(2)), 2)
    assert batch[0] == [text or "" for text in texts]


def test_hint_at_text_of_an_index_of_levels_gives_a_value_for_each_row() -> None:
    index = library("pandas").MultiIndex.from_product([["a", "b"], [1, 2]])
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length") as caught:
        nd.Loader(index)
    assert eval(caught.value.hint.split(" keeps text")[0], {"index": index}) == ["a", "a", "b", "b"]


@pytest.mark.parametrize(("name", "make"), [("polars", "Series"), ("pyarrow", "array")])
def test_hint_at_text_of_columns_is_first_of_all_the_call_that_keeps_it(name: str, make: str) -> None:
    source = getattr(library(name), make)(["a", "bb"])
    with pytest.raises(nd.UnsupportedTypeError, match="text of varying length") as caught:
        nd.Loader(source)
    call = caught.value.hint.split(" keeps text")[0]
    assert list(nd.Loader(eval(call, {"series": source, "source": source}), 2)) == [["a", "bb"]]
