"""`report`: one page that needs no other, holds a bounded part of the file, and takes no name for anything but text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import ndtorch as nd
from ndtorch import _report, cli
from ndtorch._report.sample import Sample, View, packed, steps_of, view_of
from ndtorch.files import open_file

pytestmark = pytest.mark.once

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "{{rows}}",
    'a" onclick="x',
    "\u2028\u202e&amp;",
)


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.code: list[str] = []
        self._open: dict[str, str | None] | None = None
        self.names: list[str] = []
        self._is_pick = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.tags.append((tag, facts))
        self._open = facts if tag == "script" else None
        self._is_pick = facts.get("class") == "pick"
        if self._is_pick:
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open, self._is_pick = None, False

    def handle_data(self, data: str) -> None:
        if self._is_pick:
            self.names[-1] += data
        if self._open is None:
            return
        if "id" in self._open:
            self.scripts[str(self._open["id"])] = self.scripts.get(str(self._open["id"]), "") + data
        else:
            self.code.append(data)

    def meta(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts["meta"])
        return found


def report_of(folder: Path, arrays: dict[str, np.ndarray], **options: Any) -> Page:
    nd.write(folder / "m.npz", arrays, overwrite=True)
    return Page(nd.report(folder / "m.npz", folder / "m.html", overwrite=True, **options))


# ---- the page ----


def test_page_asks_for_nothing(tmp_path):
    page = report_of(tmp_path, {"x": np.zeros((4, 4, 3), np.uint8)})
    for tag, facts in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(facts), tag
        assert facts.get("href", "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = [facts["content"] for tag, facts in page.tags if facts.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.code[0].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(page.code) == 1
    assert "http" not in page.code[0].replace("http://www.w3.org/2000/svg", "")


def test_names_are_text(tmp_path):
    safetensors.numpy.save_file({name: np.zeros(2) for name in HOSTILE}, tmp_path / "m.safetensors")
    page = Page(nd.report(tmp_path / "m.safetensors", tmp_path / "m.html"))
    assert sorted(page.names) == sorted(name.replace("\u2028\u202e", "\\u2028\\u202e") for name in HOSTILE)
    assert [facts["name"] for facts in page.meta()] == page.names
    assert [tag for tag, facts in page.tags if tag == "img" or "onclick" in facts or "onerror" in facts] == []
    assert len(page.code) == 1


def test_a_hostile_file_name_is_text(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    path = (tmp_path / "x.npy").rename(tmp_path / "<script>alert(1)<script>.npy")
    page = Page(nd.report(path, tmp_path / "m.html"))
    assert len(page.code) == 1
    assert page.names == ["<script>alert(1)<script>"]


def test_text_values_are_text(tmp_path):
    page = report_of(tmp_path, {"words": np.array(["</script><script>alert(1)</script>", "b"])})
    assert json.loads(page.scripts["sample-0"]) == ["</script><script>alert(1)</script>", "b"]
    assert len(page.code) == 1


def test_page_says_statistics_histogram_and_layout(tmp_path):
    page = report_of(tmp_path, {"x": np.array([[1, 2, 2], [3, 9, 9]], np.int64)})
    (facts,) = page.meta()
    assert dict(facts["facts"])["mean"] == "4.3333"
    assert facts["histogram"]["counts"] == [1, 2, 1, 0, 0, 0, 0, 0, 2]
    assert (facts["histogram"]["first"], facts["histogram"]["last"]) == ("1", "9")
    (drawing,) = json.loads(page.scripts["drawings"])
    assert drawing.startswith("<svg")
    assert "strides (24, 8) bytes" in drawing


def test_arrays_that_cannot_be_read_are_shown_with_their_error(tmp_path):
    header = json.dumps({"q": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    (facts,) = Page(nd.report(tmp_path / "m.safetensors", tmp_path / "m.html")).meta()
    assert "NumPy has no dtype for" in facts["error"]
    assert "mode" not in facts


def test_damage_that_only_the_values_show_is_said_in_the_page(tmp_path):
    nd.write(tmp_path / "m.npz", {"good": np.ones(100), "bad": np.full(1000, 7.0)})
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    at = raw.rindex(np.float64(7).tobytes())
    raw[at] ^= 1
    (tmp_path / "m.npz").write_bytes(raw)
    good, bad = Page(nd.report(tmp_path / "m.npz", tmp_path / "m.html")).meta()
    assert (good["error"], "is damaged" in bad["error"]) == ("", True)
    found = nd.inspect(tmp_path / "m.npz", stats=True)
    assert (found["good"].error, isinstance(found["bad"].error, nd.FormatError)) == (None, True)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.float32(3),
        np.array(True),
        np.array(["a", "b"]),
        np.array(["2024-02-29", "NaT"], "M8[D]"),
        np.zeros(3, [("a", "f4"), ("b", "i4")]),
        np.array([1 + 2j]),
        np.full((2, 2), np.nan),
        np.zeros((1,) * 20),
        np.arange(3, dtype=">u8"),
        np.array([2**63], np.uint64),
        np.ones((3, 4), np.longdouble),
    ],
    ids=str,
)
def test_every_kind_of_array_makes_a_page(tmp_path, array):
    array = np.asarray(array)
    np.save(tmp_path / "x.npy", array)
    page = Page(nd.report(tmp_path / "x.npy", tmp_path / "x.html"))
    (facts,) = page.meta()
    assert (facts["error"], facts["shape"]) == ("", list(array.shape))


# ---- what part of an array the page holds ----


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("u1", (8, 8), View("picture", "HW")),
        ("u2", (8, 9, 3), View("picture", "HWC")),
        ("u1", (5, 8, 9, 4), View("picture", "HWC")),
        ("u1", (3, 8, 9), View("picture", "CHW")),
        ("u1", (5, 1, 8, 9), View("picture", "CHW")),
        ("u1", (7, 8, 9), View("picture", "HW")),
        ("u4", (8, 9, 3), View("map")),
        ("f4", (8, 9), View("map")),
        ("?", (8, 9), View("map")),
        ("f4", (9,), View("line")),
        ("f4", (1, 9), View("line")),
        ("f4", (), View("values")),
        ("f4", (0, 9), View("values")),
        ("U3", (8, 9), View("values")),
    ],
)
def test_dtype_and_shape_choose_the_view(dtype, shape, expected):
    assert view_of(np.dtype(dtype), shape) == expected


@given(
    shape=st.lists(st.integers(1, 60), max_size=5).map(tuple),
    limit=st.integers(1, 5000),
    dtype=st.sampled_from(["u1", "f4"]),
)
def test_no_more_than_the_limit_is_held(shape, limit, dtype):
    view = view_of(np.dtype(dtype), shape)
    steps = steps_of(shape, max(limit, 4), view)
    held = [len(range(0, n, step)) for n, step in zip(shape, steps, strict=True)]
    assert np.prod(held, dtype=int) <= max(limit, 4)
    if np.prod(shape, dtype=int) <= limit:
        assert held == list(shape)


@given(
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple), steps=st.lists(st.integers(1, 4), min_size=4, max_size=4)
)
def test_sample_is_what_slicing_gives(tmp_path_factory, shape, steps):
    used = tuple(steps[: len(shape)])
    for order in ("C", "F"):
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.float32, order=order)
        path = tmp_path_factory.getbasetemp() / "sample.npy"
        np.save(path, array)
        (stored,) = open_file(path).values()
        sample = Sample(stored, used)
        flat = array.reshape(-1, order="F" if stored.order == "F" else "C")
        for start in range(0, flat.size, 7):
            sample.take(flat[start : start + 7])
        np.testing.assert_array_equal(sample.result(), array[tuple(slice(None, None, step) for step in used)])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([1, 2], ">i8"), "i8"),
        (np.array([True, False]), "u1"),
        (np.array([1.5], np.float16), "f4"),
        (np.array([1.5], ml_dtypes.bfloat16), "f4"),
        (np.array([1.5], np.longdouble), "f8"),
        (np.array([1 + 2j], np.complex64), "f4"),
    ],
)
def test_samples_are_typed_arrays(array, kind):
    found, data = packed(array)
    assert found == kind
    assert isinstance(data, bytes)
    numbers = np.frombuffer(data, f"<{kind}")
    expected = [1, 2] if array.dtype.kind == "c" else array.astype(np.float64)
    np.testing.assert_array_equal(numbers, expected)


def test_what_the_page_holds_is_bounded_and_said(tmp_path):
    array = np.arange(2000 * 1000, dtype=np.int32).reshape(2000, 1000)
    page = report_of(tmp_path, {"x": array}, max_elements=10_000)
    (facts,) = page.meta()
    held = np.frombuffer(base64.b64decode(page.scripts["sample-0"]), "<i4").reshape(facts["counts"])
    row, column = facts["steps"]
    np.testing.assert_array_equal(held, array[::row, ::column])
    assert held.size <= 10_000
    assert facts["note"].startswith(
        f"The page holds {held.shape[0]} \u00d7 {held.shape[1]} of 2,000 \u00d7 1,000 elements: every"
    )
    assert sum(facts["histogram"]["counts"]) == array.size


def test_many_arrays_share_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(_report, "_BUDGET", 100_000)
    monkeypatch.setattr(_report, "_MAX_ARRAYS", 20)
    arrays = {f"a{number:02}": np.zeros(10_000) for number in range(30)} | {"tiny": np.zeros(2)}
    page = report_of(tmp_path, arrays)
    held = sum(len(base64.b64decode(text)) for name, text in page.scripts.items() if name.startswith("sample"))
    assert 50_000 < held <= 100_000
    assert len(page.names) == 20
    assert "The first 20 of 31 arrays." in (tmp_path / "m.html").read_text("utf-8")


def test_memory_is_bounded_by_blocks(tmp_path):
    """A file of 600 MB, most of it holes, is reported on within the memory of a few blocks."""
    shape = (150_000_000,)
    with open(tmp_path / "x.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        stream.truncate(stream.tell() + 4 * shape[0])
    code = """
import sys
import ndtorch as nd
from ndtorch import _report
def peak():  # not `ru_maxrss`, which an interpreter has from the process that started it
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
nd.report(sys.argv[1], sys.argv[2])
print((peak() - before) // 1024)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.npy"), str(tmp_path / "x.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150, "MB"
    assert (tmp_path / "x.html").stat().st_size < 8 << 20


# ---- writing ----


def test_a_page_that_exists_stays_unless_told(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(nd.FormatError, match=r"exists\. Hint: overwrite=True"):
        nd.report(tmp_path / "x.npy", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == "mine"
    nd.report(tmp_path / "x.npy", tmp_path / "x.html", overwrite=True)
    assert (tmp_path / "x.html").read_text("utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.html", "x.npy"]


def test_the_file_itself_is_never_overwritten(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    before = (tmp_path / "x.npy").read_bytes()
    with pytest.raises(nd.FormatError, match="it is the file to report on"):
        nd.report(tmp_path / "x.npy", tmp_path / "x.npy", overwrite=True)
    assert (tmp_path / "x.npy").read_bytes() == before


def test_bad_targets_and_options_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(nd.FormatError, match="no folder"):
        nd.report(tmp_path / "x.npy", tmp_path / "no" / "x.html")
    with pytest.raises(nd.FormatError, match="it is a folder"):
        nd.report(tmp_path / "x.npy", tmp_path, overwrite=True)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(nd.InvalidOptionError, match="max_elements"):
            nd.report(tmp_path / "x.npy", tmp_path / "x.html", max_elements=wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_command_writes_the_page_and_says_so(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    target = tmp_path / "x.html"
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path / "x.npy"), "-o", str(target), "--name", "w"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(target))}: [\d,]+ bytes\n", result.stdout)
    assert Page(target).names == ["w"]
    again = CliRunner().invoke(cli.app, ["report", str(tmp_path / "x.npy"), "-o", str(target)])
    assert again.exit_code == 1
    assert "exists" in again.stderr
