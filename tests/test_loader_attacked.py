"""Data, options and neighbours that a loader was not made for: refused in words, never a wrong row."""

from __future__ import annotations

import copy
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import ndtorch as nd

ROWS = np.arange(6.0)


# --- sources that become something else


@pytest.mark.parametrize(
    "other",
    [
        torch.arange(20) + 0.5,
        torch.arange(20, dtype=torch.uint8),
        torch.ones(20, 2, dtype=torch.int64),
        torch.arange(3),
        torch.arange(40),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_a_tensor_that_has_become_another_one_between_epochs_is_refused(other):
    tensor = torch.arange(20)
    loader = nd.Loader(tensor, 4)
    list(loader)
    tensor.data = other
    with pytest.raises(nd.NdtorchError, match=r"has become another one .* expected i64\[20\]"):
        next(iter(loader))


def test_a_tensor_that_has_moved_between_epochs_is_found_again():
    tensor = torch.arange(20)
    loader = nd.Loader(tensor, 20)
    list(loader)
    tensor.data = torch.arange(20) + 1
    assert next(iter(loader)).tolist() == list(range(1, 21))


@pytest.mark.parametrize("shape", [(100, 10), (500, 20), (1000, 4)], ids=str)
def test_a_dataset_that_is_resized_names_itself_and_the_row(tmp_path, shape):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        numbers = np.arange(10_000).reshape(1000, 10)
        dataset = file.create_dataset("x", data=numbers, chunks=(7, 10), maxshape=(None, None))
        loader = nd.Loader(dataset, 1000)
        dataset.resize(shape)
        with pytest.raises(
            nd.FormatError, match="dataset 'x' has another shape than when the loader was made"
        ) as raised:
            list(loader)
    assert any(note.startswith("at row ") for note in raised.value.__notes__)


# --- options that are no options


@pytest.mark.parametrize("name", ["batch_size", "drop_last", "rank", "world_size", "seed", "epoch"])
@pytest.mark.parametrize("value", [2.5, -3, 5])
def test_what_a_loader_was_made_with_cannot_be_set_and_the_hint_is_a_call_that_does_it(name, value):
    loader = nd.Loader(ROWS, 2)
    with pytest.raises(
        AttributeError, match=f"^Loader: {name} cannot be set once the loader is made. Hint: "
    ) as raised:
        setattr(loader, name, value)
    assert [batch.tolist() for batch in loader] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    call = str(raised.value).partition("Hint: ")[2].partition(" makes ")[0]
    made = eval(call, {"ndtorch": nd, "loader": loader, "data": np.arange(64)})
    assert getattr(made or loader, name) != getattr(nd.Loader(ROWS, 2), name)


def test_other_attributes_of_a_loader_are_anyones():
    loader = nd.Loader(ROWS, 2)
    loader.name = "train"
    assert copy.copy(loader).name == "train"
    assert copy.copy(loader).batch_size == 2


def test_masked_weights_are_refused_and_not_taken_for_what_the_mask_hides():
    weights = np.ma.masked_array(np.ones(6), [0, 0, 0, 0, 0, 1])
    with pytest.raises(nd.InvalidOptionError, match="weights= has masked values"):
        nd.Loader(ROWS, weights=weights)
    assert len(nd.Loader(ROWS, weights=np.ma.masked_array(np.ones(6)))) == 6


def test_masked_row_numbers_are_refused():
    with pytest.raises(nd.InvalidOptionError, match="sampler=MaskedArray has masked values"):
        nd.Loader(ROWS, sampler=np.ma.masked_array([1, 2], [0, 1]))
    assert next(iter(nd.Loader(ROWS, 2, sampler=np.ma.masked_array([1, 2])))).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "numbers",
    [torch.zeros(2, dtype=torch.int64, device="meta"), torch.ones(2, dtype=torch.int64).to_sparse()],
    ids=["meta", "sparse"],
)
def test_row_numbers_that_cannot_be_read_are_refused(numbers):
    with pytest.raises(nd.InvalidOptionError, match="whose numbers cannot be read"):
        nd.Loader(ROWS, sampler=numbers)


@pytest.mark.parametrize("option", [{"window": False}, {"num_samples": False}])
def test_false_is_no_way_to_leave_an_option_out(option):
    with pytest.raises(nd.InvalidOptionError, match=next(iter(option))):
        nd.Loader(ROWS, **option)


@pytest.mark.parametrize("options", [{"image": {"x": True}}, {"pad_value": {"x": 0}}], ids=str)
def test_a_leaf_that_is_named_where_there_is_but_one_is_explained(options):
    data: Any = np.zeros((3, 4, 4), np.uint8) if "image" in options else [[1], [2, 3]]
    with pytest.raises(nd.InvalidOptionError, match="the data is one leaf"):
        nd.Loader(data, **options)


def test_a_float_dtype_that_is_none_gets_a_hint_that_a_loader_has():
    with pytest.raises(nd.InvalidOptionError, match="float_dtype=int64 is not a floating dtype") as raised:
        nd.Loader(ROWS, float_dtype="int64")
    assert "dtype= casts" not in str(raised.value)


@pytest.mark.parametrize("numbers", [range(10**30), range(0, 1 << 62, 2), range(1 << 63, (1 << 63) + 2)], ids=str)
def test_a_range_that_memory_cannot_hold_is_refused(numbers):
    with pytest.raises(nd.UnsupportedTypeError, match="more or larger numbers than memory can hold"):
        nd.Loader(numbers)


# --- subsets


@pytest.mark.parametrize("indices", [[1.7], [True, False], ["1"], [[1], [2]], [1 << 70]], ids=repr)
def test_a_subset_of_what_is_no_index_is_refused(indices):
    with pytest.raises(nd.ShapeMismatchError, match="the Subset has the indices"):
        nd.Loader(Subset(TensorDataset(torch.arange(9)), indices))


@pytest.mark.parametrize("indices", [[3, -1], (3, -1), np.array([3, -1], np.int8), torch.tensor([3, -1])], ids=repr)
def test_a_subset_of_indices_of_any_kind_gives_their_rows(indices):
    (rows,) = next(iter(nd.Loader(Subset(TensorDataset(torch.arange(9)), indices), 2)))
    assert rows.tolist() == [3, 8]
    assert list(nd.Loader(Subset(TensorDataset(torch.arange(9)), []), 2)) == []


def test_an_index_of_a_subset_is_not_wrapped_around():
    indices = np.array([1, (1 << 64) - 1], np.uint64)
    with pytest.raises(nd.ShapeMismatchError, match="the Subset has the index 18446744073709551615 at 1"):
        nd.Loader(Subset(TensorDataset(torch.arange(9)), indices))


# --- the default device of others


@pytest.mark.parametrize("threads", [0, 2])
def test_lengths_of_padded_rows_are_on_the_cpu_whatever_the_default_device(threads):
    with torch.device("meta"):
        batches = list(nd.Loader([np.ones(2), np.ones(3)] * 8, 2, pad_value=0, threads=threads))
        assert list(nd.Loader([], 2)) == []
        assert next(iter(nd.Loader([{"y": 1}, {"y": 2}], 2, threads=threads)))["y"].tolist() == [1, 2]
        assert nd.stack([np.ones(2), np.ones(3)], pad_value=0)[1].tolist() == [2, 3]
    assert [lengths.tolist() for _, lengths in batches] == [[2, 3]] * 8
