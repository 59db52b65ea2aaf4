"""`ndtorch convert`: what it writes where, what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comparison import assert_same
from typer.testing import CliRunner, Result

import ndtorch as nd
from ndtorch import _convert_many, cli

pytestmark = pytest.mark.once


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[...]) for name, array in sorted(nd.read(path, to="numpy").items())}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of files in folders, with what is no file of arrays between them."""
    for name, array in {"train/x": np.arange(6.0).reshape(2, 3), "train/y": np.arange(3), "test/x": np.ones(4)}.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "data" / f"{name}.npy", array)
    (tmp_path / "data" / "README.md").write_text("# Data")
    (tmp_path / "data" / ".hidden.npy").write_text("not an array")
    return tmp_path / "data"


OUTPUTS = ["test/x.safetensors", "train/x.safetensors", "train/y.safetensors"]


# --- one file


def test_one_file_prints_what_was_done_to_each_array(tmp_path):
    arrays = {"b": np.ones(3, np.float32), "i": np.arange(3), "x": np.arange(6.0).reshape(2, 3)}
    nd.write(tmp_path / "a.safetensors", arrays)
    result = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--float-dtype", "float32")
    assert (result.exit_code, result.stderr) == (0, "")
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["array", "from", "to", "bytes", "how"]
    assert {tuple(row.split(maxsplit=4)) for row in rows} == {
        ("b", "float32[3]", "float32[3]", "12", "copied as it lies"),
        ("i", "int64[3]", "int64[3]", "24", "copied as it lies"),
        ("x", "float64[2,3]", "float32[2,3]", "24", "cast"),
    }
    assert_same(values(tmp_path / "b.safetensors"), arrays | {"x": arrays["x"].astype("f4")})


def test_what_lies_by_columns_is_laid_out_row_by_row_or_kept(tmp_path):
    x = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "x.npy", x)
    assert "laid out row by row" in convert(tmp_path / "x.npy", tmp_path / "x.safetensors").stdout
    assert "copied as it lies" in convert(tmp_path / "x.npy", tmp_path / "y.npy").stdout
    assert_same(values(tmp_path / "x.safetensors"), {"x": np.ascontiguousarray(x)})
    assert_same(np.load(tmp_path / "y.npy"), x, strides=True)


def test_from_to_and_name_stand_in_for_what_the_file_does_not_tell(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    (tmp_path / "x.npy").rename(tmp_path / "weights.v1")
    (tmp_path / "old").touch()
    words = ("--from", "npy", "--to", "safetensors", "--name", "w", "--overwrite")
    assert convert(tmp_path / "weights.v1", tmp_path / "old", *words).exit_code == 0
    found = nd.read(tmp_path / "old", format="safetensors", to="numpy")
    assert {name: array[...].tolist() for name, array in found.items()} == {"w": [0, 1, 2]}


def test_an_existing_file_of_any_suffix_is_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    (tmp_path / "out.bin").touch()
    result = convert(tmp_path / "x.npy", tmp_path / "out.bin", "--overwrite")
    assert result.exit_code == 1
    assert "known are .npy" in result.stderr


def test_a_slash_at_the_end_is_a_folder(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    assert convert(tmp_path / "x.npy", f"{tmp_path}/out.npz/", "--to", "safetensors").exit_code == 0
    assert files_in(tmp_path) == ["out.npz/x.safetensors", "x.npy"]


def test_verify_reads_back(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(3))
    seen = []
    real = _convert_many.write_prepared
    monkeypatch.setattr(_convert_many, "write_prepared", lambda *a, **k: seen.append(k["verify"]) or real(*a, **k))
    assert convert(tmp_path / "x.npy", tmp_path / "a.safetensors", "--verify").exit_code == 0
    assert convert(tmp_path / "x.npy", tmp_path / "b.safetensors").exit_code == 0
    assert seen == [True, False]


# --- many files into one


def test_several_files_are_joined_under_their_names(data, tmp_path):
    nd.write(tmp_path / "more.safetensors", {"p": np.ones(2), "q": {"r": np.zeros(1)}})
    target = tmp_path / "all.safetensors"
    result = convert(data / "train/x.npy", data / "train/y.npy", tmp_path / "more.safetensors", target)
    assert result.exit_code == 0, result.stderr
    assert_same(
        values(target),
        {
            "more/p": np.ones(2),
            "more/q/r": np.zeros(1),
            "x": np.arange(6.0).reshape(2, 3),
            "y": np.arange(3),
        },
    )


@pytest.mark.parametrize("source", ["data", "data/**/*.npy", "data/**"])
def test_a_folder_joined_into_a_file_keeps_its_paths_as_names(source, data, tmp_path):
    target = tmp_path / "all.safetensors"
    assert convert(tmp_path / source, target).exit_code == 0
    assert set(nd.read(target)) == {"test/x", "train/x", "train/y"}


def test_two_arrays_of_one_name_are_an_error_that_names_both_files(data, tmp_path):
    result = convert(data / "train/x.npy", data / "test/x.npy", tmp_path / "all.safetensors")
    assert result.exit_code == 1
    assert f"'{data}/train/x.npy' and '{data}/test/x.npy' would both have an array 'x'" in result.stderr
    assert not (tmp_path / "all.safetensors").exists()


def test_one_name_for_several_files_is_refused(data, tmp_path):
    result = convert(data / "train/x.npy", data / "train/y.npy", tmp_path / "all.safetensors", "--name", "z")
    assert result.exit_code == 1
    assert "2 files cannot all be named 'z'" in result.stderr


def test_several_arrays_into_a_format_of_one_is_an_error_that_names_them(data, tmp_path):
    result = convert(data, tmp_path / "all.npy")
    assert result.exit_code == 1
    assert "one array, not 3: 'test/x', 'train/x', 'train/y'" in result.stderr


# --- a folder of outputs


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_folder_becomes_a_folder_of_the_same_structure(jobs, data, tmp_path):
    out = tmp_path / "new" / "out"
    result = convert(data, out, "--to", "safetensors", "--float-dtype", "float32", "--jobs", jobs)
    assert (result.exit_code, result.stderr) == (0, "")
    assert files_in(out) == OUTPUTS
    assert_same(values(out / "train/x.safetensors"), {"x": np.arange(6, dtype="f4").reshape(2, 3)})
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f"{out}/{name}" for name in OUTPUTS]
    assert lines[-1] == "3 of 3 files converted, 64 bytes"


@pytest.mark.parametrize(
    ("patterns", "outputs"),
    [
        (["data/**/*.npy"], OUTPUTS),
        (["data/t*/x.npy"], ["test/x.safetensors", "train/x.safetensors"]),
        (["data/train/*"], ["x.safetensors", "y.safetensors"]),
        (["data/train/*", "data/train"], ["x.safetensors", "y.safetensors"]),
        (["data/train/x.npy", "data/tes?/*"], None),
        (["data/train/[!x].npy"], ["y.safetensors"]),
    ],
)
def test_patterns_keep_the_path_from_their_fixed_part(patterns, outputs, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = convert(*patterns, "out", "--to", "safetensors")
    if outputs is None:
        assert result.exit_code == 0
        assert files_in(tmp_path / "out") == ["test/x.safetensors", "x.safetensors"]
    else:
        assert files_in(tmp_path / "out") == outputs


def test_a_name_with_the_characters_of_a_pattern_is_that_file(tmp_path):
    np.save(tmp_path / "a[1].npy", np.arange(3))
    assert convert(tmp_path / "a[1].npy", tmp_path / "out", "--to", "safetensors").exit_code == 0
    assert files_in(tmp_path / "out") == ["a[1].safetensors"]


def test_a_folder_of_outputs_needs_a_format(data, tmp_path):
    result = convert(data, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("Hint: --to names the format of what is written into it.\n")


@pytest.mark.parametrize("source", ["nothing/*.npy", "empty", "none.npy"])
def test_a_source_that_names_nothing_is_an_error(source, tmp_path):
    (tmp_path / "empty").mkdir()
    result = convert(tmp_path / source, tmp_path / "out", "--to", "npy")
    assert result.exit_code == 1
    assert source in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_outputs_within_the_folder_of_sources_are_not_sources_of_the_next_run(data):
    assert convert(data, data / "out", "--to", "safetensors").exit_code == 0
    assert convert(data, data / "out", "--to", "safetensors", "--overwrite").exit_code == 0
    assert files_in(data / "out") == OUTPUTS


# --- what is refused before anything is written


def test_all_outputs_that_exist_are_named_before_anything_is_written(data, tmp_path):
    for name in ("test/x.safetensors", "train/y.safetensors"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("old")
    for on_error in ("stop", "skip"):
        result = convert(data, tmp_path / "out", "--to", "safetensors", "--on-error", on_error)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"ndtorch: '{tmp_path}/out/test/x.safetensors' exists. Hint: --overwrite replaces it, all or nothing.\n"
            f"ndtorch: '{tmp_path}/out/train/y.safetensors' exists.\n"
        )
    assert files_in(tmp_path / "out") == ["test/x.safetensors", "train/y.safetensors"]
    assert convert(data, tmp_path / "out", "--to", "safetensors", "--overwrite").exit_code == 0
    assert files_in(tmp_path / "out") == OUTPUTS


def test_two_sources_of_one_output_are_an_error_that_names_both(data, tmp_path):
    result = convert(data / "train/x.npy", data / "test/x.npy", tmp_path / "out", "--to", "safetensors")
    assert result.exit_code == 1
    assert (
        f"'{data}/train/x.npy' and '{data}/test/x.npy' would both become '{tmp_path}/out/x.safetensors'"
        in result.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("train/x.npy", "train/x.npy"), ("train", "train/"), ("train/x.npy", "link.npy")])
def test_a_source_is_never_an_output(words, data):
    (data / "link.npy").symlink_to("train/x.npy")
    before = (data / "train/x.npy").read_bytes()
    source, target = words
    result = convert(data / source, f"{data}/{target}", "--to", "npy", "--overwrite")
    assert result.exit_code == 1
    assert "it is a source" in result.stderr
    assert (data / "train/x.npy").read_bytes() == before


@pytest.mark.parametrize("link", ["folder", "file", "dangling", "dangling folder"])
def test_nothing_is_written_through_links_out_of_the_folder_of_outputs(link, data, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "train").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "x.safetensors").write_text("old")
    if link == "folder":
        (out / "test").symlink_to(elsewhere)
    elif link == "dangling folder":
        (out / "test").symlink_to(tmp_path / "none")
    else:
        (out / "test").mkdir()
        place = elsewhere / ("x.safetensors" if link == "file" else "new.safetensors")
        (out / "test" / "x.safetensors").symlink_to(place)
    result = convert(data, out, "--to", "safetensors", "--overwrite")
    assert result.exit_code == 1
    assert "links lead from there to" in result.stderr
    assert files_in(elsewhere) == ["x.safetensors"]
    assert (elsewhere / "x.safetensors").read_text() == "old"
    assert not (tmp_path / "none").exists()


def test_a_folder_of_outputs_may_be_a_link_itself(data, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert convert(data, tmp_path / "out", "--to", "safetensors").exit_code == 0
    assert files_in(tmp_path / "real") == OUTPUTS


def test_a_file_where_a_folder_has_to_be_is_refused(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").write_text("a file")
    result = convert(data, tmp_path / "out", "--to", "safetensors")
    assert result.exit_code == 1
    assert f"'{tmp_path}/out/train' is no folder" in result.stderr
    assert files_in(tmp_path / "out") == ["train"]


@pytest.mark.parametrize("words", [("--to", "bmp"), ("--from", "bmp"), ("--on-error", "ask")])
def test_an_option_that_means_nothing_is_refused(words, data, tmp_path):
    result = convert(data, tmp_path / "out", "--to", "npy", *words)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"ndtorch: {words[0]} {words[1]} ")


@pytest.mark.parametrize("words", [("--jobs", "0"), ("--jobs", "x"), ("--spam",)])
def test_a_command_line_that_makes_no_sense_exits_2(words, data, tmp_path):
    assert convert(data, tmp_path / "out", "--to", "npy", *words).exit_code == 2


# --- files that fail


def test_by_default_nothing_is_written_where_one_file_cannot_be(data, tmp_path):
    (data / "test/x.npy").write_bytes(b"\x93NUMPY")
    result = convert(data, tmp_path / "out", "--to", "safetensors")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"ndtorch: read: '{data}/test/x.npy' ")
    assert not (tmp_path / "out").exists()


def test_skip_converts_the_rest_and_exits_3(data, tmp_path):
    (data / "test/x.npy").write_bytes(b"\x93NUMPY")
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--on-error", "skip")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"ndtorch: read: '{data}/test/x.npy' ")
    assert result.stderr.count("\n") == 1
    assert files_in(tmp_path / "out") == OUTPUTS[1:]
    assert result.stdout.splitlines()[-1] == "2 of 3 files converted, 72 bytes, 1 failed"


def test_skip_exits_1_where_all_fail(data, tmp_path):
    words = ("--to", "safetensors", "--on-error", "skip", "--dtype", "bool", "--casting", "safe")
    result = convert(data, tmp_path / "out", *words)
    assert result.exit_code == 1
    assert result.stderr.count("is not a safe cast.") == 3
    assert result.stderr.count("Hint: --casting unsafe insists") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("on_error", "code"), [("stop", 1), ("skip", 3)])
def test_what_only_its_values_tell_stops_the_rest_or_not(on_error, code, jobs, data, tmp_path):
    np.save(data / "test/x.npy", np.array([1.0, 0.1]))
    words = ("--to", "safetensors", "--float-dtype", "float32", "--casting", "exact", "--on-error", on_error)
    result = convert(data, tmp_path / "out", *words, "--jobs", jobs)
    assert result.exit_code == code
    assert f"{data}/test/x.npy: write: casting" not in result.stderr
    assert "would lose the value at index 1: 0.1 would become" in result.stderr
    assert "--casting same_kind or unsafe accepts the loss" in result.stderr
    if on_error == "skip":
        assert files_in(tmp_path / "out") == OUTPUTS[1:]
        assert not (tmp_path / "out/test").exists()
    elif jobs == 1:
        assert not (tmp_path / "out").exists()
        assert result.stdout == "0 of 3 files converted, 0 bytes, 1 failed, 2 stopped\n"


# --- plans, quiet and JSON


def test_a_dry_run_says_what_would_become_of_each_array_and_writes_nothing(data, tmp_path):
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--float-dtype", "float32", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{data}/test/x.npy -> {tmp_path}/out/test/x.safetensors",
        "  x  float64[4]    float32[4]    16  cast",
        f"{data}/train/x.npy -> {tmp_path}/out/train/x.safetensors",
        "  x  float64[2,3]  float32[2,3]  24  cast",
        f"{data}/train/y.npy -> {tmp_path}/out/train/y.safetensors",
        "  y  int64[3]      int64[3]      24  copied as it lies",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("on_error", "code"), [("stop", 1), ("skip", 3)])
def test_a_dry_run_reports_all_that_would_fail(on_error, code, data, tmp_path):
    (data / "test/x.npy").write_bytes(b"\x93NUMPY")
    np.save(data / "train/y.npy", np.array(["text"]))
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--dry-run", "--on-error", on_error)
    assert result.exit_code == code
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["read", f"{data}/train/y.npy"]


def test_a_dry_run_reports_outputs_that_exist(data, tmp_path):
    assert convert(data, tmp_path / "out", "--to", "safetensors").exit_code == 0
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--dry-run", "--on-error", "skip")
    assert result.exit_code == 1
    assert result.stderr.count(" exists.") == 3
    assert result.stderr.count("Hint: --overwrite") == 1


def test_quiet_prints_errors_only(data, tmp_path):
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    result = convert(data, tmp_path / "out", "--to", "safetensors", "-q")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 3)


def test_json_is_one_line_for_each_output(data, tmp_path):
    np.save(data / "test/x.npy", np.array(["text"]))
    words = ("--to", "safetensors", "--on-error", "skip", "--json")
    planned = [json.loads(line) for line in convert(data, tmp_path / "out", *words, "--dry-run").stdout.splitlines()]
    result = convert(data, tmp_path / "out", *words)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 3
    assert [each["status"] for each in planned] == ["failed", "planned", "planned"]
    assert [each["status"] for each in records] == ["failed", "converted", "converted"]
    assert records[0]["errors"][0]["type"] == "UnsupportedTypeError"
    assert result.stderr == f"ndtorch: {records[0]['errors'][0]['message']}\n"
    seconds = records[1].pop("seconds")
    assert seconds > 0
    assert records[1] == {
        "sources": [f"{data}/train/x.npy"],
        "target": f"{tmp_path}/out/train/x.safetensors",
        "format": "safetensors",
        "status": "converted",
        "bytes": 48,
        "arrays": [
            {"name": "x", "from": "float64[2,3]", "to": "float64[2,3]", "bytes": 48, "how": "copied as it lies"}
        ],
    }
    refused = convert(data, tmp_path / "out", *words)
    assert [json.loads(line)["status"] for line in refused.stdout.splitlines()] == ["failed"] * 2


def test_at_most_twenty_errors_are_printed(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(25):
        (tmp_path / "in" / f"{number:02}.npy").touch()
    result = convert(tmp_path / "in", tmp_path / "out", "--to", "safetensors")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 21
    assert result.stderr.endswith("ndtorch: and 5 more\n")


def test_help_has_the_exit_codes():
    result = convert("--help")
    assert result.exit_code == 0
    for code in (0, 1, 2, 3, 130):
        assert f"\n    {code} " in result.stdout


# --- a real terminal

BARS_AT_ONCE = "import ndtorch.commands.progress as p; p.SHOWN_AFTER = 0\n"
BARS_LATE = "import ndtorch.commands.progress as p; p.SHOWN_AFTER *= 600\n"  # short work is long on a busy machine
MAIN = "from ndtorch.cli import main; main()"


def in_terminal(code: str, *arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code, and what a terminal gets to see, of a process that has one."""
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment},
    )
    os.close(other_end)
    seen = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # that is how the end of a terminal is told
            break
        if not part:
            break
        seen += part
    os.close(main_end)
    return process.wait(), seen.decode()


def test_a_terminal_gets_bars_with_bytes_rate_and_time_left(data, tmp_path):
    np.save(data / "train/y.npy", np.zeros((5 << 20) // 8))
    words = ("convert", data, tmp_path / "out", "--to", "safetensors", "--float-dtype", "float32")
    code, seen = in_terminal(BARS_AT_ONCE + MAIN, *words)
    assert code == 0, seen
    assert "of 3 files" in seen
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in seen
    assert "2.6/2.6 MB" in seen
    assert "/s" in seen
    assert "0:00:00" in seen
    assert seen.endswith("3 of 3 files converted, 2,621,480 bytes\r\n")
    assert "\x1b[?25h" in seen  # the cursor is back


@pytest.mark.parametrize("words", [("--quiet",), ()])
def test_a_terminal_gets_none_for_short_work_or_where_it_is_to_be_quiet(words, data, tmp_path):
    code = (BARS_AT_ONCE if words else BARS_LATE) + MAIN
    code, seen = in_terminal(code, "convert", data, tmp_path / "out", "--to", "safetensors", *words)
    assert code == 0, seen
    assert "\x1b" not in seen
    assert ("converted" in seen) == (not words)


def test_a_terminal_that_knows_no_control_codes_gets_none(data, tmp_path):
    words = ("convert", data, tmp_path / "out", "--to", "safetensors")
    code, seen = in_terminal(BARS_AT_ONCE + MAIN, *words, TERM="dumb")
    assert code == 0, seen
    assert "\x1b" not in seen


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_pipe_gets_no_bars(environment, data, tmp_path):
    words = ["convert", str(data), str(tmp_path / "out"), "--to", "safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", BARS_AT_ONCE + MAIN, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


# --- Ctrl-C


def large(path: Path, nbytes: int = 4 << 30) -> None:
    """An array that takes seconds to cast, and no disk: nothing of it was ever written."""
    header = np.lib.format.open_memmap(path, "w+", np.float64, (nbytes // 8,))
    del header


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_old_files_whole_and_no_litter(jobs, tmp_path):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    for name in "ab":
        large(tmp_path / "in" / f"{name}.npy")
        (out / f"{name}.safetensors").write_text("old")
    words = ["convert", "in", "out", "--to", "safetensors", "--dtype", "float32", "--overwrite", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ndtorch", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )
    deadline = time.monotonic() + 120
    while not is_writing(out, jobs) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")
    assert files_in(out) == ["a.safetensors", "b.safetensors"]
    assert {path.read_text() for path in out.iterdir()} == {"old"}


def is_writing(folder: Path, count: int) -> bool:
    sizes = []
    for path in folder.glob(".ndtorch-*.tmp"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(size > 1 << 20 for size in sizes) >= count


def test_a_real_interrupt_in_a_short_run_exits_130(data, tmp_path):
    code = (
        "import os, signal\n"
        "from ndtorch.files import output\n"
        "output.Output.write = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n" + MAIN
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", str(data), str(tmp_path / "out"), "--to", "safetensors", "--jobs", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_of_an_output_is_named_with_the_call_that_makes_it(data, tmp_path):
    result = convert(data / "test" / "x.npy", tmp_path / "my out" / "x.npz")
    assert result.exit_code == 1
    assert f"no folder '{tmp_path}/my out'. Hint: mkdir -p '{tmp_path}/my out' makes it." in result.stderr


# --- what is the user's stays


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_outputs_that_links_lead_to_one_place_are_refused(kind, data, tmp_path):
    out = tmp_path / "out"
    if kind == "folder":
        (out / "both").mkdir(parents=True)
        (out / "train").symlink_to("both")
        (out / "test").symlink_to("both")
    else:
        (out / "train").mkdir(parents=True)
        (out / "test").mkdir()
        (out / "train" / "x.safetensors").write_text("old")
        (out / "test" / "x.safetensors").symlink_to("../train/x.safetensors")
    before = files_in(out)
    result = convert(data, out, "--to", "safetensors", "--overwrite")
    assert result.exit_code == 1
    assert "would both become" in result.stderr
    assert files_in(out) == before


def test_a_store_within_a_store_is_refused(tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    (tmp_path / "in" / "a.zarr").mkdir(parents=True)
    np.save(tmp_path / "in" / "a.npy", np.arange(3))
    np.save(tmp_path / "in" / "a.zarr" / "b.npy", np.arange(3))
    result = convert(tmp_path / "in", tmp_path / "out", "--to", "zarr")
    assert result.exit_code == 1
    assert "it lies in another output" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["x.zarr", "."])
def test_a_folder_that_is_no_store_is_never_replaced_by_one(target, data, tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    (tmp_path / "out" / "x.zarr").mkdir(parents=True)
    (tmp_path / "out" / "x.zarr" / "thesis.txt").write_text("mine")
    result = convert(data / "test" / "x.npy", tmp_path / "out" / target, "--to", "zarr", "--overwrite")
    assert result.exit_code == 1
    assert "it is a folder, and no zarr store" in result.stderr
    assert files_in(tmp_path / "out") == ["x.zarr/thesis.txt"]


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(data, tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    result = convert(data / "test" / "x.npy", tmp_path / "x.npy", "--overwrite")
    assert result.exit_code == 1
    assert "it is a device, a pipe or a socket" in result.stderr
    assert (tmp_path / "x.npy").is_fifo()
    with pytest.raises(nd.FormatError, match="it is a device, a pipe or a socket"):
        nd.write(tmp_path / "x.npy", np.ones(3), overwrite=True)
    with pytest.raises(nd.FormatError, match="it is a device, a pipe or a socket"):
        nd.report(data / "test" / "x.npy", tmp_path / "x.npy", overwrite=True)
    assert (tmp_path / "x.npy").is_fifo()


# --- names


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize("name", ["../../x", "/x", "x/../y"])
def test_names_that_lead_out_of_a_folder_are_not_handed_on(name, suffix, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.arange(3)})
    result = convert(tmp_path / "a.npz", tmp_path / f"b.{suffix}")
    assert result.exit_code == 1
    assert f"no array can be named {name!r}" in result.stderr
    with pytest.raises(nd.FormatError, match="no array can be named"):
        nd.convert_file(tmp_path / "a.npz", tmp_path / f"b.{suffix}")
    assert files_in(tmp_path) == ["a.npz"]


def test_a_file_whose_name_is_no_text_is_an_error_of_its_own(data, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    os.rename(tmp_path / "x.npy", os.fsencode(data) + b"/\xff.npy")
    result = convert(data, tmp_path / "out", "--to", "safetensors", "--on-error", "skip")
    assert result.exit_code == 3
    assert "data/\\udcff.npy: write: the array name" in result.stderr
    assert files_in(tmp_path / "out") == OUTPUTS
    assert convert(data, tmp_path / "more", "--to", "npy").exit_code == 0  # which has no names in it
    assert b"\xff.npy" in os.listdir(os.fsencode(tmp_path / "more"))


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt", "h5", "zarr"])
def test_an_array_whose_name_is_no_text_is_refused_before_anything_is_written(suffix, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(b"\xff", data=np.arange(3))
    result = convert(tmp_path / "a.h5", tmp_path / f"b.{suffix}", "--dry-run")
    assert result.exit_code == 1
    assert "is not Unicode text" in result.stderr


@pytest.mark.parametrize("words", [["inspect"], ["convert", "--quiet"], ["convert"], ["explain"]])
def test_closed_streams_are_no_failure(words, data, tmp_path):
    target = [str(tmp_path / "out.npz")] if words[0] == "convert" else []
    command = [sys.executable, "-m", "ndtorch", *words, str(data / "test" / "x.npy"), *target]
    shell = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], timeout=120)
    assert shell.returncode == 0
    for name in map(Path, target):
        assert_same(values(name), {"x": np.ones(4)})
