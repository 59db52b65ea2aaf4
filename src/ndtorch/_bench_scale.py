"""What is measured of conversions of many files: the cost curve, beside a bare loop and the idioms of other engines.

All sides take turns, and a ratio is the median of those within each round. Folders of outputs are made and removed
between turns, unmeasured. Nobody syncs but ndtorch: where the files are on a disk, a bare loop that does is there too.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ._bench_tasks import Overhead, has, library, overheads
from .scale import convert_many
from .scale.units import UNIT_NBYTES

BARE, SYNCED = "bare loop", "bare loop + fsync"
RAY_DATA = "Ray Data, read_numpy"
WORKERS = (1, 2)
FEW = (BARE, "local", "ray", "dask.bag, threads", RAY_DATA)  # sides that the README names
_MEMORY = Path("/dev/shm")
_ROUNDS = 9
_SLOW, _SLOW_ROUNDS = 3.0, 2  # seconds of a turn from which on it is one of few
_STORE = 1 << 30  # bytes of Ray's object store; nothing large goes through it

Convert = Callable[[Path], object]
"""Converts all sources into a folder that is there and empty."""


@dataclass(frozen=True)
class Files:
    """Sources: equal ``.npy`` files.

    Attributes:
        folder: Where they are.
        paths: The files.
        rows: How many rows each has.
        nbytes: How long the elements of each are.
    """

    folder: Path
    paths: tuple[Path, ...]
    rows: int
    nbytes: int

    def __str__(self) -> str:
        large = self.nbytes >= 1 << 20
        return f"{len(self.paths):,} of {self.nbytes >> (20 if large else 10)} {'MiB' if large else 'KiB'}"


@dataclass(frozen=True)
class Cost:
    """What a side costs.

    Attributes:
        job: What is done.
        side: Who does it.
        workers: By how many.
        files: How many files are converted.
        nbytes: Bytes of their elements.
        seconds: Median of the rounds.
        ratio: Time over that of the bare loop in the same round, the median; 0 where there is none.
    """

    job: str
    side: str
    workers: int
    files: int
    nbytes: int
    seconds: float
    ratio: float


# --- sources


def made(folder: Path, count: int, nbytes: int) -> Files:
    """Write sources of float32 rows of 512 bytes, or of 4 KiB."""
    width = 128 if nbytes < 1 << 20 else 1024
    rows = max(nbytes // width // 4, 1)
    array = np.random.default_rng(0).random((rows, width), np.float32)
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{number:06d}.npy" for number in range(count))
    for number, path in enumerate(paths):
        array[0, 0] = number
        np.save(path, array)
    return Files(folder, paths, rows, array.nbytes)


def home(needed: int) -> Path:
    """Where there is room for so many bytes, and as many more, in memory, or else on a disk."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * needed:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _is_memory(folder: Path) -> bool:
    return _MEMORY.exists() and folder.stat().st_dev == _MEMORY.stat().st_dev


# --- how others do it


def convert_one(path: Path, target: Path, *, sync: bool = False) -> None:
    """What anybody would write for one file."""
    from safetensors.numpy import save_file

    place = target / f"{path.stem}.safetensors"
    save_file({path.stem: np.load(path)}, place)
    if sync:
        _sync(place)


def join_some(paths: Sequence[Path], place: Path) -> None:
    """What anybody would write for a shard of several files."""
    from safetensors.numpy import save_file

    save_file({"data": np.concatenate([np.load(path) for path in paths])}, place)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bare(files: Files, target: Path, *, sync: bool = False) -> None:
    for path in files.paths:
        convert_one(path, target, sync=sync)
    if sync:
        _sync(target)


def _bare_shards(files: Files, target: Path) -> None:
    step = max(UNIT_NBYTES // files.nbytes, 1)
    for start in range(0, len(files.paths), step):
        join_some(files.paths[start : start + step], target / f"{start:06d}.safetensors")


def _dask_bag(files: Files, workers: int, target: Path) -> None:
    bag = library("dask.bag")
    bag.from_sequence(files.paths).map(convert_one, target).compute(scheduler="threads", num_workers=workers)


def _dask_delayed(files: Files, workers: int, target: Path) -> None:
    dask = library("dask")
    tasks = [dask.delayed(convert_one)(path, target) for path in files.paths]
    dask.compute(*tasks, scheduler="threads", num_workers=workers)


def _ray_tasks(files: Files, target: Path) -> None:
    import ray

    task = ray.remote(convert_one)
    ray.get([task.remote(path, target) for path in files.paths])


def write_batch(batch: dict[str, Any], target: Path) -> dict[str, Any]:
    """What anybody would write for a batch of Ray Data: the rows of one file."""
    from safetensors.numpy import save_file

    place = target / f"{time.monotonic_ns():x}-{os.getpid()}.safetensors"
    save_file({"data": np.ascontiguousarray(batch["data"])}, place)
    return {"written": [str(place)]}


def _ray_data(files: Files, target: Path) -> None:
    rows = library("ray.data").read_numpy([str(path) for path in files.paths])
    rows.map_batches(write_batch, batch_size=files.rows, fn_kwargs={"target": target}).materialize()


def _convert_item(item: dict[str, Any], target: Path) -> dict[str, Any]:
    convert_one(Path(item["item"]), target)
    return item


def _ray_data_paths(files: Files, target: Path) -> None:
    paths = library("ray.data").from_items([str(path) for path in files.paths])
    paths.map(_convert_item, fn_kwargs={"target": target}).materialize()


def _ours(files: Files, engine: str, workers: int, shard_size: str | None, target: Path) -> None:
    convert_many(files.folder, target, engine=engine, workers=workers, shard_size=shard_size)


def sides(files: Files, workers: int, *, ray: bool, synced: bool = False) -> dict[str, Convert]:
    """Who converts each file into one of its own, the bare loop first; what is not installed is left out."""
    found: dict[str, Convert] = {BARE: partial(_bare, files)}
    if synced:
        found[SYNCED] = partial(_bare, files, sync=True)
    found["local"] = partial(_ours, files, "local", workers, None)
    found["processes"] = partial(_ours, files, "processes", workers, None)
    if has("dask"):
        found["dask.bag, threads"] = partial(_dask_bag, files, workers)
        found["dask.delayed, threads"] = partial(_dask_delayed, files, workers)
    if ray:
        found["ray"] = partial(_ours, files, "ray", workers, None)
        found["Ray Core, a task a file"] = partial(_ray_tasks, files)
        found[RAY_DATA] = partial(_ray_data, files)
        found["Ray Data, map over paths"] = partial(_ray_data_paths, files)
    return found


def shard_sides(files: Files, workers: int, *, ray: bool) -> dict[str, Convert]:
    """Who regroups the files into shards of 256 MB, the bare loop first."""
    found: dict[str, Convert] = {BARE: partial(_bare_shards, files)}
    for engine in ("local", "processes") + ("ray",) * ray:
        found[engine] = partial(_ours, files, engine, workers, "256MB")
    return found


# --- measuring


def measure(
    job: str, files: Files, sides: dict[str, Convert], workers: int, place: Path, rounds: int = _ROUNDS
) -> Iterator[Cost]:
    """Let all sides take turns, each into a new folder, and compare them with the first.

    One round more comes before, and does not count. Sides that were slow in it take part in two rounds alone.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            if number > _SLOW_ROUNDS and times[name][0] > _SLOW:
                continue
            target = place / "target"
            target.mkdir()
            begun = time.perf_counter()
            side(target)
            times[name].append(time.perf_counter() - begun)
            shutil.rmtree(target)
    first = next(iter(times.values()))[1:]
    for name, all_of_it in times.items():
        seconds = all_of_it[1:]
        ratio = statistics.median(one / other for one, other in zip(seconds, first, strict=False))
        count = len(files.paths)
        yield Cost(job, name, workers, count, count * files.nbytes, statistics.median(seconds), ratio)


def table(folder: Path | None = None, *, short: bool = False, few: bool = False) -> Iterator[Cost | Overhead | str]:
    """Measure everything, in a folder of its own; text says what is not in the figures.

    Args:
        folder: Where; else in memory, where there is room.
        short: Whether to convert a quarter of the files.
        few: Whether the sides that the README names take turns alone, with one worker and an output for each file.
    """
    quarter = 4 if short else 1
    sizes = ((4000 // quarter, 12 << 10), (64 // quarter, 32 << 20))
    base = folder or home(2 * sum(count * nbytes for count, nbytes in sizes))
    is_memory = _is_memory(base)
    yield f"files are {'in memory (tmpfs)' if is_memory else 'on a disk'}, {load()}"
    yield from (f"{name} is not installed: left out" for name in ("dask", "ray") if not has(name))
    with tempfile.TemporaryDirectory(prefix="ndtorch-bench-", dir=base) as name:
        place = Path(name)
        found = [made(place / f"{nbytes}", count, nbytes) for count, nbytes in sizes]
        for workers in WORKERS[:1] if few else WORKERS:
            with cluster(workers) as seconds:
                if seconds:
                    yield f"a Ray cluster of {workers} CPUs starts in {seconds:.1f} s, which is in none of the figures"
                for files in found:
                    each = sides(files, workers, ray=bool(seconds), synced=not is_memory)
                    if few:
                        each = {name: side for name, side in each.items() if name in FEW}
                    yield from measure(f"{files}, one each", files, each, workers, place)
                    if few:
                        continue
                    shards = shard_sides(files, workers, ray=bool(seconds))
                    yield from measure(f"{files}, shards of 256 MB", files, shards, workers, place)
                if not few:
                    yield from overheads(workers, ray=bool(seconds))
    yield load()


def load() -> str:
    """How busy the machine is, with this and with all else."""
    return "load of the machine: " + ", ".join(f"{each:.1f}" for each in os.getloadavg())


@contextmanager
def cluster(workers: int) -> Iterator[float]:
    """A Ray cluster on this machine, and how long it took to start; 0 where there is no Ray."""
    if not has("ray"):
        yield 0.0
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    begun = time.perf_counter()
    options: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=workers, object_store_memory=_STORE, **options)
    seconds = time.perf_counter() - begun
    try:
        _hush_ray_data()
        yield seconds
    finally:
        ray.shutdown()


def _hush_ray_data() -> None:
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)


# --- as text


def markdown(found: Iterable[Cost | Overhead | str]) -> str:
    """The tables: the cost curve, what a task costs, and the remarks under them."""
    found = list(found)
    lines = ["| files | who | workers | seconds | files/s | MB/s | of the bare loop |", f"{_RULE * 7}|"]
    for cost in (each for each in found if isinstance(each, Cost)):
        rates = f"{cost.files / cost.seconds:,.0f} | {cost.nbytes / cost.seconds / 1e6:,.0f}"
        lines.append(f"| {cost.job} | {cost.side} | {cost.workers} | {cost.seconds:.3f} | {rates} | {cost.ratio:.2f} |")
    lines += ["", "| a task that does nothing | workers | the first | each more |", f"{_RULE * 4}|"]
    for one in (each for each in found if isinstance(each, Overhead)):
        lines.append(f"| {one.side} | {one.workers} | {one.start * 1e3:.1f} ms | {one.each * 1e6:,.0f} µs |")
    return "\n".join([*lines, "", *(f"- {each}" for each in found if isinstance(each, str))])


_RULE = "| --- "
