"""Measure ndtorch beside its peers: all sides take turns in one process, and medians are compared."""

from __future__ import annotations

import importlib
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._convert import to_numpy, to_torch
from ._images import image_to_numpy, image_to_torch
from ._read import read
from ._stack import stack
from ._write import convert_file, write

Side = Callable[[], object]

LIMIT = "limit"
"""Name of the side that is no peer: two threads of torch copying into huge pages that NumPy asked for."""

DISK = "write + fsync"
"""Name of the side that is no peer either: memory written to a file and the disk, the limit of what is durable."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LONG_ROUND = 10.0  # seconds after which one look has to do
_LEAST_ROUND = 2e-3  # seconds that one side's turn takes at least: shorter ones measure the clock


@dataclass(frozen=True)
class Work:
    """One thing to do, by us and by others.

    Attributes:
        name: What is done, such as ``to_torch(256 MB, copy=True)``.
        nbytes: Bytes of input.
        ours: How ndtorch does it.
        peers: How others do it, by name.
        reach: The ratio to a peer, ours over theirs, that is aimed at.
    """

    name: str
    nbytes: int
    ours: Side
    peers: Mapping[str, Side]
    reach: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What was measured of one work: median seconds per call.

    Attributes:
        work: Name of the work.
        nbytes: Bytes of input.
        ours: Seconds of ndtorch.
        peers: Seconds of the others, by name.
        reach: The ratio to a peer that is aimed at.
    """

    work: str
    nbytes: int
    ours: float
    peers: Mapping[str, float]
    reach: Mapping[str, float]

    def ratio(self, peer: str) -> float:
        """Our time over a peer's: below 1 is faster."""
        return self.ours / self.peers[peer]

    @property
    def best_peer(self) -> str:
        """The fastest of the others; the limits are none of them."""
        return min((name for name in self.peers if name not in (LIMIT, DISK)), key=lambda name: self.peers[name])


def measure(work: Work, *, seconds: float = 3.0, rounds: int = 31, least: float = _LEAST_ROUND) -> Row:
    """Let all sides take turns while ``seconds`` last, at most ``rounds`` times; results die within their turn.

    A turn takes ``least`` seconds at least.
    """
    sides = {"": work.ours, **work.peers}
    single = {}
    for name, side in sides.items():
        side()
        start = time.perf_counter()
        side()
        single[name] = time.perf_counter() - start
    calls = {name: max(1, math.ceil(least / max(once, 1e-9))) for name, once in single.items()}
    per_round = sum(calls[name] * once for name, once in single.items())
    times: dict[str, list[float]] = {name: [] for name in sides}
    least = 3 if per_round < _LONG_ROUND else 1
    for _ in range(max(least, min(rounds, int(seconds / per_round)))):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                side()
            times[name].append((time.perf_counter() - start) / calls[name])
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    ours = medians.pop("")
    return Row(work.name, work.nbytes, ours, medians, work.reach)


def machine() -> str:
    """Name the machine and the versions that figures are good for."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        pages = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        huge = f"huge pages {pages.partition('[')[2].partition(']')[0]}, "
    except (OSError, StopIteration):
        huge = ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {huge}Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {np.__version__}"
    )


# --- the work


def calls() -> Iterator[Work]:
    """What one call costs, whatever it carries."""
    array, tensor = np.zeros(4, np.float32), torch.zeros(4)
    arrays = [np.zeros(4, np.float32) for _ in range(1000)]
    from_numpy, numpy = torch.from_numpy, torch.Tensor.numpy
    small = np.zeros(16)
    yield Work(
        "to_torch(small)",
        16,
        lambda: to_torch(array),
        {"torch.from_numpy": lambda: from_numpy(array)},
        {"torch.from_numpy": 0.85},
    )
    yield Work(
        "to_numpy(small)", 16, lambda: to_numpy(tensor), {"Tensor.numpy": lambda: numpy(tensor)}, {"Tensor.numpy": 0.25}
    )
    yield Work(
        "to_torch([1000 small])",
        16_000,
        lambda: to_torch(arrays),
        {"[torch.from_numpy(a) ...]": lambda: [from_numpy(a) for a in arrays]},
        {"[torch.from_numpy(a) ...]": 0.85},
    )
    tree = [{"image": a, "label": b, "box": (c, d)} for a, b, c, d in zip(*[iter(arrays * 10)] * 4, strict=True)]
    leaves = arrays * 10
    yield Work(
        "to_torch(10,000 leaves in a tree)",
        160_000,
        lambda: to_torch(tree),
        {
            "[torch.from_numpy(a) ...]": lambda: [from_numpy(a) for a in leaves],
            "[to_torch(a) ...]": lambda: [to_torch(a) for a in leaves],
        },
        {"[torch.from_numpy(a) ...]": 1.5, "[to_torch(a) ...]": 1.5},
    )
    yield Work("copy of 128 B", 128, *_copy(small), {"torch.tensor": 0.5})


def copies(nbytes: int) -> Iterator[Work]:
    """Copies of so many bytes of float64."""
    size = f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes} B"
    a = _numbers(nbytes // 8)
    t = torch.from_numpy(a)
    reach = {"torch.tensor": 0.35, LIMIT: 1.15} if nbytes > 1 << 22 else {"torch.tensor": 1.0}
    yield Work(f"copy of {size}", nbytes, *_copy(a), reach)
    yield Work(
        f"float64 to float32, {size}",
        nbytes,
        lambda: to_torch(a, dtype=torch.float32),
        {
            "torch.tensor": lambda: torch.tensor(a, dtype=torch.float32),
            "Tensor.to": lambda: t.to(torch.float32),
            LIMIT: lambda: torch.from_numpy(np.empty(a.shape, np.float32)).copy_(t),
        },
        {"torch.tensor": 0.40} if nbytes > 1 << 22 else {},
    )


def layouts(nbytes: int) -> Iterator[Work]:
    """Copies of what torch cannot describe, or can but slowly."""
    size = f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes} B"
    a = _numbers(nbytes // 8)
    reversed_ = a[::-1]
    name = "torch.from_numpy(np.ascontiguousarray)"
    yield Work(
        f"negative strides, {size}",
        nbytes,
        lambda: to_torch(reversed_),
        {name: lambda: torch.from_numpy(np.ascontiguousarray(reversed_))},
        {name: 0.60},
    )
    swapped = a.astype(">f8")
    yield Work(
        f"byte-swapped, {size}",
        nbytes,
        lambda: to_torch(swapped),
        {"torch.from_numpy(a.astype)": lambda: torch.from_numpy(swapped.astype(np.float64))},
        {"torch.from_numpy(a.astype)": 0.60},
    )
    rows = 1 << int(math.log2(a.size)) // 2
    turned = a.reshape(rows, -1).T
    yield Work(
        f"transposed, {size}",
        nbytes,
        lambda: to_torch(turned, copy=True),
        {
            "torch.from_numpy(a).contiguous()": lambda: torch.from_numpy(turned).contiguous(),
            "np.ascontiguousarray": lambda: torch.from_numpy(np.ascontiguousarray(turned)),
        },
        {"torch.from_numpy(a).contiguous()": 0.40},
    )


def exact_casts(nbytes: int) -> Iterator[Work]:
    """What the proof costs that every value survived."""
    size = f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes} B"
    whole = np.arange(nbytes // 8) % (1 << 20)
    for source, target in (("float64", "float32"), ("int64", "int32"), ("float64", "int32")):
        a = whole.astype(source)
        yield Work(
            f"casting='exact', {source} to {target}, {size}",
            nbytes,
            lambda a=a, target=target: to_torch(a, dtype=target, casting="exact"),  # type: ignore[misc]
            {"unchecked": lambda a=a, target=target: to_torch(a, dtype=target, casting="unsafe")},  # type: ignore[misc]
            {"unchecked": 1.25},
        )


def stacks(count: int, shape: tuple[int, ...]) -> Iterator[Work]:
    """Many arrays into one tensor."""
    arrays = [_numbers(math.prod(shape), seed).astype(np.float32).reshape(shape) for seed in range(count)]
    tensors = [torch.from_numpy(a) for a in arrays]
    nbytes = count * arrays[0].nbytes
    name = f"stack of {count} x {'x'.join(map(str, shape))}"
    yield Work(
        name,
        nbytes,
        lambda: stack(arrays),
        {"torch.stack": lambda: torch.stack(tensors), "np.stack": lambda: torch.from_numpy(np.stack(arrays))},
        {"torch.stack": 0.40, "np.stack": 0.80},
    )
    peer = "torch.tensor(list)"
    yield Work(
        f"{name}, the slow way", nbytes, lambda: stack(arrays), {peer: lambda: torch.tensor(arrays)}, {peer: 0.01}
    )


def pictures(shape: tuple[int, ...], reach: float, reach_back: float | None) -> Iterator[Work]:
    """Pixels scaled and normalised, and the way back."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    to_planes, to_pixels = ((2, 0, 1), (1, 2, 0)) if len(shape) == 3 else ((0, 3, 1, 2), (0, 2, 3, 1))

    def chain() -> torch.Tensor:
        planes = torch.from_numpy(pixels).permute(to_planes).contiguous()
        return planes.float().div(255).sub(mean).div(std)

    def back() -> np.ndarray[Any, Any]:
        shown = planes.mul(std).add(mean).clamp(0, 1).mul(255).byte()
        return shown.permute(to_pixels).contiguous().numpy()

    name = "x".join(map(str, shape))
    yield Work(
        f"image_to_torch, {name}",
        pixels.nbytes,
        lambda: image_to_torch(pixels, mean=MEAN, std=STD),
        {"torch chain": chain, **_vision_peers(pixels, to_planes)},
        {"torch chain": reach},
    )
    planes = chain()
    yield Work(
        f"image_to_numpy, {name}",
        pixels.nbytes,
        lambda: image_to_numpy(planes, mean=MEAN, std=STD),
        {"torch chain": back},
        {} if reach_back is None else {"torch chain": reach_back},
    )


def reads(nbytes: int, folder: Path) -> Iterator[Work]:
    """A file of one array into a tensor; the page cache has it."""
    size = f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes} B"
    a = _numbers(nbytes // 8)
    npy, npz, pt, safetensors = (folder / f"x{suffix}" for suffix in (".npy", ".npz", ".pt", ".safetensors"))
    np.save(npy, a)
    np.savez(npz, x=a)
    torch.save({"x": torch.from_numpy(a)}, pt)
    write(safetensors, {"x": a}, overwrite=True)
    stored = _safetensors("torch")
    peers = (
        {} if stored is None else {"safetensors load_file + clone": lambda: stored.load_file(safetensors)["x"].clone()}
    )
    peers["torch.load(mmap) + clone"] = lambda: torch.load(pt, mmap=True)["x"].clone()
    reach = dict.fromkeys(peers, 0.35)
    peers["np.load"] = lambda: torch.from_numpy(np.load(npy))
    peers[LIMIT] = lambda: torch.from_numpy(np.empty_like(a)).copy_(torch.from_numpy(a))
    yield Work(f"npy to tensor, {size}", nbytes, lambda: to_torch(read(npy)["x"]), peers, reach)
    peer = "np.load(f)[k]"
    yield Work(
        f"npz to tensor, {size}",
        nbytes,
        lambda: to_torch(read(npz)["x"]),
        {peer: lambda: torch.from_numpy(np.load(npz)["x"])},
        {peer: 0.35},
    )


def small_files(count: int, folder: Path) -> Iterator[Work]:
    """Very many files of 12 KB into one tensor."""
    each = _numbers(3000).astype(np.float32)
    paths = [folder / f"{i:05}.npy" for i in range(count)]
    for path in paths:
        np.save(path, each)
    peer = "np.stack(np.load each)"
    yield Work(
        f"{count} npy of 12 KB to one tensor",
        count * each.nbytes,
        lambda: stack(read(folder).values()),
        {peer: lambda: torch.from_numpy(np.stack([np.load(path) for path in paths]))},
        {peer: 0.30},
    )


def writes(nbytes: int, folder: Path) -> Iterator[Work]:
    """An .npy file into a .safetensors file. Ours is on the disk when it says so; some of the peers do not wait."""
    numpy = _safetensors("numpy")
    size = f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes} B"
    rows = max(math.isqrt(nbytes // 8) // 4, 1)
    a = _numbers(nbytes // 8)[: nbytes // 8 // rows * rows].reshape(rows, -1)
    plain, columns = folder / "x.npy", folder / "columns.npy"
    np.save(plain, a)
    np.save(columns, np.asfortranarray(a))
    ours, theirs = folder / "ours.safetensors", folder / "theirs.safetensors"

    def work(name: str, source: Path, prepared: Callable[[Any], Any], reach: float | None, **options: Any) -> Work:
        def save(*, synced: bool) -> None:
            numpy.save_file({"x": prepared(np.load(source))}, theirs)
            _finished(theirs, synced=synced)

        def convert() -> None:
            convert_file(source, ours, name="x", **options)
            _finished(ours, synced=False)

        def floor() -> None:
            theirs.write_bytes(memoryview(prepared(a)).cast("B"))
            _finished(theirs, synced=True)

        peers: dict[str, Side] = {DISK: floor}
        if numpy is not None:
            peers |= {"np.load + save_file": lambda: save(synced=False)}
            peers |= {"np.load + save_file + fsync": lambda: save(synced=True)}
        return Work(name, nbytes, convert, peers, {} if reach is None else {"np.load + save_file": reach})

    yield work(f"npy to safetensors, {size}", plain, np.asarray, 0.5)
    yield work(f"columns npy to safetensors, {size}", columns, np.ascontiguousarray, None)
    yield work(f"npy to float32 safetensors, {size}", plain, lambda x: x.astype(np.float32), None, dtype="float32")


def _finished(path: Path, *, synced: bool) -> None:
    """Remove a file: what is still to be written of it would slow down the next turn, which is another side's."""
    if synced:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    path.unlink()


def _safetensors(module: str) -> Any:
    try:
        return importlib.import_module(f"safetensors.{module}")
    except ImportError:
        return None


def _copy(a: np.ndarray[Any, Any]) -> tuple[Side, dict[str, Side]]:
    t = torch.from_numpy(a)
    return lambda: to_torch(a, copy=True), {
        "torch.tensor": lambda: torch.tensor(a),
        "torch.from_numpy(a.copy())": lambda: torch.from_numpy(a.copy()),
        "from_numpy(a).clone()": lambda: torch.from_numpy(a).clone(),
        LIMIT: lambda: torch.from_numpy(np.empty_like(a)).copy_(t),
    }


def _numbers(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(max(count, 1))


def _vision_peers(pixels: np.ndarray[Any, Any], to_planes: tuple[int, ...]) -> dict[str, Side]:
    """The chains of torchvision and kornia, where they are installed."""
    peers: dict[str, Side] = {}
    try:
        vision: Any = importlib.import_module("torchvision.transforms.v2.functional")
    except (ImportError, RuntimeError, OSError):  # built for another torch, it raises RuntimeError
        pass
    else:

        def torchvision_chain() -> object:
            planes = torch.from_numpy(pixels).permute(to_planes).contiguous()
            return vision.normalize(vision.to_dtype(planes, torch.float32, scale=True), MEAN, STD)

        peers["torchvision"] = torchvision_chain
    try:
        kornia: Any = importlib.import_module("kornia")
    except (ImportError, RuntimeError, OSError):
        return peers
    batch = pixels if pixels.ndim == 4 else pixels[None]
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def kornia_chain() -> object:
        planes = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
        return kornia.enhance.normalize(planes.float() / 255, mean, std)

    peers["kornia"] = kornia_chain
    return peers


# --- runs


def table(*, short: bool = False) -> Iterator[Row]:
    """Measure every row of the table; the short form takes smaller sizes and half a minute."""
    large = 1 << (24 if short else 28)
    budget = 0.6 if short else 6.0
    count = 16 if short else 256
    for works in (
        calls(),
        copies(1 << 20),
        copies(large),
        layouts(large),
        exact_casts(large),
        stacks(count, (3, 224, 224)),
        pictures((count // 4, 512, 512, 3), 0.12, 0.10),
        pictures((512, 512, 3), 0.30, None),
        pictures((32, 32, 3), 0.40, None),
    ):
        for work in works:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch has something to say about lists of arrays
                yield measure(work, seconds=budget)
    yield from file_table(short=short)


def file_table(*, short: bool = False) -> Iterator[Row]:
    """Measure the rows of files, in a folder of their own; the page cache has what is read."""
    large = 1 << (24 if short else 29)
    with tempfile.TemporaryDirectory() as place:
        for name, works in (("reads", reads), ("small", small_files), ("writes", writes)):
            folder = Path(place, name)
            folder.mkdir()
            size = large if name != "small" else 100 if short else 4000
            for work in works(size, folder):
                yield measure(work, seconds=0.6 if short else 12.0)
            shutil.rmtree(folder)


def growth(nbytes: int, *, seconds: float = 3.0) -> Iterator[Row]:
    """Measure the rows that grow with their input, at one size; names stay the same from size to size."""
    side = max(1, math.isqrt(nbytes // 3))
    each = max(8, min(nbytes // 16, 1 << 22))
    yield from _labelled(("copy", "float64 to float32"), copies(nbytes), nbytes, seconds)
    yield from _labelled(("negative strides", "byte-swapped", "transposed"), layouts(nbytes), nbytes, seconds)
    yield from _labelled(("stack",), stacks(max(2, nbytes // each), (each // 4,)), nbytes, seconds)
    yield from _labelled(("image_to_torch", "image_to_numpy"), pictures((side, side, 3), 0.3, None), nbytes, seconds)


def _labelled(labels: tuple[str, ...], works: Iterator[Work], nbytes: int, seconds: float) -> Iterator[Row]:
    """Measure works under other names; their arrays die with this frame, before the next ones are made."""
    for label, work in zip(labels, works, strict=False):
        peers = {peer: call for peer, call in work.peers.items() if peer != LIMIT}
        yield measure(Work(label, nbytes, work.ours, peers), seconds=seconds, rounds=15)


def import_seconds() -> float:
    """Seconds that ``import ndtorch`` takes beyond torch and NumPy, in fresh interpreters."""
    code = "import numpy, torch, time; t = time.perf_counter(); import ndtorch; print(time.perf_counter() - t)"
    run = [sys.executable, "-c", code]
    return statistics.median(float(subprocess.check_output(run, text=True)) for _ in range(5))


CONVERSIONS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "npy to safetensors": ("C", ".safetensors", {}),
    "npy to float32 safetensors": ("C", ".safetensors", {"dtype": "float32"}),
    "npy to npz": ("C", ".npz", {}),
    "columns npy to safetensors": ("F", ".safetensors", {}),
}
"""Conversions of which the peak memory is measured: order of the source, suffix of the target, options."""

_PEAK = """
import sys, ndtorch
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
source, target, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
convert_file = ndtorch.convert_file
before = peak()
convert_file(source, target, **options)
print(peak() - before)
"""


def peak_bytes(name: str, nbytes: int) -> int | None:
    """Memory that converting so large a file takes beyond ndtorch and torch; ``None`` where the disk is too full."""
    order, suffix, options = CONVERSIONS[name]
    with tempfile.TemporaryDirectory() as place:
        if shutil.disk_usage(place).free < 2.5 * nbytes:
            return None
        source, target = Path(place, "x.npy"), Path(place, f"y{suffix}")
        shape = (1024, nbytes // 8 // 1024)
        with source.open("wb") as file:  # zeros that take no room
            claims = {"descr": "<f8", "fortran_order": order == "F", "shape": shape}
            np.lib.format.write_array_header_1_0(file, claims)
            file.truncate(file.tell() + nbytes)
        run = [sys.executable, "-c", _PEAK, str(source), str(target), repr(options)]
        return int(subprocess.check_output(run, text=True))
