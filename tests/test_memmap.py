"""Read-only memory maps become private copy-on-write mappings; the file never changes and is never needed twice."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, assert_shares, tensor_holding
from interpreters import Interpreters
from processes import descriptors_of
from strategies import filled

import ndtorch as nd

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", filled("f4", (30, 40)))
    return tmp_path / "a.npy"


def is_private_mapping(tensor: torch.Tensor, source: np.ndarray) -> bool:
    plan = nd.explain(source)
    assert (plan.shares, plan.reason) == (False, "it is read-only")
    mapped = plan.action == "map"
    assert plan.nbytes_copied == (0 if mapped else source.nbytes)
    assert tensor.data_ptr() != source.__array_interface__["data"][0]
    return mapped


VIEWS: dict[str, Callable[[np.memmap], np.ndarray]] = {
    "whole": lambda m: m,
    "rows": lambda m: m[7:20],
    "columns": lambda m: m[:, 3:9],
    "every third item": lambda m: m[2::3, 1::3],
    "transposed": lambda m: m.T,
    "one item": lambda m: m[5:6, 5:6],
    "plain array": np.asarray,
    "view of a plain array": lambda m: np.asarray(m)[3:],
    "other dtype": lambda m: m.view(np.uint8)[:, 4:],
    "reshaped": lambda m: m.reshape(-1)[100:],
    "last byte": lambda m: m.view(np.uint8)[-1:, -1:],
    "without dimensions": lambda m: np.asarray(m)[3:4, 3:4].reshape(()),
}


@pytest.mark.parametrize("view", VIEWS)
def test_view_of_a_read_only_map_is_mapped_privately_with_its_strides(view: str, path: Path) -> None:
    before = path.read_bytes()
    array = VIEWS[view](np.load(path, mmap_mode="r"))
    tensor = nd.to_torch(array)
    assert is_private_mapping(tensor, array)
    assert_same(tensor, tensor_holding(array))
    assert tensor.stride() == tuple(s // array.itemsize for s in array.strides)
    tensor += 1
    assert_same(tensor, tensor_holding(array + np.ones((), array.dtype)))
    assert path.read_bytes() == before
    assert_same(nd.to_torch(array), tensor_holding(array))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m[::-1], "negative stride"),
        (lambda m: m[:, ::-1][3:], "negative stride"),
        (lambda m: m.view(np.uint8).reshape(-1)[1:-3].view("f4"), "unaligned"),
        (lambda m: m.view(m.dtype.newbyteorder("S")), "other order"),
    ],
)
def test_view_that_torch_cannot_address_is_copied(change: Callable[[Any], Any], reason: str, path: Path) -> None:
    array = change(np.load(path, mmap_mode="r"))
    plan = nd.explain(array)
    assert (plan.action, plan.nbytes_copied) == ("copy", array.nbytes)
    assert reason in plan.reason
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(array))
    tensor += 1


def test_broadcast_of_a_map_is_never_written_through(path: Path) -> None:
    before = path.read_bytes()
    array = np.broadcast_to(np.load(path, mmap_mode="r")[0], (3, 40))
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(array))
    tensor[0, 0] = -1
    assert path.read_bytes() == before


def test_options_that_need_a_copy_copy_and_those_that_forbid_it_refuse(path: Path) -> None:
    array = np.load(path, mmap_mode="r")
    assert_same(nd.to_torch(array, dtype="float64"), tensor_holding(array.astype("f8")))
    assert nd.explain(array, copy=True).action == "copy"
    assert_shares_read_only(nd.to_torch(array, readonly="share"), array)
    for options in ({"copy": False}, {"readonly": "error"}):
        with pytest.raises(nd.CopyRequiredError):
            nd.to_torch(array, **options)


def assert_shares_read_only(tensor: torch.Tensor, array: np.ndarray) -> None:
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert_same(tensor, tensor_holding(array))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("offset", [0, 1 << 12, 4097 * 8, 24])
def test_map_at_any_offset_and_order_has_the_same_values(offset: int, order: str, tmp_path: Path) -> None:
    numbers = np.arange(5000, dtype="f8")
    (tmp_path / "raw").write_bytes(bytes(offset) + numbers.tobytes())
    array = np.memmap(tmp_path / "raw", "f8", "r", offset, (50, 100), order)
    tensor = nd.to_torch(array)
    assert is_private_mapping(tensor, array)
    assert_same(
        tensor, torch.arange(5000.0, dtype=torch.float64).reshape(50, 100) if order == "C" else tensor_holding(array)
    )


@pytest.mark.parametrize(
    "name", ["with spaces .npy", "naïve-文件-😀.npy", "quote'\".npy", "tab\tnewline\n.npy", "x (deleted).npy"]
)
def test_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / name, filled("f4"))
    array = np.load(tmp_path / name, mmap_mode="r")
    tensor = nd.to_torch(array)
    assert_same(tensor, torch.from_numpy(filled("f4")))
    assert is_private_mapping(tensor, array)


def test_writable_map_is_shared_and_writes_reach_the_file(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    tensor = nd.to_torch(array)
    assert_shares(tensor, array)
    tensor[0, 0] = 77
    array.flush()
    assert np.load(path)[0, 0] == 77


def test_private_map_made_read_only_keeps_its_changes(path: Path) -> None:
    array = np.load(path, mmap_mode="c")
    assert_shares(nd.to_torch(array), array)
    array[0, 0] = 77
    array.flags.writeable = False
    assert nd.explain(array).action == "copy"
    assert nd.to_torch(array)[0, 0] == 77
    assert np.load(path)[0, 0] == 1


def test_writable_map_made_read_only_is_mapped_with_what_was_written(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    array[0, 0] = 77
    array.flags.writeable = False
    tensor = nd.to_torch(array)
    assert tensor[0, 0] == 77
    tensor[0, 0] = 78
    assert array[0, 0] == 77


@pytest.mark.parametrize("what", ["deleted", "replaced", "replaced by one of the same size", "moved"])
def test_map_whose_name_means_another_file_now_is_copied(what: str, path: Path, tmp_path: Path) -> None:
    array = np.load(path, mmap_mode="r")
    expected = tensor_holding(array)
    if what == "moved":
        path.rename(tmp_path / "elsewhere.npy")
    else:
        path.unlink()
    if what.startswith("replaced"):
        np.save(path, np.zeros((30, 40) if "size" in what else 1, "f4"))
    tensor = nd.to_torch(array)
    assert_same(tensor, expected)
    tensor += 1
    assert_same(tensor_holding(array), expected)


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreters]:
    with Interpreters("", tmp_path_factory.mktemp("said")) as running:
        yield running


ALONE = """
path = PATH
array = np.load(path, mmap_mode=MODE)
os.truncate(path, 4096)
try:
    CALL
except nd.NdtorchError as error:
    assert "shorter" in str(error), error
else:
    raise SystemExit("not refused")
"""


@pytest.mark.parametrize(
    ("mode", "call"),
    [
        ("r", "nd.to_torch(array)"),
        ("r", "nd.to_torch(array[::-1], dtype='float32')"),
        ("r", "nd.to_torch({'x': [array[100:]]}, copy=True)"),
        ("r", "nd.to_torch(array, readonly='share')"),
        ("r", "nd.to_numpy(array, copy=True)"),
        ("r+", "nd.to_torch(array, dtype='float32')"),
        ("r+", "nd.to_torch(array[::-1])"),
        ("c", "nd.to_torch(array, copy=True)"),
    ],
)
def test_map_of_a_truncated_file_is_an_error_and_never_a_crash(
    mode: str, call: str, interpreters: Interpreters, tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((1000, 400)))
    script = ALONE.replace("PATH", repr(str(path))).replace("MODE", repr(mode)).replace("CALL", call)
    assert interpreters.run(script) == (0, "")


def test_part_of_a_truncated_file_that_still_exists_is_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1000, 400)))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")[:1]
    os.truncate(tmp_path / "a.npy", 8192)
    assert nd.to_torch(array).sum() == 400


def test_tensor_outlives_the_array_and_the_file(path: Path) -> None:
    expected = tensor_holding(np.load(path))
    tensor = nd.to_torch(np.load(path, mmap_mode="r"))
    gc.collect()
    path.unlink()
    gc.collect()
    assert_same(tensor, expected)


@linux_only
def test_many_mappings_leave_neither_files_nor_mappings_behind(path: Path) -> None:
    array = np.load(path, mmap_mode="r")
    nd.to_torch(array)
    gc.collect()
    before = descriptors_of(path), mappings(path)
    kept = [nd.to_torch(array) for _ in range(300)]
    assert descriptors_of(path) == before[0], "a mapping keeps its file open"
    assert mappings(path) > before[1]
    del kept
    gc.collect()
    assert (descriptors_of(path), mappings(path)) == before


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


MEASURE = """
import sys, numpy as np, ndtorch as nd
def anonymous():
    facts = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(facts["Anonymous"].split()[0])
array = np.load(sys.argv[1], mmap_mode="r")
nd.to_torch(np.load(sys.argv[2], mmap_mode="r"))
before = anonymous()
tensor = nd.to_torch(array)
total = int(tensor.sum())
copied = anonymous() - before
tensor[0] = 1
print(total, copied, anonymous() - before)
"""


@linux_only
def test_large_map_is_read_without_copying_a_byte_until_it_is_written(path: Path, tmp_path: Path) -> None:
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (64 << 20,))
    big[::4096] = 1
    del big
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "big.npy"), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    total, read, written = map(int, done.stdout.split())
    assert total == (64 << 20) // 4096
    assert read < 8 << 10, f"{read} KiB of 64 MiB were copied by reading"
    assert written < read + 4096, f"{written} KiB of 64 MiB were copied by writing one byte"


def test_structured_and_time_maps_are_mapped_field_by_field(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros(50, [("a", "i4"), ("b", "f4"), ("t", "M8[s]")]))
    before = (tmp_path / "f.npy").read_bytes()
    array = np.load(tmp_path / "f.npy", mmap_mode="r")
    plan = nd.explain(array)
    assert [leaf.action for leaf in plan.leaves.values()] == ["map"] * 3
    tensors = nd.to_torch(array)
    for tensor in tensors.values():
        tensor += 1
    assert (tmp_path / "f.npy").read_bytes() == before
