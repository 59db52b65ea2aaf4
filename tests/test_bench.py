"""The benchmark: every row is well formed and measures what it says; no test looks at how long anything takes."""

from __future__ import annotations

import itertools
import json
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd
from ndtorch import _bench, _bench_loader, _bench_scale, _bench_tasks
from ndtorch._bench import LIMIT, Row, Work

ROOT = Path(__file__).parents[1]


def tiny_works() -> list[Work]:
    return [
        *_bench.calls(),
        *_bench.copies(4096),
        *_bench.layouts(4096),
        *_bench.exact_casts(4096),
        *_bench.stacks(3, (3, 4, 5)),
        *_bench.pictures((2, 8, 9, 3), 0.12, 0.10),
        *_bench.pictures((8, 9, 3), 0.30, None),
    ]


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list")
@pytest.mark.parametrize("work", tiny_works(), ids=lambda work: work.name)
def test_all_sides_of_a_work_have_the_same_result(work: Work) -> None:
    assert work.peers
    assert set(work.reach) <= set(work.peers)
    ours = work.ours()
    for peer, side in work.peers.items():
        theirs = side()
        if "image_to_numpy" in work.name:  # that chain cuts off where ours rounds
            assert int(np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max()) <= 1
        elif not isinstance(ours, list):
            assert_same(ours, theirs)
        assert type(ours) is type(theirs), peer


def test_all_sides_of_a_work_on_files_have_the_same_result(tmp_path: Path) -> None:
    for name, works in (("reads", _bench.reads(4096, tmp_path)), ("small", _bench.small_files(3, tmp_path / "many"))):
        (tmp_path / "many").mkdir(exist_ok=True)
        for work in works:
            assert set(work.reach) <= set(work.peers), name
            for side in work.peers.values():
                assert_same(work.ours(), side())


def test_sides_that_write_leave_nothing_behind(tmp_path: Path) -> None:
    names = []
    for work in _bench.writes(1 << 16, tmp_path):
        for side in (work.ours, *work.peers.values()):
            side()
        names.append(work.name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["columns.npy", "x.npy"]
    assert len(set(names)) == 3


@pytest.mark.parametrize("is_large", [False, True])
def test_all_sides_of_an_epoch_see_every_sample(is_large: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(700 * 6, dtype=np.float32).reshape(700, 2, 3))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    (work,) = _bench_loader.epochs("an epoch", x, np.arange(700), is_large=is_large)
    assert set(work.reach) <= set(work.peers)
    assert (LIMIT in work.peers) == is_large
    threads = torch.get_num_threads()
    assert {name: side() for name, side in {"ours": work.ours, **work.peers}.items()} == dict.fromkeys(
        ("ours", *work.peers), 700
    )
    assert torch.get_num_threads() == threads


def rows_in(folder: Path) -> list[list[float]]:
    """First elements of the rows in each file, whatever the files and their arrays are called."""
    files = [nd.read(path, to="numpy") for path in sorted(folder.glob("*.safetensors"))]
    return sorted([float(row[0]) for row in array] for file in files for array in file.values())


@pytest.mark.once
def test_all_sides_of_a_conversion_of_many_files_write_the_same(tmp_path: Path) -> None:
    pytest.importorskip("dask", reason="only the tests and `make bench` install it")
    files = _bench_scale.made(tmp_path / "sources", 3, 1 << 10)
    each = _bench_scale.sides(files, 2, ray=False, synced=True)
    each[_bench_scale.RAY_DATA] = lambda target: [
        _bench_scale.write_batch({"data": np.load(path)}, target) for path in files.paths
    ]
    shards = _bench_scale.shard_sides(files, 2, ray=False)
    expected = [[float(row[0]) for row in np.load(path)] for path in files.paths]
    for kind, sides, rows in (("each", each, expected), ("shards", shards, [[*itertools.chain(*expected)]])):
        assert sides.pop("processes")  # seconds to start, and tested elsewhere
        for name, side in sides.items():
            target = tmp_path / f"{kind} {name}"
            target.mkdir()
            side(target)
            assert rows_in(target) == sorted(rows), (kind, name)


@pytest.mark.once
def test_costs_of_conversions_are_those_of_turns_beside_the_first_side(tmp_path: Path) -> None:
    files = _bench_scale.made(tmp_path / "sources", 2, 1 << 10)
    order: list[str] = []
    sides = {name: lambda target, name=name: order.append(name) or (target / name).touch() for name in "ab"}
    one, other = _bench_scale.measure("a job", files, sides, 1, tmp_path, rounds=3)
    assert order == ["a", "b"] * 4
    assert (one.side, one.ratio, one.files, one.nbytes) == ("a", 1.0, 2, 2 * (1 << 10))
    assert other.seconds > 0 < other.ratio
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]
    text = _bench_scale.markdown([one, other, _bench_tasks.Overhead("threads", 1, 0.01, 1e-6), "a remark"])
    assert "| a job | a | 1 |" in text
    assert "| threads | 1 | 10.0 ms | 1 µs |" in text
    assert text.endswith("- a remark")


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is told by /proc alone")
def test_peak_memory_is_measured() -> None:
    peak = _bench.peak_bytes("npy to npz", 1 << 22)
    assert peak is None or 0 <= peak < 1 << 30


def test_medians_are_those_of_turns() -> None:
    order: list[str] = []
    clock = itertools.count()

    def side(name: str):
        def call() -> int:
            order.append(name)
            return next(clock)

        return call

    work = Work("nothing", 1, side("ours"), {"theirs": side("theirs")}, {"theirs": 2})
    row = _bench.measure(work, seconds=0.1, rounds=3)
    assert order.count("ours") >= 3
    assert order[:4] == ["ours", "ours", "theirs", "theirs"], "a first call, then one to see how long it takes"
    assert (row.work, row.nbytes, row.best_peer) == ("nothing", 1, "theirs")
    assert row.ratio("theirs") == row.ours / row.peers["theirs"] > 0


def test_limit_is_no_peer() -> None:
    assert Row("x", 1, 1.0, {LIMIT: 0.1, "a": 2.0, "b": 3.0}, {}).best_peer == "a"


def test_growth_measures_every_row_at_every_size() -> None:
    names = [[row.work for row in _bench.growth(nbytes, seconds=0.01)] for nbytes in (64, 4096)]
    assert names[0] == names[1]
    assert len(set(names[0])) == 8


def test_machine_is_named() -> None:
    assert f"torch {torch.__version__}" in _bench.machine()


def figures() -> dict:
    rows = [Row("a copy", 64, 1e-6, {"torch.tensor": 2e-6, LIMIT: 5e-7}, {"torch.tensor": 0.5}) for _ in range(2)]
    growth = [{"threads": t, **asdict(Row("copy", n, 1e-6, {"x": 1.1e-6}, {}))} for t in (1, 2) for n in (64, 4096)]
    return {"machine": "a machine", "rows": [asdict(row) for row in rows], "growth": growth, "import": 0.05}


@pytest.mark.once
def test_figures_are_shown_as_they_were_stored(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(figures()))
    script = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--from", str(file)]
    text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert text.startswith("a machine\n")
    assert "| a copy | 1 µs | `torch.tensor` | 2 µs | 0.50 | 0.50 |" in text
    assert "|  |  | the limit | 500 ns | 2.00 |  |" in text


def test_pictures_are_drawn_with_their_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="only `make bench` installs matplotlib")
    draw = runpy.run_path(str(ROOT / "benchmarks" / "pictures.py"))["draw"]
    draw(figures(), tmp_path)
    assert "a copy" in (tmp_path / "speed.svg").read_text()
    assert "1 GiB" in (tmp_path / "growth.svg").read_text()
