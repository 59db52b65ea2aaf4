"""The gather of rows: whatever they are and however they lie, what NumPy's own indexing and casts give."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, NATIVE, any_values, arrays, filled

import ndtorch as nd
from ndtorch import _native
from ndtorch._dtypes import BY_NAME, from_numpy_dtype

IS_FAST = os.environ.get("NDTORCH_FAST") != "0"
only_fast = pytest.mark.skipif(not IS_FAST, reason="without the native bridge batches are made column by column")
FLOATS = ("float16", "float32", "float64", "bfloat16")
FIELDS = np.dtype([("a", "<i2"), ("b", ">f8", (3,)), ("c", "u1")])


def by_jobs(source: np.ndarray, rows: np.ndarray, dtype: str) -> torch.Tensor:
    """Into an array that is there already."""
    target = np.empty((len(rows), *source.shape[1:]), BY_NAME[dtype].numpy)
    _native.gather(((target, source, rows, None, False),))
    return tensor_holding(target)


def by_table(source: np.ndarray, rows: np.ndarray, dtype: str) -> torch.Tensor:
    """Into a tensor that the kernels make."""
    table = _native.Table()
    if not len(rows) or not table.add(source, BY_NAME[dtype].scalar_type, None, False, False):
        assert 0 in source.shape[1:] or not len(rows)
        return tensor_holding(np.empty((len(rows), *source.shape[1:]), BY_NAME[dtype].numpy))
    batches = table.gather(_native.Blocks(1 << 20), rows, [(0, len(rows))])
    assert batches is not None
    ((tensor,),) = batches
    return tensor


WAYS = [by_jobs, pytest.param(by_table, marks=only_fast)]
Way = Callable[[np.ndarray, np.ndarray, str], torch.Tensor]


def picked(source: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, max(len(source), 1), count)


def expected(source: np.ndarray, rows: np.ndarray, dtype: str) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return tensor_holding(source[rows].astype(BY_NAME[dtype].numpy))


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data(), count=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_of_any_dtype_and_layout_are_those_that_numpy_picks(way: Way, data: st.DataObject, count: int, seed: int):
    source = data.draw(arrays(), "source")
    if source.ndim == 0:
        source = np.broadcast_to(source, 3)
    if len(source) == 0:
        count = 0
    row = from_numpy_dtype(source.dtype)
    assert row is not None
    before = source.copy()
    rows = picked(source, count, seed)
    assert_same(way(source, rows, row.name), tensor_holding(source[rows]))
    assert_same(source, before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("name", ["float16", "float32", "float64", "int32", "uint8", "bool"])
def test_a_cast_on_the_way_is_that_of_numpy(way: Way, name: str, target: str, order: str) -> None:
    values = any_values(np.dtype(name), (40, 3, 5), 7)
    source = values.astype(values.dtype.newbyteorder(order))[:, ::-1, 1:4]
    for rows in (picked(source, 23, 1), np.array([39]), np.array([], np.int64)):
        assert_same(way(source, rows, target), expected(source, rows, target))
        dense = np.ascontiguousarray(source)
        assert_same(way(dense, rows, target), expected(dense, rows, target))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "nbytes", [0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 784, 4095, 12288, 12290, 1 << 14, 50_001, 1 << 16]
)
def test_rows_of_any_size_are_copied_whole(way: Way, nbytes: int) -> None:
    source = np.random.default_rng(nbytes).integers(0, 256, (31, nbytes), np.uint8)
    rows = picked(source, 400 if nbytes > 12_000 else 70, 2)  # so many that they are written past the caches
    assert_same(way(source, rows, "uint8"), tensor_holding(source[rows]))
    backwards = source[::-1]
    assert_same(way(backwards, rows, "uint8"), tensor_holding(backwards[rows]))
    odd = np.random.default_rng(1).integers(0, 256, (31, nbytes + 3), np.uint8)[:, 3:]
    assert_same(way(odd, rows, "uint8"), tensor_holding(odd[rows]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bool", "float16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 3000])
def test_rows_that_lie_in_columns_are_put_together(way: Way, name: str, columns: int) -> None:
    source = any_values(np.dtype(name), (columns, 200), 11).T
    for rows in (picked(source, 1300, 3), np.array([199])):
        assert_same(way(source, rows, name), tensor_holding(source[rows]))
        assert_same(way(source[::-1], rows, name), tensor_holding(source[::-1][rows]))
    if name in FLOATS:
        swapped = source.astype(source.dtype.newbyteorder(), order="F")
        for target in FLOATS:
            rows = picked(source, 70, 4)
            assert_same(way(swapped, rows, target), expected(swapped, rows, target))
            assert_same(way(source, rows, target), expected(source, rows, target))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", ["a", "b", "c"])
def test_fields_are_gathered_out_of_their_records(way: Way, field: str) -> None:
    records = np.frombuffer(np.random.default_rng(3).bytes(50 * FIELDS.itemsize), FIELDS)[field]
    rows = picked(records, 33, 4)
    target = records.dtype.newbyteorder("=").name
    assert_same(way(records, rows, target), expected(records, rows, target))
    if field == "b":
        assert_same(way(records, rows, "float32"), expected(records, rows, "float32"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_gathered_as_it_is(way: Way, name: str) -> None:
    source = filled(DTYPES[name][0], (11, 2, 3))
    rows = picked(source, 17, 5)
    assert_same(way(source, rows, name), tensor_holding(source[rows]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [5, -1, 2**63 - 1, -(2**63)])
def test_a_row_that_is_none_is_named_and_nothing_is_read(way: Way, bad: int) -> None:
    with pytest.raises(IndexError, match=rf"row {bad} of 5$"):
        way(np.zeros((5, 2)), np.array([0, 4, bad, 1]), "float64")


def test_a_row_that_is_none_of_the_last_source_leaves_all_targets_as_they_were() -> None:
    first, second = np.zeros((2, 3)), np.zeros(2)
    jobs = (
        (first, np.ones((9, 3)), np.array([1, 8]), None, False),
        (second, np.ones(8), np.array([1, 8]), None, False),
    )
    with pytest.raises(IndexError, match="row 8 of 8"):
        _native.gather(jobs)
    assert not first.any()
    assert not second.any()


@pytest.mark.parametrize(
    ("target", "source", "rows"),
    [
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(2, np.int32)),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(2, ">i8")),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(4, np.int64)[::2]),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((2, 1), np.int64)),
        (np.zeros((2, 3)), np.zeros((4, 3)), [0, 1]),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(3, np.int64)),
        (np.zeros((2, 3)), np.zeros((4, 2)), np.zeros(2, np.int64)),
        (np.zeros((2, 6)), np.zeros((4, 2, 3)), np.zeros(2, np.int64)),
        (np.zeros((2, 6))[:, ::2], np.zeros((4, 3)), np.zeros(2, np.int64)),
        (np.zeros(2), np.zeros(()), np.zeros(2, np.int64)),
        (np.zeros((2, 3), ">f8"), np.zeros((4, 3)), np.zeros(2, np.int64)),
        (np.zeros((2, 3)), np.zeros((4, 3), object), np.zeros(2, np.int64)),
        (np.zeros((2, 3)), [[1.0, 2.0, 3.0]], np.zeros(2, np.int64)),
    ],
)
def test_what_is_no_gather_is_refused(target: object, source: object, rows: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        _native.gather(((target, source, rows, None, False),))  # type: ignore[arg-type]
    for odd in ((), (target, source, rows), None):
        with pytest.raises((ValueError, TypeError)):
            _native.gather((odd,))  # type: ignore[arg-type]


# ---- whole batches ----


def table_of(*sources: np.ndarray) -> _native.Table:
    table = _native.Table()
    for source in sources:
        row = from_numpy_dtype(source.dtype)
        assert row is not None
        assert table.add(source, row.scalar_type, None, False, False)
    return table


@only_fast
def test_batches_of_an_order_are_those_of_its_numbers() -> None:
    x, y = filled("float32", (1000, 7)), np.arange(1000)
    order = _native.permutation(1000, 5)
    numbers = np.empty(1000, np.int64)
    order.fill(0, numbers)
    places = [(0, 100), (300, 301), (301, 999)]
    batches = table_of(x, y).gather(_native.Blocks(1 << 20), order, places)
    assert batches is not None
    for (begin, end), batch in zip(places, batches, strict=True):
        rows = numbers[begin:end]
        assert_same(batch, [tensor_holding(x[rows]), tensor_holding(y[rows])])


@only_fast
@pytest.mark.parametrize(
    "places", [[(0, 11)], [(-1, 2)], [(3, 3)], [(4, 3)], [(0, 2), (3, 4)], [(2**63 - 2, 2**63 - 1)]]
)
def test_places_that_are_none_are_refused(places: list[tuple[int, int]]) -> None:
    table, blocks = table_of(np.arange(10)), _native.Blocks(0)
    with pytest.raises(ValueError, match=r"."):
        table.gather(blocks, np.arange(10), places)
    if places != [(0, 2), (3, 4)]:  # of an order any places will do
        with pytest.raises(ValueError, match="no such places"):
            table.gather(blocks, _native.permutation(10, 1), places)


@only_fast
def test_what_cannot_be_gathered_joins_no_table() -> None:
    table = _native.Table()
    steps = _native.affine(3, 255.0, 1.0, [], [])
    assert not table.add(np.zeros((4, 0)), 7, None, False, False)
    assert not table.add(np.zeros(()), 7, None, False, False)
    assert not table.add(np.zeros(4, "datetime64[s]"), 4, None, False, False)
    assert not table.add(np.zeros((4, 2, 2, 4), np.uint8), 6, steps, False, False)
    assert not table.add([1, 2], 7, None, False, False)  # type: ignore[arg-type]


@only_fast
def test_a_table_holds_its_arrays_and_lets_go_of_them() -> None:
    source = np.zeros((4, 2))
    references = sys.getrefcount(source)
    table = table_of(source)
    assert sys.getrefcount(source) == references + 1
    del table
    assert sys.getrefcount(source) == references


@only_fast
def test_an_array_that_was_resized_is_not_read() -> None:
    source = np.zeros(1 << 20)
    table = table_of(source)
    source.resize(3, refcheck=False)
    with pytest.raises(ValueError, match="resized"):
        table.gather(_native.Blocks(0), np.array([2]), [(0, 1)])


@only_fast
def test_a_table_makes_nothing_while_torch_watches() -> None:
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Watch():
        assert table_of(np.arange(4)).gather(_native.Blocks(0), np.array([2]), [(0, 1)]) is None


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(9, 5, 7, 3), (9, 4, 4, 1), (9, 30, 300, 4)])
def test_pictures_are_those_of_image_to_torch(shape: tuple[int, ...], dtype: str, is_interleaved: bool) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
    channels = shape[-1]
    mean, std = [0.4] * channels, [0.2] * channels
    steps = _native.affine(channels, 255.0, 0.0, mean, std)
    layout = torch.channels_last if is_interleaved else torch.contiguous_format
    for source in (pixels, pixels[:, ::-1], pixels.astype(">u2").astype(np.uint8)[..., ::1]):
        rows = picked(source, 6, 8)
        wanted = torch.stack(
            [
                nd.image_to_torch(source[row], mean=mean, std=std, dtype=dtype, memory_format=layout)
                if channels > 1
                else nd.image_to_torch(source[row], mean=mean, std=std, dtype=dtype)
                for row in rows
            ]
        )
        row = BY_NAME[dtype]
        at = (len(rows), *shape[1:]) if is_interleaved else (len(rows), channels, *shape[1:3])
        target = np.empty(at, row.numpy)
        _native.gather(((target, source, rows, steps, is_interleaved),))
        seen = tensor_holding(target)
        assert_same(seen.movedim(-1, 1) if is_interleaved else seen, wanted)
        table = _native.Table()
        assert table.add(source, row.scalar_type, steps, is_interleaved, False)
        batches = table.gather(_native.Blocks(1 << 20), rows, [(0, len(rows))])
        if IS_FAST:
            assert batches is not None
            assert_same(batches[0][0], wanted)
            assert batches[0][0].is_contiguous(memory_format=layout)


# ---- rows of files ----


@pytest.mark.parametrize("shape", [(500, 30), (40, 3, 64, 64), (7,), (3, 0)])
def test_announcing_rows_changes_nothing(shape: tuple[int, ...], tmp_path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(9).random(shape))
    source = np.load(path, mmap_mode="r")
    rows = picked(source, 20, 1)
    for array in (source, source[::-1], source[::2]):
        _native.announce(array, rows % len(array))
        with pytest.raises(IndexError, match="row"):
            _native.announce(array, np.array([len(array)]))
    assert_same(np.asarray(source), np.load(path))


@only_fast
def test_batches_of_a_mapped_file_are_those_of_memory(tmp_path) -> None:
    path = tmp_path / "x.npy"
    x = np.random.default_rng(10).random((300, 700))
    np.save(path, x)
    mapped = np.load(path, mmap_mode="r")
    table = _native.Table()
    assert table.add(mapped, BY_NAME["float32"].scalar_type, None, False, True)
    order = _native.permutation(300, 1)
    numbers = np.empty(300, np.int64)
    order.fill(0, numbers)
    batches = table.gather(_native.Blocks(1 << 20), order, [(0, 50), (50, 80)], order, [(80, 300)])
    assert batches is not None
    assert_same(batches[0][0], expected(x, numbers[:50], "float32"))
    assert_same(batches[1][0], expected(x, numbers[50:80], "float32"))


def test_what_is_gathered_is_memory_of_its_own() -> None:
    source = filled(NATIVE["float32"][0], (6, 4))
    for batch in nd.Loader(source, batch_size=2, threads=0):
        assert_independent(batch, source)
    assert ml_dtypes.bfloat16 is BY_NAME["bfloat16"].numpy.type


def broadcast(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(filled(dtype, (1,)), shape, (0,) * len(shape))


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (broadcast("float16", (1, 2**61)), {"float_dtype": "float64"}),  # a row of 2**64 bytes
        (broadcast("float32", (1, 2**60)), {"float_dtype": "float64"}),
        (broadcast("float64", (4, 2**57)), {"sampler": [0] * 16, "batch_size": 16}),  # 16 rows of 2**60 bytes
        (broadcast("float64", (4, 2**57)), {"sampler": [0] * 9, "batch_size": 9}),
    ],
)
def test_batches_whose_bytes_cannot_be_counted_have_no_memory(source: np.ndarray, options: dict[str, Any]) -> None:
    with pytest.raises(MemoryError):
        next(iter(nd.Loader(source, **options, threads=0)))


@only_fast
def test_a_table_counts_the_bytes_of_all_its_columns() -> None:
    table, huge = table_of(np.zeros(4)), broadcast("uint8", (4, 2**60))
    float64 = BY_NAME["float64"].scalar_type
    assert not table.add(broadcast("uint8", (3, 2**61)), float64, None, False, False), "a row of 2**64 bytes"
    assert [table.add(huge, BY_NAME["uint8"].scalar_type, None, False, False) for _ in range(4)] == [True] * 3 + [False]
    with pytest.raises(MemoryError):
        table.gather(_native.Blocks(0), np.zeros(1, np.int64), [(0, 1)])


@only_fast
def test_places_of_more_rows_than_there_can_be_have_no_memory() -> None:
    table, order = table_of(np.zeros(4)), _native.permutation(2**62, 1)
    for places in ([(0, 2**61)], [(0, 2**62 - 1)] * 4, [(0, 2**62 - 1)] * 5):
        with pytest.raises(MemoryError):
            table.gather(_native.Blocks(0), order, places)
