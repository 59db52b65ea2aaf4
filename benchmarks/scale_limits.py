"""What ten million files or shards would cost the one process that plans them: measured on fewer, and multiplied.

``python benchmarks/scale_limits.py`` prints the figures of docs/scale.md: listing, the plan, the ledger, the index.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndtorch._pairs import find_sources
from ndtorch.files.sharded import NAME, local_index
from ndtorch.scale.index import write_index
from ndtorch.scale.ledger import Entry, Ledger, Output
from ndtorch.scale.places import place_at
from ndtorch.scale.units import SourceFile, Unit, source_files, units_of

MANY = 10_000_000
FOLDER = 1000  # files in each
UNITS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        show("load of the machine before", ", ".join(f"{each:.1f}" for each in os.getloadavg()))
        planning(arguments.count)
        listing(Path(folder, "sources"), arguments.count)
        units(Path(folder, "target"))
        index(Path(folder, "index"), arguments.count)


def show(what: str, value: str) -> None:
    print(f"{what:58}{value}")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def listing(folder: Path, count: int) -> None:
    for number in range(0, count, FOLDER):
        inner = folder / f"{number // FOLDER:05d}"
        inner.mkdir(parents=True)
        for each in range(min(FOLDER, count - number)):
            os.close(os.open(inner / f"{each:04d}.npy", os.O_CREAT | os.O_WRONLY))
    scanned, _ = timed(lambda: sum(len(names) for _, _, names in os.walk(folder)))
    before = memory()
    found, sources = timed(lambda: find_sources([folder / "**"]))
    measured, files = timed(lambda: source_files(sources))
    assert len(files) == count
    held = (memory() - before) / count
    show("os.walk alone", f"{count / scanned:,.0f} files/s")
    show("names found", f"{count / found:,.0f} files/s")
    show("sizes and times asked for", f"{count / measured:,.0f} files/s")
    show("both, for ten million", f"{(found + measured) * MANY / count / 60:.1f} min")
    show("    memory meanwhile", f"{held:,.0f} bytes a file, {held * MANY / 1e9:.1f} GB for ten million")


def planning(count: int) -> None:
    def made() -> list[SourceFile]:
        start = 1_700_000_000_000_000_000
        return [
            SourceFile(f"/data/sources/{n // FOLDER:05d}/{n % FOLDER:04d}.npy", f"{n:09d}.npy", 12_416, str(start + n))
            for n in range(count)
        ]

    before = memory()
    files = made()
    held = (memory() - before) / count
    cut, plan = timed(lambda: list(units_of(files)))
    keys, _ = timed(lambda: [unit.key("options") for unit in plan])
    show("memory of a file in the plan", f"{held:,.0f} bytes, {held * MANY / 1e9:.1f} GB for ten million")
    show("cut into units", f"{cut * MANY / count:.1f} s for ten million, {len(plan) * MANY // count:,} units")
    show("keys of units", f"{keys * MANY / count:.1f} s for ten million")


def units(folder: Path) -> None:
    """The ledger, of units of 500 small files that became one shard, or of as many outputs as sources."""
    names = [f"/data/sources/{n // FOLDER:05d}/{n % FOLDER:04d}.npy" for n in range(UNITS * 500)]
    stamp = 1_700_000_000_000_000_000
    files = [SourceFile(path, path[14:], 12_416, str(stamp + n * 7919)) for n, path in enumerate(names)]
    plan = list(units_of(files))
    schema: dict[str, tuple[str, tuple[int, ...]]] = {"data": ("float32", (128,))}
    for what, outputs in (("a shard", 1), ("an output for each source", 500)):
        _ledger(folder / str(outputs), what, [(unit, _entry(unit, outputs, schema)) for unit in plan])


def _ledger(folder: Path, what: str, entries: list[tuple[Unit, Entry]]) -> None:
    place = place_at(str(folder))
    ledger = Ledger(place, "options")
    entered, _ = timed(lambda: [ledger.enter(*pair) for pair in entries])
    nbytes = sum(place.sizes(".ndtorch/units").values()) / len(entries)
    total = f"{nbytes * MANY / 500 / 1e6:,.0f} MB for ten million files"
    show(f"ledger, {what}: an entry of 500 files", f"{nbytes:,.0f} bytes, {total}")
    show("    entered and on this disk", f"{entered / len(entries) * 1e3:.2f} ms a unit")
    for output in (each for _, entry in entries for each in entry.outputs):
        with open(place.member(output.name), "wb") as file:
            file.truncate(output.nbytes)  # of zeros that take no room
    read, done = timed(lambda: Ledger(place, "options").done([unit for unit, _ in entries]))
    assert len(done) == len(entries)
    show("    read again, to go on", f"{read * MANY / 500 / len(entries):.1f} s for 20,000 units")


def _entry(unit: Unit, outputs: int, schema: dict[str, tuple[str, tuple[int, ...]]]) -> Entry:
    each = tuple(
        Output(
            f"{unit.number:06d}-{n:03d}.safetensors", 12_000, 6_144_136 // outputs, 3_735_928_559, {"data": 305_419_896}
        )
        for n in range(outputs)
    )
    return Entry(unit.number, unit.key("options"), each, (), schema, 0.123)


def index(folder: Path, count: int) -> None:
    """The index of very many shards, and what each process that trains on them reads of it."""
    schema: dict[str, tuple[str, tuple[int, ...]]] = {"data": ("float32", (128,))}
    place = place_at(str(folder))
    outputs = tuple(
        Output(f"{n // 4:06d}-{n % 4:03d}.safetensors", 524_288, 268_435_592, 3_735_928_559, {"data": 305_419_896})
        for n in range(count)
    )
    written, _ = timed(lambda: write_index(place, "safetensors", [Entry(0, "", outputs, (), schema)]))
    nbytes = place.sizes()[NAME]
    before = memory()
    parsed, found = timed(lambda: local_index(str(folder)))
    held = memory() - before
    assert found is not None
    show("index.json, a shard", f"{nbytes / count:.0f} bytes; ten million: {nbytes / count * MANY / 1e6:,.0f} MB")
    show("    written", f"{written * MANY / count:.0f} s for ten million")
    show(
        "    read by each process",
        f"{parsed * MANY / count:.0f} s and {held / count * MANY / 1e9:.1f} GB for ten million",
    )
    show(
        "    the same of 10,000 shards (2.7 TB)",
        f"{nbytes / count * 1e4 / 1e6:.1f} MB, {parsed / count * 1e4 * 1e3:.0f} ms",
    )


if __name__ == "__main__":
    main()
