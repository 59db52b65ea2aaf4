"""The example trains on data that does not fit, under a limit that is real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_larger_than_memory.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_it_trains_on_data_that_does_not_fit(tmp_path):
    done = run(tmp_path / "data", 40_000, 80)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "data: x uint8[40000,3,32,32], y int64[40000]",
        "the data has 117 MB, and this process may take 80 MB more than it has",
        "to read it whole is a MemoryError",
    ]
    accuracy = re.fullmatch(r"accuracy on other pictures: (.*)%", lines[-2])
    assert accuracy is not None
    assert float(accuracy[1]) >= 95
    peak = re.fullmatch(r"took (\d+) of 80 MB, [\d,]+ samples/s", lines[-1])
    assert peak is not None
    assert 0 <= int(peak[1]) <= 80


def test_it_says_where_the_limit_would_prove_nothing(tmp_path):
    done = run(tmp_path, 1_000, 200)
    assert done.returncode == 1
    assert done.stderr == "the data fits: give fewer MEGABYTES or more SAMPLES\n"
