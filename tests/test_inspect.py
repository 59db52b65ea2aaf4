"""`inspect`: what it says is what NumPy says of the same values; it reads headers only and needs no torch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

import ndtorch as nd
from ndtorch import _statistics, cli
from ndtorch.__main__ import plain_inspect
from ndtorch._dtypes import TABLE
from ndtorch._inspect import size_text
from ndtorch.files import open_file

pytestmark = pytest.mark.once

INTEGERS = [row.numpy for row in TABLE if row.numpy is not None and row.kind in ("int", "uint")]
FLOATS = [row.numpy for row in TABLE if row.numpy is not None and row.kind == "float"]


def saved(path: Path, array: np.ndarray) -> Path:
    nd.write(path, {"x": array}, overwrite=True)
    return path


def stats_of(folder: Path, array: np.ndarray) -> nd.Statistics:
    found = nd.inspect(saved(folder / "x.npy", array), stats=True)[0].stats
    assert found is not None
    return found


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ndtorch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


# ---- headers ----


def test_inspect_says_what_the_headers_say(tmp_path):
    arrays = {"b": np.zeros((2, 3), np.float32), "a/c": np.arange(5, dtype=np.int64)}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    found = nd.inspect(tmp_path / "m.safetensors")
    assert (found.format, len(found), found.nbytes) == ("safetensors", 2, 64)
    assert found.file_nbytes == (tmp_path / "m.safetensors").stat().st_size
    assert [info.name for info in found] == ["a/c", "b"]
    info = found["b"]
    assert (info.dtype, info.shape, info.order, info.nbytes, info.byteorder) == ("float32", (2, 3), "C", 24, "little")
    assert (info.stats, info.error, info.compression) == (None, None, "")
    raw = (tmp_path / "m.safetensors").read_bytes()
    assert raw[found["a/c"].offset :][:40] == arrays["a/c"].tobytes()
    assert found["a/c"].offset % found["a/c"].alignment == 0


@pytest.mark.parametrize(
    ("array", "order", "byteorder"),
    [
        (np.zeros((3, 2)), "C", "little"),
        (np.zeros((3, 2), order="F"), "F", "little"),
        (np.zeros((3, 2), ">f8"), "C", "big"),
        (np.zeros(4, np.uint8), "C", ""),
        (np.zeros(4, ml_dtypes.bfloat16), "C", "little"),
        (np.array(["a", "bc"]), "C", "little"),
        (np.array([b"a"]), "C", ""),
    ],
)
def test_order_and_byte_order_are_those_of_the_file(tmp_path, array, order, byteorder):
    (info,) = nd.inspect(saved(tmp_path / "x.npy", array))
    assert (info.name, info.order, info.byteorder) == ("x", order, byteorder)


def test_name_and_format_are_taken(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    (tmp_path / "x.npy").rename(tmp_path / "x.data")
    (info,) = nd.inspect(tmp_path / "x.data", name="weights", format="npy")
    assert info.name == "weights"
    with pytest.raises(nd.InvalidOptionError, match="unknown"):
        nd.inspect(tmp_path / "x.data", format="nothing")


def test_headers_are_all_that_is_read(tmp_path):
    """The file has holes of more bytes than there is memory; to read them would take minutes."""
    header, per, at = {}, 1 << 30, 0
    for number in range(100):
        header[f"w{number}"] = {"dtype": "U8", "shape": [per], "data_offsets": [at, at + per]}
        at += per
    raw = json.dumps(header).encode()
    with open(tmp_path / "m.safetensors", "wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + at)
    found = nd.inspect(tmp_path / "m.safetensors")
    assert (len(found), found.nbytes) == (100, 100 << 30)
    assert "100 arrays, 107 GB" in str(found)


def test_what_cannot_be_read_is_listed_with_its_error(tmp_path):
    header = json.dumps({"q": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    (info,) = nd.inspect(tmp_path / "m.safetensors", stats=True)
    assert (info.dtype, info.stats) == ("F4", None)
    assert isinstance(info.error, nd.UnsupportedDtypeError)
    assert "NumPy has no dtype for" in str(nd.inspect(tmp_path / "m.safetensors"))


def test_missing_and_hostile_files_raise(tmp_path):
    with pytest.raises(nd.FormatError, match="no such file"):
        nd.inspect(tmp_path / "no.npy")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff")
    with pytest.raises(nd.FormatError):
        nd.inspect(tmp_path / "x.npy")


def test_inspect_and_report_need_no_torch(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    code = """
import sys
import ndtorch as nd
found = nd.inspect(sys.argv[1], stats=True)
str(found), found.to_json(), found._repr_html_(), nd.report(sys.argv[1], sys.argv[2])
print({"torch", "typer", "rich", "click"} & set(sys.modules))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "x.npy"), str(tmp_path / "x.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# ---- statistics ----


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_are_summed_exactly(tmp_path, dtype):
    limits = np.iinfo(dtype)
    array = np.random.default_rng(0).integers(limits.min, limits.max, 100_003, dtype, endpoint=True)
    array[:6] = limits.max, limits.max, limits.max, limits.min, limits.min, 0
    found = stats_of(tmp_path, array)
    values = [int(value) for value in array]
    assert (found.min, found.max, type(found.min)) == (limits.min, limits.max, int)
    assert found.mean == sum(values) / len(values)
    assert found.std == pytest.approx(float(np.std(array.astype(np.longdouble))), rel=1e-13)
    assert (found.count, found.nans, found.infs, found.zeros) == (100_003, 0, 0, values.count(0))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_the_spread_of_integers_far_from_zero_is_seen(tmp_path, dtype):
    array = np.iinfo(dtype).max - np.arange(2, dtype=dtype).repeat(50_000)
    found = stats_of(tmp_path, array)
    assert (found.std, found.mean) == (0.5, (2 * np.iinfo(dtype).max - 1) / 2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1, 7, 70_001])
def test_floats_are_as_numpy_says(tmp_path, dtype, size):
    random = np.random.default_rng(1)
    wide = np.exp2(random.integers(-3, 3, size)) if dtype == ml_dtypes.float8_e8m0fnu else random.normal(1, 2, size)
    array = wide.astype(dtype)
    if size > 1:
        array[1::7] = np.nan
    found = stats_of(tmp_path, array)
    exact = array.astype(np.longdouble if dtype == np.float64 else np.float64)
    kept = exact[~np.isnan(exact)]
    assert (found.min, found.max) == (kept.min(), kept.max())
    assert found.mean == pytest.approx(float(kept.mean()), rel=1e-13)
    assert found.std == pytest.approx(float(kept.std()), rel=1e-12, abs=1e-12)
    assert (found.nans, found.infs) == (np.isnan(exact).sum(), 0)
    assert found.zeros == (exact == 0).sum()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn])
def test_every_number_of_a_narrow_format_is_read_right(tmp_path, dtype):
    bits = np.arange(1 << (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
    numbers = bits.view(dtype)
    expected = numbers.astype(np.float32)
    finite = numbers[np.isfinite(expected)]
    for array in (numbers, finite):
        np.testing.assert_array_equal(_statistics.widened(array), array.astype(np.float32))
    found = stats_of(tmp_path, finite)
    assert (found.min, found.max) == (np.nanmin(finite.astype(np.float32)), np.nanmax(finite.astype(np.float32)))
    found = stats_of(tmp_path, numbers)
    assert (found.nans, found.infs) == (np.isnan(expected).sum(), np.isinf(expected).sum())


def test_a_great_offset_does_not_drown_the_spread(tmp_path):
    array = (1e9 + np.random.default_rng(2).normal(size=300_000)).astype(np.float64)
    found = stats_of(tmp_path, array)
    exact = array.astype(np.longdouble)
    assert found.std == pytest.approx(float(exact.std()), rel=1e-10)
    assert found.mean == pytest.approx(float(exact.mean()), rel=1e-15)


@pytest.mark.parametrize("scale", [1.7e308, 1e200, 1e-200, 5e-324])
def test_extremes_of_float64_neither_overflow_nor_vanish(tmp_path, scale):
    found = stats_of(tmp_path, np.array([scale, -scale, scale, -scale]))
    assert (found.min, found.max, found.mean, found.std) == (-scale, scale, 0.0, scale)
    found = stats_of(tmp_path, np.full(100_000, scale))
    assert (found.mean, found.std) == (scale, 0.0)


@pytest.mark.parametrize(
    ("values", "low", "high", "mean"),
    [
        ([1, np.inf], 1, np.inf, np.inf),
        ([-np.inf, 1], -np.inf, 1, -np.inf),
        ([-np.inf, np.inf, np.nan], -np.inf, np.inf, np.nan),
        ([np.inf], np.inf, np.inf, np.inf),
    ],
)
def test_infinities_take_part_as_in_numpy(tmp_path, values, low, high, mean):
    found = stats_of(tmp_path, np.array(values))
    assert (found.min, found.max) == (low, high)
    np.testing.assert_equal(found.mean, mean)
    assert math.isnan(found.std)
    assert found.infs == np.isinf(values).sum()


def test_nothing_but_nan_has_no_extremes(tmp_path):
    found = stats_of(tmp_path, np.full(5, np.nan))
    assert found == nd.Statistics(5, nans=5, infs=0, zeros=0)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.complex64, "M8[s]", "U3", ml_dtypes.float8_e5m2])
def test_empty_arrays_have_no_extremes(tmp_path, dtype):
    found = stats_of(tmp_path, np.zeros((3, 0), dtype))
    assert (found.count, found.min, found.max, found.mean, found.std) == (0, None, None, None, None)


def test_truth_values_count_as_numbers(tmp_path):
    found = stats_of(tmp_path, np.array([True, False, True, True]))
    assert (found.min, found.max, found.mean, found.zeros) == (False, True, 0.75, 1)
    assert (type(found.min), found.std) == (bool, pytest.approx(np.std([1, 0, 1, 1])))


def test_bytes_other_than_one_are_true(tmp_path):
    found = stats_of(tmp_path, np.array([0, 2, 255, 1], np.uint8).view(bool))
    assert (found.min, found.max, found.mean, found.zeros) == (False, True, 0.75, 1)


def test_complex_numbers_are_counted(tmp_path):
    array = np.array([1 + 1j, complex(np.nan, 1), complex(np.inf, 0), complex(np.inf, np.nan), 0])
    found = stats_of(tmp_path, array)
    assert found == nd.Statistics(5, nans=2, infs=1, zeros=1)


def test_times_and_texts_have_extremes(tmp_path):
    days = np.array(["2024-02-29", "NaT", "1999-01-01"], "M8[D]")
    found = stats_of(tmp_path, days)
    assert (found.min, found.max, found.nans) == (np.datetime64("1999-01-01"), np.datetime64("2024-02-29"), 1)
    assert (stats_of(tmp_path, np.array(["b", "ab"])).min, stats_of(tmp_path, np.array([b"b", b"z"])).max) == (
        "ab",
        b"z",
    )
    assert stats_of(tmp_path, np.array([5, 3], "m8[ns]")).min == np.timedelta64(3, "ns")


def test_records_have_no_statistics(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3, [("a", "f4"), ("b", "i4")]))
    (info,) = nd.inspect(tmp_path / "x.npy", stats=True)
    assert (info.stats, info.error) == (None, None)


@pytest.mark.parametrize("array", [np.arange(6.0).astype(">f4"), np.asfortranarray(np.arange(6).reshape(2, 3))])
def test_byte_order_and_memory_order_make_no_difference(tmp_path, array):
    found = stats_of(tmp_path, array)
    assert (found.min, found.max, found.mean, found.zeros) == (0, 5, 2.5, 1)


def test_statistics_of_several_blocks_are_those_of_the_whole(tmp_path):
    array = np.random.default_rng(3).normal(5, 2, 6_000_001).astype(np.float32)
    found = stats_of(tmp_path, array)
    wide = array.astype(np.float64)
    assert (found.min, found.max) == (array.min(), array.max())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-14)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)


# ---- histograms ----


def histogram(folder: Path, array: np.ndarray, bins: int = 64) -> _statistics.Histogram | None:
    (stored,) = open_file(saved(folder / "x.npy", array)).values()
    found = _statistics.statistics_of(stored)
    assert found is not None
    return _statistics.histogram_of(stored, found, bins)


def test_histogram_of_floats_is_that_of_numpy(tmp_path):
    array = np.random.default_rng(4).normal(size=(300, 200))
    found = histogram(tmp_path, array)
    counts, edges = np.histogram(array, 64)
    assert found is not None
    assert (found.low, found.high) == (edges[0], edges[-1])
    assert np.abs(np.array(found.counts) - counts).sum() <= 4  # values on an edge may round to either side
    assert sum(found.counts) == array.size


def test_histogram_leaves_out_what_is_not_finite(tmp_path):
    found = histogram(tmp_path, np.array([np.nan, np.inf, -np.inf, 1, 2, 2], np.float32), 2)
    assert found == _statistics.Histogram(1.0, 2.0, (1, 2), False)
    assert histogram(tmp_path, np.array([np.nan, np.inf])) is None


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.uint8])
def test_histogram_of_integers_counts_every_value(tmp_path, dtype):
    limits = np.iinfo(dtype)
    found = histogram(tmp_path, np.array([limits.min, limits.max, limits.max], dtype))
    assert found is not None
    assert (found.low, found.counts[0], found.counts[-1], sum(found.counts)) == (limits.min, 1, 2, 3)
    found = histogram(tmp_path, np.array([3, 5, 5], dtype))
    assert found == _statistics.Histogram(3, 5, (1, 0, 2), True)


@pytest.mark.parametrize("scale", [1.7e308, 5e-324, 1.0])
def test_histogram_of_extremes_loses_nothing(tmp_path, scale):
    found = histogram(tmp_path, np.array([-scale, scale, 0.0]), 4)
    assert found is not None
    assert (sum(found.counts), found.counts[0], found.counts[-1]) == (3, 1, 1)


def test_histogram_of_one_value_has_one_bin(tmp_path):
    assert histogram(tmp_path, np.full(9, 2.5)) == _statistics.Histogram(2.5, 2.5, (9,), False)


# ---- words ----


def test_table_is_aligned(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3), np.uint8), b=np.ones(1000))
    lines = str(nd.inspect(saved(tmp_path / "m.safetensors", np.ones(1000, ">f8").byteswap().view("<f8")))).splitlines()
    assert lines[1].split() == ["array", "dtype", "shape", "order", "bytes", "align"]
    assert lines[2].split()[:3] == ["x", "float64", "[1000]"]


def test_json_can_be_parsed_and_says_all(tmp_path):
    array = np.array([1.5, np.nan, np.inf])
    found = json.loads(nd.inspect(saved(tmp_path / "x.npy", array), stats=True).to_json())
    (one,) = found["arrays"]
    assert (found["format"], one["name"], one["dtype"], one["shape"]) == ("npy", "x", "float64", [3])
    expected = nd.Statistics(count=3, min=1.5, max="inf", mean="inf", std="nan", nans=1, infs=1, zeros=0)
    assert one["stats"] == asdict(expected)
    days = json.loads(nd.inspect(saved(tmp_path / "x.npy", np.array(["2024-02-29"], "M8[D]")), stats=True).to_json())
    assert days["arrays"][0]["stats"]["max"] == "2024-02-29"


def test_notebook_table_escapes_names(tmp_path):
    safetensors.numpy.save_file({"<script>": np.zeros(1)}, tmp_path / "m.safetensors")
    html = nd.inspect(tmp_path / "m.safetensors")._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_terminal_codes_in_names_are_shown_and_not_obeyed(tmp_path):
    safetensors.numpy.save_file({"a\x1b[31m\n": np.zeros(1)}, tmp_path / "m.safetensors")
    text = str(nd.inspect(tmp_path / "m.safetensors"))
    assert "a\\x1b[31m\\n" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 bytes"), (1, "1 byte"), (999_999, "1 MB"), (2**63, "9.22e+03 PB")])
def test_sizes_have_a_unit(nbytes, text):
    assert size_text(nbytes) == text


# ---- command line ----


def test_command_prints_what_the_function_says(tmp_path):
    path = saved(tmp_path / "x.npy", np.arange(3.0))
    expected = nd.inspect(path, stats=True)
    assert run("inspect", path, "--stats").stdout == f"{expected}\n"
    assert json.loads(run("inspect", path, "--json", "--stats").stdout) == json.loads(expected.to_json())
    assert CliRunner().invoke(cli.app, ["inspect", str(path), "--stats"]).stdout == f"{expected}\n"


def test_command_takes_name_and_format(tmp_path):
    saved(tmp_path / "x.npy", np.arange(3.0)).rename(tmp_path / "x.data")
    for options in (["--from", "npy", "--name", "w"], ["--from=npy", "--name=w"]):
        done = run("inspect", *options, tmp_path / "x.data", "--json")
        assert json.loads(done.stdout)["arrays"][0]["name"] == "w"


def test_a_folder_has_files_and_a_file_is_one(tmp_path):
    saved(tmp_path / "x.npy", np.arange(3.0))
    saved(tmp_path / "y.npy", np.arange(3.0))
    assert nd.inspect(tmp_path).headline.endswith(": folder, 2 arrays, 48 bytes, files of 304 bytes")
    assert nd.inspect(tmp_path, format="npy").headline.endswith(", files of 304 bytes")
    assert nd.inspect(tmp_path / "x.npy").headline.endswith(": npy, 1 array, 24 bytes, file of 152 bytes")


def test_command_failures_are_one_line(tmp_path):
    done = run("inspect", tmp_path / "no.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ndtorch: read: '{tmp_path / 'no.npy'}': no such file.\n"


def test_plain_calls_go_the_quick_way(tmp_path):
    path = saved(tmp_path / "x.npy", np.arange(3.0))
    code = f"""
import sys
from ndtorch.__main__ import main
sys.argv = ["ndtorch", "inspect", {os.fspath(path)!r}]
main()
print({{"torch", "typer", "rich"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["inspect"],
        ["inspect", "--help"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--name"],
        ["--debug", "inspect", "a"],
    ],
)
def test_unusual_calls_are_left_to_the_whole_command_line(arguments):
    assert plain_inspect(arguments) is None
