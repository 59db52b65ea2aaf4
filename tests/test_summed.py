"""Outputs that take checksums on their way: they are those of the bytes that are in the file in the end."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from isal.isal_zlib import crc32

from ndtorch import FormatError
from ndtorch._write import item_of_file, item_of_memory
from ndtorch.files import format_to_write, open_file
from ndtorch.files.items import Item
from ndtorch.files.summed import SummedOutput

pytestmark = pytest.mark.once


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def stored(folder: Path, name: str, array: np.ndarray) -> Item:
    """An array that the file of another name has as it is to be written."""
    np.save(folder / f"{name}.npy", array)
    return item_of_file(name, open_file(folder / f"{name}.npy", name=name)[name])


def written(path: Path, format: str, items: list[Item]) -> SummedOutput:
    with io.FileIO(path, "x") as file:
        output = SummedOutput(file)
        format_to_write("", format).writer.write(output, items)
    return output


LARGE = (1 << 18) * 5 + 3  # elements: several pieces, parts for several threads, and something is left


@pytest.mark.parametrize("format", ["safetensors", "npy", "npz", "pt"])
@pytest.mark.parametrize("where", ["in memory", "in a file"])
@pytest.mark.parametrize("count", [0, 1, 1000, LARGE])
def test_checksums_are_those_of_the_file(tmp_path, format, where, count):
    array = numbers(count)
    item = item_of_memory("x", array) if where == "in memory" else stored(tmp_path, "x", array)
    output = written(tmp_path / "out", format, [item])
    raw = (tmp_path / "out").read_bytes()
    assert (output.crc32, output.tell()) == (crc32(raw), len(raw))
    if format in ("safetensors", "npy"):
        assert output.sums == {"x": crc32(array.tobytes())}
        assert raw.endswith(array.tobytes())


def test_each_of_several_arrays_has_a_checksum_of_its_own(tmp_path):
    arrays = {"a": numbers(3, 5, dtype="int64"), "b": numbers(LARGE), "c": numbers(7, 2, dtype="uint8")}
    items = [
        stored(tmp_path, name, each) if name != "c" else item_of_memory(name, each) for name, each in arrays.items()
    ]
    output = written(tmp_path / "out", "safetensors", items)
    assert output.crc32 == crc32((tmp_path / "out").read_bytes())
    assert output.sums == {name: crc32(array.tobytes()) for name, array in arrays.items()}


def test_rows_of_many_files_have_one_checksum(tmp_path):
    arrays = [numbers(n, 3) for n in (4, 0, 1 << 19, 1)]
    parts = tuple(stored(tmp_path, "x", array) for array in arrays[:2])
    parts += (item_of_memory("x", arrays[2]), item_of_memory("other", arrays[3]))
    whole = np.concatenate(arrays)
    parts = (stored(tmp_path, "first", arrays[0]), *parts[1:])
    item = Item("x", whole.dtype, whole.shape, "C", lambda order: iter(()), parts=parts)
    output = written(tmp_path / "out", "npy", [item])
    assert output.crc32 == crc32((tmp_path / "out").read_bytes())
    assert output.sums["x"] == crc32(whole.tobytes())


def test_a_transposed_array_and_one_of_the_other_byte_order_are_summed_as_they_are_written(tmp_path):
    turned, swapped = numbers(300, 200).T, numbers(100).astype(">f4")
    output = written(tmp_path / "out", "safetensors", [item_of_memory("t", turned), item_of_memory("s", swapped)])
    assert output.crc32 == crc32((tmp_path / "out").read_bytes())
    assert output.sums == {"t": crc32(turned.tobytes()), "s": crc32(swapped.astype("<f4").tobytes())}


def test_what_is_not_written_from_front_to_back_has_no_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch.files.output._SLAB", 1 << 10)
    wide = np.asfortranarray(numbers(4, 5000))
    output = written(tmp_path / "out", "safetensors", [stored(tmp_path, "w", wide), item_of_memory("z", numbers(4))])
    assert (tmp_path / "out").read_bytes().endswith(wide.tobytes() + numbers(4).tobytes())
    assert output.crc32 is None
    assert output.sums == {}


def test_a_source_that_has_become_shorter_is_an_error(tmp_path):
    item = stored(tmp_path, "x", numbers(1 << 21))
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(FormatError, match=r"x\.npy"):
        written(tmp_path / "out", "npy", [item])


def test_who_watches_is_told_of_every_byte(tmp_path):
    seen: list[int] = []
    with io.FileIO(tmp_path / "out", "x") as file:
        output = SummedOutput(file, seen.append)
        format_to_write("", "npy").writer.write(output, [stored(tmp_path, "x", numbers(LARGE))])
    assert sum(seen) == output.tell() == (tmp_path / "out").stat().st_size
