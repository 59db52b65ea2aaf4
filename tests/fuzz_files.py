"""Fuzzing of everything that reads files: ``python tests/fuzz_files.py --seconds 60 --seed 1``, or ``make fuzz``.

Spoiled files are opened, inspected, read, sliced, streamed and converted in a process of its own. Whatever is in them,
there must be a `FormatError` or the like in bounded time and memory, and never a crash, another error, an executed
pickle, a changed source or anything left in the target's folder. Each case follows from seed and number alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import itertools
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import Files, put_files, read_files, sound_files, spoiled

import ndtorch as nd
from ndtorch.files import FORMATS, Format, open_file

EXPECTED = (nd.FormatError, nd.UnsupportedTypeError, nd.MissingDependencyError)
MAX_SECONDS = 120.0  # of one case, on a busy machine
MAX_START = 300.0  # seconds until the first case has begun
MAX_GROWTH = 512 << 20  # of resident memory within one case
MAX_ADDRESSES = 8 << 30  # beside those that the process has when it begins
READ_AT_MOST = 64 << 20  # what a sound file holds may be more than anybody wants to read
ARRAYS = 5
_DRIVER = os.getpid()  # which the processes that do the cases keep


def formats() -> list[Format]:
    """The formats whose modules are there."""
    found = []
    for row in FORMATS:
        try:
            module = importlib.import_module(f"ndtorch.files.{row.module}")
        except ModuleNotFoundError:
            continue
        if hasattr(module, "read_headers"):
            found.append(row)
    return found


class Violation(Exception):
    """Something that no file may make happen."""


# --- one case


def case(rows: list[Format], sound: dict[str, list[Files]], seed: int, number: int) -> tuple[Format, Files]:
    """The file of a case."""
    rng = random.Random(f"{seed}:{number}")
    row = rng.choice(rows)
    return row, spoiled(row.name, sound, rng)


def exercise(path: Path, row: Format, folder: Path, canary: Path) -> str:
    """Do with a file all that one can do, and say how it ended.

    Raises:
        Violation: It did what no file may.
    """
    before = read_files(path)
    outcomes = [_tried(act) for act in _acts(path, row, folder)]
    if read_files(path) != before:
        raise Violation("the source was changed")
    if canary.exists():
        raise Violation("a pickle was executed")
    return outcomes[0]


def _acts(path: Path, row: Format, folder: Path) -> Iterator[Any]:
    yield lambda: open_file(path, format=row.name)
    yield lambda: open_file(path)
    if hasattr(nd, "inspect"):
        yield lambda: str(nd.inspect(path))
    try:
        found = open_file(path, format=row.name)
        arrays = [found[name] for name in itertools.islice(found, ARRAYS)]
    except EXPECTED:
        arrays = []
    yield lambda: _looked_at(path, row)
    for array in arrays:
        if array.nbytes <= READ_AT_MOST:
            yield array.read
            yield lambda array=array: [block[:1] for block in array.blocks()]
        yield lambda array=array: array.select((..., slice(-1, None)) if array.shape else ...)
        if array.shape and array.shape[0] > 0 and array.nbytes <= READ_AT_MOST * array.shape[0]:
            yield lambda array=array: array.select(0)
    if sum(array.nbytes for array in arrays) <= READ_AT_MOST:
        for target in ("npy", "safetensors", "npz"):
            yield lambda target=target: _converted(path, row, folder / f"x.{target}")


def _looked_at(path: Path, row: Format) -> None:
    back = nd.read(path, format=row.name)
    assert repr(back)
    for name in itertools.islice(back, ARRAYS):
        lazy = back[name]
        plan = nd.explain(lazy)
        if plan.error is None and lazy.nbytes <= READ_AT_MOST and lazy.stored.dtype.kind not in "SUV":
            assert (lazy[...].shape, str(lazy[...].dtype)) == (lazy.shape, str(lazy.dtype)), repr(lazy)


def _converted(path: Path, row: Format, target: Path) -> None:
    try:
        nd.convert_file(path, target, source_format=row.name, verify=True)
        assert target.exists()
        target.unlink()
    finally:
        left = os.listdir(target.parent)
        if left:
            shutil.rmtree(target.parent)
            target.parent.mkdir()
            raise Violation(f"left behind: {left}")


def _tried(act: Any) -> str:
    try:
        act()
    except EXPECTED as error:
        if len(str(error)) > 5000:
            raise Violation(f"a message of {len(str(error))} characters") from error
        return type(error).__name__
    except Violation:
        raise
    except BaseException as error:
        raise Violation("".join(traceback.format_exception(error)[-6:])) from error
    return "read"


# --- the process that does it


def work(rows: list[Format], sound: dict[str, list[Files]], seed: int, numbers: Iterator[int], say: Any) -> None:
    """Do case after case, and say what became of each."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print what they think of spoiled files
    _give_back()
    limit = _addresses() + MAX_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number in numbers:
        say(f"begin {number}")
        row, files = case(rows, sound, seed, number)
        path, folder = home / f"source{row.suffixes[0]}", home / "target"
        folder.mkdir(exist_ok=True)
        put_files(files, path)
        try:
            start = _reset_peak()
            outcome = exercise(path, row, folder, canary_of(seed))
            growth = _peak() - start
            if growth > MAX_GROWTH:
                raise Violation(f"{growth >> 20} MiB of memory")
            say(f"end {row.name} {outcome}")
        except Violation as violation:
            say(f"bad {violation!s}".replace("\n", "\v"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(home)


def _give_back() -> None:
    """Free what can be: memory that went back to the system within a case would hide what the case takes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def canary_of(seed: int) -> Path:
    """What executed pickles would make: the same length for all, and another one for each who runs this at a time."""
    return Path(tempfile.gettempdir(), f"fuzz-canary-{os.getuid()}-{_DRIVER:07}-{seed}")


# --- the process that watches it


def run(
    seed: int, out: Path, *, seconds: float = 1e9, cases: int = 1 << 60, names: set[str] | None = None
) -> tuple[Counter[str], list[str]]:
    """Run cases until time or number is over, and give how they ended and what went wrong."""
    rows = [row for row in formats() if names is None or row.name in names]
    sound = sound_files(canary_of(seed))
    deadline, number, counts, failures = time.monotonic() + seconds, 0, Counter[str](), list[str]()
    while number < cases and time.monotonic() < deadline:
        started, verdict = number, "stopped"
        for line in _lines(rows, sound, seed, range(number, cases), deadline):
            kind, _, text = line.partition(" ")
            if kind == "begin":
                number, verdict = int(text) + 1, "crashed"
            elif kind == "end":
                counts[text] += 1
                verdict = ""
            else:
                verdict = "" if kind == "bad" else f"{kind} {text}"
                if kind == "bad":
                    failures.append(_kept(out, rows, sound, seed, number - 1, text))
        if verdict and verdict != "stopped" and time.monotonic() < deadline:
            failures.append(_kept(out, rows, sound, seed, number - 1, verdict))
        if number == started:
            if time.monotonic() < deadline:
                failures.append(f"the process ended before its case {number} had begun")
            break
    return counts, failures


def _lines(
    rows: list[Format], sound: dict[str, list[Files]], seed: int, numbers: range, deadline: float
) -> Iterator[str]:
    """What a process says while it works; at the end of its time, or of ours, it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            work(rows, sound, seed, iter(numbers), lambda text: os.write(writer, f"{text}\n".encode(errors="replace")))
        finally:
            os._exit(0)
    os.close(writer)
    rest, patience = b"", MAX_START
    try:
        while True:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([reader], [], [], min(patience, left))[0]:
                if time.monotonic() < deadline:
                    yield f"hung for {patience:.0f} seconds"
                return
            data, patience = os.read(reader, 1 << 16), MAX_SECONDS
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode() for line in lines)
            if not data:
                return
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def _kept(out: Path, rows: list[Format], sound: dict[str, list[Files]], seed: int, number: int, what: str) -> str:
    row, files = case(rows, sound, seed, number)
    path = out / f"{seed}-{number}{row.suffixes[0]}"
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    put_files(files, path)
    return f"{path}: {what}".replace("\v", "\n  ")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 60)
    parser.add_argument("--seed", type=int, default=int(np.random.default_rng().integers(1 << 31)))
    parser.add_argument("--formats", help="names of formats, with commas", default=None)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args()
    names = None if options.formats is None else set(options.formats.split(","))
    counts, failures = run(options.seed, options.out, seconds=options.seconds, cases=options.cases, names=names)
    print(f"seed {options.seed}: {sum(counts.values())} cases")
    for outcome, count in sorted(counts.items()):
        print(f"  {outcome:40} {count}")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
