"""Zip archives: what a directory claims is compared with the file, what is written opens with every reader."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndtorch as nd
from ndtorch.files import archive as archive_module
from ndtorch.files.archive import ArchiveWriter, Entry, Unpacked, read_directory
from ndtorch.files.output import Output
from ndtorch.files.storage import LocalStorage

pytestmark = pytest.mark.once

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
PACKED = METHODS[1:]
LOCAL_HEADER, DIRECTORY_HEADER = b"PK\x03\x04", b"PK\x01\x02"


def zip_bytes(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def opened(folder: Path, data: bytes) -> LocalStorage:
    path = folder / "a.zip"
    path.write_bytes(data)
    return LocalStorage(path)


def with_numbers(data: bytes, header: bytes, offset: int, form: str, *values: int) -> bytes:
    """The archive with other numbers in the first header of a kind."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(header) + offset, *values)
    return bytes(changed)


def sizes_claimed(data: bytes, packed: int, size: int) -> bytes:
    """The archive with other sizes in the directory and in the header of its first entry."""
    return with_numbers(
        with_numbers(data, LOCAL_HEADER, 18, "<II", packed, size), DIRECTORY_HEADER, 20, "<II", packed, size
    )


# ---- reading ----


@pytest.mark.parametrize("method", METHODS)
def test_entries_are_where_the_standard_library_finds_them(method, tmp_path):
    contents = {"a": b"hello" * 100, "é/名": b"", "c": bytes(range(256))}
    storage = opened(tmp_path, zip_bytes(contents, method))
    entries = read_directory(storage)
    assert [entry.name for entry in entries] == list(contents)
    for entry in entries:
        raw = storage.read(entry.offset, entry.packed)
        assert (entry.size, entry.crc32) == (len(contents[entry.name]), zlib.crc32(contents[entry.name]))
        if method == zipfile.ZIP_STORED:
            assert raw == contents[entry.name]
        else:
            assert Unpacked(storage, entry, "it").read(1000) == contents[entry.name]


def test_what_stands_before_an_archive_is_skipped(tmp_path):
    storage = opened(tmp_path, b"#!/bin/sh\n" + zip_bytes({"a": b"hello"}))
    (entry,) = read_directory(storage)
    assert storage.read(entry.offset, 5) == b"hello"


@pytest.mark.parametrize("method", PACKED)
def test_bytes_are_unpacked_in_pieces_of_any_size(method, tmp_path):
    data = np.random.default_rng(0).integers(0, 20, 300_000).astype(np.uint8).tobytes()
    storage = opened(tmp_path, zip_bytes({"a": data}, method))
    (entry,) = read_directory(storage)
    unpacked = Unpacked(storage, entry, "it")
    assert unpacked.read(7) == data[:7]
    unpacked.skip(100_000)
    assert unpacked.read(1) == data[100_007:100_008]
    assert unpacked.read(1 << 30) == data[100_008:]
    assert unpacked.read(10) == b""


HELLO = zip_bytes({"a": b"hello" * 20})
WORLD = zip_bytes({"b": b"world" * 20})
INNER = WORLD[: WORLD.index(DIRECTORY_HEADER)]  # header and bytes of an entry, as the bytes of another one
NESTED = bytearray(zip_bytes({"a": INNER, "b": b"world" * 20}))
struct.pack_into("<I", NESTED, NESTED.rindex(DIRECTORY_HEADER) + 42, 31)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "no archive": (b"hello", "is not a sound zip archive: File is not a zip file"),
    "cut off": (HELLO[:-30], "is not a sound zip archive"),
    "a size of its own": (sizes_claimed(HELLO, 90, 100), "claims 100 bytes, packed into 90"),
    "larger than the file": (sizes_claimed(HELLO, 2**31, 2**31), "claims 2147483648 bytes, packed into 2147483648, of"),
    "into the directory": (sizes_claimed(HELLO, 120, 120), "goes on after the directory begins; expected at most"),
    "bomb": (
        sizes_claimed(zip_bytes({"a": b"0" * 100}, zipfile.ZIP_DEFLATED), 5, 5161),
        "claims 5161 bytes, packed into 5",
    ),
    "overlapping": (bytes(NESTED), "entry 'a' overlaps entry 'b'"),
    "header elsewhere": (with_numbers(HELLO, DIRECTORY_HEADER, 42, "<I", 3), "has no header at byte 3"),
    "header past the end": (with_numbers(HELLO, DIRECTORY_HEADER, 42, "<I", 2**31), "has no header at byte"),
    "another name": (HELLO.replace(b"ahello", b"bhello"), "another name in its own header than in the directory"),
    "a longer name": (with_numbers(HELLO, LOCAL_HEADER, 26, "<H", 9), "another name"),
    "another method": (with_numbers(HELLO, LOCAL_HEADER, 8, "<H", 8), "another method in its own header"),
    "another size": (with_numbers(HELLO, LOCAL_HEADER, 22, "<I", 99), "another size in its own header"),
    "another checksum": (with_numbers(HELLO, LOCAL_HEADER, 14, "<I", 1), "another CRC-32 in its own header"),
    "encrypted": (with_numbers(HELLO, DIRECTORY_HEADER, 8, "<H", 1), "is encrypted"),
    "encrypted in secret": (with_numbers(HELLO, LOCAL_HEADER, 6, "<H", 1), "is encrypted"),
    "unknown method": (
        with_numbers(HELLO, DIRECTORY_HEADER, 10, "<H", 97),
        "packed by an unknown method; expected deflate, bzip2, lzma, got 97",
    ),
    "extra field past the end": (with_numbers(HELLO, LOCAL_HEADER, 28, "<H", 65535), "after the directory begins"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_a_format_error(kind, tmp_path):
    data, text = HOSTILE[kind]
    with pytest.raises(nd.FormatError) as error:
        read_directory(opened(tmp_path, data))
    assert text in str(error.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_a_format_error(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(nd.FormatError, match="has two entries 'a'"):
        read_directory(opened(tmp_path, stream.getvalue()))


def test_an_absurd_directory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "_MAX_DIRECTORY", 70_000)
    data = zip_bytes({f"{i:060}": b"" for i in range(800)})
    with pytest.raises(nd.FormatError, match="its directory has 84800 bytes, more than 70000"):
        read_directory(opened(tmp_path, data))


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize("size", [99, 101, 200])
def test_sizes_that_are_a_lie_are_found_while_unpacking(method, size, tmp_path):
    data = zip_bytes({"a": b"hello" * 20}, method)
    packed = read_directory(opened(tmp_path, data))[0].packed
    storage = opened(tmp_path, sizes_claimed(data, packed, size))
    (entry,) = read_directory(storage)
    with pytest.raises(nd.FormatError, match=r"it goes on after|it ends after|damaged|not a sound"):
        Unpacked(storage, entry, "it").read(1000)


@pytest.mark.parametrize("method", PACKED)
def test_a_flipped_bit_is_found_while_unpacking(method, tmp_path):
    original = np.random.default_rng(1).integers(0, 4, 5000).astype(np.uint8).tobytes()
    data = bytearray(zip_bytes({"a": original}, method))
    (entry,) = read_directory(opened(tmp_path, bytes(data)))
    data[entry.offset + entry.packed // 2] ^= 1
    with pytest.raises(nd.FormatError, match=r"damaged|not a sound"):
        Unpacked(opened(tmp_path, bytes(data)), entry, "it").read(entry.size)


def test_an_absurd_window_of_lzma_takes_no_memory(tmp_path):
    data = bytearray(zip_bytes({"a": b"hello" * 20}, zipfile.ZIP_LZMA))
    storage = opened(tmp_path, bytes(data))
    (entry,) = read_directory(storage)
    data[entry.offset + 5 : entry.offset + 9] = b"\xff" * 4  # 4 GiB
    storage = opened(tmp_path, bytes(data))
    assert Unpacked(storage, entry, "it").read(100) == b"hello" * 20
    lying = Entry("a", entry.offset, entry.packed, 1 << 32, entry.method, entry.crc32)
    with pytest.raises(nd.FormatError, match="its window of 4294967295 bytes is absurd"):
        Unpacked(storage, lying, "it")


# ---- writing ----


class Stream(io.BytesIO):
    """What can only go on."""

    def seek(self, *where: Any) -> int:
        raise OSError("no way back")


def written(contents: dict[str, Any], stream: io.BytesIO | None = None) -> bytes:
    stream = Stream() if stream is None else stream
    archive = ArchiveWriter(Output(stream))
    for name, parts in contents.items():
        archive.write(name, parts, sum(part.nbytes if isinstance(part, np.ndarray) else len(part) for part in parts))
    archive.close()
    return stream.getvalue()


def test_what_is_written_opens_with_the_standard_library():
    contents = {"a": [b"hello", np.arange(5)], "é 名": [], "n": [b"x" * i for i in range(100)]}
    with zipfile.ZipFile(io.BytesIO(written(contents))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(contents)
        assert archive.read("a") == b"hello" + np.arange(5).tobytes()
        assert archive.read("é 名") == b""
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_every_entry_begins_at_a_multiple_of_64(tmp_path):
    storage = opened(tmp_path, written({"x" * n: [b"y" * n] for n in range(1, 150)}))
    assert {entry.offset % 64 for entry in read_directory(storage)} == {0}


def test_more_than_65535_entries_are_counted_in_64_bits(tmp_path):
    storage = opened(tmp_path, written({str(i): () for i in range(65_600)}))
    assert len(read_directory(storage)) == 65_600


def test_entries_of_more_than_4_gib_are_read_back(tmp_path):
    """The file has a hole where zeros would be: 4 GiB are written in no time."""
    path = tmp_path / "a.zip"
    size = (1 << 32) + 5
    with open(path, "wb", buffering=0) as file:
        archive = ArchiveWriter(Output(Sparse(file)))  # type: ignore[arg-type]
        zeros = np.zeros(1 << 26, np.uint8)
        archive.write("large", [zeros] * 64 + [b"hello"], size)
        archive.write("after", [b"world"], 5)
        archive.close()
    storage = LocalStorage(path)
    large, after = read_directory(storage)
    assert (large.size, storage.read(large.offset + size - 5, 5)) == (size, b"hello")
    assert after.offset > 1 << 32
    assert storage.read(after.offset, 5) == b"world"
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large").file_size == size
        assert archive.read("after") == b"world"


class Sparse:
    """A file in which zeros stay a hole."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: Any) -> int:
        if len(data) == 1 << 26:
            os.lseek(self.file.fileno(), len(data), os.SEEK_CUR)
            return len(data)
        return self.file.write(data)


def test_an_entry_that_changes_its_size_is_noticed():
    archive = ArchiveWriter(Output(Stream()))
    with pytest.raises(nd.FormatError, match="'a' has changed its size; expected 3, got 5"):
        archive.write("a", [b"hello"], 3)
