"""Shards: rows of any mix of files, cut anywhere, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import zarr
from comparison import assert_same
from hypothesis import given
from hypothesis import strategies as st
from isal.isal_zlib import crc32
from PIL import Image

import ndtorch as nd
from ndtorch import FormatError, LossyCastError, NdtorchError, UnsupportedTypeError
from ndtorch._pairs import find_sources
from ndtorch._write import Casts
from ndtorch.scale import convert_many, units
from ndtorch.scale.copies import LEDGER, FileWork, check_outputs, output_of
from ndtorch.scale.ledger import Ledger
from ndtorch.scale.places import place_at
from ndtorch.scale.rows import Reading
from ndtorch.scale.units import Unit, source_files, units_of
from ndtorch.scale.work import ShardWork

FORMATS = ("safetensors", "npy", "zarr")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def data_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array[...] for name, array in nd.read(folder, to="numpy").items()}


def outputs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in (".ndtorch", "index.json"))


def save_zarr(path: Path, rows: np.ndarray) -> None:
    group = zarr.create_group(path)
    group.create_array("x", shape=rows.shape, chunks=(2, *rows.shape[1:]), dtype=rows.dtype)[...] = rows


def save_h5(path: Path, rows: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = rows


SAVED_AS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "npy": np.save,
    "npz": lambda path, rows: np.savez(path, x=rows),
    "packed.npz": lambda path, rows: np.savez_compressed(path, x=rows),
    "safetensors": lambda path, rows: safetensors.numpy.save_file({"x": rows.copy()}, path),
    "pt": lambda path, rows: torch.save({"x": torch.from_numpy(rows.copy())}, path),
    "h5": save_h5,
    "zarr": save_zarr,
}


@pytest.mark.parametrize("to", FORMATS)
def test_files_of_every_format_are_rows_of_one_table(tmp_path, to):
    (tmp_path / "src").mkdir()
    rows = numbers(len(SAVED_AS) * 3, 4)
    for n, (suffix, save) in enumerate(SAVED_AS.items()):
        save(tmp_path / "src" / f"{n}.{suffix}", rows[3 * n : 3 * n + 3])
    found = convert_many(tmp_path / "src", tmp_path / "out", to=to, shard_size=100, name="x", verify=True)
    assert found.rows == len(rows)
    assert_same(data_of(tmp_path / "out"), {"x": rows})


@pytest.mark.once
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.integers(1, 400),
    st.sampled_from(FORMATS),
    st.sampled_from(["<f4", ">f4"]),
    st.booleans(),
)
def test_any_cut_of_the_rows_is_the_concatenation(tmp_path_factory, lengths, shard_nbytes, to, dtype, is_fortran):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "src").mkdir()
    arrays = [numbers(length, 2, 3, seed=n).astype(dtype) for n, length in enumerate(lengths)]
    for n, array in enumerate(arrays):
        np.save(folder / "src" / f"{n}.npy", np.asfortranarray(array) if is_fortran and n % 2 else array)
    files = source_files([units.Source(str(folder / "src" / f"{n}.npy"), f"{n}.npy") for n in range(len(arrays))])
    expected = np.concatenate(arrays).astype(np.float32)
    convert_many(folder / "src", folder / "out", to=to, shard_size=shard_nbytes)
    assert len(files) == len(arrays)
    assert_same(data_of(folder / "out"), {"data": expected})
    index = json.loads((folder / "out" / "index.json").read_bytes())
    limit = max(shard_nbytes // 24, 1)
    assert all(0 < rows <= limit for rows in index["shards"]["rows"])


def test_units_that_split_the_files_do_not_change_the_rows(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    rows = numbers(40, 3)
    for n in range(20):
        np.save(tmp_path / "src" / f"{n:02d}.npy", rows[2 * n : 2 * n + 2])
    monkeypatch.setattr(units.units_of, "__kwdefaults__", {"nbytes": 1 << 20, "count": 3})
    found = convert_many(tmp_path / "src", tmp_path / "out", shard_size=30)
    assert found.units == 7
    assert_same(data_of(tmp_path / "out"), {"data": rows})
    assert outputs_in(tmp_path / "out")[:4] == [
        "000000-000.safetensors",
        "000000-001.safetensors",
        "000000-002.safetensors",
        "000001-000.safetensors",
    ]


def test_several_arrays_of_rows_of_different_sizes_stay_together(tmp_path):
    (tmp_path / "src").mkdir()
    table = {"image": numbers(30, 8, 8), "label": np.arange(30), "small": np.arange(30).astype(ml_dtypes.bfloat16)}
    for n in range(3):
        part = {name: rows[10 * n : 10 * n + 10] for name, rows in table.items()}
        safetensors.numpy.save_file(
            {k: np.ascontiguousarray(v) for k, v in part.items()}, tmp_path / f"src/{n}.safetensors"
        )
    convert_many(tmp_path / "src", tmp_path / "out", shard_size=1000, verify=True)
    found = data_of(tmp_path / "out")
    assert_same({name: found[name] for name in table}, table)


@pytest.mark.parametrize("to", ["npy", "zarr"])
def test_text_and_fields_go_where_they_can_be(tmp_path, to):
    (tmp_path / "src").mkdir()
    words = np.array(["Ada", "Bo", "Cy", ""])
    np.save(tmp_path / "src" / "0.npy", words[:1])
    np.save(tmp_path / "src" / "1.npy", words[1:].astype(">U3"))
    convert_many(tmp_path / "src", tmp_path / "out", to=to)
    assert_same(data_of(tmp_path / "out"), {"data": words})
    with pytest.raises(UnsupportedTypeError, match="holds numbers only"):
        convert_many(tmp_path / "src", tmp_path / "numbers")
    assert not (tmp_path / "numbers" / "000000-000.safetensors").exists()


def test_records_keep_their_fields(tmp_path):
    (tmp_path / "src").mkdir()
    records = np.zeros(5, [("id", ">i2"), ("at", "<f8", 3)])
    records["id"], records["at"] = range(5), numbers(5, 3)
    np.save(tmp_path / "src" / "0.npy", records[:2])
    np.save(tmp_path / "src" / "1.npy", records[2:])
    convert_many(tmp_path / "src", tmp_path / "out", to="npy", shard_size=60)
    found = data_of(tmp_path / "out")["data"]
    assert_same(found["id"].astype(">i2"), np.ascontiguousarray(records["id"]))
    assert_same(np.ascontiguousarray(found["at"]), np.ascontiguousarray(records["at"]))


def test_rows_of_no_bytes_and_files_of_no_rows_are_counted(tmp_path):
    (tmp_path / "src").mkdir()
    for n, length in enumerate((0, 3, 0)):
        np.save(tmp_path / "src" / f"{n}.npy", np.zeros((length, 0)))
    assert convert_many(tmp_path / "src", tmp_path / "out").rows == 3
    assert data_of(tmp_path / "out")["data"].shape == (3, 0)
    np.save(tmp_path / "src" / "1.npy", np.zeros((0, 0)))
    assert convert_many(tmp_path / "src", tmp_path / "none").rows == 0
    assert data_of(tmp_path / "none")["data"].shape == (0, 0)


def test_pictures_are_one_row_each(tmp_path):
    (tmp_path / "src").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    for n, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "src" / f"{n}.png")
    convert_many(tmp_path / "src", tmp_path / "out", name="image")
    assert_same(data_of(tmp_path / "out"), {"image": pixels})


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_files_can_be_rows_themselves(tmp_path, shape):
    (tmp_path / "src").mkdir()
    samples = numbers(4, *shape)
    for n, one in enumerate(samples):
        np.save(tmp_path / "src" / f"{n}.npy", np.asfortranarray(one) if n == 2 and len(shape) > 1 else one)
    convert_many(tmp_path / "src", tmp_path / "out", rows="files", shard_size=24)
    assert_same(data_of(tmp_path / "out"), {"data": samples})


def test_casts_are_part_of_it(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(5):
        np.save(tmp_path / "src" / f"{n}.npy", np.full((2, 2), n + 0.5))
    np.save(tmp_path / "src" / "5.npy", np.full((3, 2), 5.5, np.float32))
    convert_many(tmp_path / "src", tmp_path / "out", float_dtype="float16", verify=True)
    assert_same(data_of(tmp_path / "out")["data"][:, 0], np.repeat(np.arange(6) + 0.5, [2] * 5 + [3]).astype("f2"))


def test_several_arrays_are_not_one_npy_and_the_error_says_what_is(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.zeros(2))
    with pytest.raises(FormatError, match=r"one array, not 2.*safetensors"):
        convert_many(tmp_path / "a.npz", tmp_path / "out", to="npy")


def test_arrays_of_several_lengths_are_no_table(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.zeros(3))
    with pytest.raises(FormatError, match=r"a.npz' is no table: it has 'x' 2 rows, 'y' 3 rows.*rows='files'"):
        convert_many(tmp_path / "a.npz", tmp_path / "out")


def test_checksums_are_those_of_the_bytes_on_the_disk(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbers(9, 2), y=np.arange(9))
    for to in ("safetensors", "zarr"):
        convert_many(tmp_path / "a.npz", tmp_path / to, to=to, shard_size=70)
        shards = json.loads((tmp_path / to / "index.json").read_bytes())["shards"]
        start = 0
        for name, rows, crc, x in zip(
            shards["name"], shards["rows"], shards["crc32"], shards["arrays"]["x"], strict=True
        ):
            path = tmp_path / to / name
            files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            assert crc == crc32(b"".join(each.read_bytes() for each in files))
            assert x == crc32(numbers(9, 2)[start : start + rows].tobytes())
            start += rows


# --- what is broken


def spoiled(folder: Path) -> dict[str, str]:
    """Nine files of rows of which some are broken; say which."""
    folder.mkdir()
    for n in range(9):
        np.save(folder / f"{n}.npy", numbers(4, 6, seed=n))
    raw = (folder / "1.npy").read_bytes()
    (folder / "1.npy").write_bytes(raw[:-1])
    np.save(folder / "3.npy", numbers(4, 7))
    (folder / "5.npy").write_bytes(b"")
    np.savez(folder / "7.npz", data=numbers(4, 6, seed=7))
    (folder / "7.npy").unlink()
    with zipfile.ZipFile(folder / "7.npz") as archive:
        at = archive.getinfo("data.npy").header_offset + 200
    spoilt = bytearray((folder / "7.npz").read_bytes())
    spoilt[at] ^= 1
    (folder / "7.npz").write_bytes(spoilt)
    return {"1.npy": "ends before", "3.npy": "other rows", "5.npy": "empty", "7.npz": "damaged"}


def test_broken_files_are_named_and_the_rest_goes_on(tmp_path):
    broken = spoiled(tmp_path / "src")
    found = convert_many(tmp_path / "src", tmp_path / "out", shard_size=100, on_error="skip")
    told = {os.path.basename(failure.path): failure.reason for failure in found.failures}
    assert set(told) == set(broken)
    assert all(words in told[name] for name, words in broken.items())
    expected = np.concatenate([numbers(4, 6, seed=n) for n in (0, 2, 4, 6, 8)])
    assert_same(data_of(tmp_path / "out"), {"data": expected})


def test_a_broken_file_stops_the_unit_and_nothing_of_it_is_published(tmp_path):
    spoiled(tmp_path / "src")
    with pytest.raises(NdtorchError, match=r"3\.npy' has other rows than the first file"):  # headers tell, at once
        convert_many(tmp_path / "src", tmp_path / "out", shard_size=100)
    assert not (tmp_path / "out").exists()
    (tmp_path / "src" / "3.npy").unlink()
    with pytest.raises(NdtorchError, match=r"1\.npy"):
        convert_many(tmp_path / "src", tmp_path / "out", shard_size=100)
    assert outputs_in(tmp_path / "out") == []
    assert not (tmp_path / "out" / "index.json").exists()
    assert list((tmp_path / "out" / ".ndtorch" / "new").iterdir()) == []


def test_a_missing_chunk_is_an_error_and_no_zeros(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(2):
        save_zarr(tmp_path / "src" / f"{n}.zarr", numbers(6, 2, seed=n))
    (tmp_path / "src" / "1.zarr" / "x" / "c" / "1" / "0").unlink()
    with pytest.raises(FormatError, match=r"1 of its 3 chunks, such as 'c/1/0', are missing"):
        convert_many(tmp_path / "src", tmp_path / "out")
    found = convert_many(tmp_path / "src", tmp_path / "out", on_error="skip")
    assert [os.path.basename(failure.path) for failure in found.failures] == ["1.zarr"]
    assert_same(data_of(tmp_path / "out"), {"x": numbers(6, 2)})


def test_a_value_that_a_cast_would_lose_is_told_with_its_file(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(4):
        np.save(tmp_path / "src" / f"{n}.npy", np.full((2, 2), 0.5 if n != 2 else 0.1))
    options: dict[str, Any] = {"float_dtype": "float32", "casting": "exact"}
    with pytest.raises(LossyCastError, match=r"2\.npy"):
        convert_many(tmp_path / "src", tmp_path / "out", **options)
    found = convert_many(tmp_path / "src", tmp_path / "out", on_error="skip", **options)
    assert [os.path.basename(failure.path) for failure in found.failures] == ["2.npy"]
    assert found.rows == 6


def work_on(folder: Path, target: Path, **options: Any) -> tuple[ShardWork, Unit]:
    files = source_files([units.Source(str(path), path.name) for path in sorted(folder.iterdir())])
    schema = {"data": ("float32", (6,))}
    (unit,) = units_of(files)
    return ShardWork(str(target), "safetensors", 1 << 20, Reading(Casts()), schema, "", **options), unit


def test_a_file_that_changes_between_listing_and_reading_is_told(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(3):
        np.save(tmp_path / "src" / f"{n}.npy", numbers(4, 6, seed=n))
    work, unit = work_on(tmp_path / "src", tmp_path / "out")
    np.save(tmp_path / "src" / "1.npy", numbers(4, 6, seed=9))
    os.utime(tmp_path / "src" / "1.npy", ns=(7, 7))
    with pytest.raises(FormatError, match=r"1\.npy' has changed since it was listed"):
        work(unit)
    assert outputs_in(tmp_path / "out") == []
    work, _ = work_on(tmp_path / "src", tmp_path / "out", skips=True)
    entry = work(unit)
    assert [os.path.basename(failure.path) for failure in entry.failures] == ["1.npy"]
    assert entry.outputs[0].rows == 8


def test_an_output_that_cannot_be_written_is_no_fault_of_the_sources(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "0.npy", numbers(4, 6))
    work, unit = work_on(tmp_path / "src", tmp_path / "out", skips=True)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ndtorch.files.safetensors.write", full)
    with pytest.raises(OSError, match="No space left"):
        work(unit)
    assert list((tmp_path / "out" / ".ndtorch" / "new").iterdir()) == []


def test_a_publication_that_fails_takes_back_what_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "0.npy", numbers(4, 6))
    work, unit = work_on(tmp_path / "src", tmp_path / "out")
    replace, calls = os.replace, []

    def once(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(OSError, match="Input/output"):
        ShardWork(work.target, work.format, 24, work.reading, work.schema, "")(unit)
    assert len(calls) == 2
    assert outputs_in(tmp_path / "out") == []


def test_litter_of_a_killed_run_goes_and_that_of_a_living_one_stays(tmp_path):
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "0.npy", numbers(4, 6))
    new = tmp_path / "out" / ".ndtorch" / "new"
    for name in ("dead", "living"):
        (new / f".ndtorch-{name}.tmp").mkdir(parents=True)
        (new / f".ndtorch-{name}.tmp" / "0.safetensors").write_bytes(b"half")
    descriptor = os.open(new / ".ndtorch-living.tmp", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        work, unit = work_on(tmp_path / "src", tmp_path / "out")
        work(unit)
        assert [path.name for path in new.iterdir()] == [".ndtorch-living.tmp"]
    finally:
        os.close(descriptor)


# --- one output for each source


def files_work(target: Path, **options: Any) -> FileWork:
    return FileWork(str(target), "safetensors", Reading(options.pop("casts", Casts())), "", **options)


def test_every_source_becomes_an_output_named_as_the_command_names_it(tmp_path):
    (tmp_path / "src" / "deep").mkdir(parents=True)
    expected = {}
    for n in range(6):
        name = f"{'deep/' if n % 2 else ''}{n}"
        expected[name] = numbers(3, 2, seed=n)
        np.save(tmp_path / "src" / f"{name}.npy", expected[name])
    np.savez(tmp_path / "src" / "many.npz", a=np.arange(3), b=np.zeros(()))
    (unit,) = units_of(source_files(find_sources([tmp_path / "src"])))
    entry = files_work(tmp_path / "out")(unit)
    assert sorted(output.name for output in entry.outputs) == sorted(
        [*(f"{name}.safetensors" for name in expected), "many.safetensors"]
    )
    for name, array in expected.items():
        assert_same(
            safetensors.numpy.load_file(tmp_path / "out" / f"{name}.safetensors"), {name.rpartition("/")[2]: array}
        )
    for output in entry.outputs:
        raw = (tmp_path / "out" / output.name).read_bytes()
        assert (len(raw), crc32(raw)) == (output.nbytes, output.crc32)
    assert set(nd.read(tmp_path / "out")) >= {"0/0", "deep/1/1", "many/a"}


def test_of_files_that_cannot_be_converted_the_others_are(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(5):
        np.save(tmp_path / "src" / f"{n}.npy", numbers(3, 2, seed=n))
    np.save(tmp_path / "src" / "2.npy", np.array(["text"]))
    (tmp_path / "src" / "4.npy").write_bytes(b"no array")
    (unit,) = units_of(source_files(find_sources([tmp_path / "src"])))
    with pytest.raises(UnsupportedTypeError, match=r"2\.npy"):
        files_work(tmp_path / "out")(unit)
    assert outputs_in(tmp_path / "out") == []
    entry = files_work(tmp_path / "out", skips=True)(unit)
    assert [os.path.basename(failure.path) for failure in entry.failures] == ["2.npy", "4.npy"]
    assert outputs_in(tmp_path / "out") == ["0.safetensors", "1.safetensors", "3.safetensors"]


def test_two_sources_that_would_be_one_output_are_refused(tmp_path):
    files = [units.SourceFile("/a/x.npy", "x.npy", 1, ""), units.SourceFile("/a/x.npz", "x.npz", 1, "")]
    format = nd.files.format_to_write("", "safetensors")
    assert output_of(files[0], format) == "x.safetensors"
    with pytest.raises(FormatError, match=r"would both become 'x\.safetensors'"):
        check_outputs(files, format, place_at(str(tmp_path)))


def test_an_output_that_somebody_else_has_made_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    files = [units.SourceFile("/a/x.npy", "x.npy", 1, "")]
    format, place = nd.files.format_to_write("", "safetensors"), place_at(str(tmp_path))
    with pytest.raises(FormatError, match=r"exists, and no conversion of this folder has made it"):
        check_outputs(files, format, place)
    check_outputs(files, format, place, overwrite=True)


def test_a_ledger_of_files_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(6):
        np.save(tmp_path / "src" / f"{n}.npy", numbers(3, 2, seed=n))
    found = list(units_of(source_files(find_sources([tmp_path / "src"])), count=2))
    work, place = files_work(tmp_path / "out"), place_at(str(tmp_path / "out"))
    ledger = Ledger(place, "", LEDGER)
    assert ledger.begin(found) == set()
    for unit in found[:2]:
        ledger.enter(unit, work(unit))
    again = Ledger(place, "", LEDGER)
    assert again.begin(found) == {0, 1}
    (tmp_path / "out" / "1.safetensors").unlink()
    assert Ledger(place, "", LEDGER).begin(found) == {1}
