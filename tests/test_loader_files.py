"""A loader over files: every format gives the rows that are in it, and a broken file is an error that names it."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from comparison import assert_same, tensor_holding

import ndtorch as nd
from ndtorch import FormatError, ShapeMismatchError, UnsupportedTypeError

ROWS = 300
X = np.random.default_rng(0).integers(0, 256, (ROWS, 5, 7), dtype=np.uint8)
Y = np.arange(ROWS)
LONG = np.random.default_rng(1).normal(size=(40, 96, 64))  # rows of 48 KB, which are read and not mapped


def write_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return folder


def write_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=X, y=Y)
    return folder / "a.npz"


def write_packed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=X, y=Y)
    return folder / "a.npz"


def write_packed_fortran_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=np.asfortranarray(X), y=Y)
    return folder / "a.npz"


def write_by_name(name: str):
    def write(folder: Path) -> Path:
        nd.write(folder / name, {"x": X, "y": Y})
        return folder / name

    return write


def write_chunked_h5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(32, 5, 7), compression="gzip", shuffle=True)
        file.create_dataset("y", data=Y, chunks=(50,))
    return folder / "a.h5"


def write_large_chunked_h5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(ROWS, 5, 4))
        file.create_dataset("y", data=Y, chunks=(ROWS,), compression="gzip")
    return folder / "a.h5"


def write_zarr(folder: Path) -> Path:
    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("x", data=X, chunks=(64, 3, 7))
    group.create_array("y", data=Y, chunks=(77,))
    return folder / "a.zarr"


WAYS = {
    "npy": write_npy,
    "npz": write_npz,
    "packed npz": write_packed_npz,
    "packed npz by columns": write_packed_fortran_npz,
    "safetensors": write_by_name("a.safetensors"),
    "pt": write_by_name("a.pt"),
    "h5": write_by_name("a.h5"),
    "chunked h5": write_chunked_h5,
    "large chunked h5": write_large_chunked_h5,
    "zarr": write_zarr,
}


def assert_all_rows(loader: nd.Loader, x: np.ndarray = X) -> None:
    """Fail unless every row of the arrays comes once, with its own label, in batches of the right structure."""
    seen = []
    for batch in loader:
        assert set(batch) == {"x", "y"}
        assert batch["y"].dtype == torch.int64
        assert_same(batch["x"], tensor_holding(x[batch["y"].numpy()]))
        seen += batch["y"].tolist()
    assert sorted(seen) == list(range(len(x)))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_format_gives_its_rows_each_with_its_label(way, threads, shuffle, tmp_path):
    path = WAYS[way](tmp_path)
    assert_all_rows(nd.Loader(path, 32, shuffle=shuffle, threads=threads))
    loader = nd.Loader(nd.read(path), 7, shuffle=shuffle, threads=threads)
    assert_all_rows(loader)
    assert_all_rows(loader)


def test_a_path_is_a_dict_by_name_and_an_array_of_it_a_tensor(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (batch,) = nd.Loader(str(tmp_path / "x.npy"), ROWS)
    assert_same(batch, {"x": tensor_holding(X)})
    arrays = nd.read(tmp_path / "x.npy")
    (batch,) = nd.Loader(arrays["x"], ROWS)
    assert_same(batch, tensor_holding(X))
    (batch,) = nd.Loader((arrays["x"], Y), ROWS)
    assert_same(batch, (tensor_holding(X), tensor_holding(Y)))
    (batch,) = nd.Loader({"a": (arrays, Y)}, ROWS)
    assert_same(batch, {"a": ({"x": tensor_holding(X)}, tensor_holding(Y))})


def test_arrays_that_are_asked_for_as_numpys_are_tensors_in_a_batch(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (batch,) = nd.Loader(nd.read(tmp_path / "x.npy", to="numpy")["x"], ROWS)
    assert_same(batch, tensor_holding(X))


AWKWARD = {
    "big-endian": X.astype(">i4"),
    "by columns": np.asfortranarray(X),
    "big-endian by columns": np.asfortranarray(X.astype(">f8")),
    "bfloat16": X.astype(ml_dtypes.bfloat16),
    "complex": X.astype(np.complex64),
    "bool": X > 100,
    "numbers": X[:, 0, 0].astype(np.float32),
    "rows of nothing": X[:, :0],
    "one row": X[:1],
    "long": LONG,
    "long and big-endian": LONG.astype(">f8"),
    "long by columns": np.asfortranarray(LONG),
}


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "h5"])
@pytest.mark.parametrize("kind", AWKWARD)
def test_every_layout_in_a_file_gives_the_rows_of_the_array(kind, suffix, tmp_path):
    array = AWKWARD[kind]
    nd.write(tmp_path / f"a.{suffix}", {"x": array, "y": np.arange(len(array))} if suffix != "npy" else array)
    native = array.astype(array.dtype.newbyteorder("="))
    if suffix == "npy":
        batches = list(nd.Loader(nd.read(tmp_path / "a.npy")["a"], 7))
        assert_same(torch.cat(batches), tensor_holding(native))
    else:
        assert_all_rows(nd.Loader(tmp_path / f"a.{suffix}", 7, shuffle=True), native)


def test_records_become_a_dict_of_their_fields(tmp_path):
    records = np.zeros(ROWS, [("x", "u1", (5, 7)), ("y", ">i8"), ("z", [("a", "f4")])])
    records["x"], records["y"], records["z"]["a"] = X, Y, Y / 2
    np.save(tmp_path / "mapped.npy", records)
    np.savez_compressed(tmp_path / "packed.npz", a=records)
    for lazy in (nd.read(tmp_path / "mapped.npy")["mapped"], nd.read(tmp_path / "packed.npz")["a"]):
        seen = 0
        for batch in nd.Loader(lazy, 32, shuffle=True):
            rows = batch["y"].numpy()
            assert_same(batch["x"], tensor_holding(X[rows]))
            assert_same(batch["z"], {"a": tensor_holding((rows / 2).astype("f4"))})
            seen += len(rows)
        assert seen == ROWS


def test_arrays_of_two_lengths_are_an_error_that_names_both(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y[:-1])
    with pytest.raises(ShapeMismatchError, match=r"data\['y'\] has 299 rows and data\['x'\] has 300"):
        nd.Loader(tmp_path / "a.npz")


def test_an_array_without_rows_is_an_error_that_names_it(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.array(3))
    with pytest.raises(UnsupportedTypeError, match=r"a\.npz' entry 'y\.npy' has no rows") as caught:
        nd.Loader(tmp_path / "a.npz")
    assert caught.value.path == "['y']"


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FormatError, match=r"missing\.npy': no such file"):
        nd.Loader(tmp_path / "missing.npy")


# --- mapped and read


def mappings_of(path: Path) -> list[str]:
    """The access that this process has to the mappings of a file, such as ``r--s``."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if line.endswith(str(path))]


def test_short_rows_are_mapped_for_reading_alone_and_long_rows_are_not_mapped(tmp_path):
    np.save(tmp_path / "short.npy", X)
    np.save(tmp_path / "long.npy", LONG)
    short, long = (nd.Loader(nd.read(tmp_path / f"{name}.npy")[name], 8) for name in ("short", "long"))
    next(iter(short)), next(iter(long))
    assert mappings_of(tmp_path / "short.npy") == ["r--s"]
    assert mappings_of(tmp_path / "long.npy") == []
    del short


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("array", [X, LONG], ids=["mapped", "read"])
def test_a_file_that_is_cut_short_meanwhile_is_an_error_that_names_it_and_the_array(array, threads, tmp_path):
    np.savez(tmp_path / "a.npz", x=array, y=np.arange(len(array)))
    loader = nd.Loader(nd.read(tmp_path / "a.npz")["x"], 4, threads=threads)
    known = {*threading.enumerate()}
    batches = iter(loader)
    next(batches)
    if threads:  # of which one that gathers from a map as it is cut would end the process
        batches.close()
        while any(each.name.startswith("ndtorch-loader") for each in {*threading.enumerate()} - known):
            time.sleep(0.001)
    os.truncate(tmp_path / "a.npz", 4096)
    why = r"a\.npz' entry 'x\.npy' has become shorter than its array; expected \d+ bytes"
    if not threads:
        with pytest.raises(FormatError, match=why):
            list(batches)
    with pytest.raises(FormatError, match=why):
        list(loader)


def test_the_error_for_a_row_that_is_gone_says_which(tmp_path):
    np.save(tmp_path / "a.npy", LONG)
    loader = nd.Loader(nd.read(tmp_path / "a.npy")["a"], len(LONG), threads=0)
    os.truncate(tmp_path / "a.npy", 128 + 17 * LONG[0].nbytes + 5)
    with pytest.raises(FormatError, match="has become shorter") as caught:
        list(loader)
    assert caught.value.index == (17,)
    assert f"at row 17 of {str(tmp_path / 'a.npy')!r}" in caught.value.__notes__


@pytest.mark.parametrize("array", [X, LONG], ids=["mapped", "read"])
def test_a_file_that_is_replaced_or_deleted_meanwhile_gives_what_it_had(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    loader = nd.Loader(nd.read(tmp_path / "a.npy")["a"], 7)
    batches = [next(iter(loader))]
    np.save(tmp_path / "b.npy", np.zeros_like(array))
    os.replace(tmp_path / "b.npy", tmp_path / "a.npy")
    batches = list(loader)
    (tmp_path / "a.npy").unlink()
    assert_same(torch.cat(batches), tensor_holding(array))
    assert_same(torch.cat(list(loader)), tensor_holding(array))


def test_batches_are_memory_of_their_own_and_the_file_stays_as_it_was(tmp_path):
    np.save(tmp_path / "a.npy", X)
    before = (tmp_path / "a.npy").read_bytes()
    for batch in nd.Loader(nd.read(tmp_path / "a.npy")["a"], 7):
        batch.fill_(9)
    assert (tmp_path / "a.npy").read_bytes() == before


# --- a file for each sample


def write_samples(folder: Path, arrays: list[np.ndarray]) -> Path:
    folder.mkdir()
    for i, array in enumerate(arrays):
        np.save(folder / f"{i:04}.npy", array)
    return folder


@pytest.mark.parametrize("threads", [0, 3])
def test_files_of_one_sample_each_are_rows(threads, tmp_path):
    folder = write_samples(tmp_path / "samples", list(X))
    for samples in (nd.read(folder).values(), list(nd.read(folder).values())):
        (whole,) = nd.Loader(samples, ROWS, threads=threads)
        assert_same(whole, tensor_holding(X))
    for x, y in nd.Loader((nd.read(folder).values(), Y), 32, shuffle=True, threads=threads):
        assert_same(x, tensor_holding(X[y.numpy()]))


def test_samples_whose_headers_differ_are_read_all_the_same(tmp_path):
    folder = write_samples(tmp_path / "samples", list(X[:20]))
    np.save(folder / "0003.npy", np.asfortranarray(X[3]))
    with (folder / "0007.npy").open("wb") as file:
        np.lib.format.write_array(file, X[7], version=(2, 0))
    np.savez(folder / "0011.npz", X[11])
    (folder / "0011.npy").unlink()
    (whole,) = nd.Loader([*nd.read(folder).values()], 20)
    assert_same(whole, tensor_holding(X[:20]))


def test_a_list_of_paths_is_told_how_its_files_are_samples(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", X[i])
    with pytest.raises(UnsupportedTypeError, match="a list of paths is not opened") as caught:
        nd.Loader(sorted(tmp_path.glob("*.npy")), 2)
    hint = f"ndtorch.read({str(tmp_path / '*.npy')!r}).values()"
    assert hint in str(caught.value)
    [batch] = nd.Loader(eval(hint, {"ndtorch": nd}), 3)
    assert_same(batch, torch.from_numpy(X[:3]))


@pytest.mark.parametrize("place", ["", "[0]", "['x']"])
def test_a_folder_of_another_length_than_the_labels_is_told_how_its_files_are_samples(place, tmp_path):
    folder = nd.read(write_samples(tmp_path / "samples", list(X[:20])))
    data = {"": {**folder, "labels": Y[:20]}, "[0]": (folder, Y[:20]), "['x']": {"x": folder, "y": Y[:20]}}[place]
    with pytest.raises(ShapeMismatchError, match=r"has 20 rows and data.*\['0000'\] has 5") as caught:
        nd.Loader(data, 4)
    hinted = caught.value.hint == "ndtorch.read(folder).values() takes files as samples"
    assert hinted == bool(place)  # a dict of arrays is no folder any more
    ((x, y),) = nd.Loader((folder.values(), Y[:20]), 20)
    assert_same(x, tensor_holding(X[:20]))
    assert_same(y, tensor_holding(Y[:20]))


@pytest.mark.parametrize("data", [lambda folder: folder, nd.read, lambda folder: (nd.read(folder), Y[:5])])
def test_more_files_alike_than_they_have_rows_are_warned_of_as_samples(data, tmp_path):
    folder = write_samples(tmp_path / "samples", list(X[:33]))
    with pytest.warns(UserWarning, match=r"33 files .* each uint8\[5,7\]\(file\), are .* columns of 5 rows") as caught:
        nd.Loader(data(folder), 4)
    assert "ndtorch.read(folder).values() takes each file for one sample" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_files_that_may_be_columns_are_not_warned_of(tmp_path):
    folder = write_samples(tmp_path / "few", list(X[:32]))
    assert len(nd.Loader(folder, 5)) == 1
    more = write_samples(tmp_path / "more", list(X[:33]))
    assert len(nd.Loader(dict(nd.read(more)), 5)) == 1  # as the warning has it
    assert len(nd.Loader(nd.read(more).values(), 33)) == 1
    long = write_samples(tmp_path / "long", [np.arange(33)] * 33)
    assert len(nd.Loader(long, 33)) == 1
    other = write_samples(tmp_path / "other", [*X[:32], *[np.zeros((5, 2))] * 2])
    assert len(nd.Loader(other, 5)) == 1


def test_a_sample_that_is_missing_is_an_error_that_says_which(tmp_path):
    folder = write_samples(tmp_path / "samples", list(X[:20]))
    loader = nd.Loader(nd.read(folder).values(), 8, threads=0)
    (folder / "0013.npy").unlink()
    batches = iter(loader)
    assert_same(next(batches), tensor_holding(X[:8]))
    with pytest.raises(FormatError, match=r"0013\.npy': no such file") as caught:
        next(batches)
    assert caught.value.index == (13,)
    assert f"at row 13 of {str(folder / '0013.npy')!r}" in caught.value.__notes__


@pytest.mark.parametrize("other", [np.zeros((6, 7), np.uint8), np.zeros((5, 7), np.int8)], ids=["shape", "dtype"])
def test_a_sample_of_another_kind_is_an_error_that_says_which(other, tmp_path):
    folder = write_samples(tmp_path / "samples", list(X[:20]))
    np.save(folder / "0013.npy", other)
    with pytest.raises(
        ShapeMismatchError, match=r"sample 13, .*0013\.npy', is u?int8\[\d,7\] and sample 0 is uint8\[5,7\]"
    ):
        list(nd.Loader(nd.read(folder).values(), 8))


def test_a_sample_that_is_cut_short_is_an_error_that_says_which(tmp_path):
    folder = write_samples(tmp_path / "samples", list(X[:20]))
    os.truncate(folder / "0013.npy", 130)
    with pytest.raises(FormatError, match=r"0013\.npy") as caught:
        list(nd.Loader(nd.read(folder).values(), 8))
    assert caught.value.index == (13,)


@pytest.mark.parametrize("bad", [0, 13])
@pytest.mark.parametrize("suffix", ["npy", "safetensors", "h5", "zarr"])
@pytest.mark.parametrize("kind", ["values", "list", "padded", "inside samples"])
def test_a_sample_that_cannot_be_read_is_an_error_of_the_loader_that_names_file_and_sample(kind, suffix, bad, tmp_path):
    for number in range(20):
        array = {f"{number:04}": X[number]} if suffix in ("safetensors", "h5") else X[number]
        nd.write(tmp_path / f"{number:04}.{suffix}", array)
    samples: Any = nd.read(tmp_path).values()
    if kind in ("list", "inside samples"):
        samples = list(samples) if kind == "list" else [{"x": each} for each in samples]
    path = tmp_path / f"{bad:04}.{suffix}"
    if suffix == "zarr":
        [path] = [each for each in path.rglob("*") if each.is_file() and each.name != "zarr.json"]
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(FormatError, match=rf"^Loader: .*{bad:04}\.{suffix}") as caught:
        list(nd.Loader(samples, 8, **({"pad_value": 0} if kind == "padded" else {})))
    assert caught.value.index == (bad,)
    assert any(note.startswith(f"at row {bad} of ") for note in caught.value.__notes__)


def test_samples_of_different_lengths_are_lists_or_filled_up(tmp_path):
    arrays = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) for n in (3, 1, 0, 2)]
    folder = write_samples(tmp_path / "samples", arrays)
    lists = list(nd.Loader(list(nd.read(folder).values()), 3))
    assert_same(lists, [[tensor_holding(each) for each in part] for part in (arrays[:3], arrays[3:])])
    (padded, lengths), _ = nd.Loader(nd.read(folder).values(), 3, pad_value=-1)
    assert lengths.tolist() == [3, 1, 0]
    assert padded.shape == (3, 3, 2)
    assert_same(padded[1], tensor_holding(np.array([[0, 1], [-1, -1], [-1, -1]], np.float32)))


def test_more_samples_than_files_may_be_held_open(tmp_path):
    folder = write_samples(tmp_path / "samples", list(X))
    samples = list(nd.read(folder).values())
    assert len(samples) > 256
    assert_same(torch.cat(list(nd.Loader(samples, 50))), tensor_holding(X))


# --- elsewhere


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_rows_behind_a_url_are_read_by_ranges(suffix):
    fsspec = pytest.importorskip("fsspec")
    url = f"memory://loader/a.{suffix}"
    with fsspec.open(url, "wb") as file:
        np.save(file, LONG) if suffix == "npy" else np.savez(file, a=LONG)
    loader = nd.Loader(nd.read(url)["a"], 3, shuffle=True, threads=2)
    rows = torch.cat(list(loader)).numpy()
    assert_same(np.sort(rows[:, 0, 0]), np.sort(LONG[:, 0, 0]))
    assert_same(torch.cat(list(nd.Loader(nd.read(url)["a"], 7))), tensor_holding(LONG))


@pytest.mark.parametrize("way", ["npz", "chunked h5", "zarr"])
def test_what_was_read_in_another_process_is_loaded_from_its_reference(way, tmp_path):
    arrays = pickle.loads(pickle.dumps(nd.read(WAYS[way](tmp_path))))
    assert_all_rows(nd.Loader(arrays, 32, shuffle=True))
    assert_all_rows(nd.Loader({name: pickle.loads(pickle.dumps(arrays[name])) for name in arrays}, 32))


@pytest.mark.parametrize("way", WAYS)
def test_a_forked_child_loads_from_the_files_that_its_parent_opened(way, tmp_path):
    loader = nd.Loader(WAYS[way](tmp_path), 16, shuffle=True, threads=2)
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if not child:
        status = 1
        try:
            fresh = nd.Loader(loader_data(loader, tmp_path, way), 16, threads=0)
            assert_all_rows(fresh)
            status = 0
        finally:
            os._exit(status)
    rest = sum(len(batch["y"]) for batch in batches)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert rest == ROWS - 16


def loader_data(loader: nd.Loader, folder: Path, way: str) -> Path:
    """The file again; the parent's loader stays alive, and with it what its threads had in the works."""
    assert loader is not None
    names = {"npy": "", "zarr": "a.zarr", "safetensors": "a.safetensors", "pt": "a.pt"}
    return folder / names.get(way, "a.npz" if "npz" in way else "a.h5")


@pytest.mark.parametrize("kind", ["path", "read", "pattern"])
def test_files_of_other_lengths_are_told_how_to_be_samples(tmp_path, kind):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.zeros((3 + i, 4)))
    data = {"path": tmp_path, "read": nd.read(tmp_path), "pattern": nd.read(f"{tmp_path}/*.npy")}[kind]
    with pytest.raises(nd.ShapeMismatchError, match=r"has 4 rows.*Hint: ndtorch.read\(folder\).values\(\)"):
        nd.Loader(data)
    nd.write(tmp_path / "one.npz", {"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(nd.ShapeMismatchError, match=r"has 4 rows and [^H]*$"):
        nd.Loader(tmp_path / "one.npz")
