"""`ndtorch convert` into shards: when it does so, what it says and refuses, and how it ends."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dask.array
import numpy as np
import pytest
import zarr
from comparison import assert_same
from typer.testing import CliRunner, Result

import ndtorch as nd
from ndtorch import cli
from ndtorch.commands import progress
from ndtorch.scale import job
from ndtorch.scale.engines.threads import Threads
from ndtorch.scale.ledger import Failure
from ndtorch.scale.request import Request
from ndtorch.scale.rows import named
from ndtorch.scale.summary import Summary
from ndtorch.scale.units import UNIT_FILES

pytestmark = pytest.mark.once

FILES = UNIT_FILES + 2  # two units


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def rows_in(folder: Path, name: str = "data") -> np.ndarray:
    return np.concatenate([nd.read(p, to="numpy")[name][...] for p in sorted(folder.glob("*.safetensors"))])


def size_of(path: Path) -> int:
    return sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four files of three rows."""
    (tmp_path / "data").mkdir()
    for i in range(4):
        np.save(tmp_path / "data" / f"{i}.npy", np.full((3, 2), i, np.float64))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i in range(FILES):
        np.save(folder / f"{i:04d}.npy", np.full((1, 2), i, np.int16))
    return folder


# --- what is written


def test_rows_of_all_sources_become_shards_of_one_size_with_an_index(data, tmp_path):
    result = convert(data, tmp_path / "out", "--shard-size", 80, "--float-dtype", "float32", "--verify")
    assert (result.exit_code, result.stderr) == (0, "")
    assert files_in(tmp_path / "out") == ["000000-000.safetensors", "000000-001.safetensors", "index.json"]
    assert_same(rows_in(tmp_path / "out"), np.repeat(np.arange(4, dtype=np.float32), 6).reshape(12, 2))
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert index["shards"]["rows"] == [10, 2]
    first, second, third = result.stdout.splitlines()
    assert first == "1 of 1 unit converted"
    assert re.fullmatch(r"\d+ bytes in, \d+ bytes out in 2 shards, \d+\.\d s, .*/s", second)
    assert third == "12 rows in the data set, each with 'data' float32[2]"


@pytest.mark.parametrize(
    "options",
    [
        ("--engine", "local", "--shard-size", "256MB"),
        ("--rank", 0, "--world", 1, "--shard-size", "1KB"),
        ("--shard-size", "1MB"),
    ],
)
def test_a_size_asks_for_shards_with_an_engine_or_a_rank_or_without(data, tmp_path, options):
    assert convert(data, tmp_path / "out", *options).exit_code == 0
    assert files_in(tmp_path / "out") == ["000000-000.safetensors", "index.json"]


@pytest.mark.parametrize(
    "sources",
    [
        ["0.npy", "1.npz"],
        ["0.h5", "1.zarr"],
        ["0.zarr", "1.safetensors"],
        ["0.npy", "1.npy"],
        ["*.n*"],
        ["?.z*", "0.h5"],
    ],
    ids=" ".join,
)
def test_files_of_several_formats_are_rows_of_one_data_set(tmp_path, sources):
    both = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    for number, part in enumerate(both):
        np.save(tmp_path / f"{number}.npy", part)
        zarr.save_array(tmp_path / f"{number}.zarr", part)
        for suffix in ("npz", "h5", "safetensors"):
            nd.write(tmp_path / f"{number}.{suffix}", {"data": part})
    found = sorted(path for each in sources for path in tmp_path.glob(each))
    result = convert(*(tmp_path / each for each in sources), tmp_path / "out", "--shard-size", "1KB", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert_same(
        nd.read(tmp_path / "out", to="numpy")["data"][...], np.concatenate([both[int(path.stem)] for path in found])
    )
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["bytes_in"] == sum(size_of(path) for path in found)
    assert last["bytes_out"] == size_of(tmp_path / "out" / "000000-000.safetensors")


def test_an_array_alone_in_a_store_has_the_name_of_all(tmp_path):
    for number in range(3):
        zarr.save_array(tmp_path / "in" / f"{number}.zarr", np.full((2, 2), number + 1))
    assert convert(tmp_path / "in", tmp_path / "out", "--shard-size", "1KB", "--name", "x").exit_code == 0
    assert_same(nd.read(tmp_path / "out", to="numpy")["x"][:, 0], np.repeat([1, 2, 3], 2))


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("options", [("--shard-size", "1KB"), ()], ids=["shards", "files"])
def test_a_missing_chunk_is_an_error_on_every_engine(tmp_path, engine, options):
    for number in range(17):  # the headers of every other one are read for the plan
        zarr.save_array(tmp_path / "in" / f"{number:02d}.zarr", np.full((2, 2), number + 1))
    (chunk,) = [path for path in (tmp_path / "in" / "03.zarr" / "c").rglob("*") if path.is_file()]
    chunk.unlink()
    result = convert(tmp_path / "in", tmp_path / "out", "--engine", engine, *options)
    assert result.exit_code == 1
    assert re.search(r"03\.zarr' array '.*': 1 of its 1 chunks, such as 'c/0/0', are missing", result.stderr)
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_chunks_that_zarr_has_left_out_are_filled_where_that_was_asked_for(tmp_path, engine):
    for number in range(3):
        zarr.save_array(tmp_path / "in" / f"{number}.zarr", np.full((2, 2), number))  # of 0 there is no chunk
    words = (tmp_path / "in", tmp_path / "out", "--engine", engine, "--shard-size", "1MB")
    assert "--missing-chunks fill reads them as" in convert(*words).stderr
    assert convert(*words, "--missing-chunks", "fill").exit_code == 0
    assert_same(rows_in(tmp_path / "out"), np.repeat([0, 1, 2], 4).reshape(6, 2))
    fill, error = Request(missing_chunks="fill"), Request()
    assert error.changed(fill.output) == "missing_chunks was fill and is error"
    assert fill.changed(error.output) == "missing_chunks was error and is fill"
    assert convert(tmp_path / "in" / "0.zarr", tmp_path / "0.npy").exit_code == 1
    assert convert(tmp_path / "in" / "0.zarr", tmp_path / "0.npy", "--missing-chunks", "fill").exit_code == 0
    assert_same(np.load(tmp_path / "0.npy"), np.zeros((2, 2), np.int64))
    assert convert(*words, "--missing-chunks", "none").exit_code == 1


def test_a_missing_chunk_of_a_shard_is_an_error_when_it_is_read(data, tmp_path):
    assert convert(data, tmp_path / "out", "--to", "zarr", "--shard-size", "1KB", "--verify").exit_code == 0
    (chunk,) = [path for path in (tmp_path / "out").glob("*.zarr/**/c/**/*") if path.is_file()]
    chunk.unlink()
    with pytest.raises(nd.FormatError, match=r"chunks, such as .* missing"):
        nd.read(tmp_path / "out", to="numpy")["data"][...]


@pytest.mark.parametrize("to", ["npz", "safetensors", "npy", "h5"])
def test_a_dry_run_of_small_files_counts_what_their_format_adds(data, tmp_path, to):
    planned = convert(data, tmp_path / "out", "--to", to, "--engine", "local", "--dry-run", "--json")
    convert(data, tmp_path / "out", "--to", to, "--engine", "local")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob(f"*.{to}"))
    assert json.loads(planned.stdout)["bytes_out"] == pytest.approx(written, rel=0.05 if to != "h5" else 1.0)


@pytest.mark.parametrize("options", [("--to", "safetensors"), ("--engine", "local"), ("--rank", 0, "--world", 1)])
def test_without_one_there_is_one_output_for_each_source(data, tmp_path, options):
    assert convert(data, tmp_path / "out", *options).exit_code == 0
    assert files_in(tmp_path / "out") == [f"{i}.safetensors" for i in range(4)]
    for i in range(4):
        assert_same(nd.read(tmp_path / "out" / f"{i}.safetensors", to="numpy")[str(i)][...], np.load(data / f"{i}.npy"))


def test_format_name_and_dtype_are_honoured(data, tmp_path):
    assert (
        convert(
            data, tmp_path / "a", "--engine", "local", "--shard-size", "256MB", "--to", "npy", "--dtype", "float16"
        ).exit_code
        == 0
    )
    assert_same(np.load(tmp_path / "a" / "000000-000.npy"), np.repeat(np.arange(4, dtype=np.float16), 6).reshape(12, 2))
    assert convert(data, tmp_path / "b", "--engine", "local", "--shard-size", "256MB", "--name", "x").exit_code == 0
    assert list(nd.read(tmp_path / "b" / "000000-000.safetensors")) == ["x"]


def test_ranks_go_one_after_the_other_and_the_last_one_says_how_many_rows(many, tmp_path):
    first = convert(many, tmp_path / "out", "--rank", 1, "--world", 2, "--shard-size", "1MB")
    assert first.stdout.splitlines()[0] == "1 of 2 units converted"
    assert first.stdout.splitlines()[2] == "no index yet: other ranks have units to do"
    second = convert(many, tmp_path / "out", "--rank", 0, "--world", 2, "--shard-size", "1MB")
    assert second.stdout.splitlines()[2] == f"{FILES:,} rows in the data set, each with 'data' int16[2]"
    assert_same(rows_in(tmp_path / "out"), np.repeat(np.arange(FILES, dtype=np.int16), 2).reshape(-1, 2))


def test_processes_do_what_threads_do(many, tmp_path):
    for engine in ("threads", "processes"):
        result = convert(many, tmp_path / engine, "--engine", engine, "--workers", 2)
        assert (result.exit_code, result.stderr) == (0, "")
    for name in files_in(tmp_path / "threads"):
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "processes" / name).read_bytes()


# --- what it says


def test_a_dry_run_prints_the_plan_and_writes_nothing(many, tmp_path):
    result = convert(many, tmp_path / "out", "--shard-size", "1KB", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    nbytes = sum(path.stat().st_size for path in many.iterdir())
    assert result.stdout.splitlines() == [
        f"{FILES} files, {nbytes / 1000:.1f} kB, in 2 units",
        "2 of them to do here",
        f"about 3 shards of safetensors, 2.0 kB, about {FILES} rows, each with",
        "  data: int16[2]",
    ]
    assert not (tmp_path / "out").exists()
    convert(many, tmp_path / "out", "--shard-size", "1KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    result = convert(many, tmp_path / "out", "--shard-size", "1KB", "--dry-run", "--json")
    assert json.loads(result.stdout) == {
        "status": "planned",
        "files": FILES,
        "units": 2,
        "done": 2,
        "mine": 0,
        "bytes_in": nbytes,
        "bytes_out": FILES * 4,
        "shards": 3,
        "rows": FILES,
        "format": "safetensors",
        "arrays": {"data": {"dtype": "int16", "shape": [2]}},
    }


def test_json_is_a_line_for_each_unit_and_one_for_all(many, tmp_path):
    result = convert(many, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--workers", 1, "--json")
    first, second, last = map(json.loads, result.stdout.splitlines())
    assert [each["unit"] for each in (first, second)] == [0, 1]
    assert (first["status"], first["files"], first["rows"]) == ("converted", UNIT_FILES, UNIT_FILES)
    assert first["outputs"] == ["000000-000.safetensors"]
    assert (last["status"], last["units"], last["converted"], last["rows"]) == ("converted", 2, 2, FILES)
    assert last["bytes_out"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))


def test_quiet_prints_nothing(data, tmp_path):
    assert convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "-q").output == ""


def test_a_run_that_has_been_done_does_nothing_again(data, tmp_path):
    convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB")
    result = convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB")
    assert result.stdout.splitlines()[0] == "0 of 1 unit converted, 1 had been done before"
    assert result.exit_code == 0


def test_a_bar_over_units_shows_on_a_terminal(many, tmp_path):
    code = """
import sys
from ndtorch import cli
from ndtorch.commands import progress
progress.SHOWN_AFTER = 0.0
cli.app(["convert", sys.argv[1], sys.argv[2], "--engine", "local", "--shard-size", "256MB", "--workers", "1"])
"""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(many), str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm"},
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 4096):
                shown += part
        except OSError:  # the other end has closed
            pass
    os.close(leader)
    assert process.returncode == 0
    assert b"2 of 2 units" in shown


def test_no_bar_shows_elsewhere(capsys):
    with progress.UnitBar(1, 1) as bar:
        bar.finish(1)
        bar.print("a line")
    assert capsys.readouterr() == ("a line\n", "")


def test_a_summary_says_all_that_there_is_to_say():
    whole = Summary(
        units=10,
        converted=3,
        skipped=4,
        failed=1,
        shards=5,
        rows=0,
        nbytes_in=3_000_000,
        nbytes_out=1_500,
        seconds=2.0,
        failures=(Failure("a.npy", "broken"),),
        is_whole=False,
    )
    assert str(whole).splitlines() == [
        "3 of 10 units converted, 4 had been done before, 1 failed",
        "3.0 MB in, 1.5 kB out in 5 shards, 2.0 s, 1.5 MB/s",
        "no index yet: other ranks have units to do",
        "1 source left out",
    ]
    assert whole.rate == 1_500_000


def test_many_files_of_equally_many_rows_name_the_option_that_makes_each_a_row(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(33):
        np.save(tmp_path / "in" / f"{i:02}.npy", np.full((4, 3), i, np.float32))
    note = "each file has 4 rows; --rows files makes each file one row"
    words = (tmp_path / "in", tmp_path / "out", "--shard-size", "1MB")
    assert convert(*words, "--dry-run").stdout.splitlines()[2:] == [
        "about 1 shard of safetensors, 1.6 kB, about 132 rows, each with",
        "  data: float32[3]",
        note,
    ]
    assert convert(*words).stdout.splitlines()[2:] == ["132 rows in the data set, each with 'data' float32[3]", note]
    files = convert(*words, "--rows", "files", "--overwrite").stdout.splitlines()
    assert files[2:] == ["33 rows in the data set, each with 'data' float32[4,3]"]
    (tmp_path / "in" / "32.npy").unlink()
    assert note not in convert(*words, "--overwrite").stdout


# --- what fails


def test_failures_name_what_labels_that_are_kept_elsewhere_have_to_lose(tmp_path):
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{i}.npy" for i in range(6)]
    for i, path in enumerate(paths):
        np.save(path, np.full((1, 2), i))
    for i in (1, 4):
        paths[i].write_bytes(b"broken")
    for _ in range(2):  # the next call tries them again
        done = nd.convert_many(tmp_path / "in", tmp_path / "out", on_error="skip")
        gone = {failure.path for failure in done.failures}
        labels = [i for i, path in enumerate(paths) if str(path) not in gone]
        assert nd.read(tmp_path / "out", to="numpy")["data"][...][:, 0].tolist() == labels == [0, 2, 3, 5]


def test_a_broken_source_stops_all_or_is_left_out_by_name(data, tmp_path):
    (data / "2.npy").write_bytes((data / "2.npy").read_bytes()[:50])
    result = convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB")
    assert result.exit_code == 1
    assert "2.npy" in result.stderr
    assert files_in(tmp_path / "out") == []
    result = convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--on-error", "skip")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("ndtorch: ")
    assert "2.npy" in line
    assert result.stdout.splitlines()[2:] == [
        "9 rows in the data set, each with 'data' float64[2]",
        "1 source left out",
    ]
    assert_same(rows_in(tmp_path / "out"), np.repeat([0.0, 1.0, 3.0], 6).reshape(9, 2))


def test_the_first_source_may_be_the_broken_one(data, tmp_path):
    (data / "0.npy").write_bytes(b"junk")
    assert convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB").exit_code == 1
    assert not (tmp_path / "out").exists()
    assert (
        convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--on-error", "skip").exit_code
        == 3
    )


def test_where_nothing_can_be_read_nothing_is_written(data, tmp_path):
    for path in data.iterdir():
        path.write_bytes(b"junk")
    result = convert(data, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--on-error", "skip")
    assert result.exit_code == 1
    assert "0.npy" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_unit_that_fails_whole_is_left_out_and_tried_again(many, tmp_path, monkeypatch):
    real = job.ShardWork.__call__

    def fail(self, unit):
        if unit.number == 1:
            raise nd.NdtorchError("convert", "2 workers died on unit 1")
        return real(self, unit)

    monkeypatch.setattr(job.ShardWork, "__call__", fail)
    result = convert(
        many, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--on-error", "skip", "--workers", 1
    )
    assert (result.exit_code, result.stderr) == (3, "ndtorch: 2 workers died on unit 1.\n")
    assert result.stdout.splitlines()[0] == "1 of 2 units converted, 1 failed"
    rows = f"{UNIT_FILES} rows in the data set, each with 'data' int16[2]"
    assert result.stdout.splitlines()[2:] == [rows, "2 sources left out"]
    monkeypatch.undo()
    summary = nd.convert_many(many, tmp_path / "out", on_error="skip")
    assert (summary.skipped, summary.converted, summary.rows, summary.failures) == (1, 1, FILES, ())


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("options", [("--shard-size", "1MB"), ()], ids=["shards", "files"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:90]), "ends inside its header"),
        (lambda path: np.save(path, np.array([None])), "pickled"),
    ],
    ids=["truncated", "objects"],
)
def test_the_error_that_ends_a_run_names_its_source_and_the_option_that_goes_on(tmp_path, engine, options, spoil, what):
    for number in range(17):  # the headers of every other one are read for the plan
        np.save(tmp_path / f"{number:02d}.npy", np.full((2, 2), number))
    for number in 3, 4:
        good = (tmp_path / f"{number:02d}.npy").read_bytes()
        spoil(tmp_path / f"{number:02d}.npy")
        words = (tmp_path / "*.npy", tmp_path / "out", "--engine", engine, *options)  # of 4 the header is read first
        result = convert(*words)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert f"/{number:02d}.npy" in line
        assert what in line
        assert "--on-error skip leaves it out." in line
        with pytest.raises(nd.NdtorchError, match=r"Hint: .*on_error='skip' \(--on-error skip\) leaves it out"):
            nd.convert_many(words[0], words[1], engine=engine, shard_size="1MB" if options else None)
        assert convert(*words, "--on-error", "skip").exit_code == 3
        (tmp_path / f"{number:02d}.npy").write_bytes(good)


def test_an_error_of_the_system_names_the_option_that_goes_on_too(data, tmp_path, monkeypatch):
    def refused(self, unit, files, scratch):
        raise named(PermissionError(13, "Permission denied", files[1].path), files[1])

    monkeypatch.setattr(job.ShardWork, "_written", refused)
    result = convert(data, tmp_path / "out", "--shard-size", "1MB")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line == f"ndtorch: {data / '1.npy'}: Permission denied (Hint: --on-error skip leaves it out.)"


def last_of(result: Result) -> tuple[int, str, int, int]:
    facts = json.loads(result.stdout.splitlines()[-1])
    return result.exit_code, facts["status"], facts["failed"], facts["failures"]


@pytest.mark.parametrize("options", [("--shard-size", "1MB"), ("--engine", "local")], ids=["shards", "files"])
def test_the_last_line_of_json_says_what_the_exit_code_says(data, tmp_path, options):
    words = (data, tmp_path / "out", "--json", "--on-error", "skip", *options)
    good = (data / "2.npy").read_bytes()
    assert last_of(convert(*words)) == (0, "converted", 0, 0)
    (data / "2.npy").write_bytes(good[:50])
    assert last_of(convert(*words)) == (3, "partial", 0, 1)
    (data / "2.npy").write_bytes(good)
    assert last_of(convert(*words)) == (0, "converted", 0, 0)
    assert last_of(convert(*words)) == (0, "converted", 0, 0)


def test_where_no_source_could_be_converted_the_run_has_failed(data, tmp_path):
    for path in data.iterdir():
        path.write_bytes(b"junk")
    words = (data, tmp_path / "out", "--json", "--on-error", "skip", "--engine", "local")
    assert last_of(convert(*words)) == (1, "failed", 0, 4)


def test_a_defect_is_not_left_out(data, tmp_path, monkeypatch):
    monkeypatch.setattr(job.ShardWork, "__call__", lambda self, unit: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nd.convert_many(data, tmp_path / "out", on_error="skip")


def test_ctrl_c_says_how_far_it_came(many, tmp_path, monkeypatch):
    real = Threads.run

    def interrupted(self, work, units):
        results = real(self, work, units)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(Threads, "run", interrupted)
    result = convert(many, tmp_path / "out", "--engine", "local", "--shard-size", "256MB", "--workers", 1)
    assert result.exit_code == 130
    assert result.stderr == "ndtorch: stopped after 1 of 2 units; the same command goes on from there\n"
    monkeypatch.undo()
    assert nd.convert_many(many, tmp_path / "out").skipped == 1


def test_ctrl_c_before_a_unit_is_done_says_so(data, tmp_path, monkeypatch):
    def interrupted(self, work, units):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Threads, "run", interrupted)
    result = convert(data, tmp_path / "out", "--engine", "threads", "--shard-size", "256MB")
    assert result.exit_code == 130
    assert result.stderr == "ndtorch: stopped before another unit was done; the same command goes on from there\n"


def test_a_run_that_has_nothing_to_do_gives_no_rate(data, tmp_path):
    convert(data, tmp_path / "out", "--shard-size", "256MB")
    result = convert(data, tmp_path / "out", "--shard-size", "256MB")
    first, second = result.stdout.splitlines()
    assert first == "0 of 1 unit converted, 1 had been done before"
    assert second == "12 rows in the data set, each with 'data' float64[2]"


# --- what is refused before anything is written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "dask"), "--engine dask is unknown; expected one of local, threads, processes, ray, got 'dask'."),
        (("--shard-size", "big"), "'big' is no size; expected a size such as 256MB, got 'big'."),
        (("--shard-size", "0"), "'0' is no size; expected a size such as 256MB, got '0'."),
        (("--rank", 2, "--world", 2), "--rank 2 is none of --world 2. Hint: ranks count from 0 to 1."),
        (
            ("--engine", "local", "--shard-size", "256MB", "--to", "npz"),
            "--to npz is no format of shards; safetensors, npy, zarr are.",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(data, tmp_path, options, message):
    result = convert(data, tmp_path / "out", *options)
    assert (result.exit_code, result.stderr) == (1, f"ndtorch: {message}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", 2), "--workers 2 goes with --shard-size, --engine, or --rank and --world."),
        (("--address", "a:1"), "--address a:1 goes with --shard-size, --engine, or --rank and --world."),
        (("--rows", "files"), "--rows files goes with --shard-size."),
        (("--engine", "local", "--jobs", 2), "--jobs 2 is for files one by one. Hint: --workers 2 goes with shards."),
        (("--rank", 0), "--rank 0 was given alone; --rank and --world go together."),
        (("--world", 2), "--world 2 was given alone; --rank and --world go together."),
    ],
)
def test_options_without_those_that_they_go_with_are_errors_of_the_command_line(data, tmp_path, options, message):
    result = convert(data, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    assert result.stderr.endswith(f"Error: Invalid value: {message}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "npz"}, "to='npz' is unknown; expected one of safetensors, npy, zarr, got 'npz'"),
        ({"on_error": "ignore"}, "on_error='ignore' is unknown; expected one of stop, skip"),
        ({"casting": "gently"}, "casting='gently' is unknown"),
        ({"dtype": "int8", "float_dtype": "float32"}, "were both given"),
        ({"shard_size": -1}, "'-1'|-1 is no size"),
        ({"rank": -1}, "rank=-1 is none of world_size=1"),
        ({"rank": 0, "world_size": 0}, "rank=0 is none of world_size=0. Hint: there is at least one rank"),
        ({"rank": "0"}, "rank='0' is no number"),
        ({"rank": 0}, "rank=0 was given without world_size=. Hint: give both or neither"),
        ({"world_size": 2}, "world_size=2 was given without rank=. Hint: give both or neither"),
        ({"address": "a:1"}, "address='a:1' is for a cluster, not for engine='local'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(data, tmp_path, options, message):
    with pytest.raises(nd.InvalidOptionError, match=message):
        nd.convert_many(data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"float_dtype": "float23"},
            "convert: float_dtype='float23' is not a dtype. Hint: float_dtype=torch.float32, ",
        ),
        ({"float_dtype": "int32"}, "convert: float_dtype=int32 is not a floating dtype. Hint: float32, "),
        ({"dtype": "float23"}, "convert: dtype='float23' is not a dtype. Hint: dtype=torch.float32, "),
        ({"dtype": object}, "convert: dtype=object cannot be cast to. Hint: a dtype of numbers"),
        ({"dtype": "complex32"}, "convert: dtype=complex32 is none that a file holds. Hint: dtype='complex64' "),
    ],
)
@pytest.mark.parametrize("more", [{}, {"on_error": "skip"}, {"shard_size": None}], ids=["stop", "skip", "files"])
def test_what_is_no_dtype_is_refused_before_a_file_is_opened(tmp_path, options, more, message):
    (tmp_path / "broken.npy").touch()
    with pytest.raises(nd.NdtorchError) as caught:
        nd.convert_many(tmp_path, tmp_path / "out", **options, **more)
    assert str(caught.value).startswith(message)
    assert "broken.npy" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("world", "world_size= says how many parts there are, rank= which of them to do"),
        ("num_workers", "workers= says how many units are done at a time"),
        ("sources", "the sources come first, without a name"),
        ("shardsize", "shard_size= is one"),
        ("spam", "engine, to, shard_size, name, source_format, .*, progress are"),
    ],
)
def test_an_option_that_there_is_not_names_the_one_that_is_meant(data, tmp_path, name, hint):
    with pytest.raises(TypeError, match=rf"^convert_many: {name}= is no option\. Hint: {hint}\.$"):
        nd.convert_many(data, tmp_path / "out", **{name: 2})
    assert not (tmp_path / "out").exists()


def test_names_of_options_are_checked_without_a_change_of_the_signature():
    parameters = inspect.signature(nd.convert_many).parameters.values()
    assert {each.kind for each in parameters} == {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY}
    assert (nd.convert_many.__name__, nd.convert_many.__module__) == ("convert_many", "ndtorch.scale")


@pytest.mark.parametrize("missing", ["x", "x.npy", "0.npy/x.npy"])
def test_a_source_that_is_missing_is_the_error_that_read_has(data, tmp_path, missing):
    with pytest.raises(nd.FormatError) as read:
        nd.read(data / missing)
    with pytest.raises(type(read.value)) as converted:
        nd.convert_many([data, data / missing], tmp_path / "out")
    assert str(converted.value) == str(read.value) == f"read: {str(data / missing)!r}: no such file."
    (failure,) = nd.convert_many([data, data / missing], tmp_path / "out", on_error="skip").failures
    assert failure.path == str(data / missing)


def test_no_sources_are_refused(data, tmp_path):
    with pytest.raises(nd.InvalidOptionError, match="there are no sources"):
        nd.convert_many([], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(nd.FormatError, match="no file of arrays is in"):
        nd.convert_many(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_a_file_or_named_as_one_is_refused(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(nd.FormatError, match="it is no folder"):
        nd.convert_many(data, tmp_path / "file")
    for name in ("out.npy", "out.safetensors", "out.zarr"):
        with pytest.raises(nd.FormatError, match="is the name of a file"):
            nd.convert_many(data, tmp_path / name)
    with pytest.raises(nd.FormatError, match="behind http is read only"):
        nd.convert_many(data, "https://me:secret@host/out")


def test_a_folder_of_somebody_elses_files_is_refused_and_left_alone(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000000-000.safetensors").write_text("precious")
    with pytest.raises(nd.FormatError, match="holds files that no conversion into shards has written"):
        nd.convert_many(data, tmp_path / "out", overwrite=True)
    assert files_in(tmp_path / "out") == ["000000-000.safetensors"]
    assert (tmp_path / "out" / "000000-000.safetensors").read_text() == "precious"


def test_a_target_that_sources_lie_in_is_refused_and_one_in_a_source_is_not_read(data, tmp_path):
    nd.convert_many(data, data / "shards")
    assert nd.convert_many(data, data / "shards").rows == 12
    with pytest.raises(nd.FormatError, match="lies in the target"):
        nd.convert_many(data / "shards" / "000000-000.safetensors", data / "shards", overwrite=True)


# --- what was there before


@pytest.mark.parametrize("options", [{}, {"shard_size": None}], ids=["shards", "files"])
def test_a_target_within_the_sources_is_the_same_behind_links(data, tmp_path, options):
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "to out").symlink_to(data / "out")
    (data / "out").mkdir()
    ways = [(tmp_path / "link", data / "out"), (data, tmp_path / "to out"), (tmp_path / "link" / "**", data / "out")]
    for source, target in ways:
        for again in range(2):
            found = nd.convert_many(source, target, overwrite=True, **options)
            assert (found.units, found.failures, found.rows) == (1, (), 12 * (not options)), (source, target, again)
        shutil.rmtree(data / "out" / ".ndtorch")
        for path in (data / "out").iterdir():
            path.unlink()


def test_other_options_replace_a_data_set_only_when_that_was_asked_for(data, tmp_path):
    out = tmp_path / "out"
    nd.convert_many(data, out)
    before = {name: (out / name).read_bytes() for name in files_in(out)}
    result = convert(data, out, "--engine", "local", "--shard-size", "256MB", "--dtype", "float16")
    assert (result.exit_code, result.stderr) == (
        1,
        f"ndtorch: {str(out)!r} holds a data set that was made with other options: dtype was None and is float16. "
        "Hint: --overwrite replaces it, "
        "the same command goes on with it, another folder leaves it alone.\n",
    )
    assert (
        convert(data, out, "--engine", "local", "--shard-size", "256MB", "--dtype", "float16", "--dry-run").exit_code
        == 1
    )
    assert {name: (out / name).read_bytes() for name in files_in(out)} == before
    assert (
        convert(data, out, "--engine", "local", "--shard-size", "256MB", "--dtype", "float16", "--overwrite").exit_code
        == 0
    )
    assert rows_in(out).dtype == np.float16
    assert convert(data, out, "--engine", "local", "--shard-size", "256MB", "--dtype", "float16").exit_code == 0


def test_a_data_set_of_an_unknown_version_is_one_of_other_options(data, tmp_path):
    nd.convert_many(data, tmp_path / "out")
    made_for = tmp_path / "out" / ".ndtorch" / "made_for.json"
    made_for.write_text(json.dumps(json.loads(made_for.read_text()) | {"options": "[2]"}))
    with pytest.raises(nd.FormatError, match="other options: those of another version"):
        nd.convert_many(data, tmp_path / "out")


def test_files_of_another_kind_among_the_sources_are_refused_before_anything_is_written(data, tmp_path):
    for i in range(20):  # more than there are headers read of files at even distances
        np.save(data / f"a{i}.npy", np.zeros((3, 2)))
    np.savez(data / "a5.npz", x=np.zeros(3))
    for more in ((), ("--dry-run",)):
        result = convert(data, tmp_path / "out", "--shard-size", "256MB", *more)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"ndtorch: {str(data / 'a5.npz')!r} has other rows than the first file; expected 'data' float64[2], "
            "got 'x' float64[]. Hint: rows of each kind go into a folder of their own; "
            "--on-error skip leaves others out.\n"
        )
        assert not (tmp_path / "out").exists()
    assert convert(data, tmp_path / "out", "--shard-size", "256MB", "--on-error", "skip", "--dry-run").exit_code == 0
    assert nd.convert_many(data, tmp_path / "out", on_error="skip").rows == 72


@pytest.mark.parametrize("source", [np.zeros((3, 2)), [np.zeros((3, 2))], dask.array.zeros((3, 2))])
def test_an_array_as_a_source_is_refused_with_the_call_that_writes_it(source, tmp_path):
    with pytest.raises(nd.InvalidOptionError, match=r"no path but \w+'s \w+\. Hint: ndtorch\.write\(path, array\)"):
        nd.convert_many(source, tmp_path / "out")


def test_other_sources_replace_a_data_set_only_when_that_was_asked_for(data, tmp_path):
    nd.convert_many(data, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "x.npy", np.zeros((5, 2)))
    were = re.escape(f"was made with other sources: its sources were [{str(data)!r}] and are [{str(other)!r}]. Hint: ")
    with pytest.raises(nd.FormatError, match=were):
        nd.convert_many(other, tmp_path / "out")
    assert len(rows_in(tmp_path / "out")) == 12
    assert nd.convert_many(other, tmp_path / "out", overwrite=True).rows == 5


def test_of_many_other_sources_those_that_differ_are_named(many, tmp_path):
    paths = sorted(many.iterdir())
    nd.convert_many(paths[:10], tmp_path / "out")
    with pytest.raises(nd.FormatError) as caught:
        nd.convert_many(paths[:9], tmp_path / "out")
    assert f"its sources were [{str(paths[9])!r}, and 9 more] and are [9 of these]. Hint" in str(caught.value)
    with pytest.raises(nd.FormatError) as caught:
        nd.convert_many(paths[:16], tmp_path / "out")
    added = ", ".join(repr(str(path)) for path in paths[10:14])
    assert f"its sources were [10 of these] and are [{added}, and 12 more]. Hint" in str(caught.value)
    with pytest.raises(nd.FormatError, match="other sources: the same in another order"):
        nd.convert_many(paths[9::-1], tmp_path / "out")


def test_one_file_more_in_the_same_folder_is_no_other_source(data, tmp_path):
    nd.convert_many(data, tmp_path / "out")
    np.save(data / "4.npy", np.full((3, 2), 4.0))
    assert nd.convert_many(data, tmp_path / "out").rows == 15


# --- what goes on with it


SPELLED = [
    ({}, "", " --shard-size 256000000"),
    ({"shard_size": "1KB", "rows": "files"}, ", shard_size=1000, rows='files'", " --shard-size 1000 --rows files"),
    (
        {"to": "npy", "float_dtype": np.float16, "source_format": "npy"},
        ", to='npy', source_format='npy', float_dtype='float16'",
        " --shard-size 256000000 --to npy --from npy --float-dtype float16",
    ),
]


@pytest.mark.parametrize(("options", "words", "flags"), SPELLED)
def test_what_has_not_finished_says_the_call_and_the_command_that_finish_it(data, tmp_path, options, words, flags):
    out = tmp_path / "my out"
    before = nd.convert_many(data, out, **options)
    (out / "index.json").unlink()
    with pytest.raises(nd.FormatError, match="its conversion has not finished") as caught:
        nd.read(out)
    assert caught.value.hint == f"ndtorch.convert_many([{str(data)!r}], {str(out)!r}{words}) finishes it"
    result = CliRunner().invoke(cli.app, ["inspect", str(out)])
    command = f"ndtorch convert {data} '{out}'{flags}"
    assert result.stderr.endswith(f" has not finished. Hint: {command} finishes it.\n")
    assert convert(*shlex.split(command)[2:]).exit_code == 0
    (out / "index.json").unlink()
    assert eval(caught.value.hint.removesuffix(" finishes it"), {"ndtorch": nd}).rows == before.rows
    assert len(nd.read(out)["data"]) == before.rows


def test_of_many_sources_that_have_not_finished_their_number_is_said(many, tmp_path):
    out = tmp_path / "out"
    nd.convert_many(sorted(many.iterdir())[:20], out)
    (out / "index.json").unlink()
    with pytest.raises(nd.FormatError) as caught:
        nd.read(out)
    way = f"ndtorch.convert_many(sources, {str(out)!r}), with the 20 sources that it had, finishes it"
    assert caught.value.hint == way


@pytest.mark.parametrize("note", [None, b"", b"[]", b'{"sources": [], "options": "[1]"}', b'{"sources": 1}'])
def test_without_a_sound_note_what_has_not_finished_is_named_all_the_same(data, tmp_path, note):
    nd.convert_many(data, tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    path = tmp_path / "out" / ".ndtorch" / "made_for.json"
    path.unlink() if note is None else path.write_bytes(note)
    with pytest.raises(nd.FormatError, match="Hint: convert_many, as it was called before, finishes it"):
        nd.read(tmp_path / "out")
    result = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "out")])
    assert result.stderr.endswith("Hint: the same command as before finishes it.\n")


def test_a_source_that_has_changed_is_noticed_and_done_again(data, tmp_path):
    nd.convert_many(data, tmp_path / "out")
    np.save(data / "1.npy", np.full((2, 2), 9.0))
    summary = nd.convert_many(data, tmp_path / "out")
    assert (summary.converted, summary.skipped, summary.rows) == (1, 0, 11)
    assert_same(rows_in(tmp_path / "out"), np.repeat([0.0, 9.0, 2.0, 3.0], [6, 4, 6, 6]).reshape(11, 2))


def test_how_many_workers_ranks_or_engines_there_are_makes_no_other_data_set(many, tmp_path):
    nd.convert_many(many, tmp_path / "out", workers=1)
    assert nd.convert_many(many, tmp_path / "out", engine="threads", rank=0, world_size=2).skipped == 1
    assert nd.convert_many(os.path.relpath(many), tmp_path / "out", on_error="skip").skipped == 2


def test_progress_is_told_of_every_unit(many, tmp_path):
    seen = []
    nd.convert_many(many, tmp_path / "out", progress=seen.append)
    assert sorted(done.unit.number for done in seen) == [0, 1]
    assert all(done.entry is not None and done.error is None for done in seen)
