"""The examples run as they are shipped, more than once, and their checks can fail."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DIGITS = EXAMPLES / "data" / "digits.npz"


@pytest.fixture
def convert_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import convert_digits

    yield convert_digits
    del sys.modules["convert_digits"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def row_of(output: str, call: str) -> list[str]:
    """The cells after the call in the one line of the table that starts with it."""
    (line,) = [line for line in output.splitlines() if re.match(re.escape(call) + r"  ", line)]
    return re.split(r"  +", line)[1:]


def test_convert_digits_runs_twice_in_a_row_and_says_the_same(tmp_path):
    first, second = (run("convert_digits.py", str(tmp_path / "out")) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    assert first.stdout == second.stdout
    assert first.stdout.endswith("verified: 2 arrays, 129,384 bytes identical after the round trip\n")
    names = {"images.npy", "digits.safetensors", "digits.pt", "digits.npz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_convert_digits_shows_what_was_shared_what_was_copied_and_why(tmp_path):
    output = run("convert_digits.py", str(tmp_path)).stdout
    assert row_of(output, "to_torch(digits)['images']") == ["shared", "115,008"]
    assert row_of(output, "to_torch(digits)['labels']") == ["shared", "14,376"]
    cast = row_of(output, 'to_torch(images, dtype="float32")')
    assert cast == ["copied", "460,032", "float32 was asked for and it is u8"]
    assert row_of(output, "to_torch(images[::-1])") == ["copied", "115,008", "axis 0 has a negative stride (-64 bytes)"]
    mapped = row_of(output, 'to_torch(np.load("images.npy", mmap_mode="r"))')
    assert mapped == ["private mapping", "0", "it is read-only"]


def test_convert_digits_writes_arrays_that_numpy_reads_back_equal(tmp_path):
    run("convert_digits.py", str(tmp_path))
    with np.load(DIGITS) as before, np.load(tmp_path / "digits.npz") as after:
        assert set(before) == set(after) == {"images", "labels"}
        for name in before:
            assert before[name].dtype == after[name].dtype
            np.testing.assert_array_equal(before[name], after[name], strict=True)


def test_verification_accepts_equal_arrays(convert_digits):
    convert_digits.verify({"x": np.arange(3)}, {"x": np.arange(3)}, where=Path("file"))


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ({}, r"expected the arrays \['x'\], got \[\]"),
        ({"x": np.arange(3), "y": np.arange(3)}, r"got \['x', 'y'\]"),
        ({"x": np.arange(3, dtype=np.int32)}, r"x: expected int64\[3\], got int32\[3\]"),
        ({"x": np.arange(3).reshape(1, 3)}, r"x: expected int64\[3\], got int64\[1, 3\]"),
        ({"x": np.array([0, 1, 3])}, "x: 1 bytes differ, the first at 16"),
    ],
    ids=["missing", "unexpected", "dtype", "shape", "value"],
)
def test_verification_exits_with_a_message_on_any_difference(convert_digits, actual, message):
    with pytest.raises(SystemExit, match=message) as exited:
        convert_digits.verify({"x": np.arange(3)}, actual, where=Path("file"))
    assert isinstance(exited.value.code, str)  # printed, and the status is 1


def test_digits_are_what_their_readme_says():
    text = (DIGITS.parent / "README.md").read_text()
    assert f"sha256  {hashlib.sha256(DIGITS.read_bytes()).hexdigest()}  {DIGITS.name}\n" in text
    with np.load(DIGITS) as digits:
        images, labels = digits["images"], digits["labels"]
    assert (images.dtype, images.shape, images.min(), images.max()) == (np.uint8, (1797, 8, 8), 0, 16)
    assert (labels.dtype, labels.shape) == (np.int64, (1797,))
    assert np.unique(labels).tolist() == list(range(10))
