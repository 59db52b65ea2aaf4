"""A data set in shards in a loader: the batches are those of the rows in one array, whatever the shards are."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding

import ndtorch as nd
from ndtorch import FormatError
from ndtorch.loader import shard_rows

ROWS = 173
RNG = np.random.default_rng(7)
SHORT = RNG.random((ROWS, 3, 5), dtype=np.float32)
LONG = RNG.random((ROWS, 9, 1024), dtype=np.float32)  # rows of 36 KB are read and not mapped
LABELS = np.arange(ROWS)


def shards_of(folder: Path, to: str = "safetensors", rows: int = 10, **arrays: np.ndarray) -> Path:
    """Write arrays as shards of some rows each."""
    np.savez(folder / "all.npz", **arrays)
    size = rows * sum(array[:1].nbytes for array in arrays.values())
    nd.convert_many(folder / "all.npz", folder / "shards", to=to, shard_size=size)
    return folder / "shards"


@pytest.fixture(scope="module", params=["safetensors", "zarr"])
def table(request, tmp_path_factory) -> Path:
    """All rows with their labels, in shards of ten."""
    folder = shards_of(tmp_path_factory.mktemp("table"), request.param, x=SHORT, y=LABELS)
    assert len([path for path in folder.iterdir() if path.suffix == f".{request.param}"]) == 18
    return folder


def assert_same_batches(found: nd.Loader, expected: nd.Loader) -> None:
    for epoch in range(2):
        pairs = list(itertools.zip_longest(found, expected))
        assert len(pairs) > 1, epoch
        for one, other in pairs:
            assert_same(one, other)


# --- the same as in memory


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True, "window"])
def test_batches_are_those_of_the_rows_in_memory(table, shuffle, threads):
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "threads": threads}
    if shuffle == "window":
        options["window"] = ROWS  # all in one, or its blocks would be whole chunks
    for data in (nd.read(table), f"{table}/"):
        assert_same_batches(nd.Loader(data, 16, **options), nd.Loader({"x": SHORT, "y": LABELS}, 16, **options))


@pytest.mark.parametrize("options", [{"float_dtype": "float16"}, {"weights": LABELS + 1.0}, {"drop_last": True}])
def test_options_mean_what_they_mean_for_memory(table, options):
    expected = nd.Loader({"x": SHORT, "y": LABELS}, 7, shuffle="weights" not in options, **options)
    assert_same_batches(nd.Loader(table, 7, shuffle="weights" not in options, **options), expected)


@pytest.mark.parametrize("array", [SHORT, LONG, LABELS, SHORT[:, :0]], ids=["short", "long", "numbers", "empty"])
@pytest.mark.parametrize("to", ["npy", "safetensors", "zarr"])
def test_rows_of_every_length_come_from_every_format(array, to, tmp_path):
    folder = shards_of(tmp_path, to, data=array, rows=13) if array.size else write_empty_rows(tmp_path, to, array)
    loader = nd.Loader(nd.read(folder)["data"], 11, shuffle=True, seed=1)
    assert_same_batches(loader, nd.Loader(array, 11, shuffle=True, seed=1))


def write_empty_rows(folder: Path, to: str, array: np.ndarray) -> Path:
    for number, part in enumerate(np.array_split(array, 3)):
        np.save(folder / f"{number}.npy", part)
    nd.convert_many(folder / "*.npy", folder / "shards", to=to)
    return folder / "shards"


@pytest.mark.parametrize("dtype", ["bool", "uint16", "float64", "complex64", "float16", ">i4"])
def test_rows_of_every_dtype_are_those_of_memory(dtype, tmp_path):
    array = RNG.integers(0, 2 if dtype == "bool" else 100, (ROWS, 3)).astype(dtype)
    folder = shards_of(tmp_path, rows=10, data=array)
    assert_same_batches(nd.Loader(nd.read(folder)["data"], 16, shuffle=True), nd.Loader(array, 16, shuffle=True))


def test_records_are_a_dict_of_their_fields(tmp_path):
    records = np.zeros(ROWS, [("x", "<f4", 3), ("y", "<i8")])
    records["x"], records["y"] = SHORT[:, 0, :3], LABELS
    folder = shards_of(tmp_path, "npy", data=records)
    for batch in nd.Loader(nd.read(folder)["data"], 16, shuffle=True):
        assert_same(batch["x"], tensor_holding(SHORT[batch["y"].numpy(), 0, :3].copy()))


def test_pictures_become_planes(tmp_path):
    pictures = RNG.integers(0, 256, (ROWS, 8, 6, 3)).astype(np.uint8)
    folder = shards_of(tmp_path, data=pictures)
    options: dict[str, Any] = {"shuffle": True, "image": {"mean": 0.5, "std": 0.25}}
    assert_same_batches(nd.Loader(nd.read(folder)["data"], 16, **options), nd.Loader(pictures, 16, **options))


def test_shards_and_memory_go_together(table):
    for batch in nd.Loader((nd.read(table), LABELS), 16, shuffle=True):
        assert_same(batch[0]["y"], batch[1])


@pytest.mark.parametrize("shuffle", [True, "window"])
def test_ranks_have_disjoint_shares_that_are_complete_and_go_on_in_another_world(table, shuffle):
    def loaders(world: int) -> list[nd.Loader]:
        options: dict[str, Any] = {"shuffle": shuffle, "seed": 5, "world_size": world}
        return [nd.Loader(table, 8, rank=rank, **options) for rank in range(world)]

    seen: list[int] = []
    states = []
    for loader in loaders(2):
        for batch in itertools.islice(loader, 4):
            assert_same(batch["x"], tensor_holding(SHORT[batch["y"].numpy()]))
            seen += batch["y"].tolist()
        states.append(loader.state_dict())
    assert len(set(seen)) == len(seen) == 2 * 4 * 8
    for loader in loaders(3):
        loader.load_state_dict(states[0])
        for batch in loader:
            seen += batch["y"].tolist()
    assert set(seen) == set(range(ROWS))
    assert len(seen) - ROWS < 3  # ranks take the same number of steps


# --- shards are opened when they are wanted


def test_no_shard_but_the_first_is_opened_before_its_rows_are_wanted(tmp_path):
    folder = shards_of(tmp_path, data=SHORT)
    for path in sorted(folder.glob("*.safetensors"))[5:]:
        path.unlink()
    loader = nd.Loader(nd.read(folder)["data"], 10, threads=0)
    assert_same(torch.cat(list(itertools.islice(loader, 5))), tensor_holding(SHORT[:50]))
    with pytest.raises(FormatError, match=r"000000-005\.safetensors"):
        list(loader)


def test_few_shards_at_a_time_are_enough(table, monkeypatch):
    monkeypatch.setattr(shard_rows, "_MAX_OPEN", 2)
    expected = nd.Loader({"x": SHORT, "y": LABELS}, 32, shuffle=True)
    assert_same_batches(nd.Loader(table, 32, shuffle=True, threads=3), expected)


# --- shards that are not what they were


@pytest.mark.parametrize("array", [SHORT, LONG], ids=["mapped", "read"])
def test_a_shard_that_is_cut_short_meanwhile_is_an_error_that_names_it(array, tmp_path):
    folder = shards_of(tmp_path, data=array)
    loader = nd.Loader(nd.read(folder)["data"], 4, threads=0)
    batches = iter(loader)
    list(itertools.islice(batches, 3))
    os.truncate(folder / "000000-001.safetensors", 200)
    with pytest.raises(FormatError, match=r"000000-001\.safetensors'.* has become shorter than its array"):
        list(batches)


def test_an_error_in_a_shard_says_which_of_all_rows_it_was(tmp_path):
    folder = shards_of(tmp_path, data=LONG)
    loader = nd.Loader(nd.read(folder)["data"], 4, threads=0)
    list(loader)
    path = folder / "000000-001.safetensors"
    os.truncate(path, path.stat().st_size - 2 * LONG[0].nbytes)
    with pytest.raises(FormatError, match="has become shorter") as caught:
        list(loader)
    assert caught.value.index == (18,)


def test_a_shard_of_another_kind_is_refused_by_name(tmp_path):
    folder = shards_of(tmp_path, "npy", data=SHORT)
    np.save(folder / "000000-002.npy", SHORT[20:30].astype(np.float64))
    with pytest.raises(FormatError, match=r"000000-002\.npy'.* is not the shard that its index says"):
        list(nd.Loader(folder, 4, shuffle=True))


def test_without_an_index_there_is_no_loader(tmp_path):
    folder = shards_of(tmp_path, data=SHORT)
    (folder / "index.json").unlink()
    with pytest.raises(FormatError, match="its conversion has not finished"):
        nd.Loader(folder, 4)


def test_a_forked_child_loads_from_the_shards_that_its_parent_opened(table):
    rows = nd.read(table)
    loader = nd.Loader(rows, 16, shuffle=True, threads=2)
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if not child:
        status = 1
        try:
            for batch in nd.Loader(rows, 16, shuffle=True, threads=0):
                assert_same(batch["x"], tensor_holding(SHORT[batch["y"].numpy()]))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(batches)) == -(-ROWS // 16) - 1


def test_shards_behind_a_url_are_read_by_ranges(tmp_path):
    pytest.importorskip("fsspec")
    np.save(tmp_path / "a.npy", SHORT)
    url = f"memory://{tmp_path.name}/shards"
    nd.convert_many(tmp_path / "a.npy", url, shard_size=10 * SHORT[0].nbytes, name="x")
    for shuffle in (False, True):
        found = torch.cat(list(nd.Loader(nd.read(url)["x"], 32, shuffle=shuffle, seed=2)))
        assert_same(found, torch.cat(list(nd.Loader(SHORT, 32, shuffle=shuffle, seed=2))))
