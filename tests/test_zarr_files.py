"""Zarr stores in folders: what is written is what zarr reads, what zarr writes is read, a lost chunk is an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparison import assert_same

import ndtorch as nd
from ndtorch._dtypes import TABLE
from ndtorch.files import open_file
from ndtorch.files import zarr as our_zarr

pytestmark = pytest.mark.once

zarr: Any = pytest.importorskip("zarr", minversion="3", reason="zarr-python 3 is not installed")

ROWS = [row for row in TABLE if row.numpy is not None]
KNOWN = [row for row in ROWS if row.numpy.num < 256]

OTHERS = {
    "bytes": np.array([b"ab", b"c\0d", b""]),
    "text": np.array([["ab", "ü€😀"], ["", "x"]]),
    "time": np.array(["2024-02-29", "NaT"], "M8[ns]"),
    "duration": np.array([1, -2], ">m8[10s]"),
    "big-endian": np.arange(6.0).reshape(2, 3).astype(">f4"),
    "record": np.array([(1, 2.5, b"x")], [("a", ">i4"), ("b", "f8"), ("c", "S2")]),
    "raw bytes": np.array([b"abc"], "V3"),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "reversed": np.arange(6)[::-2],
    "one number": np.array(3.5),
    "none": np.zeros((0, 3)),
    "no columns": np.zeros((3, 0)),
}


def some(dtype: Any, shape: tuple[int, ...] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 100, shape).astype(dtype)


def equal(actual: np.ndarray, expected: np.ndarray) -> bool:
    is_alike = actual.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=") and actual.shape == expected.shape
    return is_alike and repr(actual.tolist()) == repr(expected.tolist())


def stored(path: Path, values: np.ndarray, name: str = "x", zarr_format: int = 3, **words: Any) -> Any:
    """Write an array as zarr does, every chunk of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
        words = {"chunks": values.shape, "config": {"write_empty_chunks": True}} | words
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, **words)
        array[...] = values
    return array


# --- written and read


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_dtype_survives(row: Any, tmp_path: Path) -> None:
    array = some(row.numpy, (2, 3))
    nd.write(tmp_path / "a.zarr", {"x": array, "deep/er": array[:, :0], "one": array[1, 2]}, verify=True)
    back = nd.read(tmp_path / "a.zarr", to="numpy")
    assert list(back) == ["deep/er", "one", "x"]
    assert_same(back["x"][...], array)
    assert_same(back["deep"]["er"][...], array[:, :0])
    assert_same(back["one"][...], np.array(array[1, 2]))


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_zarr_reads_the_numbers_that_were_written(row: Any, tmp_path: Path) -> None:
    nd.write(tmp_path / "a.zarr", {"g/x": some(row.numpy), "one": some(row.numpy)[0, 0]})
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert_same(group["g/x"][...], some(row.numpy))
    assert_same(np.asarray(group["one"][...]), np.array(some(row.numpy)[0, 0]))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore:The data type :zarr.errors.UnstableSpecificationWarning")
def test_what_is_no_number_survives_and_zarr_reads_it(name: str, tmp_path: Path) -> None:
    nd.write(tmp_path / "a.zarr", {"x": OTHERS[name]}, verify=True)
    assert equal(open_file(tmp_path / "a.zarr")["x"].read(), OTHERS[name])
    assert equal(np.asarray(zarr.open_group(tmp_path / "a.zarr", mode="r")["x"][...]), OTHERS[name])


@pytest.mark.parametrize("shape", [(5, 1000, 900), (3, 1 << 22), (1 << 21,), (7, 3, 1 << 20), (2, 0, 5), ()])
def test_every_chunk_is_written_and_none_is_large(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.zeros(shape, "f8")
    nd.write(tmp_path / "a.zarr", {"x": array})
    written = zarr.open_array(tmp_path / "a.zarr/x", mode="r")
    assert written.nchunks_initialized == written.nchunks
    assert written.nchunks <= 1 or array.nbytes > 16 << 20
    assert np.prod(written.chunks) * 8 <= max(16 << 20, 8)
    assert_same(open_file(tmp_path / "a.zarr")["x"].read(), array)


def test_arrays_of_many_chunks_are_laid_out_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_zarr, "BLOCK", 200)
    arrays = {"rows": some("f4"), "tall": some("i8", (333, 2)), "deep": some("u2", (3, 5, 7, 11))}
    arrays["columns"] = np.asfortranarray(arrays["rows"])
    nd.write(tmp_path / "a.zarr", arrays)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for name, array in arrays.items():
        assert group[name].nchunks > 3
        assert equal(group[name][...], array)
        assert equal(open_file(tmp_path / "a.zarr")[name].read(), array)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": np.longdouble([1])}, "cannot write 'a': .zarr has no data type for"),
        ({"a": np.zeros(1, np.dtype([("x", "i1"), ("y", "f8")], align=True))}, "padded"),
        ({"a": np.zeros(1, [("x", "f8", (2,))])}, "no data type for"),
        ({"a": np.array([object()])}, "'a'"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "'a' would be the name of an array and of what holds 'a/b'"),
        ({"__a": np.ones(1)}, "zarr keeps the name '__a' for itself"),
        ({"b/zarr.json": np.ones(1)}, "zarr keeps the name 'zarr.json' for itself"),
        ({"a\\b": np.ones(1)}, "for itself"),
        ({"é" * 200: np.ones(1)}, "too long for a folder"),
    ],
)
def test_what_zarr_cannot_hold_is_named_before_anything_is_written(tree: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(nd.NdtorchError, match=words):
        nd.write(tmp_path / "a.zarr", tree)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", [".npy", ".safetensors", ".h5"])
@pytest.mark.parametrize("dtype", [np.float32, bool, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.complex64])
def test_converting_there_and_back_keeps_every_value(other: str, dtype: Any, tmp_path: Path) -> None:
    nd.write(tmp_path / "a.zarr", {"x": some(dtype)})
    nd.convert_file(tmp_path / "a.zarr", tmp_path / f"x{other}", verify=True)
    nd.convert_file(tmp_path / f"x{other}", tmp_path / "b.zarr", verify=True)
    assert_same(nd.read(tmp_path / "b.zarr", to="numpy")["x"][...], some(dtype))


# --- what zarr writes

GZIP, ZSTD, BLOSC = zarr.codecs.GzipCodec(level=1), zarr.codecs.ZstdCodec(level=1), zarr.codecs.BloscCodec()
FORMAT_3: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "gzip": {"compressors": GZIP},
    "zstd": {"compressors": ZSTD},
    "checked zstd": {"compressors": zarr.codecs.ZstdCodec(level=1, checksum=True)},
    "blosc": {"compressors": BLOSC},
    "two codecs": {"compressors": [ZSTD, GZIP]},
    "columns": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "shards": {"shards": (20, 14)},
}
FORMAT_2: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "zlib": {"compressors": __import__("numcodecs").Zlib()},
    "blosc": {},
    "zstd": {"compressors": __import__("numcodecs").Zstd()},
    "columns": {"order": "F"},
    "delta": {"filters": __import__("numcodecs").Delta("i4")},
    "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}


@pytest.mark.parametrize("case", [*((3, name) for name in FORMAT_3), *((2, name) for name in FORMAT_2)], ids=str)
def test_every_codec_is_read_whole_and_in_parts(case: tuple[int, str], tmp_path: Path) -> None:
    version, name = case
    values = some("i4")
    stored(tmp_path / "a.zarr", values, "g/x", version, chunks=(10, 7), **{2: FORMAT_2, 3: FORMAT_3}[version][name])
    array = open_file(tmp_path / "a.zarr")["g/x"]
    assert_same(array.read(), values)
    assert_same(np.concatenate([block.copy() for block in array.blocks()]), values.reshape(-1))
    for key in (np.s_[3], np.s_[5:33:7, -3], np.s_[..., 29], np.s_[39:2:-5, None], np.s_[2:2], [5, 1], np.s_[-1, 0]):
        assert equal(np.asarray(array.select(key)), np.asarray(values[key]))


def test_a_slice_reads_only_the_chunks_that_it_touches(tmp_path: Path) -> None:
    stored(tmp_path / "a.zarr", some("i4"), chunks=(10, 10))
    array = open_file(tmp_path / "a.zarr")["x"]
    for path in (tmp_path / "a.zarr/x/c").rglob("*"):
        if path.is_file() and path.relative_to(tmp_path / "a.zarr/x/c").as_posix() != "1/2":
            path.unlink()
    assert_same(array.select(np.s_[12:20, 21:]), some("i4")[12:20, 21:])
    with pytest.raises(nd.FormatError, match="c/0/0"):
        array.read()


def test_an_array_at_the_root_is_named_like_its_folder(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "ages.zarr", data=np.arange(1, 4))
    assert list(nd.read(tmp_path / "ages.zarr")) == ["ages"]
    assert_same(nd.read(tmp_path / "ages.zarr", to="numpy", name="n")["n"][...], np.arange(1, 4))


def test_bfloat16_as_tensorstore_writes_it_in_format_2_is_read(tmp_path: Path) -> None:
    stored(tmp_path / "a.zarr", np.array([0x3F80, 0xC000], "u2"), zarr_format=2)
    claims = json.loads((tmp_path / "a.zarr/x/.zarray").read_text())
    (tmp_path / "a.zarr/x/.zarray").write_text(json.dumps(claims | {"dtype": "bfloat16"}))
    assert_same(nd.read(tmp_path / "a.zarr", to="numpy")["x"][...], np.array([1, -2], ml_dtypes.bfloat16))


# --- all or nothing


def test_a_store_is_replaced_and_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    nd.write(tmp_path / "a.zarr", {"x": np.ones(2)}, overwrite=True)
    nd.write(tmp_path / "a.zarr", {"y": np.ones(3)}, overwrite=True)
    assert list(nd.read(tmp_path / "a.zarr")) == ["y"]
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/thesis.tex").touch()
    (tmp_path / "c.zarr").touch()
    for name, words in {"b.zarr": "it is a folder, and no zarr store", "c.zarr": "it is a file"}.items():
        with pytest.raises(nd.FormatError, match=words):
            nd.write(tmp_path / name, {"x": np.ones(2)}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr", "c.zarr"]
    assert (tmp_path / "b.zarr/thesis.tex").exists()


KILL = """
import os, signal, sys, numpy as np, ndtorch as nd
from ndtorch.files import zarr
written = []
def stop(stream, part, write=zarr._write_all):
    write(stream, part)
    written.append(part)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
zarr._write_all = stop
nd.write(sys.argv[1], {name: np.zeros(9) for name in "abcdef"}, overwrite=True)
"""


def test_a_killed_run_leaves_the_old_store_and_the_next_no_litter(tmp_path: Path) -> None:
    nd.write(tmp_path / "a.zarr", {"x": np.ones(2)})
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path / "a.zarr")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_same(nd.read(tmp_path / "a.zarr", to="numpy")["x"][...], np.ones(2))
    assert len(os.listdir(tmp_path)) == 2
    code = "import sys, numpy as np, ndtorch as nd; nd.write(sys.argv[1], {'y': np.ones(3)}, overwrite=True)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.zarr")], check=True)
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert list(nd.read(tmp_path / "a.zarr")) == ["y"]


def test_zarr_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(nd.MissingDependencyError, match=r"pip install 'zarr>=3'"):
        nd.write(tmp_path / "a.zarr", {"x": np.ones(3)})
