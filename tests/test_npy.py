"""The .npy format: what is written is what was read, and no header is believed."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import array_holding, assert_same, tensor_holding
from hypothesis import given, settings
from made_files import Bomb, message, names_in, npy_bytes, npy_with_header, put
from strategies import SMALL_FLOATS, any_values, arrays, dtypes

import ndtorch as nd
from ndtorch._dtypes import TABLE
from ndtorch.files import open_file

IN_NPY = [row for row in TABLE if row.numpy is not None]
NATIVE = [row for row in IN_NPY if row.name not in SMALL_FLOATS and row.numpy.num < 256]

# --- what is written is what was read


@pytest.mark.parametrize("row", IN_NPY, ids=lambda row: row.name)
def test_every_dtype_survives(row, tmp_path):
    array = np.arange(1, 7).astype(row.numpy).reshape(2, 3)
    nd.write(tmp_path / "x.npy", array)
    back = nd.read(tmp_path / "x.npy", to="numpy")["x"]
    assert_same(back[...], array)
    assert back[...].flags.writeable
    assert back[...].flags.aligned


@pytest.mark.parametrize("row", NATIVE, ids=lambda row: row.name)
def test_numpy_reads_what_is_written_and_writes_what_is_read(row, tmp_path):
    array = any_values(row.numpy, (2, 3), 0)
    nd.write(tmp_path / "x.npy", array)
    assert_same(np.load(tmp_path / "x.npy"), array)
    np.save(tmp_path / "y.npy", array)
    assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert_same(nd.read(tmp_path / "y.npy")["y"][...], tensor_holding(array))


@pytest.mark.parametrize("name", SMALL_FLOATS)
def test_numpy_reads_small_floats_as_a_record_that_says_what_they_are(name, tmp_path):
    array = any_values(SMALL_FLOATS[name][0], (2, 3), 0)
    nd.write(tmp_path / "x.npy", array)
    loaded = np.load(tmp_path / "x.npy")
    assert loaded.dtype.names == (name,)
    assert_same(loaded[name].view(getattr(ml_dtypes, name)), array)


@pytest.mark.parametrize(
    "dtype",
    [[("bfloat16", "<u4")], [("bfloat16", "<u2"), ("b", "i1")], [("bfloat16", "<f2")], [("float32", "<u4")], ("<V2")],
    ids=str,
)
def test_records_that_are_no_small_floats_stay_what_they_are(dtype, tmp_path):
    array = np.zeros(3, dtype)
    nd.write(tmp_path / "x.npy", array)
    assert_same(nd.read(tmp_path / "x.npy", to="numpy")["x"][...], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bcd", ""]),
        np.array([b"a", b"bcd"]),
        np.array(["2024-02-29", "NaT"], "M8[D]"),
        np.array([1, -2], "m8[25us]"),
        np.array([(1, 2.5)], [("é", "i4"), ("y", ">f8")]),
        np.array([(1, 2.5)], np.dtype([("x", "i1"), ("y", "f8")], align=True)),
        np.array([(1, 2.5)], [("名", "i4"), ("y", "f8")]),
        np.array([((1, [2, 3]),)], [("x", [("y", "i1"), ("z", "<u2", 2)])]),
        np.arange(6.0).reshape(2, 3).astype(">f4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6)[::-2],
        np.longdouble([1, 2]),
        np.zeros((0, 3)),
        np.zeros(0, "U"),
        np.array(3),
        np.ma.masked_array([1, 2]).data,
    ],
    ids=lambda array: f"{array.dtype}",
)
def test_npy_keeps_whatever_numpy_has(array, tmp_path):
    nd.write(tmp_path / "x.npy", {"x": array})
    back = nd.read(tmp_path / "x.npy", to="numpy")["x"][...]
    assert_same(back, array)
    assert not array.flags.f_contiguous or back.flags.f_contiguous
    assert_same(np.load(tmp_path / "x.npy"), array)


@given(arrays(of=dtypes()))
@settings(max_examples=60)
def test_any_layout_survives(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    before = array.copy()
    nd.write(path, array, verify=True)
    assert_same(nd.read(path, to="numpy")["x"][...].astype(array.dtype), array)
    assert_same(array, before)


GOLDEN = b"\x93NUMPY\x01\x00v\x00{'descr': [('bfloat16', '<u2')], 'fortran_order': True, 'shape': (2, 2), }" + (
    b" " * 43 + b"\n\x80\x3f\x40\x40\x00\x40\x80\x40"
)


def test_golden_bytes(tmp_path):
    t = torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16)
    assert_same(nd.read(put(tmp_path / "g.npy", GOLDEN))["g"][...], t)
    nd.write(tmp_path / "x.npy", np.asfortranarray(array_holding(t)))
    assert (tmp_path / "x.npy").read_bytes() == GOLDEN


def test_metadata_of_a_dtype_is_left_out_without_a_warning(tmp_path):
    dtype = np.dtype([("x", np.dtype("f8", metadata={"unit": "m"}), 2)])
    nd.write(tmp_path / "x.npy", np.ones(2, dtype))
    assert np.load(tmp_path / "x.npy").dtype == [("x", "f8", 2)]


def test_writers_in_threads_leave_the_filters_of_warnings_alone(tmp_path):
    before = list(warnings.filters)
    array = np.ones(2, np.dtype("f8", metadata={"unit": "m"}))
    threads = [threading.Thread(target=nd.write, args=(tmp_path / f"{i}.npy", array)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert len(names_in(tmp_path)) == 8


# --- what it cannot hold


def test_a_file_holds_one_array(tmp_path):
    with pytest.raises(nd.FormatError) as error:
        nd.write(tmp_path / "a.npy", {"x": np.ones(2), "y": np.ones(2)})
    assert str(error.value) == (
        "write: a .npy file holds one array, not 2: 'x', 'y'. Hint: .npz and .safetensors hold many."
    )
    with pytest.raises(nd.FormatError, match=r"'0', '1', '2', '3', '4', '5', \.\.\."):
        nd.write(tmp_path / "a.npy", {str(i): np.ones(2) for i in range(9)})
    with pytest.raises(nd.FormatError, match="not 0"):
        nd.write(tmp_path / "a.npy", {})
    assert names_in(tmp_path) == []


def test_objects_are_never_pickled(tmp_path):
    with pytest.raises(nd.UnsupportedTypeError, match="'odd'"):
        nd.write(tmp_path / "a.npy", {"odd": np.array([None, {}])})
    with pytest.raises(nd.UnsupportedTypeError, match=r"cannot write 'odd': Python objects are never pickled\. Hint: "):
        nd.write(tmp_path / "a.npy", {"odd": np.zeros(2, [("x", object)])})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("dtype", [[("a", ml_dtypes.bfloat16), ("b", "f4", 3)], [("a", [("b", "V0")], 2)], "V0", []])
def test_dtypes_that_a_header_cannot_name_are_refused(dtype, tmp_path):
    with pytest.raises(nd.UnsupportedTypeError, match="'w'"):
        nd.write(tmp_path / "a.npy", {"w": np.zeros(2, np.dtype(dtype))})
    assert names_in(tmp_path) == []


# --- hostile files

MANY_DIGITS = "0x" + "f" * 9000  # Python refuses to print it

HOSTILE = {
    "empty": (b"", "is empty"),
    "other magic": (b"PK\x03\x04 and so on", "does not begin as .npy does; expected b'\\x93NUMPY', got b'PK"),
    "cut in the magic": (b"\x93NUM", "does not begin as .npy does"),
    "cut after the magic": (b"\x93NUMPY\x01", "does not begin as .npy does"),
    "cut in the length": (b"\x93NUMPY\x02\x00\x01", "inside its header"),
    "unknown version": (b"\x93NUMPY\x09\x00\x00\x00", "has an unknown .npy version; expected 1, 2 or 3, got 9"),
    "cut header": (b"\x93NUMPY\x01\x00\x76\x00{'descr'", "ends inside its header; expected 118 bytes, got 8"),
    "cut long header": (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b" " * 50_000, "ends inside its header"),
    "absurd header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "has an absurd header; expected at most 65536 bytes, got"),
    "no header": (b"\x93NUMPY\x01\x00\x04\x00{]{]", "has a header that says nothing sensible"),
    "deep header": (npy_with_header("(" * 60_000), "nothing sensible"),
    "long sum": (npy_with_header("1" + "+1" * 30_000), "nothing sensible"),
    "many signs": (npy_with_header("-" * 60_000 + "1"), "nothing sensible"),
    "other keys": (npy_with_header("{'a': 1}"), "nothing sensible: its keys are ['a']"),
    "no table": (npy_with_header("{'descr', 'fortran_order', 'shape'}"), "nothing sensible"),
    "a call": (npy_with_header("exit(3)"), "nothing sensible"),
    "a NUL": (npy_with_header("{}\0"), "nothing sensible"),
    "no dtype": (npy_bytes("spam", (1,)), "nothing sensible"),
    "dtype of nothing": (npy_bytes(None, (1,)), "nothing sensible"),
    "dtype of lists": (npy_bytes([[], [()]], (1,)), "nothing sensible"),
    "a huge text": (npy_bytes("<U4000000000", (1,)), "nothing sensible"),
    "shape is no tuple": (npy_bytes("<f8", [3]), "nothing sensible: shape [3]"),
    "shape of truths": (npy_bytes("<f8", (True,)), "nothing sensible: shape (True,)"),
    "shape of floats": (npy_bytes("<f8", (1.0,)), "nothing sensible"),
    "order is no truth": (npy_bytes("<f8", (1,), bytes(8), fortran=1), "nothing sensible"),
    "array dtype": (npy_bytes(("<f8", (2,)), (1,), bytes(16)), "nothing sensible"),
    "32 GiB in 128 bytes": (npy_bytes("<f8", (2**32,)), "ends before its array does; expected 34359738"),
    "overflow": (npy_bytes("<f8", (2**62, 2**62)), "ends before its array does"),
    "a size of 9,000 digits": (
        npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + MANY_DIGITS + ",)}"),
        "nothing sensible: it is more than numbers, text, tuples, lists and a dict",
    ),
    "a size of 30 digits": (
        npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}"),
        "nothing sensible: a size in its shape is no 64-bit integer",
    ),
    "an order of 9,000 digits": (
        npy_with_header("{'descr': '<f8', 'fortran_order': " + MANY_DIGITS + ", 'shape': (1,)}"),
        "nothing sensible",
    ),
    "negative": (npy_bytes("<f8", (-1,)), "claims the shape (-1,), which has a negative size"),
    "negative twice": (npy_bytes("<f8", (-1, -2), bytes(16)), "negative size"),
    "truncated": (npy_bytes("<f8", (4,), bytes(31)), "ends before its array does"),
    "more": (npy_bytes("<f8", (4,), bytes(33)), "goes on after its array"),
    "elements of no bytes": (npy_bytes("|S0", (2**62,)), "claims elements of no bytes"),
    "65 dimensions": (npy_bytes("<f8", (1,) * 65, bytes(8)), "nothing sensible"),
    "huge and empty": (npy_bytes("<f8", (0, 2**70)), "nothing sensible"),
    "large and empty": (npy_bytes("<f8", (0, 2**61)), "larger than any array"),
    "larger and empty": (npy_bytes("<f8", (2**40, 0, 2**40)), "larger than any array"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_when_they_are_opened(kind, tmp_path):
    data, text = HOSTILE[kind]
    put(tmp_path / "a.npy", data)
    with pytest.raises(nd.FormatError) as error:
        nd.read(tmp_path / "a.npy")
    assert message(error, tmp_path).startswith("read: 'a.npy' ")
    assert text in str(error.value)
    assert len(str(error.value)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_header_is_read(version, tmp_path):
    put(tmp_path / "a.npy", npy_bytes("<f8", (2,), np.ones(2).tobytes(), version=version))
    assert nd.read(tmp_path / "a.npy")["a"].tolist() == [1, 1]


def test_a_header_longer_than_the_first_look_is_read(tmp_path):
    dtype = np.dtype([(f"field number {i}", "i1") for i in range(500)])
    np.save(tmp_path / "a.npy", np.ones(2, dtype))
    assert open_file(tmp_path / "a.npy")["a"].dtype == dtype


def test_pickles_are_never_opened(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Bomb(tmp_path / "exploded")], object), allow_pickle=True)
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.read(tmp_path / "x.npy")
    assert "holds Python objects, which are never unpickled. Hint: save it as numbers or text" in str(error.value)
    put(tmp_path / "y.npy", npy_bytes([("a", "<f8"), ("b", "|O")], (1,), bytes(16)))
    with pytest.raises(nd.UnsupportedTypeError, match="never unpickled"):
        nd.read(tmp_path / "y.npy")
    assert names_in(tmp_path) == ["x.npy", "y.npy"]


def test_a_file_that_claims_much_takes_little_memory(tmp_path):
    put(tmp_path / "a.npy", npy_bytes("<f8", (2**32,)))
    code = (
        "import ndtorch, ndtorch.files as f\n"
        # not `ru_maxrss`, which an interpreter has from the process that started it
        "def peak(): return int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        f"try: f.open_file({os.fspath(tmp_path / 'a.npy')!r})\n"
        "except ndtorch.FormatError: print(peak() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 10_000
