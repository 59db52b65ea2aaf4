"""Conversions into shards, killed and given what is damaged: nothing is left over, and nothing crashes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreters import Interpreters

import ndtorch as nd
from ndtorch import FormatError, InvalidOptionError, NdtorchError
from ndtorch.files.atomic import put_file, sweep
from ndtorch.scale import convert_many, job
from ndtorch.scale.ledger import FOLDER

pytestmark = pytest.mark.once


@pytest.fixture
def source(tmp_path) -> Path:
    """Four files of three rows."""
    (tmp_path / "src").mkdir()
    for n in range(4):
        np.save(tmp_path / "src" / f"{n}.npy", np.arange(n * 6, n * 6 + 6, dtype=np.float32).reshape(3, 2))
    return tmp_path / "src"


def all_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- what a kill leaves


KILLED = """
from ndtorch.files import atomic
synced, calls = os.fsync, []

def killed(descriptor):
    name = os.readlink(f"/proc/self/fd/{{descriptor}}")
    if name.endswith(".tmp") and os.path.isfile(name):
        calls.append(1)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    synced(descriptor)

os.fsync = killed
convert_many({source!r}, {target!r}, shard_size=32)
"""


def test_a_kill_while_a_small_file_is_written_leaves_nothing_for_good(tmp_path, source):
    convert_many(source, tmp_path / "whole", shard_size=32)
    with Interpreters("from ndtorch.scale import convert_many, job", tmp_path) as interpreters:
        for at in 1, 2, 3, 4:  # what the target is made for, what is announced, its entry in the ledger, the index
            target = tmp_path / f"out{at}"
            script = KILLED.format(at=at, source=str(source), target=str(target))
            status, said = interpreters.run(script)
            assert status == -signal.SIGKILL, said
            assert any(name.endswith(".tmp") for name in all_of(target))
            convert_many(source, target, shard_size=32)
            assert all_of(target) == all_of(tmp_path / "whole")


def test_a_sweep_leaves_alone_what_is_being_written(tmp_path, monkeypatch):
    home, replace, seen = tmp_path / "new", os.replace, []

    def replaced(one: Any, other: Any) -> None:
        sweep(home)
        seen.append(Path(one).parent)
        replace(one, other)

    monkeypatch.setattr(os, "replace", replaced)
    put_file(tmp_path / "deep" / "x.json", b"content", home)
    assert seen == [home]
    assert (tmp_path / "deep" / "x.json").read_bytes() == b"content"
    assert not list(home.iterdir())


def test_a_second_run_of_one_process_removes_scratch_as_the_first_did(tmp_path, source):
    convert_many(source, tmp_path / "out", shard_size=32)
    left = tmp_path / "out" / ".ndtorch" / "new" / ".ndtorch-of_a_worker.tmp"
    left.mkdir()
    (left / "0.safetensors").touch()
    convert_many(source, tmp_path / "out", shard_size=32)
    assert not left.exists()


# --- an entry of the ledger that is damaged


def test_a_changed_byte_anywhere_in_an_entry_has_its_unit_done_again(tmp_path, source):
    out = tmp_path / "out"
    convert_many(source, out, shard_size=32)
    index, generator = (out / "index.json").read_bytes(), random.Random(7)
    (entry,) = (out / FOLDER).iterdir()
    good = entry.read_bytes()
    ledger = job.Ledger(job.place_at(str(out)), "")
    assert ledger._entry(entry.name) is not None
    checksum = good.index(b"\n") + 1
    places = [generator.randrange(len(good)) for _ in range(200)]
    bits = [generator.randrange(8) for _ in places]
    for at, bit in [*zip(places, bits, strict=True), *product(range(checksum, checksum + 8), range(8))]:
        entry.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        assert job.Ledger(job.place_at(str(out)), "")._entry(entry.name) is None
    entry.write_bytes(good.replace(b'"000000-000.safetensors", 4,', b'"000000-000.safetensors", 5,'))
    assert convert_many(source, out, shard_size=32).converted == 1
    assert (out / "index.json").read_bytes() == index


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"null", b'{"options": NaN}'])
def test_a_damaged_note_of_what_a_target_was_made_for_is_an_error_of_ours_or_none(tmp_path, source, content):
    convert_many(source, tmp_path / "out", shard_size=32)
    (tmp_path / "out" / ".ndtorch" / "made_for.json").write_bytes(content)
    with suppress(NdtorchError):
        convert_many(source, tmp_path / "out", shard_size=32)
    assert convert_many(source, tmp_path / "out", shard_size=32, overwrite=True).units == 1


# --- an index that somebody has edited


def wrapped(index: dict[str, Any]) -> None:
    """Row counts of which the sum is right in 64 bits."""
    index["shards"]["rows"] = [2**63 - 1, 2**63 - 1, 2]
    index["rows"] = 0


def turned(index: dict[str, Any]) -> None:
    """Rows that end where they should, and were below zero on the way."""
    index["shards"]["rows"] = [2**63 - 1, 2**63 - 1, 14]
    index["rows"] = 12


def half_a_pair(index: dict[str, Any]) -> None:
    index["shards"]["name"][0] = "\ud800.safetensors"


def arrays_as_elements(index: dict[str, Any]) -> None:
    index["rows"] = 0
    index["arrays"]["data"]["dtype"] = "(3,)f4"
    index["shards"] = {key: [] for key in ("name", "rows", "nbytes", "crc32")}


@pytest.mark.parametrize("spoil", [wrapped, turned, half_a_pair, arrays_as_elements])
def test_an_index_that_was_edited_is_said_to_be_damaged(tmp_path, source, spoil: Callable[[dict[str, Any]], None]):
    convert_many(source, tmp_path / "out", shard_size=32)
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_bytes())
    assert len(index["shards"]["name"]) == 3
    spoil(index)
    path.write_text(json.dumps(index, separators=(",", ":")))
    for look in (nd.read, nd.Loader, lambda out: convert_many(out, tmp_path / "other")):
        with pytest.raises(FormatError, match="is damaged"):
            look(tmp_path / "out")


# --- odd sources and options


@pytest.mark.parametrize("shard_size", [32, None])
def test_a_data_set_without_rows_as_the_only_source_is_refused_by_name(tmp_path, shard_size):
    np.save(tmp_path / "x.npy", np.zeros((0, 2), np.float32))
    convert_many(tmp_path / "x.npy", tmp_path / "empty")
    assert nd.read(tmp_path / "empty")["data"].shape == (0, 2)
    with pytest.raises(FormatError, match="empty' is a data set without rows"):
        convert_many(tmp_path / "empty", tmp_path / "out", shard_size=shard_size)
    assert not (tmp_path / "out").exists()


def test_rows_without_elements_are_one_shard_however_many_there_are(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((10**15, 0), np.float32))
    done = convert_many([tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "out", to="npy", shard_size=1)
    assert (done.rows, done.shards) == (2 * 10**15, 1)
    assert nd.read(tmp_path / "out")["data"].shape == (2 * 10**15, 0)


@pytest.mark.parametrize("size", ["9" * 400, "9" * 308 + "TB"])
def test_a_size_beyond_all_numbers_is_no_size(tmp_path, source, size):
    with pytest.raises(InvalidOptionError, match="is no size"):
        convert_many(source, tmp_path / "out", shard_size=size)


def test_links_that_lead_nowhere_are_left_out_like_other_broken_sources(tmp_path, source):
    (source / "1a.npy").symlink_to("nowhere")
    (source / "2a.npy").symlink_to("2a.npy")
    with pytest.raises(FormatError, match=r"1a\.npy': no such file"):
        convert_many(source, tmp_path / "out", shard_size=32)
    done = convert_many(source, tmp_path / "out", shard_size=32, on_error="skip")
    assert [Path(each.path).name for each in done.failures] == ["1a.npy", "2a.npy"]
    rows = np.concatenate([np.load(source / f"{n}.npy") for n in range(4)])
    np.testing.assert_array_equal(nd.read(tmp_path / "out", to="numpy")["data"][:], rows)
    (source / "1a.npy").unlink()
    np.save(source / "1a.npy", rows[:1])
    assert convert_many(source, tmp_path / "out", shard_size=32, on_error="skip").rows == 13


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_no_index_and_is_not_waited_for(tmp_path, source, make: Callable[[Path], None]):
    convert_many(source, tmp_path / "out", shard_size=32)
    (tmp_path / "out" / "index.json").unlink()
    make(tmp_path / "out" / "index.json")
    with pytest.raises(FormatError, match="has not finished"):
        nd.read(tmp_path / "out")


def test_a_name_that_is_no_unicode_text_is_refused_where_the_output_has_to_keep_it(tmp_path, source):
    name = os.fsdecode(b"\xff.npy")
    (source / "0.npy").rename(source / name)
    with pytest.raises(FormatError, match="Unicode"):
        convert_many(source / name, tmp_path / "out", shard_size=None)
    assert convert_many(source, tmp_path / "shards", shard_size=32).rows == 12


# --- who is to blame


# --- what lies in the place of an output


def fifo_of(path: Path) -> None:
    os.mkfifo(path)


def folder_of(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_bytes(b"mine")


def folder_around(path: Path) -> None:
    """A folder with the shard itself in it: together they are as long as the shard was."""
    content = Path(path).with_name("moved").read_bytes()
    path.mkdir()
    (path / "shard").write_bytes(content)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("shard_size", [32, None])
@pytest.mark.parametrize(
    ("put", "what"),
    [
        (folder_of, "it is a folder"),
        (folder_around, "it is a folder"),
        (fifo_of, "it is a device, a pipe or a socket"),
    ],
)
def test_what_lies_in_the_place_of_an_output_is_named_and_left_alone(
    tmp_path, source, put: Callable[[Path], None], what, shard_size, on_error
):
    options: dict[str, Any] = {"shard_size": shard_size, "on_error": on_error}
    out = tmp_path / "out"
    convert_many(source, out, **options)
    convert_many(source, tmp_path / "whole", **options)
    name = "000000-001.safetensors" if shard_size else "1.safetensors"
    (out / name).rename(out / "moved")
    put(out / name)
    before = all_of(out / name)
    for _ in range(2):
        with pytest.raises(FormatError, match=f"cannot write '{out / name}': {what}. Hint: move it away"):
            convert_many(source, out, **options)
        assert (out / name).exists()
        assert all_of(out / name) == before
    (out / name).rename(tmp_path / "away")
    (out / "moved").unlink()
    assert convert_many(source, out, **options).failures == ()
    assert all_of(out) == all_of(tmp_path / "whole")


def test_a_link_in_the_place_of_a_shard_is_replaced_and_what_it_leads_to_is_not(tmp_path, source):
    out = tmp_path / "out"
    convert_many(source, out, shard_size=32)
    names = ["000000-000.safetensors", "000000-001.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    before = nd.read(out, to="numpy")["data"][...]
    for name, place in zip(names, [tmp_path / "nowhere", tmp_path / "mine"], strict=True):
        (out / name).unlink()
        (out / name).symlink_to(place)
    convert_many(source, out, shard_size=32)
    np.testing.assert_array_equal(nd.read(out, to="numpy")["data"][...], before)
    assert not any((out / name).is_symlink() for name in names)
    assert all_of(tmp_path / "mine") == {"thesis.tex"}
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("put", "what"),
    [
        (folder_of, "it is a folder, and no zarr store"),
        (Path.touch, "it is a file, and a folder would replace it"),
        (lambda path: path.symlink_to(path.with_name("nowhere")), "it is a link, and a folder cannot replace it"),
    ],
)
def test_what_lies_in_the_place_of_a_store_is_named_and_left_alone(tmp_path, source, put: Callable[[Path], None], what):
    out = tmp_path / "out"
    convert_many(source, out, shard_size=32, to="zarr")
    before = nd.read(out, to="numpy")["data"][...]
    name = "000000-001.zarr"
    (out / name).rename(tmp_path / "moved")
    put(out / name)
    with pytest.raises(FormatError, match=f"cannot write '{out / name}': {what}. Hint: move it away"):
        convert_many(source, out, shard_size=32, to="zarr")
    assert os.path.lexists(out / name)
    (out / name).rename(tmp_path / "away")
    convert_many(source, out, shard_size=32, to="zarr")
    np.testing.assert_array_equal(nd.read(out, to="numpy")["data"][...], before)


def test_a_folder_in_the_place_of_the_index_is_named_and_left_alone(tmp_path, source):
    out = tmp_path / "out"
    convert_many(source, out, shard_size=32)
    (out / "index.json").unlink()
    folder_of(out / "index.json")
    (out / "000000-001.safetensors").unlink()
    with pytest.raises(FormatError, match=r"index.json': it is a folder. Hint: move it away"):
        convert_many(source, out, shard_size=32)
    assert (out / "index.json" / "thesis.tex").exists()


def test_a_file_in_the_place_of_a_folder_of_outputs_is_named(tmp_path):
    (tmp_path / "src" / "a").mkdir(parents=True)
    np.save(tmp_path / "src" / "a" / "x.npy", np.ones(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with pytest.raises(FormatError, match=r"/out/a': it is no folder. Hint: move it away"):
        convert_many(tmp_path / "src" / "**", tmp_path / "out", shard_size=None)


@pytest.mark.parametrize("shard_size", ["1MB", None])
def test_a_source_without_a_name_is_not_the_current_folder(tmp_path, source, shard_size, monkeypatch):
    monkeypatch.chdir(source)
    with pytest.raises(FormatError, match=r"a source has no name\. Hint: '\.' is the current folder"):
        nd.convert_many("", tmp_path / "target", shard_size=shard_size)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("shard_size", ["1MB", None])
def test_a_full_disk_is_an_error_and_no_fault_of_the_sources(tmp_path, source, shard_size, monkeypatch):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ndtorch.files.safetensors.write", full)
    with pytest.raises(OSError, match="No space left"):
        convert_many(source, tmp_path / "out", shard_size=shard_size, on_error="skip", engine="threads", workers=1)
    monkeypatch.undo()
    done = convert_many(source, tmp_path / "out", shard_size=shard_size, on_error="skip")
    assert (done.converted, done.failures) == (1, ())


def test_one_dtype_by_several_names_is_one_option(tmp_path, source):
    convert_many(source, tmp_path / "out", dtype="float64")
    for dtype in (np.float64, np.dtype("f8"), "double", torch.float64):
        assert convert_many(source, tmp_path / "out", dtype=dtype).skipped == 1
    with pytest.raises(FormatError, match="dtype was float64 and is float32"):
        convert_many(source, tmp_path / "out", dtype="float32")
