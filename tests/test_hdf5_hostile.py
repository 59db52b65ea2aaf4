"""HDF5 that lies, leads astray or is broken: an error for what is wrong, in little memory, and the rest can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndtorch as nd
from ndtorch.files import open_file

pytestmark = pytest.mark.once

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["fine"] = np.arange(5)
    return tmp_path / "a.h5"


def error_of(path: Path, name: str = "bad") -> str:
    """What reading one array says; what else there is has to be read."""
    arrays = open_file(path)
    assert arrays["fine"].read().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises((nd.FormatError, nd.UnsupportedTypeError, nd.MissingDependencyError)) as caught:
        arrays[name].read()
    assert f"'{name[:200]}'" in str(caught.value)
    return str(caught.value)


# --- links


def test_links_to_other_files_are_not_followed(path: Path) -> None:
    with h5py.File(path.with_name("b.h5"), "w") as other:
        other["x"] = 1
    with h5py.File(path, "a") as file:
        file["bad"] = h5py.ExternalLink("b.h5", "/x")
        file["g/through"] = h5py.SoftLink("/bad")
        file["into"] = h5py.ExternalLink("b.h5", "/")
        file["beyond"] = h5py.SoftLink("/into/x")
    for name in ("bad", "g/through", "beyond"):
        assert "is a link to another file, 'b.h5': it is not followed" in error_of(path, name)


def test_links_within_the_file_are_followed(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["a/soft"] = h5py.SoftLink("../fine")  # HDF5 knows no way up
        file["soft"] = h5py.SoftLink("/b/hard")
        file["b/hard"] = file["fine"]
        file["group"] = h5py.SoftLink("b/.//")
    arrays = open_file(path)
    assert sorted(arrays) == ["a/soft", "b/hard", "fine", "group/hard", "soft"]
    assert all(arrays[name].read().tolist() == [0, 1, 2, 3, 4] for name in ("soft", "b/hard", "group/hard"))
    assert "where nothing is" in error_of(path, "a/soft")


def test_links_in_circles_end(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_group("g")["bad"] = file["/"]
        file["g/soft"] = h5py.SoftLink("/g")
        file["one"] = h5py.SoftLink("/other")
        file["other"] = h5py.SoftLink("/one")
        file["nowhere"] = h5py.SoftLink("/nothing")
    assert "is a group that it lies in" in error_of(path, "g/bad")
    assert "is a group that it lies in" in error_of(path, "g/soft")
    assert "leads to another, 16 times" in error_of(path, "one")
    assert "is a link to '/nothing', where nothing is" in error_of(path, "nowhere")


def test_more_paths_than_memory_are_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        above = file.create_group("0")
        for _ in range(40):
            inner = above.create_group("a")
            above["b"] = inner
            above = inner
    with pytest.raises(nd.FormatError, match="more than 100000 links"):
        open_file(path)


def test_groups_in_groups_have_an_end(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["/".join(["g"] * 150) + "/x"] = 1
    assert "lies more than 100 groups deep" in error_of(path, "/".join(["g"] * 101))


# --- datasets


def test_values_in_other_files_are_not_read(path: Path) -> None:
    path.with_name("secret").write_bytes(b"12345678")
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource("b.h5", "x", (5,))
    with h5py.File(path, "a") as file:
        file.create_dataset("bad", (1,), "i8", external=[("secret", 0, 8)])
        file.create_virtual_dataset("virtual", layout)
    assert "in other files or datasets, 'secret'" in error_of(path)
    assert "in other files or datasets, 'b.h5'" in error_of(path, "virtual")


def test_what_numpy_has_no_dtype_for_is_named(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("references", data=[file["fine"].ref], dtype=h5py.ref_dtype)
        file.create_dataset("lists", (2,), h5py.vlen_dtype("i4"))
        file.create_dataset("fields", (2,), np.dtype([("a", "i4"), ("b", h5py.string_dtype())]))
        file["null"] = h5py.Empty("f4")
        file.create_dataset("text", data=["a", "b"], dtype=h5py.string_dtype(), chunks=(1,))
        file["type"] = np.dtype("f8")
    assert "type" not in open_file(path)
    expected = {"references": "references", "lists": "varying length", "fields": "fields with", "null": "no shape"}
    for name, words in (expected | {"text": "in chunks"}).items():
        assert words in error_of(path, name)


def test_text_that_would_fill_memory_is_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["bad"] = np.array(["a" * 100_000, *"b" * 5000], h5py.string_dtype())
    assert "too much at one length" in error_of(path)


def test_text_that_is_not_what_it_says_is_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("bad", data=np.array([b"\xff\xfe"], h5py.string_dtype("utf-8", 2)))
        file.create_dataset("long", data=np.array([b"abcd"], h5py.string_dtype("utf-8", 4))).attrs["dtype"] = np.bytes_(
            "<U2"
        )
    assert "claims to be UTF-8" in error_of(path)
    assert "longer text than it says" in error_of(path, "long")


def test_what_fills_all_memory_is_refused_by_its_header(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("bad", (1 << 40,), "f8", chunks=(1 << 20,))
        file.create_dataset("overflow", (1 << 40, 1 << 40), "f8", chunks=(1, 1 << 20))
        file.create_dataset("chunk", (10,), "f8", chunks=(1 << 28,), maxshape=(None,), compression="gzip")
        file.create_dataset("contiguous", (1 << 40,), "f8")
    assert "claims 8796093022208 bytes" in error_of(path)
    assert "more bytes than there are addresses" in error_of(path, "overflow")
    assert "claims chunks of 2147483648 bytes" in error_of(path, "chunk")
    assert "claims 8796093022208 bytes" in error_of(path, "contiguous")


@pytest.mark.parametrize("chunk", ["bomb", "short", "junk"])
def test_chunks_that_unpack_to_another_size_are_refused(chunk: str, path: Path) -> None:
    import zlib

    raw = {"bomb": zlib.compress(bytes(50 << 20)), "short": zlib.compress(bytes(100)), "junk": b"\x78\x9cjunk"}[chunk]
    with h5py.File(path, "a") as file:
        file.create_dataset("bad", (64, 256), "f8", chunks=(64, 256), compression="gzip")
        file["bad"].id.write_direct_chunk((0, 0), raw)
    assert "another size" in error_of(path) or chunk == "junk"


def test_never_written_without_a_fill_value_is_an_error(path: Path) -> None:
    with h5py.File(path, "a") as file:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((2,))
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        file.create_dataset("fine2", (4,), "f8", chunks=(2,))
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, space, how)
    arrays = open_file(path)
    assert arrays["fine2"].read().tolist() == [0] * 4
    assert arrays["x"].read().tolist() == [0] * 4  # a fill value of zero is HDF5's default


def test_a_filter_that_nobody_has_is_named(path: Path) -> None:
    with h5py.File(path, "a") as file:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((2,))
        how.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"bad", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((4,)), how)
    assert "filter 32099" in error_of(path)


def test_a_file_that_was_cut_is_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("x", data=np.arange(1000.0), chunks=(100,))
    raw = path.read_bytes()
    for end in (0, 7, 100, 600, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(nd.FormatError):
            open_file(path, format="h5")


def test_a_file_cut_after_its_header_was_read_is_an_error(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("x", data=np.zeros((256, 256)), chunks=(128, 128))
    array = open_file(path)["x"]
    os.truncate(path, 3000)
    with pytest.raises(nd.FormatError, match="ends before its array"):
        array.read()


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"PK\x03\x04" + bytes(2000))
    with pytest.raises(nd.FormatError, match="cannot be read by HDF5"):
        nd.read(tmp_path / "a.h5")


FLIP = """
import sys, random, resource, pathlib, numpy as np, ndtorch as nd
from ndtorch.files import open_file
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
path = pathlib.Path(sys.argv[1])
raw, dice = path.read_bytes(), random.Random(int(sys.argv[2]))
for turn in range(150):
    bad = bytearray(raw)
    for _ in range(dice.choice([1, 1, 2, 8])):
        bad[dice.randrange(len(bad))] = dice.choice([0, 1, 0x7f, 0xff, dice.randrange(256)])
    path.write_bytes(bad)
    try:
        arrays = open_file(path)
    except nd.NdtorchError:
        continue
    for array in arrays.values():
        try:
            if array.nbytes < 1 << 24:
                array.read()
        except nd.NdtorchError:
            pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_flipped_bytes_are_errors_of_ours_or_other_values(seed: int, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(5)
        file["g/t"] = np.array(["a", "bc"], h5py.string_dtype())
        file.create_dataset("c", data=np.ones((20, 20)), chunks=(7, 7), compression="gzip")
        file["g/soft"] = h5py.SoftLink("/x")
        file["r"] = np.ones(2, [("a", "i4"), ("b", "S3")])
    command = [sys.executable, "-c", FLIP, str(tmp_path / "a.h5"), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
