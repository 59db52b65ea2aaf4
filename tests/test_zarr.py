"""Zarr: arrays are read once, groups become tables, and a lost chunk is an error instead of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding

import ndtorch as nd

zarr: Any = pytest.importorskip("zarr", minversion="3", reason="zarr-python 3 is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:The data type :zarr.errors.UnstableSpecificationWarning")

DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", ">i2", ">f8"]


@pytest.fixture
def group(tmp_path: Path) -> Any:
    return zarr.open_group(tmp_path / "data.zarr", mode="w")


def some(dtype: Any, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    values = np.random.default_rng(3).integers(1, 100, shape)
    return np.asarray(values % 2 if dtype == "?" else values, dtype)


def stored(group: Any, values: np.ndarray, name: str = "x", **words: Any) -> Any:
    words = {"config": {"write_empty_chunks": True}, "chunks": tuple(max(n // 2, 1) for n in values.shape)} | words
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, **words)
    array[...] = values
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 4), (), (0, 3), (1, 2, 3)])
def test_array_of_every_dtype_comes_out_with_its_values(group: Any, dtype: str, shape: tuple[int, ...]) -> None:
    values = some(dtype, shape)
    array = stored(group, values)
    assert_same(nd.to_torch(array), tensor_holding(values))
    assert_same(nd.to_numpy(array), values)
    assert_same(nd.to_numpy(nd.to_torch(array), like=array), values)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_formats_and_orders_come_out_the_same(tmp_path: Path, zarr_format: int, order: str) -> None:
    values = some("f4", (7, 6))
    words = {"zarr_format": zarr_format, "order": order} if zarr_format == 2 else {"zarr_format": zarr_format}
    array = zarr.create_array(tmp_path / "x.zarr", shape=(7, 6), chunks=(3, 4), dtype="f4", **words)
    array[...] = values
    assert_same(nd.to_torch(array), torch.from_numpy(values))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({}, "its values are compressed chunks of a store"),
        ({"compressors": None}, "its values are chunks of a store"),
    ],
)
def test_plan_says_where_the_values_are(group: Any, words: dict[str, Any], reason: str) -> None:
    array = stored(group, some("f4"), **words)
    plan = nd.explain(array)
    assert (plan.reason, plan.nbytes_copied, plan.dtype, plan.shape) == (reason, 80, "float32", (5, 4))
    with pytest.raises(nd.CopyRequiredError, match=reason):
        nd.to_torch(array, copy=False)


def test_chunks_are_read_straight_into_the_tensor(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = stored(group, some("f4"))
    seen = []
    whole = type(array).get_basic_selection
    monkeypatch.setattr(
        type(array), "get_basic_selection", lambda self, **words: (seen.append(words["out"]), whole(self, **words))[1]
    )
    tensor = nd.to_torch(array)
    assert tensor.data_ptr() == seen[0].as_numpy_array().__array_interface__["data"][0]
    assert_same(tensor, tensor_holding(some("f4")))


def test_options_reach_the_values(group: Any) -> None:
    values = some("f8")
    array = stored(group, values)
    assert_same(nd.to_torch(array, float_dtype="float32"), torch.from_numpy(values).float())
    assert_same(nd.to_torch(array, dtype="int16", casting="exact"), torch.from_numpy(values).short())
    assert_same(nd.to_torch({"x": [array]}), {"x": [torch.from_numpy(values)]})


# --- chunks that are missing


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_lost_chunk_is_an_error_and_not_zeros(tmp_path: Path, zarr_format: int) -> None:
    folder = tmp_path / "x.zarr"
    array = zarr.create_array(folder, shape=(6, 6), chunks=(2, 3), dtype="f4", zarr_format=zarr_format)
    array[...] = 1
    assert_same(nd.to_torch(array), torch.ones(6, 6))
    (folder / ("0.1" if zarr_format == 2 else "c/0/1")).unlink()
    assert float(array[0, 5]) == 0, "the trap: zarr says nothing"
    with pytest.raises(nd.FormatError, match="1 of its 6 chunks are missing") as caught:
        nd.to_torch({"x": array})
    assert caught.value.hint.startswith("array[...] reads them as fill_value")
    assert caught.value.path == "['x']"
    assert isinstance(nd.explain(array).error, nd.FormatError)
    with pytest.raises(nd.FormatError):
        nd.to_numpy(array)
    assert_same(nd.to_torch(array[...])[2:], torch.ones(4, 6))


def test_lost_shard_is_an_error(group: Any) -> None:
    array = group.create_array("x", shape=(8, 8), chunks=(2, 2), shards=(4, 4), dtype="i4")
    array[:4] = 1
    with pytest.raises(nd.FormatError, match="2 of its 4 shards are missing"):
        nd.to_torch(array)
    array[4:] = 2
    assert int(nd.to_torch(array).sum()) == 96


def test_chunks_of_the_fill_value_are_there_when_they_are_asked_to_be(group: Any) -> None:
    left_out = group.create_array("a", shape=(4,), chunks=(2,), dtype="f4")
    left_out[...] = [0, 0, 1, 1]
    with pytest.raises(nd.FormatError) as caught:
        nd.to_torch(left_out)
    assert "write_empty_chunks" in caught.value.hint
    assert_same(nd.to_torch(stored(group, np.array([0, 0, 1, 1], "f4"), "b")), torch.tensor([0.0, 0, 1, 1]))


@pytest.mark.parametrize("shape", [(10, 10), (), (0, 3), (1,)])
@pytest.mark.parametrize("name", ["x", "x/y"])
def test_chunks_are_counted_as_zarr_counts_them(group: Any, shape: tuple[int, ...], name: str) -> None:
    from ndtorch.foreign.zarr import _count_chunks

    chunks = tuple(min(3, max(n, 1)) for n in shape)
    array = group.create_array(name, shape=shape, chunks=chunks, dtype="f4")
    group.create_array(name + "z", shape=shape, chunks=chunks, dtype="f4")[...] = 1
    assert _count_chunks(array) == (array.nchunks, 0)
    if shape:
        array[:4] = 1
    else:
        array[...] = 1
    assert _count_chunks(array) == (array.nchunks, array.nchunks_initialized)


def test_array_at_the_root_of_a_memory_store_is_read() -> None:
    array = zarr.create_array({}, shape=(4,), chunks=(2,), dtype="i8")
    array[...] = np.arange(1, 5)
    assert_same(nd.to_torch(array), torch.arange(1, 5))


def test_zip_store_is_read(tmp_path: Path) -> None:
    with zarr.storage.ZipStore(tmp_path / "x.zip", mode="w") as store:
        zarr.create_array(store, shape=(4,), chunks=(2,), dtype="i8")[...] = np.arange(1, 5)
    with zarr.storage.ZipStore(tmp_path / "x.zip", mode="r") as store:
        array = zarr.open_array(store, mode="r")
        assert_same(nd.to_torch(array), torch.arange(1, 5))


def test_store_that_cannot_be_listed_is_noted(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = group.create_array("x", shape=(4,), chunks=(2,), dtype="f4")
    monkeypatch.setattr(type(array.store), "supports_listing", False)
    assert "cannot list" in nd.explain(array).notes[0]
    assert_same(nd.to_torch(array), torch.zeros(4))


def test_damaged_chunk_is_an_error(group: Any, tmp_path: Path) -> None:
    array = stored(group, np.arange(1000))
    chunk = tmp_path / "data.zarr/x/c/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(nd.NdtorchError, match="cannot read"):
        nd.to_torch(array)


# --- other dtypes


def test_structured_array_becomes_a_dict_and_comes_back(group: Any) -> None:
    values = np.ones(4, [("x", "f4"), ("y", "i2")])
    values["y"] = [1, 2, 3, 4]
    array = stored(group, values)
    assert_same(nd.to_torch(array), {"x": torch.ones(4), "y": torch.tensor([1, 2, 3, 4], dtype=torch.int16)})
    assert_same(nd.to_numpy(nd.to_torch(array), like=array), values)
    assert nd.explain(array).nbytes_copied == 24


@pytest.mark.parametrize(
    "values",
    [np.array([b"ab", b"c"], "S3"), np.array(["ab", "c"], "U3"), np.array(["2024-02-29", "NaT"], "M8[s]")],
    ids=["bytes", "text", "time"],
)
def test_text_and_times_come_out_as_numbers_and_back(group: Any, values: np.ndarray) -> None:
    array = stored(group, values)
    assert_same(nd.to_torch(array), nd.to_torch(values, copy=True))
    assert_same(nd.to_numpy(nd.to_torch(array), like=array), values)


def test_text_of_varying_length_is_refused(group: Any) -> None:
    array = group.create_array("x", shape=(2,), dtype="string")
    array[...] = np.array(["ab", "c"], np.dtypes.StringDType())
    with pytest.raises(nd.UnsupportedTypeError, match="varying length") as caught:
        nd.to_torch(group)
    assert caught.value.path == "['x']"
    assert_same(nd.to_torch(np.array(array[...].tolist())), torch.tensor([[97, 98], [99, 0]]).int())


def test_raw_bytes_are_refused(group: Any) -> None:
    array = group.create_array("x", shape=(2,), dtype="V2")
    with pytest.raises(nd.UnsupportedTypeError, match="no meaning as numbers"):
        nd.to_torch(array)


# --- groups


def test_group_becomes_a_dict_of_its_members(group: Any) -> None:
    stored(group, some("f4"), "x")
    stored(group, some("i8"), "deep/er/y")
    group.create_group("empty")
    expected = {"deep": {"er": {"y": some("i8")}}, "empty": {}, "x": some("f4")}
    assert_same(nd.to_numpy(group), expected)
    result = nd.to_torch(group)
    assert_same(result["deep"]["er"]["y"], torch.from_numpy(some("i8")))
    assert list(result) == ["deep", "empty", "x"]
    assert_same(nd.to_numpy(result, like=group), expected)
    assert nd.explain(group).leaves["['x']"].nbytes_copied == 80


def test_example_with_other_members_is_an_error_that_names_them(group: Any) -> None:
    stored(group, some("f4"), "x")
    with pytest.raises(nd.ShapeMismatchError, match="other members") as caught:
        nd.to_numpy({"y": torch.zeros(3)}, like=group)
    assert (caught.value.expected, caught.value.got) == (["x"], ["y"])


def test_groups_nested_without_end_are_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    inner = group.create_group("g")
    (tmp_path / "x.zarr/g/g").symlink_to(tmp_path / "x.zarr/g", target_is_directory=True)
    assert len(list(inner.members())) == 1
    with pytest.raises(nd.NdtorchError):
        nd.to_torch(group)


def test_asynchronous_array_is_refused(group: Any) -> None:
    array = stored(group, some("f4"))
    with pytest.raises(nd.UnsupportedTypeError, match="has to be awaited") as caught:
        nd.to_torch(array.async_array)
    assert caught.value.hint.startswith("zarr.Array(source)")
    assert_same(nd.to_torch(zarr.Array(array.async_array)), torch.from_numpy(some("f4")))


@pytest.mark.parametrize("dtype", ["S5", "U3"])
def test_one_text_of_a_store_that_the_library_unpacks_is_read(tmp_path: Path, dtype: str) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", shape=(), dtype=dtype, zarr_format=2, order="F")
    array[...] = np.array("ab", dtype)
    assert_same(nd.read(tmp_path / "x.zarr", to="numpy")["x"][...], np.array("ab", dtype))
