"""Zarr: an array is read in one pass if none of its chunks is missing, a group becomes a table of its members."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import FormatError
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
        hint = f"{reads}; zarr leaves out chunks of that value unless config={{'write_empty_chunks': True}}"
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
        return "", ""
    what = "shards" if getattr(source, "shards", None) else "chunks"
    return f"{total - found} of its {total} {what} are missing", ""


def _count_chunks(source: Any) -> tuple[int, int]:
    """How many objects the values should lie in, and how many there are.

    ``nchunks_initialized`` says the same, in a time that grows with the square of them.
    """
    sync, encode = getattr(sys.modules.get("zarr.core.sync"), "sync", None), None
    encode = getattr(source.metadata, "encode_chunk_key", None)
    if sync is None or encode is None:
        return source.nchunks, source.nchunks_initialized
    prefix = f"{source.path}/" if source.path else ""
    stored = sync(_listed(source.store, prefix))
    wanted = [prefix + encode(place) for place in _places(source)]
    return len(wanted), sum(key in stored for key in wanted)


async def _listed(store: Any, prefix: str) -> set[str]:
    return {key async for key in store.list_prefix(prefix)}


def _places(source: Any) -> Iterator[tuple[int, ...]]:
    """The coordinates of every chunk, or shard of chunks."""
    sizes = source.shards or source.chunks
    return itertools.product(*(range(-(-n // size)) for n, size in zip(source.shape, sizes, strict=True)))


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
