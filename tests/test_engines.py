"""The engines of this machine: every unit once, whatever happens to who does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import unit_works
from processes import processes
from unit_works import AnswersOddly, Dies, Plain, Raises, RaisesOddly, Talks, Waits, units

import ndtorch as nd
from ndtorch.scale.engines import check_engine, engine_for, worker
from ndtorch.scale.engines.processes import Processes
from ndtorch.scale.engines.threads import Threads
from ndtorch.scale.units import SourceFile, Unit

pytestmark = pytest.mark.once

ENGINES = [Threads(1), Threads(3), Processes(2)]
NAMES = ["one thread", "three threads", "processes"]


def eventually(is_true: Callable[[], bool], what: str) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + unit_works.PATIENCE
    while not is_true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children() -> set[int]:
    return processes(parent=os.getpid())


@pytest.fixture(autouse=True)
def _leaves_no_child():
    before = children()
    yield
    assert children() <= before


# --- every engine


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_every_unit_is_done_once(engine):
    done = list(engine.run(Plain(), iter(units(7))))
    assert sorted(each.entry.number for each in done) == list(range(7))
    assert all(each.entry.number == each.unit.number and each.error is None for each in done)


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_nothing_to_do_is_done(engine):
    assert list(engine.run(Plain(), [])) == []


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_an_error_comes_with_its_unit_and_the_others_go_on(engine):
    error = nd.FormatError("read", "'1.npy' is truncated", expected="128 bytes", got=100)
    done = {each.unit.number: each for each in engine.run(Raises(error), units(4))}
    assert sorted(done) == [0, 1, 2, 3]
    assert (type(done[1].error), str(done[1].error), done[1].error.got) == (nd.FormatError, str(error), 100)
    assert done[1].entry is None
    assert all(done[number].error is None for number in (0, 2, 3))


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_units_are_taken_as_they_are_needed(engine):
    taken = []
    results = engine.run(Plain(), (taken.append(unit) or unit for unit in units(100)))
    next(results)
    results.close()
    assert len(taken) < 20


def test_threads_do_what_one_thread_does_several_at_a_time():
    barrier = threading.Barrier(3)

    def meets(unit: Unit):
        barrier.wait(unit_works.PATIENCE)
        return unit_works.entry(unit)

    assert len(list(Threads(3).run(meets, units(6)))) == 6


def test_threads_that_are_at_work_stop_when_nobody_asks_any_more(tmp_path):
    before = {*threading.enumerate()}
    results = Threads(2).run(Waits(str(tmp_path), after=1), units(3))
    assert next(results).unit.number == 0
    eventually(lambda: len(list(tmp_path.glob("pid-*"))) == 2, "two units are in the works")
    at_work = {*threading.enumerate()} - before
    assert len(at_work) == 2
    results.close()
    assert [thread for thread in at_work if thread.is_alive()] == []


def test_ctrl_c_while_a_thread_is_started_is_a_keyboard_interrupt(monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(Threads(2).run(Plain(), units(2)))


# --- processes that die


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, 0], ids=["killed", "crashed", "exited"])
def test_a_unit_whose_process_dies_is_done_by_another(tmp_path, how):
    done = list(Processes(2).run(Dies(str(tmp_path), (0, 3), signal=how), units(5)))
    assert sorted(each.unit.number for each in done) == list(range(5))
    assert all(each.error is None for each in done)
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_a_unit_that_two_processes_die_on_fails_by_name_and_the_rest_is_done(tmp_path):
    work = Dies(str(tmp_path), (1,), times=99)
    files = tuple(SourceFile(f"{name}.h5", f"{name}.h5", 1, "") for name in "abcde")
    done = {each.unit.number: each for each in Processes(2).run(work, [*units(1), Unit(1, files), *units(4)[2:]])}
    assert sorted(done) == [0, 1, 2, 3]
    assert str(done[1].error) == (
        "convert: 2 workers died on unit 1, 'a.h5', 'b.h5', 'c.h5' and 2 more; the last one was killed by SIGKILL. "
        "Hint: memory may have run out (fewer workers=), or a library cannot bear one of these files."
    )
    assert done[1].error.files == ("a.h5", "b.h5", "c.h5", "d.h5", "e.h5")
    assert [done[number].error for number in (0, 2, 3)] == [None] * 3
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_a_process_that_is_killed_from_outside_between_units_is_replaced(tmp_path):
    results = Processes(1).run(Plain(), units(3))
    first = next(results)
    os.kill(int(first.entry.key.split()[-1]), signal.SIGKILL)
    rest = list(results)
    assert sorted(each.unit.number for each in rest) == [1, 2]
    assert all(each.error is None for each in rest)


def test_where_no_process_can_start_an_error_says_so(monkeypatch):
    monkeypatch.setattr(worker, "START", "import sys; sys.exit(7)")
    with pytest.raises(nd.NdtorchError, match="no worker process can start: the last one ended with exit code 7"):
        list(Processes(2).run(Plain(), units(5)))


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_an_error_that_no_pickle_can_hold_comes_back_as_text(is_forgetful):
    (done,) = Processes(1).run(RaisesOddly(is_forgetful), units(1))
    name = "ForgetfulError" if is_forgetful else "UnpicklableError"
    assert str(done.error) == f"convert: {name}: it went wrong."
    assert "unit_works.py" in str(done.error.__cause__)


def test_an_answer_that_no_pickle_can_hold_is_an_error_of_its_unit():
    (done,) = Processes(1).run(AnswersOddly(), units(1))
    assert done.entry is None
    assert "pickle" in str(done.error)


def test_what_a_process_prints_goes_to_stderr_and_disturbs_nobody(capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # or what is printed would be kept until the process ends
    done = list(Processes(1).run(Talks(), units(2)))
    assert [each.error for each in done] == [None, None]
    out, err = capfd.readouterr()
    assert out == ""
    assert {"a print", "a write to stdout", "an error"} <= set(err.splitlines())


def test_there_are_never_more_processes_than_units_and_they_are_used_again():
    before = children()
    results = Processes(8).run(Plain(), units(2))
    next(results)
    assert len(children() - before) <= 2
    results.close()
    done = list(Processes(1).run(Plain(), units(4)))
    assert len({each.entry.key for each in done}) == 1


def test_a_process_that_is_at_work_ends_when_nobody_asks_any_more(tmp_path):
    results = Processes(1).run(Waits(str(tmp_path), after=1), units(2))
    next(results)
    eventually(lambda: any(path.read_text() for path in tmp_path.glob("pid-*")), "the next unit is in the works")
    (pid,) = pids_in(tmp_path)
    assert is_alive(pid)
    results.close()
    assert not is_alive(pid)


# --- the process that drives them


DRIVER = """
import sys
from ndtorch.scale.engines.{module} import {engine}
from unit_works import Waits, units
for done in {engine}(2).run(Waits(sys.argv[1]), units(2)):
    pass
"""


@contextmanager
def driver(folder: Path, module: str, engine: str) -> Iterator[subprocess.Popen[str]]:
    """A script at work on two units, without ``if __name__ == "__main__"``; in a session of its own."""
    script = folder / "driver.py"
    script.write_text(DRIVER.format(module=module, engine=engine))
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            eventually(lambda: has_pids(folder), "two units are in the works")
            yield process
        finally:
            process.kill()


def has_pids(folder: Path) -> bool:
    return len([path for path in folder.glob("pid-*") if path.read_text()]) == 2


def pids_in(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid-*")]


def test_processes_end_with_a_driver_that_is_killed(tmp_path):
    with driver(tmp_path, "processes", "Processes") as process:
        process.kill()
        process.communicate()
        eventually(lambda: not any(map(is_alive, pids_in(tmp_path))), "the workers have noticed")


def test_ctrl_c_ends_the_driver_and_its_processes(tmp_path):
    with driver(tmp_path, "processes", "Processes") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all that it has started
        _, errors = process.communicate(timeout=unit_works.PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert not any(map(is_alive, pids_in(tmp_path)))
    assert errors.count("Traceback") == 1  # the driver's own


def test_ctrl_c_ends_the_driver_and_its_threads(tmp_path):
    with driver(tmp_path, "threads", "Threads") as process:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=unit_works.PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1


# --- which engine


@pytest.mark.parametrize(
    ("suffix", "count", "workers", "expected"),
    [
        ("npy", 9, 2, Threads),
        ("h5", 9, 2, Processes),
        ("png", 9, 2, Processes),
        ("zarr", 9, 2, Processes),
        ("h5", 2, 2, Threads),  # no process would do more than one unit
        ("h5", 9, 1, Threads),
    ],
)
def test_local_is_processes_where_the_library_of_many_sources_holds_the_gil(suffix, count, workers, expected):
    some = [Unit(number, (SourceFile(f"{number}.{suffix}", "", 1, ""),)) for number in range(count)]
    assert type(engine_for("local", some, workers=workers)) is expected


def test_the_format_that_was_said_counts_and_not_the_suffix():
    some = [Unit(number, (SourceFile(f"{number}.bin", "", 1, ""),)) for number in range(9)]
    assert type(engine_for("local", some, workers=2, source_format="h5")) is Processes
    assert type(engine_for("local", some, workers=2, source_format="npy")) is Threads


def test_an_engine_can_be_named():
    assert type(engine_for("processes", units(1))) is Processes
    assert type(engine_for("threads", units(1))) is Threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dask"}, "engine='dask' is unknown; expected one of local, threads, processes, ray, got 'dask'"),
        ({"name": "local", "workers": 0}, "workers=0 cannot work; expected 1 or more, got 0"),
        ({"name": "local", "workers": 1.5}, "workers=1.5 cannot work"),
        ({"name": "local", "workers": True}, "workers=True cannot work"),
        ({"name": "threads", "address": "a:1"}, "address='a:1' is for a cluster, not for engine='threads'"),
    ],
)
def test_what_an_engine_does_not_know_is_refused(options, message):
    with pytest.raises(nd.InvalidOptionError, match=message):
        check_engine(**options)
