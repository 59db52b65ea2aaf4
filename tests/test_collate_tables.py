"""`collate` of tables: columns by name, whether the table is the batch or a sample of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd

pandas, polars, pyarrow, xarray = (
    pytest.importorskip(name, reason=f"{name} is not installed") for name in ("pandas", "polars", "pyarrow", "xarray")
)


def tables() -> dict[str, Any]:
    columns = {"a": np.array([1, 2, 3], np.int32), "b": np.array([0.5, 1.5, 2.5])}
    records = np.zeros(3, [("a", "<i4"), ("b", "<f8")])
    records["a"], records["b"] = columns["a"], columns["b"]
    return {
        "pandas": pandas.DataFrame(columns),
        "polars": polars.DataFrame(columns),
        "pyarrow": pyarrow.table(columns),
        "record batch": pyarrow.RecordBatch.from_arrays(list(map(pyarrow.array, columns.values())), list(columns)),
        "xarray": xarray.Dataset({name: ("row", column) for name, column in columns.items()}, {"row": [7, 8, 9]}),
        "records": records,
    }


TABLE = {"a": torch.tensor([1, 2, 3], dtype=torch.int32), "b": torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)}
"""What each of them is as a batch."""


@pytest.mark.parametrize("kind", tables())
def test_a_table_is_the_batch_of_its_columns_and_never_of_their_names(kind: str) -> None:
    assert_same(nd.collate(tables()[kind]), TABLE)


@pytest.mark.parametrize("kind", tables())
def test_samples_that_are_tables_are_stacked_column_by_column(kind: str) -> None:
    table = tables()[kind]
    stacked = {name: torch.stack([column, column]) for name, column in TABLE.items()}
    assert_same(nd.collate([table, table]), stacked)
    assert_same(nd.collate([{"x": table, "y": 1}, {"x": table, "y": 2}]), {"x": stacked, "y": torch.tensor([1, 2])})


@pytest.mark.parametrize("kind", tables())
def test_a_loader_stacks_the_tables_of_a_dataset_and_refuses_one_that_is_no_list_of_samples(kind: str) -> None:
    table = tables()[kind]

    class OneByOne:
        def __len__(self) -> int:
            return 2  # as many as columns: their names are no samples

        def __getitem__(self, number: int) -> Any:
            return table

    class Together(OneByOne):
        def __getitems__(self, numbers: list[int]) -> Any:
            return table

    [batch] = nd.Loader(OneByOne(), 2, threads=0)
    assert_same(batch, {name: torch.stack([column, column]) for name, column in TABLE.items()})
    with pytest.raises(nd.UnsupportedTypeError, match=r"^Loader: .* gave a .* Hint: collate_fn=ndtorch\.collate takes"):
        list(nd.Loader(Together(), 2, threads=0))
    [batch] = nd.Loader(Together(), 2, threads=0, collate_fn=nd.collate)
    assert_same(batch, TABLE)


def test_a_record_is_the_dict_of_its_fields() -> None:
    records = tables()["records"]
    assert_same(nd.collate(list(records)), TABLE)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            lambda: pandas.DataFrame({"a": pandas.array([1, None], dtype="Int64")}),
            r"Hint: ndtorch\.to_torch\(batch, masked=",
        ),
        (
            lambda: pandas.DataFrame({"t": ["x", "y"]}),
            r"Hint: frame\['t'\]\.to_list\(\) keeps text, frame\['t'\]\.astype\('category'\)",
        ),
        (lambda: pandas.DataFrame(np.zeros((2, 2)), columns=["a", "a"]), r"several of its columns have the name 'a'"),
        (lambda: polars.LazyFrame({"a": [1]}), r"a lazy frame has no values yet\. Hint: source\.collect\(\)"),
    ],
    ids=["missing", "text", "names", "lazy"],
)
def test_what_a_batch_of_columns_cannot_hold_is_an_error_with_the_call_that_helps(table: Any, text: str) -> None:
    for batch in (table(), [table(), table()]):
        with pytest.raises(nd.UnsupportedTypeError, match=f"^collate: .*{text}"):
            nd.collate(batch)


def test_columns_of_other_lengths_are_no_batch() -> None:
    dataset = xarray.Dataset({"a": ("row", [1, 2, 3]), "b": ("other", [1, 2]), "c": 5})
    with pytest.raises(
        nd.ShapeMismatchError, match=r"'a' and 'b' are not of one length.*Hint: ndtorch\.to_torch\(batch\)"
    ):
        nd.collate(dataset)
    with pytest.raises(nd.ShapeMismatchError, match="'a' and 'c' are not of one length"):
        nd.collate(dataset[["a", "c"]])
    assert_same(nd.collate([dataset])["b"], torch.tensor([[1, 2]]))


def test_a_table_among_other_samples_is_an_error_that_says_which() -> None:
    frame = tables()["pandas"]
    with pytest.raises(nd.ShapeMismatchError, match="sample 1 has another kind than sample 0") as caught:
        nd.collate([frame, np.zeros(3)])
    assert caught.value.index == 1
