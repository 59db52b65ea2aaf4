"""Batches on a CUDA device: against the bandwidth of a pinned copy, beside a model's step, against DataLoader.

``python benchmarks/cuda_loader.py [--samples N]`` prints a table for each size of rows, or says that there is no such
device. Runs of all loaders alternate, and each figure is a median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import ndtorch as nd

Step = Callable[[torch.Tensor], Any]


class Rows(Dataset[torch.Tensor]):
    """The fastest Dataset there is: a batch is one indexing."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.data[i]

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        return self.data[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1 << 16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("cuda_loader: no CUDA device here, nothing is measured")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    for shape, batch_size in (((3, 64, 64), 256), ((28, 28), 256), ((3, 224, 224), 256)):
        count = min(arguments.samples, (1 << 31) // (4 * int(np.prod(shape))))
        data = np.random.default_rng(0).random((count, *shape), dtype=np.float32)
        print(f"{count} x {'x'.join(map(str, shape))} float32, batches of {batch_size}")
        measure(data, batch_size, arguments.rounds, torch.device("cuda"))


def measure(data: Any, batch_size: int, rounds: int, device: torch.device) -> None:
    tensor = torch.from_numpy(data)
    options: dict[str, Any] = {"collate_fn": lambda batch: batch, "shuffle": True, "pin_memory": True}
    epochs: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
        "one pinned batch, copied again and again": lambda: pinned_copies(tensor, batch_size, device),
        "Loader(device='cuda')": lambda: nd.Loader(data, batch_size, shuffle=True, device=device),
        "Loader, then batch.to('cuda')": lambda: sent(nd.Loader(data, batch_size, shuffle=True), device),
        "DataLoader, __getitems__, pinned": lambda: sent(DataLoader(Rows(tensor), batch_size, **options), device),
        "the same, 4 workers": lambda: sent(DataLoader(Rows(tensor), batch_size, num_workers=4, **options), device),
    }
    step = model_step(data.shape[1:], device)
    alone = seconds(lambda: (tensor[:batch_size].to(device) for _ in range(1)), step, repeat=len(data) // batch_size)
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds + 1):
        for name, epoch in epochs.items():
            times.setdefault((name, False), []).append(seconds(epoch, None))
            times.setdefault((name, True), []).append(seconds(epoch, step))
    median = {key: statistics.median(each[1:]) for key, each in times.items()}  # the first round warms up
    limit = median[next(iter(epochs)), False]
    print(f"  {'':42}{'GB/s':>8}{'of pinned':>11}{'with a step':>13}{'of the longer':>15}")
    for name in epochs:
        loaded, together = median[name, False], median[name, True]
        longer = max(loaded, alone)  # what perfect overlap takes
        rate = data.nbytes / loaded / 1e9
        print(f"  {name:42}{rate:8.2f}{limit / loaded:11.2f}{together:11.3f} s{longer / together:15.2f}")
    print(f"  {'the steps alone':42}{'':19}{alone:11.3f} s\n")


def pinned_copies(data: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    batch = data[:batch_size].pin_memory()
    for _ in range(-(-len(data) // batch_size)):
        yield batch.to(device, non_blocking=True)


def sent(batches: Iterable[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    return (batch.to(device, non_blocking=True) for batch in batches)


def model_step(shape: tuple[int, ...], device: torch.device) -> Step:
    """Some layers, as a model would have them."""
    first = torch.randn(int(np.prod(shape)), 1024, device=device)
    other = torch.randn(1024, 1024, device=device)

    def step(batch: torch.Tensor) -> None:
        hidden = batch.flatten(1) @ first
        for _ in range(8):
            hidden = torch.relu(hidden) @ other

    return step


def seconds(epoch: Callable[[], Iterable[torch.Tensor]], step: Step | None, repeat: int = 1) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for batch in epoch():
        for _ in range(repeat if step else 0):
            step(batch)  # type: ignore[misc]
    torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
