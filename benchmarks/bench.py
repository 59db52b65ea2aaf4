"""Measure ndtorch beside its peers and the limit: the table, how cost grows with size, and both as pictures.

``python benchmarks/bench.py`` prints the table. ``--json FILE`` writes all figures, ``--growth`` measures 64 B to
1 GiB on one and two threads as well, ``--files`` measures the rows of files alone, ``--loader`` those of the loader,
``--memory`` what converting a file of 8 GB takes, ``--scale`` what converting many files costs on each engine (in
``--folder``, else in memory where 9 GB are free; ``--short`` takes a quarter of the files, ``--few`` the sides that
the README names), ``--pictures`` draws docs/speed.svg and docs/growth.svg, ``--readme`` puts the table into the
README. ``--from FILE`` takes the figures of an earlier ``--json`` instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ndtorch import _bench, _bench_loader, _bench_scale
from ndtorch._bench import DISK, LIMIT, Row

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"
SIZES = (64, 4 << 10, 1 << 20, 64 << 20, 1 << 30)
THREADS = (1, 2)
IMPORT_REACH = 0.15  # seconds


def measured(*, with_growth: bool, only: str = "") -> dict[str, Any]:
    """Every figure, as JSON holds it."""
    figures: dict[str, Any] = {"machine": _bench.machine(), "rows": [], "growth": [], "import": _bench.import_seconds()}
    for row in tables(only):
        sys.stderr.write(line_of(row) + "\n")
        figures["rows"].append(asdict(row))
    if with_growth:
        figures["growth"] = list(measured_growth())
    return figures


def tables(only: str):
    if only == "files":
        return _bench.file_table()
    loaders = _bench_loader.table()
    return loaders if only == "loader" else itertools.chain(_bench.table(), loaders)


def measured_growth():
    before = torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for nbytes in SIZES:
                for row in _bench.growth(nbytes, seconds=3.0 if nbytes < 1 << 30 else 12.0):
                    sys.stderr.write(f"{threads} threads, {nbytes} B: {line_of(row)}\n")
                    yield {"threads": threads, **asdict(row)}
    finally:
        torch.set_num_threads(before)


def print_memory(nbytes: int) -> None:
    for name in _bench.CONVERSIONS:
        peak = _bench.peak_bytes(name, nbytes)
        shown = "the disk is too full" if peak is None else f"{peak >> 20} MB of memory"
        sys.stdout.write(f"{name}, {nbytes >> 20} MiB: {shown}\n")


def print_scale(folder: Path | None, *, short: bool, few: bool) -> None:
    found = []
    for each in _bench_scale.table(folder, short=short, few=few):
        sys.stderr.write(f"{each}\n")
        found.append(each)
    sys.stdout.write(f"{_bench.machine()}\n\n{_bench_scale.markdown(found)}\n")


def line_of(row: Row) -> str:
    peers = ", ".join(f"{row.ratio(name):.2f} of {name} ({duration(t)})" for name, t in row.peers.items())
    return f"{row.work}: {duration(row.ours)}; {peers}"


def duration(seconds: float) -> str:
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 1_000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def markdown(figures: dict[str, Any]) -> str:
    lines = ["| work | ours | against | theirs | ratio | reach |", "| --- | --- | --- | --- | --- | --- |"]
    for row in (Row(**row) for row in figures["rows"]):
        for i, (peer, theirs) in enumerate(row.peers.items()):
            shown = {LIMIT: "the limit", DISK: "the disk: write + fsync"}.get(peer, f"`{peer}`")
            reach = f"{row.reach[peer]:.2f}" if peer in row.reach else ""
            ours = (row.work, duration(row.ours)) if i == 0 else ("", "")
            cells = (*ours, shown, duration(theirs), f"{row.ratio(peer):.2f}", reach)
            lines.append(f"| {' | '.join(cells)} |")
    seconds = figures["import"]
    lines.append(f"| `import ndtorch` | {duration(seconds)} | after `import torch` |  |  | {IMPORT_REACH} s |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", type=Path, dest="source")
    parser.add_argument("--folder", type=Path)
    for flag in (
        "--files",
        "--loader",
        "--memory",
        "--scale",
        "--short",
        "--few",
        "--growth",
        "--pictures",
        "--readme",
    ):
        parser.add_argument(flag, action="store_true")
    arguments = parser.parse_args()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring, not after
    if arguments.memory:
        print_memory(8 << 30)
        return
    if arguments.scale:
        print_scale(arguments.folder, short=arguments.short, few=arguments.few)
        return
    known = arguments.source
    only = "files" if arguments.files else "loader" if arguments.loader else ""
    figures = json.loads(known.read_text()) if known else measured(with_growth=arguments.growth, only=only)
    text = markdown(figures)
    sys.stdout.write(f"{figures['machine']}\n\n{text}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.pictures:
        import pictures  # matplotlib is needed for nothing else

        pictures.draw(figures, ROOT / "docs")
    if arguments.readme:
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{figures['machine']}.\n\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
