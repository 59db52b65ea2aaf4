"""Which files become which, what is planned for each array, and how many conversions end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison import assert_same

import ndtorch as nd
from ndtorch import _convert_many
from ndtorch._convert_many import Outcome, Planned, Request, convert_planned, plan_many
from ndtorch._errors import FormatError, LossyCastError, UnsupportedTypeError
from ndtorch._pairs import Pair, Source, find_sources, pair_up, why_not_written
from ndtorch._write import Casts
from ndtorch.files import format_to_write

pytestmark = pytest.mark.once

SAFETENSORS = format_to_write("x.safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a/x", "a/b/y", "z"):
        path = tmp_path / "data" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(4.0))
    return tmp_path / "data"


def run(pairs: list[Pair], request: Request | None = None, **options: object) -> list[Outcome]:
    request = request or Request()
    return list(convert_planned(plan_many(pairs, request, {}), request, **options))


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".ndtorch-*"))


# --- sources


def names(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def test_sources_are_found_once_in_the_order_of_arguments_and_names(data):
    assert names(find_sources([data / "z.npy", data, f"{data}/**"])) == ["z.npy", "a/b/y.npy", "a/x.npy"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(data, tmp_path):
    (data / "link.npy").symlink_to(data / "z.npy")
    (data / "circle").symlink_to(data)
    (data / "gone.npy").symlink_to(tmp_path / "none.npy")
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "w.npy", np.zeros(2))
    (data / "other").symlink_to(tmp_path / "other")
    expected = ["a/b/y.npy", "a/x.npy", "gone.npy", "link.npy", "z.npy"]
    assert names(find_sources([data])) == expected
    assert names(find_sources([f"{data}/**/*.npy"])) == expected
    assert names(find_sources([data / "other"])) == ["w.npy"]


def test_hidden_files_and_unknown_suffixes_are_left_out_of_folders(data):
    for name in ("notes.txt", ".hidden.npy", ".ndtorch-0-0.tmp"):
        (data / name).touch()
    assert names(find_sources([data])) == ["a/b/y.npy", "a/x.npy", "z.npy"]
    assert "notes.txt" in names(find_sources([data], any_suffix=True))
    assert ".hidden.npy" not in names(find_sources([data], any_suffix=True))


def test_a_zarr_store_is_one_source(data):
    store = data / "a" / "store.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    (store / "z.npy").touch()
    assert names(find_sources([data])) == ["a/b/y.npy", "a/store.zarr", "a/x.npy", "z.npy"]
    assert names(find_sources([store])) == ["store.zarr"]


def test_a_url_is_one_source_named_without_its_query():
    (source,) = find_sources(["https://example.org/a/x.npy?token=1"])
    assert source == ("https://example.org/a/x.npy?token=1", "x.npy")


def test_a_suffix_that_nobody_knows_stays_in_the_name(data):
    for suffix in ("v1", "v2"):
        (data / f"w.{suffix}").touch()
    pairs = pair_up([data / "w.v1", data / "w.v2"], "out", source_format="npy", target_format="safetensors")
    assert [pair.target for pair in pairs] == ["out/w.v1.safetensors", "out/w.v2.safetensors"]


# --- targets


@pytest.mark.parametrize(
    "target", ["out.safetensors", "OUT.SAFETENSORS", "a.b.npz", "x.zarr", "x.zarr/", "s3://b/x.npy"]
)
def test_a_known_suffix_is_a_file(target, data):
    (pair,) = pair_up([data], target)
    assert (pair.target, pair.folder, pair.is_joined, len(pair.sources)) == (target, "", True, 3)


@pytest.mark.parametrize("target", ["out", "out.v1", "out/", "out.npz/", "s3://b/out"])
def test_anything_else_is_a_folder(target, data):
    pairs = pair_up([data], target, target_format="npz")
    assert [pair.target for pair in pairs] == [f"{target.rstrip('/')}/{name}.npz" for name in ("a/b/y", "a/x", "z")]
    assert {pair.folder for pair in pairs} == {target}


def test_pictures_are_no_target(data):
    with pytest.raises(FormatError, match="pictures are read, not written"):
        pair_up([data / "z.npy"], "x.png")


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "", "a\0b.npy"])
def test_a_name_that_leaves_the_folder_of_outputs_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch._pairs.find_sources", lambda *_, **__: [Source("x.npy", name)])
    with pytest.raises(FormatError, match="no file can be named"):
        pair_up(["x.npy"], tmp_path / "out", target_format="npy")


def test_a_target_outside_its_folder_is_refused_however_it_came_about(data, tmp_path):
    source = Source(str(data / "z.npy"), "z.npy")
    pair = Pair((source,), str(tmp_path / "out" / ".." / "z.safetensors"), SAFETENSORS, str(tmp_path / "out"))
    (error,) = why_not_written([pair], overwrite=True).values()
    assert "links lead from there" in str(error)
    (outcome,) = run([pair])
    assert outcome.status == "failed"
    assert not (tmp_path / "z.safetensors").exists()


def test_a_link_that_appears_after_the_check_is_not_followed(data, tmp_path):
    pairs = pair_up([data], tmp_path / "out", target_format="safetensors")
    assert why_not_written(pairs, overwrite=False) == {}
    planned = plan_many(pairs, Request(), {})
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    outcomes = list(convert_planned(planned, Request(), stop_on_error=False))
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "converted"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- plans


def test_a_plan_says_what_is_read_cast_and_copied(data, tmp_path):
    fortran = np.asfortranarray(np.zeros((2, 3), np.float32))
    nd.write(tmp_path / "f.npy", fortran)
    request = Request(casts=Casts(float_dtype="float32"))
    pairs = pair_up([data / "z.npy", tmp_path / "f.npy"], tmp_path / "out", target_format="safetensors")
    z, f = plan_many(pairs, request, {})
    assert [tuple(row) for row in z.arrays] == [("z", "float64[4]", "float32[4]", 16, "cast")]
    assert [tuple(row) for row in f.arrays] == [("f", "float32[2,3]", "float32[2,3]", 24, "laid out row by row")]
    assert (z.nbytes, f.nbytes) == (16, 24)
    assert not (tmp_path / "out").exists()


def test_every_array_that_cannot_be_cast_is_in_the_plan(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"f": np.ones(2), "i": np.arange(2), "u": np.arange(2, dtype="u1")})
    request = Request(casts=Casts(dtype="uint8", casting="safe"))
    (planned,) = plan_many(pair_up([tmp_path / "a.safetensors"], tmp_path / "b.safetensors"), request, {})
    assert {row.name: row.how for row in planned.arrays} == {"f": "refused", "i": "refused", "u": "copied as it lies"}
    assert [type(error) for error in planned.errors] == [LossyCastError, LossyCastError]


def test_what_a_format_cannot_hold_is_in_the_plan(tmp_path):
    np.save(tmp_path / "t.npy", np.array(["a"]))
    (planned,) = plan_many(pair_up([tmp_path / "t.npy"], tmp_path / "t.safetensors"), Request(), {})
    (error,) = planned.errors
    assert isinstance(error, UnsupportedTypeError)
    assert "'t'" in str(error)


# --- conversions


@pytest.mark.parametrize("jobs", [1, 4])
def test_outcomes_come_in_the_order_of_the_plan(jobs, data, tmp_path):
    pairs = pair_up([data], tmp_path / "out", target_format="safetensors")
    outcomes = run(pairs, jobs=jobs)
    assert [outcome.status for outcome in outcomes] == ["converted"] * 3
    assert [outcome.planned.pair for outcome in outcomes] == pairs
    for pair in pairs:
        (array,) = nd.read(pair.target, to="numpy").values()
        assert_same(array[...], np.arange(4.0))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("target", ["x.safetensors", "x.npy"])
def test_progress_adds_up_to_the_bytes_of_the_plan(target, verify, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(5 << 20, np.float64))
    request = Request(casts=Casts(float_dtype="float32"), verify=verify)
    planned = plan_many(pair_up([tmp_path / "a.npy"], tmp_path / target), request, {})
    steps: list[int] = []
    (outcome,) = convert_planned(planned, request, advance=lambda one, nbytes: steps.append(nbytes))
    assert outcome.status == "converted"
    assert planned[0].nbytes == 20 << 20
    assert 0 <= sum(steps) - planned[0].nbytes < 1 << 16  # and the header
    assert len(steps) > 1


def test_a_source_that_changed_after_its_plan_is_not_converted_by_halves(data, tmp_path):
    request = Request()
    planned = plan_many(pair_up([data], tmp_path / "out", target_format="safetensors"), request, {})
    for one in planned:
        one.prepared = None  # as where there are many
    (data / "z.npy").write_bytes(b"\x93NUMPY")
    outcomes = list(convert_planned(planned, request, stop_on_error=False))
    assert [outcome.status for outcome in outcomes] == ["converted", "converted", "failed"]
    assert isinstance(outcomes[2].errors[0], FormatError)


def test_an_output_that_appears_after_the_check_is_not_replaced(data, tmp_path):
    request = Request()
    planned = plan_many(pair_up([data / "z.npy"], tmp_path / "z.safetensors"), request, {})
    (tmp_path / "z.safetensors").write_text("somebody else's")
    (outcome,) = convert_planned(planned, request)
    assert "exists" in str(outcome.errors[0])
    assert (tmp_path / "z.safetensors").read_text() == "somebody else's"


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_failure_stops_the_others(jobs, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(8):
        np.save(tmp_path / "in" / f"{number}.npy", np.full(4, 0.1 if number == 0 else 1.0))
    request = Request(casts=Casts(float_dtype="float32", casting="exact"))
    outcomes = run(pair_up([tmp_path / "in"], tmp_path / "out", target_format="safetensors"), request, jobs=jobs)
    assert len(outcomes) == 8
    assert outcomes[0].status == "failed"
    assert isinstance(outcomes[0].errors[0], LossyCastError)
    written = {path.stem for path in (tmp_path / "out").glob("*")}
    assert written == {str(number) for number, each in enumerate(outcomes) if each.status == "converted"}
    assert {each.status for each in outcomes[1:]} <= {"converted", "stopped"}
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_whoever_stops_asking_stops_those_at_work(jobs, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(6):
        np.save(tmp_path / "in" / f"{number}.npy", np.zeros(8 << 20 >> 3))
    request = Request()
    planned = plan_many(pair_up([tmp_path / "in"], tmp_path / "out", target_format="safetensors"), request, {})
    first, before = threading.Event(), {*threading.enumerate()}

    def wait_for_the_first(one: Planned, nbytes: int) -> None:
        if one is not planned[0]:
            first.wait(120)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: bool, **options: bool) -> None:
            first.set()  # now that those at work have been told to stop
            super().shutdown(*args, **options)

    monkeypatch.setattr(_convert_many, "ThreadPoolExecutor", Pool)
    outcomes = convert_planned(planned, request, jobs=jobs, advance=wait_for_the_first)
    assert next(outcomes).status == "converted"
    outcomes.close()
    assert len(list((tmp_path / "out").glob("*"))) < 6
    assert temporary_files(tmp_path) == []
    assert [
        thread for thread in {*threading.enumerate()} - before if thread.name.startswith("ThreadPoolExecutor")
    ] == []


def test_folders_that_nothing_came_into_are_removed_again(data, tmp_path):
    np.save(data / "a" / "b" / "y.npy", np.array([0.1]))
    request = Request(casts=Casts(float_dtype="float32", casting="exact"))
    pairs = pair_up([data], tmp_path / "new" / "out", target_format="safetensors")
    assert [each.status for each in run(pairs, request)] == ["failed", "stopped", "stopped"]
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").mkdir()
    run(
        [replace(pair, folder=str(tmp_path / "kept"), target=str(tmp_path / "kept" / "x.npy")) for pair in pairs],
        request,
    )
    assert (tmp_path / "kept").is_dir()


def test_a_defect_of_ours_is_not_taken_for_a_file_that_fails(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch._convert_many.write_prepared", lambda *_, **__: 1 / 0)
    pairs = pair_up([data], tmp_path / "out", target_format="safetensors")
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            run(pairs, jobs=jobs)


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
import ndtorch as nd
from ndtorch._convert_many import Request, convert_planned, plan_many
from ndtorch._pairs import pair_up
request = Request()
for target in sys.argv[2:]:
    pairs = pair_up([sys.argv[1]], target, target_format="safetensors")
    outcomes = list(convert_planned(plan_many(pairs, request, {}), request, jobs=2, stop_on_error=False))
    print(*sorted({outcome.status for outcome in outcomes}), len(outcomes))
"""


def test_more_files_than_may_be_open_are_converted_and_joined(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(200):
        np.save(tmp_path / "in" / f"{number}.npy", np.full((2, 3), number, order="F" if number % 2 else "C"))
    words = [str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "all.safetensors")]
    done = subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "converted 200\nconverted 1\n"), done.stderr
    joined = nd.read(tmp_path / "all.safetensors", to="numpy")
    assert len(joined) == len(os.listdir(tmp_path / "out")) == 200
    for number in range(0, 200, 7):
        assert_same(joined[str(number)][...], np.full((2, 3), number))


def test_files_that_fail_do_not_stay_open(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(200):
        np.save(tmp_path / "in" / f"{number}.npy", np.array(["text"] if number else [0.1]))
    words = [str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "converted failed 200\n"), done.stderr


def test_joined_sources_that_change_meanwhile_are_noticed(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(70):
        np.save(tmp_path / "in" / f"{number}.npy", np.arange(3))
    request = Request()
    planned = plan_many(pair_up([tmp_path / "in"], tmp_path / "all.safetensors"), request, {})
    np.save(tmp_path / "in" / "5.npy", np.arange(4))
    (outcome,) = convert_planned(planned, request)
    assert outcome.status == "failed"
    assert "'5' has been replaced since its header was read" in str(outcome.errors[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


# --- URLs


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A folder of a file system behind URLs, of this test alone."""
    fsspec = pytest.importorskip("fsspec", reason="URLs are read and written through fsspec")
    url = f"memory://{tmp_path.name}"
    for name in ("a/x", "z"):
        with fsspec.open(f"{url}/in/{name}.npy", "wb") as file:
            np.save(file, np.arange(4.0))
    return url


@pytest.mark.parametrize("source", ["in", "in/**/*.npy"])
def test_urls_are_folders_and_patterns_too(source, remote, tmp_path):
    pairs = pair_up([f"{remote}/{source}"], tmp_path / "out", target_format="safetensors")
    assert [outcome.status for outcome in run(pairs)] == ["converted", "converted"]
    back = pair_up([tmp_path / "out"], f"{remote}/out", target_format="npy")
    assert [pair.target for pair in back] == [f"{remote}/out/a/x.npy", f"{remote}/out/z.npy"]
    assert [outcome.status for outcome in run(back)] == ["converted", "converted"]
    assert_same(nd.read(f"{remote}/out/a/x.npy", to="numpy")["x"][...], np.arange(4.0))
    assert [str(error) for error in why_not_written(back, overwrite=False).values()] == [
        f"convert: {pair.target!r} exists. Hint: overwrite=True (--overwrite) replaces it, all or nothing."
        for pair in back
    ]


def test_files_behind_urls_are_joined(remote, tmp_path):
    (outcome,) = run(pair_up([f"{remote}/in"], f"{remote}/all.safetensors"))
    assert outcome.status == "converted"
    assert set(nd.read(f"{remote}/all.safetensors")) == {"a/x", "z"}


def test_what_is_secret_in_a_url_is_not_shown():
    pairs = pair_up(["https://me:secret@host/x.npy?token=secret"], "s3://secret@b/out", target_format="npz")
    assert (str(pairs[0]), pairs[0].shown_target) == ("https://host/x.npy", "s3://b/out/x.npz")
