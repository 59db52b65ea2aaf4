"""Measure ndtorch beside its peers: both sides alternate in one process, medians are compared.

``python benchmarks/bench.py`` prints the table; ``--json FILE`` also writes it; ``--readme`` puts it into the README.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import ndtorch as nd

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"


@dataclass(frozen=True)
class Row:
    """One comparison; times in seconds per call."""

    work: str
    peer: str
    ours: float
    theirs: float
    at_most: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def alternate(ours: Callable[[], object], theirs: Callable[[], object], calls: int, rounds: int) -> tuple[float, float]:
    """Median seconds per call of both sides, measured in turn so that drift of the machine meets both."""
    samples: tuple[list[float], list[float]] = ([], [])
    for side in (ours, theirs):
        side()
    for _ in range(rounds):
        for side, times in zip((ours, theirs), samples, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                side()
            times.append((time.perf_counter() - start) / calls)
    return statistics.median(samples[0]), statistics.median(samples[1])


def per_call_rows() -> list[Row]:
    array, tensor = np.zeros(4, np.float32), torch.zeros(4)
    arrays = [np.zeros(4, np.float32) for _ in range(1000)]
    to_torch, to_numpy, from_numpy, numpy = nd.to_torch, nd.to_numpy, torch.from_numpy, torch.Tensor.numpy
    rows = [
        ("`to_torch(small)`", "`torch.from_numpy`", lambda: to_torch(array), lambda: from_numpy(array), 10_000, 0.85),
        ("`to_numpy(small)`", "`Tensor.numpy`", lambda: to_numpy(tensor), lambda: numpy(tensor), 10_000, 0.25),
        (
            "`to_torch([1000 small arrays])`",
            "`[torch.from_numpy(a) for a in arrays]`",
            lambda: to_torch(arrays),
            lambda: [from_numpy(a) for a in arrays],
            10,
            0.85,
        ),
    ]
    return [
        Row(work, peer, *alternate(ours, theirs, calls, 31), limit) for work, peer, ours, theirs, calls, limit in rows
    ]


def import_row() -> Row:
    """Seconds that ``import ndtorch`` takes beyond ``import torch`` and NumPy, in fresh interpreters."""
    with_us = "import numpy, torch, time; t = time.perf_counter(); import ndtorch; print(time.perf_counter() - t)"
    bare = "import time; t = time.perf_counter(); import numpy, torch; print(time.perf_counter() - t)"

    def seconds(code: str) -> float:
        run = [sys.executable, "-c", code]
        return statistics.median(float(subprocess.check_output(run, text=True)) for _ in range(5))

    return Row("`import ndtorch` beyond `import torch`", "`import numpy, torch`", seconds(with_us), seconds(bare), 0.15)


def _duration(seconds: float) -> str:
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 10_000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def markdown(rows: list[Row]) -> str:
    lines = ["| work | ours | peer | theirs | ratio | reach |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        if "import" in row.work:
            ratio, reach = "", f"{row.at_most} s"
        else:
            ratio, reach = f"{row.ratio:.2f}", f"{row.at_most}"
        cells = (row.work, _duration(row.ours), row.peer, _duration(row.theirs), ratio, reach)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    rows = [*per_call_rows(), import_row()]
    text = markdown(rows)
    machine = (
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    )
    sys.stdout.write(f"{machine}, {torch.get_num_threads()} threads\n\n{text}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2))
    if arguments.readme:
        before, rest = README.read_text().split(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
