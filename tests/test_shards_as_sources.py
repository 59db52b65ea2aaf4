"""Shards as sources: each is what the index of its data set says, in the order of that, or it is an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

import ndtorch as nd
from ndtorch import FormatError

pytestmark = pytest.mark.once

FORMATS = ("safetensors", "npy", "zarr")
ROWS = np.arange(2200, dtype=np.int64)


@pytest.fixture(params=["folder", "url"])
def home(request, tmp_path) -> Iterator[str]:
    """Where data sets lie."""
    if request.param == "folder":
        yield str(tmp_path)
        return
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def source(tmp_path) -> str:
    """A file of 2,200 rows of eight bytes."""
    np.save(tmp_path / "rows.npy", ROWS)
    return str(tmp_path / "rows.npy")


def rows_of(place: str, name: str = "data") -> list[int]:
    return nd.read(place, to="numpy")[name][:].tolist()


def shards_of(place: Path) -> list[str]:
    return json.loads((place / "index.json").read_bytes())["shards"]["name"]


@pytest.mark.parametrize("to", FORMATS)
def test_they_are_read_in_the_order_of_their_index(to, home, source):
    nd.convert_many(source, f"{home}/ones", shard_size=16, to=to)
    assert len(nd.read(f"{home}/ones")["data"]) == len(ROWS)
    nd.convert_many(f"{home}/ones", f"{home}/twos", shard_size="1MB", engine="threads", workers=1)
    assert rows_of(f"{home}/twos") == ROWS.tolist()


def test_names_of_more_than_a_thousand_sort_as_they_count(tmp_path, source):
    nd.convert_many(source, tmp_path / "ones", shard_size=8, to="npy")
    names = shards_of(tmp_path / "ones")
    assert len(names) == len(ROWS)
    assert names == sorted(names)


def test_those_of_several_sets_follow_one_another(tmp_path):
    for n, folder in enumerate(("b", "a", "c/a")):
        os.makedirs(tmp_path / folder)
        np.save(tmp_path / folder / "x.npy", np.arange(10 * n, 10 * n + 6))
        nd.convert_many(tmp_path / folder / "x.npy", tmp_path / "sets" / folder, shard_size=16, to="npy")
    sets = [tmp_path / "sets" / folder for folder in ("b", "a", "c/a")]
    nd.convert_many(sets, tmp_path / "all")
    assert rows_of(str(tmp_path / "all")) == [*range(10, 16), *range(20, 26), *range(6)]


@pytest.mark.parametrize("part", ["whole", "cut"])
@pytest.mark.parametrize("to", FORMATS)
def test_a_shard_whose_elements_have_changed_is_an_error_and_makes_no_new_one(to, part, tmp_path, source):
    nd.convert_many(source, tmp_path / "ones", shard_size=4000, to=to)
    name = shards_of(tmp_path / "ones")[1]
    path = tmp_path / "ones" / name
    if to == "zarr":
        chunk = max((one for one in path.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
        lost = nd.read(path, to="numpy")["data"][:]
        lost[7] ^= 1
        shutil.rmtree(path)
        nd.write(path, {"data": lost}, format="zarr")
        assert chunk.exists()
    else:
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    size = "1MB" if part == "whole" else 1600
    with pytest.raises(FormatError, match="add up to their checksum") as caught:
        nd.convert_many(tmp_path / "ones", tmp_path / "twos", shard_size=size, engine="threads")
    assert name in str(caught.value)
    done = nd.convert_many(tmp_path / "ones", tmp_path / "twos", shard_size=size, on_error="skip", engine="threads")
    (failure,) = done.failures
    assert name in failure.path
    assert done.rows == len(ROWS) - 500


@pytest.mark.parametrize("to", ["safetensors", "npy"])
def test_a_foreign_shard_is_an_error(to, home, source, tmp_path):
    nd.convert_many(source, f"{home}/ones", shard_size=4000, to=to)
    nd.write(tmp_path / f"other.{to}", {"data": np.arange(7)}, format=to)
    fs, path = fsspec.url_to_fs(f"{home}/ones/000000-001.{to}")
    fs.pipe_file(path, (tmp_path / f"other.{to}").read_bytes())
    for work in ({"shard_size": "1MB"}, {"shard_size": None, "to": "npz"}):
        with pytest.raises(FormatError, match="is not the shard that its index says"):
            nd.convert_many(f"{home}/ones", tmp_path / f"out{work['shard_size']}", engine="threads", **work)


def test_small_equal_files_beside_them_are_read_with_no_shard_among_them(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(4))
    nd.convert_many(tmp_path / "x.npy", tmp_path / "in", to="npy")
    for name in ("a", "b", "t", "z"):
        np.save(tmp_path / f"{name}.npy", np.arange(4))
    sources = [tmp_path / name for name in ("a.npy", "b.npy", "in", "t.npy", "z.npy")]
    assert nd.convert_many(sources, tmp_path / "all").rows == 20
    shard = tmp_path / "in" / "000000-000.npy"
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FormatError, match="add up to their checksum"):
        nd.convert_many(sources, tmp_path / "out")


def test_the_name_of_their_array_is_kept(home, tmp_path):
    np.save(tmp_path / "b.npy", np.arange(6))
    nd.convert_many(tmp_path / "b.npy", f"{home}/ones", to="npy", name="x")
    nd.convert_many(f"{home}/ones", f"{home}/twos")
    assert rows_of(f"{home}/twos", "x") == list(range(6))


def test_one_that_is_missing_is_an_error_or_left_out_alone(tmp_path, source):
    nd.convert_many(source, tmp_path / "ones", shard_size=8000, to="npy")
    (tmp_path / "ones" / "000000-001.npy").unlink()
    with pytest.raises(FileNotFoundError, match="000000-001"):
        nd.convert_many(tmp_path / "ones", tmp_path / "out")
    np.save(tmp_path / "z.npy", np.arange(3))
    done = nd.convert_many([tmp_path / "ones", tmp_path / "z.npy"], tmp_path / "out", on_error="skip")
    (failure,) = done.failures
    assert "000000-001.npy" in failure.path
    assert rows_of(str(tmp_path / "out")) == [*range(1000), *range(2000, 2200), 0, 1, 2]


def test_a_data_set_is_never_converted_into_itself(home, source, tmp_path):
    ones = f"{home}/ones"
    nd.convert_many(source, ones, shard_size=8000)
    names = [ones, f"{ones}/", f"{ones}/index.json", f"{ones}/*.safetensors"]
    if "://" not in home:
        os.symlink(ones, tmp_path / "link")
        names += [str(tmp_path / "link"), f"{tmp_path}/./ones"]
    for name in names:
        with pytest.raises(FormatError, match=r"the target|no file of arrays"):
            nd.convert_many(name, ones, shard_size=4000, overwrite=True)
    assert rows_of(ones) == ROWS.tolist()


def test_a_source_whose_index_has_changed_is_another_one(tmp_path, source):
    nd.convert_many(source, tmp_path / "ones", shard_size=8000)
    assert nd.convert_many(tmp_path / "ones", tmp_path / "twos").converted == 1
    assert nd.convert_many(tmp_path / "ones", tmp_path / "twos").skipped == 1
    index = json.loads((tmp_path / "ones" / "index.json").read_bytes())
    index["shards"]["arrays"]["data"][0] ^= 1
    (tmp_path / "ones" / "index.json").write_text(json.dumps(index, separators=(",", ":")))
    with pytest.raises(FormatError, match="add up to their checksum"):
        nd.convert_many(tmp_path / "ones", tmp_path / "twos")


READ = {
    "write": lambda arrays, folder: nd.write(folder / "x.npz", arrays),
    "to_torch": lambda arrays, folder: nd.to_torch(arrays["data"]),
    "blocks": lambda arrays, folder: list(arrays["data"].stored.blocks()),
}


@pytest.mark.parametrize("how", READ)
def test_all_that_is_read_of_packed_shards_is_compared(how, tmp_path, source):
    nd.convert_many(source, tmp_path / "ones", shard_size=4000, to="zarr")
    path = tmp_path / "ones" / shards_of(tmp_path / "ones")[0]
    lost = nd.read(path, to="numpy")["data"][:]
    lost[499] ^= 1
    shutil.rmtree(path)
    nd.write(path, {"data": lost}, format="zarr")
    with pytest.raises(FormatError, match="add up to their checksum"):
        READ[how](nd.read(tmp_path / "ones"), tmp_path)
