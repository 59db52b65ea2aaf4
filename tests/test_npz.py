"""The .npz format: what NumPy writes is read, mapped where it is not packed, and streamed once where it is."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from comparison import assert_same
from strategies import DTYPES, filled

import ndtorch as nd
from ndtorch.files import npz, open_file

METHODS = {
    "": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "row-major": RNG.integers(0, 9, (30, 4, 5)),
    "column-major": np.asfortranarray(RNG.integers(0, 9, (30, 4, 5)).astype(np.float32)),
    "one dimension": np.arange(1000.0),
    "big-endian": np.arange(6).astype(">i4").reshape(2, 3),
    "text": np.array(["a", "bcd", ""]),
    "time": np.array(["2024-02-29", "NaT"], "M8[D]"),
    "fields": np.array([(1, 2.5)], [("é", "i4"), ("y", ">f8")]),
    "empty": np.zeros((0, 3)),
    "no dimension": np.array(3.5),
    "one element": np.ones((1, 1, 1), order="F"),
}
KEYS: list[Any] = [
    (),
    ...,
    0,
    -1,
    slice(1, 3),
    slice(None, None, -2),
    (slice(2, 9, 3), 1),
    (..., slice(0, 3)),
    (2, 1, 0),
]


def npz_file(folder: Path, arrays: dict[str, np.ndarray], method: int) -> Path:
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", stream.getvalue())
    return path


def joined(blocks: Any) -> np.ndarray:
    copies = [block.copy() for block in blocks]
    return np.frombuffer(b"".join(block.tobytes() for block in copies), copies[0].dtype)


# ---- what is written is what was read ----


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives(name, tmp_path):
    array = filled(DTYPES[name][0], (3, 4))
    nd.write(tmp_path / "a.npz", {"x": array, "none": array[:0], "one": array[0, 0]}, verify=True)
    back = nd.read(tmp_path / "a.npz", to="numpy")
    assert_same(back["x"][...], array)
    assert_same(back["none"][...], array[:0])
    assert back["one"].shape == ()
    with np.load(tmp_path / "a.npz") as loaded:
        stored = loaded["x"]
    known = stored if stored.dtype.names is None else stored[name].view(array.dtype)
    assert_same(known, array)


@pytest.mark.parametrize("kind", ARRAYS)
def test_numpy_reads_what_was_written_and_the_order_is_kept(kind, tmp_path):
    array = ARRAYS[kind]
    nd.write(tmp_path / "a.npz", {"x": array}, verify=True)
    with np.load(tmp_path / "a.npz") as loaded:
        assert_same(loaded["x"], array, strides=True)
    assert_same(nd.read(tmp_path / "a.npz", to="numpy")["x"][...], array, strides=True)


def test_elements_begin_at_a_multiple_of_64_and_are_mapped(tmp_path):
    nd.write(tmp_path / "a.npz", {"x" * n: np.arange(n) for n in range(1, 40)})
    for array in open_file(tmp_path / "a.npz").values():
        assert array.layout.offset % 64 == 0
        mapped = array.map()
        mapped[0] = 7  # in this process only
    assert nd.read(tmp_path / "a.npz", to="numpy")["xx"][...].tolist() == [0, 1]


def test_bytes_depend_on_the_arrays_alone(tmp_path):
    for name in ("a.npz", "b.npz"):
        nd.write(tmp_path / name, {"x": np.arange(3), "y": np.ones(2)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", ["layer/0.weight", "a.npy", "é 名", "a\nb", "[bold]", "\x1b[31m", "x" * 300])
def test_odd_names_survive(name, tmp_path):
    nd.write(tmp_path / "a.npz", {name: np.arange(2)})
    assert list(nd.read(tmp_path / "a.npz")) == [name]
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded.files == [name]


def test_names_that_no_archive_can_hold_are_refused(tmp_path):
    with pytest.raises(nd.FormatError, match="a zip archive has no names with 70000 bytes"):
        nd.write(tmp_path / "a.npz", {"x" * 70_000: np.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_no_arrays_are_an_archive_too(tmp_path):
    assert nd.write(tmp_path / "a.npz", {}) == []
    assert dict(nd.read(tmp_path / "a.npz")) == {}
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded.files == []


# ---- packed entries ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_way_to_the_elements_gives_the_same(method, kind, tmp_path):
    array = ARRAYS[kind]
    found = open_file(npz_file(tmp_path, {"x": array}, METHODS[method]))["x"]
    assert found.compression == method
    assert_same(found.read(), array)
    if array.size:
        assert_same(joined(found.blocks()), array.reshape(-1))
    if found.order == "F":
        assert_same(joined(found.blocks("F")), array.T.reshape(-1))
    for key in KEYS:
        try:
            expected = array[key]
        except IndexError:
            with pytest.raises(IndexError):
                found.select(key)
            continue
        assert_same(found.select(key), np.asarray(expected, array.dtype))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_stream_of_packed_elements_is_unpacked_once(order, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "BLOCK", 1 << 10)
    monkeypatch.setattr("ndtorch.files.arrays._SLAB", 1 << 12)
    array = np.asarray(RNG.integers(0, 9, (40, 50, 3)), order=order)
    path = npz_file(tmp_path, {"x": array}, zipfile.ZIP_DEFLATED)
    found = open_file(path)["x"]
    started = []
    unpack = npz._PackedEntry.unpack
    monkeypatch.setattr(npz._PackedEntry, "unpack", lambda self: started.append(self) or unpack(self))
    assert_same(joined(found.blocks()), array.reshape(-1))
    assert len(started) == 1
    for key in (slice(3, 7), (slice(None), 4), (39, 49, 2), (..., 1), slice(5, 5)):
        assert_same(found.select(key), np.asarray(array[key]))


def test_a_slice_takes_no_memory_for_the_whole(tmp_path):
    array = np.zeros((16, 1 << 20), np.uint8)
    array[:, 5] = np.arange(16)
    found = open_file(npz_file(tmp_path, {"x": array}, zipfile.ZIP_DEFLATED))["x"]
    npz_block = npz.BLOCK
    try:
        npz.BLOCK = 1 << 20
        tracemalloc.start()
        assert found.select((slice(None), 5)).tolist() == list(range(16))
        assert tracemalloc.get_traced_memory()[1] < array.nbytes // 2
    finally:
        npz.BLOCK = npz_block
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["deflate", "bzip2", "lzma"])
def test_packed_arrays_are_converted(method, tmp_path):
    arrays = {name: ARRAYS[name] for name in ("row-major", "column-major", "one dimension", "no dimension")}
    path = npz_file(tmp_path, arrays, METHODS[method])
    nd.convert_file(path, tmp_path / "a.safetensors", verify=True)
    back = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        assert_same(back[name], array)


# ---- hostile files ----


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def archive_of(folder: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


NPY = npy(np.arange(4.0))
HOSTILE = {
    "empty": (b"", "is empty"),
    "no npy": (b"PK and so on", "does not begin as .npy does"),
    "cut header": (NPY[:20], "ends inside its header"),
    "cut": (NPY[:-1], "ends before its array does"),
    "longer": (NPY + b"0", "goes on after its array"),
    "huge": (NPY.replace(b"(4,), }" + b" " * 10, b"(4294967296,), }" + b" "), "ends before its array does"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("method", METHODS)
def test_a_hostile_entry_is_a_format_error_that_names_it(kind, method, tmp_path):
    data, text = HOSTILE[kind]
    path = archive_of(tmp_path, {"x.npy": data}, METHODS[method])
    with pytest.raises(nd.FormatError) as error:
        nd.read(path)
    assert f"{str(path)!r} entry 'x.npy' " in str(error.value)
    assert text in str(error.value)


def test_an_entry_that_is_no_array_is_named(tmp_path):
    path = archive_of(tmp_path, {"readme.txt": b"hello"})
    with pytest.raises(nd.FormatError, match=r"entry that is no array; expected name\.npy, got readme\.txt"):
        nd.read(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_bit_is_a_format_error_when_an_array_is_read_whole(method, tmp_path):
    path = npz_file(tmp_path, {"x": RNG.integers(0, 9, 1000), "y": np.ones(3)}, METHODS[method])
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x.npy")
    data[30 + len("x.npy") + info.compress_size // 2] ^= 1
    path.write_bytes(data)
    for whole in (lambda a: a[...], lambda a: a.stored.read(), lambda a: joined(a.stored.blocks())):
        with pytest.raises(nd.FormatError, match=r"entry 'x\.npy' (is damaged|is not a sound|has a header)"):
            whole(nd.read(path, to="numpy")["x"])


@pytest.mark.parametrize("method", METHODS)
def test_pickles_are_never_opened(method, tmp_path):
    path = archive_of(tmp_path, {"x.npy": npy(np.array([{}], object), allow_pickle=True)}, METHODS[method])
    with pytest.raises(nd.UnsupportedTypeError, match="holds Python objects, which are never unpickled"):
        nd.read(path)


def test_a_bomb_is_refused_by_its_claim(tmp_path):
    path = archive_of(tmp_path, {"x.npy": npy(np.zeros(1 << 24, np.uint8))}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    size = (1 << 24) + 128
    path.write_bytes(data.replace(size.to_bytes(4, "little"), (1 << 30).to_bytes(4, "little")))
    with pytest.raises(nd.FormatError, match="claims 1073741824 bytes, packed into"):
        nd.read(path)


@pytest.mark.parametrize("name", ["../out", "/abs", "..", "a//b"])
def test_names_of_others_are_never_used_as_paths(name, tmp_path):
    path = archive_of(tmp_path, {f"{name}.npy": NPY})
    assert nd.read(path, to="numpy")[name][...].tolist() == [0, 1, 2, 3]


def test_an_archive_without_a_suffix_is_known_by_its_content(tmp_path):
    path = npz_file(tmp_path, {"x": np.arange(3)}, zipfile.ZIP_STORED)
    path.rename(tmp_path / "data")
    assert open_file(tmp_path / "data").format.name == "npz"
    nd.write(tmp_path / "none.npz", {})
    (tmp_path / "none.npz").rename(tmp_path / "none")
    assert open_file(tmp_path / "none").format.name == "npz"
