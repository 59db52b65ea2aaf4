"""Shards behind URLs: from and to S3, resumed after a kill, whole or not at all, no secret told."""

from __future__ import annotations

import io
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from comparison import assert_same
from interpreters import Interpreters
from servers import SECRET, Request, S3Server, new_bucket, s3_of_fsspec

import ndtorch as nd
from ndtorch import FormatError
from ndtorch.files import upload as uploads
from ndtorch.scale import ahead, convert_many, lock, units
from ndtorch.scale.ledger import Entry, Ledger, Output
from ndtorch.scale.places import place_at
from ndtorch.scale.units import SourceFile, Unit

pytestmark = pytest.mark.once

ROWS = np.arange(48, dtype=np.float32).reshape(12, 4)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_of_fsspec() as server:
        yield server


@pytest.fixture
def s3(server) -> Iterator[str]:
    """The URL of a bucket with twelve rows in six files, below ``src``."""
    files = fsspec.filesystem("s3")
    with new_bucket(server) as bucket, tempfile.TemporaryDirectory() as folder:
        for n in range(6):
            np.save(f"{folder}/{n}.npy", ROWS[2 * n : 2 * n + 2])
            files.put_file(f"{folder}/{n}.npy", f"{bucket}/src/{n}.npy")
        yield f"s3://{bucket}"


@pytest.fixture(autouse=True)
def _two_files_a_unit(monkeypatch) -> None:
    monkeypatch.setattr(units.units_of, "__kwdefaults__", {"nbytes": 1 << 20, "count": 2})
    monkeypatch.setattr(lock, "SETTLE", 0.01)  # nobody else is at work here


def units_sources(s3: str) -> list[units.Source]:
    return [units.Source(f"{s3}/src/{n}.npy", f"{n}.npy") for n in range(6)]


def np_bytes(number: int) -> bytes:
    """One of the six files."""
    buffer = io.BytesIO()
    np.save(buffer, ROWS[2 * number : 2 * number + 2])
    return buffer.getvalue()


def objects(url: str) -> list[str]:
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return sorted(name[len(path) + 1 :] for name in files.find(path))


@pytest.mark.parametrize("to", ["safetensors", "npy", "zarr"])
def test_rows_go_from_s3_to_s3_and_are_read_there_as_one(s3, to):
    found = convert_many(f"{s3}/src", f"{s3}/out", to=to, verify=True)
    assert (found.units, found.rows) == (3, 12)
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][...], ROWS)
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][[11, 0, 5]], ROWS[[11, 0, 5]])
    again = convert_many(f"{s3}/src", f"{s3}/out", to=to)
    assert (again.skipped, again.rows) == (3, 12)


def test_the_same_is_written_there_as_here(s3, tmp_path):
    convert_many(f"{s3}/src", f"{s3}/out")
    convert_many(f"{s3}/src", tmp_path / "out")
    files = fsspec.filesystem("s3")
    for name in ("index.json", "000001-000.safetensors"):
        assert files.cat_file(f"{s3[5:]}/out/{name}") == (tmp_path / "out" / name).read_bytes()


def test_shards_of_zarr_are_replaced_with_all_their_chunks(s3):
    convert_many(f"{s3}/src", f"{s3}/out", to="zarr")
    convert_many(f"{s3}/src", f"{s3}/out", to="zarr", shard_size=32, overwrite=True)
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][...], ROWS)
    convert_many(f"{s3}/src", f"{s3}/out", to="zarr", overwrite=True)
    assert {name.partition("/")[0] for name in objects(f"{s3}/out")} == {
        ".ndtorch",
        "index.json",
        *(f"00000{n}-000.zarr" for n in range(3)),
    }


def test_a_changed_object_is_noticed(s3):
    convert_many(f"{s3}/src", f"{s3}/out")
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", -ROWS[2:4])
        fsspec.filesystem("s3").put_file(f"{folder}/x.npy", f"{s3[5:]}/src/1.npy")
    assert convert_many(f"{s3}/src", f"{s3}/out").skipped == 2
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][2:4], -ROWS[2:4])


def test_sources_are_measured_by_one_listing(s3, server, monkeypatch):
    monkeypatch.setattr(units, "_FEW", 2)
    sources = units_sources(s3)
    with server.counted() as asked:
        found = units.source_files(sources)
    assert [file.nbytes for file in found] == [160] * 6
    assert len({file.stamp for file in found}) == 6
    assert len(asked) <= 2
    assert units.changed_files(found) == []


def test_a_ledger_of_more_entries_than_one_listing_has_is_read_whole(s3, server):
    files = fsspec.filesystem("s3")
    place, count = place_at(f"{s3}/many"), 25
    found = [Unit(n, (SourceFile(f"/{n}.npy", f"{n}.npy", 1, "1"),)) for n in range(count)]
    ledger = Ledger(place, "o")
    for unit in found:
        ledger.enter(unit, Entry(unit.number, unit.key("o"), (Output("x", 1, 4, 0, {"x": 0}),)))
    files.pipe_file(f"{s3[5:]}/many/x", b"1234")
    server.page = 10
    with server.counted() as asked:
        assert Ledger(place, "o").done(found) == set(range(count))
    listings = [request for request in asked if "continuation-token" in request.query and "units" in request.query]
    assert len(listings) == 2


def test_a_run_that_begins_reads_the_ledger_several_entries_at_a_time_and_each_once(s3, server):
    found = [Unit(n, (SourceFile(f"/{n}.npy", f"{n}.npy", 1, "1"),)) for n in range(4)]
    place = place_at(f"{s3}/many")
    outputs = tuple(Output(f"{n}/x", 1, 0, 0, {"x": 0}) for n in range(100))  # more than are kept in memory
    for unit in found:
        Ledger(place, "o").enter(unit, Entry(unit.number, unit.key("o"), outputs))
    fsspec.filesystem("s3").pipe({f"{s3[5:]}/many/{each.name}": b"" for each in outputs})
    barrier = threading.Barrier(4)
    server.refuse = lambda request: (
        request.method == "GET" and ".json" in request.path and not request.query and barrier.wait(120) < 0
    )
    with server.counted() as asked:
        assert Ledger(place, "o").begin(found) == {0, 1, 2, 3}
    assert len([request for request in asked if request.method == "GET" and ".json" in request.path]) == 4
    assert len([request for request in asked if "list-type" in request.query]) <= 6


def test_small_objects_are_one_request_to_read_and_one_to_see_that_they_are_as_they_were(s3, server, tmp_path):
    found = units.source_files(units_sources(s3))
    with server.counted() as asked:
        convert_many(f"{s3}/src", tmp_path / "out")
    of_files = [(request.method, request.path.rpartition("/")[2]) for request in asked if ".npy" in request.path]
    for file in found:
        assert of_files.count(("GET", file.name)) <= 2  # the second of the plan, which reads some headers
        assert of_files.count(("HEAD", file.name)) <= 2
    assert_same(nd.read(tmp_path / "out", to="numpy")["data"][...], ROWS)


def test_small_objects_are_read_several_at_a_time(s3, server):
    barrier = threading.Barrier(4)
    server.refuse = lambda request: request.method == "GET" and ".npy" in request.path and barrier.wait(120) < 0
    found = units.source_files(units_sources(s3))[:4]
    several = ahead.Ahead(found)
    assert [several.content(file) for file in found] == [np_bytes(n) for n in range(4)]


def test_of_small_objects_that_cannot_be_read_the_others_are(s3, server):
    server.refuse = lambda request: request.method == "GET" and "/2.npy" in request.path
    found = units.source_files(units_sources(s3))
    fsspec.filesystem("s3").rm_file(f"{s3[5:]}/src/4.npy")
    several = ahead.Ahead(found)
    assert several.content(found[3]) == np_bytes(3)
    with pytest.raises(OSError, match=r"not today.*src/2\.npy"):
        several.content(found[2])
    with pytest.raises(FormatError, match=r"src/4\.npy': no such file"):
        several.content(found[4])
    assert [several.content(found[n]) for n in (5, 0, 1)] == [np_bytes(n) for n in (5, 0, 1)]


def test_no_more_is_read_ahead_than_may_be_kept(s3):
    found = units.source_files(units_sources(s3))
    assert [file in ahead.Ahead(found, 500) for file in found] == [True] * 3 + [False] * 3
    assert all(file in ahead.Ahead(found) for file in found)


def test_an_upload_that_fails_leaves_nothing_of_its_unit(s3, server):
    server.refuse = lambda request: request.method in ("PUT", "POST") and "000001-001" in request.path
    with pytest.raises(OSError, match="not today") as caught:
        convert_many(f"{s3}/src", f"{s3}/out", shard_size=32, workers=1)
    assert SECRET not in str(caught.value)
    server.refuse = lambda request: False
    names = objects(f"{s3}/out")
    assert not any(name.startswith("000001") for name in names)
    assert "index.json" not in names
    with pytest.raises(FormatError, match="has not finished"):
        nd.read(f"{s3}/out")
    assert convert_many(f"{s3}/src", f"{s3}/out", shard_size=32).skipped == 1
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][...], ROWS)


@pytest.mark.parametrize("to", ["safetensors", "zarr"])
def test_what_arrives_damaged_is_noticed_and_removed(s3, monkeypatch, to):
    real = uploads.upload_file

    def damaged(path: Path, url: str) -> None:
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors" or "/c/" in path.as_posix():
            content[-1] ^= 1
        path.with_suffix(".damaged").write_bytes(content)
        real(path.with_suffix(".damaged"), url)
        path.with_suffix(".damaged").unlink()

    monkeypatch.setattr(uploads, "upload_file", damaged)
    options = {"to": to, "workers": 1, "overwrite": True}
    with pytest.raises(FormatError, match=r"000000-000.* reads back different from what was sent"):
        convert_many(f"{s3}/src", f"{s3}/out", verify=True, **options)
    assert not [name for name in objects(f"{s3}/out") if name.startswith("0")]
    assert convert_many(f"{s3}/src", f"{s3}/out", **options).rows == 12
    monkeypatch.undo()


def test_what_is_on_its_way_is_kept_where_temporary_files_are(s3, tmp_path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ndtorch.scale.outputs.upload_files", lambda targets: seen.extend(map(os.fspath, targets)))
    convert_many(f"{s3}/src/0.npy", f"{s3}/out", workers=1)
    assert [Path(path).parents[1] for path in seen] == [tmp_path]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory) -> Iterator[Interpreters]:
    start = "import fsspec, s3fs; from ndtorch.scale import convert_many, job, units, outputs"
    with Interpreters(start, tmp_path_factory.mktemp("said")) as found:
        yield found


KILLED = """
fsspec.config.conf["s3"] = {conf!r}
units.units_of.__kwdefaults__.update(count=2)
real, calls = outputs.upload_files, []

def killed(targets):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(targets)

outputs.upload_files = killed
convert_many("{s3}/src", "{s3}/out", workers=1)
"""


def test_a_run_that_was_killed_goes_on_where_it_stopped(interpreters, s3):
    status, said = interpreters.run(KILLED.format(conf=fsspec.config.conf["s3"], s3=s3))
    assert status == -signal.SIGKILL, said
    assert [name for name in objects(f"{s3}/out") if not name.startswith(".ndtorch/")] == ["000000-000.safetensors"]
    facts = fsspec.filesystem("s3").info(f"{s3[5:]}/out/000000-000.safetensors")
    found = convert_many(f"{s3}/src", f"{s3}/out")
    assert (found.skipped, found.rows) == (1, 12)
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert files.info(f"{s3[5:]}/out/000000-000.safetensors")["LastModified"] == facts["LastModified"]
    assert_same(nd.read(f"{s3}/out", to="numpy")["data"][...], ROWS)


def test_a_missing_shard_is_named_without_secrets(s3):
    convert_many(f"{s3}/src", f"{s3}/out")
    fsspec.filesystem("s3").rm_file(f"{s3[5:]}/out/000001-000.safetensors")
    found = nd.read(f"{s3}/out", to="numpy")["data"]
    assert_same(found[:4], ROWS[:4])
    with pytest.raises(FormatError, match=r"000001-000\.safetensors") as caught:
        found[...]
    assert SECRET not in str(caught.value)


def test_only_some_requests_open_a_data_set(s3, server):
    convert_many(f"{s3}/src", f"{s3}/out")
    with server.counted() as asked:
        found = nd.read(f"{s3}/out", to="numpy")["data"]
        assert found.shape == (12, 4)
    assert not any("safetensors" in request.path for request in asked)
    with server.counted() as asked:
        found[5]
    wanted: list[Request] = [request for request in asked if "safetensors" in request.path]
    assert {request.path.rpartition("/")[2] for request in wanted} == {"000001-000.safetensors"}
