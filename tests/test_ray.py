"""Ray as the engine: tasks on one local cluster, workers that die, and arrays out of its store."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from comparison import assert_independent, assert_same
from processes import processes
from test_engines import eventually, is_alive
from unit_works import PATIENCE, Dies, Plain, Raises, RaisesOddly, Waits, units

import ndtorch as nd
from ndtorch.scale.engines import check_engine
from ndtorch.scale.engines import ray as engine_module
from ndtorch.scale.engines.ray import Ray

ray = pytest.importorskip("ray", reason="ray is not installed: pip install ray")
pytest.importorskip("ray.data", reason="Ray Data needs pyarrow and pandas")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    # Ray opens files and sockets for as long as the process lives.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
]


_PATIENT = "RAY_gcs_server_port_wait_time_s", "120"  # for what begins at all on a machine that does much else


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    """One cluster for all tests here, started as the engine starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where it keeps the token that guards it
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv(*_PATIENT)
        patch.delenv("RAY_ADDRESS", raising=False)
        with engine_module._connected(2, None):
            yield
    assert not ray.is_initialized()


@pytest.fixture
def engine(cluster) -> Ray:
    return Ray(2, None)


_OF_RAY = "RAY_task_oom_retries"  # spelt as Ray does


# --- units


def test_every_unit_is_done_once_and_the_cluster_of_the_caller_stays(engine):
    done = list(engine.run(Plain(), iter(units(20))))
    assert sorted(each.entry.number for each in done) == list(range(20))
    assert all(each.error is None for each in done)
    assert ray.is_initialized()


def test_an_error_comes_with_its_unit_and_the_others_go_on(engine):
    error = nd.FormatError("read", "'1.npy' is truncated", expected="128 bytes", got=100)
    done = {each.unit.number: each for each in engine.run(Raises(error), units(4))}
    assert (type(done[1].error), str(done[1].error)) == (nd.FormatError, str(error))
    assert [done[number].error for number in (0, 2, 3)] == [None] * 3


def test_an_error_that_no_pickle_can_hold_comes_back_as_text(engine):
    (done,) = engine.run(RaisesOddly(is_forgetful=True), units(1))
    assert str(done.error) == "convert: ForgetfulError: it went wrong."


def test_a_unit_whose_worker_is_killed_is_done_by_another(engine, tmp_path):
    done = list(engine.run(Dies(str(tmp_path), (1,)), units(4)))
    assert sorted(each.unit.number for each in done) == [0, 1, 2, 3]
    assert all(each.error is None for each in done)
    assert len(list(tmp_path.glob("death-1-*"))) == 1


def test_a_unit_that_two_workers_die_on_fails_by_name_and_the_rest_is_done(engine, tmp_path):
    done = {each.unit.number: each for each in engine.run(Dies(str(tmp_path), (1,), times=99), units(3))}
    assert str(done[1].error).startswith("convert: 2 workers died on unit 1, '1.npy'; the last one says Ray: ")
    assert [done[number].error for number in (0, 2)] == [None, None]
    assert len(list(tmp_path.glob("death-1-*"))) == 2


def test_no_more_tasks_are_given_away_than_keep_the_workers_busy(engine):
    taken = []
    results = engine.run(Plain(), (taken.append(unit) or unit for unit in units(100)))
    next(results)
    results.close()
    assert len(taken) <= 3


def test_what_is_at_work_is_cancelled_when_nobody_asks_any_more(engine, tmp_path):
    results = engine.run(Waits(str(tmp_path), after=1), units(3))
    assert next(results).unit.number == 0
    eventually(lambda: any(path.read_text() for path in tmp_path.glob("pid-*")), "a unit is in the works")
    (pid, *_) = [int(path.read_text()) for path in tmp_path.glob("pid-*") if path.read_text()]
    results.close()
    eventually(lambda: not is_alive(pid), "the worker has been ended")


def test_whole_conversions_go_through_ray(engine, tmp_path):
    for i in range(1100):
        np.save(tmp_path / f"{i:04d}.npy", np.full((2, 3), i, np.float32))
    summary = nd.convert_many(tmp_path / "*.npy", tmp_path / "out", engine="ray", workers=2, shard_size="16KB")
    assert (summary.units, summary.converted, summary.rows) == (3, 3, 2200)
    local = nd.convert_many(tmp_path / "*.npy", tmp_path / "local", shard_size="16KB")
    assert local.shards == summary.shards
    for path in (tmp_path / "local").glob("[0-9i]*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("shard_size", ["1KB", None])
def test_a_missing_chunk_is_an_error_on_ray_too(engine, tmp_path, shard_size):
    for number in range(17):  # the headers of every other one are read for the plan
        zarr.save_array(tmp_path / "in" / f"{number:02d}.zarr", np.full((2, 2), number))
    options = {"engine": "ray", "workers": 2, "shard_size": shard_size}
    (chunk,) = [path for path in (tmp_path / "in" / "03.zarr" / "c").rglob("*") if path.is_file()]
    chunk.unlink()
    with pytest.raises(nd.FormatError, match=r"/00.zarr' array '.*': 1 of its 1 chunks, such as 'c/0/0', are missing"):
        nd.convert_many(tmp_path / "in", tmp_path / "out", **options)
    shutil.rmtree(tmp_path / "in" / "00.zarr")
    with pytest.raises(nd.FormatError, match=r"/03.zarr' array '.*': 1 of its 1 chunks, such as 'c/0/0', are missing"):
        nd.convert_many(tmp_path / "in", tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    nd.convert_many(tmp_path / "in", tmp_path / "out", missing_chunks="fill", overwrite=True, **options)
    arrays = nd.read(tmp_path / "out", to="numpy")
    found = np.concatenate([array[...] for _, array in sorted(arrays.items())])
    assert_same(found[:, 0], np.repeat([1, 2, 0, *range(4, 17)], 2))


def test_another_address_than_that_of_this_process_is_refused(engine):
    with pytest.raises(nd.InvalidOptionError, match=r"address='10\.0\.0\.1:6379' is another cluster"):
        list(Ray(2, "10.0.0.1:6379").run(Plain(), units(1)))


# --- what it starts by itself


DRIVER = """
import sys
from ndtorch.scale.engines.ray import Ray
from unit_works import Waits, units
for done in Ray(2, None).run(Waits(sys.argv[1]), units(2)):
    pass
"""


# After a kill -9 they look for their cluster for another minute, and end then.
_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def is_agent(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_AGENTS)
    return True  # gone


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_cluster_of_ours_ends_with_the_driver(tmp_path, how):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "HOME": str(tmp_path)} | dict([_PATIENT]),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(lambda: any(one.read_text() for one in tmp_path.glob("pid-*")), "a unit is in the works")
        assert len(processes(session=process.pid)) > 3
        os.kill(process.pid, how)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -how
        eventually(
            lambda: not [pid for pid in processes(session=process.pid) if not is_agent(pid)], "all of it has ended"
        )
    finally:
        process.kill()
        for pid in processes(session=process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_telemetry_is_off_where_we_start_it_and_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv(_OF_RAY, "7")
    with engine_module._quiet():
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.environ[_OF_RAY] == "7"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    options = engine_module._options(3, None, is_ours=True)
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", 3, False)
    assert "num_cpus" not in engine_module._options(3, "10.0.0.1:6379", is_ours=False)


def test_where_ray_is_missing_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(nd.MissingDependencyError, match=r"ray is not installed. Hint: pip install ray"):
        check_engine("ray")


# --- arrays out of its store


@pytest.fixture
def stored(cluster) -> np.ndarray:
    array = ray.get(ray.put(np.arange(1 << 16, dtype=np.float32).reshape(256, 256)))
    assert not array.flags.writeable
    return array


def test_an_array_out_of_the_store_is_copied_unless_the_caller_gives_their_word(stored):
    before = stored.copy()
    tensor = nd.to_torch(stored)
    assert_independent(tensor, stored)
    tensor.zero_()
    assert_same(stored, before)


def test_an_array_out_of_the_store_is_shared_at_the_callers_word_without_a_copy(stored):
    tensor = nd.to_torch(stored, readonly="share")
    assert tensor.data_ptr() == stored.__array_interface__["data"][0]
    assert nd.explain(stored, readonly="share").nbytes_copied == 0
    assert_same(tensor, torch.from_numpy(stored.copy()))
    assert not stored.flags.writeable


def test_what_is_shared_with_the_store_is_kept_for_as_long_as_the_tensor(cluster):
    reference = ray.put(np.full(1 << 16, 7, np.int64))
    tensor = nd.to_torch(ray.get(reference), readonly="share")
    del reference
    others = [ray.put(np.full(1 << 16, i, np.int64)) for i in range(20)]
    assert torch.equal(tensor, torch.full((1 << 16,), 7))
    del others


def test_an_array_out_of_the_store_can_be_refused(stored):
    with pytest.raises(nd.CopyRequiredError, match="read-only"):
        nd.to_torch(stored, copy=False)


# --- batches of Ray Data


@pytest.fixture(scope="module")
def dataset(cluster) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    columns = {"x": np.arange(24, dtype=np.float32).reshape(8, 3), "y": np.arange(8), "n": np.array(list("abcdefgh"))}
    return ray.data.from_items([{name: column[i] for name, column in columns.items()} for i in range(8)])


EXPECTED = {"x": torch.arange(12.0).reshape(4, 3), "y": torch.arange(4), "n": list("abcd")}


def test_a_batch_of_ray_data_is_a_batch_to_collate(dataset):
    batch = next(iter(dataset.iter_batches(batch_size=4, batch_format="numpy")))
    before = {name: column.copy() for name, column in batch.items()}
    result = nd.collate(batch)
    assert_same(result, EXPECTED)
    fixed = [name for name, column in batch.items() if not column.flags.writeable]
    assert fixed, "none of them is read-only"
    for name in fixed:
        assert_independent(result[name], batch[name])
        result[name].zero_()
        assert_same(batch[name], before[name])
        shared = nd.to_torch(batch[name], readonly="share")
        assert shared.data_ptr() == batch[name].__array_interface__["data"][0]


def test_collate_is_a_step_of_iter_torch_batches(dataset):
    class Collate(ray.data.collate_fn.NumpyBatchCollateFn):
        def __call__(self, batch):
            return nd.collate(batch)

    first, second = dataset.iter_torch_batches(batch_size=4, collate_fn=Collate())
    assert_same(first, EXPECTED)
    assert_same(second["y"], torch.arange(4, 8))


def test_rows_of_ray_data_are_samples(dataset):
    assert_same(nd.collate(dataset.take(4)), EXPECTED)


def test_workers_of_ray_collate_too(cluster):
    collated = ray.remote(nd.collate).remote([{"x": np.ones(3)}, {"x": np.zeros(3)}])
    assert_same(ray.get(collated), {"x": torch.tensor([[1.0, 1, 1], [0, 0, 0]], dtype=torch.float64)})


# --- clusters that run already


@pytest.fixture
def running(tmp_path, monkeypatch) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a cluster as ``ray start`` makes one, in a folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(*_PATIENT)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tempfile.mkdtemp(dir="/tmp", prefix="ray")  # its sockets bear no long paths
    words = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=1"]
    words += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    words += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
    words[0] = str(Path(sys.executable).with_name("ray"))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said, port = "", None
            while port is None:
                line = process.stdout.readline()
                assert line, said
                said += line
                port = re.search(r"ray start --address='.*:(\d+)'", line)
            yield f"127.0.0.1:{port[1]}", process
        finally:
            stopped(process, folder)
            shutil.rmtree(folder, ignore_errors=True)


def stopped(process: subprocess.Popen[str], folder: str) -> None:
    """Kill a cluster, and whatever of it outlives that."""
    for pid in [process.pid, *(pid for pid, line in command_lines() if folder in line)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: not any(folder in line for _, line in command_lines()), "all of the cluster has ended")


def command_lines() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


LOST = """
import sys
import ndtorch as nd
from ndtorch import cli
from ndtorch.scale import units

source, target, address = sys.argv[1:]
command = ["convert", source, f"{target}-by-command", "--json", "--shard-size", "1MB"]
cli.app([*command, "--engine", "ray", "--address", address], standalone_mode=False)
from ndtorch.scale.engines import ray as engine
units.units_of.__kwdefaults__["count"] = 1
engine._GONE_AFTER, engine._LOOK_EVERY = 1.0, 0.2

def progress(done):
    print("one", flush=True)
    sys.stdin.readline()

try:
    nd.convert_many(source, target, engine="ray", workers=1, address=address, progress=progress)
except nd.NdtorchError as error:
    print(error)
print(nd.convert_many(source, target).skipped)
"""


def test_a_cluster_that_runs_is_used_and_left_as_it_is_and_its_end_is_an_error(running, tmp_path):
    address, cluster = running
    (tmp_path / "src").mkdir()
    for number in range(3):
        np.save(tmp_path / "src" / f"{number}.npy", np.full((2, 2), number))
    words = [sys.executable, "-c", LOST, str(tmp_path / "src"), str(tmp_path / "out"), address]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first, last = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        assert (first["status"], first["files"], last["rows"], last["converted"]) == ("converted", 3, 6, 1)
        assert process.stdout.readline() == "one\n"
        assert cluster.poll() is None
        stopped(cluster, str(tmp_path / "nothing"))
        eventually(lambda: engine_module.why_no_answer("127.0.0.1", int(address[10:])) != "", "nobody answers")
        out, _ = process.communicate("\n", timeout=PATIENCE)
    error, skipped = out.splitlines()[-2:]
    assert error.startswith("convert: the Ray cluster at '")
    assert f":{address[10:]}' is gone: Connection refused. Hint: the same call goes on" in error
    assert (skipped, process.returncode) == ("1", 0)


@pytest.mark.parametrize(
    ("address", "hint"),
    [("auto", "ray start --head starts one; "), ("10.0.0.1:6379", "RAY_AUTH_MODE=token "), (None, None)],
)
def test_a_connection_that_fails_says_what_may_help(monkeypatch, address, hint):
    def refused(**options):
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(nd.NdtorchError, match="Failed to connect") as raised:
        list(Ray(1, address).run(Plain(), units(1)))
    assert str(raised.value).partition(" Hint: ")[2].startswith(hint or "")
    assert ("Hint" in str(raised.value)) is (hint is not None)


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("127.0.0.1:1", nd.NdtorchError, "no Ray cluster answers at '127.0.0.1:1': Connection refused"),
        ("ray://127.0.0.1:1", nd.NdtorchError, "no Ray cluster answers at 'ray://127.0.0.1:1': Connection refused"),
        ("somewhere", nd.InvalidOptionError, "address='somewhere' is no address of a cluster. Hint: HOST:PORT"),
    ],
)
def test_where_no_cluster_answers_nothing_is_begun(tmp_path, monkeypatch, address, kind, message):
    np.save(tmp_path / "0.npy", np.zeros((2, 2)))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(kind, match=re.escape(message)):
        nd.convert_many(tmp_path / "0.npy", tmp_path / "out", engine="ray", address=address)
    assert not (tmp_path / "out").exists()
