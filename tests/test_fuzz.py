"""The fuzz target: a short run finds nothing, and what it is there to find it does find."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import fuzz_files
import pytest
from made_files import names_in

import ndtorch as nd
from ndtorch.files import npy

pytestmark = pytest.mark.once
PTR = ctypes.c_void_p


def test_a_few_hundred_spoiled_files_do_no_harm(tmp_path):
    counts, failures = fuzz_files.run(7, tmp_path, cases=150)
    assert failures == []
    assert sum(counts.values()) == 150
    assert {key.partition(" ")[2] for key in counts} >= {"read", "FormatError"}


def test_a_case_follows_from_seed_and_number_alone(tmp_path):
    sound, rows = fuzz_files.sound_files(tmp_path), fuzz_files.formats()
    assert fuzz_files.case(rows, sound, 3, 14) == fuzz_files.case(rows, sound, 3, 14)
    assert fuzz_files.case(rows, sound, 3, 14) != fuzz_files.case(rows, sound, 4, 14)


def other_error(path: Path) -> None:
    raise KeyError("lost")


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: Path) -> None:
    signal.pause()


def grow(path: Path) -> None:
    bytearray(fuzz_files.MAX_GROWTH + (512 << 20))


def change_the_source(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def execute(path: Path) -> None:
    fuzz_files.canary_of(7).mkdir(exist_ok=True)


def litter(path: Path) -> None:
    (path.parent / "target" / "half").touch()


HARM = {
    other_error: "KeyError: 'lost'",
    crash: "crashed",
    hang: "hung for 0 seconds",
    grow: "MiB of memory",
    change_the_source: "the source was changed",
    execute: "a pickle was executed",
    litter: "left behind: ['half']",
}


@pytest.mark.parametrize("harm", HARM)
def test_every_kind_of_harm_is_noticed_and_its_file_kept(harm, tmp_path, monkeypatch):
    real = npy.read_headers

    def read_headers(storage, name):
        harm(Path(storage.path))
        return real(storage, name)

    monkeypatch.setattr(npy, "read_headers", read_headers)
    if harm is grow:
        monkeypatch.setattr(fuzz_files, "MAX_GROWTH", 32 << 20)
    if harm is hang:
        monkeypatch.setattr(fuzz_files, "MAX_SECONDS", 0.4)
    try:
        counts, failures = fuzz_files.run(7, tmp_path / "out", cases=1, names={"npy"})
    finally:
        if fuzz_files.canary_of(7).exists():
            fuzz_files.canary_of(7).rmdir()
    assert len(failures) == 1
    assert HARM[harm] in failures[0]
    assert names_in(tmp_path / "out") == ["7-0.npy"]
    assert sum(counts.values()) == 0


def test_memory_that_the_process_had_before_does_not_hide_what_a_case_takes(tmp_path, monkeypatch):
    """Freed pieces below one that is kept stay with malloc until that one is freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = PTR, [PTR], [PTR, ctypes.c_int, ctypes.c_size_t]
    pieces = [libc.malloc(100_000) for _ in range(2000)]
    kept = [libc.malloc(100_000)]
    for piece in pieces:
        libc.memset(piece, 1, 100_000)
        libc.free(piece)
    real = npy.read_headers

    def read_headers(storage, name):
        while kept:
            libc.free(kept.pop())
        grow(Path(storage.path))
        return real(storage, name)

    monkeypatch.setattr(npy, "read_headers", read_headers)
    monkeypatch.setattr(fuzz_files, "MAX_GROWTH", 32 << 20)
    _, failures = fuzz_files.run(7, tmp_path / "out", cases=1, names={"npy"})
    libc.free(kept.pop())  # freed in the process that did the case alone
    assert len(failures) == 1
    assert HARM[grow] in failures[0]


def test_a_process_that_never_begins_a_case_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_files, "work", lambda *_: None)
    counts, failures = fuzz_files.run(7, tmp_path / "out", cases=1, names={"npy"})
    assert failures == ["the process ended before its case 0 had begun"]
    assert sum(counts.values()) == 0


def test_errors_that_name_themselves_are_the_only_ones_expected():
    assert issubclass(nd.UnsupportedDtypeError, fuzz_files.EXPECTED)
    assert not issubclass(MemoryError, fuzz_files.EXPECTED)
    assert not issubclass(nd.LossyCastError, fuzz_files.EXPECTED)
