"""Loaders and their loops in other processes: forked, spawned, copied, within other people's workers."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import pytest
import torch

import ndtorch as nd

# A child of a fork has no threads, and 3.12 warns of that where the parent has some.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

DATA = np.arange(1000 * 512).reshape(1000, 512)
ROWS = list(range(1000))


def numbers(batches: Any) -> list[int]:
    return [row // 512 for batch in batches for row in batch[:, 0].tolist()]


def in_a_fork(do: Callable[[], object]) -> str:
    """What a forked child says of it: "fine", or what it raised."""
    source, target = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(source)
            signal.alarm(300)  # it says nothing rather than that it hangs
            do()
            os.write(target, b"fine")
        except BaseException as error:
            os.write(target, repr(error).encode())
        finally:
            os._exit(0)
    os.close(target)
    with os.fdopen(source) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


class TestFork:
    @pytest.mark.parametrize("threads", [0, 1, 3])
    @pytest.mark.parametrize("taken", [0, 1, 7, 99])
    def test_a_forked_child_goes_on_with_the_loop_and_so_does_the_parent(self, threads: int, taken: int) -> None:
        expected = numbers(nd.Loader(DATA, 10, shuffle=True, threads=0))
        loop = iter(nd.Loader(DATA, 10, shuffle=True, threads=threads))
        first = [next(loop) for _ in range(taken)]

        def rest() -> None:
            assert numbers(loop) == expected[10 * taken :]

        assert in_a_fork(rest) == "fine"
        assert numbers(first) + numbers(loop) == expected

    def test_a_forked_child_can_leave_a_loop_and_begin_another(self) -> None:
        loader = nd.Loader(DATA, 10, shuffle=True, threads=2)
        loops = [iter(loader)]
        next(loops[0])

        def again() -> None:
            loops.clear()
            assert sorted(numbers(loader)) == ROWS

        assert in_a_fork(again) == "fine"
        assert len(list(loops[0])) == 99

    def test_a_fork_at_any_moment_leaves_a_loop_that_works(self) -> None:
        loader = nd.Loader(DATA, 10, shuffle=True, threads=4, prefetch=8)
        for taken, batch in enumerate(loop := iter(loader)):
            if taken % 5 == 0:
                assert in_a_fork(lambda: list(loop)) == "fine"
            assert batch.shape == (10, 512)

    def test_a_fork_beside_a_thread_that_is_taking_a_batch_leaves_a_loop_that_works(self) -> None:
        loop = iter(nd.Loader(DATA, 10, shuffle=True, threads=2))
        taken: list[torch.Tensor] = []
        ends = threading.Event()

        def take() -> None:
            while not ends.is_set():
                taken[:] = nd.Loader(DATA, 250, threads=2)
                taken.extend(loop)

        consumer = threading.Thread(target=take)
        consumer.start()
        try:
            for _ in range(10):
                assert in_a_fork(lambda: list(loop)) == "fine"
        finally:
            ends.set()
            consumer.join()

    def test_the_length_of_a_loop_is_known_to_a_child_that_was_forked_while_it_was_held(self) -> None:
        loop = iter(nd.Loader(DATA, 10, threads=2))
        next(loop)
        held, ends = threading.Event(), threading.Event()

        def hold() -> None:
            with loop._turn:  # type: ignore[attr-defined]
                held.set()
                ends.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        try:
            assert in_a_fork(lambda: signal.alarm(120) or len(loop) == 99 or 1 / 0) == "fine"
        finally:
            ends.set()
            holder.join()

    def test_a_child_of_a_child_goes_on_as_well(self) -> None:
        loop = iter(nd.Loader(DATA, 10, threads=2))
        next(loop)

        def child() -> None:
            next(loop)
            assert in_a_fork(lambda: numbers(loop) == ROWS[20:] or 1 / 0) == "fine"
            assert numbers(loop) == ROWS[20:]

        assert in_a_fork(child) == "fine"
        assert numbers(loop) == ROWS[10:]


@dataclass
class Pair:
    x: Any
    y: Any


class Named(nd.Loader):
    """A subclass with a constructor and an attribute of its own."""

    def __init__(self, name: str, n: int) -> None:
        super().__init__(np.arange(n), 3, shuffle=True, seed=n)
        self.name = name


class TestCopies:
    COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]

    @pytest.mark.parametrize("make", COPIES)
    @pytest.mark.parametrize(
        "data",
        [DATA, torch.from_numpy(DATA), (DATA, DATA), {"x": DATA}, Pair(DATA, DATA)],
        ids=lambda data: type(data).__name__,
    )
    def test_a_copy_gives_the_same_batches(self, make: Callable[[Any], Any], data: Any) -> None:
        loader = nd.Loader(data, 64, shuffle=True, seed=5, drop_last=True, threads=2, float_dtype="float32")
        for ours, theirs in zip(loader, make(loader), strict=True):
            assert type(ours) is type(theirs)
            leaves = [optree.tree_leaves(batch, namespace="ndtorch") for batch in (ours, theirs)]
            assert all(map(torch.equal, *leaves))

    @pytest.mark.parametrize("make", COPIES)
    def test_a_copy_goes_on_where_the_loop_stands(self, make: Callable[[Any], Any]) -> None:
        loader = nd.Loader(DATA, 10, shuffle=True, threads=2)
        loop = iter(loader)
        for _ in range(30):
            next(loop)
        other = make(loader)
        rest = numbers(loop)
        assert numbers(other) == rest
        assert numbers(other) == numbers(loader)
        assert other.epoch == loader.epoch == 2

    def test_a_shallow_copy_shares_the_data_and_a_deep_one_does_not(self) -> None:
        data = np.arange(4)
        loader = nd.Loader(data)
        shallow, deep = copy.copy(loader), copy.deepcopy(loader)
        data[0] = 9
        assert [next(iter(one)).item() for one in (loader, shallow, deep)] == [9, 9, 0]

    @pytest.mark.parametrize("make", COPIES)
    def test_a_copy_of_a_subclass_keeps_what_it_added(self, make: Callable[[Any], Any]) -> None:
        loader = Named("mine", 20)
        other = make(loader)
        assert type(other) is Named
        assert other.name == "mine"
        assert torch.equal(torch.cat(list(other)), torch.cat(list(loader)))

    @pytest.mark.parametrize("make", COPIES)
    def test_a_running_loop_is_not_copied(self, make: Callable[[Any], Any]) -> None:
        with pytest.raises(nd.UnsupportedTypeError, match="a running loop cannot be copied or pickled"):
            make(iter(nd.Loader(DATA, 10)))


def all_rows(loader: nd.Loader) -> list[int]:
    return sorted(numbers(loader))


class Stream(torch.utils.data.IterableDataset):
    """A loader as what the workers of a DataLoader iterate over."""

    def __init__(self, loader: nd.Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Table(torch.utils.data.Dataset):
    """A dataset that has a loader, and loops over it for every item."""

    def __init__(self) -> None:
        self.loader = nd.Loader(DATA, 100, shuffle=True, threads=2)
        self.first = next(iter(self.loader))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        self.loader.set_epoch(index)
        return torch.tensor(numbers(self.loader))


class TestWorkers:
    @pytest.mark.parametrize("dataset", [Stream, Table])
    def test_a_loader_works_within_forked_workers(self, dataset: type) -> None:
        source = Stream(nd.Loader(DATA, 50, shuffle=True, threads=2)) if dataset is Stream else Table()
        self.check(torch.utils.data.DataLoader(source, batch_size=None, num_workers=2, multiprocessing_context="fork"))

    @pytest.mark.slow
    def test_a_loader_works_within_spawned_workers(self) -> None:
        source = Stream(nd.Loader(DATA, 50, shuffle=True, threads=2))
        self.check(torch.utils.data.DataLoader(source, batch_size=None, num_workers=1, multiprocessing_context="spawn"))

    def check(self, loader: Any) -> None:
        seen = list(loader)
        if isinstance(loader.dataset, Table):
            assert [sorted(rows.tolist()) for rows in seen] == 4 * [ROWS]
        else:
            assert sorted(numbers(seen)) == sorted(loader.num_workers * ROWS)

    @pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
    def test_a_loader_goes_through_a_pool(self, method: str) -> None:
        loaders = [nd.Loader(DATA, 50, shuffle=True, seed=seed, threads=2) for seed in range(3)]
        loop = iter(loaders[0])
        next(loop)
        with multiprocessing.get_context(method).Pool(1) as pool:
            results = pool.map(all_rows, loaders)
        assert [len(rows) for rows in results] == [950, 1000, 1000]
        assert len(numbers(loop)) == 950

    def test_loaders_work_within_threads(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            loaders = [nd.Loader(DATA, 50, shuffle=True, seed=seed, threads=2) for seed in range(12)]
            assert list(pool.map(all_rows, loaders)) == 12 * [ROWS]
            shared = nd.Loader(DATA, 50, shuffle=True, threads=2)
            assert list(pool.map(all_rows, 12 * [shared])) == 12 * [ROWS]
