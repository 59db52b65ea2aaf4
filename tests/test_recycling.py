"""Memory of batches comes back when nobody holds it, and never before: by ownership, not by hope.

With ``NDTORCH_FAST=0`` batches are NumPy's memory and no block comes back; what holds for the caller is the same.
"""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ndtorch as nd
from ndtorch import _bridge, _native
from ndtorch._dtypes import BY_NAME

IS_FAST = os.environ.get("NDTORCH_FAST") != "0"
only_fast = pytest.mark.skipif(not IS_FAST, reason="without the native bridge no block comes back")
BLOCK = 1 << 18  # bytes: large enough to be worth keeping
ROW = BY_NAME["uint8"]


def fresh(blocks: _native.Blocks, nbytes: int = BLOCK) -> torch.Tensor:
    tensor, _ = _bridge.fresh((nbytes,), ROW, blocks)
    return tensor


def source(rows: int = 640, width: int = 2048) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, width), np.uint8)


def alone(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# ---- what the caller keeps ----


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_batch_that_is_kept_is_never_overwritten(threads: int) -> None:
    x, y = source(), np.arange(640)
    loader = nd.Loader((x, y), batch_size=64, shuffle=True, threads=threads)
    kept: list[tuple[Any, np.ndarray]] = []
    for epoch in range(4):
        for number, (images, labels) in enumerate(loader):
            rows = labels.numpy().copy()
            ways = (
                lambda images=images: images,
                lambda images=images: images.numpy(),
                lambda images=images: images[5:6, 100:200],
                lambda images=images: images.numpy()[::-1],
                lambda images=images: memoryview(images.numpy()),
            )
            if number % 2 == 0 or epoch == 3:
                kept.append((ways[len(kept) % len(ways)](), rows))
        gc.collect()
    for at, (thing, rows) in enumerate(kept):
        expected = (x[rows], x[rows], x[rows][5:6, 100:200], x[rows][::-1], x[rows])[at % 5]
        assert (np.asarray(thing) == expected).all(), f"kept thing {at}"


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_of_one_epoch_share_no_memory(threads: int) -> None:
    batches = list(nd.Loader(source(256), batch_size=64, threads=threads))
    starts = sorted(batch.data_ptr() for batch in batches)
    assert all(other - start >= batches[0].nbytes for start, other in pairwise(starts))


def test_a_batch_outlives_its_loader() -> None:
    x = source()
    loader = nd.Loader(x, batch_size=64, threads=0)
    iterator = iter(loader)
    batch = next(iterator)
    del loader, iterator
    gc.collect()
    assert (batch.numpy() == x[:64]).all()


def test_a_batch_in_shared_memory_and_an_array_over_its_old_memory_stay() -> None:
    x = source()
    loader = nd.Loader(x, batch_size=64, threads=0)
    iterator = iter(loader)
    batch = next(iterator)
    array = nd.to_numpy(batch)
    batch.share_memory_()
    for _ in iterator:
        pass
    for _ in loader:
        pass
    assert (batch.numpy() == x[:64]).all()
    if IS_FAST:
        assert (array == x[:64]).all()


# ---- blocks ----


@only_fast
def test_a_block_comes_back_when_its_tensor_dies() -> None:
    blocks = _native.Blocks(1 << 24)
    tensor = fresh(blocks)
    address = tensor.data_ptr()
    assert blocks.idle_bytes == 0
    del tensor
    assert blocks.idle_bytes == BLOCK
    assert fresh(blocks).data_ptr() == address
    assert fresh(blocks, BLOCK - 1000).data_ptr() == address, "the last batch of an epoch is smaller"
    assert fresh(blocks, BLOCK // 2).data_ptr() != address, "half of it would be held and not used"


@only_fast
@pytest.mark.parametrize(
    "holder",
    [
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor[7:9],
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: nd.to_numpy(tensor)[::2],
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: torch.utils.dlpack.to_dlpack(tensor),
    ],
)
def test_a_block_stays_while_anybody_holds_it(holder: Any) -> None:
    blocks = _native.Blocks(1 << 24)
    tensor = fresh(blocks)
    held = holder(tensor)
    del tensor
    gc.collect()
    assert blocks.idle_bytes == 0
    del held
    gc.collect()
    assert blocks.idle_bytes == BLOCK


@only_fast
def test_idle_blocks_have_a_limit_and_the_oldest_goes_first() -> None:
    blocks = _native.Blocks(3 * BLOCK)
    tensors = [fresh(blocks) for _ in range(5)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    while tensors:
        tensors.pop(0)
    assert blocks.idle_bytes == 3 * BLOCK
    again = [fresh(blocks) for _ in range(3)]
    assert sorted(tensor.data_ptr() for tensor in again) == sorted(addresses[2:])
    large = fresh(blocks, 4 * BLOCK)
    del again
    del large
    assert blocks.idle_bytes == 3 * BLOCK, "what exceeds the limit alone is freed"


@only_fast
def test_small_blocks_are_left_to_malloc() -> None:
    blocks = _native.Blocks(1 << 24)
    fresh(blocks, 1000)
    assert blocks.idle_bytes == 0


@only_fast
def test_a_block_that_outlives_its_home_is_freed() -> None:
    blocks = _native.Blocks(1 << 24)
    kept, other = fresh(blocks), fresh(blocks)
    kept.fill_(7)
    del other, blocks
    assert int(kept.sum(dtype=torch.int64)) == 7 * BLOCK
    del kept


@only_fast
def test_blocks_come_back_from_many_threads_at_once() -> None:
    blocks = _native.Blocks(1 << 24)
    faults: list[int] = []

    def work(number: int) -> None:
        held: list[torch.Tensor] = []
        for turn in range(300):
            tensor = fresh(blocks)
            tensor.fill_(number)
            held.append(tensor)
            if turn % 3 == 2:
                faults.extend(number for tensor in held if not bool((tensor == number).all()))
                held.clear()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert blocks.idle_bytes <= 1 << 24


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_goes_on_with_memory_of_its_own() -> None:
    code = """
import os, sys, warnings
import numpy as np, torch, ndtorch as nd
warnings.simplefilter("ignore", DeprecationWarning)
x = np.random.default_rng(1).integers(0, 256, (640, 2048), np.uint8)
loader = nd.Loader((x, np.arange(640)), batch_size=64, shuffle=True, threads=0)
kept = [batch for batch in loader]
before = [batch[0].numpy().copy() for batch in kept]
child = os.fork()
del kept[::2]
for _ in range(3):
    for images, labels in loader:
        assert (images.numpy() == x[labels.numpy()]).all()
        images.zero_()
assert all((batch[0].numpy() == old).all() for batch, old in zip(kept, before[1::2]))
if child == 0:
    sys.stdout.flush()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("both are well")
"""
    assert alone(code) == "both are well"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is told by /proc alone")
@pytest.mark.parametrize("threads", [0, 2])
def test_resident_memory_does_not_grow_with_epochs(threads: int) -> None:
    code = f"""
import os, pathlib
import numpy as np, ndtorch as nd
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
x = np.zeros((512, 1 << 14), np.uint8)
loader = nd.Loader((x, np.arange(512)), batch_size=96, shuffle=True, threads={threads})
def epochs(count):
    for _ in range(count):
        for batch in loader:
            pass
epochs(20)
before = resident()
epochs(150)
print(resident() - before)
"""
    # What is freed goes back to the system at once: what malloc keeps of it for each thread is not ours.
    grown = int(alone(code, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"))
    assert grown < 8 << 20, "an epoch moves 8 MB, all of them together 1.2 GB"


def test_a_loader_keeps_blocks_for_its_next_epoch_and_copies_of_it_have_their_own() -> None:
    loader = nd.Loader(source(), batch_size=64, threads=0)
    for _ in loader:
        pass
    assert (loader._placement.blocks.idle_bytes > 0) == IS_FAST
    other = copy.deepcopy(loader)
    assert other._placement.blocks is not loader._placement.blocks
