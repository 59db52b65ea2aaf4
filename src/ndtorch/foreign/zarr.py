"""Zarr: an array is read in one pass if none of its chunks is missing, a group becomes a table of its members."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import FormatError
from ..files.chunks import count_chunks, places
from ..files.zarr_arrays import MAX_LISTED, WRITE_ALL, count_missing, index_nbytes
from .forms import Foreign, Inner, Parts, Refused, Restore, Unread, restore_members

AnyArray = npt.NDArray[Any]

_MAX_DEPTH = 64  # of groups in groups: a link between folders may have no end
_MAX_DIMS = 64  # of a NumPy array
_NO_LIST = "its store cannot list what it has: a chunk that is missing reads as fill_value"


def take(source: Any, inner: Inner) -> Foreign:
    """Take an array, or a group with all that is in it; values are not read, but the chunks counted."""
    return _take_array(source) if hasattr(source, "shape") else _take_group(source, 0)


def take_async(source: Any, inner: Inner) -> Foreign:
    """Refuse what has to be awaited."""
    cls = type(source).__name__
    hint = f"zarr.{cls.removeprefix('Async')}(source) is the same without await"
    return Refused("zarr", cls, (), "it has to be awaited", hint)


# --- arrays


def _take_array(source: Any) -> Foreign:
    dtype, shape = np.dtype(source.dtype), tuple(source.shape)
    if dtype.kind in "OT":
        fact = "text and objects of varying length have no tensor form"
        return Refused("zarr", str(dtype), shape, fact, "numpy.array(array[...].tolist()) gives text of one length")
    if dtype.kind == "V" and dtype.names is None:
        fact = "raw bytes have no meaning as numbers"
        return Refused("zarr", str(dtype), shape, fact, "array[...].view(dtype) says what they mean")
    if len(shape) > _MAX_DIMS:
        return Refused("zarr", str(dtype), shape, f"NumPy has at most {_MAX_DIMS} dimensions", "array[0]")
    missing, note = _missing_chunks(source)
    if missing:
        reads = f"array[...] reads them as fill_value ({source.fill_value!r})"
        hint = f"{reads}; {WRITE_ALL}"
        return Refused("zarr", str(dtype), shape, missing, hint, FormatError)

    def fill(array: AnyArray) -> None:
        if array.size:
            prototype = sys.modules["zarr.core.buffer"].default_buffer_prototype()
            source.get_basic_selection(out=prototype.nd_buffer.from_numpy_array(array))

    def read() -> AnyArray:
        return np.asarray(source[...]).reshape(shape).astype(dtype, copy=False)

    can_fill = "zarr.core.buffer" in sys.modules and dtype.kind in "biufc"
    packed = getattr(source, "compressors", ()) or getattr(source, "filters", ())
    reason = "its values are compressed chunks of a store" if packed else "its values are chunks of a store"
    return Unread("zarr", dtype, shape, reason, read, fill if can_fill else None, note=note)


def _missing_chunks(source: Any) -> tuple[str, str]:
    """Say how many chunks were never written or are lost, and what is to note where the store does not tell."""
    if not getattr(source.store, "supports_listing", True):
        return "", _NO_LIST
    total, found = _count_chunks(source)
    if found == total:
        return _missing_in_shards(source), ""
    what = "shards" if getattr(source, "shards", None) else "chunks"
    return f"{total - found} of its {total} {what} are missing", ""


def _count_chunks(source: Any) -> tuple[int, int]:
    """How many objects the values should lie in, and how many there are.

    ``nchunks_initialized`` says the same, in a time that grows with the square of them.
    """
    sync, encode = _sync(), getattr(source.metadata, "encode_chunk_key", None)
    if sync is None or encode is None:
        return source.nchunks, source.nchunks_initialized
    stored = sync(_listed(source.store, _prefix(source)))
    total = count_chunks(source.shape, _sizes(source))
    if total > max(len(stored), MAX_LISTED):  # too many to name each
        return total, len(stored)
    wanted = (_prefix(source) + encode(place) for place in places(source.shape, _sizes(source)))
    return total, sum(key in stored for key in wanted)


def _missing_in_shards(source: Any) -> str:
    """Say how many chunks the indices of the shards have no place for, where the index is of the usual kind."""
    sync = _sync()
    codec: Any = next(iter(getattr(source.metadata, "codecs", ())), None)
    nbytes = index_nbytes(codec, _sizes(source)) if hasattr(codec, "index_codecs") else None
    if sync is None or nbytes is None or not hasattr(source.metadata, "encode_chunk_key"):
        return ""
    shards = list(places(source.shape, _sizes(source)))
    keys = [_prefix(source) + source.metadata.encode_chunk_key(place) for place in shards]
    at_end = getattr(codec.index_location, "value", "end") == "end"
    missing = 0
    for place, index in zip(shards, sync(_indices(source.store, keys, nbytes, at_end)), strict=True):
        if index is None or len(index) < nbytes:
            return f"its shard {place} ends before its index"
        missing += count_missing(index, codec, source.shape, _sizes(source), place)
    return f"{missing} chunks in its shards are missing" if missing else ""


async def _listed(store: Any, prefix: str) -> set[str]:
    return {key async for key in store.list_prefix(prefix)}


async def _indices(store: Any, keys: list[str], nbytes: int, at_end: bool) -> list[bytes | None]:
    """The first or last bytes of each object."""
    abc, prototype = sys.modules["zarr.abc.store"], sys.modules["zarr.core.buffer"].default_buffer_prototype()
    part = abc.SuffixByteRequest(nbytes) if at_end else abc.RangeByteRequest(0, nbytes)
    found = [await store.get(key, prototype, byte_range=part) for key in keys]
    return [None if each is None else each.to_bytes() for each in found]


def _sync() -> Any:
    return getattr(sys.modules.get("zarr.core.sync"), "sync", None)


def _prefix(source: Any) -> str:
    return f"{source.path}/" if source.path else ""


def _sizes(source: Any) -> tuple[int, ...]:
    """Of what is one object: a chunk, or a shard of chunks."""
    return tuple(source.shards or source.chunks)


# --- groups


def _take_group(group: Any, depth: int) -> Foreign:
    if depth > _MAX_DEPTH:
        fact = f"it is nested more than {_MAX_DEPTH} groups deep"
        return Refused("zarr", "group", (), fact, "convert its members one by one")
    members = dict(sorted(group.members()))
    parts = {
        f"[{name!r}]": _take_array(member) if hasattr(member, "shape") else _take_group(member, depth + 1)
        for name, member in members.items()
    }
    return Parts("zarr", "table", "group", (len(parts),), parts, keys=tuple(members))


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give what came from an array its dtype, as a NumPy array, and what came from a group a dict of such arrays."""
    if hasattr(like, "shape"):
        return inner(source, np.broadcast_to(np.empty((), like.dtype), like.shape))
    members = dict(sorted(like.members()))
    return restore_members(source, members, inner)
