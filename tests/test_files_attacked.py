"""What careless and hostile users did to files, and what became of it."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from made_files import npy_with_header, put, safetensors_bytes

import ndtorch as nd
from ndtorch.files import archive, arrays, torch_file
from ndtorch.files.atomic import new_file

pytestmark = pytest.mark.once

# --- what a header can do to the parser


@pytest.mark.parametrize(
    "text",
    ["-" * 60_000 + "1", "not " * 15_000 + "1", "[" * 60_000, "[" * 150 + "]" * 150, "lambda:" * 9000 + "0", "f'{1}'"],
    ids=["signs", "not", "open", "nested", "lambda", "f"],
)
def test_no_header_ends_the_process_in_a_thread_of_a_small_stack(text, tmp_path):
    path = put(tmp_path / "a.npy", npy_with_header(text, version=2))
    code = (
        "import sys, threading\nfrom ndtorch.files import open_file\n"
        "def read():\n try: open_file(sys.argv[1])\n except ValueError as error: print(type(error).__name__)\n"
        "threading.stack_size(256 << 10)\nthread = threading.Thread(target=read); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "FormatError\n"), done.stderr


def test_headers_with_quotes_titles_and_records_in_records_are_read(tmp_path):
    inner = np.dtype([("it's", "<f4"), ('a"b\\', "<i2", (2,)), ("ü{[(", "u1")])
    array = np.zeros(3, np.dtype([(("title", "x"), inner), ("y", "S3")]))
    np.save(tmp_path / "a.npy", array)
    assert nd.read(tmp_path / "a.npy", to="numpy")["a"][...].dtype == np.load(tmp_path / "a.npy").dtype


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-8"])
def test_a_safetensors_header_is_utf8_text(encoding, tmp_path):
    name = "a" if encoding == "utf-16-le" else "\\ud800"
    header = f'{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}'.encode(encoding)
    path = put(tmp_path / "a.safetensors", safetensors_bytes(header, bytes(4)))
    with pytest.raises(nd.FormatError, match="its header is no JSON"):
        nd.read(path)


# --- what is written is read again


def test_names_of_more_steps_than_pt_reads_are_refused(tmp_path):
    for steps in (101, 5000):
        with pytest.raises(nd.FormatError, match="its name has more than 100 steps"):
            nd.write(tmp_path / "a.pt", {"/".join("a" * steps): np.zeros(1)})
    nd.write(tmp_path / "a.npz", {"/".join("a" * 5000): np.zeros(1)})
    with pytest.raises(nd.FormatError, match="its name has more than 100 steps"):
        nd.convert_file(tmp_path / "a.npz", tmp_path / "a.pt")
    nd.write(tmp_path / "a.pt", {"/".join("a" * 100): np.zeros(1)})
    assert len(nd.read(tmp_path / "a.pt")) == 1 == len(torch.load(tmp_path / "a.pt"))


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_what_could_not_be_read_again_for_its_names_is_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_DIRECTORY", 10_000)
    monkeypatch.setattr(torch_file, "_MAX_PICKLE", 10_000)
    with pytest.raises(nd.FormatError, match=r"names of 200 arrays are too long .* Hint: \.safetensors holds them"):
        nd.write(tmp_path / f"a{suffix}", {f"{i:0100}": np.zeros(1) for i in range(200)})
    nd.write(tmp_path / f"a{suffix}", {f"{i:010}": np.zeros(1) for i in range(40)})
    assert len(nd.read(tmp_path / f"a{suffix}")) == 40


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_more_fields_than_a_header_may_have_are_refused(suffix, tmp_path):
    array = np.zeros(2, [(f"a_long_name_of_field_{i}", "<f4") for i in range(3000)])
    with pytest.raises(nd.FormatError, match="the names of its 3000 fields are too long"):
        nd.write(tmp_path / f"a{suffix}", array)
    assert not list(tmp_path.iterdir())


# --- names


def test_a_file_whose_name_is_no_text_converts_under_another_name(tmp_path):
    path = os.path.join(tmp_path, "b\udcff.npy")
    np.save(path, np.arange(3))
    for suffix in (".npz", ".safetensors", ".pt"):
        with pytest.raises(nd.FormatError, match=r"'b\\udcff' is not Unicode text. Hint: name='array'"):
            nd.convert_file(path, tmp_path / f"a{suffix}")
        nd.convert_file(path, tmp_path / f"a{suffix}", name="array")
        assert list(nd.read(tmp_path / f"a{suffix}")) == ["array"]
    nd.convert_file(path, tmp_path / "a.npy")


def test_a_target_with_a_nul_in_its_name_is_an_error_of_ours(tmp_path):
    with pytest.raises(nd.FormatError, match="NUL"):
        nd.write(f"{tmp_path}/a\0b.npy", np.zeros(1))


# --- targets


def test_a_pipe_or_socket_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "a")
    (tmp_path / "b.npy").symlink_to("a")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/c.npy")
        for name in ("b.npy", "c.npy"):
            with pytest.raises(nd.FormatError, match="it is a device, a pipe or a socket"):
                nd.write(tmp_path / name, np.zeros(1), overwrite=True)
    assert stat.S_ISFIFO(os.stat(tmp_path / "a").st_mode)
    assert stat.S_ISSOCK(os.stat(tmp_path / "c.npy").st_mode)


def test_a_new_file_does_not_lend_the_rights_of_its_owner(tmp_path):
    path = put(tmp_path / "a.npy", b"old")
    os.chmod(path, 0o6751)
    nd.write(path, np.zeros(1), overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


def test_of_several_who_write_a_new_file_at_once_one_does(tmp_path):
    start, written = threading.Barrier(8), []

    def write(value: int) -> None:
        start.wait()
        try:
            nd.write(tmp_path / "a.npy", np.full(1000, value))
        except nd.FormatError as error:
            assert "exists" in str(error)  # noqa: PT017
        else:
            written.append(value)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [int(nd.read(tmp_path / "a.npy")["a"][0])]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("has_rename", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(has_rename, tmp_path, monkeypatch):
    if not has_rename:
        monkeypatch.setattr("ndtorch.files.atomic._renamed", lambda *args: False)
    target = tmp_path / "a"
    with pytest.raises(nd.FormatError, match="exists"), new_file(target, overwrite=False):
        target.write_bytes(b"other")
    assert target.read_bytes() == b"other"
    assert len(list(tmp_path.iterdir())) == 1


# --- many files, and views


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_folder_of_more_files_than_may_be_open_becomes_one(order, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(400):
        np.save(tmp_path / "in" / f"{i:03}.npy", np.array([[i, 1], [2, 3]], order=order))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 330), hard))
    try:
        nd.convert_file(tmp_path / "in", tmp_path / "a.safetensors", verify=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    made = nd.read(tmp_path / "a.safetensors", to="numpy")
    assert [int(made[f"{i:03}"][0, 0]) for i in range(400)] == list(range(400))


def test_elements_that_lie_near_each_other_are_read_in_few_pieces(tmp_path, monkeypatch):
    base = torch.arange(400_000)
    views = {"a": base[::10], "b": base.view(1000, 400)[::3, ::7], "c": base.view(40, 100, 100)[:, ::9, ::5].mT}
    torch.save(views, tmp_path / "a.pt")
    read, calls = arrays.FileArray._at, []
    monkeypatch.setattr(arrays.FileArray, "_at", lambda *args: (calls.append(1), read(*args))[1])
    monkeypatch.setattr(arrays, "BLOCK", 1 << 18)
    nd.convert_file(tmp_path / "a.pt", tmp_path / "a.safetensors", verify=True)
    assert len(calls) < 3000  # of some 50,000 elements
    made = nd.read(tmp_path / "a.safetensors")
    assert all(torch.equal(made[name][...], view) for name, view in views.items())
