"""One run at a time on one target, and what the next one does after a run was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from comparison import assert_same
from unit_works import PATIENCE

import ndtorch as nd
from ndtorch.scale import lock
from ndtorch.scale.lock import FOLDER, locked
from ndtorch.scale.places import LocalPlace, RemotePlace
from ndtorch.scale.units import UNIT_FILES

pytestmark = pytest.mark.once

ROWS = 2
FILES = 3 * UNIT_FILES  # three units


def eventually(is_true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def remote(monkeypatch) -> Iterator[RemotePlace]:
    monkeypatch.setattr(lock, "SETTLE", 0.01)
    files = fsspec.filesystem("memory")
    yield RemotePlace("memory://bucket/out")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture(params=["folder", "without locks", "url"])
def place(request, tmp_path, monkeypatch):
    if request.param == "url":
        return request.getfixturevalue("remote")
    if request.param == "without locks":  # as some network file systems are
        monkeypatch.setattr(lock, "SETTLE", 0.01)
        monkeypatch.setattr(lock, "hold", lambda *_: None)
    return LocalPlace(str(tmp_path / "out"))


def refusal(place, *which: int) -> str:
    with pytest.raises(nd.FormatError) as caught, locked(place, *which):
        pass
    assert caught.value.host == socket.gethostname()
    assert caught.value.pid == os.getpid()
    return str(caught.value)


# --- the lock


def test_two_runs_refuse_each_other_by_name_until_one_ends(place):
    with locked(place):
        text = refusal(place)
        assert f"is being written by another run, process {os.getpid()} on {socket.gethostname()} since 2" in text
        assert "Hint: wait for it, or end it: the next run goes on where it stopped" in text
    with locked(place):
        pass
    assert place.sizes(FOLDER) == {}


def test_ranks_of_one_world_go_side_by_side_and_each_only_once(place):
    with locked(place, 0, 2), locked(place, 1, 2):
        assert "is being written by rank 1 of 2, process" in refusal(place, 1, 2)
        assert set(place.sizes(FOLDER)) == {"0-of-2", "1-of-2"}
    assert place.sizes(FOLDER) == {}


def test_a_run_of_all_and_ranks_of_another_world_are_refused_beside_ranks(place):
    with locked(place, 0, 2):
        assert "by rank 0 of 2" in refusal(place)
        assert "by rank 0 of 2" in refusal(place, 1, 3)
    with locked(place):
        assert "by another run" in refusal(place, 0, 2)
    assert place.sizes(FOLDER) == {}


def test_a_run_that_fails_leaves_no_lock(place):
    def fail() -> None:
        with locked(place):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert place.sizes(FOLDER) == {}


def test_other_targets_are_no_affair_of_a_lock(tmp_path):
    with locked(LocalPlace(str(tmp_path / "a"))), locked(LocalPlace(str(tmp_path / "b"))):
        pass


def test_what_a_killed_run_left_is_no_lock(tmp_path):
    place = LocalPlace(str(tmp_path))
    for name in ("all", "3-of-4"):
        place.put(f"{FOLDER}/{name}", json.dumps({"pid": os.getpid(), "host": "here", "time": time.time()}).encode())
    with locked(place, 0, 2):
        assert set(place.sizes(FOLDER)) == {"0-of-2"}


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / FOLDER / "all").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), locked(LocalPlace(str(tmp_path))):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


# --- objects as locks


def left(place: RemotePlace, **facts: object) -> None:
    """An object that another run has left."""
    owner = {"pid": 1234, "host": "elsewhere", "machine": "another", "started": "1", "run": "x", "time": time.time()}
    place.put(f"{FOLDER}/all", json.dumps(owner | facts).encode())


def test_an_object_of_another_machine_counts_while_it_is_fresh(remote):
    left(remote)
    with pytest.raises(nd.FormatError, match="process 1234 on elsewhere") as caught, locked(remote):
        pass
    assert "after a kill its lock counts for 120 s more" in str(caught.value)


def test_an_object_that_nobody_has_written_for_long_is_no_lock(remote):
    left(remote, time=time.time() - lock.STALE - 1)
    with locked(remote):
        assert json.loads(remote.read(f"{FOLDER}/all"))["pid"] == os.getpid()


def test_an_object_of_a_process_of_this_machine_that_has_ended_is_no_lock(remote):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left(remote, machine=lock._machine(), pid=process.pid)
    with locked(remote):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"time": "yesterday"}'])
def test_an_object_of_junk_is_no_lock(remote, content):
    remote.put(f"{FOLDER}/all", content)
    with locked(remote):
        pass


def test_an_object_is_written_again_and_again(remote, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with locked(remote):
        first = json.loads(remote.read(f"{FOLDER}/all"))["time"]
        eventually(lambda: json.loads(remote.read(f"{FOLDER}/all"))["time"] > first, "it is written again")
    assert remote.sizes(FOLDER) == {}


def test_a_run_whose_object_somebody_else_has_written_stops_and_leaves_it(remote, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)

    def lose() -> None:
        with locked(remote) as held:

            def is_lost() -> bool:
                left(remote)  # again and again, as the other does: this run may just be writing its own
                held.check()
                return False

            eventually(is_lost, "the run has noticed")

    with pytest.raises(nd.FormatError, match="process 1234 on elsewhere"):
        lose()
    assert json.loads(remote.read(f"{FOLDER}/all"))["pid"] == 1234


def test_of_two_that_write_at_the_same_time_the_one_that_was_slower_goes_on(remote, monkeypatch):
    sleeper = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: left(remote)})
    monkeypatch.setattr(lock, "time", sleeper)  # and not the sleep of all other threads
    with pytest.raises(nd.FormatError, match="process 1234 on elsewhere"), locked(remote):
        pass
    assert json.loads(remote.read(f"{FOLDER}/all"))["pid"] == 1234


# --- whole runs


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for i in range(FILES):
        np.save(folder / f"{i:05d}.npy", np.full((ROWS, 3), i, np.int32))
    return folder


DRIVER = """
import os, sys, time, ndtorch as nd
source, target, rank, world = sys.argv[1:]
done = 0

def progress(one):
    global done
    done += 1
    if done == 2:
        print("two units are done", flush=True)
        time.sleep(600)

nd.convert_many(source, target, workers=1, rank=int(rank), world_size=int(world), progress=progress)
"""


@contextmanager
def run_that_waits(source: Path, target: Path, rank: int = 0, world_size: int = 1):
    """Another process that has done two units and holds its lock."""
    words = [sys.executable, "-c", DRIVER, str(source), str(target), str(rank), str(world_size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "two units are done\n"
            yield process
        finally:
            process.kill()


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def rows_of(folder: Path) -> np.ndarray:
    parts = [nd.read(path, to="numpy")["data"][...] for path in sorted(folder.glob("*.safetensors"))]
    return np.concatenate(parts)


def test_after_kill_9_the_next_run_finishes_and_does_no_shard_again(sources, tmp_path):
    out = tmp_path / "out"
    with run_that_waits(sources, out) as process:
        with pytest.raises(nd.FormatError) as caught:
            nd.convert_many(sources, out)
        assert caught.value.pid == process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = stamps(out)
    assert len(before) == 2
    assert not (out / "index.json").exists()
    summary = nd.convert_many(sources, out)
    assert (summary.units, summary.skipped, summary.converted, summary.rows) == (3, 2, 1, FILES * ROWS)
    assert {name: stamps(out)[name] for name in before} == before
    np.testing.assert_array_equal(
        rows_of(out), np.repeat(np.arange(FILES, dtype=np.int32), ROWS)[:, None] * [[1, 1, 1]]
    )
    again = nd.convert_many(sources, out)
    assert (again.skipped, again.converted, again.shards, again.rows) == (3, 0, 0, FILES * ROWS)
    assert {name: stamps(out)[name] for name in before} == before


def test_ctrl_c_leaves_no_lock_and_the_next_run_goes_on(sources, tmp_path):
    out = tmp_path / "out"
    with run_that_waits(sources, out) as process:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    assert list((out / FOLDER).iterdir()) == []
    before = stamps(out)
    assert nd.convert_many(sources, out).skipped == 2
    assert {name: stamps(out)[name] for name in before} == before


def test_ranks_share_the_units_and_the_last_one_writes_the_index(sources, tmp_path):
    out = tmp_path / "out"
    with run_that_waits(sources, out, 0, 2), pytest.raises(nd.FormatError, match="rank 0 of 2"):
        nd.convert_many(sources, out, rank=0, world_size=2)
    first = nd.convert_many(sources, out, rank=1, world_size=2)
    assert (first.units, first.converted, first.skipped) == (3, 1, 0)
    second = nd.convert_many(sources, out, rank=0, world_size=2)
    assert (second.converted + second.skipped, second.rows) == (2, FILES * ROWS)
    alone = tmp_path / "alone"
    nd.convert_many(sources, alone)
    assert (out / "index.json").read_bytes() == (alone / "index.json").read_bytes()
    assert_same(rows_of(out), rows_of(alone))


def test_runs_on_several_targets_go_side_by_side(sources, tmp_path):
    with ExitStack() as stack:
        stack.enter_context(run_that_waits(sources, tmp_path / "a"))
        assert nd.convert_many(sources, tmp_path / "b").rows == FILES * ROWS
