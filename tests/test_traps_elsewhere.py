"""The traps around other libraries' objects, pictures, batches and files: the trap where it is open, then ndtorch."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import assert_same, assert_shares, tensor_holding
from torch.utils.data import default_collate
from upstream import alone, still, still_refused

import ndtorch as nd

# ---- tables and sparse matrices ----


def test_a_series_needs_no_index_that_begins_at_zero() -> None:
    """pytorch#51112"""
    pd = pytest.importorskip("pandas", reason="a trap of pandas")
    series = pd.Series([1.0, 2.0], index=[5, 6])
    with still_refused("pytorch#51112", KeyError, ValueError):
        torch.tensor(series)
    assert_same(nd.to_torch(series), torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_nullable_integers_stay_integers_and_their_nulls_are_named() -> None:
    """ray#59445: integers with a null become an object column, or floats in which 2**53 + 1 is another number."""
    pd = pytest.importorskip("pandas", reason="a trap of pandas")
    frame = pd.DataFrame({"id": pd.array([2**53 + 1, None], dtype="Int64"), "n": [1, 2]})
    still(frame.to_numpy().dtype == object, "ray#59445", "a frame with a null becomes objects")
    still(int(frame["id"].to_numpy(dtype=float, na_value=0)[0]) == 2**53, "ray#59445", "float64 changes the number")
    with pytest.raises(nd.UnsupportedTypeError, match="1 of its 2 values is missing, the first at index 1") as refused:
        nd.to_torch(frame)
    assert refused.value.path == "['id']"
    split = nd.to_torch(frame, masked="split")
    assert split["id"].data[0] == 2**53 + 1
    assert split["id"].mask.tolist() == [False, True]
    assert split["n"].dtype is torch.int64
    with pytest.raises(nd.LossyCastError):
        nd.to_torch(frame["id"], masked="nan", casting="exact")


def test_a_sparse_matrix_keeps_its_layout_and_its_memory() -> None:
    sp = pytest.importorskip("scipy.sparse", reason="a trap of scipy")
    matrix = sp.eye_array(3, format="csr")
    with still_refused("the sparse trap", TypeError):
        torch.tensor(matrix)
    tensor = nd.to_torch(matrix)
    assert tensor.layout is torch.sparse_csr
    assert_shares(tensor.values(), matrix.data)
    assert_shares(tensor.col_indices(), matrix.indices)


def test_a_lost_chunk_is_never_read_as_zeros(tmp_path: Path) -> None:
    """zarr#3682 and others: a chunk that was never written, or was lost, reads as the fill value."""
    zarr = pytest.importorskip("zarr", reason="a trap of zarr")
    array = zarr.create_array(tmp_path / "a.zarr", data=np.arange(1.0, 5.0), chunks=(2,))
    assert nd.to_torch(array).tolist() == [1, 2, 3, 4]
    chunk = next(path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file() and path.name == "1")
    chunk.unlink()
    again = zarr.open_array(tmp_path / "a.zarr", mode="r")
    still(again[:].tolist() == [1, 2, 0, 0], "the zarr trap", "a missing chunk reads as zeros")
    with pytest.raises(nd.FormatError, match="1 of its 2 chunks"):
        nd.to_torch(again)


def test_memory_that_arrow_calls_immutable_is_never_written() -> None:
    pa = pytest.importorskip("pyarrow", reason="a trap of pyarrow")
    column = pa.array([1.0, 2.0])
    torch.from_dlpack(column).zero_()
    still(column.to_pylist() == [0.0, 0.0], "the Arrow trap", "torch.from_dlpack writes into an immutable array")
    column = pa.array([1.0, 2.0])
    nd.to_torch(column).zero_()
    assert column.to_pylist() == [1.0, 2.0]


# ---- pictures ----


def test_bright_pixels_of_16_bits_stay_bright() -> None:
    """torchvision's `to_tensor` reads 16-bit pictures as signed: 40000 becomes -25536."""
    pixels = np.array([[40000, 7]], np.uint16)
    still(torch.from_numpy(pixels.astype(np.int16))[0, 0] == -25536, "the 16-bit trap", "int16 wraps")
    planes = nd.image_to_torch(pixels)
    assert_same(planes, tensor_holding(pixels.astype(np.float32)[None] / np.float32(65535)))
    assert_same(nd.image_to_numpy(planes, dtype="uint16"), pixels[..., None])


def test_values_beyond_white_are_clamped() -> None:
    """`to_pil_image` wraps 1.1 to 24."""
    still(int(torch.tensor(1.1).mul(255).byte()) == 24, "the wrap trap", "byte() wraps")
    assert nd.image_to_numpy(torch.full((1, 1, 1), 1.1)).tolist() == [[[255]]]


def test_a_single_channel_keeps_its_axis() -> None:
    assert nd.image_to_torch(np.zeros((4, 5, 1), np.uint8)).shape == (1, 4, 5)
    assert nd.image_to_torch(np.zeros((2, 4, 5, 1), np.uint8)).shape == (2, 1, 4, 5)


# ---- batches ----


def test_ragged_samples_are_padded_with_their_lengths() -> None:
    """pytorch#27617, #65156"""
    samples = [np.array([1, 2, 3]), np.array([4])]
    with still_refused("pytorch#65156", RuntimeError):
        default_collate(samples)
    padded, lengths = nd.stack(samples, pad_value=-1)
    assert padded.tolist() == [[1, 2, 3], [4, -1, -1]]
    assert lengths.tolist() == [3, 1]


def test_a_list_of_arrays_is_stacked_and_not_read_number_by_number() -> None:
    """pytorch#13918: torch reads a list of arrays number by number, and says so in a warning."""
    arrays = [np.full(3, i, np.float32) for i in range(4)]
    slow = "import numpy as np, torch; torch.tensor([np.zeros(3), np.ones(3)])"  # it warns once a process
    still("extremely slow" in alone(slow).stderr, "pytorch#13918", "torch warns that it is slow")
    assert_same(nd.stack(arrays), torch.from_numpy(np.stack(arrays)))


def test_the_default_format_of_datasets_would_change_values() -> None:
    """Hugging Face's torch format casts as float32 and int64: 1e300 becomes inf, the largest uint64 -1."""
    large, most = np.array([1e300]), np.array([2**64 - 1], np.uint64)
    still(bool(torch.tensor(large, dtype=torch.float32).isinf().all()), "the datasets trap", "float32 overflows")
    still(most.astype(np.int64)[0] == -1, "the datasets trap", "int64 wraps")
    assert nd.to_torch(large).item() == 1e300
    assert nd.to_torch(most).dtype is torch.uint64
    for source, dtype in ((large, "float32"), (most, "int64")):
        with pytest.raises(nd.LossyCastError, match="index 0"):
            nd.to_torch(source, dtype=dtype, casting="exact")


def test_a_safe_cast_does_not_turn_nan_into_a_number() -> None:
    """MONAI's "safe" cast of [nan, 300, -5] to uint8 gives [0, 44, 251]."""
    values = np.array([np.nan, 300.0, -5.0])
    with pytest.raises(nd.LossyCastError):
        nd.to_torch(values, dtype="uint8")
    with pytest.raises(nd.LossyCastError, match="index 0"):
        nd.to_torch(values, dtype="uint8", casting="exact")


# ---- files ----

OVERWRITE = """
import resource, signal, sys
import numpy as np
import ndtorch as nd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk would
array = np.zeros(100_000)
try:
    np.save(sys.argv[1], array) if sys.argv[2] == "numpy" else nd.write(sys.argv[1], {"old": array}, overwrite=True)
except OSError:
    raise SystemExit(7)
"""


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    by_numpy, by_us = tmp_path / "numpy.npy", tmp_path / "old.npy"
    for path in (by_numpy, by_us):
        np.save(path, np.arange(3.0))
    assert alone(OVERWRITE, by_numpy, "numpy").returncode == 7
    with still_refused("the save trap", ValueError):
        np.load(by_numpy)
    assert alone(OVERWRITE, by_us, "ndtorch").returncode == 7
    assert np.load(by_us).tolist() == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["numpy.npy", "old.npy"]


DEMAND = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
try:
    np.load(sys.argv[1])
except MemoryError:
    raise SystemExit(7)
"""


def test_a_small_file_cannot_demand_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "claims.npy"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**32,)})
    path.write_bytes(header.getvalue())
    assert path.stat().st_size == 128
    still(alone(DEMAND, path).returncode == 7, "the header trap", "NumPy asks for 32 GiB")
    with pytest.raises(nd.FormatError):
        nd.read(path)


# ---- installations ----


def test_doctor_says_why_numpy_is_not_available() -> None:
    """pytorch#146987: two installations or binary interfaces in one process."""
    text = str(nd.doctor())
    assert "torch and NumPy" in text
    assert "torch.from_numpy and Tensor.numpy work" in text


# ---- samples and data sets in other processes ----

_COPIED = """
import sys
from torch.utils.data import DataLoader, Dataset
import ndtorch as nd

class Sample:
    def __init__(self, text): self.text = text
    def __reduce__(self): return Sample, ("pickled",)

class Samples(Dataset):
    def __init__(self, samples): self.samples = samples
    def __len__(self): return len(self.samples)
    def __getitem__(self, i): return self.samples[i]
    def __reduce__(self): return Samples, ([Sample("copied") for _ in self.samples],)

if __name__ == "__main__":
    data = Samples([Sample("as it is") for _ in range(4)])
    workers = DataLoader(data, 2, collate_fn=list, num_workers=1, multiprocessing_context=sys.argv[1])
    print(*{sample.text for batch in workers for sample in batch})
    got = [sample for batch in nd.Loader(data, 2, collate_fn=list, threads=4) for sample in batch]
    print(*{a is b for a, b in zip(got, data.samples, strict=True)})
"""


def test_samples_are_not_pickled_on_their_way_to_the_batch(tmp_path: Path) -> None:
    """pytorch#13246: the samples of workers go through a pipe, and each worker has the data set to itself."""
    script = tmp_path / "copied.py"
    script.write_text(_COPIED)
    command = f"import runpy, sys; sys.argv = ['', 'fork']; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = alone(f"import warnings; warnings.simplefilter('ignore', DeprecationWarning); {command}")
    assert done.returncode == 0, done.stderr
    trap, answer = done.stdout.splitlines()
    still(trap == "pickled", "pytorch#13246", "samples of workers are pickled")
    assert answer == "True"


_THREADS = """
import sys
import numpy as np
import ndtorch as nd

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def loop(threads):
    loader = nd.Loader((data, labels), 256, shuffle=True, threads=threads)
    most = 0
    for step, _ in enumerate(loader):
        if step % 64 == 0:
            most = max(most, resident())
    return most

data = np.ones((1 << 18, 1 << 10), np.uint8)  # against which the batches in the works are few
labels = np.zeros(len(data))
loop(1)
print(data.nbytes, loop(1), loop(8))
"""


def test_threads_have_no_copy_of_the_data() -> None:
    """pytorch#13246: workers hold the data set as many times as there are workers, sooner or later."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see how much memory is in use")
    done = alone(_THREADS)
    assert done.returncode == 0, done.stderr
    nbytes, few, many = map(int, done.stdout.split())
    assert many - few < nbytes // 2
