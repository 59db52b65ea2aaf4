"""Convert the shipped digits to tensors, through every file format of two libraries and back, and verify every byte.

``python examples/convert_digits.py [FOLDER]`` writes its files to FOLDER, or to ``out``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import ndtorch as nd

DIGITS = Path(__file__).parent / "data" / "digits.npz"
Arrays = Mapping[str, np.ndarray[Any, Any]]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = load(DIGITS)
    np.save(folder / "images.npy", digits["images"])
    mapped = np.load(folder / "images.npy", mmap_mode="r")

    print(f"{DIGITS.name}: {', '.join(f'{name} {a.dtype}{list(a.shape)}' for name, a in digits.items())}\n")
    print_table(("call", "memory", "bytes", "why not shared"), conversions(digits, mapped))

    print()
    source = DIGITS
    for name in ("digits.safetensors", "digits.pt", "digits.npz"):
        target = folder / name
        converted = nd.convert_file(source, target, overwrite=True, verify=True)
        print(f"wrote {target}: {target.stat().st_size:,} bytes, {', '.join(c.name for c in converted)}")
        verify(digits, nd.to_numpy(nd.read(target)), where=target)
        source = target

    verify(digits, safetensors.numpy.load_file(folder / "digits.safetensors"), where=folder / "digits.safetensors")
    verify(digits, load(folder / "digits.npz"), where=folder / "digits.npz")
    nbytes = sum(array.nbytes for array in digits.values())
    print(f"verified: {len(digits)} arrays, {nbytes:,} bytes identical after the round trip")


def load(path: Path) -> Arrays:
    with np.load(path) as file:
        return dict(file)


def conversions(digits: Arrays, mapped: np.ndarray[Any, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Convert in four ways; what `nd.trace` saw of each, one row per array."""
    images = digits["images"]
    calls: dict[str, Callable[[], Any]] = {
        "to_torch(digits)": lambda: nd.to_torch(digits),
        'to_torch(images, dtype="float32")': lambda: nd.to_torch(images, dtype="float32"),
        "to_torch(images[::-1])": lambda: nd.to_torch(images[::-1]),
        'to_torch(np.load("images.npy", mmap_mode="r"))': lambda: nd.to_torch(mapped),
    }
    for call, convert in calls.items():
        with nd.trace() as seen:
            convert()
        for record in seen:
            memory = "shared" if record.shared else "copied" if record.nbytes_copied else "private mapping"
            nbytes = record.nbytes_shared or record.nbytes_copied
            yield call + record.path, memory, f"{nbytes:,}", record.reason


def print_table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<><", widths, strict=True))
        print("  ".join(cells).rstrip())


def verify(expected: Arrays, actual: Arrays, *, where: Path) -> None:
    """Exit with a message unless names, dtypes, shapes and every byte are the same."""
    if actual.keys() != expected.keys():
        raise SystemExit(f"{where}: expected the arrays {sorted(expected)}, got {sorted(actual)}")
    for name, array in expected.items():
        got = actual[name]
        if (got.dtype, got.shape) != (array.dtype, array.shape):
            raise SystemExit(
                f"{where}: {name}: expected {array.dtype}{list(array.shape)}, got {got.dtype}{list(got.shape)}"
            )
        before, after = (np.frombuffer(a.tobytes(), np.uint8) for a in (array, got))
        if (differing := np.flatnonzero(before != after)).size:
            raise SystemExit(f"{where}: {name}: {differing.size:,} bytes differ, the first at {differing[0]:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
