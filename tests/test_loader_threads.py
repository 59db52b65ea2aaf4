"""Threads that make batches ahead: in order, each once, never waited for in vain, gone when the loop is."""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from loops import MANY, _no_thread_stays, eventually, helpers  # noqa: F401

import ndtorch as nd
from ndtorch.loader.ahead import Ahead
from ndtorch.loader.pace import Pace, wishes_of


def rows(n: int = 4000, nbytes: int = 4096) -> np.ndarray:
    """Rows so long that threads are worth it; the first item of each is its number."""
    array = np.zeros((n, nbytes // 8), np.int64)
    array[:, 0] = np.arange(n)
    return array


def numbers(batch: torch.Tensor) -> list[int]:
    return batch[:, 0].tolist()


class TestTasks:
    @pytest.mark.parametrize("threads", range(9))
    def test_results_come_in_order_each_once(self, threads: int) -> None:
        calls: list[int] = []

        def do(task: int) -> int:
            time.sleep(random.random() * 1e-4)
            calls.append(task)
            return task

        assert list(Ahead(do, 500, threads=threads, ahead=max(2 * threads, 1))) == list(range(500))
        assert sorted(calls) == list(range(500))

    def test_no_more_is_begun_than_may_be_ahead(self) -> None:
        begun: list[int] = []
        results = Ahead(lambda task: begun.append(task), 100, threads=3, ahead=5)
        for wanted in range(10):
            assert eventually(lambda: len(begun) == wanted + 5)  # noqa: B023
            next(results)
        results.close()

    def test_a_consumer_does_everything_where_no_thread_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        assert list(Ahead(lambda task: threading.get_ident(), 20, threads=4, ahead=8)) == 20 * [threading.get_ident()]

    def test_a_consumer_waits_only_for_what_has_begun(self) -> None:
        """One thread is stuck in the first task it takes: the consumer does all others that may be done."""
        stuck, go_on = threading.Event(), threading.Event()
        by: dict[int, int] = {}

        def do(task: int) -> int:
            by[task] = threading.get_ident()
            if by[task] != me and not stuck.is_set():
                stuck.set()
                assert go_on.wait(MANY)
            elif len(by) == 6:
                go_on.set()  # only when everything that may be ahead has been begun
            return task

        me = threading.get_ident()
        results = Ahead(do, 40, threads=1, ahead=6)
        assert stuck.wait(MANY)
        assert list(results) == list(range(40))
        assert [by[task] == me for task in range(6)] == [False] + 5 * [True]

    def test_threads_that_never_run_are_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = threading.Event()
        monkeypatch.setattr("ndtorch.loader.ahead._leave_openmp", lambda: gate.wait(MANY))
        results = Ahead(lambda task: threading.get_ident(), 50, threads=4, ahead=8)
        assert list(results) == 50 * [threading.get_ident()]
        gate.set()

    @pytest.mark.parametrize("seed", range(8))
    def test_under_stress_every_result_or_error_comes_at_its_place(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            count, threads = chance.randrange(1, 300), chance.randrange(1, 9)
            fails = chance.choice([None, chance.randrange(count)])
            leaves = chance.choice([None, chance.randrange(count + 1)])
            naps = [chance.random() * 2e-4 if chance.random() < 0.1 else 0 for _ in range(count)]

            def do(task: int, fails: int | None = fails, naps: list[float] = naps) -> int:
                if naps[task]:
                    time.sleep(naps[task])
                if task == fails:
                    raise KeyError(task)
                return task

            results = Ahead(do, count, threads=threads, ahead=chance.randrange(1, 20))
            ends = min(x for x in (count, fails, leaves) if x is not None)
            assert [next(results) for _ in range(ends)] == list(range(ends))
            if leaves == ends and ends < count:
                results.close()
            elif fails == ends:
                with pytest.raises(KeyError, match=str(fails)):
                    next(results)
            assert next(results, None) is None

    def test_a_thread_that_is_killed_takes_no_task_with_it(self) -> None:
        begun: list[int] = []
        results = Ahead(lambda task: begun.append(task) or task, 30, threads=1, ahead=4)
        # All that may be ahead has been handed over: the thread waits, and what ends it comes with the next task.
        assert eventually(lambda: results._helpers.done.qsize() == 4)
        (victim,) = helpers()
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident), ctypes.py_object(SystemExit))
        assert next(results) == 0
        victim.join(MANY)
        assert list(results) == list(range(1, 30))

    def test_closing_wakes_a_consumer_that_waits(self) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def do(task: int) -> int:
            if threading.current_thread() in helpers():
                begun.set()
                go_on.wait(MANY)
            return task

        results = Ahead(do, 10, threads=1, ahead=1)
        assert begun.wait(MANY)
        seen: list[Any] = []
        consumer = threading.Thread(target=lambda: seen.append(next(results, "over")))
        consumer.start()
        time.sleep(0.01)
        results.close()
        consumer.join(MANY)
        go_on.set()
        assert seen == ["over"]

    @pytest.mark.parametrize("leave", ["close", "drop"])
    def test_a_task_of_a_loop_that_is_over_is_not_begun(self, leave: str) -> None:
        begun: list[int] = []
        first, go_on = threading.Event(), threading.Event()

        def do(task: int) -> None:
            begun.append(task)
            first.set()
            go_on.wait(MANY)

        results = Ahead(do, 100, threads=1, ahead=50)
        assert first.wait(MANY)
        if leave == "close":
            results.close()
        else:
            del results
        go_on.set()
        assert eventually(lambda: not helpers())
        assert begun == [0]


class TestLoops:
    @pytest.mark.parametrize("threads", [0, 1, 2, 5])
    @pytest.mark.parametrize("prefetch", [None, 1, 2, 7, 40])
    def test_batches_are_the_same_for_any_pace(self, threads: int, prefetch: int | None) -> None:
        data = rows(1000)
        expected = [numbers(batch) for batch in nd.Loader(data, 30, shuffle=True, threads=0)]
        loader = nd.Loader(data, 30, shuffle=True, threads=threads or None, prefetch=prefetch if threads else None)
        assert [numbers(batch) for batch in loader] == expected

    def test_loops_side_by_side_do_not_disturb_each_other(self) -> None:
        data = rows(600)
        loaders = [nd.Loader(data, 50, shuffle=True, seed=seed, threads=2, prefetch=2) for seed in range(50)]
        expected = [
            [numbers(batch) for batch in nd.Loader(data, 50, shuffle=True, seed=s, threads=0)] for s in range(50)
        ]
        seen = [[numbers(batch) for batch in batches] for batches in zip(*loaders, strict=True)]
        assert [list(column) for column in zip(*seen, strict=True)] == expected

    def test_two_loops_over_one_loader_at_once_see_everything(self) -> None:
        loader = nd.Loader(rows(500), 20, shuffle=True, threads=2, prefetch=3)
        pairs = list(zip(loader, loader, strict=True))
        for side in range(2):
            assert sorted(itertools.chain.from_iterable(numbers(pair[side]) for pair in pairs)) == list(range(500))

    @pytest.mark.parametrize("threads", [0, 2])
    def test_threads_that_share_one_loop_get_every_batch_once(self, threads: int) -> None:
        loop = iter(nd.Loader(rows(), 7, shuffle=True, threads=threads))
        parts: list[list[int]] = [[] for _ in range(5)]

        def consume(part: list[int]) -> None:
            for batch in loop:
                part += numbers(batch)

        consumers = [threading.Thread(target=consume, args=[part]) for part in parts]
        for consumer in consumers:
            consumer.start()
        for consumer in consumers:
            consumer.join(MANY)
        assert sorted(itertools.chain.from_iterable(parts)) == list(range(4000))
        assert list(loop) == []

    def test_an_epoch_of_little_starts_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
        assert len(list(nd.Loader(np.arange(1000), 10))) == 100

    def test_thousands_of_epochs_leave_no_thread(self) -> None:
        loader = nd.Loader(rows(64), 8, threads=2, prefetch=2)
        for _ in range(500):
            for batch in loader:
                assert batch.shape == (8, 512)
                break
        assert eventually(lambda: not helpers())

    def test_a_thread_has_a_name_and_holds_up_no_exit(self) -> None:
        loop = iter(nd.Loader(rows(), 256, threads=2))
        next(loop)
        assert sorted(thread.name for thread in helpers()) == ["ndtorch-loader-0", "ndtorch-loader-1"]
        assert all(thread.daemon for thread in helpers())
        loop.close()

    def test_torch_starts_no_threads_for_a_thread_of_the_loader(self) -> None:
        seen: list[int] = []
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            results = Ahead(lambda task: seen.append(torch.get_num_threads()), 9, threads=1, ahead=9)
            assert eventually(lambda: len(seen) == 9)
            results.close()
            assert seen == 9 * [1]
            assert torch.get_num_threads() == 2
            threading.Thread(target=lambda: seen.append(torch.get_num_threads())).start()
            assert eventually(lambda: seen[9:] == [2])
        finally:
            torch.set_num_threads(before)


class TestLifetimes:
    @pytest.fixture(autouse=True)
    def _without_collector(self) -> Iterator[None]:
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    def test_a_loop_that_is_left_ends_its_threads(self) -> None:
        for batch in nd.Loader(rows(), 64, threads=2):
            assert len(batch) == 64
            break
        assert eventually(lambda: not helpers())

    def test_a_loop_that_a_generator_wraps_ends_with_it(self) -> None:
        def wrapped() -> Iterator[torch.Tensor]:
            yield from nd.Loader(rows(), 64, threads=2)

        generator = wrapped()
        next(generator)
        assert helpers()
        generator.close()
        assert eventually(lambda: not helpers())

    def test_an_error_in_the_loop_ends_its_threads(self) -> None:
        def loop() -> None:
            for _ in nd.Loader(rows(), 64, threads=2):
                1 / 0  # noqa: B018

        with pytest.raises(ZeroDivisionError):
            loop()
        assert eventually(lambda: not helpers())

    def test_a_loop_begins_with_its_first_batch_or_when_its_length_is_asked_for(self) -> None:
        loader = nd.Loader(rows(), 64, threads=2)
        loop, other = iter(loader), iter(loader)
        assert not helpers()
        assert loader.epoch == 0
        next(loop)
        assert len(loop) == 62
        assert loader.epoch == 0
        assert len(other) == 63
        assert loader.epoch == 1
        assert helpers()
        del loop, other
        assert eventually(lambda: not helpers())

    @pytest.mark.parametrize("leave", ["left", "finished", "closed"])
    def test_data_is_not_kept_by_a_loop_that_is_over(self, leave: str) -> None:
        data = rows()
        seen = weakref.ref(data)
        loader = nd.Loader(data, 64, threads=2)
        del data
        loop = iter(loader)
        next(loop)
        if leave == "left":
            del loop
        elif leave == "finished":
            assert len(list(loop)) == 62
        else:
            loop.close()
        assert eventually(lambda: not helpers())
        assert seen() is not None
        del loader
        assert seen() is None

    def test_a_loop_holds_its_loader(self) -> None:
        data = rows()
        loop = iter(nd.Loader(data, 64, threads=2))
        del data
        assert sorted(itertools.chain.from_iterable(map(numbers, loop))) == list(range(4000))

    def test_batches_made_ahead_go_with_the_loop(self) -> None:
        made: list[weakref.ref[np.ndarray]] = []

        def do(task: int) -> np.ndarray:
            array = np.zeros(10)
            made.append(weakref.ref(array))
            return array

        results = Ahead(do, 100, threads=2, ahead=20)
        next(results)
        assert eventually(lambda: len(made) == 21)
        results.close()
        assert eventually(lambda: not helpers())
        assert [one() for one in made] == 21 * [None]

    def test_a_thread_that_waits_holds_no_batch(self) -> None:
        made: list[weakref.ref[np.ndarray]] = []

        def do(task: int) -> np.ndarray:
            array = np.zeros(10)
            made.append(weakref.ref(array))
            return array

        results = Ahead(do, 100, threads=2, ahead=3)
        for _ in range(10):
            next(results)
        assert eventually(lambda: len(made) == 13)
        assert eventually(lambda: [one() is None for one in made] == 10 * [True] + 3 * [False])
        results.close()

    def test_a_loop_within_a_cycle_ends_when_that_is_collected(self) -> None:
        cycle: dict[str, Any] = {"loop": iter(nd.Loader(rows(), 64, threads=2))}
        cycle["cycle"] = cycle
        next(cycle["loop"])
        del cycle
        assert helpers()
        gc.collect()
        assert eventually(lambda: not helpers())

    def test_the_collector_may_end_a_loop_at_any_point_of_another(self) -> None:
        gc.enable()
        gc.set_threshold(5)
        try:
            for seed in range(60):
                loop: dict[str, Any] = {"loop": iter(nd.Loader(rows(64), 2, seed=seed, threads=3))}
                loop["cycle"] = loop
                next(loop["loop"])
        finally:
            gc.set_threshold(700, 10, 10)
        gc.collect()
        assert eventually(lambda: not helpers())


class TestPace:
    @pytest.mark.parametrize("option", ["threads", "prefetch"])
    @pytest.mark.parametrize("value", [-1, True, 1.0, "2", np.float64(1), [1], np.array([1, 2])])
    def test_what_is_no_count_is_refused(self, option: str, value: Any) -> None:
        with pytest.raises(nd.InvalidOptionError, match=rf"^Loader: {option}=.* is not a count; expected an integer"):
            nd.Loader(np.arange(3), **{option: value})

    @pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), torch.tensor(2)])
    def test_integers_of_any_library_are_counts(self, value: Any) -> None:
        assert wishes_of(value, value) == (2, 2)

    def test_what_contradicts_itself_is_refused(self) -> None:
        with pytest.raises(nd.InvalidOptionError, match=r"threads=0 makes no batch ahead.*Hint: threads=1, or"):
            nd.Loader(np.arange(3), threads=0, prefetch=2)
        with pytest.raises(nd.InvalidOptionError, match="prefetch=0 leaves nothing to do for threads=3"):
            nd.Loader(np.arange(3), threads=3, prefetch=0)

    @pytest.mark.parametrize("options", [{"threads": 0}, {"prefetch": 0}, {"threads": 0, "prefetch": 0}])
    def test_nothing_is_made_ahead_where_that_is_not_wanted(self, options: dict[str, int]) -> None:
        wishes = wishes_of(options.get("threads"), options.get("prefetch"))
        assert wishes.pace(1000, 1 << 20, is_grouped=True, is_slow=True) == Pace(0, 1, 1)

    @pytest.mark.parametrize("nbytes", [0, 1000, 300_000, 1 << 30])
    @pytest.mark.parametrize("is_grouped", [False, True])
    def test_no_more_batches_wait_than_was_said(self, nbytes: int, is_grouped: bool) -> None:
        for prefetch in range(1, 40):
            pace = wishes_of(3, prefetch).pace(1000, nbytes, is_grouped=is_grouped, is_slow=False)
            assert pace.threads == 3
            assert pace.ahead >= 1
            assert pace.ahead * pace.group + pace.group - 1 <= prefetch

    def test_prefetch_counts_what_is_taken_from_the_source(self) -> None:
        loop = iter(nd.Loader(rows(1000), 10, threads=2, prefetch=6))
        assert len(loop) == 100
        taken = loop._parts.groups._asked  # type: ignore[attr-defined]
        assert 1 <= taken <= 6
        loop.close()

    def test_large_batches_made_ahead_are_bounded_in_bytes(self) -> None:
        pace = wishes_of(8, None).pace(1000, 1 << 27, is_grouped=True, is_slow=False)
        assert pace == Pace(8, 1, 2)
