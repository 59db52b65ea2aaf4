"""The command line: tables that survive a pipe, errors of one line, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import ndtorch as nd
from ndtorch import _bench, _convert_many, _doctor, _read, cli
from ndtorch._doctor import Check, Report
from ndtorch.commands.printing import in_options

pytestmark = pytest.mark.once


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
    nd.write(tmp_path / "a.safetensors", {"plain": x, "half": x.astype("f2"), "small": np.uint16([1])})
    return tmp_path / "a.safetensors"


def test_explain_names_memory_and_reason(arrays):
    result = run("explain", arrays)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["array", "from", "to", "memory"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows["plain"].split(maxsplit=3)[1:] == [
        "f64[3,4](file)",
        "float64[3,4]",
        "copied: 96 bytes; its values are in a file",
    ]
    assert rows["small"].endswith("--dtype int32 is computed on everywhere")


def test_explain_takes_the_casts_of_a_conversion(arrays):
    rows = run("explain", arrays, "--float-dtype", "bfloat16").stdout
    assert "bfloat16[3,4]" in rows
    assert "uint16[1]" in rows
    refused = run("explain", arrays, "--dtype", "uint8", "--casting", "safe").stdout
    assert "float64 to uint8 is not a safe cast" in refused
    assert "--casting unsafe insists" in refused


def test_explain_takes_name_and_format(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.bin")
    result = run("explain", tmp_path / "x.bin", "--from", "npy", "--name", "weights")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("weights  f64[3](file)")
    result = run("explain", tmp_path / "x.bin", "--from", "numpy")
    assert result.exit_code == 1
    assert result.stderr.startswith("ndtorch: --from numpy is no format; npy, npz, safetensors")


def test_explain_takes_the_direction(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"x": torch.ones(2, dtype=torch.bfloat16)})
    result = run("explain", tmp_path / "a.safetensors", "--to", "numpy")
    assert "x      bf16[2](file)  bfloat16[2]  copied: 4 bytes" in result.stdout
    result = run("explain", tmp_path / "a.safetensors", "--to", "jax")
    assert result.exit_code == 1
    assert result.stderr == "ndtorch: --to jax has no meaning; expected 'torch' or 'numpy', got 'jax'.\n"


def test_explain_shows_refusals_and_fields_as_rows(tmp_path):
    np.save(tmp_path / "long.npy", np.longdouble([1]))
    np.save(tmp_path / "record.npy", np.zeros(2, [("x", "f4"), ("y", "i8")]))
    long, record = run("explain", tmp_path / "long.npy"), run("explain", tmp_path / "record.npy")
    assert (long.exit_code, record.exit_code) == (0, 0)
    assert re.search(r"^long .* -  +to_torch: cannot convert .*torch has no", long.stdout, re.M)
    assert re.search(r"^record +struct\[2\]\(file\) +2 fields", record.stdout, re.M)


@pytest.mark.parametrize("report", [Report((Check("x", "ok", "1"),)), Report((Check("x", "fail", "1", "do [b]this"),))])
def test_doctor_exits_with_its_verdict(report, monkeypatch):
    monkeypatch.setattr(_doctor, "doctor", lambda: report)
    result = run("doctor")
    assert result.exit_code == (0 if report.ok else 1)
    assert result.stdout == ("ok  x  1\n" if report.ok else "fail  x  1\n         Hint: do [b]this\n")


def test_version_and_help():
    assert run("--version").stdout == f"ndtorch {nd.__version__}\n"
    result = run("--help")
    assert result.exit_code == 0
    for command in ("convert", "explain", "doctor"):
        assert re.search(rf"^  {command} ", result.stdout, re.M)


@pytest.mark.parametrize("words", ["--version", "--help", "convert --help"])
def test_what_needs_no_arrays_imports_no_torch(words):
    code = (
        f"import sys; sys.argv[1:] = {words.split()}\n"
        "from ndtorch.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'rich'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("set()\n"), result.stdout + result.stderr


# --- errors


def test_an_error_is_one_line_with_hint_and_without_traceback(arrays):
    result = run("convert", arrays, arrays.with_suffix(".txt"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"ndtorch: '{arrays.with_suffix('.txt')}' has none of the suffixes .npy, ")
    assert result.stderr.endswith("Hint: --to names the format of what is written into it.\n")
    assert result.stderr.count("\n") == 1


def test_the_failing_array_is_in_the_line(arrays, tmp_path):
    result = run("convert", arrays, tmp_path / "b.safetensors", "--dtype", "int8", "--casting", "safe")
    assert result.exit_code == 1
    assert " (at array 'plain')\n" in result.stderr
    assert result.stderr.count("\n") == 3  # one for each array


def test_an_error_of_the_system_is_one_line(arrays, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "a.npz")

    monkeypatch.setattr(_convert_many, "write_prepared", refuse)
    result = run("convert", arrays, tmp_path / "b.safetensors")
    assert (result.exit_code, result.stderr) == (1, "ndtorch: a.npz: Permission denied\n")


@pytest.mark.parametrize("error", [OSError("odd"), MemoryError("no 9 GiB"), MemoryError()])
def test_errors_without_a_number_are_one_line_too(error, arrays, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(_read, "read", refuse)
    result = run("explain", arrays)
    assert (result.exit_code, result.stderr) == (1, f"ndtorch: {str(error) or 'MemoryError'}\n")


@pytest.mark.parametrize("words", [("explain",), ("convert", "out.npy")])
def test_debug_shows_the_traceback(words, arrays):
    command, *others = words
    result = ndtorch("--debug", command, arrays.with_name("none.npz"), *(arrays.with_name(each) for each in others))
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "ndtorch.MissingFileError: read: " in result.stderr


@pytest.mark.parametrize(
    ("python", "options"),
    [
        ("overwrite=True (--overwrite) replaces it", "--overwrite replaces it"),
        ("format= (--from, --to) names one", "--from or --to names one"),
        ("dtype= (--dtype) casts it", "--dtype casts it"),
        ("float_dtype='float32' makes it", "--float-dtype float32 makes it"),
        ("casting='same_kind' or 'unsafe' accepts", "--casting same_kind or unsafe accepts"),
        ("'x.npy' is .npy, name='y' (really)", "'x.npy' is .npy, --name y (really)"),
        ("masked='split' gives", "masked='split' gives"),
        ("to='jax' has no meaning", "--to jax has no meaning"),
    ],
)
def test_hints_are_in_the_words_of_the_command_line(python, options):
    assert in_options(python) == options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dtype", "float99"), r"--dtype float99 is not a dtype; bool, uint8, .* are"),
        (("--float-dtype", "int8"), r"--float-dtype int8 is not a floating dtype; .* are\. Hint: --dtype casts to any"),
        (("--float-dtype", "x"), r"--float-dtype x is not a floating dtype; .* are"),
        (("--casting", "gently"), r"--casting gently is no rule; no, equiv, safe, same_kind, unsafe, exact are"),
        (("--dtype", "f4", "--float-dtype", "f4"), r"--dtype f4 and --float-dtype f4 were both given\. Hint: .*"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "explain"])
def test_an_option_that_says_nothing_is_refused_in_one_line(command, words, message, arrays):
    targets = (arrays.with_name("b.npz"),) if command == "convert" else ()
    result = run(command, arrays, *targets, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(rf"ndtorch: {message}\.\n", result.stderr)


def test_a_bug_shows_its_traceback(arrays, monkeypatch):
    monkeypatch.setattr(_read, "read", lambda *_, **__: 1 / 0)
    assert isinstance(run("explain", arrays).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("convert",), "SRC"), (("convert", "a.npy"), "DST"), (("convert", "a.npy", "--to", "npz"), "DST")],
)
def test_the_argument_that_is_missing_is_named(arguments, missing):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: Missing argument '{missing}'.\n")


@pytest.mark.parametrize("arguments", [("convert", "a.npy", "b.npy"), ("inspect", "a.npy"), ("doctor",)])
def test_debug_behind_a_command_says_that_it_comes_before(arguments):
    result = run(*arguments, "--debug")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"--debug; it comes before the command: ndtorch --debug {arguments[0]} ...\n")


def test_an_unknown_suffix_names_the_option_and_the_suffixes_that_the_command_has(tmp_path):
    (tmp_path / "x.py").write_text("no array")
    read = run("inspect", tmp_path / "x.py").stderr
    assert read.endswith(".zarr, .png, .jpg, .jpeg, .tif, .tiff; --from names one.\n")
    written = run("convert", tmp_path / "x.npy", tmp_path / "x.py").stderr
    assert written.endswith("known are .npy, .npz, .safetensors, .pt, .pth, .h5, .hdf5, .zarr; --to names one.\n")


def test_the_list_of_commands_says_what_each_does_in_a_line():
    lines = ndtorch("--help", COLUMNS="80").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == ["convert", "explain", "inspect", "report", "doctor", "bench"]
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_an_option_of_several_commands_is_described_in_one_way():
    for command in ("convert", "explain", "inspect", "report"):
        words = " ".join(run(command, "--help").stdout.split())
        assert "--from FORMAT The format that is read, where the suffix does not tell, or lies. " in words
        assert "--name NAME What an array is called that has no name in its file. " in words


def test_the_engines_that_help_names_are_those_that_an_error_names(arrays):
    listed = "local|threads|processes|ray"
    assert f"--engine {listed} " in " ".join(run("convert", "--help").stdout.split())
    refused = run("convert", arrays, arrays.with_name("out"), "--engine", "spam").stderr
    assert f"expected one of {listed.replace('|', ', ')}, got" in refused


@pytest.mark.parametrize("arguments", [("convert",), ("convert", "a.npy"), ("spam",), ("explain", "a", "--spam"), ()])
def test_wrong_usage_exits_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_bench_prints_a_table_or_json(monkeypatch):
    row = _bench.Row("a copy", 64, 1e-6, {"torch.tensor": 2e-6, _bench.LIMIT: 5e-3}, {"torch.tensor": 0.5})
    monkeypatch.setattr(_bench, "table", lambda *, short: iter([row] if short else []))
    lines = run("bench").stdout.splitlines()
    assert lines[0] == _bench.machine()
    assert lines[2].split() == ["a", "copy", "1", "us", "torch.tensor", "2", "us", "0.50"]
    assert lines[3].split() == ["the", "limit", "5", "ms", "0.00"]
    figures = json.loads(run("bench", "--json").stdout)
    assert figures["rows"][0]["peers"] == {"torch.tensor": 2e-6, "limit": 5e-3}


def test_an_interrupt_exits_130(arrays, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_read, "read", interrupt)
    assert run("explain", arrays).exit_code == 130


# --- what is printed


ODD = {"[red]x[/red]": r"[red]x[/red]", "a\nb": r"a\nb", "\x1b[31mx": r"\x1b[31mx", ":smile:": ":smile:"}


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_as_they_are_or_escaped(name, tmp_path):
    nd.write(tmp_path / "a.safetensors", {name: np.array([1.0])})
    shown = run("explain", tmp_path / "a.safetensors").stdout.splitlines()
    assert len(shown) == 2
    assert shown[1].startswith(f"{ODD[name]} ")
    refused = run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--dtype", "M8[s]")
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "\x1b" not in refused.stderr


def test_a_pipe_gets_long_lines_unwrapped_and_no_control_codes(tmp_path):
    name = "/".join(["layer with a long name"] * 20)
    nd.write(tmp_path / "a.safetensors", {name: np.ones(2)})
    for environment in ({}, {"COLUMNS": "40"}, {"TERM": "dumb"}, {"TERM": "xterm-256color"}):
        result = ndtorch("explain", tmp_path / "a.safetensors", **environment)
        assert result.stdout.splitlines()[1].startswith(f"{name}  f64[2](file)")
        assert "\x1b" not in result.stdout
        assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_an_output_that_knows_no_unicode_gets_escapes(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"é": np.ones(2)})
    result = ndtorch("explain", tmp_path / "a.safetensors", PYTHONIOENCODING="ascii")
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
    assert (
        result.stderr
        == f"ndtorch: '{tmp_path / 'x.safetensors'}' exists. Hint: --overwrite replaces it, all or nothing.\n"
    )
    assert ndtorch("doctor").returncode == 0
    assert callable(cli.main)
