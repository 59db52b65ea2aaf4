"""The command line: tables that survive a pipe, errors of one line, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import ndtorch as nd
from ndtorch import cli
from ndtorch._doctor import Check, Report
from ndtorch.files import read, write


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def ndtorch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ndtorch", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    x = np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "a.npz", plain=x, swapped=x.astype(">f8"), fortran=np.asfortranarray(x), small=np.uint16([1]))
    return tmp_path / "a.npz"


def test_convert_prints_what_became_of_each_array(arrays, tmp_path):
    result = run("convert", arrays, tmp_path / "a.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "array    from             to            bytes  memory\n"
        "plain    f64[3,4](numpy)  float64[3,4]     96  shared\n"
        "swapped  f64[3,4](numpy)  float64[3,4]     96  copied: 96 bytes; its bytes are in the other order\n"
        "fortran  f64[3,4](numpy)  float64[3,4]     96  shared; laid out row by row in the file\n"
        "small    u16[1](numpy)    uint16[1]         2  shared; torch computes little on uint16; dtype='int32' is "
        "computed on everywhere\n"
    )
    assert read(tmp_path / "a.safetensors")["fortran"].tolist() == np.arange(12.0).reshape(3, 4).tolist()


def test_convert_takes_the_options_of_convert_file(arrays, tmp_path):
    target = tmp_path / "b.npz"
    target.write_bytes(b"old")
    result = run("convert", arrays, target, "--float-dtype", "float32", "--casting", "exact", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert [x.dtype.name for x in read(target).values()] == ["float32", "float32", "float32", "uint16"]
    assert run("convert", arrays, target, "--overwrite", "--dtype", "float16").exit_code == 0
    assert {x.dtype.name for x in read(target).values()} == {"float16"}


def test_explain_names_memory_and_reason(arrays):
    result = run("explain", arrays)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "array    from             to            memory"
    assert lines[2] == "swapped  f64[3,4](numpy)  float64[3,4]  copied: 96 bytes; its bytes are in the other order"


def test_explain_of_npy_plans_a_private_mapping(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    result = run("explain", tmp_path / "x.npy")
    assert "private mapping, nothing copied until written; it is read-only" in result.stdout


def test_explain_takes_the_direction(tmp_path):
    write(tmp_path / "a.safetensors", {"x": torch.ones(2, dtype=torch.bfloat16)})
    result = run("explain", tmp_path / "a.safetensors", "--to", "numpy")
    assert "x      bf16[2](torch)  bfloat16[2]  shared\n" in result.stdout
    result = run("explain", tmp_path / "a.safetensors", "--to", "jax")
    assert result.exit_code == 1
    assert result.stderr == "ndtorch: explain: to='jax' has no meaning; expected 'torch' or 'numpy', got 'jax'.\n"


def test_explain_shows_refusals_and_fields_as_rows(tmp_path):
    np.savez(tmp_path / "a.npz", long=np.longdouble([1]), record=np.zeros(2, [("x", "f4"), ("y", "i8")]))
    result = run("explain", tmp_path / "a.npz")
    assert result.exit_code == 0
    assert re.search(r"^long .* -  +to_torch: cannot convert .*torch has no", result.stdout, re.M)
    assert re.search(r"^record +struct\[2\]\(numpy\) +2 fields", result.stdout, re.M)


@pytest.mark.parametrize("report", [Report((Check("x", "ok", "1"),)), Report((Check("x", "fail", "1", "do [b]this"),))])
def test_doctor_exits_with_its_verdict(report, monkeypatch):
    monkeypatch.setattr(cli, "examine", lambda: report)
    result = run("doctor")
    assert result.exit_code == (0 if report.ok else 1)
    assert result.stdout == ("ok  x  1\n" if report.ok else "fail  x  1\n         Hint: do [b]this\n")


def test_version_and_help():
    assert run("--version").stdout == f"ndtorch {nd.__version__}\n"
    result = run("--help")
    assert result.exit_code == 0
    for command in ("convert", "explain", "doctor"):
        assert re.search(rf"^  {command} ", result.stdout, re.M)


# --- errors


def test_an_error_is_one_line_with_hint_and_without_traceback(arrays):
    result = run("convert", arrays, arrays.with_suffix(".txt"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"ndtorch: convert_file: '{arrays.with_suffix('.txt')}' has an unknown suffix, '.txt'. "
        "Hint: known formats are .npy, .npz, .safetensors.\n"
    )


def test_the_failing_array_is_in_the_line(arrays, tmp_path):
    result = run("convert", arrays, tmp_path / "b.npz", "--dtype", "int8")
    assert result.exit_code == 1
    assert result.stderr.endswith(" (at source['plain'])\n")
    assert result.stderr.count("\n") == 1


def test_an_error_of_the_system_is_one_line(arrays, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "a.npz")

    monkeypatch.setattr(cli, "convert_file", refuse)
    result = run("convert", arrays, tmp_path / "b.npz")
    assert (result.exit_code, result.stderr) == (1, "ndtorch: a.npz: Permission denied\n")


@pytest.mark.parametrize("error", [OSError("odd"), MemoryError("no 9 GiB"), MemoryError()])
def test_errors_without_a_number_are_one_line_too(error, arrays, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "convert_file", refuse)
    result = run("convert", arrays, tmp_path / "b.npz")
    assert (result.exit_code, result.stderr) == (1, f"ndtorch: {str(error) or 'MemoryError'}\n")


def test_debug_shows_the_traceback(arrays):
    result = ndtorch("--debug", "explain", arrays.with_name("none.npz"))
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "ndtorch.FormatError: read: " in result.stderr


def test_a_bug_shows_its_traceback(arrays, monkeypatch):
    monkeypatch.setattr(cli, "read", lambda *_, **__: 1 / 0)
    assert isinstance(run("explain", arrays).exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [("convert",), ("convert", "a.npy"), ("spam",), ("explain", "a", "--spam"), ()])
def test_wrong_usage_exits_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_bench_prints_a_table_or_json(monkeypatch):
    row = cli.Row("a copy", 64, 1e-6, {"torch.tensor": 2e-6, cli.LIMIT: 5e-3}, {"torch.tensor": 0.5})
    monkeypatch.setattr(cli, "measured", lambda *, short: iter([row] if short else []))
    lines = run("bench").stdout.splitlines()
    assert lines[0] == cli.machine()
    assert lines[2].split() == ["a", "copy", "1", "us", "torch.tensor", "2", "us", "0.50"]
    assert lines[3].split() == ["the", "limit", "5", "ms", "0.00"]
    figures = json.loads(run("bench", "--json").stdout)
    assert figures["rows"][0]["peers"] == {"torch.tensor": 2e-6, "limit": 5e-3}


def test_an_interrupt_exits_130(arrays, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read", interrupt)
    assert run("explain", arrays).exit_code == 130


def test_a_real_interrupt_leaves_the_old_file_and_exits_130(arrays, tmp_path):
    target = tmp_path / "b.npz"
    target.write_bytes(b"old")
    code = (
        "import os, signal, numpy as np\n"
        "from ndtorch.cli import main\n"
        "np.lib.format.write_array = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "convert", str(arrays), str(target), "--overwrite"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 128 + signal.SIGINT
    assert result.stderr == ""
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


# --- what is printed


ODD = {"[red]x[/red]": r"[red]x[/red]", "a\nb": r"a\nb", "\x1b[31mx": r"\x1b[31mx", ":smile:": ":smile:"}


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_as_they_are_or_escaped(name, tmp_path):
    write(tmp_path / "a.npz", {name: np.array(["a"])})
    shown = run("explain", tmp_path / "a.npz").stdout.splitlines()
    assert len(shown) == 2
    assert shown[1].startswith(f"{ODD[name]} ")
    refused = run("convert", tmp_path / "a.npz", tmp_path / "a.safetensors")
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "\x1b" not in refused.stderr


def test_a_pipe_gets_long_lines_unwrapped_and_no_control_codes(tmp_path):
    name = "layer with a long name/" * 20
    write(tmp_path / "a.npz", {name: np.ones(2)})
    for environment in ({}, {"COLUMNS": "40"}, {"TERM": "dumb"}, {"TERM": "xterm-256color"}):
        result = ndtorch("explain", tmp_path / "a.npz", **environment)
        assert result.stdout.splitlines()[1].startswith(f"{name}  f64[2](numpy)")
        assert "\x1b" not in result.stdout
        assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_an_output_that_knows_no_unicode_gets_escapes(tmp_path):
    write(tmp_path / "a.npz", {"é": np.ones(2)})
    result = ndtorch("explain", tmp_path / "a.npz", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith(r"\xe9 ")
    result = ndtorch("explain", tmp_path / "ü.npz", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


def test_a_reader_that_has_gone_is_no_error(arrays):
    command = f"{sys.executable} -m ndtorch explain {arrays} | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


def test_the_module_and_the_entry_point_run_end_to_end(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    assert ndtorch("convert", tmp_path / "x.npy", tmp_path / "x.safetensors").returncode == 0
    result = ndtorch("convert", tmp_path / "x.npy", tmp_path / "x.safetensors")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("ndtorch: convert_file: ")
    assert ndtorch("doctor").returncode == 0
    assert callable(cli.main)
