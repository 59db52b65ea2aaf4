"""What still goes wrong elsewhere: traps that fail loudly here on the day upstream mends them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def still(trap: bool, issue: str, what: str) -> None:
    """Fail with a clear message when upstream has mended a trap."""
    assert trap, f"{issue} looks mended upstream: {what} no longer holds; this test is out of date"


@contextmanager
def still_refused(issue: str, *errors: type[Exception]) -> Iterator[None]:
    """Fail with a clear message when upstream has learned what it used to refuse."""
    try:
        yield
    except errors:
        return
    pytest.fail(f"{issue} looks mended upstream: no {errors[0].__name__}; this test is out of date")


def alone(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, which may die of it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TORCH_SHOW_CPP_STACKTRACES": "0"},
    )


def printed(script: str, *arguments: object) -> str:
    done = alone(script, *arguments)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout.strip()
