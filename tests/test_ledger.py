"""The ledger: what is done is not done again, what is not is, and nothing is removed that somebody else has made."""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreters import Interpreters

import ndtorch as nd
from ndtorch import FormatError
from ndtorch.scale import convert_many, plans, units
from ndtorch.scale.index import write_index
from ndtorch.scale.ledger import FOLDER, Entry, Failure, Ledger, Output
from ndtorch.scale.places import LocalPlace
from ndtorch.scale.units import SourceFile, Unit

pytestmark = pytest.mark.once


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """Six files of two rows, three units."""
    monkeypatch.setattr(units.units_of, "__kwdefaults__", {"nbytes": 1 << 20, "count": 2})
    (tmp_path / "src").mkdir()
    for n in range(6):
        np.save(tmp_path / "src" / f"{n}.npy", np.full((2, 2), n, np.float32))
    return tmp_path / "src"


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every output: what is written again has others."""
    found = (path for path in folder.iterdir() if path.suffix == ".safetensors")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def rows_of(folder: Path) -> list[float]:
    return nd.read(folder, to="numpy")["data"][:, 0].tolist()


EXPECTED = [0.0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_what_is_done_is_not_done_again(source, tmp_path):
    convert_many(source, tmp_path / "out")
    before, index = state_of(tmp_path / "out"), (tmp_path / "out" / "index.json").read_bytes()
    found = convert_many(source, tmp_path / "out")
    assert (found.skipped, found.nbytes_out) == (3, 0)
    assert state_of(tmp_path / "out") == before
    assert (tmp_path / "out" / "index.json").read_bytes() == index
    assert rows_of(tmp_path / "out") == EXPECTED


def spoil_nothing(out: Path) -> None:
    (entry,) = (out / FOLDER).glob("000001-*.json")
    entry.unlink()


def spoil_junk(out: Path) -> None:
    (entry,) = (out / FOLDER).glob("000001-*.json")
    entry.write_bytes(b"\0junk")


def spoil_half(out: Path) -> None:
    (entry,) = (out / FOLDER).glob("000001-*.json")
    entry.write_bytes(entry.read_bytes()[:-3])


def spoil_bit(out: Path) -> None:
    (entry,) = (out / FOLDER).glob("000001-*.json")
    entry.write_bytes(entry.read_bytes().replace(b'"number": 1', b'"number": 2'))


def spoil_deleted(out: Path) -> None:
    (out / "000001-000.safetensors").unlink()


def spoil_truncated(out: Path) -> None:
    os.truncate(out / "000001-000.safetensors", 9)


@pytest.mark.parametrize(
    "spoil",
    [spoil_nothing, spoil_junk, spoil_half, spoil_bit, spoil_deleted, spoil_truncated],
    ids=lambda f: f.__name__,
)
def test_what_is_damaged_or_gone_is_done_again_and_nothing_else(source, tmp_path, spoil):
    convert_many(source, tmp_path / "out")
    before = state_of(tmp_path / "out")
    spoil(tmp_path / "out")
    assert convert_many(source, tmp_path / "out").skipped == 2
    after = state_of(tmp_path / "out")
    assert {name for name in before if after[name] == before[name]} == {
        "000000-000.safetensors",
        "000002-000.safetensors",
    }
    assert rows_of(tmp_path / "out") == EXPECTED


def test_junk_in_the_ledger_is_no_entry(source, tmp_path):
    convert_many(source, tmp_path / "out")
    for name in ("x.json", "000001-zz.json", "-.json", "000009-" + "0" * 24 + ".json", ".tmp"):
        (tmp_path / "out" / FOLDER / name).write_bytes(b"[]")
    assert convert_many(source, tmp_path / "out").skipped == 3


def test_a_changed_source_is_done_again(source, tmp_path):
    convert_many(source, tmp_path / "out")
    np.save(source / "3.npy", np.full((2, 2), 33, np.float32))
    os.utime(source / "3.npy", (1, 1))  # another time than before, however coarse the clock of the file system is
    assert convert_many(source, tmp_path / "out").skipped == 2
    assert rows_of(tmp_path / "out") == [0.0, 0, 1, 1, 2, 2, 33, 33, 4, 4, 5, 5]


def test_changed_options_are_noticed_and_what_is_old_goes(source, tmp_path):
    convert_many(source, tmp_path / "out", shard_size=16)
    assert len(state_of(tmp_path / "out")) == 6
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "000000-777.safetensors").write_bytes(b"mine too")
    assert convert_many(source, tmp_path / "out", shard_size=16, float_dtype="float16", overwrite=True).skipped == 0
    found = convert_many(source, tmp_path / "out", overwrite=True)
    assert found.skipped == 0
    assert sorted(state_of(tmp_path / "out")) == [
        "000000-000.safetensors",
        "000000-777.safetensors",
        "000001-000.safetensors",
        "000002-000.safetensors",
    ]
    assert (tmp_path / "out" / "notes.txt").exists()
    assert len(list((tmp_path / "out" / FOLDER).iterdir())) == 3
    assert rows_of(tmp_path / "out") == EXPECTED


def test_old_options_do_not_vouch_for_new_outputs_of_the_same_size(source, tmp_path, monkeypatch):
    convert_many(source, tmp_path / "out")

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "enter", stopped)
        with pytest.raises(KeyboardInterrupt):
            convert_many(source, tmp_path / "out", dtype="int32", casting="unsafe", workers=1, overwrite=True)
    assert len(state_of(tmp_path / "out")) == 3
    assert convert_many(source, tmp_path / "out", overwrite=True).skipped == 0
    assert rows_of(tmp_path / "out") == EXPECTED


def test_an_output_that_somebody_has_replaced_is_not_removed(source, tmp_path):
    convert_many(source, tmp_path / "out")
    (tmp_path / "out" / "000002-000.safetensors").write_bytes(b"of somebody else")
    for n in (4, 5):
        (source / f"{n}.npy").unlink()
    convert_many(source, tmp_path / "out")
    assert (tmp_path / "out" / "000002-000.safetensors").read_bytes() == b"of somebody else"
    assert rows_of(tmp_path / "out") == EXPECTED[:8]


def test_outputs_of_units_that_are_no_more_go(source, tmp_path):
    convert_many(source, tmp_path / "out")
    for n in (4, 5):
        (source / f"{n}.npy").unlink()
    assert convert_many(source, tmp_path / "out").skipped == 2
    assert sorted(state_of(tmp_path / "out")) == ["000000-000.safetensors", "000001-000.safetensors"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".ndtorch/lock"])
def test_an_entry_that_names_what_is_elsewhere_is_none(tmp_path, name):
    place = LocalPlace(str(tmp_path / "out"))
    unit = Unit(0, (SourceFile("/a.npy", "a.npy", 1, "1"),))
    ledger = Ledger(place, "")
    ledger.enter(unit, Entry(0, unit.key(""), (Output(name, 1, 4, 0),)))
    (tmp_path / "x").write_bytes(b"1234")
    again = Ledger(place, "other")
    assert Ledger(place, "").done([unit]) == set()
    again.begin([unit])
    again.tidy([unit])
    assert (tmp_path / "x").exists()


def test_an_entry_keeps_everything_and_the_sources(tmp_path):
    place = LocalPlace(str(tmp_path))
    files = (SourceFile("/a.npy", "a.npy", 7, "1"), SourceFile("https://me:secret@host/b.npy?key=1", "b.npy", 8, "2"))
    unit = Unit(3, files)
    (tmp_path / "x").write_bytes(b"1234")
    entry = Entry(
        3, unit.key("o"), (Output("x", 2, 4, 9, {"data": 5}),), (Failure("a", "b"),), {"data": ("<U3", (2, 0))}, 1.5
    )
    Ledger(place, "o").enter(unit, entry)
    ledger = Ledger(place, "o")
    assert ledger.done([unit]) == {3}
    assert list(ledger.read([3])) == [entry]
    assert ledger.sources(3) == [("/a.npy", 7, "1"), ("https://host/b.npy", 8, "2")]
    assert b"secret" not in b"".join(path.read_bytes() for path in (tmp_path / FOLDER).iterdir())


def test_a_unit_with_failures_is_tried_again(source, tmp_path):
    good = (source / "3.npy").read_bytes()
    (source / "3.npy").write_bytes(good[:-1])
    found = convert_many(source, tmp_path / "out", on_error="skip")
    assert (len(found.failures), found.rows) == (1, 10)
    again = convert_many(source, tmp_path / "out", on_error="skip")
    assert (again.skipped, len(again.failures), again.rows) == (2, 1, 10)
    (source / "3.npy").write_bytes(good)
    assert convert_many(source, tmp_path / "out", on_error="skip").failures == ()
    assert rows_of(tmp_path / "out") == EXPECTED


def test_the_index_goes_before_anything_is_done_again(source, tmp_path):
    convert_many(source, tmp_path / "out")
    (source / "3.npy").write_bytes(b"broken")
    with pytest.raises(FormatError):
        convert_many(source, tmp_path / "out")
    with pytest.raises(FormatError, match="its conversion has not finished"):
        nd.read(tmp_path / "out")


def test_ranks_write_one_index_and_it_is_that_of_one_run(source, tmp_path):
    convert_many(source, tmp_path / "one")
    for rank in range(2):
        assert not (tmp_path / "two" / "index.json").exists()
        convert_many(source, tmp_path / "two", rank=rank, world_size=2)
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()


def added(source: Path) -> None:
    np.save(source / "2b.npy", np.full((2, 2), 9, np.float32))


def removed(source: Path) -> None:
    (source / "5.npy").unlink()


def grown(source: Path) -> None:
    np.save(source / "4.npy", np.full((3, 2), 4, np.float32))


@pytest.mark.parametrize(
    ("change", "most", "how"),
    [
        (added, 10, "6 files there, 7 here, the first that differs is '{src}/3.npy' there and '{src}/2b.npy' here"),
        (removed, 10, "6 files there, 5 here, the first that only one has is '{src}/5.npy'"),
        (
            grown,
            10,
            "6 files there, 6 here, the first that has changed is '{src}/4.npy', of 144 bytes there and 152 here",
        ),
        (grown, 5, "6 files there, 6 here, the first that differs comes at or after '{src}/4.npy'"),
    ],
)
def test_ranks_that_have_listed_other_sources_say_so_when_the_last_one_ends(
    source, tmp_path, monkeypatch, change: Callable[[Path], None], most, how
):
    monkeypatch.setattr(plans, "_MOST", most)
    assert convert_many(source, tmp_path / "out", rank=0, world_size=2).rows == 0
    change(source)
    with pytest.raises(FormatError) as caught:
        convert_many(source, tmp_path / "out", rank=1, world_size=2)
    assert caught.value.rank == 0
    fact = f"rank 0 of 2 has listed other sources than rank 1: {how.format(src=source)}"
    assert str(caught.value).partition(" gets no index: ")[2].startswith(f"{fact}. Hint: run all ranks again")
    assert not (tmp_path / "out" / "index.json").exists()
    convert_many(source, tmp_path / "out", rank=0, world_size=2)
    assert (tmp_path / "out" / "index.json").exists()
    assert list((tmp_path / "out" / plans.FOLDER).iterdir()) == []
    convert_many(source, tmp_path / "one")
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "one")


def test_a_rank_that_has_not_finished_is_waited_for_whatever_it_had_listed_before(source, tmp_path):
    (source / "2.npy").write_bytes(b"broken")
    with pytest.raises(FormatError, match=r"2\.npy"):
        convert_many(source, tmp_path / "out", rank=1, world_size=2)
    np.save(source / "2.npy", np.full((2, 2), 2, np.float32))
    assert convert_many(source, tmp_path / "out", rank=0, world_size=2).rows == 0
    assert convert_many(source, tmp_path / "out", rank=1, world_size=2).rows == 12


@pytest.mark.parametrize("content", [b"", b"junk", zlib.compress(b"[]"), zlib.compress(b'{"finished": 1, "files": 3}')])
def test_a_damaged_note_of_a_rank_is_an_error_of_ours_or_none(source, tmp_path, content):
    convert_many(source, tmp_path / "out", rank=0, world_size=2)
    (tmp_path / "out" / plans.FOLDER / "0-of-2").write_bytes(content)
    assert convert_many(source, tmp_path / "out", rank=1, world_size=2).rows == 12
    (source / "0.npy").write_bytes((source / "0.npy").read_bytes() + b" ")
    (tmp_path / "out" / plans.FOLDER / "0-of-2").write_bytes(content)
    with suppress(FormatError):
        assert convert_many(source, tmp_path / "out", rank=1, world_size=2).rows == 0


def test_an_index_of_units_that_disagree_is_refused(tmp_path):
    entries = [
        Entry(n, "", (Output(f"{n}", 1, 4, 0, {"x": 0}),), (), {"x": (dtype, ())})
        for n, dtype in enumerate(("int32", "int64"))
    ]
    with pytest.raises(FormatError, match="unit 1 has other arrays"):
        write_index(LocalPlace(str(tmp_path)), "npy", entries)


def stop_before_the_entry(monkeypatch, *arguments: Any, **options: Any) -> None:
    """Publish units, and be stopped before any is in the ledger, as by a kill."""

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "enter", stopped)
        with pytest.raises(KeyboardInterrupt):
            convert_many(*arguments, workers=1, **options)


def test_shards_that_were_published_and_never_entered_go_where_their_unit_has_fewer(source, tmp_path, monkeypatch):
    stop_before_the_entry(monkeypatch, source, tmp_path / "out", shard_size=16)
    assert sorted(state_of(tmp_path / "out")) == ["000000-000.safetensors", "000000-001.safetensors"]
    (tmp_path / "out" / "000000-777.safetensors").write_bytes(b"of somebody else")
    for n in (0, 1):
        np.save(source / f"{n}.npy", np.full((1, 2), n, np.float32))
    found = convert_many(source, tmp_path / "out", shard_size=16)
    assert sorted(state_of(tmp_path / "out")) == [
        "000000-000.safetensors",
        "000000-777.safetensors",
        *(f"00000{unit}-00{part}.safetensors" for unit in (1, 2) for part in (0, 1)),
    ]
    assert (found.shards, rows_of(tmp_path / "out")) == (5, [0.0, 1, *EXPECTED[4:]])
    assert all(path.suffix == ".json" for path in (tmp_path / "out" / FOLDER).iterdir())


def test_outputs_that_were_published_and_never_entered_go_with_their_sources(source, tmp_path, monkeypatch):
    stop_before_the_entry(monkeypatch, source, tmp_path / "out", shard_size=None)
    assert sorted(state_of(tmp_path / "out")) == ["0.safetensors", "1.safetensors"]
    (source / "0.npy").unlink()
    convert_many(source, tmp_path / "out", shard_size=None)
    assert sorted(state_of(tmp_path / "out")) == [f"{n}.safetensors" for n in range(1, 6)]


def test_what_was_announced_and_somebody_has_replaced_is_not_removed(source, tmp_path, monkeypatch):
    stop_before_the_entry(monkeypatch, source, tmp_path / "out", shard_size=16)
    (tmp_path / "out" / "000000-001.safetensors").write_bytes(b"of somebody else")
    for n in (0, 1):
        np.save(source / f"{n}.npy", np.full((1, 2), n, np.float32))
    convert_many(source, tmp_path / "out", shard_size=16)
    assert (tmp_path / "out" / "000000-001.safetensors").read_bytes() == b"of somebody else"


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory) -> Iterator[Interpreters]:
    start = "from ndtorch.scale import convert_many, job, outputs, places, units\n"
    start += "units.units_of.__kwdefaults__['count'] = 2"
    with Interpreters(start, tmp_path_factory.mktemp("said")) as found:
        yield found


KILLED = """
from ndtorch.scale import {module} as module
real, calls = module.{name}, []

def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

module.{name} = killed
convert_many({source!r}, {target!r}, workers=1)
"""


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        ("outputs", "sync_all", 2),
        ("outputs", "sync_folder", 2),
        ("outputs", "_streamed", 3),
        ("places", "sync_folder", 3),
        ("places", "sync_folder", 4),
    ],
)
def test_a_run_that_was_killed_goes_on_where_it_stopped(interpreters, source, tmp_path, module, name, at):
    paths = {"source": str(source), "target": str(tmp_path / "out")}
    status, said = interpreters.run(KILLED.format(module=module, name=name, at=at, **paths))
    assert status == -signal.SIGKILL, said
    before = state_of(tmp_path / "out")
    finished = {path.name[:6] for path in (tmp_path / "out" / FOLDER).glob("*.json")}
    assert finished
    with pytest.raises(FormatError, match="has not finished"):
        nd.read(tmp_path / "out")
    assert convert_many(source, tmp_path / "out").skipped == len(finished)
    after = state_of(tmp_path / "out")
    assert all(after[each] == before[each] for each in before if each[:6] in finished)
    assert rows_of(tmp_path / "out") == EXPECTED
    assert list((tmp_path / "out" / ".ndtorch" / "new").iterdir()) == []
    assert json.loads((tmp_path / "out" / "index.json").read_bytes())["rows"] == 12
