"""What tests of loops ask: which threads help, and whether something comes about."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

MANY = 120.0  # seconds that nothing here takes, unless it hangs


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ndtorch-loader-")]


def eventually(is_so: Callable[[], bool]) -> bool:
    last = time.monotonic() + MANY
    while not is_so():
        if time.monotonic() > last:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    if helpers():  # of a loop that a traceback of a test elsewhere still knows, or that are still ending
        gc.collect()
    assert eventually(lambda: not helpers())
    yield
    assert eventually(lambda: not helpers())
