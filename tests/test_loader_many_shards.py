"""Rows gathered from many shards at once: bit for bit those of one array, with a bounded number of shards open."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding
from loops import eventually, helpers

import ndtorch as nd
from ndtorch import FormatError
from ndtorch.files import storage
from ndtorch.loader import shard_rows

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="what is open is counted in /proc")

DTYPES = ["uint8", "int64", "float16", "float32", "float64", "complex64", "bool"]


@pytest.fixture(params=["read", "mapped"])
def way(request: pytest.FixtureRequest, monkeypatch) -> str:
    """How shards are opened: small ones are read whole, others mapped."""
    monkeypatch.setattr(shard_rows, "_SMALL", (1 << 20) * (request.param == "read"))
    return request.param


def shards_of(folder: Path, rows: int, to: str = "safetensors", **arrays: np.ndarray) -> Path:
    """Write arrays as shards of so many rows."""
    np.savez(folder / "all.npz", **arrays)
    nd.convert_many(
        folder / "all.npz", folder / "shards", to=to, shard_size=rows * sum(a[:1].nbytes for a in arrays.values())
    )
    return folder / "shards"


def some_arrays(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    found = {}
    for number in range(rng.integers(1, 4)):
        shape = (rows, *rng.integers(1, 7, rng.integers(0, 3)))
        found[f"a{number}"] = rng.integers(0, 2, shape).astype(rng.choice(DTYPES)) + np.zeros((), "bool")
        found[f"a{number}"].reshape(-1)[: rows // 2] = 1
    return {**found, "row": np.arange(rows)}


def some_options(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    order: dict[str, Any] = [
        {"shuffle": True},
        {"shuffle": "window", "window": rows},
        {"weights": rng.random(rows), "num_samples": int(rng.integers(rows, 2 * rows))},
        {"sampler": rng.permutation(rows)[: rows - 7].tolist()},
        {},
    ][rng.integers(5)]
    cast = {"float_dtype": "float32"} if rng.integers(2) else {}
    return {**order, **cast, "seed": int(rng.integers(99)), "batch_size": int(rng.integers(1, 60))}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("number", range(10))
def test_any_rows_in_any_shards_are_those_of_one_array(number: int, tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(number)
    rows = int(rng.integers(100, 400))
    arrays, options = some_arrays(rng, rows), some_options(rng, rows)
    folder = shards_of(tmp_path, int(rng.integers(1, 40)), **arrays)
    monkeypatch.setattr(shard_rows, "_MAX_OPEN", int(rng.choice([1, 5, 4096])))

    def loaders(data: Any, world: int, **more: Any) -> list[nd.Loader]:
        return [nd.Loader(data, **options, **more, rank=rank, world_size=world) for rank in range(world)]

    before, after = rng.integers(1, 4, 2).tolist()
    stop = int(rng.integers(1, 4))
    for found, expected in zip(
        loaders(folder, before, threads=int(rng.integers(4))), loaders(arrays, before, threads=0), strict=True
    ):
        for one, other in itertools.islice(zip(found, expected, strict=True), stop):
            assert_same(one, other)
        state = found.state_dict()
        assert state == expected.state_dict()
    for found, expected in zip(loaders(folder, after), loaders(arrays, after), strict=True):
        found.load_state_dict(state)
        expected.load_state_dict(state)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("rows", [3, 30])
@pytest.mark.parametrize("options", [{"float_dtype": "float16"}, {"image": {"x": {"mean": 0.5, "dtype": "float16"}}}])
def test_long_rows_are_cast_on_their_way_from_many_shards(rows: int, options: dict[str, Any], tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((50, 64, 64, 3), dtype=np.float32)
    folder = shards_of(tmp_path, rows, x=array)
    found = nd.Loader(folder, 7, shuffle=True, **options)
    for one, other in zip(found, nd.Loader({"x": array}, 7, shuffle=True, **options), strict=True):
        assert_same(one, other)


def test_long_rows_are_read_from_few_files_at_a_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shard_rows, "_MAX_READ", 3)
    array = np.random.default_rng(0).random((100, 9000), dtype=np.float32)
    folder = shards_of(tmp_path, 7, x=array)
    for one, other in zip(nd.Loader(folder, 40, shuffle=True), nd.Loader({"x": array}, 40, shuffle=True), strict=True):
        assert_same(one, other)


@pytest.mark.usefixtures("way")
def test_fields_of_records_are_gathered_from_many_shards(tmp_path: Path) -> None:
    inner = np.dtype([("a", "u1"), ("b", "<f8", (2, 3))])
    records = np.zeros(200, [("x", "<i2"), ("y", inner, 2)])
    records["x"], records["y"]["b"] = np.arange(200), np.random.default_rng(0).random((200, 2, 2, 3))
    folder = shards_of(tmp_path, 9, "npy", data=records)
    options: dict[str, Any] = {"shuffle": True, "float_dtype": "float32"}
    found = nd.Loader(nd.read(folder)["data"], 16, **options)
    for one, other in zip(found, nd.Loader(records, 16, **options), strict=True):
        assert_same(one, other)


@pytest.mark.usefixtures("way")
def test_a_shard_that_cannot_be_mapped_goes_together_with_those_that_can(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((90, 4, 5))
    folder = shards_of(tmp_path, 10, "npy", x=array)
    np.save(folder / "000000-002.npy", np.asfortranarray(array[20:30]))
    for one, other in zip(nd.Loader(folder, 8, shuffle=True), nd.Loader({"x": array}, 8, shuffle=True), strict=True):
        assert_same(one, other)


# --- how many are open


def open_shards(folder: Path) -> tuple[int, int]:
    """How many maps of files in a folder there are, and how many of its files are open.

    The system lists them bit by bit, and threads that go on meanwhile may close one that was counted for another. What
    is listed twice alike was so at one moment.
    """
    before, found = None, _listed(folder)
    while found != before:
        before, found = found, _listed(folder)
    return len(found[0]), len(found[1])


def _listed(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The maps of files in a folder, and the descriptors of those that are open."""
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    files = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was closed since
            path = os.readlink(f"/proc/self/fd/{name}")
            files += [(name, path)] if path.startswith(str(folder)) else []
    return maps, files


@pytest.mark.parametrize("threads", [0, 3])
def test_any_number_of_arrays_and_loaders_stays_below_the_maps_of_a_process(
    threads: int, tmp_path: Path, monkeypatch
) -> None:
    arrays = {f"a{number}": np.arange(60) * 10 + number for number in range(6)}
    folder = shards_of(tmp_path, 1, **arrays)
    monkeypatch.setattr(shard_rows, "_MAX_MAPS", 100)
    monkeypatch.setattr(shard_rows, "_FEWEST", 2)
    monkeypatch.setattr(shard_rows, "_SMALL", 0)
    loaders = [nd.Loader(folder, 20, shuffle=True, threads=threads) for _ in range(4)]
    for loader in loaders:
        for one, other in zip(loader, nd.Loader(arrays, 20, shuffle=True), strict=True):
            assert_same(one, other)
    assert open_shards(folder)[0] <= 100 + 2 * len(arrays) * len(loaders)


@pytest.mark.parametrize("threads", [0, 3])
def test_few_of_many_shards_are_mapped_at_a_time(threads: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shard_rows, "_MAX_OPEN", 40)
    array = np.arange(1200).reshape(600, 2)
    folder = shards_of(tmp_path, 2, x=array)
    assert len(nd.read(folder)["x"].stored.layout) == 300
    loader = nd.Loader(folder, 20, shuffle=True, threads=threads)
    assert open_shards(folder) == (0, 1), "none but the first has been looked at"
    seen = []
    for batch in loader:
        seen.append(batch["x"])
        maps, files = open_shards(folder)
        assert maps <= 40 + 10 * (threads + 1), "one call holds a quarter of what may be open"
        assert files <= 256 + threads + 1, "besides those in use"
    assert torch.cat(seen)[:, 0].sort().values.tolist() == array[:, 0].tolist()
    assert open_shards(folder)[0] >= 30
    del loader, batch
    assert eventually(lambda: not helpers()), "the last threads that know the shards end"
    assert open_shards(folder)[0] == 0


# --- small ones are read whole


def test_small_shards_are_read_when_their_rows_are_wanted_and_not_mapped(tmp_path: Path) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    loader = nd.Loader(folder, 8, threads=0)
    batches = iter(loader)
    next(batches)
    for path in sorted(folder.glob("*.safetensors"))[1:]:
        path.unlink()  # it has not been read: nobody has wanted its rows
    with pytest.raises(FormatError, match=r"000000-001\.safetensors"):
        list(batches)
    assert open_shards(folder)[0] == 0


def test_shards_are_read_whole_as_far_as_all_loaders_together_may_keep_them(tmp_path: Path, monkeypatch) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    monkeypatch.setattr(shard_rows, "_MOST_READ", 2 * array.nbytes)

    def maps() -> int:
        before = open_shards(folder)[0]
        for one, other in zip(loaders[-1], nd.Loader({"x": array}, 50, shuffle=True), strict=True):
            assert_same(one, other)
        return open_shards(folder)[0] - before

    loaders = [nd.Loader(folder, 50, shuffle=True)]
    assert maps() == 0
    loaders.append(nd.Loader(folder, 50, shuffle=True))
    assert maps() == 0
    loaders.append(nd.Loader(folder, 50, shuffle=True))
    assert maps() == 30, "nothing is left for it"
    del loaders[0]
    loaders.append(nd.Loader(folder, 50, shuffle=True))
    assert maps() == 0, "what another one kept is free"


@pytest.mark.parametrize(("name", "value"), [("_SMALL", 159), ("_MAX_OPEN", 29), ("memory_left", lambda: 4 * 4800 - 1)])
def test_shards_that_are_large_or_many_or_more_than_memory_are_mapped(
    name: str, value: Any, tmp_path: Path, monkeypatch
) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    monkeypatch.setattr(shard_rows, name, value)
    loader = nd.Loader(folder, 8, shuffle=True, threads=0)
    list(loader)
    assert open_shards(folder)[0] > 20


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_that_says_which_row_of_all(tmp_path: Path) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    loader = nd.Loader(folder, 300, threads=0)
    opened = shard_rows._Opener.rows

    def cut(self: Any, number: int) -> Any:
        rows = opened(self, number)
        if number == 11:
            path = folder / "000000-011.safetensors"
            os.truncate(path, path.stat().st_size - 3 * array[0].nbytes)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_rows._Opener, "rows", cut)
        with pytest.raises(FormatError, match=r"000000-011\.safetensors'.* has become shorter") as caught:
            list(loader)
    assert caught.value.index == (117,)


# --- shards that are not what they were


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("is_between_epochs", [True, False])
def test_a_shard_cut_short_is_an_error_that_names_it(is_between_epochs: bool, threads: int, tmp_path: Path) -> None:
    folder = shards_of(tmp_path, 10, x=np.arange(600.0).reshape(300, 2), y=np.arange(300))
    loader = nd.Loader(folder, 8, shuffle=True, threads=threads, prefetch=threads)
    list(loader)
    batches = iter(loader)
    if not is_between_epochs:
        list(itertools.islice(batches, 3))
    path = folder / "000000-011.safetensors"
    os.truncate(path, path.stat().st_size - 1)  # less than a page
    with pytest.raises(FormatError, match=r"000000-011\.safetensors'.* has become shorter than its array"):
        list(batches)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_shard_that_loses_its_name_is_read_on_while_it_is_open(is_replaced: bool, tmp_path: Path) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    loader = nd.Loader(folder, 8, threads=0)
    list(loader)
    path = folder / "000000-011.safetensors"
    if is_replaced:
        nd.write(tmp_path / "other.safetensors", {"x": -array[:10]})
        os.replace(tmp_path / "other.safetensors", path)
    else:
        path.unlink()
    assert_same(torch.cat([batch["x"] for batch in loader]), tensor_holding(array))
    storage._held.close_idle()
    fact = "has been replaced since its header was read" if is_replaced else "is gone since it was opened"
    with pytest.raises(FormatError, match=rf"000000-011\.safetensors' {fact}"):
        list(loader)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_shard_missing_while_another_data_set_takes_its_place_is_told_as_that(threads: int, tmp_path: Path) -> None:
    folder = shards_of(tmp_path, 10, x=np.arange(6000.0).reshape(3000, 2))
    loader = nd.Loader(folder, 8, threads=threads, prefetch=threads)
    folder.rename(tmp_path / "before")
    with pytest.raises(
        FormatError, match=r"has other shards than when its index\.json was read.* called again"
    ) as caught:
        list(loader)
    assert "no such file" in str(caught.value.__cause__)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_between_epochs", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
def test_rows_of_a_data_set_are_never_mixed_with_those_of_another_in_its_place(
    is_between_epochs: bool, threads: int, tmp_path: Path
) -> None:
    array = np.arange(6000.0).reshape(3000, 2)
    folder = shards_of(tmp_path, 10, x=array)
    (tmp_path / "other").mkdir()
    other = shards_of(tmp_path / "other", 10, x=-array)
    loader = nd.Loader(folder, 8, threads=threads, prefetch=threads)
    batches = iter(loader)
    got = [] if is_between_epochs else list(itertools.islice(batches, 3))
    folder.rename(tmp_path / "before")
    other.rename(folder)
    with pytest.raises(FormatError, match=r"has other shards than when its index\.json was read.* called again"):
        got.extend(batches)
    rows = torch.cat([torch.empty(0, 2, dtype=torch.float64), *(batch["x"] for batch in got)])
    assert_same(rows, tensor_holding(array[: len(rows)]))
    assert_same(torch.cat([batch["x"] for batch in nd.Loader(folder, 8)]), tensor_holding(-array))


def test_an_index_that_is_written_again_as_it_was_changes_nothing(tmp_path: Path) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    loader = nd.Loader(folder, 8, threads=0)
    index = (folder / "index.json").read_bytes()
    (folder / "index.json").unlink()
    (folder / "index.json").write_bytes(index)
    assert_same(torch.cat([batch["x"] for batch in loader]), tensor_holding(array))


@pytest.mark.usefixtures("way")
def test_a_kept_batch_is_its_own_whatever_becomes_of_the_shards(tmp_path: Path) -> None:
    array = np.arange(600.0).reshape(300, 2)
    folder = shards_of(tmp_path, 10, x=array)
    loader = nd.Loader(folder, 50, threads=0)
    kept = [batch["x"] for batch in loader]
    del loader
    for path in folder.glob("*.safetensors"):
        os.truncate(path, 0)
    assert_same(torch.cat(kept), tensor_holding(array))
