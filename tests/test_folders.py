"""Folders and patterns: their files by name, each opened when it is asked for, nothing followed out of the folder."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from comparison import assert_same
from PIL import Image

import ndtorch as nd
from ndtorch.files import folders, open_file

pytestmark = pytest.mark.once


def save(path: Path, *values: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(values, float))
    return path


def names(source: Path | str, **options: str) -> list[str]:
    return list(nd.read(source, **options))


# --- names


def test_files_of_a_folder_are_named_by_their_paths_without_suffix(tmp_path):
    for number, name in enumerate(("b", "a", "train/x", "train/deep/y", "train/deep.r/z.1")):
        save(tmp_path / f"{name}.npy", number)
    found = nd.read(tmp_path, to="numpy")
    assert list(found) == ["a", "b", "train/deep.r/z.1", "train/deep/y", "train/x"]
    assert [float(found[name][0]) for name in found] == [1, 0, 4, 3, 2]
    assert list(found["train"]) == ["deep.r/z.1", "deep/y", "x"]
    assert float(found.nested()["train"]["deep"]["y"][0]) == 3


def test_arrays_of_a_file_that_holds_several_have_its_name_before_theirs(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(2), "b": np.zeros(3)}, tmp_path / "model.safetensors")
    save(tmp_path / "x.npy", 7)
    found = nd.read(tmp_path, to="numpy")
    assert list(found) == ["model/b", "model/w", "x"]
    assert found["model/w"].name == "model/w"
    assert_same(found["model"]["b"][...], np.zeros(3))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.npy", "a.png"], ["a.npy", "a.png"]),
        (["a.npy", "a/b.npy"], ["a.npy", "a/b"]),
        (["a.npy", "a.npy.npy"], ["a", "a.npy.npy"]),
        (["d/a.npy", "a.npy"], ["a", "d/a"]),
        (["d/a.npy", "d/a.tif", "a.npy"], ["a", "d/a.npy", "d/a.tif"]),
        (["A.NPY", "a.npy"], ["A", "a"]),
    ],
)
def test_files_that_would_have_one_name_keep_their_suffix(paths, expected, tmp_path):
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        if path.lower().endswith(".npy"):
            with open(tmp_path / path, "wb") as stream:
                np.save(stream, np.ones(1))
        else:
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / path)
    found = nd.read(tmp_path, to="numpy")
    assert list(found) == expected
    assert all(array.size for array in found.values())
    found.nested()


def test_hidden_unknown_and_half_written_files_are_left_out(tmp_path):
    save(tmp_path / "a.npy", 1)
    for name in (".b.npy", ".ndtorch-0-0.tmp", "notes.txt", "npy", "x.npy.gz", "x.zarr", ".cache/c.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert names(tmp_path) == ["a"]


def test_folder_with_nothing_known_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, tmp_path / "*.npy", tmp_path / "no" / "*.npy"):
        with pytest.raises(nd.FormatError, match="has no file of arrays") as error:
            nd.read(source)
        assert str(source) in str(error.value)
        assert ".safetensors" in error.value.hint


def test_format_is_that_of_every_file(tmp_path):
    np.save(tmp_path / "a", np.ones(2))
    (tmp_path / "a.npy").rename(tmp_path / "a.bin")
    (tmp_path / "a.bin").rename(tmp_path / "b")
    assert names(tmp_path, format="npy") == ["b"]
    assert names(tmp_path / "?", format=".npy") == ["b"]


def test_name_of_one_array_is_refused_for_a_folder(tmp_path):
    save(tmp_path / "a.npy", 1)
    with pytest.raises(nd.InvalidOptionError, match="name='x' is for one array"):
        nd.read(tmp_path, name="x")


# --- patterns


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("a1", "a2", "b1", "run1/a1", "run2/a1", "run2/deep/a1"):
        save(tmp_path / f"{name}.npy", 1)
    safetensors.numpy.save_file({"w": np.ones(1)}, tmp_path / "run1" / "m.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.npy", ["a1", "a2", "b1"]),
        ("a*", ["a1", "a2"]),
        ("[!a]*.npy", ["b1"]),
        ("?1.npy", ["a1", "b1"]),
        ("run*/a1.npy", ["run1/a1", "run2/a1"]),
        ("run1/*", ["a1", "m/w"]),
        ("**/a1.npy", ["a1", "run1/a1", "run2/a1", "run2/deep/a1"]),
        ("run2/**", ["a1", "deep/a1"]),
        ("run2/**/*.npy", ["a1", "deep/a1"]),
        ("*/deep/*.npy", ["run2/deep/a1"]),
    ],
)
def test_patterns_name_files_from_the_folder_that_they_begin_with(pattern, expected, tree):
    assert names(tree / pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["*.npy", "run*/a1.npy", "**/a1.npy", "run2/**", "[!a]*.npy", "?1.npy", "a*b?[]", "[]*", "[!]*.npy"]
)
def test_pattern_means_the_same_for_names_as_for_folders(pattern, tree):
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*.npy")}
    by_name = {path for path in files if folders.regex_of(pattern).fullmatch(path)}
    folder, found, _ = folders.files_matching(os.path.join(tree, pattern), lambda name: name.endswith(".npy"))
    assert {os.path.relpath(os.path.join(folder, path), tree) for path in found} == by_name


def test_patterns_may_be_relative(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert names("*.npy") == ["a1", "a2", "b1"]
    assert names("run1/*.npy") == ["a1"]
    assert names("run1") == ["a1", "m/w"]


def test_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    save(tmp_path / "x[1].npy", 5)
    assert names(tmp_path / "x[1].npy") == ["x[1]"]


# --- links


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    save(outside / "secret.npy", 1)
    save(inside / "a.npy", 2)
    (inside / "out").symlink_to(outside)
    (inside / "circle").symlink_to(inside)
    (inside / "named.npy").symlink_to(outside)
    (inside / "b.npy").symlink_to(outside / "secret.npy")
    for source in (inside, inside / "**", inside / "**" / "*.npy"):
        assert names(source) == ["a", "b"]
    assert names(inside / "out") == ["secret"], "a link that is named is meant"


def test_dangling_link_is_missing_only_when_it_is_asked_for(tmp_path):
    save(tmp_path / "a.npy", 1)
    (tmp_path / "b.npy").symlink_to(tmp_path / "nowhere")
    found = nd.read(tmp_path)
    assert list(found) == ["a", "b"]
    with pytest.raises(nd.FormatError, match=r"b\.npy': no such file"):
        found["b"]


# --- laziness


def test_broken_file_raises_when_it_is_touched_and_the_others_are_read(tmp_path):
    save(tmp_path / "a.npy", 1)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "c.safetensors").write_bytes(b"?")
    found = nd.read(tmp_path, to="numpy")
    assert list(found) == ["a", "b", "c"]
    assert "b" in found
    assert_same(found["a"][...], np.array([1.0]))
    for name in ("b", "c"):
        with pytest.raises(nd.FormatError, match=rf"{name}\.(npy|safetensors)'"):
            found[name]
    assert repr(found).splitlines()[2].startswith(f"  b  cannot be read: read: '{tmp_path}")


def test_opening_a_folder_opens_no_file_of_one_array(tmp_path, monkeypatch):
    for number in range(20):
        save(tmp_path / f"{number:02}.npy", number)
    opened = []
    original = os.open

    def counting(path, *rest, **more):
        opened.append(path)
        return original(path, *rest, **more)

    monkeypatch.setattr(os, "open", counting)
    found = nd.read(tmp_path, to="numpy")
    assert len(found) == 20
    assert "07" in found
    assert [path for path in opened if str(path).endswith(".npy")] == []
    assert_same(found["07"][...], np.array([7.0]))
    assert {path for path in opened if str(path).endswith(".npy")} == {str(tmp_path / "07.npy")}


def test_more_files_than_a_process_may_hold_open_are_read_at_once(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(200):
        save(tmp_path / f"{number:03}.npy", number, number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        arrays = list(nd.read(tmp_path, to="numpy").values())
        whole = [array[...] for array in arrays]
        stacked = nd.stack(arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_same(stacked, torch.arange(200.0, dtype=torch.float64)[:, None].expand(200, 2).clone())
    assert [float(array[1]) for array in whole] == list(range(200))


def test_arrays_of_a_folder_are_mapped_privately(tmp_path):
    save(tmp_path / "a.npy", 1, 2)
    tensor = nd.read(tmp_path)["a"][...]
    tensor[0] = 9
    assert np.load(tmp_path / "a.npy").tolist() == [1, 2]


def test_file_that_is_replaced_between_header_and_elements_is_the_one_that_was_opened(tmp_path):
    save(tmp_path / "a.npy", 1, 2)
    array = nd.read(tmp_path)["a"]
    save(tmp_path / "b.npy", 3, 4).rename(tmp_path / "a.npy")
    assert array[...].tolist() == [1, 2]
    assert nd.read(tmp_path)["a"][...].tolist() == [3, 4]


def test_path_of_an_array_is_known_without_opening_its_file(tmp_path):
    (tmp_path / "a.npy").touch()
    assert folders.FolderArrays(["a.npy"], lambda path: [], lambda path: True).path_of("a") == "a.npy"
    save(tmp_path / "a.npy", 1)
    assert open_file(tmp_path)["a"].layout.storage.path == str(tmp_path / "a.npy")


# --- what is done with them


def test_folder_is_converted_into_one_file(tree):
    nd.convert_file(tree, tree / "all.safetensors", verify=True, dtype="float32")
    found = safetensors.numpy.load_file(tree / "all.safetensors")
    assert set(found) == {"a1", "a2", "b1", "run1/a1", "run1/m/w", "run2/a1", "run2/deep/a1"}
    assert all(array.dtype == np.float32 and array.tolist() == [1] for array in found.values())


def test_one_broken_file_of_a_folder_stops_the_conversion_before_anything_is_written(tree):
    (tree / "bad.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(nd.FormatError, match=r"bad\.npy"):
        nd.convert_file(tree, tree / "all.safetensors")
    assert not (tree / "all.safetensors").exists()


def test_pictures_of_a_folder_are_stacked(tmp_path):
    pages = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    for number, page in enumerate(pages):
        Image.fromarray(page).save(tmp_path / f"{number}.png")
    assert_same(nd.stack(list(nd.read(tmp_path).values())), torch.from_numpy(pages))


def test_many_arrays_are_not_all_listed(tmp_path):
    for number in range(120):
        (tmp_path / f"{number:03}.npy").touch()
    lines = repr(nd.read(tmp_path)).splitlines()
    assert lines[0] == "120 arrays"
    assert lines[-1] == "  and 20 more"
    assert len(lines) == 102


def test_real_path_says_what_realpath_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "x").touch()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to("../linked/deep")
    (tmp_path / "real" / "x").symlink_to("deep/x")
    (tmp_path / "real" / "none").symlink_to("nowhere")
    (tmp_path / "real" / "round").symlink_to("round")
    monkeypatch.chdir(tmp_path)
    places = ["real", "linked", "linked/up", "linked/up/..", "missing", "real/deep/x", ".", "", "./linked//deep"]
    steps = ["x", "deep", "up", "none", "round", "y", ".", "..", "", "deep/"]
    paths = [start + os.path.join(place, step) for start in ("", f"{tmp_path}/") for place in places for step in steps]
    real = folders.real_path()
    assert [real(path) for path in paths] == [os.path.realpath(path) for path in paths]
