"""Shards read as one data set: any index gives what NumPy gives, and little else is read."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding
from hypothesis import given
from hypothesis import strategies as st

import ndtorch as nd
from ndtorch import FormatError
from ndtorch.files import joined, open_file, sharded
from ndtorch.files.arrays import FileArray
from ndtorch.files.joined import Joined
from ndtorch.scale import convert_many

FORMATS = ("safetensors", "npy", "zarr")
ROWS = np.random.default_rng(0).random((23, 3, 2)).astype(np.float32)


@pytest.fixture(scope="module", params=FORMATS)
def shards(request, tmp_path_factory) -> Path:
    """Twenty-three rows in shards of four."""
    folder = tmp_path_factory.mktemp("shards")
    np.save(folder / "x.npy", ROWS)
    convert_many(folder / "x.npy", folder / "out", to=request.param, shard_size=4 * 24)
    return folder / "out"


@pytest.fixture
def table(tmp_path) -> Path:
    """Two arrays in three shards."""
    np.savez(tmp_path / "t.npz", x=ROWS[:9], y=np.arange(9))
    convert_many(tmp_path / "t.npz", tmp_path / "out", shard_size=3 * 32)
    return tmp_path / "out"


def array_of(folder: Path) -> FileArray:
    return open_file(folder)["data"]


def test_a_data_set_is_one_array_of_all_rows(shards):
    found = nd.read(shards)
    assert list(found) == ["data"]
    assert found["data"].shape == torch.Size([23, 3, 2])
    assert_same(found["data"][...], tensor_holding(ROWS))
    assert_same(nd.to_torch(found), {"data": tensor_holding(ROWS)})
    assert_same(nd.to_numpy(found), {"data": ROWS})
    assert_same(nd.to_torch(found["data"], dtype="float64"), tensor_holding(ROWS.astype(np.float64)))


def test_blocks_are_the_rows_in_order(shards):
    assert_same(np.concatenate(list(array_of(shards).blocks())), ROWS.reshape(-1))


INDICES = st.one_of(
    st.integers(-23, 22),
    st.slices(23),
    st.lists(st.integers(-23, 22), max_size=30),
    st.lists(st.booleans(), min_size=23, max_size=23).map(np.array),
    st.tuples(st.slices(23), st.integers(-3, 2)),
    st.tuples(st.integers(-23, 22), st.slices(3), st.none()),
    st.tuples(st.none(), st.slices(23), st.just(...), st.integers(0, 1)),
    st.tuples(
        st.lists(st.integers(0, 22), min_size=2, max_size=2), st.lists(st.integers(0, 2), min_size=2, max_size=2)
    ),
    st.tuples(st.slices(23), st.lists(st.integers(0, 2), max_size=4)),
    st.tuples(st.integers(0, 22), st.lists(st.integers(0, 2), max_size=4)),
    st.tuples(st.just(...), st.lists(st.integers(0, 1), max_size=4)),
    st.just(...),
    st.none(),
    st.just(ROWS > 0.5),
    st.just(np.array([[1, 22], [0, 1]], np.uint8)),
)


@given(key=INDICES)
def test_any_index_selects_what_numpy_selects(shards, key):
    key = [] if isinstance(key, list) and not key else key
    key = np.array(key, np.int64) if isinstance(key, list) else key
    key = (
        tuple(np.array(each, np.int64) if isinstance(each, list) else each for each in key)
        if isinstance(key, tuple)
        else key
    )
    assert_same(np.asarray(array_of(shards).select(key)), np.asarray(ROWS[key]))


@pytest.mark.parametrize("key", [23, -24, [0, 23], (0, 3), np.zeros(22, bool), (0, 0, 0, 0)])
def test_what_is_out_of_bounds_is_an_index_error(shards, key):
    with pytest.raises(IndexError):
        array_of(shards).select(key)


def opened_by(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[FileArray, list[int]]:
    """The array, and a list that gets the number of every shard that is opened."""
    array, opened = array_of(folder), []
    layout = array.layout
    assert isinstance(layout, Joined)
    real = layout._open
    monkeypatch.setattr(layout, "_open", lambda number: (opened.append(number), real(number))[1])
    return array, opened


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (0, {0}),
        (-1, {5}),
        (slice(3, 5), {0, 1}),
        (slice(0, 23, 8), {0, 2, 4}),
        ([22, 0, 22], {0, 5}),
        (slice(4, 4), set()),
    ],
)
def test_only_the_shards_of_wanted_rows_are_opened(shards, monkeypatch, key, expected):
    array, opened = opened_by(monkeypatch, shards)
    array.select(key)
    assert set(opened) == expected


def test_parts_are_the_arrays_of_the_shards(shards):
    layout = array_of(shards).layout
    assert isinstance(layout, Joined)
    assert layout.starts.tolist() == [0, 4, 8, 12, 16, 20, 23]
    assert_same(np.concatenate([part.read() for part in layout.parts]), ROWS)
    assert len(layout) == 6


def test_rows_far_apart_are_read_one_by_one(shards, monkeypatch):
    monkeypatch.setattr(joined, "_NEAR", 1)
    monkeypatch.setattr(FileArray, "map", lambda self: None)
    for key in ([0, 2, 3], [3, 0], [1, 1]):
        assert_same(np.asarray(array_of(shards).select(key)), ROWS[key])


def test_what_is_selected_is_memory_of_its_own_or_a_private_map(shards):
    found = nd.read(shards, to="numpy")["data"]
    for key in (3, slice(1, 3), slice(3, 9), [1, 2]):
        found[key][...] = 7
    assert_same(found[...], ROWS)


def test_two_arrays_keep_their_rows_together(table):
    found = nd.read(table)
    batch = nd.to_numpy({name: found[name][4:8] for name in found})
    assert_same(batch, {"x": ROWS[4:8], "y": np.arange(4, 8)})


def test_everything_else_takes_it_as_a_file(table, tmp_path):
    assert [(one.name, one.shape, one.order) for one in nd.inspect(table)] == [("x", (9, 3, 2), "C"), ("y", (9,), "C")]
    assert nd.inspect(table, stats=True)["y"].stats.mean == 4
    assert nd.explain(nd.read(table)["y"]).dtype == "int64"
    nd.convert_file(table, tmp_path / "one.npz", float_dtype="float64")
    assert_same(np.load(tmp_path / "one.npz")["x"], ROWS[:9].astype(np.float64))
    nd.report(table, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size
    again = pickle.loads(pickle.dumps(nd.read(table)))
    assert_same(again["y"][...], torch.arange(9))


def test_the_command_takes_it_as_one_source(table, tmp_path):
    from typer.testing import CliRunner

    from ndtorch.cli import app

    result = CliRunner().invoke(app, ["convert", str(table), str(tmp_path / "one.npz")])
    assert result.exit_code == 0, result.output
    assert_same(np.load(tmp_path / "one.npz")["y"], np.arange(9))


def test_shards_can_be_cut_again(table, tmp_path):
    found = convert_many(table, tmp_path / "again", shard_size=32, to="zarr")
    assert found.rows == 9
    assert len(json.loads((tmp_path / "again" / "index.json").read_bytes())["shards"]["name"]) == 9
    assert_same(nd.to_numpy(nd.read(tmp_path / "again"))["x"], ROWS[:9])


def test_one_shard_is_mapped(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    convert_many(tmp_path / "x.npy", tmp_path / "out")
    assert array_of(tmp_path / "out").map() is not None


# --- what is wrong


def test_a_shard_that_is_missing_is_named_when_its_rows_are_touched(table):
    (table / "000000-001.safetensors").unlink()
    found = nd.read(table)
    assert found["y"][0] == 0
    with pytest.raises(FormatError, match=r"000000-001\.safetensors"):
        found["y"][3]
    with pytest.raises(FormatError, match=r"000000-001\.safetensors"):
        found["x"][...]


def test_a_shard_that_is_short_is_named(table):
    os.truncate(table / "000000-001.safetensors", 99)
    with pytest.raises(
        FormatError, match=r"000000-001\.safetensors' is not the shard that its index says; expected \d+ bytes, got 99"
    ):
        nd.read(table)["y"][3]


def test_a_shard_of_another_header_is_named(table, shards):
    nbytes = (table / "000000-001.safetensors").stat().st_size
    other = {"x": ROWS[3:6], "z": np.arange(3)}
    nd.write(table / "000000-001.safetensors", other, overwrite=True)
    assert (table / "000000-001.safetensors").stat().st_size == nbytes
    with pytest.raises(
        FormatError, match=r"000000-001\.safetensors' is not the shard.*y int64\[3\], got.*z int64\[3\]"
    ):
        nd.read(table)["y"][3]


def test_a_shard_that_is_damaged_is_found_when_all_is_read(shards):
    for name in ("000000-002.safetensors", "000000-002.npy", "000000-002.zarr/data/c/0/0/0"):
        path = shards / name
        if not path.exists():
            continue
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        try:
            with pytest.raises(FormatError, match=r"000000-002.* is damaged"):
                nd.read(shards)["data"][...]
            with pytest.raises(FormatError, match=r"000000-002.* is damaged"):
                nd.to_torch(nd.read(shards)["data"])
        finally:
            path.write_bytes(raw)
    assert_same(nd.to_numpy(nd.read(shards)["data"]), ROWS)


def test_rows_that_only_an_overflow_makes_add_up_are_an_error(table):
    index = json.loads((table / "index.json").read_bytes())
    index["shards"]["rows"] = [index["rows"], *[1 << 62] * 4]
    for name in ("nbytes", "crc32"):
        index["shards"][name] = [1] * 5
    index["shards"]["name"] = [f"{number}.safetensors" for number in range(5)]
    index["shards"].pop("arrays", None)
    (table / "index.json").write_text(json.dumps(index, separators=(",", ":")))
    with pytest.raises(FormatError, match="do not add up"):
        nd.read(table)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw.replace(b'"ndtorch":1', b'"ndtorch":9'),
        lambda raw: raw.replace(b'"rows":9', b'"rows":8'),
        lambda raw: raw.replace(b"000000-001", b"../../etcx"),
        lambda raw: raw.replace(b"000000-001", b"000000-000"),
        lambda raw: raw.replace(b'"safetensors",', b'"pickle",'),
        lambda raw: raw.replace(b'"int64"', b'"object"'),
        lambda raw: raw.replace(b"[3,2]", b"[-3,2]"),
        lambda raw: raw.replace(b'"shards"', b'"shard"'),
        lambda raw: b'{"ndtorch":1}',
        lambda raw: b'{"ndtorch":' + b"[" * 100_000,
        lambda raw: b"\0" * len(raw),
        lambda raw: b"",
    ],
)
def test_an_index_that_is_damaged_is_an_error(table, spoil):
    raw = (table / "index.json").read_bytes()
    assert spoil(raw) != raw
    (table / "index.json").write_bytes(spoil(raw))
    with pytest.raises(FormatError, match=r"damaged|not finished"):
        nd.read(table)


def test_an_index_of_somebody_else_is_none(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    (tmp_path / "index.json").write_text('{"pages": [1, 2]}')
    assert list(nd.read(tmp_path)) == ["x"]


def test_very_many_shards_are_opened_without_opening_one(tmp_path, monkeypatch):
    count = 40_000
    shards: dict[str, Any] = {"name": [f"{n:06d}-000.npy" for n in range(count)], "rows": [2] * count}
    shards |= {"nbytes": [144] * count, "crc32": [0] * count, "arrays": {}}
    index = {
        "ndtorch": 1,
        "format": "npy",
        "rows": 2 * count,
        "arrays": {"x": {"dtype": "int64", "shape": []}},
        "shards": shards,
    }
    (tmp_path / "index.json").write_text(json.dumps(index, separators=(",", ":")))
    monkeypatch.setattr(sharded, "_MAX_OPEN", 4)
    found = nd.read(tmp_path, to="numpy")["x"]
    assert found.shape == (2 * count,)
    wanted = list(range(0, count, 1000))
    for n in wanted:
        np.save(tmp_path / f"{n:06d}-000.npy", np.array([n, -n]))
    assert_same(found[[2 * n for n in wanted]], np.array(wanted))
    layout = found.stored.layout
    assert isinstance(layout, Joined)
    assert len(layout._open.__closure__[1].cell_contents._opened) == 4
