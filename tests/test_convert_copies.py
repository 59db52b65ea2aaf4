"""`ndtorch convert --engine` without a size of shards: each source has its output; what is done stays done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comparison import assert_same
from typer.testing import CliRunner, Result

import ndtorch as nd
from ndtorch import FormatError, InvalidOptionError, cli
from ndtorch.scale import units

pytestmark = pytest.mark.once


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def files_in(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".ndtorch" not in path.parts
    )


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files of different shapes in two folders, two to a unit."""
    monkeypatch.setattr(units.units_of, "__kwdefaults__", {"nbytes": 1 << 20, "count": 2})
    for i in range(6):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((i + 1, 2), i, np.float64))
    return tmp_path / "data"


OUTPUTS = ["a/0.npz", "a/2.npz", "a/4.npz", "b/1.npz", "b/3.npz", "b/5.npz"]


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_each_source_has_an_output_of_its_name(data, tmp_path, engine):
    out = tmp_path / "out"
    summary = nd.convert_many(data, out, engine=engine, shard_size=None, to="npz", float_dtype="float32", workers=2)
    assert files_in(out) == OUTPUTS
    assert (summary.converted, summary.shards, summary.rows, summary.failures) == (3, 6, 0, ())
    for i in range(6):
        found = nd.read(out / "ab"[i % 2] / f"{i}.npz", to="numpy")
        assert_same(found[str(i)][...], np.full((i + 1, 2), i, np.float32))


def test_a_folder_of_outputs_is_read_as_any_other(data, tmp_path):
    nd.convert_many(data, tmp_path / "out", shard_size=None, to="npz")
    assert sorted(nd.read(tmp_path / "out")) == [f"{name.removesuffix('.npz')}/{name[2]}" for name in OUTPUTS]


def test_what_is_done_is_not_done_again_and_what_has_changed_is(data, tmp_path):
    options = (data, tmp_path / "out", "--engine", "local", "--to", "npz")
    assert convert(*options).exit_code == 0
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in OUTPUTS}
    assert convert(*options).stdout.splitlines()[0] == "0 of 3 units converted, 3 had been done before"
    np.save(data / "b" / "5.npy", np.zeros(7))
    assert convert(*options).stdout.splitlines()[0] == "1 of 3 units converted, 2 had been done before"
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in OUTPUTS}
    assert [name for name in OUTPUTS if before[name] != after[name]] == ["b/3.npz", "b/5.npz"]
    assert_same(nd.read(tmp_path / "out" / "b" / "5.npz", to="numpy")["5"][...], np.zeros(7))


def test_the_output_of_a_source_that_is_gone_goes_and_nothing_of_others(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.json").write_text("mine")
    nd.convert_many(data, out, shard_size=None, to="npz")
    (data / "b" / "5.npy").unlink()
    nd.convert_many(data, out, shard_size=None, to="npz")
    assert files_in(out) == [*OUTPUTS[:-1], "index.json"]
    assert (out / "index.json").read_text() == "mine"


def test_an_output_that_exists_is_replaced_only_when_that_was_asked_for(data, tmp_path):
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "0.npz").write_text("mine")
    result = convert(data, out, "--engine", "local", "--to", "npz")
    assert result.exit_code == 1
    assert "a/0.npz' exists, and no conversion of this folder has made it" in result.stderr
    assert files_in(out) == ["a/0.npz"]
    assert convert(data, out, "--engine", "local", "--to", "npz", "--overwrite").exit_code == 0
    assert files_in(out) == OUTPUTS


def test_a_broken_source_is_left_out_by_name(data, tmp_path):
    (data / "a" / "2.npy").write_bytes(b"\x93NUMPY broken")
    options = (data, tmp_path / "out", "--engine", "local", "--to", "npz")
    result = convert(*options, "--on-error", "skip")
    assert result.exit_code == 3
    assert "a/2.npy" in result.stderr
    assert files_in(tmp_path / "out") == [name for name in OUTPUTS if name != "a/2.npz"]
    np.save(data / "a" / "2.npy", np.zeros(3))
    assert convert(*options).exit_code == 0
    assert files_in(tmp_path / "out") == OUTPUTS


def test_a_dry_run_writes_nothing(data, tmp_path):
    result = convert(data, tmp_path / "out", "--engine", "local", "--to", "npz", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == ["6 files, 1.1 kB, in 3 units", "3 of them to do here"]
    assert result.stdout.splitlines()[2].startswith("about 6 files of npz, ")
    assert not (tmp_path / "out").exists()


def test_ranks_share_the_sources(data, tmp_path):
    for rank in range(2):
        assert convert(data, tmp_path / "out", "--to", "npz", "--rank", rank, "--world", 2).exit_code == 0
    assert files_in(tmp_path / "out") == OUTPUTS


def test_outputs_and_shards_do_not_share_a_folder(data, tmp_path):
    nd.convert_many(data, tmp_path / "files", shard_size=None, to="npz")
    nd.convert_many(data, tmp_path / "shards")
    for options, folder in (({}, "files"), ({"shard_size": None, "to": "npz"}, "shards")):
        for overwrite in (False, True):
            with pytest.raises(FormatError, match="Hint: name another folder"):
                nd.convert_many(data, tmp_path / folder, overwrite=overwrite, **options)
    assert_same(nd.read(tmp_path / "shards")["data"].shape[0], 21)


def test_two_sources_of_one_output_are_refused(tmp_path):
    for suffix in ("npy", "npz"):
        (np.save if suffix == "npy" else np.savez)(tmp_path / f"x.{suffix}", np.zeros(3))
    with pytest.raises(FormatError, match="would both become"):
        nd.convert_many([tmp_path / "x.npy", tmp_path / "x.npz"], tmp_path / "out", shard_size=None)
    assert not (tmp_path / "out").exists()


def test_rows_are_for_shards(data, tmp_path):
    with pytest.raises(InvalidOptionError, match="rows='files' is about the rows of shards"):
        nd.convert_many(data, tmp_path / "out", shard_size=None, rows="files")
    result = convert(data, tmp_path / "out", "--engine", "local", "--rows", "files")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "Error: Invalid value: --rows files goes with --shard-size.",
    )
    result = convert(data, tmp_path / "out", "--shard-size", "1MB", "--rows", "sideways")
    assert result.exit_code == 1
    assert "--rows sideways is unknown; expected one of axis, files" in result.stderr


def test_rows_may_be_files(tmp_path):
    (tmp_path / "src").mkdir()
    rows = np.random.default_rng(0).random((5, 4, 3), dtype=np.float32)
    for i, row in enumerate(rows):
        np.save(tmp_path / "src" / f"{i}.npy", row)
    result = convert(tmp_path / "src", tmp_path / "out", "--shard-size", "100", "--rows", "files", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == 5
    assert_same(nd.read(tmp_path / "out", to="numpy")["data"][...], rows)
