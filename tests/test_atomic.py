"""Whatever happens while a file is written, there is the old one or the new one, and the next run tidies up."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from made_files import names_in, put

import ndtorch as nd
from ndtorch.files import atomic, output
from ndtorch.files.atomic import new_file, new_folder, sync_folder

pytestmark = pytest.mark.once

SUFFIXES = [".npy", ".safetensors"]


def put_folder(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "part").write_text(text)
    return path


def write_new(path: Path, *, is_folder: bool = False) -> None:
    """Write ``new`` under a name, as a file or as a folder with one file."""
    if is_folder:
        with new_folder(path) as folder:
            (folder / "part").write_text("new")
    else:
        with new_file(path) as (_, descriptor):
            os.write(descriptor, b"new")


def content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.fixture(params=["file", "folder"])
def target(request, tmp_path) -> Path:
    """An old target: a file, or a folder."""
    return put(tmp_path / "a", b"old") if request.param == "file" else put_folder(tmp_path / "a")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """As if this process had not yet looked for what others left."""
    monkeypatch.setattr(atomic, "_swept", set())


# --- all of it or nothing


def test_what_is_new_takes_the_place_of_what_is_old(target):
    write_new(target, is_folder=target.is_dir())
    assert content(target) == "new"
    assert names_in(target.parent) == ["a"]


def test_what_was_not_there_is_there_afterwards(tmp_path):
    write_new(tmp_path / "f")
    write_new(tmp_path / "d", is_folder=True)
    assert (content(tmp_path / "f"), content(tmp_path / "d"), names_in(tmp_path)) == ("new", "new", ["d", "f"])


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_any_failure_leaves_the_old_and_nothing_else(failure, target):
    def fail() -> None:
        if target.is_dir():
            with new_folder(target) as folder:
                (folder / "part").write_text("half")
                raise failure
        with new_file(target) as (_, descriptor):
            os.write(descriptor, b"half")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert content(target) == "old"
    assert names_in(target.parent) == ["a"]


def test_errors_of_the_system_name_the_target_not_what_is_written_beside_it(tmp_path):
    with (
        pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*/a\.npy'"),
        new_file(tmp_path / "a.npy"),
    ):
        raise OSError(28, "No space left on device", ".ndtorch-0.tmp")
    with pytest.raises(FileNotFoundError, match=r"none/a\.npy"):
        write_new(tmp_path / "none" / "a.npy")


@pytest.mark.parametrize("step", ["fsync", "replace", "rename"])
def test_a_failure_of_every_step_leaves_the_old(step, target, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)

    def fail(*args):
        raise OSError(5, "Input/output error")

    is_folder = target.is_dir()
    if step == ("replace" if is_folder else "rename"):
        pytest.skip("a file is replaced, a folder renamed")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_new(target, is_folder=is_folder)
    monkeypatch.undo()
    assert content(target) == "old"
    assert names_in(target.parent) == ["a"]


def test_a_folder_whose_second_rename_fails_keeps_the_old_one(tmp_path, monkeypatch):
    target, real, calls = put_folder(tmp_path / "a"), os.rename, []

    def rename(one, other):
        calls.append(other)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(one, other)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        write_new(target, is_folder=True)
    assert content(target) == "old"
    assert names_in(tmp_path) == ["a"]


def test_folders_are_replaced_where_the_system_cannot_exchange_them(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    target = put_folder(tmp_path / "a")
    write_new(target, is_folder=True)
    assert (content(target), names_in(tmp_path)) == ("new", ["a"])


# --- what lasts


def kind_of(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


def watched(monkeypatch) -> list[str]:
    calls: list[str] = []
    fsync, replace, renamed = os.fsync, os.replace, atomic._renamed
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(f"sync {kind_of(fd)}") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or replace(a, b))
    words = {atomic._NO_REPLACE: "rename", atomic._EXCHANGE: "exchange"}
    monkeypatch.setattr(atomic, "_renamed", lambda a, b, flags: calls.append(words[flags]) or renamed(a, b, flags))
    return calls


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_and_its_name_are_synced_in_that_order(suffix, tmp_path, monkeypatch):
    calls = watched(monkeypatch)
    nd.write(tmp_path / f"a{suffix}", {"x": np.ones(2)})
    assert calls == ["sync file", "rename", "sync folder"]


def test_a_folder_is_synced_with_all_that_is_in_it_before_it_takes_its_name(tmp_path, monkeypatch):
    target = put_folder(tmp_path / "a")
    calls = watched(monkeypatch)
    with new_folder(target) as folder:
        (folder / "in").mkdir()
        for name in ("x", "in/y"):
            (folder / name).write_text("new")
    assert calls == ["sync file", "sync folder", "sync file", "sync folder", "exchange", "sync folder"]


def test_a_folder_that_cannot_be_synced_is_left_to_its_file_system(tmp_path, monkeypatch):
    def refuse(descriptor: int, number: int = 22) -> None:
        if kind_of(descriptor) == "folder":
            raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    nd.write(tmp_path / "a.npy", {"x": np.ones(2)})
    assert nd.read(tmp_path / "a.npy")["a"].tolist() == [1, 1]
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(descriptor, 5))
    with pytest.raises(OSError, match="no"):
        sync_folder(tmp_path)


# --- permissions and links


def test_a_new_file_has_the_permissions_of_a_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        nd.write(tmp_path / "a.npy", {"x": np.ones(2)})
        write_new(tmp_path / "d", is_folder=True)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.npy").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_a_replaced_target_keeps_its_permissions_and_a_link_stays_a_link(target):
    mode = 0o700 if target.is_dir() else 0o604
    target.chmod(mode)
    link = target.with_name("link")
    link.symlink_to("a")
    write_new(link, is_folder=target.is_dir())
    assert link.is_symlink()
    assert content(target) == "new"
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert names_in(target.parent) == ["a", "link"]


def test_a_link_to_nothing_makes_what_it_names(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link.npy").symlink_to("in/a.npy")
    nd.write(tmp_path / "link.npy", np.ones(2))
    assert names_in(tmp_path / "in") == ["a.npy"]
    assert (tmp_path / "link.npy").is_symlink()


def test_others_who_have_the_old_file_open_keep_it(tmp_path):
    target = put(tmp_path / "a", b"old")
    with target.open() as reader:
        write_new(target)
        assert reader.read() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_os_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"a\.npy"):
        nd.write(tmp_path / "a.npy", {"x": np.ones(2)})
    tmp_path.chmod(0o700)


# --- other processes


def die_at(moment: str, number: int, target: Path) -> int:
    """Write in a process that gets a signal at some moment, and give its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        arrange_death(moment, number)
        nd.write(target, np.ones(100_000), overwrite=True)
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def arrange_death(moment: str, number: int) -> None:
    def die(*args: object) -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    real_write, real_replace = output.Output.write, os.replace
    if moment == "claim":
        atomic._lock = die
    elif moment == "write":
        output.Output.write = lambda self, data: (real_write(self, memoryview(data).cast("B")[:50]), die())
    elif moment == "sync":
        os.fsync = die
    elif moment == "rename":
        os.replace = die
    else:
        os.replace = lambda *args: (real_replace(*args), die())


DEATHS = [
    *((moment, signal.SIGKILL) for moment in ("claim", "write", "sync", "rename", "synced")),
    *((moment, signal.SIGINT) for moment in ("write", "rename")),
]


@pytest.mark.parametrize(("moment", "number"), DEATHS, ids=str)
def test_a_killed_run_leaves_the_old_file_whole_and_the_next_one_no_litter(moment, number, tmp_path):
    target = put(tmp_path / "a.npy", b"old")
    assert die_at(moment, number, target) == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert names_in(tmp_path) == ["a.npy"]
    if moment == "synced":
        assert nd.read(target)["a"].sum() == 100_000
    else:
        assert target.read_bytes() == b"old"
    nd.write(tmp_path / "b.npy", np.ones(2))
    assert names_in(tmp_path) == ["a.npy", "b.npy"]


FULL_DISK = """
import resource, sys, numpy as np, ndtorch as nd
source, target = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for act in (lambda: nd.write(target, {"x": np.ones(100_000)}, overwrite=True),
            lambda: nd.convert_file(source, target, overwrite=True),
            lambda: nd.convert_file(source, target, overwrite=True, dtype="float32")):
    try:
        act()
    except OSError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".h5"])
def test_a_file_too_large_is_an_error_that_names_the_target_and_leaves_nothing(suffix, tmp_path):
    np.save(tmp_path / "source.npy", np.ones(100_000))
    target = put(tmp_path / f"a{suffix}", b"old")
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "source.npy", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"OSError [Errno 27] File too large: {str(target)!r}\n" * 3, done.stderr
    assert done.stderr == ""
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == [target.name, "source.npy"]


@pytest.fixture
def full_disk(tmp_path) -> Path:
    """A file system of its own, of 256 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(suffix, full_disk):
    target = full_disk / f"a{suffix}"
    nd.write(target, np.ones(10))
    before = target.read_bytes()
    with pytest.raises(OSError, match="No space left on device"):
        nd.write(target, np.ones(100_000), overwrite=True)
    assert target.read_bytes() == before
    assert names_in(full_disk) == [target.name]


def test_many_writers_of_one_target_leave_one_of_their_files_whole(tmp_path):
    target, failures = tmp_path / "a.npy", []

    def work(value: int) -> None:
        try:
            for _ in range(10):
                nd.write(target, np.full(5000, value), overwrite=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        if target.exists():
            found = nd.read(target, to="numpy")["a"].stored.read()
            assert (found == found[0]).all()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names_in(tmp_path) == ["a.npy"]


def test_what_another_is_writing_is_not_litter(tmp_path):
    with new_file(tmp_path / "a") as (temporary, descriptor):
        write_new(tmp_path / "b")
        write_new(tmp_path / "a")
        assert temporary.exists()
        os.write(descriptor, b"mine")
    assert (content(tmp_path / "a"), names_in(tmp_path)) == ("mine", ["a", "b"])


def test_litter_of_every_kind_is_swept_and_what_looks_like_it_is_not_followed(tmp_path):
    place, precious = tmp_path / "place", put(tmp_path / "precious", b"x")
    place.mkdir()
    put(place / ".ndtorch-0-0.tmp", b"half")
    put_folder(place / ".ndtorch-1-0.tmp")
    (place / ".ndtorch-2-0.tmp").symlink_to(precious)
    os.mkfifo(place / ".ndtorch-3-0.tmp")
    put(place / ".ndtorch-4-0.txt", b"of somebody else")
    write_new(place / "a")
    assert content(precious) == "x"
    assert content(place / "a") == "new"
    assert {".ndtorch-0-0.tmp", ".ndtorch-1-0.tmp"}.isdisjoint(names_in(place))
    assert ".ndtorch-4-0.txt" in names_in(place)


def test_links_in_place_of_what_is_written_are_not_written_through(tmp_path):
    precious = put(tmp_path / "precious", b"x")
    with new_file(tmp_path / "a") as (temporary, _):
        pass
    temporary.symlink_to(precious)
    write_new(tmp_path / "a")
    assert (content(precious), content(tmp_path / "a")) == ("x", "new")


def test_names_of_any_length_and_kind_are_written(tmp_path):
    for path in (tmp_path / name for name in ("x" * 250, "é 名", "-rf", "a\nb", "*", os.fsdecode(b"\xff\xfe"))):
        write_new(path)
        assert content(path) == "new"
