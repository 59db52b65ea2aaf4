"""What is measured of the loader: epochs of shuffled batches, beside other ways to make them.

FFCV is no peer here: its package has to be built, and that failed where this was written.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ._bench import LIMIT, Row, Side, Work, measure
from .loader import Loader

BATCH = 256
_LEAST_TURN = 0.1  # seconds: a short turn after a long one finds the caches cold, and the scheduler has others to serve
Array = np.ndarray[Any, Any]


class _Whole(Dataset[Any]):
    """A data set that picks all samples of a batch at once, as those of fast data sets do."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.from_numpy(self.x[index]), self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.asarray(indices)
        return torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])


def _as_it_is(batch: Any) -> Any:
    return batch


def epochs(name: str, x: Array, y: Array, *, is_large: bool) -> Iterator[Work]:
    """One epoch of shuffled batches; every side gives the number of samples that it saw.

    Args:
        name: Of the row.
        x: The samples.
        y: Their labels.
        is_large: Whether the samples are so large that memory sets the pace, and not what a batch costs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a map that is read-only, which nobody writes to
        tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    peers: dict[str, Side] = {
        "index_select": lambda: _on_threads(1, lambda: _selected(tx, ty)),
        "index_select, two threads": lambda: _on_threads(2, lambda: _selected(tx, ty)),
        "np.take(out=)": lambda: _taken(x, y),
        "x[rows]": lambda: _indexed(x, y),
        "DataLoader(TensorDataset)": _loop(DataLoader(TensorDataset(tx, ty), BATCH, shuffle=True)),
        "DataLoader, __getitems__": _loop(DataLoader(_Whole(x, y), BATCH, shuffle=True, collate_fn=_as_it_is)),
        **_tensordict(tx, ty),
    }
    reach = {"index_select": 1.0}
    if is_large:
        peers[LIMIT] = lambda: _on_threads(2, lambda: _copied(tx))
        reach["index_select, two threads"] = 1.11
    else:
        reach |= {"DataLoader(TensorDataset)": 0.067, "DataLoader, __getitems__": 0.33}
    reach |= {name: 0.5 for name in peers if name == "tensordict" and not is_large}
    yield Work(name, x.nbytes + y.nbytes, _loop(Loader((x, y), BATCH, shuffle=True)), peers, reach)


def table(*, short: bool = False) -> Iterator[Row]:
    """Measure the rows of the loader: small samples in memory, large ones in a mapped file that the page cache has."""
    seconds = 0.6 if short else 12.0
    count = 2_000 if short else 60_000
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    for work in epochs(f"epoch of {count} x 28x28 bytes", pixels, np.arange(count), is_large=False):
        yield measure(work, seconds=seconds, least=0.0 if short else _LEAST_TURN)
    del pixels
    count = 512 if short else 43_690
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        rows: Any = np.lib.format.open_memmap(path, "w+", np.float32, (count, 3, 64, 64))
        for start in range(0, count, 1024):
            rows[start : start + 1024] = start
        del rows
        mapped = np.load(path, mmap_mode="r")
        for work in epochs(f"epoch of {count} x 3x64x64 floats, mapped", mapped, np.arange(count), is_large=True):
            yield measure(work, seconds=2 * seconds)


def _loop(loader: Any) -> Callable[[], int]:
    def side() -> int:
        return sum(len(labels) for _, labels in loader)

    return side


def _on_threads(threads: int, side: Callable[[], int]) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return side()
    finally:
        torch.set_num_threads(before)


def _selected(x: torch.Tensor, y: torch.Tensor) -> int:
    order = torch.randperm(len(x))
    seen = 0
    for start in range(0, len(x), BATCH):
        rows = order[start : start + BATCH]
        batch = torch.index_select(x, 0, rows), torch.index_select(y, 0, rows)
        seen += len(batch[1])
    return seen


def _taken(x: Array, y: Array) -> int:
    order = np.random.default_rng().permutation(len(x))
    target, labels = np.empty((BATCH, *x.shape[1:]), x.dtype), np.empty(BATCH, y.dtype)
    seen = 0
    for start in range(0, len(x), BATCH):
        rows = order[start : start + BATCH]
        np.take(x, rows, axis=0, out=target[: len(rows)], mode="clip")  # else it copies the target, too
        np.take(y, rows, out=labels[: len(rows)], mode="clip")
        seen += len(rows)
    return seen


def _indexed(x: Array, y: Array) -> int:
    order = np.random.default_rng().permutation(len(x))
    seen = 0
    for start in range(0, len(x), BATCH):
        rows = order[start : start + BATCH]
        batch = x[rows], y[rows]
        seen += len(batch[1])
    return seen


def _copied(x: torch.Tensor) -> int:
    """The same bytes in the order in which they lie, into memory that is there: no gather is faster."""
    target = torch.empty((BATCH, *x.shape[1:]), dtype=x.dtype)
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        target[: len(part)].copy_(part)
    return len(x)


def _tensordict(x: torch.Tensor, y: torch.Tensor) -> dict[str, Side]:
    try:
        tensordict: Any = importlib.import_module("tensordict")
    except ImportError:
        return {}
    table = tensordict.TensorDict({"x": x, "y": y}, batch_size=[len(x)])

    def side() -> int:
        order = torch.randperm(len(x))
        return sum(len(table[order[start : start + BATCH]]["y"]) for start in range(0, len(x), BATCH))

    return {"tensordict": side}
