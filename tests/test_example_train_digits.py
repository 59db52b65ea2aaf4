"""The training example reads digits it has never seen, and its checks can fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def train_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_digits

    threads = torch.get_num_threads()
    yield train_digits
    torch.set_num_threads(threads)
    del sys.modules["train_digits"]


def test_train_digits_reads_at_least_96_percent_of_held_out_digits_and_resumes_bit_for_bit(tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "train_digits.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    read = re.fullmatch(r"10 epochs of 1437 digits: reads (\d+\.\d)% of 360 others", first)
    assert read is not None
    assert float(read[1]) >= 96
    assert second == "stopped after batch 122 of 230 and resumed: the same weights, bit for bit"
    assert (tmp_path / "checkpoint.pt").exists()


def test_no_digit_is_both_trained_on_and_held_out(train_digits):
    import ndtorch as nd

    digits = {"images": torch.arange(1797).reshape(-1, 1, 1).to(torch.uint16), "labels": torch.arange(1797)}
    (_, train), (_, test) = train_digits.split(digits)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))
    assert len(test) == 360
    (images, labels), _ = train_digits.split(nd.read(train_digits.DIGITS))
    assert (images.shape, images.min(), images.max(), labels.dtype) == ((1437, 1, 8, 8), 0, 1, torch.int64)


def test_a_run_that_resumes_elsewhere_than_it_stopped_is_noticed(train_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_digits, "EPOCHS", 2)
    monkeypatch.setattr(train_digits.nd.Loader, "load_state_dict", lambda self, state: None)
    with pytest.raises(SystemExit):
        train_digits.main(tmp_path)
    assert "OTHER weights" in capsys.readouterr().out


def test_a_bar_is_shown_where_tqdm_is_and_left_out_where_it_is_not(train_digits, monkeypatch):
    tqdm = pytest.importorskip("tqdm", reason="needs tqdm")
    loader = train_digits.begin((torch.zeros(100, 1, 8, 8), torch.zeros(100)))[2]
    assert isinstance(train_digits.with_bar(loader), tqdm.tqdm)
    monkeypatch.setattr(train_digits, "tqdm", None)
    assert len(list(train_digits.with_bar(loader))) == 2
