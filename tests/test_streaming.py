"""Streams: files far larger than the memory they take, columns into rows, a full disk before a byte is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd
from ndtorch import _native, files
from ndtorch.files import arrays, output

pytestmark = pytest.mark.once

ROWS = 1000
LIMIT = 220  # MB beyond what the interpreter takes with ndtorch and torch loaded; the file has 610

PEAK = """
import sys
import ndtorch as nd

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

convert = nd.convert_file  # loads torch
before = peak()
convert({source!r}, {target!r}, **{options})
print((peak() - before) >> 10)
"""


def sparse_npy(path: Path, dtype: str, shape: tuple[int, ...], *, fortran: bool) -> Path:
    """A file of zeros that takes no room on the disk."""
    claims = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": fortran, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, claims)
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is told by /proc alone")
@pytest.mark.parametrize(
    ("fortran", "suffix", "options"),
    [
        (False, ".safetensors", {}),
        (False, ".safetensors", {"dtype": "float32"}),
        (False, ".npz", {}),
        (True, ".safetensors", {}),
        (True, ".safetensors", {"dtype": "float32"}),
    ],
    ids=["copied", "cast", "npz", "columns", "columns-cast"],
)
def test_a_file_is_converted_in_less_memory_than_it_has_bytes(
    fortran: bool, suffix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    shape = (ROWS, 80_000)
    source = sparse_npy(tmp_path / "a.npy", "float64", shape, fortran=fortran)
    assert source.stat().st_size > 2 * LIMIT << 20
    target = tmp_path / f"b{suffix}"
    script = PEAK.format(source=str(source), target=str(target), options=options)
    took = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert took < LIMIT
    (array,) = files.open_file(target).values()
    assert array.shape == shape
    assert not array.select((slice(0, 1), slice(0, 9))).any()
    target.unlink()  # pytest keeps what is left here


# --- columns and rows


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes small arrays take as many steps as large ones."""
    monkeypatch.setattr(output, "_SLAB", 4096)
    monkeypatch.setattr(output, "_AT_ONCE", 1000)
    monkeypatch.setattr(output, "_WRITTEN_AT_ONCE", 1000)
    monkeypatch.setattr(arrays, "_SLAB", 4096)
    monkeypatch.setattr(arrays, "BLOCK", 1000)


@pytest.mark.usefixtures("in_small_steps")
@pytest.mark.parametrize("shape", [(7, 3000), (3000, 7), (100, 101), (1, 5000), (6, 7, 80), (5, 1, 400)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", ">f8", "complex64", "complex128"])
def test_columns_in_a_file_become_rows_of_another(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    np.save(tmp_path / "a.npy", values)
    seen: list[int] = []
    target = tmp_path / "a.safetensors"
    if dtype == "complex128":
        target = target.with_suffix(".npz")  # safetensors has none of it
    prepared = nd._write.prepare(files.open_file(tmp_path / "a.npy"), nd._write.Casts())
    nd._write.write_prepared(target, files.format_to_write(target), prepared, watch=seen.append)
    assert_same(np.asarray(nd.read(target, to="numpy")["a"]), values.astype(values.dtype.newbyteorder("=")))
    assert sum(seen) == target.stat().st_size


@pytest.mark.usefixtures("in_small_steps")
def test_columns_are_cast_on_their_way_into_rows(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(8000.0).reshape(20, 400))
    nd.write(tmp_path / "a.safetensors", {"x": values}, dtype="float32", verify=True)
    assert_same(nd.read(tmp_path / "a.safetensors")["x"][...], torch.arange(8000.0).reshape(20, 400))


@pytest.mark.usefixtures("in_small_steps")
def test_a_block_is_there_while_the_next_is_made(tmp_path: Path) -> None:
    values = np.arange(5000.0)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", a=values)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        blocks = files.open_file(path)["a"].blocks()
        before = next(blocks)
        found = []
        for block in blocks:
            found.append(before.copy())  # only now: another thread may still be writing it
            before = block
        assert_same(np.concatenate([*found, before]), values)


# --- the disk


def test_a_full_disk_is_found_before_a_byte_is_written(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as file:
        try:
            _native.reserve(file.fileno(), 1 << 50)
        except OSError:
            pass
        else:
            pytest.skip("this file system cannot set space aside")
    np.save(tmp_path / "a.npy", np.arange(3))
    before = (tmp_path / "a.npy").read_bytes()
    too_large = np.broadcast_to(np.uint8(0), (1 << 50,))
    with pytest.raises(OSError, match=r"a\.npy"):
        nd.write(tmp_path / "a.npy", too_large, overwrite=True)
    assert (tmp_path / "a.npy").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "probe"]


def test_space_set_aside_is_not_part_of_the_file(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        _native.reserve(file.fileno(), 1 << 20)
        file.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"


# --- many files into one tensor


def folder_of(path: Path, values: list[Any]) -> Path:
    path.mkdir()
    for i, value in enumerate(values):
        np.save(path / f"{i:03}.npy", value)
    return path


def test_a_folder_of_equal_arrays_is_one_tensor(tmp_path: Path) -> None:
    values = np.arange(200 * 12.0).reshape(200, 3, 4)
    folder = folder_of(tmp_path / "a", list(values))
    assert_same(nd.stack(nd.read(folder).values()), torch.from_numpy(values))
    assert_same(nd.stack([nd.read(path)[path.stem] for path in sorted(folder.iterdir())]), torch.from_numpy(values))


def test_rows_may_differ_in_order_and_header(tmp_path: Path) -> None:
    values = np.arange(30 * 12.0).reshape(30, 3, 4)
    folder = folder_of(
        tmp_path / "a", [np.asfortranarray(each) if i % 7 == 3 else each for i, each in enumerate(values)]
    )
    with (folder / "005.npy").open("wb") as file:
        np.lib.format.write_array(file, values[5], version=(3, 0))
    assert_same(nd.stack(nd.read(folder).values()), torch.from_numpy(values))


def test_rows_of_several_dtypes_are_promoted_as_arrays_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", [np.ones(3, np.float32), np.arange(3), np.ones(3, np.float32)])
    assert_same(nd.stack(nd.read(folder).values()), nd.stack([np.ones(3, np.float32), np.arange(3), np.ones(3, "f4")]))


def test_a_row_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", [np.zeros(3), np.zeros(3), np.zeros(4)])
    with pytest.raises(nd.ShapeMismatchError) as error:
        nd.stack(nd.read(folder).values())
    assert error.value.index == 2
    assert (error.value.expected, error.value.got) == ((3,), (4,))


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty", "folder"])
def test_a_broken_row_is_an_error_that_names_its_file(damage: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", [np.zeros(300)] * 40)
    lazy = nd.read(folder).values()
    broken = folder / "023.npy"
    whole = broken.read_bytes()
    broken.unlink()
    if damage == "folder":
        broken.mkdir()
    elif damage != "missing":
        broken.write_bytes({"truncated": whole[:-1], "longer": whole + b"x", "empty": b""}[damage])
    with pytest.raises(nd.FormatError, match=r"023\.npy"):
        nd.stack(lazy)


def test_rows_of_one_file_are_stacked_too(tmp_path: Path) -> None:
    nd.write(tmp_path / "a.npz", {f"{i}": np.full((2, 3), i) for i in range(5)})
    expected = torch.arange(5).reshape(5, 1, 1).expand(5, 2, 3).contiguous()
    assert_same(nd.stack(nd.read(tmp_path / "a.npz").values()), expected)
