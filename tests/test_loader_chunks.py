"""Arrays that lie in chunks: each is decoded once where that can be, memory stays bounded, and errors name them."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import dask.array
import h5py
import numpy as np
import pytest
import torch
import zarr
from comparison import assert_same, tensor_holding

import ndtorch as nd
from ndtorch import FormatError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ndtorch.loader import chunk_cache, chunk_rows, file_columns
from ndtorch.loader.chunk_cache import ChunkCache
from ndtorch.loader.chunk_rows import ChunkRows, Piece, StretchRows, rows_of_piece
from ndtorch.loader.live_arrays import piece_of
from ndtorch.loader.memory_left import _read, memory_left
from ndtorch.loader.parts import SourceOptions
from ndtorch.loader.wishes import Wishes

ROWS, ROW = 2_000, 1_000
PER = 100  # rows of a chunk
DATA = np.random.default_rng(0).integers(0, 256, (ROWS, ROW), dtype=np.uint8)
WISHES = Wishes(SourceOptions())


class Counted:
    """An array in chunks that counts how often each of them is decoded."""

    def __init__(self, data: np.ndarray = DATA, per: int = PER) -> None:
        self.count: Counter[tuple[int, int]] = Counter()
        self.piece = Piece("'counted'", data.shape, data.dtype, per, self._decode)
        self._data = data

    def _decode(self, start: int, stop: int) -> np.ndarray:
        self.count[start, stop] += 1
        return self._data[start:stop].copy()


@pytest.fixture
def cache(monkeypatch) -> ChunkCache:
    """A cache of eight chunks, for all columns of a test."""
    cache = ChunkCache(8 * PER * ROW)
    monkeypatch.setattr(chunk_rows, "shared_cache", lambda: cache)
    return cache


@pytest.fixture
def counted(monkeypatch) -> Counted:
    """What a loader takes every object of the class `Counted` for."""
    counted = Counted()
    monkeypatch.setattr(file_columns, "piece_of", lambda value, _: value.piece if isinstance(value, Counted) else None)
    return counted


def keep(monkeypatch, nbytes: int) -> None:
    """Make a cache of so many bytes the one of all columns from here on."""
    cache = ChunkCache(nbytes)
    monkeypatch.setattr(chunk_rows, "shared_cache", lambda: cache)


def windows(blocks: int, seed: int) -> np.ndarray:
    """Rows of chunks in random order, mixed within every four of them."""
    random = np.random.default_rng(seed)
    order = random.permutation(ROWS // PER).reshape(-1, blocks)
    rows = (order[:, :, None] * PER + np.arange(PER)).reshape(len(order), -1)
    return random.permuted(rows, axis=1).reshape(-1)


# --- how often


@pytest.mark.parametrize("threads", [0, 3])
def test_rows_in_order_decode_every_chunk_once(threads, cache, counted):
    batches = list(nd.Loader(counted, 37, threads=threads))
    assert_same(torch.cat(batches), tensor_holding(DATA))
    assert len(counted.count) == ROWS // PER
    # Threads that are at different places of the order may want a chunk again that has made room for others.
    assert sum(counted.count.values()) <= ROWS // PER + (6 if threads else 0)


@pytest.mark.parametrize("threads", [0, 3])
def test_rows_mixed_within_windows_decode_every_chunk_once(threads, cache, counted):
    order = windows(4, seed=1)
    loader = nd.Loader(counted, 37, threads=threads)
    (column,) = loader._sources.columns
    for start in range(0, ROWS, 37):
        rows = np.ascontiguousarray(order[start : start + 37])
        column.announce(np.ascontiguousarray(order[start + 37 : start + 74]))
        target = np.empty((len(rows), ROW), np.uint8)
        leaf, job = column.take(rows, lambda shape, row, target=target: (torch.from_numpy(target), target))
        if job is not None:
            nd._native.gather((job,))
        assert_same(leaf, tensor_holding(DATA[rows]))
    assert set(counted.count.values()) == {1}
    assert len(counted.count) == ROWS // PER


def test_an_array_that_can_be_kept_is_decoded_once_whatever_the_order(monkeypatch, counted):
    cache = ChunkCache(2 * DATA.nbytes)
    monkeypatch.setattr(chunk_rows, "shared_cache", lambda: cache)
    loader = nd.Loader(counted, 64, shuffle=True, threads=2)
    for _ in range(3):
        assert sum(len(batch) for batch in loader) == ROWS
    assert set(counted.count.values()) == {1}


def test_a_column_says_how_many_rows_are_read_as_one(cache, counted):
    (column,) = nd.Loader(counted, 64)._sources.columns
    assert column.stretch == PER


def test_random_order_over_more_than_can_be_kept_is_said_once_before_it_is_slow(cache, counted):
    with pytest.warns(
        UserWarning, match=r"'counted' has 2000000 bytes in chunks of 100 rows, and 800000 bytes"
    ) as said:
        nd.Loader(counted, 64, shuffle=True)
    assert len(said) == 1
    assert "shuffle='window'" in str(said[0].message)
    assert said[0].filename == __file__
    nd.Loader(counted, 64)


def test_small_chunks_of_a_large_array_are_read_as_they_come(monkeypatch):
    cache = ChunkCache(1 << 16)
    monkeypatch.setattr(chunk_rows, "shared_cache", lambda: cache)
    counted = Counted(per=4)
    rows = rows_of_piece(counted.piece)
    assert isinstance(rows, StretchRows)
    wanted = np.array([3, 4, 4, 5, 70, 71, 1999])
    target = np.empty((len(wanted), ROW), np.uint8)
    rows.read(wanted, target)
    assert_same(target, DATA[wanted])
    assert counted.count == {(3, 6): 1, (70, 72): 1, (1999, 2000): 1}


def test_a_long_stretch_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(chunk_rows, "_AT_ONCE", 10 * ROW)
    counted = Counted(per=1)
    wanted = np.repeat(np.arange(5, 55), 2)
    target = np.empty((len(wanted), ROW), np.uint8)
    StretchRows(counted.piece, requests=3).read(wanted, target)
    assert_same(target, DATA[wanted])
    assert max(stop - start for start, stop in counted.count) == 10
    assert len(counted.count) == 5


# --- the cache


def test_many_threads_that_want_one_chunk_have_it_decoded_once():
    cache, loads, go = ChunkCache(1 << 20), [], threading.Barrier(6)
    begun, release = threading.Event(), threading.Event()

    def load() -> np.ndarray:
        loads.append(threading.get_ident())
        begun.set()
        release.wait(120)
        return np.arange(3)

    found: list[np.ndarray] = []

    def want() -> None:
        go.wait()
        found.append(cache.get("a", 24, load))

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    go.wait()
    assert begun.wait(120)
    assert cache.get("a", 24, load, may_wait=False) is None, "whoever has other chunks to do is not held up"
    release.set()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(each) for each in found}) == 1


def test_the_chunks_that_were_used_longest_ago_are_dropped_first():
    cache, made = ChunkCache(30), []

    def get(key: str, nbytes: int = 10) -> None:
        cache.get(key, nbytes, lambda: made.append(key) or np.zeros(nbytes, np.uint8))

    for key in "abcad":  # b is the oldest when d comes
        get(key)
    for key in "acd":
        get(key)
    assert made == ["a", "b", "c", "d"]
    get("b")
    get("large", 100)
    get("large", 100)
    assert made == ["a", "b", "c", "d", "b", "large"]


def test_a_chunk_that_failed_is_tried_again_and_counts_for_nothing():
    cache = ChunkCache(100)

    def fail() -> np.ndarray:
        raise OSError("not today")

    for _ in range(20):
        with pytest.raises(OSError, match="not today"):
            cache.get("a", 50, fail)
    assert cache.get("a", 50, lambda: np.ones(2)) is not None
    assert cache._nbytes == 50


def test_what_waits_for_a_chunk_that_fails_tries_by_itself():
    cache, begun, release = ChunkCache(100), threading.Event(), threading.Event()

    def fail() -> np.ndarray:
        begun.set()
        release.wait(120)
        raise OSError("not today")

    failed: list[OSError] = []

    def first() -> None:
        try:
            cache.get("a", 8, fail)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(120)
    threading.Timer(0.05, release.set).start()
    assert cache.get("a", 8, lambda: np.ones(1)) is not None
    thread.join()
    assert len(failed) == 1


def test_chunks_go_with_the_column_and_the_cache_with_the_last_one(monkeypatch):
    monkeypatch.setattr(chunk_cache, "_shared", [])  # or threads of a loop that was left may still hold a column
    counted = Counted()
    rows = ChunkRows(counted.piece, PER)
    cache = weakref.ref(rows._cache)
    other = ChunkRows(Counted().piece, PER)
    target = np.empty((1, ROW), np.uint8)
    rows.read(np.array([5]), target)
    other.read(np.array([5]), target)
    key = rows._key
    assert any(found[0] == key for found in cache()._chunks)
    del rows
    gc.collect()
    assert not any(found[0] == key for found in cache()._chunks)
    assert cache()._chunks
    del other
    gc.collect()
    assert cache() is None


def test_a_forked_child_decodes_what_its_parent_had_in_the_works():
    cache, begun, release = ChunkCache(1 << 20), threading.Event(), threading.Event()

    def load() -> np.ndarray:
        begun.set()
        release.wait(120)
        return np.zeros(1)

    thread = threading.Thread(target=cache.get, args=("a", 8, load))
    thread.start()
    assert begun.wait(120)
    child = os.fork()
    if not child:
        found = cache.get("a", 8, lambda: np.ones(1))
        os._exit(0 if found is not None and found[0] == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    release.set()
    thread.join()
    assert cache.get("a", 8, load)[0] == 0


def test_chunks_that_are_announced_are_decoded_by_another_thread(cache, counted):
    rows = rows_of_piece(counted.piece)
    done = threading.Event()
    decode, names = counted.piece.decode, []
    rows._piece = counted.piece._replace(
        decode=lambda a, b: (names.append(threading.current_thread().name), done.set(), decode(a, b))[-1]
    )
    rows.announce(np.array([250]))
    assert done.wait(120)
    target = np.empty((1, ROW), np.uint8)
    rows.read(np.array([250]), target)
    assert_same(target, DATA[250:251])
    assert counted.count == {(200, 300): 1}
    assert names[0].startswith("ndtorch-chunks")


def test_what_is_wanted_before_its_thread_comes_to_it_is_not_decoded_again(monkeypatch):
    cache, made = ChunkCache(8), []
    late, go_on = threading.Event(), threading.Event()
    get = cache.get

    def held_up(*wanted, **options):
        late.set()
        assert go_on.wait(120)
        return get(*wanted, **options)

    monkeypatch.setattr(cache, "get", held_up)
    cache.ahead("a", 4, lambda: made.append("a") or np.zeros(4, np.uint8))
    assert late.wait(120)
    get("a", 4, lambda: made.append("a") or np.zeros(4, np.uint8))
    get("b", 8, lambda: made.append("b") or np.zeros(8, np.uint8))  # has pushed it out
    go_on.set()
    cache._pool.shutdown(wait=True)
    assert made == ["a", "b"]


def test_an_announcement_that_fails_is_silent_and_the_row_says_why(cache):
    def decode(start: int, stop: int) -> np.ndarray:
        raise FormatError("read", "'counted' is damaged")

    rows = rows_of_piece(Counted().piece._replace(decode=decode))
    rows.announce(np.array([250, 260]))
    with pytest.raises(FormatError, match="is damaged") as caught:
        rows.read(np.array([250, 260]), np.empty((2, ROW), np.uint8))
    assert caught.value.index == (250,)
    assert caught.value.__notes__ == ["at row 250 of 'counted'"]


def test_an_error_that_is_not_ours_keeps_its_type_and_says_the_row(cache, counted):
    def decode(start: int, stop: int) -> np.ndarray:
        raise ZeroDivisionError("odd")

    counted.piece = counted.piece._replace(decode=decode)
    with pytest.raises(ZeroDivisionError, match="odd") as caught:
        list(nd.Loader(counted, 64))
    assert caught.value.__notes__[0] == "at row 0 of 'counted'"


# --- files that are packed as one piece, and damaged ones


def test_what_is_packed_as_one_piece_and_too_large_is_refused_with_a_way_out(monkeypatch, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=DATA)
    monkeypatch.setattr(chunk_rows, "memory_left", lambda: DATA.nbytes)
    with pytest.raises(
        UnsupportedTypeError, match=r"a\.npz' entry 'x\.npy' is packed as one piece, of 2000000 bytes"
    ) as caught:
        nd.Loader(tmp_path / "a.npz", 8)
    assert "nd.convert_file" in str(caught.value)
    nd.convert_file(tmp_path / "a.npz", tmp_path / "x.npy")
    assert_same(torch.cat(list(nd.Loader(nd.read(tmp_path / "x.npy")["x"], 64))), tensor_holding(DATA))


def test_what_is_packed_as_one_piece_is_decoded_once(monkeypatch, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=DATA, y=DATA[:, 0])
    cache = ChunkCache(1000)
    monkeypatch.setattr(chunk_rows, "shared_cache", lambda: cache)
    decoded, original = [], chunk_rows._decoded
    monkeypatch.setattr(chunk_rows, "_decoded", lambda piece, *part: (decoded.append(part), original(piece, *part))[1])
    loader = nd.Loader(tmp_path / "a.npz", 64, shuffle=True, threads=2)
    for _ in range(2):
        for batch in loader:
            assert_same(batch["x"][:, 0], batch["y"])
    assert decoded == [(0, ROWS)] * 2, "one for each array, however little else can be kept"


def test_a_damaged_chunk_is_an_error_that_names_the_dataset_and_the_row(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=DATA, chunks=(PER, ROW), compression="gzip")
        place = dataset.id.get_chunk_info(7).byte_offset
    with (tmp_path / "a.h5").open("r+b") as stream:
        stream.seek(place + 100)
        stream.write(bytes(500))
    loader = nd.Loader(nd.read(tmp_path / "a.h5")["x"], 50, threads=0)
    batches = iter(loader)
    for start in range(0, 700, 50):
        assert_same(next(batches), tensor_holding(DATA[start : start + 50]))
    with pytest.raises(FormatError, match=r"a\.h5' dataset 'x'") as caught:
        next(batches)
    assert caught.value.index == (700,)
    assert "at row 700 of" in caught.value.__notes__[0]


# --- objects of the libraries themselves


def test_an_open_dataset_and_an_open_file_are_columns(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=DATA, chunks=(PER, ROW), compression="lzf")
        file.create_dataset("deep/y", data=np.arange(ROWS))
    with h5py.File(tmp_path / "a.h5") as file:
        for batch in nd.Loader(file, 64, shuffle=True, threads=2):
            assert_same(batch["x"], tensor_holding(DATA[batch["deep"]["y"].numpy()]))
        (whole,) = nd.Loader(file["x"], ROWS)
        assert_same(whole, tensor_holding(DATA))


def live_contiguous(folder: Path):
    return h5py.File(folder / "a.h5", "w").create_dataset("x", data=DATA)


def live_chunks(folder: Path):
    return h5py.File(folder / "a.h5", "w").create_dataset("x", data=DATA, chunks=(PER, ROW), compression="lzf")


def live_chunk(folder: Path):
    return h5py.File(folder / "a.h5", "w").create_dataset("x", data=DATA, chunks=DATA.shape)


def live_zarr(folder: Path):
    return zarr.create_array(folder / "a.zarr", data=DATA, chunks=(PER, ROW))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("make", [live_contiguous, live_chunks, live_chunk, live_zarr])
def test_what_is_written_to_an_open_array_between_two_loops_is_in_the_next(make, threads, tmp_path):
    array = make(tmp_path)
    loader = nd.Loader(array, 64, shuffle="window", threads=threads)
    for value in range(1, 4):
        next(iter(loader))  # a loop that is left has decoded more than it handed out
        array[...] = value
        assert {number for batch in loader for number in batch.unique().tolist()} == {value}


def test_fields_of_records_that_are_written_to_between_two_loops_are_new_in_the_next(tmp_path):
    records = np.zeros(50, [("a", "f4"), ("b", "i8")])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("r", data=records)
        loader = nd.Loader(array, 50)
        list(loader)
        records["a"], records["b"] = 1, 2
        array[...] = records
        (batch,) = loader
    assert_same(batch, {"a": tensor_holding(records["a"]), "b": tensor_holding(records["b"])})


def test_what_may_be_written_to_is_decoded_once_in_every_loop_and_all_else_once_in_all(monkeypatch):
    keep(monkeypatch, 2 * DATA.nbytes)
    for is_live, times in ((True, 3), (False, 1)):
        counted = Counted()
        monkeypatch.setattr(file_columns, "piece_of", lambda *_, c=counted, i=is_live: c.piece._replace(is_live=i))
        loader = nd.Loader(object(), 64, shuffle=True, threads=2)
        for _ in range(3):
            assert sum(len(batch) for batch in loader) == ROWS
        assert set(counted.count.values()) == {times}


def test_an_array_that_is_open_for_reading_alone_keeps_its_chunks(tmp_path):
    live_chunks(tmp_path).file.close()
    live_zarr(tmp_path)
    with h5py.File(tmp_path / "a.h5") as file:
        assert not piece_of(file["x"], WISHES).is_live
    assert not piece_of(zarr.open_array(tmp_path / "a.zarr", mode="r"), WISHES).is_live
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        assert piece_of(file["x"], WISHES).is_live
    assert piece_of(zarr.open_array(tmp_path / "a.zarr", mode="r+"), WISHES).is_live


def test_a_compound_dataset_is_a_dict_of_its_fields(tmp_path):
    records = np.zeros(50, [("a", "f4"), ("b", "i8", (2,))])
    records["a"], records["b"] = np.arange(50), np.arange(100).reshape(50, 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        (batch,) = nd.Loader(file.create_dataset("r", data=records), 50)
    assert_same(batch, {"a": tensor_holding(records["a"]), "b": tensor_holding(records["b"])})


def test_a_dataset_that_torch_has_no_tensor_for_is_refused_before_the_loop(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        text = file.create_dataset("t", data=["a", "bc"])
        with pytest.raises(UnsupportedTypeError, match="text of varying length has no tensor form"):
            nd.Loader(text)
        with pytest.raises(UnsupportedTypeError, match="has no rows"):
            nd.Loader(file.create_dataset("n", data=3.0))


def test_a_file_that_is_closed_is_an_error_before_and_in_the_loop(cache, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=DATA, chunks=(PER, ROW))
        loader = nd.Loader(dataset, 50, threads=0)
        batches = iter(loader)
        next(batches)
    with pytest.raises(FormatError, match=r"a\.h5' dataset 'x': its file is closed") as caught:
        list(batches)
    (row,) = caught.value.index
    assert row in range(PER, ROWS, PER)  # that of the first chunk that had not been decoded ahead
    with pytest.raises(UnsupportedTypeError, match="its file is closed"):
        nd.Loader(dataset)


def test_an_open_zarr_array_and_group_are_columns(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", data=DATA, chunks=(PER, 300), shards=(2 * PER, 600))
    group.create_array("y", data=np.arange(ROWS), chunks=(PER,))
    for batch in nd.Loader(group, 64, shuffle=True, threads=2):
        assert_same(batch["x"], tensor_holding(DATA[batch["y"].numpy()]))
    (whole,) = nd.Loader(group["x"], ROWS)
    assert_same(whole, tensor_holding(DATA))


@pytest.mark.parametrize("is_open", [False, True])
def test_a_zarr_array_with_chunks_missing_is_refused(is_open, tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", data=DATA, chunks=(PER, ROW))
    (tmp_path / "a.zarr" / "c" / "3" / "0").unlink()
    with pytest.raises(FormatError, match=r"1 of its 20 chunks.* are missing"):
        nd.Loader(array if is_open else tmp_path / "a.zarr")


def test_a_dask_array_is_computed_chunk_by_chunk():
    lazy = dask.array.from_array(DATA, chunks=(PER, 400)) + 1
    for x, y in nd.Loader((lazy, np.arange(ROWS)), 64, shuffle=True, threads=2):
        assert_same(x, tensor_holding(DATA[y.numpy()] + np.uint8(1)))
    with pytest.raises(UnsupportedTypeError, match="compute_chunk_sizes"):
        nd.Loader(lazy[lazy[:, 0] > 9])


def test_chunks_of_dask_are_computed_once_where_they_are_kept_or_come_in_order(monkeypatch):
    counted = Counter()

    def count(block):
        counted[int(block[0, 0])] += 1
        return block

    numbered = np.repeat(np.arange(ROWS // PER, dtype=np.int64), PER)[:, None] * np.ones(40, np.int64)
    lazy = dask.array.from_array(numbered, chunks=(PER, 40)).map_blocks(count, dtype="i8", meta=np.empty((0, 0), "i8"))
    once = dict.fromkeys(range(ROWS // PER), 1)
    keep(monkeypatch, 8 * PER * 320)
    monkeypatch.setattr(chunk_rows, "_SMALL", 0)
    assert_same(torch.cat(list(nd.Loader(lazy, 37, threads=0))), torch.from_numpy(numbered))
    assert counted == once
    counted.clear()
    shuffled = nd.Loader(lazy, 50, shuffle="window", window=2 * PER, threads=0)
    assert sorted(torch.cat(list(shuffled))[:, 0].tolist()) == numbered[:, 0].tolist()
    assert counted == once
    counted.clear()
    keep(monkeypatch, 2 * numbered.nbytes)
    kept = nd.Loader(lazy, 64, shuffle=True, threads=2)
    for _ in range(2):
        assert sum(map(len, kept)) == ROWS
    assert counted == once


def test_chunks_of_dask_of_any_sizes_are_rows(monkeypatch):
    monkeypatch.setattr(chunk_rows, "_SMALL", 0)
    lazy = dask.array.from_array(DATA, chunks=((1, 700, 0, 299, 1000), (999, 1)))
    for x, y in nd.Loader((lazy, np.arange(ROWS)), 64, shuffle=True, threads=2):
        assert_same(x, tensor_holding(DATA[y.numpy()]))
    again = pickle.loads(pickle.dumps(nd.Loader(lazy, ROWS)))
    assert_same(next(iter(again)), tensor_holding(DATA))


def test_a_dask_array_with_masks_or_without_rows_is_refused_before_the_loop():
    lazy = dask.array.from_array(DATA, chunks=(PER, 400))
    with pytest.raises(UnsupportedTypeError, match=r"^Loader: .* a tensor has no mask") as caught:
        nd.Loader(dask.array.ma.masked_greater(lazy, 9))
    assert "dask.array.ma.filled" in caught.value.hint
    with pytest.raises(UnsupportedTypeError, match=r"^Loader: dask array 'sum.*' has no rows"):
        nd.Loader(lazy.sum())


@pytest.mark.parametrize("length", [4, None], ids=["rows happen to be equal", "rows of any length"])
def test_a_dataset_of_varying_length_is_refused_before_the_loop_and_told_what_is_taken(tmp_path, length):
    rows = [np.full(length or 3 + i, i, np.float32) for i in range(3)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", 3, h5py.vlen_dtype(np.float32))
        records = file.create_dataset("r", 3, [("n", "i4"), ("v", h5py.vlen_dtype(np.float32))])
        for i, row in enumerate(rows):
            dataset[i], records[i] = row, (i, row)
        with pytest.raises(UnsupportedTypeError, match=r"dataset 'x' holds values of varying length") as caught:
            nd.Loader({"x": dataset})
        given = eval(caught.value.hint.partition(" is ")[0], {"dataset": dataset})
        assert_same(next(iter(nd.Loader(given, sampler=[2])))[0], torch.from_numpy(rows[2]))
        with pytest.raises(UnsupportedTypeError, match=r"dataset 'r' holds fields with values of varying") as caught:
            nd.Loader(records)
        given = eval(caught.value.hint.partition(" has ")[0], {"dataset": records})
        assert next(iter(nd.Loader(given, sampler=[2])))["n"].tolist() == [2]


def long_doubles(kind, file):
    if kind == "dask":
        return dask.array.from_array(DATA.astype(np.longdouble), chunks=(PER, 400))
    dataset = file.create_dataset("x", data=DATA.astype(np.longdouble), chunks=(PER, ROW))
    return file if kind == "group" else dataset


@pytest.mark.parametrize("float_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dataset", "group", "dask"])
def test_long_doubles_are_cast_as_they_are_in_memory(tmp_path, kind, float_dtype):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = long_doubles(kind, file)
        batch = next(iter(nd.Loader(data, 100, float_dtype=float_dtype)))
        expected = next(iter(nd.Loader(DATA.astype(np.longdouble), 100, float_dtype=float_dtype)))
        assert_same(batch["x"] if kind == "group" else batch, expected)
        with pytest.raises(UnsupportedDtypeError, match=r"^Loader: cannot convert .* torch has no") as caught:
            nd.Loader(data)
        with pytest.raises(UnsupportedDtypeError) as in_memory:
            nd.Loader(np.ones(3, np.longdouble))
        assert caught.value.hint == in_memory.value.hint


@pytest.mark.parametrize("float_dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("dtype", ["?", "i8", "u1", "f2", ">f4", "f8", "c8", "S3"])
def test_float_dtype_casts_what_floats_of_a_live_dataset_as_in_memory(tmp_path, dtype, float_dtype):
    values = DATA[:9, :4].astype(dtype)
    (expected,) = nd.Loader(values, 9, float_dtype=float_dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for data in (file.create_dataset("x", data=values), dask.array.from_array(values, chunks=(4, 4))):
            assert_same(*nd.Loader(data, 9, float_dtype=float_dtype), expected)


def test_columns_of_different_media_have_to_be_of_one_length(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=DATA, chunks=(PER, ROW))
        with pytest.raises(ShapeMismatchError, match=r"data\['y'\] has 3 rows and data\['x'\] has 2000"):
            nd.Loader({"x": dataset, "y": torch.zeros(3)})


# --- memory


def test_memory_that_is_left_heeds_the_limits_of_the_process(monkeypatch):
    before = memory_left()
    assert 0 < before < 1 << 50
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()  # as it is now: other threads take and return memory meanwhile
    used = int(status.partition("VmData:")[2].split()[0]) << 10
    then = {"/proc/self/status": status}
    monkeypatch.setattr("ndtorch.loader.memory_left._read", lambda path: then[path] if path in then else _read(path))
    resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), hard))
    try:
        assert memory_left() <= 64 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_an_epoch_over_files_larger_than_a_limit_stays_below_it(tmp_path):
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("larger_than_limit.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = ("mapped npy", "read npy", "h5", "zarr", "dask")
    assert done.stdout.splitlines() == [f"{kind}: 120 MB within 40 MB" for kind in kinds]
