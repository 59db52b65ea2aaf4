"""Arrays of Zarr stores: whether all of their chunks are there, and the ways to their elements."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from .._errors import FormatError, NdtorchError
from .._turns import own_filters
from .arrays import AnyArray, Packed
from .chunks import Chunks, Place, count_chunks, inflate, places, read_apart, why_absurd
from .storage import Storage
from .zarr_stores import Store

WRITE_ALL = "zarr leaves out chunks of that value unless config={'write_empty_chunks': True}"
"""Why chunks may be missing without having been lost."""

MAX_LISTED = 100_000
"""Chunks that are looked for by name, even where there are fewer files."""

_NONE = (1 << 64) - 1  # where a shard's index has no chunk
_UNPACKED = ("gzip", "zlib", "zstd", "blosc")  # here, by several threads
_ZSTD = b"\x28\xb5\x2f\xfd"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's warnings of what its specification does not have yet."""
    with own_filters():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def failing(where: str) -> Iterator[None]:
    """What the library, or a codec of it, says of a store that it cannot read: that may be any error."""
    try:
        yield
    except NdtorchError:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise FormatError("read", f"{where} cannot be read by zarr: {text}") from None


@dataclass(frozen=True, slots=True)
class Source:
    """An array of a store.

    Attributes:
        store: The store.
        path: Its folder there.
        where: What errors call it.
        array: The library's array.
        dtype: Its dtype; the library's may be an integer of the same size instead.
        files: The bytes of every file in its folder.
        fill: What the elements of chunks are that are not there; ``None`` where that is an error.
    """

    store: Store
    path: str
    where: str
    array: Any
    dtype: np.dtype[Any]
    files: dict[str, int]
    fill: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the array."""
        return tuple(self.array.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of what is one file: a chunk, or a shard of chunks."""
        return tuple(self.array.shards or self.array.chunks)

    def key(self, place: Place) -> str:
        """The file of a chunk."""
        key: str = self.array.metadata.encode_chunk_key(place)
        return key

    def file(self, place: Place) -> str:
        """The file of a chunk in the store."""
        return f"{self.path}/{self.key(place)}" if self.path else self.key(place)

    def is_left_out(self, place: Place) -> bool:
        """Whether a chunk was not there when the store was opened, and is to be filled."""
        return self.fill is not None and self.key(place) not in self.files

    def storage(self, place: Place) -> Storage:
        """The file of a chunk, opened; it closes itself."""
        return self.store.open(self.file(place))


def why_unreadable(source: Source, claims: dict[str, Any]) -> FormatError | None:
    """The error for claims that the files cannot hold, and for chunks that are missing."""
    nbytes, chunk = (math.prod(sizes) * source.dtype.itemsize for sizes in (source.shape, source.sizes))
    if not nbytes:
        return None
    stored = sum(source.files.values())
    absurd = why_absurd(source.where, nbytes if source.fill is None else chunk, chunk, stored)
    if absurd is not None or source.fill is not None:
        return absurd
    total, what = count_chunks(source.shape, source.sizes), "shards" if source.array.shards else "chunks"
    if total > max(len(source.files), MAX_LISTED):
        return _missing(source, total - len(source.files), total, what, "at least ")
    lost = [key for key in map(source.key, places(source.shape, source.sizes)) if key not in source.files]
    if lost:
        return _missing(source, len(lost), total, f"{what}, such as {lost[0]!r},")
    if source.array.shards:
        return _why_shards(source)
    return _why_sizes(source, chunk) if not packed_by(claims) and _is_direct(claims) else None


def _missing(source: Source, missing: int, total: int, what: str, about: str = "") -> FormatError:
    fill = repr(source.array.fill_value) if source.array.dtype == source.dtype else "the fill value"
    hint = f"missing_chunks='fill' (--missing-chunks fill) reads them as {fill}; {WRITE_ALL}"
    return FormatError("read", f"{source.where}: {about}{missing} of its {total} {what} are missing", hint=hint)


def _why_sizes(source: Source, nbytes: int) -> FormatError | None:
    for place in places(source.shape, source.sizes):
        key = source.key(place)
        if source.files[key] != nbytes:
            return FormatError(
                "read", f"{source.where} chunk {key!r} has another size", expected=nbytes, got=source.files[key]
            )
    return None


# --- reading: shards


def index_nbytes(codec: Any, sizes: tuple[int, ...]) -> int | None:
    """Bytes of the index of a shard; ``None`` where only zarr can tell.

    Args:
        codec: The sharding codec, as zarr has it.
        sizes: Sizes of the shard.
    """
    names = [type(each).__name__ for each in codec.index_codecs]
    endian = getattr(getattr(codec.index_codecs[0], "endian", None), "value", "") if names else ""
    if names not in (["BytesCodec"], ["BytesCodec", "Crc32cCodec"]) or endian != "little":
        return None
    return 16 * count_chunks(sizes, tuple(codec.chunk_shape)) + 4 * (len(names) - 1)


def count_missing(index: bytes, codec: Any, shape: tuple[int, ...], sizes: tuple[int, ...], place: Place) -> int:
    """How many chunks of the array a shard does not have; those past the end of the array need not be there.

    Args:
        index: The bytes of its index.
        codec: The sharding codec.
        shape: Sizes of the array.
        sizes: Sizes of a shard.
        place: Which shard it is.
    """
    inner = tuple(codec.chunk_shape)
    counts = tuple(-(-size // step) for size, step in zip(sizes, inner, strict=True))
    table = np.frombuffer(index, "<u8", 2 * math.prod(counts)).reshape(*counts, 2)
    ends = (min(size, n - at * size) for at, size, n in zip(place, sizes, shape, strict=True))
    inside = tuple(slice(0, -(-end // step)) for end, step in zip(ends, inner, strict=True))
    return int((table[inside] == _NONE).all(axis=-1).sum())


def _why_shards(source: Source) -> FormatError | None:
    codec = source.array.metadata.codecs[0]
    nbytes = index_nbytes(codec, source.sizes) if hasattr(codec, "index_codecs") else None
    if nbytes is None:
        return None
    at_end = getattr(codec.index_location, "value", "end") == "end"
    for place in places(source.shape, source.sizes):
        storage = source.storage(place)
        if storage.size < nbytes:
            return FormatError("read", f"{source.where} shard {source.key(place)!r} ends before its index")
        index = storage.read(storage.size - nbytes if at_end else 0, nbytes)
        missing = count_missing(index, codec, source.shape, source.sizes, place)
        if missing:
            total = count_chunks(source.sizes, tuple(codec.chunk_shape))
            return _missing(source, missing, total, f"chunks in shard {source.key(place)!r}")
    return None


# --- reading: the elements


def layout_of(source: Source, claims: dict[str, Any], compression: str) -> Packed:
    """How the elements are read: here, or by the library."""
    rows = source.sizes[0] if source.sizes else 1
    reason = "compressed chunks of a store" if compression else "chunks of a store"
    how: _Direct | _Library = _Direct(source, compression) if _is_direct(claims) else _Library(source)
    return Packed(how.read, rows, reason, how.fill)


def packed_by(claims: dict[str, Any]) -> list[str]:
    """Names of the codecs that a chunk goes through, but for those that only lay it out."""
    if claims["zarr_format"] == 2:
        found = [*(claims.get("filters") or []), claims.get("compressor")]
        return [str(each["id"])[:40] for each in found if isinstance(each, dict) and "id" in each]
    names = []
    for codec in _codecs(claims.get("codecs")):
        inner = codec.get("configuration") or {}
        if codec.get("name") == "sharding_indexed":
            names += packed_by({"zarr_format": 3, "codecs": inner.get("codecs")})
        elif codec.get("name") not in ("bytes", "transpose", "crc32c"):
            names.append(str(codec.get("name"))[:40])
    return names


def _codecs(claim: Any) -> list[dict[str, Any]]:
    found = claim if isinstance(claim, list) else []
    return [each if isinstance(each, dict) else {"name": each} for each in found]


def _is_direct(claims: dict[str, Any]) -> bool:
    """Whether chunks are the elements row by row, plain or packed by what is unpacked here."""
    if claims["zarr_format"] == 2:
        compressor = claims.get("compressor")
        is_known = compressor is None or (isinstance(compressor, dict) and compressor.get("id") in _UNPACKED)
        return is_known and not claims.get("filters") and claims.get("order") == "C"
    first, *others = _codecs(claims.get("codecs")) or [{}]
    endian = (first.get("configuration") or {}).get("endian", "little")
    is_plain = first.get("name") == "bytes" and endian == "little"
    return is_plain and (not others or (len(others) == 1 and others[0].get("name") in _UNPACKED))


class _Direct:
    """Chunks that are read by several threads, without the library."""

    def __init__(self, source: Source, compression: str) -> None:
        self._source = source
        self._compression = compression
        self._nbytes = math.prod(source.sizes) * source.dtype.itemsize
        self._chunks = Chunks(source.shape, source.sizes, self._load)

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Read a selection."""
        target = np.empty(tuple(part.stop - part.start for part in slices), self._source.dtype)
        self._chunks.read_into(target, slices)
        return target

    def fill(self, target: AnyArray) -> None:
        """Read all of it."""
        self._chunks.read_into(target, tuple(slice(0, n) for n in self._source.shape))

    def _load(self, place: Place, buffer: AnyArray) -> None:
        if self._source.is_left_out(place):
            buffer[...] = self._source.fill
            return
        storage = self._source.storage(place)
        if self._compression:
            where = f"{self._source.where} chunk {self._source.key(place)!r}"
            raw = _unpacked(self._compression, storage.read(0, storage.size), self._nbytes, where)
            buffer.view(np.uint8)[...] = np.frombuffer(raw, np.uint8, buffer.nbytes)
        else:
            read_apart(storage, buffer, 0)


def _unpacked(codec: str, packed: bytes, nbytes: int, where: str) -> bytes:
    """Unpack a chunk, after what it claims to give was compared with what it has to."""
    if codec in ("gzip", "zlib"):
        return inflate(packed, nbytes, where)
    claimed = _claimed_by_zstd(packed) if codec == "zstd" else _claimed_by_blosc(packed)
    if claimed not in (nbytes, None):
        raise FormatError("read", f"{where} unpacks to another size", expected=nbytes, got=claimed)
    with failing(where):
        import numcodecs

        raw = numcodecs.get_codec({"id": codec}).decode(packed)
        if len(raw) != nbytes:
            raise FormatError("read", f"{where} unpacks to another size", expected=nbytes, got=len(raw))
        return cast(bytes, raw)


def _claimed_by_blosc(packed: bytes) -> int:
    """What the header of c-blosc 1 claims; it also has to be the length of what is there."""
    is_whole = len(packed) >= 16 and int.from_bytes(packed[12:16], "little") == len(packed)
    return int.from_bytes(packed[4:8], "little") if is_whole else -1


def _claimed_by_zstd(packed: bytes) -> int | None:
    """What the header of a zstd frame (RFC 8878, section 3.1.1.1) claims; it need not claim anything."""
    if packed[:4] != _ZSTD or len(packed) < 18:
        return None
    flags = packed[4]
    is_single = flags >> 5 & 1
    begin = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    length = (is_single, 2, 4, 8)[flags >> 6]
    claimed = int.from_bytes(packed[begin : begin + length], "little") + (256 if length == 2 else 0)
    return claimed if length else None


class _Library:
    """Chunks that the library unpacks."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chunks = Chunks(source.shape, source.sizes, lambda place, buffer: None)

    def read(self, slices: tuple[slice, ...]) -> AnyArray:
        """Read a selection."""
        target = np.empty(tuple(part.stop - part.start for part in slices), self._source.dtype)
        self._read_into(target, slices)
        return target

    def fill(self, target: AnyArray) -> None:
        """Read all of it."""
        self._read_into(target, tuple(slice(0, n) for n in self._source.shape))

    def _read_into(self, target: AnyArray, slices: tuple[slice, ...]) -> None:
        source = self._source
        if not target.size:
            return
        for place in self._chunks.touched(slices):  # a chunk that has vanished since would be read as zeros
            if not source.store.has(source.file(place)) and not source.is_left_out(place):
                raise FormatError("read", f"{source.where}: chunk {source.key(place)!r} is missing")
        with failing(source.where):
            if source.array.dtype.kind in "biufc" and source.array.dtype.isnative:
                out = target.view(source.array.dtype)
                buffer = self._prototype().nd_buffer.from_numpy_array(out)
                source.array.get_basic_selection(slices, out=buffer)
                return
            found = np.asarray(source.array.get_basic_selection(slices))
            is_integer = source.array.dtype.kind == "u"  # of what the library does not know; text without axes is short
            target[...] = found.view(source.dtype) if found.dtype != source.dtype and is_integer else found

    @staticmethod
    def _prototype() -> Any:
        from zarr.core.buffer import default_buffer_prototype

        return default_buffer_prototype()
