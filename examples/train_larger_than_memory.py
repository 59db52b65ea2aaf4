"""Train on more data than this process may have in memory.

``python examples/train_larger_than_memory.py [FOLDER] [SAMPLES] [MEGABYTES]`` writes SAMPLES pictures to FOLDER, or to
one that it removes again, has the system refuse this process more than MEGABYTES above what it has at the start, shows
that the data does not fit, and trains on it all the same: `ndtorch.Loader` reads the rows of each batch, and no more.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import ndtorch as nd

CLASSES = 10
SHAPE = (3, 32, 32)
BATCH = 256
EPOCHS = 2


def main(folder: Path, samples: int, megabytes: int) -> None:
    write_pictures(folder, samples)
    arrays = nd.read(folder)  # x.npy and y.npy, of which nothing is read yet
    nbytes = sum(array.nbytes for array in arrays.values())
    print(f"{folder.name}: {', '.join(f'{name} {array.stored}' for name, array in arrays.items())}")

    torch.set_num_threads(1)  # for so small a model more would only wait for each other
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(SHAPE)), CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    train_step(
        model, optimizer, torch.zeros(BATCH, *SHAPE), torch.zeros(BATCH, dtype=torch.int64)
    )  # torch's own memory

    used = memory_used()
    limit = used + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    print(f"the data has {nbytes >> 20} MB, and this process may take {megabytes} MB more than it has")
    try:
        nd.to_numpy(arrays)
        raise SystemExit("the data fits: give fewer MEGABYTES or more SAMPLES")
    except MemoryError:
        print("to read it whole is a MemoryError")

    peak, begin = 0, time.perf_counter()
    loader = nd.Loader(arrays, BATCH, shuffle=True)
    for epoch in range(EPOCHS):
        for batch in loader:
            loss = train_step(model, optimizer, batch["x"].float() / 255, batch["y"])
            peak = max(peak, memory_used() - used)
        print(f"epoch {epoch}: loss {loss:.3f}")
    seconds = time.perf_counter() - begin

    print(f"accuracy on other pictures: {accuracy(model):.1%}")
    print(f"took {peak / 2**20:.0f} of {megabytes} MB, {EPOCHS * samples / seconds:,.0f} samples/s")


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, pictures: torch.Tensor, labels: torch.Tensor
) -> float:
    loss = torch.nn.functional.cross_entropy(model(pictures), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def accuracy(model: torch.nn.Module) -> float:
    hits = []
    for pictures, labels in pictures_of(2_000, seed=1):
        with torch.no_grad():
            found = model(nd.to_torch(pictures, dtype="float32") / 255).argmax(1)
        hits.append(found == nd.to_torch(labels))
    return torch.cat(hits).float().mean().item()


def write_pictures(folder: Path, samples: int) -> None:
    """Write pictures and their labels, a block at a time."""
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (samples, *SHAPE))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (samples,))
    start = 0
    for pictures, labels in pictures_of(samples, seed=0):
        x[start : start + len(labels)], y[start : start + len(labels)] = pictures, labels
        start += len(labels)


def pictures_of(samples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Make noisy pictures of patterns, one pattern for each class, in blocks of a thousand."""
    patterns = np.random.default_rng(7).integers(0, 32, (CLASSES, *SHAPE), dtype=np.uint8)
    random = np.random.default_rng(seed)
    for start in range(0, samples, 1_000):
        labels = random.integers(0, CLASSES, min(1_000, samples - start))
        noise = random.integers(0, 224, (len(labels), *SHAPE), dtype=np.uint8)
        yield patterns[labels] + noise, labels


def memory_used() -> int:
    """Bytes of memory of its own that this process has: what RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) << 10


if __name__ == "__main__":
    samples, megabytes = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (80_000, 96)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        main(folder, samples, megabytes)
