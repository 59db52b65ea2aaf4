"""The way of batches to a device: whose staging memory is whose, and what waits for which copy.

The lane here is one that does nothing before somebody waits for it, and so the slowest device there can be: what is
written too early, or read too early, is wrong.
"""

from __future__ import annotations

import gc
import itertools
import pickle
import threading
import types
import weakref
from collections import namedtuple
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding
from loops import eventually, helpers

import ndtorch as nd
from ndtorch._dtypes import BY_NAME, TABLE
from ndtorch.loader.placement import Copied, InMemory, placement_of
from ndtorch.loader.ring import Ring
from ndtorch.loader.staging import Staged

UINT8, FLOAT32 = BY_NAME["uint8"], BY_NAME["float32"]


class Point:
    """An event of a lane."""

    def __init__(self, lane: LazyLane, count: int) -> None:
        self.lane, self.count = lane, count

    def query(self) -> bool:
        return self.lane.done >= self.count

    def synchronize(self) -> None:
        self.lane.run_until(self.count)


class LazyLane:
    """Copies that are made when a point behind them is waited for, and not before.

    As a device it knows addresses and no tensors, so nothing but the ring keeps the memory as it was until then. What
    is not pinned it reads at once, as CUDA does.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.queue: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.kept = 0
        self.fails_at: int | None = None
        self.lock = threading.RLock()
        self.pinned: dict[int, torch.Tensor] = {}

    def pin(self, nbytes: int) -> torch.Tensor:
        memory = torch.full((nbytes,), 0xEE, dtype=torch.uint8)
        self.pinned[memory.data_ptr()] = memory
        return memory

    def sending(self) -> Any:
        return nullcontext()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.lock:
            if len(self.queue) == self.fails_at:
                raise torch.OutOfMemoryError("no memory on the device")
            target = torch.empty_like(tensor)
            memory = self.pinned.get(tensor.untyped_storage().data_ptr())
            if memory is None:
                target.copy_(tensor)
            else:
                source = memory[: tensor.nbytes].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
                self.queue.append((target, source))
            return target

    def mark(self) -> Point:
        with self.lock:
            return Point(self, len(self.queue))

    def wait(self, event: Point) -> None:
        event.synchronize()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept += 1
        return tensor

    def run_until(self, count: int) -> None:
        with self.lock:
            for target, source in self.queue[self.done : count]:
                target.copy_(source)
            self.done = max(self.done, count)


def staged(data: Any, batch_size: int, *, budget: int = 0, lane: LazyLane | None = None, **options: Any) -> nd.Loader:
    loader = nd.Loader(data, batch_size, **options)
    lane = lane or LazyLane()
    loader._placement = Staged(lane, Ring(lane.pin, budget))
    return loader


# ---- the ring ----


def test_memory_that_somebody_has_is_not_lent_again():
    ring = Ring(LazyLane().pin)
    lent = [ring.lend(100) for _ in range(5)]
    starts = sorted(array.ctypes.data for array in lent)
    assert all(b - a >= 100 for a, b in itertools.pairwise(starts))
    assert len({*starts}) == 5


def test_memory_comes_back_with_its_last_view_and_not_before():
    ring = Ring(LazyLane().pin)
    tensor = torch.from_numpy(ring.lend(5000)).view(torch.float32)
    address, view = tensor.data_ptr(), tensor[10:20].unsqueeze(0)
    del tensor
    assert ring.lend(5000).ctypes.data != address
    del view
    assert address in {array.ctypes.data for array in [ring.lend(5000) for _ in range(2)]}


def test_what_takes_memory_back_runs_no_python_and_so_swallows_no_ctrl_c():
    ring = Ring(LazyLane().pin)
    lent = ring.lend(100)
    (reference,) = weakref.getweakrefs(lent)
    assert isinstance(reference.__callback__, types.BuiltinMethodType)


def test_idle_memory_is_lent_again_instead_of_making_more():
    ring = Ring(LazyLane().pin)
    for _ in range(100):
        ring.lend(5000)
    assert ring.nbytes == 8192


def test_memory_is_not_lent_before_the_device_has_read_it():
    lane = LazyLane()
    ring = Ring(lane.pin, budget=0)
    lent = ring.lend(5000)
    target = lane.copy(torch.from_numpy(lent))
    ring.follow(lent.ctypes.data, lane.mark())
    address = lent.ctypes.data
    del lent
    assert lane.done == 0
    again = ring.lend(5000)
    assert (again.ctypes.data, lane.done) == (address, 1)
    assert bool((target == 0xEE).all())


def test_within_the_budget_new_memory_is_made_rather_than_waited_for():
    lane = LazyLane()
    ring = Ring(lane.pin, budget=3 * 8192)
    for _ in range(10):
        lent = ring.lend(5000)
        lane.copy(torch.from_numpy(lent))
        ring.follow(lent.ctypes.data, lane.mark())
        del lent
    assert ring.nbytes == 3 * 8192
    assert lane.done == 7  # the oldest copies were waited for


def test_memory_of_sizes_that_are_no_longer_wanted_makes_room():
    ring = Ring(LazyLane().pin, budget=1 << 16)
    for nbytes in (5000, 10_000, 20_000, 30_000, 60_000):
        ring.lend(nbytes)
    assert ring.nbytes <= 1 << 16


def test_what_is_lent_at_a_time_is_all_that_a_ring_without_a_budget_holds():
    ring = Ring(LazyLane().pin, budget=0)
    for _ in range(20):
        batch = [ring.lend(5000) for _ in range(4)]
        del batch
    assert ring.nbytes == 4 * 8192


def test_a_dropped_ring_leaves_what_it_has_lent_to_those_who_have_it():
    gc.disable()
    try:
        ring = Ring(LazyLane().pin)
        lent = ring.lend(5000)
        lent[:] = 7
        del ring
        assert bool((lent == 7).all())
        del lent
    finally:
        gc.enable()


def test_threads_that_lend_at_a_time_never_get_the_same_memory():
    ring = Ring(LazyLane().pin)
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(300):
            array = ring.lend(4096)
            array[:] = mark
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert ring.nbytes <= 8 * 4096  # a thread has the last one until it gets the next


@pytest.mark.parametrize("row", [row for row in TABLE if row.numpy is not None], ids=lambda row: row.name)
def test_staging_memory_is_made_for_every_dtype(row):
    tensor, array = Staged(LazyLane()).allocate((3, 2), row)
    assert (tensor.dtype, tensor.shape, array.dtype, array.shape) == (row.torch, (3, 2), row.numpy, (3, 2))
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.is_contiguous()


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_staging_memory_is_made_for_shapes_of_one_element_or_none(shape):
    tensor, array = Staged(LazyLane()).allocate(shape, FLOAT32)
    assert tensor.shape == array.shape == shape


# ---- batches on their way ----


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_batches_of_a_slow_device_are_those_of_the_cpu(threads, budget):
    data = {"x": np.random.default_rng(0).random((1000, 50)), "y": np.arange(1000)}
    options = {"shuffle": True, "seed": 3, "threads": threads}
    batches = list(staged(data, 8, budget=budget, **options))
    assert_same(batches, list(nd.Loader(data, 8, shuffle=True, seed=3, threads=0)))


def test_a_ring_that_waits_for_no_copy_would_be_noticed(monkeypatch):
    """That the test above can fail, once more copies are asked for than threads have memory at a time."""
    monkeypatch.setattr(Ring, "follow", lambda *_: None)
    data, lane = np.random.default_rng(0).random((1000, 50)), LazyLane()
    wait, ahead = lane.wait, 4 * 16  # batches of the four groups that two threads make before one is handed out
    monkeypatch.setattr(lane, "wait", lambda event: eventually(lambda: len(lane.queue) >= ahead) and wait(event))
    found = staged(data, 8, threads=2, lane=lane)
    assert any(not torch.equal(a, b) for a, b in zip(found, nd.Loader(data, 8), strict=True))


def test_what_was_copied_is_held_for_the_stream_that_uses_it():
    lane = LazyLane()
    batches = list(staged((np.zeros((10, 3)), np.zeros(10)), 5, lane=lane))
    assert (len(batches), lane.kept) == (2, 4)


def test_a_copy_that_fails_raises_and_gives_all_staging_memory_back():
    lane = LazyLane()
    lane.fails_at = 5
    loader = staged({"x": np.zeros((100, 30)), "y": np.zeros(100)}, 10, lane=lane, threads=0)
    with suppress(torch.OutOfMemoryError):  # whose traceback holds what the loop had: it goes with it
        list(loader)
        pytest.fail("the copy did not fail")
    gc.collect()
    assert loader._placement._ring.in_use == 0
    lane.fails_at = None
    assert len(list(loader)) == 10


def test_a_loop_that_is_left_early_gives_all_staging_memory_back():
    lane = LazyLane()
    loader = staged(np.zeros((1000, 30)), 10, lane=lane, threads=2)
    batches = iter(loader)
    next(batches)
    batches.close()
    del batches
    assert eventually(lambda: not helpers())
    assert loader._placement._ring.in_use == 0


def test_pinned_memory_does_not_grow_with_epochs():
    loader = staged((np.zeros((500, 30)), np.arange(500)), 16, budget=1 << 16, threads=2)
    list(loader)
    for _ in range(20):
        list(loader)
    assert loader._placement._ring.nbytes < 1 << 19


def test_channels_last_survives_the_copy():
    pixels = torch.zeros(2, 5, 4, 3).movedim(-1, 1)
    placement = Staged(LazyLane())
    (leaf,) = placement.receive(placement.send([pixels]))
    assert leaf.is_contiguous(memory_format=torch.channels_last)


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("make", [lambda: Staged(LazyLane()), lambda: Copied(torch.device("meta"))])
def test_tensors_anywhere_in_a_leaf_move_and_all_else_stays(make):
    placement = make()
    leaf = {"rows": [torch.ones(2), torch.ones(3)], "names": ["a", "b"], "none": None, "pair": Pair(torch.ones(1), 3.5)}
    (moved,) = placement.receive(placement.send([leaf]))
    assert moved["names"] == ["a", "b"]
    assert moved["none"] is None
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].second == 3.5
    shapes = [tensor.shape for tensor in (*moved["rows"], moved["pair"].first)]
    assert shapes == [(2,), (3,), (1,)]
    if isinstance(placement, Copied):
        assert {tensor.device.type for tensor in (*moved["rows"], moved["pair"].first)} == {"meta"}


@pytest.mark.parametrize("make", [lambda: Staged(LazyLane()), lambda: Copied(torch.device("cpu"))])
def test_objects_that_move_themselves_are_asked_to(make):
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    placement = make()
    ((moved,),) = placement.receive(placement.send([[packed]]))
    assert isinstance(moved, torch.nn.utils.rnn.PackedSequence)
    assert_same(moved.data, packed.data)


def test_sparse_tensors_are_copied_when_they_are_wanted():
    sparse = torch.eye(3).to_sparse()
    lane = LazyLane()
    placement = Staged(lane)
    (leaf,) = placement.receive(placement.send([sparse]))
    assert lane.queue == []
    assert leaf.layout is sparse.layout


# ---- which way ----


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "cpu:0"])
def test_batches_for_the_cpu_take_no_way_at_all(device):
    assert type(placement_of(device)) is InMemory
    (batch,) = nd.Loader(np.arange(3), 3, device=device)
    assert_same(batch, tensor_holding(np.arange(3)))


def test_batches_for_another_device_lie_there():
    (batch,) = nd.Loader({"x": np.arange(3), "y": np.ones((3, 2))}, 3, device="meta")
    assert (batch["x"].device.type, batch["y"].shape) == ("meta", (3, 2))


@pytest.mark.parametrize("device", ["quark", 1.5, "cuda:x"])
def test_what_is_no_device_is_refused_when_the_loader_is_made(device):
    with pytest.raises(nd.InvalidOptionError, match=r"^Loader: device=.* is not a device .*Hint: device='cpu'"):
        nd.Loader(np.arange(3), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused_when_the_loader_is_made():
    with pytest.raises(nd.InvalidOptionError, match="Loader: device='cuda' cannot be used here") as refused:
        nd.Loader(np.arange(3), device="cuda")
    assert pickle.loads(pickle.dumps(refused.value)).hint == "device='cpu' always works"


def test_the_staging_memory_of_a_loader_goes_with_it():
    lane = LazyLane()
    loader = staged(np.zeros((100, 30)), 10, lane=lane, threads=0)
    batches = [batch.clone() for batch in loader]
    ring = weakref.ref(loader._placement._ring)
    del loader
    gc.collect()
    assert ring() is None
    assert len(batches) == 10
