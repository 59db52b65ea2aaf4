"""What holds for every test: seeds, how hard Hypothesis looks, and what is skipped where there is no GPU."""

from __future__ import annotations

import gc
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples on every run and every machine: a failure is a change of the code, never luck, nor a machine that is
# slow to make the first examples.
settings.register_profile(
    "ndtorch",
    derandomize=True,
    deadline=None,
    max_examples=120,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ndtorch")

# A process that was started in the background may ignore Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Have collections leave out what stays until the end: to go through all modules and tests took them a second."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how a test failed that was run once more: one that passed then would leave no trace of it."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first run of {report.nodeid}")
        terminalreporter.line(report.longreprtext)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
