"""Zip archives: where the bytes of each entry are, how they are unpacked, and archives written from front to back.

The standard library reads the directory. What it says is a claim: it is compared with the header before each entry,
with the entries beside it and with the size of the file before anything else is believed. Entries are written as they
are, each beginning at a multiple of 64 bytes, so that arrays can be mapped out of them.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from isal.igzip_lib import DECOMP_DEFLATE, IgzipDecompressor, IsalError
from isal.isal_zlib import crc32

from .._errors import FormatError
from .output import Output
from .storage import Storage

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
METHODS = {
    zipfile.ZIP_STORED: "",
    zipfile.ZIP_DEFLATED: "deflate",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "lzma",
}

_LOCAL = struct.Struct("<4s5H3I2H")
_IS_ENCRYPTED = 0x0001
_HAS_DESCRIPTOR = 0x0008  # sizes and checksum follow the bytes
_IS_UTF8 = 0x0800
_UNKNOWN = 0xFFFFFFFF  # the real number is in a field of 64 bits
_MAX_DIRECTORY = 16 << 20  # bytes; 100,000 entries take half of that
_RECORD = 46 + 28  # bytes of a line of the directory without its name; the numbers of 64 bits are the 28
_MAX_RATIO = 1032  # the most that deflate can expand a byte to
_HARMLESS = 256 << 20  # bytes that the other methods, which have no such bound, may expand to in any case
_MAX_WINDOW = 64 << 20
_MAX_ENTRY = 1 << 16
_CHUNK = 1 << 20
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError)
_DAMAGED: tuple[type[Exception], ...] = (
    cast(Any, IsalError),
    lzma.LZMAError,
    OSError,
    EOFError,
    ValueError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, after all that is claimed of it was checked.

    Attributes:
        name: Its name.
        offset: Where its bytes begin.
        packed: How many they are in the file.
        size: How many they are when they are unpacked.
        method: How they are packed, one of `METHODS`.
        crc32: What the unpacked bytes have to add up to.
    """

    name: str
    offset: int
    packed: int
    size: int
    method: int
    crc32: int


# --- reading


def read_directory(storage: Storage) -> list[Entry]:
    """Read which entries an archive has, in the order of the directory.

    Raises:
        FormatError: It is no archive, or its directory, its entries and its size contradict each other.
    """
    where = repr(storage.path)
    if not storage.size:
        raise FormatError("read", f"{where} is empty")
    try:
        with zipfile.ZipFile(cast(Any, _Seekable(storage))) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except _BROKEN as error:
        raise _unsound(where, _reason(error)) from None
    entries = [_entry(storage, info, f"{where} entry {info.filename[:80]!r}") for info in infos]
    _check_places(infos, entries, end, where)
    _check_names(entries, where)
    return entries


class _Seekable:
    """As much of a file as the standard library needs to read the directory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = (0, self._at, self._storage.size)[whence] + offset
        if at < 0:
            raise OSError("before the beginning")  # which is how a file says it
        self._at = at
        return at

    def read(self, nbytes: int = -1) -> bytes:
        left = max(self._storage.size - self._at, 0)
        nbytes = left if nbytes < 0 else min(nbytes, left)
        if nbytes > _MAX_DIRECTORY:
            raise ValueError(f"its directory has {nbytes} bytes, more than {_MAX_DIRECTORY}")
        data = self._storage.read(self._at, nbytes)
        self._at += len(data)
        return data


def _entry(storage: Storage, info: zipfile.ZipInfo, where: str) -> Entry:
    if info.flag_bits & _IS_ENCRYPTED:
        raise FormatError("read", f"{where} is encrypted")
    if info.compress_type not in METHODS:
        known = ", ".join(filter(None, METHODS.values()))
        raise FormatError("read", f"{where} is packed by an unknown method", expected=known, got=info.compress_type)
    packed, size = info.compress_size, info.file_size
    if packed > storage.size or not _can_expand(info.compress_type, packed, size):
        fact = f"{where} claims {size} bytes, packed into {packed}, of a file of {storage.size}"
        raise FormatError("read", fact)
    return Entry(info.filename, _begin(storage, info, where), packed, size, info.compress_type, info.CRC)


def _can_expand(method: int, packed: int, size: int) -> bool:
    if method == zipfile.ZIP_STORED:
        return packed == size
    return size <= packed * _MAX_RATIO or (method != zipfile.ZIP_DEFLATED and size <= _HARMLESS and packed > 0)


def _begin(storage: Storage, info: zipfile.ZipInfo, where: str) -> int:
    """Where the bytes begin: behind the entry's own header, which has to say the same as the directory."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _IS_UTF8 else "cp437", "replace")
    start = storage.read(info.header_offset, _LOCAL.size + len(name)) if info.header_offset >= 0 else b""
    if len(start) < _LOCAL.size or start[:4] != MAGIC[0]:
        raise FormatError("read", f"{where} has no header at byte {info.header_offset}, where the directory says it is")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(start)
    claims: dict[str, tuple[object, object]] = {
        "name": (start[_LOCAL.size :], name),
        "method": (method, info.compress_type),
    }
    if flags & _IS_ENCRYPTED:
        raise FormatError("read", f"{where} is encrypted")
    if name_length != len(name):
        claims["name"] = (start[_LOCAL.size :] + b"...", name)
    later = (0, _UNKNOWN) if flags & _HAS_DESCRIPTOR else (_UNKNOWN,)
    for what, got, expected in (("packed size", packed, info.compress_size), ("size", size, info.file_size)):
        if got not in later:
            claims[what] = (got, expected)
    if not flags & _HAS_DESCRIPTOR:
        claims["CRC-32"] = (crc, info.CRC)
    for what, (found, wanted) in claims.items():
        if found != wanted:
            fact = f"{where} has another {what} in its own header than in the directory"
            raise FormatError("read", fact, expected=_short(wanted), got=_short(found))
    return int(info.header_offset + _LOCAL.size + name_length + extra_length)


def _short(value: object) -> object:
    return repr(value[:80]) if isinstance(value, bytes) else value


def _check_places(infos: Sequence[zipfile.ZipInfo], entries: Sequence[Entry], end: int, where: str) -> None:
    """Refuse entries that lie in each other, or in the directory: a bomb is made so."""
    places = sorted(
        (info.header_offset, one.offset + one.packed, one.name) for info, one in zip(infos, entries, strict=True)
    )
    for (_, stop, name), (begin, _, other) in itertools.pairwise(places):
        if stop > begin:
            raise FormatError("read", f"{where} entry {name[:80]!r} overlaps entry {other[:80]!r}")
    if places and places[-1][1] > end:
        fact = f"{where} entry {places[-1][2][:80]!r} goes on after the directory begins"
        raise FormatError("read", fact, expected=f"at most {end} bytes", got=places[-1][1])


def _check_names(entries: Sequence[Entry], where: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise FormatError("read", f"{where} has two entries {entry.name[:80]!r}")
        seen.add(entry.name)


def _unsound(where: str, reason: str) -> FormatError:
    return FormatError("read", f"{where} is not a sound zip archive: {reason}")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200] if str(error) else type(error).__name__


class _Decompressor(Protocol):
    """What the decompressors of all methods have."""

    @property
    def eof(self) -> bool:
        """Whether it has come to an end."""

    @property
    def needs_input(self) -> bool:
        """Whether it gives nothing more without more to take."""

    def decompress(self, data: Any, max_length: int = -1) -> bytes:
        """Take bytes, and give at most so many."""


class Unpacked:
    """The bytes of an entry from first to last, unpacked as they are asked for; at the end they are checked."""

    def __init__(self, storage: Storage, entry: Entry, where: str) -> None:
        self._storage = storage
        self._entry = entry
        self._where = where
        self._taken = 0
        self._given = 0
        self._crc = 0
        self._decompressor = self._start()

    def read(self, nbytes: int) -> bytes:
        """Give the next bytes; fewer only at the end."""
        target = bytearray(min(nbytes, self._entry.size - self._given))
        self.read_into(memoryview(target))
        return bytes(target)

    def skip(self, nbytes: int) -> None:
        """Leave out bytes."""
        buffer = memoryview(bytearray(min(nbytes, _CHUNK)))
        while nbytes:
            self.read_into(buffer[: min(nbytes, _CHUNK)])
            nbytes -= min(nbytes, _CHUNK)

    def read_into(self, target: memoryview) -> None:
        """Fill a buffer with the next bytes.

        Raises:
            FormatError: They end early, cannot be unpacked, or do not add up to their checksum.
        """
        done = 0
        while done < len(target):
            part = self._next(min(len(target) - done, _CHUNK))
            target[done : done + len(part)] = part
            done += len(part)
        if self._given == self._entry.size:
            self._finish()

    def _next(self, limit: int) -> bytes:
        while True:
            if self._decompressor.eof or (self._decompressor.needs_input and self._taken == self._entry.packed):
                raise _unsound(self._where, f"it ends after {self._given} of {self._entry.size} bytes")
            part = self._step(limit)
            if part:
                self._given += len(part)
                self._crc = crc32(part, self._crc)
                return part

    def _step(self, limit: int) -> bytes:
        try:
            return self._decompressor.decompress(self._input(), limit)
        except _DAMAGED as error:
            raise _unsound(self._where, _reason(error)) from None

    def _input(self) -> bytes:
        if not self._decompressor.needs_input:
            return b""
        return self._raw(min(_CHUNK // 4, self._entry.packed - self._taken))

    def _raw(self, nbytes: int) -> bytes:
        data = self._storage.read(self._entry.offset + self._taken, nbytes)
        if len(data) < nbytes:
            raise self._storage.ends_early(self._entry.offset + self._entry.packed)
        self._taken += nbytes
        return data

    def _finish(self) -> None:
        while not self._decompressor.eof and not (self._decompressor.needs_input and self._taken == self._entry.packed):
            if self._step(1):
                raise _unsound(self._where, f"it goes on after its {self._entry.size} bytes")
        if not self._decompressor.eof and self._entry.method != zipfile.ZIP_LZMA:  # which need not say that it ends
            raise _unsound(self._where, "it has no end")
        check_crc32(self._entry, self._crc, self._where)

    def _start(self) -> _Decompressor:
        if self._entry.method == zipfile.ZIP_DEFLATED:
            return cast(_Decompressor, IgzipDecompressor(flag=DECOMP_DEFLATE))
        if self._entry.method == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor()
        return self._start_lzma()

    def _start_lzma(self) -> _Decompressor:
        """The options are in front of the bytes. A window beyond the entry's size would be memory for nothing."""
        start = self._raw(min(9, self._entry.packed))
        if len(start) < 9 or start[2:4] != b"\x05\x00" or start[4] >= 9 * 5 * 5:
            raise _unsound(self._where, "it has no options of lzma")
        rest, lc = divmod(start[4], 9)
        pb, lp = divmod(rest, 5)
        window = min(max(int.from_bytes(start[5:9], "little"), 4096), max(self._entry.size, 4096))
        if window > _MAX_WINDOW:
            raise _unsound(self._where, f"its window of {window} bytes is absurd")
        try:
            options = {"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": window}
            return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[options])
        except (lzma.LZMAError, ValueError) as error:
            raise _unsound(self._where, _reason(error)) from None


def check_crc32(entry: Entry, got: int, where: str) -> None:
    """Compare with the checksum that the directory has.

    Raises:
        FormatError: The bytes are not what was written.
    """
    if got != entry.crc32:
        fact = f"{where} is damaged: its bytes do not add up to their checksum"
        raise FormatError("read", fact, expected=f"CRC-32 {entry.crc32:08x}", got=f"{got:08x}")


# --- writing


class ArchiveWriter:
    """An archive on its way into a stream that cannot go back; its bytes depend on what is written alone.

    Args:
        output: Where it goes; it has to begin there.
        alignment: The bytes of every entry begin at a multiple of this.
    """

    def __init__(self, output: Output, alignment: int = 64) -> None:
        self._output = output
        self._alignment = alignment
        self._directory: list[bytes] = []

    def write(self, name: str, parts: Any, size: int) -> None:
        """Write an entry.

        Args:
            name: Its name, of at most 65,535 bytes.
            parts: Its bytes, as any number of bytes objects and contiguous arrays.
            size: How many bytes they are together.
        """
        raw, begin = name.encode(), self._output.tell()
        self._output.write(self._header(raw, begin, is_large=size >= _UNKNOWN))
        crc, start = 0, self._output.tell()
        for part in parts:
            plain = part.reshape(-1).view(np.uint8) if isinstance(part, np.ndarray) else part
            crc = crc32(plain, crc)
            self._output.write(plain)
        if self._output.tell() - start != size:
            raise FormatError("write", f"{name!r} has changed its size", expected=size, got=self._output.tell() - start)
        # Old readers take an entry of 4 GiB for one with numbers of 64 bits, and no other.
        sizes = "<4sIQQ" if size >= _UNKNOWN else "<4sIII"
        self._output.write(struct.pack(sizes, b"PK\x07\x08", crc, size, size))
        self._directory.append(_record(raw, begin, size, crc))

    def _header(self, name: bytes, begin: int, *, is_large: bool) -> bytes:
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) if is_large else b""
        padding = -(begin + _LOCAL.size + len(name) + len(extra) + 4) % self._alignment
        extra += struct.pack("<2sH", b"FB", padding) + bytes(padding)  # as torch calls its own padding
        sizes = (_UNKNOWN, _UNKNOWN) if is_large else (0, 0)
        version = 45 if is_large else 20
        fields = (version, _flags(name), 0, *_DATE, 0, *sizes, len(name), len(extra))
        return _LOCAL.pack(MAGIC[0], *fields) + name + extra

    def close(self) -> None:
        """Write the directory."""
        begin = self._output.tell()
        directory = b"".join(self._directory)
        self._output.write(directory)
        self._output.write(_end(len(self._directory), len(directory), begin))


_DATE = (0, 1 << 5 | 1)  # the first of January 1980, with which the format begins


def _flags(name: bytes) -> int:
    return _HAS_DESCRIPTOR if name.isascii() else _HAS_DESCRIPTOR | _IS_UTF8


def _record(name: bytes, begin: int, size: int, crc: int) -> bytes:
    """The directory's line for an entry: numbers of more than 32 bits are in a field of their own."""
    long = [number for number in (size, size, begin) if number >= _UNKNOWN]
    extra = struct.pack(f"<HH{len(long)}Q", 1, 8 * len(long), *long) if long else b""
    version = 45 if long else 20
    sizes = (min(size, _UNKNOWN),) * 2
    fields = (version, version, _flags(name), 0, *_DATE, crc, *sizes, len(name), len(extra), 0, 0, 0, 0)
    return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields, min(begin, _UNKNOWN)) + name + extra


def _end(count: int, size: int, begin: int) -> bytes:
    end = b""
    if count >= 0xFFFF or size >= _UNKNOWN or begin >= _UNKNOWN:
        end += struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, begin)
        end += struct.pack("<4sIQI", b"PK\x06\x07", 0, begin + size, 1)
    counts = (min(count, 0xFFFF),) * 2
    return end + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *counts, min(size, _UNKNOWN), min(begin, _UNKNOWN), 0)


def check_directory(names: Iterable[str]) -> None:
    """Refuse names that together are longer than the directory of an archive may be that is read again.

    Raises:
        FormatError: Says by how much.
    """
    lengths = [_RECORD + len(name.encode()) for name in names]
    if sum(lengths) > _MAX_DIRECTORY:
        fact = f"the names of {len(lengths)} arrays are too long for a zip archive"
        hint = ".safetensors holds them"
        raise FormatError("write", fact, expected=f"at most {_MAX_DIRECTORY} bytes", got=sum(lengths), hint=hint)


def check_name(name: str, suffix: str) -> None:
    """Refuse names that an archive cannot hold.

    Raises:
        FormatError: A NUL, or more bytes than there is room for.
    """
    length = len((name + suffix).encode())
    if "\0" in name or length >= _MAX_ENTRY:
        what = "a NUL character" if "\0" in name else f"{len(name.encode())} bytes"
        raise FormatError("write", f"cannot write {name[:40]!r}: a zip archive has no names with {what}")
