"""Pictures as files of arrays: what Pillow has of them, decoded when touched; what it would change is refused."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding
from PIL import Image

import ndtorch as nd


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    """The oracle: what Pillow gives."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def png(width: int, height: int, *, depth: int = 8, colours: int = 2, data: bytes = b"") -> bytes:
    """A PNG that claims whatever it is told to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes, *, next_page: int = 0) -> bytes:
    """A little-endian TIFF of one page: tag -> (type, count, value), the data right after the header."""
    entries = b"".join(struct.pack("<HHII", tag, *claim) for tag, claim in sorted(tags.items()))
    page = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_page)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + page


def gray_tiff(bits: int, data: bytes, size: tuple[int, int], **claims: Any) -> bytes:
    height, width = size
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(data))}
    return tiff(tags | claims.pop("tags", {}), data, **claims)


# --- what Pillow has


PICTURES = {
    "bits.png": (values(5, 7) > 127, "1"),
    "gray.png": (values(5, 7), "L"),
    "gray16.png": (values(5, 14).view(np.uint16), "I;16"),
    "gray16.tif": (values(5, 14).view(np.uint16), "I;16"),
    "integers.tif": (values(5, 28).view(np.int32), "I"),
    "floats.tiff": (np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7), "F"),
    "colours.png": (values(5, 7, 3), "RGB"),
    "transparent.png": (values(5, 7, 4), "RGBA"),
    "two.png": (values(5, 7, 2), "LA"),
    "inks.tif": (values(5, 7, 4), "CMYK"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_is_read_as_the_array_that_was_saved(name, tmp_path):
    array, mode = PICTURES[name]
    picture = Image.frombytes(mode, array.shape[1::-1], np.packbits(array, axis=1).tobytes() if mode == "1" else array)
    picture.save(tmp_path / name)
    found = nd.read(tmp_path / name, to="numpy")
    (stored,) = found.values()
    assert list(found) == [name.partition(".")[0]]
    assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
    assert_same(stored[...], array)
    assert_same(stored[1:4:2, ::-1], array[1:4:2, ::-1])
    assert_same(stored[-1], array[-1])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg_is_what_pillow_decodes(mode, tmp_path):
    Image.fromarray(values(33, 17, 3)).convert(mode).save(tmp_path / "a.jpg")
    assert_same(nd.read(tmp_path / "a.jpg", to="numpy")["a"][...], np.array(pixels(tmp_path / "a.jpg")))
    assert_same(nd.read(tmp_path / "a.jpg")["a"][...], tensor_holding(pixels(tmp_path / "a.jpg")))


def test_palette_is_read_as_indices_as_from_the_picture_itself(tmp_path):
    Image.fromarray(values(5, 7, 3)).quantize(4).save(tmp_path / "a.png")
    found = nd.read(tmp_path / "a.png", to="numpy")["a"][...]
    with Image.open(tmp_path / "a.png") as picture:
        assert_same(found, nd.to_numpy(picture))
    assert found.max() < 4


def test_orientation_of_a_camera_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(values(8, 16, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert nd.read(tmp_path / "a.jpg")["a"].shape == (8, 16, 3)


def test_name_option_names_the_array(tmp_path):
    Image.fromarray(values(2, 3)).save(tmp_path / "a.png")
    assert list(nd.read(tmp_path / "a.png", name="photo")) == ["photo"]


def test_picture_without_suffix_is_told_by_its_first_bytes(tmp_path):
    (tmp_path / "a").write_bytes(png(1, 1, data=b"\0\1\2\3"))
    assert nd.read(tmp_path / "a")["a"][...].tolist() == [[[1, 2, 3]]]


def test_pixels_are_decoded_when_they_are_touched_and_not_before(tmp_path, monkeypatch):
    Image.fromarray(values(5, 7)).save(tmp_path / "a.png")

    def load(self):
        raise AssertionError("decoded")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", load)
        found = nd.read(tmp_path / "a.png")
        assert repr(found["a"]) == "<'a': uint8[5,7], not read>"
    assert_same(found["a"][...], torch.from_numpy(values(5, 7)))


def test_unsigned_numbers_of_32_bits_are_unsigned(tmp_path):
    numbers = np.array([[0, 1, 2**31], [2**32 - 1, 5, 6]], "<u4")
    (tmp_path / "a.tif").write_bytes(gray_tiff(32, numbers.tobytes(), (2, 3), tags={339: (3, 1, 1)}))
    (tmp_path / "b.tif").write_bytes(gray_tiff(32, numbers.tobytes(), (2, 3), tags={339: (3, 1, 2)}))
    assert_same(nd.read(tmp_path / "a.tif", to="numpy")["a"][...], numbers)
    assert_same(nd.read(tmp_path / "b.tif", to="numpy")["b"][...], numbers.view("<i4"))


def test_sixteen_bits_of_colours_are_refused_as_pillow_keeps_eight(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2, 1, depth=16, data=b"\0" + bytes(range(12))))
    found = nd.read(tmp_path / "a.png")
    assert str(found) == "1 array\n  a  uint16[1,2,3]"
    with pytest.raises(nd.UnsupportedDtypeError, match="16 bits for each channel, of which Pillow keeps 8"):
        found["a"][...]
    with pytest.raises(nd.UnsupportedDtypeError):
        nd.convert_file(tmp_path / "a.png", tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


# --- pages


def save_pages(path: Path, pages: list[np.ndarray]) -> None:
    first, *rest = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=rest)


def test_pages_that_agree_are_one_array(tmp_path):
    pages = [values(4, 5, 3, seed=seed) for seed in range(4)]
    save_pages(tmp_path / "a.tif", pages)
    stored = nd.read(tmp_path / "a.tif", to="numpy")["a"]
    assert_same(stored[...], np.stack(pages))
    assert_same(stored[2, 1:3, :, 1], pages[2][1:3, :, 1])
    assert_same(stored[::-2], np.stack(pages)[::-2])
    nd.convert_file(tmp_path / "a.tif", tmp_path / "a.npy", verify=True)
    assert_same(np.load(tmp_path / "a.npy"), np.stack(pages))


def test_pages_that_disagree_are_arrays_of_their_own(tmp_path):
    pages = [values(4, 5, 3), values(2, 2), values(4, 5, 3, seed=1)]
    save_pages(tmp_path / "a.tif", pages)
    found = nd.read(tmp_path / "a.tif", to="numpy")
    assert list(found) == ["a/0", "a/1", "a/2"]
    for name, page in zip(found, pages, strict=True):
        assert_same(found[name][...], page)


def test_pages_in_a_circle_come_to_an_end(tmp_path):
    data = bytes(6)
    (tmp_path / "a.tif").write_bytes(gray_tiff(8, data, (2, 3), next_page=8 + len(data)))
    assert nd.read(tmp_path / "a.tif")["a"][...].shape[-2:] == (2, 3)


# --- hostile


def test_truncated_pictures_are_refused_by_name(tmp_path):
    Image.fromarray(values(40, 50, 3)).save(tmp_path / "whole.png")
    Image.fromarray(values(40, 50, 3)).save(tmp_path / "whole.jpg")
    Image.fromarray(values(40, 50, 3)).save(tmp_path / "whole.tif")
    for suffix in (".png", ".jpg", ".tif"):
        raw = (tmp_path / f"whole{suffix}").read_bytes()
        for length in (0, 1, 9, 30, len(raw) // 2, len(raw) * 9 // 10):
            (tmp_path / f"a{suffix}").write_bytes(raw[:length])
            with pytest.raises(nd.FormatError, match=rf"a\{suffix}' (is|could|has)"):
                nd.read(tmp_path / f"a{suffix}")["a"][...]


def test_damaged_pictures_raise_nothing_but_our_errors(tmp_path):
    rng = np.random.default_rng(0)
    save_pages(tmp_path / "whole.tif", [values(6, 5, 3), values(6, 5, 3)])
    Image.fromarray(values(6, 5, 3)).save(tmp_path / "whole.png")
    Image.fromarray(values(6, 5, 3)).save(tmp_path / "whole.jpg")
    for suffix in (".png", ".jpg", ".tif"):
        raw = bytearray((tmp_path / f"whole{suffix}").read_bytes())
        for _ in range(150):
            damaged = bytearray(raw)
            for place in rng.integers(0, len(raw), 3):
                damaged[place] = rng.integers(0, 256)
            (tmp_path / f"a{suffix}").write_bytes(damaged)
            try:
                for stored in nd.read(tmp_path / f"a{suffix}", to="numpy").values():
                    assert stored.nbytes < 1 << 28
                    stored[...]
            except nd.NdtorchError:
                pass


@pytest.mark.parametrize("size", [(10_000, 10_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_from_the_header(size, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow only warns of is refused even so
        with pytest.raises(nd.FormatError, match="could be a decompression bomb") as error:
            nd.read(tmp_path / "a.png")
    assert error.value.hint == "where you trust it, PIL.Image.MAX_IMAGE_PIXELS = None lifts the limit"


def test_a_few_bytes_of_many_large_pages_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch.files.pictures._MAX_UNQUESTIONED", 1000)
    save_pages(tmp_path / "a.tif", [np.zeros((2000, 2000), bool)] * 3)
    size = (tmp_path / "a.tif").stat().st_size
    monkeypatch.setattr("ndtorch.files.pictures._MAX_GROWTH", 3 * 2000 * 2000 // size - 1)
    with pytest.raises(nd.FormatError, match="claims absurdly many pixels"):
        nd.read(tmp_path / "a.tif")


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a" + bytes(100))
    with pytest.raises(nd.FormatError, match="is not a picture that Pillow knows as PNG, JPEG or TIFF"):
        nd.read(tmp_path / "a.png")


def test_picture_that_was_replaced_by_another_is_the_one_that_was_opened(tmp_path):
    Image.fromarray(values(4, 5)).save(tmp_path / "a.png")
    found = nd.read(tmp_path, to="numpy")["a"]
    (tmp_path / "a.png").unlink()
    Image.fromarray(values(3, 3)).save(tmp_path / "a.png")
    assert_same(found[...], values(4, 5))


def test_pictures_are_never_written(tmp_path):
    with pytest.raises(nd.FormatError, match="pictures are read, not written"):
        nd.write(tmp_path / "a.png", values(2, 3))


def test_warning_filters_are_as_they_were_after_threads_have_read(tmp_path):
    Image.fromarray(values(40, 50, 3)).save(tmp_path / "a.png")
    before = list(warnings.filters)

    def work() -> None:
        for _ in range(20):
            nd.read(tmp_path / "a.png", to="numpy")["a"][...]

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_filters_of_warnings_are_set_by_one_thread_at_a_time_whatever_it_reads_or_writes(tmp_path, monkeypatch):
    pytest.importorskip("zarr", reason="zarr is not installed")
    Image.fromarray(values(40, 50, 3)).save(tmp_path / "a.png")
    nd.write(tmp_path / "a.zarr", {"x": np.array(["a", "b"])})
    noted = np.zeros(3, np.dtype("f4", metadata={"unit": "m"}))
    inside, most = [], [0]

    class Watched(warnings.catch_warnings):
        def __enter__(self):
            inside.append(self)
            time.sleep(0.001)  # others come meanwhile, if they can
            most.append(len(inside))
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            inside.remove(self)

    def read(name: str) -> None:
        for _ in range(10):
            (array,) = nd.read(tmp_path / name, to="numpy").values()
            array[...]

    def write() -> None:
        for _ in range(10):
            nd.write(tmp_path / "b.npy", noted, overwrite=True)

    monkeypatch.setattr(warnings, "catch_warnings", Watched)
    works = [lambda: read("a.png"), lambda: read("a.zarr"), lambda: read("a.zarr"), write]
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) > 40
    assert max(most) == 1


def test_without_pillow_the_error_says_what_to_install(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, data=b"\0\1\2\3"))
    code = f"""
import sys
sys.modules["PIL"] = None
import ndtorch as nd
try:
    nd.read({str(tmp_path / "a.png")!r})
except nd.MissingDependencyError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "pip install pillow\n"


def test_pages_are_never_lost_with_the_end_of_a_file(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    whole = (tmp_path / "x.tif").read_bytes()
    seen = set()
    for end in range(len(whole)):
        (tmp_path / "x.tif").write_bytes(whole[:end])
        with contextlib.suppress(nd.FormatError):
            seen.add(nd.read(tmp_path / "x.tif", to="numpy")["x"][...].shape)
    assert seen <= {(3, 4, 5)}
