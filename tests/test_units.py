"""Units: the same sources give the same tasks, whoever cuts them; what has changed since is noticed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndtorch import FormatError
from ndtorch._errors import InvalidOptionError
from ndtorch._pairs import Source, find_sources
from ndtorch.scale.sizes import nbytes_of
from ndtorch.scale.units import SourceFile, Unit, changed_files, source_files, units_of


def files_of(*sizes: int) -> list[SourceFile]:
    return [SourceFile(f"/x/{n:04d}.npy", f"{n:04d}.npy", nbytes, "1") for n, nbytes in enumerate(sizes)]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 60), st.integers(1, 9))
def test_units_hold_every_file_once_in_order_and_none_is_too_large_that_could_be_smaller(sizes, nbytes, count):
    files = files_of(*sizes)
    units = list(units_of(files, nbytes=nbytes, count=count))
    assert [file for unit in units for file in unit.files] == files
    assert [unit.number for unit in units] == list(range(len(units)))
    assert all(unit.nbytes <= nbytes or len(unit.files) == 1 for unit in units)
    assert all(len(unit.files) <= count for unit in units)


def test_the_key_of_a_unit_depends_on_every_file_and_every_option():
    files = files_of(1, 2, 3)
    keys = {Unit(0, tuple(files)).key("a"), Unit(0, tuple(files)).key("b"), Unit(0, tuple(files[:2])).key("a")}
    for change in ({"path": "/y"}, {"name": "y"}, {"nbytes": 9}, {"stamp": "2"}):
        keys.add(Unit(0, (*files[:2], files[2]._replace(**change))).key("a"))
    assert len(keys) == 7
    assert Unit(0, tuple(files)).key("a") == Unit(5, tuple(files_of(1, 2, 3))).key("a")


def test_sources_are_in_the_order_of_their_names_however_they_were_found(tmp_path):
    for name in ("b.npy", "a/z.npy", "10.npy", "9.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.zeros(2))
    found = find_sources([tmp_path])
    names = [file.name for file in source_files(found)]
    assert names == [file.name for file in source_files(found[::-1])] == ["10.npy", "9.npy", "a/z.npy", "b.npy"]


def test_a_file_that_was_replaced_grew_or_went_has_changed(tmp_path):
    paths = [tmp_path / f"{n}.npy" for n in range(4)]
    for path in paths:
        np.save(path, np.zeros(2))
    files = source_files([Source(str(path), path.name) for path in paths])
    assert changed_files(files) == []
    np.save(paths[0], np.zeros(3))
    os.utime(paths[1], ns=(5, 5))
    paths[2].unlink()
    assert changed_files(files) == files[:3]


def test_a_zarr_store_has_changed_where_a_chunk_has(tmp_path):
    zarr = pytest.importorskip("zarr", reason="needs zarr")
    array = zarr.create_array(tmp_path / "a.zarr", shape=(4,), chunks=(2,), dtype="int32")
    array[...] = 1
    (file,) = source_files([Source(str(tmp_path / "a.zarr"), "a.zarr")])
    assert changed_files([file]) == []
    (tmp_path / "a.zarr" / "c" / "0").unlink()
    assert changed_files([file]) == [file]


def test_sizes_are_read_as_people_write_them():
    assert [nbytes_of(text) for text in ("256MB", "1 KiB", "2.5k" + "B", "7", 9)] == [256_000_000, 1024, 2500, 7, 9]
    for text in ("", "MB", "-1", "3 XB", "0", "1e9"):
        with pytest.raises(InvalidOptionError, match="is no size"):
            nbytes_of(text)


def test_a_source_that_is_missing_is_an_error():
    with pytest.raises((FormatError, FileNotFoundError)):
        source_files([Source("/nowhere/x.npy", "x.npy")])
