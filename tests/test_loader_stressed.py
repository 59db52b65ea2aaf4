"""Loops under stress: threads that begin at a time, modes that belong to a thread, memory that runs out."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreters import Interpreters
from torch.utils.data import Dataset

import ndtorch as nd
from ndtorch.loader import ahead

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


class Encoded(Dataset[torch.Tensor]):
    """Samples that torch makes, so that they show under which modes it was."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.weights = torch.ones(3, 3, requires_grad=True)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(3) @ self.weights * index


def in_threads(count: int, do: Callable[[], Any]) -> list[Any]:
    """What each of some threads gives that begin together."""
    results: list[Any] = []
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait()
        results.append(do())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_loop_change_no_sample_whoever_makes_it(mode: str, threads: int) -> None:
    loader = nd.Loader(Encoded(40), 2, collate_fn=torch.stack, threads=threads)
    with MODES[mode]():
        batches = list(loader)
    assert len(batches) == 20
    assert {(batch.dtype, batch.device.type) for batch in batches} == {(torch.float32, "cpu")}
    assert all(batch.requires_grad and not batch.is_inference() for batch in batches)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_batches_made_in_inference_mode_can_be_trained_on_later(threads: int) -> None:
    loader = nd.Loader(np.ones((64, 3), np.float32), 2, threads=threads)
    with torch.inference_mode():
        batches = list(loader)
        assert torch.is_inference_mode_enabled()
    weights = torch.ones(3, requires_grad=True)
    for batch in batches:
        (batch * weights).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [64.0] * 3


class Meeting:
    """A sampler that draws from the global generator, and lets another thread in between where one wants to."""

    def __init__(self, length: int, gate: threading.Barrier | None = None) -> None:
        self.length = length
        self.gate = gate

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for row in torch.randperm(self.length).tolist():
            if row % 8 == 0 and self.gate is not None:
                try:
                    self.gate.wait(0.01)
                except threading.BrokenBarrierError:  # nobody else is within a sampler, as it should be
                    self.gate.reset()
            yield row


def orders_of(loader: nd.Loader) -> tuple[int, ...]:
    return tuple(row for batch in loader for row in batch.tolist())


def test_loops_that_begin_at_a_time_are_epochs_of_their_own() -> None:
    alone = nd.Loader(np.arange(32), 8, sampler=Meeting(32))
    expected = {orders_of(alone) for _ in range(4)}
    loader = nd.Loader(np.arange(32), 8, sampler=Meeting(32, threading.Barrier(2)))
    assert len(expected) == 4
    assert set(in_threads(4, lambda: orders_of(loader))) == expected


def test_samplers_of_several_loaders_leave_the_global_generators_as_they_were() -> None:
    gate = threading.Barrier(2)
    known = torch.get_rng_state()
    expected = orders_of(nd.Loader(np.arange(32), 8, sampler=Meeting(32)))
    found = in_threads(3, lambda: orders_of(nd.Loader(np.arange(32), 8, sampler=Meeting(32, gate))))
    assert found == [expected] * 3
    assert torch.equal(torch.get_rng_state(), known)


def test_ctrl_c_while_a_thread_starts_keeps_no_data_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead._Thread, "_bootstrap", property(interrupt))
    known = set(threading.enumerate())
    data = Encoded(8)
    watched = weakref.ref(data)
    loader = nd.Loader(data, 2, threads=2)
    del data
    with pytest.raises(KeyboardInterrupt) as caught:
        next(iter(loader))
    stuck = [thread for thread in threading.enumerate() if thread not in known]
    assert stuck  # which is what threading does, and nobody's to change
    del loader, caught
    assert watched() is None
    for thread in stuck:
        del threading._limbo[thread]  # type: ignore[attr-defined]


NO_MORE = """
import resource
data = np.ones((4000, 2500), np.float32)
loader, large = (nd.Loader(data, size, threads=0) for size in (200, 2000))
large._placement = loader._placement
kept = list(loader)
del kept
if loader._placement.blocks.idle_bytes < 30_000_000: os._exit(3)
with open("/proc/self/statm") as statm: used = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20),) * 2)
try:
    found = [len(batch) for batch in large]
except MemoryError:
    os._exit(4)
if found != [2000, 2000]: os._exit(5)
"""


@pytest.mark.skipif(os.environ.get("NDTORCH_FAST") == "0", reason="memory that is lent again is that of the fast path")
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is that of Linux")
def test_memory_that_lies_idle_is_given_up_before_a_batch_fails(tmp_path: Path) -> None:
    with Interpreters("", tmp_path) as interpreters:
        assert interpreters.run(NO_MORE) == (0, "")
