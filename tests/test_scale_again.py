"""A conversion that is done again after what it is made of has changed: nothing stays that is not true any more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import ndtorch as nd
from ndtorch import FormatError, UnsupportedDtypeError, UnsupportedTypeError
from ndtorch.scale import units
from ndtorch.scale.outputs import Scratch

pytestmark = pytest.mark.once


@pytest.fixture
def source(tmp_path) -> Path:
    """Six files of two rows, two of which make a unit."""
    folder = tmp_path / "src"
    folder.mkdir()
    for n in range(6):
        np.save(folder / f"{n}.npy", np.arange(n * 6, n * 6 + 6, dtype=np.float32).reshape(2, 3))
    return folder


@pytest.fixture(autouse=True)
def _two_files_a_unit(monkeypatch) -> None:
    monkeypatch.setattr(units.units_of, "__kwdefaults__", {"nbytes": 1 << 20, "count": 2})


def killed_before_it_publishes(*arguments: object, **options: object) -> None:
    child = os.fork()
    if not child:
        Scratch._rename = lambda *_: os._exit(9)  # type: ignore[method-assign]
        try:
            nd.convert_many(*arguments, **options)  # type: ignore[arg-type]
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("longer", range(6))  # what is announced has another name, before or after what was entered
def test_an_output_whose_source_has_gone_goes_after_a_kill_too(longer, source, tmp_path):
    options = {"shard_size": None, "to": "npy", "engine": "threads", "workers": 1}
    out = tmp_path / "out"
    nd.convert_many(source, out, **options)
    np.save(source / "5.npy", np.zeros((3 + longer, 3)))
    killed_before_it_publishes(source, out, **options)
    (source / "5.npy").unlink()
    nd.convert_many(source, out, **options)
    assert list(nd.read(out)) == list("01234")


@pytest.mark.parametrize("engine", ["threads", "local"])
def test_rows_of_another_shape_in_the_first_file_have_all_units_done_again(engine, source, tmp_path):
    assert nd.convert_many(source, tmp_path / "out", on_error="skip").rows == 12
    np.save(source / "0.npy", np.ones((2, 4), np.float32))
    for _ in range(2):
        done = nd.convert_many(source, tmp_path / "out", on_error="skip", engine=engine)
        assert (done.rows, len(done.failures)) == (2, 5)
        assert nd.read(tmp_path / "out")["data"].shape == (2, 4)
    for n in range(1, 6):
        np.save(source / f"{n}.npy", np.ones((2, 4), np.float32))
    assert nd.convert_many(source, tmp_path / "out").rows == 12


def test_a_chunk_of_a_store_is_seen_to_have_changed_whatever_its_time(tmp_path):
    store = tmp_path / "x.zarr"
    array = zarr.create_array(store, shape=(8,), chunks=(2,), dtype="i4", compressors=None)
    array[:] = np.arange(8)
    for number in range(4):  # the clock of a file system may stand still while all are written
        os.utime(store / "c" / str(number), ns=(number, number))
    assert nd.convert_many(store, tmp_path / "out").converted == 1
    assert nd.convert_many(store, tmp_path / "out").skipped == 1
    os.rename(store / "c" / "0", store / "c" / "x")
    os.rename(store / "c" / "1", store / "c" / "0")
    os.rename(store / "c" / "x", store / "c" / "1")
    assert nd.convert_many(store, tmp_path / "out").converted == 1
    assert nd.read(tmp_path / "out", to="numpy")["data"][:].tolist() == [2, 3, 0, 1, 4, 5, 6, 7]
    (store / "c" / "3").write_bytes(np.array([9, 9], "<i4").tobytes())
    os.utime(store / "c" / "3", ns=(1, 1))
    assert nd.convert_many(store, tmp_path / "out").converted == 1
    assert nd.read(tmp_path / "out", to="numpy")["data"][-1].item() == 9


def test_a_file_that_is_too_large_for_the_system_is_no_fault_of_the_sources(source, tmp_path, monkeypatch):
    def too_large(*_: object, **__: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr("ndtorch.files.safetensors.write", too_large)
    with pytest.raises(OSError, match="too large"):
        nd.convert_many(source, tmp_path / "out", on_error="skip", engine="threads")


def test_an_array_that_the_format_of_the_outputs_cannot_hold_is_named_or_left_out(tmp_path):
    (tmp_path / "txt").mkdir()
    np.savez(tmp_path / "txt" / "a.npz", t=np.array(["ab", "c"]), x=np.arange(2))
    np.savez(tmp_path / "txt" / "b.npz", x=np.arange(2))
    options = {"shard_size": None, "to": "safetensors"}
    with pytest.raises(UnsupportedTypeError, match=r"a\.npz.*cannot write 't'"):
        nd.convert_many(tmp_path / "txt", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    done = nd.convert_many(tmp_path / "txt", tmp_path / "out", on_error="skip", **options)
    assert [Path(one.path).name for one in done.failures] == ["a.npz"]
    assert list(nd.read(tmp_path / "out")) == ["b/x"]


@pytest.mark.parametrize("shard_size", ["1MB", None])
def test_a_rank_that_comes_last_does_not_wait_for_others(shard_size, source, tmp_path):
    options = {"shard_size": shard_size, "to": "npy", "world_size": 3}
    said = [str(nd.convert_many(source, tmp_path / "out", rank=rank, **options)) for rank in (1, 0, 2)]
    assert ["other ranks have units to do" in each for each in said] == [True, True, False]


def test_fields_that_lie_in_no_order_are_named(tmp_path):
    odd = np.dtype({"names": ["b", "a"], "formats": ["<i4", ">f4"], "offsets": [8, 0], "itemsize": 20})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros(4, odd)
    for shard_size in "1MB", None:
        with pytest.raises(UnsupportedDtypeError, match=r"x\.h5.*not in the order in which they lie"):
            nd.convert_many(tmp_path / "x.h5", tmp_path / "out", to="npy", shard_size=shard_size)
    with pytest.raises(UnsupportedDtypeError, match="repack_fields"):
        nd.write(tmp_path / "x.npy", np.zeros(4, odd))


@pytest.mark.parametrize(("name", "to"), [("\udcff", "safetensors"), ("a\0b", "zarr"), ("a//b", "npy")])
def test_a_name_that_no_index_can_have_is_refused_before_anything_is_written(name, to, source, tmp_path):
    with pytest.raises(FormatError, match="array"):
        nd.convert_many(source, tmp_path / "out", name=name, to=to)
    assert not (tmp_path / "out").exists()


def test_titles_of_fields_are_kept(tmp_path):
    np.save(tmp_path / "t.npy", np.array([(1,), (2,)], [(("title", "n"), "<i4")]))
    nd.convert_many(tmp_path / "t.npy", tmp_path / "out", to="npy")
    array = nd.read(tmp_path / "out", to="numpy")["data"][:]
    assert array["n"].tolist() == [1, 2]
    assert array.dtype.fields["n"][2] == "title"


@pytest.mark.parametrize("option", ["dtype", "float_dtype"])
@pytest.mark.parametrize("shard_size", ["1MB", None])
def test_every_word_for_float64_casts(option, shard_size, source, tmp_path):
    for number, dtype in enumerate(("float64", np.float64, np.dtype("f8"), float)):
        out = tmp_path / str(number)
        nd.convert_many(source, out, shard_size=shard_size, **{option: dtype})
        assert {array.dtype for array in nd.read(out, to="numpy").values()} == {np.dtype("f8")}
