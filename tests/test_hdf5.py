"""HDF5: what is written is what h5py reads, and what h5py writes is read, without the library where that can be."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd
from ndtorch._dtypes import TABLE
from ndtorch._write import Casts, prepare, write_prepared
from ndtorch.files import format_to_write, open_file
from ndtorch.files.arrays import Packed, Stored

pytestmark = pytest.mark.once

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")

ROWS = [row for row in TABLE if row.numpy is not None]
RECORD = np.dtype([("x", "i1"), ("é", "f8"), ("z", ">i2", (2,)), ("t", "M8[s]"), ("n", [("k", "S3")])], align=True)

OTHERS = {
    "bytes": np.array([b"ab", b"c\0d", b""]),
    "text": np.array([["ab", "ü€😀"], ["", "x"]]),
    "time": np.array(["2024-02-29", "NaT"], "M8[ns]"),
    "time of no unit": np.array([1, -2], "m8"),
    "duration": np.array([1, -2], "m8[10s]"),
    "big-endian": np.arange(6.0).reshape(2, 3).astype(">f4"),
    "big-endian time": np.array([1, 2], ">M8[s]"),
    "record": np.ones(3, RECORD),
    "raw bytes": np.array([b"abc"], "V3"),
    "longdouble": np.longdouble([1, 2]),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "reversed": np.arange(6)[::-2],
    "one number": np.array(3.5),
    "one text": np.array("x"),
    "none": np.zeros((0, 3)),
    "no text": np.zeros((2, 0), "U3"),
    "no rows of none": np.zeros((0, 0), ">i4"),
}


def some(dtype: Any, shape: tuple[int, ...] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 100, shape).astype(dtype)


def equal(actual: np.ndarray, expected: np.ndarray) -> bool:
    is_alike = actual.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=") and actual.shape == expected.shape
    return is_alike and repr(actual.tolist()) == repr(expected.tolist())


# --- written and read


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_dtype_survives(row: Any, tmp_path: Path) -> None:
    array = some(row.numpy, (2, 3))
    nd.write(tmp_path / "a.h5", {"x": array, "deep/er": array[:, :0], "one": array[1, 2]}, verify=True)
    back = nd.read(tmp_path / "a.h5", to="numpy")
    assert list(back) == ["deep/er", "one", "x"]
    assert_same(back["x"][...], array)
    assert_same(back["deep"]["er"][...], array[:, :0])
    assert_same(back["one"][...], np.array(array[1, 2]))
    assert nd.read(tmp_path / "a.h5")["x"][...].dtype == row.torch


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_number_survives_as_well(name: str, tmp_path: Path) -> None:
    nd.write(tmp_path / "a.h5", {"x": OTHERS[name]}, verify=True)
    found = open_file(tmp_path / "a.h5")["x"]
    assert equal(found.read(), OTHERS[name])
    assert found.read().dtype.itemsize == OTHERS[name].dtype.itemsize


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_h5py_reads_the_numbers_that_were_written(row: Any, tmp_path: Path) -> None:
    array = some(row.numpy, (2, 3))
    nd.write(tmp_path / "a.h5", {"x": array})
    with h5py.File(tmp_path / "a.h5") as file:
        found, name = file["x"][...], file["x"].attrs.get("dtype", b"").decode()
    if name:  # a float8 that HDF5 has no layout for
        assert found.dtype == np.uint8
        found = found.view(getattr(ml_dtypes, name))
    assert found.astype(np.complex128).tolist() == array.astype(np.complex128).tolist()


def test_h5py_reads_text_time_and_records_that_were_written(tmp_path: Path) -> None:
    nd.write(tmp_path / "a.h5", {"u": OTHERS["text"], "t": OTHERS["time"], "r": OTHERS["record"], "s": OTHERS["bytes"]})
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["u"].asstr()[...].tolist() == OTHERS["text"].tolist()
        assert equal(file["t"][...], OTHERS["time"])
        assert equal(file["s"][...], OTHERS["bytes"])
        assert repr(file["r"][...].tolist()) == repr(OTHERS["record"].tolist())


def test_what_was_written_is_mapped_and_starts_at_a_cache_line(tmp_path: Path) -> None:
    nd.write(tmp_path / "a.h5", {str(n): np.arange(n, dtype="u1") for n in (1, 3, 70, 5000, 7)} | {"f": np.ones(3)})
    for array in open_file(tmp_path / "a.h5").values():
        assert isinstance(array.layout, Stored)
        assert array.layout.offset % 64 == 0
        assert array.map() is not None


def test_the_same_arrays_make_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        nd.write(tmp_path / f"{name}.h5", {"x": np.arange(9), "y/z": np.array(["a"])})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": np.ones(2), "b": np.array([object()])}, "cannot write 'b': Python objects|'b'"),
        ({"a": np.zeros(2, "V0")}, "cannot write 'a': .h5 has no type for"),
        ({"a": np.zeros(2, [("t", "U3")])}, "its field 't' is <U3"),
        ({"a": np.zeros(2, [("t", ml_dtypes.bfloat16)])}, "its field 't' is bfloat16"),
        ({"a": np.zeros((1,) * 33)}, "at most 32 dimensions"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "'a' would be the name of an array and of what holds 'a/b'"),
        ({"a": np.array(["\ud800"])}, "not Unicode"),
    ],
)
def test_what_hdf5_cannot_hold_is_named_and_leaves_what_was_there(tree: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"old")
    with pytest.raises(nd.NdtorchError, match=words):
        nd.write(tmp_path / "a.h5", tree, overwrite=True)
    assert (tmp_path / "a.h5").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("other", [".npy", ".safetensors", ".zarr"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64])
def test_converting_there_and_back_keeps_every_value(other: str, dtype: Any, tmp_path: Path) -> None:
    array = some(dtype)
    nd.write(tmp_path / "a.h5", {"x": array})
    nd.convert_file(tmp_path / "a.h5", tmp_path / f"x{other}", verify=True)
    nd.convert_file(tmp_path / f"x{other}", tmp_path / "b.h5", verify=True)
    assert_same(nd.read(tmp_path / "b.h5", to="numpy")["x"][...], array)


# --- what h5py writes

LAYOUTS = {
    "contiguous": {},
    "chunks": {"chunks": (7, 9)},
    "large chunks": {"chunks": (300, 64)},
    "whole rows": {"chunks": (100, 400)},
    "gzip": {"chunks": (300, 64), "compression": "gzip", "compression_opts": 1},
    "shuffled gzip": {"chunks": (300, 64), "compression": "gzip", "shuffle": True},
    "small gzip": {"chunks": (7, 9), "compression": "gzip"},
    "lzf": {"chunks": (300, 64), "compression": "lzf"},
    "with checksums": {"chunks": (300, 64), "fletcher32": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", ">i8", "?", "c16", "S5"])
def test_every_layout_is_read_whole_and_in_parts(layout: str, dtype: str, tmp_path: Path) -> None:
    values = some("i4", (700, 400)).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("g/x", data=values, **LAYOUTS[layout])
    array = open_file(tmp_path / "a.h5")["g/x"]
    assert isinstance(array.layout, Packed if layout != "contiguous" else Stored)
    assert equal(array.read(), values)
    assert np.array_equal(np.concatenate([block.copy() for block in array.blocks()]), values.reshape(-1))
    for key in (
        np.s_[3],
        np.s_[5:650:7, -3],
        np.s_[..., 399],
        np.s_[699:2:-50, None],
        np.s_[2:2],
        [5, 1],
        np.s_[-1, 0],
    ):
        assert equal(array.select(key), np.asarray(values[key], values.dtype))


def test_a_slice_reads_only_the_chunks_that_it_touches(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=some("f8", (256, 256)), chunks=(128, 128))
        places: list[Any] = []
        file["x"].id.chunk_iter(lambda info: places.append((info.chunk_offset, info.byte_offset)))
    with open(tmp_path / "a.h5", "r+b") as raw:
        for offset, begin in places:
            if offset != (128, 0):
                raw.seek(begin)
                raw.write(b"\xff" * (128 * 128 * 8))
    assert_same(open_file(tmp_path / "a.h5")["x"].select(np.s_[130:200, :100]), some("f8", (256, 256))[130:200, :100])


def test_other_text_enumerations_arrays_and_half_a_value_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["varying"] = np.array(["a", "ünï", ""], h5py.string_dtype())
        file["one"] = "text"
        file.create_dataset("utf-8", data=np.array([b"\xc3\xbc"], h5py.string_dtype("utf-8", 4)))
        file.create_dataset("enum", data=[1, 0], dtype=h5py.enum_dtype({"a": 0, "b": 1}, "i2"))
        file.create_dataset("vectors", (3,), np.dtype(("f8", (2,))))[...] = np.ones((3, 2))
        file.create_dataset("time", data=OTHERS["time"].astype(h5py.opaque_dtype(OTHERS["time"].dtype)))
    arrays = nd.read(tmp_path / "a.h5", to="numpy")
    assert arrays["varying"][...].tolist() == ["a", "ünï", ""]
    assert arrays["one"][...].tolist() == "text"
    assert arrays["utf-8"][...].tolist() == ["ü"]
    assert_same(arrays["enum"][...], np.array([1, 0], "i2"))
    assert_same(arrays["vectors"][...], np.ones((3, 2)))
    assert_same(arrays["time"][...], OTHERS["time"])


def test_a_float_of_the_layout_of_bfloat16_is_bfloat16_in_chunks_too(tmp_path: Path) -> None:
    from ndtorch.files.hdf5_types import float_type

    values = np.array([1, -2.5, np.inf], ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values.astype("f4"), dtype=float_type(h5py.h5t, "bfloat16"), chunks=(2,))
    assert_same(nd.read(tmp_path / "a.h5")["x"][...], torch.tensor([1, -2.5, torch.inf], dtype=torch.bfloat16))


def test_what_was_never_written_reads_as_the_fill_value_and_is_counted(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (300, 200), "f8", chunks=(100, 100), fillvalue=7)[:100, :100] = 1
        file.create_dataset("y", (3,), "f8", fillvalue=2)
    arrays = open_file(tmp_path / "a.h5")
    assert arrays["x"].read().sum() == 10_000 + 7 * 50_000
    assert "5 of 6 chunks" in nd.explain(nd.read(tmp_path / "a.h5")["x"]).reason
    assert_same(arrays["y"].read(), np.full(3, 2.0))


# --- files


def open_files() -> set[str]:
    """Not how many: other threads open and close files of their own."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_a_file_is_closed_when_nobody_needs_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(9), chunks=(2,))
    path = str(tmp_path / "a.h5")
    array = nd.read(tmp_path / "a.h5")["x"]
    assert array[3] == 3
    with h5py.File(tmp_path / "a.h5", "a") as file:  # neither its lock nor its name is taken
        file["y"] = 1
    assert path in open_files()
    del array
    assert path not in open_files()


def test_a_file_that_is_being_written_is_refused_and_one_that_is_read_is_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", locking=True) as file:
        file["x"] = np.arange(3)
        with pytest.raises(nd.FormatError, match="is open for writing"):
            nd.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5"):
        assert_same(nd.read(tmp_path / "a.h5", to="numpy")["x"][...], np.arange(3))


def test_a_file_that_was_replaced_is_read_as_it_was(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(9), chunks=(2,))
    array = nd.read(tmp_path / "a.h5", to="numpy")["x"]
    nd.write(tmp_path / "a.h5", {"x": np.zeros(9)}, overwrite=True)
    assert_same(array[...], np.arange(9))


def test_h5py_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(nd.MissingDependencyError, match=r"pip install h5py"):
        nd.write(tmp_path / "a.h5", {"x": np.ones(3)})
    assert os.listdir(tmp_path) == []


CONVERT = """
import sys, ndtorch as nd
nd.convert_file(*sys.argv[1:3])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"chunks": (256, 1024)}, {"chunks": (256, 1024), "compression": "gzip"}])
def test_converting_a_large_file_takes_little_memory(kind: dict[str, Any], tmp_path: Path) -> None:
    def peak(rows: int, target: str) -> int:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("x", (rows, 1024), "f8", **kind)[:8] = 1
        command = [sys.executable, "-c", CONVERT, str(tmp_path / "a.h5"), str(tmp_path / target)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) * 1024

    assert peak(75 << 10, "a.npy") - peak(256, "b.npy") < 300e6


@pytest.mark.parametrize("order", ["C", "F"])
def test_elements_that_the_kernel_copies_get_to_their_places(order: str, tmp_path: Path) -> None:
    array = np.asarray(np.arange(3_000_000.0).reshape(1000, 3000), order=order)
    np.savez(tmp_path / "x.npz", x=array, y=array[:2])
    np.save(tmp_path / "x.npy", array)
    for source in ("x.npy", "x.npz"):
        done: list[int] = []
        prepared = prepare(open_file(tmp_path / source), Casts())
        for watch in (None, done.append):
            write_prepared(tmp_path / "x.h5", format_to_write("x.h5"), prepared, watch=watch)
            with h5py.File(tmp_path / "x.h5") as file:
                np.testing.assert_array_equal(file["x"][()], array, strict=True)
        assert sum(done) == sum(one.item.nbytes for one in prepared)


def test_one_text_of_varying_length_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data="wörter", dtype=h5py.string_dtype())
    array = nd.read(tmp_path / "a.h5", to="numpy")["x"][...]
    assert (array.shape, array.item()) == ((), "wörter")


@pytest.mark.parametrize(("dtype", "claim"), [("u4", "float32"), ("u2", "bfloat16"), ("u8", "complex64")])
def test_an_attribute_named_dtype_changes_no_number(dtype: str, claim: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(4, dtype=dtype)).attrs["dtype"] = claim
    assert_same(nd.read(tmp_path / "a.h5", to="numpy")["x"][...], np.arange(4, dtype=dtype))
