"""What goes wrong in a source, in the loop or from outside: said where it belongs, and nothing hangs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from interpreters import PATIENCE, Interpreters
from loops import MANY, _no_thread_stays, eventually, helpers  # noqa: F401

import ndtorch as nd
from ndtorch.loader.ahead import Ahead
from ndtorch.loader.columns import Column, MemoryColumn

PACES: list[dict[str, int]] = [{"threads": 0}, {"threads": 1}, {"threads": 2}, {"threads": 4, "prefetch": 3}]


class Faulty(Column):
    """A column of row numbers that meets its fault at one row."""

    def __init__(self, length: int, fault: Callable[[], object], row: int) -> None:
        self.length = length
        self.fault = fault
        self.row = row

    def take(self, rows: np.ndarray, allocate: Any) -> tuple[Any, None]:
        if self.row in rows:
            self.fault()
        return torch.from_numpy(rows.copy()), None


class FaultyMemory(MemoryColumn):
    """One whose batches are made several at a time."""

    fault: Callable[[], object]
    row: int

    def take(self, rows: np.ndarray, allocate: Any) -> tuple[Any, Any]:
        if self.row in rows:
            self.fault()
        return super().take(rows, allocate)


def loader_over(*columns: Column, batch_size: int = 4, **options: Any) -> nd.Loader:
    loader = nd.Loader(tuple(np.zeros((column.length, 64)) for column in columns), batch_size, **options)
    loader._sources.columns[:] = columns
    return loader


def raising(error: BaseException) -> Callable[[], object]:
    def fault() -> None:
        raise error

    return fault


def taken(loop: Iterator[Any]) -> tuple[list[list[int]], BaseException | None]:
    """What a loop hands out, and what it ends with."""
    batches: list[list[int]] = []
    try:
        for (batch,) in loop:
            batches.append(batch.tolist())
    except BaseException as error:
        return batches, error
    return batches, None


class Odd(Exception):
    """An error that cannot be made again from its arguments."""

    def __init__(self, *, must: int) -> None:
        super().__init__("odd")
        self.must = must


def raising_new_ones(seen: list[weakref.ref[Odd]]) -> Callable[[], object]:
    """Raise an error of its own each time, which nothing here keeps."""

    def fault() -> None:
        error = Odd(must=1)
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    return fault


class TestErrors:
    @pytest.mark.parametrize("pace", PACES)
    @pytest.mark.parametrize("batch", [0, 1, 7, 24])
    def test_an_error_comes_after_the_batches_before_it(self, pace: dict[str, int], batch: int) -> None:
        error = Odd(must=3)
        loop = iter(loader_over(Faulty(100, raising(error), 4 * batch + 2), **pace))
        batches, raised = taken(loop)
        assert raised is error
        assert batches == [list(range(4 * i, 4 * i + 4)) for i in range(batch)]
        assert list(loop) == []

    @pytest.mark.parametrize("pace", PACES)
    @pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 24])
    def test_an_error_in_a_group_of_batches_comes_at_its_batch(self, pace: dict[str, int], batch: int) -> None:
        loader = nd.Loader(np.arange(100_000).reshape(100, 1000), 4, **pace)
        (column,) = loader._sources.columns
        column.__class__ = FaultyMemory
        column.fault, column.row = raising(OSError("bad sector")), 4 * batch + 2
        seen = []
        with pytest.raises(OSError, match="bad sector") as caught:
            seen.extend(leaf[0, 0].item() // 4000 for leaf in loader)
        assert seen == list(range(batch))
        assert caught.value.__notes__ == [
            f"at batch {batch} of the loop, rows {str(list(range(4 * batch, 4 * batch + 4)))[1:-1]}"
        ]

    @pytest.mark.parametrize("pace", PACES)
    def test_a_fault_that_passes_is_none_where_batches_can_be_made_again(self, pace: dict[str, int]) -> None:
        faults = [MemoryError()] if pace["threads"] else []
        loader = nd.Loader(np.arange(100_000).reshape(100, 1000), 4, **pace)
        (column,) = loader._sources.columns
        column.__class__ = FaultyMemory

        def fault() -> None:
            if faults:
                raise faults.pop()

        column.fault, column.row = fault, 30
        if pace.get("prefetch", 9) > 2:
            assert [leaf[0, 0].item() // 4000 for leaf in loader] == list(range(25))

    @pytest.mark.parametrize("pace", PACES)
    def test_an_error_names_its_batch_and_rows(self, pace: dict[str, int]) -> None:
        loader = loader_over(Faulty(100, raising(ValueError("broken")), 30), shuffle=True, seed=4, **pace)
        order = [batch[0].tolist() for batch in loader_over(Faulty(100, int, -1), shuffle=True, seed=4, threads=0)]
        (batch,) = [i for i, rows in enumerate(order) if 30 in rows]
        _, raised = taken(iter(loader))
        assert raised is not None
        assert raised.__notes__ == [f"at batch {batch} of the loop, rows {', '.join(map(str, order[batch]))}"]

    def test_a_large_batch_names_its_first_rows(self) -> None:
        loader = loader_over(Faulty(100, raising(ValueError("broken")), 30), threads=0, batch_size=40)
        _, raised = taken(iter(loader))
        assert raised is not None
        assert raised.__notes__ == ["at batch 0 of the loop, rows 0, 1, 2, 3, 4, 5, 6, 7 and 32 more"]

    @pytest.mark.parametrize("pace", PACES)
    def test_the_traceback_leads_into_the_source(self, pace: dict[str, int]) -> None:
        def inner_fault() -> None:
            raise LookupError("deep")

        _, raised = taken(iter(loader_over(Faulty(100, inner_fault, 50), **pace)))
        assert raised is not None
        names = [frame.name for frame in traceback.extract_tb(raised.__traceback__)]
        assert names[0] == "taken"
        assert names[-1] == "inner_fault"

    @pytest.mark.parametrize("pace", PACES)
    def test_an_error_of_the_next_epoch_is_none_of_this(self, pace: dict[str, int]) -> None:
        faults = [KeyError("once")]
        loader = loader_over(Faulty(100, lambda: faults and raising(faults.pop())(), 50), **pace)
        _, raised = taken(iter(loader))
        assert isinstance(raised, KeyError)
        batches, raised = taken(iter(loader))
        assert (len(batches), raised) == (25, None)

    @pytest.mark.parametrize("pace", PACES)
    @pytest.mark.parametrize(
        "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RecursionError()]
    )
    def test_whatever_a_source_raises_arrives_and_hangs_nothing(
        self, pace: dict[str, int], error: BaseException
    ) -> None:
        batches, raised = taken(iter(loader_over(Faulty(100, raising(error), 42), **pace)))
        assert raised is error
        assert batches == [list(range(4 * i, 4 * i + 4)) for i in range(len(batches))]
        assert len(batches) <= 10

    @pytest.mark.parametrize("pace", PACES)
    def test_the_end_of_an_iterator_in_a_source_is_not_the_end_of_the_data(self, pace: dict[str, int]) -> None:
        batches, raised = taken(iter(loader_over(Faulty(100, raising(StopIteration()), 42), **pace)))
        assert isinstance(raised, RuntimeError)
        assert isinstance(raised.__cause__, StopIteration)
        assert "StopIteration" in str(raised)
        assert len(batches) == 10

    def test_an_error_that_many_batches_share_is_noted_once_for_each(self) -> None:
        error = ValueError("the same object")
        loader = loader_over(Faulty(100, raising(error), 0), threads=2)
        for _ in range(3):
            assert taken(iter(loader))[1] is error
        assert error.__notes__ == ["at batch 0 of the loop, rows 0, 1, 2, 3"]

    @pytest.mark.parametrize("pace", PACES)
    def test_an_error_that_was_handled_is_gone(self, pace: dict[str, int]) -> None:
        gc.collect()
        gc.disable()
        try:
            seen: list[weakref.ref[Odd]] = []
            loader = loader_over(Faulty(100, raising_new_ones(seen), 50), **pace)
            kept = weakref.ref(loader._sources.columns[0])
            try:
                for _ in loader:
                    pass
            except Odd:
                pass
            assert eventually(lambda: not helpers())
            assert [one() for one in seen] == [None]
            del loader
            assert kept() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("pace", PACES)
    def test_an_error_that_nobody_came_for_is_gone(self, pace: dict[str, int]) -> None:
        gc.collect()
        gc.disable()
        try:
            loader = nd.Loader(np.arange(100_000).reshape(100, 1000), 4, **pace)
            (column,) = loader._sources.columns
            column.__class__ = FaultyMemory
            seen: list[weakref.ref[Odd]] = []
            column.fault, column.row = raising_new_ones(seen), 6
            loop = iter(loader)
            next(loop)
            assert pace != {"threads": 2} or eventually(lambda: bool(seen))
            del loop
            assert eventually(lambda: not helpers())
            assert all(one() is None for one in seen)
        finally:
            gc.enable()

    def test_a_source_that_asks_its_own_loop_is_told_so(self) -> None:
        loops: list[Iterator[Any]] = []
        loader = loader_over(Faulty(100, lambda: next(loops[0]), 50), threads=0)
        loops.append(iter(loader))
        batches, raised = taken(loops[0])
        assert len(batches) == 12
        assert isinstance(raised, nd.NdtorchError)
        assert "a source asked for the next batch of the loop that waits for it" in str(raised)

    def test_an_error_while_the_structure_is_put_together_ends_the_loop(self) -> None:
        loader = nd.Loader(np.arange(100_000).reshape(100, 1000), 4, threads=2)
        loader._sources = loader._sources._replace(rebuild=lambda leaves: 1 / 0)
        loop = iter(loader)
        with pytest.raises(ZeroDivisionError):
            next(loop)
        assert list(loop) == []

    def test_a_signal_handler_may_end_a_wait(self) -> None:
        held = threading.Event()

        def handler(_: int, frame: FrameType | None) -> None:
            if frame is None or frame.f_code is not Ahead._advance.__code__:
                signal.setitimer(signal.ITIMER_REAL, 0.05)  # it does not wait yet
                return
            raise TimeoutError("too long")

        before = signal.signal(signal.SIGALRM, handler)
        try:
            results = Ahead(lambda task: held.wait(MANY), 2, threads=1, ahead=1)
            assert eventually(lambda: results._helpers.todo.qsize() == 0)  # the thread has it
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError, match="too long"):
                next(results)
            assert list(results) == []
        finally:
            signal.signal(signal.SIGALRM, before)
            held.set()


START = """
from ndtorch.loader.columns import Column

class Source(Column):
    length = 1000
    def __init__(self, take):
        self.do = take
    def take(self, rows, allocate):
        self.do()
        return torch.from_numpy(rows.copy()), None

def loader_over(take, **options):
    loader = nd.Loader(np.zeros((1000, 8)), 4, **options)
    loader._sources.columns[:] = [Source(take)]
    return loader

def in_a_thread():
    return threading.current_thread() is not threading.main_thread()
"""


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreters]:
    with Interpreters(START, tmp_path_factory.mktemp("said")) as running:
        yield running


LOOPS = {
    "waiting for a thread": """
        asleep = threading.Event()
        def take():
            if in_a_thread():
                asleep.set()
                time.sleep(60)
            asleep.wait()
        loop = iter(loader_over(take, threads=1))
        len(loop)  # begins it
        asleep.wait()
        begun()
        for batch in loop: pass
        """,
    "working while a thread sleeps": """
        def take():
            if in_a_thread():
                begun()
                time.sleep(60)
            time.sleep(0.05)
        for batch in loader_over(take, threads=1, prefetch=300): pass
        """,
    "in a source that sleeps, without threads": """
        def take():
            begun()
            time.sleep(60)
        for batch in loader_over(take, threads=0): pass
        """,
    "gathering": """
        loader = nd.Loader(np.zeros((20000, 4096), np.uint8), 256, shuffle=True, threads=0)
        begun()
        while True:
            for batch in loader: pass
        """,
    "gathering beside threads": """
        loader = nd.Loader(np.zeros((1_000_000, 4096), np.uint8), 256, shuffle=True, threads=2)
        batches = iter(loader)
        next(batches)
        begun()  # not while threads come and go: in a callback of theirs Python drops a Ctrl-C
        for batch in batches: pass
        while True:
            for batch in loader: pass
        """,
    "in a step of training": """
        model = torch.nn.Linear(784, 256)
        loader = nd.Loader(np.zeros((20000, 784), np.float32), 256, shuffle=True, threads=2)
        for batch in loader:
            model(batch).sum().backward()
            begun()
        while True:
            for batch in loader:
                model(batch).sum().backward()
        """,
    "between batches": """
        for batch in nd.Loader(np.zeros((20000, 4096), np.uint8), 256, threads=2):
            begun()
            time.sleep(60)
        """,
}


class TestSignals:
    @pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
    def test_ctrl_c_ends_a_process(self, interpreters: Interpreters, loop: str) -> None:
        status, said = interpreters.run(loop, with_signal=signal.SIGINT)
        assert status == -signal.SIGINT
        assert said.endswith("\nKeyboardInterrupt\n")
        assert "Fatal" not in said
        assert "ignored" not in said

    @pytest.mark.parametrize("loop", ["working while a thread sleeps", "gathering beside threads"])
    def test_a_process_can_be_terminated(self, interpreters: Interpreters, loop: str) -> None:
        assert interpreters.run(LOOPS[loop], with_signal=signal.SIGTERM) == (-signal.SIGTERM, "")

    def test_a_loop_that_was_interrupted_can_be_begun_again(self, interpreters: Interpreters) -> None:
        script = """
            loader = loader_over(lambda: time.sleep(0.001), threads=2)
            try:
                batches = iter(loader)
                next(batches)
                # While it waits for a batch; within a callback of a thread object that goes Python drops it.
                threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
                for batch in batches: pass
                time.sleep(120)
            except KeyboardInterrupt:
                pass
            assert sorted(sum((batch.tolist() for batch in loader), [])) == list(range(1000))
            sys.exit(5)
            """
        assert interpreters.run(script) == (5, "")

    def test_ctrl_c_is_heard_at_any_moment(self, interpreters: Interpreters) -> None:
        script = """
            import random, traceback
            random.seed(0)
            loaders = [
                nd.Loader(np.zeros((3000, 2048), np.uint8), 64, shuffle=True, threads=2),
                loader_over(lambda: None, threads=3),
                nd.Loader(np.zeros((64, 4096), np.uint8), 16, threads=2),
            ]
            presses = count = drops = 0
            came = threading.Event()  # to us, or it was dropped
            def dropped(what):
                # Python drops what is raised within a callback of its own, that of a thread object which goes, say.
                global drops
                *_, (frame, _) = traceback.walk_tb(what.exc_traceback)
                if frame.f_globals["__name__"] not in ("_weakrefset", "threading"):
                    os._exit(98)
                drops += 1
                came.set()
            sys.unraisablehook = dropped
            def interrupt(heard, after):
                global presses
                time.sleep(after)
                while not heard:
                    came.clear()
                    presses += 1
                    os.kill(os.getpid(), signal.SIGINT)
                    if not came.wait(100): os._exit(97)
            for loader in loaders * 8:
                heard = []
                try:
                    threading.Thread(target=interrupt, args=[heard, random.random() * 0.01]).start()
                    while True:
                        for batch in loader: pass
                except KeyboardInterrupt:
                    heard.append(True)
                    came.set()
                    count += 1
            last = time.monotonic() + 60
            while threading.active_count() > 1 and time.monotonic() < last:
                time.sleep(0.001)
            sys.exit(count if threading.active_count() == 1 and presses == 24 + drops else 99)
            """
        assert interpreters.run(script) == (24, "")

    def test_an_interrupted_interpreter_says_nothing_else(self) -> None:
        script = """
            import ndtorch, numpy
            while True:
                for batch in ndtorch.Loader(numpy.zeros((20000, 4096)), 256, threads=2):
                    print("begun", flush=True)
            """
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            child.send_signal(signal.SIGINT)
            said = child.communicate(timeout=PATIENCE)[1]
        assert child.returncode == -signal.SIGINT
        assert said.endswith("\nKeyboardInterrupt\n")
        assert said.count("Traceback") == 1


GOES_ON = """
loop = iter(loader)
next(loop)
def rest():
    if 1 + sum(1 for _ in loop) != len(loader): os._exit(3)
    if sum(1 for _ in loader) != len(loader): os._exit(4)
"""
EXITS = {
    "the script ends, a loop alive": (0, "loop = iter(loader); next(loop)"),
    "the script ends, a loop in a cycle": (0, "cycle = [iter(loader)]; cycle.append(cycle); next(cycle[0])"),
    "sys.exit in a loop": (7, "for batch in loader: sys.exit(7)"),
    "an error in a loop": (1, "sys.excepthook = lambda *_: None\nfor batch in loader: 1 / 0"),
    "os._exit in a loop": (9, "for batch in loader: os._exit(9)"),
    "a loop in a thread": (0, "threading.Thread(target=lambda: [0 for _ in loader]).start()"),
    "a loop goes on in atexit": (0, f"{GOES_ON}atexit.register(rest)"),
    "a loop goes on in atexit, after its threads": (
        0,
        f"""{GOES_ON}
from ndtorch.loader import ahead
atexit.unregister(ahead._end)
atexit.register(rest)
atexit.register(ahead._end)
""",
    ),
}
# How long the end waits for threads is a matter of taste: here it is that they are waited for, on a busy machine, too.
PATIENT = "from ndtorch.loader import ahead; ahead._EXIT_SECONDS = 100.0\n"
SOURCES = {
    "memory": "loader = nd.Loader(np.zeros((5000, 4096), np.uint8), 64, shuffle=True, threads=3)",
    "torch": f"{PATIENT}x = torch.ones(20000)\nloader = loader_over(lambda: (x + 1).sum(), threads=3)",
    "sleep": "loader = loader_over(lambda: time.sleep(0.0005), threads=3)",
}


class TestExits:
    @pytest.mark.parametrize(("status", "script"), EXITS.values(), ids=EXITS.keys())
    def test_the_interpreter_ends(self, interpreters: Interpreters, status: int, script: str) -> None:
        assert interpreters.run(f"{SOURCES['sleep']}\n{script}") == (status, "")

    @pytest.mark.parametrize("source", ["memory", "torch"])
    @pytest.mark.parametrize("ending", ["the script ends, a loop alive", "sys.exit in a loop"])
    def test_threads_in_native_code_are_waited_for(self, interpreters: Interpreters, source: str, ending: str) -> None:
        status, script = EXITS[ending]
        assert interpreters.run(f"{SOURCES[source]}\n{script}") == (status, "")

    def test_threads_that_have_begun_are_told_of_the_exit(self, interpreters: Interpreters) -> None:
        script = """
            from ndtorch.loader import ahead
            ahead._EXIT_SECONDS = 1000.0
            has_begun = threading.Event()
            def take():
                if in_a_thread(): has_begun.set()
            loop = iter(loader_over(take, threads=1, prefetch=2))
            len(loop)  # begins it
            has_begun.wait()
            """
        assert interpreters.run(script) == (0, "")

    @pytest.mark.skipif(
        os.environ.get("NDTORCH_FAST") == "0",
        reason="without the native bridge the thread waits in calls of torch, where such an end does abort",
    )
    def test_a_thread_that_waits_for_pythons_lock_when_the_interpreter_is_taken_down_does_not_abort_it(
        self, interpreters: Interpreters
    ) -> None:
        script = """
            import ctypes
            from ndtorch.loader import ahead, batches
            away = threading.Event()
            class Table:  # says when a thread is about to leave Python
                def __init__(self, table):
                    self.table = table
                def __getattr__(self, name):
                    return getattr(self.table, name)
                def gather(self, *words):
                    away.set()
                    return self.table.gather(*words)
            loader = nd.Loader(np.zeros((4, 50_000_000), np.uint8), 2, threads=1)
            real = batches.Batches.__init__
            def begin(self, *words):
                real(self, *words)
                self._table = Table(self._table)
            batches.Batches.__init__ = begin
            atexit.unregister(ahead._end)
            atexit._run_exitfuncs()
            # Sleeps with the lock, and nothing in Python gives it to anybody before the interpreter is taken down.
            atexit.register(ctypes.PyDLL(None).usleep, 900_000)
            # Until then nobody takes it from the thread, which gives it away in native code of ours.
            atexit.register(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(1000)
            loop = iter(loader)
            len(loop)  # begins it
            away.wait()
            sys.exit(3)
            """
        assert interpreters.run(script) == (3, "")

    def test_a_thread_in_a_long_call_does_not_hold_up_the_exit(self, interpreters: Interpreters) -> None:
        script = """
            asleep = threading.Event()
            def take():
                if in_a_thread():
                    asleep.set()
                    time.sleep(600)
            loop = iter(loader_over(take, threads=1))
            len(loop)  # begins it
            asleep.wait()
            """
        assert interpreters.run(script) == (0, "")

    def test_a_dataset_that_is_within_torch_does_not_abort_the_exit(self, interpreters: Interpreters) -> None:
        script = """
            from ndtorch.loader import ahead
            ahead._EXIT_SECONDS = 100.0
            class Samples(torch.utils.data.Dataset):
                def __len__(self):
                    return 1000
                def __getitem__(self, number):
                    last = time.monotonic() + 0.1
                    while time.monotonic() < last:
                        torch.ones(100).sum()
                    return number
            loop = iter(nd.Loader(Samples(), 8, threads=2))
            next(loop)
            """
        assert interpreters.run(script) == (0, "")

    def test_a_forked_child_ends_as_an_interpreter_does(self, interpreters: Interpreters) -> None:
        script = """
            loader = nd.Loader(np.zeros((5000, 4096), np.uint8), 64, shuffle=True, threads=3)
            loop = iter(loader)
            next(loop)
            child = os.fork()
            if child == 0:
                next(loop)
                sys.exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
            sys.exit(len(list(loop)))
            """
        assert interpreters.run(script) == (78, "")


class TestResources:
    def test_memory_does_not_grow_with_epochs(self, interpreters: Interpreters) -> None:
        script = """
            def resident():
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
            loader = nd.Loader((np.zeros((8192, 1024), np.uint8), np.arange(8192)), 256, shuffle=True, threads=2)
            def epochs(n):
                for _ in range(n):
                    for batch in loader: pass
            epochs(60)
            before, files = resident(), len(os.listdir("/proc/self/fd"))
            epochs(800)  # of 8 MB; how much is in the works at a time varies, a leak grows with the epochs
            assert resident() - before < 90, resident() - before
            assert len(os.listdir("/proc/self/fd")) == files
            deadline = time.monotonic() + 60
            while threading.active_count() > 1 and time.monotonic() < deadline:
                time.sleep(0.01)  # the last loops' threads may be waiting for a busy machine to let them end
            assert threading.active_count() == 1
            """
        assert interpreters.run(script) == (0, "")

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who may have no threads")
    def test_a_loop_goes_on_where_no_thread_is_to_be_had(self, interpreters: Interpreters) -> None:
        script = """
            import resource
            loader = nd.Loader(np.zeros((5000, 4096), np.uint8), 64, shuffle=True, threads=4)
            os.setuid(65534)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            try:
                threading.Thread(target=int).start()
            except RuntimeError:
                assert sum(1 for batch in loader) == len(loader)
                assert threading.active_count() == 1
                sys.exit(8)
            """
        assert interpreters.run(script) == (8, "")
