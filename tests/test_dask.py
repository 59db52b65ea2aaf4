"""Dask arrays: computed a few chunks at a time, as NumPy would have them, and never in memory twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe
import dask.local
import numpy as np
import pytest
import scipy.sparse
import torch
import xarray as xr
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, any_values

import ndtorch as nd
from ndtorch.foreign import dask as module

VALUES = np.arange(7 * 5 * 3.0).reshape(7, 5, 3)


def chunked(values: np.ndarray = VALUES, chunks: Any = (3, 2, 2)) -> Any:
    return da.from_array(values, chunks=chunks)


class Counted:
    """A function for chunks that counts how often it is called with each; the first value says which it is."""

    def __init__(self) -> None:
        self.calls: Counter[float] = Counter()
        self._lock = threading.Lock()

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        with self._lock:
            self.calls[float(chunk.flat[0])] += 1
        return chunk + 1


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each chunk, or band of chunks, a group of its own."""
    monkeypatch.setattr(module, "_AT_ONCE", 0)
    monkeypatch.setattr(dask.system, "CPU_COUNT", 1)


def that_lies(function: Callable[[np.ndarray], Any], dtype: Any = float) -> Any:
    """An array whose chunks are not what dask was told of them."""
    return chunked().map_blocks(function, dtype=dtype, meta=np.empty((0, 0, 0), dtype))


# --- to tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_out_as_that_of_numpy_does(dtype: str) -> None:
    values = any_values(DTYPES[dtype][0], (7, 5), seed=1)
    for source in (values, values.astype(values.dtype.newbyteorder("S"))):
        tensor = nd.to_torch(chunked(source, (3, 2)))
        assert_same(tensor, tensor_holding(values))
        assert_independent(tensor, values)
    assert_same(nd.to_numpy(chunked(values, (3, 2))), values)


@given(data=st.data())
def test_any_chunks_come_together(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    chunks = []
    for n in shape:
        cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
        chunks.append(tuple(high - low for low, high in zip([0, *cuts], [*cuts, n], strict=True)))
    values = any_values(np.dtype(data.draw(st.sampled_from(["f8", ">i2", "M8[s]", "S3", "?"]))), shape, seed=3)
    source = chunked(values, tuple(chunks))
    assert_same(nd.to_torch(source), nd.to_torch(values.copy()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_BAND", data.draw(st.sampled_from([0, 1 << 20])))
        patch.setattr(module, "_AT_ONCE", data.draw(st.sampled_from([0, 1 << 20])))
        blocks = [block.copy() for block in module.take(source, lambda inner: inner).blocks()]
    assert np.array_equal(np.concatenate([np.empty(0, values.dtype), *blocks]), values.reshape(-1), equal_nan=False)


def test_a_cast_happens_on_the_way_and_follows_the_rules() -> None:
    source = {"x": chunked(), "n": chunked(VALUES.astype("int64"), 2)}
    result = nd.to_torch(source, float_dtype="float32")
    assert_same(result, {"x": torch.from_numpy(VALUES).float(), "n": torch.from_numpy(VALUES.astype("int64"))})
    assert_same(nd.to_torch(source["n"], dtype="bfloat16"), torch.from_numpy(VALUES).bfloat16())
    with pytest.raises(nd.LossyCastError, match="float64 to int32 is not a same_kind cast"):
        nd.to_torch(source["x"], dtype="int32")
    assert_same(nd.to_numpy(source["n"], dtype=">f4"), VALUES.astype(">f4"))


@pytest.mark.usefixtures("few_at_once")
def test_a_value_that_an_exact_cast_would_lose_is_named_by_its_index_in_the_whole() -> None:
    values = VALUES.copy()
    values[5, 4, 2] = 0.5
    with pytest.raises(nd.LossyCastError, match=r"at index \(5, 4, 2\): 0\.5 would become 0") as caught:
        nd.to_torch(chunked(values), dtype="int8", casting="exact")
    assert caught.value.index == (5, 4, 2)
    assert_same(nd.to_torch(chunked(), dtype="int8", casting="exact"), torch.from_numpy(VALUES).to(torch.int8))


def test_time_text_and_fields_are_what_they_are_in_numpy() -> None:
    records = np.array([(1, 2.5), (3, 4.5), (5, 6.5)], [("a", "i2"), ("b", "f8")])
    for values in (
        np.array(["2024-02-29", "NaT", "1970-01-02"], "M8[D]"),
        np.array(["one", "two", "three"]),
        np.array([b"a", b"bc", b"d"]),
        records,
    ):
        source = chunked(values, 2)
        tensor = nd.to_torch(source)
        assert_same(tensor, nd.to_torch(values))
        assert_same(nd.to_numpy(tensor, like=source), values)
    with pytest.raises(nd.UnsupportedDtypeError, match=r"dtype=float32 cannot apply to M8\[s\]\[1\]\(dask\)"):
        nd.to_torch(chunked(np.zeros(1, "M8[s]"), 1), dtype="float32")


def test_what_has_no_axes_or_no_elements_is_converted_too() -> None:
    assert_same(nd.to_torch(chunked().sum()), torch.tensor(VALUES.sum()))
    assert_same(nd.to_torch(chunked().sum(), dtype="float32"), torch.tensor(VALUES.sum(), dtype=torch.float32))
    assert_same(nd.to_torch(chunked(VALUES[:0])), torch.zeros(0, 5, 3, dtype=torch.float64))


def test_chunks_of_no_elements_are_never_computed(tmp_path: Path) -> None:
    def fail_if_empty(chunk: np.ndarray) -> np.ndarray:
        assert chunk.size
        return chunk

    source = chunked(chunks=((0, 3, 0, 4, 0), (0, 5), (2, 0, 1))).map_blocks(fail_if_empty, meta=VALUES[:0])
    assert_same(nd.to_torch(source), torch.from_numpy(VALUES))
    assert_same(torch.cat(list(nd.Loader(source, 2))), torch.from_numpy(VALUES))
    nd.write(tmp_path / "a.npy", source)
    assert_same(np.load(tmp_path / "a.npy"), VALUES)
    assert [batch.shape for batch in nd.Loader(source[:, :0], 4)] == [(4, 0, 3), (3, 0, 3)]


def test_explain_says_what_happens_and_computes_nothing() -> None:
    plan = nd.explain(that_lies(lambda chunk: 1 / 0), dtype="float32")
    assert (plan.reason, plan.nbytes_copied) == ("its values are chunks that dask has yet to compute", VALUES.size * 4)
    for options in ({"copy": False}, {"copy": False, "readonly": "share"}):
        with pytest.raises(nd.CopyRequiredError, match=r"f64\[7,5,3\]\(dask\): its values are chunks"):
            nd.to_torch(chunked(), **options)


def test_leaves_of_stack_and_collate_may_be_chunks() -> None:
    expected = torch.from_numpy(np.stack([VALUES, VALUES + 1]))
    assert_same(nd.stack([chunked(), chunked() + 1]), expected)
    assert_same(nd.collate([{"x": chunked()}, {"x": chunked() + 1}]), {"x": expected})


# --- what is refused


@pytest.mark.parametrize(
    ("make", "fact", "hint"),
    [
        (lambda: chunked()[chunked() > 4], "float64[nan](dask): some of its sizes", "source.compute_chunk_sizes()"),
        (lambda: chunked().astype(object), "only computing it tells what its objects are", "source.astype(dtype)"),
        (lambda: chunked(VALUES[0], 2).map_blocks(scipy.sparse.csr_array), "but scipy.csr_array", "chunk.toarray()"),
        (lambda: dask.dataframe.from_dict({"a": [1]}, 1), "how many rows", "source.to_dask_array(lengths=True)"),
        (lambda: dask.dataframe.from_dict({"a": [1]}, 1).a, "how many rows", "source.to_dask_array(lengths=True)"),
        (lambda: dask.delayed(1), "what it holds is known when", "source.compute()"),
    ],
    ids=["sizes", "objects", "sparse", "frame", "series", "delayed"],
)
def test_what_metadata_cannot_tell_is_refused_with_the_call_that_helps(
    make: Callable[[], Any], fact: str, hint: str
) -> None:
    source = make()
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch({"x": source})
    assert fact in str(caught.value)
    assert hint in caught.value.hint
    assert nd.explain(source).error is not None


def test_the_calls_in_the_hints_help() -> None:
    picked = chunked()[chunked() > 4]
    picked.compute_chunk_sizes()
    assert_same(nd.to_torch(picked), torch.from_numpy(VALUES[VALUES > 4]))
    frame = dask.dataframe.from_dict({"a": [1, 2], "b": [3, 4]}, 2)
    assert_same(nd.to_torch(frame.to_dask_array(lengths=True)), torch.tensor([[1, 3], [2, 4]]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda chunk: chunk.astype("f4")[:1],
            r"chunk \(0, 0, 0\) of dask array '.*' has another shape; expected \(3, 2",
        ),
        (
            lambda chunk: chunk.astype(complex),
            "has another dtype than the array says; expected float64, got complex128",
        ),
        (lambda chunk: chunk.astype("int64"), "has another dtype than the array says; expected float64, got int64"),
        (lambda chunk: chunk.tolist(), "is a list; expected a NumPy array, got list"),
        (lambda chunk: np.ma.masked_equal(chunk, 99), "has a mask, and the array does not say that its chunks do"),
    ],
    ids=["shape", "wider", "other", "list", "mask"],
)
def test_a_chunk_that_is_not_what_the_array_says_is_an_error(
    function: Callable[[np.ndarray], Any], message: str, tmp_path: Path
) -> None:
    source = that_lies(function)
    with pytest.raises(nd.NdtorchError, match=f"^to_torch: .*{message}"):
        nd.to_torch(source)
    with pytest.raises(nd.NdtorchError, match=f"^write: .*{message}"):
        nd.write(tmp_path / "a.npy", source)
    with pytest.raises(nd.NdtorchError, match=f"^Loader: .*{message}"):
        next(iter(nd.Loader(source, 2, threads=0)))
    assert not list(tmp_path.iterdir())


def test_a_narrower_dtype_of_the_same_kind_is_taken() -> None:
    assert_same(nd.to_torch(that_lies(lambda chunk: chunk.astype("f4"))), torch.from_numpy(VALUES))


# --- masks


def test_a_mask_is_an_error_until_the_caller_says_what_becomes_of_it() -> None:
    counted = Counted()
    values = np.ma.masked_greater(VALUES + 1, 50)
    source = da.ma.masked_greater(chunked().map_blocks(counted, dtype=float, meta=np.empty((0, 0, 0))), 50)
    with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask and only computing it tells") as caught:
        nd.to_torch(source)
    assert "masked='split'" in caught.value.hint
    assert not counted.calls
    assert_same(
        nd.to_torch(source, masked="split", float_dtype="float32"),
        nd.to_torch(values, masked="split", float_dtype="float32"),
    )
    assert set(counted.calls.values()) == {1}, "values and mask were computed at once"
    assert_same(nd.to_torch(source, masked="nan"), nd.to_torch(values, masked="nan"))
    assert_same(nd.to_numpy(source), values)
    assert_same(nd.to_torch(da.ma.filled(source, 0)), torch.from_numpy(values.filled(0)))


def test_chunks_without_a_mask_in_an_array_with_masks_miss_nothing() -> None:
    source = da.ma.masked_array(chunked(VALUES.astype("int16")))
    result = nd.to_torch(source, masked="split")
    assert_same(result.data, torch.from_numpy(VALUES.astype("int16")))
    assert not result.mask.any()
    assert_same(nd.to_torch(source, masked="nan"), torch.from_numpy(VALUES))


def test_masks_of_fields_are_refused() -> None:
    records = np.ma.array([(1, 2.5)], dtype=[("a", "i2"), ("b", "f8")])
    with pytest.raises(nd.UnsupportedTypeError, match="its fields have masks each"):
        nd.to_torch(da.from_array(records, chunks=1, asarray=False), masked="split")


# --- how often, and what goes wrong


@pytest.mark.usefixtures("few_at_once")
def test_each_task_is_done_once_where_chunks_share_nothing_or_their_neighbours(tmp_path: Path) -> None:
    values = np.arange(40.0)
    counted = Counted()
    source = chunked(values, 5).map_blocks(counted, dtype=float, meta=np.empty(0))
    once = dict.fromkeys(range(0, 40, 5), 1)
    nd.to_torch(source)
    assert counted.calls == once
    counted.calls.clear()
    near = da.overlap.overlap(source, depth=1, boundary="none").map_blocks(np.cumsum, dtype=float)
    near = da.overlap.trim_internal(near, {0: 1}, boundary="none")
    found = nd.to_torch(near)
    ours = counted.calls.copy()
    assert_same(found, torch.from_numpy(near.compute(scheduler="synchronous")))
    assert ours == counted.calls - ours, "as often as dask does"
    counted.calls.clear()
    nd.write(tmp_path / "a.npy", source.rechunk(7))
    assert counted.calls == once
    assert_same(np.load(tmp_path / "a.npy"), values + 1)


@pytest.mark.usefixtures("few_at_once")
def test_what_all_chunks_share_is_computed_once_and_nothing_more_than_twice(tmp_path: Path) -> None:
    values = np.arange(40.0)
    counted, shared = Counted(), Counted()
    source = chunked(values, 5).map_blocks(counted, dtype=float, meta=np.empty(0))
    mean = da.from_delayed(dask.delayed(shared)(source.mean(keepdims=True)), (1,), float)
    centred = source - mean
    assert_same(nd.to_torch(centred), torch.from_numpy(values + 1 - 21.5))
    assert list(shared.calls.values()) == [1]
    assert max(counted.calls.values()) <= 2
    nd.write(tmp_path / "a.npy", centred)
    assert list(shared.calls.values()) == [2]
    for batch in (loader := nd.Loader(centred, 7, shuffle=True, threads=2)):
        assert len(batch)
    assert len(loader) == 6
    assert list(shared.calls.values()) == [3]
    assert max(counted.calls.values()) <= 6


def test_a_failure_keeps_its_error_and_names_the_array(tmp_path: Path) -> None:
    def fail(chunk: np.ndarray) -> np.ndarray:
        raise KeyError("the disk is gone")

    source = that_lies(fail)
    np.save(tmp_path / "a.npy", VALUES)
    for subject, convert in {
        "to_torch": lambda: nd.to_torch({"x": source}),
        "to_numpy": lambda: nd.to_numpy({"x": source}),
        "write": lambda: nd.write(tmp_path / "a.npy", {"x": source}, overwrite=True),
    }.items():
        with pytest.raises(nd.NdtorchError, match=f"^{subject}: computing dask array 'fail-.*KeyError: 'the") as caught:
            convert()
        assert isinstance(caught.value.__cause__, KeyError)
        assert caught.value.path == "['x']"
    assert_same(np.load(tmp_path / "a.npy"), VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    with pytest.raises(nd.NdtorchError, match=r"^Loader: computing dask array 'fail-") as caught:
        list(nd.Loader(source, 2, threads=2))
    assert isinstance(caught.value.__cause__, KeyError)


class Speechless(Exception):
    """One that fails again where it is to say why."""

    def __str__(self) -> str:
        raise RuntimeError


def test_a_failure_that_cannot_say_why_is_reported_too(tmp_path: Path) -> None:
    def fail(chunk: np.ndarray) -> np.ndarray:
        raise Speechless

    source = that_lies(fail)
    for convert in (nd.to_torch, lambda x: nd.write(tmp_path / "a.npy", x), lambda x: list(nd.Loader(x, 2))):
        with pytest.raises(nd.NdtorchError, match=r"computing dask array 'fail-.* failed \(Speechless: \)") as caught:
            convert(source)
        assert isinstance(caught.value.__cause__, Speechless)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_what_its_parent_was_computing() -> None:
    begun, release, parent = threading.Event(), threading.Event(), os.getpid()

    def slow(chunk: np.ndarray) -> np.ndarray:
        if os.getpid() == parent:
            begun.set()
            release.wait(120)
        return chunk

    shared = chunked().map_blocks(slow, meta=VALUES[:0]).sum(0)
    loader = nd.Loader(chunked(VALUES, (1, 5, 3)) - shared, 2, threads=0)
    thread = threading.Thread(target=list, args=(loader,))
    thread.start()
    assert begun.wait(120)
    child = os.fork()
    if not child:
        threading.Timer(60, os._exit, (2,)).start()
        found = torch.cat(list(loader)).numpy()
        os._exit(0 if np.array_equal(found, VALUES - VALUES.sum(0)) else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    release.set()
    thread.join()
    assert status == 0


@pytest.mark.parametrize("moment", ["it waits", "its wait has let a lock go"])
def test_ctrl_c_is_heard_while_dask(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(queue: Any) -> None:
        if moment == "it waits":
            signal.raise_signal(signal.SIGINT)
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()  # as `threading.Condition` does then, which raises

    monkeypatch.setattr(dask.local, "queue_get", interrupted)
    with ThreadPoolExecutor(1) as pool, dask.config.set(pool=pool), pytest.raises(KeyboardInterrupt):
        nd.to_torch(chunked() + 1)


# --- into files


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "pt", "h5", "zarr"])
@pytest.mark.parametrize("how", ["whole rows", "side by side", "through a file"])
def test_chunks_become_rows_of_a_file(suffix: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 0)
    monkeypatch.setattr(module, "_MAX_BAND", 0 if how == "through a file" else 1 << 20)
    source = chunked(VALUES, (2, 5, 3) if how == "whole rows" else (2, 2, 2)) + 1
    path = tmp_path / f"x.{suffix}"
    written = nd.write(path, {"x": source}, float_dtype="float32", verify=True)
    assert [(one.name, one.plan.dtype, one.nbytes) for one in written] == [("x", "float32", VALUES.size * 4)]
    assert_same(nd.to_torch(nd.read(path)["x"]), torch.from_numpy(VALUES + 1).float())


def test_a_file_of_chunks_has_the_bytes_of_one_of_arrays(tmp_path: Path) -> None:
    tree = {"deep": {"x": VALUES}, "t": np.array(["a", "bc"]), "n": np.float64(3)}
    lazy = {"deep": {"x": chunked()}, "t": chunked(tree["t"], 1), "n": chunked(np.array(3.0), ())}
    nd.write(tmp_path / "a.npz", tree)
    nd.write(tmp_path / "b.npz", lazy)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    nd.write(tmp_path / "c.npy", chunked())
    assert_same(np.load(tmp_path / "c.npy"), VALUES)


@pytest.mark.usefixtures("few_at_once")
def test_chunks_behind_labels_are_written_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = xr.Dataset({"x": (("a", "b", "c"), chunked() + 1)})
    with monkeypatch.context() as patch:
        patch.setattr(module.Chunks, "in_groups", lambda self: pytest.fail("it was computed whole"))
        nd.write(tmp_path / "a.npz", dict(labelled.data_vars), dtype="float32")
    assert_same(np.load(tmp_path / "a.npz")["x"], (VALUES + 1).astype("f4"))
    assert_same(nd.to_torch(labelled.x), torch.from_numpy(VALUES + 1))


def test_what_no_file_holds_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    counted = Counted()
    source = chunked().map_blocks(counted, dtype=float, meta=np.empty((0, 0, 0)))
    with pytest.raises(nd.UnsupportedTypeError, match="cannot write 'm': no file has masks") as caught:
        nd.write(tmp_path / "a.npz", {"x": source, "m": da.ma.masked_less(source, 4)})
    assert "dask.array.ma.filled" in caught.value.hint
    with pytest.raises(nd.UnsupportedTypeError, match="compute_chunk_sizes"):
        nd.write(tmp_path / "a.npz", {"x": source, "y": source[source > 3]})
    with pytest.raises(nd.LossyCastError):
        nd.write(tmp_path / "a.npz", {"x": source}, dtype="int8")
    assert not counted.calls


# --- memory

PEAKS = """
import sys
import dask, dask.array as da
import ndtorch as nd
from ndtorch.foreign import dask as module

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10

dask.config.set(num_workers=2)
dask.system.CPU_COUNT = 2
module._AT_ONCE = 8 << 20
source = da.arange(20_000_000, chunks=500_000, dtype="float64").reshape(-1, 100)
nd.to_torch(source[:10])
before = peak()
nd.write(sys.argv[1] + "/a.npy", source - source.mean(0))
print("file", peak() - before)
module._MAX_BAND = 0
nd.write(sys.argv[1] + "/b.npy", source.T)
print("columns", peak() - before)
nd.to_torch(source, dtype="float32")
print("tensor", peak() - before)
nd.to_torch(source - source.mean(0), dtype="float32")
print("difference", peak() - before)
"""


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is told by /proc alone")
def test_memory_is_that_of_the_result_and_a_few_chunks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {name: int(peak) for name, peak in map(str.split, done.stdout.splitlines())}
    few = 60  # MB: of 160, chunks of 4 MB each, and what a program takes anyway
    assert max(found["file"], found["columns"]) < few, found
    assert max(found["tensor"], found["difference"]) < 80 + few, found
    for path in tmp_path.iterdir():  # pytest keeps what is left here
        path.unlink()


# --- a cluster of dask.distributed as the scheduler


CLUSTER = """
import os, sys
import dask.array
import numpy as np
import torch
import ndtorch as nd

def main():
    from distributed import Client

    is_apart = sys.argv[1] == "processes"
    with Client(n_workers=2, threads_per_worker=1, processes=is_apart, dashboard_address=None):
        values = np.random.default_rng(0).normal(size=(60, 4))
        source = dask.array.from_array(values, chunks=(10, 4))
        lazy = source - source.mean(0)
        expected = torch.from_numpy(lazy.compute(scheduler="synchronous"))
        held = source.persist()
        for each in lazy, lazy.persist(), held - held.mean(0):
            assert torch.equal(nd.to_torch(each), expected)
            assert torch.equal(torch.cat(list(nd.Loader(each, batch_size=10))), expected)
            nd.write("a.npy", each, overwrite=True)
            assert np.array_equal(np.load("a.npy"), expected.numpy())
    print("all is equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["threads", "processes"])
def test_what_a_cluster_computes_or_has_computed_is_read(how, tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    (tmp_path / "cluster.py").write_text(CLUSTER)
    words = [sys.executable, "cluster.py", how]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "all is equal\n"), done.stderr
