"""A program that loads files of 120 MB with 40 MB to spare: ``larger_than_limit.py FOLDER``; a test runs it."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import numpy as np

import ndtorch as nd

MB = 1 << 20
CHUNK = 2 * MB
NBYTES = 120 * MB
SPARE = 40 * MB


def write(kind: str, folder: Path) -> Path:
    row = 64 << 10 if kind == "read npy" else 4 << 10
    shape, per = (NBYTES // row, row), CHUNK // row
    if kind.endswith(("npy", "dask")):
        target = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, shape)
        path = folder / "x.npy"
    elif kind == "h5":
        import h5py

        file = h5py.File(folder / "x.h5", "w")
        target, path = file.create_dataset("x", shape, np.uint8, chunks=(per, row)), folder / "x.h5"
    else:
        import zarr

        target, path = (
            zarr.create_array(folder / "x.zarr", shape=shape, chunks=(per, row), dtype="u1"),
            folder / "x.zarr",
        )
    for start in range(0, shape[0], per):
        target[start : start + per] = 1 + start // per
    if kind == "h5":
        file.close()
    return path


def memory_used() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) << 10


def lazily(path: Path) -> object:
    import dask.array

    rows = np.load(path, mmap_mode="r")
    return dask.array.from_array(rows, chunks=(CHUNK // rows.shape[1], rows.shape[1])).map_blocks(np.array)


def load(kind: str, path: Path) -> None:
    array = lazily(path) if kind == "dask" else next(iter(nd.read(path).values()))
    limit = memory_used() + SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        nd.to_numpy(array)
        sys.exit("the limit limits nothing")
    except MemoryError:
        pass
    found = sum(int(batch[:, 0].sum()) for batch in nd.Loader(array, 16, threads=2))
    chunks, per = NBYTES // CHUNK, CHUNK // array.shape[1]
    assert found == per * chunks * (chunks + 1) // 2, found
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(f"{kind}: {NBYTES // MB} MB within {SPARE // MB} MB")


def main(folder: Path) -> None:
    list(nd.Loader(np.zeros((8, 8)), 2))  # what is imported and started once
    threading.stack_size(MB)
    for kind in ("mapped npy", "read npy", "h5", "zarr", "dask"):
        (folder / kind).mkdir()
        load(kind, write(kind, folder / kind))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
